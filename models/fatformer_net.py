"""FatFormer: CLIP ViT-L/14 with forgery-aware adapters and language-guided alignment.

Paper:    Liu et al., "Forgery-aware Adaptive Transformer for Generalizable Synthetic Image Detection", CVPR 2024,
          arXiv 2312.16649; CLIP: Radford et al. 2021
Upstream: github.com/Michel-liu/FatFormer@febc24c (Apache-2.0); ``official_name`` maps its checkpoint's keys to ours
Differs:  batch-first; the text encoder sees only the tokens up to the end-of-text one (its attention is causal, so the
          result is the same at a sixth of the cost); Haar filters are written out instead of stored

Knows nothing of images, files or devices. Shapes in comments: b images, n tokens, d channels, m prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes; the defaults are the published network's."""

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    adapters: tuple[int, ...] = (7, 15, 23)  # blocks that carry one: the last of each third
    adapter_hidden: int = 64
    band_heads: int = 8
    text_width: int = 768  # also the width of the space shared by image and text
    text_layers: int = 12
    text_heads: int = 12
    context: int = 77
    prompt_tokens: int = 8  # learned ones, in place of words

    @property
    def side(self) -> int:
        """Patches per side; even, because one Haar level halves it."""
        return self.image_size // self.patch

    @property
    def end_of_text(self) -> int:
        """Where the prompt ``<start> V1..V8 <class> . <end>`` ends; CLIP reads a text's feature there."""
        return self.prompt_tokens + 3


TINY = Config(
    patch=56, width=32, layers=3, heads=4, adapters=(0, 2), adapter_hidden=8, text_width=24, text_layers=2, text_heads=3
)


class Attention(nn.Module):
    """Multi-head attention under the parameter names of ``torch.nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor | None = None, causal: bool = False) -> Tensor:
        """(b, n, d) attends to itself, or to ``memory`` (b, k, d)."""
        if memory is None:
            q, k, v = functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            split = len(self.in_proj_weight) // 3
            q = functional.linear(query, self.in_proj_weight[:split], self.in_proj_bias[:split])
            k, v = functional.linear(memory, self.in_proj_weight[split:], self.in_proj_bias[split:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # b n d -> b heads n d/heads
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """CLIP's sigmoid approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """CLIP's pre-norm transformer block; an adapter runs beside the MLP, on the un-normalised stream."""

    def __init__(self, width: int, heads: int, adapter: nn.Module | None = None, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.forgery_aware_adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal=self.causal)
        y = x + self.mlp(self.ln_2(x))
        return y if self.forgery_aware_adapter is None else y + self.forgery_aware_adapter(x)


class Transformer(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


def haar(x: Tensor) -> Tensor:
    """One level of the orthonormal 2-D Haar transform.

    (b, d, h, w), h and w even -> (b, d, 4, h/2, w/2): both low, then high along height, along width, along both.
    """
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2


def inverse_haar(bands: Tensor) -> Tensor:
    """(b, d, 4, h, w) -> (b, d, 2h, 2w), the inverse of ``haar``."""
    low, h, w, hw = bands.unbind(2)
    top = torch.stack([low + h + w + hw, low + h - w - hw], dim=-1)  # the pixels of even rows, column pairs last
    bottom = torch.stack([low - h + w - hw, low - h - w + hw], dim=-1)
    return torch.stack([top.flatten(-2), bottom.flatten(-2)], dim=-2).flatten(-3, -2) / 2


class ForgeryAwareAdapter(nn.Module):
    """Section 3.2: a bottleneck over all tokens, plus attention within and between Haar bands of the patch grid."""

    IMAGE_SCALE = 0.1  # a constant in the published code

    def __init__(self, width: int, hidden: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first_conv_layer = nn.Conv1d(width, hidden, 1)
        self.second_conv_layer = nn.Conv1d(hidden, width, 1)
        self.dwt_norm = nn.GroupNorm(width // 8, width)
        # The published names of the two attentions are exchanged: "intra" runs across the four bands of one position,
        # "inter" across the positions of one band. Names and shapes of the checkpoint are kept.
        self.intra_band = Attention(width, heads)
        self.norm_intra = nn.LayerNorm(width)
        self.inter_band = Attention(width, heads)
        self.norm_inter = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm3 = nn.LayerNorm(width)
        self.freq_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1 + patches, d) -> the same shape, to be added; the class token has no frequency part."""
        image = self.second_conv_layer(functional.relu(self.first_conv_layer(x.mT))).mT * self.IMAGE_SCALE
        frequency = functional.pad(self.frequency(x[:, 1:]), (0, 0, 1, 0))
        return image + self.freq_scale * frequency

    def frequency(self, patches: Tensor) -> Tensor:
        """(b, patches, d) -> the same shape."""
        batch, _, width = patches.shape
        grid = patches.mT.unflatten(-1, (self.side, self.side))  # b d side side
        x = self.dwt_norm(haar(grid).flatten(-2)).permute(0, 3, 2, 1)  # b positions 4 d
        x = x.flatten(0, 1)
        x = self.norm_intra(x + self.intra_band(x))
        x = x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)  # b*4 positions d
        x = self.norm_inter(x + self.inter_band(x))
        x = self.norm3(x + self.linear2(functional.relu(self.linear1(x))))
        half = self.side // 2
        bands = x.view(batch, 4, half, half, width).permute(0, 4, 1, 2, 3)
        return inverse_haar(bands).flatten(2).mT


class ImageEncoder(nn.Module):
    """CLIP's vision tower with adapters; returns every token projected into the shared space."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, scale = config.width, config.width**-0.5
        self.class_embedding = nn.Parameter(torch.randn(width) * scale)
        self.positional_embedding = nn.Parameter(torch.randn(config.side**2 + 1, width) * scale)
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        adapters = {
            index: ForgeryAwareAdapter(width, config.adapter_hidden, config.band_heads, config.side)
            for index in config.adapters
        }
        self.transformer = Transformer(*(Block(width, config.heads, adapters.get(i)) for i in range(config.layers)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.text_width) * scale)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, image_size, image_size) -> (b, 1 + patches, text_width)."""
        patches = self.conv1(images).flatten(2).mT
        first = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)) @ self.proj


class TextEncoder(nn.Module):
    """CLIP's text tower, from token embeddings on."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, scale = config.text_width, config.text_width**-0.5
        self.end = config.end_of_text
        self.positional_embedding = nn.Parameter(torch.randn(config.context, width) * scale)
        self.transformer = Transformer(
            *(Block(width, config.text_heads, causal=True) for _ in range(config.text_layers))
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width) * scale)

    def forward(self, prompts: Tensor) -> Tensor:
        """(m, context, text_width) -> (m, text_width); tokens after the end cannot influence it and are left out."""
        x = prompts[:, : self.end + 1] + self.positional_embedding[: self.end + 1]
        return self.ln_final(self.transformer(x))[:, self.end] @ self.text_projection


class CrossLayer(nn.Module):
    """Post-norm transformer layer whose attention looks at a memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(query + self.attention(query, memory))
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))


class PromptLearner(nn.Module):
    """Section 3.3: learned context tokens, conditioned on the image's tokens, inside the prompts of both classes.

    ``token_prefix`` and ``token_suffix`` are CLIP's embeddings of the fixed tokens, so no tokenizer is needed.
    """

    token_prefix: Tensor
    token_suffix: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, suffix = config.text_width, config.context - 1 - config.prompt_tokens
        self.ctx = nn.Parameter(torch.randn(config.prompt_tokens, width) * 0.02)
        self.register_buffer("token_prefix", torch.randn(2, 1, width) * 0.02)
        self.register_buffer("token_suffix", torch.randn(2, suffix, width) * 0.02)
        self.enhancer = CrossLayer(width, config.text_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, 1 + patches, text_width) -> prompts (b, 2, context, text_width), class 0 real, class 1 fake."""
        batch = len(tokens)
        learned = self.enhancer(self.ctx.expand(batch, -1, -1), tokens)
        parts = (
            self.token_prefix.expand(batch, -1, -1, -1),
            learned[:, None].expand(-1, 2, -1, -1),
            self.token_suffix.expand(batch, -1, -1, -1),
        )
        return torch.cat(parts, dim=2)


class FatFormer(nn.Module):
    """The whole network: images to two logits, real and fake."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        config = config or Config()
        self.image_encoder = ImageEncoder(config)
        self.language_guided_alignment = PromptLearner(config)
        self.text_encoder = TextEncoder(config)
        self.text_guided_interactor = CrossLayer(config.text_width, config.text_heads)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07), CLIP's start

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, 224, 224), ImageNet-normalised -> logits (b, 2), float32: [real, fake]."""
        tokens = self.image_encoder(images)
        prompts = self.language_guided_alignment(tokens)
        text = self.text_encoder(prompts.flatten(0, 1)).unflatten(0, (-1, 2))  # b 2 d
        guided = self.text_guided_interactor(tokens[:, 1:], text).mean(dim=1)
        # Both image features against both text features, Eq. 1 and Eq. 9; in float32, for the scale is about 100.
        image = functional.normalize(tokens[:, 0].float(), dim=-1) + functional.normalize(guided.float(), dim=-1)
        similarity = torch.einsum("bd,bcd->bc", image, functional.normalize(text.float(), dim=-1))
        return self.logit_scale.float().exp() * similarity


# The published checkpoint stores several modules under two prefixes, and the whole of CLIP. First match decides.
_OFFICIAL_PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("clip_model.token_embedding.", None),  # the prompts' embeddings are stored; no word is looked up
    ("clip_model.visual.", "image_encoder."),
    ("clip_model.logit_scale", "logit_scale"),
    ("clip_model.", "text_encoder."),
    ("language_guided_alignment.patch_basaed_enhancer.", "language_guided_alignment.enhancer.attention."),
    ("language_guided_alignment.norm", "language_guided_alignment.enhancer.norm"),
    ("language_guided_alignment.linear", "language_guided_alignment.enhancer.linear"),
    ("text_guided_interactor.", "text_guided_interactor.attention."),
    ("norm", "text_guided_interactor.norm"),
    ("linear", "text_guided_interactor.linear"),
)


def official_name(key: str) -> str | None:
    """Key of the published checkpoint -> ours; None for what we do not need (word embeddings, stored Haar filters)."""
    if ".dwt_transform." in key or ".idwt_transform." in key:
        return None
    for prefix, ours in _OFFICIAL_PREFIXES:
        if key.startswith(prefix):
            return None if ours is None else ours + key.removeprefix(prefix)
    return key
