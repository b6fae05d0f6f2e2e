"""The vanilla RNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..bf16 import Compute
from ..checks import Seed, alone, bound, choice, fixed, probability
from .activations import Activations, chosen
from .base import Cell, _Layer, shared
from .initialize import Init
from .results import Array

__all__ = ["RNN"]


class RNN(_Layer[Array]):
    """Vanilla RNN: h = act(W_ih x + b_ih + W_hh h' + b_hh) [1]_.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L, at least 1. Each layer takes the outputs of the layer below.
    nonlinearity : {"tanh", "relu"}
        The activation act.
    activations : tuple of one, optional
        Another act, as in `LSTM`; ``nonlinearity`` is then left out.
    forward_clip : float, optional
        As in `LSTM`.
    zoneout : float
        p, from 0 to below 1 [6]_. In `forward` each unit keeps its h with probability p:
        h = m h_new + (1 - m) h', where m is 0 or 1, drawn for each row and step as `dropout` is. In
        calling the layer and in streams h is the mean, p h' + (1 - p) h_new. Where `resets` begin
        a sequence h' is zero. Not with `activations` or `forward_clip`. (The recurrent dropout of
        `LSTM` and `GRU` drops what is added to the state; an RNN adds nothing to its state.)
    bias : bool
        Whether there are biases.
    batch_first : bool
        Whether sequences are (B, T, C) instead of (T, B, C). States are not affected.
    dropout : float
        Probability of dropout, from 0 to below 1. It acts between layers, in `forward` only. A
        value above 0 needs at least two layers.
    bidirectional : bool
        Whether each layer also runs backward in time. The outputs of both directions are
        concatenated.
    reverse : bool
        Whether all layers run only backward in time, each row from its own last step to its first.
        y is aligned with x, like the reverse half of a bidirectional layer; the last state is that
        at the first step. Parameters have no ``_reverse`` in their names. Keras's
        ``go_backwards=True`` also reverses y: for rows of T steps, it returns ``y[::-1]``. Not with
        ``bidirectional``, and not for streams.
    residual : bool
        Whether each layer above the first outputs the sum of its h and its input (before dropout),
        both of D*H channels [5]_. Needs at least two layers.
    ensemble : int, optional
        E: compute E layers of the same sizes (members) in each call, in parallel on the available
        threads. Parameters are (E, ...). Each member is trained separately, on its part of x
        (T, E, B, I) or on one x (T, B, I) for all members. All members share the lengths (B,), the
        mask and the resets (T, B). Member e has the same bits, including dropout, as a single layer
        with the seed ``np.random.SeedSequence(seed, spawn_key=(e,))``. Not with ``batch_first``.
    dtype : {float32, float64}
        The dtype of parameters, inputs and outputs. Arrays of other dtypes are refused.
    compute : {None, "bf16"}
        The format to which both operands of every product are rounded, in calls and in backward:
        weights, inputs, h and dL/da. Sums, states, parameters, gradients and all other computations
        stay float32; other dtypes are refused. Up to twice as fast on machines that multiply bf16
        faster, with the same bits on all machines; see ``docs/bf16.md``.
    seed : int or numpy.random.SeedSequence, optional
        The seed of the initial parameters and of dropout; by default from the operating system.
        Ensembles with different seeds have no member in common.
    init : {"uniform", "xavier", "orthogonal", "identity", "zeros"}
        The initial values of the parameters. ``uniform``: all from U(-1/sqrt(H), 1/sqrt(H)), as in
        PyTorch.
        ``xavier``: each gate's matrices from U(-b, b), b = sqrt(6 / (rows + columns)) [2]_.
        ``orthogonal``: input matrices as xavier, each gate's recurrent matrix orthogonal [3]_.
        ``identity``: input matrices from N(0, 0.001), recurrent matrices the identity, for
        ``nonlinearity="relu"`` [4]_. Biases are zero in all but uniform. ``zeros``: all zero, and
        nothing is drawn.
    params : mapping of str to ndarray, optional
        The parameters, which are copied. Names, shapes and dtype are those of the attribute
        `params`. `seed` is then the seed of dropout only, and `init` cannot be given.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (G*H, inputs), ``weight_hh_l{k}{_reverse}`` (G*H, H),
        ``bias_ih_l{k}{_reverse}`` and ``bias_hh_l{k}{_reverse}`` (G*H,): PyTorch's names, order
        and gate order. You may write to them; the next call uses the new values.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] J. Elman, "Finding structure in time", Cognitive Science 14(2), 1990.
    .. [2] X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward
       neural networks", AISTATS 2010, eq. 16.
    .. [3] A. Saxe, J. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of
       learning in deep linear neural networks", 2013, arXiv:1312.6120.
    .. [4] Q. Le, N. Jaitly and G. Hinton, "A simple way to initialize recurrent networks of
       rectified linear units", 2015, arXiv:1504.00941.
    .. [5] Y. Wu et al., "Google's neural machine translation system", 2016, arXiv:1609.08144,
       section 3.1.
    .. [6] D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
       activations", 2016, arXiv:1606.01305.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 5, nonlinearity="relu", init="identity", seed=0)
    >>> y, h = rnn(np.ones((7, 2, 3), np.float32))
    >>> y.shape
    (7, 2, 5)
    >>> rnn
    RNN(3, 5, nonlinearity='relu', seed=0, init='identity')

    A tensor or buffer is read where it is:

    >>> import array
    >>> rnn(memoryview(array.array("f", [1.0] * 21)).cast("B").cast("f", (7, 3)))[0].shape
    (7, 5)

    One member of an ensemble, made alone:

    >>> many = rk.RNN(3, 5, ensemble=16, seed=7)
    >>> one = rk.RNN(3, 5, seed=np.random.SeedSequence(7, spawn_key=(2,)))
    >>> bool((one.params["weight_hh_l0"] == many.params["weight_hh_l0"][2]).all())
    True
    """

    nonlinearity: Final[str] = fixed("nonlinearity", "The name of act; see `activations`, too.")
    activations: Final[Activations | None] = fixed("activations", "As given, or None.")
    forward_clip: Final[float | None] = fixed("forward_clip", "Bound of arguments, or None.")
    zoneout: Final[float] = fixed("zoneout", "The probability that a unit keeps its h.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        activations: Activations | None = None,
        forward_clip: float | None = None,
        zoneout: float = 0.0,
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
        nonlinearity = choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        if activations is not None and nonlinearity != "tanh":
            got = f"got {activations!r}"
            raise ValueError(f"activations: expected None with {nonlinearity=}, {got}")
        forward_clip = bound("forward_clip", forward_clip)
        own = chosen(activations, (nonlinearity.capitalize(),), "h")
        cell = Cell(f"rnn_{nonlinearity}")
        if activations is not None or forward_clip:
            cell = Cell("rnn_general", forward_clip=forward_clip, activations=own)
        zoneout = probability("zoneout", zoneout)
        if zoneout:
            others = {"activations": activations, "forward_clip": forward_clip}
            alone({"zoneout": zoneout}, "0", others)
            cell = Cell(f"rnn_{nonlinearity}_noisy", noise=(zoneout, 0.0, 0.0))
        super().__init__(cell, **shared(given))
        self._nonlinearity, self._activations = nonlinearity, activations
        self._zoneout = zoneout
