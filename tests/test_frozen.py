"""Frozen layers: calls and streams whose weights were packed once.

Copies and pickles of them are in test_copies.py, hostile hosts in test_hostile.py.
"""

from __future__ import annotations

import itertools
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import (
    KINDS,
    in_each_dtype,
    make_layer,
    on_threads,
    parts,
    random_problem,
    sets,
)
from plan import plan_of

import rnnkern as rk

T, B, I, H = 12, 5, 6, 9
every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS = {
    "plain": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "residual": {"num_layers": 3, "residual": True, "dropout": 0.5},
    "batch first": {"batch_first": True, "bias": False},
}


def bits(result):
    """Of y, a state, and the list of every layer's h."""
    each = [tuple(value) if isinstance(value, list) else value for value in result]
    return [part.tobytes() for value in each for part in parts(value)]


@pytest.mark.parametrize("of", OPTIONS)
@in_each_dtype
@every_kind
def test_a_call_has_the_layers_bits(kind, dtype, of):
    layer = make_layer(kind, I, H, dtype=dtype, **OPTIONS[of])
    frozen = layer.freeze()
    p = random_problem(layer, T, B, lengths="random", resets=0.2)
    for lengths, resets in itertools.product((None, p.lengths), (None, p.resets)):
        want = layer(p.x, p.state, lengths, resets=resets)
        assert bits(frozen(p.x, p.state, lengths, resets=resets)) == bits(want)
    assert bits(frozen(p.x)) == bits(layer(p.x))
    alone = random_problem(layer, T)
    assert bits(frozen(alone.x, alone.state)) == bits(layer(alone.x, alone.state))
    for outputs, hiddens in (("last", False), ("all", True)):
        how = {"outputs": outputs, "hiddens": hiddens}
        want = layer(p.x, lengths=p.lengths, **how)
        assert bits(frozen(p.x, lengths=p.lengths, **how)) == bits(want)


@pytest.mark.parametrize("bidirectional", [False, True])
@every_kind
def test_an_ensemble(kind, bidirectional):
    layers = 1 if kind == "rg_lru" and bidirectional else 2
    layer = make_layer(kind, I, H, num_layers=layers, ensemble=3, bidirectional=bidirectional)
    frozen = layer.freeze()
    x = np.random.default_rng(0).normal(size=(T, 3, B, layer.input_size)).astype(np.float32)
    assert bits(frozen(x)) == bits(layer(x))
    assert bits(frozen(x[:, 0])) == bits(layer(x[:, 0]))
    with pytest.raises(ValueError, match="stream: expected a layer alone, got an ensemble"):
        frozen.stream()
    one = layer.member(1)
    assert bits(one.freeze()(x[:, 1])) == bits(one(x[:, 1]))


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (1, 1)])
@every_kind
def test_few_steps_and_rows(kind, shape):
    layer = make_layer(kind, I, H, num_layers=2)
    x = np.ones((*shape, layer.input_size), np.float32)
    assert bits(layer.freeze()(x)) == bits(layer(x))


@pytest.mark.parametrize("size", [(1, 48, 1), (150, 64, 2), (20, 48, 17)])
@every_kind
def test_threads_leave_no_trace(kind, size):
    steps, units, rows = size
    layer = make_layer(kind, 33, units, num_layers=4)
    frozen, p = layer.freeze(), random_problem(layer, steps, rows)
    want = bits(on_threads(1, layer, p.x, p.state))
    for threads in (1, 2, 3):
        assert bits(on_threads(threads, frozen, p.x, p.state)) == want


def test_the_sizes_above_reach_several_threads():
    layer = make_layer("lstm", 33, 64, num_layers=4)
    assert plan_of(layer, 150, 2, 2).shared == "layers"
    assert plan_of(make_layer("lstm", 33, 48, num_layers=4), 20, 17, 2).shared == "rows"


def test_many_python_threads_call_one():
    """Each has its own lengths and finds the bits of a call alone."""
    layer = make_layer("lstm", 16, 32, num_layers=2, bidirectional=True)
    frozen = layer.freeze()
    problems = [random_problem(layer, 30, 8, lengths="random", seed=i) for i in range(8)]
    want = [bits(layer(p.x, p.state, p.lengths)) for p in problems]

    def use(i):
        p = problems[i]
        return {tuple(bits(frozen(p.x, p.state, p.lengths))) for _ in range(40)}

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(8))) == [{tuple(one)} for one in want]


@every_kind
def test_it_is_a_snapshot(kind):
    layer = make_layer(kind, I, H, num_layers=2)
    p = random_problem(layer, T, B)
    frozen, want = layer.freeze(), bits(layer(p.x, p.state))
    for values in layer.params.values():
        values[...] = np.nan
    assert bits(frozen(p.x, p.state)) == want
    layer.params = {}
    assert bits(frozen(p.x, p.state)) == want
    gone = weakref.ref(layer)
    del layer, values
    assert gone() is None
    assert bits(frozen(p.x, p.state)) == want


@pytest.mark.skipif(len(sets()) < 2, reason=f"one instruction set here: {sets()}")
@every_kind
def test_it_keeps_its_instruction_set(kind):
    layer = make_layer(kind, I, H, num_layers=2)
    p = random_problem(layer, T, B)
    for own, other in itertools.permutations(sets(), 2):
        with rk.force_isa(own):
            want, frozen = bits(layer(p.x)), layer.freeze()
        with rk.force_isa(other):
            assert bits(frozen(p.x)) == want
            assert frozen.stream(B).run(p.x).tobytes() == want[0]


# ---- staleness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"ensemble": 2}])
@every_kind
def test_a_change_of_any_element_makes_it_stale(kind, options):
    layer = make_layer(kind, I, H, **options)
    frozen = layer.freeze()
    assert frozen.is_stale() is False
    for values in layer.params.values():
        for place in {0, values.size // 2, values.size - 1}:
            old = values.flat[place]
            values.flat[place] = np.nextafter(old, np.float32(np.inf), dtype=np.float32)
            assert frozen.is_stale() is True
            values.flat[place] = old
            assert frozen.is_stale() is False


def test_equal_arrays_are_not_stale():
    layer = make_layer("gru", I, H)
    frozen = layer.freeze()
    layer.params = {name: np.asfortranarray(p) for name, p in layer.params.items()}
    assert not frozen.is_stale()
    layer.params["bias_hh_l0"][:] = np.nan
    frozen = layer.freeze()
    assert not frozen.is_stale()
    layer.params["bias_hh_l0"][:] = 0.0
    frozen = layer.freeze()
    layer.params["bias_hh_l0"][:] = -0.0
    assert frozen.is_stale()


def test_a_layer_that_is_gone_or_wrong():
    layer = make_layer("gru", I, H)
    frozen = layer.freeze()
    layer.params = layer.params | {"bias_hh_l0": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"^params\['bias_hh_l0'\]: expected shape \(27,\), got"):
        frozen.is_stale()
    gone = weakref.ref(layer)
    del layer
    assert gone() is None
    with pytest.raises(RuntimeError, match="is_stale: expected the layer that was frozen, got non"):
        frozen.is_stale()


def test_stale_or_not_is_refused_as_a_call_is():
    layer = make_layer("gru", I, H)
    frozen = layer.freeze()
    params, x = layer.params, np.zeros((T, B, I), np.float32)
    less = {name: p for name, p in params.items() if name != "bias_hh_l0"}
    for wrong, said in [
        (less, "params['bias_hh_l0']: expected an array, got nothing"),
        (params | {"more": x}, "params: expected 4 arrays, got 5, of which more are no parameters"),
        (less | {"more": x}, "params['bias_hh_l0']: expected an array, got nothing, of which more"),
    ]:
        layer.params = wrong
        for use in (frozen.is_stale, lambda: layer(x), layer.state_dict, lambda: layer.copy()(x)):
            with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
                use()
    layer.params = params | {"weight_ih_l0": params["weight_ih_l0"] + 1, "bias_hh_l0": x}
    with pytest.raises(ValueError, match=r"^params\['bias_hh_l0'\]: expected shape"):
        frozen.is_stale()  # although an array before it has changed


# ---- streams -----------------------------------------------------------------------------------


@every_kind
def test_streams_have_the_layers_bits(kind):
    layer = make_layer(kind, I, H, num_layers=2)
    p = random_problem(layer, T, B)
    frozen = layer.freeze()
    want = layer(p.x)[0].tobytes()
    streams = [frozen.stream(B), rk.Stream(frozen, B), layer.stream(B)]
    for values in layer.params.values():
        values[...] = np.nan
    del frozen
    assert {one.run(p.x).tobytes() for one in streams} == {want}


def test_streams_share_the_packed_weights():
    layer = rk.LSTM(256, 256, seed=0)
    rk.release_memory()
    weights = sum(p.nbytes for p in layer.params.values())
    frozen = layer.freeze()
    assert rk.release_memory() == 0
    streams = [frozen.stream() for _ in range(3)]
    one = frozen.stream()
    del one
    room = rk.release_memory()  # of a stream alone
    assert room < weights / 3
    del frozen
    assert rk.release_memory() == 0
    del streams
    assert weights <= rk.release_memory() - 3 * room < 1.1 * weights


def test_a_stream_of_two_directions_is_refused_before_anything_is_packed(monkeypatch):
    layer = make_layer("gru", I, H, bidirectional=True)
    said = "stream: expected a layer of one direction, got a bidirectional one"
    with pytest.raises(ValueError, match=said):
        layer.freeze().stream()
    monkeypatch.setattr(rk.Frozen, "__init__", None)
    with pytest.raises(ValueError, match=said):
        layer.stream()


# ---- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, "gru", rk.Linear(3, 4), rk.GRU, rk.GRU(3, 4).freeze()])
def test_what_is_no_layer_is_refused(wrong):
    with pytest.raises(TypeError, match="layer: expected a recurrent layer, got "):
        rk.Frozen(wrong)
    if not isinstance(wrong, rk.Frozen):
        with pytest.raises(TypeError, match="frozen: expected a Frozen, got "):
            rk.Stream(wrong)


@pytest.mark.parametrize("use", [lambda layer: layer.freeze(), lambda layer: layer.stream()])
def test_wrong_parameters_are_named(use):
    layer = rk.GRU(I, H)
    good = layer.params
    for wrong, error, said in (
        (good | {"bias_hh_l0": np.zeros(3, np.float32)}, ValueError, r"expected shape \(27,\)"),
        (good | {"bias_hh_l0": [0.0]}, TypeError, "expected an array of dtype float32, got list"),
        ({n: p for n, p in good.items() if n != "bias_hh_l0"}, ValueError, "expected an array, go"),
    ):
        layer.params = wrong
        with pytest.raises(error, match=rf"params\['bias_hh_l0'\]: {said}"):
            use(layer)
    layer.params = good | {"more": np.zeros(1, np.float32)}
    with pytest.raises(ValueError, match="params: expected 4 arrays, got 5, of which more are no"):
        use(layer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"x": np.ones((T, B, I))}, "x: expected an array of dtype float32, got float64 (write"),
        ({"x": np.ones((T, B, I + 1), np.float32)}, "x: expected shape (T, B, 6), got (12, 5, 7)"),
        ({"state": np.ones((1, B, 2), np.float32)}, "state: expected shape (1, 5, 9), got (1, 5, "),
        ({"lengths": np.array([T + 1] * B)}, "lengths: expected values from 0 to T = 12, got 13"),
        ({"resets": np.ones((T, B))}, "resets: expected an array of booleans, got float64"),
        ({"outputs": "first"}, "outputs: expected one of all, last, got 'first'"),
        ({"hiddens": 1}, "hiddens: expected True or False, got int"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    layer = make_layer("gru", I, H)
    frozen = layer.freeze()
    x = np.ones((T, B, I), np.float32)
    want = bits(frozen(x))
    for one in (frozen, layer):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(said)}"):
            one(**{"x": x, **arguments})
    assert bits(frozen(x)) == want


def test_a_second_construction_is_refused_and_changes_nothing():
    layer, other = make_layer("gru", I, H), make_layer("lstm", I, H)
    frozen = layer.freeze()
    with pytest.raises(TypeError, match="Frozen: expected a new object, got one that is construct"):
        frozen.__init__(other)
    x = np.ones((T, B, I), np.float32)
    assert bits(frozen(x)) == bits(layer(x))


def test_what_is_shown():
    frozen = rk.LSTM(3, 5, 2, dropout=0.5, seed=7).freeze()
    of = "LSTM(3, 5, num_layers=2, dropout=0.5, seed=7)"
    assert repr(frozen) == repr(pickle.loads(pickle.dumps(frozen))) == f"<Frozen of {of}>"
