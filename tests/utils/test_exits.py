"""Commands end in one way, whatever happens to them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils import errors
from utils.exits import Exit, command, command_parser

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotAnImage("x"), 3),
        (errors.FetchFailed("x"), 3),
        (errors.TableError("x"), 3),
        (errors.WeightsMissing("x"), 4),
    ],
)
def test_a_coded_error_is_one_line_and_its_status(capsys, error, status):
    @command
    def main():
        raise error

    assert main() == status
    assert capsys.readouterr().err == f"{error.code}: x\n"


def test_a_name_with_line_breaks_stays_on_the_line(capsys):
    @command
    def main():
        raise errors.FusionCorrupt("no artifact a\nb")

    assert main() == 4
    assert capsys.readouterr().err == "fusion_corrupt: no artifact a b\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)()


def test_an_interrupt_is_quiet(capsys):
    @command
    def main():
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == ""


def _run(body, shell, **environment):
    code = f"import sys\nfrom utils.exits import command\n@command\ndef main():\n    {body}\nsys.exit(main())"
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("body", ["print('x' * 10**6); return 3", "print('x' * 10**6, flush=True); return 3"])
def test_a_reader_that_goes_away_ends_a_command_quietly(body):
    done = _run(body, "| true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_windows_pipe_takes_every_character():
    assert _run("print('写真 →')", "", PYTHONIOENCODING="cp1252").stdout == "写真 →\n"


def test_a_broken_socket_is_not_taken_for_the_reader():
    done = _run("import os; read, write = os.pipe(); os.close(read); os.write(write, b'x')", "")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_help_ends_with_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        command_parser("python -m x", "What it does.\n\nMore.", "note\n").parse_args(["--help"])
    text = capsys.readouterr().out
    assert text.index("More.") < text.index("note") < text.index("exit codes")


def test_the_exit_codes_are_documented():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == sorted({*Exit, 1})


def test_every_command_runs_in_the_frame():
    """Tests and benchmarks are ours alone; the sandbox's file is the child that a command starts."""
    packages = ("scripts", "training", "fusion", "inference", "worker", "api")
    files = [ROOT / "img_ml_verify.py", *(path for name in packages for path in (ROOT / name).glob("*.py"))]
    commands = [path for path in files if '__name__ == "__main__"' in path.read_text()]
    assert len(commands) > 20
    assert [path.name for path in commands if "\n@command\ndef main(" not in path.read_text()] == []
