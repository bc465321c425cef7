"""What the gate says of challengers that are worse on purpose, and of a better one: python benchmarks/gate_refusals.py

Fusion models are trained on the shipped feature table; every release is real, and judges the golden set in a process of
its own. The champion is trained on the whole table; it is the better challenger of a model that does without the CLIP
tower. Worse ones: 10 % of the labels flipped; all AI images as PNG and all real ones as JPEG; the champion again with
30 % more processor time per image. --quick takes the champion's facts of the golden set where only labels differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[1]))

from fusion import train_fusion
from lifecycle import golden
from lifecycle.gate import Bounds, decide
from lifecycle.release import make_release
from training.evaluation import judge
from utils.profiles import DEFAULT_PROFILE, PROFILES
from utils.settings import load_settings

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "training" / "tables" / f"{PROFILES[DEFAULT_PROFILE].fusion}.parquet"
SLOW = """
import time
from inference.detector import Verifier
from lifecycle import golden
judge = Verifier.verify
def slower(*arguments, **named):
    began = time.process_time()
    found = judge(*arguments, **named)
    until = time.process_time() + 0.3 * (time.process_time() - began)
    while time.process_time() < until:
        pass
    return found
Verifier.verify = slower
raise SystemExit(golden.main({arguments!r}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    settings = load_settings(profile="embedded", release="")
    train_fusion.KINDS = {"logistic": train_fusion.KINDS["logistic"]}  # the others would be cross-validated too
    with tempfile.TemporaryDirectory() as folder:
        Trials(arguments, settings, Path(folder)).run()


class Trials:
    def __init__(self, arguments, settings, folder: Path) -> None:
        self.arguments, self.settings, self.folder = arguments, settings, folder
        self.table = parquet.read_table(arguments.table)
        self.rng = np.random.default_rng(0)

    def run(self) -> None:
        champion = self.release("champion", self.table)
        facts, judged = self.facts(champion), self.judged(champion)
        quick = self.arguments.quick
        older = self.release("older", self.table, "--exclude", "clip_b16*")
        old = facts if quick else self.facts(older)
        self.show("with the tower", decide(self.judged(older), judged, old, facts, Bounds()))
        flipped = self.release("flipped", self.flipped())
        new = facts if quick else self.facts(flipped)
        self.show("10 % flipped", decide(judged, self.judged(flipped), facts, new, Bounds()))
        shortcut = self.release("shortcut", self.shortcut())
        self.show("AI PNG, real JPEG", decide(judged, self.judged(shortcut), facts, self.facts(shortcut), Bounds()))
        facts = self.facts(champion)  # again: times compare only where the machine is as busy
        self.show("30 % slower", decide(judged, judged, facts, self.facts(champion, slower=True), Bounds()))

    def show(self, name: str, decision) -> None:
        print(f"\n{name}: {'promoted' if decision.promote else 'refused'}", flush=True)
        for reason in decision.reasons:
            print(f"  - {reason}")
        for figure in ("AI found, clean", "AI found, web", "AI found, hard", "calibration error", "seconds per image"):
            old, new = decision.compared[figure]
            print(f"    {figure}: {old:.3f} -> {new:.3f}", flush=True)

    # --- tables

    def flipped(self) -> pyarrow.Table:
        """Of a tenth of the training images the other label, under all their deliveries."""
        paths, splits, labels = (np.array(self.table[name].to_pylist()) for name in ("filepath", "split", "label"))
        training = np.unique(paths[splits != "val"])
        wrong = np.isin(paths, self.rng.choice(training, len(training) // 10, replace=False))
        flipped = np.where(labels == "ai", "real", "ai")
        return self.column("label", np.where(wrong, flipped, labels))

    def shortcut(self) -> pyarrow.Table:
        """Every AI image of training comes as PNG, every real one as JPEG: the tables of a JPEG say the label."""
        splits, labels = (np.array(self.table[name].to_pylist()) for name in ("split", "label"))
        table = self.table
        for name in [each for each in table.column_names if each.startswith("jpeg.") or each == "compression_level"]:
            values = np.array(table[name].to_pylist(), float)
            seen = values[np.isfinite(values)]
            filled = np.where(np.isfinite(values), values, self.rng.choice(seen, len(values)))
            training = splits != "val"
            values = np.where(training & (labels == "ai"), np.nan, np.where(training, filled, values))
            table = self.column(name, values, table)
        return table

    def column(self, name: str, values, table: pyarrow.Table | None = None) -> pyarrow.Table:
        table = self.table if table is None else table
        index = table.column_names.index(name)
        return table.set_column(index, name, pyarrow.array(values, from_pandas=True))

    # --- releases

    def release(self, name: str, table: pyarrow.Table, *more: str):
        path, artifact = self.folder / f"{name}.parquet", self.folder / "fusion" / name
        parquet.write_table(table, path)
        code = ["--table", str(path), "--out", str(artifact), "--profile", "embedded", "--model", "logistic", *more]
        began = time.monotonic()
        with (self.folder / f"{name}.log").open("w") as log:
            sys.stdout, shown = log, sys.stdout
            try:
                train_fusion.main(code)
            finally:
                sys.stdout = shown
        made = self.folder / f".{name}"
        made.mkdir()
        release = make_release(made, "trial", artifact, self.settings.models)
        made.rename(self.folder / release.name)
        print(f"{name}: trained in {time.monotonic() - began:.0f} s", flush=True)
        return replace(release, folder=self.folder / release.name)

    def judged(self, release):
        return judge(self.arguments.table, None, release.fusion, "val")

    def facts(self, release, slower: bool = False) -> golden.Facts:
        given = [str(release.folder), "--rounds", str(self.arguments.rounds)]
        if not slower:
            return golden.measure(release.folder, self.settings, self.arguments.rounds)
        code = [sys.executable, "-c", SLOW.replace("{arguments!r}", repr(given))]
        done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=True)
        return golden.Facts.from_json(json.dumps(json.loads(done.stdout)))


if __name__ == "__main__":
    main()
