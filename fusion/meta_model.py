"""The fusion artifact: a folder that turns one feature vector into one calibrated probability.

Does not know which names exist (inference owns the list), how features are measured, or what is concluded from the
probability. A feature vector is a mapping from name to number, or a row in the artifact's own input order; NaN or
absent means missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.calibration import Calibration, Subsets, calibration_from_json
from fusion.decision import Thresholds
from fusion.estimators import Estimator, FloatArray, Trees, clean, estimator_from_json
from fusion.reference import ReferenceTable
from utils.contracts import Json
from utils.errors import FusionCorrupt, FusionMismatch

SCHEMA_VERSION = "1"
QUANTILES = (
    0.05,
    0.25,
    0.5,
    0.75,
    0.95,
)  # of each input, per class, so that an explanation can say where a value stands


@dataclass(frozen=True, slots=True, eq=False)
class FusionModel:
    """A trained, calibrated meta-model and what is needed to explain it."""

    name: str
    profile: str
    inputs: tuple[str, ...]
    estimator: Estimator
    calibration: Calibration
    thresholds: Thresholds
    quantiles: Mapping[str, FloatArray]  # "real" and "ai": d x 5 at QUANTILES; NaN where training had no value
    metrics: Mapping[str, Json]  # as measured in training; for people, never used here
    reference: ReferenceTable | None = None  # None: an artifact from before there was one
    subsets: Subsets | None = None  # None: one calibration, whatever was measured
    digest: str = ""  # of the artifact's files; empty where it was not read from any

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise ValueError("inputs must be named, each once")
        for label in ("real", "ai"):
            if self.quantiles[label].shape != (len(self.inputs), len(QUANTILES)):
                raise ValueError(f"quantiles of {label} do not fit the inputs")

    @classmethod
    def load(cls, folder: Path) -> FusionModel:
        """Read an artifact folder; every file's hash is checked before anything is parsed.

        Raises:
            FusionCorrupt: a file is missing, changed or malformed.
            FusionMismatch: written for another schema version.
        """
        files = _read_verified(folder)
        retrain = _retrain_command(folder)
        try:
            stored = json.loads(files["model.json"])
            if stored["schema_version"] != SCHEMA_VERSION:
                raise FusionMismatch(
                    f"{folder} was trained for feature schema {stored['schema_version']}, this version reads "
                    f"{SCHEMA_VERSION}; retrain it: {retrain}"
                )
            return cls(
                name=stored["name"],
                profile=stored["profile"],
                inputs=tuple(stored["inputs"]),
                estimator=estimator_from_json(
                    stored["kind"], stored["model"], stored["inputs"], files.get("model.ubj")
                ),
                calibration=calibration_from_json(stored["calibration"]),
                thresholds=Thresholds.from_json(stored["thresholds"]),
                quantiles={label: np.array(stored["quantiles"][label], float) for label in ("real", "ai")},
                metrics=stored["metrics"],
                reference=ReferenceTable.from_json(stored["reference"]) if stored.get("reference") else None,
                subsets=Subsets.from_json(stored["subsets"], stored["inputs"]) if stored.get("subsets") else None,
                digest=hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest(),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FusionCorrupt(
                f"{folder}/model.json is malformed ({error!r}); reinstall or retrain: {retrain}"
            ) from error

    def save(self, folder: Path, readme: str) -> None:
        """Write the artifact's files into an existing folder; the manifest comes last."""
        stored = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "profile": self.profile,
            "kind": self.estimator.kind,
            "inputs": list(self.inputs),
            "model": self.estimator.to_json(),
            "calibration": self.calibration.to_json(),
            "thresholds": self.thresholds.to_json(),
            "quantiles": {label: _nan_to_null(values) for label, values in self.quantiles.items()},
            "metrics": dict(self.metrics),
        }
        if self.reference:
            stored["reference"] = self.reference.to_json()
        if self.subsets:
            stored["subsets"] = self.subsets.to_json(self.inputs)
        files = {
            "model.json": (json.dumps(stored, indent=1, allow_nan=False) + "\n").encode(),
            "README.md": readme.encode(),
        }
        if isinstance(self.estimator, Trees):
            files["model.ubj"] = self.estimator.ubj
        hashes = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
        files["manifest.json"] = (json.dumps({"sha256": hashes}, indent=1) + "\n").encode()
        for name, raw in files.items():
            (folder / name).write_bytes(raw)

    def check_inputs(self, available: Iterable[str]) -> None:
        """Refuse to start when this installation cannot produce an input at all.

        Raises:
            FusionMismatch: names the inputs that nobody produces.
        """
        absent = sorted(set(self.inputs) - set(available))
        if absent:
            raise FusionMismatch(
                f"fusion artifact {self.name} wants inputs that nothing here produces: {', '.join(absent)}; "
                f"retrain it: {_retrain_command(Path('models/saved_models') / self.name)}"
            )

    def probability(self, features: Mapping[str, float]) -> float:
        """Calibrated probability that the image is AI-generated, for equally frequent classes; never NaN."""
        return float(self.probabilities(self._row(features))[0])

    def probabilities(self, matrix: FloatArray) -> FloatArray:
        """n x d in the order of ``inputs`` -> n."""
        log_odds = self.log_odds(matrix)
        return self.subsets(clean(matrix), log_odds, self.calibration) if self.subsets else self.calibration(log_odds)

    def log_odds(self, matrix: FloatArray) -> FloatArray:
        """n x d in the order of ``inputs`` -> n, before calibration."""
        return self.estimator.log_odds(_checked(matrix, len(self.inputs)))

    @property
    def bias(self) -> float:
        """Raw log-odds that belong to no input."""
        return self.estimator.bias

    def contributions(self, features: Mapping[str, float]) -> dict[str, float]:
        """Log-odds towards AI by input; with ``bias`` they sum to the raw log-odds before calibration."""
        parts = self.estimator.contributions(_checked(self._row(features), len(self.inputs)))[0]
        return dict(zip(self.inputs, parts.tolist(), strict=True))

    def _row(self, features: Mapping[str, float]) -> FloatArray:
        return np.array([[features.get(name, np.nan) for name in self.inputs]], float)


def _checked(matrix: FloatArray, inputs: int) -> FloatArray:
    if matrix.ndim != 2 or matrix.shape[1] != inputs:
        raise ValueError(f"expected n x {inputs} features, got {matrix.shape}")
    return clean(matrix)


def _nan_to_null(values: FloatArray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def _retrain_command(folder: Path) -> str:
    return f"python -m fusion.train_fusion --table features.csv --out {folder}"


def _read_verified(folder: Path) -> dict[str, bytes]:
    advice = f"reinstall it or retrain it: {_retrain_command(folder)}"

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise FusionCorrupt(f"{folder / name} cannot be read ({error.strerror}); {advice}") from error

    try:
        expected: dict[str, str] = dict(json.loads(read("manifest.json"))["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise FusionCorrupt(f"{folder / 'manifest.json'} is malformed; {advice}") from error
    files = {name: read(name) for name in {*expected, "model.json"}}
    for name, raw in files.items():
        if hashlib.sha256(raw).hexdigest() != expected.get(name):
            raise FusionCorrupt(f"{folder / name} is not the file that was trained (sha256 differs); {advice}")
    return files
