"""The cells: one time step of each recurrence, and its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .types import Array, State, Step, StepBack, Weights

# --------------------------------------------------------------------------------- pointwise


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))  # the exponent is never positive: no overflow, full accuracy
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def _relu(a: Array) -> Array:
    return np.maximum(a, 0.0)


def clip_value(d: Array, c: float | None) -> Array:
    return d if c is None else np.clip(d, -c, c)


def _affine(x: Array, W: Array, b: Array) -> Array:
    a: Array = x @ W.T + b
    return a


def _affine_backward(da: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
    return da @ W, da.T @ x, da.sum(axis=0)  # dx, dW, db


# ------------------------------------------------------------------------------------- cells


class Cell(ABC):
    """One step of a recurrence: its equations, and their derivatives."""

    gates: ClassVar[int]
    states: ClassVar[int]

    @abstractmethod
    def forward_step(self, x: Array, state: State, w: Weights) -> tuple[State, Array]:
        """Return the new state and the gates (n, G*H), from x (n, I) and state (n, H) each."""

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

    gates = 1
    states = 1
    act: Callable[[Array], Array]
    slope: Callable[[Array], Array]  # act'(a), as a function of h = act(a)

    def forward_step(self, x: Array, state: State, w: Weights) -> tuple[State, Array]:
        (h_prev,) = state
        h = self.act(_affine(x, w.W_ih, w.b_ih) + _affine(h_prev, w.W_hh, w.b_hh))
        return (h,), h

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,), (h,) = d_state, step.prev, step.new
        da = clip_value(dh * self.slope(h), step_value)
        dx, dW_ih, db_ih = _affine_backward(da, step.x, w.W_ih)
        dh_prev, dW_hh, db_hh = _affine_backward(da, h_prev, w.W_hh)
        return StepBack(dx, (dh_prev,), Weights(dW_ih, dW_hh, db_ih, db_hh), da, da)


class _LSTM(Cell):
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000."""

    gates = 4
    states = 2

    def forward_step(self, x: Array, state: State, w: Weights) -> tuple[State, Array]:
        h_prev, c_prev = state
        a = _affine(x, w.W_ih, w.b_ih) + _affine(h_prev, w.W_hh, w.b_hh)
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
        c = f * c_prev + i * g
        h = o * np.tanh(c)
        return (h, c), np.hstack([i, f, g, o])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh, dc_next), (h_prev, c_prev), (_, c) = d_state, step.prev, step.new
        i, f, g, o = np.split(step.gates, 4, axis=1)
        tanh_c = np.tanh(c)
        dc = dc_next + dh * o * (1 - tanh_c**2)
        da_i = dc * g * i * (1 - i)
        da_f = dc * c_prev * f * (1 - f)
        da_g = dc * i * (1 - g**2)
        da_o = dh * tanh_c * o * (1 - o)
        da = clip_value(np.hstack([da_i, da_f, da_g, da_o]), step_value)
        dx, dW_ih, db_ih = _affine_backward(da, step.x, w.W_ih)
        dh_prev, dW_hh, db_hh = _affine_backward(da, h_prev, w.W_hh)
        return StepBack(dx, (dh_prev, dc * f), Weights(dW_ih, dW_hh, db_ih, db_hh), da, da)


class _GRUResetAfter(Cell):
    """Cho et al. 2014, arXiv 1406.1078v1: r acts on the product W_hn h_prev + b_hn, here q."""

    gates = 3
    states = 1

    def forward_step(self, x: Array, state: State, w: Weights) -> tuple[State, Array]:
        (h_prev,) = state
        x_r, x_z, x_n = np.split(_affine(x, w.W_ih, w.b_ih), 3, axis=1)
        h_r, h_z, q = np.split(_affine(h_prev, w.W_hh, w.b_hh), 3, axis=1)
        r = _sigmoid(x_r + h_r)
        z = _sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * q)
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        _, _, q = np.split(_affine(h_prev, w.W_hh, w.b_hh), 3, axis=1)
        da_n = clip_value(dh * (1 - z) * (1 - n**2), step_value)
        da_z = clip_value(dh * (h_prev - n) * z * (1 - z), step_value)
        da_r = clip_value(da_n * q * r * (1 - r), step_value)
        da = np.hstack([da_r, da_z, da_n])
        da_h = np.hstack([da_r, da_z, da_n * r])
        dx, dW_ih, db_ih = _affine_backward(da, step.x, w.W_ih)
        dh_prev, dW_hh, db_hh = _affine_backward(da_h, h_prev, w.W_hh)
        weights = Weights(dW_ih, dW_hh, db_ih, db_hh)
        return StepBack(dx, (dh_prev + dh * z,), weights, da, da_h)


class _GRUResetBefore(Cell):
    """Cho et al. 2014, arXiv 1406.1078v3: r acts on the state, W_hn (r h_prev) + b_hn."""

    gates = 3
    states = 1

    def forward_step(self, x: Array, state: State, w: Weights) -> tuple[State, Array]:
        (h_prev,) = state
        (W_hr, W_hz, W_hn), (b_hr, b_hz, b_hn) = np.split(w.W_hh, 3), np.split(w.b_hh, 3)
        x_r, x_z, x_n = np.split(_affine(x, w.W_ih, w.b_ih), 3, axis=1)
        r = _sigmoid(x_r + _affine(h_prev, W_hr, b_hr))
        z = _sigmoid(x_z + _affine(h_prev, W_hz, b_hz))
        n = np.tanh(x_n + _affine(r * h_prev, W_hn, b_hn))
        h = (1 - z) * n + z * h_prev
        return (h,), np.hstack([r, z, n])

    def backward_step(
        self, d_state: State, step: Step, w: Weights, step_value: float | None
    ) -> StepBack:
        (dh,), (h_prev,) = d_state, step.prev
        r, z, n = np.split(step.gates, 3, axis=1)
        W_hr, W_hz, W_hn = np.split(w.W_hh, 3)
        da_n = clip_value(dh * (1 - z) * (1 - n**2), step_value)
        da_z = clip_value(dh * (h_prev - n) * z * (1 - z), step_value)
        drh, dW_hn, db_hn = _affine_backward(da_n, r * h_prev, W_hn)
        da_r = clip_value(drh * h_prev * r * (1 - r), step_value)
        dh_r, dW_hr, db_hr = _affine_backward(da_r, h_prev, W_hr)
        dh_z, dW_hz, db_hz = _affine_backward(da_z, h_prev, W_hz)
        da = np.hstack([da_r, da_z, da_n])
        dx, dW_ih, db_ih = _affine_backward(da, step.x, w.W_ih)
        dh_prev = dh * z + drh * r + dh_r + dh_z
        dW_hh, db_hh = np.vstack([dW_hr, dW_hz, dW_hn]), np.hstack([db_hr, db_hz, db_hn])
        return StepBack(dx, (dh_prev,), Weights(dW_ih, dW_hh, db_ih, db_hh), da, da)


CELLS: dict[str, Cell] = {
    "rnn_tanh": _RNN(act=np.tanh, slope=lambda h: 1 - h**2),
    "rnn_relu": _RNN(act=_relu, slope=lambda h: (h > 0).astype(np.float64)),
    "lstm": _LSTM(),
    "gru": _GRUResetAfter(),
    "gru_reset_before": _GRUResetBefore(),
}
