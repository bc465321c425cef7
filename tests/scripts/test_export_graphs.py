"""Exported graphs: the same bytes twice, nothing of this machine, no weights; what they compute: test_graphs.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import timm
import torch

from models.loaders import Weights
from training.export import EffNetOnPixels, export
from utils.persistence import check


def small(seed: int) -> EffNetOnPixels:
    torch.manual_seed(seed)
    return EffNetOnPixels(timm.create_model("test_efficientnet", pretrained=False, num_classes=1))


def test_the_same_architecture_gives_the_same_bytes_whatever_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "small" / "graph.onnx"
    export(small(0), "test_efficientnet", path.parent)
    first = path.read_bytes()
    export(small(1), "test_efficientnet", path.parent)
    assert path.read_bytes() == first
    for trace in (b"site-packages", b".py", b"torch"):
        assert trace not in first
    model = onnx.load(path, load_external_data=False)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"architecture": "test_efficientnet"}
    assert [each.name for each in model.graph.input] == ["pixels"]
    card = Weights.at(tmp_path).card("small_graph")
    assert (card.file, card.size, card.licence) == ("small/graph.onnx", len(first), "MIT")
    check(card, path)
