from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import PRETRAINED
from tests.command_line import ROOT
from tests.serving import free_port, start


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    folder = tmp_path / "corrupt"
    shutil.copytree(PRETRAINED / "mlp", folder)
    with (folder / "weights.safetensors").open("r+b") as weights:
        weights.seek(5000)
        weights.write(b"\x00\x01\x02\x03")
    return folder


ONE_THREAD = """
import threading
from service.app import DropoutUncertainty
DropoutUncertainty.inner()
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
