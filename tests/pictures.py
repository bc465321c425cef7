"""Pictures and files that several tests make."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from utils.contracts import RgbArray, Sample


def encode(picture: Image.Image | RgbArray, kind: str, **options: object) -> bytes:
    """A file of that kind. Skips the test where HEIF is asked for and cannot be written."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="pip install pillow-heif").register_heif_opener()
    if kind == "AVIF":
        options = {"speed": 10, **options}
    image = picture.copy() if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def sample_of(rgb: RgbArray, orientation: int = 1) -> Sample:
    """What is judged of these pixels when a JPEG holds them."""
    return Sample("x", b"", np.ascontiguousarray(rgb, dtype=np.uint8), "JPEG", orientation=orientation)


def noise(height: int, width: int) -> RgbArray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def never_compressed(name: str) -> RgbArray:
    """A photograph so far reduced that nothing is left of the JPEG that it was."""
    return cv2.resize(load_sample_image(name), None, fx=0.83, fy=0.83, interpolation=cv2.INTER_AREA)
