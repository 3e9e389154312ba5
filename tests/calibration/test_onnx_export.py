"""Exported models, run by onnxruntime and by ONNX's own reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from calibration import onnx_export, strategies
from calibration.onnx_export import OUTPUTS, ExportError, export
from calibration.subnetworks import NoActiveDropoutError, SubnetworkEnsemble
from models import networks
from models.bundle import Bundle
from models.records import Scaling
from tests.command_line import run
from tests.conftest import write_bundle
from training.data import FashionMNISTSplits


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def with_network(shipped: Bundle, name: str, **arguments: object) -> Bundle:
    return replace(shipped, network=networks.build(name, arguments, seed=0).eval())


def test_the_shipped_model_answers_as_the_strategies_do(
    shipped: Bundle, fashion: FashionMNISTSplits, tmp_path: Path
) -> None:
    """With the calibration's sub-networks and temperature, on real images, in batches of any size."""
    for name in onnx_export.EXPORTED:
        path = tmp_path / f"{name}.onnx"
        assert export(shipped, path, strategy=name) < 1e-4
        strategy = strategies.build(name, shipped.network, (28, 28))
        for count in (1, 3, 64):
            pixels = fashion.test.pixels[:count]
            found = session(path).run(None, {"pixels": pixels.float().numpy()})
            expected = strategy(shipped.prepare(pixels), shipped.scaling(name))
            parts = [expected.mean, expected.predictive_entropy, expected.expected_entropy, expected.mutual_information]
            wanted = parts if name == "mc_dropout" else parts[:2]
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert one.shape == other.shape
                assert np.abs(one - other.numpy()).max() < 1e-4


@pytest.mark.parametrize(("name", "arguments"), [
    ("CNN", {"channels": [4, 8], "batch_norm": True, "trunk_dropout": [0.0, 0.2]}),
    ("WideMLP", {"hidden_widths": [16, 8], "dropout_kind": "dropconnect"}),
    ("WideMLP", {"hidden_widths": [16, 8], "dropout_kind": "gaussian"}),
    ("WideMLP", {"hidden_widths": [16, 8], "dropout_kind": "alpha", "activation": "selu"}),
    ("RowRecurrent", {}),
    ("VisionTransformer", {}),
], ids=["channels", "dropconnect", "gaussian", "alpha", "recurrent", "transformer"])  # fmt: skip
def test_every_family_is_exported(shipped: Bundle, tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    mine = with_network(shipped, name, **arguments)
    path = tmp_path / "model.onnx"
    assert export(mine, path, samples=4) < 1e-4
    pixels = torch.randint(256, (6, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    found = session(path).run(["probabilities"], {"pixels": pixels.numpy()})[0]
    built = strategies.build("mc_dropout", mine.network, (28, 28), samples=4)
    expected = built(mine.prepare(pixels), mine.scaling("mc_dropout"))
    assert np.abs(found - expected.mean.numpy()).max() < 1e-4


def test_masks_as_inputs_make_other_sub_networks(shipped: Bundle, tmp_path: Path) -> None:
    """Those of another seed, by masks that are given, at the bundle's temperature; and the metadata say where."""
    path = tmp_path / "model.onnx"
    export(shipped, path, samples=8, masks="inputs")
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    other = SubnetworkEnsemble(shipped.network, (28, 28), samples=8, seed=7)
    given = {
        f"mask_{index}": layer.affine(other.bank.rows[site], torch.zeros(()))[0].numpy()
        for index, (site, layer) in enumerate(other.bank.layers.items())
    }
    rates = [f"{site}, rate {layer.rate:g}" for site, layer in other.bank.layers.items()]
    assert [metadata[name] for name in given] == rates
    pixels = torch.randint(256, (5, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    found = session(path).run(None, {"pixels": pixels.numpy(), **given})
    expected = strategies.mc_dropout(other)(shipped.prepare(pixels), shipped.scaling("mc_dropout"))
    assert np.abs(found[0] - expected.mean.numpy()).max() < 1e-4
    assert np.abs(found[3] - expected.mutual_information.numpy()).max() < 1e-4


def test_the_reference_evaluator_agrees_and_no_dropout_is_left(shipped: Bundle, tmp_path: Path) -> None:
    """Standard operators alone: ONNX's own Dropout would do nothing."""
    path = tmp_path / "model.onnx"
    export(shipped, path, samples=4)
    model = onnx.load(path)
    assert "Dropout" not in {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [output.name for output in model.graph.output] == list(OUTPUTS)
    metadata = {each.key: each.value for each in model.metadata_props}
    assert metadata["classes"].splitlines() == list(shipped.card.classes)
    assert (metadata["version"], metadata["samples"]) == (shipped.version, "4")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28)).astype(np.float32)
    references = ReferenceEvaluator(model).run(None, {"pixels": pixels})
    for one, other in zip(references, session(path).run(None, {"pixels": pixels}), strict=True):
        assert np.abs(one - other).max() < 1e-4


def test_calibration_before_pooling_is_exported_too(shipped: Bundle, tmp_path: Path) -> None:
    assert shipped.calibration is not None
    record = shipped.calibration.strategies["mc_dropout"].model_copy(
        update={"scaling": Scaling(temperature=2.5, order="calibrate_then_pool")}
    )
    calibration = shipped.calibration.model_copy(update={"strategies": {"mc_dropout": record}})
    assert export(replace(shipped, calibration=calibration), tmp_path / "model.onnx", samples=4) < 1e-4


def test_a_model_that_answers_otherwise_is_not_written(
    shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_text("an earlier one")
    monkeypatch.setattr(onnx_export, "normalise", lambda pixels, _: pixels / 255)
    with pytest.raises(ExportError, match="outputs differ by"):
        export(shipped, tmp_path / "model.onnx", samples=4)
    assert (tmp_path / "model.onnx").read_text() == "an earlier one"


class Looking(nn.Module):
    """What it computes depends on its input's values, which no graph can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = self.drop(images.flatten(1))
        found: Tensor = self.last(flat if float(images.sum()) > 1e9 else flat.tanh())
        return found


def test_what_cannot_be_exported_is_told_in_one_line(shipped: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="torch can't export this network to ONNX") as caught:
        export(replace(shipped, network=Looking().eval()), tmp_path / "model.onnx", samples=4)
    assert "\n" not in str(caught.value)
    with pytest.raises(NoActiveDropoutError):
        export(with_network(shipped, "ReLUNet"), tmp_path / "model.onnx", samples=4)
    alpha = with_network(shipped, "WideMLP", hidden_widths=[8, 8], dropout_kind="alpha", activation="selu")
    with pytest.raises(ExportError, match="alpha dropout also adds"):
        export(alpha, tmp_path / "model.onnx", samples=4, masks="inputs")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    done = run("calibration", "export", "mlp", "--samples", "4", "--out", str(tmp_path / "model.onnx"))
    assert done.returncode == 0, done.stderr
    assert "its outputs differ by at most" in done.stdout
    assert session(tmp_path / "model.onnx").get_inputs()[0].shape[1:] == [28, 28]
    wrong = run("calibration", "export", "mlp", "--out", str(tmp_path / "model.pt"))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "should end in .onnx" in wrong.stderr
    write_bundle(tmp_path / "plain", "ReLUNet")
    plain = run("calibration", "export", str(tmp_path / "plain"), "--out", str(tmp_path / "plain.onnx"))
    assert plain.returncode == 1
    assert "no active dropout" in plain.stderr
    assert "Traceback" not in plain.stderr
