"""The worker's log: text for people, or one JSON object per line for machines, with the job's id where there is one."""

from __future__ import annotations

import copy
import json
import logging
import time

from utils.logs import OneLine, configure_logging

# What every record has; anything else came in by extra={...}.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)  # escapes control characters


class _Text(OneLine):
    """Appends what JSON would show as fields. The record is every handler's, so a copy is changed."""

    def format(self, record: logging.LogRecord) -> str:
        if extra := _extra(record):
            record = copy.copy(record)
            record.msg = f"{record.getMessage()} ({', '.join(f'{name}={value}' for name, value in extra.items())})"
            record.args = None
        return super().format(record)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def configure_worker_logging(level: str, *, as_json: bool) -> None:
    """As utils.logs.configure_logging, which sets the level and quietens libraries.

    Raises:
        BadSettings: no such level.
    """
    configure_logging(level, _Json() if as_json else _Text())
