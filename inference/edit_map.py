"""The map of edits: where an image was changed, or holds one of its places twice. Drawn where a report is asked for.

Sources:    ManTraNet's traces (inference/mantranet_compact.py), repeats (inference/repeats.py) and a decoder of ours
Limits:     a copy and its original are both marked. An image above MAX_PIXELS is reduced to it first, which blurs the
            traces; one below SMALLEST on a side has no map. It says where to look, not that something is there: the
            fusion does not read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import ClassVar

import numpy as np

from inference.graphs import Floats, Graph
from inference.mantranet_compact import BORDER, within_budget
from inference.repeats import repeats
from models.loaders import Weights
from utils.contracts import Heatmap, RgbArray, Sample
from utils.errors import ScoreNotFinite, WeightsMismatch

CUT = 0.5  # from where a place counts as edited
MAX_PIXELS = 2**19  # finer traces than ManTraNet's own map gets: reports may take their time
SMALLEST = 64  # px of a side
STRIDE = 8  # px of the image per place of the map


class EditMap:
    """Draws the map; its network is built when the first one is asked for, and by one thread.

    Args:
        weights: the decoder's and ManTraNet's are read from them.
        device: as in ``Graph``.
    """

    name: ClassVar[str] = "edit_map"

    def __init__(self, weights: Weights, device: str = "cpu") -> None:
        self._weights = weights
        self._device = device
        self._lock = Lock()

    @cached_property
    def _graph(self) -> Graph:
        own, metadata = self._weights.arrays(self.name)
        traces, _ = self._weights.arrays("mantranet_compact")
        taught, installed = metadata.get("mantranet"), self._weights.card("mantranet_compact").sha256
        if taught != installed:
            raise WeightsMismatch(f"{self.name} was trained on mantranet_compact {taught}, not {installed}")
        arrays = {f"decoder.{key}": each for key, each in own.items()}
        arrays |= {f"mantranet.{key}": each for key, each in traces.items()}
        return Graph(self._weights.path(f"{self.name}_graph"), arrays, self._device, keeps_memory=False)

    def draw(self, sample: Sample) -> dict[str, Heatmap]:
        """The map on the stored pixels, by its name; none of an image that is too small.

        Raises:
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders.
            ScoreNotFinite, DeviceBusy: as a detector's.
        """
        if min(sample.rgb.shape[:2]) < SMALLEST:
            return {}
        with self._lock:
            graph = self._graph
        return {self.name: heatmap(graph, sample.rgb)}


def heatmap(network: Callable[..., Floats], rgb: RgbArray) -> Heatmap:
    """Probability of an edit, one place per STRIDE px, the last ones half outside."""
    pixels = within_budget(rgb, MAX_PIXELS)
    more = [-side % STRIDE for side in pixels.shape[:2]]
    found = np.pad(repeats(pixels), ((0, 0), *((0, each) for each in more)))
    padded = np.pad(pixels, (*((BORDER, BORDER + each) for each in more), (0, 0)), mode="symmetric")
    drawn = network(padded[np.newaxis], repeats=found[np.newaxis])[0, 0]
    if not np.isfinite(drawn).all():
        raise ScoreNotFinite("the map of edits has NaN or infinity")
    return drawn
