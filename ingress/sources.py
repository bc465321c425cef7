"""What a caller may name (file, URL, standard input, bytes) -> bytes -> Sample, within the limits of the settings."""

from __future__ import annotations

import base64
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from ingress.decode import Limits, decode, read_file, read_stream
from ingress.sandbox import DecodeChild
from utils.contracts import Sample
from utils.errors import FileMissing, NotAnImage, TooManyBytes
from utils.settings import DecodeSettings, FetchSettings

log = logging.getLogger(__name__)

# What a folder is searched for. A file named on its own may have any name: its bytes decide.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp"),
    *(".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"),
)

# What systems leave in a folder of images.
_SIDE_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store")

_SUFFIXES_NAMED = 5

_DATA_URI = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)  # RFC 2397


def expand(inputs: Iterable[str]) -> Iterator[str]:
    """Replace each folder by the image files below it, sorted. Everything else passes as it is.

    So does a folder without images: read like a file, it has its own error among the answers for the others. What
    systems put beside images, and files that no suffix calls an image, are passed over, and the log has the counts.
    """
    for given in inputs:
        found: list[str] = []
        if not is_url(given) and os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            side = 0
            others: Counter[str] = Counter()
            for path in sorted(_files_below(Path(given))):
                if _is_side_file(path):
                    side += 1
                elif path.name.lower().endswith(IMAGE_SUFFIXES):
                    found.append(str(path))
                else:
                    others[path.suffix.lower() or "no suffix"] += 1
            if others:
                kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(_SUFFIXES_NAMED))
                log.warning("%s: %d files without the suffix of an image passed over: %s", given, others.total(), kinds)
            if side:
                log.warning("%s: %d side files of the system (._*, Thumbs.db and the like) passed over", given, side)
        yield from found or [given]


def _files_below(folder: Path) -> Iterator[Path]:
    """Files at any depth, links to files too; links to folders are not followed, so none is searched twice.

    What may not be entered or vanishes meanwhile is left out; a file that may not be looked at is not: reading it gives
    the reason. Path.rglob and os.walk recurse, and end with a RecursionError at some hundred folders.
    """
    waiting = [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError as error:
            log.warning("%s: %s; passed over", error.filename, error.strerror)
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)
            except OSError:
                yield Path(entry.path)


def _is_side_file(path: Path) -> bool:
    """macOS keeps attributes of x.jpg as ._x.jpg on foreign disks, and below __MACOSX in archives."""
    return path.name.startswith("._") or "__MACOSX" in path.parts or path.name.lower() in _SIDE_FILES


def from_base64(given: bytes, max_bytes: int) -> bytes:
    """A file in base64 (RFC 4648, without line breaks), alone or as a ``data:`` URI.

    Raises:
        TooManyBytes: more than ``max_bytes``; nothing was decoded.
        ValueError: no base64.
    """
    match = _DATA_URI.match(given)
    encoded = given[match.end() :] if match else given
    if len(encoded) * 3 // 4 > max_bytes + 2:  # 2: of padding
        raise too_many_bytes(max_bytes)
    raw = base64.b64decode(encoded, validate=True)
    if len(raw) > max_bytes:
        raise too_many_bytes(max_bytes)
    return raw


def too_many_bytes(max_bytes: int) -> TooManyBytes:
    """Of an image that came with its request."""
    return TooManyBytes(f"the image is larger than {max_bytes:,} bytes (IMGV_MAX_BYTES); send a smaller one")


def from_data_uri(source: str, max_bytes: int) -> bytes:
    """The bytes that a ``data:`` URI holds.

    Raises:
        NotAnImage: no base64 in it.
        TooManyBytes: more than ``max_bytes``.
    """
    try:
        return from_base64(os.fsencode(source), max_bytes)
    except ValueError:
        raise NotAnImage(
            "a data: URI without base64; write data:image/png;base64, and the image's bytes in base64"
        ) from None


def shown(source: str) -> str:
    """A name for people: of a ``data:`` URI its beginning, else what was given."""
    return f"{source.partition(',')[0][:100]},…" if is_data_uri(source) else source


def is_data_uri(source: str) -> bool:
    return source[:5].lower() == "data:"


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
