"""What the file claims about its own origin, each claim with how hard it would be to forge.

Composes C2PA manifests, IPTC source types, generator signatures and China's AI label. A claim found is evidence of
its grade; no claim is no evidence. Does not look at pixels and does not decide a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Final

from ingress.texts import clean
from provenance import c2pa as c2pa_manifest
from provenance import generators, stealth
from provenance.c2pa import Credentials, Manifest
from provenance.generators import SOURCE_TYPE_KINDS, source_type
from utils.contracts import (
    AI_KINDS,
    GRADES,
    Claim,
    ClaimKind,
    Field,
    Grade,
    Json,
    Measurement,
    Metadata,
    Note,
    RgbArray,
    Sample,
    strongest,
)

# What a feature counts, from 1 on; 0 is no claim. A broken binding has no grade: it makes no claim. The mark in the
# pixels is not counted here: it has features of its own (provenance.watermark).
_COUNTED_GRADES: Final = tuple(grade for grade in GRADES if grade != "pixel_watermark")

FEATURES: Mapping[str, str] = {
    "provenance.ai_grade": "best grade of a claim that AI generated or edited the image: 0 none, 1 forgeable metadata, "
    "2 signed by somebody unknown, 3 signed by a trusted signer",
    "provenance.ai_edited": "1 when AI is claimed only for parts or edits of the image, else 0",
    "provenance.capture_grade": "best grade of a claim that a camera took the image, 0..3 likewise; EXIF is none",
    "provenance.edited": "1 when a manifest or a known program's name says that the image was edited, else 0",
    "provenance.c2pa_binding": "1 manifest bound to these bytes, 0 no manifest, -1 manifest that does not match them",
}

# Actions that keep the picture as it is (C2PA 2.2, table of actions); every other one edits.
_KEEPING_ACTIONS: Final = frozenset(
    f"c2pa.{name}"
    for name in (
        "created", "opened", "converted", "transcoded", "repackaged", "published", "edited.metadata", "unknown",
        "watermarked", "watermarked.bound", "watermarked.unbound",
    )
)  # fmt: skip
_REMOTE_MANIFEST: Final = "{http://purl.org/dc/terms/}provenance"


def measure(
    sample: Sample, trust_anchors: str | None = None, novelai_key: bytes = stealth.NOVELAI_PUBLIC_KEY
) -> Measurement:
    """Collect and grade every claim.

    Args:
        trust_anchors: PEM certificates of accepted C2PA authorities; without them no signature grades above
            signed_untrusted.
        novelai_key: 32 bytes, NovelAI's Ed25519 key.
    """
    found = sample.metadata
    credentials = c2pa_manifest.read(sample.raw, sample.format, trust_anchors) if found.has_c2pa else None
    hits = generators.find(found)
    label = generators.find_tc260(found)
    signed = _novelai_signature(found, sample.rgb, novelai_key)
    claims = (
        *_c2pa_claims(credentials),
        *([stealth.signed_by_novelai("png_text")] if signed else []),
        *_source_type_claims(found),
        *(_signature_claim(hit) for hit in hits),
        *_tc260_claims(label),
        *_editor_claims(found),
    )
    facts: dict[str, Json] = {
        "c2pa": _c2pa_fact(credentials, found),
        "generator": _generator_fact(claims, hits),
        "iptc": _iptc_fact(found),
        "camera_capture": next((asdict(claim) for claim in claims if claim.kind == "captured"), None),
        "tc260": label and {**label[1], "place": label[0].source},
    }
    return Measurement(
        _features(claims, credentials), _notes(credentials, facts, signed, found.damaged), claims=claims, facts=facts
    )


def _features(claims: Sequence[Claim], credentials: Credentials | None) -> dict[str, float]:
    kinds = {claim.kind for claim in claims}
    binding = {"intact": 1, "broken": -1}[credentials.binding] if credentials else 0
    return {
        "provenance.ai_grade": float(_best_grade(claims, AI_KINDS)),
        "provenance.ai_edited": float("edited_with_ai" in kinds and "generated" not in kinds),
        "provenance.capture_grade": float(_best_grade(claims, ("captured",))),
        "provenance.edited": float("edited" in kinds),
        "provenance.c2pa_binding": float(binding),
    }


def _best_grade(claims: Sequence[Claim], kinds: Sequence[ClaimKind]) -> int:
    return max((1 + _COUNTED_GRADES.index(claim.grade) for claim in claims if claim.kind in kinds), default=0)


def _notes(
    credentials: Credentials | None, facts: Mapping[str, Json], novelai_signed: bool | None, damaged: Sequence[str]
) -> tuple[Note, ...]:
    notes = []
    if credentials and credentials.binding == "broken":
        why = credentials.unreadable or ", ".join(credentials.problems) or "no hash or signature that matches"
        text = f"The C2PA manifest does not match these bytes ({why}); nothing it says counts."
        notes.append(Note("c2pa_broken_binding", text))
    elif credentials and not credentials.is_trusted:
        notes.append(
            Note("c2pa_untrusted_signer", "The C2PA signature is valid, but nobody we trust vouches for its signer.")
        )
    if facts["c2pa"] and facts["c2pa"]["binding"] == "remote":
        notes.append(Note("c2pa_remote", "The file points to a C2PA manifest elsewhere; it was not fetched."))
    if novelai_signed is False:
        text = "NovelAI's signature in the metadata does not match these pixels and settings."
        notes.append(Note("novelai_broken_signature", text))
    tc260 = facts["tc260"]
    if tc260 and tc260.get("Label") in ("2", "3"):
        word = "possibly" if tc260["Label"] == "2" else "suspected to be"
        notes.append(Note("tc260_uncertain", f"A platform labelled the image as {word} AI-generated (TC260)."))
    if "xmp" in damaged:
        text = "The file holds XMP metadata that cannot be read, or not to its end; what it says there is not known."
        notes.append(Note("xmp_unreadable", text))
    return tuple(notes)


# --- C2PA -------------------------------------------------------------------------------------------------------------


def _c2pa_claims(credentials: Credentials | None) -> Iterator[Claim]:
    """AI wherever a manifest of the image or of one of its parts says so; capture only without any AI in the chain."""
    if credentials is None or credentials.binding != "intact":
        return
    own = [manifest for manifest in credentials.manifests if manifest.role != "input" and manifest.is_intact]
    claims = [claim for manifest in own for claim in _manifest_claims(manifest)]
    has_ai = any(claim.kind in AI_KINDS for claim in claims)
    yielded: set[ClaimKind] = set()
    for claim in sorted(claims, key=lambda claim: claim.rank, reverse=True):
        if claim.kind not in yielded and not (claim.kind == "captured" and has_ai):
            yielded.add(claim.kind)
            yield claim


def _manifest_claims(manifest: Manifest) -> Iterator[Claim]:
    names = (manifest.generator, *(action.agent for action in manifest.actions), manifest.issuer)
    row = generators.c2pa_product(names)
    product = row.product if row else ""
    product = product or next((action.agent for action in manifest.actions if action.agent), "") or manifest.generator
    ai_product = (row and row.ai_product) or product
    grade: Grade = "cryptographic" if manifest.is_trusted else "signed_untrusted"
    signer = (
        f"{manifest.issuer or 'an unnamed signer'} ({'trusted' if manifest.is_trusted else 'identity not verified'})"
    )
    is_part = manifest.role == "component"
    terms = [(action.name, source_type(action.source_type) or "") for action in manifest.actions]
    terms += [("c2pa.created", source_type(said) or "") for said in manifest.source_types]
    if (manifest.declares_ai or (row and row.only_generates)) and not any(
        term in SOURCE_TYPE_KINDS for _, term in terms
    ):
        terms.append(("c2pa.created", "trainedAlgorithmicMedia"))
    for action, term in terms:
        kind = SOURCE_TYPE_KINDS.get(term)
        if kind == "generated" and (is_part or action != "c2pa.created"):
            kind = "edited_with_ai"  # AI made a part of the image, or came in at a later step
        if kind in AI_KINDS or (kind == "captured" and action == "c2pa.created" and not is_part):
            name = ai_product if kind in AI_KINDS else product
            yield Claim("c2pa", kind, grade, name, f"C2PA manifest signed by {signer}: {action}, {term}, {name}")
    if not is_part and any(action not in _KEEPING_ACTIONS for action, _ in terms):
        steps = ", ".join(dict.fromkeys(action for action, _ in terms if action not in _KEEPING_ACTIONS))
        text = clean(f"C2PA manifest signed by {signer}: edited ({steps}) in {product}")
        yield Claim("c2pa", "edited", grade, product, text)


def _c2pa_fact(credentials: Credentials | None, found: Metadata) -> Json:
    if credentials:
        return credentials.to_json()
    if address := next(found.values("xmp", _REMOTE_MANIFEST), None):
        return {"binding": "remote", "trusted": False, "address": clean(address)}
    return None


# --- plain metadata: anybody can write it -----------------------------------------------------------------------------


def _source_types(found: Metadata) -> Iterator[tuple[Field, str]]:
    for field in found.fields:
        if field.source == "xmp" and generators.SOURCE_TYPE_PROPERTY.fullmatch(field.name):
            term = source_type(field.value)
            if term:
                yield field, term


def _source_type_claims(found: Metadata) -> Iterator[Claim]:
    system = _ai_system(found)
    for _, term in _source_types(found):
        if kind := SOURCE_TYPE_KINDS.get(term):
            text = f"IPTC digital source type: {term}"
            yield Claim("iptc", kind, "forgeable_metadata", system if kind in AI_KINDS else "", text)
            return
    if system:
        yield Claim("iptc", "generated", "forgeable_metadata", system, f"IPTC AI system used: {system}")


def _ai_system(found: Metadata) -> str:
    """IPTC Photo Metadata 2025.1: the AI system used to generate the image."""
    return clean(next(found.values("xmp", generators.XMP_IPTC_EXT + "AISystemUsed"), ""), 80)


def _iptc_fact(found: Metadata) -> Json:
    term = next((term for _, term in _source_types(found)), None)
    names = ("AISystemUsed", "AISystemVersionUsed", "AIPromptInformation", "AIPromptWriterName")
    values = {name: next(found.values("xmp", generators.XMP_IPTC_EXT + name), "") for name in names}
    said = {name: clean(value) for name, value in values.items() if value}
    if not term and not said:
        return None
    return {"digital_source_type": term, "kind": SOURCE_TYPE_KINDS.get(term or ""), **said}


def _signature_claim(hit: generators.Hit) -> Claim:
    verb = {"generated": "generated by", "edited_with_ai": "edited with the AI of"}.get(hit.kind, "processed with")
    text = f"Metadata ({hit.source}: {clean(hit.name, 60)}) says: {verb} {hit.generator}"
    return Claim(hit.source, hit.kind, "forgeable_metadata", hit.generator, text)


def _novelai_signature(found: Metadata, rgb: RgbArray, public_key: bytes) -> bool | None:
    """Whether NovelAI's signature in the text fields fits these pixels; None when there is none."""
    comments = (*found.values("png_text", "Comment"), *found.values("exif", "UserComment"))
    return next((stealth.verify_signed_hash(rgb, text, public_key) for text in comments if "signed_hash" in text), None)


def _generator_fact(claims: Sequence[Claim], hits: Sequence[generators.Hit]) -> Json:
    """The named generator of the strongest AI claim, with the text it left when that is plain metadata."""
    claim = strongest(claim for claim in claims if claim.kind in AI_KINDS and claim.generator)
    if claim is None:
        return None
    text = next((hit.text for hit in hits if hit.source == claim.source), "")
    return {
        "name": claim.generator,
        "kind": claim.kind,
        "grade": claim.grade,
        "source": claim.source,
        "text": text,
    }


def _tc260_claims(label: tuple[Field, Mapping[str, str]] | None) -> Iterator[Claim]:
    """Label 1 says generated; 2 and 3 are a platform's guess, told as a note and no claim."""
    if label and label[1].get("Label") == "1":
        producer = label[1].get("ContentProducer", "")
        yield Claim("tc260", "generated", "forgeable_metadata", producer, "TC260 label: AI-generated content")


def _editor_claims(found: Metadata) -> Iterator[Claim]:
    if hit := generators.find_editor(found):
        yield Claim(hit.source, "edited", "forgeable_metadata", hit.generator, f"Software field names {hit.generator}")
