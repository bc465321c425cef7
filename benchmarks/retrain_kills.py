"""A real retraining that is killed in each of its steps: python benchmarks/retrain_kills.py --generated 96 --out kills

`python -m lifecycle.retrain` gets SIGKILL after each of --after seconds of a step, until the step is done; the same
command goes on, and the last one reaches the end. Ends with 1 when a step is done twice, when a process that measures
outlives its parent, or when the run registers other than one version.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from lifecycle.pictures import make_pictures
from lifecycle.retrain import STEPS
from training.datasets import read_rows, write_rows
from training.deliveries import TAUGHT

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds: a process that is still loading its libraries ends when it has
LOOSE = {"real": 0.5, "real_kind": 0.5, "calibration": 0.5}  # the decision does not matter here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", type=Path, help="CSV of labelled images with their splits")
    what.add_argument("--generated", type=int, metavar="N", help="about N pictures that are made here")
    parser.add_argument("--out", type=Path, default=Path("kills"), help="an empty folder")
    parser.add_argument("--profile", default="light")
    parser.add_argument("--after", type=float, nargs="+", default=[0, 0.3, 1, 3], help="default: %(default)s")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True)
    dataset = arguments.dataset.absolute() if arguments.dataset else with_splits(out, arguments.generated)
    params = {"dataset": str(dataset), "profile": arguments.profile, "model": "logistic", "rounds": 1, "gate": LOOSE}
    params |= {"deliveries": {"train": list(TAUGHT), "val": ["clean", "web"]}}
    (out / "params.yaml").write_text(yaml.safe_dump(params))
    kills = Kills(out)
    trials = ((step, after) for step in STEPS for after in arguments.after)
    outlived = [step for step, after in trials if not kills.is_done(step) and not kills.killed_in(step, after)]
    return kills.told(kills.to_the_end(), outlived)


def with_splits(out: Path, count: int) -> Path:
    """Every fourth source of a label validates."""
    rows = read_rows(make_pictures(out / "pictures", count))
    sources = {label: sorted({row["source"] for row in rows if row["label"] == label}) for label in ("real", "ai")}
    for row in rows:
        row["split"] = "train" if sources[row["label"]].index(row["source"]) % 4 else "val"
    write_rows(out / "pictures" / "dataset.csv", rows)
    return out / "pictures" / "dataset.csv"


class Kills:
    """One run in a folder of its own, begun again and again."""

    def __init__(self, out: Path) -> None:
        self.out, self.run = out, out / "lifecycle" / "runs" / "run"
        self.settings = os.environ | {
            "IMGV_LIFECYCLE_DIR": str(out / "lifecycle"),
            "IMGV_RELEASE": str(out / "releases"),
            "IMGV_MIN_IMAGES_PER_CLASS": "20",
        }

    def start(self) -> subprocess.Popen[bytes]:
        code = [sys.executable, "-m", "lifecycle.retrain", "--params", str(self.out / "params.yaml")]
        with (self.out / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [*code, "--run", str(self.run)], cwd=ROOT, env=self.settings, stdout=output, stderr=output
            )

    def events(self) -> list[tuple[str, str]]:
        log = self.run / "log.jsonl"
        lines = map(json.loads, log.read_text().splitlines()) if log.exists() else []
        return [(line.get("step", ""), line["event"]) for line in lines]

    def is_done(self, step: str) -> bool:
        return (step, "done") in self.events()

    def killed_in(self, step: str, after: float) -> bool:
        """Whether nothing of the process is left."""
        begun, process = self.events().count((step, "begins")), self.start()
        while process.poll() is None and self.events().count((step, "begins")) == begun:
            time.sleep(0.02)
        time.sleep(after)
        children = children_of(process.pid)
        process.kill()
        status = process.wait()
        deadline = time.monotonic() + PATIENCE
        while (left := living(children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        how = "SIGKILL" if status < 0 else f"ended with {status}"
        late = ", done by then" if self.is_done(step) else ""
        print(
            f"{step}: {how} {after:g} s after it began{late}; {len(left)} of {len(children)} processes left", flush=True
        )
        return status < 0 and not left

    def to_the_end(self) -> int:
        return self.start().wait()

    def told(self, status: int, outlived: list[str]) -> int:
        times = Counter(step for step, event in self.events() if event == "done")
        again = {step: count for step, count in times.items() if count != 1}
        with sqlite3.connect(next((self.out / "lifecycle").rglob("*.db"))) as database:
            versions = [name for (name,) in database.execute("select source from model_versions")]
        for version in versions:
            print(f"registered: {version}")
        print(f"ended with {status}; every step done once: {not again and list(times) == list(STEPS)} {again or ''}")
        of_run = [version for version in versions if "shipped" not in version]
        print(f"versions of this run: {len(of_run)}, beside the shipped one: {len(versions) - len(of_run)}")
        return 0 if status == 0 and not again and not outlived and len(of_run) == 1 and len(versions) == 2 else 1


def living(processes: list[int]) -> list[int]:
    return [each for each in processes if Path(f"/proc/{each}").exists()]


def children_of(process: int) -> list[int]:
    """Of all generations (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children_of(child)]
    return found


if __name__ == "__main__":
    sys.exit(main())
