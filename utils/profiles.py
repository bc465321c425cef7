"""The profiles: what a name has measured, and which fusion artifact weighs it.

Every choice, default and document derives from this table. It is data, and lies here because the settings offer its
names: the registry, which knows the detectors themselves, is above the settings and only reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """One row: what runs unless a setting says otherwise."""

    detectors: tuple[str, ...]  # names of inference.registry.DETECTORS; IMGV_DETECTORS adds others
    fusion: str  # a folder of models/saved_models; IMGV_FUSION takes another
    without: tuple[str, ...] = ()  # modules of inference.parts.FORENSICS that run only where the fusion reads them


PROFILES: dict[str, Profile] = {
    # Neither effnet nor ghostnet: beside the tower they cost time and fusion gains nothing (docs/LOG.md).
    "embedded": Profile(("clip_b16", "mantranet_compact"), "embedded-2026.12.5"),
    # The same answer in half of the time: what takes time and moves no probability is left out.
    "light": Profile(("clip_b16",), "embedded-2026.12.5", without=("ela", "grid", "noise", "spectrum", "resampling")),
    "full": Profile(
        (
            *("clip_b16", "effnet", "ghostnet", "dino", "fatformer", "clip_h14", "clip_bigg", "mantranet"),
            *("dinov3", "metaclip2", "siglip2", "pe_core"),
        ),
        "embedded-2026.12.5",  # until scripts.build_profile has made one that knows them all
    ),
}
DEFAULT_PROFILE = next(iter(PROFILES))
