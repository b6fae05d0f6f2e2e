"""scikit-learn's own checks of estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from rnnkern.sklearn import RNNClassifier, RNNForecaster, RNNRegressor, RNNTagger


class Tagger(RNNTagger):
    """Takes a label for each row, which is all that the checks have, for each step of the row."""

    def fit(self, X, y, sample_weight=None, lengths=None):
        return super().fit(X, _spread(X, y), sample_weight, lengths)

    def partial_fit(self, X, y, classes=None, sample_weight=None, lengths=None):
        classes = np.unique(y) if classes is None else classes
        return super().partial_fit(X, _spread(X, y), classes, sample_weight, lengths)

    def score(self, X, y, sample_weight=None, lengths=None):
        return super().score(X, _spread(X, y), sample_weight, lengths)


def _spread(X, y):
    if y is None:
        return None
    columns = X.shape[-1] if hasattr(X, "shape") else np.asarray(X).shape[-1]
    y = np.asarray(y)
    return np.repeat(y.reshape(len(y), -1)[:, :1], columns, axis=1)


# Small, so that 220 checks take some 20 seconds. In float64, as one check compares to 1e-7. With
# more rows in a batch than that check has, as smaller batches depend on how they are shuffled.
SMALL = {"hidden_size": 8, "max_epochs": 15, "learning_rate": 0.02, "batch_size": 32}
SMALL |= {"dtype": "float64", "random_state": 0}
ESTIMATORS = [
    RNNClassifier(**SMALL),
    RNNRegressor(**SMALL | {"hidden_size": 16, "max_epochs": 40}),  # the step of ten that counts
    Tagger(**SMALL),
    RNNForecaster(**SMALL),
]


# What the checks' own data warns of, such as y of one column, is not the estimator's.
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_no_check_is_left_out():
    """None of them is expected to fail, and what skips others is not there in any estimator."""
    for estimator in ESTIMATORS:
        tags = estimator.__sklearn_tags__()
        assert not tags._skip_test
        assert not tags.no_validation
        assert not tags.non_deterministic
        assert tags.input_tags.two_d_array
        for of_kind in (tags.classifier_tags, tags.regressor_tags):
            assert of_kind is None or not of_kind.poor_score
