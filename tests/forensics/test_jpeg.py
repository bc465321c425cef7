"""JPEG headers and earlier compressions, on photographs that scikit-learn carries and on files made here."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from sklearn.datasets import load_sample_image

from forensics import jpeg
from tests.pictures import never_compressed
from utils.contracts import Sample

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def saved(pixels, **options):
    buffer = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "JPEG", **options)
    raw = buffer.getvalue()
    with Image.open(BytesIO(raw)) as image:
        return Sample("test", raw, np.array(image.convert("RGB")), "JPEG", mode=image.mode)


def ramp(size=24):
    return np.dstack([np.add.outer(np.arange(size), np.arange(size)).astype(np.uint8) * 5] * 3)


def test_every_ijg_quality_is_recovered_from_its_tables():
    for quality in range(1, 101):
        file = saved(ramp(), quality=quality)
        header = jpeg.read_header(file.raw)
        with Image.open(BytesIO(file.raw)) as image:
            assert {key: list(table) for key, table in header.tables.items()} == {
                key: list(table) for key, table in image.quantization.items()
            }
        features = jpeg.measure(file).features
        assert features["jpeg.quality"] == quality
        assert features["jpeg.chroma_quality"] == quality or quality <= 3  # where every chroma step is 255
        assert features["jpeg.table_distance"] == 0


def test_tables_of_an_editor_are_called_its_own_and_not_standard():
    table = [min(255, 3 + 2 * i) for i in range(64)]
    found = jpeg.measure(saved(ramp(), qtables=[table, table]))
    assert found.features["jpeg.table_distance"] > 0.05
    assert found.facts["jpeg"]["standard_tables"] is False
    assert "own tables" in found.facts["jpeg"]["description"]


@pytest.mark.parametrize(("option", "ratio", "name"), [(0, 1, "4:4:4"), (1, 2, "4:2:2"), (2, 4, "4:2:0")])
def test_chroma_subsampling_is_read(option, ratio, name):
    found = jpeg.measure(saved(ramp(), subsampling=option))
    assert found.features["jpeg.chroma_subsampling"] == ratio
    assert found.facts["jpeg"]["chroma_subsampling"] == name


def test_progressive_restart_and_markers_are_read():
    found = jpeg.measure(saved(ramp(64), progressive=True, restart_marker_blocks=3)).features
    assert (found["jpeg.progressive"], found["jpeg.restart_interval"], found["jpeg.jfif"]) == (1, 3, 1)
    plain = jpeg.measure(saved(ramp(64))).features
    assert (plain["jpeg.progressive"], plain["jpeg.restart_interval"], plain["jpeg.adobe"]) == (0, 0, 0)
    cmyk = jpeg.measure(saved(Image.fromarray(ramp(64)).convert("CMYK"))).features
    assert (cmyk["jpeg.adobe"], cmyk["jpeg.jfif"]) == (1, 0)


def test_a_png_is_skipped_with_the_reason():
    found = jpeg.measure(Sample("test", b"\x89PNG", ramp(), "PNG"))
    assert found.skipped == "not a JPEG: PNG"
    assert all(np.isnan(value) for value in found.features.values())
    assert found.features.keys() == jpeg.FEATURES.keys()


def test_a_grey_jpeg_has_no_chroma_and_says_so():
    found = jpeg.measure(saved(Image.fromarray(load_sample_image("china.jpg")).convert("L"), quality=80))
    assert np.isnan(found.features["jpeg.chroma_quality"])
    assert found.skipped == "a JPEG without chroma"
    assert found.features["jpeg.quality"] == 80


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("quality", [60, 75, 90, 95, 100])
def test_one_compression_shows_no_earlier_one(name, quality):
    found = jpeg.measure(saved(never_compressed(name), quality=quality))
    assert found.features["jpeg.double_score"] < 0.5
    assert found.features["jpeg.ghost_depth"] < 0.1
    assert not found.notes


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(("first", "last"), [(60, 85), (75, 90), (80, 95), (75, 100)])
def test_a_better_second_compression_shows_the_first_and_its_quality(name, first, last):
    once = saved(never_compressed(name), quality=first)
    found = jpeg.measure(saved(once.rgb, quality=last))
    assert found.features["jpeg.double_score"] > jpeg.DOUBLE_NOTE
    assert found.features["jpeg.ghost_depth"] > 0.2
    assert found.features["jpeg.ghost_quality"] == pytest.approx(first, abs=2)
    assert [note.code for note in found.notes] == ["jpeg_double"]


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_much_coarser_second_compression_is_not_claimed_to_be_seen(name):
    once = saved(never_compressed(name), quality=95)
    assert not jpeg.measure(saved(once.rgb, quality=60)).notes


def test_pixels_that_were_changed_after_decoding_are_not_judged():
    file = saved(load_sample_image("china.jpg"), quality=60)
    changed = (255 * (file.rgb / 255) ** 0.6).astype(np.uint8)
    found = jpeg.measure(Sample("test", file.raw, changed, "JPEG"))
    assert "not multiples" in found.skipped
    assert np.isnan(found.features["jpeg.double_score"])
    assert found.features["jpeg.quality"] == 60


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (9, 9), (16, 700)])
@pytest.mark.parametrize("quality", [5, 92])
def test_small_and_flat_images_are_skipped_with_a_reason(shape, quality):
    found = jpeg.measure(saved(np.full((*shape, 3), 77, np.uint8), quality=quality))
    assert np.isnan(found.features["jpeg.double_score"])
    assert "too few coefficients" in found.skipped


def test_broken_headers_never_raise():
    good = saved(ramp(), quality=80).raw
    generator = np.random.default_rng(0)
    for _ in range(500):
        raw = bytearray(good[: generator.integers(0, 700)])
        for position in generator.integers(0, max(len(raw), 1), 4):
            raw[position : position + 1] = bytes([generator.integers(0, 256)])
        found = jpeg.measure(Sample("test", bytes(raw), ramp(), "JPEG"))
        assert not any(np.isinf(value) for value in found.features.values())


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 300_000, b"\xff\xd8" + b"\xff\xfe\0\2" * 300_000, b"junk" * 99]
)
def test_a_header_without_tables_is_skipped(raw):
    assert jpeg.measure(Sample("test", raw, ramp(), "JPEG")).skipped == "the JPEG header has no luma quantisation table"


def test_fill_bytes_before_a_marker_are_allowed():
    raw = saved(ramp(), quality=80).raw
    filled = raw[:2] + b"\xff\xff" + raw[2:]
    assert jpeg.read_header(filled).tables.keys() == jpeg.read_header(raw).tables.keys()


def test_sixteen_bit_tables_are_read_and_a_zero_step_divides_nothing():
    steps = (np.arange(64) * 8).astype(">u2")
    raw = b"\xff\xd8\xff\xdb\x00\x83\x10" + steps.tobytes() + b"\xff\xc0\x00\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xda"
    table = jpeg.read_header(raw).table(0)
    assert table[0] == 1
    assert table[1] == 8
    assert table[8] == 16  # second in zigzag order is to the right, third is below


def test_coefficients_are_those_of_the_block_transform():
    block = np.random.default_rng(0).uniform(0, 255, (8, 8)).astype(np.float32)
    assert jpeg.DCT_2D @ block.ravel() == pytest.approx(dctn(block, norm="ortho").ravel(), abs=1e-3)


def test_blocks_are_read_row_by_row_without_the_clipped_ones():
    grey = np.random.default_rng(0).uniform(2, 253, (20, 27)).astype(np.float32)
    grey[3, 9] = 255
    grey[12, 20] = 0
    tiles = [grey[row : row + 8, column : column + 8].ravel() for row, column in ((0, 0), (0, 16), (8, 0), (8, 8))]
    assert np.array_equal(jpeg.blocks_of(grey), tiles)
