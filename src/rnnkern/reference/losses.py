"""The losses and their gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array


def cross_entropy(
    logits: npt.ArrayLike, targets: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Array, Array, float]:
    """Return each row's softmax cross-entropy, its gradient, and what a mean divides by.

    Bishop 2006, Pattern recognition and machine learning, eqs. 4.108 and 4.109.

    Parameters
    ----------
    logits : array, (..., V)
        z; softmax(z) are the classes' probabilities.
    targets : integers, (...)
        The right class, 0 to V - 1; anything where the weight is 0.
    weights : array, (...), optional
        What each row counts; 1 if not given. A row of weight 0 is not looked at.

    Returns
    -------
    losses : array, (...)
        Weight times -ln softmax(z)[target].
    dlogits : array, (..., V)
        The gradient of the losses' sum.
    total : float
        The sum of the weights; of a mean, loss and gradient are divided by it, if it is not 0.

    Examples
    --------
    >>> losses, dlogits, total = cross_entropy([[0.0, 0.0], [np.nan, 0.0]], [1, -1], [2.0, 0.0])
    >>> losses.round(4), dlogits[0].tolist(), total
    (array([1.3863, 0.    ]), [1.0, -1.0], 2.0)
    """
    weight = np.ones(np.shape(targets)) if weights is None else np.asarray(weights, np.float64)
    counts = weight != 0
    z, target = np.where(counts[..., None], logits, 0.0), np.where(counts, targets, 0)
    shifted = z - z.max(axis=-1, keepdims=True)  # softmax stays as it is, and nothing overflows
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    right = np.arange(z.shape[-1]) == target[..., None]
    losses = weight * (np.log(total) - shifted)[right].reshape(target.shape)
    dlogits = weight[..., None] * (np.exp(shifted) / total - right)
    return losses, dlogits, float(weight.sum())
