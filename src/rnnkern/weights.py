"""Parameters from elsewhere: state dicts of PyTorch and of this package, into layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .checks import cast_to, choice, flag, float_dtype, viewed
from .layers import GRU, LAYERS, LSTM, RGLRU, RNN, SLSTM, IndRNN, MinGRU, MinLSTM, _Layer
from .layers.min_gru import CANDIDATES

__all__ = ["from_state_dict", "matched"]

Array = NDArray[Any]
Shape = tuple[int, ...]

MOST_SHOWN = 8  # names in a message

# How many gates the rows of weight_ih have, of classes with a weight_hh.
GATES: dict[type[_Layer[Any]], int] = {RNN: 1, IndRNN: 1, GRU: 3, LSTM: 4, SLSTM: 4}

# A recurrent layer's parameter in a state dict; PyTorch's cells have no "_l0".
PARAMETER = re.compile(
    r"(?P<prefix>.*?)(?P<name>(?:weight|bias)_(?:ih|hh|hr|ch|c)|gain_(?:ih|hh|c)|lambda)(?:_l(?P<layer>\d+))?(?P<back>_reverse)?"
)


@overload
def from_state_dict(
    mapping: Mapping[str, Any],
    prefix: str,
    *,
    cell: type[_Layer[Any]] | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    reset_after: bool | None = None,
    candidate: str | None = None,
    exp_forget: bool | None = None,
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dtype: DTypeLike | None = None,
) -> _Layer[Any]: ...


@overload
def from_state_dict(
    mapping: Mapping[str, Any],
    prefix: None = None,
    *,
    cell: type[_Layer[Any]] | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    reset_after: bool | None = None,
    candidate: str | None = None,
    exp_forget: bool | None = None,
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dtype: DTypeLike | None = None,
) -> dict[str, _Layer[Any]]: ...


def from_state_dict(
    mapping: Mapping[str, Any],
    prefix: str | None = None,
    *,
    cell: type[_Layer[Any]] | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    reset_after: bool | None = None,
    candidate: str | None = None,
    exp_forget: bool | None = None,
    reverse: bool = False,
    residual: bool = False,
    batch_first: bool = False,
    dtype: DTypeLike | None = None,
) -> _Layer[Any] | dict[str, _Layer[Any]]:
    """Make the layers that a state dict has the parameters of, such as PyTorch's.

    The class, sizes, number of layers, directions, biases, a projection, peepholes, layer norm,
    heads and an ensemble are inferred from names and shapes. Some of what leaves no trace in them
    comes as an option; a layer with others, such as `activations` or `zoneout`, takes the arrays by
    its own ``params=``.

    Parameters
    ----------
    mapping : mapping of str to ndarray or tensor
        Such as ``model.state_dict()`` of PyTorch, or what `files.load` returns. Arrays are copied.
        Other modules' arrays are not looked at.
    prefix : str, optional
        What the names of one layer's parameters begin with, such as ``"encoder."``, or ``""``.
    cell : class of layers, optional
        Needed where the arrays fit several: `MinGRU` and `MinLSTM` of one layer, an `LSTM` with
        ``input_forget``, whose shapes are a `GRU`'s, or an `SLSTM` without biases, of one head, or
        with as many heads as gates. If it is given, an error names arrays that are missing; the
        others may be another class's.
    nonlinearity : {"tanh", "relu"}, optional
        Of an `RNN` or `IndRNN`; the class's default if not given.
    reset_after : bool, optional
        Of a `GRU`; True, as in PyTorch, if not given.
    candidate : {"positive", "identity", "tanh"}, optional
        Of a `MinGRU` or `MinLSTM`; ``"positive"`` if not given.
    exp_forget : bool, optional
        Of an `SLSTM`; False if not given.
    reverse : bool
        Of layers of one direction: whether it goes backward in time.
    residual : bool
        Of layers of two or more.
    batch_first : bool
        Of all layers.
    dtype : {float32, float64}, optional
        Arrays of another floating-point type, such as float16 and bfloat16, are rounded to it. If
        not given, a layer has its arrays' dtype, which must be one of these two.

    Returns
    -------
    recurrent layer, or dict of str to recurrent layer
        The layer of that prefix; without one, all layers by their prefixes.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, there is no such layer, the shapes are no layer's,
        arrays are missing or extra, or an option is for no layer that was found.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> model = rk.LSTM(3, 8, 2, bidirectional=True).state_dict("encoder.")
    >>> model |= rk.GRU(16, 8).state_dict("decoder.") | {"head.weight": np.zeros((5, 8))}
    >>> rk.from_state_dict(model, "encoder.")
    LSTM(3, 8, num_layers=2, bidirectional=True)
    >>> rk.from_state_dict(model)["decoder."]
    GRU(16, 8)
    """
    if cell is not None and cell not in LAYERS.values():
        names = ", ".join(cls.__name__ for cls in LAYERS.values())
        got = cell.__name__ if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell: expected one of the classes {names}, got {got}")
    options: dict[str, Any] = {}
    if nonlinearity is not None:
        options["nonlinearity"] = choice("nonlinearity", nonlinearity, ("tanh", "relu"))
    if reset_after is not None:
        options["reset_after"] = flag("reset_after", reset_after)
    if candidate is not None:
        options["candidate"] = choice("candidate", candidate, CANDIDATES)
    if exp_forget is not None:
        options["exp_forget"] = flag("exp_forget", exp_forget)
    if flag("reverse", reverse):
        options["reverse"] = True
    if flag("residual", residual):
        options["residual"] = True
    if flag("batch_first", batch_first):
        options["batch_first"] = True
    wanted = None if dtype is None else float_dtype(dtype)
    entries = _given("mapping", mapping, "")
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str or None, got {type(prefix).__name__}")
    found = [m for m in map(PARAMETER.fullmatch, entries) if m and m["name"] == "weight_ih"]
    prefixes = list(dict.fromkeys(m["prefix"] for m in found))
    if not prefixes:
        raise ValueError("mapping: expected arrays of recurrent layers, got no weight_ih")
    if prefix is not None and prefix not in prefixes:
        one_of = ", ".join(map(repr, prefixes))
        raise ValueError(f"prefix: expected one of {one_of}, got {prefix!r}")
    unused = set(options)
    layers = {}
    for one in prefixes if prefix is None else [prefix]:
        # A module's own arrays, none of its submodules'.
        own = {n: v for n, v in entries.items() if n.startswith(one) and "." not in n[len(one) :]}
        shape = _inferred(one, own, cell)
        fitting = {name: value for name, value in options.items() if shape.takes(name)}
        layers[one] = _layer(one, own, shape, fitting, wanted)
        unused -= set(fitting)
    if unused:
        name = min(unused)
        classes = ", ".join(repr(layer) for layer in layers.values())
        got = f"{options[name]!r} for {classes}"
        expected = (
            "False"
            if options[name] is True and name in ("reverse", "residual", "batch_first")
            else "None"
        )
        raise ValueError(f"{name}: expected {expected} where no layer takes it, got {got}")
    return layers if prefix is None else layers[prefix]


class _Inferred(NamedTuple):
    """What names and shapes say of a layer."""

    cls: type[_Layer[Any]]
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    ensemble: int | None
    own: dict[str, Any]  # options of the class

    def takes(self, option: str) -> bool:
        """Whether an option has an effect."""
        return {
            "nonlinearity": self.cls in (RNN, IndRNN),
            "reset_after": self.cls is GRU and "layer_norm" not in self.own,
            "candidate": self.cls in (MinGRU, MinLSTM),
            "exp_forget": self.cls is SLSTM,
            "reverse": not self.bidirectional,
            "residual": self.num_layers > 1,
            "batch_first": self.ensemble is None,
        }[option]


def _inferred(prefix: str, own: Mapping[str, Any], cell: type[_Layer[Any]] | None) -> _Inferred:
    parameters = [m for m in map(PARAMETER.fullmatch, own) if m and m["prefix"] == prefix]
    layers = 1 + max(int(m["layer"] or 0) for m in parameters)
    directions = 2 if any(m["back"] for m in parameters) else 1
    shapes = {m["name"]: _shape(m[0], own[m[0]]) for m in parameters if _first(m)}
    inputs = shapes.get("weight_ih", ())
    ensemble = inputs[0] if len(inputs) == 3 else None
    if ensemble is not None:
        shapes = {name: shape[1:] for name, shape in shapes.items()}
    if len(inputs) not in (2, 3):
        got = f"shape {inputs}" if inputs else "none"
        raise ValueError(f"mapping[{prefix + 'weight_ih_l0'!r}]: expected a matrix, got {got}")
    rows, width = shapes["weight_ih"]
    states, projection = shapes.get("weight_hh"), shapes.get("weight_hr")
    options: dict[str, Any] = {}
    classes: dict[type[_Layer[Any]], int] = {}  # that fit, and their numbers of gates
    hidden: int | None = None
    bias = any(m["name"].startswith("bias") for m in parameters)
    if "lambda" in shapes:
        classes, hidden = {RGLRU: 2}, shapes["lambda"][0]
    elif states is None:  # the second layer's inputs say what H is
        above = next((_shape(n, v) for n, v in own.items() if n == f"{prefix}weight_ih_l1"), None)
        hidden = above[-1] // directions if above else None
        classes = {MinGRU: 2, MinLSTM: 3}
        classes = {
            c: n for c, n in classes.items() if rows % n == 0 and hidden in (None, rows // n)
        }
        if cell is None and (len(classes) == 2 or (hidden is None and classes and not bias)):
            shown = f"{prefix}weight_ih_l0 has {rows} rows"
            raise ValueError(f"cell: expected {_names(classes)}, as {shown}, got None")
    elif len(states) == 1:
        classes, hidden = {IndRNN: 1}, states[0]
    elif len(states) == 2:
        hidden = projection[1] if projection and len(projection) == 2 else states[1]
        gates = {RNN: 1, GRU: 3, LSTM: 4}
        classes = {c: count for c, count in gates.items() if hidden and rows == count * hidden}
        heads = 0 if projection or rows % 4 or not states[1] else rows // 4 / states[1]
        if heads > 1 and heads == int(heads) and (not classes or cell is SLSTM):
            classes, hidden, options["heads"] = {SLSTM: 4}, rows // 4, int(heads)
        elif LSTM in classes and not projection and ("bias_hh" in shapes) < ("bias_ih" in shapes):
            if "gain_ih" not in shapes:
                classes = {SLSTM: 4}
        elif cell is SLSTM and LSTM in classes and "bias_hh" not in shapes:
            classes = {SLSTM: 4}
        if "gain_ih" in shapes:
            options["layer_norm"] = _convention(prefix, classes, shapes)
        peepholes = shapes.get("weight_ch")
        if GRU in classes and (cell is LSTM or projection or peepholes):  # f = 1 - i
            classes, options["input_forget"] = {LSTM: 3}, True
        if projection:
            options["proj_size"] = projection[0]
        if peepholes:
            options["peephole"] = True
    if cell is None and SLSTM in classes and not ("heads" in options and "bias_ih" in shapes):
        shown = f"the arrays of {prefix!r} are an SLSTM's, or some of an LSTM's"
        raise ValueError(f"cell: expected SLSTM or LSTM, as {shown}, got None")
    if cell and cell not in classes and (count := GATES.get(cell)) and rows % count == 0:
        two = {"bias_ih", "bias_hh"} if bias and cell in (RNN, GRU, LSTM) else set()
        narrow = states[-1] if cell is LSTM and states and states[-1] < rows // 4 else 0
        if narrow or not {"weight_hh", *two} <= shapes.keys():  # the constructor says what misses
            classes, hidden = {cell: count}, rows // count
            options = {"proj_size": narrow} if narrow else {}
    if not classes:
        shown = f"{prefix!r}: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"mapping: expected the shapes of a recurrent layer, got {shown}")
    if cell is not None and cell not in classes:
        expected = f"{_names(classes)} for the shapes of {prefix!r}"
        raise ValueError(f"cell: expected {expected}, got {cell.__name__}")
    cls = cell or next(iter(classes))
    hidden = hidden or rows // classes[cls]
    return _Inferred(cls, width, hidden, layers, directions == 2, bias, ensemble, options)


def _convention(prefix: str, classes: Iterable[type[_Layer[Any]]], shapes: Iterable[str]) -> str:
    """The convention of layer norm: haste's LSTM has one bias for its gates, fastrnns' two."""
    if LSTM in classes and "bias_ih" not in shapes:
        expected = "the biases, which tell layer_norm='haste' from 'fastrnns'"
        raise ValueError(f"mapping: expected {expected}, got none for {prefix!r}")
    return "fastrnns" if LSTM in classes and "bias_hh" in shapes else "haste"


def _layer(
    prefix: str,
    own: Mapping[str, Any],
    inferred: _Inferred,
    options: Mapping[str, Any],
    dtype: np.dtype[Any] | None,
) -> _Layer[Any]:
    arrays = {
        name.removeprefix(prefix): _array(
            f"mapping[{name!r}]", value, dtype, dtype is not None, "pass dtype=np.float32"
        )
        for name, value in own.items()
    }
    if dtype is None:
        dtypes = sorted({str(array.dtype) for array in arrays.values()})
        if dtypes not in (["float32"], ["float64"]):
            got = f"None for {prefix!r} of {', '.join(dtypes)}"
            raise TypeError(f"dtype: expected float32 or float64 to convert to, got {got}")
        dtype = np.dtype(dtypes[0])
    cls, *sizes, bidirectional, bias, ensemble, of_class = inferred
    make: Any = cls
    try:
        layer: _Layer[Any] = make(
            *sizes,
            bidirectional=bidirectional,
            bias=bias,
            ensemble=ensemble,
            dtype=dtype,
            params=arrays,
            **of_class,
            **options,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("params", f"mapping[{prefix + '*'!r}]", 1)) from None
    return layer


def _first(parameter: re.Match[str]) -> bool:
    """Whether it is one of the first layer's, and forward in time."""
    return parameter["layer"] in (None, "0") and not parameter["back"]


def _shape(name: str, value: Any) -> Shape:
    shape = getattr(value, "shape", None)
    if shape is None:
        shape = np.shape(value)
    return tuple(int(n) for n in shape)


def _names(classes: Iterable[type[_Layer[Any]]]) -> str:
    return " or ".join(cls.__name__ for cls in classes)


def matched(
    argument: str,
    mapping: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    dtype: np.dtype[Any],
    owner: str,
    *,
    prefix: str = "",
    strict: bool = True,
    cast: bool = False,
    hint: str = "",
) -> tuple[dict[str, Array], list[str], list[str]]:
    """Find the arrays for parameters of these shapes; then the names that are missing, and extra.

    `argument` and `owner` are what a message says of the mapping and of the layer, and `hint` how
    to have an array of another dtype converted. The arrays may be the caller's own.
    """
    given = _given(argument, mapping, prefix)
    strict, cast = flag("strict", strict), flag("cast", cast)
    sources = {}
    for name in shapes:
        short = name.replace("_l0", "", 1)
        if name in given:
            sources[name] = name
        elif short in given and not any("_l1" in other for other in shapes):
            sources[name] = short
    missing = [name for name in shapes if name not in sources]
    extra = [name for name in given if name not in sources.values()]
    found, other = {}, []
    for name, source in sources.items():
        array = _array(f"{argument}[{prefix + source!r}]", given[source], dtype, cast, hint)
        if array.shape != shapes[name]:
            other.append(f"{prefix}{source} {array.shape} for {shapes[name]}")
        found[name] = array
    wrong = []
    if strict and missing:
        wrong.append(f"missing {_listed(prefix + name for name in missing)}")
    if strict and extra:
        wrong.append(f"extra {_listed(prefix + name for name in extra)}")
    if other:
        wrong.append(f"other shapes {_listed(other)}")
    if wrong:
        raise ValueError(f"{argument}: expected the arrays of {owner}, got {'; '.join(wrong)}")
    return found, missing, extra


def _given(argument: str, mapping: Any, prefix: Any) -> dict[str, Any]:
    """The entries whose names begin with the prefix, without it."""
    if not isinstance(mapping, Mapping):
        got = type(mapping).__name__
        raise TypeError(f"{argument}: expected a mapping of names to arrays, got {got}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str, got {type(prefix).__name__}")
    entries = dict(mapping.items())
    for name in entries:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected names of type str, got {type(name).__name__}")
    return {n.removeprefix(prefix): value for n, value in entries.items() if n.startswith(prefix)}


def _array(name: str, value: Any, dtype: np.dtype[Any] | None, cast: bool, hint: str) -> Array:
    """`value` as an array, of this dtype if there is one; cast from another if that is wanted."""
    if hasattr(value, "detach"):  # a tensor of PyTorch; its gradient is no parameter
        value = value.detach()
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # a type that NumPy has not
        if not cast:
            wanted = dtype or "float32 or float64"
            raise TypeError(f"{name}: expected an array of dtype {wanted}, got bfloat16 ({hint})")
        value = value.float()
    array = viewed(name, value)
    if array is None:
        array = np.asarray(value)
    if dtype is None or array.dtype == dtype:
        return array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected an array of dtype {dtype}, got {array.dtype}")
    if not cast:
        raise TypeError(f"{name}: expected an array of dtype {dtype}, got {array.dtype} ({hint})")
    return cast_to(name, array, dtype)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return ", ".join(shown[:MOST_SHOWN]) + more
