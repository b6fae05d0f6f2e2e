"""What cells and layers share: arrays, states, parameters, one time step, the clips."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = tuple[Array, ...]  # (h,), for LSTM (h, c)


class Weights(NamedTuple):
    """The parameters of one layer and direction, or their gradients."""

    W_ih: Array  # [G*H, I], above the first layer [G*H, D*H]; gate blocks one below the other
    W_hh: Array  # [G*H, H]
    b_ih: Array  # [G*H], zeros in a layer without bias
    b_hh: Array  # [G*H]


class Step(NamedTuple):
    """One step of one layer and direction, on the rows it is alive in (n of them)."""

    t: int
    rows: npt.NDArray[np.bool_]  # [B], True where t < length
    kept: npt.NDArray[np.bool_]  # [n], False where the state before was reset to zero
    x: Array  # [n, I] or [n, D*H]
    prev: State  # each [n, H]
    gates: Array  # [n, G*H], after the nonlinearity, in PyTorch's order
    new: State  # each [n, H]


class StepBack(NamedTuple):
    """The gradients of one step of one layer and direction."""

    x: Array  # [n, I] or [n, D*H]
    prev: State  # each [n, H]
    weights: Weights
    da: Array  # [n, G*H], of the gates' arguments, clipped
    da_h: Array  # [n, G*H], of W_hh h_prev + b_hh


class ClipLike(Protocol):
    """The clips of the gradient; each a bound > 0, or None for none. Applied in this order.

    Sources: `step_value` Graves 2013, arXiv 1308.0850 sec. 2.1; `step_norm` the per-step form,
    `norm` the algorithm 1 of Pascanu et al. 2013, arXiv 1211.5063; `value` Mikolov 2012.
    """

    @property
    def step_value(self) -> float | None:
        """Bound of each element of da, every step."""

    @property
    def step_norm(self) -> float | None:
        """Bound of the L2 norm of each row that a step hands back to h_prev."""

    @property
    def value(self) -> float | None:
        """Bound of each element of every parameter gradient."""

    @property
    def norm(self) -> float | None:
        """Bound of the joint L2 norm of all parameter gradients."""
