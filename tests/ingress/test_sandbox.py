"""The decoding child: same answers as in process, and what happens when it dies, lies or is asked too much."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ingress import sandbox
from ingress.decode import Limits, decode
from ingress.sandbox import DecodeChild, decode_in_child
from tests.pictures import encode
from utils.contracts import Sample
from utils.errors import BadSettings, DecoderKilled, EmptyInput, ImageTooLarge, NotAnImage, UnsupportedFormat

LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 25, max_frames=4, max_animation_pixels=1 << 22)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc need Linux")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((160, 106))


@pytest.fixture(scope="module")
def jpeg(photo: Image.Image) -> bytes:
    return encode(photo, "JPEG")


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeChild]:
    with DecodeChild(memory_mb=1024, seconds=20) as child:
        yield child


def process_of(child: DecodeChild) -> subprocess.Popen[bytes]:
    assert child.process is not None
    return child.process


def test_the_child_answers_as_decode_does(child: DecodeChild, photo: Image.Image, jpeg: bytes) -> None:
    translucent = photo.convert("RGBA")
    translucent.putalpha(90)
    frames = [photo.rotate(10 * number) for number in range(5)]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for raw in (jpeg, jpeg[:-1000], jpeg + b"tail", encode(translucent, "PNG"), animated):
        here, there = decode(raw, "name", LIMITS), child.decode(raw, "name", LIMITS)
        assert np.array_equal(here.rgb, there.rgb)
        assert (here.alpha is None) == (there.alpha is None)
        assert here.alpha is None or there.alpha is None or np.array_equal(here.alpha, there.alpha)
        assert all(np.array_equal(a, b) for a, b in zip(here.frames, there.frames, strict=True))
        names = [field.name for field in fields(Sample) if field.name not in ("rgb", "alpha", "frames")]
        assert [getattr(here, name) for name in names] == [getattr(there, name) for name in names]


def test_errors_come_back_as_themselves_and_the_child_lives_on(child: DecodeChild, jpeg: bytes) -> None:
    child.decode(jpeg, "", LIMITS)
    before = process_of(child).pid
    cases = {b"": EmptyInput, b"hello": NotAnImage, b"%PDF-1.4": UnsupportedFormat}
    for raw, error in cases.items():
        with pytest.raises(error):
            child.decode(raw, "", LIMITS)
    with pytest.raises(ImageTooLarge, match="160 x 106"):
        child.decode(jpeg, "", Limits(1 << 24, 100, 4, 100))
    child.decode(jpeg, "", LIMITS)
    assert process_of(child).pid == before


def test_a_child_out_of_memory_is_an_answer_and_the_next_image_gets_a_fresh_one(jpeg: bytes) -> None:
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS is enforced on Linux only")
    large = encode(Image.new("RGB", (8000, 4000)), "PNG")
    with DecodeChild(memory_mb=200, seconds=20) as child:
        with pytest.raises(DecoderKilled, match="IMGV_DECODE_MEMORY_MB"):
            child.decode(large, "", LIMITS)
        assert child.decode(jpeg, "", LIMITS).width == 160


def test_a_slow_image_is_killed_on_time(photo: Image.Image, jpeg: bytes) -> None:
    large = encode(Image.new("RGB", (8000, 4000)), "PNG")
    with DecodeChild(memory_mb=1024, seconds=0.05) as child:
        with pytest.raises(DecoderKilled, match=r"longer than 0\.05 s"):
            child.decode(large, "", LIMITS)
        child.seconds = 20
        assert child.decode(jpeg, "", LIMITS).width == 160


def test_a_crashed_child_is_reported_and_replaced(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with DecodeChild(memory_mb=1024, seconds=20) as child:
        child.decode(jpeg, "", LIMITS)
        os.kill(process_of(child).pid, signal.SIGSTOP)
        crash = threading.Timer(0.2, os.kill, (process_of(child).pid, signal.SIGSEGV))
        resume = threading.Timer(0.3, os.kill, (process_of(child).pid, signal.SIGCONT))
        crash.start()
        resume.start()
        with pytest.raises(DecoderKilled, match="SIGSEGV"):
            child.decode(jpeg, "", LIMITS)
        crash.join()
        resume.join()
        assert child.decode(jpeg, "", LIMITS).width == 160


def test_a_child_that_died_between_images_is_replaced_silently(jpeg: bytes) -> None:
    with DecodeChild(memory_mb=1024, seconds=20) as child:
        child.decode(jpeg, "", LIMITS)
        process_of(child).kill()
        process_of(child).wait()
        assert child.decode(jpeg, "", LIMITS).width == 160


def test_the_child_is_recycled(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "IMAGES_PER_CHILD", 2)
    with DecodeChild(memory_mb=1024, seconds=20) as child:
        pids = []
        for _ in range(4):
            child.decode(jpeg, "", LIMITS)
            pids.append(process_of(child).pid)
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_closing_ends_the_child_and_a_later_image_starts_another(jpeg: bytes) -> None:
    child = DecodeChild(memory_mb=1024, seconds=20)
    child.close()
    child.decode(jpeg, "", LIMITS)
    process = process_of(child)
    child.close()
    assert process.returncode is not None
    assert child.decode(jpeg, "", LIMITS).width == 160
    child.close()


def test_one_image_needs_no_pool(jpeg: bytes) -> None:
    assert decode_in_child(jpeg, "name", LIMITS, 1024, 20).source == "name"


def test_threads_share_a_child(child: DecodeChild, jpeg: bytes) -> None:
    widths: list[int] = []
    work = [threading.Thread(target=lambda: widths.append(child.decode(jpeg, "", LIMITS).width)) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert widths == [160] * 8


@ON_LINUX
def test_too_little_memory_to_start_is_a_setup_error(jpeg: bytes) -> None:
    with pytest.raises(BadSettings, match="IMGV_DECODE_MEMORY_MB"), DecodeChild(memory_mb=1, seconds=5) as child:
        child.decode(jpeg, "", LIMITS)


@ON_LINUX
def test_a_child_whose_start_is_interrupted_does_not_live_on(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupt(pipe: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append(start(*args, **more)) or started[-1])
    monkeypatch.setattr(sandbox, "_read_header", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_in_child(jpeg, "x", LIMITS, 1024, 10)
    assert started[0].returncode == -signal.SIGKILL


def test_the_child_is_confined_and_gets_no_secrets(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGV_API_KEY", "secret")
    with DecodeChild(memory_mb=1024, seconds=20) as child:
        child.decode(jpeg, "", LIMITS)
        folder = Path(f"/proc/{process_of(child).pid}")
        limits = {line[:24].strip(): line[24:].split()[0] for line in (folder / "limits").read_text().splitlines()}
        assert limits["Max address space"] == str(1024 << 20)
        assert limits["Max file size"] == limits["Max core file size"] == "0"
        assert "NoNewPrivs:\t1" in (folder / "status").read_text()
        assert b"secret" not in (folder / "environ").read_bytes()


def test_the_child_ends_when_its_parent_is_gone(jpeg: bytes) -> None:
    script = (
        "import sys, time; from ingress.sandbox import DecodeChild; from ingress.decode import Limits\n"
        "child = DecodeChild(1024, 20); child.decode(bytes.fromhex(sys.argv[1]), '', Limits(1<<24, 1<<25, 4, 1<<22))\n"
        "print(child.process.pid, flush=True); time.sleep(60)"
    )
    small = encode(Image.new("RGB", (8, 8)), "PNG").hex()
    with subprocess.Popen([sys.executable, "-c", script, small], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if sys.platform == "linux" and "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return  # ended; nobody has collected it yet
        threading.Event().wait(0.05)
    pytest.fail("the child outlived its parent")


GOOD = {
    "format": "PNG", "mode": "RGB", "orientation": 1, "frame_count": 1, "trailing_bytes": 0, "truncated": False,
    "missing": 0.0, "top": 0, "picture_height": 2, "warnings": [], "height": 2, "width": 2, "alpha": False, "frames": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"height": 1 << 40},
        {"height": -1},
        {"width": 1 << 25},
        {"width": 2.0},
        {"height": True},
        {"frames": 1000},
        {"frames": 3, "height": 1 << 12, "width": 1 << 12},
        {"orientation": 9},
        {"missing": 1.5},
        {"missing": float("nan")},
        {"top": 1},
        {"picture_height": 1},
        {"trailing_bytes": 10**6},
        {"mode": "\x1b[2J"},
        {"format": "x" * 1000},
        {"warnings": ["x"] * 1000},
        {"warnings": "text"},
        {"error": "image_too_large", "message": "two\nlines"},
        b"[]",
        b"not JSON",
        b"[" * 60000,
        b"\xff\xfe",
        (1 << 60),
    ],
)
def test_nonsense_from_the_child_is_not_believed(
    lie: dict[str, object] | bytes | int, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(GOOD | lie).encode() if isinstance(lie, dict) else lie if isinstance(lie, bytes) else b""
    answer = struct.pack(">Q", lie if isinstance(lie, int) else len(body)) + body + bytes(12)
    script = f"import sys; sys.stdin.buffer.read(10); sys.stdout.buffer.write({answer!r}); sys.stdout.flush()"
    script += "; sys.stdin.buffer.read()"  # it must not be gone while the image is still being written to it
    liar = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
    )
    monkeypatch.setattr(sandbox, "start_child", lambda memory_mb, seconds: liar)
    with DecodeChild(memory_mb=1024, seconds=20) as child, pytest.raises(DecoderKilled, match="nonsense"):
        child.decode(jpeg[:100], "", LIMITS)
