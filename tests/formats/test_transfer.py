"""HDR is told from what the file declares for the picture that is shown, and from nothing else."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from formats import bmff
from formats.transfer import hdr_transfer
from ingress.decode import Limits, decode
from tests.pictures import encode, png_chunk

LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 22, max_frames=4, max_animation_pixels=1 << 22)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
HDR = [(16, "PQ"), (18, "HLG"), (13, ""), (1, ""), (2, ""), (8, "")]
_FIRST_CHUNK_END = 33  # signature and IHDR


def png_with(code: int, length: int = 4) -> bytes:
    raw = encode(PICTURE, "PNG")
    return raw[:_FIRST_CHUNK_END] + png_chunk(b"cICP", bytes((9, code, 0, 1))[:length]) + raw[_FIRST_CHUNK_END:]


def nclx(code: int) -> bytes:
    return b"nclx" + struct.pack(">HHHB", 9, code, 0, 128)


def avif_with(code: int, kind: str = "AVIF") -> bytes:
    raw = encode(PICTURE, kind)
    at = raw.index(b"nclx")
    return raw[: at + 6] + struct.pack(">H", code) + raw[at + 8 :]


def warnings(raw: bytes) -> tuple[str, ...]:
    return decode(raw, "test", LIMITS).warnings


@pytest.mark.parametrize(("code", "name"), HDR)
@pytest.mark.parametrize("kind", ["PNG", "AVIF", "HEIF"])
def test_an_hdr_picture_is_said_to_be_judged_without_tone_mapping(kind: str, code: int, name: str) -> None:
    raw = png_with(code) if kind == "PNG" else avif_with(code, kind)
    assert hdr_transfer(raw, kind) == name
    expected = (f"HDR ({name}): judged without tone mapping, so not as a screen shows it",) if name else ()
    assert warnings(raw) == expected


def test_a_png_of_16_bits_says_both() -> None:
    raw = encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG")
    raw = raw[:_FIRST_CHUNK_END] + png_chunk(b"cICP", bytes((9, 16, 0, 1))) + raw[_FIRST_CHUNK_END:]
    assert [line.split(":")[0] for line in warnings(raw)] == ["more than 8 bits per channel", "HDR (PQ)"]


def test_what_stands_behind_the_pixels_or_is_cut_short_declares_nothing() -> None:
    raw = encode(PICTURE, "PNG")
    assert hdr_transfer(raw[:-12] + png_chunk(b"cICP", bytes((9, 16, 0, 1))) + raw[-12:], "PNG") == ""
    assert hdr_transfer(png_with(16, length=2), "PNG") == ""


def box(kind: bytes, *data: bytes) -> bytes:
    body = b"".join(data)
    return struct.pack(">I", 8 + len(body)) + kind + body


def described(primary: int, wide: bool) -> bytes:
    """Item 1 has an sRGB property, item 2 (a tone-mapped twin) a PQ one, and a profile before it."""
    size, step = ("I", "H") if wide else ("H", "B")
    flag = 0x8000 if wide else 0x80
    entries = struct.pack(f">{size}B{step}", 1, 1, 1) + struct.pack(f">{size}B{step}{step}", 2, 2, 2, flag | 3)
    version = bytes((1, 0, 0, 1)) if wide else bytes(4)
    colours = (box(b"colr", nclx(13)), box(b"colr", b"prof" + bytes(40)), box(b"colr", nclx(16)))
    properties = box(b"ipco", *colours) + box(b"ipma", version, struct.pack(">I", 2), entries)
    pitm = box(b"pitm", version[:1] + bytes(3), struct.pack(f">{size}", primary))
    return box(b"ftyp", b"mif1") + box(b"meta", bytes(4), pitm, box(b"iprp", properties))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("primary", "name"), [(1, ""), (2, "PQ"), (3, "")])
def test_only_the_properties_of_the_picture_that_is_shown_count(primary: int, name: str, wide: bool) -> None:
    raw = described(primary, wide)
    assert hdr_transfer(raw, "HEIF") == name
    for end in range(len(raw)):  # a file that was cut is walked as far as it goes
        places = bmff.properties(raw[:end])
        assert all(part.start + part.length <= end for part in places)
