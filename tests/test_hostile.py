"""The bad inputs people and attackers send: each gets one coded error or a flagged Sample, in bounded memory and time.

URLs that must not be fetched are in tests/ingress/test_fetch.py.
"""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ingress.decode import decode, read_file
from ingress.sources import limits_of
from scripts import fuzz
from tests.pictures import png_chunk
from utils.contracts import Sample
from utils.errors import (
    EmptyInput,
    FileMissing,
    ImageTooLarge,
    NotAnImage,
    Undecodable,
    UnsupportedFormat,
    VerifyError,
)
from utils.settings import Settings

# The product's own defaults: what we promise is promised for them.
LIMITS = limits_of(Settings.of().decode)


def photo_as(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(load_sample_image("china.jpg")).resize((320, 212))
    (image.convert("CMYK") if options.pop("cmyk", False) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def packed_zeros(count: int) -> bytes:
    """The zlib stream (RFC 1950) of ``count`` zero bytes, made without compressing them all."""

    def block(size: int) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)

    blocks, rest = divmod(count, 1_000_000)
    checksum = count % 65521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\x01" + block(1_000_000) * blocks + block(rest) + b"\3\0" + checksum.to_bytes(4, "big")


def black_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = packed_zeros((1 + width * 3) * height)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def gif_of(frames: int, side: int) -> bytes:
    header = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    # One white pixel per frame: a graphic control extension, an image descriptor, two bytes of LZW.
    frame = b"!\xf9\4\0\0\0\0\0" + b",\0\0\0\0\1\0\1\0\0" + b"\2\2\x4c\1\0"
    return header + frame * frames + b";"


def answer(raw: bytes) -> Sample | str:
    try:
        return decode(raw, "hostile", LIMITS)
    except VerifyError as error:
        assert "\n" not in error.message
        return error.code


# ---------------------------------------------------------------------------------------- refused with one coded error


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"", EmptyInput, "empty"),
        (b"dear sir or madam\n", NotAnImage, "^text"),
        (b"<!DOCTYPE html><html><svg/></html>", NotAnImage, "^HTML"),
        (b"BMW is a make of car, and this is text", NotAnImage, "^text"),
        (bytes(5000), NotAnImage, "^zeros"),
        (bytes(range(256)), NotAnImage, "^unknown data"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedFormat, "^SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a --><svg/>", UnsupportedFormat, "^SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", UnsupportedFormat, "^EPS"),
        (b"8BPS\0\1", UnsupportedFormat, "^Photoshop"),
        (b"%PDF-1.7\n", UnsupportedFormat, "^PDF"),
        (b"SIMPLE  =                    T", UnsupportedFormat, "^FITS"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", UnsupportedFormat, "^MP4"),
    ],
)
def test_what_is_no_image_of_ours_is_named_and_refused(raw: bytes, error: type[VerifyError], message: str) -> None:
    with pytest.raises(error, match=message):
        decode(raw, "hostile", LIMITS)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="No such file"):
        read_file(tmp_path / "absent.jpg", LIMITS.max_bytes)


def test_a_200_megapixel_bomb_is_refused_from_its_header() -> None:
    raw = black_png(20_000, 10_000)
    assert len(raw) < 1_000_000
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge, match="20,000 x 10,000"):
        decode(raw, "hostile", LIMITS)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    "raw",
    [
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0\xff\x3f\0",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 65000, 65000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["webp", "gif", "bmp"],
)
def test_a_header_that_promises_gigapixels_is_refused(raw: bytes) -> None:
    assert answer(raw) == "image_too_large"


# ------------------------------------------------------------------------------------------------ answered, and flagged


def test_a_truncated_file_is_flagged() -> None:
    raw = photo_as("JPEG")
    sample = answer(raw[: len(raw) // 2])
    assert isinstance(sample, Sample)
    assert sample.truncated


def test_a_gif_of_3000_frames_is_judged_on_a_few_and_says_so() -> None:
    start = time.perf_counter()
    sample = answer(gif_of(3000, 800))
    assert isinstance(sample, Sample)
    assert sample.warnings == ("animated: 3,000 frames, judged on 8 of the first 400",)
    assert len(sample.frames) == 7
    assert time.perf_counter() - start < 5


def test_a_polyglot_is_flagged() -> None:
    sample = answer(photo_as("JPEG") + b"PK\3\4" + bytes(1000))
    assert isinstance(sample, Sample)
    assert sample.warnings == ("1,004 bytes after the end of the image (ZIP)",)


def test_16_bits_and_cmyk_are_decoded_to_what_they_show() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255, 32768, 65535]], dtype=np.uint16)).save(buffer, "PNG")
    deep, cmyk = answer(buffer.getvalue()), answer(photo_as("JPEG", cmyk=True))
    assert isinstance(deep, Sample)
    assert isinstance(cmyk, Sample)
    assert deep.rgb[0, :, 0].tolist() == [0, 1, 128, 255]
    assert cmyk.mode == "CMYK"


BOMBS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "zTXt before": lambda png, bomb: png[:33] + png_chunk(b"zTXt", b"key\0\0" + bomb) + png[33:],
    "zTXt after": lambda png, bomb: png[:-12] + png_chunk(b"zTXt", b"key\0\0" + bomb) + png[-12:],
    "iCCP": lambda png, bomb: png[:33] + png_chunk(b"iCCP", b"key\0\0" + bomb) + png[33:],
    "iTXt": lambda png, bomb: png[:33] + png_chunk(b"iTXt", b"key\0\1\0\0\0" + bomb) + png[33:],
}


def metadata_bomb(name: str) -> bytes:
    return BOMBS[name](photo_as("PNG"), packed_zeros(50_000_000))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_the_metadata_costs_the_metadata_only(name: str) -> None:
    sample = answer(metadata_bomb(name))
    assert isinstance(sample, Sample)
    assert np.array_equal(sample.rgb, decode(photo_as("PNG"), "", LIMITS).rgb)
    assert "metadata" in sample.warnings[0]
    assert not sample.truncated


# ------------------------------------------------------------------ small files that would keep a decoder busy for long


SIZE = 1 << 24


def jpeg_with(extra: bytes) -> bytes:
    jpeg = photo_as("JPEG")
    return jpeg[:2] + extra + jpeg[2:]


def jpeg_of_many_scans() -> bytes:
    jpeg = photo_as("JPEG")
    scan = jpeg[jpeg.index(b"\xff\xda") :][:20]
    return jpeg[:-2] + scan * 1000 + jpeg[-2:]


def png_of_many_chunks() -> bytes:
    png = photo_as("PNG")
    return png[:33] + png_chunk(b"abCd", b"") * (SIZE // 12) + png[33:]


def gif_of_one_byte_blocks() -> bytes:
    gif = photo_as("GIF")
    return gif[:13] + b"!\xfe" + b"\1a" * (SIZE // 2) + b"\0" + gif[13:]


def tiff_of_many_strips() -> bytes:
    many = 1_000_000
    entries = (
        *((256, 4, 1, 1), (257, 4, 1, many), (258, 3, 1, 8), (259, 3, 1, 1)),
        *((262, 3, 1, 1), (273, 4, many, 200), (278, 4, 1, 1), (279, 4, many, 200)),
    )
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(SIZE)


def bmp_of_empty_rows() -> bytes:
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 1078, 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0)
    return header + bytes(1024) + b"\1\1" + bytes(2 * SIZE)


SLOW: dict[str, Callable[[], bytes]] = {
    "JPEG: EXIF in half a million segments": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(20)) * 500_000),
    "JPEG: empty comments": lambda: jpeg_with(segment(0xFE, b"") * (SIZE // 4)),
    "JPEG: stray bytes between segments": lambda: jpeg_with(segment(0xE0, b"") + bytes(SIZE)),
    "JPEG: a thousand scans": jpeg_of_many_scans,
    "JPEG: indices in every segment": lambda: jpeg_with(segment(0xE2, b"MPF\0MM\0*\0\0\0\4\xff\xff") * (SIZE // 20)),
    "PNG: empty chunks": png_of_many_chunks,
    "GIF: comment of one-byte blocks": gif_of_one_byte_blocks,
    "GIF: stray bytes between blocks": lambda: photo_as("GIF")[:-1] + b"\1" * SIZE,
    "GIF: a million frames": lambda: gif_of(1_000_000, 1),
    "TIFF: a million strips": tiff_of_many_strips,
    "BMP: endless empty rows": bmp_of_empty_rows,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_file_of_tiny_pieces_costs_little_time(name: str) -> None:
    """Refused, or answered from its first pieces."""
    raw = SLOW[name]()
    start = time.perf_counter()
    with contextlib.suppress(Undecodable):
        decode(raw, "hostile", LIMITS)
    assert time.perf_counter() - start < 5


# -------------------------------------------------------------------------------------------------------------- memory

_PEAK = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from utils.errors import VerifyError
from ingress.decode import Limits, decode

def peak_kib():
    if sys.platform == "linux":  # where ru_maxrss starts from the parent's peak
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

small, raw, limits = io.BytesIO(), sys.stdin.buffer.read(), Limits(1 << 26, 128_000_000, 8, 256_000_000)
Image.new("RGB", (64, 64)).save(small, "PNG")
decode(small.getvalue(), "", limits)  # imports and caches are not the file's doing
before = peak_kib()
try:
    decode(raw, "", limits)
except VerifyError:
    pass
print(peak_kib() - before)
"""


def peak_mib(raw: bytes) -> float:
    """Memory that decoding adds, measured in a fresh process."""
    done = subprocess.run([sys.executable, "-c", _PEAK], input=raw, capture_output=True, check=True)
    return int(done.stdout) / 1024


def test_decoding_holds_no_more_than_pillows_image_and_ours() -> None:
    sample = answer(black_png(6000, 4000))
    assert isinstance(sample, Sample)
    assert not sample.truncated
    ours_and_pillows = 24e6 * (3 + 4) / (1 << 20)
    # The lower bound shows that the measurement measures.
    assert 0.9 * ours_and_pillows < peak_mib(black_png(6000, 4000)) < ours_and_pillows + 30


@pytest.mark.parametrize(
    ("raw", "bound"),
    [
        (lambda: black_png(20_000, 10_000), 20),
        (lambda: gif_of(3000, 800), 60),
        (lambda: metadata_bomb("zTXt before"), 80),  # metadata.MAX_INFLATED twice, and what lies around it
        (lambda: metadata_bomb("iCCP"), 20),
        (lambda: photo_as("JPEG") + bytes(1 << 20), 20),
    ],
    ids=["200 megapixels", "3000 frames", "text bomb", "profile bomb", "polyglot"],
)
def test_hostile_files_stay_within_a_small_bound(raw: Callable[[], bytes], bound: float) -> None:
    assert peak_mib(raw()) < bound


# ------------------------------------------------------------------------------------------------------------- fuzzing


def test_mutated_files_are_all_answered(tmp_path: Path) -> None:
    check = fuzz.decode_check(lambda data: decode(data, "fuzz", fuzz.LIMITS))
    tally = fuzz.run(check, count=200, seed=7, seconds=10, keep=tmp_path)
    assert tally.failures == []
    assert sum(tally.outcomes.values()) == 200
    assert {"answered", "truncated", "undecodable"} <= set(tally.outcomes)
    assert list(tmp_path.iterdir()) == []


def test_the_fuzzer_reads_the_metadata_of_files_without_pixels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the format that the product would read them by; of what is no image of ours, nothing."""
    formats: list[str] = []
    monkeypatch.setattr("ingress.metadata.read", lambda raw, format: formats.append(format))
    check = fuzz.decode_check(lambda data: decode(data, "fuzz", fuzz.LIMITS))
    for raw in (photo_as("JPEG")[:200], photo_as("PNG")[:60], photo_as("TIFF")[:40], b"dear sir or madam"):
        with pytest.raises(VerifyError):
            check(raw)
    assert formats == ["JPEG", "PNG", "TIFF"]


def test_the_fuzzer_notices_crashes_and_hangs(tmp_path: Path) -> None:
    def check(data: bytes) -> str:
        if data[:1] == b"\x89":
            raise KeyError("a bug")
        while data[:4] == b"RIFF":
            pass
        return "answered"

    tally = fuzz.run(check, count=40, seed=0, seconds=0.05, keep=tmp_path)
    assert tally.outcomes["crash"] >= 1
    assert tally.outcomes["hang"] >= 1
    assert len(list(tmp_path.iterdir())) == len(tally.failures) == tally.outcomes["crash"] + tally.outcomes["hang"]


def test_the_same_seed_makes_the_same_files() -> None:
    first = list(fuzz.mutants(40, 3))
    time.sleep(1.1)  # formats that record the time count in seconds
    assert list(fuzz.mutants(40, 3)) == first
    assert list(fuzz.mutants(40, 3)) != list(fuzz.mutants(40, 4))


@pytest.mark.parametrize("offset", [1 << 40, (1 << 64) - 1])
def test_a_bigtiff_whose_directory_lies_beyond_any_file_is_undecodable(offset: int) -> None:
    with pytest.raises(Undecodable):
        decode(b"II+\0\x08\0\0\0" + offset.to_bytes(8, "little") + bytes(64), "x", LIMITS)
