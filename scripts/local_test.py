"""The whole system in one command: an own queue, a worker, and an image through both: python -m scripts.local_test

Without INPUT it asks for one. The queue's data lives in a folder that is gone afterwards; a queue of yours
(REDIS_URL) is left alone. No wait is without end: a worker that ends or hangs ends the command.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from inference.detector import Verifier, build_verifier
from inference.graphs import Floats, GraphDetector, Network
from inference.terminal import printable
from ingress.sources import expand
from utils.contracts import Json
from utils.errors import SetupError, WorkerLost
from utils.exits import Exit, command, command_parser, leave
from utils.persistence import write_atomic
from utils.profiles import PROFILES
from utils.settings import Settings, load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import dump, numbers_of
from worker.connect import connect
from worker.embedded import EmbeddedServer
from worker.judge import Judge
from worker.metrics import Metrics
from worker.service import build_service
from worker.submit import Submitter, line

T = TypeVar("T")

OUT = Path("out/local_test")
_LOADING_SECONDS = 600.0  # until the worker takes jobs; the largest models load in two minutes
_MARGIN_SECONDS = 10.0  # beside what the settings allow


class Trace:
    """What the small networks gave, call by call. Torch detectors are not among them: they keep nothing."""

    def __init__(self, verifier: Verifier) -> None:
        self.inputs = verifier.fusion.inputs
        self.outputs: dict[str, Floats] = {}  # <detector>.<call>: the image first, then frames and pictures inside it
        for detector in verifier.ensemble.detectors:
            if isinstance(detector, GraphDetector):
                detector.network = self._traced(detector.name, detector.network)

    def _traced(self, name: str, network: Network) -> Network:
        def run(pixels: np.ndarray) -> Floats:
            found = network(pixels)
            calls = sum(each.startswith(f"{name}.") for each in self.outputs)
            self.outputs[f"{name}.{calls}"] = found
            return found

        return run

    def write(self, folder: Path, verdict: Mapping[str, Json]) -> list[Path]:
        """Keep the feature vector as fusion reads it, and the networks' outputs; then forget them."""
        numbers = numbers_of(verdict)
        vector = {"fusion": verdict["models"]["fusion"], "vector": {name: numbers[name] for name in self.inputs}}
        write_atomic(folder / "features.json", json.dumps(vector, indent=1).encode())
        np.savez_compressed(folder / "embeddings.npz", **self.outputs)  # type: ignore[arg-type]
        self.outputs.clear()
        return [folder / "features.json", folder / "embeddings.npz"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.local_test", __doc__)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="image file, folder or http(s) URL")
    parser.add_argument(
        "--artifacts", action="store_true", help="also keep the feature vector and the networks' outputs"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for reports and heatmaps (default: {OUT})")
    parser.add_argument("--profile", choices=tuple(PROFILES), help="which detectors run")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    args = parser.parse_args(argv)
    if not args.inputs:
        try:
            args.inputs = [input("image file or address: ").strip()]
        except EOFError:
            parser.error("no input; give a file, folder or URL")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    given = {"queue_artifacts_dir": str(out), "queue_metrics": ""} | ({"profile": args.profile} if args.profile else {})
    settings = load_settings(**given)
    with tempfile.TemporaryDirectory(prefix="imgv") as folder, EmbeddedServer(Path(folder)) as server:
        return asyncio.run(run(args.inputs, settings, server.url, keep=args.artifacts, as_json=args.json))


async def run(inputs: Sequence[str], settings: Settings, url: str, *, keep: bool, as_json: bool) -> Exit:
    """Start the worker, send every image through the queue, one after the other, and stop the worker.

    Raises:
        SetupError: this installation is incomplete.
        WorkerLost: it ended by itself, or took longer than the settings allow.
    """
    trace: list[Trace] = []

    @asynccontextmanager
    async def judging(given: Settings, metrics: Metrics, *_: object) -> AsyncIterator[Judge]:
        verifier = build_verifier(given.models)
        limit_library_threads()
        if keep:
            trace.append(Trace(verifier))
        verifiers = {given.models.profile: verifier}
        with verifier:
            async with Judge(given.queue, given.pipeline, given.decode, given.fetch, verifiers, metrics) as judge:
                yield judge

    ready = asyncio.Event()
    service = build_service(settings, url, judging)
    working = asyncio.create_task(service.run(ready.set))
    try:
        await _while_working(working, ready.wait(), _LOADING_SECONDS)
        print(f"queue and worker are ready: {url}", file=sys.stderr, flush=True)
        status = Exit.DONE
        async with connect(url) as client:
            submitter = Submitter(client, settings.queue, settings.decode.max_bytes, {"artifacts": "1"})
            for each in expand(inputs):
                source, answer = await _while_working(working, _answer(submitter, each), _patience(settings))
                if "error" in answer:
                    status = Exit.FAILED
                elif trace:
                    written = trace[0].write(Path(answer["artifacts"]["verdict"]).parent, answer)
                    answer["artifacts"] |= {path.stem: str(path) for path in written}
                print(dump(answer) if as_json else _told(source, answer), flush=True)
    finally:
        service.stop()
        _, hanging = await asyncio.wait((working,), timeout=settings.pipeline.drain_seconds + _MARGIN_SECONDS)
        for task in hanging:
            task.cancel()
    return status


async def _answer(submitter: Submitter, given: str) -> tuple[str, dict[str, Json]]:
    """Source and answer of one image."""
    async with aclosing(submitter.answers([given])) as answers:
        return await anext(answers)


def _patience(settings: Settings) -> float:
    """The longest that one image may take: every attempt to its limits."""
    attempt = settings.fetch.seconds + settings.decode.seconds + settings.pipeline.stuck_seconds
    return settings.queue.attempts * (attempt + settings.queue.lease_seconds) + _MARGIN_SECONDS


async def _while_working(working: asyncio.Task[Any], awaited: Coroutine[Any, Any, T], seconds: float) -> T:
    """What is awaited, unless the worker ends before it, or the time does.

    Raises:
        SetupError: the worker ended by it.
        WorkerLost: the worker ended otherwise, or the time did.
    """
    waiting = asyncio.create_task(awaited)
    await asyncio.wait((working, waiting), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    if not working.done():
        raise WorkerLost(f"no answer within {seconds:.0f} s; see the log above, and IMGV_PIPELINE_STUCK_SECONDS")
    failure = working.exception() or working.result()
    raise failure if isinstance(failure, SetupError) else WorkerLost(f"the worker ended: {failure or 'see its log'}")


def _told(source: str, answer: Mapping[str, Json]) -> str:
    """The verdict's line, its reasons in words, and where to look further."""
    reasons = [f"  {each['text']}" for each in answer.get("reasoning", ()) if each["feature"] is None]
    places = [f"  {name + ':':<18} {path}" for name, path in answer.get("artifacts", {}).items()]
    return "\n".join([line(source, answer), *map(printable, reasons), *map(printable, places)])


def run_command() -> NoReturn:
    """The console command. A model that hangs on its thread is not waited for."""
    leave(main())


if __name__ == "__main__":
    run_command()
