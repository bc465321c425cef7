"""Measure the speed of profiles side by side: python -m scripts.benchmark [--profile embedded] [--images 16] [--runs 5]

Every row judges the same photographs (made from those that scikit-learn and scikit-image carry, 1 megapixel, JPEG 90):
naive, as the systems that this project unites do it: one image at a time, each part decodes it anew, networks in torch
at full precision, all in sequence; ours, one image after another; ours, a folder; ours, through the queue; ours, over
HTTP, as many callers as cores; and the limit: the networks alone on pixels that are ready, on all cores. --peer adds
another detector, in the environment that it needs (benchmarks/peer.py). Rows run in turns, so that a busy machine slows
all of them; what counts are the ratios. Needs requirements.txt and scikit-image.
"""

from __future__ import annotations

import asyncio
import copy
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import httpx
import numpy as np
import redis
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

import img_ml_verify
from inference.detector import Verifier, build_verifier
from inference.ensemble import Part
from inference.graphs import GraphDetector, Network
from ingress.sources import Ingress
from utils.contracts import Measurement, Sample
from utils.errors import WorkerLost
from utils.exits import Exit, command, command_parser
from utils.settings import DecodeSettings, Settings, load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import dump, verdict_dict

if TYPE_CHECKING:
    from worker.judge import Judge
    from worker.metrics import Metrics

ROOT = Path(__file__).parent.parent
MEGAPIXEL = 1_000_000
SIZES = (0.25, 1.0, 4.0, 12.0, 48.0, 100.0)  # megapixels
ORDER = (
    *("naive", "ours, one image after another", "ours, a folder", "ours, worker", "ours, API"),
    *("limit: networks alone", "sahu65"),
)
BATCHES = (1, 2, 4, 8, 16)
EMBEDDED = ("light", "embedded")  # the profiles whose weights ship
CENTS_PER_CORE_HOUR = 4.0  # a general-purpose vCPU of the large clouds, on demand, 2026; put your own price here

Calls: TypeAlias = list[tuple[Network, NDArray[np.uint8]]]  # what one image's networks were given

console = Console(width=110)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.benchmark", __doc__)
    parser.add_argument("--images", type=int, default=16, help="photographs per run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="the median counts (default: %(default)s)")
    parser.add_argument("--only", choices=("rows", "cold", "curves"), help="one part of it")
    parser.add_argument("--profile", choices=EMBEDDED, help="one alone; default: each of these")
    parser.add_argument("--peer", type=Path, help="Python of an environment with sahu65, for a row of its own")
    arguments = parser.parse_args(argv)
    os.environ["IMGV_PIPELINE_CACHE"] = ""  # what was judged before is to be judged again, here and in processes
    print(conditions())
    with tempfile.TemporaryDirectory(prefix="imgv-benchmark-") as folder:
        paths = photographs(Path(folder), arguments.images, 1.0)
        for profile in (arguments.profile,) if arguments.profile else EMBEDDED:
            settings = load_settings(profile=profile)
            if arguments.only in (None, "rows"):
                rows(settings, paths, arguments.runs, arguments.peer)
            if arguments.only in (None, "cold"):
                cold(profile, paths[0], arguments.runs)
            if arguments.only in (None, "curves"):
                curves(settings, Path(folder), paths)
    return Exit.DONE


def conditions() -> str:
    """What the numbers belong to."""
    command = ("git", "rev-parse", "--short", "HEAD")
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # noqa: S603 - written above
    names = ("onnxruntime", "torch", "numpy", "opencv-python", "Pillow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip() or 'unknown'}\n"
        f"Python {platform.python_version()}, {versions}\n"
        f"{os.cpu_count()} cores, {cpu_name()}, load before the start {load:.1f}\n"
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def photographs(folder: Path, count: int, megapixels: float) -> list[Path]:
    """Different JPEG files of one size, cut from real photographs; enlarged where those are smaller."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    originals = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    width = round((megapixels * MEGAPIXEL * 1.5) ** 0.5)
    size = (width, round(width / 1.5))
    paths = []
    for index in range(count):
        rgb = originals[index % len(originals)]
        rgb = np.ascontiguousarray(rgb[index // len(originals) :, :: -1 if index % 2 else 1])
        path = folder / f"{megapixels:g}mp-{index}.jpg"
        Image.fromarray(cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC)).save(path, quality=90)
        paths.append(path)
    return paths


# --- the rows


def rows(settings: Settings, paths: Sequence[Path], runs: int, peer: Path | None = None) -> None:
    verifier = build_verifier(settings.models)
    limit_library_threads()
    with Ingress(settings.decode) as ingress:
        samples = [ingress.load(str(path)) for path in paths]
    ready = network_inputs(verifier, samples)
    naive = Naive(verifier)
    contenders: dict[str, Callable[[], object]] = {
        "naive": lambda: [naive.judge(path) for path in paths],
        "ours, one image after another": lambda: [one(verifier, settings.decode, path) for path in paths],
        "ours, a folder": lambda: folder(verifier, settings, paths),
        "limit: networks alone": lambda: bare(ready),
    }
    with Queue(settings, verifier) as queue, server(settings, verifier) as url, ExitStack() as stack:
        contenders["ours, worker"] = lambda: queue.judge(paths)
        contenders["ours, API"] = lambda: post(url, paths)
        if peer:
            from benchmarks.peer import peer as beside

            ask = stack.enter_context(beside(peer))
            contenders["sahu65"] = lambda: [ask(path) for path in paths]
        times = in_turns(contenders, runs)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    title = f"Throughput, profile {settings.models.profile}, 1 megapixel"
    table = Table("", "images/s", "x naive", "x folder", "share of limit", "range", title=title)
    for name in sorted(contenders, key=ORDER.index):
        table.add_row(
            name,
            f"{len(paths) / seconds[name]:.2f}",
            f"{seconds['naive'] / seconds[name]:.2f}",
            f"{seconds['ours, a folder'] / seconds[name]:.2f}",
            f"{seconds['limit: networks alone'] / seconds[name]:.2f}",
            f"{len(paths) / max(times[name]):.2f}..{len(paths) / min(times[name]):.2f}",
        )
    console.print(table)
    parts(verifier, samples[0])
    latency(verifier, settings.decode, paths[0], ready[0], runs)


def in_turns(contenders: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Wall seconds of each, after one run that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name, judge in contenders.items():
            started = time.perf_counter()
            judge()
            if run:
                times[name].append(time.perf_counter() - started)
    return times


def one(verifier: Verifier, settings: DecodeSettings, path: Path) -> bytes | str:
    with Ingress(settings) as ingress:
        (judgement,) = verifier.verify([ingress.load(str(path))])
    return dump(verdict_dict(judgement.verdict))


def folder(verifier: Verifier, settings: Settings, paths: Sequence[Path]) -> None:
    """What the command line does with several images."""

    async def judge_all() -> None:
        async for _, answer in img_ml_verify.judge([str(path) for path in paths], settings, verifier):
            dump(verdict_dict(answer))  # type: ignore[arg-type]  # our own photographs can be judged

    asyncio.run(judge_all())


@contextmanager
def server(settings: Settings, verifier: Verifier) -> Iterator[str]:
    """The API on loopback, on a thread of this process; gives its address."""
    import uvicorn

    from api.app import create_app
    from api.local import LocalBackend

    given = replace(settings, api=settings.api.model_copy(update={"rate_per_minute": 10**9}))
    parts = settings.pipeline, settings.decode, settings.fetch, verifier
    app = create_app(given, lambda _, metrics, __: LocalBackend(*parts, metrics, keep_seconds=1.0))
    serving = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        while not serving.started and thread.is_alive():
            time.sleep(0.01)
        host, port = serving.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        serving.should_exit = True
        thread.join()


def post(url: str, paths: Sequence[Path]) -> None:
    """Each file as an upload, from as many callers at a time as this machine has cores."""
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(os.cpu_count()) as callers:

        def ask(path: Path) -> None:
            client.post("/v1/verify", files={"file": (path.name, path.read_bytes())}).raise_for_status()

        list(callers.map(ask, paths))


class Naive:
    """One image at a time, every part on its own: decoding, preparing, and torch in float32 as it comes."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._detectors = [in_torch(each) for each in verifier.ensemble.detectors if isinstance(each, GraphDetector)]
        self._forensics = verifier.ensemble.forensics

    def judge(self, path: Path) -> float:
        found: dict[str, float] = {}
        for measure in (*(each.measure for each in self._detectors), *(each.measure for each in self._forensics)):
            found |= measure(self._decode(path)).features
        return self._verifier.fusion.probability({name: found.get(name, np.nan) for name in self._verifier.meanings})

    def _decode(self, path: Path) -> Sample:
        raw = path.read_bytes()
        with Image.open(BytesIO(raw)) as image:
            return Sample(str(path), raw, np.asarray(image.convert("RGB")), "JPEG")


def in_torch(detector: GraphDetector) -> GraphDetector:
    """The same detector on the torch network that its graph was exported from."""
    import torch

    from models.loaders import Weights, load_into
    from models.quantised import load_quantised
    from training.detectors import as_graph
    from training.export import EXPORTED, IN_INTEGERS

    weights = Weights.at(load_settings().models.weights_dir)
    if detector.name in IN_INTEGERS:
        arrays, _ = load_quantised(weights.path(detector.name))
        state = {name: torch.from_numpy(values) for name, values in arrays.items()}
    else:
        state = weights.state(detector.name)
    _, build = EXPORTED[detector.name]
    network = build()
    load_into(network.network, state, dtype=torch.float32)
    return on(detector, as_graph(network, "cpu"))


def on(detector: GraphDetector, network: Network) -> GraphDetector:
    """The same detector with another network."""
    twin = copy.copy(detector)
    twin.network = network
    return twin


def network_inputs(verifier: Verifier, samples: Sequence[Sample]) -> list[Calls]:
    """What each image's networks are given: the limit runs just those."""
    ready = []
    for sample in samples:
        calls: Calls = []
        for detector in verifier.ensemble.detectors:
            if isinstance(detector, GraphDetector):
                on(detector, partial(_record, calls, detector)).measure(sample)
        ready.append(calls)
    return ready


def _record(calls: Calls, detector: GraphDetector, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    calls.append((detector.network, pixels))
    return detector.network(pixels)


def bare(ready: Sequence[Calls]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda call: call[0](call[1]), [call for calls in ready for call in calls]))


def parts(verifier: Verifier, sample: Sample) -> None:
    """CPU time of each part on one image: what "share of limit" is made of."""
    table = Table("part", "CPU ms", title="Where the time goes, 1 megapixel, one thread")
    measured: dict[str, float] = {}
    detectors = [each for each in verifier.ensemble.detectors if isinstance(each, GraphDetector)]
    measuring: list[Part] = [*detectors, *verifier.ensemble.forensics]
    for each in measuring:
        measured[each.name] = min(_cpu(each.measure, sample) for _ in range(3))
    for name, seconds in measured.items():
        table.add_row(name, f"{seconds * 1000:.1f}")
    table.add_row("sum", f"{sum(measured.values()) * 1000:.1f}")
    console.print(table)


def _cpu(measure: Callable[[Sample], Measurement], sample: Sample) -> float:
    fresh = replace(sample)  # without what earlier parts have cached
    started = time.process_time()
    measure(fresh)
    return time.process_time() - started


def latency(verifier: Verifier, settings: DecodeSettings, path: Path, calls: Calls, runs: int) -> None:
    times = in_turns(
        {
            "one warm image": lambda: one(verifier, settings, path),
            "its forwards, one after another": lambda: [run(pixels) for run, pixels in calls],
        },
        max(runs, 5) * 2,
    )
    warm, forwards = (statistics.median(each) * 1000 for each in times.values())
    console.print(
        f"one warm image {warm:.0f} ms, the sum of its forwards {forwards:.0f} ms, ratio {warm / forwards:.2f}"
    )


class Queue:
    """A Valkey server, and a worker on a thread of this process; plain XADD in, result entries out."""

    def __init__(self, settings: Settings, verifier: Verifier) -> None:
        self._settings = settings
        self._verifier = verifier
        self._stack = ExitStack()

    def __enter__(self) -> Queue:
        from worker.embedded import EmbeddedServer
        from worker.service import build_service

        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="imgv-queue-"))
        url = self._stack.enter_context(EmbeddedServer(Path(folder))).url
        self._db = self._stack.enter_context(redis.Redis.from_url(url))
        service = build_service(self._settings, url, self._judging)
        ready = threading.Event()
        self._worker = threading.Thread(target=lambda: asyncio.run(service.run(ready.set)))
        self._worker.start()
        self._stack.callback(self._worker.join)
        self._stack.callback(service.stop)
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @asynccontextmanager
    async def _judging(self, settings: Settings, metrics: Metrics, *_: object) -> AsyncIterator[Judge]:
        from worker.judge import Judge

        verifiers = {settings.models.profile: self._verifier}
        async with Judge(
            settings.queue, settings.pipeline, settings.decode, settings.fetch, verifiers, metrics
        ) as judge:
            yield judge

    def judge(self, paths: Sequence[Path]) -> list[dict[str, str]]:
        """Send each file as a job and wait for all; the fields of their answers, in the order of answering.

        Raises:
            WorkerLost: it gave up, as a worker does whose batch takes too long.
        """
        done = int(self._db.xlen("image_verify:results")) + len(paths)
        for path in paths:
            self._db.xadd("image_verify:jobs", {"image": path.read_bytes()})
        while int(self._db.xlen("image_verify:results")) < done:
            if not self._worker.is_alive():
                raise WorkerLost("the worker gave up before its last job; run again when this machine has time")
            time.sleep(0.002)
        newest = self._db.xrevrange("image_verify:results", count=len(paths))
        return [{key.decode(): value.decode() for key, value in fields.items()} for _, fields in reversed(newest)]


# --- from a cold start


def cold(profile: str, path: Path, runs: int) -> None:
    judging = [sys.executable, "img_ml_verify.py", "--profile", profile, "--json", str(path)]
    commands = {
        "python -c 'import torch, timm'": [sys.executable, "-c", "import torch, timm"],
        f"img_ml_verify.py --profile {profile} photo.jpg": judging,
        "img_ml_verify.py --help": [sys.executable, "img_ml_verify.py", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    times = in_turns({name: partial(_quietly, command) for name, command in commands.items()}, runs)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    torch_seconds = seconds["python -c 'import torch, timm'"]
    table = Table("", "seconds", "x importing torch and timm", title="Cold start, wall time")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / torch_seconds:.2f}")
    console.print(table)


def _quietly(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - one of ours


# --- curves


def curves(settings: Settings, folder_: Path, paths: Sequence[Path]) -> None:
    table = Table("megapixels", "seconds", "peak memory", title="One photograph, a process of its own")
    for megapixels in SIZES:
        (path,) = photographs(folder_, 1, megapixels)
        seconds, peak = in_own_process(settings.models.profile, path)
        table.add_row(f"{megapixels:g}", f"{seconds:.2f}", f"{peak / 2**20:.0f} MiB")
    console.print(table)
    table = Table("threads", "images/s", "cost of a million images", title="Threads, 1 megapixel")
    for threads in dict.fromkeys((1, 2, os.cpu_count() or 1)):
        verifier = build_verifier(settings.models.model_copy(update={"threads": threads}))
        rate = rate_of(verifier, settings, paths)
        cents = 1e6 / rate / 3600 * CENTS_PER_CORE_HOUR * threads
        table.add_row(str(threads), f"{rate:.2f}", f"${cents / 100:.2f} at {CENTS_PER_CORE_HOUR:g} cents a core hour")
    console.print(table)
    table = Table("batch", "images/s", title="Images judged together, 1 megapixel")
    verifier = build_verifier(settings.models)
    for batch in BATCHES:
        pipeline = settings.pipeline.model_copy(update={"batch": batch})
        table.add_row(str(batch), f"{rate_of(verifier, replace(settings, pipeline=pipeline), paths):.2f}")
    console.print(table)


def rate_of(verifier: Verifier, settings: Settings, paths: Sequence[Path]) -> float:
    """Images a second of a folder, warm."""
    folder(verifier, settings, paths[:2])
    started = time.perf_counter()
    folder(verifier, settings, paths)
    return len(paths) / (time.perf_counter() - started)


# A small process in between: a child's peak starts at what its parent had in memory when it was forked.
PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def in_own_process(profile: str, path: Path) -> tuple[float, int]:
    """Seconds of a whole command, and its peak resident memory in bytes."""
    judging = (sys.executable, "img_ml_verify.py", "--profile", profile, "--json", str(path))
    command = (sys.executable, "-c", PEAK, *judging)
    started = time.perf_counter()
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603 - our own photograph
    return time.perf_counter() - started, int(found.stdout) * 1024


if __name__ == "__main__":
    sys.exit(main())
