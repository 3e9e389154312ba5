"""The floors import only downwards, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["models", "training", "calibration", "service"]
SOURCES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    forbidden = above | ({"training"} if floor == "service" else set())
    assert not imported_packages(path) & forbidden
    if floor != "training":
        assert "torchvision" not in imported_packages(path)


def test_a_bento_is_built_with_the_locked_versions() -> None:
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = re.findall(r'"([\w-]+==[^"]+)"', (ROOT / "bentofile.yaml").read_text())
    assert len(pinned) == 10
    assert set(pinned) <= set(locked)


def test_the_supervisor_does_not_load_torch() -> None:
    code = "import sys, service.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_service_does_not_load_the_training_floor() -> None:
    code = "import sys, service.predictor; sys.exit('training' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
