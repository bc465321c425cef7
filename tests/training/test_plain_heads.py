"""Plain heads compute what scikit-learn computes, for every setting that the trainer tries."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from inference.heads import CLASSIFIERS
from training.head_fit import settings_of
from training.heads import log_odds, plain_head

EVERY = [
    (kind, index) for kind in ("svm", "logistic", "forest", "mlp") for index in range(len(settings_of(kind, True, 0)))
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a fixed number of steps is the setting
@pytest.mark.parametrize(("kind", "index"), EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_plain_head_gives_scikit_learns_log_odds(kind: str, index: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(3, [[1, 2, 0.1, 5, 1, 1]], (120, 6)).astype(dtype)
    labels = (matrix[:, 0] + matrix[:, 1] * matrix[:, 4] / 4 + rng.normal(0, 1, 120) > 7).astype(int)
    pipeline: Pipeline = settings_of(kind, True, 0)[index]
    if kind == "forest":
        pipeline.set_params(head__n_estimators=20)
    pipeline.fit(matrix, labels, head__sample_weight=rng.uniform(0.5, 2, 120))
    head = plain_head(pipeline)
    fresh = rng.normal(3, [[1, 2, 0.1, 5, 1, 1]], (200, 6)).astype(dtype)
    expected = log_odds(pipeline, fresh)
    assert expected.std() > 0
    tolerance = 1e-9 if dtype is np.float64 else 1e-3  # scikit-learn then computes in single precision
    if kind == "mlp":  # scikit-learn gives a probability only, which near 1 has fewer digits than its log-odds
        tolerance = max(tolerance, 1e-5)
    np.testing.assert_allclose(head.log_odds(fresh), expected, rtol=tolerance, atol=tolerance)
    again = CLASSIFIERS[head.kind].from_arrays(head.arrays())
    np.testing.assert_array_equal(again.log_odds(fresh), head.log_odds(fresh))
