from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from calibration.calibrators import calibrate
from calibration.density import fit_density
from calibration.novelty import NoveltyDetector, feature_network, relative_distance
from calibration.ranking import auroc
from calibration.sites import UnsupportedNetworkError
from models import bundle, networks
from models.bundle import Bundle, FeatureDensity
from training.data import FashionMNISTSplits, LabelledImages


def reference(features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ren et al. (2021), with whole covariances."""
    means = {label: features[labels == label].mean(0) for label in np.unique(labels)}
    centred = features - np.stack([means[label] for label in labels])
    within = LedoitWolf(assume_centered=True).fit(centred).covariance_
    apart = np.stack([means[label] for label in labels]) - features.mean(0)
    background = within + apart.T @ apart / len(labels)

    def squared(centre: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        away = asked - centre
        found: np.ndarray = (away @ np.linalg.inv(covariance) * away).sum(1)
        return found

    nearest = np.min([squared(mean, within) for mean in means.values()], axis=0)
    distance: np.ndarray = nearest - squared(features.mean(0), background)
    return distance


def as_bundle(shipped: Bundle, network: nn.Module) -> Bundle:
    return Bundle(shipped.path, network.eval(), shipped.card)


@pytest.mark.parametrize(("name", "arguments"), [
    ("CNN", {"batch_norm": True}), ("WideMLP", {"hidden_widths": [40], "dropout": [0.2, 0.5]}), ("RowRecurrent", {}),
    ("VisionTransformer", {}), ("ReLUNet", {}),
])  # fmt: skip
def test_the_distance_is_the_relative_mahalanobis_distance(
    shipped: Bundle, fashion: FashionMNISTSplits, name: str, arguments: dict[str, object]
) -> None:
    mine = as_bundle(shipped, networks.build(name, arguments, seed=0))
    train, rest = fashion.train[slice(0, 400)], fashion.calibration[slice(0, 60)]
    density = fit_density(mine, train, rest)
    layer = [module for module in mine.network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    with torch.inference_mode(), layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        mine.network(mine.prepare(train.pixels))
        mine.network(mine.prepare(rest.pixels))
    features, asked = (part.double().numpy() for part in seen)
    expected = reference(features, train.labels.numpy(), asked)
    assert relative_distance(torch.from_numpy(asked), density).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert density.calibration.numpy() == pytest.approx(np.sort(expected), rel=1e-5, abs=1e-5)
    assert density.directions.shape == (features.shape[1], 9)


@given(
    calibration=st.lists(st.floats(-50, 50), min_size=1, max_size=40), distance=st.floats(-60, 60)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_p_value_counts_the_calibration_images_that_are_as_far(calibration: list[float], distance: float) -> None:
    linear = nn.Linear(1, 2)
    # One feature, one class mean at 0 and a background that is nearly flat: the distance is the feature's square.
    stored = torch.tensor(sorted(calibration), dtype=torch.float64)
    density = FeatureDensity(
        torch.zeros(1).double(), torch.ones(1, 1).double(), torch.zeros(1, 1).double(),
        torch.full((1,), float("inf")).double(), stored,
    )  # fmt: skip
    found = NoveltyDetector(linear, (1,), density)(torch.tensor([[distance]]))
    square = float(torch.tensor([distance]).double().square())
    assert float(found.distance) == square
    assert float(found.p_value) == (1 + sum(value >= square for value in stored.tolist())) / (1 + len(calibration))


def test_p_values_of_images_like_those_of_the_calibration_are_uniform(
    shipped: Bundle, fashion: FashionMNISTSplits
) -> None:
    mine = as_bundle(shipped, shipped.network)
    scored = bundle.CalibrationScores(torch.zeros(0), {}, fit_density(mine, fashion.train, fashion.calibration))
    detector = NoveltyDetector.of(Bundle(mine.path, mine.network, mine.card, None, scored))
    assert detector is not None
    values = detector(mine.prepare(fashion.test.pixels)).p_value
    for level in (0.05, 0.2, 0.5, 0.8):
        spread = (level * (1 - level) * (1 / 10_000 + 1 / 5_000)) ** 0.5
        assert abs(float((values <= level).double().mean()) - level) < 3.5 * spread


def test_noise_and_other_things_are_further_than_clothes(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    mine = as_bundle(shipped, shipped.network)
    density = fit_density(mine, fashion.train[slice(0, 10_000)], fashion.calibration)
    detector = NoveltyDetector(mine.network, (28, 28), density)
    clothes = detector(mine.prepare(fashion.test.pixels[:1000])).distance
    turned = detector(mine.prepare(fashion.test.pixels[:1000].rot90(1, (1, 2)))).distance
    assert float(auroc(clothes, turned)) > 0.7


def test_an_image_gets_the_same_novelty_alone_and_among_others(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    density = fit_density(shipped, fashion.train[slice(0, 2000)], fashion.calibration[slice(0, 100)])
    detector = NoveltyDetector(shipped.network, (28, 28), density)
    inputs = shipped.prepare(fashion.test.pixels[:64])
    together = detector(inputs)
    alone = torch.cat([detector(inputs[index : index + 1]).distance for index in range(64)])
    assert (together.distance - alone).abs().max() < 1e-3 * together.distance.abs().max()


def test_the_features_times_the_last_layer_are_the_logits() -> None:
    network = networks.build("CNN", {}, seed=0).eval()
    images = torch.randn(4, 28, 28)
    features = feature_network(network, (28, 28))(images)
    assert torch.equal(network.head[-1](features), network(images))  # type: ignore[index,operator]


class ConvolutionalHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(784, 16), nn.Conv1d(1, 10, 16)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.hidden(images.flatten(1)).unsqueeze(1)).squeeze(2)
        return found


def test_a_network_without_a_last_linear_layer_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="does not end with a linear layer"):
        feature_network(ConvolutionalHead().eval(), (28, 28))


def test_features_that_say_nothing_are_refused(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    network = networks.build("ReLUNet", {}, seed=0)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    some: LabelledImages = fashion.train[slice(0, 50)]
    with pytest.raises(UnsupportedNetworkError, match="same of all images"):
        fit_density(as_bundle(shipped, network), some, some)
    collapsed, scores = calibrate(as_bundle(shipped, network), some, train=some)
    assert "weight_scaling" in collapsed.strategies, "its calibration does without"
    assert scores.density is None


def test_images_of_one_class_are_refused(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    trousers = fashion.train[fashion.train.labels == 1][slice(0, 50)]
    with pytest.raises(UnsupportedNetworkError, match="of one class"):
        fit_density(shipped, trousers, trousers)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 784)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layer(self.layer(images.flatten(1)).relu())
        return found


def test_a_last_layer_that_is_used_before_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="of its own"):
        feature_network(Twice().eval(), (28, 28))
