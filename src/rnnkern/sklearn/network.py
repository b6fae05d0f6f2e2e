"""A recurrent layer with an output layer, and one step of training it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import LAYERS, _Layer
from ..modules import Linear, cross_entropy
from ..optim import SGD, Adam, AdamW, RMSprop
from ..reference import CELLS

__all__ = ["OPTIMIZERS", "Network", "labels_loss", "values_loss"]

Array = NDArray[Any]
Loss = Callable[[Array], tuple[float, Array]]  # of the outputs: the loss and its gradient

OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "sgd": SGD}


class Network:
    """The layer, and before or after it what makes its inputs and the outputs.

    `front` maps the inputs to H values for a cell that reads x unit by unit; None for other cells.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        outputs: int,
        options: Mapping[str, Any],
        dtype: np.dtype[Any],
        seed: np.random.SeedSequence,
    ) -> None:
        of_front, of_layer, of_head = seed.spawn(3)
        cls: Any = LAYERS[cell]
        hidden = options["hidden_size"]
        self.front: Linear | None = None
        if CELLS[cls(1, 1, seed=0)._kind].inputs_are_units:
            self.front = Linear(input_size, hidden, dtype=dtype, seed=of_front)
            input_size = hidden
        self.layer: _Layer[Any] = cls(input_size, **options, dtype=dtype, seed=of_layer)
        width = self.layer.output_size * (1 + self.layer.bidirectional)
        self.head = Linear(width, outputs, dtype=dtype, seed=of_head)

    @property
    def parts(self) -> dict[str, Any]:
        """What has parameters, by name."""
        parts = {"front": self.front, "layer": self.layer, "head": self.head}
        return {name: part for name, part in parts.items() if part is not None}

    def gradients(
        self, x: Array, lengths: Array, loss: Loss, *, each_step: bool
    ) -> tuple[float, dict[str, Any]]:
        """The loss of a batch (T, B, I), and the gradients of all parts.

        The loss sees the outputs of each step, (T, B, O), or those of each row's last, (B, O).
        """
        if self.front is not None:
            x, front_tape = self.front.forward(x)
        y, _, tape = self.layer.forward(x, lengths=lengths)
        ends = _last(self.layer, lengths)
        h = y if each_step else np.concatenate([y[end] for end in ends], axis=1)
        z, head_tape = self.head.forward(h)
        value, dz = loss(z)
        of_head = self.head.backward(head_tape, dz)
        dy: Any = of_head.x
        if not each_step:
            dh, dy = dy, np.zeros_like(y)
            for end, part in zip(ends, np.split(dh, len(ends), axis=1), strict=True):
                dy[end] = part
        of_layer = self.layer.backward(tape, dy)
        grads = {"layer": of_layer, "head": of_head}
        if self.front is not None:
            grads["front"] = self.front.backward(front_tape, of_layer.x)
        return value, grads

    def last(self, x: Array, lengths: Array | None = None, state: Any = None) -> tuple[Array, Any]:
        """Outputs (B, O) of each row's last step, and the state there."""
        h, state = self.layer(self._before(x), state, lengths, outputs="last")
        return self._outputs(h), state

    def each(self, x: Array, lengths: Array, real: Array) -> Array:
        """Outputs (N, O) of the steps that are `real` (T, B), row by row."""
        y, _ = self.layer(self._before(x), lengths=lengths)
        return self._outputs(y.swapaxes(0, 1)[real.T])

    def _before(self, x: Array) -> Array:
        return x if self.front is None else self.front(x)

    def _outputs(self, h: Array) -> Array:
        """In float64, so that rounding shows no trace of the rows that share the product."""
        weight, bias = (self.head.params[n].astype(np.float64) for n in ("weight", "bias"))
        out: Array = h.astype(np.float64) @ weight.T + bias
        return out


def _last(layer: _Layer[Any], lengths: Array) -> list[tuple[Any, ...]]:
    """Where the outputs of each row's last step are in y, for each direction."""
    rows, P = np.arange(len(lengths)), layer.output_size
    ends = [(0 if layer.reverse else lengths - 1, rows, slice(0, P))]
    return [*ends, (0, rows, slice(P, 2 * P))] if layer.bidirectional else ends


def labels_loss(z: Array, targets: Array, weights: Array, items: int) -> tuple[float, Array]:
    """Cross-entropy: the sum of all, and the gradient of the sum over `items`."""
    loss, dz = cross_entropy(z, targets, mask=weights, reduction="sum")
    dz /= items
    return loss, dz


def values_loss(z: Array, targets: Array, weights: Array, items: int) -> tuple[float, Array]:
    """Squared error, the mean over the outputs: as `labels_loss`."""
    error = z - targets
    own = weights[..., None] / z.shape[-1]
    loss = float(np.sum(own * error**2, dtype=np.float64))
    return loss, ((2 / items) * own * error).astype(z.dtype)
