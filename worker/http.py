"""What uvicorn leaves open where strangers connect: how long a request's head may take. Knows no page."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for the request line and the headers; a browser or a scraper sends them at once


class PunctualProtocol(H11Protocol):
    """Closes connections whose request does not begin in time: each holds a file, and a process has about a thousand.

    Give it to ``uvicorn.Config`` as ``http``. A body has a limit of its own, where there are bodies (api/limits.py).
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is not self or self._at_work():  # a WebSocket now, with a protocol of its own
            self._stop_waiting()
        elif self._late is None:  # a further request on the same connection
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self._at_work():
            self.transport.close()
