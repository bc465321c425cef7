"""The images of a git directory on this machine, by a pattern of their paths. Nothing of it is run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from ingress.sources import IMAGE_SUFFIXES
from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from training.origins import GitSnapshot
from utils.errors import DatasetMissing, FileMissing
from utils.settings import Settings


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    label, generator, pattern, name = parts_of(what, "LABEL,GENERATOR,PATTERN,GIT FOLDER")
    made: Label = "ai" if label == "ai" else "real"
    folder = next((path for path in (Path(name) / ".git", Path(name)) if (path / "HEAD").is_file()), None)
    if folder is None:
        raise DatasetMissing(f"{name} is no git repository")
    with GitSnapshot(folder, history=False) as snapshot:
        for path in sorted(snapshot.paths()):
            if path.lower().endswith(IMAGE_SUFFIXES) and re.search(pattern, path):
                yield Item(
                    url=f"{Path(name).name}@{snapshot.version[:12]}:{path}",
                    author="" if label == "ai" else generator,
                    generator=generator if label == "ai" else "",
                    label=made,
                    claim=f"lies in the repository {Path(name).name} as {label}",
                    read=partial(_read, snapshot, path),
                )


async def _read(snapshot: GitSnapshot, path: str) -> bytes:
    raw = snapshot.read(path)
    if raw is None:
        raise FileMissing(f"{path} is named in the snapshot and absent from it")
    return raw
