"""Masked steps: skipped wherever they are, with what is carried over them and what is cut off."""

import numpy as np
import pytest
from helpers import (
    KINDS,
    QUIET,
    assert_close,
    assert_same,
    fresh_like,
    handed_through,
    in_each_dtype,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
)

import rnnkern as rk
from rnnkern import reference
from rnnkern.reference import CELLS

T, B, I, H = 9, 5, 3, 10
CLIP = rk.Clip(step_value=0.5, step_norm=0.8)

every_kind = pytest.mark.parametrize("kind", KINDS)
LAYOUTS = [
    {},
    {"bidirectional": True},
    {"num_layers": 3, "residual": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
every_layout = pytest.mark.parametrize("options", LAYOUTS)


def run(layer, problem, clip=CLIP, **options):
    y, state, tape = problem.forward(layer, **options)
    return y, state, problem.backward(layer, tape, clip, trace=True)


def assert_same_bits(got, want):
    (y, state, grads), (y_want, state_want, grads_want) = got, want
    pairs = [("y", y, y_want), ("x", grads.x, grads_want.x)]
    pairs += [(name, grads.params[name], p) for name, p in grads_want.params.items()]
    pairs += zip(["state"] * 9, parts(state), parts(state_want), strict=False)
    pairs += zip(["dstate"] * 9, parts(grads.state), parts(grads_want.state), strict=False)
    pairs += zip(grads.trace._fields, grads.trace, grads_want.trace, strict=True)
    for name, one, other in pairs:
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert (grads.norm, grads.scale) == (grads_want.norm, grads_want.scale)


# ------------------------------------------------------------------------- beside the reference


@every_kind
@in_each_dtype
@every_layout
@pytest.mark.parametrize("resets", [None, 0.4])
def test_masked_steps_are_the_reference_s(kind, dtype, options, resets):
    layer = make_layer(kind, I, H, dtype=dtype, **options)
    problem = random_problem(layer, T, B, mask=0.6, resets=resets)
    want = run_reference(layer, problem, CLIP)
    got = run(layer, problem)
    assert_same(layer, got, want)
    inferred, state = layer(problem.x, problem.state, mask=problem.mask, resets=problem.resets)
    assert_close(inferred, want.inferred[0], dtype, "inferred y")
    for one, other in zip(parts(state), parts(want.inferred[1]), strict=True):
        assert_close(one, other, dtype, "inferred state")
    assert not np.array_equal(problem.but(mask=None).forward(layer)[0], got[0])


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_resets_beside_masked_steps_are_the_reference_s(kind, bidirectional):
    """Few steps, so that every order of a reset, a real and a masked step comes at both ends."""
    layer = make_layer(kind, I, 4, bidirectional=bidirectional, dtype=np.float64)
    for seed in range(3):
        problem = random_problem(layer, 4, 40, mask=0.4, resets=0.4, seed=seed)
        assert_same(layer, run(layer, problem), run_reference(layer, problem, CLIP))


@pytest.mark.parametrize("kind", ["lstm", "gru", "slstm", "min_gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_seen_of_a_backward_is_at_the_caller_s_steps(kind, bidirectional):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=bidirectional, dtype=np.float64)
    problem = random_problem(layer, T, B, mask=0.6)
    _, _, tape = problem.forward(layer)
    trace = problem.backward(layer, tape, CLIP, trace=True).trace
    want = run_reference(layer, problem, CLIP)
    for name, values in zip(trace._fields, trace, strict=True):
        if values is not None:
            assert_close(values, getattr(want.grads.trace, name), np.float64, name)
    at_rest = ~problem.mask
    assert (trace.scale[:, at_rest] == 1).all()
    assert (trace.dh[:, at_rest] == 0).all()
    P, D = layer.output_size, 1 + bidirectional
    steps = want.tape.steps
    for k in range(2 * D):
        h, gates = np.zeros((T, B, P)), np.zeros((T, B, CELLS[kind].gates * H))
        carried = np.zeros((T, B, len(steps[k][0].new) - 1, H))
        for step in steps[k]:
            h[step.t, step.rows] = step.new[0]
            gates[step.t, step.rows] = step.gates
            for j, c in enumerate(step.new[1:]):
                carried[step.t, step.rows, j] = c
        own = slice(k % D * P, (k % D + 1) * P)
        assert_close(tape.hiddens[k // D][..., own], h, np.float64, "hiddens")
        if carried.size:
            assert_close(tape.cells[k].reshape(carried.shape), carried, np.float64, "cells")
        assert (tape.gates[k][at_rest] == 0).all()
        assert tape.gates[k][problem.mask].any()
        if kind != "slstm":  # whose saved values are not its gates alone
            saved = tape.gates[k].reshape(T, B, -1)[..., : gates.shape[-1]]
            assert_close(saved, gates, np.float64, "gates")


# ----------------------------------------------------------------------------- beside lengths


@every_kind
@every_layout
def test_a_mask_of_first_steps_has_the_bits_of_lengths(kind, options):
    layer = make_layer(kind, I, H, **options)
    problem = random_problem(layer, T, B, lengths=np.array([3, 0, 9, 1, 7]), resets=0.3)
    mask = np.arange(T)[:, None] < problem.lengths
    mask = mask.T if layer.batch_first else mask
    masked = problem.but(lengths=None, mask=mask, resets=problem.resets & mask)
    assert_same_bits(run(layer, masked), run(layer, problem))
    assert masked.forward(layer)[0].flags.writeable == problem.forward(layer)[0].flags.writeable


def moved(layer, problem, places):
    """A problem of real steps alone with masked steps between them, full of nan."""
    step = 1 if layer.batch_first else 0
    real = np.zeros((T + 4, B), bool)
    for b, own in enumerate(places):
        real[own, b] = True

    def spread(a, filling):
        a = np.moveaxis(a, step, 0)
        out = np.full((T + 4, *a.shape[1:]), filling, a.dtype)
        for b, own in enumerate(places):
            out[own, b] = a[: len(own), b]
        return np.moveaxis(out, 0, step)

    resets = None if problem.resets is None else spread(problem.resets, False)
    return real, problem.but(
        x=spread(problem.x, np.nan),
        dy=spread(problem.dy, np.nan),
        resets=resets,
        lengths=None,
        mask=np.moveaxis(real, 0, step),
    )


@every_kind
@every_layout
@pytest.mark.parametrize("where", ["in front", "between"])
def test_a_row_s_bits_are_those_of_its_real_steps(kind, options, where):
    """Wherever masked steps are, x and dy are not read there, and y and dx are zero."""
    options = {**options, **({"dropout": 0.3} if "num_layers" in options else {})}
    layer = make_layer(kind, I, H, **options)
    lengths = [3, 0, 9, 1, 7]
    problem = random_problem(layer, T, B, lengths=np.array(lengths), resets=0.3)
    first = (slice(None), 0) if layer.batch_first else 0
    problem.resets[first] = False  # behind masked steps it would act on the reverse direction, too
    rng = np.random.default_rng(3)
    if where == "in front":
        places = [np.arange(T + 4 - n, T + 4) for n in lengths]
    else:
        places = [np.sort(rng.choice(T + 4, n, replace=False)) for n in lengths]
    real, masked = moved(layer, problem, places)
    y, state, grads = run(layer, masked)
    y_want, state_want, grads_want = run(layer, problem)

    def gathered(a, axis=0, filling=0.0):
        a = np.moveaxis(np.moveaxis(a, axis, 0), 1 + (axis > 0), 1)
        out = np.full((T, *a.shape[1:]), filling, a.dtype)
        for b, own in enumerate(places):
            out[: len(own), b] = a[own, b]
        assert (a[~real] == filling).all()
        return out

    def by_step(a):
        return a.swapaxes(0, 1) if layer.batch_first else a

    np.testing.assert_array_equal(gathered(by_step(y)), by_step(y_want))
    np.testing.assert_array_equal(gathered(by_step(grads.x)), by_step(grads_want.x))
    for name, values in zip(grads.trace._fields, grads.trace, strict=True):
        if values is None:
            continue
        for k, own in enumerate(values):
            want = getattr(grads_want.trace, name)[k]
            np.testing.assert_array_equal(gathered(own, filling=float(name == "scale")), want)
    for one, other in (
        *zip(parts(state), parts(state_want), strict=True),
        *zip(parts(grads.state), parts(grads_want.state), strict=True),
    ):
        np.testing.assert_array_equal(one, other)
    for name, p in grads_want.params.items():
        np.testing.assert_array_equal(grads.params[name], p, err_msg=name)


# ---------------------------------------------------------------------------------- the edges


@every_kind
def test_rows_without_a_real_step_hand_their_state_through(kind):
    layer = make_layer(kind, I, H, bidirectional=True)
    problem = random_problem(layer, T, B, mask=0.6)
    problem.mask[:, 1:3] = False
    resets = np.zeros((T, B), bool)
    resets[4, 2] = True  # of the other row, a fresh state takes its place
    y, state, grads = run(layer, problem.but(resets=resets))
    fresh = fresh_like(layer, problem.state)
    assert not y[:, 1:3].any()
    assert not grads.x[:, 1:3].any()
    for got, given, begun in zip(parts(state), parts(problem.state), parts(fresh), strict=True):
        np.testing.assert_array_equal(got[:, 1], given[:, 1])
        np.testing.assert_array_equal(got[:, 2], begun[:, 2])
    for got, given in zip(parts(grads.state), handed_through(layer, problem.dstate), strict=True):
        np.testing.assert_array_equal(got[:, 1], given[:, 1])
        assert (got[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("step", "fresh_last", "fresh_first"),
    [
        (0, "", "forward"),  # before the masked start: the forward direction's initial state
        (1, "reverse", "forward"),  # and from the next step on the reverse direction's last one
        (2, "reverse", "forward"),  # at the first real step too
        (4, "", ""),  # between real steps
        (6, "forward", "reverse"),  # behind them: the other way round
        (7, "forward", "reverse"),
    ],
)
def test_a_reset_at_either_end_cuts_the_states_there(step, fresh_last, fresh_first):
    gru = make_layer("gru", I, H, bidirectional=True)
    problem = random_problem(gru, 8, 2)
    mask, resets = np.zeros((8, 2), bool), np.zeros((8, 2), bool)
    mask[2:6] = True
    resets[step, 0] = True
    _, state, grads = run(gru, problem.but(mask=mask, resets=resets), None)
    for d, name in enumerate(("forward", "reverse")):
        assert (state[d, 0] == 0).all() == (name == fresh_last)
        assert (grads.state[d, 0] == 0).all() == (name == fresh_first)
        assert state[d, 1].any()
        assert grads.state[d, 1].any()


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "residual": True, "dropout": 0.3}])
@pytest.mark.parametrize("checkpoint", [1, 2, 4, "sqrt", 100])
@pytest.mark.parametrize("kind", ["lstm_noisy", "gru", "rg_lru"])
def test_checkpoints_keep_the_bits(kind, options, checkpoint):
    layer = make_layer(kind, I, H, **options)
    problem = random_problem(layer, T, B, mask=0.6, resets=0.3)
    assert_same_bits(run(layer, problem, checkpoint=checkpoint), run(layer, problem))


@every_layout
def test_an_ensemble_s_members_are_masked_alike(options):
    if options.get("batch_first"):
        options = {**options, "batch_first": False}
    grus = make_layer("gru", I, H, ensemble=3, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(T, 3, B, I)).astype(np.float32)
    mask, resets = rng.random((T, B)) < 0.6, rng.random((T, B)) < 0.3
    for given in (x, x[:, 0]):
        y, h, tape = grus.forward(given, mask=mask, resets=resets)
        grads = grus.backward(tape, y, h, CLIP, trace=True)
        for e in range(3):
            own, gru = given[:, e] if given.ndim == 4 else given, grus.member(e)
            y_own, h_own, tape_own = gru.forward(own, mask=mask, resets=resets)
            grads_own = gru.backward(tape_own, y_own, h_own, CLIP, trace=True)
            np.testing.assert_array_equal(y[:, e], y_own)
            np.testing.assert_array_equal(h[:, e], h_own)
            np.testing.assert_array_equal(grads.x[:, e], grads_own.x)
            np.testing.assert_array_equal(grads.trace.dh[:, :, e], grads_own.trace.dh)
            np.testing.assert_array_equal(tape.hiddens[0][:, e], tape_own.hiddens[0])
            np.testing.assert_array_equal(tape.gates[0][:, e], tape_own.gates[0])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(70, 2, 3), (40, 64, 2)])  # layers side by side; shared rows
def test_threads_keep_the_bits(threads, shape):
    steps, rows, layers = shape
    gru = rk.GRU(40, 96, layers, seed=0)
    problem = random_problem(gru, steps, rows, mask=0.6, resets=0.1)
    one, many = (on_threads(n, run, gru, problem) for n in (1, threads))
    assert_same_bits(many, one)


@pytest.mark.parametrize("kind", QUIET[:4])
def test_a_row_s_bits_do_not_depend_on_other_rows(kind):
    layer = make_layer(kind, I, H, bidirectional=True, dtype=np.float64)
    problem = random_problem(layer, T, B, mask=0.5, resets=0.3)
    y, state, grads = run(layer, problem)
    for b in range(B):
        one = slice(b, b + 1)
        rows = {name: getattr(problem, name)[:, one] for name in ("x", "dy", "mask", "resets")}
        for name in ("state", "dstate"):
            rows[name] = joined([part[:, one] for part in parts(getattr(problem, name))])
        y_own, state_own, grads_own = run(layer, problem.but(**rows))
        np.testing.assert_array_equal(y[:, one], y_own)
        np.testing.assert_array_equal(grads.x[:, one], grads_own.x)
        for part, own in zip(parts(state), parts(state_own), strict=True):
            np.testing.assert_array_equal(part[:, one], own)


def test_arrays_of_no_steps_or_rows():
    gru = make_layer("gru", I, H)
    for steps, rows in ((0, 3), (4, 0)):
        problem = random_problem(gru, steps, rows, mask=0.5, resets=0.5)
        y, state, grads = run(gru, problem)
        assert y.shape == (steps, rows, H)
        assert grads.x.shape == (steps, rows, I)
        np.testing.assert_array_equal(state, problem.state)
        assert all((p == 0).all() for p in grads.params.values())


def test_an_unbatched_row_has_a_mask_of_steps():
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, mask=0.6, resets=0.3)
    assert problem.mask.shape == (T,)
    assert_same(gru, run(gru, problem), run_reference(gru, problem, CLIP))


@pytest.mark.parametrize(
    "lay", [np.asfortranarray, lambda m: m[::-1].copy()[::-1], lambda m: np.repeat(m, 2, 1)[:, ::2]]
)
def test_masks_of_any_layout(lay):
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B, mask=0.6)
    assert_same_bits(run(gru, problem.but(mask=lay(problem.mask))), run(gru, problem))
    assert_same_bits(run(gru, problem.but(mask=problem.mask.tolist())), run(gru, problem))


def test_the_mask_is_copied():
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B, mask=0.6)
    _, _, tape = problem.forward(gru)
    want = problem.backward(gru, tape)
    problem.mask[...] = ~problem.mask
    got = problem.backward(gru, tape)
    np.testing.assert_array_equal(got.x, want.x)


def test_a_tape_outlives_its_call_s_arrays():
    """What backward reads of x is the tape's own, but the caller is still told of a change."""
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B, mask=0.6)
    y, state, tape = problem.forward(gru)
    y[...] = 7.0  # y is not read again
    grads = problem.backward(gru, tape, CLIP, trace=True)
    assert_same_bits((y, state, grads), (y, *run(gru, problem)[1:]))
    problem.x[...] = 0.0
    with pytest.raises(RuntimeError, match=r"^x: expected the values that forward read"):
        problem.backward(gru, tape)


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((T, B)), TypeError, "mask: expected an array of booleans, got float64"),
        (np.ones((T, B), np.uint8), TypeError, "mask: expected an array of booleans, got uint8"),
        ("yes", TypeError, "mask: expected an array of booleans, got <U3"),
        (np.ones((B, T), bool), ValueError, r"mask: expected shape \(9, 5\), got \(5, 9\)"),
        (np.ones(T, bool), ValueError, r"mask: expected shape \(9, 5\), got \(9,\)"),
        (np.ma.ones((T, B), bool), TypeError, "mask: expected an array without a mask"),
    ],
)
def test_wrong_masks_are_refused(mask, error, message):
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B)
    for call in (gru, gru.forward):
        with pytest.raises(error, match=f"^{message}"):
            call(problem.x, mask=mask)


def test_lengths_and_a_mask_exclude_each_other():
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B, lengths="random", mask=0.6)
    with pytest.raises(ValueError, match=r"^mask: expected None with lengths, got an array$"):
        problem.forward(gru)
    with pytest.raises(ValueError, match=r"^mask: expected None with lengths, got an array$"):
        run_reference(gru, problem)
    config = reference.Config("gru", I, H)
    with pytest.raises(ValueError, match=r"^mask: expected shape \(9, 5\), got \(2, 5\)$"):
        reference.forward(config, gru.params, problem.x, mask=problem.mask[:2])


def test_a_mask_s_own_memory_is_what_it_says():
    """A view as wide as the batch, of one byte, and bytes that are neither 0 nor 1."""
    gru = make_layer("gru", I, H)
    problem = random_problem(gru, T, B)
    wide = np.broadcast_to(np.array(True), (T, B))
    np.testing.assert_array_equal(gru(problem.x, mask=wide)[0], gru(problem.x)[0])
    odd = np.full((T, B), 3, np.uint8).view(bool)
    odd[2] = False
    even = np.ones((T, B), bool)
    even[2] = False
    np.testing.assert_array_equal(gru(problem.x, mask=odd)[0], gru(problem.x, mask=even)[0])


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"reverse": True}, {"num_layers": 2}]
)
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_a_tape_tells_its_real_steps(options, checkpoint):
    layer = make_layer("lstm", 3, 4, **options)
    layout = (lambda a: np.swapaxes(a, 0, 1)) if layer.batch_first else (lambda a: a)
    x = layout(np.zeros((7, 4, 3), np.float32))
    lengths = np.array([2, 7, 0, 5])
    behind = np.arange(7)[:, None] < lengths
    gaps = np.random.default_rng(0).random((7, 4)) < 0.5

    def told(**rows):
        return layer.forward(x, checkpoint=checkpoint, **rows)[2].real_steps

    assert told().dtype == bool
    assert told().shape == (7, 4)
    assert told().all()
    for want in (behind, gaps, np.zeros((7, 4), bool), np.ones((7, 4), bool), behind[::-1]):
        assert (told(mask=layout(want)) == want).all()
    assert (told(lengths=lengths) == behind).all()
    assert layer.forward(x[:, :0] if not layer.batch_first else x[:0])[2].real_steps.shape == (7, 0)


def test_the_tape_of_an_ensemble_tells_its_real_steps():
    layer = make_layer("gru", 3, 4, ensemble=3)
    mask = np.random.default_rng(0).random((6, 2)) < 0.5
    assert (layer.forward(np.zeros((6, 2, 3), np.float32), mask=mask)[2].real_steps == mask).all()
