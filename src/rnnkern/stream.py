"""One step at a time: packed weights and the state kept inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .checks import as_array, unmasked
from .pickles import reduced

if TYPE_CHECKING:
    from .inference import Frozen

__all__ = ["Stream"]

Array = NDArray[Any]
S = TypeVar("S")  # a state: an array, or a tuple of arrays


class Stream(_core.Stream, Generic[S]):
    """Steps through a sequence as it comes, with the weights packed once and the state inside.

    Made by ``layer.stream(batch_size)``, or by ``frozen.stream(batch_size)`` of a frozen layer,
    all of whose streams share the packed weights. `step` takes one step, `run` a block of steps.
    The weights are packed when the stream or the frozen layer is made; later changes of the layer
    have no effect. Results have the same bits as those of calling the layer on the whole sequence.
    A call that fails, or that Ctrl-C ends, does not change the state.

    The layer's ``batch_first`` does not apply to streams: `run` always takes x (T, B, I), and
    returns y (T, B, P).

    Only one thread at a time may use a stream. Another thread gets a `RuntimeError`, and so does a
    process that was forked while a thread used the stream; a new stream works there.

    The stream allocates memory for blocks of up to 128 rows (T * B) when it is made. The first call
    with a longer block, or with more threads, may allocate more. All other calls with `out`
    allocate nothing.

    A copy, also one by a pickle in another process, is an independent stream that continues from
    the same state. ``copy.copy`` shares the packed weights.

    Parameters
    ----------
    frozen : Frozen
        The frozen layer, whose weights the stream shares.
    batch_size : int
        B, at least 1.

    Attributes
    ----------
    state : ndarray or tuple of ndarray
        h (L, B, P), for an LSTM the pair (h, c), c (L, B, H), for an sLSTM (h, c, n, m). Reading
        returns a copy; assign to it to set the state. For some rows: `row_state`, `set_row_state`.

    Notes
    -----
    A stream can serve B clients, even if some have no input at a step: ``stream.step(x,
    mask=has_input)`` computes nothing for these clients and does not change their state.
    `row_state` returns the state of a client that leaves; `set_row_state` or `reset` add a client.

    Examples
    --------
    >>> import copy, numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> x = np.ones((4, 1, 3), np.float32)
    >>> stream = gru.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> bool((np.stack(steps) == gru(x)[0]).all())
    True
    >>> branch = copy.copy(stream)  # independent from here on
    >>> bool((branch.step(x[0]) == stream.step(x[0])).all())
    True
    """

    # Until the constructor runs; the core then refuses.
    _state_names: tuple[str, ...] = ("h",)
    _dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, frozen: Frozen[S], batch_size: int = 1) -> None:
        if "_state_names" in vars(self):  # the core's stream would stay the old one
            name = type(self).__name__
            raise TypeError(f"{name}: expected a new object, got one that is constructed already")
        from .inference import Frozen  # here: it imports this module

        if not isinstance(frozen, Frozen):
            raise TypeError(f"frozen: expected a Frozen, got {type(frozen).__name__}")
        super().__init__(frozen._params, batch_size)
        self._state_names, self._dtype = frozen._state_names, frozen._dtype
        self._made_from = frozen, batch_size

    def __repr__(self) -> str:
        """What it was made from; parameters and state are not shown."""
        if "_made_from" not in vars(self):  # its constructor has not run
            return super().__repr__()
        frozen, batch_size = self._made_from
        return f"<Stream of {frozen._text()}, batch_size={batch_size}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, vars(self) | {"state": self.state})

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state.pop("state")
        Stream.__init__(self, *state["_made_from"])
        vars(self).update(state)
        self.state = values

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Set the state, or that of some rows, to a fresh one: zeros, but m of an sLSTM -inf.

        Parameters
        ----------
        rows : array of bool (B,) or of integers (n,), optional
            The rows to reset: True for each one, or their numbers from 0 to B - 1. The default is
            all rows. The other rows keep their state, bit for bit.

        Raises
        ------
        TypeError, ValueError
            If `rows` has another dtype, shape or range; no state is then changed.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.RNN(2, 4, seed=0).stream(batch_size=3)
        >>> _ = stream.step(np.ones((3, 2), np.float32))
        >>> stream.reset([0, 2])  # or np.array([True, False, True])
        >>> stream.state.any(axis=(0, 2))
        array([False,  True, False])
        """
        _core.reset_stream(self, unmasked("rows", rows))

    def row_state(self, rows: ArrayLike) -> S:
        """Return the state of some rows, such as that of a client that leaves for a while.

        Parameters
        ----------
        rows : array of bool (B,) or of integers (n,)
            Which rows, as in `reset`.

        Returns
        -------
        ndarray or tuple of ndarray
            Like `state`, a copy, of n rows in the order of `rows`: h (L, n, P), and so on.

        Raises
        ------
        TypeError, ValueError
            If `rows` has another dtype, shape or range.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.RNN(2, 4, seed=0).stream(batch_size=3)
        >>> _ = stream.step(np.ones((3, 2), np.float32))
        >>> client = stream.row_state([1])  # it leaves
        >>> stream.reset([1])  # its place is another's now
        >>> stream.set_row_state([2], client)  # and it comes back at another place
        >>> stream.state.any(axis=(0, 2))
        array([ True, False,  True])
        """
        state: S = join_state(_core.stream_row_state(self, unmasked("rows", rows)))
        return state

    def set_row_state(self, rows: ArrayLike, state: S) -> None:
        """Set the state of some rows. The others keep theirs to the bit.

        Parameters
        ----------
        rows : array of bool (B,) or of integers (n,)
            Which rows, as in `reset`, each once.
        state : ndarray or tuple of ndarray
            As `row_state` returns it, of n rows in the order of `rows`. It is copied.

        Raises
        ------
        TypeError, ValueError
            If an argument has another dtype, shape or range; no state is then changed.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.LSTM(2, 4, seed=0).stream(batch_size=3)
        >>> one = np.ones((1, 1, 4), np.float32)
        >>> stream.set_row_state([2], (one, 2 * one))
        >>> h, c = stream.state
        >>> c[0, :, 0]
        array([0., 0., 2.], dtype=float32)
        """
        parts = self._whole(state)
        _core.set_stream_row_state(self, unmasked("rows", rows), parts)

    def _whole(self, state: S) -> tuple[Array, ...]:
        """A state of which no part is missing, as the core takes it."""
        parts = split_state("state", state, self._state_names, self._dtype)
        if parts is None or any(part is None for part in parts):
            raise TypeError("state: expected arrays, got None (use reset for a fresh one)")
        return parts

    @property
    def state(self) -> S:
        """h (L, B, P), of an LSTM (h, c), of an sLSTM (h, c, n, m); reading copies it."""
        state: S = join_state(_core.stream_state(self))
        return state

    @state.setter
    def state(self, value: S) -> None:
        _core.set_stream_state(self, self._whole(value))


def join_state(parts: tuple[Array, ...]) -> Any:
    """A state as callers get it: one array, or the tuple of several."""
    return parts[0] if len(parts) == 1 else parts


def split_state(
    name: str, state: Any, names: tuple[str, ...], dtype: np.dtype[Any]
) -> tuple[Any, ...] | None:
    """A state as the core takes it: a tuple, by the names of its parts; None if not given."""
    if state is None:
        return None
    if len(names) == 1:
        if isinstance(state, tuple):
            raise TypeError(f"{name}: expected one array (h), got a tuple of {len(state)}")
        return (as_array(name, state, dtype),)
    if not isinstance(state, (tuple, list)) or len(state) != len(names):
        got = f"{len(state)} arrays" if isinstance(state, (tuple, list)) else type(state).__name__
        many = "a pair" if len(names) == 2 else f"{len(names)} arrays"
        raise TypeError(f"{name}: expected {many} ({', '.join(names)}), got {got}")
    for part in state:
        if type(part) is not np.ndarray or part.dtype is not dtype:  # names cost more than this
            return tuple(
                part if part is None else as_array(f"{name}[{k}]", part, dtype)
                for k, part in enumerate(state)
            )
    return tuple(state)
