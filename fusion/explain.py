"""Why the fusion model said what it said, in sentences. Knows the model's own numbers, never the image.

Each line gives one input's value and where it stands among the training images; how far it moved the answer, and which
way, is the reason's ``contribution``. No line draws a conclusion that the number does not carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from utils.contracts import Claim, Note, Reason

MOST_REASONS = 6  # what a person reads; the verdict carries every signal anyway
LEAST_LOG_ODDS = 0.05  # moves a probability of 0.5 by about 0.01: not worth a sentence


def explain(
    model: FusionModel,
    features: Mapping[str, float],
    meanings: Mapping[str, str],
    claims: Sequence[Claim] = (),
    notes: Sequence[Note] = (),
) -> tuple[Reason, ...]:
    """The strongest contributions first, then what the file claims about itself, then the modules' notes.

    Args:
        meanings: what each feature's number means, by feature name.
    """
    parts = model.contributions(features)
    strongest = sorted(parts, key=lambda name: -abs(parts[name]))[:MOST_REASONS]
    reasons = [
        _reason(model, name, features.get(name, math.nan), meanings.get(name, name), parts[name])
        for name in strongest
        if abs(parts[name]) >= LEAST_LOG_ODDS
    ]
    reasons += [Reason(f"claim.{claim.kind}.{claim.grade}", claim.text) for claim in claims]
    reasons += [Reason(note.code, note.text) for note in notes]
    return tuple(reasons)


def _reason(model: FusionModel, name: str, value: float, meaning: str, part: float) -> Reason:
    if not math.isfinite(value):
        return Reason(f"{name}_missing", f"{meaning}: not measured", name, part)
    row = model.inputs.index(name)
    real, ai = model.quantiles["real"][row], model.quantiles["ai"][row]
    standing = _standing(value, real, ai)
    return Reason(f"{name}_{_level(value, real)}", f"{meaning}: {value:.3g}, {standing}", name, part)


def _level(value: float, real: FloatArray) -> str:
    """high, low or typical, against the middle half of real training images."""
    if value > real[3]:
        return "high"
    return "low" if value < real[1] else "typical"


def _standing(value: float, real: FloatArray, ai: FloatArray) -> str:
    among_real, among_ai = _rank(value, real), _rank(value, ai)
    if among_real == among_ai:
        return f"{among_real} the real and the AI images in training"
    return f"{among_real} the real and {among_ai} the AI images in training"


def _rank(value: float, quantiles: FloatArray) -> str:
    low, lower, _, upper, high = quantiles
    if value > high:
        return "higher than 95 % of"
    if value < low:
        return "lower than 95 % of"
    if value > upper:
        return "higher than 75 % of"
    if value < lower:
        return "lower than 75 % of"
    return "within the middle half of" if math.isfinite(low) else "not comparable with"
