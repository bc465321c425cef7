"""Releases and their store: sealed, published whole, verified, pointed at, rolled back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils import aws as door
from utils.errors import ReleaseUnusable
from utils.releases import MANIFEST, POINTER, BucketStore, Release, Store, seal, store_at


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(folder: Path, name: str, text: str = "model") -> Release:
    (folder / name / "fusion").mkdir(parents=True)
    (folder / name / "fusion" / "model.json").write_text(text)
    return seal(folder / name, name, profile="light", code="abc", data="0" * 64, weights={})


def test_a_release_is_published_whole_and_the_pointer_follows_only_when_told(store: Store, tmp_path: Path) -> None:
    first = store.publish(made(tmp_path, "one"))
    assert first.folder == store.folder / "one"
    assert (first.fusion / "model.json").read_text() == "model"
    with pytest.raises(ReleaseUnusable, match="promote"):
        store.pointer()
    assert store.promote("one").release == "one"
    assert store.current() == first
    store.publish(made(tmp_path, "two"))
    assert store.current() == first
    assert store.names() == ["one", "two"]
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_publishing_again_changes_nothing_and_another_release_of_that_name_is_refused(
    store: Store, tmp_path: Path
) -> None:
    release = made(tmp_path, "one")
    assert store.publish(release) == store.publish(release)
    with pytest.raises(ReleaseUnusable, match="another release of that name"):
        store.publish(made(tmp_path / "elsewhere", "one", "other"))


def test_a_rollback_takes_one_step_and_can_be_repeated(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        store.publish(made(tmp_path, name))
        store.promote(name)
    assert store.promote("three").previous == ("two", "one")  # again is nothing
    assert store.rollback().release == "two"
    assert store.rollback().release == "one"
    with pytest.raises(ReleaseUnusable, match="no release before one"):
        store.rollback()
    assert store.promote("three").previous == ("one",)


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "manifest", "pointer"])
def test_whatever_is_not_as_it_was_promoted_is_refused(store: Store, tmp_path: Path, damage: str) -> None:
    store.publish(made(tmp_path, "one"))
    store.promote("one")
    model = store.folder / "one" / "fusion" / "model.json"
    match damage:
        case "changed":
            model.write_text("other")
        case "missing":
            model.unlink()
        case "added":
            (store.folder / "one" / "models").mkdir()
            (store.folder / "one" / "models" / "card.toml").write_text("")
        case "manifest":
            path = store.folder / "one" / MANIFEST
            path.write_text(path.read_text().replace("light", "full"))
        case "pointer":
            (store.folder / POINTER).write_text('{"release": "one"}')
    with pytest.raises(ReleaseUnusable):
        store.current()


@pytest.mark.parametrize("name", ["../one", "", ".hidden", "a/b"])
def test_a_name_never_leads_out_of_the_store(store: Store, name: str) -> None:
    with pytest.raises(ReleaseUnusable, match="no name"):
        store.open(name)


def test_a_manifest_that_lists_a_file_outside_is_refused(store: Store, tmp_path: Path) -> None:
    store.publish(made(tmp_path, "one"))
    path = store.folder / "one" / MANIFEST
    said = json.loads(path.read_text())
    said["files"]["../two"] = "0" * 64
    path.write_text(json.dumps(said))
    with pytest.raises(ReleaseUnusable, match="two"):
        store.open("one")


@pytest.fixture
def bucket(aws: str, tmp_path: Path) -> str:
    door.client("s3").create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return "s3://models/releases"


def test_a_bucket_publishes_promotes_and_rolls_back_as_a_folder_does(bucket: str, tmp_path: Path) -> None:
    here, elsewhere = (BucketStore(bucket, tmp_path / name) for name in ("here", "elsewhere"))
    with pytest.raises(ReleaseUnusable, match="promote"):
        here.pointer()
    assert here.judging() == ""
    for name in ("one", "two"):
        here.publish(made(tmp_path / "made", name, name))
        here.promote(name)
    assert elsewhere.judging() == "two"
    assert (elsewhere.current().fusion / "model.json").read_text() == "two"
    assert elsewhere.names() == ["one", "two"]
    assert elsewhere.rollback().release == "one"
    assert here.current().name == "one"
    assert here.publish(made(tmp_path / "again", "one", "one")).name == "one"
    with pytest.raises(ReleaseUnusable, match="another release of that name"):
        here.publish(made(tmp_path / "other", "one", "other"))


def test_a_bucket_that_was_tampered_with_is_refused_and_a_damaged_copy_is_copied_again(
    bucket: str, tmp_path: Path
) -> None:
    store = BucketStore(bucket, tmp_path / "copies")
    store.publish(made(tmp_path / "made", "one"))
    store.promote("one")
    (tmp_path / "copies" / "one" / "fusion" / "model.json").write_text("damaged")
    assert (store.current().fusion / "model.json").read_text() == "model"
    s3 = door.client("s3")
    s3.put_object(Bucket="models", Key="releases/one/fusion/model.json", Body=b"other")
    with pytest.raises(ReleaseUnusable, match=r"model\.json is not as it was published"):
        BucketStore(bucket, tmp_path / "fresh").current()
    manifest = json.loads(s3.get_object(Bucket="models", Key=f"releases/one/{MANIFEST}")["Body"].read())
    manifest["files"]["../../out"] = "0" * 64
    s3.put_object(Bucket="models", Key=f"releases/one/{MANIFEST}", Body=json.dumps(manifest).encode())
    s3.put_object(Bucket="models", Key="out", Body=b"x")
    with pytest.raises(ReleaseUnusable, match=r"outside the release|cannot be read"):
        BucketStore(bucket, tmp_path / "fresh").current()
    assert not (tmp_path / "out").exists()


def test_the_address_says_which_store_it_is(tmp_path: Path) -> None:
    assert isinstance(store_at("s3://models/x"), BucketStore)
    assert type(store_at(tmp_path)) is Store
