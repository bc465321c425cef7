"""What a file is by its bytes: the format that will be decoded, or the true name of what is refused."""

from __future__ import annotations

import re
import zlib
from typing import Final

from formats import jpeg, tiff
from utils.errors import NotAnImage, UnsupportedFormat

_FORMATS: Final = (  # start of file -> Pillow's name for what we decode; ISO media, WebP and BMP need a second look
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADER_SIZES: Final = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

_GZIP: Final = "gzip"
_OTHERS: Final = (  # start of file -> what we call it when we refuse it, or find it after the image
    (b"%!PS", "EPS/PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS/PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop PSD"),
    (b"gimp xcf", "GIMP XCF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"\0\0\1\0", "Windows icon"),
    (b"icns", "Apple icon (ICNS)"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"AT&TFORM", "DjVu"),
    (b"SDPX", "DPX"),
    (b"XPDS", "DPX"),
    (b"/* XPM */", "XPM"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"DDS ", "DDS texture"),
    (b"\xabKTX", "KTX texture"),
    (b"\xd7\xcd\xc6\x9a", "Windows metafile (WMF)"),
    (b"\1\0\x09\0\0\3", "Windows metafile (WMF)"),
    (b"FUJIFILMCCD-RAW", "camera raw (Fujifilm RAF)"),
    (b"IIU\0", "camera raw (Panasonic RW2)"),
    (b"IIRO", "camera raw (Olympus ORF)"),
    (b"IIRS", "camera raw (Olympus ORF)"),
    (b"MMOR", "camera raw (Olympus ORF)"),
    (b"\0MRM", "camera raw (Minolta MRW)"),
    (b"FOVb", "camera raw (Sigma X3F)"),
    (b"II\x1a\0\0\0HEAPCCDR", "camera raw (Canon CRW)"),
    (b"\0\5\x16\7", "side file of macOS (AppleDouble)"),
    (b"\0\0\0\1Bud1", "side file of macOS (.DS_Store)"),
    (b"\xd0\xcf\x11\xe0", "OLE document"),
    (b"\x1aE\xdf\xa3", "Matroska/WebM video"),
    (b"PK\3\4", "ZIP"),
    (b"Rar!", "RAR"),
    (b"7z\xbc\xaf", "7-Zip"),
    (b"\x1f\x8b", _GZIP),
    (b"\x7fELF", "ELF program"),
    (b"MZ", "Windows program"),
)
_HEAD_BYTES: Final = 4096  # of a file, or of what is packed in it, that its name is looked for in
_SIDE_FILE: Final = "side file of macOS"
_NO_IMAGES: Final = ("text", "HTML", "XML", "zeros", "unknown data")
_NETPBM: Final = re.compile(rb"P[1-6]\s+(#|\d)|P7\nWIDTH|P[fF]\n\d")

_CFA, _LINEAR_RAW = 32803, 34892  # PhotometricInterpretation: TIFF/EP, DNG 1.7
_RAW_COMPRESSIONS: Final = {32767: "Sony ARW", 32769: "packed", 32770: "Samsung SRW", 34713: "Nikon NEF", 65535: "PEF"}
_RAW_MAKERS: Final = (  # start of the Make tag -> the ending that its raw files have
    (b"NIKON", "Nikon NEF"),
    (b"SONY", "Sony ARW"),
    (b"PENTAX", "Pentax PEF"),
    (b"Canon", "Canon CR2"),
    (b"SAMSUNG", "Samsung SRW"),
    (b"Hasselblad", "Hasselblad 3FR"),
)
_TIFF_COMPRESSIONS: Final = {
    32809: "ThunderScan", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000",
    34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv", 34712: "JPEG 2000", 34887: "LERC",
    34892: "lossy DNG", 34934: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_FLOAT: Final = 3  # SampleFormat

_JPEG_PROCESSES: Final = {  # second byte of the SOF marker -> processes of T.81 and T.87 that our decoder lacks
    b"\xc3": "lossless JPEG",
    b"\xc5": "hierarchical JPEG",
    b"\xc6": "hierarchical JPEG",
    b"\xc7": "hierarchical lossless JPEG",
    b"\xcb": "lossless JPEG (arithmetic coding)",
    b"\xcd": "hierarchical JPEG (arithmetic coding)",
    b"\xce": "hierarchical JPEG (arithmetic coding)",
    b"\xcf": "hierarchical JPEG (arithmetic coding)",
    b"\xf7": "JPEG-LS",
}
_SUPPORTED_SOF: Final = (jpeg.SOF0, jpeg.SOF1, jpeg.SOF2, b"\xc9", b"\xca")


def supported_format(raw: bytes) -> str:
    """Pillow's name of the one format that will be tried.

    Raises:
        UnsupportedFormat: an image or document that we know and do not decode.
        NotAnImage: anything else.
    """
    kind = _format(raw)
    variant = {"JPEG": _jpeg_variant, "PNG": _png_variant, "TIFF": _tiff_variant}.get(kind)
    found = variant(raw) if variant else ""
    if kind == "HEIF":
        _register_heif()
    if kind and not found:
        return kind
    found = found or describe(raw[:_HEAD_BYTES])
    if found in _NO_IMAGES or found.startswith(_SIDE_FILE):
        raise NotAnImage(f"{found}, not an image; give the address or the bytes of the image itself")
    raise unsupported(found)


def unsupported(what: str) -> UnsupportedFormat:
    """The refusal of a format or a variant of one by its name."""
    return UnsupportedFormat(f"{what} is not supported; convert it to PNG or JPEG first")


def _format(raw: bytes) -> str:
    for magic, kind in _FORMATS:
        if raw.startswith(magic):
            return kind
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "WEBP"
    if raw.startswith(b"BM") and int.from_bytes(raw[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if raw[4:8] == b"ftyp":
        brands = raw[8 : min(256, int.from_bytes(raw[:4], "big"))]
        if brands[:4] in (b"avif", b"avis") or (brands[:4] in (b"mif1", b"msf1") and b"avi" in brands):
            return "AVIF"
        if brands[:4] in _HEIF_BRANDS:
            return "HEIF"
    return ""


def describe(head: bytes) -> str:
    """Name what some bytes look like, for a message."""
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return _describe_packed(head) if name == _GZIP else name
    if kind := _format(head):
        return kind
    if head[4:8] == b"ftyp":
        return "camera raw (Canon CR3)" if head[8:12] == b"crx " else "MP4/QuickTime video"
    if not head.strip(b"\0"):
        return "zeros"
    return _describe_header(head) or _describe_text(_plain(head))


def _describe_header(head: bytes) -> str:
    """Formats whose first bytes alone would say too little; empty when it is none of them."""
    if head[40:44] == b" EMF" and head[:4] == b"\1\0\0\0":
        return "Windows metafile (EMF)"
    if head[128:132] == b"DICM":
        return "DICOM"
    if _NETPBM.match(head):
        return "PPM/PGM/PBM (Netpbm)"
    head = head[:18].ljust(18, b"\0")
    if head[0] == 10 and head[1] in (0, 2, 3, 4, 5) and head[2] <= 1 and head[3] in (1, 2, 4, 8):
        return "PCX"
    if head[:2] == b"\1\xda" and head[2] <= 1 and head[3] in (1, 2):
        return "SGI image"
    if head[:4] == b"\0\0\2\0" and 1 <= int.from_bytes(head[4:6], "little") <= 64:
        return "Windows cursor"
    return "TGA" if _is_tga(head) else ""


def _is_tga(head: bytes) -> bool:
    """TGA has no signature at its start: every field of its header must be a usual one (Truevision TGA 2.0)."""
    has_palette, kind, depth = head[1], head[2] & ~8, head[16]
    sides = int.from_bytes(head[12:14], "little"), int.from_bytes(head[14:16], "little")
    palette = (head[7] in (15, 16, 24, 32) and depth == 8) if has_palette else not any(head[3:8])
    known = (has_palette, kind) in ((1, 1), (0, 2), (0, 3)) and depth in ((8, 16) if kind == 3 else (8, 15, 16, 24, 32))
    return known and palette and min(sides) > 0 and head[2] <= 11 and not head[17] & 0xC0


def _describe_packed(head: bytes) -> str:
    """SVG is often stored as gzip (SVGZ); whatever else is packed goes by its wrapper's name."""
    try:
        inside = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
    except zlib.error:
        return _GZIP
    return "SVGZ (SVG packed with gzip)" if _describe_text(_plain(inside)) == "SVG" else _GZIP


def _plain(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()


def _describe_text(text: bytes) -> str:
    is_markup = text.startswith((b"<?xml", b"<!--", b"<!doctype svg", b"<svg"))
    if is_markup and b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if is_markup:
        return "XML"
    printable = sum(byte >= 32 or byte in b"\t\n\r\f" for byte in text)
    return "text" if text and printable == len(text) and text.isascii() else "unknown data"


def _register_heif() -> None:
    try:
        import pillow_heif  # an optional extra: libheif and libde265 are LGPL
    except ImportError as error:
        raise UnsupportedFormat("HEIC needs one more package: pip install pillow-heif") from error
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)


# ------------------------------------------------------- legal files of a format we decode, in a variant that we do not


def _png_variant(raw: bytes) -> str:
    return "PNG optimised for iPhones (Apple CgBI)" if raw[12:16] == b"CgBI" else ""


def _jpeg_variant(raw: bytes) -> str:
    """From the first frame header; empty when we decode it, or when there is none."""
    for part in jpeg.segments(raw):
        if part.kind in _JPEG_PROCESSES:
            return _JPEG_PROCESSES[part.kind]
        if part.kind in _SUPPORTED_SOF:
            precision, high, low = raw[part.start : part.start + 3] if part.length >= 6 else (8, 0, 1)
            if precision == 12:
                return "12-bit JPEG"
            return "" if high or low else "JPEG that gives its height at its end (DNL)"
        if part.kind in (jpeg.SOS, jpeg.EOI):
            return ""
    return ""


def _tiff_variant(raw: bytes) -> str:
    """Camera raw by its maker, or how the largest page is stored; empty when we decode it."""
    if raw[8:10] == b"CR":
        return "camera raw (Canon CR2)"
    pages = tiff.pages(raw)
    for page in pages:
        if tiff.DNG_VERSION in page.entries:
            return "camera raw (DNG)"
        compression = page.number(tiff.COMPRESSION)
        if page.number(tiff.PHOTOMETRIC) in (_CFA, _LINEAR_RAW) or compression in _RAW_COMPRESSIONS:
            return f"camera raw ({_raw_maker(pages[0]) or _RAW_COMPRESSIONS.get(compression, 'TIFF/EP')})"
    largest = tiff.largest_page(raw)
    return _unusual_samples(largest) if largest else ""


def _raw_maker(page: tiff.Page) -> str:
    entry = page.entries.get(tiff.MAKE)
    maker = page.raw[entry.start : entry.start + 32] if entry else b""
    return next((name for start, name in _RAW_MAKERS if maker.upper().startswith(start.upper())), "")


def _unusual_samples(page: tiff.Page) -> str:
    if compression := _TIFF_COMPRESSIONS.get(page.number(tiff.COMPRESSION, 1)):
        return f"TIFF with {compression} compression"
    bits, samples = page.number(tiff.BITS, 1), page.number(tiff.SAMPLES, 1)
    if page.number(tiff.SAMPLE_FORMAT, 1) == _FLOAT and (bits != 32 or samples != 1):
        return f"TIFF with {samples} channels of {bits}-bit floating-point numbers"
    if bits > 8 and samples > 1 and page.number(tiff.PLANAR, 1) == 2:  # Pillow reads stripes of other channels
        return f"planar TIFF with {bits} bits per channel"
    return ""


def tiff_storage(raw: bytes) -> str:
    """How the largest page is stored, for a refusal; empty when the file is damaged instead.

    For a TIFF whose header the decoder refuses: it is legal when its first strips or tiles lie in the file.
    """
    page = tiff.largest_page(raw)
    if page is None:
        return ""
    starts = page.numbers(tiff.STRIP_OFFSETS, most=16) or page.numbers(tiff.TILE_OFFSETS, most=16)
    if not starts or not all(8 <= start < len(raw) for start in starts):
        return ""
    bits = ", ".join(map(str, page.numbers(tiff.BITS, most=8))) or "1"
    return (
        f"TIFF of this kind (compression {page.number(tiff.COMPRESSION, 1)}, photometric "
        f"{page.number(tiff.PHOTOMETRIC)}, bits {bits}, sample format {page.number(tiff.SAMPLE_FORMAT, 1)})"
    )
