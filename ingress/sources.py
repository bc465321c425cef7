"""Anything a caller may name (file, URL, standard input, bytes) -> Sample, within the limits of the settings."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from ingress.decode import Limits, decode, read_file, read_stream
from ingress.sandbox import DecodeChild
from utils.contracts import Sample
from utils.errors import FileMissing
from utils.settings import Settings

# What a folder is searched for. A file named on its own may have any name: its bytes decide.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp"),
    *(".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"),
)


def expand(inputs: Iterable[str]) -> Iterator[str]:
    """Replace each folder by the image files below it, sorted. Everything else passes as it is.

    So does a folder without images: read like a file, it has its own error among the answers for the others.
    """
    for given in inputs:
        found = []
        if not is_url(given) and os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            named = (path for path in Path(given).rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
            found = sorted(str(path) for path in named if path.is_file())
        yield from found or [given]


def is_url(source: str) -> bool:
    return source.partition("://")[0].lower() in ("http", "https") and "://" in source


async def fetch_within(settings: Settings, url: str) -> bytes:
    """Download one URL within the settings' limits, for callers that have an event loop; errors as ``fetch_async``."""
    from ingress.fetch import fetch_async  # HTTP, which files do without

    return await fetch_async(
        url,
        max_bytes=settings.max_bytes,
        seconds=settings.fetch_seconds,
        connect_seconds=settings.fetch_connect_seconds,
        redirects=settings.fetch_redirects,
        ports=settings.fetch_port_set,
    )


class Ingress:
    """Reads and decodes images. Use as a context manager: it may own a decoding child process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = Limits(
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_frames=settings.max_frames,
            max_animation_pixels=settings.max_animation_pixels,
        )
        self._child = (
            DecodeChild(memory_mb=settings.decode_memory_mb, seconds=settings.decode_seconds)
            if settings.decode_in_child
            else None
        )

    def load(self, source: str) -> Sample:
        """Read one file, URL or "-" (standard input) and decode it.

        Raises:
            InputError, TransientError: see utils/errors.py; each names the next step.
        """
        return self.decode(self._read(source), source)

    def decode(self, raw: bytes, source: str) -> Sample:
        if self._child:
            return self._child.decode(raw, source, self._limits)
        return decode(raw, source, self._limits)

    def _read(self, source: str) -> bytes:
        settings = self._settings
        if source == "-":
            if sys.stdin is None:
                raise FileMissing("standard input is closed; pipe an image into it")
            return read_stream(sys.stdin.buffer, settings.max_bytes)
        if not is_url(source):
            return read_file(Path(source), settings.max_bytes)
        return asyncio.run(fetch_within(settings, source))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child:
            self._child.close()
