"""A published model, textgenrnn, of a package of this name; skipped without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from keras_layers import L, assert_close, built, called, inputs

import rnnkern as rk
import rnnkern.keras

# Keras reads PyTorch's tensors in a way of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

EXAMPLE = Path(__file__).parents[2] / "examples" / "models" / "textgen.py"
SPEC = find_spec("textgenrnn")

needs_it = pytest.mark.skipif(SPEC is None, reason="pip install --no-deps textgenrnn")


@needs_it
def test_weights_of_cudnn_are_those_of_an_lstm():
    """Taken apart here by Keras 2's rule: transposed kernels, and biases that are added."""
    path = Path(SPEC.origin).with_name("textgenrnn_weights.hdf5")
    config = [
        {"class_name": "CuDNNLSTM", "config": {"name": name, "units": 128}}
        for name in ("rnn_1", "rnn_2")
    ]
    found = rk.keras.from_keras(path, config=config)
    for name, layer in found.items():
        with h5py.File(path) as file:
            kernel, recurrent, bias = (
                file[f"{name}/{name}/{n}:0"][()] for n in ("kernel", "recurrent_kernel", "bias")
            )
        each = [k.T.reshape(k.shape, order="F") for k in np.split(kernel, 4, axis=1)]
        theirs = L.LSTM(128, return_sequences=True)
        built(theirs, inputs=len(kernel)).set_weights(
            [
                np.concatenate(each, axis=1),
                np.concatenate([k.T for k in np.split(recurrent, 4, axis=1)], axis=1),
                sum(np.split(bias, 2)),
            ]
        )
        x = inputs(channels=len(kernel))
        # Sums of 256 terms here, of weights up to 3; the worst measured was 6e-7.
        assert_close(layer(x)[0], called(theirs, x), 1e-5)


@needs_it
def test_the_example():
    command = [sys.executable, str(EXAMPLE), "--length", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    same, places = map(int, re.findall(r"character at (\d+) of (\d+) places", done.stdout)[0])
    assert same == places > 200
    assert float(re.findall(r"of a probability: (\S+)", done.stdout)[0]) < 1e-5
    # The network knows English. Of 465 characters that are equally likely, each has 8.86 bits.
    assert float(re.findall(r"of this text: (\S+) of 8.86", done.stdout)[0]) < 2
    assert "the same text" in done.stdout
