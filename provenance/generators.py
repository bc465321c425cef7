"""What AI generators and editors leave in metadata: the matcher, and what no table can say.

The traces themselves are rows of signatures.toml. Every one can be written and removed by anybody. Reads no bytes of an
image: ingress.metadata does.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic import Field as Checked

from ingress.texts import clean
from provenance import comfyui
from utils.contracts import ClaimKind, Field, Json, Metadata

TABLE: Final = Path(__file__).with_name("signatures.toml")
SHOWN_NAME: Final = 60  # characters of a program's name as the file gives it

XMP_IPTC_EXT: Final = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP_TC260: Final = "{http://www.tc260.org.cn/ns/AIGC/1.0/}"


def _split(place: object) -> object:
    """ "png_text:SD:mode" is the field named "SD:mode" of the PNG's texts."""
    return tuple(place.split(":", 1)) if isinstance(place, str) else place


Place: TypeAlias = Annotated[
    tuple[Literal["png_text", "xmp", "exif", "iptc", "comment", "app", "trailer"], str],  # Field.source, Field.name
    BeforeValidator(_split),
]
Pattern: TypeAlias = re.Pattern[str]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shelf:
    """The fields of one file by their places: a file with thousands is not gone through for every condition."""

    def __init__(self, fields: Iterable[Field]) -> None:
        self._found: dict[tuple[str, str], dict[int, Field]] = {}  # in the order of the file
        for number, field in enumerate(fields):
            for name in (field.name.lower(), "*"):
                self._found.setdefault((field.source, name), {})[number] = field

    def at(self, places: Iterable[Place]) -> Iterator[Field]:
        """The fields in these places, in the order of the file."""
        parts = [self._found[place] for place in places if place in self._found]
        if len(parts) <= 1:
            return iter(parts[0].values() if parts else ())
        found = {number: field for part in parts for number, field in part.items()}
        return (found[number] for number in sorted(found))


class Condition(_Row):
    """Holds when one of the places carries a text in which every pattern is found; without patterns, any text."""

    where: tuple[Place, ...] = Checked(min_length=1)
    patterns: tuple[Pattern, ...] = (re.compile("."),)

    @cached_property
    def _places(self) -> frozenset[Place]:
        return frozenset((source, name.lower()) for source, name in self.where)

    def find(self, shelf: Shelf, not_in: Collection[str] = ()) -> Field | None:
        """The field in which it holds, not in these sources; names are compared without case, "*" is any name."""
        for field in shelf.at(self._places):
            if field.source not in not_in and all(each.search(field.value) for each in self.patterns):
                return field
        return None


class _Known(_Row):
    """Since when and from where we know a row; the columns are explained in signatures.toml."""

    known_from: datetime.date
    evidence: Literal["file", "source", "document", "report"]
    read_in: str = Checked(min_length=1)


class Signature(_Known):
    """One trace of one generator: a hit needs every condition."""

    generator: str = Checked(min_length=1)
    kind: ClaimKind
    conditions: tuple[Condition, ...] = Checked(min_length=1)
    examples: tuple[tuple[tuple[Place, str], ...], ...] = Checked(min_length=1)

    def find(self, shelf: Shelf, not_in: Collection[str] = ()) -> Field | None:
        """The field in which the first condition holds, when all hold; sources of ``not_in`` are passed over there."""
        first, *others = self.conditions
        decisive = first.find(shelf, not_in)
        return decisive if decisive and all(condition.find(shelf) for condition in others) else None


class ComfyUI(_Known, comfyui.Names):
    """The nodes of a graph."""


class C2paName(_Known):
    """Names by which one product appears in C2PA manifests."""

    product: str = Checked(min_length=1)
    ai_product: str = ""
    pattern: Pattern
    only_generates: bool = False
    examples: tuple[str, ...] = Checked(min_length=1)


class Table(_Row):
    """signatures.toml."""

    places: dict[str, tuple[Place, ...]]
    generating_programs: tuple[str, ...]
    editing_programs: tuple[str, ...]
    comfyui: ComfyUI
    signature: tuple[Signature, ...]
    c2pa_name: tuple[C2paName, ...]


@cache
def table() -> Table:
    """The table as shipped; a key of ``places`` in a condition stands for the places below it.

    Raises:
        pydantic.ValidationError: a row is not as the classes above say.
    """
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    for condition in (condition for row in rows["signature"] for condition in row["conditions"]):
        condition["where"] = [place for key in condition["where"] for place in rows["places"].get(key, [key])]
    return Table.model_validate(rows)


@cache
def _named(programs: tuple[str, ...]) -> Condition:
    """That the field of a program's name begins with one of these."""
    pattern = rf"(?i)^(?:{'|'.join(map(re.escape, programs))})\b"
    return Condition(where=table().places["software"], patterns=(re.compile(pattern),))


@dataclass(frozen=True, slots=True)
class Hit:
    """A signature found in a file."""

    generator: str
    kind: ClaimKind
    source: str  # Field.source of the deciding field
    name: str
    text: str  # beginning of that field, cleaned: often the prompt


# cv.iptc.org/newscodes/digitalsourcetype, and the two terms that C2PA adds: as an address, IPTC's short form, or bare.
# Compared whole; writers differ in case, host and a slash at the end.
_SOURCE_TYPE: Final = re.compile(
    r"(?i)(?:(?:https?://)?(?:www\.)?(?:cv\.iptc\.org/newscodes|c2pa\.org)/digitalsourcetype[/:#]|digsrctype:)?"
    r"\s*([A-Za-z]+)[/#]?"
)
SOURCE_TYPE_KINDS: Final[dict[str, ClaimKind]] = {
    "trainedAlgorithmicMedia": "generated",
    "trainedAlgorithmicData": "generated",
    "compositeWithTrainedAlgorithmicMedia": "edited_with_ai",
    "compositeSynthetic": "edited_with_ai",
    "digitalCapture": "captured",
    "computationalCapture": "captured",
    "compositeCapture": "captured",
    "negativeFilm": "captured",
    "positiveFilm": "captured",
    "humanEdits": "edited",
    "minorHumanEdits": "edited",
}

_TERMS: Final = {term.lower(): term for term in SOURCE_TYPE_KINDS}
# IPTC's property, by its names since 2008, in either of its namespaces.
SOURCE_TYPE_PROPERTY: Final = re.compile(
    r"(?i)\{(?:https?://)?(?:www\.)?iptc\.org/std/Iptc4xmp(?:Ext|Core)/[^}]*\}DigitalSource(?:File)?Type"
)

# GB 45438-2025 and TC260-PG-20258A: the fields of the implicit label.
_TC260_FIELDS: Final[tuple[str, ...]] = (
    "Label",
    "ContentProducer",
    "ProduceID",
    "ReservedCode1",
    "ContentPropagator",
    "PropagateID",
    "ReservedCode2",
)
_TC260_OWN_PLACES: Final = (("xmp", XMP_TC260 + "AIGC"), ("png_text", "AIGC"))


def find(metadata: Metadata) -> tuple[Hit, ...]:
    """The generators and AI editors that signed the metadata: at most one hit for each source."""
    hits: dict[str, Hit] = {}
    shelf = Shelf(metadata.fields)
    graph = comfyui.find(metadata.fields, table().comfyui)
    if graph and graph[1] != "edited":
        hits[graph[0].source] = _hit(*graph, "ComfyUI")
    for signature in table().signature:
        if field := signature.find(shelf, not_in=hits):
            hits[field.source] = _hit(field, signature.kind, signature.generator)
    if graph:
        hits.setdefault(graph[0].source, _hit(*graph, "ComfyUI"))
    if field := _named(table().generating_programs).find(shelf, not_in=hits):
        hits[field.source] = _hit(field, "generated")
    return tuple(hits.values())


def find_editor(metadata: Metadata) -> Hit | None:
    """The first known editing program among those that the file names."""
    field = _named(table().editing_programs).find(Shelf(metadata.fields))
    return _hit(field, "edited") if field else None


def _hit(field: Field, kind: ClaimKind, generator: str = "") -> Hit:
    """Without a ``generator``, the program names itself in the field."""
    return Hit(generator or clean(field.value, SHOWN_NAME), kind, field.source, field.name, clean(field.value))


def source_type(value: str) -> str | None:
    """The term of a DigitalSourceType written as URI or bare; None when it is no such thing."""
    match = _SOURCE_TYPE.fullmatch(value.strip())
    return _TERMS.get(match[1].lower(), match[1]) if match else None


def c2pa_product(names: Iterable[str]) -> C2paName | None:
    """The row of the product behind C2PA names."""
    names = tuple(names)
    return next((row for row in table().c2pa_name if any(row.pattern.search(name) for name in names)), None)


def find_tc260(metadata: Metadata) -> tuple[Field, dict[str, str]] | None:
    """China's implicit AI label in any of its forms: the field it stands in, and its values, cleaned."""
    for field in metadata.fields:
        is_own_place = (field.source, field.name) in _TC260_OWN_PLACES
        if not is_own_place and "AIGC" not in field.value[:4096]:
            continue
        label = _first_object(field.value, bare_prefix=not is_own_place)
        known = {key: clean(label[key], 80) for key in _TC260_FIELDS if key in label}
        if known:
            return field, known
    return None


def _first_object(text: str, bare_prefix: bool) -> dict[str, Json]:
    """The label's JSON object: {...}, {"AIGC": {...}}, {"AIGC": "{...}"}, or AIGC{...} where a prefix is needed."""
    start = text.find("{", 0, 4096)
    if start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start : start + 65536])
        inner = value.get("AIGC")
        if isinstance(inner, str):
            inner = json.loads(inner)
    except (ValueError, RecursionError, AttributeError):
        return {}
    if isinstance(inner, dict):
        return inner
    is_label = not bare_prefix or text[:start].rstrip("\0 :=").endswith("AIGC")
    return value if is_label and isinstance(value, dict) else {}
