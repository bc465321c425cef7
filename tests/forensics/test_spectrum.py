"""The power spectrum: known slopes, peaks where up-sampling puts them, finite on odd pictures."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from forensics import resampling, spectrum
from utils.contracts import RgbArray, Sample


def _features(rgb: NDArray[Any]) -> dict[str, float]:
    pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    return dict(spectrum.measure(Sample("test", b"", pixels, "PNG")).features)


def _coloured_noise(exponent: float, size: int = 512) -> NDArray[Any]:
    """A random picture whose power falls as frequency ** exponent."""
    transform = np.fft.rfft2(np.random.default_rng(0).normal(size=(size, size)))
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    radius[0, 0] = 1
    transform *= radius ** (exponent / 2)
    transform[0, 0] = 0
    field = np.fft.irfft2(transform)
    return np.asarray(field / field.std() * 35 + 128)


@pytest.mark.parametrize("exponent", [0, -1, -2])
def test_the_slope_of_a_power_law_is_read_back(exponent: int) -> None:
    features = _features(_coloured_noise(exponent))
    assert features["spectrum.slope"] == pytest.approx(exponent, abs=0.15)
    assert abs(features["spectrum.high_departure"]) < 1
    assert features["spectrum.anisotropy"] < 1
    assert abs(features["spectrum.diagonal"]) < 1


def test_blur_empties_the_high_band(photograph: RgbArray) -> None:
    blurred = ndimage.gaussian_filter(photograph.astype(np.float32), (1.2, 1.2, 0))
    before, after = _features(photograph), _features(blurred)
    assert after["spectrum.high_energy"] < before["spectrum.high_energy"] - 5
    assert after["spectrum.high_departure"] < before["spectrum.high_departure"] - 5
    assert after["spectrum.slope"] < before["spectrum.slope"]


def test_blur_along_one_direction_raises_the_anisotropy(photograph: RgbArray) -> None:
    name = "spectrum.anisotropy"
    assert _features(ndimage.uniform_filter1d(photograph, 5, axis=1))[name] > _features(photograph)[name] + 1


def _transposed_convolution(picture: NDArray[Any], kernel: list[float], stride: int) -> NDArray[Any]:
    """Up-sample as a decoder layer does: zeros between the pixels, then a separable kernel."""
    spread = np.zeros((picture.shape[0] * stride, picture.shape[1] * stride))
    spread[::stride, ::stride] = picture
    return np.asarray(ndimage.convolve1d(ndimage.convolve1d(spread, kernel, axis=0), kernel, axis=1))


@pytest.mark.parametrize(
    ("kernel", "stride", "name"),
    [
        ([0.5, 1.06, 0.5], 2, "spectrum.peak_2"),  # the even pixels come out 6 % brighter
        ([0.25, 0.5, 0.75, 1.06, 0.75, 0.5, 0.25], 4, "spectrum.peak_4"),
        ([*np.arange(1, 8) / 8, 1.06, *np.arange(7, 0, -1) / 8], 8, "spectrum.peak_8"),
    ],
)
def test_uneven_overlap_of_up_sampling_kernels_adds_the_peak_of_its_stride(
    photograph: RgbArray, kernel: list[float], stride: int, name: str
) -> None:
    small = ndimage.zoom(photograph[..., 1].astype(np.float64), (1 / stride, 1 / stride), order=1)
    even = np.array(kernel)
    even[len(kernel) // 2] = 1
    clean, checkered = (_transposed_convolution(small, list(weights), stride) for weights in (even, kernel))
    grain = np.random.default_rng(0).normal(0, 2, clean.shape)
    assert _features(checkered + grain)[name] > _features(clean + grain)[name] + 5


def test_a_faint_grating_off_the_grid_is_the_strongest_free_peak(photograph: RgbArray) -> None:
    rows, columns = np.indices(photograph.shape[:2])
    grating = 3 * np.cos(2 * math.pi * (rows * 0.31 + columns * 0.19))
    before, after = _features(photograph), _features(photograph + grating[..., None])
    assert after["spectrum.peak_free"] > before["spectrum.peak_free"] + 4
    assert after["spectrum.peak_2"] == pytest.approx(before["spectrum.peak_2"], abs=1)


@pytest.mark.parametrize("quality", [90, 60])
def test_the_block_grid_of_jpeg_is_not_taken_for_up_sampling(photograph: RgbArray, quality: int) -> None:
    small = np.asarray(Image.fromarray(photograph).resize((320, 320), Image.Resampling.LANCZOS))  # no grid of its own
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=quality)
    before, after = _features(small), _features(np.asarray(Image.open(buffer)))
    for name in ("spectrum.peak_2", "spectrum.peak_4", "spectrum.peak_8"):
        assert after[name] < before[name] + 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (31, 4000), (64, 64), (64, 4000), (130, 200)])
def test_odd_shapes_are_finite_or_missing_with_a_reason(shape: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    measured = spectrum.measure(Sample("test", b"", rgb, "PNG"))
    assert list(measured.features) == list(spectrum.FEATURES)
    assert (measured.skipped is None) == (min(shape) >= 64)


def test_a_flat_picture_has_no_spectrum_and_says_so() -> None:
    measured = spectrum.measure(Sample("test", b"", np.full((300, 300, 3), 9, np.uint8), "PNG"))
    assert measured.skipped == spectrum.NO_SPECTRUM
    assert all(math.isnan(value) for value in measured.features.values())


def test_a_picture_with_one_bright_pixel_is_finite() -> None:
    rgb = np.zeros((64, 64, 3), dtype=np.uint8)
    rgb[20, 20] = 255
    assert spectrum.measure(Sample("test", b"", rgb, "PNG")).skipped is None


def test_measuring_twice_gives_the_same(photograph: RgbArray) -> None:
    assert _features(photograph) == _features(photograph.copy())


@pytest.mark.parametrize("side", [64, 200, 300])
def test_half_a_transform_gives_the_whole_spectrum(side: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sample = Sample("test", b"", rgb, "PNG")
    power = spectrum.mean_log_power(sample)
    assert power is not None
    size = len(power)
    taper = spectrum.taper_of(size)
    starts = [(top, left) for top in spectrum.starts_of(side, size) for left in spectrum.starts_of(side, size)]
    tiles = [sample.grey[top : top + size, left : left + size].astype(np.float64) for top, left in starts]
    powers = [np.abs(np.fft.fft2((tile - tile.mean()) * taper)) ** 2 for tile in tiles]
    expected = np.mean([10 * np.log10(one + spectrum.FLOOR * size * size) for one in powers], axis=0)
    assert power == pytest.approx(expected, abs=0.01)


def test_the_running_median_is_that_of_nine_points() -> None:
    values = np.random.default_rng(0).normal(size=(5, 64))
    expected = ndimage.median_filter(values, size=(1, 9), mode="wrap")
    assert np.array_equal(spectrum.running_median(values), expected)


def test_modules_of_one_sample_share_its_spectrum(photograph: RgbArray, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = []
    rfft2 = spectrum.fft.rfft2
    monkeypatch.setattr(spectrum.fft, "rfft2", lambda tile: transforms.append(tile.shape) or rfft2(tile))
    sample = Sample("test", b"", photograph, "PNG")
    alone = resampling.measure(sample).features
    count = len(transforms)
    spectrum.measure(sample)
    assert resampling.measure(sample).features == alone
    assert len(transforms) == count > 0
    spectrum.measure(Sample("test", b"", photograph, "PNG"))
    assert len(transforms) == 2 * count
