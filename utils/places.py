"""Files by name below one address: a folder of this machine, or a prefix of an S3 bucket. Written whole or not at all.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from utils.aws import bucket_client, coded
from utils.errors import BadSettings, CloudFailed, FileMissing
from utils.persistence import write_atomic

S3 = "s3://"


class Place(Protocol):
    """Names are relative, with slashes."""

    address: str

    def names(self, below: str = "") -> Iterator[tuple[str, int]]:
        """Every file whose name begins so, and its size, always in the same order."""
        ...

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """
        Raises:
            FileMissing: there is no such file.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """To be read from its beginning on, as a stream."""
        ...

    def write(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None:
        """Also where there is none."""
        ...


def place(address: str | Path) -> Place:
    """
    Raises:
        BadSettings: an address of S3 without a bucket.
    """
    text = str(address)
    return Bucket(text) if text.startswith(S3) else Folder(Path(text).expanduser())


def beside(file: str | Path) -> tuple[Place, str]:
    """The place that a file lies in, and its name there."""
    text = str(file)
    if text.startswith(S3):
        folder, _, name = text.rpartition("/")
        return place(folder), name
    return place(Path(text).parent), Path(text).name


class Folder:
    """A folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)

    def names(self, below: str = "") -> Iterator[tuple[str, int]]:
        for folder, folders, files in os.walk(self.folder):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                name = path.relative_to(self.folder).as_posix()
                if name.startswith(below) and not file.endswith(".tmp"):
                    yield name, path.stat().st_size

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self.open(name) as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    def open(self, name: str) -> BinaryIO:
        try:
            return (self.folder / name).open("rb")
        except OSError as error:
            raise FileMissing(f"{self.folder / name}: {error.strerror}") from error

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class Bucket:
    """A prefix of an S3 bucket of our own account; who is asked first decides whether it is."""

    def __init__(self, address: str) -> None:
        bucket, _, prefix = address.removeprefix(S3).partition("/")
        if not bucket:
            raise BadSettings(f"{address}: an address of S3 is s3://BUCKET/PREFIX")
        self.bucket, self.prefix, self.address = bucket, prefix.strip("/"), address

    @cached_property
    def client(self) -> Any:
        return bucket_client(self.bucket)

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return type(self), (self.address,)  # a client does not go to other processes

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name

    def names(self, below: str = "") -> Iterator[tuple[str, int]]:
        start = f"{self.prefix}/" if self.prefix else ""
        with coded(self.address):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start + below):
                for each in page.get("Contents", ()):
                    if not each["Key"].endswith("/"):  # what consoles make for a folder
                        yield each["Key"].removeprefix(start), each["Size"]

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        end = "" if size is None else start + size - 1
        ranged = {"Range": f"bytes={start}-{end}"} if start or size is not None else {}
        with coded(f"{S3}{self.bucket}/{self.key(name)}"):
            return bytes(self._get(name, **ranged).read())

    def open(self, name: str) -> BinaryIO:
        with coded(f"{S3}{self.bucket}/{self.key(name)}"):
            # tarfile reads a few bytes at a time
            return io.BufferedReader(cast(Any, _Streamed(self._get(name))), 2**20)

    def _get(self, name: str, **options: str) -> Any:
        try:
            return self.client.get_object(Bucket=self.bucket, Key=self.key(name), **options)["Body"]
        except self.client.exceptions.NoSuchKey as error:
            raise FileMissing(f"{S3}{self.bucket}/{self.key(name)}: there is no such object") from error

    def write(self, name: str, data: bytes) -> None:
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        with coded(f"{S3}{self.bucket}/{self.key(name)}"):
            self.client.put_object(
                Bucket=self.bucket,
                Key=self.key(name),
                Body=data,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=digest,
            )

    def remove(self, name: str) -> None:
        with coded(f"{S3}{self.bucket}/{self.key(name)}"):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(name))


class _Streamed(io.RawIOBase):
    """botocore's body of an answer, as Python's buffers want it."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._body.read(len(buffer))
        except Exception as error:  # urllib3's and botocore's: the connection broke
            raise CloudFailed(f"the stream of an object broke off ({error}); run the same command again") from error
        buffer[: len(data)] = data
        return len(data)
