"""The EXIF record: complete, plausible, contradictory, absent."""

import io
import math

import numpy as np
import piexif
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ingress import metadata
from provenance import exif
from utils.contracts import Sample

PHOTO = load_sample_image("china.jpg")
IMAGE, EXIF, GPS = "0th", "Exif", "GPS"
CAMERA = {
    IMAGE: {
        piexif.ImageIFD.Make: b"Canon",
        piexif.ImageIFD.Model: b"Canon EOS 5D",
        piexif.ImageIFD.Software: b"Firmware Version 1.1.0",
        piexif.ImageIFD.DateTime: b"2020:05:01 10:00:00",
    },
    EXIF: {
        piexif.ExifIFD.ExposureTime: (1, 125),
        piexif.ExifIFD.FNumber: (8, 1),
        piexif.ExifIFD.ISOSpeedRatings: 100,
        piexif.ExifIFD.ShutterSpeedValue: (6966, 1000),
        piexif.ExifIFD.ApertureValue: (6, 1),
        piexif.ExifIFD.FocalLength: (50, 1),
        piexif.ExifIFD.DateTimeOriginal: b"2020:05:01 10:00:00",
        piexif.ExifIFD.DateTimeDigitized: b"2020:05:01 10:00:00",
        piexif.ExifIFD.LensModel: b"EF50mm f/1.4",
        piexif.ExifIFD.PixelXDimension: PHOTO.shape[1],
        piexif.ExifIFD.PixelYDimension: PHOTO.shape[0],
    },
    GPS: {1: b"N", 2: ((48, 1), (8, 1), (0, 1)), 3: b"E", 4: ((11, 1), (34, 1), (0, 1))},
}


def thumbnail(pixels=PHOTO, size=(160, 107)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(changes=None, pixels=PHOTO, thumb=None, format="JPEG", **options) -> Sample:
    """A camera's file with some tags changed; None removes a tag."""
    ifds = {name: dict(tags) for name, tags in CAMERA.items()}
    for (ifd, tag), value in (changes or {}).items():
        ifds[ifd].pop(tag, None)
        if value is not None:
            ifds[ifd][tag] = value
    if thumb:
        ifds |= {"1st": {piexif.ImageIFD.Compression: 6}, "thumbnail": thumb}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, exif=piexif.dump(ifds), **options)
    raw = buffer.getvalue()
    return Sample("x", raw, np.asarray(pixels), format, metadata=metadata.read(raw, format))


def bare(pixels=PHOTO, format="JPEG", **options) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    raw = buffer.getvalue()
    return Sample("x", raw, np.asarray(pixels), format, metadata=metadata.read(raw, format))


def test_a_complete_camera_record_scores_one():
    found = exif.measure(sample(thumb=thumbnail()))
    assert found.features["exif_score"] == 1.0
    assert found.notes == ()
    assert found.features["exif.thumbnail_mismatch"] < 0.1
    assert found.skipped is None
    assert found.facts["camera"] | {"has_gps": True, "exposure": "1/125 s", "iso": 100.0} == found.facts["camera"]


def test_without_exif_everything_is_missing_and_nothing_is_held_against_the_image():
    found = exif.measure(bare())
    assert math.isnan(found.features["exif_score"])
    assert found.features["exif.present"] == 0
    assert found.notes == ()
    assert found.skipped == "the file has no EXIF"


def test_a_block_without_any_camera_field_has_no_score():
    found = exif.measure(bare(exif=piexif.dump({IMAGE: {piexif.ImageIFD.Orientation: 1}})))
    assert found.features["exif.present"] == 1
    assert math.isnan(found.features["exif_score"])


def test_a_damaged_block_is_said_to_be_damaged():
    found = exif.measure(bare(exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(8)))
    assert math.isnan(found.features["exif_score"])
    assert found.skipped is not None
    assert found.skipped.startswith("the EXIF block does not record what exif_score")


def test_every_declared_feature_is_given_and_only_those():
    for each in (sample(), bare(), sample(thumb=thumbnail()), bare(format="PNG")):
        assert set(exif.measure(each).features) == set(exif.FEATURES)


E_, I_ = piexif.ExifIFD, piexif.ImageIFD


@pytest.mark.parametrize(
    ("feature", "changes"),
    [
        ("exif.maker_conflict", {(IMAGE, I_.Model): b"iPhone 13"}),
        ("exif.maker_conflict", {(EXIF, E_.MakerNote): b"Apple iOS\0\0\1MM"}),
        ("exif.exposure_conflict", {(EXIF, E_.ExposureTime): (100_000, 1)}),
        ("exif.exposure_conflict", {(EXIF, E_.FNumber): (1, 100)}),
        ("exif.exposure_conflict", {(EXIF, E_.ShutterSpeedValue): (2, 1)}),
        ("exif.exposure_conflict", {(EXIF, E_.ApertureValue): (1, 1)}),
        (
            "exif.exposure_conflict",
            {
                (EXIF, E_.ExposureTime): (1, 100_000),
                (EXIF, E_.FNumber): (64, 1),
                (EXIF, E_.ISOSpeedRatings): 25,
                (EXIF, E_.ShutterSpeedValue): None,
                (EXIF, E_.ApertureValue): None,
            },
        ),
        ("exif.date_conflict", {(EXIF, E_.DateTimeOriginal): b"2024:05:01 10:00:00"}),
        ("exif.date_conflict", {(EXIF, E_.DateTimeOriginal): b"yesterday at noon!"}),
        ("exif.date_conflict", {(EXIF, E_.DateTimeOriginal): b"2020:13:41 10:00:00"}),
        ("exif.gps_anomaly", {(GPS, 2): ((120, 1), (0, 1), (0, 1))}),
        ("exif.gps_anomaly", {(GPS, 2): ((0, 1),) * 3, (GPS, 4): ((0, 1),) * 3}),
        ("exif.gps_anomaly", {(GPS, 1): b"X"}),
        ("exif.gps_anomaly", {(GPS, 29): b"2011:01:01"}),
        ("exif.size_conflict", {(EXIF, E_.PixelXDimension): 400}),
    ],
)
def test_an_implausible_value_is_one_anomaly_and_halves_the_score(feature, changes):
    before, after = exif.measure(sample()), exif.measure(sample(changes))
    assert before.features[feature] == 0
    assert after.features[feature] == 1
    assert len(after.notes) == 1
    assert after.features["exif_score"] <= before.features["exif_score"] / 2


@pytest.mark.parametrize(
    "changes",
    [
        {(EXIF, E_.FNumber): (0, 1)},  # a manual lens
        {(EXIF, E_.FNumber): (0, 0)},
        {(IMAGE, I_.DateTime): b"2020:04:30 23:00:00"},  # saved in another time zone
        {(IMAGE, I_.DateTime): b"0000:00:00 00:00:00"},  # a clock never set
        {(IMAGE, I_.DateTime): b"2020-05-02T15:53:45-04:00"},  # copied from XMP
        {(EXIF, E_.ShutterSpeedValue): (1, 125)},  # some Samsung phones
        {(IMAGE, I_.DateTime): b"2020:05:01 24:08:19"},  # Nexus phones after midnight
        {(IMAGE, I_.DateTime): b"2020:05:01 10:00"},
        {(IMAGE, I_.DateTime): b"2020:05:01 10:00:00.123"},
        {(IMAGE, I_.DateTime): b"2020:05:01 10:00:00+02:00"},
        {(IMAGE, I_.DateTime): b"2020/05/01 10:00:00"},
        {(IMAGE, I_.DateTime): b"2020:05:01 10:00:00 AM"},
        {(IMAGE, I_.DateTime): "2020:05:01 오전 10:00:00".encode()},
        {(IMAGE, I_.DateTime): b"2020:05:01"},
        {(EXIF, E_.PixelXDimension): 4000, (EXIF, E_.PixelYDimension): 3000},  # scaled by a messenger, or cropped
        {(EXIF, E_.PixelXDimension): PHOTO.shape[0], (EXIF, E_.PixelYDimension): PHOTO.shape[1]},
        {(GPS, 2): ((0, 0),) * 3},  # a receiver without a fix
        {(EXIF, E_.MakerNote): b"\x2a\0\x01\0"},  # Canon's has no signature
    ],
)
def test_what_real_cameras_do_is_no_anomaly(changes):
    assert exif.measure(sample(changes)).notes == ()


def test_the_thumbnail_of_another_picture_is_noticed():
    found = exif.measure(sample(thumb=thumbnail(load_sample_image("flower.jpg"))))
    assert found.features["exif.thumbnail_mismatch"] > 0.5
    assert [note.code for note in found.notes] == ["exif_thumbnail"]


def test_a_thumbnail_with_bars_or_turned_is_the_same_picture():
    framed = np.zeros((120, 160, 3), dtype=np.uint8)
    framed[7:113] = np.asarray(Image.fromarray(PHOTO).resize((160, 106)))
    buffer = io.BytesIO()
    Image.fromarray(framed).save(buffer, "JPEG")
    for data in (buffer.getvalue(), thumbnail(np.rot90(PHOTO).copy(), (107, 160))):
        assert exif.measure(sample(thumb=data)).features["exif.thumbnail_mismatch"] < 0.1


def test_a_flat_image_or_a_broken_thumbnail_gives_no_mismatch():
    flat = np.full((40, 60, 3), 128, dtype=np.uint8)
    for each in (sample(pixels=flat, thumb=thumbnail()), sample(thumb=thumbnail()[:900])):
        assert math.isnan(exif.measure(each).features["exif.thumbnail_mismatch"])


@pytest.mark.parametrize(("shape", "expected"), [((1, 1), math.nan), ((1, 4000), 0.887), ((4000, 1), 0.887)])
def test_a_thumbnail_of_something_else_is_a_mismatch_where_there_is_a_shape_to_compare(shape, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    value = exif.measure(sample(pixels=pixels, thumb=thumbnail())).features["exif.thumbnail_mismatch"]
    assert value == pytest.approx(expected, abs=0.001, nan_ok=True)


def test_a_generators_record_scores_zero_and_an_editor_is_flagged():
    comment = b"ASCII\0\0\0a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    generated = exif.measure(sample({(EXIF, E_.UserComment): comment}))
    assert (generated.features["exif_score"], generated.features["exif.software_generator"]) == (0.0, 1.0)
    edited = exif.measure(sample({(IMAGE, I_.Software): b"Adobe Photoshop 22.4 (Windows)"}))
    assert (edited.features["exif.software_editor"], edited.features["exif.software_generator"]) == (1.0, 0.0)


def test_the_position_itself_is_never_told():
    camera = exif.measure(sample()).facts["camera"]
    assert camera["has_gps"] is True
    assert not any("48" in str(value) or "11.5" in str(value) for value in camera.values())


def test_shown_values_are_short_and_free_of_controls():
    camera = exif.measure(sample({(IMAGE, I_.Make): b"Ca\x1b[31m\nnon" + b"x" * 5000})).facts["camera"]
    assert len(camera["make"]) <= 200
    assert camera["make"].isprintable()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_other_containers_give_the_same_record(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert exif.measure(sample(format=format, **options)).features["exif_score"] == 1.0
