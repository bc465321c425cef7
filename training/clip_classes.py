"""Linear heads on class tokens that tell several classes of images apart, and when to name one. Knows no command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from fusion.estimators import FloatArray
from inference.class_head import ClassHead
from training.clip_head import FOLDS, Examples, Points
from training.feature_table import IntArray, NameArray

STRENGTHS = (1e-4, 1e-3, 1e-2)  # scikit-learn's C for weights of mean 1
TEMPERATURES = np.geomspace(0.3, 3, 60)
FEWEST_GROUPS = 3  # of a class: with fewer, cross-validation could not tell whether it is learnt or remembered
RIGHT = 0.85  # how often a named class has to be the true one, on new sources; at .75 most strangers got a name too


@dataclass(frozen=True, slots=True, eq=False)
class ClassFit:
    """A head, and what heads that did not see an example's group say of it.

    Args:
        held_out: (n, classes), calibrated.
        folds: n; which of ``heads`` did not see the example.
    """

    head: ClassHead
    heads: tuple[ClassHead, ...]
    fold_of: Mapping[str, int]
    held_out: FloatArray
    strength: float
    temperature: float
    loss: float  # nats, held out

    @property
    def names(self) -> tuple[str, ...]:
        return self.head.names

    def probabilities(self, tokens: NDArray[np.floating], group: str) -> FloatArray:
        """(n, blocks, width) of one group, by a head that did not see it -> (n, classes)."""
        fold = self.fold_of.get(group)
        return (self.head if fold is None else self.heads[fold]).probabilities(tokens)


def fit_classes(points: Points, classes: NameArray) -> ClassFit:
    """Multinomial logistic regression; penalty and temperature by the loss on groups that were held out.

    Args:
        classes: n; of each example.
    """
    examples = points.examples
    names = tuple(map(str, np.unique(classes)))
    numbers = np.searchsorted(names, classes)
    folds = np.empty(len(examples), np.int64)
    splitter = StratifiedGroupKFold(FOLDS)
    for fold, (_, held) in enumerate(splitter.split(points.values, numbers, examples.groups)):
        folds[held] = fold
    fold_of = {str(group): int(fold) for group, fold in zip(examples.groups, folds, strict=True)}
    best: ClassFit | None = None
    for strength in STRENGTHS:
        heads = [_fit(points, numbers, names, folds != fold, strength) for fold in range(FOLDS)]
        raw = np.empty((len(examples), len(names)))
        for fold, head in enumerate(heads):
            raw[folds == fold] = head.probabilities(examples.tokens[folds == fold])
        temperature = float(min(TEMPERATURES, key=lambda each: _loss(_tempered(raw, each), numbers, examples)))
        held_out = _tempered(raw, temperature)
        loss = _loss(held_out, numbers, examples)
        if best is None or loss < best.loss:
            final = _cooled(_fit(points, numbers, names, np.ones(len(examples), np.bool_), strength), temperature)
            cooled = tuple(_cooled(head, temperature) for head in heads)
            best = ClassFit(final, cooled, fold_of, held_out, strength, temperature, loss)
    assert best is not None
    return best


def _fit(
    points: Points, numbers: IntArray, names: Sequence[str], chosen: NDArray[np.bool_], strength: float
) -> ClassHead:
    """A class that the chosen examples lack gets no chance."""
    weights = points.examples.weights[chosen]
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(points.values[chosen], numbers[chosen], sample_weight=weights * len(weights) / weights.sum())
    coefficients, intercepts = np.zeros((len(names), points.values.shape[1])), np.full(len(names), -np.inf)
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        coefficients[model.classes_[1]], intercepts[model.classes_] = model.coef_[0], (0, model.intercept_[0])
    else:
        coefficients[model.classes_], intercepts[model.classes_] = model.coef_, model.intercept_
    weight, bias = points.folded(coefficients, intercepts)
    return ClassHead(tuple(names), weight, bias.astype(np.float32))


def _cooled(head: ClassHead, temperature: float) -> ClassHead:
    return ClassHead(head.names, head.weight / np.float32(temperature), head.bias / np.float32(temperature))


def _tempered(probabilities: FloatArray, temperature: float) -> FloatArray:
    powers = probabilities.clip(1e-12) ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _loss(probabilities: FloatArray, numbers: IntArray, examples: Examples) -> float:
    own = probabilities[np.arange(len(numbers)), numbers]
    return float(-(examples.weights @ np.log(own.clip(1e-12))))


@dataclass(frozen=True, slots=True)
class Naming:
    """When to name the likeliest class, and what comes of it on held-out sources."""

    cut: float  # probability from which on it is named
    named: float  # share of the images that get a name
    right: float  # of these, the share whose name is true


def choose_cut(fit: ClassFit, classes: NameArray, weights: FloatArray, right: float = RIGHT) -> Naming:
    """The lowest cut from which on a name is true often enough; every source weighs as ``weights`` say."""
    best = fit.held_out.max(axis=1)
    true = np.array(fit.head.names)[fit.held_out.argmax(axis=1)] == classes
    order = np.argsort(-best)
    share, hits = np.cumsum(weights[order]), np.cumsum((weights * true)[order])
    enough = np.flatnonzero(hits >= right * share)
    if not len(enough):
        return Naming(cut=1.0, named=0.0, right=0.0)
    last = enough[-1]
    total = float(share[-1])
    return Naming(float(best[order][last]), float(share[last] / total), float(hits[last] / share[last]))


def names_of_strangers(points: Points, classes: NameArray, fit: ClassFit, cut: float) -> dict[str, float]:
    """Of each class the share of images that get a wrong name from a head that never saw the class: ideally none.

    Empty where there are two classes: the head would know one.
    """
    found: dict[str, float] = {}
    if len(fit.names) < 3:
        return found
    for stranger in map(str, np.unique(classes)):
        known = classes != stranger
        names = tuple(map(str, np.unique(classes[known])))
        numbers = np.searchsorted(names, np.where(known, classes, names[0]))
        head = _cooled(_fit(points, numbers, names, known, fit.strength), fit.temperature)
        shares = head.probabilities(points.examples.tokens[~known]).max(axis=1)
        found[stranger] = float(np.mean(shares >= cut))
    return found
