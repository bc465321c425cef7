"""A data set that was downloaded from Kaggle (or elsewhere): folders in it are named after the label.

Kaggle's own client downloads after a log-in, and each data set has its terms: https://www.kaggle.com/docs/api
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from lifecycle.sources import Item
from lifecycle.sources.folder import files
from lifecycle.web import Web
from utils.settings import Settings

_REAL, _AI = ("real", "nature", "human", "0_real"), ("ai", "fake", "generated", "1_fake", "ai_generated")


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    folder = Path(what).absolute()
    for found in files(folder, "real", folder.name, settings):
        each = replace(found, place=str(folder))
        names = [part.lower() for part in Path(each.url.removeprefix(folder.as_uri())).parts[:-1]]
        label = next(
            (label for name in reversed(names) for label, known in (("real", _REAL), ("ai", _AI)) if name in known), ""
        )
        if label == "real":
            yield replace(each, claim=f"lies in a folder for real images of {folder.name}")
        elif label == "ai":
            yield replace(
                each,
                label="ai",
                author="",
                generator=folder.name,
                claim=f"lies in a folder for AI images of {folder.name}",
            )
