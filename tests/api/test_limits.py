"""Who may call, how much, and what leaves the server with every answer."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from api import limits
from api.__main__ import main
from api.limits import KeyRing, RateLimiter, caller_of, new_key
from api.problems import RateExceeded, coded
from tests.api.conftest import LiveServer, Watched, local_app, settings_of
from tests.fakes import flat_png
from utils.errors import BadSettings, InputError, Internal, TransientError, classes_by_code

PNG = {"file": ("photo.png", flat_png())}


def post(**request):
    async def work(client):
        return await client.post("/v1/verify", **(request or {"files": PNG}))

    return work


# ----------------------------------------------------------------------------------------------------------------- keys


def test_without_a_known_key_nothing_is_judged(serve):
    key, digest = new_key()
    ring = f"alice={digest},bob={'0' * 64}"

    async def work(client):
        wrong = [{}, {"X-API-Key": "imgv_wrong"}, {"Authorization": f"Basic {key}"}, {"X-API-Key": digest}]
        right = [{"X-API-Key": key}, {"Authorization": f"bearer {key}"}]
        return [
            [await client.post("/v1/verify", files=PNG, headers=headers) for headers in each] for each in (wrong, right)
        ]

    refused, judged = serve(work, api_keys=ring)
    assert {answer.status_code for answer in judged} == {200}
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/", 200), ("/static/page.js", 200), ("/healthz", 200), ("/readyz", 200), ("/v1/schema", 200)),
        *(("/v1/models", 401), ("/metrics", 401), ("/v1/jobs/0", 401), ("/v1/verdicts/0/artifacts/ela.png", 401)),
    ],
)
def test_the_page_and_the_probes_need_no_key(serve, path, status):
    async def work(client):
        return (await client.get(path)).status_code

    assert serve(work, api_keys=f"alice={'0' * 64}") == status


def test_every_key_is_compared_whichever_fits(monkeypatch):
    key, digest = new_key()
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    ring = KeyRing({"first": digest, "second": "1" * 64})
    assert ring.name_of(httpx.Headers({"x-api-key": key})) == "first"
    assert compared == [digest, "1" * 64]


def test_a_new_key_is_printed_once_and_only_its_hash_is_a_setting(capsys):
    assert main(["--new-key", "alice"]) == 0
    key, name, digest = re.search(r"(imgv_\S+)\n.*(alice)=(\w{64})", capsys.readouterr().out).groups()
    assert KeyRing({name: digest}).name_of(httpx.Headers({"x-api-key": key})) == "alice"
    assert main(["--new-key", "two words"]) == 4


# ---------------------------------------------------------------------------------------------------------------- rates


def test_above_the_rate_the_answer_says_when_to_come_back(serve):
    async def work(client):
        return [await client.post("/v1/verify", files=PNG) for _ in range(4)]

    answers = serve(work, api_rate_per_minute=3)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert 15 <= int(answers[-1].headers["retry-after"]) <= 20


def test_each_key_has_its_own_rate(serve):
    keys = [new_key() for _ in range(2)]
    ring = ",".join(f"k{n}={digest}" for n, (_, digest) in enumerate(keys))

    async def work(client):
        send = [keys[0][0], keys[0][0], keys[1][0]]
        return [(await client.post("/v1/verify", files=PNG, headers={"X-API-Key": key})).status_code for key in send]

    assert serve(work, api_keys=ring, api_rate_per_minute=1) == [200, 429, 200]


def test_a_batch_costs_as_much_as_its_images(serve):
    async def work(client):
        files = [("file", ("a.png", flat_png()))] * 3
        return [(await client.post("/v1/verify/batch", files=files)).status_code for _ in range(3)]

    assert serve(work, api_rate_per_minute=5) == [200, 200, 429]


def test_asking_whether_a_verdict_holds_costs_as_much_as_its_work(serve):
    async def work(client):
        files = [("file", ("a.png", flat_png()))] * 2
        held = {"data": {"stability": "1"}}
        return [
            (await client.post("/v1/verify", files=PNG, **held)).status_code,
            (await client.post("/v1/verify", files=PNG)).status_code,
            (await client.post("/v1/verify/batch", files=files, **held)).status_code,
            (await client.post("/v1/verify", files=PNG)).status_code,
        ]

    assert serve(work, api_rate_per_minute=10) == [200, 200, 200, 429]
    assert serve(work, api_rate_per_minute=5)[1] == 429


def test_tokens_come_back_with_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limiter = RateLimiter(60)
    limiter.take("a")
    limiter.charge("a", 59)
    with pytest.raises(RateExceeded) as refused:
        limiter.take("a")
    assert refused.value.seconds == pytest.approx(1)
    now[0] = 1.0
    limiter.take("a")


def test_of_too_many_callers_the_one_that_called_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(limits.time, "monotonic", lambda: 0.0)
    limiter = RateLimiter(1, most_callers=2)
    limiter.take("a")
    limiter.take("b")
    for known in ("a", "b"):
        with pytest.raises(RateExceeded):
            limiter.take(known)
    limiter.take("c")
    limiter.take("a")
    with pytest.raises(RateExceeded):
        limiter.take("c")


def test_an_ipv6_customer_cannot_change_his_address_to_get_more():
    first, second = ({"client": (f"2001:db8:1:2::{n}", 1)} for n in (1, 2))
    assert caller_of(first) == caller_of(second)
    assert caller_of({"client": ("198.51.100.1", 1)}) == "198.51.100.1"
    assert caller_of({}) == "local"


# ----------------------------------------------------------------------------------------------------------------- size


def test_a_body_that_announces_too_much_is_refused_unread(serve):
    sent = []

    async def body():
        sent.append(1)
        yield b"x"

    answer = serve(post(content=body(), headers={"Content-Length": "999999999", "Content-Type": "image/png"}))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")
    assert not sent


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=b"])
def test_a_body_without_a_length_is_cut_off_while_it_streams(serve, kind):
    sent = []

    async def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            sent.append(1)
            yield bytes(10_000)

    answer = serve(post(content=endless(), headers={"Content-Type": kind}), max_bytes=100_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")
    assert len(sent) < 30


def test_an_image_over_the_limit_within_a_small_enough_body_is_refused(serve):
    answer = serve(post(files={"file": ("a.png", bytes(110_000))}), max_bytes=100_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")


def test_a_body_that_trickles_is_given_up(serve):
    async def slow():
        yield b"x"
        await asyncio.sleep(5)
        yield b"x"

    began = time.monotonic()
    answer = serve(post(content=slow(), headers={"Content-Type": "image/png"}), api_upload_seconds=0.2)
    assert answer.status_code == 400
    assert "too long" in answer.json()["detail"]
    assert time.monotonic() - began < 4


def test_more_requests_than_the_server_takes_are_sent_away_for_a_while(serve, verifier):
    async def work(client):
        verifier.free.clear()
        first = asyncio.create_task(client.post("/v1/verify", files=PNG))
        while not verifier.batches:
            await asyncio.sleep(0.01)
        refused = [await client.post("/v1/verify", files=PNG), await client.post("/classify", files=PNG)]
        verifier.free.set()
        return refused, await first

    refused, first = serve(work, pipeline_max_jobs=1)
    assert first.status_code == 200
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) > 0


def test_jobs_that_nobody_waits_for_count_too(serve, verifier):
    async def work(client):
        verifier.free.clear()
        answers = [await client.post("/v1/verify", files=PNG, params={"async": True}) for _ in range(3)]
        verifier.free.set()
        return [answer.status_code for answer in answers]

    assert serve(work, pipeline_max_jobs=2) == [202, 202, 503]


def test_more_bytes_than_memory_is_meant_for_are_sent_away(serve, verifier):
    async def work(client):
        verifier.free.clear()
        bulky = {"file": ("photo.png", flat_png() + bytes(700_000))}
        answers = [await client.post("/v1/verify", files=bulky, params={"async": True}) for _ in range(2)]
        verifier.free.set()
        return [answer.status_code for answer in answers]

    assert serve(work, pipeline_max_mb=1) == [202, 503]


def test_bodies_that_arrive_together_share_one_budget(serve):
    async def work(client):
        waiting = asyncio.Event()

        async def half_sent():
            yield bytes(600_000)
            await waiting.wait()

        async def whole():
            yield bytes(600_000)

        kind = {"Content-Type": "image/png"}
        first = asyncio.create_task(client.post("/v1/verify", content=half_sent(), headers=kind))
        await asyncio.sleep(0.05)
        second = await client.post("/v1/verify", content=whole(), headers=kind)
        waiting.set()
        after = await first, await client.post("/v1/verify", content=whole(), headers=kind)
        return second, *after

    second, first, third = serve(work, max_bytes=700_000, pipeline_max_mb=1, api_batch_mb=1)
    assert (second.status_code, second.json()["code"]) == (503, "queue_full")
    assert [first.status_code, third.status_code] == [415, 415]


def test_an_upload_that_the_disk_has_no_room_for_is_sent_away_for_a_while(serve, monkeypatch, caplog):
    """Large files of a form are kept in temporary files while they arrive."""

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    answer = serve(post(files={"file": ("a.png", flat_png() + bytes(2_000_000))}))
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert "No space left" in caplog.text


# ---------------------------------------------------------------------------------------------------------- other sites


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://[broken"])
def test_a_page_of_another_site_cannot_make_us_work(serve, origin):
    answer = serve(post(files=PNG, headers={"Origin": origin}))
    assert answer.status_code == 400
    assert "IMGV_API_ORIGINS" in answer.json()["detail"]


def test_our_own_page_and_listed_sites_may_call(serve):
    async def work(client):
        own = await client.post("/v1/verify", files=PNG, headers={"Origin": "http://127.0.0.1"})
        friend = {"Origin": "https://friend.example"}
        asked = {**friend, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        return (
            own,
            await client.options("/v1/verify", headers=asked),
            await client.post("/v1/verify", files=PNG, headers=friend),
        )

    own, preflight, friend = serve(work, api_origins="https://friend.example/")
    assert own.status_code == preflight.status_code == friend.status_code == 200
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.evil.example", "[", ""])
def test_a_name_that_merely_points_here_is_not_answered(serve, host):
    answer = serve(post(files=PNG, headers={"Host": host}))
    assert answer.status_code == 400
    assert "IMGV_API_HOSTS" in answer.json()["detail"]


def test_a_listed_name_is_answered(serve):
    assert serve(post(files=PNG, headers={"Host": "img.example:8000"}), api_hosts="img.example").status_code == 200


# -------------------------------------------------------------------------------------- what leaves with each answer


@pytest.mark.parametrize("path", ["/", "/static/page.css", "/healthz", "/v1/jobs/0", "/nothing", "/metrics"])
def test_every_answer_carries_the_security_headers(serve, path):
    async def work(client):
        return await client.get(path, headers={"X-Request-ID": "my-id.1"})

    headers = serve(work).headers
    assert headers["x-request-id"] == "my-id.1"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_request_id_that_could_forge_a_log_line_is_replaced(serve):
    async def work(client):
        return [await client.get("/healthz", headers={"X-Request-ID": bad}) for bad in ("a b", "x" * 65, "a;b", "")]

    for answer in serve(work):
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"],
)
def test_no_path_leads_out_of_the_page(live, path):
    assert httpx.get(live.url + path).status_code == 404


def test_a_method_that_a_page_does_not_have_is_told(serve):
    async def work(client):
        return await client.put("/v1/verify")

    answer = serve(work)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["code"] == "bad_request"


def test_the_access_log_has_neither_names_nor_ids_nor_queries(serve, caplog):
    caplog.set_level(logging.INFO, "api.access")

    async def work(client):
        secret = {"file": ("my-secret-name.png", flat_png())}
        job = (await client.post("/v1/verify?async=true", files=secret)).json()
        await client.get(job["links"]["self"] + "?token=hunter2")
        return job["job_id"]

    job_id = serve(work)
    lines = [record for record in caplog.records if record.name == "api.access"]
    assert [line.getMessage() for line in lines] == ["POST /v1/verify", "GET /v1/jobs/{job_id}"]
    assert [line.status for line in lines] == [202, 200]
    told = " ".join(str(vars(line)) for line in lines)
    for private in ("my-secret-name", "hunter2", job_id):
        assert private not in told


def test_every_fault_of_a_caller_or_of_the_world_has_a_status_of_its_own():
    for code, cls in classes_by_code().items():
        if cls.__module__ != InputError.__module__:  # another test's double
            continue
        if code in (
            "no_capacity",
            "cloud_failed",
            "copy_differs",
            "cluster_unreachable",
        ):  # of command lines that no request reaches
            continue
        own = issubclass(cls, (InputError, TransientError)) and cls is not Internal
        assert ("http_status" in vars(cls)) == own, code
        assert type(coded(code, "text")) is cls
    assert type(coded("a code from the future", "text")) is Internal
    assert Internal.http_status == BadSettings.http_status == 500


# --------------------------------------------------------------------------------------------------- real connections


def test_a_large_upload_to_a_real_server_is_answered_before_it_is_sent(serve):
    with LiveServer(local_app(settings_of(max_bytes=100_000), Watched())) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as peer:
            head = f"POST /v1/verify HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/png\r\n"
            peer.sendall(f"{head}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode())
            assert peer.recv(100).startswith(b"HTTP/1.1 413")


def test_the_server_refuses_to_start_on_a_broken_setting(monkeypatch, capsys):
    monkeypatch.setenv("IMGV_API_KEYS", "no hash")
    assert main([]) == 4
    assert "IMGV_API_KEYS" in capsys.readouterr().err
