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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from formats import png, tiff
from formats.containers import Layout, declared_size, find_layout
from formats.kinds import describe, supported_format, tiff_storage, unsupported
from ingress.colours import conversion, icc_transform, to_srgb
from ingress.damage import (
    Damage,
    anywhere,
    blanked,
    bmp_damage,
    gap_damage,
    has_gaps,
    jpeg_damage,
    padded,
    png_is_sound,
    png_part,
    tiff_damage,
    unwritten,
)
from ingress.in_step import avif_is_in_step, gif_is_in_step, webp_is_in_step
from ingress.metadata import read as read_metadata
from ingress.pillow import PILLOW_ERRORS, ignore_pillow_warnings
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

_JPEG_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")  # libjpeg's warnings that cost pixels
_FRAME_PIXELS = 1 << 16  # what moving on by one frame costs at least; measured: 40-90 us, as long as decoding 256 x 256
_RLE_PIXELS = 1 << 22  # Pillow expands run-length BMP in Python: 0.4 us per pixel at worst
_EXIF_BYTES = 1 << 20  # JPEG allows 64 KiB


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost; the settings of the same names."""

    max_bytes: int
    max_pixels: int
    max_frames: int
    max_animation_pixels: int


# Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever. Windows has a text mode instead.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: Path, max_bytes: int, below: Path | None = None) -> bytes:
    """Read a regular file.

    Args:
        below: a folder that must hold it, without any link on the way: both paths absolute, without links themselves.

    Raises:
        FileMissing: there is none, it may not be read, or it is a folder.
        NotAnImage: it is a pipe or a device.
        TooManyBytes: known before reading; counted again while reading, because files grow.
    """
    try:
        descriptor = os.open(path, _READ) if below is None else _open_below(below, path)
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


def _open_below(folder: Path, path: Path) -> int:
    """Open step by step, each in the folder opened before: whoever may write there could swap a folder for a link
    between a look at the path and its use.
    """
    if os.open not in os.supports_dir_fd:  # Windows
        return os.open(path, _READ)
    *folders, name = path.relative_to(folder).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for each in folders:
            before, at = at, os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(before)
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


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

    A file that is damaged but still shows something is decoded as far as it goes, flagged ``truncated``, and cut down
    to the rows that can be trusted. Memory peaks near 7 bytes per pixel for PNG: Pillow's 4 and our 3, never a further
    whole copy; JPEG needs 3.

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


@dataclass(slots=True)
class _Picture:
    """One opened image on its way to pixels."""

    image: Image.Image  # header, profile and EXIF; the pixels too, unless ``loaded`` has them
    loaded: NDArray[np.uint8] | None = None  # of a JPEG: H x W x 3, or H x W
    orientation: int = 1
    truncated: bool = False
    damage: Damage | None = None
    height: int | None = None  # of the whole picture, where the image that was loaded is a part of it
    interlaced: bool = False  # of a GIF


def _decode(raw: bytes, source: str, kind: str, limits: Limits) -> Sample:
    lines: list[str] = []
    page = _judged_page(raw, lines) if kind == "TIFF" else raw
    layout = find_layout(page, kind)
    picture = _LOADERS.get(kind, _load_other)(page, kind, limits, lines)
    image = picture.image
    rgb, alpha = _converted(picture, kind, lines)
    damage = picture.damage
    if picture.truncated and damage is None and kind in ("GIF", "TIFF", "BMP"):
        damage = unwritten(rgb, kind == "BMP", picture.interlaced)
    whole = picture.height or len(rgb)
    if damage and damage.missing:
        rows = damage.trusted
        if damage.is_hopeless or _is_flat(rgb[rows]):
            raise Undecodable(f"damaged {kind}: no pixels could be decoded")
        if rows != slice(0, len(rgb)):
            rgb, alpha = rgb[rows].copy(), None if alpha is None else alpha[rows].copy()
    if picture.truncated or damage:
        lines.append(_told(damage, whole))
    lines += conversion(raw, kind, image.mode)
    frame_count = _frame_count(image, kind, layout, lines)
    frames = _sample_frames(image, frame_count, limits, lines) if frame_count > 1 and len(rgb) == whole else ()
    trailing = max(0, len(raw) - layout.end) if layout.end else 0
    if trailing:
        lines.append(f"{trailing:,} bytes after the end of the image ({describe(raw[layout.end : layout.end + 4096])})")
    return Sample(
        source=source,
        raw=raw,
        rgb=rgb,
        format=str(image.format),
        mode=image.mode,
        orientation=picture.orientation,
        alpha=alpha,
        frames=frames,
        frame_count=frame_count,
        trailing_bytes=trailing,
        truncated=picture.truncated or damage is not None,
        missing=round(damage.missing, 4) if damage else 0.0,
        top=damage.trusted.start if damage and damage.missing else 0,
        whole_height=None if len(rgb) == whole else whole,
        warnings=tuple(lines),
        metadata=read_metadata(raw, kind),
    )


def _is_flat(rgb: RgbArray) -> bool:
    return bool((rgb.min(axis=(0, 1)) == rgb.max(axis=(0, 1))).all())


def _told(damage: Damage | None, height: int) -> str:
    if damage is None or not damage.missing:
        return "truncated or damaged file: decoded as far as it goes"
    if damage == anywhere(height):
        return "damaged file: its coded data do not end with the picture, so an unknown part of the picture is wrong"
    share = f"{damage.missing:.0%}" if damage.missing >= 0.005 else "less than 1%"
    rows = damage.trusted
    part = f"; judged on rows {rows.start + 1:,} to {rows.stop:,} of {height:,}" if rows != slice(0, height) else ""
    return f"truncated or damaged file: {share} of the picture is missing{part}"


def _converted(picture: _Picture, kind: str, lines: list[str]) -> tuple[RgbArray, NDArray[np.uint8] | None]:
    """The loaded pixels as 8-bit sRGB in the order in which they are stored, and their alpha."""
    image = picture.image
    try:
        source = image if picture.loaded is None else picture.loaded
        rgb, alpha = to_srgb(source, icc_transform(image, lines))
    except PILLOW_ERRORS as error:
        raise Undecodable(f"{kind} pixels of mode {image.mode} cannot be converted") from error
    if kind == "TIFF" and picture.orientation > 1 and _orientation(image) == 1:
        # Pillow turned it upright while loading; we turn it back, so that pixels are as stored in every format.
        back = {6: 8, 8: 6}.get(picture.orientation, picture.orientation)
        rgb, alpha = orient(rgb, back), None if alpha is None else orient(alpha, back)
    return rgb, alpha


# ------------------------------------------------------------------------------------------------- bytes to an image
#
# Each loader opens, checks against the limits, decodes, and looks for missing pixels. Pillow's own tolerant mode is not
# used: it is a process-wide flag that other threads would see, and it would hide that the file is damaged. Mending the
# bytes needs neither.


def _judged_page(raw: bytes, lines: list[str]) -> bytes:
    """A TIFF with its largest page first: the first may be a thumbnail."""
    first, largest = next(iter(tiff.pages(raw)), None), tiff.largest_page(raw)
    if first is None or largest is None or first.start == largest.start:
        return raw
    width, height = first.size
    lines.append(f"the first page of the file is a smaller picture ({width:,} x {height:,}); judged on the largest")
    return tiff.opened_at(raw, largest.start)


def _load_jpeg(raw: bytes, kind: str, limits: Limits, lines: list[str]) -> _Picture:
    """By libjpeg-turbo directly, which says what it had to invent; by Pillow for CMYK and whatever it refuses."""
    image = _open(raw, kind, limits)
    colours = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(image.mode)
    if colours is None:
        return _load_other(raw, kind, limits, lines)
    complaint = ""
    try:
        pixels = _turbo(raw, colours, strict=True)
    except ValueError as error:
        complaint = str(error)
        pixels = None
    if complaint.startswith(_JPEG_DAMAGE) and "ICC" not in complaint:
        pixels = _turbo_lenient(raw, colours)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return _load_other(raw, kind, limits, lines)
    picture = _Picture(image, pixels, _orientation(image))
    if complaint:
        found, mended = jpeg_damage(raw, complaint, pixels, lambda data: _turbo_lenient(data, colours))
        if mended is not raw:
            picture.loaded = _turbo_lenient(mended, colours)
        picture.truncated, picture.damage = found is not None, found if found and found.missing else None
        if found is None:
            lines.append(f"the coded data is not as it should be ({complaint}); no pixels are missing")
    if image.mode == "CMYK":  # Pillow knows what Adobe inverted
        loaded = _load_other(raw, kind, limits, lines)
        loaded.truncated, loaded.damage = picture.truncated, picture.damage
        return loaded
    return picture


def _turbo(raw: bytes, colours: str, strict: bool) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(raw, colours, fastdct=False, fastupsample=False, strict=strict)
    return pixels[..., 0] if colours == "GRAY" else pixels


def _turbo_lenient(raw: bytes, colours: str) -> NDArray[np.uint8] | None:
    try:
        return _turbo(raw, colours, strict=False)
    except ValueError:
        return None


def _load_png(raw: bytes, kind: str, limits: Limits, lines: list[str]) -> _Picture:
    try:
        image = _open(raw, kind, limits)
    except Undecodable:
        raw = _png_pixels_only(raw)
        image = _open(raw, kind, limits)
        lines.append("metadata before the pixels is damaged or too large; decoded without it")
    damage, height = None, None
    failed = _load(image)
    found = png_part(raw) if failed or not png_is_sound(raw) else None
    if found:
        part, damage = found
        if damage.is_hopeless:
            raise Undecodable("damaged PNG: its pixels cannot be decoded")
        height, image = image.height, _open(part, kind, limits)
        failed = _load(image)
    if failed:  # every pixel is there, so it was something else
        lines.append("metadata after the pixels is damaged or too large")
    if getattr(image, "default_image", False):  # what viewers of animations do not show
        lines.append("judged on the frames that are shown, not on the still picture for viewers without animation")
        try:
            image.seek(1)
            image.load()
        except PILLOW_ERRORS as error:
            raise Undecodable("damaged PNG: the frames of its animation cannot be decoded") from error
    return _Picture(image, None, _orientation(image), damage is not None, damage, height)


def _load_other(raw: bytes, kind: str, limits: Limits, lines: list[str]) -> _Picture:
    image = _open(raw, kind, limits)
    orientation = _orientation(image) if kind == "TIFF" else 1  # loading a TIFF forgets it
    interlaced = kind == "GIF" and any(tile[3][1] for tile in getattr(image, "tile", ()))
    truncated = _load(image)
    damage = _other_damage(raw, kind, image, truncated)
    if kind == "JPEG" and truncated:
        # libjpeg holds back the last rows, and all of a progressive file, until it sees an end.
        image = _open(raw + b"\xff\xd9", kind, limits)
        _load(image)
    orientation = orientation if kind == "TIFF" else _orientation(image)
    return _Picture(image, None, orientation, truncated, damage, interlaced=interlaced)


def _other_damage(raw: bytes, kind: str, image: Image.Image, truncated: bool) -> Damage | None:
    if kind == "BMP":
        return bmp_damage(raw, image.size)
    if kind == "TIFF":
        return tiff_damage(raw, truncated)
    return anywhere(image.height) if kind == "GIF" and not truncated and not gif_is_in_step(raw) else None


def _load_filled(raw: bytes, kind: str, limits: Limits, lines: list[str]) -> _Picture:
    """Formats whose decoders take all or nothing, and zeros for data: what is cut off is filled up with them."""
    whole = padded(raw, kind)
    try:
        image = _open(whole, kind, limits)
        image.load()
    except (Undecodable, *PILLOW_ERRORS):
        whole = blanked(whole, kind)
        if whole is raw:
            raise Undecodable(f"damaged {kind}: its pixels cannot be decoded") from None
        image = _open(whole, kind, limits)
        if _load(image):
            raise Undecodable(f"damaged {kind}: its pixels cannot be decoded") from None
    picture = _Picture(image, None, _orientation(image), truncated=whole is not raw)
    if has_gaps(whole, kind):
        picture.damage = gap_damage(whole, kind, np.asarray(image), lambda data: _decoded(data, kind, limits))
    if picture.damage is not None:
        return picture
    if picture.truncated:
        raise Undecodable(f"damaged {kind}: its pixels cannot be decoded")
    is_in_step = {"WEBP": webp_is_in_step, "AVIF": avif_is_in_step}.get(kind)
    if is_in_step and not is_in_step(raw, lambda data: _decoded(data, kind, limits) is not None):
        picture.damage = anywhere(image.height)
    return picture


def _decoded(raw: bytes, kind: str, limits: Limits) -> NDArray[np.uint8] | None:
    try:
        image = _open(raw, kind, limits)
        image.load()
        return np.asarray(image)
    except (Undecodable, ImageTooLarge, *PILLOW_ERRORS):
        return None


_LOADERS: dict[str, Callable[[bytes, str, Limits, list[str]], _Picture]] = {
    "JPEG": _load_jpeg,
    "PNG": _load_png,
    "WEBP": _load_filled,
    "AVIF": _load_filled,
    "HEIF": _load_filled,
}


def _open(raw: bytes, kind: str, limits: Limits) -> Image.Image:
    """Read the header only; refuse what is too large before a pixel is decoded."""
    _check_size(declared_size(raw, kind), limits.max_pixels)
    try:
        image = Image.open(io.BytesIO(raw), formats=[kind])
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than Pillow's own limit, {2 * (Image.MAX_IMAGE_PIXELS or 0):,}") from error
    except PILLOW_ERRORS as error:
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


def _load(image: Image.Image) -> bool:
    """Decode the pixels in place; True when something failed, and some may be missing.

    Raises:
        Undecodable: the decoder gave no image at all.
    """
    try:
        image.load()
    except PILLOW_ERRORS as error:
        # Rows decoded before the error stay in the image; without tiles Pillow takes it as loaded.
        image.tile = []  # type: ignore[attr-defined]
        try:
            image.load()
        except PILLOW_ERRORS:
            raise Undecodable(f"damaged {image.format}: its pixels cannot be decoded") from error
        return True
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
    except PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


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
    hidden = int(bool(getattr(image, "default_image", False)))  # Pillow counts what an APNG does not show
    frames: list[RgbArray] = []
    for number in wanted[1:]:
        try:
            image.seek(int(number) + hidden)
            image.load()
        except PILLOW_ERRORS:
            lines.append(f"the animation is damaged before frame {number + 1:,}")
            break
        if image.size == size:  # a GIF grows when a later frame sticks out
            frames.append(to_srgb(image, icc_transform(image, []))[0])
    of_the_first = f"of the first {reach:,}" if reach < count else f"of {count:,}"
    lines.append(f"animated: {count:,} frames, judged on {1 + len(frames)} {of_the_first}")
    return tuple(frames)
