"""Web servers on loopback: one that answers, one that never does; and a download without the guard against both."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from utils.errors import FetchTimeout
from utils.settings import FetchSettings


class Site:
    """``url`` serves one file under every path; what is sent to ``silent`` is never answered."""

    def __init__(self, body: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=128)  # the kernel accepts; nobody reads
        self.url, self.silent = (
            f"http://127.0.0.1:{each.getsockname()[1]}" for each in (self._server.socket, self._silent)
        )

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._silent.close()


async def fetch_without_guard(settings: FetchSettings, url: str, max_bytes: int) -> bytes:
    """In place of ``ingress.sources.fetch_within``, which would refuse loopback."""
    try:
        async with httpx.AsyncClient(timeout=settings.seconds, trust_env=False) as client:
            return (await client.get(url)).content
    except httpx.TimeoutException as error:
        raise FetchTimeout("too slow") from error
