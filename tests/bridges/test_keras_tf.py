"""Keras 2 itself, as the package tf-keras has it; skipped without it and TensorFlow."""

from __future__ import annotations

import keras_2
import numpy as np
import pytest

import rnnkern as rk
import rnnkern.keras

pytest.importorskip("tensorflow", reason="pip install tensorflow-cpu tf-keras")
tf_keras = pytest.importorskip("tf_keras", reason="Keras 2")

# TensorFlow and Keras 2 use what Python, NumPy and their own later versions have deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")

L = tf_keras.layers
x = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
mask = np.random.default_rng(1).random((4, 7)) < 0.6
mask[0] = False

# As of the tests of Keras 3.
TOLERANCE = 3e-6


def close(got, want):
    return np.abs(got - np.asarray(want)).max() <= TOLERANCE * max(1, np.abs(want).max())


@pytest.mark.parametrize(
    "layer",
    [
        L.SimpleRNN(5, go_backwards=True, return_sequences=True),
        L.LSTM(5, recurrent_activation="hard_sigmoid"),
        L.GRU(5, return_sequences=True, reset_after=False, activation=L.ELU(alpha=0.5)),
        L.GRU(5, activation="softsign"),
        L.Bidirectional(L.GRU(5, return_sequences=True), merge_mode="ave"),
        L.RNN([L.GRUCell(5), L.LSTMCell(4)], return_sequences=True),
    ],
    ids=lambda layer: layer.name,
)
def test_layers_as_objects(layer):
    for given in (None, mask):
        want = layer(x, mask=given)
        ours = rk.keras.Recurrent.from_keras(layer)
        assert close(ours(x, mask=given), want.numpy())


def test_formats(tmp_path):
    deep = L.GRU(4, name="deep", recurrent_activation="hard_sigmoid")
    inner = tf_keras.Sequential([deep], name="inner")
    given = tf_keras.Input((7, 3))
    y = L.Bidirectional(L.LSTM(4, return_sequences=True), name="both")(given)
    y = L.RNN([L.GRUCell(5), L.LSTMCell(5)], return_sequences=True, name="cells")(y)
    model = tf_keras.Model(given, inner(y))
    wanted = rk.keras.Recurrent.from_keras(model)
    assert list(wanted) == ["both", "cells", "inner/deep"]
    assert close(wanted["inner/deep"](wanted["cells"](wanted["both"](x))), model(x).numpy())
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    model.save_weights(tmp_path / "alone.h5")
    config = {"config": model.to_json()}
    for name, more in {
        "m.keras": {},
        "m.h5": {},
        "m.weights.h5": {**config, "keras_version": 2},
        "alone.h5": config,
    }.items():
        found = rk.keras.Recurrent.from_keras(tmp_path / name, **more)
        assert repr(found) == repr(wanted)
        for one, recurrent in found.items():
            for ours, theirs in zip(recurrent.layers, wanted[one].layers, strict=True):
                assert all(np.array_equal(p, theirs.params[n]) for n, p in ours.params.items())


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_layouts_of_cudnn(kind, gates, tmp_path):
    """As Keras 2's own loader takes them."""
    weights = keras_2.drawn(kind, 3, 5, None)
    biases = np.random.default_rng(2).normal(size=(2, gates * 5)).astype(np.float32)
    path = keras_2.write(
        tmp_path / "m.h5",
        {"rnn_1": keras_2.named(keras_2.as_cudnn(weights, biases), "rnn_1")},
        weights_alone=True,
    )
    given = tf_keras.Input((7, 3))
    model = tf_keras.Model(given, getattr(L, kind)(5, name="rnn_1")(given))
    model.load_weights(path)
    ours = rk.keras.from_keras(path, "rnn_1", config=model.to_json())
    assert close(ours(x, outputs="last")[0], model(x).numpy())


def test_weights_go_back():
    layer = L.LSTM(5, dropout=0.5)
    layer(x)
    ours = rk.keras.from_keras(layer)
    ours.params["weight_hh_l0"] += 0.5
    assert rk.keras.to_keras(ours, into=layer) is layer
    assert close(ours(x, outputs="last")[0], layer(x).numpy())
