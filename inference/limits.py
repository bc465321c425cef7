"""What an image must hold before its pixels can carry the promise of a tier. Decides nothing: fusion/decision.py does.

The numbers are where ``python -m scripts.measure_limits`` finds that the share of wrong labels outside the inconclusive
band leaves what it is on larger images; docs/fusion.md has what was measured last. An image below them still gets its
probability and label.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from utils.contracts import Note, Sample

LEAST_LONG_SIDE = 320  # px
LEAST_SHORT_SIDE = 64  # px: strips have nothing that a photograph of their area has
CONTENT = FLAT, ENTROPY = ("statistics.flat_area", "image_entropy")  # the features that are asked
MOST_FLAT = 0.9  # share of 8 x 8 blocks without texture
LEAST_ENTROPY = 3.0  # bits of the luma histogram: below, a handful of colours
MOST_MISSING = 0.5  # share of a damaged file's picture: a convention, half a picture must be there
MOST_TRANSPARENT = 0.5  # share of pixels that are not there: what is judged is mostly the backdrop


def is_measured(features: Mapping[str, float], inputs: Collection[str]) -> bool:
    """Whether anything is known of what the fusion reads; else its probability is a prior."""
    return any(not math.isnan(features.get(name, math.nan)) for name in inputs)


def limits(sample: Sample, features: Mapping[str, float], inputs: Collection[str]) -> tuple[Note, ...]:
    """Why these pixels cannot carry a tier; empty for an ordinary image.

    Args:
        features: as measured; a missing one limits nothing, unless all inputs are missing.
        inputs: what the fusion reads.
    """
    found: list[Note] = []
    if not is_measured(features, inputs):
        found.append(
            Note(
                "limit.unmeasured",
                "Nothing that the fusion model reads was measured, so its probability says nothing about this image; "
                "see what is unavailable, and why.",
            )
        )
    short, long = sorted((sample.width, sample.height))
    if long < LEAST_LONG_SIDE or short < LEAST_SHORT_SIDE:
        found.append(
            Note(
                "limit.too_small",
                f"Too small to tell: {sample.width} x {sample.height} pixels; below {LEAST_LONG_SIDE} on the longer or "
                f"{LEAST_SHORT_SIDE} on the shorter side too many real images look AI-made.",
            )
        )
    flat, entropy = features.get(FLAT, 0.0), features.get(ENTROPY, 8.0)
    if flat > MOST_FLAT or entropy < LEAST_ENTROPY:  # False for NaN
        share = f"{flat:.0%} of it is flat colour" if flat > MOST_FLAT else "it has a handful of colours"
        found.append(Note("limit.flat", f"Too little in the picture to tell: {share}."))
    if sample.alpha is not None and (share_gone := float(np.mean(sample.alpha == 0))) > MOST_TRANSPARENT:
        found.append(
            Note("limit.transparent", f"Too little in the picture to tell: {share_gone:.0%} of it is transparent.")
        )
    if sample.missing >= MOST_MISSING:
        what = f"{sample.missing:.0%} of it is missing" if sample.missing < 1 else "any part of it may be wrong"
        text = f"Too little of the picture to tell: the file is damaged, and {what}."
        found.append(Note("limit.damaged", text))
    return tuple(found)
