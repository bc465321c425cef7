"""From labelled images to an artifact and a verdict by it, with weights of our own making in the published layouts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import psutil
import pytest
import torch
from dotenv import dotenv_values
from PIL import Image
from safetensors.torch import save_file

import img_ml_verify
from fusion import train_fusion
from fusion.meta_model import FusionModel
from inference import fatformer
from inference.clip_models import TINY as TINY_CLIP
from inference.clip_models import ClipH14Detector
from models.backbone_nets import empty
from models.backbones import backbones
from models.fatformer_net import TINY, FatFormer
from models.loaders import Weights, record_card
from scripts import build_profile
from scripts.embed_clip_prompts import main as embed_clip_prompts
from tests.models.test_backbones import drawn, published, small
from tests.models.test_fatformer_net import official_state
from training import profile_build
from training.embeddings import GROUP, Embedded
from training.feature_table import read_columns, read_table
from training.metrics import evaluate
from training.profile_build import Build
from training.profile_plan import GIB, Machine, Plan, chosen, costs, part_of
from utils.errors import BadSettings, PlanDoesNotFit
from utils.exits import Exit
from utils.persistence import sha256_file
from utils.profiles import PROFILES

REPOSITORY = Path(__file__).parents[2]
IMAGES = 56
HEADS = ("dinov3_small", "siglip2_base", "pe_core_base")
PARTS = "effnet,dinov3:dinov3_small,siglip2:siglip2_base,pe_core:pe_core_base,fatformer,clip_h14"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Red against blue images (all that random weights see), four sources of each label, the last for validation."""
    rng = np.random.default_rng(0)
    lines = ["filepath,label,source,split"]
    for label in ("real", "ai"):
        for source in range(4):
            for index in range(7):
                colour = rng.integers(60, 190, 3) + ([60, 0, -60] if label == "ai" else [-60, 0, 60])
                pixels = np.full((40, 48, 3), colour) + rng.normal(0, 10, (40, 48, 3))
                name = f"{label}{source}{index}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
                lines.append(f"{name},{label},{label}-{source},{'val' if source == 3 else 'train'}")
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    return tmp_path / "dataset.csv"


@pytest.fixture
def weights_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small networks under the names and in the layouts of the published ones."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("IMGV_WEIGHTS_DIR", str(folder))
    monkeypatch.setenv("IMGV_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    for module in ("utils.settings", "scripts.build_profile"):
        monkeypatch.setattr(f"{module}.ENV_FILE", tmp_path / ".env")

    def install(name: str, file: str) -> None:
        path = folder / file
        record_card(name, {"size": path.stat().st_size, "sha256": sha256_file(path)}, folder)

    for name in HEADS:
        monkeypatch.setitem(backbones(), name, small(name))
        save_file(published(name, drawn(empty(small(name)))), folder / f"{name}.safetensors")
        install(name, f"{name}.safetensors")
    torch.manual_seed(0)
    monkeypatch.setattr(fatformer, "FatFormer", lambda: FatFormer(TINY))
    torch.save({"model": official_state(TINY)}, folder / "fatformer_4class_ckpt.pth")
    install("fatformer", "fatformer_4class_ckpt.pth")
    monkeypatch.setattr(ClipH14Detector, "CONFIG", TINY_CLIP)
    save_file(open_clip.CLIP(**TINY_CLIP).state_dict(), folder / "clip_h14.safetensors")
    install("clip_h14", "clip_h14.safetensors")
    assert embed_clip_prompts(["clip_h14"]) == 0
    monkeypatch.setattr(train_fusion, "trainable", lambda: ["logistic"])
    monkeypatch.setattr(profile_build, "DELIVERED", {"train": ("web",), "val": ("web",)})
    return folder


def run(dataset: Path, *more: str) -> int:
    out = dataset.parent / "artifact"
    command = [
        "full",
        "--dataset",
        str(dataset),
        "--detectors",
        PARTS,
        "--head",
        "logistic",
        "--out",
        str(out),
        "--yes",
    ]
    return build_profile.main([*command, *more])


# In each stage: a function, and how often it is called before the build dies there.
DEATHS = {
    "embed": ("training.embeddings._keep", 2),
    "heads": ("training.profile_build.write", 1),
    "features": ("training.extraction.Measurer.__call__", 5),
    "fuse": ("fusion.train_fusion._install", 0),
    "compare": ("training.profile_build.report", 0),
}


class Counted:
    """A function that counts its calls over all runs, and in one of them dies after some."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.function = resolve_name(name)
        self.calls, self.left = 0, math.inf
        monkeypatch.setattr(name, lambda *given, **named: self(*given, **named))

    def __call__(self, *given: Any, **named: Any) -> Any:
        if not self.left:
            raise KeyboardInterrupt
        self.calls, self.left = self.calls + 1, self.left - 1
        return self.function(*given, **named)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_becomes_an_artifact_and_a_verdict_by_it_however_often_it_is_killed(
    dataset: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "| dinov3:dinov3_small | dinov3_small | - | DINOv3 License" in shown
    assert "stages: download, embed, heads, features, fuse, compare" in shown
    work = dataset.with_suffix(".build")
    assert not work.exists()

    counted = {stage: Counted(name, monkeypatch) for stage, (name, _) in DEATHS.items()}
    for stage, (_, calls) in DEATHS.items():
        counted[stage].left = calls
        assert run(dataset) == Exit.INTERRUPTED
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.endswith(stage), "it died there and nowhere else"
        counted[stage].left = math.inf
    assert run(dataset) == 0
    groups = len(HEADS) * math.ceil(IMAGES / GROUP)
    done = {stage: each.calls for stage, each in counted.items()}
    assert done == {"embed": groups, "heads": len(HEADS), "features": IMAGES, "fuse": 1, "compare": 1}, "nothing twice"
    shown = capsys.readouterr().out
    assert f"against {PROFILES['full'].fusion}, validation sources" in shown
    assert shown.count("| artifact, web, AI from") == 1
    model = FusionModel.load(dataset.parent / "artifact")
    heads = {"dinov3_prob", "siglip2_prob", "pe_core_prob"}
    assert heads | {"effnet_prob", "fatformer_prob", "clip_h14_prob"} <= set(model.inputs)
    assert "| forensics |" in shown, "what every part is worth alone"

    settings = {key: value for key, value in dotenv_values(dataset.parent / ".env").items() if value is not None}
    assert settings["IMGV_PROFILE"] == "full"
    assert "-dino" in settings["IMGV_DETECTORS"].split(",")
    assert img_ml_verify.main([str(dataset.parent / "ai30.png"), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["models"]["fusion"] == "artifact"
    assert verdict["beside"] == []
    assert verdict["fusion_prob"] > 0.5
    numbers = verdict | verdict["signals"]
    assert all(0 < numbers[name] < 1 for name in heads)


@pytest.mark.slow
def test_heads_are_judged_out_of_fold_where_they_learnt(dataset: Path, weights_dir: Path) -> None:
    """The table that fusion learns from has other scores for training rows than the installed head gives."""
    command = ["full", "--dataset", str(dataset), "--detectors", "effnet,dinov3:dinov3_small", "--yes"]
    assert build_profile.main([*command, "--out", str(dataset.parent / "small")]) == 0
    from inference.frozen import DinoV3Detector

    work = dataset.with_suffix(".build")
    filled = read_columns(next(work.glob("filled-*.csv")))
    embedded = Embedded.load(next(work.glob("dinov3_small-*.npz")))
    head = DinoV3Detector.load(Weights.at(weights_dir), "cpu").head
    by_head = head.probabilities(embedded.table.matrix)
    in_table = np.array([float(cell) for cell in filled["dinov3_prob"]])
    learnt = embedded.table.splits == "train"
    assert np.abs(in_table - by_head)[~learnt].max() < 1e-9
    assert np.abs(in_table - by_head)[learnt].max() > 1e-6


@pytest.mark.slow
def test_a_build_of_another_seed_shares_nothing_that_a_seed_decides(
    dataset: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and features see the deliveries of the build's own seed, also beside what another seed left."""
    monkeypatch.setattr(profile_build, "DELIVERED", {"train": ("random1",), "val": ("web",)})
    few = dataset.with_name("few.csv")
    few.write_text("filepath,label,source,split\nreal00.png,real,a,train\nai00.png,ai,b,train\nai30.png,ai,c,val")
    chosen = tuple(parts("effnet", "dinov3:dinov3_small", folder=weights_dir))

    def made(seed: int, work: str) -> tuple[Any, Any]:
        build = Build(chosen, few, dataset.parent / work, dataset.parent / "out", seed=seed)
        build.work.mkdir(exist_ok=True)
        profile_build.embed(build)
        profile_build.features(replace(build, parts=chosen[:1]))
        found = [Embedded.load(path) for path in build.work.glob("*.npz")]
        matrix = next(each.table.matrix for each in found if each.about["seed"] == str(seed))
        return matrix, read_columns(build.table("features"))["noise.level"]

    first, other, alone = made(0, "shared"), made(1, "shared"), made(1, "alone")
    for zero, one, expected in zip(first, other, alone, strict=True):
        assert np.array_equal(one, expected), "as if the other seed had never been"
        assert not np.array_equal(one, zero)
        assert np.array_equal(one[-1], zero[-1]), "web is web"


# --- plans


def machine(memory: float, disk: float = 500) -> Machine:
    return Machine("cpu", 5e10, int(memory * GIB), int(disk * GIB))


def parts(*names: str, folder: Path) -> list[Any]:
    return [part_of(name, Weights.at(folder)) for name in names]


EVERYTHING = ("clip_b16", "effnet", "ghostnet", "dino", "fatformer", "clip_h14", "clip_bigg", "pe_core", "metaclip2")


def test_a_machine_with_4_gb_free_gets_a_plan_that_fits_it(tmp_path: Path) -> None:
    everything = parts(*EVERYTHING, folder=tmp_path)
    four = chosen(everything, machine(4))
    plan = Plan(tuple(four), machine(4), 100)
    plan.check()
    assert {"clip_b16", "effnet", "ghostnet"} < {part.detector for part in four}
    assert any(part.backbone for part in four), "and a foundation backbone beside what ships"
    assert "clip_bigg" not in {part.detector for part in four}
    assert len(chosen(everything, machine(64))) == len(everything)
    assert len(chosen(everything, machine(64), seconds_per_image=3)) < len(everything)


def test_what_does_not_fit_is_refused_before_the_download(
    dataset: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_build.subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))
    command = ["full", "--dataset", str(dataset), "--detectors", "effnet,dino:dinov2_large,clip_bigg", "--yes"]
    assert build_profile.main([*command, "--memory", "4"]) == Exit.SETUP
    error = capsys.readouterr().err
    assert "does_not_fit" in error
    assert "--detectors effnet,dino:dinov2_large" in error
    with pytest.raises(PlanDoesNotFit, match="GiB of disk"):
        Plan(tuple(parts("clip_bigg", folder=weights_dir)), machine(64, disk=1), 10).check()


def test_a_plan_says_what_a_licence_forbids_and_takes_it_only_by_name(
    dataset: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_profile, "this_machine", lambda *_: machine(64))
    assert build_profile.main(["full", "--dataset", str(dataset), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "without metaclip2:metaclip2_h14: metaclip2_h14 is CC-BY-NC-4.0" in shown.err
    assert "| metaclip2" not in shown.out
    named = ["--detectors", "metaclip2", "--dry-run"]
    assert build_profile.main(["full", "--dataset", str(dataset), *named]) == 0
    assert "CC-BY-NC-4.0 (NOT FOR COMMERCIAL USE)" in capsys.readouterr().out


@pytest.fixture
def four_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, measured as it is but for its memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * GIB))
    monkeypatch.setattr(profile_build.subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))


def test_a_recommendation_fits_the_memory_that_is_measured_and_needs_no_data_set(
    weights_dir: Path, four_gb: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_profile.main(["full", "--plan", "--json"]) == 0
    shown = capsys.readouterr().out
    plan = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    assert plan["memory_free"] == 4 * GIB
    assert 2 * GIB < plan["memory_bytes"] <= 4 * GIB
    names = [each["name"] for each in plan["detectors"]]
    assert {"clip_b16", "effnet"} <= set(names)
    assert any(":" in name for name in names), "and a foundation backbone"
    assert f"--detectors {','.join(names)}" in shown


def test_what_is_too_large_for_the_memory_that_is_measured_is_refused_and_leaves_nothing(
    dataset: Path, weights_dir: Path, four_gb: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in dataset.parent.rglob("*"))
    command = ["full", "--dataset", str(dataset), "--detectors", "effnet,clip:clip_l14,pe_core:pe_core_giant", "--yes"]
    assert build_profile.main(command) == Exit.SETUP
    error = capsys.readouterr().err
    assert "does_not_fit" in error
    assert "4.0 are free" in error
    assert "--detectors effnet,clip:clip_l14" in error
    assert sorted(path for path in dataset.parent.rglob("*")) == before


def test_the_worth_and_size_of_what_ships_are_measured_ones() -> None:
    """Balanced accuracy of each network alone at 0.5, on the table that the shipped artifact came from."""
    name = PROFILES["full"].fusion
    found = read_table(REPOSITORY / "training" / "tables" / f"{name}.parquet", ("clip_b16_prob", "effnet_prob"))
    found = found.rows(found.splits == "val")
    for detector, alone in zip(("clip_b16", "effnet"), found.matrix.T, strict=True):
        measured = evaluate(found.labels, alone, found.sources, 0.5)["balanced_accuracy"].value
        assert costs()[detector]["worth"] == pytest.approx(measured, abs=0.005)
        assert f"alone, at 0.5, {len(set(found.sources))} validation sources" in costs()[detector]["source"]
        assert f"{name}.parquet" in costs()[detector]["source"]
    with torch.device("meta"):
        parameters = sum(each.numel() for each in FatFormer().parameters())
    assert costs()["fatformer"]["parameters"] == parameters


def test_the_page_has_the_size_of_every_backbone() -> None:
    rows = [line.split("|") for line in (REPOSITORY / "docs" / "full.md").read_text().splitlines() if " M | " in line]
    told: dict[str, int] = {}
    for _, names, sizes, *_ in rows:
        words = [name.strip(" `") for name in names.split(",")]
        full = [words[0], *(f"{words[0].rpartition('_')[0]}{word}" if word[0] == "_" else word for word in words[1:])]
        numbers = re.findall(r"\d+(?:,\d{3})*", sizes)
        told |= {name: int(size.replace(",", "")) for name, size in zip(full, numbers, strict=True)}
    expected = {name: round(each.parameters / 1e6) for name, each in backbones().items()}
    expected |= {name: round(costs()[name]["parameters"] / 1e6) for name in ("fatformer", "mantranet")}
    assert told == expected


def test_a_wrong_detector_or_pair_is_told(tmp_path: Path) -> None:
    for name, told in (("dinno", "no detector"), ("dino:clip_l14", "a backbone of clip"), ("effnet:x", "no choice")):
        with pytest.raises(BadSettings, match=told):
            parts(name, folder=tmp_path)
    assert part_of("dino", Weights.at(tmp_path)).name == "dino:dinov2_base"


@pytest.mark.parametrize(
    "names", ["dino:dinov2_small,dino:dinov2_large", "effnet,effnet", "mantranet,mantranet_compact"]
)
def test_two_parts_that_give_one_number_are_refused_before_the_download(
    names: str, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_profile, "this_machine", lambda *_: machine(64))
    monkeypatch.setattr(profile_build.subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))
    assert build_profile.main(["full", "--dataset", str(dataset), "--detectors", names, "--yes"]) == Exit.SETUP
    one, other = names.split(",")
    assert f"{one} and {other} both give" in capsys.readouterr().err
