"""The activations that a user chooses: ONNX's list."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import numpy as np

from ..checks import number

__all__ = ["Activations", "Chosen", "chosen"]

Activations = tuple[Any, ...]  # each a name, or a tuple of a name and its constants


class Chosen(NamedTuple):
    """An activation and its constants, as the reference orders them."""

    name: str
    of: tuple[float, ...] = ()

    def constants(self, dtype: np.dtype[Any]) -> tuple[str, float, float]:
        """Name, alpha and beta as the core takes them, rounded to the layer's dtype."""
        alpha, beta = (*self.of, 0.0, 0.0)[:2]
        return self.name, float(dtype.type(alpha)), float(dtype.type(beta))


def chosen(given: Activations | None, default: tuple[str, ...], of: str) -> tuple[Chosen, ...]:
    """Check what a user chose; `of` says what each activation is for."""
    if given is None:
        return tuple(Chosen(name) for name in default)
    if not isinstance(given, tuple):
        got = type(given).__name__
        raise TypeError(f"activations: expected None or a tuple of {len(default)}, got {got}")
    if len(given) != len(default):
        expected = f"a tuple of {len(default)}, of {of},"
        raise ValueError(f"activations: expected {expected} got one of {len(given)}")
    return tuple(_one(f"activations[{i}]", one) for i, one in enumerate(given))


def _one(name: str, given: Any) -> Chosen:
    if isinstance(given, str):
        given = (given,)
    if not (isinstance(given, tuple) and given and isinstance(given[0], str)):
        got = type(given).__name__
        raise TypeError(f"{name}: expected a name, or a tuple of a name and constants, got {got}")
    from ..reference import ACTIVATIONS  # here: the defaults do without the reference

    kind, *numbers = given
    if kind not in ACTIVATIONS:
        raise ValueError(f"{name}: expected one of {', '.join(ACTIVATIONS)}, got {kind!r}")
    constants = fields(ACTIVATIONS[kind])
    fewest = sum(constant.default is MISSING for constant in constants)
    if not fewest <= len(numbers) <= len(constants):
        takes = f"{fewest} to {len(constants)}" if fewest < len(constants) else f"{fewest}"
        raise ValueError(f"{name}: expected {takes} constants of {kind}, got {len(numbers)}")
    checked = [
        number(f"{name}'s {constant.name}", value, "a finite number in float32", _is_finite)
        for constant, value in zip(constants, numbers, strict=False)
    ]
    rest: list[float] = [constant.default for constant in constants[len(numbers) :]]  # type: ignore[misc]
    return Chosen(kind, (*checked, *rest))


def _is_finite(x: float) -> bool:
    return abs(x) <= float(np.finfo(np.float32).max)
