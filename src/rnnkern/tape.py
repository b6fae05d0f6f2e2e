"""What a forward keeps for backward, and whether the caller's arrays still hold what it read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import _core, runtime

__all__ = ["Sampler", "Tape"]

Array = NDArray[Any]

SAMPLES = 64  # elements of an array that are compared; all of them in `runtime.debug`


def _distance(array: Array) -> int:
    """Between samples; odd, so that they are not all in one column of a matrix."""
    return array.size // SAMPLES | 1


def _sampled(array: Array) -> bytes:
    if array.flags.c_contiguous:
        return array.reshape(-1)[:: _distance(array)].tobytes()
    places = np.unravel_index(np.arange(0, array.size, _distance(array)), array.shape)
    return array[places].tobytes()


def _digest(array: Array) -> bytes:
    return hashlib.blake2b(array.tobytes(), digest_size=16).digest()


def _mark(array: Any, read: Callable[[Array], bytes]) -> tuple[Any, ...] | None:
    if type(array) is not np.ndarray:
        if not isinstance(array, np.ndarray):  # another thread may have put anything there
            return None
        array = np.asarray(array)
    return array.shape, array.dtype, read(array)


def _check(name: str, now: Any, mark: Any) -> None:
    """Raise RuntimeError if an array of the same shape and dtype holds other values."""
    if now and mark and now != mark and now[:2] == mark[:2]:
        advice = "change arrays after backward, or call forward again"
        raise RuntimeError(f"{name}: expected the values that forward read, got others ({advice})")


class Samples(NamedTuple):
    """Of all parameters, in the order of their dict."""

    names: list[str]
    arrays: list[Array]
    views: list[Array]  # evenly spaced elements of the arrays
    of_all: bytes  # what the views held

    def of_each(self) -> dict[str, Any]:
        """What `_mark` returned, or would have, for each array."""
        marks, first = {}, 0
        for name, array, view in zip(self.names, self.arrays, self.views, strict=True):
            marks[name] = array.shape, array.dtype, self.of_all[first : first + view.nbytes]
            first += view.nbytes
        return marks


class Sampler:
    """Reads samples of a layer's parameters, through views that it keeps from call to call."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[list[str], list[Array], list[Array]] = [], [], []

    def __reduce__(self) -> Any:
        return Sampler, ()  # the views of a copy would be of the original's memory, or of none

    def read(self, params: Mapping[str, Array]) -> Samples | None:
        """The samples as they are now; None if an array is not a plain C-contiguous one."""
        names, arrays = list(params), list(params.values())
        kept = self._kept
        if names != kept[0] or not all(map(is_, arrays, kept[1])):
            if not all(type(a) is np.ndarray and a.flags.c_contiguous for a in arrays):
                return None
            views = [a.reshape(-1)[:: _distance(a)] for a in arrays]
            self._kept = kept = names, arrays, views
        return Samples(*kept, b"".join(map(np.ndarray.tobytes, kept[2])))


class Tape:
    """What a recurrent layer's `forward` keeps for its `backward`.

    A value: several may be alive, and each may be used more than once. It belongs to its process:
    it can't be copied or pickled.

    Attributes
    ----------
    gates, cells, hiddens : list of ndarray
        What was saved of each layer: the vectors that the cell's backward reads (T, B, n, H), with
        D n for two directions; c (T, B, H), if the cell carries one besides h; h (T, B, D*P).
        Read-only. A tape with a checkpoint has none of them.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> tape
    Tape(x: (7, 2, 3))

    The arrays that `forward` read must not change before `backward`:

    >>> gru.params["bias_hh_l0"] += 0.1
    >>> gru.backward(tape, np.ones_like(y))
    Traceback (most recent call last):
    ...
    RuntimeError: params['bias_hh_l0']: expected the values that forward read, got others \
(change arrays after backward, or call forward again)
    """

    __slots__ = ("__weakref__", "_core", "_marks", "_read", "_stack", "_x", "_x_mark", "_x_strides")

    def __init__(
        self,
        tape: _core.Tape,
        stack: _core.LayerStack,
        params: Mapping[str, Array],
        x: Array,
        sampler: Sampler,
    ) -> None:
        self._core, self._stack = tape, stack
        self._x = x  # itself: the garbage collector does not see what a view refers to
        self._x_strides = x.strides
        if runtime.debugging:
            self._read, read = _digest, None
        else:
            self._read, read = _sampled, sampler.read(params)
        self._x_mark = _mark(x, self._read)
        self._marks: Samples | dict[str, Any] = read or {
            name: _mark(array, self._read) for name, array in list(params.items())
        }

    @property
    def is_made(self) -> bool:
        """False of an object that no forward has made."""
        return hasattr(self, "_marks")

    def check(self, stack: _core.LayerStack, params: Mapping[str, Array], sampler: Sampler) -> None:
        """Raise RuntimeError, which names the array, if one that forward read has changed.

        A parameter of another shape or dtype is the core's to refuse. If x has another header by
        now, its values are not compared: the core reads it as forward found it.
        """
        if stack is not self._stack:
            return  # the core refuses the tape of another layer
        if self._x.strides == self._x_strides:
            _check("x", _mark(self._x, self._read), self._x_mark)
        if isinstance(self._marks, Samples):
            if (now := sampler.read(params)) and now.of_all == self._marks.of_all:
                return
            marks = self._marks.of_each()
        else:
            marks = self._marks
        for name, mark in marks.items():
            _check(f"params[{name!r}]", _mark(params.get(name), self._read), mark)

    @property
    def gates(self) -> list[Array]:
        """What the cell saved, layer by layer."""
        return self._core.gates

    @property
    def cells(self) -> list[Array]:
        """Each layer's c, if the cell has one."""
        return self._core.cells

    @property
    def hiddens(self) -> list[Array]:
        """Each layer's h."""
        return self._core.hiddens

    def __repr__(self) -> str:
        return f"Tape(x: {self._x.shape})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "tape: expected to stay in its process, got a copy or a pickle (call forward there)"
        )
