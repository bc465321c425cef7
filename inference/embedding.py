"""Images as the embeddings of a frozen backbone: views as its upstream prepares them, mean over views.

Knows no head. Every backbone of models/backbones.toml comes out as one kind of torch module, also the tower that ships
as a graph for ONNX Runtime, so that batching, devices and precision are inference/base.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from inference.base import Batched
from inference.clip_b16 import load_float_tower, view
from inference.graphs import Network
from inference.views import HALF, IMAGENET, OPENAI_CLIP, centre_square, normalised
from models.backbones import Backbone, backbone
from models.loaders import Weights
from utils.contracts import RgbArray, Sample
from utils.errors import ScoreNotFinite

STATISTICS = {"imagenet": IMAGENET, "clip": OPENAI_CLIP, "half": HALF}
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
LARGE = 2  # times the side: from this shorter side on, the scaled view loses half of the detail
# Centre, and half way from it to each corner; corners themselves hold frames and watermarks.
NATIVE_CROPS = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
GPU_BATCH, CPU_BATCH = 64, 8  # views; halved until they fit
FIRST_BLOCK = 6  # of the tower that ships, counted from 0: earlier ones tell a picture from its JPEG copy


@dataclass(frozen=True, slots=True)
class Embedder:
    """A backbone, ready to run, and which file it is."""

    record: Backbone
    sha256: str  # of the weights
    network: nn.Module

    @classmethod
    def load(cls, weights: Weights, name: str, dtype: torch.dtype = torch.float32) -> Embedder:
        """Build a backbone on the CPU.

        Raises:
            BadSettings: no such backbone.
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders.
        """
        record = backbone(name)
        if record.library == "graph":
            network: nn.Module = OnGraph(load_float_tower(weights))
        else:
            from models.backbone_nets import build  # three libraries, which the tower that ships does not need

            network = build(record, weights.state(name), dtype)
        return cls(record, weights.card(name).sha256, network)


class OnGraph(nn.Module):
    """The tower that ships: its own normalisation is in the graph, and ONNX Runtime places it."""

    def __init__(self, tower: Network) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, 224, 224) in 0..255 -> (b, d): class tokens of the later blocks, one after another."""
        whole = pixels.permute(0, 2, 3, 1).cpu().to(torch.uint8).contiguous().numpy()
        tokens = np.concatenate([self.tower(each[np.newaxis]) for each in whole])
        return torch.from_numpy(tokens[:, FIRST_BLOCK:]).flatten(1)


def views(sample: Sample, record: Backbone) -> Tensor:
    """(k, 3, side, side): the whole image as upstream prepares it, and native crops of a large one where it wants them.

    In native pixels the traces of a generator's decoder survive, which a scaled view loses.
    """
    rgb = sample.upright
    height, width = rgb.shape[:2]
    found = [_whole(rgb, record)]
    if record.native and min(height, width) >= LARGE * record.side:
        for row, column in NATIVE_CROPS:
            top, left = round((height - record.side) * row), round((width - record.side) * column)
            found.append(rgb[top : top + record.side, left : left + record.side])
    if record.statistics == "none":
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).astype(np.float32))
    statistics = STATISTICS[record.statistics]
    return torch.stack([torch.from_numpy(normalised(pixels, statistics)) for pixels in found])


def _whole(rgb: RgbArray, record: Backbone) -> RgbArray:
    if record.library == "graph":
        return view(rgb)
    if record.fit == "squash":
        size = (record.side, record.side)
        return np.asarray(Image.fromarray(rgb).resize(size, RESAMPLING[record.interpolation]))
    return centre_square(rgb, record.resize or record.side, record.side)


class ImageEmbedder(Batched):
    """Images to mean embeddings of their views, many at a time: what heads are trained on.

    Args:
        embedder: on the CPU.
    """

    def __init__(self, embedder: Embedder, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        batch = GPU_BATCH if device.startswith("cuda") else CPU_BATCH
        super().__init__(embedder.network, embedder.record.name, batch, device, dtype)
        self.record = embedder.record

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (self.network(views),)

    def __call__(self, samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
        """Each image's embedding, (d,).

        Raises:
            ScoreNotFinite: the network gave NaN or infinity.
            DeviceBusy: out of memory even for one view on the CPU.
        """
        seen = [views(sample, self.record) for sample in samples]
        (found,) = self._run(torch.cat(seen))
        if not bool(torch.isfinite(found).all()):
            raise ScoreNotFinite(f"{self.record.name} ({self.dtype}) gave NaN or infinity")
        return [each.mean(dim=0).numpy() for each in found.split([len(view) for view in seen])]
