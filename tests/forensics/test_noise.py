"""The noise of the picture: right level on added noise, right place on a spliced region, finite on odd pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from forensics import noise
from utils.contracts import WINDOW_PIXELS, Measurement, RgbArray, Sample


def _measure(rgb: NDArray[Any]) -> Measurement:
    pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return noise.measure(Sample("test", b"", pixels, "PNG"))


def _noisy(rgb: NDArray[Any], sigma: float | NDArray[Any], seed: int = 0) -> NDArray[Any]:
    """The same noise in all channels, so that luma has the given deviation."""
    field = np.random.default_rng(seed).normal(0, 1, rgb.shape[:2]) * sigma
    return rgb + field[..., None]


@pytest.fixture(scope="module")
def flower() -> RgbArray:
    return np.asarray(load_sample_image("flower.jpg"))


@pytest.mark.parametrize("sigma", [2, 5, 10])
def test_added_white_noise_is_read_back(flower: RgbArray, sigma: int) -> None:
    own = _measure(flower).features["noise.level"]
    assert own < 1
    assert _measure(_noisy(flower, sigma)).features["noise.level"] == pytest.approx(math.hypot(own, sigma), rel=0.1)


def test_white_noise_has_the_declared_correlations() -> None:
    features = _measure(_noisy(np.full((512, 512, 3), 128, np.uint8), 8)).features
    assert features["noise.correlation_h"] == pytest.approx(-2 / 3, abs=0.02)
    assert features["noise.correlation_v"] == pytest.approx(-2 / 3, abs=0.02)
    assert features["noise.correlation_d"] == pytest.approx(4 / 9, abs=0.02)
    assert features["noise.scale_ratio"] == pytest.approx(-1, abs=0.05)
    assert features["noise.kurtosis"] == pytest.approx(math.log10(3), abs=0.02)
    assert features["noise.channel_correlation"] == pytest.approx(1, abs=0.01)
    assert features["noise.cfa"] < 0.02
    assert features["noise.block_spread"] < 0.2


def test_noise_that_grows_with_brightness_has_a_positive_signal_slope() -> None:
    ramp = np.repeat(np.tile(np.linspace(20, 235, 512), (512, 1))[..., None], 3, axis=2)
    even, sensor = _measure(_noisy(ramp, 4)), _measure(_noisy(ramp, np.sqrt(ramp[..., 0] / 4)))
    assert abs(even.features["noise.signal_slope"]) < 0.1
    assert sensor.features["noise.signal_slope"] > 1


def test_a_region_with_other_noise_lights_up_in_the_heatmap_and_nowhere_else(flower: RgbArray) -> None:
    scene = flower * 0.6 + 40  # nothing near black, where clipping cuts the noise
    calm = _noisy(scene, 3)
    spliced = calm.copy()
    spliced[128:256, 256:384] = _noisy(scene, 14, seed=1)[128:256, 256:384]
    before, after = (_measure(pixels).heatmaps["noise"] for pixels in (calm, spliced))
    inside = np.zeros(after.shape, dtype=bool)
    inside[8:16, 16:24] = True  # blocks of 16 pixels
    assert after.dtype == np.float32
    assert after.min() >= 0
    assert after.max() <= 1
    assert after[inside].mean() > 0.5
    assert after[~inside].mean() < 0.05
    assert after[inside].mean() > before[inside].mean() + 0.4


def test_independent_noise_in_the_channels_lowers_their_correlation(flower: RgbArray) -> None:
    independent = flower + np.random.default_rng(0).normal(0, 6, flower.shape)
    name = "noise.channel_correlation"
    assert _measure(independent).features[name] < 0.3 < _measure(_noisy(flower, 6)).features[name]


def test_demosaicing_leaves_a_lattice_in_green(flower: RgbArray) -> None:
    scene = _noisy(flower, 3)
    green = scene[..., 1].copy()
    neighbours = np.roll(green, 1, 0) + np.roll(green, -1, 0) + np.roll(green, 1, 1) + np.roll(green, -1, 1)
    rows, columns = np.indices(green.shape)
    missing = (rows + columns) % 2 == 1  # where a Bayer sensor has red or blue
    mosaic = scene.copy()
    mosaic[..., 1][missing] = (neighbours / 4)[missing]
    assert _measure(scene).features["noise.cfa"] < 0.05
    assert _measure(mosaic).features["noise.cfa"] > 0.5


def test_a_flat_picture_and_a_ramp_have_no_noise_and_say_so() -> None:
    ramp = np.repeat(np.tile(np.arange(200), (64, 1))[..., None], 3, axis=2)
    for rgb in (np.full((64, 64, 3), 50), ramp):
        measured = _measure(rgb)
        # The reflected border bends the ramp, which is not noise either.
        assert measured.skipped or measured.features["noise.level"] < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (31, 4000), (8, 8), (15, 15), (96, 96)])
@pytest.mark.parametrize("channels", ["grey", "colour"])
def test_odd_shapes_are_finite_or_missing_with_a_reason(shape: tuple[int, int], channels: str) -> None:
    rgb = np.random.default_rng(0).integers(40, 200, (*shape, 3))
    measured = _measure(rgb if channels == "colour" else rgb[..., :1].repeat(3, axis=2))
    assert list(measured.features) == list(noise.FEATURES)
    assert math.isnan(measured.features["noise.level"]) == (min(shape) < 8)
    assert ("noise" in measured.heatmaps) == (measured.skipped is None)


def test_one_flat_channel_is_no_division_by_zero() -> None:
    rgb = np.random.default_rng(0).integers(40, 200, (96, 96, 3))
    rgb[..., 0] = 7
    assert abs(_measure(rgb).features["noise.channel_correlation"]) < 0.2
    rgb[..., 1] = 7
    assert _measure(rgb).features["noise.channel_correlation"] == 0


def test_a_large_picture_keeps_its_heatmap_in_place() -> None:
    rgb = np.random.default_rng(0).integers(100, 140, (2400, 2400, 3), dtype=np.uint8)
    assert rgb.shape[0] * rgb.shape[1] > WINDOW_PIXELS
    heatmap = _measure(rgb).heatmaps["noise"]
    assert heatmap.shape == (150, 150)
    assert np.isnan(heatmap[0, 0])
    assert np.isfinite(heatmap[75, 75])


def test_measuring_twice_gives_the_same(flower: RgbArray) -> None:
    first, second = _measure(flower), _measure(flower.copy())
    assert first.features == second.features
    assert np.array_equal(first.heatmaps["noise"], second.heatmaps["noise"])


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).exponential(2, (300, 301)),
        np.random.default_rng(1).exponential(2, (40, 50)),
        np.random.default_rng(2).integers(0, 3, (200, 300)),
        np.zeros((90, 90)),
        np.arange(90_000).reshape(300, 300),
        np.array([[1.0, 2.0], [4.0, 8.0]]),
        np.array([[3.0]]),
    ],
)
def test_the_median_is_exact(values: NDArray[Any]) -> None:
    plane = values.astype(np.float32)
    assert noise.median_of(plane) == np.median(plane)


def test_the_median_is_exact_whatever_stands_at_regular_places() -> None:
    plane = np.random.default_rng(0).exponential(2, 99_990).astype(np.float32)
    plane[::7] = 1000
    assert noise.median_of(plane) == np.median(plane)


def test_triples_are_counted_in_both_directions() -> None:
    green = np.random.default_rng(0).integers(0, 6, (9, 11), dtype=np.uint8)
    counts = np.zeros(125)
    for plane in (green.astype(int), green.T.astype(int)):
        steps = np.clip(np.diff(plane, axis=1), -2, 2) + 2
        np.add.at(counts, steps[:, :-2] * 25 + steps[:, 1:-1] * 5 + steps[:, 2:], 1)
    shares = counts[counts > 0] / counts.sum()
    assert noise.srm_entropy(green) == pytest.approx(-(shares * np.log(shares)).sum() / math.log(125))
