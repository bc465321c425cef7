"""The catalogue of traces that AI generators and editors leave in metadata, and its matcher.

To add a generator: one line in SIGNATURES. Every trace here can be written and removed by anybody; a caption is never
searched for names, so "flux" or "imagen" in a sentence is no hit. Reads no bytes itself: ingress.metadata does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ingress.metadata import Field, Metadata, clean
from utils.contracts import ClaimKind, Json

Place: TypeAlias = tuple[str, str]  # Field.source, Field.name

XMP_IPTC_EXT: Final = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP_PHOTOSHOP: Final = "{http://ns.adobe.com/photoshop/1.0/}"
XMP_BASIC: Final = "{http://ns.adobe.com/xap/1.0/}"
XMP_TIFF: Final = "{http://ns.adobe.com/tiff/1.0/}"
XMP_EXIF: Final = "{http://ns.adobe.com/exif/1.0/}"
XMP_TC260: Final = "{http://www.tc260.org.cn/ns/AIGC/1.0/}"

_PARAMETERS: Final = ("png_text", "parameters")
_PNG_COMMENT: Final = ("png_text", "Comment")
_USER_COMMENT: Final = ("exif", "UserComment")
_DESCRIPTION: Final = ("exif", "ImageDescription")
_JPEG_COMMENT: Final = ("comment", "COM")
_SOFTWARE: Final = (
    ("exif", "Software"),
    ("xmp", XMP_BASIC + "CreatorTool"),
    ("xmp", XMP_TIFF + "Software"),
    ("png_text", "Software"),
    ("iptc", "2:065"),  # originating program
)
_CREDIT: Final = (("xmp", XMP_PHOTOSHOP + "Credit"), ("iptc", "2:110"))
_UUID: Final = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"


@dataclass(frozen=True, slots=True)
class Test:
    """Holds when one of the places carries a text in which every pattern is found."""

    places: tuple[Place, ...]
    patterns: tuple[str, ...] = (".",)

    def find(self, fields: Iterable[Field]) -> Field | None:
        for field in fields:
            if (field.source, field.name) in self.places and all(re.search(p, field.value) for p in self.patterns):
                return field
        return None


@dataclass(frozen=True, slots=True)
class Signature:
    """One trace: a hit needs every test. ``generator`` empty: the program names itself in the first test's field."""

    generator: str
    kind: ClaimKind
    tests: tuple[Test, ...]
    known_from: str  # where the exact form was read


@dataclass(frozen=True, slots=True)
class Hit:
    """A signature found in a file."""

    generator: str
    kind: ClaimKind
    source: str  # Field.source of the deciding field, or "trailer"
    name: str
    text: str  # beginning of that field, cleaned: often the prompt


# Most specific first: of the hits in one source the first is reported. The names of settings are case-sensitive on
# purpose. "generated" also covers image-to-image, which leaves the same record.
SIGNATURES: Final = (
    # Local Stable Diffusion family
    Signature(
        "SwarmUI",
        "generated",
        (Test((_PARAMETERS, _USER_COMMENT, ("exif", "Model")), (r'"sui_image_params"\s*:',)),),
        "stable-diffusion-prompt-reader image_data_reader.py",
    ),
    Signature(
        "Fooocus",
        "generated",
        (Test((("png_text", "fooocus_scheme"), ("exif", "MakerNote")), (r"^(?:fooocus|a1111)\0*$",)),),
        "Fooocus modules/meta_parser.py",
    ),
    Signature(
        "Fooocus", "generated", (Test((("exif", "Software"),), (r"^Fooocus v\d",)),), "Fooocus modules/meta_parser.py"
    ),
    Signature(
        "Fooocus",
        "generated",
        (Test((_PNG_COMMENT, _JPEG_COMMENT), (r"^\s*\{", r'"(?:fooocus_v2_expansion|Fooocus V2 Expansion)"\s*:')),),
        "Fooocus modules/private_logger.py",
    ),
    Signature(
        "InvokeAI",
        "generated",
        (
            Test(
                tuple(("png_text", name) for name in ("invokeai_metadata", "invokeai_workflow", "invokeai_graph")),
                (r"^\s*\{",),
            ),
        ),
        "InvokeAI image_files_disk.py",
    ),
    Signature(
        "InvokeAI",
        "generated",
        (Test((("png_text", "sd-metadata"),), (r"^\s*\{", r'"(?:model_weights|app_id|image)"\s*:')),),
        "InvokeAI 2.x pngwriter.py",
    ),
    Signature(
        "InvokeAI",
        "generated",
        (Test((("png_text", "Dream"),), (r"\s-s ?\d+", r"\s-S ?\d+")),),
        "InvokeAI 1.x pngwriter.py",
    ),
    Signature(
        "NovelAI",
        "generated",
        (Test((("png_text", "Software"), ("exif", "Software")), (r"^NovelAI\b",)),),
        "novelai-image-metadata nai_sig.py",
    ),
    Signature(
        "NovelAI",
        "generated",
        (Test((_PNG_COMMENT, _USER_COMMENT), (r'"signed_hash"\s*:', r'"(?:uc|steps|sampler)"\s*:')),),
        "novelai-image-metadata nai_sig.py",
    ),
    Signature(
        "Draw Things",
        "generated",
        (
            Test(
                (("xmp", XMP_EXIF + "UserComment"),),
                (r"^\s*\{", r'"c"\s*:', r'"uc"\s*:', r'"(?:sampler|steps|seed)"\s*:'),
            ),
        ),
        "stable-diffusion-prompt-reader",
    ),
    Signature(
        "Easy Diffusion",
        "generated",
        (
            Test((("png_text", "negative_prompt"), ("png_text", "Negative Prompt"))),
            Test(
                tuple(("png_text", n) for n in ("seed", "Seed", "use_stable_diffusion_model", "Stable Diffusion model"))
            ),
        ),
        "stable-diffusion-prompt-reader",
    ),
    Signature(
        "Easy Diffusion",
        "generated",
        (Test((_USER_COMMENT,), (r"^\s*\{", r'"(?:negative_prompt|Negative Prompt)"\s*:', r'"(?:seed|Seed)"\s*:')),),
        "stable-diffusion-prompt-reader",
    ),
    Signature(
        "ComfyUI",
        "generated",
        (
            Test(
                (("png_text", "prompt"), ("exif", "Model")),
                (r"^(?:prompt:)?\s*\{", r'"inputs"\s*:', r'"class_type"\s*:\s*"[^"]{0,80}Sampler'),
            ),
        ),
        "ComfyUI nodes.py, comfy_extras/nodes_images.py",
    ),
    Signature(
        "ComfyUI",
        "generated",
        (
            Test(
                (("png_text", "workflow"), ("exif", "Make")),
                (r"^(?:workflow:)?\s*\{", r'"last_node_id"\s*:', r'"type"\s*:\s*"[^"]{0,80}Sampler'),
            ),
        ),
        "ComfyUI nodes.py, comfy_extras/nodes_images.py",
    ),
    Signature(  # a graph without a sampler may only have scaled or cut out a photograph
        "ComfyUI",
        "edited",
        (
            Test(
                (("png_text", "prompt"), ("exif", "Model")),
                (r"^(?:prompt:)?\s*\{", r'"inputs"\s*:', r'"class_type"\s*:'),
            ),
        ),
        "ComfyUI nodes.py",
    ),
    Signature(
        "Stable Diffusion (A1111 record)",
        "generated",
        (
            Test(
                (_PARAMETERS, _USER_COMMENT, _JPEG_COMMENT),
                (r"\bSteps: \d+", r"\b(?:Sampler|CFG scale): \S", r"\bSeed: \d+"),
            ),
        ),
        "stable-diffusion-prompt-reader; sdnext modules/image/save.py",
    ),
    Signature(
        "Stable Diffusion web UI (extras)",
        "edited_with_ai",
        (Test((("png_text", "postprocessing"), ("png_text", "extras")), (r"^Postprocess ",)),),
        "sdnext modules/image/save.py",
    ),
    Signature(
        "Stable Diffusion",
        "generated",
        (Test((("png_text", "SD:mode"), ("png_text", "StableDiffusionVersion"))),),
        "remove-ai-watermarks constants.py",
    ),
    Signature(
        "MediaProvenance",
        "generated",
        (Test((_DESCRIPTION, _USER_COMMENT, ("png_text", "Description")), (r"^MediaProvenance \(v\d",)),),
        "zeke/media-provenance README",
    ),
    # Hosted generators
    Signature(
        "Midjourney",
        "generated",
        (
            Test((("png_text", "Description"),), (rf"\bJob ID: {_UUID}\s*$",)),
            Test((("png_text", "Author"), ("xmp", XMP_IPTC_EXT + "DigImageGUID"))),
        ),
        "a file as published",
    ),
    Signature(
        "Grok",
        "generated",
        (
            Test((_DESCRIPTION, _USER_COMMENT), (r"^Signature: [A-Za-z0-9+/=]{64,}\s*$",)),
            Test((("exif", "Artist"),), (rf"^{_UUID}$",)),
        ),
        "a file as published",
    ),
    Signature(
        "FLUX",
        "generated",
        (Test((("exif", "Software"),), (r"^AI generated;(?:txt2img|img2img);flux",)),),
        "black-forest-labs/flux demo_gr.py, demo_st.py",
    ),
    Signature(
        "FLUX",
        "edited_with_ai",
        (Test((("exif", "Software"),), (r"^AI generated;[a-z]+;flux",)),),
        "black-forest-labs/flux src/flux/cli_fill.py",
    ),
    Signature(
        "FLUX",
        "generated",
        (Test((("exif", "Make"),), (r"^Black Forest Labs$",)),),
        "black-forest-labs/flux demo_gr.py",
    ),
    Signature(
        "Google AI",
        "generated",
        (Test(_CREDIT, (r"^(?:Made with Google AI|AI-Generated with Google Photos)$",)),),
        "published Gemini files; cloud.google.com Vertex AI content credentials",
    ),
    Signature(
        "Google AI", "edited_with_ai", (Test(_CREDIT, (r"^Edited with Google AI$",)),), "Google Photos, October 2024"
    ),
    Signature(
        "Ideogram", "generated", (Test((("exif", "Make"),), (r"^Ideogram AI$",)),), "remove-ai-watermarks constants.py"
    ),
    Signature(
        "Luma",
        "generated",
        (Test((("png_text", "Source"), _PNG_COMMENT), (r"^(?:Luma AI$|Generated by Luma AI\b)",)),),
        "remove-ai-watermarks constants.py",
    ),
    Signature(
        "Reve",
        "generated",
        (Test(_SOFTWARE, (r"(?i)^(?:https?://)?(?:www\.)?reve\.com\b",)),),
        "remove-ai-watermarks constants.py",
    ),
    Signature(
        "ByteDance",
        "generated",
        (
            Test(
                (_DESCRIPTION, _USER_COMMENT),
                (r'"product"\s*:', r'"(?:aigc_type|aigc_label_type)"\s*:\s*"?[12]\b|"exportType"\s*:\s*"generation"'),
            ),
        ),
        "remove-ai-watermarks constants.py",
    ),
    Signature(
        "Tencent",
        "generated",
        (
            Test(
                (_DESCRIPTION,),
                tuple(rf'"{key}"\s*:' for key in ("ServiceProvider", "ServiceUser", "Time", "ContentId")),
            ),
        ),
        "TC260 practice as collected by remove-ai-watermarks",
    ),
    Signature(  # programs that put their own name where a program's name belongs, and nowhere else
        "",
        "generated",
        (
            Test(
                _SOFTWARE,
                (
                    r"(?i)^(?:Adobe Firefly|Automatic1111|ComfyUI|DALL[·\- ]?E|DiffusionBee|Draw Things|Fooocus"
                    r"|Ideogram|InvokeAI|Leonardo\.Ai|Midjourney|NightCafe|Recraft|Stable Diffusion)\b",
                ),
            ),
        ),
        "names as the programs write them",
    ),
)

# Programs that change images by hand or by filter. A camera's firmware is none of them.
EDITORS: Final = re.compile(
    r"(?i)^(?:ACDSee|Adobe (?:ImageReady|Lightroom|Photoshop)|Affinity Photo|Aviary|BeautyPlus|Canva|Capture One|DxO"
    r"|darktable|FaceApp|Facetune|Fotor|GIMP|Instagram|Krita|Lightroom|Luminar|Meitu|Paint\.NET|PaintShop|Photopea"
    r"|PhotoScape|Photoshop|Picasa|PicsArt|Pixelmator|Pixlr|Polarr|RawTherapee|Snapseed|Topaz|VSCO"
    r"|Windows Photo Editor)\b"
)

# C2PA: names of signers, claim generators and agents -> the product a person knows. A name alone says nothing about
# AI (Adobe and Microsoft sign photographs too), except where the last column is true: that service only generates and
# writes no source type.
C2PA_NAMES: Final = (
    (r"^(?:OpenAI|ChatGPT|GPT-|gpt-image|DALL.?E|Sora)\b", "OpenAI", False),
    (r"^Adobe[ _]Firefly\b", "Adobe Firefly", False),
    (r"^(?:Black Forest Labs|Flux\.\d)", "FLUX (Black Forest Labs)", False),
    (r"^Google (?:LLC|C2PA|Media Processing)", "Google AI", False),
    (r"^Microsoft\b", "Microsoft", False),
    (r"^Stability AI\b", "Stability AI", False),
    (r"^Dreamina\b", "Dreamina (ByteDance)", True),
    (r"^fal[-_. ]ai\b", "fal.ai", False),
    (r"^Bria\b", "Bria", False),
    (r"^Eleven ?Labs\b", "ElevenLabs", False),
    (r"(?i)^higgsfield ai\b", "Higgsfield", False),
    (r"(?i)^topaz labs\b", "Topaz Labs", False),
    (r"^Canva\b", "Canva", False),
    (r"^Samsung\b", "Samsung", False),
)

# cv.iptc.org/newscodes/digitalsourcetype, and the two terms that C2PA adds; compared whole, case matters.
_SOURCE_TYPE: Final = re.compile(r"(?:https?://(?:cv\.iptc\.org/newscodes|c2pa\.org)/digitalsourcetype/)?([A-Za-z]+)")
SOURCE_TYPE_KINDS: Final[dict[str, ClaimKind]] = {
    "trainedAlgorithmicMedia": "generated",
    "trainedAlgorithmicData": "generated",
    "compositeWithTrainedAlgorithmicMedia": "edited_with_ai",
    "compositeSynthetic": "edited_with_ai",
    "digitalCapture": "captured",
    "computationalCapture": "captured",
    "compositeCapture": "captured",
    "negativeFilm": "captured",
    "positiveFilm": "captured",
    "humanEdits": "edited",
    "minorHumanEdits": "edited",
}

# GB 45438-2025 and TC260-PG-20258A: the fields of the implicit label.
_TC260_FIELDS: Final[tuple[str, ...]] = (
    "Label",
    "ContentProducer",
    "ProduceID",
    "ReservedCode1",
    "ContentPropagator",
    "PropagateID",
    "ReservedCode2",
)
_TC260_OWN_PLACES: Final = (("xmp", XMP_TC260 + "AIGC"), ("png_text", "AIGC"))
_GENAI_TYPE: Final = re.compile(rb'\\?"genAIType\\?"\s*:\s*\\?"?(-?\d{1,9})')


def find(metadata: Metadata) -> tuple[Hit, ...]:
    """The generators and AI editors that signed the metadata: at most one hit for each source."""
    hits: dict[str, Hit] = {}
    for signature in SIGNATURES:
        decisive = signature.tests[0].find(field for field in metadata.fields if field.source not in hits)
        if decisive is None or not all(test.find(metadata.fields) for test in signature.tests[1:]):
            continue
        text = clean(decisive.value)
        generator = signature.generator or clean(decisive.value, 60)
        hits[decisive.source] = Hit(generator, signature.kind, decisive.source, decisive.name, text)
    if edit := _samsung_edit(metadata.trailer):
        hits["trailer"] = edit
    return tuple(hits.values())


def _samsung_edit(trailer: bytes) -> Hit | None:
    """Galaxy AI notes in the editor's record behind the image which generative tool was used; zero is none."""
    if b"PhotoEditor_Re_Edit_Data" not in trailer:
        return None
    used = next((kind for match in _GENAI_TYPE.finditer(trailer) if (kind := int(match.group(1)))), 0)
    return Hit("Samsung Galaxy AI", "edited_with_ai", "trailer", "genAIType", f"genAIType {used}") if used else None


def software(metadata: Metadata) -> Iterator[str]:
    """What the file names as the programs that wrote it."""
    return (field.value for field in metadata.fields if (field.source, field.name) in _SOFTWARE)


def find_editor(metadata: Metadata) -> Hit | None:
    """The first known editing program among those that the file names."""
    for field in metadata.fields:
        if (field.source, field.name) in _SOFTWARE and EDITORS.match(field.value):
            name = clean(field.value, 60)
            return Hit(name, "edited", field.source, field.name, name)
    return None


def source_type(value: str) -> str | None:
    """The term of a DigitalSourceType written as URI or bare; None when it is no such thing."""
    match = _SOURCE_TYPE.fullmatch(value.strip())
    return match.group(1) if match else None


def c2pa_product(names: Iterable[str]) -> tuple[str, bool]:
    """The product behind C2PA names, and whether it only ever generates; ("", False) when unknown."""
    names = tuple(names)
    for pattern, product, only_generates in C2PA_NAMES:
        if any(re.search(pattern, name) for name in names):
            return product, only_generates
    return "", False


def find_tc260(metadata: Metadata) -> tuple[Field, dict[str, str]] | None:
    """China's implicit AI label in any of its forms: the field it stands in, and its values, cleaned."""
    for field in metadata.fields:
        is_own_place = (field.source, field.name) in _TC260_OWN_PLACES
        if not is_own_place and "AIGC" not in field.value[:4096]:
            continue
        label = _first_object(field.value, bare_prefix=not is_own_place)
        known = {key: clean(label[key], 80) for key in _TC260_FIELDS if key in label}
        if known:
            return field, known
    return None


def _first_object(text: str, bare_prefix: bool) -> dict[str, Json]:
    """The label's JSON object: {...}, {"AIGC": {...}}, {"AIGC": "{...}"}, or AIGC{...} where a prefix is needed."""
    start = text.find("{", 0, 4096)
    if start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start : start + 65536])
        inner = value.get("AIGC")
        if isinstance(inner, str):
            inner = json.loads(inner)
    except (ValueError, RecursionError, AttributeError):
        return {}
    if isinstance(inner, dict):
        return inner
    is_label = not bare_prefix or text[:start].rstrip("\0 :=").endswith("AIGC")
    return value if is_label and isinstance(value, dict) else {}
