"""The product judges where the system is not POSIX: what Windows lacks is hidden from it, and from its children."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import img_ml_verify as cli

ROOT = Path(__file__).parent.parent

# Python imports a file of this name before anything else. POSIX Python's own library needs its pieces, so it
# is imported first and keeps them.
HIDE = """\
import asyncio, multiprocessing.util, pathlib, platform, selectors, shutil, subprocess, tempfile
import os, signal, socket, sys
subprocess.Popen.kill = subprocess.Popen.terminate
for name in ("resource", "fcntl", "grp", "pwd", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
_unix, _pair = socket.AF_UNIX, socket.socketpair
socket.socketpair = lambda *_: _pair(_unix)  # Windows has one of its own, and asyncio needs it
for module, names in {
    os: "O_NONBLOCK O_DIRECTORY O_NOFOLLOW O_CLOEXEC sched_getaffinity sysconf getloadavg getuid fork killpg wait4",
    signal: "SIGKILL SIGHUP SIGXCPU SIGALRM setitimer pthread_sigmask",
    socket: "AF_UNIX",
}.items():
    for name in names.split():
        delattr(module, name)
"""


@pytest.fixture
def hidden(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IMGV_")}
    return {**kept, "PYTHONPATH": str(tmp_path)}


def _python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_a_file_can_be_replaced_without_what_is_hidden(hidden: dict[str, str], tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from utils.persistence import write_atomic as write; "
    code += "assert sys.modules['resource'] is None and not hasattr(os, 'O_NONBLOCK'); write(Path(sys.argv[1]), b'x')"
    done = _python(hidden, "-c", code, str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("in_child", [False, True])
def test_the_demo_photograph_is_judged(hidden: dict[str, str], in_child: bool) -> None:
    photograph = cli.demo_photograph()
    assert photograph is not None
    command = ("img_ml_verify.py", "--json", str(photograph), str(photograph))
    done = _python({**hidden, "IMGV_DECODE_IN_CHILD": str(in_child)}, *command)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == ["NON-AI", "NON-AI"]
    assert done.stderr.count("no resource limits") == in_child


def test_the_servers_can_be_imported(hidden: dict[str, str]) -> None:
    code = "import api.__main__, api.app, worker.__main__, worker.admin, worker.embedded, worker.service, worker.submit"
    done = _python(hidden, "-c", f"{code}; from pathlib import Path; assert not worker.embedded.is_running(Path('x'))")
    assert done.returncode == 0, done.stderr
