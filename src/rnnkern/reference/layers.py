"""Layers and directions over a batch of sequences: forward, backward, and the clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .activations import Activation
from .bf16 import to_bf16
from .cells import CELLS, Cell, clip_value
from .types import Array, ClipLike, Parameter, State, Step, Weights

# The roles of the parameters that products read; all others act elementwise.
MATRICES = ("input_matrix", "recurrent_matrix", "recurrent_blocks", "projection_matrix")


@dataclass(frozen=True)
class Config:
    """What is computed: the cell, its options and the sizes.

    Parameters
    ----------
    cell : str
        A key of `CELLS`.
    input_size : int
        I; of RG-LRU H, in each layer.
    hidden_size : int
        H.
    num_layers : int
        L.
    bidirectional : bool
        D = 2 instead of 1.
    bias : bool
        Whether there are biases.
    residual : bool
        Whether each layer above the first adds its input, before dropout, to its output.
    proj_size : int
        P, 1 to H - 1, of a cell with a projection; otherwise 0, and P is H.
    cell_clip : float, optional
        Bound of the elements of c, > 0, of a cell that has this option; None for none.
    proj_clip : float, optional
        Bound of the elements of h, > 0, of a cell with a projection; None for none.
    activations : tuple of Activation, optional
        Those of a cell that has this option, in the order of `Cell.activated`; None for tanh, and
        for the logistic function as a gate.
    forward_clip : float, optional
        Bound of the elements of the gates' arguments, > 0, of a cell that has this option; None for
        none. ONNX's `clip`.
    peephole : bool
        Whether there are peepholes, of a cell that can have them or not.
    heads : int
        N, >= 1, a divisor of H, of a cell with heads; otherwise 1.
    exp_forget : bool
        Whether the forget gate's nonlinearity is exp, of a cell that has this option.
    zoneout : float or tuple of float
        The probability that a unit keeps its state, 0 <= p < 1, of a cell that has this option:
        one for all states, or one for each.
    recurrent_dropout : float
        The probability that a unit's candidate is dropped, 0 <= p < 1, of a cell that has this
        option.
    reverse : bool
        Whether the direction, D being 1, goes from each row's last step to its first.
    weights : str, optional
        "bf16": matrices rounded to bf16, as a layer frozen with ``weights="bf16"`` has them; None
        for the parameters themselves. `backward` is that of the rounded ones.
    compute : str, optional
        "bf16": both operands of every product rounded to bf16, in backward, too, once rounded to
        float32, as `to_bf16` does it; None for the operands themselves.

    Raises
    ------
    ValueError
        When `cell` is not a key of `CELLS`, or an option is out of range or not one
        of the cell's.

    Examples
    --------
    >>> Config("lstm", input_size=3, hidden_size=2, bidirectional=True).directions
    2
    >>> Config("lstm_projected", input_size=3, hidden_size=4, proj_size=2).output_size
    2
    """

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    residual: bool = False
    proj_size: int = 0
    cell_clip: float | None = None
    proj_clip: float | None = None
    activations: tuple[Activation, ...] | None = None
    forward_clip: float | None = None
    peephole: bool = False
    heads: int = 1
    exp_forget: bool = False
    zoneout: float | tuple[float, ...] = 0.0
    recurrent_dropout: float = 0.0
    reverse: bool = False
    weights: str | None = None
    compute: str | None = None

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {list(CELLS)}, got {self.cell!r}")
        cell, H = CELLS[self.cell], self.hidden_size
        if self.reverse and self.bidirectional:
            raise ValueError("reverse: expected False with bidirectional, got True")
        for name in ("weights", "compute"):
            if getattr(self, name) not in (None, "bf16"):
                raise ValueError(f"{name}: expected None or 'bf16', got {getattr(self, name)!r}")
        if self.proj_size not in (range(1, H) if cell.projects else (0,)):
            size = f"an integer >= 1 and < hidden_size = {H}" if cell.projects else "0"
            raise ValueError(f"proj_size: expected {size} for {self.cell}, got {self.proj_size!r}")
        for name in ("cell_clip", "proj_clip", "forward_clip"):
            bound = getattr(self, name)
            if bound is not None and not (name in cell.options and bound > 0):
                expected = "None or a number > 0" if name in cell.options else "None"
                raise ValueError(f"{name}: expected {expected} for {self.cell}, got {bound!r}")
        acts, of = self.activations, cell.activated
        if acts is not None and not (of and len(acts) == len(of)):
            expected = f"None or a tuple of {len(of)}, of {'; '.join(of)}," if of else "None"
            raise ValueError(f"activations: expected {expected} for {self.cell}, got {acts!r}")
        heads = range(1, H + 1) if "heads" in cell.options else (1,)
        if self.heads not in heads or H % self.heads:
            expected = f"a divisor of hidden_size = {H}" if len(heads) != 1 else "1"
            raise ValueError(f"heads: expected {expected} for {self.cell}, got {self.heads!r}")
        if self.exp_forget and "exp_forget" not in cell.options:
            raise ValueError(f"exp_forget: expected False for {self.cell}, got {self.exp_forget!r}")
        if self.peephole and not any(p.needs == "peephole" for p in cell.parameters):
            raise ValueError(f"peephole: expected False for {self.cell}, got {self.peephole!r}")
        for name in ("zoneout", "recurrent_dropout"):
            given = getattr(self, name)
            each = given if isinstance(given, tuple) and name == "zoneout" else (given,)
            fits = len(each) in (1, len(cell.states)) and all(0 <= p < 1 for p in each)
            if not (fits if name in cell.options else given == 0):
                expected = "a number from 0 to below 1" if name in cell.options else "0"
                if name in cell.options and name == "zoneout" and len(cell.states) > 1:
                    expected += f", or {len(cell.states)} of them,"
                raise ValueError(f"{name}: expected {expected} for {self.cell}, got {given!r}")

        if cell.inputs_are_units and self.input_size != H:
            size = f"hidden_size = {H}"
            raise ValueError(f"input_size: expected {size} for {self.cell}, got {self.input_size}")
        if cell.inputs_are_units and self.bidirectional and self.num_layers > 1:
            stack = f"{self.cell} of {self.num_layers} layers"
            raise ValueError(f"bidirectional: expected False for {stack}, got True")

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """P, the width of h."""
        return self.proj_size or self.hidden_size


@dataclass(frozen=True)
class Tape:
    """What `forward` saves for `backward`."""

    x_shape: tuple[int, int, int]  #: (T, B, I)
    masks: list[Array] | None  #: L-1 arrays [T, B, D*P]
    steps: list[list[Step]]  #: [L*D][T], layer-major, then direction; in the order they were run
    noise: list[dict[str, Array]] | None  #: [L*D], by the names of `Cell.noise`: [T, B, H] each


class Trace(NamedTuple):
    """Observations of `backward`: [L*D, T, B] each; norms are L2."""

    dh: Array  #: norm of dL/dh_t, complete
    dh_before: Array  #: norm of the gradient that step t passes to h_prev, before `step_norm`
    dc_before: Array  #: the same for c_prev; zeros for a cell without c
    scale: Array  #: the factor that `step_norm` applied
    clipped: Array  #: share of the elements of da that `step_value` limited


@dataclass(frozen=True)
class Gradients:
    """What `backward` returns."""

    params: dict[str, Array]  #: PyTorch's names, order and shapes
    x: Array  #: [T, B, I]
    state: Array | State  #: as the state: h [L*D, B, P], for LSTM (h, c [L*D, B, H])
    norm: float  #: joint L2 norm of params, after the value clip, before the norm clip
    finite: bool  #: whether all of params was finite, before the value clip
    scale: float  #: the factor that the norm clip applied, 1.0 if none
    trace: Trace
    flow_penalty: float  #: Omega, without its weight; 0 if it was not asked for


@dataclass(frozen=True)
class _NoClip:
    step_value: None = None
    step_norm: None = None
    value: None = None
    max_norm: None = None


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter, in PyTorch's names and order.

    Parameters
    ----------
    config : Config
        The cell and the sizes.

    Returns
    -------
    dict of str to tuple of int
        ``{name}_l{k}{_reverse}`` for each row of the cell's table, without the biases and peepholes
        if there are none: direction by direction, layer by layer.

    Examples
    --------
    >>> parameter_shapes(Config("gru", input_size=5, hidden_size=2, bias=False))
    {'weight_ih_l0': (6, 5), 'weight_hh_l0': (6, 2)}
    """
    return {
        name: shape
        for _, p, name, shape in _each_parameter(config)
        if not p.needs or getattr(config, p.needs)
    }


def forward(
    config: Config,
    params: Mapping[str, npt.ArrayLike],
    x: npt.ArrayLike,
    state: npt.ArrayLike | tuple[npt.ArrayLike, ...] | None = None,
    lengths: npt.ArrayLike | None = None,
    masks: Sequence[npt.ArrayLike] | None = None,
    resets: npt.ArrayLike | None = None,
    noise: Sequence[Mapping[str, npt.ArrayLike]] | None = None,
    mask: npt.ArrayLike | None = None,
) -> tuple[Array, Array | State, Tape]:
    """Run the layers over a batch of sequences.

    A row is run on its own steps only, those t < length or where `mask` is True, so that what lies
    behind or between them cannot matter.

    Parameters
    ----------
    config : Config
        The cell and the sizes.
    params : mapping of str to array
        As `parameter_shapes` says.
    x : array (T, B, I)
        The inputs.
    state : array (L*D, B, P), for LSTM the tuple (h, c), c (L*D, B, H), optional
        The initial state, layer-major, then direction; None is a fresh one: zeros, but m of sLSTM
        -inf.
    lengths : array of int (B,), optional
        Steps of each row, 0 <= length <= T, in any order; None is T for each.
    masks : sequence of L-1 arrays (T, B, D*P), optional
        Dropout masks: factors, 0 or 1 / (1 - p), on what layer l hands to layer l + 1.
    resets : array of bool (T, B), optional
        Where a new sequence begins in a row: the steps before it and those from it on do not see
        each other's state, which starts from a fresh one there, in both directions. Those behind
        a row's length have no effect; those where `mask` is False have.
    noise : sequence of L*D mappings of str to array (T, B, H), optional
        What training draws, by the names of `Cell.noise`; None is its mean, as in an evaluation.
    mask : array of bool (T, B), optional
        Each row's real steps, instead of `lengths`: at the others the state stays as it is.

    Returns
    -------
    y : array (T, B, D*P)
        The last layer's h, forward then reverse (with `residual`, plus its input, above the first
        layer); zero where a row is not run.
    state : array (L*D, B, P), for LSTM the tuple (h, c), c (L*D, B, H)
        The state after each row's own last step.
    tape : Tape
        For `backward`.

    Raises
    ------
    ValueError
        When an argument's shape, names or range are not those above.

    Examples
    --------
    >>> config = Config("rnn_relu", input_size=1, hidden_size=1, bias=False)
    >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[2.0]]}
    >>> y, h, tape = forward(config, params, np.ones((3, 1, 1)))
    >>> y.ravel(), h.ravel()
    (array([1., 3., 7.]), array([7.]))
    """
    cell, P, D = _cell(config), config.output_size, config.directions
    x = np.asarray(x)
    if x.ndim != 3:
        raise ValueError(f"x: expected shape (T, B, {config.input_size}), got {x.shape}")
    T, B, _ = x.shape
    x = _checked("x", x, (T, B, config.input_size))
    real = _real_steps(lengths, mask, T, B)
    starts = np.zeros((T + 1, B), dtype=bool)
    if resets is not None:
        starts[:T] = _checked("resets", resets, (T, B)).astype(bool)
    if mask is None:
        starts[:T] &= real
    factors = None if masks is None else _checked_masks(config, masks, T, B)
    drawn = None if noise is None else _checked_noise(config, noise, T, B)
    weights = _weights(config, params)
    fresh = [s.fresh for s in cell.states]
    states = _states(config, "state", state, B, fresh)
    steps: list[list[Step]] = []

    y = x
    for layer in range(config.num_layers):
        below = y
        x = y * factors[layer - 1] if factors is not None and layer > 0 else y
        y = np.zeros((T, B, D * P))
        for d in range(D):
            k = layer * D + d
            steps.append([])
            begins = np.zeros(B, dtype=bool)  # where a reset came since a row's step before
            back = d == 1 or config.reverse
            for t in reversed(range(T)) if back else range(T):
                rows = real[t]
                # The reverse direction comes from step t + 1, which may begin another sequence.
                cut = starts[t + 1] if back else starts[t]
                for s, v in zip(states, fresh, strict=True):
                    s[k, cut] = v
                begins = begins | cut
                kept = ~begins[rows]
                begins = begins & ~rows
                prev = tuple(s[k, rows] for s in states)
                now = _with_noise(cell, drawn, k, t, rows)
                new, gates = now.forward_step(x[t, rows], prev, weights[k], kept)
                y[t, rows, d * P : (d + 1) * P] = new[0]
                for s, s_new in zip(states, new, strict=True):
                    s[k, rows] = s_new
                steps[k].append(Step(t, rows, cut, kept, x[t, rows], prev, gates, new))
        if config.residual and layer > 0:
            y = y + below * real[:, :, None]
    return y, _as_given(states), Tape((T, B, config.input_size), factors, steps, drawn)


def backward(
    config: Config,
    params: Mapping[str, npt.ArrayLike],
    tape: Tape,
    dy: npt.ArrayLike | None = None,
    dstate: npt.ArrayLike | tuple[npt.ArrayLike, ...] | None = None,
    clip: ClipLike | None = None,
    flow_penalty: float = 0.0,
) -> Gradients:
    """Backpropagate through time, with the clips.

    Parameters
    ----------
    config, params
        As they were given to `forward`.
    tape : Tape
        From `forward`.
    dy : array (T, B, D*P), optional
        The gradient of the loss with respect to y; None is zeros.
    dstate : array (L*D, B, P), for LSTM the tuple (h, c), c (L*D, B, H), optional
        The gradient of the loss with respect to the final state; None is zeros.
    clip : ClipLike, optional
        What to clip; None is nothing.
    flow_penalty : float
        The weight w of Omega = 1/B sum (norm(u) / norm(v) - 1)^2, Pascanu et al. 2013, arXiv
        1211.5063 eq. 9, over layers, directions, steps and rows where neither is zero: v = dL/dh,
        complete, and u what the step hands back to h_prev, before `step_norm`. W_hh gets w times
        Omega's immediate derivative, v and da held fixed (eq. 10). Defined for the RNNs and the
        reset-after GRU.

    Returns
    -------
    Gradients
        Zero for x where a row is not run; a row without a step hands its dstate through, but for
        states that no gradient flows through, such as m of sLSTM: theirs is zero.

    Raises
    ------
    ValueError
        When an argument's shape or names are not those above, or `flow_penalty` is not 0 where it
        is not defined.

    Examples
    --------
    >>> config = Config("rnn_relu", input_size=1, hidden_size=1, bias=False)
    >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[2.0]]}
    >>> y, h, tape = forward(config, params, np.ones((3, 1, 1)))
    >>> grads = backward(config, params, tape, dstate=np.ones((1, 1, 1)))
    >>> grads.x.ravel(), grads.state.item(), grads.params["weight_ih_l0"].item()
    (array([4., 2., 1.]), 8.0, 7.0)
    """
    cell, P, D = _cell(config), config.output_size, config.directions
    if flow_penalty and not cell.has_flow_penalty:
        raise ValueError(f"flow_penalty: expected 0 for {config.cell}, got {flow_penalty!r}")
    T, B, _ = tape.x_shape
    clip = _NoClip() if clip is None else clip
    weights = _weights(config, params)
    d_weights = [{name: np.zeros_like(v) for name, v in w.items()} for w in weights]
    d_states = _states(config, "dstate", dstate, B, [0.0] * len(cell.states))
    for d_state, info in zip(d_states, cell.states, strict=True):
        if not info.flows:
            d_state[...] = 0.0

    trace = Trace(*(np.zeros((len(tape.steps), T, B)) for _ in Trace._fields))
    trace.scale[:] = 1.0
    omega = 0.0
    d_out = np.zeros((T, B, D * P)) if dy is None else _checked("dy", dy, (T, B, D * P))
    for layer in reversed(range(config.num_layers)):
        dx = np.zeros((T, B, _sizes(config, layer)["I"]))
        for d in range(D):
            k = layer * D + d
            for step in reversed(tape.steps[k]):
                t, rows = step.t, step.rows
                dh, *dc = (s[k, rows] for s in d_states)
                dh = dh + d_out[t, rows, d * P : (d + 1) * P]
                now = _with_noise(cell, tape.noise, k, t, rows)
                back = now.backward_step((dh, *dc), step, weights[k], clip.step_value)
                u, *dc_prev = (np.where(step.kept[:, None], d, 0.0) for d in back.prev)
                factors = _row_factors(u, clip.step_norm)
                for s, s_prev in zip(d_states, (u * factors[:, None], *dc_prev), strict=True):
                    s[k, rows] = s_prev
                    s[k, step.cut] = 0.0
                dx[t, rows] += back.x
                for name, d_w in back.weights.items():
                    d_weights[k][name] += d_w
                if flow_penalty:
                    assert back.da_h is not None
                    terms, factor = _flow(dh, u, B)
                    omega += float(terms.sum())
                    (h_prev, *_), of = step.prev, now.operand
                    flow = of(h_prev + flow_penalty * factor * u) - of(h_prev)
                    d_weights[k]["weight_hh"] += of(back.da_h).T @ flow

                limited = np.abs(back.da) >= (clip.step_value or np.inf)
                for to, seen in (
                    (trace.dh, _row_norms(dh)),
                    (trace.dh_before, _row_norms(u)),
                    (trace.dc_before, _row_norms(dc_prev[0]) if dc_prev else 0.0),
                    (trace.scale, factors),
                    (trace.clipped, limited.mean(axis=1)),
                ):
                    to[k, t, rows] = seen
        if tape.masks is not None and layer > 0:
            dx = dx * tape.masks[layer - 1]
        if config.residual and layer > 0:
            dx = dx + d_out * _alive(tape.steps[layer * D], T, B)
        d_out = dx

    grads = _named(config, d_weights)
    finite = all(bool(np.isfinite(g).all()) for g in grads.values())
    grads = {name: clip_value(g, clip.value) for name, g in grads.items()}
    norm = joint_norm(grads.values())
    scale = 1.0 if clip.max_norm is None else clip_factor(norm, clip.max_norm)
    grads = {name: scale * g for name, g in grads.items()}
    state = _as_given(d_states)
    return Gradients(grads, d_out, state, norm, finite, scale, trace, omega)


def joint_norm(arrays: Iterable[npt.ArrayLike]) -> float:
    """Return the L2 norm of all elements of all arrays.

    Parameters
    ----------
    arrays : iterable of array
        Of any shapes.

    Returns
    -------
    float
        0.0 for none; not finite if an element is not.

    Examples
    --------
    >>> joint_norm([[3.0], [[4.0, 12.0]]])
    13.0
    """
    return float(np.sqrt(sum(np.sum(np.asarray(a, dtype=np.float64) ** 2) for a in arrays)))


def clip_factor(norm: float, c: float) -> float:
    """Return the factor that brings a norm to at most c.

    Pascanu et al. 2013, arXiv 1211.5063 algorithm 1, with PyTorch's constant in the divisor.

    Parameters
    ----------
    norm : float
        The norm before.
    c : float
        The bound, > 0.

    Returns
    -------
    float
        min(1, c / (norm + 1e-6)); 1 for a norm that is not finite, which no factor can mend.

    Examples
    --------
    >>> clip_factor(0.5, 1.0), round(clip_factor(4.0, 1.0), 6)
    (1.0, 0.25)
    """
    return min(1.0, c / (norm + 1e-6)) if np.isfinite(norm) else 1.0


def _row_norms(d: Array) -> Array:
    norms: Array = np.linalg.norm(d, axis=1)
    return norms


def _row_factors(d: Array, c: float | None) -> Array:
    if c is None:
        return np.ones(len(d))
    factors: Array = c / np.maximum(_row_norms(d), c)  # min(1, c / norm), safe at norm 0
    return factors


def _flow(v: Array, u: Array, B: int) -> tuple[Array, Array]:
    """Omega's terms (n,) of a step, and the factors (n, 1) of da_h^T u in its derivative."""
    norm_v, norm_u = _row_norms(v), _row_norms(u)
    flows = (norm_v > 0) & (norm_u > 0)
    growth = np.divide(norm_u, norm_v, out=np.ones_like(norm_v), where=flows)
    factor = np.zeros_like(norm_v)
    factor[flows] = 2 / B * (growth[flows] - 1) / norm_u[flows] / norm_v[flows]
    return (growth - 1) ** 2 / B, factor[:, None]


def _alive(steps: list[Step], T: int, B: int) -> Array:
    alive = np.zeros((T, B, 1))
    for step in steps:
        alive[step.t, step.rows] = 1.0
    return alive


def _cell(config: Config) -> Cell:
    """The cell, with the values of its options."""
    cell = CELLS[config.cell]
    given = {name: getattr(config, name) for name in cell.options}
    if config.compute:
        given["operand"] = _as_bf16
    return replace(cell, **{name: value for name, value in given.items() if value is not None})


def _as_bf16(v: Array) -> Array:
    return to_bf16(v).astype(np.float64)


def _with_noise(
    cell: Cell, noise: list[dict[str, Array]] | None, k: int, t: int, rows: npt.NDArray[np.bool_]
) -> Cell:
    """The cell at a step, which sees the noise of its rows."""
    if noise is None or not cell.noise:
        return cell
    drawn = {name: values[t, rows] for name, values in noise[k].items()}
    return replace(cell, drawn=drawn)  # type: ignore[call-arg]


def _sizes(config: Config, layer: int) -> dict[str, int]:
    """What the letters of the cell's tables stand for in a layer."""
    H, P = config.hidden_size, config.output_size
    I = config.input_size if layer == 0 else config.directions * P
    cell = CELLS[config.cell]
    vectors = cell.vectors * H
    return {"G*H": cell.gates * H, "V*H": vectors, "H": H, "P": P, "P/N": P // config.heads, "I": I}


def _each_parameter(config: Config) -> Iterator[tuple[int, Parameter, str, tuple[int, ...]]]:
    """Each k = layer * D + direction, table row, name and shape; also of those that it lacks."""
    for layer in range(config.num_layers):
        sizes = _sizes(config, layer)
        for d, suffix in enumerate(("", "_reverse")[: config.directions]):
            for p in CELLS[config.cell].parameters:
                shape = tuple(sizes[letter] for letter in p.shape)
                yield layer * config.directions + d, p, f"{p.name}_l{layer}{suffix}", shape


def _weights(config: Config, params: Mapping[str, npt.ArrayLike]) -> list[Weights]:
    shapes = parameter_shapes(config)
    if set(params) != set(shapes):
        raise ValueError(f"params: expected the names {list(shapes)}, got {list(params)}")
    weights: list[Weights] = [{} for _ in range(config.num_layers * config.directions)]
    for k, p, name, shape in _each_parameter(config):
        given = name in shapes
        array = _checked(name, params[name], shape) if given else np.zeros(shape)
        is_rounded = config.weights and p.role in MATRICES
        weights[k][p.name] = _as_bf16(array) if is_rounded else array
    return weights


def _named(config: Config, weights: list[Weights]) -> dict[str, Array]:
    shapes = parameter_shapes(config)
    return {name: weights[k][p.name] for k, p, name, _ in _each_parameter(config) if name in shapes}


def _states(config: Config, name: str, state: Any, B: int, fresh: Sequence[float]) -> State:
    table, sizes = CELLS[config.cell].states, _sizes(config, 0)
    k = config.num_layers * config.directions
    shapes = [(k, B, sizes[s.width]) for s in table]
    if state is None:
        return tuple(np.full(shape, v) for shape, v in zip(shapes, fresh, strict=True))
    if len(table) == 1:
        return (_checked(name, state, shapes[0]),)
    if not (isinstance(state, tuple) and len(state) == len(table)):
        got = f"{len(state)} arrays" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(
            f"{name}: expected a tuple ({', '.join(s.name for s in table)}), got {got}"
        )
    each = zip(table, state, shapes, strict=True)
    return tuple(_checked(f"{name} {s.name}", array, shape) for s, array, shape in each)


def _as_given(states: State) -> Array | State:
    return states[0] if len(states) == 1 else states


def _checked(name: str, array: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    own = np.array(array, dtype=np.float64)  # a copy: the tape must not see later writes
    if own.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {own.shape}")
    return own


def _real_steps(
    lengths: npt.ArrayLike | None, mask: npt.ArrayLike | None, T: int, B: int
) -> npt.NDArray[np.bool_]:
    """Where each row has a step (T, B)."""
    if mask is None:
        steps: npt.NDArray[np.bool_] = np.arange(T)[:, None] < _checked_lengths(lengths, T, B)
        return steps
    if lengths is not None:
        raise ValueError("mask: expected None with lengths, got an array")
    return _checked("mask", mask, (T, B)).astype(bool)


def _checked_lengths(lengths: npt.ArrayLike | None, T: int, B: int) -> npt.NDArray[Any]:
    ends = np.full(B, T) if lengths is None else np.asarray(lengths)
    if ends.shape != (B,) or np.any((ends < 0) | (ends > T) | (ends != np.floor(ends))):
        raise ValueError(f"lengths: expected {B} integers from 0 to {T}, got {ends}")
    return ends


def _checked_masks(config: Config, masks: Sequence[Any], T: int, B: int) -> list[Array]:
    shape = (T, B, config.directions * config.output_size)
    if len(masks) != config.num_layers - 1:
        raise ValueError(f"masks: expected {config.num_layers - 1} arrays, got {len(masks)}")
    return [_checked(f"masks[{i}]", mask, shape) for i, mask in enumerate(masks)]


def _checked_noise(
    config: Config, noise: Sequence[Mapping[str, npt.ArrayLike]], T: int, B: int
) -> list[dict[str, Array]]:
    names, count = CELLS[config.cell].noise, config.num_layers * config.directions
    if len(noise) != count:
        raise ValueError(f"noise: expected {count} mappings, got {len(noise)}")
    for i, drawn in enumerate(noise):
        if set(drawn) != set(names):
            raise ValueError(f"noise[{i}]: expected the names {list(names)}, got {list(drawn)}")
    shape = (T, B, config.hidden_size)
    return [
        {name: _checked(f"noise[{i}][{name!r}]", drawn[name], shape) for name in names}
        for i, drawn in enumerate(noise)
    ]
