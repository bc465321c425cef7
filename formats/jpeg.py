"""Where the segments of a JPEG lie (ITU-T T.81, Annex B)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from formats.parts import Part, most_parts

TEM: Final = b"\x01"
SOF0: Final = b"\xc0"
SOF1: Final = b"\xc1"
SOF2: Final = b"\xc2"
SOI: Final = b"\xd8"
EOI: Final = b"\xd9"
SOS: Final = b"\xda"
DQT: Final = b"\xdb"
DRI: Final = b"\xdd"
APP0: Final = b"\xe0"
APP1: Final = b"\xe1"
APP2: Final = b"\xe2"
APP14: Final = b"\xee"
APP15: Final = b"\xef"
COM: Final = b"\xfe"

_ALONE: Final = (TEM, SOI, EOI)  # markers without a length; restarts are skipped with the coded data they stand in

# Neither a stuffed zero, nor a restart, nor a fill byte: of FF FF DB, where the first FF is fill (B.1.1.2), it finds
# the second FF. It also steps over coded data and stray bytes, as libjpeg does.
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def segments(raw: bytes, start: int = 0) -> Iterator[Part]:
    """The parts of the JPEG whose SOI stands at ``start``, up to and with its EOI where there is one.

    ``kind`` is the marker's second byte. The data of a segment starts behind its length field; SOI is left out.
    """
    position = start + 2
    for _ in range(most_parts(raw)):
        match = _MARKER.search(raw, position)
        if match is None:
            return
        kind, position = match[1], match.end()
        if kind in _ALONE:
            yield Part(kind, position, 0)
            if kind == EOI:
                return
            continue
        end = position + max(2, int.from_bytes(raw[position : position + 2], "big"))
        data = min(position + 2, len(raw))
        yield Part(kind, data, min(end, len(raw)) - data)
        position = end


def marker_start(part: Part) -> int:
    """Offset of the FF of a part's marker."""
    return part.start - (2 if part.kind in _ALONE else 4)
