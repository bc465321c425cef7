"""The image files below a folder of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from ingress.decode import read_file
from ingress.sources import expand
from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from utils.errors import DatasetMissing
from utils.settings import Settings


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    label, generator, name = parts_of(what, "LABEL,GENERATOR,FOLDER")
    for each in files(Path(name), "ai" if label == "ai" else "real", generator, settings):
        yield each


def files(folder: Path, label: Label, name: str, settings: Settings) -> list[Item]:
    """
    Raises:
        DatasetMissing: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetMissing(f"no folder {folder}")
    return [
        Item(
            url=Path(path).absolute().as_uri(),
            author="" if label == "ai" else name,
            generator=name if label == "ai" else "",
            label=label,
            claim=f"lies in the folder {folder.name} as {label}",
            read=partial(_read, Path(path), settings.decode.max_bytes),
        )
        for path in expand([str(folder)])
        if path != str(folder)
    ]


async def _read(path: Path, most: int) -> bytes:
    return read_file(path, most)
