"""The LSTM, with its options: projection, clips of its states, peepholes, layer norm and more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, alone, bound, choice, fixed, flag, integer, probability, size
from .activations import Activations, chosen
from .base import Cell, _Layer, shared
from .initialize import Init
from .noise import Zoneout, zoneouts
from .results import Array

__all__ = ["LSTM"]


class LSTM(_Layer[tuple[Array, Array]]):
    """LSTM: i, f, o = sigmoid(.), g = tanh(.); c = f c' + i g; h = o tanh(c) [1]_ [2]_.

    The order of gates is i, f, g, o. A state is the pair (h, c). With `proj_size`,
    h = W_hr (o tanh(c)) [4]_. Then h and the outputs have P channels, and W_hh is (4H, P).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    bias, batch_first, dropout, bidirectional, reverse, residual, ensemble, dtype, compute,
    seed, init, params
        As in `RNN`.
    forget_bias : float, optional
        The initial bias of the forget gate (in ``bias_ih``; ``bias_hh`` is zero) [3]_. By default,
        `init` determines it. Needs ``bias=True``. Not with `params`.
    proj_size : int, optional
        P, from 1 to below H: the width of h after a projection ``weight_hr_l{k}{_reverse}``
        (P, H), as PyTorch's ``proj_size``. None or 0: no projection, and P = H.
    cell_clip : float, optional
        Above 0. Limits each element of c to ``[-cell_clip, cell_clip]``, both before its tanh and
        for the next step (TFLite, ELMo). The gradient passes where c was within the bound.
    proj_clip : float, optional
        The same for h, after the projection. Needs `proj_size`.
    peephole : bool
        Whether gates depend on c by one weight for each unit [5]_: i and f on c', o on c. The
        weights are ``weight_ch_l{k}{_reverse}`` (3H,), rows i, f, o.
    input_forget : bool
        Whether the gates are coupled [6]_: f = 1 - i. Parameters then have rows i, g, o (3H), and
        peepholes rows i, o (2H,). ONNX's ``input_forget``.
    activations : tuple of three, optional
        The activations of the gates, of g, and of c in the formula of h; by default
        ``("Sigmoid", "Tanh", "Tanh")``. Each is a name from ONNX's list, or a tuple of a name and
        its constants alpha and beta (with defaults):
        Relu, Tanh, Sigmoid, Affine (alpha a + beta; 1, 0), LeakyRelu (alpha; 0.01), ThresholdedRelu
        (alpha; 1), ScaledTanh (alpha tanh(beta a)), HardSigmoid (alpha a + beta within [0, 1]; 0.2,
        0.5), Elu (alpha; 1), Softsign, Softplus.
    forward_clip : float, optional
        Above 0. Limits the arguments of the gates' activations to ``[-forward_clip,
        forward_clip]``. The gradient passes where they were within the bound. ONNX's ``clip``.
    layer_norm : str, optional
        Layer norm [7]_, LN(v) = gain (v - mean) / sqrt(variance + 1e-5), whose moments are those of
        all 4H values of a product, or of all H of c. Not with other options than `proj_size`.
        Gains start at one and biases at zero with each `init` but ``zeros``. ``"haste"``, as the
        library haste has it [8]_: the gates' arguments are LN(W_ih x) + LN(W_hh h') + b, and
        h = o tanh(LN(c) + b_c), where c itself is carried. ``"fastrnns"``, as PyTorch's benchmarks
        have it [9]_: a bias for each product, and c = LN(f c' + i g) + b_c is carried and seen by
        h. The gains are ``gain_ih_l{k}{_reverse}`` and ``gain_hh_l{k}{_reverse}`` (4H,), and
        ``gain_c_l{k}{_reverse}`` (H,) beside b_c, ``bias_c_l{k}{_reverse}`` (H,); with haste's
        convention there is no ``bias_hh``.
    zoneout : float or tuple of two
        The probability that a unit keeps its state [10]_, of h and c alike or the pair (h, c); as
        in `RNN`. Each has its own mask, and h_new = o tanh(c_new) sees c before its zoneout.
    recurrent_dropout : float
        p, from 0 to below 1 [11]_: in `forward`, c = f c' + i m g / (1 - p), where m is 0 with
        probability p and else 1, drawn as for `zoneout`. In calling the layer and in streams
        nothing is dropped. It combines with `zoneout`; both do with none of the options from
        `proj_size` to `layer_norm`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9(8),
       1997.
    .. [2] F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget: continual prediction with
       LSTM", Neural Computation 12(10), 2000.
    .. [3] R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical exploration of recurrent
       network architectures", ICML 2015.
    .. [4] H. Sak, A. Senior and F. Beaufays, "Long short-term memory based recurrent neural network
       architectures for large vocabulary speech recognition", 2014, arXiv:1402.1128.
    .. [5] F. Gers and J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
    .. [6] K. Greff, R. Srivastava, J. Koutnik, B. Steunebrink and J. Schmidhuber, "LSTM: a search
       space odyssey", 2017, arXiv:1503.04069.
    .. [7] J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016, arXiv:1607.06450, equations
       20 to 22.
    .. [8] https://github.com/lmnt-com/haste, LayerNormLSTM.
    .. [9] https://github.com/pytorch/pytorch, benchmarks/fastrnns, LayerNormLSTMCell.
    .. [10] D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
       activations", 2016, arXiv:1606.01305.
    .. [11] S. Semeniuta, A. Severyn and E. Barth, "Recurrent dropout without memory loss", 2016,
       arXiv:1603.05118.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, num_layers=2, bidirectional=True, forget_bias=1.0, seed=0)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=np.array([7, 4]))
    >>> y.shape, c.shape
    ((7, 2, 10), (4, 2, 5))
    >>> y, (h, c) = rk.LSTM(3, 8, proj_size=2, seed=0)(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape, c.shape
    ((7, 2, 2), (1, 2, 2), (1, 2, 8))
    >>> lstm = rk.LSTM(3, 8, activations=("HardSigmoid", ("Elu", 0.5), "Softsign"), seed=0)
    >>> lstm(np.ones((7, 2, 3), np.float32))[0].shape
    (7, 2, 8)
    >>> list(rk.LSTM(3, 8, layer_norm="haste", bias=False, seed=0).params)
    ['weight_ih_l0', 'weight_hh_l0', 'gain_ih_l0', 'gain_hh_l0', 'gain_c_l0']
    >>> lstm = rk.LSTM(3, 8, zoneout=(0.05, 0.5), recurrent_dropout=0.25, seed=0)
    >>> y, (h, c), tape = lstm.forward(np.ones((7, 2, 3), np.float32))
    >>> np.array_equal(y, lstm(np.ones((7, 2, 3), np.float32))[0])
    False
    """

    proj_size: Final[int] = fixed("proj_size", "P of the projection; 0 if there is none.")
    cell_clip: Final[float | None] = fixed("cell_clip", "Bound of the elements of c, or None.")
    proj_clip: Final[float | None] = fixed("proj_clip", "Bound of the elements of h, or None.")
    peephole: Final[bool] = fixed("peephole", "Whether gates see c.")
    input_forget: Final[bool] = fixed("input_forget", "Whether f is 1 - i.")
    activations: Final[Activations | None] = fixed("activations", "As given, or None.")
    forward_clip: Final[float | None] = fixed("forward_clip", "Bound of arguments, or None.")
    layer_norm: Final[str | None] = fixed("layer_norm", "The convention of layer norm, or None.")
    zoneout: Final[Zoneout] = fixed("zoneout", "The probability that a unit keeps its state.")
    recurrent_dropout: Final[float] = fixed("recurrent_dropout", "The probability that g is 0.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        forget_bias: float | None = None,
        proj_size: int | None = 0,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        peephole: bool = False,
        input_forget: bool = False,
        activations: Activations | None = None,
        forward_clip: float | None = None,
        layer_norm: Literal["haste", "fastrnns"] | None = None,
        zoneout: Zoneout = 0.0,
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
        hidden = size("hidden_size", hidden_size)
        proj = 0 if proj_size is None else proj_size
        expected = f"an integer from 0 to {hidden - 1}, below hidden_size"
        proj = integer("proj_size", proj, expected, 0, hidden - 1)
        cell_clip, proj_clip = bound("cell_clip", cell_clip), bound("proj_clip", proj_clip)
        if proj_clip is not None and not proj:
            raise ValueError(f"proj_clip: expected None without proj_size, got {proj_clip}")
        peephole, input_forget = flag("peephole", peephole), flag("input_forget", input_forget)
        forward_clip = bound("forward_clip", forward_clip)
        own = chosen(activations, ("Sigmoid", "Tanh", "Tanh"), "the gates, g and c")
        others: dict[str, Any] = {"cell_clip": cell_clip, "proj_clip": proj_clip}
        others |= {"peephole": peephole, "input_forget": input_forget}
        others |= {"activations": activations, "forward_clip": forward_clip}
        if layer_norm is not None:
            convention = choice("layer_norm", layer_norm, ("haste", "fastrnns"))
            alone({"layer_norm": convention}, "None", others)
            kind, own = "lstm_" + convention + "_projected" * bool(proj), ()
        elif activations is not None or forward_clip or input_forget or (peephole and proj):
            kind = ("cifg" if input_forget else "lstm") + "_general" + "_projected" * bool(proj)
        elif proj:
            kind, own = "lstm_projected", ()
        else:
            kind = "lstm_peephole" if peephole else "lstm_clipped" if cell_clip else "lstm"
            own = ()
        cell = Cell(kind, proj, cell_clip, proj_clip, peephole, forward_clip, own)
        zoneout = zoneouts(zoneout)
        recurrent_dropout = probability("recurrent_dropout", recurrent_dropout)
        of_h, of_c = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
        noise = {"zoneout": zoneout} if of_h or of_c else {}
        noise |= {"recurrent_dropout": recurrent_dropout} if recurrent_dropout else {}
        if noise:
            alone(noise, "0", {"proj_size": proj, **others, "layer_norm": layer_norm})
            cell = Cell("lstm_noisy", noise=(of_h, of_c, recurrent_dropout))
        super().__init__(cell, **shared(given | {"hidden_size": hidden}))
        self._input_forget, self._activations = input_forget, activations
        self._layer_norm = layer_norm
        self._zoneout, self._recurrent_dropout = zoneout, recurrent_dropout
        self._start_forget_bias(forget_bias, params)
        if forget_bias is not None and input_forget:
            raise ValueError("forget_bias: expected None with input_forget=True, got a number")
