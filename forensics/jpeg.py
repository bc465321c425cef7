"""How a JPEG was compressed: tables and quality from its header, traces of an earlier compression from its pixels.

Does not know who wrote the file: a quality or a table is a habit of software, shared by cameras, editors and
generators. Earlier compression is looked for on the file's own block grid only; another grid is forensics/grid.py.

Sources:  quality from tables: IJG libjpeg, jcparam.c, and ITU-T T.81 Annex K;
          histograms of coefficients that were quantised twice: Popescu & Farid 2004; Lin, He, Tang & Tang 2009;
          the reference histogram from shifted pixels: Lukáš & Fridrich 2003;
          JPEG ghosts: Farid 2009, doi 10.1109/TIFS.2008.2012215.
Measured: 60 images of about 0.2 megapixels, down-scaled so that nothing is left of earlier grids, saved by libjpeg at
          60..98, after no or one earlier save at 50..95. First quality at least 5 below the last: AUC of double_score
          0.997 (1,363 against 360 files), jpeg_double on 80 %, ghost_quality within 2 on 72 % (93 % or more where the
          gap is 10 or more and the last quality 90 or more). First above last: AUC 0.86 and no note. jpeg_double on 0
          of 360 single saves, 0 of 58 camera and phone originals, 3 to 7 % of JPEGs from the web. 77 of 2,280 double
          saves and no single one were left out for clipped colours. IJG quality was exact on all 2,640.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr

from formats.jpeg import APP0, APP14, DQT, DRI, SOF0, SOF1, SOF2, SOS, segments
from utils.contracts import Json, Measurement, Note, Sample

FEATURES = {
    "jpeg.quality": "IJG quality whose luma table is nearest to the file's, 1..100",
    "jpeg.chroma_quality": "IJG quality whose chroma table is nearest to the file's, 1..100",
    "jpeg.table_distance": "sum of |step - IJG step| over the sum of IJG steps, luma; 0 for a standard table",
    "jpeg.chroma_subsampling": "luma samples per chroma sample: 1 (4:4:4), 2 (4:2:2), 4 (4:2:0)",
    "jpeg.tables": "number of quantisation tables, 1..4",
    "jpeg.progressive": "1 for a progressive file, else 0",
    "jpeg.jfif": "1 with a JFIF marker, else 0",
    "jpeg.adobe": "1 with an Adobe APP14 marker, else 0",
    "jpeg.restart_interval": "MCUs between restart markers; 0 without",
    "jpeg.double_score": "how much better two quantisations explain the luma histograms than one, 0..1",
    "jpeg.ghost_quality": "IJG quality with the deepest ghost below the file's own; the file's own without one",
    "jpeg.ghost_depth": "depth of that ghost, 0 (none) .. 1",
}

BLOCK = 8
MAX_BLOCKS = 16_384  # 1 megapixel of blocks: histograms no longer change, time stays bounded
EIGHT_TRUE = np.ones(BLOCK, dtype=np.bool_).view(np.uint64)
BLAS_THREADS_FROM = 2**18  # multiplications; OpenBLAS starts threads above, which would compete with ours
SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 2): "4:1:0"}

RANGE = 256  # coefficients are compared up to this size, in grey levels
MAX_LEVELS = 64  # ... and up to this many steps
DOUBLE_FREQUENCIES = 9  # the first AC coefficients in zigzag order have enough values that are not zero
PRIMARY_STEPS = np.arange(2, 64)
PIXEL_NOISE = 0.4  # standard deviation, in levels, that rounding to 8-bit pixels leaves in a coefficient
REFERENCE_SIGMA = 3.0  # smoothing of the reference histogram, in half levels: wipes what is left of the shifted grid
OUTLIERS = 0.1  # share of coefficients that the two-quantisation model need not explain (clipped or edited blocks)
MIN_VALUES = 300  # coefficients that are not zero, over all frequencies
GAIN_SCALE = 0.1  # nats per coefficient; puts 99 % of single compressions below a score of 0.7
DOUBLE_NOTE = 0.92  # no single compression of two sets of 360 scored more

GHOST_FREQUENCIES = 15
GHOST_FROM = 30  # lower qualities leave too few coefficients
GHOST_GAP = 5  # nearer to the file's own quality the error has no flank to stand out from
GHOST_FLOOR = 0.02  # squared levels; rounding noise, so that an empty block has no ghost
LATTICE_TOLERANCE = 0.11  # median distance to a multiple; untouched 0.01..0.104 (200 files), gamma 0.8 median 0.14

ZIGZAG = np.array(
    sorted(range(64), key=lambda i: (sum(divmod(i, 8)), i // 8 if sum(divmod(i, 8)) % 2 else i % 8)), dtype=np.intp
)

# ITU-T T.81 Annex K, tables K.1 and K.2, row by row
ANNEX_K_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()
ANNEX_K_CHROMA = np.full(64, 99)
ANNEX_K_CHROMA.reshape(8, 8)[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_DCT = dct(np.eye(BLOCK), axis=0, norm="ortho")
DCT_2D = np.kron(_DCT, _DCT).astype(np.float32)  # rows: frequencies, columns: pixels, both row by row


def _ijg_tables(base: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tables of qualities 1..100; 100 x 64 (jpeg_quality_scaling and jpeg_add_quant_table in jcparam.c)."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((base * scale + 50) // 100, 1, 255)


LUMA_TABLES = _ijg_tables(ANNEX_K_LUMA)
CHROMA_TABLES = _ijg_tables(ANNEX_K_CHROMA)


# The parts of _histogram_gain that no image changes. Half-level bins: the cells of odd steps end between two levels.
_CENTRES = np.arange(0.25, RANGE, 0.5)
_SPAN = RANGE + int(PRIMARY_STEPS[-1])  # an earlier step can round a value up beyond RANGE
_FIRST = np.rint(_CENTRES / PRIMARY_STEPS[:, None]).astype(np.intp) * PRIMARY_STEPS[:, None]
_FIRST_INDEX = (_FIRST + _SPAN * np.arange(len(PRIMARY_STEPS))[:, None]).ravel()  # earlier step x level


def measure(sample: Sample) -> Measurement:
    """Read the header, then look for an earlier compression in the luma of the window."""
    features = dict.fromkeys(FEATURES, float("nan"))
    if sample.format not in ("JPEG", "MPO"):
        return Measurement(features, skipped=f"not a JPEG: {sample.format}")
    header = read_header(sample.raw)
    table = header.table(0)
    if table is None:
        return Measurement(features, skipped="the JPEG header has no luma quantisation table")
    features |= _header_features(header, table)
    reasons = [] if len(header.components) >= 3 else ["a JPEG without chroma"]
    blocks = blocks_of(sample.grey)
    coefficients = _transform(blocks, DCT_2D)
    if _sits_on_lattice(coefficients, table):
        features["jpeg.double_score"] = _double_score(coefficients, blocks_of(sample.grey[4:, 4:]), table)
        ghost_quality, ghost_depth = _ghost(coefficients, int(features["jpeg.quality"]))
        features |= {"jpeg.ghost_quality": ghost_quality, "jpeg.ghost_depth": ghost_depth}
        if np.isnan(features["jpeg.double_score"]):
            reasons.append("too few coefficients for histograms")
        if np.isnan(features["jpeg.ghost_depth"]):
            reasons.append("no room for a ghost below the file's own quality")
    else:
        reasons.append("the pixels are not multiples of the luma table: colours were clipped or converted")
    return Measurement(
        features, notes=_notes(features), facts={"jpeg": _facts(header, features)}, skipped="; ".join(reasons) or None
    )


def _header_features(header: Header, table: NDArray[np.int64]) -> dict[str, float]:
    quality, distance = _nearest(LUMA_TABLES, table)
    features = {
        "jpeg.quality": quality,
        "jpeg.table_distance": distance,
        "jpeg.tables": float(len(header.tables)),
        "jpeg.progressive": float(header.progressive),
        "jpeg.jfif": float(header.jfif),
        "jpeg.adobe": float(header.adobe),
        "jpeg.restart_interval": float(header.restart_interval),
    }
    chroma = header.table(1)
    if chroma is not None and len(header.components) >= 3:
        features["jpeg.chroma_quality"] = _nearest(CHROMA_TABLES, chroma)[0]
        features["jpeg.chroma_subsampling"] = float(np.prod(header.subsampling()))
    return features


def _nearest(tables: NDArray[np.int64], table: NDArray[np.int64]) -> tuple[float, float]:
    """Quality of the nearest IJG table, and how far it is."""
    distance = np.abs(tables - table).sum(axis=1) / tables.sum(axis=1)
    return float(distance.argmin() + 1), float(distance.min())


def _notes(features: dict[str, float]) -> tuple[Note, ...]:
    if not features["jpeg.double_score"] > DOUBLE_NOTE:
        return ()
    text = "The luma histograms show two JPEG compressions on the same grid: the file was opened and saved again."
    return (Note("jpeg_double", text),)


def _facts(header: Header, features: dict[str, float]) -> dict[str, Json]:
    is_standard = features["jpeg.table_distance"] == 0
    subsampling = SUBSAMPLING.get(header.subsampling(), "unusual") if len(header.components) >= 3 else None
    words = (
        f"IJG quality {features['jpeg.quality']:.0f}" if is_standard else "own tables (camera or editor)",
        subsampling or "no chroma",
        "progressive" if header.progressive else "sequential",
        *(("JFIF",) if header.jfif else ()),
        *(("Adobe marker",) if header.adobe else ()),
    )
    return {
        "description": ", ".join(words),
        "quality": int(features["jpeg.quality"]),
        "standard_tables": is_standard,
        "chroma_subsampling": subsampling,
        "progressive": header.progressive,
    }


@dataclass(slots=True)
class Header:
    """What the segments before the first scan say."""

    tables: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # id -> 64 steps, row by row
    components: list[tuple[int, int, int]] = field(default_factory=list)  # horizontal, vertical sampling, table id
    progressive: bool = False
    jfif: bool = False
    adobe: bool = False
    restart_interval: int = 0

    def table(self, component: int) -> NDArray[np.int64] | None:
        return self.tables.get(self.components[component][2]) if component < len(self.components) else None

    def subsampling(self) -> tuple[int, int]:
        """Luma samples per chroma sample, across and down."""
        (across, down, _), (chroma_across, chroma_down, _) = self.components[:2]
        return across // max(chroma_across, 1), down // max(chroma_down, 1)


def read_header(raw: bytes) -> Header:
    """Read the segments up to the first scan (T.81 Annex B). Broken files give what could be read."""
    header = Header()
    for kind, start, length in segments(raw):
        if kind == SOS:
            break
        _read_segment(header, kind, raw[start : start + length])
    return header


def _read_segment(header: Header, kind: bytes, data: bytes) -> None:
    if kind == DQT:
        _read_tables(header, data)
    elif kind in (SOF0, SOF1, SOF2) and len(data) >= 6:
        header.progressive = kind == SOF2
        components = (data[6 + 3 * i : 9 + 3 * i] for i in range(data[5]))
        header.components = [(c[1] >> 4, c[1] & 15, c[2]) for c in components if len(c) == 3]
    elif kind == DRI:
        header.restart_interval = int.from_bytes(data[:2], "big")
    elif kind == APP0:
        header.jfif |= data.startswith(b"JFIF\0")
    elif kind == APP14:
        header.adobe |= data.startswith(b"Adobe")


def _read_tables(header: Header, data: bytes) -> None:
    while data:
        size = 64 * (1 + (data[0] >> 4))  # one or two bytes per step
        if len(data) < 1 + size:
            return
        steps = np.frombuffer(data[1 : 1 + size], dtype=np.uint8 if size == 64 else ">u2")[:64]
        header.tables[data[0] & 15] = np.empty(64, dtype=np.int64)
        header.tables[data[0] & 15][ZIGZAG] = np.maximum(steps, 1)  # 0 is illegal, and would divide
        data = data[1 + size :]


def blocks_of(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most MAX_BLOCKS blocks of 8 x 8 pixels, evenly spread, none with clipped pixels; n x 64."""
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    strips = grey[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns * BLOCK)
    blocks = strips.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK * BLOCK)
    # Down the columns first, whole rows of pixels at once; then the eight bytes of a block's width are one number.
    is_inside = np.bitwise_and.reduce((strips > 1) & (strips < 254), axis=1)
    is_whole = is_inside.view(np.uint64).ravel() == EIGHT_TRUE
    every = max(1, -(-len(blocks) // MAX_BLOCKS))
    blocks, is_whole = blocks[::every], is_whole[::every]
    return np.asarray(blocks if is_whole.all() else blocks[is_whole])


def _transform(blocks: NDArray[np.float32], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coefficients of n x 64 blocks at the frequencies of the basis, f x 64; f x n."""
    coefficients = np.empty((len(basis), len(blocks)), dtype=np.float32)
    step = BLAS_THREADS_FROM // basis.size
    for start in range(0, len(blocks), step):
        some = np.s_[start : start + step]
        coefficients[:, some] = (blocks[some] @ basis.T).T  # faster than the product that needs no copy
    return coefficients


def _sits_on_lattice(coefficients: NDArray[np.float32], table: NDArray[np.int64]) -> bool:
    """False when the pixels are clearly not what the table decodes to; finer steps than 4 drown in rounding."""
    coarse = table >= 4
    coarse[0] = False  # DC carries the level shift
    multiples = coefficients[coarse]
    multiples /= table[coarse, None].astype(np.float32)
    is_far = np.abs(multiples) > 0.75  # nearer to 0, rounding noise outnumbers what a file left
    count = np.count_nonzero(is_far)
    if count < MIN_VALUES:
        return True
    multiples -= np.rint(multiples)
    # More than half of them within the tolerance: their median is.
    is_near = np.abs(multiples, out=multiples) < LATTICE_TOLERANCE
    return bool(2 * np.count_nonzero(is_far & is_near) > count)


def _double_score(coefficients: NDArray[np.float32], shifted: NDArray[np.float32], table: NDArray[np.int64]) -> float:
    """1 - exp(-gain / GAIN_SCALE), with the gain in nats per coefficient that is not zero; NaN with too few.

    Args:
        coefficients: 64 x n.
        shifted: blocks, n x 64, whose histograms are the reference.
    """
    low = ZIGZAG[1 : 1 + DOUBLE_FREQUENCIES]
    observed = [_histogram(coefficients[i], int(table[i])) for i in low]
    count = sum(int(histogram.sum()) for histogram in observed)
    if count < MIN_VALUES or not len(shifted):
        return float("nan")
    triples = zip(observed, _transform(shifted, DCT_2D[low]), table[low], strict=True)
    gain = sum(_histogram_gain(histogram, reference, int(step)) for histogram, reference, step in triples)
    return float(1 - np.exp(-gain / count / GAIN_SCALE))


def _histogram(values: NDArray[np.float32], step: int) -> NDArray[np.intp]:
    """How often each multiple 1, 2, ... of the step occurs, up to RANGE. Zeros follow sharpness more than tables."""
    levels = min(RANGE // step, MAX_LEVELS)
    return np.bincount(np.rint(np.abs(values) / step).astype(np.intp), minlength=levels + 1)[1 : levels + 1]


def _histogram_gain(observed: NDArray[np.intp], reference: NDArray[np.float32], step: int) -> float:
    """How much better an earlier quantisation explains one frequency's histogram, in nats, at least 0.

    The reference is the same frequency on blocks shifted by (4, 4), which no quantisation has touched. It is
    quantised once with the file's step, and twice with every earlier step; the best earlier step counts.
    """
    levels = len(observed)
    if not levels:
        return 0.0
    density = cv2.calcHist([np.abs(reference)], [0], None, [len(_CENTRES)], [0, RANGE]).ravel().astype(np.float64)
    density = gaussian_filter1d(density, REFERENCE_SIGMA) + 1e-3
    once = np.bincount(np.rint(_CENTRES / step).astype(np.intp), density, minlength=levels + 1)[1 : levels + 1]
    once = once / once.sum()
    mass = np.bincount(_FIRST_INDEX, np.tile(density, len(PRIMARY_STEPS)), minlength=len(PRIMARY_STEPS) * _SPAN)
    twice = mass.reshape(-1, _SPAN) @ _cells(step, levels)
    twice /= np.maximum(twice.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    gain = np.log((1 - OUTLIERS) * twice / once + OUTLIERS) @ observed
    return max(float(gain.max()), 0.0)


@lru_cache(maxsize=32)  # the steps of a few common tables; 5 MB
def _cells(step: int, levels: int) -> NDArray[np.float64]:
    """Chance that a grey level, with PIXEL_NOISE, is rounded to each multiple of the step; _SPAN x levels."""
    edges = (np.arange(1, levels + 2) - 0.5) * step
    return np.diff(ndtr((edges - np.arange(_SPAN)[:, None]) / PIXEL_NOISE), axis=1)


def _ghost(coefficients: NDArray[np.float32], own_quality: int) -> tuple[float, float]:
    """Quality and depth of the deepest second minimum of the error of re-compression, below the file's own quality.

    The error is taken in the coefficients, which is the same as in pixels (Parseval) but for rounding. It should grow
    as quality falls; a ghost is a quality whose error is below that of each quality 3 to 5 above it.
    """
    if own_quality < GHOST_FROM + GHOST_GAP or not coefficients.size:
        return float("nan"), float("nan")
    low = ZIGZAG[1 : 1 + GHOST_FREQUENCIES]
    qualities = np.arange(GHOST_FROM, own_quality - GHOST_GAP + 1)
    ladder = LUMA_TABLES[GHOST_FROM - 1 : own_quality, low]
    values = coefficients[low]
    error = np.full(len(ladder), GHOST_FLOOR)
    for row, steps in zip(values, ladder.T, strict=True):
        different, which = np.unique(steps, return_inverse=True)  # neighbouring qualities share many
        error += np.array([_rounding_energy(row, step) for step in different])[which] / values.size
    error = error.astype(np.float32)  # the rounding of nothing is no ghost
    count = len(qualities)
    above = np.minimum.reduce([error[higher : higher + count] for higher in (3, 4, 5)])
    depth = 1 - error[:count] / above
    best = int(depth.argmax())
    return (float(qualities[best]), float(depth[best])) if depth[best] > 0 else (float(own_quality), 0.0)


def _rounding_energy(values: NDArray[np.float32], step: int) -> float:
    """Sum of the squared errors of rounding to multiples of the step."""
    multiples = values * np.float32(1 / step)
    multiples -= np.rint(multiples)
    return float(step**2 * np.vdot(multiples, multiples))
