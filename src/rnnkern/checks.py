"""Checks of single arguments. Arrays are checked in the core's bindings."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["flag", "integer", "number"]


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; TypeError if it is anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def integer(name: str, value: Any, expected: str, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`, which `expected` says in words."""
    no_scalar = isinstance(value, (bool, np.bool_, np.ndarray))
    if no_scalar or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__.rstrip('_')}")
    whole = operator.index(value)
    if not low <= whole <= high:
        raise ValueError(f"{name}: expected {expected}, got {whole}")
    return whole


def number(
    name: str,
    value: Any,
    expected: str,
    fits: Callable[[float], bool],
    kind: str = "a number",
) -> float:
    """`value` as a finite float that fits, which `expected` says in words.

    `kind` names the type, where more than numbers are allowed.
    """
    no_scalar = isinstance(value, (bool, np.bool_, np.ndarray))
    if no_scalar or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected {kind}, got {type(value).__name__.rstrip('_')}")
    try:
        real = float(value)
    except OverflowError:  # an integer that no float can hold
        real = math.inf
    if not (math.isfinite(real) and fits(real)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return real
