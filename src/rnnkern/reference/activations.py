"""The activations of the general cells: ONNX's list, with the slopes as functions of the argument.

At a kink the slope is the one to its left, but 0 at both kinks of HardSigmoid, as in PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .types import Array


def sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))  # the exponent is never positive: no overflow, full accuracy
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def softplus(a: Array) -> Array:
    return np.logaddexp(0.0, a)


@dataclass(frozen=True)
class Activation(ABC):
    """A function of one argument, with its constants.

    The names, formulas, constants and their defaults are those of ONNX's operators.

    Examples
    --------
    >>> ACTIVATIONS["HardSigmoid"]()
    HardSigmoid(alpha=0.2, beta=0.5)
    >>> ACTIVATIONS["LeakyRelu"](alpha=0.25).value(np.array([-4.0, 4.0]))
    array([-1.,  4.])
    """

    @abstractmethod
    def value(self, a: Array) -> Array:
        """Return the activation of each element."""

    @abstractmethod
    def slope(self, a: Array) -> Array:
        """Return the derivative at each element."""

    def limited(self, bound: float | None) -> Activation:
        """Return the activation of the argument clipped to [-bound, bound]; None is no clip."""
        return self if bound is None else _Limited(self, bound)


@dataclass(frozen=True)
class _Limited(Activation):
    of: Activation
    bound: float

    def value(self, a: Array) -> Array:
        return self.of.value(np.clip(a, -self.bound, self.bound))

    def slope(self, a: Array) -> Array:
        return np.where(np.abs(a) > self.bound, 0.0, self.of.slope(a))


@dataclass(frozen=True)
class Relu(Activation):
    """max(a, 0)."""

    def value(self, a: Array) -> Array:
        return np.maximum(a, 0.0)

    def slope(self, a: Array) -> Array:
        return np.where(a > 0, 1.0, 0.0)


@dataclass(frozen=True)
class Tanh(Activation):
    """tanh(a)."""

    def value(self, a: Array) -> Array:
        return np.tanh(a)

    def slope(self, a: Array) -> Array:
        return 1 - np.tanh(a) ** 2


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-a))."""

    def value(self, a: Array) -> Array:
        return sigmoid(a)

    def slope(self, a: Array) -> Array:
        return sigmoid(a) * sigmoid(-a)


@dataclass(frozen=True)
class Affine(Activation):
    """alpha a + beta."""

    alpha: float = 1.0
    beta: float = 0.0

    def value(self, a: Array) -> Array:
        return self.alpha * a + self.beta

    def slope(self, a: Array) -> Array:
        return np.full_like(a, self.alpha)


@dataclass(frozen=True)
class LeakyRelu(Activation):
    """a where a > 0, elsewhere alpha a."""

    alpha: float = 0.01

    def value(self, a: Array) -> Array:
        return np.where(a > 0, a, self.alpha * a)

    def slope(self, a: Array) -> Array:
        return np.where(a > 0, 1.0, self.alpha)


@dataclass(frozen=True)
class ThresholdedRelu(Activation):
    """a where a > alpha, elsewhere 0."""

    alpha: float = 1.0

    def value(self, a: Array) -> Array:
        return np.where(a > self.alpha, a, 0.0)

    def slope(self, a: Array) -> Array:
        return np.where(a > self.alpha, 1.0, 0.0)


@dataclass(frozen=True)
class ScaledTanh(Activation):
    """alpha tanh(beta a); ONNX has no defaults."""

    alpha: float
    beta: float

    def value(self, a: Array) -> Array:
        return self.alpha * np.tanh(self.beta * a)

    def slope(self, a: Array) -> Array:
        return self.alpha * self.beta * (1 - np.tanh(self.beta * a) ** 2)


@dataclass(frozen=True)
class HardSigmoid(Activation):
    """alpha a + beta, clipped to [0, 1]."""

    alpha: float = 0.2
    beta: float = 0.5

    def value(self, a: Array) -> Array:
        return np.clip(self.alpha * a + self.beta, 0.0, 1.0)

    def slope(self, a: Array) -> Array:
        line = self.alpha * a + self.beta
        return np.where((line > 0) & (line < 1), self.alpha, 0.0)


@dataclass(frozen=True)
class Elu(Activation):
    """a where a > 0, elsewhere alpha (exp(a) - 1)."""

    alpha: float = 1.0

    def value(self, a: Array) -> Array:
        return np.where(a > 0, a, self.alpha * np.expm1(np.minimum(a, 0.0)))

    def slope(self, a: Array) -> Array:
        return np.where(a > 0, 1.0, self.alpha * np.exp(np.minimum(a, 0.0)))


@dataclass(frozen=True)
class Softsign(Activation):
    """a / (1 + |a|)."""

    def value(self, a: Array) -> Array:
        quotient: Array = a / (1 + np.abs(a))
        return quotient

    def slope(self, a: Array) -> Array:
        root: Array = 1 / (1 + np.abs(a))  # squared last, so that nothing overflows
        return root**2


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(a))."""

    def value(self, a: Array) -> Array:
        return softplus(a)

    def slope(self, a: Array) -> Array:
        return sigmoid(a)


ACTIVATIONS: dict[str, type[Activation]] = {
    kind.__name__: kind
    for kind in (
        *(Relu, Tanh, Sigmoid, Affine, LeakyRelu, ThresholdedRelu),
        *(ScaledTanh, HardSigmoid, Elu, Softsign, Softplus),
    )
}
