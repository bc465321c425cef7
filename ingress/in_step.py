"""Whether a decoder kept in step, to its end, with coded data that has no checksum.

After a flipped bit a decoder reads other codes than were written, mostly without a complaint. But at the end it has
made more or fewer pixels than there are, or data are left over, and no encoder does that. Where it lost its place
cannot be told. Not asked are formats whose codes fall into step again by themselves (JPEG, lossless WebP), and HEIF,
whose decoder never says that its data ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats import av1, bmff, gif, riff

_LARGEST_CODE: Final = 12  # bits, in GIF
_PADDING: Final = 2  # bytes behind the data, as codes are cut from three bytes each
_FIRST_FULL, _AT_ONCE = 1 << 8, 1 << 16  # codes read at a time once the table is full: most encoders clear it soon
_MOST_TABLES: Final = 1 << 12  # enough for 20 MB; encoders begin a new one after 4,096 strings, each costs us 0.1 ms

# Bytes at the end of lossy WebP's or AVIF's data, one of which a decoder must need. Of 57 WebP from the web it needs
# all but one to three; none of 11,000 that libwebp wrote and of 7,000 AVIF by libaom, rav1e and SVT-AV1, at every
# quality, leaves as many; libvpx pads with four. A decoder that lost its place leaves hundreds: of 709 flipped bits in
# WebP that showed and were not refused, 12 left fewer.
_LEFT_OVER: Final = 16
_AV1_HEAD: Final = 256  # bytes: the heads of an AV1 picture and not much more; smaller ones are not asked


def webp_is_in_step(raw: bytes, decodes: Callable[[bytes], bool]) -> bool:
    """Whether a lossy WebP that decodes needs its data to their end: without the last bytes it must not decode.

    VP8's decoder (RFC 6386) fails where it needs more than there is, so the other half of such files is refused by it.
    """
    part = next((part for part in riff.first_image(raw) if part.kind == b"VP8 "), None)
    if part is None:
        return True
    return not decodes(riff.webp_of(part.kind, raw[part.start : part.start + part.length - _LEFT_OVER]))


def avif_is_in_step(raw: bytes, decodes: Callable[[bytes], bool]) -> bool:
    """The same of an AVIF that decodes, by a decoder that fails where data are missing, as it must without nearly all
    of them: dav1d does. Others fill them up, and of a thumbnail nothing is read at all.
    """
    item = next((places[0] for kind, places in bmff.items(raw) if kind == b"av01" and len(places) == 1), None)
    if item is None or item.length < 2 * _AV1_HEAD:
        return True
    data = raw[item.start : item.start + item.length]
    without_end, without_most = (av1.shortened(data, count) for count in (_LEFT_OVER, len(data) - _AV1_HEAD))
    if without_end is None or without_most is None:
        return True
    before, behind = raw[: item.start], raw[item.start + item.length :]
    return not decodes(before + without_end + behind) or decodes(before + without_most + behind)


def gif_is_in_step(raw: bytes) -> bool:
    """Whether the codes of the first image (GIF89a, appendix F) make its pixels, all of them and no more.

    Data that end without the code for it are whole: there are encoders that leave it out, and no pixel is missing.
    """
    coded = gif.first_image(raw)
    if coded is None or not coded.pixels or not 1 <= coded.bits <= 8:
        return True  # decoders refuse it
    clear, stream = 1 << coded.bits, np.frombuffer(coded.data + bytes(_PADDING), np.uint8)
    growing = _widths(clear)
    table, widths = np.ones(1 << _LARGEST_CODE, np.int64), growing
    bit, left, tables = 0, coded.pixels, 0
    while tables < _MOST_TABLES:
        codes, ends = _codes(stream, bit, widths)
        marks = np.flatnonzero((codes == clear) | (codes == clear + 1))
        strings = codes[: marks[0]] if marks.size else codes
        if widths is not growing:
            lengths = table[strings]
        elif (strings > _largest(len(strings), clear)).any():
            return False
        else:
            lengths = _lengths(strings, clear)
            table[clear + 2 : clear + 1 + len(strings)] = lengths[:-1] + 1
        made = np.cumsum(lengths)
        at = int(np.searchsorted(made, left))
        if at < len(made):
            width = int(widths[at + 1]) if at + 1 < len(widths) else _LARGEST_CODE
            return bool(made[at] == left) and _is_over(coded.data, int(ends[at]), width, clear)
        left -= int(made[-1]) if len(made) else 0
        if marks.size:
            is_more = codes[marks[0]] == clear
            bit, widths, tables = int(ends[marks[0]]), growing, tables + 1
        else:
            is_more = len(codes) == len(widths)
            count = _FIRST_FULL if widths is growing else min(4 * len(widths), _AT_ONCE)
            bit, widths = int(ends[-1]) if is_more else bit, np.full(count, _LARGEST_CODE)
        if not is_more:  # and pixels are
            return False
    return True


def _widths(clear: int) -> NDArray[np.int64]:
    """Bits of each code from an empty table on, until it is full: of the string that the code adds."""
    return np.array([added.bit_length() for added in range(clear + 1, 1 << _LARGEST_CODE)])


def _largest(count: int, clear: int) -> NDArray[np.int64]:
    """The largest code that can stand at each place: the string that it adds itself, and first a single pixel."""
    largest = np.arange(clear + 1, clear + 1 + count)
    largest[:1] = clear - 1
    return largest


def _codes(
    stream: NDArray[np.uint8], bit: int, widths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes from a bit on, as many as there are, and where each ends."""
    ends = bit + np.cumsum(widths)
    ends = ends[: np.searchsorted(ends, 8 * (len(stream) - _PADDING), side="right")]
    widths = widths[: len(ends)]
    starts = ends - widths
    first, second, third = (stream[(starts >> 3) + byte].astype(np.int64) for byte in range(3))
    return (first | second << 8 | third << 16) >> (starts & 7) & ((1 << widths) - 1), ends


def _lengths(codes: NDArray[np.int64], clear: int) -> NDArray[np.int64]:
    """Pixels of each code. A string is that of an earlier code and one pixel more; followed back by doubled steps."""
    count = len(codes)
    lengths = np.ones(count + 1, np.int64)
    lengths[count] = 0  # what stands before a single pixel
    before = np.append(np.where(codes < clear, count, codes - clear - 2), count)
    while (before < count).any():
        lengths += lengths[before]
        before = before[before]
    return lengths[:count]


def _is_over(data: bytes, bit: int, width: int, clear: int) -> bool:
    """Whether no more pixels are coded from a bit on: the end is marked, maybe behind a clear code, or only padding is
    left. Some encoders write the mark as if the last string had added nothing to the table, so one bit shorter.
    """
    if _is_padding(data, bit, width):
        return True
    for bits in (width, width - 1):
        code = _code(data, bit, bits)
        after, first = bit + bits, clear.bit_length()
        if code == clear + 1:
            return True
        if code == clear and (_is_padding(data, after, first) or _code(data, after, first) == clear + 1):
            return True
    return False


def _is_padding(data: bytes, bit: int, width: int) -> bool:
    if 8 * len(data) - bit < width:  # too few for a code
        return True
    return not (data[bit >> 3] >> (bit & 7) or any(data[(bit >> 3) + 1 :]))


def _code(data: bytes, bit: int, width: int) -> int:
    return int.from_bytes(data[bit >> 3 : (bit >> 3) + 3], "little") >> (bit & 7) & ((1 << width) - 1)
