"""The minLSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, choice, fixed
from .base import Cell, _Layer, shared
from .initialize import Init
from .min_gru import CANDIDATES, Candidate
from .results import Array

__all__ = ["MinLSTM"]


class MinLSTM(_Layer[Array]):
    """minLSTM: gates that depend on x only and add up to one; h = f h' + i v [1]_.

    With s_f = sigmoid(W_f x + b_f) and s_i = sigmoid(W_i x + b_i), f = s_f / (s_f + s_i) and
    i = s_i / (s_f + s_i); v = g(W_v x + b_v). There is no cell state and no recurrent matrix: the
    products of all time steps are computed together, as in a `MinGRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    candidate : {"positive", "identity", "tanh"}
        As in `MinGRU`.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, init, params
        As in `MinGRU`.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (3H, inputs) and ``bias_ih_l{k}{_reverse}`` (3H,), rows f, i,
        then v. Writable; the next call uses the new values.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] L. Feng, F. Tung, M. Ahmed, Y. Bengio and H. Hajimirsadeghi, "Were RNNs all we needed?",
       2024, arXiv:2410.01201.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> y, h = rk.MinLSTM(3, 5, num_layers=2, seed=0)(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (2, 2, 5))
    """

    candidate: Final[str] = fixed("candidate", "The name of g.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        candidate: Candidate = "positive",
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
        given = locals()
        candidate = choice("candidate", candidate, CANDIDATES)
        kind = "min_lstm" if candidate == "positive" else f"min_lstm_{candidate}"
        super().__init__(Cell(kind), **shared(given))
        self._candidate = candidate
