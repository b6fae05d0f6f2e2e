"""One step at a time: packed weights and the state kept inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core

__all__ = ["Stream"]

Array = NDArray[Any]


class Stream:
    """Steps through a sequence as it comes, with the weights packed once and the state inside.

    Made by ``layer.stream(batch_size)``. The parameters are taken as they are then: later changes
    of the layer are not seen. Its results are those of calling the layer on the whole sequence,
    to the bit. A call that fails, or that Ctrl-C ends, leaves the state as it was.

    A stream belongs to one thread at a time. Another one gets a `RuntimeError`, and so does a
    process that was forked while a thread used the stream; a new stream works there.

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
        self._stream = _core.Stream(net, params, batch_size)
        # Bound here, so that a step costs one call into the core.
        self._step = self._stream.step
        self._run = self._stream.run

    def step(self, x: Array, out: Array | None = None) -> Array:
        """Take one step.

        Parameters
        ----------
        x : ndarray, shape (B, I)
            The step's input, of the layer's dtype.
        out : ndarray, shape (B, H), optional
            Where to put the output: C-contiguous, writable, not overlapping `x`. With it, the step
            allocates nothing.

        Returns
        -------
        ndarray, shape (B, H)
            The last layer's output; `out` if it was given.

        Raises
        ------
        TypeError, ValueError
            If an argument has another dtype, shape or layout; the state is then as before.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.RNN(2, 4, seed=0).stream(batch_size=3)
        >>> stream.step(np.zeros((3, 2), np.float32)).shape
        (3, 4)
        """
        return self._step(x, out)

    def run(self, x: Array, out: Array | None = None) -> Array:
        """Take a block of steps.

        Parameters
        ----------
        x : ndarray, shape (T, B, I)
            The inputs, of the layer's dtype; T may be 0.
        out : ndarray, shape (T, B, H), optional
            As in `step`.

        Returns
        -------
        ndarray, shape (T, B, H)

        Raises
        ------
        TypeError, ValueError
            As in `step`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.RNN(2, 4, seed=0).stream()
        >>> stream.run(np.zeros((10, 1, 2), np.float32)).shape
        (10, 1, 4)
        """
        return self._run(x, out)

    def reset(self) -> None:
        """Set the state to zeros.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.RNN(2, 4, seed=0).stream()
        >>> _ = stream.step(np.ones((1, 2), np.float32))
        >>> stream.reset()
        >>> float(np.abs(stream.state).sum())
        0.0
        """
        self._stream.reset()

    @property
    def state(self) -> Array | tuple[Array, Array]:
        h, c = self._stream.state()
        return h if c is None else (h, c)

    @state.setter
    def state(self, value: Array | tuple[Array, Array]) -> None:
        has_c = self._stream.state()[1] is not None
        h, c = split_state("state", value, has_c)
        if h is None or (has_c and c is None):
            raise TypeError("state: expected arrays, got None (use reset for zeros)")
        self._stream.set_state(h, c)


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
