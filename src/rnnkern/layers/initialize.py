"""How parameters start."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INITIALIZERS", "initial"]

Array = NDArray[Any]

INITIALIZERS = ("uniform", "xavier", "orthogonal", "identity")
MAPS_STATES = ("weight_hh", "weight_hr")  # what `orthogonal` and `identity` treat apart


def initial(
    init: str, name: str, shape: tuple[int, ...], hidden: int, generator: np.random.Generator
) -> Array:
    """One parameter's first values, float64."""
    if init == "uniform":
        bound = 1.0 / math.sqrt(hidden)
        return generator.uniform(-bound, bound, shape)
    if len(shape) == 1:
        return np.zeros(shape)
    rows = shape[0] if name.startswith("weight_hr") else hidden  # of one gate
    gates, columns = shape[0] // rows, shape[1]
    maps_states = name.startswith(MAPS_STATES)
    if init == "identity":
        if maps_states:
            return np.tile(np.eye(rows, columns), (gates, 1))
        return generator.normal(0, 1e-3, shape)
    if init == "orthogonal" and maps_states:
        # Q of a Gaussian matrix; the signs of R's diagonal make it uniform over all rotations.
        long, short = max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(generator.normal(size=(gates, long, short)))
        signs: Array = np.sign(np.diagonal(r, axis1=1, axis2=2))
        q = q * signs[:, None, :]
        return np.reshape(q if rows >= columns else q.swapaxes(1, 2), shape)
    bound = math.sqrt(6.0 / (rows + columns))
    return generator.uniform(-bound, bound, shape)
