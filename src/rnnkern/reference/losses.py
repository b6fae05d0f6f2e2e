"""The losses and their gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array


def cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    class_weights: npt.ArrayLike | None = None,
) -> tuple[Array, Array, float]:
    """Return each row's softmax cross-entropy, its gradient, and what a mean divides by.

    Bishop 2006, Pattern recognition and machine learning, eqs. 4.108 and 4.109; label smoothing:
    Szegedy et al. 2016, CVPR, section 7.

    Parameters
    ----------
    logits : array, (..., V)
        z; softmax(z) are the classes' probabilities.
    targets : integers, (...), or array, (..., V)
        The right class, 0 to V - 1; anything where the weight is 0. Or each class's probability q.
    weights : array, (...), optional
        What each row counts; 1 if not given. A row of weight 0 is not looked at.
    label_smoothing : float
        s.
    class_weights : array, (V,), optional
        w; 1 if not given.

    Returns
    -------
    losses : array, (...)
        Weight times -sum_j a_j ln softmax(z)_j, where a_j = w_j ((1 - s) q_j + s / V).
    dlogits : array, (..., V)
        The gradient of the losses' sum.
    total : float
        The sum of the weights, with integers as targets of the weights times the class's; of a
        mean, loss and gradient are divided by it, if it is not 0.

    Examples
    --------
    >>> losses, dlogits, total = cross_entropy([[0.0, 0.0], [np.nan, 0.0]], [1, -1], [2.0, 0.0])
    >>> losses.round(4), dlogits[0].tolist(), total
    (array([1.3863, 0.    ]), [1.0, -1.0], 2.0)
    """
    soft = np.ndim(targets) == np.ndim(logits)
    weight = np.ones(np.shape(logits)[:-1]) if weights is None else np.asarray(weights, np.float64)
    counts = weight != 0
    z = np.where(counts[..., None], logits, 0.0)
    V = z.shape[-1]
    w = np.ones(V) if class_weights is None else np.asarray(class_weights, np.float64)
    if soft:
        q, share = np.where(counts[..., None], targets, 0.0), weight
    else:
        target = np.where(counts, targets, 0)
        q, share = 1.0 * (np.arange(V) == target[..., None]), weight * w[target]
    a = w * ((1.0 - label_smoothing) * q + label_smoothing / V)
    shifted = z - z.max(axis=-1, keepdims=True)  # softmax stays as it is, and nothing overflows
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    logs = np.where(a == 0, 0.0, shifted - np.log(total))  # what does not count may be ruled out
    losses = weight * -(a * logs).sum(axis=-1)
    dlogits = weight[..., None] * (a.sum(axis=-1, keepdims=True) * np.exp(shifted) / total - a)
    return losses, dlogits, float(share.sum())


def binary_cross_entropy(
    logits: npt.ArrayLike, targets: npt.ArrayLike, pos_weight: npt.ArrayLike = 1.0
) -> tuple[Array, Array]:
    """Return each element's loss, t w ln(1 + e^-z) + (1 - t) ln(1 + e^z), and its derivative.

    Bishop 2006, Pattern recognition and machine learning, eqs. 4.90 and 4.91.

    Parameters
    ----------
    logits : array, (...)
        z; 1 / (1 + e^-z) is the probability of the label.
    targets : array, (...)
        t, 0 to 1.
    pos_weight : array, broadcast to (...)
        w, what a label that is there counts.

    Returns
    -------
    losses : array, (...)
        Of each element, in nats.
    derivatives : array, (...)
        Of each loss by its outputs.

    Examples
    --------
    >>> binary_cross_entropy([0.0], [1.0])[1].tolist()
    [-0.5]
    """
    z, t, w = (np.asarray(a, np.float64) for a in (logits, targets, pos_weight))
    small = np.exp(-np.abs(z))  # nothing overflows
    of_yes = np.maximum(-z, 0.0) + np.log1p(small)
    of_no = np.maximum(z, 0.0) + np.log1p(small)
    yes = np.where(z < 0, small, 1.0) / (1.0 + small)  # sigmoid(z)
    no = np.where(z < 0, 1.0, small) / (1.0 + small)
    return t * w * of_yes + (1.0 - t) * of_no, (1.0 - t) * yes - t * w * no


def mean_squared_error(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Array, Array]:
    """Return each element's loss, (y - t)^2, and its derivative.

    Parameters
    ----------
    outputs : array, (...)
        y.
    targets : array, (...)
        t.

    Returns
    -------
    losses : array, (...)
        Of each element.
    derivatives : array, (...)
        Of each loss by its outputs.

    Examples
    --------
    >>> mean_squared_error([3.0], [1.0])
    (array([4.]), array([4.]))
    """
    error = np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)
    return error**2, 2.0 * error


def huber(
    outputs: npt.ArrayLike, targets: npt.ArrayLike, delta: float = 1.0
) -> tuple[Array, Array]:
    """Return each element's loss, (y - t)^2 / 2 up to delta and linear beyond; its derivative.

    Huber 1964, Robust estimation of a location parameter, Ann. Math. Statist. 35.

    Parameters
    ----------
    outputs : array, (...)
        y.
    targets : array, (...)
        t.
    delta : float
        Where the loss becomes linear.

    Returns
    -------
    losses : array, (...)
        Of each element.
    derivatives : array, (...)
        Of each loss by its outputs.

    Examples
    --------
    >>> huber([3.0], [1.0])
    (array([1.5]), array([1.]))
    """
    error = np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)
    size = np.abs(error)
    losses = np.where(size <= delta, error**2 / 2, delta * (size - delta / 2))
    return losses, np.clip(error, -delta, delta)


def quantile(
    outputs: npt.ArrayLike, targets: npt.ArrayLike, quantiles: npt.ArrayLike
) -> tuple[Array, Array]:
    """Return the pinball loss of outputs (..., Q) for targets (...), and its derivative.

    Koenker & Bassett 1978, Regression quantiles, Econometrica 46. At the target itself the
    derivative is 0.

    Parameters
    ----------
    outputs : array, (..., Q)
        An estimate of each quantile.
    targets : array, (...)
        t.
    quantiles : array, (Q,)
        Between 0 and 1.

    Returns
    -------
    losses : array, (..., Q)
        Of each quantile.
    derivatives : array, (..., Q)
        Of each loss by its outputs.

    Examples
    --------
    >>> quantile([[1.0, 3.0]], [2.0], [0.25, 0.25])
    (array([[0.25, 0.75]]), array([[-0.25,  0.75]]))
    """
    q = np.asarray(quantiles, np.float64)
    error = np.asarray(targets, np.float64)[..., None] - np.asarray(outputs, np.float64)
    side = np.where(error > 0, -q, 1.0 - q) * (error != 0)
    return -side * error, side


def gaussian_nll(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Array, Array]:
    """Return -ln N(t; m, e^s) of outputs (..., 2 K), m and then s, and the derivatives.

    Nix & Weigend 1994, Estimating the mean and variance of the target probability distribution.

    Parameters
    ----------
    outputs : array, (..., 2 K)
        The means m and, behind them, the logarithms s of the variances.
    targets : array, (..., K)
        t.

    Returns
    -------
    losses : array, (..., K)
        Of each value, in nats.
    derivatives : array, (..., 2 K)
        Of each loss by its outputs.

    Examples
    --------
    >>> losses, doutputs = gaussian_nll([[1.0, 0.0]], [[3.0]])
    >>> losses.round(4), doutputs.tolist()
    (array([[2.9189]]), [[-2.0, -1.5]])
    """
    mean, log_variance = np.split(np.asarray(outputs, np.float64), 2, axis=-1)
    precision = np.exp(-log_variance)
    error = mean - np.asarray(targets, np.float64)
    losses = (log_variance + error**2 * precision + np.log(2.0 * np.pi)) / 2.0
    of_variance = (1.0 - error**2 * precision) / 2.0
    return losses, np.concatenate([error * precision, of_variance], axis=-1)
