"""Where images of known origin can be had: one file each. To add one: write its file, add one line to SOURCES.

A source is an asynchronous generator ``items(web, what, settings)`` of what it offers, the newest first where it can;
``what`` is the part of the argument behind the colon. It fetches descriptions only: ``lifecycle.collect`` fetches
images.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from typing import Literal, Protocol, cast

from lifecycle.web import Web
from utils.errors import BadSettings
from utils.settings import Settings

SOURCES = {
    "commons": "real: a category of Wikimedia Commons, as commons:Featured pictures of people",
    "openverse": "real: openverse:WORDS",
    "unsplash": "real: unsplash:WORDS; IMGV_UNSPLASH_ACCESS_KEY; for measuring, its rules exclude training",
    "pexels": "real: pexels:WORDS; IMGV_PEXELS_API_KEY",
    "flickr": "real: flickr:WORDS in Flickr Commons; IMGV_FLICKR_API_KEY",
    "civitai": "AI: civitai, or civitai:BASE MODEL",
    "lexica": "AI: lexica:WORDS",
    "gallery": "a page's images: gallery:LABEL,GENERATOR,CSS SELECTOR,URL; the generator is the gallery's claim",
    "urls": "a file of addresses: urls:LABEL,GENERATOR,FILE",
    "folder": "folder:LABEL,GENERATOR,FOLDER",
    "git": "git:LABEL,GENERATOR,PATTERN OF PATHS,GIT FOLDER",
    "s3": "s3:LABEL,GENERATOR,BUCKET/PREFIX",
    "huggingface": "Parquet shards: huggingface:LABEL,GENERATOR,OWNER/NAME",
    "diffusiondb": "AI: diffusiondb:NUMBER OF A PART, or diffusiondb:PART.ZIP",
    "kaggle": "a downloaded data set: kaggle:FOLDER with real/… and ai/… (or fake, generated, nature) inside",
}

Label = Literal["real", "ai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image that a source offers, before it is fetched. Empty: not stated."""

    url: str  # its address; of files here a name that stays the same
    label: Label
    claim: str  # what makes the label
    page: str = ""  # for people
    author: str = ""
    licence: str = ""
    date: str = ""  # ISO 8601
    generator: str = ""
    place: str = ""  # a folder whose name others may have too
    read: Callable[[], Awaitable[bytes]] | None = None  # its bytes; None: fetch the address

    @property
    def group(self) -> str:
        """Whose it is: pictures of one author or generator are no independent witnesses."""
        whose = self.generator if self.label == "ai" else self.author
        return f"{whose} {sha256(self.place.encode()).hexdigest()[:8]}" if self.place else whose


class Source(Protocol):
    def items(self, web: Web, what: str, settings: Settings) -> AsyncIterator[Item]: ...


def open_source(argument: str) -> tuple[str, Source, str]:
    """Its name, the source, and what of it: ``commons:Featured pictures``.

    Raises:
        BadSettings: no such source.
    """
    name, _, what = argument.partition(":")
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SOURCES)}"
        raise BadSettings(f"no source {name!r}; {hint}")
    return name, cast(Source, import_module(f"lifecycle.sources.{name}")), what


def parts_of(what: str, names: str) -> list[str]:
    """The comma-separated parts of an argument; the last may hold commas.

    Raises:
        BadSettings: some are missing, or the first is no label.
    """
    wanted = names.split(",")
    parts = what.split(",", len(wanted) - 1)
    if len(parts) < len(wanted) or not parts[-1] or parts[0] not in ("real", "ai"):
        raise BadSettings(f"{what!r} is not {names}; the label is real or ai")
    return [part.strip() for part in parts]
