"""Whether a file declares its pixels as HDR: coding-independent code points (ITU-T H.273) in PNG, AVIF and HEIF."""

from __future__ import annotations

from typing import Final

from formats import bmff, png

_HDR: Final = {16: "PQ", 18: "HLG"}  # TransferCharacteristics of ITU-R BT.2100
_BEFORE_PIXELS: Final = b"IDAT"  # where PNG wants its cICP


def hdr_transfer(raw: bytes, kind: str) -> str:
    """``PQ`` or ``HLG``; empty when the picture is not HDR, or does not say so."""
    read = {"PNG": _png_code, "AVIF": _bmff_code, "HEIF": _bmff_code}.get(kind)
    return _HDR.get(read(raw), "") if read else ""


def _png_code(raw: bytes) -> int:
    """Of cICP (PNG, third edition, 11.3.2.6): primaries, transfer, matrix, range."""
    for part in png.chunks(raw):
        if part.kind == b"cICP" and part.length == 4:
            return raw[part.start + 1]
        if part.kind == _BEFORE_PIXELS:
            break
    return 0


def _bmff_code(raw: bytes) -> int:
    """Of an nclx colour property (ISO/IEC 14496-12, 12.1.5); a picture may have an ICC profile in a second one."""
    for part in bmff.properties(raw):
        if part.kind == b"colr" and part.length >= 10 and raw[part.start : part.start + 4] == b"nclx":
            return int.from_bytes(raw[part.start + 6 : part.start + 8], "big")
    return 0
