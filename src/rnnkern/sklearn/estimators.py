"""The four estimators: their targets, their predictions and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from ..checks import size
from ..docstrings import complete
from .sequences import Sequences, per_step
from .training import Progress, Recurrent, Task

__all__ = ["RNNClassifier", "RNNForecaster", "RNNRegressor", "RNNTagger"]

Array = NDArray[Any]
Layout = Array | list[Array]  # of values of each step


class _Labels(Recurrent):
    """Estimators whose targets are classes."""

    _labels = True

    def __init__(
        self,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        cell_options: Mapping[str, Any] | None = None,
        optimizer: str = "adam",
        learning_rate: float = 0.01,
        optimizer_options: Mapping[str, Any] | None = None,
        max_norm: float | None = 1.0,
        batch_size: int = 32,
        max_epochs: int = 50,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        standardize: bool = True,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        dtype: str = "float32",
        verbose: bool = False,
        progress: Progress | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            cell_options=cell_options,
            optimizer=optimizer,
            learning_rate=learning_rate,
            optimizer_options=optimizer_options,
            max_norm=max_norm,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            standardize=standardize,
            warm_start=warm_start,
            dtype=dtype,
            verbose=verbose,
            progress=progress,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
        lengths: Any = None,
    ) -> Any:
        """Train for one more epoch.

        The first call makes the network and computes the means and deviations of the inputs.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.
        classes : array, optional
            All labels that will come; needed in the first call.

        Returns
        -------
        RNNClassifier or RNNTagger
            Itself.

        Raises
        ------
        TypeError, ValueError
            As in `fit`, and if labels or features are others than at first.
        """
        return self._fit(X, y, lengths, sample_weight, part=True, classes=classes)

    def _numbered(self, labels: Array, *, fresh: bool, classes: Any, part: bool) -> Array:
        """The labels' numbers among `classes_`."""
        try:
            check_classification_targets(labels)
        except TypeError as error:
            kinds = ", ".join(sorted({type(label).__name__ for label in labels.tolist()}))
            raise TypeError(f"y: expected labels that can be sorted, got {kinds}") from error
        if part and self.class_weight == "balanced":
            raise ValueError(
                "class_weight: expected None or a dict for partial_fit, which does not see all "
                "labels, got 'balanced'"
            )
        if fresh and part and classes is None:
            raise ValueError("classes: expected all labels at the first partial_fit, got None")
        if fresh:
            self.classes_ = np.unique(labels if classes is None else np.asarray(classes))
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise ValueError(f"classes: expected {self.classes_}, as at first, got {classes}")
        if len(unknown := np.setdiff1d(labels, self.classes_)):
            raise ValueError(f"y: expected labels of {self.classes_}, got {unknown[0]!r}")
        return np.searchsorted(self.classes_, labels)

    def _of_classes(self, labels: Array, numbers: Array) -> Array:
        """What each label counts, by its class."""
        if self.class_weight is None:
            return np.ones(len(labels))
        named = isinstance(self.class_weight, Mapping)
        given = dict(self.class_weight) if named else self.class_weight  # type: ignore[arg-type]
        classes = self.classes_ if named else np.unique(labels)
        own = compute_class_weight(given, classes=classes, y=labels)
        by_class = np.ones(len(self.classes_))
        by_class[np.searchsorted(self.classes_, classes)] = own
        weights: Array = by_class[numbers]
        if not ((weights >= 0) & (weights < np.inf)).all() or not weights.any():
            raise ValueError(
                f"class_weight: expected weights of at least 0, not all zero, got "
                f"{self.class_weight!r}"
            )
        return weights


class RNNClassifier(ClassifierMixin, _Labels):
    """A label for each sequence: a recurrent layer, and softmax over its last outputs.

    Parameters
    ----------
    cell : {"gru", "indrnn", "lstm", "mingru", "minlstm", "rglru", "rnn", "slstm"}
        The class of the layer. An RG-LRU gets a linear layer before it, as it takes as many inputs
        as it has units.
    hidden_size, num_layers : int
        Units of a layer, and layers, each at least 1.
    bidirectional : bool
        Whether each layer also runs backward in time. Each direction's own last output counts.
    dropout : float
        From 0 to below 1; acts between layers, in training. Above 0 it needs two layers.
    cell_options : dict, optional
        Other options of the layer's class, such as ``{"reset_after": False}``, ``{"residual":
        True}`` or ``{"init": "orthogonal"}``.
    optimizer : {"adam", "adamw", "rmsprop", "sgd"}
        The class of the optimizer.
    learning_rate : float
        Above 0.
    optimizer_options : dict, optional
        Other options of the optimizer's class, such as ``{"l2": 1e-4}``.
    max_norm : float, optional
        What the joint norm of all gradients is clipped to. None: not at all.
    batch_size : int
        Sequences for each step of the optimizer.
    max_epochs : int
        Passes of `fit` over the sequences.
    early_stopping : bool
        Whether `fit` holds out a part of the sequences, stops when their loss no longer falls, and
        keeps the parameters of the epoch where it was lowest.
    validation_fraction : float
        The part held out, above 0 and below 1; each class keeps its share.
    n_iter_no_change : int
        How many epochs early stopping waits for the loss to fall by `tol`.
    tol : float
        At least 0.
    standardize : bool
        Whether each feature is shifted and scaled to mean 0 and deviation 1 over all steps of the
        first fit. If False, the caller should do so: on other scales, training is slow.
    class_weight : dict or "balanced", optional
        What each class counts, 1 if not named. "balanced": inversely to its share of the labels.
    warm_start : bool
        Whether `fit` continues from where the last one ended, the optimizer and the random
        generator included: two fits of 5 epochs give the bits of one of 10.
    dtype : {"float32", "float64"}
        Of the network.
    verbose : bool
        Whether to print the loss and the time after each epoch.
    progress : callable, optional
        Shows how far `fit` is, such as ``tqdm.auto.tqdm``: it is called with the range of epochs,
        and returns an iterable of them.
    random_state : int, RandomState or None
        For the initial parameters, the order of sequences, dropout and the sequences that early
        stopping holds out. The same integer gives the same bits.

    Attributes
    ----------
    classes_ : ndarray, shape (C,)
        The labels in order.
    layer_, head_ : recurrent layer, Linear
        What was trained. ``layer_.save(path)`` writes the layer to a file.
    loss_curve_, validation_curve_ : list of float
        The mean loss of each epoch, and that of the sequences held out.
    n_iter_ : int
        Epochs so far.
    n_features_in_ : int
        Features of a step, or columns of a 2-D X.

    Notes
    -----
    Input X is an array (n, T, I) of n sequences of T steps of I features, an array (n, T) of one
    feature, or a list of arrays (T_i, I) or (T_i,). `lengths` says where the rows of an array end;
    values after the end are never read. A list gives the bits of the padded array with lengths.
    Lists of equally many numbers are an array (n, T).

    An array (n, T) fixes T, as in all of scikit-learn: others must have as many columns. Of other
    inputs each may have steps of any number.

    Training computes in as many threads as `rnnkern.get_num_threads` says; results do not depend
    on their number.

    Raises
    ------
    TypeError, ValueError
        `fit` and `partial_fit`, if a parameter is invalid; the message names it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from rnnkern.sklearn import RNNClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X.reshape(-1, 8, 8)  # 8 rows of pixels, top to bottom
    >>> train, test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> model = RNNClassifier(hidden_size=32, max_epochs=5, random_state=0).fit(train, y_train)
    >>> model.score(test, y_test) > 0.9
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> Any:
        """Learn the labels of sequences.

        Parameters
        ----------
        X : array or list of arrays
            n sequences, as the class's notes say.
        y : array, shape (n,)
            Their labels.
        sample_weight : array, shape (n,), optional
            What each counts, at least 0. Sequences of weight 0 are left out.
        lengths : array of int, shape (n,), optional
            Steps of each row of an array, from 1 to T.

        Returns
        -------
        RNNClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or parameter is invalid; the message names it.
        """
        return self._fit(X, y, lengths, sample_weight)

    def _task(
        self, y: Any, data: Sequences, weights: Array, *, fresh: bool, classes: Any, part: bool
    ) -> tuple[Sequences, Task]:
        labels = column_or_1d(_given(self, y), warn=True)
        check_consistent_length(data.lengths, labels)
        if labels.dtype.kind in "fc":
            check_array(labels, ensure_2d=False, input_name="y")
        data, weights, labels = _counting(data, weights, labels)
        numbers = self._numbered(labels, fresh=fresh, classes=classes, part=part)
        own = weights * self._of_classes(labels, numbers)
        return data, Task(numbers, own, weights, len(self.classes_), numbers)

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """Predict the label of each sequence.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n,)
            Labels of `classes_`.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. Before `fit`, NotFittedError.
        """
        _, z = self._predicted(X, lengths)
        labels: Array = self.classes_[z.argmax(-1)]
        return labels

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """Predict the probability of each label.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n, C)
            Probabilities in the order of `classes_`, float64.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        probabilities: Array = softmax(self._predicted(X, lengths)[1], axis=-1)
        return probabilities

    def predict_log_proba(self, X: Any, lengths: Any = None) -> Array:
        """Return the logarithms of `predict_proba`.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n, C)
            In nats.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        logarithms: Array = log_softmax(self._predicted(X, lengths)[1], axis=-1)
        return logarithms

    def score(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> float:
        """Return the share of labels that are right.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        said = self.predict(X, lengths)
        return float(accuracy_score(y, said, sample_weight=sample_weight))


class RNNRegressor(RegressorMixin, Recurrent):
    """A value for each sequence, or several: a recurrent layer, and a linear one after it.

    The linear layer sees the last outputs. The loss is the mean squared error.

    Parameters
    ----------
    cell, hidden_size, num_layers, bidirectional, dropout, cell_options, optimizer, learning_rate,
    optimizer_options, max_norm, batch_size, max_epochs, early_stopping, validation_fraction,
    n_iter_no_change, tol, warm_start, dtype, verbose, progress, random_state
        As in `RNNClassifier`.
    standardize : bool
        As in `RNNClassifier`. Targets are standardized, too. Predictions are in their own units.

    Attributes
    ----------
    layer_, head_, n_iter_, n_features_in_
        As in `RNNClassifier`.
    loss_curve_, validation_curve_
        As in `RNNClassifier`. Losses are those of standardized targets.

    Raises
    ------
    TypeError, ValueError
        As in `RNNClassifier`.

    Examples
    --------
    The sums of sequences of different lengths:

    >>> import numpy as np
    >>> from rnnkern.sklearn import RNNRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=n) for n in rng.integers(3, 10, 300)]
    >>> y = [x.sum() for x in X]
    >>> model = RNNRegressor(hidden_size=16, random_state=0).fit(X[:200], y[:200])
    >>> model.score(X[200:], y[200:]) > 0.9
    True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> Any:
        """Learn the values of sequences.

        Parameters
        ----------
        X : array or list of arrays
            n sequences, as in `RNNClassifier`.
        y : array, shape (n,) or (n, O)
            Their values.
        sample_weight : array, shape (n,), optional
            What each counts, at least 0. Sequences of weight 0 are left out.
        lengths : array of int, shape (n,), optional
            Steps of each row of an array, from 1 to T.

        Returns
        -------
        RNNRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or parameter is invalid; the message names it.
        """
        return self._fit(X, y, lengths, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> Any:
        """Train for one more epoch.

        The first call makes the network and computes the means and deviations of inputs and
        targets.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.

        Returns
        -------
        RNNRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            As in `fit`, and if outputs or features are others than at first.
        """
        return self._fit(X, y, lengths, sample_weight, part=True)

    def _task(
        self, y: Any, data: Sequences, weights: Array, *, fresh: bool, classes: Any, part: bool
    ) -> tuple[Sequences, Task]:
        values = check_array(
            _given(self, y), ensure_2d=False, allow_nd=True, dtype=np.float64, input_name="y"
        )
        check_consistent_length(data.lengths, values)
        if values.ndim not in (1, 2):
            raise ValueError(f"y: expected shape (n,) or (n, O), got {values.shape}")
        shape = values.shape[1:]
        if fresh:
            self._target_shape = shape
        elif shape != self._target_shape:
            expected = f"shape {('n', *self._target_shape)}, as at first,".replace("'", "")
            raise ValueError(f"y: expected {expected} got {values.shape}")
        data, weights, values = _counting(data, weights, values.reshape(len(values), -1))
        return data, Task(values, weights, weights, values.shape[1])

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """Predict the value of each sequence.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n,) or (n, O)
            As y was in `fit`, float64.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. Before `fit`, NotFittedError.
        """
        z = self._predicted(X, lengths)[1]
        values = self._in_units(z)
        return values.reshape(len(values), *self._target_shape)

    def score(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> float:
        """Return the coefficient of determination, R^2.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.

        Returns
        -------
        float
            At most 1; the mean of several outputs'.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        return float(r2_score(y, self.predict(X, lengths), sample_weight=sample_weight))


class RNNTagger(_Labels):
    """A label for each step of each sequence: a recurrent layer, and softmax over its outputs.

    With ``bidirectional=True``, a label depends on the steps before and after it.

    Parameters
    ----------
    cell, hidden_size, num_layers, bidirectional, dropout, cell_options, optimizer, learning_rate,
    optimizer_options, max_norm, batch_size, max_epochs, early_stopping, n_iter_no_change, tol,
    standardize, warm_start, dtype, verbose, progress, random_state
        As in `RNNClassifier`.
    validation_fraction : float
        The part held out, above 0 and below 1, drawn without regard to labels.
    class_weight : dict or "balanced", optional
        As in `RNNClassifier`. Labels are those of the steps.

    Attributes
    ----------
    classes_, layer_, head_, loss_curve_, validation_curve_, n_iter_, n_features_in_
        As in `RNNClassifier`.

    Raises
    ------
    TypeError, ValueError
        As in `RNNClassifier`.

    Examples
    --------
    Whether the sum of the steps so far is positive:

    >>> import numpy as np
    >>> from rnnkern.sklearn import RNNTagger
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=n) for n in rng.integers(3, 20, 200)]
    >>> y = [np.where(x.cumsum() > 0, "up", "down") for x in X]
    >>> model = RNNTagger(hidden_size=16, max_epochs=20, random_state=0).fit(X[:150], y[:150])
    >>> model.score(X[150:], y[150:]) > 0.9
    True
    >>> model.predict([np.array([1.0, -3.0, 2.5, 2.5])])
    [array(['up', 'down', 'up', 'up'], dtype='<U4')]
    """

    _each_step = True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> Any:
        """Learn the labels of the steps of sequences.

        Parameters
        ----------
        X : array or list of arrays
            n sequences, as in `RNNClassifier`.
        y : array, shape (n, T), or list of n arrays, shape (T_i,)
            Their labels. Of an array, values after the end of a row are not read.
        sample_weight : array, shape (n,), optional
            What each sequence counts, at least 0. Those of weight 0 are left out.
        lengths : array of int, shape (n,), optional
            Steps of each row of an array, from 1 to T.

        Returns
        -------
        RNNTagger
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or parameter is invalid; the message names it.
        """
        return self._fit(X, y, lengths, sample_weight)

    def _task(
        self, y: Any, data: Sequences, weights: Array, *, fresh: bool, classes: Any, part: bool
    ) -> tuple[Sequences, Task]:
        labels = per_step("y", _given(self, y), data)
        if labels.dtype.kind in "fc":
            check_array(labels, ensure_2d=False, input_name="y")
        of_steps = np.repeat(weights, data.lengths)
        labels = labels[of_steps > 0]
        data, weights = _counting(data, weights)
        numbers = self._numbered(labels, fresh=fresh, classes=classes, part=part)
        own = np.repeat(weights, data.lengths) * self._of_classes(labels, numbers)
        return data, Task(numbers, own, weights, len(self.classes_))

    def predict(self, X: Any, lengths: Any = None) -> Layout:
        """Predict the label of each step.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n, T), or list of n ndarrays, shape (T_i,)
            Labels of `classes_`, laid out as X. After the end of a row, an array holds the first of
            `classes_`.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. Before `fit`, NotFittedError.
        """
        data, z = self._predicted(X, lengths)
        return data.in_layout(self.classes_[z.argmax(-1)], self.classes_[0])

    def predict_proba(self, X: Any, lengths: Any = None) -> Layout:
        """Predict the probability of each label at each step.

        Parameters
        ----------
        X, lengths
            As in `fit`.

        Returns
        -------
        ndarray, shape (n, T, C), or list of n ndarrays, shape (T_i, C)
            Probabilities in the order of `classes_`, laid out as X; zeros after the end of a
            row of an array.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        data, z = self._predicted(X, lengths)
        return data.in_layout(softmax(z, axis=-1), 0.0)

    def score(self, X: Any, y: Any, sample_weight: Any = None, lengths: Any = None) -> float:
        """Return the share of steps whose labels are right.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        data, z = self._predicted(X, lengths)
        right = per_step("y", y, data) == self.classes_[z.argmax(-1)]
        weights = self._weights(sample_weight, len(data.lengths))
        return float(np.average(right, weights=np.repeat(weights, data.lengths)))


class RNNForecaster(Recurrent):
    """The next values of series: a recurrent layer that predicts each step from those before it.

    A forecast of several steps takes each predicted step as the next input. The network predicts
    the change from one step to the next.

    Parameters
    ----------
    cell, hidden_size, num_layers, dropout, cell_options, optimizer, learning_rate,
    optimizer_options, max_norm, batch_size, max_epochs, early_stopping, n_iter_no_change, tol,
    warm_start, dtype, verbose, progress, random_state
        As in `RNNClassifier`.
    bidirectional : bool
        Must be False: a forecast sees no later step.
    validation_fraction : float
        The part of the series that is held out, above 0 and below 1.
    standardize : bool
        As in `RNNClassifier`. Forecasts are in the series' own units.
    horizon : int
        How many steps `predict` forecasts.

    Attributes
    ----------
    layer_, head_, n_iter_, n_features_in_
        As in `RNNClassifier`.
    loss_curve_, validation_curve_
        As in `RNNClassifier`. Losses are those of standardized steps.

    Raises
    ------
    TypeError, ValueError
        As in `RNNClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnkern.sklearn import RNNForecaster
    >>> series = np.sin(0.3 * np.arange(400) + np.arange(8)[:, None])  # 8 series of 400 steps
    >>> model = RNNForecaster(hidden_size=16, horizon=20, batch_size=2, random_state=0)
    >>> _ = model.fit(series[:, :380])
    >>> bool(np.abs(model.predict(series[:, :380]) - series[:, 380:]).mean() < 0.1)
    True
    """

    _each_step = True

    def __init__(
        self,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        horizon: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        cell_options: Mapping[str, Any] | None = None,
        optimizer: str = "adam",
        learning_rate: float = 0.01,
        optimizer_options: Mapping[str, Any] | None = None,
        max_norm: float | None = 1.0,
        batch_size: int = 32,
        max_epochs: int = 50,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        standardize: bool = True,
        warm_start: bool = False,
        dtype: str = "float32",
        verbose: bool = False,
        progress: Progress | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            cell_options=cell_options,
            optimizer=optimizer,
            learning_rate=learning_rate,
            optimizer_options=optimizer_options,
            max_norm=max_norm,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            standardize=standardize,
            warm_start=warm_start,
            dtype=dtype,
            verbose=verbose,
            progress=progress,
            random_state=random_state,
        )
        self.horizon = horizon

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, lengths: Any = None) -> Any:
        """Learn to predict the next step of series.

        Parameters
        ----------
        X : array or list of arrays
            n series, as the sequences of `RNNClassifier`, of at least 2 steps.
        y : None
            Ignored: the targets are in X. Present for scikit-learn's interface.
        sample_weight : array, shape (n,), optional
            What each series counts, at least 0. Those of weight 0 are left out.
        lengths : array of int, shape (n,), optional
            Steps of each row of an array, from 2 to T.

        Returns
        -------
        RNNForecaster
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or parameter is invalid; the message names it.
        """
        return self._fit(X, y, lengths, sample_weight)

    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, lengths: Any = None
    ) -> Any:
        """Train for one more epoch.

        The first call makes the network and computes the means and deviations of the series.

        Parameters
        ----------
        X, y, sample_weight, lengths
            As in `fit`.

        Returns
        -------
        RNNForecaster
            Itself.

        Raises
        ------
        TypeError, ValueError
            As in `fit`, and if features are others than at first.
        """
        return self._fit(X, y, lengths, sample_weight, part=True)

    def _checked(self) -> dict[str, Any]:
        options = super()._checked()
        size("horizon", self.horizon)
        if options["bidirectional"] or dict(self.cell_options or {}).get("reverse"):
            name = "bidirectional" if options["bidirectional"] else "cell_options['reverse']"
            raise ValueError(f"{name}: expected False, as a forecast sees no later step, got True")
        return options

    def _task(
        self, y: Any, data: Sequences, weights: Array, *, fresh: bool, classes: Any, part: bool
    ) -> tuple[Sequences, Task]:
        data, weights = _counting(data, weights)
        before, changes = _changes(data)
        own = np.repeat(weights, before.lengths)
        return before, Task(changes, own, weights, changes.shape[1])

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """Forecast the `horizon` steps that follow each series.

        Parameters
        ----------
        X, lengths
            As in `fit`, of at least 1 step.

        Returns
        -------
        ndarray, shape (n, horizon, I), or (n, horizon) where a step of X is a number
            In the units of X, float64.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid. Before `fit`, NotFittedError.
        """
        check_is_fitted(self)
        horizon, data = size("horizon", self.horizon), self._read(X, lengths)
        inputs, said = self._standardized(data.steps), []
        for rows in self._shares(data):
            index, _ = data.places(rows)
            z, state = self._run.network.last(inputs[index], data.lengths[rows])
            steps = [data.steps[index[data.lengths[rows] - 1, np.arange(len(rows))]]]
            for ahead in range(horizon):
                if ahead:
                    x = self._standardized(steps[-1])[None]
                    z, state = self._run.network.last(x, None, state)
                steps.append(steps[-1] + self._in_units(z))
            said.append(np.stack(steps[1:], axis=1))
        values = np.concatenate(said)
        return values[:, :, 0] if data.flat else values

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, lengths: Any = None) -> float:
        """Return the coefficient of determination, R^2, of forecasts.

        Parameters
        ----------
        X, sample_weight, lengths
            As in `fit`.
        y : array, shape (n, horizon, I) or (n, horizon), optional
            What followed each series. If not given, the forecasts are those of each step of X but
            the first, from the steps before it.

        Returns
        -------
        float
            At most 1. 0 is what the mean of all forecast values scores; the mean over features.

        Raises
        ------
        TypeError, ValueError
            As in `predict`.
        """
        check_is_fitted(self)
        data = self._read(X, lengths)
        weights = self._weights(sample_weight, len(data.lengths))
        features = data.steps.shape[1]
        if y is None:
            before, changes = _changes(data)
            said = self._in_units(self._outputs(before, self._standardized(before.steps)))
            said, true = before.steps + said, before.steps + changes
            weights = np.repeat(weights, before.lengths)
        else:
            said, true = self.predict(X, lengths), np.asarray(y, np.float64)
            if true.shape == (said.size,):  # one step of one feature
                true = true.reshape(said.shape)
            if true.shape != said.shape:
                raise ValueError(f"y: expected shape {said.shape}, got {true.shape}")
            weights = np.repeat(weights, said.shape[1])
            said, true = said.reshape(-1, features), true.reshape(-1, features)
        return float(r2_score(true, said, sample_weight=weights))


def _changes(data: Sequences) -> tuple[Sequences, Array]:
    """The series without their last steps, and the change from each step to the next."""
    if (short := data.lengths < 2).any():
        got = f"{int(short.sum())} of 1 step (n_features = 1)"
        raise ValueError(f"X: expected series of at least 2 steps, got {got}")
    is_last = np.zeros(len(data.steps), bool)
    is_last[data.first + data.lengths - 1] = True
    changes = np.diff(data.steps, axis=0, append=0)[~is_last]
    return data._replace(steps=data.steps[~is_last], lengths=data.lengths - 1), changes


def _given(estimator: Recurrent, y: Any) -> Any:
    if y is None:
        name = type(estimator).__name__
        raise ValueError(f"{name} requires y to be passed, but the target y is None")
    return y


def _counting(data: Sequences, weights: Array, *others: Array) -> tuple[Any, ...]:
    """The rows whose weight is not zero."""
    if weights.all():
        return data, weights, *others
    rows = np.flatnonzero(weights)
    index, real = data.places(rows)
    kept = data._replace(steps=data.steps[index.T[real.T]], lengths=data.lengths[rows])
    return kept, weights[rows], *(other[rows] for other in others)


complete(RNNClassifier, RNNRegressor, RNNTagger, RNNForecaster)
