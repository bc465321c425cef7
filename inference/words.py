"""What the names in a verdict mean to people: the only copy, for the terminal, the report, the API and its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from utils.contracts import Grade, Region, Tier, Verdict

TIER_WORDS: Final[Mapping[Tier, str]] = {
    "real": "a real image",
    "likely_real": "likely a real image",
    "inconclusive": "inconclusive",
    "likely_ai": "likely AI-generated",
    "ai": "AI-generated",
}
TIER_MEANINGS: Final[Mapping[Tier, str]] = {
    "real": "Its measurements are those of real images. No measurement can prove an image real.",
    "likely_real": "The evidence points to a real image. It is not proof.",
    "inconclusive": "The evidence does not settle it. Treat the image as neither shown to be real nor shown to be "
    "AI-made.",
    "likely_ai": "The evidence points to AI. It is not proof.",
    "ai": "The evidence for AI is strong.",
}
# In what shape an image was judged again, by the names in ``Stability.probabilities``.
SHAPE_WORDS: Final[Mapping[str, str]] = {
    "as_is": "as it came",
    "web": "as a web copy",
    "hard": "as a small, strongly compressed copy",
    "crop": "cropped to 90 %",
    "enlarged": "enlarged by a quarter",
}
# A grade's name and what a claim of it is worth; the hardest to forge first.
GRADE_WORDS: Final[Mapping[Grade, tuple[str, str]]] = {
    "cryptographic": ("cryptographic", "signed, bound to this very file, and the signer is trusted here"),
    "signed_untrusted": (
        "signed, signer not trusted here",
        "bound to this file, but anyone could be the signer",
    ),
    "pixel_watermark": ("pixel watermark", "an open watermark in the pixels; it can be copied onto other images"),
    "forgeable_metadata": ("forgeable metadata", "plain text in the file; anyone can write or remove it"),
}


def deciding_region(verdict: Verdict) -> Region | None:
    """The picture inside that label and tier follow; None: they are about the whole, or about its provenance."""
    if verdict.decided_by == "provenance":
        return None
    return next((region for region in verdict.regions if region.decides), None)


def decided_by(verdict: Verdict) -> str:
    """What decided, so that nobody reads the whole image's probability as that of its picture."""
    region = deciding_region(verdict)
    return f"a picture inside, {region.fusion_prob:.2f}" if region else verdict.decided_by
