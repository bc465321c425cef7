"""What every walker of a container yields, and the one limit on how much of it there may be."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """One piece of a container: a JPEG segment, a PNG or RIFF chunk, an ISO media box, a GIF block."""

    kind: bytes  # its marker or name as written in the file
    start: int  # offset of the first byte of its data in the file
    length: int  # bytes of its data that are there: a part that is cut short ends with its container


def most_parts(raw: bytes) -> int:
    """How many parts a walker yields of this file before it gives up.

    Encoders write parts of 255 bytes (GIF) to 64 KiB (JPEG), so one for each 128 bytes is generous; each costs a walker
    about a microsecond. Walkers end quietly there. formats.containers.find_layout, which sees every file first, refuses
    one that reaches the limit.
    """
    return 100_000 + len(raw) // 128
