"""The image tower of OpenAI's CLIP ViT-B/16, and what it thinks of an image after each of its blocks.

Papers:     Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
            Koutlis and Papadopoulos, "Leveraging Representations from Intermediate Encoder-blocks for Synthetic Image
            Detection", ECCV 2024, arXiv 2402.19091 (the class tokens of all blocks)
Upstream:   the network is timm's; the weights are OpenAI's, scripts/convert_clip_tower.py says how they come here
Differs:    without the last LayerNorm and the projection into the space of texts: nothing of ours looks at them

Knows nothing of images, files or devices.
"""

from __future__ import annotations

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

ARCHITECTURE = "vit_base_patch16_clip_quickgelu_224"  # of timm's; OpenAI trained with the quick GELU


def clip_tower() -> VisionTransformer:
    """Timm's network with random weights; its keys are those of the weights file."""
    tower = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    tower.norm = nn.Identity()
    return tower


def class_tokens(tower: VisionTransformer, images: Tensor) -> Tensor:
    """(b, 3, 224, 224), normalised as CLIP's -> the class token after each block, (b, 12, 768)."""
    blocks = tower.forward_intermediates(
        images, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
    )
    return torch.stack([prefix[:, 0] for _, prefix in blocks], dim=1)
