"""What the trainers share: which pictures, drawn how often, and a loop that can be stopped and goes on where it was.

Knows no architecture, no detector's pixels, no metric and no delivery.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from training.datasets import LABELS, check_splits, read_rows
from training.shards import ImageTable, Span, blocks, read, span_of
from utils.contracts import RgbArray
from utils.errors import BadSettings, TableError, TrainingDiverged
from utils.persistence import save_model, write_atomic
from utils.processes import process_pool

NUMBERS = {label: number for number, label in enumerate(LABELS)}
CHECKPOINT, LOG, PLOT = "checkpoint.pt", "log.jsonl", "curve.png"

_TOGETHER = 8  # pictures that a process decodes at a time

Load: TypeAlias = Callable[[Path | bytes], tuple[RgbArray, bool]]
Batch: TypeAlias = tuple[Tensor, ...]
Loss: TypeAlias = Callable[[nn.Module, Batch], Mapping[str, Tensor]]  # scalars to log; "loss" is minimised


# --- which pictures


@dataclass(frozen=True, slots=True)
class Picture:
    """One labelled image file.

    Args:
        content: what it shows (photo, art, face, ...), empty where nobody says.
        kind, family: as the data set's vocabulary has them, how it came to be and what generated it; empty likewise.
        teacher: the probability of AI that a larger detector gives it, which did not see its group; NaN: none.
    """

    path: Path
    label: int  # 1 = AI
    source: str
    split: str
    content: str = ""
    group: str = ""  # of sources that share an author or motifs: what cross-validation keeps together
    teacher: float = math.nan
    kind: str = ""
    family: str = ""
    sha256: str = ""  # of the file, where the data set names it
    span: Span | None = None  # in a shard, until it is prepared; its path is then only a name
    lossy: bool = False  # known once it is prepared: its pixels carry a JPEG history

    @property
    def pixels(self) -> RgbArray:
        """Of a prepared picture."""
        return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))


def read_datasets(paths: Iterable[ImageTable], labels: Collection[str] = LABELS) -> list[Picture]:
    """Every image of these labels in one or more CSVs with filepath, label and source; split, content, group, teacher,
    kind and family if they have.

    A file path is looked up from its CSV's own folder, or its shard is (training.shards). Without a split, a row is
    for training.

    Raises:
        TableError: a CSV cannot be used, a label has no image to train on, or a source is in both splits.
    """
    found = []
    for path in paths:
        for row in read_rows(path):
            if row["label"] in labels:
                label, content, group = NUMBERS[row["label"]], row.get("content") or "", row.get("group") or ""
                place, source = Path(path).parent / row["filepath"], row["source"]
                teacher, span = float(row.get("teacher") or math.nan), span_of(path, row)
                kind, family, digest = (row.get(name) or "" for name in ("kind", "family", "sha256"))
                about = content, group or source, teacher, kind, family, digest, span
                found.append(Picture(place, label, source, row["split"], *about))
    check_labels(found, labels)
    check_splits((each.source, each.split) for each in found)
    return found


def check_labels(pictures: Iterable[Picture], labels: Collection[str]) -> None:
    """
    Raises:
        TableError: a label has no image to train on.
    """
    if {each.label for each in pictures if each.split == "train"} != {NUMBERS[name] for name in labels}:
        raise TableError(f"training needs {' and '.join(labels)} images with split train that can be read")


def some_of_each(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most ``most`` pictures of each source and label, in order; always the same ones of the same files."""
    taken: Counter[tuple[str, int]] = Counter()
    chosen = set()
    for each in sorted(pictures, key=lambda each: hashlib.sha256(each.path.name.encode()).digest()):
        taken[each.source, each.label] += 1
        if taken[each.source, each.label] <= most:
            chosen.add(each.path)
    return [each for each in pictures if each.path in chosen]


def draw_weights(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """How often each picture is drawn: real as often as AI, and each content as often in one label as in the other.

    Without the second, "generated" is learnt as "illustration" wherever AI images are art and real ones photographs. A
    content that one label lacks keeps its share of the other. Within label and content a source is drawn in proportion
    to the square root of its images, between what is fair to sources and what is fair to images.
    """
    shares = [Counter(each.content for each in pictures if each.label == label) for label in (0, 1)]
    both = {content: math.sqrt(shares[0][content] * shares[1][content]) for content in shares[0] & shares[1]}
    roots: dict[tuple[int, str], dict[str, int]] = defaultdict(Counter)
    for each in pictures:
        roots[each.label, each.content][each.source] += 1
    weights = []
    for each in pictures:
        counts = shares[each.label]
        if each.content in both:
            matched = sum(counts[content] for content in both) / counts.total()
            share = matched * both[each.content] / sum(both.values())
        else:
            share = counts[each.content] / counts.total()
        sizes = roots[each.label, each.content]
        weights.append(share / (math.sqrt(sizes[each.source]) * sum(map(math.sqrt, sizes.values()))))
    return np.array(weights) / sum(weights)


def prepare(pictures: Sequence[Picture], folder: Path, load: Load, jobs: int = 2) -> list[Picture]:
    """Decode every picture once, keep its pixels below ``folder``, and return those that could be read, in order.

    Args:
        load: file, or what one holds -> pixels as training wants them, and whether they carry a JPEG history.
            ValueError for one that cannot be used: it is named on stdout and left out. Picklable if ``jobs`` is above
            1; its name keeps what different loaders made apart.
    """
    folder = folder / load.__name__
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{_identity(each)}.npy" for each in pictures]
    work = [(each.span or each.path, target) for each, target in zip(pictures, targets, strict=True)]
    parts = blocks(work, lambda item: item[0] if isinstance(item[0], Span) else None, _TOGETHER)
    if jobs == 1:
        outcomes = [outcome for part in parts for outcome in _prepare(load, part)]
    else:
        with process_pool(jobs) as pool:
            outcomes = [outcome for found in pool.map(partial(_prepare, load), parts) for outcome in found]
    ready = []
    for picture, target, outcome in zip(pictures, targets, outcomes, strict=True):
        if isinstance(outcome, str):
            print(f"left out: {picture.path}: {outcome}")
        else:
            ready.append(replace(picture, path=target, span=None, lossy=outcome))
    return ready


def _identity(picture: Picture) -> str:
    """Of a file as it is now: one that was replaced is decoded again. A shard is named by what it holds."""
    status = picture.path.stat() if not picture.span and picture.path.exists() else None
    now = picture.span or (picture.path.resolve(), status and (status.st_size, status.st_mtime_ns))
    return hashlib.sha256(str(now).encode()).hexdigest()[:24]


def _prepare(load: Load, part: Sequence[tuple[Path | Span, Path]]) -> list[bool | str]:
    """Of each picture, whether it carries a JPEG history, or why it cannot be used."""
    raws = read([source for source, target in part if isinstance(source, Span) and not target.exists()])
    return [
        _prepare_one(raws.get(source) if isinstance(source, Span) else source, target, load) for source, target in part
    ]


def _prepare_one(source: Path | bytes | None, target: Path, load: Load) -> bool | str:
    marker = target.with_suffix(".lossy")
    if source is None or target.exists():
        return marker.exists()
    try:
        pixels, lossy = load(source)
    except ValueError as error:
        return str(error)
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, pixels)
    if lossy:
        marker.touch()
    part.replace(target)
    return lossy


# --- drawn how often


class Drawn(Dataset[Batch]):
    """Sample ``i`` of a run: a picture drawn by weight and one random view of it.

    Both depend on the seed and ``i`` alone, so a stopped run goes on with the samples it would have seen, whatever the
    number of workers.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        weights: NDArray[np.float64],
        view: Callable[[Picture, np.random.Generator], Batch],
        seed: int,
    ) -> None:
        self._pictures = pictures
        self._cumulative = np.cumsum(weights / weights.sum())
        self._view = view
        self._seed = seed

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng([self._seed, index])
        place = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        return self._view(self._pictures[min(place, len(self._pictures) - 1)], rng)


# --- the loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained; ends after ``minutes`` or ``steps``, whichever comes first."""

    minutes: float
    steps: int = 10**9
    batch: int = 32
    rate: float = 1e-3  # highest learning rate; a linear rise over ``warmup`` of the run, then half a cosine to 0
    warmup: float = 0.05
    decay: float = 0.05  # AdamW's weight decay; not for biases and normalisation
    average: float = 0.99  # decay per step of the running average of the weights, which is what is kept
    seed: int = 0
    workers: int = 1  # processes that make the samples; 0: this one
    log_steps: int = 20
    save_seconds: float = 180.0

    def rate_at(self, progress: float) -> float:
        """``progress`` of the run in 0..1 -> learning rate."""
        if progress < self.warmup:
            return self.rate * max(progress, 1e-3) / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))


def fit(
    network: nn.Module,
    samples: Dataset[Batch],
    loss: Loss,
    recipe: Recipe,
    folder: Path,
    resume: bool = False,
    enough: Callable[[nn.Module, int], bool] | None = None,
) -> nn.Module:
    """Train in place and return the running average of the weights, in eval mode.

    SIGTERM, as spot machines give it before they go, ends the run after a step, with a checkpoint.

    ``folder`` receives a checkpoint every few minutes and at the end, and a log with one JSON object per line. A run
    resumed with more minutes goes on along the longer schedule. The seed fixes the result where ``steps`` ends the run;
    how many steps fit into ``minutes`` is the machine's affair.

    Args:
        loss: the network in training mode and a batch -> scalars; called under bfloat16 autocast on a GPU. On a CPU the
            backward pass of depthwise convolutions takes 1.8 times as long in bfloat16, so all stays in float32.
        resume: go on from the folder's checkpoint, if there is one.
        enough: asked after every step, with the average and the step's number: whether to end here.

    Raises:
        BadSettings: the checkpoint was made with another batch or seed: the samples would be others.
        TrainingDiverged: the loss is NaN or infinite; the last checkpoint stays.
        KeyboardInterrupt: SIGTERM came.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    torch.manual_seed(recipe.seed)
    run = _Run(network.train(), recipe)
    if resume and (folder / CHECKPOINT).exists():
        run.restore(folder / CHECKPOINT)
    _shorten_log(folder / LOG, run.step)
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    sums: Counter[str] = Counter()
    with _sigterm() as came:
        for batch in _batches(samples, recipe, run.step):
            run.seconds = time.monotonic() - began
            progress = max(run.step / recipe.steps, run.seconds / (recipe.minutes * 60))
            if progress >= 1:
                break
            rate = recipe.rate_at(progress)
            sums.update({**run.learn(batch, loss, rate), "steps": 1})
            if run.step % recipe.log_steps == 0:
                _write_log(folder / LOG, run, rate, sums)
                sums.clear()
            if came.is_set() or time.monotonic() - saved > recipe.save_seconds:
                run.save(folder / CHECKPOINT)
                saved = time.monotonic()
                _end_if(came)
            if enough and enough(run.average.module, run.step):
                break
    run.save(folder / CHECKPOINT)
    kept: nn.Module = run.average.module
    return kept.eval().requires_grad_(False)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Is set when SIGTERM comes, which ends nothing meanwhile. In the main thread alone: others get no signals."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_if(came: threading.Event) -> None:
    if came.is_set():
        raise KeyboardInterrupt("SIGTERM: the checkpoint is written; go on with --resume")


class _Run:
    """What changes from step to step, and what a checkpoint holds."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.network = network
        self.recipe = recipe
        self.device = next(network.parameters()).device
        # The decay rises as n / (n + 9), as in TensorFlow's average: the first steps count for less.
        self.average = ModelEmaV3(network, recipe.average, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
        self.optimizer = AdamW(_groups(network, recipe.decay), lr=recipe.rate)
        self.step = 0
        self.seconds = 0.0

    def learn(self, batch: Batch, loss: Loss, rate: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            measured = loss(self.network, tuple(each.to(self.device, non_blocking=True) for each in batch))
        if not torch.isfinite(measured["loss"]):
            raise TrainingDiverged(f"the loss is not finite at step {self.step}; give a lower --rate, and --resume")
        self.optimizer.zero_grad(set_to_none=True)
        measured["loss"].backward()
        self.optimizer.step()
        self.step += 1
        self.average.update(self.network, self.step)
        return {name: float(value.detach()) for name, value in measured.items()}

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
            "recipe": asdict(self.recipe),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        batch, seed = saved["recipe"]["batch"], saved["recipe"]["seed"]
        if (batch, seed) != (self.recipe.batch, self.recipe.seed):
            raise BadSettings(f"{path} was made with --batch {batch} --seed {seed}: give these, or another --out")
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = int(saved["step"]), float(saved["seconds"])
        torch.set_rng_state(saved["random"])


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of returning them: each step asks for the same ones, and the kernel would
    clear every page of them again (half of the time of a step on two cores)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    shared = [each for each in network.parameters() if each.requires_grad]
    return [
        {"params": [each for each in shared if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in shared if each.ndim <= 1], "weight_decay": 0.0},
    ]


class _From(Dataset[Batch]):
    """``samples`` counted from ``first`` on, without an end in sight."""

    def __init__(self, samples: Dataset[Batch], first: int) -> None:
        self._samples, self._first = samples, first

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> Batch:
        return self._samples[self._first + index]


def _batches(samples: Dataset[Batch], recipe: Recipe, step: int) -> Iterable[Batch]:
    return DataLoader(
        _From(samples, step * recipe.batch),
        batch_size=recipe.batch,
        num_workers=recipe.workers,
        multiprocessing_context="spawn" if recipe.workers else None,
        prefetch_factor=4 if recipe.workers else None,
        worker_init_fn=_one_thread,
        collate_fn=_collate,
        generator=torch.Generator(),  # of its own: dropout's draws would depend on how often a run was resumed
    )


def _collate(samples: Sequence[Batch]) -> Batch:
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)  # the training process needs the other cores
    torch.set_num_threads(1)


def _shorten_log(path: Path, step: int) -> None:
    """Leave out what a stopped run logged after its last checkpoint: those steps come again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomic(path, "".join(line for line in lines if json.loads(line)["step"] <= step).encode())


def _write_log(path: Path, run: _Run, rate: float, sums: Counter[str]) -> None:
    steps = sums.pop("steps")  # fewer than recipe.log_steps after a resume
    means = {name: round(value / steps, 5) for name, value in sums.items()}
    row = {"step": run.step, "seconds": round(run.seconds, 1), "rate": float(f"{rate:.3g}"), **means}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def plot_log(folder: Path) -> bool:
    """Draw the log beside it, one panel per quantity; False where there is none, or matplotlib is not installed."""
    if not (folder / LOG).exists():
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    names = [name for name in rows[0] if name not in ("step", "seconds")]
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        axes.plot([row["step"] for row in rows], [row[name] for row in rows])
        axes.set(title=name, xlabel="step")
    figure.savefig(folder / PLOT, dpi=100)
    return True


# --- what is kept


def save_trained(
    folder: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], layout: str, trainer: str = ""
) -> None:
    """Write a model folder of ours: floating-point tensors in half precision, counters as they are, and the card.

    Args:
        trainer: in scripts; empty: named as the folder is, up to an underscore.

    A folder that holds it, such as a trainer's ``--out``, is a weights folder; ``models/saved_models`` is another.
    """
    half = {key: (value.half() if value.is_floating_point() else value).cpu().numpy() for key, value in state.items()}
    train = f"python -m scripts.{trainer or 'train_' + folder.name.partition('_')[0]}"
    save_model(folder, half, metadata, licence="MIT", commercial=True, layout=layout, train=train)
    print(f"wrote {folder}; to use it: cp -r {folder} $IMGV_WEIGHTS_DIR/")
