"""A data set between a folder and S3: killed and going on, both ends compared, nothing half-made to be seen."""

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

from lifecycle.cloud import data
from lifecycle.cloud.data import Options, manifests, pull, push, read_manifest, verify
from tests.clouds import point_to, refusing
from tests.pictures import encode
from utils import aws as door
from utils.errors import CopyDiffers, DatasetMissing
from utils.exits import Exit
from utils.places import Bucket

ADDRESS = "s3://data/set"


@pytest.fixture
def bucket(aws) -> Bucket:
    s3 = door.client("s3")
    s3.create_bucket(Bucket="data", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
    return Bucket(ADDRESS)


def images(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    (folder / "real").mkdir(parents=True)
    for number in range(count):
        (folder / "real" / f"{number:03}.png").write_bytes(encode(rng.integers(0, 256, (8, 8, 3), np.uint8), "PNG"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lifecycle.cloud.data", *arguments], text=True, stdout=subprocess.PIPE
    )


@pytest.mark.slow
def test_500_images_pushed_in_two_halves_come_back_the_same(bucket, tmp_path):
    folder = images(tmp_path / "images", 500)
    first = run("push", str(folder), ADDRESS, "--jobs", "2")
    while sum(1 for _ in bucket.names()) < 200:
        assert first.poll() is None
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    there = sum(1 for _ in bucket.names())
    assert 200 <= there < 500
    with pytest.raises(DatasetMissing, match="push one first"):  # nobody pulls a half
        pull(bucket, tmp_path / "early", Options())

    second = run("push", str(folder), ADDRESS)
    said, _ = second.communicate()
    assert second.returncode == Exit.DONE
    assert f"pushed {500 - there} of 500 files" in said
    verify(folder, bucket, Options())
    third = run("pull", str(tmp_path / "other"), ADDRESS)
    third.communicate()
    assert third.returncode == Exit.DONE
    assert contents(tmp_path / "other") == contents(folder)


def test_a_large_file_goes_in_parts_and_a_killed_push_sends_only_the_rest(bucket, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(1)
    (folder / "shard.tar").write_bytes(rng.bytes(13 * 2**20))
    options = Options(jobs=1, part=5 * 2**20)
    s3 = bucket.client
    real, sent = s3.upload_part, []

    def dies_at_the_second(**given):
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(given["PartNumber"])
        return real(**given)

    monkeypatch.setattr(s3, "upload_part", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        push(folder, bucket, options)
    assert manifests(bucket) == []
    monkeypatch.setattr(s3, "upload_part", lambda **given: sent.append(given["PartNumber"]) or real(**given))
    push(folder, bucket, options)
    assert sorted(sent) == [1, 2, 3]
    verify(folder, bucket, options)

    fetched = []
    get = s3.get_object

    def breaks_off(**given):
        if given.get("Range", "").startswith("bytes=5242880"):
            raise KeyboardInterrupt
        return get(**given)

    monkeypatch.setattr(s3, "get_object", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        pull(bucket, tmp_path / "copy", options)
    assert not (tmp_path / "copy" / "shard.tar").exists()
    monkeypatch.setattr(s3, "get_object", lambda **given: fetched.append(given.get("Range")) or get(**given))
    pull(bucket, tmp_path / "copy", options)
    assert "bytes=0-5242879" not in fetched
    assert contents(tmp_path / "copy") == contents(folder)


def test_files_are_encrypted_by_the_key_that_is_named_and_otherwise_as_the_bucket_says(bucket, tmp_path):
    folder = images(tmp_path / "a", 1)
    assert Options().encryption == {}  # which would overrule the bucket's
    push(folder, bucket, Options(kms="alias/ours"))
    head = bucket.client.head_object(Bucket="data", Key="set/real/000.png")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/ours")


def test_an_older_version_can_be_pulled_and_nothing_is_deleted_unasked(bucket, tmp_path):
    folder = images(tmp_path / "a", 3)
    before = contents(folder)
    first = push(folder, bucket, Options())
    assert push(folder, bucket, Options()) == first  # nothing changed, no new version
    (folder / "real" / "000.png").write_bytes(b"changed")
    (folder / "real" / "001.png").unlink()
    push(folder, bucket, Options())
    assert set(read_manifest(bucket)) == set(before)
    push(folder, bucket, Options(delete=True))
    assert set(read_manifest(bucket)) == set(contents(folder))
    assert len(manifests(bucket)) == 3

    pull(bucket, tmp_path / "old", Options(), first)
    assert contents(tmp_path / "old") == before
    pull(bucket, tmp_path / "old", Options())
    assert "real/001.png" in contents(tmp_path / "old")
    pull(bucket, tmp_path / "old", Options(delete=True))
    assert contents(tmp_path / "old") == contents(folder)


@pytest.mark.parametrize("end", ["folder", "s3"])
def test_a_file_that_differs_at_either_end_is_named(bucket, tmp_path, end):
    folder = images(tmp_path / "a", 3)
    push(folder, bucket, Options())
    if end == "folder":
        (folder / "real" / "001.png").write_bytes(b"damaged")
    else:
        version = read_manifest(bucket)["real/001.png"].version
        bucket.client.delete_object(Bucket="data", Key="set/real/001.png", VersionId=version)
    with pytest.raises(CopyDiffers, match=r"1 of 3 .*real/001\.png in"):
        verify(folder, bucket, Options())


def test_an_object_that_is_not_the_manifests_is_not_written(bucket, tmp_path):
    folder = images(tmp_path / "a", 1)
    push(folder, bucket, Options())
    (name,) = manifests(bucket)
    said = json.loads(bucket.read(f"{data.MANIFESTS}{name}.json"))
    said["files"]["real/000.png"]["sha256"] = "0" * 64
    bucket.write(f"{data.MANIFESTS}{name}.json", json.dumps(said).encode())
    with pytest.raises(CopyDiffers, match=r"real/000\.png is not the file"):
        pull(bucket, tmp_path / "b", Options())
    assert contents(tmp_path / "b") == {}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_leads_nowhere_else(bucket, tmp_path, name):
    entry = {"size": 1, "sha256": "0", "checksum": "0"}
    bucket.write(f"{data.MANIFESTS}000001-x.json", json.dumps({"files": {name: entry}}).encode())
    with pytest.raises(CopyDiffers, match="no name below a folder"):
        pull(bucket, tmp_path / "b", Options())


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [(403, "InvalidAccessKeyId", "cloud_credentials"), (400, "ExpiredToken", "cloud_token_expired")],
)
def test_a_refused_push_ends_with_one_line_and_code_4(monkeypatch, tmp_path, capsys, status, code, ours):
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
    with refusing(status, body) as url:
        point_to(monkeypatch, url)
        assert data.main(["push", str(images(tmp_path / "a", 1)), ADDRESS]) == Exit.SETUP
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{ours}: ")


def test_a_missing_bucket_ends_with_its_code(aws, tmp_path, capsys):
    assert data.main(["push", str(images(tmp_path / "a", 1)), "s3://nobody-has-this/x"]) == Exit.SETUP
    assert capsys.readouterr().err.startswith("bucket_missing: ")


def test_a_folder_is_no_address(tmp_path):
    assert data.main(["push", str(tmp_path), str(tmp_path)]) == Exit.SETUP
