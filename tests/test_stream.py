"""Streams: one step, or a block of steps, at a time, with the state inside.

That their bits are those of a call on the whole sequence, for every set, is in test_bits.py; what
they refuse is in test_errors.py.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
from helpers import (
    KINDS,
    fresh_like,
    in_each_dtype,
    is_fresh,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    sets,
)
from plan import constant, plan_of

import rnnkern as rk
from rnnkern.reference import CELLS

T, B, I, H = 12, 3, 5, 9
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="gru", **options):
    layer = make_layer(kind, I, H, **{"num_layers": 2, **options})
    return layer, random_problem(layer, T, B)


def frozen(state):
    return [part.tobytes() for part in parts(state)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 17])
@in_each_dtype
@every_kind
def test_steps_are_the_sequence(kind, dtype, rows, bias):
    layer = make_layer(kind, I, H, num_layers=3, dtype=dtype, bias=bias)
    p = random_problem(layer, T, rows)
    want, last = layer(p.x, p.state)
    stream = layer.stream(rows)
    assert is_fresh(layer, stream.state)
    stream.state = p.state
    steps = [stream.step(x) for x in p.x]
    assert all(y.shape == (rows, layer.output_size) and y.dtype == dtype for y in steps)
    assert np.stack(steps).tobytes() == want.tobytes()
    assert frozen(stream.state) == frozen(last)


@every_kind
def test_reset(kind):
    layer, p = make(kind)
    stream = layer.stream(B)
    first = stream.run(p.x)
    assert stream.run(p.x).tobytes() != first.tobytes()
    stream.reset()
    assert is_fresh(layer, stream.state)
    assert stream.run(p.x).tobytes() == first.tobytes()


ROWS = {
    "booleans": lambda rows: np.isin(np.arange(17), rows),
    "booleans, strided": lambda rows: np.repeat(np.isin(np.arange(17), rows), 2)[::2],
    "a list of booleans": lambda rows: np.isin(np.arange(17), rows).tolist(),
    "integers": lambda rows: np.array(rows, int),
    "integers, strided": lambda rows: np.repeat(np.array(rows, int), 2)[::2],
    "small integers": lambda rows: np.array(rows, np.uint8),
    "integers, twice": lambda rows: np.array([*rows, *rows], int),
    "a list": list,
    "a tuple": tuple,
}


SOME_ROWS = [[0], [16], [3, 0, 9], list(range(17)), []]


def assert_reset_of(layer, how):
    """Some rows begin anew; the others go on, to the bit."""
    p = random_problem(layer, T, 17)
    stream = layer.stream(17)
    for rows, half in itertools.product(SOME_ROWS, range(2)):
        stream.state = p.state  # which lies now in the one place, now in the other
        stream.run(p.x[:5])
        if half:
            stream.step(p.x[5])
        before = parts(stream.state)
        assert stream.reset(how(rows)) is None
        fresh = parts(fresh_like(layer, p.state))
        for part, old, new in zip(parts(stream.state), before, fresh, strict=True):
            old[:, rows] = new[:, rows]
            assert part.tobytes() == old.tobytes()
        assert stream.run(p.x[6:]).tobytes() == layer(p.x[6:], joined(before))[0].tobytes()


@in_each_dtype
@every_kind
def test_reset_of_some_rows(kind, dtype):
    assert_reset_of(make_layer(kind, I, H, num_layers=2, dtype=dtype), ROWS["integers"])


@pytest.mark.parametrize("how", ROWS)
def test_rows_to_reset_are_given_in_any_form(how):
    assert_reset_of(make_layer("lstm", I, H, num_layers=2), ROWS[how])


@every_kind
def test_state_is_copied_in_and_out(kind):
    layer, p = make(kind)
    stream = layer.stream(B)
    given = [part.copy() for part in parts(p.state)]
    stream.state = joined(given)
    for part in given:
        part[...] = 7
    assert isinstance(stream.state, tuple) == isinstance(p.state, tuple)
    assert frozen(stream.state) == frozen(p.state)
    read = stream.state
    stream.step(p.x[0])
    assert frozen(read) == frozen(p.state)
    for part in parts(stream.state):
        part[...] = 7
    assert not any((part == 7).any() for part in parts(stream.state))


@every_kind
def test_a_state_with_none_in_it_is_refused(kind):
    layer, p = make(kind)
    stream = layer.stream(B)
    stream.state = p.state
    for wrong in (None, (parts(p.state)[0], None), (None, None)):
        with pytest.raises(TypeError, match=r"^state: expected "):
            stream.state = wrong
    assert frozen(stream.state) == frozen(p.state)


@every_kind
def test_a_state_of_another_stream_goes_on_there(kind):
    layer, p = make(kind)
    one, other = layer.stream(B), layer.stream(B)
    one.run(p.x[:5])
    other.state = one.state
    assert one.run(p.x[5:]).tobytes() == other.run(p.x[5:]).tobytes()


@every_kind
def test_parameters_are_a_snapshot(kind):
    layer, p = make(kind)
    want = layer(p.x)[0]
    stream = layer.stream(B)
    for array in layer.params.values():
        array[...] = np.nan
    layer.params = {}
    assert stream.run(p.x).tobytes() == want.tobytes()


def test_a_stream_outlives_its_layer():
    layer, p = make()
    want = layer(p.x)[0]
    stream = layer.stream(B)
    del layer
    assert stream.run(p.x).tobytes() == want.tobytes()


def test_both_directions_are_refused():
    layer, _ = make(bidirectional=True)
    with pytest.raises(ValueError, match="expected a layer of one direction, got a bidirectional"):
        layer.stream(B)


def test_no_dropout_acts():
    layer, p = make(dropout=0.5)
    assert layer.stream(B).run(p.x).tobytes() == layer(p.x)[0].tobytes()


@pytest.mark.parametrize("batch_first", [False, True])
def test_blocks_are_steps_first(batch_first):
    layer, p = make(batch_first=batch_first)
    steps_first = p.x.swapaxes(0, 1) if batch_first else p.x
    want = layer(p.x)[0]
    want = want.swapaxes(0, 1) if batch_first else want
    assert layer.stream(B).run(steps_first).tobytes() == want.tobytes()


@every_kind
def test_out(kind):
    layer, p = make(kind)
    want = layer(p.x)[0]
    stream = layer.stream(B)
    block, step = np.full_like(want[1:], np.nan), np.full_like(want[0], np.nan)
    assert stream.step(p.x[0], step) is step
    assert stream.run(p.x[1:], out=block) is block
    assert step.tobytes() + block.tobytes() == want.tobytes()


@pytest.mark.parametrize("method", ["step", "run"])
def test_every_way_of_calling(method):
    layer, p = make()
    x = p.x[0] if method == "step" else p.x
    name = "".join(["o", "ut"])  # equal to the one in the core, and another object
    ways = [
        lambda stream, out: getattr(stream, method)(x, out),
        lambda stream, out: getattr(stream, method)(x, out=out),
        lambda stream, out: getattr(stream, method)(x=x, out=out),
        lambda stream, out: getattr(stream, method)(out=out, x=x),
        lambda stream, out: getattr(stream, method)(x, **{name: out}),
        lambda stream, out: getattr(rk.Stream, method)(stream, x, out),
        lambda stream, out: partial(getattr(stream, method), out=out)(x),
        lambda stream, out: getattr(stream, method)(x, out, mask=None),
        lambda stream, out: getattr(stream, method)(mask=None, out=out, x=x),
        lambda stream, out: getattr(stream, method)(x, mask=np.ones(x.shape[:-1], bool), out=out),
    ]
    want = getattr(layer.stream(B), method)(x)
    for way in ways:
        out = np.full_like(want, np.nan)
        assert way(layer.stream(B), out) is out
        assert out.tobytes() == want.tobytes()
        assert way(layer.stream(B), None).tobytes() == want.tobytes()
    assert getattr(layer.stream(B), method)(x=x).tobytes() == want.tobytes()


@pytest.mark.parametrize("method", ["step", "run"])
@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "missing required argument 'x' (pos 1)"),
        ((), {"out": None}, "missing required argument 'x' (pos 1)"),
        ((1, 2, 3), {}, "takes at most 2 positional arguments (3 given)"),
        ((1, 2), {"out": 3}, "argument for {}() given by name ('out') and position (2)"),
        ((1, 2, 3), {"mask": None}, "takes at most 3 arguments (4 given)"),
        ((1,), {"x": 2}, "argument for {}() given by name ('x') and position (1)"),
        ((1,), {"y": 2}, "'y'"),
        ((), {"x": 1, "y": 2}, "'y'"),
    ],
)
def test_wrong_ways_of_calling(method, args, named, message):
    layer, p = make()
    stream = layer.stream(B)
    stream.state = p.state
    with pytest.raises(TypeError, match=re.escape(message.format(method))):
        getattr(stream, method)(*args, **named)
    assert frozen(stream.state) == frozen(p.state)


# --------------------------------------------------------------------------- rows that rest


MASKS = {
    "some": lambda rng, shape: rng.random(shape) < 0.6,
    "none": lambda rng, shape: np.zeros(shape, bool),
    "all": lambda rng, shape: np.ones(shape, bool),
    "strided": lambda rng, shape: np.repeat(rng.random(shape) < 0.5, 2, axis=-1)[..., ::2],
    "a list": lambda rng, shape: (rng.random(shape) < 0.5).tolist(),
    "odd bytes": lambda rng, shape: rng.integers(0, 3, shape, np.uint8).view(bool),
}


@pytest.mark.parametrize("how", MASKS)
@in_each_dtype
@every_kind
def test_rows_at_rest_keep_their_state(kind, dtype, how):
    """To the bit; their x is not read. The others' bits are those of streams of their own."""
    layer = make_layer(kind, I, H, num_layers=2, dtype=dtype)
    rows, rng = 6, np.random.default_rng(0)
    p = random_problem(layer, T, rows)
    stream, alone = layer.stream(rows), [layer.stream() for _ in range(rows)]
    stream.state = p.state
    for b, own in enumerate(alone):
        own.set_row_state([0], stream.row_state([b]))
    for x in p.x:
        mask = MASKS[how](rng, rows)
        real = np.asarray(mask).view(np.uint8) != 0
        x[~real] = np.nan
        out = np.full((rows, layer.output_size), np.nan, dtype)
        y = stream.step(x, out, mask=mask)
        assert y is out
        assert not y[~real].any()
        for b in np.flatnonzero(real):
            assert y[b].tobytes() == alone[b].step(x[b : b + 1]).tobytes()
        for b, own in enumerate(alone):
            assert frozen(stream.row_state([b])) == frozen(own.state)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("how", MASKS)
@every_kind
def test_blocks_with_rows_at_rest_are_the_layer_s(kind, how, threads):
    layer = make_layer(kind, I, H, num_layers=3)
    rows, rng = 5, np.random.default_rng(0)
    p = random_problem(layer, T, rows)
    mask = MASKS[how](rng, (T, rows))
    want, last = layer(p.x, p.state, mask=mask)
    stream = layer.stream(rows)
    stream.state = p.state
    y = on_threads(threads, stream.run, p.x[:7], mask=mask[:7])
    rest = np.concatenate([y, stream.run(p.x[7:], mask=mask[7:])])
    assert rest.tobytes() == want.tobytes()
    assert frozen(stream.state) == frozen(last)
    stream.state = p.state
    steps = [stream.step(x, mask=m) for x, m in zip(p.x, mask, strict=True)]
    assert np.stack(steps).tobytes() == want.tobytes()
    assert stream.run(p.x[:0], mask=np.zeros((0, rows), bool)).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("how", ROWS)
@every_kind
def test_the_state_of_some_rows(kind, how):
    """Read and set by the same rows; the others keep theirs."""
    layer = make_layer(kind, I, H, num_layers=2)
    p, rows = random_problem(layer, T, 17), [3, 0, 9]
    stream = layer.stream(17)
    stream.state = p.state
    stream.step(p.x[0])
    before = parts(stream.state)
    given = ROWS[how](rows)
    read = parts(stream.row_state(given))
    listed = sorted(rows) if "booleans" in how else rows * (1 + ("twice" in how))
    for part, whole in zip(read, before, strict=True):
        assert part.tobytes() == whole[:, listed].tobytes()
        part[...] = 7
    assert frozen(stream.state) == frozen(joined(before))
    if "twice" in how:
        with pytest.raises(ValueError, match=r"^rows: expected each row once, got 0 twice$"):
            stream.set_row_state(given, joined(read))
        assert frozen(stream.state) == frozen(joined(before))
        return
    assert stream.set_row_state(given, joined([part * np.float32(1) for part in read])) is None
    for part, whole in zip(parts(stream.state), before, strict=True):
        whole[:, listed] = 7
        assert part.tobytes() == whole.tobytes()


@every_kind
def test_a_client_goes_on_at_another_place(kind):
    layer = make_layer(kind, I, H, num_layers=2)
    p = random_problem(layer, T, 1)
    want, _ = layer(p.x)
    stream = layer.stream(4)
    x = np.random.default_rng(0).normal(size=(4, p.x.shape[-1])).astype(np.float32)
    got = []
    for t, own in enumerate(p.x):
        place = t % 4
        if t > 0:
            client = stream.row_state([(t - 1) % 4])
            stream.reset([(t - 1) % 4])
            stream.set_row_state([place], client)
        x[place] = own
        got.append(stream.step(x)[place : place + 1])
    assert np.stack(got).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones(B), TypeError, "an array of booleans, got float64"),
        (np.ones(B, np.uint8), TypeError, "an array of booleans, got uint8"),
        ("text", TypeError, "an array of booleans, got <U4"),
        (np.ones((B, 1), bool), ValueError, f"shape ({B},), got ({B}, 1)"),
        (np.ones(B + 1, bool), ValueError, f"shape ({B},), got ({B + 1},)"),
        (True, ValueError, f"shape ({B},), got ()"),
        (np.ma.ones(B, bool), TypeError, "an array without a mask, got MaskedArray"),
    ],
)
def test_wrong_masks_are_refused(mask, error, message):
    layer, p = make()
    stream = layer.stream(B)
    stream.state = p.state
    out = np.full((B, H), np.nan, np.float32)
    with pytest.raises(error, match=r"^mask: expected " + re.escape(message)):
        stream.step(p.x[0], out, mask=mask)
    assert np.isnan(out).all()
    if isinstance(mask, np.ndarray):
        wrong = np.broadcast_to(mask, (T, *mask.shape), subok=True)
        with pytest.raises(error, match=r"^mask: expected "):
            stream.run(p.x, mask=wrong)
        with pytest.raises(error, match=r"^mask: expected "):
            stream.run(p.x[:0], mask=wrong[:0])
    assert frozen(stream.state) == frozen(p.state)


@pytest.mark.parametrize(
    ("rows", "part", "error", "message"),
    [
        ([0], np.zeros((2, 2, H), np.float32), ValueError, f"state: expected shape (2, 1, {H})"),
        ([0], np.zeros((2, 1, H)), TypeError, "state: expected an array of dtype float32"),
        ([0], None, TypeError, "state: expected arrays, got None"),
        (
            [B],
            np.zeros((2, 1, H), np.float32),
            ValueError,
            f"rows: expected values from 0 to {B - 1}",
        ),
        (None, np.zeros((2, 1, H), np.float32), TypeError, "rows: expected an array of booleans"),
    ],
)
def test_wrong_states_of_rows_are_refused(rows, part, error, message):
    layer, p = make()
    stream = layer.stream(B)
    stream.state = p.state
    with pytest.raises(error, match="^" + re.escape(message)):
        stream.set_row_state(rows, part)
    assert frozen(stream.state) == frozen(p.state)
    if message.startswith("rows"):
        with pytest.raises(error, match="^" + re.escape(message)):
            stream.row_state(rows)


def test_masked_steps_into_out_allocate_nothing():
    """After the first of their length."""
    layer, p = make()
    stream = layer.stream(B)
    mask, out = np.random.default_rng(0).random((T, B)) < 0.5, np.empty((T, B, H), np.float32)
    stream.run(p.x, out, mask=mask)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            stream.run(p.x, out, mask=mask)
            stream.step(p.x[0], out[0], mask=mask[0])
        assert tracemalloc.get_traced_memory()[1] - before < 2000  # views, and their headers
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------- subclasses, the edges


def test_a_subclass_may_change_a_method():
    class Doubled(rk.Stream):
        def step(self, x, out=None):
            return 2 * super().step(x, out)

    layer, p = make()
    want = 2 * layer.stream(B).step(p.x[0])
    stream = Doubled(layer.freeze(), B)
    assert stream.step(p.x[0]).tobytes() == want.tobytes()


def test_a_stream_that_no_layer_made():
    x = np.zeros((B, I), np.float32)
    nothing = rk.Stream.__new__(rk.Stream)
    for use in (
        lambda: nothing.step(x),
        lambda: nothing.run(x[None]),
        lambda: nothing.state,
        lambda: setattr(nothing, "state", x),
        nothing.reset,
        lambda: nothing.row_state([0]),
        lambda: nothing.set_row_state([0], x),
    ):
        with pytest.raises(
            TypeError, match="self: expected a Stream, got one whose constructor has not run"
        ):
            use()
    with pytest.raises(TypeError):
        rk.Stream.step(None, x)


def test_a_second_construction_is_refused_and_changes_nothing():
    stream, layer = make_layer("lstm", I, H).stream(B), make_layer("gru", I, H)
    state = tuple(np.full((1, B, H), value, np.float32) for value in (0.25, 0.5))
    with pytest.raises(TypeError, match="expected a new object, got one that is constructed"):
        stream.__init__(layer.freeze(), B)
    stream.state = state
    assert all((a == b).all() for a, b in zip(stream.state, state, strict=True))


def test_no_references_stay():
    layer, p = make()
    stream = layer.stream(B)
    gone = weakref.ref(stream)
    x, out = p.x[0], np.empty((B, H), np.float32)
    before = sys.getrefcount(x), sys.getrefcount(out), sys.getrefcount(None)
    for _ in range(100):
        stream.step(x)
        stream.step(x, out)
        stream.step(x, out=out)
        stream.step(out=out, x=x)
        for wrong in ((out, x), (x, x), (x, out, out)):
            with pytest.raises((TypeError, ValueError)):
                stream.step(*wrong)
    del wrong
    after = sys.getrefcount(x), sys.getrefcount(out), sys.getrefcount(None)
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))
    del stream
    assert gone() is None


def test_an_equal_dtype_of_another_object():
    layer, p = make()
    dtype = np.dtype(np.float32, metadata={"of": "another"})
    x, out = p.x[0].astype(dtype), np.empty((B, H), dtype)
    want = layer.stream(B).step(p.x[0])
    assert layer.stream(B).step(x, out) is out
    assert out.tobytes() == want.tobytes()
    swapped = p.x[0].astype(np.dtype(np.float32).newbyteorder())
    with pytest.raises(TypeError, match="x: expected an array of dtype float32, got"):
        layer.stream(B).step(swapped)


@every_kind
def test_calls_of_any_lengths_and_threads_in_turn(kind):
    """What a stream keeps ready between calls of one length is made anew for another."""
    layer = make_layer(kind, 64, 96, num_layers=3)
    p = random_problem(layer, 120, 8)
    want = layer(p.x)[0]
    stream = layer.stream(8)
    assert plan_of(layer, 30, 8, 2).threads == 2
    at = 0
    for count, threads in itertools.cycle(((1, 1), (1, 2), (30, 2), (30, 1), (0, 1), (2, 2))):
        if at == 120:
            break
        count = min(count, 120 - at)
        if count == 1:
            got = on_threads(threads, stream.step, p.x[at])
        else:
            got = on_threads(threads, stream.run, p.x[at : at + count])
        assert got.tobytes() == want[at : at + count].tobytes()
        at += count


def test_results_are_not_touched_again():
    layer, p = make()
    stream = layer.stream(B)
    first, block = stream.step(p.x[0]), stream.run(p.x)
    before = first.tobytes(), block.tobytes()
    stream.step(p.x[1])
    stream.run(p.x)
    assert (first.tobytes(), block.tobytes()) == before


@every_kind
def test_steps_into_out_allocate_nothing(kind):
    layer = make_layer(kind, 4, 128, num_layers=2)  # one output is more than Python's numbers
    stream = layer.stream()
    x = np.ones((1, layer.input_size), np.float32)
    out = np.empty((1, layer.output_size), np.float32)
    block, block_out = np.ones((3, *x.shape), np.float32), np.empty((3, *out.shape), np.float32)
    stream.run(block, block_out)
    for _ in range(5):  # other threads of the test runner allocate now and then
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for _ in itertools.repeat(None, 4_000):
                stream.step(x, out)
            stream.run(block, block_out)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Nothing stays, and nothing as large as an output is ever made.
        if after - before < 256 and peak - before < out.nbytes:
            return
    pytest.fail(f"{after - before} bytes stay; at most {peak - before} at a time")


@every_kind
def test_room_for_128_rows_is_made_with_the_stream(kind):
    """A call that needs more room releases the old one, which then waits."""
    rows, few = constant("bindings/stream.cpp", "rows_at_once"), 64
    assert rows == 128
    # Of cells that save more, more units: 128 rows are as many as a chunk has at least.
    layer = make_layer(kind, 16, 64 if len(CELLS[kind].saved) <= 4 else 32)
    x = random_problem(layer, 1 + rows // few, few).x
    out = np.empty((*x.shape[:2], layer.output_size), np.float32)
    with rk.num_threads(1):
        stream = layer.stream(few)
        rk.release_memory()
        stream.run(x[1:], out[1:])
        assert rk.release_memory() == 0
        stream.run(x, out)
        assert rk.release_memory() > 0


@pytest.mark.skipif(len(sets()) < 2, reason=f"one instruction set here: {sets()}")
@every_kind
def test_a_stream_keeps_its_instruction_set(kind):
    layer, p = make(kind)
    for own in sets():
        with rk.force_isa(own):
            want = layer(p.x)[0]
            stream = layer.stream(B)
        for t, other in zip(range(T), itertools.cycle(sets())):
            with rk.force_isa(other):
                assert stream.step(p.x[t]).tobytes() == want[t].tobytes()


def test_two_threads_at_once_are_told():
    layer = make_layer("lstm", 256, 256)
    x = np.random.default_rng(0).normal(size=(1500, 8, 256)).astype(np.float32)
    want, last = layer(x)
    stream = layer.stream(8)
    found = []
    worker = threading.Thread(target=lambda: found.append(stream.run(x)))
    worker.start()
    refused = []
    while worker.is_alive() and not refused:
        try:
            frozen(stream.state)
        except RuntimeError as error:
            refused.append(str(error))
    if refused:  # half a second's work has only begun
        for use in (
            lambda: stream.step(x[0]),
            lambda: stream.run(x),
            lambda: setattr(stream, "state", last),
            stream.reset,
            lambda: stream.reset([0]),
            lambda: stream.reset(np.ones(8, bool)),
        ):
            with pytest.raises(RuntimeError, match="stream: in use by another thread"):
                use()
    worker.join()
    assert refused == ["stream: in use by another thread"]
    assert found[0].tobytes() == want.tobytes()
    assert frozen(stream.state) == frozen(last)


def test_streams_of_one_layer_in_threads():
    layer, p = make("lstm")
    want = layer(p.x)[0].tobytes()
    found = []

    def use():
        stream = layer.stream(B)
        found.append(np.stack([stream.step(x) for x in p.x]).tobytes())

    workers = [threading.Thread(target=use) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [want] * 8


@every_kind
def test_an_error_leaves_the_state(kind):
    layer, p = make(kind)
    want = layer(p.x)[0]
    stream = layer.stream(B)
    stream.run(p.x[:6])
    for wrong in (p.x[6, :2], p.x[6].astype(np.float64), p.x[6].tolist()):
        with pytest.raises((TypeError, ValueError)):
            stream.step(wrong)
    with pytest.raises(ValueError, match="out: expected shape"):
        stream.run(p.x[6:], np.empty((1, *want[0].shape), np.float32))
    assert stream.run(p.x[6:]).tobytes() == want[6:].tobytes()
