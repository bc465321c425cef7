"""The shipped verdict follows the picture: not the file format it is stored in, and not the metadata around it."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import piexif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_images

from inference.detector import Verifier, build_verifier
from ingress.sources import Ingress
from tests.pictures import encode
from tests.provenance.test_c2pa import action, sign
from training.metrics import auroc
from utils.contracts import RgbArray, Verdict
from utils.settings import Settings

SIDE = 192  # px of a crop
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")  # in the wheel
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CAMERA = piexif.dump(
    {
        "0th": {piexif.ImageIFD.Make: b"Canon", piexif.ImageIFD.Model: b"Canon EOS 5D Mark IV"},
        "Exif": {
            piexif.ExifIFD.ExposureTime: (1, 200),
            piexif.ExifIFD.FNumber: (28, 10),
            piexif.ExifIFD.ISOSpeedRatings: 100,
            piexif.ExifIFD.FocalLength: (50, 1),
            piexif.ExifIFD.DateTimeOriginal: b"2024:05:01 12:00:00",
        },
    }
)
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:iptcExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'iptcExt:DigitalSourceType="{GENERATED}"/></rdf:RDF></x:xmpmeta>'
).encode()
PROMPT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: x"


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The embedded product, whatever the environment says."""
    return Settings.of()


@pytest.fixture(scope="module")
def verifier(settings: Settings) -> Verifier:
    return build_verifier(settings.models)


@pytest.fixture(scope="module")
def crops() -> list[RgbArray]:
    """Six crops of each of seven photographs."""
    data = pytest.importorskip("skimage.data", reason="needs pip install scikit-image")
    folder = Path(data.__file__).parent
    photographs = [*load_sample_images().images, *(pixels_of((folder / name).read_bytes()) for name in PHOTOGRAPHS)]
    rng = np.random.default_rng(0)
    return [cut(photograph, rng) for photograph in photographs for _ in range(6)]


def cut(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    top, left = (int(rng.integers(0, side - SIDE + 1)) for side in rgb.shape[:2])
    return rgb[top : top + SIDE, left : left + SIDE]


def pixels_of(raw: bytes) -> RgbArray:
    with Image.open(BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def judge(verifier: Verifier, settings: Settings, files: Iterable[bytes]) -> list[Verdict]:
    with Ingress(settings.decode) as ingress:
        samples = [ingress.decode(raw, "test") for raw in files]
    return [judged.verdict for judged in verifier.verify(samples)]


def test_png_and_jpeg_of_the_same_pixels_are_not_told_apart(
    verifier: Verifier, settings: Settings, crops: list[RgbArray]
) -> None:
    jpegs = [encode(crop, "JPEG", quality=95) for crop in crops]
    decoded = [encode(pixels_of(raw), "PNG") for raw in jpegs]
    verdicts = judge(verifier, settings, [*(encode(crop, "PNG") for crop in crops), *jpegs, *decoded])
    pristine, jpeg, png = np.array([each.fusion_prob for each in verdicts]).reshape(3, len(crops))
    np.testing.assert_allclose(png, jpeg, rtol=0, atol=1e-6)  # the very same pixels in another container
    labels = np.repeat([0, 1], len(crops))
    area = auroc(labels, np.concatenate([pristine, jpeg]), np.ones((1, 2 * len(crops))))[0]
    assert 0.45 <= area <= 0.55  # the same pictures, compressed once more


@pytest.fixture(scope="module")
def signed(crops: list[RgbArray]) -> bytes:
    pytest.importorskip("c2pa", reason="needs pip install c2pa-python")
    return sign(encode(crops[0], "PNG"), action(source_type=GENERATED))


def test_metadata_moves_no_probability_and_without_a_generators_mark_no_label(
    verifier: Verifier, settings: Settings, crops: list[RgbArray], signed: bytes
) -> None:
    prompt = PngInfo()
    prompt.add_text("parameters", PROMPT)
    comment = PngInfo()
    comment.add_text("Comment", "my holiday")
    for crop in crops[::6]:
        silent = {
            "JPEG": [{}, {"exif": CAMERA}, {"dpi": (300, 300)}, {"comment": b"my holiday"}],
            "PNG": [{}, {"exif": CAMERA}, {"pnginfo": comment}],
        }
        marked = {"JPEG": [{"xmp": XMP}, {"xmp": XMP, "exif": CAMERA}], "PNG": [{"pnginfo": prompt}]}
        for format in ("JPEG", "PNG"):
            plain, *others = judge(verifier, settings, [encode(crop, format, **each) for each in silent[format]])
            assert plain.decided_by == "fusion"
            for other in others:
                assert (other.fusion_prob, other.label, other.tier, other.decided_by) == (
                    plain.fusion_prob,
                    plain.label,
                    plain.tier,
                    "fusion",
                )
            for other in judge(verifier, settings, [encode(crop, format, **each) for each in marked[format]]):
                assert other.decided_by == "provenance"  # it was seen
                assert other.fusion_prob == plain.fusion_prob
    plain, with_manifest = judge(verifier, settings, [encode(pixels_of(signed), "PNG"), signed])
    assert with_manifest.decided_by == "provenance"
    assert with_manifest.fusion_prob == plain.fusion_prob
