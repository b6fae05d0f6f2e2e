"""Modules around a layer in training, with gradients: embedding, output layer, losses."""

from .common import ModuleGradients
from .embedding import Embedding
from .linear import Linear
from .losses import cross_entropy

__all__ = ["Embedding", "Linear", "ModuleGradients", "cross_entropy"]
