"""C2PA manifests: what is bound to these bytes, who signed it, and what every manifest in the chain says happened.

Content Credentials (C2PA 2.2) read with c2pa-python, offline. Keeps binding (do signature and hashes match these
bytes?) and trust (is the signer one of ours?) apart; decides nothing about AI or authenticity.
"""

from __future__ import annotations

import io
import json
import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import c2pa

from ingress.texts import clean
from utils.contracts import Json
from utils.errors import BadSettings

Binding: TypeAlias = Literal["intact", "broken"]
Role: TypeAlias = Literal["active", "parent", "component", "input"]

MAX_MANIFESTS: Final = 64
MAX_ACTIONS: Final = 256

# By our decoder's format, never by the file's name.
_MIME: Final = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
}
# C2PA 2.2, section 15.2.1: the success codes that tie a manifest to the bytes it lies in.
_HARD_BINDINGS: Final = frozenset(f"assertion.{kind}.match" for kind in ("dataHash", "bmffHash", "boxesHash"))
# The failures that concern who signed and when, not whether the bytes are the signed ones.
_TRUST_FAILURES: Final = ("signingCredential.", "timeStamp.", "timeOfSigning.")
# A signer whose actions break a rule of the standard signed them nevertheless: bound, though never trusted.
_BOUND_NEVERTHELESS: Final = (*_TRUST_FAILURES, "assertion.action.")
# Only informational to the standard, but they say that the timestamp lies in damaged bytes.
_DAMAGED_TIMESTAMP: Final = frozenset(("timeStamp.mismatch", "timeStamp.malformed"))
# Assertions that hold IPTC's photo metadata as JSON-LD (C2PA 2.2, section 18.16; CAWG metadata 1.1).
_METADATA: Final = ("c2pa.metadata", "cawg.metadata", "stds.iptc", "stds.exif", "stds.xmp")
_SOURCE_TYPE_KEY: Final = re.compile(r"(?i)(?:^|[:/])DigitalSource(?:File)?Type$")
_OFFLINE: Final = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a manifest's actions."""

    name: str  # c2pa.created, c2pa.edited, ...
    source_type: str = ""  # digitalSourceType as written
    agent: str = ""  # the software that acted


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest on the way from the active one to its ingredients. All texts are capped and free of controls."""

    role: Role
    generator: str
    issuer: str
    common_name: str
    signed_at: str  # RFC 3339 from a timestamp, or empty
    actions: tuple[Action, ...]
    is_trusted: bool
    is_intact: bool
    declares_ai: bool = False  # the assertion c2pa.ai_generated_content says so
    source_types: tuple[str, ...] = ()  # of the image, from assertions that hold IPTC's metadata; as written


@dataclass(frozen=True, slots=True)
class Credentials:
    """All manifests of one file. When the binding is broken they prove nothing and none is listed."""

    binding: Binding
    is_trusted: bool
    problems: tuple[str, ...]  # validation status codes of C2PA, failures only
    manifests: tuple[Manifest, ...] = ()  # the active one first
    unreadable: str | None = None  # why there is no manifest to look at

    def to_json(self) -> Json:
        signer = self.manifests[0] if self.manifests else None
        return {
            "binding": self.binding,
            "trusted": self.is_trusted,
            "problems": list(self.problems),
            "unreadable": self.unreadable,
            "signer": signer and {"issuer": signer.issuer, "common_name": signer.common_name},
            "signed_at": signer.signed_at if signer else "",
            "manifests": [
                {
                    "role": manifest.role,
                    "generator": manifest.generator,
                    "issuer": manifest.issuer,
                    "actions": [
                        {"action": act.name, "source_type": act.source_type, "agent": act.agent}
                        for act in manifest.actions[:16]
                    ],
                }
                for manifest in self.manifests
            ],
        }


def read(raw: bytes, format: str, trust_anchors: str | None = None) -> Credentials:
    """Read and check the C2PA data embedded in one file, of which ``Metadata.has_c2pa`` says that it is there.

    Args:
        raw: the file as received.
        format: Pillow's name of what the bytes decode to.
        trust_anchors: certificates of accepted authorities, as ``read_anchors`` gives them; without them no signer is
            trusted.

    A hostile image never raises.
    """
    settings: dict[str, Any] = dict(_OFFLINE)
    if trust_anchors is not None:
        settings["trust"] = {"trust_anchors": trust_anchors}
    if format not in _MIME:
        return _unreadable(f"C2PA data in a {format} file")
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(_MIME[format], io.BytesIO(raw), context=context) as reader,
        ):
            store = json.loads(reader.json())
    except (c2pa.C2paError, ValueError, RecursionError) as error:
        return _unreadable(clean(error))
    return _judge(store)


def read_anchors(path: Path) -> str:
    """The certificates in a PEM file.

    Raises:
        BadSettings: it is no such file.
    """
    try:
        pem = path.read_text(encoding="ascii")
        # The native library skips a malformed certificate in silence, which would untrust everybody.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise BadSettings(f"IMGV_C2PA_TRUST_ANCHORS: {path} is not a readable PEM file of certificates") from error
    return pem


def _unreadable(reason: str) -> Credentials:
    return Credentials("broken", is_trusted=False, problems=(), unreadable=reason)


def _judge(store: Json) -> Credentials:
    """Binding and trust by validation code: the library's overall state mixes the two.

    Fails closed: intact needs a validated signature, a matching hard binding and no failure that concerns either.
    """
    results = store.get("validation_results") or {}
    active = results.get("activeManifest") or {}
    deltas = [delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or ()]
    passed, remarks = _codes(active.get("success")), _codes(active.get("informational"))
    failed = _codes(active.get("failure"), *(delta.get("failure") for delta in deltas), store.get("validation_status"))
    failed |= remarks & _DAMAGED_TIMESTAMP
    is_intact = (
        "claimSignature.validated" in passed
        and not _HARD_BINDINGS.isdisjoint(passed)
        and _DAMAGED_TIMESTAMP.isdisjoint(failed)
        and all(code.startswith(_BOUND_NEVERTHELESS) for code in failed)
    )
    is_trusted = is_intact and "signingCredential.trusted" in passed and not _codes(active.get("failure"))
    manifests = tuple(_walk(store, deltas, is_trusted)) if is_intact else ()
    problems = tuple(clean(code, 80) for code in sorted(failed))
    return Credentials("intact" if manifests else "broken", is_trusted and bool(manifests), problems, manifests)


def _codes(*statuses: Iterable[Json] | None) -> set[str]:
    return {str(status.get("code")) for each in statuses for status in each or ()}


def _walk(store: Json, deltas: list[Json], active_is_trusted: bool) -> Iterator[Manifest]:
    """The active manifest, then those of its ingredients, nearest first; each once."""
    manifests = store.get("manifests") or {}
    queue: list[tuple[str, Role, bool, bool]] = [
        (store.get("active_manifest") or "", "active", active_is_trusted, True)
    ]
    seen: set[str] = set()
    while queue and len(seen) < MAX_MANIFESTS:
        label, role, is_trusted, is_intact = queue.pop(0)
        if label in seen or label not in manifests:
            continue
        seen.add(label)
        yield _manifest(manifests[label], role, is_trusted, is_intact)
        for ingredient in manifests[label].get("ingredients") or ():
            child = ingredient.get("active_manifest") or ""
            passed, failed = _ingredient_codes(ingredient, child, deltas)
            queue.append(
                (
                    child,
                    _child_role(role, str(ingredient.get("relationship"))),
                    is_trusted and "signingCredential.trusted" in passed and not failed,
                    is_intact and all(code.startswith(_BOUND_NEVERTHELESS) for code in failed),
                )
            )


def _ingredient_codes(ingredient: Json, label: str, deltas: Iterable[Json]) -> tuple[set[str], set[str]]:
    """What was recorded about an ingredient when it was taken in, and what today's check adds to that."""
    recorded = (ingredient.get("validation_results") or {}).get("activeManifest") or {}
    today = [
        {kind: [status for status in delta.get(kind) or () if f"/{label}/" in f"{status.get('url')}/"]}
        for delta in deltas
        for kind in ("success", "failure")
    ]
    passed = _codes(recorded.get("success"), *(each.get("success") for each in today))
    failed = _codes(
        recorded.get("failure"), ingredient.get("validation_status"), *(each.get("failure") for each in today)
    )
    return passed, failed


def _child_role(role: Role, relationship: str) -> Role:
    """What an ingredient is to the image itself: its earlier self, a part of it, or only what a tool was given."""
    if role == "input" or relationship == "inputTo":
        return "input"
    return "parent" if relationship == "parentOf" and role in ("active", "parent") else "component"


def _manifest(manifest: Json, role: Role, is_trusted: bool, is_intact: bool) -> Manifest:
    signature = manifest.get("signature_info") or {}
    info = manifest.get("claim_generator_info") or [{}]
    generator = info[0].get("name") or manifest.get("claim_generator") or ""
    actions: list[Action] = []
    declares_ai = False
    source_types: list[str] = []
    for assertion in manifest.get("assertions") or ():
        label, data = str(assertion.get("label")), assertion.get("data")
        if not isinstance(data, dict):
            continue
        if label.startswith("c2pa.actions"):
            entries = data.get("actions")
            entries = entries[: MAX_ACTIONS - len(actions)] if isinstance(entries, list) else []
            agents = data.get("softwareAgents")
            agents = agents if isinstance(agents, list) else []
            actions.extend(_action(entry, agents) for entry in entries if isinstance(entry, dict))
        elif label.startswith("c2pa.ai_generated_content"):
            declares_ai = data.get("ai_generated") is True
        elif label.startswith(_METADATA):
            source_types.extend(
                clean(value, 120)
                for key, value in data.items()
                if _SOURCE_TYPE_KEY.search(key) and isinstance(value, str) and len(source_types) < MAX_ACTIONS
            )
    return Manifest(
        role,
        clean(generator, 80),
        clean(signature.get("issuer") or "", 80),
        clean(signature.get("common_name") or "", 80),
        clean(signature.get("time") or "", 40),
        tuple(actions),
        is_trusted,
        is_intact,
        declares_ai,
        tuple(source_types),
    )


def _action(action: Json, agents: Sequence[Json] = ()) -> Action:
    """One action; what acted is named in it or, in the second form of the standard, by its place in a list."""
    agent, index = action.get("softwareAgent") or "", action.get("softwareAgentIndex")
    if not agent and isinstance(index, int) and 0 <= index < len(agents):
        agent = agents[index]
    if isinstance(agent, dict):
        agent = agent.get("name") or ""
    parameters = action.get("parameters")
    adobe = parameters.get("com.adobe.digitalSourceType") if isinstance(parameters, dict) else None
    source_type = action.get("digitalSourceType") or action.get("com.adobe.digitalSourceType") or adobe or ""
    return Action(clean(action.get("action") or "", 80), clean(source_type, 120), clean(agent, 80))
