"""Graphs: what torch computes, from the weights that torch wrote; every wrong file named; threads and memory."""

from __future__ import annotations

import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch import nn

from inference import graphs
from inference.effnet import EffNetDetector
from inference.graphs import Graph, graph_weights, prefers_integers, sigmoid
from models.loaders import Weights, load_into, load_state, shipped
from models.quantised import SCALE
from training.detectors import as_graph
from training.export import EXPORTED, OnPixels
from utils.contracts import Sample
from utils.errors import BadSettings, DeviceBusy, ScoreNotFinite, WeightsCorrupt, WeightsMismatch
from utils.persistence import load_arrays

SIZES = {  # as the detectors ask for them
    "effnet": [(1, 64, 64, 3), (1, 267, 401, 3), (1, 512, 768, 3)],
    "ghostnet": [(1, 256, 256, 3), (3, 256, 256, 3)],
    "mantranet_compact": [(1, 5, 5, 3), (1, 67, 69, 3), (1, 431, 644, 3)],
}


def pixels_of(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    photograph = load_sample_image("china.jpg")
    return np.stack([np.resize(photograph[top:], shape[1:]) for top in range(shape[0])])


def drawn(network: nn.Module) -> nn.Module:
    """Random weights as training leaves them: statistics of batch normalisation that are not 0 and 1."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def arrays_of(network: OnPixels) -> dict[str, NDArray[np.float32]]:
    state = network.network.state_dict()
    return {key: value.numpy() for key, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("name", SIZES)
def test_a_graph_computes_what_its_network_computes(name: str) -> None:
    network = EXPORTED[name][1]()
    drawn(network)
    graph, reference = Graph(shipped(f"{name}_graph"), arrays_of(network)), as_graph(network, "cpu")
    for shape in SIZES[name]:
        expected = reference(pixels_of(shape))
        assert expected.std() > 1e-4 or expected.size == 1
        np.testing.assert_allclose(graph(pixels_of(shape)), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", SIZES)
def test_shipped_weights_score_as_torch_scores_them(name: str) -> None:
    path = shipped(name)
    network = EXPORTED[name][1]()
    load_into(network.network, load_state(path))
    weights, metadata = load_arrays(path)
    graph, reference = Graph(shipped(f"{name}_graph"), weights), as_graph(network, "cpu")
    assert metadata["architecture"] == graph.architecture
    for shape in SIZES[name]:
        np.testing.assert_allclose(graph(pixels_of(shape)), reference(pixels_of(shape)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_shipped_graph_holds_no_weights_and_is_the_cards(name: str) -> None:
    path = Weights.at(Path("nowhere")).path(f"{name}_graph")
    assert path == shipped(f"{name}_graph")
    assert path.stat().st_size < 100_000
    state = EXPORTED[name][1]().network.state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items() if value.is_floating_point()}
    assert graph_weights(path) == wanted
    stored = onnx.load(path, load_external_data=False).graph.initializer
    assert {each.name: tuple(each.dims) for each in stored if each.external_data} == wanted


# --- whole numbers


def test_whether_integers_are_exact_is_found_by_multiplying_the_largest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Overflows(onnxruntime.InferenceSession):
        def run(self, names: None, given: dict[str, NDArray[np.generic]]) -> list[NDArray[np.int32]]:
            (product,) = super().run(names, given)
            np.testing.assert_array_equal(product, given["a"].astype(int) @ given["b"].astype(int))
            return [product - 1]

    monkeypatch.setattr(graphs.onnxruntime, "InferenceSession", Overflows)
    graphs._multiplies_exactly.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not prefers_integers("cpu")
    assert "networks run in 32-bit floating point" in caplog.text
    graphs._multiplies_exactly.cache_clear()


def test_every_linear_layer_of_the_tower_is_a_product_of_integers() -> None:
    path = shipped("clip_b16_graph_int8")
    sizes, floats = graph_weights(path), graph_weights(shipped("clip_b16_graph"))
    layers = {name for name, size in floats.items() if len(size) == 2}
    assert {name.removesuffix(SCALE) for name in sizes.keys() - floats.keys()} == layers
    assert all(sizes[name] == floats[name][::-1] and sizes[name + SCALE] == floats[name][:1] for name in layers)
    assert "Gemm" not in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


# --- wrong files


def some() -> tuple[Path, dict[str, NDArray[np.float32]]]:
    path = shipped("mantranet_compact_graph")
    return path, {name: np.ones(shape, np.float32) for name, shape in graph_weights(path).items()}


def test_weights_of_another_network_are_refused() -> None:
    path, weights = some()
    del weights["AnomalyDetector.end.0.bias"]
    with pytest.raises(WeightsMismatch, match=r"mantranet_compact/graph.onnx: 1 missing: .*end\.0\.bias"):
        Graph(path, weights)
    path, weights = some()
    with pytest.raises(WeightsMismatch, match=r"1 unexpected: extra"):
        Graph(path, weights | {"extra": np.ones(1, np.float32)})
    with pytest.raises(WeightsMismatch, match=r"end\.0\.bias \(file \(2,\), network \(1,\)\)"):
        Graph(path, weights | {"AnomalyDetector.end.0.bias": np.ones(2, np.float32)})


@pytest.mark.parametrize("content", [b"", b"\x00", b"no graph at all", b"\x3a\x7f", b"\xff" * 40])
def test_another_file_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"x\.onnx"):
        Graph(tmp_path / "x.onnx", {})


def test_a_graph_with_a_damaged_tail_is_refused(tmp_path: Path) -> None:
    path, weights = some()
    (tmp_path / "x.onnx").write_bytes(path.read_bytes()[:-3000])
    with pytest.raises((WeightsCorrupt, WeightsMismatch)):
        Graph(tmp_path / "x.onnx", weights)


# --- running


def test_the_weights_live_as_long_as_the_graph_and_threads_may_share_it() -> None:
    path, weights = some()
    rng = np.random.default_rng(0)
    graph = Graph(path, {name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in weights.items()})
    images = [pixels_of((1, 40 + index, 50, 3)) for index in range(8)]
    alone = [graph(image) for image in images]
    gc.collect()
    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(alone * 3, pool.map(graph, images * 3), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_network_that_gives_nan_gives_no_number() -> None:
    detector = EffNetDetector(lambda pixels: np.full((1, 1), np.nan, np.float32), "x")
    with pytest.raises(ScoreNotFinite, match=r"effnet \(x\)"):
        detector.measure(Sample("x", b"", np.zeros((70, 70, 3), np.uint8), "PNG"))


def test_a_full_memory_is_a_coded_error_and_another_failure_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(onnxruntime.InferenceSession):
        def run(self, *_: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Conv: std::bad_alloc")

    graph = Graph(*some())
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        graph(np.zeros((1, 8, 8), np.uint8))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Full)
    graph = Graph(*some())
    with pytest.raises(DeviceBusy, match="mantranet_compact: not enough memory for 8 x 8 pixels"):
        graph(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_gpu_that_onnx_runtime_cannot_use_is_said_and_the_cpu_serves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        graph = Graph(*some(), device="cuda:0")
    assert "stay on the CPU" in caplog.text
    assert graph(np.zeros((1, 12, 12, 3), np.uint8)).shape == (1, 1, 2, 2)


def test_a_device_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadSettings, match="IMGV_DEVICE: 'gpu' is not one of"):
        Graph(*some(), device="gpu")


def test_the_sigmoid_holds_at_both_ends() -> None:
    logits = np.array([-1e9, -3.0, 0.0, 3.0, 1e9])
    np.testing.assert_allclose(sigmoid(logits), [0, 1 / (1 + np.e**3), 0.5, 1 / (1 + np.e**-3), 1], atol=1e-15)
