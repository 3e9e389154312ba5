"""What the service is measured against: the usual BentoML service, with the usual loop and default settings."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import torch

from models import bundle

SAMPLES = 64


@bentoml.service(workers=int(os.environ.get("PLAIN_WORKERS", "1")))
class PlainService:
    """MC dropout as tutorials have it."""

    def __init__(self) -> None:
        self.bundle = bundle.load("mlp")
        self.network = self.bundle.network.train()

    @bentoml.api
    def predict(self, instances: np.ndarray) -> dict[str, Any]:
        """Labels, probabilities and entropies of images ``[N, 784]``."""
        inputs = self.bundle.prepare(torch.from_numpy(instances).reshape(-1, 28, 28))
        with torch.no_grad():
            members = torch.stack([self.network(inputs).softmax(-1) for _ in range(SAMPLES)])
        mean = members.mean(0)
        total = torch.special.entr(mean).sum(-1)
        aleatoric = torch.special.entr(members).sum(-1).mean(0)
        return {
            "labels": [self.bundle.card.classes[index] for index in mean.argmax(-1).tolist()],
            "probabilities": mean.tolist(),
            "total": total.tolist(),
            "aleatoric": aleatoric.tolist(),
            "epistemic": (total - aleatoric).tolist(),
        }
