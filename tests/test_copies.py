"""Layers and streams can be copied, pickled and sent to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
from attacks import COPIES
from helpers import KINDS, make_layer, parts

import rnnkern as rk
from rnnkern import _core, pickles

T, B, I, H = 6, 3, 4, 5

every_kind = pytest.mark.parametrize("kind", KINDS)
every_copy = pytest.mark.parametrize("how", [how for how in COPIES if how != "copy"])


def same_params(one, other):
    assert list(one) == list(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def shares_memory(one, other):
    pairs = zip(one.params.values(), other.params.values(), strict=True)
    return any(np.shares_memory(a, b) for a, b in pairs)


@every_kind
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"reverse": True}, {"ensemble": 2}]
)
def test_a_copy_of_a_layer_is_the_layer(kind, options):
    if not (kind == "rg_lru" and options.get("bidirectional")):  # which has one layer alone
        options = {"num_layers": 2, "dropout": 0.5, **options}
    layer = make_layer(kind, I, H, **options)
    layer.forward(x_of(layer))
    for how in (lambda one: one.copy(), *(COPIES[name] for name in COPIES if name != "copy")):
        other = how(layer)
        assert repr(other) == repr(layer)
        assert other.dropout_state == layer.dropout_state
        assert same_params(other.params, layer.params)
        assert not shares_memory(other, layer)
        x, want = x_of(layer), layer.copy()
        y, _, tape = want.forward(x)
        again, _, own = other.forward(x)
        assert np.array_equal(again, y)  # the same dropout, too
        grads = want.backward(tape, np.ones_like(y)), other.backward(own, np.ones_like(y))
        assert same_params(grads[0].params, grads[1].params)


def x_of(layer):
    inputs = layer.input_size
    shape = (T, layer.ensemble, B, inputs) if layer.ensemble else (T, B, inputs)
    return np.random.default_rng(0).normal(size=shape).astype(layer.dtype)


@every_copy
def test_a_copy_of_a_layer_is_independent(how):
    layer = rk.GRU(I, H, 2, dropout=0.5, seed=0)
    other = COPIES[how](layer)
    x = x_of(layer)
    before = layer(x)[0]
    for values in other.params.values():
        values[...] = 0.0
    other.dropout_step = 7
    other.dropout = 0.25
    assert np.array_equal(layer(x)[0], before)
    assert (layer.dropout, layer.dropout_step) == (0.5, 0)
    *_, tape = layer.forward(x)
    with pytest.raises(ValueError, match="tape: expected a tape of this layer's forward, got one"):
        other.backward(tape)


def test_a_shallow_copy_shares_the_parameters():
    """As Python's shallow copies do; its dropout is its own."""
    layer = rk.GRU(I, H, 2, dropout=0.5, seed=0)
    other = copy.copy(layer)
    assert other.params is layer.params
    other.dropout_step = 3
    assert layer.dropout_step == 0


def test_a_copy_of_a_member_is_a_layer_alone():
    layer = rk.LSTM(I, H, ensemble=3, seed=0)
    one = layer.member(1).copy()
    one.params["bias_ih_l0"][...] = 7
    assert not (layer.params["bias_ih_l0"] == 7).any()


def test_a_subclass_keeps_its_own_attributes():
    layer = Labelled(I, H, seed=0)
    layer.label = ["a"]
    other = pickle.loads(pickle.dumps(layer))
    assert type(other) is Labelled
    assert other.label == ["a"]
    layer.label.append("b")
    assert layer.copy().label == ["a", "b"]
    assert other.label == ["a"]


class Labelled(rk.GRU):
    pass


MODULES = [lambda: rk.Linear(I, H, seed=0), lambda: rk.Embedding(I, H, padding_idx=1, seed=0)]


@pytest.mark.parametrize("make", MODULES, ids=["Linear", "Embedding"])
def test_a_copy_of_a_module_is_the_module_and_independent(make):
    module = make()
    x = np.arange(I) if isinstance(module, rk.Embedding) else np.ones((2, I), np.float32)
    want, tape = module.forward(x)
    for how in (lambda one: one.copy(), *(COPIES[name] for name in COPIES if name != "copy")):
        other = how(module)
        assert type(other) is type(module)
        assert repr(other) == repr(module)
        assert same_params(other.params, module.params)
        assert not shares_memory(other, module)
        y, own = other.forward(x)
        assert np.array_equal(y, want)
        grads = module.backward(tape, want), other.backward(own, want)
        assert same_params(grads[0].params, grads[1].params)
        with pytest.raises(ValueError, match="tape: expected a tape of this module's forward"):
            other.backward(tape, want)
        for values in other.params.values():
            values[...] = 7.0
        assert np.array_equal(module(x), want)
    assert COPIES["copy"](module).params is module.params  # as a layer's


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_clip_is_the_clip(how):
    clip = rk.Clip(step_value=1.0, max_norm=5)
    other = COPIES[how](clip)
    assert other == clip
    assert other.bounds() == clip.bounds()


@every_kind
def test_a_copy_of_a_stream_goes_on_from_its_state(kind):
    layer = make_layer(kind, I, H, num_layers=2)
    stream = layer.stream(B)
    x = x_of(layer)
    for step in x[:2]:
        stream.step(step)
    for values in layer.params.values():
        values[...] = 0.0  # the stream has what the layer had
    for name, how in COPIES.items():
        other = how(stream)
        for one, own in zip(parts(stream.state), parts(other.state), strict=True):
            assert np.array_equal(one, own), name
        before = [part.copy() for part in parts(stream.state)]
        y = other.run(x[2:])
        for one, old in zip(parts(stream.state), before, strict=True):
            assert np.array_equal(one, old), name
        assert np.array_equal(how(stream).run(x[2:]), y)
    assert np.array_equal(stream.run(x[2:]), y)


@every_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"ensemble": 2}])
def test_a_copy_of_a_frozen_layer_is_the_frozen_layer(kind, options):
    if not (kind == "rg_lru" and options.get("bidirectional")):
        options = {"num_layers": 2, **options}
    layer = make_layer(kind, I, H, **options)
    frozen, x = layer.freeze(), x_of(layer)
    want, last = layer(x)
    for values in layer.params.values():
        values[...] = 0.0  # the frozen layer has what the layer had
    for name, how in COPIES.items():
        other = how(frozen)
        assert repr(other) == repr(frozen)
        y, state = other(x)
        assert y.tobytes() == want.tobytes(), name
        for one, own in zip(parts(state), parts(last), strict=True):
            assert np.array_equal(one, own), name
        if name == "copy":
            assert other.is_stale()
        else:
            with pytest.raises(RuntimeError, match="is_stale: expected the layer that was frozen"):
                other.is_stale()


def test_shallow_copies_share_the_packed_weights():
    frozen = rk.GRU(I, H, seed=0).freeze()
    stream = frozen.stream(B)
    assert copy.copy(frozen)._params is frozen._params
    assert copy.copy(stream)._made_from[0] is frozen
    one, other = pickle.loads(pickle.dumps([frozen, stream]))
    assert other._made_from[0] is one
    frozen.label = "a"
    assert copy.copy(frozen).label == pickle.loads(pickle.dumps(frozen)).label == "a"


def test_what_a_stream_shows():
    stream = rk.LSTM(3, 5, 2, cell_clip=3.0, dtype="float64").stream(4)
    assert repr(stream) == (
        "<Stream of LSTM(3, 5, num_layers=2, cell_clip=3.0, dtype='float64'), batch_size=4>"
    )


def outputs(layer, frozen, stream, x):
    return layer(x)[0], frozen(x)[0], stream.run(x)


def test_layers_and_streams_go_to_other_processes():
    layer = rk.GRU(I, H, 2, dropout=0.5, seed=0)
    frozen, stream, x = layer.freeze(), layer.stream(B), x_of(layer)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        y, own, streamed = pool.apply(outputs, (layer, frozen, stream, x))
    assert np.array_equal(y, layer(x)[0])
    assert np.array_equal(own, y)
    assert np.array_equal(streamed, stream.run(x))


@pytest.mark.parametrize(
    "make",
    [
        rk.GRU,
        lambda *sizes: rk.GRU(*sizes).freeze(),
        lambda *sizes: rk.GRU(*sizes).stream(),
        rk.Linear,
        rk.Embedding,
        lambda *sizes: rk.Clip(*sizes),
    ],
)
def test_a_pickle_of_another_version_says_so(make, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(_core, "__version__", "0.0.9")
        saved = pickle.dumps(make(I, H))
    said = f"pickle: expected one of rnnkern {_core.__version__}, got one of rnnkern 0.0.9"
    with pytest.raises(ValueError, match=said):
        pickle.loads(saved)


def test_a_version_is_checked_before_all_else():
    """Another version may lack a class that the rest of a pickle names."""
    saved = pickle.dumps(rk.GRU(I, H), 2)
    saved = saved.replace(b"rnnkern.layers.base\nCell\n", b"rnnkern.layers.base\nCells\n")
    with pytest.raises(AttributeError, match="Cells"):
        pickle.loads(saved)
    version = _core.__version__.encode()
    with pytest.raises(ValueError, match="pickle: expected one of rnnkern"):
        pickle.loads(saved.replace(version, b"9" * len(version)))


def test_a_pickle_brings_no_more_than_the_package():
    """Loading needs neither what trains nor the reference."""
    gru = rk.GRU(I, H, seed=0)
    saved = pickle.dumps([gru, gru.freeze(), gru.stream()])
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=saved, capture_output=True, check=True
    )
    assert not {b"rnnkern.reference", b"rnnkern.optim"} & set(done.stdout.split())


def test_a_stack_is_made_anew():
    stack = rk.GRU(I, H)._stack
    assert isinstance(stack, pickles.LayerStack)
    assert copy.deepcopy(stack).parameter_shapes() == stack.parameter_shapes()
