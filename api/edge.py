"""The outermost layer: request ids, security headers, one access line and one count per request. Decides nothing.

The access log has no query, no header and no address below a route: they may hold names of files or ids that open
answers.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import BUG, respond
from utils.errors import Internal

log = logging.getLogger(__name__)
access = logging.getLogger("api.access")

_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
# Of an answer: to a request, to a WebSocket that is taken, and to one that is not.
_BEGINNINGS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

# The page's own files only. OWASP Secure Headers Project; X-XSS-Protection is left out as it advises.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Edge:
    """ASGI middleware. ``scope["state"]["request_id"]`` is what problems and the log name."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if is_head := scope.get("method") == "HEAD":  # every page answers it as GET, without the body (RFC 9110, 9.3.2)
            scope = {**scope, "method": "GET"}
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] in _BEGINNINGS:
                status = message.get("status", 101)
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            log.exception("request %s", request_id)
            if not status:
                await respond(Internal(BUG), request_id)(scope, receive, send_and_note)
            elif scope["type"] == "websocket":
                with suppress(OSError):  # it is gone
                    await send({"type": "websocket.close", "code": 1011})
        finally:
            self._note(scope, status or 500, time.perf_counter() - began, request_id)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "-")
        given = scope.get("method", "GET")  # a WebSocket begins as one
        method = given if given in _METHODS else "-"  # a stranger must not make up labels
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {"status": status, "ms": round(seconds * 1000), "caller": scope["state"].get("caller", "-")}
        access.info("%s %s", method, route, extra=fields | {"request": request_id})
