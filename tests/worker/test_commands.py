"""The command lines and pages, as an operator meets them."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from tests.worker.conftest import answered, eventually
from tests.worker.work import obedient
from utils.errors import BadSettings, QueueFull
from utils.settings import Settings
from worker import __main__ as command
from worker import admin, submit
from worker.connect import connect
from worker.embedded import EmbeddedServer, find_url, is_running
from worker.logs import configure_worker_logging
from worker.service import build_service


@pytest.fixture
def environment(monkeypatch, server, prefix):
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("IMGV_QUEUE_PREFIX", prefix)


def dead_job(db, keys, run_worker, server, job_id="poor"):
    db.xadd(keys.streams[1], {"image": "bug", "job_id": job_id})
    run_worker(obedient(), lambda s: answered(s, server.url, keys, 1), queue_attempts=2)


def test_dead_letters_are_listed_shown_replayed_and_purged(db, keys, server, run_worker, environment, capsys):
    dead_job(db, keys, run_worker, server)
    assert admin.main(["dead", "list"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["dead.job_id"], listed["dead.attempts"]) == ("poor", "2")
    assert admin.main(["dead", "show", listed["id"]]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "bug"
    assert admin.main(["dead", "replay", listed["id"]]) == 0
    assert db.xlen(keys.dead) == 0
    assert db.get(keys.verdict("poor")) is None
    ((_, fields),) = db.xrange(keys.streams[1])
    assert fields == {b"image": b"bug", b"job_id": b"poor"}
    run_worker(obedient(), lambda s: answered(s, server.url, keys, 2), queue_attempts=2)
    assert admin.main(["dead", "purge", "--all"]) == 0
    assert db.xlen(keys.dead) == 0
    assert admin.main(["dead", "show", "1-1"]) == 3


def test_names_and_addresses_that_are_no_text_are_submitted(start_process, environment, capsysbinary, tmp_path):
    start_process()
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(b"ok")
    inputs = [os.fsdecode(odd), os.fsdecode(b"https://host.org/\xe9.png"), "data:image/png;base64,b2s="]
    assert submit.main([*inputs, "--json"]) == 3
    answers = list(map(json.loads, capsysbinary.readouterr().out.splitlines()))
    refused = [each["error"] for each in answers if "error" in each]
    assert [each["code"] for each in refused] == ["bad_message"]
    assert "UTF-8" in refused[0]["message"]
    assert len(answers) == 3


def test_status_tells_what_waits_and_who_works(db, keys, server, run_worker, environment, capsys):
    assert admin.main(["status"]) == 0
    assert json.loads(capsys.readouterr().out) == {"streams": {}, "unusable": {}, "dead": 0, "results": 0, "aside": 0}
    db.xadd(keys.streams[0], {"image": "sleep 1", "job_id": "a"})
    db.xadd(keys.streams[1], {"image": "ok"})

    async def look(service):
        while not service.loop.held:
            await asyncio.sleep(0.01)
        async with connect(server.url) as client:
            return await admin.status(client, keys)

    told, _ = run_worker(obedient(), look, pipeline_max_jobs=1)
    high, normal = (told["streams"][keys.streams[number]] for number in (0, 1))
    assert (high["waiting"], high["pending"]) == (0, 1)
    assert (normal["waiting"], normal["pending"]) == (1, 0)
    assert sum(each["pending"] for each in high["consumers"].values()) == 1


def test_submit_sends_bytes_and_waits_for_every_answer(keys, start_process, environment, capsys, tmp_path):
    start_process()
    (tmp_path / "folder").mkdir()
    for number in range(40):  # more than one window
        (tmp_path / "folder" / f"{number}.png").write_bytes(b"ok")
    assert submit.main(["--json", str(tmp_path / "folder")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert submit.main([str(tmp_path / "missing.png")]) == 3
    assert "file_not_found" in capsys.readouterr().out
    assert submit.main(["https://host.org/a.png", "--priority", "high", "--json"]) == 0


def test_what_submit_is_asked_for_is_in_the_job(db, keys, start_process, environment, tmp_path):
    (tmp_path / "a.png").write_bytes(b"ok")
    asked = [str(tmp_path / "a.png"), "--stability", "--profile", "embedded", "--json"]
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(submit.main, asked)
        eventually(lambda: db.xlen(keys.streams[1]) == 1)
        ((_, fields),) = db.xrange(keys.streams[1])
        start_process()  # only now: what was answered is gone from the stream
        assert code.result(60) == 0
    assert (fields[b"stability"], fields[b"profile"]) == (b"1", b"embedded")


def test_submit_refuses_above_the_limit(db, keys, environment, monkeypatch, capsys, tmp_path):
    (tmp_path / "a.png").write_bytes(b"ok")
    monkeypatch.setenv("IMGV_QUEUE_MAX_WAITING", "3")
    for _ in range(3):
        db.xadd(keys.streams[1], {"image": "ok"})
    assert submit.main([str(tmp_path / "a.png")]) == 3
    assert "queue_full" in capsys.readouterr().err
    assert db.xlen(keys.streams[1]) == 3


def test_a_job_is_added_once_however_often_it_is_sent(server, keys):
    async def main():
        async with connect(server.url) as client:
            given = Settings.of(queue_prefix=keys.prefix, queue_max_waiting=1).queue
            states = [await submit.enqueue(client, given, "a", {"image": "x"}) for _ in range(3)]
            assert await client.xlen(keys.streams[1]) == 1
            with pytest.raises(QueueFull):
                await submit.enqueue(client, given, "b", {"image": "x"})
            return states

    assert asyncio.run(main()) == ["queued", "known", "known"]


def test_the_pages_tell_metrics_health_and_readiness(db, keys, server, run_worker, unused_port):
    db.xadd(keys.streams[1], {"image": "ok"})
    base = f"http://127.0.0.1:{unused_port}"

    def get(path):
        with urllib.request.urlopen(base + path, timeout=5) as page:
            return page.read().decode()

    async def look(service):
        await answered(service, server.url, keys, 1)
        return [await asyncio.to_thread(get, path) for path in ("/metrics", "/healthz", "/readyz")]

    (metrics, health, ready), _ = run_worker(obedient(), look, queue_metrics=f"127.0.0.1:{unused_port}")
    assert (health, ready) == ("ok\n", "ok\n")
    assert 'imgv_jobs_total{outcome="ok"} 1.0' in metrics
    assert f'imgv_jobs_waiting{{stream="{keys.streams[1]}"}} 0.0' in metrics
    assert "imgv_resident_bytes" in metrics


def test_readiness_falls_when_the_server_is_gone_and_health_does_not(own_server, keys, run_worker, unused_port):
    def status(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}{path}", timeout=5) as page:
                return page.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def look(service):
        own_server.kill()
        async with asyncio.timeout(10):
            while await asyncio.to_thread(status, "/readyz") == 200:
                await asyncio.sleep(0.1)
        return [await asyncio.to_thread(status, path) for path in ("/healthz", "/metrics", "/none")]

    found, _ = run_worker(
        obedient(), look, own_server.url, queue_metrics=f"127.0.0.1:{unused_port}", pipeline_drain_seconds=0
    )
    assert found == [200, 200, 404]


@pytest.fixture
def unused_port():
    for port in range(20_000 + os.getpid() % 10_000, 32_000):  # a cluster's bus takes the port 10,000 above
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def test_an_embedded_server_keeps_its_data_and_dies_with_its_parent(server, tmp_path):
    folder = server.folder / "own"  # a short path
    program = (
        "import sys, time; from pathlib import Path; from worker.embedded import EmbeddedServer;"
        "server = EmbeddedServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    assert folder.stat().st_mode & 0o777 == 0o700
    with redis.Redis.from_url(f"unix://{folder}/server.sock") as db:
        db.set("kept", 1)
    assert find_url("", folder) == f"unix://{folder}/server.sock"
    with pytest.raises(BadSettings, match="already runs"):
        EmbeddedServer(folder).start()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not is_running(folder))
    eventually(lambda: not _alive(pid))
    with EmbeddedServer(folder) as again, redis.Redis.from_url(again.url) as db:
        assert db.get("kept") == b"1"
    with pytest.raises(BadSettings, match="REDIS_URL"):
        find_url("", folder)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_a_server_the_worker_says_what_to_do(monkeypatch, capsys):
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert command.main([]) == 4
    assert "--embedded" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://host", "redis+sentinel://host:26379", "nonsense"])
def test_a_bad_url_is_named(url):
    with pytest.raises(BadSettings, match="REDIS_URL"):
        connect(url)


def test_cluster_needs_a_hash_tag():
    with pytest.raises(BadSettings, match="hash tag"):
        build_service(Settings.of(), "redis+cluster://127.0.0.1:1")


def test_a_wrong_password_stops_the_start(server, settings):
    with redis.Redis.from_url(server.url) as db:
        db.acl_setuser("someone", enabled=True, passwords=["+right"], keys=["*"], categories=["+@all"])
    service = build_service(Settings.of(**settings), f"unix://someone:wrong@{server.folder}/server.sock", obedient())
    with pytest.raises(BadSettings, match="refuses"):
        asyncio.run(service.run())


def test_a_single_node_cluster_runs_the_same_scripts(server, settings, run_worker, unused_port):
    folder = server.folder / "cluster"
    with EmbeddedServer(
        folder, "--port", str(unused_port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"
    ) as node, redis.Redis.from_url(node.url) as db:  # fmt: skip
        db.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        eventually(lambda: b"cluster_state:ok" in db.execute_command("CLUSTER", "INFO"))
        db.xadd("{q}:jobs", {"image": "ok", "job_id": "a"})
        db.xadd("{q}:jobs", {"image": "transient", "job_id": "b"})

        async def wait(service):
            async with asyncio.timeout(15):
                while db.xlen("{q}:results") < 2:
                    await asyncio.sleep(0.02)

        run_worker(obedient(), wait, f"redis+cluster://127.0.0.1:{unused_port}", queue_prefix="{q}", queue_attempts=2)
        assert {fields[b"status"] for _, fields in db.xrange("{q}:results")} == {b"ok", b"error"}
        assert db.xlen("{q}:dead") == 1


def test_the_json_log_carries_the_job(capsys):
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        configure_worker_logging("INFO", as_json=True)
        logging.getLogger("worker").info("did %s", "it", extra={"job_id": "a\nb"})
        event = json.loads(capsys.readouterr().err)
        configure_worker_logging("INFO", as_json=False)
        logging.getLogger("worker").info("did %s", "it", extra={"job_id": "a\nb"})
        text = capsys.readouterr().err
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    assert (event["message"], event["job_id"], event["level"]) == ("did it", "a\nb", "INFO")
    assert text.endswith("did it (job_id=a\\x0ab)\n")


def test_the_text_log_leaves_the_record_as_it_is_for_others(caplog, capsys):
    """Whoever else listens (another handler, a test) reads what was logged, not how one handler writes it."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        configure_worker_logging("INFO", as_json=False)
        root.addHandler(caplog.handler)
        logging.getLogger("worker").info("did %s", "it", extra={"job_id": "a"})
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    assert "did it (job_id=a)" in capsys.readouterr().err
    (record,) = [each for each in caplog.records if each.name == "worker"]
    assert (record.msg, record.args, record.getMessage()) == ("did %s", ("it",), "did it")


def test_the_worker_command_starts_a_server_and_stops_on_sigterm(server, tmp_path, prefix):
    """The whole command line, except that no fusion artifact need be installed: then it says so and ends with 4."""
    folder = server.folder / "cli"
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "--embedded"],
        env=os.environ | {"IMGV_QUEUE_EMBEDDED_DIR": str(folder), "IMGV_DEVICE": "cpu"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stderr.readline()
        while line and not line.startswith(("ready", "fusion", "weights", "bad")):
            line = process.stderr.readline()
        if not line.startswith("ready"):
            assert process.wait(20) == 4
            pytest.skip(f"needs the shipped fusion artifact: {line.strip()}")
        with redis.Redis.from_url(f"unix://{folder}/server.sock") as db:
            db.xadd("image_verify:jobs", {"image": b"<html>", "job_id": "a"})
            eventually(lambda: db.get("image_verify:verdict:a"), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert not is_running(folder)
