"""The BentoML service.

torch is imported when a worker starts, not with this module: the supervisor imports it too, and would carry it along.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import bentoml
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import metrics, openapi
from service.door import REQUEST_ID, Door
from service.errors import ErrorResponse, RequestError
from service.wire import ImageRequest, Options, PredictRequest, PredictResponse

__all__ = ["DropoutUncertainty"]

BUNDLE_VARIABLE = "DROPOUT_BUNDLE"
DEFAULT_BUNDLE = "mlp"
ROOT = Path(__file__).resolve().parent.parent


def _bundle_name() -> str:
    return os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE


async def _model(request: Request) -> Response:
    return JSONResponse(request.app.state.model)


async def _metrics(_: Request) -> Response:
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _docs(request: Request) -> Response:
    return JSONResponse(request.app.state.docs)


pages = Starlette(routes=[Route("/model", _model), Route("/docs.json", _docs), Route("/metrics", _metrics)])


@bentoml.service(
    name="dropout_uncertainty",
    workers="cpu_count",
    # The door gives up earlier. BentoML keeps every request object until this has passed, so that it should be short.
    traffic={"timeout": 15},
    metrics={"enabled": False},
)
@bentoml.asgi_app(pages)
class DropoutUncertainty:
    """Labels for images of clothing, with calibrated confidence and decomposed uncertainty."""

    def __init__(self) -> None:
        # One worker a core: more threads in each would only get in each other's way. torch.set_num_threads alone would
        # not do: it does not reach matrix products in threads that start later, and a product's last digit depends
        # on how many threads share it, so that the same request could get two answers.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

        from models import bundle
        from service.predictor import Predictor

        self.predictor = Predictor(bundle.load(_bundle_name()))
        description = self.predictor.describe()
        example = openapi.example_request(description)
        warm_up = self.predictor.predict(example.pixels(), example.strategy, example.samples)
        pages.state.model = description.model_dump()
        pages.state.docs = openapi.document(description, example, warm_up)
        # What exists now lives as long as the worker: full collections need not walk it, and can be rare.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    @bentoml.on_deployment
    def verify_bundle() -> None:
        """Runs in the supervisor before there are workers, which would fail and be started again without end.

        In a process of its own, to keep torch out of the supervisor.
        """
        command = [sys.executable, "-m", "models", _bundle_name()]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        verified = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False)  # noqa: S603
        if verified.returncode:
            sys.exit(verified.returncode)

    @bentoml.api(route="/predict", output_spec=PredictResponse)
    def predict(self, request: PredictRequest, /, ctx: bentoml.Context) -> PredictResponse | Response:
        """Classify images given as numbers."""
        return self._answer(request.pixels(), request, ctx)

    @bentoml.api(route="/predict_image", output_spec=PredictResponse)
    def predict_image(self, request: ImageRequest, /, ctx: bentoml.Context) -> PredictResponse | Response:
        """Classify one picture."""
        return self._answer(request.pixels(), request.options, ctx)

    def _answer(
        self, pixels: NDArray[np.float32], options: Options, ctx: bentoml.Context
    ) -> PredictResponse | Response:
        strategy, samples = options.chosen(self.predictor.strategies[0], self.predictor.default_samples)
        if strategy not in self.predictor.strategies:
            allowed = ", ".join(self.predictor.strategies)
            message = f"strategy: the model has no active dropout to sample from; it allows {allowed}"
            error = RequestError(HTTPStatus.BAD_REQUEST, message, "strategy")
            ctx.response.status_code = error.status  # BentoML puts it in the place of the response's own.
            return ErrorResponse(error, ctx.request.scope[REQUEST_ID])
        return self.predictor.predict(pixels, strategy, samples)


DropoutUncertainty.add_asgi_middleware(Door)  # type: ignore[attr-defined]
