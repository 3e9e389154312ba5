"""Other libraries' ways to MC dropout, as functions from images to T predictions each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import noise
from training import torchvision_compat  # noqa: F401  (one of the libraries imports torchvision)

__all__ = ["PEERS", "peers"]

PEERS = (
    "loop",
    "torch-uncertainty",
    "torch-uncertainty, loop",
    "Baal",
    "Baal, loop",
    "pytorch-ood",
)


def peers(network: nn.Module, samples: int) -> dict[str, Callable[[Tensor], object]]:
    """Each of :data:`PEERS` for a copy of ``network``, with torch's own dropout layers, as their users have them.

    ``loop`` is ``samples`` passes in train mode, as most code is written. The others are the libraries' own modules in
    both of their modes, where they have two: every image repeated in one batch, or a loop of passes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from baal.bayesian.dropout import MCDropoutModule  # noqa: PLC0415
        from baal.modelwrapper import ModelWrapper, TrainingArgs  # noqa: PLC0415
        from pytorch_ood.detector import MCD  # noqa: PLC0415
        from torch_uncertainty.methods import mc_dropout  # noqa: PLC0415

        def own() -> nn.Module:
            return _with_torchs_dropout(network)

        sampled, detected = own().train(), own().eval()
        batched, looped = (mc_dropout(own(), samples, on_batch=on_batch).eval() for on_batch in (True, False))
        replicated, repeated = (
            ModelWrapper(MCDropoutModule(own().eval()), TrainingArgs(use_cuda=False, replicate_in_memory=in_memory))
            for in_memory in (True, False)
        )
    functions: dict[str, Callable[[Tensor], object]] = {
        "loop": lambda images: torch.stack([sampled(images) for _ in range(samples)]),
        "torch-uncertainty": batched,
        "torch-uncertainty, loop": looped,
        "Baal": lambda images: replicated.predict_on_batch(images, samples),
        "Baal, loop": lambda images: repeated.predict_on_batch(images, samples),
        "pytorch-ood": lambda images: MCD.run(detected, images, samples),
    }
    return {name: functions[name] for name in PEERS}


def _with_torchs_dropout(network: nn.Module) -> nn.Module:
    own = copy.deepcopy(network)
    for name, module in list(own.named_modules()):
        if isinstance(module, noise.Dropout):
            own.set_submodule(name, nn.Dropout(module.p))
    return own
