"""What a caller may name: folders without their side files, and base64 in a data: URI."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ingress.sources import expand, without_data_uri


def test_side_files_of_a_folder_are_passed_over_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "b.jpg",
        "a.png",
        "._a.png",
        "Thumbs.db",
        ".DS_Store",
        "__MACOSX/._b.jpg",
        "__MACOSX/c.jpg",
        "d/e.webp",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        found = list(expand([str(tmp_path)]))
    assert found == [str(tmp_path / name) for name in ("a.png", "b.jpg", "d/e.webp")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 side files of macOS (._*) passed over"
    ]


def test_a_side_file_that_is_named_itself_gets_its_answer(tmp_path: Path) -> None:
    assert list(expand([str(tmp_path / "._a.png")])) == [str(tmp_path / "._a.png")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"data:image/png;base64,AAAA", b"AAAA"),
        (b"DATA:;base64,AAAA", b"AAAA"),
        (b"AAAA", b"AAAA"),
        (b"data:image/png,AAAA", b"data:image/png,AAAA"),  # not base64
        (b"data:" + b"x" * 300 + b";base64,AAAA", b"data:" + b"x" * 300 + b";base64,AAAA"),
    ],
)
def test_a_data_uri_is_taken_off(given: bytes, expected: bytes) -> None:
    assert without_data_uri(given) == expected
