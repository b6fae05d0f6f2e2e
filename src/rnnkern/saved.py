"""Models as files: arrays as safetensors, constructor calls as JSON in the metadata."""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import modules
from .checks import group_name
from .docstrings import complete
from .files import Reader, _check, _object, naming
from .files import save as save_arrays
from .layers import LAYERS
from .model import _memory, parameters_by_name
from .parameters import Parametrized

__all__ = ["load", "restore", "save"]

KEY = "rnnkern"  # of the configuration, in the metadata
VERSION = 1
LAYER_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in LAYERS.values()}
MODULE_CLASSES: dict[str, Any] = {
    name: cls
    for name in modules.__all__
    if inspect.isclass(cls := getattr(modules, name)) and issubclass(cls, Parametrized)
}
CLASSES = LAYER_CLASSES | MODULE_CLASSES
# Arguments about first values alone, which the arrays replace, and those that are the arrays.
NOT_SAVED = ("seed", "init", "forget_bias", "params")
MOST_SHOWN = 300  # characters of an error that a file's values are in


def configuration(part: Parametrized) -> str:
    """What makes a layer or a module, once its parameters and its dropout's state are known."""
    return json.dumps({"version": VERSION} | _about(part), default=float)


def _about(part: Parametrized) -> dict[str, Any]:
    """Class and arguments. Constants of activations are any kind of number."""
    kind = next((c.__name__ for c in type(part).__mro__ if CLASSES.get(c.__name__) is c), None)
    if kind is None:
        raise TypeError(f"{type(part).__name__}: expected one of the classes {', '.join(CLASSES)}")
    arguments = {
        name: value.name if isinstance(value, np.dtype) else value
        for name, value, _ in part._arguments()
        if name not in NOT_SAVED
    }
    return {"class": kind, "arguments": arguments}


def save(
    path: str | os.PathLike[str], model: Any, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model, and all that is needed to resume a run, to a safetensors file, all or nothing.

    `load` creates the layers and modules from the file; `restore` resumes a run. The name of an
    array in the file consists of the name of its part and its own name, such as
    ``gru.weight_ih_l0``, as in PyTorch's ``state_dict``. The metadata contain the classes, sizes
    and options.

    Parameters
    ----------
    path : str or path
        As in `files.save`.
    model : dict of str to parts
        Layers, modules and dicts of arrays; and objects with ``state_dict`` and
        ``load_state_dict``: optimizers, `Batches`, `EarlyStopping`. Names must not contain "." or
        "/". To save a single layer or module, use its method ``save``.
    metadata : dict of str to str, optional
        Further texts to save, such as a history in JSON. `restore` returns them.

    Raises
    ------
    FileError
        As in `files.save`.
    OSError
        If the operating system cannot write the file.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import tempfile, rnnkern as rk
    >>> model = {"gru": rk.GRU(3, 5), "head": rk.Linear(5, 2)}
    >>> opt = rk.Adam(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rk.save(f"{folder}/run.safetensors", {**model, "opt": opt})
    ...     again = rk.load(f"{folder}/run.safetensors")
    >>> again["head"]
    Linear(5, 2)
    """
    parts = _parts(model)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a dict of strings, got {type(metadata).__name__}")
    metadata = dict(metadata or {})
    if KEY in metadata:
        raise ValueError(f"metadata: expected no {KEY!r}, which holds the classes, got one")
    about = {name: _about(part) for name, part in parts.items() if isinstance(part, Parametrized)}
    tensors: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, Mapping):
            tensors |= parameters_by_name("model", {name: part})
        else:
            tensors[name] = part
    metadata[KEY] = json.dumps({"version": VERSION, "parts": about}, default=float)
    save_arrays(path, tensors, metadata)


def _parts(model: Any) -> dict[str, Any]:
    """The parts of a model or a run, by name."""
    expected = "a dict of layers, modules, optimizers and others with a state_dict"
    if not isinstance(model, Mapping):
        one = isinstance(model, Parametrized)
        hint = " (one alone has a method save, and rnnkern.load)" if one else ""
        raise TypeError(f"model: expected {expected}, got {type(model).__name__}{hint}")
    if not model:
        raise ValueError(f"model: expected {expected}, got none")
    parts = dict(model)
    for name, part in parts.items():
        group_name("model", name)
        has_state = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
        if not (isinstance(part, Mapping) or has_state):
            expected = "a layer, a module, a dict of arrays or an object with a state_dict"
            raise TypeError(f"model[{name!r}]: expected {expected}, got {type(part).__name__}")
    return parts


def load(path: str | os.PathLike[str]) -> Any:
    """Read a layer or a module from a file that its ``save`` wrote, or several that `save` wrote.

    The file is data: classes are looked up by name, and their constructors check the options.
    Arrays are read as in `files.load`, within the same bounds.

    Parameters
    ----------
    path : str or path
        A regular file.

    Returns
    -------
    layer or module; or dict of str to layer or module
        Of the class, sizes and options of the saved one, with its parameters and dropout state.
        ``seed``, ``init`` and ``forget_bias``, which determine first values alone, are not saved.
        A subclass of a layer's class comes back as that class. A tied parameter comes back as an
        array at each place: tie it again. The states of optimizers and others are for `restore`.

    Raises
    ------
    FileError
        The file is not a safetensors file, has no configuration of a layer or a module, or one of
        another version, or of an unknown class or option; or the arrays are not those of such a
        layer.
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
            parts = _configured(file.metadata)
            made = {}
            for name, about in parts.items():
                arrays = [key for key in file.specs if name is None or key.startswith(f"{name}.")]
                made[name] = _constructor(about, len(arrays))
        params = {name: _arrays(file, name, cls) for name, (cls, _) in made.items()}
    found: dict[Any, Any] = {}
    for name, (cls, arguments) in made.items():
        with naming(os.fspath(path)):
            try:
                if _has_params(cls):
                    arguments |= {"params": params[name]}
                elif params[name]:
                    raise ValueError(f"expected no arrays, got {list(params[name])}")
                found[name] = part = cls(**arguments)
                if hasattr(part, "dropout_state"):
                    part.dropout_state = _json(_of("dropout_state", name), file.metadata)
            except (MemoryError, OverflowError, TypeError, ValueError) as error:
                text = "" if name is None else f"{name}: "
                raise ValueError(f"{text}{error!s:.{MOST_SHOWN}}") from error
    return found.get(None, found)


def restore(path: str | os.PathLike[str], run: Any) -> dict[str, str]:
    """Go on from a file that `save` wrote: load it into the parts of a run, all or nothing.

    Parameters
    ----------
    path : str or path
        A regular file.
    run : dict of str to parts
        As given to `save`, made anew in the same way: layers and modules of the same classes, sizes
        and options, arrays of the same names, shapes and dtypes, optimizers and others whose
        ``load_state_dict`` takes the state. All of the file's parts, or some of them.

    Returns
    -------
    dict of str to str
        The metadata that `save` was given.

    Raises
    ------
    FileError
        The file is no such file, lacks a part, a part is of another class, size or option, or an
        array that the run has at several places has other values at each in the file; the message
        names it. Nothing has been written then.
    OSError
        The operating system can't open or read it.
    TypeError, ValueError
        An argument is invalid; the message names it.

    Examples
    --------
    >>> import tempfile, numpy as np, rnnkern as rk
    >>> def make():
    ...     model = {"gru": rk.GRU(3, 5), "head": rk.Linear(5, 2)}
    ...     return {**model, "opt": rk.Adam(model)}
    >>> run, again = make(), make()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rk.save(f"{folder}/run.safetensors", run, {"epoch": "7"})
    ...     rk.restore(f"{folder}/run.safetensors", again)
    {'epoch': '7'}
    >>> bool((again["head"].params["weight"] == run["head"].params["weight"]).all())
    True
    """
    parts = _parts(run)
    with Reader(path) as file:
        with naming(os.fspath(path)):
            saved = _configured(file.metadata)
            _check(None not in saved, "a file of several parts, as rnnkern.save writes it", "one")
        states = {
            name: _arrays(file, name, type(part)) if name in saved else file.read(prefix=f"{name}.")
            for name, part in parts.items()
        }
    metadata = dict(file.metadata)
    del metadata[KEY]
    for name in {*saved, *parts}:
        metadata.pop(_of("dropout_state", name), None)
    arrays, dropouts = {}, {}
    with naming(os.fspath(path)):
        for name, part in parts.items():  # all is checked, on copies, before anything is written
            try:
                if isinstance(part, Parametrized):
                    own = json.loads(json.dumps(_about(part), default=float))
                    _check(name in saved, f"{own}", "no layer or module")
                    _check(saved[name] == own, f"{own}", f"{saved[name]}")
                    if hasattr(part, "dropout_state"):
                        dropouts[name] = _json(_of("dropout_state", name), file.metadata)
                        copy.copy(part).dropout_state = dropouts[name]
                if isinstance(part, (Mapping, Parametrized)):
                    arrays[name] = _targets(name, part, states[name])
                else:
                    copy.copy(part).load_state_dict(states[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from error
        _check_tied(arrays, states)
    for name, part in parts.items():
        if name not in arrays:
            part.load_state_dict(states[name])
        for key, array in arrays.get(name, {}).items():
            array[...] = states[name][key]
        if name in dropouts:
            part.dropout_state = dropouts[name]
    return metadata


def _targets(name: str, part: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Views of a part's arrays, which fit those of a state."""
    found = parameters_by_name("run", {name: part})
    own = {key.removeprefix(f"{name}."): array for key, array in found.items()}
    _check(own.keys() == state.keys(), f"the arrays {list(own)}", f"{list(state)}")
    for key, array in own.items():
        got = state[key]
        fits = (array.dtype, array.shape) == (got.dtype, got.shape)
        _check(fits, f"{key!r} as {array.dtype} {array.shape}", f"{got.dtype} {got.shape}")
        _check(array.flags.writeable, f"{key!r} to be writable in the run", "a read-only array")
    return own


def _check_tied(arrays: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Refuse a state with two values for one array, of which the run would lose one."""
    first: dict[Any, tuple[str, Any]] = {}
    for name, own in arrays.items():
        for key, array in own.items():
            place, new = f"{name}.{key}", states[name][key]
            other, kept = first.setdefault(_memory(array, len(first)), (place, new))
            same = kept is new or np.array_equal(kept, new, equal_nan=True)
            _check(same, f"one value for {other} and {place}, the same array in the run", "two")


def _has_params(cls: Any) -> bool:
    return "params" in inspect.signature(cls).parameters


def _arrays(file: Reader, name: Any, cls: Any) -> dict[str, Any]:
    """The arrays of a layer or a module; one without parameters has none."""
    prefix = "" if name is None else f"{name}."
    there = _has_params(cls) or any(key.startswith(prefix) for key in file.specs)
    return file.read(prefix=prefix) if there else {}


def _of(key: str, name: Any) -> str:
    return key if name is None else f"{name}.{key}"


def _configured(metadata: dict[str, str]) -> dict[Any, dict[str, Any]]:
    """Class and arguments of each part by name; by None of a layer or a module alone."""
    about = _json(KEY, metadata)
    names = set(about) if isinstance(about, dict) else set()
    alone = names == {"version", "class", "arguments"}
    fits = (alone or names == {"version", "parts"}) and type(about["version"]) is int
    _check(fits, f"version, class and arguments, or parts, as {KEY!r} in the metadata", about)
    _check(about["version"] == VERSION, f"version {VERSION} of {KEY!r}", about["version"])
    if alone:
        return {None: about}
    parts = about["parts"]
    _check(isinstance(parts, dict), "parts by name", parts)
    for name, part in parts.items():
        fits = isinstance(part, dict) and part.keys() == {"class", "arguments"}
        _check(fits, f"class and arguments of {name!r}", part)
    return parts  # type: ignore[no-any-return]


def _constructor(about: dict[str, Any], arrays: int) -> tuple[Any, dict[str, Any]]:
    """The class and its arguments, whose values the constructor checks."""
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
    layers = arguments.get("num_layers", 0)
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


complete(save, of={"files.save": save_arrays})
