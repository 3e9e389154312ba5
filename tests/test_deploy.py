"""docs/deploy.md and docs/grafana.json say what the code and a running server say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from service import access, metrics
from service.door import MAX_BODY_BYTES, UNLOGGED
from service.settings import PREFIX, Settings, load
from tests.command_line import ROOT
from training.data import FashionMNISTSplits

DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
FILES = ROOT / "docs" / "deploy"
KUBERNETES = FILES / "kubernetes.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())
NGINX = (FILES / "nginx.conf").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
OWN = re.compile(r"dropout_uncertainty_\w+")
GIVEN_BY_PROMETHEUS = {"job"}


def table(heading: str) -> list[list[str]]:
    """The cells of the first table of a chapter, without its head."""
    chapter = DEPLOY.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in chapter.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DEPLOY, re.DOTALL)


def bounds(schema: Mapping[str, Any]) -> str:
    """What a field allows, as its schema says."""
    if "anyOf" in schema:
        return ", ".join(filter(None, map(bounds, schema["anyOf"])))
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "boolean":
        return "`true`, `false`"
    if schema["type"] not in ("integer", "number"):
        return ""
    low = f"over {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else f"{schema['minimum']:g}"
    kind = "" if schema["type"] == "number" else "integer, "
    return f"{kind}{low} to {schema['maximum']:,.10g}"


def default(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, dict):
        return f"`{','.join(value)}`"
    return f"`{value}`" if value else "none"


def settings_rows() -> list[list[str]]:
    """The table of settings, from the code."""
    return [
        [
            f"`{PREFIX}{name.upper()}`",
            default(field.default),
            bounds(TypeAdapter(field.rebuild_annotation()).json_schema()),
            str(field.description),
        ]
        for name, field in Settings.model_fields.items()
    ]


@pytest.fixture(scope="module")
def samples(server: httpx.Client, fashion: FashionMNISTSplits) -> dict[str, tuple[str, set[str]]]:
    """The type and the labels of each series of our own that a live server has, after requests of all kinds."""
    images = fashion.test.pixels[:256].tolist()
    for strategy in ("mc_dropout", "weight_scaling"):
        assert server.post("/predict", json={"instances": images, "strategy": strategy}).status_code == 200
    assert server.post("/predict", json={"instances": []}).status_code == 400
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if OWN.fullmatch(sample.name):
                labels = found.setdefault(sample.name, (family.type, set()))[1]
                labels |= set(sample.labels)
    return found


def test_settings_are_those_of_the_code() -> None:
    assert table("Settings") == settings_rows()


def test_metrics_are_those_of_a_server(samples: dict[str, tuple[str, set[str]]]) -> None:
    expected = {
        name.removesuffix("_count"): (kind, labels)
        for name, (kind, labels) in samples.items()
        if not name.endswith(("_bucket", "_sum"))
    }
    rows = {name.strip("`"): (kind, set(re.findall(r"\w+", labels))) for name, kind, labels, _ in table("Metrics")}
    assert rows == expected
    assert all(meaning for *_, meaning in table("Metrics"))


def test_log_lines_are_those_of_a_server(server: httpx.Client, server_log: Path) -> None:
    request_id = f"deploy-{time.time_ns()}"
    body = (ROOT / "docs" / "boot.png").read_bytes()
    server.post("/predict_image", content=body, headers={"Content-Type": "image/png", "X-Request-ID": request_id})
    deadline = time.monotonic() + 10
    while request_id not in server_log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    (line,) = (json.loads(line) for line in server_log.read_text().splitlines() if request_id in line)
    assert [name.strip("`") for name, _ in table("Logs")] == list(line)


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel.get("targets", []))
    adapter, alerts = map(yaml.safe_load, blocks("yaml"))
    for group in alerts["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for rule in adapter["rules"]:
        yield rule["metricsQuery"].replace("{<<.LabelMatchers>>}", "").replace("<<.GroupBy>>", "job")


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_expressions_name_what_there_is(samples: dict[str, tuple[str, set[str]]], expression: str) -> None:
    named = OWN.findall(expression)
    assert named
    assert expression.count("(") == expression.count(")")
    labels = GIVEN_BY_PROMETHEUS.union(*(samples[name][1] for name in named))
    for grouping in re.findall(r"by \(([^)]*)\)", expression):
        assert set(grouping.split(", ")) <= labels
    for name, selector in re.findall(r"(dropout_uncertainty_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)[=!]~?\"", selector)) <= samples[name][1] | GIVEN_BY_PROMETHEUS
    for name in re.findall(r"(?:rate|increase)\((dropout_uncertainty_\w+)", expression):
        assert samples[name][0] in ("counter", "histogram")


def test_the_dashboard_shows_all_metrics(samples: dict[str, tuple[str, set[str]]]) -> None:
    shown = {name for panel in PANELS for target in panel.get("targets", []) for name in OWN.findall(target["expr"])}
    parts = re.compile(r"_(bucket|sum|count)$")
    assert {parts.sub("", name) for name in shown} == {parts.sub("", name) for name in samples}


def test_the_dashboards_panels_are_whole_and_in_their_places(samples: dict[str, tuple[str, set[str]]]) -> None:
    assert DASHBOARD["uid"] == "dropout-uncertainty"
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        for place in (panel["gridPos"] for panel in PANELS)
    ]
    assert all(0 <= x < 24 for taken in cells for x, _ in taken)
    assert not any(first & second for first, second in combinations(cells, 2))
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "model", "strategy"):
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"]).groups()  # type: ignore[union-attr]
        assert label in samples[metric][1] | GIVEN_BY_PROMETHEUS
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= {*variables, "__rate_interval"}
        legends = [set(re.findall(r"{{(\w+)}}", target["legendFormat"])) for target in panel["targets"]]
        for target, names in zip(panel["targets"], legends, strict=True):
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            assert names <= set(grouped.group(1).split(", ") if grouped else ())


class TestKubernetes:
    """The manifests are as the API wants them, and consistent with each other and with the service."""

    deployment, service, scaler, budget = yaml.safe_load_all(KUBERNETES.read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    @pytest.mark.parametrize("version", ["1.28", "1.37"])
    def test_schema(self, version: str) -> None:
        checked = validated_by("kubernetes-validate", "--strict", "-k", version, str(KUBERNETES))
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert checked.stderr.count("passed for resource") + checked.stdout.count("passed for resource") == 4

    def test_the_schema_sees_mistakes(self, tmp_path: Path) -> None:
        for right, wrong in (("minReplicas: 2", "minReplicas: two"), ("readOnlyRootFilesystem", "readOnlyFilesystem")):
            (tmp_path / "wrong.yaml").write_text(KUBERNETES.read_text().replace(right, wrong))
            assert validated_by("kubernetes-validate", "--strict", str(tmp_path / "wrong.yaml")).returncode != 0

    def test_names_and_ports(self) -> None:
        (port,) = self.container["ports"]
        assert f'"--port", "{port["containerPort"]}"' in (FILES / "Dockerfile").read_text()
        assert self.budget["spec"]["selector"]["matchLabels"] == self.service["spec"]["selector"]
        assert self.budget["spec"]["minAvailable"] < self.scaler["spec"]["minReplicas"]
        metadata = self.deployment["spec"]["template"]["metadata"]
        labels, served = metadata["labels"], self.service["spec"]["selector"]
        assert self.deployment["spec"]["selector"]["matchLabels"] == labels
        # A canary has another track, is counted apart, and answers beside it.
        assert labels == served | {"track": "stable"}
        assert self.service["spec"]["ports"][0]["targetPort"] == port["name"]
        assert self.scaler["spec"]["scaleTargetRef"]["name"] == self.deployment["metadata"]["name"]
        scrape = {name.partition("/")[2]: value for name, value in metadata["annotations"].items()}
        assert scrape == {"scrape": "true", "port": str(port["containerPort"]), "path": "/metrics"}

    def test_probes(self, server: httpx.Client) -> None:
        for kind, path in (("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/livez")):
            assert self.container[f"{kind}Probe"]["httpGet"] == {"path": path, "port": "http"}
            assert path in UNLOGGED & access.OPEN_PATHS & metrics.ROUTES
            assert server.get(path).status_code == 200

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            monkeypatch.delenv(name)
        for entry in self.container["env"]:
            monkeypatch.setenv(entry["name"], entry.get("value", ""))
        settings = load()
        # Else there would be variables named after the Service, which are no settings.
        assert self.pod["enableServiceLinks"] is False
        grace = self.pod["terminationGracePeriodSeconds"]
        assert grace > settings.drain_seconds + settings.timeout_seconds
        probe = self.container["readinessProbe"]
        assert settings.drain_seconds > probe["periodSeconds"] * probe["failureThreshold"]
        assert int(self.container["resources"]["requests"]["cpu"]) == settings.workers

    def test_what_is_written_has_a_place(self) -> None:
        assert self.container["securityContext"]["readOnlyRootFilesystem"]
        (mount,) = self.container["volumeMounts"]
        assert mount["mountPath"] == "/tmp"  # noqa: S108
        assert [volume["name"] for volume in self.pod["volumes"]] == [mount["name"]]
        (home,) = (entry["value"] for entry in self.container["env"] if entry["name"] == "BENTOML_HOME")
        assert home.startswith(mount["mountPath"] + "/")

    def test_it_scales_by_what_the_adapter_gives(self) -> None:
        adapter = yaml.safe_load(blocks("yaml")[0])
        (pods,) = (metric["pods"] for metric in self.scaler["spec"]["metrics"] if metric["type"] == "Pods")
        assert pods["metric"]["name"] == adapter["rules"][0]["name"]["as"]
        milliseconds = re.fullmatch(r"(\d+)m", pods["target"]["averageValue"])
        assert milliseconds
        assert f"A target of {milliseconds.group(1)} ms" in DEPLOY


def validated_by(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name(command), *arguments], capture_output=True, text=True, check=False
    )


class TestCompose:
    """The compose file is as the specification wants it, and consistent with nginx.conf and the service."""

    server = COMPOSE["services"]["server"]

    def test_schema(self, tmp_path: Path) -> None:
        check = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
        checked = validated_by(*check, str(FILES / "compose.yaml"))
        assert checked.returncode == 0, checked.stdout
        wrong = (FILES / "compose.yaml").read_text().replace("read_only:", "readonly:")
        (tmp_path / "compose.yaml").write_text(wrong)
        assert validated_by(*check, str(tmp_path / "compose.yaml")).returncode != 0

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            monkeypatch.delenv(name)
        for name, value in self.server["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{.*\}", "", value))
        settings = load()
        grace = re.fullmatch(r"(\d+)s", self.server["stop_grace_period"])
        assert grace
        assert int(grace.group(1)) > settings.drain_seconds + settings.timeout_seconds
        assert self.server["deploy"]["resources"]["limits"]["cpus"] == str(settings.workers)
        assert self.server["environment"]["BENTOML_HOME"].startswith(self.server["tmpfs"][0].partition(":")[0] + "/")

    def test_the_balancer_finds_the_servers(self) -> None:
        (port,) = self.server["expose"]
        assert f"server server:{port} " in NGINX
        assert f'"--port", "{port}"' in (FILES / "Dockerfile").read_text()
        assert f"127.0.0.1:{port}/readyz" in self.server["healthcheck"]["test"][-1]
        balancer = COMPOSE["services"]["balancer"]
        assert balancer["volumes"] == ["./nginx.conf:/etc/nginx/nginx.conf:ro"]
        assert balancer["ports"] == [f"{port}:{port}" for port in re.findall(r"listen (\d+);", NGINX)]

    def test_the_balancers_limits(self) -> None:
        assert f"client_max_body_size {MAX_BODY_BYTES >> 20}m;" in NGINX
        seconds = re.search(r"proxy_read_timeout (\d+)s", NGINX)
        assert seconds
        assert int(seconds.group(1)) > float(self.server["environment"]["DROPOUT_TIMEOUT_SECONDS"])


def test_a_keys_hash() -> None:
    line = blocks("sh")[0].strip().splitlines()[-1]
    done = subprocess.run(
        ["sh", "-c", line], env={**os.environ, "KEY": "a key"}, capture_output=True, text=True, check=True
    )
    assert Settings(api_keys=done.stdout.strip()) == Settings(api_keys="a key")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", DEPLOY):
        assert (ROOT / "docs" / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", DEPLOY, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", DEPLOY)) <= headings
