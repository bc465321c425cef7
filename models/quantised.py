"""Weights stored as int8, one scale per output channel: a quarter of float32's bytes. NumPy only.

In a file, a tensor ``name`` of this kind is the int8 array ``name`` (out, ...) beside the float32 array
``name + SCALE`` (out,); its value is their product. Everything else in the file is float32 and means itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import WeightsCorrupt
from utils.persistence import read_arrays

SCALE = ".scale"
STEPS = 127  # of int8, to either side of 0


def quantised(name: str, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """A tensor (out, ...) as a file keeps it: int8 and its scales."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1, initial=1e-6)
    scale = (largest / STEPS).astype(np.float32)
    whole = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1)))
    return {name: whole.astype(np.int8), name + SCALE: scale}


def load_quantised(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The tensors of a verified .safetensors file as float32, and the file's metadata.

    Raises:
        WeightsCorrupt: not a safetensors file, or not of this kind.
    """
    stored, metadata = read_arrays(path)
    try:
        return dequantised(stored), metadata
    except ValueError as error:
        raise WeightsCorrupt(f"{path}: {error}") from error


def load_integers(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a verified .safetensors file as a graph of whole numbers takes them (training/export.py).

    A layer's int8 become (in, out) from (out, in); its scales and all float32 tensors are as they are stored.

    Raises:
        WeightsCorrupt: as of ``load_quantised``.
    """
    stored, _ = read_arrays(path)
    try:
        _check(stored)
    except ValueError as error:
        raise WeightsCorrupt(f"{path}: {error}") from error
    return {name: value.T if value.dtype == np.int8 else value for name, value in stored.items()}


def dequantised(stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """What the tensors of a file mean.

    Raises:
        ValueError: an int8 tensor without its scales, scales without their tensor, or another type.
    """
    _check(stored)
    found: dict[str, NDArray[np.float32]] = {}
    for name, value in stored.items():
        if value.dtype == np.int8:
            found[name] = value * stored[name + SCALE].reshape(-1, *[1] * (value.ndim - 1))
        elif not name.endswith(SCALE):
            found[name] = value
    return found


def _check(stored: Mapping[str, NDArray[Any]]) -> None:
    for name, value in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        if value.dtype == np.float32 and not name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        if value.dtype != np.int8 or scale is None or scale.dtype != np.float32 or scale.shape != value.shape[:1]:
            raise ValueError(f"{name} is neither float32 nor int8 with one float32 scale per output channel")
