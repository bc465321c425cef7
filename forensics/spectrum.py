"""The power spectrum: its slope, its high end, its directions, and the peaks that up-sampling layers leave.

Knows no phase and no place: one spectrum stands for the whole window, so there is no heatmap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from forensics.noise import median_of
from forensics.statistics import variance_of
from utils.contracts import Measurement, Sample

FEATURES: Mapping[str, str] = {
    "spectrum.slope": "exponent of the radial power law between 0.03 and 0.3 cycles per pixel, about -5..0",
    "spectrum.curvature": "bend of the radial spectrum in log-log, per decade squared, about -10..10",
    "spectrum.high_energy": "power above 0.35 over power from 0.1 to 0.35 cycles per pixel, dB, about -50..10",
    "spectrum.high_departure": "mean distance of the spectrum above 0.4 cycles per pixel from the power law, dB",
    "spectrum.diagonal": "diagonal minus horizontal and vertical power above 0.25 cycles per pixel, dB, -40..20",
    "spectrum.anisotropy": "standard deviation over 12 directions of the power from 0.1 to 0.45 cycles per pixel, dB",
    "spectrum.peak_2": "mean excess over its surroundings at the three points of frequency 1/2, dB",
    "spectrum.peak_4": "mean excess at the other points of multiples of 1/4, dB",
    "spectrum.peak_8": "mean excess at the other points of multiples of 1/8, dB",
    "spectrum.peak_free": "strongest isolated peak off the grid of multiples of 1/8, robust deviations, 0..60",
}

_TILE_SIZES = (256, 128, 64)
NO_SPECTRUM = f"the spectrum needs {_TILE_SIZES[-1]} pixels on the short side, and contrast"
_MOST_TILES = 8  # per side
FLOOR = 1e-3  # power per pixel; rounding luma leaves about 4e-2, so it only keeps empty bins finite
_DB = 10 / math.log(10)


def measure(sample: Sample) -> Measurement:
    """Measure the mean log power spectrum of the window.

    Peaks: a decoder that up-samples by 2, 4 or 8 repeats its spectrum at multiples of those fractions of the sampling
    frequency. JPEG's 8 x 8 grid has the same frequencies, but its steps are up as often as down and so hardly
    leave a line in the spectrum of luma: on 118 real pictures scaled down to 256 pixels and coded at quality 90, 60 and
    30, no median moved by more than 0.6 dB. The 95 % points rose by at most 0.6 dB at 90 and 60; at 30 that of
    ``peak_2`` rose by 2.8 dB.

    Sources: power law: Torralba & Oliva, "Statistics of natural image categories", 2003; high end of generated
    images: Durall et al., "Watch your up-convolution", CVPR 2020, Dzanic et al., "Fourier spectrum discrepancies",
    NeurIPS 2020; peaks: Zhang et al., "Detecting and simulating artifacts in GAN fake images", 2019, Frank et al.,
    "Leveraging frequency analysis", ICML 2020, Corvi et al., "Intriguing properties of synthetic images", 2023.
    """
    power = sample.shared(mean_log_power)
    if power is None:
        return Measurement(dict.fromkeys(FEATURES, math.nan), skipped=NO_SPECTRUM)
    features = {**_radial(power), **_directions(power), **_peaks(power)}
    return Measurement({name: features[name] for name in FEATURES})


def mean_log_power(sample: Sample) -> NDArray[np.float32] | None:
    """Mean over Hann-windowed tiles of the window's log power spectrum.

    The mean of logarithms, not of powers: one tile with strong content cannot hide what all tiles share.

    Returns:
        size x size decibels with frequency 0 at [0, 0], size 256, 128 or 64 as the picture allows; None where it is
        smaller than that, or flat.
    """
    plane = sample.grey
    if min(plane.shape) < _TILE_SIZES[-1] or variance_of(plane) < 0.01:
        return None
    size = next(size for size in _TILE_SIZES if size <= min(plane.shape))
    taper = taper_of(size)
    half = np.zeros((size, size // 2 + 1), dtype=np.float32)
    tops, lefts = (starts_of(length, size) for length in plane.shape)
    for top, left in itertools.product(tops, lefts):
        tile = plane[top : top + size, left : left + size]
        transform = fft.rfft2((tile - tile.mean()) * taper)
        power = np.square(transform.real)
        power += np.square(transform.imag)
        power += FLOOR * size * size
        half += np.log(power, out=power)
    half *= np.float32(_DB / (len(tops) * len(lefts)))
    return _with_opposites(half)


def _with_opposites(half: NDArray[np.float32]) -> NDArray[np.float32]:
    """The whole of what is known at horizontal frequencies 0 to 1/2: real pixels give opposite frequencies the same."""
    size = len(half)
    return np.concatenate([half, half[-np.arange(size), size // 2 - 1 : 0 : -1]], axis=1)


@cache
def taper_of(size: int) -> NDArray[np.float32]:
    window = np.hanning(size + 1)[:-1].astype(np.float32)  # periodic, so that its transform has three lines
    return np.outer(window, window)


def starts_of(length: int, size: int) -> list[int]:
    """Evenly spread tile origins: whole cover of the side up to _MOST_TILES tiles."""
    count = min(_MOST_TILES, math.ceil(length / size))
    return [round(start) for start in np.linspace(0, length - size, count)]


def _frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vertical and horizontal frequency of each point, cycles per pixel, -0.5..0.5."""
    line = fft.fftfreq(size)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return rows, columns


@cache
def _rings(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The ring of each point, which is its frequency times size, and the points of each ring."""
    ring = np.rint(np.hypot(*_frequencies(size)) * size).astype(np.intp).ravel()
    return ring, np.bincount(ring)


def radial_profile(power: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies in cycles per pixel from 1 / size to 1/2, and the mean log power on the ring of each, dB."""
    size = len(power)
    ring, points = _rings(size)
    profile = np.bincount(ring, power.ravel()) / points
    return np.arange(1, size // 2 + 1) / size, profile[1 : size // 2 + 1]


def _radial(power: NDArray[np.float32]) -> dict[str, float]:
    frequency, profile = radial_profile(power)
    fitted = (frequency >= 0.03) & (frequency <= 0.3)
    # Weights of 1 / f: each octave counts the same, although the upper ones hold more rings.
    weight = np.sqrt(1 / frequency[fitted])
    decades = np.log10(frequency)
    slope, offset = np.polyfit(decades[fitted], profile[fitted], 1, w=weight)
    curvature = np.polyfit(decades[fitted], profile[fitted], 2, w=weight)[0]
    energy = 10 ** (profile / 10) * frequency
    middle, high = (frequency >= 0.1) & (frequency < 0.35), frequency >= 0.35
    last = frequency >= 0.4
    return {
        "spectrum.slope": float(slope / 10),
        "spectrum.curvature": float(curvature / 10),
        "spectrum.high_energy": 10 * math.log10(energy[high].sum() / energy[middle].sum()),
        "spectrum.high_departure": float((profile - slope * decades - offset)[last].mean()),
    }


@cache
def _sectors(size: int) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]:
    """Of each point: which of 12 directions of the band (12: outside), and 0 diagonal, 1 straight or 2 neither.

    Of both also how many points each has.
    """
    rows, columns = _frequencies(size)
    radius = np.hypot(rows, columns)
    angle = np.degrees(np.arctan2(rows, columns)) % 180
    sector = np.where((radius > 0.1) & (radius < 0.45), np.minimum(angle // 15, 11), 12)
    from_axis = np.abs((angle + 45) % 90 - 45)  # 0 on the axes, 45 on the diagonals
    slant = np.select([from_axis > 30, from_axis < 15], [0, 1], 2)
    slant[(radius <= 0.25) | (radius >= 0.5)] = 2
    groups = (sector.astype(np.intp).ravel(), slant.astype(np.intp).ravel())
    return tuple((group, np.bincount(group)) for group in groups)


def _directions(power: NDArray[np.float32]) -> dict[str, float]:
    means, (diagonal, straight, _) = (
        np.bincount(group, power.ravel()) / points for group, points in _sectors(len(power))
    )
    return {
        "spectrum.diagonal": float(diagonal - straight),
        "spectrum.anisotropy": float(means[:12].std()),
    }


def _peaks(power: NDArray[np.float32]) -> dict[str, float]:
    size = len(power)
    excess = _excess(power)
    eighth = size // 8
    rows, columns = np.indices((8, 8))
    lattice = excess[::eighth, ::eighth]
    halves = (rows % 4 == 0) & (columns % 4 == 0)
    quarters = (rows % 2 == 0) & (columns % 2 == 0)
    return {
        "spectrum.peak_2": float((lattice[4, 0] + lattice[0, 4] + lattice[4, 4]) / 3),
        "spectrum.peak_4": float(lattice[quarters & ~halves].mean()),
        "spectrum.peak_8": float(lattice[~quarters].mean()),
        "spectrum.peak_free": _strongest_free(excess),
    }


def _excess(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power over the median of its surroundings, dB. The axes are ridges of their own, compared along themselves."""
    half = len(power) // 2 + 1
    along_rows = _with_opposites(running_median(power[:half]).T).T
    # Separable: a median of medians, a tenth of the time of 9 x 9.
    around = running_median(along_rows[:, :half].T).T
    around[0] = along_rows[0, :half]
    around[:, :1] = running_median(power[:, :1].T).T
    return power - _with_opposites(around)


def running_median(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median of nine points along each row, periodic.

    Nine numbers as three sorted triples: their median is that of the largest low, the median middle and the smallest
    high. Each triple serves three places, and whole rows are compared at once.
    """
    size = power.shape[1]
    padded = np.pad(power, ((0, 0), (4, 4)), mode="wrap")
    triples = _sorted_triple(padded[:, :-2], padded[:, 1:-1], padded[:, 2:])
    lows, middles, highs = ([part[:, start : start + size] for start in (0, 3, 6)] for part in triples)
    return _sorted_triple(np.maximum.reduce(lows), _sorted_triple(*middles)[1], np.minimum.reduce(highs))[1]


def _sorted_triple(
    one: NDArray[np.float32], two: NDArray[np.float32], three: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    low, high = np.minimum(one, two), np.maximum(one, two)
    return np.minimum(low, three), np.maximum(low, np.minimum(high, three)), np.maximum(high, three)


def _strongest_free(excess: NDArray[np.float32]) -> float:
    """Largest excess, in robust deviations, away from multiples of 1/8, from the axes and from low frequencies."""
    values = excess[_free(len(excess))]
    return float(values.max() / (median_of(np.abs(values)) / 0.67449 + 0.1))


@cache
def _free(size: int) -> NDArray[np.bool_]:
    line = np.abs(fft.fftfreq(size) * size)
    near_eighth = np.minimum(line % (size // 8), -line % (size // 8)) <= 2  # the window spreads a line over 3 bins
    low = line < size * 0.06
    free = ~(np.logical_and.outer(near_eighth, near_eighth) | np.logical_or.outer(line <= 3, line <= 3))
    free &= ~np.logical_and.outer(low, low)
    return np.asarray(free)
