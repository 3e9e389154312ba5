from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from models import bundle
from models.records import Augmentation, DeltaRule, Regularisation
from tests.command_line import ROOT, refused, run
from training.bundling import load_ensemble, recipe_of


def test_fit_writes_a_whole_bundle(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    arguments = ["fit", "YourDropoutModel", "--dropout", "0.1,0.2,0.3", "--hidden-widths", "32,16", "--seed", "3",
                 "--batch-size", "512", "--epochs", "2", "--out", str(out)]  # fmt: skip
    done = run("training", *arguments)
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stderr
    assert "images/s" in done.stderr
    loaded = bundle.load(out)
    assert loaded.card.name == "mine"
    assert loaded.card.network.arguments == {"dropout": [0.1, 0.2, 0.3], "hidden_widths": [32, 16]}
    assert f"Test accuracy {loaded.card.metrics['test_accuracy']:.4f}" in done.stdout
    history = json.loads((out / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history["history"]] == [1, 2]
    assert set(history["history"][0]) == {
        "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds",
    }  # fmt: skip
    assert history["history"][1]["validation_accuracy"] == loaded.card.metrics["validation_accuracy"]
    with Image.open(out / "curves.png") as figure:
        assert figure.width > 1000

    # The same seed gives the same weights in another process; what is there is not replaced without being asked to.
    before = loaded.card.weights_sha256
    assert "--overwrite" in refused("training", *arguments, code=1)
    assert run("training", *arguments, "--overwrite").returncode == 0
    assert bundle.load(out).card.weights_sha256 == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_card_records_the_whole_recipe_and_any_argument(tmp_path: Path) -> None:
    out = tmp_path / "b"
    done = run(
        "training", "fit", "YourDropoutModel", "--dropout", "0.1,0.2", "--hidden-widths", "8", "-a",
        "dropout_kind=alpha", "--argument", "activation=selu", "--weight-decay", "0.01", "--decoupled",
        "--label-smoothing", "0.1", "--max-norm", "2", "--input-noise", "0.3", "--activation-noise", "0.2",
        "--weight-noise", "0.05", "--delta-rule", "--schedule", "one_cycle", "--averaging", "0.9", "--flip", "--shift",
        "2", "--erase", "0.25", "--batch-size", "2000", "--epochs", "1", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = bundle.load(out).card
    assert card.network.arguments == {
        "dropout": [0.1, 0.2], "hidden_widths": [8], "dropout_kind": "alpha", "activation": "selu",
    }  # fmt: skip
    assert card.training is not None
    assert card.training.regularisation == Regularisation(
        weight_decay=0.01, decoupled=True, label_smoothing=0.1, max_norm=2.0, input_noise=0.3, activation_noise=0.2,
        weight_noise=0.05, delta_rule=DeltaRule(),
    )  # fmt: skip
    assert card.training.augmentation == Augmentation(flip=True, shift=2, erase=0.25)
    assert (card.training.schedule, card.training.averaging) == ("one_cycle", 0.9)
    assert recipe_of(card, 7) == card.training.recipe.model_copy(update={"seed": 7})
    assert json.loads((out / "history.json").read_text())["recipe"]["regularisation"]["max_norm"] == 2


def test_early_stopping_is_told(tmp_path: Path) -> None:
    done = run(
        "training", "fit", "YourDropoutModel", "--dropout", "0,0,0", "--lr", "0.05", "--batch-size", "2000",
        "--epochs", "60", "--early-stopping", "--patience", "1", "--out", tmp_path / "b",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    training = bundle.load(tmp_path / "b").card.training
    assert training is not None
    assert training.stopped == "early"
    assert training.epochs_run == training.best_epoch + 1
    assert f"Stopped early after epoch {training.epochs_run}; restored epoch {training.best_epoch}." in done.stdout


def test_an_ensemble_is_trained_as_the_bundle_was_from_other_seeds(tmp_path: Path) -> None:
    recipe = ["--dropout", "0.1,0.2", "--hidden-widths", "16", "--lr", "0.01", "--batch-size", "1000", "--epochs", "1",
              "--label-smoothing", "0.1"]  # fmt: skip
    assert run("training", "fit", "YourDropoutModel", *recipe, "--seed", "4", "--out", tmp_path / "one").returncode == 0
    arguments: list[str | Path] = ["ensemble", tmp_path / "one", "--members", "2", "--out", tmp_path / "all"]
    done = run("training", *arguments)
    assert done.returncode == 0, done.stderr
    one = bundle.load(tmp_path / "one")
    members = load_ensemble(tmp_path / "all", one.card)
    assert [recipe_of(member.card).seed for member in members] == [5, 6]
    assert len({member.card.weights_sha256 for member in [one, *members]}) == 3
    for member in members:
        assert member.card.training is not None
        assert member.card.training.model_copy(update={"seed": 4}) == one.card.training
        assert member.card.network == one.card.network

    # A second run trains what is missing alone, as it was; what is in the way is not touched.
    shutil.rmtree(tmp_path / "all" / "seed-6")
    done = run("training", *arguments)
    assert "seed-5 is trained already" in done.stdout
    again = load_ensemble(tmp_path / "all", one.card)
    assert [member.card.weights_sha256 for member in again] == [member.card.weights_sha256 for member in members]
    shutil.rmtree(tmp_path / "one")
    assert run("training", "fit", "ReLUNet", "--epochs", "1", "--out", tmp_path / "one").returncode == 0
    arguments[-1] = tmp_path / "mixed"
    shutil.copytree(tmp_path / "all" / "seed-6", tmp_path / "mixed" / "seed-1")
    assert "was not trained as one was" in refused("training", *arguments, code=1)


def test_divergence_keeps_the_last_good_weights(tmp_path: Path) -> None:
    done = run("training", "fit", "ReLUNet", "--lr", "1e30", "--batch-size", "50000", "--out", tmp_path / "b")
    assert done.returncode == 1
    assert "Error: the validation loss became nan in epoch 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists(), "no epoch was good"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "Perceptron"], "'Perceptron' is not one of 'ReLUNet'"),
        (["fit"], "Missing argument 'NETWORK'"),
        (["fit", "ReLUNet"], "Missing option '--out'"),
        (["fit", "ReLUNet", "--out", "x", "--epochs", "0"], "'--epochs': 0 is not in the range x>=1"),
        (["fit", "ReLUNet", "--out", "x", "--lr", "-1"], "'--lr'"),
        (["fit", "ReLUNet", "--out", "x", "--dropout", "0.1"], "ReLUNet takes no arguments, not dropout"),
        (["fit", "YourDropoutModel", "--out", "x", "--dropout", "0.1,x"], "not a list of numbers"),
        (["fit", "YourDropoutModel", "--out", "x", "--dropout", "0.1,0.2"], "need 3 dropout rates"),
        (["fit", "YourDropoutModel", "--out", "x", "--dropout", "0.1,0.2,1.5"], r"must lie in [0, 1), got 1.5"),
        (["fit", "ReLUNet", "--out", "x", "--lr", "inf"], "learning_rate: Input should be a finite number, got inf"),
        (["fit", "RowRecurrent", "--out", "x", "--activation-noise", "0.1"], "RowRecurrent has no activation modules"),
        (["fit", "WideMLP", "--out", "x", "-a", "batch_norm"], "'batch_norm' is not of the form name=value"),
        (["fit", "WideMLP", "--out", "x", "-a", "depth=3"], "not depth"),
        (["fit", "WideMLP", "--out", "x", "-a", "dropout=5"], "dropout must be a list of rates, got 5"),
        (
            ["fit", "WideMLP", "--out", "x", "-a", 'hidden_widths=["a"]'],
            "WideMLP can't be built with hidden_widths=['a']",
        ),
        (["fit", "ReLUNet", "--out", "x", "--seed", "99999999999999999999"], "'--seed'"),
        (["fit", "YourDropoutModel", "--out", "x", "--hidden-widths", "1000000000,2"], "sizes from 1 to 65,536"),
        (
            ["fit", "YourDropoutModel", "--out", "x", "--hidden-widths", "99999999999999999999,2"],
            "sizes from 1 to 65,536",
        ),
        (["fit", "ReLUNet", "--out", "x", "--data", "/no/such/folder"], "'/no/such/folder' does not exist"),
        (["data", "--color", "red"], "No such option"),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], message: str) -> None:
    assert message in refused("training", *arguments, code=2)


def test_a_folder_without_the_data(tmp_path: Path) -> None:
    message = refused("training", "data", "--data", tmp_path, code=1)
    assert "train-images-idx3-ubyte is missing" in message


@pytest.mark.parametrize("command", [[], ["fit"], ["data"]])
def test_help_is_complete(command: list[str]) -> None:
    done = run("training", *command, "--help")
    assert done.returncode == 0
    if command == ["fit"]:
        for option in ("--epochs", "--lr", "--batch-size", "--seed", "--dropout", "--hidden-widths", "--early-stopping",
                       "--patience", "--split-seed", "--name", "--out", "--overwrite", "--data", "--argument",
                       "--weight-decay", "--decoupled", "--label-smoothing", "--max-norm", "--input-noise",
                       "--activation-noise", "--weight-noise", "--delta-rule", "--schedule", "--averaging", "--flip",
                       "--shift", "--erase"):  # fmt: skip
            assert option in done.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "training", "fit", "ReLUNet", "--epochs", "500", "--out", str(tmp_path / "b")]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        # A job in the background of a shell is started with the interrupt ignored, and would hand that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch   1/500" in line:
                break
        assert any(tmp_path.iterdir()), "the temporary folder should be there by now"
        time.sleep(0.2)
        process.send_signal(how)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1] == "Error: interrupted; nothing was left half-written"
    assert list(tmp_path.iterdir()) == []
