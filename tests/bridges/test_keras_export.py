"""Layers of rnnkern as layers of Keras, and from Keras back again."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras_layers import CELLS, H, I, L, T, assert_close, built, called, inputs, made, weights_of

import rnnkern as rk
import rnnkern.keras

# Keras reads PyTorch's tensors in a way of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

OWN = {
    "tanh": (rk.RNN, {}),
    "relu": (rk.RNN, {"nonlinearity": "relu", "bias": False}),
    "rnn-thresholded": (rk.RNN, {"activations": (("ThresholdedRelu", 0.3),)}),
    "lstm": (rk.LSTM, {"forget_bias": 1.0}),
    "lstm-keras-2": (rk.LSTM, {"activations": ("HardSigmoid", ("Elu", 0.5), ("Elu", 0.5))}),
    "lstm-keras-3": (rk.LSTM, {"activations": (("HardSigmoid", 1 / 6), "Softsign", "Softsign")}),
    "gru": (rk.GRU, {"dropout": 0.0, "recurrent_dropout": 0.3}),
    "gru-before": (rk.GRU, {"reset_after": False}),
    "gru-leaky": (rk.GRU, {"activations": ("Sigmoid", "LeakyRelu"), "bias": False}),
    "gru-linear": (rk.GRU, {"activations": ("Softplus", "Affine")}),
}
SHAPES = {
    "forward": {},
    "backward": {"reverse": True},
    "both": {"bidirectional": True},
    "stack": {"num_layers": 3},
    "float64": {"num_layers": 2, "dtype": np.float64},
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shape", SHAPES)
def test_keras_computes_the_same(name, shape):
    """For any layer, with both biases; and the layer that is made of Keras's does."""
    cls, options = OWN[name]
    layer = cls(I, H, batch_first=True, **options, **SHAPES[shape], seed=0)
    theirs = rk.keras.to_keras(layer, return_sequences=True)
    x = inputs(str(layer.dtype))
    y, _ = layer(x)
    want = y[:, ::-1] if shape == "backward" else y
    assert_close(called(theirs, x), np.ascontiguousarray(want))
    again = rk.keras.from_keras(theirs)
    assert again._cell == layer._cell._replace(kind=again._cell.kind, noise=again._cell.noise)
    assert_close(again(x)[0], y, 1e-6)  # the biases are added before, not in the step


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", ["forward", "backward", "both", "stack"])
def test_what_came_from_keras_goes_back_bit_for_bit(cell, shape):
    theirs = built(made(cell, shape))
    for variable in theirs.trainable_variables:  # -0 would become 0 in a sum with 0
        values = np.array(keras.ops.convert_to_numpy(variable))
        values[..., 0] = -0.0
        variable.assign(values)
    back = rk.keras.to_keras(rk.keras.from_keras(theirs))
    assert type(back) is type(theirs)
    for one, other in zip(weights_of(back), weights_of(theirs), strict=True):
        assert one.tobytes() == other.tobytes()
    assert rk.keras.from_keras(back).state_dict().keys() == (
        rk.keras.from_keras(theirs).state_dict().keys()
    )
    x = inputs()
    assert np.array_equal(called(back, x), called(theirs, x))


def test_a_recurrent_goes_back_with_its_calls():
    halves = (
        L.RNN([L.GRUCell(4), L.LSTMCell(H)], return_sequences=True, return_state=True),
        L.LSTM(H, return_sequences=True, return_state=True, go_backwards=True),
    )
    theirs = built(L.Bidirectional(halves[0], "sum", backward_layer=halves[1]))
    ours = rk.keras.Recurrent.from_keras(theirs)
    back = rk.keras.to_keras(ours)
    assert_close(called(back, inputs()), called(theirs, inputs()), 1e-30)
    assert repr(rk.keras.Recurrent.from_keras(back)) == repr(ours)
    other = rk.keras.to_keras(ours, merge_mode="mul", return_state=False)
    assert other.merge_mode == "mul"
    assert not other.return_state


def test_weights_go_into_a_layer_that_keeps_its_own_options():
    model = keras.Sequential(
        [
            keras.Input((T, I)),
            L.GRU(H, dropout=0.5, kernel_regularizer="l2", name="own"),
            L.Dense(2),
        ]
    )
    layer = rk.keras.from_keras(model, "own")
    for values in layer.params.values():
        values += 0.25
    own = model.get_layer("own")
    assert rk.keras.to_keras(layer, into=own) is own
    assert own.dropout == 0.5
    assert_close(called(own, inputs()), layer(inputs(), outputs="last")[0])
    assert np.array_equal(rk.keras.from_keras(own)(inputs())[0], layer(inputs())[0])


@pytest.mark.parametrize(
    ("into", "said"),
    [
        (L.GRU(4), r"into: cells: expected .*units=5.*, got .*units=4"),
        (L.GRU(H, reset_after=False), r"into: cells: expected .*reset_after=True"),
        (L.GRU(H, activation="relu"), r"into: cells: expected .*'Tanh'.* got .*'Relu'"),
        (L.LSTM(H), r"into: cells: expected .*'GRU'.*, got .*'LSTM'"),
        (L.GRU(H, go_backwards=True), r"into: reverse: expected False of the layer, got True"),
        (L.GRU(H, dtype="float64"), r"into: dtype: expected float32 of the layer, got float64"),
        (L.Bidirectional(L.GRU(H)), r"into: halves: expected 1 of the layer, got 2"),
    ],
)
def test_into_other_layers(into, said):
    built(into)
    before = weights_of(into)
    with pytest.raises(ValueError, match=said):
        rk.keras.to_keras(rk.GRU(I, H), into=into)
    assert all(map(np.array_equal, before, weights_of(into)))


def test_into_other_sizes():
    with pytest.raises(ValueError, match=r"into: input_size: expected 4 of the layer, got 3"):
        rk.keras.to_keras(rk.GRU(4, H), into=built(L.GRU(H)))
    for into in (L.Dense(H), keras.Sequential([L.GRU(H)]), "gru"):
        with pytest.raises(
            TypeError, match=r"^into: expected a layer of Keras of SimpleRNN, .*, got "
        ):
            rk.keras.to_keras(rk.GRU(I, H), into=into)
    with pytest.raises(ValueError, match=r"name: expected None with into, got 'other'"):
        rk.keras.to_keras(rk.GRU(I, H), into=built(L.GRU(H)), name="other")


def test_options_are_kerass():
    layer = rk.LSTM(I, H, batch_first=True, bidirectional=True, seed=0)
    theirs = rk.keras.to_keras(
        layer, return_state=True, dropout=0.25, merge_mode="ave", name="encoder"
    )
    assert theirs.name == "encoder"
    assert theirs.merge_mode == "ave"
    assert theirs.forward_layer.dropout == theirs.backward_layer.dropout == 0.25
    assert len(called(theirs, inputs())) == 5
    with pytest.raises(TypeError, match=r"activation: expected options that the layer leaves"):
        rk.keras.to_keras(layer, activation="relu")
    with pytest.raises((TypeError, ValueError), match="retrun_state"):  # Keras's own error
        rk.keras.to_keras(layer, retrun_state=True)


def test_stateful():
    layer = rk.GRU(I, H, batch_first=True, seed=0)
    theirs = rk.keras.to_keras(layer, stateful=True, batch_size=4)
    _, h = layer(inputs())
    called(theirs, inputs())
    assert_close(called(theirs, inputs()), layer(inputs(), h, outputs="last")[0])


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (rk.LSTM(3, 5, proj_size=2), r"without proj_size, .* got proj_size=2"),
        (rk.LSTM(3, 5, peephole=True), r"without peephole"),
        (rk.LSTM(3, 5, cell_clip=1.0), r"without cell_clip"),
        (rk.LSTM(3, 5, input_forget=True), r"without input_forget"),
        (rk.LSTM(3, 5, zoneout=(0.0, 0.5)), r"without zoneout"),
        (rk.GRU(3, 5, forward_clip=1.0), r"without forward_clip"),
        (rk.GRU(3, 5, layer_norm="haste"), r"without layer_norm"),
        (rk.GRU(3, 5, 2, residual=True), r"without residual"),
        (rk.GRU(3, 5, ensemble=2), r"without ensemble"),
        (rk.GRU(3, 5, compute="bf16"), r"without compute, .* got compute='bf16'"),
        (rk.GRU(3, 5, 2, bidirectional=True), r"expected num_layers=1 with bidirectional"),
        (rk.RNN(3, 5, activations=(("ScaledTanh", 1.0, 2.0),)), r"got ScaledTanh\(1.0, 2.0\)"),
        (rk.GRU(3, 5, activations=("Sigmoid", ("Affine", 2.0))), r"got Affine\(2.0, 0.0\)"),
        (rk.LSTM(3, 5, activations=("Sigmoid", "Tanh", "Relu")), r"got Tanh and Relu"),
    ],
)
def test_what_keras_does_not_have(layer, said):
    with pytest.raises(ValueError, match=said):
        rk.keras.to_keras(layer)


def test_other_classes_are_refused():
    for other in (rk.MinGRU(3, 5), rk.SLSTM(3, 8), None, L.LSTM(3)):
        with pytest.raises(TypeError, match=r"layer: expected one of RNN, LSTM, GRU, or a Rec"):
            rk.keras.to_keras(other)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_keras_2s_hard_sigmoid_is_saved_and_loaded(tmp_path):
    """In a fresh interpreter, which imports the class and nothing else of this package."""
    layer = rk.GRU(I, H, batch_first=True, activations=("HardSigmoid", "Tanh"), seed=0)
    model = keras.Sequential([keras.Input((T, I)), rk.keras.to_keras(layer, name="gru")])
    model.save(tmp_path / "model.keras")
    assert rk.keras.from_keras(tmp_path / "model.keras")["gru"]._cell == layer._cell
    model.save(tmp_path / "model.h5")
    assert rk.keras.from_keras(tmp_path / "model.h5")["gru"]._cell == layer._cell
    code = (
        "import keras, sys, rnnkern.keras.activations; m = keras.saving.load_model(sys.argv[1]);"
        "print(m.layers[0].recurrent_activation.get_config())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "{'alpha': 0.2, 'beta': 0.5}"


def test_without_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnkern\[keras\]'"):
        rk.keras.to_keras(rk.GRU(3, 5))
