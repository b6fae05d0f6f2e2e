"""Modules of PyTorch inside a model exchanged for this package's, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from ..clip import Clip
from . import modules
from .calls import TAKEN

__all__ = ["Accelerated", "accelerate", "restore"]

# PyTorch's own class: ours, which has the same attributes.
PAIRS: dict[type, type] = {
    getattr(torch.nn, name): getattr(modules, name)
    for name in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
}
THEIRS = {ours: theirs for theirs, ours in PAIRS.items()}
NAMES = {theirs.__name__ for theirs in PAIRS} | {"RNNBase", "RNNCellBase"}
_OF_A_CLASS = ("__dict__", "__weakref__")  # what each class gets anew


class Accelerated(NamedTuple):
    """What `accelerate` did.

    Attributes
    ----------
    replaced : list of str
        The names of the modules that the core runs now; the model itself is "".
    left : dict of str to str
        Why other recurrent modules stay as they are, by name.
    """

    replaced: list[str]
    left: dict[str, str]


def accelerate(module: torch.nn.Module, *, clip: Clip | None = None) -> Accelerated:
    """Let rnnkern run every RNN, LSTM, GRU and cell inside a model.

    The modules stay the objects that they are, with their parameters, hooks, names and mode, and
    take the class of this package: an optimizer that exists, and every reference to a module,
    stays valid. `restore` reverses it.

    Parameters
    ----------
    module : torch.nn.Module
        The model, or a recurrent module itself.
    clip : rnnkern.Clip, optional
        The gradient clips of all modules that the core runs then, earlier replaced ones included.

    Returns
    -------
    Accelerated
        The names of those that were replaced, and why others are left.

    Raises
    ------
    TypeError
        If `module` is no module, or `clip` no Clip.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> model = torch.nn.ModuleDict({"a": torch.nn.GRU(3, 5), "b": torch.nn.GRU(3, 5).half()})
    >>> rk.torch.accelerate(model)
    Accelerated(replaced=['a'], left={'b': 'weight_ih_l0 is of torch.float16'})
    >>> rk.torch.restore(model)
    ['a']
    """
    _check(module)
    clip = modules._checked(clip)
    replaced, left = [], {}
    for name, one in module.named_modules():
        if isinstance(one, modules._Calls):
            if clip is not None:
                one.clip = clip
            continue
        if not _is_recurrent(one):
            continue
        if reason := _reason(one):
            left[name] = reason
            continue
        one.__class__ = PAIRS[type(one)]
        one._prepare()
        if clip is not None:
            one.clip = clip
        replaced.append(name)
    return Accelerated(replaced, left)


def restore(module: torch.nn.Module) -> list[str]:
    """Give the modules that `accelerate` has replaced, and other drop-ins, PyTorch's class.

    Parameters
    ----------
    module : torch.nn.Module
        The model, or a recurrent module itself. Clips of its drop-ins are lost.

    Returns
    -------
    list of str
        The names of the modules that PyTorch runs now.

    Raises
    ------
    TypeError
        If `module` is no module.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> gru = rk.torch.GRU(3, 5)
    >>> rk.torch.restore(gru), type(gru) is torch.nn.GRU
    ([''], True)
    """
    _check(module)
    restored = []
    for name, one in module.named_modules():
        made = type(one)
        if parametrize.is_parametrized(one):  # then its class is one that PyTorch has derived
            made = made.__mro__[1]
        if made not in THEIRS:
            continue
        if made is type(one):
            one.__class__ = THEIRS[made]
        else:
            own = {key: value for key, value in vars(type(one)).items() if key not in _OF_A_CLASS}
            one.__class__ = type(f"Parametrized{THEIRS[made].__name__}", (THEIRS[made],), own)
        for key in ("_descriptions", "_names", "_arrays", "clip"):
            vars(one).pop(key, None)
        restored.append(name)
    return restored


def _check(module: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")


def _is_recurrent(module: torch.nn.Module) -> bool:
    bases = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.")}
    return bool(bases & NAMES) or getattr(module, "original_name", None) in NAMES


def _reason(module: torch.nn.Module) -> str | None:
    """Why a recurrent module can't be replaced."""
    if type(module) not in PAIRS:
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if parametrize.is_parametrized(module):
            return f"a {kind}, which has parametrizations"
        return f"a {kind}, which is not exactly one of torch.nn's classes"
    for name, parameter in module.named_parameters():
        if parameter.device.type != "cpu":
            return f"{name} is on {parameter.device}"
        if parameter.dtype not in TAKEN:
            return f"{name} is of {parameter.dtype}"
    if getattr(module, "dropout", 0.0) >= 1:
        return f"dropout is {module.dropout}, and the core's is below 1"
    return None
