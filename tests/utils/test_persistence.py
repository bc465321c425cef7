from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.persistence import safe_name, sha256_file, write_atomic


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
