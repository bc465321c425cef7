"""Statistics of the pixel values: entropy, what compression cost, colour, clipping, co-occurrence, sharpness.

Knows nothing of where a value sits in the picture beyond its direct neighbours, nothing of noise models or spectra,
and nothing of metadata: bytes are counted for the coded pixels alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from formats import jpeg, png, riff
from utils.contracts import Measurement, RgbArray, Sample

Plane: TypeAlias = NDArray[np.uint8]

FEATURES: Mapping[str, str] = {
    "image_entropy": "Shannon entropy of the 8-bit luma histogram, bits, 0..8",
    "compression_level": "1 - coded bytes / bytes a lossless predictive coder needs, 0 (lossless or worse) .. 1",
    "statistics.saturation_mean": "mean HSV saturation, 0..1",
    "statistics.saturation_std": "standard deviation of HSV saturation, 0..0.5",
    "statistics.colourfulness": "Hasler-Süsstrunk colourfulness M3, grey levels, 0 (grey) .. about 200",
    "statistics.channel_correlation": "mean of the correlations R-G, G-B and R-B, -1..1",
    "statistics.overexposed": "share of pixels with a channel at 255, 0..1",
    "statistics.underexposed": "share of pixels with a channel at 0, 0..1",
    "statistics.unique_colours": "distinct colours per pixel in a sample of about 65,536 pixels, 0..1",
    "statistics.histogram_comb": "roughness of the green histogram beyond counting noise, 0 (smooth) .. 2 (comb)",
    "statistics.cooccurrence_entropy": "entropy of a pixel given its left neighbour, green, 64 levels, bits, 0..6",
    "statistics.equal_neighbours": "share of horizontal neighbours with the same green value, 0..1",
    "statistics.cross_band_information": "mutual information of red and green, 64 levels, bits, 0..6",
    "statistics.sharpness": "log10 of the variance of the Laplacian over the variance of luma, about -4..1.3",
    "statistics.chroma_detail": "log10 of chroma over luma energy at the highest frequencies, about -4..3",
    "statistics.flat_area": "share of 8 x 8 blocks whose luma deviates by less than one grey level, 0..1",
}

# Deflate codes at most 258 bytes in two bits, so no PNG is smaller than its raw bytes / 1032 (zlib technical details).
_DEFLATE_LIMIT = 1032
CODED_SAMPLE = 500_000  # pixels in whole rows: the entropy of a residual needs no more
_COLOUR_SAMPLE = 65_536  # a fixed number, because the share of distinct colours falls with the number of pixels
_ROUNDING = 1 / 12  # variance of rounding to whole grey levels: no energy below it means anything


def measure(sample: Sample) -> Measurement:
    """Take every statistic of the sample's window; those that need more pixels or contrast than there are come as NaN.

    Sources: Hasler & Süsstrunk, "Measuring colourfulness in natural images", SPIE 2003; Nataraj et al., "Detecting GAN
    generated fake images using co-occurrence matrices", 2019; Barni et al., "CNN detection of GAN-generated face
    images based on cross-band co-occurrences analysis", WIFS 2020; McCloskey & Albright, "Detecting GAN-generated
    imagery using color cues", 2018; Stamm & Liu, "Blind forensics of contrast enhancement", ICIP 2008.
    """
    red, green, blue = sample.shared(planes_of)
    features = {
        "image_entropy": _entropy(_histogram(cv2.convertScaleAbs(sample.grey), 256)),
        "compression_level": _compression_level(sample),
        **_colour(red, green, blue),
        "statistics.unique_colours": _unique_colours(sample.window),
        "statistics.histogram_comb": _histogram_comb(green),
        **_cooccurrence(red, green),
        **_detail(red, blue, sample.grey),
    }
    missing = [name.removeprefix("statistics.") for name, value in features.items() if math.isnan(value)]
    skipped = f"too few pixels or no contrast for {', '.join(missing)}" if missing else None
    return Measurement({name: features[name] for name in FEATURES}, skipped=skipped)


def planes_of(sample: Sample) -> tuple[Plane, ...]:
    """Red, green and blue of the window, each in one piece."""
    return tuple(np.asarray(plane, np.uint8) for plane in cv2.split(sample.window))


def _histogram(plane: NDArray[Any], levels: int) -> NDArray[np.float64]:
    """How often each whole number below ``levels`` occurs. In 16 bits: OpenCV counts those faster than bytes."""
    counts = cv2.calcHist([plane.astype(np.uint16, copy=False)], [0], None, [levels], [0, levels])
    return np.asarray(counts, dtype=np.float64).ravel()


def _entropy(counts: NDArray[np.float64]) -> float:
    """Shannon entropy of a histogram in bits."""
    shares = counts[counts > 0] / counts.sum()
    return abs(float(-(shares * np.log2(shares)).sum()))  # abs: a single full bin would give -0.0


def _compression_level(sample: Sample) -> float:
    pixels = sample.height * sample.width
    lossless = max(lossless_bits(sample.window) * pixels / 8, 3 * pixels / _DEFLATE_LIMIT)
    return float(np.clip(1 - _coded_bytes(sample) / lossless, 0, 1))


def lossless_bits(rgb: RgbArray) -> float:
    """Bits per pixel of a lossless predictive coder: entropy of the prediction residuals of G, R - G and B - G.

    The predictor is the median edge detector of LOCO-I (Weinberger, Seroussi & Sapiro 2000), with zeros outside the
    picture. The order-0 entropy is an upper estimate of JPEG-LS, and close to what PNG reaches.
    """
    every = max(1, round(rgb.shape[0] * rgb.shape[1] / CODED_SAMPLE))  # each row needs only the one above it
    actual = rgb[::every]
    above = np.concatenate([np.zeros_like(rgb[:1]), rgb[every - 1 :: every][: len(actual) - 1]])
    return math.fsum(_residual_bits(now, before) for now, before in zip(_bands(actual), _bands(above), strict=True))


def _bands(rgb: RgbArray) -> tuple[NDArray[np.int16], ...]:
    """G, R - G and B - G, each with a column of zeros on its left."""
    padded = cv2.copyMakeBorder(rgb, 0, 0, 1, 0, cv2.BORDER_CONSTANT, value=0)
    red, green, blue = (np.asarray(plane, dtype=np.int16) for plane in cv2.split(padded))
    return green, red - green, blue - green


def _residual_bits(now: NDArray[np.int16], before: NDArray[np.int16]) -> float:
    actual, left, above, corner = now[:, 1:], now[:, :-1], before[:, 1:], before[:, :-1]
    low, high = cv2.min(above, left), cv2.max(above, left)
    residual = actual - cv2.min(cv2.max(above + left - corner, low), high)
    return _entropy(_histogram((residual + np.int16(1024)).view(np.uint16), 2048))


def _coded_bytes(sample: Sample) -> int:
    """Bytes that code the pixels of one frame: metadata, thumbnails and trailers are somebody else's evidence."""
    raw = sample.raw
    found = 0
    if raw.startswith(b"\xff\xd8"):
        found = _jpeg_scan_bytes(raw)
    elif raw.startswith(png.SIGNATURE):
        found = sum(part.length for part in png.chunks(raw) if part.kind == b"IDAT")
    elif raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        found = sum(part.length for part in riff.chunks(raw) if part.kind in (b"VP8 ", b"VP8L"))
    return found or (len(raw) - sample.trailing_bytes) // sample.frame_count


def _jpeg_scan_bytes(raw: bytes) -> int:
    """Bytes from the first start of scan to the end of the image; 0 when there is none."""
    first = None
    for part in jpeg.segments(raw):
        if part.kind == jpeg.SOS and first is None:
            first = jpeg.marker_start(part)
        elif part.kind == jpeg.EOI and first is not None:
            return jpeg.marker_start(part) - first
    return 0 if first is None else len(raw) - first


def _colour(red: Plane, green: Plane, blue: Plane) -> dict[str, float]:
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    chroma = cv2.subtract(highest, lowest)  # 0 for black, which so has no saturation
    saturation = cv2.divide(chroma, cv2.max(highest, np.ones_like(highest)), dtype=cv2.CV_32F)
    means, covariance = moments_of(red, green, blue)
    # The opponent axes of Hasler & Süsstrunk: red - green, and yellow - blue.
    axes = np.array([[1, -1, 0], [0.5, 0.5, -1]])
    spread = math.sqrt(max(0.0, float(np.trace(axes @ covariance @ axes.T))))
    return {
        "statistics.saturation_mean": cv2.mean(saturation)[0],
        "statistics.saturation_std": math.sqrt(variance_of(saturation)),
        "statistics.colourfulness": spread + 0.3 * float(np.linalg.norm(axes @ means)),
        "statistics.channel_correlation": _channel_correlation(covariance),
        "statistics.overexposed": np.count_nonzero(highest == 255) / highest.size,
        "statistics.underexposed": np.count_nonzero(lowest == 0) / lowest.size,
    }


def variance_of(plane: NDArray[Any]) -> float:
    mean = cv2.mean(plane)[0]
    return max(0.0, cv2.norm(plane, cv2.NORM_L2SQR) / plane.size - mean * mean)


def moments_of(*planes: Plane) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and covariances of planes; from sums of squares of their differences, which are whole numbers."""
    size = planes[0].size
    means = np.array([cv2.mean(plane)[0] for plane in planes])
    energy = np.array([cv2.norm(plane, cv2.NORM_L2SQR) / size for plane in planes])
    apart = np.zeros((len(planes), len(planes)))
    for one, other in combinations(range(len(planes)), 2):
        apart[one, other] = apart[other, one] = cv2.norm(planes[one], planes[other], cv2.NORM_L2SQR) / size
    return means, (energy[:, None] + energy - apart) / 2 - np.outer(means, means)


def _channel_correlation(covariance: NDArray[np.float64]) -> float:
    deviation = np.sqrt(np.maximum(covariance.diagonal(), 0))
    if deviation.min() < 1e-3:
        return math.nan
    correlation = covariance / np.outer(deviation, deviation)
    return float(np.clip(correlation[np.triu_indices(3, 1)].mean(), -1, 1))


def _unique_colours(rgb: RgbArray) -> float:
    pixels = rgb.reshape(-1, 3)
    red, green, blue = pixels[:: max(1, len(pixels) // _COLOUR_SAMPLE)].astype(np.uint32).T
    codes = np.sort(red << 16 | green << 8 | blue)
    return (1 + np.count_nonzero(codes[1:] != codes[:-1])) / len(codes)


def _histogram_comb(green: Plane) -> float:
    """Teeth and gaps that a contrast edit leaves. Green, because luma mixes channels and so fills the gaps."""
    counts = _histogram(green, 256)
    low, high = np.searchsorted(counts.cumsum() / counts.sum(), (0.01, 0.99))  # tails are clipped, not combed
    inner = counts[low : high + 1]
    if len(inner) < 16:  # too few grey levels to tell teeth from content
        return math.nan
    roughness = np.abs(inner[1:-1] - (inner[:-2] + inner[2:]) / 2)
    # Counts scatter like Poisson variables: variance n1 + (n0 + n2) / 4, mean absolute value sqrt(2 / pi) of its root.
    expected = np.sqrt((inner[1:-1] + (inner[:-2] + inner[2:]) / 4) * 2 / math.pi)
    return max(0.0, float((roughness.sum() - expected.sum()) / inner.sum()))


def _cooccurrence(red: Plane, green: Plane) -> dict[str, float]:
    bands = _joint(red, green)
    shared = _entropy(bands.sum(axis=0)) + _entropy(bands.sum(axis=1)) - _entropy(bands.ravel())
    entropy = equal = math.nan
    if green.shape[1] > 1:
        left, right = green[:, :-1], green[:, 1:]
        pairs = _joint(left, right)
        entropy = max(0.0, _entropy(pairs.ravel()) - _entropy(pairs.sum(axis=1)))
        equal = np.count_nonzero(left == right) / left.size
    return {
        "statistics.cooccurrence_entropy": entropy,
        "statistics.equal_neighbours": equal,
        "statistics.cross_band_information": max(0.0, shared),
    }


def _joint(rows: Plane, columns: Plane) -> NDArray[np.float64]:
    """Joint histogram of two planes in 64 levels."""
    return cv2.calcHist([rows, columns], [0, 1], None, [64, 64], [0, 256, 0, 256]).astype(np.float64)


def _detail(red: Plane, blue: Plane, grey: NDArray[np.float32]) -> dict[str, float]:
    height, width = grey.shape
    if height < 8 or width < 8:
        return dict.fromkeys(("statistics.sharpness", "statistics.chroma_detail", "statistics.flat_area"), math.nan)
    luma = _highest_band(grey)
    # JFIF's Cb and Cr: scaled differences of blue and red from luma.
    chroma = sum(
        scale**2 * cv2.norm(_highest_band(plane), luma, cv2.NORM_L2SQR)
        for plane, scale in ((blue, 0.564334), (red, 0.713267))
    )
    chroma_energy, luma_energy = chroma / grey.size, cv2.norm(luma, cv2.NORM_L2SQR) / grey.size
    blocks = grey[: height // 8 * 8, : width // 8 * 8]
    size = (width // 8, height // 8)  # cv2 counts columns first; INTER_AREA by a whole factor is the block mean
    mean = cv2.resize(blocks, size, interpolation=cv2.INTER_AREA)
    variance = cv2.resize(blocks * blocks, size, interpolation=cv2.INTER_AREA) - mean * mean
    edges, contrast = variance_of(cv2.Laplacian(grey, cv2.CV_32F)), variance_of(grey)
    return {
        "statistics.sharpness": math.log10((edges + _ROUNDING) / (contrast + _ROUNDING)),
        "statistics.chroma_detail": math.log10((chroma_energy + _ROUNDING) / (luma_energy + _ROUNDING)),
        "statistics.flat_area": np.count_nonzero(variance < 1) / variance.size,
    }


def _highest_band(plane: NDArray[Any]) -> NDArray[np.float32]:
    """Diagonal second difference (a sixth of the kernel, so white noise keeps its variance)."""
    kernel = np.array([1, -2, 1], dtype=np.float32)
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel / 6), dtype=np.float32)
