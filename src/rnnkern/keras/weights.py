"""Keras's weights of a cell and this package's, both ways; nothing is computed, only moved.

Letters as everywhere: I inputs, H units, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import GRU, LSTM, RNN, _Layer
from ..layers.activations import Chosen
from .plans import Cell, Plan

__all__ = ["CLASSES", "WEIGHTS", "cells_of_layer", "layers_of", "parts_of"]

Array = NDArray[Any]
Parts = Mapping[str, Any]  # Keras's weights of a cell: what has a shape and a dtype, and is read

WEIGHTS = ("kernel", "recurrent_kernel", "bias")
OURS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CLASSES: dict[str, type[_Layer[Any]]] = {"SimpleRNN": RNN, "LSTM": LSTM, "GRU": GRU}
GATES = {"SimpleRNN": ("h", "h"), "LSTM": ("ifco", "ifco"), "GRU": ("zrh", "rzh")}  # theirs, ours
DEFAULTS = {"SimpleRNN": ("Tanh",), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def blocks(values: Array, have: str, want: str) -> Array:
    """Blocks of gates along the last axis in another order."""
    each = dict(zip(have, np.split(values, len(have), axis=-1), strict=True))
    return np.concatenate([each[gate] for gate in want], axis=-1)


def params_of(place: str, cell: Cell, parts: Parts) -> tuple[Cell, dict[str, Array]]:
    """A cell's weights under our names, and the cell with what only they say."""
    if missing := [name for name in WEIGHTS[:2] if name not in parts]:
        raise ValueError(f"{place}: {missing[0]}: expected an array, got none")
    found = "bias" in parts
    if cell.bias is not None and found != cell.bias:
        expected, got = ("an array", "none") if cell.bias else ("none", "an array")
        expected = f"expected {expected} with use_bias={cell.bias}"
        raise ValueError(f"{place}: bias: {expected}, got {got}")
    for name, part in parts.items():
        if part.dtype not in (np.float32, np.float64):
            raise TypeError(f"{place}: {name}: expected float32 or float64, got {part.dtype}")
        if part.dtype != parts["kernel"].dtype:
            expected = f"expected {parts['kernel'].dtype} as kernel"
            raise TypeError(f"{place}: {name}: {expected}, got {part.dtype}")
    H, (theirs, ours) = cell.units, GATES[cell.kind]
    G = len(theirs)
    I: Any = parts["kernel"].shape[0] if len(parts["kernel"].shape) == 2 else "I"
    shapes: dict[str, list[Any]] = {"kernel": [(I, G * H)], "recurrent_kernel": [(H, G * H)]}
    if found:
        shapes["bias"] = biases_of(cell)
    for name, part in parts.items():
        if part.shape not in shapes[name]:
            expected = f"expected shape {' or '.join(map(str, shapes[name]))}"
            raise ValueError(f"{place}: {name}: {expected}, got {part.shape}")
    kernel, recurrent, *bias = (np.asarray(parts[n]) for n in WEIGHTS if n in parts)
    is_cudnn = found and bias[0].shape == (2 * G * H,)
    if cell.kind == "GRU" and cell.reset_after is None:
        if not bias:
            expected = "expected it in the configuration of a GRU without biases"
            raise ValueError(f"{place}: reset_after: {expected}, got none")
        cell = cell._replace(reset_after=bias[0].shape != (3 * H,))
    if is_cudnn:  # each gate has the memory of (H, I) and (H, H), as rows
        kernel = np.concatenate([k.reshape(H, I).T for k in np.split(kernel, G, axis=1)], axis=1)
        recurrent = np.concatenate([k.T for k in np.split(recurrent, G, axis=1)], axis=1)
        bias = [bias[0].reshape(2, G * H)]
    found_params = {"weight_ih": blocks(kernel, theirs, ours).T}
    found_params["weight_hh"] = blocks(recurrent, theirs, ours).T
    if bias:
        values = blocks(bias[0], theirs, ours)
        both = values if values.ndim == 2 else np.stack([values, np.zeros_like(values)])
        found_params["bias_ih"], found_params["bias_hh"] = both
    return cell._replace(bias=found), found_params


def biases_of(cell: Cell) -> list[tuple[int, ...]]:
    """The shapes that a cell's bias can have."""
    rows = len(GATES[cell.kind][0]) * cell.units
    if cell.kind == "SimpleRNN":
        return [(rows,)]
    if cell.kind == "LSTM":
        return [(rows,), (2 * rows,)]  # the second is cuDNN's
    after: list[tuple[int, ...]] = [(2, rows), (2 * rows,)]
    if cell.reset_after is None:
        return [*after, (rows,)]
    return after if cell.reset_after else [(rows,)]


def parts_of(cell: Cell, params: Mapping[str, Array]) -> dict[str, Array]:
    """Keras's weights of a cell, of ours.

    Keras has one bias, except in a GRU with ``reset_after``: our two are added. If one of them is
    zero, nothing is rounded.
    """
    theirs, ours = GATES[cell.kind]
    found = {
        "kernel": np.ascontiguousarray(blocks(params["weight_ih"].T, ours, theirs)),
        "recurrent_kernel": np.ascontiguousarray(blocks(params["weight_hh"].T, ours, theirs)),
    }
    if cell.bias:
        both = np.stack([params["bias_ih"], params["bias_hh"]])
        if not cell.reset_after:
            used = [values for values in both if values.any()]  # -0 + 0 would be another number
            both = used[0] if len(used) == 1 else both[0] if not used else both[0] + both[1]
        found["bias"] = blocks(both, ours, theirs)
    return found


def options_of(cell: Cell) -> dict[str, Any]:
    """The options of our class, but for sizes and directions."""
    found: dict[str, Any] = {"bias": cell.bias}
    if cell.kind == "GRU":
        found["reset_after"] = cell.reset_after
    if cell.activations == (Chosen("Relu"),):
        found["nonlinearity"] = "relu"
    elif cell.activations != tuple(map(Chosen, DEFAULTS[cell.kind])):
        names = tuple((one.name, *one.of) if one.of else one.name for one in cell.activations)
        found["activations"] = names
    return found


def layers_of(
    plan: Plan, weights: Sequence[Parts]
) -> tuple[tuple[_Layer[Any], ...], tuple[_Layer[Any], ...]]:
    """The layers of a plan, one after the other, and those of a second half.

    A second half is empty where one layer has both directions.

    Parameters
    ----------
    plan : Plan
    weights : sequence
        Of each cell: those of the forward half, then those of the backward half.
    """
    cells = (*plan.forward, *plan.backward)
    if len(weights) != len(cells):
        expected = f"expected weights of {len(cells)} cells"
        raise ValueError(f"{plan.name}: {expected}, got {len(weights)}")
    places = [plan.name + (f": cell {i}" if len(cells) > 1 else "") for i in range(len(cells))]
    found = [params_of(*each) for each in zip(places, cells, weights, strict=True)]
    forward, backward = found[: len(plan.forward)], found[len(plan.forward) :]
    dtypes = {str(params["weight_ih"].dtype) for _, params in found}
    if len(dtypes) > 1:
        raise TypeError(f"{plan.name}: expected weights of one dtype, got {', '.join(dtypes)}")
    for half in (forward, backward):
        for below, (_, params) in pairwise(half):
            if params["weight_ih"].shape[1] != below[0].units:
                expected = f"expected {below[0].units} rows, as many as units below"
                got = params["weight_ih"].shape[1]
                raise ValueError(f"{plan.name}: kernel: {expected}, got {got}")
    if len(forward) == len(backward) == 1 and alike(forward[0], backward[0]):
        both = {**suffixed(forward[0][1], "_l0"), **suffixed(backward[0][1], "_l0_reverse")}
        return (made(forward[0][0], 1, both, bidirectional=True),), ()
    return (
        stacked(forward, plan.go_backwards),
        stacked(backward, True) if backward else (),
    )


def alike(one: tuple[Cell, dict[str, Array]], other: tuple[Cell, dict[str, Array]]) -> bool:
    """Whether two cells can be two directions of a layer."""
    return one[0] == other[0] and one[1]["weight_ih"].shape == other[1]["weight_ih"].shape


def stacked(
    cells: Sequence[tuple[Cell, dict[str, Array]]], reverse: bool
) -> tuple[_Layer[Any], ...]:
    """One layer for cells that are alike, one for each where they differ."""
    if len({cell for cell, _ in cells}) == 1:
        params: dict[str, Array] = {}
        for k, (_, own) in enumerate(cells):
            params |= suffixed(own, f"_l{k}")
        return (made(cells[0][0], len(cells), params, reverse=reverse),)
    return tuple(made(cell, 1, suffixed(own, "_l0"), reverse=reverse) for cell, own in cells)


def suffixed(params: Mapping[str, Array], suffix: str) -> dict[str, Array]:
    return {name + suffix: values for name, values in params.items()}


def made(cell: Cell, layers: int, params: Mapping[str, Array], **directions: bool) -> _Layer[Any]:
    make: Any = CLASSES[cell.kind]
    first = params["weight_ih_l0"]
    layer: _Layer[Any] = make(
        *(first.shape[1], cell.units, layers),
        batch_first=True,
        dtype=first.dtype,
        params=params,
        **options_of(cell),
        **directions,
    )
    return layer


def cells_of_layer(layer: Any) -> list[list[tuple[Cell, dict[str, Array]]]]:
    """Of each direction the cells of a layer, with their parameters under our names."""
    kind = next(name for name, cls in CLASSES.items() if isinstance(layer, cls))
    given = tuple(map(Chosen, DEFAULTS[kind]))
    if layer.activations is not None:
        given = layer._cell.activations
    elif kind == "SimpleRNN":
        given = (Chosen(layer.nonlinearity.capitalize()),)
    cell = Cell(kind, layer.hidden_size, given, layer.bias, getattr(layer, "reset_after", None))
    params = dict(layer._checked_params())
    return [
        [
            (cell, {n: params[n + s] for n in OURS if n + s in params})
            for s in (f"_l{k}{suffix}" for k in range(layer.num_layers))
        ]
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]
    ]
