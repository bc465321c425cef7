"""The download command against a loopback server: resume, verification, licences, and files installed by hand."""

from __future__ import annotations

import hashlib
import io
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from inference.registry import DETECTORS
from models.loaders import Weights, record_card
from scripts import download_weights
from utils.exits import Exit

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /net.bin and knows what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None  # close the connection after so many bytes
        self.ignores_ranges = False
        self.redirect = ""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        assert self.headers["Accept-Encoding"] == "identity"
        if self.path == "/page":
            return self.answer(200, b"<html>sign in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if self.path == "/redirect":
            return self.answer(302, b"", {"Location": self.server.redirect})
        if self.path != "/net.bin":
            return self.answer(404, b"")
        start = 0 if wanted is None or self.server.ignores_ranges else int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(CONTENT):
            return self.answer(416, b"")
        return self.answer(206 if start else 200, CONTENT[start:])

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class ToLoopback(httpx.HTTPTransport):
    """Carries requests for https://weights.test to the loopback server, in plain."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self.port)
        return super().handle_request(request)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Command:
    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server

    def card(self, name: str = "net", **fields: object) -> None:
        fields = {"file": "net.bin", "url": "https://weights.test/net.bin", "page": "https://weights.test"} | fields
        record_card(name, fields, self.folder)

    def __call__(self, *arguments: str) -> int:
        transport = ToLoopback(self.server.server_address[1])
        return download_weights.main([*arguments, "--to", str(self.folder)], transport)

    @property
    def file(self) -> Path:
        return self.folder / "net.bin"

    @property
    def part(self) -> Path:
        return self.folder / "net.bin.part"


@pytest.fixture
def command(tmp_path: Path, server: Server) -> Command:
    command = Command(tmp_path, server)
    command.card(size=len(CONTENT), sha256=SHA256, licence="MIT", commercial=True)
    return command


def test_a_file_is_downloaded_verified_and_usable(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("net", "--yes") == 0
    assert command.file.read_bytes() == CONTENT
    assert not command.part.exists()
    assert Weights.at(command.folder).path("net") == command.file
    assert "verified and installed" in capsys.readouterr().out
    assert command("net", "--yes") == 0
    assert len(command.server.ranges) == 1, "what is installed is not downloaded again"


def test_a_broken_download_is_continued(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.server.cut_after = 300_000
    assert command("net", "--yes") == Exit.FAILED
    assert "fetch_failed" in capsys.readouterr().err
    assert not command.file.exists()
    have = command.part.stat().st_size
    assert 0 <= have <= 300_000
    command.part.write_bytes(CONTENT[:300_000])
    command.server.cut_after = None
    assert command("net", "--yes") == 0
    assert command.server.ranges == [None, "bytes=300000-"]
    assert command.file.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(command: Command) -> None:
    command.part.write_bytes(b"x" * 1000)
    command.server.ignores_ranges = True
    assert command("net", "--yes") == 0
    assert command.file.read_bytes() == CONTENT


def test_a_download_that_was_complete_is_only_verified(command: Command) -> None:
    command.part.write_bytes(CONTENT)
    assert command("net", "--yes") == 0
    assert command.server.ranges == []
    assert command.file.exists()


def test_a_complete_download_of_unknown_size_is_only_verified(command: Command) -> None:
    command.card(size=0)
    command.part.write_bytes(CONTENT)
    assert command("net", "--yes") == 0
    assert command.server.ranges == [f"bytes={len(CONTENT)}-"]


def test_corrupt_bytes_are_not_installed(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.part.write_bytes(b"x" * 1000)  # an earlier attempt left something else
    assert command("net", "--yes") == Exit.SETUP
    error = capsys.readouterr().err
    assert "weights_corrupt" in error
    assert SHA256 in error
    assert not command.file.exists()
    assert not command.part.exists(), "the next attempt starts clean"
    assert command("net", "--yes") == 0


def test_another_size_is_refused_before_it_is_downloaded(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.card(size=7)
    assert command("net", "--yes") == Exit.SETUP
    assert f"expected 7 bytes, https://weights.test/net.bin offers {len(CONTENT)}" in (
        capsys.readouterr().err.replace(f"http://127.0.0.1:{command.server.server_address[1]}", "https://weights.test")
    )
    assert not command.file.exists()


@pytest.mark.parametrize(
    ("path", "message", "status"),
    [
        ("page", "answered with a web page", Exit.SETUP),
        ("gone", "answered 404", Exit.FAILED),
        ("redirect", "is not https", Exit.FAILED),
    ],
)
def test_an_answer_that_is_not_the_file_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str], path: str, message: str, status: Exit
) -> None:
    command.server.redirect = "http://elsewhere.test/net.bin"
    command.card(url=f"https://weights.test/{path}")
    assert command("net", "--yes") == status
    assert message in capsys.readouterr().err
    assert not command.file.exists()


def test_a_plain_http_address_is_never_asked(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.card(url="http://weights.test/net.bin")
    assert command("net", "--yes") == Exit.FAILED
    assert "is not https" in capsys.readouterr().err
    assert command.server.ranges == []


@pytest.mark.parametrize("answer", ["", "n\n", "no\n", "\n"])
def test_nothing_is_downloaded_without_a_yes(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert command("net") == Exit.FAILED
    assert command.server.ranges == []
    shown = capsys.readouterr().out
    assert SHA256 in shown
    assert "MIT; commercial use allowed" in shown
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert command("net") == 0


def test_a_first_download_without_a_known_hash_is_recorded_and_held_to(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command.card(sha256="", size=0)
    assert command("net", "--yes") == 0
    assert "NOT VERIFIED" in capsys.readouterr().out
    recorded = tomllib.loads((command.folder / "weights.toml").read_text())["net"]
    assert recorded["sha256"] == SHA256
    assert recorded["size"] == len(CONTENT)
    assert recorded["licence"] == "MIT"
    assert Weights.at(command.folder).path("net") == command.file
    command.file.write_bytes(CONTENT[::-1])
    assert command("net", "--yes") == Exit.SETUP
    assert "weights_corrupt" in capsys.readouterr().err


def test_a_file_only_a_person_can_get_is_explained_and_installed_by_hand(
    command: Command, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    command.card(url="", page="https://drive.test/x")
    assert command("net") == Exit.FAILED
    shown = capsys.readouterr().out
    assert "https://drive.test/x" in shown
    assert "python -m scripts.download_weights net --from net.bin" in shown
    by_hand = tmp_path_factory.mktemp("downloads") / "file(1).bin"
    by_hand.write_bytes(CONTENT[:-1])
    assert command("net", "--from", str(by_hand)) == Exit.SETUP
    assert not command.file.exists()
    by_hand.write_bytes(CONTENT)
    assert command("net", "--from", str(by_hand)) == 0
    assert command.file.read_bytes() == by_hand.read_bytes() == CONTENT


@pytest.mark.parametrize("arguments", [("--from", "x"), ("net", "--from", "nowhere.bin"), ("ghostnet", "--from", "x")])
def test_a_file_by_hand_needs_one_card_and_a_file(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments) == Exit.SETUP


@pytest.mark.parametrize(("token", "told"), [("", "set HF_TOKEN"), ("hf_secret", "accept the licence at")])
def test_a_gated_file_says_what_it_needs_and_the_token_goes_to_the_hub_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("Authorization")))
        if request.url.path == "/refused":
            return httpx.Response(401)
        if request.url.host == "huggingface.co":
            return httpx.Response(302, headers={"location": "https://elsewhere.test/file"})
        return httpx.Response(200, content=CONTENT)

    for name in ("refused", "given"):
        card = {"file": f"{name}.bin", "url": f"https://huggingface.co/{name}", "page": "https://huggingface.co/page"}
        record_card(name, {**card, "sha256": SHA256, "commercial": True}, tmp_path)
    transport = httpx.MockTransport(answer)
    assert download_weights.main(["refused", "--yes", "--to", str(tmp_path)], transport) == Exit.FAILED
    error = capsys.readouterr().err
    assert told in error
    assert "https://huggingface.co/page" in error
    assert "hf_secret" not in error
    assert download_weights.main(["given", "--yes", "--to", str(tmp_path)], transport) == Exit.DONE
    sent = f"Bearer {token}" if token else None
    assert seen == [("huggingface.co", sent), ("huggingface.co", sent), ("elsewhere.test", None)]


def test_an_unknown_name_suggests_the_nearest(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fatfomer") == Exit.SETUP
    assert "did you mean 'fatformer'" in capsys.readouterr().err


def test_the_list_shows_every_card_and_downloads_nothing(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--list") == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in Weights.at(command.folder).cards)
    assert "NOT FOR COMMERCIAL USE" in shown
    assert command.server.ranges == []


def test_a_profile_means_its_cards(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--profile", "full", "--list") == 0
    listed = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    assert listed == {
        *("clip_b16", "clip_b16_graph", "clip_b16_graph_int8", "clip_b16_head"),
        *("effnet", "effnet_graph", "ghostnet", "ghostnet_graph", "dino_svm", "dinov2_base", "fatformer"),
        *("clip_h14", "clip_h14_text", "clip_bigg", "clip_bigg_text", "mantranet"),
        *("dinov3_head", "dinov3_base", "metaclip2_head", "metaclip2_h14", "siglip2_head", "siglip2_so400m"),
        *("pe_core_head", "pe_core_large"),
    }


def test_yes_does_not_stand_for_a_licence_that_a_profile_brought_along(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DETECTORS, "clip_b16", replace(DETECTORS["clip_b16"], model="net"))
    command.card(commercial=False, licence="research only")
    assert command("--profile", "embedded", "--yes") == Exit.FAILED
    assert command.server.ranges == []
    assert "net: research only; to accept that: python -m scripts.download_weights net --yes" in capsys.readouterr().out
    assert command("net", "--yes") == 0
    assert command.file.exists()


def test_recorded_cards_survive_awkward_values(tmp_path: Path) -> None:
    values = {"note": 'quote " backslash \\ line\nümläut 😀', "size": 3, "commercial": True}
    record_card("odd name.1", values, tmp_path)
    record_card("net", {"file": "x"}, tmp_path)
    assert tomllib.loads((tmp_path / "weights.toml").read_text(encoding="utf-8")) == {
        "odd name.1": values,
        "net": {"file": "x"},
    }
