"""scikit-learn: estimators that learn from sequences.

`RNNClassifier` and `RNNRegressor` learn a label or a value for each sequence, `RNNTagger` a label
for each step, `RNNForecaster` the next values. Needs ``pip install 'rnnkern[sklearn]'``.

>>> import numpy as np, rnnkern as rk, rnnkern.sklearn
>>> X = [np.full(n, n % 2) for n in range(5, 25)]  # sequences of 5 to 24 steps
>>> y = ["odd" if n % 2 else "even" for n in range(5, 25)]
>>> model = rk.sklearn.RNNClassifier(hidden_size=8, random_state=0).fit(X, y)
>>> model.score(X, y)
1.0
"""

try:
    import sklearn as _sklearn  # noqa: F401  (here, so that the first import says what is missing)
except ImportError as error:
    raise ImportError(
        f"rnnkern.sklearn needs scikit-learn: pip install 'rnnkern[sklearn]' ({error})"
    ) from error

from .estimators import RNNClassifier, RNNForecaster, RNNRegressor, RNNTagger

__all__ = ["RNNClassifier", "RNNForecaster", "RNNRegressor", "RNNTagger"]
