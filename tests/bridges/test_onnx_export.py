"""Layers written as ONNX models: what ONNX Runtime gives for them, and this package again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import assert_close, runtime

import rnnkern as rk
import rnnkern.onnx

T, B, H = 7, 4, 6

CELLS = {
    "tanh": (rk.RNN, {}),
    "relu": (rk.RNN, {"nonlinearity": "relu"}),
    "rnn-general": (rk.RNN, {"activations": (("Affine", 0.5, 0.1),), "forward_clip": 0.5}),
    "gru": (rk.GRU, {}),
    "gru-reset-before": (rk.GRU, {"reset_after": False}),
    "gru-general": (
        rk.GRU,
        {"activations": (("ScaledTanh", 0.5, 0.7), ("LeakyRelu", 0.2)), "forward_clip": 1.0},
    ),
    "lstm": (rk.LSTM, {}),
    "peephole": (rk.LSTM, {"peephole": True}),
    "coupled": (rk.LSTM, {"input_forget": True, "peephole": True, "forward_clip": 0.7}),
    "lstm-general": (rk.LSTM, {"activations": ("HardSigmoid", ("Elu", 0.5), "Softsign")}),
    "lstm-defaults": (rk.LSTM, {"activations": ("Sigmoid", "ThresholdedRelu", "Affine")}),
}
STACKS = {
    "one": {},
    "two-directions": {"bidirectional": True},
    "stack": {"num_layers": 3, "bias": False},
    "backward": {"num_layers": 2, "reverse": True},
    "two-directions-stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "residual": {"num_layers": 3, "residual": True, "batch_first": True, "dropout": 0.5},
}


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def named(y, state):
    return dict(zip(("y", "h", "c"), (y, *parts(state)), strict=False))


def calls(layer, seed=0):
    """A whole call with a state and lengths: the layer's result, and the model's inputs."""
    rng = np.random.default_rng(seed)
    shape = (B, T) if layer.batch_first else (T, B)
    x = rng.normal(size=(*shape, layer.input_size)).astype(layer.dtype)
    lengths = np.array([7, 3, 1, 5], np.int32)
    D = 1 + layer.bidirectional
    states = tuple(
        rng.normal(size=(layer.num_layers * D, B, H)).astype(layer.dtype)
        for _ in layer._state_names
    )
    y, last = layer(x, states if len(states) == 2 else states[0], lengths)
    feeds = {f"initial_{n}": a for n, a in zip("hc", states, strict=False)}
    return named(y, last), {"x": x, "lengths": lengths, **feeds}


def layer_of(cell, stack, **more):
    cls, options = CELLS[cell]
    return cls(5, H, **options, **STACKS[stack], **more, seed=0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("stack", STACKS)
def test_onnx_runtime_gives_the_same(cell, stack):
    """To the tolerance that `export` states, and this package to the bit."""
    pytest.importorskip("onnxruntime", reason="what runs the model")
    layer = layer_of(cell, stack)
    want, feeds = calls(layer)
    proto = rk.onnx.export(layer, state=True, lengths=True)
    onnx.checker.check_model(proto, full_check=True)
    assert len([n for n in proto.graph.node if n.op_type in ("RNN", "GRU", "LSTM")]) == (
        layer.num_layers
    )
    assert_close(runtime(proto, feeds), want)
    found = rk.onnx.load(proto).run(feeds)
    assert list(found) == list(want)
    for name, values in want.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize("cell", ["tanh", "gru", "coupled"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_inputs_are_those_asked_for(cell, state, lengths):
    layer = layer_of(cell, "two-directions-stack")
    proto = rk.onnx.export(layer, state=state, lengths=lengths)
    _, feeds = calls(layer)
    names = ["x"] + ["lengths"] * lengths
    names += [n for n in feeds if n.startswith("initial")] if state else []
    assert [one.name for one in proto.graph.input] == names
    given = {n: feeds[n] for n in names}
    first = tuple(a for n, a in given.items() if n.startswith("initial")) or None
    first = first[0] if first and len(first) == 1 else first
    want = named(*layer(feeds["x"], first, feeds["lengths"] if lengths else None))
    assert_close(runtime(proto, given), want)


def test_time_steps_and_rows_are_open():
    layer = layer_of("lstm", "two-directions-stack")
    proto = rk.onnx.export(layer)
    for rows, steps in ((1, 1), (3, 20), (2, 100)):
        x = np.random.default_rng(rows).normal(size=(rows, steps, 5)).astype(np.float32)
        assert_close(runtime(proto, {"x": x}), named(*layer(x)))


def test_many_steps_stay_within_the_stated_tolerance():
    """A hundred steps of a layer of usual size, as the docstring states."""
    for cls in (rk.RNN, rk.GRU, rk.LSTM):
        layer = cls(64, 128, 2, seed=0)
        x = np.random.default_rng(0).normal(size=(100, 8, 64)).astype(np.float32)
        assert_close(runtime(rk.onnx.export(layer), {"x": x}), named(*layer(x)))


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm", "gru-reset-before"])
def test_double(cell):
    """ONNX Runtime has no such nodes; the evaluator and this package have."""
    layer = layer_of(cell, "residual", dtype=np.float64)
    want, feeds = calls(layer)
    feeds.pop("lengths")  # which the evaluator leaves out of account
    want = named(*layer(feeds["x"], (feeds["initial_h"], feeds["initial_c"])
                 if cell == "lstm" else feeds["initial_h"]))  # fmt: skip
    proto = rk.onnx.export(layer, state=True)
    found = dict(zip(want, ReferenceEvaluator(proto).run(None, feeds), strict=True))
    # A float64 chain of 11 terms, over 7 steps and 3 layers; the worst measured was 2e-15.
    assert_close(found, want, tolerance=1e-13)
    again = rk.onnx.load(proto, engine="reference").run(feeds)
    for name, values in want.items():
        assert np.array_equal(again[name], values)


def test_weights_come_back():
    """Loading what was written gives layers with the same options and the same bits."""
    layer = layer_of("coupled", "two-directions")
    (again,) = rk.onnx.load(rk.onnx.export(layer)).values()
    assert repr(again) == (
        "LSTM(5, 6, peephole=True, input_forget=True, forward_clip=0.699999988079071, "
        "bidirectional=True)"
    )
    assert list(again.params) == list(layer.params)
    for name, values in layer.params.items():
        assert np.array_equal(again.params[name], values)


@pytest.mark.parametrize(
    ("options", "rounded"),
    [
        ({"forward_clip": 0.3}, {"forward_clip": float(np.float32(0.3))}),
        (
            {"activations": (("HardSigmoid", 0.2, 0.4), "Tanh")},
            {"activations": (("HardSigmoid", *map(float, np.float32([0.2, 0.4]))), "Tanh")},
        ),
        ({"forward_clip": 0.5}, {"forward_clip": 0.5}),
    ],
)
def test_constants_of_a_double_layer_are_rounded_to_float32(options, rounded):
    """To the bit, the model is the layer with rounded constants."""
    given, same = (rk.GRU(5, H, dtype=np.float64, seed=0, **each) for each in (options, rounded))
    x = 3 * np.random.default_rng(0).normal(size=(T, B, 5))
    got = rk.onnx.load(rk.onnx.export(given)).run({"x": x})["y"]
    assert np.array_equal(got, same(x)[0])
    differs = np.abs(got - given(x)[0]).max()
    # Constants are rounded by up to 3e-8 of their size; the worst measured was 2e-8.
    assert (differs > 0) == (options != rounded)
    assert differs < 1e-7


def test_the_file_and_what_is_returned_are_the_same(tmp_path):
    layer = layer_of("gru", "one")
    for path in (tmp_path / "a.onnx", str(tmp_path / "b.onnx")):
        proto = rk.onnx.export(layer, path)
        assert onnx.load(path) == proto


def test_dropout_in_time_is_of_training_alone():
    layer = rk.LSTM(5, H, recurrent_dropout=0.5, seed=0)
    want, feeds = calls(layer)
    assert_close(runtime(rk.onnx.export(layer, state=True, lengths=True), feeds), want)


# ---- errors ------------------------------------------------------------------------------------

REFUSED = {
    "proj_size": (rk.LSTM, {"proj_size": 3}, "proj_size=3"),
    "cell_clip": (rk.LSTM, {"cell_clip": 2.0}, "cell_clip=2.0"),
    "layer_norm": (rk.GRU, {"layer_norm": "haste"}, "layer_norm='haste'"),
    "zoneout": (rk.LSTM, {"zoneout": (0.0, 0.5)}, "zoneout=(0.0, 0.5)"),
    "ensemble": (rk.RNN, {"ensemble": 2}, "ensemble=2"),
    "compute": (rk.GRU, {"compute": "bf16"}, "compute='bf16'"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_onnx_lacks(option, tmp_path):
    cls, options, said = REFUSED[option]
    with pytest.raises(ValueError, match=r"^layer: expected one without") as caught:
        rk.onnx.export(cls(5, H, **options), tmp_path / "a.onnx")
    assert str(caught.value) == (
        f"layer: expected one without {option}, which ONNX's operators do not have, got {said}"
    )
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    "layer",
    [rk.MinGRU(5, H), rk.MinLSTM(5, H), rk.IndRNN(5, H), rk.RGLRU(H, H), rk.SLSTM(5, H), None],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_onnx_lacks(layer):
    with pytest.raises(TypeError) as caught:
        rk.onnx.export(layer)
    assert str(caught.value) == (
        f"layer: expected one of rnnkern's RNN, GRU, LSTM, got {type(layer).__name__}"
    )


def test_modules_of_pytorch_are_told_from_layers():
    pytest.importorskip("torch")
    from rnnkern.torch import LSTM

    module = LSTM(3, H)
    with pytest.raises(TypeError, match=r"^layer: .* got LSTM \(its as_layer\(\) gives one\)$"):
        rk.onnx.export(module)
    assert rk.onnx.export(module.as_layer()).graph.node


@pytest.mark.parametrize("name", ["state", "lengths"])
def test_flags_are_flags(name):
    with pytest.raises(TypeError, match=rf"^{name}: expected True or False, got int$"):
        rk.onnx.export(rk.GRU(3, 5), **{name: 1})
