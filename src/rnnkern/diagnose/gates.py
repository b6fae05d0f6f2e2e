"""How much of each gate is near its ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..checks import number
from ..tape import Tape
from .common import (
    Array,
    Layer,
    cell_of,
    check_layer,
    hiddens_of,
    lost_rows,
    places_of,
    steps_with_rows,
    units_of,
    untrapped,
    vectors_of,
)

__all__ = ["Saturation", "saturation", "saturation_of", "thresholds_of"]


class Saturation(NamedTuple):
    """How much of one gate is near its ends, over time.

    Attributes
    ----------
    layer, direction : int
        Which; direction 1 runs backward in time.
    gate : str
        As in `Block`; also ``c``, which is tanh(c) of an LSTM, of c normalized with layer norm.
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


@untrapped
def saturation(
    layer: Layer,
    tape: Tape,
    *,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
) -> list[Saturation]:
    """Share of gate values so near their ends that hardly a gradient passes.

    A sigmoid counts below `low` or above `high`, a tanh below ``-tanh`` or above ``tanh``. With
    the defaults the slope there is below 0.09 (sigmoid; 0.25 at most) and 0.19 (tanh; 1 at most).
    A relu counts as low at zero, where nothing passes, and never as high; a minGRU's candidate (v)
    below `low`, and never as high, as it is linear there. For a forget gate (f) and an update gate
    (z) high is no harm: it is how the state is kept. In a minGRU a low update gate keeps it. The
    gates i and f of an sLSTM are relative to exp(m), at most 1; i, an exponential, has no ends.

    Parameters
    ----------
    layer : recurrent layer
        An `RNN`, for example.
    tape : Tape
        Of the layer's `forward`.
        Of a layer with layer norm, its parameters are read as they are now.
    low, high, tanh : float
        The thresholds, each above 0 and below 1, `low` not above `high`.

    Returns
    -------
    list of Saturation
        Layer by layer, direction by direction, gate by gate.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, init="xavier", forget_bias=5.0, seed=0)
    >>> _, _, tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
    >>> {s.gate: s.share for s in rk.diagnose.saturation(lstm, tape)}
    {'i': 0.0, 'f': 1.0, 'g': 0.0, 'o': 0.0, 'c': 0.0}
    """
    check_layer(layer)
    ends = thresholds_of(low, high, tanh)
    return saturation_of(layer, tape, hiddens_of(layer, tape), ends)


def thresholds_of(low: float, high: float, tanh: float) -> tuple[float, float, float]:
    """The thresholds of `saturation`, checked."""
    between = "a number above 0 and below 1"
    low, high, tanh = (
        number(name, value, between, lambda x: 0.0 < x < 1.0)
        for name, value in (("low", low), ("high", high), ("tanh", tanh))
    )
    if low > high:
        raise ValueError(f"low: expected at most high, which is {high}, got {low}")
    return low, high, tanh


def saturation_of(
    layer: Layer,
    tape: Tape,
    hiddens: list[Array],
    thresholds: tuple[float, float, float],
) -> list[Saturation]:
    """`saturation`, of a tape whose hiddens have been read."""
    low, high, tanh = thresholds
    (real,) = steps_with_rows([tape.real_steps])
    hiddens, gates, cells = map(steps_with_rows, (hiddens, tape.gates, tape.cells))
    T, H = len(hiddens[0]), layer.hidden_size
    cell = cell_of(layer)
    activations = {gate.name: gate.activation for gate in cell.gate_table}
    activations |= {state.name: state.activation for state in cell.states if state.activation}
    ends = {
        "sigmoid": (low, high),
        "sigmoid or linear": (low, np.inf),
        "tanh": (-tanh, tanh),
        "relu": (np.finfo(layer.dtype).tiny, np.inf),
        "hardsigmoid": (low, high),
        "softsign": (-tanh, tanh),
        "thresholdedrelu": (np.finfo(layer.dtype).tiny, np.inf),
    }
    no_ends = (-np.inf, np.inf)
    vectors = [vectors_of(layer, *place) for place in places_of(layer)]
    there = real & ~lost_rows(layer, hiddens)
    found = []
    for index, (place, direction) in enumerate(places_of(layer)):
        alive = there[index]
        counts = H * alive.sum(axis=1)
        seen = {"h": hiddens[place][..., units_of(layer, direction)]}
        if gates:
            saved = {name: gates[index][:, :, k] for k, name in enumerate(cell.saved)}
            seen |= cell.values(saved, vectors[index])
        for s in cell.states:
            if s.activation:
                seen[s.name] = cell.output_value(cells[index], vectors[index])
        for gate, activation in activations.items():
            value, (lower, upper) = seen[gate], ends.get(activation, no_ends)
            below, above = value < lower, value > upper
            sums = [(near & alive[..., None]).sum(axis=(1, 2)) for near in (below, above)]
            at = [np.divide(s, counts, out=np.full(T, np.nan), where=counts > 0) for s in sums]
            total = float(counts.sum())
            share = float(sum(sums).sum()) / total if total else np.nan
            mean = float(value[alive].mean(dtype=np.float64)) if total else np.nan
            found.append(Saturation(place, direction, gate, at[0], at[1], share, mean))
    return found
