"""A layer as a file: its arrays as safetensors, its constructor call as JSON in the metadata."""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

import numpy as np

from .files import Reader, _check, _object, naming
from .layers import LAYERS, _Layer

__all__ = ["load"]

KEY = "rnnkern"  # of the configuration, in the metadata
VERSION = 1
CLASSES: dict[str, Any] = {cls.__name__: cls for cls in LAYERS.values()}
# Arguments about first values alone, which the arrays replace, and those that are the arrays.
NOT_SAVED = ("seed", "init", "forget_bias", "params")
MOST_SHOWN = 300  # characters of an error that a file's values are in


def configuration(layer: _Layer[Any]) -> str:
    """What makes a layer, once its parameters and its dropout's state are known."""
    arguments = {
        name: value.name if isinstance(value, np.dtype) else value
        for name, value, _ in layer._arguments()
        if name not in NOT_SAVED
    }
    kind = next(name for name, cls in CLASSES.items() if isinstance(layer, cls))
    about = {"version": VERSION, "class": kind, "arguments": arguments}
    return json.dumps(about, default=float)  # constants of activations are any kind of number


def load(path: str | os.PathLike[str]) -> _Layer[Any]:
    """Read a layer from a file that its ``save`` wrote.

    The file is data: the class is looked up by name, and its constructor checks the options.
    Arrays are read as in `files.load`, within the same bounds.

    Parameters
    ----------
    path : str or path
        A regular file.

    Returns
    -------
    recurrent layer
        Of the class, sizes and options of the saved one, with its parameters and dropout state.
        ``seed``, ``init`` and ``forget_bias``, which determine first values alone, are not saved.
        A subclass of a layer's class comes back as that class.

    Raises
    ------
    FileError
        The file is not a safetensors file, has no configuration of a layer, or one of another
        version, or of an unknown class or option; or the arrays are not those of such a layer.
    OSError
        The operating system can't open or read it.
    TypeError, ValueError
        `path` is not a str or a path, or no file can have it.

    Examples
    --------
    >>> import tempfile, numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 8, proj_size=2, zoneout=0.0, bidirectional=True, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lstm.save(f"{folder}/lstm.safetensors")
    ...     again = rk.load(f"{folder}/lstm.safetensors")
    >>> again
    LSTM(3, 8, proj_size=2, bidirectional=True)
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> bool((again(x)[0] == lstm(x)[0]).all())
    True
    """
    with Reader(path) as file:
        with naming(os.fspath(path)):
            cls, arguments = _constructor(file.metadata, len(file.specs))
        params = file.read()
    with naming(os.fspath(path)):
        try:
            layer: _Layer[Any] = cls(**arguments, params=params)
            layer.dropout_state = _json("dropout_state", file.metadata)
        except (MemoryError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{error!s:.{MOST_SHOWN}}") from error
    return layer


def _constructor(metadata: dict[str, str], arrays: int) -> tuple[Any, dict[str, Any]]:
    """The class and its arguments, whose values the constructor checks."""
    about = _json(KEY, metadata)
    names = {"version", "class", "arguments"}
    fits = isinstance(about, dict) and about.keys() == names and type(about["version"]) is int
    _check(fits, f"version, class and arguments as {KEY!r} in the metadata", about)
    _check(about["version"] == VERSION, f"version {VERSION} of {KEY!r}", about["version"])
    kind, arguments = about["class"], about["arguments"]
    known = isinstance(kind, str) and kind in CLASSES
    _check(known, f"one of the classes {', '.join(CLASSES)}", kind)
    cls = CLASSES[kind]
    _check(isinstance(arguments, dict), f"arguments of {kind} by name", arguments)
    options = inspect.signature(cls).parameters
    for name, parameter in options.items():
        _check(
            name in arguments or parameter.default is not parameter.empty,
            f"{name} among the arguments of {kind}",
            list(arguments),
        )
    for name in arguments:
        _check(name in options and name not in NOT_SAVED, f"options of {kind}", name)
    # The constructor lists the parameters of all layers before it compares them with the arrays.
    layers = arguments.get("num_layers", 1)
    fits = type(layers) is int and layers <= arrays
    _check(fits, f"num_layers of at most {arrays}, the number of arrays", layers)
    return cls, {name: _tuples(value) for name, value in arguments.items()}


def _json(name: str, metadata: dict[str, str]) -> Any:
    hint = "rnnkern.from_state_dict makes a layer of the arrays alone"
    if name not in metadata:
        raise ValueError(f"expected {name!r} in the metadata, as layer.save writes it ({hint})")
    try:
        return json.loads(metadata[name], object_pairs_hook=_object)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"expected {name!r} in JSON, got {error}") from error


def _tuples(value: Any) -> Any:
    """A value whose lists are the tuples that the constructors take."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
