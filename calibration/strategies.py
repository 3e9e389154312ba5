"""Ways to use a dropout network at test time, behind one interface.

``weight_scaling``       dropout off, one pass; torch's "inverted" dropout has scaled the weights in training (Hinton
                         et al. 2012; Srivastava et al. 2014)
``mc_dropout``           arithmetic mean of the sub-networks' class probabilities (Gal & Ghahramani 2016)
``geometric_mean``       normalised geometric mean of the same, that is the softmax of their mean logits: what weight
                         scaling approximates (Baldi & Sadowski 2013)
``last_layer``           MC dropout with the last dropout layer alone; the others as in weight scaling
``moment_propagation``   mean and covariance of the logits in closed form, in one pass (Wang & Manning 2013)

Beside them :func:`deep_ensemble`, of several networks trained apart (Lakshminarayanan et al. 2017): what the
sub-networks imitate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.masks import DEFAULT_DESIGN
from calibration.moments import QUADRATURE_POINTS, propagate_moments
from calibration.predictive import UNSCALED, PredictiveDistribution, PredictiveSummary
from calibration.subnetworks import SubnetworkEnsemble, UnsupportedNetworkError, dropout_layers
from models.records import Calibration, MaskDesign, Scaling

__all__ = [
    "DEFAULT_SAMPLES",
    "DEFAULT_SEED",
    "SAMPLING_STRATEGIES",
    "STRATEGIES",
    "Sampling",
    "Strategy",
    "applicable",
    "build",
    "deep_ensemble",
    "geometric_mean",
    "mc_dropout",
    "moment_propagation",
    "weight_scaling",
]

DEFAULT_SAMPLES = 64
DEFAULT_SEED = 0
MEMBERS_AT_ONCE = 1 << 16
"""Bound on the members times images that :meth:`Strategy.summarise` holds at a time."""
IMAGES_AT_ONCE = 64
"""Bound on the images themselves: what more of them make of convolutions does not fit into a processor's caches."""


@dataclass(frozen=True)
class Sampling:
    """How sub-networks are drawn, where a strategy samples."""

    samples: int = DEFAULT_SAMPLES
    seed: int = DEFAULT_SEED
    design: MaskDesign = DEFAULT_DESIGN

    @classmethod
    def of(cls, calibration: Calibration | None) -> Sampling:
        """Those that ``calibration`` was fitted with; the defaults if there is none."""
        return cls() if calibration is None else cls(calibration.samples, calibration.seed, calibration.design)


@dataclass(frozen=True)
class Strategy:
    """A network and a way to use it: a function from images to a :class:`PredictiveDistribution`.

    ``samples`` is the number of networks asked: sub-networks, or those of a deep ensemble; 1 if none is sampled.
    ``logits`` takes inputs ``[B, ...]`` to the logits ``[T, B, C]`` of the ``members`` of the predictive distribution,
    in ``replicates`` independent blocks. T is 1 for ``geometric_mean``: it pools its sub-networks into one
    distribution, of which their disagreement is no part.

    Safe to call from several threads at once.
    """

    name: str
    samples: int
    logits: Callable[[Tensor], Tensor]
    members: int = 1
    replicates: int = 1

    def __call__(self, inputs: Tensor, scaling: Scaling = UNSCALED) -> PredictiveDistribution:
        """The predictive distribution for ``inputs`` ``[B, ...]``, scaled if it was calibrated."""
        return PredictiveDistribution.scaled(self.logits(inputs), scaling, self.replicates)

    def summarise(
        self, inputs: Tensor, scaling: Scaling = UNSCALED, *, on_images: Callable[[int], None] = lambda _: None
    ) -> PredictiveSummary:
        """The same without the members, in memory that grows neither with B nor with T beyond the summary itself.

        ``on_images`` is told the number of images of each step done.
        """
        size = max(1, min(IMAGES_AT_ONCE, MEMBERS_AT_ONCE // max(self.members, self.samples)))
        first = self(inputs[:size], scaling).summary()
        on_images(len(inputs[:size]))
        # Filled step by step: small results kept between large ones that are freed would hold the heap in pieces.
        whole = first.empty(len(inputs))
        whole.fill(0, first)
        for start in range(size, len(inputs), size):
            chunk = inputs[start : start + size]
            whole.fill(start, self(chunk, scaling).summary())
            on_images(len(chunk))
        return whole


def build(
    name: str,
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = DEFAULT_SEED,
    design: MaskDesign = DEFAULT_DESIGN,
    rate: float | None = None,
) -> Strategy:
    """The strategy ``name`` for ``network``, whose inputs have ``input_shape`` without the batch axis.

    ``network`` must be in eval mode and is not modified. ``samples`` sub-networks are drawn from ``seed`` by
    ``design`` where the strategy samples. ``rate`` replaces the dropout rates at test time; weight scaling has no use
    for it. Raises ``ValueError`` for an unknown name or a network in train mode; for others than weight scaling
    :class:`~calibration.sites.NoActiveDropoutError` where there is no dropout; and
    :class:`~calibration.sites.UnsupportedNetworkError` where the strategy can't be had.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known are {', '.join(STRATEGIES)}")
    if network.training:
        raise ValueError("the network is in train mode; call network.eval() first")
    if name == "weight_scaling":
        return weight_scaling(network)
    if name == "moment_propagation":
        return moment_propagation(network, input_shape, rate=rate)
    ensemble = SubnetworkEnsemble(
        network, input_shape, samples=samples, seed=seed, design=design, rate=rate, last_layer_only=name == "last_layer"
    )
    return SAMPLING_STRATEGIES[name](ensemble)


def applicable(network: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the strategies that ``network`` allows: without active dropout, weight scaling alone."""
    if not dropout_layers(network, input_shape):
        return ("weight_scaling",)
    try:
        moment_propagation(network, input_shape)
    except UnsupportedNetworkError:
        return tuple(name for name in STRATEGIES if name != "moment_propagation")
    return STRATEGIES


def weight_scaling(network: nn.Module) -> Strategy:
    """Dropout off: ``network``, in eval mode, as it is."""

    @torch.inference_mode()
    def logits(inputs: Tensor) -> Tensor:
        return torch.cat([network(chunk) for chunk in torch.split(inputs, 4096)]).unsqueeze(0)

    return Strategy("weight_scaling", 1, logits)


def mc_dropout(ensemble: SubnetworkEnsemble) -> Strategy:
    """The sub-networks' probabilities, whose arithmetic mean is the prediction."""
    return _sampling("mc_dropout", ensemble)


def last_layer(ensemble: SubnetworkEnsemble) -> Strategy:
    """The same for an ``ensemble`` that was built with ``last_layer_only``."""
    return _sampling("last_layer", ensemble)


def geometric_mean(ensemble: SubnetworkEnsemble) -> Strategy:
    """The normalised geometric mean of the sub-networks' probabilities."""
    # Log-probabilities differ from logits by a constant per image and member, which the softmax ignores.
    return Strategy("geometric_mean", ensemble.samples, lambda inputs: ensemble.logits(inputs).mean(0, keepdim=True))


def moment_propagation(network: nn.Module, input_shape: Sequence[int], *, rate: float | None = None) -> Strategy:
    """The softmax at points that represent the logits' normal distribution.

    Raises what :func:`calibration.moments.propagate_moments` raises.
    """
    moments = propagate_moments(network, input_shape, rate=rate)
    return Strategy("moment_propagation", 1, lambda inputs: moments(inputs).points(), QUADRATURE_POINTS)


def deep_ensemble(networks: Sequence[nn.Module]) -> Strategy:
    """``networks`` trained independently of each other, each as in weight scaling.

    Raises ``ValueError`` for none, or if one is in train mode.
    """
    if not networks or any(network.training for network in networks):
        raise ValueError("a deep ensemble needs at least one network, and all of them in eval mode")
    alone = [weight_scaling(network) for network in networks]

    def logits(inputs: Tensor) -> Tensor:
        return torch.cat([strategy.logits(inputs) for strategy in alone])

    return Strategy("deep_ensemble", len(networks), logits, len(networks), len(networks))


def _sampling(name: str, ensemble: SubnetworkEnsemble) -> Strategy:
    return Strategy(name, ensemble.samples, ensemble.logits, ensemble.samples, ensemble.bank.replicates)


SAMPLING_STRATEGIES: Mapping[str, Callable[[SubnetworkEnsemble], Strategy]] = {
    "mc_dropout": mc_dropout,
    "geometric_mean": geometric_mean,
    "last_layer": last_layer,
}
STRATEGIES = ("weight_scaling", *SAMPLING_STRATEGIES, "moment_propagation")
