from __future__ import annotations

import subprocess
import sys

import pytest

from utils.errors import BadSettings
from utils.logs import configure_logging


def run(code: str) -> subprocess.CompletedProcess[str]:
    start = "import logging; from utils.logs import configure_logging; log = logging.getLogger('a.b')\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)


def test_an_event_is_one_line_on_stderr() -> None:
    done = run("configure_logging('info'); log.info('seen %s', 3); log.debug('unseen')")
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith(" INFO a.b: seen 3")


def test_configuring_again_replaces_and_does_not_repeat() -> None:
    done = run("configure_logging('DEBUG'); configure_logging('WARNING'); log.info('unseen'); log.warning('seen')")
    assert done.stderr.count("seen") == 1


def test_importing_configures_nothing() -> None:
    assert run("print(logging.getLogger().handlers, logging.getLogger('httpx').level)").stdout == "[] 0\n"


def test_a_message_cannot_forge_a_line_or_drive_the_terminal() -> None:
    done = run("configure_logging('INFO'); log.info('a\\n2026 ERROR b\\x1b[2J\\u2028\\x9b c')")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("a\\x0a2026 ERROR b\\x1b[2J\\u2028\\x9b c\n")


def test_a_traceback_keeps_its_lines() -> None:
    done = run("configure_logging('INFO')\ntry: 1 / 0\nexcept ZeroDivisionError: log.exception('broken')")
    assert done.stderr.splitlines()[1] == "Traceback (most recent call last):"


def test_urls_of_the_http_client_stay_out_of_the_log() -> None:
    done = run(
        "configure_logging('DEBUG')\n"
        "for name in ('httpx', 'httpcore.connection'): logging.getLogger(name).info('GET /?signature=word')"
    )
    assert done.stderr == ""


@pytest.mark.parametrize("level", ["", "LOUD", "10"])
def test_an_unknown_level_names_its_setting(level: str) -> None:
    with pytest.raises(BadSettings, match="IMGV_LOG_LEVEL"):
        configure_logging(level)
