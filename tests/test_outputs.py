"""What a call for inference hands out: all outputs, the last ones alone, every layer's h."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import (
    KINDS,
    LOOPS,
    in_each,
    in_each_dtype,
    make_layer,
    on_threads,
    parts,
    random_problem,
)
from plan import plan_of

import rnnkern as rk

T, B, I, H = 12, 6, 5, 9
every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS = {
    "one layer": {},
    "deep": {"num_layers": 3},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "residual": {"num_layers": 3, "residual": True},
    "residual, both directions": {"num_layers": 3, "residual": True, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True},
}
LENGTHS = (None, [12, 0, 3, 12, 1, 7], [0] * 6, [5] * 6)


def bits(values):
    return [part.tobytes() for value in values for part in parts(value)]


def last_of(y, lengths, P):
    """Of the outputs (T, B, D*P), each row's last ones."""
    last = np.zeros(y.shape[1:], y.dtype)
    for b, length in enumerate(lengths):
        if length:
            last[b, :P], last[b, P:] = y[length - 1, b, :P], y[0, b, P:]
    return last


@pytest.mark.parametrize("of", OPTIONS)
@in_each_dtype
@every_kind
def test_the_last_outputs_are_those_of_all(kind, dtype, of):
    layer = make_layer(kind, I, H, dtype=dtype, **OPTIONS[of])
    p = random_problem(layer, T, B, resets=0.2)
    for lengths, resets in itertools.product(LENGTHS, (None, p.resets)):
        given = p.x, p.state, lengths if lengths is None else np.array(lengths)
        y, state = layer(*given, resets=resets)
        last, own = layer(*given, resets=resets, outputs="last")
        all_steps = y.swapaxes(0, 1) if layer.batch_first else y
        want = last_of(all_steps, lengths or [T] * B, layer.output_size)
        assert last.flags.c_contiguous
        assert last.dtype == dtype
        assert last.tobytes() == want.tobytes()
        assert bits([own]) == bits([state])


@in_each("threads", [2, 3])
@pytest.mark.parametrize("size", [(150, 33, 2), (20, 49, 17), (60, 193, 1)])
@in_each("of", OPTIONS)
@pytest.mark.parametrize("kind", LOOPS)
def test_threads_leave_no_trace(kind, of, size, threads):
    steps, units, rows = size
    layer = make_layer(kind, 17, units, **OPTIONS[of])
    p = random_problem(layer, steps, rows, lengths="random")
    for lengths in (None, p.lengths):
        want = on_threads(1, layer, p.x, p.state, lengths, outputs="last")
        got = on_threads(threads, layer, p.x, p.state, lengths, outputs="last")
        assert bits(got) == bits(want)


def test_the_sizes_above_reach_each_way_of_sharing():
    def shared(of, size):
        steps, units, rows = size
        return plan_of(make_layer("lstm", 17, units, **OPTIONS[of]), steps, rows, 2).shared

    assert shared("residual", (150, 33, 2)) == "layers"
    assert shared("deep", (20, 49, 17)) == "rows"
    assert shared("both directions", (20, 49, 17)) == "directions"
    assert shared("one layer", (60, 193, 1)) == "units"


@pytest.mark.parametrize("of", OPTIONS)
@every_kind
def test_each_layers_h_is_the_tapes(kind, of):
    layer = make_layer(kind, I, H, **OPTIONS[of])
    p = random_problem(layer, T, B, resets=0.2)
    quiet = layer.copy()
    quiet._draws_noise = False  # as in calling the layer
    for lengths, resets in itertools.product(LENGTHS, (None, p.resets)):
        given = p.x, p.state, lengths if lengths is None else np.array(lengths)
        want = layer(*given, resets=resets)
        y, state, hiddens = layer(*given, resets=resets, hiddens=True)
        assert bits([y, state]) == bits(want)
        _, _, tape = quiet.forward(*given, resets=resets)
        steps_first = [h.swapaxes(0, 1) if layer.batch_first else h for h in hiddens]
        assert bits(steps_first) == bits(tape.hiddens)
        assert (hiddens[-1] is y) != layer.residual
        assert all(h.shape == y.shape for h in hiddens)


@every_kind
def test_members_of_ensembles(kind):
    layer = make_layer(kind, I, H, num_layers=2, residual=True, ensemble=3)
    x = np.random.default_rng(0).normal(size=(T, 3, B, layer.input_size)).astype(np.float32)
    lengths = np.array(LENGTHS[1])
    last, _ = layer(x, lengths=lengths, outputs="last")
    y, _, hiddens = layer(x, lengths=lengths, hiddens=True)
    assert last.shape == (3, B, layer.output_size)
    for e in range(3):
        one = layer.member(e)
        assert last[e].tobytes() == one(x[:, e], lengths=lengths, outputs="last")[0].tobytes()
        want, _, each = one(x[:, e], lengths=lengths, hiddens=True)
        assert bits([y[:, e], *(h[:, e] for h in hiddens)]) == bits([want, *each])


@pytest.mark.parametrize("bidirectional", [False, True])
@every_kind
def test_one_row_without_a_batch(kind, bidirectional):
    layer = make_layer(kind, I, H, bidirectional=bidirectional)
    p = random_problem(layer, T)
    y, _ = layer(p.x, p.state)
    last, _ = layer(p.x, p.state, outputs="last")
    assert last.shape == y.shape[1:]
    assert last.tobytes() == last_of(y[:, None], [T], layer.output_size)[0].tobytes()
    _, _, hiddens = layer(p.x, p.state, hiddens=True)
    assert bits(hiddens) == bits([y])


@pytest.mark.parametrize("of", OPTIONS)
@pytest.mark.parametrize("lengths", [False, True])
@every_kind
def test_no_steps_and_no_rows(kind, of, lengths):
    layer = make_layer(kind, I, H, **OPTIONS[of])
    D = 1 + layer.bidirectional
    for steps, rows in ((0, 3), (4, 0), (0, 0)):
        p = random_problem(layer, steps, rows)
        given = p.x, p.state, np.zeros(rows, int) if lengths else None
        last, state = layer(*given, outputs="last")
        assert last.shape == (rows, D * layer.output_size)
        assert not last.any()
        assert bits([state]) == bits([p.state])
        assert all(h.shape[-1] == last.shape[-1] for h in layer(*given, hiddens=True)[2])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_last_outputs_take_no_memory_for_the_others(num_layers):
    layer = rk.GRU(8, 64, num_layers, seed=0)
    x = np.ones((2000, 8, 8), np.float32)

    def used(**how):
        rk.release_memory()
        result = layer(x, **how)
        size = result[0].nbytes
        del result
        return rk.release_memory(), size

    with rk.num_threads(1):
        (every, y), (last, _) = used(), used(outputs="last")
    assert y == 2000 * 8 * 64 * 4
    assert every - last >= y
    assert last < (num_layers - 1) * y + y / 2  # what stands between two layers, and little more


def test_all_is_the_default():
    layer = make_layer("gru", I, H)
    x = random_problem(layer, T, B).x
    assert bits(layer(x, outputs="all", hiddens=False)) == bits(layer(x))
    assert bits(layer(x, outputs="".join(["a", "ll"]))) == bits(layer(x))  # another object
    assert bits(layer(x, hiddens=np.True_)[2]) == bits([layer(x)[0]])


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"outputs": "first"}, ValueError, "outputs: expected one of all, last, got 'first'"),
        ({"outputs": None}, TypeError, "outputs: expected one of all, last, got NoneType"),
        ({"outputs": np.ones(3)}, TypeError, "outputs: expected one of all, last, got ndarray"),
        ({"hiddens": 1}, TypeError, "hiddens: expected True or False, got int"),
        ({"hiddens": None}, TypeError, "hiddens: expected True or False, got NoneType"),
        (
            {"outputs": "last", "hiddens": True},
            ValueError,
            "outputs: expected 'all' with hiddens=True, got 'last'",
        ),
    ],
)
def test_wrong_options_are_named(how, error, said):
    layer = make_layer("gru", I, H)
    with pytest.raises(error, match=f"^{said}$"):
        layer(random_problem(layer, T, B).x, **how)
