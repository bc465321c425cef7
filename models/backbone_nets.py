"""Frozen backbones as maps from images to embeddings, through the libraries that publish them.

Papers:     DINOv2 arXiv 2304.07193 (registers 2309.16588), DINOv3 2508.10104, CLIP 2103.00020, open_clip 2212.07143,
            MetaCLIP 2 2507.22062, SigLIP 2 2502.14786, Perception Encoder 2504.13181, BLIP-2 2301.12597; that a linear
            head on one of them leads in the wild: 2602.01738
Upstream:   the networks are those of transformers, timm and open_clip; the weights are their publishers', see each card
Differs:    an embedding is [summary, mean of patches] after the last norm, before any projection into a space of texts.
            The summary is the class token, or what attention pools where a network has such a pool.

Knows nothing of images, heads or hashes. Shapes in comments: b images, n tokens, d channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import open_clip
import timm
import torch
from torch import Tensor, nn
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from models.backbones import Backbone
from models.loaders import load_into
from utils.errors import WeightsMismatch

State: TypeAlias = Mapping[str, Tensor]
Rename: TypeAlias = Callable[[str], str | None]

HEAD_WIDTH = 64  # channels per attention head, in DINOv2 of every size
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")

NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}

# transformers has renamed these modules since DINOv2's checkpoints were published.
_RENAMED = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


def build(record: Backbone, state: State, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network of a record, filled with a checkpoint in its published layout, in eval mode without gradients.

    Returns:
        (b, 3, side, side), normalised as the record says -> embeddings (b, d).

    Raises:
        WeightsMismatch: keys or shapes of the checkpoint are not the architecture's; the message lists them.
    """
    if record.architecture == "dinov2":
        return _dinov2(state, dtype)
    network = empty(record, "meta")
    return load_into(network, state, rename=network.official_name, dtype=dtype)


def empty(record: Backbone, device: str = "cpu") -> Tokens:
    """The network of a record, but DINOv2's, with random weights; on the meta device without any."""
    if record.library == "timm":
        return TimmTower(record, device)
    with torch.device(device):
        return {"open_clip": OpenClipTower, "transformers": Blip2Tower}[record.library](record)


class Tokens(nn.Module):
    """A tower that sums an image up and has something to say of each patch."""

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) -> summaries (b, d) and patches (b, n, d), both after the last norm."""
        raise NotImplementedError

    def official_name(self, key: str) -> str | None:
        """Key of the published file -> ours; None for what no image needs."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, 2 d): the summary, then the mean patch."""
        summary, patches = self.see(images)
        return torch.cat([summary, patches.mean(dim=1)], dim=1)


class TimmTower(Tokens):
    """DINOv3, MetaCLIP 2, SigLIP 2 and Perception Encoder as timm has them."""

    network: Any  # of a class without type information

    def __init__(self, record: Backbone, device: str) -> None:
        super().__init__()

        def create(**sizes: int) -> nn.Module:
            return timm.create_model(record.architecture, pretrained=False, num_classes=0, **{**record.sizes, **sizes})

        with torch.device(device):
            self.network = create()
        # What rotary positions are computed from is stored nowhere, and depends on no weight and not on the depth.
        shallow = dict(create(depth=1).named_buffers()) if device == "meta" else {}
        for name, buffer in shallow.items():
            module, _, leaf = name.rpartition(".")
            self.network.get_submodule(module).register_buffer(leaf, buffer, persistent=False)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.network.forward_features(images)
        pools = getattr(self.network, "attn_pool", None) is not None
        summary = self.network.forward_head(tokens, pre_logits=True) if pools else tokens[:, 0]
        return summary, tokens[:, self.network.num_prefix_tokens :]

    def official_name(self, key: str) -> str | None:
        """A tower alone, or as open_clip stores one beside its text tower; the projection is left out."""
        key = key.removeprefix("visual.trunk.")
        left_out = ("head.", "visual.", "text.", "logit_")
        return None if key.startswith(left_out) else f"network.{key}"


class OpenClipTower(Tokens):
    """CLIP's image tower as open_clip has it."""

    network: Any  # of a class without type information

    def __init__(self, record: Backbone) -> None:
        super().__init__()
        config = open_clip.get_model_config(record.architecture)
        config["vision_cfg"] = {**config["vision_cfg"], **record.sizes}
        config["text_cfg"] = NO_TEXT  # open_clip builds both towers
        self.network = open_clip.CLIP(**config).visual
        self.network.proj = None
        self.network.output_tokens = True

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        summary, patches = self.network(images)
        return summary, patches

    def official_name(self, key: str) -> str | None:
        wanted = key.startswith("visual.") and key != "visual.proj"
        return f"network.{key.removeprefix('visual.')}" if wanted else None


class Blip2Tower(Tokens):
    """BLIP-2's image tower, EVA's ViT-g, as transformers has it; its queries and language model are not used."""

    def __init__(self, record: Backbone) -> None:
        super().__init__()
        self.network = Blip2VisionModel(Blip2VisionConfig(**record.sizes))

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(images)
        return found.pooler_output, found.last_hidden_state[:, 1:]

    def official_name(self, key: str) -> str | None:
        return f"network.{key.removeprefix('vision_model.')}" if key.startswith("vision_model.") else None


# --- DINOv2: whatever size a checkpoint has, with registers or without


class Dinov2(nn.Module):
    """DINOv2 as a map from images to embeddings."""

    def __init__(self, config: Dinov2Config | Dinov2WithRegistersConfig) -> None:
        super().__init__()
        with_registers = isinstance(config, Dinov2WithRegistersConfig)
        self.model = (Dinov2WithRegistersModel if with_registers else Dinov2Model)(config)
        self.before_patches = 1 + (config.num_register_tokens if with_registers else 0)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w), ImageNet-normalised, sides multiples of the patch -> (b, 2 d): CLS, then the mean patch.

        Position embeddings are interpolated when the grid is not the one they were trained for (37 x 37).
        """
        tokens = self.model(images).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, self.before_patches :].mean(dim=1)], dim=1)


def config_of(state: State) -> Dinov2Config | Dinov2WithRegistersConfig:
    """The configuration that a checkpoint's shapes tell.

    Raises:
        WeightsMismatch: it lacks the tensors that say it.
    """
    try:
        width, _, _, patch = state["embeddings.patch_embeddings.projection.weight"].shape
        side = math.isqrt(state["embeddings.position_embeddings"].shape[1] - 1)
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsMismatch(f"not a DINOv2 checkpoint in the layout of transformers: {error}") from error
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max((int(found[1]) for key in state if (found := LAYER.match(key))), default=-1),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "patch_size": patch,
        "image_size": side * patch,
    }
    registers = state.get("embeddings.register_tokens")
    if registers is None:
        return Dinov2Config(**sizes)
    return Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers.shape[1])


def _dinov2(state: State, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = Dinov2(config_of(state))
    wanted = network.state_dict().keys()

    def rename(key: str) -> str:
        first = f"model.{key}"
        now = first
        for old, new in _RENAMED.items():
            now = now.replace(old, new)
        return now if now in wanted else first

    return load_into(network, state, rename=rename, dtype=dtype)
