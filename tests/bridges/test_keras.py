"""Layers of Keras, taken over: values, calls and gradients are Keras's own."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest
import torch
from keras_layers import (
    CELLS,
    MASKS,
    B,
    H,
    I,
    L,
    T,
    assert_close,
    built,
    called,
    inputs,
    made,
)

import rnnkern as rk
import rnnkern.keras

# Keras reads PyTorch's tensors in a way of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

SHAPES = ("forward", "backward", "both", "stack")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_calls_are_those_of_keras(cell, shape):
    """With every mask, of the last output and of all."""
    for sequences in (False, True):
        theirs = built(made(cell, shape, return_sequences=sequences, return_state=True))
        ours = rk.keras.Recurrent.from_keras(theirs)
        assert len(ours.layers) == 1
        for mask in MASKS.values():
            x = inputs()
            assert_close(list(ours(x, mask=mask)), called(theirs, x, mask))


@pytest.mark.parametrize("cell", ["simple", "lstm-hard", "gru", "gru-before"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64(cell, shape):
    theirs = built(made(cell, shape, dtype="float64", return_sequences=True))
    if shape == "stack":  # whose cells do not take the layer's dtype
        cls, own = CELLS[cell]
        cells = [getattr(L, f"{cls.__name__}Cell")(H, dtype="float64", **own) for _ in range(3)]
        theirs = built(L.RNN(cells, dtype="float64", return_sequences=True))
    ours = rk.keras.Recurrent.from_keras(theirs)
    assert ours.layers[0].dtype == np.float64
    x = inputs("float64")
    for mask in (None, MASKS["gaps"]):
        assert_close(ours(x, mask=mask), called(theirs, x, mask))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float64_is_not_rounded(cell):
    """Where Keras calls PyTorch's LSTM or GRU, float64 is float64."""
    theirs = built(made(cell, dtype="float64", return_sequences=True))
    ours = rk.keras.from_keras(theirs)
    x = inputs("float64")
    # Sums of up to 8 terms, over 7 steps; the worst measured was 3e-16.
    assert_close(ours(x)[0], called(theirs, x), 1e-14)


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru-before"])
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_layers_give_the_same(cell, shape):
    """As the documentation's table of calls says, without a `Recurrent`."""
    x, mask = inputs(), MASKS["in-front"]
    theirs = built(made(cell, shape, return_sequences=True, zero_output_for_mask=True))
    layer = rk.keras.from_keras(theirs)
    assert layer.batch_first
    assert (layer.bidirectional, layer.reverse) == (shape == "both", shape == "backward")
    assert layer.num_layers == (3 if shape == "stack" else 1)
    y, _ = layer(x, mask=mask)
    want = called(theirs, x, mask)
    assert_close(y, want[:, ::-1] if shape == "backward" else want)
    theirs = built(made(cell, shape))
    last, _ = layer(x, mask=mask, outputs="last")
    assert_close(last, called(theirs, x, mask))


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_merge_modes(mode, sequences):
    options = {"return_sequences": sequences, "return_state": True, "merge_mode": mode}
    theirs = built(made("lstm", "both", **options))
    ours = rk.keras.Recurrent.from_keras(theirs)
    for mask in MASKS.values():
        assert_close(list(ours(inputs(), mask=mask)), called(theirs, inputs(), mask))


STACKS = {
    "widths": [L.GRUCell(5), L.GRUCell(4), L.GRUCell(4)],
    "kinds": [L.SimpleRNNCell(4), L.LSTMCell(4), L.GRUCell(4, reset_after=False)],
    "options": [L.GRUCell(5), L.GRUCell(5, reset_after=False)],
    "alike": [L.LSTMCell(5), L.LSTMCell(5)],
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("shape", ["forward", "backward", "both"])
def test_stacks_of_cells(stack, shape):
    """Cells that differ, and halves of several cells: more layers than one."""
    options = {"return_sequences": True, "return_state": True}
    cells = [type(c).from_config(c.get_config()) for c in STACKS[stack]]
    theirs = L.RNN(cells, go_backwards=shape == "backward", **options)
    theirs = built(L.Bidirectional(theirs) if shape == "both" else theirs)
    ours = rk.keras.Recurrent.from_keras(theirs)
    for mask in MASKS.values():
        assert_close(list(ours(inputs(), mask=mask)), called(theirs, inputs(), mask))
    if stack == "alike" and shape != "both":
        assert rk.keras.from_keras(theirs).num_layers == 2
        return
    with pytest.raises(ValueError, match=r"one layer can have, got .* \(use .*Recurrent"):
        rk.keras.from_keras(theirs)


def test_halves_that_differ():
    halves = (
        L.LSTM(5, return_sequences=True),
        L.GRU(4, activation="relu", go_backwards=True, return_sequences=True),
    )
    theirs = built(L.Bidirectional(halves[0], backward_layer=halves[1]))
    ours = rk.keras.Recurrent.from_keras(theirs)
    assert [type(layer) for layer in (*ours.layers, *ours.backward)] == [rk.LSTM, rk.GRU]
    for mask in MASKS.values():
        assert_close(ours(inputs(), mask=mask), called(theirs, inputs(), mask))


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru"])
@pytest.mark.parametrize("shape", SHAPES)
def test_initial_states(cell, shape):
    theirs = built(made(cell, shape, return_sequences=True, return_state=True))
    ours = rk.keras.Recurrent.from_keras(theirs)
    _, *states = called(theirs, inputs())
    rng = np.random.default_rng(7)

    def drawn(like):
        if isinstance(like, list):
            return [drawn(one) for one in like]
        return rng.normal(size=like.shape).astype(like.dtype)

    given = drawn(states)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, given)
    for mask in MASKS.values():
        want = called(theirs, inputs(), mask, initial_state=tensors)
        assert_close(list(ours(inputs(), mask, initial_state=given)), want)


@pytest.mark.parametrize("shape", SHAPES)
def test_stateful(shape):
    theirs = built(made("lstm", shape, stateful=True), rows=B)
    ours = rk.keras.Recurrent.from_keras(theirs)
    first = ours(inputs(seed=1))
    assert_close(first, called(theirs, inputs(seed=1)))
    second = ours(inputs(seed=2), mask=MASKS["behind"])
    assert_close(second, called(theirs, inputs(seed=2), MASKS["behind"]))
    assert not np.allclose(second, rk.keras.Recurrent.from_keras(theirs)(inputs(seed=2)))
    ours.reset_state()
    assert np.array_equal(ours(inputs(seed=1)), first)
    with pytest.raises(ValueError, match=r"x: expected 4 rows .*, got 2"):
        ours(inputs()[:2])


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("shape", ["forward", "backward"])
def test_zero_output_for_mask(sequences, shape):
    options = {"return_sequences": sequences, "zero_output_for_mask": True}
    theirs = built(made("gru", shape, **options))
    ours = rk.keras.Recurrent.from_keras(theirs)
    kept = rk.keras.Recurrent.from_keras(built(made("gru", shape, return_sequences=sequences)))
    differing = 0
    for mask in MASKS.values():
        y = ours(inputs(), mask=mask)
        assert_close(y, called(theirs, inputs(), mask))
        differing += not np.array_equal(y, kept(inputs(), mask=mask))
    assert differing == 2  # not without a mask, nor with one of steps before the first real one


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (L.LeakyReLU(negative_slope=0.3), "LeakyRelu"),
        (L.ELU(alpha=0.5), "Elu"),
        (L.ReLU(), "Relu"),
        (L.ReLU(negative_slope=0.1), "LeakyRelu"),
        (L.ReLU(threshold=0.2), "ThresholdedRelu"),
    ],
)
def test_layers_as_activations(given, name):
    theirs = built(L.SimpleRNN(H, activation=given, return_sequences=True))
    layer = rk.keras.from_keras(theirs)
    assert name in repr(layer) or (name == "Relu" and layer.nonlinearity == "relu")
    assert_close(layer(inputs())[0], called(theirs, inputs()))


def test_hard_sigmoid_is_keras_3s():
    """At 2.7, where Keras 2's is 1."""
    theirs = L.GRU(1, recurrent_activation="hard_sigmoid", activation="linear", use_bias=False)
    theirs.build((None, None, 1))
    theirs.cell.kernel.assign(np.array([[2.7, 0.0, 1.0]], np.float32))
    layer = rk.keras.from_keras(theirs)
    last, _ = layer(np.ones((1, 1, 1), np.float32), outputs="last")
    assert abs(float(last.item()) - (1 - (2.7 / 6 + 0.5))) < 1e-6


# Of the largest value of a gradient: sums over 28 rows and steps, and a chain of 7 steps; the worst
# measured was 5e-7.
GRADIENTS = 5e-6


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["none", "gaps"])
def test_gradients_are_those_of_keras(cell, shape, mask):
    """Of the inputs, and of all weights, which `to_keras` lays out as Keras does."""
    theirs = built(made(cell, shape, return_sequences=True, zero_output_for_mask=True))
    layer = rk.keras.from_keras(theirs)
    x, dy = inputs(), inputs(seed=9, channels=layer(inputs())[0].shape[-1])
    given = torch.tensor(x, requires_grad=True)
    kept = None if MASKS[mask] is None else torch.tensor(MASKS[mask])
    y = theirs(given, mask=kept)
    y.backward(torch.tensor(dy))
    own, _, tape = layer.forward(x, mask=MASKS[mask])
    turned = np.ascontiguousarray(dy[:, ::-1]) if shape == "backward" else dy
    assert_close(own[:, ::-1] if shape == "backward" else own, y.detach().numpy())
    grads = layer.backward(tape, turned)
    assert_close(grads.x, given.grad.numpy(), GRADIENTS)
    # A layer whose parameters are the gradients: written as Keras's weights, they are Keras's.
    same = layer.copy()
    for name, values in grads.params.items():
        same.params[name][...] = values
    if layer.bias and not getattr(layer, "reset_after", False):
        for name in same.params:  # Keras has one bias, whose gradient is that of each of ours
            if name.startswith("bias_hh"):
                same.params[name][...] = 0
    written = rk.keras.to_keras(same)
    pairs = zip(written.trainable_variables, theirs.trainable_variables, strict=True)
    for got, want in pairs:
        want = want.value.grad.numpy()
        assert_close(keras.ops.convert_to_numpy(got), want, GRADIENTS)


def test_a_model_gives_its_layers_by_name():
    inner = keras.Sequential([keras.Input((T, 8)), L.GRU(4, name="gru")], name="inner")
    model = keras.Sequential(
        [
            keras.Input((T, I)),
            L.Bidirectional(L.LSTM(4, return_sequences=True), name="both"),
            L.Dense(8),
            inner,
        ]
    )
    found = rk.keras.from_keras(model)
    assert list(found) == ["both", "inner/gru"]
    both = rk.keras.from_keras(model, "both")
    assert both.params.keys() == found["both"].params.keys()
    with pytest.raises(ValueError, match=r"name: expected one of both, inner/gru, got 'lstm'"):
        rk.keras.from_keras(model, "lstm")
    dense = model.layers[1]
    y, _ = both(inputs())
    y = y @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    last, _ = found["inner/gru"](y, outputs="last")
    assert_close(last, called(model, inputs()))


def test_weights_are_copied_bit_for_bit():
    theirs = built(L.LSTM(H))
    theirs.cell.bias.assign(np.where(np.arange(4 * H) % 3, np.asarray(theirs.cell.bias), -0.0))
    layer = rk.keras.from_keras(theirs)
    kernel = np.asarray(theirs.cell.kernel)
    assert layer.params["weight_ih_l0"].tobytes() == np.ascontiguousarray(kernel.T).tobytes()
    assert layer.params["bias_ih_l0"].tobytes() == np.asarray(theirs.cell.bias).tobytes()
    layer.params["weight_ih_l0"][...] = 0
    assert np.array_equal(np.asarray(theirs.cell.kernel), kernel)


def test_a_recurrent_copies_and_pickles():
    ours = rk.keras.Recurrent.from_keras(built(made("gru", "both", return_sequences=True)))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(other) == repr(ours)
        assert np.array_equal(other(inputs()), ours(inputs()))
    assert "bidirectional=True" in repr(ours)
    assert "return_sequences=True" in repr(ours)


def activation_of_a_users(x):
    return keras.ops.tanh(x)


def named_like_keras_own():
    def tanh(x):
        return keras.ops.tanh(x) / 2

    return tanh


class OwnLSTM(L.LSTM):
    pass


class OwnCell(L.LSTMCell):
    pass


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (L.LSTM(H, activation="swish"), r"activation: expected one of tanh, .*, got silu"),
        (L.GRU(H, recurrent_activation="softmax"), r"recurrent_activation: .* got softmax"),
        (L.LSTM(H, activation=activation_of_a_users), r"got activation_of_a_users, a function"),
        (L.LSTM(H, activation=named_like_keras_own()), r"got tanh, a function or class of its own"),
        (L.LSTM(H, activation=L.PReLU()), r"got PReLU, a function or class of its own"),
        (L.SimpleRNN(H, activation=L.ReLU(max_value=6)), r"max_value: expected None, got 6"),
        (L.RNN(OwnCell(H)), r"expected a class of Keras, got test_keras.OwnCell"),
    ],
)
def test_what_is_refused_by_name(layer, said):
    layer.build((None, None, I))
    with pytest.raises(ValueError, match=said):
        rk.keras.from_keras(layer)


def test_other_objects_are_refused():
    own = OwnLSTM(H)
    own.build((None, None, I))
    for other in (own, L.Dense(3), 3, rk.LSTM(3, 5)):
        with pytest.raises(TypeError, match=r"source: expected a path, a model of Keras or its"):
            rk.keras.from_keras(other)
    with pytest.raises(ValueError, match=r"expected a layer that is built"):
        rk.keras.from_keras(L.GRU(H))
    with pytest.raises(ValueError, match=r"source: expected a model with a layer of SimpleRNN"):
        rk.keras.from_keras(keras.Sequential([keras.Input((I,)), L.Dense(3)]))
    with pytest.raises(ValueError, match=r"name: expected None for a layer, got 'gru'"):
        rk.keras.from_keras(built(L.GRU(H)), "gru")
    with pytest.raises(ValueError, match=r"config: expected None for an object of Keras"):
        rk.keras.from_keras(built(L.GRU(H)), config={})
    half = built(L.GRU(H, dtype="float16", recurrent_initializer="zeros"))
    with pytest.raises(TypeError, match=r"kernel: expected float32 or float64, got float16"):
        rk.keras.from_keras(half)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([],), r"layers: expected a list of layers, got list"),
        (([rk.MinGRU(3, 5)],), r"layers\[0\]: expected one of RNN, LSTM, GRU, got MinGRU"),
        (([rk.GRU(3, 5)],), r"layers\[0\]: expected batch_first=True"),
        (
            ([rk.GRU(3, 5, batch_first=True), rk.GRU(4, 5, batch_first=True)],),
            r"layers\[1\]: expected input_size=5 as below",
        ),
        (
            ([rk.GRU(3, 5, batch_first=True)], [rk.GRU(3, 5, batch_first=True)]),
            r"backward: expected reverse=True as in the others",
        ),
        (
            ([rk.GRU(3, 5, 2, batch_first=True, bidirectional=True)],),
            r"layers: expected one bidirectional layer of num_layers=1 alone",
        ),
        (
            ([rk.GRU(3, 5, batch_first=True)], [rk.GRU(3, 4, batch_first=True, reverse=True)]),
            r"merge_mode: expected halves of the same hidden_size with 'sum', got \[5, 4\]",
        ),
    ],
)
def test_layers_that_are_no_recurrent(arguments, said):
    with pytest.raises((TypeError, ValueError), match=said):
        rk.keras.Recurrent(*arguments, merge_mode="sum")


def test_wrong_arguments_of_calls():
    ours = rk.keras.Recurrent.from_keras(built(L.LSTM(H)))
    with pytest.raises(TypeError, match=r"x: expected an array of dtype float32"):
        ours(inputs("float64"))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, I\), got \(7, 3\)"):
        ours(inputs()[0])
    with pytest.raises(ValueError, match=r"mask: expected shape \(4, 7\), got \(7, 4\)"):
        ours(inputs(), mask=np.ones((T, B), bool))
    with pytest.raises(ValueError, match=r"initial_state: expected 2 arrays, got 1"):
        ours(inputs(), initial_state=[np.zeros((B, H), np.float32)])
    with pytest.raises(ValueError, match=r"initial_state\[1\]: expected shape \(4, 5\), got"):
        ours(inputs(), initial_state=[np.zeros((B, n), np.float32) for n in (H, 3)])
    with pytest.raises(ValueError, match=r"merge_mode: expected one of concat, .*, got 'max'"):
        rk.keras.Recurrent(ours.layers, merge_mode="max")
