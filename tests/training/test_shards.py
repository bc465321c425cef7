"""Shards: the same data set in tars, here or in S3; training and extraction are killed, and read only the rest."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from lifecycle.cloud import data
from tests.pictures import encode
from training import shards
from training.datasets import read_rows
from training.extraction import extract
from training.loop import prepare, read_datasets
from training.shards import BLOCK, Span, blocks, pack, read, span_of
from utils.aws import client
from utils.contracts import RgbArray
from utils.errors import TableError
from utils.exits import Exit
from utils.places import Bucket
from utils.settings import load_settings

S3 = "s3://data/packed"


@pytest.fixture
def dataset(tmp_path, photograph) -> Path:
    """Forty small pictures, one of them damaged, in a folder; those of val lie between the others."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    lines = ["filepath,label,source,split"]
    for number in range(40):
        label = "ai" if number % 2 else "real"
        (folder / label).mkdir(parents=True, exist_ok=True)
        top, left = rng.integers(0, 200, 2)
        raw = encode(photograph[top : top + 200, left : left + 220] // (1 + number % 2), "PNG")
        (folder / label / f"{number}.png").write_bytes(b"no image" if number == 6 else raw)
        lines.append(f"{label}/{number}.png,{label},{label}-{number // 4},{'val' if number // 4 % 5 == 4 else 'train'}")
    (folder / "dataset.csv").write_text("\n".join(lines))
    return folder / "dataset.csv"


@pytest.fixture
def packed(dataset, tmp_path) -> Path:
    """Of about ten pictures in each tar."""
    assert pack(dataset, tmp_path / "packed", 10**6) > 2
    return tmp_path / "packed" / "dataset.csv"


@pytest.fixture
def pushed(packed, aws) -> str:
    client("s3").create_bucket(Bucket="data", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert data.main(["push", str(packed.parent), S3]) == Exit.DONE
    shards._opened.cache_clear()
    return f"{S3}/dataset.csv"


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, int]]:
    """Names and first bytes of what is read from S3 in this process."""
    seen: list[tuple[str, int]] = []
    read_one = Bucket.read

    def spy(self: Bucket, name: str, start: int = 0, size: int | None = None) -> bytes:
        if name.endswith(".tar"):
            seen.append((name, start))
        return read_one(self, name, start, size)

    monkeypatch.setattr(Bucket, "read", spy)
    return seen


def load(source: Path | bytes) -> tuple[RgbArray, bool]:
    raw = source if isinstance(source, bytes) else source.read_bytes()
    if raw == b"no image":
        raise ValueError("no image")
    return np.frombuffer(raw, np.uint8).reshape(-1, 1, 1), False


def test_a_packed_data_set_is_the_same_files_in_tars_and_the_same_every_time(dataset, packed, tmp_path):
    again = tmp_path / "again"
    pack(dataset, again, 10**6)
    names = {path.name: path.read_bytes() for path in again.iterdir()}
    assert names == {path.name: path.read_bytes() for path in packed.parent.iterdir()}
    for path in packed.parent.glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    for row in read_rows(packed):
        span = span_of(packed, row)
        assert span is not None
        image = (dataset.parent / row["filepath"]).read_bytes()
        assert read([span])[span] == image == (tmp_path / "unpacked" / row["filepath"]).read_bytes()
    before = read_rows(dataset)
    assert [{name: row[name] for name in before[0]} for row in read_rows(packed)] == before


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.png", "real/gone.png"])
def test_what_is_not_below_the_table_or_gone_is_not_packed(tmp_path, name):
    (tmp_path / "dataset.csv").write_text(f"filepath,label,source\n{name},real,a\n")
    with pytest.raises(TableError, match=name):
        pack(tmp_path / "dataset.csv", tmp_path / "out", 10**6)


def test_an_image_without_a_place_is_told(dataset):
    with pytest.raises(TableError, match="in no shard; pull the data set, or pack it"):
        span_of("s3://data/set/dataset.csv", {"filepath": "a.png"})
    with pytest.raises(TableError, match="pack the data set again"):
        span_of(dataset, {"filepath": "a.png", "shard": "a.tar", "offset": "", "bytes": "3"})


def test_a_block_is_of_neighbours_in_one_shard_and_bounded():
    a = [Span("a", start, 100) for start in (512, 1536, 1024, 1024 + BLOCK)]
    items = [None, None, None, *a[:2], Span("b", 4096, 1), *a[2:]]
    assert blocks(items, lambda item: item, 2) == [[None] * 2, [None], a[:2], [Span("b", 4096, 1)], [a[2]], [a[3]]]


def test_trainers_decode_the_same_pictures_from_s3_and_go_on_at_the_first_that_is_missing(
    dataset, pushed, tmp_path, requests, capsys
):
    of_files, of_shards = read_datasets([dataset]), read_datasets([pushed])
    expected = prepare(of_files, tmp_path / "files", load, jobs=1)
    assert requests == []

    def dies(source: Path | bytes) -> tuple[RgbArray, bool]:
        if len(list((tmp_path / "s3" / "load").iterdir())) == 25:
            raise KeyboardInterrupt
        return load(source)

    dies.__name__ = "load"
    with pytest.raises(KeyboardInterrupt):
        prepare(of_shards, tmp_path / "s3", dies, jobs=1)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s3" / "load").iterdir()}
    assert len(kept) == 25
    first = len(requests)
    found = prepare(of_shards, tmp_path / "s3", load, jobs=1)
    assert {name: (tmp_path / "s3" / "load" / name).stat().st_mtime_ns for name in kept} == kept  # decoded once
    parts = blocks(of_shards, lambda each: each.span, 8)
    seen = {each.span for each in of_shards[:26]} - {of_shards[6].span}  # the damaged one comes again
    whole = [part for part in parts if seen.issuperset(each.span for each in part)]
    assert len(requests) - first == len(parts) - len(whole) < len(parts)
    assert [each.path.read_bytes() for each in found] == [each.path.read_bytes() for each in expected]
    assert "6.png: no image" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_extraction_from_s3_is_killed_goes_on_and_writes_the_table_of_the_folder(
    dataset, pushed, tmp_path, monkeypatch, requests
):
    monkeypatch.setenv("IMGV_PROFILE", "light")
    out = tmp_path / "s3.csv"
    command = [sys.executable, "-m", "scripts.extract_features", "--manifest", pushed, "--out", str(out)]
    command += ["--jobs", "2", "--deliveries", "clean"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = tmp_path / "s3.csv.journal"
    while not journal.exists() or journal.read_bytes().count(b'{"filepath') < 10:
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    known = journal.read_bytes().count(b'{"filepath')
    assert 10 <= known < 39 and not out.exists()

    settings = load_settings()
    choices = {"deliveries": ("clean",), "jobs": 1}
    _, failures = extract(pushed, out, settings.models, settings.decode, **choices)
    assert 0 < len(requests) <= (40 - known) / 4 + 5  # blocks of what the journal lacked, and one that it cut
    _, same = extract(dataset, tmp_path / "files.csv", settings.models, settings.decode, **choices)
    assert out.read_bytes() == (tmp_path / "files.csv").read_bytes()
    assert failures == same and len(same) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trainer_that_is_killed_while_it_reads_goes_on_with_the_rest(pushed, tmp_path):
    command = [sys.executable, "-m", "scripts.train_effnet", "--dataset", pushed, "--out", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path), "--architecture", "test_efficientnet", "--batch", "2", "--steps", "2"]
    command += ["--workers", "0", "--jobs", "1", "--resume"]
    first, cache = subprocess.Popen(command), tmp_path / "load_reduced"
    while len(list(cache.glob("*.npy"))) < 10:
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert 10 <= len(kept) < 39
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == Exit.DONE, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "31 training and 8 validation images" in again.stdout
    assert (tmp_path / "out" / "effnet" / "weights.safetensors").exists()


def test_pack_is_a_command_and_says_what_is_next(dataset, tmp_path, capsys):
    assert data.main(["pack", str(dataset), str(tmp_path / "out"), "--mebibytes", "1"]) == Exit.DONE
    assert "next: push that" in capsys.readouterr().out
    assert all(row["shard"].endswith(".tar") for row in read_rows(tmp_path / "out" / "dataset.csv"))
