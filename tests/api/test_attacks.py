"""The bad files and addresses that tests/test_hostile.py and tests/ingress/test_fetch.py know, sent over HTTP."""

from __future__ import annotations

import time

import httpx
import pytest

from ingress.sandbox import DecodeChild
from tests.api.conftest import photo
from tests.test_hostile import black_png, gif_of

FILES = {
    "nothing": (b"", 400, "empty_input"),
    "text": (b"dear sir or madam\n", 415, "not_an_image"),
    "html": (b"<!DOCTYPE html><script>alert(1)</script>", 415, "not_an_image"),
    "noise": (bytes(range(256)), 415, "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", 415, "unsupported_format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "unsupported_format"),
    "pdf": (b"%PDF-1.7\n", 415, "unsupported_format"),
    "bomb": (black_png(20_000, 10_000), 422, "image_too_large"),
    "frames": (gif_of(4, 65_000), 422, "image_too_large"),
    "no pixels": (photo()[:200], 422, "undecodable"),
}
URLS = [
    "http://127.0.0.1/", "http://localhost/a.png", "http://0.0.0.0/", "http://[::1]/", "http://10.0.0.1/",
    "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://[fd00::1]/", "http://2130706433/",
    "http://0x7f.1/", "http://[::ffff:127.0.0.1]/", "http://user:pass@93.184.216.34/", "http://93.184.216.34:22/",
    "http://metadata.google.internal/",
]  # fmt: skip
NO_URLS = ["file:///etc/passwd", "ftp://example.org/a.png", "gopher://127.0.0.1/", "data:image/png;base64,aaaa", "//a"]


@pytest.fixture(scope="module")
def client(live):
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_gets_one_coded_refusal(client, name):
    raw, status, code = FILES[name]
    answers = [
        client.post("/v1/verify", files={"file": (f"../../{name}.png", raw)}),
        client.post("/v1/verify", content=raw, headers={"Content-Type": "image/png"}),
        client.post("/classify", files={"file": raw}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "\n" not in answer.json()["detail"]


def test_strangers_files_are_decoded_in_a_child_process(serve, monkeypatch):
    decoded = []
    decode = DecodeChild.decode
    monkeypatch.setattr(DecodeChild, "decode", lambda *args: decoded.append(args[2]) or decode(*args))

    async def work(client):
        return await client.post("/v1/verify", files={"file": ("photo.jpg", photo())})

    assert serve(work).status_code == 200
    assert decoded == ["photo.jpg"]


@pytest.mark.parametrize("url", URLS)
def test_an_address_that_is_not_public_is_not_fetched(client, url):
    for path in ("/v1/verify", "/classify_url"):
        answer = client.post(path, json={"url": url})
        assert (answer.status_code, answer.json()["code"]) == (422, "url_refused")


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_web_address_is_a_bad_request(client, url):
    answer = client.post("/v1/verify", json={"url": url})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_batch_of_attacks_spares_the_photograph_between_them(client):
    files = [("file", (name, raw)) for name, (raw, _, _) in FILES.items()]
    answer = client.post("/v1/verify/batch", files=[*files, ("file", ("photo.jpg", photo()))])
    codes = {line["source"]: line.get("error", {}).get("code") for line in map(httpx.Response.json, _lines(answer))}
    assert codes == {name: code for name, (_, _, code) in FILES.items()} | {"photo.jpg": None}


def _lines(answer: httpx.Response) -> list[httpx.Response]:
    return [httpx.Response(200, text=line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(
    "name", ["a\r\nX-Evil: 1.png", "\x1b[31mred.png", "<script>.png", "a" * 1000, "..", "\u202egnp.exe"]
)
def test_a_file_name_is_a_name_and_nothing_more(client, name):
    verdict = client.post("/v1/verify", files={"file": (name, photo())}).json()
    assert verdict["source"].isprintable()
    assert len(verdict["source"]) <= 200
    assert "/" not in verdict["source"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/verify/batch", b'{"images":[' + b"{}," * 3_000_000 + b"{}]}"),
        ("/v1/verify", b"{" + b",".join(b'"o%d":1' % number for number in range(500_000)) + b"}"),
        ("/v1/verify", b"[" * 1_000_000),
    ],
    ids=["items", "options", "depth"],
)
def test_json_of_millions_of_parts_is_refused_before_it_is_taken_apart(client, path, body):
    """Each part would cost an object and an error: some 100 times the body's size."""
    began = time.process_time()  # the server is a thread of this process
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert "parts" in answer.json()["detail"]
    assert time.process_time() - began < 2
