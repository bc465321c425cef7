"""Two answers on the tokens of an image in one: a weighted sum of them, and what known images say that lie near.

Paper:    kernel ridge regression (Saunders, Gammerman and Vovk, ICML 1998) with the kernel
          c <a, b> / spread + exp(-|a - b|^2 / spread)
Differs:  the linear part is kept as one weight a token, the known images as points on principal axes, in int8
Limits:   an image far from every known one is judged by the weighted sum alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from inference.graphs import Floats
from models.quantised import quantised


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """Tokens as points: (n, blocks, width) -> (n, k).

    Args:
        blocks: that are looked at, counted from 0.
        directions: (k, len(blocks), width); standardisation is in them.
        origin: k.
    """

    blocks: NDArray[np.int64]
    directions: Floats
    origin: Floats

    def points(self, tokens: NDArray[np.floating]) -> Floats:
        seen = tokens[:, self.blocks].astype(np.float32).reshape(len(tokens), -1)
        return np.asarray(seen @ self.directions.reshape(len(self.directions), -1).T - self.origin, np.float32)


def squares(points: Floats) -> Floats:
    """(n, k) -> n squared lengths."""
    return np.asarray((points**2).sum(axis=1))


def nearness(one: Floats, other: Floats, squares_of_other: Floats, spread: float) -> Floats:
    """(n, k), (m, k) and m -> (n, m): 1 for the same point, towards 0 for distant ones."""
    apart = squares(one)[:, np.newaxis] + squares_of_other - 2 * one @ other.T
    return np.asarray(np.exp(apart.clip(0) / np.float32(-spread)), np.float32)


@dataclass(frozen=True, eq=False)
class Known:
    """Images of known origin, and what they say of those that lie near.

    Args:
        axes: k; on which they are points.
        points: (n, k).
        pull: n; towards AI above 0.
        spread: squared distance at which nearness is 1/e.
    """

    axes: Axes
    points: Floats
    pull: Floats
    spread: float

    def __call__(self, tokens: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, blocks, width) -> n log-odds."""
        near = nearness(self.axes.points(tokens), self.points, self._squares, self.spread)
        return np.asarray(near.astype(float) @ self.pull.astype(float))  # many large terms of either sign

    @cached_property
    def _squares(self) -> Floats:
        return squares(self.points)


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityHead:
    """Log-odds of AI = sum(weight * tokens) + bias + what known images say.

    Args:
        weight: (blocks, width); 0 where the head does not look.
        known: None: the weighted sum alone.
    """

    weight: Floats
    bias: float
    known: Known | None = None

    def log_odds(self, tokens: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, blocks, width) -> n."""
        found = np.tensordot(tokens.astype(np.float32), self.weight, axes=2).astype(float) + self.bias
        return found + self.known(tokens) if self.known else found

    def divided(self, temperature: float) -> Self:
        """With the log-odds divided by ``temperature``."""
        by = np.float32(temperature)
        known = self.known and replace(self.known, pull=self.known.pull / by)
        return replace(self, weight=self.weight / by, bias=self.bias / temperature, known=known)

    # --- in a file

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As they are stored: what is large, rounded to int8."""
        arrays: dict[str, NDArray[Any]] = {"weight": self.weight, "bias": np.array([self.bias], np.float32)}
        if at := self.known:
            arrays |= quantised("axes", at.axes.directions) | quantised("known", np.ascontiguousarray(at.points.T))
            arrays |= {"origin": at.axes.origin, "pull": at.pull, "spread": np.array([at.spread], np.float32)}
            arrays["blocks"] = at.axes.blocks.astype(np.float32)
        return arrays

    @property
    def size(self) -> str:
        """Known images, axes and blocks, for ``shapes``; empty without them."""
        return " ".join(map(str, (*self.known.points.shape, len(self.known.axes.blocks)))) if self.known else ""

    @staticmethod
    def shapes(size: str, width: int) -> dict[str, tuple[int, ...]]:
        """Of what ``arrays`` adds where there are known images."""
        if not size:
            return {}
        images, axes, blocks = map(int, size.split())
        known = {"known": (axes, images), "pull": (images,), "spread": (1,)}
        return {"axes": (axes, blocks, width), "origin": (axes,), "blocks": (blocks,), **known}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> Self:
        """What ``arrays`` gave, int8 and its scales multiplied."""
        known = None
        if "known" in arrays:
            axes = Axes(arrays["blocks"].astype(np.int64), arrays["axes"], arrays["origin"])
            known = Known(axes, arrays["known"].T, arrays["pull"], float(arrays["spread"][0]))
        return cls(arrays["weight"], float(arrays["bias"][0]), known)
