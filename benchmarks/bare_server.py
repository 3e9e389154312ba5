"""What the service is measured against: a bare handler that does the same computation, and nothing else."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # Before torch is imported, as in the service.

import json

import numpy as np
import torch
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from calibration import strategies
from calibration.answers import Answer, answers
from calibration.decisions import DecisionRule
from calibration.strategies import Sampling
from models import bundle
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR

loaded = bundle.load("mlp")
strategy = strategies.build(
    "mc_dropout", loaded.network, loaded.card.input.shape, **vars(Sampling.of(loaded.calibration))
)
scaling = loaded.scaling("mc_dropout")
rule = DecisionRule.fitted(loaded, "mc_dropout", DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR)


def _answer(pixels: NDArray[np.float32]) -> list[Answer]:
    predicted = strategy(loaded.prepare(torch.from_numpy(pixels)), scaling)
    return answers(
        predicted, loaded.card.classes, members=strategy.members, samples=[strategy.samples] * len(pixels), rule=rule
    )


async def _predict(request: Request) -> Response:
    instances = json.loads(await request.body())["instances"]
    return JSONResponse({"predictions": _answer(np.array(instances, dtype=np.float32).reshape(-1, 28, 28))})


async def _predict_raw(request: Request) -> Response:
    pixels = np.frombuffer(await request.body(), dtype=np.uint8).reshape(-1, 28, 28)
    return JSONResponse({"predictions": _answer(pixels.astype(np.float32))})


app = Starlette(
    routes=[
        Route("/predict", _predict, methods=["POST"]),
        Route("/predict_raw", _predict_raw, methods=["POST"]),
        Route("/readyz", lambda _: Response()),
    ]
)
