"""The files of a repository, package or folder, by path: what the builder of the data set reads images from.

Everything is local: bare git snapshots, downloaded packages, folders. Nothing from them is run.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Protocol, Self

from training.sources import Source
from utils.errors import TableError

PACKAGES = {  # place -> how its packages' file names start (npm replaces the slash of a scope) and end
    "debian": ("{}_*.deb",),
    "pypi": ("{}-*.whl", "{}-*.tar.gz"),
    "npm": ("{}-*.tgz",),
}


class Origin(Protocol):
    """Files by path. A context manager: it may own a process or an open archive."""

    version: str

    def paths(self) -> list[str]: ...

    def read(self, path: str) -> bytes | None:
        """None where the file is named but absent, as large ones of a snapshot are."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_origin(source: Source, mirrors: Sequence[Path]) -> Origin:
    """What a source's address names, from the first folder that has it.

    Args:
        mirrors: folders with owner+name/ for a repository (with repo/ or repo/.git inside, or a git directory
            itself), NAME_VERSION.deb, NAME-VERSION.whl and the like for packages, NAME/ for folders.

    Raises:
        TableError: none of them has it.
    """
    for mirror in mirrors:
        if source.place == "github":
            top = mirror / source.name.replace("/", "+")
            for folder in (top / "repo" / ".git", top / "repo", top / ".git", top):
                if (folder / "HEAD").is_file():
                    return GitSnapshot(folder, history=source.history == "yes")
        elif source.place == "folder":
            if (mirror / source.name).is_dir():
                return Folder(mirror / source.name)
        else:
            name = source.name.lstrip("@").replace("/", "-")
            found = sorted(file for pattern in PACKAGES[source.place] for file in mirror.glob(pattern.format(name)))
            if found:
                return Package(found[-1])
    raise TableError(f"{source.address} is in none of {', '.join(map(str, mirrors))}")


class GitSnapshot:
    """The newest version of every path of a git directory: at HEAD, or in every commit that can be reached."""

    def __init__(self, folder: Path, history: bool) -> None:
        self._git = ["git", f"--git-dir={folder}"]
        self._history = history
        self.version = self._run("rev-parse", "HEAD").decode().strip()
        self._reader: subprocess.Popen[bytes] | None = None

    @cached_property
    def _blobs(self) -> dict[str, str]:
        return self._from_history() if self._history else self._from_head()

    def paths(self) -> list[str]:
        return list(self._blobs)

    def read(self, path: str) -> bytes | None:
        if not self._reader:
            self._reader = subprocess.Popen(  # noqa: S603 - git on a folder that the caller named
                [*self._git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        if not self._reader.stdin or not self._reader.stdout:
            raise RuntimeError("git cat-file has no pipes")
        self._reader.stdin.write(f"{self._blobs[path]}\n".encode())
        self._reader.stdin.flush()
        answer = self._reader.stdout.readline().split()  # <object> <type> <size>, or <object> missing
        if len(answer) != 3:
            return None
        data = self._reader.stdout.read(int(answer[2]))
        self._reader.stdout.read(1)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader:
            self._reader.communicate()

    def _run(self, *arguments: str) -> bytes:
        done = subprocess.run([*self._git, *arguments], capture_output=True, check=False)  # noqa: S603 - as above
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            raise TableError(f"git cannot read {self._git[1].partition('=')[2]}: {message}")
        return done.stdout

    def _from_head(self) -> dict[str, str]:
        blobs = {}
        for entry in self._run("ls-tree", "-r", "-z", "HEAD").split(b"\0"):
            if entry:
                facts, _, path = entry.partition(b"\t")
                _, kind, name = facts.split()
                if kind == b"blob":
                    blobs[os.fsdecode(path)] = name.decode()
        return blobs

    def _from_history(self) -> dict[str, str]:
        """Newest first, so that the first blob of a path is its last version."""
        log = ("log", "--all", "-m", "--root", "--raw", "--no-abbrev", "--no-renames", "--diff-filter=d", "--format=")
        parts = iter(self._run(*log, "-z").split(b"\0"))
        blobs: dict[str, str] = {}
        for facts in parts:
            if facts.startswith(b":") and (path := next(parts, b"")):
                blobs.setdefault(os.fsdecode(path), facts.split()[3].decode())
        return blobs


class Package:
    """The regular files of a .deb, a wheel, or a tar archive; links are left out."""

    def __init__(self, path: Path) -> None:
        self.version = path.name
        self._open = ExitStack()
        if path.suffix == ".whl":
            wheel = self._open.enter_context(zipfile.ZipFile(path))
            self._readers: dict[str, Callable[[], bytes]] = {
                each.filename: partial(wheel.read, each) for each in wheel.infolist() if not each.is_dir()
            }
            return
        unpacked = BytesIO(_fsys_tarfile(path)) if path.suffix == ".deb" else None
        archive = tarfile.open(None if unpacked else path, fileobj=unpacked)  # noqa: SIM115 - closed by the stack
        self._open.push(archive)
        self._readers = {
            each.name.removeprefix("./"): partial(_read_member, archive, each) for each in archive if each.isreg()
        }

    def paths(self) -> list[str]:
        return list(self._readers)

    def read(self, path: str) -> bytes | None:
        return self._readers[path]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _fsys_tarfile(path: Path) -> bytes:
    try:
        return subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True).stdout  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError) as error:
        raise TableError(f"dpkg-deb cannot unpack {path}: {error}") from error


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


class Folder:
    """The files below a folder; links are left out."""

    version = "as found"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def paths(self) -> list[str]:
        return [path.relative_to(self._folder).as_posix() for path in _files(self._folder)]

    def read(self, path: str) -> bytes | None:
        return (self._folder / path).read_bytes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
