"""Where work that falls into independent tasks is done: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from training.engines.protocol import Engine, EngineError, TaskError

__all__ = ["ENGINES", "Engine", "EngineError", "TaskError", "build"]

ENGINES = ("local", "ray")


def build(name: str, *, workers: int, address: str | None = None) -> Engine:
    """The engine ``name``: ``workers`` processes of this machine, or the Ray cluster at ``address``, as
    :class:`~training.engines.cluster.RayEngine` takes it.

    Raises ``ValueError`` for an unknown name, and :class:`EngineError` if Ray is not installed.
    """
    if name == "local":
        from training.engines.local import LocalEngine  # noqa: PLC0415

        return LocalEngine(workers)
    if name == "ray":
        from training.engines.cluster import RayEngine  # noqa: PLC0415

        return RayEngine(address)
    raise ValueError(f"unknown engine {name!r}; known are {', '.join(ENGINES)}")
