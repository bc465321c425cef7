"""The images of an archive: files, WebDataset tars and Parquet, below a folder or an S3 prefix, mixed as they come.

An archive is cut into parts that are judged one by one. The cut depends on names and sizes alone. Each image is read by
itself, so nothing is held that is not being judged.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from ingress.sources import IMAGE_SUFFIXES
from utils.errors import BadSettings, FileMissing, TableError, TooManyBytes, VerifyError
from utils.places import Place, beside, place

TAR, PARQUET = ".tar", ".parquet"
AHEAD = 16  # images that are read while others are judged
PARQUET_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content")  # that hold images, the first one counts


@dataclass(frozen=True, slots=True)
class Part:
    """Images that are judged together."""

    shard: str  # file that holds them all; empty: each is a file
    group: int  # of Parquet: the row group; else -1
    images: Sequence[tuple[str, int, int]]  # name, first byte (of Parquet: row of the group), bytes


def open_archive(source: str) -> tuple[Place, str]:
    """Where an archive's files lie, and how their names begin.

    Args:
        source: a folder, a prefix of S3, or one tar or Parquet file.
    """
    if source.endswith((TAR, PARQUET)):
        return beside(source)
    return place(source), ""


def parts_of(files: Place, below: str, most: int) -> Iterator[Part]:
    """Every image once, in the order of the place.

    Args:
        most: images of a part.

    Raises:
        TableError: a tar or Parquet file cannot be read.
    """
    loose: list[tuple[str, int, int]] = []
    for name, size in files.names(below):
        lower = name.lower()
        if lower.endswith((TAR, PARQUET)):
            listed = _in_tar(files, name, most) if lower.endswith(TAR) else _in_parquet(files, name, size, most)
            yield from listed
        elif lower.endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith("._"):
            loose.append((name, 0, size))
            if len(loose) == most:
                yield Part("", -1, loose)
                loose = []
    if loose:
        yield Part("", -1, loose)


def _in_tar(files: Place, name: str, most: int) -> Iterator[Part]:
    """The file is streamed once for its headers; its members are then read by their places."""
    try:
        with files.open(name) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            members = (each for each in tar if each.isfile() and each.name.lower().endswith(IMAGE_SUFFIXES))
            while images := [(each.name, each.offset_data, each.size) for each in islice(members, most)]:
                yield Part(name, -1, images)
    except tarfile.TarError as error:
        raise TableError(f"{files.address}/{name} is no tar file: {error}; mend it or take it away") from error


def _in_parquet(files: Place, name: str, size: int, most: int) -> Iterator[Part]:
    file, _ = _parquet(files, name, size)
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        for start in range(0, rows, most):
            images = [(str(first + row), row, size) for row in range(start, min(start + most, rows))]
            yield Part(name, group, images)
        first += rows


def _parquet(files: Place, name: str, size: int) -> tuple[Any, str]:
    """The open file, and its column of images."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadSettings("reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(io.BufferedReader(cast(Any, _Ranged(files, name, size)), 2**20))
    except (OSError, ArrowException) as error:
        raise TableError(f"{files.address}/{name} cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    column = next((each for each in PARQUET_COLUMNS if each in names), None)
    if column is None:
        raise TableError(
            f"{files.address}/{name} has no column {' or '.join(PARQUET_COLUMNS)}; it has {', '.join(names)}"
        )
    return file, column


def read_part(files: Place, part: Part, max_bytes: int) -> Iterator[tuple[str, bytes | VerifyError]]:
    """Each image's name for people and its bytes, or why they cannot be read; a few are read ahead."""
    if part.group >= 0:
        yield from _rows(files, part, max_bytes)
        return
    with ThreadPoolExecutor(AHEAD, "archive") as pool:
        waiting = iter(part.images)

        def begin(count: int) -> list[tuple[str, Future[bytes | VerifyError]]]:
            images = islice(waiting, count)
            return [(image[0], pool.submit(_bytes, files, part.shard, max_bytes, image)) for image in images]

        reading = begin(AHEAD)
        while reading:
            name, future = reading.pop(0)
            yield _shown(files, part.shard, name), future.result()
            reading += begin(1)


def _shown(files: Place, shard: str, name: str) -> str:
    where = files.address.rstrip("/")
    return f"{where}/{shard}#{name}" if shard else f"{where}/{name}"


def _bytes(files: Place, shard: str, max_bytes: int, image: tuple[str, int, int]) -> bytes | VerifyError:
    name, start, size = image
    if size > max_bytes:
        return _too_large(size, max_bytes)
    try:
        return files.read(shard, start, size) if shard else files.read(name)
    except FileMissing as error:  # it went away since it was listed
        return error


def _too_large(size: int, max_bytes: int) -> TooManyBytes:
    return TooManyBytes(f"{size} bytes, more than {max_bytes}; raise IMGV_MAX_BYTES")


def _rows(files: Place, part: Part, max_bytes: int) -> Iterator[tuple[str, bytes | VerifyError]]:
    file, column = _parquet(files, part.shard, part.images[0][2])
    first = part.images[0][1]
    table = file.read_row_group(part.group, columns=[column]).slice(first, len(part.images))
    for (name, _, _), value in zip(part.images, table.column(0), strict=True):
        found = value.as_py()
        raw = found.get("bytes") if isinstance(found, dict) else found
        source = _shown(files, part.shard, name)
        if not isinstance(raw, bytes):
            yield source, FileMissing(f"row {name} of {part.shard} holds no bytes in its column {column}")
        else:
            yield source, _too_large(len(raw), max_bytes) if len(raw) > max_bytes else raw


class _Ranged(io.RawIOBase):
    """A file of a place that can be read from anywhere, as Parquet is: by its end first."""

    def __init__(self, files: Place, name: str, size: int) -> None:
        self._files, self._name, self._size, self._at = files, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        data = self._files.read(self._name, self._at, size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
