"""Logging for the command lines: one line per event, on stderr.

Knows no logger but the root one and httpx's; importing it changes nothing.
"""

from __future__ import annotations

import logging
import sys

from utils.errors import BadSettings

# File names, URLs and metadata reach the log: a line break in one would forge an event, an escape sequence would drive
# the reader's terminal.
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class OneLine(logging.Formatter):
    """Escapes control characters in the message; a traceback below it keeps its lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return super().formatMessage(record).translate(_ESCAPED)


def configure_logging(level: str, formatter: logging.Formatter | None = None) -> None:
    """Send the log to stderr from ``level`` up, replacing what an earlier call set up.

    Args:
        formatter: of an event; None: ``OneLine``.

    Raises:
        BadSettings: no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise BadSettings(f"IMGV_LOG_LEVEL: no level {level!r}; use DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter or OneLine())
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in ("httpx", "httpcore"):  # they log whole URLs and headers, which can hold signatures and cookies
        logging.getLogger(name).setLevel(logging.WARNING)
