"""The table of modules that measure without a network. To add one: write <package>/<name>.py, add one line here.

Each module has ``FEATURES``, a mapping from each feature it gives to what the number means (unit and range), and
``measure(sample) -> Measurement``; one that draws has ``HEATMAPS``, name -> title. The table holds names, not imports:
one broken module cannot take the others down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeAlias

from utils.contracts import Measurement, Sample
from utils.profiles import PROFILES

# "file" is measured once; "pixels" on every sampled frame of an animation, and the median is kept.
Reads: TypeAlias = Literal["file", "pixels"]

FORENSICS: dict[str, Reads] = {
    "provenance.exif": "file",
    "forensics.statistics": "pixels",
    "forensics.ela": "pixels",
    "forensics.jpeg": "file",
    "forensics.grid": "pixels",
    "forensics.noise": "pixels",
    "forensics.spectrum": "pixels",
    "forensics.resampling": "pixels",
    "provenance.watermark": "file",
    "provenance.claims": "file",
}


@dataclass(frozen=True, slots=True)
class Forensic:
    """One loaded forensic module."""

    name: str
    reads: Reads
    features: Mapping[str, str]
    heatmaps: Mapping[str, str]
    measure: Callable[[Sample], Measurement]

    def runs_in(self, profile: str, inputs: Collection[str]) -> bool:
        """Whether a profile measures it: unless it leaves it out, and always where its fusion reads it."""
        return self.name not in PROFILES[profile].without or not self.features.keys().isdisjoint(inputs)


def load_forensics(trust_anchors: Path | None = None) -> tuple[Forensic, ...]:
    """Import every module, in table order.

    Args:
        trust_anchors: PEM file of the C2PA authorities that provenance accepts; none by default.

    Raises:
        BadSettings: that file cannot be read.
    """
    anchors = None
    if trust_anchors:
        from provenance.c2pa import read_anchors

        anchors = read_anchors(trust_anchors)  # once: an image is no place to find out that a setting is wrong
    loaded = []
    for path, reads in FORENSICS.items():
        module = import_module(path)
        measure = partial(module.measure, trust_anchors=anchors) if path == "provenance.claims" else module.measure
        heatmaps = getattr(module, "HEATMAPS", {})
        loaded.append(Forensic(path.rpartition(".")[2], reads, module.FEATURES, heatmaps, measure))
    return tuple(loaded)
