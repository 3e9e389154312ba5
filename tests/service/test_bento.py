"""A Bento as a user builds and serves it: complete by itself, far from the repository, without a network."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from models import bundle
from tests.command_line import ROOT
from tests.serving import free_port, stop, wait_until_ready

BENTOML = Path(sys.executable).with_name("bentoml")
FLOORS = ("models", "calibration", "service")
OWN_FILES = """
import sys
import service.app, service.start
for name in list(sys.modules):
    if name.partition(".")[0] in ("models", "calibration", "service"):
        print(sys.modules[name].__file__)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BENTOML_HOME, with nothing in it but the Bento."""
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """That of a user without a network. BentoML would install uv with pip to build a Bento, though it has no use for
    it here: this one fails if it is run."""
    tools = home / "tools"
    tools.mkdir()
    (tools / "uv").symlink_to("/bin/false")
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | {
        "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PIP_NO_INDEX": "1", "DROPOUT_WORKERS": "1",
        "DROPOUT_BUNDLES": "mlp",
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def bento(home: Path, environment: dict[str, str]) -> Path:
    """The Bento's folder."""
    done = subprocess.run([BENTOML, "build"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (path for path in (home / "bentos" / "dropout_uncertainty").iterdir() if path.is_dir())
    return found


@pytest.fixture(scope="module")
def served(
    bento: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the Bento's server, and what that has printed until it was ready.

    The repository is installed, and could serve in the Bento's place: so every floor of the Bento says that it is used.
    """
    for floor in FLOORS:
        with (bento / "src" / floor / "__init__.py").open("a") as module:
            module.write("import os\nos.write(2, f'{os.getpid()} uses {__file__}\\n'.encode())\n")
    elsewhere, port = tmp_path_factory.mktemp("elsewhere"), free_port()
    log = elsewhere / "log"
    tag = f"{bento.parent.name}:{bento.name}"
    command: list[str | Path] = [BENTOML, "serve", tag, "--port", str(port), "--host", "127.0.0.1"]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=elsewhere, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            wait_until_ready(client, process, log)
            yield client, log.read_text()
        finally:
            stop(process)


def test_it_holds_what_serving_needs_and_nothing_else(bento: Path, shipped: bundle.Bundle) -> None:
    source = bento / "src"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    files = {"card.json", "calibration.json", "weights.safetensors", f"report-{shipped.version}.html.gz"}
    assert {f"models/pretrained/mlp/{name}" for name in files} <= found
    assert "models/pretrained/cnn/weights.safetensors" in found, "the service's default"
    assert any(name.startswith("models/pretrained/mlp/calibration-") for name in found)
    assert "service/page/index.html" in found
    for floor in ("models", "service"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / floor).rglob("*.py")} <= found
    assert {name.split("/")[0] for name in found} == {*FLOORS, "LICENSE", "README.md", "bentofile.yaml"}
    assert not [name for name in found if name.endswith(".pyc")]


def test_its_packages_are_those_of_the_lock_and_enough(bento: Path) -> None:
    lines = (bento / "env" / "python" / "requirements.txt").read_text().splitlines()
    locked = {line.lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {_normal(line) for line in lines} <= locked
    done = subprocess.run(
        [sys.executable, "-c", OWN_FILES], cwd=bento / "src", capture_output=True, text=True, check=True
    )  # fmt: skip
    imported = {name for path in done.stdout.splitlines() for name in _imports(Path(path))}
    distributions = metadata.packages_distributions()
    needed = {_normal(owner) for name in imported for owner in distributions.get(name, ())} - {"dropout-uncertainty"}
    assert {"torch", "bentoml", "starlette"} <= needed
    assert needed <= _with_dependencies({_normal(Requirement(line).name) for line in lines})


def test_it_serves_by_itself_what_the_repository_serves(
    bento: Path, served: tuple[httpx.Client, str], server: httpx.Client
) -> None:
    client, log = served
    assert client.get("/readyz").status_code == 200
    uses = [line.split(" uses ") for line in log.splitlines() if " uses " in line]
    own = {str(bento / "src" / floor / "__init__.py") for floor in FLOORS}
    processes = {process: {path for other, path in uses if other == process} for process, _ in uses}
    assert list(processes.values()) == [own, own], "the supervisor's and the worker's"
    boot = (ROOT / "docs" / "boot.png").read_bytes()
    answers = [
        each.post("/predict_image", content=boot, headers={"Content-Type": "image/png"}) for each in (client, server)
    ]
    assert answers[0].status_code == 200
    assert answers[0].json() == answers[1].json()
    for path in ("/ui", "/report", "/v2", "/docs.json", "/model"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.content == server.get(path).content, path


def _imports(path: Path) -> set[str]:
    """The packages that a module names, at its top or in a function."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.partition(".")[0]
        for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    }  # fmt: skip


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _with_dependencies(names: set[str]) -> set[str]:
    """Distributions of these names and all that they require here."""
    found: set[str] = set()
    while names:
        found |= names
        required = (Requirement(line) for name in names for line in metadata.requires(name) or ())
        named = {_normal(each.name) for each in required if not each.marker or each.marker.evaluate({"extra": ""})}
        names = named - found
    return found
