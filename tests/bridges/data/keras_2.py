"""Writes keras_2.h5: a model of Keras 2, saved by Keras 2, and what Keras 2 computes of an input.

It takes tf-keras, which is Keras 2 for TensorFlow 2.16 and newer; the file was written with 2.21.

    pip install tensorflow-cpu tf-keras
    python tests/bridges/data/keras_2.py
"""

from pathlib import Path

import h5py
import numpy as np
import tf_keras as keras

B, T, I = 4, 7, 3
L = keras.layers
PATH = Path(__file__).with_name("keras_2.h5")

layers = [
    L.SimpleRNN(3, activation="relu", name="simple"),
    L.LSTM(3, recurrent_activation="hard_sigmoid", return_sequences=True, name="lstm_hard"),
    L.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False, name="gru_hard"),
    L.GRU(3, go_backwards=True, return_sequences=True, name="gru_after"),
    L.LSTM(3, activation=L.LeakyReLU(alpha=0.3), use_bias=False, name="lstm_leaky"),
    L.Bidirectional(L.LSTM(2, return_sequences=True), name="both"),
    L.Bidirectional(L.GRU(2), merge_mode="sum", name="both_sum"),
    L.RNN([L.GRUCell(3), L.LSTMCell(2), L.LSTMCell(2)], name="cells"),
]
x = keras.Input((T, I))
model = keras.Model(x, [layer(x) for layer in layers])
rng = np.random.default_rng(0)
model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
model.save(PATH, include_optimizer=False)

given = rng.normal(size=(B, T, I)).astype(np.float32)
mask = rng.random((B, T)) < 0.6
mask[0] = False
with h5py.File(PATH, "a") as file:
    file["expected/x"], file["expected/mask"] = given, mask
    for layer in layers:
        file[f"expected/outputs/{layer.name}"] = layer(given, mask=mask).numpy()
