"""What holds for every detector of the table; a new one is tested by being listed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from inference.base import TorchDetector
from inference.graphs import GraphDetector
from inference.registry import DETECTORS
from models.loaders import Weights, cards, find
from utils.contracts import Measurement, Sample
from utils.errors import WeightsMissing

AnyDetector = TorchDetector | GraphDetector


def class_of(name: str) -> type[AnyDetector]:
    module, _, cls = DETECTORS[name].path.partition(":")
    found: type[AnyDetector] = getattr(import_module(module), cls)
    return found


def measured(detector: AnyDetector, samples: Sequence[Sample]) -> list[Measurement]:
    if isinstance(detector, GraphDetector):
        return [detector.measure(sample) for sample in samples]
    return detector.score(samples)


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> AnyDetector:
    return class_of(request.param).tiny()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    grey = np.repeat(china[:120, :160].mean(axis=2, keepdims=True), 3, axis=2)
    pixels = {
        "photograph": china[:300, :420],
        "other photograph": flower[:130, :90],
        "grey": grey,
        "alpha": flower[200:300, 300:420],
        "one pixel": china[:1, :1],
        "odd": china[100:163, 200:265],
        "line": np.resize(china, (1, 4000, 3)),
        "strip": np.resize(china, (31, 4000, 3)),
        "black": np.zeros((70, 50, 3)),
        "white": np.full((50, 70, 3), 255),
    }
    built = []
    for name, rgb in pixels.items():
        rgb = np.ascontiguousarray(rgb, dtype=np.uint8)
        rgb.flags.writeable = False  # nobody may write into a sample
        alpha = np.full(rgb.shape[:2], 9, np.uint8) if name == "alpha" else None
        built.append(Sample(name, name.encode(), rgb, "PNG", mode="RGBA" if name == "alpha" else "RGB", alpha=alpha))
    return built


@pytest.mark.parametrize("name", DETECTORS)
def test_the_class_says_what_the_table_says(name: str) -> None:
    cls = class_of(name)
    assert cls.name == name
    assert dict(cls.features) == dict(DETECTORS[name].features)
    assert DETECTORS[name].model in {card.model for card in cards().values()}


def test_any_image_gives_every_declared_number_in_range(detector: AnyDetector, samples: list[Sample]) -> None:
    for sample, found in zip(samples, measured(detector, samples), strict=True):
        assert set(found.features) == set(detector.features), sample.source
        assert all(0 <= value <= 1 for value in found.features.values()), (sample.source, found.features)
        assert set(found.heatmaps) <= set(DETECTORS[detector.name].heatmaps), sample.source
        for heatmap in found.heatmaps.values():
            seen = heatmap[np.isfinite(heatmap)]
            assert heatmap.dtype == np.float32
            assert seen.size
            assert 0 <= seen.min() <= seen.max() <= 1
            rows, columns = heatmap.shape
            assert rows == pytest.approx(columns * sample.height / sample.width, abs=1), sample.source


def test_order_is_kept_a_batch_is_its_images_and_twice_is_the_same(
    detector: AnyDetector, samples: list[Sample]
) -> None:
    few = [sample for sample in samples if sample.source not in ("strip", "line")]
    together = [found.features for found in measured(detector, few)]
    assert together == [found.features for found in measured(detector, few)]
    backwards = [found.features for found in measured(detector, few[::-1])][::-1]
    for sample, first, second in zip(few, together, backwards, strict=True):
        alone = measured(detector, [sample])[0].features
        assert dict(second) == pytest.approx(first, abs=1e-4), sample.source
        assert dict(alone) == pytest.approx(first, abs=1e-4), sample.source
    assert len({tuple(features.values()) for features in together}) > 2, "it looks at the image"


@pytest.mark.parametrize("name", DETECTORS)
def test_without_weights_loading_says_what_the_table_knows_beforehand(name: str, tmp_path: Path) -> None:
    nothing = Weights(cards(), (tmp_path,))
    with pytest.raises(WeightsMissing) as raised:
        class_of(name).load(nothing, "cpu")
    foreseen = []
    for card in nothing.of(DETECTORS[name].model):
        with pytest.raises(WeightsMissing) as missing:
            find(card, nothing.folders)
        foreseen.append(str(missing.value))
    assert str(raised.value) in foreseen
