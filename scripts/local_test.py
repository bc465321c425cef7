"""The whole system in one command: an own queue, a worker, and an image through both: python -m scripts.local_test

Without INPUT it asks for one. The queue's data lives in a folder that is gone afterwards; a queue of yours
(REDIS_URL) is left alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from inference.detector import Verifier, build_verifier
from inference.graphs import Floats, GraphDetector, Network
from inference.terminal import printable
from ingress.sources import expand
from utils.contracts import Json
from utils.errors import QueueUnreachable
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic
from utils.profiles import PROFILES
from utils.settings import Settings, load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import dump
from worker.connect import Client, connect
from worker.embedded import EmbeddedServer
from worker.judge import Judge
from worker.metrics import Metrics
from worker.service import build_service
from worker.submit import Submitter, line

OUT = Path("out/local_test")


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
        numbers = {**verdict, **verdict["signals"]}
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
    """
    trace: list[Trace] = []

    @asynccontextmanager
    async def judging(given: Settings, metrics: Metrics, client: Client) -> AsyncIterator[Judge]:
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
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        raise working.exception() or QueueUnreachable("the worker ended before it was ready; see its log above")
    print(f"queue and worker are ready: {url}", file=sys.stderr, flush=True)
    status = Exit.DONE
    async with connect(url) as client:
        submitter = Submitter(client, settings.queue, settings.decode.max_bytes, {"artifacts": "1"})
        for each in expand(inputs):
            async for source, answer in submitter.answers([each]):
                if "error" in answer:
                    status = Exit.FAILED
                elif trace:
                    written = trace[0].write(Path(answer["artifacts"]["verdict"]).parent, answer)
                    answer["artifacts"] |= {path.stem: str(path) for path in written}
                print(dump(answer) if as_json else _told(source, answer), flush=True)
    service.stop()
    await working
    return status


def _told(source: str, answer: Mapping[str, Json]) -> str:
    """The verdict's line, its reasons in words, and where to look further."""
    reasons = [f"  {each['text']}" for each in answer.get("reasoning", ()) if each["feature"] is None]
    places = [f"  {name + ':':<18} {path}" for name, path in answer.get("artifacts", {}).items()]
    return "\n".join([line(source, answer), *map(printable, reasons), *map(printable, places)])


if __name__ == "__main__":
    sys.exit(main())
