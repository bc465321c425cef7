"""What decoding a file will take of memory, from its header alone. Decodes nothing, and refuses nothing."""

from __future__ import annotations

import re
from typing import Final

from formats import jpeg, tiff
from formats.containers import declared_size, find_layout
from formats.kinds import supported_format
from ingress.decode import Limits, most_frames
from utils.errors import InputError

_SOF: Final = frozenset(bytes([code]) for code in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}  # T.81, table B.1
# ISO 23008-12, 6.5.3: version and flags, width, height. Of a grid, the whole is the largest that is named.
_ISPE: Final = re.compile(rb"ispe\0\0\0\0(.{4})(.{4})", re.DOTALL)
_HEAD_BYTES: Final = 1 << 16  # of an AVIF or HEIF, in which its properties stand

_RGB, _ALPHA = 3, 1  # bytes per pixel of what is kept
_WORKING = 4  # bytes per pixel in which Pillow decodes one frame


def decoding_bytes(raw: bytes, limits: Limits) -> int:
    """Bytes that decoding takes at its peak, the decoding child included; 0 for what will be refused.

    The pixels of every frame that is judged stand twice for a moment, in the child and here, and in the child stands
    Pillow's own frame too. Of a header that does not tell its size, the largest size allowed is taken.
    """
    try:
        kind = supported_format(raw)
        width, height = _size(raw, kind)
        frames = _frames(raw, kind)
    except InputError:
        return 0
    pixels = width * height or limits.max_pixels
    if pixels > limits.max_pixels:
        return 0
    kept = _RGB * most_frames(pixels, frames, limits) + _ALPHA
    return pixels * (2 * kept + _WORKING)


def _size(raw: bytes, kind: str) -> tuple[int, int]:
    """Width and height; (0, 0) when the header does not tell."""
    if kind in ("JPEG", "MPO"):
        start = next((part.start for part in jpeg.segments(raw) if part.kind in _SOF), len(raw))
        return _big(raw[start + 3 : start + 5]), _big(raw[start + 1 : start + 3])
    if kind == "BMP":
        signed = (int.from_bytes(raw[at : at + 4], "little", signed=True) for at in (18, 22))
        width, height = map(abs, signed)  # a negative height: from the top down
        return width, height
    if kind == "TIFF":
        sides = {entry.tag: entry for entry in tiff.entries(raw) if entry.tag in (256, 257) and entry.directory == "0"}
        order = "little" if raw[:2] == b"II" else "big"
        found = [int.from_bytes(raw[each.start : each.start + each.length], order) for each in sides.values()]  # type: ignore[arg-type]
        return (found[0], found[1]) if len(found) == 2 else (0, 0)
    if kind in ("AVIF", "HEIF"):
        sizes = [(_big(width), _big(height)) for width, height in _ISPE.findall(raw[:_HEAD_BYTES])]
        return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return declared_size(raw, kind)


def _frames(raw: bytes, kind: str) -> int:
    """How many frames an animation may have; where only decoding tells, as many as may be."""
    if kind in ("GIF", "PNG"):
        return find_layout(raw, kind).frames
    if (kind == "WEBP" and raw[12:16] == b"VP8X" and raw[20:21] and raw[20] & 2) or raw[8:12] == b"avis":
        return 1 << 16
    return 1


def _big(value: bytes) -> int:
    return int.from_bytes(value, "big")
