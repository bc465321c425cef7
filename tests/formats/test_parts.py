"""The walkers of containers: every reader sees the same parts, and a file costs no more steps than its bytes allow."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from forensics import jpeg as jpeg_forensics
from forensics import statistics
from formats import bmff, gif, jpeg, png, riff, tiff
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
    "GIF": gif.blocks,
    "AVIF": bmff.boxes,
}


def encoded(file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, file_format, **options)
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
    record = b"PhotoEditor_Re_Edit_Data{}"
    assert list(metadata.read(filled + record, "JPEG").values("trailer", "PhotoEditor_Re_Edit_Data")) == ["{}"]


def test_padding_behind_a_webp_is_not_walked() -> None:
    raw = encoded("WEBP")
    assert list(riff.chunks(raw + bytes(2**20))) == list(riff.chunks(raw))


def declared_riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


SMALLEST_PARTS = {
    "JPEG": b"\xff\xd8" + b"\xff\x01" * 1_000_000,
    "PNG": png.SIGNATURE + bytes(12) * 500_000,
    "WEBP": declared_riff(bytes(8) * 500_000),
    "GIF": b"GIF89a" + bytes(7) + b"," + bytes(10) + b"\1\2" * 500_000,
    "AVIF": struct.pack(">I4s", 8, b"free") * 500_000,
}


@pytest.mark.parametrize("file_format", SMALLEST_PARTS)
def test_a_file_of_the_smallest_parts_costs_a_bounded_number_of_steps(file_format: str) -> None:
    raw = SMALLEST_PARTS[file_format]
    assert sum(1 for _ in WALKERS[file_format](raw)) == most_parts(raw)
    # At 64 MiB, the largest file that is let in by default, this is 1 step for each 107 bytes.
    assert most_parts(raw) <= 100_000 + len(raw) / 128


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF"])
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


def directory(entries: list[tuple[int, int, int, int]], after: int = 0, order: str = "<", big: bool = False) -> bytes:
    """A TIFF directory: its entries (tag, type, count, value or offset) and the offset of the next page's."""
    count, entry, offset = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    packed = b"".join(struct.pack(order + entry, *each) for each in entries)
    return struct.pack(order + count, len(entries)) + packed + struct.pack(order + offset, after)


def test_a_tiffs_directories_are_each_walked_once_with_the_pages_last() -> None:
    exif, second = 8 + 2 + 2 * 12 + 4, 8 + 2 + 2 * 12 + 4 + 2 + 12 + 4
    raw = (
        b"II*\0\x08\0\0\0"
        + directory([(0x0110, 3, 1, 7), (tiff.EXIF_POINTER, 4, 1, exif)], after=second)
        + directory([(0x9286, 7, 4, 0x41424344)])
        + directory([(0x0110, 3, 1, 9)], after=8)  # and back to the first
    )
    found = [(entry.directory, entry.tag) for entry in tiff.entries(raw)]
    assert found == [("0", 0x0110), ("0", tiff.EXIF_POINTER), ("exif", 0x9286), ("1", 0x0110)]
    assert [tiff.numbers(raw, entry) for entry in tiff.entries(raw) if entry.tag == 0x0110] == [(7.0,), (9.0,)]


@pytest.mark.parametrize(("order", "mark"), [("<", b"II"), (">", b"MM")])
def test_bigtiff_is_walked_like_its_older_kind(order: str, mark: bytes) -> None:
    head = mark + struct.pack(order + "HHHQ", 43, 8, 0, 16)
    (quarter,) = struct.unpack(order + "Q", struct.pack(order + "II", 1, 4))  # eight bytes stand in the entry itself
    raw = head + directory([(0x0110, 2, 9, 16 + 8 + 2 * 20 + 8), (0x829A, 5, 1, quarter)], order=order, big=True)
    raw += b"a camera\0"
    text, fraction = tiff.entries(raw)
    assert raw[text.start : text.start + text.length] == b"a camera\0"
    assert text.is_bytes
    assert tiff.numbers(raw, fraction) == (0.25,)


def test_a_tiff_of_the_smallest_parts_costs_a_bounded_number_of_steps() -> None:
    # Directories that overlap, each one byte behind the one before: as many entries as bytes, many times over.
    raw = b"II*\0\x08\0\0\0" + bytes(range(1, 256)) * 20_000
    assert sum(1 for _ in tiff.entries(raw)) <= most_parts(raw)


@settings(deadline=None)  # encoding AVIF takes a while
@given(data=st.data(), file_format=st.sampled_from(["TIFF", "AVIF"]))
def test_entries_and_items_of_any_bytes_lie_inside_the_file(data: st.DataObject, file_format: str) -> None:
    raw = bytearray(encoded(file_format, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=8)):
        raw[at % len(raw)] = value
    mutant = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    places = [(entry.start, entry.length) for entry in tiff.entries(mutant) if tiff.numbers(mutant, entry) is not None]
    places += [(part.start, part.length) for _, parts in bmff.items(mutant) for part in parts]
    assert all(length == 0 or (start >= 0 and start + length <= len(mutant)) for start, length in places)


def test_the_items_of_an_avif_are_found_where_pillow_finds_them() -> None:
    exif, xmp = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", b"<x:xmpmeta/>"
    raw = encoded("AVIF", exif=exif, xmp=xmp)
    found = {kind: raw[part.start : part.start + part.length] for kind, (part, *_) in bmff.items(raw)}
    assert found[b"Exif"].endswith(exif)
    assert found[b"application/rdf+xml"] == xmp


@pytest.mark.parametrize("coded", ["no local colours", "local colours"])
def test_a_gifs_first_image_is_found_with_its_data(coded: str) -> None:
    local = bytes(range(12)) if coded == "local colours" else b""
    image = b"," + struct.pack("<HHHHB", 1, 2, 30, 40, 0x81 if local else 0) + local + b"\2\3abc\2de\0"
    raw = b"GIF89a" + struct.pack("<HHB", 50, 60, 0x80) + bytes(2 + 6) + b"!\xfe\1,\0" + image + image + b";"
    assert gif.first_image(raw) == (30 * 40, 2, b"abcde")
    first, second = (part for part in gif.blocks(raw) if part.kind == gif.IMAGE)
    assert raw[first.start : first.start + first.length] == image[1 : 11 + len(local)]
    assert second.start == first.start + len(image)
    assert gif.first_image(raw[: first.start + 8]) is None
    assert gif.first_image(b"GIF89a") is None


def test_a_gifs_comment_is_found_whole() -> None:
    comment = bytes(range(1, 256)) * 3
    raw = encoded("GIF", comment=comment)
    parts = list(gif.blocks(raw))
    first = next(index for index, part in enumerate(parts) if part.kind == gif.COMMENT)
    data = []
    for part in parts[first + 1 :]:
        if part.kind != gif.DATA:
            break
        data.append(raw[part.start : part.start + part.length])
    assert b"".join(data) == comment
    assert parts[-1] == Part(gif.END, len(raw), 0)
