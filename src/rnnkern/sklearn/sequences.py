"""Sequences of different lengths, in arrays or in lists, as scikit-learn hands them over."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array

from ..checks import unmasked

__all__ = ["Sequences", "as_list", "joined", "padded", "per_step"]

Array = NDArray[Any]
FLOATS = (np.float64, np.float32)  # which check_array leaves as they are


class Sequences(NamedTuple):
    """n rows of steps, one after the other.

    Attributes
    ----------
    steps : ndarray, shape (N, I)
        The real steps of all rows.
    lengths : ndarray of int, shape (n,)
        The number of steps of each row, at least 1; their sum is N.
    T : int or None
        The steps of a row of the array that they came in; None if they came in a list.
    flat : bool
        Whether a step was a number and not a vector.
    """

    steps: Array
    lengths: Array
    T: int | None
    flat: bool

    @property
    def first(self) -> Array:
        """Where each row begins in `steps`, (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    def places(self, rows: Array) -> tuple[Array, Array]:
        """Where the steps of some rows are in `steps`, and which are real, both (T, B).

        T is that of the longest of them; behind the end of a row its last step is repeated.
        """
        lengths = self.lengths[rows]
        t = np.arange(lengths.max())[:, None]
        return self.first[rows] + np.minimum(t, lengths - 1), t < lengths

    def in_layout(self, values: Array, fill: Any) -> Array | list[Array]:
        """Values of all steps, (N, ...), as the sequences came: an array (n, T, ...), or a list."""
        if self.T is None:
            return np.split(values, self.first[1:])
        out = np.full((len(self.lengths), self.T, *values.shape[1:]), fill, values.dtype)
        out[np.arange(self.T) < self.lengths[:, None]] = values
        return out


def as_list(X: Any) -> list[Any] | None:
    """The items of a list of sequences; None of an array, and of lists that hold one of numbers."""
    if isinstance(X, np.ndarray):
        is_list = X.ndim == 1 and X.dtype == object and bool(len(X)) and _is_sequence(X[0])
        return list(X) if is_list else None
    if not isinstance(X, (list, tuple)) or not X or not all(map(_is_sequence, X)):
        return None
    rows = [item for item in X if isinstance(item, (list, tuple))]
    numbers = len(rows) == len(X) and not any(_is_sequence(one) for row in rows for one in row[:1])
    return None if numbers and len({len(row) for row in rows}) == 1 else list(X)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def joined(name: str, items: list[Any]) -> Sequences:
    """Sequences from a list of arrays (T_i, I), or (T_i,) of one feature."""
    arrays: list[Array] = []
    for i, item in enumerate(items):
        where = f"{name}[{i}]"
        array = unmasked(where, item)
        if not (isinstance(item, np.ndarray) and item.dtype.kind in "fiub"):
            shapes: dict[str, Any] = {"ensure_2d": False, "allow_nd": True}
            shapes |= {"ensure_min_samples": 0, "ensure_min_features": 0}
            array = check_array(item, dtype=FLOATS, input_name=where, **shapes)
        if array.ndim not in (1, 2):
            raise ValueError(f"{where}: expected shape (T, I) or (T,), got {array.shape}")
        if 0 in array.shape:
            raise ValueError(f"{where}: expected at least 1 step of a feature, got {array.shape}")
        if arrays and array.shape[1:] != arrays[0].shape[1:]:
            expected = ("T", *arrays[0].shape[1:])
            text = ", ".join(map(str, expected)) + "," * (len(expected) == 1)
            raise ValueError(
                f"{where}: expected shape ({text}), as of {name}[0], got {array.shape}"
            )
        arrays.append(array)
    flat = arrays[0].ndim == 1
    lengths = np.array([len(array) for array in arrays])
    steps = np.concatenate(arrays)
    steps = check_array(steps[:, None] if flat else steps, dtype=FLOATS, input_name=name)
    return Sequences(steps, lengths, None, flat)


def padded(name: str, X: Array, lengths: Any) -> Sequences:
    """Sequences from an array (n, T, I), or (n, T) of one feature, and the lengths of its rows."""
    if 0 in X.shape:
        raise ValueError(f"{name}: expected at least 1 step of a feature, got shape {X.shape}")
    n, T = X.shape[:2]
    flat = X.ndim == 2
    full = X[:, :, None] if flat else X
    if lengths is None:
        return Sequences(full.reshape(n * T, -1), np.full(n, T), T, flat)
    own = np.asarray(lengths)
    if own.dtype.kind not in "iu" or own.shape != (n,):
        expected = f"an array of {n} integers, one a row of {name},"
        raise ValueError(f"lengths: expected {expected} got {own.dtype} {own.shape}")
    if not ((own >= 1) & (own <= T)).all():
        wrong = own[(own < 1) | (own > T)][0]
        raise ValueError(f"lengths: expected integers from 1 to {T}, the steps, got {wrong}")
    own = own.astype(np.int64)
    steps = full[np.arange(T) < own[:, None]]
    return Sequences(check_array(steps, dtype=FLOATS, input_name=name), own, T, flat)


def per_step(name: str, y: Any, data: Sequences) -> Array:
    """Values for each step, (N,), from an array (n, T), padded as X is, or a list of arrays."""
    n = len(data.lengths)
    items = as_list(y)
    if items is None:
        array = np.asarray(y)
        if data.T is None and array.ndim == 2:  # all rows as long, or one is refused below
            items = list(array)
        elif data.T is None or array.shape != (n, data.T):
            shape = "a list" if data.T is None else f"shape ({n}, {data.T})"
            raise ValueError(f"{name}: expected {shape}, a value for each step, got {array.shape}")
        else:
            return array[np.arange(data.T) < data.lengths[:, None]]
    arrays = [np.asarray(item) for item in items]
    if len(arrays) != n:
        raise ValueError(f"{name}: expected {n} sequences, as many as in X, got {len(arrays)}")
    for i, (array, length) in enumerate(zip(arrays, data.lengths, strict=True)):
        if data.T is not None and array.shape == (data.T,):
            arrays[i] = array[:length]
        elif array.shape != (length,):
            expected = f"shape ({length},), a value for each step"
            raise ValueError(f"{name}[{i}]: expected {expected}, got {array.shape}")
    return np.concatenate(arrays)
