"""Where the chunks of a PNG lie (PNG, third edition, section 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from formats.parts import Part, most_parts

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
CRC_BYTES: Final = 4  # behind the data of each chunk


def chunks(raw: bytes) -> Iterator[Part]:
    """The chunks of a PNG, up to and with IEND; what follows belongs to nobody."""
    position = len(SIGNATURE)
    for _ in range(most_parts(raw)):
        if position + 8 > len(raw):
            return
        length, kind = struct.unpack_from(">I4s", raw, position)
        position += 8
        yield Part(kind, position, min(length, len(raw) - position))
        if kind == b"IEND":
            return
        position += length + CRC_BYTES
