"""CLIP ViT-B/16 as a detector: what it looks at, how the head weighs it, and its weights' real path."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import functional

from inference.clip_b16 import BLOCKS, SIDE, WIDTH, ClipB16Detector, embedding, load_float_tower, load_tower, view
from inference.graphs import graph_weights, prefers_integers
from inference.similarity_head import Axes, Known, SimilarityHead
from models.loaders import Weights, shipped
from models.quantised import SCALE
from tests.pictures import sample_of
from utils.contracts import Resemblance, Sample
from utils.errors import WeightsCorrupt, WeightsMismatch
from utils.persistence import sha256_file

GRAPH = shipped("clip_b16_graph")


def probability(detector: ClipB16Detector, sample: Sample) -> float:
    return detector.measure(sample).features["clip_b16_prob"]


# --- pixels and scores


def test_the_whole_image_is_seen_as_clip_was_trained_to_see_it(photograph: NDArray[np.uint8]) -> None:
    whole = functional.resize(Image.fromarray(photograph), [SIDE], functional.InterpolationMode.BICUBIC)
    expected = np.asarray(functional.center_crop(whole, [SIDE, SIDE]), dtype=int)
    assert view(photograph).shape == (SIDE, SIDE, 3)
    assert np.abs(view(photograph) - expected).mean() < 0.1
    assert np.abs(view(photograph) - expected).max() <= 2


def test_the_score_is_the_weighted_sum_of_all_tokens(photograph: NDArray[np.uint8]) -> None:
    seen = []

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(pixels)
        return np.arange(BLOCKS * WIDTH, dtype=np.float32).reshape(1, BLOCKS, WIDTH)

    weight = np.zeros((BLOCKS, WIDTH), np.float32)
    weight[0, 2], weight[11, 767] = 0.25, 0.001
    found = probability(ClipB16Detector(network, "x", SimilarityHead(weight, -9.0)), sample_of(photograph))
    assert found == pytest.approx(1 / (1 + math.exp(-(0.5 + 9.215 - 9.0))), abs=1e-7)
    assert len(seen) == 1, "one view"
    np.testing.assert_array_equal(seen[0], view(photograph)[np.newaxis])


def test_the_image_is_seen_as_a_person_sees_it(photograph: NDArray[np.uint8]) -> None:
    seen = []

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(pixels)
        return np.zeros((1, BLOCKS, WIDTH), np.float32)

    detector = ClipB16Detector(network, "x", SimilarityHead(np.zeros((BLOCKS, WIDTH), np.float32), 0.0))
    probability(detector, sample_of(np.rot90(photograph), orientation=6))
    np.testing.assert_array_equal(seen[0], view(photograph)[np.newaxis])


# --- weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower with random weights as it is stored: large layers as int8, the others as float32."""
    folder, rng = tmp_path_factory.mktemp("installed"), np.random.default_rng(5)
    stored: dict[str, NDArray[np.generic]] = {}
    for name, shape in graph_weights(GRAPH).items():
        if len(shape) == 2:
            stored[name] = rng.integers(-127, 128, shape, np.int8)
            stored[name + SCALE] = rng.uniform(1e-4, 3e-4, shape[0]).astype(np.float32)
        else:
            stored[name] = (rng.standard_normal(shape) * 0.02 + name.endswith("weight")).astype(np.float32)
    save_file(stored, folder / "clip_b16.safetensors")
    return folder


def installed(folder: Path, **head: NDArray[np.generic] | str) -> Weights:
    """The tower, the shipped graph and a head; ``head`` changes what is in it: arrays, and texts of its metadata."""
    tower = folder / "clip_b16.safetensors"
    values = {"weight": np.full((BLOCKS, WIDTH), 1e-4, np.float32), "bias": np.array([0.3], np.float32), **head}
    metadata = {"tower": sha256_file(tower)} | {name: each for name, each in values.items() if isinstance(each, str)}
    values = {name: each for name, each in values.items() if not isinstance(each, str)}
    save_file(values, folder / "clip_b16_head.safetensors", metadata)
    files = {"clip_b16": tower, "clip_b16_head": folder / "clip_b16_head.safetensors"}
    facts = 'file = "{}"\nsize = {}\nsha256 = "{}"\n'
    cards = [f"[{n}]\n{facts.format(p.name, p.stat().st_size, sha256_file(p))}" for n, p in files.items()]
    (folder / "weights.toml").write_text("".join(cards))
    return Weights.at(folder)


def test_installed_files_score_what_their_tokens_and_their_head_say(
    folder: Path, photograph: NDArray[np.uint8]
) -> None:
    detector = ClipB16Detector.load(installed(folder))
    tokens = load_tower(installed(folder))(view(photograph)[np.newaxis])[0]
    assert tokens.std() > 0.01
    expected = 1 / (1 + math.exp(-(float(tokens.sum(dtype=float)) * 1e-4 + 0.3)))
    assert probability(detector, sample_of(photograph)) == pytest.approx(expected, abs=1e-6)
    assert detector.version.startswith("clip_b16_head@sha256:")


def test_a_head_may_ask_known_images_too(folder: Path, photograph: NDArray[np.uint8]) -> None:
    tokens = load_tower(installed(folder))(view(photograph)[np.newaxis])
    axes = Axes(np.arange(BLOCKS), np.full((1, BLOCKS, WIDTH), 1e-4, np.float32), np.zeros(1, np.float32))
    known = Known(axes, axes.points(tokens), np.array([-2], np.float32), 1.0)  # this very picture, and it is real
    head = SimilarityHead(np.zeros((BLOCKS, WIDTH), np.float32), 0.5, known)
    detector = ClipB16Detector.load(installed(folder, **head.arrays(), known_size=head.size))
    assert probability(detector, sample_of(photograph)) == pytest.approx(1 / (1 + math.exp(1.5)), abs=1e-3)
    with pytest.raises(WeightsMismatch, match=r"clip_b16_head: .*known"):
        ClipB16Detector.load(installed(folder, **head.arrays(), known_size="2 1 12"))


def test_integers_give_the_tokens_of_floating_point(folder: Path, photograph: NDArray[np.uint8]) -> None:
    if not prefers_integers("cpu"):
        pytest.skip("this processor does not multiply 8-bit integers exactly: see inference/graphs.py")
    pixels = view(photograph)[np.newaxis]
    whole, exact = load_tower(installed(folder))(pixels)[0], load_float_tower(installed(folder))(pixels)[0]
    off = np.linalg.norm(whole - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0 < off.max() < 2e-3


def test_a_processor_that_loses_bits_computes_in_floating_point(
    folder: Path, photograph: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = view(photograph)[np.newaxis]
    expected = load_float_tower(installed(folder))(pixels)
    monkeypatch.setattr("inference.graphs._multiplies_exactly", lambda: False)
    np.testing.assert_array_equal(load_tower(installed(folder))(pixels), expected)


def test_a_head_of_another_tower_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match="clip_b16_head was trained on the tower 0000, not "):
        ClipB16Detector.load(installed(folder, tower="0000"))


def test_a_head_of_another_shape_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match=r"clip_b16_head: .*weight"):
        ClipB16Detector.load(installed(folder, weight=np.zeros((BLOCKS, 512), np.float32)))


def test_a_damaged_tower_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = installed(folder)
    (tmp_path / "clip_b16.safetensors").write_bytes((folder / "clip_b16.safetensors").read_bytes()[:-1])
    with pytest.raises(WeightsCorrupt, match="expected"):
        load_tower(Weights(weights.cards, (tmp_path, *weights.folders)))


# --- kinds and families


CLASSES = {
    "kinds_weight": np.zeros((3, BLOCKS, WIDTH), np.float32),
    "kinds_bias": np.log([0.7, 0.2, 0.1]).astype(np.float32),
    "families_weight": np.zeros((2, BLOCKS, WIDTH), np.float32),
    "families_bias": np.log([0.4, 0.6]).astype(np.float32),
}


@pytest.mark.parametrize(("named_from", "family"), [("0.55", "gan"), ("0.65", "unknown")])
def test_a_head_may_tell_kinds_and_families_too(
    folder: Path, photograph: NDArray[np.uint8], named_from: str, family: str
) -> None:
    named = {"kinds": "photo art screen", "families": "flux gan", "named_from": named_from, "named_right": "0.8"}
    found = ClipB16Detector.load(installed(folder, **CLASSES, **named)).measure(sample_of(photograph))
    shares = {name: value for name, value in found.features.items() if name != "clip_b16_prob"}
    assert shares == pytest.approx({"clip_b16.photo": 0.7, "clip_b16.art": 0.2, "clip_b16.screen": 0.1}, abs=1e-5)
    assert found.resembles == Resemblance(family=family, probability=0.6, right=0.8)


def test_a_head_without_them_says_so(folder: Path, photograph: NDArray[np.uint8]) -> None:
    found = ClipB16Detector.load(installed(folder)).measure(sample_of(photograph))
    assert math.isnan(found.features["clip_b16.photo"])
    assert found.skipped == "the installed head tells no kinds of images apart"
    assert found.resembles is None


def test_classes_of_another_shape_are_refused(folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match=r"clip_b16_head: .*kinds_weight"):
        ClipB16Detector.load(installed(folder, **CLASSES, kinds="photo art"))


def test_the_embedding_is_the_same_on_every_machine_and_keeps_distances() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 12, 768))
    one, two = (np.array(embedding(each)) for each in tokens)
    assert embedding(np.ones((12, 768)))[:3] == (-0.2349, 0.0954, -0.0668)
    assert len(one) == 64
    assert np.linalg.norm(one) == pytest.approx(1, abs=0.3)
    assert np.linalg.norm(one - two) == pytest.approx(np.sqrt(2), abs=0.4)
    assert embedding(3 * tokens[0]) == tuple(one)
