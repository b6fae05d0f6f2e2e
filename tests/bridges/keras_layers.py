"""Layers of Keras with random weights, masks, and what compares their results."""

from __future__ import annotations

import keras
import numpy as np
import torch

B, T, I, H = 4, 7, 3, 5
L = keras.layers

torch.set_num_threads(1)  # these layers are too small for more

CELLS = {
    "simple": (L.SimpleRNN, {}),
    "simple-relu": (L.SimpleRNN, {"activation": "relu"}),
    "simple-linear": (L.SimpleRNN, {"activation": None, "use_bias": False}),
    "lstm": (L.LSTM, {}),
    "lstm-hard": (L.LSTM, {"recurrent_activation": "hard_sigmoid", "activation": "softsign"}),
    "lstm-no-bias": (L.LSTM, {"use_bias": False, "activation": "elu"}),
    "gru": (L.GRU, {}),
    "gru-before": (L.GRU, {"reset_after": False}),
    "gru-hard": (L.GRU, {"recurrent_activation": "hard_sigmoid", "activation": "leaky_relu"}),
    "gru-before-no-bias": (L.GRU, {"reset_after": False, "use_bias": False}),
    "gru-no-bias": (L.GRU, {"use_bias": False, "activation": "softplus"}),
}
CELL_OF = {L.SimpleRNN: L.SimpleRNNCell, L.LSTM: L.LSTMCell, L.GRU: L.GRUCell}

steps = np.arange(T)
MASKS = {
    "none": None,
    "behind": steps < np.array([[7], [4], [1], [0]]),
    "in-front": steps >= np.array([[0], [3], [6], [7]]),
    "gaps": np.random.default_rng(5).random((B, T)) < 0.6,
}

# Of the largest value. Sums here have up to 15 terms and each of 7 steps adds a rounding: the worst
# measured was 4e-7. Wrong weights, gates or masks differ by more than 1e-3. For float64, too: with
# PyTorch, keras.ops.matmul rounds to float32.
TOLERANCE = 3e-6


def built(layer, seed=0, rows=None, inputs=I):
    """The layer, with random weights, biases included."""
    layer.build((rows, None, inputs))
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape).astype(variable.dtype))
    return layer


def made(cell, shape="forward", **options):
    """A layer of one of CELLS: in one direction, in two or as a stack."""
    cls, own = CELLS[cell]
    outer = {"merge_mode": options.pop("merge_mode")} if "merge_mode" in options else {}
    outer |= {"dtype": options["dtype"]} if "dtype" in options else {}
    if shape == "stack":
        return L.RNN([CELL_OF[cls](H, **own) for _ in range(3)], **options)
    if shape == "backward":
        return cls(H, **own, go_backwards=True, **options)
    layer = cls(H, **own, **options)
    return L.Bidirectional(layer, **outer) if shape == "both" else layer


def inputs(dtype="float32", seed=1, channels=I):
    return np.random.default_rng(seed).normal(size=(B, T, channels)).astype(dtype)


def called(layer, x, mask=None, **given):
    """What a layer of Keras returns, as arrays of NumPy."""
    if mask is not None:
        given["mask"] = keras.ops.convert_to_tensor(mask)
    return arrays(layer(keras.ops.convert_to_tensor(x), **given))


def arrays(found):
    """Tensors as arrays, lists of them as they are nested."""
    if isinstance(found, (list, tuple)):
        return [arrays(one) for one in found]
    return keras.ops.convert_to_numpy(found)


def assert_close(got, want, tolerance=TOLERANCE):
    if isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, tolerance)
        return
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    largest = max(1.0, np.abs(want).max(initial=0.0))
    error = np.abs(got - want).max(initial=0.0) / largest
    assert error <= tolerance, error


def weights_of(layer):
    """A layer's weights in the order of Keras."""
    return [keras.ops.convert_to_numpy(w) for w in layer.trainable_variables]
