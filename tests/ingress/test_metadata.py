"""The reader of raw metadata: every container, damaged and hostile ones too."""

import io
import random
import struct
import time
import zlib

import numpy as np
import piexif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ingress import metadata
from ingress.metadata import clean, read

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
CREATOR_TOOL = "{http://ns.adobe.com/xap/1.0/}CreatorTool"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" {attributes}>{elements}</rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)


def xmp(elements: str = "", attributes: str = "") -> bytes:
    return XMP.format(elements=elements, attributes=attributes).encode()


def encode(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(chunk: bytes, after_pixels: bool = False) -> bytes:
    raw = encode("PNG")
    at = raw.index(b"IEND") - 4 if after_pixels else 33
    return raw[:at] + chunk + raw[at:]


def jpeg_with(marker: int, body: bytes) -> bytes:
    raw = encode("JPEG")
    return raw[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + raw[2:]


def texts(raw: bytes, format: str, source: str) -> dict[str, str]:
    return {field.name: field.value for field in read(raw, format).fields if field.source == source}


def exif_block(**tags: object) -> bytes:
    zeroth = {getattr(piexif.ImageIFD, k): v for k, v in tags.items() if hasattr(piexif.ImageIFD, k)}
    exif = {getattr(piexif.ExifIFD, k): v for k, v in tags.items() if hasattr(piexif.ExifIFD, k)}
    return piexif.dump({"0th": zeroth, "Exif": exif})


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"Title\0a cat"),
        png_chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"a cat")),
        png_chunk(b"iTXt", b"Title\0\0\0en\0Titel\0a cat"),
        png_chunk(b"iTXt", b"Title\0\1\0\0\0" + zlib.compress(b"a cat")),
    ],
)
def test_every_png_text_chunk_is_read_before_and_after_the_pixels(chunk, after_pixels):
    assert texts(png_with(chunk, after_pixels), "PNG", "png_text") == {"Title": "a cat"}


def test_a_truncated_png_still_gives_what_is_left_of_its_text():
    raw = png_with(png_chunk(b"tEXt", b"parameters\0" + b"x" * 500), after_pixels=True)
    value = texts(raw[:-300], "PNG", "png_text")["parameters"]
    assert 100 < len(value) < 500


def test_a_zip_bomb_in_a_png_text_is_cut_off():
    bomb = zlib.compress(bytes(64 * 2**20))
    start = time.perf_counter()
    value = texts(png_with(png_chunk(b"zTXt", b"parameters\0\0" + bomb)), "PNG", "png_text")["parameters"]
    assert len(value) <= metadata.MAX_FIELD_BYTES
    assert time.perf_counter() - start < 2


def test_many_large_texts_stop_at_the_total():
    chunks = b"".join(png_chunk(b"tEXt", b"k%d\0" % i + b"x" * 2**20) for i in range(20))
    assert sum(len(f.value) for f in read(png_with(chunks), "PNG").fields) <= metadata.MAX_TOTAL_BYTES


def test_image_magick_profiles_in_png_text_are_unpacked():
    block = exif_block(Make=b"Nikon")
    text = b"Raw profile type exif\0\nexif\n%8d\n" % len(block) + block.hex().encode()
    assert read(png_with(png_chunk(b"tEXt", text)), "PNG").exif.text("Make") == "Nikon"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_and_xmp_are_read_from_every_format(format):
    packet = xmp(attributes='xmp:CreatorTool="Tool 1"')
    if format == "TIFF":
        raw = encode("TIFF", tiffinfo={0x010F: "Canon", 700: packet})
    elif format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        raw = encode("PNG", exif=exif_block(Make=b"Canon"), pnginfo=info)
    else:
        raw = encode(format, exif=exif_block(Make=b"Canon"), xmp=packet)
    found = read(raw, format)
    assert found.exif.text("Make") == "Canon"
    assert list(found.values("xmp", CREATOR_TOOL)) == ["Tool 1"]
    assert found.damaged == ()


def test_jpeg_comments_iptc_and_the_trailer_are_read():
    iim = b"\x1c\x02\x6e" + struct.pack(">H", 4) + b"Anna"
    resources = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iim)) + iim
    assert texts(jpeg_with(0xED, resources), "JPEG", "iptc") == {"2:110": "Anna"}
    assert texts(encode("JPEG", comment=b"hello"), "JPEG", "comment") == {"COM": "hello"}
    assert read(encode("JPEG") + b"tail", "JPEG").trailer == b"tail"
    assert texts(jpeg_with(0xE9, b'AIGC{"Label":"1"}'), "JPEG", "app") == {"APP9": 'AIGC{"Label":"1"}'}


def test_extended_xmp_is_put_together_in_order():
    packet = xmp(attributes='xmp:CreatorTool="Tool 1"')
    head = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">I", len(packet))
    second = jpeg_with(0xE1, head + struct.pack(">I", 0) + packet[:50])
    body = head + struct.pack(">I", 50) + packet[50:]
    raw = second[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + second[2:]
    assert list(read(raw, "JPEG").values("xmp", CREATOR_TOOL)) == ["Tool 1"]


def test_a_property_of_an_ingredient_is_not_one_of_the_image():
    nested = '<xmp:Pantry><rdf:Bag><rdf:li xmp:CreatorTool="Tool 1"/></rdf:Bag></xmp:Pantry>'
    names = texts(encode("JPEG", xmp=xmp(nested)), "JPEG", "xmp")
    assert CREATOR_TOOL not in names
    assert list(names) == ["{http://ns.adobe.com/xap/1.0/}Pantry/" + CREATOR_TOOL]


@pytest.mark.parametrize(
    "packet",
    [
        b"<not closed",
        b'<!DOCTYPE a [<!ENTITY b "cccccccc">]><a>&b;</a>',
        b"<a>" * 100_000,
        b"\xff\xfe\x00",
        b"<a>" * 50_000 + b"</a>" * 50_000,
    ],
)
def test_hostile_xmp_is_refused_or_read_without_harm(packet):
    raw = png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet))
    assert read(raw, "PNG").fields == ()


def test_a_user_comment_is_decoded_in_either_byte_order():
    for encoding in ("utf-16-le", "utf-16-be"):
        comment = b"UNICODE\0" + "Steps: 20 ä".encode(encoding)
        assert (
            read(encode("JPEG", exif=exif_block(UserComment=comment)), "JPEG").exif.text("UserComment") == "Steps: 20 ä"
        )
    plain = exif_block(UserComment=b"ASCII\0\0\0hello")
    assert read(encode("JPEG", exif=plain), "JPEG").exif.text("UserComment") == "hello"


def test_an_irregular_exif_entry_does_not_lose_the_others():
    """piexif refuses the whole block; Pillow reads the rest."""
    block = bytearray(exif_block(Make=b"Canon", Software=b"Firmware 1.2.3"))
    at = block.index(struct.pack(">HH", 0x0131, 2))
    block[at + 4 : at + 8] = b"\xff\xff\xff\xff"  # a count of 4 GiB
    start = time.perf_counter()
    found = read(encode("JPEG", exif=bytes(block)), "JPEG")
    assert found.exif.text("Make") == "Canon"
    assert time.perf_counter() - start < 1


def test_a_jpeg_of_endless_empty_segments_is_given_up():
    raw = encode("JPEG")
    start = time.perf_counter()
    assert len(read(raw[:2] + b"\xff\xe5\0\x02" * 500_000, "JPEG").fields) <= metadata.MAX_FIELDS
    assert time.perf_counter() - start < 1


def test_an_exif_bomb_of_overlapping_values_is_refused():
    entries = b"".join(struct.pack("<HHII", tag, 1, 60_000, 8) for tag in range(1, 2000))
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 1999) + entries + bytes(40_000)
    found = read(png_with(png_chunk(b"eXIf", tiff)), "PNG")
    assert found.exif is None
    assert found.damaged == ("exif",)


def test_a_loop_of_exif_directories_ends():
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    assert read(png_with(png_chunk(b"eXIf", tiff)), "PNG").exif is not None


def test_undefined_rationals_are_nan_and_never_a_number():
    found = read(encode("JPEG", exif=exif_block(ExposureTime=(1, 0), FNumber=(28, 10))), "JPEG")
    assert found.exif.number("ExposureTime") is None
    assert found.exif.number("FNumber") == 2.8


def test_shown_text_is_one_short_line_without_controls():
    assert clean("a\x00b\n\n c\u202e\x1b[31m") == "ab c[31m"
    assert len(clean("x" * 10_000)) == 200


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_mutated_and_cut_files_never_raise(format):
    rng = random.Random(format)
    options = {} if format in ("TIFF", "GIF") else {"exif": exif_block(Make=b"Canon", UserComment=b"ASCII\0\0\0x")}
    raw = encode(format, **options)
    for _ in range(300):
        mutant = bytearray(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw)
        for _ in range(rng.randrange(1, 8)):
            if mutant:
                mutant[rng.randrange(min(len(mutant), 400))] = rng.randrange(256)
        read(bytes(mutant), format)
    for other in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"):
        read(raw, other)
        read(b"", other)
