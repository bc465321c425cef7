"""What deploy/ names is what the code has. No container engine is needed, so nothing here is started."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from utils.settings import Settings, variables
from worker.metrics import Metrics
from worker.stream import Keys

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = {
    (each["kind"], each["metadata"]["name"]): each
    for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment", "img-ml-verify-worker"]["spec"]["template"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_metric_of_the_dashboard_is_exported():
    dashboard = json.loads((DEPLOY / "grafana" / "worker.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            shown |= set(re.findall(r"\bimgv_\w+", target["expr"]))
    exported, families = set(), set()
    for family in Metrics().registry.collect():
        families.add(family.name)
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        exported |= {family.name + suffix for suffix in suffixes}
    assert shown <= exported
    assert {name for name in families if not any(each.startswith(name) for each in shown)} == set()


def test_every_label_of_the_dashboard_is_exported():
    known = {label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())}
    text = (DEPLOY / "grafana" / "worker.json").read_text()
    used = set(re.findall(r"by \(([^)]*)\)", text))
    assert {name for group in used for name in group.split(", ")} <= known | {"le"}


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.*")), ids=lambda path: path.name)
def test_every_setting_named_exists(path):
    known = set(variables())
    assert set(re.findall(r"\bIMGV_[A-Z_]+", path.read_text())) <= known


def test_every_setting_given_is_in_range():
    given = [{each["name"]: each.get("value") for each in POD["spec"]["containers"][0]["env"]}]
    given.append(COMPOSE["services"]["worker"]["environment"])
    for each in given:
        values = {name[5:].lower(): value for name, value in each.items() if name.startswith("IMGV_")}
        Settings.of(**values)


def test_a_worker_has_time_to_drain_before_it_is_killed():
    pod = POD["spec"]
    env = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert pod["terminationGracePeriodSeconds"] >= float(env["IMGV_PIPELINE_DRAIN_SECONDS"]) + 10
    default = Settings.of().pipeline.drain_seconds
    assert float(COMPOSE["services"]["worker"]["stop_grace_period"].rstrip("s")) >= default + 10


def test_probes_and_scrapes_ask_the_port_and_pages_that_the_worker_serves():
    container = POD["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}
    port = int(env["IMGV_QUEUE_METRICS"].rpartition(":")[2])
    assert container["ports"] == [{"name": "metrics", "containerPort": port}]
    probed = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    service = (ROOT / "worker" / "service.py").read_text()
    assert all(f'"{path}"' in service for path in probed)
    scrape, drift = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    host, _, drift_port = drift["static_configs"][0]["targets"][0].partition(":")
    assert f"0.0.0.0:{drift_port}" in COMPOSE["services"][host]["entrypoint"]
    (names,) = scrape["dns_sd_configs"]
    assert names["port"] == port
    assert set(names["names"]) <= set(COMPOSE["services"])
    assert ("Service", names["names"][0]) in MANIFESTS


def test_the_scaler_watches_every_job_stream():
    triggers = MANIFESTS["ScaledObject", "img-ml-verify-worker"]["spec"]["triggers"]
    prefix = Settings.of().queue.prefix
    assert {each["metadata"]["stream"] for each in triggers} == set(Keys(prefix).streams)


def test_the_worker_runs_without_privileges():
    container, pod = POD["spec"]["containers"][0], POD["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert COMPOSE["services"]["worker"]["read_only"]
    user = re.search(r"^USER (\d+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert int(user[1]) == pod["securityContext"]["runAsUser"] > 0


def test_every_metric_of_the_alerts_is_exported():
    rules = yaml.safe_load((DEPLOY / "rules.yaml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"\bimgv_\w+", rule["expr"])}
    exported = (ROOT / "lifecycle" / "notify.py").read_text() + (ROOT / "lifecycle" / "drift.py").read_text()
    exported += (ROOT / "worker" / "metrics.py").read_text()
    assert {name for name in asked if f'"{name.removesuffix("_total")}"' not in exported} == set()


def test_retraining_runs_without_privileges_and_alone():
    job = MANIFESTS["CronJob", "img-ml-verify-retrain"]["spec"]
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["concurrencyPolicy"] == "Forbid"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    Settings.of(**{each["name"][5:].lower(): each["value"] for each in container["env"] if each["name"][:5] == "IMGV_"})
    copied = set(re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert {"lifecycle", "training", "golden", "api", "worker"} <= copied


def test_the_queue_of_the_compose_file_keeps_its_data():
    command = COMPOSE["services"]["queue"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_files_that_the_compose_file_mounts_exist():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_image_holds_everything_that_a_worker_imports():
    copied = set(re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    program = "import sys, worker.judge, inference.detector; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert "worker" in copied
    assert ours & set(done.stdout.split()) <= copied
