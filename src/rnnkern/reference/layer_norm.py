"""Layer norm over the last axis, and its gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array


def layer_norm(
    x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, eps: float = 1e-5
) -> Array:
    """Return w (x - mean) / sqrt(variance + eps) + b, of the last axis.

    Ba, Kiros & Hinton 2016, Layer normalization, arXiv:1607.06450, eqs. 3 and 4.

    Parameters
    ----------
    x : array, (..., C)
        The input.
    weight : array, (C,)
        w.
    bias : array, (C,), optional
        b; zeros if not given.
    eps : float
        Beside the variance.

    Returns
    -------
    array, (..., C)
        y.

    Examples
    --------
    >>> layer_norm([[1.0, 3.0]], [1.0, 2.0], eps=0.0).tolist()
    [[-1.0, 2.0]]
    """
    n, _ = _normalized(np.asarray(x, np.float64), eps)
    y = n * np.asarray(weight, np.float64)
    return y if bias is None else y + np.asarray(bias, np.float64)


def layer_norm_gradient(
    x: npt.ArrayLike, weight: npt.ArrayLike, dy: npt.ArrayLike, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Return dL/dx, dL/dw and dL/db, the latter summed over all rows.

    Parameters
    ----------
    x, dy : array, (..., C)
        The input, and the gradient of the output.
    weight : array, (C,)
        w.
    eps : float
        What is added to the variance.

    Returns
    -------
    dx : array, (..., C)
    dweight, dbias : array, (C,)

    Examples
    --------
    >>> dx, dw, db = layer_norm_gradient([[1.0, 3.0]], [1.0, 1.0], [[1.0, 1.0]], eps=0.0)
    >>> dx.tolist(), dw.tolist(), db.tolist()
    ([[0.0, 0.0]], [-1.0, 1.0], [1.0, 1.0])
    """
    n, std = _normalized(np.asarray(x, np.float64), eps)
    d = np.asarray(dy, np.float64)
    dn = d * np.asarray(weight, np.float64)
    means = [np.mean(a, axis=-1, keepdims=True) for a in (dn, dn * n)]
    rows = tuple(range(d.ndim - 1))
    return (dn - means[0] - n * means[1]) / std, (d * n).sum(axis=rows), d.sum(axis=rows)


def _normalized(x: Array, eps: float) -> tuple[Array, Array]:
    std = np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
    return (x - np.mean(x, axis=-1, keepdims=True)) / std, std
