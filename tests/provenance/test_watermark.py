"""Marks are written here by the inverse of the published scheme, into photographs that installed packages carry."""

from __future__ import annotations

import math
from math import comb

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from sklearn.datasets import load_sample_image

from provenance.watermark import CHANNEL_ORDERS, FEATURES, MARKS, STEP, Mark, decode_bits, measure
from utils.contracts import Sample

BY_FEATURE = {mark.feature: mark for mark in MARKS}
BACK = {"BGR": cv2.COLOR_YUV2RGB, "RGB": cv2.COLOR_YUV2BGR}


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg"])
def photo(request):
    return load_sample_image(request.param)


def sample(rgb) -> Sample:
    return Sample(source="test", raw=b"", rgb=rgb, format="PNG")


def embed(rgb, payload: str, order: str):
    """Move each block's largest low-band coefficient but the first to the quarter of the step that its bit names."""
    yuv = cv2.cvtColor(rgb, CHANNEL_ORDERS[order])
    height, width = (side // 8 * 8 for side in rgb.shape[:2])
    u = yuv[:height, :width, 1].astype(float)
    low = (u[0::2, 0::2] + u[0::2, 1::2] + u[1::2, 0::2] + u[1::2, 1::2]) / 2
    blocks = low.reshape(height // 8, 4, width // 8, 4).swapaxes(1, 2).reshape(-1, 16)
    rows = np.arange(len(blocks))
    position = blocks[:, 1:].argmax(axis=1) + 1
    bits = np.array([int(bit) for bit in payload])[rows % len(payload)]
    moved = blocks.copy()
    moved[rows, position] = (blocks[rows, position] // STEP + 0.25 + 0.5 * bits) * STEP
    change = (moved - blocks).reshape(height // 8, width // 8, 4, 4).swapaxes(1, 2).reshape(low.shape)
    yuv[:height, :width, 1] = np.clip(u + change.repeat(2, axis=0).repeat(2, axis=1) / 2, 0, 255)
    return cv2.cvtColor(yuv, BACK[order])


def best_share(pattern_length: int, mark: Mark) -> int:
    """Most bits of the payload that any pattern with this period matches."""
    phases = [mark.payload[start::pattern_length] for start in range(pattern_length)]
    return sum(max(phase.count("0"), phase.count("1")) for phase in phases)


@pytest.mark.parametrize("order", CHANNEL_ORDERS)
@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.feature)
def test_a_mark_is_found_in_either_channel_order_and_claimed_once(photo, mark, order):
    found = measure(sample(embed(photo, mark.payload, order)))
    assert found.features[mark.feature] * len(mark.payload) >= mark.required
    (claim,) = found.claims
    assert claim.generator == mark.generator
    assert (claim.source, claim.kind, claim.grade) == ("pixel_watermark", "generated", "pixel_watermark")
    assert "anybody can write this mark" in claim.text


def test_the_channel_order_is_reported(photo):
    mark = BY_FEATURE["watermark.sdxl_match"]
    for order in CHANNEL_ORDERS:
        facts = measure(sample(embed(photo, mark.payload, order))).facts["watermark"]["dwt_dct"]["sdxl"]
        assert facts["channel_order"] == order
        assert facts["matched"] >= facts["required"] == 44


def test_payloads_are_the_published_ones():
    payloads = {mark.feature: mark.payload for mark in MARKS}
    assert payloads["watermark.sdxl_match"] == "101100111110110010010000011110111011000110011110"
    assert payloads["watermark.flux_match"] == bin(0b001010101111111010000111100111001111010100101110)[2:]
    assert len(payloads["watermark.flux_match"]) == 46
    for feature, text in (("watermark.sd_match", b"StableDiffusionV1"), ("watermark.sd2_match", b"SDV2")):
        assert int(payloads[feature], 2).to_bytes(len(text), "big") == text
        assert len(payloads[feature]) == 8 * len(text)


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee", "rocket", "immunohistochemistry", "retina"])
def test_unmarked_pictures_match_by_chance_only(name):
    found = measure(sample(getattr(data, name)()))
    assert found.claims == ()
    assert all(0.25 < value < 0.8 for value in found.features.values())


def test_the_unmarked_photographs_claim_nothing(photo):
    assert measure(sample(photo)).claims == ()


def test_a_mark_erased_by_jpeg_or_cropping_is_not_claimed(photo):
    marked = embed(photo, BY_FEATURE["watermark.sdxl_match"].payload, "BGR")
    jpeg = cv2.imdecode(cv2.imencode(".jpg", marked, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    for erased in (jpeg, marked[3:, 5:]):
        assert measure(sample(np.ascontiguousarray(erased))).claims == ()


def test_a_mark_survives_odd_sizes_and_more_rows_than_a_strip(photo):
    mark = BY_FEATURE["watermark.flux_match"]
    tall = np.concatenate([photo, photo[::-1], photo])[:1211, :633]
    (claim,) = measure(sample(embed(np.ascontiguousarray(tall), mark.payload, "BGR"))).claims
    assert claim.generator == mark.generator


def test_grey_and_flat_pictures_have_no_bits(photo):
    grey = np.repeat(photo[..., :1], 3, axis=2)
    for rgb in (grey, np.zeros((300, 300, 3), np.uint8), np.full((300, 300, 3), (200, 30, 90), np.uint8)):
        found = measure(sample(rgb))
        assert all(math.isnan(value) for value in found.features.values())
        assert "no colour variation" in found.skipped
        assert found.claims == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (255, 256), (7, 20_000), (70_000, 3)])
def test_pictures_too_small_to_be_marked_are_skipped(shape):
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = measure(sample(rgb))
    assert found.features.keys() == FEATURES.keys()
    assert all(math.isnan(value) for value in found.features.values())
    assert "smaller than 256" in found.skipped


@pytest.mark.parametrize("shape", [(8, 8192), (15, 4500), (8200, 8)])
def test_thin_pictures_are_measured(shape):
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rgb.flags.writeable = False
    found = measure(sample(rgb))
    assert found.skipped is None
    assert found.claims == ()


def test_chance_and_stripes_stay_below_every_threshold():
    by_coins = 0.0
    for mark in MARKS:
        bits = len(mark.payload)
        by_coins += 2 * sum(comb(bits, k) for k in range(mark.required, bits + 1)) / 2**bits
        assert max(best_share(period, mark) for period in range(1, bits // 2 + 1)) < mark.required
    assert by_coins < 1 / 4e7


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=8, max_size=64), st.floats(-0.5, 0.5), st.integers(0, 7))
def test_bits_are_decoded_whatever_all_blocks_have_in_common(bits, lean, extra):
    votes = np.array([0.3 if bit else -0.3 for bit in bits * 5 + bits[:extra]]) + lean
    decoded = decode_bits(votes, len(bits))
    if any(bits) and not all(bits):
        assert decoded.tolist() == bits
    else:
        assert decoded is None
