"""Pooling over the real steps of sequences, and its gradient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array


def pool(
    kind: str,
    x: npt.ArrayLike,
    dy: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Return one vector for each sequence of x (T, B, C), and dL/dx.

    Parameters
    ----------
    kind : str
        "mean" of the real steps; "max", the first of equal ones; "last" real step; "ends": the
        first half of the channels at the last real step, the other half at the first.
    x : array, (T, B, C)
        The sequences.
    dy : array, (B, C), optional
        dL/dy; ones if not given.
    mask : booleans, (T, B), optional
        Which steps are real; all if not given. The others are not looked at.

    Returns
    -------
    y : array, (B, C)
        Zeros where no step is real.
    dx : array, (T, B, C)
        Zeros at steps that are not real.

    Examples
    --------
    >>> y, dx = pool("max", [[[1.0, 5.0]], [[3.0, 2.0]]])
    >>> y.tolist(), dx.tolist()
    ([[3.0, 5.0]], [[[0.0, 1.0]], [[1.0, 0.0]]])
    """
    values = np.asarray(x, np.float64)
    T, B, C = values.shape
    d = np.ones((B, C)) if dy is None else np.asarray(dy, np.float64)
    real = np.ones((T, B), bool) if mask is None else np.asarray(mask, bool)
    y, dx = np.zeros((B, C)), np.zeros((T, B, C))
    for b in range(B):
        steps = np.flatnonzero(real[:, b])
        if not len(steps):
            continue
        own = values[steps, b]
        if kind == "mean":
            y[b] = own.mean(axis=0)
            dx[steps, b] = d[b] / len(steps)
            continue
        place = {
            "max": steps[own.argmax(axis=0)],
            "last": np.full(C, steps[-1]),
            "ends": np.where(np.arange(C) < C // 2, steps[-1], steps[0]),
        }[kind]
        y[b] = values[place, b, np.arange(C)]
        dx[place, b, np.arange(C)] = d[b]
    return y, dx
