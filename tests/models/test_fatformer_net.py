"""FatFormer's parts against independent references: PyWavelets, torch.nn.MultiheadAttention, open_clip's tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import pywt
import torch
from torch import Tensor, nn

from models.fatformer_net import (
    TINY,
    Attention,
    Block,
    Config,
    CrossLayer,
    FatFormer,
    ForgeryAwareAdapter,
    PromptLearner,
    TextEncoder,
    haar,
    inverse_haar,
    official_name,
)
from models.loaders import load_into
from utils.errors import WeightsMismatch

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(7)


def scrambled(module: nn.Module) -> nn.Module:
    """Every parameter away from its neutral start, so that a skipped scale, bias or norm shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval().requires_grad_(False)


def official_layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published checkpoint, written down from its facts, not from our network."""

    def attention(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}.in_proj_weight": (3 * d, d),
            f"{prefix}.in_proj_bias": (3 * d,),
            f"{prefix}.out_proj.weight": (d, d),
            f"{prefix}.out_proj.bias": (d,),
        }

    def linear(prefix: str, inside: int, out: int) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.weight": (out, inside), f"{prefix}.bias": (out,)}

    def norm(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.weight": (d,), f"{prefix}.bias": (d,)}

    def feed_forward(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        return linear(f"{prefix}linear1", d, 4 * d) | linear(f"{prefix}linear2", 4 * d, d)

    def block(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        mlp = linear(f"{prefix}.mlp.c_fc", d, 4 * d) | linear(f"{prefix}.mlp.c_proj", 4 * d, d)
        return attention(f"{prefix}.attn", d) | norm(f"{prefix}.ln_1", d) | mlp | norm(f"{prefix}.ln_2", d)

    def adapter(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
        filters = {"col": (1, 1, 2, 1), "row": (1, 1, 1, 2)}
        return (
            {f"{prefix}.freq_scale": (1,)}
            | {f"{prefix}.first_conv_layer.weight": (config.adapter_hidden, d, 1)}
            | {f"{prefix}.first_conv_layer.bias": (config.adapter_hidden,)}
            | {f"{prefix}.second_conv_layer.weight": (d, config.adapter_hidden, 1)}
            | {f"{prefix}.second_conv_layer.bias": (d,)}
            | {f"{prefix}.dwt_transform.h{i}_{axis}": shape for i in "01" for axis, shape in filters.items()}
            | {f"{prefix}.idwt_transform.g{i}_{axis}": shape for i in "01" for axis, shape in filters.items()}
            | norm(f"{prefix}.dwt_norm", d)
            | attention(f"{prefix}.intra_band", d)
            | norm(f"{prefix}.norm_intra", d)
            | attention(f"{prefix}.inter_band", d)
            | norm(f"{prefix}.norm_inter", d)
            | feed_forward(f"{prefix}.", d)
            | norm(f"{prefix}.norm3", d)
        )

    d, t = config.width, config.text_width
    visual = {
        "class_embedding": (d,),
        "positional_embedding": ((config.image_size // config.patch) ** 2 + 1, d),
        "conv1.weight": (d, 3, config.patch, config.patch),
        "proj": (d, t),
        **norm("ln_pre", d),
        **norm("ln_post", d),
    }
    for i in range(config.layers):
        visual |= block(f"transformer.resblocks.{i}", d)
        if i in config.adapters:
            visual |= adapter(f"transformer.resblocks.{i}.forgery_aware_adapter", d)
    text: dict[str, tuple[int, ...]] = {"positional_embedding": (config.context, t), "text_projection": (t, t)}
    text |= norm("ln_final", t)
    for i in range(config.text_layers):
        text |= block(f"transformer.resblocks.{i}", t)
    cross = norm("norm1", t) | norm("norm2", t) | feed_forward("", t)
    lga = {
        "ctx": (config.prompt_tokens, t),
        "token_prefix": (2, 1, t),
        "token_suffix": (2, config.context - 1 - config.prompt_tokens, t),
        **attention("patch_basaed_enhancer", t),
        **cross,
    }
    return (
        {f"clip_model.{key}": shape for key, shape in text.items()}
        | {f"clip_model.visual.{key}": shape for key, shape in visual.items()}
        | {"clip_model.logit_scale": (), "clip_model.token_embedding.weight": (49408, t), "logit_scale": ()}
        | {f"image_encoder.{key}": shape for key, shape in visual.items()}
        | {f"text_encoder.{key}": shape for key, shape in text.items()}
        | {f"language_guided_alignment.{key}": shape for key, shape in lga.items()}
        | attention("text_guided_interactor", t)
        | cross
    )


def official_state(config: Config) -> dict[str, Tensor]:
    """A random checkpoint in the published layout; aliases share their tensors, as torch.save keeps them."""
    made: dict[str, Tensor] = {}
    state = {}
    for key, shape in official_layout(config).items():
        original = key.replace("clip_model.visual.", "image_encoder.")
        if original.startswith("clip_model.") and "token_embedding" not in original:
            original = original.replace("clip_model.logit_scale", "logit_scale").replace("clip_model.", "text_encoder.")
        if original not in made:
            fan_in = shape[-1] if len(shape) > 1 else 25
            is_gain = original.endswith(".weight") and len(shape) == 1
            made[original] = torch.randn(shape) * 0.5 * fan_in**-0.5 + float(is_gain)
        state[key] = made[original]
    return state


# --- the wavelet


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 2, 2), (1, 2, 4, 16)])
def test_haar_is_pywavelets_haar(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    low, (along_height, along_width, along_both) = pywt.dwt2(x.double().numpy(), "haar")
    expected = np.stack([low, along_height, along_width, along_both], axis=2)
    np.testing.assert_allclose(haar(x).numpy(), expected, atol=1e-6)


def test_inverse_haar_is_pywavelets_inverse_and_undoes_haar() -> None:
    bands = torch.randn(2, 3, 4, 4, 6)
    low, h, w, hw = bands.double().numpy().transpose(2, 0, 1, 3, 4)
    np.testing.assert_allclose(inverse_haar(bands).numpy(), pywt.idwt2((low, (h, w, hw)), "haar"), atol=1e-6)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(inverse_haar(haar(x)), x)


# --- attention and blocks


def twin(attention: Attention, width: int) -> nn.MultiheadAttention:
    other = nn.MultiheadAttention(width, attention.heads, batch_first=True)
    other.load_state_dict(attention.state_dict())  # the same names: loads strictly
    return other.eval().requires_grad_(False)


def test_attention_is_torchs_multihead_attention() -> None:
    attention = scrambled(Attention(24, 3))
    other = twin(attention, 24)
    x, memory = torch.randn(2, 7, 24), torch.randn(2, 5, 24)
    torch.testing.assert_close(attention(x), other(x, x, x)[0], **CLOSE)
    torch.testing.assert_close(attention(x, memory), other(x, memory, memory)[0], **CLOSE)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(attention(x, causal=True), other(x, x, x, attn_mask=mask)[0], **CLOSE)


def literal_block(block: Block, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """CLIP's residual block as its paper's code has it, around torch's own attention."""
    y = block.ln_1(x)
    x = x + twin(block.attn, x.shape[-1])(y, y, y, attn_mask=mask)[0]
    y = block.mlp.c_fc(block.ln_2(x))
    mlp = block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
    return x + mlp if block.forgery_aware_adapter is None else x + mlp + block.forgery_aware_adapter(x)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_block_is_the_literal_one(with_adapter: bool) -> None:
    block = scrambled(Block(32, 4, ForgeryAwareAdapter(32, 8, 8, 4) if with_adapter else None))
    x = torch.randn(2, 17, 32)
    torch.testing.assert_close(block(x), literal_block(block, x), **CLOSE)


def literal_adapter(adapter: ForgeryAwareAdapter, x: Tensor) -> Tensor:
    """One image at a time, sequence first, bands by PyWavelets, every attention call written out in a loop."""
    width, side = x.shape[-1], adapter.side
    intra, inter = twin(adapter.intra_band, width), twin(adapter.inter_band, width)
    results = []
    for image in x:  # n d
        bottleneck = torch.relu(image @ adapter.first_conv_layer.weight[..., 0].T + adapter.first_conv_layer.bias)
        spatial = 0.1 * (bottleneck @ adapter.second_conv_layer.weight[..., 0].T + adapter.second_conv_layer.bias)
        grid = image[1:].reshape(side, side, width).permute(2, 0, 1).numpy()
        low, (h, w, hw) = pywt.dwt2(grid, "haar")
        bands = torch.tensor(np.stack([low, h, w, hw], axis=1)).flatten(2)  # d 4 positions
        groups = bands.reshape(width // 8, -1)
        groups = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        bands = groups.view_as(bands) * adapter.dwt_norm.weight[:, None, None] + adapter.dwt_norm.bias[:, None, None]
        tokens = bands.permute(1, 2, 0)  # 4 positions d
        for position in range(tokens.shape[1]):  # the four bands of one position see each other
            y = tokens[None, :, position]
            tokens[:, position] = adapter.norm_intra(y + intra(y, y, y)[0])[0]
        for band in range(4):  # the positions of one band see each other
            y = tokens[None, band]
            tokens[band] = adapter.norm_inter(y + inter(y, y, y)[0])[0]
        tokens = adapter.norm3(tokens + adapter.linear2(torch.relu(adapter.linear1(tokens))))
        low, h, w, hw = tokens.permute(0, 2, 1).reshape(4, width, side // 2, side // 2).numpy()
        frequency = torch.tensor(pywt.idwt2((low, (h, w, hw)), "haar")).flatten(1).T
        frequency = torch.cat([torch.zeros(1, width), frequency])
        results.append(spatial + adapter.freq_scale * frequency)
    return torch.stack(results)


@torch.inference_mode()
def test_the_adapter_is_the_literal_one() -> None:
    adapter = scrambled(ForgeryAwareAdapter(32, 8, 8, 4))
    adapter.freq_scale.fill_(0.7)
    x = torch.randn(3, 17, 32)
    torch.testing.assert_close(adapter(x), literal_adapter(adapter, x), **CLOSE)


def test_a_fresh_adapter_has_no_frequency_part_and_none_for_the_class_token() -> None:
    adapter = ForgeryAwareAdapter(32, 8, 8, 4).eval()
    x = torch.randn(1, 17, 32)
    with torch.no_grad():
        spatial = adapter(x)
        adapter.freq_scale.fill_(1.0)
        difference = adapter(x) - spatial
    assert difference[:, 0].abs().max() == 0
    assert difference[:, 1:].abs().min() > 0


def literal_cross(layer: CrossLayer, query: Tensor, memory: Tensor) -> Tensor:
    x = layer.norm1(query + twin(layer.attention, query.shape[-1])(query, memory, memory)[0])
    return layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))


# --- text


def test_the_prompt_ends_where_clips_tokenizer_says() -> None:
    prompts = [" ".join(["X"] * Config().prompt_tokens) + f" {word}." for word in ("real", "fake")]
    tokens = open_clip.tokenize(prompts, context_length=Config().context)
    assert tokens.argmax(dim=1).tolist() == [Config().end_of_text] * 2 == [11, 11]  # end of text has the highest id


@torch.inference_mode()
def test_leaving_out_the_tokens_after_the_end_changes_nothing() -> None:
    encoder = scrambled(TextEncoder(TINY))
    prompts = torch.randn(4, TINY.context, TINY.text_width)
    x = prompts + encoder.positional_embedding
    mask = nn.Transformer.generate_square_subsequent_mask(TINY.context)
    for block in encoder.transformer.resblocks:
        x = literal_block(block, x, mask)
    expected = encoder.ln_final(x)[:, 11] @ encoder.text_projection
    torch.testing.assert_close(encoder(prompts), expected, **CLOSE)


@torch.inference_mode()
def test_prompts_hold_prefix_conditioned_context_and_suffix() -> None:
    learner = scrambled(PromptLearner(TINY))
    tokens = torch.randn(3, 17, TINY.text_width)
    prompts = learner(tokens)
    assert prompts.shape == (3, 2, 77, TINY.text_width)
    for image in range(3):
        context = literal_cross(learner.enhancer, learner.ctx[None], tokens[image, None])[0]
        for label in range(2):
            expected = torch.cat([learner.token_prefix[label], context, learner.token_suffix[label]])
            torch.testing.assert_close(prompts[image, label], expected, **CLOSE)


# --- the whole network


@torch.inference_mode()
def test_logits_are_the_sum_of_both_similarities() -> None:
    network = scrambled(FatFormer(TINY))
    image = torch.randn(1, 3, 224, 224)
    tower = network.image_encoder
    patches = [
        (tower.conv1.weight * image[0, :, i : i + 56, j : j + 56]).sum((1, 2, 3))
        for i in range(0, 224, 56)
        for j in range(0, 224, 56)
    ]
    x = torch.stack([tower.class_embedding, *patches])[None] + tower.positional_embedding
    x = tower.ln_pre(x)
    for block in tower.transformer.resblocks:
        x = literal_block(block, x)
    tokens = tower.ln_post(x) @ tower.proj
    text = network.text_encoder(network.language_guided_alignment(tokens)[0])
    guided = literal_cross(network.text_guided_interactor, tokens[:, 1:], text[None])[0].mean(0)
    expected = [
        math.exp(network.logit_scale)
        * (torch.cosine_similarity(tokens[0, 0], each, dim=0) + torch.cosine_similarity(guided, each, dim=0))
        for each in text
    ]
    torch.testing.assert_close(network(image)[0], torch.stack(expected), rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_a_batch_gives_what_single_images_give() -> None:
    network = scrambled(FatFormer(TINY))
    images = torch.randn(3, 3, 224, 224)
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]), **CLOSE)


@torch.inference_mode()
def test_half_precision_stays_near() -> None:
    network = scrambled(FatFormer(TINY))
    images = torch.randn(2, 3, 224, 224)
    full = network(images).softmax(1)
    half = network.to(torch.bfloat16)(images.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.softmax(1), full, rtol=0, atol=0.1)


# --- the published checkpoint


def test_the_published_layout_has_the_published_counts() -> None:
    layout = official_layout(Config())
    assert len(layout) == 1116
    for prefix, count in (("clip_model.", 545), ("image_encoder.", 395), ("text_encoder.", 148)):
        assert sum(key.startswith(prefix) for key in layout) == count
    assert sum("resblocks.7.forgery_aware_adapter." in key for key in layout) == 2 * 33
    with torch.device("meta"):
        network = FatFormer()
    assert sum(
        p.numel() for p in network.image_encoder.transformer.resblocks[7].forgery_aware_adapter.parameters()
    ) == (16_930_881)
    adapted = {official_name(key) for key in layout} - {None}
    assert adapted == network.state_dict().keys()


def loaded(state: Mapping[str, Tensor], config: Config = TINY) -> FatFormer:
    with torch.device("meta"):
        network = FatFormer(config)
    return load_into(network, state, rename=official_name)


@torch.inference_mode()
def test_one_copy_of_each_module_is_enough() -> None:
    state = official_state(TINY)
    minimal = {key: value for key, value in state.items() if not key.startswith("clip_model.")}
    clip_only = {key: value for key, value in state.items() if not key.startswith(("image_encoder.", "text_encoder."))}
    image = torch.randn(1, 3, 224, 224)
    expected = loaded(state)(image)
    assert torch.equal(loaded(minimal)(image), expected)
    assert torch.equal(loaded(clip_only)(image), expected)


def test_a_checkpoint_of_another_architecture_is_refused_by_name() -> None:
    more_adapters = official_state(replace(TINY, adapters=(0, 1, 2)))
    with pytest.raises(WeightsMismatch, match=r"unexpected: image_encoder\.transformer\.resblocks\.1\.forgery_aware"):
        loaded(more_adapters)
    state = official_state(TINY)
    del state["linear1.weight"]
    with pytest.raises(WeightsMismatch, match=r"1 missing: text_guided_interactor\.linear1\.weight$"):
        loaded(state)
    state = official_state(TINY) | {"language_guided_alignment.ctx": torch.ones(16, TINY.text_width)}
    with pytest.raises(WeightsMismatch, match=r"another shape: language_guided_alignment\.ctx \(file \(16, 24\)"):
        loaded(state)


def test_aliases_that_differ_in_shape_are_refused() -> None:
    state = official_state(TINY) | {"image_encoder.proj": torch.ones(3, 3)}
    with pytest.raises(WeightsMismatch, match=r"image_encoder\.proj"):
        loaded(state)
