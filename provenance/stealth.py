"""Generation text hidden in the lowest bits of the pixels ("stealth pnginfo"), and NovelAI's signature over the pixels.

Does not know the text chunks of files (provenance.claims reads those, and checks their signature with
``verify_signed_hash``). Anybody can hide such text; only a verified signature is proof.

Layout, column by column: 15 bytes of magic, the payload's length in bits (uint32, big endian), the payload. ``png``
magics use the alpha channel, one bit per pixel; ``rgb`` magics use red, green, blue, three bits per pixel; ``comp``
payloads are gzipped. Sources: NovelAI/novelai-image-metadata nai_meta.py and nai_sig.py (alpha, JSON, signature);
neggles/sd-webui-stealth-pnginfo (all four magics, web UI text).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from utils.contracts import Claim, Json, RgbArray, Sample

# Published in nai_sig.py as the default of verify_metadata_is_novelai.
NOVELAI_PUBLIC_KEY = base64.b64decode("Y2JcQAOhLwzwSDUJPNgL04nS0Tbqm7cSRc4xk0vRMic=")

MAX_TEXT_BYTES = 4 * 2**20  # prompts and settings take kilobytes; more is somebody's bomb
MAX_SIGNED_PIXELS = 16_000_000  # Ed25519 needs the message in one piece, so this bounds memory (about 150 MB)
MAX_SHOWN_CHARACTERS = 2000

_ALPHA_MAGICS = (b"stealth_pngcomp", b"stealth_pnginfo")
_RGB_MAGICS = (b"stealth_rgbcomp", b"stealth_rgbinfo")
_MAGIC_BYTES = 15
_HEADER_BYTES = _MAGIC_BYTES + 4


@dataclass(frozen=True, slots=True)
class Hidden:
    """What follows a stealth magic: the text, or why it cannot be read."""

    magic: str
    text: str | None
    problem: str | None = None


def examine(sample: Sample, public_key: bytes = NOVELAI_PUBLIC_KEY) -> tuple[Json, Claim | None]:
    """Facts about hidden text for the verdict (None when there is none), and what it claims."""
    hidden = read(sample.rgb, sample.alpha)
    if hidden is None:
        return None, None
    if hidden.text is None:
        return {"magic": hidden.magic, "problem": hidden.problem}, None
    fields = _json_object(hidden.text) or {}
    comment = fields.get("Comment")
    signed = verify_signed_hash(sample.rgb, comment, public_key) if isinstance(comment, str) else None
    facts = {
        "magic": hidden.magic,
        "text": _shown(hidden.text),
        "signature": {True: "verified", False: "does not match", None: "none"}[signed],
    }
    return facts, _claim(hidden.text, fields, signed)


def read(rgb: RgbArray, alpha: NDArray[np.uint8] | None) -> Hidden | None:
    """Find and unpack hidden text.

    Args:
        rgb: H x W x 3 as stored in the file, not composited.
        alpha: H x W, when the file has one.
    """
    planes = [(rgb, _RGB_MAGICS)] if alpha is None else [(alpha[..., None], _ALPHA_MAGICS), (rgb, _RGB_MAGICS)]
    for plane, magics in planes:
        header = _low_bits(plane, 0, _HEADER_BYTES)
        if len(header) == _HEADER_BYTES and header.startswith(magics):
            return _unpack(plane, header)
    return None


def _low_bits(plane: NDArray[np.uint8], start: int, count: int) -> bytes:
    """``count`` bytes from byte ``start`` on, column by column; fewer where the plane (H x W x C) ends."""
    height, _, channels = plane.shape
    columns = -(-(start + count) * 8 // (height * channels))
    bits = plane[:, :columns].transpose(1, 0, 2) & 1
    return np.packbits(bits)[start : min(start + count, bits.size // 8)].tobytes()


def _unpack(plane: NDArray[np.uint8], header: bytes) -> Hidden:
    magic = header[:_MAGIC_BYTES].decode("ascii")
    length = int.from_bytes(header[_MAGIC_BYTES:], "big") // 8
    if length > min(MAX_TEXT_BYTES, plane.size // 8 - _HEADER_BYTES):
        return Hidden(magic, None, f"announces {length} bytes, more than the image holds or we read")
    payload = _low_bits(plane, _HEADER_BYTES, length)
    if magic.endswith("comp"):
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # a gzip header and trailer, checksum included
        try:
            payload = unpacker.decompress(payload, MAX_TEXT_BYTES)
        except zlib.error as error:
            return Hidden(magic, None, f"damaged gzip data: {error}")
        if not unpacker.eof:
            return Hidden(magic, None, f"gzip data is cut short, or larger than {MAX_TEXT_BYTES} bytes")
    return Hidden(magic, payload.decode("utf-8", errors="replace"))


def verify_signed_hash(rgb: RgbArray, comment_json: str, public_key: bytes = NOVELAI_PUBLIC_KEY) -> bool | None:
    """Check NovelAI's ``signed_hash``: Ed25519 over the RGB bytes, row by row, and the comment without the signature.

    Args:
        rgb: H x W x 3 as stored in the file; one changed pixel breaks the signature.
        comment_json: the ``Comment`` field, a JSON object.
        public_key: 32 bytes.

    Returns:
        Whether the signature fits; None when there is none to check, or the image is above MAX_SIGNED_PIXELS.
    """
    comment = _json_object(comment_json)
    if comment is not None and isinstance(comment.get("Comment"), str):  # some files wrap the comment once more
        comment = _json_object(comment["Comment"])
    if comment is None or rgb.shape[0] * rgb.shape[1] > MAX_SIGNED_PIXELS:
        return None
    encoded = comment.pop("signed_hash", None)
    if not isinstance(encoded, str):
        return None
    try:
        message = rgb.tobytes() + json.dumps(comment).encode("ascii")  # the signer uses Python's default formatting
        Ed25519PublicKey.from_public_bytes(public_key).verify(base64.b64decode(encoded), message)
    except (InvalidSignature, ValueError, RecursionError):  # not base64; nested too deeply to write again
        return False
    return True


def signed_by_novelai(source: str) -> Claim:
    """What a signature that fits proves; ``source`` is where its text was found."""
    says = "NovelAI's signature over these very pixels and their generation settings is valid"
    return Claim(source, "generated", "cryptographic", "NovelAI", says)


def _json_object(text: str) -> dict[str, Json] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _claim(text: str, fields: dict[str, Json], signed: bool | None) -> Claim | None:
    if signed:
        return signed_by_novelai("stealth")
    if signed is False:
        says = (
            "generation settings of NovelAI are hidden in the pixels, but their signature does not fit: "
            "the pixels were changed, or the text was copied or forged"
        )
        return _forgeable("NovelAI", says)
    if fields.get("Software") == "NovelAI":
        says = "generation settings of NovelAI are hidden in the pixels; they are unsigned and can be forged"
        return _forgeable("NovelAI", says)
    if fields or re.search(r"\bSteps: \d+", text):
        says = "generation settings are hidden in the pixels; anybody can write them"
        return _forgeable("Stable Diffusion interface (stealth pnginfo)", says)
    return None


def _forgeable(generator: str, text: str) -> Claim:
    return Claim("stealth", "generated", "forgeable_metadata", generator, text)


def _shown(text: str) -> str:
    """Capped, with control and bidirectional-override characters escaped; the text is a stranger's."""
    cut = text[:MAX_SHOWN_CHARACTERS]
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in cut)
    return shown if cut == text else f"{shown}… ({len(text)} characters)"
