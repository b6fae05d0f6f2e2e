"""Files as Keras 2 writes them, which takes h5py alone; and what Keras 2 computes of them.

Keras 2's ``save`` and ``save_weights``: a group for each layer, whose attribute ``weight_names``
lists paths inside it (https://github.com/keras-team/keras/blob/2.3.1/keras/engine/saving.py). The
layouts of CuDNNLSTM and CuDNNGRU: each gate's kernel has the memory of its transpose, each gate's
recurrent kernel is transposed, and there is a bias for each of the two products.
"""

from __future__ import annotations

import json

import h5py
import numpy as np

GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3, "CuDNNLSTM": 4, "CuDNNGRU": 3}


def node(kind, units, name, **options):
    """A layer as Keras 2 has it in a configuration."""
    config = {"name": name, "units": units, "return_sequences": False, "go_backwards": False}
    if not kind.startswith("CuDNN"):
        config |= {"activation": "tanh", "use_bias": True}
        if kind in ("LSTM", "GRU"):
            config["recurrent_activation"] = "hard_sigmoid"
        if kind == "GRU":
            config["reset_after"] = False
    return {"class_name": kind, "config": {**config, **options}}


def model_of(*nodes):
    return {"class_name": "Sequential", "config": {"name": "sequential_1", "layers": list(nodes)}}


def drawn(kind, inputs, units, bias, seed=0):
    """Random weights in Keras's layout; `bias` is the shape of the bias, or None."""
    rng, G = np.random.default_rng(seed), GATES[kind]
    shapes = {"kernel": (inputs, G * units), "recurrent_kernel": (units, G * units)}
    if bias is not None:
        shapes["bias"] = bias
    return {n: rng.normal(scale=0.6, size=s).astype(np.float32) for n, s in shapes.items()}


def as_cudnn(weights, biases):
    """Weights of an LSTM or GRU in the layout of CuDNNLSTM or CuDNNGRU, with biases (2, G*H)."""
    H = len(weights["recurrent_kernel"])
    G = weights["kernel"].shape[1] // H
    kernels = [k.T.reshape(k.shape) for k in np.split(weights["kernel"], G, axis=1)]
    recurrent = [k.T for k in np.split(weights["recurrent_kernel"], G, axis=1)]
    return {
        "kernel": np.concatenate(kernels, axis=1),
        "recurrent_kernel": np.concatenate(recurrent, axis=1),
        "bias": biases.ravel(),
    }


def write(path, layers, config=None, version="2.2.4", weights_alone=False):
    """Write a file; `layers` are lists of (path in the group, values) by the name of the layer."""
    with h5py.File(path, "w") as file:
        root = file if weights_alone else file.create_group("model_weights")
        root.attrs["layer_names"] = np.array([name.encode() for name in layers], "S")
        for place in (file, root):
            if version is not None:
                place.attrs["keras_version"] = version.encode()
            place.attrs["backend"] = b"tensorflow"
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        for name, weights in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array([n.encode() for n, _ in weights], "S")
            for place, values in weights:
                group[place] = values
    return path


def named(weights, prefix):
    """The list that `write` takes."""
    return [(f"{prefix}/{name}:0", values) for name, values in weights.items()]
