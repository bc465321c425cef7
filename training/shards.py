"""Images in the tars of a packed data set, on this machine or in S3: read as a stream, block by block.

A row of the table names the tar of its image (``shard``, beside the table), the first byte there (``offset``) and how
many there are (``bytes``). Neighbours come by one request into the process that decodes them, and only a result is ever
kept: whoever starts again begins with the first image that has none. python -m lifecycle.cloud.data pack writes them.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar

from training.datasets import read_rows, write_rows
from utils.errors import TableError
from utils.persistence import write_atomic
from utils.places import S3, Place, beside

T = TypeVar("T")
ImageTable: TypeAlias = Path | str  # of images: a file, or its address in S3

BLOCK = 16 * 2**20  # bytes of a request, but for one larger image


@dataclass(frozen=True, slots=True)
class Span:
    """Where an image lies in a tar."""

    shard: str  # its address
    offset: int
    size: int


def image_table(text: str) -> ImageTable:
    """What a command line names."""
    return text if text.startswith(S3) else Path(text)


def span_of(dataset: ImageTable, row: Mapping[str, str]) -> Span | None:
    """Of an image in a shard; None: it is a file.

    Raises:
        TableError: it is neither, or its numbers are none.
    """
    if not row.get("shard"):
        if str(dataset).startswith(S3):
            raise TableError(
                f"{dataset}: {row['filepath']} is in no shard; pull the data set, or pack it:"
                " python -m lifecycle.cloud.data pack"
            )
        return None
    try:
        offset, size = int(row["offset"]), int(row["bytes"])
    except (KeyError, ValueError) as error:
        raise TableError(
            f"{dataset}: {row['filepath']} has no place in {row['shard']}; pack the data set again"
        ) from error
    return Span(f"{beside(dataset)[0].address}/{row['shard']}", offset, size)


def blocks(items: Iterable[T], span: Callable[[T], Span | None], most: int) -> list[list[T]]:
    """A sequence in lists of at most ``most`` items, each of files or of neighbours in a shard."""
    found: list[list[T]] = []
    for item in items:
        if not found or len(found[-1]) == most or not _fits(span(found[-1][0]), span(found[-1][-1]), span(item)):
            found.append([])
        found[-1].append(item)
    return found


def _fits(first: Span | None, last: Span | None, item: Span | None) -> bool:
    if first is None or last is None or item is None:
        return first is item
    return first.shard == item.shard and last.offset <= item.offset and item.offset + item.size - first.offset <= BLOCK


def read(spans: Sequence[Span]) -> dict[Span, bytes]:
    """The images of one block, by one request."""
    if not spans:
        return {}
    files, name = _opened(spans[0].shard)
    first, last = spans[0].offset, spans[-1].offset + spans[-1].size
    raw = files.read(name, first, last - first)
    return {each: raw[each.offset - first : each.offset - first + each.size] for each in spans}


@lru_cache(maxsize=1024)
def _opened(shard: str) -> tuple[Place, str]:
    """A client asks who we are and whose the bucket is before its first request."""
    return beside(shard)


def pack(dataset: Path, out: Path, most: int) -> int:
    """Write the images of a table into tars, and the table with their places beside them. How many tars.

    Those of a split come together. The same images give the same files, so a push sends only what is new.

    Args:
        most: bytes after which another tar begins.

    Raises:
        TableError: an image cannot be read, or does not lie below the table's folder.
    """
    rows = read_rows(dataset)
    out.mkdir(parents=True, exist_ok=True)
    waiting = deque(sorted(rows, key=lambda row: row["split"]))
    shards = 0
    while waiting:
        packed: list[dict[str, str]] = []
        raw = _tar(dataset, waiting, packed, most)
        name = f"images-{shards:05}-{hashlib.sha256(raw).hexdigest()[:12]}.tar"  # other images, another name
        write_atomic(out / name, raw)
        for row in packed:
            row["shard"] = name
        shards += 1
    write_rows(out / dataset.name, rows)
    return shards


def _tar(dataset: Path, waiting: deque[dict[str, str]], packed: list[dict[str, str]], most: int) -> bytes:
    """Of the first rows that wait; they get their places, and go to those that are packed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        while waiting and file.tell() < most:
            row = waiting.popleft()
            path = PurePosixPath(row["filepath"])
            if path.is_absolute() or ".." in path.parts:
                raise TableError(f"{dataset}: {path} is not below {dataset.parent}; write a table there, and pack that")
            try:
                image = (dataset.parent / path).read_bytes()
            except OSError as error:
                raise TableError(f"{dataset}: {path}: {error.strerror}; mend the table, and pack again") from error
            member = tarfile.TarInfo(str(path))  # without owner and time
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
            blocks_of_it = -(-len(image) // tarfile.BLOCKSIZE)
            row |= {"offset": str(file.tell() - blocks_of_it * tarfile.BLOCKSIZE), "bytes": str(len(image))}
            packed.append(row)
    return file.getvalue()
