"""Recurrent layers as functions of parameters and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import layers
from ..checks import choice, flag, probability, size
from ..clip import Clip
from ..docstrings import complete
from ..layers.base import NO_CLIP, _Layer
from .calls import Layer, Setup, layer_of
from .primitives import forward_p

__all__ = ["from_layer", "gru", "init", "lstm", "min_gru", "recurrent", "rnn", "to_layer"]

Params: TypeAlias = Mapping[str, Any]
CellName: TypeAlias = Literal["rnn", "lstm", "gru", "min_gru"]
CELLS: dict[CellName, Any] = {
    "rnn": layers.RNN,
    "lstm": layers.LSTM,
    "gru": layers.GRU,
    "min_gru": layers.MinGRU,
}
GATES: dict[CellName, int] = {"rnn": 1, "lstm": 4, "gru": 3, "min_gru": 2}
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


# ---- layers of parameters ----------------------------------------------------------------------


@lru_cache(256)
def made(cell: CellName, *sizes: int, **options: Any) -> _Layer[Any]:
    """A layer that says what a call is; its own parameters are not used."""
    layer: _Layer[Any] = CELLS[cell](*sizes, init="zeros", **options)  # the quickest to make
    layer._init = "uniform"  # which a repr need not say
    return layer


@lru_cache(1024)
def _description(layer: _Layer[Any]) -> str:
    return json.dumps(layer._stack._arguments, sort_keys=True)


def _arrays(params: Any) -> dict[str, Any]:
    """The parameters as arrays of JAX."""
    if not isinstance(params, Mapping):
        got = type(params).__name__
        raise TypeError(f"params: expected a mapping of names to arrays, got {got}")
    found = {}
    for name, a in params.items():
        try:
            found[name] = a if isinstance(a, jax.Array) else jnp.asarray(a)
        except (TypeError, ValueError) as error:
            expected = "expected an array of float32 or float64"
            got = f"got {type(a).__name__} ({error})"
            raise TypeError(f"params[{name!r}]: {expected}, {got}") from error
    return found


def _layer(cell: CellName, params: dict[str, Any], **options: Any) -> _Layer[Any]:
    """The layer that has these parameters."""
    needed = ["weight_ih_l0", "weight_hh_l0"] if cell != "min_gru" else ["weight_ih_l0"]
    for name in needed:
        if name not in params:
            raise ValueError(f"params: expected {name}, got {', '.join(params) or 'none'}")
    shape = params["weight_ih_l0"].shape
    rows = GATES[cell]
    if len(shape) not in (2, 3) or shape[-2] < rows or shape[-2] % rows:
        expected = f"expected shape ({rows} * H, I) of {cell}"
        raise ValueError(f"params['weight_ih_l0']: {expected}, got {shape}")
    if len(shape) == 3:
        options["ensemble"] = shape[0]
    if "weight_hr_l0" in params:
        options["proj_size"] = params["weight_hr_l0"].shape[-2]
    if "weight_ch_l0" in params:
        options["peephole"] = True
    num_layers = 1
    while f"weight_ih_l{num_layers}" in params:
        num_layers += 1
    return made(
        *(cell, shape[-1], shape[-2] // rows, num_layers),
        bias=any(name.startswith("bias") for name in params),
        bidirectional=any(name.endswith("_reverse") for name in params),
        dtype=_dtype(params),
        **options,
    )


def _dtype(params: dict[str, Any]) -> np.dtype[Any]:
    name, first = next(iter(params.items()))
    if first.dtype not in DTYPES:
        expected = "expected an array of float32 or float64"
        raise TypeError(f"params[{name!r}]: {expected}, got one of {first.dtype}")
    dtype: np.dtype[Any] = np.dtype(first.dtype)
    return dtype


# ---- calls -------------------------------------------------------------------------------------


def _matched(layer: Layer, owner: str, params: dict[str, Any]) -> list[Any]:
    """The parameters in the core's order."""
    wrong = []
    if missing := [name for name in layer.shapes if name not in params]:
        wrong.append(f"missing {', '.join(missing)}")
    if extra := [name for name in params if name not in layer.shapes]:
        wrong.append(f"extra {', '.join(extra)}")
    others = [
        f"{name} {params[name].shape} for {shape}"
        for name, shape in layer.shapes.items()
        if name in params and params[name].shape != shape
    ]
    if others:
        wrong.append(f"other shapes {', '.join(others)}")
    if wrong:
        raise ValueError(f"params: expected the arrays of {owner}, got {'; '.join(wrong)}")
    own = [params[name] for name in layer.shapes]
    for name, a in zip(layer.shapes, own, strict=True):
        _check_dtype(f"params[{name!r}]", a, layer.dtype)
    return own


def _check_dtype(name: str, a: Any, dtype: np.dtype[Any]) -> None:
    if a.dtype != dtype:
        expected = f"expected an array of {dtype}, as the parameters"
        raise TypeError(f"{name}: {expected}, got one of {a.dtype}")


def _check_shape(name: str, a: Any, shape: tuple[int, ...]) -> None:
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {a.shape}")


def _called(
    layer: _Layer[Any],
    params: dict[str, Any],
    x: Any,
    state: Any,
    lengths: Any,
    mask: Any,
    resets: Any,
    batch_first: bool,
    dropout: float,
    key: Any,
    clip: Any,
) -> Any:
    """Check what is given, and call."""
    description = _description(layer)
    of = layer_of(description)
    own = _matched(of, repr(layer), params)
    x = jnp.asarray(x)
    _check_dtype("x", x, of.dtype)
    ranks = "(T, E, B, I) or (T, B, I)" if of.members else "(T, B, I), (B, T, I) or (T, I)"
    if x.ndim not in ((3, 4) if of.members else (2, 3)) or x.shape[-1] != of.inputs:
        raise ValueError(f"x: expected shape {ranks} with I = {of.inputs}, got {x.shape}")
    if of.members and x.ndim == 4 and x.shape[1] != of.members:
        raise ValueError(f"x: expected shape {ranks} with E = {of.members}, got {x.shape}")
    batch_first = flag("batch_first", batch_first)
    if batch_first and of.members:
        raise ValueError("batch_first: expected False with an ensemble, got True")
    steps = x.shape[:-1] if x.ndim < 4 else (x.shape[0], x.shape[2])
    rows = steps[0 if batch_first else 1 :][:1] if len(steps) > 1 else ()

    states = _states(of, state, (of.members, *rows) if of.members else rows)
    given = {}
    if lengths is not None:
        if not rows:
            raise ValueError("lengths: expected None with unbatched x, got an array")
        given["lengths"] = lengths = _int32(lengths)
        _check_shape("lengths", lengths, rows)
        if mask is not None:
            raise ValueError("mask: expected None with lengths, got an array")
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is not None:
            given[name] = jnp.asarray(flags)
            if given[name].dtype != np.bool_:
                got = f"got one of {given[name].dtype}"
                raise TypeError(f"{name}: expected an array of booleans, {got}")
            _check_shape(name, given[name], steps)
    draws = key is not None
    if draws:
        if not dropout and not any(layer._cell.noise):
            raise ValueError(f"key: expected None for {layer!r} without dropout, got a key")
        given["seed"] = jax.random.bits(key, (of.members or 1, 2), np.uint32)
    setup = Setup(
        description,
        batch_first and x.ndim == 3,
        bool(states),
        tuple(given),
        dropout if draws else 0.0,
        draws,
        bounds_of(clip),
    )
    y, *last = forward_p.bind(x, *states, *given.values(), *own, setup=setup, keep=False)
    return y, last[0] if len(last) == 1 else tuple(last)


def _int32(lengths: Any) -> Any:
    """Lengths as int32; those beyond its ends are its ends, which no T allows."""
    array = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"lengths: expected an array of integers, got one of {array.dtype}")
    own, int32 = jnp.iinfo(array.dtype), jnp.iinfo(np.int32)
    if own.min < int32.min or own.max > int32.max:
        least, most = max(own.min, int32.min), min(own.max, int32.max)
        array = (jnp if isinstance(array, jax.Array) else np).clip(array, least, most)
    return jnp.asarray(array).astype(np.int32)


def _states(of: Layer, state: Any, rows: tuple[int, ...]) -> list[Any]:
    if state is None:
        return []
    several = len(of.states) > 1
    if several and (not isinstance(state, (tuple, list)) or len(state) != len(of.states)):
        named = ", ".join(of.states)
        got = f"{len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"state: expected a tuple of {len(of.states)} arrays ({named}), got {got}")
    states = [jnp.asarray(s) for s in (state if several else [state])]
    for k, (s, (first, width)) in enumerate(zip(states, of.states.values(), strict=True)):
        name = f"state[{k}]" if several else "state"
        _check_dtype(name, s, of.dtype)
        _check_shape(name, s, (first, *rows, width))
    return states


def bounds_of(clip: Any) -> tuple[float, float, float, float]:
    if clip is None:
        return NO_CLIP.bounds()
    if not isinstance(clip, Clip):
        raise TypeError(f"clip: expected a rnnkern.Clip or None, got {type(clip).__name__}")
    return clip.bounds()


def _dropout(layer: _Layer[Any], dropout: float, key: Any) -> float:
    dropout = probability("dropout", dropout)
    if not dropout:
        return dropout
    if layer.num_layers == 1:
        raise ValueError(
            f"dropout: expected 0.0 with one layer (it acts between layers), got {dropout}"
        )
    if key is None:
        raise ValueError(f"key: expected a key of jax.random with dropout={dropout}, got None")
    return dropout


def rnn(
    params: Params,
    x: Any,
    state: Any = None,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    key: Any = None,
    clip: Clip | None = None,
) -> Any:
    """Run an RNN over a sequence: `rnnkern.RNN` as a function.

    It can be used under `jax.jit`, `jax.grad` and `jax.vjp`, `jax.vmap`, `jax.lax.scan` and
    `jax.checkpoint`, on the CPU. An axis that `jax.vmap` maps becomes rows of one call, or, of
    parameters, members of an ensemble.

    Parameters
    ----------
    params : mapping of str to array
        The parameters by PyTorch's names, float32 or float64: such as of `init`, or a layer's
        ``params``. Sizes, layers, directions and biases are read from names and shapes. Each array
        may have an axis in front: an ensemble.
    x : array, shape (T, B, I), (B, T, I) with `batch_first`, or (T, I) for one row
        The input, of the parameters' dtype.
    state : array, shape (L*D, B, H), optional
        The initial state; (L*D, H) for one row. Zeros if not given.
    lengths : array of integers, shape (B,), optional
        Each row's number of steps, 0 to T, in any order.
    mask : array of bool, shape (T, B), laid out as `x`, optional
        True at real steps; not with `lengths`.
    resets : array of bool, shape (T, B), laid out as `x`, optional
        Where another sequence begins in a row.
    nonlinearity : {"tanh", "relu"}
        As of `rnnkern.RNN`.
    reverse : bool
        Whether time goes backward. Not with two directions.
    residual : bool
        Whether layers above the first add their input to h.
    batch_first : bool
        Whether sequences are (B, T, C).
    dropout : float
        Probability that an element between two layers is zeroed. Needs `key`.
    key : key of jax.random, optional
        Of the masks of dropout. With None nothing is drawn.
    clip : rnnkern.Clip, optional
        Gradient clips, fused into backward. Bounds of parameters' gradients are those of the
        gradient of one call, of all rows of a mapped one.

    Returns
    -------
    y : array, shape (T, B, D*H), laid out as `x`
        Zero behind a row's end and at masked steps.
    state : array, shape (L*D, B, H)
        At each row's own last step.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, dtype or shape; the message names it.
    jax.errors.JaxRuntimeError, ValueError
        If lengths are not from 0 to T, which a compiled program sees when it runs: JAX raises the
        first where it waits for results, the second where the call itself runs the program.
    NotImplementedError
        If the call is differentiated twice or in forward mode, or compiled for another platform
        than the CPU.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import rnnkern.jax as rkj
    >>> params = rkj.init(jax.random.key(0), "rnn", 3, 5)
    >>> y, h = jax.jit(rkj.rnn)(params, jnp.ones((7, 2, 3)))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    >>> gradients = jax.grad(lambda p: rkj.rnn(p, jnp.ones((7, 2, 3)))[0].sum())(params)
    >>> gradients["weight_hh_l0"].shape
    (5, 5)
    """
    own = _arrays(params)
    options = {"nonlinearity": choice("nonlinearity", nonlinearity, ("tanh", "relu"))}
    layer = _layer("rnn", own, **options, **_directions(reverse, residual))
    p = _dropout(layer, dropout, key)
    return _called(layer, own, x, state, lengths, mask, resets, batch_first, p, key, clip)


def _directions(reverse: bool, residual: bool) -> dict[str, bool]:
    return {"reverse": flag("reverse", reverse), "residual": flag("residual", residual)}


def lstm(
    params: Params,
    x: Any,
    state: tuple[Any, Any] | None = None,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    key: Any = None,
    clip: Clip | None = None,
) -> Any:
    """Run an LSTM over a sequence: `rnnkern.LSTM` as a function; see `rnn`.

    Parameters
    ----------
    params : mapping of str to array
        As of `rnn`. A projection (``weight_hr_l0``) and peepholes (``weight_ch_l0``) are used where
        they are there.
    state : tuple of two arrays, optional
        (h, c), of shapes (L*D, B, P) and (L*D, B, H); P is H without a projection.
    x, lengths, mask, resets, reverse, residual, batch_first, dropout, key, clip
        As of `rnn`.

    Returns
    -------
    y : array, shape (T, B, D*P), laid out as `x`
    state : tuple of two arrays
        (h, c).

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError, NotImplementedError
        As of `rnn`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import rnnkern.jax as rkj
    >>> params = rkj.init(jax.random.key(0), "lstm", 3, 5, num_layers=2, bidirectional=True)
    >>> y, (h, c) = rkj.lstm(params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
    >>> y.shape, c.shape
    ((7, 2, 10), (4, 2, 5))
    """
    own = _arrays(params)
    layer = _layer("lstm", own, **_directions(reverse, residual))
    p = _dropout(layer, dropout, key)
    return _called(layer, own, x, state, lengths, mask, resets, batch_first, p, key, clip)


def gru(
    params: Params,
    x: Any,
    state: Any = None,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    reset_after: bool = True,
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    key: Any = None,
    clip: Clip | None = None,
) -> Any:
    """Run a GRU over a sequence: `rnnkern.GRU` as a function; see `rnn`.

    Parameters
    ----------
    params, x, state, lengths, mask, resets, reverse, residual, batch_first, dropout, key, clip
        As of `rnn`.
    reset_after : bool
        As of `rnnkern.GRU`.

    Returns
    -------
    y : array, shape (T, B, D*H), laid out as `x`
    state : array, shape (L*D, B, H)

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError, NotImplementedError
        As of `rnn`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import rnnkern.jax as rkj
    >>> params = rkj.init(jax.random.key(0), "gru", 3, 5)
    >>> rows = jnp.ones((8, 7, 3))  # a function of one row, mapped over rows: one call
    >>> y, h = jax.vmap(rkj.gru, in_axes=(None, 0))(params, rows)
    >>> y.shape, h.shape
    ((8, 7, 5), (8, 1, 5))
    """
    own = _arrays(params)
    options = {"reset_after": flag("reset_after", reset_after)}
    layer = _layer("gru", own, **options, **_directions(reverse, residual))
    p = _dropout(layer, dropout, key)
    return _called(layer, own, x, state, lengths, mask, resets, batch_first, p, key, clip)


def min_gru(
    params: Params,
    x: Any,
    state: Any = None,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    candidate: Literal["positive", "identity", "tanh"] = "positive",
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    key: Any = None,
    clip: Clip | None = None,
) -> Any:
    """Run a minGRU over a sequence: `rnnkern.MinGRU` as a function; see `rnn`.

    Parameters
    ----------
    params, x, state, lengths, mask, resets, reverse, residual, batch_first, dropout, key, clip
        As of `rnn`.
    candidate : {"positive", "identity", "tanh"}
        As of `rnnkern.MinGRU`.

    Returns
    -------
    y : array, shape (T, B, D*H), laid out as `x`
    state : array, shape (L*D, B, H)

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError, NotImplementedError
        As of `rnn`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import rnnkern.jax as rkj
    >>> params = rkj.init(jax.random.key(0), "min_gru", 3, 5)
    >>> resets = jnp.zeros((7, 2), bool).at[3].set(True)  # another sequence at the fourth step
    >>> y, h = rkj.min_gru(params, jnp.ones((7, 2, 3)), resets=resets)
    >>> y.shape
    (7, 2, 5)
    """
    own = _arrays(params)
    layer = _layer("min_gru", own, candidate=candidate, **_directions(reverse, residual))
    p = _dropout(layer, dropout, key)
    return _called(layer, own, x, state, lengths, mask, resets, batch_first, p, key, clip)


def recurrent(
    layer: Any,
    params: Params,
    x: Any,
    state: Any = None,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    key: Any = None,
    clip: Clip | None = None,
) -> Any:
    """Run any recurrent layer of rnnkern as a function of parameters; see `rnn`.

    Parameters
    ----------
    layer : recurrent layer
        Its class and options say what is computed: layer norm, activations, zoneout, ensembles,
        ``batch_first``. Its own parameters are not read.
    params : mapping of str to array
        Arrays of the names and shapes of ``layer.params``, of the layer's dtype.
    x, state, lengths, mask, resets, clip
        As of calling the layer, and of `rnn`.
    key : key of jax.random, optional
        Of dropout, zoneout and recurrent dropout, which are then drawn with the layer's
        probabilities. With None nothing is drawn, as in calling the layer.

    Returns
    -------
    y, state
        As of calling the layer.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError, NotImplementedError
        As of `rnn`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import rnnkern as rk, rnnkern.jax as rkj
    >>> lstm = rk.LSTM(3, 8, layer_norm="haste", seed=0)
    >>> loss = lambda p: rkj.recurrent(lstm, p, jnp.ones((7, 2, 3)))[0].sum()
    >>> jax.grad(loss)(rkj.from_layer(lstm))["gain_c_l0"].shape
    (8,)
    """
    _check_layer(layer)
    own = _arrays(params)
    first = layer.batch_first
    return _called(layer, own, x, state, lengths, mask, resets, first, layer.dropout, key, clip)


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, _Layer):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")


# ---- parameters --------------------------------------------------------------------------------


def init(
    key: Any,
    cell: CellName,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    bias: bool = True,
    bidirectional: bool = False,
    proj_size: int = 0,
    dtype: Any = np.float32,
) -> dict[str, jax.Array]:
    """Draw parameters for `rnn`, `lstm`, `gru` or `min_gru`.

    All are uniform over (-1/sqrt(H), 1/sqrt(H)), as PyTorch's. `from_layer` takes those of a layer
    with any initializer of rnnkern.

    Parameters
    ----------
    key : key of jax.random
    cell : {"rnn", "lstm", "gru", "min_gru"}
    input_size, hidden_size, num_layers : int
        I, H and L.
    bias, bidirectional : bool
        Whether there are biases, and two directions.
    proj_size : int
        P of an LSTM's projection; 0 for none.
    dtype : {float32, float64}
        float64 needs ``jax_enable_x64``.

    Returns
    -------
    dict of str to array
        By PyTorch's names.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import jax
    >>> import rnnkern.jax as rkj
    >>> params = rkj.init(jax.random.key(0), "gru", 3, 5)
    >>> {name: p.shape for name, p in params.items()}
    {'weight_ih_l0': (15, 3), 'weight_hh_l0': (15, 5), 'bias_ih_l0': (15,), 'bias_hh_l0': (15,)}
    """
    cell = choice("cell", cell, tuple(CELLS))
    options: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional}
    if cell == "lstm":
        options["proj_size"] = proj_size
    elif proj_size:
        raise ValueError(f"proj_size: expected 0 for {cell}, got {proj_size}")
    if np.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype: expected float32 without jax_enable_x64, got float64")
    layer = made(cell, input_size, hidden_size, num_layers, dtype=np.dtype(dtype), **options)
    shapes = layer_of(_description(layer)).shapes
    bound = 1.0 / np.sqrt(size("hidden_size", hidden_size))
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, layer.dtype, -bound, bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def from_layer(layer: Any) -> dict[str, jax.Array]:
    """Copy the parameters of a layer of rnnkern.

    Parameters
    ----------
    layer : recurrent layer

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        If it is no recurrent layer, or one of float64 without ``jax_enable_x64``.

    Examples
    --------
    >>> import rnnkern as rk, rnnkern.jax as rkj
    >>> params = rkj.from_layer(rk.GRU(3, 5, init="orthogonal"))
    >>> params["weight_hh_l0"].shape
    (15, 5)
    """
    _check_layer(layer)
    if layer.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("layer: expected float32 without jax_enable_x64, got float64")
    return {name: jnp.array(values) for name, values in layer.state_dict().items()}


def to_layer(cell: CellName, params: Params, **options: Any) -> Any:
    """Make a layer of rnnkern of parameters: for streams, diagnoses and files.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru", "min_gru"}
    params : mapping of str to array
        As of the function of that name.
    **options
        Of the layer's class, such as ``batch_first``, ``nonlinearity`` or ``reset_after``.

    Returns
    -------
    recurrent layer
        With copies of the arrays.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import jax
    >>> import rnnkern.jax as rkj
    >>> gru = rkj.to_layer("gru", rkj.init(jax.random.key(0), "gru", 3, 5), batch_first=True)
    >>> gru
    GRU(3, 5, batch_first=True)
    """
    cell = choice("cell", cell, tuple(CELLS))
    own = _arrays(params)
    layer = _layer(cell, own, **options).copy()
    _matched(layer_of(_description(layer)), repr(layer), own)
    layer.load_state_dict({name: np.asarray(a) for name, a in own.items()})
    return layer


complete(
    *(rnn, lstm, gru, min_gru, recurrent),
    of={f"rnnkern.{cls.__name__}": cls for cls in (layers.RNN, layers.GRU, layers.MinGRU)},
)
