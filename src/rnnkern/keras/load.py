"""Recurrent layers of Keras, of objects and files, as layers of rnnkern."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, overload

from ..layers import _Layer
from .files import ModelFile, major_of
from .objects import (
    cells_of_object,
    is_model,
    is_recurrent,
    layers_in,
    library_of,
    node_of,
    weights_of_object,
)
from .plans import RECURRENT, Plan, plan_of
from .weights import layers_of

__all__ = ["from_keras", "is_many", "read"]

Layers = tuple[_Layer[Any], ...]
Found = tuple[Plan, Layers, Layers]  # a plan, its layers, and those of a second half


def read(source: Any, name: Any, config: Any, keras_version: Any) -> dict[str, Found]:
    """The recurrent layers of a source by name; one, if `name` is given or it is one layer."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: expected a str or None, got {type(name).__name__}")
    if keras_version not in (None, 2, 3) or isinstance(keras_version, bool):
        raise ValueError(f"keras_version: expected 2, 3 or None, got {keras_version!r}")
    if not isinstance(source, (str, os.PathLike)):
        for argument, value in (("config", config), ("keras_version", keras_version)):
            if value is not None:
                raise ValueError(f"{argument}: expected None for an object of Keras, got one")
        return read_objects(source, name)
    try:
        return read_file(source, name, config, keras_version)
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises where bytes are wrong
        got = f"{os.fspath(source)!r} ({error})"
        raise ValueError(f"source: expected a sound file of Keras, got {got}") from error


def read_file(source: Any, name: str | None, config: Any, keras: int | None) -> dict[str, Found]:
    with ModelFile(source, config) as file:
        if keras is not None and file.keras not in (None, keras):
            expected = f"None or {file.keras}, which the file says"
            raise ValueError(f"keras_version: expected {expected}, got {keras}")
        found = {}
        entries = {entry.name: entry for entry in file.entries}
        for one in names_asked(name, entries):
            plan = plan_of(one, entries[one].node, file.keras or keras)
            found[one] = (plan, *layers_of(plan, file.weights(entries[one])))
        return found


def names_asked(name: str | None, known: Mapping[str, Any]) -> list[str]:
    if name is None:
        return list(known)
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(known)}, got {name!r}")
    return [name]


def read_objects(source: Any, name: str | None) -> dict[str, Found]:
    if is_recurrent(source):
        if name is not None:
            raise ValueError(f"name: expected None for a layer, got {name!r}")
        layers = {source.name: source}
    elif is_model(source):
        layers = layers_in(source)
        if not layers:
            expected = f"expected a model with a layer of {', '.join(RECURRENT)}"
            raise ValueError(f"source: {expected}, got none")
    else:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        expected = f"a path, a model of Keras or its layer of {', '.join(RECURRENT)}"
        raise TypeError(f"source: expected {expected}, got {kind}")
    found = {}
    for one in names_asked(name, layers):
        layer = layers[one]
        library = library_of(type(layer))
        keras = major_of(f"{one}: {library.__name__}.__version__", library.__version__)
        plan = plan_of(one, node_of(layer), keras)
        weights = [weights_of_object(one, cell) for cell in cells_of_object(layer)]
        found[one] = (plan, *layers_of(plan, weights))
    return found


@overload
def from_keras(
    source: Any, name: str, *, config: Any = None, keras_version: int | None = None
) -> _Layer[Any]: ...
@overload
def from_keras(
    source: str | os.PathLike[str],
    name: None = None,
    *,
    config: Any = None,
    keras_version: int | None = None,
) -> dict[str, _Layer[Any]]: ...
@overload
def from_keras(
    source: Any, name: None = None, *, config: Any = None, keras_version: int | None = None
) -> Any: ...
def from_keras(
    source: Any,
    name: str | None = None,
    *,
    config: Any = None,
    keras_version: int | None = None,
) -> Any:
    """Make layers of rnnkern of Keras's: of a layer, a model or a file.

    Weights are those of the source, bit for bit. SimpleRNN, LSTM and GRU become `RNN`, `LSTM` and
    `GRU` with the same options and ``batch_first=True``; ``go_backwards=True`` becomes
    ``reverse=True``, Bidirectional ``bidirectional=True``, and RNN of several cells that are alike
    a stack. The layouts of Keras 2's CuDNNLSTM and CuDNNGRU are recognized by the bias's shape.

    Options that change what a call returns and not what a step computes, such as
    ``return_sequences`` and ``stateful``, are left to the caller; `Recurrent` has them. Options
    that act in training alone are not taken: ``dropout``, ``recurrent_dropout``, regularizers,
    constraints, initializers.

    Parameters
    ----------
    source : path, Keras layer or Keras model
        A file in the format ``.keras``, ``.h5`` or ``.weights.h5``, of Keras 2 or 3; its content
        says which. A layer must be built.
    name : str, optional
        Which layer of a model or file. A layer of a model inside the model is ``"inner/lstm"``.
    config : dict, list or str, optional
        For a file of weights alone, and only there: the model's configuration, as
        ``model.to_json()`` or ``model.get_config()`` returns it, or a list of its recurrent layers,
        each a dict of ``class_name`` and ``config``.
    keras_version : {2, 3}, optional
        For a file that does not say which Keras wrote it. The meaning of hard_sigmoid depends on
        it: clip(0.2 x + 0.5) in Keras 2, clip(x / 6 + 0.5) in Keras 3.

    Returns
    -------
    recurrent layer, or dict of str to recurrent layer
        One for a layer, and where `name` is given; else all recurrent layers of Keras's own classes
        by their names.

    Raises
    ------
    TypeError, ValueError
        If the file is not one of Keras's, an activation, option or cell has no counterpart here, or
        a weight is missing or has another shape or dtype; the message names the layer. If no single
        layer of rnnkern does the same: cells that differ, or a Bidirectional whose halves differ,
        have several cells or are not concatenated. `Recurrent.from_keras` takes these.
    ImportError
        If `source` is a path and h5py is not installed.

    Examples
    --------
    >>> import keras, numpy as np
    >>> import rnnkern as rk, rnnkern.keras
    >>> model = keras.Sequential([keras.Input((7, 3)), keras.layers.GRU(5, name="gru")])
    >>> rk.keras.from_keras(model)
    {'gru': GRU(3, 5, batch_first=True)}
    >>> gru = rk.keras.from_keras(model, "gru")
    >>> x = np.ones((2, 7, 3), np.float32)
    >>> last, _ = gru(x, outputs="last")  # return_sequences=False
    >>> bool(np.allclose(last, model.predict(x, verbose=0), atol=1e-6))
    True
    """
    found = {one: single(*each) for one, each in read(source, name, config, keras_version).items()}
    return found if is_many(source, name) else next(iter(found.values()))


def is_many(source: Any, name: str | None) -> bool:
    """Whether all layers of a model or file are asked for."""
    return name is None and (isinstance(source, (str, os.PathLike)) or is_model(source))


def single(plan: Plan, layers: Layers, backward: Layers) -> _Layer[Any]:
    """The layer that does it all."""
    hint = "use rnnkern.keras.Recurrent.from_keras"
    if len(layers) > 1 or backward:
        expected = "expected cells and halves that one layer can have"
        got = ", ".join(map(repr, (*layers, *backward)))
        raise ValueError(f"{plan.name}: {expected}, got {got} ({hint})")
    if (mode := plan.calls.merge_mode) != "concat":
        raise ValueError(f"{plan.name}: merge_mode: expected 'concat', got {mode!r} ({hint})")
    return layers[0]
