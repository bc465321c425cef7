"""Where an image was edited, from ManTraNet's traces and from what is repeated in it: a small decoder.

Papers:   Wu, AbdAlmageed and Natarajan, CVPR 2019 (the traces: models/mantranet_net.py), and ECCV 2018 (BusterNet: what
          was changed beside what is repeated)
Differs:  repeats are found by inference/repeats.py, not by a network

Knows nothing of images, files or devices. Shapes in comments: b images, c channels, h x w places of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.mantranet_net import COMPACT, ManTraNet

STRIDE = 8  # px of the image per place of the map, along each side
PLANES = 3  # of inference/repeats.py
WIDTH = 16
REACH = (1, 2, 4, 1)  # places that each convolution steps by


class Decoder(nn.Module):
    """Evidence at each place -> logits of having been edited."""

    def __init__(self) -> None:
        super().__init__()
        given = (1 + 2 * PLANES, *(len(REACH) - 1) * [WIDTH])
        self.layers = nn.ModuleList(
            nn.Conv2d(inside, WIDTH, 3, padding=far, dilation=far) for inside, far in zip(given, REACH, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in REACH)
        self.end = nn.Conv2d(WIDTH, 1, 1)
        assert self.end.bias is not None
        nn.init.constant_(self.end.bias, -2.0)  # most of an image is as it was

    def forward(self, evidence: Tensor) -> Tensor:
        """What ``EditMapNet.evidence`` gives -> (b, 1, h, w)."""
        x = evidence
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            found = functional.relu(norm(layer(x)))
            x = x + found if index else found
        return self.end(x)


class EditMapNet(nn.Module):
    """ManTraNet, whose weights stay as they are, and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mantranet = ManTraNet(COMPACT)
        self.decoder = Decoder()

    def forward(self, padded: Tensor, repeats: Tensor) -> Tensor:
        """
        Args:
            padded: (b, 3, STRIDE h + 4, STRIDE w + 4) RGB in 0..255, mirrored by 2 px on each side.
            repeats: (b, PLANES, STRIDE h, STRIDE w).

        Returns:
            Logits, (b, 1, h, w).
        """
        return self.decoder(self.evidence(padded, repeats))

    def evidence(self, padded: Tensor, repeats: Tensor) -> Tensor:
        """ManTraNet's logits, and mean and maximum of what is repeated: (b, 1 + 2 PLANES, h, w)."""
        traces = self.mantranet.AnomalyDetector(self.mantranet.IMTFE.of_padded(padded))
        planes = (
            functional.avg_pool2d(traces, STRIDE // COMPACT.stride) / 4,
            functional.avg_pool2d(repeats, STRIDE),
            functional.max_pool2d(repeats, STRIDE),
        )
        return torch.cat(planes, dim=1)
