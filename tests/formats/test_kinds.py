"""Names of what is refused: a legal file is never "damaged", "text" or "unknown data"."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from formats import jpeg, tiff
from formats.kinds import describe, supported_format, tiff_storage
from tests.pictures import encode
from utils.errors import NotAnImage, UnsupportedFormat

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def saved(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    return encode(image, kind, **options)


def tiff_of(*pages: dict[int, int | bytes], order: str = "<") -> bytes:
    """A TIFF of pages that hold one value per tag: a number, or bytes."""
    raw = bytearray(b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for page in pages:
        start = len(raw)
        tail = bytearray()
        values = start + 2 + 12 * len(page) + 4
        raw += struct.pack(order + "H", len(page))
        for tag, value in sorted(page.items()):
            if isinstance(value, int):
                raw += struct.pack(order + "HHII", tag, 4, 1, value)
            else:
                raw += struct.pack(order + "HHII", tag, 7, len(value), values + len(tail))
                tail += value
        raw += struct.pack(order + "I", values + len(tail) if page is not pages[-1] else 0) + tail
    return bytes(raw)


def refusal(raw: bytes) -> str:
    with pytest.raises(UnsupportedFormat) as caught:
        supported_format(raw)
    return caught.value.message


PAGE = {tiff.WIDTH: 640, tiff.HEIGHT: 480, tiff.COMPRESSION: 1, tiff.PHOTOMETRIC: 2, tiff.STRIP_OFFSETS: 8}
NIKON = {271: b"NIKON CORPORATION\0"}


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "PPM", "ICNS", "QOI"])
def test_other_formats_that_pillow_writes_are_named(kind: str) -> None:
    raw = saved(kind, PICTURE.resize((64, 64)))
    name = {"PPM": "Netpbm", "SGI": "SGI image"}.get(kind, kind)
    assert name in refusal(raw)


@pytest.mark.parametrize("options", [{"compression": "tga_rle"}, {"id_section": b"name"}])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_every_kind_of_tga_is_named(mode: str, options: dict[str, object]) -> None:
    assert "TGA" in refusal(saved("TGA", PICTURE.convert(mode), **options))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\1\0\0\0\x6c\0\0\0" + bytes(32) + b" EMF" + bytes(60), "EMF"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF"),
        (b"gimp xcf v011\0" + bytes(40), "GIMP XCF"),
        (b"II\xbc\1" + bytes(40), "JPEG XR"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40), "Canon CR3"),
        (b"\0MRM" + bytes(60), "Minolta MRW"),
        (b"IIU\0\x18\0\0\0" + bytes(60), "Panasonic RW2"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(60), "Fujifilm RAF"),
        (b"IIRO\x08\0\0\0" + bytes(60), "Olympus ORF"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "Canon CR2"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI" + bytes(60), "CgBI"),
    ],
)
def test_formats_are_named_by_their_first_bytes(head: bytes, name: str) -> None:
    assert name in refusal(head)


SVG = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg">' + b'<path d="M0 0"/>' * 9000


@pytest.mark.parametrize("name", ["", "drawing.svg"])
@pytest.mark.parametrize("svg", [SVG, b"\xef\xbb\xbf  " + SVG, SVG[SVG.index(b"<svg") :]])
def test_a_packed_svg_is_named_svgz(svg: bytes, name: str) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(name, "wb", fileobj=buffer) as file:
        file.write(svg)
    assert "SVGZ" in refusal(buffer.getvalue())


@pytest.mark.parametrize(
    "raw", [gzip.compress(b"text"), gzip.compress(bytes(1 << 24)), gzip.compress(SVG)[:12], b"\x1f\x8b" + b"x" * 99]
)
def test_other_gzip_is_named_gzip(raw: bytes) -> None:
    assert refusal(raw).startswith("gzip ")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("pages", "name"),
    [
        ([PAGE | {tiff.DNG_VERSION: 4}], "DNG"),
        ([PAGE, PAGE | {tiff.PHOTOMETRIC: 32803}], "camera raw"),
        ([PAGE | NIKON, PAGE | {tiff.PHOTOMETRIC: 32803}], "Nikon NEF"),
        ([PAGE, PAGE | {tiff.COMPRESSION: 32767}], "Sony ARW"),
        ([PAGE, PAGE | {tiff.COMPRESSION: 65535}], "PEF"),
        ([PAGE | {tiff.COMPRESSION: 34887}], "LERC"),
        ([PAGE | {tiff.COMPRESSION: 50002}], "JPEG XL"),
        ([PAGE | {tiff.BITS: 16, tiff.SAMPLE_FORMAT: 3}], "16-bit floating-point"),
        ([PAGE | {tiff.BITS: 16, tiff.SAMPLES: 3, tiff.PLANAR: 2}], "planar TIFF with 16 bits"),
    ],
)
def test_variants_of_tiff_are_named(pages: list[dict[int, int | bytes]], name: str, order: str) -> None:
    assert name in refusal(tiff_of(*pages, order=order))


def test_a_page_behind_a_sub_directory_link_is_seen() -> None:
    raw = tiff_of(PAGE | {tiff.SUB_DIRECTORIES: 0}, PAGE | {tiff.PHOTOMETRIC: 32803})
    first, second = tiff.pages(raw)
    at = raw.index(struct.pack("<HHII", tiff.SUB_DIRECTORIES, 4, 1, 0)) + 8
    end = first.start + 2 + 12 * len(first.entries)
    linked = bytearray(raw)
    linked[at : at + 4], linked[end : end + 4] = struct.pack("<I", second.start), bytes(4)
    assert [page.start for page in tiff.pages(bytes(linked))] == [first.start, second.start]
    assert "camera raw" in refusal(bytes(linked))


def test_directories_that_lead_in_a_circle_end() -> None:
    raw = bytearray(tiff_of(PAGE))
    raw[-4:] = struct.pack("<I", 8)
    assert len(tiff.pages(bytes(raw))) == 1


@pytest.mark.parametrize("options", [{}, {"big_tiff": True}, {"compression": "tiff_lzw"}, {"save_all": True}])
def test_the_largest_page_is_found_and_can_be_opened_as_the_first(options: dict[str, object]) -> None:
    small = PICTURE.resize((16, 12))
    extra = {"save_all": True, "append_images": [PICTURE, small]}
    raw = saved("TIFF", small, **(options | extra))
    page = tiff.largest_page(raw)
    assert page is not None
    assert page.size == (64, 48)
    opened = Image.open(io.BytesIO(tiff.opened_at(raw, page.start)))
    assert np.array_equal(np.asarray(opened), PIXELS)


@pytest.mark.parametrize(
    ("marker", "precision", "name"),
    [
        (0xC1, 12, "12-bit JPEG"),
        (0xC3, 8, "lossless JPEG"),
        (0xF7, 8, "JPEG-LS"),
        (0xC5, 8, "hierarchical JPEG"),
    ],
)
def test_jpeg_processes_that_are_not_decoded_are_named(marker: int, precision: int, name: str) -> None:
    raw = saved("JPEG")
    frame = next(part for part in jpeg.segments(raw) if part.kind == jpeg.SOF0)
    changed = bytearray(raw)
    changed[jpeg.marker_start(frame) + 1], changed[frame.start] = marker, precision
    assert name in refusal(bytes(changed))


def test_a_height_at_the_end_is_named() -> None:
    raw = saved("JPEG")
    frame = next(part for part in jpeg.segments(raw) if part.kind == jpeg.SOF0)
    assert "DNL" in refusal(raw[: frame.start + 1] + b"\0\0" + raw[frame.start + 3 :])


@pytest.mark.parametrize("cut", [3, 4, 10, 200])
def test_a_cut_header_has_no_variant(cut: int) -> None:
    assert supported_format(saved("JPEG")[:cut]) == "JPEG"
    assert supported_format(saved("TIFF")[: cut + 1]) == "TIFF"


def test_a_legal_tiff_that_the_decoder_refuses_is_told_from_a_damaged_one() -> None:
    raw = tiff_of(PAGE | {tiff.BITS: 24})
    assert "compression 1, photometric 2, bits 24" in tiff_storage(raw)
    assert tiff_storage(raw[:40]) == ""
    assert tiff_storage(tiff_of(PAGE | {tiff.STRIP_OFFSETS: 1 << 30})) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_what_is_decoded_keeps_its_name(kind: str) -> None:
    assert supported_format(saved(kind)) == kind


@pytest.mark.parametrize("raw", [b"hello", b"\0\5\x16\7" + bytes(100), bytes(range(1, 200)), b"<html></html>"])
def test_what_is_no_image_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(NotAnImage):
        supported_format(raw)


def test_noise_is_rarely_given_a_name() -> None:
    rng = np.random.default_rng(1)
    named = [describe(rng.bytes(64)) for _ in range(2000)]
    assert sum(name != "unknown data" for name in named) <= 4
