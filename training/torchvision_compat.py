"""Import torchvision's datasets whichever build of torch is installed.

torchvision's wheel on PyPI is compiled against CUDA. Beside a CPU-only torch its compiled operators can't be loaded,
and ``import torchvision`` fails with "operator torchvision::nms does not exist", because it attaches shape functions
to operators that nobody has defined. Declaring their schemas first mends that; nothing here ever calls them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["MNIST", "FashionMNIST", "transforms"]


def _declare_missing_operators() -> torch.library.Library | None:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return None
    try:
        torch.ops.load_library(next(Path(package.origin).parent.glob("_C*")))
    except (StopIteration, OSError):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


# Kept alive: the declarations go when the library object does.
_library = _declare_missing_operators()

from torchvision import transforms  # noqa: E402
from torchvision.datasets import MNIST, FashionMNIST  # noqa: E402
