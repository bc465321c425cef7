"""Bytes to pixels: one hostile-safe decode, shared by every detector and forensic feature.

It does not know where the bytes came from, what the pixels will be used for, or how memory and time are limited
(ingress/sandbox.py does that), or how containers are built (formats/containers.py). Pillow decodes; ours is what Pillow
leaves open: what is refused from the header alone, how a damaged file is still read, and how every mode becomes 8-bit
sRGB.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from formats import png
from formats.containers import Layout, declared_size, find_layout
from formats.kinds import describe, supported_format, tiff_storage, unsupported
from ingress.pillow import ignore_pillow_warnings
from utils.contracts import RgbArray, Sample, orient
from utils.errors import (
    DecoderKilled,
    EmptyInput,
    FileMissing,
    ImageTooLarge,
    NotAnImage,
    TooManyBytes,
    Undecodable,
)

# NovelAI hides its stealth record in the lowest bit of alpha (254 or 255) and signs the RGB under it, so pixels that
# are opaque to the eye stay as stored. 250 leaves room for rounding encoders; blending there moves RGB by at most 2 %.
_OPAQUE = 250

_BAND_PIXELS = 1 << 20  # pixels converted at a time: temporaries stay at a few MiB whatever the image
_ICC_BYTES = 4 << 20  # the largest CMYK press profiles in circulation are below 3 MiB
_FRAME_PIXELS = 1 << 16  # what moving on by one frame costs at least; measured: 40-90 us, as long as decoding 256 x 256
_RLE_PIXELS = 1 << 22  # Pillow expands run-length BMP in Python: 0.4 us per pixel at worst
_EXIF_BYTES = 1 << 20  # JPEG allows 64 KiB

# What Pillow's plugins raise on mutated files (scripts/fuzz.py). MemoryError is not among them: it says nothing about
# the file.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost; the settings of the same names."""

    max_bytes: int
    max_pixels: int
    max_frames: int
    max_animation_pixels: int


# Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever. Windows has a text mode instead.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        FileMissing: there is none, it may not be read, or it is a folder.
        NotAnImage: it is a pipe or a device.
        TooManyBytes: known before reading; counted again while reading, because files grow.
    """
    try:
        descriptor = os.open(path, _READ)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise FileMissing(f"cannot read {path}: {reason}; check the path") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise FileMissing(
                f"{path} is a folder: name an image file, or on the command line a folder that holds some"
            )
        if not stat.S_ISREG(status.st_mode):
            raise NotAnImage(f"{path} is a pipe or a device, not a file; use - to read standard input")
        if status.st_size > max_bytes:
            raise _too_many_bytes(f"{status.st_size:,}", max_bytes)
        with open(descriptor, "rb", closefd=False) as file:
            return read_stream(file, max_bytes)
    finally:
        os.close(descriptor)


def read_stream(stream: IO[bytes], max_bytes: int) -> bytes:
    """Read to the end, or refuse at the first byte over the limit.

    Raises:
        TooManyBytes: there is more.
    """
    raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise _too_many_bytes("more", max_bytes)
    return raw


def _too_many_bytes(found: str, limit: int) -> TooManyBytes:
    return TooManyBytes(f"{found} bytes where {limit:,} are allowed; IMGV_MAX_BYTES sets the limit")


def decode(raw: bytes, source: str, limits: Limits) -> Sample:
    """Decode one image; the same bytes give the same Sample.

    A file that is damaged but still shows something is decoded as far as it goes and flagged ``truncated``. Memory
    peaks near 7 bytes per pixel for PNG and baseline JPEG: Pillow's 4 and our 3, never a further whole copy.

    Args:
        raw: the file as received.
        source: a name for people; never opened.

    Raises:
        EmptyInput, TooManyBytes, NotAnImage, UnsupportedFormat, ImageTooLarge, Undecodable: as named.
        DecoderKilled: memory ran out.
    """
    if not raw:
        raise EmptyInput("0 bytes: the file is empty; send the image again")
    if len(raw) > limits.max_bytes:
        raise _too_many_bytes(f"{len(raw):,}", limits.max_bytes)
    ignore_pillow_warnings()
    kind = supported_format(raw)
    try:
        return _decode(raw, source, kind, limits)
    except MemoryError as error:
        raise DecoderKilled("not enough memory to decode this image") from error


def _decode(raw: bytes, source: str, kind: str, limits: Limits) -> Sample:
    layout = find_layout(raw, kind)
    lines: list[str] = []
    image, orientation, truncated = _open_and_load(raw, kind, limits, lines)
    mode = image.mode
    try:
        rgb, alpha = _to_srgb(image, _icc_transform(image, lines))
    except _PILLOW_ERRORS as error:
        raise Undecodable(f"{kind} pixels of mode {mode} cannot be converted") from error
    if truncated and (rgb.min(axis=(0, 1)) == rgb.max(axis=(0, 1))).all():
        raise Undecodable(f"damaged {kind}: no pixels could be decoded")
    if kind == "TIFF" and orientation > 1 and _orientation(image) == 1:
        # Pillow turned it upright while loading; we turn it back, so that pixels are as stored in every format.
        back = {6: 8, 8: 6}.get(orientation, orientation)
        rgb, alpha = orient(rgb, back), None if alpha is None else orient(alpha, back)
    if converted := _conversion(raw, kind, mode):
        lines.append(converted)
    frame_count = _frame_count(image, kind, layout, lines)
    frames = _sample_frames(image, frame_count, limits, lines) if frame_count > 1 else ()
    trailing = max(0, len(raw) - layout.end) if layout.end else 0
    if trailing:
        lines.append(f"{trailing:,} bytes after the end of the image ({describe(raw[layout.end : layout.end + 4096])})")
    return Sample(
        source=source,
        raw=raw,
        rgb=rgb,
        format=str(image.format),
        mode=mode,
        orientation=orientation,
        alpha=alpha,
        frames=frames,
        frame_count=frame_count,
        trailing_bytes=trailing,
        truncated=truncated,
        warnings=tuple(lines),
    )


# ------------------------------------------------------------------------------------------------- bytes to an image


def _open_and_load(raw: bytes, kind: str, limits: Limits, lines: list[str]) -> tuple[Image.Image, int, bool]:
    """Open, check against the limits, load; where that fails, once more on mended bytes.

    Pillow's own tolerant mode is a process-wide flag that other threads would see, and it would hide that the file is
    damaged. Mending the bytes (an end marker for JPEG, pixel chunks alone for PNG) needs neither.

    Returns:
        The loaded image, its EXIF orientation, and whether pixels are missing. ``lines`` gains warnings.
    """
    try:
        image = _open(raw, kind, limits)
    except Undecodable:
        if kind != "PNG":
            raise
        raw = _png_pixels_only(raw)
        image = _open(raw, kind, limits)
        lines.append("metadata before the pixels is damaged or too large; decoded without it")
    orientation = _orientation(image) if kind == "TIFF" else 1  # loading a TIFF forgets it
    truncated = _load(image, lines)
    if truncated and kind == "JPEG":
        # libjpeg holds back the last rows, and all of a progressive file, until it sees an end.
        image = _open(raw + b"\xff\xd9", kind, limits)
        _load(image, lines)
    if truncated:
        lines.append("truncated or damaged file: decoded as far as it goes")
    if kind != "TIFF":
        orientation = _orientation(image)
    return image, orientation, truncated


def _open(raw: bytes, kind: str, limits: Limits) -> Image.Image:
    """Read the header only; refuse what is too large before a pixel is decoded."""
    _check_size(declared_size(raw, kind), limits.max_pixels)
    try:
        image = Image.open(io.BytesIO(raw), formats=[kind])
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than Pillow's own limit, {2 * (Image.MAX_IMAGE_PIXELS or 0):,}") from error
    except _PILLOW_ERRORS as error:
        if kind == "TIFF" and (storage := tiff_storage(raw)):
            raise unsupported(storage) from error
        raise Undecodable(f"damaged {kind}: its header cannot be read") from error
    _check_size(image.size, limits.max_pixels)
    if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
        pixels = image.width * image.height
        if pixels > _RLE_PIXELS:
            raise ImageTooLarge(f"{pixels:,} pixels where {_RLE_PIXELS:,} are allowed in a run-length BMP")
        if len(raw) > 4 * pixels + 65536:  # at worst 2 bytes per pixel
            raise Undecodable("a run-length BMP that is longer than its pixels need")
    return image


def _check_size(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise ImageTooLarge(
            f"{width:,} x {height:,} pixels where {limit:,} are allowed; IMGV_MAX_PIXELS sets the limit"
        )


def _load(image: Image.Image, lines: list[str]) -> bool:
    """Decode the pixels in place; True when some are missing.

    Raises:
        Undecodable: the decoder gave no image at all.
    """
    try:
        image.load()
    except _PILLOW_ERRORS as error:
        # A PNG whose tile list is already empty has all its pixels: what failed was a chunk behind them.
        complete = image.format == "PNG" and not getattr(image, "tile", None)
        # Rows decoded before the error stay in the image; without tiles Pillow takes it as loaded.
        image.tile = []  # type: ignore[attr-defined]
        try:
            image.load()
        except _PILLOW_ERRORS:
            raise Undecodable(f"damaged {image.format}: its pixels cannot be decoded") from error
        if complete:
            lines.append("metadata after the pixels is damaged or too large")
        return not complete
    return False


def _png_pixels_only(raw: bytes) -> bytes:
    """The chunks that make pixels, with fresh checksums; drops text, profile, EXIF and animation."""
    parts = [raw[:8]]
    for name, start, length in png.chunks(raw):
        is_whole = start + length + png.CRC_BYTES <= len(raw)
        if name == b"IDAT" or (name in (b"IHDR", b"PLTE", b"tRNS") and is_whole):
            data = raw[start : start + length]
            parts.append(struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join((*parts, b"\0\0\0\0IEND\xaeB`\x82"))


def _orientation(image: Image.Image) -> int:
    if len(image.info.get("exif") or b"") > _EXIF_BYTES:
        return 1
    try:
        value = image.getexif().get(0x0112)
    except _PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# -------------------------------------------------------------------------------------------- an image to 8-bit sRGB


def _to_srgb(
    image: Image.Image, transform: ImageCms.ImageCmsTransform | None
) -> tuple[RgbArray, NDArray[np.uint8] | None]:
    """Any mode of Pillow to RGB (H x W x 3) and alpha (H x W, or None), band by band to bound temporaries.

    RGB is straight where alpha is as good as opaque everywhere, else composited over white, as most viewers show it.
    """
    width, height = image.im.size  # of a damaged TIFF, image.size may already be turned while the pixels are not
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if image.has_transparency_data else None
    levels = _levels(image)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(height, top + rows)))
        if alpha is not None:
            band = _with_alpha(band)
            alpha[top : top + rows] = np.asarray(band.getchannel("A"))
        rgb[top : top + rows] = _band_to_rgb(band, levels, transform)
    if alpha is not None and alpha.min() < _OPAQUE:
        for top in range(0, height, rows):
            opacity = alpha[top : top + rows, :, None].astype(np.uint16)
            straight = rgb[top : top + rows].astype(np.uint16)
            rgb[top : top + rows] = (straight * opacity + 255 * (255 - opacity) + 127) // 255
    return rgb, alpha


def _conversion(raw: bytes, kind: str, mode: str) -> str:
    """What the pixels lost on the way to 8-bit sRGB, for a person; empty when nothing to speak of."""
    if mode.startswith("I") or mode == "F" or (kind == "PNG" and raw[24:25] == b"\x10"):  # IHDR's bit depth
        return "more than 8 bits per channel: judged at 8"
    return f"{mode} colours: judged after conversion to sRGB" if mode in ("CMYK", "LAB") else ""


def _with_alpha(band: Image.Image) -> Image.Image:
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(band.mode)
    band = band.convert(premultiplied) if premultiplied else band
    return band if band.mode in ("LA", "RGBA") else band.convert("RGBA")


def _band_to_rgb(
    band: Image.Image, levels: tuple[float, float] | None, transform: ImageCms.ImageCmsTransform | None
) -> NDArray[np.uint8]:
    if levels is not None:
        low, high = levels
        # NaN goes first: casting a signalling one raises a warning.
        values = np.nan_to_num(np.asarray(band), nan=low, posinf=high, neginf=low).astype(np.float64)
        scaled = (values - low) * (255 / (high - low or 1))
        return np.broadcast_to(np.clip(scaled + 0.5, 0, 255).astype(np.uint8)[..., None], (*values.shape, 3))
    if transform is not None:
        base = _colour_model(band.mode)
        band = ImageCms.applyTransform(band if band.mode == base else band.convert(base), transform) or band
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """The values that become black and white in an image of more than 8 bits per sample; None for 8 bits.

    16-bit files have a fixed scale. Integer and floating-point TIFF do not say theirs, so it is the smallest usual
    white (1, 255, 65535) that holds every value, or the image's own range.
    """
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258)  # BitsPerSample
        return 0.0, 4095.0 if bits == (12,) else 65535.0
    if image.mode not in ("I", "F"):
        return None
    low, high = np.inf, -np.inf
    width, height = image.im.size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = np.asarray(image.crop((0, top, width, min(height, top + rows))))
        finite = band[np.isfinite(band)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < 0:
        return low, high
    return 0.0, next((white for white in (1.0, 255.0, 65535.0) if high <= white), high)


def _colour_model(mode: str) -> str:
    return mode if mode in ("CMYK", "LAB") else "L" if mode in ("1", "L", "LA", "La") else "RGB"


def _icc_transform(image: Image.Image, lines: list[str]) -> ImageCms.ImageCmsTransform | None:
    """From the embedded profile to sRGB; None when there is no profile, it is unusable, or it is sRGB already."""
    model = _colour_model(image.mode)
    profile: bytes = image.info.get("icc_profile") or b""
    if image.mode.startswith(("I", "F")) or not (profile or model == "LAB"):
        return None
    if len(profile) > _ICC_BYTES:
        lines.append(f"ICC profile of {len(profile):,} bytes ignored")
        return None
    try:
        source = ImageCms.createProfile("LAB") if model == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), model, "RGB")
        return None if model == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, *_PILLOW_ERRORS):
        lines.append("unusable ICC profile ignored")
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB profile is sRGB under whatever name, tested on 729 colours: rounding must not touch the pixels."""
    steps = np.linspace(0, 255, 9, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return int(np.abs(converted.astype(np.int16) - colours).max()) <= 2  # measured 0-1 for the sRGB profiles in use


# -------------------------------------------------------------------------------------------------------- animation


def _frame_count(image: Image.Image, kind: str, layout: Layout, lines: list[str]) -> int:
    """Frames of an animation. Further pages or views (TIFF, MPO, HEIF) are other pictures, not frames."""
    if kind == "GIF" or (kind == "PNG" and getattr(image, "is_animated", False)):
        return layout.frames
    if kind in ("WEBP", "AVIF"):
        return int(getattr(image, "n_frames", 1))
    if getattr(image, "is_animated", False):
        lines.append("holds further pages or views; judged on the first")
    return 1


def most_frames(pixels: int, count: int, limits: Limits) -> int:
    """Frames of an animation that are kept and judged: together no more pixels than the largest still may have.

    Args:
        pixels: of one frame.
    """
    return max(1, min(limits.max_frames, count, limits.max_pixels // pixels))


def _sample_frames(image: Image.Image, count: int, limits: Limits, lines: list[str]) -> tuple[RgbArray, ...]:
    """Frames after the first, evenly spread over those within the limit's reach; all of the first's size."""
    size = image.size
    reach = max(1, min(count, limits.max_animation_pixels // max(size[0] * size[1], _FRAME_PIXELS)))
    wanted = np.linspace(0, reach - 1, most_frames(size[0] * size[1], reach, limits)).round().astype(int)
    frames: list[RgbArray] = []
    for number in wanted[1:]:
        try:
            image.seek(int(number))
            image.load()
        except _PILLOW_ERRORS:
            lines.append(f"the animation is damaged before frame {number + 1:,}")
            break
        if image.size == size:  # a GIF grows when a later frame sticks out
            frames.append(_to_srgb(image, _icc_transform(image, []))[0])
    of_the_first = f"of the first {reach:,}" if reach < count else f"of {count:,}"
    lines.append(f"animated: {count:,} frames, judged on {1 + len(frames)} {of_the_first}")
    return tuple(frames)
