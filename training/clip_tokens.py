"""Class tokens of labelled images under deliveries, computed once and kept on disk. Knows no head.

A view is one image under one delivery. Its tokens are kept as float16 in a file of their own, named after the image's
bytes, the delivery and the seed, so a stopped run goes on where it was and several may share a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ingress.decode import read_file
from ingress.sources import Ingress
from training.deliveries import LOSSY, deliver_at_random, through_jpeg
from training.sources import HASH_DIGITS
from utils.contracts import RgbArray, Sample
from utils.deliveries import FIXED, deliver, shrink
from utils.errors import InputError
from utils.persistence import write_atomic
from utils.processes import process_pool
from utils.settings import DecodeSettings, load_settings

# The same small picture without and with one JPEG generation: (longest side that the image is shrunk to, side of its
# centre), px. Shrinking wipes out a file's own history; the second shows the grain that the first has lost.
PAIRS = {("pristine", "recompressed"): (512, 224), ("cut", "cut_recompressed"): (1024, 192)}

Look: TypeAlias = Callable[[RgbArray], NDArray[np.float32]]  # upright pixels -> tokens
Tokens: TypeAlias = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class View:
    """One image file under one delivery: clean, web, hard, random1, random2, ... that the seed draws, or of PAIRS.

    Args:
        digest: SHA-256 of the file where it is known: what is kept of the view is then found without the file.
    """

    path: Path
    delivery: str
    seed: int = 0
    digest: str = ""

    @property
    def name(self) -> str:
        """Of its tokens; empty where the digest is not known. The seed counts where something is drawn."""
        drawn = self.delivery not in ("clean", *FIXED, *(plain for plain, _ in PAIRS))
        parts = [self.digest[:HASH_DIGITS], self.delivery, *([str(self.seed)] if drawn else [])]
        return "-".join(parts) if self.digest else ""


def tokens_of(
    views: Sequence[View],
    folder: Path,
    looker: Callable[[], Look],
    jobs: int = 2,
    known: Mapping[str, Tokens] = MappingProxyType({}),
) -> dict[View, Tokens]:
    """The tokens of every view that can be read; the others are named on stderr.

    Args:
        folder: of the kept tokens; one for each set of weights.
        looker: makes, in each process, what sees pixels. Picklable if ``jobs`` is above 1.
        known: tokens by the name of their view, which are not looked for anywhere else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[View, Tokens] = {view: known[view.name] for view in views if view.name in known}
    by_path: dict[Path, list[View]] = {}
    for view in views:
        if view not in found:
            by_path.setdefault(view.path, []).append(view)
    for outcome in _measured(list(by_path.values()), folder, looker, jobs):
        if isinstance(outcome, str):
            print(f"left out: {outcome}", file=sys.stderr, flush=True)
        else:
            found |= outcome
    return {view: found[view] for view in views if view in found}


def _measured(
    work: Sequence[Sequence[View]], folder: Path, looker: Callable[[], Look], jobs: int
) -> Iterator[Mapping[View, Tokens] | str]:
    if jobs == 1:
        yield from map(_Worker(folder, looker), work)
        return
    with process_pool(jobs, _start, (folder, looker)) as pool:
        yield from pool.map(_work, work, chunksize=4)


_worker: _Worker


def _start(folder: Path, looker: Callable[[], Look]) -> None:
    global _worker
    _worker = _Worker(folder, looker)


def _work(views: Sequence[View]) -> Mapping[View, Tokens] | str:
    return _worker(views)


class _Worker:
    """Sees the views of one image after the other. One thread: the processes share the cores."""

    def __init__(self, folder: Path, looker: Callable[[], Look]) -> None:
        self.folder, self.looker = folder, looker
        self.look: Look | None = None  # a run that finds everything on disk loads no network
        self.settings = load_settings().decode
        threadpool_limits(1)

    def __call__(self, views: Sequence[View]) -> Mapping[View, Tokens] | str:
        """The tokens of all views of one file, or why there are none."""
        path = views[0].path
        try:
            raw = read_file(path, self.settings.max_bytes)
            digest = sha256(raw).hexdigest()
            names = [self.folder / f"{replace(view, digest=digest).name}.npy" for view in views]
            sample = None
            for view, name in zip(views, names, strict=True):
                if not name.exists():
                    sample = sample or _decoded(raw, path, self.settings)
                    self._keep(name, delivered(sample, view, self.settings))
        except InputError as error:
            return f"{path}: {error.code}: {error}"
        return {view: np.load(name) for view, name in zip(views, names, strict=True)}

    def _keep(self, name: Path, pixels: RgbArray) -> None:
        self.look = self.look or self.looker()
        out = BytesIO()
        np.save(out, self.look(pixels).astype(np.float16))
        write_atomic(name, out.getvalue())


def delivered(sample: Sample, view: View, settings: DecodeSettings) -> RgbArray:
    """The upright pixels that a receiver sees; random deliveries as scripts.extract_features draws them."""
    if view.delivery == "clean":
        return sample.upright
    if view.delivery in FIXED:
        return _decoded(deliver(sample.upright, view.delivery), view.path, settings).upright
    digest = sha256(f"{view.seed}:{view.delivery}:{sample.sha256}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    for (plain, recompressed), (longest, side) in PAIRS.items():
        if view.delivery in (plain, recompressed):
            small = centre(shrink(sample.upright, longest), side)
            return small if view.delivery == plain else through_jpeg(small, int(rng.integers(80, 98)), 2)
    raw = deliver_at_random(sample.upright, rng, compressed_before=sample.format in LOSSY)
    return _decoded(raw, view.path, settings).upright


def centre(rgb: RgbArray, side: int) -> RgbArray:
    """The central square of ``side`` px, less where the image is smaller."""
    top, left = (max(0, each - side) // 2 for each in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def _decoded(raw: bytes, path: Path, settings: DecodeSettings) -> Sample:
    with Ingress(settings) as ingress:
        return ingress.decode(raw, str(path))
