"""The training container's entry point on a folder like SageMaker's: SIGTERM, a second start, the same artifact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from lifecycle.cloud import container
from training.shards import image_table
from utils.exits import Exit
from utils.persistence import sha256_file

STEPS = 12
GIVEN = {"train": "effnet", "architecture": "test_efficientnet", "batch": "2", "workers": "0", "jobs": "1", "seed": "3"}


def laid_out(root: Path, **given: str) -> Path:
    data = root / "input" / "data" / "training"
    data.mkdir(parents=True)
    (root / "input" / "config").mkdir()
    (root / "input" / "config" / "hyperparameters.json").write_text(json.dumps({**GIVEN, **given}))
    photograph, rng = np.asarray(load_sample_image("china.jpg")), np.random.default_rng(0)
    lines = ["filepath,label,source,split"]
    for label in ("real", "ai"):
        for index in range(6):
            top, left = int(rng.integers(0, 180)), int(rng.integers(0, 380))
            pixels = photograph[top : top + 240, left : left + 240] // (1 if label == "real" else 2)
            Image.fromarray(pixels).save(data / f"{label}{index}.png")
            lines.append(f"{label}{index}.png,{label},{label}-{index},{'val' if index > 3 else 'train'}")
    (data / "dataset.csv").write_text("\n".join(lines))
    return root


def start(root: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lifecycle.cloud.container", "train", "--root", str(root)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, **pipes)


def hashes(root: Path) -> dict[str, str]:
    return dict(json.loads((root / "model" / "job.json").read_text())["files"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_and_started_again_it_ends_with_the_artifact_of_an_uninterrupted_run(tmp_path):
    whole = laid_out(tmp_path / "whole", steps=str(STEPS))
    run = start(whole)
    said, errors = run.communicate()
    assert run.returncode == Exit.DONE, errors

    broken = laid_out(tmp_path / "broken", steps=str(STEPS))
    first = start(broken, IMGV_METRICS_SECONDS="60")
    while not (broken / "checkpoints" / "out").exists():  # from here on it trains
        assert first.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    said, errors = first.communicate()
    assert first.returncode == Exit.INTERRUPTED, errors
    assert "imgv_train_interrupted" in said
    assert (broken / "checkpoints" / "out" / "checkpoint.pt").exists()
    assert not (broken / "model" / "job.json").exists()
    assert not (broken / "output" / "failure").exists()

    second = start(broken)
    said, errors = second.communicate()
    assert second.returncode == Exit.DONE, errors
    assert hashes(broken) == hashes(whole)
    assert {"effnet/weights.safetensors", "effnet/graph.onnx", "effnet/card.toml", "metrics.json"} == set(hashes(whole))
    weights = whole / "model" / "effnet" / "weights.safetensors"
    assert sha256_file(weights) == hashes(whole)["effnet/weights.safetensors"]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"train": "everything"}, "not 'everything'"), ({"epochs": "3"}, "no hyperparameter epochs")],
)
def test_wrong_hyperparameters_are_told_in_the_failure_file(tmp_path, given, said):
    root = laid_out(tmp_path / "ml", **given)
    assert container.main(["train", "--root", str(root)]) == Exit.SETUP
    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("bad_settings: ") and said in failure


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_fails_leaves_its_own_reason(tmp_path):
    root = laid_out(tmp_path / "ml", train="ghostnet", architecture="ghostnet_050")
    (root / "input" / "data" / "training" / "dataset.csv").write_text("filepath,label,source\nnothing.png,real,a\n")
    assert container.main(["train", "--root", str(root)]) == Exit.FAILED
    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("job_failed: bad_table: ")
    assert len(failure) <= 1024


def test_hyperparameters_are_json_strings_and_retrain_reads_them_as_parameters(tmp_path):
    root = laid_out(tmp_path / "ml", train="retrain", drop="0.2", heads='["clip_b16"]', model="best")
    given = container.read_hyperparameters(root)
    given.pop("train")
    state = root / "checkpoints"
    state.mkdir()
    table = container._channel(root)
    command = container._retrain_command(
        {"drop": given["drop"], "heads": given["heads"], "model": "best"}, table, state
    )
    said = json.loads((state / "params.json").read_text())
    assert (said["drop"], said["heads"], said["model"]) == (0.2, ["clip_b16"], "best")
    assert said["dataset"].endswith("input/data/training/dataset.csv")
    assert "promote" not in command


def test_a_packed_data_set_in_s3_takes_the_place_of_the_folders_for_a_detector_alone(tmp_path):
    table = image_table("s3://data/packed/dataset.csv")
    command = container._trainer_command(tmp_path, "effnet", {"steps": "9"}, table, tmp_path)
    assert command[command.index("--dataset") + 1] == "s3://data/packed/dataset.csv"
    root = laid_out(tmp_path / "ml", train="retrain")
    assert container.main(["train", "--root", str(root), "--dataset", str(table)]) == Exit.SETUP
    assert "train=retrain opens its images as files" in (root / "output" / "failure").read_text()
