"""Decoding in a child process, so that a hostile file can cost at most its own answer.

It does not know how to decode (ingress/decode.py does) and does not trust the child: what comes back is a short JSON
header, the metadata as JSON and raw pixels over a pipe, checked here; never pickle. The child gets the bytes, no
settings and no secrets.

Memory is capped by RLIMIT_AS (macOS does not enforce it), time by a wall clock with SIGKILL and by RLIMIT_CPU. The
child cannot write files, gain privileges (Linux) or, unless HEIC is installed, start processes. PR_SET_PDEATHSIG is
left out on purpose: it fires when the *thread* that started the child ends, and would kill the child of a thread pool.
End of input does its work: a child whose parent is gone reads EOF, or fails to write, and exits. Windows has none of
these limits but the wall clock, which is said when the first child is made.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from ingress.decode import Limits, decode
from utils.contracts import Json, Metadata, Sample
from utils.errors import (
    BadSettings,
    DecoderKilled,
    EmptyInput,
    ImageTooLarge,
    InputError,
    NotAnImage,
    TooManyBytes,
    Undecodable,
    UnsupportedFormat,
)

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

IMAGES_PER_CHILD = 500  # leaks and fragmentation end with the child; starting one takes about 0.3 s
_START_SECONDS = 60.0
_HEADER_BYTES = 1 << 16
_METADATA_BYTES = 1 << 26  # ingress.metadata reads 8 Mi characters at most; escaped, the worst of them take 6 bytes
_LENGTH = struct.Struct(">Q")
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

# What the child may need to find its libraries. Everything else in our environment, keys and tokens above all, is not
# for a process that reads hostile files.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "SYSTEMROOT")

_ERRORS: dict[str, type[InputError]] = {
    error.code: error
    for error in (
        EmptyInput,
        TooManyBytes,
        NotAnImage,
        UnsupportedFormat,
        ImageTooLarge,
        Undecodable,
        DecoderKilled,
    )
}


def decode_in_child(raw: bytes, source: str, limits: Limits, memory_mb: int, seconds: float) -> Sample:
    """Decode one image in a child of its own; for many, keep a DecodeChild."""
    with DecodeChild(memory_mb, seconds) as child:
        return child.decode(raw, source, limits)


class DecodeChild:
    """One long-lived decoding process, started at the first image, replaced after a kill; threads may share it.

    ``process`` is the one that runs, None when none does; ``seconds`` holds from the next image on.
    """

    def __init__(self, memory_mb: int, seconds: float) -> None:
        """
        Args:
            memory_mb: address space of the child, in MiB; Python, numpy and Pillow themselves take about 200.
            seconds: wall time for one image.
        """
        if resource is None:
            _say_what_is_missing()
        self._memory_mb = memory_mb
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._answered = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child; a later decode starts a fresh one."""
        with self._lock:
            self._stop()

    def decode(self, raw: bytes, source: str, limits: Limits) -> Sample:
        """As ingress.decode.decode, with the same errors.

        Raises:
            DecoderKilled: the child went over its memory or time, crashed, or answered nonsense.
            BadSettings: no child can start within the memory limit.
        """
        with self._lock:
            process = self._running()
            expired = threading.Event()
            alarm = threading.Timer(self.seconds, _kill, (process, expired))
            alarm.start()
            try:
                sample = _exchange(process, raw, source, limits)
            except DecoderKilled:
                self._stop()
                raise
            except (OSError, EOFError) as error:
                self._stop()
                raise DecoderKilled(_cause(process, expired.is_set(), self.seconds, self._memory_mb)) from error
            except BaseException as error:
                if not isinstance(error, InputError):  # e.g. KeyboardInterrupt, half-way through an answer
                    self._stop()
                raise
            finally:
                alarm.cancel()
                self._answered += 1
            return sample

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None and (self.process.poll() is not None or self._answered >= IMAGES_PER_CHILD):
            self._stop()
        if self.process is None:
            self.process = start_child(self._memory_mb, self.seconds)
            self._answered = 0
        return self.process

    def _stop(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        _end(process)


@functools.cache  # once in a process, however many children it has
def _say_what_is_missing() -> None:
    log.warning(
        "this system has no resource limits: a decoding child is bounded by IMGV_DECODE_SECONDS, not by"
        " IMGV_DECODE_MEMORY_MB"
    )


def start_child(memory_mb: int, seconds: float) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = environment["MALLOC_ARENA_MAX"] = "1"
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-B", "-m", "ingress.sandbox", str(memory_mb), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # decoders print there what a hostile file makes them print
        bufsize=0,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the parent, which then stops us
    )
    alarm = threading.Timer(_START_SECONDS, process.kill)
    alarm.start()
    try:
        _read_header(_pipe(process.stdout))
    except BaseException as error:  # Ctrl-C too: nobody else knows the child yet
        _end(process)
        if isinstance(error, OSError | EOFError):
            needs = f"{memory_mb} MiB (IMGV_DECODE_MEMORY_MB) and {_START_SECONDS:g} s"
            raise BadSettings(f"no decoder starts within {needs}; allow it more memory") from error
        raise
    finally:
        alarm.cancel()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _kill(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    process.kill()


def _cause(process: subprocess.Popen[bytes], expired: bool, seconds: float, memory_mb: int) -> str:
    code = process.wait()
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if expired or name == "SIGXCPU":
        return f"decoding took longer than {seconds:g} s (IMGV_DECODE_SECONDS)"
    if name == "SIGKILL":
        return f"the decoder was killed, probably for memory; it may use {memory_mb} MiB (IMGV_DECODE_MEMORY_MB)"
    return f"the decoder crashed ({name})"


# ----------------------------------------------------------------------------------------- the pipe, seen by the parent


def _exchange(process: subprocess.Popen[bytes], raw: bytes, source: str, limits: Limits) -> Sample:
    """Send one file, receive its pixels."""
    to_child, from_child = _pipe(process.stdin), _pipe(process.stdout)
    _write_header(to_child, {"limits": asdict(limits), "bytes": len(raw)})
    _write(to_child, raw)
    answer = _read_header(from_child)
    if not isinstance(answer, dict):
        raise _nonsense("header")
    if "error" in answer:
        error = _ERRORS.get(str(answer["error"]), DecoderKilled)
        raise error(_line(answer.get("message")))
    height = _integer(answer, "height", 1, limits.max_pixels)
    width = _integer(answer, "width", 1, limits.max_pixels // height)
    whole = _integer(answer, "picture_height", height, limits.max_pixels // width)
    frames = _integer(answer, "frames", 0, limits.max_frames - 1)
    if frames and (1 + frames) * height * width > limits.max_pixels:
        raise _nonsense("frames")
    lines = answer.get("warnings")
    if not isinstance(lines, list) or len(lines) > 16:
        raise _nonsense("warnings")
    return Sample(
        source=source,
        raw=raw,
        metadata=_read_metadata(from_child),
        rgb=_read_pixels(from_child, (height, width, 3)),
        alpha=_read_pixels(from_child, (height, width)) if answer.get("alpha") is True else None,
        frames=tuple(_read_pixels(from_child, (height, width, 3)) for _ in range(frames)),
        format=_line(answer.get("format")),
        mode=_line(answer.get("mode")),
        orientation=_integer(answer, "orientation", 1, 8),
        frame_count=_integer(answer, "frame_count", 1, 1 << 32),
        trailing_bytes=_integer(answer, "trailing_bytes", 0, len(raw)),
        truncated=answer.get("truncated") is True,
        missing=_share(answer, "missing"),
        top=_integer(answer, "top", 0, whole - height),
        whole_height=None if whole == height else whole,
        warnings=tuple(_line(line) for line in lines),
    )


def _read_metadata(pipe: IO[bytes]) -> Metadata:
    from pydantic import TypeAdapter, ValidationError  # the child has no use for it

    try:
        return TypeAdapter(Metadata).validate_json(_read_block(pipe, _METADATA_BYTES))
    except ValidationError as error:
        raise _nonsense("metadata") from error


def _integer(answer: dict[str, Json], name: str, low: int, high: int) -> int:
    value = answer.get(name)
    if type(value) is not int or not low <= value <= high:
        raise _nonsense(name)
    return value


def _share(answer: dict[str, Json], name: str) -> float:
    value = answer.get(name)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _nonsense(name)
    return float(value)


def _line(value: Json) -> str:
    if not isinstance(value, str) or len(value) > 500 or not value.isprintable():
        raise _nonsense("text")
    return value


def _nonsense(what: str) -> DecoderKilled:
    return DecoderKilled(f"the decoder answered nonsense ({what})")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both are opened in start_child
    return pipe


def _write(pipe: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _read_into(pipe: IO[bytes], view: memoryview) -> None:
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]  # unbuffered: a raw file
        if not count:
            raise EOFError
        view = view[count:]


def _read_pixels(pipe: IO[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    pixels = np.empty(shape, np.uint8)
    _read_into(pipe, pixels.data.cast("B"))
    return pixels


def _write_header(pipe: IO[bytes], header: dict[str, Any]) -> None:
    _write_block(pipe, json.dumps(header).encode())


def _write_block(pipe: IO[bytes], data: bytes) -> None:
    _write(pipe, _LENGTH.pack(len(data)))
    _write(pipe, data)


def _read_header(pipe: IO[bytes]) -> Json:
    try:
        return json.loads(_read_block(pipe, _HEADER_BYTES))
    except (ValueError, RecursionError) as error:
        raise _nonsense("JSON") from error


def _read_block(pipe: IO[bytes], most: int) -> bytes:
    prefix = bytearray(_LENGTH.size)
    _read_into(pipe, memoryview(prefix))
    (length,) = _LENGTH.unpack(prefix)
    if length > most:
        raise _nonsense("length")
    data = bytearray(length)
    _read_into(pipe, memoryview(data))
    return bytes(data)


# ------------------------------------------------------------------------------------------------------------ the child


def _main(memory_mb: int, seconds: float) -> None:
    """Answer images until the input ends."""
    requests = open(0, "rb", buffering=0)  # noqa: SIM115 - open as long as the process
    answers = open(os.dup(1), "wb", buffering=0)  # noqa: SIM115, PTH123 - likewise
    os.dup2(2, 1)  # a C library that prints must not write into the answers
    _confine(memory_mb)
    bytearray(16 << 20)  # a limit that is too low shows now, not at the first image
    _write_header(answers, {})
    while True:
        try:
            request = _read_header(requests)
        except EOFError:
            return
        if resource is not None:
            # Soft limit only: this is for a child whose parent is gone; the parent's clock comes first.
            cpu = int(time.process_time() + seconds) + 2
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
        try:
            raw = bytearray(request["bytes"])
            _read_into(requests, memoryview(raw))
            sample = decode(bytes(raw), "", Limits(**request["limits"]))
        except (DecoderKilled, MemoryError):
            message = f"decoding needs more than {memory_mb} MiB (IMGV_DECODE_MEMORY_MB)"
            _write_header(answers, {"error": DecoderKilled.code, "message": message})
        except InputError as error:
            _write_header(answers, {"error": error.code, "message": error.message})
        except Exception as error:  # noqa: BLE001 - the parent reports it; a traceback of hostile making helps nobody
            message = f"the decoder failed with {type(error).__name__}"
            _write_header(answers, {"error": DecoderKilled.code, "message": message})
        else:
            _answer(answers, sample)
            del sample  # or it stands in memory beside the next one


def _answer(pipe: IO[bytes], sample: Sample) -> None:
    same = (
        "format",
        "mode",
        "orientation",
        "frame_count",
        "trailing_bytes",
        "truncated",
        "missing",
        "top",
        "picture_height",
        "warnings",
        "height",
        "width",
    )
    header = {name: getattr(sample, name) for name in same}
    _write_header(pipe, header | {"alpha": sample.alpha is not None, "frames": len(sample.frames)})
    metadata = json.dumps(asdict(sample.metadata), ensure_ascii=False, default=_as_text)
    _write_block(pipe, metadata.encode("utf-8", "replace"))
    for pixels in (sample.rgb, sample.alpha, *sample.frames):
        if pixels is not None:
            _write(pipe, pixels.data.cast("B"))


def _as_text(data: bytes) -> str:
    """Bytes inside of the metadata, as the contract's Exif has them in JSON."""
    return base64.urlsafe_b64encode(data).decode("ascii")


def _confine(memory_mb: int) -> None:
    """Give up what decoding does not need."""
    if resource is not None:
        limits = {
            resource.RLIMIT_AS: memory_mb << 20,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
        }
        if find_spec("pillow_heif") is None:  # libde265 cannot do without a thread
            limits[resource.RLIMIT_NPROC] = 0  # neither threads nor processes; the kernel ignores it for root
        for name, value in limits.items():
            with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
                resource.setrlimit(name, (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # AVIF decoders that may use several threads fail when they cannot start them.
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]))
