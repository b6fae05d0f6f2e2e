"""The formulas of rnnkern, in float64 NumPy, written to be read.

Forward, backpropagation through time, the clips, the loss and the optimizers: what the compiled
kernels compute is defined here, and tested against here. The module imports nothing of the package.
Products of bf16 numbers (`bf16_product`) are defined by their bits.

Letters, for every shape: T steps, B rows of the batch, I inputs, H hidden units, P outputs (the
width of h; H without a projection), L layers, D directions, G gates (RNN and IndRNN
1, minGRU and RG-LRU 2, GRU, minLSTM and CIFG 3, LSTM and sLSTM 4), V vectors of one element per
unit (IndRNN and RG-LRU 1, peepholes of CIFG 2, of LSTM 3), N heads. All quantities are
dimensionless.

In the formulas ``a`` is the argument of a gate's nonlinearity, ``h_prev`` and ``c_prev`` are the
state one step before, and ``dv`` is the gradient of the loss with respect to ``v``.
"""

from __future__ import annotations

from .activations import ACTIVATIONS, Activation
from .attention import attention, attention_gradient
from .bf16 import bf16_bits, bf16_product, from_bf16_bits, to_bf16
from .cells import CELLS, Cell
from .crf import crf, crf_paths
from .dropout import dropout_mask, philox, splitmix
from .embedding import embedding, embedding_gradient, on_rows
from .layer_norm import layer_norm, layer_norm_gradient
from .layers import (
    Config,
    Gradients,
    Tape,
    Trace,
    backward,
    clip_factor,
    forward,
    joint_norm,
    parameter_shapes,
)
from .linear import linear, linear_gradient
from .losses import (
    binary_cross_entropy,
    cross_entropy,
    gaussian_nll,
    huber,
    mean_squared_error,
    quantile,
)
from .optim import adam, adamw, penalized, rmsprop, sgd
from .pooling import pool
from .types import ClipLike, Gate, Parameter, StateInfo, Step

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "Activation",
    "Cell",
    "ClipLike",
    "Config",
    "Gate",
    "Gradients",
    "Parameter",
    "StateInfo",
    "Step",
    "Tape",
    "Trace",
    "adam",
    "adamw",
    "attention",
    "attention_gradient",
    "backward",
    "bf16_bits",
    "bf16_product",
    "binary_cross_entropy",
    "clip_factor",
    "crf",
    "crf_paths",
    "cross_entropy",
    "dropout_mask",
    "embedding",
    "embedding_gradient",
    "forward",
    "from_bf16_bits",
    "gaussian_nll",
    "huber",
    "joint_norm",
    "layer_norm",
    "layer_norm_gradient",
    "linear",
    "linear_gradient",
    "mean_squared_error",
    "on_rows",
    "parameter_shapes",
    "penalized",
    "philox",
    "pool",
    "quantile",
    "rmsprop",
    "sgd",
    "splitmix",
    "to_bf16",
]
