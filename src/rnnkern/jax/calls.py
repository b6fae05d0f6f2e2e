"""What XLA calls: the core on XLA's memory, and the tapes that wait for their backward."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checks import integer
from ..inference import OUTPUTS, TAPE
from ..layers.base import NO_CLIP
from ..pickles import LayerStack
from .xla import register

__all__ = [
    "BACKWARD",
    "FORWARD",
    "Layer",
    "Operands",
    "Setup",
    "described",
    "layer_of",
    "set_tape_memory",
    "text_of",
]

Array = NDArray[Any]

FORWARD, BACKWARD = "rnnkern_forward", "rnnkern_backward"  # names in XLA's programs


class Setup(NamedTuple):
    """What a call is besides its arrays."""

    layer: str  # the core's arguments, as JSON
    batch_first: bool = False
    states: bool = False  # whether initial states are given
    given: tuple[str, ...] = ()  # which of lengths, mask, resets and seed
    dropout: float = 0.0
    draws: bool = False  # whether the cell draws its noise
    clip: tuple[float, float, float, float] = NO_CLIP.bounds()


class Layer(NamedTuple):
    """What a call needs to know of a layer."""

    stack: LayerStack
    shapes: dict[str, tuple[int, ...]]  # of the parameters, in the core's order
    dtype: np.dtype[Any]
    outputs: int  # channels of y: D * P
    inputs: int
    states: dict[str, tuple[int, int]]  # (L * D, width) of each
    members: int  # of an ensemble; 0: none


@cache  # as many as a program has different layers; always the same, since a tape knows its layer
def layer_of(description: str) -> Layer:
    arguments = json.loads(description)
    stack = LayerStack(**arguments)
    directions = 2 if arguments["bidirectional"] else 1
    names = stack.state_names()
    widths = [arguments["outputs" if s == "h" else "hidden_size"] for s in names]
    members = () if not arguments["members"] else (arguments["members"],)
    return Layer(
        stack=stack,
        shapes={name: (*members, *shape) for name, shape in stack.parameter_shapes()},
        dtype=np.dtype(np.float64 if arguments["is_double"] else np.float32),
        outputs=directions * arguments["outputs"],
        inputs=arguments["input_size"],
        states={
            s: (arguments["num_layers"] * directions, w) for s, w in zip(names, widths, strict=True)
        },
        members=arguments["members"],
    )


@lru_cache(1024)
def described(description: str, **changes: Any) -> str:
    """A layer with other arguments."""
    return json.dumps({**json.loads(description), **changes}, sort_keys=True)


class Operands(NamedTuple):
    """The operands of a forward by their meaning; of arrays, or of what stands for them."""

    x: Any
    states: list[Any]
    given: dict[str, Any]  # lengths, mask, resets, seed
    params: list[Any]

    @staticmethod
    def of(setup: Setup, operands: Sequence[Any]) -> Operands:
        layer = layer_of(setup.layer)
        first = 1 + (len(layer.states) if setup.states else 0)
        last = first + len(setup.given)
        given = dict(zip(setup.given, operands[first:last], strict=True))
        return Operands(operands[0], list(operands[1:first]), given, list(operands[last:]))

    def groups(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Those that have gradients."""
        return [self.x], self.states, self.params


@lru_cache(1024)
def text_of(*parts: Any) -> str:
    """What a program says of a call, from which another process can call it, too."""
    return json.dumps(parts)


@lru_cache(1024)
def _forward_of(text: bytes) -> Setup:
    (setup,) = json.loads(text)
    return _setup(setup)


@lru_cache(1024)
def _backward_of(text: bytes) -> tuple[Setup, list[bool], list[bool]]:
    setup, gradients, wanted = json.loads(text)
    return _setup(setup), gradients, wanted


def _setup(parts: list[Any]) -> Setup:
    layer, batch_first, states, given, dropout, draws, clip = parts
    return Setup(layer, batch_first, states, tuple(given), dropout, draws, tuple(clip))


# ---- tapes -------------------------------------------------------------------------------------


class Tape(NamedTuple):
    """What a forward has kept."""

    core: _core.Tape
    setup: Setup
    x: Array  # of the tape's own: XLA's memory is another's after the call

    @property
    def nbytes(self) -> int:
        return self.core.nbytes + self.x.nbytes


class Tapes:
    """The tapes whose backward has not run, by number; beyond a limit the oldest are dropped.

    A program hands a number from forward to backward, and XLA does not say when a number is gone:
    of a forward whose backward never runs, the tape stays until newer ones need its place. A
    backward without its tape runs the forward again.
    """

    def __init__(self, limit: int) -> None:
        self._tapes: dict[int, Tape] = {}
        self._lock = threading.Lock()  # XLA's threads may call at once
        self._limit, self._bytes = limit, 0
        # Another process's numbers, saved there, are none of these.
        self._numbers = itertools.count(secrets.randbits(63))

    def limit(self, nbytes: int) -> None:
        with self._lock:
            self._limit = nbytes
            self._drop()

    def _drop(self) -> None:
        while self._bytes > self._limit:
            self._bytes -= self._tapes.pop(next(iter(self._tapes))).nbytes

    def keep(self, tape: Tape) -> int:
        with self._lock:
            number = next(self._numbers)
            self._tapes[number] = tape
            self._bytes += tape.nbytes
            self._drop()
        return number

    def take(self, number: int) -> Tape | None:
        with self._lock:
            tape = self._tapes.pop(number, None)
            if tape is not None:
                self._bytes -= tape.nbytes
        return tape


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


tapes = Tapes(_quarter_of_memory())


def set_tape_memory(nbytes: int) -> None:
    """Limit the memory of what forwards keep for backwards that have not run yet.

    Where it does not suffice, the oldest of them is dropped, and its backward runs the forward
    again: the same gradients, for a third more time. With 0 nothing is kept between the two.

    Parameters
    ----------
    nbytes : int
        At least 0; a quarter of the machine's memory if this is not called.

    Raises
    ------
    TypeError, ValueError
        If `nbytes` is no integer of at least 0.

    Examples
    --------
    >>> import rnnkern.jax
    >>> rnnkern.jax.set_tape_memory(2**30)
    """
    tapes.limit(integer("nbytes", nbytes, "an integer of at least 0", 0, 2**62))


# ---- forward and backward ----------------------------------------------------------------------


def _run(
    setup: Setup, operands: Operands, wanted: int
) -> tuple[Array, tuple[Array, ...], _core.Tape | None]:
    layer, given = layer_of(setup.layer), operands.given
    seeds = [0] * (layer.members or 1)
    if "seed" in given:
        seeds = [int(low) | int(high) << 32 for low, high in given["seed"]]
    return layer.stack.forward(
        dict(zip(layer.shapes, operands.params, strict=True)),
        operands.x,
        tuple(operands.states) or None,
        given.get("lengths"),
        given.get("mask"),
        given.get("resets"),
        setup.batch_first,
        wanted,
        False,  # nothing here changes what a tape has read
        0,
        (setup.dropout, seeds, 0, 0, setup.draws),
    )


def _run_for_backward(setup: Setup, operands: Operands) -> tuple[Any, Any, Tape]:
    own = operands._replace(x=operands.x.copy())
    y, last, core = _run(setup, own, TAPE)
    assert core is not None
    return y, last, Tape(core, setup, own.x)


def forward(text: bytes, operands: list[Array], results: list[Array]) -> None:
    """Of a `Setup` and its operands: y and the last states, and if asked for a tape's number."""
    setup = _forward_of(text)
    given = Operands.of(setup, operands)
    states = len(layer_of(setup.layer).states)
    if len(results) > 1 + states:
        y, last, tape = _run_for_backward(setup, given)
        number = tapes.keep(tape)
        results[-1][...] = number & 0xFFFFFFFF, number >> 32
    else:
        y, last, _ = _run(setup, given, OUTPUTS)
    for result, value in zip(results[: 1 + states], (y, *last), strict=True):
        np.copyto(result, value)


def backward(text: bytes, operands: list[Array], results: list[Array]) -> None:
    """Of the same operands, the tape's number and gradients of the results: gradients."""
    setup, gradients, wanted = _backward_of(text)
    layer = layer_of(setup.layer)
    first = len(operands) - sum(gradients) - 1
    given, low_high = Operands.of(setup, operands[:first]), operands[first]
    rest = iter(operands[first + 1 :])
    dy, *dstate = [next(rest) if is_given else None for is_given in gradients]
    params = dict(zip(layer.shapes, given.params, strict=True))

    def run(tape: Tape) -> Any:
        core = layer.stack.backward
        return core(params, tape.core, dy, tuple(dstate), setup.clip, False, 0.0)

    found = None
    tape = tapes.take(int(low_high[0]) | int(low_high[1]) << 32)
    if tape is not None and tape.setup == setup and tape.x.shape == given.x.shape:
        # A program may have computed the parameters again, and rounded them otherwise.
        with suppress(RuntimeError):
            found = run(tape)
    of_params, dx, first_states, *_ = found or run(_run_for_backward(setup, given)[-1])
    if dx.ndim > given.x.ndim:  # all members have read the same x
        dx = dx.sum(axis=1)
    own = [dx] if wanted[0] else []
    own += first_states if wanted[1] else []
    own += of_params.values() if wanted[2] else []
    for result, value in zip(results, own, strict=True):
        np.copyto(result, value)


register(FORWARD, forward)
register(BACKWARD, backward)
