"""The table of detectors, and the feature schema that follows from it. Importing it loads no network.

To add a detector: write inference/<name>.py, add one entry here, its card in models/saved_models/<model>/ and
its parity test in tests/inference/. To switch one on: a profile in utils/profiles.py, or the setting IMGV_DETECTORS.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fusion.reference import KINDS, kind_feature
from inference.parts import load_forensics
from utils.contracts import PUBLIC_FEATURES
from utils.errors import BadSettings
from utils.profiles import PROFILES


@dataclass(frozen=True, slots=True)
class Spec:
    """Where a detector lives, the model it runs, and what its numbers and pictures mean."""

    path: str  # "module:Class"
    model: str  # a folder of models/saved_models; its card names every file that the detector needs
    features: Mapping[str, str]
    heatmaps: Mapping[str, str] = field(default_factory=dict)  # name -> title, for those it draws


# Both widths of ManTraNet answer the same question, so they share names and a profile lists one of them.
MANTRA = {
    "mantra_anomaly": "mean of ManTraNet's manipulation map, 0..1",
    "mantra.max": "99.9th percentile of ManTraNet's manipulation map, 0..1",
    "mantra.area": "share of the image that ManTraNet marks as manipulated, 0..1",
    "mantra.concentration": "how far the mass of ManTraNet's map sits in one place, 0..1",
}
MANTRA_MAP = {"mantranet": "ManTraNet: traces of manipulation"}
EDIT_MAP = {"edit_map": "Edits: places that were changed, or that the image holds twice"}  # of reports alone

DETECTORS: dict[str, Spec] = {
    "clip_b16": Spec(
        "inference.clip_b16:ClipB16Detector",
        "clip_b16",
        {"clip_b16_prob": "probability of AI by a head on CLIP ViT-B/16, 0..1"}
        | {
            kind_feature(kind): f"how much it looks like {words} to CLIP ViT-B/16, 0..1"
            for kind, words in KINDS.items()
        },
    ),
    "effnet": Spec(
        "inference.effnet:EffNetDetector",
        "effnet",
        {"effnet_prob": "probability of AI by the fine-tuned EfficientNet, 0..1"},
    ),
    "ghostnet": Spec(
        "inference.ghostnet:GhostNetDetector",
        "ghostnet",
        {"ghostnet_score": "AI score of GhostNet on high-pass noise residuals, 0..1"},
        {"ghostnet": "GhostNet: patches that look generated"},
    ),
    "mantranet_compact": Spec(
        "inference.mantranet_compact:CompactManTraNetDetector",
        "mantranet_compact",
        MANTRA,
        MANTRA_MAP,
    ),
    "dino": Spec(
        "inference.frozen:DinoDetector",
        "dino_svm",  # the head names its backbone; so do those of the others on inference.frozen
        {"dino_prob": "probability of AI by an SVM on DINOv2 embeddings, 0..1"},
    ),
    "fatformer": Spec(
        "inference.fatformer:FatFormerDetector",
        "fatformer",
        {"fatformer_prob": "probability of AI by FatFormer, 0..1"},
    ),
    "clip_h14": Spec(
        "inference.clip_models:ClipH14Detector",
        "clip_h14",
        {"clip_h14_prob": "probability of AI by CLIP ViT-H/14 against prompts, 0..1"},
    ),
    "clip_bigg": Spec(
        "inference.clip_models:ClipBigGDetector",
        "clip_bigg",
        {"clip_bigg_prob": "probability of AI by CLIP ViT-bigG/14 against prompts, 0..1"},
    ),
    "clip": Spec(
        "inference.frozen:ClipHeadDetector",
        "clip_head",
        {"clip_prob": "probability of AI by a head of one's own on CLIP of any size, 0..1"},
    ),
    "dinov3": Spec(
        "inference.frozen:DinoV3Detector",
        "dinov3_head",
        {"dinov3_prob": "probability of AI by a head on DINOv3, 0..1"},
    ),
    "metaclip2": Spec(
        "inference.frozen:MetaClip2Detector",
        "metaclip2_head",
        {"metaclip2_prob": "probability of AI by a head on MetaCLIP 2, 0..1"},
    ),
    "siglip2": Spec(
        "inference.frozen:Siglip2Detector",
        "siglip2_head",
        {"siglip2_prob": "probability of AI by a head on SigLIP 2, 0..1"},
    ),
    "pe_core": Spec(
        "inference.frozen:PeCoreDetector",
        "pe_core_head",
        {"pe_core_prob": "probability of AI by a head on Perception Encoder Core, 0..1"},
    ),
    "blip2": Spec(
        "inference.frozen:Blip2Detector",
        "blip2_head",
        {"blip2_prob": "probability of AI by a head on BLIP-2's image tower, 0..1"},
    ),
    "mantranet": Spec("inference.mantranet:ManTraNetDetector", "mantranet", MANTRA, MANTRA_MAP),
}


def select_detectors(profile: str, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the detectors of a profile, with further ones, and without those that a minus precedes.

    Raises:
        BadSettings: an unknown name (the nearest known one is suggested), or two detectors for the same feature.
    """
    names = list(PROFILES[profile].detectors)
    for word in extra:
        name = word.removeprefix("-")
        if name not in DETECTORS:
            near = difflib.get_close_matches(name, DETECTORS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(DETECTORS)}"
            raise BadSettings(f"IMGV_DETECTORS: no detector '{name}'; {hint}")
        if word != name:
            names = [each for each in names if each != name]
        elif name not in names:
            names.append(name)
    owners: dict[str, str] = {}
    for name in names:
        for feature in DETECTORS[name].features:
            if feature in owners:
                raise BadSettings(f"IMGV_DETECTORS: '{owners[feature]}' and '{name}' both give {feature}; use one")
            owners[feature] = name
    return tuple(names)


def feature_meanings() -> dict[str, str]:
    """Every feature and what it means, in the order of the feature vector: the nine public names first."""
    meanings: dict[str, str] = {}
    for spec in DETECTORS.values():
        meanings.update(spec.features)
    for forensic in load_forensics():
        meanings.update(forensic.features)
    return {name: meanings[name] for name in (*PUBLIC_FEATURES, *(n for n in meanings if n not in PUBLIC_FEATURES))}


def heatmap_titles() -> dict[str, str]:
    """Every heatmap and its title, forensics first."""
    titles: dict[str, str] = {}
    for forensic in load_forensics():
        titles |= forensic.heatmaps
    for spec in DETECTORS.values():
        titles |= spec.heatmaps
    return titles | EDIT_MAP
