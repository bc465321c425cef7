"""Who may call, and how much: API keys, rates, and the size of bodies while they stream. Knows no route's meaning."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import RateExceeded, respond
from utils.errors import BadRequest, QueueFull, TooManyBytes, Unauthorized, VerifyError
from utils.settings import ApiSettings, PipelineSettings

PUBLIC = (
    "/",
    "/favicon.ico",
    "/healthz",
    "/readyz",
    "/health",
    "/openapi.json",
    "/docs",
    "/redoc",
    "/v1/schema",
)  # no key is asked
BATCH, CONFIG = "/v1/verify/batch", "/v1/config"
_WITH_BODY = ("POST", "PATCH")
SUBPROTOCOL = "imgv"  # of our WebSocket
WEBSOCKET = "WEBSOCKET"
WEBSOCKET_BYTES = 1024  # of a message to us: none is expected
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FORM_BYTES = 64 << 10  # boundaries, names and options around the images


def new_key() -> tuple[str, str]:
    """A fresh key of 256 random bits, and its hash.

    Plain SHA-256 is enough for a secret that nobody can guess; slow hashes are for passwords.
    """
    key = "imgv_" + secrets.token_urlsafe(32)
    return key, _hash(key)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The accepted keys, by their hashes."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        """
        Args:
            hashes: SHA-256 of each key, by its owner's name; empty: no key is asked.
        """
        self._hashes = hashes

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def name_of(self, headers: Headers, protocols: Sequence[str] = ()) -> str:
        """Whose key it is, from ``Authorization: Bearer`` or ``X-API-Key``. Every hash is compared, in constant time.

        Args:
            protocols: that a WebSocket offers; a browser can give a key nowhere else. It stands behind our own.

        Raises:
            Unauthorized: no key, or not one of ours.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _hash(protocols[1] if not key and len(protocols) == 2 and protocols[0] == SUBPROTOCOL else key)
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(digest, known)]
        if not found:
            raise Unauthorized("give a known API key: Authorization: Bearer …, or X-API-Key: …")
        return found[0]


class RateLimiter:
    """A token bucket per caller: a minute's worth at once, then the steady rate."""

    def __init__(self, per_minute: int, most_callers: int = 10_000) -> None:
        """
        Args:
            most_callers: that are remembered; of more, those that called longest ago are forgotten.
        """
        self._most_callers = most_callers
        self._most = float(per_minute)
        self._per_second = per_minute / 60
        self._buckets: dict[str, tuple[float, float]] = {}  # caller -> tokens, and when

    def set_rate(self, per_minute: int) -> None:
        self._most, self._per_second = float(per_minute), per_minute / 60

    def take(self, caller: str) -> None:
        """One image.

        Raises:
            RateExceeded: too many; says when to come back. Nothing is taken then.
        """
        tokens = self._tokens(caller)
        if tokens < 1:
            seconds = (1 - tokens) / self._per_second
            raise RateExceeded(f"more than {self._most:.0f} images a minute; try again in {seconds:.0f} s", seconds)
        self._keep(caller, tokens - 1)

    def charge(self, caller: str, images: int) -> None:
        """Further images of a request that was taken. They may be owed: a batch has its own limit."""
        self._keep(caller, self._tokens(caller) - images)

    def _tokens(self, caller: str) -> float:
        now = time.monotonic()
        tokens, since = self._buckets.get(caller, (self._most, now))
        return min(self._most, tokens + (now - since) * self._per_second)

    def _keep(self, caller: str, tokens: float) -> None:
        self._buckets.pop(caller, None)
        self._buckets[caller] = (tokens, time.monotonic())
        if len(self._buckets) > self._most_callers:  # the one that called longest ago has a full bucket, or nearly
            del self._buckets[next(iter(self._buckets))]


def caller_of(scope: Scope) -> str:
    """The address, for callers without a key. An IPv6 customer owns a /64."""
    host = scope["client"][0] if scope.get("client") else "local"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a unix socket has no address
        return str(host)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


class _Budget:
    """What all callers share: open requests, or bytes of their bodies.

    One caller has at most three quarters, so that bodies which never end lock nobody else out.
    """

    def __init__(self, most: int, what: str, least: int = 1) -> None:
        """
        Args:
            least: what one caller may have at any rate: one request of the largest kind.
        """
        self._most, self._per_caller = most, max(most - most // 4, least)
        self._taken: Counter[str] = Counter()
        self._what = what

    def check(self, caller: str, size: int) -> None:
        """
        Raises:
            QueueFull: no room for so much more.
        """
        if self._taken.total() + size > self._most or self._taken[caller] + size > self._per_caller:
            raise QueueFull(f"as many {self._what} as this server takes; try again shortly")

    def take(self, caller: str, size: int) -> None:
        self._taken[caller] += size

    def give_back(self, caller: str, size: int) -> None:
        self._taken[caller] -= size
        self._taken += Counter()  # forgets who has none


class Gate:
    """ASGI middleware that refuses before a body is read what can be refused then, and the rest while it streams."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ApiSettings,
        pipeline: PipelineSettings,
        max_bytes: int,
        limiter: RateLimiter,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            max_bytes: of one image.
        """
        self._app = app
        self._keys = KeyRing(settings.keys)
        self._limiter = limiter
        self._metrics = metrics
        self._origins = frozenset(settings.origins)
        self._hosts = frozenset(settings.hosts)
        if not self._hosts and settings.host in LOOPBACK:
            self._hosts = frozenset(LOOPBACK)  # else a page could reach us by a name that it points here
        # Base64 takes 4 bytes for 3.
        self._most = {BATCH: settings.batch_mb << 20, CONFIG: _FORM_BYTES}
        self._most_single = max_bytes * 4 // 3 + _FORM_BYTES
        largest = max(self._most_single, *self._most.values())
        self._bytes = _Budget(max(pipeline.max_mb << 20, largest), "bytes are in work", largest)
        self._requests = _Budget(pipeline.max_jobs, "requests are open")
        self._seconds = settings.upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            state["caller"] = self._check(scope)
        except VerifyError as error:
            await respond(error, state.get("request_id", ""))(scope, receive, send)
            return
        if _kind(scope) not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        caller = state["caller"]
        reserve = partial(self._reserve, caller)
        body = _Body(receive, reserve, self._most.get(scope["path"], self._most_single), self._seconds)
        self._requests.take(caller, 1)
        try:
            await self._app(scope, body, send)
        finally:
            self._requests.give_back(caller, 1)
            self._bytes.give_back(caller, body.received)
            self._metrics.received.inc(body.received)

    def _check(self, scope: Scope) -> str:
        """Who calls.

        Raises:
            VerifyError: not to be served.
        """
        headers = Headers(scope=scope)
        self._check_site(headers, kind := _kind(scope))
        path = scope["path"]
        public = path in PUBLIC or path.startswith("/static/")
        offered = scope.get("subprotocols", ())
        caller = caller_of(scope) if public or not self._keys else self._keys.name_of(headers, offered)
        if kind in _WITH_BODY and not public:
            most = self._most.get(path, self._most_single)
            announced = headers.get("content-length", "0")
            if announced.isdigit() and int(announced) > most:
                raise _too_large(most)
            self._requests.check(caller, 1)
            if not path.startswith(CONFIG):  # no image; and whoever set the rate too low must be able to mend it
                self._limiter.take(caller)
        return caller

    def _check_site(self, headers: Headers, kind: str) -> None:
        """Pages of other sites may call only when they are on the list. A browser lets any page open a WebSocket."""
        host = headers.get("host", "")
        if self._hosts and _parts(f"//{host}").hostname not in self._hosts:
            raise BadRequest("this server does not answer to that name; see IMGV_API_HOSTS")
        origin = headers.get("origin")
        foreign = origin and origin not in self._origins and _parts(origin).netloc != host
        if foreign and kind in (*_WITH_BODY, WEBSOCKET):
            raise BadRequest("pages of that origin may not call; see IMGV_API_ORIGINS")

    def _reserve(self, caller: str, size: int) -> None:
        self._bytes.check(caller, size)
        self._bytes.take(caller, size)


class _Body:
    """A request's body that counts itself while it arrives, and may not take for ever."""

    def __init__(self, receive: Receive, reserve: Callable[[int], None], most: int, seconds: float) -> None:
        self.received = 0
        self._receive: Callable[[], Awaitable[Message]] = receive
        self._reserve = reserve
        self._most = most
        self._deadline = time.monotonic() + seconds
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # what follows is only the client's going away, for which nobody is in a hurry
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise BadRequest("the request's body took too long to arrive; see IMGV_API_UPLOAD_SECONDS") from None
        size = len(message.get("body", b""))
        if self.received + size > self._most:
            raise _too_large(self._most)
        self._reserve(size)
        self.received += size
        self._whole = not message.get("more_body", False)
        return message


def _kind(scope: Scope) -> str:
    """The method, or that it is a WebSocket."""
    return WEBSOCKET if scope["type"] == "websocket" else str(scope["method"])


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _too_large(most: int) -> TooManyBytes:
    return TooManyBytes(f"the request is larger than {most:,} bytes; send a smaller one")
