"""Half-written files, from their bytes to a verdict as the product gives it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from fusion.decision import Thresholds
from inference.detector import Verifier, build_verifier
from inference.pipeline import Pipeline, Request
from utils.contracts import Verdict
from utils.errors import VerifyError
from utils.settings import Settings

SETTINGS = Settings.of(profile="light")
KINDS = ("JPEG", "WEBP", "AVIF", "BMP", "TIFF", "PNG")


def encoded(kind: str) -> bytes:
    buffer = BytesIO()
    options = {"speed": 10} if kind == "AVIF" else {}
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, kind, **options)
    return buffer.getvalue()


def half_written(raw: bytes, share: float) -> bytes:
    """As a download leaves it that reserved its place and stopped."""
    return raw[: int(len(raw) * share)].ljust(len(raw), b"\0")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """The shipped one, with every probability on one side or the other: what is inconclusive then is so for damage."""
    with build_verifier(SETTINGS.models) as verifier:
        sides = Thresholds(label=0.5, real=0.2, likely_real=0.5, likely_ai=0.5, ai=0.8)
        verifier.fusion = replace(verifier.fusion, thresholds=sides)
        yield verifier


def answers(verifier: Verifier, files: Sequence[bytes]) -> list[Verdict | VerifyError]:
    async def main() -> list[Verdict | VerifyError]:
        with Pipeline(SETTINGS.pipeline, SETTINGS.decode, SETTINGS.fetch, {"": verifier}) as pipeline:

            async def answer(raw: bytes) -> Verdict | VerifyError:
                request = Request("half.bin", raw=raw)
                with pipeline.place(request) as place:
                    try:
                        return (await pipeline.judge(request, raw, place))[1].verdict
                    except VerifyError as error:
                        return error

            return await asyncio.gather(*map(answer, files))

    return asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_half_written_file_lacks_is_said_and_half_a_picture_gets_no_tier(verifier: Verifier, kind: str) -> None:
    raw = encoded(kind)
    whole, most, less, cut, nothing = answers(
        verifier,
        [raw, half_written(raw, 0.85), half_written(raw, 0.3), raw[: len(raw) * 3 // 10], raw[: len(raw) // 200]],
    )
    assert isinstance(whole, Verdict)
    assert whole.tier != "inconclusive"
    assert not whole.warnings
    assert isinstance(nothing, VerifyError)
    assert nothing.code == "undecodable"
    assert isinstance(most, Verdict)
    assert missing(most) < 0.5
    for answer in (less, cut):
        if isinstance(answer, VerifyError):
            assert answer.code == "undecodable"
        else:
            assert missing(answer) >= 0.5
            assert answer.tier == "inconclusive"
            assert any("Too little of the picture to tell" in warning for warning in answer.warnings)


def test_a_picture_that_is_wrong_from_an_unknown_place_on_gets_no_tier(verifier: Verifier) -> None:
    raw = bytearray(encoded("WEBP"))
    raw[len(raw) // 2] ^= 1
    (answer,) = answers(verifier, [bytes(raw)])
    assert isinstance(answer, Verdict)
    assert answer.tier == "inconclusive"
    assert answer.warnings[0].startswith("damaged file: its coded data do not end with the picture")
    assert "any part of it may be wrong" in answer.warnings[-1]


def missing(verdict: Verdict) -> float:
    """The share that the verdict says is missing."""
    said = [
        re.search(r"truncated or damaged file: (\d+)% of the picture is missing", each) for each in verdict.warnings
    ]
    (share,) = [int(match[1]) / 100 for match in said if match]
    return share
