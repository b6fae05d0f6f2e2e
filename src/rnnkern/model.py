"""A model as a dict of layers, modules and arrays: its parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import group_name, viewed

__all__ = ["num_parameters", "parameters_by_name"]

Array = NDArray[Any]


def num_parameters(model: Any) -> int:
    """Count the elements of all parameters of a model, a tied parameter once.

    Parameters
    ----------
    model : dict of str to layer, module or dict of arrays; or one of these
        What optimizers take.

    Returns
    -------
    int
        Of all members of an ensemble.

    Raises
    ------
    TypeError, ValueError
        If `model` is invalid; the message says where.

    Examples
    --------
    >>> import rnnkern as rk
    >>> rk.num_parameters({"gru": rk.GRU(3, 5), "head": rk.Linear(5, 2)})
    162
    """
    arrays = parameters_by_name("model", model).values()
    return sum({_memory(array, i): array.size for i, array in enumerate(arrays)}.values())


def parameters_by_name(argument: str, model: Any) -> dict[str, Array]:
    """The arrays of a model: ``gru.weight_ih_l0`` of a dict of layers, else as they are named.

    Views, whose shapes nobody else can change.
    """
    parts = model
    if not isinstance(model, Mapping):
        parts = {"": model}
    elif model and not any(_is_part(value) for value in model.values()):
        parts = {"": model}  # of arrays
    found = {}
    for name, part in dict(parts).items():
        text = argument
        if parts is model:
            group_name(argument, name)
            text = f"{argument}[{name!r}]"
        params = part if isinstance(part, Mapping) else getattr(part, "params", None)
        if not isinstance(params, Mapping):
            expected = "a layer, a module or a dict of arrays"
            raise TypeError(f"{text}: expected {expected}, got {type(part).__name__}")
        for key, array in dict(params).items():
            place = f"{text}[{key!r}]" if params is part else f"{text}.params[{key!r}]"
            if not isinstance(array, np.ndarray) or viewed(place, array) is None:
                raise TypeError(f"{place}: expected an array, got {type(array).__name__}")
            found[f"{name}.{key}" if parts is model else str(key)] = array.view(np.ndarray)
    return found


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "params")


def _memory(array: Array, number: int) -> Any:
    """What the same array at two places has in common."""
    if not array.size:
        return number
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype
