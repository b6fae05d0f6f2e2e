"""Pooling: the reference, finite differences, PyTorch, ragged and empty rows, bits, errors."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, on_threads
from test_bits import LAYOUTS
from test_modules import drawn

import rnnkern as rk
from rnnkern import reference

every_kind = pytest.mark.parametrize("kind", ["mean", "max", "last", "ends"])
WIDTHS = [2, 4, 8, 16, 18, 34, 512, 1030]  # of vectors, and of parts of a row


def both(kind, x, dy, **steps):
    pooling = rk.Pooling(kind)
    y, tape = pooling.forward(x, **steps)
    return y, pooling.backward(tape, dy).x


def masks(T, B):
    """All steps; lengths, one of them 0; a mask with holes, one row of it empty."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, B)
    lengths[B // 2] = 0
    holes = rng.random((T, B)) < 0.6
    holes[:, 0] = False
    yield {}, None
    yield {"lengths": lengths}, np.arange(T)[:, None] < lengths
    yield {"mask": holes}, holes


@in_each_set
@in_each_dtype
@every_kind
@pytest.mark.parametrize("C", WIDTHS)
def test_pooling_is_the_references(C, kind, dtype, isa):
    x, dy = drawn(9, 5, C, dtype=dtype), drawn(5, C, dtype=dtype, seed=1)
    for steps, mask in masks(9, 5):
        given, d_given = x.copy(), dy
        if mask is not None:
            given[~mask] = np.nan  # not read
            d_given = dy.copy()
            d_given[~mask.any(axis=0)] = np.inf  # goes nowhere
        with rk.force_isa(isa):
            y, dx = both(kind, given, d_given, **steps)
            assert rk.Pooling(kind)(given, **steps).tobytes() == y.tobytes()
        want, d_want = reference.pool(kind, x, dy, mask)
        assert y.dtype == dx.dtype == dtype
        # One rounding of the mean, and one of a share of dy; all else is copied.
        eps = np.finfo(dtype).eps if kind == "mean" else 0.0
        np.testing.assert_allclose(y, want, rtol=eps, atol=1e-15 if eps else 0)
        np.testing.assert_allclose(dx, d_want, rtol=eps, atol=0)
        if mask is not None:
            assert not dx[~mask].any()


@every_kind
def test_the_references_gradient_is_that_of_its_outputs(kind):
    x, dy = drawn(4, 3, 4), drawn(3, 4, seed=1)
    for _, mask in masks(4, 3):
        gradient = reference.pool(kind, x, dy, mask)[1]
        step = 1e-4  # no two values are so near; the map is linear between
        for place in np.ndindex(x.shape):
            ends, kept = [], x[place]
            for sign in (1, -1):
                x[place] = kept + sign * step
                ends.append((reference.pool(kind, x, dy, mask)[0] * dy).sum())
            x[place] = kept
            # Sums of 12 values below 30 are off by 12 * 30 * 1.1e-16 at each end.
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 1e-9


@in_each_dtype
def test_of_equal_largest_values_the_first_has_the_gradient(dtype):
    x = np.array([1.0, 4.0, 4.0, 2.0], dtype).reshape(4, 1, 1).repeat(9, axis=2)
    y, dx = both("max", x, np.ones((1, 9), dtype))
    assert (y == 4).all()
    assert dx[:, 0].tolist() == [[0.0] * 9, [1.0] * 9, [0.0] * 9, [0.0] * 9]
    x[2] = np.nan
    y, dx = both("max", x, np.ones((1, 9), dtype))
    assert np.isnan(y).all()
    assert dx[:, 0, 0].tolist() == [0.0, 0.0, 1.0, 0.0]
    y, _ = both("max", np.full((2, 1, 3), -np.inf, dtype), np.ones((1, 3), dtype))
    assert (y == -np.inf).all()


@in_each_dtype
def test_ends_are_a_bidirectional_layers_last_states(dtype):
    layer = rk.GRU(3, 4, bidirectional=True, dtype=dtype, seed=0)
    x, lengths = drawn(7, 3, 3, dtype=dtype), np.array([7, 4, 1])
    y, state = layer(x, lengths=lengths)
    want = state.transpose(1, 0, 2).reshape(3, 8)
    assert rk.Pooling("ends")(y, lengths=lengths).tobytes() == want.tobytes()


@every_kind
def test_no_steps_and_no_rows(kind):
    for shape in ((0, 3, 4), (5, 0, 4), (5, 3, 0)):
        y, dx = both(kind, np.zeros(shape, np.float32), np.ones(shape[1:], np.float32))
        assert not y.any()
        assert y.shape == shape[1:]
        assert dx.shape == shape


@in_each_dtype
@every_kind
@pytest.mark.parametrize("C", [2, 66, 1030])
def test_bits(C, kind, dtype):
    """On any threads and instruction sets, of each row alone, with more padding, in any memory."""
    T, B = 11, 5 * 2**13 // (11 * C) + 3
    x, dy = drawn(T, B, C, dtype=dtype), drawn(B, C, dtype=dtype, seed=1)
    for steps, mask in masks(T, B):
        want = [a.tobytes() for a in both(kind, x, dy, **steps)]
        for isa in fused_sets():
            with rk.force_isa(isa):
                for threads in (1, 2, 5):
                    got = on_threads(threads, both, kind, x, dy, **steps)
                    assert [a.tobytes() for a in got] == want
        y, dx = both(kind, x, dy, **steps)
        for b in range(0, B, 40):
            real = np.ones(T, bool) if mask is None else mask[:, b]
            own = both(kind, x[real, b : b + 1], dy[b : b + 1])
            assert own[0].tobytes() == y[b : b + 1].tobytes()
            if real.any():
                assert own[1].tobytes() == dx[real, b : b + 1].tobytes()
    for layout in LAYOUTS.values():
        assert [a.tobytes() for a in both(kind, layout(x), layout(dy), **steps)] == want


@in_each_dtype
def test_pytorch_agrees(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, dy = drawn(9, 5, 6, dtype=dtype), drawn(5, 6, dtype=dtype, seed=1)
    uses = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0).values, "last": lambda x: x[-1]}
    for kind, use in uses.items():
        of_x = torch.from_numpy(x).requires_grad_()
        y = use(of_x)
        y.backward(torch.from_numpy(dy))
        # PyTorch adds up 9 values of up to 12 in their own type.
        bound = {"rtol": 0, "atol": 9 * 12 * np.finfo(dtype).eps}
        got, dx = both(kind, x, dy)
        np.testing.assert_allclose(got, y.detach(), **bound)
        np.testing.assert_allclose(dx, of_x.grad, **bound)


def test_a_tape_keeps_its_own_steps():
    pooling, x, dy = rk.Pooling("mean"), drawn(4, 2, 3), np.ones((2, 3))
    mask = np.arange(4)[:, None] < np.array([3, 2])
    _, tape = pooling.forward(x, mask=mask)
    want = pooling.backward(tape, dy)
    mask[...] = True
    x[...] = 7.0  # backward does not read it
    assert pooling.backward(tape, dy).x.tobytes() == want.x.tobytes()
    assert want.params == {}
    assert (want.norm, want.finite) == (0.0, True)
    with pytest.raises(ValueError, match=r"one of another module$"):
        rk.Pooling("mean").backward(tape, dy)
    for other in (copy.copy(pooling), pickle.loads(pickle.dumps(pooling))):
        assert repr(other) == "Pooling('mean')"


X = np.zeros((4, 3, 5), np.float32)


@pytest.mark.parametrize(
    ("message", "use"),
    [
        ("kind: expected one of mean, max, last, ends, got 'sum'", lambda: rk.Pooling("sum")),
        ("kind: expected one of mean, max, last, ends, got int", lambda: rk.Pooling(1)),
        ("x: expected shape (T, B, C), got (4, 3)", lambda: rk.Pooling("max")(X[..., 0])),
        (
            "x: expected shape (T, B, C) with C even, got (4, 3, 5)",
            lambda: rk.Pooling("ends")(X),
        ),
        (
            "x: expected an array of dtype float32 or float64, got int64",
            lambda: rk.Pooling("max")(X.astype(int)),
        ),
        (
            "x: expected an array of dtype float32 or float64, got list",
            lambda: rk.Pooling("last")([1.0]),
        ),
        (
            "mask: expected None with lengths, got an array",
            lambda: rk.Pooling("max")(X, lengths=np.ones(3, int), mask=np.ones((4, 3), bool)),
        ),
        (
            "mask: expected shape (4, 3), got (3, 4)",
            lambda: rk.Pooling("mean")(X, mask=np.ones((3, 4), bool)),
        ),
        (
            "mask: expected an array of booleans, got int64",
            lambda: rk.Pooling("last")(X, mask=np.ones((4, 3), int)),
        ),
        (
            "lengths: expected shape (3,), got (4,)",
            lambda: rk.Pooling("mean")(X, lengths=np.ones(4, int)),
        ),
        (
            "lengths[1]: expected a length from 0 to T = 4, got 5",
            lambda: rk.Pooling("last")(X, lengths=np.array([1, 5, 1])),
        ),
        (
            "lengths: expected an array of integers, got float64",
            lambda: rk.Pooling("last")(X, lengths=np.ones(3)),
        ),
        (
            "dy: expected shape (3, 5), got (4, 3, 5)",
            lambda: (p := rk.Pooling("max")).backward(p.forward(X)[1], X),
        ),
        (
            "dy: expected an array of dtype float32, got float64",
            lambda: (p := rk.Pooling("max")).backward(p.forward(X)[1], np.zeros((3, 5))),
        ),
    ],
)
def test_errors(message, use):
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use()
