"""The BentoML service.

torch is imported when a worker starts, not with this module: the supervisor imports it too, and would carry it along.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import bentoml
from starlette.responses import Response

from models import sealed
from service import run_folder
from service import settings as configuration
from service.door import Door
from service.pages import pages
from service.responses import CompareResponse, PredictResponse
from service.wire import Bytes, CompareRequest, PredictRequest

if TYPE_CHECKING:
    from service.predictor import Question

__all__ = ["DropoutUncertainty"]

try:
    settings = configuration.load()
except configuration.SettingsError as fault:
    sys.exit(f"Error: {fault}")


@bentoml.service(
    name="dropout_uncertainty",
    workers=settings.workers,
    # The door gives up earlier. BentoML keeps every request object until this has passed, so that it should be short.
    traffic={"timeout": settings.timeout_seconds + 5},
    metrics={"enabled": False},
    # The door writes one line for each request; BentoML's log and spans would take much of its time.
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    monitoring=configuration.monitoring(settings),
)
@bentoml.asgi_app(pages)
class DropoutUncertainty:
    """Labels for images of clothing, with calibrated confidence and decomposed uncertainty."""

    def __init__(self) -> None:
        # One worker a core: more threads in each would only get in each other's way. torch.set_num_threads alone would
        # not do: it does not reach matrix products in threads that start later, and a product's last digit depends
        # on how many threads share it, so that the same request could get two answers.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

        from service import start

        try:
            self._answering = start.prepare(pages.state, settings)
        except sealed.BundleError as error:  # Its files are as they were written, but no network of this release.
            run_folder.fail(error)

    @bentoml.on_deployment
    def verify() -> None:
        """Runs in the supervisor before there are workers, which would fail and be started again without end."""
        try:
            for location in settings.bundles.values():
                sealed.read(location)
        except sealed.BundleError as error:
            sys.exit(f"Error: {error}")
        configuration.announce(settings)
        run_folder.create()

    async def __is_ready__(self) -> bool:
        """For ``/readyz``, which answers once the worker is warm."""
        return not pages.state.draining

    @bentoml.api(route="/predict", input_spec=PredictRequest, output_spec=PredictResponse)
    async def predict(self, question: Question, /) -> Response:
        """Classify images given as numbers."""
        return await self._answering.respond(question)

    @bentoml.api(route="/predict_image", input_spec=Bytes, output_spec=PredictResponse)
    async def predict_image(self, question: Question, /) -> Response:
        """Classify one picture."""
        return await self._answering.respond(question)

    @bentoml.api(route="/compare", input_spec=CompareRequest, output_spec=CompareResponse)
    async def compare(self, question: Question, /) -> Response:
        """Classify images by every strategy."""
        return await self._answering.respond(question)


DropoutUncertainty.add_asgi_middleware(Door, state=pages.state)  # type: ignore[attr-defined]
