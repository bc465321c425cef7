"""Where the boxes and items of an ISO media file lie (ISO/IEC 14496-12); AVIF and HEIF are such files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from formats.parts import Part, most_parts

C2PA: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # C2PA 2.2, A.5: the name of its uuid box


def boxes(raw: bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """The boxes between two offsets; those inside of a box are found by a further call."""
    position, end = start, len(raw) if end is None else min(end, len(raw))
    for _ in range(most_parts(raw)):
        if position + 8 > end:
            return
        size, kind, head = _number(raw, position, 4), raw[position + 4 : position + 8], 8
        if size == 1:  # the length follows in 64 bits
            size, head = _number(raw, position + 8, 8), 16
        elif size == 0:  # up to the end
            size = end - position
        if size < head:
            return
        data = min(position + head, end)
        yield Part(kind, data, min(position + size, end) - data)
        position += size


def _inside_meta(raw: bytes) -> dict[bytes, Part]:
    """The first box of each kind in the file's ``meta`` box."""
    meta = next((box for box in boxes(raw) if box.kind == b"meta"), Part(b"", len(raw), 0))
    return _first_of_each(boxes(raw, meta.start + 4, meta.start + meta.length))


def _first_of_each(found: Iterator[Part]) -> dict[bytes, Part]:
    inside: dict[bytes, Part] = {}
    for box in found:
        inside.setdefault(box.kind, box)
    return inside


def properties(raw: bytes) -> tuple[Part, ...]:
    """The properties of the primary item, the picture that is shown: of many items that a file may describe."""
    inside = _inside_meta(raw)
    iprp, pitm = (inside.get(kind) for kind in (b"iprp", b"pitm"))
    if iprp is None or pitm is None:
        return ()
    found = _first_of_each(boxes(raw, iprp.start, iprp.start + iprp.length))
    ipco, ipma = (found.get(kind) for kind in (b"ipco", b"ipma"))
    if ipco is None or ipma is None:
        return ()
    primary = _number(raw, pitm.start + 4, 4 if raw[pitm.start : pitm.start + 1] > b"\0" else 2)
    known = list(boxes(raw, ipco.start, ipco.start + ipco.length))
    return tuple(known[index - 1] for index in _associated(raw, ipma, primary) if 0 < index <= len(known))


def _associated(raw: bytes, ipma: Part, item: int) -> list[int]:
    """Numbers, from 1 on, of the properties of an item."""
    wide = 4 if raw[ipma.start : ipma.start + 1] > b"\0" else 2
    step = 2 if _number(raw, ipma.start + 3, 1) & 1 else 1
    position, end = ipma.start + 8, ipma.start + ipma.length
    for _ in range(min(_number(raw, ipma.start + 4, 4), most_parts(raw))):
        if position >= end:
            break
        number, count = _number(raw, position, wide), _number(raw, position + wide, 1)
        position += wide + 1
        if number == item:  # the highest bit says that a reader must know the property
            return [
                _number(raw, position + step * each, step) & (0x7FFF if step == 2 else 0x7F) for each in range(count)
            ]
        position += step * count
    return []


def items(raw: bytes) -> Iterator[tuple[bytes, tuple[Part, ...]]]:
    """The items that the file's ``meta`` box lists: type (of a ``mime`` item its content type), and where it lies."""
    inside = _inside_meta(raw)
    if b"iinf" not in inside or b"iloc" not in inside:
        return
    places = dict(_locations(raw, inside[b"iloc"], inside.get(b"idat")))
    for number, kind in _types(raw, inside[b"iinf"]):
        if number in places:
            yield kind, places[number]


def _types(raw: bytes, iinf: Part) -> Iterator[tuple[int, bytes]]:
    """Number and type of each item."""
    first = iinf.start + (6 if raw[iinf.start : iinf.start + 1] == b"\0" else 8)
    for entry in boxes(raw, first, iinf.start + iinf.length):
        width = {2: 2, 3: 4}.get(_number(raw, entry.start, 1))  # earlier versions have no types
        if entry.kind != b"infe" or width is None:
            continue
        at = entry.start + 4 + width + 2
        kind = raw[at : at + 4]
        if kind == b"mime":  # after the item's name
            texts = raw[at + 4 : entry.start + entry.length].split(b"\0", 2)
            kind = texts[1] if len(texts) > 1 else kind
        yield _number(raw, entry.start + 4, width), kind


def _locations(raw: bytes, iloc: Part, idat: Part | None) -> Iterator[tuple[int, tuple[Part, ...]]]:
    """Number and extents of each item that lies in this file, or in the box for small ones."""
    version = _number(raw, iloc.start, 1)
    sizes = raw[iloc.start + 4 : iloc.start + 6].hex()
    if version > 2 or len(sizes) < 4:
        return
    offset_size, length_size, base_size, index_size = (int(digit, 16) for digit in sizes)
    wide = 4 if version == 2 else 2
    position, end = iloc.start + 6 + wide, iloc.start + iloc.length
    left, room = _number(raw, iloc.start + 6, wide), most_parts(raw)
    while left > 0 and room > 0 and position < end:
        number, position = _number(raw, position, wide), position + wide
        method = _number(raw, position + 1, 1) & 15 if version else 0
        position += 4 if version else 2
        origin = _number(raw, position, base_size)
        if method == 1 and idat:
            origin += idat.start
        count, position = _number(raw, position + base_size, 2), position + base_size + 2
        step = (index_size if version else 0) + offset_size + length_size
        count = min(count, (end - position) // step if step else 1)
        extents = []
        for at in range(position, position + count * step, step or 1):
            after = at + step - length_size
            start = origin + _number(raw, after - offset_size, offset_size)
            length = _number(raw, after, length_size) or len(raw)  # without a length: the rest
            if start <= len(raw):
                extents.append(Part(b"", start, min(length, len(raw) - start)))
        position += count * step
        left, room = left - 1, room - 1 - count
        if extents and (method == 0 or (method == 1 and idat)):
            yield number, tuple(extents)


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "big")
