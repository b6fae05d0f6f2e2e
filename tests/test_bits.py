"""The same bits: on any number of threads, in any batch, at any address, in any pieces.

Results are compared byte by byte. Parameter gradients are sums over rows and steps: they are
compared wherever those rows and steps are the same ones.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from helpers import (
    KINDS,
    LOOPS,
    QUIET,
    assert_same,
    each_half,
    forced_grid,
    fused_sets,
    in_each,
    in_each_dtype,
    in_each_set,
    in_half,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
    sets,
    wide,
)
from plan import plan_of

import rnnkern as rk
from rnnkern.reference import CELLS

every_kind = pytest.mark.parametrize("kind", KINDS)
every_loop = pytest.mark.parametrize("kind", LOOPS)


@dataclass(frozen=True)
class Case:
    """What a layer has and what a call of it is asked for."""

    options: dict
    lengths: str | None = None
    clip: rk.Clip | None = None

    def make(self, kind, dtype, I, H, T, B):
        layer = make_layer(kind, I, H, dtype=dtype, **self.options)
        return layer, random_problem(layer, T, B, lengths=self.lengths)


# Small enough to act, as test_the_clips_act shows.
CLIP = rk.Clip(step_value=0.1, step_norm=1.0, value=0.1, max_norm=0.1)
CASES = {
    "plain": Case({}),
    "lengths": Case({"num_layers": 2}, "random", CLIP),
    "both-ways": Case({"num_layers": 2, "bidirectional": True, "dropout": 0.3}, "random", CLIP),
    "both-ways-full": Case({"bidirectional": True, "bias": False}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

# Enough rows for five threads to share them; too few rows, and units enough to share those.
SHAPES = {"rows": (33, 40, 40, 24), "units": (128, 256, 20, 2)}  # I, H, T, B
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def shortest(layer, T, B, threads):
    """Steps, from 5 on, that up to so many threads share in the ways in which they share T steps.

    Several chunks of steps stay several: three, or as many as those of T.
    """

    def found(steps):
        plans = [plan_of(layer, steps, B, n) for n in range(1, threads + 1)]
        sizes = plans[0].forward_chunk, plans[0].backward_chunk
        chunks = [min(3, -(-steps // size)) for size in sizes]
        return chunks, [(plan.threads, plan.shared) for plan in plans]

    return next(steps for steps in range(5, T + 1) if found(steps) == found(T))


def bits(layer, problem, clip=None, *, forward=1, backward=None):
    """All that a forward and a backward return, as bytes, on so many threads each."""
    layer.dropout_step = 0
    y, state, tape = on_threads(forward, problem.forward, layer)
    grads = on_threads(backward or forward, problem.backward, layer, tape, clip)
    return frozen(y, state, grads)


def frozen(y, state, grads):
    arrays = {"y": y, "grads.x": grads.x, **grads.params}
    for name, one in (("state", state), ("grads.state", grads.state)):
        arrays.update({f"{name}[{i}]": part for i, part in enumerate(parts(one))})
    found = {name: array.tobytes() for name, array in arrays.items()}
    return {**found, "norm": grads.norm, "scale": grads.scale, "finite": grads.finite}


def differing(got, want):
    """Names of what is not the same; a set, so that an assertion on it says which."""
    assert got.keys() == want.keys()
    return {name for name in want if got[name] != want[name]}


def by_row(layer, problem, clip=None):
    """What belongs to each row: y, dx, states and their gradients, the row first."""
    layer.dropout_step = 0
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, clip)
    arrays = [y, grads.x, *parts(state), *parts(grads.state)]
    return [np.moveaxis(a, 1, 0) for a in arrays]


def changed(problem, change):
    """The problem with `change` made to all its arrays of floats."""

    def states(state):
        return tuple(map(change, state)) if isinstance(state, tuple) else change(state)

    return problem.but(
        x=change(problem.x),
        dy=change(problem.dy),
        state=states(problem.state),
        dstate=states(problem.dstate),
    )


def rows_of(problem, rows):
    """The problem of these rows alone, or in this order."""
    lengths = None if problem.lengths is None else problem.lengths[rows]
    return changed(problem.but(lengths=lengths), lambda a: a[:, rows])


@pytest.mark.parametrize("sizes", [*SHAPES.values(), (7, 17, 9, 5)], ids=str)
@every_kind
def test_the_clips_act(kind, sizes):
    layer, problem = CASES["lengths"].make(kind, np.float32, *sizes)
    free = bits(layer, problem)
    for name, bound in asdict(CLIP).items():
        clipped = bits(layer, problem, rk.Clip(**{name: bound}))
        # What reaches the last layer's lambda does not come through a gate's argument.
        passes = {"lambda_l1"} if name == "step_value" else set()
        assert differing(clipped, free) >= set(layer.params) - passes, name


# ---- threads -----------------------------------------------------------------------------------


@in_each_set
@every_shape
@every_case
@each_half
@in_each_dtype
@every_loop
def test_threads(kind, dtype, half, case, shape, isa):
    places = [list(CASES.values()).index(case), list(SHAPES.values()).index(shape)]
    places += [LOOPS.index(kind), dtype is np.float64, sets().index(isa)]
    if not in_half(half, *places):
        return
    I, H, T, B = shape
    T = shortest(make_layer(kind, I, H, dtype=dtype, **case.options), T, B, 8)
    layer, problem = case.make(kind, dtype, I, H, T, B)
    with rk.force_isa(isa):
        want = bits(layer, problem, case.clip)
        for forward, backward in ((2, 2), (3, 4), (5, 5), (6, 1), (1, 3), (8, 7)):
            got = bits(layer, problem, case.clip, forward=forward, backward=backward)
            assert not differing(got, want), f"{forward} and {backward} threads"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@every_shape
@pytest.mark.parametrize("name", ["RNN", "MinGRU"])  # the least work with and without W_hh
def test_threads_are_shared_out(name, shape):
    """The shapes above make the core start its threads: the tests of them aren't idle."""
    code = """if True:
        import os, sys
        import numpy as np, rnnkern as rk
        I, H, T, B = map(int, sys.argv[2:])
        x = np.zeros((T, B, I), np.float32)
        layer = getattr(rk, sys.argv[1])(I, H)
        started = len(os.listdir("/proc/self/task"))
        for n in (1, 3, 4):
            rk.set_num_threads(n)
            y, _, tape = layer.forward(x)
            forward = len(os.listdir("/proc/self/task")) - started + 1
            layer.backward(tape, y)
            print(n, forward, len(os.listdir("/proc/self/task")) - started + 1)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, name, *map(str, shape)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "1 1 1\n3 3 3\n4 4 4\n", done.stderr


@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before", "lstm_projected"])
def test_more_threads_than_blocks_of_units(kind):
    """Few rows for very many threads, and fewer vectors of units than threads."""
    T, B, H, threads = 30, 31, 81, 32
    layer = make_layer(kind, 16, H)
    problem = random_problem(layer, T, B)
    want = bits(layer, problem)
    with forced_grid(threads, 1):
        assert plan_of(layer, T, B, threads).shared == "units"
        assert threads > -(-H // 4)  # four units to the shortest vector
        assert not differing(bits(layer, problem, forward=threads), want)


@every_kind
def test_tiny_numbers_are_flushed_on_every_thread(kind):
    layer = make_layer(kind, 33, wide(kind, 40), bias=False)
    problem = random_problem(layer, 40, 24)
    tiny = changed(problem, lambda a: a * np.float32(1e-37))
    want = bits(layer, tiny)

    def subnormal(a):
        return (a != 0) & (np.abs(a) < np.finfo(np.float32).tiny)

    reference = run_reference(layer, tiny)
    exact = {"y": reference.y, "grads.x": reference.grads.x}
    if kind in ("min_gru", "min_lstm", "gru_reset_before_general"):
        del exact["y"]  # whose candidates are 1/2 where the input is 0
    if "gain_c_l0" in layer.params:
        del exact["y"]  # which layer norm of c makes large
    for name, array in exact.items():
        assert subnormal(array).any()
        flushed = np.frombuffer(want[name], np.float32)
        assert not subnormal(flushed).any()
        assert flushed.any()
    for threads in (2, 5):
        assert plan_of(layer, 40, 24, threads).threads == threads
        assert not differing(bits(layer, tiny, forward=threads), want)


@every_case
@every_kind
def test_run_to_run(kind, case):
    I, H, T, B = SHAPES["rows"]
    layer, problem = case.make(kind, np.float32, I, H, T, B)
    assert plan_of(layer, T, B, 2).threads == 2
    want = bits(layer, problem, case.clip, forward=2)
    for _ in range(3):
        assert not differing(bits(layer, problem, case.clip, forward=2), want)
    layer.dropout_step = 0
    y, state, tape = problem.forward(layer)
    for _ in range(2):  # a tape may be used more than once
        grads = problem.backward(layer, tape, case.clip)
        assert not differing(frozen(y, state, grads), want)


@pytest.mark.parametrize("kind", QUIET)
def test_inference_and_training(kind):
    """Two buffers in turns stand in for the tape's; no dropout acts."""
    layer = make_layer(kind, 7, 17, num_layers=4, bidirectional=True, dropout=0.5)
    problem = random_problem(layer, 9, 5, lengths="random")
    y, state = layer(problem.x, problem.state, problem.lengths)
    layer.dropout = 0.0
    y_kept, state_kept, _ = problem.forward(layer)
    assert y.tobytes() == y_kept.tobytes()
    assert [s.tobytes() for s in parts(state)] == [s.tobytes() for s in parts(state_kept)]


# ---- rows --------------------------------------------------------------------------------------


@in_each_set
@every_case
@in_each_dtype
@every_kind
def test_a_row_alone_and_in_a_batch(kind, dtype, case, isa):
    """Dropout's mask is a function of step, row and channel: the row keeps its place."""
    layer, problem = case.make(kind, dtype, 7, 17, 9, 21)
    with rk.force_isa(isa):
        batch = by_row(layer, problem, case.clip)
        for count in (1, 2, 3, 8):
            few = by_row(layer, rows_of(problem, np.arange(count)), case.clip)
            for got, want in zip(few, batch, strict=True):
                assert got.tobytes() == want[:count].tobytes(), f"the first {count} rows"


@pytest.mark.parametrize("bidirectional", [False, True])
@every_kind
def test_a_row_alone_and_in_a_batch_of_several_chunks(kind, bidirectional):
    """Both passes take their steps in chunks, of fewer steps the more rows there are."""
    H = 64 if len(CELLS[kind].saved) <= 4 else 32  # forward's chunks have so many bytes
    layer = make_layer(kind, 7, H, num_layers=2, bidirectional=bidirectional)
    T, few, B = 40, 3, 100
    alone, together = plan_of(layer, T, few), plan_of(layer, T, B)
    assert (alone.forward_chunk, alone.backward_chunk) == (T, T)
    assert 1 < together.backward_chunk < T / 2
    assert 1 < together.forward_chunk < T / 2
    problem = random_problem(layer, T, B, lengths="random")
    for row, batch in zip(
        by_row(layer, rows_of(problem, np.arange(few))), by_row(layer, problem), strict=True
    ):
        assert row.tobytes() == batch[:few].tobytes()


@every_case
@in_each_dtype
@pytest.mark.parametrize("kind", QUIET)  # masks go by the row's place
def test_a_row_at_another_place(kind, dtype, case):
    layer, problem = case.make(kind, dtype, 7, 17, 9, 21)
    layer.dropout = 0.0
    batch = by_row(layer, problem, case.clip)
    order = np.random.default_rng(0).permutation(21)
    moved = by_row(layer, rows_of(problem, order), case.clip)
    for got, want in zip(moved, batch, strict=True):
        assert got.tobytes() == want[order].tobytes()


@every_kind
def test_one_row_without_a_batch(kind):
    layer = make_layer(kind, 7, 17, num_layers=2, bidirectional=True)
    row = random_problem(layer, 9)
    batch = changed(row, lambda a: a[:, None])
    assert not differing(bits(layer, row), bits(layer, batch))


@every_kind
@in_each_dtype
def test_batch_first(kind, dtype):
    layers = [
        make_layer(kind, 7, 17, num_layers=2, batch_first=first, dtype=dtype)
        for first in (False, True)
    ]
    p = random_problem(layers[0], 9, 5, lengths="random")
    swapped = p.but(x=p.x.swapaxes(0, 1).copy(), dy=p.dy.swapaxes(0, 1).copy())
    want, got = bits(layers[0], p), bits(layers[1], swapped)
    assert differing(got, want) == {"y", "grads.x"}  # the same numbers, in another order
    y = np.frombuffer(want["y"], dtype).reshape(p.dy.shape)
    assert got["y"] == y.swapaxes(0, 1).tobytes()
    dx = np.frombuffer(want["grads.x"], dtype).reshape(p.x.shape)
    assert got["grads.x"] == dx.swapaxes(0, 1).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_kind
def test_rows_do_not_look_at_one_another(kind, bad):
    layer = make_layer(kind, 7, 17, num_layers=2, bidirectional=True)
    p = random_problem(layer, 9, 5, lengths="random")
    sick = p.but(x=p.x.copy(), dy=p.dy.copy())
    sick.x[:, 2], sick.dy[:, 2] = bad, bad
    healthy = [0, 1, 3, 4]
    for got, want in zip(by_row(layer, sick), by_row(layer, p), strict=True):
        assert got[healthy].tobytes() == want[healthy].tobytes()


# ---- padding -----------------------------------------------------------------------------------

PADDED = {name: case for name, case in CASES.items() if case.lengths}


def with_padding(problem, value, more=0):
    """The same rows with `value` in x and dy behind their ends, and as many more steps of it."""
    x, dy = (
        np.concatenate([a, np.empty((more, *a.shape[1:]), a.dtype)])
        for a in (problem.x, problem.dy)
    )
    behind = np.arange(len(x))[:, None] >= problem.lengths
    x[behind] = dy[behind] = value
    return problem.but(x=x, dy=dy)


@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED)
@in_each_dtype
@every_kind
def test_padding_is_never_read(kind, dtype, case):
    I, H, T, B = SHAPES["rows"]
    layer, problem = case.make(kind, dtype, I, H, T, B)
    want = bits(layer, problem, case.clip)
    for threads in (1, 2):
        assert plan_of(layer, T, B, threads).threads == threads
        got = bits(layer, with_padding(problem, np.nan), case.clip, forward=threads)
        assert not differing(got, want)


@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED)
@in_each_dtype
@every_kind
def test_more_padding(kind, dtype, case):
    """More steps of padding and more rows of no length; so many that the chunks of the sums over
    time begin at other steps.
    """
    T, B, more, empty = 20, 60, 300, 200
    layer, problem = case.make(kind, dtype, 7, 17, T, B)

    def ends_of_chunks(steps, rows):  # of backward's, from the last step on
        chunk = plan_of(layer, steps, rows).backward_chunk
        return {t for t in range(steps, 0, -chunk) if t < T}

    own = ends_of_chunks(T, B)
    assert own
    assert own != ends_of_chunks(T + more, B)
    assert own != ends_of_chunks(T + more, B + empty)
    longer = with_padding(problem, np.nan, more)
    rows = np.arange(B + empty) % B
    wider = rows_of(longer, rows)
    wider.lengths[B:] = 0
    want = bits(layer, problem, case.clip)
    for other in (longer, wider):
        got = bits(layer, other, case.clip)
        D = 1 + layer.bidirectional
        sequences = {"y": layer.output_size * D, "grads.x": layer.input_size}
        states = {name for name in want if "state[" in name}
        assert differing(got, want) <= {*sequences, *states}
        for name, channels in sequences.items():
            a = np.frombuffer(got[name], dtype).reshape(T + more, -1, channels)
            assert a[:T, :B].tobytes() == want[name]
            assert not a[T:].any()
        for name in states:
            a, b = (
                np.frombuffer(found[name], dtype).reshape(layer.num_layers * D, n, -1)
                for found, n in ((got, len(other.lengths)), (want, B))
            )
            assert a[:, :B].tobytes() == b.tobytes()


@pytest.mark.parametrize("bidirectional", [False, True])
@every_kind
def test_full_lengths_and_none(kind, bidirectional):
    layer = make_layer(kind, 7, 17, num_layers=2, bidirectional=bidirectional)
    p = random_problem(layer, 9, 5)
    assert not differing(bits(layer, p.but(lengths=np.full(5, 9))), bits(layer, p))


# ---- pieces ------------------------------------------------------------------------------------


@in_each_set
@pytest.mark.parametrize("num_layers", [1, 2, 4])
@in_each_dtype
@every_kind
def test_pieces_and_streams(kind, dtype, num_layers, isa):
    layer = make_layer(kind, 7, 17, num_layers=num_layers, dtype=dtype)
    T, B = 40, 3
    p = random_problem(layer, T, B)
    with rk.force_isa(isa):
        want, last = layer(p.x, p.state)
        ends = [0, 1, 2, 2, 7, 8, 30, T]  # pieces of one step, none, and many

        state = p.state
        for start, end in itertools.pairwise(ends):
            y, state = layer(p.x[start:end], state)
            assert y.tobytes() == want[start:end].tobytes()
        assert [a.tobytes() for a in parts(state)] == [a.tobytes() for a in parts(last)]

        stream = layer.stream(B)
        stream.state = p.state
        for start, end in itertools.pairwise(ends):
            y = stream.step(p.x[start]) if end == start + 1 else stream.run(p.x[start:end])
            assert y.tobytes() == want[start:end].tobytes()
        assert [a.tobytes() for a in parts(stream.state)] == [a.tobytes() for a in parts(last)]


@every_shape
@every_kind
def test_streams_on_threads(kind, shape):
    I, H, T, B = shape
    layer = make_layer(kind, I, H, num_layers=2)
    x = random_problem(layer, T, B).x
    want = layer(x)[0].tobytes()
    for threads in (1, 2, 3, 4):  # the 16 vectors of units do not divide by five
        assert plan_of(layer, T, B, threads).threads == threads
        assert on_threads(threads, layer.stream(B).run, x).tobytes() == want


@every_kind
def test_single_steps_of_one_row_on_threads(kind):
    """Units are shared, the last ones less than a vector."""
    layer = make_layer(kind, 510, wide(kind, 661))
    x = random_problem(layer, 6, 1).x
    want = layer(x)[0]
    for threads in (1, 2, 3, 4):
        plan = plan_of(layer, 1, 1, threads)
        assert (plan.threads, plan.shared) == (threads, "units" if threads > 1 else "nothing")
        stream = layer.stream()
        for t in range(6):
            y = on_threads(threads, stream.step, x[t])
            assert y.tobytes() == want[t].tobytes()


# ---- addresses ---------------------------------------------------------------------------------


def moved(array, offset):
    """A copy whose first element stands `offset` bytes behind a cache line."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def every_second(array):
    memory = np.full([2 * n for n in array.shape], 99, array.dtype)  # as a length: out of range
    view = memory[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def backward_in_memory(array):
    flip = (slice(None, None, -1),) * array.ndim
    return array[flip].copy()[flip]


LAYOUTS = {
    "on-a-line": lambda a: moved(a, 0),
    "beside-a-line": lambda a: moved(a, a.itemsize),
    "misaligned": lambda a: moved(a, 1),
    "fortran": np.asfortranarray,
    "every-second": every_second,
    "backward": backward_in_memory,
    "rows-backward": lambda a: a[:, ::-1].copy()[:, ::-1] if a.ndim > 1 else a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@in_each_dtype
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_addresses_and_strides(kind, dtype, layout):
    case = CASES["both-ways"]
    layer, p = case.make(kind, dtype, 7, 17, 9, 5)
    want = bits(layer, p, case.clip)
    other = changed(p.but(lengths=layout(p.lengths)), layout)
    assert not differing(bits(layer, other, case.clip), want)
    layer.params = {name: layout(array) for name, array in layer.params.items()}
    assert not differing(bits(layer, other, case.clip), want)


@every_kind
def test_broadcast_arrays(kind):
    """One row's numbers seen as a batch's, one step's as a sequence's: strides of zero."""
    layer = make_layer(kind, 7, 17, num_layers=2)
    T, B = 9, 5

    def spread(a):  # x and dy over steps and rows, states over rows
        return np.broadcast_to(a, (T if len(a) == 1 else len(a), B, a.shape[-1]))

    views = changed(random_problem(layer, 1, 1), spread)
    copies = changed(views, np.copy)
    want = bits(layer, copies)
    assert not differing(bits(layer, views), want)
    stream = layer.stream(B)
    stream.state = views.state
    assert stream.run(views.x).tobytes() == layer(copies.x, copies.state)[0].tobytes()
    for name, array in layer.params.items():  # all rows of a parameter the same
        layer.params[name] = np.broadcast_to(array[0], array.shape)
    got = bits(layer, copies)
    layer.params = {name: array.copy() for name, array in layer.params.items()}
    assert not differing(got, bits(layer, copies))


# ---- instruction sets --------------------------------------------------------------------------

needs_two_fused_sets = pytest.mark.skipif(
    len(fused_sets()) < 2, reason=f"one set with a fused multiply-add here: {fused_sets()}"
)


@needs_two_fused_sets
@every_shape
@every_case
@in_each_dtype
@every_kind
def test_instruction_sets(kind, dtype, case, shape):
    layer, problem = case.make(kind, dtype, *shape)
    assert plan_of(layer, *shape[2:], 2).threads == 2
    found = []
    for isa in fused_sets():
        with rk.force_isa(isa):
            found.append(bits(layer, problem, case.clip, forward=2))
    for other in found[1:]:
        assert not differing(other, found[0])


@needs_two_fused_sets
@in_each_dtype
@every_kind
def test_streams_of_instruction_sets(kind, dtype):
    layer = make_layer(kind, 7, 17, num_layers=2, dtype=dtype)
    x = random_problem(layer, 9, 3).x
    found = set()
    for isa in fused_sets():
        with rk.force_isa(isa):
            found.add(layer.stream(3).run(x).tobytes())
    assert len(found) == 1


@pytest.mark.skipif(len(sets()) < 2, reason=f"one instruction set here: {sets()}")
@in_each("pair", [*itertools.permutations(sets(), 2)])
@pytest.mark.parametrize("case", ["plain", "both-ways-full"])
@in_each_dtype
@every_kind
def test_forward_and_backward_under_two_sets(kind, dtype, case, pair):
    """What one set has kept another can read: the same bits if both fuse, else the same numbers."""
    layer, p = CASES[case].make(kind, dtype, 7, 17, 9, 5)
    with rk.force_isa(pair[0]):
        y, state, tape = p.forward(layer)
        own = p.backward(layer, tape)
    with rk.force_isa(pair[1]):
        grads = p.backward(layer, tape)
    assert_same(layer, (y, state, grads), run_reference(layer, p))
    if set(pair) <= set(fused_sets()):
        assert not differing(frozen(y, state, grads), frozen(y, state, own))
