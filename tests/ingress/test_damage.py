"""Missing pixels: noticed in every format, with their share; and never seen in an intact file."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from formats import jpeg, png, tiff
from ingress.damage import tiff_damage
from ingress.decode import Limits, decode
from tests.pictures import encode, png_chunk
from utils.contracts import Sample
from utils.errors import Undecodable

LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 22, max_frames=4, max_animation_pixels=1 << 22)
PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((320, 212))


def read(raw: bytes) -> Sample:
    return decode(raw, "test", LIMITS)


def cut(raw: bytes, share: float) -> bytes:
    return raw[: int(len(raw) * share)]


def zeros(raw: bytes, share: float) -> bytes:
    return cut(raw, share).ljust(len(raw), b"\0")


def hole(raw: bytes, share: float) -> bytes:
    start, length = int(len(raw) * share), max(600, len(raw) // 10)
    return raw[:start] + bytes(length) + raw[start + length :]


def flipped(raw: bytes, share: float) -> bytes:
    changed = bytearray(raw)
    for at in range(int(len(raw) * share), int(len(raw) * share) + 40, 5):
        changed[at] ^= 0x41
    return bytes(changed)


def drawing() -> Image.Image:
    """A page with a little text, in large flat areas of white and black."""
    page = Image.new("RGB", (900, 700), "white")
    pen = ImageDraw.Draw(page)
    for line in range(12):
        pen.text((20, 30 + 18 * line), "A line of text on a white page", fill="black")
    pen.rectangle((0, 400, 900, 700), fill="black")
    return page


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "photo": lambda: PHOTO,
    "odd": lambda: PHOTO.crop((3, 5, 204, 142)),
    "half white": lambda: (wide := Image.new("RGB", (640, 424), "white"), wide.paste(PHOTO, (0, 0)))[0],
    "black below": lambda: (wide := Image.new("RGB", (640, 424), "black"), wide.paste(PHOTO, (101, 0)))[0],
    "drawing": drawing,
    "white": lambda: Image.new("RGB", (900, 900), "white"),
    "gradient": lambda: Image.linear_gradient("L").convert("RGB").resize((400, 300)),
    "dark": lambda: Image.fromarray((np.asarray(PHOTO) // 40).astype(np.uint8)),
    "grey": lambda: PHOTO.convert("L"),
}
ENCODERS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("JPEG", {}),
    "JPEG progressive": ("JPEG", {"progressive": True, "quality": 60}),
    "JPEG optimised": ("JPEG", {"optimize": True, "quality": 30}),
    "JPEG restart": ("JPEG", {"restart_marker_rows": 1, "subsampling": 0}),
    "PNG": ("PNG", {}),
    "PNG stored": ("PNG", {"compress_level": 0}),
    "WebP": ("WEBP", {}),
    "WebP fast": ("WEBP", {"quality": 100, "method": 0}),
    "WebP lossless": ("WEBP", {"lossless": True, "method": 0}),
    "AVIF": ("AVIF", {}),
    "GIF": ("GIF", {}),
    "GIF plain": ("GIF", {"interlace": 0}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "TIFF LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF PackBits": ("TIFF", {"compression": "packbits"}),
    "TIFF JPEG": ("TIFF", {"compression": "jpeg"}),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("picture", PICTURES)
def test_an_intact_file_is_never_called_damaged(picture: str, encoder: str) -> None:
    kind, options = ENCODERS[encoder]
    sample = read(encode(PICTURES[picture](), kind, **options))
    assert (sample.truncated, sample.missing, sample.top, sample.whole_height) == (False, 0.0, 0, None)
    assert sample.warnings == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "JPEG", "AVIF"])
def test_an_intact_file_of_another_mode_is_not_damaged_either(mode: str, kind: str) -> None:
    image = PHOTO.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    try:
        raw = encode(image, kind)
    except OSError:  # the format has no such mode
        return
    assert not read(raw).truncated


def adam7(image: Image.Image) -> bytes:
    """An interlaced PNG, which Pillow does not write."""
    pixels = np.asarray(image)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    data = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return png.SIGNATURE + data


def test_an_intact_interlaced_png_is_not_damaged_and_a_cut_one_is_refused() -> None:
    raw = adam7(PHOTO)
    sample = read(raw[:-6] + b"\0" + raw[-5:])  # a wrong checksum of IEND: asked about, and found whole
    assert np.array_equal(sample.rgb, np.asarray(PHOTO))
    assert not sample.truncated
    with pytest.raises(Undecodable):
        read(cut(raw, 0.7))


# What is known about each kind of damage at 60 % of a photograph: the least and the most that may be called missing.
DAMAGES = [
    ("JPEG", cut, 0.25, 0.6),
    ("JPEG", zeros, 0.25, 0.6),
    ("JPEG", hole, 0.25, 0.6),
    ("JPEG progressive", cut, 0.2, 0.8),
    ("JPEG progressive", zeros, 0.2, 0.8),
    ("JPEG progressive", hole, 0.2, 0.8),
    ("JPEG restart", cut, 0.25, 0.6),
    ("PNG", cut, 0.3, 0.6),
    ("PNG", zeros, 0.3, 0.6),
    ("PNG", hole, 0.3, 0.6),
    ("WebP", cut, 0.25, 0.7),
    ("WebP", zeros, 0.25, 0.7),
    ("WebP", hole, 0.25, 0.7),
    ("WebP lossless", cut, 0.25, 0.7),
    ("WebP lossless", zeros, 0.25, 0.7),
    ("WebP lossless", hole, 0.25, 0.7),
    ("AVIF", cut, 0.1, 0.8),
    ("AVIF", zeros, 0.1, 0.8),
    ("AVIF", hole, 0.1, 0.8),
    ("GIF", cut, 0.2, 0.8),
    ("GIF plain", cut, 0.3, 0.6),
    ("GIF plain", zeros, 0.3, 0.6),
    ("BMP", cut, 0.38, 0.45),
    ("BMP", zeros, 0.38, 0.45),
    ("BMP", hole, 0.08, 0.15),
    ("TIFF", cut, 0.38, 0.45),
    ("TIFF", zeros, 0.38, 0.45),
    ("TIFF", hole, 0.08, 0.15),
    ("TIFF LZW", hole, 0.2, 0.6),
    ("TIFF deflate", hole, 0.2, 0.6),
    ("TIFF PackBits", hole, 0.2, 0.8),
]


@pytest.mark.parametrize(("encoder", "damage", "least", "most"), DAMAGES)
def test_missing_pixels_are_noticed_with_their_share(
    encoder: str, damage: Callable[[bytes, float], bytes], least: float, most: float
) -> None:
    kind, options = ENCODERS[encoder]
    raw = encode(PHOTO, kind, **options)
    whole = read(raw)
    sample = read(damage(raw, 0.6))
    assert sample.truncated
    assert least <= sample.missing <= most
    assert sample.picture_height == 212
    assert any("truncated or damaged file" in line and "is missing" in line for line in sample.warnings)
    if sample.whole_height:  # what is judged is the picture, not what a decoder made up
        assert sample.top % 8 == 0
        kept = whole.rgb[sample.top : sample.top + sample.height]
        assert np.abs(sample.rgb.astype(int) - kept.astype(int)).mean() < 2


@pytest.mark.parametrize("damage", [cut, zeros])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_that_the_last_scan_of_a_progressive_jpeg_brought_are_judged_and_no_others(
    mode: str, subsampling: int, damage: Callable[[bytes, float], bytes]
) -> None:
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    raw = encode(PHOTO.convert(mode), "JPEG", progressive=True, quality=90, **options)
    whole, sample = read(raw), read(damage(raw, 0.93))
    assert 106 <= sample.height < 212
    assert np.array_equal(sample.rgb, whole.rgb[: sample.height])
    assert sample.missing == pytest.approx(1 - sample.height / 212, abs=1e-4)
    assert any(f"judged on rows 1 to {sample.height} of 212" in line for line in sample.warnings)


def test_a_progressive_jpeg_that_lacks_its_last_scan_is_judged_whole_and_said_to_be_incomplete() -> None:
    raw = encode(PHOTO, "JPEG", progressive=True, quality=90)
    last = [part.start for part in jpeg.segments(raw) if part.kind == jpeg.SOS][-1]
    sample = read(raw[: last + 40])
    assert sample.truncated
    assert sample.height == 212
    assert 0 < sample.missing < 0.5


@pytest.mark.parametrize("damage", [cut, zeros, hole])
def test_a_damaged_heic_is_noticed(damage: Callable[[bytes, float], bytes]) -> None:
    sample = read(damage(encode(PHOTO, "HEIF"), 0.7))
    assert sample.truncated
    assert 0.05 < sample.missing < 0.8


@pytest.mark.parametrize("encoder", ["JPEG", "PNG"])
def test_flipped_bits_are_noticed_where_a_decoder_or_a_checksum_can(encoder: str) -> None:
    kind, options = ENCODERS[encoder]
    raw = flipped(encode(PHOTO, kind, **options), 0.5)
    with contextlib.suppress(Undecodable):
        assert read(raw).warnings


@pytest.mark.parametrize("encoder", ["JPEG", "PNG", "WebP", "WebP lossless", "AVIF", "GIF", "TIFF LZW", "BMP"])
def test_a_file_with_hardly_a_pixel_left_is_undecodable(encoder: str) -> None:
    kind, options = ENCODERS[encoder]
    with pytest.raises(Undecodable):
        read(zeros(encode(PHOTO, kind, **options), 0.02))


def png_of(*pieces: bytes, name: bytes = b"IDAT") -> bytes:
    header = struct.pack(">IIBBBBB", *PHOTO.size, 8, 2, 0, 0, 0)
    return (
        png.SIGNATURE
        + png_chunk(b"IHDR", header)
        + b"".join(png_chunk(name, each) for each in pieces)
        + png_chunk(b"IEND", b"")
    )


PNG_ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(PHOTO)))


@pytest.mark.parametrize("pieces", [(), (b"",), (b"garbage" * 900,), (b"", PNG_ROWS[5000:])])
def test_a_png_without_pixels_is_undecodable(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(Undecodable):
        read(png_of(*pieces))


def test_a_png_that_lacks_data_though_every_checksum_is_right_is_truncated() -> None:
    sample = read(png_of(PNG_ROWS[: len(PNG_ROWS) // 2]))
    assert 0.4 < sample.missing < 0.6
    assert np.array_equal(sample.rgb, np.asarray(PHOTO)[: sample.height])


def test_a_png_with_a_wrong_checksum_over_right_pixels_is_whole() -> None:
    raw = png_of(PNG_ROWS)
    at = raw.index(b"IEND") - 6  # the last bytes of IDAT's checksum
    sample = read(raw[:at] + b"??" + raw[at + 2 :])
    assert np.array_equal(sample.rgb, np.asarray(PHOTO))
    assert not sample.truncated


def test_a_jpeg_with_padded_data_is_whole() -> None:
    raw = encode(PHOTO, "JPEG")
    padded = raw[:-2] + bytes(40) + raw[-2:]
    sample = read(padded)
    assert np.array_equal(sample.rgb, read(raw).rgb)
    assert not sample.truncated
    assert any("no pixels are missing" in line for line in sample.warnings)


def test_a_jpeg_decodes_as_pillow_decodes_it() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 1}, {"quality": 20}, {"icc_profile": b"junk" * 50}):
        for image in (PHOTO, PHOTO.convert("L"), PHOTO.crop((0, 0, 33, 17))):
            raw = encode(image, "JPEG", **options)
            assert np.array_equal(read(raw).rgb, np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")))


def test_a_damaged_cmyk_jpeg_is_noticed() -> None:
    assert read(cut(encode(PHOTO.convert("CMYK"), "JPEG"), 0.6)).truncated


def test_a_damaged_grey_jpeg_keeps_its_rows() -> None:
    grey = PHOTO.convert("L")
    sample = read(zeros(encode(grey, "JPEG"), 0.6))
    assert 0.2 < sample.missing < 0.7
    assert sample.rgb.shape == (sample.height, 320, 3)


def test_the_largest_page_of_a_tiff_is_judged_and_said() -> None:
    raw = encode(PHOTO.resize((80, 53)), "TIFF", save_all=True, append_images=[PHOTO])
    sample = read(raw)
    assert np.array_equal(sample.rgb, np.asarray(PHOTO))
    assert any("smaller picture (80 x 53)" in line for line in sample.warnings)
    assert sample.raw is raw


def test_a_strip_beyond_the_end_is_missing() -> None:
    raw = encode(PHOTO, "TIFF", compression="tiff_lzw", tiffinfo={tiff.ROWS_PER_STRIP: 53})
    page = tiff.pages(raw)[0]
    entry = page.entries[tiff.STRIP_OFFSETS]
    last = entry.start + 4 * (entry.number - 1)
    sample = read(raw[:last] + struct.pack("<I", len(raw) + 10) + raw[last + 4 :])
    assert sample.truncated
    assert 0 < sample.missing < 1


def apng(hidden: Image.Image, *shown: Image.Image) -> bytes:
    """An animation whose default image is not one of its frames."""
    return encode(hidden, "PNG", save_all=True, append_images=list(shown), default_image=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_apng_is_judged_on_the_frames_that_are_shown(count: int) -> None:
    shown = [PHOTO.rotate(10 * number) for number in range(count)]
    sample = read(apng(Image.new("RGB", PHOTO.size, "green"), *shown))
    assert sample.frame_count == count
    assert np.array_equal(sample.rgb, np.asarray(PHOTO))
    assert len(sample.frames) == min(count, 4) - 1
    if count > 1:
        assert np.array_equal(sample.frames[-1], np.asarray(shown[-1]))
    assert "judged on the frames that are shown" in sample.warnings[0]


def test_markers_of_a_jpeg_are_not_taken_for_its_end() -> None:
    raw = encode(PHOTO, "JPEG", comment=encode(PHOTO.resize((16, 16)), "JPEG") + bytes(600))
    assert not read(raw).truncated
    assert next(part for part in jpeg.segments(raw) if part.kind == jpeg.SOS)


def test_a_tiff_whose_samples_have_no_bits_is_not_measured() -> None:
    """BitsPerSample says that it has thousands of values, so they are looked for elsewhere, and begin with 0."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96)).save(buffer, "TIFF")
    raw = buffer.getvalue()
    entry = struct.pack("<HHI", 258, 3, 1)
    assert raw.count(entry) == 1
    odd = raw.replace(entry, struct.pack("<HHI", 258, 3, 0x3901))
    assert next(iter(tiff.pages(odd))).numbers(tiff.BITS)[0] == 0
    assert tiff_damage(odd, failed=False) is None
    with contextlib.suppress(Undecodable):
        read(odd)


def test_a_tiff_whose_strip_lies_before_the_file_is_not_measured() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 96), np.float32)).save(buffer, "TIFF")
    raw = buffer.getvalue()
    (start,) = next(iter(tiff.pages(raw))).numbers(tiff.STRIP_OFFSETS)
    entry = struct.pack("<HHII", 273, 4, 1, start)
    assert raw.count(entry) == 1
    odd = raw.replace(entry, struct.pack("<HHIi", 273, 9, 1, -122))
    assert next(iter(tiff.pages(odd))).numbers(tiff.STRIP_OFFSETS) == (-122,)
    assert tiff_damage(odd, failed=False) is None
    with contextlib.suppress(Undecodable):
        read(odd)
