"""From pixels to the answer on the wire: one bundle, its strategies, its calibration."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration import strategies
from calibration.adaptive import predict_adaptively
from calibration.answers import DECIMALS, answers
from calibration.cost import multiplications
from calibration.decisions import DecisionRule
from calibration.novelty import Novelty, NoveltyDetector
from calibration.predictive import PredictiveDistribution, PredictiveSummary
from calibration.strategies import SAMPLING_STRATEGIES, Sampling
from calibration.subnetworks import SubnetworkEnsemble
from models.bundle import Bundle, attached_report
from service.errors import RequestError
from service.responses import ModelResponse
from service.wire import CommonOptions, CompareOptions, MembersName, Options, StrategyName

__all__ = ["Predictor", "Question"]

PREPARED_ENSEMBLES = 4
"""Ensembles kept compiled beside the calibration's own; one of 1,024 takes some 80 MB for the shipped model."""
MOST_SAMPLES = 1024
"""How many sub-networks ``samples="auto"`` may ask."""
PASS_MULTIPLICATIONS = 150_000
"""Of a pass, the unit of what requests cost: through the notebook's network, of 102,000."""
MOMENT_PASSES = 512
"""What carrying moments through the shipped network costs, in passes through sub-networks: some 400, measured."""
COMPILE_PASSES = 16_384
"""What making other sub-networks than the calibration's costs at least, counted likewise."""
MOST_VOTES = 65_536
"""Bound on images times sub-networks of which each is told."""
MEMBER_DECIMALS = 4
ONE_PASS = ("weight_scaling", "moment_propagation")
WITH_MEMBERS = ("mc_dropout", "last_layer")
"""The strategies whose members are sub-networks."""


@dataclass(frozen=True)
class Question:
    """What a request asks of a ``predictor``, all of it chosen and checked: ``pixels`` ``[N, *shape]`` of the bundle's.

    No ``strategy`` means all that the network allows. ``sampling`` is what sub-networks are drawn by, ``adaptive`` that
    as few of them are asked as each image needs. ``passes`` is what it costs in passes through sub-networks.
    """

    predictor: Predictor
    pixels: NDArray[np.float32]
    strategy: StrategyName | None
    sampling: Sampling
    adaptive: bool
    coverage: float
    target_error: float
    members: MembersName
    request_id: str
    passes: int

    @property
    def samples(self) -> int | Literal["auto"]:
        """Sub-networks asked for, as the answer says it; 1 where none are sampled."""
        if self.adaptive:
            return "auto"
        return 1 if self.strategy in ONE_PASS else self.sampling.samples


class Predictor:
    """Answers from one bundle, which is served as ``name``.

    ``coverage`` and ``target_error`` hold where a request names none; it may not ask for a larger target error. Safe to
    call from several threads: nothing that it holds changes but bounded caches.
    """

    def __init__(self, name: str, bundle: Bundle, *, coverage: float, target_error: float) -> None:
        self.name = name
        self.bundle = bundle
        self.report = attached_report(bundle)
        """The calibration report as HTML, if the bundle has that of its version."""
        self.coverage, self.target_error = coverage, target_error
        allowed = strategies.applicable(bundle.network, bundle.card.input.shape)
        self.strategies: list[StrategyName] = [found for found in get_args(StrategyName) if found in allowed]
        """Names of the strategies that the network allows, the default first if it is among them."""
        whole = multiplications(bundle.network, bundle.card.input.shape)
        self._front = whole // PASS_MULTIPLICATIONS
        """What any strategy computes once an image, the novelty too, in passes; 0 for a small network."""
        self.fitted = Sampling.of(bundle.calibration)
        self._detector = NoveltyDetector.of(bundle)
        self._fitted_ensemble = cache(self._compile)
        self._other_ensemble = lru_cache(maxsize=PREPARED_ENSEMBLES)(self._compile)
        self._without_sampling = cache(self._build)
        self._rule = lru_cache(maxsize=128)(self._fit_rule)

    def describe(self, loaded: list[str]) -> ModelResponse:
        """The bundle's card and calibration; ``loaded`` are the names of all bundles beside it."""
        calibration = self.bundle.calibration
        return ModelResponse(
            name=self.name,
            version=self.bundle.version,
            loaded=loaded,
            strategies=self.strategies,
            default_samples=self.fitted.samples,
            default_coverage=self.coverage,
            default_target_error=self.target_error,
            card=self.bundle.card.model_dump(mode="json"),
            calibration=calibration.model_dump(mode="json") if calibration else None,
        )

    def question(self, pixels: NDArray[np.float32], options: CommonOptions, request_id: str = "") -> Question:
        """What ``options`` ask of ``pixels`` ``[N, *shape]``, the bundle's choices filled in.

        Raises :class:`~service.errors.RequestError` for what this bundle or server doesn't offer.
        """
        if self.bundle.calibration is None:
            for promise in ("coverage", "target_error"):
                if promise in options.model_fields_set:
                    raise _refused(promise, f"{self.name} is not calibrated, so that nothing can be promised")
        target_error = options.given("target_error", self.target_error)
        if target_error > self.target_error:
            raise _refused(
                "target_error", f"this server promises at most {self.target_error}; ask for that or for less"
            )
        strategy, samples, members = self._choose(options)
        adaptive = samples == "auto"
        sampling = Sampling(
            MOST_SAMPLES if samples == "auto" else samples,
            options.given("seed", self.fitted.seed),
            # The number can be adapted for independent sub-networks alone.
            "independent" if adaptive else self.fitted.design,
        )
        if members != "none" and len(pixels) * sampling.samples > MOST_VOTES:
            raise _refused("members", f"they can be told of at most {MOST_VOTES:,} images times sub-networks")
        question = Question(
            self, pixels, strategy, sampling, adaptive, options.given("coverage", self.coverage), target_error, members,
            request_id, passes=0,
        )  # fmt: skip
        return replace(question, passes=self._passes(question))

    def _choose(self, options: CommonOptions) -> tuple[StrategyName | None, int | Literal["auto"], MembersName]:
        if isinstance(options, CompareOptions):
            return None, options.given("samples", self.fitted.samples), "none"
        assert isinstance(options, Options)  # noqa: S101
        strategy = options.given("strategy", self.strategies[0])
        if strategy not in self.strategies:
            allowed = ", ".join(self.strategies)
            raise _refused("strategy", f"the model has no active dropout to sample from; it allows {allowed}")
        if options.members != "none" and strategy not in WITH_MEMBERS:
            raise _refused("members", f"{strategy} has no sub-networks to tell of; {' and '.join(WITH_MEMBERS)} have")
        samples = options.given("samples", self.fitted.samples)
        if samples == "auto" and strategy not in WITH_MEMBERS:
            raise _refused("samples", f"auto is for {' and '.join(WITH_MEMBERS)}, not for {strategy}")
        if samples == "auto" and options.members != "none":
            raise _refused("members", "they can't be told where samples is auto; name a number")
        return strategy, samples, options.members

    def _passes(self, question: Question) -> int:
        chosen = [question.strategy] if question.strategy else self.strategies
        costs = {"weight_scaling": 1, "moment_propagation": MOMENT_PASSES}
        each = sum(costs.get(name, question.sampling.samples) + self._front for name in chosen)
        new = sum(name in SAMPLING_STRATEGIES for name in chosen) if question.sampling != self.fitted else 0
        return len(question.pixels) * each + new * COMPILE_PASSES

    def answer(self, question: Question) -> dict[str, Any]:
        """The answer to ``question``, as :class:`~service.responses.PredictResponse` or, for all strategies,
        :class:`~service.responses.CompareResponse` describes it.

        The same question gets the same answer: sub-networks are drawn once, from a seed.
        """
        model = {"name": self.name, "version": self.bundle.version}
        inputs = self.bundle.prepare(torch.from_numpy(question.pixels))
        novelty = None if self._detector is None else self._detector(inputs)
        if question.strategy is not None:
            found = self._answer(question, question.strategy, inputs, novelty)
            return {"model": model, "strategy": question.strategy, **found}
        compared = {}
        for strategy in self.strategies:
            self._prepare(strategy, question.sampling)
            start = time.perf_counter()
            found = self._answer(question, strategy, inputs, novelty)
            compared[strategy] = {**found, "milliseconds": round(1000 * (time.perf_counter() - start), 3)}
        return {"model": model, "strategies": compared}

    def _answer(
        self, question: Question, strategy: StrategyName, inputs: Tensor, novelty: Novelty | None
    ) -> dict[str, Any]:
        scaling = self.bundle.scaling(strategy)
        rule = self._rule(strategy, question.coverage, question.target_error)
        prepared = self._prepare(strategy, question.sampling)
        predicted: PredictiveDistribution | PredictiveSummary
        if question.adaptive:
            ensemble = self._ensemble(question.sampling, strategy == "last_layer")
            adapted = predict_adaptively(ensemble, inputs, scaling, threshold=rule.min_confidence if rule else None)
            predicted, asked = adapted.summary, adapted.samples.tolist()
        else:
            predicted, asked = prepared(inputs, scaling), [prepared.samples] * len(inputs)
        predictions = cast(
            list[dict[str, Any]],
            answers(
                predicted,
                self.bundle.card.classes,
                members=prepared.members,
                samples=asked,
                rule=rule,
                novelty=novelty,
            ),
        )
        if question.members != "none" and isinstance(predicted, PredictiveDistribution):
            for index, prediction in enumerate(predictions):
                prediction["members"] = self._members(predicted.members[:, index], question.members)
        else:
            for prediction in predictions:
                prediction["members"] = None
        exact = prepared.samples == 1 or question.sampling == self.fitted
        return {
            "samples": "auto" if question.adaptive else prepared.samples,
            "temperature": round(scaling.temperature, DECIMALS),
            "decision": _decision(rule, exact) if rule else None,
            "predictions": predictions,
        }

    def _members(self, members: Tensor, how: MembersName) -> dict[str, Any]:
        """``members`` ``[T, C]`` are the probabilities of each sub-network."""
        classes = self.bundle.card.classes
        votes = members.argmax(1)
        counts = torch.bincount(votes, minlength=len(classes)).tolist()
        told = members.double().round(decimals=MEMBER_DECIMALS).tolist() if how == "probabilities" else None
        return {
            "votes": votes.tolist(),
            "histogram": {name: count for name, count in zip(classes, counts, strict=True) if count},
            "probabilities": told,
        }

    def _prepare(self, strategy: StrategyName, sampling: Sampling) -> strategies.Strategy:
        if strategy not in SAMPLING_STRATEGIES:
            return self._without_sampling(strategy)
        return SAMPLING_STRATEGIES[strategy](self._ensemble(sampling, strategy == "last_layer"))

    def _ensemble(self, sampling: Sampling, last_layer_only: bool) -> SubnetworkEnsemble:
        kept = self._fitted_ensemble if sampling == self.fitted else self._other_ensemble
        return kept(sampling, last_layer_only)

    def _build(self, strategy: StrategyName) -> strategies.Strategy:
        return strategies.build(strategy, self.bundle.network, self.bundle.card.input.shape)

    def _compile(self, sampling: Sampling, last_layer_only: bool) -> SubnetworkEnsemble:
        return SubnetworkEnsemble(
            self.bundle.network,
            self.bundle.card.input.shape,
            samples=sampling.samples,
            seed=sampling.seed,
            design=sampling.design,
            last_layer_only=last_layer_only,
        )

    def _fit_rule(self, strategy: StrategyName, coverage: float, target_error: float) -> DecisionRule | None:
        return DecisionRule.fitted(self.bundle, strategy, coverage, target_error)


def _decision(rule: DecisionRule, exact: bool) -> dict[str, Any]:
    confidence = rule.min_confidence
    return {
        "coverage": rule.coverage,
        "min_probability": round(rule.min_probability, DECIMALS),
        "target_error": rule.target_error,
        "min_confidence": None if confidence is None else round(confidence, DECIMALS),
        "guarantee": "exact" if exact else "approximate",
    }


def _refused(field: str, message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, f"{field}: {message}", field)
