"""Ways to use a dropout network at test time, behind one interface.

``weight_scaling``   dropout off, one pass; torch's "inverted" dropout has scaled the weights in training (Hinton et
                     al. 2012; Srivastava et al. 2014)
``mc_dropout``       arithmetic mean of the sub-networks' class probabilities (Gal & Ghahramani 2016)
``geometric_mean``   normalised geometric mean of the same, that is the softmax of their mean logits: what weight
                     scaling approximates (Baldi & Sadowski 2013)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.predictive import PredictiveDistribution
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers

__all__ = [
    "DEFAULT_SAMPLES",
    "DEFAULT_SEED",
    "SAMPLING_STRATEGIES",
    "STRATEGIES",
    "Strategy",
    "applicable",
    "build",
    "geometric_mean",
    "mc_dropout",
    "weight_scaling",
]

DEFAULT_SAMPLES = 64
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Strategy:
    """A network and a way to use it: a function from images to a :class:`PredictiveDistribution`.

    ``samples`` is the number of sub-networks asked, 1 if none is sampled. ``logits`` takes inputs ``[B, ...]`` to the
    logits ``[T, B, C]`` of the members of the predictive distribution. T = 1 for ``geometric_mean``: it pools its
    sub-networks into one distribution, of which their disagreement is no part.

    Safe to call from several threads at once.
    """

    name: str
    samples: int
    logits: Callable[[Tensor], Tensor]

    def __call__(self, inputs: Tensor, temperature: float = 1.0) -> PredictiveDistribution:
        """The predictive distribution for ``inputs`` ``[B, ...]``, at a temperature if it was calibrated."""
        return PredictiveDistribution.from_logits(self.logits(inputs), temperature)


def build(
    name: str,
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = DEFAULT_SEED,
) -> Strategy:
    """The strategy ``name`` for ``network``, whose inputs have ``input_shape`` without the batch axis.

    ``network`` must be in eval mode and is not modified. ``samples`` sub-networks are drawn from ``seed``, where the
    strategy samples. Raises ``ValueError`` for an unknown name or a network in train mode, and the sampling
    strategies :class:`~calibration.subnetworks.NoActiveDropoutError` for a network without dropout.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known are {', '.join(STRATEGIES)}")
    if network.training:
        raise ValueError("the network is in train mode; call network.eval() first")
    if name == "weight_scaling":
        return weight_scaling(network)
    return SAMPLING_STRATEGIES[name](SubnetworkEnsemble(network, input_shape, samples=samples, seed=seed))


def applicable(network: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the strategies that ``network`` allows: without active dropout, weight scaling alone."""
    return STRATEGIES if dropout_layers(network, input_shape) else ("weight_scaling",)


def weight_scaling(network: nn.Module) -> Strategy:
    """Dropout off: ``network``, in eval mode, as it is."""

    @torch.inference_mode()
    def logits(inputs: Tensor) -> Tensor:
        return torch.cat([network(chunk) for chunk in torch.split(inputs, 4096)]).unsqueeze(0)

    return Strategy("weight_scaling", 1, logits)


def mc_dropout(ensemble: SubnetworkEnsemble) -> Strategy:
    """The sub-networks' probabilities, whose arithmetic mean is the prediction."""
    return Strategy("mc_dropout", ensemble.samples, ensemble.logits)


def geometric_mean(ensemble: SubnetworkEnsemble) -> Strategy:
    """The normalised geometric mean of the sub-networks' probabilities."""
    # Log-probabilities differ from logits by a constant per image and member, which the softmax ignores.
    return Strategy("geometric_mean", ensemble.samples, lambda inputs: ensemble.logits(inputs).mean(0, keepdim=True))


SAMPLING_STRATEGIES: Mapping[str, Callable[[SubnetworkEnsemble], Strategy]] = {
    "mc_dropout": mc_dropout,
    "geometric_mean": geometric_mean,
}
STRATEGIES = ("weight_scaling", *SAMPLING_STRATEGIES)
