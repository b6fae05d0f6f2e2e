"""Files of Keras 3 and Keras 2: what is read is what Keras has written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import keras_2
import numpy as np
import pytest
from keras_layers import B, I, L, T, assert_close, built, called, inputs

import rnnkern as rk
import rnnkern.keras

# Keras reads PyTorch's tensors in a way of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


@pytest.fixture(scope="module")
def model():
    """A model of all kinds of layers, one of them in a model inside."""
    inner = keras.Sequential(
        [keras.Input((T, 6)), L.GRU(4, name="deep", reset_after=False), L.Dense(2)], name="inner"
    )
    x = keras.Input((T, I))
    y = L.Bidirectional(L.LSTM(4, return_sequences=True, dropout=0.2), name="both")(x)
    y = L.RNN([L.GRUCell(5), L.LSTMCell(5), L.LSTMCell(5)], name="cells", return_sequences=True)(y)
    y = L.Dense(6)(y)
    first = L.LSTM(
        6, recurrent_activation="hard_sigmoid", go_backwards=True, return_sequences=True, name="b"
    )(y)
    second = L.LSTM(6, activation=L.ELU(alpha=0.5), use_bias=False, return_sequences=True, name="a")
    y = L.Add()([first, second(y)])
    last = L.RNN(L.SimpleRNNCell(3, activation=None), name="cell", return_state=True)(y)[0]
    found = keras.Model(x, [last, inner(y)])
    found.build((None, T, I))
    rng = np.random.default_rng(0)
    for variable in found.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape).astype(np.float32))
    return found


NAMES = ["both", "cells", "b", "a", "cell", "inner/deep"]


def same(one, other):
    """Whether two `Recurrent` are the same in options and bits."""
    assert repr(one) == repr(other)
    for a, b in zip((*one.layers, *one.backward), (*other.layers, *other.backward), strict=True):
        assert a.params.keys() == b.params.keys()
        assert all(a.params[n].tobytes() == b.params[n].tobytes() for n in a.params)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_formats_of_keras_3(model, name, tmp_path):
    config = version = None
    if name == "model.weights.h5":
        model.save_weights(tmp_path / name)
        config, version = model.to_json(), 3
    else:
        model.save(tmp_path / name)
    read = rk.keras.Recurrent.from_keras
    found = read(tmp_path / name, config=config, keras_version=version)
    assert list(found) == NAMES
    for one, wanted in read(model).items():
        same(found[one], wanted)
        same(read(str(tmp_path / name), one, config=config, keras_version=version), wanted)
    x = inputs()
    assert_close(found["both"](x), called(model.get_layer("both"), x))
    single = rk.keras.from_keras(tmp_path / name, "both", config=config, keras_version=version)
    assert isinstance(single, rk.LSTM)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_states_in_files_are_no_weights(name, tmp_path):
    """Of a stateful layer, whose weights are not trained any more."""
    x = keras.Input(batch_shape=(B, T, I))
    theirs = L.LSTM(4, stateful=True, name="own")
    model = keras.Model(x, theirs(x))
    called(model, inputs())
    theirs.trainable = False
    model.save(tmp_path / name)
    found = rk.keras.Recurrent.from_keras(tmp_path / name, "own")
    assert found.stateful
    theirs.reset_state()
    assert_close(found(inputs()), called(theirs, inputs()))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_of_one_name_in_models_inside(suffix, tmp_path):
    """Which a file of Keras 3 tells apart by the model around each."""

    def around(name, *layers):
        return keras.Sequential([keras.Input((T, 4)), *layers], name=name)

    every = {"return_sequences": True, "name": "r"}
    inner = around("inner", L.GRU(4, **every), L.SimpleRNN(4, **every | {"name": "inner"}))
    beside = around("beside", L.LSTM(4, **every))
    model = around("all", around("outer", inner, L.LSTM(4, **every), beside), L.GRU(4, name="r"))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype(np.float32))
    model.save(tmp_path / f"m{suffix}")
    found = rk.keras.Recurrent.from_keras(tmp_path / f"m{suffix}")
    wanted = rk.keras.Recurrent.from_keras(model)
    assert list(found) == list(wanted)
    assert {"outer/inner/r", "outer/inner/inner", "outer/r", "outer/beside/r", "r"} == set(found)
    for name, one in wanted.items():
        same(found[name], one)


def test_configurations_of_all_forms(model, tmp_path):
    model.save_weights(tmp_path / "m.weights.h5")
    read = rk.keras.from_keras
    config = model.get_config()
    forms = (model.to_json(), json.loads(model.to_json()), config, config["layers"])
    for form in forms:
        inner = read(tmp_path / "m.weights.h5", "inner/deep", config=form, keras_version=3)
        assert repr(inner) == "GRU(6, 4, reset_after=False, batch_first=True)"
    simple = built(L.SimpleRNN(4, name="own"))
    one = keras.Sequential([keras.Input((T, I)), simple])
    one.save_weights(tmp_path / "one.weights.h5")
    config = keras.layers.serialize(simple)
    layer = read(tmp_path / "one.weights.h5", "own", config=config)
    assert np.array_equal(layer(inputs())[0], read(simple)(inputs())[0])
    for wrong in ({}, 3, "[3]", "{", [{"class_name": "LSTM"}]):
        with pytest.raises(ValueError, match=r"^config: "):
            read(tmp_path / "one.weights.h5", config=wrong)


def test_hard_sigmoid_takes_the_version(model, tmp_path):
    """Which a .weights.h5 file does not say."""
    model.save_weights(tmp_path / "m.weights.h5")
    config = model.to_json()
    with pytest.raises(ValueError, match=r"b: recurrent_activation: expected keras_version 2 .* 3"):
        rk.keras.from_keras(tmp_path / "m.weights.h5", "b", config=config)
    assert rk.keras.from_keras(tmp_path / "m.weights.h5", "both", config=config) is not None
    for version, alpha in ((2, 0.2), (3, 1 / 6)):
        layer = rk.keras.from_keras(
            tmp_path / "m.weights.h5", "b", config=config, keras_version=version
        )
        assert layer.activations[0] == ("HardSigmoid", alpha, 0.5)
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"keras_version: expected None or 3, .* got 2"):
        rk.keras.from_keras(tmp_path / "m.keras", keras_version=2)
    with pytest.raises(ValueError, match=r"keras_version: expected 2, 3 or None, got '3'"):
        rk.keras.from_keras(tmp_path / "m.keras", keras_version="3")


def clipped(v):
    """Keras 2's hard_sigmoid."""
    return np.clip(0.2 * v + 0.5, 0, 1)


def gru_of_keras_2(x, weights):
    """The equations of Keras 2's default GRU, gates z, r, h, in float64."""
    K, R, b = (weights[n].astype(np.float64) for n in ("kernel", "recurrent_kernel", "bias"))
    h = np.zeros((len(x), len(R)))
    (Kz, Kr, Kh), (Rz, Rr, Rh) = np.split(K, 3, axis=1), np.split(R, 3, axis=1)
    bz, br, bh = np.split(b, 3)
    for x_t in x.astype(np.float64).swapaxes(0, 1):
        z, r = clipped(x_t @ Kz + h @ Rz + bz), clipped(x_t @ Kr + h @ Rr + br)
        h = z * h + (1 - z) * np.tanh(x_t @ Kh + (r * h) @ Rh + bh)
    return h


def lstm_of_keras_2(x, weights):
    """The equations of Keras 2's default LSTM, gates i, f, c, o, in float64."""
    K, R, b = (weights[n].astype(np.float64) for n in ("kernel", "recurrent_kernel", "bias"))
    h = c = np.zeros((len(x), len(R)))
    for x_t in x.astype(np.float64).swapaxes(0, 1):
        i, f, g, o = np.split(x_t @ K + h @ R + b, 4, axis=1)
        c = clipped(f) * c + clipped(i) * np.tanh(g)
        h = clipped(o) * np.tanh(c)
    return h


@pytest.mark.parametrize("alone", [False, True])
def test_keras_2_with_its_hard_sigmoid(alone, tmp_path):
    units = 5
    gru = keras_2.drawn("GRU", I, units, (3 * units,), seed=1)
    lstm = keras_2.drawn("LSTM", I, units, (4 * units,), seed=2)
    config = keras_2.model_of(
        keras_2.node("GRU", units, "gru_1"),
        {"class_name": "Dense", "config": {"name": "dense_1", "units": I}},
        keras_2.node("LSTM", units, "lstm_1"),
    )
    layers = {
        "gru_1": keras_2.named(gru, "gru_1"),
        "dense_1": [("dense_1/kernel:0", np.zeros((5, 3), np.float32))],
        "lstm_1": keras_2.named(lstm, "lstm_1"),
    }
    path = tmp_path / "model.h5"
    keras_2.write(path, layers, None if alone else config, weights_alone=alone)
    found = rk.keras.from_keras(path, config=json.dumps(config) if alone else None)
    assert list(found) == ["gru_1", "lstm_1"]
    x = inputs() * 3  # so that gates reach both ends
    for name, want in (
        ("gru_1", gru_of_keras_2(x, gru)),
        ("lstm_1", lstm_of_keras_2(x, lstm)),
    ):
        assert_close(found[name](x, outputs="last")[0], want.astype(np.float32))
    old = json.loads(json.dumps(config))  # before Keras 2.1.3 there was no reset_after
    del old["config"]["layers"][0]["config"]["reset_after"]
    keras_2.write(path, layers, old)
    assert not rk.keras.from_keras(path, "gru_1").reset_after


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("cls", ["CuDNN", ""])
@pytest.mark.parametrize("both", [False, True])
def test_layouts_of_cudnn(kind, cls, both, tmp_path):
    """A file of CuDNNLSTM or CuDNNGRU, read as that class and as LSTM or GRU."""
    units, G = 5, keras_2.GATES[kind]
    rng = np.random.default_rng(3)
    halves, wanted = [], []
    for half in range(1 + both):
        weights = keras_2.drawn(kind, I, units, None, seed=half)
        biases = rng.normal(size=(2, G * units)).astype(np.float32)
        halves.append(keras_2.as_cudnn(weights, biases))
        wanted.append([*weights.values(), biases if kind == "GRU" else biases.sum(axis=0)])
    options = {} if cls else {"recurrent_activation": "sigmoid"}
    options |= {"reset_after": True} if kind == "GRU" and not cls else {}
    node = keras_2.node(cls + kind, units, "rnn_1", **options)
    layer = getattr(L, kind)(units)
    layers = keras_2.named(halves[0], "rnn_1")
    if both:
        node = {
            "class_name": "Bidirectional",
            "config": {"name": "rnn_1", "layer": node, "merge_mode": "concat"},
        }
        layer = L.Bidirectional(layer)
        prefixes = ("rnn_1/forward_rnn_1", "rnn_1/backward_rnn_1")
        layers = [e for p, h in zip(prefixes, halves, strict=True) for e in keras_2.named(h, p)]
    path = keras_2.write(tmp_path / "m.h5", {"rnn_1": layers}, keras_2.model_of(node))
    built(layer).set_weights([values for half in wanted for values in half])
    found = rk.keras.from_keras(path, "rnn_1")
    assert_close(found(inputs(), outputs="last")[0], called(layer, inputs()))
    for half, suffix in zip(
        halves, ("_l0", "_l0_reverse"), strict=False
    ):  # both biases as they are
        own = found.params["bias_ih" + suffix], found.params["bias_hh" + suffix]
        order = [0, 1, 2, 3] if kind == "LSTM" else [1, 0, 2]
        blocks = half["bias"].reshape(2, G, units)[:, order].reshape(2, -1)
        assert np.array_equal(np.stack(own), blocks)


def test_stacks_and_halves_in_files_of_keras_2(tmp_path):
    """Of cells, weights stand one after the other; Keras 1's backend numbered equal names."""
    weights = [keras_2.drawn("LSTM", n, 4, (16,), seed=n) for n in (I, 4)]
    cells = [keras_2.node("LSTMCell", 4, f"lstm_cell_{i}") for i in (1, 2)]
    for cell in cells:
        cell["config"] |= {
            "recurrent_activation": "sigmoid",
            "activation": "tanh",
            "use_bias": True,
        }
    stacked = {"class_name": "StackedRNNCells", "config": {"name": "cells", "cells": cells}}
    node = {"class_name": "RNN", "config": {"name": "rnn_1", "cell": stacked}}
    names = [("rnn_1/kernel:0", "rnn_1/recurrent_kernel:0", "rnn_1/bias:0")]
    names.append(("rnn_1/kernel_1:0", "rnn_1/recurrent_kernel_1:0", "rnn_1/bias_1:0"))
    layers = [
        e for n, w in zip(names, weights, strict=True) for e in zip(n, w.values(), strict=True)
    ]
    path = keras_2.write(tmp_path / "m.h5", {"rnn_1": layers}, keras_2.model_of(node))
    theirs = built(L.RNN([L.LSTMCell(4), L.LSTMCell(4)]))
    theirs.set_weights([values for one in weights for values in one.values()])
    found = rk.keras.from_keras(path)["rnn_1"]
    assert found.num_layers == 2
    assert_close(found(inputs(), outputs="last")[0], called(theirs, inputs()))
    node["config"]["cell"]["config"]["cells"][0]["config"]["trainable"] = False
    node["config"]["trainable"] = True
    keras_2.write(path, {"rnn_1": layers}, keras_2.model_of(node))
    with pytest.raises(ValueError, match=r"rnn_1: trainable: expected one value for all cells"):
        rk.keras.from_keras(path)


def test_files_of_keras_2_13(model, tmp_path):
    """The format .keras as Keras 2.12 and 2.13 wrote it, with another name for layers."""
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    old = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"])) as new, h5py.File(old, "w") as file:

        def copied(source, target):
            for name, value in source.items():
                if isinstance(value, h5py.Group):
                    name = "_layer_checkpoint_dependencies" if name == "layers" else name
                    copied(value, target.create_group(name))
                else:
                    target[name] = value[()]

        copied(new, file)
    members["model.weights.h5"] = old.getvalue()
    members["metadata.json"] = b'{"keras_version": "2.13.1"}'
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    found = rk.keras.Recurrent.from_keras(tmp_path / "old.keras")
    for name, wanted in rk.keras.Recurrent.from_keras(model).items():
        if name != "b":
            same(found[name], wanted)
    assert found["b"].layers[0].activations[0] == ("HardSigmoid", 0.2, 0.5)


def test_names_in_parts(tmp_path):
    """Keras splits lists of names that HDF5 does not take as one attribute."""
    weights = keras_2.drawn("SimpleRNN", I, 4, (4,))
    node = keras_2.node("SimpleRNN", 4, "rnn")
    path = keras_2.write(
        tmp_path / "m.h5", {"rnn": keras_2.named(weights, "rnn")}, keras_2.model_of(node)
    )
    whole = rk.keras.from_keras(path, "rnn")
    with h5py.File(path, "a") as file:
        for place, key in ((file["model_weights"], "layer_names"),):
            place.attrs[f"{key}0"] = place.attrs.pop(key)
        group = file["model_weights/rnn"]
        names = group.attrs.pop("weight_names")
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:2], names[2:]
    assert np.array_equal(rk.keras.from_keras(path, "rnn")(inputs())[0], whole(inputs())[0])


def test_keras_is_not_needed_to_read_files(model, tmp_path):
    model.save(tmp_path / "m.keras")
    code = (
        "import sys; sys.modules['keras'] = None; import rnnkern.keras as k;"
        "print(list(k.from_keras(sys.argv[1], 'both').params)[:2], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "m.keras")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "['weight_ih_l0', 'weight_hh_l0'] False\n"


def test_without_h5py(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py: pip install 'rnnkern\[keras\]'"):
        rk.keras.from_keras(tmp_path / "m.h5")


@pytest.fixture
def old(tmp_path):
    """A file of Keras 2 with one GRU, and what it consists of."""
    weights = keras_2.drawn("GRU", I, 4, (12,))
    layers = {"gru": keras_2.named(weights, "gru")}
    node = keras_2.node("GRU", 4, "gru")

    def write(**changes):
        given = {"layers": layers, "config": keras_2.model_of(node), **changes}
        return keras_2.write(tmp_path / "m.h5", **given)

    return write, weights, node


@pytest.mark.parametrize("version", ["1.2.2", "4.0.0", "two", None])
def test_other_versions(old, version):
    said = rf"keras_version: expected a version of Keras 2 or 3, got {version!r}"
    with pytest.raises(ValueError, match=said):
        rk.keras.from_keras(old[0](version=version))


def test_models_of_a_class_of_their_own_are_named(tmp_path):
    """Whose files do not say what layers they have; weights alone and the layers' own do."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.rnn = L.GRU(4)

        def call(self, x):
            return self.rnn(x)

    model = Own()
    model(inputs())
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"^config: .* a list of layers, got that .* own, Own$"):
        rk.keras.from_keras(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    config = [{"class_name": "GRU", "config": model.rnn.get_config()}]
    options = {"config": config, "keras_version": 3}
    found = rk.keras.from_keras(tmp_path / "m.weights.h5", model.rnn.name, **options)
    assert_close(found(inputs(), outputs="last")[0], called(model, inputs()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "swish"}, r"gru: activation: expected one of tanh, .*, got swish"),
        ({"activation": {"class_name": "Own", "config": {}}}, r"got Own, a function or class"),
        ({"recurrent_activation": 3}, r"gru: recurrent_activation: expected one of .*, got 3"),
        ({"units": 0}, r"gru: units: expected an integer of at least 1, got 0"),
        ({"units": 5}, r"gru: kernel: expected shape \(3, 15\), got \(3, 12\)"),
        ({"use_bias": False}, r"gru: bias: expected none with use_bias=False, got an array"),
        ({"reset_after": True}, r"bias: expected shape \(2, 12\) or \(24,\), got \(12,\)"),
        ({"go_backwards": "yes"}, r"gru: go_backwards: expected True or False, got str"),
        ({"time_major": True}, r"gru: time_major: expected False"),
        ({"units": None}, r"gru: units: expected an integer, got None"),
    ],
)
def test_wrong_configurations(old, changes, said):
    write, _, node = old
    node["config"] |= changes
    with pytest.raises((TypeError, ValueError), match=said):
        rk.keras.from_keras(write())


@pytest.mark.parametrize("key", ["units", "activation", "recurrent_activation"])
def test_options_that_are_missing(old, key):
    write, _, node = old
    del node["config"][key]
    with pytest.raises(ValueError, match=rf"gru: expected '{key}' in the configuration, got none"):
        rk.keras.from_keras(write())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel": None}, r"gru: expected kernel, recurrent_kernel and bias for each cell, got"),
        ({"recurrent_kernel": None}, r"gru: recurrent_kernel: expected an array, got none"),
        ({"bias": None}, r"gru: bias: expected an array with use_bias=True, got none"),
        ({"kernel": np.zeros(12, "f4")}, r"gru: kernel: expected shape \('I', 12\), got \(12,\)"),
        ({"recurrent_kernel": np.zeros((4, 11), "f4")}, r"expected shape \(4, 12\), got \(4, 11\)"),
        ({"kernel": np.zeros((3, 12), "f2")}, r"kernel: expected float32 or float64, got float16"),
        ({"bias": np.zeros(12, "f8")}, r"gru: bias: expected float32 as kernel, got float64"),
    ],
)
def test_wrong_weights(old, changes, said):
    write, weights, _ = old
    kept = {n: values for n, values in {**weights, **changes}.items() if values is not None}
    with pytest.raises((TypeError, ValueError), match=said):
        rk.keras.from_keras(write(layers={"gru": keras_2.named(kept, "gru")}))


def test_datasets_that_are_missing_or_elsewhere(old, tmp_path):
    write, weights, _ = old
    path, place = write(), "model_weights/gru/gru/kernel:0"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = weights["kernel"]
    layout = h5py.VirtualLayout((3, 12), np.float32)
    layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "kernel", shape=(3, 12))
    changes = {
        "a dataset, got none": lambda file: None,
        "a dataset, got a SoftLink": lambda f: f.__setitem__(place, h5py.SoftLink("/x")),
        "a dataset, got a ExternalLink": lambda f: f.__setitem__(
            place, h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")
        ),
        "expected values in the file": lambda f: f.create_virtual_dataset(place, layout),
        "expected at most 1000 bytes for each": lambda f: f.create_dataset(
            place, (3, 10**9), np.float32, chunks=(1, 1000)
        ),
        "a dataset, got a group": lambda f: f.create_group(place),
    }
    for said, change in changes.items():
        with h5py.File(path, "a") as file:
            if place in file or file.get(place, getlink=True) is not None:
                del file[place]
            change(file)
        with pytest.raises(ValueError, match=rf"kernel:0: .*{said}"):
            rk.keras.from_keras(path)


def test_values_that_can_not_be_read(old):
    path, place = old[0](), "model_weights/gru/gru/kernel:0"
    with h5py.File(path, "a") as file:
        del file[place]
        values = file.create_dataset(place, (3, 12), np.float32, chunks=(3, 12), compression="gzip")
        values.id.write_direct_chunk((0, 0), b"no compressed bytes")
    with pytest.raises(
        ValueError, match=r"source: expected a sound file of Keras, got '.*m.h5' \("
    ):
        rk.keras.from_keras(path)


def test_files_that_are_none_of_keras(old, model, tmp_path):
    read = rk.keras.from_keras
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.keras")
    text = tmp_path / "text.h5"
    text.write_text("no model")
    with pytest.raises(ValueError, match=r"source: expected a .keras, .h5 or .weights.h5 file"):
        read(text)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["values"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"source: expected the weights of a model of Keras 2 or"):
        read(tmp_path / "own.h5")
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr("values", "3")
    with pytest.raises(ValueError, match=r"source: expected a .keras file with metadata.json"):
        read(tmp_path / "own.zip")
    model.save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    for end in (len(whole) // 2, len(whole) - 30):
        (tmp_path / "part.keras").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"^source: "):
            read(tmp_path / "part.keras")
    path = old[0](config={"class_name": "Sequential", "config": {"layers": []}})
    with pytest.raises(ValueError, match=r"source: expected a layer of SimpleRNN, .* got none"):
        read(path)
    with pytest.raises(ValueError, match=r"config: expected None for a file that has its own"):
        read(old[0](), config=[])
    with pytest.raises(ValueError, match=r"config: expected the model's configuration, such as"):
        read(old[0](config=None))
    with pytest.raises(ValueError, match=r"name: expected one of gru, got 'lstm'"):
        read(old[0](), "lstm")
    with pytest.raises(TypeError, match=r"name: expected a str or None, got int"):
        read(old[0](), 3)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"3", b'{"class_name": "Sequential"}'])
def test_hostile_configurations(old, content):
    path = old[0]()
    with h5py.File(path, "a") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = content[:60_000]
    with pytest.raises(ValueError, match=r"config|model_config"):
        rk.keras.from_keras(path)


REAL = Path(__file__).parent / "data" / "keras_2.h5"


def test_a_file_that_keras_2_has_written():
    """By data/keras_2.py, with what Keras 2 computes of one input: its layers one by one."""
    with h5py.File(REAL) as file:
        x, mask = file["expected/x"][()], file["expected/mask"][()]
        wanted = {name: values[()] for name, values in file["expected/outputs"].items()}
        assert file.attrs["keras_version"].startswith("2.")
    found = rk.keras.Recurrent.from_keras(REAL)
    assert sorted(found) == sorted(wanted)
    for name, layer in found.items():
        # Keras 2 has zeros before the first real step, as Keras 3 with PyTorch or TensorFlow.
        assert_close(layer(x, mask=mask), wanted[name])
