from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.bundle import PRETRAINED
from tests.serving import free_port, start


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    folder = tmp_path / "corrupt"
    shutil.copytree(PRETRAINED / "mlp", folder)
    with (folder / "weights.safetensors").open("r+b") as weights:
        weights.seek(5000)
        weights.write(b"\x00\x01\x02\x03")
    return folder


def test_a_corrupt_bundle_is_one_line_and_an_exit_code(tmp_path: Path, corrupt: Path) -> None:
    log = tmp_path / "log"
    with start(log, free_port(), str(corrupt)) as process:
        assert process.wait(timeout=60) == 1
    lines = log.read_text().strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"Error: {corrupt / 'weights.safetensors'} is corrupt")
