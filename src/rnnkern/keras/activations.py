"""An activation with constants of its own: Keras 3 has no name for Keras 2's hard_sigmoid.

This module imports Keras and registers the class there. ``import rnnkern.keras.activations`` before
``keras.saving.load_model`` reads a file of a model with this activation.
"""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["HardSigmoid"]


@keras.saving.register_keras_serializable(package="rnnkern")
class HardSigmoid:
    """clip(alpha x + beta, 0, 1): 0.2 and 0.5 in Keras 2, 1/6 and 0.5 in Keras 3.

    Parameters
    ----------
    alpha, beta : float

    Examples
    --------
    >>> from rnnkern.keras.activations import HardSigmoid
    >>> float(HardSigmoid(0.2, 0.5)(1.0))
    0.699999988079071
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    def __call__(self, x: Any) -> Any:
        return keras.ops.clip(self.alpha * keras.ops.convert_to_tensor(x) + self.beta, 0.0, 1.0)

    def get_config(self) -> dict[str, float]:
        return {"alpha": self.alpha, "beta": self.beta}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> HardSigmoid:
        return cls(**config)
