"""One EXIF record: the named tags of a TIFF's first page, of its Exif and GPS directories, and its thumbnail.

Values are read only for tags that somebody here asks for, each up to a limit, so that a record which is built to
exhaust its reader costs no more than any other. Does not know what a value means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from formats import tiff
from formats.tiff import Entry
from ingress import texts
from utils.contracts import Exif

MAX_TEXT: Final = 500  # characters of a text of the record; the fields of the file hold it whole
MAX_MAKER_NOTE: Final = 4096  # bytes: its signature and the beginning
MAX_THUMBNAIL: Final = 2**20

# CIPA DC-008 (Exif 3.0) tags that somebody here asks for.
_TAGS: Final = {
    0x010D: "DocumentName", 0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0112: "Orientation",
    0x0131: "Software", 0x0132: "DateTime", 0x013B: "Artist", 0x013C: "HostComputer", 0x8298: "Copyright",
    0x829A: "ExposureTime", 0x829D: "FNumber", 0x8827: "ISO", 0x9003: "DateTimeOriginal", 0x9004: "DateTimeDigitized",
    0x9201: "ShutterSpeedValue", 0x9202: "ApertureValue", 0x920A: "FocalLength", 0x927C: "MakerNote",
    0x9286: "UserComment", 0x9C9B: "XPTitle", 0x9C9C: "XPComment", 0x9C9D: "XPAuthor", 0x9C9E: "XPKeywords",
    0x9C9F: "XPSubject", 0xA002: "PixelXDimension", 0xA003: "PixelYDimension", 0xA431: "BodySerialNumber",
    0xA432: "LensSpecification", 0xA433: "LensMake", 0xA434: "LensModel",
}  # fmt: skip
_GPS_TAGS: Final = {
    1: "GPSLatitudeRef", 2: "GPSLatitude", 3: "GPSLongitudeRef", 4: "GPSLongitude", 29: "GPSDateStamp",
}  # fmt: skip
_MAKER_NOTE: Final = 0x927C
_THUMBNAIL, _THUMBNAIL_LENGTH = 0x0201, 0x0202  # JPEGInterchangeFormat
XMP, IPTC, PHOTOSHOP = 0x02BC, 0x83BB, 0x8649  # written by TIFF, and by some programs inside EXIF
C2PA: Final = 0xCD41
_PACKETS: Final = (XMP, IPTC, PHOTOSHOP)

_HEADER: Final = re.compile(rb"II[*+]\0|MM\0[*+]")
_HEADER_WITHIN: Final = 64  # bytes: behind "Exif\0\0" in whatever form, or HEIF's length
_CODES: Final = (b"UNICODE", b"ASCII", b"JIS", b"")


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in one block."""

    exif: Exif
    fields: tuple[tuple[str, str], ...]  # every text with the name of its tag, or "0x0123", whole
    packets: dict[int, bytes] = field(default_factory=dict)  # XMP, IPTC, PHOTOSHOP
    has_c2pa: bool = False


def find_block(data: bytes) -> bytes:
    """The TIFF inside of what a container calls EXIF, whatever stands before it; empty when there is none."""
    match = _HEADER.search(data, 0, _HEADER_WITHIN)
    return data[match.start() :] if match else b""


def read(block: bytes, room: int) -> Record:
    """Read one block, whose first bytes are a TIFF header.

    Args:
        room: bytes of text that may be read.
    """
    named: dict[str, Entry] = {}
    strings: list[tuple[str, Entry]] = []
    packets: dict[int, Entry] = {}
    thumbnail: dict[int, Entry] = {}
    has_c2pa = False
    for entry in tiff.entries(block):
        tag = entry.tag
        if entry.directory == "1" and tag in (_THUMBNAIL, _THUMBNAIL_LENGTH):
            thumbnail.setdefault(tag, entry)
        elif entry.directory == "gps" and tag in _GPS_TAGS:
            named.setdefault(_GPS_TAGS[tag], entry)
        elif entry.directory in ("0", "exif"):
            has_c2pa |= tag == C2PA
            if tag in _TAGS:
                named.setdefault(_TAGS[tag], entry)
            elif tag in _PACKETS:
                packets.setdefault(tag, entry)
            elif entry.type == 2:
                strings.append((f"0x{tag:04X}", entry))
    note = named.pop("MakerNote", None)
    texts_found = dict(_texts(block, [*named.items(), *strings], room))
    numbers = {name: tiff.numbers(block, entry) for name, entry in named.items() if not entry.is_bytes}
    maker_note = _bytes(block, note, MAX_MAKER_NOTE) if note else b""
    exif = Exif(
        {name: text[:MAX_TEXT] for name, text in texts_found.items() if name in named},
        {name: values for name, values in numbers.items() if values},
        maker_note,
        _thumbnail(block, thumbnail),
    )
    fields = [(name, text) for name, text in texts_found.items() if text and not name.startswith("GPS")]
    if maker_note:
        fields.append(("MakerNote", texts.decode(maker_note)))
    found = {tag: _bytes(block, entry, room) for tag, entry in packets.items()}
    return Record(exif, tuple(fields), found, has_c2pa)


def _texts(block: bytes, entries: list[tuple[str, Entry]], room: int) -> Iterator[tuple[str, str]]:
    for name, entry in entries:
        if not entry.is_bytes or (name.startswith("GPS") and entry.type != 2):
            continue
        data = _bytes(block, entry, room)
        room -= len(data)
        text = _user_comment(data) if name == "UserComment" else texts.decode(data, wide=name.startswith("XP"))
        yield name, texts.without_files(text)


def _bytes(block: bytes, entry: Entry, most: int) -> bytes:
    return block[entry.start : entry.start + max(0, min(entry.length, most))]


def _user_comment(data: bytes) -> str:
    """Exif 3.0, 4.6.5: eight bytes name the character code. Writers leave them out, and put UTF-8 behind UNICODE."""
    code = data[:8].upper().rstrip(b"\0 ")
    if len(data) < 8 or code not in _CODES:
        return texts.decode(data)
    return texts.decode(data[8:], wide=code == b"UNICODE")


def _thumbnail(block: bytes, entries: dict[int, Entry]) -> bytes:
    if len(entries) < 2:
        return b""
    start, length = (next(iter(tiff.numbers(block, entries[tag])), 0) for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH))
    return block[int(start) : int(start) + int(length)] if start > 0 and 0 < length <= MAX_THUMBNAIL else b""


def merge(records: list[Exif]) -> Exif | None:
    """One record of several blocks: what the first says counts, the others fill in what it lacks."""
    if not records:
        return None
    text: dict[str, str] = {}
    numbers: dict[str, tuple[float, ...]] = {}
    for record in reversed(records):
        text.update(record.texts)
        numbers.update(record.numbers)
    notes = (record.maker_note for record in records if record.maker_note)
    thumbnails = (record.thumbnail for record in records if record.thumbnail)
    return Exif(text, numbers, next(notes, b""), next(thumbnails, b""))
