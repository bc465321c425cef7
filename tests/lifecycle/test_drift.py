"""Drift: seldom seen in vain, seen in earnest, delivery told from content; read from files and from the stream."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lifecycle import drift
from lifecycle.drift import Gauges, Watch, baseline_of, read_verdicts, report, stream_verdicts
from lifecycle.reference import Reference, _once
from lifecycle.shift import Window, compare, psi, window_of
from tests.fakes import fusion_model
from tests.worker.conftest import chosen_server, prefix, server  # noqa: F401 - fixtures
from training.feature_table import Table
from utils.deliveries import DELIVERIES
from utils.errors import DatasetMissing
from utils.settings import Settings
from worker.connect import connect
from worker.stream import Keys

SIGNALS = ("effnet_prob", "noise.level", "jpeg.quality", "spectrum.slope")


def rows(count: int, rng: np.random.Generator, delivery: str | None = None, new: float = 0.0) -> Window:
    """Signals of which two follow the delivery, and two what is shown; ``new`` is the share of unknown content."""
    deliveries = rng.choice(DELIVERIES, count) if delivery is None else np.full(count, delivery)
    level = np.array([DELIVERIES.index(each) for each in deliveries])
    strange = rng.random(count) < new
    label = rng.random(count) < 0.5
    values = np.column_stack(
        [
            np.clip(0.3 + 0.4 * label + rng.normal(0, 0.15, count) - 0.1 * strange, 0, 1),
            rng.normal(0, 1, count) - 0.8 * level,
            np.where(rng.random(count) < 0.2, np.nan, 92 - 25 * level + rng.normal(0, 3, count)),
            rng.normal(0, 1, count) + 2.5 * strange,
        ]
    )
    return Window(values, values[:, 0], deliveries, np.full(count, "real"))


def reference_of(window: Window) -> Reference:
    sources = np.full(len(window), "s")
    return Reference(SIGNALS, window.values.astype(np.float32), window.probabilities, window.deliveries, sources)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of(rows(1000, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def trusted() -> Reference:
    """As verdicts say it: their signals follow their sizes."""
    return reference_of(window_of(verdicts_of(rows(1000, np.random.default_rng(0))), SIGNALS))


def test_undrifted_windows_raise_hardly_an_alarm(reference: Reference) -> None:
    rng = np.random.default_rng(1)
    alarms = [compare(reference, rows(200, rng)).alarm for _ in range(100)]
    assert sum(alarms) <= 5


def test_a_new_generator_in_a_third_of_the_traffic_is_noticed_as_content(reference: Reference) -> None:
    shift = compare(reference, rows(200, np.random.default_rng(2), new=0.3))
    assert shift.cause == "content"
    assert "spectrum.slope" in [each.name for each in shift.moved]
    assert "noise.level" not in [each.name for each in shift.moved]


def test_recompressed_traffic_is_noticed_as_delivery_and_with_new_content_as_both(reference: Reference) -> None:
    rng = np.random.default_rng(3)
    assert compare(reference, rows(200, rng, "hard")).cause == "delivery"
    assert compare(reference, rows(200, rng, "hard", new=0.4)).cause == "delivery and content"


def test_what_moves_too_little_for_one_window_is_seen_over_three(trusted: Reference) -> None:
    rng = np.random.default_rng(4)
    watch = Watch(lambda release: trusted, 200)
    causes = []
    for _ in range(6):
        window = rows(200, rng, new=0.12)
        causes += [seen.shift.cause for seen in watch.add(verdicts_of(window))]
    assert len(causes) == 6
    assert causes[0] == "none"
    assert "content" in causes


def test_a_window_is_of_one_release_and_compared_with_its_own_reference(trusted: Reference) -> None:
    rng = np.random.default_rng(9)
    moved = replace(trusted, values=trusted.values + np.float32(5))
    asked = []

    def of(release: str) -> Reference | None:
        asked.append(release)
        return {"one": trusted, "two": moved}.get(release)

    def by(release: str, count: int) -> list[dict[str, object]]:
        return [{**each, "models": {"release": release}} for each in verdicts_of(rows(count, rng))]

    mixed = [each for three in zip(by("one", 200), by("two", 200), by("lost", 200), strict=True) for each in three]
    found = {seen.release: seen.shift.alarm for seen in Watch(of, 200).add(mixed)}
    assert found == {"one": False, "two": True}
    assert asked == ["one", "two", "lost"]


def test_an_image_that_the_reference_has_under_three_deliveries_is_no_drift() -> None:
    """Were its copies on both sides of the classifier, it would know the reference again."""
    rng = np.random.default_rng(10)
    images = np.repeat(rng.normal(0, 1, (150, 40)), 3, axis=0) + rng.normal(0, 0.05, (450, 40))
    names = tuple(f"s{number}" for number in range(40))
    sources = np.repeat(np.arange(150), 3).astype(str)
    half = np.full(450, 0.5)
    known = Reference(names, images.astype(np.float32), half, np.tile(DELIVERIES, 150), sources)
    alarms = 0
    for _ in range(20):
        values = rng.normal(0, 1, (200, 40))
        window = Window(values, half[:200], rng.choice(DELIVERIES, 200), np.full(200, "real"))
        found = compare(known, window)
        alarms += any(each.name == "all signals together" and each.moved for each in found.moves)
    assert alarms <= 2


def test_psi_is_nothing_for_the_same_and_large_for_another_distribution() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    assert psi(values, values) < 1e-9
    assert psi(values, values + 1) > 0.25


def verdicts_of(window: Window) -> list[dict[str, object]]:
    size = {"clean": (2000, None), "web": (768, 60), "hard": (512, 40)}
    return [
        {
            "fusion_prob": float(probability),
            "tier": str(tier),
            "width": size[str(delivery)][0],
            "height": 100,
            "source": f"{number}.jpg",
            "signals": {
                **{name: None if math.isnan(value) else float(value) for name, value in zip(SIGNALS, row, strict=True)},
                "jpeg.quality": size[str(delivery)][1],
            },
        }
        for number, (row, probability, delivery, tier) in enumerate(
            zip(window.values, window.probabilities, window.deliveries, window.tiers, strict=True)
        )
    ]


def test_a_window_is_what_its_verdicts_say() -> None:
    window = rows(50, np.random.default_rng(5))
    read = window_of(verdicts_of(window), SIGNALS)
    assert list(read.deliveries) == list(window.deliveries)
    np.testing.assert_allclose(read.values[:, [0, 1, 3]], window.values[:, [0, 1, 3]])
    assert window_of([{**verdicts_of(window)[0], "dino_prob": 0.5}], ("dino_prob",)).values[0, 0] == 0.5


def test_files_are_watched_and_the_report_shows_what_moved(tmp_path, monkeypatch, capsys) -> None:
    rng = np.random.default_rng(6)
    lines = [json.dumps(each) for each in verdicts_of(rows(400, rng))]
    (tmp_path / "trusted.jsonl").write_text("\n".join([*lines, '{"error": {"code": "x"}}']))
    (tmp_path / "now").mkdir()
    for number, verdict in enumerate(verdicts_of(rows(200, rng, new=0.4))):
        (tmp_path / "now" / f"{number}.json").write_text(json.dumps(verdict))
    told = []
    monkeypatch.setattr(drift, "notify", lambda settings, event: told.append(event))
    page = tmp_path / "drift.html"
    arguments = ["--baseline", str(tmp_path / "trusted.jsonl"), "--report", str(page)]
    assert drift.main([str(tmp_path / "now"), *arguments]) == 3
    assert "content moved: " in capsys.readouterr().out
    assert told[0]["cause"] == "content"
    assert "spectrum.slope" in page.read_text()
    assert page.read_text().count("<svg") >= 1
    assert drift.main([str(tmp_path / "trusted.jsonl"), *arguments]) == 0
    with pytest.raises(DatasetMissing, match="no verdicts"):
        list(read_verdicts([tmp_path / "absent"]))
    with pytest.raises(DatasetMissing, match="of one release are no baseline; give 200 or more"):
        baseline_of(list(read_verdicts([tmp_path / "now" / "1.json"])))


def test_a_report_escapes_what_it_shows(tmp_path, reference) -> None:
    strange = Reference(("<b>",), reference.values[:, :1] + 9, *(getattr(reference, name) for name in
                        ("probabilities", "deliveries", "sources")))  # fmt: skip
    window = rows(200, np.random.default_rng(7))
    one = Window(window.values[:, :1], window.probabilities, window.deliveries, window.tiers)
    report(tmp_path / "a.html", strange, one, compare(strange, one), "<i>")
    assert "<b>" not in (tmp_path / "a.html").read_text()
    assert "&lt;b&gt;" in (tmp_path / "a.html").read_text()


def test_gauges_name_cause_signals_and_tiers(reference) -> None:
    gauges, window = Gauges(), rows(200, np.random.default_rng(8), "hard")
    gauges.show(compare(reference, window), window)
    value = gauges.registry.get_sample_value
    assert value("imgv_drift_alarm", {"cause": "delivery"}) == 1
    assert value("imgv_drift_alarm", {"cause": "content"}) == 0
    assert value("imgv_drift_tier_share", {"tier": "real"}) == 1


def test_the_stream_is_read_in_a_group_of_its_own_and_again_what_was_not_used(server, prefix) -> None:  # noqa: F811
    keys = Keys(prefix)

    async def main() -> list[list[float]]:
        seen = []
        async with connect(server.url) as client:
            await client.xgroup_create(keys.results, "other", id="$", mkstream=True)
            first = stream_verdicts(client, keys)
            waiting = asyncio.create_task(anext(first))
            await asyncio.sleep(0.1)
            for number in range(3):
                await client.xadd(keys.results, {"verdict": json.dumps({"fusion_prob": number}), "status": "ok"})
            await client.xadd(keys.results, {"error": "{}", "status": "error"})
            seen += [[each["fusion_prob"] for each in await waiting]]
            while sum(map(len, seen)) < 3:
                seen.append([each["fusion_prob"] for each in await anext(first)])
            await first.aclose()  # ends before it acknowledges the last ones
            again = stream_verdicts(client, keys)
            seen.append([each["fusion_prob"] for each in await anext(again)])
            await again.aclose()
            (group,) = [each for each in await client.xinfo_groups(keys.results) if each["name"] == b"other"]
            assert group["lag"] in (4, None)
        return seen

    seen = asyncio.run(main())
    assert sorted(chain.from_iterable(seen[:-1])) == [0, 1, 2]
    assert seen[-1] == seen[-2]


def test_without_a_release_the_watch_says_what_to_do(lifecycle_dir: Path) -> None:
    from lifecycle.drift import reference_of as of_release
    from utils.errors import ReleaseUnusable

    with pytest.raises(ReleaseUnusable, match="promote"):
        of_release(Settings.of(lifecycle_dir=lifecycle_dir))


def test_a_reference_too_small_for_single_signals_says_so(reference: Reference, monkeypatch, capsys) -> None:
    few = reference_of(rows(20, np.random.default_rng(0)))
    monkeypatch.setattr(drift, "reference_of", lambda *_: (few, "small"))
    drift.references(Settings.of())("small")
    assert "the reference of small has 20 images; single signals need 30" in capsys.readouterr().err
    monkeypatch.setattr(drift, "reference_of", lambda *_: (reference, "large"))
    drift.references(Settings.of())("large")
    assert not capsys.readouterr().err


def test_each_image_comes_once_and_its_delivery_does_not_follow_the_label() -> None:
    """In a data set whose labels alternate, deliveries in turn would give each label one of its own."""
    images = np.repeat([f"{number:03}" for number in range(100)], 2)
    labels = np.repeat(np.arange(100) % 2, 2)
    table = Table(
        ("statistics.x",),
        np.zeros((200, 1)),
        labels,
        images,
        np.full(200, "val"),
        np.tile(["clean", "web"], 100),
        images=images,
    )
    once = _once(table)
    assert len(once) == len(set(once.images)) == 100
    for label in (0, 1):
        assert 10 < np.count_nonzero(once.deliveries[once.labels == label] == "web") < 40


def test_a_reference_has_no_number_that_verdicts_of_its_profile_will_lack() -> None:
    names = ("clip_b16_prob", "noise.level", "statistics.flat_area")
    values = np.random.default_rng(0).random((40, 3))
    labels, sources = np.arange(40) % 2, np.arange(40).astype(str)
    table = Table(names, values, labels, sources, np.full(40, "val"), np.full(40, "web"))
    light = replace(fusion_model("clip_b16_prob"), profile="light")
    reference = Reference.of(light, table)
    assert reference.signals == ("clip_b16_prob", "statistics.flat_area")
    assert reference.values.shape == (40, 2)
    assert Reference.of(replace(fusion_model("clip_b16_prob", "noise.level"), profile="light"), table).signals == names
    assert Reference.of(replace(light, profile="embedded"), table).signals == names


def test_pictures_of_something_new_are_seen_in_their_embeddings_alone(reference: Reference, tmp_path) -> None:
    rng = np.random.default_rng(11)
    sources = np.arange(300).astype(str)
    known = replace(reference, embeddings=rng.normal(0, 0.1, (300, 64)).astype(np.float32), embedded=sources)
    known.save(tmp_path / "reference.npz")
    known = Reference.load(tmp_path / "reference.npz")
    window = rows(200, rng)
    same, other = (replace(window, embeddings=rng.normal(shift, 0.1, (200, 64))) for shift in (0.0, 0.05))
    assert not compare(known, same).alarm
    shift = compare(known, other)
    assert [each.name for each in shift.moved] == ["embedding"]
    assert "embedding" not in [each.name for each in compare(reference, other).moves]
    assert window_of([{**each, "embedding": [0.5] * 64} for each in verdicts_of(window)], SIGNALS).embeddings.shape == (
        200,
        64,
    )
