"""Releases: what is promoted as one thing, and the store that publishes them. Knows no model and no registry.

A store is a folder, or a prefix of an S3 bucket. ``NAME/`` is a release: ``release.json`` says what it is and lists
every other file with its hash, ``fusion/`` is the fusion artifact, ``models/`` holds networks and heads as
``models/saved_models`` does. The pointer ``current.json`` names the release to judge with and the hash of its
``release.json``, so that it pins every byte. A release is complete before the pointer names it, and is never changed
afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from utils.errors import FileMissing, ReleaseUnusable
from utils.persistence import VERIFIED, sha256_file, write_atomic
from utils.places import S3, Place, place

POINTER, MANIFEST = "current.json", "release.json"
FUSION, MODELS = "fusion", "models"  # folders of a release
REFERENCE = "reference.npz"  # of a release: the numbers that drift is measured against
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
COPIES = Path("~/.cache/img_ml_verify/releases")  # of what lies in buckets
_KEPT = 20  # names that the pointer remembers, for rollbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published release; ``folder`` is where it lies on this machine."""

    name: str
    folder: Path
    profile: str
    created: str  # ISO 8601, UTC
    code: str  # commit of the code that trained it; empty: not known
    data: str  # sha256 of the feature table that fusion was trained on
    weights: Mapping[str, str]  # card -> sha256 of every network and head that measured that table
    files: Mapping[str, str] = field(repr=False)  # path below the folder -> sha256

    @property
    def fusion(self) -> Path:
        return self.folder / FUSION

    @property
    def models(self) -> Path:
        return self.folder / MODELS


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a store's pointer file says."""

    release: str
    sha256: str  # of the release's manifest
    since: str  # ISO 8601, UTC
    previous: tuple[str, ...] = ()  # newest first


class Store:
    """The releases of one folder."""

    def __init__(self, address: str | Path) -> None:
        self.folder = Path(address).expanduser()
        self.address = str(self.folder)
        self._place: Place = place(self.folder)

    # ------------------------------------------------------------------------------------------------------- reading

    def names(self) -> list[str]:
        """Every complete release, oldest first."""
        found = {path.parent.name: self._read(path.parent.name).created for path in self._manifests()}
        return sorted(found, key=lambda name: (found[name], name))

    def pointer(self) -> Pointer:
        """
        Raises:
            ReleaseUnusable: nothing was promoted here yet, or the file is damaged.
        """
        path = f"{self.address}/{POINTER}"
        try:
            said = json.loads(self._place.read(POINTER))
            return Pointer(said["release"], said["sha256"], said["since"], tuple(said["previous"]))
        except FileMissing as error:
            raise ReleaseUnusable(
                f"{path} cannot be read; promote a release: python -m lifecycle.registry promote"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseUnusable(f"{path} is damaged; promote a release again: {error!r}") from error

    def judging(self) -> str:
        """The release that the pointer names; empty before the first promotion.

        Raises:
            ReleaseUnusable: the pointer is damaged.
        """
        return self.pointer().release if self._has(POINTER) else ""

    def _has(self, name: str) -> bool:
        try:
            self._place.read(name, 0, 1)
        except FileMissing:
            return False
        return True

    def current(self) -> Release:
        """The release that the pointer names, every file of it verified.

        Raises:
            ReleaseUnusable: as ``pointer`` and ``open``.
        """
        pointer = self.pointer()
        return self.open(pointer.release, pointer.sha256)

    def open(self, name: str, sha256: str = "") -> Release:
        """A release, every file of it verified.

        Args:
            sha256: of its manifest, as a pointer has it.

        Raises:
            ReleaseUnusable: a file is missing or not the one that was published; the message names it.
        """
        folder = self.folder / _checked(name)
        if sha256 and (not (folder / MANIFEST).is_file() or sha256_file(folder / MANIFEST) != sha256):
            raise ReleaseUnusable(f"{folder / MANIFEST} is not the one that was promoted; publish the release again")
        release = self._read(name)
        found = files_of(folder)
        if differing := sorted(found.items() ^ release.files.items()):
            raise ReleaseUnusable(f"{folder / differing[0][0]} is not as it was published; publish the release again")
        return release

    def _manifests(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))

    def _read(self, name: str) -> Release:
        path = self.folder / name / MANIFEST
        try:
            return Release(name=name, folder=path.parent, **json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ReleaseUnusable(f"{path} cannot be read: {error}; publish the release again") from error

    # ------------------------------------------------------------------------------------------------------- writing

    def publish(self, release: Release) -> Release:
        """Copy a release into the store; one that is there already stays as it is. The pointer is not moved.

        Raises:
            ReleaseUnusable: another release has this name.
        """
        folder = self.folder / _checked(release.name)
        if folder.exists():
            published = self.open(release.name)
            if published.files != release.files:
                raise ReleaseUnusable(f"{folder} is another release of that name; a release is never changed")
            return published
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".publishing-") as scratch:
            copy = Path(scratch) / release.name
            shutil.copytree(release.folder, copy)
            copy.rename(folder)
        return self.open(release.name)

    def promote(self, name: str) -> Pointer:
        """Move the pointer, in one step, to a release of the store that was verified just before.

        Raises:
            ReleaseUnusable: as ``open``.
        """
        self.open(name)
        previous: tuple[str, ...] = ()
        if self._has(POINTER):
            old = self.pointer()
            if old.release == name:
                return old
            previous = (old.release, *(each for each in old.previous if each not in (old.release, name)))[:_KEPT]
        return self._point(name, previous)

    def rollback(self) -> Pointer:
        """Move the pointer back to the release before.

        Raises:
            ReleaseUnusable: there is none, or it is damaged.
        """
        old = self.pointer()
        if not old.previous:
            raise ReleaseUnusable(f"{self.folder} knows no release before {old.release}; promote one by its name")
        name, *earlier = old.previous
        self.open(name)
        return self._point(name, tuple(earlier))

    def _point(self, name: str, previous: tuple[str, ...]) -> Pointer:
        """To a release that was verified just before."""
        pointer = Pointer(name, sha256_file(self.folder / name / MANIFEST), now(), previous)
        self._place.write(POINTER, (json.dumps(asdict(pointer), indent=1) + "\n").encode())
        return pointer


class BucketStore(Store):
    """The releases below a prefix of an S3 bucket; those that are asked for lie in a folder of this machine too.

    Args:
        copies: that folder; None: one of the user's cache.
    """

    def __init__(self, address: str, copies: Path | None = None) -> None:
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        super().__init__(copies or COPIES / digest)
        self.address = address.rstrip("/")
        self._place = place(address)

    def names(self) -> list[str]:
        for name, _ in self._place.names():
            release, _, file = name.partition("/")
            if file == MANIFEST:
                self._copy(release)
        return super().names()

    def open(self, name: str, sha256: str = "") -> Release:
        self._copy(_checked(name))
        try:
            return super().open(name, sha256)
        except ReleaseUnusable:  # the copy may be at fault
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._copy(name)
            return super().open(name, sha256)

    def publish(self, release: Release) -> Release:
        name = _checked(release.name)
        if not self._has(f"{name}/{MANIFEST}"):
            for path in (*release.files, MANIFEST):  # the manifest last: with it the release is complete
                self._place.write(f"{name}/{path}", (release.folder / path).read_bytes())
        published = self.open(name)
        if published.files != release.files:
            raise ReleaseUnusable(f"{self.address}/{name} is another release of that name; a release is never changed")
        return published

    def _copy(self, name: str) -> None:
        """Have a release here, unless it is.

        Raises:
            ReleaseUnusable: it is not there whole.
        """
        if (self.folder / name / MANIFEST).is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".copying-") as scratch:
                manifest = self._place.read(f"{name}/{MANIFEST}")
                for file in (*json.loads(manifest)["files"], MANIFEST):
                    path = (Path(scratch) / name / file).resolve()
                    if not path.is_relative_to(Path(scratch).resolve()):
                        raise ReleaseUnusable(f"{self.address}/{name}/{MANIFEST} names a file outside the release")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(manifest if file == MANIFEST else self._place.read(f"{name}/{file}"))
                with suppress(OSError):  # another process copied it meanwhile
                    (Path(scratch) / name).rename(self.folder / name)
        except (FileMissing, ValueError, KeyError, TypeError) as error:
            raise ReleaseUnusable(
                f"{self.address}/{name} cannot be read: {error}; publish the release again"
            ) from error


def store_at(address: str | Path) -> Store:
    """The store at a folder, or at s3://BUCKET/PREFIX.

    Raises:
        BadSettings: an address of S3 without a bucket.
    """
    return BucketStore(str(address)) if str(address).startswith(S3) else Store(address)


def seal(folder: Path, name: str, *, profile: str, code: str, data: str, weights: Mapping[str, str]) -> Release:
    """Write the manifest of a release whose other files lie in ``folder``: from now on it must not change."""
    said: dict[str, Any] = {"profile": profile, "created": now(), "code": code, "data": data}
    said |= {"weights": dict(weights), "files": files_of(folder)}
    write_atomic(folder / MANIFEST, (json.dumps(said, indent=1) + "\n").encode())
    return Release(name=_checked(name), folder=folder, **said)


def files_of(folder: Path) -> dict[str, str]:
    """Path below the folder -> sha256, of every file but the manifest and what remembers hashes."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, VERIFIED)
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ReleaseUnusable(f"{name!r} is no name of a release: letters, digits and ._- only, starting with a letter")
    return name
