"""Archives: three forms of source, a damaged image costs a row, and whoever is killed, every image has one row."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import img_ml_verify
from benchmarks.archive import actors_of
from ingress.archive import open_archive, parts_of, read_part
from scripts import judge_archive
from tests.pictures import encode
from utils import aws as door
from utils.errors import TableError, TooManyBytes
from utils.exits import Exit
from utils.places import place

pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow un-skips it")
pytest.importorskip("ray", reason="pip install 'ray[data]' un-skips it")
from pyarrow import parquet  # noqa: E402


def pictures(photograph, count: int, seed: int = 0) -> dict[str, bytes]:
    """Different small JPEGs by name; one in twenty is damaged."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        top, left = rng.integers(0, 200, 2)
        raw = encode(photograph[top : top + 96, left : left + 128], "JPEG", quality=int(rng.integers(60, 95)))
        found[f"{number:03}.jpg"] = b"no image" if number % 20 == 7 else raw
    return found


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, raw in files.items():
            for member, data in ((name, raw), (f"{name[:-4]}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def archive(tmp_path, photograph) -> Path:
    """Twenty images in a folder, twenty in a tar and twenty in Parquet."""
    folder = tmp_path / "archive"
    (folder / "loose").mkdir(parents=True)
    for name, raw in pictures(photograph, 20, 1).items():
        (folder / "loose" / name).write_bytes(raw)
    write_tar(folder / "shard-000.tar", pictures(photograph, 20, 2))
    rows = [{"bytes": raw, "path": name} for name, raw in pictures(photograph, 20, 3).items()]
    parquet.write_table(pyarrow.table({"image": rows}), folder / "shard-000.parquet", row_group_size=11)
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(out: Path) -> dict[str, list[dict[str, object]]]:
    """By source, with the tier of the file's folder."""
    found: dict[str, list[dict[str, object]]] = {}
    for path in (out / "verdicts").rglob("*.parquet"):
        for row in parquet.ParquetFile(path).read().to_pylist():
            found.setdefault(row["source"], []).append({**row, "tier": path.parent.name.removeprefix("tier=")})
    return found


def command(archive: object, out: object, *more: str) -> list[str]:
    return [str(archive), "--out", str(out), "--profile", "light", "--rows", "4", *more]


def test_parts_hold_every_image_once_and_read_back_what_was_written(archive, photograph, aws):
    s3 = door.client("s3")
    s3.create_bucket(Bucket="data", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    for path in archive.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket="data", Key=f"a/{path.relative_to(archive)}", Body=path.read_bytes())
    expected = Counter(raw for seed in (1, 2, 3) for raw in pictures(photograph, 20, seed).values())
    for source in (str(archive), "s3://data/a"):
        files, below = open_archive(source)
        parts = list(parts_of(files, below, 8))
        assert all(len(part.images) <= 8 for part in parts)
        found = [entry for part in parts for entry in read_part(files, part, 10**6)]
        assert len({name for name, _ in found}) == len(found) == 60
        assert Counter(raw for _, raw in found) == expected
        files, below = open_archive(f"{source}/shard-000.tar")
        assert sum(len(part.images) for part in parts_of(files, below, 8)) == 20


def test_an_image_too_large_or_gone_is_told_and_the_others_are_read(archive):
    files, below = open_archive(str(archive / "loose"))
    (part,) = parts_of(files, below, 100)
    (archive / "loose" / "007.jpg").unlink()
    largest = sorted(size for _, _, size in part.images)[10]
    codes = Counter(getattr(raw, "code", "read") for _, raw in read_part(files, part, largest))
    assert codes == {"file_not_found": 1, "read": 10, TooManyBytes.code: 9}


@pytest.mark.parametrize("name", ["bad.tar", "bad.parquet"])
def test_a_shard_that_is_none_is_named_before_anything_is_judged(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 2000)
    with pytest.raises(TableError, match=rf"bad\.{name[4:]}"):
        list(parts_of(place(tmp_path), "", 8))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_and_then_the_driver_are_killed_and_every_image_has_one_row_equal_to_the_command_lines(
    archive, tmp_path, capsys
):
    out = tmp_path / "out"
    run = [sys.executable, "-m", "scripts.judge_archive", *command(archive, out, "--workers", "2")]
    driver = subprocess.Popen(run, stdout=subprocess.PIPE, text=True, start_new_session=True)
    done = out / "done"
    await_parts(driver, done, 1)
    (actor, *_) = actors_of(driver.pid)
    os.kill(actor, signal.SIGKILL)
    await_parts(driver, done, 4)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    first = {path.name: path.stat().st_mtime_ns for path in done.iterdir()}
    assert 4 <= len(first) < 16

    again = subprocess.run(run, capture_output=True, text=True)
    assert again.returncode == Exit.FAILED, again.stderr  # damaged images are told by the exit code
    assert {name: (done / name).stat().st_mtime_ns for name in first} == first  # judged once
    rows = rows_of(out)
    assert len(rows) == 60
    assert all(len(each) == 1 for each in rows.values())
    counts = Counter(each[0]["tier"] for each in rows.values())
    assert counts["error"] == 3
    assert "error 3" in again.stdout

    capsys.readouterr()
    img_ml_verify.main(["--json", "--profile", "light", str(archive / "loose")])
    for line in capsys.readouterr().out.splitlines():
        said = json.loads(line)
        (row,) = rows[said["source"]]
        if "error" in said:
            assert (row["error"], row["message"]) == (said["error"]["code"], said["error"]["message"])
        else:
            ours = json.loads(str(row["verdict"]))
            assert without_times(ours) == without_times(said)
            assert (row["tier"], row["sha256"], row["fusion_prob"]) == (
                said["tier"],
                said["sha256"],
                said["fusion_prob"],
            )


def without_times(verdict: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in verdict.items() if name != "timings_ms"}


def await_parts(driver: subprocess.Popen[str], done: Path, count: int) -> None:
    while not done.exists() or len(list(done.iterdir())) < count:
        assert driver.poll() is None
        time.sleep(0.2)


def test_another_archive_or_profile_does_not_go_on_in_the_same_place(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert judge_archive.main(command(tmp_path / "empty", out)) == Exit.FAILED
    assert "dataset_missing" in capsys.readouterr().err
    assert judge_archive.main(command(tmp_path, out)) == Exit.SETUP
    assert "begun with another source" in capsys.readouterr().err


def test_a_cluster_that_does_not_start_is_told(tmp_path, archive, capsys, monkeypatch):
    import ray

    tried = []

    def init(*_: object, **__: object) -> None:
        tried.append(1)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    assert judge_archive.main(command(archive, tmp_path / "out")) == Exit.FAILED
    assert capsys.readouterr().err.splitlines()[-1].startswith("cluster_unreachable: Ray at local: The current node")
    assert len(tried) > 1
