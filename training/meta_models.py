"""Fits the three kinds of meta-model and the two calibrations to a table. Training only: needs scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusion.calibration import Calibration, Isotonic, Platt, Subsets
from fusion.estimators import Estimator, FloatArray, Logistic, Perceptron, Scaling, Trees, logit
from training.feature_table import IntArray, NameArray, families, parts, source_weights
from training.metrics import log_loss

DROPPED_COPIES = 2  # copies of the table with families missing, beside the table as it is
ALL_MISSING = 0.05  # share of those rows that lose everything: knowing nothing must give the prior
DIGITS = 8  # of a stored weight; float64 noise beyond that would only make artifacts larger

# What counts is sources, not rows: a hundred of them carry little more than one number each. Out of fold, calibrated,
# with 119 sources x 52 features: 0.497 nats; 0.498 at C 0.01 or reach 6, 0.502 at C 0.001 or 0.03, 0.523 at reach 1;
# the detector alone 0.506.
LOGISTIC_C = 0.003
DETECTOR_REACH = 3.0  # a detector's log-odds count this many spreads for one, so the penalty hardly holds them down
# Sizes of the others: the best or nearly best of a small grid on 1,622 rows of real images x 61 forensic features.
MLP_HIDDEN = 16
MLP_STEPS = 100
MLP_PENALTY = 0.003  # L2, per row
TREE_ROUNDS = 250
TREE_PARAMETERS: Mapping[str, float | str] = {
    "objective": "binary:logistic",
    "base_score": 0.5,  # the weights balance the classes
    "tree_method": "hist",
    "max_bin": 64,
    "max_depth": 3,
    "eta": 0.05,
    "subsample": 0.7,
    "colsample_bynode": 0.5,
    "min_child_weight": 5,
    "lambda": 5,
    "nthread": 1,  # sums in a fixed order: the same trees on any number of cores
}


class _Rows:
    """Training rows, and copies of them that lack whole families of inputs."""

    def __init__(
        self, inputs: Sequence[str], matrix: FloatArray, labels: IntArray, weights: FloatArray, drop: float, seed: int
    ) -> None:
        self.inputs, self.matrix, self.labels, self.drop = inputs, matrix, labels, drop
        self.weights = weights * (
            len(weights) / weights.sum()
        )  # mean 1, so that the penalties mean the same everywhere
        self.random = np.random.default_rng(seed)
        self.seed = seed

    def dropped(self) -> FloatArray:
        return drop_families(self.inputs, self.matrix, self.drop, self.random)

    def augmented(self) -> tuple[FloatArray, IntArray, FloatArray]:
        copies = [self.matrix, *(self.dropped() for _ in range(DROPPED_COPIES))]
        count = len(copies)
        return np.vstack(copies), np.tile(self.labels, count), np.tile(self.weights / count, count)


def drop_families(inputs: Sequence[str], matrix: FloatArray, drop: float, random: np.random.Generator) -> FloatArray:
    """A copy in which each row lacks each family with probability ``drop``, and some rows lack them all."""
    positions = families(inputs)
    lost = random.random((len(matrix), len(positions))) < drop
    lost |= (random.random(len(matrix)) < (ALL_MISSING if drop else 0.0))[:, None]
    copy = matrix.copy()
    for family, columns in enumerate(positions.values()):
        copy[np.ix_(lost[:, family].nonzero()[0], np.array(columns))] = np.nan
    return copy


def fit(
    kind: str,
    inputs: Sequence[str],
    matrix: FloatArray,
    labels: IntArray,
    weights: FloatArray,
    drop: float = 0.3,
    seed: int = 0,
) -> Estimator:
    """Train one kind of meta-model.

    Args:
        kind: a key of KINDS.
        matrix: n x d, NaN = missing.
        labels: n; 1 = AI; both present.
        weights: n; see ``training.feature_table.source_weights``.
        drop: probability that a family of inputs is missing in a training row.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(
        1
    ):  # sums in a fixed order on any number of cores; and these problems are too small to share
        return KINDS[kind](_Rows(inputs, matrix, labels, weights, drop, seed))


def _fit_logistic(rows: _Rows) -> Logistic:
    from sklearn.linear_model import LogisticRegression

    scaling = fit_scaling(rows.inputs, rows.matrix)
    matrix, labels, weights = rows.augmented()
    model = LogisticRegression(C=LOGISTIC_C, max_iter=1000).fit(scaling(matrix), labels, sample_weight=weights)
    values, missing = np.split(_rounded(model.coef_[0]), 2)
    return Logistic(scaling, values, missing, float(_rounded(model.intercept_)[0]))


def _fit_mlp(rows: _Rows) -> Perceptron:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    scaling = fit_scaling(rows.inputs, rows.matrix)
    matrix, labels, weights = rows.augmented()
    model = MLPClassifier(
        (MLP_HIDDEN,),
        activation="tanh",
        solver="lbfgs",
        alpha=MLP_PENALTY * len(labels),  # scikit-learn divides it by the rows
        max_iter=MLP_STEPS,
        random_state=rows.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is part of the recipe
        model.fit(scaling(matrix), labels, sample_weight=weights)
    (hidden, output), (hidden_bias, output_bias) = model.coefs_, model.intercepts_
    return Perceptron(
        scaling, _rounded(hidden), _rounded(hidden_bias), _rounded(output[:, 0]), float(_rounded(output_bias)[0])
    )


def _fit_trees(rows: _Rows) -> Trees:
    import xgboost

    matrix, labels, weights = rows.augmented()
    data = xgboost.QuantileDMatrix(matrix, label=labels, weight=weights, nthread=1, max_bin=TREE_PARAMETERS["max_bin"])
    booster = xgboost.train({**TREE_PARAMETERS, "seed": rows.seed}, data, num_boost_round=TREE_ROUNDS)
    return Trees(bytes(booster.save_raw("ubj")), matrix.shape[1])


# In order of simplicity.
KINDS: Mapping[str, Callable[[_Rows], Estimator]] = {
    Logistic.kind: _fit_logistic,
    Perceptron.kind: _fit_mlp,
    Trees.kind: _fit_trees,
}


def trainable() -> tuple[str, ...]:
    """The kinds whose packages are installed: the small requirements have no XGBoost."""
    return tuple(kind for kind in KINDS if kind != Trees.kind or find_spec("xgboost"))


def fit_scaling(inputs: Sequence[str], matrix: FloatArray) -> Scaling:
    """Median and spread of each input; the spread is the interquartile range in units of a normal's deviation.

    That of a detector's log-odds is taken as DETECTOR_REACH times smaller.
    """
    probability = np.array(
        [name.endswith("_prob") and _within_unit(column) for name, column in zip(inputs, matrix.T, strict=True)]
    )
    width = matrix.shape[1]
    linear = Scaling(np.zeros(width), np.ones(width), probability).linear(matrix)
    linear = np.where(np.isnan(linear).all(axis=0), 0.0, linear)  # a fold may lack an input altogether
    lower, centre, upper = np.nanpercentile(linear, (25, 50, 75), axis=0)
    spread = (upper - lower) / 1.349
    deviation = np.nanstd(linear, axis=0)
    spread = np.where(spread > 1e-3 * deviation, spread, deviation)  # a rare flag has no interquartile range
    spread = np.where(spread > 0, spread, 1.0) / np.where(probability, DETECTOR_REACH, 1.0)
    return Scaling(_rounded(centre), _rounded(spread), probability)


def _within_unit(column: FloatArray) -> bool:
    known = column[np.isfinite(column)]
    return bool(np.all((known >= 0) & (known <= 1)))


def fit_platt(log_odds: FloatArray, labels: IntArray, weights: FloatArray) -> Platt:
    """Weighted maximum likelihood; a falling line (inputs without any signal) becomes almost flat, never falling."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6).fit(log_odds[:, None], labels, sample_weight=weights * len(weights))
    slope, intercept = (float(_rounded(value).item()) for value in (model.coef_, model.intercept_))
    return Platt(max(slope, 1e-3), intercept)


def fit_isotonic(log_odds: FloatArray, labels: IntArray, weights: FloatArray, sources: int) -> Isotonic:
    """Centred isotonic regression (Oron and Flournoy 2017): one knot per block, at its mean.

    A block's flat step would tie its images, and a threshold could not pass between them. The ends are pinned to the
    rule of succession: ``sources`` independent observations cannot support more certainty than 1 - 1 / (n + 2).
    """
    from sklearn.isotonic import IsotonicRegression

    floor = 1 / (sources + 2)
    fitted = IsotonicRegression(y_min=floor, y_max=1 - floor).fit_transform(log_odds, labels, sample_weight=weights)
    _, block = np.unique(fitted, return_inverse=True)
    mass = np.bincount(block, weights)
    centres = np.bincount(block, weights * log_odds) / mass
    levels = np.bincount(block, weights * fitted) / mass
    knots = np.concatenate([[log_odds.min()], centres, [log_odds.max()]])
    levels = np.concatenate([[floor], levels, [1 - floor]])
    keep = np.concatenate([[True], np.diff(knots) > 1e-6])
    calibrated = np.maximum.accumulate(logit(levels[keep], floor))
    return Isotonic(tuple(_rounded(knots[keep]).tolist()), tuple(_rounded(calibrated).tolist()))


def fit_calibration(
    log_odds: FloatArray, labels: IntArray, weights: FloatArray, sources: int, folds: IntArray
) -> tuple[Calibration, FloatArray]:
    """The better of Platt and isotonic by log loss on sources neither was fitted to.

    Args:
        log_odds: n, out of fold.
        sources: how many independent sources the rows come from.
        folds: n; rows of one source share one.

    Returns:
        The calibration fitted to all rows, and the n probabilities from calibrations that did not see the row's fold.
    """

    def fit_isotonic_map(rows: NDArray[np.bool_]) -> Calibration:
        return fit_isotonic(log_odds[rows], labels[rows], weights[rows], sources)

    def fit_platt_map(rows: NDArray[np.bool_]) -> Calibration:
        return fit_platt(log_odds[rows], labels[rows], weights[rows])

    best: tuple[float, Calibration, FloatArray] | None = None
    for fit_map in (fit_platt_map, fit_isotonic_map):
        held_out = np.empty_like(log_odds)
        for fold in np.unique(folds):
            held_out[folds == fold] = fit_map(folds != fold)(log_odds[folds == fold])
        loss = float(log_loss(labels, held_out, weights[None])[0])
        if best is None or loss < best[0]:
            best = (loss, fit_map(np.ones(len(labels), bool)), held_out)
    assert best is not None
    return best[1], best[2]


def fit_subsets(
    inputs: Sequence[str],
    matrix: FloatArray,
    labels: IntArray,
    sources: NameArray,
    folds: IntArray,
    log_odds: Callable[[FloatArray], FloatArray],
) -> Subsets:
    """A calibration for every subset of the parts but all of them, each fitted with the others taken away.

    Args:
        log_odds: n x d -> n, out of fold, for ``matrix`` and for copies of it that lack something.
    """
    columns = parts(inputs)
    measured = {name: ~np.isnan(matrix[:, own]).all(axis=1) for name, own in columns.items()}
    maps = {}
    for size in range(len(columns) - 1, 0, -1):
        for kept in combinations(columns, size):
            rows = np.all([measured[name] for name in kept], axis=0)
            if any(len(np.unique(labels[rows & (folds != fold)])) < 2 for fold in np.unique(folds)):
                continue  # too little to fit to; the calibration of all answers
            odds = log_odds(without(matrix, columns, kept))[rows]
            weights, count = source_weights(labels[rows], sources[rows]), len(np.unique(sources[rows]))
            maps[frozenset(kept)], _ = fit_calibration(odds, labels[rows], weights, count, folds[rows])
    return Subsets({name: tuple(own) for name, own in columns.items()}, maps)


def without(matrix: FloatArray, columns: Mapping[str, Sequence[int]], kept: Collection[str]) -> FloatArray:
    """A copy that lacks all parts but those kept."""
    copy = matrix.copy()
    for name, own in columns.items():
        if name not in kept:
            copy[:, own] = np.nan
    return copy


def _rounded(values: FloatArray) -> FloatArray:
    """To DIGITS significant digits."""
    values = np.atleast_1d(np.asarray(values, float))
    magnitude = np.floor(np.log10(np.abs(values), out=np.zeros_like(values), where=values != 0))
    factor = 10.0 ** (DIGITS - 1 - magnitude)
    return np.asarray(np.round(values * factor) / factor)
