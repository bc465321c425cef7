"""What each outcome of a job means for the queue: answer, retry, bury, or stop. Knows nothing of images.

At any time a job is in one place: waiting in its stream, held here under a lease, delayed, or ended with one answer.
The work itself is a Handler's; it runs elsewhere, so the leases below are renewed whatever the models do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from redis.exceptions import RedisError

from utils.errors import BadMessage, InputError, Internal, SetupError, TransientError, VerifyError, WorkerLost
from worker import tracing
from worker.connect import BLOCK_MS
from worker.jobs import ATTEMPT, QUEUED_MS, UNREADABLE, attempt_of, job_id_of, log_fields, queued_ms_of
from worker.metrics import Metrics
from worker.stream import LONGEST_DELAY_SECONDS, Ending, Entry, Queue, is_group_missing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

Outcome: TypeAlias = "str | bytes | Exception"  # the verdict as JSON, or why there is none

# Entries per script, in and out: about 1 ms of the server's time, and while it works on one batch we work on another.
_AT_ONCE = 128
_FULL_SECONDS = 0.5  # how soon a full worker looks whether downloads stall, which makes room for other jobs
_STALLED_PER_JOB = 3  # downloads that stall are cheap to hold, but other workers shall have some too
_LONGEST_RECONNECT_SECONDS = 5.0
_WATCH_SECONDS = 2.0  # how soon a key that is usable again is written to
_FORGOTTEN_AFTER_SECONDS = 3600.0  # a consumer that owns nothing and has not asked for work for so long


class Held(Protocol):
    """A job, whatever it asks for."""

    @property
    def entry(self) -> Entry: ...

    @property
    def traceparent(self) -> str: ...


J = TypeVar("J", bound=Held)
Answer: TypeAlias = Callable[[J, Outcome], None]


class Kind(Protocol[J]):
    """What entries of one sort mean, and what is written when they end."""

    buries_input_errors: bool  # False: an answer that says so is enough

    def parse(self, entry: Entry) -> J:
        """
        Raises:
            InputError: not a job, or too late for one.
        """
        ...

    def done(self, job: J, outcome: str | bytes) -> Ending: ...

    def failed(self, entry: Entry, error: VerifyError) -> Ending:
        """Also for entries that ``parse`` refused, so nothing in them can be relied on."""
        ...


class Handler(Protocol[J]):
    """Does the work. ``answer`` is called on the event loop, once per job that was not dropped."""

    def begin(self, jobs: Sequence[J], answer: Answer[J]) -> None: ...

    def drop_waiting(self) -> list[J]:
        """Forget the jobs that have not reached the models, and return them."""
        ...

    def stalled(self) -> int:
        """How many jobs have waited for a download for longer than most take."""
        ...

    def busy_seconds(self) -> float:
        """How long the models have been at the present batch; 0 when idle."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    max_jobs: int
    max_bytes: int
    retry_seconds: float
    stuck_seconds: float
    drain_seconds: float


class Stuck(Exception):
    """The models do not come back; only the end of the process frees the jobs."""


@dataclass(slots=True)
class _Postponed:
    entry: Entry
    delay_ms: int
    attempt: int


class Loop(Generic[J]):
    """One worker of a group."""

    def __init__(self, queue: Queue, kind: Kind[J], handler: Handler[J], limits: Limits, metrics: Metrics) -> None:
        self.queue = queue
        self.metrics = metrics
        self.failure: SetupError | Stuck | None = None
        self.last_beat = self.last_read = time.monotonic()  # when the reader last tried; when it last succeeded
        self._handler = handler
        self._kind = kind
        self._limits = limits
        self._held: dict[tuple[int, str], Entry] = {}
        self._held_bytes = 0
        self._spans: dict[tuple[int, str], Span | None] = {}
        self._endings: list[Ending] = []
        self._postponed: list[_Postponed] = []
        self._freed, self._stop = asyncio.Event(), asyncio.Event()
        self._ended, self._put_off = asyncio.Event(), asyncio.Event()

    @property
    def held(self) -> int:
        return len(self._held)

    def stop(self) -> None:
        """Read no more, finish what the models work on, hand back the rest; ``run`` then returns."""
        self._stop.set()
        self._freed.set()

    async def run(self) -> None:
        """Work until ``stop``, or until ``failure`` says why this worker must not go on."""
        lease = self.queue.lease_ms / 1000
        keeping = [
            asyncio.create_task(self._keep(step, name), name=name)
            for name, step in (
                ("settle", self._settle),
                ("delay", self._delay),
                ("watch", lambda: self._every(_WATCH_SECONDS, self.queue.watch)),
                ("renew", lambda: self._every(lease / 3, self._renew)),
                ("reclaim", lambda: self._every(lease / 4, self._reclaim)),
                ("promote", lambda: self._every(0.5, self.queue.promote)),
                ("forget", lambda: self._every(_FORGOTTEN_AFTER_SECONDS / 4, self._forget)),
            )
        ]
        reader = asyncio.create_task(self._keep(self._read, "read"), name="read")
        try:
            await self._stop.wait()
            await _cancel(reader)  # an entry delivered into the closed connection is handed back by _drain
            await self._drain()
        finally:
            await _cancel(reader, *keeping)

    # -------------------------------------------------------------------------------------------------- in: take jobs

    async def _read(self) -> None:
        self.last_beat = time.monotonic()
        room, room_bytes = self._room()
        if room <= 0 or room_bytes <= 0:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), min(_FULL_SECONDS, BLOCK_MS / 1000))
            self.last_read = time.monotonic()  # full of work is alive, too; busy_seconds watches the work
            return
        entries = await self.queue.take(min(room, _AT_ONCE), room_bytes) or await self.queue.wait()
        self.last_read = time.monotonic()
        self._hold(entries)
        if len(entries) < _AT_ONCE:
            self._begin(entries)
        else:  # more waits: first ask for it, then begin these while the server works
            asyncio.get_running_loop().call_soon(self._begin, entries)

    async def _reclaim(self) -> None:
        room, room_bytes = self._room()
        if room <= 0 or room_bytes <= 0 or self._stop.is_set():
            return
        suspect_allowed = all(entry.deliveries != self.queue.attempts for entry in self._held.values())
        entries = await self.queue.reclaim(self._held, room, room_bytes, suspect_allowed)
        if entries:
            log.warning("took over %d jobs of workers that died or froze", len(entries))
            self.metrics.redelivered.inc(len(entries))
            self._hold(entries)
            self._begin(entries)

    def _room(self) -> tuple[int, int]:
        """Jobs and bytes that may be taken. Jobs that wait for their servers have some places of their own."""
        apart = min(self._handler.stalled(), _STALLED_PER_JOB * self._limits.max_jobs)
        return self._limits.max_jobs + apart - len(self._held), self._limits.max_bytes - self._held_bytes

    def _hold(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._held[entry[:2]] = entry
            self._held_bytes += entry.size

    def _begin(self, entries: Sequence[Entry]) -> None:
        if self._stop.is_set():
            self._release(entries)  # ours, but not begun: _drain hands them back
            return
        jobs = []
        for entry in entries:
            if entry.deliveries > 1 and attempt_of(entry) > self.queue.attempts:
                self._bury(entry, WorkerLost(_WORKER_LOST.format(self.queue.attempts)), "worker_lost")
                continue
            if UNREADABLE in entry.fields:
                self._bury(entry, BadMessage(_UNREADABLE), "unreadable")
                continue
            try:
                job = self._kind.parse(entry)
            except Exception as error:  # noqa: BLE001 - a bug in parsing must not stop the reader
                self._decide(entry, error)
            else:
                jobs.append(job)
                if job.traceparent:
                    name = f"process {self.queue.streams[entry.stream - 1]}"
                    self._spans[entry[:2]] = tracing.start(name, job.traceparent, job_id_of(entry), attempt_of(entry))
        if entries:
            self.metrics.taken(entries)
        if jobs:
            self._handler.begin(jobs, self._answer)

    # ------------------------------------------------------------------------------------------- what an outcome means

    def _answer(self, job: J, outcome: Outcome) -> None:
        entry = job.entry
        if entry[:2] in self._spans:
            tracing.end(self._spans.pop(entry[:2]), outcome if isinstance(outcome, Exception) else None)
        if entry[:2] not in self._held:  # the lease was lost, so another worker answers
            self.metrics.fenced.inc()
        elif isinstance(outcome, Exception):
            self._decide(entry, outcome)
        else:
            self._ending(self._kind.done(job, outcome))

    def _decide(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, InputError):
            if self._kind.buries_input_errors:
                self._bury(entry, error, error.code)
            else:
                self._ending(self._kind.failed(entry, error))
            return
        if isinstance(error, SetupError):  # not the job's fault, and the next job would meet it too
            log.critical("this worker cannot go on: %s: %s", error.code, error)
            self.failure = error
            self.stop()
            return
        attempt = attempt_of(entry)
        if not isinstance(error, TransientError):
            log.error("job failed", exc_info=error, extra=log_fields(entry) | {"attempt": attempt})
        if attempt < self.queue.attempts:
            longest = min(self._limits.retry_seconds * 2 ** (attempt - 1), LONGEST_DELAY_SECONDS)
            delay_ms = round(random.uniform(0, longest) * 1000)  # noqa: S311 - spreads load, hides nothing
            log.info("will retry", extra=log_fields(entry) | {"attempt": attempt, "delay_ms": delay_ms})
            self._postponed.append(_Postponed(entry, delay_ms, attempt))
            self._put_off.set()
            return
        known = isinstance(error, TransientError)
        answer = error if isinstance(error, TransientError) else Internal(_INTERNAL)
        self._bury(entry, answer, "retries_exhausted" if known else f"bug: {type(error).__name__}")

    def _bury(self, entry: Entry, error: VerifyError, reason: str) -> None:
        log.error("dead letter: %s", reason, extra=log_fields(entry) | {"code": error.code})
        self.metrics.dead.labels(reason.partition(":")[0]).inc()
        burial = {
            "reason": reason,
            "error": f"{error.code}: {error}",
            "attempts": str(min(attempt_of(entry), self.queue.attempts)),  # the delivery that only buries is none
            "worker": self.queue.consumer,
            "stream": self.queue.streams[entry.stream - 1],
            "entry": entry.id,
            "job_id": job_id_of(entry),
        }
        self._ending(self._kind.failed(entry, error)._replace(burial=burial))

    def _ending(self, ending: Ending) -> None:
        self._endings.append(ending)
        self._ended.set()

    # --------------------------------------------------------------------------------------------- out: end and delay

    async def _settle(self) -> None:
        """What ended while the last script ran goes into the next one; nothing leaves the list before it is written."""
        await self._ended.wait()
        self._ended.clear()
        while self._endings:
            batch = self._endings[:_AT_ONCE]
            refused, known = await self.queue.settle(batch)
            del self._endings[: len(batch)]
            if refused:
                log.warning("%d answers refused: the leases had run out", len(refused))
                self.metrics.fenced.inc(len(refused))
            self.metrics.settled(batch, refused, known)
            self._release([ending.entry for ending in batch])

    async def _delay(self) -> None:
        await self._put_off.wait()
        self._put_off.clear()
        while self._postponed:
            each = self._postponed[0]
            replaced = {
                "job_id": job_id_of(each.entry),
                ATTEMPT: str(each.attempt),
                QUEUED_MS: str(queued_ms_of(each.entry)),
            }
            done = await self.queue.retry(each.entry, each.delay_ms, replaced)
            if done is False:
                self.metrics.fenced.inc()
            elif done is None:
                log.warning("cannot put a job aside; it comes back with its lease", extra=log_fields(each.entry))
            self.metrics.retried.inc()
            del self._postponed[0]
            self._release([each.entry])

    def _release(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if self._held.pop(entry[:2], None) is not None:
                self._held_bytes -= entry.size
                if self._spans:
                    tracing.end(self._spans.pop(entry[:2], None))  # lost or handed back before it was done
        self._freed.set()

    # ------------------------------------------------------------------------------------------------- staying healthy

    async def _renew(self) -> None:
        if self._handler.busy_seconds() > self._limits.stuck_seconds:
            self.failure = Stuck(f"one batch has taken {self._limits.stuck_seconds:g} s (IMGV_PIPELINE_STUCK_SECONDS)")
            self.stop()
            return
        lost = await self.queue.renew(tuple(self._held))
        ended = {ending.entry.key for ending in self._endings} | {each.entry.key for each in self._postponed}
        gone = [self._held[key] for key in lost if key in self._held and key not in ended]
        if gone:
            self._release(gone)
            log.warning("%d leases were lost; this worker was frozen, or the server was reset", len(gone))

    async def _forget(self) -> None:
        await self.queue.forget_consumers(_FORGOTTEN_AFTER_SECONDS)

    async def _every(self, seconds: float, step: Callable[[], Awaitable[object]]) -> None:
        await step()
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - keeps workers from moving in step

    async def _keep(self, step: Callable[[], Awaitable[object]], name: str) -> None:
        """Repeat a step for ever, through a lost connection, a restart, a failover and a lost group."""
        failures = 0
        while True:
            try:
                await step()
                failures = 0
                continue
            except (RedisError, OSError) as error:
                failures += 1
                log.warning("%s: %s: %s", name, type(error).__name__, error)
                missing = is_group_missing(error)
                self.metrics.disconnected.labels(type(error).__name__).inc()
            except Exception:
                failures += 1
                log.exception("%s failed; this is a bug", name)
                missing = False
            for event in (self._ended, self._put_off):
                event.set()  # what could not be written is still there
            with contextlib.suppress(RedisError, OSError):
                if missing:
                    await self.queue.ensure()
                    continue
            await asyncio.sleep(random.uniform(0, min(0.1 * 2**failures, _LONGEST_RECONNECT_SECONDS)))  # noqa: S311

    async def _drain(self) -> None:
        dropped = [
            entry[:2] for entry in (job.entry for job in self._handler.drop_waiting()) if entry[:2] in self._held
        ]
        deadline = time.monotonic() + self._limits.drain_seconds
        with contextlib.suppress(RedisError, OSError):
            await self.queue.hand_back_unbegun(dropped)
        self._release([self._held[key] for key in dropped])
        while self._held and not self.failure and time.monotonic() < deadline:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), min(1.0, max(deadline - time.monotonic(), 0.01)))
        with contextlib.suppress(RedisError, OSError):
            count = await self.queue.hand_back(self._held)
            log.info("stopped; %d jobs handed back", count + len(dropped))


_WORKER_LOST = "none of {} workers that held this job lived to answer; the image may exhaust memory"
_UNREADABLE = "what was kept of this job for a later attempt cannot be read back; send it again"
_INTERNAL = "an internal error, which the operator finds in the worker's log under this job_id"


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    """Again until it works: before Python 3.12, asyncio.wait_for, which redis-py uses, may swallow a cancellation."""
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.2)
