"""Why the fusion model said what it said, in sentences. Knows the model's own numbers, never the image.

First a plain sentence for each family of evidence that matters, whose ``contribution`` is the sum over the family's
inputs; with ``family.rest`` these sums are the raw log-odds of the whole image. Then what the file tells or lacks, how
rare the score is, claims and notes. The numbers stand last: one input's value and where it stands among the training
images. No line draws a conclusion that the number does not carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion.estimators import FloatArray
from fusion.meta_model import FusionModel
from fusion.reference import KINDS
from utils.contracts import AI_KINDS, Claim, Note, Reason, Reference, Resemblance

MOST_REASONS = 6  # what a person reads; the verdict carries every signal anyway
LEAST_LOG_ODDS = 0.05  # moves a probability of 0.5 by about 0.01: not worth a sentence

# From these log-odds on: twice and seven times the odds. A convention of words, as likelihood-ratio scales have.
_CLEARLY, _STRONGLY = math.log(2), math.log(7)


@dataclass(frozen=True, slots=True)
class Family:
    """Inputs that are evidence of one kind, and what to call them."""

    name: str
    subject: str  # plural, begins a sentence
    absent: str  # the same where nothing of it was measured; within a sentence
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def holds(self, feature: str) -> bool:
        return feature.startswith(self.prefixes) or feature.endswith(self.suffixes)


FAMILIES = (
    Family(
        "networks",
        "The trained networks, which learnt from known real and AI-made pictures,",
        "the trained networks",
        ("mantra", "clip_b16."),
        ("_prob", "ghostnet_score"),
    ),
    Family(
        "texture",
        "Noise, colours and fine texture",
        "noise, colours and fine texture",
        ("noise.", "statistics.", "image_entropy"),
    ),
    Family(
        "spectrum",
        "Patterns in the frequency spectrum, as scaling and generators leave them,",
        "the frequency spectrum",
        ("spectrum.", "resampling."),
    ),
    Family(
        "compression",
        "Traces of how often and how strongly the image was compressed",
        "the compression history",
        ("jpeg.", "ela.", "grid.", "compression_level"),
    ),
    Family("camera", "The camera data", "the camera data", ("exif",)),
)
_REST = "All else that was measured, and where the model starts without any evidence."
CONSISTENT = 0.8  # exif_score from which on the camera data are called consistent; 1 is complete and plausible


def explain(
    model: FusionModel,
    features: Mapping[str, float],
    meanings: Mapping[str, str],
    claims: Sequence[Claim] = (),
    notes: Sequence[Note] = (),
    reference: Reference | None = None,
    resembles: Resemblance | None = None,
) -> tuple[Reason, ...]:
    """Sentences for people, in the order of the module's docstring.

    Args:
        meanings: what each feature's number means, by feature name.
    """
    parts = model.contributions(features)
    strongest = sorted(parts, key=lambda name: -abs(parts[name]))[:MOST_REASONS]
    reasons = [*_families(model.bias, parts), *_missing(model, features, claims)]
    if reference is not None:
        reasons.append(Reason("reference", rarity(reference)))
    if resembles is not None and resembles.family != Resemblance.UNKNOWN:
        reasons.append(Reason("resembles", likeness(resembles)))
    reasons += [Reason(f"claim.{claim.kind}.{claim.grade}", claim.text) for claim in claims]
    reasons += [Reason(note.code, note.text) for note in notes]
    reasons += [
        _reason(model, name, features.get(name, math.nan), meanings.get(name, name), parts[name])
        for name in strongest
        if abs(parts[name]) >= LEAST_LOG_ODDS
    ]
    return tuple(reasons)


# --- families of evidence


def _families(bias: float, parts: Mapping[str, float]) -> list[Reason]:
    """The strongest first; what does not matter, and the model's bias, are the rest."""
    sums = {family: sum(part for name, part in parts.items() if family.holds(name)) for family in FAMILIES}
    told = sorted((family for family in FAMILIES if abs(sums[family]) >= LEAST_LOG_ODDS), key=lambda f: -abs(sums[f]))
    rest = bias + sum(parts.values()) - sum(sums[family] for family in told)
    lines = [
        Reason(f"family.{each.name}", f"{each.subject} point {_strength(sums[each])}.", None, sums[each])
        for each in told
    ]
    return [*lines, Reason("family.rest", _REST, None, rest)]


def _strength(log_odds: float) -> str:
    size = abs(log_odds)
    how = "strongly" if size >= _STRONGLY else "clearly" if size >= _CLEARLY else "slightly"
    return f"{how} to {'AI' if log_odds > 0 else 'a real image'}"


def _missing(model: FusionModel, features: Mapping[str, float], claims: Sequence[Claim]) -> list[Reason]:
    """What the file lacks, or was not measured, and what that does not mean."""
    score = features.get("exif_score", math.nan)
    marked = any(claim.kind in AI_KINDS or claim.grade != "forgeable_metadata" for claim in claims)
    lacking = [
        *(["camera data"] if math.isnan(score) else []),
        *([] if marked else ["mark of a generator or signature"]),
    ]
    lines = []
    if not math.isnan(score):
        state = "contradict nothing" if score >= CONSISTENT else "are incomplete or contradict themselves"
        text = f"The camera data {state}. They can be written by anyone, so they decide nothing."
        lines.append(Reason("family.camera_data", text))
    if lacking:
        text = (
            f"The file carries no {' and no '.join(lacking)}. Such data are lost on most ways an image travels, so "
            "their absence is no evidence."
        )
        lines.append(Reason("family.missing", text))
    families = [[name for name in model.inputs if family.holds(name)] for family in FAMILIES]
    unmeasured = [
        family.absent
        for family, names in zip(FAMILIES, families, strict=True)
        if names and family.name != "camera" and all(math.isnan(features.get(name, math.nan)) for name in names)
    ]
    if unmeasured:
        text = f"Not measured here: {', '.join(unmeasured)}. Nothing is assumed in their place."
        lines.append(Reason("family.unmeasured", text))
    return lines


# --- how rare the score is


def rarity(reference: Reference) -> str:
    """For example: 1 in 60 real images scores this high (1 in 125 to 1 in 33); 4 in 10 AI images score this low."""
    real = f"real {KINDS.get(reference.kind, 'images')}"
    high = _one_in(reference.real_as_high, reference.interval, real, "this high")
    low = _one_in(reference.ai_as_low, reference.ai_interval, "AI images", "this low")
    delivery = "" if reference.delivery == "all" else f", among copies like this one ({reference.delivery})"
    return (
        f"{high[0].upper()}{high[1:]}; {low}; measured on images that were new to the model that scored them{delivery}."
    )


def likeness(found: Resemblance) -> str:
    """The family that a generated image looks most like, and what that is worth."""
    return (
        f"Of the generators that we know it looks most like {found.family} ({100 * found.probability:.0f} %). Of such "
        f"names, given to generated images of new sources, {100 * found.right:.0f} % were right: a hint, no claim of "
        "origin."
    )


def _one_in(share: float, interval: tuple[float, float], what: str, where: str) -> str:
    low, high = interval
    if low <= 0 and share < high / 3:  # hardly any was seen: what is known is the upper end
        return f"fewer than {_fraction(high)} {what} score {where}"
    value, least, most = (_fraction(each) for each in (share, low, high))
    scores = "scores" if value.startswith("1 in ") else "score"
    return f"{value} {what} {scores} {where}" + (f" ({least} to {most})" if least != most else "")


def _fraction(share: float) -> str:
    """Tenths when common, else 1 in N with N to two digits."""
    if share >= 0.95:
        return "nearly all"
    if share >= 0.15:
        return f"{round(share * 10)} in 10"
    if share < 1e-4:
        return "1 in 10,000"
    return f"1 in {float(f'{1 / share:.2g}'):,.0f}"


# --- the numbers behind


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
