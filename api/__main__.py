"""Serve verdicts and the page over HTTP: python -m api"""

# ruff: noqa: T201 - a command line prints
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from utils.exits import Exit, command, command_parser, leave
from utils.profiles import DEFAULT_PROFILE, PROFILES

if TYPE_CHECKING:  # imported where used: --help answers at once
    from utils.settings import Settings

NOTES = """\
keys        python -m api --new-key NAME prints one, and the line for IMGV_API_KEYS; without keys anyone may call
queue       with REDIS_URL images go to workers (python -m worker); without it this process judges them
signals     SIGTERM or Ctrl-C: take nothing new, finish what is in work; a second one: end at once
settings    environment variables and .env; .env.example lists them
            a port that is taken ends it with 4
"""

log = logging.getLogger("api")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m api", "Serve verdicts and a page over HTTP.", NOTES)
    parser.add_argument("--host", help="address to listen on (default: IMGV_API_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on; 0: any free one (default: IMGV_API_PORT)")
    parser.add_argument("--profile", choices=tuple(PROFILES), help=f"which detectors run (default: {DEFAULT_PROFILE})")
    parser.add_argument("--new-key", metavar="NAME", help="print a fresh API key for NAME and exit")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    from utils.settings import load_settings

    if args.new_key is not None:
        return print_key(args.new_key)
    given = {"api_host": args.host, "api_port": args.port, "profile": args.profile}
    return serve(load_settings(**{name: value for name, value in given.items() if value is not None}))


def print_key(name: str) -> int:
    from api.limits import new_key
    from utils.settings import load_settings

    key, digest = new_key()
    load_settings(api_keys=f"{name}={digest}")  # refuses a name that the setting could not hold
    print(f"key, for the caller only:  {key}\nfor IMGV_API_KEYS:         {name}={digest}")
    return Exit.DONE


def serve(settings: Settings) -> int:
    import uvicorn

    from api.app import create_app
    from api.limits import LOOPBACK, WEBSOCKET_BYTES
    from api.queued import QueueBackend
    from worker.http import PunctualProtocol
    from worker.logs import configure_worker_logging

    configure_worker_logging(settings.log.level, as_json=settings.log.as_json)
    logging.getLogger("api.access").setLevel(logging.INFO)
    if settings.api.host not in LOOPBACK and not settings.api.keys:
        log.warning("anyone who reaches %s may call: IMGV_API_KEYS is empty", settings.api.host)
    app = create_app(settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(Exit.INTERRUPTED)
            super().handle_exit(sig, frame)
            app.state.server.stopping.set()  # or event streams of jobs elsewhere hold us for the whole grace

        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"ready. Open  http://{shown}:{port}/", file=sys.stderr, flush=True)

    server = Server(
        uvicorn.Config(
            app,
            host=settings.api.host,
            port=settings.api.port,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,  # ours names routes, not paths: a path may hold the id that opens an answer
            server_header=False,
            proxy_headers=bool(settings.api.proxies),
            forwarded_allow_ips=list(settings.api.proxies) or None,
            timeout_graceful_shutdown=round(settings.pipeline.drain_seconds),
            http=PunctualProtocol,
            ws="websockets-sansio",
            ws_max_size=WEBSOCKET_BYTES,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again at the end, which would be our status
        signal.signal(number, lambda *_: None)

    async def run() -> None:
        if isinstance(backend := app.state.server.backend, QueueBackend):
            await backend.check()
        await server.serve()

    try:
        asyncio.run(run())
    except SystemExit:  # uvicorn's way to say that it cannot listen
        return Exit.SETUP
    return Exit.DONE if server.started else Exit.SETUP


def run() -> NoReturn:
    """The console command."""
    leave(main())


if __name__ == "__main__":
    run()
