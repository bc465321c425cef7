from __future__ import annotations

import pytest

from fusion.explain import LEAST_LOG_ODDS, MOST_REASONS, explain
from fusion.meta_model import FusionModel
from tests.fusion.synthetic import KINDS
from utils.contracts import Claim, Note

MEANINGS = {"dino_prob": "DINOv2 detector, probability of AI", "noise.level": "noise residual, grey levels"}
STRONG = {"dino_prob": 0.9999, "exif_score": 0.5, "noise.level": 500.0, "noise.spread": 0.0, "spectrum.slope": -1.5}


@pytest.mark.parametrize("kind", KINDS)
def test_the_strongest_contributions_come_first_and_say_where_they_stand(
    models: dict[str, FusionModel], kind: str
) -> None:
    reasons = explain(models[kind], STRONG, MEANINGS)
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
def test_each_sentence_repeats_the_models_own_number(models: dict[str, FusionModel], kind: str) -> None:
    parts = models[kind].contributions(STRONG)
    for reason in explain(models[kind], STRONG, {}):
        assert reason.feature is not None
        assert reason.contribution == parts[reason.feature]
        assert reason.text.startswith(f"{reason.feature}: ")


def test_a_low_value_is_called_low(models: dict[str, FusionModel]) -> None:
    reasons = explain(models["logistic"], {"spectrum.slope": -9.0}, {})
    assert [reason.code for reason in reasons] == ["spectrum.slope_low"]
    assert "lower than 95 % of the real and the AI images" in reasons[0].text


def test_nothing_measured_gives_no_sentences(models: dict[str, FusionModel]) -> None:
    assert explain(models["logistic"], {}, {}) == ()
    assert explain(models["mlp"], {}, {}) == ()
    for reason in explain(models["xgboost"], {}, {}):  # trees learn from absence, and say so
        assert reason.code.endswith("_missing")
        assert "not measured" in reason.text


def test_claims_and_notes_follow_as_plain_facts(models: dict[str, FusionModel]) -> None:
    claim = Claim("xmp", "generated", "forgeable_metadata", "X", "Says X.")
    reasons = explain(models["logistic"], STRONG, MEANINGS, [claim], [Note("jpeg.twice", "Saved twice.")])
    assert [(reason.code, reason.text) for reason in reasons[-2:]] == [
        ("claim.generated.forgeable_metadata", "Says X."),
        ("jpeg.twice", "Saved twice."),
    ]
    assert all(reason.feature is None and reason.contribution is None for reason in reasons[-2:])
