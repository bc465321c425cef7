"""From bytes or an address to a judgement: what the command line, the worker and the API share.

It fetches and decodes side by side, holds memory to a limit, and judges in batches on a thread of its own. The event
loop only moves things: strangers' files are decoded in child processes, and the loop goes on while the models work.
Knows neither queue nor HTTP.

Memory, beside that of the models: ``PipelineSettings.max_mb`` of files and pixels, or one image where that is more, and
``DecodeSettings.max_bytes`` for each download that runs. An image counts as what decoding it takes, the decoding child
included (ingress/cost.py), and once decoded as what it holds: the pixels of every frame that is judged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, Protocol, Self, TypeAlias, TypeVar

from ingress.cost import decoding_bytes
from ingress.decode import read_file, read_stream
from ingress.sources import Ingress, fetch_within, limits_of
from utils.contracts import Sample
from utils.errors import FileMissing
from utils.settings import DecodeSettings, FetchSettings, PipelineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inference.detector import Judgement  # it imports every measurement, which tests do without

P = ParamSpec("P")
R = TypeVar("R")

Stage: TypeAlias = Literal["fetching", "decoding", "judging", "reporting"]
Tell: TypeAlias = Callable[[Stage], object]
Timed: TypeAlias = Callable[[Stage], AbstractContextManager[object]]


class Verifies(Protocol):
    def verify(
        self,
        samples: Sequence[Sample],
        job_ids: Sequence[str | None] | None = None,
        stability: Sequence[bool] = (),
    ) -> list[Judgement]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One image to judge. Exactly one of ``raw``, ``url`` and ``path`` is there; the path ``-`` is standard input."""

    source: str  # a name for people
    raw: bytes | None = None
    url: str | None = None
    path: Path | None = None
    below: Path | None = None  # a folder that must hold the file, without links
    caller: str = ""  # shares the downloads with others
    profile: str = ""  # of the verifiers
    job_id: str | None = None
    stability: bool = False  # also find out whether the verdict holds
    alone: bool = False  # judged in a batch of its own: it may be what ended an earlier worker


# --------------------------------------------------------------------------------------------------------------- memory


class Room:
    """Bytes of files and pixels in memory. Who waits is served in order; when no image is in it, the next one fits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = self._reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def fits(self, size: int) -> bool:
        return self._held + size <= self._most

    def hold(self, size: int) -> None:
        """Count what is there already, and cannot wait."""
        self._held += size

    async def reserve(self, size: int) -> None:
        """Wait until that many bytes may be taken."""
        if not self._waiting and self._admits(size):
            self._take(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted at that very moment
                self.release(size, size)
            raise

    def release(self, held: int, reserved: int) -> None:
        """Give back bytes, and how many of them had been reserved."""
        self._held -= held
        self._reserved -= reserved
        while self._waiting and (self._waiting[0][1].done() or self._admits(self._waiting[0][0])):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._take(size)
                turn.set_result(None)

    def _admits(self, size: int) -> bool:
        return not self._reserved or self.fits(size)

    def _take(self, size: int) -> None:
        self._held += size
        self._reserved += size


class Place:
    """What one image takes of the room; all of it is given back at the end of the ``with``."""

    def __init__(self, room: Room) -> None:
        self.begun = False  # the models have, or had, the image
        self._room = room
        self._held = self._reserved = 0

    def hold(self, size: int) -> None:
        self._room.hold(size)
        self._held += size

    async def reserve(self, size: int) -> None:
        await self._room.reserve(size)
        self._held += size
        self._reserved += size

    def keep(self, size: int) -> None:
        """Of what was reserved, give back all but ``size`` bytes."""
        less = self._reserved - size
        self._held -= less
        self._reserved -= less
        self._room.release(less, less)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.release(self._held, self._reserved)
        self._held = self._reserved = 0


class Shares:
    """A number of places, of which one caller has a few. A place that gets free goes to the caller with the fewest."""

    def __init__(self, most: int, per_caller: int) -> None:
        self._most, self._per_caller = most, per_caller
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        self._next()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running[caller] -= 1
                self._running += Counter()  # forgets who has none
            self._next()

    def _next(self) -> None:
        self._waiting = [each for each in self._waiting if not each[1].done()]
        while self._running.total() < self._most:
            able = [each for each in self._waiting if self._running[each[0]] < self._per_caller]
            if not able:
                return
            first = min(able, key=lambda each: self._running[each[0]])
            self._waiting.remove(first)
            self._running[first[0]] += 1
            first[1].set_result(None)


# -------------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    request: Request
    sample: Sample
    place: Place
    tell: Tell
    answer: asyncio.Future[Judgement] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Judges what came from different callers together. While one batch is with the models, the next one gathers."""

    def __init__(
        self, verifiers: Mapping[str, Verifies], most: int, timed: Timed, batched: Callable[[int], object]
    ) -> None:
        self._verifiers = verifiers
        self._most = most
        self._timed, self._batched = timed, batched
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "models")
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0  # when the models got the present batch; 0 between batches

    @property
    def busy_seconds(self) -> float:
        return time.monotonic() - self._began if self._began else 0.0

    async def judge(self, request: Request, sample: Sample, place: Place, tell: Tell) -> Judgement:
        waiting = _Waiting(request, sample, place, tell)
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="judge")
        return await waiting.answer

    def close(self) -> None:
        if self._task:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drain(self) -> None:
        while batch := self._next_batch():
            self._batched(len(batch))
            for each in batch:
                each.place.begun = True
                each.tell("judging")
            self._began = time.monotonic()
            with self._timed("judging"):
                outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._verify, batch)
            self._began = 0.0
            for each, outcome in zip(batch, outcomes, strict=True):
                if each.answer.done():  # nobody waits any more
                    continue
                if isinstance(outcome, Exception):
                    each.answer.set_exception(outcome)
                else:
                    each.answer.set_result(outcome)
            del batch, each, outcomes, outcome  # or the pixels stay until the next batch is done
            await asyncio.sleep(0)  # who got an answer makes room before the next batch is chosen

    def _next_batch(self) -> list[_Waiting]:
        """The oldest that waits, and others of its profile; empty when nobody does."""
        waiting = [each for each in self._waiting if not each.answer.done()]
        batch = waiting[:1]
        if batch and not batch[0].request.alone:
            profile = batch[0].request.profile
            batch = [each for each in waiting if each.request.profile == profile and not each.request.alone]
        batch = batch[: self._most]
        self._waiting = deque(each for each in waiting if each not in batch)
        return batch

    def _verify(self, batch: Sequence[_Waiting]) -> list[Judgement | Exception]:
        """On the models' thread. An image that fails a whole batch fails alone the second time."""
        verifier = self._verifiers[batch[0].request.profile]
        try:
            asked = [each.request.stability for each in batch]
            more = {"stability": asked} if any(asked) else {}
            jobs = [each.request.job_id for each in batch]
            return list(verifier.verify([each.sample for each in batch], jobs, **more))
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer decides
            return [self._verify([each])[0] for each in batch] if len(batch) > 1 else [error]


# ------------------------------------------------------------------------------------------------------------- together


class Pipeline:
    """Use as a context manager, inside an event loop: it owns threads and decoding processes.

    Args:
        verifiers: by profile.
        timed: a context for each stage, to measure it.
        batched: is told the size of each batch.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        decode: DecodeSettings,
        fetch: FetchSettings,
        verifiers: Mapping[str, Verifies],
        timed: Timed = nullcontext,
        batched: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._max_bytes = decode.max_bytes
        self._limits = limits_of(decode)
        self._fetch = fetch
        self._timed = timed
        self.room = Room(settings.max_mb << 20)
        self._downloads = Shares(fetch.at_once, fetch.per_caller)
        self._batcher = Batcher(verifiers, settings.batch, timed, batched)
        self.threads = ThreadPoolExecutor(settings.decoders, "decode")  # for what precedes and follows the models
        self._ingresses = [Ingress(decode) for _ in range(settings.decoders)]  # those that no thread has
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._batcher.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        while self._ingresses:
            self._ingresses.pop().__exit__(None, None, None)

    @property
    def busy_seconds(self) -> float:
        """How long the models have been at the present batch; 0 when idle."""
        return self._batcher.busy_seconds

    def place(self, request: Request) -> Place:
        """Its place in the room, where its bytes count from now on if they are here already."""
        place = Place(self.room)
        place.hold(len(request.raw or b""))
        return place

    async def read(self, request: Request, place: Place, tell: Tell = lambda _: None) -> bytes:
        """The file's bytes, wherever they are.

        Raises:
            InputError, TransientError: see utils/errors.py; each names the next step.
        """
        if request.raw is not None:
            return request.raw
        if request.url is not None:
            raw = await self._download(request, request.url, tell)
        else:
            raw = await asyncio.to_thread(_read_path, request.path or Path(), self._max_bytes, request.below)
        place.hold(len(raw))
        return raw

    async def _download(self, request: Request, url: str, tell: Tell) -> bytes:
        async with self._downloads.of(request.caller):
            with Place(self.room) as place:
                await place.reserve(0)  # not while memory is short
            tell("fetching")
            with self._timed("fetching"):
                return await fetch_within(self._fetch, url, self._max_bytes)

    async def judge(
        self, request: Request, raw: bytes, place: Place, tell: Tell = lambda _: None
    ) -> tuple[Sample, Judgement]:
        """Decode as soon as there is room, and judge with others.

        Raises:
            VerifyError: why there is no verdict; see utils/errors.py.
        """
        await place.reserve(await self.in_thread(decoding_bytes, raw, self._limits))
        tell("decoding")
        with self._timed("decoding"):
            sample = await self.in_thread(self._decode, raw, request.source)
        place.keep(sample.nbytes - len(raw))
        return sample, await self._batcher.judge(request, sample, place, tell)

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*args, **kwargs))

    def _decode(self, raw: bytes, source: str) -> Sample:
        ingress = self._ingresses.pop()  # as many as threads
        try:
            return ingress.decode(raw, source)
        finally:
            if self._closed:
                ingress.__exit__(None, None, None)
            else:
                self._ingresses.append(ingress)


def _read_path(path: Path, max_bytes: int, below: Path | None) -> bytes:
    if str(path) != "-":
        return read_file(path, max_bytes, below)
    if sys.stdin is None:
        raise FileMissing("standard input is closed; pipe an image into it")
    return read_stream(sys.stdin.buffer, max_bytes)
