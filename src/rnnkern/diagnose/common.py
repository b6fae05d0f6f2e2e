"""What the diagnoses share: checks of arguments, layers and directions, parts of states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import integer, received, viewed
from ..layers import Gradients, State, Trace, _Layer
from ..reference import ACTIVATIONS, CELLS, Cell
from ..tape import Tape

__all__ = [
    "Array",
    "Layer",
    "State",
    "cell_of",
    "check_layer",
    "hiddens_of",
    "lengths_of",
    "lost_rows",
    "parts_of",
    "place_at",
    "place_name",
    "places_of",
    "real_steps",
    "steps_with_rows",
    "trace_of",
    "units_of",
    "untrapped",
    "vectors_of",
]

Array = NDArray[Any]
Layer: TypeAlias = _Layer[Any]

P = ParamSpec("P")
R = TypeVar("R")


def untrapped(function: Callable[P, R]) -> Callable[P, R]:
    """`function` where NumPy neither warns nor raises: here 0, infinity and nan are findings."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


def check_layer(layer: Any) -> None:
    """Raise unless `layer` is a layer and not an ensemble."""
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if layer.ensemble:
        raise ValueError("layer: expected a layer alone, got an ensemble (use its member(e))")


def cell_of(layer: Layer) -> Cell:
    """The layer's cell, with the values of its options."""
    cell = CELLS[layer._kind]
    options: dict[str, Any] = {name: getattr(layer, name) for name in cell.options}
    if "activations" in options:
        acts = layer._cell.activations
        options["activations"] = tuple(ACTIVATIONS[chosen.name](*chosen.of) for chosen in acts)
    return replace(cell, **options)


def places_of(layer: Layer) -> list[tuple[int, int]]:
    """(layer, direction) in the order of states."""
    return [(l, d) for l in range(layer.num_layers) for d in range(1 + layer.bidirectional)]


def place_at(layer: Layer, index: int) -> tuple[int, int]:
    places = places_of(layer)
    last = len(places) - 1
    return places[integer("index", index, f"an integer from 0 to {last}", 0, last)]


def place_name(layer: int, direction: int) -> str:
    return f"layer {layer}" + (", reverse" if direction else "")


def vectors_of(layer: Layer, place: int, direction: int) -> dict[str, Array]:
    """A direction's parameters that are no matrices, by the names of the cell's table.

    In float64; zero where the layer lacks one.
    """
    suffix = f"_l{place}" + ("_reverse" if direction else "")
    params = dict(layer._checked_params())
    return {
        p.name: np.asarray(params.get(p.name + suffix, 0.0), np.float64)
        for p in cell_of(layer).parameters
        if len(p.shape) == 1
    }


def hiddens_of(layer: Layer, tape: Any) -> list[Array]:
    """The outputs (T, B, D*P) of each layer, of a tape that fits the layer."""
    if not isinstance(tape, Tape):
        raise TypeError(f"tape: expected a Tape, got {type(tape).__name__}")
    hiddens = tape.hiddens
    width = (1 + layer.bidirectional) * layer.output_size
    fits = len(hiddens) == layer.num_layers and hiddens[0].ndim == 3  # an ensemble's have 4
    fits = fits and hiddens[0].shape[-1] == width
    cell = cell_of(layer)
    saved = {gates.shape[2:] for gates in tape.gates}
    expected = {(len(cell.saved), layer.hidden_size)} if cell.saved else set()
    has_cells = len(cell.states) > 1
    if not (fits and saved == expected and bool(tape.cells) == has_cells):
        raise ValueError("tape: expected one of this layer's forward, got another's")
    return hiddens


def steps_with_rows(arrays: list[Array]) -> list[Array]:
    """Arrays (T, B, ...), without steps if B is 0: an empty batch may claim any T."""
    return [a if a.shape[1] else a[:0] for a in arrays]


def units_of(layer: Layer, direction: int) -> slice:
    """A direction's channels of its layer's outputs."""
    return slice(direction * layer.output_size, (direction + 1) * layer.output_size)


def lost_rows(layer: Layer, hiddens: list[Array]) -> Array:
    """Where a row's h is nan: (L*D, T, B)."""
    return np.stack(
        [np.isnan(hiddens[l][..., units_of(layer, d)]).any(-1) for l, d in places_of(layer)]
    )


def lengths_of(lengths: Any, T: int, B: int) -> Array:
    """Each row's number of steps."""
    if lengths is None:
        return np.full(B, T)
    own = _copied("lengths", lengths, "iu", "integers", np.dtype(np.int64))
    if own.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {own.shape}")
    if ((own < 0) | (own > T)).any():
        raise ValueError(f"lengths: expected values from 0 to {T}, got {own.tolist()}")
    return own


def _copied(name: str, value: Any, kinds: str, items: str, dtype: np.dtype[Any]) -> Array:
    """A copy, which no other thread writes to, of an array with items of these kinds."""
    found = viewed(name, value)
    if found is None or found.dtype.kind not in kinds:
        got = received(name, value, found, dtype)
        raise TypeError(f"{name}: expected an array of {items}, got {got}")
    return np.array(found)


def real_steps(layer: Layer, lengths: Any, mask: Any, T: int, B: int) -> Array:
    """Where each row has a step (T, B); without steps if B is 0, as in `steps_with_rows`."""
    own = lengths_of(lengths, T, B)
    steps = T if B else 0
    if mask is None:
        alive: Array = np.arange(steps)[:, None] < own
        return alive
    if lengths is not None:
        raise ValueError("mask: expected None with lengths, got an array")
    real = _copied("mask", mask, "b", "booleans", np.dtype(bool))
    expected = (T,) if B == 1 and real.ndim == 1 else (B, T) if layer.batch_first else (T, B)
    if real.shape != expected:
        raise ValueError(f"mask: expected shape {expected}, got {real.shape}")
    if real.ndim == 1:
        return real[:, None]
    return (real.T if layer.batch_first else real)[:steps]


def parts_of(state: State) -> list[Array]:
    return list(state) if isinstance(state, tuple) else [state]


def trace_of(grads: Any) -> Trace:
    if not isinstance(grads, Gradients):
        raise TypeError(f"grads: expected Gradients, got {type(grads).__name__}")
    if grads.trace is None:
        raise ValueError("grads: expected a trace (backward with trace=True), got none")
    return grads.trace
