"""Probability and provenance claims in, label and tier out. Knows the rules, not where the numbers come from.

The rules, in the order in which they are asked (docs/fusion.md has them as a table):

1. A generator's mark (``generated``) makes the label AI: ``ai`` when it is signed, bound and trusted, else
   ``likely_ai``, because it can be forged. It never lowers a tier that the pixels reach on their own.
2. A trusted capture signature (``captured``, ``cryptographic``) makes the label NON-AI, at best ``likely_real``: a
   photograph of a screen carries the same signature.
3. Both at once: two verified signatures give AI, ``likely_ai``; a forgeable mark against a verified capture cancels
   out, so the pixels decide the label and the tier is ``inconclusive``.
4. ``edited_with_ai`` says that a part was made by AI, not the image: the label stays with the pixels and the tier is
   at least ``inconclusive``.
5. Everything else (camera EXIF, unverified capture claims, ordinary editing) decides nothing.

An image that cannot carry the promise of a tier (``limits``: too small, nearly flat, half missing) leaves the pixels'
tier ``inconclusive``, whatever the probability; a tier that provenance gives is not touched by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

from utils.contracts import Claim, DecidedBy, Grade, Json, Label, Note, Reason, Tier, strongest

TIERS: tuple[Tier, ...] = get_args(Tier)  # from most real to most AI
REAL_TIERS: tuple[Tier, ...] = ("real", "likely_real")
AI_TIERS: tuple[Tier, ...] = ("likely_ai", "ai")

# How sure a generator's mark of each grade makes us. Conventions, not measurements: they order the grades, and leave
# room for a stolen key (cryptographic) and for a mark copied onto a photograph (the others).
GENERATOR_CONFIDENCE: Mapping[Grade, float] = {
    "cryptographic": 0.99,
    "signed_untrusted": 0.9,
    "pixel_watermark": 0.9,
    "forgeable_metadata": 0.8,
}
CAPTURE_CONFIDENCE = 0.9  # a convention too: below a verified generator, since a screen can be photographed
CONFLICT_CONFIDENCE = 0.8  # two verified signatures that disagree are worth no more than forgeable metadata


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Cuts on the calibrated probability; a value at a cut belongs to the side of AI.

    ``label`` lies inside the inconclusive band, so that the label and the tier cannot contradict each other.
    """

    label: float
    real: float  # below: real
    likely_real: float  # below: likely_real; from here on inconclusive
    likely_ai: float  # from here on likely_ai
    ai: float

    def __post_init__(self) -> None:
        cuts = (0.0, self.real, self.likely_real, self.label, self.likely_ai, self.ai, 1.0)
        if not all(low <= high for low, high in pairwise(cuts)):
            raise ValueError(f"thresholds must rise from 0 to 1 with the label's inside the band: {self}")

    @classmethod
    def from_json(cls, thresholds: Mapping[str, Json]) -> Thresholds:
        return cls(label=thresholds["label"], **thresholds["tiers"])

    def to_json(self) -> dict[str, Json]:
        tiers = {"real": self.real, "likely_real": self.likely_real, "likely_ai": self.likely_ai, "ai": self.ai}
        return {"label": self.label, "tiers": tiers}

    def tier(self, probability: float) -> Tier:
        cuts = (self.real, self.likely_real, self.likely_ai, self.ai)
        return TIERS[sum(probability >= cut for cut in cuts)]


@dataclass(frozen=True, slots=True)
class Decision:
    """The conclusion. ``reasons`` are the rules that acted; the facts behind them are ``explain``'s."""

    label: Label
    tier: Tier
    decided_by: DecidedBy  # where the label comes from
    confidence: float  # 0..1, in the label
    threshold: float  # probability from which the label was AI
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        against = REAL_TIERS if self.label == "AI" else AI_TIERS
        if self.tier in against:
            raise ValueError(f"label {self.label} contradicts tier {self.tier}")


def decide(
    probability: float,
    thresholds: Thresholds,
    claims: Sequence[Claim] = (),
    threshold_override: float | None = None,
    limits: Sequence[Note] = (),
) -> Decision:
    """Apply the rules in the module's docstring.

    A ``threshold_override`` moves the label only. The tier bands are measurements and stay where they are; a tier
    that the moved label contradicts becomes ``inconclusive``.

    Args:
        probability: calibrated, 0..1.
        limits: why these pixels cannot carry the promise of a tier; any one makes their tier ``inconclusive``.
    """
    pixels = _limited(_decide_by_pixels(probability, thresholds, threshold_override), limits)
    generated = strongest(claim for claim in claims if claim.kind == "generated")
    captured = strongest(claim for claim in claims if claim.kind == "captured" and claim.grade == "cryptographic")
    edited = strongest(claim for claim in claims if claim.kind == "edited_with_ai")
    if generated and captured:
        return _decide_conflict(pixels, generated)
    if generated:
        return _decide_generated(pixels, generated)
    if captured and edited:
        return _at_least_inconclusive(_decide_captured(pixels), edited)
    if captured:
        return _decide_captured(pixels)
    if edited:
        return _at_least_inconclusive(pixels, edited)
    return pixels


def _decide_by_pixels(probability: float, thresholds: Thresholds, override: float | None) -> Decision:
    threshold = thresholds.label if override is None else override
    is_ai = probability >= threshold
    tier = thresholds.tier(probability)
    reasons: tuple[Reason, ...] = ()
    if override is not None:
        text = (
            f"The label uses the threshold {override:g} that was set; the fusion model's own is {thresholds.label:.3g}."
        )
        reasons = (Reason("threshold_set", text),)
        if tier in (("real", "likely_real") if is_ai else ("likely_ai", "ai")):
            tier = "inconclusive"
    confidence = probability if is_ai else 1 - probability
    return Decision("AI" if is_ai else "NON-AI", tier, "fusion", confidence, threshold, reasons)


def _limited(pixels: Decision, limits: Sequence[Note]) -> Decision:
    if not limits:
        return pixels
    told = tuple(Reason(note.code, note.text) for note in limits)
    return replace(pixels, tier="inconclusive", reasons=(*told, *pixels.reasons))


def _decide_generated(pixels: Decision, claim: Claim) -> Decision:
    is_proof = claim.grade == "cryptographic"
    by_claim: Tier = "ai" if is_proof else "likely_ai"
    confidence = GENERATOR_CONFIDENCE[claim.grade]
    if pixels.label == "AI":
        confidence = max(confidence, pixels.confidence)
    text = f"The label follows the mark of a generator ({_name(claim)}), " + (
        "which is signed and bound to this image." if is_proof else "which can be forged or copied from another image."
    )
    return Decision(
        label="AI",
        tier=max(by_claim, pixels.tier, key=TIERS.index),
        decided_by="provenance",
        confidence=confidence,
        threshold=pixels.threshold,
        reasons=(*pixels.reasons, Reason(f"rule.generated.{claim.grade}", text)),
    )


def _decide_captured(pixels: Decision) -> Decision:
    text = "The label follows a verified capture signature; a photograph of a screen would carry one too."
    confidence = CAPTURE_CONFIDENCE
    if pixels.label == "NON-AI":
        confidence = max(confidence, pixels.confidence)
    return Decision(
        label="NON-AI",
        tier=min("likely_real", pixels.tier, key=TIERS.index),
        decided_by="provenance",
        confidence=confidence,
        threshold=pixels.threshold,
        reasons=(*pixels.reasons, Reason("rule.captured", text)),
    )


def _decide_conflict(pixels: Decision, generated: Claim) -> Decision:
    if generated.grade == "cryptographic":
        text = "A generator and a camera have both signed this image; the generator's statement is followed."
        return Decision(
            label="AI",
            tier="likely_ai",
            decided_by="provenance",
            confidence=CONFLICT_CONFIDENCE,
            threshold=pixels.threshold,
            reasons=(*pixels.reasons, Reason("rule.conflict", text)),
        )
    text = "A forgeable generator mark contradicts a verified capture signature; neither decides."
    return Decision(
        label=pixels.label,
        tier="inconclusive",
        decided_by="fusion",
        confidence=pixels.confidence,
        threshold=pixels.threshold,
        reasons=(*pixels.reasons, Reason("rule.conflict", text)),
    )


def _at_least_inconclusive(decision: Decision, claim: Claim) -> Decision:
    text = f"A part of this image is said to be made by AI ({_name(claim)}); the label is about the whole image."
    return Decision(
        label=decision.label,
        tier=max("inconclusive", decision.tier, key=TIERS.index),
        decided_by=decision.decided_by,
        confidence=decision.confidence,
        threshold=decision.threshold,
        reasons=(*decision.reasons, Reason(f"rule.edited_with_ai.{claim.grade}", text)),
    )


def _name(claim: Claim) -> str:
    return claim.generator or claim.source
