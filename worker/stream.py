"""Jobs on Redis Streams: leases, fenced endings, retries, dead letters. Knows entries and fields, not what they mean.

At least once in, exactly one answer out. Every script that ends an entry first checks that the caller still owns it,
because XACK does not ask: a worker that was frozen past its lease can neither answer nor acknowledge what another has
taken over. One Lua path serves Redis 6.2 to 8 and Valkey.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from worker.connect import BLOCK_MS, Client

PRIORITIES = ("high", "normal", "low")  # one stream each; a stream's number is its position here, from 1 as in Lua
_PROMOTED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of everything one queue stores. For Redis Cluster the prefix holds a hash tag: {image_verify}."""

    prefix: str

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}:jobs" + ("" if name == "normal" else f":{name}") for name in PRIORITIES)

    @property
    def results(self) -> str:
        return f"{self.prefix}:results"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:dead"

    @property
    def callbacks(self) -> str:
        return f"{self.prefix}:callbacks"

    def verdict(self, job_id: str) -> str:
        """The answer's key, and the channel it is published on."""
        return f"{self.prefix}:verdict:{job_id}"

    def queued(self, job_id: str) -> str:
        return f"{self.prefix}:queued:{job_id}"

    def cached(self, digest: str) -> str:
        return f"{self.prefix}:cached:{digest}"


class Entry(NamedTuple):
    """One delivery of one stream entry."""

    stream: int  # 1-based
    id: str
    fields: dict[bytes, bytes]
    deliveries: int
    size: int  # bytes of names and values

    @property
    def key(self) -> tuple[int, str]:
        return self.stream, self.id


class Ending(NamedTuple):
    """How an entry ends. ``status`` "" means that nobody waits for an answer."""

    entry: Entry
    job_id: str
    status: str = ""
    body: str | bytes = b""
    callback_url: str = ""
    traceparent: str = ""
    burial: Mapping[str, str] | None = None  # written to the dead-letter stream with the entry's own fields


@dataclass(frozen=True, slots=True)
class Depth:
    """One stream at one moment. Ages are in seconds."""

    stream: str
    waiting: int  # added and not yet delivered; exact also where XINFO's `lag` is not
    pending: int  # delivered and not yet ended
    oldest_waiting: float
    oldest_pending_idle: float
    consumers: dict[str, tuple[int, float]]  # name -> pending, idle


class Script(NamedTuple):
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    folder = Path(__file__).parent / "lua"
    text = (folder / f"{name}.lua").read_text()
    if "owned(" in text:
        text = (folder / "owned.lua").read_text() + text
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


async def run_script(client: Client, name: str, keys: Sequence[str], args: Iterable[Any]) -> Any:
    """EVALSHA, and EVAL where the server does not know the script (yet, or after a restart)."""
    text, sha = script(name)
    rest = (len(keys), *keys, *args)
    try:
        return await _execute(client, "EVALSHA", sha, *rest)
    except NoScriptError:
        return await _execute(client, "EVAL", text, *rest)


async def _execute(client: Client, *command: Any) -> Any:
    """``client.execute_command``, packed by hiredis.

    redis-py's asyncio client packs in Python, which for a thousand arguments takes longer than all else we do.
    """
    if not isinstance(client, Redis):
        return await client.execute_command(*command)
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py
    try:
        await connection.send_packed_command(pack_command(command))
        return await connection.read_response()
    finally:
        await pool.release(connection)


def rows_of(replies: Any) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
    """XREAD's and XREADGROUP's reply as (stream, id, fields), whichever protocol redis-py speaks."""
    if isinstance(replies, dict):  # RESP3
        return [(stream, *row) for stream, pages in replies.items() for page in pages for row in page]
    return [(stream, *row) for stream, rows in replies or () for row in rows]


def is_group_missing(error: BaseException) -> bool:
    """Inside a script's error the code is not at the start."""
    return isinstance(error, ResponseError) and "NOGROUP" in str(error)


class Queue:
    """One consumer of one group on a few streams, read in strict order."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        consumer: str,
        *,
        lease_seconds: float,
        attempts: int,
        streams: Sequence[str] | None = None,
        group: str = "workers",
        answer_seconds: int = 86_400,
        results_kept: int = 100_000,
    ) -> None:
        """
        Args:
            consumer: a name no other process has, nor a later life of this one.
            lease_seconds: an entry that nobody renewed for this long is taken over.
            attempts: deliveries after which an entry is a suspect; see lua/reclaim.lua.
            streams: most urgent first.
            answer_seconds: how long an answer can be fetched by its key, and its job id is remembered.
            results_kept: about how many entries the results stream keeps.
        """
        self.client = client
        self.keys = keys
        self.consumer = consumer
        self.group = group
        self.streams = tuple(streams or keys.streams)
        self.lease_ms = round(lease_seconds * 1000)
        self.attempts = attempts
        self._answer_seconds = answer_seconds
        self._results_kept = results_kept
        self._cursors = ["-"] * len(self.streams)

    @property
    def delayed(self) -> str:
        return f"{self.streams[-1]}:delayed"

    @property
    def payloads(self) -> str:
        return f"{self.streams[-1]}:delayed:payloads"

    async def ensure(self) -> None:
        """Create what is missing. From id 0: what was added before, or before the group was lost, is not skipped."""
        for stream in self.streams:
            try:
                await self.client.xgroup_create(stream, self.group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        self._cursors = ["-"] * len(self.streams)

    async def take(self, count: int, most_bytes: int) -> list[Entry]:
        """New entries, without waiting."""
        rows = await run_script(
            self.client, "take", self.streams, (self.group, self.consumer, max(count, 1), max(most_bytes, 1))
        )
        return [Entry(number, entry_id.decode(), _fields(flat), 1, size) for number, entry_id, flat, size in rows]

    async def wait(self, block_ms: int = BLOCK_MS) -> list[Entry]:
        """The first new entry of each stream, as soon as there is one."""
        replies: Any = await self.client.xreadgroup(
            self.group, self.consumer, dict.fromkeys(self.streams, ">"), count=1, block=block_ms
        )
        numbers = {stream: number for number, stream in enumerate(self.streams, 1)}
        taken = [
            Entry(numbers[stream.decode()], entry_id.decode(), fields, 1, sum(map(len, chain(*fields.items()))))
            for stream, entry_id, fields in rows_of(replies)
        ]
        return sorted(taken, key=lambda entry: entry.stream)

    async def settle(self, endings: Sequence[Ending]) -> tuple[list[Ending], list[Ending]]:
        """End entries in one script.

        Returns:
            Those refused because we own the entry no longer, and those whose job id had been answered before.
        """
        endings = sorted(endings, key=lambda ending: ending.entry.stream)
        verdict = self.keys.verdict("")
        keys = [self.keys.results, self.keys.callbacks, self.keys.dead, *self.streams]
        keys += [verdict + ending.job_id for ending in endings]
        args: list[Any] = [self.group, self.consumer, len(self.streams), self._answer_seconds, self._results_kept]
        for ids in self._by_stream([ending.entry[:2] for ending in endings]).values():
            args += (len(ids), *_range(ids))
        extras: list[Any] = []
        for number, (entry, job_id, status, body, url, trace, burial) in enumerate(endings, 1):
            args += (entry.id, job_id, status, body)
            if url or trace or burial:
                extras += (number, _json({"url": url, "traceparent": trace, "burial": burial}))
        args += extras
        refused, known = await run_script(self.client, "settle", keys, args)
        return [endings[at - 1] for at in refused], [endings[at - 1] for at in known]

    async def retry(self, entry: Entry, delay_ms: int, replaced: Mapping[str, str]) -> bool:
        """Let the entry come back later. False when we own it no longer."""
        pairs = (part for pair in replaced.items() for part in pair)
        keys = (self.streams[entry.stream - 1], self.delayed, self.payloads)
        args = (self.group, self.consumer, entry.id, entry.stream, delay_ms, *pairs)
        return bool(await run_script(self.client, "retry", keys, args))

    async def promote(self) -> int:
        """Bring back delayed entries that are due."""
        keys = (self.delayed, self.payloads, *self.streams)
        return int(await run_script(self.client, "promote", keys, (_PROMOTED_AT_ONCE,)))

    async def renew(self, keys: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Start leases anew. Returns what we own no longer."""
        lost: list[tuple[int, str]] = []
        for number, ids in self._by_stream(keys).items():
            if ids:
                gone = await run_script(
                    self.client, "renew", (self.streams[number - 1],), (self.group, self.consumer, *ids)
                )
                lost += [(number, each.decode()) for each in gone]
        return lost

    async def reclaim(
        self, held: Iterable[tuple[int, str]], count: int, most_bytes: int, suspect_allowed: bool
    ) -> list[Entry]:
        """Take over entries of workers that died or froze, going on where the last call stopped."""
        taken: list[Entry] = []
        by_stream = self._by_stream(held)
        for number, stream in enumerate(self.streams, 1):
            args = (self.group, self.consumer, self.lease_ms, self._cursors[number - 1], max(count - len(taken), 1))
            suspect = suspect_allowed and all(entry.deliveries != self.attempts for entry in taken)
            more = (most_bytes, self.attempts, int(suspect), *by_stream[number])
            cursor, rows = await run_script(self.client, "reclaim", (stream,), (*args, *more))
            self._cursors[number - 1] = cursor.decode()
            taken += [Entry(number, row[0].decode(), _fields(row[2]), row[1], sum(map(len, row[2]))) for row in rows]
        return taken

    async def hand_back(self, begun: Iterable[tuple[int, str]]) -> int:
        """At the end: free all that is ours, for others to take at once. What was never begun counts as not tried."""
        by_stream = self._by_stream(begun)
        return sum([await self._hand_back(number, "*", by_stream[number]) for number in by_stream])

    async def hand_back_unbegun(self, keys: Iterable[tuple[int, str]]) -> int:
        """Free entries that nobody has begun."""
        return sum([await self._hand_back(number, "-", ids) for number, ids in self._by_stream(keys).items() if ids])

    async def _hand_back(self, number: int, which: str, ids: Sequence[str]) -> int:
        args = (self.group, self.consumer, self.lease_ms, which, *ids)
        return int(await run_script(self.client, "hand_back", (self.streams[number - 1],), args))

    async def forget_consumers(self, idle_seconds: float) -> int:
        args = (self.group, round(idle_seconds * 1000))
        return sum([int(await run_script(self.client, "forget", (stream,), args)) for stream in self.streams])

    async def depth(self) -> list[Depth]:
        """Every stream, as the operator and the metrics see it."""
        return [await self._depth(stream) for stream in self.streams]

    async def _depth(self, stream: str) -> Depth:
        length, pending = await self.client.xlen(stream), 0
        oldest_waiting = oldest_idle = 0.0
        consumers = await self.client.xinfo_consumers(stream, self.group)
        for group in await self.client.xinfo_groups(stream):
            if group["name"] != self.group.encode():
                continue
            pending = group["pending"]
            waiting: Any = await self.client.xrange(stream, min=f"({group['last-delivered-id'].decode()}", count=1)
            if waiting:
                now: Any = await self.client.time()
                oldest_waiting = max(0.0, now[0] - int(waiting[0][0].partition(b"-")[0]) / 1000)
        if pending:
            rows: Any = await self.client.xpending_range(stream, self.group, min="-", max="+", count=1)
            oldest_idle = rows[0]["time_since_delivered"] / 1000 if rows else 0.0
        named = {row["name"].decode(): (row["pending"], row["idle"] / 1000) for row in consumers}
        return Depth(stream, max(length - pending, 0), pending, oldest_waiting, oldest_idle, named)

    def _by_stream(self, keys: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
        grouped: dict[int, list[str]] = {number: [] for number in range(1, len(self.streams) + 1)}
        for number, entry_id in keys:
            grouped[number].append(entry_id)
        return grouped


def _range(ids: Sequence[str]) -> tuple[str, str]:
    """The first and the last id. As text, milliseconds compare like numbers when they are equally long."""
    dashes = {each.find("-") for each in ids}
    if len(dashes) != 1:
        return ("-", "+") if ids else ("", "")
    (dash,) = dashes
    first, last = min(ids)[:dash], max(ids)[:dash]
    return (
        min((each for each in ids if each.startswith(first)), key=lambda each: (len(each), each)),
        max((each for each in ids if each.startswith(last)), key=lambda each: (len(each), each)),
    )


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in values.items() if value})


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    parts = iter(flat)
    return dict(zip(parts, parts, strict=True))
