"""Resets inside a sequence, checkpoints in time, residual layers: they are what they say."""

import itertools
import sys
from subprocess import run

import numpy as np
import pytest
from helpers import (
    KINDS,
    QUIET,
    assert_same,
    both_ways,
    forced_grid,
    fresh_like,
    fused_sets,
    in_each_dtype,
    is_elementwise,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
    wide,
)
from plan import plan_of

import rnnkern as rk
from rnnkern.reference import CELLS

T, B, I, H = 9, 4, 3, 10

every_kind = pytest.mark.parametrize("kind", KINDS)
every_layout = pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ],
)


def same_bits(got, want, what=""):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want), err_msg=what)


def same_gradients(got, want):
    for name, array in want.params.items():
        same_bits(got.params[name], array, name)
    same_bits(got.x, want.x, "x")
    for one, other in zip(parts(got.state), parts(want.state), strict=True):
        same_bits(one, other, "state")
    assert (got.norm, got.scale, got.finite) == (want.norm, want.scale, want.finite)
    assert got.flow_penalty == want.flow_penalty
    for one, other in zip(got.trace or (), want.trace or (), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            same_bits(one, other, "trace")


# ----------------------------------------------------------------------------------- resets


@every_kind
@in_each_dtype
@every_layout
@pytest.mark.parametrize("lengths", [None, "random"])
def test_resets_are_the_reference_s(kind, dtype, options, lengths):
    layer = make_layer(kind, I, H, dtype=dtype, **options)
    problem = random_problem(layer, T, B, lengths=lengths, resets=0.3)
    clip = rk.Clip(step_value=0.5, step_norm=0.8)
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, clip)
    assert_same(layer, (y, state, grads), run_reference(layer, problem, clip))
    plain = problem.but(resets=None)
    assert not np.array_equal(plain.forward(layer)[0], y)


@pytest.mark.parametrize("kind", QUIET)  # masks go by the sequence's step
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_sequences_that_share_a_row_are_those_of_calls_of_their_own(kind, options):
    """The same bits, forward and back; parameters' gradients are sums, in another order."""
    # An RG-LRU sees the reset itself. A call of its own can't tell the reverse direction of one.
    sees_resets = kind == "rg_lru"
    layer = make_layer(kind, I, H, **options, **both_ways(kind) if options else {})
    problem = random_problem(layer, 12)
    cuts = [0, 3, 4, 9, 12]
    resets = np.zeros(12, dtype=bool)
    resets[cuts[1:-1]] = True
    shared = problem.but(resets=resets)
    y, state, tape = shared.forward(layer)
    grads = shared.backward(layer, tape)
    D = 1 + layer.bidirectional
    fresh, zeros = fresh_like(layer, problem.state), joined([s * 0 for s in parts(problem.state)])
    sums = {name: np.zeros_like(p) for name, p in layer.params.items()}
    for first, last in itertools.pairwise(cuts):
        own = problem.but(
            x=problem.x[first:last],
            dy=problem.dy[first:last],
            state=at_ends(problem.state, fresh, D, first == 0, last == 12),
            dstate=at_ends(problem.dstate, zeros, D, last == 12, first == 0),
            resets=np.arange(first, last) == first if sees_resets and first > 0 else None,
        )
        own_y, own_state, own_tape = own.forward(layer)
        own_grads = own.backward(layer, own_tape)
        same_bits(y[first:last], own_y)
        same_bits(grads.x[first:last], own_grads.x)
        for got, want in zip(parts(state), parts(own_state), strict=True):
            if last == 12:
                same_bits(got[0::D], want[0::D])
            if first == 0 and D == 2:
                same_bits(got[1::D], want[1::D])
        for name, array in own_grads.params.items():
            sums[name] += array
    for name, array in sums.items():
        # Both sums round once a step, by half a unit of the largest sum at most.
        bound = 12 * np.finfo(np.float32).eps * np.abs(array).max()
        np.testing.assert_allclose(grads.params[name], array, rtol=0, atol=bound, err_msg=name)


def at_ends(state, other, D, forward, reverse):
    """A state with the parts of the directions that begin, or end, here; others' elsewhere."""
    out = [a.copy() for a in parts(other)]
    for a, b in zip(parts(state), out, strict=True):
        for d, there in zip(range(D), (forward, reverse), strict=False):
            if there:
                b[d::D] = a[d::D]
    return joined(out)


@every_kind
def test_a_reset_at_the_first_step_drops_the_initial_state(kind):
    layer = make_layer(kind, I, H)
    problem = random_problem(layer, T, B)
    resets = np.zeros((T, B), dtype=bool)
    resets[0, 1] = True
    with_it = problem.but(resets=resets)
    y, _, tape = with_it.forward(layer)
    state = [np.array(a) for a in parts(problem.state)]
    for a, fresh in zip(state, parts(fresh_like(layer, problem.state)), strict=True):
        a[:, 1] = fresh[:, 1]
    without_state = problem.but(state=joined(state))
    if kind == "rg_lru":  # which also lets x in whole there
        assert not np.array_equal(without_state.forward(layer)[0][0, 1], y[0, 1])
        without_state = without_state.but(resets=resets)
    same_bits(y, without_state.forward(layer)[0])
    grads = parts(with_it.backward(layer, tape).state)
    for a, of in zip(grads, CELLS[kind].states, strict=True):
        assert not a[:, 1].any()
        assert a[:, 0].any() == of.flows


@every_kind
@pytest.mark.parametrize(
    ("shared", "T", "B", "H"), [("rows", 32, 24, 40), ("units", 20, 2, 256)], ids=["rows", "units"]
)
def test_resets_have_the_same_bits_for_any_threads_rows_and_set(kind, shared, T, B, H):
    layer = make_layer(kind, I, wide(kind, H), num_layers=2)
    problem = random_problem(layer, T, B, resets=0.2)
    clip = rk.Clip(step_norm=0.5)

    def results(threads):
        y, _, tape = on_threads(threads, problem.forward, layer)
        grads = on_threads(threads, problem.backward, layer, tape, clip, trace=True)
        return [y, grads.x, *grads.params.values(), *(a for a in grads.trace if a is not None)]

    want = results(1)
    row = problem.but(x=problem.x[:, :1], state=None, dstate=None, resets=problem.resets[:, :1])
    assert row.resets.any()
    alone = row.forward(layer)[0]
    same_bits(problem.but(state=None).forward(layer)[0][:, :1], alone)
    for threads in (1, 2, 5):
        for name in fused_sets():
            with rk.force_isa(name), forced_grid(threads, threads if shared == "rows" else 1):
                plan = plan_of(layer, T, B, threads)
                assert (plan.threads, plan.shared) == (
                    threads,
                    shared if threads > 1 else "nothing",
                )
                for got, expected in zip(results(threads), want, strict=True):
                    same_bits(got, expected, f"{name}, {threads} threads")


@pytest.mark.parametrize(
    ("resets", "error", "said"),
    [
        (np.zeros((T, B + 1), bool), ValueError, r"resets: expected shape \(9, 4\), got \(9, 5\)"),
        (np.zeros((B, T), bool), ValueError, r"resets: expected shape \(9, 4\), got \(4, 9\)"),
        (np.zeros((T, B), int), TypeError, "resets: expected an array of booleans, got int64"),
        ("no", TypeError, "resets: expected an array of booleans, got <U2"),
    ],
)
def test_bad_resets_are_named(resets, error, said):
    layer = make_layer("gru", I, H)
    x = np.zeros((T, B, I), np.float32)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=said):
            call(x, resets=resets)


# ------------------------------------------------------------------------------ checkpoints


@every_kind
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("every", [1, 2, 4, 9, 100, "sqrt"])
def test_checkpoints_change_no_bit(kind, layers, every):
    between = {"dropout": 0.3, "residual": True} if layers > 1 else {}
    layer = make_layer(kind, I, H, num_layers=layers, **between)
    penalty = 0.2 if CELLS[kind].has_flow_penalty else 0.0
    clip = rk.Clip(step_value=0.4, step_norm=0.2, value=1.5, max_norm=2.0)
    for lengths, resets in itertools.product([None, [3, 9, 0, 5]], [None, 0.2]):
        lengths = None if lengths is None else np.array(lengths)
        problem = random_problem(layer, T, B, lengths=lengths, resets=resets)
        results = []
        for checkpoint in (None, every):
            layer.dropout_step = 5
            y, state, tape = problem.forward(layer, checkpoint=checkpoint)
            for _ in range(2):  # a tape is a value: it may be used again
                grads = problem.backward(layer, tape, clip, trace=True, flow_penalty=penalty)
            results.append((y, state, grads))
        (y, state, grads), (other_y, other_state, other_grads) = results
        same_bits(other_y, y)
        for one, other in zip(parts(other_state), parts(state), strict=True):
            same_bits(one, other)
        same_gradients(other_grads, grads)
        assert grads.norm > 2.0  # every clip acts
        assert grads.trace.scale.min() < 1


@in_each_dtype
def test_checkpoints_over_many_rows_and_chunks(dtype):
    """Segments that end within the kernels' own chunks of steps, on several threads."""
    T, B, clip = 150, 24, rk.Clip(step_norm=0.1, max_norm=1.0)
    layer = make_layer("lstm", 5, 33, dtype=dtype)
    problem = random_problem(layer, T, B, lengths="random")
    for threads in (1, 2):
        plan = plan_of(layer, T, B, threads)
        *_, tape = on_threads(threads, problem.forward, layer)
        want = on_threads(threads, problem.backward, layer, tape, clip)
        for every in (7, 41, 149):
            assert every % plan.forward_chunk
            assert every % plan.backward_chunk
            assert plan_of(layer, every, B, threads).threads == (threads if every > 7 else 1)
            *_, tape = on_threads(threads, problem.forward, layer, checkpoint=every)
            same_gradients(on_threads(threads, problem.backward, layer, tape, clip), want)


def test_checkpoints_of_one_unbatched_row_and_batch_first():
    for rows, options in ((None, {}), (3, {"batch_first": True})):
        layer = make_layer("gru", I, H, **options)
        problem = random_problem(layer, T, rows)
        *_, tape = problem.forward(layer)
        want = problem.backward(layer, tape)
        *_, tape = problem.forward(layer, checkpoint="sqrt")
        same_gradients(problem.backward(layer, tape), want)


@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (4, 0), (0, 0), (1, 1)])
def test_checkpoints_of_little(steps, rows):
    layer = make_layer("lstm", I, H, num_layers=2)
    problem = random_problem(layer, steps, rows)
    *_, tape = problem.forward(layer)
    want = problem.backward(layer, tape)
    for every in (1, 3, "sqrt"):
        *_, tape = problem.forward(layer, checkpoint=every)
        same_gradients(problem.backward(layer, tape), want)


def test_a_checkpoint_of_sqrt_counts_steps_in_any_layout():
    """Seen in the memory that its tape held, once it is released."""
    T, B = 900, 4
    waited = []
    for batch_first in (False, True):
        layer = make_layer("gru", I, 200, batch_first=batch_first)
        x = random_problem(layer, T, B).x
        for checkpoint in ("sqrt", 30, 2):
            rk.release_memory()
            y, _, tape = layer.forward(x, checkpoint=checkpoint)
            rk.release_memory()
            del y, tape
            waited.append(rk.release_memory())
    assert waited[:3] == waited[3:]
    assert waited[0] == waited[1] < waited[2]


def test_a_checkpoint_s_tape_says_what_it_has_not():
    layer = make_layer("lstm", I, H)
    *_, tape = random_problem(layer, T, B).forward(layer, checkpoint=3)
    for name in ("gates", "cells", "hiddens"):
        with pytest.raises(ValueError, match=f"tape.{name}: expected a tape without checkpoint"):
            getattr(tape, name)


def test_outputs_of_a_checkpoint_are_the_caller_s():
    layer = make_layer("gru", I, H)
    problem = random_problem(layer, T, B)
    *_, tape = problem.forward(layer)
    want = problem.backward(layer, tape)
    y, _, tape = problem.forward(layer, checkpoint=3)
    y[:] = 0
    same_gradients(problem.backward(layer, tape), want)


@pytest.mark.parametrize(
    ("every", "error", "said"),
    [
        (0, ValueError, "checkpoint: expected an integer of at least 1, got 0"),
        (-2, ValueError, "checkpoint: expected an integer of at least 1, got -2"),
        (2.0, TypeError, "checkpoint: expected an integer, got float"),
        (True, TypeError, "checkpoint: expected an integer, got bool"),
        ("root", ValueError, "checkpoint: expected an integer or 'sqrt', got 'root'"),
    ],
)
def test_bad_checkpoints_are_named(every, error, said):
    layer = make_layer("gru", I, H)
    with pytest.raises(error, match=said):
        layer.forward(np.zeros((T, B, I), np.float32), checkpoint=every)


def test_checkpoints_are_refused_with_two_directions():
    layer = make_layer("gru", I, H, bidirectional=True)
    with pytest.raises(ValueError, match="checkpoint: expected None with bidirectional, got 3"):
        layer.forward(np.zeros((T, B, I), np.float32), checkpoint=3)


MEMORY = """
import sys
import numpy as np, rnnkern as rk
T, B, H = 20_000, 4, 64
lstm = rk.LSTM(H, H, seed=0)
x = np.ones((T, B, H), np.float32)
dy = np.ones((T, B, H), np.float32)
*_, tape = lstm.forward(x[:64])  # threads, code
lstm.backward(tape, dy[:64])
del tape
checkpoint = {"none": None, "sqrt": "sqrt"}[sys.argv[1]]
y, _, tape = lstm.forward(x, checkpoint=checkpoint)
grads = lstm.backward(tape, dy)
# Not getrusage: its peak begins with the parent's, of which this process was a copy.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def test_checkpoints_save_memory():
    """Peak memory of a process with and without, against what a tape takes by its shapes."""
    peaks = [
        int(run([sys.executable, "-c", MEMORY, which], capture_output=True, check=True).stdout)
        for which in ("none", "sqrt")
    ]
    tape = 5 * 20_000 * 4 * 64 * 4  # bytes of i, f, g, o and c
    saved = peaks[0] - peaks[1]
    assert saved > 0.9 * tape, f"saved {saved / 2**20:.0f} MiB of {tape / 2**20:.0f}"


# --------------------------------------------------------------------------------- residual


@every_kind
@in_each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_residual_is_the_reference_s(kind, dtype, bidirectional):
    layer = make_layer(
        kind, I, H, num_layers=3, residual=True, bidirectional=bidirectional, dtype=dtype
    )
    problem = random_problem(layer, T, B, lengths="random", resets=0.1)
    clip = rk.Clip(step_value=0.5, step_norm=2.0)
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, clip)
    assert_same(layer, (y, state, grads), run_reference(layer, problem, clip))
    if kind in QUIET:
        same_bits(layer(problem.x, problem.state, problem.lengths, resets=problem.resets)[0], y)
    for lengths_only in (problem.but(dy=None), problem.but(dstate=None)):
        grads = lengths_only.backward(layer, tape)
        assert_same(layer, (y, state, grads), run_reference(layer, lengths_only))


@every_kind
def test_residual_is_layers_by_hand(kind):
    width = make_layer(kind, I, H).output_size
    deep = make_layer(kind, width, H, num_layers=3, residual=True, dropout=0.4)
    plain = make_layer(kind, width, H, num_layers=3)
    problem = random_problem(deep, T, B, state=False)
    y = problem.x
    for number in range(3):
        one = make_layer(kind, width, H)
        for name in one.params:
            one.params[name][...] = deep.params[name.replace("l0", f"l{number}")]
        h, _ = one(y)
        y = y + h if number else h
    same_bits(deep(problem.x)[0], y)
    assert not np.array_equal(plain(problem.x)[0], y)


def test_residual_with_dropout_is_the_reference_s_on_the_undropped_stream():
    layer = make_layer("gru", I, H, num_layers=3, residual=True, dropout=0.5)
    problem = random_problem(layer, T, B)
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape)
    want = run_reference(layer, problem, masks=masks_of(layer, T, B))
    assert_same(layer, (y, state, grads), want)


def masks_of(layer, T, B):
    """The dropout masks of the layer's last forward, seen in what a ReLU network hands on."""
    masks, width = [], layer.output_size
    for number in range(1, layer.num_layers):
        p = rk.RNN(1, width, layer.num_layers, nonlinearity="relu", dropout=layer.dropout, seed=0)
        p._dropout_seeds, p.dropout_step = layer._dropout_seeds, layer.dropout_step - 1
        for name, array in p.params.items():
            array[...] = 0
            if name == f"bias_ih_l{number - 1}":
                array[...] = 1
            elif name == f"weight_ih_l{number}":
                array[...] = np.eye(width)
        *_, tape = p.forward(np.zeros((T, B, 1), np.float32))
        masks.append(tape.hiddens[number])
    return masks


def test_a_residual_stream_is_its_layer():
    layer = make_layer("lstm", H, H, num_layers=4, residual=True)
    problem = random_problem(layer, T, B, state=False)
    y, _ = layer(problem.x)
    stream = layer.stream(batch_size=B)
    same_bits(np.stack([stream.step(x) for x in problem.x[:4]]), y[:4])
    same_bits(stream.run(problem.x[4:]), y[4:])


def test_a_residual_tape_has_every_layer_s_h():
    layer = make_layer("gru", H, H, num_layers=3, residual=True)
    problem = random_problem(layer, T, B)
    y, _, tape = problem.forward(layer)
    first, second, third = tape.hiddens
    same_bits(first + second + third, y)


def test_residual_wants_two_layers():
    with pytest.raises(ValueError, match="residual: expected False with num_layers=1"):
        rk.GRU(I, H, residual=True)
    with pytest.raises(TypeError, match="residual: expected True or False, got int"):
        rk.GRU(I, H, 2, residual=1)


# ----------------------------------------------------------------------------- deep stacks


@every_kind
@pytest.mark.parametrize(("layers", "rows", "steps"), [(2, 1, 300), (5, 3, 150)])
def test_layers_side_by_side_change_no_bit(kind, layers, rows, steps):
    """Few rows and many steps: each thread runs layers of its own, behind those below."""
    H = 64 if is_elementwise(kind) else 40  # the units of vectors of any length divide by two
    layer = make_layer(kind, 20, wide(kind, H), num_layers=layers, dropout=0.2, residual=layers > 2)
    problem = random_problem(layer, steps, rows, lengths="random", resets=0.02)
    clip = rk.Clip(step_value=0.5, step_norm=0.9, max_norm=1.0)

    def results(threads):
        layer.dropout_step = 3
        y, state, tape = on_threads(threads, problem.forward, layer)
        grads = on_threads(threads, problem.backward, layer, tape, clip, trace=True)
        given = problem.x, problem.state, problem.lengths
        inferred, _ = on_threads(threads, layer, *given, resets=problem.resets)
        return [
            *[y, inferred, grads.x, *parts(state), *parts(grads.state), *grads.params.values()],
            *(a for a in grads.trace if a is not None),
            grads.norm,
        ]

    want = results(1)
    for threads in (2, 3, 7):
        plan = plan_of(layer, steps, rows, threads)
        if is_elementwise(kind):  # without barriers units are cheaper
            assert plan.shared == "units"
        else:
            assert (plan.threads, plan.shared) == (min(threads, layers), "layers")
        for name in fused_sets():
            with rk.force_isa(name):
                for got, expected in zip(results(threads), want, strict=True):
                    same_bits(got, expected, f"{name}, {threads} threads")


def test_layers_side_by_side_hand_out_padding_as_zeros():
    layer = make_layer("lstm", 20, 40, num_layers=4)
    problem = random_problem(layer, 150, 3, lengths=np.array([150, 20, 0]))
    assert plan_of(layer, 150, 3, 2).shared == "layers"
    y, _, tape = on_threads(2, problem.forward, layer)
    grads = on_threads(2, problem.backward, layer, tape)
    for a in (y, grads.x):
        assert not a[20:, 1].any()
        assert not a[:, 2].any()
