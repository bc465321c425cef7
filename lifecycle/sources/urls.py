"""A file of addresses, one a line; # begins a comment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from utils.errors import DatasetMissing
from utils.settings import Settings


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    label, generator, name = parts_of(what, "LABEL,GENERATOR,FILE")
    made: Label = "ai" if label == "ai" else "real"
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetMissing(f"{name} cannot be read: {error.strerror}") from error
    for line in lines:
        if url := line.partition("#")[0].strip():
            yield Item(
                url=url,
                author="" if label == "ai" else generator,
                generator=generator if label == "ai" else "",
                label=made,
                claim=f"listed in {Path(name).name}",
            )
