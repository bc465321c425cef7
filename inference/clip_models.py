"""CLIP ViT-H/14 and ViT-bigG/14 against two sets of texts: zero-shot, or with the prompts fitted to labelled images.

Paper:      Cherti et al., CVPR 2023, arXiv 2212.07143 (OpenCLIP on LAION-2B); prompt ensembles: Radford et al. 2021
Upstream:   github.com/mlfoundations/open_clip (MIT); weights laion2b_s32b_b79k and laion2b_s39b_b160k (MIT)
Differs:    two classes of texts; their embeddings are computed once (scripts/embed_clip_prompts.py), so that only the
            vision tower is loaded to judge images
Limits:     CLIP learnt what pictures show and how people describe them; it hardly sees how pixels came about

Does not know how prompts are fitted.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from inference.base import TorchDetector
from inference.registry import DETECTORS
from inference.views import OPENAI_CLIP, centre_square, normalised
from models.loaders import Weights, load_into, record_card
from utils.contracts import Measurement, Sample
from utils.errors import BackboneMismatch, WeightsCorrupt, WeightsMismatch
from utils.persistence import sha256_file

SIDE = 224  # pixels, of the input of both networks
PROMPTS = Path(__file__).parents[1] / "models" / "prompts.toml"
TINY: Mapping[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts of both classes: each prompt in every template, k x templates."""

    real: tuple[tuple[str, ...], ...]
    generated: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, path: Path = PROMPTS) -> Prompts:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))

        def texts(prompts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
            return tuple(tuple(template.format(prompt) for template in stored["templates"]) for prompt in prompts)

        return cls(texts(stored["real"]), texts(stored["generated"]))

    @property
    def sha256(self) -> str:
        """Of the texts in their order; comments and layout of the file do not count."""
        return hashlib.sha256(json.dumps([self.real, self.generated]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class TextEmbeddings:
    """Both classes as directions in CLIP's space, and the line from their difference to log-odds."""

    real: Tensor  # k x d, one unit row per prompt (mean over its templates)
    generated: Tensor
    real_weights: Tensor  # k, summing to 1
    generated_weights: Tensor
    temperature: float
    bias: float
    checkpoint_sha256: str
    prompts_sha256: str
    fitted: str  # on what, in words

    @property
    def direction(self) -> Tensor:
        """(d,): the generated class minus the real one, each a unit vector."""
        return class_embedding(self.generated, self.generated_weights) - class_embedding(self.real, self.real_weights)

    def log_odds(self, features: Tensor) -> Tensor:
        """Unit image features (n, d) -> n, towards AI: temperature x (cos to generated - cos to real) + bias."""
        return self.temperature * (features @ self.direction) + self.bias

    def save(self, path: Path) -> None:
        names = ("real", "generated", "real_weights", "generated_weights")
        metadata = {
            "temperature": repr(self.temperature),
            "bias": repr(self.bias),
            "checkpoint_sha256": self.checkpoint_sha256,
            "prompts_sha256": self.prompts_sha256,
            "fitted": self.fitted,
        }
        save_file({name: getattr(self, name).contiguous() for name in names}, path, metadata)

    def install(self, card: str, folder: Path) -> Path:
        """Write the file of a card into a weights folder, and make it this installation's."""
        path = folder / f"{card}.safetensors"
        part = path.with_name(f"{path.name}.part")
        self.save(part)
        part.replace(path)
        record_card(card, {"file": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}, folder)
        return path

    @classmethod
    def load(cls, path: Path) -> TextEmbeddings:
        """Read a verified file.

        Raises:
            WeightsCorrupt: not such a file.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                return cls(
                    real=file.get_tensor("real"),
                    generated=file.get_tensor("generated"),
                    real_weights=file.get_tensor("real_weights"),
                    generated_weights=file.get_tensor("generated_weights"),
                    temperature=float(metadata["temperature"]),
                    bias=float(metadata["bias"]),
                    checkpoint_sha256=metadata["checkpoint_sha256"],
                    prompts_sha256=metadata["prompts_sha256"],
                    fitted=metadata["fitted"],
                )
        except (SafetensorError, KeyError, ValueError) as error:
            raise WeightsCorrupt(f"{path} is not a file of CLIP text embeddings: {error!r}") from error


def class_embedding(prompts: Tensor, weights: Tensor) -> Tensor:
    """Unit rows (k, d) and their weights (k,) -> (d,), the unit vector of their mean."""
    return functional.normalize(weights @ prompts, dim=-1)


class ClipDetector(TorchDetector):
    """The vision tower of one CLIP, and the stored text embeddings; subclasses name the network."""

    CONFIG: ClassVar[Mapping[str, Any]]  # of open_clip.CLIP

    def __init__(
        self,
        network: nn.Module,
        text: TextEmbeddings,
        version: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(network, version, device, dtype)
        self.text = text

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        """Load the vision tower and the text embeddings that belong to it.

        Raises:
            BackboneMismatch: the text embeddings are another checkpoint's.
            WeightsMismatch: they are of other prompts, or the checkpoint is another network's.
            WeightsMissing, WeightsCorrupt: see models.loaders; each names the command.
        """
        text = TextEmbeddings.load(weights.path(cls.text_card()))
        cls._check(text, weights)
        network = load_into(cls._empty().visual, weights.state(cls.name), rename=_vision_name, dtype=dtype)
        version = f"{weights.card(cls.name).version} with {weights.card(cls.text_card()).version}"
        return cls(network, text, version, device, dtype)

    @classmethod
    def _check(cls, text: TextEmbeddings, weights: Weights) -> None:
        again = f"run: {weights.card(cls.text_card()).command}"
        here = weights.card(cls.name).sha256
        if text.checkpoint_sha256 != here:
            raise BackboneMismatch(
                f"{cls.text_card()} was computed with the checkpoint with sha256 {text.checkpoint_sha256}, "
                f"here {cls.name} is the one with {here or 'unknown'}; {again}"
            )
        prompts = Prompts.read().sha256
        if text.prompts_sha256 != prompts:
            raise WeightsMismatch(
                f"{cls.text_card()} was computed from other prompts (sha256 {text.prompts_sha256}) than those of "
                f"{PROMPTS.name} ({prompts}); {again}"
            )

    @classmethod
    def text_card(cls) -> str:
        return f"{cls.name}_text"

    @classmethod
    def _empty(cls) -> open_clip.CLIP:
        """The whole network without storage: parameters on the meta device."""
        with torch.device("meta"):
            return open_clip.CLIP(**cls.CONFIG)

    @classmethod
    def text_tower(cls, weights: Weights) -> open_clip.CLIP:
        """CLIP without its vision tower, float32 on the CPU: for ``encode_text``."""
        clip = cls._empty()
        del clip.visual
        # Not part of checkpoints, and on the meta device it has no values: a token sees itself and those before it.
        mask = torch.full((clip.context_length, clip.context_length), -torch.inf).triu(1)
        clip.register_buffer("attn_mask", mask, persistent=False)
        return load_into(clip, weights.state(cls.name), rename=_text_name)

    @classmethod
    def embed_prompts(cls, weights: Weights, prompts: Prompts, done: Callable[[int], None]) -> TextEmbeddings:
        """Embed the texts with the checkpoint's text tower and tokenizer; ``done`` hears of each prompt.

        The result is CLIP's zero-shot classifier: every prompt weighs the same, and the temperature is the one that
        the network was trained with.
        """
        clip = cls.text_tower(weights)
        count = 0

        def embed(texts: tuple[str, ...]) -> Tensor:
            nonlocal count
            with torch.inference_mode():
                features = clip.encode_text(open_clip.tokenize(texts, clip.context_length), normalize=True)
            count += 1
            done(count)
            return functional.normalize(features.mean(dim=0), dim=-1)

        real, generated = (torch.stack([embed(texts) for texts in side]) for side in (prompts.real, prompts.generated))
        return TextEmbeddings(
            real=real,
            generated=generated,
            real_weights=torch.full((len(real),), 1 / len(real)),
            generated_weights=torch.full((len(generated),), 1 / len(generated)),
            temperature=float(clip.logit_scale.exp()),
            bias=0.0,
            checkpoint_sha256=weights.card(cls.name).sha256,
            prompts_sha256=prompts.sha256,
            fitted="no images: zero-shot",
        )

    @classmethod
    def tiny(cls) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = open_clip.CLIP(**TINY).visual.eval().requires_grad_(False)
            rows = functional.normalize(torch.randn(4, TINY["embed_dim"]), dim=-1)
        half = torch.full((2,), 0.5)
        return cls(network, TextEmbeddings(rows[:2], rows[2:], half, half, 10.0, 0.0, "", "", "nothing"), "tiny")

    def embed(self, sample: Sample) -> Tensor:
        """The unit image feature (d,) of one image: what prompts are fitted to."""
        return self._run(self.preprocess(sample))[0][0]

    def preprocess(self, sample: Sample) -> Tensor:
        return torch.from_numpy(normalised(centre_square(sample.upright, SIDE, SIDE), OPENAI_CLIP)).unsqueeze(0)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return (functional.normalize(self.network(views).float(), dim=-1),)

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        probability = float(self.text.log_odds(outputs[0].float()).sigmoid())
        return Measurement({f"{self.name}_prob": probability})


class ClipH14Detector(ClipDetector):
    """``clip_h14_prob``."""

    name: ClassVar[str] = "clip_h14"
    features: ClassVar[Mapping[str, str]] = DETECTORS["clip_h14"].features
    CONFIG: ClassVar[Mapping[str, Any]] = open_clip.get_model_config("ViT-H-14")


class ClipBigGDetector(ClipDetector):
    """``clip_bigg_prob``."""

    name: ClassVar[str] = "clip_bigg"
    features: ClassVar[Mapping[str, str]] = DETECTORS["clip_bigg"].features
    CONFIG: ClassVar[Mapping[str, Any]] = open_clip.get_model_config("ViT-bigG-14")


CLIP_DETECTORS: Mapping[str, type[ClipDetector]] = {each.name: each for each in (ClipH14Detector, ClipBigGDetector)}


def _vision_name(key: str) -> str | None:
    return key.removeprefix("visual.") if key.startswith("visual.") else None


def _text_name(key: str) -> str | None:
    return None if key.startswith("visual.") else key
