"""The noise of the picture: how much, how evenly spread, how it follows brightness, and the sensor traces in it.

Knows no camera: nothing here compares with a sensor's own pattern, and JPEG's part in the noise is not taken out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from forensics.statistics import Plane, planes_of
from utils.contracts import Heatmap, Measurement, Sample

FEATURES: Mapping[str, str] = {
    "noise.level": "standard deviation of the noise in luma by the median absolute residual, grey levels, 0..150",
    "noise.scale_ratio": "log2 of the noise level at half resolution over the level at full, -1 for white noise, -4..4",
    "noise.block_spread": "robust deviation of the block noise, after brightness and texture, log units, 0..3",
    "noise.texture_slope": "exponent with which block noise follows texture, 0 (independent) .. about 1.5",
    "noise.signal_slope": "change of log noise in smooth blocks from black to white (sensor noise grows), -10..10",
    "noise.kurtosis": "log10 of the kurtosis of the residual, 0.48 for Gaussian noise, 0..6",
    "noise.correlation_h": "correlation of the residual with its right neighbour, -0.67 for white noise, -1..1",
    "noise.correlation_v": "correlation of the residual with its lower neighbour, -0.67 for white noise, -1..1",
    "noise.correlation_d": "correlation of the residual with its diagonal neighbour, 0.44 for white noise, -1..1",
    "noise.channel_correlation": "mean correlation of the residuals of red and blue with green's, -1..1",
    "noise.cfa": "difference of the green residual between the two quincunx lattices, |log|, 0..2",
    "noise.srm_entropy": "entropy of three neighbouring truncated first differences over its maximum, 0..1",
}
HEATMAPS = {"noise": "Noise level that departs from the rest of the image"}

_BLOCK = 16
_FEWEST_BLOCKS = 36  # the regression has five unknowns; 96 x 96 pixels
_LEVEL_FLOOR = 0.05  # grey levels; below rounding, so that its logarithm does not carry meaningless differences
_DIFFERENCE = np.array([1, -2, 1], dtype=np.float32)
_NORMAL_MAD = 0.67449  # median absolute deviation of a standard normal variable


def measure(sample: Sample) -> Measurement:
    """Measure the noise of the window; heatmap ``noise``: how far a block's noise is from what its place would have.

    Sources: the residual is that of Immerkær, "Fast noise variance estimation", CVIU 1996, read by the median as in
    Donoho & Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994; noise against brightness after Foi et
    al., "Practical Poissonian-Gaussian noise modeling", 2008; block noise after Mahdian & Saic, "Using noise
    inconsistencies for blind image forensics", 2009; colour filter array after Gallagher & Chen, "Image authentication
    by detecting traces of demosaicing", 2008; co-occurrence after Fridrich & Kodovský, "Rich models", 2012.
    """
    if min(sample.grey.shape) < 8:
        return Measurement(dict.fromkeys(FEATURES, math.nan), skipped="noise needs at least 8 x 8 pixels")
    residual = _residual(sample.grey)
    if _energy(residual) - cv2.mean(residual)[0] ** 2 < 1e-6:
        return Measurement(dict.fromkeys(FEATURES, math.nan), skipped="no noise: the picture is flat or a ramp")
    red, green, blue = sample.shared(planes_of)
    size = np.abs(residual)
    level = median_of(size) / _NORMAL_MAD
    coarse_level = median_of(np.abs(_residual(_block_mean(sample.grey, 2)))) / _NORMAL_MAD
    blocks, deviation = _blocks(sample.grey, size)
    features = {
        "noise.level": level,
        "noise.scale_ratio": math.log2((coarse_level + _LEVEL_FLOOR) / (level + _LEVEL_FLOOR)),
        **blocks,
        **_shape(residual),
        "noise.channel_correlation": _channel_correlation(red, green, blue),
        "noise.cfa": _cfa(green),
        "noise.srm_entropy": srm_entropy(green),
    }
    if deviation is None:
        skipped = f"block noise needs {_FEWEST_BLOCKS} blocks of {_BLOCK} x {_BLOCK} pixels that are not clipped"
        return Measurement({name: features[name] for name in FEATURES}, skipped=skipped)
    return Measurement(
        {name: features[name] for name in FEATURES}, heatmaps={"noise": sample.window_to_image(deviation)}
    )


def _residual(plane: NDArray[Any]) -> NDArray[np.float32]:
    """What is left of a picture after its local plane; white noise keeps its standard deviation."""
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_32F, _DIFFERENCE, _DIFFERENCE / 6), dtype=np.float32)


def median_of(values: NDArray[np.float32]) -> float:
    half = values.size // 2
    parted = np.partition(values.ravel(), half)  # for one place NumPy has SIMD, for the two that np.median wants not
    below = parted[half] if values.size % 2 else parted[:half].max()
    return float((below + parted[half]) / 2)


def _energy(plane: NDArray[Any]) -> float:
    return cv2.norm(plane, cv2.NORM_L2SQR) / plane.size


def _blocks(grey: NDArray[np.float32], size: NDArray[np.float32]) -> tuple[dict[str, float], Heatmap | None]:
    """Noise per block against brightness and texture, and the map of what they do not explain."""
    noise = np.log(_block_mean(size) * math.sqrt(math.pi / 2) + _LEVEL_FLOOR)
    light = _block_mean(grey) / 255
    smooth = cv2.blur(grey, (5, 5))
    slope = np.zeros(smooth.shape, dtype=np.float32)
    cv2.absdiff(smooth[:, 2:], smooth[:, :-2], dst=slope[:, 1:-1])
    slope[1:-1] += np.asarray(cv2.absdiff(smooth[2:], smooth[:-2]), dtype=np.float32)
    texture = np.log(_block_mean(slope) + _LEVEL_FLOOR)
    usable = (light > 0.04) & (light < 0.96)  # near black and white, clipping cuts the noise
    if np.count_nonzero(usable) < _FEWEST_BLOCKS:
        return dict.fromkeys(("noise.block_spread", "noise.texture_slope", "noise.signal_slope"), math.nan), None
    terms = np.stack([np.ones_like(light), light, light**2, texture, texture**2], axis=-1).astype(np.float64)
    weights = np.linalg.lstsq(terms[usable], noise[usable], rcond=None)[0]
    rest = noise - terms @ weights
    spread = float(np.median(np.abs(rest[usable] - np.median(rest[usable])))) / _NORMAL_MAD
    calm = usable & (texture <= np.quantile(texture[usable], 0.5))
    features = {
        "noise.block_spread": spread,
        "noise.texture_slope": _slope(texture[usable], noise[usable]),
        "noise.signal_slope": _slope(light[calm], noise[calm]),
    }
    # From 3 to 9 robust deviations: even noise (spread 0.1) shows nothing, and a region with twice the noise 0.65.
    # Real pictures spread by about 0.3: there a region must differ four times to show.
    surprise = np.clip((np.abs(rest) / max(spread, 0.1) - 3) / 6, 0, 1) * usable
    return features, surprise.astype(np.float32)


def _block_mean(plane: NDArray[np.float32], side: int = _BLOCK) -> NDArray[np.float32]:
    """Mean of each whole block."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    if not rows or not columns:
        return np.zeros((0, 0), dtype=np.float32)
    whole = plane[: rows * side, : columns * side]
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _slope(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Least-squares slope, drawn to 0 where x hardly varies."""
    deviation = x.astype(np.float64) - x.mean()
    return float((deviation * (y - y.mean())).mean() / ((deviation**2).mean() + 1e-4))


def _shape(residual: NDArray[np.float32]) -> dict[str, float]:
    energy, fourth = _energy(residual), _energy(residual * residual)

    def correlation(down: int, right: int) -> float:
        here = residual[: residual.shape[0] - down, : residual.shape[1] - right]
        return float(np.vecdot(here, residual[down:, right:]).sum(dtype=np.float64)) / here.size / energy

    return {
        "noise.kurtosis": math.log10(fourth / energy**2),
        "noise.correlation_h": correlation(0, 1),
        "noise.correlation_v": correlation(1, 0),
        "noise.correlation_d": correlation(1, 1),
    }


def _channel_correlation(*planes: Plane) -> float:
    """Demosaicing fills red and blue from green's detail, so that a camera's high band is nearly grey."""
    # 36 times the variance of _residual, in whole numbers, which take half the memory
    red, green, blue = (cv2.sepFilter2D(plane, cv2.CV_16S, _DIFFERENCE, _DIFFERENCE) for plane in planes)
    energy = _energy(green)

    def correlation(other: NDArray[Any]) -> float:
        own = _energy(other)
        product = (own + energy - cv2.norm(other, green, cv2.NORM_L2SQR) / green.size) / 2
        # 1e-3: one grey level in a thousand pixels; a flat channel then correlates with nothing.
        return product / (math.sqrt(own * energy) + 36e-3)

    return (correlation(red) + correlation(blue)) / 2


def _cfa(green: Plane) -> float:
    """Interpolated green pixels, every second one on the quincunx lattice, are closer to the mean of their neighbours.

    Gallagher & Chen read this as the peak at the Nyquist frequency of the diagonal means of |residual|; the amplitude
    of that frequency is the difference between the two lattices, taken here directly and relative to their level.
    """
    residual = cv2.Laplacian(green, cv2.CV_16S)[1:-1, 1:-1]  # four times that of the mean
    # Logarithm: the strongest edges would drown the lattice. 2: half a grey level, so that it is finite.
    size = cv2.log(np.add(np.abs(residual), 2, dtype=np.float32))
    upper, lower = (cv2.reduce(size[row::2], 0, cv2.REDUCE_AVG, dtype=cv2.CV_64F)[0] for row in (0, 1))
    even = (float(upper[::2].mean()) + float(lower[1::2].mean())) / 2
    odd = (float(lower[::2].mean()) + float(upper[1::2].mean())) / 2
    return abs(even - odd)


def srm_entropy(green: Plane) -> float:
    """Both directions together; differences truncated at +-2, as in SPAM and the rich models: 125 triples."""
    counts = np.zeros(125)
    across, down = (_truncated(green[:, 1:], green[:, :-1]), _truncated(green[1:], green[:-1]))
    for first, second, third in (
        (across[:, :-2], across[:, 1:-1], across[:, 2:]),
        (down[:-2], down[1:-1], down[2:]),
    ):
        triples = (first * np.uint8(25) + second * np.uint8(5) + third).astype(np.uint16)  # OpenCV counts them faster
        counts += cv2.calcHist([triples], [0], None, [125], [0, 125]).ravel()
    shares = counts[counts > 0] / counts.sum()
    return abs(float(-(shares * np.log(shares)).sum() / math.log(125)))


def _truncated(after: Plane, before: Plane) -> Plane:
    """Differences of neighbours, truncated at +-2, plus 2."""
    pairs = ((after, before), (before, after))
    up, down = (np.asarray(cv2.threshold(cv2.subtract(*pair), 2, 0, cv2.THRESH_TRUNC)[1], np.uint8) for pair in pairs)
    return np.uint8(2) + up - down
