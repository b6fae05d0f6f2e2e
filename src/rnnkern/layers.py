"""RNN, LSTM and GRU: parameters, checks, defaults, docstrings. The maths is in the core."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from .checks import array, choice, fixed, flag, integer, number
from .clip import Clip
from .stream import Stream, split_state

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GRU", "LSTM", "RNN", "Gradients", "Trace"]

Array = NDArray[Any]
State = Array | tuple[Array, Array]

PENALIZED = ("rnn_tanh", "rnn_relu", "gru")  # kinds that flow_penalty is defined for
INITIALIZERS = ("uniform", "xavier", "orthogonal", "identity")
NO_CLIP = Clip()


class Trace(NamedTuple):
    """What a backward pass saw on its way: float64 arrays (L*D, T, B), layer-major, then direction.

    An ensemble's are (L*D, T, E, B). Behind a row's end norms and shares are 0, and `scale` is 1.

    Attributes
    ----------
    dh : ndarray
        L2 norm of dL/dh_t, complete: what came back through time plus dL/dy_t.
    dh_before : ndarray
        L2 norm of what step t hands back to the state before it, before `Clip.step_norm`. The
        quotient ``dh_before / dh`` is the growth of one step.
    dc_before : ndarray or None
        The same for an LSTM's cell state.
    scale : ndarray
        The factor that `Clip.step_norm` applied to what step t hands back; 1.0 if none.
    clipped : ndarray
        The share of the elements of dL/da_t that `Clip.step_value` limited, 0 to 1.
    """

    dh: Array
    dh_before: Array
    dc_before: Array | None
    scale: Array
    clipped: Array


@dataclass(frozen=True)
class Gradients:
    """What a backward pass returns.

    Attributes
    ----------
    params : dict of str to ndarray
        dL/dp for each of the layer's parameters, under its name, clipped as asked for.
    x : ndarray
        dL/dx, shaped like the forward's x, but member by member, (T, E, B, I), for any ensemble;
        zero at padding.
    state : ndarray or tuple of ndarray
        dL/d(initial state), shaped like a state.
    norm : float, or ndarray (E,) for an ensemble
        The joint L2 norm of `params` after `Clip.value` and before `Clip.norm`. Optimizers use it
        instead of measuring again, so hand them the dict ``params`` if you change its arrays.
    scale : float, or ndarray (E,)
        The factor that `Clip.norm` applied; 1.0 if none.
    finite : bool, or ndarray (E,)
        Whether every element of `params` was finite before `Clip.value` (and, for float64, small
        enough for its square to be finite).
    trace : Trace or None
        What the pass saw on its way, if it was asked for.
    flow_penalty : float, or ndarray (E,)
        The value of Omega, if it was asked for, without its weight; 0.0 otherwise.
    """

    params: dict[str, Array]
    x: Array
    state: State
    norm: Any
    scale: Any
    finite: Any
    trace: Trace | None = None
    flow_penalty: Any = 0.0


class _Layer:
    """What RNN, LSTM and GRU have in common."""

    _kind: str
    _has_c = False

    # The constructor checks these together and passes them to the core, so they are read-only.
    input_size: Final[int] = fixed("input_size", "I, elements of a step's input.")
    hidden_size: Final[int] = fixed("hidden_size", "H, units of each layer.")
    num_layers: Final[int] = fixed("num_layers", "L.")
    bias: Final[bool] = fixed("bias", "Whether there are biases.")
    batch_first: Final[bool] = fixed("batch_first", "Whether sequences are (B, T, C).")
    bidirectional: Final[bool] = fixed("bidirectional", "Whether D is 2.")
    residual: Final[bool] = fixed("residual", "Whether layers add their input to h.")
    ensemble: Final[int | None] = fixed("ensemble", "E, or None.")
    dtype: Final[np.dtype[Any]] = fixed("dtype", "Of parameters, inputs and outputs.")

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
        residual: bool = False,
        ensemble: int | None = None,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        init: str = "uniform",
    ) -> None:
        self._input_size = _size("input_size", input_size)
        self._hidden_size = _size("hidden_size", hidden_size)
        self._num_layers = _size("num_layers", num_layers)
        self._bias = flag("bias", bias)
        self._batch_first = flag("batch_first", batch_first)
        self._bidirectional = flag("bidirectional", bidirectional)
        self._residual = flag("residual", residual)
        if self._residual and self._num_layers == 1:
            raise ValueError(
                "residual: expected False with num_layers=1 (it joins layers), got True"
            )
        self._ensemble = None if ensemble is None else _size("ensemble", ensemble)
        if self._ensemble and self._batch_first:
            raise ValueError("batch_first: expected False with an ensemble, got True")
        self.dropout = dropout
        self._dtype = _dtype(dtype)
        init = choice("init", init, INITIALIZERS)
        if seed is not None:
            seed = integer("seed", seed, "an integer from 0 to 2**64 - 1", 0, 2**64 - 1)
        self._net = self._new_net(self._ensemble or 0)
        self.dropout_step = 0
        members = self._ensemble or 1
        self._params = {  # all memory first: what is too large fails before anything is drawn
            name: np.empty((members, *shape), self._dtype)
            for name, shape in self._net.parameter_shapes()
        }
        self._dropout_seeds = []
        for member in range(members):
            generator = np.random.default_rng(None if seed is None else seed + member)
            self._dropout_seeds.append(int(generator.integers(2**63)))
            for name, values in self._params.items():
                shape = values.shape[1:]
                values[member] = _initial(init, name, shape, self._hidden_size, generator)
        if self._ensemble is None:
            self._params = {name: values[0] for name, values in self._params.items()}

    def _new_net(self, members: int) -> _core.Net:
        return _core.Net(
            self._kind,
            self._input_size,
            self._hidden_size,
            self._num_layers,
            self._bias,
            self._bidirectional,
            self._residual,
            self._dtype == np.dtype(np.float64),
            members,
        )

    def _checked_params(self) -> Iterator[tuple[str, Array]]:
        """The parameters, checked as the core checks them in each call."""
        members = () if self._ensemble is None else (self._ensemble,)
        for name, shape in self._net.parameter_shapes():
            values = self._params.get(name)
            yield name, array(f"params[{name!r}]", values, self._dtype, (*members, *shape))

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name; may be set to another dict, which each call checks."""
        return self._params

    @params.setter
    def params(self, params: dict[str, Array]) -> None:
        if not isinstance(params, dict):
            raise TypeError(f"params: expected a dict of arrays, got {type(params).__name__}")
        self._params = params

    @property
    def dropout(self) -> float:
        """Probability that an element between two layers is zeroed in a training forward."""
        return self._dropout

    @dropout.setter
    def dropout(self, p: float) -> None:
        expected = "a number from 0 to below 1"
        self._dropout = number("dropout", p, expected, lambda x: 0.0 <= x < 1.0)

    @property
    def dropout_step(self) -> int:
        """How many training forwards have been; with the seed, it determines the next mask."""
        return self._dropout_step

    @dropout_step.setter
    def dropout_step(self, step: int) -> None:
        expected = "an integer from 0 to 2**64 - 1"
        self._dropout_step = integer("dropout_step", step, expected, 0, 2**64 - 1)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._input_size}, {self._hidden_size}, {self._num_layers}, "
            f"bias={self._bias}, batch_first={self._batch_first}, dropout={self.dropout}, "
            f"bidirectional={self._bidirectional}, residual={self._residual}, "
            f"ensemble={self._ensemble}, dtype={self._dtype})"
        )

    def __call__(
        self,
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
        *,
        resets: Array | None = None,
    ) -> tuple[Array, State]:
        """Run over a sequence for inference: nothing is kept, nothing is dropped out.

        Parameters
        ----------
        x : ndarray, shape (T, B, I), (B, T, I) with ``batch_first``, or (T, I) for one row
            The input, of the layer's dtype. T and B may be 0. An ensemble takes (T, E, B, I), or
            (T, B, I) for all of its members.
        state : ndarray or tuple of ndarray, optional
            The initial h (L*D, B, H), for an LSTM the pair (h, c); (L*D, H) for one row,
            (L*D, E, B, H) for an ensemble. Zeros if not given.
        lengths : ndarray of integers, shape (B,), optional
            Each row's number of steps, 0 to T, in any order; what lies behind is never read.
        resets : ndarray of bool, shape (T, B), laid out as `x`, optional
            Where another sequence begins in a row. Its steps and those before them do not see each
            other: the state starts from zeros there, in both directions. Several short sequences
            can share a row, and episodes need no loop.

        Returns
        -------
        y : ndarray, shape (T, B, D*H), laid out as `x`; (T, E, B, D*H) for an ensemble
            The last layer's output of every step, directions side by side (h; with ``residual``,
            plus the layer's input); zero behind a row's end.
        state : ndarray or tuple of ndarray
            The state at each row's own last step (the reverse direction's: at its first), shaped
            like the initial state.

        Raises
        ------
        TypeError, ValueError
            If an argument has another dtype, rank or size than it must; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, state = rk.GRU(3, 5, seed=0)(np.zeros((7, 2, 3), np.float32))
        >>> y.shape, state.shape
        ((7, 2, 5), (1, 2, 5))
        """
        h0, c0 = split_state("state", state, self._has_c)
        y, h, c, _ = self._net.forward(
            self._params,
            x,
            h0,
            c0,
            lengths,
            resets,
            self._batch_first,
            False,
            0,
            0.0,
            self._dropout_seeds,
            0,
        )
        return y, h if c is None else (h, c)

    def forward(
        self,
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
        *,
        resets: Array | None = None,
        checkpoint: int | str | None = None,
    ) -> tuple[Array, State, _core.Tape]:
        """Run over a sequence for training: what backward needs is kept, dropout acts.

        Parameters
        ----------
        x, state, lengths, resets
            As in calling the layer. `x` is not copied: leave it as it is until backward is done.
        checkpoint : int or "sqrt", optional
            Keep the state of every so many steps only (of every sqrt(T) steps), and let backward
            run each such segment forward again [1]_: the same bits, with the memory of the states
            and of one segment, for a third more time. Not with ``bidirectional``, whose directions
            need each other's whole outputs.

        Returns
        -------
        y : ndarray
            As in calling the layer, but read-only where the tape reads it again.
        state : ndarray or tuple of ndarray
            As in calling the layer.
        tape : Tape
            What `backward` wants. A value: several may be alive, each may be used more than once,
            and what it holds can be read (``tape.gates``, ``tape.cells``, ``tape.hiddens``, which
            has every layer's h), but for what a checkpoint leaves out.

        Raises
        ------
        TypeError, ValueError
            As in calling the layer.

        Notes
        -----
        With dropout, each call draws a fresh mask, a function of the layer's seed and of
        ``dropout_step``, which counts these calls and can be set.

        References
        ----------
        .. [1] T. Chen, B. Xu, C. Zhang and C. Guestrin, "Training deep nets with sublinear memory
           cost", 2016, arXiv:1604.06174.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> lstm = rk.LSTM(3, 5, seed=0)
        >>> y, (h, c), tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
        >>> tape.gates[0].shape  # steps, rows, (i, f, g, o), units
        (7, 2, 4, 5)
        """
        h0, c0 = split_state("state", state, self._has_c)
        y, h, c, tape = self._net.forward(
            self._params,
            x,
            h0,
            c0,
            lengths,
            resets,
            self._batch_first,
            True,
            self._segment(checkpoint, x),
            self._dropout,
            self._dropout_seeds,
            self._dropout_step,
        )
        self.dropout_step += 1
        return y, h if c is None else (h, c), tape

    def _segment(self, checkpoint: int | str | None, x: Array) -> int:
        """Steps between kept states; 0: everything is kept."""
        if checkpoint is None:
            return 0
        if isinstance(checkpoint, str):
            if checkpoint != "sqrt":
                raise ValueError(f"checkpoint: expected an integer or 'sqrt', got {checkpoint!r}")
            sizes = x.shape if isinstance(x, np.ndarray) else ()  # which the core refuses
            steps = sizes[self._batch_first and len(sizes) == 3] if len(sizes) > 1 else 1
            segment = max(1, math.isqrt(steps))
        else:
            segment = integer("checkpoint", checkpoint, "an integer of at least 1", 1, 2**62)
        if self._bidirectional:
            raise ValueError(f"checkpoint: expected None with bidirectional, got {checkpoint!r}")
        return segment

    def backward(
        self,
        tape: _core.Tape,
        dy: Array | None = None,
        dstate: State | None = None,
        clip: Clip | None = None,
        *,
        trace: bool = False,
        flow_penalty: float = 0.0,
    ) -> Gradients:
        """Backpropagate through time.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`. The parameters are read again: update them afterwards.
        dy : ndarray, shaped like y, optional
            dL/dy; zeros if not given. Not read at padding.
        dstate : ndarray or tuple of ndarray, optional
            dL/d(final state), shaped like a state; zeros if not given.
        clip : Clip, optional
            Gradient clips, fused into the kernels.
        trace : bool
            Whether to gather, inside the kernels, the norms that `Trace` describes.
        flow_penalty : float
            The weight, at least 0, of a penalty on gradients that vanish or explode on their way
            back: Omega = mean over rows, sum over steps, layers and directions of
            ``(|u_t| / |v_t| - 1)^2`` [1]_, eq. 9, with v_t = dL/dh_t and u_t what step t hands
            back to h_{t-1}, before `Clip.step_norm`. The gradient of W_hh gets the weight times
            Omega's immediate derivative, v_t and dL/da_t held fixed (eq. 10). Steps where v_t or
            u_t is zero do not count. For `RNN` and the reset-after `GRU`, whose state is h
            alone and whose recurrent products all act on it.

        Returns
        -------
        Gradients

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, dtype or shape than it must, or the tape is another
            layer's; the message names it.

        References
        ----------
        .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent
           neural networks", 2013, arXiv:1211.5063.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> gru = rk.GRU(3, 5, seed=0)
        >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
        >>> grads = gru.backward(tape, np.ones_like(y), clip=rk.Clip(norm=1.0))
        >>> sorted(grads.params) == sorted(gru.params), grads.x.shape, grads.finite
        (True, (7, 2, 3), True)
        """
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: expected a Clip or None, got {type(clip).__name__}")
        trace = flag("trace", trace)
        weight = number("flow_penalty", flow_penalty, "a finite number >= 0", lambda x: x >= 0)
        if weight > 0 and self._kind not in PENALIZED:
            name = "a reset-before GRU" if self._kind.startswith("gru") else "an LSTM"
            raise ValueError(
                f"flow_penalty: expected 0 for {name} (it is defined for RNN and the reset-after "
                f"GRU), got {weight!r}"
            )
        dh, dc = split_state("dstate", dstate, self._has_c)
        params, dx, dh0, dc0, norm, scale, finite, traced = self._net.backward(
            self._params,
            tape,
            dy,
            dh,
            dc,
            *(clip or NO_CLIP).bounds(),
            trace or weight > 0,
            weight,
        )
        seen = Trace(*traced) if traced else None
        if seen and self._ensemble:  # the core has members first
            seen = Trace._make(None if a is None else np.moveaxis(a, 0, 2) for a in seen)
        return Gradients(
            params,
            dx,
            dh0 if dc0 is None else (dh0, dc0),
            norm,
            scale,
            finite,
            seen if trace else None,
            _omega(seen) if seen and weight > 0 else 0.0,
        )

    def stream(self, batch_size: int = 1) -> Stream:
        """Make a stream: one step, or a block of steps, at a time.

        Parameters
        ----------
        batch_size : int
            B, at least 1.

        Returns
        -------
        Stream
            With this layer's parameters as they are now, and a state of zeros.

        Raises
        ------
        ValueError
            If the layer is bidirectional: its outputs need the whole sequence. If it is an
            ensemble: ask a `member`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.LSTM(3, 5, seed=0).stream()
        >>> stream.step(np.zeros((1, 3), np.float32)).shape
        (1, 5)
        """
        if self._ensemble:
            raise ValueError(
                "stream: expected a layer alone, got an ensemble (use member(e).stream())"
            )
        return Stream(self._net, self._params, _size("batch_size", batch_size))

    def member(self, index: int) -> Self:
        """One member of an ensemble, as a layer alone.

        Parameters
        ----------
        index : int
            From 0 to E - 1.

        Returns
        -------
        RNN, LSTM or GRU
            Its ``params`` are views: what is written to them is the ensemble's, and the other way
            round.

        Raises
        ------
        ValueError
            If the layer is no ensemble, or has no such member.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> grus = rk.GRU(3, 5, ensemble=4, seed=0)
        >>> x = np.ones((7, 2, 3), np.float32)
        >>> bool((grus.member(2)(x)[0] == grus(x)[0][:, 2]).all())
        True
        """
        if not self._ensemble:
            raise ValueError("member: expected an ensemble, got a layer alone")
        expected = f"an integer from 0 to {self._ensemble - 1}"
        index = integer("index", index, expected, 0, self._ensemble - 1)
        one = copy.copy(self)
        one._ensemble = None
        one._net = self._new_net(0)
        one._dropout_seeds = [self._dropout_seeds[index]]
        one._params = {name: values[index] for name, values in self._checked_params()}
        return one


class RNN(_Layer):
    """Vanilla RNN: h = act(W_ih x + b_ih + W_hh h' + b_hh) [1]_.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L, at least 1; each layer takes the outputs of the one below.
    nonlinearity : {"tanh", "relu"}
        act.
    bias : bool
        Whether there are biases.
    batch_first : bool
        Whether sequences are (B, T, C) instead of (T, B, C). States are not affected.
    dropout : float
        From 0 to below 1; acts between layers, in `forward` only.
    bidirectional : bool
        Whether each layer also runs backward in time, its outputs beside the forward ones.
    residual : bool
        Whether each layer above the first hands on its h plus its input (before dropout), both of
        D*H channels [5]_. Needs two layers.
    ensemble : int, optional
        E: that many layers of the same sizes, side by side in each call, on as many threads as
        there are. Parameters are (E, ...); each member is trained on its own, on its part of x
        (T, E, B, I) or on one x (T, B, I) for all, with lengths and resets for all. Member e has
        the bits of a layer alone whose seed is ``seed + e``. Not with ``batch_first``.
    dtype : {float32, float64}
        Of parameters, inputs and outputs. Nothing is cast.
    seed : int, optional
        Of the initial parameters and of dropout; from the system if not given.
    init : {"uniform", "xavier", "orthogonal", "identity"}
        How parameters start. ``uniform``: all from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does.
        ``xavier``: each gate's matrices from U(-b, b), b = sqrt(6 / (rows + columns)) [2]_.
        ``orthogonal``: input matrices as xavier, each gate's recurrent matrix orthogonal [3]_.
        ``identity``: input matrices from N(0, 0.001), recurrent matrices the identity, for
        ``nonlinearity="relu"`` [4]_. Biases are zero in all but uniform.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight_ih_l{k}{_reverse}`` (G*H, inputs), ``weight_hh_l{k}{_reverse}`` (G*H, H),
        ``bias_ih_l{k}{_reverse}`` and ``bias_hh_l{k}{_reverse}`` (G*H,): PyTorch's names, order
        and gate order. Writable; the next call sees what is written.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

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

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 5, nonlinearity="relu", init="identity", seed=0)
    >>> y, h = rnn(np.ones((7, 2, 3), np.float32))
    >>> y.shape
    (7, 2, 5)
    """

    nonlinearity: Final[str] = fixed("nonlinearity", "The name of act.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        _refuse_second_construction(self)
        self._nonlinearity = choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self._kind = f"rnn_{self._nonlinearity}"
        super().__init__(input_size, hidden_size, num_layers, **options)


class LSTM(_Layer):
    """LSTM: i, f, o = sigmoid(.), g = tanh(.); c = f c' + i g; h = o tanh(c) [1]_ [2]_.

    Gates stand in the order i, f, g, o. A state is the pair (h, c).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    bias, batch_first, dropout, bidirectional, residual, ensemble, dtype, seed,
    init
        As in `RNN`.
    forget_bias : float, optional
        What the forget gate's bias starts at (``bias_ih`` holds it, ``bias_hh`` zero) [3]_; as
        `init` says if not given. Needs ``bias=True``.

    References
    ----------
    .. [1] S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9(8),
       1997.
    .. [2] F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget: continual prediction with
       LSTM", Neural Computation 12(10), 2000.
    .. [3] R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical exploration of recurrent
       network architectures", ICML 2015.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, num_layers=2, bidirectional=True, forget_bias=1.0, seed=0)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=np.array([7, 4]))
    >>> y.shape, c.shape
    ((7, 2, 10), (4, 2, 5))
    """

    _kind = "lstm"
    _has_c = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        forget_bias: float | None = None,
        **options: Any,
    ) -> None:
        _refuse_second_construction(self)
        super().__init__(input_size, hidden_size, num_layers, **options)
        if forget_bias is None:
            return
        largest = float(np.finfo(self.dtype).max)
        forget_bias = number(
            "forget_bias", forget_bias, "a finite number", lambda x: abs(x) <= largest
        )
        if not self.bias:
            raise ValueError("forget_bias: expected None with bias=False, got a number")
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        for name, values in self.params.items():
            if name.startswith("bias"):
                values[..., forget] = forget_bias if name.startswith("bias_ih") else 0.0


class GRU(_Layer):
    """GRU: r, z = sigmoid(.); h = (1 - z) n + z h' [1]_.

    Gates stand in the order r, z, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        As in `RNN`.
    bias, batch_first, dropout, bidirectional, residual, ensemble, dtype, seed,
    init
        As in `RNN`.
    reset_after : bool
        True (cuDNN, PyTorch; v1 of [1]_): n = tanh(W_in x + b_in + r (W_hn h' + b_hn)). False (v3
        of [1]_; ONNX's default): n = tanh(W_in x + b_in + W_hn (r h') + b_hn).

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
       statistical machine translation", 2014, arXiv:1406.1078.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> y, h = rk.GRU(3, 5, batch_first=True, seed=0)(np.ones((2, 7, 3), np.float32))
    >>> y.shape, h.shape
    ((2, 7, 5), (1, 2, 5))
    """

    reset_after: Final[bool] = fixed("reset_after", "Whether r acts after the product with W_hn.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        _refuse_second_construction(self)
        self._reset_after = flag("reset_after", reset_after)
        self._kind = "gru" if reset_after else "gru_reset_before"
        super().__init__(input_size, hidden_size, num_layers, **options)


def _refuse_second_construction(layer: _Layer) -> None:
    """A second call of the constructor would change what the core and the parameters rely on."""
    if "_net" in vars(layer):
        name = type(layer).__name__
        raise TypeError(f"{name}: expected a new object, got one that is constructed already")


def _omega(trace: Trace) -> Any:
    """Omega of Pascanu et al. 2013, eq. 9, from the norms of a trace; (E,) for an ensemble."""
    v, u = trace.dh, trace.dh_before
    with np.errstate(all="ignore"):  # infinity and nan are results, whatever the caller traps
        growth = np.divide(u, v, out=np.ones_like(u), where=(v != 0) & (u != 0))
        omega = np.sum((growth - 1.0) ** 2, axis=(0, 1, -1)) / max(1, v.shape[-1])
    return omega if v.ndim == 4 else float(omega)


def _size(name: str, value: Any) -> int:
    return integer(name, value, "an integer of at least 1", 1, 2**62)


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # the last for text such as "(2,"
        wanted = None
    got = repr(dtype) if wanted is None else str(wanted)
    if wanted is None or wanted not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected float32 or float64, got {got}")
    return wanted


def _initial(
    init: str, name: str, shape: tuple[int, ...], hidden: int, generator: np.random.Generator
) -> Array:
    """One parameter's first values, float64."""
    if init == "uniform":
        bound = 1.0 / math.sqrt(hidden)
        return generator.uniform(-bound, bound, shape)
    if len(shape) == 1:
        return np.zeros(shape)
    gates = shape[0] // hidden
    recurrent = name.startswith("weight_hh")
    if init == "identity":
        if recurrent:
            return np.tile(np.eye(hidden), (gates, 1))
        return generator.normal(0, 1e-3, shape)
    if init == "orthogonal" and recurrent:
        # Q of a Gaussian matrix; the signs of R's diagonal make it uniform over all rotations.
        q, r = np.linalg.qr(generator.normal(size=(gates, hidden, hidden)))
        signs: Array = np.sign(np.diagonal(r, axis1=1, axis2=2))
        return np.reshape(q * signs[:, None, :], shape)
    bound = math.sqrt(6.0 / (hidden + shape[1]))
    return generator.uniform(-bound, bound, shape)
