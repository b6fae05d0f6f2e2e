"""Losses, each with its gradient."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checks import integer, unmasked, viewed

__all__ = ["cross_entropy"]

Array = NDArray[Any]

REDUCTIONS = ("mean", "sum", "none")
INT64 = np.iinfo(np.int64)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Softmax cross-entropy and its gradient, in one go [1]_.

    A row's loss is ``ln sum_j exp(z_j) - z_target``, in nats; its gradient ``softmax(z)``, less 1
    at the target.

    Parameters
    ----------
    logits : ndarray, shape (..., V)
        z, float32 or float64, of any size: nothing overflows. A logit of -inf is a class that is
        ruled out. A nan makes its row's loss and gradient nan.
    targets : ndarray of integers, shape (...)
        The right classes, from 0 to V - 1.
    mask : ndarray of booleans or of weights, shape (...), optional
        What each row counts, from 0 to 3.4e38 (float32's largest number, so that sums of weights
        stay finite); 1 if not given. Where it is 0 or False, neither logits nor target are read,
        and the gradient is zero.
    ignore_index : int, optional
        A target that says that the row does not count, as if masked.
    reduction : {"mean", "sum", "none"}
        Of the rows' losses times their weights: the sum over the sum of the weights, the sum, or
        one loss a row. If no row counts, the mean is 0.
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
        If an argument is not what it must be; the message names it, and a target's place.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md). A
    call that Ctrl-C ends leaves `out` half written.

    References
    ----------
    .. [1] C. Bishop, "Pattern recognition and machine learning", 2006, eqs. 4.108 and 4.109.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, dlogits = rk.cross_entropy(np.array([[0.0, 0.0], [0.0, 40.0]]), np.array([0, 1]))
    >>> round(loss, 4), dlogits.round(4)
    (0.3466, array([[-0.25,  0.25],
           [ 0.  ,  0.  ]]))
    """
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if ignore_index is not None:
        expected = "an integer of 64 bits"
        ignore_index = integer("ignore_index", ignore_index, expected, INT64.min, INT64.max)
    found = viewed("logits", logits)
    loss, losses, dlogits = _core.cross_entropy(
        logits if found is None else found,  # which is refused
        unmasked("targets", targets),
        unmasked("mask", mask),
        ignore_index,
        reduction == "mean",
        unmasked("out", out),
    )
    return losses if reduction == "none" else loss, dlogits
