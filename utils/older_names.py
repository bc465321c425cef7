"""What older systems of this kind called their settings, as ours. Knows no default and reads no environment."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

from utils.profiles import PROFILES

log = logging.getLogger(__name__)

_TRUE = ("1", "true", "yes", "on")


def from_older(given: Mapping[str, str | None]) -> dict[str, str]:
    """The settings that variables with older names stand for. One that does nothing is told in the log.

    Args:
        given: variables and their values; those with other names are passed over, and so are empty ones.

    Returns:
        Setting -> value, named as ``load_settings`` takes them.
    """
    found: dict[str, str] = {}
    for name, translate in _OLDER.items():
        if not (value := given.get(name)):
            continue
        translated = translate(value.strip())
        found |= translated
        if not translated:
            log.warning("%s=%s does nothing here: %s", name, value, _INSTEAD[name])
    return found


def _profile(value: str) -> dict[str, str]:
    return {"profile": value.lower()} if value.lower() in PROFILES else {}


def _tower(value: str) -> dict[str, str]:
    """``ViT-H-14``, ``openai/clip-vit-base-patch16``, ``laion/CLIP-ViT-bigG-14-…`` and their like."""
    name = re.sub(r"[^a-z0-9]", "", value.lower())
    if "bigg14" in name:
        return {"detectors": "clip_bigg"}
    if "vith14" in name:
        return {"detectors": "clip_h14"}
    return {"detectors": "clip_b16"} if "vitb16" in name or "basepatch16" in name else {}


def _host(value: str) -> dict[str, str]:
    return {"api_host": value}


def _port(value: str) -> dict[str, str]:
    return {"api_port": value} if value.isdigit() else {}  # Kubernetes sets tcp://… beside a service named "api"


def _debug(value: str) -> dict[str, str]:
    return {"log_level": "DEBUG" if value.lower() in _TRUE else "WARNING"}


_OLDER: Mapping[str, Callable[[str], dict[str, str]]] = {
    "CLASSIFIER_TYPE": _profile,
    "CLIP_MODEL_NAME": _tower,
    "API_HOST": _host,
    "API_PORT": _port,
    "API_DEBUG": _debug,
}
_INSTEAD = {
    "CLASSIFIER_TYPE": f"IMGV_PROFILE chooses among {', '.join(PROFILES)}, IMGV_DETECTORS switches single ones on",
    "CLIP_MODEL_NAME": "IMGV_DETECTORS takes clip_b16, clip_h14 and clip_bigg",
    "API_PORT": "IMGV_API_PORT takes a number",
}
