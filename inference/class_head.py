"""A linear head that tells several classes apart, on the class tokens of an image tower. Knows no tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inference.graphs import Floats


@dataclass(frozen=True, slots=True, eq=False)
class ClassHead:
    """Probabilities = softmax(sum(weight * tokens) + bias).

    Args:
        names: of the classes.
        weight: (classes, blocks, width). Standardisation and calibration are in it.
        bias: classes.
    """

    names: tuple[str, ...]
    weight: Floats
    bias: Floats

    def probabilities(self, tokens: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., blocks, width) -> (..., classes)."""
        logits = np.tensordot(tokens.astype(np.float32), self.weight, axes=([-2, -1], [1, 2])).astype(float) + self.bias
        logits -= logits.max(axis=-1, keepdims=True)
        odds = np.exp(logits)
        return np.asarray(odds / odds.sum(axis=-1, keepdims=True))

    def arrays(self, prefix: str) -> dict[str, Floats]:
        """As they are stored; the names stand in the file's metadata."""
        return {f"{prefix}_weight": self.weight, f"{prefix}_bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], prefix: str, names: str) -> Self:
        """What ``arrays`` gave, with the names separated by spaces."""
        return cls(tuple(names.split()), arrays[f"{prefix}_weight"], arrays[f"{prefix}_bias"])
