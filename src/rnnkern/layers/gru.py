"""The GRU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, alone, bound, choice, fixed, flag, probability
from .activations import Activations, chosen
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["GRU"]


class GRU(_Layer[Array]):
    """GRU: r, z = sigmoid(.); h = (1 - z) n + z h' [1]_.

    The order of gates is r, z, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, init, params
        As in `RNN`.
    reset_after : bool
        True (cuDNN, PyTorch; v1 of [1]_): n = tanh(W_in x + b_in + r (W_hn h' + b_hn)). False (v3
        of [1]_; ONNX's default): n = tanh(W_in x + b_in + W_hn (r h') + b_hn).
    activations : tuple of two, optional
        The activations of r and z, and of n; by default ``("Sigmoid", "Tanh")``. As in `LSTM`.
    forward_clip : float, optional
        As in `LSTM`.
    layer_norm : str, optional
        ``"haste"``: layer norm [2]_ of both products, each over all 3H values, as the library
        haste has it [3]_; LN as in `LSTM`. r, z = sigmoid(LN(W_ih x) + b + LN(W_hh h') + b') and
        n = tanh(LN(W_ih x)_n + b_in + r (LN(W_hh h')_n + b_hn)). The gains are
        ``gain_ih_l{k}{_reverse}`` and ``gain_hh_l{k}{_reverse}`` (3H,). Not with
        ``reset_after=False``, `activations`, `forward_clip`, `zoneout` or `recurrent_dropout`.
    zoneout : float
        As in `RNN`.
    recurrent_dropout : float
        p, from 0 to below 1 [4]_: in `forward`, h = (1 - z) m n / (1 - p) + z h', where m is 0 with
        probability p and else 1, drawn as for `zoneout`. In calling the layer and in streams
        nothing is dropped. Not with `activations`, `forward_clip` or `layer_norm`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
       statistical machine translation", 2014, arXiv:1406.1078.
    .. [2] J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016, arXiv:1607.06450, equations
       25 to 27.
    .. [3] https://github.com/lmnt-com/haste, LayerNormGRU.
    .. [4] S. Semeniuta, A. Severyn and E. Barth, "Recurrent dropout without memory loss", 2016,
       arXiv:1603.05118.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> y, h = rk.GRU(3, 5, batch_first=True, seed=0)(np.ones((2, 7, 3), np.float32))
    >>> y.shape, h.shape
    ((2, 7, 5), (1, 2, 5))
    >>> rk.GRU(3, 5, layer_norm="haste", seed=0).params["gain_ih_l0"].shape
    (15,)
    >>> gru = rk.GRU(3, 5, zoneout=0.1, recurrent_dropout=0.2, seed=0)
    >>> y, h, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    """

    reset_after: Final[bool] = fixed("reset_after", "Whether r acts after the product with W_hn.")
    activations: Final[Activations | None] = fixed("activations", "As given, or None.")
    forward_clip: Final[float | None] = fixed("forward_clip", "Bound of arguments, or None.")
    layer_norm: Final[str | None] = fixed("layer_norm", "The convention of layer norm, or None.")
    zoneout: Final[float] = fixed("zoneout", "The probability that a unit keeps its h.")
    recurrent_dropout: Final[float] = fixed("recurrent_dropout", "The probability that n is 0.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        activations: Activations | None = None,
        forward_clip: float | None = None,
        layer_norm: Literal["haste"] | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
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
        reset_after = flag("reset_after", reset_after)
        forward_clip = bound("forward_clip", forward_clip)
        own = chosen(activations, ("Sigmoid", "Tanh"), "r and z, and n")
        others: dict[str, Any] = {"activations": activations, "forward_clip": forward_clip}
        cell = Cell("gru" if reset_after else "gru_reset_before")
        if layer_norm is not None:
            convention = choice("layer_norm", layer_norm, ("haste",))
            if not reset_after:
                expected = "expected None with reset_after=False"
                raise ValueError(f"layer_norm: {expected}, got {layer_norm!r}")
            alone({"layer_norm": convention}, "None", others)
            cell = Cell("gru_" + convention)
        elif activations is not None or forward_clip:
            cell = Cell(cell.kind + "_general", forward_clip=forward_clip, activations=own)
        zoneout = probability("zoneout", zoneout)
        recurrent_dropout = probability("recurrent_dropout", recurrent_dropout)
        noise = {"zoneout": zoneout, "recurrent_dropout": recurrent_dropout}
        noise = {name: p for name, p in noise.items() if p}
        if noise:
            alone(noise, "0", others | {"layer_norm": layer_norm})
            cell = Cell(cell.kind + "_noisy", noise=(zoneout, 0.0, recurrent_dropout))
        super().__init__(cell, **shared(given))
        self._reset_after, self._activations = reset_after, activations
        self._layer_norm = layer_norm
        self._zoneout, self._recurrent_dropout = zoneout, recurrent_dropout
