"""Judge images from a Redis stream: python -m worker --embedded"""

# ruff: noqa: T201 - a command line prints
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from utils.errors import BadSettings, SetupError
from utils.exits import Exit, command, command_parser, leave
from utils.profiles import DEFAULT_PROFILE, PROFILES

if TYPE_CHECKING:  # imported where used: --help answers at once
    from worker.service import Service

NOTES = """\
jobs        XADD image_verify:jobs * source https://…/a.jpg      from any language; docs/worker.md
signals     SIGTERM or Ctrl-C: finish what the models work on, hand back the rest; a second one: end at once
settings    environment variables and .env; .env.example lists them
            ends with 70 when the models hang; a supervisor should restart it
"""

log = logging.getLogger("worker")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        "python -m worker", "Judge images from a Redis stream and write back explained verdicts.", NOTES
    )
    parser.add_argument("--embedded", action="store_true", help="start a Valkey of our own, with its data in a folder")
    parser.add_argument("--profile", choices=tuple(PROFILES), help=f"which detectors run (default: {DEFAULT_PROFILE})")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    from utils.settings import load_settings
    from worker.embedded import EmbeddedServer
    from worker.logs import configure_worker_logging
    from worker.service import build_service

    settings = load_settings(**({"profile": args.profile} if args.profile else {}))
    configure_worker_logging(settings.log.level, as_json=settings.log.as_json)
    url = settings.queue.redis_url.get_secret_value()
    if not (url or args.embedded):
        raise BadSettings("no server; set REDIS_URL, or start one of our own with --embedded")
    with ExitStack() as stack:
        if args.embedded:
            server = stack.enter_context(EmbeddedServer(settings.queue.embedded_dir))
            url = server.url
        service = build_service(settings, url)
        failure = asyncio.run(serve(service, lambda: announce(url, settings.queue.prefix)))
    if failure is None:
        return Exit.DONE
    if isinstance(failure, SetupError):
        raise failure
    print(f"stopped: {failure}", file=sys.stderr)
    return Exit.STUCK


async def serve(service: Service, ready: Callable[[], None]) -> Exception | None:
    """Run until a signal. A model that does not come back cannot be waited for, so the process ends without it."""
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(Exit.INTERRUPTED)  # leases run out by themselves
        log.warning("stopping; once more to end at once")
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, on_signal)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    return await service.run(ready)


def announce(url: str, prefix: str) -> None:
    """The line to try, on stderr like all that is for people."""
    where = f"-s {url.removeprefix('unix://')}" if url.startswith("unix://") else "-u $REDIS_URL"
    job = f"redis-cli {where} XADD {prefix}:jobs '*' source https://example.org/photo.jpg"
    print(f"ready. Try:  python -m worker.submit photo.jpg\n        or:  {job}", file=sys.stderr, flush=True)


def run() -> NoReturn:
    """The console command."""
    leave(main())


if __name__ == "__main__":
    run()
