"""ManTraNet against slow, literal implementations of its equations in float64, and in tiles against itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.loaders import load_into
from models.mantranet_net import (
    COMPACT,
    AnomalyDetector,
    Config,
    ConvLSTM,
    ManTraNet,
    TraceExtractor,
    bayar_constrained,
    from_keras_h5,
    hard_sigmoid,
    srm_kernels,
    symmetric_pad,
    window_mean,
)
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing

Array = NDArray[np.float64]
TINY = Config(width=1 / 32)

# Written down from the published checkpoint, not from our network.
OFFICIAL_LAYOUT: dict[str, tuple[int, ...]] = {
    "IMTFE.init_conv.weight": (4, 3, 5, 5),
    "IMTFE.BayarConv2D.weight": (3, 3, 5, 5),
    "IMTFE.SRMConv2D.weight": (9, 3, 5, 5),
    "AnomalyDetector.sigma_F": (1, 64, 1, 1),
    "AnomalyDetector.adaptation.weight": (64, 256, 1, 1),
    "AnomalyDetector.conv_lstm.cell_list.0.conv.weight": (32, 72, 7, 7),
    "AnomalyDetector.conv_lstm.cell_list.0.conv.bias": (32,),
    "AnomalyDetector.end.0.weight": (1, 8, 7, 7),
    "AnomalyDetector.end.0.bias": (1,),
}
for _index, (_in, _out) in enumerate(
    [(16, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 256), *[(256, 256)] * 5]
):
    OFFICIAL_LAYOUT[f"IMTFE.middle_and_last_block.{2 * _index}.weight"] = (_out, _in, 3, 3)
    OFFICIAL_LAYOUT[f"IMTFE.middle_and_last_block.{2 * _index}.bias"] = (_out,)


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """A random checkpoint in the published layout; gains keep the signal alive through twelve layers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in OFFICIAL_LAYOUT.items():
        fan_in = int(np.prod(shape[1:])) or 1
        state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5 * (0.1 if len(shape) == 1 else 1)
    state["IMTFE.BayarConv2D.weight"] = state["IMTFE.BayarConv2D.weight"].abs()
    state["IMTFE.SRMConv2D.weight"] = srm_kernels()
    state["AnomalyDetector.sigma_F"].fill_(1e-5)
    return state


def scrambled(module: nn.Module) -> nn.Module:
    """In float64, with every bias away from zero, so that a forgotten one shows."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.1)
    return module.double().eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


# --- literal equations


def mirrored(x: Array, border: int) -> Array:
    return np.pad(x, ((0, 0), (border, border), (border, border)), mode="symmetric")


def literal_conv(x: Array, weight: Array, bias: Array | None = None, stride: int = 1) -> Array:
    """x is padded already; every output is one sum."""
    side = weight.shape[-1]
    height, width = ((size - side) // stride + 1 for size in x.shape[1:])
    out = np.zeros((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            for o in range(len(weight)):
                out[o, i, j] = (window * weight[o]).sum() + (0.0 if bias is None else bias[o])
    return out


def literal_bayar(weight: Array) -> Array:
    out = weight.copy()
    for o in range(weight.shape[0]):
        for c in range(weight.shape[1]):
            out[o, c, 2, 2] = 0
            out[o, c] /= out[o, c].sum() + 1e-7
            out[o, c, 2, 2] = -1
    return out


def literal_traces(state: Mapping[str, Array], image: Array, strides: tuple[int, ...]) -> Array:
    x = mirrored(image / 255 * 2 - 1, 2)
    filters = [state["init_conv.weight"], state["SRMConv2D.weight"], literal_bayar(state["BayarConv2D.weight"])]
    x = np.maximum(literal_conv(x, np.concatenate(filters)), 0)
    for layer, stride in enumerate(strides):
        name = f"middle_and_last_block.{2 * layer}"
        x = literal_conv(mirrored(x, 1), state[f"{name}.weight"], state[f"{name}.bias"], stride)
        if layer < 11:
            x = np.maximum(x, 0)
    return x / np.sqrt((x**2).sum(axis=0))


def literal_window_mean(x: Array, side: int) -> Array:
    out = np.zeros_like(x)
    half = side // 2
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = x[:, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1]
            out[:, i, j] = window.mean(axis=(1, 2))
    return out


def literal_z_scores(adapted: Array, sigma_floor: Array) -> list[Array]:
    """Batch normalisation by the image's own statistics, window means, distance over the clamped deviation."""
    mean, variance = adapted.mean(axis=(1, 2)), adapted.var(axis=(1, 2))
    x = (adapted - mean[:, None, None]) / np.sqrt(variance + 1e-3)[:, None, None]
    sigma = np.maximum(x.std(axis=(1, 2)), sigma_floor + 1e-6)[:, None, None]
    means = [literal_window_mean(x, side) for side in (7, 15, 31)] + [x.mean(axis=(1, 2), keepdims=True)]
    return [np.abs((each - x) / sigma) for each in means]


def literal_lstm(sequence: list[Array], weight: Array, bias: Array) -> Array:
    """Shi et al. 2015 without peepholes, as Keras has it: gates i, f, c, o; recurrent activation hard sigmoid."""
    hidden = len(weight) // 4

    def gate(x: float) -> float:
        return 0.0 if x < -2.5 else 1.0 if x > 2.5 else 0.2 * x + 0.5

    output = np.zeros((hidden, *sequence[0].shape[1:]))
    memory = np.zeros_like(output)
    for x in sequence:
        both = np.pad(np.concatenate([x, output]), ((0, 0), (3, 3), (3, 3)))
        sums = literal_conv(both, weight, bias)
        for k, i, j in np.ndindex(output.shape):
            into, keep, new, out = (sums[gate_index * hidden + k, i, j] for gate_index in range(4))
            memory[k, i, j] = gate(keep) * memory[k, i, j] + gate(into) * np.tanh(new)
            output[k, i, j] = gate(out) * np.tanh(memory[k, i, j])
    return output


def arrays(module: nn.Module) -> dict[str, Array]:
    return {key: value.double().numpy() for key, value in module.state_dict().items()}


def test_symmetric_padding_is_numpys_at_any_size() -> None:
    for shape in ((5, 7), (1, 1), (1, 4), (2, 1)):
        x = torch.randn(2, 3, *shape)
        for border in (1, 2, 5):
            expected = np.pad(x.numpy(), ((0, 0), (0, 0), (border, border), (border, border)), mode="symmetric")
            np.testing.assert_array_equal(symmetric_pad(x, border).numpy(), expected)


def test_srm_filters_are_the_three_kernels_on_one_colour_each() -> None:
    kv = np.array([[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]])
    square, line = np.zeros((5, 5)), np.zeros((5, 5))
    square[1:4, 1:4] = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]])
    line[2, 1:4] = [1, -2, 1]
    found = srm_kernels().numpy()
    assert found.shape == (9, 3, 5, 5)
    for index, kernel in enumerate((square / 4, kv / 12, line / 2)):
        for colour in range(3):
            expected = np.zeros((3, 5, 5))
            expected[colour] = kernel
            np.testing.assert_allclose(found[3 * index + colour], expected, atol=1e-7)


def test_the_bayar_constraint_is_the_literal_one_and_holds_for_constrained_weights() -> None:
    weight = torch.rand(3, 3, 5, 5, dtype=torch.float64)
    constrained = bayar_constrained(weight)
    np.testing.assert_allclose(constrained.numpy(), literal_bayar(weight.numpy()), rtol=1e-12)
    torch.testing.assert_close(bayar_constrained(constrained), constrained, rtol=1e-5, atol=1e-6)
    assert weight[0, 0, 2, 2] != -1, "the trained weight itself is left alone"


def test_keras_hard_sigmoid_is_not_torchs() -> None:
    found = hard_sigmoid(torch.tensor([-9.0, -2.5, 0.0, 1.0, 2.5, 9.0]))
    torch.testing.assert_close(found, torch.tensor([0, 0, 0.5, 0.7, 1, 1]))


@pytest.mark.parametrize("side", [7, 15, 31])
@pytest.mark.parametrize("shape", [(1, 1), (9, 20), (40, 3)])
def test_window_means_count_only_pixels_of_the_image(side: int, shape: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *shape, dtype=torch.float64)
    np.testing.assert_allclose(window_mean(x, side)[0].numpy(), literal_window_mean(x[0].numpy(), side), atol=1e-12)


def test_z_scores_are_the_literal_ones_also_of_flat_channels() -> None:
    detector = AnomalyDetector(TINY).double()
    detector.sigma_F.data.fill_(0.02)
    adapted = torch.randn(1, 2, 12, 9, dtype=torch.float64) * torch.tensor([1.0, 1e-4]).view(1, 2, 1, 1) + 3
    found = list(detector.z_scores(detector.standardise(adapted)))
    expected = literal_z_scores(adapted[0].numpy(), np.full(2, 0.02))
    assert len(found) == len(expected) == 4
    for ours, literal in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0].detach().numpy(), literal, rtol=1e-6, atol=1e-9)
    assert found[3][0, 1].max() < 1, "a channel below the floor is not blown up to full contrast"


def test_the_convlstm_is_the_literal_one() -> None:
    lstm = ConvLSTM(3, 2).double().requires_grad_(False)
    lstm.cell_list[0].conv.weight.mul_(6)  # into the flat parts of the gates
    sequence = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    found = lstm(step[None] for step in sequence)[0].numpy()
    conv = arrays(lstm.cell_list[0].conv)
    np.testing.assert_allclose(found, literal_lstm(list(sequence.numpy()), conv["weight"], conv["bias"]), atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("shape", [(9, 6), (1, 1), (1, 7)])
def test_traces_are_the_literal_ones(stride: int, shape: tuple[int, int]) -> None:
    config = Config(TINY.width, stride)
    extractor = scrambled(TraceExtractor(config))
    image = torch.rand(3, *shape, dtype=torch.float64) * 255
    expected = literal_traces(arrays(extractor), image.numpy(), config.strides)
    np.testing.assert_allclose(extractor(image[None])[0].numpy(), expected, atol=1e-6)  # Bayar's epsilon in float32


def test_the_whole_network_is_the_literal_one() -> None:
    network = scrambled(ManTraNet(TINY))
    image = torch.rand(1, 3, 11, 8, dtype=torch.float64) * 255
    anomaly = arrays(network.AnomalyDetector)
    traces = literal_traces(arrays(network.IMTFE), image[0].numpy(), TINY.strides)
    adapted = literal_conv(traces, anomaly["adaptation.weight"])
    z = literal_z_scores(adapted, anomaly["sigma_F"][0, :, 0, 0])
    lstm = "conv_lstm.cell_list.0.conv"
    hidden = np.pad(literal_lstm(z, anomaly[f"{lstm}.weight"], anomaly[f"{lstm}.bias"]), ((0, 0), (3, 3), (3, 3)))
    expected = literal_conv(hidden, anomaly["end.0.weight"], anomaly["end.0.bias"])
    assert expected.std() > 1e-3, "a flat map would agree with anything"
    np.testing.assert_allclose(network(image)[0].numpy(), expected, atol=1e-6)


# --- tiles, batches, sizes


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("height", "width", "tile"), [(70, 101, 32), (65, 64, 64), (3, 150, 17), (30, 30, 999)])
def test_tiles_give_the_whole_images_map_without_seams(stride: int, height: int, width: int, tile: int) -> None:
    network = scrambled(ManTraNet(Config(TINY.width, stride)))
    image = torch.rand(1, 3, height, width, dtype=torch.float64) * 255
    image[:, :, : height // 2] *= 0.4
    whole = network(image)
    assert whole.std() > 1e-4
    torch.testing.assert_close(network.tiled(image, tile), whole, rtol=0, atol=1e-9)


def test_each_image_of_a_batch_has_its_own_statistics() -> None:
    network = scrambled(ManTraNet(TINY))
    images = torch.rand(2, 3, 20, 24, dtype=torch.float64) * torch.tensor([255.0, 30.0]).view(2, 1, 1, 1)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=0, atol=1e-9)


def test_a_stride_gives_a_smaller_map_of_the_same_design() -> None:
    network = ManTraNet(COMPACT).eval()
    assert network(torch.zeros(1, 3, 33, 64)).shape == (1, 1, 9, 16)
    assert set(network.state_dict()) == set(OFFICIAL_LAYOUT)
    with pytest.raises(ValueError, match="stride must be"):
        Config(stride=3)


def test_every_weight_but_the_fixed_filters_learns_and_flat_images_give_no_nan() -> None:
    network = ManTraNet(Config(1 / 16, 4))
    images = torch.rand(2, 3, 32, 40) * 255
    images[1] = 128
    network(images).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert "IMTFE.SRMConv2D.weight" not in gradients
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    assert gradients["IMTFE.BayarConv2D.weight"].abs().sum() > 0


# --- checkpoints


def test_keys_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = ManTraNet().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == OFFICIAL_LAYOUT
    assert sum(value.numel() for value in state.values()) == 3_805_625


KERAS_LAYERS = ("b1c2", "b2c1", "b2c2", "b3c1", "b3c2", "b3c3", "b4c1", "b4c2", "b4c3", "b5c1", "b5c2", "transform")


def write_keras(path: Path, state: Mapping[str, Tensor], without: str = "") -> None:
    """A state dict as Keras 2 saves this model: the extractor nested, kernels as height, width, in, out."""
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    numpy = {key: value.numpy() for key, value in state.items()}

    def kernel(key: str) -> Array:
        return numpy[key].transpose(2, 3, 1, 0)

    trace, anomaly = "IMTFE.middle_and_last_block", "AnomalyDetector"
    lstm = kernel(f"{anomaly}.conv_lstm.cell_list.0.conv.weight")
    inside = lstm.shape[2] - lstm.shape[3] // 4
    stored = {
        "Featex/b1c1/regular_kernel:0": kernel("IMTFE.init_conv.weight"),
        "Featex/b1c1/bayar_kernel:0": kernel("IMTFE.BayarConv2D.weight"),
        "outlierTrans/outlierTrans/kernel:0": kernel(f"{anomaly}.adaptation.weight"),
        "bnorm/bnorm/moving_mean:0": np.zeros(64),
        "bnorm/bnorm/moving_variance:0": np.ones(64),
        "glbStd/glbStd/min_std:0": numpy[f"{anomaly}.sigma_F"].transpose(0, 2, 3, 1),
        "cLSTM/cLSTM/kernel:0": lstm[:, :, :inside],
        "cLSTM/cLSTM/recurrent_kernel:0": lstm[:, :, inside:],
        "cLSTM/cLSTM/bias:0": numpy[f"{anomaly}.conv_lstm.cell_list.0.conv.bias"],
        "pred/pred/kernel:0": kernel(f"{anomaly}.end.0.weight"),
        "pred/pred/bias:0": numpy[f"{anomaly}.end.0.bias"],
    }
    for index, layer in enumerate(KERAS_LAYERS):
        stored[f"Featex/{layer}/kernel:0"] = kernel(f"{trace}.{2 * index}.weight")
        stored[f"Featex/{layer}/bias:0"] = numpy[f"{trace}.{2 * index}.bias"]
    with h5py.File(path, "w") as file:
        for name, value in stored.items():
            if not without or without not in name:
                file[name] = value


def test_a_keras_file_becomes_the_same_state(tmp_path: Path) -> None:
    state = official_state()
    write_keras(tmp_path / "a.h5", state)
    found = from_keras_h5(tmp_path / "a.h5")
    assert found.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(found[key], value, msg=key)
    with torch.device("meta"):
        network = ManTraNet()
    load_into(network, found)


def test_what_is_wrong_with_a_keras_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    write_keras(path, official_state(), without="recurrent")
    with pytest.raises(WeightsMismatch, match="no Keras weight cLSTM/recurrent_kernel"):
        from_keras_h5(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsCorrupt, match="not an HDF5 file"):
        from_keras_h5(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsMissing, match="pip install h5py"):
        from_keras_h5(path)
