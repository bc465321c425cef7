"""May a challenger take the champion's place? Every reason against it, with figures. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusion.estimators import FloatArray
from lifecycle.golden import Facts
from training.evaluation import Judged
from training.metrics import class_accuracy, expected_calibration_error, resampled_weights

FEWEST = 20  # real images of a kind that is judged by itself; of fewer, one image is more than a bound can hold
REAL, AI = 0, 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a challenger may not pass; a champion that is beyond a bound already may not be made worse."""

    real: float = 0.93  # share of real images called real, in every delivery: the threshold aims at 0.95
    real_kind: float = 0.85  # likewise of each kind of real image
    calibration: float = 0.10  # expected calibration error
    separable: float = 0.05  # how far from 0.5 the AUROC of PNG against JPEG of the same pixels may be
    metadata: float = 0.001  # how much stripping metadata may move a probability
    slower: float = 1.2  # times the champion's seconds per image
    larger: float = 1.2  # times the champion's memory


@dataclass(frozen=True, slots=True)
class Decision:
    """Refused when there is any reason."""

    reasons: tuple[str, ...]
    compared: dict[str, list[float]] = field(default_factory=dict)  # figure -> champion, challenger

    @property
    def promote(self) -> bool:
        return not self.reasons


def decide(champion: Judged, challenger: Judged, old: Facts, new: Facts, bounds: Bounds, seed: int = 0) -> Decision:
    """Compare two models on the same images.

    Args:
        champion, challenger: on the same validation rows in the same order, each measured with its own networks.
        old, new: what each did with the golden set, on the same machine.
    """
    if list(champion.values("filepath")) != list(challenger.values("filepath")):
        raise ValueError("champion and challenger must be judged on the same rows")
    compared: dict[str, list[float]] = {}
    reasons = [
        *_on_real(champion, challenger, bounds, compared, seed),
        *_on_ai(champion, challenger, compared, seed),
        *_calibration(champion, challenger, bounds, compared, seed),
        *_golden(old, new),
        *_sanity(old, new, bounds, compared),
        *_costs(old, new, bounds, compared),
    ]
    return Decision(tuple(reasons), compared)


def _on_real(
    champion: Judged, challenger: Judged, bounds: Bounds, compared: dict[str, list[float]], seed: int
) -> Iterator[str]:
    for name, before, after in _parts(champion, challenger):
        old, new = (_found(each, REAL, seed) for each in (before, after))
        compared[f"real called real, {name}"] = [float(old[0]), float(new[0])]
        if new[0] < min(bounds.real, old[0]):
            yield f"real images called real, {name}: {_fell(old, new)}, below {bounds.real:.0%}"
    real = champion.table.labels == REAL
    kinds = champion.values("kind")
    for kind in np.unique(kinds[real & (kinds != "")]):
        rows = real & (kinds == kind)
        if len(set(champion.values("filepath")[rows])) < FEWEST:
            continue
        old, new = (_found(each.rows(rows), REAL, seed) for each in (champion, challenger))
        compared[f"real called real, {kind}"] = [float(old[0]), float(new[0])]
        if new[0] < bounds.real_kind and _falls(old, new):
            yield f"real images called real, kind {kind}: {_fell(old, new)}, below {bounds.real_kind:.0%}"


def _on_ai(champion: Judged, challenger: Judged, compared: dict[str, list[float]], seed: int) -> Iterator[str]:
    for name, before, after in _parts(champion, challenger):
        old, new = (_found(each, AI, seed) for each in (before, after))
        compared[f"AI found, {name}"] = [float(old[0]), float(new[0])]
        if _falls(old, new):
            yield f"AI images found, {name}: {_fell(old, new)}, beyond noise"


def _calibration(
    champion: Judged, challenger: Judged, bounds: Bounds, compared: dict[str, list[float]], seed: int
) -> Iterator[str]:
    old, new = (_error(each, seed) for each in (champion, challenger))
    compared["calibration error"] = [old, new]
    if new > max(bounds.calibration, old):
        yield f"calibration error: {old:.3f} -> {new:.3f}, above {bounds.calibration:.2f}"


def _golden(old: Facts, new: Facts) -> Iterator[str]:
    for name, image in new.images.items():
        if image.tier not in image.allowed and (name not in old.images or old.images[name].tier in image.allowed):
            yield f"golden image {name}: tier {image.tier}, which may be {', '.join(image.allowed)}"
    if missing := sorted(old.images.keys() - new.images.keys()):
        yield f"golden images without a verdict: {', '.join(missing)}"


def _sanity(old: Facts, new: Facts, bounds: Bounds, compared: dict[str, list[float]]) -> Iterator[str]:
    compared["AUROC of PNG against JPEG"] = [old.separable, new.separable]
    if abs(new.separable - 0.5) > max(bounds.separable, abs(old.separable - 0.5)):
        yield (
            f"PNG and JPEG of the same pixels are told apart (AUROC {new.separable:.2f}, not 0.50): "
            "it learnt the file, not the picture"
        )
    if new.metadata > max(bounds.metadata, old.metadata):
        yield f"stripping metadata moves a probability by {new.metadata:.3f}: it learnt the metadata"


def _costs(old: Facts, new: Facts, bounds: Bounds, compared: dict[str, list[float]]) -> Iterator[str]:
    compared["seconds per image"] = [old.seconds, new.seconds]
    compared["memory, MB"] = [old.megabytes, new.megabytes]
    if new.seconds > bounds.slower * old.seconds:
        yield f"time per image: {old.seconds:.2f} -> {new.seconds:.2f} s, more than {bounds.slower:g} times"
    if old.megabytes and new.megabytes > bounds.larger * old.megabytes:
        yield f"memory: {old.megabytes:.0f} -> {new.megabytes:.0f} MB, more than {bounds.larger:g} times"


def _parts(champion: Judged, challenger: Judged) -> Iterator[tuple[str, Judged, Judged]]:
    for (name, before), (_, after) in zip(champion.by_delivery(), challenger.by_delivery(), strict=True):
        if len(np.unique(before.table.labels)) == 2:
            yield name, before, after


def _found(judged: Judged, label: int, seed: int) -> FloatArray:
    """Share of one label that is called so; the measurement, then its resamples over sources, the same for both."""
    table = judged.table
    weights = resampled_weights(table.labels, table.sources, seed)
    return class_accuracy(table.labels, judged.predicted, weights, label)


def _falls(old: FloatArray, new: FloatArray) -> bool:
    """Whether less is found in all but the best 2.5 % of the paired resamples."""
    return bool(np.nanpercentile(new[1:] - old[1:], 97.5) < 0)


def _fell(old: FloatArray, new: FloatArray) -> str:
    low, high = np.nanpercentile(new[1:] - old[1:], (2.5, 97.5))
    return f"{old[0]:.1%} -> {new[0]:.1%} (difference {low:+.1%} to {high:+.1%})"


def _error(judged: Judged, seed: int) -> float:
    table = judged.table
    weights = resampled_weights(table.labels, table.sources, seed)[:1]
    return float(expected_calibration_error(table.labels, judged.probabilities, weights)[0])


def markdown(decision: Decision, champion: str, challenger: str) -> str:
    """For people: the decision, its reasons, and what was compared."""
    verdict = "is promoted" if decision.promote else "is refused"
    lines = [f"# {challenger} against {champion}", "", f"{challenger} {verdict}.", ""]
    lines += [f"- {reason}" for reason in decision.reasons]
    lines += ["", f"| figure | {champion} | {challenger} |", "|---|---|---|"]
    lines += [f"| {name} | {old:.3f} | {new:.3f} |" for name, (old, new) in decision.compared.items()]
    return "\n".join(lines) + "\n"


def bounds_from(given: dict[str, float]) -> Bounds:
    """
    Raises:
        ValueError: no such bound.
    """
    known: Sequence[str] = Bounds.__slots__
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"no bound {', '.join(unknown)}; there are {', '.join(known)}")
    return Bounds(**given)
