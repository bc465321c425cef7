"""Where the chunks of a RIFF file lie; WebP (RFC 9649) is one."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from formats.parts import Part, most_parts

_FRAME_HEADER = 16  # bytes of an ANMF chunk before its own chunks: place, size, duration


def declared_end(raw: bytes) -> int:
    """Offset behind the container, as its header says; the file may be shorter."""
    size = int.from_bytes(raw[4:8], "little")
    return 8 + size + size % 2


def chunks(raw: bytes, start: int = 12, end: int | None = None) -> Iterator[Part]:
    """The chunks inside the RIFF container, whatever stands behind it; or those between two offsets."""
    position, end = start, min(len(raw), declared_end(raw) if end is None else end)
    for _ in range(most_parts(raw)):
        if position + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", raw, position)
        position += 8
        yield Part(kind, position, min(length, end - position))
        position += length + length % 2


def first_image(raw: bytes) -> tuple[Part, ...]:
    """The chunks of a still WebP, or of the first frame of an animation."""
    parts = tuple(chunks(raw))
    frame = next((part for part in parts if part.kind == b"ANMF"), None)
    if frame is None:
        return parts
    return tuple(chunks(raw, frame.start + _FRAME_HEADER, frame.start + frame.length))


def webp_of(kind: bytes, data: bytes) -> bytes:
    """A WebP of nothing but one chunk of coded pixels."""
    body = b"WEBP" + struct.pack("<4sI", kind, len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body
