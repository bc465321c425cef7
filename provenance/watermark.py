"""Open watermarks: the bits that Stable Diffusion, SDXL and FLUX write into their pixels.

Text hidden in the lowest bits (provenance.stealth) is reported here too, since it is also read from the pixels.
Does not know marks without a public decoder (SynthID, Digimarc, ...), and absence says nothing: JPEG, resizing and
cropping erase these marks. Presence is strong but no proof, since anybody can write them.

Scheme "dwtDct" of github.com/ShieldMnt/invisible-watermark 0.2.0, imwatermark/maxDct.py. Despite its name it has no
DCT. The U plane goes through one level of Haar wavelets; in each 4 x 4 block of the low band (8 x 8 pixels, row by row)
the largest coefficient but the first is moved to the first quarter (bit 0) or third quarter (bit 1) of a step of 36;
block number i carries bit i mod length. The package takes the majority of the blocks.

We read the same marks with three differences:
- four pixels are summed in integers; the package's float wavelet puts exact multiples of the step, which are common
  near neutral grey (U = 126), on either side by rounding;
- a block votes with the sine of its position in the step, not with 0 or 1: near a border it says little;
- a bit is 1 when its blocks vote above the average of all bits, not above a half: blocks that the encoder could not
  move (clipped colours, rounding) lean the same way all over an image and would drown the mark.
Of 100 images of 500 to 1024 pixels a side, marked by the package with each payload in each channel order, 98 to 100
reach ``required``; with the package's own bits 58 to 72. After JPEG (SDXL mark): 87 at quality 98, 14 at 95, 1 at 90,
none at 80.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from provenance import stealth
from utils.contracts import Claim, Json, Measurement, RgbArray, Sample

STEP = 36  # the package's default scale for U; it leaves Y and V alone
MIN_PIXELS = 256 * 256  # the package refuses smaller images
_BLOCK = 8
_EQUAL = 1e-9  # votes are 0..1 in size; only rounding is below this
_STRIP = 64 * _BLOCK  # rows converted at a time, so that memory does not grow with the image

# What a block votes when its largest sum of four U values is 0..1020: -1 = surely 0, +1 = surely 1. Half of the sum is
# the Haar coefficient, so one step of 36 is 72 here; bit 0 sits at a quarter of it, bit 1 at three quarters.
_VOTES = -np.sin(np.arange(4 * 255 + 1) * (2 * math.pi / (2 * STEP)))

# The package expects BGR. Old diffusers handed it RGB, which swaps the roles of red and blue in U.
CHANNEL_ORDERS = {"BGR": cv2.COLOR_RGB2YUV, "RGB": cv2.COLOR_BGR2YUV}


@dataclass(frozen=True, slots=True)
class Mark:
    """A published payload and how many of its bits must match before we say that it is there."""

    feature: str
    generator: str
    payload: str  # "0" and "1", in embedding order
    required: int

    @property
    def bits(self) -> NDArray[np.bool_]:
        return np.array([bit == "1" for bit in self.payload])


def _text_bits(text: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in text)


# ``required`` satisfies three conditions at once (benchmarks/watermark_false_hits.py prints the figures):
# - fair coins: all four marks in both channel orders together match by chance in one image of 4e7 (binomial tail);
# - stripes: unmarked bits are not fair coins, since vertical structure repeats in every row of blocks. No pattern with
#   a period of up to half the payload reaches it (the best match 115 of 136, 26 of 32, 40 of 48, 40 of 46 bits);
# - measurement: over 5,167 unmarked images the best match was 96 of 136, 27 of 32, 36 of 48, 37 of 46.
MARKS = (
    Mark(
        "watermark.sd_match",
        "Stable Diffusion 1.x (reference scripts' watermark)",
        _text_bits(b"StableDiffusionV1"),  # CompVis/stable-diffusion, scripts/txt2img.py
        required=116,
    ),
    Mark(
        "watermark.sd2_match",
        "Stable Diffusion 2.x (reference scripts' watermark)",
        _text_bits(b"SDV2"),  # Stability-AI/stablediffusion, scripts/txt2img.py
        required=31,
    ),
    Mark(
        "watermark.sdxl_match",
        "Stable Diffusion XL (diffusers watermark)",
        f"{0xB3EC907BB19E:048b}",  # Stability-AI/generative-models, scripts/demo/detect.py
        required=44,
    ),
    Mark(
        "watermark.flux_match",
        "FLUX (reference scripts' watermark)",
        # black-forest-labs/flux, src/flux/util.py: bin() drops the leading zeros of a 48-bit constant.
        f"{0x2AFE879CF52E:b}",
        required=42,
    ),
)

FEATURES: Mapping[str, str] = {
    mark.feature: f"share (0..1) of {len(mark.payload)} decoded bits that match {mark.generator}, best channel order; "
    f"about 0.5 by chance, a finding from {mark.required / len(mark.payload):.2f}"
    for mark in MARKS
}


def measure(sample: Sample) -> Measurement:
    """Compare the decoded bits with every known payload, and look for hidden generation text.

    A mark counts as missing (NaN) in images that cannot carry one: below MIN_PIXELS, or grey or flat in colour.
    """
    hidden, hidden_claim = stealth.examine(sample)
    claims = [hidden_claim] if hidden_claim else []
    facts: dict[str, Json] = {} if hidden is None else {"stealth": hidden}
    features = dict.fromkeys(FEATURES, math.nan)
    if sample.height * sample.width < MIN_PIXELS or min(sample.height, sample.width) < _BLOCK:
        return _measurement(features, facts, claims, "watermark: smaller than 256 x 256 pixels, which nobody marks")

    facts["dwt_dct"] = {}
    votes = {order: block_votes(sample.rgb, order) for order in CHANNEL_ORDERS}
    for mark in MARKS:
        match = best_match(votes, mark)
        if match is None:
            continue
        matched, order = match
        features[mark.feature] = matched / len(mark.payload)
        facts["dwt_dct"][mark.feature.removeprefix("watermark.").removesuffix("_match")] = {
            "matched": matched,
            "bits": len(mark.payload),
            "required": mark.required,
            "channel_order": order,
        }
        if matched >= mark.required:
            claims.append(_claim(mark, matched))
    return _measurement(features, facts, claims, "watermark: no colour variation that could carry bits")


def block_votes(rgb: RgbArray, order: str) -> NDArray[np.float64]:
    """What each 8 x 8 block votes, row by row: -1 (bit 0) .. 1 (bit 1).

    Args:
        order: key of CHANNEL_ORDERS, the order in which the encoder was given the channels.
    """
    height, width = (side // _BLOCK * _BLOCK for side in rgb.shape[:2])
    return np.concatenate(
        [
            _strip_votes(rgb[top : min(top + _STRIP, height), :width], CHANNEL_ORDERS[order])
            for top in range(0, height, _STRIP)
        ]
    )


def _strip_votes(rgb: RgbArray, conversion: int) -> NDArray[np.float64]:
    u = cv2.cvtColor(rgb, conversion)[..., 1]
    sums = u[0::2].astype(np.uint16) + u[1::2]
    sums = sums[:, 0::2] + sums[:, 1::2]
    sums[0::4, 0::4] = 0  # the encoder skips each block's first coefficient
    rows = np.maximum.reduce([sums[i::4] for i in range(4)])
    largest = np.maximum.reduce([rows[:, i::4] for i in range(4)])
    return np.asarray(_VOTES[largest].ravel(), dtype=np.float64)


def decode_bits(votes: NDArray[np.float64], length: int) -> NDArray[np.bool_] | None:
    """The payload of ``length`` bits that the blocks vote for; None when all bits get the same votes (flat colour)."""
    rounds = votes.size // length
    means = votes[: rounds * length].reshape(rounds, length).mean(axis=0)
    if np.ptp(means) < _EQUAL:
        return None
    return np.asarray(means > means.mean())


def best_match(votes: Mapping[str, NDArray[np.float64]], mark: Mark) -> tuple[int, str] | None:
    """Matching bits and the channel order that gives most of them; None when no order can be decoded."""
    decoded = {order: decode_bits(blocks, len(mark.payload)) for order, blocks in votes.items()}
    return max(
        ((int(np.count_nonzero(bits == mark.bits)), order) for order, bits in decoded.items() if bits is not None),
        default=None,
        key=lambda match: match[0],
    )


def _claim(mark: Mark, matched: int) -> Claim:
    text = (
        f"{matched} of {len(mark.payload)} bits of the {mark.generator} are in the pixels; "
        "anybody can write this mark, and an edited image can inherit it"
    )
    return Claim("pixel_watermark", "generated", "pixel_watermark", mark.generator, text)


def _measurement(features: dict[str, float], facts: dict[str, Json], claims: list[Claim], reason: str) -> Measurement:
    missing = any(math.isnan(value) for value in features.values())
    return Measurement(features, claims=tuple(claims), facts={"watermark": facts}, skipped=reason if missing else None)
