"""Layers and models of Keras as objects: what they are, and their weights."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plans import OWN_OBJECT, RECURRENT
from .weights import WEIGHTS

__all__ = [
    "cells_of_object",
    "is_model",
    "is_recurrent",
    "layers_in",
    "library_of",
    "node_of",
    "weights_of_object",
]

Array = NDArray[Any]


def library_of(cls: type) -> Any:
    """The module keras, or tf_keras, to which a class belongs."""
    return sys.modules[cls.__module__.partition(".")[0]]


def is_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("keras", "tf_keras")


def is_recurrent(source: Any) -> bool:
    """Whether it is a layer of a class of Keras's own."""
    return is_keras(type(source)) and type(source).__name__ in RECURRENT


def is_model(source: Any) -> bool:
    return any(is_keras(base) and base.__name__ == "Model" for base in type(source).__mro__)


def layers_in(model: Any, outer: str = "") -> dict[str, Any]:
    """The recurrent layers of a model and of the models in it, by name."""
    found: dict[str, Any] = {}
    for layer in model.layers:
        if is_model(layer):
            found |= layers_in(layer, f"{outer}{layer.name}/")
        elif is_recurrent(layer):
            found[outer + layer.name] = layer
    return found


OPTIONS = ("use_bias", "reset_after", "units")  # of cells, which layers of one cell have, too
CALLS = ("return_sequences", "return_state", "go_backwards", "stateful", "zero_output_for_mask")


def node_of(layer: Any) -> dict[str, Any]:
    """What Keras writes of a layer or cell, as far as it matters here, with functions checked."""
    cls = type(layer)
    options = (*OPTIONS, *CALLS, "time_major", "reverse_state_order", "merge_mode")
    config = {name: getattr(layer, name) for name in options if hasattr(layer, name)}
    for name in ("activation", "recurrent_activation"):
        if hasattr(layer, name):
            config[name] = activation_node(getattr(layer, name))
    if cls.__name__ == "Bidirectional":
        config["layer"] = node_of(layer.forward_layer)
        config["backward_layer"] = node_of(layer.backward_layer)
    elif cls.__name__ == "RNN":
        config["cell"] = node_of(layer.cell)
    elif cls.__name__ == "StackedRNNCells":
        config["cells"] = [node_of(cell) for cell in layer.cells]
    return {"class_name": cls.__name__, "module": cls.__module__, "config": config}


def activation_node(function: Any) -> Any:
    """The name of a function of Keras's own; what else it is, for a message or `object_of`."""
    name = getattr(function, "__name__", None)
    for library in filter(None, map(sys.modules.get, ("keras", "tf_keras"))):
        if name is not None and getattr(library.activations, name, None) is function:
            return name
    if name is not None:  # another function may have the name of one of Keras's
        return {"class_name": "function", "config": name}
    cls = type(function)
    config = function.get_config() if hasattr(function, "get_config") else {}
    node = {"class_name": cls.__name__, "module": cls.__module__, "config": config}
    if cls.__module__ == "rnnkern.keras.activations":
        node["registered_name"] = OWN_OBJECT
    return node


def cells_of_object(layer: Any) -> list[Any]:
    """The cells of a layer of Keras: forward half first."""
    if type(layer).__name__ == "Bidirectional":
        return cells_of_object(layer.forward_layer) + cells_of_object(layer.backward_layer)
    cell = getattr(layer, "cell", layer)
    return list(cell.cells) if type(cell).__name__ == "StackedRNNCells" else [cell]


def weights_of_object(place: str, cell: Any) -> dict[str, Array]:
    if not hasattr(cell, "kernel"):
        expected = "expected a layer that is built, such as by a call"
        raise ValueError(f"{place}: {expected}, got one without weights")
    found = {name: getattr(cell, name, None) for name in WEIGHTS}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}
