"""Networks that were trained elsewhere: from their weights to a calibrated bundle, as users go."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from calibration import importing, predict
from calibration.copies import MaskedCopies
from calibration.importing import ImportFailedError, import_network
from calibration.novelty import NoveltyDetector
from calibration.sites import NoActiveDropoutError, UnsupportedNetworkError
from models import bundle
from models.bundle import BundleError
from models.networks import own
from models.records import InputRecord
from tests import own_networks
from tests.calibration.own_bundles import CLASSES, DIGITS, INPUTS, imported, saved
from tests.command_line import ROOT, refused, run
from training import own_images

pytestmark = pytest.mark.usefixtures("nothing_trusted")


def test_the_way_that_the_documentation_goes(tmp_path: Path) -> None:
    """The blocks of docs/own-model.md, run as they stand in a folder of one's own."""
    text = (ROOT / "docs" / "own-model.md").read_text()
    network, training = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mynet.py").write_text(network)
    (tmp_path / "train.py").write_text(training)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    for command in ("python train.py", *commands.strip().splitlines()):
        program, *arguments = shlex.split(command)
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if "import" in arguments:
            assert "Dropout: 3 (bernoulli, rate 0.3)." in done.stdout
    with (tmp_path / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 397
    assert np.mean([row["label"] == row["true_label"] for row in rows]) > 0.95
    assert all(0 < float(row["novelty.p_value"]) <= 1 for row in rows)
    assert (tmp_path / "digits.onnx").stat().st_size > 10_000
    untrusted = refused("models", tmp_path / "digits", code=1)
    assert untrusted.endswith("name it with --network mynet:build, or in the environment: DROPOUT_NETWORKS=mynet:build")


def test_the_bundle_predicts_as_the_network_and_tells_novel_images(trained: Path, tmp_path: Path) -> None:
    imported("digits", trained / "weights.safetensors", tmp_path / "mine")
    done = run(
        "calibration", "fit", tmp_path / "mine", "--network", DIGITS, "--data", trained / "calibration.npz",
        "--train-data", trained / "train.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mine = bundle.load(tmp_path / "mine")
    assert (mine.card.training, mine.card.data, mine.card.input) == (None, None, INPUTS)
    test = np.load(trained / "test.npz")
    distribution = predict(mine, test["images"])
    assert (distribution.mean.argmax(1).numpy() == test["labels"]).mean() > 0.95
    alone = predict(mine, test["images"].reshape(-1, 64), strategy="weight_scaling")
    weights = own_networks.digits().eval()
    weights.load_state_dict(safetensors.torch.load_file(trained / "weights.safetensors"))
    with torch.inference_mode():
        logits = weights(torch.from_numpy(test["images"] / 16))
    temperature = mine.scaling("weight_scaling").temperature
    assert (alone.mean - (logits / temperature).softmax(1)).abs().max() < 1e-5
    detector = NoveltyDetector.of(mine)
    assert detector is not None
    noise = torch.rand(200, 8, 8, generator=torch.Generator().manual_seed(0)) * 16
    assert (detector(mine.prepare(noise)).p_value < 0.05).double().mean() > 0.5
    assert (detector(mine.prepare(torch.from_numpy(test["images"]))).p_value < 0.05).double().mean() < 0.15


def test_one_of_torchvisions_takes_a_folder_of_pictures(tmp_path: Path) -> None:
    weights = saved(own_networks.mobile_net(), tmp_path / "weights.safetensors")
    inputs = InputRecord(shape=(3, 32, 48), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mine = imported("mobile_net", weights, tmp_path / "mine", inputs=inputs, classes=tuple("abcde"))
    generator = np.random.default_rng(0)
    for number in range(100):
        folder = tmp_path / "pictures" / "abcde"[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    name = "tests.own_networks:mobile_net"
    done = run("calibration", "fit", mine.path, "--network", name, "--data", tmp_path / "pictures", "--samples", "8")
    assert done.returncode == 0, done.stderr
    done = run("calibration", "score", mine.path, tmp_path / "pictures", "--network", name, "--out", tmp_path / "t.csv")
    assert "Images scored: 100" in done.stdout, done.stderr


def test_a_transformer_encoder_is_sampled_unless_dropout_hides_in_its_attention(tmp_path: Path) -> None:
    inputs = InputRecord(shape=(12, 16), mean=0.5, std=0.5)
    weights = saved(own_networks.TransformerClassifier(), tmp_path / "weights.safetensors")
    mine = imported(
        "TransformerClassifier", weights, tmp_path / "mine", inputs=inputs, classes=("a", "b", "c"),
        arguments={"rate": 0.25},
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 16), dtype=np.uint8)
    assert (predict(mine, images).mutual_information > 0).all()
    with pytest.raises(UnsupportedNetworkError, match=r"self_attn.*draws random numbers.*torch\.nn's dropout"):
        imported(
            "TransformerClassifier", weights, tmp_path / "other", inputs=inputs, classes=("a", "b", "c"),
            arguments={"attention_rate": 0.1},
        )  # fmt: skip


@pytest.mark.parametrize(("name", "error", "message"), [
    ("without_dropout", NoActiveDropoutError, "no active dropout layer"),
    ("FunctionalDropout", UnsupportedNetworkError, r"FunctionalDropout\.forward draws random numbers"),
    ("no_network", ValueError, "made str, not a torch.nn.Module"),
    ("broken", ValueError, "can't be built: RuntimeError: it has no time"),
    ("InPlace", ImportFailedError, "changes its input in place.*write x = x - mean for x -= mean"),
    ("softmaxed", ImportFailedError, "returns probabilities, not logits. A network must return logits"),
    ("double", ImportFailedError, r"1\.weight is torch.float64.*return network\.float\(\)"),
    ("nothing", ValueError, "can't be imported: .*nothing"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused_by_name(
    trained: Path, tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    weights = trained / "weights.safetensors"
    if name in {"FunctionalDropout", "InPlace", "softmaxed", "double"}:
        weights = saved(getattr(own_networks, name)(), tmp_path / "weights.safetensors")
    with pytest.raises(error, match=message):
        imported(name, weights, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("others", "message"), [
    ({"classes": CLASSES[:9]}, r"9 classes are named, and for a batch of 3 the network gave \[3, 10\]"),
    ({"inputs": InputRecord(shape=(9, 8))}, r"does not take images of shape \[9, 8\]"),
    ({"arguments": {"hidden": 31}}, "does not hold this network's weights"),
    ({"outputs": "probabilities"}, "must return logits, or log-probabilities"),
    ({"outputs": "log_probabilities"}, "returns no log-probabilities: those of an image don't add up to 1"),
    ({"inputs": InputRecord(shape=(64, 48, 3))}, "would have 64 channels: those come first. Name --shape 3,64,48"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(trained: Path, tmp_path: Path, others: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportFailedError, match=message):
        imported("digits", trained / "weights.safetensors", tmp_path / "mine", **others)
    assert not (tmp_path / "mine").exists()


def test_damaged_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "weights.pt"
    torch.save(own_networks.digits().state_dict(), pickled)
    with pytest.raises(ImportFailedError, match="is no safetensors file"):
        imported("digits", pickled, tmp_path / "mine")
    network = own_networks.digits()
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    with pytest.raises(ImportFailedError, match=r"not finite in 1\.weight"):
        imported("digits", saved(network, tmp_path / "nan.safetensors"), tmp_path / "mine")


def test_an_engine_that_disagrees_is_noticed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(MaskedCopies):
        def logits(self, inputs: torch.Tensor, rows: slice) -> torch.Tensor:
            return super().logits(inputs, rows) + 0.01

    monkeypatch.setattr(importing, "MaskedCopies", Wrong)
    with pytest.raises(ImportFailedError, match=r"differ by 0\.01 from those run one by one"):
        imported("digits", trained / "weights.safetensors", tmp_path / "mine")


def test_code_that_is_not_trusted_is_not_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported("digits", trained / "weights.safetensors", tmp_path / "mine")
    monkeypatch.setenv(own.ENVIRONMENT_VARIABLE, "another.module:build")
    with pytest.raises(BundleError, match="code of its own, which loading would run"):
        bundle.load(tmp_path / "mine")


def test_one_logit_is_told_how_to_become_two(tmp_path: Path) -> None:
    weights = saved(own_networks.one_logit(), tmp_path / "weights.safetensors")
    with pytest.raises(ImportFailedError, match=r"gave \[3, 1\], not \[3, 2\]\. Of one logit make two: torch\.cat"):
        imported("one_logit", weights, tmp_path / "mine", classes=("no", "yes"))


def test_log_probabilities_are_logits_but_have_no_novelty(trained: Path, tmp_path: Path) -> None:
    weights = saved(own_networks.softmaxed(logarithm=True), tmp_path / "weights.safetensors")
    others = {"arguments": {"logarithm": True}, "outputs": "log_probabilities"}
    mine = imported("softmaxed", weights, tmp_path / "mine", **others)
    done = run(
        "calibration", "fit", mine.path, "--network", "tests.own_networks:softmaxed", "--data",
        trained / "calibration.npz", "--train-data", trained / "train.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning: no novelty: Sequential does not end with a linear layer" in done.stderr
    assert NoveltyDetector.of(bundle.load(mine.path)) is None


IMPORT: tuple[str | Path, ...] = ("import", DIGITS, "--shape", "8,8", "--maximum", "16", "--outputs", "logits")


@pytest.mark.parametrize(("classes", "message"), [
    ("0,1,2,3,4,5,6,7,8,8", "two classes are named '8'"),
    ("0,1,2,3,4,5,6,7,8,", "the name of class 9 is empty"),
    (",".join(f"class number {number}" for number in range(100)), "100 classes are named, and for a batch of 3"),
])  # fmt: skip
def test_class_names_must_tell_classes_apart(trained: Path, tmp_path: Path, classes: str, message: str) -> None:
    code = 1 if message.startswith("100") else 2
    weights: tuple[str | Path, ...] = ("--weights", trained / "weights.safetensors", "--out", tmp_path / "mine")
    assert message in refused("models", *IMPORT, *weights, "--classes", classes, code=code)
    assert not (tmp_path / "mine").exists()


def test_class_names_in_a_file(trained: Path, tmp_path: Path) -> None:
    names = ["Ente", "U\u0308bel", *"01234567"]
    (tmp_path / "names.txt").write_text("\ufeff" + "\n".join(names) + "\n\n", "utf-8")
    weights: tuple[str | Path, ...] = ("--weights", trained / "weights.safetensors", "--out", tmp_path / "mine")
    done = run("models", *IMPORT, *weights, "--classes", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert f"fit {tmp_path / 'mine'} --network {DIGITS} --data IMAGES" in done.stdout
    own.trust(DIGITS)
    assert bundle.load(tmp_path / "mine").card.classes == ("Ente", "\u00dcbel", *"01234567")
    (tmp_path / "names.txt").write_text("\u00fc", "latin-1")
    message = refused("models", *IMPORT, *weights, "--classes", tmp_path / "names.txt", code=2)
    assert "is not written in UTF-8" in message
    message = refused("models", *IMPORT, *weights, "--classes", "a", "--mean", "0.1,0.2", code=2)
    assert "Error: mean has 2 values, which images of shape [8, 8] have no use for (see" in message


def test_code_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn_net.py").write_text("def build(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in (
        ("torn_net:build", r"torn_net:build can't be imported: SyntaxError: .*in a folder in PYTHONPATH"),
        ("models.mine:build", "No module named 'models.mine'. models is a package of this project; give yours another"),
    ):
        with pytest.raises(ValueError, match=message):
            import_network(
                name, tmp_path / "none", tmp_path / "mine", arguments={}, classes=CLASSES, inputs=INPUTS,
                outputs="logits", bundle_name="mine",
            )  # fmt: skip


def test_pictures_are_inverted_only_if_the_network_knows_light_on_dark(trained: Path, tmp_path: Path) -> None:
    light = np.full((8, 8), 200, np.uint8)
    light[3:5, 3:5] = 10
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(light).save(folder / "one.png")
    for light_on_dark, expected in ((False, light), (True, 255 - light)):
        inputs = INPUTS.model_copy(update={"light_on_dark": light_on_dark})
        made = imported("digits", trained / "weights.safetensors", tmp_path / str(light_on_dark), inputs=inputs)
        found = own_images.read(folder, None, made.card.input).pixels[0]
        assert np.allclose(found.numpy(), expected * (16 / 255), atol=1e-5)


def test_an_existing_folder_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("two years")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        imported("digits", trained / "weights.safetensors", tmp_path / "mine")


def test_fit_needs_labelled_images(trained: Path, tmp_path: Path) -> None:
    imported("digits", trained / "weights.safetensors", tmp_path / "mine")
    mine = str(tmp_path / "mine")
    assert "name labelled images" in refused("calibration", "fit", mine, "--network", DIGITS, code=2)
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, images=np.zeros((3, 8, 8), np.uint8))
    message = refused("calibration", "fit", mine, "--network", DIGITS, "--data", unlabelled, code=1)
    assert "holds images without labels" in message
    calibration = trained / "calibration.npz"
    message = refused(
        "calibration", "fit", mine, "--network", DIGITS, "--data", calibration, "--train-data", calibration, code=1
    )
    assert "400 of the 400 images in" in message
    np.savez(unlabelled, images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 10)
    message = refused("calibration", "fit", mine, "--network", DIGITS, "--data", unlabelled, code=1)
    assert "holds 20 images; at least 100 are needed" in message
    assert "is not of the form package.module:factory" in refused(
        "calibration", "fit", mine, "--network", "tests", code=2
    )
