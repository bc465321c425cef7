"""A decoder that lost its place in coded data is noticed at their end; whole data of any encoder are not suspected."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from formats import av1, bmff, riff
from ingress.decode import Limits, decode
from ingress.in_step import avif_is_in_step, gif_is_in_step, webp_is_in_step
from tests.pictures import encode
from utils.contracts import Sample
from utils.errors import Undecodable

LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 22, max_frames=4, max_animation_pixels=1 << 22)
PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((320, 212))
GREY = np.asarray(PHOTO.convert("L"))
FULL = 4096  # strings in GIF's table


def read(raw: bytes) -> Sample:
    return decode(raw, "test", LIMITS)


def lzw(pixels: Sequence[int], bits: int, clear_when_full: bool = True, longest: int = FULL) -> list[int]:
    """GIF's codes, between the first clear code and the end's."""
    clear = 1 << bits
    codes, table, string = [], {(value,): value for value in range(clear)}, ()
    for pixel in pixels:
        if (*string, pixel) in table and len(string) < longest:
            string = (*string, pixel)
            continue
        codes.append(table[string])
        size = len(table) + 2
        if size < FULL:
            table.setdefault((*string, pixel), size)
        elif clear_when_full:
            codes.append(clear)
            table = {(value,): value for value in range(clear)}
        string = (pixel,)
    return [*codes, table[string]]


def packed(codes: Sequence[int], bits: int, short_end: bool = False) -> bytes:
    """Codes as bits, each as wide as the table of the moment asks for."""
    clear, value, at, added = 1 << bits, 0, 0, 0
    for number, code in enumerate(codes):
        width = min(12, (clear + 1 + added).bit_length())
        if short_end and number == len(codes) - 1:
            width = min(12, (clear + added).bit_length())
        value |= code << at
        at, added = at + width, 0 if code == clear else added + 1
    return value.to_bytes(-(-at // 8), "little")


def gif(data: bytes, width: int, height: int, bits: int = 8) -> bytes:
    palette = bytes(value for level in range(1 << bits) for value in (level * 255 // ((1 << bits) - 1),) * 3)
    size = struct.pack("<HH", width, height)
    blocks = b"".join(bytes((len(data[at : at + 255]),)) + data[at : at + 255] for at in range(0, len(data), 255))
    head = b"GIF89a" + size + bytes((0x80 | bits - 1, 0, 0)) + palette
    return head + b"," + bytes(4) + size + bytes((0, bits)) + blocks + b"\0;"


def of_codes(codes: Sequence[int], bits: int = 8, shape: tuple[int, int] = GREY.shape, **options: bool) -> bytes:
    return gif(packed(codes, bits, **options), shape[1], shape[0], bits)


CLEAR, END = 256, 257
PIXELS = GREY.ravel().tolist()
CODES = lzw(PIXELS, 8)
WHOLE = [CLEAR, *CODES, END]


def test_the_encoder_of_these_tests_writes_what_pillow_reads() -> None:
    assert np.array_equal(read(of_codes(WHOLE)).rgb[..., 0], GREY)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("clear_when_full", [True, False])
def test_whole_data_are_in_step(bits: int, clear_when_full: bool) -> None:
    noisy = np.random.default_rng(bits).integers(0, 2, GREY.shape)
    for grey in (GREY >> (8 - bits), noisy, np.zeros_like(GREY)):
        codes = lzw(grey.ravel().tolist(), bits, clear_when_full)
        for most in range(1, 40):  # pictures of one row, which end at every place of the first table
            row = grey[:1, :most]
            clear = 1 << bits
            whole = [clear, *lzw(row.ravel().tolist(), bits), clear + 1]
            assert gif_is_in_step(of_codes(whole, bits, row.shape))
            assert gif_is_in_step(of_codes(whole, bits, row.shape, short_end=True))
        assert gif_is_in_step(of_codes([1 << bits, *codes, (1 << bits) + 1], bits))


@pytest.mark.parametrize(
    "codes",
    [
        WHOLE[:-1],  # no end
        [*WHOLE[:-1], CLEAR, END],
        [*WHOLE[:-1], CLEAR],
        [CLEAR, CLEAR, *WHOLE[1:]],
        WHOLE[1:],  # no beginning
        [CLEAR, *lzw(PIXELS, 8, longest=1), END],  # as patents once made some write it
        [code for pixel in PIXELS[::7] for code in (CLEAR, pixel)] + [END],
    ],
)
def test_the_habits_of_other_encoders_are_no_damage(codes: list[int]) -> None:
    shape = (1, len(PIXELS[::7])) if codes[2] == CLEAR and codes[1] != CLEAR else GREY.shape
    assert gif_is_in_step(of_codes(codes, shape=shape))
    assert gif_is_in_step(gif(packed(codes, 8) + bytes(30), shape[1], shape[0]))


@pytest.mark.parametrize(
    "codes",
    [
        [*WHOLE[:-1], 7, END],  # a pixel more
        [*WHOLE[:-2], END],  # fewer
        [*WHOLE[:900], *WHOLE[901:]],
        [*WHOLE[:900], 300, *WHOLE[900:]],
        [CLEAR, 9, 400, *WHOLE[3:]],  # a string that is not in the table
        [CLEAR, 300, *WHOLE[2:]],
        WHOLE[:4000],
    ],
)
def test_more_pixels_fewer_pixels_and_unknown_strings_are_seen(codes: list[int]) -> None:
    assert not gif_is_in_step(of_codes(codes))


def test_a_gif_whose_decoder_lost_its_place_is_damaged_anywhere() -> None:
    longer = [*WHOLE[:5000], WHOLE[5000], *WHOLE[5000:]]
    assert np.asarray(Image.open(io.BytesIO(of_codes(longer)))).shape == GREY.shape  # Pillow does not complain
    sample = read(of_codes(longer))
    assert sample.truncated
    assert (sample.missing, sample.height, sample.whole_height) == (1.0, 212, None)
    assert sample.warnings[0].startswith("damaged file: its coded data do not end with the picture")


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("colours", [2, 3, 17, 256])
def test_what_pillow_writes_is_in_step(colours: int, interlace: int) -> None:
    for size in ((320, 212), (3, 5), (1, 1), (64, 1), (200, 200)):
        image = PHOTO.resize(size).quantize(colours)
        assert gif_is_in_step(encode(image, "GIF", interlace=interlace))
        frames = {"save_all": True, "append_images": [image.rotate(90)], "loop": 0}
        assert gif_is_in_step(encode(image, "GIF", interlace=interlace, comment=b"x" * 700, **frames))


def test_any_cut_and_any_changed_byte_is_borne() -> None:
    raw = encode(PHOTO.resize((40, 30)).quantize(16), "GIF")
    for at in range(len(raw)):
        gif_is_in_step(raw[:at])
        gif_is_in_step(raw[:at] + bytes((raw[at] ^ 0x55,)) + raw[at + 1 :])


def test_a_gif_of_nothing_but_new_tables_takes_no_time() -> None:
    data = packed([4, 1] * 4000, 2) * 200
    start = time.monotonic()
    assert gif_is_in_step(gif(data, 30_000, 30_000, 2))
    assert time.monotonic() - start < 5


# ------------------------------------------------------------------------------------------------------- WebP and AVIF


def decodes(raw: bytes) -> bool:
    try:
        Image.open(io.BytesIO(raw), formats=["WEBP", "AVIF"]).load()
    except (OSError, RuntimeError):
        return False
    return True


def coded(raw: bytes) -> tuple[int, int]:
    if raw.startswith(b"RIFF"):
        part = next(part for part in riff.first_image(raw) if part.kind == b"VP8 ")
    else:
        part = next(places[0] for kind, places in bmff.items(raw) if kind == b"av01")
    return part.start, part.length


def with_flipped_bit(raw: bytes, share: float) -> bytes:
    start, length = coded(raw)
    changed = bytearray(raw)
    changed[start + int(length * share)] ^= 4
    return bytes(changed)


def flat(colour: str) -> Image.Image:
    return Image.new("RGB", (700, 500), colour)


@pytest.mark.parametrize("quality", [0, 40, 75, 90, 100])
@pytest.mark.parametrize("method", [0, 4, 6])
def test_what_libwebp_writes_is_in_step(quality: int, method: int) -> None:
    half = flat("white")
    half.paste(PHOTO, (0, 0))
    for image in (PHOTO, half, flat("black"), PHOTO.resize((5, 3)), PHOTO.resize((16, 900)), PHOTO.convert("L")):
        assert webp_is_in_step(encode(image, "WEBP", quality=quality, method=method), decodes)


def test_a_still_with_alpha_an_animation_and_padding_of_another_encoder_are_in_step() -> None:
    faded = PHOTO.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    frames = {"save_all": True, "append_images": [PHOTO.rotate(90)], "allow_mixed": True}
    for image in (PHOTO, faded):
        assert webp_is_in_step(encode(image, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), decodes)
        assert webp_is_in_step(encode(image, "WEBP", **frames), decodes)
    raw = encode(PHOTO, "WEBP")
    start, length = coded(raw)
    assert webp_is_in_step(riff.webp_of(b"VP8 ", raw[start : start + length] + bytes(5)), decodes)


@pytest.mark.parametrize("quality", [0, 50, 100])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("tiles", [{}, {"tile_rows": 1, "tile_cols": 1, "autotiling": False}])
def test_what_libaom_writes_is_in_step(quality: int, subsampling: str, tiles: dict[str, object]) -> None:
    half = flat("white")
    half.paste(PHOTO, (0, 0))
    faded = PHOTO.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    for image in (PHOTO, half, flat("black"), PHOTO.resize((5, 3)), PHOTO.resize((16, 900)), faded):
        for frames in ({}, {"save_all": True, "append_images": [image.rotate(90)]}):
            raw = encode(image, "AVIF", quality=quality, subsampling=subsampling, **tiles, **frames)
            assert avif_is_in_step(raw, decodes)


def test_an_avif_is_only_judged_by_a_decoder_that_fails_where_data_are_missing() -> None:
    asked: list[bytes] = []

    def forgives(raw: bytes) -> bool:
        asked.append(raw)
        return True

    raw = encode(PHOTO, "AVIF")
    assert avif_is_in_step(raw, forgives)
    assert [len(each) for each in asked] == [len(raw)] * 2  # nothing else in the file moves
    assert not any(decodes(each) for each in asked)


def test_the_units_of_any_av1_data_lie_inside_them() -> None:
    start, length = coded(raw := encode(PHOTO.resize((60, 40)), "AVIF"))
    data = raw[start : start + length]
    (frame,) = (unit for unit in av1.units(data) if unit.kind == 6)
    assert frame.start + frame.length == length
    for at in range(length):
        for mutant in (data[:at], data[:at] + bytes((data[at] ^ 0x82,)) + data[at + 1 :]):
            assert all(unit.start + unit.length <= len(mutant) for unit in av1.units(mutant))
            short = av1.shortened(mutant, 16)
            assert short is None or len(short) == len(mutant)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
@pytest.mark.parametrize("container", ["still", "alpha", "animation"])
def test_a_picture_whose_decoder_lost_its_place_is_damaged_anywhere_or_refused(container: str, kind: str) -> None:
    image, options = PHOTO, {}
    if container == "alpha":
        image = PHOTO.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(PHOTO.size).point(lambda value: 254 + value // 200))
    if container == "animation":
        options = {"save_all": True, "append_images": [PHOTO.rotate(90)]}
    raw = encode(image, kind, quality=80, **options)
    whole, said = read(raw), 0
    assert not whole.truncated
    for share in np.arange(0.05, 0.95, 0.1):
        try:
            sample = read(with_flipped_bit(raw, share))
        except Undecodable:
            continue
        said += 1
        assert not np.array_equal(sample.rgb, whole.rgb)
        assert sample.truncated
        assert (sample.missing, sample.height) == (1.0, 212)
        assert any(line.startswith("damaged file: its coded data do not end") for line in sample.warnings)
    assert said >= 3
