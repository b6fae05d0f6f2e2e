"""How gradients flow through a layer, and why: spectra, Lyapunov exponents, saturation, reports.

Nothing here changes a layer. An ensemble is looked at member by member. The plotting functions need
matplotlib, the rest NumPy alone.

Letters, for every shape: T steps, B rows of the batch, H hidden units, P channels of h (H without a
projection), L layers, D directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _core
from .checks import integer, number
from .layers import Gradients, Trace, _Layer

__all__ = [
    "Block",
    "Flow",
    "Report",
    "Saturation",
    "lyapunov",
    "plot_clips",
    "plot_flow",
    "plot_saturation",
    "plot_spectrum",
    "report",
    "saturation",
    "spectrum",
]

Array = NDArray[Any]
Layer: TypeAlias = _Layer
State: TypeAlias = Array | tuple[Array, Array]

MOST_POINTS = 500  # of a curve whose slopes are compared pair by pair

# The gates of each kind, in the order of its matrices' rows, with their activations.
LSTM_GATES = {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}
GRU_GATES = {"r": "sigmoid", "z": "sigmoid", "n": "tanh"}
GATES = {
    "rnn_tanh": {"h": "tanh"},
    "rnn_relu": {"h": "relu"},
    "lstm": LSTM_GATES,
    "lstm_clipped": LSTM_GATES,
    "lstm_projected": LSTM_GATES,
    "gru": GRU_GATES,
    "gru_reset_before": GRU_GATES,
    "min_gru": {"z": "sigmoid", "v": "sigmoid or linear"},
}

P = ParamSpec("P")
R = TypeVar("R")


def _untrapped(function: Callable[P, R]) -> Callable[P, R]:
    """`function` where NumPy neither warns nor raises: here 0, infinity and nan are findings."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


# ------------------------------------------------------------------------------------ weights


class Block(NamedTuple):
    """One recurrent matrix: what multiplies h, for one gate of one layer and direction.

    With a projection it is ``W_hr W_hh``, W_hh of the gate: the product from h to the next h, with
    all else left out. Its eigenvalues are those of the (H, H) matrix ``W_hh W_hr`` that are not
    zero.

    Attributes
    ----------
    layer, direction : int
        Which; direction 1 runs backward in time.
    gate : str
        ``h`` (RNN); ``i``, ``f``, ``g``, ``o`` (LSTM); ``r``, ``z``, ``n`` (GRU).
    eigenvalues : ndarray of complex, shape (P,)
        The largest modulus first.
    radius : float
        The spectral radius: the largest modulus.
    singular : float
        The largest singular value: the most that one product can lengthen a vector.
    """

    layer: int
    direction: int
    gate: str
    eigenvalues: Array
    radius: float
    singular: float


@_untrapped
def spectrum(layer: Layer) -> list[Block]:
    """Eigenvalues, spectral radius and largest singular value of every recurrent matrix.

    For a vanilla RNN they bound the flow back in time: with act' at most 1 (tanh, relu), a largest
    singular value below 1 is enough for gradients to vanish, and they can explode only with one
    above 1 [1]_. A gated cell also has a way past these matrices.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        Its parameters, as they are now.

    Returns
    -------
    list of Block
        Layer by layer, direction by direction, gate by gate; nan for a matrix that is not finite.
        Empty for a `MinGRU`, which has no recurrent matrix.

    Raises
    ------
    TypeError, ValueError
        If `layer` is not a layer, or an ensemble.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
       networks", 2013, arXiv:1211.5063, section 2.1.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 4, seed=0)
    >>> rnn.params["weight_hh_l0"][...] = np.diag([0.5, -0.9, 0.2, 0.1])
    >>> (block,) = rk.diagnose.spectrum(rnn)
    >>> block.gate, round(block.radius, 3), round(block.singular, 3)
    ('h', 0.9, 0.9)
    """
    _check_layer(layer)
    blocks = []
    params = dict(layer._checked_params())
    gates = GATES[layer._kind]
    for place, direction in _places(layer):
        suffix = f"_l{place}" + ("_reverse" if direction else "")
        weights, projection = params.get("weight_hh" + suffix), params.get("weight_hr" + suffix)
        if weights is None:
            continue
        matrices = np.split(weights.astype(np.float64), len(gates))
        for gate, matrix in zip(gates, matrices, strict=True):
            matrix = matrix if projection is None else projection.astype(np.float64) @ matrix
            values, singular = np.full(len(matrix), np.nan, np.complex128), np.nan
            if np.isfinite(matrix).all():
                values[...] = np.linalg.eigvals(matrix)
                values = values[np.argsort(-np.abs(values), kind="stable")]
                singular = float(np.linalg.norm(matrix, 2))
            blocks.append(Block(place, direction, gate, values, float(abs(values[0])), singular))
    return blocks


# -------------------------------------------------------------------------------- real sequences


@_untrapped
def lyapunov(
    layer: Layer,
    x: Array,
    state: State | None = None,
    *,
    block: int = 10,
    settle: int = 0,
    seed: int = 0,
) -> Array | float:
    """Largest Lyapunov exponent of the layer along a sequence, per step, in nats.

    It is ``log |v J_T ... J_1| / T``: the mean growth of a random vector v that the Jacobians J_t
    of the whole state (all layers; for an LSTM h and c) are applied to, from the last step to the
    first, as a gradient is [1]_. Below 0 gradients vanish and the state forgets, above 0 both
    explode; ``exp`` of it is the factor per step. A random v needs some steps to turn to the
    direction that grows fastest, which adds an error of the order of 1/T; see `settle`.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        Not bidirectional. Dropout does not act, and nothing of the layer is changed.
    x, state
        As in calling the layer; T at least 1. All rows have T steps.
    block : int
        Steps between two normalisations, at least 1. A block whose product leaves the range of the
        dtype is taken again by halves.
    settle : int
        How many steps, the first that v meets, turn v without being counted; below T.
    seed : int
        Of v.

    Returns
    -------
    ndarray of float64, shape (B,), or float for one row
        ``-inf`` where the product is zero (dead relu units), nan where the layer's values are nan.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    References
    ----------
    .. [1] G. Benettin et al., "Lyapunov characteristic exponents for smooth dynamical systems and
       for Hamiltonian systems", Meccanica 15, 1980; for RNNs: R. Vogt et al., "On Lyapunov
       exponents for RNNs", 2020, arXiv:2006.14123.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(1, 4, nonlinearity="relu", init="identity", seed=0)
    >>> rnn.params["weight_hh_l0"] *= np.float32(0.5)
    >>> rnn.params["bias_ih_l0"] += np.float32(1.0)  # all units above zero: a linear system
    >>> exponent = rk.diagnose.lyapunov(rnn, np.ones((1000, 1), np.float32))
    >>> round(float(np.exp(exponent)), 6)
    0.5
    """
    _check_layer(layer)
    if layer.bidirectional:
        raise ValueError("layer: expected one direction, got a bidirectional layer")
    x, T, axis = _sequence(layer, x)
    block = integer("block", block, "an integer of at least 1", 1, 2**62)
    settle = integer("settle", settle, f"an integer from 0 to {T - 1}, below T", 0, T - 1)
    seed = integer("seed", seed, "an integer from 0 to 2**64 - 1", 0, 2**64 - 1)
    layer = copy.copy(layer)  # shares parameters, not dropout nor its counter
    layer.dropout = 0.0

    def steps(start: int, stop: int) -> Array:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    _, state = layer(steps(0, 0), state)  # checks the state, or makes one of zeros
    if 0 in x.shape:  # no rows, which may claim any number of steps
        return np.zeros(0)
    counted = T - settle
    counting, settling = -(-counted // block), -(-settle // block)  # blocks

    def span(k: int) -> tuple[int, int]:
        """Where block k starts and ends."""
        start, end = (0, counted) if k < counting else (counted - counting * block, T)
        start += k * block
        return start, min(start + block, end)

    blocks = range(counting + settling)
    # The state before each block. What is too large for memory fails before anything is computed.
    before = [np.empty((len(blocks), *part.shape), layer.dtype) for part in _parts(state)]
    for k in blocks:
        for kept, part in zip(before, _parts(state), strict=True):
            kept[k] = part
        _, state = layer(steps(*span(k)), state)
    # A nan makes all later values of its row nan. The gradient need not show it: relu'(nan) is 0.
    lost = np.any([np.isnan(part).any(axis=(0, -1)) for part in _parts(state)], axis=0)
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(size=part.shape) for part in _parts(state)]
    v = _scaled(arrays, 1.0 / _norm(arrays), layer.dtype)
    growth = np.where(lost, np.nan, 0.0)  # one number for each row
    low, high = np.finfo(layer.dtype).tiny * 1e6, np.finfo(layer.dtype).max / 1e6
    for k in reversed(blocks):
        todo = [(*span(k), _state([kept[k] for kept in before]))]
        while todo:
            start, stop, state = todo.pop()
            _, _, tape = layer.forward(steps(start, stop), state)
            pulled = _parts(layer.backward(tape, dstate=_state(v)).state)
            size = _norm(pulled)
            if stop - start > 1 and not ((low < size) & (size < high) | lost).all():
                half = (start + stop) // 2
                _, between = layer(steps(start, half), state)
                todo += [(start, half, state), (half, stop, between)]
                continue
            going = (size > 0) & np.isfinite(size)
            turned = _scaled(pulled, 1.0 / np.where(going, size, 1.0), layer.dtype)
            v = [np.where(going[..., None], new, old) for new, old in zip(turned, v, strict=True)]
            if start < counted:
                growth = growth + np.log(size)
    exponent = growth / counted
    return exponent if exponent.ndim else float(exponent)


class Saturation(NamedTuple):
    """How much of one gate is near its ends, over time.

    Attributes
    ----------
    layer, direction : int
        Which; direction 1 runs backward in time.
    gate : str
        As in `Block`; also ``c``, which is tanh(c) of an LSTM; ``z`` and ``v`` (MinGRU).
    low, high : ndarray, shape (T,); (0,) of a batch without rows
        Share of units and rows below the lower threshold, and above the upper one, at each step;
        nan where no row is left. Rows whose h is nan are left out, as padding is.
    share : float
        Share below or above, over all steps of these rows; nan if there were none.
    mean : float
        Of the gate's values over the same steps.
    """

    layer: int
    direction: int
    gate: str
    low: Array
    high: Array
    share: float
    mean: float


@_untrapped
def saturation(
    layer: Layer,
    tape: _core.Tape,
    *,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
    lengths: Array | None = None,
) -> list[Saturation]:
    """Share of gate values so near their ends that hardly a gradient passes.

    A sigmoid counts below `low` or above `high`, a tanh below ``-tanh`` or above ``tanh``. With
    the defaults the slope there is below 0.09 (sigmoid; 0.25 at most) and 0.19 (tanh; 1 at most).
    A relu counts as low at zero, where nothing passes, and never as high; a minGRU's candidate (v)
    below `low`, and never as high, as it is linear there. For a forget gate (f) and an update gate
    (z) high is no harm: it is how the state is kept. In a minGRU a low update gate keeps it.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        The layer.
    tape : Tape
        Of its `forward`.
    low, high, tanh : float
        The thresholds, each above 0 and below 1, `low` not above `high`.
    lengths : ndarray of integers, shape (B,), optional
        As in the forward: padding is left out.

    Returns
    -------
    list of Saturation
        Layer by layer, direction by direction, gate by gate.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, init="xavier", forget_bias=5.0, seed=0)
    >>> _, _, tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
    >>> {s.gate: s.share for s in rk.diagnose.saturation(lstm, tape)}
    {'i': 0.0, 'f': 1.0, 'g': 0.0, 'o': 0.0, 'c': 0.0}
    """
    _check_layer(layer)
    ends = _ends(low, high, tanh)
    return _saturation(layer, tape, _hiddens(layer, tape), ends, lengths)


def _ends(low: float, high: float, tanh: float) -> tuple[float, float, float]:
    """The thresholds of `saturation`, checked."""
    between = "a number above 0 and below 1"
    low, high, tanh = (
        number(name, value, between, lambda x: 0.0 < x < 1.0)
        for name, value in (("low", low), ("high", high), ("tanh", tanh))
    )
    if low > high:
        raise ValueError(f"low: expected at most high, which is {high}, got {low}")
    return low, high, tanh


def _saturation(
    layer: Layer,
    tape: _core.Tape,
    hiddens: list[Array],
    thresholds: tuple[float, float, float],
    lengths: Array | None,
) -> list[Saturation]:
    """`saturation`, of a tape whose hiddens have been read."""
    low, high, tanh = thresholds
    lengths = _lengths(lengths, *hiddens[0].shape[:2])
    hiddens, gates, cells = map(_steps_with_rows, (hiddens, tape.gates, tape.cells))
    T, H = len(hiddens[0]), layer.hidden_size
    activations = {**GATES[layer._kind], "c": "tanh"}
    ends = {
        "sigmoid": (low, high),
        "sigmoid or linear": (low, np.inf),
        "tanh": (-tanh, tanh),
        "relu": (np.finfo(layer.dtype).tiny, np.inf),
    }
    there = (np.arange(T)[:, None] < lengths) & ~_lost(layer, hiddens)
    found = []
    for index, (place, direction) in enumerate(_places(layer)):
        alive = there[index]
        counts = H * alive.sum(axis=1)
        if gates:
            values = {gate: gates[index][:, :, k] for k, gate in enumerate(GATES[layer._kind])}
        else:
            values = {"h": hiddens[place][..., _units(layer, direction)]}
        if cells:
            values["c"] = np.tanh(cells[index])
        for gate, value in values.items():
            lower, upper = ends[activations[gate]]
            below, above = value < lower, value > upper
            sums = [(near & alive[..., None]).sum(axis=(1, 2)) for near in (below, above)]
            at = [np.divide(s, counts, out=np.full(T, np.nan), where=counts > 0) for s in sums]
            total = float(counts.sum())
            share = float(sum(sums).sum()) / total if total else np.nan
            mean = float(value[alive].mean(dtype=np.float64)) if total else np.nan
            found.append(Saturation(place, direction, gate, at[0], at[1], share, mean))
    return found


# --------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Flow:
    """What becomes of a gradient on its way back in time through one layer and direction.

    Attributes
    ----------
    layer, direction : int
        Which; direction 1 runs backward in time, and its gradients forward.
    verdict : str
        ``vanishes``, ``explodes`` or ``flows``; ``not finite`` if, before either, the gradient
        became nan or infinite, or a value of this layer or of a layer above it was nan; ``zero``
        if no gradient arrived; ``unknown`` if there was no step to see it by.
    steps : int
        After how many steps back that was seen; for ``flows`` how many were seen.
    rate : float
        The factor per step: the median slope between pairs of points of ``log(curve)`` (Theil and
        Sen's fit); nan if there are not two finite ones.
    curve : ndarray, shape (1 + steps seen,)
        The norm by steps back, relative to where the gradient came in: the median over rows.
    spectrum : list of Block
        Of its recurrent matrices.
    saturation : list of Saturation
        Of its gates.
    kept : float or None
        The mean share of its state that a step keeps: the mean of f (LSTM), of z (GRU) or of 1 - z
        (MinGRU). None for an `RNN`, which has no such gate.
    clipped : float
        Share of the elements of dL/da that `Clip.step_value` limited, where a gradient was.
    scaled : float
        Share of the steps whose gradient `Clip.step_norm` scaled, where a gradient was.
    """

    layer: int
    direction: int
    verdict: str
    steps: int
    rate: float
    curve: Array
    spectrum: list[Block]
    saturation: list[Saturation]
    kept: float | None
    clipped: float
    scaled: float


@dataclass(frozen=True)
class Report:
    """What `report` found; ``str`` says it in words.

    Attributes
    ----------
    flows : list of Flow
        Layer by layer, direction by direction.
    norm, scale, finite
        Of the parameters' gradients, as in `Gradients`.
    vanished, exploded : float
        The thresholds.
    probed : bool
        Whether the gradients are those of a random vector, as none were given.
    """

    flows: list[Flow]
    norm: float
    scale: float
    finite: bool
    vanished: float
    exploded: float
    probed: bool

    def __str__(self) -> str:
        many = len(self.flows) > 1
        lines = []
        for flow in self.flows:
            where = _place_name(flow.layer, flow.direction)
            lines.append((f"{where}: gradients " if many else "Gradients ") + self._said(flow))
            matrices = ", ".join(
                f"{b.gate} {b.radius:.3g} / {b.singular:.3g}" for b in flow.spectrum
            )
            lines.append(f"  spectral radius / largest singular value: {matrices or 'no matrix'}")
            saturated = ", ".join(f"{s.gate} {s.share:.0%}" for s in flow.saturation)
            lines.append(f"  near their ends: {saturated}")
            if flow.kept is not None:
                lines.append(f"  a step keeps {flow.kept:.3g} of its state on average")
            lines.append(
                f"  step_norm scaled {flow.scaled:.0%} of the steps, "
                f"step_value limited {flow.clipped:.0%} of dL/da"
            )
        if self.probed:
            lines.append("seen by a random gradient at the final h")
            return "\n".join(lines)
        scaled = f"scaled by {self.scale:.3g}" if self.scale < 1.0 else "not scaled"
        finite = "" if self.finite else "; not all of them are finite"
        lines.append(f"parameters' gradients: norm {self.norm:.3g}, {scaled}{finite}")
        return "\n".join(lines)

    def _said(self, flow: Flow) -> str:
        seen = len(flow.curve) - 1
        pace = f" (x {flow.rate:.3g} a step)"
        if flow.verdict == "vanishes":
            return f"vanish: below {self.vanished:.3g} of the norm {_after(flow.steps)} back{pace}"
        if flow.verdict == "explodes":
            return f"explode: above {self.exploded:.3g} times {_after(flow.steps)} back{pace}"
        if flow.verdict == "flows":
            return f"flow: x {flow.curve[-1]:.3g} over {_steps(seen)} back{pace}"
        if flow.verdict == "not finite":
            return f"are not finite: nan or infinity {_after(flow.steps)} back"
        if flow.verdict == "zero":
            return "are zero: none arrived"
        return "can't be judged: there was no step back to see them by"


@_untrapped
def report(
    layer: Layer,
    tape: _core.Tape,
    grads: Gradients | None = None,
    *,
    vanished: float = 0.01,
    exploded: float = 100.0,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
    lengths: Array | None = None,
    seed: int = 0,
) -> Report:
    """Say whether gradients vanish, explode or flow on their way back in time, and what shows why.

    What is measured: each step's growth, which is the norm of what the step hands back (before
    `Clip.step_norm` acts) over the norm of what it got, and the product of these over the steps
    back; the median over rows. The norm alone would not do, as each step may add a dL/dy of its
    own. If the gradient comes in at one step only, the product is the norm itself, relative to
    where it came in. If each step adds some, growth is that of the sum there: a fresh gradient
    stands in no particular direction and may shrink at first where an old one does not, so the
    flow looks worse than it is. Without `grads` that can't be: a random unit vector at the final
    h of the last layer is sent back, and nothing else. Layers below then get gradients at each
    step from above.

    `Clip.step_value` acts inside a step and so on its growth. For an LSTM the norm is that of h and
    c together; a gradient given for the final c is not in a trace, so the first step back is left
    out. A reset hands nothing back: the gradient counts as vanished there.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        The layer.
    tape : Tape
        Of its `forward`.
    grads : Gradients, optional
        Of ``layer.backward(tape, ..., trace=True)``.
    vanished, exploded : float
        Relative norms at which a gradient counts as vanished (above 0, below 1) and exploded
        (above 1). What is reached first is the verdict.
    low, high, tanh, lengths
        As in `saturation`.
    seed : int
        Of the random gradient.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(1, 8, init="orthogonal", seed=0)
    >>> rnn.params["weight_hh_l0"] *= np.float32(0.5)
    >>> _, _, tape = rnn.forward(np.zeros((50, 2, 1), np.float32))
    >>> print(rk.diagnose.report(rnn, tape))
    Gradients vanish: below 0.01 of the norm after 7 steps back (x 0.5 a step)
      spectral radius / largest singular value: h 0.5 / 0.5
      near their ends: h 0%
      step_norm scaled 0% of the steps, step_value limited 0% of dL/da
    seen by a random gradient at the final h
    """
    _check_layer(layer)
    vanished = number("vanished", vanished, "a number above 0 and below 1", lambda x: 0.0 < x < 1.0)
    exploded = number("exploded", exploded, "a finite number above 1", lambda x: x > 1.0)
    seed = integer("seed", seed, "an integer from 0 to 2**64 - 1", 0, 2**64 - 1)
    ends_of_gates = _ends(low, high, tanh)
    hiddens = _hiddens(layer, tape)
    T, B = hiddens[0].shape[:2]
    gates = _saturation(layer, tape, hiddens, ends_of_gates, lengths)
    probed = grads is None
    grads = _probe(layer, tape, B, seed) if grads is None else grads
    trace = _trace(grads)
    expected = (len(_places(layer)), T, B)
    if trace.dh.shape != expected:
        raise ValueError(f"grads: expected a trace of shape {expected}, got {trace.dh.shape}")
    ends = _lengths(lengths, T, B)
    lost = _lost_on_the_way(layer, hiddens)
    flows = []
    matrices = spectrum(layer)
    for index, (place, direction) in enumerate(_places(layer)):
        here = (place, direction)
        verdict, steps, curve = _judge(
            _logs(trace, index, direction, ends, lost[index]), vanished, exploded
        )
        there = trace.dh[index] > 0.0
        own_gates = [s for s in gates if (s.layer, s.direction) == here]
        flows.append(
            Flow(
                *here,
                verdict,
                steps,
                _rate(curve),
                curve,
                [b for b in matrices if (b.layer, b.direction) == here],
                own_gates,
                _kept(layer, own_gates),
                float(trace.clipped[index][there].mean()) if there.any() else 0.0,
                float((trace.scale[index][there] < 1.0).mean()) if there.any() else 0.0,
            )
        )
    return Report(flows, grads.norm, grads.scale, grads.finite, vanished, exploded, probed)


# -------------------------------------------------------------------------------------- pictures


@_untrapped
def plot_flow(
    layer: Layer, grads: Gradients, axes: Any = None, *, lengths: Array | None = None
) -> Any:
    """Draw the norm of dL/dh over the steps, on a log scale, a line per layer and direction.

    The line is the median over rows; zeros are not drawn, as a log scale has no place for them.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        The layer.
    grads : Gradients
        Of ``layer.backward(tape, ..., trace=True)``.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.
    lengths : ndarray of integers, shape (B,), optional
        As in the forward: padding is left out.

    Returns
    -------
    matplotlib Figure
        To be saved with ``savefig``.

    Raises
    ------
    ImportError
        If matplotlib is missing: ``pip install 'rnnkern[cli]'``.
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, num_layers=2, seed=0)
    >>> y, _, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> figure = rk.diagnose.plot_flow(gru, gru.backward(tape, np.ones_like(y), trace=True))
    >>> len(figure.axes[0].lines)
    2
    """
    dh = _padding_as_nan(layer, grads, "dh", lengths)
    figure, axes = _canvas(axes)
    for index, (place, direction) in enumerate(_places(layer)):
        axes.semilogy(_positive(_over_rows(dh[index])), label=_place_name(place, direction))
    axes.set(title="gradient of the hidden state", xlabel="step t")
    axes.set_ylabel("norm of dL/dh$_t$ (L2, median over rows)")
    return _finished(figure, axes)


@_untrapped
def plot_clips(
    layer: Layer,
    grads: Gradients,
    axes: Any = None,
    *,
    index: int = 0,
    lengths: Array | None = None,
) -> Any:
    """Draw what the step clips do: the norm before and after `step_norm`, and the shares clipped.

    The norms (medians over rows, log scale) are those of what a step hands back to the h before
    it. The shares stand on an axis of their own, at the right: of the rows that `step_norm`
    scaled, and of the elements of dL/da that `step_value` limited.

    Parameters
    ----------
    layer, grads, axes, lengths
        As in `plot_flow`.
    index : int
        Which layer and direction, counted as in a state: from 0 to L*D - 1.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As in `plot_flow`.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 5, seed=0)
    >>> y, _, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> grads = rnn.backward(tape, np.ones_like(y), clip=rk.Clip(step_norm=0.5), trace=True)
    >>> figure = rk.diagnose.plot_clips(rnn, grads)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['norm handed back (L2, median over rows)', 'share clipped']
    """
    before = _padding_as_nan(layer, grads, "dh_before", lengths)
    scale = _padding_as_nan(layer, grads, "scale", lengths)
    clipped = _padding_as_nan(layer, grads, "clipped", lengths)
    place, direction = _place_at(layer, index)
    figure, axes = _canvas(axes)
    axes.semilogy(_positive(_over_rows(before[index])), color="C3", linewidth=3, alpha=0.4,
                  label="norm before step_norm")  # fmt: skip
    after = _positive(_over_rows(before[index] * scale[index]))
    axes.semilogy(after, color="C2", label="norm after")
    acted = np.where(np.isnan(scale[index]), np.nan, scale[index] < 1.0)
    shares = axes.twinx()
    shares.plot(_over_rows(acted, np.nanmean), ":", color="0.4", label="share: step_norm, of rows")
    shares.plot(_over_rows(clipped[index], np.nanmean), "--", color="C0",
                label="share: step_value, of dL/da")  # fmt: skip
    shares.set(ylim=(-0.03, 1.03), ylabel="share clipped")
    axes.set(title=f"step clips, {_place_name(place, direction)}", xlabel="step t")
    axes.set_ylabel("norm handed back (L2, median over rows)")
    return _finished(figure, axes, shares)


@_untrapped
def plot_spectrum(layer: Layer, axes: Any = None) -> Any:
    """Draw the eigenvalues of every recurrent matrix in the complex plane, with the unit circle.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or MinGRU
        The layer.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError
        As in `plot_flow`.

    Examples
    --------
    >>> import rnnkern as rk
    >>> figure = rk.diagnose.plot_spectrum(rk.GRU(3, 5, seed=0))
    >>> len(figure.axes[0].collections)  # r, z, n
    3
    """
    blocks = spectrum(layer)
    many = len(_places(layer)) > 1
    figure, axes = _canvas(axes)
    turn = np.linspace(0.0, 2.0 * np.pi, 200)
    axes.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=1, label="unit circle")
    for block in blocks:
        where = f"{_place_name(block.layer, block.direction)}, " if many else ""
        name = f"{where}{block.gate}: radius {block.radius:.3g}"
        axes.scatter(block.eigenvalues.real, block.eigenvalues.imag, s=12, alpha=0.7, label=name)
    axes.set(title="eigenvalues of the recurrent matrices", aspect="equal")
    axes.set(xlabel="real part", ylabel="imaginary part")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - (0.1 + 0.1 * len(blocks)) * (top - bottom))  # room for the legend
    return _finished(figure, axes, loc="lower center")


@_untrapped
def plot_saturation(
    layer: Layer,
    tape: _core.Tape,
    axes: Any = None,
    *,
    index: int = 0,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
    lengths: Array | None = None,
) -> Any:
    """Draw the share of each gate's values near its ends, over the steps.

    Parameters
    ----------
    layer, tape, low, high, tanh, lengths
        As in `saturation`.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.
    index : int
        Which layer and direction, counted as in a state: from 0 to L*D - 1.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As in `plot_flow`.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, seed=0)
    >>> _, _, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
    >>> figure = rk.diagnose.plot_saturation(lstm, tape)
    >>> len(figure.axes[0].lines)  # the upper and the lower end of i, f, g, o and tanh(c)
    10
    """
    found = saturation(layer, tape, low=low, high=high, tanh=tanh, lengths=lengths)
    here = _place_at(layer, index)
    figure, axes = _canvas(axes)
    for k, one in enumerate(s for s in found if (s.layer, s.direction) == here):
        axes.plot(one.high, color=f"C{k}", label=f"{one.gate}, upper end")
        axes.plot(one.low, "--", color=f"C{k}", label=f"{one.gate}, lower end")
    axes.set(title=f"saturation, {_place_name(*here)}", xlabel="step t", ylim=(-0.03, 1.03))
    axes.set_ylabel("share of units near an end")
    return _finished(figure, axes)


# --------------------------------------------------------------------------------------- helpers


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected an RNN, LSTM, GRU or MinGRU, got {type(layer).__name__}")
    if layer.ensemble:
        raise ValueError("layer: expected a layer alone, got an ensemble (use its member(e))")


def _places(layer: Layer) -> list[tuple[int, int]]:
    """(layer, direction) in the order of states."""
    return [(l, d) for l in range(layer.num_layers) for d in range(1 + layer.bidirectional)]


def _place_at(layer: Layer, index: int) -> tuple[int, int]:
    places = _places(layer)
    last = len(places) - 1
    return places[integer("index", index, f"an integer from 0 to {last}", 0, last)]


def _place_name(layer: int, direction: int) -> str:
    return f"layer {layer}" + (", reverse" if direction else "")


def _kept(layer: Layer, gates: list[Saturation]) -> float | None:
    """The mean share of its state that a step keeps; None without a gate for it."""
    mean = {gate.gate: gate.mean for gate in gates}
    if layer._kind == "min_gru":
        return 1.0 - mean["z"]
    return mean.get("f", mean.get("z"))


def _sequence(layer: Layer, x: Any) -> tuple[Array, int, int]:
    """A view of x, whose shape the caller cannot change, its T, and the axis of the steps."""
    x = x.view() if isinstance(x, np.ndarray) else x
    if not isinstance(x, np.ndarray) or x.dtype != layer.dtype:
        got = str(x.dtype) if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"x: expected an array of dtype {layer.dtype}, got {got}")
    axis = 1 if layer.batch_first and x.ndim == 3 else 0
    if x.ndim not in (2, 3) or x.shape[-1] != layer.input_size or not x.shape[axis]:
        order = "B, T" if layer.batch_first else "T, B"
        I = layer.input_size
        expected = f"shape ({order}, {I}) or (T, {I}) with T at least 1"
        raise ValueError(f"x: expected {expected}, got {x.shape}")
    return x, x.shape[axis], axis


def _hiddens(layer: Layer, tape: Any) -> list[Array]:
    """The outputs (T, B, D*P) of each layer, of a tape that fits the layer."""
    if not isinstance(tape, _core.Tape):
        raise TypeError(f"tape: expected a Tape, got {type(tape).__name__}")
    hiddens = tape.hiddens
    width = (1 + layer.bidirectional) * layer.output_size
    fits = len(hiddens) == layer.num_layers and hiddens[0].ndim == 3  # an ensemble's have 4
    fits = fits and hiddens[0].shape[-1] == width
    count = len(GATES[layer._kind]) + (layer._kind == "gru")  # which also saves W_hn h' + b_hn
    saved = {gates.shape[2:] for gates in tape.gates}
    expected = {(count, layer.hidden_size)} if count > 1 else set()
    has_cells = len(layer._state_names) > 1
    if not (fits and saved == expected and bool(tape.cells) == has_cells):
        raise ValueError("tape: expected one of this layer's forward, got another's")
    return hiddens


def _steps_with_rows(arrays: list[Array]) -> list[Array]:
    """Arrays (T, B, ...), without steps if B is 0: an empty batch may claim any T."""
    return [a if a.shape[1] else a[:0] for a in arrays]


def _units(layer: Layer, direction: int) -> slice:
    """A direction's channels of its layer's outputs."""
    return slice(direction * layer.output_size, (direction + 1) * layer.output_size)


def _lost(layer: Layer, hiddens: list[Array]) -> Array:
    """Where a row's h is nan: (L*D, T, B)."""
    return np.stack(
        [np.isnan(hiddens[l][..., _units(layer, d)]).any(-1) for l, d in _places(layer)]
    )


def _lost_on_the_way(layer: Layer, hiddens: list[Array]) -> Array:
    """Where a row's h is nan, or one that its gradient comes from in a layer above: (L*D, T, B)."""
    lost = _lost(layer, hiddens)
    D = 1 + layer.bidirectional
    for l in range(layer.num_layers - 1)[::-1]:
        lost[l * D : (l + 1) * D] |= lost[(l + 1) * D : (l + 2) * D].any(axis=0)
    return lost


def _lengths(lengths: Any, T: int, B: int) -> Array:
    """Each row's number of steps."""
    if lengths is None:
        return np.full(B, T)
    if not isinstance(lengths, np.ndarray) or lengths.dtype.kind not in "iu":
        got = str(lengths.dtype) if isinstance(lengths, np.ndarray) else type(lengths).__name__
        raise TypeError(f"lengths: expected an array of integers, got {got}")
    own: Array = np.array(lengths)  # no other thread writes to it
    if own.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {own.shape}")
    if ((own < 0) | (own > T)).any():
        raise ValueError(f"lengths: expected values from 0 to {T}, got {own.tolist()}")
    return own


def _parts(state: State) -> list[Array]:
    return list(state) if isinstance(state, tuple) else [state]


def _state(parts: list[Array]) -> State:
    return (parts[0], parts[1]) if len(parts) == 2 else parts[0]


def _norm(parts: list[Array]) -> Array:
    """Of each row (B,): over layers, units and parts of a state; of one row a scalar ()."""
    squares = [np.square(part, dtype=np.float64).sum(axis=(0, -1)) for part in parts]
    return np.asarray(np.sqrt(sum(squares)))


def _scaled(parts: list[Array], factors: Array, dtype: np.dtype[Any]) -> list[Array]:
    return [(part * factors[..., None]).astype(dtype) for part in parts]


def _trace(grads: Any) -> Trace:
    if not isinstance(grads, Gradients):
        raise TypeError(f"grads: expected Gradients, got {type(grads).__name__}")
    if grads.trace is None:
        raise ValueError("grads: expected a trace (backward with trace=True), got none")
    return grads.trace


def _probe(layer: Layer, tape: _core.Tape, B: int, seed: int) -> Gradients:
    """The gradients of a random unit vector at the final h of the last layer."""
    D, P = 1 + layer.bidirectional, layer.output_size
    v: Array = np.zeros((layer.num_layers * D, B, P))
    drawn = np.random.default_rng(seed).normal(size=(D, B, P))
    v[-D:] = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    v = v.astype(layer.dtype)
    if B == 1:  # which may have come without the axis of rows: a backward tells
        v = v.reshape(_parts(layer.backward(tape).state)[0].shape)
    others = [np.zeros((*v.shape[:-1], layer.hidden_size), v.dtype)] * (len(layer._state_names) - 1)
    return layer.backward(tape, dstate=_state([v, *others]), trace=True)


def _logs(trace: Trace, index: int, direction: int, lengths: Array, lost: Array) -> list[Array]:
    """Logs of each step's growth, for each row, from where its gradient came in, back in time.

    nan where `lost`, (T, B), says that the step's values are.
    """

    def back_in_time(at: Array) -> Array:
        return at if direction else at[::-1]

    got, handed = back_in_time(trace.dh[index]), back_in_time(trace.dh_before[index])
    lost = back_in_time(lost)
    if trace.dc_before is not None:
        dc = back_in_time(trace.dc_before[index])
        got = np.hypot(got, np.concatenate([np.zeros_like(dc[:1]), dc[:-1]]))
        handed = np.hypot(handed, dc)
    rows = []
    for row, length in enumerate(lengths):
        there = np.flatnonzero((got[:, row] != 0.0) | lost[:, row])
        if not there.size:
            continue
        first = there[0] + (trace.dc_before is not None)
        steps = slice(first, length if direction else None)  # the reverse direction's end there
        growth = np.log(handed[steps, row]) - np.log(got[steps, row])
        growth[got[steps, row] == 0.0] = -np.inf  # nothing came this far
        growth[lost[steps, row]] = np.nan  # the gradient need not show it: relu'(nan) is 0
        rows.append(growth)
    return rows


def _judge(rows: list[Array], vanished: float, exploded: float) -> tuple[str, int, Array]:
    """Verdict, after how many steps, and the relative norm by steps back."""
    longest = max((len(row) for row in rows), default=0)
    table = np.full((len(rows), longest), np.nan)
    broken = longest  # steps before the first that is not finite
    for k, row in enumerate(rows):
        wrong = np.flatnonzero(np.isnan(row) | np.isposinf(row))
        broken = min(broken, int(wrong[0])) if wrong.size else broken
        table[k, : len(row)] = np.cumsum(row)
    median = [np.median(column[~np.isnan(column)]) for column in table.T[:broken]]
    curve = np.exp(np.concatenate([[0.0], median]))
    reached = np.flatnonzero((curve <= vanished) | (curve >= exploded))
    if reached.size:
        return ("vanishes" if curve[reached[0]] <= vanished else "explodes"), int(reached[0]), curve
    if broken < longest:
        return "not finite", broken + 1, curve
    if not longest:
        return ("unknown" if rows else "zero"), 0, curve
    return "flows", longest, curve


def _rate(curve: Array) -> float:
    """Theil and Sen's slope of log(curve), as a factor."""
    k = np.flatnonzero((curve > 0.0) & np.isfinite(curve))
    k = k[:: -(-len(k) // MOST_POINTS)]
    if len(k) < 2:
        return np.nan
    first, second = np.triu_indices(len(k), 1)
    logs = np.log(curve[k])
    return float(np.exp(np.median((logs[second] - logs[first]) / (k[second] - k[first]))))


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def _after(n: int) -> str:
    return f"after {_steps(n)}"


def _padding_as_nan(layer: Layer, grads: Gradients, name: str, lengths: Array | None) -> Array:
    """One of a trace's arrays, nan at padding."""
    _check_layer(layer)
    values: Array = getattr(_trace(grads), name)
    places = len(_places(layer))
    if values.ndim != 3 or len(values) != places:
        raise ValueError(f"grads: expected a trace of shape ({places}, T, B), got {values.shape}")
    _, T, B = values.shape
    lengths = _lengths(lengths, T, B)
    T = T if B else 0  # as in _steps_with_rows
    return np.where(np.arange(T)[:, None] < lengths, values[:, :T], np.nan)


def _over_rows(values: Array, middle: Any = np.nanmedian) -> Array:
    """(T, B) to (T,): what `middle` says of the rows that are there; nan where none is."""
    out = np.full(len(values), np.nan)
    some = ~np.isnan(values).all(axis=1)
    if some.any():
        out[some] = middle(values[some], axis=1)
    return out


def _positive(values: Array) -> Array:
    """nan for zeros: on a log scale matplotlib warns of a line that has nothing else."""
    return np.where(values > 0.0, values, np.nan)


def _canvas(axes: Any) -> tuple[Any, Any]:
    """The figure and the axes to draw on."""
    try:
        figure_of = import_module("matplotlib.figure").Figure  # no pyplot: no display, no globals
        kind = import_module("matplotlib.axes").Axes
    except ImportError as error:
        raise ImportError(f"matplotlib is missing ({error}): pip install 'rnnkern[cli]'") from error
    if axes is None:
        figure = figure_of(figsize=(7, 4.5), layout="constrained")
        return figure, figure.subplots()
    if not isinstance(axes, kind):
        raise TypeError(f"axes: expected matplotlib Axes or None, got {type(axes).__name__}")
    return axes.figure, axes


def _finished(figure: Any, axes: Any, *others: Any, loc: str = "best") -> Any:
    axes.grid(alpha=0.3)
    lines = [line for each in (axes, *others) for line in each.get_legend_handles_labels()[0]]
    axes.legend(handles=lines, fontsize="small", loc=loc)
    return figure
