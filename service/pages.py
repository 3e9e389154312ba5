"""The routes that BentoML does not know: what describes the service rather than answers for images, and ``/v2``."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import deferred, metrics, protocol_v2, ui
from service.door import ENVELOPE, REQUEST_ID
from service.drift import DriftCollector
from service.errors import ErrorResponse, RequestError
from service.wire import QUESTION

if TYPE_CHECKING:
    from service.predictor import Predictor

__all__ = ["pages"]


def _chosen(request: Request) -> Predictor:
    """The predictor of the query's ``model``, the default one without it."""
    predictor: Predictor = request.app.state.catalogue.predictor(request.query_params.get("model", ""))
    return predictor


async def _model(request: Request) -> Response:
    return JSONResponse(_chosen(request).describe(request.app.state.catalogue.names).model_dump())


async def _report(request: Request) -> Response:
    predictor = _chosen(request)
    if predictor.report is None:
        raise RequestError(
            HTTPStatus.NOT_FOUND,
            f"version {predictor.bundle.version} of {predictor.name} has no report attached; make it with "
            "`python -m calibration report BUNDLE --out FOLDER --attach` and start the server again",
        )
    html = predictor.report
    return Response(html, media_type="text/html", headers=ui.security_headers(html, style_attributes=True))


async def _drift(request: Request) -> Response:
    deferred.flush()
    measured = await to_thread.run_sync(request.app.state.drift.measure)
    return JSONResponse(measured.model_dump())


async def _metrics(request: Request) -> Response:
    deferred.flush()
    text = await to_thread.run_sync(metrics.exposition, [DriftCollector(request.app.state.drift)])
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _docs(request: Request) -> Response:
    return JSONResponse(request.app.state.docs)


async def _predict_raw(request: Request) -> Response:
    # Here, and not with the other predictions, as the fastest way in: what BentoML does around a method is left out.
    response: Response = await request.app.state.answering.respond(request.scope[QUESTION])
    return response


async def _v2_server(_: Request) -> Response:
    return JSONResponse(protocol_v2.server_metadata())


async def _v2_live(_: Request) -> Response:
    return Response()


async def _v2_health(request: Request) -> Response:
    if request.app.state.draining:
        raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "this worker is about to end")
    return Response()


def _named(request: Request) -> Predictor:
    """The predictor that the path names, of the version that it names, if any."""
    path = request.path_params
    predictor: Predictor = request.app.state.catalogue.named(path["name"], path.get("version", ""))
    return predictor


async def _v2_model(request: Request) -> Response:
    predictor = _named(request)
    bundle = predictor.bundle
    card = bundle.card
    return JSONResponse(protocol_v2.model_metadata(predictor.name, [bundle.version], card.classes, card.input.shape))


async def _v2_ready(request: Request) -> Response:
    _named(request)
    return Response()


async def _v2_infer(request: Request) -> Response:
    question = request.scope[QUESTION]
    content = await request.app.state.answering.content(question)
    body, headers = protocol_v2.encode_infer(
        request.scope[ENVELOPE], content, question.predictor.bundle.card.classes
    )  # fmt: skip
    return Response(body, headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101
    return ErrorResponse(error, request.scope[REQUEST_ID])


V2_MODEL = "/v2/models/{name}"
pages = Starlette(
    routes=[
        Route("/predict_raw", _predict_raw, methods=["POST"]),
        Route("/model", _model),
        Route("/report", _report),
        Route("/drift", _drift),
        Route("/ui", ui.ui),
        Route("/docs.json", _docs),
        Route("/metrics", _metrics),
        Route("/v2", _v2_server),
        Route("/v2/health/live", _v2_live),
        Route("/v2/health/ready", _v2_health),
        *(
            Route(prefix + path, endpoint, methods=methods)
            for prefix in (V2_MODEL, V2_MODEL + "/versions/{version}")
            for path, endpoint, methods in (
                ("", _v2_model, ["GET"]), ("/ready", _v2_ready, ["GET"]), ("/infer", _v2_infer, ["POST"]),
            )
        ),
    ],
    exception_handlers={RequestError: _refuse},
)  # fmt: skip
