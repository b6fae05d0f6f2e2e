"""The minGRU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, choice, fixed
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["CANDIDATES", "Candidate", "MinGRU"]

Candidate: TypeAlias = Literal["positive", "identity", "tanh"]
CANDIDATES = get_args(Candidate)


class MinGRU(_Layer[Array]):
    """minGRU: z = sigmoid(W_z x + b_z), v = g(W_v x + b_v); h = (1 - z) h' + z v [1]_.

    The gate and the candidate depend on x only, not on h'. So the products of all time steps are
    computed together, the recurrence is elementwise, and there is no recurrent matrix. It is faster
    than a `GRU`, especially with few rows.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    candidate : {"positive", "identity", "tanh"}
        g. ``positive`` is the paper's choice for its log-space form: a + 1/2 where a >= 0, and
        sigmoid(a) elsewhere, so that states that are not negative stay so. ``identity`` is the
        choice for its plain form, and ``tanh`` that of the GRU.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, params
        As in `RNN`.
    init : {"uniform", "xavier", "identity", "zeros"}
        How parameters start. ``uniform``: all from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does.
        ``xavier``: each gate's matrix from U(-b, b), b = sqrt(6 / (rows + columns)).
        ``identity``: matrices from N(0, 0.001). Biases are zero in all but uniform. ``zeros``: all
        zero, and nothing is drawn.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (2H, inputs) and ``bias_ih_l{k}{_reverse}`` (2H,), rows z then
        v. Writable; the next call uses the new values.

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
    >>> y, h = rk.MinGRU(3, 5, num_layers=2, seed=0)(np.ones((7, 2, 3), np.float32))
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
        kind = "min_gru" if candidate == "positive" else f"min_gru_{candidate}"
        super().__init__(Cell(kind), **shared(given))
        self._candidate = candidate
