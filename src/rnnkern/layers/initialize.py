"""How parameters start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import choice

if TYPE_CHECKING:
    from ..reference import Parameter

__all__ = ["INITIALIZERS", "Init", "initial", "initializer"]

Array = NDArray[Any]

Init: TypeAlias = Literal["uniform", "xavier", "orthogonal", "identity", "zeros"]
INITIALIZERS: tuple[Init, ...] = get_args(Init)
# Roles that two of them treat apart.
MAPS_STATES = ("recurrent_matrix", "recurrent_blocks", "projection_matrix")


def initializer(init: str, kind: str) -> Init:
    """`init` as one of the names; not orthogonal for a cell for which it is what xavier is."""
    known = choice("init", init, INITIALIZERS)
    if known == "orthogonal":
        from ..reference import CELLS  # here: the default does without the reference

        weights = [p.role for p in CELLS[kind].parameters if p.name.startswith("weight")]
        if weights == ["input_matrix"]:
            others = ", ".join(name for name in INITIALIZERS if name != known)
            raise ValueError(
                f"init: expected one of {others} for {kind}, which has no recurrent weights, "
                f"got {known!r}"
            )
    return known


def initial(
    init: str,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    hidden: int,
    generator: np.random.Generator,
    normalizes: bool,
) -> Array:
    """One parameter's first values, float64; `normalizes`: whether its layer has layer norm."""
    if init == "zeros":
        return np.zeros(shape)
    if name.startswith("gain"):
        return np.ones(shape)
    if normalizes and name.startswith("bias"):
        return np.zeros(shape)
    if len(shape) == 1 and not name.startswith("bias"):  # one value for each unit, or several
        return _unit_vectors(init, name, shape, hidden, generator)
    if init == "uniform":
        bound = 1.0 / math.sqrt(hidden)
        return generator.uniform(-bound, bound, shape)
    parameter = _parameter(kind, name)
    if parameter.needs == "bias":
        return np.zeros(shape)
    columns = shape[1]
    rows = hidden if parameter.shape[0] == "G*H" else shape[0]  # of one gate
    if parameter.role == "recurrent_blocks":
        rows = columns  # of one gate and head
    matrices = shape[0] // rows
    maps_states = parameter.role in MAPS_STATES
    if init == "identity":
        if maps_states:
            return np.tile(np.eye(rows, columns), (matrices, 1))
        return generator.normal(0, 1e-3, shape)
    if init == "orthogonal" and maps_states:
        # Q of a Gaussian matrix; the signs of R's diagonal make it uniform over all rotations.
        long, short = max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(generator.normal(size=(matrices, long, short)))
        signs: Array = np.sign(np.diagonal(r, axis1=1, axis2=2))
        q = q * signs[:, None, :]
        return np.reshape(q if rows >= columns else q.swapaxes(1, 2), shape)
    bound = math.sqrt(6.0 / (rows + columns))
    return generator.uniform(-bound, bound, shape)


def _unit_vectors(
    init: str, name: str, shape: tuple[int, ...], hidden: int, generator: np.random.Generator
) -> Array:
    """Recurrent weights of units that see their own state alone, decays, or peepholes."""
    if name.startswith("lambda"):
        # De et al. 2024, arXiv 2402.19427, section 2.4: where the gate is open the factor of the
        # state, exp(-8 softplus(lambda)), is uniform over [0.9, 0.999).
        return np.log(np.expm1(-np.log(generator.uniform(0.9, 0.999, shape)) / 8.0))
    if name.startswith("weight_hh"):
        orthogonal = init in ("orthogonal", "identity")  # a diagonal matrix of ones
        return np.ones(shape) if orthogonal else generator.uniform(0.0, 1.0, shape)
    bound = 1.0 / math.sqrt(hidden)
    return generator.uniform(-bound, bound, shape) if init == "uniform" else np.zeros(shape)


def _parameter(kind: str, name: str) -> Parameter:
    """The row of ``{name}_l{k}{_reverse}`` in the cell's table."""
    from ..reference import CELLS  # here: the default does without the reference

    before = name.rpartition("_l")[0]
    return next(p for p in CELLS[kind].parameters if p.name == before)
