from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.decision import GENERATOR_CONFIDENCE, Decision, Thresholds, decide
from utils.contracts import GRADES, Claim, ClaimKind, Grade, Note

THRESHOLDS = Thresholds(label=0.6, real=0.1, likely_real=0.3, likely_ai=0.7, ai=0.9)
EVERY_CLAIM = [
    Claim("c2pa", kind, grade, "", "a claim") for kind, grade in itertools.product(get_args(ClaimKind), GRADES)
]


def claim(kind: ClaimKind, grade: Grade, generator: str = "") -> Claim:
    return Claim("c2pa", kind, grade, generator, f"{kind} by {grade}")


def outcome(decision: Decision) -> tuple[str, str, str]:
    return decision.label, decision.tier, decision.decided_by


@pytest.mark.parametrize(
    ("probability", "label", "tier", "confidence"),
    [
        (0.05, "NON-AI", "real", 0.95),
        (0.1, "NON-AI", "likely_real", 0.9),
        (0.3, "NON-AI", "inconclusive", 0.7),
        (0.59, "NON-AI", "inconclusive", 0.41),
        (0.6, "AI", "inconclusive", 0.6),
        (0.7, "AI", "likely_ai", 0.7),
        (0.9, "AI", "ai", 0.9),
    ],
)
def test_without_claims_the_probability_decides(probability: float, label: str, tier: str, confidence: float) -> None:
    decision = decide(probability, THRESHOLDS)
    assert outcome(decision) == (label, tier, "fusion")
    assert decision.confidence == pytest.approx(confidence)
    assert decision.reasons == ()


@pytest.mark.parametrize(
    ("grade", "tier"),
    [
        ("cryptographic", "ai"),
        ("signed_untrusted", "likely_ai"),
        ("pixel_watermark", "likely_ai"),
        ("forgeable_metadata", "likely_ai"),
    ],
)
def test_a_generator_mark_makes_the_label_ai_and_its_grade_the_tier(grade: Grade, tier: str) -> None:
    decision = decide(0.01, THRESHOLDS, [claim("generated", grade, "Midjourney")])
    assert outcome(decision) == ("AI", tier, "provenance")
    (reason,) = decision.reasons
    assert "Midjourney" in reason.text
    assert ("forged" in reason.text) == (grade != "cryptographic")


def test_a_forgeable_mark_never_weakens_what_the_pixels_say() -> None:
    decision = decide(0.97, THRESHOLDS, [claim("generated", "forgeable_metadata")])
    assert outcome(decision) == ("AI", "ai", "provenance")
    assert decision.confidence == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("probability", "tier"), [(0.02, "real"), (0.2, "likely_real"), (0.5, "likely_real"), (0.99, "likely_real")]
)
def test_a_trusted_capture_lifts_at_most_to_likely_real(probability: float, tier: str) -> None:
    decision = decide(probability, THRESHOLDS, [claim("captured", "cryptographic")])
    assert outcome(decision) == ("NON-AI", tier, "provenance")


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.65, 0.99])
@pytest.mark.parametrize(
    ("kind", "grade"),
    [("captured", "forgeable_metadata"), ("captured", "signed_untrusted")] + [("edited", grade) for grade in GRADES],
)
def test_camera_exif_and_plain_editing_decide_nothing(probability: float, kind: ClaimKind, grade: Grade) -> None:
    assert decide(probability, THRESHOLDS, [claim(kind, grade)]) == decide(probability, THRESHOLDS)


@pytest.mark.parametrize(("probability", "label", "tier"), [(0.02, "NON-AI", "inconclusive"), (0.8, "AI", "likely_ai")])
def test_a_part_made_by_ai_forbids_the_real_tiers_but_leaves_the_label(
    probability: float, label: str, tier: str
) -> None:
    decision = decide(probability, THRESHOLDS, [claim("edited_with_ai", "cryptographic", "Firefly")])
    assert outcome(decision) == (label, tier, "fusion")
    assert "Firefly" in decision.reasons[0].text


def test_a_verified_capture_that_was_edited_with_ai_is_inconclusive() -> None:
    claims = [claim("captured", "cryptographic"), claim("edited_with_ai", "cryptographic")]
    assert outcome(decide(0.02, THRESHOLDS, claims)) == ("NON-AI", "inconclusive", "provenance")


def test_two_verified_signatures_that_disagree_give_likely_ai() -> None:
    claims = [claim("captured", "cryptographic"), claim("generated", "cryptographic")]
    decision = decide(0.02, THRESHOLDS, claims)
    assert outcome(decision) == ("AI", "likely_ai", "provenance")
    assert decision.reasons[0].code == "rule.conflict"


@pytest.mark.parametrize(("probability", "label"), [(0.02, "NON-AI"), (0.99, "AI")])
def test_a_forgeable_mark_against_a_verified_capture_leaves_the_label_to_the_pixels(
    probability: float, label: str
) -> None:
    claims = [claim("generated", "forgeable_metadata"), claim("captured", "cryptographic")]
    assert outcome(decide(probability, THRESHOLDS, claims)) == (label, "inconclusive", "fusion")


def test_the_strongest_of_several_marks_counts() -> None:
    claims = [claim("generated", "forgeable_metadata"), claim("generated", "cryptographic")]
    assert decide(0.5, THRESHOLDS, claims).tier == "ai"


@pytest.mark.parametrize(
    ("override", "probability", "label", "tier"),
    [(0.95, 0.92, "NON-AI", "inconclusive"), (0.05, 0.2, "AI", "inconclusive"), (0.95, 0.05, "NON-AI", "real")],
)
def test_a_set_threshold_moves_the_label_and_never_contradicts_the_tier(
    override: float, probability: float, label: str, tier: str
) -> None:
    decision = decide(probability, THRESHOLDS, threshold_override=override)
    assert (decision.label, decision.tier, decision.threshold) == (label, tier, override)
    assert decision.reasons[0].code == "threshold_set"


@pytest.mark.parametrize(("probability", "label"), [(0.02, "NON-AI"), (0.5, "NON-AI"), (0.99, "AI")])
def test_pixels_that_cannot_carry_a_tier_are_inconclusive_and_say_why(probability: float, label: str) -> None:
    limits = [Note("limit.too_small", "Too small."), Note("limit.flat", "Nearly flat.")]
    decision = decide(probability, THRESHOLDS, limits=limits)
    assert outcome(decision) == (label, "inconclusive", "fusion")
    assert [(reason.code, reason.text) for reason in decision.reasons] == [(each.code, each.text) for each in limits]


@pytest.mark.parametrize(
    ("kind", "grade", "tier"),
    [
        ("generated", "cryptographic", "ai"),
        ("generated", "forgeable_metadata", "likely_ai"),
        ("captured", "cryptographic", "likely_real"),
        ("captured", "forgeable_metadata", "inconclusive"),
        ("edited_with_ai", "cryptographic", "inconclusive"),
    ],
)
@pytest.mark.parametrize("probability", [0.02, 0.99])
def test_a_limit_of_the_pixels_leaves_the_tiers_of_provenance(
    probability: float, kind: ClaimKind, grade: Grade, tier: str
) -> None:
    assert decide(probability, THRESHOLDS, [claim(kind, grade)], limits=[Note("limit.flat", "Flat.")]).tier == tier


@given(
    probability=st.floats(0, 1),
    override=st.none() | st.floats(0, 1),
    claims=st.lists(st.sampled_from(EVERY_CLAIM), max_size=4),
    limits=st.lists(st.just(Note("limit.flat", "Flat.")), max_size=1),
)
def test_no_input_makes_the_label_contradict_the_tier(
    probability: float, override: float | None, claims: list[Claim], limits: list[Note]
) -> None:
    decision = decide(probability, THRESHOLDS, claims, override, limits)
    assert decision.tier not in (("real", "likely_real") if decision.label == "AI" else ("likely_ai", "ai"))
    assert 0 <= decision.confidence <= 1
    assert decision.threshold == (THRESHOLDS.label if override is None else override)


@given(probability=st.floats(0, 1), claims=st.lists(st.sampled_from(EVERY_CLAIM), max_size=4))
def test_the_order_of_claims_does_not_matter(probability: float, claims: list[Claim]) -> None:
    assert decide(probability, THRESHOLDS, claims) == decide(probability, THRESHOLDS, claims[::-1])


def test_a_mark_that_is_harder_to_forge_makes_us_no_less_sure() -> None:
    confidences = [GENERATOR_CONFIDENCE[grade] for grade in GRADES]
    assert confidences == sorted(confidences)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="contradicts"):
        Decision("AI", "likely_real", "fusion", 0.9, 0.5)
    with pytest.raises(ValueError, match="contradicts"):
        Decision("NON-AI", "ai", "fusion", 0.9, 0.5)
    with pytest.raises(ValueError, match="must rise"):
        Thresholds(label=0.2, real=0.1, likely_real=0.3, likely_ai=0.7, ai=0.9)
