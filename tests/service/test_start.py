from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import PRETRAINED
from tests.command_line import ROOT
from tests.serving import free_port, serving, start, stop


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    folder = tmp_path / "corrupt"
    shutil.copytree(PRETRAINED / "mlp", folder)
    with (folder / "weights.safetensors").open("r+b") as weights:
        weights.seek(5000)
        weights.write(b"\x00\x01\x02\x03")
    return folder


@pytest.fixture
def damaged_report(tmp_path: Path) -> Path:
    """Weights, card and calibration are sound."""
    folder = tmp_path / "damaged"
    shutil.copytree(PRETRAINED / "mlp", folder)
    (report,) = folder.glob("report-*.html.gz")
    report.write_bytes(report.read_bytes()[:1000])
    return folder


ONE_THREAD = """
import asyncio, threading
from service.app import DropoutUncertainty
async def start():
    DropoutUncertainty.inner()
asyncio.run(start())
import torch
thread = threading.Thread(target=lambda: print(torch.__config__.parallel_info()))
thread.start()
thread.join()
"""


def test_products_in_any_thread_of_a_worker_run_on_one_core() -> None:
    """On two, their last digit depends on who else is at work."""
    done = subprocess.run([sys.executable, "-c", ONE_THREAD], cwd=ROOT, capture_output=True, text=True, check=True)
    threads = re.findall(r"(at::get_num_threads|omp_get_max_threads|mkl_get_max_threads)\(\) : (\d+)", done.stdout)
    assert ("at::get_num_threads", "1") in threads
    assert {count for _, count in threads} == {"1"}


def test_a_corrupt_bundle_is_one_line_and_an_exit_code(tmp_path: Path, corrupt: Path) -> None:
    log = tmp_path / "log"
    with start(log, free_port(), str(corrupt)) as process:
        assert process.wait(timeout=60) == 1
    lines = log.read_text().strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"Error: {corrupt / 'weights.safetensors'} is corrupt")


def test_a_bundle_that_only_a_worker_finds_bad_ends_the_server(tmp_path: Path, damaged_report: Path) -> None:
    """It would fail each time that it is started again."""
    log = tmp_path / "log"
    with start(log, free_port(), str(damaged_report), workers=2) as process:
        try:
            assert process.wait(timeout=60) == 1
        finally:
            stop(process)
    errors = [line for line in log.read_text().splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "html.gz can't be read" in errors[0]
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bundles", "mpl", "no bundle 'mpl': it is neither a folder nor one of those that ship (cnn, mlp, mlp-wide)"),
        ("bundles", "mlp,mlp", "DROPOUT_BUNDLES: two bundles are called 'mlp'; give one a name of its own: name=fol"),
        ("bundles", "a b=mlp", "DROPOUT_BUNDLES: 'a b=mlp' should be a shipped bundle's name, a folder, or name=fol"),
        ("bundles", ",", "DROPOUT_BUNDLES: it names no bundle"),
        ("coverage", "1", "DROPOUT_COVERAGE: Input should be less than or equal to 0.999"),
        ("timeout_seconds", "soon", "DROPOUT_TIMEOUT_SECONDS: Input should be a valid number"),
        ("access_log", "maybe", "DROPOUT_ACCESS_LOG: Input should be a valid boolean"),
        ("bundle", "mlp", "DROPOUT_BUNDLE is none of the service's settings: DROPOUT_ACCESS_LOG, "),
    ],
)
def test_a_setting_that_cant_be_used_is_one_line_and_an_exit_code(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    log = tmp_path / "log"
    with start(log, free_port(), **{name: value}) as process:
        assert process.wait(timeout=60) == 1
    lines = log.read_text().strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"Error: {message}")


def test_the_settings_are_told_once_without_the_keys(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(log, workers=2, api_keys="secret,another", coverage=0.95):
        pass
    (line,) = (line for line in log.read_text().splitlines() if '"settings"' in line)
    settings = json.loads(line)["settings"]
    assert settings["api_keys"] == 2
    assert settings["coverage"] == 0.95
    assert "secret" not in log.read_text()
