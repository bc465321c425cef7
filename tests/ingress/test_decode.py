"""Decoding: formats, modes, damage, trailing bytes, animations, limits. Hostile files are in tests/test_hostile.py."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from sklearn.datasets import load_sample_image

from ingress.decode import Limits, decode, read_file, read_stream
from tests.pictures import encode, png_chunk
from utils.contracts import Sample, orient
from utils.errors import FileMissing, ImageTooLarge, NotAnImage, TooManyBytes, Undecodable, UnsupportedFormat

LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 22, max_frames=4, max_animation_pixels=1 << 22)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((320, 212))


def animation(image: Image.Image, kind: str, count: int, **options: object) -> bytes:
    frames = [image.rotate(5 * number) for number in range(count)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def read(raw: bytes, limits: Limits = LIMITS) -> Sample:
    return decode(raw, "test", limits)


def difference(sample: Sample, image: Image.Image) -> float:
    return float(np.abs(sample.rgb.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean())


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(photo: Image.Image, kind: str) -> None:
    sample = read(encode(photo, kind))
    assert (sample.format, sample.mode, sample.warnings) == (kind, "RGB", ())
    assert np.array_equal(sample.rgb, np.asarray(photo))
    assert not sample.truncated
    assert sample.alpha is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats_give_close_pixels(photo: Image.Image, kind: str) -> None:
    sample = read(encode(photo, kind))
    assert sample.format == kind
    assert difference(sample, photo) < 12
    assert sample.frame_count == 1


def test_heic_is_read_with_the_extra(photo: Image.Image) -> None:
    pytest.importorskip("pillow_heif", reason="pip install pillow-heif").register_heif_opener()
    sample = read(encode(photo, "HEIF"))
    assert sample.format == "HEIF"
    assert difference(sample, photo) < 12


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedFormat, match="pip install pillow-heif"):
        read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


def test_the_same_bytes_give_the_same_sample(photo: Image.Image) -> None:
    raw = animation(photo, "WEBP", 5)
    first, second = read(raw), read(raw)
    assert first.raw is raw
    assert np.array_equal(first.rgb, second.rgb)
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, second.frames, strict=True))
    assert first.warnings == second.warnings


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_extreme_shapes_are_decoded(size: tuple[int, int], kind: str) -> None:
    assert read(encode(Image.new("RGB", size, (9, 9, 9)), kind)).rgb.shape == (size[1], size[0], 3)


# --------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    sample = read(encode(Image.fromarray(ramp), kind))
    assert sample.mode == "I;16"
    assert np.array_equal(sample.rgb[..., 1].ravel(), np.arange(256))


def test_big_endian_16_bit_tiff_is_scaled() -> None:
    values = np.linspace(0, 65535, 256).astype(">u2").reshape(16, 16)
    image = Image.frombytes("I;16B", (16, 16), values.tobytes())
    assert np.array_equal(read(encode(image, "TIFF")).rgb[..., 0].ravel(), np.arange(256))


def test_16_bit_rgb_png_keeps_the_high_bytes() -> None:
    rows = b"".join(b"\0" + bytes((200, 77, 100, 3, 50, 255)) * 4 for _ in range(2))
    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    raw = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )
    assert read(raw).rgb[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 3e5])
def test_float_tiff_is_scaled_to_its_white(white: float) -> None:
    ramp = np.linspace(0, white, 256, dtype=np.float32).reshape(16, 16)
    rgb = read(encode(Image.fromarray(ramp), "TIFF")).rgb
    assert np.abs(rgb[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1


def test_float_tiff_without_a_finite_value_is_black() -> None:
    assert read(encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")).rgb.max() == 0


def test_odd_floats_are_no_numbers_and_cause_no_warning() -> None:
    bits = np.array([[0x7F800001, 0x7FC00000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000]], dtype=np.uint32)
    rgb = read(encode(Image.fromarray(bits.view(np.float32)), "TIFF")).rgb
    assert rgb[0, :, 0].tolist() == [0, 0, 255, 0, 255, 0]


def test_signed_integer_tiff_spans_its_own_range() -> None:
    image = Image.fromarray(np.array([[-1000, 0, 1000]], dtype=np.int32))
    assert read(encode(image, "TIFF")).rgb[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA"])
def test_grey_palette_and_1_bit_become_rgb(photo: Image.Image, mode: str) -> None:
    image = photo.quantize(256) if mode == "P" else photo.convert(mode)
    sample = read(encode(image, "PNG"))
    assert sample.mode == mode
    assert difference(sample, image) == 0
    assert (sample.alpha is not None) == (mode == "LA")


def test_palette_transparency_becomes_alpha_over_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    sample = read(encode(image, "PNG", transparency=1))
    assert sample.alpha is not None
    assert sample.alpha.tolist() == [[255, 0]]
    assert sample.rgb.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_translucent_pixels_are_composited_over_white() -> None:
    sample = read(encode(Image.new("RGBA", (2, 2), (0, 100, 200, 128)), "PNG"))
    assert sample.rgb[0, 0].tolist() == [127, 177, 227]
    assert sample.alpha is not None
    assert sample.alpha[0, 0] == 128


def test_nearly_opaque_pixels_stay_straight_for_stealth_records() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 254 + pixels[..., 3] % 2
    sample = read(encode(Image.fromarray(pixels), "PNG"))
    assert np.array_equal(sample.rgb, pixels[..., :3])
    assert sample.alpha is not None
    assert np.array_equal(sample.alpha, pixels[..., 3])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(photo: Image.Image, kind: str) -> None:
    sample = read(encode(photo.convert("CMYK"), kind))
    assert sample.mode == "CMYK"
    assert difference(sample, photo) < 12


def test_lab_tiff_becomes_rgb(photo: Image.Image) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
    assert lab is not None
    sample = read(encode(lab, "TIFF"))
    assert sample.mode == "LAB"
    assert difference(sample, photo) < 3


def swapped_profile() -> bytes:
    """sRGB with the red and blue primaries exchanged: a profile whose effect is unmistakable."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return icc.replace(b"rXYZ", b"tmp_").replace(b"bXYZ", b"rXYZ").replace(b"tmp_", b"bXYZ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_embedded_profile_is_applied(kind: str) -> None:
    blue = Image.new("RGB", (32, 32), (0, 0, 255))
    red, _, back = read(encode(blue, kind, icc_profile=swapped_profile())).rgb[8, 8].tolist()
    assert red > 240
    assert back < 15


def test_the_profile_leaves_alpha_alone() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 255, 254))
    sample = read(encode(image, "PNG", icc_profile=swapped_profile()))
    assert sample.rgb[0, 0, 0] > 240
    assert sample.alpha is not None
    assert sample.alpha[0, 0] == 254


def test_an_srgb_profile_changes_no_pixel(photo: Image.Image) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(encode(photo, "PNG", icc_profile=icc)).rgb, np.asarray(photo))


@pytest.mark.parametrize("icc", [b"junk" * 50, swapped_profile()[:200]])
def test_an_unusable_profile_is_ignored_with_a_warning(photo: Image.Image, icc: bytes) -> None:
    sample = read(encode(photo, "PNG", icc_profile=icc))
    assert sample.warnings == ("unusable ICC profile ignored",)
    assert np.array_equal(sample.rgb, np.asarray(photo))


def test_an_oversized_profile_is_not_parsed(photo: Image.Image) -> None:
    sample = read(encode(photo, "WEBP", icc_profile=bytes(5 << 20)))
    assert sample.warnings == ("ICC profile of 5,242,880 bytes ignored",)


# --------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pixels_stay_as_stored_and_orientation_is_kept(photo: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    sample = read(encode(photo, kind, exif=exif))
    assert sample.orientation == orientation
    assert difference(sample, photo) < 12
    assert np.array_equal(sample.upright, orient(sample.rgb, orientation))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_cut_tiff_is_not_turned_either(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encode(photo, "TIFF", exif=exif)
    sample = read(raw[: len(raw) // 2])
    assert (sample.truncated, sample.orientation, sample.picture_height) == (True, orientation, 212)
    assert 80 <= sample.height <= 106
    assert np.array_equal(sample.rgb, np.asarray(photo)[: sample.height])


@pytest.mark.parametrize("value", [0, 9, 60000])
def test_an_impossible_orientation_counts_as_none(photo: Image.Image, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert read(encode(photo, "JPEG", exif=exif)).orientation == 1


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_jpeg_without_its_end_marker_is_complete_but_flagged(photo: Image.Image) -> None:
    raw = encode(photo, "JPEG")
    sample = read(raw[:-2])
    assert sample.truncated
    assert np.array_equal(sample.rgb, read(raw).rgb)


def test_tolerance_is_not_switched_on_for_the_whole_process(photo: Image.Image) -> None:
    assert read(encode(photo, "JPEG")[:-500]).truncated
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(encode(photo, "JPEG")[:-500])).load()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
@pytest.mark.parametrize("length", [20, 30, 60, 200])
def test_a_file_without_any_pixel_is_undecodable(photo: Image.Image, kind: str, length: int) -> None:
    with pytest.raises(Undecodable):
        read(encode(photo, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))[:length])


def test_a_png_with_a_broken_text_checksum_keeps_its_pixels(photo: Image.Image) -> None:
    raw = encode(photo, "PNG")
    broken = raw[:33] + png_chunk(b"tEXt", b"key\0value")[:-1] + b"?" + raw[33:]
    sample = read(broken)
    assert np.array_equal(sample.rgb, np.asarray(photo))
    assert not sample.truncated
    assert sample.warnings == ("metadata before the pixels is damaged or too large; decoded without it",)


# ------------------------------------------------------------------------------------------------------ trailing bytes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_bytes_after_the_image_are_counted_and_named(photo: Image.Image, kind: str) -> None:
    raw = encode(photo, kind)
    assert read(raw).trailing_bytes == 0
    sample = read(raw + b"PK\3\4" + bytes(4092))
    assert sample.trailing_bytes == 4096
    assert sample.warnings == ("4,096 bytes after the end of the image (ZIP)",)
    assert np.array_equal(sample.rgb, read(raw).rgb)


def test_an_end_marker_inside_a_thumbnail_is_not_the_end(photo: Image.Image) -> None:
    raw = encode(photo, "JPEG", comment=encode(photo.resize((16, 16)), "JPEG"))
    assert read(raw).trailing_bytes == 0
    assert read(raw + b"x").trailing_bytes == 1


def test_views_that_an_mpo_lists_are_part_of_it(photo: Image.Image) -> None:
    raw = animation(photo, "MPO", 3)
    sample = read(raw + bytes(10))
    assert (sample.format, sample.trailing_bytes, sample.frame_count, sample.frames) == ("MPO", 10, 1, ())
    assert sample.warnings == (
        "holds further pages or views; judged on the first",
        "10 bytes after the end of the image (zeros)",
    )


def test_a_second_jpeg_that_nobody_lists_is_trailing(photo: Image.Image) -> None:
    raw = encode(photo, "JPEG")
    sample = read(raw + raw)
    assert sample.trailing_bytes == len(raw)
    assert "(JPEG)" in sample.warnings[0]


# ----------------------------------------------------------------------------------------------------------- animation


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_is_judged_on_frames_spread_over_it(photo: Image.Image, kind: str) -> None:
    sample = read(animation(photo, kind, 10))
    assert sample.frame_count == 10
    assert len(sample.frames) == 3
    assert all(frame.shape == sample.rgb.shape for frame in sample.frames)
    assert np.abs(sample.frames[-1].astype(int) - np.asarray(photo.rotate(45))).mean() < 14
    assert sample.warnings == ("animated: 10 frames, judged on 4 of 10",)


def test_frames_beyond_the_pixel_limit_are_not_reached(photo: Image.Image) -> None:
    limits = Limits(max_bytes=1 << 24, max_pixels=1 << 22, max_frames=4, max_animation_pixels=6 * 320 * 212)
    assert read(animation(photo, "GIF", 10), limits).warnings == ("animated: 10 frames, judged on 4 of the first 6",)


def test_one_allowed_frame_is_the_first(photo: Image.Image) -> None:
    sample = read(animation(photo, "GIF", 5), Limits(1 << 24, 1 << 22, 1, 1 << 22))
    assert sample.frames == ()
    assert sample.frame_count == 5


def test_an_animation_cut_short_keeps_the_frames_it_has(photo: Image.Image) -> None:
    raw = animation(photo, "GIF", 10)
    sample = read(raw[: len(raw) * 2 // 3])
    assert 1 <= len(sample.frames) < 3 + 1
    assert sample.frame_count < 10


def test_pages_of_a_tiff_are_not_frames(photo: Image.Image) -> None:
    sample = read(animation(photo, "TIFF", 3))
    assert (sample.frame_count, sample.frames) == (1, ())
    assert sample.warnings == ("holds further pages or views; judged on the first",)


# -------------------------------------------------------------------------------------------------------------- limits


def test_too_many_pixels_are_refused_from_the_header(photo: Image.Image) -> None:
    limits = Limits(max_bytes=1 << 24, max_pixels=320 * 212 - 1, max_frames=4, max_animation_pixels=1 << 22)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"):
        with pytest.raises(ImageTooLarge, match="IMGV_MAX_PIXELS"):
            read(encode(photo, kind), limits)


def test_too_many_bytes_are_refused(photo: Image.Image) -> None:
    with pytest.raises(TooManyBytes, match="IMGV_MAX_BYTES"):
        read(encode(photo, "PNG"), Limits(1000, 1 << 22, 4, 1 << 22))


def test_pillows_bomb_warning_never_reaches_the_caller(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 320 * 212 - 1)
    raw = encode(photo, "PNG")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read(raw).width == 320
    assert seen == []


def test_threads_may_decode_at_the_same_time(photo: Image.Image) -> None:
    files = [encode(photo, "JPEG"), encode(photo, "JPEG")[:-3000], animation(photo, "GIF", 4), b"text"] * 4
    answers: list[object] = [None] * len(files)

    def work(number: int) -> None:
        try:
            answers[number] = read(files[number]).truncated
        except NotAnImage as error:
            answers[number] = error.code

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [False, True, False, "not_an_image"] * 4


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 1000)
    assert read_file(path, 1000) == b"x" * 1000
    with pytest.raises(TooManyBytes):
        read_file(path, 999)


@pytest.mark.parametrize("name", ["absent.jpg", "a\0b", "x" * 5000])
def test_a_file_that_cannot_be_opened_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileMissing):
        read_file(tmp_path / name, 1000)


def test_folders_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, error in ((tmp_path, FileMissing), (pipe, NotAnImage), (Path("/dev/zero"), NotAnImage)):
        with pytest.raises(error):
            read_file(path, 1000)


def test_a_stream_is_read_to_its_limit() -> None:
    assert read_stream(io.BytesIO(b"x" * 10), 10) == b"x" * 10
    with pytest.raises(TooManyBytes):
        read_stream(io.BytesIO(b"x" * 11), 10)


@pytest.mark.parametrize(
    ("image", "format", "line"),
    [
        (Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG", "more than 8 bits per channel"),
        (Image.new("F", (8, 8), 0.5), "TIFF", "more than 8 bits per channel"),
        (Image.new("CMYK", (8, 8)), "JPEG", "CMYK colours"),
    ],
)
def test_a_conversion_that_loses_something_is_told(image, format, line):
    out = io.BytesIO()
    image.save(out, format)
    assert any(line in warning for warning in decode(out.getvalue(), "x", LIMITS).warnings)
