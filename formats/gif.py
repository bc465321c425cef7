"""Where the blocks of a GIF lie (GIF89a specification)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from formats.parts import Part, most_parts

IMAGE: Final = b","
COMMENT: Final = b"!\xfe"
APPLICATION: Final = b"!\xff"
END: Final = b";"
DATA: Final = b""  # a data sub-block of whatever came before it


def blocks(raw: bytes) -> Iterator[Part]:
    """The blocks of a GIF, each followed by its data sub-blocks, up to and with the trailer.

    An extension's kind is its two bytes, an image's its separator; those and the trailer have no data themselves.
    Bytes between blocks are parts of their own, as decoders step over them.
    """
    position = 13 + _palette(raw[10]) if len(raw) > 12 else len(raw)
    in_data = False
    for _ in range(most_parts(raw)):
        if position >= len(raw):
            return
        byte = raw[position]
        position += 1
        if in_data:
            in_data = byte != 0
            if in_data:
                yield Part(DATA, position, min(byte, len(raw) - position))
            position += byte
            continue
        kind = raw[position - 1 : position + 1] if byte == 0x21 else bytes((byte,))
        if kind == IMAGE:
            position += 10 + (_palette(raw[position + 8]) if position + 8 < len(raw) else 0)
        position += byte == 0x21
        in_data = byte in (0x21, 0x2C)
        yield Part(kind, min(position, len(raw)), 0)
        if kind == END:
            return


def _palette(flags: int) -> int:
    """Bytes of a colour table."""
    return 6 << (flags & 7) if flags & 0x80 else 0
