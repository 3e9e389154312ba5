"""How unlike the training images an image is, by the density of the network's features.

The features are what the last linear layer is given. In them each class is taken to be normal, all with one covariance,
and so is the background, all classes together. The novelty of an image is its relative Mahalanobis distance (Ren et
al. 2021): the squared distance to the nearest class less that to the background. Where the background's covariance is
the classes' and that of their means, the two agree in every direction in which the means don't differ, so that the
discriminant directions of Fisher alone are needed: one less than there are classes. :mod:`calibration.density` finds
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.sites import UnsupportedNetworkError, probe_images, structural_copy
from models.bundle import Bundle, FeatureDensity

__all__ = ["Novelty", "NoveltyDetector", "feature_network", "features_of", "relative_distance"]

IMAGES_AT_ONCE = 64
PROBES = 3


@dataclass(frozen=True)
class Novelty:
    """Of B images. ``distance`` is relative and has no unit; ``p_value`` the fraction of images like the calibration's
    that are at least as far. Both float64 ``[B]``.

    Of images like those of the calibration, at most a fraction a has a p-value of at most a: it is conformal (Bates et
    al. 2023).
    """

    distance: Tensor
    p_value: Tensor


class NoveltyDetector:
    """The :class:`Novelty` of images by a bundle's stored density. Safe to call from several threads at once."""

    def __init__(self, network: nn.Module, input_shape: Sequence[int], density: FeatureDensity) -> None:
        self._features, self._density = feature_network(network, input_shape), density

    @classmethod
    def of(cls, bundle: Bundle) -> NoveltyDetector | None:
        """The bundle's; ``None`` if it has no density."""
        if bundle.scores is None or bundle.scores.density is None:
            return None
        return cls(bundle.network, bundle.card.input.shape, bundle.scores.density)

    def __call__(self, inputs: Tensor) -> Novelty:
        """Of ``inputs`` ``[B, ...]``, prepared as the network's."""
        distance = relative_distance(features_of(self._features, inputs), self._density)
        stored = self._density.calibration
        further = len(stored) - torch.searchsorted(stored, distance)
        return Novelty(distance, (1 + further).double() / (1 + len(stored)))


def feature_network(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """A copy of ``network`` without its last linear layer, which shares its tensors: inputs to features ``[B, D]``.

    Raises :class:`~calibration.sites.UnsupportedNetworkError` if what a network returns isn't what a linear layer gave.
    """
    probe = structural_copy(network)
    images = probe_images(network, input_shape, PROBES)
    given: list[tuple[str, object]] = []
    for name, module in probe.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, output, name=name: given.append((name, output)))
    with torch.inference_mode():
        logits = probe(images)
    if not given or given[-1][1] is not logits or sum(name == given[-1][0] for name, _ in given) > 1:
        raise UnsupportedNetworkError(
            f"{type(network).__name__} does not end with a linear layer (torch.nn.Linear) of its own that gives the "
            "logits, so that there are no features to fit a density to"
        )
    last = given[-1][0]
    found = structural_copy(network)
    if not last:
        return nn.Flatten()
    found.set_submodule(last, nn.Identity())
    return found


def relative_distance(features: Tensor, density: FeatureDensity) -> Tensor:
    """Of ``features`` ``[B, D]``: ``[B]``."""
    seen = (features - density.centre) @ density.directions
    nearest = (seen.unsqueeze(1) - density.means).square().sum(2).amin(1)
    return nearest - (seen.square() / density.background).sum(1)


@torch.inference_mode()
def features_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a :func:`feature_network` makes of ``inputs`` ``[B, ...]``; float64, for what is computed from it."""
    return torch.cat([network(chunk).double() for chunk in inputs.split(IMAGES_AT_ONCE)])
