"""Flax: `flax.nnx.RNN` run by rnnkern, on flax's own cells and parameters.

`RNN` takes the place of `flax.nnx.RNN`: the same cells, the same state, the same call.
`from_flax` and `to_flax` convert a cell's parameters. Needs ``pip install 'rnnkern[flax]'``.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> import rnnkern.jax.nnx as rkx
>>> rnn = rkx.RNN(nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)))
>>> rnn(jnp.ones((2, 7, 3))).shape
(2, 7, 5)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import flag
from ..clip import Clip
from .functions import DTYPES, CellName, Params, bounds_of, made, recurrent

try:
    from flax import nnx
    from flax.nnx.nn.dtypes import promote_dtype
    from flax.nnx.nn.recurrent import flip_sequences
except ImportError as error:
    raise ImportError(
        f"rnnkern.jax.nnx needs flax: pip install 'rnnkern[flax]' ({error})"
    ) from error

__all__ = ["RNN", "from_flax", "to_flax"]

# Functions of flax, JAX and jax.numpy, and what rnnkern calls them.
ACTIVATIONS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "Sigmoid": ((nnx.sigmoid, jax.nn.sigmoid, jax.lax.logistic), "Sigmoid"),
    "Tanh": ((nnx.tanh, jnp.tanh, jax.lax.tanh), "Tanh"),
    "Relu": ((nnx.relu, jax.nn.relu), "Relu"),
    "HardSigmoid": ((nnx.hard_sigmoid, jax.nn.hard_sigmoid), ("HardSigmoid", 1 / 6, 0.5)),
    "Elu": ((nnx.elu, jax.nn.elu), ("Elu", 1.0)),
    "LeakyRelu": ((nnx.leaky_relu, jax.nn.leaky_relu), ("LeakyRelu", 0.01)),
    "Softsign": ((nnx.soft_sign, jax.nn.soft_sign), "Softsign"),
    "Softplus": ((nnx.softplus, jax.nn.softplus), "Softplus"),
}


class Layout(NamedTuple):
    """Where a cell of flax has its parameters, and what it computes in rnnkern's terms."""

    cell: CellName
    inputs: tuple[str, ...]  # modules of the products with x, in the order of gates
    hiddens: tuple[str, ...]
    bias: str  # which of the two has the bias: ih or hh
    activations: Callable[[Any], tuple[Any, ...]]


def _simple(cell: Any) -> tuple[Any, ...]:
    return (cell.activation_fn,)


def _gated(cell: Any) -> tuple[Any, ...]:
    return cell.gate_fn, cell.activation_fn


def _lstm(cell: Any) -> tuple[Any, ...]:
    return cell.gate_fn, cell.activation_fn, cell.activation_fn


DENSE = ("dense_i",), ("dense_h",)
LAYOUTS: dict[Any, Layout] = {
    nnx.SimpleCell: Layout("rnn", *DENSE, "ih", _simple),
    nnx.GRUCell: Layout("gru", *DENSE, "ih", _gated),
    nnx.LSTMCell: Layout("lstm", ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho"), "hh", _lstm),
    nnx.OptimizedLSTMCell: Layout("lstm", *DENSE, "hh", _lstm),
}
STANDARD: dict[CellName, Any] = {
    "rnn": ("Tanh",),
    "gru": ("Sigmoid", "Tanh"),
    "lstm": ("Sigmoid", "Tanh", "Tanh"),
}


def _layout(cell: Any) -> Layout:
    layout = LAYOUTS.get(type(cell))
    if layout is None:
        names = ", ".join(cls.__name__ for cls in LAYOUTS)
        raise TypeError(f"cell: expected one of flax.nnx's {names}, got {type(cell).__name__}")
    for name in (*layout.inputs, *layout.hiddens):
        if type(getattr(cell, name)) is not nnx.Linear:
            got = type(getattr(cell, name)).__name__
            raise TypeError(f"cell.{name}: expected flax.nnx's Linear, got {got}")
    if cell.promote_dtype is not promote_dtype:
        raise ValueError("cell: expected flax's own promote_dtype, got another function")
    return layout


def _activations(cell: Any, layout: Layout) -> tuple[Any, ...]:
    found = []
    for function in layout.activations(cell):
        for functions, own in ACTIVATIONS.values():
            if any(function is one for one in functions):
                found.append(own)
                break
        else:
            got = getattr(function, "__name__", repr(function))
            raise ValueError(f"cell: expected activations of {', '.join(ACTIVATIONS)}, got {got}")
    return tuple(found)


def from_flax(cell: Any) -> dict[str, jax.Array]:
    """Read the parameters of a cell of flax by rnnkern's names.

    Flax's cells have one bias for each gate. It becomes one of the two that rnnkern's have, and the
    other is zero. The identity that ``SimpleCell(residual=True)`` adds becomes part of
    ``weight_hh_l0``.

    Parameters
    ----------
    cell : flax.nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell

    Returns
    -------
    dict of str to array
        For `rnnkern.jax.lstm`, `gru` or `rnn`, of the dtype of the cell's parameters. JAX
        differentiates through it.

    Raises
    ------
    TypeError, ValueError
        If it is another cell, or one with another kind of module inside.

    Examples
    --------
    >>> from flax import nnx
    >>> import rnnkern.jax.nnx as rkx
    >>> params = rkx.from_flax(nnx.GRUCell(3, 5, rngs=nnx.Rngs(0)))
    >>> params["weight_ih_l0"].shape
    (15, 3)
    """
    layout = _layout(cell)

    def joined(modules: tuple[str, ...], name: str) -> Any:
        parts = [getattr(getattr(cell, module), name)[...] for module in modules]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    weight_ih, weight_hh = joined(layout.inputs, "kernel").T, joined(layout.hiddens, "kernel").T
    if getattr(cell, "residual", False):
        weight_hh = weight_hh + jnp.eye(cell.hidden_features, dtype=weight_hh.dtype)
    bias = joined(layout.inputs if layout.bias == "ih" else layout.hiddens, "bias")
    biases = {"bias_ih_l0": jnp.zeros_like(bias), "bias_hh_l0": jnp.zeros_like(bias)}
    biases[f"bias_{layout.bias}_l0"] = bias
    return {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, **biases}


def to_flax(params: Params, cell: Any) -> None:
    """Write the parameters of one layer and direction into a cell of flax.

    Parameters
    ----------
    params : mapping of str to array
        ``weight_ih_l0``, ``weight_hh_l0``, and both biases or none, such as a layer's ``params``.
    cell : flax.nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell
        It gets them in the dtype of its own parameters.

    Raises
    ------
    TypeError, ValueError
        If names or shapes are not those of the cell. If a GRU has a bias b_hn that is not zero:
        flax's GRUCell has none.

    Examples
    --------
    >>> from flax import nnx
    >>> import rnnkern as rk, rnnkern.jax.nnx as rkx
    >>> cell = nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0))
    >>> rkx.to_flax(rk.LSTM(3, 5).params, cell)
    """
    layout = _layout(cell)
    if not isinstance(params, Mapping):
        got = type(params).__name__
        raise TypeError(f"params: expected a mapping of names to arrays, got {got}")
    H = cell.hidden_features
    shapes = {name: a.shape for name, a in from_flax(cell).items()}
    if not any(name.startswith("bias") for name in params):
        params = {**params, **{name: np.zeros(shapes[name]) for name in shapes if "bias" in name}}
    found = {name: np.shape(a) for name, a in params.items()}
    if found != shapes:
        raise ValueError(f"params: expected arrays of shapes {shapes}, got {found}")
    own = {name: np.asarray(a) for name, a in params.items()}
    bias = own["bias_ih_l0"] + own["bias_hh_l0"]
    if layout.cell == "gru" and np.any(own["bias_hh_l0"][2 * H :]):
        expected = "expected zeros in its last H values (flax's GRUCell has no bias b_hn)"
        raise ValueError(f"params['bias_hh_l0']: {expected}, got others")
    weight_hh = own["weight_hh_l0"]
    if getattr(cell, "residual", False):
        weight_hh = weight_hh - np.eye(H, dtype=weight_hh.dtype)
    biased = layout.inputs if layout.bias == "ih" else layout.hiddens
    for modules, name, values in (
        (layout.inputs, "kernel", own["weight_ih_l0"].T),
        (layout.hiddens, "kernel", weight_hh.T),
        (biased, "bias", bias),
    ):
        for module, part in zip(modules, np.split(values, len(modules), axis=-1), strict=True):
            variable = getattr(getattr(cell, module), name)
            variable[...] = jnp.asarray(part, variable.dtype)


class RNN(nnx.RNN):
    """`flax.nnx.RNN` on the core: the same cells, parameters and call.

    Outputs behind a row's end are zero, and the carry of a row of length 0 is its initial one.

    Parameters
    ----------
    cell : flax.nnx.LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell
        Its activations may be sigmoid, tanh, relu, hard_sigmoid, elu, leaky_relu, soft_sign and
        softplus of flax or JAX.
    time_major, return_carry, reverse, keep_order : bool
        As of `flax.nnx.RNN`.
    rngs : flax.nnx.Rngs or bool
        As of `flax.nnx.RNN`; of a cell's ``carry_init``.
    clip : rnnkern.Clip, optional
        Gradient clips, fused into backward; as of `rnnkern.jax.rnn`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import rnnkern.jax.nnx as rkx
    >>> rngs = nnx.Rngs(0)
    >>> ahead, back = (rkx.RNN(nnx.GRUCell(3, 5, rngs=rngs)) for _ in range(2))
    >>> both = nnx.Bidirectional(ahead, back)
    >>> both(jnp.ones((2, 7, 3)), seq_lengths=jnp.array([7, 4])).shape
    (2, 7, 10)
    """

    def __init__(
        self,
        cell: Any,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        rngs: Any = True,
        clip: Clip | None = None,
    ) -> None:
        _activations(cell, _layout(cell))  # refuse other cells now
        bounds_of(clip)
        flags = {"time_major": time_major, "return_carry": return_carry}
        flags |= {"reverse": reverse, "keep_order": keep_order}
        super().__init__(cell, rngs=rngs, **{n: flag(n, value) for n, value in flags.items()})
        self.clip = clip

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Run over a sequence.

        Parameters
        ----------
        inputs : array, shape (..., T, I), (T, ..., I) with `time_major`
            Any number of axes of rows.
        initial_carry : array or tuple of array, optional
            (..., H); of an LSTM the pair (c, h). What the cell initializes if not given.
        seq_lengths : array of integers, shape (...), optional
            Each row's number of steps, 0 to T.
        return_carry, time_major, reverse, keep_order : bool, optional
            As of the constructor, for this call.
        rngs : flax.nnx.Rngs, optional
            As of `flax.nnx.RNN`.

        Returns
        -------
        outputs, or (carry, outputs) with `return_carry`
            (..., T, H), laid out as `inputs`; the carry at each row's own last step.

        Raises
        ------
        TypeError, ValueError, jax.errors.JaxRuntimeError, NotImplementedError
            As of `rnnkern.jax.rnn`.
        """
        cell = self.cell
        layout = _layout(cell)
        time_major = self._flag("time_major", time_major)
        reverse = self._flag("reverse", reverse)
        keep_order = self._flag("keep_order", keep_order)
        return_carry = self._flag("return_carry", return_carry)
        x = jnp.asarray(inputs)
        if x.ndim < 2 or x.shape[-1] != cell.in_features:
            shape = "(T, ..., I)" if time_major else "(..., T, I)"
            expected = f"expected shape {shape} with I = {cell.in_features}"
            raise ValueError(f"inputs: {expected}, got {x.shape}")
        steps, rows = (
            x.shape[0 if time_major else -2],
            x.shape[1:-1] if time_major else x.shape[:-2],
        )

        params = from_flax(cell)
        dtype = np.dtype(cell.dtype or jnp.result_type(x, *params.values()))
        if dtype not in DTYPES:
            raise TypeError(f"cell: expected to compute in float32 or float64, got {dtype}")
        params = {name: a.astype(dtype) for name, a in params.items()}
        if initial_carry is None and cell.carry_init is not None:
            stream = self.rngs if rngs is None else rngs
            stream = stream.carry.fork() if isinstance(stream, nnx.Rngs) else stream
            initial_carry = cell.initialize_carry((*rows, x.shape[-1]), stream)

        count = math.prod(rows)
        if len(rows) != 1:
            x = x.reshape(*((steps, count) if time_major else (count, steps)), x.shape[-1])
        state = None
        if initial_carry is not None:
            H, several = cell.hidden_features, layout.cell == "lstm"
            parts = initial_carry if several else (initial_carry,)
            if not isinstance(parts, (tuple, list)) or len(parts) != 1 + several:
                expected = "expected a pair (c, h) of arrays"
                raise TypeError(f"initial_carry: {expected}, got {type(parts).__name__}")
            arrays = [jnp.asarray(part, dtype) for part in parts]
            carries = [
                _of_shape("initial_carry", array, (*rows, H)).reshape(1, count, H)
                for array in arrays
            ]
            state = tuple(reversed(carries)) if several else carries[0]  # (c, h)
        lengths = None
        if seq_lengths is not None:
            own = seq_lengths if isinstance(seq_lengths, jax.Array) else np.asarray(seq_lengths)
            lengths = _of_shape("seq_lengths", own, rows).reshape(count)
        y, last = recurrent(
            _layer(cell, layout, x.shape[-1], dtype, not time_major, reverse),
            params,
            x.astype(dtype),
            state,
            lengths,
            clip=self.clip,
        )
        if reverse and not keep_order:
            y = flip_sequences(y, lengths, num_batch_dims=1, time_major=time_major)
        H = cell.hidden_features
        y = y.reshape(*((steps, *rows) if time_major else (*rows, steps)), H)
        if not return_carry:
            return y
        carry = jax.tree.map(lambda s: s.reshape(*rows, H), last)
        return (tuple(reversed(carry)) if layout.cell == "lstm" else carry), y

    def _flag(self, name: str, given: Any) -> bool:
        """An option of the constructor, or of this call."""
        return bool(getattr(self, name)) if given is None else flag(name, given)


def _of_shape(name: str, array: Any, shape: tuple[int, ...]) -> Any:
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def _layer(
    cell: Any, layout: Layout, inputs: int, dtype: Any, batch_first: bool, reverse: bool
) -> Any:
    options: dict[str, Any] = {"batch_first": batch_first, "reverse": reverse}
    activations = _activations(cell, layout)
    if activations != STANDARD[layout.cell]:
        options["activations"] = activations
    return made(layout.cell, inputs, cell.hidden_features, dtype=dtype, **options)
