"""GhostNet on high-pass residuals: does each patch of an image look generated, content aside?

Papers:   Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020 (the backbone, as timm has it);
          Fridrich and Kodovsky, "Rich Models for Steganalysis of Digital Images", IEEE TIFS 2012 (the filters);
          Ye, Ni and Yi, "Deep Learning Hierarchical Representations for Image Steganalysis", IEEE TIFS 2017 (fixed
          residual filters, truncated, in front of a network); Pinheiro and Collobert, CVPR 2015 (the pooling)

Knows nothing of images, files or devices. Shapes in comments: b images, c channels, h x w patches.
"""

from __future__ import annotations

import math

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 32  # pixels a side per patch: the backbone's stride

# Residuals beyond this many grey levels are edges: their sign is kept, their height is content. Measured on 60 real and
# 60 generated images at native size: 81 to 90 % of the luma residuals and 97 % of the chroma ones lie within.
TRUNCATE_LUMA = 8.0
TRUNCATE_CHROMA = 2.0

# How much of the strongest patches: 0 would be their mean, infinity the strongest patch alone. At 1 an image with one
# patch in 64 at logit 8 and the others at -4 scores 3.8: a generated part shows, a single undecided patch does not.
SHARPNESS = 1.0

# BT.601 luma and colour differences, as in JPEG.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

# Integers, exact in every precision, and the weight of the pixel that each filter predicts from its neighbours.
_LINES = (([-1.0, 1], 1), ([1.0, -2, 1], 2), ([1.0, -3, 3, -1], 3))  # first to third order, each in both directions
_SQUARES = (
    ([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]], 4),
    ([[-1.0, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]], 12),  # KV
)


def filters() -> list[tuple[Tensor, int]]:
    """Six line filters, then two square ones, each with the weight that its residual is divided by."""
    lines = [(torch.tensor(each).view(shape), by) for each, by in _LINES for shape in ((1, -1), (-1, 1))]
    return [*lines, *((torch.tensor(each), by) for each, by in _SQUARES)]


class Residual(nn.Module):
    """Twelve truncated noise residuals: all eight filters on luma, the two square ones on Cb and Cr."""

    CHANNELS = 12
    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.divisors = [float(by) for _, by in filters()]
        self.register_buffer("kernels", torch.stack([_in_5x5(each) for each, _ in filters()])[:, None])

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) RGB in 0..255 -> (b, 12, H, W) in -1..1."""
        pixels = images.float()  # differences of large, similar numbers
        planes = torch.einsum("pc,bchw->bphw", pixels.new_tensor(YCBCR), pixels)
        planes = functional.pad(planes, (2, 2, 2, 2), mode="replicate")
        kernels = self.kernels.float() / pixels.new_tensor(self.divisors).view(-1, 1, 1, 1)
        luma = functional.conv2d(planes[:, :1], kernels)
        chroma = functional.conv2d(planes[:, 1:], kernels[-2:].repeat(2, 1, 1, 1), groups=2)
        truncated = [(luma / TRUNCATE_LUMA).clamp(-1, 1), (chroma / TRUNCATE_CHROMA).clamp(-1, 1)]
        return torch.cat(truncated, dim=1).to(images.dtype)


def _in_5x5(kernel: Tensor) -> Tensor:
    rows, columns = (5 - side for side in kernel.shape)
    return functional.pad(kernel, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class GhostNetForensics(nn.Module):
    """Images to one logit per patch, and one per image that follows from them.

    Args:
        architecture: a GhostNet of timm's; its keys are kept below ``backbone.``, without the classifier's.
    """

    def __init__(self, architecture: str = "ghostnet_100") -> None:
        super().__init__()
        self.residual = Residual()
        self.backbone = timm.create_model(architecture, pretrained=False, in_chans=Residual.CHANNELS, num_classes=0)
        self.backbone.conv_head = nn.Identity()  # comes after timm's pooling, which we do not use
        self.head = nn.Conv2d(self.backbone.num_features, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, H, W) RGB in 0..255 -> image logits (b,) and patch logits (b, ceil(H / 32), ceil(W / 32))."""
        patches = self.head(self.backbone.forward_features(self.residual(images)))[:, 0]
        return pool(patches.flatten(1)), patches


def pool(patches: Tensor) -> Tensor:
    """Log-mean-exp over the last axis: a smooth maximum that equals its input where all patches agree."""
    return (torch.logsumexp(patches * SHARPNESS, dim=-1) - math.log(patches.shape[-1])) / SHARPNESS
