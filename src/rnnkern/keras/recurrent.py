"""Layers of rnnkern that are called as layers of Keras are."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checks import as_array, flag, unmasked
from ..layers import _Layer
from .load import is_many, read
from .plans import MERGE_MODES, Calls
from .weights import CLASSES

__all__ = ["Recurrent"]

Array = NDArray[Any]
Layers = tuple[_Layer[Any], ...]


class Recurrent:
    """Layers of rnnkern that are called, for inference, as a Keras layer is.

    `from_keras` makes one of whatever `rnnkern.keras.from_keras` takes, and of Keras layers that no
    single layer of rnnkern can replace. Results are those of Keras 3: the last output or all
    outputs, in the order in which the steps were run (``go_backwards``); at masked steps the output
    of the step before, or zeros; states (B, H) in lists.

    Parameters
    ----------
    layers : sequence of RNN, LSTM or GRU
        Each takes the outputs of the one before; with ``batch_first=True``. All forward in time,
        all with ``reverse=True`` (``go_backwards``), or one bidirectional layer alone.
    backward : sequence of RNN, LSTM or GRU
        With ``reverse=True``: the second half of a Bidirectional whose halves are apart.
    return_sequences : bool
        Whether a call returns the outputs of all steps, or of the last one.
    return_state : bool
        Whether a call returns the states, too.
    stateful : bool
        Whether a call begins with the states in which the one before has ended.
    zero_output_for_mask : bool
        Whether outputs at masked steps are zero.
    merge_mode : {"concat", "sum", "mul", "ave", None}
        Of two halves.

    Attributes
    ----------
    layers, backward : tuple of recurrent layer
        The layers, to train for example. The next call sees what is written to their parameters.
    states : list of ndarray or None
        Of a stateful one: the states after the last call, (B, H) each.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import keras, numpy as np
    >>> import rnnkern as rk, rnnkern.keras
    >>> cells = [keras.layers.GRUCell(5), keras.layers.LSTMCell(4)]
    >>> theirs = keras.layers.Bidirectional(keras.layers.RNN(cells, return_sequences=True), "sum")
    >>> theirs.build((None, None, 3))
    >>> ours = rk.keras.Recurrent.from_keras(theirs)
    >>> x, mask = np.ones((2, 7, 3), np.float32), np.arange(7) >= np.array([[0], [3]])
    >>> y = ours(x, mask=mask)
    >>> bool(np.allclose(y, keras.ops.convert_to_numpy(theirs(x, mask=mask)), atol=1e-6))
    True
    """

    def __init__(
        self,
        layers: Any,
        backward: Any = (),
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        merge_mode: str | None = "concat",
    ) -> None:
        self.layers = checked("layers", layers)
        self.backward = checked("backward", backward) if backward else ()
        first = self.layers[0]
        if first.bidirectional and (len(self.layers) > 1 or self.backward or first.num_layers > 1):
            expected = "one bidirectional layer of num_layers=1 alone"
            raise ValueError(f"layers: expected {expected}, got {[*self.layers, *self.backward]}")
        for argument, wanted, half in (
            ("layers", first.reverse and not self.backward, self.layers),
            ("backward", True, self.backward),
        ):
            for one in half:
                if one.reverse != wanted or one.bidirectional != first.bidirectional:
                    expected = f"expected reverse={wanted} as in the others"
                    raise ValueError(f"{argument}: {expected}, got {one}")
        self.return_sequences = flag("return_sequences", return_sequences)
        self.return_state = flag("return_state", return_state)
        self.stateful = flag("stateful", stateful)
        self.zero_output_for_mask = flag("zero_output_for_mask", zero_output_for_mask)
        if merge_mode not in MERGE_MODES:
            one_of = ", ".join(map(str, MERGE_MODES))
            raise ValueError(f"merge_mode: expected one of {one_of}, got {merge_mode!r}")
        if self.backward and merge_mode in ("sum", "mul", "ave"):
            widths = [half[-1].hidden_size for half in (self.layers, self.backward)]
            if widths[0] != widths[1]:
                expected = "expected halves of the same hidden_size"
                raise ValueError(f"merge_mode: {expected} with {merge_mode!r}, got {widths}")
        self.merge_mode = merge_mode
        self.states: list[Array] | None = None

    @classmethod
    def from_keras(
        cls,
        source: Any,
        name: str | None = None,
        *,
        config: Any = None,
        keras_version: int | None = None,
    ) -> Any:
        """Make a `Recurrent` of a Keras layer, or of each one of a model or file.

        Parameters
        ----------
        source, name, config, keras_version
            As in `rnnkern.keras.from_keras`. The states of a stateful layer are not taken.

        Returns
        -------
        Recurrent, or dict of str to Recurrent
            One for a layer, and where `name` is given; else all by their names.

        Raises
        ------
        TypeError, ValueError, ImportError
            As `rnnkern.keras.from_keras`, which refuses more.

        Examples
        --------
        >>> import keras, numpy as np
        >>> import rnnkern as rk, rnnkern.keras
        >>> theirs = keras.layers.GRU(5, go_backwards=True, return_sequences=True)
        >>> theirs.build((None, None, 3))
        >>> ours = rk.keras.Recurrent.from_keras(theirs)
        >>> ours(np.ones((2, 7, 3), np.float32)).shape
        (2, 7, 5)
        """
        found = {
            one: cls(layers, backward, **plan.calls._asdict())
            for one, (plan, layers, backward) in read(source, name, config, keras_version).items()
        }
        return found if is_many(source, name) else next(iter(found.values()))

    @property
    def calls(self) -> Calls:
        """The options of a call."""
        return Calls(*(getattr(self, name) for name in Calls._fields))

    def __repr__(self) -> str:
        given = [repr(list(self.layers)), *([repr(list(self.backward))] if self.backward else [])]
        for option, default in Calls()._asdict().items():
            if (value := getattr(self, option)) != default:
                given.append(f"{option}={value!r}")
        return f"Recurrent({', '.join(given)})"

    def reset_state(self) -> None:
        """Let the next call of a stateful one begin with zeros.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk, rnnkern.keras
        >>> gru = rk.keras.Recurrent([rk.GRU(3, 5, batch_first=True, seed=0)], stateful=True)
        >>> x = np.ones((2, 7, 3), np.float32)
        >>> first = gru(x)
        >>> bool((gru(x) == first).all())
        False
        >>> gru.reset_state()
        >>> bool((gru(x) == first).all())
        True
        """
        self.states = None

    def __call__(self, x: Array, mask: Array | None = None, initial_state: Any = None) -> Any:
        """Run over sequences, as Keras does.

        Parameters
        ----------
        x : ndarray, shape (B, T, I)
            Of the layers' dtype.
        mask : ndarray of bool, shape (B, T), optional
            True at real steps, which may be anywhere in a row.
        initial_state : ndarray or list of ndarray, optional
            (B, H) each: h, of an LSTM h and c, of each cell one after the other, those of the
            forward half first. Lists may be nested, as Keras's are. Zeros if not given, or of a
            stateful one the states after the last call.

        Returns
        -------
        ndarray, or tuple
            The outputs (B, T, H) or (B, H), of two halves merged, or two of them with
            ``merge_mode=None``. With ``return_state`` a tuple: the outputs, then the states as in
            `initial_state`; of several cells a list for each cell.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype, rank or size; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk, rnnkern.keras
        >>> lstm = rk.LSTM(3, 5, batch_first=True, bidirectional=True, seed=0)
        >>> ours = rk.keras.Recurrent([lstm], return_state=True, merge_mode="ave")
        >>> y, *states = ours(np.ones((2, 7, 3), np.float32))
        >>> y.shape, [state.shape for state in states]
        ((2, 5), [(2, 5), (2, 5), (2, 5), (2, 5)])
        """
        x = as_array("x", x, self.layers[0].dtype)
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, I), got {x.shape}")
        if mask is not None:
            mask = as_array("mask", unmasked("mask", mask), np.dtype(bool))
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask: expected shape {x.shape[:2]}, got {mask.shape}")
        states = self._initial(initial_state, len(x))
        outputs, finals = [], []
        for half in (self.layers, self.backward) if self.backward else (self.layers,):
            count = sum(states_of(layer) for layer in half)
            own, states = states[:count], states[count:]
            y, last = self._run(half, x, mask, own)
            outputs += y
            finals += last
        if self.stateful:
            self.states = finals
        merged = self._merged(outputs)
        if not self.return_state:
            return merged
        return (*(merged if isinstance(merged, tuple) else (merged,)), *self._nested(finals))

    def _initial(self, given: Any, rows: int) -> list[Array]:
        """The initial states, (B, H) each, in the order of calls."""
        layers = (*self.layers, *self.backward)
        if given is None and self.stateful and self.states is not None:
            if len(self.states[0]) != rows:
                expected = f"expected {len(self.states[0])} rows as in the call before"
                raise ValueError(f"x: {expected} (reset_state() begins anew), got {rows}")
            return self.states
        widths = [layer.hidden_size for layer in layers for _ in range(states_of(layer))]
        if given is None:
            return [np.zeros((rows, width), layers[0].dtype) for width in widths]
        flat = list(flattened(given))
        if len(flat) != len(widths):
            raise ValueError(f"initial_state: expected {len(widths)} arrays, got {len(flat)}")
        found = []
        for i, (value, width) in enumerate(zip(flat, widths, strict=True)):
            place = f"initial_state[{i}]"
            one = as_array(place, value, layers[0].dtype)
            if one.shape != (rows, width):
                raise ValueError(f"{place}: expected shape {(rows, width)}, got {one.shape}")
            found.append(one)
        return found

    def _run(
        self, half: Layers, x: Array, mask: Array | None, states: list[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Of one layer after the other: the outputs of each direction, and the last states."""
        finals: list[Array] = []
        for layer in half:
            count = states_of(layer)
            own, states = states[:count], states[count:]
            kinds = len(layer._state_names)
            given: Any = tuple(np.stack(own[k::kinds]) for k in range(kinds))
            outputs: Literal["all", "last"]
            outputs = "all" if self.return_sequences or layer is not half[-1] else "last"
            x, last = layer(x, given if kinds > 1 else given[0], mask=mask, outputs=outputs)
            each = last if isinstance(last, tuple) else (last,)
            finals += [each[k][i] for i in range(count // kinds) for k in range(kinds)]
        top = half[-1]
        found = []
        for d, y in enumerate(np.split(x, 1 + top.bidirectional, axis=-1)):
            backward = d == 1 or top.reverse
            found.append(y if mask is None else self._at_masked(y, mask, backward))
        return found, finals

    def _at_masked(self, y: Array, mask: Array, backward: bool) -> Array:
        """What Keras has at masked steps. Before the first real step, that is zero."""
        run = mask[:, ::-1] if backward else mask  # in the order in which steps are run
        if not self.return_sequences:
            return np.where(run[:, -1:], y, 0) if self.zero_output_for_mask else y
        if self.zero_output_for_mask or mask.all():
            return y
        steps = np.where(run, np.arange(run.shape[1]), -1)
        before = np.maximum.accumulate(steps, axis=1)[:, :, None]  # the last real step, or none
        own = y[:, ::-1] if backward else y
        kept = np.where(before < 0, 0, np.take_along_axis(own, before, axis=1))
        return kept[:, ::-1] if backward else kept

    def _merged(self, halves: list[Array]) -> Any:
        if len(halves) == 1:
            y = halves[0]
            turned = self.layers[0].reverse and self.return_sequences
            return np.ascontiguousarray(y[:, ::-1]) if turned else y
        forward, backward = halves
        if self.merge_mode is None:
            return forward, backward
        if self.merge_mode == "concat":
            return np.concatenate(halves, axis=-1)
        if self.merge_mode == "mul":
            return forward * backward
        total = forward + backward
        return total if self.merge_mode == "sum" else total / 2

    def _nested(self, states: list[Array]) -> list[Any]:
        """States as Keras returns them: flat for one cell, a list for each of several."""
        layers = (*self.layers, *self.backward)
        if len(self.layers) == 1 and self.layers[0].num_layers == 1:
            return states
        found = []
        for layer in layers:
            kinds = len(layer._state_names)
            for _ in range(states_of(layer) // kinds):
                found.append(states[:kinds])
                states = states[kinds:]
        return found


def checked(argument: str, layers: Any) -> Layers:
    """A sequence of layers that run one above the other."""
    if not isinstance(layers, (list, tuple)) or not layers:
        raise TypeError(f"{argument}: expected a list of layers, got {type(layers).__name__}")
    classes: Any = tuple(CLASSES.values())
    for i, layer in enumerate(layers):
        if not isinstance(layer, classes):
            names = ", ".join(cls.__name__ for cls in CLASSES.values())
            got = type(layer).__name__
            raise TypeError(f"{argument}[{i}]: expected one of {names}, got {got}")
        if not layer.batch_first:
            raise ValueError(f"{argument}[{i}]: expected batch_first=True, got {layer}")
        if layer.output_size != layer.hidden_size:
            raise ValueError(f"{argument}[{i}]: expected a layer without proj_size, got {layer}")
        if i and layer.input_size != layers[i - 1].hidden_size:
            expected = f"expected input_size={layers[i - 1].hidden_size} as below"
            raise ValueError(f"{argument}[{i}]: {expected}, got {layer}")
        if layer.dtype != layers[0].dtype:
            raise TypeError(f"{argument}[{i}]: expected {layers[0].dtype}, got {layer.dtype}")
    return tuple(layers)


def states_of(layer: _Layer[Any]) -> int:
    """How many arrays (B, H) a layer's state has."""
    return len(layer._state_names) * layer.num_layers * (1 + layer.bidirectional)


def flattened(states: Any) -> Any:
    if isinstance(states, (list, tuple)):
        for one in states:
            yield from flattened(one)
    else:
        yield states
