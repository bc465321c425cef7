"""Feed mutated image files to decoder and metadata reader, or to the whole product, and count how each is answered.

It does not judge whether an answer is right, only that there is one: pixels, or one coded error, in bounded time.

    python -m scripts.fuzz --count 5000 --seed 0 [--minutes 40] [--child] [--verdict] [--keep FOLDER]
"""

from __future__ import annotations

import faulthandler
import io
import math
import random
import resource
import signal
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin
from rich.console import Console
from rich.table import Table

from formats.kinds import supported_format
from ingress import metadata
from ingress.decode import Limits, decode
from ingress.sandbox import DecodeChild
from utils.contracts import Sample
from utils.errors import DecoderKilled, VerifyError
from utils.exits import Exit, command, command_parser

# Small on purpose: a flipped bit in a header makes a large image, and the run is about answers, not about zlib's speed.
LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 24, max_frames=4, max_animation_pixels=1 << 25)
CHILD_MEMORY_MB = 1024

Decode = Callable[[bytes], Sample]


class Hang(BaseException):
    """One file took longer than allowed. Not an Exception, so that no decoder swallows it."""


# ---------------------------------------------------------------------------------------------------------- seed files


def seed_files() -> dict[str, bytes]:
    """One small valid file per format, mode and kind of metadata that we decode."""
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(pixels).resize((96, 64)) for pixels in load_sample_images().images)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    srgb = srgb[:24] + bytes(12) + srgb[36:]  # without the time of day, so that a seed always makes the same files
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0131] = "Maker", 6, "Software"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
    metadata = {"exif": exif.tobytes(), "icc_profile": srgb, "xmp": xmp}
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a photograph, steps: 20")
    text.add_text("compressed", "x" * 500, zip=True)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    frames = [china.rotate(angle) for angle in (0, 5, 10, 15)]
    translucent = flower.convert("RGBA")
    translucent.putalpha(Image.linear_gradient("L").resize(flower.size))
    ramp = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(64, 96)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    deep = Image.fromarray((ramp * 65535).astype(np.uint16))

    def save(image: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.copy().save(buffer, kind, **options)  # Pillow's writers leave their options on the image
        return buffer.getvalue()

    def animate(kind: str, **options: object) -> bytes:
        rest = [frame.copy() for frame in frames[1:]]
        return save(frames[0], kind, save_all=True, append_images=rest, **options)

    files = {
        "jpeg": save(china, "JPEG", **metadata),
        "jpeg progressive": save(flower, "JPEG", progressive=True, restart_marker_rows=1),
        "jpeg grey": save(china.convert("L"), "JPEG"),
        "jpeg cmyk": save(flower.convert("CMYK"), "JPEG"),
        "mpo": animate("MPO"),
        "png": save(china, "PNG", pnginfo=text, exif=exif.tobytes(), icc_profile=srgb),
        "png palette": save(flower.quantize(32), "PNG", transparency=3),
        "png 16-bit": save(deep, "PNG"),
        "png 1-bit": save(china.convert("1"), "PNG"),
        "png alpha": save(translucent, "PNG"),
        "apng": animate("PNG"),
        "webp": save(china, "WEBP", **metadata),
        "webp lossless": save(translucent, "WEBP", lossless=True),
        "webp animated": animate("WEBP"),
        "gif": save(flower, "GIF", comment=b"a comment"),
        "gif animated": animate("GIF", disposal=2),
        "bmp": save(china, "BMP"),
        "bmp run-length": _run_length_bmp(),
        "avif": save(china, "AVIF", speed=10, **metadata),
        "avif animated": _without_times(animate("AVIF", speed=10)),
        "tiff": save(china, "TIFF", **metadata),
        "tiff pages": animate("TIFF"),
        "tiff float": save(Image.fromarray(ramp), "TIFF"),
        "tiff lab": save(ImageCms.applyTransform(china, to_lab) or china, "TIFF", icc_profile=b""),
        "tiff cmyk": save(flower.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        **{f"tiff {name}": save(china, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits", "zstd")},
        "tiff fax": save(china.convert("1"), "TIFF", compression="group4"),
        "tiff 16-bit": save(deep, "TIFF"),
    }
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        files["heif"] = save(china, "HEIF", exif=exif.tobytes())
    return files


def _without_times(data: bytes) -> bytes:
    """Zero the creation and modification times of ISO media headers (ISO/IEC 14496-12, version 1 boxes)."""
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(name) + 8
        data = data[:at] + bytes(16) + data[at + 16 :]
    return data


def _run_length_bmp() -> bytes:
    """8-bit run-length BMP, 60 x 40; Pillow reads it but does not write it."""
    rows = b"".join(bytes((30, row, 0, 30, *range(30), 0, 0)) for row in range(40)) + b"\0\1"
    palette = bytes(value for level in range(256) for value in (level, 255 - level, 128, 0))
    offset = 54 + len(palette)
    header = struct.pack("<2sIII", b"BM", offset + len(rows), 0, offset)
    return header + struct.pack("<IiiHHIIiiII", 40, 60, 40, 1, 8, 1, len(rows), 0, 0, 256, 0) + palette + rows


# ----------------------------------------------------------------------------------------------------------- mutations


def _flip(data: bytearray, other: bytes, rng: random.Random) -> None:
    # Half of the flips hit the first 512 bytes, where headers are: pixels rarely make a decoder fail.
    for _ in range(rng.randint(1, 16)):
        data[rng.randrange(len(data) if rng.random() < 0.5 else min(512, len(data)))] = rng.randrange(256)


def _copy_block(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, to, length = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 256)
    data[to:to] = data[start : start + length]


def _delete_block(data: bytearray, other: bytes, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 256)]


def _truncate(data: bytearray, other: bytes, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _lie_about_a_number(data: bytearray, other: bytes, rng: random.Random) -> None:
    order = rng.choice("<>")
    width = rng.choice("BHI")
    limit = 1 << 8 * struct.calcsize(width)
    value = rng.choice((0, 1, limit - 1, limit // 2, limit // 2 - 1, rng.randrange(limit)))
    at = rng.randrange(min(1024, len(data)))
    data[at : at + struct.calcsize(width)] = struct.pack(order + width, value)


def _splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _blank(data: bytearray, other: bytes, rng: random.Random) -> None:
    """Zeros to the end, as in a download that stopped, or over a block."""
    start = rng.randrange(len(data))
    length = len(data) - start if rng.random() < 0.5 else min(len(data) - start, rng.choice((64, 512, 4096)))
    data[start : start + length] = bytes(length)


_MUTATIONS = (
    _flip,
    _flip,
    _copy_block,
    _delete_block,
    _truncate,
    _blank,
    _lie_about_a_number,
    _lie_about_a_number,
    _splice,
)


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each mutated file; the same count and seed give the same files."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    seeds = list(seed_files().items())
    for number in range(count):
        name, data = seeds[number % len(seeds)]
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if mutant:
                rng.choice(_MUTATIONS)(mutant, rng.choice(seeds)[1], rng)
        if name.startswith(("png", "apng")) and rng.random() < 0.7:
            mutant = bytearray(_fix_png_checksums(bytes(mutant)))  # else most would fail at the first checksum
        yield name, bytes(mutant)


def _fix_png_checksums(data: bytes) -> bytes:
    fixed, position = bytearray(data), 8
    while position + 12 <= len(fixed):
        end = position + 8 + int.from_bytes(fixed[position : position + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(fixed)


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass
class Tally:
    """What became of the files so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest: str = ""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise Hang in the main thread; the process itself dies, with a traceback, if C code holds on ten times longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(10 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(check: Callable[[bytes], str], data: bytes, seconds: float) -> str:
    """Name the answer: answered, truncated, an error code, or a failure (hang, "crash: why")."""
    try:
        with _alarm(seconds):
            return check(data)
    except Hang:
        return "hang"
    except DecoderKilled as error:
        # Running out of memory is an answer; a decoder that died or overran is what we are looking for.
        return error.code if "memory" in error.message.lower() else f"crash: {error.message}"
    except VerifyError as error:
        return error.code
    except Exception as error:  # noqa: BLE001 - any other exception is the find
        return f"crash: {type(error).__name__}: {error}"


def run(
    check: Callable[[bytes], str],
    count: int,
    seed: int,
    seconds: float,
    keep: Path | None,
    minutes: float = math.inf,
) -> Tally:
    """Ask about each file, ``count`` of them or as many as fit into ``minutes``."""
    tally = Tally()
    end = time.perf_counter() + 60 * minutes
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    for number, (name, data) in enumerate(mutants(count, seed)):
        if keep:  # what is being read when C code takes the process down
            (keep / "current.bin").write_bytes(data)
        start = time.perf_counter()
        if start > end:
            break
        result = outcome(check, data, seconds)
        elapsed = time.perf_counter() - start
        if elapsed > tally.slowest_seconds:
            tally.slowest_seconds, tally.slowest = elapsed, f"{number} ({name})"
        tally.outcomes[result.partition(":")[0]] += 1
        if result.startswith(("crash", "hang")):
            tally.failures.append(f"{number} ({name}): {result}")
            if keep:
                (keep / f"{seed}-{number}.bin").write_bytes(data)
    if keep:
        (keep / "current.bin").unlink(missing_ok=True)
    return tally


def decode_check(decoder: Decode) -> Callable[[bytes], str]:
    """Pixels and metadata; of files without pixels the metadata alone, under the format that their first bytes name."""

    def check(data: bytes) -> str:
        try:
            sample = decoder(data)  # reads the metadata too
        except VerifyError:
            with suppress(VerifyError):
                metadata.read(data, supported_format(data))
            raise
        return "truncated" if sample.truncated else "answered"

    return check


def verdict_check(decoder: Decode) -> Callable[[bytes], str]:
    """As decode_check, with a verdict for every file that decodes."""
    from inference.detector import build_verifier
    from utils.settings import load_settings

    verifier = build_verifier(load_settings().models)

    def check(data: bytes) -> str:
        sample = decoder(data)
        verifier.verify([sample])
        return "truncated" if sample.truncated else "answered"

    return check


def _peak_mib(who: int) -> float:
    """Largest resident memory of this process, or of its ended children."""
    return resource.getrusage(who).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def show(tally: Tally, seconds: float) -> None:
    table = Table("answer", "files", title="mutated files")
    for name, files in sorted(tally.outcomes.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{files:,}")
    console = Console()
    console.print(table)
    mine, theirs = _peak_mib(resource.RUSAGE_SELF), _peak_mib(resource.RUSAGE_CHILDREN)
    console.print(
        f"{sum(tally.outcomes.values()):,} files; peak memory {mine:.0f} MiB here, {theirs:.0f} MiB in a child"
    )
    console.print(f"{seconds:.0f} s; slowest {tally.slowest_seconds:.2f} s: file {tally.slowest}")
    for failure in tally.failures:
        console.print(failure, style="red", markup=False)


@command
def main(arguments: list[str] | None = None) -> int:
    """Fails when a file crashed or hung something."""
    parser = command_parser("python -m scripts.fuzz", __doc__)
    parser.add_argument("--count", type=int, default=5000, help="files to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time for one file")
    parser.add_argument("--child", action="store_true", help="decode in the child process")
    parser.add_argument("--verdict", action="store_true", help="also judge every file that decodes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, whatever the count")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    options = parser.parse_args(arguments)
    warnings.simplefilter("error")  # a division by zero is a find as well
    start = time.perf_counter()
    with ExitStack() as stack:
        decoder: Decode = lambda data: decode(data, "fuzz", LIMITS)  # noqa: E731
        if options.child:
            child = stack.enter_context(DecodeChild(CHILD_MEMORY_MB, options.seconds))
            decoder = lambda data: child.decode(data, "fuzz", LIMITS)  # noqa: E731
        check = (verdict_check if options.verdict else decode_check)(decoder)
        # The child has its own clock; ours comes second.
        limit = options.seconds + 5 if options.child else options.seconds
        tally = run(check, options.count, options.seed, limit, options.keep, options.minutes)
    show(tally, time.perf_counter() - start)
    return Exit.FAILED if tally.failures else Exit.DONE


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
