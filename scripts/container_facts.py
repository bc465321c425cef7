"""How well the container alone tells the label: python -m scripts.container_facts [dataset.csv]

Format, size and compression of every image, as published and after the deliveries that training and measurement see:
the balanced accuracy of a small random forest on these facts alone, for sources that it did not see. 50 % says nothing;
what is above it, a network can learn instead of looking at the picture.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track

from ingress.sources import Ingress
from training.cleaning import Seen
from training.confounds import held_out_accuracy
from training.datasets import DATASET, LABELS, read_rows
from training.extraction import Task, delivered
from utils.deliveries import DELIVERIES
from utils.errors import DatasetMissing, VerifyError
from utils.exits import Exit, command, command_parser
from utils.processes import process_pool
from utils.settings import load_settings

SEEN_BY_TRAINING = (*DELIVERIES, "random1")


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    rows = choose(read_rows(arguments.dataset), arguments.images)
    if {row["label"] for row in rows} != set(LABELS):
        raise DatasetMissing(f"{arguments.dataset} needs rows of both labels: python -m scripts.make_dataset_csv")
    seen = list(_look(arguments.dataset.parent, rows, arguments.jobs, arguments.seed))
    readable = [index for index, each in enumerate(seen) if each]
    print(f"{len(readable)} images of {len({rows[index]['source'] for index in readable})} sources\n")
    print("| delivery | balanced accuracy of the container alone |\n|---|---|")
    for number, delivery in enumerate(SEEN_BY_TRAINING):
        accuracy = held_out_accuracy([rows[index] for index in readable], [seen[index][number] for index in readable])
        print(f"| {delivery} | {'too few sources' if accuracy is None else f'{accuracy:.1%}'} |")
    return Exit.DONE


def choose(rows: Iterable[Mapping[str, str]], most: int) -> list[Mapping[str, str]]:
    """The first ``most`` rows of every source, of those that are real or AI."""
    chosen, counts = [], Counter[str]()
    for row in rows:
        counts[row["source"]] += 1
        if row["label"] in LABELS and counts[row["source"]] <= most:
            chosen.append(row)
    return chosen


def look(filepath: str, folder: str, seed: int) -> list[Seen]:
    """The container of one image under each delivery; empty where it cannot be read."""
    cv2.setNumThreads(1)
    try:
        with Ingress(load_settings().decode) as ingress:
            samples = [delivered(Task(folder, filepath, each, seed), ingress) for each in SEEN_BY_TRAINING]
    except VerifyError as error:
        print(f"left out: {filepath}: {error.code}: {error}", file=sys.stderr)
        return []
    return [Seen(format=each.format, width=each.width, height=each.height, size=len(each.raw)) for each in samples]


def _look(folder: Path, rows: Sequence[Mapping[str, str]], jobs: int, seed: int) -> Iterable[list[Seen]]:
    paths = [row["filepath"] for row in rows]
    shown = partial(track, description="looking", total=len(paths), console=Console(stderr=True))
    if jobs == 1:
        yield from shown(map(look, paths, repeat(str(folder)), repeat(seed)))
        return
    with process_pool(jobs) as pool:
        yield from shown(pool.map(look, paths, repeat(str(folder)), repeat(seed), chunksize=8))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.container_facts", __doc__)
    parser.add_argument("dataset", type=Path, nargs="?", default=Path(DATASET), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=20, help="of each source at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the random delivery")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
