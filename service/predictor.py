"""From pixels to the answer on the wire: one bundle, its strategies, its calibration."""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from calibration import strategies
from calibration.answers import DECIMALS, answers
from calibration.masks import DEFAULT_DESIGN
from calibration.subnetworks import SubnetworkEnsemble
from models.bundle import Bundle
from service.wire import ModelName, ModelResponse, Prediction, PredictResponse, StrategyName

__all__ = ["Predictor"]

PREPARED_ENSEMBLES = 4
"""Numbers of sub-networks kept compiled; that of 1,024 takes some 80 MB for the shipped model."""


class Predictor:
    """Answers from one bundle. Safe to call from several threads: nothing it holds changes but a bounded cache."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        allowed = strategies.applicable(bundle.network, bundle.card.input.shape)
        self.strategies: list[StrategyName] = [name for name in get_args(StrategyName) if name in allowed]
        """Names of the strategies that the network allows, the default first if it is among them."""
        calibration = bundle.calibration
        self.default_samples = calibration.samples if calibration else strategies.DEFAULT_SAMPLES
        self._seed = calibration.seed if calibration else strategies.DEFAULT_SEED
        self._design = calibration.design if calibration else DEFAULT_DESIGN
        self._ensemble = lru_cache(maxsize=PREPARED_ENSEMBLES)(self._compile)

    def describe(self) -> ModelResponse:
        """The bundle's card and calibration."""
        calibration = self.bundle.calibration
        return ModelResponse(
            name=self.bundle.card.name,
            version=self.bundle.version,
            strategies=self.strategies,
            default_samples=self.default_samples,
            card=self.bundle.card.model_dump(mode="json"),
            calibration=calibration.model_dump(mode="json") if calibration else None,
        )

    def predict(self, pixels: NDArray[np.float32], strategy: StrategyName, samples: int) -> PredictResponse:
        """Predictions for ``pixels`` ``[N, 28, 28]`` in 0..255.

        The same pixels, strategy and number of samples give the same answer: the sub-networks are those that the
        bundle was calibrated with. Raises
        :class:`~calibration.subnetworks.NoActiveDropoutError` where the strategy needs dropout and there is none.
        """
        prepared = self._prepared(strategy, samples)
        scaling = self.bundle.scaling(strategy)
        distribution = prepared(self.bundle.prepare(torch.from_numpy(pixels)), scaling)
        found = answers(distribution, self.bundle.card.classes, prepared.members)
        return PredictResponse(
            model=ModelName(name=self.bundle.card.name, version=self.bundle.version),
            strategy=strategy,
            samples=prepared.samples,
            temperature=round(scaling.temperature, DECIMALS),
            predictions=[Prediction.model_validate(answer) for answer in found],
        )

    def _prepared(self, strategy: StrategyName, samples: int) -> strategies.Strategy:
        if strategy in strategies.SAMPLING_STRATEGIES:
            return strategies.SAMPLING_STRATEGIES[strategy](self._ensemble(samples, strategy == "last_layer"))
        return strategies.build(strategy, self.bundle.network, self.bundle.card.input.shape)

    def _compile(self, samples: int, last_layer_only: bool) -> SubnetworkEnsemble:
        return SubnetworkEnsemble(
            self.bundle.network,
            self.bundle.card.input.shape,
            samples=samples,
            seed=self._seed,
            design=self._design,
            last_layer_only=last_layer_only,
        )
