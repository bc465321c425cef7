from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import WeightsCorrupt
from utils.persistence import (
    load_model,
    read_arrays,
    read_cards,
    safe_name,
    save_arrays,
    save_model,
    sha256_file,
    write_atomic,
)


def test_a_file_is_written_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_atomic(path, b"first")
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    write_atomic(path, b"third")
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdict.json"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomic(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"untouched")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"untouched", b"new", False)


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize("text", ["photo.jpg", "IMG_0001.JPG", "a-b.c_d.png", "0", "x" * 100])
def test_a_name_that_is_safe_stays(text: str) -> None:
    assert safe_name(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("../../etc/passwd", r"etc_passwd-\w{12}"),
        ("/home/me/my photo.jpg", r"home_me_my_photo-\w{12}\.jpg"),
        ("C:\\x\\photo.png", r"C_x_photo-\w{12}\.png"),
        ("-rf", r"rf-\w{12}"),
        (".bashrc", r"bashrc-\w{12}"),
        ("фото.jpg", r"jpg-\w{12}"),
        ("a\x00b\nc.jpg", r"a_b_c-\w{12}\.jpg"),
        ("..", r"\w{12}"),
        ("", r"\w{12}"),
        ("x" * 300 + ".jpg", r"x{87}-\w{12}"),
    ],
)
def test_any_other_name_is_made_safe(text: str, expected: str) -> None:
    assert re.fullmatch(expected, safe_name(text))


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("./\\-_ \x00\ud800")), max_size=300))
def test_every_text_gives_one_plain_path_component(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", safe_name(text))
    assert safe_name(safe_name(text)) == safe_name(text)


def test_names_that_lose_different_characters_stay_different() -> None:
    assert len({safe_name(text) for text in ("a b.jpg", "a/b.jpg", "a_b.jpg", "a?b.jpg")}) == 4


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# --- model folders


def saved(folder: Path) -> dict[str, np.ndarray]:
    arrays = {"weight": np.arange(6, dtype=np.float16).reshape(2, 3), "steps": np.array(7)}
    save_model(folder, arrays, {"architecture": "toy"}, licence="MIT", layout="rows")
    return arrays


def test_a_model_folder_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    arrays = saved(tmp_path / "toy")
    loaded, metadata = load_model(tmp_path / "toy")
    assert list(loaded) == ["weight"], "counters of training steps are left out"
    assert loaded["weight"].dtype == np.float32
    np.testing.assert_array_equal(loaded["weight"], arrays["weight"])
    assert metadata == {"architecture": "toy"}
    card = read_cards(tmp_path / "toy")["toy"]
    assert (card.file, card.licence, card.layout) == ("toy/weights.safetensors", "MIT", "rows")
    assert card.version == f"toy@sha256:{sha256_file(tmp_path / 'toy' / 'weights.safetensors')[:12]}"


def test_saving_again_keeps_what_the_card_says_of_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "card.toml").write_text('[graph]\nfile = "graph.onnx"\nnote = "drawn by hand"\n')
    saved(folder)
    assert list(read_cards(folder)) == ["toy_graph", "toy"]
    assert read_cards(folder)["toy_graph"].note == "drawn by hand"


@pytest.mark.parametrize("damage", ["a byte", "no weights", "no card", "no hash", "another table"])
def test_a_model_folder_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    saved(tmp_path / "toy")
    weights, card = (tmp_path / "toy" / name for name in ("weights.safetensors", "card.toml"))
    text = card.read_text()
    if damage == "a byte":
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    elif damage in ("no weights", "no card"):
        (weights if damage == "no weights" else card).unlink()
    elif damage == "no hash":
        card.write_text(re.sub("sha256 = .*", "", text))
    else:
        card.write_text(text.replace("[weights]", "[graph]"))
    with pytest.raises(WeightsCorrupt, match="toy"):
        load_model(tmp_path / "toy")


def test_the_same_arrays_make_the_same_file(tmp_path: Path) -> None:
    """The library alone writes six keys of metadata in 720 orders."""
    arrays = {"b": np.arange(3, dtype=np.int8), "a": np.ones((2, 2), np.float32)}
    metadata = {key: f"“{key}”" for key in "fedcba"}
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        save_arrays(path, arrays, metadata)
    assert len({path.read_bytes() for path in paths}) == 1
    found, told = read_arrays(paths[0])
    assert told == metadata
    assert {key: value.tolist() for key, value in found.items()} == {"a": [[1, 1], [1, 1]], "b": [0, 1, 2]}
    assert found["b"].dtype == np.int8


def test_a_transposed_array_is_stored_as_what_it_says(tmp_path: Path) -> None:
    """safetensors writes memory as it lies; a head was spoilt by that."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    one = np.array(2, np.float32)  # no dimension is a shape too
    save_arrays(tmp_path / "x.safetensors", {"a": values.T, "b": np.asfortranarray(values), "c": one}, {})
    found = read_arrays(tmp_path / "x.safetensors")[0]
    np.testing.assert_array_equal(found["a"], values.T)
    np.testing.assert_array_equal(found["b"], values)
    assert found["c"].shape == ()
