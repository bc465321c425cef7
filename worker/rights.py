"""Whether the server lets us do all that we shall do, tried at the start: a right that is missing at noon stops noon.

Servers check a command's rights before they look at its arguments, so each command below is sent so that it is either
without effect or refused for its arguments. Whatever a server answers but NOPERM is fine here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError

from utils.errors import BadSettings
from worker.connect import Client
from worker.stream import Keys, aside, delayed, payloads

log = logging.getLogger(__name__)

_NO_ID, _NOBODY = "0-0", "rights-check"  # no entry, consumer, job, member or field is called so
_AT_ONCE = 50  # commands in one pipeline
_REFUSALS = (AuthenticationError, AuthorizationError, NoPermissionError)


class Try(NamedTuple):
    """A command without effect, and the rule that allows its key or channel."""

    command: tuple[str, ...]
    rule: str


def worker_needs(keys: Keys, consumer: str, *, callbacks: bool, cache: bool) -> list[Try]:
    """All that ``worker.stream``, its scripts and ``worker.cache`` do."""
    group = "workers"
    queues = (keys.streams, (keys.callbacks,)) if callbacks else (keys.streams,)
    tries = [Try((name,), "") for name in ("PING", "TIME")]
    for stream in [stream for queue in queues for stream in queue]:
        tries += _on(
            stream,
            ("XGROUP", "CREATE", stream, group, "not-an-id"),
            ("XGROUP", "DELCONSUMER", stream, group, _NOBODY),
            ("XREADGROUP", "GROUP", group, consumer, "COUNT", "1", "STREAMS", stream, "0"),  # our own, so none
            ("XPENDING", stream, group),
            ("XCLAIM", stream, group, consumer, "0", _NO_ID),
            ("XACK", stream, group, _NO_ID),
            ("XDEL", stream, _NO_ID),
            ("XADD", stream, _NO_ID, "a", "b"),
            ("XRANGE", stream, _NO_ID, _NO_ID),
            ("XLEN", stream),
            ("XINFO", "GROUPS", stream),
            ("XINFO", "CONSUMERS", stream, group),
            ("TYPE", stream),
        )
    for key in keys.written:
        for each in (key, aside(key)):
            tries += _on(each, ("XADD", each, _NO_ID, "a", "b"), ("XTRIM", each, "MINID", _NO_ID), ("TYPE", each))
        tries += _on(aside(key), ("XRANGE", aside(key), _NO_ID, _NO_ID), ("XDEL", aside(key), _NO_ID))
    for queue in queues:
        later, fields = delayed(queue), payloads(queue)
        tries += _on(later, ("ZADD", later, "no-number", _NOBODY), ("ZREM", later, _NOBODY), ("TYPE", later))
        tries += _on(later, ("ZRANGEBYSCORE", later, "1", "0"), ("ZCARD", later))
        tries += _on(fields, ("HSET", fields, "a", "b", "c"), ("HGET", fields, _NOBODY), ("HDEL", fields, _NOBODY))
    verdict = keys.verdict(_NOBODY)
    tries += _on(verdict, ("SET", verdict, "", "EX", "0"), ("TYPE", verdict))
    if cache:
        cached = keys.cached(_NOBODY)
        tries += _on(cached, ("SET", cached, "", "EX", "0"), ("GET", cached))
    tries.append(Try(("PUBLISH", verdict, ""), f"&{keys.prefix}:*"))
    return tries + _scripts(keys.streams[0])


def producer_needs(keys: Keys) -> list[Try]:
    """All that ``worker.submit.enqueue`` and the API do."""
    verdict, queued, stream = keys.verdict(_NOBODY), keys.queued(_NOBODY), keys.streams[1]
    tries = [Try(("PING",), "")]
    tries += _on(verdict, ("EXISTS", verdict), ("GET", verdict), ("MGET", verdict))
    tries += _on(queued, ("GET", queued), ("EXISTS", queued), ("SET", queued, "", "EX", "0"))
    tries += _on(stream, ("XLEN", stream), ("XADD", stream, _NO_ID, "a", "b"))
    return tries + _scripts(stream)


def _on(key: str, *commands: tuple[str, ...]) -> list[Try]:
    return [Try(command, f"~{key.replace(_NOBODY, '*')}") for command in commands]


def _scripts(key: str) -> list[Try]:
    return _on(key, ("EVAL", "return 1", "1", key), ("EVALSHA", "0" * 40, "1", key))


async def check_rights(client: Client, tries: Sequence[Try]) -> None:
    """Try them all.

    Raises:
        BadSettings: the login is refused, or rights are missing; the text has the rules to add, as ACL SETUSER takes
            them.
        RedisError, OSError: the server does not answer.
    """
    answers: list[object] = []
    try:
        for start in range(0, len(tries), _AT_ONCE):
            answers += await _send(client, [each.command for each in tries[start : start + _AT_ONCE]])
    except (RedisError, OSError) as error:
        # redis-py tells a refused login as a lost connection, with the reason as its cause.
        if isinstance(error, _REFUSALS) or isinstance(error.__cause__, _REFUSALS):
            raise BadSettings(f"REDIS_URL: the server refuses us: {error}") from None
        raise
    missing: dict[str, None] = {}
    for each, answer in zip(tries, answers, strict=True):
        if isinstance(answer, NoPermissionError):
            missing[_rule(each, str(answer))] = None
    if missing:
        raise BadSettings(
            f"REDIS_URL: the ACL user lacks {' '.join(missing)}; add what is missing by ACL SETUSER, see docs/worker.md"
        )


async def warn_of_eviction(client: Client) -> None:
    """Log when the server may throw away what was queued. A cluster's nodes are not asked.

    Raises:
        RedisError, OSError: the server does not answer, or does not tell.
    """
    policy = (await client.info("memory")).get("maxmemory_policy", "") if isinstance(client, Redis) else ""
    if policy and policy != "noeviction":
        lost = "jobs and answers" if policy.startswith("allkeys") else "answers"
        log.warning("the server may evict %s (maxmemory-policy %s); set it to noeviction", lost, policy)


async def _send(client: Client, commands: Sequence[tuple[str, ...]]) -> list[object]:
    if isinstance(client, Redis):
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))
    answers: list[Any] = []
    for command in commands:
        try:
            answers.append(await client.execute_command(*command))
        except ResponseError as error:
            answers.append(error)
    return answers


def _rule(tried: Try, refusal: str) -> str:
    """Redis 6 to 8 and Valkey name the command, else say "key" or "channel"."""
    if "channel" in refusal or re.search(r"\bkeys?\b", refusal):
        return tried.rule
    command = tried.command[0].lower()
    subcommand = tried.command[1].lower() if command in ("xgroup", "xinfo") else ""
    return f"+{command}|{subcommand}" if subcommand else f"+{command}"
