"""The IndRNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, choice, fixed
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["IndRNN"]


class IndRNN(_Layer[Array]):
    """IndRNN: h = act(W_ih x + b_ih + u h'), where a unit reads its own state only [1]_.

    u is one recurrent weight for each unit, so the recurrence is elementwise: the products of all
    time steps are computed together. Only the next layer combines units, so use several layers.
    Over n steps, a unit's gradient changes by at most u**n: with ReLU and u near 1, it neither
    vanishes nor explodes.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    nonlinearity : {"relu", "tanh"}
        The name of act.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, params
        As in `RNN`.
    init : {"uniform", "xavier", "orthogonal", "identity", "zeros"}
        As in `RNN`. But u is uniform over [0, 1), so that there are units of long and of short
        memory; all ones with ``orthogonal`` and ``identity``, zero with ``zeros``.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (H, inputs), ``weight_hh_l{k}{_reverse}`` (H,), which is u, and
        ``bias_ih_l{k}{_reverse}`` (H,). Writable; the next call uses the new values.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] S. Li, W. Li, C. Cook, C. Zhu and Y. Gao, "Independently recurrent neural network
       (IndRNN): building a longer and deeper RNN", CVPR 2018, arXiv:1803.04831.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.IndRNN(3, 5, num_layers=2, seed=0)
    >>> y, h = rnn(np.ones((7, 2, 3), np.float32))
    >>> y.shape, rnn.params["weight_hh_l0"].shape
    ((7, 2, 5), (5,))
    """

    nonlinearity: Final[str] = fixed("nonlinearity", "The name of act.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["relu", "tanh"] = "relu",
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
        nonlinearity = choice("nonlinearity", nonlinearity, ("relu", "tanh"))
        kind = f"ind_rnn_{nonlinearity}"
        super().__init__(Cell(kind), **shared(given))
        self._nonlinearity = nonlinearity
