"""How every command ends: its exit codes, and the frame it runs in.

docs/errors.md has the table (a test compares). 70 is EX_SOFTWARE of sysexits.h; 130 is what a shell reports of a
program that Ctrl-C ended (128 + SIGINT).
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
import os
import select
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn, ParamSpec

from utils.errors import SetupError, VerifyError

P = ParamSpec("P")

EPILOG = """\
exit codes  0 done     2 bad usage     3 something could not be judged, used or fetched: the message says what
            4 this installation is incomplete     130 interrupted     docs/errors.md explains the messages
"""


class Exit(IntEnum):
    """What a command's caller learns from its end. Python itself gives 1 with a traceback: a bug of ours."""

    DONE = 0
    USAGE = 2  # argparse's own
    FAILED = 3
    SETUP = 4
    FOUND = 5
    STUCK = 70
    INTERRUPTED = 130


def exit_of(error: Exception) -> Exit:
    """The code for a command that ends with this error."""
    return Exit.SETUP if isinstance(error, SetupError) else Exit.FAILED


def complain(error: VerifyError) -> None:
    """One line on stderr: the code, which is stable, and the message, which names the next step."""
    message = " ".join(str(error).splitlines())  # a name in it may have any characters
    print(f"{error.code}: {message}", file=sys.stderr, flush=True)  # noqa: T201 - for the person at the command line


def command(main: Callable[P, int]) -> Callable[P, int]:
    """Make ``main`` end in one way, whatever happens to it.

    A coded error becomes its line on stderr and its code. Ctrl-C ends quietly with 130. A reader that goes away, as in
    ``… | head``, ends the command quietly with 0: it saw what it wanted. A bug keeps its traceback.
    """

    @functools.wraps(main)
    def framed(*args: P.args, **kwargs: P.kwargs) -> int:
        _leave_code_pages()
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # here, where a closed pipe can be told from other failures, not at exit
        except VerifyError as error:
            complain(error)
            return exit_of(error)
        except KeyboardInterrupt:
            return Exit.INTERRUPTED
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL) or not _reader_is_gone():  # EINVAL: Windows says so
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flush stays silent
            return Exit.DONE

    return framed


def leave(status: int) -> NoReturn:
    """End the process at once: a thread that still judges, past the grace, would keep the interpreter from ending."""
    sys.stderr.flush()
    os._exit(status)


def command_parser(prog: str, doc: str | None, notes: str = "") -> argparse.ArgumentParser:
    """A parser whose help ends with ``notes`` and the exit codes.

    Args:
        prog: as the user calls the command.
        doc: what the command does: the docstring of its module.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=doc,
        epilog=notes + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _leave_code_pages() -> None:
    """A pipe on Windows has the characters of one language, and ends a command at a file name in another."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().startswith("cp"):
            stream.reconfigure(encoding="utf-8")  # as RFC 8259 wants JSON


def _reader_is_gone() -> bool:
    """Whether it was stdout that broke, and not a socket of ours."""
    if hasattr(select, "poll"):
        asked = select.poll()
        asked.register(sys.stdout.fileno(), 0)  # no event: an error is told unasked
        return bool(asked.poll(0))
    try:
        sys.stdout.flush()  # Windows: what could not be written still waits there
    except OSError:
        return True
    return False
