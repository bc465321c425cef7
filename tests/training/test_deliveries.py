"""Deliveries treat every image alike and do what they say."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from training.deliveries import deliver_at_random
from utils.deliveries import FIXED, deliver, nearest


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_delivery_has_its_side_and_quality(photograph, name):
    side, quality = FIXED[name]
    large = np.kron(photograph, np.ones((2, 2, 1), np.uint8))
    with Image.open(BytesIO(deliver(large, name))) as image:
        assert max(image.size) == side
        expected = BytesIO()
        Image.new("RGB", (8, 8)).save(expected, "JPEG", quality=quality)
        with Image.open(expected) as reference:
            assert image.quantization == reference.quantization


def test_a_small_image_is_not_enlarged(photograph):
    with Image.open(BytesIO(deliver(photograph[:100, :200], "web"))) as image:
        assert image.size == (200, 100)


@pytest.mark.parametrize("compressed_before", [True, False])
def test_a_random_delivery_repeats_with_its_seed_and_varies_with_another(photograph, compressed_before):
    draw = [
        deliver_at_random(photograph, np.random.default_rng(seed), compressed_before=compressed_before)
        for seed in (1, 1, 2)
    ]
    assert draw[0] == draw[1] != draw[2]


def test_random_deliveries_decode_whatever_the_draw():
    tiny = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    formats = set()
    for seed in range(60):
        raw = deliver_at_random(tiny, np.random.default_rng(seed), compressed_before=False)
        with Image.open(BytesIO(raw)) as image:
            image.load()
            formats.add(image.format)
    assert formats == {"JPEG", "WEBP", "PNG"}


@pytest.mark.parametrize(
    ("longest", "quality", "expected"),
    [
        (768, 60.0, "web"),
        (512, 40.0, "hard"),
        (200, 30.0, "hard"),
        (4000, 95.0, "clean"),
        (4000, float("nan"), "clean"),
        (1024, 70.0, "web"),
        (600, 45.0, "hard"),
    ],
)
def test_an_image_goes_to_the_delivery_that_it_looks_like(longest, quality, expected):
    assert nearest(longest, quality, ("clean", "web", "hard")) == expected
    assert nearest(longest, quality, ("random1",)) == "all"
