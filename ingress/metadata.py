"""The one reader of what an image file says about itself: text chunks, EXIF, XMP, IPTC, comments, trailers.

Called once for each file, where it is decoded; the rest of the product uses ``Sample.metadata``. Returns fields with
their place and name, bounded in size, and never raises on a damaged file. Does not know what any field means; decodes
no pixels.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from formats import bmff, gif, jpeg, png, riff
from ingress import exif, texts, xmp
from utils.contracts import Exif, Field, Metadata

MAX_FIELD_CHARACTERS: Final = 4 * 2**20  # a large ComfyUI graph takes some 100 kB, without the pictures it may embed
MAX_TOTAL_CHARACTERS: Final = 8 * 2**20  # all text of one file
MAX_XMP_BYTES: Final = 4 * 2**20  # of all packets of one file, likewise without the pictures
MAX_INFLATED: Final = 32 * 2**20  # what all compressed texts of one file may expand to: zip bombs
MAX_FIELDS: Final = 8192  # a record behind thousands of others is still read; each costs some 10 us later
MAX_XMP_PACKETS: Final = 16
MAX_EXIF_BLOCKS: Final = 16
MAX_APP_BYTES: Final = 4096  # of a JPEG application segment that nobody knows

_XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_EXTENSION: Final = b"http://ns.adobe.com/xmp/extension/\0"
_XMP_OF_GIF: Final = b"XMP DataXMP"
_PROFILE: Final = re.compile(rb"\s*\S{0,80}\s+\d{1,9}\s+([0-9a-fA-F\s]*+)")
# Samsung's editor notes behind the image how a picture was edited.
_RE_EDIT: Final = b"PhotoEditor_Re_Edit_Data"
_RE_EDIT_BYTES: Final = 2**18


@dataclass(slots=True)
class _Found:
    """What a container reader has collected so far, within the limits."""

    fields: list[Field] = field(default_factory=list)
    xmp: list[bytes] = field(default_factory=list)
    exif: list[bytearray] = field(default_factory=list)
    photoshop: bytearray = field(default_factory=bytearray)  # grows by every segment: bytes would be copied each time
    damaged: dict[str, None] = field(default_factory=dict)
    has_c2pa: bool = False
    room: int = MAX_TOTAL_CHARACTERS
    inflated: int = 0

    def add(self, source: str, name: str, value: bytes | str) -> None:
        text = texts.without_files(value if isinstance(value, str) else texts.decode(value))[:MAX_FIELD_CHARACTERS]
        if text and len(self.fields) < MAX_FIELDS and len(text) <= self.room:
            self.room -= len(text)
            self.fields.append(Field(source, name, text))

    def add_text(self, source: str, name: str, value: bytes) -> None:
        """A text, which some programs make hold XMP or EXIF."""
        if xmp.is_packet(value):
            self.add_xmp(value)
        else:
            self.add(source, name, value)

    def add_xmp(self, packet: bytes) -> None:
        packet = texts.bytes_without_files(packet)
        if len(self.xmp) < MAX_XMP_PACKETS and sum(map(len, self.xmp)) + len(packet) <= MAX_XMP_BYTES:
            self.xmp.append(packet)
        else:
            self.damaged["xmp"] = None

    def add_exif(self, data: bytes) -> None:
        block = exif.find_block(data)
        if block and len(self.exif) < MAX_EXIF_BLOCKS:
            self.exif.append(bytearray(block))
        elif not block and data.strip(b"\0"):
            self.damaged["exif"] = None

    def inflate(self, data: bytes) -> bytes:
        """As much as may be and can be had."""
        unpacker = zlib.decompressobj()
        parts = []
        with contextlib.suppress(zlib.error):
            while data and self.inflated < MAX_INFLATED:
                parts.append(unpacker.decompress(data, 2**18))
                data = unpacker.unconsumed_tail
                self.inflated += len(parts[-1])
        return b"".join(parts)


def read(raw: bytes, format: str) -> Metadata:
    """Read all metadata of one file, in time linear in its bytes.

    Args:
        raw: the file as received, complete or truncated.
        format: Pillow's name of what the bytes decode to; the file's name plays no part.
    """
    found = _Found()
    readers = {
        "PNG": _read_png, "JPEG": _read_jpeg, "MPO": _read_jpeg, "WEBP": _read_webp, "TIFF": _read_tiff,
        "GIF": _read_gif, "AVIF": _read_bmff, "HEIF": _read_bmff,
    }  # fmt: skip
    if format in readers:
        readers[format](raw, found)
    record = _read_exif(found)
    for packet in found.xmp:
        properties, is_whole = xmp.properties(packet)
        if not is_whole:
            found.damaged["xmp"] = None
        for name, value in properties:
            found.add("xmp", name, value)
    _read_iim(_photoshop_iim(bytes(found.photoshop)), found)
    return Metadata(tuple(found.fields), record, found.has_c2pa, tuple(found.damaged))


def _read_exif(found: _Found) -> Exif | None:
    records = []
    for block in found.exif:
        record = exif.read(bytes(block), min(found.room, MAX_INFLATED))
        records.append(record.exif)
        found.has_c2pa |= record.has_c2pa
        for name, value in record.fields:
            found.add("exif", name, value)
        for tag, packet in record.packets.items():
            if tag == exif.XMP:
                found.add_xmp(packet)
            else:
                found.photoshop += packet
    return exif.merge(records)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _read_png(raw: bytes, found: _Found) -> None:
    """Chunks before and after the pixels (PNG 3rd edition, section 5); a truncated last chunk gives what is left."""
    for kind, start, length in png.chunks(raw):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            _add_png_text(kind, raw[start : start + length], found)
        elif kind == b"eXIf":
            found.add_exif(raw[start : start + length])
        elif kind == b"zxIf":  # a proposal that was withdrawn: a zero, the length, deflated EXIF
            found.add_exif(found.inflate(raw[start + 5 : start + length]))
        found.has_c2pa |= kind == b"caBX"


def _add_png_text(kind: bytes, body: bytes, found: _Found) -> None:
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]  # past the method, the language and the translated keyword
    else:
        is_compressed = kind == b"zTXt"
        rest = rest[1:] if is_compressed else rest
    if is_compressed:
        rest = found.inflate(rest)
    name = texts.decode(keyword[:79])
    lower = name.lower()
    if lower.startswith("raw profile type "):
        _add_raw_profile(rest, found)
    elif lower == "xml:com.adobe.xmp":
        found.add_xmp(rest)
    elif lower == "exif" and exif.find_block(rest):
        found.add_exif(rest)
    else:
        found.add_text("png_text", name, rest)


def _add_raw_profile(text: bytes, found: _Found) -> None:
    """ImageMagick keeps foreign profiles as hexadecimal text: a name line, a length line, the digits.

    What a profile is, its own first bytes say: writers differ in what they call EXIF and XMP, and in their headers.
    """
    match = _PROFILE.match(text)
    digits = b"".join(match[1].split()) if match else b""
    profile = bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    if exif.find_block(profile):
        found.add_exif(profile)
    elif xmp.is_packet(profile.removeprefix(_XMP_HEADER)):
        found.add_xmp(profile.removeprefix(_XMP_HEADER))
    elif profile.startswith((b"8BIM", b"Photoshop 3.0\0", b"\x1c")):
        found.photoshop += profile.removeprefix(b"Photoshop 3.0\0")


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _read_jpeg(raw: bytes, found: _Found) -> None:
    """Marker segments (ITU-T T.81 Annex B) up to the end of the first image, and Samsung's record behind it."""
    extended: dict[bytes, list[tuple[int, bytes]]] = {}
    for kind, start, length in jpeg.segments(raw):
        if kind == jpeg.EOI:
            _add_re_edit(raw, start, found)
        elif jpeg.APP0 <= kind <= jpeg.APP15 or kind == jpeg.COM:
            _add_segment(kind, raw[start : start + length], found, extended)
    for pieces in extended.values():
        found.add_xmp(b"".join(piece for _, piece in sorted(pieces)))


def _add_re_edit(raw: bytes, end: int, found: _Found) -> None:
    at = raw.find(_RE_EDIT, end)
    if at >= 0:
        start = at + len(_RE_EDIT)
        found.add("trailer", _RE_EDIT.decode(), raw[start : start + _RE_EDIT_BYTES].decode("utf-8", "replace"))


def _add_segment(marker: bytes, body: bytes, found: _Found, extended: dict[bytes, list[tuple[int, bytes]]]) -> None:
    if marker == jpeg.COM:
        found.add_text("comment", "COM", body)
    elif body[:5].lower() == b"exif\0":
        if found.exif and not exif.find_block(body[:64]):
            found.exif[-1] += body[6:]  # a record of more than 64 KiB goes on in the next segment
        else:
            found.add_exif(body)
    elif body.startswith(_XMP_HEADER):
        found.add_xmp(body[len(_XMP_HEADER) :])
    elif body.startswith(_XMP_EXTENSION):  # XMP part 3, 1.1.3.1: GUID, full length, offset, a piece
        head = len(_XMP_EXTENSION)
        offset = int.from_bytes(body[head + 36 : head + 40], "big")
        extended.setdefault(body[head : head + 32], []).append((offset, body[head + 40 :]))
    elif body.startswith(b"Photoshop 3.0\0"):
        found.photoshop += body[14:]
    elif body.startswith(b"JP"):  # JUMBF
        found.has_c2pa |= b"c2pa" in body
    elif body and not body.startswith((b"JFIF\0", b"ICC_PROFILE\0", b"Adobe\0", b"MPF\0")):
        tag = body.find(b"<", 0, 64)
        if tag >= 0 and xmp.is_packet(body[tag:]):
            found.add_xmp(body[tag:])
        else:
            found.add("app", f"APP{marker[0] - jpeg.APP0[0]}", body[:MAX_APP_BYTES])


# --- the others -------------------------------------------------------------------------------------------------------


def _read_webp(raw: bytes, found: _Found) -> None:
    for kind, start, length in riff.chunks(raw):
        name = kind.strip(b"\0 ").upper()  # some writers end XMP's name with a zero
        if name == b"EXIF":
            found.add_exif(raw[start : start + length])
        elif name == b"XMP":
            found.add_xmp(raw[start : start + length])
        found.has_c2pa |= name == b"C2PA"


def _read_tiff(raw: bytes, found: _Found) -> None:
    found.add_exif(raw)


def _read_gif(raw: bytes, found: _Found) -> None:
    """Comments, and Adobe's XMP, which stands in the file in one piece or in data blocks."""
    parts = list(gif.blocks(raw))
    for index, part in enumerate(parts):
        if part.kind not in (gif.COMMENT, gif.APPLICATION):
            continue
        last = index + 1
        while last < len(parts) and parts[last].kind == gif.DATA:
            last += 1
        blocks = [raw[each.start : each.start + each.length] for each in parts[index + 1 : last]]
        if part.kind == gif.COMMENT:
            found.add_text("comment", "GIF", b"".join(blocks))
        elif blocks and blocks[0] == _XMP_OF_GIF:
            start = parts[index + 1].start + len(_XMP_OF_GIF)
            end = parts[last - 1].start + parts[last - 1].length
            whole = raw[start:end].split(b"\x01\xff\xfe")[0]  # the trailer that leads block readers out
            found.add_xmp(whole if xmp.is_packet(whole) else b"".join(blocks[1:]))
        elif blocks:
            found.has_c2pa |= blocks[0].startswith(b"C2PA_GIF")


def _read_bmff(raw: bytes, found: _Found) -> None:
    for kind, extents in bmff.items(raw):
        if kind in (b"Exif", b"application/rdf+xml"):
            data = b"".join(raw[part.start : part.start + part.length] for part in extents)
            if kind == b"Exif":
                found.add_exif(data)
            else:
                found.add_xmp(data)
    found.has_c2pa = any(
        box.kind == b"uuid" and raw[box.start : box.start + 16] == bmff.C2PA for box in bmff.boxes(raw)
    )


# --- IPTC-IIM ---------------------------------------------------------------------------------------------------------


def _photoshop_iim(resources: bytes) -> bytes:
    """The IPTC-IIM block (resource 0x0404) among Photoshop's image resources; the whole when it is one already."""
    if resources.startswith(b"\x1c"):
        return resources
    position = 0
    while (position := resources.find(b"8BIM", position)) >= 0 and position + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, position + 4)
        name = resources[position + 6] + 1
        start = position + 6 + name + name % 2
        size = int.from_bytes(resources[start : start + 4], "big")
        if kind == 0x0404:
            return resources[start + 4 : start + 4 + size]
        position = start + 4 + size
    return b""


def _read_iim(block: bytes, found: _Found) -> None:
    """Datasets of record 2 (IPTC IIM 4.2): 0x1C, record, dataset, two bytes of length."""
    position = 0
    while position + 5 <= len(block) and block[position] == 0x1C:
        record, dataset, length = struct.unpack_from(">BBH", block, position + 1)
        if length >= 0x8000:  # extended lengths hold pictures, not text
            return
        if record == 2:
            found.add("iptc", f"2:{dataset:03d}", block[position + 5 : position + 5 + length])
        position += 5 + length
