"""Has the traffic moved? A window of verdicts against the reference of a release. Statistics only: reads no stream.

Tests are SciPy's and scikit-learn's. LEVEL is the chance of any false alarm in an undrifted window: a third of it is
for single signals, whose p-values go through Holm's correction, a third for the classifier that looks at all of them at
once, and a third for how the images are delivered; quarters where verdicts carry embeddings of what is shown, which the
same classifier looks at. A signal counts as moved when it also moved far enough to matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fusion.estimators import FloatArray
from lifecycle.reference import Reference
from utils.contracts import Json
from utils.deliveries import ANY, DELIVERIES, nearest
from utils.verdict_json import numbers_of

LEVEL = 0.01  # of false alarms in an undrifted window
FAR = 0.1  # KS distance below which nobody needs to act; likewise PSI, whose customary "moderate" it is
FEWEST = 30  # values of a signal on each side
BINS = 10

Cause = Literal["none", "delivery", "content", "delivery and content"]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What some verdicts say, in the reference's order of signals."""

    values: NDArray[np.float64]  # n x d, NaN = missing
    probabilities: FloatArray  # n
    deliveries: NDArray[np.str_]  # n; what each looks most like
    tiers: NDArray[np.str_]  # n
    embeddings: FloatArray | None = None  # n x 64

    def __len__(self) -> int:
        return len(self.probabilities)

    def joined(self, others: Sequence[Window]) -> Window:
        every = [*others, self]
        embedded = [each.embeddings for each in every if each.embeddings is not None]
        return Window(
            np.vstack([each.values for each in every]),
            np.concatenate([each.probabilities for each in every]),
            np.concatenate([each.deliveries for each in every]),
            np.concatenate([each.tiers for each in every]),
            np.vstack(embedded) if len(embedded) == len(every) else None,
        )


@dataclass(frozen=True, slots=True)
class Move:
    """One comparison; ``name`` is a signal, or what was looked at."""

    name: str
    test: str
    distance: float  # KS, share, or AUROC beyond 0.5
    psi: float  # NaN where it means nothing
    p: float
    moved: bool


@dataclass(frozen=True, slots=True)
class Shift:
    """What a window's comparison found."""

    images: int
    moves: tuple[Move, ...]  # the strongest first
    cause: Cause

    @property
    def alarm(self) -> bool:
        return self.cause != "none"

    @property
    def moved(self) -> tuple[Move, ...]:
        return tuple(each for each in self.moves if each.moved)


def window_of(verdicts: Sequence[Mapping[str, Json]], signals: Sequence[str]) -> Window:
    """From verdicts as JSON."""
    rows, deliveries = [], []
    for verdict in verdicts:
        numbers = numbers_of(verdict)
        row = [numbers.get(name) for name in signals]
        rows.append([np.nan if value is None else value for value in row])
        quality = numbers.get("jpeg.quality")
        longest = max(verdict["width"], verdict["height"])
        deliveries.append(nearest(longest, np.nan if quality is None else quality, DELIVERIES))
    embedded = [verdict["embedding"] for verdict in verdicts if verdict.get("embedding")]
    return Window(
        np.array(rows, float).reshape(len(verdicts), len(signals)),
        np.array([verdict["fusion_prob"] for verdict in verdicts], float),
        np.array(deliveries, np.str_),
        np.array([verdict["tier"] for verdict in verdicts], np.str_),
        np.array(embedded, float) if len(embedded) == len(verdicts) else None,
    )


def compare(reference: Reference, window: Window, level: float = LEVEL) -> Shift:
    """Every comparison, and what moved: how images are delivered, what they show, or both.

    What they show is compared with reference images of the same deliveries: a picture that comes smaller and more
    compressed is the same picture.
    """
    known = reference.values.astype(float)
    embedded = reference.embeddings is not None and reference.embedded is not None and window.embeddings is not None
    part = level / (4 if embedded else 3)
    moves = _judged(list(_signals(reference, known, window)), part)
    moves.append(_classifier(known, window.values, reference.sources, part))
    if reference.embeddings is not None and reference.embedded is not None and window.embeddings is not None:
        found = _classifier(reference.embeddings.astype(float), window.embeddings, reference.embedded, part)
        moves.append(replace(found, name="embedding"))
    mix = _mix(reference.deliveries, window.deliveries, part)
    moves = sorted([*moves, mix], key=lambda each: (not each.moved, each.p))
    if not any(each.moved for each in moves):
        return Shift(len(window), tuple(moves), "none")
    return Shift(len(window), tuple(moves), _cause(reference, window, mix, level))


def _cause(reference: Reference, window: Window, mix: Move, level: float) -> Cause:
    matched = _matched(reference, window)
    content = _classifier(matched.values.astype(float), window.values, matched.sources, level)
    if mix.moved:
        return "delivery and content" if content.moved else "delivery"
    return "content"


def _matched(reference: Reference, window: Window) -> Reference:
    """Rows of the reference, drawn so that their deliveries are as frequent as the window's."""
    rng = np.random.default_rng(0)
    chosen: list[NDArray[np.int64]] = []
    size = len(reference.probabilities)
    for delivery, count in zip(*np.unique(window.deliveries, return_counts=True), strict=True):
        rows = np.flatnonzero(reference.deliveries == delivery)
        if len(rows):
            wanted = min(len(rows), round(size * count / len(window)))
            chosen.append(rng.choice(rows, max(1, wanted), replace=False))
    rows = np.concatenate(chosen) if chosen else np.arange(size)
    return Reference(
        reference.signals,
        reference.values[rows],
        reference.probabilities[rows],
        reference.deliveries[rows],
        reference.sources[rows],
    )


# --- the tests


def _signals(reference: Reference, known: FloatArray, window: Window) -> Iterator[Move]:
    yield _distance("fusion_prob", reference.probabilities, window.probabilities)
    for index, name in enumerate(reference.signals):
        old, new = (column[np.isfinite(column)] for column in (known[:, index], window.values[:, index]))
        if min(len(old), len(new)) >= FEWEST and (len(np.unique(old)) > 1 or len(np.unique(new)) > 1):
            yield _distance(name, old, new)
        missing = [[len(known) - len(old), len(old)], [len(window) - len(new), len(new)]]
        if len(old) < len(known) or len(new) < len(window):
            share = abs(missing[1][0] / len(window) - missing[0][0] / len(known))
            yield Move(f"{name} missing", "Fisher", share, np.nan, float(stats.fisher_exact(missing).pvalue), False)


def _distance(name: str, old: FloatArray, new: FloatArray) -> Move:
    found = stats.ks_2samp(old, new, method="asymp")
    return Move(name, "KS", float(found.statistic), psi(old, new), float(found.pvalue), False)


def psi(old: FloatArray, new: FloatArray) -> float:
    """Population stability index over the old one's deciles; 0.1 is customarily moderate, 0.25 large."""
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = []
    for values in (old, new):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _judged(moves: Sequence[Move], level: float) -> list[Move]:
    """Holm's step-down correction, and the size that matters."""
    order = sorted(range(len(moves)), key=lambda index: moves[index].p)
    rejected: set[int] = set()
    for rank, index in enumerate(order):
        if moves[index].p > level / (len(moves) - rank):
            break
        rejected.add(index)
    return [
        Move(each.name, each.test, each.distance, each.psi, each.p, index in rejected and each.distance >= FAR)
        for index, each in enumerate(moves)
    ]


def _mix(known: NDArray[np.str_], window: NDArray[np.str_], level: float) -> Move:
    """Whether images come in other sizes and qualities; the share that moved."""
    names = sorted({*known[known != ANY], *window})
    counts = np.array([[np.count_nonzero(side == name) for name in names] for side in (known, window)])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return Move("deliveries", "chi-squared", 0.0, np.nan, 1.0, False)
    p = float(stats.chi2_contingency(counts).pvalue)
    shares = counts / counts.sum(axis=1, keepdims=True)
    moved = float(np.abs(shares[1] - shares[0]).sum() / 2)
    return Move("deliveries", "chi-squared", moved, np.nan, p, p < level and moved >= FAR)


def _classifier(old: FloatArray, new: FloatArray, sources: NDArray[np.str_], level: float) -> Move:
    """A logistic model learns on one half to tell window from reference, and is asked on the other.

    Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017. Both halves are asked once. A source of
    the reference, and so an image under all its deliveries, is in one half: else the model would know it again.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    filled = np.isfinite(old).any(axis=0) & np.isfinite(new).any(axis=0)
    rows = np.vstack([old[:, filled], new[:, filled]])
    labels = np.repeat([0, 1], [len(old), len(new)])
    rng = np.random.default_rng(0)
    half = np.zeros(len(rows), np.bool_)
    half[: len(old)] = _half_of_the_sources(sources, rng)
    half[len(old) + rng.choice(len(new), len(new) // 2, replace=False)] = True
    areas, ps = [], []
    for known in (half, ~half):
        model = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=0.01, class_weight="balanced", max_iter=300),
        ).fit(rows[known], labels[known])
        scores = model.decision_function(rows[~known])
        one, two = scores[labels[~known] == 1], scores[labels[~known] == 0]
        found = stats.mannwhitneyu(one, two, alternative="greater")
        areas.append(found.statistic / (len(one) * len(two)))
        ps.append(found.pvalue)
    area, p = float(np.mean(areas)), min(1.0, 2 * float(min(ps)))  # Bonferroni over the halves
    return Move("all signals together", "classifier", area - 0.5, np.nan, p, p < level and area - 0.5 >= FAR / 2)


def _half_of_the_sources(sources: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """About half of the rows, by whole sources; by rows where there is one source only."""
    names, of = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        return rng.permutation(len(sources)) < len(sources) // 2
    order = rng.permutation(len(names))
    upto = np.cumsum(np.bincount(of)[order])
    chosen = order[: max(1, int(np.searchsorted(upto, len(sources) / 2)))]
    return np.isin(of, chosen)
