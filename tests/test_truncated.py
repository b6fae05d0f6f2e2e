"""Truncated BPTT: its windows against its definition, one loss at a time."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
from attacks import Tensor
from helpers import (
    KINDS,
    LOOPS,
    QUIET,
    assert_close,
    at_held_m,
    in_each,
    make_layer,
    options_of,
    parts,
    random_problem,
)

import rnnkern as rk
from rnnkern import reference

T, B, I, H, L = 17, 3, 4, 5, 2
every_kind = pytest.mark.parametrize("kind", QUIET)
every_loop = pytest.mark.parametrize("kind", [kind for kind in LOOPS if kind in QUIET])
LENGTHS = [(1, 1), (1, 6), (4, 4), (4, 6), (5, 13), (6, 17), (17, 17), (3, 40), (40, 50)]


def make(kind, batch=B, *, dtype=np.float64, **options):
    layer = make_layer(kind, I, H, num_layers=L, dtype=dtype, **options)
    return layer, random_problem(layer, T, batch)


def cut(layer, a, steps):
    return a[:, steps] if layer.batch_first and a.ndim == 3 else a[steps]


def same_bits(got, want):
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for one, other in zip(parts(got), parts(want), strict=True):
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def same_gradients(got, want):
    assert list(got.params) == list(want.params)
    for name, array in want.params.items():
        same_bits(got.params[name], array)
    same_bits(got.x, want.x)
    same_bits(got.state, want.state)
    assert (got.norm, got.scale, got.finite) == (want.norm, want.scale, want.finite)


def perturb(layer, seed):
    """Other parameters, as an optimizer's step would leave them."""
    rng = np.random.default_rng(seed)
    for array in layer.params.values():
        array += 0.1 * rng.normal(size=array.shape).astype(array.dtype)


def defined(layer, p, k1, k2):
    """The sum over all steps t of the gradients of <dy_t, y_t> alone, cut where t's window begins.

    By the reference, whose forward gives the state at the cut, which is held fixed there.
    """
    sizes = (layer.input_size, H, L)
    config = reference.Config(layer._kind, *sizes, False, layer.bias, **options_of(layer))
    x, dy = p.x, p.dy
    grads = {name: np.zeros(a.shape) for name, a in layer.params.items()}
    dx = np.zeros(x.shape)
    for t in range(T):
        window_end = (t // k1 + 1) * k1
        a = max(0, window_end - k2)
        _, state, _ = reference.forward(config, layer.params, x[:a], p.state)
        y, _, tape = reference.forward(config, layer.params, x[a : t + 1], state)
        errors = np.zeros_like(y)
        errors[-1] = dy[t]
        found = reference.backward(config, layer.params, tape, errors)
        for name, array in found.params.items():
            grads[name] += array
        dx[a : t + 1] += found.x
    return grads, dx


@pytest.mark.parametrize(("k1", "k2"), LENGTHS)
@every_loop
def test_the_sum_of_all_windows_is_the_definition(kind, k1, k2):
    def check(layer, p, want_dx):
        got = {name: np.zeros(a.shape) for name, a in layer.params.items()}
        got_dx = np.zeros(p.x.shape)
        for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state):
            grads = window.backward(cut(layer, p.dy, window.steps))
            cut(layer, got_dx, window.reach)[...] += grads.x
            for name, array in grads.params.items():
                got[name] += array
        terms = max(np.abs(a).max() for a in want.values()) if "gain_ih_l0" in want else 0.0
        layout = f"batch_first={layer.batch_first}"
        for name, array in want.items():
            assert_close(got[name], array, np.float64, f"{name}, {layout}", terms=terms)
        assert_close(got_dx, want_dx, np.float64, f"dx, {layout}", terms=terms)

    layer, p = make(kind)
    want, want_dx = defined(layer, p, k1, k2)
    check(layer, p, want_dx)
    rows_first = p.but(x=p.x.swapaxes(0, 1).copy(), dy=p.dy.swapaxes(0, 1).copy())
    check(make(kind, batch_first=True)[0], rows_first, want_dx.swapaxes(0, 1))


@in_each("batch", [B, None])
@in_each("options", [{}, {"batch_first": True}, {"residual": True}])
@pytest.mark.parametrize(("k1", "k2"), LENGTHS)
@every_loop
def test_windows(kind, k1, k2, options, batch):
    """What they cover, and that outputs and states are those of a call on the whole sequence."""
    layer, p = make(kind, batch, dtype=np.float32, **options)
    y, state = layer(p.x, p.state)
    windows = list(rk.truncated_bptt(layer, p.x, k1, k2, p.state))
    assert [window.steps.start for window in windows] == list(range(0, T, k1))
    for window in windows:
        start, stop = window.steps.start, min(window.steps.start + k1, T)
        assert window.steps == slice(start, stop)
        assert window.reach == slice(max(0, start + k1 - k2), stop)
        same_bits(window.y, cut(layer, y, window.steps))
        same_bits(window.state, layer(cut(layer, p.x, slice(stop)), p.state)[1])
    same_bits(windows[-1].state, state)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in QUIET])
def test_each_window_draws_masks_of_its_own(kind):
    """As a forward over its reach does; the state before it is that of the last window's."""
    layer, p = make(kind, dtype=np.float32)
    twin, _ = make(kind, dtype=np.float32)
    state = p.state
    for step, window in enumerate(rk.truncated_bptt(layer, p.x, 4, 4, p.state)):
        assert (twin.dropout_step, layer.dropout_step) == (step, step + 1)
        y, state, tape = twin.forward(p.x[window.reach], state)
        same_bits(window.y, y)
        same_bits(window.state, state)
        same_gradients(window.backward(p.dy[window.steps]), twin.backward(tape, p.dy[window.steps]))


@pytest.mark.parametrize(("k1", "k2"), [(T, T), (T, None), (T, 3 * T), (5 * T, 6 * T)])
@every_kind
def test_one_window_is_all_of_bptt(kind, k1, k2):
    layer, p = make(kind, dtype=np.float32)
    clip = rk.Clip(step_value=0.5, step_norm=1.0, value=0.1, max_norm=0.1)
    _, _, tape = layer.forward(p.x, p.state)
    (window,) = rk.truncated_bptt(layer, p.x, k1, k2, p.state)
    assert (window.steps, window.reach) == (slice(0, T), slice(0, T))
    with pytest.raises(RuntimeError, match="after the next window was asked for"):
        window.backward(p.dy)  # the iterator has ended
    for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state):
        got = window.backward(p.dy, p.dstate, clip)
        same_gradients(got, layer.backward(tape, p.dy, p.dstate, clip))


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 7)])
@every_kind
def test_finite_differences(kind, k1, k2):
    """Each window's gradients are derivatives of its loss, its first state held fixed."""
    layer, p = make(kind)
    rng = np.random.default_rng(3)
    # The error of a central difference: step^2 of a third derivative, eps / step. Layer norm of
    # rows whose elements are close to one another has large derivatives.
    step, rel = (1e-7, 1e-5) if "gain_ih_l0" in layer.params else (1e-5, 1e-6)
    for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state):
        grads = window.backward(p.dy[window.steps], p.dstate)
        _, before = layer(p.x[: window.reach.start], p.state)
        new = slice(window.steps.start - window.reach.start, None)

        def loss(window=window, before=before, new=new):
            y, state = layer(p.x[window.reach], before)
            held = at_held_m(state, parts(window.state)[-1])
            ends = zip(parts(p.dstate), parts(held), strict=True)
            return np.sum(p.dy[window.steps] * y[new]) + sum(np.sum(d * s) for d, s in ends)

        for name, array in layer.params.items():
            direction = rng.normal(size=array.shape)
            values = []
            for sign in (1, -1):
                array += sign * step * direction
                values.append(loss())
                array -= sign * step * direction
            got = (values[0] - values[1]) / (2 * step)
            assert got == pytest.approx(np.sum(grads.params[name] * direction), rel=rel, abs=1e-6)


@in_each("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("k1", "k2"), LENGTHS)
@every_kind
def test_parameters_that_change(kind, k1, k2, dropout):
    """Step by step as the notes say: each window with the parameters that are, from the state that
    the window before had where this one begins."""
    layer, p = make(kind, dtype=np.float32, dropout=dropout)
    twin = make(kind, dtype=np.float32, dropout=dropout)[0]
    clip = rk.Clip(step_value=0.5, value=0.1, max_norm=0.1)
    state, start, old_step = p.state, 0, None
    old = {name: a.copy() for name, a in twin.params.items()}
    for i, window in enumerate(rk.truncated_bptt(layer, p.x, k1, k2, p.state)):
        now = {name: a.copy() for name, a in layer.params.items()}
        if window.reach.start > start:  # the window before, once more, up to here
            twin.params, twin.dropout_step = old, old_step
            _, state, _ = twin.forward(p.x[start : window.reach.start], state)
            start = window.reach.start
        twin.params, twin.dropout_step = now, i
        y, last, tape = twin.forward(p.x[window.reach], state)
        errors = np.zeros_like(y)
        new = slice(window.steps.start - window.reach.start, None)
        errors[new] = p.dy[window.steps]
        same_bits(window.y, y[new])
        same_bits(window.state, last)
        same_gradients(
            window.backward(p.dy[window.steps], p.dstate, clip),
            twin.backward(tape, errors, p.dstate, clip),
        )
        old, old_step = now, i
        perturb(layer, i)


@pytest.mark.parametrize("shared", [False, True])
@every_kind
def test_an_ensemble(kind, shared):
    """Each member has the windows of a layer alone."""
    layer, p = make(kind, dtype=np.float32, ensemble=3)
    x = p.x if shared else np.stack([p.x, 2 * p.x, 3 * p.x], axis=1)
    windows = rk.truncated_bptt(layer, x, 4, 6)
    alone = []
    for i in range(3):
        member = make(kind, dtype=np.float32)[0]
        member.params = {name: a[i].copy() for name, a in layer.params.items()}
        alone.append(rk.truncated_bptt(member, x if shared else x[:, i].copy(), 4, 6))
    for window, *others in zip(windows, *alone, strict=True):
        dy = np.stack([p.dy[window.steps]] * 3, axis=1)
        grads = window.backward(dy)
        for i, other in enumerate(others):
            assert window.y[:, i].tobytes() == other.y.tobytes()
            want = other.backward(p.dy[window.steps])
            for name, array in want.params.items():
                assert grads.params[name][i].tobytes() == array.tobytes()


@every_kind
def test_another_sequence_goes_on_from_the_state(kind):
    layer, p = make(kind, dtype=np.float32)
    whole = [window.y for window in rk.truncated_bptt(layer, p.x, 4, state=p.state)]
    state, pieces = p.state, []
    for piece in (p.x[:8], p.x[8:]):
        for window in rk.truncated_bptt(layer, piece, 4, state=state):
            pieces.append(window.y)
        state = window.state
    assert np.concatenate(pieces).tobytes() == np.concatenate(whole).tobytes()


@pytest.mark.parametrize("T", [0, 1, 4, 7, 8])
def test_the_windows_of_an_array_are_counted(T):
    layer, p = make("gru")
    windows = rk.truncated_bptt(layer, p.x[:T], 4, 6)
    left = [len(windows), *(len(windows) for _ in windows)]
    assert left == list(range(-(-T // 4), -1, -1))
    assert len(rk.truncated_bptt(layer, p.x[:, :0], 4)) == 0  # no rows: no window
    assert not hasattr(rk.truncated_bptt(layer, [p.x], 4), "__len__")  # chunks have no known end


def test_no_errors():
    layer, p = make("gru")
    for window in rk.truncated_bptt(layer, p.x, 4, 6):
        grads = window.backward()
        assert not any(g.any() for g in grads.params.values())


def test_options_go_on_to_the_layer():
    layer, p = make("gru")
    for window in rk.truncated_bptt(layer, p.x, 4, 6):
        grads = window.backward(p.dy[window.steps], trace=True)
        assert grads.trace.dh_before.shape[1] == window.reach.stop - window.reach.start


@every_kind
def test_the_state_is_copied(kind):
    layer, p = make(kind, dtype=np.float32)
    want = layer(p.x[:4], p.state)[0].tobytes()
    windows = rk.truncated_bptt(layer, p.x, 4, 6, p.state)
    for part in parts(p.state):
        part[...] = np.nan
    assert next(windows).y.tobytes() == want


def test_no_steps():
    assert list(rk.truncated_bptt(make("lstm")[0], np.zeros((0, B, I)), 3)) == []


@pytest.mark.parametrize("steps", [5, 2**34])
def test_no_rows(steps):
    layer = make("lstm")[0]
    many = make("lstm", ensemble=2)[0]
    for x in (np.zeros((steps, 0, I)), np.broadcast_to(np.zeros((1, 0, I)), (steps, 0, I))):
        assert list(rk.truncated_bptt(layer, x, 3)) == []
    assert list(rk.truncated_bptt(many, np.zeros((steps, 2, 0, I)), 3)) == []


def test_a_file(tmp_path):
    layer, p = make("lstm", dtype=np.float32)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=p.x.shape)
    file[...] = p.x
    file.flush()
    x = np.memmap(tmp_path / "x", np.float32, "r", shape=p.x.shape)
    y = layer(p.x)[0]
    for window in rk.truncated_bptt(layer, x, 4, 6):
        assert window.y.tobytes() == y[window.steps].tobytes()
        window.backward(window.y)


@pytest.mark.parametrize("shape", [(2**40, 1, I), (2**40, I), (1, 2**40, I)])
def test_only_slices_of_x_are_read(shape):
    """No memory would hold a copy."""
    layer = make_layer("gru", I, H, batch_first=shape[0] == 1)
    x = np.broadcast_to(np.ones(I, np.float32), shape)
    windows = rk.truncated_bptt(layer, x, 4, 6)
    for _ in range(5):
        next(windows).backward()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("k1", "k2"), [(500, 500), (500, 700)])
def test_memory_does_not_grow_with_the_sequence(k1, k2):
    layer = make_layer("lstm", 1, 64)
    x = np.broadcast_to(np.ones(1, np.float32), (50_000, 8, 1))
    before, most = resident(), 0
    for window in rk.truncated_bptt(layer, x, k1, k2):
        window.backward(window.y)
        most = max(most, resident())
    tapes = x.shape[0] * 8 * 64 * 4 * 6  # of all windows: h, c and four gates a step, 614 MB
    assert most - before < tapes / 10


@pytest.mark.parametrize("how", [Tensor, memoryview], ids=["tensor", "memoryview"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_tensors_and_buffers(how, batch_first):
    layer, p = make("gru", batch_first=batch_first)
    want = list(rk.truncated_bptt(layer, p.x, 4, 6))
    chunks = [cut(layer, p.x, slice(0, 5)), cut(layer, p.x, slice(5, None))]
    for x in (how(p.x), [how(chunk) for chunk in chunks], [chunks[0], how(chunks[1])]):
        for window, other in zip(rk.truncated_bptt(layer, x, 4, 6), want, strict=True):
            same_bits(window.y, other.y)
            window.backward(how(np.ones_like(window.y)))


def test_a_tensor_is_read_where_it_is():
    layer, p = make("gru")
    windows = rk.truncated_bptt(layer, Tensor(p.x), 4)
    next(windows)
    p.x[4:8] = 0.5
    same_bits(next(windows).y, list(rk.truncated_bptt(layer, p.x[:8], 4))[1].y)


@every_kind
def test_refused(kind):
    layer, p = make(kind)
    x, C = p.x, layer.input_size
    shape = f"x: expected shape (T, B, {C}) or (T, {C}), got"
    one_less = random_problem(layer, T, B - 1).state
    both = make_layer(kind, I, H, bidirectional=True, dtype=np.float64)
    many = make_layer(kind, I, H, ensemble=2, dtype=np.float64)
    least = "expected an integer of at least 1, got"
    for args, error, message in [
        ((layer, x, 0), ValueError, f"k1: {least} 0"),
        ((layer, x, -1), ValueError, f"k1: {least} -1"),
        ((layer, x, 2.0), TypeError, "k1: expected an integer, got float"),
        ((layer, x, True), TypeError, "k1: expected an integer, got bool"),
        ((layer, x, None), TypeError, "k1: expected an integer, got NoneType"),
        ((layer, x, 3, 0), ValueError, f"k2: {least} 0"),
        ((layer, x, 3, "4"), TypeError, "k2: expected an integer, got str"),
        ((layer, x, 3, 2), ValueError, "k2: expected at least k1 = 3, got 2"),
        ((both, x, 3), ValueError, "layer: expected one of one direction, got a bidirectional"),
        ((None, x, 3), TypeError, "layer: expected a recurrent layer, got None"),
        ((layer.stream(), x, 3), TypeError, "layer: expected a recurrent layer, got St"),
        ((layer, x.tolist(), 3), TypeError, "x[0]: expected an array of dtype float64, got list"),
        ((layer, Tensor(x.astype("f4")), 3), TypeError, "x: expected an array of dtype float64, "),
        ((layer, None, 3), TypeError, "x: expected an array of dtype float64 or an iterable of "),
        ((layer, x.astype("f4"), 3), TypeError, "x: expected an array of dtype float64, got flo"),
        ((layer, x[0, 0], 3), ValueError, f"{shape} ({C},)"),
        ((layer, x[..., :2], 3), ValueError, f"{shape} (17, 3"),
        ((many, x[0], 3), ValueError, f"x: expected shape (T, E, B, {C}) or (T, B, {C}), got"),
        ((layer, x, 3, 4, one_less), ValueError, "state"),
        ((layer, x, 3, 4, "h"), TypeError, "state"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            rk.truncated_bptt(*args)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 6)])
def test_a_refused_backward_may_be_called_again(k1, k2, batch_first):
    layer, p = make("gru", batch_first=batch_first)
    for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state):
        dy = cut(layer, p.dy, window.steps)
        for wrong, error, message in [
            (cut(layer, p.dy, slice(0, 2)), ValueError, f"expected shape {dy.shape}, got"),
            (dy[..., :2], ValueError, f"expected shape {dy.shape}, got"),
            (dy.astype(np.float32), TypeError, "expected an array of dtype float64, got float32"),
            (dy.tolist(), TypeError, "expected an array of dtype float64, got list"),
        ]:
            with pytest.raises(error, match=re.escape(f"dy: {message}")):
                window.backward(wrong)
        with pytest.raises(TypeError, match="clip: expected a Clip or None"):
            window.backward(dy, clip=1.0)
        window.backward(dy)
        with pytest.raises(RuntimeError, match="expected one backward, in its turn, got a second"):
            window.backward(dy)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 6)])
@every_kind
def test_the_state_is_read_only(kind, k1, k2):
    """The next window may start from it."""
    layer, p = make(kind)
    for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state):
        for part in parts(window.state):
            with pytest.raises(ValueError, match="read-only"):
                part[...] = 0


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 6)])
@every_kind
def test_shapes_that_the_caller_changes_meanwhile(kind, k1, k2):
    layer, p = make(kind)
    want = [
        (window.y.tobytes(), window.backward(cut(layer, p.dy, window.steps)))
        for window in rk.truncated_bptt(layer, p.x, k1, k2, p.state)
    ]
    x = p.x.copy()
    got = []
    windows = rk.truncated_bptt(layer, x, k1, k2, p.state)
    x.shape = -1
    for window in windows:
        bits = window.y.tobytes()
        for array in (window.y, *parts(window.state)):
            array.shape = (*array.shape, 1)
        got.append((bits, window.backward(cut(layer, p.dy, window.steps))))
    for (y, grads), (want_y, want_grads) in zip(got, want, strict=True):
        assert y == want_y
        same_gradients(grads, want_grads)


def test_late():
    layer, p = make("gru")
    windows = rk.truncated_bptt(layer, p.x, 4, 6)
    first, second = next(windows), next(windows)
    with pytest.raises(RuntimeError, match="got one after the next window was asked for"):
        first.backward(p.dy[:4])
    second.backward(p.dy[4:8])
    next(windows)
    with pytest.raises(RuntimeError, match="got a second one"):
        second.backward(p.dy[4:8])


# ---- chunks ------------------------------------------------------------------------------------


def chunks_of(layer, x, lengths, buffer=None):
    """The steps of x in chunks of these lengths, again and again; into one buffer, if there is."""
    axis = 1 if layer.batch_first and x.ndim == 3 else 0
    start = 0
    for length in itertools.cycle(lengths):
        if start >= x.shape[axis]:
            return
        chunk = cut(layer, x, slice(start, start + length))
        if buffer is not None:
            own = cut(layer, buffer, slice(chunk.shape[axis]))
            own[...] = chunk
            chunk = own
        start += length
        yield chunk


@pytest.mark.parametrize("lengths", [(1,), (3, 0, 1), (5, 2), (100,)])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}])
@pytest.mark.parametrize("batch", [B, None])
@pytest.mark.parametrize(("k1", "k2"), LENGTHS)
def test_chunks_give_the_windows_of_the_whole(k1, k2, batch, options, lengths):
    layer, p = make("lstm", batch, dtype=np.float32, **options)
    want = rk.truncated_bptt(layer, p.x, k1, k2, p.state)
    buffer = np.empty_like(p.x)
    got = rk.truncated_bptt(layer, chunks_of(layer, p.x, lengths, buffer), k1, k2, p.state)
    for one, other in zip(got, want, strict=True):
        assert (one.steps, one.reach) == (other.steps, other.reach)
        same_bits(one.y, other.y)
        same_bits(one.state, other.state)
        dy = cut(layer, p.dy, one.steps)
        same_gradients(one.backward(dy), other.backward(dy))


@pytest.mark.parametrize("shared", [False, True])
def test_chunks_of_an_ensemble(shared):
    layer, p = make("gru", dtype=np.float32, ensemble=3)
    x = p.x if shared else np.stack([p.x, 2 * p.x, 3 * p.x], axis=1)
    want = rk.truncated_bptt(layer, x, 4, 6)
    for one, other in zip(rk.truncated_bptt(layer, [x[:3], x[3:]], 4, 6), want, strict=True):
        same_bits(one.y, other.y)


def test_chunks_may_come_without_end_and_only_when_they_are_needed():
    layer = make_layer("gru", 1, 64)
    taken, ended = [], []

    def source():
        try:
            while True:
                taken.append(np.ones((1000, 8, 1), np.float32))
                yield taken[-1]
        finally:
            ended.append(True)

    windows = rk.truncated_bptt(layer, source(), 500, 700)
    assert len(taken) == 1
    before, most = resident(), 0
    for window in windows:
        assert len(taken) == -(-window.steps.stop // 1000)
        window.backward(window.y)
        taken[:-1] = [None] * (len(taken) - 1)
        most = max(most, resident())
        if window.steps.stop == 50_000:
            break
    assert most - before < 50_000 * 8 * 64 * 4 * 4 / 10  # of all tapes: h and three gates a step
    del windows
    assert ended == [True]


def test_an_error_of_the_source_reaches_the_caller():
    layer, p = make("gru")

    def source():
        yield p.x[:5]
        raise OSError("gone")

    windows = rk.truncated_bptt(layer, source(), 4)
    next(windows)
    with pytest.raises(OSError, match="gone"):
        next(windows)


def test_no_chunks():
    layer, p = make("gru")
    for chunks in ([], [p.x[:0]], [p.x[:, :0]], itertools.repeat(p.x[:, :0])):
        assert list(rk.truncated_bptt(layer, chunks, 3)) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x[:, :1],
            ValueError,
            f"expected shape (T, {B}, {I}) as in the first chunk, got",
        ),
        (lambda x: x[:, 0], ValueError, f"expected shape (T, {B}, {I}) as in the first chunk, got"),
        (lambda x: x[..., :2], ValueError, f"expected shape (T, B, {I}) or (T, {I}), got"),
        (lambda x: x.astype("f4"), TypeError, "expected an array of dtype float64, got float32"),
        (lambda x: x.tolist(), TypeError, "expected an array of dtype float64, got list"),
        (lambda x: None, TypeError, "expected an array of dtype float64, got NoneType"),
    ],
)
def test_chunks_that_are_refused(change, error, message):
    layer, p = make("gru")
    windows = rk.truncated_bptt(layer, iter([p.x[:3], change(p.x[3:6])]), 2)
    next(windows)
    with pytest.raises(error, match=f"^{re.escape('x[1]: ' + message)}"):
        next(windows)
    if message.startswith("expected an array") or "or" in message:
        with pytest.raises(error, match=f"^{re.escape('x[0]: ' + message)}"):
            rk.truncated_bptt(layer, [change(p.x)], 2)


def test_what_a_window_shows():
    gru = rk.GRU(3, 5, seed=0)
    first, second = (repr(w) for w in rk.truncated_bptt(gru, np.ones((7, 2, 3), np.float32), 4, 6))
    assert first == "<Window of GRU(3, 5, seed=0), steps=0:4, reach=0:4>"
    assert second == "<Window of GRU(3, 5, seed=0), steps=4:7, reach=2:7>"
