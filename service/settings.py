"""The service's configuration: environment variables, checked when it starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR

__all__ = ["Settings", "SettingsError", "announce", "load", "monitoring"]

PREFIX = "DROPOUT_"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
FACTORY = re.compile(r"[\w.]+:[\w.]+", re.ASCII)
KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$")
"""What Kubernetes tells a container of a Service whose name starts as our settings do."""
REQUEST_LOG_FILES = Path(__file__).parent / "request_log.yaml"
HASHED_KEY = re.compile(r"sha256:([0-9a-fA-F]{64})")


class SettingsError(Exception):
    """An environment variable that can't be used; the message names it."""


class Settings(BaseSettings):
    """Each field is read from the environment variable of its name in capitals after ``DROPOUT_``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    bundles: Annotated[dict[str, str], NoDecode] = Field(
        default={"cnn": "cnn"},
        description="bundles to serve, the default first: names of shipped ones or folders, separated by commas, each "
        "under a name of your own if you write name=folder",
    )
    networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="code of your own that bundles may run to build their networks: package.module:factory, separated "
        "by commas",
    )
    api_keys: Annotated[tuple[bytes, ...], NoDecode] = Field(
        default=(),
        description="keys of which a request must bring one, separated by commas: each as it is, or as sha256: and the "
        "64 hexadecimal digits of its hash; none: no key is asked for",
    )
    workers: Literal["cpu_count"] | Annotated[int, Field(ge=1, le=256)] = Field(
        default="cpu_count", description="worker processes; cpu_count: one a core"
    )
    timeout_seconds: float = Field(default=10.0, gt=0, le=600, description="after which a request is given up with 504")
    drain_seconds: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="for which a worker that is told to end still takes requests, while /readyz already says no",
    )
    coverage: float = Field(
        default=DEFAULT_COVERAGE, ge=0.5, le=0.999, description="of prediction sets, where a request names none"
    )
    target_error: float = Field(
        default=DEFAULT_TARGET_ERROR,
        ge=0.001,
        le=0.5,
        description="promised error among the answers that are not abstained from; a request may ask for less",
    )
    access_log: bool = Field(default=True, description="whether to write a line of JSON for each request")
    request_log: Path | None = Field(
        default=None, description="folder for a log of all predictions; none: they are not logged"
    )
    request_log_pixels: bool = Field(default=False, description="whether that log holds the images as well")
    drift_window: int = Field(
        default=2000, ge=200, le=1_000_000, description="last predictions that are compared with the calibration's"
    )

    @field_validator("bundles", mode="before")
    @classmethod
    def _parse_bundles(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found: dict[str, str] = {}
        for entry in filter(None, map(str.strip, value.split(","))):
            name, separator, location = entry.partition("=")
            if not separator:
                name, location = Path(entry).name, entry
            if not NAME.fullmatch(name) or not location:
                raise ValueError(f"{entry!r} should be a shipped bundle's name, a folder, or name=folder")
            if name in found:
                raise ValueError(f"two bundles are called {name!r}; give one a name of its own: name=folder")
            found[name] = location
        if not found:
            raise ValueError("it names no bundle")
        return found

    @field_validator("networks", mode="before")
    @classmethod
    def _parse_networks(cls, value: object) -> object:
        """:mod:`models.networks.own` reads the variable itself; here it is checked, without importing torch."""
        if not isinstance(value, str):
            return value
        names = tuple(filter(None, map(str.strip, value.split(","))))
        for name in names:
            if not FACTORY.fullmatch(name):
                raise ValueError(f"{name!r} should be of the form package.module:factory")
        return names

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(_hashed(key) for key in filter(None, map(str.strip, value.split(","))))

    def shown(self) -> dict[str, object]:
        """The settings for a log; keys are counted, not told."""
        return self.model_dump(mode="json", exclude={"api_keys"}) | {"api_keys": len(self.api_keys)}


def load() -> Settings:
    """The settings of this process's environment.

    Raises :class:`SettingsError` for a value that can't be used, and for a variable with our prefix that is none of
    ours, which would be a misspelt one.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(PREFIX) and name.upper() not in known and not KUBERNETES.search(name)
    )
    if unknown:
        raise SettingsError(f"{unknown[0]} is none of the service's settings: {', '.join(sorted(known))}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{PREFIX}{str(first['loc'][0]).upper()}: {message}") from None


def announce(settings: Settings) -> None:
    """Print them once, as a line of JSON."""
    sys.stdout.write(json.dumps({"time": round(time.time(), 3), "settings": settings.shown()}) + "\n")
    sys.stdout.flush()


def monitoring(settings: Settings) -> dict[str, Any]:
    """BentoML's configuration of the log of predictions."""
    if settings.request_log is None:
        return {"enabled": False}
    options = {"log_path": str(settings.request_log.absolute()), "log_config_file": str(REQUEST_LOG_FILES)}
    return {"enabled": True, "type": "default", "options": options}


def _hashed(key: str) -> bytes:
    given = HASHED_KEY.fullmatch(key)
    return bytes.fromhex(given.group(1)) if given else hashlib.sha256(key.encode()).digest()
