"""Exported graphs: the same bytes twice, nothing of this machine, no weights; what they compute: test_graphs.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import timm
import torch

from scripts.export_graphs import EffNetOnPixels, export, graph_card


def small(seed: int) -> EffNetOnPixels:
    torch.manual_seed(seed)
    return EffNetOnPixels(timm.create_model("test_efficientnet", pretrained=False, num_classes=1))


def test_the_same_architecture_gives_the_same_bytes_whatever_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    export(small(0), "test_efficientnet", path)
    first = path.read_bytes()
    export(small(1), "test_efficientnet", path)
    assert path.read_bytes() == first
    for trace in (b"site-packages", b".py", b"torch"):
        assert trace not in first
    model = onnx.load(path, load_external_data=False)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"architecture": "test_efficientnet"}
    assert [each.name for each in model.graph.input] == ["pixels"]
    assert graph_card("small", path).startswith(f'[small_graph]\nfile = "small.onnx"\nsize = {len(first)}\n')
