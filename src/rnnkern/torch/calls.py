"""One call of the core on tensors: their memory as arrays, results as tensors, without copies."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from .. import _core
from ..inference import OUTPUTS, TAPE
from ..layers.base import NO_CLIP
from ..pickles import LayerStack

__all__ = [
    "DTYPES",
    "NO_INTEGERS",
    "TAKEN",
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
TAKEN = (*DTYPES, torch.bfloat16)  # of parameters; bfloat16 is computed on copies in float32


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


NO_INTEGERS = Integers()


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


class _Lent:
    """A tensor as NumPy takes it, without the checks of `Tensor.__dlpack__`, which take longer."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def view(name: str, tensor: Tensor, writable: bool = False) -> Array:
    """The memory of a tensor as an array.

    A read-only one lets the storage change its size later; PyTorch forbids that after
    `Tensor.numpy`, which a writable one needs.
    """
    try:
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        if writable:
            return tensor.detach().numpy()  # type: ignore[no-any-return]
        if tensor.data_ptr() or not tensor.numel():
            return np.from_dlpack(_Lent(tensor))
    except (AttributeError, BufferError, RuntimeError, TypeError):
        raise _no_view(name, tensor) from None
    got = f"got one on {tensor.device} whose storage has {tensor.untyped_storage().nbytes()} bytes"
    raise RuntimeError(f"{name}: expected a tensor with memory on the CPU, {got}")


def _no_view(name: str, tensor: Any) -> Exception:
    if not isinstance(tensor, Tensor):
        return TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
    expected = "expected a dense tensor of torch.float32 or torch.float64 on the CPU"
    if tensor.is_nested:
        return RuntimeError(f"{name}: {expected}, got a nested tensor")
    if torch._C._functorch.is_batchedtensor(tensor) or (
        torch._C._functorch.is_legacy_batchedtensor(tensor)
    ):
        return RuntimeError(
            f"{name}: expected a tensor outside of vmap, got a batched one (vmap, is_grads_batched "
            "and vectorize=True are not supported; rnnkern.torch.restore puts PyTorch's own "
            "modules back)"
        )
    return RuntimeError(
        f"{name}: {expected}, got one of {tensor.dtype} ({tensor.layout}, {tensor.device})"
    )


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

    An array of the address and the layout of a tensor shows the memory of that tensor, whichever
    tensor it was made of, and is used only then: its own tensor may have got other memory since.
    The arrays keep their tensors until a call finds that they have moved, or until `forget`.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[list[Any], dict[str, Array]] = [], {}

    def __reduce__(self) -> Any:
        return Arrays, ()  # a copy of a module has other parameters

    def forget(self) -> None:
        self._kept = [], {}

    def of(self, names: tuple[str, ...], tensors: list[Tensor] | tuple[Tensor, ...]) -> Any:
        """A dict from names to arrays."""
        headers = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors]
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


# What a forward has kept: the core's tape, its layer, and the places of what the tape reads again.
Tape = tuple[_core.Tape, LayerStack, tuple[int, int | None]]
_tapes: dict[int, Tape] = {}  # by the address of the tensors that stand for them


class _Place(np.ndarray[Any, Any]):
    """The memory of a tensor that stands for a tape: as long as it is there, the tape is.

    So a graph can save the tensor, hand it from operator to operator, and free it, as any other. A
    copy of it stands for nothing: backward then runs the forward again.
    """

    address = -1  # of a view: not that of a tape

    def __del__(self, forget: Any = _tapes.pop) -> None:
        forget(self.address, None)


def _tape_tensor(core: _core.Tape, layer: Layer, x: Tensor, y: Tensor | None) -> Tensor:
    place = np.zeros(1, np.uint8).view(_Place)
    tensor = torch.from_numpy(place)
    place.address = address = tensor.data_ptr()
    _tapes[address] = core, layer.stack, _places(x, y)
    return tensor


def _places(x: Tensor, y: Tensor | None) -> tuple[int, int | None]:
    """The addresses of x, and of y if the caller has the y that the tape reads."""
    return x.data_ptr(), None if y is None else y.data_ptr()


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
    is_step, packing, first, lengths, resets = setup.is_step, None, None, None, None
    if states:
        if len(states) != len(layer.states):
            raise RuntimeError(f"hx: expected {len(layer.states)} tensors, got {len(states)}")
        first = tuple([view(f"hx[{k}]", s) for k, s in enumerate(states)])
        if is_step:
            first = tuple([s[None] for s in first])
    seeds = [0] * (layer.members or 1)
    if integers is not NO_INTEGERS:
        packing, lengths, resets = _rows(integers)
        if integers.seed is not None:
            seeds = [int(integers.seed) + e for e in range(len(seeds))]
    given = view("input", packing.pad(x.detach()) if packing else x)
    follow_threads()
    try:
        found, last, core = layer.stack.forward(
            params,
            given[None] if is_step else given,
            first,
            lengths,
            None,  # PyTorch has no mask
            resets,
            setup.batch_first and not packing,
            TAPE if keep else OUTPUTS,
            False,  # autograd's version counters see what changes
            0,
            (setup.dropout, seeds, 0, 0, setup.draws),
        )
    except (TypeError, ValueError) as error:  # PyTorch's kind of error, and its names
        raise RuntimeError(_renamed(str(error))) from None
    if is_step:
        outputs = [torch.from_numpy(s[0]) for s in last]
        return outputs, _tape_tensor(core, layer, x, None) if core else None
    y = as_tensor(found)
    outputs = [packing.pack(y) if packing else y, *map(torch.from_numpy, last)]
    if not core:
        return outputs, None
    # The tape reads y again if the caller gets it as it is.
    return outputs, _tape_tensor(core, layer, x, None if packing or layer.residual else y)


def _rows(integers: Integers) -> tuple[Packing | None, Array | None, Array | None]:
    """How rows are packed, their lengths, and resets."""
    resets = None if integers.resets is None else view("resets", integers.resets)
    if integers.batch_sizes is None:
        lengths = None if integers.lengths is None else view("lengths", integers.lengths)
        return None, lengths, resets
    if integers.lengths is not None:
        raise RuntimeError("lengths: expected None with a PackedSequence, got a tensor")
    packing = Packing(integers.batch_sizes, integers.order)
    return packing, packing.lengths, resets


def _renamed(message: str) -> str:
    for core, own in (("x:", "input:"), ("state:", "hx:"), ("state[", "hx[")):
        if message.startswith(core):
            return own + message.removeprefix(core)
    return message


def run_backward(
    setup: Setup,
    integers: Integers,
    params: dict[str, Array],
    x: Tensor,
    states: tuple[Tensor, ...],
    tape: Tensor,
    y: Tensor | None,
    gradients: Sequence[Tensor | None],
) -> list[Tensor]:
    """Gradients of x, of the states that were given, and of the parameters.

    They are a function of the tensors alone: if the tape is not that of these tensors (a copy, or
    tensors that were saved elsewhere or computed again), the forward runs again.
    """
    own = _tapes.get(tape.data_ptr())
    if own is None or own[2] != _places(x, y):
        _, again = run_forward(setup, integers, params, x, states, True)
        assert again is not None
        own = _tapes[again.data_ptr()]
    core, stack, _ = own
    packing, dy = None, None
    if integers is not NO_INTEGERS and integers.batch_sizes is not None:
        packing = Packing(integers.batch_sizes, integers.order)
    if not setup.is_step:
        of_y, *gradients = gradients
        if of_y is not None:
            dy = view("grad of output", packing.pad(of_y.detach()) if packing else of_y)
    dstate = tuple([None if g is None else view("grad of hx", g) for g in gradients])
    if setup.is_step:
        dstate = tuple([None if g is None else g[None] for g in dstate])
    follow_threads()
    of_params, dx, first, *_ = stack.backward(params, core, dy, dstate, setup.clip, False, 0.0)
    if layer_of(setup.layer).members and x.dim() == 3:  # all members have read the same x
        dx = dx.sum(axis=1)
    if packing:
        of_x = packing.pack(torch.from_numpy(dx))
    else:
        of_x = torch.from_numpy(dx[0] if setup.is_step else dx)
    if not states:
        return [of_x, *map(torch.from_numpy, of_params.values())]
    of_states = [torch.from_numpy(g[0] if setup.is_step else g) for g in first]
    return [of_x, *of_states, *map(torch.from_numpy, of_params.values())]
