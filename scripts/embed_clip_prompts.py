"""Compute the text embeddings of a CLIP detector, once: python -m scripts.embed_clip_prompts clip_h14

Reads models/prompts.toml and the text tower of the installed checkpoint. What scripts.fit_clip_prompts fitted before is
replaced by the zero-shot classifier.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from inference.clip_models import CLIP_DETECTORS, Prompts
from models.loaders import Weights
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.embed_clip_prompts", __doc__)
    parser.add_argument("names", nargs="+", choices=tuple(CLIP_DETECTORS), help="detectors")
    arguments = parser.parse_args(argv)
    folder = load_settings().models.weights_dir
    for name in arguments.names:
        _embed(name, folder)
    return Exit.DONE


def _embed(name: str, folder: Path) -> None:
    prompts = Prompts.read()
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=len(prompts.real) + len(prompts.generated))
        detector = CLIP_DETECTORS[name]
        text = detector.embed_prompts(Weights.at(folder), prompts, lambda done: progress.update(bar, completed=done))
    card = detector.text_card()
    path = text.install(card, folder)
    print(f"{card}: {len(text.real)} real and {len(text.generated)} generated prompts; fitted on {text.fitted}; {path}")


if __name__ == "__main__":
    sys.exit(main())
