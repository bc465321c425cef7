"""The example runs the commands that the guide promises, and goes on with the model that training names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from examples import complete

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


def test_the_example_runs_the_five_lines_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    def record(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        quoted = [f'"{word}"' if " " in word else word for word in arguments[1:]]
        commands.append(" ".join(["python", *quoted]))
        return subprocess.CompletedProcess(arguments, 0, "next: IMGV_FUSION=own-x python img_ml_verify.py photo.jpg")

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setenv("IMGV_FUSION", "")
    complete.main([])
    text = GUIDE.read_text()
    for command in (*(each.removesuffix(" data") for each in commands[:3]), commands[3].partition(" --dataset")[0]):
        assert f"\n{command}\n" in text or f"\n{command} " in text, command
    assert commands[4] == "python img_ml_verify.py --demo"
    assert complete.os.environ["IMGV_FUSION"] == "own-x"


def test_the_example_ends_where_a_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda arguments, **_: subprocess.CompletedProcess(arguments, 3, ""))
    with pytest.raises(SystemExit, match="3"):
        complete.main([])
