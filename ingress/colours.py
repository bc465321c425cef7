"""Any mode of Pillow, with any profile, to 8-bit sRGB and alpha. Knows neither files nor limits."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from formats.transfer import hdr_transfer
from ingress.pillow import PILLOW_ERRORS
from utils.contracts import RgbArray

# NovelAI hides its stealth record in the lowest bit of alpha (254 or 255) and signs the RGB under it, so pixels that
# are opaque to the eye stay as stored. 250 leaves room for rounding encoders; blending there moves RGB by at most 2 %.
_OPAQUE = 250

_BAND_PIXELS = 1 << 20  # pixels converted at a time: temporaries stay at a few MiB whatever the image
_ICC_BYTES = 4 << 20  # the largest CMYK press profiles in circulation are below 3 MiB


def to_srgb(
    image: Image.Image | NDArray[np.uint8], transform: ImageCms.ImageCmsTransform | None
) -> tuple[RgbArray, NDArray[np.uint8] | None]:
    """Any mode of Pillow to RGB (H x W x 3) and alpha (H x W, or None), band by band to bound temporaries.

    RGB is straight where alpha is as good as opaque everywhere, else composited over white, as most viewers show it.
    An array (H x W grey, or H x W x 3) has no alpha; one that is sRGB already is returned itself.
    """
    if not isinstance(image, Image.Image):
        return _array_to_srgb(image, transform), None
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


def _array_to_srgb(pixels: NDArray[np.uint8], transform: ImageCms.ImageCmsTransform | None) -> RgbArray:
    if transform is None:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        rgb[top : top + rows] = _band_to_rgb(Image.fromarray(pixels[top : top + rows]), None, transform)
    return rgb


def conversion(raw: bytes, kind: str, mode: str) -> tuple[str, ...]:
    """What the pixels lost on the way to 8-bit sRGB, for a person; empty when nothing to speak of."""
    lines = []
    if mode.startswith("I") or mode == "F" or (kind == "PNG" and raw[24:25] == b"\x10"):  # IHDR's bit depth
        lines.append("more than 8 bits per channel: judged at 8")
    if mode in ("CMYK", "LAB"):
        lines.append(f"{mode} colours: judged after conversion to sRGB")
    if transfer := hdr_transfer(raw, kind):
        lines.append(f"HDR ({transfer}): judged without tone mapping, so not as a screen shows it")
    return tuple(lines)


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


def icc_transform(image: Image.Image, lines: list[str]) -> ImageCms.ImageCmsTransform | None:
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
    except (ImageCms.PyCMSError, *PILLOW_ERRORS):
        lines.append("unusable ICC profile ignored")
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB profile is sRGB under whatever name, tested on 729 colours: rounding must not touch the pixels."""
    steps = np.linspace(0, 255, 9, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return int(np.abs(converted.astype(np.int16) - colours).max()) <= 2  # measured 0-1 for the sRGB profiles in use
