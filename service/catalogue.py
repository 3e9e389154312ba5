"""The bundles that a server answers from."""

from __future__ import annotations

from http import HTTPStatus

from models import bundle
from service.errors import RequestError
from service.predictor import Predictor
from service.settings import Settings

__all__ = ["Catalogue"]


class Catalogue:
    """A :class:`~service.predictor.Predictor` for each bundle of the settings, the default first.

    Raises :class:`~models.bundle.BundleError` for one that can't be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.predictors = {
            name: Predictor(
                name, bundle.load(location), coverage=settings.coverage, target_error=settings.target_error
            )
            for name, location in settings.bundles.items()
        }  # fmt: skip

    @property
    def names(self) -> list[str]:
        return list(self.predictors)

    def named(self, name: str, version: str = "") -> Predictor:
        """The one of a ``name`` that stands in a path, and of that ``version`` if it isn't empty.

        Raises :class:`~service.errors.RequestError`, 404, if there is none.
        """
        predictor = self.predictor(name, HTTPStatus.NOT_FOUND)
        if version not in {"", predictor.bundle.version}:
            raise RequestError(
                HTTPStatus.NOT_FOUND, f"version: {name} has version {predictor.bundle.version} alone", "version"
            )
        return predictor

    def predictor(self, name: str = "", status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Predictor:
        """The one of this name, or the default.

        Raises :class:`~service.errors.RequestError` with ``status`` if there is none.
        """
        try:
            return self.predictors[name or self.names[0]]
        except KeyError:
            raise RequestError(
                status, f"model: no bundle {name!r} is loaded; there are {', '.join(self.names)}", "model"
            ) from None
