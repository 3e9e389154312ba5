"""Studies, deep ensembles and reports on a cluster: what they are on one machine, whatever dies on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.__main__ import main
from calibration.strategies import Strategy
from models import bundle
from tests import own_networks
from tests.calibration.own_bundles import DIGITS, imported, saved, write_digits
from tests.command_line import ROOT, refused, run
from tests.scale.cluster import NODE, cluster_of, ray
from tests.training.study.plans import FAILING, tiny
from training import bundling
from training.bundling import load_ensemble, member_folder

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""As workers have: sums in another order end in other digits."""


def without(value: Any, *names: str) -> Any:
    if isinstance(value, dict):
        return {key: without(each, *names) for key, each in value.items() if key not in names}
    return [without(each, *names) for each in value] if isinstance(value, list) else value


def results(out: Path) -> Any:
    return without(json.loads((out / "study.json").read_text()), "seconds")


def wait_for_runs(runs: Path, number: int, process: subprocess.Popen[str]) -> None:
    while len(list(runs.glob("*.json"))) < number:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_a_study_whose_node_dies_half_way(tmp_path: Path) -> None:
    """And of which some runs fail."""
    plan = tiny(tmp_path, FAILING)
    whole = [sys.executable, "-m", "training", "study", str(plan), "--seeds", "5"]
    local = run(*whole[2:], "--out", tmp_path / "local", environment=ONE_THREAD)
    assert local.returncode == 1, local.stderr
    out = tmp_path / "out"
    runs = out / "runs"
    with cluster_of(1) as cluster:
        command = [*whole, "--out", str(out), *ray(cluster)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for_runs(runs, 1, process)
        # It joins late for the command not to be connected to it.
        node = cluster.add_node(**NODE)
        wait_for_runs(runs, 6, process)
        assert len(list(runs.glob("*.json"))) < 15
        cluster.remove_node(node, allow_graceful=False)
        output = process.communicate(timeout=200)[0]
    assert process.returncode == 1, output
    assert output.count("DivergedError: the training loss became") == 5
    assert output.strip().endswith("Error: 5 runs failed; the same command tries them again")
    assert len(list(runs.glob("*.json"))) == 15
    assert results(out) == results(tmp_path / "local")


def test_a_deep_ensemble(cluster: Any, tmp_path: Path) -> None:
    recipe = ["--dropout", "0.1,0.2", "--hidden-widths", "16", "--lr", "0.01", "--batch-size", "1000", "--epochs", "1"]
    assert run("training", "fit", "YourDropoutModel", *recipe, "--out", tmp_path / "one").returncode == 0
    for out, options in (("local", []), ("ray", ray(cluster))):
        arguments: list[str | Path] = [
            "ensemble",
            tmp_path / "one",
            "--members",
            "2",
            "--out",
            tmp_path / out,
            *options,
        ]
        done = run("training", *arguments, environment=ONE_THREAD)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Test accuracy") == 2
    one = bundle.load(tmp_path / "one").card
    local, ray_ones = (load_ensemble(tmp_path / out, one) for out in ("local", "ray"))
    assert [member.card.name for member in ray_ones] == ["one-seed-1", "one-seed-2"]
    assert [member.card for member in ray_ones] == [member.card for member in local]
    # A network and its ensemble at once, where the report looks for them.
    fitted = run(
        "training", "fit", "YourDropoutModel", *recipe, "--out", tmp_path / "one-with-two", "--members", "2",
        *ray(cluster), environment=ONE_THREAD,
    )  # fmt: skip
    beside = ROOT / bundling.ENSEMBLES / "one-with-two"
    try:
        assert fitted.returncode == 0, fitted.stderr
        found = load_ensemble(beside, bundle.load(tmp_path / "one-with-two", calibrated=False).card)
        expected = [member.card.weights_sha256 for member in local]
        assert [member.card.weights_sha256 for member in found] == expected
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    again = run("training", "ensemble", tmp_path / "one", "--members", "2", "--out", tmp_path / "ray", *ray(cluster))
    assert again.stdout.count("is trained already") == 2
    assert not list((tmp_path / "ray").glob(".*"))


def test_a_report(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of one's own, whose code the workers are let run, with a deep ensemble beside it."""
    monkeypatch.setenv("DROPOUT_NETWORKS", DIGITS)
    write_digits(tmp_path)
    imported("digits", tmp_path / "weights.safetensors", tmp_path / "digits", bundle_name="digits")
    for seed in (1, 2):
        other = saved(own_networks.digits(), tmp_path / "other.safetensors")
        imported("digits", other, member_folder(tmp_path / "ensembles" / "digits", seed), bundle_name=f"seed-{seed}")
    files: list[str | Path] = ["--data", tmp_path / "test.npz", "--calibration-data", tmp_path / "calibration.npz"]
    files += ["--ensembles", tmp_path / "ensembles", "--no-cache"]
    made_here: list[str] = []
    summarise = Strategy.summarise

    def noted(strategy: Strategy, *arguments: Any, **options: Any) -> Any:
        made_here.append(strategy.name)
        return summarise(strategy, *arguments, **options)

    monkeypatch.setattr(Strategy, "summarise", noted)
    many = {}
    for out, options in (("local", []), ("ray", ray(cluster))):
        made_here.clear()
        arguments = ["report", tmp_path / "digits", "--out", tmp_path / out, *files, *options]
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        assert "Predicted here instead" not in done.output
        many[out] = len(made_here)
    # What calibrates the networks is needed before anything can be asked for.
    assert many["ray"] <= 10, many
    assert many["local"] > 150, many
    found = {out: json.loads((tmp_path / out / "report.json").read_text()) for out in ("local", "ray")}
    assert "deep_ensemble" in found["ray"]["models"][0]["strategies"]
    assert without(found["ray"], "cost") == without(found["local"], "cost")


@pytest.mark.parametrize(
    "arguments",
    [
        ["training", "study", "notebook"],
        ["training", "ensemble", "mlp"],
        ["calibration", "report", "mlp", "--out", "nowhere"],
        ["calibration", "score", "mlp", "docs", "--out", "nowhere"],
    ],
    ids=lambda arguments: arguments[1],
)
def test_an_address_without_a_cluster_is_one_clear_line(arguments: list[str]) -> None:
    module, *rest = arguments
    error = refused(module, *rest, "--address", "localhost:1", code=2)
    assert "--address is for --engine ray" in error
    assert not (ROOT / "nowhere").exists()


def test_one_network_is_trained_here(tmp_path: Path) -> None:
    command = ["fit", "ReLUNet", "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert "--engine is for --members" in refused("training", *command, code=2)


@pytest.mark.parametrize("address", ["localhost:1", "ray://localhost:1", "nonsense", "localhost:99999"])
def test_where_there_is_no_cluster_is_one_clear_line(address: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", np.zeros((2, 28, 28), dtype=np.uint8))
    command: list[str | Path] = ["score", "mlp", tmp_path / "images.npz", "--out", tmp_path / "out", "--engine", "ray"]
    done = run("calibration", *command, "--address", address)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: no Ray cluster can be used at {address}: ")
    assert "Start one with `ray start --head`, and name it with --address" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
