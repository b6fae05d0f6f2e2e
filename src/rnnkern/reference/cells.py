"""The cells: one time step of each recurrence, and its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from .activations import Activation, Sigmoid, Tanh, sigmoid, softplus
from .types import Array, Gate, Kept, Parameter, State, StateInfo, Step, StepBack, Weights

_EPSILON = 1e-5  # of layer norm, as in haste and PyTorch

# --------------------------------------------------------------------------------- pointwise


def _tanh_slope(h: Array) -> Array:
    """Return tanh'(a), as a function of h = tanh(a)."""
    return 1 - h**2


def _relu(a: Array) -> Array:
    return np.maximum(a, 0.0)


def _relu_slope(h: Array) -> Array:
    """Return relu'(a), as a function of h = relu(a); 0 at 0."""
    return (h > 0).astype(np.float64)


def _positive(a: Array) -> Array:
    """Feng et al. 2024, arXiv 2410.01201 appendix B: positive and continuous."""
    return np.where(a >= 0, a + 0.5, sigmoid(a))


def _positive_slope(a: Array) -> Array:
    s = sigmoid(a)
    return np.where(a >= 0, 1.0, s * (1 - s))


def _identity(a: Array) -> Array:
    return a


def _tanh_slope_at(a: Array) -> Array:
    """Return tanh'(a)."""
    return _tanh_slope(np.tanh(a))


def clip_value(d: Array, c: float | None) -> Array:
    return d if c is None else np.clip(d, -c, c)


def _clip_value_backward(d: Array, before: Array, c: float | None) -> Array:
    """Return the gradient of `before` from d, the gradient of clip_value(before, c)."""
    return d if c is None else np.where(np.abs(before) > c, 0.0, d)


# ------------------------------------------------------------------------- norms and weights


def _standardized(v: Array) -> tuple[Array, Array]:
    """Return (v - mean) / std and 1 / std over the last axis: Ba et al. 2016, arXiv 1607.06450."""
    centered = v - v.mean(axis=-1, keepdims=True)
    rstd: Array = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return centered * rstd, rstd


def _standardized_backward(dn: Array, n: Array, rstd: Array) -> Array:
    """Return dv, from the gradient of n = (v - mean) / std."""
    along = dn.mean(axis=-1, keepdims=True) + n * (dn * n).mean(axis=-1, keepdims=True)
    dv: Array = rstd * (dn - along)
    return dv


def _layer_norm(z: Array, w: Weights, of: str) -> Array:
    """Return z, the product of "ih" or "hh", standardized, with its gain and bias, if any."""
    n, _ = _standardized(z)
    return n * w["gain_" + of] + w.get("bias_" + of, 0.0)


def _by_gate(w: Weights) -> list[Weights]:
    """Return W_hh and b_hh of each of a GRU's gates."""
    pairs = zip(np.split(w["weight_hh"], 3), np.split(w["bias_hh"], 3), strict=True)
    return [{"weight_hh": W, "bias_hh": b} for W, b in pairs]


# ------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell(ABC):
    """One step of a recurrence: its tables, its equations, and their derivatives.

    The tables of parameters and states are in the order in which they are given and returned. The
    table of gates is in the order of the rows of "G*H".

    Examples
    --------
    >>> for parameter in CELLS["min_gru"].parameters:
    ...     print(parameter.name, parameter.shape)
    weight_ih ('G*H', 'I')
    bias_ih ('G*H',)
    """

    vectors: ClassVar[int] = 0  # V, in the parameter whose role is unit_vectors
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("weight_hh", "recurrent_matrix", ("G*H", "P")),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
        Parameter("bias_hh", "recurrent_bias", ("G*H",), "bias"),
    )
    options: ClassVar[tuple[str, ...]] = ()  # fields that `Config` sets; None is the default
    activated: ClassVar[tuple[str, ...]] = ()  # the values that the option `activations` is for
    noise: ClassVar[tuple[str, ...]] = ()  # the names of what training draws for each unit
    has_flow_penalty: ClassVar[bool] = False
    inputs_are_units: ClassVar[bool] = False  # whether x acts unit by unit, so that I is H
    also_saved: ClassVar[tuple[str, ...]] = ()  # what the kernels save besides gates and states
    _: KW_ONLY
    # What products read of an operand. Of a factory, so that the default is no method of the class.
    operand: Callable[[Array], Array] = field(default_factory=lambda: _identity)

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """Name, width and activation of each state; a class attribute where no field changes it."""
        return (StateInfo("h", "P"),)

    @property
    @abstractmethod
    def gate_table(self) -> tuple[Gate, ...]:
        """Name, activation and role of each gate; a class attribute where no field changes it."""

    @property
    def gates(self) -> int:
        """G."""
        return len(self.gate_table)

    @property
    def saved(self) -> tuple[str, ...]:
        """Names of the vectors of H elements that the kernels save for backward, in order."""
        states = [state.name for state in self.states]
        gates = [gate.name for gate in self.gate_table if gate.name not in states]
        return (*gates, *self.also_saved)

    def values(self, saved: dict[str, Array], w: Weights) -> dict[str, Array]:
        """Return the gates by name, from what the kernels save."""
        return saved

    def output_value(self, c: Array, w: Weights) -> Array:
        """Return the activation through which h sees a carried state."""
        return np.tanh(c)

    @property
    def projects(self) -> bool:
        """Whether h is P wide; otherwise P is H."""
        return any(p.role == "projection_matrix" for p in self.parameters)

    def _product(self, x: Array, W: Array) -> Array:
        """Return W x for each row."""
        z: Array = self.operand(x) @ self.operand(W).T
        return z

    def _product_backward(self, dz: Array, x: Array, W: Array) -> tuple[Array, Array]:
        """Return dx and dW, with z = W x."""
        dz = self.operand(dz)
        return dz @ self.operand(W), dz.T @ self.operand(x)

    def _affine(self, x: Array, w: Weights, of: str) -> Array:
        """Return W x + b for each row, with the weight and the bias of "ih" or "hh"."""
        return self._product(x, w["weight_" + of]) + w["bias_" + of]

    def _affine_backward(self, da: Array, x: Array, w: Weights, of: str) -> tuple[Array, Weights]:
        """Return dx and {dW, db}."""
        dx, dW = self._product_backward(da, x, w["weight_" + of])
        return dx, {"weight_" + of: dW, "bias_" + of: da.sum(axis=0)}

    @abstractmethod
    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        """Return the new state and the gates (n, G*H), from x (n, I) and the state before.

        `kept` (n,) is False in the rows whose state before was reset, and is fresh.
        """

    @abstractmethod
    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        """Return the gradients of x, of the state before and of the weights.

        Each da is clipped to [-step_value, step_value] where it arises: all that lies further
        down the chain gets the clipped one.
        """


@dataclass(frozen=True)
class _RNN(Cell):
    """Elman 1990, Finding structure in time."""

    has_flow_penalty = True
    activation: str  # the name of act
    act: Callable[[Array], Array]
    slope: Callable[[Array], Array]  # act'(a), as a function of h = act(a)

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """h itself."""
        return (Gate("h", self.activation),)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        h = self.act(self._affine(x, w, "ih") + self._affine(h_prev, w, "hh"))
        return (h,), h

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (h,) = d_state, step.prev, step.new
        da = clip_value(dh * self.slope(h), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da, da)


@dataclass(frozen=True)
class _LSTM(Cell):
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000."""

    gate_table = (
        Gate("i", "sigmoid"),
        Gate("f", "sigmoid", "keep"),
        Gate("g", "tanh"),
        Gate("o", "sigmoid"),
    )
    states = (StateInfo("h", "P"), StateInfo("c", "H", "tanh"))
    cell_clip: float | None = None

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        h_prev, c_prev = state
        a = self._affine(x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c = clip_value(f * c_prev + i * g, self.cell_clip)
        h = self._output(o * np.tanh(c), w)
        return (h, c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev), (_, c) = d_state, step.prev, step.new
        i, f, g, o = np.split(step.gates, 4, axis=1)
        tanh_c = np.tanh(c)
        dm, dw_hr = self._output_backward(dh, o * tanh_c, w)
        dc = dc_next + dm * o * (1 - tanh_c**2)
        dc = _clip_value_backward(dc, f * c_prev + i * g, self.cell_clip)
        da_i = dc * g * i * (1 - i)
        da_f = dc * c_prev * f * (1 - f)
        da_g = dc * i * (1 - g**2)
        da_o = dm * tanh_c * o * (1 - o)
        da = clip_value(np.hstack([da_i, da_f, da_g, da_o]), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        return StepBack(dx, (dh_prev, dc * f), dw_ih | dw_hh | dw_hr, da)

    def _output(self, m: Array, w: Weights) -> Array:
        """Return h (n, P) from m = o tanh(c) (n, H)."""
        return m

    def _output_backward(self, dh: Array, m: Array, w: Weights) -> tuple[Array, Weights]:
        """Return dm, and the gradients of the parameters that only `_output` uses."""
        return dh, {}


class _ClippedLSTM(_LSTM):
    """The LSTM with c in [-cell_clip, cell_clip], before its tanh and as carried."""

    options = ("cell_clip",)


@dataclass(frozen=True)
class _ProjectedLSTM(_LSTM):
    """Sak et al. 2014, arXiv 1402.1128: h = W_hr (o tanh(c)), in [-proj_clip, proj_clip]."""

    parameters = (*_LSTM.parameters, Parameter("weight_hr", "projection_matrix", ("P", "H")))
    options = ("cell_clip", "proj_clip")
    proj_clip: float | None = None

    def _output(self, m: Array, w: Weights) -> Array:
        return clip_value(self._product(m, w["weight_hr"]), self.proj_clip)

    def _output_backward(self, dh: Array, m: Array, w: Weights) -> tuple[Array, Weights]:
        dh = _clip_value_backward(dh, self._product(m, w["weight_hr"]), self.proj_clip)
        dm, dW = self._product_backward(dh, m, w["weight_hr"])
        return dm, {"weight_hr": dW}


class _GRUResetAfter(Cell):
    """Cho et al. 2014, arXiv 1406.1078v1: r acts on the product W_hn h_prev + b_hn, here q."""

    gate_table = (Gate("r", "sigmoid"), Gate("z", "sigmoid", "keep"), Gate("n", "tanh"))
    has_flow_penalty = True
    also_saved = ("q",)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        h_r, h_z, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * q)
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        _, _, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        da_n = clip_value(dh * (1 - z) * (1 - n**2), step_value)
        da_z = clip_value(dh * (h_prev - n) * z * (1 - z), step_value)
        da_r = clip_value(da_n * q * r * (1 - r), step_value)
        da = np.hstack([da_r, da_z, da_n])
        da_h = np.hstack([da_r, da_z, da_n * r])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da_h, h_prev, w, "hh")
        return StepBack(dx, (dh_prev + dh * z,), dw_ih | dw_hh, da, da_h)


class _GRUResetBefore(Cell):
    """Cho et al. 2014, arXiv 1406.1078v3: r acts on the state, W_hn (r h_prev) + b_hn."""

    gate_table = (Gate("r", "sigmoid"), Gate("z", "sigmoid", "keep"), Gate("n", "tanh"))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        w_r, w_z, w_n = _by_gate(w)
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        r = sigmoid(x_r + self._affine(h_prev, w_r, "hh"))
        z = sigmoid(x_z + self._affine(h_prev, w_z, "hh"))
        n = np.tanh(x_n + self._affine(r * h_prev, w_n, "hh"))
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        w_r, w_z, w_n = _by_gate(w)
        da_n = clip_value(dh * (1 - z) * (1 - n**2), step_value)
        da_z = clip_value(dh * (h_prev - n) * z * (1 - z), step_value)
        drh, dw_n = self._affine_backward(da_n, r * h_prev, w_n, "hh")
        da_r = clip_value(drh * h_prev * r * (1 - r), step_value)
        dh_r, dw_r = self._affine_backward(da_r, h_prev, w_r, "hh")
        dh_z, dw_z = self._affine_backward(da_z, h_prev, w_z, "hh")
        da = np.hstack([da_r, da_z, da_n])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev = dh * z + drh * r + dh_r + dh_z
        dw_hh = {name: np.concatenate([dw_r[name], dw_z[name], dw_n[name]]) for name in dw_r}
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da)


@dataclass(frozen=True)
class _OfInputs(Cell):
    """A cell whose gates and candidate v = act(a) depend on x alone."""

    parameters = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
    )
    activation: str = "sigmoid or linear"  # the name of act
    act: Callable[[Array], Array] = _positive
    slope: Callable[[Array], Array] = _positive_slope  # act'(a), as a function of a


class _MinGRU(_OfInputs):
    """Feng et al. 2024, arXiv 2410.01201."""

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """z and v."""
        return (Gate("z", "sigmoid", "update"), Gate("v", self.activation))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        a_z, a_v = np.split(self._affine(x, w, "ih"), 2, axis=1)
        z = sigmoid(a_z)
        v = self.act(a_v)
        h = (1 - z) * h_prev + z * v
        return (h,), np.hstack([z, v])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        z, v = np.split(step.gates, 2, axis=1)
        _, a_v = np.split(self._affine(step.x, w, "ih"), 2, axis=1)
        da_z = dh * (v - h_prev) * z * (1 - z)
        da_v = dh * z * self.slope(a_v)
        da = clip_value(np.hstack([da_z, da_v]), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        return StepBack(dx, (dh * (1 - z),), dw_ih, da)


class _MinLSTM(_OfInputs):
    """Feng et al. 2024, arXiv 2410.01201: minGRU with two gates, normalized so that f + i = 1.

    With the gates s_f = sigmoid(a_f) and s_i = sigmoid(a_i), f = s_f / (s_f + s_i), which is
    sigmoid(log s_f - log s_i): this form has no 0 / 0 where both arguments are very negative.
    """

    also_saved = ("1 - s_f",)

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """f, i and v."""
        return (Gate("f", "sigmoid", "keep"), Gate("i", "sigmoid"), Gate("v", self.activation))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        a_f, a_i, a_v = np.split(self._affine(x, w, "ih"), 3, axis=1)
        f = sigmoid(softplus(-a_i) - softplus(-a_f))  # log sigmoid(a) = -softplus(-a)
        i = 1 - f
        v = self.act(a_v)
        h = f * h_prev + i * v
        return (h,), np.hstack([f, i, v])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        f, i, v = np.split(step.gates, 3, axis=1)
        a_f, a_i, a_v = np.split(self._affine(step.x, w, "ih"), 3, axis=1)
        ds = dh * (h_prev - v) * f * i  # of s = log s_f - log s_i, the argument of f
        da_f = ds * sigmoid(-a_f)
        da_i = -ds * sigmoid(-a_i)
        da_v = dh * i * self.slope(a_v)
        da = clip_value(np.hstack([da_f, da_i, da_v]), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        return StepBack(dx, (dh * f,), dw_ih, da)


@dataclass(frozen=True)
class _IndRNN(Cell):
    """Li et al. 2018, arXiv 1803.04831: each unit sees its own state alone, by its factor u."""

    vectors = 1
    parameters = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("weight_hh", "unit_vectors", ("V*H",)),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
    )
    activation: str  # the name of act
    act: Callable[[Array], Array]
    slope: Callable[[Array], Array]  # act'(a), as a function of h = act(a)

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """h itself."""
        return (Gate("h", self.activation),)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,), u = state, w["weight_hh"]
        h = self.act(self._affine(x, w, "ih") + u * h_prev)
        return (h,), h

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (h,), u = d_state, step.prev, step.new, w["weight_hh"]
        da = clip_value(dh * self.slope(h), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        du = (da * h_prev).sum(axis=0)
        return StepBack(dx, (da * u,), dw_ih | {"weight_hh": du}, da)


@dataclass(frozen=True)
class _PeepholeLSTM(_LSTM):
    """Gers & Schmidhuber 2000: i and f see c_prev, o sees c, each by a factor per unit."""

    vectors = 3
    parameters = (*_LSTM.parameters, Parameter("weight_ch", "unit_vectors", ("V*H",)))  # i, f, o
    options = ("cell_clip",)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        h_prev, c_prev = state
        p_i, p_f, p_o = np.split(w["weight_ch"], 3)
        a = self._affine(x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g = sigmoid(a_i + p_i * c_prev), sigmoid(a_f + p_f * c_prev), np.tanh(a_g)
        c = clip_value(f * c_prev + i * g, self.cell_clip)
        o = sigmoid(a_o + p_o * c)
        return (o * np.tanh(c), c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev), (_, c) = d_state, step.prev, step.new
        p_i, p_f, p_o = np.split(w["weight_ch"], 3)
        i, f, g, o = np.split(step.gates, 4, axis=1)
        tanh_c = np.tanh(c)
        da_o = clip_value(dh * tanh_c * o * (1 - o), step_value)
        dc = dc_next + dh * o * (1 - tanh_c**2) + da_o * p_o
        dc = _clip_value_backward(dc, f * c_prev + i * g, self.cell_clip)
        da_i = clip_value(dc * g * i * (1 - i), step_value)
        da_f = clip_value(dc * c_prev * f * (1 - f), step_value)
        da_g = clip_value(dc * i * (1 - g**2), step_value)
        da = np.hstack([da_i, da_f, da_g, da_o])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        dc_prev = dc * f + da_i * p_i + da_f * p_f
        dp = np.hstack([da_i * c_prev, da_f * c_prev, da_o * c]).sum(axis=0)
        return StepBack(dx, (dh_prev, dc_prev), dw_ih | dw_hh | {"weight_ch": dp}, da)


class _LayerNorm(Cell):
    """A cell whose two products are normalized, each over all of its G*H values."""

    _gains = (
        Parameter("gain_ih", "input_gain", ("G*H",)),
        Parameter("gain_hh", "recurrent_gain", ("G*H",)),
    )

    @property
    def saved(self) -> tuple[str, ...]:
        """The products, from which backward makes the rest."""
        names = [gate.name for gate in self.gate_table]
        return (*(f"W_ih x of {g}" for g in names), *(f"W_hh h_prev of {g}" for g in names))

    def values(self, saved: dict[str, Array], w: Weights) -> dict[str, Array]:
        """Return the gates by name, from the products."""
        products = [np.asarray(saved[name], np.float64) for name in self.saved]
        zx, zh = (np.concatenate(p, axis=-1) for p in np.split(np.array(products), 2))
        gates = self._gates(_layer_norm(zx, w, "ih"), _layer_norm(zh, w, "hh"))
        return {gate.name: value for gate, value in zip(self.gate_table, gates, strict=True)}

    def _sides(self, x: Array, h_prev: Array, w: Weights) -> tuple[Array, Array]:
        """Return the parts that x and h_prev have in the gates' arguments."""
        of_x = _layer_norm(self._product(x, w["weight_ih"]), w, "ih")
        return of_x, _layer_norm(self._product(h_prev, w["weight_hh"]), w, "hh")

    def _layer_norm_backward(
        self, da: Array, x: Array, w: Weights, of: str
    ) -> tuple[Array, Weights, Array]:
        """Return dx, {dW, dgain, db} and dz, with z = W x."""
        n, rstd = _standardized(self._product(x, w["weight_" + of]))
        dz = _standardized_backward(da * w["gain_" + of], n, rstd)
        dx, dW = self._product_backward(dz, x, w["weight_" + of])
        dw = {"weight_" + of: dW, "gain_" + of: (da * n).sum(axis=0)}
        if "bias_" + of in w:
            dw["bias_" + of] = da.sum(axis=0)
        return dx, dw, dz

    @abstractmethod
    def _gates(self, of_x: Array, of_h: Array) -> list[Array]:
        """Return each gate, from the parts of x and h_prev."""


class _HasteLSTM(_LayerNorm, _LSTM):
    """Ba et al. 2016, arXiv 1607.06450 equations 20 to 22, as the library haste has them.

    One bias for both products; h sees c normalized, and c itself is carried.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("weight_hh", "recurrent_matrix", ("G*H", "P")),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
        *_LayerNorm._gains,
        Parameter("gain_c", "state_gain", ("H",)),
        Parameter("bias_c", "state_bias", ("H",), "bias"),
    )
    carries_norm: ClassVar[bool] = False  # whether the normalized c is carried

    def output_value(self, c: Array, w: Weights) -> Array:
        """Return tanh of c as h sees it."""
        return np.tanh(c if self.carries_norm else _layer_norm(c, w, "c"))

    def _gates(self, of_x: Array, of_h: Array) -> list[Array]:
        a_i, a_f, a_g, a_o = np.split(of_x + of_h, 4, axis=-1)
        return [sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)]

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        h_prev, c_prev = state
        i, f, g, o = self._gates(*self._sides(x, h_prev, w))
        c = f * c_prev + i * g
        normed = _layer_norm(c, w, "c")
        h = self._output(o * np.tanh(normed), w)
        return (h, normed if self.carries_norm else c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev) = d_state, step.prev
        i, f, g, o = np.split(step.gates, 4, axis=1)
        n, rstd = _standardized(f * c_prev + i * g)
        tanh_c = np.tanh(n * w["gain_c"] + w["bias_c"])
        dm, dw_hr = self._output_backward(dh, o * tanh_c, w)
        d_normed = dm * o * (1 - tanh_c**2) + (dc_next if self.carries_norm else 0)
        dc = _standardized_backward(d_normed * w["gain_c"], n, rstd)
        dc = dc + (0 if self.carries_norm else dc_next)
        da_i = dc * g * i * (1 - i)
        da_f = dc * c_prev * f * (1 - f)
        da_g = dc * i * (1 - g**2)
        da_o = dm * tanh_c * o * (1 - o)
        da = clip_value(np.hstack([da_i, da_f, da_g, da_o]), step_value)
        dx, dw_ih, _ = self._layer_norm_backward(da, step.x, w, "ih")
        dh_prev, dw_hh, _ = self._layer_norm_backward(da, h_prev, w, "hh")
        dw_c = {"gain_c": (d_normed * n).sum(axis=0), "bias_c": d_normed.sum(axis=0)}
        return StepBack(dx, (dh_prev, dc * f), dw_ih | dw_hh | dw_c | dw_hr, da)

    def _output(self, m: Array, w: Weights) -> Array:
        return self._product(m, w["weight_hr"]) if self.projects else m

    def _output_backward(self, dh: Array, m: Array, w: Weights) -> tuple[Array, Weights]:
        if not self.projects:
            return dh, {}
        dm, dW = self._product_backward(dh, m, w["weight_hr"])
        return dm, {"weight_hr": dW}


class _ProjectedHasteLSTM(_HasteLSTM):
    parameters = (*_HasteLSTM.parameters, _ProjectedLSTM.parameters[-1])


class _FastrnnsLSTM(_HasteLSTM):
    """LayerNormLSTMCell of PyTorch's benchmarks/fastrnns.

    A bias for each product; c is carried as h sees it, normalized.
    """

    parameters = (
        *_LSTM.parameters,
        *_LayerNorm._gains,
        *_HasteLSTM.parameters[-2:],
    )
    carries_norm = True


class _ProjectedFastrnnsLSTM(_FastrnnsLSTM):
    parameters = (*_FastrnnsLSTM.parameters, _ProjectedLSTM.parameters[-1])


class _HasteGRU(_LayerNorm, _GRUResetAfter):
    """The reset-after GRU with layer norm, as the library haste has it: a bias for each product.

    Ba et al. 2016, arXiv 1607.06450 equations 25 to 27, with the normalized product of n's h_prev
    and its bias in the place of q.
    """

    parameters = (*_GRUResetAfter.parameters, *_LayerNorm._gains)

    def _gates(self, of_x: Array, of_h: Array) -> list[Array]:
        (x_r, x_z, x_n), (h_r, h_z, q) = (np.split(a, 3, axis=-1) for a in (of_x, of_h))
        r = sigmoid(x_r + h_r)
        return [r, sigmoid(x_z + h_z), np.tanh(x_n + r * q)]

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        r, z, n = self._gates(*self._sides(x, h_prev, w))
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        _, of_h = self._sides(step.x, h_prev, w)
        _, _, q = np.split(of_h, 3, axis=1)
        da_n = clip_value(dh * (1 - z) * (1 - n**2), step_value)
        da_z = clip_value(dh * (h_prev - n) * z * (1 - z), step_value)
        da_r = clip_value(da_n * q * r * (1 - r), step_value)
        da = np.hstack([da_r, da_z, da_n])
        dx, dw_ih, _ = self._layer_norm_backward(da, step.x, w, "ih")
        da_h = np.hstack([da_r, da_z, da_n * r])
        dh_prev, dw_hh, dz_h = self._layer_norm_backward(da_h, h_prev, w, "hh")
        return StepBack(dx, (dh_prev + dh * z,), dw_ih | dw_hh, da, dz_h)


@dataclass(frozen=True)
class _General(Cell):
    """A cell with other activations, and a forward clip of the arguments of its gates."""

    options: ClassVar[tuple[str, ...]] = ("activations", "forward_clip")
    activations: tuple[Activation, ...] = ()
    forward_clip: float | None = None

    def _acts(self) -> tuple[Activation, ...]:
        """Return the activations as functions of arguments that are not clipped yet."""
        return tuple(act.limited(self.forward_clip) for act in self.activations)

    @property
    def saved(self) -> tuple[str, ...]:
        """The arguments of the gates, peepholes included, from which backward makes the rest."""
        return (*(f"argument of {gate.name}" for gate in self.gate_table), *self.also_saved)

    def values(self, saved: dict[str, Array], w: Weights) -> dict[str, Array]:
        """Return the gates by name, from their arguments."""
        acts, candidates = self._acts(), ("g", "n")
        return {
            gate.name: acts[gate.name in candidates].value(saved[f"argument of {gate.name}"])
            for gate in self.gate_table
        }

    def _names(self) -> tuple[str, ...]:
        """Return the activations' names in the tables: ONNX's in lower case."""
        return tuple(type(act).__name__.lower() for act in self.activations)


@dataclass(frozen=True)
class _GeneralRNN(_General):
    """h = act(a)."""

    has_flow_penalty = True
    activated = ("h",)
    activations: tuple[Activation, ...] = (Tanh(),)

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """h itself."""
        (act,) = self._names()
        return (Gate("h", act),)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,), (act,) = state, self._acts()
        h = act.value(self._affine(x, w, "ih") + self._affine(h_prev, w, "hh"))
        return (h,), h

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (act,) = d_state, step.prev, self._acts()
        a = self._affine(step.x, w, "ih") + self._affine(h_prev, w, "hh")
        da = clip_value(dh * act.slope(a), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da, da)


@dataclass(frozen=True)
class _GeneralLSTM(_General):
    """The LSTM with any of: peepholes, a projection, other activations, and the forward clips.

    `gate` is the activation of i, f and o, `cand` that of g, `out` that of c. As in ONNX Runtime,
    the forward clip does not act on c, the argument of `out`.
    """

    vectors = 3
    parameters = (
        *Cell.parameters,
        Parameter("weight_ch", "unit_vectors", ("V*H",), "peephole"),  # i, f, o
    )
    options: ClassVar[tuple[str, ...]] = (*_General.options, "cell_clip")
    activated = ("i, f and o", "g", "c")
    activations: tuple[Activation, ...] = (Sigmoid(), Tanh(), Tanh())
    cell_clip: float | None = None
    proj_clip: float | None = None

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """h and c, as of the LSTM."""
        _, _, out = self._names()
        return (StateInfo("h", "P"), StateInfo("c", "H", out))

    def output_value(self, c: Array, w: Weights) -> Array:
        """Return the activation through which h sees c."""
        return self.activations[2].value(c)

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """i, f, g and o."""
        gate, cand, _ = self._names()
        return (Gate("i", gate), Gate("f", gate, "keep"), Gate("g", cand), Gate("o", gate))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev, c_prev), (gate, cand, _), out = state, self._acts(), self.activations[2]
        p_i, p_f, p_o = np.split(w["weight_ch"], 3)
        a = self._affine(x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i = gate.value(a_i + p_i * c_prev)
        f = gate.value(a_f + p_f * c_prev)
        g = cand.value(a_g)
        c = clip_value(f * c_prev + i * g, self.cell_clip)
        o = gate.value(a_o + p_o * c)
        h = self._output(o * out.value(c), w)
        return (h, c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev), (_, c) = d_state, step.prev, step.new
        (gate, cand, _), out = self._acts(), self.activations[2]
        p_i, p_f, p_o = np.split(w["weight_ch"], 3)
        a = self._affine(step.x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = np.split(step.gates, 4, axis=1)
        dm, dw_hr = self._output_backward(dh, o * out.value(c), w)
        da_o = clip_value(dm * out.value(c) * gate.slope(a_o + p_o * c), step_value)
        dc = dc_next + dm * o * out.slope(c) + da_o * p_o
        dc = _clip_value_backward(dc, f * c_prev + i * g, self.cell_clip)
        da_i = clip_value(dc * g * gate.slope(a_i + p_i * c_prev), step_value)
        da_f = clip_value(dc * c_prev * gate.slope(a_f + p_f * c_prev), step_value)
        da_g = clip_value(dc * i * cand.slope(a_g), step_value)
        da = np.hstack([da_i, da_f, da_g, da_o])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        dc_prev = dc * f + da_i * p_i + da_f * p_f
        dp = np.hstack([da_i * c_prev, da_f * c_prev, da_o * c]).sum(axis=0)
        dw = dw_ih | dw_hh | dw_hr | {"weight_ch": dp}
        return StepBack(dx, (dh_prev, dc_prev), dw, da)

    def _output(self, m: Array, w: Weights) -> Array:
        """Return h (n, P) from m = o out(c) (n, H)."""
        if not self.projects:
            return m
        return clip_value(self._product(m, w["weight_hr"]), self.proj_clip)

    def _output_backward(self, dh: Array, m: Array, w: Weights) -> tuple[Array, Weights]:
        """Return dm, and the gradients of the parameters that only `_output` uses."""
        if not self.projects:
            return dh, {}
        dh = _clip_value_backward(dh, self._product(m, w["weight_hr"]), self.proj_clip)
        dm, dW = self._product_backward(dh, m, w["weight_hr"])
        return dm, {"weight_hr": dW}


class _GeneralProjectedLSTM(_GeneralLSTM):
    parameters = (*_GeneralLSTM.parameters, _ProjectedLSTM.parameters[-1])
    options = (*_GeneralLSTM.options, "proj_clip")


class _GeneralCIFG(_GeneralLSTM):
    """The general LSTM with coupled gates, f = 1 - i: Greff et al. 2017, arXiv 1503.04069."""

    vectors = 2  # i, o
    activated = ("i and o", "g", "c")

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """i, g and o."""
        gate, cand, _ = self._names()
        return (Gate("i", gate, "update"), Gate("g", cand), Gate("o", gate))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev, c_prev), (gate, cand, _), out = state, self._acts(), self.activations[2]
        p_i, p_o = np.split(w["weight_ch"], 2)
        a = self._affine(x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_g, a_o = np.split(a, 3, axis=1)
        i = gate.value(a_i + p_i * c_prev)
        g = cand.value(a_g)
        c = clip_value((1 - i) * c_prev + i * g, self.cell_clip)
        o = gate.value(a_o + p_o * c)
        h = self._output(o * out.value(c), w)
        return (h, c), np.hstack([i, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev), (_, c) = d_state, step.prev, step.new
        (gate, cand, _), out = self._acts(), self.activations[2]
        p_i, p_o = np.split(w["weight_ch"], 2)
        a = self._affine(step.x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_g, a_o = np.split(a, 3, axis=1)
        i, g, o = np.split(step.gates, 3, axis=1)
        dm, dw_hr = self._output_backward(dh, o * out.value(c), w)
        da_o = clip_value(dm * out.value(c) * gate.slope(a_o + p_o * c), step_value)
        dc = dc_next + dm * o * out.slope(c) + da_o * p_o
        dc = _clip_value_backward(dc, (1 - i) * c_prev + i * g, self.cell_clip)
        da_i = clip_value(dc * (g - c_prev) * gate.slope(a_i + p_i * c_prev), step_value)
        da_g = clip_value(dc * i * cand.slope(a_g), step_value)
        da = np.hstack([da_i, da_g, da_o])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        dc_prev = dc * (1 - i) + da_i * p_i
        dp = np.hstack([da_i * c_prev, da_o * c]).sum(axis=0)
        dw = dw_ih | dw_hh | dw_hr | {"weight_ch": dp}
        return StepBack(dx, (dh_prev, dc_prev), dw, da)


class _GeneralProjectedCIFG(_GeneralCIFG):
    parameters = _GeneralProjectedLSTM.parameters
    options = _GeneralProjectedLSTM.options


@dataclass(frozen=True)
class _GeneralGRU(_General):
    """`gate` is the activation of r and z, `cand` that of n."""

    activated = ("r and z", "n")
    activations: tuple[Activation, ...] = (Sigmoid(), Tanh())

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """r, z and n."""
        gate, cand = self._names()
        return (Gate("r", gate), Gate("z", gate, "keep"), Gate("n", cand))


class _GeneralGRUResetAfter(_GeneralGRU):
    """The reset-after GRU."""

    has_flow_penalty = True
    also_saved = ("q",)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,), (gate, cand) = state, self._acts()
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        h_r, h_z, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        r = gate.value(x_r + h_r)
        z = gate.value(x_z + h_z)
        n = cand.value(x_n + r * q)
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (gate, cand) = d_state, step.prev, self._acts()
        x_r, x_z, x_n = np.split(self._affine(step.x, w, "ih"), 3, axis=1)
        h_r, h_z, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        r, z, n = np.split(step.gates, 3, axis=1)
        da_n = clip_value(dh * (1 - z) * cand.slope(x_n + r * q), step_value)
        da_z = clip_value(dh * (h_prev - n) * gate.slope(x_z + h_z), step_value)
        da_r = clip_value(da_n * q * gate.slope(x_r + h_r), step_value)
        da = np.hstack([da_r, da_z, da_n])
        da_h = np.hstack([da_r, da_z, da_n * r])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da_h, h_prev, w, "hh")
        return StepBack(dx, (dh_prev + dh * z,), dw_ih | dw_hh, da, da_h)


class _GeneralGRUResetBefore(_GeneralGRU):
    """The reset-before GRU."""

    @property
    def saved(self) -> tuple[str, ...]:
        """As of the other general cells, and r itself, of which its operand is made again."""
        return ("r", "argument of z", "argument of n", "argument of r")

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,), (gate, cand) = state, self._acts()
        w_r, w_z, w_n = _by_gate(w)
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        r = gate.value(x_r + self._affine(h_prev, w_r, "hh"))
        z = gate.value(x_z + self._affine(h_prev, w_z, "hh"))
        n = cand.value(x_n + self._affine(r * h_prev, w_n, "hh"))
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (gate, cand) = d_state, step.prev, self._acts()
        w_r, w_z, w_n = _by_gate(w)
        x_r, x_z, x_n = np.split(self._affine(step.x, w, "ih"), 3, axis=1)
        r, z, n = np.split(step.gates, 3, axis=1)
        slope_n = cand.slope(x_n + self._affine(r * h_prev, w_n, "hh"))
        slope_z = gate.slope(x_z + self._affine(h_prev, w_z, "hh"))
        slope_r = gate.slope(x_r + self._affine(h_prev, w_r, "hh"))
        da_n = clip_value(dh * (1 - z) * slope_n, step_value)
        da_z = clip_value(dh * (h_prev - n) * slope_z, step_value)
        drh, dw_n = self._affine_backward(da_n, r * h_prev, w_n, "hh")
        da_r = clip_value(drh * h_prev * slope_r, step_value)
        dh_r, dw_r = self._affine_backward(da_r, h_prev, w_r, "hh")
        dh_z, dw_z = self._affine_backward(da_z, h_prev, w_z, "hh")
        da = np.hstack([da_r, da_z, da_n])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev = dh * z + drh * r + dh_r + dh_z
        dw_hh = {name: np.concatenate([dw_r[name], dw_z[name], dw_n[name]]) for name in dw_r}
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da)


@dataclass(frozen=True)
class _Noisy(Cell):
    """A cell with zoneout, Krueger et al. 2016, arXiv 1606.01305, and recurrent dropout.

    Recurrent dropout is that of Semeniuta et al. 2016, arXiv 1603.05118: of the candidate.
    """

    options: ClassVar[tuple[str, ...]] = ("zoneout",)
    zoneout: float | tuple[float, ...] = 0.0  # of each state, or one probability for all
    recurrent_dropout: float = 0.0
    drawn: Mapping[str, Array] | None = None  # a step's noise [n, H] by name; None: its mean

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability that a value is zero, for each name of `noise`."""
        given, count = self.zoneout, len(self.states)
        zoneout = given if isinstance(given, tuple) else (given,) * count
        of = {f"zoneout_{s.name}": p for s, p in zip(self.states, zoneout, strict=True)}
        return {**of, "recurrent_dropout": self.recurrent_dropout}

    def _noise(self, name: str) -> Array | float:
        """Return the noise of a step: of zoneout 0 or 1, of recurrent dropout 0 or 1 / (1 - p)."""
        if self.drawn is not None:
            return self.drawn[name]
        return 1.0 if name == "recurrent_dropout" else 1.0 - self.probabilities[name]

    def _zoned_out(self, name: str, new: Array, prev: Array) -> Array:
        """Return a state after its zoneout: the new one where the noise is 1."""
        m = self._noise(f"zoneout_{name}")
        return m * new + (1 - m) * prev


@dataclass(frozen=True)
class _NoisyRNN(_Noisy):
    """The RNN with zoneout."""

    noise = ("zoneout_h",)
    has_flow_penalty = True
    activation: str = "tanh"
    act: Callable[[Array], Array] = np.tanh
    slope: Callable[[Array], Array] = _tanh_slope

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """h before its zoneout."""
        return (Gate("h", self.activation),)

    @property
    def saved(self) -> tuple[str, ...]:
        """The gate, which is not the state."""
        return ("h before zoneout",)

    def values(self, saved: dict[str, Array], w: Weights) -> dict[str, Array]:
        """Return the gate by its name."""
        return {"h": saved["h before zoneout"]}

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        h_new = self.act(self._affine(x, w, "ih") + self._affine(h_prev, w, "hh"))
        return (self._zoned_out("h", h_new, h_prev),), h_new

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), h_new = d_state, step.prev, step.gates
        m = self._noise("zoneout_h")
        da = clip_value(dh * m * self.slope(h_new), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        return StepBack(dx, (dh_prev + dh * (1 - m),), dw_ih | dw_hh, da, da)


class _NoisyLSTM(_Noisy):
    """The LSTM: h sees c before its zoneout; recurrent dropout acts on g."""

    noise = ("zoneout_h", "zoneout_c", "recurrent_dropout")
    options = ("zoneout", "recurrent_dropout")
    gate_table = _LSTM.gate_table
    states = _LSTM.states

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        h_prev, c_prev = state
        a = self._affine(x, w, "ih") + self._affine(h_prev, w, "hh")
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c_new = f * c_prev + i * g * self._noise("recurrent_dropout")
        h_new = o * np.tanh(c_new)
        h = self._zoned_out("h", h_new, h_prev)
        c = self._zoned_out("c", c_new, c_prev)
        return (h, c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc), (h_prev, c_prev) = d_state, step.prev
        i, f, g, o = np.split(step.gates, 4, axis=1)
        m_h, m_c = self._noise("zoneout_h"), self._noise("zoneout_c")
        s = self._noise("recurrent_dropout")
        tanh_c = np.tanh(f * c_prev + i * g * s)
        dh_new = dh * m_h
        dc_new = dc * m_c + dh_new * o * (1 - tanh_c**2)
        da_i = dc_new * g * s * i * (1 - i)
        da_f = dc_new * c_prev * f * (1 - f)
        da_g = dc_new * i * s * (1 - g**2)
        da_o = dh_new * tanh_c * o * (1 - o)
        da = clip_value(np.hstack([da_i, da_f, da_g, da_o]), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da, h_prev, w, "hh")
        prev = (dh_prev + dh * (1 - m_h), dc_new * f + dc * (1 - m_c))
        return StepBack(dx, prev, dw_ih | dw_hh, da)


class _NoisyGRUResetAfter(_Noisy):
    """The reset-after GRU: recurrent dropout acts on n."""

    noise = ("zoneout_h", "recurrent_dropout")
    options = ("zoneout", "recurrent_dropout")
    gate_table = _GRUResetAfter.gate_table
    has_flow_penalty = True
    also_saved = ("q",)

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        h_r, h_z, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * q)
        h_new = (1 - z) * n * self._noise("recurrent_dropout") + z * h_prev
        return (self._zoned_out("h", h_new, h_prev),), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        m, s = self._noise("zoneout_h"), self._noise("recurrent_dropout")
        _, _, q = np.split(self._affine(h_prev, w, "hh"), 3, axis=1)
        da_n = clip_value(dh * m * (1 - z) * s * (1 - n**2), step_value)
        da_z = clip_value(dh * m * (h_prev - n * s) * z * (1 - z), step_value)
        da_r = clip_value(da_n * q * r * (1 - r), step_value)
        da = np.hstack([da_r, da_z, da_n])
        da_h = np.hstack([da_r, da_z, da_n * r])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._affine_backward(da_h, h_prev, w, "hh")
        dh_prev = dh_prev + dh * m * z + dh * (1 - m)
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da, da_h)


class _NoisyGRUResetBefore(_Noisy):
    """The reset-before GRU: recurrent dropout acts on n."""

    noise = ("zoneout_h", "recurrent_dropout")
    options = ("zoneout", "recurrent_dropout")
    gate_table = _GRUResetBefore.gate_table

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        w_r, w_z, w_n = _by_gate(w)
        x_r, x_z, x_n = np.split(self._affine(x, w, "ih"), 3, axis=1)
        r = sigmoid(x_r + self._affine(h_prev, w_r, "hh"))
        z = sigmoid(x_z + self._affine(h_prev, w_z, "hh"))
        n = np.tanh(x_n + self._affine(r * h_prev, w_n, "hh"))
        h_new = (1 - z) * n * self._noise("recurrent_dropout") + z * h_prev
        return (self._zoned_out("h", h_new, h_prev),), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        m, s = self._noise("zoneout_h"), self._noise("recurrent_dropout")
        w_r, w_z, w_n = _by_gate(w)
        da_n = clip_value(dh * m * (1 - z) * s * (1 - n**2), step_value)
        da_z = clip_value(dh * m * (h_prev - n * s) * z * (1 - z), step_value)
        drh, dw_n = self._affine_backward(da_n, r * h_prev, w_n, "hh")
        da_r = clip_value(drh * h_prev * r * (1 - r), step_value)
        dh_r, dw_r = self._affine_backward(da_r, h_prev, w_r, "hh")
        dh_z, dw_z = self._affine_backward(da_z, h_prev, w_z, "hh")
        da = np.hstack([da_r, da_z, da_n])
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev = dh * m * z + dh * (1 - m) + drh * r + dh_r + dh_z
        dw_hh = {name: np.concatenate([dw_r[name], dw_z[name], dw_n[name]]) for name in dw_r}
        return StepBack(dx, (dh_prev,), dw_ih | dw_hh, da)


@dataclass(frozen=True)
class _SLSTM(Cell):
    """Beck et al. 2024, arXiv 2405.04517: exponential gates, and heads that see their own h alone.

    c and n are held relative to exp(m): (k c, k n, m - log k) is the same state for each k > 0. So
    no gradient flows through m, which is exact for every loss that sees h alone, and the gradient
    of m is zero. In a fresh state m is -inf, which makes the first f zero and the first i one.
    The gates i and f, as saved, are relative to exp(m), too.
    """

    parameters = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("weight_hh", "recurrent_blocks", ("G*H", "P/N")),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
    )
    states = (
        StateInfo("h", "P"),
        StateInfo("c", "H"),
        StateInfo("n", "H"),
        StateInfo("m", "H", fresh=-np.inf, flows=False),
    )
    options = ("heads", "exp_forget")
    also_saved = ("d log f / d a_f",)
    heads: int = 1
    exp_forget: bool = False  # exp as the forget gate's nonlinearity, not the logistic function

    @property
    def gate_table(self) -> tuple[Gate, ...]:
        """i, f, z and o."""
        forget = Gate("f", "exp" if self.exp_forget else "sigmoid", "keep")
        return (Gate("i", "exp"), forget, Gate("z", "tanh"), Gate("o", "sigmoid"))

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        h_prev, c_prev, n_prev, m_prev = state
        a = self._affine(x, w, "ih") + self._recurrent(h_prev, w["weight_hh"])
        a_i, a_f, a_z, a_o = np.split(a, 4, axis=1)
        log_f = a_f if self.exp_forget else -softplus(-a_f)
        m = np.maximum(a_i, log_f + m_prev)
        i, f = np.exp(a_i - m), np.exp(log_f + m_prev - m)
        z, o = np.tanh(a_z), sigmoid(a_o)
        c = f * c_prev + i * z
        n = f * n_prev + i
        h = o * c / n
        return (h, c, n, m), np.hstack([i, f, z, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next, dn_next, _), (h_prev, c_prev, n_prev, _) = d_state, step.prev
        _, c, n, _ = step.new
        i, f, z, o = np.split(step.gates, 4, axis=1)
        a = self._affine(step.x, w, "ih") + self._recurrent(h_prev, w["weight_hh"])
        _, a_f, _, _ = np.split(a, 4, axis=1)
        dc = dc_next + dh * o / n
        dn = dn_next - dh * o * c / n**2
        da_i = (dc * z + dn) * i
        da_f = (dc * c_prev + dn * n_prev) * f * (1 if self.exp_forget else sigmoid(-a_f))
        da_z = dc * i * (1 - z**2)
        da_o = dh * c / n * o * (1 - o)
        da = clip_value(np.hstack([da_i, da_f, da_z, da_o]), step_value)
        dx, dw_ih = self._affine_backward(da, step.x, w, "ih")
        dh_prev, dw_hh = self._recurrent_backward(da, h_prev, w["weight_hh"])
        prev = (dh_prev, dc * f, dn * f, np.zeros_like(dc))
        return StepBack(dx, prev, dw_ih | {"weight_hh": dw_hh}, da)

    def _recurrent(self, h: Array, R: Array) -> Array:
        """Return R h: the rows of unit j of each gate act on h of the head that j is in."""
        a: Array = np.einsum("bnk,gnjk->bgnj", *self._by_head(h, R))
        return a.reshape(len(h), len(R))

    def _recurrent_backward(self, da: Array, h: Array, R: Array) -> tuple[Array, Array]:
        """Return dh and dR."""
        h_by_head, R_by_head = self._by_head(h, R)
        da = self.operand(da).reshape(len(h), 4, *h_by_head.shape[1:])
        dh = np.einsum("bgnj,gnjk->bnk", da, R_by_head).reshape(h.shape)
        return dh, np.einsum("bgnj,bnk->gnjk", da, h_by_head).reshape(R.shape)

    def _by_head(self, h: Array, R: Array) -> tuple[Array, Array]:
        """Return the operands h [n, N, H/N] and R [4, N, H/N, H/N]."""
        h, R = self.operand(h), self.operand(R)
        N, of_head = self.heads, R.shape[1]
        return h.reshape(len(h), N, of_head), R.reshape(4, N, of_head, of_head)


class _RGLRU(Cell):
    """De et al. 2024, arXiv 2402.19427 section 2.4: h decays by a, and x enters by sqrt(1 - a^2).

    a = 0 where a new sequence begins by `resets`, so that x enters there by the factor 1; nowhere
    else, not even at the first step from an initial state of zeros.
    """

    gate_table = (Gate("r", "sigmoid"), Gate("i", "sigmoid"))
    vectors = 1
    parameters = (
        Parameter("weight_ih", "input_matrix", ("G*H", "I")),
        Parameter("bias_ih", "input_bias", ("G*H",), "bias"),
        Parameter("lambda", "unit_vectors", ("V*H",)),
    )
    inputs_are_units = True
    also_saved = ("a", "s")

    def forward_step(self, x: Array, state: State, w: Weights, kept: Kept) -> tuple[State, Array]:
        (h_prev,) = state
        r, i = np.split(sigmoid(self._affine(x, w, "ih")), 2, axis=1)
        a, s = self._factors(r, w, kept)
        h = a * h_prev + s * (i * x)
        return (h,), np.hstack([r, i])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), x = d_state, step.prev, step.x
        r, i = np.split(step.gates, 2, axis=1)
        a, s = self._factors(r, w, step.kept)
        # ds / d(1 - a^2) is 1 / (2 s), at most 1000 as in the authors' code: s = 0 where a = 1.
        ds_dlog_a = -2 * a**2 / np.maximum(2 * s, 1e-3)
        dlog_a = dh * (h_prev * a + i * x * ds_dlog_a)
        da_r = clip_value(dlog_a * -8 * softplus(w["lambda"]) * r * (1 - r), step_value)
        da_i = clip_value(dh * s * x * i * (1 - i), step_value)
        da = np.hstack([da_r, da_i])
        dx, dw_ih = self._affine_backward(da, x, w, "ih")
        d_lambda = (dlog_a * -8 * r * sigmoid(w["lambda"])).sum(axis=0)
        return StepBack(dx + dh * s * i, (dh * a,), dw_ih | {"lambda": d_lambda}, da)

    @staticmethod
    def _factors(r: Array, w: Weights, kept: Kept) -> tuple[Array, Array]:
        """Return a and s = sqrt(1 - a^2)."""
        log_a = np.where(kept[:, None], -8 * softplus(w["lambda"]) * r, -np.inf)
        return np.exp(log_a), np.sqrt(-np.expm1(2 * log_a))


CELLS: dict[str, Cell] = {
    "rnn_tanh": _RNN("tanh", act=np.tanh, slope=_tanh_slope),
    "rnn_relu": _RNN("relu", act=_relu, slope=_relu_slope),
    "lstm": _LSTM(),
    "gru": _GRUResetAfter(),
    "gru_reset_before": _GRUResetBefore(),
    "lstm_clipped": _ClippedLSTM(),
    "lstm_projected": _ProjectedLSTM(),
    "min_gru": _MinGRU(),
    "min_lstm": _MinLSTM(),
    "ind_rnn_tanh": _IndRNN("tanh", act=np.tanh, slope=_tanh_slope),
    "ind_rnn_relu": _IndRNN("relu", act=_relu, slope=_relu_slope),
    "lstm_peephole": _PeepholeLSTM(),
    "rnn_general": _GeneralRNN(),
    "lstm_general": _GeneralLSTM(),
    "lstm_general_projected": _GeneralProjectedLSTM(),
    "cifg_general": _GeneralCIFG(),
    "cifg_general_projected": _GeneralProjectedCIFG(),
    "gru_general": _GeneralGRUResetAfter(),
    "gru_reset_before_general": _GeneralGRUResetBefore(),
    "rg_lru": _RGLRU(),
    "min_gru_identity": _MinGRU("linear", act=_identity, slope=np.ones_like),
    "min_gru_tanh": _MinGRU("tanh", act=np.tanh, slope=_tanh_slope_at),
    "min_lstm_identity": _MinLSTM("linear", act=_identity, slope=np.ones_like),
    "min_lstm_tanh": _MinLSTM("tanh", act=np.tanh, slope=_tanh_slope_at),
    "lstm_haste": _HasteLSTM(),
    "lstm_haste_projected": _ProjectedHasteLSTM(),
    "lstm_fastrnns": _FastrnnsLSTM(),
    "lstm_fastrnns_projected": _ProjectedFastrnnsLSTM(),
    "gru_haste": _HasteGRU(),
    "slstm": _SLSTM(),
    "rnn_tanh_noisy": _NoisyRNN(activation="tanh", act=np.tanh, slope=_tanh_slope),
    "rnn_relu_noisy": _NoisyRNN(activation="relu", act=_relu, slope=_relu_slope),
    "lstm_noisy": _NoisyLSTM(),
    "gru_noisy": _NoisyGRUResetAfter(),
    "gru_reset_before_noisy": _NoisyGRUResetBefore(),
}
