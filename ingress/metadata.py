"""The one reader of what an image file says about itself: text chunks, EXIF, XMP, IPTC, comments, trailers.

Returns fields with their place and name, bounded in size, and never raises on a damaged file. Does not know what any
field means; decodes no pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from xml.etree.ElementTree import Element, ParseError

import piexif
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from PIL import Image

from formats import jpeg, png, riff
from ingress.pillow import ignore_pillow_warnings

ExifValue: TypeAlias = str | float | bytes | tuple[float, ...]

MAX_FIELD_BYTES: Final = 2**20  # a large ComfyUI graph takes some 100 kB
MAX_TOTAL_BYTES: Final = 8 * 2**20  # all text of one file; also what a zip bomb in zTXt may expand to
MAX_FIELDS: Final = 1024
MAX_APP_BYTES: Final = 4096  # of a JPEG application segment that nobody knows
MAX_EXIF_ENTRIES: Final = 2048
MAX_EXIF_BYTES: Final = 4 * 2**20  # values of all EXIF tags together; a JPEG segment holds 64 kB

# CIPA DC-008 (Exif 3.0) tags that somebody here asks for.
_TAGS: Final = {
    0x010D: "DocumentName", 0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0112: "Orientation",
    0x0131: "Software", 0x0132: "DateTime", 0x013B: "Artist", 0x013C: "HostComputer", 0x8298: "Copyright",
    0x829A: "ExposureTime", 0x829D: "FNumber", 0x8827: "ISO", 0x9003: "DateTimeOriginal", 0x9004: "DateTimeDigitized",
    0x9201: "ShutterSpeedValue", 0x9202: "ApertureValue", 0x920A: "FocalLength", 0x927C: "MakerNote",
    0x9286: "UserComment", 0x9C9B: "XPTitle", 0x9C9C: "XPComment", 0x9C9D: "XPAuthor", 0x9C9E: "XPKeywords",
    0x9C9F: "XPSubject", 0xA002: "PixelXDimension", 0xA003: "PixelYDimension", 0xA431: "BodySerialNumber",
    0xA432: "LensSpecification", 0xA433: "LensMake", 0xA434: "LensModel",
}  # fmt: skip
_GPS_TAGS: Final = {1: "LatitudeRef", 2: "Latitude", 3: "LongitudeRef", 4: "Longitude", 6: "Altitude", 29: "DateStamp"}
_RATIONAL: Final = {
    "ExposureTime", "FNumber", "ShutterSpeedValue", "ApertureValue", "FocalLength", "LensSpecification",
    "Latitude", "Longitude", "Altitude",
}  # fmt: skip
_BINARY: Final = {"MakerNote"}
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # TIFF 6.0 section 2

_RDF: Final = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_EXTENSION: Final = b"http://ns.adobe.com/xmp/extension/\0"
_CONTROL: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


@dataclass(frozen=True, slots=True)
class Field:
    """One text that the file carries."""

    source: str  # png_text | xmp | exif | iptc | comment | app
    name: str  # PNG keyword, EXIF tag, IIM dataset as "2:110", XMP property as "{namespace}name", APP marker
    value: str  # decoded, at most MAX_FIELD_BYTES, otherwise as written: clean() before showing it


@dataclass(frozen=True, slots=True)
class Exif:
    """The tags of IFD0 and the Exif IFD by name, those of the GPS IFD, and the embedded thumbnail."""

    tags: Mapping[str, ExifValue]
    gps: Mapping[str, ExifValue]
    thumbnail: bytes | None = None

    def text(self, name: str) -> str:
        value = self.tags.get(name, "")
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        """First number of a tag; None when absent or not a number (an undefined rational is NaN)."""
        value = self.tags.get(name)
        if isinstance(value, tuple) and value:
            value = value[0]
        return float(value) if isinstance(value, int | float) and value == value else None


@dataclass(frozen=True, slots=True)
class Metadata:
    """Everything found in one file."""

    fields: tuple[Field, ...] = ()
    exif: Exif | None = None
    trailer: bytes = b""  # JPEG: whatever follows the end of the image
    damaged: tuple[str, ...] = ()  # what was there and could not be read: "exif", "xmp"

    def values(self, source: str, name: str) -> Iterator[str]:
        return (each.value for each in self.fields if each.source == source and each.name == name)


@dataclass(slots=True)
class _Found:
    """What a container reader has collected so far, within the limits."""

    fields: list[Field] = field(default_factory=list)
    xmp: list[bytes] = field(default_factory=list)
    photoshop: bytearray = field(default_factory=bytearray)  # grows by every segment: bytes would be copied each time
    iim: bytes = b""
    exif: bytes = b""
    trailer: bytes = b""
    room: int = MAX_TOTAL_BYTES

    def add(self, source: str, name: str, value: bytes | str) -> None:
        value = value[:MAX_FIELD_BYTES]
        if len(self.fields) < MAX_FIELDS and len(value) <= self.room:
            self.room -= len(value)
            self.fields.append(Field(source, name, value if isinstance(value, str) else decode_text(value)))

    def add_xmp(self, packet: bytes) -> None:
        if len(packet) <= self.room:
            self.room -= len(packet)
            self.xmp.append(packet)


def clean(text: object, limit: int = 200) -> str:
    """One line that is safe to show: no control, format or unassigned characters, at most ``limit`` characters."""
    kept = (" " if c.isspace() else c for c in str(text)[: 8 * limit] if c.isspace() or _is_printable(c))
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _is_printable(character: str) -> bool:
    return unicodedata.category(character) not in _CONTROL


def decode_text(data: bytes) -> str:
    """UTF-8 when it is that, otherwise Latin-1, which is what PNG and IIM prescribe and which never fails."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read(raw: bytes, format: str) -> Metadata:
    """Read all metadata of one file.

    Args:
        raw: the file as received, complete or truncated.
        format: Pillow's name of what the bytes decode to; the file's name plays no part.
    """
    found = _Found()
    readers = {"PNG": _read_png, "JPEG": _read_jpeg, "MPO": _read_jpeg, "WEBP": _read_webp, "TIFF": _read_tiff}
    readers.get(format, _read_with_pillow)(raw, found)

    damaged = []
    exif = None
    if found.exif:
        exif = _read_exif(found.exif)
        if exif is None:
            damaged.append("exif")
        else:
            _add_exif_texts(exif, found)
    if not all([_read_xmp(packet, found) for packet in found.xmp]):
        damaged.append("xmp")
    _read_iim(found.iim or _photoshop_iim(bytes(found.photoshop)), found)
    return Metadata(tuple(found.fields), exif, found.trailer, tuple(damaged))


# --- containers -------------------------------------------------------------------------------------------------------


def _read_png(raw: bytes, found: _Found) -> None:
    """Chunks before and after the pixels (PNG 3rd edition, section 5); a truncated last chunk gives what is left."""
    for kind, start, length in png.chunks(raw):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            _add_png_text(kind, raw[start : start + min(length, MAX_TOTAL_BYTES)], found)
        elif kind == b"eXIf":
            found.exif = found.exif or raw[start : start + min(length, MAX_TOTAL_BYTES)]


def _add_png_text(kind: bytes, body: bytes, found: _Found) -> None:
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]  # past the method, the language and the translated keyword
    else:
        compressed = kind == b"zTXt"
        rest = rest[1:] if compressed else rest
    if compressed:
        rest = _inflate(rest, min(found.room, MAX_FIELD_BYTES))
    name = decode_text(keyword[:79])
    if name == "XML:com.adobe.xmp":
        found.add_xmp(rest)
    elif name.startswith("Raw profile type "):
        _add_raw_profile(name.rsplit(" ", 1)[-1], rest, found)
    else:
        found.add("png_text", name, rest)


def _inflate(data: bytes, limit: int) -> bytes:
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(data, max(1, limit))
    return b""


def _add_raw_profile(kind: str, text: bytes, found: _Found) -> None:
    """ImageMagick keeps foreign profiles as hexadecimal text: a name line, a length line, the digits."""
    try:
        profile = bytes.fromhex(text.split(b"\n", 3)[-1].decode("ascii"))
    except ValueError:
        return
    if kind in ("exif", "APP1") and profile.startswith(b"Exif\0\0"):
        found.exif = found.exif or profile[6:]
    elif kind in ("xmp", "APP1"):
        found.add_xmp(profile.removeprefix(_XMP_HEADER))
    elif kind in ("iptc", "8bim"):
        found.photoshop += profile


def _read_jpeg(raw: bytes, found: _Found) -> None:
    """Marker segments (ITU-T T.81 Annex B) up to the end of the first image, and what follows it."""
    extended: dict[bytes, list[tuple[int, bytes]]] = {}
    for kind, start, length in jpeg.segments(raw):
        if kind == jpeg.EOI:
            found.trailer = raw[start:]
        elif jpeg.APP0 <= kind <= jpeg.APP15 or kind == jpeg.COM:
            _add_segment(kind, raw[start : start + length], found, extended)
    for pieces in extended.values():
        found.add_xmp(b"".join(piece for _, piece in sorted(pieces)))


def _add_segment(marker: bytes, body: bytes, found: _Found, extended: dict[bytes, list[tuple[int, bytes]]]) -> None:
    if marker == jpeg.COM:
        found.add("comment", "COM", body)
    elif body.startswith(b"Exif\0"):
        found.exif = found.exif or body[6:]
    elif body.startswith(_XMP_HEADER):
        found.add_xmp(body[len(_XMP_HEADER) :])
    elif body.startswith(_XMP_EXTENSION):  # XMP part 3, 1.1.3.1: GUID, full length, offset, a piece
        head = len(_XMP_EXTENSION)
        offset = int.from_bytes(body[head + 36 : head + 40], "big")
        extended.setdefault(body[head : head + 32], []).append((offset, body[head + 40 :]))
    elif body.startswith(b"Photoshop 3.0\0"):
        found.photoshop += body[14:]
    elif not body.startswith((b"JFIF\0", b"ICC_PROFILE\0", b"Adobe\0", b"MPF\0", b"JP")):  # JP: JUMBF, that is C2PA
        found.add("app", f"APP{marker[0] - jpeg.APP0[0]}", body[:MAX_APP_BYTES])


def _read_webp(raw: bytes, found: _Found) -> None:
    for kind, start, length in riff.chunks(raw):
        body = raw[start : start + min(length, MAX_TOTAL_BYTES)] if kind in (b"EXIF", b"XMP ") else b""
        if kind == b"EXIF":
            found.exif = found.exif or body.removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            found.add_xmp(body)


def _read_tiff(raw: bytes, found: _Found) -> None:
    found.exif = raw
    with _opened(raw) as image:
        tags = getattr(image, "tag_v2", {})
        for tag, name in ((700, "xmp"), (33723, "iim"), (34377, "photoshop")):
            value = tags.get(tag)
            if isinstance(value, bytes):
                found.add_xmp(value) if name == "xmp" else setattr(found, name, value)


def _read_with_pillow(raw: bytes, found: _Found) -> None:
    """AVIF, HEIF, GIF: whatever Pillow's reader hands over without decoding pixels."""
    with _opened(raw) as image:
        info = image.info if image else {}
        exif, xmp, comment = (info.get(name) for name in ("exif", "xmp", "comment"))
        if isinstance(exif, bytes):
            found.exif = exif.removeprefix(b"Exif\0\0")
        if isinstance(xmp, bytes):
            found.add_xmp(xmp)
        if isinstance(comment, bytes):
            found.add("comment", "comment", comment)


@contextlib.contextmanager
def _opened(raw: bytes) -> Iterator[Image.Image | None]:
    """The image with its header read; None when Pillow cannot. Pillow raises almost anything on a damaged header."""
    ignore_pillow_warnings()
    try:
        image = Image.open(io.BytesIO(raw))
    except Exception:  # noqa: BLE001
        yield None
        return
    with image:
        yield image


# --- EXIF -------------------------------------------------------------------------------------------------------------


def _read_exif(tiff: bytes) -> Exif | None:
    """piexif for what is regular, Pillow for the rest; None when neither can, or when it is built to exhaust us."""
    survey = _survey_exif(tiff)
    if survey is None:
        return None
    ignore_pillow_warnings()
    loaders = (_load_with_piexif, _load_with_pillow) if survey else (_load_with_pillow,)
    for load in loaders:
        # piexif fails by struct.error, ValueError, IndexError, KeyError; Pillow by those, SyntaxError and more.
        with contextlib.suppress(Exception):
            return load(tiff)
    return None


def _survey_exif(tiff: bytes) -> bool | None:
    """Walk the IFDs without reading values: False when an entry is irregular, None when reading would be a bomb.

    piexif builds a format string as long as an entry's count (up to 4 GiB) before it looks at the data, and both
    readers would copy one large region once for each of thousands of entries.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    regular, entries, total = True, 0, 0
    pending, seen = [struct.unpack_from(order + "I", tiff, 4)[0]], set[int]()
    while pending:
        start = pending.pop()
        if start in seen or not 8 <= start <= len(tiff) - 2:
            regular = regular and start == 0
            continue
        seen.add(start)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        readable = min(count, (len(tiff) - start - 2) // 12)
        regular = regular and readable == count
        for index in range(readable):
            tag, kind, number, value = struct.unpack_from(order + "HHII", tiff, start + 2 + 12 * index)
            size = _TYPE_BYTES.get(kind, 1) * number
            fits = kind in _TYPE_BYTES and (size <= 4 or value + size <= len(tiff))
            regular = regular and fits
            total += min(size, len(tiff))
            if tag in (_EXIF_IFD, _GPS_IFD, _INTEROP_IFD):
                pending.append(value)
        entries += readable
        if entries > MAX_EXIF_ENTRIES or total > MAX_EXIF_BYTES:
            return None
        after = start + 2 + 12 * count
        if len(seen) == 1 and after + 4 <= len(tiff):  # IFD1 follows IFD0
            pending.append(struct.unpack_from(order + "I", tiff, after)[0])
    return regular


def _load_with_piexif(tiff: bytes) -> Exif:
    ifds = piexif.load(tiff)
    return _exif({**ifds["0th"], **ifds["Exif"]}, ifds["GPS"], ifds["thumbnail"])


def _load_with_pillow(tiff: bytes) -> Exif:
    loaded = Image.Exif()
    loaded.load(b"Exif\0\0" + tiff)
    first, offset, length = loaded.get_ifd(1), 0x0201, 0x0202  # IFD1: JPEGInterchangeFormat and its length
    start, size = first.get(offset, 0), first.get(length, 0)
    thumbnail = tiff[start : start + size] if isinstance(start, int) and isinstance(size, int) else None
    return _exif({**dict(loaded), **loaded.get_ifd(_EXIF_IFD)}, loaded.get_ifd(_GPS_IFD), thumbnail)


def _exif(tags: Mapping[int, Any], gps: Mapping[int, Any], thumbnail: bytes | None) -> Exif:
    named = {_TAGS[tag]: _plain(_TAGS[tag], value) for tag, value in tags.items() if tag in _TAGS}
    placed = {_GPS_TAGS[tag]: _plain(_GPS_TAGS[tag], value) for tag, value in gps.items() if tag in _GPS_TAGS}
    return Exif(MappingProxyType(named), MappingProxyType(placed), thumbnail or None)


def _plain(name: str, value: Any) -> ExifValue:
    if name == "UserComment" and isinstance(value, bytes):
        return _user_comment(value)
    if name.startswith("XP"):
        return bytes(value).decode("utf-16-le", "replace").rstrip("\0")
    if isinstance(value, bytes):
        return value if name in _BINARY else decode_text(value).strip("\0 \t\r\n")
    if isinstance(value, str):
        return value.encode("utf-8", "replace") if name in _BINARY else value.strip("\0 \t\r\n")
    if name in _RATIONAL:
        return _rational(value)
    if isinstance(value, tuple):
        return tuple(float(each) for each in value)
    return float(value)


def _rational(value: Any) -> ExifValue:
    """A float, or a tuple of them; x/0 is NaN. piexif gives (n, d) pairs, Pillow numbers."""
    if not isinstance(value, tuple):
        return float(value)
    if len(value) == 2 and all(isinstance(part, int) for part in value):
        return value[0] / value[1] if value[1] else float("nan")
    return tuple(_first(_rational(part)) for part in value)


def _first(value: ExifValue) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _user_comment(value: bytes) -> str:
    """Exif 3.0, 4.6.5: eight bytes name the character code. Writers disagree on UNICODE's byte order."""
    code, body = value[:8], value[8:]
    if code.startswith(b"UNICODE"):
        # ASCII text in UTF-16 has its zero bytes first in big-endian order.
        order = "utf-16-be" if body[:64:2].count(0) > body[1:64:2].count(0) else "utf-16-le"
        return body.decode(order, "replace").strip("\ufeff\0 ")
    if code.startswith((b"ASCII", b"JIS")) or not code.strip(b"\0 "):
        return decode_text(body).strip("\0 ")
    return decode_text(value).strip("\0 ")


def _add_exif_texts(exif: Exif, found: _Found) -> None:
    for name, value in exif.tags.items():
        if isinstance(value, str) and value:
            found.add("exif", name, value)
    note = exif.tags.get("MakerNote")
    if isinstance(note, bytes):
        found.add("exif", "MakerNote", note[:MAX_APP_BYTES])


# --- XMP and IPTC-IIM -------------------------------------------------------------------------------------------------


def _read_xmp(packet: bytes, found: _Found) -> bool:
    """Add every property of one packet; False when it is not well-formed or declares a DTD.

    A property of the image is named "{namespace}name"; one inside a structure (an ingredient, an edit in the
    history) is named by its whole path, so that nothing said about another file is taken for this one.
    """
    if len(packet) > 4 * MAX_FIELD_BYTES:
        return False
    try:
        root = fromstring(packet.strip(b"\0 \r\n\t"), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return False
    for name, value in _xmp_properties(root):
        found.add("xmp", name, value)
    return True


def _xmp_properties(root: Element) -> Iterator[tuple[str, str]]:
    pending: list[tuple[Element, tuple[str, ...]]] = [(root, ())]
    while pending:
        element, path = pending.pop()
        if not (element.tag.startswith(_RDF) or element.tag == "{adobe:ns:meta/}xmpmeta"):
            path = (*path, element.tag)
        if len(path) > 8:  # deeper than any schema
            continue
        if path and element.text and element.text.strip():
            yield "/".join(path), element.text.strip()
        for name, value in element.attrib.items():
            if name == _RDF + "resource":
                yield "/".join(path), value
            elif name.startswith("{") and not name.startswith((_RDF, "{http://www.w3.org/XML/", "{adobe:ns:meta/}")):
                yield "/".join((*path, name)), value
        pending.extend((child, path) for child in reversed(element))


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
