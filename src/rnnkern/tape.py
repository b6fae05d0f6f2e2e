"""What a forward keeps for backward, and whether the arrays of a module still hold what it read.

Of a layer's arrays the core keeps samples itself: its calls are shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import _core, runtime

__all__ = ["ModuleTape", "Tape"]

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
    import hashlib  # here: most programs do without it

    return hashlib.blake2b(array.tobytes(), digest_size=16).digest()


class Mark(NamedTuple):
    """What an array was."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: bytes  # samples, or a digest
    strides: tuple[int, ...]
    is_dense: bool  # C- or F-contiguous


def _mark(array: Any, read: Callable[[Array], bytes]) -> Mark | None:
    if not isinstance(array, np.ndarray):  # another thread may have put anything there
        return None
    own = np.ndarray.view(array, np.ndarray)  # whose header no other thread can change
    return Mark(own.shape, own.dtype, read(own), own.strides, own.flags.forc)


def check(name: str, array: Any, mark: Mark | None, read: Callable[[Array], bytes]) -> None:
    """Raise RuntimeError if an array holds other values than `mark` says.

    Arrays of another shape or dtype are not compared. Nor is an input whose strides have changed,
    since the core reads it as forward found it; a parameter may be another array of another layout.
    """
    if not (mark and isinstance(array, np.ndarray) and array.shape == mark.shape):
        return
    now = _mark(array, read)
    if not now or now.held == mark.held or now[:2] != mark[:2]:
        return
    is_parameter = name.startswith("params[")
    if now.strides == mark.strides or (is_parameter and now.is_dense and mark.is_dense):
        advice = "change arrays after backward, or call forward again"
        raise RuntimeError(f"{name}: expected the values that forward read, got others ({advice})")


class Tape:
    """What a recurrent layer's `forward` keeps for its `backward`.

    Several tapes can exist at the same time, and each can be used more than once. A tape belongs to
    its process: it cannot be copied or pickled.

    Attributes
    ----------
    gates, cells, hiddens : list of ndarray
        The saved values of each layer: the vectors that the cell's backward reads (T, B, n, H),
        with D n for two directions; c (T, B, H), if the cell has a state besides h; h (T, B, D*P).
        Read-only. The T steps are those of x, with zeros after a row's end and at masked steps. A
        tape with a checkpoint has none of them.
    real_steps : ndarray of bool, shape (T, B)
        True at the steps of each row, False after its end and at masked steps.
    nbytes : int
        The memory that the tape keeps: all of these, y if backward reads it again, and initial
        states, but not x, which belongs to the caller. Rows are padded to whole cache lines.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> tape
    Tape(x: (7, 2, 3), 3864 bytes)

    The arrays that `forward` read must not change before `backward`:

    >>> gru.params["bias_hh_l0"] += 0.1
    >>> gru.backward(tape, np.ones_like(y))
    Traceback (most recent call last):
    ...
    RuntimeError: params['bias_hh_l0']: expected the values that forward read, got others \
(change arrays after backward, or call forward again)
    """

    __slots__ = ("__weakref__", "_core", "_x")

    def __init__(self, tape: _core.Tape, x: Array) -> None:
        self._core = tape
        self._x = x  # itself: the garbage collector does not see what a view refers to

    @property
    def _is_made(self) -> bool:
        """False of an object that no forward has made."""
        return hasattr(self, "_x")

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

    @property
    def real_steps(self) -> Array:
        """Where each row has a step."""
        return self._core.real_steps

    @property
    def nbytes(self) -> int:
        """Memory that the tape keeps, x apart."""
        return self._core.nbytes

    def __repr__(self) -> str:
        return f"Tape(x: {self._x.shape}, {self.nbytes} bytes)"

    def __reduce__(self) -> NoReturn:
        raise _stays()


class ModuleTape:
    """What the `forward` of a module keeps for its `backward`; see also `Tape`.

    Attributes
    ----------
    x : ndarray
        The input, as backward reads it: the caller's memory, or an `Embedding`'s own copy; the
        queries of an `Attention`.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> linear = rk.Linear(3, 5, seed=0)
    >>> y, tape = linear.forward(np.ones((7, 2, 3), np.float32))
    >>> tape
    ModuleTape(x: (7, 2, 3))
    >>> linear.backward(tape, np.ones_like(y)).x.shape
    (7, 2, 3)
    """

    __slots__ = ("__weakref__", "_marks", "_module", "_read", "_rows", "_saved", "_x")

    def __init__(
        self,
        module: Any,
        x: Array,
        params: Mapping[str, Array],
        rows: Array | None = None,
        *,
        inputs: Mapping[str, Array] | None = None,
        saved: Any = None,
    ) -> None:
        """Remember x, what it and `params` hold (if there are none, x is a copy), and `rows`.

        `inputs`: arrays of the caller's by name, in place of x where there are several; `saved`:
        what the module's backward needs besides.
        """
        self._module, self._x, self._rows, self._saved = module, x, rows, saved
        self._read = _digest if runtime.debugging else _sampled
        if inputs is None:
            inputs = {"x": x} if params else {}
        self._marks: dict[str, tuple[Array | None, Mark | None]] = {
            name: (array, _mark(array, self._read)) for name, array in inputs.items()
        }
        for name, array in params.items():
            self._marks[f"params[{name!r}]"] = None, _mark(array, self._read)

    @property
    def x(self) -> Array:
        """The input, as backward reads it."""
        return self._x

    @staticmethod
    def _x_of(tape: Any, module: Any) -> Array:
        """The x of a module's own tape; an error for anything else."""
        expected = "a tape of this module's forward"
        if not (isinstance(tape, ModuleTape) and hasattr(tape, "_marks")):
            raise TypeError(f"tape: expected {expected}, got {type(tape).__name__}")
        if tape._module is not module:
            raise ValueError(f"tape: expected {expected}, got one of another module")
        return tape._x

    def _check(self, params: Mapping[str, Array]) -> None:
        """Raise RuntimeError, which names the array, if one that forward read has changed."""
        arrays = {f"params[{name!r}]": array for name, array in params.items()}
        for text, (array, mark) in self._marks.items():
            check(text, arrays[text] if array is None else array, mark, self._read)

    def __repr__(self) -> str:
        return f"ModuleTape(x: {self._x.shape})"

    def __reduce__(self) -> NoReturn:
        raise _stays()


def _stays() -> TypeError:
    return TypeError(
        "tape: expected to stay in its process, got a copy or a pickle (call forward there)"
    )
