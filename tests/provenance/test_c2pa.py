"""C2PA on files that we sign here with certificates made for the test: binding, trust, chains, damage."""

import datetime
import functools
import io
import json
import random
import subprocess
import sys

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from inference.parts import load_forensics
from ingress import metadata
from provenance import claims as provenance
from provenance.c2pa import read, read_anchors
from utils.contracts import Sample
from utils.errors import BadSettings

CV = "http://cv.iptc.org/newscodes/digitalsourcetype/"
AI, CAPTURE, COMPOSITE = (
    CV + "trainedAlgorithmicMedia",
    CV + "digitalCapture",
    CV + "compositeWithTrainedAlgorithmicMedia",
)
MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff", "AVIF": "image/avif"}


def _certificate(common_name, issuer_name, key, signer, extensions):
    def named(name):
        return x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]
        )

    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(named(issuer_name), named(common_name), key.public_key(), 1 + len(common_name))
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=9)
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(signer, hashes.SHA256())


@functools.cache
def chain(organisation):
    """A root and a signer in the C2PA certificate profile: (chain PEM, key PEM, root PEM)."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    off = dict.fromkeys((*unused, "decipher_only"), False)
    for_ca = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **off)
    for_claims = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **off)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    root_id, leaf_id = (x509.SubjectKeyIdentifier.from_public_key(each.public_key()) for each in (root_key, key))
    for_root = [(x509.BasicConstraints(True, None), True), (for_ca, True), (root_id, False)]
    root = _certificate("Root", "Root", root_key, root_key, for_root)
    leaf = _certificate(
        organisation,
        "Root",
        key,
        root_key,
        [
            (x509.BasicConstraints(False, None), True),
            (for_claims, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), True),
            (authority, False),
            (leaf_id, False),
        ],
    )
    root_pem, leaf_pem = (each.public_bytes(serialization.Encoding.PEM) for each in (root, leaf))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return leaf_pem + root_pem, secret, root_pem


def unsigned(format="PNG", seed=0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


def action(name="c2pa.created", source_type=None, agent="TestModel"):
    given = {"action": name, "softwareAgent": {"name": agent}}
    if name in ("c2pa.opened", "c2pa.placed"):
        given["parameters"] = {"ingredientIds": ["it"]}
    return given | ({"digitalSourceType": source_type} if source_type else {})


def sign(raw, *actions, format="PNG", generator="TestGen", assertions=(), ingredient=None, relationship="parentOf",
         organisation="Test Signer") -> bytes:  # fmt: skip
    certificates, key, _ = chain(organisation)
    definition = {
        "claim_generator_info": [{"name": generator, "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}, *assertions],
    }
    signed = io.BytesIO()
    with (
        c2pa.Context.from_dict({"verify": {"verify_after_sign": False}}) as context,
        c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", certificates, key, None)) as signer,
        c2pa.Builder(definition, context=context) as builder,
    ):
        if ingredient is not None:
            about = {"title": "ingredient", "relationship": relationship, "label": "it"}
            builder.add_ingredient(json.dumps(about), MIME[format], io.BytesIO(ingredient))
        builder.sign(signer, MIME[format], io.BytesIO(raw), signed)
    return signed.getvalue()


@pytest.fixture
def anchors(tmp_path):
    path = tmp_path / "anchors.pem"
    path.write_bytes(chain("Test Signer")[2])
    return read_anchors(path)


def measure(raw, format="PNG", anchors=None):
    sample = Sample("x", raw, np.zeros((64, 64, 3), np.uint8), format, metadata=metadata.read(raw, format))
    return provenance.measure(sample, anchors)


def claims(raw, format="PNG", anchors=None):
    return [(claim.kind, claim.grade) for claim in measure(raw, format, anchors).claims]


@pytest.mark.parametrize("format", MIME)
def test_a_manifest_is_read_in_every_format_and_trusted_only_with_anchors(format, anchors):
    raw = sign(unsigned(format), action(source_type=AI), format=format)
    found = read(raw, format)
    assert (found.binding, found.is_trusted) == ("intact", False)
    assert found.problems == ("signingCredential.untrusted",)
    assert found.manifests[0].issuer == "Test Signer"
    assert claims(raw, format) == [("generated", "signed_untrusted")]
    assert claims(raw, format, anchors) == [("generated", "cryptographic")]


def test_a_file_without_a_manifest_says_nothing():
    assert measure(unsigned()).features["provenance.c2pa_binding"] == 0


def test_a_flipped_pixel_byte_breaks_the_binding_and_silences_the_manifest(anchors):
    raw = bytearray(sign(unsigned(), action(source_type=AI)))
    raw[-30] ^= 1
    found = read(bytes(raw), "PNG", anchors)
    assert (found.binding, found.is_trusted, found.manifests) == ("broken", False, ())
    assert "assertion.dataHash.mismatch" in found.problems
    result = measure(bytes(raw), anchors=anchors)
    assert result.claims == ()
    assert [note.code for note in result.notes] == ["c2pa_broken_binding"]
    assert result.features["provenance.c2pa_binding"] == -1


def test_a_flipped_byte_of_the_claim_or_its_statements_breaks_the_binding(anchors):
    raw = sign(unsigned(), action(source_type=AI))
    for token in (b"trainedAlgorithmicMedia", b"TestModel", b"TestGen", b"c2pa.created", b"sha256"):
        mutant = bytearray(raw)
        mutant[raw.index(token) + 2] ^= 1
        found = read(bytes(mutant), "PNG", anchors)
        assert (found.binding, found.is_trusted) == ("broken", False), token


def test_any_flipped_byte_changes_no_statement_that_is_still_called_intact(anchors):
    raw = sign(unsigned(), action(source_type=AI))
    store = raw.index(b"caBX")
    before = read(raw, "PNG", anchors)
    rng = random.Random(0)
    for _ in range(150):
        mutant = bytearray(raw)
        mutant[rng.randrange(store + 4, len(raw))] ^= 1 << rng.randrange(8)
        after = read(bytes(mutant), "PNG", anchors)
        assert after is None or after.binding == "broken" or after.manifests == before.manifests


def test_a_manifest_moved_to_another_picture_is_broken(anchors):
    raw, other = sign(unsigned(), action(source_type=CAPTURE)), unsigned(seed=1)
    start = raw.index(b"caBX") - 4
    chunk = raw[start : start + 12 + int.from_bytes(raw[start : start + 4], "big")]
    assert read(other[:33] + chunk + other[33:], "PNG", anchors).binding == "broken"
    assert claims(other[:33] + chunk + other[33:], anchors=anchors) == []


def test_a_destroyed_manifest_is_broken_and_says_why():
    raw = bytearray(sign(unsigned(), action(source_type=AI)))
    start = raw.index(b"caBX") + 60
    raw[start : start + 400] = bytes(400)
    found = read(bytes(raw), "PNG")
    assert found.binding == "broken"
    assert found.unreadable or found.problems


def test_c2pa_words_in_a_format_that_has_no_manifests_are_reported_as_unreadable():
    found = read(unsigned("BMP") + b"jumb c2pa", "BMP")
    assert (found.binding, found.unreadable) == ("broken", "C2PA data in a BMP file")


def test_ai_said_by_the_parent_is_found_behind_a_silent_active_manifest(anchors):
    parent = sign(unsigned(), action(source_type=AI, agent="GPT-4o"), generator="ChatGPT")
    raw = sign(unsigned(), action("c2pa.opened"), generator="ChatGPT", ingredient=parent)
    (claim,) = [each for each in measure(raw, anchors=anchors).claims if each.kind == "generated"]
    assert claim.generator == "OpenAI"
    assert [manifest.role for manifest in read(raw, "PNG").manifests] == ["active", "parent"]


def test_an_ai_part_makes_the_image_edited_and_an_input_makes_it_nothing():
    part = sign(unsigned(), action(source_type=AI))
    composed = sign(unsigned(), action("c2pa.placed"), ingredient=part, relationship="componentOf")
    assert ("edited_with_ai", "signed_untrusted") in claims(composed)
    assert "generated" not in dict(claims(composed))
    prompted = sign(unsigned(), action(source_type=CV + "digitalCreation"), ingredient=part, relationship="inputTo")
    assert claims(prompted) == []


def test_a_captured_input_does_not_make_a_generated_image_a_photograph():
    photo = sign(unsigned(), action(source_type=CAPTURE))
    raw = sign(unsigned(), action(source_type=AI), ingredient=photo, relationship="inputTo")
    assert claims(raw) == [("generated", "signed_untrusted")]


def test_capture_is_claimed_through_edits_but_not_through_generative_fill(anchors):
    photo = sign(unsigned(), action(source_type=CAPTURE))
    cropped = sign(unsigned(), action("c2pa.opened"), action("c2pa.cropped"), ingredient=photo)
    assert {kind for kind, _ in claims(cropped)} == {"captured", "edited"}
    filled = sign(unsigned(), action("c2pa.opened"), action("c2pa.edited", COMPOSITE), ingredient=photo)
    assert {kind for kind, _ in claims(filled)} == {"edited_with_ai", "edited"}


def test_a_trusted_editor_does_not_lend_its_trust_to_an_unknown_camera(anchors):
    photo = sign(unsigned(), action(source_type=CAPTURE), organisation="Unknown")
    raw = sign(unsigned(), action("c2pa.opened"), ingredient=photo)
    assert read(raw, "PNG", anchors).is_trusted
    assert ("captured", "signed_untrusted") in claims(raw, anchors=anchors)


def test_a_tampered_ingredient_makes_no_claim(anchors):
    photo = bytearray(sign(unsigned(), action(source_type=CAPTURE)))
    photo[-30] ^= 1
    raw = sign(unsigned(), action("c2pa.opened"), ingredient=bytes(photo))
    assert "captured" not in dict(claims(raw, anchors=anchors))


@pytest.mark.parametrize("term", ["algorithmicMedia", "screenCapture", "composite", "trainedAlgorithmicMediaX"])
def test_other_source_types_claim_nothing(term):
    assert claims(sign(unsigned(), action(source_type=CV + term))) == []


def test_a_declared_ai_assertion_counts_without_a_source_type():
    """Such a manifest breaks the standard's rules for actions, and is bound to its bytes all the same."""
    extra = {"label": "c2pa.ai_generated_content", "data": {"ai_generated": True, "model": "x"}}
    assert claims(sign(unsigned(), action(), assertions=[extra])) == [("generated", "signed_untrusted")]


@pytest.mark.parametrize("label", ["c2pa.metadata", "cawg.metadata", "stds.iptc"])
def test_a_source_type_in_signed_metadata_counts(label):
    data = {"@context": {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"}}
    extra = {"label": label, "data": data | {"Iptc4xmpExt:DigitalSourceType": AI}}
    assert claims(sign(unsigned(), action(), assertions=[extra])) == [("generated", "signed_untrusted")]


def test_google_signs_photographs_too():
    names = [
        [
            claim.generator
            for claim in measure(sign(unsigned(), action(source_type=term), organisation="Google LLC")).claims
        ]
        for term in (CAPTURE, AI)
    ]
    assert names == [["Google"], ["Google AI"]]


def test_trust_anchors_that_cannot_be_read_are_a_setting_error(tmp_path):
    bad = tmp_path / "bad.pem"
    for content in ("", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        bad.write_text(content)
        with pytest.raises(BadSettings):
            read_anchors(bad)
    with pytest.raises(BadSettings, match="IMGV_C2PA_TRUST_ANCHORS"):  # before an image is judged, not instead of it
        load_forensics(tmp_path / "missing.pem")


def test_what_is_shown_of_a_manifest_is_capped_and_free_of_controls():
    raw = sign(unsigned(), action(source_type=AI, agent="\x1b[31m" + "x" * 5000), generator="a\u202eb" * 300)
    shown = json.dumps(measure(raw).facts, ensure_ascii=False)
    assert "\x1b" not in shown
    assert "\\u001b" not in shown
    assert "\u202e" not in shown
    assert len(shown) < 3000


_FUZZ = """
import random, sys
from provenance.c2pa import read
raw, rng = open(sys.argv[1], "rb").read(), random.Random(1)
start = raw.index(b"caBX")
for _ in range(250):
    mutant = bytearray(raw[: rng.randrange(start, len(raw))] if rng.random() < 0.2 else raw)
    for _ in range(rng.choice((1, 2, 8, 40))):
        mutant[rng.randrange(start + 4, len(mutant)) if len(mutant) > start + 4 else 0] = rng.randrange(256)
    read(bytes(mutant), "PNG")
"""


def test_mutated_manifests_neither_raise_nor_kill_the_process(tmp_path):
    path = tmp_path / "signed.png"
    path.write_bytes(sign(unsigned(), action(source_type=AI), ingredient=sign(unsigned(), action(source_type=AI))))
    ended = subprocess.run([sys.executable, "-c", _FUZZ, str(path)], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr[-2000:]
