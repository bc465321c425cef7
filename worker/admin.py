"""Look into the queue and act on dead letters: python -m worker.admin status"""

# ruff: noqa: T201 - a command line prints
from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from utils.contracts import Json
from utils.errors import QueueUnreachable
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings
from utils.verdict_json import dump
from worker.connect import Client, connect
from worker.embedded import find_url
from worker.stream import Keys, Queue, aside, run_script, unusable

_SHOWN_BYTES = 200  # of one field: images are fields, too
_PAGE = 100


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m worker.admin", "Look into the queue; one JSON per line.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="what waits, what runs, who works, what is dead")
    dead = commands.add_parser("dead", help="jobs that were given up").add_subparsers(dest="action", required=True)
    dead.add_parser("list", help="one line each, oldest first")
    for action, text in (
        ("show", "all fields of some"),
        ("replay", "put back as fresh jobs"),
        ("purge", "delete for good"),
    ):
        chosen = dead.add_parser(action, help=text)
        chosen.add_argument("ids", nargs="*", metavar="ID")
        chosen.add_argument("--all", action="store_true")
    args = parser.parse_args(argv)
    if getattr(args, "action", "list") != "list" and bool(args.ids) == args.all:
        parser.error("give ids, or --all")
    settings = load_settings()
    url = find_url(settings.queue.redis_url.get_secret_value(), settings.queue.embedded_dir)
    try:
        return asyncio.run(run(args, connect(url), Keys(settings.queue.prefix)))
    except BrokenPipeError:  # of stdout; the server's comes as a RedisError
        raise
    except (RedisError, OSError) as error:
        raise QueueUnreachable(f"{error}; check REDIS_URL") from error


async def run(args: argparse.Namespace, client: Client, keys: Keys) -> int:
    async with client:
        if args.command == "status":
            print(dump(await status(client, keys), pretty=True))
            return Exit.DONE
        letters = DeadLetters(client, keys)
        if args.action == "list":
            for letter in await letters.all():
                print(dump({name: letter[name] for name in letter if name == "id" or name.startswith("dead.")}))
            return Exit.DONE
        missing = False
        for letter_id in [letter["id"] for letter in await letters.all()] if args.all else args.ids:
            done = await getattr(letters, args.action)(letter_id)
            missing |= done is None
            print(dump(done) if done is not None else f"{letter_id}: no such dead letter")
        return Exit.FAILED if missing else Exit.DONE


async def status(client: Client, keys: Keys) -> dict[str, Json]:
    streams: dict[str, Json] = {}
    unusable_keys = await unusable(client, keys.kinds)
    for group in (keys.streams, (keys.callbacks,)):
        queue = Queue(client, keys, "", streams=group, lease_seconds=1, attempts=2)
        try:
            depths = await queue.depth()
        except ResponseError:  # no worker has ever run here
            continue
        for depth in depths:
            streams[depth.stream] = {
                "waiting": depth.waiting,
                "pending": depth.pending,
                "oldest_waiting_seconds": round(depth.oldest_waiting, 1),
                "oldest_pending_idle_seconds": round(depth.oldest_pending_idle, 1),
                "consumers": {
                    name: {"pending": held, "idle_seconds": idle} for name, (held, idle) in depth.consumers.items()
                },
            }
        if queue.delayed not in unusable_keys:
            streams[queue.delayed] = {"waiting": await client.zcard(queue.delayed)}
    told: dict[str, Json] = {"streams": streams, "unusable": unusable_keys}
    for name, key in (("dead", keys.dead), ("results", keys.results)):
        told[name] = None if key in unusable_keys else await client.xlen(key)
    told["aside"] = sum([await client.xlen(aside(key)) for key in keys.written if aside(key) not in unusable_keys])
    return told


class DeadLetters:
    """The stream of jobs that were given up."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def all(self) -> list[dict[str, Json]]:
        """Every letter as JSON, read in pages; long fields are cut."""
        letters: list[dict[str, Json]] = []
        start = "-"
        while rows := await self._client.xrange(self._keys.dead, min=start, count=_PAGE):
            letters += [_shown(row) for row in rows]
            start = f"({letters[-1]['id']}"
        return letters

    async def show(self, letter_id: str) -> dict[str, Json] | None:
        rows = await self._client.xrange(self._keys.dead, min=letter_id, max=letter_id)
        return _shown(rows[0]) if rows else None

    async def replay(self, letter_id: str) -> dict[str, Json] | None:
        """Back to its stream with its attempts forgotten. Its answer is forgotten too: the replay gives a new one."""
        letter = await self.show(letter_id)
        if letter is None:
            return None
        job_id, stream = letter["dead.job_id"], letter["dead.stream"]
        names = (self._keys.dead, stream, self._keys.verdict(job_id), self._keys.queued(job_id))
        entry_id = await run_script(self._client, "replay", names, (letter_id, job_id))
        return {"id": letter_id, "replayed": entry_id.decode(), "stream": stream} if entry_id else None

    async def purge(self, letter_id: str) -> dict[str, Json] | None:
        return {"id": letter_id, "purged": True} if await self._client.xdel(self._keys.dead, letter_id) else None


def _shown(row: Any) -> dict[str, Json]:
    letter_id, fields = row
    return {"id": letter_id.decode()} | {name.decode("utf-8", "replace"): _cut(value) for name, value in fields.items()}


def _cut(value: bytes) -> str:
    text = value[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return text if len(value) <= _SHOWN_BYTES else f"{text}… ({len(value)} bytes)"


if __name__ == "__main__":
    sys.exit(main())
