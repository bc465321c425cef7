"""From labelled images to a fusion artifact that knows every detector chosen: the stages of scripts/build_profile.py.

A stage is done when its result lies in the work folder under a name that holds what it was made from, so a run that was
killed goes on behind the last stage that ended; embeddings and features go on inside theirs. No command.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fusion import train_fusion
from fusion.meta_model import FusionModel
from inference.registry import DETECTORS
from models.loaders import SHIPPED, Weights, install
from training.backbone_embeddings import DELIVERED, embed_with, made_by
from training.embeddings import Embedded
from training.extraction import Key, extract, fill
from training.feature_table import Table, parts, read_table
from training.fusion_card import markdown_table
from training.head_fit import fit, write
from training.meta_models import without
from training.metrics import evaluate, expected_calibration_error, plain, resampled_weights
from training.profile_plan import Part
from utils.errors import TableError, WeightsMissing
from utils.exits import Exit
from utils.persistence import digest, sha256_file, write_atomic
from utils.profiles import PROFILES
from utils.settings import load_settings

PROFILE = "full"
REPORT = "comparison.md"
MOST_PARTS = 6  # of which every subset is measured; of more those that lack one, and each alone


@dataclass(frozen=True, slots=True)
class Build:
    """What is built, from what, where."""

    parts: tuple[Part, ...]
    manifest: Path
    work: Path  # results of the stages
    out: Path  # the artifact
    head: str = "svm"
    jobs: int = 1
    ray: str | None = None
    seed: int = 0

    @property
    def frozen(self) -> list[Part]:
        return [part for part in self.parts if part.backbone]

    def table(self, name: str) -> Path:
        """Named after all that decides on its rows; measured rows say themselves which weights measured them."""
        made_from = [sha256_file(self.manifest), DELIVERED, load_settings().models.precision, self.seed]
        return self.work / f"{name}-{digest(made_from)}.csv"

    def switches(self, wanted: Sequence[str]) -> list[str]:
        """IMGV_DETECTORS that makes the profile run exactly these."""
        own = PROFILES[PROFILE].detectors
        return [f"-{name}" for name in own if name not in wanted] + [name for name in wanted if name not in own]


# --- the stages, in order


def download(build: Build) -> None:
    """Fetch what is missing, each file verified, and embed CLIP's prompts; the licences were shown with the plan."""
    names = [card.name for part in build.parts for card in part.downloads]
    if names:
        _run("scripts.download_weights", "--yes", *names)
    weights = Weights.at(load_settings().models.weights_dir)
    texts = [f"{part.detector}_text" for part in build.parts]
    if lacking := [name for name in texts if name in weights.cards and not weights.card(name).file]:
        _run("scripts.embed_clip_prompts", *(name.removesuffix("_text") for name in lacking))


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - our own command, names of cards
        raise WeightsMissing(f"python -m {module} {' '.join(arguments)} did not end well: the lines above say why")


def embed(build: Build) -> None:
    for part in build.frozen:
        target = _features_of(build, part)
        if not target.exists():
            settings = load_settings(profile=PROFILE)
            name = _backbone(part)
            found = embed_with(
                name,
                build.manifest,
                build.work / "embeddings",
                settings.models,
                settings.decode,
                DELIVERED,
                seed=build.seed,
                ray=build.ray,
                jobs=build.jobs,
            )
            found.save(target)


def heads(build: Build) -> None:
    """Fit each head, keep its out-of-fold probabilities, and install it."""
    weights_dir = load_settings().models.weights_dir
    for part in build.frozen:
        features = _features_of(build, part)
        folder = build.work / f"{_backbone(part)}-{build.head}-{sha256_file(features)[:12]}"
        if not (folder / "scores.npz").exists():
            embedded = Embedded.load(features)
            fitted = fit(embedded, build.head, seed=build.seed)
            write(fitted, embedded.table, folder, f"--head {build.head} --seed {build.seed}")
            scratch = folder / ".scores.npz"
            np.savez(
                scratch,
                filepaths=embedded.filepaths,
                deliveries=embedded.table.deliveries,
                probabilities=fitted.probabilities,
            )
            scratch.replace(folder / "scores.npz")
        install(folder, DETECTORS[part.detector].model, weights_dir)
        (build.work / f"{part.detector}.head").write_text(folder.name, encoding="utf-8")


def features(build: Build) -> None:
    """Measure what is no head on frozen tokens, then fill those in: of rows they learnt from, the held-out score."""
    table = build.table("features")
    measured = build.switches([part.detector for part in build.parts if not part.backbone])
    settings = load_settings(profile=PROFILE, detectors=",".join(measured))
    _, failures = extract(
        build.manifest,
        table,
        settings.models,
        settings.decode,
        deliveries=DELIVERED,
        jobs=build.jobs,
        seed=build.seed,
        keep_others=False,
    )
    for failure in failures[:5]:
        print(f"left out: {failure}", file=sys.stderr)
    weights = Weights.at(load_settings().models.weights_dir)
    filled = build.table("filled")
    write_atomic(filled, table.read_bytes())
    for part in build.frozen:
        (feature,) = DETECTORS[part.detector].features
        version = weights.card(DETECTORS[part.detector].model).version
        fill(filled, {key: {feature: score} for key, score in _scores(build, part).items()}, {}, version)


def fuse(build: Build) -> None:
    table, mark = build.table("filled"), build.work / "fused"
    if mark.is_file() and mark.read_text(encoding="utf-8") == _fused(build, table):
        return
    about = f"Made by scripts.build_profile for {', '.join(part.name for part in build.parts)}."
    options = ["--table", str(table), "--out", str(build.out), "--profile", PROFILE, "--subsets"]
    ended = train_fusion.main([*options, "--about", about, "--seed", str(build.seed)])
    if ended == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if ended:
        raise TableError(f"the fusion could not be trained from {table}: the line above says why")
    write_atomic(mark, _fused(build, table).encode())


def _fused(build: Build, table: Path) -> str:
    """Which artifact lies there, and what it was trained from."""
    model = build.out / "model.json"
    found = sha256_file(model) if model.is_file() else "none"
    return f"{build.out.absolute()} {found} {sha256_file(table)} seed {build.seed}"


def compare(build: Build) -> None:
    """The new artifact against the shipped one, and every subset of what it knows."""
    model, shipped = FusionModel.load(build.out), FusionModel.load(SHIPPED / PROFILES[PROFILE].fusion)
    text = report(model, shipped, build.table("filled"))
    write_atomic(build.work / REPORT, text.encode())
    print(text)


STAGES = (download, embed, heads, features, fuse, compare)


# --- between the stages


def _backbone(part: Part) -> str:
    assert part.backbone
    return part.backbone.name


def _features_of(build: Build, part: Part) -> Path:
    about = made_by(_backbone(part), load_settings().models, build.seed)
    return build.work / f"{_backbone(part)}-{digest([about, sha256_file(build.manifest), DELIVERED])}.npz"


def _scores(build: Build, part: Part) -> Mapping[Key, float]:
    folder = build.work / (build.work / f"{part.detector}.head").read_text(encoding="utf-8")
    with np.load(folder / "scores.npz", allow_pickle=False) as stored:
        columns = (stored[name].tolist() for name in ("filepaths", "deliveries", "probabilities"))
        return {(filepath, delivery): value for filepath, delivery, value in zip(*columns, strict=True)}


# --- what it is worth


def report(model: FusionModel, shipped: FusionModel, table: Path) -> str:
    """On validation sources where both labels have some: both artifacts by delivery, then every subset of parts."""
    known = {each.name: _inputs_of(each, table) for each in (model, shipped)}
    rows = next(iter(known.values()))
    validation = rows.splits == "val"
    if len(np.unique(rows.labels[validation])) < 2:
        return "No validation sources of both labels: nothing to compare on.\n"
    compared = {}
    for each in (model, shipped):
        measured = known[each.name].rows(validation)
        probabilities = each.probabilities(measured.matrix)
        for delivery in np.unique(measured.deliveries):
            chosen = measured.deliveries == delivery
            found = evaluate(
                measured.labels[chosen], probabilities[chosen], measured.sources[chosen], each.thresholds.label
            )
            compared[f"{each.name}, {delivery}, AI from {each.thresholds.label:.3f}"] = plain(found)
    sections = [
        f"# {model.name} against {shipped.name}, validation sources",
        "The new fusion and its heads were not fitted to these sources. What ships may have learnt from some of them: "
        "the cards of its detectors say from which. 95 % bootstrap intervals over sources.",
        markdown_table("artifact, delivery", compared),
        "## What any subset of parts is worth",
        "The same artifact where the other parts are missing, as on a machine that cannot hold them.",
        subsets(model, known[model.name].rows(validation)),
    ]
    return "\n\n".join(sections) + "\n"


def _inputs_of(model: FusionModel, path: Path) -> Table:
    """A table with the model's inputs in its order."""
    table = read_table(path, model.inputs)
    matrix = table.matrix[:, [table.inputs.index(name) for name in model.inputs]]
    return replace(table, inputs=model.inputs, matrix=matrix)


def subsets(model: FusionModel, table: Table) -> str:
    """A line for each subset: AUROC, balanced accuracy at the artifact's threshold, ECE and how it compares."""
    columns = parts(model.inputs)
    names = list(columns)
    weights = resampled_weights(table.labels, table.sources, 0)
    lines = ["| parts | AUROC | balanced accuracy | ECE | above the full set's |", "|---|---|---|---|---|"]
    full = float("nan")
    every = range(len(names), 0, -1)
    for size in every if len(names) <= MOST_PARTS else (len(names), len(names) - 1, 1):
        for kept in itertools.combinations(names, size):
            probabilities = model.probabilities(without(table.matrix, columns, kept))
            found = evaluate(table.labels, probabilities, table.sources, model.thresholds.label)
            ece = float(expected_calibration_error(table.labels, probabilities, weights[:1])[0])
            full = ece if size == len(names) else full
            cells = (found["auroc"], found["balanced_accuracy"], f"{ece:.3f}", f"{ece - full:+.3f}")
            lines.append(f"| {' + '.join(kept)} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
