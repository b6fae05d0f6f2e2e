"""The sLSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, fixed, flag, integer, size
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["SLSTM"]


class SLSTM(_Layer[tuple[Array, Array, Array, Array]]):
    """sLSTM: an LSTM with exponential gates, a normalizer n and heads [1]_.

    With a_i, a_f, a_z, a_o = W_ih x + b_ih + R h' and log f = log(sigmoid(a_f)), m = max(a_i,
    log f + m'), i = exp(a_i - m) and f = exp(log f + m' - m); c = f c' + i tanh(a_z),
    n = f n' + i, and h = sigmoid(a_o) c / n: the mean of all past inputs tanh(a_z), weighted by
    their gates. The order of gates is i, f, z, o. R consists of one block for each gate and
    head: the units of a head read only the h of this head, so the recurrent product takes 1/N
    of the time of an LSTM's.

    A state is the tuple (h, c, n, m). c and n are relative to exp(m), so that no gate overflows. In
    a fresh state, from which the first step, `resets` and a stream's ``reset`` start, h, c and n
    are zeros and m is -inf. Given c and n, h does not depend on m: the gradient of m is zero, and a
    gradient that is passed for m has no effect.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    heads : int
        N, a divisor of `hidden_size`.
    exp_forget : bool
        Whether the forget gate is exp(a_f) instead of sigmoid(a_f), hence log f = a_f.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, params
        As in `RNN`.
    init : {"uniform", "xavier", "orthogonal", "identity", "zeros"}
        As in `RNN`. Each block of R counts as a matrix of H/N rows.
    forget_bias : float, optional
        The initial bias of the forget gate. By default, `init` determines it; then f is about 1/2
        (with ``exp_forget``: about 1), and a state lasts for a few steps. With 3 to 6, it lasts for
        20 to 400 steps. Needs ``bias=True``.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (4H, inputs), ``weight_hh_l{k}{_reverse}`` (4H, H/N), whose row
        of unit j is for the h of the head that j is in, and ``bias_ih_l{k}{_reverse}`` (4H,).
        Writable; the next call uses the new values.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    If H/N is not a multiple of a cache line (16 float32 or 8 float64 numbers), heads that share a
    line are multiplied together, with zeros for each other's h. The result is the same, but an
    infinite or nan h of one head can make the h of its neighbours nan.

    References
    ----------
    .. [1] M. Beck, K. Pöppel, M. Spanring, A. Auer, O. Prudnikova, M. Kopp, G. Klambauer,
       J. Brandstetter and S. Hochreiter, "xLSTM: extended long short-term memory", 2024,
       arXiv:2405.04517, section 2.2 and appendix A.2.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> slstm = rk.SLSTM(3, 8, num_layers=2, heads=2, forget_bias=3.0, seed=0)
    >>> y, (h, c, n, m) = slstm(np.ones((7, 2, 3), np.float32))
    >>> y.shape, n.shape, slstm.params["weight_hh_l0"].shape
    ((7, 2, 8), (2, 2, 8), (32, 4))
    """

    heads: Final[int] = fixed("heads", "N.")
    exp_forget: Final[bool] = fixed("exp_forget", "Whether the forget gate is exp.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        heads: int = 1,
        exp_forget: bool = False,
        forget_bias: float | None = None,
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
        hidden = size("hidden_size", hidden_size)
        expected = f"a divisor of hidden_size = {hidden}"
        heads = integer("heads", heads, expected, 1, hidden)
        if hidden % heads:
            raise ValueError(f"heads: expected {expected}, got {heads}")
        exp_forget = flag("exp_forget", exp_forget)
        cell = Cell("slstm", heads=heads, exp_forget=exp_forget)
        super().__init__(cell, **shared(given | {"hidden_size": hidden}))
        self._heads, self._exp_forget = heads, exp_forget
        self._start_forget_bias(forget_bias, params)
