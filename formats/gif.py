"""Where the blocks of a GIF lie (GIF89a specification)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from formats.parts import Part, most_parts

IMAGE: Final = b","
COMMENT: Final = b"!\xfe"
APPLICATION: Final = b"!\xff"
END: Final = b";"
DATA: Final = b""  # a data sub-block of whatever came before it
_DESCRIPTOR: Final = 9  # bytes of an image's: place, size, flags


class Coded(NamedTuple):
    """The coded pixels of one image."""

    pixels: int  # that it has
    bits: int  # of a pixel; codes begin with one bit more
    data: bytes


def first_image(raw: bytes) -> Coded | None:
    """The image that is shown first; None where there is none, or its header is cut."""
    image, data = None, []
    for part in blocks(raw):
        if image is not None and part.kind != DATA:
            break
        if image is not None:
            data.append(raw[part.start : part.start + part.length])
        elif part.kind == IMAGE:
            image = part
    if image is None or image.length <= _DESCRIPTOR:
        return None
    width, height = struct.unpack_from("<HH", raw, image.start + 4)
    return Coded(width * height, raw[image.start + image.length - 1], b"".join(data))


def blocks(raw: bytes) -> Iterator[Part]:
    """The blocks of a GIF, each followed by its data sub-blocks, up to and with the trailer.

    An extension's kind is its two bytes, an image's its separator; of those only an image has data itself: its
    descriptor, its colours and the size of its codes.
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
        length = 0
        if kind == IMAGE:
            length = _DESCRIPTOR + 1 + (_palette(raw[position + 8]) if position + 8 < len(raw) else 0)
        position += byte == 0x21
        in_data = byte in (0x21, 0x2C)
        start = min(position, len(raw))
        yield Part(kind, start, min(length, len(raw) - start))
        position += length
        if kind == END:
            return


def _palette(flags: int) -> int:
    """Bytes of a colour table."""
    return 6 << (flags & 7) if flags & 0x80 else 0
