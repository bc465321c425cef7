"""Verdicts that were given before, in the queue's server. Knows neither images nor models; a cache may always miss."""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from worker.connect import Client
from worker.stream import Keys

log = logging.getLogger(__name__)


class RedisCache:
    def __init__(self, client: Client, keys: Keys, seconds: int) -> None:
        self._client = client
        self._keys = keys
        self._seconds = seconds

    async def get(self, digest: str) -> bytes | None:
        try:
            found = await self._client.get(self._keys.cached(digest))
        except (RedisError, OSError) as error:
            log.warning("cache: %s", error)
            return None
        return found if isinstance(found, bytes) else None

    async def put(self, digest: str, verdict: bytes) -> None:
        try:
            await self._client.set(self._keys.cached(digest), verdict, ex=self._seconds)
        except (RedisError, OSError) as error:
            log.warning("cache: %s", error)
