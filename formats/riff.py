"""Where the chunks of a RIFF file lie; WebP (RFC 9649) is one."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from formats.parts import Part, most_parts


def declared_end(raw: bytes) -> int:
    """Offset behind the container, as its header says; the file may be shorter."""
    size = int.from_bytes(raw[4:8], "little")
    return 8 + size + size % 2


def chunks(raw: bytes) -> Iterator[Part]:
    """The chunks inside the RIFF container, whatever stands behind it."""
    position, end = 12, min(len(raw), declared_end(raw))
    for _ in range(most_parts(raw)):
        if position + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", raw, position)
        position += 8
        yield Part(kind, position, min(length, end - position))
        position += length + length % 2
