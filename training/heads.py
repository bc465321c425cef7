"""Fitted scikit-learn pipelines (standardise, classify) as the plain heads that inference computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from fusion.estimators import FloatArray, logit
from inference.heads import FOREST_FLOOR, Classifier, Forest, Linear, Mlp, RadialSvm

NETWORK_FLOOR = 1e-12  # a network never says 0 or 1; only rounding does


def log_odds(pipeline: Pipeline, embeddings: FloatArray) -> FloatArray:
    """n x d -> n, towards AI, by scikit-learn itself: the decision function, or the log-odds of a probability."""
    if hasattr(pipeline, "decision_function"):
        return np.asarray(pipeline.decision_function(embeddings), float)
    floor = NETWORK_FLOOR if isinstance(pipeline["head"], MLPClassifier) else FOREST_FLOOR
    return logit(np.asarray(pipeline.predict_proba(embeddings)[:, 1], float), floor)


def plain_head(pipeline: Pipeline) -> Classifier:
    """What ``log_odds`` computes, without scikit-learn.

    Args:
        pipeline: fitted to labels 0 and 1; ``scale`` is a StandardScaler, ``head`` an SVC with ``gamma="auto"``, a
            RandomForestClassifier or a linear classifier.
    """
    scaler, head = pipeline["scale"], pipeline["head"]
    mean, scale = (np.asarray(each, float) for each in (scaler.mean_, scaler.scale_))
    if isinstance(head, SVC):
        gamma = np.array([1 / len(mean)])  # what "auto" means
        coefficients, intercept = head.dual_coef_[0], head.intercept_
        return RadialSvm(mean, scale, head.support_vectors_, coefficients, intercept, gamma)
    if isinstance(head, MLPClassifier):
        (hidden, weights), (hidden_bias, intercept) = head.coefs_, head.intercepts_
        return Mlp(mean, scale, hidden.astype(float), hidden_bias.astype(float), weights[:, 0].astype(float), intercept)
    if isinstance(head, RandomForestClassifier):
        return _forest(mean, scale, [each.tree_ for each in head.estimators_])
    return Linear(mean, scale, np.asarray(head.coef_[0], float), np.asarray(head.intercept_, float))


def _forest(mean: FloatArray, scale: FloatArray, trees: list[Any]) -> Forest:
    roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    inner = np.concatenate([tree.children_left >= 0 for tree in trees])

    def branches(side: str) -> Any:
        shifted = [getattr(tree, f"children_{side}") + root for tree, root in zip(trees, roots, strict=True)]
        return np.where(inner, np.concatenate(shifted), 0)

    return Forest(
        mean,
        scale,
        roots,
        branches("left"),
        branches("right"),
        np.where(inner, np.concatenate([tree.feature for tree in trees]), 0),
        np.where(inner, np.concatenate([tree.threshold for tree in trees]), 0.0),
        np.concatenate([tree.value[:, 0, 1] for tree in trees]),
    )
