"""Many answers at a glance: counts per tier, the most suspicious first. A line for each image, not its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, get_args

from inference.words import deciding_region
from utils.contracts import Json, Label, Tier, Verdict
from utils.errors import VerifyError

MOST_SUSPICIOUS_FIRST: Final[tuple[Tier, ...]] = get_args(Tier)[::-1]  # the contract lists them from real to AI


@dataclass(frozen=True, slots=True)
class Line:
    """What is kept of one answer. Without a verdict ``error`` says why, and the fields before it are None."""

    source: str
    label: Label | None
    tier: Tier | None
    fusion_prob: float | None
    decided_by: str | None
    error: str = ""
    preview: str = ""  # paths of artifacts; empty: none were written
    report: str = ""
    inside_prob: float | None = None  # of the picture inside that label and tier follow


def line_of(source: str, answer: Verdict | VerifyError) -> Line:
    if isinstance(answer, VerifyError):
        return Line(source, None, None, None, None, f"{answer.code}: {answer}")
    preview, report = (answer.artifacts.get(name, "") for name in ("preview", "report"))
    region = deciding_region(answer)
    inside = region.fusion_prob if region else None
    return Line(source, answer.label, answer.tier, answer.fusion_prob, answer.decided_by, "", preview, report, inside)


def told(line: Line) -> str:
    """What decided, in brackets, where it was not the probability that stands before it."""
    if line.inside_prob is not None:
        return f" (by a picture inside, {line.inside_prob:.2f})"
    return " (by provenance)" if line.decided_by == "provenance" else ""


def in_order(lines: Iterable[Line]) -> list[Line]:
    """The most suspicious first: by tier, then by the probability of AI; those without a verdict last."""

    def suspicion(line: Line) -> tuple[int, float]:
        if line.tier is None or line.fusion_prob is None:
            return len(MOST_SUSPICIOUS_FIRST), 0
        decisive = line.fusion_prob if line.inside_prob is None else line.inside_prob
        return MOST_SUSPICIOUS_FIRST.index(line.tier), -decisive

    return sorted(lines, key=suspicion)


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How many images of each tier, and ``error`` for those without a verdict; every name is there."""
    found: Counter[str] = Counter(line.tier or "error" for line in lines)
    return {name: found[name] for name in (*MOST_SUSPICIOUS_FIRST, "error")}


def summary(lines: Sequence[Line]) -> dict[str, Json]:
    """Counts, and every image in order, as JSON."""
    return {"counts": counts(lines), "images": [asdict(line) for line in in_order(lines)]}
