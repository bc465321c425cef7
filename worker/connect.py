"""A Redis or Valkey client from a URL. Knows how to reach a server, not what is stored there.

redis://user:password@host:6379/0        rediss://…  with TLS (ssl_ca_certs=… and the like as query parameters)
unix:///run/valkey.sock
redis+sentinel://host:26379,host2:26379/service/0        rediss+sentinel://…
redis+cluster://host:6379                                rediss+cluster://…
"""

from __future__ import annotations

from typing import Any, TypeAlias
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from utils.errors import BadSettings

Client: TypeAlias = "Redis | RedisCluster"

# A reader blocks for at most BLOCK_MS. redis-py 8 gives a socket 5 s by default and repeats the command in silence, so
# a longer block would never return.
BLOCK_MS = 2000
SOCKET_SECONDS = 5.0
CONNECT_SECONDS = 3.0
_ONCE = Retry(NoBackoff(), 0)  # redis-py would repeat a command ten times, and an XADD would then be there twice


def connect(url: str) -> Client:
    """A client that connects on first use. It never repeats a command by itself: the callers know what is safe.

    Raises:
        BadSettings: the URL is not one of the forms above.
    """
    options: dict[str, Any] = {"socket_timeout": SOCKET_SECONDS, "socket_connect_timeout": CONNECT_SECONDS}
    try:
        scheme, _, kind = urlsplit(url).scheme.partition("+")
        if kind == "sentinel":
            return _sentinel(url, scheme, options)
        if kind == "cluster":
            cluster = RedisCluster.from_url(url.replace("+cluster", "", 1), **options)
            cluster.set_response_callback("XREADGROUP", _as_sent)
            return cluster
        if scheme != "unix":
            options["socket_keepalive"] = True
        return Redis.from_url(url, retry=_ONCE, health_check_interval=15, **options)
    except (ValueError, TypeError) as error:
        raise BadSettings(f"REDIS_URL: {error}; see docs/worker.md") from None


def _as_sent(response: Any, **_: Any) -> Any:
    """A reply as the server gave it: in the dicts that redis-py makes, a field that stands twice is there once."""
    return response


def _sentinel(url: str, scheme: str, options: dict[str, Any]) -> Client:
    """The master of a service, looked up again at each new connection, so that a failover is followed."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("redis+sentinel:// needs a service name: redis+sentinel://host:26379/service/0")
    addresses = [(host, int(port or 26379)) for host, _, port in (each.partition(":") for each in hosts.split(","))]
    told = {"socket_timeout": SOCKET_SECONDS, "ssl": scheme == "rediss"}
    sentinel = Sentinel(addresses, sentinel_kwargs=told)  # type: ignore[no-untyped-call]  # redis-py
    return sentinel.master_for(  # type: ignore[no-any-return]  # likewise
        service,
        db=int(database or 0),
        username=user or None,
        password=password or None,
        ssl=scheme == "rediss",
        retry=_ONCE,
        socket_keepalive=True,
        **options,
    )
