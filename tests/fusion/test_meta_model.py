from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.calibration import Isotonic, Platt
from fusion.meta_model import FusionModel
from tests.fusion.synthetic import INPUTS, KINDS, write_table
from training.feature_table import families, family, read_table, source_weights
from training.metrics import auroc, expected_calibration_error
from utils.errors import FusionCorrupt, FusionMismatch

IMAGE = dict(zip(INPUTS, (0.9, 0.5, 2.0, 0.0, -1.0, math.nan), strict=True))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, FusionModel]) -> FusionModel:
    return models[request.param]


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["xgboost"], tmp_path / "copy"))


def resign(folder: Path, name: str, raw: bytes) -> None:
    """Change a file and its hash, as a careless or hostile tool would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(raw).hexdigest()
    (folder / name).write_bytes(raw)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_planted_signal_is_found_on_new_sources(model: FusionModel, tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "new.csv", sources=40, seed=7), model.inputs)
    probabilities = model.probabilities(table.matrix)
    weights = source_weights(table.labels, table.sources)[None]
    assert auroc(table.labels, probabilities, weights)[0] > 0.9
    assert expected_calibration_error(table.labels, probabilities, weights)[0] < 0.08


@pytest.mark.parametrize("lost", sorted({family(name) for name in INPUTS}))
def test_without_any_family_the_answer_stays_calibrated(model: FusionModel, lost: str, tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "new.csv", sources=40, seed=7), model.inputs)
    table.matrix[:, families(model.inputs)[lost]] = np.nan
    probabilities = model.probabilities(table.matrix)
    weights = source_weights(table.labels, table.sources)[None]
    assert auroc(table.labels, probabilities, weights)[0] > 0.75
    cautious = (model.estimator.kind, lost) == ("logistic", "dino")  # its other weights are held down most
    assert expected_calibration_error(table.labels, probabilities, weights)[0] < (0.15 if cautious else 0.12)


def test_knowing_nothing_gives_the_prior(model: FusionModel) -> None:
    assert model.probability({}) == pytest.approx(0.5, abs=0.15)
    assert model.probability({}) == model.probability(dict.fromkeys(INPUTS, math.nan))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(), min_size=len(INPUTS), max_size=len(INPUTS)))
def test_any_numbers_give_a_probability(models: dict[str, FusionModel], kind: str, values: list[float]) -> None:
    features = dict(zip(INPUTS, values, strict=True))
    probability = models[kind].probability(features)
    assert 0 < probability < 1
    assert probability == models[kind].probability(features)
    assert all(math.isfinite(part) for part in models[kind].contributions(features).values())


def test_a_mapping_and_its_row_in_a_matrix_agree(model: FusionModel) -> None:
    row = [IMAGE[name] for name in model.inputs]
    other = [0.1] * len(row)
    assert model.probabilities(np.array([other, row]))[1] == pytest.approx(model.probability(IMAGE), abs=1e-12)
    with pytest.raises(ValueError, match="expected n x"):
        model.probabilities(np.array([row[1:]]))


@pytest.mark.parametrize("image", [IMAGE, {}, {"dino_prob": 0.0}, {"noise.level": 1e30, "spectrum.slope": -1e30}])
def test_contributions_and_bias_sum_to_the_raw_log_odds(model: FusionModel, image: dict[str, float]) -> None:
    row = np.array([[image.get(name, math.nan) for name in model.inputs]])
    parts = model.contributions(image)
    assert model.bias + sum(parts.values()) == pytest.approx(model.log_odds(row)[0], abs=1e-4)
    assert tuple(parts) == model.inputs


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_a_missing_input_contributes_nothing(models: dict[str, FusionModel], kind: str) -> None:
    parts = models[kind].contributions({"dino_prob": 0.99})
    assert {name for name, part in parts.items() if part} == {"dino_prob"}
    assert parts["dino_prob"] > 0


def test_evidence_moves_the_answer_the_way_it_was_planted(model: FusionModel) -> None:
    towards_ai = {"dino_prob": 0.99, "noise.level": 4.0, "spectrum.slope": -2.0}
    towards_real = {"dino_prob": 0.01, "noise.level": 0.2, "spectrum.slope": 2.0}
    assert model.probability(towards_ai) > 0.9
    assert model.probability(towards_real) < 0.1
    assert all(model.contributions(towards_ai)[name] > 0 for name in towards_ai)


def test_missing_names_are_refused_at_start(model: FusionModel) -> None:
    model.check_inputs([*INPUTS, "more.than_needed"])
    with pytest.raises(FusionMismatch, match=r"dino_prob, noise\.level.*train_fusion"):
        model.check_inputs(set(INPUTS) - {"dino_prob", "noise.level"})


@pytest.mark.parametrize("name", ["model.json", "model.ubj", "README.md"])
def test_a_changed_or_absent_file_is_refused_by_name(copy: Path, name: str) -> None:
    raw = (copy / name).read_bytes()
    (copy / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(FusionCorrupt, match=rf"{name}.*sha256.*train_fusion"):
        FusionModel.load(copy)
    (copy / name).unlink()
    with pytest.raises(FusionCorrupt, match=rf"{name} cannot be read.*train_fusion"):
        FusionModel.load(copy)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"sha256": 3}', '{"sha256": {}}'])
def test_a_broken_manifest_is_refused(copy: Path, manifest: str) -> None:
    (copy / "manifest.json").write_text(manifest)
    with pytest.raises(FusionCorrupt, match="train_fusion"):
        FusionModel.load(copy)


def test_another_schema_version_says_what_to_run(copy: Path) -> None:
    stored = json.loads((copy / "model.json").read_text()) | {"schema_version": "0"}
    resign(copy, "model.json", json.dumps(stored).encode())
    with pytest.raises(FusionMismatch, match=r"schema 0.*python -m fusion\.train_fusion"):
        FusionModel.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "oracle"},
        {"inputs": ["dino_prob"]},
        {"inputs": ["dino_prob"] * len(INPUTS)},
        {"calibration": {"kind": "platt", "slope": -1, "intercept": 0}},
        {"calibration": {"kind": "isotonic", "log_odds": [0, 0], "calibrated": [0, 1]}},
        {"thresholds": {"label": 0.5, "tiers": {"real": 0.6, "likely_real": 0.6, "likely_ai": 0.7, "ai": 0.8}}},
        {"quantiles": {"real": [], "ai": []}},
        {"metrics": None, "model": None, "kind": "mlp"},
        {
            "subsets": {
                "parts": {"dino": ["dino_prob"]},
                "maps": {"effnet": {"kind": "platt", "slope": 1, "intercept": 0}},
            }
        },
        {"subsets": {"parts": {"dino": ["effnet_prob"]}, "maps": {}}},
    ],
)
def test_a_malformed_model_is_refused(copy: Path, change: dict[str, object]) -> None:
    stored = json.loads((copy / "model.json").read_text()) | change
    resign(copy, "model.json", json.dumps(stored).encode())
    with pytest.raises(FusionCorrupt, match=r"model\.json is malformed"):
        FusionModel.load(copy)


def test_an_artifact_without_subsets_says_nothing_of_them(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert "subsets" not in json.loads((folder / "model.json").read_text())


def test_trees_that_are_not_trees_are_refused(copy: Path) -> None:
    resign(copy, "model.ubj", b"not a model")
    with pytest.raises(FusionCorrupt):
        FusionModel.load(copy)


def test_calibrations_rise_and_stay_off_the_ends() -> None:
    raw = np.linspace(-1000, 1000, 501)
    for calibration in (Platt(2.0, 0.5), Isotonic((-1.0, 0.0, 2.0), (-2.0, 0.1, 3.0))):
        probabilities = calibration(raw)
        assert (np.diff(probabilities) >= 0).all()
        assert 0 < probabilities[0] < probabilities[-1] < 1


@pytest.mark.parametrize("module", ["meta_model", "explain", "decision"])
def test_inference_imports_no_training_or_network_library(module: str) -> None:
    heavy = {"torch", "sklearn", "xgboost", "redis", "httpx", "matplotlib", "scipy"}
    code = f"import fusion.{module}, sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_linear_artifact_answers_without_training_libraries(folders: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from fusion.meta_model import FusionModel\n"
        f"for kind in {[str(folders[kind]) for kind in ('logistic', 'mlp')]}:\n"
        "    model = FusionModel.load(Path(kind)); model.probability({}); model.contributions({})\n"
        "print(*({'sklearn', 'torch', 'xgboost'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_trees_without_xgboost_say_what_to_install(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)  # as where it is not installed
    with pytest.raises(FusionMismatch, match="pip install 'xgboost"):
        FusionModel.load(copy)
