"""Which pixels of a damaged file can be trusted: half-written, cut, with holes of zeros, or with flipped bits.

Decoders forgive: they fill what is missing with the last colour, with zeros or with noise, and rarely say so. Each
function here is asked about one format, once a decoder, a checksum or a long run of zeros gave reason to, and answers
with a Damage, or None when the picture is whole. An intact file must never be called damaged: where a run of zeros may
be legal (flat areas compress to zeros), the coded data must also have been left unread, which no encoder does.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from formats import bmff, jpeg, png, riff, tiff
from formats.parts import Part

Pixels: TypeAlias = NDArray[Any]  # H x W or H x W x C
Decoder: TypeAlias = Callable[[bytes], Pixels | None]  # None: no pixels at all

# Disk blocks are 512 bytes and more. The longest run in the coded data of ordinary photographs is below 20 bytes for
# every encoder (JPEG, WebP, AVIF at three qualities each); flat pictures have runs of kilobytes.
GAP_BYTES = 256
_PROBE_BYTES = 16  # changed to see whether a decoder reads them; encoders pad their data with fewer
_MOST_GAPS = 4  # looked into, each for two decodes
_MOST_PADDING = 1 << 28  # a file that claims to be much longer than it is gets no more zeros than this
_FEWEST_ROWS = 16  # that are worth judging: two rows of JPEG's blocks
_BLOCK = 8
_FILTER_ROWS = 16  # AV1's and VP8's loop filters change pixels above the first damaged block
_STRAY_SHARE = 0.01  # of a JPEG: cameras pad their coded data; a desynchronised decoder leaves more over, mostly
_CONTENT = 0.6  # share of bytes that are not zero above a hole; one of four is padding in 32-bit BMP
_STRAY = re.compile(r"(\d+) extraneous bytes")


@dataclass(frozen=True, slots=True)
class Damage:
    """What can be trusted of a picture: rows ``top`` to ``bottom`` as stored, and the share that is missing, 0..1.

    All rows with everything missing: any of them may be wrong (``anywhere``).
    """

    top: int
    bottom: int
    missing: float

    def upside_down(self, height: int) -> Damage:
        """The same of a picture that is stored bottom up."""
        return Damage(height - self.bottom, height - self.top, self.missing)

    @property
    def trusted(self) -> slice:
        """The rows, from a whole block on: JPEG's block grid, which is measured, keeps its phase."""
        return slice(-(-self.top // _BLOCK) * _BLOCK, self.bottom)

    @property
    def is_hopeless(self) -> bool:
        return self.bottom - self.trusted.start < _FEWEST_ROWS and self.missing > 0


def _filler(count: int, seed: int) -> bytes:
    """Bytes that look like coded data and hold neither zeros nor JPEG markers."""
    return np.random.default_rng(seed).integers(1, 255, count, dtype=np.uint8).tobytes()


def _replaced(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def _first_difference(one: Pixels, other: Pixels | None) -> int:
    """The first row in which two pictures differ; 0 when one is missing, the height when they are alike."""
    if other is None or one.shape != other.shape:
        return 0
    rows = np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
    return int(rows[0]) if rows.size else len(one)


def _gaps(raw: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of zeros of at least GAP_BYTES."""
    zeros = bytes(GAP_BYTES)
    at = raw.find(zeros, start, end)
    while at >= 0:
        match = _NOT_ZERO.search(raw, at, end)
        stop = match.start() if match else end
        yield at, stop
        at = raw.find(zeros, stop, end)


_NOT_ZERO = re.compile(rb"[^\0]")


def anywhere(height: int) -> Damage:
    """Of a picture that is wrong from a place on that cannot be told."""
    return Damage(0, height, 1.0)


def first_rows(bottom: int, height: int) -> Damage:
    """The upper part of a picture, down to a whole block."""
    bottom = height if bottom >= height else bottom // _BLOCK * _BLOCK
    return Damage(0, bottom, 1 - bottom / height)


def unwritten(pixels: Pixels, bottom_up: bool = False, interlaced: bool = False) -> Damage:
    """What a decoder wrote before it gave up: all but the last rows, in the order of the file, that have one colour.

    Of an interlaced GIF whose last pass lacks its beginning, the rows that are missing are filled, in place, with those
    above them, as viewers show it.
    """
    height = len(pixels)
    order = np.arange(height)[:: -1 if bottom_up else 1]
    if interlaced:
        order = np.concatenate([np.arange(first, height, step) for first, step in ((0, 8), (4, 8), (2, 4), (1, 2))])
    alike = (pixels == pixels[order[-1], -1]).reshape(height, -1).all(axis=1)[order]
    written = np.flatnonzero(~alike)
    count = int(written[-1]) + 1 if written.size else 0
    if not interlaced:
        found = first_rows(count, height)
        return found.upside_down(height) if bottom_up else found
    if count < _FEWEST_ROWS:
        return Damage(0, 0, 1 - count / height)
    missing = np.sort(order[count:])
    if not missing.size or missing[0] >= _FEWEST_ROWS:
        return first_rows(int(missing[0]) if missing.size else height, height)
    for row in missing.tolist():
        pixels[row] = pixels[row - 1]
    return Damage(0, height, 1 - count / height)


# ---------------------------------------------------------------------------------------------------------------- JPEG


def jpeg_damage(raw: bytes, complaint: str, pixels: Pixels, decode: Decoder) -> tuple[Damage | None, bytes]:
    """
    Args:
        complaint: what libjpeg said of it.
        pixels: as decoded with whatever libjpeg filled in.
        decode: as lenient.

    Returns:
        The damage, and the bytes to decode instead. None: its padding is unusual, and no pixel is missing. Of several
        scans, the rows that the last one still brought are trusted where they are half of the picture; otherwise all
        rows are, at the quality that they have, and what is missing is counted in coefficients.
    """
    height = len(pixels)
    start = _jpeg_start(raw, complaint)
    if start is None:
        stray = _STRAY.search(complaint)
        share = int(stray[1]) / len(raw) if stray else 0.0
        if stray and share < _STRAY_SHARE:
            return None, raw
        found = unwritten(pixels)
        return (Damage(0, height, min(1.0, share)) if stray else found), raw
    head = raw[:start]
    end = b"\xff" + jpeg.EOI
    one, other = (decode(head + _filler(4096, seed) + end) for seed in (1, 2))
    row = 0 if one is None else _first_difference(one, other)
    coded = _coefficients(head, row / height)
    if coded is None or (row >= height // 2 and _coefficients(head, 1.0) == 1.0):  # rows before it are final
        return first_rows(row, height), head + end
    return Damage(0, height, 1 - coded), head + end


def _jpeg_start(raw: bytes, complaint: str) -> int | None:
    """Offset of the first damaged byte; None when only the decoder's trouble is known."""
    scan, end = None, len(raw)
    for part in jpeg.segments(raw):
        scan = scan or (part if part.kind == jpeg.SOS else None)
        end = part.start if part.kind == jpeg.EOI else end
    if scan is None:
        return None
    gap = next(_gaps(raw, scan.start, end), None)
    if gap:
        return gap[0]
    return len(raw.rstrip(b"\0")) if complaint.startswith("Premature end of JPEG file") else None


def _coefficients(raw: bytes, last_scan: float) -> float | None:
    """Share of the coefficients of a JPEG in several scans that are final, of the last scan ``last_scan``.

    None for one scan of every component, whose rows come one after the other. A coefficient of which only the first
    bits came counts half.
    """
    components = 0
    state: dict[tuple[int, int], float] = {}
    before: dict[tuple[int, int], float] = {}
    scans = 0
    for part in jpeg.segments(raw):
        data = raw[part.start : part.start + part.length]
        if part.kind in (jpeg.SOF0, jpeg.SOF1, jpeg.SOF2, b"\xc9", b"\xca") and len(data) >= 6:
            components = data[5]
        elif part.kind == jpeg.SOS and data and len(data) >= 4 + 2 * data[0]:
            scans += 1
            before = dict(state)
            first, last, bits = data[1 + 2 * data[0] : 4 + 2 * data[0]]
            for component in data[1 : 1 + 2 * data[0] : 2]:
                state |= {(component, k): 0.5 if bits & 15 else 1.0 for k in range(first, min(last, 63) + 1)}
            if scans == 1 and data[0] == components and (first, last, bits) == (0, 63, 0):
                return None
    total = sum(before.get(key, 0.0) + (value - before.get(key, 0.0)) * last_scan for key, value in state.items())
    return min(1.0, total / (64 * max(1, components)))


# ----------------------------------------------------------------------------------------------------------------- PNG


def png_is_sound(raw: bytes) -> bool:
    """Whether every chunk of pixels is there with the checksum that was written for it, and the end is too."""
    ended = False
    for part in png.chunks(raw):
        if part.kind == b"IDAT" and not _is_sound(raw, part):
            return False
        ended = part.kind == b"IEND"
    return ended


def _is_sound(raw: bytes, part: Part) -> bool:
    end = part.start + part.length
    return raw[end : end + png.CRC_BYTES] == zlib.crc32(memoryview(raw)[part.start - 4 : end]).to_bytes(4, "big")


def png_part(raw: bytes) -> tuple[bytes, Damage] | None:
    """A valid PNG of the rows that can be trusted, and what is missing; None: every pixel is right.

    Rows are trusted up to the first error of the compressed stream. Where it has none but its own checksum is wrong,
    they are up to the first chunk whose checksum is.
    """
    header = next((part for part in png.chunks(raw) if part.kind == b"IHDR" and part.length == 13), None)
    if header is None:
        return raw[:0], Damage(0, 0, 1.0)
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", raw, header.start)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    row = 1 + (width * channels * depth + 7) // 8
    wanted = _adam7_bytes(width, height, channels * depth) if interlaced else row * height
    data, sound, is_complete = _inflated(raw, wanted)
    if is_complete:
        return None
    if interlaced:  # its rows come last, and no part of the picture is whole before them
        return raw[:0], Damage(0, 0, 1.0)
    if len(data) == wanted and sound:
        data = data[:sound]
    rows = min(height, len(data) // row)
    rows = rows if rows == height else rows // _BLOCK * _BLOCK
    body = raw[header.start : header.start + 13]
    parts = [png.SIGNATURE, _chunk(b"IHDR", body[:4] + struct.pack(">I", max(1, rows)) + body[8:])]
    kept = (part for part in png.chunks(raw) if part.kind in (b"PLTE", b"tRNS", b"iCCP", b"eXIf"))
    parts += [_chunk(kind, raw[at : at + length]) for kind, at, length in kept]
    parts += [_chunk(b"IDAT", zlib.compress(data[: rows * row], 1)), _chunk(b"IEND", b"")]
    return b"".join(parts), Damage(0, rows, 1 - rows / height)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _adam7_bytes(width: int, height: int, bits: int) -> int:
    """Bytes of an interlaced picture (PNG, third edition, section 8)."""
    total = 0
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return total


def _inflated(raw: bytes, wanted: int) -> tuple[bytearray, int, bool]:
    """The bytes of the rows up to an error, how many came before a wrong chunk checksum, and whether all is well.

    zlib has its own checksum of everything, so a complete stream is right whatever the chunks' checksums say.
    """
    stream = zlib.decompressobj()
    data = bytearray()
    sound: int | None = None
    try:
        for part in png.chunks(raw):
            if part.kind != b"IDAT":
                continue
            if sound is None and not _is_sound(raw, part):
                sound = len(data)
            piece = raw[part.start : part.start + part.length]
            gap = next(_gaps(piece, 0, len(piece)), None) if sound is not None else None
            data += stream.decompress(piece[: gap[0]] if gap else piece, max(1, wanted + 1 - len(data)))
            if gap or len(data) > wanted:
                break
    except zlib.error:
        pass
    # Some writers leave more behind than the rows need; then the checksum cannot be asked.
    is_complete = (stream.eof and len(data) == wanted) or (len(data) > wanted and sound is None)
    return data[:wanted], len(data) if sound is None else sound, is_complete


# ------------------------------------------------------------------------------------------- uncompressed BMP and TIFF


def bmp_damage(raw: bytes, size: tuple[int, int]) -> Damage | None:
    """Of an uncompressed BMP; its rows stand bottom up unless its height is negative."""
    width, height = size
    if int.from_bytes(raw[14:18], "little") < 40 or int.from_bytes(raw[30:34], "little") not in (0, 3):
        return None
    start, bits = int.from_bytes(raw[10:14], "little"), int.from_bytes(raw[28:30], "little")
    found = _stored_rows(raw, start, (width * bits + 31) // 32 * 4, height)
    if found is None or int.from_bytes(raw[22:26], "little", signed=True) < 0:
        return found
    return found.upside_down(height)


def tiff_damage(raw: bytes, failed: bool) -> Damage | None:
    """Of the first page: strips beyond the end of the file, or that begin with zeros where data must stand.

    In uncompressed strips that stand one after the other, holes are found as in a BMP.

    Args:
        failed: the decoder gave up somewhere, so a long run of zeros is a hole.
    """
    page = next(iter(tiff.pages(raw)), None)
    if page is None:
        return None
    (width, height), compression = page.size, page.number(tiff.COMPRESSION, 1)
    starts, lengths = (page.numbers(tag, most=1 << 16) for tag in (tiff.STRIP_OFFSETS, tiff.STRIP_BYTES))
    bits = page.numbers(tiff.BITS) or (1,)
    samples = page.number(tiff.SAMPLES, 1)
    if not starts or len(starts) != len(lengths) or min(width, height) < 1 or page.number(tiff.PLANAR, 1) != 1:
        return None
    if min(*starts, *lengths) < 0:  # a signed type: nothing lies before the file
        return None
    if compression == 1:
        row = (width * (sum(bits) if len(bits) == samples else bits[0] * samples) + 7) // 8
        follow = all(start + length == after for start, length, after in zip(starts, lengths, starts[1:], strict=False))
        # A row of no bytes: the file says that its pixels have no samples, or these no bits.
        return _stored_rows(raw, starts[0], row, height) if row and follow and sum(lengths) >= row * height else None
    per_strip = page.number(tiff.ROWS_PER_STRIP, height) or height
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        strip = raw[start : start + min(length, 64)]
        is_hollow = failed and any(True for _ in _gaps(raw, start, min(len(raw), start + length)))
        if start + length > len(raw) or is_hollow or (len(strip) == 64 and not any(strip)):
            return first_rows(min(height, number * per_strip), height)
    return None


def _stored_rows(raw: bytes, start: int, row: int, height: int) -> Damage | None:
    """The longest run of whole rows, in the order of the file; None when no row is missing.

    A hole is zeros that begin and end inside a row (or end with the file), over at least one whole row, where the row
    above has content: black areas of pictures and black bars do not begin and end like that.
    """
    there = max(0, min(height, (len(raw) - start) // row))
    if there < 1:
        return Damage(0, 0, 1.0)
    rows = np.frombuffer(raw, np.uint8, there * row, start).reshape(there, row)
    is_blank = ~rows.any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_blank, [False])).astype(np.int8)))
    holes = [
        (first - 1, min(there, last + 1))
        for first, last in edges.reshape(-1, 2).tolist()
        if _begins_inside(rows, first) and (last == there or _ends_inside(rows, last))
    ]
    if not holes and there == height:
        return None
    bounds = [0, *(bound for hole in holes for bound in hole), there]
    whole = list(zip(bounds[::2], bounds[1::2], strict=True))
    top, bottom = max(whole, key=lambda rows: rows[1] - rows[0])
    return Damage(top, bottom, 1 - sum(max(0, last - first) for first, last in whole) / height)


def _begins_inside(rows: NDArray[np.uint8], first: int) -> bool:
    """Whether the zeros that fill row ``first`` begin in the row before, under content."""
    if first < 2:
        return False
    column = int(np.flatnonzero(rows[first - 1])[-1]) + 1
    above = rows[first - 2, column:]
    return above.size >= _BLOCK and bool(np.mean(above != 0) >= _CONTENT)


def _ends_inside(rows: NDArray[np.uint8], last: int) -> bool:
    """Whether the zeros that end in row ``last`` do so inside it, above content."""
    column = int(np.flatnonzero(rows[last])[0])
    below = rows[min(last + 1, len(rows) - 1), :column]
    return below.size >= _BLOCK and bool(np.mean(below != 0) >= _CONTENT)


# ------------------------------------------------------------------------------------------------ WebP, AVIF and HEIF


def padded(raw: bytes, kind: str) -> bytes:
    """The file with zeros up to the length that its container declares, as a decoder needs it."""
    end = riff.declared_end(raw) if kind == "WEBP" else _declared_end(raw)
    return raw + bytes(end - len(raw)) if len(raw) < end <= min(16 * len(raw) + 65536, _MOST_PADDING) else raw


def _declared_end(raw: bytes) -> int:
    last = None
    for last in bmff.boxes(raw):  # noqa: B007 - the last one is what is wanted
        pass
    return last.start - 8 + int.from_bytes(raw[last.start - 8 : last.start - 4], "big") if last else 0


def blanked(raw: bytes, kind: str) -> bytes:
    """For a file that no decoder takes: zeros from its first gap on, which decoders do take."""
    for start, end in _coded(raw, kind):
        for gap, _ in _gaps(raw, start, end):
            return raw[:gap] + bytes(end - gap) + raw[end:]
    return raw


def has_gaps(raw: bytes, kind: str) -> bool:
    """Whether there are long runs of zeros in the coded data: as a rule not, and nothing more is looked into."""
    return any(True for start, end in _coded(raw, kind) for _ in _gaps(raw, start, end))


def gap_damage(raw: bytes, kind: str, pixels: Pixels, decode: Decoder) -> Damage | None:
    """Of a file with gaps in its coded data.

    A gap counts when the decoder reads where it begins, and does not read where it, or the coded data, ends: zeros
    cost a decoder fewer bytes than the data that they replaced, while no encoder writes data that is left over.

    Args:
        pixels: what ``raw`` decodes to.
    """
    looked = 0
    for start, end in _coded(raw, kind):
        for gap, stop in _gaps(raw, start, end):
            looked += 1
            if looked > _MOST_GAPS:
                return None
            changed = decode(_replaced(raw, gap, _filler(stop - gap, 1)))
            if changed is None:  # noise is more than some decoders bear
                changed = decode(_replaced(raw, gap, _filler(_PROBE_BYTES, 1)))
            # What fails was read; how many rows had come by then follows the bytes, roughly.
            row = int(len(pixels) * (gap - start) / (end - start))
            if changed is not None and (row := _first_difference(pixels, changed)) == len(pixels):
                continue
            probes = {stop - _PROBE_BYTES, end - _PROBE_BYTES}
            if any(_is_unread(raw, at, pixels, decode) for at in probes):
                return first_rows(max(0, row - _FILTER_ROWS), len(pixels))
    return None


def _is_unread(raw: bytes, at: int, pixels: Pixels, decode: Decoder) -> bool:
    other = decode(_replaced(raw, at, _filler(_PROBE_BYTES, 3)))
    return other is not None and _first_difference(pixels, other) == len(pixels)


def _coded(raw: bytes, kind: str) -> list[tuple[int, int]]:
    """Where coded pixels stand."""
    if kind == "WEBP":
        parts = [part for part in riff.chunks(raw) if part.kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")]
    else:
        codes = (b"av01", b"hvc1", b"hev1")
        parts = [part for name, places in bmff.items(raw) if name in codes for part in places]
        parts = parts or [box for box in bmff.boxes(raw) if box.kind == b"mdat"]
    return [(part.start, part.start + part.length) for part in parts]
