"""Modules around a layer in training, with gradients: attention, embedding, losses and more."""

from .attention import Attention, AttentionGradients, AttentionMemory
from .common import ModuleGradients
from .crf import CRF
from .embedding import Embedding
from .linear import Linear
from .losses import cross_entropy

__all__ = [
    "CRF",
    "Attention",
    "AttentionGradients",
    "AttentionMemory",
    "Embedding",
    "Linear",
    "ModuleGradients",
    "cross_entropy",
]
