"""Where the image inside a file ends, walked before a decoder sees it. Decodes no pixel and knows no Pillow."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from formats import gif, jpeg, png, riff, tiff
from formats.parts import Part, most_parts
from utils.errors import Undecodable

_JPEG_SCANS = 100  # encoders write about 10; each costs a pass over all coefficients (LJT-01-004, libjpeg-turbo 2015)
_EXIF_SEGMENTS = 16  # Pillow joins them by copying, which is quadratic in their number
_MPF_BYTES = 1 << 16  # the largest JPEG segment
_MPF_VIEWS = 4  # phones list 2 or 3 (gain map, depth); each is walked to its end
_HEADER_JUNK = 1 << 16  # Pillow steps over bytes between JPEG segments one at a time
_TOO_MANY = "built of too many tiny pieces to be a genuine image"
_TIFF_VALUES = 150_000  # strips or tiles of one page; each costs Pillow about 20 us and 300 bytes

# These walk the container before Pillow does, in time linear in the file, and refuse files built of so many tiny pieces
# that Pillow, which handles each in Python, would be busy for minutes.


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one image lies in its file."""

    end: int = 0  # offset of the first byte after the image; 0 when the end is missing or the format does not say
    frames: int = 1


def _checked(parts: Iterable[Part], raw: bytes) -> Iterator[Part]:
    """All parts of a file.

    Raises:
        Undecodable: there are too many.
    """
    count = 0
    for part in parts:
        count += 1
        yield part
    if count >= most_parts(raw):
        raise Undecodable(_TOO_MANY)


def _jpeg_layout(raw: bytes) -> Layout:
    """The end of the primary image, or of the last image that its MPF index (CIPA DC-007) points to.

    The index's own sizes are not believed: some writers get them wrong, and they could be made to hide a payload.
    Images that it does not list, and the trailers of phones (Samsung, motion photos), come after the end.
    """
    end, views = _jpeg_end(raw, 0)
    return Layout(max((end, *(_jpeg_end(raw, view)[0] for view in views))) if end else 0)


def _jpeg_end(raw: bytes, start: int) -> tuple[int, list[int]]:
    """The offset behind the EOI of the JPEG at ``start`` (0: there is none), and where its MPF index points to."""
    position, junk, scans, exif = start + 2, 0, 0, 0
    views: list[int] | None = None
    for part in _checked(jpeg.segments(raw, start), raw):
        junk += 0 if scans else jpeg.marker_start(part) - position
        position = part.start + part.length
        if part.kind == jpeg.EOI:
            return position, views or []
        name = raw[part.start : part.start + 4]
        scans += part.kind == jpeg.SOS
        exif += part.kind == jpeg.APP1 and name == b"Exif"
        if junk > _HEADER_JUNK or scans > _JPEG_SCANS or exif > _EXIF_SEGMENTS:
            raise Undecodable("a JPEG with an abnormal number of scans, EXIF blocks or stray bytes")
        if part.kind == jpeg.APP2 and name == b"MPF\0" and views is None:
            views = _mpf_views(raw, part.start + 4)
    return 0, []


def _mpf_views(raw: bytes, base: int) -> list[int]:
    """Offsets of the further JPEGs that the MPF index at ``base`` lists."""
    index = raw[base : base + _MPF_BYTES]
    for entry in tiff.entries(index):
        if entry.tag == 0xB002:  # MP entries: attributes, size, offset, two dependencies
            length = 16 * min(entry.length // 16, _MPF_VIEWS)
            form = (">" if index.startswith(b"MM") else "<") + "IIIHH"
            views = struct.iter_unpack(form, index[entry.start : entry.start + length])
            starts = (base + start for _, _, start, _, _ in views if start)
            return [start for start in starts if raw[start : start + 2] == b"\xff\xd8"]
    return []


def _png_layout(raw: bytes) -> Layout:
    frames = 0
    for part in _checked(png.chunks(raw), raw):
        frames += part.kind == b"fcTL"
        if part.kind == b"IEND":
            return Layout(min(len(raw), part.start + part.length + png.CRC_BYTES), max(1, frames))
    return Layout(frames=max(1, frames))


def _gif_layout(raw: bytes) -> Layout:
    frames = 0
    for part in _checked(gif.blocks(raw), raw):
        frames += part.kind == gif.IMAGE
        if part.kind == gif.END:
            return Layout(part.start, max(1, frames))
    return Layout(frames=max(1, frames))


def _riff_layout(raw: bytes) -> Layout:
    end = riff.declared_end(raw)
    return Layout(end if end <= len(raw) else 0)


def _bmp_layout(raw: bytes) -> Layout:
    size = int.from_bytes(raw[2:6], "little")
    return Layout(size if 26 < size <= len(raw) else 0)  # some writers leave 0


def _tiff_layout(raw: bytes) -> Layout:
    """TIFF has no end; refuses a first page of a million strips."""
    for entry in tiff.entries(raw):
        if entry.directory == "0" and not entry.is_bytes and entry.number > _TIFF_VALUES:
            raise Undecodable("a TIFF page with an abnormal number of strips or tiles")
    return Layout()


_LAYOUTS: dict[str, Callable[[bytes], Layout]] = {
    "JPEG": _jpeg_layout,
    "PNG": _png_layout,
    "GIF": _gif_layout,
    "WEBP": _riff_layout,
    "BMP": _bmp_layout,
    "TIFF": _tiff_layout,
}


def find_layout(raw: bytes, kind: str) -> Layout:
    """Walk the container; empty for the formats whose plugin needs no help (AVIF, HEIF).

    Raises:
        Undecodable: built of so many pieces that decoding would take minutes.
    """
    return _LAYOUTS[kind](raw) if kind in _LAYOUTS else Layout()


def declared_size(raw: bytes, kind: str) -> tuple[int, int]:
    """Width and height from the first bytes, where Pillow allocates (WebP, GIF) or complains (PNG) while opening.

    (0, 0) where opening is free, and for headers that Pillow will refuse.
    """
    head = raw[:30].ljust(30, b"\0")
    if kind == "PNG" and head[12:16] == b"IHDR":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if kind == "GIF":
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    chunk = head[12:16] if kind == "WEBP" else b""  # RFC 9649
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0
