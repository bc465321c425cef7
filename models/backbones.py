"""The frozen backbones that heads are trained on: one record each in backbones.toml.

Reading them loads no network; models/backbone_nets.py builds what they name. Knows nothing of files: a backbone's card
has its name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import BadSettings

RECORDS = Path(__file__).with_name("backbones.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """What is known of one backbone beside its card."""

    name: str
    detector: str  # of inference.registry: whose head looks at it
    library: str  # graph (the tower that ships) | open_clip | timm | transformers
    architecture: str  # the library's own name of it
    parameters: int
    tokens: int  # of one view
    side: int = 224  # px of a view
    resize: int = 0  # px of the shorter side before the central square is cut; 0: ``side``
    fit: str = "crop"  # crop: the central square; squash: the whole image, its aspect ratio not kept
    interpolation: str = "bicubic"
    statistics: str = "imagenet"  # imagenet | clip | half (mean and deviation .5) | none: the network normalises
    native: bool = False  # of a large image five crops of native pixels are looked at besides
    sizes: Mapping[str, Any] = field(default_factory=dict)  # and the like, where they are not the architecture's own

    @property
    def operations(self) -> float:
        """Multiplications and additions for one view, about: two for each weight and token."""
        return 2.0 * self.parameters * self.tokens

    @property
    def embedding(self) -> str:
        """What an embedding of it is. Heads name it: change the text whenever the numbers change."""
        if self.library == "graph":
            return "1: class tokens after blocks 7 to 12; 224 px centre"
        if self.native:
            shown = "256/224 centre, five native 224 crops"
            return f"1: mean over views of [CLS, mean of patches] after the last norm; {shown}"
        return f"1: [summary, mean of patches] after the last norm; {self.side} px {self.fit}, {self.interpolation}"


@cache
def backbones() -> dict[str, Backbone]:
    """Every record by name, in the order of the file."""
    stored = tomllib.loads(RECORDS.read_text(encoding="utf-8"))
    return {name: Backbone(name=name, **values) for name, values in stored.items()}


def backbone(name: str) -> Backbone:
    """
    Raises:
        BadSettings: no such backbone; the message has the nearest name.
    """
    if name not in backbones():
        near = difflib.get_close_matches(name, backbones(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(backbones())}"
        raise BadSettings(f"no backbone {name!r}; {hint}")
    return backbones()[name]
