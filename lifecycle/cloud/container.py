"""What a training container runs: python -m lifecycle.cloud.container train [--root /opt/ml] [--dataset s3://…]

Keeps SageMaker's contract, on a laptop's folder too: hyperparameters (strings) in input/config/hyperparameters.json,
the data set in input/data/training with its dataset.csv, what a second start goes on from in checkpoints, the result in
model, why it failed in output/failure. --dataset reads a packed data set from S3 in the folder's place. The
hyperparameter `train` is a detector (effnet, ghostnet, mantranet), whose other hyperparameters are the trainer's
options, or retrain, whose others are those of params.yaml. SIGTERM, as spot machines send it before they go, ends the
training with a checkpoint and 130. model/job.json lists every file's hash.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lifecycle.release import commit
from training.shards import ImageTable, image_table
from utils.emf import line
from utils.errors import BadSettings, JobFailed, VerifyError
from utils.exits import Exit, command, command_parser
from utils.persistence import sha256_file, write_atomic
from utils.settings import load_settings

ROOT = Path("/opt/ml")
CHANNEL = "training"
TABLE = "dataset.csv"
JOB = "job.json"
DETECTORS = ("effnet", "ghostnet", "mantranet")
RETRAIN = "retrain"
OPTIONS = ("architecture", "batch", "jobs", "minutes", "rate", "seed", "steps", "workers")  # of a trainer
_MEASURED = ("loss", "accuracy")
_FAILURE_BYTES = 1024  # what SageMaker shows of the failure file
_CODED = re.compile(r"^[a-z_]+: .")


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    root: Path = arguments.root
    try:
        return train(root, arguments.dataset or _channel(root))
    except Exception as error:
        said = f"{error.code}: {error}" if isinstance(error, VerifyError) else f"internal: {error!r}"
        (root / "output").mkdir(parents=True, exist_ok=True)
        write_atomic(root / "output" / "failure", said.encode()[:_FAILURE_BYTES])
        raise


def train(root: Path, dataset: ImageTable) -> Exit:
    """
    Returns:
        INTERRUPTED where SIGTERM came: the next start goes on.

    Raises:
        BadSettings: the hyperparameters cannot be used.
        JobFailed: the training failed, with its own reason.
    """
    given = read_hyperparameters(root)
    name = given.pop("train", RETRAIN)
    if name not in (*DETECTORS, RETRAIN):
        raise BadSettings(f"hyperparameter train is one of {', '.join((*DETECTORS, RETRAIN))}, not {name!r}")
    state, model = root / "checkpoints", root / "model"
    for folder in (state, model):
        folder.mkdir(parents=True, exist_ok=True)
    if name == RETRAIN:
        told = _run(_retrain_command(given, dataset, state), state / "log")
    else:
        told = _run(_trainer_command(root, name, given, dataset, state), state / "out" / "log.jsonl")
    if told:
        if load_settings().log.metrics_seconds:
            print(line({"imgv_train_interrupted": 1}), flush=True)
        return Exit.INTERRUPTED
    made = (state / "run" / "release") if name == RETRAIN else state / "out"
    for path in made.iterdir():
        if path.is_dir():
            shutil.copytree(path, model / path.name, dirs_exist_ok=True)
        elif path.name == "metrics.json":
            shutil.copyfile(path, model / path.name)
    files = {
        path.relative_to(model).as_posix(): sha256_file(path) for path in sorted(model.rglob("*")) if path.is_file()
    }
    files.pop(JOB, None)
    said = {"trained": name, "hyperparameters": given, "code": commit(), "files": files}
    write_atomic(model / JOB, (json.dumps(said, indent=1) + "\n").encode())
    return Exit.DONE


def read_hyperparameters(root: Path) -> dict[str, str]:
    path = root / "input" / "config" / "hyperparameters.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BadSettings(f"{path} holds no object of JSON strings: {error}") from error


def _trainer_command(root: Path, name: str, given: Mapping[str, str], dataset: ImageTable, state: Path) -> list[str]:
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise BadSettings(f"no hyperparameter {', '.join(unknown)}; there are train, {', '.join(OPTIONS)}")
    options = [text for key, value in given.items() for text in (f"--{key}", value)]
    return [
        *("-m", f"scripts.train_{name}", "--dataset", str(dataset), "--out", str(state / "out"), "--resume"),
        *("--cache", str(root / "cache"), *options),
    ]


def _retrain_command(given: Mapping[str, str], dataset: ImageTable, state: Path) -> list[str]:
    """Up to a release; comparing and promoting it is the business of whoever fetches it."""
    if not isinstance(dataset, Path):
        raise BadSettings(f"train=retrain opens its images as files, not from {dataset}; start it without --dataset")
    params = {name: _parsed(value) for name, value in given.items()} | {"dataset": str(dataset)}
    path = state / "params.json"  # JSON is YAML
    write_atomic(path, json.dumps(params).encode())
    steps = ("validate", "models", "extract", "fusion", "labels", "evaluate", "release")
    return ["-m", "lifecycle.retrain", *steps, "--run", str(state / "run"), "--params", str(path)]


def _parsed(value: str) -> object:
    """A hyperparameter as JSON, where it is some."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _channel(root: Path) -> Path:
    return root / "input" / "data" / CHANNEL / TABLE


def _run(arguments: Sequence[str], log: Path) -> bool:
    """Run one of our commands, and show its progress. Whether it was told to stop, and did.

    Raises:
        JobFailed: it failed by itself.
    """
    told, ended = threading.Event(), threading.Event()
    follower = threading.Thread(target=_follow, args=(log, ended))
    with subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - ours

        def stop(*_: object) -> None:
            told.set()
            process.send_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, stop)
        follower.start()
        try:
            assert process.stderr is not None, "it is a pipe"
            reason = _pass_on(process.stderr)
            status = process.wait()
        finally:
            ended.set()
            follower.join()
            signal.signal(signal.SIGTERM, before)
    if status and not told.is_set():
        raise JobFailed(reason or f"the training ended with {status}; its log has the lines before")
    return bool(status)


def _pass_on(lines: IO[str]) -> str:
    """Show every line. The last one with a code of ours."""
    reason = ""
    for text in lines:
        print(text, end="", file=sys.stderr, flush=True)
        if _CODED.match(text):
            reason = text.strip()
    return reason


def _follow(log: Path, ended: threading.Event) -> None:
    """Print what a trainer logs, for SageMaker's metric definitions, and for CloudWatch where a setting asks for it."""
    metrics, shown = load_settings().log.metrics_seconds, 0
    while True:
        last = ended.wait(1.0)
        rows = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        for text in rows[shown:]:
            print(text, flush=True)
            if metrics:
                row = json.loads(text)
                print(line({f"imgv_train_{name}": row[name] for name in _MEASURED if name in row}), flush=True)
        shown = max(shown, len(rows))
        if last:
            return


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.container", __doc__)
    parser.add_argument("command", choices=["train"], help="what SageMaker gives to every training container")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder laid out as SageMaker's (default: %(default)s)")
    parser.add_argument(
        "--dataset", type=image_table, metavar="s3://…", help="table of a packed data set (default: the folder's)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
