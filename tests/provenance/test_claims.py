"""Claims of plain metadata: found, graded, combined, silent when there are none. Signed ones: test_c2pa.py."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import piexif
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_image

from ingress import metadata
from provenance import claims as provenance
from utils.contracts import Sample, strongest

PHOTO = load_sample_image("china.jpg")
CV = "http://cv.iptc.org/newscodes/digitalsourcetype/"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:iptcExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:other="http://example.com/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
    'xmlns:T="http://www.tc260.org.cn/ns/AIGC/1.0/" xmlns:dcterms="http://purl.org/dc/terms/" '
    "xmlns:xmp='http://ns.adobe.com/xap/1.0/' {}>{}</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def saved(format="JPEG", pixels=PHOTO, **options) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return carrying(buffer.getvalue(), pixels, format)


def carrying(raw: bytes, pixels=PHOTO, format="PNG") -> Sample:
    return Sample("x", raw, np.asarray(pixels), format, metadata=metadata.read(raw, format))


def with_xmp(attributes="", elements="") -> Sample:
    return saved(xmp=XMP.format(attributes, elements).encode())


def with_text(**texts) -> Sample:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key.replace("_", " "), value)
    return saved("PNG", pnginfo=info)


def claims(sample) -> list[tuple[str, str, str]]:
    return [(each.source, each.kind, each.generator) for each in provenance.measure(sample).claims]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_picture_without_metadata_claims_nothing(format):
    found = provenance.measure(saved(format))
    assert found.claims == ()
    assert set(found.features) == set(provenance.FEATURES)
    assert set(found.features.values()) == {0.0}
    assert found.notes == ()


@pytest.mark.parametrize(
    "value", [CV + "trainedAlgorithmicMedia", CV.replace("http:", "https:") + "trainedAlgorithmicMedia"]
)
@pytest.mark.parametrize(
    "form",
    [
        ('iptcExt:DigitalSourceType="{}"', ""),
        ("", "<iptcExt:DigitalSourceType>{}</iptcExt:DigitalSourceType>"),
        ("", '<iptcExt:DigitalSourceType rdf:resource="{}"/>'),
        ('iptcExt:DigitalSourcefileType="{}"', ""),
    ],
)
def test_the_iptc_source_type_is_read_in_every_form(form, value):
    sample = with_xmp(*(part.format(value) for part in form))
    assert claims(sample) == [("iptc", "generated", "")]
    assert provenance.measure(sample).features["provenance.ai_grade"] == 1


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("compositeWithTrainedAlgorithmicMedia", ["edited_with_ai"]),
        ("compositeSynthetic", ["edited_with_ai"]),
        ("digitalCapture", ["captured"]),
        ("computationalCapture", ["captured"]),
        ("algorithmicMedia", []),
        ("algorithmicallyEnhanced", []),
        ("trainedAlgorithmicMediaX", []),
        ("screenCapture", []),
    ],
)
def test_source_types_are_told_apart_by_the_whole_word(term, expected):
    assert [kind for _, kind, _ in claims(with_xmp(f'iptcExt:DigitalSourceType="{CV}{term}"'))] == expected


def test_a_source_type_of_another_namespace_or_of_an_ingredient_says_nothing():
    assert claims(with_xmp(f'other:DigitalSourceType="{CV}trainedAlgorithmicMedia"')) == []
    inner = (
        f'<xmp:Pantry><rdf:Bag><rdf:li iptcExt:DigitalSourceType="{CV}trainedAlgorithmicMedia"/></rdf:Bag></xmp:Pantry>'
    )
    assert claims(with_xmp(elements=inner)) == []


def test_the_ai_system_of_iptc_2025_is_a_claim_and_is_told():
    sample = with_xmp('iptcExt:AISystemUsed="PaintBot" iptcExt:AIPromptInformation="a cat"')
    assert claims(sample) == [("iptc", "generated", "PaintBot")]
    assert provenance.measure(sample).facts["iptc"]["AIPromptInformation"] == "a cat"


def test_the_chinese_label_claims_only_when_it_is_certain():
    for label, expected in (("1", [("tc260", "generated", "doubao")]), ("2", []), ("3", [])):
        sample = with_text(AIGC=f'{{"Label":"{label}","ContentProducer":"doubao"}}')
        assert claims(sample) == expected
        assert provenance.measure(sample).facts["tc260"]["Label"] == label
        assert bool(provenance.measure(sample).notes) == (not expected)
    attribute = with_xmp('T:AIGC="{&quot;Label&quot;:&quot;1&quot;}"')
    assert claims(attribute) == [("tc260", "generated", "")]


def test_a_generators_record_is_found_in_png_jpeg_and_webp():
    record = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: b"UNICODE\0" + record.encode("utf-16-be")}})
    for sample in (with_text(parameters=record), saved(exif=exif), saved("WEBP", exif=exif)):
        fact = provenance.measure(sample).facts["generator"]
        assert (fact["name"], fact["grade"]) == ("Stable Diffusion (A1111 record)", "forgeable_metadata")
        assert fact["text"].startswith("a cat")


def test_the_record_is_found_in_a_file_that_is_cut_off():
    record = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
    raw = with_text(parameters=record).raw
    assert claims(carrying(raw[: len(raw) // 2]))[0][1] == "generated"


def test_credits_and_trailers_and_editors_are_claims_of_their_kind():
    assert claims(with_xmp('photoshop:Credit="Edited with Google AI"')) == [("xmp", "edited_with_ai", "Google AI")]
    assert claims(with_xmp('xmp:CreatorTool="Adobe Photoshop 25.0"')) == [("xmp", "edited", "Adobe Photoshop 25.0")]
    plain = saved()
    phone = carrying(plain.raw + b'PhotoEditor_Re_Edit_Data{"genAIType":1}', format="JPEG")
    assert claims(phone) == [("trailer", "edited_with_ai", "Samsung Galaxy AI")]
    assert provenance.measure(phone).features["provenance.ai_edited"] == 1


def test_saving_again_without_metadata_leaves_no_claim():
    sample = with_text(parameters="Steps: 20, Sampler: Euler a, Seed: 1", Software="NovelAI")
    assert claims(sample)
    assert claims(saved("PNG", sample.rgb)) == []


def test_a_manifest_elsewhere_is_named_and_not_fetched():
    found = provenance.measure(with_xmp('dcterms:provenance="https://example.com/m.c2pa"'))
    assert found.facts["c2pa"] == {"binding": "remote", "trusted": False, "address": "https://example.com/m.c2pa"}
    assert [note.code for note in found.notes] == ["c2pa_remote"]
    assert found.claims == ()


def test_a_photographs_caption_about_ai_claims_nothing():
    description = b"A talk about Midjourney, Stable Diffusion and trainedAlgorithmicMedia; imagen 3; firefly"
    exif = piexif.dump({"0th": {piexif.ImageIFD.ImageDescription: description, piexif.ImageIFD.Artist: b"Flux"}})
    assert claims(saved(exif=exif, comment=b"Made with Google AI? No: Steps: 3")) == []


def test_a_signature_of_novelai_is_proof_until_a_pixel_changes():
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    comment = {"steps": 28, "uc": "none"}
    signature = key.sign(PHOTO.tobytes() + json.dumps(comment).encode())
    signed = json.dumps(comment | {"signed_hash": base64.b64encode(signature).decode()})
    honest = with_text(Software="NovelAI", Comment=signed)
    found = provenance.measure(honest, novelai_key=public)
    assert strongest(found.claims).grade == "cryptographic"
    assert found.facts["generator"]["grade"] == "cryptographic"
    changed = honest.rgb.copy()
    changed[0, 0, 0] ^= 1
    found = provenance.measure(replace(honest, rgb=changed), novelai_key=public)
    assert {claim.grade for claim in found.claims} == {"forgeable_metadata"}
    assert [note.code for note in found.notes] == ["novelai_broken_signature"]


def test_a_signature_that_is_not_novelais_is_told_and_proves_nothing():
    signed = json.dumps({"steps": 28, "signed_hash": base64.b64encode(bytes(64)).decode()})
    found = provenance.measure(with_text(Software="NovelAI", Comment=signed))
    assert [note.code for note in found.notes] == ["novelai_broken_signature"]
    assert {claim.grade for claim in found.claims} == {"forgeable_metadata"}
