"""Fits the density of the training images' features, by which :mod:`calibration.novelty` tells what is unlike them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf

from calibration.novelty import feature_network, features_of, relative_distance
from calibration.sites import UnsupportedNetworkError
from models.bundle import Bundle, FeatureDensity
from training.data import LabelledImages

__all__ = ["fit_density"]


def fit_density(bundle: Bundle, train: LabelledImages, calibration: LabelledImages) -> FeatureDensity:
    """The density of the features of ``train``, and the distances of the ``calibration`` images from it.

    The covariance is shrunk towards a multiple of the identity (Ledoit & Wolf 2004). Raises
    :class:`~calibration.sites.UnsupportedNetworkError` for a network without features, for features that are the same
    of all images of a class, and for images of one class alone.
    """
    network = feature_network(bundle.network, bundle.card.input.shape)
    features = features_of(network, bundle.prepare(train.pixels)).numpy()
    classes, index = np.unique(train.labels.numpy(), return_inverse=True)
    means = np.stack([features[index == place].mean(0) for place in range(len(classes))])
    centre = features.mean(0)
    within = LedoitWolf(assume_centered=True).fit(features - means[index]).covariance_
    if not np.trace(within) > 0:
        raise UnsupportedNetworkError("the features are the same of all images of a class, and have no density")
    if len(classes) < 2:
        raise UnsupportedNetworkError("the images are of one class, from which no direction leads to another")
    apart = means - centre
    between = (apart.T * np.bincount(index)) @ apart / len(index)
    size = len(within)
    directions = min(len(classes) - 1, size)
    variances, vectors = eigh(between, within, subset_by_index=[size - directions, size - 1])
    density = FeatureDensity(
        centre=torch.from_numpy(centre),
        directions=torch.from_numpy(np.ascontiguousarray(vectors)),
        means=torch.from_numpy(apart @ vectors),
        background=torch.from_numpy(1 + variances.clip(min=0)),
        calibration=torch.zeros(0, dtype=torch.float64),
    )
    distances = relative_distance(features_of(network, bundle.prepare(calibration.pixels)), density)
    return replace(density, calibration=distances.sort().values)
