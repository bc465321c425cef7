"""The ways to reach a server: an ACL user, TLS, Sentinel with a failover."""

import asyncio
import contextlib
import datetime
import re
import socket
import subprocess
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.worker.conftest import answered, eventually, results
from tests.worker.work import obedient
from utils.errors import BadSettings
from worker.embedded import EmbeddedServer, find_server
from worker.stream import Keys


def ports(count):
    """Free ports; a cluster's or sentinel's neighbours may take others meanwhile, so all at once."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def test_an_acl_user_with_the_documented_permissions_is_enough(db, server, run_worker):
    """Take, answer, retry, bury, and a producer's script."""
    page = (Path(__file__).parents[2] / "docs" / "worker.md").read_text()
    rules = re.search(r"ACL user needs `([^`]+)`", page)[1].replace("image_verify", "acl").split()
    db.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rules)
    keys, url = Keys("acl"), f"unix://worker:secret@{server.folder}/server.sock"
    for command in ("ok", "transient"):
        db.xadd(keys.streams[1], {"image": command, "job_id": command})

    async def look(service):
        found = await answered(service, server.url, keys, 2)
        await service.loop.queue.depth()
        await service.loop.queue.forget_consumers(0)
        return found

    found, _ = run_worker(obedient(), look, url, queue_prefix="acl", queue_attempts=2)
    assert found == {"ok": ["ok"], "transient": ["error"]}
    assert db.xlen(keys.dead) == 1
    with redis.Redis.from_url(url) as limited, pytest.raises(redis.exceptions.NoPermissionError):
        limited.get("other:key")


@pytest.fixture
def certificate(tmp_path):
    """For localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=2099))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_a_server_is_reached_by_tls_and_only_with_its_certificate(server, keys, run_worker, certificate):
    (port,) = ports(1)
    options = {"tls-port": port, "tls-cert-file": certificate[0], "tls-key-file": certificate[1]}
    options |= {"tls-ca-cert-file": certificate[0], "tls-auth-clients": "no"}
    own = EmbeddedServer(
        server.folder / "tls", *(str(part) for name, value in options.items() for part in (f"--{name}", value))
    )
    try:
        own.start()
    except BadSettings as error:
        pytest.skip(f"needs a server built with TLS: {error}")
    with contextlib.ExitStack() as stack:
        stack.callback(own.stop)
        db = stack.enter_context(redis.Redis.from_url(own.url))
        db.xadd(keys.streams[1], {"image": "ok", "job_id": "a"})
        url = f"rediss://localhost:{port}"
        run_worker(obedient(), lambda service: asyncio.sleep(1), url)  # its certificate is unknown
        assert db.xlen(keys.results) == 0
        found, _ = run_worker(
            obedient(), lambda service: answered(service, own.url, keys, 1), f"{url}?ssl_ca_certs={certificate[0]}"
        )
        assert found == {"a": ["ok"]}


def test_a_failover_by_sentinel_is_followed(server, keys, start_process):
    master_port, replica_port, sentinel_port = ports(3)
    folder = server.folder / "sentinel"
    folder.mkdir()
    patient = Retry(ConstantBackoff(0.05), 100, (redis.ConnectionError,))  # a sentinel cuts the clients off
    (folder / "sentinel.conf").write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor jobs 127.0.0.1 {master_port} 1\nsentinel down-after-milliseconds jobs 500\n"
    )
    local = ("--bind", "127.0.0.1")
    with (
        EmbeddedServer(server.folder / "one", "--port", str(master_port), *local) as master,
        EmbeddedServer(
            server.folder / "two", "--port", str(replica_port), *local, "--replicaof", "127.0.0.1", str(master_port)
        ) as replica,
        redis.Redis.from_url(replica.url, retry=patient) as survivor,
        redis.Redis.from_url(master.url) as db,
    ):
        eventually(lambda: survivor.info("replication")["master_link_status"] == "up")
        sentinel = subprocess.Popen(
            [find_server(), str(folder / "sentinel.conf"), "--sentinel"], stdout=subprocess.DEVNULL, cwd=folder
        )
        try:
            with redis.Redis(port=sentinel_port, retry=None) as watch:
                eventually(lambda: _replicas(watch) == 1)
            worker = start_process(f"redis+sentinel://127.0.0.1:{sentinel_port}/jobs/0")
            db.xadd(keys.streams[1], {"image": "ok", "job_id": "before"})
            eventually(lambda: results(survivor, keys) == {"before": ["ok"]})
            master.kill()
            eventually(lambda: survivor.info("replication")["role"] == "master", 30)
            survivor.xadd(keys.streams[1], {"image": "ok", "job_id": "after"})
            eventually(lambda: results(survivor, keys).get("after") == ["ok"], 30)
            assert worker.poll() is None
        finally:
            sentinel.kill()
            sentinel.wait()


def _replicas(sentinel):
    with contextlib.suppress(redis.RedisError):
        return len(sentinel.execute_command("SENTINEL", "REPLICAS", "jobs"))
    return 0
