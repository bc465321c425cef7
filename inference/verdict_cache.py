"""Verdicts that were given before, in a file that command line and API share. It may always miss, and never lies.

A verdict is found again by the bytes of the image and by everything that judged it: models, settings, libraries, and
the code itself. So neither another release nor an update of the product is ever answered from the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter, ValidationError

from inference.graphs import prefers_integers
from ingress.sources import limits_of
from utils.contracts import Verdict
from utils.settings import Settings
from utils.verdict_json import dump, verdict_dict

if TYPE_CHECKING:
    from inference.detector import Verifier

log = logging.getLogger(__name__)

FROM_CACHE = "from the verdict cache: the same bytes were judged before by the same models; timings are of that time"
MOST = 50_000  # verdicts in a file, about half a gigabyte; the oldest go
_CODE = ("fusion", "forensics", "formats", "inference", "ingress", "models", "provenance", "utils")
_LIBRARIES = ("numpy", "opencv-python", "Pillow", "onnxruntime", "torch", "transformers", "timm", "c2pa-python")
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (digest TEXT PRIMARY KEY, since REAL NOT NULL, verdict TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_age ON verdicts (since);
"""
_OLDEST = "DELETE FROM verdicts WHERE since <= (SELECT since FROM verdicts ORDER BY since DESC LIMIT 1 OFFSET ?)"


class Judges:
    """What judges in this process, as a digest that differs with everything that a verdict depends on beside the image.

    To be made when the process starts: code that is replaced later is not what runs.
    """

    def __init__(self, settings: Settings) -> None:
        models, anchors = settings.models, settings.models.c2pa_trust_anchors
        self._given = {
            "code": _code(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "machine": [platform.machine(), prefers_integers(models.device)],
            "decoding": asdict(limits_of(settings.decode)),
            "trusted": anchors.read_text(encoding="utf-8", errors="replace") if anchors else "",
            "computing": [models.device, models.precision],
        }
        self._known: WeakKeyDictionary[Verifier, str] = WeakKeyDictionary()  # a verifier never changes

    def __call__(self, verifier: Verifier) -> str:
        if verifier not in self._known:
            self._known[verifier] = self._digest(verifier)
        return self._known[verifier]

    def _digest(self, verifier: Verifier) -> str:
        parts = self._given | {
            "release": verifier.release,
            "fusion": [verifier.fusion.name, verifier.fusion.digest, verifier.fusion.thresholds.to_json()],
            "detectors": {detector.name: detector.version for detector in verifier.ensemble.detectors},
            "forensics": [forensic.name for forensic in verifier.ensemble.forensics],
            "unavailable": dict(verifier.ensemble.unavailable),
            "threshold": verifier.threshold,
            "stability": verifier.stability,
            "embedding": verifier.embedding,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class VerdictFile:
    """One SQLite file, which processes of one machine may use at the same time. Where it cannot be used, it misses.

    Args:
        path: made where it is not, for its owner alone: it tells which images were judged.
        settings: of this process.
    """

    def __init__(self, path: Path, settings: Settings, most: int = MOST) -> None:
        self._path = path
        self._judges = Judges(settings)
        self._most = most
        self._type = TypeAdapter(Verdict)
        self._untold = threading.Lock()  # taken by the first of the threads that meets an error

    @classmethod
    def at(cls, settings: Settings) -> Self | None:
        """The one that the settings name; None: none."""
        return cls(settings.pipeline.cache, settings) if settings.pipeline.cache else None

    def digest(self, raw: bytes, verifier: Verifier, *, stability: bool = False) -> str:
        """Of a file and of what judges it now."""
        return digest_of(raw, self._judges(verifier), stability=stability)

    def get(self, digest: str, source: str, job_id: str | None = None) -> Verdict | None:
        """The verdict that was given then, as an answer about ``source``; it says that it is an earlier one."""
        try:
            with closing(self._open()) as file:
                found = file.execute("SELECT verdict FROM verdicts WHERE digest = ?", (digest,)).fetchone()
            verdict = self._type.validate_json(found[0]) if found else None
        except (sqlite3.Error, OSError, ValidationError) as error:
            self._tell(error)
            return None
        return verdict and replace(verdict, source=source, job_id=job_id, warnings=(*verdict.warnings, FROM_CACHE))

    def put(self, digest: str, verdict: Verdict) -> None:
        nameless = replace(verdict, source="", job_id=None)  # who asked, and for which address, is nobody else's
        try:
            with closing(self._open()) as file, file:
                row = digest, time.time(), dump(verdict_dict(nameless))
                file.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)
                file.execute(_OLDEST, (self._most,))
        except (sqlite3.Error, OSError) as error:
            self._tell(error)

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        file = sqlite3.connect(self._path, timeout=5)
        file.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the one that writes
        file.executescript(_TABLE)
        return file

    def _tell(self, error: Exception) -> None:
        """Once: a folder of ten thousand images is not to warn of one file as often."""
        if self._untold.acquire(blocking=False):
            log.warning("the verdict cache %s is not used: %s", self._path, error)


def digest_of(raw: bytes, judges: str, *, profile: str = "", stability: bool = False) -> str:
    """Of an image and of all that judges it."""
    image = hashlib.sha256(raw).hexdigest()
    return hashlib.sha256(f"{image} {profile} {stability:d} {judges}".encode()).hexdigest()


def _code() -> str:
    """Of every file of the product that a verdict passes through, and of the tables beside them."""
    found, root = hashlib.sha256(), Path(__file__).parents[1]
    for package in _CODE:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".toml"):
                found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
