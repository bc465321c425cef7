"""Statistics of pixel values: exact on made histograms, ordered as expected on photographs, finite on odd ones."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from forensics import statistics
from utils.contracts import RgbArray, Sample


def _encoded(rgb: RgbArray, file_format: str, **options: Any) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, file_format, **options)
    decoded = np.asarray(Image.open(buffer).convert("RGB"))
    return Sample("test", buffer.getvalue(), decoded, file_format)


def _pixels(rgb: RgbArray) -> dict[str, float]:
    return dict(statistics.measure(Sample("test", b"", np.ascontiguousarray(rgb), "PNG")).features)


def _grey(values: NDArray[Any]) -> RgbArray:
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(("levels", "bits"), [(1, 0.0), (2, 1.0), (16, 4.0), (256, 8.0)])
def test_the_entropy_of_equally_used_levels_is_their_logarithm(levels: int, bits: float) -> None:
    values = np.tile(np.arange(levels) * (256 // levels), 4096 // levels).reshape(64, 64)
    assert _pixels(_grey(values))["image_entropy"] == pytest.approx(bits, abs=1e-12)


def test_a_lossless_file_has_no_compression_level_and_jpeg_has_more_the_harder_it_compresses(
    photograph: RgbArray,
) -> None:
    lossless = _encoded(photograph, "PNG", compress_level=1)
    good, poor = (_encoded(photograph, "JPEG", quality=quality) for quality in (95, 50))
    levels = [statistics.measure(sample).features["compression_level"] for sample in (lossless, good, poor)]
    assert levels[0] < 0.1 < levels[1] < levels[2] < 1


def test_metadata_thumbnails_and_trailers_do_not_change_the_compression_level(photograph: RgbArray) -> None:
    plain = _encoded(photograph, "JPEG", quality=80)
    commented = _encoded(photograph, "JPEG", quality=80, comment=b"x" * 60_000)
    trailing = Sample("test", plain.raw + b"x" * 90_000, plain.rgb, "JPEG", trailing_bytes=90_000)
    text = PngInfo()
    text.add_text("prompt", "x" * 60_000)
    png, png_with_text = _encoded(photograph[:64, :64], "PNG"), _encoded(photograph[:64, :64], "PNG", pnginfo=text)
    for sample, padded in ((plain, commented), (plain, trailing), (png, png_with_text)):
        expected = statistics.measure(sample).features["compression_level"]
        assert statistics.measure(padded).features["compression_level"] == expected


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_the_compression_level_of_a_flat_picture_is_in_range(file_format: str) -> None:
    sample = _encoded(_grey(np.full((256, 256), 90)), file_format)
    assert 0 <= statistics.measure(sample).features["compression_level"] <= 1


def test_a_file_of_empty_segments_is_walked_only_so_far() -> None:
    rgb = _grey(np.zeros((8, 8)))
    for raw in (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2_000_000, b"\x89PNG\r\n\x1a\n" + bytes(24_000_000)):
        assert statistics.measure(Sample("test", raw, rgb, "JPEG")).features["compression_level"] == 0


def test_colour_statistics_follow_their_definitions() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    features = _pixels(red)
    assert features["statistics.saturation_mean"] == 1
    assert features["statistics.overexposed"] == features["statistics.underexposed"] == 1
    # Without spread M3 is 0.3 times the distance of the mean from grey: rg = 255, yb = 127.5.
    assert features["statistics.colourfulness"] == pytest.approx(0.3 * math.hypot(255, 127.5))
    assert features["statistics.unique_colours"] == 1 / 1024


def test_a_grey_photograph_has_no_colour_and_fully_correlated_channels(photograph: RgbArray) -> None:
    features = _pixels(_grey(photograph[..., 1]))
    assert features["statistics.saturation_mean"] == features["statistics.colourfulness"] == 0
    assert features["statistics.channel_correlation"] == pytest.approx(1, abs=1e-4)
    assert not any(math.isnan(value) for value in features.values())


def test_stretching_the_contrast_leaves_a_comb_in_the_histogram(photograph: RgbArray) -> None:
    stretched = np.clip(photograph.astype(np.float32) * 1.4 - 30, 0, 255).astype(np.uint8)
    comb = "statistics.histogram_comb"
    assert _pixels(stretched)[comb] > _pixels(photograph)[comb] + 0.2


def test_blur_lowers_sharpness_and_chroma_subsampling_lowers_chroma_detail(photograph: RgbArray) -> None:
    blurred = np.asarray(Image.fromarray(photograph).resize((213, 142)).resize((640, 427)))
    sharpness, chroma = "statistics.sharpness", "statistics.chroma_detail"
    assert _pixels(blurred)[sharpness] < _pixels(photograph)[sharpness] - 0.5
    noisy = (photograph // 2 + np.random.default_rng(0).integers(0, 60, photograph.shape)).astype(np.uint8)
    full, halved = (_encoded(noisy, "JPEG", quality=95, subsampling=mode).rgb for mode in (0, 2))
    assert _pixels(halved)[chroma] < _pixels(full)[chroma] - 0.5


def test_co_occurrence_tells_shuffled_pixels_from_a_photograph(photograph: RgbArray) -> None:
    shuffled = np.random.default_rng(0).permutation(photograph.reshape(-1, 3)).reshape(photograph.shape)
    before, after = _pixels(photograph), _pixels(shuffled)
    assert after["statistics.cooccurrence_entropy"] > before["statistics.cooccurrence_entropy"] + 1
    assert after["statistics.equal_neighbours"] < before["statistics.equal_neighbours"]
    same = "statistics.cross_band_information"  # blind to place, so the shuffle leaves it as it is
    assert after[same] == pytest.approx(before[same])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (31, 4000), (7, 9), (64, 64)])
@pytest.mark.parametrize("content", ["flat", "noise"])
def test_odd_shapes_are_finite_or_missing_with_a_reason(shape: tuple[int, int], content: str) -> None:
    rgb = np.full((*shape, 3), 128, dtype=np.uint8)
    if content == "noise":
        rgb = np.random.default_rng(0).integers(0, 256, rgb.shape, dtype=np.uint8)
    measured = statistics.measure(Sample("test", b"", rgb, "PNG"))
    assert list(measured.features) == list(statistics.FEATURES)
    assert measured.features["image_entropy"] >= 0
    assert (measured.skipped is None) == (content == "noise" and min(shape) >= 8)


def test_measuring_twice_gives_the_same(photograph: RgbArray) -> None:
    assert _pixels(photograph) == _pixels(photograph.copy())


def test_moments_are_means_and_covariances() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    means, covariance = statistics.moments_of(*planes)
    flat = planes.reshape(3, -1)
    assert means == pytest.approx(flat.mean(axis=1))
    assert covariance == pytest.approx(np.cov(flat, bias=True))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_coder_of_some_rows_predicts_from_the_rows_above_them(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = np.random.default_rng(0).integers(100, 110, (31, 20, 3), dtype=np.uint8)
    monkeypatch.setattr(statistics, "CODED_SAMPLE", rgb[..., 0].size // every)
    red, green, blue = np.moveaxis(rgb.astype(int), 2, 0)
    bits = 0.0
    for plane in (green, red - green, blue - green):
        padded = np.pad(plane, ((1, 0), (1, 0)))
        above, left, corner = padded[:-1, 1:], padded[1:, :-1], padded[:-1, :-1]
        residual = plane - np.median([above, left, above + left - corner], axis=0)
        shares = np.unique(residual[::every], return_counts=True)[1] / residual[::every].size
        bits -= float((shares * np.log2(shares)).sum())
    assert statistics.lossless_bits(rgb) == pytest.approx(bits)
