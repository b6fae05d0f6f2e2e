"""The RG-LRU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["RGLRU"]


class RGLRU(_Layer[Array]):
    """RG-LRU, the real-gated linear recurrent unit: h = a h' + sqrt(1 - a^2) (i x) [1]_.

    With r = sigmoid(W_r x + b_r) and i = sigmoid(W_i x + b_i), log a = -8 softplus(lambda) r: each
    unit forgets at its own rate, lambda, which the gate r reduces. x is added unit by unit, with a
    factor that preserves the variance of h, so I equals H. The gates depend on x only, so the
    products of all time steps are computed together, and there is no recurrent matrix.

    Where `resets` starts another sequence, a is 0 and the factor of x is 1, as in the authors'
    code. This does not apply to the first step, which starts from the given state or zeros.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, which are equal.
    num_layers : int
        As in `RNN`.
    bidirectional : bool
        As in `RNN`. With one layer only, because the outputs of two directions would be 2H inputs
        of the next layer.
    bias, batch_first, dropout, reverse, residual, ensemble, dtype, compute, seed, params
        As in `RNN`.
    init : {"uniform", "xavier", "identity", "zeros"}
        As in `MinGRU`. But with each except ``zeros``, lambda starts as in the paper's section 2.4:
        where r is 1, a is uniform over [0.9, 0.999).

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (2H, H) and ``bias_ih_l{k}{_reverse}`` (2H,), rows r then i,
        and ``lambda_l{k}{_reverse}`` (H,). Writable; the next call uses the new values.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] S. De et al., "Griffin: mixing gated linear recurrences with local attention for
       efficient language models", 2024, arXiv:2402.19427, section 2.4.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lru = rk.RGLRU(5, 5, num_layers=2, seed=0)
    >>> y, h = lru(np.ones((7, 2, 5), np.float32))
    >>> y.shape, lru.params["lambda_l0"].shape
    ((7, 2, 5), (5,))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        residual: bool = False,
        ensemble: int | None = None,
        dtype: DTypeLike = np.float32,
        compute: Compute = None,
        seed: Seed = None,
        init: Init = "uniform",
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(Cell("rg_lru"), **shared(locals()))
