"""Weights as int8 with scales: what they mean, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.quantised import dequantised, load_quantised
from utils.errors import WeightsCorrupt


def stored() -> dict[str, NDArray[np.generic]]:
    return {
        "a.weight": np.array([[1, -128], [127, 0]], np.int8),
        "a.weight.scale": np.array([0.5, 0.25], np.float32),
        "a.bias": np.array([3.5], np.float32),
    }


def test_an_integer_weight_is_its_product_with_the_scale_of_its_output_channel(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(stored(), path, {"architecture": "x"})
    found, metadata = load_quantised(path)
    assert metadata == {"architecture": "x"}
    assert found.keys() == {"a.weight", "a.bias"}
    assert all(value.dtype == np.float32 for value in found.values())
    np.testing.assert_array_equal(found["a.weight"], [[0.5, -64], [31.75, 0]])
    np.testing.assert_array_equal(found["a.bias"], [3.5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b.weight", np.ones((2, 2), np.int8)),  # no scales
        ("a.weight.scale", np.ones(3, np.float32)),  # of another number of channels
        ("a.weight.scale", np.ones(2, np.float64)),
        ("b.scale", np.ones(2, np.float32)),  # of nothing
        ("a.bias", np.ones(2, np.float16)),
    ],
)
def test_a_file_of_another_kind_is_refused(name: str, value: NDArray[np.generic], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(stored() | {name: value}, path)
    with pytest.raises(WeightsCorrupt, match=r"neither float32 nor int8 with one float32 scale"):
        load_quantised(path)


def test_an_integer_bias_of_one_axis_is_scaled_value_by_value() -> None:
    found = dequantised({"x": np.array([2, 3], np.int8), "x.scale": np.array([0.5, 2], np.float32)})
    np.testing.assert_array_equal(found["x"], [1, 6])


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsCorrupt, match="not a safetensors file"):
        load_quantised(path)
