"""Moment propagation: the mean and covariance of the logits under dropout, carried through the layers in closed form.

After Wang & Manning (2013) and, for the layers' variances, Frey & Hinton (1999) and Postels et al. (2019). What is
exact: dropout on independent inputs, and linear maps. What is approximate: a layer's sums are taken as normal; the
covariance of two rectified units is that of the units times the probabilities that each is positive (the first term
of its expansion in their correlation); in convolutions and pooling, variances alone are carried, as if pixels were
independent, and a maximum has the moments of the pixel with the largest mean.

The expectation over the softmax has no closed form. The logits are taken as normal, and represented by
``QUADRATURE_POINTS`` fixed points of equal weight, from a Sobol sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor, nn

from calibration.sites import UnsupportedNetworkError, active_layers, dropout_modules, structural_copy
from calibration.tracing import cut, is_path
from models.noise import GaussianDropout

__all__ = ["LogitMoments", "propagate_moments"]

QUADRATURE_POINTS = 256
IMAGES_AT_ONCE = 32
"""Images whose covariances are held at a time."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class LogitMoments:
    """Mean ``[B, C]`` and covariance ``[B, C, C]`` of the logits."""

    mean: Tensor
    covariance: Tensor

    def points(self) -> Tensor:
        """``[QUADRATURE_POINTS, B, C]``: equally weighted logits that represent the normal distribution with these
        moments."""
        classes = self.mean.shape[1]
        spread = self.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(self.mean.dtype).tiny)
        jitter = 1e-5 * spread[:, None, None] * torch.eye(classes).to(self.mean)
        root, failed = torch.linalg.cholesky_ex(self.covariance + jitter)
        if failed.any():
            # Rounding may have left a covariance of low rank with eigenvalues below 0.
            values, vectors = torch.linalg.eigh(self.covariance[failed > 0])
            root[failed > 0] = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
        return self.mean + torch.einsum("bij,sj->sbi", root, _normal_points(classes).to(self.mean))


def propagate_moments(
    network: nn.Module, input_shape: Sequence[int], *, rate: float | None = None
) -> Callable[[Tensor], LogitMoments]:
    """A function from inputs ``[B, *input_shape]`` to the moments of the logits over all sub-networks of ``network``.

    ``rate``, if given, replaces the rate of every active dropout layer.

    Raises :class:`~calibration.sites.NoActiveDropoutError` for a network without active dropout, and
    :class:`~calibration.sites.UnsupportedNetworkError`, with the module, unless what follows the first dropout layer
    is a single path of dropout (all but alpha dropout), linear layers, convolutions, batch norm, ReLU, average and max
    pooling, and flattening.
    """
    layers = active_layers(network, input_shape).layers
    copy = structural_copy(network)
    for _, dropout, _ in dropout_modules(copy):
        dropout.p = rate if rate is not None and dropout.p > 0 else dropout.p
    here = cut(copy, layers)
    if here is None or not is_path(here):
        raise UnsupportedNetworkError(
            f"moments can't be carried through {type(network).__name__}: what follows its first dropout layer is not a "
            "single path of modules"
        )
    trunk, modules = here.trunk(), dict(here.network.named_modules())
    path = [(str(node.target), modules[str(node.target)]) for node in here.nodes[:-1]]
    flat = len(next(iter(layers.values())).shape) == 1
    for name, module in path:
        flat = flat or isinstance(module, nn.Flatten)
        if not isinstance(module, SUPPORTED) or (isinstance(module, nn.Linear) and not flat) or _is_special(module):
            raise UnsupportedNetworkError(f"moments can't be carried through {name!r} ({type(module).__name__})")
    if not any(isinstance(module, nn.Linear) for _, module in path):
        raise UnsupportedNetworkError("moments need a linear layer after the first dropout layer")

    @torch.inference_mode()
    def carry(inputs: Tensor) -> LogitMoments:
        means, covariances = [], []
        for part in torch.split(inputs, IMAGES_AT_ONCE):
            (mean,) = trunk(part)
            moments = _Moments(mean, torch.zeros_like(mean), None)
            for _, module in path:
                moments = _carry(module, moments)
            assert moments.covariance is not None  # noqa: S101
            means.append(moments.mean)
            covariances.append(moments.covariance)
        return LogitMoments(torch.cat(means), torch.cat(covariances))

    return carry


def _is_special(module: nn.Module) -> bool:
    """Whether ``module`` has an option that the rules below don't know."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) != (1, -1)
    if isinstance(module, nn.Conv2d):
        return module.padding_mode != "zeros"
    return isinstance(module, nn.AvgPool2d) and (not module.count_include_pad or module.divisor_override is not None)


@dataclass(frozen=True)
class _Moments:
    """``mean`` and ``variance`` of each value; past the first linear layer their ``covariance`` ``[B, n, n]`` too."""

    mean: Tensor
    variance: Tensor
    covariance: Tensor | None

    def with_variance(self, mean: Tensor, variance: Tensor, factor: Tensor | None = None) -> _Moments:
        """Other variances, and covariances between different values times ``factor_i factor_j``."""
        if self.covariance is None:
            return _Moments(mean, variance, None)
        covariance = self.covariance
        if factor is not None:
            covariance = covariance * factor.unsqueeze(2) * factor.unsqueeze(1)
        covariance = covariance - torch.diag_embed(covariance.diagonal(dim1=1, dim2=2) - variance)
        return _Moments(mean, variance, covariance)


def _carry(module: nn.Module, now: _Moments) -> _Moments:
    return next(rule for kind, rule in RULES.items() if isinstance(module, kind))(module, now)


def _dropout(module: nn.Dropout, now: _Moments) -> _Moments:
    return now.with_variance(now.mean, now.variance + (now.mean**2 + now.variance) * module.p / (1 - module.p))


def _linear(module: nn.Linear, now: _Moments) -> _Moments:
    weight = module.weight
    inner = now.variance.unsqueeze(1) * weight if now.covariance is None else weight @ now.covariance
    covariance = inner @ weight.t()
    return _Moments(F.linear(now.mean, weight, module.bias), covariance.diagonal(dim1=1, dim2=2), covariance)


def _convolution(module: nn.Conv2d, now: _Moments) -> _Moments:
    variance = F.conv2d(
        now.variance, module.weight**2, None, module.stride, module.padding, module.dilation, module.groups
    )
    return _Moments(module(now.mean), variance, None)


def _batch_norm(module: nn.BatchNorm2d, now: _Moments) -> _Moments:
    factor = torch.ones_like(now.mean) * (module(torch.ones_like(now.mean)) - module(torch.zeros_like(now.mean)))
    return now.with_variance(module(now.mean), now.variance * factor**2, factor)


def _relu(_: nn.ReLU, now: _Moments) -> _Moments:
    deviation = now.variance.clamp_min(torch.finfo(now.mean.dtype).tiny).sqrt()
    ratio = now.mean / deviation
    positive = torch.special.ndtr(ratio)
    density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    mean = now.mean * positive + deviation * density
    square = (now.mean**2 + now.variance) * positive + now.mean * deviation * density
    return now.with_variance(mean, (square - mean**2).clamp_min(0), positive)


def _average(module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, now: _Moments) -> _Moments:
    mean = module(now.mean)
    pixels = now.mean[0, 0].numel() / mean[0, 0].numel()
    if isinstance(module, nn.AvgPool2d):
        size = module.kernel_size
        pixels = size * size if isinstance(size, int) else math.prod(size)
    return _Moments(mean, module(now.variance) / pixels, None)


def _maximum(module: nn.MaxPool2d, now: _Moments) -> _Moments:
    mean, where = F.max_pool2d(
        now.mean, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, True
    )
    return _Moments(mean, now.variance.flatten(2).gather(2, where.flatten(2)).view_as(mean), None)


def _flatten(module: nn.Flatten, now: _Moments) -> _Moments:
    return _Moments(module(now.mean), module(now.variance), now.covariance)


RULES: dict[tuple[type[nn.Module], ...], Callable[..., _Moments]] = {
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, GaussianDropout): _dropout,
    (nn.Linear,): _linear,
    (nn.Conv2d,): _convolution,
    BATCH_NORMS: _batch_norm,
    (nn.ReLU,): _relu,
    (nn.AvgPool2d, nn.AdaptiveAvgPool2d): _average,
    (nn.MaxPool2d,): _maximum,
    (nn.Flatten,): _flatten,
    (nn.Identity,): lambda _, now: now,
}
SUPPORTED = tuple(kind for kinds in RULES for kind in kinds)


@cache
def _normal_points(dimensions: int) -> Tensor:
    # Here, for it takes half a second, that a server's start need not wait for.
    from scipy.stats import qmc  # noqa: PLC0415

    uniform = qmc.Sobol(dimensions, rng=0).random(QUADRATURE_POINTS)
    return torch.from_numpy(ndtri(uniform.clip(1e-9, 1 - 1e-9)))
