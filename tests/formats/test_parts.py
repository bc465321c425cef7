"""The walkers of containers: every reader sees the same parts, and a file costs no more steps than its bytes allow."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from forensics import jpeg as jpeg_forensics
from forensics import statistics
from formats import jpeg, png, riff
from formats.containers import find_layout
from formats.parts import Part, most_parts
from ingress import metadata
from utils.contracts import Sample
from utils.errors import Undecodable

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
WALKERS: dict[str, Callable[[bytes], Iterator[Part]]] = {
    "JPEG": jpeg.segments,
    "PNG": png.chunks,
    "WEBP": riff.chunks,
}


def encoded(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, file_format)
    return buffer.getvalue()


def compression_level(raw: bytes, file_format: str) -> float:
    return statistics.measure(Sample("test", raw, PIXELS, file_format)).features["compression_level"]


def with_fill_bytes(raw: bytes, before: bytes, count: int) -> bytes:
    """Put ``count`` fill bytes (T.81, B.1.1.2) before the first marker of this kind."""
    part = next(part for part in jpeg.segments(raw) if part.kind == before)
    at = jpeg.marker_start(part)
    return raw[:at] + b"\xff" * count + raw[at:]


@pytest.mark.parametrize("marker", [jpeg.APP0, jpeg.DQT, jpeg.SOF0, jpeg.SOS, jpeg.EOI])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_legal_fill_bytes_change_nothing_that_is_measured(marker: bytes, count: int) -> None:
    plain = encoded("JPEG")
    filled = with_fill_bytes(plain, marker, count)
    header, expected = jpeg_forensics.read_header(filled), jpeg_forensics.read_header(plain)
    assert header.tables.keys() == expected.tables.keys()
    assert header.components == expected.components
    # Fill bytes between the scans and EOI are part of what codes the pixels.
    tolerance = 1e-3 if marker == jpeg.EOI else 0
    assert compression_level(filled, "JPEG") == pytest.approx(compression_level(plain, "JPEG"), abs=tolerance)
    assert find_layout(filled, "JPEG").end == len(filled)
    assert metadata.read(filled + b"tail", "JPEG").trailer == b"tail"


def test_padding_behind_a_webp_is_not_walked() -> None:
    raw = encoded("WEBP")
    assert list(riff.chunks(raw + bytes(2**20))) == list(riff.chunks(raw))


def declared_riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


SMALLEST_PARTS = {
    "JPEG": b"\xff\xd8" + b"\xff\x01" * 1_000_000,
    "PNG": png.SIGNATURE + bytes(12) * 500_000,
    "WEBP": declared_riff(bytes(8) * 500_000),
}


@pytest.mark.parametrize("file_format", SMALLEST_PARTS)
def test_a_file_of_the_smallest_parts_costs_a_bounded_number_of_steps(file_format: str) -> None:
    raw = SMALLEST_PARTS[file_format]
    assert sum(1 for _ in WALKERS[file_format](raw)) == most_parts(raw)
    # At 64 MiB, the largest file that is let in by default, this is 1 step for each 107 bytes.
    assert most_parts(raw) <= 100_000 + len(raw) / 128


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_file_of_the_smallest_parts_is_refused_before_it_is_decoded(file_format: str) -> None:
    with pytest.raises(Undecodable, match="tiny pieces"):
        find_layout(SMALLEST_PARTS[file_format], file_format)


@given(file_format=st.sampled_from(sorted(WALKERS)), data=st.data())
def test_parts_of_any_bytes_are_in_order_apart_and_inside_the_file(file_format: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(file_format))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=8)):
        raw[at] = value
    mutant = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    end = 0
    for part in WALKERS[file_format](mutant):
        assert end <= part.start
        end = part.start + part.length
        assert part.length >= 0
        assert end <= len(mutant)
