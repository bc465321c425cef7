"""Text is hidden here the way the generators' extensions do it, and signed with a key made for the test."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from provenance import stealth, watermark
from utils.contracts import Sample

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
SETTINGS = {"prompt": "a lighthouse, \u706f\u53f0", "steps": 28, "scale": 5.0, "cfg_rescale": 1e-05, "seed": 4091185279}
WEB_UI = "a lighthouse\nNegative prompt: blur\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512"


@pytest.fixture
def rgb():
    return load_sample_image("china.jpg")[:200, :300].copy()


def hide(rgb, magic: str, payload: bytes, length: int | None = None):
    """rgb and alpha with the payload in their lowest bits, column by column."""
    rgb, alpha = rgb.copy(), np.full(rgb.shape[:2], 255, np.uint8)
    length = 8 * len(payload) if length is None else length
    bits = np.unpackbits(np.frombuffer(magic.encode() + length.to_bytes(4, "big") + payload, np.uint8))
    if "rgb" in magic:
        flat = rgb.transpose(1, 0, 2).reshape(-1)
        flat[: bits.size] = flat[: bits.size] & 0xFE | bits
        return flat.reshape(rgb.shape[1], rgb.shape[0], 3).transpose(1, 0, 2), None
    flat = alpha.T.reshape(-1)
    flat[: bits.size] = 0xFE | bits
    return rgb, flat.reshape(rgb.shape[1], rgb.shape[0]).T


def hidden_sample(rgb, text: str, magic: str = "stealth_pngcomp") -> Sample:
    payload = gzip.compress(text.encode()) if magic.endswith("comp") else text.encode()
    pixels, alpha = hide(rgb, magic, payload)
    return Sample(source="test", raw=b"", rgb=np.ascontiguousarray(pixels), format="PNG", mode="RGBA", alpha=alpha)


def signed_comment(rgb, fields: dict) -> str:
    signature = KEY.sign(rgb.tobytes() + json.dumps(fields).encode())
    return json.dumps({**fields, "signed_hash": base64.b64encode(signature).decode()})


def novelai_text(comment: str) -> str:
    return json.dumps({"Description": "a lighthouse", "Software": "NovelAI", "Source": "SDXL", "Comment": comment})


@pytest.mark.parametrize("magic", ["stealth_pngcomp", "stealth_pnginfo", "stealth_rgbcomp", "stealth_rgbinfo"])
def test_web_ui_text_is_read_in_all_four_layouts(rgb, magic):
    facts, claim = stealth.examine(hidden_sample(rgb, WEB_UI, magic))
    assert facts == {"magic": magic, "text": WEB_UI, "signature": "none"}
    assert (claim.source, claim.kind, claim.grade) == ("stealth", "generated", "forgeable_metadata")


def test_novelai_text_without_signature_is_forgeable(rgb):
    facts, claim = stealth.examine(hidden_sample(rgb, novelai_text(json.dumps(SETTINGS))))
    assert facts["signature"] == "none"
    assert (claim.generator, claim.grade) == ("NovelAI", "forgeable_metadata")


def test_a_valid_signature_is_cryptographic(rgb):
    facts, claim = stealth.examine(hidden_sample(rgb, novelai_text(signed_comment(rgb, SETTINGS))), PUBLIC_KEY)
    assert facts["signature"] == "verified"
    assert (claim.generator, claim.grade) == ("NovelAI", "cryptographic")


def test_a_signature_of_another_key_than_novelais_is_not_believed(rgb):
    facts, claim = stealth.examine(hidden_sample(rgb, novelai_text(signed_comment(rgb, SETTINGS))))
    assert facts["signature"] == "does not match"
    assert claim.grade == "forgeable_metadata"
    assert len(stealth.NOVELAI_PUBLIC_KEY) == 32


def test_one_changed_pixel_or_setting_breaks_the_signature(rgb):
    comment = signed_comment(rgb, SETTINGS)
    assert stealth.verify_signed_hash(rgb, comment, PUBLIC_KEY) is True
    assert stealth.verify_signed_hash(rgb, json.dumps({"Comment": comment}), PUBLIC_KEY) is True
    assert stealth.verify_signed_hash(rgb, comment.replace('"steps": 28', '"steps": 29'), PUBLIC_KEY) is False
    rgb[120, 77, 2] ^= 1
    assert stealth.verify_signed_hash(rgb, comment, PUBLIC_KEY) is False


@pytest.mark.parametrize("encoded", ["", "not base64!", "AAAA", "é"])
def test_a_malformed_signature_does_not_verify(rgb, encoded):
    assert stealth.verify_signed_hash(rgb, json.dumps({"signed_hash": encoded})) is False


@pytest.mark.parametrize(
    "comment", ["", "[]", "null", "{", '{"steps": 28}', '{"signed_hash": 7}', '{"Comment": "x"}', "[" * 200_000]
)
def test_without_a_signature_there_is_nothing_to_verify(rgb, comment):
    assert stealth.verify_signed_hash(rgb, comment) is None


@pytest.mark.parametrize("depth", range(300, 1100, 25))
def test_deeply_nested_comments_do_not_crash(rgb, depth):
    comment = '{"signed_hash": "AAAA", "x": ' + "[" * depth + "]" * depth + "}"
    assert stealth.verify_signed_hash(rgb, comment) in (False, None)


def test_a_signature_over_too_many_pixels_is_not_checked():
    huge = np.broadcast_to(np.uint8(0), (4001, 4000, 3))
    assert stealth.verify_signed_hash(huge, '{"signed_hash": "AAAA"}') is None


@pytest.mark.parametrize(
    ("payload", "length", "problem"),
    [
        (b"", None, "gzip"),
        (b"no gzip at all", None, "damaged gzip"),
        (gzip.compress(WEB_UI.encode())[:-9], None, "cut short"),
        (gzip.compress(WEB_UI.encode())[:-4] + b"\0\0\0\0", None, "damaged gzip"),
        (gzip.compress(bytes(stealth.MAX_TEXT_BYTES + 1)), None, "larger than"),
        (gzip.compress(WEB_UI.encode()), 2**32 - 1, "more than the image holds"),
        (gzip.compress(WEB_UI.encode()), 200 * 300, "more than the image holds"),
    ],
)
def test_damaged_hidden_data_is_named_and_claims_nothing(rgb, payload, length, problem):
    pixels, alpha = hide(rgb, "stealth_pngcomp", payload, length)
    facts, claim = stealth.examine(Sample("test", b"", pixels, "PNG", alpha=alpha))
    assert claim is None
    assert facts["magic"] == "stealth_pngcomp"
    assert problem in facts["problem"]


def test_hidden_text_that_is_no_generation_text_claims_nothing(rgb):
    facts, claim = stealth.examine(hidden_sample(rgb, "meet me at noon"))
    assert facts["text"] == "meet me at noon"
    assert claim is None


def test_a_strangers_text_is_capped_and_escaped(rgb):
    facts, _ = stealth.examine(hidden_sample(rgb, "Steps: 20\x1b[2J\u202e\n" + "x" * 5000))
    assert facts["text"].startswith("Steps: 20\\x1b[2J\\u202e\nxxx")
    assert facts["text"].endswith("(5015 characters)")
    assert len(facts["text"]) < stealth.MAX_SHOWN_CHARACTERS + 50


def test_hidden_text_is_found_in_pictures_too_small_for_a_watermark(rgb):
    found = watermark.measure(hidden_sample(rgb, WEB_UI))
    assert found.skipped
    assert found.facts["watermark"]["stealth"]["text"] == WEB_UI
    assert [claim.source for claim in found.claims] == ["stealth"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 5)])
def test_pictures_without_hidden_text_have_none(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 4), dtype=np.uint8)
    assert stealth.read(noise[..., :3], noise[..., 3]) is None
    assert stealth.read(noise[..., :3], None) is None


@given(st.sampled_from(["stealth_pngcomp", "stealth_rgbinfo"]), st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_any_header_and_payload_is_survived(magic, payload, length):
    pixels, alpha = hide(np.zeros((60, 70, 3), np.uint8), magic, payload, length)
    facts, _ = stealth.examine(Sample("test", b"", np.ascontiguousarray(pixels), "PNG", alpha=alpha))
    assert facts["magic"] == magic
