"""Truncated backpropagation through time: one long sequence, window after window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic

import numpy as np
from numpy.typing import NDArray

from .checks import array, as_array, fixed, integer, viewed
from .clip import Clip
from .layers import Gradients, _Layer
from .stream import join_state

__all__ = ["Window", "truncated_bptt"]

Array = NDArray[Any]
if TYPE_CHECKING:  # the default is newer than Python 3.10
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)  # a layer's state
else:
    from typing import TypeVar

    S = TypeVar("S")


class Window(Generic[S]):
    """New steps of a sequence, and how to backpropagate from them. Made by `truncated_bptt`.

    Attributes
    ----------
    steps : slice
        The k1 new steps, of the sequence's T.
    reach : slice
        The steps that gradients reach: up to k2, the new ones at their end.
    y : ndarray, shape (k1, B, P)
        (B, k1, P) with ``batch_first``, (k1, P) for one row, (k1, E, B, P) for an ensemble. The
        outputs of the new steps; leave them as they are until backward is done.
    state : ndarray or tuple of ndarray
        The state after the window's last step, read-only.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> for window in rk.truncated_bptt(rk.GRU(3, 5, seed=0), x, 3, 4):
    ...     print(window.reach, window.steps, window.y.shape)
    slice(0, 3, None) slice(0, 3, None) (3, 2, 5)
    slice(2, 6, None) slice(3, 6, None) (3, 2, 5)
    slice(5, 7, None) slice(6, 7, None) (1, 2, 5)
    """

    steps: Final[slice] = fixed("steps", "The k1 new steps.")
    reach: Final[slice] = fixed("reach", "The steps that gradients reach.")
    y: Final[Array] = fixed("y", "The outputs of the new steps.")

    def __init__(self, layer: _Layer[S], x: Array, state: S, reach: slice, steps: slice) -> None:
        self._steps, self._reach = steps, reach
        self._layer = layer
        self._axis = _time_axis(layer, x)
        y, last, self._tape = layer.forward(x, state)
        self._last = last  # the next window may start from it
        self._state: S = join_state(
            tuple(map(_read_only, last if isinstance(last, tuple) else (last,)))
        )
        self._shape = y.shape
        self._y = _cut(y, self._axis, slice(steps.start - reach.start, None))
        self._over: str | None = None  # why there is no backward any more

    @property
    def state(self) -> S:
        """The state after the window's last step."""
        return self._state

    def __repr__(self) -> str:
        """The layer, the new steps and those that gradients reach; no array."""
        steps, reach = (f"{part.start}:{part.stop}" for part in (self._steps, self._reach))
        return f"<Window of {self._layer!r}, steps={steps}, reach={reach}>"

    def backward(
        self,
        dy: Array | None = None,
        dstate: S | None = None,
        clip: Clip | None = None,
        *,
        trace: bool = False,
        flow_penalty: float = 0.0,
    ) -> Gradients[S]:
        """Backpropagate from the new steps through all steps of `reach`.

        Parameters
        ----------
        dy : ndarray, shaped like y, optional
            dL/dy of the new steps; zeros if not given.
        dstate : ndarray or tuple of ndarray, optional
            dL/d(state), shaped like it; zeros if not given.
        clip : Clip, optional
            Gradient clips, of this window's gradients.
        trace, flow_penalty
            As in the layer's `backward`.

        Returns
        -------
        Gradients
            ``x`` is the gradient of the steps of `reach`, and ``state`` that of the state before
            them. They come only from the errors of this window.

        Raises
        ------
        TypeError, ValueError
            As in the layer's `backward`; the window's backward may then be called again.
        RuntimeError
            If it is called a second time, or after the next window has been requested.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> gru = rk.GRU(3, 5, seed=0)
        >>> for window in rk.truncated_bptt(gru, np.ones((6, 2, 3), np.float32), 3, 4):
        ...     grads = window.backward(np.ones_like(window.y), clip=rk.Clip(max_norm=1.0))
        >>> grads.x.shape, sorted(grads.params) == sorted(gru.params)
        ((4, 2, 3), True)
        """
        if self._over is not None:
            raise RuntimeError(f"window: expected one backward, in its turn, got {self._over}")
        if dy is not None and self._steps != self._reach:
            dy = self._behind_zeros(dy)
        grads = self._layer.backward(
            self._tape, dy, dstate, clip, trace=trace, flow_penalty=flow_penalty
        )
        self._end("a second one")
        return grads

    def _behind_zeros(self, dy: Array) -> Array:
        """`dy` with zeros for the steps that are not new."""
        errors = np.zeros(self._shape, self._layer.dtype)
        new = _cut(errors, self._axis, slice(self._steps.start - self._reach.start, None))
        new[...] = array("dy", dy, errors.dtype, new.shape)
        return errors

    def _state_after(self, count: int) -> Any:
        """The state after so many of the steps in reach."""

        def last(parts: list[Array]) -> Array:
            h = np.stack([part[count - 1] for part in parts])  # (L, B, P), or (L, B, [states,] H)
            return h[:, 0] if len(self._shape) == 2 else h

        hiddens, cells = last(self._tape.hiddens), self._tape.cells
        if not cells:
            return hiddens
        carried = last(cells)
        if len(self._layer._state_names) == 2:
            return hiddens, carried
        return hiddens, *(np.ascontiguousarray(c) for c in np.moveaxis(carried, -2, 0))

    def _end(self, over: str) -> None:
        """Free what backward would need."""
        if self._over is None:
            self._over = over
            del self._tape


def truncated_bptt(
    layer: _Layer[S],
    x: Array | Iterable[Array],
    k1: int,
    k2: int | None = None,
    state: S | None = None,
) -> Iterator[Window[S]]:
    """Go through a long sequence for training: BPTT(h; h') [1]_, with h' = k1 and h = k2.

    After every `k1` steps, the errors of these steps are backpropagated together over the last `k2`
    steps. It takes the time of ``k2 / k1`` full passes and the memory of k2 steps, for any T: only
    slices of `x` are read. `x` may also be an endless iterable of chunks.

    Parameters
    ----------
    layer : recurrent layer
        A layer with one direction, forward in time.
    x : ndarray, shape (T, B, I), (B, T, I) with ``batch_first``, or (T, I) for one row
        The sequence, also as a ``np.memmap``, a CPU tensor (DLPack) or a buffer, which is read
        without a copy; for an ensemble, shaped as for the layer. Or an iterable of chunks, such as
        a generator: arrays, tensors or buffers of this shape with any number of steps each. Chunks
        are copied, so a generator may yield the same buffer repeatedly. The first chunk is read at
        once, the others when a window needs them. The windows do not depend on the chunks.
    k1 : int
        The number of new steps of a window, at least 1; the last window has the remaining steps.
    k2 : int, optional
        The number of steps over which gradients flow back, at least k1. The default is k1.
    state : ndarray or tuple of ndarray, optional
        The state before the first step, as for the layer. To continue a sequence, pass the
        ``state`` of its last window. It is copied.

    Returns
    -------
    iterator of Window
        ``ceil(T / k1)`` windows, or none for a batch without rows, each computed when requested.
        Call ``window.backward(dy)``, if you need it, and update the parameters before you request
        the next one. If `x` is an array, ``len`` returns the number of remaining windows, for
        progress bars such as tqdm.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument is invalid; the message names it. When a window is requested, if
        a chunk does not match the first one.

    Notes
    -----
    Window j has the new steps ``[s, s + k1)``, s = j k1, and reaches from ``a = max(0, s + k1 -
    k2)`` on. (A last window of fewer new steps starts where a whole one would.) It runs forward
    over all its reach, with the parameters as they are then: both `y` and the gradients are of
    these. The state that it starts from is what window j - 1 had before step a, with the
    parameters as they were then; it is a constant for the gradients. So each step is computed up
    to ``ceil(k2 / k1)`` times, and with dropout or zoneout each time under another mask.

    With parameters that don't change, and without masks, `y` has the bits of a call on the whole
    sequence, and the gradients of all windows add up to dL/dp with each step's error going back at
    least ``k2 - k1 + 1`` steps, itself included, and at most k2. With ``k1 >= T`` that is all of
    BPTT.

    References
    ----------
    .. [1] R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of
       recurrent network trajectories", Neural Computation 2(4), 1990.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(10_000, 1, 1)).astype(np.float32)
    >>> target = np.roll(x, 3, axis=0)  # what came three steps ago
    >>> lstm, w = rk.LSTM(1, 16, seed=0), {"w": np.zeros((16, 1), np.float32)}
    >>> opt = rk.Adam([lstm.params, w], lr=1e-2)
    >>> losses = []
    >>> for window in rk.truncated_bptt(lstm, x, k1=20, k2=30):
    ...     error = window.y @ w["w"] - target[window.steps]
    ...     d_error = 2 * error / error.size
    ...     grads = window.backward(d_error @ w["w"].T)
    ...     r = opt.step([grads, {"w": np.einsum("tbh,tbi->hi", window.y, d_error)}], max_norm=1.0)
    ...     losses.append(np.mean(error**2))
    >>> bool(np.mean(losses[-50:]) < 0.1 * np.mean(losses[:50]))
    True

    A source without end, which yields as many steps as there are:

    >>> def source():
    ...     while True:
    ...         yield rng.normal(size=(rng.integers(1, 50), 1, 1)).astype(np.float32)
    >>> for window in rk.truncated_bptt(lstm, source(), k1=20, k2=30):
    ...     grads = window.backward(window.y)
    ...     if window.steps.stop == 100:
    ...         break
    >>> window.steps, window.reach
    (slice(80, 100, None), slice(70, 100, None))
    """
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if layer.bidirectional:
        raise ValueError(
            "layer: expected one of one direction, got a bidirectional one: its outputs need the "
            "whole sequence"
        )
    if layer.reverse:
        raise ValueError("layer: expected one that goes forward in time, got one with reverse=True")
    k1 = integer("k1", k1, "an integer of at least 1", 1, 2**62)
    k2 = k1 if k2 is None else integer("k2", k2, "an integer of at least 1", 1, 2**62)
    if k2 < k1:
        raise ValueError(f"k2: expected at least k1 = {k1}, got {k2}")
    source: _Whole | _Chunks
    if (whole := viewed("x", x)) is not None:
        if whole.dtype != layer.dtype:
            as_array("x", x, layer.dtype)  # raises
        source = _Whole(layer, whole)
    elif isinstance(x, Iterable):
        source = _Chunks(layer, iter(x))
        if source.is_empty:
            return iter(())
    else:
        expected = f"an array of dtype {layer.dtype} or an iterable of such chunks"
        raise TypeError(f"x: expected {expected}, got {type(x).__name__}")
    # A call on no steps checks all else, and copies the state, or makes a fresh one.
    _, first = layer(source.cut(0, 0), state)
    windows = _windows(layer, source, k1, k2, first)
    if isinstance(source, _Chunks):
        return windows
    return _Counted(windows, -(-source.until(2**62) // k1))


def _check_shape(layer: _Layer[Any], name: str, x: Array) -> None:
    ranks = (3, 4) if layer.ensemble else (2, 3)
    if x.ndim not in ranks or x.shape[-1] != layer.input_size:
        short, long = "T", "B, T" if layer.batch_first else "T, B"
        if layer.ensemble:
            short, long = "T, B", "T, E, B"
        shapes = f"({long}, {layer.input_size}) or ({short}, {layer.input_size})"
        raise ValueError(f"{name}: expected shape {shapes}, got {x.shape}")


class _Whole:
    """A sequence that is there from the beginning."""

    def __init__(self, layer: _Layer[Any], x: Array) -> None:
        _check_shape(layer, "x", x)
        self._x = x.view()  # of its own shape and strides, which the caller cannot change
        self._axis = _time_axis(layer, x)
        self._steps = x.shape[self._axis] if x.size else 0  # an empty batch may claim any T

    def until(self, stop: int) -> int:
        """How many of the first `stop` steps there are."""
        return min(stop, self._steps)

    def cut(self, start: int, stop: int) -> Array:
        """These steps."""
        return _cut(self._x, self._axis, slice(start, stop))


class _Chunks:
    """A sequence that comes in chunks. What is left behind is dropped."""

    def __init__(self, layer: _Layer[Any], chunks: Iterator[Array]) -> None:
        self._layer, self._chunks = layer, chunks
        self._kept: list[Array] = []  # the steps from `start` to `stop`
        self._start = self._stop = self._count = 0
        self._rest: tuple[int, ...] | None = None  # a chunk's shape but for its steps
        self._axis = 0
        self._is_over = not self._take()

    def _take(self) -> bool:
        """Take another chunk; False if there is none."""
        try:
            chunk = next(self._chunks)
        except StopIteration:
            return False
        name, layer = f"x[{self._count}]", self._layer
        given = as_array(name, chunk, layer.dtype)
        chunk = np.array(given, layer.dtype, order="C")  # the caller may fill the buffer again
        _check_shape(layer, name, chunk)
        axis = _time_axis(layer, chunk)
        rest = (*chunk.shape[:axis], *chunk.shape[axis + 1 :])
        if self._rest is None:
            self._rest, self._axis = rest, axis
        elif rest != self._rest:
            like = (*self._rest[:axis], "T", *self._rest[axis:])
            expected = f"({', '.join(map(str, like))}) as in the first chunk"
            raise ValueError(f"{name}: expected shape {expected}, got {chunk.shape}")
        self._count += 1
        self._kept.append(chunk)
        self._stop += chunk.shape[axis]
        return True

    @property
    def is_empty(self) -> bool:
        """Whether there is no chunk, or none with rows."""
        return self._rest is None or 0 in self._rest

    def until(self, stop: int) -> int:
        """How many of the first `stop` steps there are, after a wait for those that come."""
        while self._stop < stop and not self._is_over:
            self._is_over = not self._take()
        return min(stop, self._stop)

    def cut(self, start: int, stop: int) -> Array:
        """These steps; those before them are gone."""
        while len(self._kept) > 1 and self._start + self._kept[0].shape[self._axis] <= start:
            self._start += self._kept.pop(0).shape[self._axis]
        if len(self._kept) > 1:
            self._kept[0] = _cut(self._kept[0], self._axis, slice(start - self._start, None))
            self._kept, self._start = [np.concatenate(self._kept, self._axis)], start
        own = slice(start - self._start, stop - self._start)
        return _cut(self._kept[0], self._axis, own)


def _windows(
    layer: _Layer[S], source: _Whole | _Chunks, k1: int, k2: int, state: S
) -> Iterator[Window[S]]:
    def begin(first: int) -> int:
        return max(0, first + k1 - k2)

    first = 0
    while (stop := source.until(first + k1)) > first:
        start = begin(first)
        window = Window(layer, source.cut(start, stop), state, slice(start, stop),
                        slice(first, stop))  # fmt: skip
        ahead = begin(stop) - start
        if start + ahead == stop:
            state = window._last
        elif ahead > 0 and stop == first + k1:  # after fewer new steps there are no others
            state = window._state_after(ahead)
        yield window
        window._end("one after the next window was asked for")
        first = stop


class _Counted(Iterator[Window[S]]):
    """Windows whose number is known."""

    def __init__(self, windows: Iterator[Window[S]], count: int) -> None:
        self._windows, self._left = windows, count

    def __next__(self) -> Window[S]:
        window = next(self._windows)
        self._left -= 1
        return window

    def __len__(self) -> int:
        return self._left


def _read_only(part: Array) -> Array:
    view: Array = part.view()
    view.flags.writeable = False
    return view


def _time_axis(layer: _Layer[Any], x: Array) -> int:
    return 1 if layer.batch_first and x.ndim == 3 else 0


def _cut(x: Array, axis: int, steps: slice) -> Array:
    return x[:, steps] if axis else x[steps]
