from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from calibration.cost import multiplications
from models import networks


@pytest.mark.parametrize(("name", "arguments"), [
    ("RandomDropoutModel", {}),
    ("CNN", {"channels": [4, 8], "convolutions": 2, "batch_norm": True}),
    ("WideMLP", {"hidden_widths": [32, 16]}),
])  # fmt: skip
def test_multiplications_are_half_of_torchs_operations(name: str, arguments: dict[str, object]) -> None:
    network = networks.build(name, arguments, seed=0).eval()
    with FlopCounterMode(display=False) as counted:
        network(torch.randn(1, 28, 28))
    assert multiplications(network, (28, 28)) == counted.get_total_flops() / 2
