"""Train the head of clip_b16: python -m training.train_clip_b16 --dataset dataset.csv --out FOLDER --cache FOLDER

The tower stays as OpenAI published it; only the head on its class tokens is learnt, from every source of the data set:
sources are what it lacks. Images are seen under random deliveries that do not depend on the label. The penalty
and the temperature are chosen by cross-validation over groups of the sources of splits train and fusion. Rows of split val
measure the recipe: each is scored by the head of the cross-validation that saw nothing of its group. --hold-out val
keeps that split out of the head altogether, for what only the whole product can measure. The same data set and seed
give the same head.

OUT/teacher.csv is the data set with these scores in a column teacher, for the training of a smaller detector.

--table fills clip_b16_prob into a feature table, so that fusion can be trained without a second run of the tower: every
row by a head that saw nothing of its group.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from inference.clip_b16 import load_tower, view
from inference.graphs import sigmoid
from models.loaders import Weights
from training.clip_head import (
    INVARIANCE,
    LOOKED_AT,
    STRENGTHS,
    CrossFit,
    Examples,
    Head,
    Points,
    Recipe,
    Tokens,
    balanced,
    cross_fit,
    loss_of,
    temperature_of,
)
from training.clip_tokens import PAIR, Look, View, tokens_of
from training.datasets import LABELS
from training.detectors import measure
from training.extraction import Key, fill, read_keys
from training.loop import Picture, read_datasets, some_of_each
from utils.deliveries import DELIVERIES
from utils.exits import Exit, command, command_parser
from utils.persistence import record_file, save_arrays, sha256_file
from utils.settings import load_settings

FILE = "head.safetensors"
COMMAND = "python -m training.train_clip_b16"
VALIDATION = "val"  # the split that no choice looks at
PER_SOURCE = 8  # images of one source and label: from 4 to 8 AUROC rose by .02; what 16 would add was not tried
DELIVERED = 1  # random deliveries of each training image: a second one added nothing, another image does
MEASURED = 4  # images of one source and label that measure it, each under every fixed delivery


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, and how well heads made by it judge sources that they did not see."""

    recipe: Recipe
    held_out: CrossFit
    temperature: float
    loss: float  # nats, after the temperature


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores each view by a head that did not see its group: one of the cross-validation, or the final one."""

    final: Head
    choice: Choice

    def __call__(self, tokens: Tokens, group: str) -> FloatArray:
        """(n, blocks, width) of one group -> n log-odds."""
        if group not in self.choice.held_out.fold_of:
            return self.final.log_odds(tokens)
        return self.choice.held_out.log_odds(tokens, np.full(len(tokens), group)) / self.choice.temperature


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(COMMAND, __doc__)
    columns = "CSV: filepath,label,source[,split,content]"
    parser.add_argument("--dataset", type=Path, nargs="+", required=True, help=columns)
    parser.add_argument("--hold-out", choices=[VALIDATION], help="a split that teaches the head nothing")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head, its card and its metrics")
    parser.add_argument("--cache", type=Path, required=True, help="folder for tokens, 18 kB per view")
    parser.add_argument("--table", type=Path, help="of scripts.extract_features: its column clip_b16_prob is filled")
    parser.add_argument("--jobs", type=int, default=2, help="processes that look at images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    tower = Weights.at(load_settings().models.weights_dir).card("clip_b16").sha256
    found = read_datasets(arguments.dataset)
    looked_at = some_of_each(found, PER_SOURCE)
    teaching = [each for each in looked_at if each.split != arguments.hold_out]
    drawn = [f"random{number}" for number in range(1, DELIVERED + 1)]
    folder = arguments.cache / tower[:12]
    taught = look_at(teaching, drawn, folder, arguments)
    examples = examples_of(taught)
    pairs = pairs_of(look_at(some_of_each(teaching, 1), PAIR, folder, arguments))
    chooses = np.array([picture.split != VALIDATION for picture, by_delivery in taught for _ in by_delivery])

    points = Points(examples, LOOKED_AT, pairs)
    recipes = (Recipe(LOOKED_AT, strength, INVARIANCE) for strength in STRENGTHS)
    choices = [tried(points, chooses, each, arguments.seed) for each in recipes]
    best = min(choices, key=lambda each: each.loss)
    head = points.fit(np.ones(len(examples), np.bool_), best.recipe).divided(best.temperature)
    score = Scorer(head, best)
    measuring = [each for each in some_of_each(found, MEASURED) if each.split == VALIDATION]
    validation = look_at(measuring, DELIVERIES, folder, arguments)
    metrics = {
        "sources": len({each.source for each in teaching}),
        "chosen": _row(best),
        "tried": [_row(each) for each in choices],
        "validation": measured(score, validation),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_teacher(arguments.out / "teacher.csv", found, score, taught)
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    print(json.dumps(metrics, indent=1))
    path: Path = arguments.out / FILE
    metadata = {"tower": tower, "blocks": best.recipe.blocks, "temperature": f"{best.temperature:.4f}"}
    save_arrays(path, {"weight": head.weight, "bias": np.array([head.bias], np.float32)}, metadata)
    record_file(arguments.out, "head", FILE, licence="MIT", commercial=True, train=COMMAND)
    if arguments.table:
        filled = probabilities(arguments.table, found, score, folder, arguments)
        others = further_rows(arguments.table, taught, score, arguments.dataset[0].parent)
        fill(arguments.table, "clip_b16_prob", filled, others, f"clip_b16_head@sha256:{sha256_file(path)[:12]}")


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
        np.array([picture.group for _, picture in rows]),
    )


def pairs_of(sights: Sights) -> Tokens:
    """What one JPEG generation moves, of one image of each source: (m, 2, blocks, width)."""
    return np.stack([np.stack([by_delivery[name] for name in PAIR]) for _, by_delivery in sights])


# --- choosing and measuring


def tried(points: Points, chooses: NDArray[np.bool_], recipe: Recipe, seed: int) -> Choice:
    """How well a recipe does out of fold on the examples that may choose it."""
    held_out = cross_fit(points, recipe, seed)
    examples = points.examples.rows(chooses)
    log_odds = held_out.log_odds(examples.tokens, examples.groups)
    temperature = temperature_of(log_odds, examples)
    return Choice(recipe, held_out, temperature, loss_of(log_odds / temperature, examples))


def measured(score: Scorer, sights: Sights) -> Mapping[str, Mapping[str, list[float]]]:
    """Metrics by delivery, over all pictures and over those of each content; empty without pictures of both labels."""
    pictures = [picture for picture, _ in sights]
    if len({each.label for each in pictures}) < 2:
        return {}
    logits = {
        name: np.concatenate([score(tokens[name][np.newaxis], picture.group) for picture, tokens in sights])
        for name in DELIVERIES
    }
    return measure(logits, pictures, temperature=1.0)


def write_teacher(path: Path, pictures: Sequence[Picture], score: Scorer, taught: Sights) -> None:
    """The data set, with the mean score of a head that did not see the group; empty where nothing was looked at."""
    scores = {
        picture.path: float(sigmoid(score(np.stack(list(tokens.values())), picture.group)).mean())
        for picture, tokens in taught
    }
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("filepath", "label", "source", "split", "content", "group", "teacher"))
        for each in pictures:
            about = (LABELS[each.label], each.source, each.split, each.content, each.group)
            writer.writerow((each.path.resolve(), *about, scores.get(each.path, "")))


def probabilities(
    table: Path, pictures: Sequence[Picture], score: Scorer, folder: Path, arguments: argparse.Namespace
) -> Mapping[Key, float]:
    """What the detector says of each row of a feature table; by a head that did not see it where there is one."""
    known = {each.path.resolve(): each for each in pictures}
    wanted: dict[tuple[str, ...], dict[Picture, str]] = {}
    for filepath, deliveries in read_keys(table).items():
        picture = known[(arguments.dataset[0].parent / filepath).resolve()]
        wanted.setdefault(deliveries, {})[picture] = filepath
    found: dict[Key, float] = {}
    for deliveries, rows in wanted.items():
        for picture, tokens in look_at(list(rows), deliveries, folder, arguments):
            for delivery, seen in tokens.items():
                found[rows[picture], delivery] = float(sigmoid(score(seen[np.newaxis], picture.group)[0]))
    return found


def further_rows(
    table: Path, taught: Sights, score: Scorer, folder: Path
) -> Mapping[Key, tuple[float, Mapping[str, str]]]:
    """Scores of held-out heads for what they were taught with and the table lacks: more sources to calibrate fusion on.

    These rows have no other number. Fusion copes with what is missing, and what counts is sources.
    """
    known = read_keys(table)
    found: dict[Key, tuple[float, Mapping[str, str]]] = {}
    for picture, tokens in taught:
        filepath = picture.path.relative_to(folder).as_posix()
        if filepath in known or picture.split == VALIDATION:
            continue
        about = {"label": LABELS[picture.label], "source": picture.source, "split": "fusion"}
        for delivery, seen in tokens.items():
            found[filepath, delivery] = float(sigmoid(score(seen[np.newaxis], picture.group)[0])), about
    return found


def _row(choice: Choice) -> Mapping[str, object]:
    return {
        "blocks": choice.recipe.blocks,
        "strength": choice.recipe.strength,
        "invariance": choice.recipe.invariance,
        "temperature": round(choice.temperature, 4),
        "log loss": round(choice.loss, 5),
    }


if __name__ == "__main__":
    sys.exit(main())
