"""What cells and layers share: arrays, states, parameters, one time step, the clips."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]
State = tuple[Array, ...]  # one array for each row of the cell's table: (h,), for LSTM (h, c)
# The parameters of one layer and direction, or their gradients, by the names of the cell's table.
# Those that the layer lacks are zeros.
Weights = dict[str, Array]


class Parameter(NamedTuple):
    """One row of a cell's table of parameters.

    Examples
    --------
    >>> Parameter("bias_ih", "input_bias", ("G*H",), needs="bias").needs
    'bias'
    """

    name: str  #: PyTorch's, before "_l0" or "_l0_reverse"
    #: input_matrix, recurrent_matrix, input_bias, recurrent_bias, projection_matrix;
    #: unit_vectors: of one element per unit, vector after vector, each multiplied elementwise;
    #: input_gain, recurrent_gain: factors of the products after layer norm; state_gain, state_bias:
    #: of c after layer norm;
    #: recurrent_blocks: of each gate's recurrent matrix the blocks on its diagonal, one per head
    role: str
    #: letters: "G*H", "V*H", "H", "P", "P/N" or "I"; above the first layer I is D*P
    shape: tuple[str, ...]
    needs: str = ""  #: the field of `Config` that adds it to a layer; "" if every layer has it


class StateInfo(NamedTuple):
    """One row of a cell's table of states."""

    name: str  #: as in the formulas
    width: str  #: "P" or "H"
    activation: str = ""  #: through which the cell's output reads the state, as in `Gate`
    fresh: float = 0.0  #: its elements where a sequence begins
    flows: bool = True  #: whether a gradient flows through it; otherwise its gradient is zero


class Gate(NamedTuple):
    """One row of a cell's table of gates.

    Examples
    --------
    >>> Gate("f", "sigmoid", "keep").name
    'f'
    """

    name: str  #: as in the formulas; h if the gate is the state itself
    #: sigmoid, tanh, relu, exp, linear, or "sigmoid or linear": linear from 0 on;
    #: of general cells ONNX's name in lower case
    activation: str
    role: str = ""  #: keep: the share of a state that a step keeps; update: the share it replaces


class Step(NamedTuple):
    """One step of one layer and direction, on the rows it is alive in (n of them)."""

    t: int  #: the time step
    rows: npt.NDArray[np.bool_]  #: [B], True where t < length, or where the mask is
    cut: npt.NDArray[np.bool_]  #: [B], True where a reset, here, ends the state before
    kept: Kept  #: [n], False where the state before was reset to a fresh one
    x: Array  #: [n, I], above the first layer [n, D*P]
    prev: State  #: h [n, P], c [n, H]
    gates: Array  #: [n, G*H], after the nonlinearity, in the order of the parameters' rows
    new: State  #: as prev


class StepBack(NamedTuple):
    """The gradients of one step of one layer and direction."""

    x: Array  #: [n, I] or [n, D*P]
    prev: State  #: h [n, P], c [n, H]
    weights: Weights  #: of the parameters, by name
    da: Array  #: [n, G*H], of the gates' arguments, clipped
    da_h: Array | None = None  #: [n, G*H], of W_hh h_prev, if `Cell.has_flow_penalty`


class ClipLike(Protocol):
    """The clips of the gradient; each a bound > 0, or None for none. Applied in this order.

    Sources: `step_value` Graves 2013, arXiv 1308.0850 sec. 2.1; `step_norm` the per-step form,
    `max_norm` the algorithm 1 of Pascanu et al. 2013, arXiv 1211.5063; `value` Mikolov 2012.
    """

    @property
    def step_value(self) -> float | None:
        """Bound of each element of da, every step."""

    @property
    def step_norm(self) -> float | None:
        """Bound of the L2 norm of each row that a step passes to h_prev."""

    @property
    def value(self) -> float | None:
        """Bound of each element of every parameter gradient."""

    @property
    def max_norm(self) -> float | None:
        """Bound of the joint L2 norm of all parameter gradients."""
