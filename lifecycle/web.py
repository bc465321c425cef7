"""A polite client: robots.txt, a rate for each host, patience where a server asks for it, our name. Guarded as all
downloads of the product are (ingress/fetch.py); nothing here opens a connection by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from aiolimiter import AsyncLimiter
from protego import Protego
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ingress import fetch
from utils.contracts import Json
from utils.errors import FetchFailed, FetchTimeout, NotAnImage, TooManyBytes, TransientError, UrlNotFound, UrlRefused
from utils.settings import Settings

AGENT = "img-ml-verify-collect"  # what a site's robots.txt may address
ATTEMPTS = 5
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is left for another day
PER_SECOND = 1.0  # requests to one host, where its robots.txt asks for no other pace
SLOWEST = 1 << 20  # bytes a second, of large files: a slower server is left for another day
_JSON_BYTES = 16 << 20
_ROBOTS_BYTES = 512 << 10  # RFC 9309 section 2.5 asks for 500 KiB


class Web:
    """One for a whole collection. Must be used inside one event loop: its limiters belong to it."""

    def __init__(self, settings: Settings, per_second: float = PER_SECOND) -> None:
        self._fetch = settings.fetch
        self._max_bytes = settings.decode.max_bytes
        self._per_second = per_second
        self._paces: dict[str, AsyncLimiter] = {}
        self._robots: dict[str, Protego] = {}  # by site
        self._lawless: dict[str, FetchFailed] = {}  # sites whose robots.txt cannot be had for now
        self._left: dict[str, FetchFailed] = {}  # hosts that asked for more patience than we have

    async def image(self, url: str) -> bytes:
        """
        Raises:
            UrlRefused: the site's robots.txt, or the guard, forbids it.
            InputError, TransientError: as ``ingress.fetch.fetch_async``; a transient one after ATTEMPTS, or when
                robots.txt cannot be had for now.
        """
        return await self._allowed(url, self._max_bytes)

    async def file(self, url: str, most: int) -> bytes:
        """A large file of at most ``most`` bytes, which may take as long as SLOWEST says; errors as ``image``."""
        return await self._allowed(url, most, max(self._fetch.seconds, most / SLOWEST))

    async def page(self, url: str) -> str:
        """A page's HTML; errors as ``image``."""
        return (await self._allowed(url, _JSON_BYTES)).decode("utf-8", "replace")

    async def api(self, url: str, query: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Json:
        """JSON of a documented programming interface, which robots.txt is not about.

        Raises:
            NotAnImage: the answer is no JSON.
        """
        asked = urlencode({key: value for key, value in query.items() if value not in (None, "")})
        whole = f"{url}{'&' if '?' in url else '?'}{asked}" if asked else url
        raw = await self._patiently(whole, _JSON_BYTES, headers or {})
        try:
            return json.loads(raw)
        except ValueError as error:
            raise NotAnImage(f"{urlsplit(url).hostname} answered something else than JSON: {error}") from error

    async def _allowed(self, url: str, most: int, seconds: float | None = None) -> bytes:
        robots = await self._rules(url)
        if not robots.can_fetch(url, AGENT):
            raise UrlRefused(f"robots.txt of {urlsplit(url).hostname} asks not to fetch {urlsplit(url).path}")
        return await self._patiently(url, most, {}, seconds)

    async def _rules(self, url: str) -> Protego:
        """A site's robots.txt, asked for once.

        Raises:
            FetchFailed: it is in trouble; RFC 9309 section 2.3.1.4 then allows nothing, until another day.
        """
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc}"
        if site not in self._robots:
            self._robots[site] = await self._read_rules(site)
            if delay := self._robots[site].crawl_delay(AGENT):
                self._paces[parts.netloc] = AsyncLimiter(1, float(delay))
        return self._robots[site]

    async def _read_rules(self, site: str) -> Protego:
        if site in self._lawless:
            raise self._lawless[site]
        try:
            raw = await self._patiently(f"{site}/robots.txt", _ROBOTS_BYTES, {})
        except (UrlNotFound, UrlRefused):  # section 2.3.1.3: without one everything is allowed; the guard still judges
            return Protego.parse("")
        except (TransientError, TooManyBytes) as error:
            self._lawless[site] = FetchFailed(f"{site}/robots.txt cannot be had for now: {error}")
            raise self._lawless[site] from error
        return Protego.parse(raw.decode("utf-8", "replace"))

    async def _patiently(self, url: str, most: int, headers: Mapping[str, str], seconds: float | None = None) -> bytes:
        host = urlsplit(url).netloc
        pace = self._paces.setdefault(host, AsyncLimiter(1, 1 / self._per_second))
        if host in self._left:
            raise self._left[host]
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(_may_pass), stop=stop_after_attempt(ATTEMPTS), wait=_wait, reraise=True
            ):
                with attempt:
                    async with pace:
                        return await fetch.fetch_async(
                            url,
                            max_bytes=most,
                            seconds=self._fetch.seconds if seconds is None else seconds,
                            connect_seconds=self._fetch.connect_seconds,
                            redirects=self._fetch.redirects,
                            ports=frozenset(self._fetch.ports),
                            headers={"User-Agent": AGENT, **headers},
                        )
        except FetchFailed as error:
            if (error.retry_after or 0) > LONGEST_WAIT:
                self._left[host] = error
            raise
        raise AssertionError("tenacity raises or returns")


def _may_pass(error: BaseException) -> bool:
    """Whether to ask again now: not where the server asks for more patience than LONGEST_WAIT."""
    return isinstance(error, FetchFailed | FetchTimeout) and (getattr(error, "retry_after", None) or 0) <= LONGEST_WAIT


_backoff = wait_exponential_jitter(initial=1, max=30)


def _wait(state: RetryCallState) -> float:
    """What the server asked for, else longer each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    return float(asked) if asked is not None else _backoff(state)
