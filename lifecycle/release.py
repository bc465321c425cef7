"""Puts a release together: the fusion artifact, and the networks and heads that measured what it learnt from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from fusion.meta_model import FusionModel
from inference.registry import DETECTORS, select_detectors
from lifecycle.reference import Reference
from models.loaders import Weights, find
from utils.contracts import Json
from utils.errors import WeightsMissing
from utils.persistence import CARD, Card, record
from utils.releases import FUSION, MODELS, REFERENCE, Release, files_of, seal
from utils.settings import ModelSettings

_ROOT = Path(__file__).parents[1]


def make_release(
    folder: Path,
    day: str,
    artifact: Path,
    settings: ModelSettings,
    *,
    heads: Path | None = None,
    reference: Reference | None = None,
) -> Release:
    """Write and seal a release in an empty folder; its name is the day and a hash of every file in it.

    Args:
        day: ISO date.
        artifact: fusion artifact.
        settings: profile, further detectors and weights folder that the artifact's table was measured with.
        heads: models that were trained with it, which come before the installed ones.
        reference: what drift is measured against.

    Raises:
        SetupError: the artifact or a weight file is damaged.
    """
    model = FusionModel.load(artifact)
    shutil.copytree(artifact, folder / FUSION)
    weights = copy_models(folder / MODELS, Weights.at(settings.weights_dir, heads), settings)
    if reference is not None:
        reference.save(folder / REFERENCE)
    data: Json = model.metrics.get("data", {})
    content = json.dumps(files_of(folder), sort_keys=True)
    name = f"{day}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    table = str(data.get("table_sha256", ""))
    return seal(folder, name, profile=settings.profile, code=commit(), data=table, weights=weights)


def copy_models(folder: Path, weights: Weights, settings: ModelSettings) -> Mapping[str, str]:
    """Copy every installed file of the profile's detectors, each with its card. Card -> sha256.

    Raises:
        WeightsCorrupt: a file is not its card's.
    """
    hashes: dict[str, str] = {}
    for name in select_detectors(settings.profile, settings.detectors):
        cards = weights.of(DETECTORS[name].model)
        cards += [weights.card(card.backbone) for card in cards if card.backbone]
        try:
            for card in cards:
                find(card, weights.folders)
        except WeightsMissing:  # the detector did not measure either
            continue
        for card in cards:
            path = folder / card.model / Path(card.file).name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(weights.path(card.name), path)
            table = "weights" if card.name == card.model else card.name.removeprefix(f"{card.model}_")
            known = {each.name: getattr(card, each.name) for each in fields(Card)}
            unset = ("name", "model", "file", "url", "page")  # a file without an address lies beside its card
            values = {key: value for key, value in known.items() if value and key not in unset}
            record(folder / card.model / CARD, table, {"file": path.name, **values})
            hashes[card.name] = card.sha256
    return hashes


def commit() -> str:
    """Of the checkout that runs; empty where it is none."""
    try:
        command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
