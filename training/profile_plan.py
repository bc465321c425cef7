"""What a profile would cost before any of it is downloaded: files, licences, disk, memory, time; and which to choose.

Knows the records and cards, and what this machine has free. Downloads, loads and trains nothing.
"""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inference.registry import DETECTORS
from models.backbones import Backbone, backbone
from models.loaders import Weights, find
from training.deliveries import TAUGHT
from utils.contracts import Json
from utils.errors import BadSettings, PlanDoesNotFit, WeightsMissing
from utils.persistence import Card

COSTS = Path(__file__).with_name("detector_costs.toml")
GIB = 2**30
BASE_MEMORY = int(1.2 * GIB)  # Python, the libraries and an image with its forensics, before any large network
ACTIVATIONS = 0.35 * GIB  # of one batch of views, beside the weights of a frozen backbone
EFFICIENCY = 0.4  # of the multiplication of large matrices, that a network reaches
FORENSICS_SECONDS = 0.35  # an image on one core, decoding and delivering included
HEAD_SECONDS = 60.0  # to fit one head with its grid, some thousand rows
# Frozen backbones in the order in which a linear head on them is worth most in the wild; no figures are at hand that
# could be compared with ours, so the order is all that is taken.
ORDER = ("pe_core", "metaclip2", "dinov3", "siglip2", "dino", "clip", "blip2")
ORDER_SOURCE = "order of arXiv 2602.01738 for the first three, then a guess; not measured here"


@dataclass(frozen=True, slots=True)
class Part:
    """One detector of a plan, and what it costs."""

    detector: str
    backbone: Backbone | None  # of a head on frozen tokens
    cards: tuple[Card, ...]  # the files it needs and nobody trains
    installed: tuple[bool, ...]  # likewise
    parameters: int
    operations: float  # for one image
    memory: float  # bytes while judging, weights included
    worth: float  # balanced accuracy, where known; else 0
    source: str  # of that figure

    @property
    def name(self) -> str:
        """As --detectors takes it."""
        return f"{self.detector}:{self.backbone.name}" if self.backbone else self.detector

    @property
    def downloads(self) -> list[Card]:
        return [card for card, there in zip(self.cards, self.installed, strict=True) if not there]

    @property
    def bytes_to_fetch(self) -> int:
        """Of the files that are not there; where nobody states a size, four bytes for each parameter."""
        return sum(card.size or 4 * self.parameters for card in self.downloads)


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is."""

    device: str
    operations_per_second: float  # measured, in the precision asked for
    memory: int  # bytes free where the networks run
    disk: int  # bytes free in the weights folder


@dataclass(frozen=True, slots=True)
class Plan:
    parts: tuple[Part, ...]
    machine: Machine
    images: int  # of the data set; 0: none named

    @property
    def memory(self) -> float:
        return BASE_MEMORY + sum(part.memory for part in self.parts)

    @property
    def rows(self) -> int:
        """Each image under each delivery; there are as many to measure as to learn from."""
        return self.images * len(TAUGHT)

    @property
    def disk(self) -> int:
        return sum(part.bytes_to_fetch for part in self.parts) + self.rows * 50_000

    @property
    def seconds_per_image(self) -> float:
        return FORENSICS_SECONDS + sum(seconds(part, self.machine) for part in self.parts)

    @property
    def seconds(self) -> float:
        """To build: every image in each delivery under every detector, then the heads."""
        heads = sum(part.backbone is not None for part in self.parts)
        return self.rows * self.seconds_per_image + heads * HEAD_SECONDS

    def check(self) -> None:
        """
        Raises:
            PlanDoesNotFit: memory or disk is too small; the message says by how much, and what would fit.
        """
        if self.memory > self.machine.memory:
            raise PlanDoesNotFit(
                f"these detectors take {self.memory / GIB:.1f} GiB of memory and {self.machine.memory / GIB:.1f} are "
                f"free on {self.machine.device}; nothing was downloaded. What fits: "
                f"--detectors {','.join(part.name for part in chosen(self.parts, self.machine))}"
            )
        if self.disk > self.machine.disk:
            raise PlanDoesNotFit(
                f"{self.disk / GIB:.1f} GiB of disk are needed and {self.machine.disk / GIB:.1f} are free; nothing was "
                "downloaded. Name fewer with --detectors, or another folder with IMGV_WEIGHTS_DIR"
            )


@cache
def costs() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(COSTS.read_text(encoding="utf-8"))


def parts_of(names: Iterable[str], weights: Weights, bytes_per_parameter: int = 4) -> list[Part]:
    """The parts that the names of --detectors mean.

    Raises:
        BadSettings: as ``part_of``, or two parts give the same feature, of which one would be lost.
    """
    parts = [part_of(name, weights, bytes_per_parameter) for name in names]
    owners: dict[str, Part] = {}
    for part in parts:
        for feature in DETECTORS[part.detector].features:
            if feature in owners:
                raise BadSettings(f"--detectors: {owners[feature].name} and {part.name} both give {feature}; name one")
            owners[feature] = part
    return parts


def part_of(name: str, weights: Weights, bytes_per_parameter: int = 4) -> Part:
    """The part of a plan that a name of --detectors means: ``detector`` or ``detector:backbone``.

    Raises:
        BadSettings: no such detector or backbone, or they do not belong together.
    """
    detector, _, size = name.partition(":")
    if detector not in DETECTORS:
        raise BadSettings(f"--detectors: no detector {detector!r}; known: {', '.join(DETECTORS)}")
    cards = weights.of(DETECTORS[detector].model)
    if DETECTORS[detector].path.startswith("inference.frozen:"):
        record = backbone(size or cards[0].backbone)
        if record.detector != detector:
            raise BadSettings(f"--detectors: {record.name} is a backbone of {record.detector}, not of {detector}")
        cards = [weights.card(record.name)]
        views = 6 if record.native else 1
        return Part(
            detector, record, *_installed(cards, weights), record.parameters, views * record.operations,
            bytes_per_parameter * record.parameters + ACTIVATIONS, 0.0, ORDER_SOURCE,
        )  # fmt: skip
    if size:
        raise BadSettings(f"--detectors: {detector} has no choice of backbones")
    cost = costs()[detector]
    files = [card for card in cards if card.file or not card.train]
    return Part(
        detector, None, *_installed(files, weights), cost["parameters"], cost["operations"],
        bytes_per_parameter * cost["parameters"] + cost["memory"] * 2**20, cost["worth"], cost["source"],
    )  # fmt: skip


def _installed(cards: Iterable[Card], weights: Weights) -> tuple[tuple[Card, ...], tuple[bool, ...]]:
    cards = tuple(cards)

    def is_there(card: Card) -> bool:
        try:
            find(card, weights.folders)
        except WeightsMissing:
            return False
        return True

    return cards, tuple(is_there(card) for card in cards)


def seconds(part: Part, machine: Machine) -> float:
    """Of one image under one part."""
    return part.operations / (EFFICIENCY * machine.operations_per_second)


def order(part: Part) -> tuple[int, int, float]:
    """What ships first, then by known or published worth: smaller is chosen earlier."""
    ships = bool(part.cards) and all(part.installed) and part.backbone is None
    rank = ORDER.index(part.detector) if part.detector in ORDER else len(ORDER)
    return (0 if ships else 1, rank, -part.worth)


def chosen(parts: Sequence[Part], machine: Machine, seconds_per_image: float = 0.0) -> list[Part]:
    """The parts that fit into memory, and into a time for each image if one is named, the worthier first."""
    taken: list[Part] = []
    for part in sorted(parts, key=order):
        trial = Plan((*taken, part), machine, 0)
        in_time = not seconds_per_image or trial.seconds_per_image <= seconds_per_image
        if trial.memory <= machine.memory and trial.disk <= machine.disk and in_time:
            taken.append(part)
    return [part for part in parts if part in taken]


def this_machine(device: str, precision: str, weights_dir: Path, memory: float = 0.0) -> Machine:
    """Measure it.

    Args:
        memory: GiB to take as free instead of what is.
    """
    import psutil
    import torch

    dtype = getattr(torch, precision)
    free = int(psutil.virtual_memory().available)
    if device.startswith("cuda"):
        free = int(torch.cuda.mem_get_info(device)[0])
    if memory:
        free = int(memory * GIB)
    folder = next(each for each in (weights_dir, *weights_dir.parents) if each.exists())
    return Machine(device, _speed(device, dtype), free, shutil.disk_usage(folder).free)


def _speed(device: str, dtype: Any) -> float:
    """Operations per second of a product of matrices as large as a network's."""
    import torch

    side = 4096 if device.startswith("cuda") else 768
    one = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first warms up
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


# --- for people


def shown(plan: Plan) -> str:
    """The plan as a table, with licences and what is not installed."""
    lines = [
        "| detector | file | to download | licence | memory | s/image | worth |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in plan.parts:
        fetch = _size(part.bytes_to_fetch, all(card.size for card in part.downloads)) if part.downloads else "-"
        licences = sorted({_licence(card) for card in part.cards if card.licence})
        worth = f"{part.worth:.2f} {part.source}" if part.worth else part.source
        by_hand = [card.name for card in part.downloads if not card.url]
        lines.append(
            f"| {part.name} | {', '.join(card.name for card in part.cards)} | {fetch}"
            f"{' by hand: ' + ', '.join(by_hand) if by_hand else ''} | {'; '.join(licences) or 'yours'} | "
            f"{part.memory / GIB:.1f} GiB | {seconds(part, plan.machine):.3f} | {worth} |"
        )
    lines += [
        "",
        f"device {plan.machine.device}, {plan.machine.operations_per_second / 1e9:.0f} billion operations a second; "
        f"memory {plan.memory / GIB:.1f} of {plan.machine.memory / GIB:.1f} GiB free; disk {plan.disk / GIB:.2f} of "
        f"{plan.machine.disk / GIB:.1f} GiB free; {plan.seconds_per_image:.2f} s for a verdict"
        + (f"; about {_duration(plan.seconds)} to build from {plan.images} images" if plan.images else ""),
    ]
    return "\n".join(lines)


def as_json(plan: Plan) -> dict[str, Json]:
    """Likewise for programs."""
    return {
        "detectors": [
            {
                "name": part.name,
                "download_bytes": part.bytes_to_fetch,
                "licences": sorted({card.licence for card in part.cards if card.licence}),
                "commercial": all(card.commercial for card in part.cards),
                "memory_bytes": int(part.memory),
                "seconds_per_image": seconds(part, plan.machine),
                "worth": part.worth or None,
                "source": part.source,
            }
            for part in plan.parts
        ],
        "memory_bytes": int(plan.memory),
        "memory_free": plan.machine.memory,
        "disk_bytes": plan.disk,
        "disk_free": plan.machine.disk,
        "seconds": plan.seconds,
    }


def _licence(card: Card) -> str:
    return card.licence if card.commercial else f"{card.licence} (NOT FOR COMMERCIAL USE)"


def _size(count: int, known: bool) -> str:
    return f"{'' if known else 'about '}{count / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
