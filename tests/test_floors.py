"""The floors import only downwards, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["models", "training", "calibration", "training.study", "training.release", "service"]
"""From the ground up. The study and the release train and then ask the test-time strategies, so that they stand above
calibration."""
FOLDERS = ["models", "training", "calibration", "service"]
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
COMMANDS = {"training/__main__.py": "training.release", "models/__main__.py": "calibration"}
"""What registers commands of floors above its own, up to this one: of the study and the release; and the import of a
network, which is held against the engine first."""


def floor_of(module: str) -> int | None:
    return max((rank for rank, name in enumerate(FLOORS) if f"{module}.".startswith(f"{name}.")), default=None)


def imported_modules(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return set(names)


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    own = floor_of(name.removesuffix(".py").replace("/", "."))
    assert own is not None
    highest = FLOORS.index(COMMANDS[name]) if name in COMMANDS else own
    modules = imported_modules(path)
    floors = {module: floor_of(module) for module in modules}
    assert not {module for module, floor in floors.items() if floor is not None and floor > highest}
    if FLOORS[own] == "service":
        assert not {module for module in modules if module.startswith("training")}
    if FLOORS[own] != "training":
        assert not {module for module in modules if module.startswith("torchvision")}


def test_one_module_alone_knows_of_ray() -> None:
    """And imports it when it is asked for: who has one machine needs none."""
    known = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name.partition(".")[0] == "ray" for name in imported_modules(path))
    }
    assert known == {"training/engines/cluster.py"}
    modules = "calibration.__main__, training.__main__, training.study.runner, training.engines.local"
    check = f"import sys, {modules}; assert not {{'ray', 'grpc'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_a_bento_is_built_with_the_locked_versions() -> None:
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = re.findall(r'"([\w-]+==[^"]+)"', (ROOT / "bentofile.yaml").read_text())
    assert len(pinned) == 10
    assert set(pinned) <= set(locked)


def test_the_supervisor_does_not_load_torch() -> None:
    code = "import sys, service.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_service_loads_no_more_than_it_needs() -> None:
    """Each of these would add a second or more to its start, or a hundred MiB to every worker."""
    code = """
import sys
import numpy as np
from service import catalogue, settings, wire
predictor = catalogue.Catalogue(settings.load()).predictor()
predictor.answer(predictor.question(np.zeros((1, 28, 28), np.float32), wire.Options()))
print(sorted({"training", "torchvision", "torch._dynamo", "sympy", "scipy.stats"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
