"""Train the head of clip_b16: python -m training.train_clip_b16 --dataset dataset.csv --out FOLDER --cache FOLDER

The tower stays as OpenAI published it; only the head on its class tokens is learnt. Rows of split train make it, seen
under random deliveries that do not depend on the label; blocks, strength and temperature are chosen by
cross-validation over their sources. Rows of split val only measure it. The same data set and seed give the same head.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from inference.clip_b16 import load_tower, view
from models.loaders import Weights
from training.clip_head import (
    BLOCK_SETS,
    STRENGTHS,
    Examples,
    Head,
    Recipe,
    balanced,
    fit_head,
    held_out,
    loss_of,
    temperature_of,
    together,
)
from training.clip_tokens import Look, View, tokens_of
from training.detectors import measure
from training.loop import Picture, read_datasets, some_of_each
from utils.deliveries import DELIVERIES
from utils.exits import Exit, command, command_parser
from utils.persistence import record_file
from utils.settings import load_settings

FILE = "head.safetensors"
COMMAND = "python -m training.train_clip_b16"
PER_SOURCE = 16  # images of one source and label: more of the same taught a linear head nothing (docs/LOG.md)
DELIVERED = 2  # random deliveries of each training image
PAIRS_SHARE = 0.375  # of the main examples' weight


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, and how well heads made by it judge sources that they did not see."""

    recipe: Recipe
    temperature: float
    loss: float  # nats, after the temperature


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(COMMAND, __doc__)
    columns = "CSV: filepath,label,source[,split,content]"
    parser.add_argument("--dataset", type=Path, nargs="+", required=True, help=columns)
    parser.add_argument("--pairs", type=Path, nargs="*", default=(), help="likewise, of training.reconstruct")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head, its card and its metrics")
    parser.add_argument("--cache", type=Path, required=True, help="folder for tokens, 18 kB per view")
    parser.add_argument("--jobs", type=int, default=2, help="processes that look at images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    tower = Weights.at(load_settings().models.weights_dir).card("clip_b16").sha256
    found = read_datasets(arguments.dataset)
    training = some_of_each([each for each in found if each.split == "train"], PER_SOURCE)
    drawn = [f"random{number}" for number in range(1, DELIVERED + 1)]
    folder = arguments.cache / tower[:12]
    examples = examples_of(look_at(training, drawn, folder, arguments))
    if arguments.pairs:
        pairs = [each for each in read_datasets(arguments.pairs) if each.split == "train"]
        examples = together(examples, examples_of(look_at(pairs, drawn, folder, arguments)), PAIRS_SHARE)

    choices = [tried(examples, Recipe(*each), arguments.seed) for each in product(BLOCK_SETS, STRENGTHS)]
    best = min(choices, key=lambda each: each.loss)
    head = fit_head(examples, best.recipe).divided(best.temperature)
    validation = look_at([each for each in found if each.split == "val"], DELIVERIES, folder, arguments)
    metrics = {
        "chosen": _row(best),
        "tried": [_row(each) for each in choices],
        "validation": measured(head, validation),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    print(json.dumps(metrics, indent=1))
    path: Path = arguments.out / FILE
    metadata = {"tower": tower, "blocks": best.recipe.blocks, "temperature": f"{best.temperature:.4f}"}
    save_file({"weight": head.weight, "bias": np.array([head.bias], np.float32)}, path, metadata)
    record_file(arguments.out, "head", FILE, licence="MIT", commercial=True, train=COMMAND)


# --- what is looked at

Sights: TypeAlias = Sequence[tuple[Picture, Mapping[str, NDArray[np.float16]]]]  # each picture's tokens by delivery


def look_at(
    pictures: Sequence[Picture], deliveries: Sequence[str], folder: Path, arguments: argparse.Namespace
) -> Sights:
    """The pictures that can be read, and what the tower sees in them."""
    views = {each: [View(each.path, name, arguments.seed) for name in deliveries] for each in pictures}
    found = tokens_of(list(chain.from_iterable(views.values())), folder, looker, arguments.jobs)
    return [
        (picture, {view.delivery: found[view] for view in own}) for picture, own in views.items() if own[0] in found
    ]


def looker() -> Look:
    """The installed tower on the detector's view of an image."""
    tower = load_tower(Weights.at(load_settings().models.weights_dir))
    return lambda upright: tower(view(upright)[np.newaxis])[0]


def examples_of(sights: Sights) -> Examples:
    rows = [(tokens, picture) for picture, by_delivery in sights for tokens in by_delivery.values()]
    return balanced(
        np.stack([tokens for tokens, _ in rows]),
        np.array([picture.label for _, picture in rows], np.int64),
        np.array([picture.source for _, picture in rows]),
    )


# --- choosing and measuring


def tried(examples: Examples, recipe: Recipe, seed: int) -> Choice:
    log_odds = held_out(examples, recipe, seed)
    temperature = temperature_of(log_odds, examples)
    return Choice(recipe, temperature, loss_of(log_odds / temperature, examples))


def measured(head: Head, sights: Sights) -> Mapping[str, Mapping[str, list[float]]]:
    """Metrics by delivery, over all pictures and over those of each content; empty without pictures of both labels."""
    pictures = [picture for picture, _ in sights]
    if len({each.label for each in pictures}) < 2:
        return {}
    logits = {name: head.log_odds(np.stack([tokens[name] for _, tokens in sights])) for name in DELIVERIES}
    return measure(logits, pictures, temperature=1.0)


def _row(choice: Choice) -> Mapping[str, object]:
    return {
        "blocks": choice.recipe.blocks,
        "strength": choice.recipe.strength,
        "temperature": round(choice.temperature, 4),
        "log loss": round(choice.loss, 5),
    }


if __name__ == "__main__":
    sys.exit(main())
