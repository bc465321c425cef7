"""Train the head of clip_b16: python -m training.train_clip_b16 --dataset dataset.csv --out FOLDER --cache FOLDER

The tower stays as OpenAI published it; only heads on its class tokens are learnt, from every source of the data set:
sources are what it lacks. Images are seen under random deliveries that do not depend on the label. The penalty and the
temperature are chosen by cross-validation over groups of the sources of splits train and fusion. Rows of split val
measure the recipe: each is scored by the head of the cross-validation that saw nothing of its group. --hold-out val
keeps that split out of the heads altogether, for what only the whole product can measure. The same data set and seed
give the same heads.

Where the data set names kinds of images and families of generators, two further heads tell these apart, likewise.

OUT/teacher.csv is the data set with these scores in a column teacher, for the training of a smaller detector.

training/tables/tokens holds what the shipped head was taught with: with --tokens, and the CSV beside it as data
set, it is trained anew without an image. --keep adds a shard for what is new.

--table fills the detector's features into a feature table, so that fusion can be trained without a second run of the
tower: every row by heads that saw nothing of its group.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.estimators import FloatArray
from fusion.reference import KINDS, kind_feature
from inference.clip_b16 import load_tower, view
from inference.graphs import sigmoid
from inference.similarity_head import SimilarityHead
from inference.views import OPENAI_CLIP, normalised
from models.clip_tower import class_tokens, clip_tower
from models.loaders import Weights
from models.quantised import load_quantised
from training.clip_classes import FEWEST_GROUPS, ClassFit, choose_cut, fit_classes, names_of_strangers
from training.clip_head import (
    BLOCK_SETS,
    LOOKED_AT,
    RIDGES,
    CrossFit,
    Examples,
    Points,
    Recipe,
    Tokens,
    balanced,
    cross_fit,
    loss_of,
    temperature_of,
)
from training.clip_tokens import PAIRS, Look, View, tokens_of
from training.datasets import LABELS, write_rows
from training.deliveries import TAUGHT
from training.detectors import measure
from training.extraction import Key, fill, read_keys
from training.feature_table import NameArray, source_weights
from training.loop import Picture, read_datasets, some_of_each
from training.token_shards import read_shards, write_shard
from utils.contracts import Json, RgbArray
from utils.deliveries import DELIVERIES, FIXED
from utils.errors import TableError
from utils.exits import Exit, command, command_parser
from utils.persistence import record_file, save_arrays, sha256_file
from utils.settings import load_settings

FILE = "head.safetensors"
LIST = "images.csv"  # a data set of what was looked at, for whoever has the tokens and not the images
COMMAND = "python -m training.train_clip_b16"
VALIDATION = "val"  # the split that no choice looks at
PER_SOURCE = 16  # images of one source and label: from 8 to 16 AUROC rose by .005 to .009; what 24 add was not tried
SCREENS = ("screenshot", "document", "poster")  # kinds of the vocabulary that show text and flat areas
NO_FAMILY = ("", "mixed", "unknown", "local")  # families of the vocabulary that name no one generator
DELIVERED = 1  # random deliveries of each training image: a second one added nothing, another image does
MEASURED = 4  # images of one source and label that measure it or calibrate, each under several deliveries


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

    final: SimilarityHead
    choice: Choice

    def __call__(self, tokens: Tokens, group: str) -> FloatArray:
        """(n, blocks, width) of one group -> n log-odds."""
        if group not in self.choice.held_out.fold_of:
            return self.final.log_odds(tokens)
        return self.choice.held_out.log_odds(tokens, np.full(len(tokens), group)) / self.choice.temperature


@dataclass(frozen=True, slots=True)
class Features:
    """What the detector says of an image, by heads that did not see its group."""

    score: Scorer
    kinds: ClassFit | None

    def __call__(self, tokens: NDArray[np.float16], group: str) -> dict[str, float]:
        """(blocks, width) -> number by name of the feature."""
        found = {"clip_b16_prob": float(sigmoid(self.score(tokens[np.newaxis], group)[0]))}
        if self.kinds:
            shares = self.kinds.probabilities(tokens[np.newaxis], group)[0]
            found |= {kind_feature(name): float(share) for name, share in zip(self.kinds.names, shares, strict=True)}
        return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(COMMAND, __doc__)
    columns = "CSV: filepath,label,source[,split,content,kind,family]"
    parser.add_argument("--dataset", type=Path, nargs="+", required=True, help=columns)
    parser.add_argument("--hold-out", choices=[VALIDATION], help="a split that teaches the head nothing")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head, its card and its metrics")
    parser.add_argument("--cache", type=Path, required=True, help="folder for tokens, 18 kB per view")
    parser.add_argument("--table", type=Path, help="of scripts.extract_features: the detector's columns are filled")
    parser.add_argument("--tokens", type=Path, help="folder of shards: views that are in them need no image")
    parser.add_argument("--keep", type=Path, help="shard to write with the tokens that no shard holds")
    parser.add_argument("--jobs", type=int, default=2, help="processes that look at images (default: %(default)s)")
    parser.add_argument("--precision", choices=LOOKERS, default="installed", help="bfloat16: on CPUs with AMX")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    tower = Weights.at(load_settings().models.weights_dir).card("clip_b16").sha256
    look = Looking.of(arguments, tower)
    found = read_datasets(arguments.dataset)
    if arguments.keep and not all(each.sha256 for each in found):
        raise TableError("--keep names tokens by their images: give a data set with the column sha256")
    looked_at = some_of_each(found, PER_SOURCE)
    teaching = [each for each in looked_at if each.split != arguments.hold_out]
    drawn = [f"random{number}" for number in range(1, DELIVERED + 1)]
    taught = look(teaching, drawn)
    examples = examples_of(taught)
    measuring = [each for each in some_of_each(teaching, MEASURED) if each.split != VALIDATION]
    travelled = look(measuring, TAUGHT)
    published = look([each for each in measuring if look.holds(each, "clean", drawn[0])], ("clean", drawn[0]))
    compressed = look(some_of_each(teaching, 1), list(chain.from_iterable(PAIRS)))
    ways = [
        *chain.from_iterable(pairs_of(compressed, names) for names in PAIRS),
        *chain.from_iterable(pairs_of(travelled, (name, drawn[0])) for name in FIXED),
        *pairs_of(published, ("clean", drawn[0])),
    ]
    chooses = np.array([picture.split != VALIDATION for picture, by_delivery in taught for _ in by_delivery])

    points = Points(examples, LOOKED_AT, ways)
    recipes = (Recipe(LOOKED_AT, ridge) for ridge in RIDGES)
    choices = [tried(points, chooses, each, arguments.seed) for each in recipes]
    best = min(choices, key=lambda each: each.loss)
    head = points.fit(np.ones(len(examples), np.bool_), best.recipe).divided(best.temperature)
    score = Scorer(head, best)
    kinds, families, about = taught_classes(taught)
    validation = look([each for each in some_of_each(found, MEASURED) if each.split == VALIDATION], DELIVERIES)
    metrics = {
        "sources": len({each.source for each in teaching}),
        "published": len({picture.source for picture, _ in published}),
        "chosen": _row(best),
        "tried": [_row(each) for each in choices],
        "validation": measured(score, validation),
        **about,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_teacher(arguments.out / "teacher.csv", found, score, taught)
    folder = arguments.dataset[0].parent
    write_rows(arguments.out / LIST, [about_picture(each, folder) for each in looked_at])
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    print(json.dumps(metrics, indent=1))
    path: Path = arguments.out / FILE
    metadata = {"tower": tower, "blocks": best.recipe.blocks, "temperature": f"{best.temperature:.4f}"}
    metadata |= {"known_size": head.size}
    arrays = head.arrays()
    for prefix, fit in (("kinds", kinds), ("families", families)):
        if fit:
            arrays |= fit.head.arrays(prefix)
            metadata[prefix] = " ".join(fit.head.names)
    if families:
        metadata |= {"named_from": f"{about['naming']['cut']:.4f}", "named_right": f"{about['naming']['right']:.3f}"}
    save_arrays(path, arrays, metadata)
    record_file(arguments.out, "head", FILE, licence="MIT", commercial=True, train=COMMAND)
    if arguments.table:
        features = Features(score, kinds)
        filled = features_of_rows(arguments.table, found, features, folder, look)
        others = further_rows(arguments.table, travelled, features, folder)
        fill(arguments.table, filled, others, f"clip_b16_head@sha256:{sha256_file(path)[:12]}")
    if arguments.keep and look.new:
        write_shard(arguments.keep, look.new, BLOCK_SETS[LOOKED_AT], tower)


# --- what is looked at

Sights: TypeAlias = Sequence[tuple[Picture, Mapping[str, NDArray[np.float16]]]]  # each picture's tokens by delivery


@dataclass(frozen=True, slots=True)
class Looking:
    """Tokens of pictures: from shards where they hold them, else seen by the tower and kept on disk.

    Args:
        folder: of what is kept on disk.
        known: what the shards hold, by the name of the view.
        new: what they do not hold and was seen, likewise.
    """

    folder: Path
    looker: Callable[[], Look]
    jobs: int
    seed: int
    known: Mapping[str, Tokens]
    new: dict[str, Tokens]

    @classmethod
    def of(cls, arguments: argparse.Namespace, tower: str) -> Self:
        folder = arguments.cache / f"{tower[:12]}-{arguments.precision}"
        known = read_shards(arguments.tokens, tower) if arguments.tokens else {}
        return cls(folder, LOOKERS[arguments.precision], arguments.jobs, arguments.seed, known, {})

    def holds(self, picture: Picture, delivery: str, beside: str) -> bool:
        """Whether a view is to be had: of an image whose other views are in a shard, only from there.

        So the same shards give the same heads, whichever images happen to be at hand.
        """
        name, other = (View(picture.path, each, self.seed, picture.sha256).name for each in (delivery, beside))
        return name in self.known or other not in self.known

    def __call__(self, pictures: Sequence[Picture], deliveries: Sequence[str]) -> Sights:
        """The pictures that can be read, and what the tower sees in them."""
        views = {each: [View(each.path, name, self.seed, each.sha256) for name in deliveries] for each in pictures}
        found = tokens_of(list(chain.from_iterable(views.values())), self.folder, self.looker, self.jobs, self.known)
        self.new.update({view.name: tokens for view, tokens in found.items() if view.name not in self.known})
        return [
            (picture, {view.delivery: found[view] for view in own}) for picture, own in views.items() if own[0] in found
        ]


def looker() -> Look:
    """The installed tower on the detector's view of an image."""
    tower = load_tower(Weights.at(load_settings().models.weights_dir))
    return lambda upright: tower(view(upright)[np.newaxis])[0]


def quick_looker() -> Look:
    """The same in bfloat16, whose tokens differ by about one part in a hundred."""
    torch.set_num_threads(1)
    arrays, _ = load_quantised(Weights.at(load_settings().models.weights_dir).path("clip_b16"))
    tower = clip_tower()
    tower.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
    tower.eval().bfloat16()

    @torch.inference_mode()
    def look(upright: RgbArray) -> NDArray[np.float32]:
        pixels = torch.from_numpy(normalised(view(upright), OPENAI_CLIP)).bfloat16()
        return np.asarray(class_tokens(tower, pixels[np.newaxis])[0].float())

    return look


LOOKERS: dict[str, Callable[[], Look]] = {"installed": looker, "bfloat16": quick_looker}


def examples_of(sights: Sights) -> Examples:
    rows = [(tokens, picture) for picture, by_delivery in sights for tokens in by_delivery.values()]
    return balanced(
        np.stack([tokens for tokens, _ in rows]),
        np.array([picture.label for _, picture in rows], np.int64),
        np.array([picture.source for _, picture in rows]),
        np.array([picture.group for _, picture in rows]),
    )


def pairs_of(sights: Sights, names: Sequence[str]) -> list[Tokens]:
    """Every picture under two deliveries, those of each label apart: (m, 2, blocks, width) each."""
    return [
        np.stack([np.stack([seen[name] for name in names]) for picture, seen in sights if picture.label == label])
        for label in sorted({picture.label for picture, _ in sights})
    ]


# --- classes: which kind of image, which family of generators


def taught_classes(taught: Sights) -> tuple[ClassFit | None, ClassFit | None, Mapping[str, Json]]:
    """The heads for kinds and for families, where the data set tells enough of them apart; and how good they are."""
    about: dict[str, Json] = {}
    kinds = families = None
    if found := examples_of_classes(taught, kind_of):
        examples, names = found
        # Of kinds, how frequent they are in the data set says nothing of what is sent: each weighs the same.
        weights = source_weights(np.unique(names, return_inverse=True)[1], examples.sources)
        kinds = fit_classes(Points(replace(examples, weights=weights), LOOKED_AT), names)
        about["kinds"] = _shares(names, kinds)
    if found := examples_of_classes(taught, family_of):
        examples, names = found
        points = Points(examples, LOOKED_AT)
        families = fit_classes(points, names)
        naming = choose_cut(families, names, examples.weights)
        about["families"] = _shares(names, families)
        about["naming"] = asdict(naming)
        about["strangers"] = names_of_strangers(points, names, families, naming.cut)
    return kinds, families, about


def kind_of(picture: Picture) -> str:
    """Of fusion.reference.KINDS; empty where the data set does not say."""
    if picture.kind in SCREENS:
        return "screen"
    return picture.content if picture.content in KINDS else ""


def family_of(picture: Picture) -> str:
    return "" if picture.family in NO_FAMILY else picture.family


def examples_of_classes(taught: Sights, of: Callable[[Picture], str]) -> tuple[Examples, NameArray] | None:
    """Examples of classes that enough groups show, and their classes; None if these are fewer than two."""
    groups: dict[str, set[str]] = {}
    for picture, _ in taught:
        groups.setdefault(of(picture), set()).add(picture.group)
    known = {name for name, members in groups.items() if name and len(members) >= FEWEST_GROUPS}
    rows = [(picture, tokens) for picture, tokens in taught if of(picture) in known]
    if len(known) < 2:
        return None
    classes = np.array([of(picture) for picture, tokens in rows for _ in tokens], np.str_)
    return examples_of(rows), classes


def _shares(classes: NameArray, fit: ClassFit) -> Json:
    """Per class: how many examples, and the share whose likeliest class, held out, is the true one."""
    best = np.array(fit.names)[fit.held_out.argmax(axis=1)]
    found = {
        name: (int((classes == name).sum()), float((best == classes)[classes == name].mean())) for name in fit.names
    }
    return {"log loss": fit.loss, "strength": fit.strength, "right": found}


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


def about_picture(picture: Picture, folder: Path) -> dict[str, str]:
    """What ``read_datasets`` wants to know of it, for a data set without images: its tokens go by its hash."""
    named = ("split", "source", "group", "kind", "content", "family", "sha256")
    place = picture.path.relative_to(folder) if picture.path.is_relative_to(folder) else picture.path
    about = {"filepath": place.as_posix(), "label": LABELS[picture.label]}
    return about | {name: getattr(picture, name) for name in named}


def features_of_rows(
    table: Path, pictures: Sequence[Picture], features: Features, folder: Path, look: Looking
) -> Mapping[Key, Mapping[str, float]]:
    """What the detector says of each row of a feature table; by a head that did not see it where there is one."""
    known = {each.path.resolve(): each for each in pictures}
    wanted: dict[tuple[str, ...], dict[Picture, str]] = {}
    for filepath, deliveries in read_keys(table).items():
        picture = known.get((folder / filepath).resolve())
        if picture is None:
            raise TableError(f"{table}: {filepath} is not in the data set; leave its rows out, or measure a new table")
        wanted.setdefault(deliveries, {})[picture] = filepath
    found: dict[Key, Mapping[str, float]] = {}
    for deliveries, rows in wanted.items():
        for picture, tokens in look(list(rows), deliveries):
            for delivery, seen in tokens.items():
                found[rows[picture], delivery] = features(seen, picture.group)
    return found


def further_rows(
    table: Path, sights: Sights, features: Features, folder: Path
) -> Mapping[Key, tuple[Mapping[str, float], Mapping[str, str]]]:
    """What held-out heads say of pictures that the table lacks: more sources to calibrate fusion on.

    These rows have no other number. Fusion copes with what is missing, and what counts is sources.
    """
    known = read_keys(table)
    found: dict[Key, tuple[Mapping[str, float], Mapping[str, str]]] = {}
    for picture, tokens in sights:
        filepath = picture.path.relative_to(folder).as_posix()
        if filepath in known:
            continue
        about = {"label": LABELS[picture.label], "source": picture.source, "split": "fusion"}
        for delivery, seen in tokens.items():
            found[filepath, delivery] = features(seen, picture.group), about
    return found


def _row(choice: Choice) -> Mapping[str, object]:
    return {
        "blocks": choice.recipe.blocks,
        "ridge": choice.recipe.ridge,
        "temperature": round(choice.temperature, 4),
        "log loss": round(choice.loss, 5),
    }


if __name__ == "__main__":
    sys.exit(main())
