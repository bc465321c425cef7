from __future__ import annotations

import math

import numpy as np
import pytest

from fusion.explain import LEAST_LOG_ODDS, MOST_REASONS, explain, rarity
from fusion.meta_model import FusionModel
from tests.fusion.synthetic import KINDS
from utils.contracts import Claim, Note, Reason, Reference, Resemblance

MEANINGS = {"dino_prob": "DINOv2 detector, probability of AI", "noise.level": "noise residual, grey levels"}
STRONG = {"dino_prob": 0.9999, "exif_score": 0.5, "noise.level": 500.0, "noise.spread": 0.0, "spectrum.slope": -1.5}


def numbers(reasons: tuple[Reason, ...]) -> list[Reason]:
    return [reason for reason in reasons if reason.feature is not None]


def families(reasons: tuple[Reason, ...]) -> list[Reason]:
    return [reason for reason in reasons if reason.feature is None and reason.contribution is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_strongest_numbers_come_first_and_say_where_they_stand(models: dict[str, FusionModel], kind: str) -> None:
    reasons = numbers(explain(models[kind], STRONG, MEANINGS))
    sizes = [abs(reason.contribution or 0) for reason in reasons]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= LEAST_LOG_ODDS for size in sizes)
    assert 1 <= len(reasons) <= MOST_REASONS
    by_feature = {reason.feature: reason for reason in reasons}
    dino = by_feature["dino_prob"]
    assert dino.code == "dino_prob_high"
    assert dino.text.startswith("DINOv2 detector, probability of AI: 1, higher than 95 % of the real and ")
    assert (dino.contribution or 0) > 0
    assert by_feature["noise.level"].text == (
        "noise residual, grey levels: 500, higher than 95 % of the real and the AI images in training"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_number_is_the_models_own(models: dict[str, FusionModel], kind: str) -> None:
    parts = models[kind].contributions(STRONG)
    for reason in numbers(explain(models[kind], STRONG, {})):
        assert reason.feature is not None
        assert reason.contribution == parts[reason.feature]
        assert reason.text.startswith(f"{reason.feature}: ")


@pytest.mark.parametrize("features", [STRONG, {}, {"dino_prob": 0.01}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_families_and_the_rest_add_up_to_the_raw_log_odds(
    models: dict[str, FusionModel], kind: str, features: dict[str, float]
) -> None:
    model = models[kind]
    row = np.array([[features.get(name, np.nan) for name in model.inputs]])
    told = families(explain(model, features, MEANINGS))
    assert sum(reason.contribution or 0 for reason in told) == pytest.approx(float(model.log_odds(row)[0]), abs=1e-4)
    assert told[-1].code == "family.rest"


def test_the_first_sentences_are_plain_and_name_what_points_where(models: dict[str, FusionModel]) -> None:
    reasons = explain(models["logistic"], STRONG, MEANINGS)
    told = families(reasons)
    assert list(reasons[: len(told)]) == told
    by_code = {reason.code: reason for reason in told}
    networks = by_code["family.networks"]
    assert networks.text.startswith("The trained networks, which learnt from known real and AI-made pictures, point ")
    assert networks.text.endswith("to AI.")
    assert not any(char.isdigit() for reason in told for char in reason.text)
    sizes = [abs(reason.contribution or 0) for reason in told[:-1]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("value", "words"), [(1e-9, "to a real image."), (1 - 1e-9, "to AI.")])
def test_a_family_points_where_its_sum_does(models: dict[str, FusionModel], value: float, words: str) -> None:
    by_code = {reason.code: reason for reason in explain(models["logistic"], {"dino_prob": value}, {})}
    assert by_code["family.networks"].text.endswith(words)


def test_a_low_value_is_called_low(models: dict[str, FusionModel]) -> None:
    reasons = numbers(explain(models["logistic"], {"spectrum.slope": -9.0}, {}))
    assert [reason.code for reason in reasons] == ["spectrum.slope_low"]
    assert "lower than 95 % of the real and the AI images" in reasons[0].text


def test_nothing_measured_gives_no_numbers_and_says_so(models: dict[str, FusionModel]) -> None:
    reasons = explain(models["logistic"], {}, {})
    assert numbers(reasons) == []
    (unmeasured,) = (reason for reason in reasons if reason.code == "family.unmeasured")
    assert unmeasured.text.startswith("Not measured here: the trained networks, noise, colours and fine texture, ")
    assert numbers(explain(models["mlp"], {}, {})) == []
    for reason in numbers(explain(models["xgboost"], {}, {})):  # trees learn from absence, and say so
        assert reason.code.endswith("_missing")
        assert "not measured" in reason.text


def test_what_the_file_lacks_is_said_and_called_no_evidence(models: dict[str, FusionModel]) -> None:
    by_code = {reason.code: reason for reason in explain(models["logistic"], {"dino_prob": 0.5}, {})}
    assert by_code["family.missing"].text.startswith("The file carries no camera data and no mark of a generator")
    assert by_code["family.missing"].text.endswith("no evidence.")
    assert "family.camera_data" not in by_code


@pytest.mark.parametrize(("score", "words"), [(1.0, "contradict nothing"), (0.5, "incomplete or contradict")])
def test_camera_data_are_told_and_decide_nothing(models: dict[str, FusionModel], score: float, words: str) -> None:
    by_code = {reason.code: reason for reason in explain(models["logistic"], {"exif_score": score}, {})}
    assert words in by_code["family.camera_data"].text
    assert by_code["family.camera_data"].text.endswith("decide nothing.")
    assert "camera data" not in by_code["family.missing"].text


def test_claims_and_notes_follow_as_plain_facts_before_the_numbers(models: dict[str, FusionModel]) -> None:
    claim = Claim("xmp", "generated", "forgeable_metadata", "X", "Says X.")
    reasons = explain(models["logistic"], STRONG, MEANINGS, [claim], [Note("jpeg.twice", "Saved twice.")])
    facts = [(reason.code, reason.text) for reason in reasons if reason.contribution is None]
    assert facts[-2:] == [("claim.generated.forgeable_metadata", "Says X."), ("jpeg.twice", "Saved twice.")]
    assert reasons[-1].feature is not None
    assert not any(reason.code == "family.missing" for reason in reasons)  # it has camera data and a mark


def reference(share: float, low: float, high: float, **fields: object) -> Reference:
    known = {
        "kind": "all",
        "kind_probability": None,
        "delivery": "all",
        "ai_as_low": 0.42,
        "ai_interval": (0.36, 0.48),
    } | fields
    return Reference(real_as_high=share, interval=(low, high), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "interval", "words"),
    [
        (1 / 60, (0.008, 0.03), "1 in 60 real images scores this high (1 in 120 to 1 in 33); 4 in 10 AI images score"),
        (0.0, (0.0, 0.02), "Fewer than 1 in 50 real images score this high; 4 in 10"),
        (0.62, (0.55, 0.7), "6 in 10 real images score this high (6 in 10 to 7 in 10); "),
        (0.99, (0.97, 1.0), "Nearly all real images score this high"),
    ],
)
def test_rarity_is_said_in_words(share: float, interval: tuple[float, float], words: str) -> None:
    assert rarity(reference(share, *interval)).startswith(words)


def test_rarity_names_the_kind_and_the_delivery_it_was_measured_on() -> None:
    text = rarity(reference(0.01, 0.005, 0.02, kind="photo", delivery="web"))
    assert text.startswith("1 in 100 real photographs scores this high")
    assert text.endswith("among copies like this one (web).")


def test_the_reference_is_a_reason_before_the_numbers(models: dict[str, FusionModel]) -> None:
    model = models["logistic"]
    assert model.reference is not None
    found = model.reference.look_up(model.probability(STRONG), "clean")
    reasons = explain(model, STRONG, MEANINGS, reference=found)
    (told,) = (reason for reason in reasons if reason.code == "reference")
    assert told.text == rarity(found)
    assert math.isfinite(found.real_as_high)


def test_a_named_family_is_told_as_a_hint_and_an_unknown_one_is_not(models: dict[str, FusionModel]) -> None:
    named = Resemblance(family="flux", probability=0.62, right=0.76)
    by_code = {each.code: each.text for each in explain(models["logistic"], STRONG, MEANINGS, resembles=named)}
    assert by_code["resembles"].startswith("Of the generators that we know it looks most like flux (62 %).")
    assert "76 %" in by_code["resembles"]
    assert by_code["resembles"].endswith("no claim of origin.")
    unknown = Resemblance(family=Resemblance.UNKNOWN, probability=0.2, right=0.76)
    assert "resembles" not in {each.code for each in explain(models["logistic"], STRONG, MEANINGS, resembles=unknown)}
