"""Verdicts that were given before, in the queue's server. Knows neither images nor models; a cache may always miss."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from worker.connect import Client
from worker.stream import Keys

if TYPE_CHECKING:
    from inference.detector import Verifier

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


_known: WeakKeyDictionary[Verifier, str] = WeakKeyDictionary()  # a verifier never changes


def fingerprint(verifier: Verifier) -> str:
    """Differs with everything that a verdict depends on beside the image. Found once for each verifier."""
    if verifier not in _known:
        _known[verifier] = _fingerprint(verifier)
    return _known[verifier]


def _fingerprint(verifier: Verifier) -> str:
    parts = {
        "release": verifier.release,
        "fusion": verifier.fusion.name,
        "detectors": {detector.name: detector.version for detector in verifier.ensemble.detectors},
        "forensics": [forensic.name for forensic in verifier.ensemble.forensics],
        "unavailable": sorted(verifier.ensemble.unavailable),
        "threshold": verifier.threshold,
        "stability": verifier.stability,
        "embedding": verifier.embedding,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
