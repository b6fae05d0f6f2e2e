"""One step at a time: packed weights and the state kept inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core

__all__ = ["Stream"]

Array = NDArray[Any]


class Stream(_core.Stream):
    """Steps through a sequence as it comes, with the weights packed once and the state inside.

    Made by ``layer.stream(batch_size)``. The parameters are taken as they are then: later changes
    of the layer are not seen. Its results are those of calling the layer on the whole sequence,
    to the bit. A call that fails, or that Ctrl-C ends, leaves the state as it was.

    A stream belongs to one thread at a time. Another one gets a `RuntimeError`, and so does a
    process that was forked while a thread used the stream; a new stream works there.

    Room for blocks of up to 128 rows (T * B) is made with the stream. A longer block makes more
    when it first comes, and so may one that more threads share; any other call with `out`
    allocates nothing.

    Attributes
    ----------
    state : ndarray or tuple of ndarray
        h (L, B, H), for an LSTM the pair (h, c). Reading copies; assigning sets it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> x = np.ones((4, 1, 3), np.float32)
    >>> stream = gru.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> bool((np.stack(steps) == gru(x)[0]).all())
    True
    """

    def __init__(self, net: _core.Net, params: dict[str, Array], batch_size: int) -> None:
        super().__init__(net, params, batch_size)

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Set the state, or that of some rows, to zeros.

        Parameters
        ----------
        rows : array of bool (B,) or of integers (n,), optional
            Which rows: True for each one to reset, or their numbers from 0 to B - 1. All if not
            given. The other rows keep their state to the bit.

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
        _core.reset_stream(self, rows)

    @property
    def state(self) -> Array | tuple[Array, Array]:
        h, c = _core.stream_state(self)
        return h if c is None else (h, c)

    @state.setter
    def state(self, value: Array | tuple[Array, Array]) -> None:
        has_c = _core.stream_state(self)[1] is not None
        h, c = split_state("state", value, has_c)
        if h is None or (has_c and c is None):
            raise TypeError("state: expected arrays, got None (use reset for zeros)")
        _core.set_stream_state(self, h, c)


def split_state(name: str, state: Any, has_c: bool) -> tuple[Any, Any]:
    """(h, c) of a state as callers give it; both None for None, c None without a cell state."""
    if state is None:
        return None, None
    if not has_c:
        if isinstance(state, tuple):
            raise TypeError(f"{name}: expected one array (h), got a tuple of {len(state)}")
        return state, None
    if isinstance(state, np.ndarray) or not isinstance(state, (tuple, list)) or len(state) != 2:
        got = f"{len(state)} arrays" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"{name}: expected a pair (h, c), got {got}")
    return state[0], state[1]
