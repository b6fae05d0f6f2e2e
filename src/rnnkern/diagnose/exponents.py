"""The largest Lyapunov exponent along a sequence."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ..checks import as_array, integer, viewed
from ..stream import join_state
from .common import Array, Layer, State, cell_of, check_layer, parts_of, untrapped

__all__ = ["lyapunov"]


@untrapped
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
    of the whole state (all layers; for an LSTM h and c, for an sLSTM h, c and n) are applied to,
    from the last step to the first, as a gradient is [1]_. Below 0 gradients vanish and the state
    forgets, above 0 both explode; ``exp`` of it is the factor per step. A random v needs some steps
    to turn to the direction that grows fastest, which adds an error of the order of 1/T; see
    `settle`.

    Parameters
    ----------
    layer : recurrent layer
        Forward in time, not bidirectional. Dropout does not act, zoneout by its mean; nothing of
        the layer is changed.
    x : ndarray, shape (T, B, I), laid out as the layer's, or (T, I) for one row
        The inputs; T at least 1. All rows have T steps.
    state : ndarray or tuple of ndarray, optional
        The initial state, as in calling the layer; zeros if not given.
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
        If an argument is invalid; the message names it.

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
    check_layer(layer)
    if layer.bidirectional:
        raise ValueError("layer: expected one direction, got a bidirectional layer")
    if layer.reverse:
        raise ValueError("layer: expected one that goes forward in time, got one with reverse=True")
    x, T, axis = _sequence(layer, x)
    block = integer("block", block, "an integer of at least 1", 1, 2**62)
    settle = integer("settle", settle, f"an integer from 0 to {T - 1}, below T", 0, T - 1)
    seed = integer("seed", seed, "an integer from 0 to 2**64 - 1", 0, 2**64 - 1)
    layer = copy.copy(layer)  # shares parameters, not dropout nor its counter
    layer.dropout, layer._draws_noise = 0.0, False

    def steps(start: int, stop: int) -> Array:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    _, state = layer(steps(0, 0), state)  # checks the state, or makes a fresh one
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
    before = [np.empty((len(blocks), *part.shape), layer.dtype) for part in parts_of(state)]
    for k in blocks:
        for kept, part in zip(before, parts_of(state), strict=True):
            kept[k] = part
        _, state = layer(steps(*span(k)), state)
    # A nan makes all later values of its row nan. The gradient need not show it: relu'(nan) is 0.
    lost = np.any([np.isnan(part).any(axis=(0, -1)) for part in parts_of(state)], axis=0)
    generator = np.random.default_rng(seed)
    arrays = [
        generator.normal(size=part.shape) * info.flows
        for part, info in zip(parts_of(state), cell_of(layer).states, strict=True)
    ]
    v = _scaled(arrays, 1.0 / _norm(arrays), layer.dtype)
    growth = np.where(lost, np.nan, 0.0)  # one number for each row
    low, high = np.finfo(layer.dtype).tiny * 1e6, np.finfo(layer.dtype).max / 1e6
    for k in reversed(blocks):
        todo = [(*span(k), join_state(tuple(kept[k] for kept in before)))]
        while todo:
            start, stop, state = todo.pop()
            _, _, tape = layer.forward(steps(start, stop), state)
            pulled = parts_of(layer.backward(tape, dstate=join_state(tuple(v))).state)
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


def _sequence(layer: Layer, x: Any) -> tuple[Array, int, int]:
    """A view of x, whose shape the caller cannot change, its T, and the axis of the steps."""
    found = viewed("x", x)
    x = as_array("x", x if found is None else found.view(), layer.dtype)
    axis = 1 if layer.batch_first and x.ndim == 3 else 0
    if x.ndim not in (2, 3) or x.shape[-1] != layer.input_size or not x.shape[axis]:
        order = "B, T" if layer.batch_first else "T, B"
        I = layer.input_size
        expected = f"shape ({order}, {I}) or (T, {I}) with T at least 1"
        raise ValueError(f"x: expected {expected}, got {x.shape}")
    return x, x.shape[axis], axis


def _norm(parts: list[Array]) -> Array:
    """Of each row (B,): over layers, units and parts of a state; of one row a scalar ()."""
    squares = [np.square(part, dtype=np.float64).sum(axis=(0, -1)) for part in parts]
    return np.asarray(np.sqrt(sum(squares)))


def _scaled(parts: list[Array], factors: Array, dtype: np.dtype[Any]) -> list[Array]:
    return [(part * factors[..., None]).astype(dtype) for part in parts]
