"""The table of forensic modules. To add one: write forensics/<name>.py, add one line here.

Each module has ``FEATURES``, a mapping from each feature it gives to what the number means (unit and range), and
``measure(sample) -> Measurement``. Import paths, not imports: one broken module cannot take the others down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from utils.contracts import Measurement, Sample

FORENSICS = (
    "exif",
    "statistics",
    "ela",
    "jpeg",
    "grid",
    "noise",
    "spectrum",
    "resampling",
    "watermark",
    "provenance",
)


@dataclass(frozen=True, slots=True)
class Forensic:
    """One loaded forensic module."""

    name: str
    features: Mapping[str, str]
    measure: Callable[[Sample], Measurement]


def load_forensics() -> tuple[Forensic, ...]:
    """Import every module, in table order."""
    modules = ((name, import_module(f"forensics.{name}")) for name in FORENSICS)
    return tuple(Forensic(name, module.FEATURES, module.measure) for name, module in modules)
