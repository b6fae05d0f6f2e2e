"""Layers of rnnkern as layers of Keras."""

from __future__ import annotations

from typing import Any

from ..layers import LSTM, _Layer
from ..layers.activations import Chosen
from ..layers.activations import chosen as chosen_of
from .objects import cells_of_object, is_recurrent
from .plans import ACTIVATIONS, HARD_SIGMOID, RECURRENT, Cell
from .recurrent import Recurrent
from .weights import CLASSES, cells_of_layer, parts_of

__all__ = ["to_keras"]

Half = list[tuple[Cell, dict[str, Any]]]

# Options of Keras's classes that the layer determines.
DETERMINED = (
    *("units", "cell", "layer", "backward_layer", "activation", "recurrent_activation"),
    *("use_bias", "reset_after", "go_backwards", "dtype"),
)
OF_WRAPPER = ("merge_mode", "name", "trainable")  # of a Bidirectional; all others its layers have


def to_keras(layer: Any, into: Any = None, *, batch_size: int | None = None, **options: Any) -> Any:
    """Make a Keras layer of one of rnnkern, or write its weights into a Keras layer.

    The Keras layer is built and gives the same values within rounding. Its weights are those of the
    layer, bit for bit, but for one sum: Keras's SimpleRNN, LSTM and GRU with ``reset_after=False``
    have one bias, which is ``bias_ih + bias_hh``. What came from Keras goes back as it was.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Recurrent
        A stack becomes keras.layers.RNN of as many cells, a bidirectional layer a Bidirectional.
        `dropout` and `recurrent_dropout` act in training alone and have another meaning in Keras:
        they are not written.
    into : Keras layer, optional
        What takes the weights, and keeps its own dropout, regularizers, name and options of calls.
        It must be built and compute what `layer` does. A new layer is made if not given.
    batch_size : int, optional
        The rows of a call of a layer with ``stateful=True``, which Keras must know.
    **options
        Of the new layer: what its class takes and the layer does not determine, such as
        ``return_sequences``, ``return_state``, ``stateful``, ``dropout``, ``name``; of a
        Bidirectional ``merge_mode``, too. Those of a `Recurrent` hold if not given.

    Returns
    -------
    Keras layer
        The new one, or `into`.

    Raises
    ------
    TypeError, ValueError
        If Keras has no such layer: an ensemble, ``proj_size``, ``cell_clip``, ``forward_clip``,
        ``peephole``, ``input_forget``, ``layer_norm``, ``zoneout``, ``residual``, ``compute``, an
        activation that Keras does not have, g and c of an LSTM with different ones, or a stack of
        bidirectional layers. If `into` computes something else. No weight is written then.
    ImportError
        If Keras 3 is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnkern as rk, rnnkern.keras
    >>> gru = rk.GRU(3, 5, batch_first=True, seed=0)
    >>> theirs = rk.keras.to_keras(gru, return_sequences=True, dropout=0.2, name="encoder")
    >>> theirs(np.ones((2, 7, 3), np.float32)).shape == (2, 7, 5)
    True
    >>> gru.params["bias_hh_l0"] += 0.5  # training, for example
    >>> rk.keras.to_keras(gru, into=theirs).name
    'encoder'
    """
    calls: dict[str, Any] = {}
    forward: tuple[Any, ...] = (layer,)
    backward: tuple[Any, ...] = ()
    if isinstance(layer, Recurrent):
        forward, backward = layer.layers, layer.backward
        calls = layer.calls._asdict()
    halves = halves_of(forward, backward)
    if into is None:
        into = new(halves, forward[0], batch_size, {**calls, **options})
    else:
        for argument, value in (("batch_size", batch_size), *options.items()):
            if value is not None:
                raise ValueError(f"{argument}: expected None with into, got {value!r}")
        check_same(halves, forward[0], into)
    ours = [one for half in halves for one in half]
    for own, (cell, params) in zip(cells_of_object(into), ours, strict=True):
        for name, values in parts_of(cell, params).items():
            getattr(own, name).assign(values)
    return into


def halves_of(forward: tuple[Any, ...], backward: tuple[Any, ...]) -> list[Half]:
    """The cells of one direction, or of two."""
    for layer in (*forward, *backward):
        refuse_others(layer)
    if forward[0].bidirectional:
        return cells_of_layer(forward[0])
    return [
        [c for layer in half for c in cells_of_layer(layer)[0]]
        for half in (forward, backward)
        if half
    ]


def refuse_others(layer: Any) -> None:
    """Raise if Keras has no layer that does all that this one does."""
    classes: Any = tuple(CLASSES.values())
    if not isinstance(layer, classes):
        names = ", ".join(cls.__name__ for cls in CLASSES.values())
        got = type(layer).__name__
        raise TypeError(f"layer: expected one of {names}, or a Recurrent, got {got}")
    refused = ("ensemble", "proj_size", "cell_clip", "forward_clip", "peephole", "input_forget")
    for option in (*refused, "layer_norm", "zoneout", "residual", "compute"):
        value = getattr(layer, option, None)
        if value not in (None, 0, (0, 0)):
            expected = f"expected one without {option}, which Keras's layers do not have"
            raise ValueError(f"layer: {expected}, got {option}={value!r}")
    if layer.bidirectional and layer.num_layers > 1:
        expected = "expected num_layers=1 with bidirectional, as Keras has a layer for each"
        raise ValueError(f"layer: {expected}, got num_layers={layer.num_layers}")
    if isinstance(layer, LSTM) and layer.activations is not None:
        _, g, c = layer._cell.activations
        if g != c:
            expected = "expected one for g and c, as Keras's LSTM has"
            raise ValueError(f"layer: activations: {expected}, got {g.name} and {c.name}")


def new(halves: list[Half], layer: _Layer[Any], batch_size: Any, options: dict[str, Any]) -> Any:
    """A Keras layer of these cells, built, with weights of its own."""
    keras = imported()
    if wrong := sorted(set(options) & set(DETERMINED)):
        raise TypeError(f"{wrong[0]}: expected options that the layer leaves open, got this one")
    both = len(halves) == 2
    outer = {name: options.pop(name) for name in OF_WRAPPER if name in options and both}
    options.pop("merge_mode", None)  # of one direction
    dtype = str(layer.dtype)
    each = [
        one_way(keras, half, dtype, (both and d == 1) or layer.reverse, options)
        for d, half in enumerate(halves)
    ]
    made = each[0]
    if both:
        made = keras.layers.Bidirectional(each[0], backward_layer=each[1], dtype=dtype, **outer)
    made.build((batch_size, None, layer.input_size))
    return made


def one_way(keras: Any, half: Half, dtype: str, backward: bool, options: dict[str, Any]) -> Any:
    """A Keras layer of one direction."""
    options = {**options, "go_backwards": backward, "dtype": dtype}
    each = [(cell.kind, arguments(keras, cell, dtype)) for cell, _ in half]
    if len(each) == 1:
        kind, own = each[0]
        return getattr(keras.layers, kind)(**own, **options)
    cells = [getattr(keras.layers, f"{kind}Cell")(**own, dtype=dtype) for kind, own in each]
    return keras.layers.RNN(cells, **options)


def arguments(keras: Any, cell: Cell, dtype: str) -> dict[str, Any]:
    """What a cell of Keras's is made with."""
    found = {"units": cell.units, "use_bias": cell.bias}
    if cell.kind == "GRU":
        found["reset_after"] = cell.reset_after
    if cell.kind != "SimpleRNN":
        found["recurrent_activation"] = activation(keras, cell.activations[0], dtype)
    found["activation"] = activation(keras, cell.activations[-1], dtype)
    return found


def activation(keras: Any, chosen: Chosen, dtype: str) -> Any:
    """Keras's name of an activation, or an object that computes it."""
    for name, (kind, *constants) in (*ACTIVATIONS.items(), ("hard_sigmoid", HARD_SIGMOID[3])):
        if chosen == canonical(kind, *constants):
            return name
    if chosen.name == "Elu":
        return keras.layers.ELU(alpha=chosen.of[0], dtype=dtype)
    if chosen.name == "LeakyRelu":
        return keras.layers.LeakyReLU(negative_slope=chosen.of[0], dtype=dtype)
    if chosen.name == "ThresholdedRelu" and chosen.of[0] >= 0:
        return keras.layers.ReLU(threshold=chosen.of[0], dtype=dtype)
    if chosen.name == "HardSigmoid":
        from .activations import HardSigmoid

        return HardSigmoid(*chosen.of)
    got = f"{chosen.name}({', '.join(map(str, chosen.of))})"
    raise ValueError(f"layer: activations: expected one that Keras has, got {got}")


def canonical(kind: str, *constants: float) -> Chosen:
    return chosen_of(((kind, *constants),), ("Tanh",), "it")[0]


def check_same(halves: list[Half], layer: _Layer[Any], into: Any) -> None:
    """Raise if a Keras layer computes something else than these cells do."""
    if not is_recurrent(into):
        got = f"{type(into).__module__}.{type(into).__qualname__}"
        raise TypeError(f"into: expected a layer of Keras of {', '.join(RECURRENT)}, got {got}")
    theirs = Recurrent.from_keras(into)
    wanted = halves_of(theirs.layers, theirs.backward)
    for argument, one, other in (
        ("halves", len(wanted), len(halves)),
        ("cells", *([[cell for cell, _ in half] for half in each] for each in (wanted, halves))),
        ("input_size", theirs.layers[0].input_size, layer.input_size),
        ("reverse", theirs.layers[0].reverse, layer.reverse),
        ("dtype", theirs.layers[0].dtype, layer.dtype),
    ):
        if one != other:
            raise ValueError(f"into: {argument}: expected {other} of the layer, got {one}")


def imported() -> Any:
    try:
        import keras
    except ImportError as error:
        wanted = "pip install 'rnnkern[keras]'"
        raise ImportError(f"to_keras takes Keras: {wanted} ({error})") from error
    if not keras.__version__.startswith("3."):
        raise ImportError(f"to_keras takes Keras 3, got Keras {keras.__version__}")
    return keras
