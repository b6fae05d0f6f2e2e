"""The affine map and its gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array


def linear(x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Array:
    """Return ``x W^T + b``.

    Parameters
    ----------
    x : array, (N, I)
        The rows.
    weight : array, (O, I)
        W.
    bias : array, (O,), optional
        b; zero if not given.

    Returns
    -------
    array, (N, O)
        y.

    Examples
    --------
    >>> linear([[1.0, 2.0]], [[3.0, 4.0]], [5.0]).tolist()
    [[16.0]]
    """
    y: Array = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    return y if bias is None else y + np.asarray(bias, np.float64)


def linear_gradient(
    x: npt.ArrayLike, weight: npt.ArrayLike, dy: npt.ArrayLike
) -> tuple[Array, Array, Array]:
    """Return the gradients of the map: the products with the transposed operands, and a sum.

    Parameters
    ----------
    x : array, (N, I)
        The rows.
    weight : array, (O, I)
        W.
    dy : array, (N, O)
        dL/dy.

    Returns
    -------
    dx : array, (N, I)
        ``dy W``.
    dweight : array, (O, I)
        ``dy^T x``.
    dbias : array, (O,)
        The sum of dy over the rows.

    Examples
    --------
    >>> [a.tolist() for a in linear_gradient([[1.0, 2.0]], [[3.0, 4.0]], [[10.0]])]
    [[[30.0, 40.0]], [[10.0, 20.0]], [10.0]]
    """
    d_rows = np.asarray(dy, np.float64)
    dx = d_rows @ np.asarray(weight, np.float64)
    return dx, d_rows.T @ np.asarray(x, np.float64), d_rows.sum(axis=0)
