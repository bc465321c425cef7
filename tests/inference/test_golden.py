"""The shipped embedded verifier, with the other networks that ship, gives the numbers that it gave at its release.

After new weights, a new fusion artifact or a changed feature, look at what moved, then write them again:
python -m tests.inference.test_golden
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.detector import Verifier, build_verifier
from inference.registry import feature_meanings
from ingress.decode import Limits, decode
from utils.settings import Settings

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 0.002  # of the value; absolute for what lies in 0..1
# Where a picture is smooth or enlarged, these measure what rounding left, and that differs from CPU to CPU (seen
# between AVX2 and AVX-512). The bounds are in dB, robust deviations and a ratio: far below the width of fusion's bins.
ROUNDING = dict.fromkeys(("spectrum.peak_2", "spectrum.peak_4", "spectrum.peak_8", "spectrum.peak_free"), 1e-4) | {
    "noise.scale_ratio": 1e-5
}
LIMITS = Limits(max_bytes=2**26, max_pixels=2**26, max_frames=1, max_animation_pixels=2**26)

WHEELS = {  # photographs inside installed packages, as the camera, the web or a scanner left them
    "china.jpg": "sklearn/datasets/images/china.jpg",
    "flower.jpg": "sklearn/datasets/images/flower.jpg",
    "astronaut.png": "skimage/data/astronaut.png",
    "chelsea.png": "skimage/data/chelsea.png",
    "coffee.png": "skimage/data/coffee.png",
    "rocket.jpg": "skimage/data/rocket.jpg",
    "camera.png": "skimage/data/camera.png",
    "logo.png": "skimage/data/logo.png",
}


def generated() -> dict[str, bytes]:
    """Images that stress single features, as BMP: no encoder's version is in their bytes."""
    rng = np.random.default_rng(20261120)
    rows, columns = np.mgrid[0:300, 0:400]
    smooth = np.stack([rows * 0.8, columns * 0.6, 255 - rows * 0.4], axis=-1)
    pixels = {
        "noise": rng.integers(0, 256, (256, 256, 3)),
        "gradient": smooth,
        "enlarged": rng.integers(0, 256, (100, 150, 3)).repeat(3, axis=0).repeat(3, axis=1),
        "grained": np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255),
        "pixel": np.full((1, 1, 3), 200),
        "line": rng.integers(0, 256, (1, 4000, 3)),
    }
    files = {}
    for name, values in pixels.items():
        file = BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(file, "BMP")
        files[name] = file.getvalue()
    return files


def images() -> dict[str, bytes]:
    found = {}
    for name, place in WHEELS.items():
        package, _, inside = place.partition("/")
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, f"pip install -r requirements-dev.txt: no {package}"
        path = Path(spec.origin).parent / inside
        if path.is_file():
            found[name] = path.read_bytes()
    return found | generated()


def measured(verifier: Verifier, name: str, raw: bytes) -> dict[str, float | None]:
    """Every feature, null where there is none, and what fusion makes of them."""
    sample = decode(raw, name, LIMITS)
    (found,) = verifier.ensemble.measure([sample])
    features = {feature: found.features.get(feature, math.nan) for feature in verifier.meanings}
    values = features | {"fusion_prob": verifier.fusion.probability(features)}
    return {feature: None if math.isnan(value) else float(f"{value:.7g}") for feature, value in values.items()}


def build(weights_dir: Path) -> Verifier:
    return build_verifier(Settings.of(weights_dir=weights_dir, detectors=("effnet", "ghostnet")).models)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    return build(tmp_path_factory.mktemp("none"))


def golden() -> dict[str, dict[str, object]]:
    stored: dict[str, dict[str, object]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return stored


@pytest.mark.parametrize("name", [*WHEELS, *generated()])
def test_the_numbers_are_those_of_the_release(verifier: Verifier, name: str) -> None:
    raw, stored = images().get(name, b""), golden()[name]
    if hashlib.sha256(raw).hexdigest() != stored["sha256"]:
        pytest.skip(f"the installed package has another {name}, or none")
    expected, found = dict(stored["values"]), measured(verifier, name, raw)  # type: ignore[call-overload]
    assert found.keys() == expected.keys()
    moved = {feature: (expected[feature], found[feature]) for feature in found if not _close(feature, expected, found)}
    assert not moved, "feature: (golden, now)"


def _close(feature: str, expected: Mapping[str, float | None], found: Mapping[str, float | None]) -> bool:
    one, other = expected[feature], found[feature]
    if one is None or other is None:
        return one is other
    absolute = TOLERANCE if "0..1" in feature_meanings().get(feature, "0..1") else 1e-9
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=ROUNDING.get(feature, absolute))


def test_the_golden_images_are_enough() -> None:
    assert len(golden()) >= 12
    assert len({str(stored["values"]) for stored in golden().values()}) == len(golden())


if __name__ == "__main__":
    built = build(Path("nowhere"))
    table = {
        name: {"sha256": hashlib.sha256(raw).hexdigest(), "values": measured(built, name, raw)}
        for name, raw in images().items()
    }
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
