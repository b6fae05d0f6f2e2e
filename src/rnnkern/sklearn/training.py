"""Parameters, input, training and outputs of all estimators."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ..checks import (
    cast_to,
    choice,
    flag,
    float_dtype,
    integer,
    number,
    probability,
    size,
    unmasked,
)
from ..layers import LAYERS
from .network import OPTIMIZERS, Network, labels_loss, values_loss
from .sequences import FLOATS, Sequences, as_list, joined, padded

__all__ = ["Progress", "Recurrent", "Task"]

Array = NDArray[Any]
Progress = Callable[[Iterable[int]], Iterable[int]]  # such as tqdm

# What an estimator says itself of its layer and its optimizer.
OWN_OPTIONS: tuple[str, ...] = ("input_size", "hidden_size", "num_layers", "bidirectional")
OWN_OPTIONS += ("dropout", "dtype", "seed", "batch_first", "ensemble", "params")
OWN_OPTIONS_OF_OPTIMIZER = ("params", "lr", "ensemble")
# Parameters that make the network: they are those of the first fit as long as it is trained.
OF_NETWORK: tuple[str, ...] = ("cell", "hidden_size", "num_layers", "bidirectional")
OF_NETWORK += ("cell_options", "optimizer", "optimizer_options", "standardize", "dtype")
STEPS_AT_A_TIME = 2**16  # of rows whose outputs are computed in one call


class Task(NamedTuple):
    """What is learned of the sequences.

    Attributes
    ----------
    targets : ndarray
        Numbers of classes, or values (..., O): of each row, or of each step.
    weights : ndarray of float64, shaped like the rows or the steps
        What each counts in the loss.
    weights_of_rows : ndarray of float64, shape (n,)
        What each row counts, whatever its class.
    outputs : int
        O.
    strata : ndarray, optional
        Labels of the rows whose shares a split must keep.
    """

    targets: Array
    weights: Array
    weights_of_rows: Array
    outputs: int
    strata: Array | None = None


@dataclass
class Run:
    """The state of training: the network, its optimizer and the random generator."""

    network: Network
    optimizer: Any
    generator: np.random.Generator
    mean: Array  # of features, and what they are divided by
    scale: Array
    mean_of_targets: Any
    scale_of_targets: Any
    made_with: dict[str, Any]


class Recurrent(BaseEstimator):
    """Base class of the estimators: their parameters, training and outputs."""

    _each_step = False  # whether each step has a target
    _labels = False  # whether targets are classes
    _run: Run
    _has_columns: bool  # whether the first X was an array (n, T)
    _features: int  # of a step

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
        warm_start: bool = False,
        dtype: str = "float32",
        verbose: bool = False,
        progress: Progress | None = None,
        random_state: Any = None,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.cell_options = cell_options
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.optimizer_options = optimizer_options
        self.max_norm = max_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.standardize = standardize
        self.warm_start = warm_start
        self.dtype = dtype
        self.verbose = verbose
        self.progress = progress
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_run")

    @property
    def layer_(self) -> Any:
        """The recurrent layer."""
        check_is_fitted(self)
        return self._run.network.layer

    @property
    def head_(self) -> Any:
        """The output layer, an `rnnkern.Linear`."""
        check_is_fitted(self)
        return self._run.network.head

    # ------------------------------------------------------------------------------------- input

    def _read(self, X: Any, lengths: Any, *, reset: bool = False) -> Sequences:
        """Sequences of an argument; of as many features as the first ones, unless `reset`."""
        items, ndim = as_list(unmasked("X", X)), getattr(X, "ndim", 2)
        has_columns = items is None and ndim != 3
        finite = lengths is None  # else what lies behind the rows' ends is not looked at
        if items is not None:
            if lengths is not None:
                raise ValueError("lengths: expected None with a list of sequences, got an array")
            data = joined("X", items)
        elif isinstance(X, (list, tuple)) and not X:
            raise ValueError("X: expected at least 1 sequence, got an empty list")
        elif ndim > 3:
            raise ValueError(f"X: expected shape (n, T, I) or (n, T), got {X.shape}")
        elif not has_columns:
            array = check_array(
                X, dtype=FLOATS, allow_nd=True, ensure_all_finite=finite, input_name="X"
            )
            data = padded("X", array, lengths)
        elif reset or self._has_columns:  # whose number and names scikit-learn compares
            array = validate_data(self, X, reset=reset, dtype=FLOATS, ensure_all_finite=finite)
            data = padded("X", array, lengths)
        else:
            array = check_array(X, dtype=FLOATS, ensure_all_finite=finite, input_name="X")
            data = padded("X", array, lengths)
        features = data.steps.shape[1]
        if reset:
            self._has_columns, self._features = has_columns, features
            if not has_columns:
                self.n_features_in_ = features
                if hasattr(self, "feature_names_in_"):
                    del self.feature_names_in_
        if features != self._features:
            raise ValueError(
                f"X has {features} features, but {type(self).__name__} is expecting "
                f"{self._features} features as input, in each step"
            )
        return data

    def _weights(self, sample_weight: Any, n: int) -> Array:
        """What each row counts, (n,)."""
        if sample_weight is None:
            return np.ones(n)
        weights = np.asarray(sample_weight, np.float64)
        if weights.shape != (n,):
            raise ValueError(f"sample_weight: expected shape ({n},), got {weights.shape}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("sample_weight: expected finite weights of at least 0, got others")
        if not weights.any():
            raise ValueError("sample_weight: expected a weight above 0, got zero weights alone")
        return weights

    # ----------------------------------------------------------------------- what a class defines

    def _task(
        self, y: Any, data: Sequences, weights: Array, *, fresh: bool, classes: Any, part: bool
    ) -> tuple[Sequences, Task]:
        """Check the targets; return the sequences to train on, of weights above 0, and the task."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------- training

    def _fit(
        self,
        X: Any,
        y: Any,
        lengths: Any,
        sample_weight: Any,
        *,
        part: bool = False,
        classes: Any = None,
    ) -> Any:
        """Train; if `part`, for one epoch. `part` and `warm_start` continue earlier training."""
        options = self._checked()
        fresh = not (hasattr(self, "_run") and (part or options["warm_start"]))
        if not fresh:
            self._check_unchanged()
        before = dict(vars(self))
        try:
            data = self._read(X, lengths, reset=fresh)
            weights = self._weights(sample_weight, len(data.lengths))
            data, task = self._task(y, data, weights, fresh=fresh, classes=classes, part=part)
            if fresh:
                self._begin(data, task, options)
            if part:
                options |= {"max_epochs": 1, "progress": None}
            self._train(data, task, options, stop=options["early_stopping"] and not part)
        except Exception:  # what was fitted before goes on to predict; Ctrl-C keeps what is trained
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _checked(self) -> dict[str, Any]:
        """The parameters that training reads, checked."""
        layer = LAYERS[choice("cell", self.cell, tuple(LAYERS))]
        optimizer = OPTIMIZERS[choice("optimizer", self.optimizer, tuple(OPTIMIZERS))]
        for name, cls, own in (
            ("cell_options", layer, OWN_OPTIONS),
            ("optimizer_options", optimizer, OWN_OPTIONS_OF_OPTIMIZER),
        ):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Mapping):
                got = type(given).__name__
                raise TypeError(f"{name}: expected a dict of options or None, got {got}")
            takes = [n for n in inspect.signature(cls).parameters if n not in own]
            for option in given or ():
                if option not in takes:
                    expected = f"options of {cls.__name__}: {', '.join(takes)}"
                    raise ValueError(f"{name}: expected {expected}; got {option!r}")
        if self.progress is not None and not callable(self.progress):
            got = type(self.progress).__name__
            raise TypeError(f"progress: expected a callable, such as tqdm, or None, got {got}")
        most, above = float(np.finfo(np.float32).max), "a number > 0"
        fraction = "a number above 0 and below 1"
        return {
            "hidden_size": size("hidden_size", self.hidden_size),
            "num_layers": size("num_layers", self.num_layers),
            "bidirectional": flag("bidirectional", self.bidirectional),
            "dropout": probability("dropout", self.dropout),
            "learning_rate": number(
                "learning_rate", self.learning_rate, above, lambda x: 0 < x <= most
            ),
            "max_norm": None
            if self.max_norm is None
            else number("max_norm", self.max_norm, above, lambda x: x > 0, "a number or None"),
            "batch_size": size("batch_size", self.batch_size),
            "max_epochs": size("max_epochs", self.max_epochs),
            "early_stopping": flag("early_stopping", self.early_stopping),
            "validation_fraction": number(
                "validation_fraction", self.validation_fraction, fraction, lambda x: 0 < x < 1
            ),
            "n_iter_no_change": size("n_iter_no_change", self.n_iter_no_change),
            "tol": number("tol", self.tol, "a number >= 0", lambda x: x >= 0),
            "standardize": flag("standardize", self.standardize),
            "warm_start": flag("warm_start", self.warm_start),
            "dtype": float_dtype(self.dtype),
            "verbose": self.verbose
            if isinstance(self.verbose, bool)
            else bool(integer("verbose", self.verbose, "an integer >= 0", 0, 2**31)),
            "progress": self.progress,
        }

    def _check_unchanged(self) -> None:
        """Refuse to go on with a network that other parameters made."""
        for name, was in self._run.made_with.items():
            if getattr(self, name) != was:
                expected = f"{was!r}, as at the first fit, to go on with its network"
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _begin(self, data: Sequences, task: Task, options: Mapping[str, Any]) -> None:
        """Make a network, and compute the means and deviations of inputs and targets."""
        random = check_random_state(self.random_state)
        seeds = np.random.SeedSequence(int(random.randint(2**31 - 1))).spawn(2)
        features = data.steps.shape[1]
        mean, scale = np.zeros(features), np.ones(features)
        target_mean, target_scale = np.zeros(task.outputs), np.ones(task.outputs)
        if options["standardize"]:
            of_steps = np.repeat(task.weights_of_rows, data.lengths)
            mean, scale = _moments(data.steps, of_steps)
            if not self._labels:
                own = of_steps if self._each_step else task.weights_of_rows
                target_mean, target_scale = _moments(task.targets, own)
        dtype, of_layer = options["dtype"], ("hidden_size", "num_layers", "bidirectional")
        given = {name: options[name] for name in (*of_layer, "dropout")}
        network = Network(
            self.cell,
            features,
            task.outputs,
            given | dict(self.cell_options or {}),
            dtype,
            seeds[0],
        )
        optimizer = OPTIMIZERS[self.optimizer](
            network.parts, options["learning_rate"], **dict(self.optimizer_options or {})
        )
        self._run = Run(
            network,
            optimizer,
            np.random.default_rng(seeds[1]),
            mean,
            scale,
            target_mean,
            target_scale,
            {name: _kept(getattr(self, name)) for name in OF_NETWORK},
        )
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_curve_: list[float] = []

    def _standardized(self, steps: Array) -> Array:
        run = self._run
        return cast_to("X", (steps - run.mean) / run.scale, run.network.layer.dtype)

    def _train(
        self,
        data: Sequences,
        task: Task,
        options: Mapping[str, Any],
        *,
        stop: bool,
    ) -> None:
        run, dtype = self._run, options["dtype"]
        network = run.network
        run.optimizer.lr = options["learning_rate"]
        network.layer.dropout = options["dropout"]
        if not self._labels:
            targets = (task.targets - run.mean_of_targets) / run.scale_of_targets
            task = task._replace(targets=cast_to("y", targets, dtype))
        inputs = self._standardized(data.steps)
        rows, held_out = np.arange(len(data.lengths)), None
        if stop:
            part = options["validation_fraction"]
            try:
                rows, held_out = train_test_split(
                    rows,
                    test_size=part,
                    stratify=task.strata,
                    random_state=int(run.generator.integers(2**31)),
                )
            except ValueError as error:
                expected = f"expected sequences of which {part} can be held out"
                text = f"early_stopping: {expected}, got {len(rows)} ({error})"
                raise ValueError(text) from error
        weights = task.weights[self._items(data, rows)]
        task = task._replace(weights=(task.weights / weights.mean()).astype(dtype))
        best, best_loss, waited, skipped = None, np.inf, 0, run.optimizer.skipped
        started = time.perf_counter()
        epochs = options["max_epochs"]
        for epoch in (options["progress"] or iter)(range(epochs)):
            order = rows[run.generator.permutation(len(rows))]
            total = 0.0
            for batch in _batches(order, options["batch_size"]):
                loss, grads = self._gradients(data, inputs, task, batch)
                run.optimizer.step(grads, max_norm=options["max_norm"])
                total += loss
            self.loss_curve_.append(total / len(weights))
            self.n_iter_ += 1
            text = f"epoch {epoch + 1}/{epochs}: loss {self.loss_curve_[-1]:.5g}"
            if held_out is not None:
                loss = self._loss(data, inputs, task, held_out)
                self.validation_curve_.append(loss)
                text += f", validation {loss:.5g}"
                waited += 1
                if loss < best_loss - options["tol"]:
                    waited = 0
                if loss < best_loss or best is None:
                    best, best_loss = _copies(network), loss
            if options["verbose"]:
                print(f"[{type(self).__name__}] {text}, {time.perf_counter() - started:.1f} s")
            if waited >= options["n_iter_no_change"]:
                break
        if best is not None:
            for name, part in network.parts.items():
                for parameter, values in best[name].items():
                    part.params[parameter][...] = values
        if run.optimizer.skipped > skipped:
            left_out = run.optimizer.skipped - skipped
            text = f"{left_out} steps were left out: their gradients or results were not finite"
            warnings.warn(text, ConvergenceWarning, stacklevel=4)

    def _items(self, data: Sequences, rows: Array) -> Array:
        """Where the targets of some rows are."""
        if not self._each_step:
            return rows
        index, real = data.places(rows)
        found: Array = index.T[real.T]
        return found

    def _gradients(
        self, data: Sequences, inputs: Array, task: Task, rows: Array
    ) -> tuple[float, dict[str, Any]]:
        """The summed loss of a batch of rows, and the gradients of its mean."""
        index, real = data.places(rows)
        where = index if self._each_step else rows
        weights, items = task.weights[where], len(rows)
        if self._each_step:
            weights, items = np.where(real, weights, 0), int(real.sum())
        kind = labels_loss if self._labels else values_loss
        loss = partial(kind, targets=task.targets[where], weights=weights, items=items)
        lengths, each_step = data.lengths[rows], self._each_step
        return self._run.network.gradients(inputs[index], lengths, loss, each_step=each_step)

    def _loss(self, data: Sequences, inputs: Array, task: Task, rows: Array) -> float:
        """The mean loss of some rows, by their weights."""
        z, dtype = self._outputs(data, inputs, rows), self._run.network.layer.dtype
        where = self._items(data, rows)
        weights, targets = task.weights[where], task.targets[where]
        loss = labels_loss if self._labels else values_loss
        total, _ = loss(z.astype(dtype), targets, weights, 1)
        return float(total / max(weights.sum(dtype=np.float64), np.finfo(dtype).tiny))

    # ----------------------------------------------------------------------------------- outputs

    def _outputs(self, data: Sequences, inputs: Array, rows: Array | None = None) -> Array:
        """The network's outputs, float64: (n, O) of the rows, or (N, O) of their steps."""
        network = self._run.network
        parts = []
        for own in self._shares(data, rows):
            index, real = data.places(own)
            x, lengths = inputs[index], data.lengths[own]
            each = self._each_step
            parts.append(network.each(x, lengths, real) if each else network.last(x, lengths)[0])
        return np.concatenate(parts)

    def _shares(self, data: Sequences, rows: Array | None = None) -> Iterator[Array]:
        """Some rows, or all, in parts whose outputs are computed in one call."""
        rows = np.arange(len(data.lengths)) if rows is None else rows
        return _batches(rows, max(1, STEPS_AT_A_TIME // int(data.lengths.max())))

    def _in_units(self, z: Array) -> Array:
        """Outputs as the targets are."""
        values: Array = self._run.mean_of_targets + self._run.scale_of_targets * z
        return values

    def _predicted(self, X: Any, lengths: Any) -> tuple[Sequences, Array]:
        """Sequences of an argument, and the network's outputs for them."""
        check_is_fitted(self)
        data = self._read(X, lengths)
        return data, self._outputs(data, self._standardized(data.steps))


def _moments(values: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of columns, 1 where a column is constant."""
    # Of powers of two, which round nothing, so that no square overflows or vanishes.
    unit = np.ldexp(1.0, np.frexp(np.abs(values).max(axis=0))[1] - 1)
    scaled = values / unit
    mean = np.average(scaled, axis=0, weights=weights)
    deviation = np.sqrt(np.average((scaled - mean) ** 2, axis=0, weights=weights))
    # That of a constant is the rounding of its mean.
    constant = deviation <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean * unit, np.where(constant, 1.0, deviation * unit)


def _kept(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _batches(rows: Array, count: int) -> Iterator[Array]:
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


def _copies(network: Network) -> dict[str, dict[str, Array]]:
    return {
        name: {n: values.copy() for n, values in part.params.items()}
        for name, part in network.parts.items()
    }
