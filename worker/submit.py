"""Queue images and wait for the answers: python -m worker.submit photo.jpg https://… folder/"""

# ruff: noqa: T201 - a command line prints
from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import Progress

from ingress.decode import read_file
from ingress.sources import expand, is_data_uri, is_url, shown
from utils.contracts import Json
from utils.errors import InputError, QueueFull, QueueUnreachable
from utils.exits import Exit, command, command_parser
from utils.profiles import PROFILES
from utils.settings import QueueSettings, load_settings
from utils.verdict_json import dump, error_dict
from worker.connect import Client, connect
from worker.embedded import find_url
from worker.stream import PRIORITIES, Keys, apart, rows_of, run_script

_WINDOW = 32  # jobs of ours in the queue at a time: a folder must not fill the server's memory
_BLOCK_MS = 1000
_TRIES, _TRY_AGAIN_SECONDS = 3, 0.3


async def enqueue(
    client: Client, settings: QueueSettings, job_id: str, fields: Mapping[str, str | bytes], priority: str = "normal"
) -> str:
    """Add a job once, however often this is called for one job id: so a lost reply is asked for again.

    Returns:
        "queued", "known" (it waits or runs already) or "answered".

    Raises:
        QueueFull: as many jobs of this priority wait as the settings allow; nothing was added.
        RedisError, OSError: no reply, or a refusal.
    """
    keys = Keys(settings.prefix)
    stream = keys.streams[PRIORITIES.index(priority)]
    flat = [part for pair in ({"job_id": job_id} | dict(fields)).items() for part in pair]
    names = (stream, keys.queued(job_id), keys.verdict(job_id))
    given = (settings.max_waiting, settings.answer_seconds, *flat)
    for _ in range(_TRIES - 1):
        with suppress(RedisError, OSError):
            return _state(*await run_script(client, "enqueue", names, given))
        await asyncio.sleep(_TRY_AGAIN_SECONDS)
    return _state(*await run_script(client, "enqueue", names, given))


def _state(state: bytes, detail: bytes) -> str:
    """
    Raises:
        QueueFull: the script says so.
    """
    if state == b"full":
        raise QueueFull(
            f"{detail.decode()} jobs wait already (IMGV_QUEUE_MAX_WAITING); try again later, or add workers"
        )
    return state.decode()


class Submitter:
    """Queues sources in order, a window at a time, and gives answers in the order they come."""

    def __init__(
        self,
        client: Client,
        settings: QueueSettings,
        max_bytes: int,
        options: Mapping[str, str],
        priority: str = "normal",
    ) -> None:
        """
        Args:
            max_bytes: of one file.
            options: further fields of every job.
        """
        self._client = client
        self._keys = Keys(settings.prefix)
        self._settings = settings
        self._max_bytes = max_bytes
        self._options = options
        self._priority = priority
        self._waiting: dict[str, str] = {}  # job id -> source
        self._left: deque[str] = deque()

    async def answers(self, sources: Iterable[str]) -> AsyncGenerator[tuple[str, dict[str, Json]]]:
        """Source and answer, a verdict or ``{"error": …}``, of every source.

        Raises:
            QueueFull: no job of ours is in the queue, and no other fits.
        """
        newest: Any = []
        with apart():
            newest = await self._client.xrevrange(self._keys.results, count=1)
        cursor: bytes = newest[0][0] if newest else b"0-0"
        self._left.extend(sources)
        while True:
            for refused in await self._fill():
                yield refused
            if not self._waiting:
                return
            rows = await self._rows(cursor)
            for _, entry_id, fields in rows:
                cursor = entry_id
                if source := self._waiting.pop(fields[b"job_id"].decode(), None):
                    yield source, json.loads(fields.get(b"verdict") or fields[b"error"])
            if not rows:
                async for each in self._look_up():
                    yield each

    async def _rows(self, cursor: bytes) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
        """New answers, after a while none."""
        with apart():
            return rows_of(await self._client.xread({self._keys.results: cursor}, block=_BLOCK_MS, count=1000))
        await asyncio.sleep(_BLOCK_MS / 1000)  # something else stands under the stream's key; each answer has its own
        return []

    async def _look_up(self) -> AsyncIterator[tuple[str, dict[str, Json]]]:
        """Answers by their keys: what the stream has dropped, or had given before we looked."""
        for job_id in tuple(self._waiting):
            if found := await self._client.get(self._keys.verdict(job_id)):
                yield self._waiting.pop(job_id), json.loads(found)

    async def _fill(self) -> list[tuple[str, dict[str, Json]]]:
        """Queue more. Returns the sources that could not even be read."""
        refused: list[tuple[str, dict[str, Json]]] = []
        while len(self._waiting) < _WINDOW and self._left:
            source, job_id = self._left.popleft(), secrets.token_hex(12)
            try:
                fields = await asyncio.to_thread(self._fields, source)
                await enqueue(self._client, self._settings, job_id, {**fields, **self._options}, self._priority)
            except InputError as error:
                refused.append((source, error_dict(source, error)))
            except QueueFull:
                self._left.appendleft(source)
                if not self._waiting:
                    raise
                break  # answers to our own jobs make room
            else:
                self._waiting[job_id] = source
        return refused

    def _fields(self, source: str) -> dict[str, bytes]:
        if is_url(source):
            return {"source": os.fsencode(source)}
        if is_data_uri(source):
            return {"image_base64": os.fsencode(source), "filename": os.fsencode(shown(source))}
        path = Path(source)  # the worker may be another machine, so the bytes travel
        return {"image": read_file(path, self._max_bytes), "filename": os.fsencode(path.name)}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m worker.submit", "Queue images and wait for verdicts.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image file, folder, http(s) or data: URL")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--profile", choices=tuple(PROFILES), help="as the job's field")
    parser.add_argument("--stability", action="store_true", help="as the job's field")
    parser.add_argument("--priority", choices=PRIORITIES, default="normal")
    args = parser.parse_args(argv)
    settings = load_settings()
    url = find_url(settings.queue.redis_url.get_secret_value(), settings.queue.embedded_dir)
    fields = {"profile": args.profile, "stability": "1" if args.stability else None}
    options = {name: value for name, value in fields.items() if value}
    client = connect(url)
    submitter = Submitter(client, settings.queue, settings.decode.max_bytes, options, args.priority)
    return asyncio.run(run(args, submitter, client))


async def run(args: argparse.Namespace, submitter: Submitter, client: Client) -> int:
    """
    Raises:
        QueueUnreachable: the server cannot be reached.
    """
    sources, status = list(expand(args.inputs)), Exit.DONE
    try:
        async with client:
            with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
                task = progress.add_task("waiting", total=len(sources))
                async for source, answer in submitter.answers(sources):
                    progress.advance(task)
                    if "error" in answer:
                        status = Exit.FAILED
                    print(dump(answer) if args.json else line(shown(source), answer), flush=True)
    except BrokenPipeError:  # of stdout; the server's comes as a RedisError
        raise
    except (RedisError, OSError) as error:
        raise QueueUnreachable(f"{error}; check REDIS_URL") from error
    return status


def line(source: str, answer: Mapping[str, Json]) -> str:
    """One answer for a person; control characters in a name would drive the terminal."""
    name = "".join(char if char.isprintable() else "?" for char in source)
    if error := answer.get("error"):
        return f"error   {error['code']}: {error['message']}  {name}"
    return f"{answer['label']:<7} {answer['fusion_prob']:.2f}  {answer['tier']:<13} {name}"


if __name__ == "__main__":
    sys.exit(main())
