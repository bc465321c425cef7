"""Jobs on Redis Streams: leases, fenced endings, retries, dead letters. Knows entries and fields, not what they mean.

At least once in, exactly one answer out. Every script that ends an entry first checks that the caller still owns it,
because XACK does not ask: a worker that was frozen past its lease can neither answer nor acknowledge what another has
taken over. One Lua path serves Redis 6.2 to 8 and Valkey.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from worker.connect import BLOCK_MS, Client

log = logging.getLogger(__name__)

PRIORITIES = ("high", "normal", "low")  # one stream each; a stream's number is its position here, from 1 as in Lua
_PROMOTED_AT_ONCE = _FLUSHED_AT_ONCE = 100
_PUT_OFF_MS = 5000  # a delayed entry whose stream is not usable
LONGEST_DELAY_SECONDS = 600.0  # of a retry; an entry that is due later than that was delayed by a clock since set back
_SHARED = ("owned", "usable", "merged")  # Lua functions, each in a file of its name


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

    @property
    def written(self) -> tuple[str, str, str]:
        """The streams that only grow by our own hand."""
        return self.results, self.callbacks, self.dead

    @property
    def kinds(self) -> dict[str, str]:
        """Every key of a fixed name, and the type it has."""
        streams = (*self.streams, *self.written, *map(aside, self.written))
        queues = (self.streams, (self.callbacks,))
        return (
            dict.fromkeys(streams, "stream")
            | {delayed(queue): "zset" for queue in queues}
            | {payloads(queue): "hash" for queue in queues}
        )

    @property
    def settings(self) -> str:
        """What was changed at run time."""
        return f"{self.prefix}:settings"

    def verdict(self, job_id: str) -> str:
        """The answer's key, and the channel it is published on."""
        return f"{self.prefix}:verdict:{job_id}"

    def queued(self, job_id: str) -> str:
        return f"{self.prefix}:queued:{job_id}"

    def cached(self, digest: str) -> str:
        return f"{self.prefix}:cached:{digest}"


def aside(key: str) -> str:
    """Where entries wait that could not be written under their own key."""
    return f"{key}:aside"


def delayed(streams: Sequence[str]) -> str:
    """The times at which entries of these streams come back, a sorted set."""
    return f"{streams[-1]}:delayed"


def payloads(streams: Sequence[str]) -> str:
    """The fields of those entries, a hash."""
    return f"{delayed(streams)}:payloads"


class Entry(NamedTuple):
    """One delivery of one stream entry."""

    stream: int  # 1-based
    id: str
    fields: dict[bytes, bytes]
    deliveries: int
    size: int  # bytes of names and values
    pairs: int = 0  # names with values as they were sent: a name may stand twice, and counts once in `fields`

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
    shared = [each for each in _SHARED if f"{each}(" in text]
    text = "".join((folder / f"{each}.lua").read_text() for each in shared) + text
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


def is_wrong_type(error: BaseException) -> bool:
    """Something else than ours stands under a key; inside a script's error the code is not at the start."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


@contextmanager
def apart() -> Iterator[None]:
    """Around what concerns one key: what stands under it that is not ours is no reason to leave the others."""
    try:
        yield
    except ResponseError as error:
        if not is_wrong_type(error):
            raise


async def unusable(client: Client, kinds: Mapping[str, str]) -> dict[str, str]:
    """Keys that hold something else than they should, with what to do about it."""
    names = tuple(kinds)
    reply = await run_script(client, "wrong_types", names, kinds.values())
    found = {names[at - 1]: kind.decode() for at, kind in zip(reply[::2], reply[1::2], strict=True)}
    return {key: f"holds a {kind}, not a {kinds[key]}; rename or delete it" for key, kind in found.items()}


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
        self.unusable: dict[str, str] = {}  # as `watch` last saw it
        self.delayed, self.payloads = delayed(self.streams), payloads(self.streams)
        self._cursors = ["-"] * len(self.streams)

    async def ensure(self) -> None:
        """Create what is missing. From id 0: what was added before, or before the group was lost, is not skipped."""
        for stream in self.streams:
            try:
                with apart():
                    await self.client.xgroup_create(stream, self.group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        self._cursors = ["-"] * len(self.streams)

    async def take(self, count: int, most_bytes: int) -> list[Entry]:
        """New entries, without waiting."""
        rows, groupless = await run_script(
            self.client, "take", self.streams, (self.group, self.consumer, max(count, 1), max(most_bytes, 1))
        )
        if groupless:
            log.warning("the consumer group of %s was lost", ", ".join(self.streams[at - 1] for at in groupless))
            with suppress(RedisError, OSError):  # what was read is not lost for it
                await self.ensure()
        return [_entry(number, entry_id, flat, 1) for number, entry_id, flat in rows]

    async def wait(self, block_ms: int = BLOCK_MS) -> list[Entry]:
        """The first new entry of each stream, as soon as there is one."""
        numbers = {stream: number for number, stream in enumerate(self.streams, 1) if stream not in self.unusable}
        if not numbers:
            await asyncio.sleep(block_ms / 1000)
            return []
        group = ("GROUP", self.group, self.consumer, "COUNT", 1, "BLOCK", block_ms)
        try:
            reply = await _execute(self.client, "XREADGROUP", *group, "STREAMS", *numbers, *(">" for _ in numbers))
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            await self.watch()  # the reply does not say which key it is
            return []
        streams = reply.items() if isinstance(reply, dict) else reply or ()  # RESP3, RESP2
        taken = [_entry(numbers[name.decode()], entry_id, flat, 1) for name, rows in streams for entry_id, flat in rows]
        return sorted(taken, key=lambda entry: entry.stream)

    async def watch(self) -> int:
        """See which keys hold something else than they should, and write what waits for one that is usable again.

        Returns:
            How many entries went to where they belong.
        """
        theirs = (*self.streams, self.delayed, self.payloads, *self.keys.written, *map(aside, self.keys.written))
        found = await unusable(self.client, {key: self.keys.kinds[key] for key in theirs})
        for key in found.keys() - self.unusable.keys():
            log.error("%s %s", key, found[key])
        self.unusable = found
        pairs = [name for key in self.keys.written for name in (key, aside(key))]
        return int(await run_script(self.client, "flush", pairs, (_FLUSHED_AT_ONCE,)))

    async def settle(self, endings: Sequence[Ending]) -> tuple[list[Ending], list[Ending]]:
        """End entries in one script.

        Returns:
            Those refused because we own the entry no longer, and those whose job id had been answered before.
        """
        endings = sorted(endings, key=lambda ending: ending.entry.stream)
        verdict = self.keys.verdict("")
        keys = [*self.keys.written, *map(aside, self.keys.written), *self.streams]
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

    async def retry(self, entry: Entry, delay_ms: int, replaced: Mapping[str, str]) -> bool | None:
        """Let the entry come back later. False when we own it no longer; None when it is ours but cannot be kept."""
        pairs = (part for pair in replaced.items() for part in pair)
        keys = (self.streams[entry.stream - 1], self.delayed, self.payloads)
        args = (self.group, self.consumer, entry.id, entry.stream, delay_ms, *pairs)
        return {1: True, 0: False, -1: None}[await run_script(self.client, "retry", keys, args)]

    async def promote(self) -> int:
        """Bring back delayed entries that are due."""
        keys = (self.delayed, self.payloads, *self.streams)
        args = (_PROMOTED_AT_ONCE, _PUT_OFF_MS, round(LONGEST_DELAY_SECONDS * 1000))
        return int(await run_script(self.client, "promote", keys, args))

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
            with apart():
                cursor, rows = await run_script(self.client, "reclaim", (stream,), (*args, *more))
                self._cursors[number - 1] = cursor.decode()
                taken += [_entry(number, entry_id, flat, deliveries) for entry_id, deliveries, flat in rows]
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
        with apart():
            return int(await run_script(self.client, "hand_back", (self.streams[number - 1],), args))
        return 0

    async def forget_consumers(self, idle_seconds: float) -> int:
        args, count = (self.group, round(idle_seconds * 1000)), 0
        for stream in self.streams:
            with apart():
                count += int(await run_script(self.client, "forget", (stream,), args))
        return count

    async def depth(self) -> list[Depth]:
        """Every stream that is one, as the operator and the metrics see it."""
        depths = []
        for stream in self.streams:
            with apart():
                depths.append(await self._depth(stream))
        return depths

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


def _entry(number: int, entry_id: bytes, flat: Sequence[bytes], deliveries: int) -> Entry:
    parts = iter(flat)
    fields = dict(zip(parts, parts, strict=True))
    return Entry(number, entry_id.decode(), fields, deliveries, sum(map(len, flat)), len(flat) // 2)
