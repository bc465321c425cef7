"""The golden set, and what one release does with it: python -m lifecycle.golden RELEASE

``golden/golden.csv`` names images that everybody has: photographs inside installed packages, and pictures that are made
from them here, with the tiers that each may get. A folder of one's own with such a table (IMGV_LIFECYCLE_DIR/golden)
adds a private part. Prints JSON: a tier for each image, whether PNG is told from JPEG and metadata moves a probability,
seconds of processor time per image, and the memory of this process. A release gets a process of its own, so that memory
and time are its.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ingress.decode import read_file
from ingress.sources import Ingress
from training.metrics import auroc
from utils.contracts import RgbArray
from utils.deliveries import deliver, encode_jpeg
from utils.errors import InputError, TableError
from utils.exits import Exit, command, command_parser
from utils.releases import Store
from utils.settings import Settings, load_settings

SHARED = Path(__file__).parents[1] / "golden"
TABLE = "golden.csv"
CROPS, SIDE = 3, 192  # of each photograph, for the comparison of containers
ROUNDS = 2  # over the golden set; the faster one counts
PROMPT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: x"


@dataclass(frozen=True, slots=True)
class Golden:
    """One image of the set."""

    name: str
    raw: bytes
    label: str
    allowed: tuple[str, ...]  # tiers


@dataclass(frozen=True, slots=True)
class Judged:
    tier: str
    allowed: tuple[str, ...]
    probability: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a release did with the golden set."""

    images: Mapping[str, Judged]
    separable: float  # AUROC of PNG against JPEG of the same pixels
    metadata: float  # largest change of a probability by stripping metadata
    seconds: float  # of processor time per image
    megabytes: float  # of memory at most; 0: this system does not say

    @classmethod
    def from_json(cls, text: str) -> Facts:
        said = json.loads(text)
        images = {
            name: Judged(each["tier"], tuple(each["allowed"]), each["probability"])
            for name, each in said.pop("images").items()
        }
        return cls(images, **said)


def read_golden(folders: Sequence[Path]) -> list[Golden]:
    """The images that this machine has; one of a package that is not installed is left out.

    Raises:
        TableError: a table cannot be read, an image is not the one that it names, or there is no image at all.
    """
    found: list[Golden] = []
    for folder in folders:
        if not (folder / TABLE).is_file():
            continue
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if (raw := _origin(folder, row)) is not None:
                    made = EDITS[row["edit"]](raw)
                    found.append(Golden(row["name"], made, row["label"], tuple(row["tiers"].split())))
    if not found:
        raise TableError(f"no golden image in {', '.join(map(str, folders))}: pip install scikit-learn scikit-image")
    return found


def _origin(folder: Path, row: Mapping[str, str]) -> bytes | None:
    package, _, file = row["origin"].rpartition(":")
    if package:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
    try:
        raw = read_file(folder / file, 2**26)
    except InputError as error:
        raise TableError(f"golden image {row['name']}: {error}") from error
    if sha256(raw).hexdigest() != row["sha256"]:
        raise TableError(f"golden image {row['name']}: {folder / file} is another file than {TABLE} names")
    return raw


def pixels(raw: bytes) -> RgbArray:
    with Image.open(BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def _png(rgb: RgbArray, info: PngInfo | None = None) -> bytes:
    out = BytesIO()
    Image.fromarray(rgb).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _prompted(raw: bytes) -> bytes:
    """As a generator's own program marks what it made: the parameters in a text chunk."""
    info = PngInfo()
    info.add_text("parameters", PROMPT)
    return _png(pixels(raw), info)


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    "png": lambda raw: _png(pixels(raw)),
    "web": lambda raw: deliver(pixels(raw), "web"),
    "hard": lambda raw: deliver(pixels(raw), "hard"),
    "prompted": _prompted,
}


# --- one release


def measure(release: Path, settings: Settings, rounds: int = ROUNDS) -> Facts:
    """Judge the golden set with a release in a process of its own.

    Raises:
        TableError: it failed there; the message has its last line.
    """
    code = [sys.executable, "-m", "lifecycle.golden", str(release), "--rounds", str(rounds)]
    private = str(settings.lifecycle.folder / "golden")
    done = subprocess.run([*code, "--private", private], capture_output=True, text=True, cwd=SHARED.parent)  # noqa: S603
    if done.returncode:
        raise TableError(f"{release.name} cannot judge the golden set: {(done.stderr.splitlines() or ['?'])[-1]}")
    return Facts.from_json(done.stdout)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m lifecycle.golden", __doc__)
    parser.add_argument("release", type=Path, help="a release's folder")
    parser.add_argument("--private", type=Path, help="folder of the private part")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args(argv)
    folders = [SHARED, *([arguments.private] if arguments.private else [])]
    print(json.dumps(asdict(_judge(arguments.release.absolute(), read_golden(folders), arguments.rounds))))
    return Exit.DONE


def _judge(folder: Path, golden: Sequence[Golden], rounds: int) -> Facts:
    from inference.detector import build_verifier

    release = Store(folder.parent).open(folder.name)
    settings = load_settings(profile=release.profile)
    models = settings.models.model_copy(update={"release": "", "fusion": ""})
    with build_verifier(models, release) as verifier, Ingress(settings.decode) as ingress:
        samples = {each.name: ingress.decode(each.raw, each.name) for each in golden}
        seconds, images = float("inf"), {}
        for _ in range(rounds):
            began = time.process_time()
            for each in golden:
                verdict = verifier.verify([samples[each.name]])[0].verdict
                images[each.name] = Judged(verdict.tier, each.allowed, verdict.fusion_prob)
            seconds = min(seconds, (time.process_time() - began) / len(golden))
        photographs = [each.raw for each in golden if each.label == "real"]
        crops = list(_crops(photographs))

        def probabilities(files: Sequence[bytes]) -> list[float]:
            return [value for value, _ in verifier.estimate([ingress.decode(raw, "crop") for raw in files])]

        lossless = probabilities([_png(crop) for crop in crops])
        jpeg = probabilities([encode_jpeg(crop, 95, 2) for crop in crops])
        labels = np.repeat([0, 1], len(crops))
        area = auroc(labels, np.array([*lossless, *jpeg]), np.ones((1, len(labels))))[0]
        prompted = probabilities([_prompted(_png(crop)) for crop in crops])
        moved = float(np.abs(np.array(prompted) - np.array(lossless)).max())
    return Facts(images, float(area), moved, seconds, peak_megabytes())


def _crops(photographs: Sequence[bytes]) -> Iterator[RgbArray]:
    """Of each different photograph, always the same."""
    rng = np.random.default_rng(0)
    for raw in dict.fromkeys(photographs):
        rgb = pixels(raw)
        for _ in range(CROPS):
            top, left = (int(rng.integers(0, max(1, side - SIDE + 1))) for side in rgb.shape[:2])
            yield rgb[top : top + SIDE, left : left + SIDE]


def peak_megabytes() -> float:
    """Of this process; 0 where the system does not say, and the gate then does not compare memory.

    Not ru_maxrss on Linux: it begins with the peak of the process that started this one.
    """
    if sys.platform == "linux":
        return float(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
