"""Temperature scaling (Guo et al. 2017), of a strategy's pooled prediction or of its members before they are pooled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from calibration.predictive import temper
from models.records import PoolingOrder, Scaling

__all__ = ["FittedScaling", "best_temperature", "fit_scaling"]

LOG_RANGE = (math.log(0.05), math.log(20.0))
FOLDS = 5


@dataclass(frozen=True)
class FittedScaling:
    """The ``scaling``, and mean negative log-likelihoods in nats: without it and with it on the images that it was
    fitted on; and of each order considered, by cross-validation."""

    scaling: Scaling
    nll_before: float
    nll_after: float
    cross_validated_nll: dict[PoolingOrder, float]


def fit_scaling(logits: Tensor, labels: Tensor) -> FittedScaling:
    """The temperature between 0.05 and 20, and its place before or after pooling, of least negative log-likelihood.

    ``logits`` ``[T, N, C]`` are those of a strategy's T members, ``labels`` ``[N]``. The order is the one that has the
    lower loss in 5-fold cross-validation; for one member there is only one. Rahaman & Thiery (2021) found pooling
    first to be better for deep ensembles. Folds are consecutive images: they should come in random order.

    Raises ``ValueError`` for fewer images than folds or logits that are not finite.
    """
    if len(labels) < FOLDS:
        raise ValueError(f"a temperature can't be fitted on {len(labels)} images; {FOLDS} are the fewest")
    if not logits.isfinite().all():
        raise ValueError("a temperature can't be fitted on logits that are not finite")
    # Calibrating what was pooled is calibrating the single member that it is.
    pooled = temper(F.softmax(logits, dim=-1).mean(0, keepdim=True), 1.0).log()
    members: dict[PoolingOrder, Tensor] = {"pool_then_calibrate": pooled.double()}
    if len(logits) > 1:
        members["calibrate_then_pool"] = logits
    validated = {order: _cross_validated(values, labels) for order, values in members.items()}
    order = min(validated, key=validated.__getitem__)
    temperature = best_temperature(members[order], labels)
    return FittedScaling(
        Scaling(temperature=temperature, order=order),
        nll_before=_loss(members["pool_then_calibrate"], labels, 1.0),
        nll_after=_loss(members[order], labels, temperature),
        cross_validated_nll=validated,
    )


def _loss(members: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood of the mean of ``members``, each at ``temperature``."""
    likelihoods = F.log_softmax(members / temperature, dim=-1).gather(
        2, labels.expand(len(members), -1).unsqueeze(2)
    )  # fmt: skip
    return float(math.log(len(members)) - torch.logsumexp(likelihoods.double(), dim=0).mean())


def best_temperature(members: Tensor, labels: Tensor) -> float:
    """The temperature of ``members`` (logits ``[T, N, C]``) whose mean then has the least loss; between 0.05 and 20."""
    found = minimize_scalar(
        lambda log_temperature: _loss(members, labels, math.exp(log_temperature)),
        bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-4},
    )  # fmt: skip
    return math.exp(found.x)


def _cross_validated(members: Tensor, labels: Tensor) -> float:
    losses = 0.0
    for fold in torch.arange(len(labels)).tensor_split(FOLDS):
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[fold] = False
        temperature = best_temperature(members[:, rest], labels[rest])
        losses += _loss(members[:, fold], labels[fold], temperature) * len(fold)
    return losses / len(labels)
