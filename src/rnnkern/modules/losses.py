"""Losses, each with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checks import integer, number, unmasked, viewed

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "gaussian_nll",
    "huber",
    "mean_squared_error",
    "quantile",
]

Array = NDArray[Any]
Reduction = Literal["mean", "sum", "none"]

REDUCTIONS = ("mean", "sum", "none")
INT64 = np.iinfo(np.int64)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Softmax cross-entropy and its gradient, in one go [1]_.

    A row's loss is ``ln sum_j exp(z_j) - z_target``, in nats; its gradient ``softmax(z)``, less 1
    at the target. With soft targets q (of an integer: 1 at one class, 0 elsewhere), label smoothing
    s and class weights w it is ``-sum_j a_j ln softmax(z)_j``, where
    ``a_j = w_j ((1 - s) q_j + s / V)`` [2]_.

    Parameters
    ----------
    logits : ndarray, shape (..., V)
        z, float32 or float64, of any size: nothing overflows. A logit of -inf is a class that is
        ruled out. A nan makes its row's loss and gradient nan.
    targets : ndarray of integers, shape (...), or of the logits' dtype, shape (..., V)
        The right classes, from 0 to V - 1; or each class's probability, which is not checked. Where
        it is 0, and `label_smoothing` is, too, the logit may be -inf.
    mask : ndarray of booleans or of weights, shape (...), optional
        What each row counts, from 0 to 3.4e38 (float32's largest number, so that sums of weights
        stay finite); 1 if not given. Where it is 0 or False, neither logits nor target are read,
        and the gradient is zero.
    ignore_index : int, optional
        A target that says that the row does not count, as if masked. Not with soft targets.
    label_smoothing : float
        s, from 0 to 1: this share of each row's target is spread evenly over all classes.
    class_weights : ndarray of numbers, shape (V,), optional
        w, from 0 to 3.4e38; 1 if not given. Without label smoothing, rows whose class has a weight
        of 0 are not read.
    reduction : {"mean", "sum", "none"}
        Of the rows' losses times their weights: the sum over the sum of the weights, the sum, or
        one loss a row. If no row counts, the mean is 0. As in PyTorch, a mean over rows with
        integers as targets also weighs each row by its class's weight in what it divides by; with
        soft targets it does not.
    out : ndarray, shape (..., V), optional
        Where to put the gradient: C-contiguous and writable; `logits` itself, or memory of its own.
        With it, nothing of the size of the logits is allocated.

    Returns
    -------
    loss : float, or ndarray of float64, shape (...), for ``reduction="none"``
        The loss.
    dlogits : ndarray, shape (..., V)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, and a target's place.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md). A
    call that Ctrl-C ends leaves `out` half written.

    References
    ----------
    .. [1] C. Bishop, "Pattern recognition and machine learning", 2006, eqs. 4.108 and 4.109.
    .. [2] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR
       2016, section 7.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, dlogits = rk.cross_entropy(np.array([[0.0, 0.0], [0.0, 40.0]]), np.array([0, 1]))
    >>> round(loss, 4), dlogits.round(4)
    (0.3466, array([[-0.25,  0.25],
           [ 0.  ,  0.  ]]))
    """
    _check_reduction(reduction)
    if ignore_index is not None:
        expected = "an integer of 64 bits"
        ignore_index = integer("ignore_index", ignore_index, expected, INT64.min, INT64.max)
    smoothing = number(
        "label_smoothing", label_smoothing, "a number from 0 to 1", lambda x: 0 <= x <= 1
    )
    found, soft = viewed("logits", logits), viewed("targets", targets)
    loss, losses, dlogits = _core.cross_entropy(
        logits if found is None else found,  # which is refused
        targets if soft is None else soft,
        unmasked("mask", mask),
        ignore_index,
        smoothing,
        unmasked("class_weights", class_weights),
        reduction == "mean",
        _written(out),
    )
    return losses if reduction == "none" else loss, dlogits


def _written(out: Any) -> Any:
    """`out`, of a tensor the array that shares its memory."""
    found = None if out is None else viewed("out", out)
    return out if found is None else found


def _check_reduction(reduction: Any) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def _pointwise(
    kind: str,
    name: str,
    outputs: Any,
    targets: Any,
    parameters: Any,
    mask: Any,
    reduction: Any,
    out: Any,
) -> tuple[Any, Array]:
    """A loss of elements; `name` is that of the first argument."""
    _check_reduction(reduction)
    found, own = viewed(name, outputs), viewed("targets", targets)
    loss, losses, gradient = _core.pointwise_loss(
        kind,
        outputs if found is None else found,  # which is refused
        targets if own is None else own,
        parameters,
        unmasked("mask", mask),
        reduction == "mean",
        reduction == "none",
        _written(out),
    )
    return loss if losses is None else losses, gradient


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    pos_weight: float | Array | None = None,
    mask: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Cross-entropy of independent yes-or-no labels and its gradient, in one go [1]_.

    An element's loss is ``t w ln(1 + exp(-z)) + (1 - t) ln(1 + exp(z))``, in nats; its gradient
    without weights ``sigmoid(z) - t``.

    Parameters
    ----------
    logits : ndarray, shape (..., K)
        z, of any size: nothing overflows, float32 or float64.
    targets : ndarray, shape (..., K)
        t, of the logits' dtype or booleans; probabilities, which is not checked.
    pos_weight : float, or ndarray of numbers, shape (K,), optional
        w, from 0 to 3.4e38: what a positive of each label counts beside a negative; 1 if not given.
        A mean does not divide by it, as in PyTorch.
    mask : ndarray of booleans or of weights, shape (...) or (..., K), optional
        What each row, or each element, counts, from 0 to 3.4e38; 1 if not given. Where it is 0 or
        False, outputs and targets are not read, and the gradient is zero.
    reduction : {"mean", "sum", "none"}
        Of the elements' losses times their weights: the sum over the sum of the weights, the sum,
        or one loss an element. If no element counts, the mean is 0.
    out : ndarray, shape (..., K), optional
        Where to put the gradient: C-contiguous and writable; `logits` itself, or memory of its
        own.

    Returns
    -------
    loss : float, or ndarray of float64, shape (..., K), for ``reduction="none"``
        The loss.
    dlogits : ndarray, shape (..., K)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md).

    References
    ----------
    .. [1] C. Bishop, "Pattern recognition and machine learning", 2006, eqs. 4.90 and 4.91.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, dlogits = rk.binary_cross_entropy(np.zeros((1, 2)), np.array([[True, False]]))
    >>> round(loss, 4), dlogits.tolist()
    (0.6931, [[-0.25, 0.25]])
    """
    found = viewed("logits", logits)
    if pos_weight is None or np.ndim(pos_weight) == 0:
        labels = 1 if found is None or found.ndim == 0 else found.shape[-1]
        expected = "a number from 0 to 3.4e38"
        weight = number("pos_weight", 1.0 if pos_weight is None else pos_weight, expected, _fits)
        pos_weight = np.full(labels, weight)
    parameters = unmasked("pos_weight", pos_weight)
    return _pointwise(
        *("binary_cross_entropy", "logits", logits, targets, parameters, mask, reduction, out)
    )


def _fits(weight: float) -> bool:
    return 0 <= weight <= float(np.finfo(np.float32).max)


def mean_squared_error(
    outputs: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Squared error and its gradient, in one go [1]_.

    An element's loss is ``(y - t)^2``, its gradient ``2 (y - t)``.

    Parameters
    ----------
    outputs : ndarray, shape (..., K)
        y, float32 or float64.
    targets : ndarray, shape (..., K)
        t, of the outputs' dtype.
    mask : ndarray of booleans or of weights, shape (...) or (..., K), optional
        What each row, or each element, counts, from 0 to 3.4e38; 1 if not given. Where it is 0 or
        False, outputs and targets are not read, and the gradient is zero.
    reduction : {"mean", "sum", "none"}
        Of the elements' losses times their weights: the sum over the sum of the weights, the sum,
        or one loss an element. If no element counts, the mean is 0.
    out : ndarray, shape (..., K), optional
        Where to put the gradient: C-contiguous and writable; `outputs` itself, or memory of its
        own.

    Returns
    -------
    loss : float, or ndarray of float64, shape (..., K), for ``reduction="none"``
        The loss.
    doutputs : ndarray, shape (..., K)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md).

    References
    ----------
    .. [1] C. Bishop, "Pattern recognition and machine learning", 2006, eq. 5.14 (without its half).

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, doutputs = rk.mean_squared_error(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    >>> loss, doutputs.tolist()
    (2.0, [[0.0, 2.0]])
    """
    return _pointwise(
        *("mean_squared_error", "outputs", outputs, targets, None, mask, reduction, out)
    )


def huber(
    outputs: Array,
    targets: Array,
    *,
    delta: float = 1.0,
    mask: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Huber's loss and its gradient, in one go [1]_.

    An element's loss is ``(y - t)^2 / 2`` where ``|y - t|`` is at most delta, and
    ``delta (|y - t| - delta / 2)`` beyond; its gradient is ``y - t``, limited to delta.

    Parameters
    ----------
    outputs : ndarray, shape (..., K)
        y, float32 or float64.
    targets : ndarray, shape (..., K)
        t, of the outputs' dtype.
    delta : float
        Where the loss becomes linear, above 0, at most 3.4e38.
    mask : ndarray of booleans or of weights, shape (...) or (..., K), optional
        What each row, or each element, counts, from 0 to 3.4e38; 1 if not given. Where it is 0 or
        False, outputs and targets are not read, and the gradient is zero.
    reduction : {"mean", "sum", "none"}
        Of the elements' losses times their weights: the sum over the sum of the weights, the sum,
        or one loss an element. If no element counts, the mean is 0.
    out : ndarray, shape (..., K), optional
        Where to put the gradient: C-contiguous and writable; `outputs` itself, or memory of its
        own.

    Returns
    -------
    loss : float, or ndarray of float64, shape (..., K), for ``reduction="none"``
        The loss.
    doutputs : ndarray, shape (..., K)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md).

    References
    ----------
    .. [1] P. Huber, "Robust estimation of a location parameter", 1964, Ann. Math. Statist. 35.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, doutputs = rk.huber(np.array([[1.5, 3.0]]), np.array([[1.0, 1.0]]), reduction="sum")
    >>> loss, doutputs.tolist()
    (1.625, [[0.5, 1.0]])
    """
    expected = "a number above 0, at most 3.4e38"
    delta = number("delta", delta, expected, lambda x: x > 0 and _fits(x))
    parameters = np.array([delta])
    return _pointwise(*("huber", "outputs", outputs, targets, parameters, mask, reduction, out))


def quantile(
    outputs: Array,
    targets: Array,
    quantiles: Sequence[float] | Array,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Pinball loss of several quantiles at once and its gradient, in one go [1]_.

    Of quantile q, ``q (t - y)`` where y is below the target and ``(1 - q) (y - t)`` where it is
    above; the gradient is ``-q``, ``1 - q`` and, at the target itself, 0.

    Parameters
    ----------
    outputs : ndarray, shape (..., Q)
        y, one for each quantile, float32 or float64.
    targets : ndarray, shape (...)
        t, of the outputs' dtype.
    quantiles : sequence of float or ndarray, shape (Q,)
        q, between 0 and 1.
    mask : ndarray of booleans or of weights, shape (...) or (..., Q), optional
        What each row, or each element, counts, from 0 to 3.4e38; 1 if not given. Where it is 0 or
        False, outputs and targets are not read, and the gradient is zero.
    reduction : {"mean", "sum", "none"}
        Of the elements' losses times their weights: the sum over the sum of the weights, the sum,
        or one loss an element. If no element counts, the mean is 0.
    out : ndarray, shape (..., Q), optional
        Where to put the gradient: C-contiguous and writable; `outputs` itself, or memory of its
        own.

    Returns
    -------
    loss : float, or ndarray of float64, shape (..., Q), for ``reduction="none"``
        The loss.
    doutputs : ndarray, shape (..., Q)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md).

    References
    ----------
    .. [1] R. Koenker, G. Bassett, "Regression quantiles", 1978, Econometrica 46.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> outputs, targets = np.array([[1.0, 2.0, 4.0]]), np.array([2.0])
    >>> loss, doutputs = rk.quantile(outputs, targets, [0.25, 0.5, 0.75], reduction="sum")
    >>> loss, doutputs.tolist()
    (0.75, [[-0.25, 0.0, 0.25]])
    """
    given = np.array(unmasked("quantiles", quantiles))
    if given.dtype.kind not in "fiu" or given.ndim != 1:
        got = f"{given.dtype} of shape {given.shape}"
        raise TypeError(f"quantiles: expected a sequence of numbers, got {got}")
    for i, q in enumerate(given.tolist()):
        if not 0 < q < 1:
            raise ValueError(f"quantiles[{i}]: expected a number between 0 and 1, got {q}")
    return _pointwise(*("quantile", "outputs", outputs, targets, given, mask, reduction, out))


def gaussian_nll(
    outputs: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Negative log likelihood of normal distributions and its gradient, in one go [1]_.

    A network's raw outputs are the means m and, behind them, the logarithms s of the variances. An
    element's loss is ``(s + (t - m)^2 exp(-s) + ln(2 pi)) / 2``, in nats; its gradients are
    ``(m - t) exp(-s)`` and ``(1 - (t - m)^2 exp(-s)) / 2``.

    Parameters
    ----------
    outputs : ndarray, shape (..., 2 K)
        K means and K logarithms of variances, float32 or float64.
    targets : ndarray, shape (..., K)
        t, of the outputs' dtype.
    mask : ndarray of booleans or of weights, shape (...) or (..., K), optional
        What each row, or each element, counts, from 0 to 3.4e38; 1 if not given. Where it is 0 or
        False, outputs and targets are not read, and the gradient is zero.
    reduction : {"mean", "sum", "none"}
        Of the elements' losses times their weights: the sum over the sum of the weights, the sum,
        or one loss an element. If no element counts, the mean is 0.
    out : ndarray, shape (..., 2 K), optional
        Where to put the gradient: C-contiguous and writable; `outputs` itself, or memory of its
        own.

    Returns
    -------
    loss : float, or ndarray of float64, shape (..., K), for ``reduction="none"``
        The loss.
    doutputs : ndarray, shape (..., 2 K)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md). The
    logarithm of the variance is the safest of the usual choices: any real number is allowed, no
    epsilon hides small variances, nothing is divided by, and its gradient grows as the squared
    error over the variance; that of a variance, such as ``softplus(s)``, grows as its square.
    Logarithms beyond 174 (float32; float64: 1416) of either sign count as these in the exponential.

    References
    ----------
    .. [1] D. Nix, A. Weigend, "Estimating the mean and variance of the target probability
       distribution", ICNN 1994, eqs. 2 to 5.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, doutputs = rk.gaussian_nll(np.array([[1.0, 0.0]]), np.array([[3.0]]))
    >>> round(loss, 4), doutputs.tolist()
    (2.9189, [[-2.0, -1.5]])
    """
    return _pointwise(*("gaussian_nll", "outputs", outputs, targets, None, mask, reduction, out))
