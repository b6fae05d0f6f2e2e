"""One call of the core on tensors: their memory as arrays, results as tensors, without copies."""

from __future__ import annotations

import ctypes
import json
import math
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..layers.base import NO_CLIP
from ..pickles import LayerStack

__all__ = [
    "DTYPES",
    "Arrays",
    "Integers",
    "Layer",
    "Setup",
    "as_tensor",
    "described",
    "layer_of",
    "run_backward",
    "run_forward",
    "view",
]

Array = NDArray[Any]
DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


class Setup(NamedTuple):
    """What a call is besides its tensors."""

    layer: str  # see `described`
    batch_first: bool = False
    is_step: bool = False  # of a cell: x is one time step (B, I), and only the states come back
    dropout: float = 0.0
    draws: bool = False  # whether the cell draws its noise
    clip: tuple[float, float, float, float] = NO_CLIP.bounds()


class Integers(NamedTuple):
    """The tensors of a call through which no gradient flows."""

    lengths: Tensor | None = None
    resets: Tensor | None = None
    batch_sizes: Tensor | None = None  # of a PackedSequence; x is then its data (N, I)
    order: Tensor | None = None  # its sorted_indices
    seed: Tensor | None = None  # of dropout and noise


class Layer(NamedTuple):
    """What a call needs to know of a layer."""

    stack: LayerStack
    names: tuple[str, ...]  # of the parameters, in the order of their tensors
    dtype: torch.dtype
    outputs: int  # channels of y: D * P
    states: tuple[tuple[int, int], ...]  # (L * D, width) of each
    members: int  # of an ensemble; 0: none
    residual: bool

    def check(self, weights: list[Tensor]) -> None:
        if len(weights) != len(self.names):
            expected = f"expected {len(self.names)} tensors ({', '.join(self.names)})"
            raise ValueError(f"weights: {expected}, got {len(weights)}")


def described(arguments: dict[str, Any], dtype: torch.dtype) -> str:
    """A layer as a str, which the operators take: the core's arguments, with another dtype."""
    return json.dumps({**arguments, "is_double": dtype is torch.float64}, sort_keys=True)


@cache  # as many as a program has different layers
def layer_of(description: str) -> Layer:
    """The layer of a description; always the same, since a tape knows its layer."""
    arguments = json.loads(description)
    stack = LayerStack(**arguments)
    directions = 2 if arguments["bidirectional"] else 1
    widths = [arguments["outputs" if s == "h" else "hidden_size"] for s in stack.state_names()]
    return Layer(
        stack=stack,
        names=tuple(name for name, _ in stack.parameter_shapes()),
        dtype=torch.float64 if arguments["is_double"] else torch.float32,
        outputs=directions * arguments["outputs"],
        states=tuple((arguments["num_layers"] * directions, width) for width in widths),
        members=arguments["members"],
        residual=arguments["residual"],
    )


# ---- tensors and arrays ------------------------------------------------------------------------


def view(name: str, tensor: Tensor) -> Array:
    """The memory of a tensor as an array."""
    try:
        return tensor.detach().numpy()  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):
        if tensor.device.type == "cpu" and tensor.is_neg():
            return view(name, tensor.resolve_neg())
        kind = f"{tensor.dtype} ({tensor.layout}, {tensor.device})"
        raise RuntimeError(
            f"{name}: expected a dense tensor of torch.float32 or torch.float64 on the CPU, "
            f"got one of {kind}"
        ) from None


def as_tensor(array: Array) -> Tensor:
    """A result as a tensor of the same memory.

    The core marks what a tape reads again as read-only. PyTorch has no such mark: its version
    counters tell, in backward, that a program has changed it.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    return torch.from_dlpack(array.__dlpack__(max_version=(1, 0)))


class Arrays:
    """The parameters as arrays, kept from call to call while their tensors' memory stays in place.

    An array keeps its memory, so another tensor can't be at the same address.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[list[Any], dict[str, Array]] = [], {}

    def __reduce__(self) -> Any:
        return Arrays, ()  # a copy of a module has other parameters

    def of(self, names: tuple[str, ...], tensors: list[Tensor] | tuple[Tensor, ...]) -> Any:
        """A dict from names to arrays."""
        headers = [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
        kept = self._kept  # at once: other threads may replace it
        if headers != kept[0]:
            # An empty tensor may have any address.
            arrays = {name: view(name, t) for name, t in zip(names, tensors, strict=True)}
            self._kept = kept = headers, arrays
        return kept[1]


class Packing:
    """Where the rows of a PackedSequence's data are in (T, B, C), rows in the caller's order."""

    __slots__ = ("lengths", "places", "shape")

    def __init__(self, batch_sizes: Tensor, order: Tensor | None) -> None:
        sizes = view("batch_sizes", batch_sizes)
        steps, rows = len(sizes), int(sizes[0]) if len(sizes) else 0
        step = np.repeat(np.arange(steps), sizes)
        row = np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if order is not None:
            row = view("sorted_indices", order)[row]
        self.shape = steps, rows
        self.lengths = np.bincount(row, minlength=rows)
        self.places = torch.from_numpy(step * rows + row)

    def pad(self, data: Tensor) -> Tensor:
        """(N, C) as (T, B, C); padding, which the core never reads, is not written."""
        whole = data.new_empty(math.prod(self.shape), data.shape[-1])
        return whole.index_copy_(0, self.places, data).view(*self.shape, data.shape[-1])

    def pack(self, whole: Tensor) -> Tensor:
        """(T, B, C) as (N, C)."""
        return whole.view(-1, whole.shape[-1]).index_select(0, self.places)


# ---- threads -----------------------------------------------------------------------------------

# OpenMP of the core: a library of its own, or the one that PyTorch has loaded.
_openmp = ctypes.CDLL(_core.__file__)


def follow_threads() -> None:
    """Let the core use as many threads as PyTorch here, unless the program chose a number."""
    wanted = torch.get_num_threads()
    if _core.num_threads() == wanted or _core.chosen_num_threads() or _core.is_forked_child():
        return
    _openmp.omp_set_num_threads(wanted)


# ---- forward and backward ----------------------------------------------------------------------


class Tape(np.ndarray[Any, Any]):
    """The memory of a tensor that stands for a tape: as long as it is there, the tape is.

    So a graph can save it, hand it from operator to operator, and free it, as any tensor. A copy
    of the tensor stands for nothing: backward then runs the forward again.
    """

    core: _core.Tape
    stack: LayerStack
    x: int  # the address that the tape reads again
    y: int | None  # likewise, of the y that the caller has


_tapes: WeakValueDictionary[int, Tape] = WeakValueDictionary()  # by the address of their memory


def _tape_tensor(core: _core.Tape, layer: Layer, x: Tensor, y: Tensor | None) -> Tensor:
    tape = np.zeros(1, np.uint8).view(Tape)
    tape.core, tape.stack, tape.x = core, layer.stack, x.data_ptr()
    tape.y = None if y is None else y.data_ptr()
    tensor = torch.from_numpy(tape)
    _tapes[tensor.data_ptr()] = tape
    return tensor


def run_forward(
    setup: Setup,
    integers: Integers,
    params: dict[str, Array],
    x: Tensor,
    states: tuple[Tensor, ...],
    keep: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Outputs (y and the last states; of a step the states alone), and the tape if it is kept."""
    layer = layer_of(setup.layer)
    if states and len(states) != len(layer.states):
        raise RuntimeError(f"hx: expected {len(layer.states)} tensors, got {len(states)}")
    packing = None
    if integers.batch_sizes is not None:
        if integers.lengths is not None:
            raise RuntimeError("lengths: expected None with a PackedSequence, got a tensor")
        packing = Packing(integers.batch_sizes, integers.order)
    first = tuple(view(f"hx[{k}]", s) for k, s in enumerate(states)) or None
    if packing:
        given = view("input", packing.pad(x.detach()))
    elif setup.is_step:
        given = view("input", x)[None]
        first = first and tuple(s[None] for s in first)
    else:
        given = view("input", x)
    lengths = packing.lengths if packing else _integers("lengths", integers.lengths)
    seed = 0 if integers.seed is None else int(integers.seed)
    follow_threads()
    try:
        found, last, tape = layer.stack.forward(
            params,
            given,
            first,
            lengths,
            _integers("resets", integers.resets),
            setup.batch_first and not packing,
            keep,
            False,  # autograd's version counters see what changes
            0,
            (setup.dropout, [seed + e for e in range(layer.members or 1)], 0, setup.draws),
        )
    except (TypeError, ValueError) as error:  # PyTorch's kind of error, and its names
        raise RuntimeError(_renamed(str(error))) from None
    outputs = [as_tensor(s[0] if setup.is_step else s) for s in last]
    y = None
    if not setup.is_step:
        y = as_tensor(found)
        outputs.insert(0, packing.pack(y) if packing else y)
        if packing or layer.residual:
            y = None  # the tape does not read what the caller gets
    return outputs, _tape_tensor(tape, layer, x, y) if tape is not None else None


def _renamed(message: str) -> str:
    for core, own in (("x:", "input:"), ("state:", "hx:"), ("state[", "hx[")):
        if message.startswith(core):
            return own + message.removeprefix(core)
    return message


def _integers(name: str, tensor: Tensor | None) -> Array | None:
    return None if tensor is None else view(name, tensor)


def run_backward(
    setup: Setup,
    integers: Integers,
    params: dict[str, Array],
    x: Tensor,
    states: tuple[Tensor, ...],
    tape: Tensor,
    y: Tensor | None,
    gradients: list[Tensor | None],
) -> list[Tensor]:
    """Gradients of x, of the states that were given, and of the parameters.

    They are a function of the tensors alone: if the tape is not that of these tensors (a copy, or
    tensors that were saved elsewhere or computed again), the forward runs again.
    """
    own = _tapes.get(tape.data_ptr())
    if own is None or own.x != x.data_ptr() or (own.y and y is not None and own.y != y.data_ptr()):
        _, again = run_forward(setup, integers, params, x, states, True)
        assert again is not None
        own = _tapes[again.data_ptr()]
    packing, dy = None, None
    if integers.batch_sizes is not None:
        packing = Packing(integers.batch_sizes, integers.order)
    if not setup.is_step:
        of_y, *gradients = gradients
        if of_y is not None:
            dy = view("grad of output", packing.pad(of_y.detach()) if packing else of_y)
    dstate = tuple(None if g is None else view("grad of hx", g) for g in gradients)
    if setup.is_step:
        dstate = tuple(None if g is None else g[None] for g in dstate)
    follow_threads()
    of_params, dx, first, *_ = own.stack.backward(
        params, own.core, dy, dstate, setup.clip, False, 0.0
    )
    if layer_of(setup.layer).members and x.dim() == 3:  # all members have read the same x
        dx = dx.sum(axis=1)
    if packing:
        of_x = packing.pack(torch.from_numpy(dx))
    else:
        of_x = torch.from_numpy(dx[0] if setup.is_step else dx)
    of_states = [torch.from_numpy(g[0] if setup.is_step else g) for g in first]
    return [of_x, *of_states[: len(states)], *map(torch.from_numpy, of_params.values())]
