"""Every cell against the reference: outputs, states, tapes and gradients, over sizes, options,
instruction sets, threads and clips."""

from __future__ import annotations

import threading
from functools import cache
from itertools import count, product

import numpy as np
import pytest
from helpers import (
    DTYPES,
    KINDS,
    LOOPS,
    Problem,
    assert_close,
    assert_same,
    both_ways,
    each_half,
    forced_grid,
    handed_through,
    in_each,
    in_each_dtype,
    in_each_set,
    in_half,
    is_elementwise,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
    sets,
    wide,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from plan import constant, plan_of

import rnnkern as rk
from rnnkern.diagnose.common import cell_of, vectors_of
from rnnkern.reference import CELLS

each_kind = pytest.mark.parametrize("kind", KINDS)
each_loop = pytest.mark.parametrize("kind", LOOPS)

ODD = (1, 7, 15, 17, 33, 65)
CLIPS = {"step_value": 0.02, "step_norm": 0.3, "value": 0.2, "max_norm": 0.5}


@cache  # the instruction sets and thread counts share a case's reference
def case(kind, I, H, T, B, *, lengths=None, state=True, clip=None, **options):
    layer = make_layer(kind, I, H, **options)
    problem = random_problem(layer, T, B, state=state, lengths=lengths)
    return layer, problem, run_reference(layer, problem, clip)


def run(layer, problem, clip=None, threads=1):
    y, state, tape = on_threads(threads, problem.forward, layer)
    return y, state, on_threads(threads, problem.backward, layer, tape, clip)


def flat(result):
    """All arrays and numbers of (y, state, grads)."""
    y, state, grads = result
    arrays = [y, *parts(state), *grads.params.values(), grads.x, *parts(grads.state)]
    return [*arrays, np.array([grads.norm, grads.scale, grads.finite])]


def same_bits(a, b):
    return all(p.tobytes() == q.tobytes() for p, q in zip(flat(a), flat(b), strict=True))


def check(layer, problem, want, clip=None, threads=1, chain=10_000):
    assert_same(layer, run(layer, problem, clip, threads), want, chain)
    y, state = on_threads(threads, layer, problem.x, problem.state, problem.lengths)
    want_y, want_state = want.inferred
    assert_close(y, want_y, layer.dtype, "y of inference", chain)
    for got, expected in zip(parts(state), parts(want_state), strict=True):
        assert_close(got, expected, layer.dtype, "state of inference", chain)


# ------------------------------------------------------------------------------------- options


@in_each_set
@each_loop
@each_half
@in_each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_option_with_every_other(isa, kind, half, dtype, bidirectional, num_layers):
    layouts = ({"B": 3}, {"B": 3, "batch_first": True}, {"B": 3, "lengths": "random"}, {"B": None})
    for bias, state, (i, layout) in product([True, False], [True, False], enumerate(layouts)):
        places = (bias, state, i, dtype is np.float64, bidirectional, num_layers)
        if not in_half(half, *places, LOOPS.index(kind), sets().index(isa)):
            continue
        options = {"dtype": dtype, "bidirectional": bidirectional, "num_layers": num_layers}
        with rk.force_isa(isa):
            check(*case(kind, 5, 7, 4, bias=bias, state=state, **layout, **options))


@in_each_set
@each_kind
@each_half
@in_each_dtype
@pytest.mark.parametrize("H", ODD)
def test_odd_sizes(isa, kind, half, dtype, H):
    for i, (I, B) in enumerate(((1, 1), (7, 5), (15, 2), (17, 1), (33, 9), (65, 3))):
        places = dtype is np.float64, ODD.index(H), i, KINDS.index(kind), sets().index(isa)
        if not in_half(half, *places):
            continue
        with rk.force_isa(isa):
            check(*case(kind, I, H, 3, B, dtype=dtype, num_layers=2, bidirectional=I > 15))


@in_each_set
@each_kind
@in_each_dtype
@pytest.mark.parametrize(("T", "B"), [(0, 3), (2, 0), (0, 0), (0, None)])
@in_each("num_layers", [1, 2])
def test_no_steps_or_no_rows(isa, kind, dtype, T, B, num_layers):
    with rk.force_isa(isa):
        for bidirectional in (False, True):
            options = {"num_layers": num_layers, "bidirectional": bidirectional, "dtype": dtype}
            check(*case(kind, 2, 3, T, B, **options))


_bounds = {name: st.floats(0.01, 2.0) for name in CLIPS}


@given(data=st.data())
def test_any_shape_and_options(data):
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    # A float32 sum that falls on the other side of 0 than the float64 one has another slope. Over
    # shapes that Hypothesis is free to choose, one in some thousand does.
    assume(kind != "rnn_relu" or dtype == np.float64)
    clip = rk.Clip(**data.draw(st.fixed_dictionaries({}, optional=_bounds)))
    layer = make_layer(
        kind,
        data.draw(st.integers(1, 40), "I"),
        data.draw(st.integers(1, 40), "H"),
        num_layers=data.draw(st.integers(1, 3), "L"),
        bias=data.draw(st.booleans(), "bias"),
        bidirectional=data.draw(st.booleans(), "bidirectional"),
        batch_first=data.draw(st.booleans(), "batch_first"),
        dtype=dtype,
    )
    T, B = data.draw(st.integers(0, 9), "T"), data.draw(st.none() | st.integers(0, 9), "B")
    lengths = None
    if B is not None and data.draw(st.booleans(), "padded"):
        lengths = np.array(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)), int)
    problem = random_problem(layer, T, B, state=data.draw(st.booleans(), "state"), lengths=lengths)
    want = run_reference(layer, problem, clip)
    isa, threads = data.draw(st.sampled_from(sets())), data.draw(st.integers(1, 4), "threads")
    with rk.force_isa(isa):
        check(layer, problem, want, clip, threads)


# -------------------------------------------------------------------------- chunks and threads


def three_chunks(layer, B, threads=1):
    """Steps of three chunks at least, the last not full, in forward and in backward.

    They are enough for so many threads.
    """
    chunks = plan_of(layer, 10**6, B)
    sizes = chunks.forward_chunk, chunks.backward_chunk
    return next(
        T
        for T in count(2 * max(sizes) + 1)
        if all(n == 1 or T % n for n in sizes) and plan_of(layer, T, B, threads).threads == threads
    )


@in_each_set
@each_loop
@each_half
@in_each("lengths", [None, "random"])
@pytest.mark.parametrize(
    ("H", "B", "num_layers"),
    [
        pytest.param(65, 40, 2, id="several-steps"),
        pytest.param(17, 600, 1, id="one-step"),
    ],
)
def test_chunks_of_steps(isa, kind, half, lengths, H, B, num_layers):
    places = LOOPS.index(kind), lengths == "random", num_layers, sets().index(isa)
    dtype = DTYPES[in_half(half, *places)]
    options = {"dtype": dtype, "num_layers": num_layers, "bidirectional": True}
    layer = make_layer(kind, 9, H, **options)
    T = three_chunks(layer, B)
    chunks = plan_of(layer, T, B)
    assert (chunks.backward_chunk == 1) == (num_layers == 1)
    assert 2 * chunks.forward_chunk < T
    with rk.force_isa(isa):
        check(*case(kind, 9, H, T, B, lengths=lengths, **options), chain=10_000 + T * B)


@in_each_set
@each_kind
@in_each_dtype
def test_more_units_than_backward_sums_at_once(isa, kind, dtype):
    H = constant("core/recurrence/backward.h", "units_at_once") + 9
    with rk.force_isa(isa):
        check(*case(kind, 7, H, 3, 5, dtype=dtype))


@pytest.mark.parametrize("threads", [1, 2])
@each_loop
@in_each_dtype
def test_a_long_sequence_through_layers_side_by_side(kind, dtype, threads):
    layer, *problem = case(kind, 4, wide(kind, 33), 200, 3, dtype=dtype, num_layers=2)
    several = "units" if is_elementwise(kind) else "layers"  # without barriers units are cheaper
    assert plan_of(layer, 200, 3, threads).shared == (several if threads == 2 else "nothing")
    check(layer, *problem, threads=threads)


@in_each_set
@each_loop
@in_each_dtype
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_that_share_rows(isa, kind, dtype, threads, bidirectional):
    I, H, T, B = 17, 33, 7, 4 * threads + 1
    options = {"dtype": dtype, "bidirectional": bidirectional}
    layer = make_layer(kind, I, H, **options)
    shared = "directions" if bidirectional and threads == 2 else "rows"
    with rk.force_isa(isa), forced_grid(threads, threads):
        found = plan_of(layer, T, B, threads)
        assert (found.threads, found.shared) == (threads, shared)
        for lengths in (None, "random"):
            check(*case(kind, I, H, T, B, lengths=lengths, **options), threads=threads)


@in_each_set
@each_loop
@in_each_dtype
@pytest.mark.parametrize(("threads", "B"), [(2, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_that_share_units(isa, kind, dtype, threads, B, bidirectional):
    H, T = 49, 7
    options = {"dtype": dtype, "bidirectional": bidirectional, "num_layers": 2}
    layer, *problem = case(kind, 9, H, T, B, **options)
    shared = "directions" if bidirectional and threads == 2 else "units"
    with rk.force_isa(isa), forced_grid(threads, 1):
        found = plan_of(layer, T, B, threads)
        assert (found.threads, found.shared) == (threads, shared)
        check(layer, *problem, threads=threads)


# ------------------------------------------------------------------------- what a tape holds


@in_each_set
@each_kind
@in_each_dtype
@pytest.mark.parametrize("lengths", [None, "random"])
def test_tape_holds_what_the_reference_saves(isa, kind, dtype, lengths):
    options = {"num_layers": 2, "bidirectional": True, "dtype": dtype, "lengths": lengths}
    layer, problem, want = case(kind, 5, 7, 6, 4, **options)
    with rk.force_isa(isa):
        *_, tape = problem.forward(layer)
    T, B, H, P, G, L = 6, 4, 7, layer.output_size, CELLS[kind].gates, layer.num_layers
    hiddens = np.zeros((L, T, B, 2, P))
    carried = len(CELLS[kind].states) - 1
    cells = np.zeros((2 * L, T, B, carried, H))
    gates = np.zeros((2 * L, T, B, G, H))
    also = np.zeros((2 * L, T, B, len(CELLS[kind].also_saved), H))
    for k, steps in enumerate(want.tape.steps):
        direction = f"l{k // 2}" + "_reverse" * (k % 2)
        for s in steps:
            hiddens[k // 2, s.t, s.rows, k % 2] = s.new[0]
            cells[k, s.t, s.rows] = np.stack((*s.new[1:],), axis=1) if carried else 0.0
            gates[k, s.t, s.rows] = s.gates.reshape(-1, G, H)
            p = {
                name.removesuffix(f"_{direction}"): values.astype(float)
                for name, values in layer.params.items()
            }
            if CELLS[kind].also_saved == ("q",):  # W_hn h' + b_hn
                also[k, s.t, s.rows, 0] = s.prev[0] @ p["weight_hh"][-H:].T + p["bias_hh"][-H:]
            if kind == "rg_lru":  # the factors of h' and of i x
                r = s.gates[:, :H]
                also[k, s.t, s.rows, 0] = (1 + np.exp(p["lambda"])) ** (-8 * r)
                also[k, s.t, s.rows, 1] = np.sqrt(1 - also[k, s.t, s.rows, 0] ** 2)
            if kind == "slstm":  # sigmoid(-a_f)
                assert layer.heads == 1
                a = s.x @ p["weight_ih"].T + s.prev[0] @ p["weight_hh"].T + p["bias_ih"]
                also[k, s.t, s.rows, 0] = 1 / (1 + np.exp(a[:, H : 2 * H]))
            if kind.startswith("min_lstm"):  # 1 - sigmoid(a_f)
                a_f = s.x @ p["weight_ih"][:H].T + p["bias_ih"][:H]
                also[k, s.t, s.rows, 0] = 1 / (1 + np.exp(a_f))

    assert_close(np.array(tape.hiddens), hiddens.reshape(L, T, B, 2 * P), dtype, "hiddens")
    cell = cell_of(layer)
    # These save what their gates are made of: the arguments, or the products under layer norm.
    if "activations" in cell.options or "gain_ih_l0" in layer.params:
        for k, (steps, saved) in enumerate(zip(want.tape.steps, tape.gates, strict=True)):
            for s in steps:
                there = saved[s.t, s.rows].astype(np.float64)
                saved_by_name = {name: there[:, i] for i, name in enumerate(cell.saved)}
                values = cell.values(saved_by_name, vectors_of(layer, k // 2, k % 2))
                for g, gate in enumerate(cell.gate_table):
                    assert_close(values[gate.name], gates[k, s.t, s.rows, g], dtype, gate.name)
    elif cell.saved:
        saved = np.concatenate([gates, also], axis=3)
        assert_close(np.array(tape.gates), saved, dtype, "gates")
    else:  # whose gates are its outputs
        assert tape.gates == []
    if carried:  # one state has no axis of states
        expected = cells[:, :, :, 0] if carried == 1 else cells
        assert_close(np.array(tape.cells), expected, dtype, "cells")
    else:
        assert tape.cells == []


@each_kind
def test_a_tape_used_twice_gives_the_same_bits(kind):
    layer, problem, _ = case(kind, 5, 17, 6, 3, num_layers=2, lengths="random")
    y, state, tape = problem.forward(layer)
    first, second = problem.backward(layer, tape), problem.backward(layer, tape)
    assert same_bits((y, state, first), (y, state, second))


@each_kind
def test_two_tapes_alive_at_once(kind):
    layer = make_layer(kind, 5, 17, num_layers=2)
    problems = [random_problem(layer, T, B, seed=T) for T, B in ((6, 3), (4, 8))]
    runs = [p.forward(layer) for p in problems]
    for problem, (y, state, tape) in zip(problems, runs, strict=True):
        assert same_bits((y, state, problem.backward(layer, tape)), run(layer, problem))


@each_kind
@pytest.mark.parametrize("threads", [1, 2])
def test_backward_from_another_thread(kind, threads):
    T, B = 60, 9
    layer, problem, _ = case(kind, 17, wide(kind, 65), T, B)
    assert plan_of(layer, T, B, threads).threads == threads
    results = []
    want = run(layer, problem, threads=threads)
    y, state, tape = problem.forward(layer)
    with rk.num_threads(threads):
        worker = threading.Thread(target=lambda: results.append(problem.backward(layer, tape)))
        worker.start()
        worker.join()
    assert same_bits((y, state, *results), want)


@each_kind
def test_a_tape_outlives_what_it_was_made_from(kind):
    layer, problem, _ = case(kind, 5, 7, 4, 3)
    want = run(layer, problem)
    own = problem.but(state=joined([s.copy() for s in parts(problem.state)]))
    y, state, tape = own.forward(layer)
    for array in (*parts(own.state), *parts(state)):
        array[:] = 99.0  # copied by the tape, or not needed by it
    with pytest.raises(ValueError, match="read-only"):
        y[:] = 99.0  # needed by it
    kept = y.copy()
    del y, state, own
    grads = problem.backward(layer, tape)
    assert same_bits((kept, want[1], grads), want)


# -------------------------------------------------------------------------------- arguments


@each_kind
def test_what_is_not_given_is_zeros_or_fresh_or_whole(kind):
    layer, problem, _ = case(kind, 5, 7, 4, 3, num_layers=2, bidirectional=True)

    def zeros(state):
        return joined([np.zeros_like(s) for s in parts(state)])

    def fresh(state):
        of = CELLS[kind].states
        return joined([np.full_like(s, i.fresh) for s, i in zip(parts(state), of, strict=True)])

    full = np.full(3, 4)
    for left_out, given_ in (
        ({"dy": None}, {"dy": np.zeros_like(problem.dy)}),
        ({"dstate": None}, {"dstate": zeros(problem.dstate)}),
        ({"state": None}, {"state": fresh(problem.state)}),
        ({"lengths": None}, {"lengths": full}),
    ):
        results = [run(layer, problem.but(**change)) for change in (left_out, given_)]
        # Equal, not the same bits: 0 + -0 is 0.
        assert all(np.array_equal(a, b) for a, b in zip(*map(flat, results), strict=True))
    nothing = problem.but(dy=None, dstate=None)
    assert all(not g.any() for g in run(layer, nothing)[2].params.values())


@each_kind
@in_each_dtype
def test_any_strides_and_alignment(kind, dtype):
    layer, problem, _ = case(kind, 5, 7, 4, 3, dtype=dtype, num_layers=2)
    want = run(layer, problem)

    def every_other(a):
        room = np.full([2 * n for n in a.shape], np.nan, dtype)
        view = room[tuple(slice(None, None, 2) for _ in a.shape)]
        view[:] = a
        return view

    def backwards(a):
        return a[::-1, ::-1].copy()[::-1, ::-1]

    def transposed(a):
        return a.swapaxes(0, 1).copy().swapaxes(0, 1)

    def misaligned(a):  # by one element: a vector's load starts where no vector may
        room = np.empty(a.size + 1, dtype)
        room[1:] = a.ravel()
        return room[1:].reshape(a.shape)

    for change in (every_other, backwards, transposed, misaligned):
        states = [
            tuple(map(change, s)) if isinstance(s, tuple) else change(s)
            for s in (problem.state, problem.dstate)
        ]
        other = Problem(change(problem.x), states[0], None, change(problem.dy), states[1])
        assert same_bits(run(layer, other), want), change.__name__


@each_kind
def test_what_lies_behind_a_rows_end_is_not_read(kind):
    layer, problem, _ = case(kind, 5, 7, 6, 4, num_layers=2, bidirectional=True, lengths="random")
    behind = np.arange(6)[:, None] >= problem.lengths
    assert behind.any()
    x, dy = problem.x.copy(), problem.dy.copy()
    x[behind] = dy[behind] = np.nan
    result = run(layer, problem.but(x=x, dy=dy))
    assert same_bits(result, run(layer, problem))
    y, _, grads = result
    assert not y[behind].any()
    assert not grads.x[behind].any()


@each_kind
def test_a_row_of_length_0_hands_its_state_through(kind):
    layer, problem, _ = case(kind, 5, 7, 6, 4, num_layers=2, bidirectional=True)
    _, state, grads = run(layer, problem.but(lengths=np.array([3, 0, 6, 0])))
    for last, first in zip(parts(state), parts(problem.state), strict=True):
        assert np.array_equal(last[:, [1, 3]], first[:, [1, 3]])
        assert not np.array_equal(last[:, [0, 2]], first[:, [0, 2]])
    for first, last in zip(parts(grads.state), handed_through(layer, problem.dstate), strict=True):
        assert np.array_equal(first[:, [1, 3]], last[:, [1, 3]])


# ------------------------------------------------------------------------------------- clips

every_clip = pytest.mark.parametrize("names", [[n] for n in CLIPS] + [list(CLIPS)], ids="+".join)


@in_each_set
@each_kind
@in_each_dtype
@every_clip
def test_a_clip_does_what_the_reference_says(isa, kind, dtype, names):
    clip = rk.Clip(**{name: CLIPS[name] for name in names})
    options = {"num_layers": 2, **both_ways(kind), "dtype": dtype, "lengths": "random"}
    layer, problem, want = case(kind, 9, 17, 7, 5, clip=clip, **options)
    with rk.force_isa(isa):
        clipped, free = run(layer, problem, clip), run(layer, problem)
        huge = run(layer, problem, rk.Clip(**dict.fromkeys(names, 1e30)))
    assert_same(layer, clipped, want)
    assert same_bits(huge, free)
    clipped, free = clipped[2], free[2]
    for name, g in clipped.params.items():
        before = free.params[name]
        # Those of few elements can have gradients that are all within the bound.
        few = name.startswith(("weight_ch", "gain", "bias_c"))
        within = few and names == ["value"] and np.abs(before).max() <= CLIPS["value"]
        # What reaches the last layer's lambda does not come through a gate's argument.
        passes = name == "lambda_l1" and names == ["step_value"]
        assert np.array_equal(g, before) == (within or passes), name
    # The step clips act on what goes on in time, the others on the parameters' gradients alone.
    table = CELLS[kind].states
    for array, before, of in zip(parts(clipped.state), parts(free.state), table, strict=True):
        if not of.flows:
            assert not array.any()
        elif "step_value" in names:
            assert not np.array_equal(array, before)
        elif "step_norm" not in names:
            assert np.array_equal(array, before)
    assert np.array_equal(clipped.x, free.x) == (not {"step_value", "step_norm"} & set(names))
    assert (clipped.norm == free.norm) == (names == ["max_norm"])
    assert (clipped.scale < 1.0) == ("max_norm" in names)


@in_each_set
@each_kind
@in_each_dtype
def test_clips_in_chunks_on_threads(isa, kind, dtype):
    I, H, B = 9, 17, 100
    layer = make_layer(kind, I, H, dtype=dtype)
    T = three_chunks(layer, B, threads=2)
    assert plan_of(layer, T, B).backward_chunk > 1
    clip = rk.Clip(**CLIPS)
    layer, problem, want = case(kind, I, H, T, B, clip=clip, dtype=dtype, lengths="random")
    for threads in (1, 2):
        with rk.force_isa(isa):
            check(layer, problem, want, clip, threads, chain=10_000 + T * B)


@in_each_set
@each_kind
@in_each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_step_norm_with_shared_units(isa, kind, dtype, bidirectional):
    # A row's norm runs over units that several threads hold.
    H, T, B = 49, 7, 2
    clip = rk.Clip(step_norm=0.3)
    options = {"clip": clip, "dtype": dtype, "bidirectional": bidirectional, "lengths": "random"}
    layer, problem, want = case(kind, 9, H, T, B, **options)
    for threads in (1, 2, 3):
        shared = "nothing" if threads == 1 else "units"
        with rk.force_isa(isa), forced_grid(threads, 1):
            found = plan_of(layer, T, B, threads)
            assert found.shared == ("directions" if bidirectional and threads == 2 else shared)
            check(layer, problem, want, clip, threads)


@each_kind
def test_step_clips_bound_what_they_name(kind):
    layer, problem, _ = case(kind, 5, 7, 6, 3)
    # dL/dW_ih of one row and step is da x^T: with x = 1 each element is a da of the step clip.
    one = random_problem(layer, 1, 1).but(x=np.ones((1, 1, layer.input_size), np.float32))
    free, clipped = (run(layer, one, c)[2] for c in (None, rk.Clip(step_value=0.05)))
    da, limited = (g.params["weight_ih_l0"][:, 0] for g in (free, clipped))
    if "gain_ih_l0" in layer.params:  # layer norm comes between: da is the bias's gradient
        da, limited = (g.params["bias_ih_l0"] for g in (free, clipped))
    assert np.abs(da).max() > 0.05
    assert np.abs(limited).max() == np.float32(0.05)
    # The initial h gets what the first step handed back.
    grads = run(layer, problem, rk.Clip(step_norm=0.02))[2]
    assert np.linalg.norm(parts(grads.state)[0], axis=-1).max() == pytest.approx(0.02, rel=1e-5)


@each_kind
def test_value_and_norm_bound_what_they_name(kind):
    layer, problem, _ = case(kind, 5, 7, 6, 3, dtype=np.float64)

    def joint(grads):
        return np.sqrt(sum((g**2).sum() for g in grads.params.values()))

    valued = run(layer, problem, rk.Clip(value=0.1))[2]
    assert max(np.abs(g).max() for g in valued.params.values()) == 0.1
    assert valued.norm == pytest.approx(joint(valued), rel=1e-12)
    assert valued.scale == 1.0
    normed = run(layer, problem, rk.Clip(max_norm=0.1))[2]
    assert joint(normed) == pytest.approx(0.1, rel=1e-5)  # 1e-6 in the divisor
    assert normed.scale == pytest.approx(0.1 / (normed.norm + 1e-6), rel=1e-12)


# ---------------------------------------------------------------------------- what is not finite


@in_each_set
@each_kind
@in_each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_and_stays_in_its_row(isa, kind, dtype, value):
    layer, problem, _ = case(kind, 5, 7, 6, 4, dtype=dtype)
    x = problem.x.copy()
    x[2, 1, 3] = value
    with rk.force_isa(isa):
        clean = run(layer, problem)
        y, state, grads = run(layer, problem.but(x=x))
    assert clean[2].finite
    assert not grads.finite
    others = [0, 2, 3]
    assert np.array_equal(y[:, others], clean[0][:, others])
    assert np.array_equal(grads.x[:, others], clean[2].x[:, others])
    assert np.array_equal(y[:2, 1], clean[0][:2, 1])
    with np.errstate(all="ignore"):
        want = run_reference(layer, problem.but(x=x))
    assert not want.grads.finite
    if np.isnan(value):
        assert np.array_equal(np.isnan(y), np.isnan(want.y))
        assert np.isnan(y[2:, 1]).all()
        assert all(np.isnan(s[:, 1]).any() for s in parts(state))
        assert np.isnan(grads.norm)
        assert grads.scale == 1.0
    else:
        assert not np.array_equal(y[2, 1], clean[0][2, 1])


@in_each_set
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_value_clip_does_not_hide_an_infinity(isa, bidirectional):
    layer = make_layer("rnn_relu", 2, 3, bias=False, bidirectional=bidirectional)
    for p in layer.params.values():
        p[:] = 0.5
    x, h = np.ones((1, 2, 2), np.float32), np.ones((1 + bidirectional, 2, 3), np.float32)
    with rk.force_isa(isa):
        y, _, tape = layer.forward(x, h)
        dy = np.full_like(y, 3e38)  # the sum over the two rows is beyond float32
        free = layer.backward(tape, dy)
        clipped = layer.backward(tape, dy, clip=rk.Clip(value=1.0))
        normed = layer.backward(tape, dy, clip=rk.Clip(max_norm=1.0))
    assert np.isinf(free.norm)
    assert not free.finite
    assert not clipped.finite
    assert all((g == 1.0).all() for g in clipped.params.values())
    assert np.isfinite(clipped.norm)
    assert not normed.finite
    assert normed.scale == 1.0
    assert all(np.array_equal(g, free.params[n]) for n, g in normed.params.items())


def test_a_float64_norm_that_overflows_is_not_finite():
    layer = make_layer("rnn_relu", 1, 1, bias=False, dtype=np.float64)
    for p in layer.params.values():
        p[:] = 1.0
    *_, tape = layer.forward(np.ones((1, 1, 1)))
    grads = layer.backward(tape, np.full((1, 1, 1), 1e200))
    assert grads.params["weight_ih_l0"].item() == 1e200
    assert np.isinf(grads.norm)
    assert not grads.finite


@in_each_set
@each_kind
def test_a_float32_norm_beyond_float32_is_finite(isa, kind):
    layer, problem, _ = case(kind, 5, 7, 4, 3)
    dy = np.full_like(problem.dy, 1e35)
    with rk.force_isa(isa):
        grads = run(layer, problem.but(dy=dy, dstate=None), rk.Clip(max_norm=1.0))[2]
    assert grads.finite
    assert grads.norm > 1e35  # whose square no float32 holds
    assert np.sqrt(sum((g**2).sum() for g in grads.params.values())) == pytest.approx(1.0, rel=1e-5)
