"""How rare a score is: measured over sources, kept in the artifact, looked up for one image."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fusion.meta_model import FusionModel
from fusion.reference import CUTS, Curves, ReferenceTable, most_like
from training.feature_table import Table
from training.reference import measure_reference

SOURCES, IMAGES = 20, 50


def table(probabilities: np.ndarray, labels: np.ndarray, deliveries: str = "web") -> Table:
    sources = np.array([f"{label}{index // IMAGES}" for index, label in enumerate(labels)])
    n = len(labels)
    return Table(
        ("x",), probabilities[:, None], labels, sources, np.full(n, "train"), np.full(n, deliveries, dtype="<U9")
    )


@pytest.fixture(scope="module")
def measured() -> ReferenceTable:
    """Real scores are uniform in 0..0.5, AI scores in 0.4..0.9."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], SOURCES * IMAGES)
    probabilities = rng.random(len(labels)) * 0.5 + 0.4 * labels
    return measure_reference(table(probabilities, labels), probabilities, "made up")


def test_shares_are_those_of_the_images(measured: ReferenceTable) -> None:
    found = measured.look_up(0.45, "web")
    assert found.real_as_high == pytest.approx(0.1, abs=0.03)
    assert found.ai_as_low == pytest.approx(0.1, abs=0.03)
    assert found.interval[0] < found.real_as_high < found.interval[1]
    assert found.ai_interval[0] < found.ai_as_low < found.ai_interval[1]
    assert (found.kind, found.delivery) == ("all", "web")


def test_a_histogram_shows_where_the_images_score(measured: ReferenceTable) -> None:
    found = measured.histograms()["all"]["web"]
    assert len(found.real) == len(found.ai) == len(found.edges) + 1
    assert sum(found.real) == pytest.approx(1, abs=1e-3)
    assert sum(found.ai) == pytest.approx(1, abs=1e-3)
    middle = [found.position(probability) for probability in (0.45, 0.55)]
    outside = [share for at, share in enumerate(found.real) if at > middle[1]]
    assert max(outside) == 0, "no real image scores above a half"
    assert found.real[int(found.position(0.1))] > 0 == found.ai[int(found.position(0.1))]


@pytest.mark.parametrize(("probability", "bar"), [(0.0, 1), (0.5, 11), (1.0, 21)])
def test_a_score_stands_among_the_bars(measured: ReferenceTable, probability: float, bar: float) -> None:
    assert measured.histogram("all", "web").position(probability) == pytest.approx(bar)


def test_a_share_that_nothing_shows_keeps_room_for_what_was_not_seen(measured: ReferenceTable) -> None:
    found = measured.look_up(0.8, "web")
    assert (found.real_as_high, found.interval[0]) == (0.0, 0.0)
    assert 3 / (4 * SOURCES * IMAGES) < found.interval[1] < 3 / SOURCES


def test_images_of_one_source_do_not_make_it_surer() -> None:
    """Sources that agree within themselves are worth their number, not their images'."""
    labels = np.repeat([0, 1], SOURCES * IMAGES)
    levels = np.random.default_rng(1).random(2 * SOURCES)
    probabilities = np.repeat(levels, IMAGES)
    found = measure_reference(table(probabilities, labels), probabilities, "made up").look_up(0.5, "web")
    assert found.interval[1] - found.interval[0] > 0.2


def test_shares_fall_and_rise_with_the_score(measured: ReferenceTable) -> None:
    found = [measured.look_up(probability, "web") for probability in np.linspace(0, 1, 101)]
    assert all(later.real_as_high <= earlier.real_as_high for earlier, later in pairwise(found))
    assert all(later.ai_as_low >= earlier.ai_as_low for earlier, later in pairwise(found))


def test_an_unknown_kind_or_delivery_is_compared_with_all(measured: ReferenceTable) -> None:
    found = measured.look_up(0.45, "clean", "art")
    assert (found.kind, found.delivery) == ("all", "all")


def test_a_delivery_of_few_sources_has_no_curves_of_its_own() -> None:
    labels = np.repeat([0, 1], 5 * IMAGES)
    probabilities = np.random.default_rng(0).random(len(labels))
    assert set(measure_reference(table(probabilities, labels), probabilities, "x").curves["all"]) == {"all"}


def test_a_table_survives_json(measured: ReferenceTable) -> None:
    back = ReferenceTable.from_json(json.loads(json.dumps(measured.to_json())))
    assert back.look_up(0.3, "web") == measured.look_up(0.3, "web")
    assert back.measured_on == "made up"


def test_impossible_tables_are_refused() -> None:
    good, bad = np.zeros((len(CUTS), 3)), np.full((len(CUTS), 3), 2.0)
    with pytest.raises(ValueError, match="shares"):
        Curves(good, bad, 1, 1)
    with pytest.raises(ValueError, match="all"):
        ReferenceTable("x", {"photo": {}})


def test_training_puts_a_table_into_every_artifact(models: dict[str, FusionModel]) -> None:
    for model in models.values():
        assert model.reference is not None
        low, high = (model.reference.look_up(probability, "all") for probability in (0.01, 0.99))
        assert low.real_as_high > high.real_as_high
        assert low.ai_as_low < high.ai_as_low


def test_each_kind_with_enough_sources_has_curves_of_its_own() -> None:
    """Drawings score .3 higher than photographs, so the same score is rarer among photographs."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], SOURCES * IMAGES)
    drawn = np.tile(np.arange(SOURCES) % 2, (IMAGES, 1)).T.reshape(-1)
    drawn = np.concatenate([drawn, drawn])
    probabilities = rng.random(len(labels)) * 0.4 + 0.3 * drawn + 0.2 * labels
    kinds = np.where(drawn, "art", "photo")
    found = measure_reference(replace(table(probabilities, labels), kinds=kinds), probabilities, "made up")
    assert set(found.curves) == {"all", "photo", "art"}, "none of screens"
    photo, art, both = (found.look_up(0.45, "web", kind, 0.9) for kind in ("photo", "art", "all"))
    assert photo.real_as_high < both.real_as_high < art.real_as_high
    assert (photo.kind, photo.kind_probability, both.kind_probability) == ("photo", 0.9, None)


def test_an_image_is_of_a_kind_only_where_that_is_sure() -> None:
    assert most_like({"clip_b16.photo": 0.1, "clip_b16.art": 0.7, "clip_b16.screen": 0.2}) == ("art", 0.7)
    assert most_like({"clip_b16.photo": 0.5, "clip_b16.art": 0.3, "clip_b16.screen": 0.2})[0] == "all"
    assert most_like({"clip_b16.photo": math.nan, "effnet_prob": 0.9})[0] == "all"
