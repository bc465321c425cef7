"""What a request gets: verdicts, jobs, batches, artifacts, and the names that older clients know."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import get_args

import httpx
import jsonschema
import pytest

from api.local import LocalBackend
from inference.verdict_cache import FROM_CACHE
from tests.api.conftest import LiveServer, Watched, local_app, photo, settings_of
from tests.fakes import flat_png
from utils.contracts import GRADES, Tier


def upload(raw: bytes, name: str = "photo.png") -> dict[str, tuple[str, bytes]]:
    return {"file": (name, raw)}


def events_of(text: str) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]


def test_every_way_to_send_an_image_gives_the_same_verdict(serve):
    raw = flat_png()

    async def work(client):
        encoded = {"image_base64": base64.b64encode(raw).decode(), "filename": "a/b/photo.png"}
        return [
            await client.post("/v1/verify", files=upload(raw)),
            await client.post("/v1/verify", json=encoded),
            await client.post(
                "/v1/verify", json=encoded | {"image_base64": "data:image/png;base64," + encoded["image_base64"]}
            ),
            await client.post("/v1/verify", content=raw, headers={"Content-Type": "image/png"}),
        ]

    answers = serve(work)
    assert [answer.status_code for answer in answers] == [200] * 4
    verdicts = [answer.json() for answer in answers]
    assert [verdict["source"] for verdict in verdicts] == ["photo.png", "photo.png", "photo.png", "upload"]
    assert len({verdict["sha256"] for verdict in verdicts}) == 1
    assert {verdict["label"] for verdict in verdicts} == {"AI"}


def test_a_verdict_is_what_the_published_schema_says(serve):
    async def work(client):
        asked = await client.post("/v1/verify", files=upload(photo()), data={"stability": "1"})
        return asked.json(), (await client.get("/v1/schema")).json()

    verdict, schema = serve(work)
    jsonschema.validate(verdict, schema)


def test_whether_a_verdict_holds_is_asked_in_the_query_the_form_or_the_json(serve):
    encoded = {"image_base64": base64.b64encode(flat_png()).decode()}

    async def work(client):
        asked = [
            await client.post("/v1/verify", files=upload(flat_png()), params={"stability": True}),
            await client.post("/v1/verify", files=upload(flat_png()), data={"stability": "true"}),
            await client.post("/v1/verify", json=encoded | {"stability": True}),
            await client.post("/v1/verify/batch", json={"images": [encoded] * 2, "stability": True}),
            await client.post("/v1/verify/batch", files=upload(flat_png()), data={"stability": "true"}),
        ]
        return asked, (await client.post("/v1/verify", files=upload(flat_png()))).json()

    asked, plain = serve(work)
    verdicts = [answer.json() for answer in asked[:3]]
    verdicts += [json.loads(line)["verdict"] for answer in asked[3:] for line in answer.text.splitlines()]
    assert len(verdicts) == 6
    for verdict in verdicts:
        assert list(verdict["stability"]["probabilities"]) == ["as_is", "web", "hard", "crop", "enlarged"]
    assert plain["stability"] is None


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"json": {}}, "give one of"),
        ({"json": {"url": "https://a.org/", "image_base64": "aaaa"}}, "give one of"),
        ({"json": {"image_base64": "not base64!"}}, "not base64"),
        ({"json": {"url": "file:///etc/passwd"}}, "not an http"),
        ({"json": {"path": "/etc/passwd"}}, "path"),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, "recursion|JSON"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, "text/plain"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ({"files": {"other": ("a", b"x")}}, "call it `file`"),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))]}, "form"),
        ({"data": {"artifacts": "1"}, "files": {}}, "urlencoded"),
        ({"files": upload(b"x"), "data": {"artifacts": ["1", "0"]}}, "stands twice"),
        ({"files": upload(b"x"), "data": {"threshold": "0"}}, "threshold"),
        ({"files": upload(b"x"), "params": {"wait_seconds": "-1"}}, "wait_seconds"),
        ({"files": upload(b"x"), "params": {"unknown": "1"}}, "unknown"),
    ],
)
def test_a_request_that_is_none_of_ours_is_told_why(serve, request_, detail):
    async def work(client):
        return await client.post("/v1/verify", **request_)

    answer = serve(work)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "bad_request"
    assert problem["status"] == 400
    assert problem["request_id"] == answer.headers["x-request-id"]

    assert re.search(detail, problem["detail"]), problem["detail"]


def test_a_job_goes_through_its_stages_to_the_verdict(serve):
    async def work(client):
        taken = await client.post("/v1/verify", files=upload(flat_png()), params={"async": True, "artifacts": True})
        events = await client.get(taken.json()["links"]["events"])
        return taken, events, await client.get(taken.headers["location"])

    taken, events, job = serve(work)
    assert taken.status_code == 202
    assert taken.json()["status"] == "running"
    assert events.headers["content-type"].startswith("text/event-stream")
    told = events_of(events.text)
    assert [data["stage"] for name, data in told if name == "stage"] == [
        *("queued", "decoding", "judging", "reporting", "done")
    ]
    assert told[-1] == ("verdict", job.json()["verdict"])
    assert job.json()["status"] == "done"


def test_the_deadline_of_a_wait_gives_the_job_and_the_job_goes_on(serve, verifier):
    async def work(client):
        verifier.free.clear()
        late = await client.post("/v1/verify", files=upload(flat_png()), params={"wait_seconds": 0.05})
        verifier.free.set()
        events = await client.get(late.json()["links"]["events"])
        return late, events_of(events.text)[-1]

    late, last = serve(work)
    assert late.status_code == 202
    assert last[0] == "verdict"


def test_a_failed_job_says_so_with_the_code(serve):
    async def work(client):
        taken = await client.post("/v1/verify", files=upload(b"dear sir"), data={"async": "true"})
        events = await client.get(taken.json()["links"]["events"])
        return events_of(events.text)[-1], (await client.get(taken.headers["location"])).json()

    (name, error), job = serve(work)
    assert (name, error["code"]) == ("error", "not_an_image")
    assert job["status"] == "failed"
    assert job["error"]["code"] == "not_an_image"
    assert job["verdict"] is None


@pytest.mark.parametrize("path", ["", "/events"])
def test_an_unknown_job_is_not_found(serve, path):
    async def work(client):
        return await client.get(f"/v1/jobs/{'0' * 32}{path}")

    answer = serve(work)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_images_of_different_requests_are_judged_together(serve, verifier):
    async def work(client):
        verifier.free.clear()
        first = asyncio.create_task(client.post("/v1/verify", files=upload(flat_png(1))))
        while not verifier.batches:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(client.post("/v1/verify", files=upload(flat_png(n)))) for n in range(2, 7)]
        while "judging 5" not in f"judging {await judging(client)}":
            await asyncio.sleep(0.02)
        verifier.free.set()
        return await asyncio.gather(first, *rest)

    async def judging(client):
        text = (await client.get("/metrics")).text
        decoded = next(line for line in text.splitlines() if 'stage_seconds_count{stage="decoding"}' in line)
        return int(float(decoded.split()[-1])) - 1

    answers = serve(work)
    assert {answer.status_code for answer in answers} == {200}
    assert verifier.batches == [1, 5]
    assert [answer.json()["fusion_prob"] for answer in answers] == sorted(a.json()["fusion_prob"] for a in answers)


def test_one_image_that_breaks_the_models_spares_the_others(serve, caplog):
    judge = Watched(error=ValueError("secret path /root"), fails_on="bad.png")

    async def work(client):
        files = [("file", (name, flat_png())) for name in ("good.png", "bad.png", "fine.png")]
        return await client.post("/v1/verify/batch", files=files), await client.post(
            "/v1/verify", files=upload(flat_png(), "bad.png")
        )

    batch, single = serve(work, judge)
    lines = {line["source"]: line for line in map(json.loads, batch.text.splitlines())}
    assert lines["good.png"]["verdict"]
    assert lines["fine.png"]["verdict"]
    assert lines["bad.png"]["error"]["code"] == "internal"
    assert single.status_code == 500
    assert "secret" not in single.text
    assert "secret" in caplog.text


# --------------------------------------------------------------------------------------------------------------- batch


def test_a_batch_answers_for_every_image(serve):
    files = [
        ("file", ("one.png", flat_png())),
        ("file", ("letter.txt", b"dear sir")),
        ("file", ("two.png", flat_png())),
    ]

    async def work(client):
        return await client.post("/v1/verify/batch", files=files)

    answer = serve(work)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = sorted(map(json.loads, answer.text.splitlines()), key=lambda line: line["index"])
    assert [(line["index"], line["source"]) for line in lines] == [(0, "one.png"), (1, "letter.txt"), (2, "two.png")]
    assert [line.get("error", {}).get("code") for line in lines] == [None, "not_an_image", None]


def test_a_batch_in_json_mixes_addresses_and_files(serve):
    images = [{"image_base64": base64.b64encode(flat_png()).decode()}, {"url": "http://127.0.0.1/a.png"}, {}]

    async def work(client):
        return await client.post("/v1/verify/batch", json={"images": images})

    lines = sorted(map(json.loads, serve(work).text.splitlines()), key=lambda line: line["index"])
    assert lines[0]["verdict"]["label"] == "AI"
    assert [line["error"]["code"] for line in lines[1:]] == ["url_refused", "bad_request"]


def test_a_batch_larger_than_the_server_waits_for_room(serve):
    async def work(client):
        files = [("file", (f"{n}.png", flat_png(n))) for n in range(12)]
        return await client.post("/v1/verify/batch", files=files)

    lines = [json.loads(line) for line in serve(work, pipeline_max_jobs=2).text.splitlines()]
    assert sum("verdict" in line for line in lines) == 12


def test_a_batch_answers_while_it_works(verifier):
    verifier.free.clear()
    app = local_app(settings_of(), verifier)
    files = [("file", ("slow.png", flat_png())), ("file", ("letter.txt", b"dear sir"))]
    with LiveServer(app) as server, httpx.stream("POST", f"{server.url}/v1/verify/batch", files=files) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["source"] == "letter.txt"
        verifier.free.set()
        assert json.loads(next(lines))["source"] == "slow.png"


def test_a_bug_on_one_image_of_a_batch_spares_the_others(serve, monkeypatch, caplog):
    submit = LocalBackend.submit

    async def breaks(self, image, **asked):
        if image.source == "bad.png":
            raise KeyError("secret")
        return await submit(self, image, **asked)

    monkeypatch.setattr(LocalBackend, "submit", breaks)

    async def work(client):
        files = [("file", (name, flat_png())) for name in ("bad.png", "good.png")]
        return await client.post("/v1/verify/batch", files=files), await client.post(
            "/v1/verify", files=upload(flat_png(), "bad.png")
        )

    batch, single = serve(work)
    codes = {line["source"]: line.get("error", {}).get("code") for line in map(json.loads, batch.text.splitlines())}
    assert codes == {"bad.png": "internal", "good.png": None}
    assert (single.status_code, single.json()["code"]) == (500, "internal")
    assert single.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in batch.text + single.text


@pytest.mark.parametrize("request_", [{"json": {"images": []}}, {"json": {"images": [{}] * 3}}, {"content": b"x"}])
def test_a_batch_has_a_size(serve, request_):
    async def work(client):
        return await client.post("/v1/verify/batch", **request_)

    assert serve(work, api_batch_images=2).status_code == 400


# ----------------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_are_attachments_that_no_browser_runs(live):
    with httpx.Client(base_url=live.url, timeout=60) as client:
        verdict = client.post("/v1/verify", files=upload(photo()), params={"artifacts": True}).json()
        assert {"ela", "preview", "report"} <= verdict["artifacts"].keys()
        got = {name: client.get(path) for name, path in verdict["artifacts"].items()}
        for name, answer in got.items():
            assert answer.headers["content-disposition"].startswith("attachment")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert answer.headers["content-type"].startswith(
                {"preview": "image/jpeg", "report": "text/html"}.get(name, "image/png")
            )
        assert got["ela"].content.startswith(b"\x89PNG")
        home = verdict["artifacts"]["ela"].rpartition("/")[0]
        for name in ("verdict.json", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/passwd", "ela", ".", "nul%00"):
            assert client.get(f"{home}/{name}").status_code == 404
        assert "/tmp" not in json.dumps(verdict)


def test_artifacts_are_made_only_when_asked_for(serve):
    async def work(client):
        return (await client.post("/v1/verify", files=upload(flat_png()))).json()

    assert serve(work)["artifacts"] == {}


def test_answers_and_their_artifacts_expire(serve):
    async def work(client):
        verdict = (await client.post("/v1/verify", files=upload(flat_png()), params={"artifacts": True})).json()
        addresses = [f"/v1/jobs/{verdict['job_id']}", verdict["artifacts"]["report"]]
        before = [(await client.get(address)).status_code for address in addresses]
        await asyncio.sleep(0.6)
        return before, [(await client.get(address)).status_code for address in addresses]

    assert serve(work, api_keep_seconds=0.5) == ([200, 200], [404, 404])


# --------------------------------------------------------------------------------------------- aliases, and the server


def test_the_names_that_older_clients_know_answer_in_short(serve):
    async def work(client):
        return [
            (await client.post("/classify", files=upload(flat_png(250)))).json(),
            (await client.post("/predict", files={"image": ("a.png", flat_png(250))})).json(),
            (await client.post("/classify_url", json={"url": "http://10.0.0.1/"})).json(),
            (await client.get("/health")).json(),
            (await client.get("/model_info")).json(),
        ]

    classified, predicted, refused, health, info = serve(work)
    assert classified == {"classification": "fake", "confidence": pytest.approx(1, abs=0.01)}
    assert (predicted["prediction"], predicted["tier"]) == ("AI", "inconclusive")  # too flat to carry a tier
    assert predicted["probability"] == pytest.approx(1, abs=0.01)
    assert (refused["code"], refused["error"]) == ("url_refused", refused["detail"])
    assert health["status"] == "ok"
    assert info["model"] == "img_ml_verify"
    assert 0 < info["threshold"] < 1


def test_the_same_bytes_are_answered_again_where_the_operator_keeps_verdicts(serve, verifier, tmp_path):
    async def work(client):
        asked = {"files": upload(flat_png())}
        return [
            (await client.post("/v1/verify", **asked)).json(),
            (await client.post("/v1/verify", **asked)).json(),
            (await client.post("/v1/verify", **asked, params={"artifacts": True})).json(),
        ]

    first, again, report = serve(work, pipeline_cache=str(tmp_path / "verdicts"))
    assert [FROM_CACHE in each["warnings"] for each in (first, again, report)] == [False, True, False]
    assert again["fusion_prob"] == first["fusion_prob"]
    assert again["job_id"] != first["job_id"]
    assert len(verifier.batches) == 2


def test_the_server_says_what_judges_and_what_is_missing(serve):
    async def work(client):
        return (await client.get("/v1/models")).json()

    models = serve(work)
    assert models["profile"] == "embedded"
    assert models["runs"] == "in process"
    detectors = {each["name"]: each for each in models["detectors"]}
    assert detectors["clip_b16"]["enabled"]
    assert not detectors["fatformer"]["enabled"]
    for each in detectors.values():
        assert each["available"] == (not each["reason"])
        assert all({"sha256", "licence", "install"} <= file.keys() for file in each["weights"])


def test_the_server_gives_the_words_and_the_order_of_everything_a_verdict_can_say(serve):
    async def work(client):
        verdict = (await client.post("/v1/verify", files=upload(flat_png()))).json()
        return verdict, (await client.get("/v1/models")).json()

    verdict, models = serve(work)
    assert models["tiers"]["inconclusive"] == "inconclusive"
    assert set(models["tiers"]) == set(models["tier_meanings"]) == set(get_args(Tier))
    assert tuple(models["grades"]) == GRADES[::-1]
    assert all(grade["name"] and grade["meaning"] for grade in models["grades"].values())
    assert models["numbers"] == [name for name in verdict if name in models["numbers"]]
    assert len(models["numbers"]) == 9


def test_health_readiness_and_metrics(serve):
    async def work(client):
        await client.post("/v1/verify", files=upload(flat_png()))
        return [await client.get(path) for path in ("/healthz", "/readyz", "/metrics")]

    health, ready, metrics = serve(work)
    assert health.json()["status"] == ready.json()["status"] == "ok"
    assert 'imgv_api_requests_total{method="POST",route="/v1/verify",status="200"} 1.0' in metrics.text
    assert 'imgv_api_jobs_total{outcome="done"} 1.0' in metrics.text


def test_models_that_do_not_come_back_make_the_server_unready(serve, verifier):
    async def work(client):
        verifier.free.clear()
        await client.post("/v1/verify", files=upload(flat_png()), params={"async": True})
        while not verifier.batches:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        stuck = await client.get("/readyz")
        verifier.free.set()
        return stuck

    answer = serve(work, pipeline_stuck_seconds=0.01)
    assert answer.status_code == 503
    assert "restart" in answer.json()["reason"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/v1/schema", "/openapi.json", "/v1/jobs/unknown"])
def test_head_answers_as_get_does_without_the_body(serve, path):
    async def work(client):
        return await client.get(path), await client.head(path)

    got, head = serve(work)
    assert head.status_code == got.status_code
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.content == b""


def test_head_of_a_job_its_events_and_its_artifacts_answers_as_get_does(serve):
    async def work(client):
        taken = await client.post("/v1/verify", files={"file": flat_png()}, params={"artifacts": True})
        paths = [f"/v1/jobs/{taken.json()['job_id']}", *taken.json()["artifacts"].values()]
        return [(path, await client.get(path), await client.head(path)) for path in (*paths, f"{paths[0]}/events")]

    answers = serve(work)
    assert len(answers) > 3
    for path, got, head in answers:
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"], path
        assert head.headers.get("content-length") == got.headers.get("content-length"), path


def test_head_is_not_a_way_to_post(serve):
    assert serve(lambda client: client.head("/v1/verify")).status_code == 405
