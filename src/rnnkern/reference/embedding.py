"""The look-up in a table, its gradient, and steps on some rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .types import Array


def embedding(x: npt.ArrayLike, weight: npt.ArrayLike) -> Array:
    """Return ``W[x]``.

    Parameters
    ----------
    x : array of integers, (...)
        0 to N - 1.
    weight : array, (N, E)
        W.

    Returns
    -------
    array, (..., E)
        y.

    Examples
    --------
    >>> embedding([1, 0, 1], [[1.0, 2.0], [3.0, 4.0]]).tolist()
    [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    """
    y: Array = np.asarray(weight, np.float64)[np.asarray(x)]
    return y


def embedding_gradient(
    x: npt.ArrayLike, dy: npt.ArrayLike, padding_idx: int | None = None
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the gradient of the table as rows; all others are zero.

    Parameters
    ----------
    x : array of integers, (...)
        What was looked up.
    dy : array, (..., E)
        dL/dy.
    padding_idx : int, optional
        A row without gradient.

    Returns
    -------
    ids : array of integers, (n,)
        The rows that x names, each once, in rising order, without `padding_idx`.
    values : array, (n, E)
        For each of them the sum of dy where x names it.

    Examples
    --------
    >>> ids, values = embedding_gradient([3, 0, 3], [[1.0], [2.0], [4.0]])
    >>> ids.tolist(), values.tolist()
    ([0, 3], [[2.0], [5.0]])
    """
    of, rows = np.asarray(x).reshape(-1), np.asarray(dy, np.float64)
    rows = rows.reshape(len(of), rows.shape[-1])
    ids = np.array(sorted({int(i) for i in of} - {padding_idx}), np.int64)
    return ids, np.array([rows[of == i].sum(axis=0) for i in ids]).reshape(-1, rows.shape[-1])


def on_rows(
    rule: Callable[..., tuple[Array, ...]],
    ids: npt.NDArray[np.int64],
    values: Array,
    *arrays: Array,
    **options: Any,
) -> tuple[Array, ...]:
    """Return a parameter and its moments after a step that updates some rows and leaves the others.

    Parameters
    ----------
    rule : callable
        `sgd`, `rmsprop`, or another one with its further arguments bound.
    ids : array of integers, (n,)
        The rows that have a gradient.
    values : array, (n, E)
        Their gradients (see `penalized`, of these rows of p).
    *arrays : array, (N, E) each
        The parameter and its moments, as `rule` takes them after the gradient.
    **options
        Of `rule`.

    Returns
    -------
    tuple of array
        The new ones.

    Examples
    --------
    >>> from rnnkern.reference import sgd
    >>> ids, values = np.array([1]), np.ones((1, 2))
    >>> p, v = on_rows(sgd, ids, values, np.ones((3, 2)), np.zeros((3, 2)), lr=0.5)
    >>> p.tolist()
    [[1.0, 1.0], [0.5, 0.5], [1.0, 1.0]]
    """
    parameter, *moments = (array.copy() for array in arrays)
    new = rule(parameter[ids], values, *(moment[ids] for moment in moments), **options)
    for array, rows in zip((parameter, *moments), new, strict=True):
        array[ids] = rows
    return parameter, *moments
