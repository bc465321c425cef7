"""What a caller may name: folders without their side files, and base64 in a data: URI."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

import pytest

from ingress.sources import expand, from_base64, from_data_uri, shown
from utils.errors import NotAnImage, TooManyBytes


def test_side_files_of_a_folder_are_passed_over_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "b.jpg",
        "a.png",
        "._a.png",
        "Thumbs.db",
        "desktop.ini",
        "d/.DS_Store",
        "notes.txt",
        "__MACOSX/._b.jpg",
        "__MACOSX/c.jpg",
        "d/e.webp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        found = list(expand([str(tmp_path)]))
    assert found == [str(tmp_path / name) for name in ("a.png", "b.jpg", "d/e.webp")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 files without the suffix of an image passed over: .txt 1",
        f"{tmp_path}: 6 side files of the system (._*, Thumbs.db and the like) passed over",
    ]


def test_a_side_file_that_is_named_itself_gets_its_answer(tmp_path: Path) -> None:
    assert list(expand([str(tmp_path / "._a.png")])) == [str(tmp_path / "._a.png")]


def test_a_folder_is_searched_whatever_links_depth_and_rights_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "closed").mkdir()
    monkeypatch.chdir(tmp_path)
    for _ in range(400):  # deeper than a walk that calls itself gets
        Path("d").mkdir()
        os.chdir("d")
    real = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(expand([str(tmp_path)]))
    for _ in range(400):  # pytest could not
        os.chdir("..")
        Path("d").rmdir()
    assert found == [str(tmp_path / name) for name in ("a.png", "link.png", "loop.png")]
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"data:image/png;base64,AAAA", bytes(3)),
        (b"DATA:;base64,AAAA", bytes(3)),
        (b"AAAA", bytes(3)),
        (b"AA==", bytes(1)),
        (b"", b""),
    ],
)
def test_base64_is_decoded_alone_or_in_a_data_uri(given: bytes, expected: bytes) -> None:
    assert from_base64(given, 3) == expected


@pytest.mark.parametrize(
    "given", [b"data:image/png,AAAA", b"data:" + b"x" * 300 + b";base64,AAAA", b"AA\nAA", b"A", "\u00e4".encode()]
)
def test_what_is_no_base64_is_none(given: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_base64(given, 1000)


@pytest.mark.parametrize("size", range(1, 9))
def test_base64_is_refused_from_the_first_byte_over_the_limit_on(size: int) -> None:
    encoded = base64.b64encode(bytes(size))
    assert from_base64(encoded, size) == bytes(size)
    with pytest.raises(TooManyBytes):
        from_base64(encoded, size - 1)


def test_a_data_uri_is_an_image_and_has_a_short_name() -> None:
    assert from_data_uri("data:image/png;base64,/9g=", 2) == b"\xff\xd8"
    assert shown("data:image/png;base64,/9g=") == "data:image/png;base64,…"
    assert shown("photo.jpg") == "photo.jpg"


@pytest.mark.parametrize("given", ["data:", "data:image/png,abc", "data:image/png;base64,a", "data:;base64,\udcff"])
def test_a_data_uri_without_base64_is_refused(given: str) -> None:
    with pytest.raises(NotAnImage, match="base64"):
        from_data_uri(given, 1000)
