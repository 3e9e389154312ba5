"""Networks as users have them, in a module of its own that the commands import: ``tests.own_networks:factory``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import torchvision_compat  # noqa: F401  (makes torchvision importable beside a CPU build of torch)


def digits(hidden: int = 32, rate: float = 0.3) -> nn.Module:
    """For scikit-learn's digits, 8x8."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(rate), nn.Linear(hidden, 10)
    )  # fmt: skip


def mobile_net(classes: int = 5) -> nn.Module:
    """One of torchvision's, with dropout in its head."""
    from torchvision.models import mobilenet_v3_small

    found: nn.Module = mobilenet_v3_small(num_classes=classes)
    return found


class TransformerClassifier(nn.Module):
    """A transformer encoder over the rows of 12x16 images; ``attention_rate`` is dropout inside torch's attention."""

    def __init__(self, rate: float = 0.2, attention_rate: float = 0.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, rate, batch_first=True)
        layer.self_attn.dropout = attention_rate
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images).mean(1))
        return logits


def without_dropout() -> nn.Module:
    return digits(rate=0.0)


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = torch.nn.functional.dropout(images.flatten(1), 0.5, self.training)
        logits: Tensor = self.last(flat)
        return logits


def no_network() -> str:
    return "a network"


def broken() -> nn.Module:
    raise RuntimeError("it has no time")


class InPlace(nn.Module):
    """Changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = digits()

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        logits: Tensor = self.rest(images)
        return logits


def softmaxed(logarithm: bool = False) -> nn.Module:
    """Gives probabilities, or their logarithms."""
    return nn.Sequential(digits(), nn.LogSoftmax(1) if logarithm else nn.Softmax(1))


def double() -> nn.Module:
    return digits().double()


def one_logit() -> nn.Module:
    return nn.Sequential(digits(), nn.Linear(10, 1))
