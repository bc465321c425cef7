"""Every backbone against another implementation of it, on weights of our own making in the published layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.backbone_nets import TimmTower, build, empty
from models.backbones import Backbone, backbone, backbones
from models.loaders import Weights, cards, record_card
from utils.errors import BadSettings, WeightsCorrupt, WeightsMismatch
from utils.persistence import sha256_file

SMALL: Mapping[str, Mapping[str, int]] = {
    "timm": {"embed_dim": 96, "depth": 2, "num_heads": 2},
    "open_clip": {"width": 96, "layers": 2, "head_width": 48},
    "transformers": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192},
}
DEPTH = {"timm": "depth", "open_clip": "layers", "transformers": "num_hidden_layers"}
FULL_SIZE, LARGEST = "IMGV_TEST_FULL_SIZE", 440_000_000  # parameters: up to size L
DINOV2 = [name for name, each in backbones().items() if each.architecture == "dinov2"]
NAMES = [name for name, each in backbones().items() if each.library != "graph" and name not in DINOV2]


def small(name: str) -> Backbone:
    record = backbone(name)
    return replace(record, sizes={**record.sizes, **SMALL[record.library]})


def drawn(network: nn.Module) -> nn.Module:
    """Nothing at its start: zeros and ones would hide a wrong place."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    return network.eval().requires_grad_(False)


def published(name: str, source: nn.Module) -> dict[str, Tensor]:
    """The state of a record's network under the keys of the file that its card names."""
    state = own(source)
    if backbone(name).library == "timm":
        return state | {"head.weight": torch.ones(3, 96)}  # towers of CLIP come with their projection
    if backbone(name).library == "open_clip":
        return {f"visual.{key}": value for key, value in state.items()} | {
            "visual.proj": torch.ones(96, 8),
            "token_embedding.weight": torch.ones(4, 4),
            "logit_scale": torch.ones(()),
        }
    return {f"vision_model.{key}": value for key, value in state.items()} | {"query_tokens": torch.ones(1, 2)}


# --- other implementations: summary and patches, at whatever size the source has


def own(source: nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("network."): value for key, value in source.state_dict().items()}


def of_timms_clip(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's towers through timm's network and timm's own reading of OpenAI's layout."""
    names = {
        "ViT-B-32-quickgelu": "vit_base_patch32_clip_quickgelu_224",
        "ViT-L-14-quickgelu": "vit_large_patch14_clip_quickgelu_224",
        "ViT-H-14": "vit_huge_patch14_clip_224",
        "ViT-bigG-14": "vit_gigantic_patch14_clip_224",
    }
    blocks = source.network.transformer.resblocks
    sizes = {"embed_dim": len(source.network.ln_post.weight), "depth": len(blocks), "num_classes": 0}
    other = timm.create_model(names[record.architecture], num_heads=blocks[0].attn.num_heads, **sizes).eval()
    read = checkpoint_filter_fn({f"visual.{key}": value for key, value in own(source).items()}, other)
    other.load_state_dict({key: value for key, value in read.items() if not key.startswith("head.")})
    tokens = other.forward_features(images)
    return tokens[:, 0], tokens[:, 1:]


def of_transformers_dinov3(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    ours, blocks = own(source), source.network.blocks
    width, depth = source.network.embed_dim, len(blocks)
    config = DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=4 * width, num_register_tokens=4, key_bias=False, query_bias=False, value_bias=False,
        pos_embed_rescale=None,
    )  # fmt: skip
    other = DINOv3ViTModel(config).eval()
    state = {
        "embeddings.cls_token": ours["cls_token"],
        "embeddings.register_tokens": ours["reg_token"],
        "embeddings.mask_token": torch.zeros(1, 1, width),
        "embeddings.patch_embeddings.weight": ours["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": ours["patch_embed.proj.bias"],
        "norm.weight": ours["norm.weight"],
        "norm.bias": ours["norm.bias"],
    }
    layers = next(key for key in other.state_dict() if key.endswith("0.norm1.weight")).removesuffix("0.norm1.weight")
    for index in range(depth):
        there, here = f"{layers}{index}.", f"blocks.{index}."
        for part, value in zip("qkv", ours[f"{here}attn.qkv.weight"].chunk(3), strict=True):
            state[f"{there}attention.{part}_proj.weight"] = value
        for kind in ("weight", "bias"):
            state[f"{there}attention.o_proj.{kind}"] = ours[f"{here}attn.proj.{kind}"]
            state[f"{there}mlp.up_proj.{kind}"] = ours[f"{here}mlp.fc1.{kind}"]
            state[f"{there}mlp.down_proj.{kind}"] = ours[f"{here}mlp.fc2.{kind}"]
            for norm in ("norm1", "norm2"):
                state[f"{there}{norm}.{kind}"] = ours[f"{here}{norm}.{kind}"]
        for scale in (1, 2):
            state[f"{there}layer_scale{scale}.lambda1"] = ours[f"{here}gamma_{scale}"]
    other.load_state_dict(state)
    tokens = other(pixel_values=images).last_hidden_state
    return tokens[:, 0], tokens[:, 5:]


def of_transformers_siglip(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    ours, blocks = own(source), source.network.blocks
    config = SiglipVisionConfig(
        hidden_size=source.network.embed_dim, num_hidden_layers=len(blocks), image_size=record.side,
        num_attention_heads=blocks[0].attn.num_heads, intermediate_size=len(ours["blocks.0.mlp.fc1.weight"]),
        patch_size=ours["patch_embed.proj.weight"].shape[-1], hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    other = SiglipVisionModel(config).eval()
    state = {
        "embeddings.patch_embedding.weight": ours["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": ours["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": ours["pos_embed"][0],
        "head.probe": ours["attn_pool.latent"],
        "head.attention.in_proj_weight": torch.cat([ours["attn_pool.q.weight"], ours["attn_pool.kv.weight"]]),
        "head.attention.in_proj_bias": torch.cat([ours["attn_pool.q.bias"], ours["attn_pool.kv.bias"]]),
    }
    for kind in ("weight", "bias"):
        state[f"post_layernorm.{kind}"] = ours[f"norm.{kind}"]
        state[f"head.attention.out_proj.{kind}"] = ours[f"attn_pool.proj.{kind}"]
        state[f"head.layernorm.{kind}"] = ours[f"attn_pool.norm.{kind}"]
        for layer in ("fc1", "fc2"):
            state[f"head.mlp.{layer}.{kind}"] = ours[f"attn_pool.mlp.{layer}.{kind}"]
        for index in range(len(blocks)):
            there, here = f"encoder.layers.{index}.", f"blocks.{index}."
            for part, value in zip("qkv", ours[f"{here}attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{there}self_attn.{part}_proj.{kind}"] = value
            state[f"{there}self_attn.out_proj.{kind}"] = ours[f"{here}attn.proj.{kind}"]
            for number in (1, 2):
                state[f"{there}layer_norm{number}.{kind}"] = ours[f"{here}norm{number}.{kind}"]
                state[f"{there}mlp.fc{number}.{kind}"] = ours[f"{here}mlp.fc{number}.{kind}"]
    prefix = "vision_model." if "vision_model.post_layernorm.bias" in other.state_dict() else ""
    other.load_state_dict({f"{prefix}{key}": value for key, value in state.items()})
    found = other(pixel_values=images)
    return found.pooler_output, found.last_hidden_state


def of_open_clip(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """MetaCLIP 2: open_clip's own tower, its state read by timm into ours."""
    config = open_clip.get_model_config("ViT-H-14-worldwide-quickgelu")
    width, blocks = source.network.embed_dim, source.network.blocks
    sizes = {"width": width, "layers": len(blocks), "head_width": width // blocks[0].attn.num_heads}
    config["vision_cfg"] = {**config["vision_cfg"], **sizes}
    config["text_cfg"] = {"context_length": 8, "vocab_size": 16, "width": 24, "heads": 2, "layers": 1}
    other = drawn(open_clip.CLIP(**config)).visual
    other.proj, other.output_tokens = None, True
    state = checkpoint_filter_fn({f"visual.{key}": value for key, value in other.state_dict().items()}, source.network)
    source.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    summary, patches = other(images)
    return summary, patches


def of_timm_itself(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Perception Encoder: timm's port is what there is; its network alone, without ours around it."""
    other = timm.create_model(record.architecture, num_classes=0, **record.sizes).eval()
    other.load_state_dict(own(source))
    tokens = other.forward_features(images)
    return other(images), tokens[:, other.num_prefix_tokens :]


def of_transformers_blip2(record: Backbone, source: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    other = Blip2VisionModel(Blip2VisionConfig(**record.sizes)).eval()
    other.load_state_dict(own(source))
    found = other(pixel_values=images)
    return found.pooler_output, found.last_hidden_state[:, 1:]


OTHERS = {
    "clip": of_timms_clip,
    "dinov3": of_transformers_dinov3,
    "siglip2": of_transformers_siglip,
    "metaclip2": of_open_clip,
    "pe_core": of_timm_itself,
    "blip2": of_transformers_blip2,
}


def both(record: Backbone) -> tuple[Tensor, Tensor]:
    """Embeddings of two images by ours and by the other implementation."""
    source = drawn(empty(record))
    images = torch.randn(2, 3, record.side, record.side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        summary, patches = OTHERS[record.detector](record, source, images)
        return build(record, published(record.name, source))(images), torch.cat([summary, patches.mean(dim=1)], dim=1)


def both_dinov2(name: str, **sizes: int) -> tuple[Tensor, Tensor]:
    """The same of DINOv2 and timm's port of it, at the side of the stored positions: they interpolate differently."""
    other: Any = drawn(timm.create_model(f"vit_{name.removeprefix('dinov2_')}_patch14_dinov2", num_classes=0, **sizes))
    theirs = other.state_dict()
    state = {
        "embeddings.cls_token": theirs["cls_token"],
        "embeddings.mask_token": torch.ones(1, other.embed_dim),
        "embeddings.position_embeddings": theirs["pos_embed"],
    }
    for kind in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{kind}"] = theirs[f"patch_embed.proj.{kind}"]
        state[f"layernorm.{kind}"] = theirs[f"norm.{kind}"]
        for index in range(len(other.blocks)):
            there, here = f"encoder.layer.{index}.", f"blocks.{index}."
            parts = ("query", "key", "value")
            for part, value in zip(parts, theirs[f"{here}attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{there}attention.attention.{part}.{kind}"] = value
            state[f"{there}attention.output.dense.{kind}"] = theirs[f"{here}attn.proj.{kind}"]
            for number in (1, 2):
                state[f"{there}norm{number}.{kind}"] = theirs[f"{here}norm{number}.{kind}"]
                state[f"{there}mlp.fc{number}.{kind}"] = theirs[f"{here}mlp.fc{number}.{kind}"]
                state[f"{there}layer_scale{number}.lambda1"] = theirs[f"{here}ls{number}.gamma"]
    side = other.patch_embed.img_size[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = other.forward_features(images)
        return build(backbone(name), state)(images), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_sees_what_another_implementation_sees(name: str) -> None:
    found, expected = both(small(name))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dinov2_sees_what_timms_port_sees() -> None:
    found, expected = both_dinov2("dinov2_small", embed_dim=128, depth=2, num_heads=2)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if backbone(name).parameters >= LARGEST])
def test_two_blocks_of_full_width_see_what_another_implementation_sees(name: str) -> None:
    """The larger ones at their own width, heads and side; all blocks of such a network have one shape."""
    record = backbone(name)
    found, expected = both(replace(record, sizes={**record.sizes, DEPTH[record.library]: 2}))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DINOV2, *(name for name in NAMES if backbone(name).parameters < LARGEST)])
@pytest.mark.timeout(900)
def test_a_backbone_of_full_size_sees_what_another_implementation_sees(name: str) -> None:
    if FULL_SIZE not in os.environ:
        pytest.skip(f"takes minutes and 6 GB of memory: set {FULL_SIZE}=1")
    found, expected = both_dinov2(name) if name in DINOV2 else both(backbone(name))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_tower_is_read_from_open_clips_layout_too() -> None:
    record = small("siglip2_base")
    source = drawn(empty(record))
    state = {f"visual.trunk.{key}": value for key, value in published("siglip2_base", source).items()}
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(build(record, state | {"logit_bias": torch.ones(1)})(images), source(images))


# --- what the records say


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_tokens_are_those_of_the_network(name: str) -> None:
    record = backbone(name)
    with torch.device("meta"):  # of the full size, without memory
        network = empty(record, "meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == record.parameters
    patch = next(each.kernel_size[0] for each in network.modules() if isinstance(each, nn.Conv2d))
    prefix = network.network.num_prefix_tokens if isinstance(network, TimmTower) else 1
    assert record.tokens == (record.side // patch) ** 2 + prefix


@pytest.mark.parametrize(
    ("name", "width", "layers"), [("dinov2_small", 384, 12), ("dinov2_base", 768, 12), ("dinov2_large", 1024, 24)]
)
def test_parameters_of_dinov2_are_those_of_transformers_network(name: str, width: int, layers: int) -> None:
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, patch_size=14, image_size=518
    )
    with torch.device("meta"):
        network = Dinov2Model(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == backbone(name).parameters
    assert backbone(name).tokens == (backbone(name).side // 14) ** 2 + 1


@pytest.mark.parametrize("name", backbones())
def test_every_backbone_has_a_card_with_file_and_licence(name: str) -> None:
    card = cards()[name]
    assert card.file
    assert card.licence
    assert card.url.startswith("https://huggingface.co/") or backbone(name).library == "graph"


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("clip_b32", ("ViT-B-32-quickgelu", "openai")),
        ("clip_l14", ("ViT-L-14-quickgelu", "openai")),
        ("clip_bigg", ("ViT-bigG-14", "laion2b_s39b_b160k")),
        ("metaclip2_h14", ("ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide")),
        ("siglip2_base", ("ViT-B-16-SigLIP2", "webli")),
        ("pe_core_large", ("PE-Core-L-14-336", "meta")),
    ],
)
def test_preprocessing_is_upstreams(name: str, upstream: tuple[str, str]) -> None:
    record, config = backbone(name), open_clip.pretrained.get_pretrained_cfg(*upstream)
    means = {"imagenet": 0.485, "clip": 0.48145466, "half": 0.5}
    fits = {"shortest": "crop", "squash": "squash"}
    assert (means[record.statistics], record.interpolation, record.fit) == (
        config["mean"][0],
        config["interpolation"],
        fits[config["resize_mode"]],
    )
    assert record.side == open_clip.get_model_config(upstream[0])["vision_cfg"]["image_size"]


def test_timms_dinov3_is_shown_what_timm_says() -> None:
    record, config = backbone("dinov3_base"), timm.get_pretrained_cfg("vit_base_patch16_dinov3.lvd1689m")
    assert (record.side, record.interpolation, config.crop_pct) == (config.input_size[-1], config.interpolation, 1.0)


# --- what is refused


def install(folder: Path, state: Mapping[str, Tensor], sha256: str = "") -> Weights:
    path = folder / "dinov3_small.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    record_card("dinov3_small", {"size": path.stat().st_size, "sha256": sha256 or sha256_file(path)}, folder)
    return Weights.at(folder)


def test_a_wrong_key_shape_hash_or_name_is_a_coded_error(tmp_path: Path) -> None:
    record = small("dinov3_small")
    state = published("dinov3_small", drawn(empty(record)))
    renamed = {**state, "norm.wait": state["norm.weight"]}
    del renamed["norm.weight"]
    with pytest.raises(WeightsMismatch, match=r"1 missing: network\.norm\.weight; 1 unexpected: network\.norm\.wait"):
        build(record, renamed)
    with pytest.raises(WeightsMismatch, match=r"network\.norm\.bias \(file \(3,\), network \(96,\)\)"):
        build(record, {**state, "norm.bias": torch.ones(3)})
    with pytest.raises(WeightsCorrupt, match=r"expected sha256 0{64}"):
        install(tmp_path, state, "0" * 64).state("dinov3_small")
    with pytest.raises(WeightsMismatch, match="another shape"):  # a small file under the name of a full network
        build(backbone("dinov3_small"), install(tmp_path, state).state("dinov3_small"))
    with pytest.raises(BadSettings, match="did you mean 'dinov3_base'"):
        backbone("dinov3_bas")
