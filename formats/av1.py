"""Where the units of an AV1 picture lie (AV1 Bitstream & Decoding Process Specification, sections 5.3 and 5.9)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_TILE_GROUP, _FRAME, _PADDING = 4, 6, 15
_HAS_SIZE, _HAS_EXTENSION = 2, 4
_MOST_UNITS: Final = 10_000
_LONGEST_SIZE: Final = 8  # bytes


class Unit(NamedTuple):
    """An open bitstream unit that says its size."""

    kind: int
    size_at: int  # offset of the size
    start: int  # offset of the data behind it
    length: int


def units(data: bytes) -> Iterator[Unit]:
    """The units of an item, up to the first that is cut or does not say its size."""
    position = 0
    for _ in range(_MOST_UNITS):
        if position >= len(data) or not data[position] & _HAS_SIZE:
            return
        kind, size_at = data[position] >> 3 & 15, position + (2 if data[position] & _HAS_EXTENSION else 1)
        length, start = 0, size_at
        for byte in data[size_at : size_at + _LONGEST_SIZE]:
            length |= (byte & 127) << 7 * (start - size_at)
            start += 1
            if byte < 128:
                break
        position = start + length
        if position > len(data):
            return
        yield Unit(kind, size_at, start, length)


def shortened(data: bytes, count: int) -> bytes | None:
    """The item with as many bytes less in its last unit of coded pixels, and a unit of padding in their place.

    None where it has no such unit, or a smaller one.

    Args:
        count: from 16 on, so that there is room for the padding's own head.
    """
    unit = next((each for each in reversed(list(units(data))) if each.kind in (_FRAME, _TILE_GROUP)), None)
    if unit is None or unit.length <= count:
        return None
    end, wide = unit.start + unit.length, unit.start - unit.size_at
    padding = bytes((_PADDING << 3 | _HAS_SIZE,)) + _size(count - 5, 4) + bytes(count - 6) + b"\x80"
    return (
        data[: unit.size_at] + _size(unit.length - count, wide) + data[unit.start : end - count] + padding + data[end:]
    )


def _size(value: int, wide: int) -> bytes:
    """LEB128, with as many bytes as asked for."""
    return bytes(value >> 7 * at & 127 | (128 if at < wide - 1 else 0) for at in range(wide))
