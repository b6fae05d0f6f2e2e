"""Modules around a layer in training, with gradients: attention, embedding, losses and more."""

from .attention import Attention, AttentionGradients, AttentionMemory
from .common import ModuleGradients
from .crf import CRF
from .dropout import Dropout
from .embedding import Embedding
from .layer_norm import LayerNorm
from .linear import Linear
from .losses import (
    binary_cross_entropy,
    cross_entropy,
    gaussian_nll,
    huber,
    mean_squared_error,
    quantile,
)
from .pooling import Pooling

__all__ = [
    "CRF",
    "Attention",
    "AttentionGradients",
    "AttentionMemory",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "ModuleGradients",
    "Pooling",
    "binary_cross_entropy",
    "cross_entropy",
    "gaussian_nll",
    "huber",
    "mean_squared_error",
    "quantile",
]
