"""The table of forensic modules. To add one: write forensics/<name>.py, add one line here.

Each module has ``FEATURES``, a mapping from each feature it gives to what the number means (unit and range), and
``measure(sample) -> Measurement``. The table holds names, not imports: one broken module cannot take the others down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeAlias

from utils.contracts import Measurement, Sample

# "file" is measured once; "pixels" on every sampled frame of an animation, and the median is kept.
Reads: TypeAlias = Literal["file", "pixels"]

FORENSICS: dict[str, Reads] = {
    "exif": "file",
    "statistics": "pixels",
    "ela": "pixels",
    "jpeg": "file",
    "grid": "pixels",
    "noise": "pixels",
    "spectrum": "pixels",
    "resampling": "pixels",
    "watermark": "file",
    "provenance": "file",
}


@dataclass(frozen=True, slots=True)
class Forensic:
    """One loaded forensic module."""

    name: str
    reads: Reads
    features: Mapping[str, str]
    measure: Callable[[Sample], Measurement]


def load_forensics(trust_anchors: Path | None = None) -> tuple[Forensic, ...]:
    """Import every module, in table order.

    Args:
        trust_anchors: PEM file of the C2PA authorities that provenance accepts; none by default.

    Raises:
        BadSettings: that file cannot be read.
    """
    anchors = None
    if trust_anchors:
        from forensics.c2pa_manifest import read_anchors

        anchors = read_anchors(trust_anchors)  # once: an image is no place to find out that a setting is wrong
    loaded = []
    for name, reads in FORENSICS.items():
        module = import_module(f"forensics.{name}")
        measure = partial(module.measure, trust_anchors=anchors) if name == "provenance" else module.measure
        loaded.append(Forensic(name, reads, module.FEATURES, measure))
    return tuple(loaded)
