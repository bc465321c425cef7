"""What a caller may name (file, URL, standard input, bytes) -> bytes -> Sample, within the limits of the settings."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from ingress.decode import Limits, decode, read_file, read_stream
from ingress.sandbox import DecodeChild
from utils.contracts import Sample
from utils.errors import FileMissing
from utils.settings import DecodeSettings, FetchSettings

log = logging.getLogger(__name__)

# What a folder is searched for. A file named on its own may have any name: its bytes decide.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp"),
    *(".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"),
)

_DATA_URI = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)  # RFC 2397


def expand(inputs: Iterable[str]) -> Iterator[str]:
    """Replace each folder by the image files below it, sorted. Everything else passes as it is.

    So does a folder without images: read like a file, it has its own error among the answers for the others. What
    systems put beside images under an image's name is passed over, and the log has the count.
    """
    for given in inputs:
        found: list[str] = []
        if not is_url(given) and os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            named = (path for path in Path(given).rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
            files = sorted(path for path in named if path.is_file())
            found = [str(path) for path in files if not _is_side_file(path)]
            if passed := len(files) - len(found):
                log.warning("%s: %d side files of macOS (._*) passed over", given, passed)
        yield from found or [given]


def _is_side_file(path: Path) -> bool:
    """macOS keeps attributes of x.jpg as ._x.jpg on foreign disks, and below __MACOSX in archives."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def without_data_uri(encoded: bytes) -> bytes:
    """The base64 of a ``data:`` URI; anything else as it is."""
    match = _DATA_URI.match(encoded)
    return encoded[match.end() :] if match else encoded


def is_url(source: str) -> bool:
    return source.partition("://")[0].lower() in ("http", "https") and "://" in source


async def fetch_within(settings: FetchSettings, url: str, max_bytes: int) -> bytes:
    """Download one URL within the settings' limits; errors as ``fetch_async``."""
    from ingress.fetch import fetch_async  # HTTP, which files do without

    return await fetch_async(
        url,
        max_bytes=max_bytes,
        seconds=settings.seconds,
        connect_seconds=settings.connect_seconds,
        redirects=settings.redirects,
        ports=frozenset(settings.ports),
    )


def limits_of(settings: DecodeSettings) -> Limits:
    return Limits(settings.max_bytes, settings.max_pixels, settings.max_frames, settings.max_animation_pixels)


class Ingress:
    """Reads files and decodes images. Use as a context manager: it may own a decoding child process."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._limits = limits_of(settings)
        self._child = DecodeChild(settings.memory_mb, settings.seconds) if settings.in_child else None

    def load(self, source: str) -> Sample:
        """Read one file or "-" (standard input) and decode it.

        Raises:
            InputError: see utils/errors.py; each names the next step.
        """
        return self.decode(self.read(source), source)

    def decode(self, raw: bytes, source: str) -> Sample:
        if self._child:
            return self._child.decode(raw, source, self._limits)
        return decode(raw, source, self._limits)

    def read(self, source: str) -> bytes:
        if source != "-":
            return read_file(Path(source), self._limits.max_bytes)
        if sys.stdin is None:
            raise FileMissing("standard input is closed; pipe an image into it")
        return read_stream(sys.stdin.buffer, self._limits.max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.close()
