"""Where the entries of a TIFF's directories lie (TIFF 6.0, section 2; BigTIFF); EXIF is one inside another file."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from formats.parts import most_parts

NEW_SUBFILE_TYPE: Final = 254
WIDTH: Final = 256
HEIGHT: Final = 257
BITS: Final = 258
COMPRESSION: Final = 259
PHOTOMETRIC: Final = 262
MAKE: Final = 271
STRIP_OFFSETS: Final = 273
SAMPLES: Final = 277
ROWS_PER_STRIP: Final = 278
STRIP_BYTES: Final = 279
PLANAR: Final = 284
TILE_OFFSETS: Final = 324
SUB_DIRECTORIES: Final = 330
SAMPLE_FORMAT: Final = 339
DNG_VERSION: Final = 50706

EXIF_POINTER: Final = 0x8769
GPS_POINTER: Final = 0x8825
_POINTERS: Final = {EXIF_POINTER: "exif", GPS_POINTER: "gps", 0xA005: "interop"}

_ORDERS: Final = {b"II": "<", b"MM": ">"}
_BIG: Final = 43  # in place of 42: offsets and counts of 64 bits
# The data types: struct's letter, and how many of it make one value. 13 is TIFF's IFD, 16 to 18 are BigTIFF's.
_TYPES: Final = {
    1: ("B", 1), 2: ("B", 1), 3: ("H", 1), 4: ("I", 1), 5: ("I", 2), 6: ("b", 1), 7: ("B", 1), 8: ("h", 1),
    9: ("i", 1), 10: ("i", 2), 11: ("f", 1), 12: ("d", 1), 13: ("I", 1), 16: ("Q", 1), 17: ("q", 1), 18: ("Q", 1),
}  # fmt: skip
_BYTE_TYPES: Final = (1, 2, 6, 7)
_MASK: Final = 4  # bit of NEW_SUBFILE_TYPE: the page is another page's transparency


class Entry(NamedTuple):
    """One tag of one directory. Unlike a Part, entries may share their data and stand in any order in the file."""

    directory: str  # "0", "1", … for the pages (in EXIF "1" is the thumbnail), or exif, gps, interop, sub
    tag: int
    type: int
    number: int  # of values, as written: the file may hold fewer
    start: int  # offset of the first byte of the data
    length: int  # bytes of the data that are there
    owner: int  # offset of the directory

    @property
    def is_bytes(self) -> bool:
        """Whether the values are bytes or characters, and not numbers."""
        return self.type in _BYTE_TYPES


def entries(raw: bytes) -> Iterator[Entry]:
    """The entries of the first page and of the directories that it points to, then those of the further pages.

    Every directory once, whatever points to it. Nothing when the first bytes are no TIFF header.
    """
    order = _ORDERS.get(raw[:2])
    if order is None or len(raw) < 8:
        return
    is_big = raw[2:4] in (b"\0+", b"+\0")
    offset, count_form, form = ("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")
    step, inline, counted = (20, 8, 8) if is_big else (12, 4, 2)
    pending, seen, room = [(_unpack(order + offset, raw, 8 if is_big else 4), "0")], set[int](), most_parts(raw)
    page = 0
    while pending and room > 0:
        start, directory = pending.pop(0)
        if start in seen or not 8 <= start <= len(raw) - counted:
            continue
        seen.add(start)
        count = _unpack(order + count_form, raw, start)
        first = start + counted
        readable = min(count, (len(raw) - first) // step, room)
        room -= 1 + readable
        for position in range(first, first + readable * step, step):
            tag, kind, number = struct.unpack_from(order + form, raw, position)
            letter, each = _TYPES.get(kind, ("B", 1))
            size = number * each * struct.calcsize(order + letter)
            at = position + step - inline
            value = _unpack(order + offset, raw, at)
            at = at if size <= inline else value
            entry = Entry(directory, tag, kind, number, at, max(0, min(size, len(raw) - at)), start)
            yield entry
            if tag == SUB_DIRECTORIES:
                pending[:0] = [(int(link), "sub") for link in numbers(raw, entry) if link == link]
            if tag in _POINTERS and directory != "interop":
                pending.insert(0, (value, _POINTERS[tag]))
        if directory == str(page):
            page += 1
            pending.append((_unpack(order + offset, raw, first + count * step), str(page)))


def _unpack(form: str, raw: bytes, at: int) -> int:
    """One number; 0, which points nowhere, when the file ends before it."""
    try:
        return int(struct.unpack_from(form, raw, at)[0])
    except (struct.error, OverflowError):  # BigTIFF's offsets may be beyond what any file can hold
        return 0


def numbers(raw: bytes, entry: Entry, most: int = 64) -> tuple[float, ...]:
    """The first values of an entry, a fraction x/0 as NaN; empty for a type that nobody defined."""
    if entry.type not in _TYPES:
        return ()
    letter, each = _TYPES[entry.type]
    form = struct.Struct(_ORDERS[raw[:2]] + letter * each)
    count = min(most, entry.length // form.size)
    found = form.iter_unpack(raw[entry.start : entry.start + count * form.size])
    if each == 2:
        return tuple(above / below if below else math.nan for above, below in found)
    return tuple(float(value) for (value,) in found)


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One directory that describes a picture."""

    raw: bytes
    start: int  # its offset in the file
    entries: dict[int, Entry]

    def numbers(self, tag: int, most: int = 64) -> tuple[int, ...]:
        """The first values of a tag; empty when it is absent."""
        if tag not in self.entries:
            return ()
        return tuple(int(each) for each in numbers(self.raw, self.entries[tag], most) if math.isfinite(each))

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return next(iter(self.numbers(tag, most=1)), default)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height; zeros where the directory gives none."""
        return self.number(WIDTH), self.number(HEIGHT)


def pages(raw: bytes) -> list[Page]:
    """Every page and what it points to as a part of itself (SubIFDs), the first page first."""
    pictures = (entry for entry in entries(raw) if entry.directory.isdigit() or entry.directory == "sub")
    found: dict[int, dict[int, Entry]] = {}
    for entry in pictures:
        found.setdefault(entry.owner, {}).setdefault(entry.tag, entry)
    return [Page(raw, start, tags) for start, tags in found.items()]


def largest_page(raw: bytes) -> Page | None:
    """The page with the most pixels, masks left out; of equals the first. None: no page has a size."""
    some = (each for each in pages(raw) if min(each.size) > 0 and not each.number(NEW_SUBFILE_TYPE) & _MASK)
    return max(some, key=lambda page: page.size[0] * page.size[1], default=None)


def opened_at(raw: bytes, start: int) -> bytes:
    """The same file with the directory at ``start`` as its first page."""
    at, width = (8, 8) if raw[2:4] in (b"\0+", b"+\0") else (4, 4)
    return raw[:at] + struct.pack(_ORDERS[raw[:2]] + ("Q" if width == 8 else "I"), start) + raw[at + width :]
