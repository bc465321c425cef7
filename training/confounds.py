"""What container facts (format, size, compression) say about the label of an image. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.cleaning import Seen
from training.datasets import LABELS
from training.feature_table import source_weights

FACTS = ("jpeg", "png", "webp", "square", "side_of_64", "log2_pixels", "bits_per_pixel")


def confounds(rows: Sequence[Mapping[str, str]], seen: Sequence[Seen]) -> str:
    """Markdown: each container fact by label, and how well all of them together find the label of unseen sources."""
    chosen = [index for index, row in enumerate(rows) if row["label"] in LABELS]
    labels = np.array([rows[index]["label"] == "ai" for index in chosen], np.int64)
    if len(np.unique(labels)) < 2:
        return "No confound report: the rows that stay have one label only.\n"
    weights = source_weights(labels, np.array([rows[index]["source"] for index in chosen]))
    facts = np.array([_facts(seen[index]) for index in chosen])
    lines = [
        "# What the container says about the label",
        "",
        "Every source weighs the same within its label. Training must hide these facts: random deliveries do.",
        "",
        "| fact | mean, real | mean, AI |",
        "|---|---|---|",
    ]
    for name, column in zip(FACTS, facts.T, strict=True):
        means = [np.average(column[labels == label], weights=weights[labels == label]) for label in (0, 1)]
        lines.append(f"| {name} | {means[0]:.2f} | {means[1]:.2f} |")
    accuracy = held_out_accuracy([rows[index] for index in chosen], [seen[index] for index in chosen])
    if accuracy is not None:
        lines += [
            "",
            f"Balanced accuracy of these facts alone, on held-out sources: {accuracy:.1%} (50 % says nothing).",
        ]
    return "\n".join(lines) + "\n"


def held_out_accuracy(rows: Sequence[Mapping[str, str]], seen: Sequence[Seen]) -> float | None:
    """Balanced accuracy, 0..1, of a small random forest on the facts alone, cross-validated over origins.

    Args:
        rows: of label real or ai; those of one ``group`` (where there is none, of one source) are held out together.
        seen: what is known of each row's file.

    Returns:
        None where a label has fewer than two origins, or all but one of its images in one.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    facts = np.array([_facts(each) for each in seen])
    labels = np.array([row["label"] == "ai" for row in rows], np.int64)
    sources = np.array([row["source"] for row in rows])
    origins = np.array([row.get("group") or row["source"] for row in rows])
    weights = source_weights(labels, sources)
    fewest = min(len(np.unique(origins[labels == label])) for label in (0, 1))
    if fewest < 2:
        return None
    right = np.zeros(len(labels))
    for known, held in StratifiedGroupKFold(min(5, fewest)).split(facts, labels, origins):
        if len(np.unique(labels[known])) < 2:
            return None
        forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
        forest.fit(facts[known], labels[known], sample_weight=source_weights(labels[known], sources[known]))
        right[held] = forest.predict(facts[held]) == labels[held]
    return float(np.mean([np.average(right[labels == label], weights=weights[labels == label]) for label in (0, 1)]))


def _facts(each: Seen) -> tuple[float, ...]:
    formats = [float(each.format in names) for names in (("JPEG", "MPO"), ("PNG",), ("WEBP",))]
    area = each.width * each.height
    square, of_64 = float(each.width == each.height), float(each.width % 64 == 0 == each.height % 64)
    return (*formats, square, of_64, float(np.log2(area)), 8 * each.size / area)
