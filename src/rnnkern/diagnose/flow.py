"""Whether gradients vanish, explode or flow on their way back in time, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import integer, number
from ..docstrings import complete
from ..layers import Gradients, Trace
from ..stream import join_state
from ..tape import Tape
from .common import (
    Array,
    Layer,
    cell_of,
    check_layer,
    hiddens_of,
    lost_rows,
    parts_of,
    place_name,
    places_of,
    steps_with_rows,
    trace_of,
    untrapped,
)
from .gates import Saturation, saturation, saturation_of, thresholds_of
from .spectra import Block, spectrum

__all__ = ["Flow", "Report", "report"]

MOST_POINTS = 500  # of a curve whose slopes are compared pair by pair


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
        The mean share of its state that a step keeps: the mean of f (LSTM; of an sLSTM relative to
        exp(m)), of z (GRU) or of 1 - z (MinGRU). None for an `RNN`, which has no such gate.
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
            where = place_name(flow.layer, flow.direction)
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


@untrapped
def report(
    layer: Layer,
    tape: Tape,
    grads: Gradients | None = None,
    *,
    vanished: float = 0.01,
    exploded: float = 100.0,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
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

    `Clip.step_value` acts inside a step and so on its growth. For an LSTM or sLSTM the norm is that
    of h and c together; a gradient given for the final c is not in a trace, so the first step back
    is left out. A reset hands nothing back: the gradient counts as vanished there.

    Parameters
    ----------
    layer : recurrent layer
        An `RNN`, for example.
    tape : Tape
        Of the layer's `forward`.
    grads : Gradients, optional
        Of ``layer.backward(tape, ..., trace=True)``.
    vanished, exploded : float
        Relative norms at which a gradient counts as vanished (above 0, below 1) and exploded
        (above 1). What is reached first is the verdict.
    low, high, tanh
        As in `saturation`.
    seed : int
        Of the random gradient.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

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
    check_layer(layer)
    vanished = number("vanished", vanished, "a number above 0 and below 1", lambda x: 0.0 < x < 1.0)
    exploded = number("exploded", exploded, "a finite number above 1", lambda x: x > 1.0)
    seed = integer("seed", seed, "an integer from 0 to 2**64 - 1", 0, 2**64 - 1)
    ends_of_gates = thresholds_of(low, high, tanh)
    hiddens = hiddens_of(layer, tape)
    T, B = hiddens[0].shape[:2]
    gates = saturation_of(layer, tape, hiddens, ends_of_gates)
    probed = grads is None
    grads = _probe(layer, tape, B, seed) if grads is None else grads
    trace = trace_of(grads)
    expected = (len(places_of(layer)), T, B)
    if trace.dh.shape != expected:
        raise ValueError(f"grads: expected a trace of shape {expected}, got {trace.dh.shape}")
    (real,) = steps_with_rows([tape.real_steps])
    lost = _lost_on_the_way(layer, hiddens)
    flows = []
    matrices = spectrum(layer)
    for index, (place, direction) in enumerate(places_of(layer)):
        here = (place, direction)
        verdict, steps, curve = _judge(
            _logs(trace, index, bool(direction) or layer.reverse, real, lost[index]),
            vanished,
            exploded,
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


def _kept(layer: Layer, gates: list[Saturation]) -> float | None:
    """The mean share of its state that a step keeps; None without a gate for it."""
    mean = {gate.gate: gate.mean for gate in gates}
    for gate in cell_of(layer).gate_table:
        if gate.role:
            return mean[gate.name] if gate.role == "keep" else 1.0 - mean[gate.name]
    return None


def _lost_on_the_way(layer: Layer, hiddens: list[Array]) -> Array:
    """Where a row's h is nan, or one that its gradient comes from in a layer above: (L*D, T, B)."""
    lost = lost_rows(layer, hiddens)
    D = 1 + layer.bidirectional
    for l in range(layer.num_layers - 1)[::-1]:
        lost[l * D : (l + 1) * D] |= lost[(l + 1) * D : (l + 2) * D].any(axis=0)
    return lost


def _probe(layer: Layer, tape: Tape, B: int, seed: int) -> Gradients:
    """The gradients of a random unit vector at the final h of the last layer."""
    D, P = 1 + layer.bidirectional, layer.output_size
    v: Array = np.zeros((layer.num_layers * D, B, P))
    drawn = np.random.default_rng(seed).normal(size=(D, B, P))
    v[-D:] = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    v = v.astype(layer.dtype)
    if B == 1:  # which may have come without the axis of rows: a backward tells
        v = v.reshape(parts_of(layer.backward(tape).state)[0].shape)
    others = [np.zeros((*v.shape[:-1], layer.hidden_size), v.dtype)] * (len(layer._state_names) - 1)
    return layer.backward(tape, dstate=join_state((v, *others)), trace=True)


def _logs(trace: Trace, index: int, reverse: bool, real: Array, lost: Array) -> list[Array]:
    """Logs of each step's growth, for each row, from where its gradient came in, back in time.

    nan where `lost`, (T, B), says that the step's values are.
    """

    rows = []
    for row in range(real.shape[1]):
        steps = np.flatnonzero(real[:, row])
        here = (steps if reverse else steps[::-1], row)  # back in time
        got, handed, gone = trace.dh[index][here], trace.dh_before[index][here], lost[here]
        if trace.dc_before is not None:
            dc = trace.dc_before[index][here]
            got = np.hypot(got, np.concatenate([np.zeros_like(dc[:1]), dc[:-1]]))
            handed = np.hypot(handed, dc)
        there = np.flatnonzero((got != 0.0) | gone)
        if not there.size:
            continue
        seen = slice(there[0] + (trace.dc_before is not None), None)
        growth = np.log(handed[seen]) - np.log(got[seen])
        growth[got[seen] == 0.0] = -np.inf  # nothing came this far
        growth[gone[seen]] = np.nan  # the gradient need not show it: relu'(nan) is 0
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


complete(report, of={"saturation": saturation})
