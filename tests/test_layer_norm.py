"""Layer norm: the reference, finite differences, PyTorch, rows that do not count, bits, errors."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, on_threads
from test_bits import LAYOUTS
from test_modules import SIZES, drawn

import rnnkern as rk
from rnnkern import reference


def norm_problem(rows, C, dtype, bias=True, eps=1e-5):
    norm = rk.LayerNorm(C, eps, bias=bias, dtype=dtype)
    for seed, name in enumerate(norm.params):
        norm.params[name][...] = drawn(C, dtype=dtype, seed=seed + 5, size=1)
    x, dy = (drawn(*rows, C, dtype=dtype, seed=seed, size=1) for seed in (0, 1))
    return norm, x, dy


def everything(norm, x, dy, mask=None):
    y, tape = norm.forward(x, mask=mask)
    grads = norm.backward(tape, dy)
    return [y, grads.x, *grads.params.values()]


def as_bytes(norm, x, dy, mask=None):
    return [a.tobytes() for a in everything(norm, x, dy, mask)]


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("C", SIZES)
def test_layer_norm_is_the_references(C, bias, dtype, isa):
    norm, x, dy = norm_problem((4, 3), C, dtype, bias)
    w, b = norm.params["weight"], norm.params.get("bias")
    with rk.force_isa(isa):
        y, dx, *of_params = everything(norm, x, dy)
    assert norm(x).dtype == dtype
    eps = np.finfo(dtype).eps
    want_dx, *want = reference.layer_norm_gradient(x, w, dy)
    # x less its mean, of values up to 5, is rounded to an eps; so are the few operations behind it.
    # Of one value both are zero, and of two nearly equal ones the std magnifies it.
    std = np.sqrt(x.astype(np.float64).var(-1) + 1e-5).min()
    np.testing.assert_allclose(y, reference.layer_norm(x, w, b), rtol=0, atol=40 * eps / std)
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=80 * eps / std**2)
    for got, expected in zip(of_params, want, strict=False):
        np.testing.assert_allclose(got, expected, rtol=0, atol=12 * 40 * eps / std)


def test_the_references_gradient_is_that_of_its_outputs():
    _, x, dy = norm_problem((3,), 5, np.float64)
    w, b = drawn(5, seed=7), drawn(5, seed=8)
    step = 1e-5  # error: step^2 times a third derivative below 1e3, and 1e-15 / step
    gradients = reference.layer_norm_gradient(x, w, dy)
    for array, gradient in zip((x, w, b), gradients, strict=True):
        for place in np.ndindex(array.shape):
            ends, kept = [], array[place]
            for sign in (1, -1):
                array[place] = kept + sign * step
                ends.append((reference.layer_norm(x, w, b) * dy).sum())
            array[place] = kept
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 1e-7


def test_a_large_mean_costs_float32_no_more_digits_than_x_has():
    norm, x, _ = norm_problem((20,), 65, np.float32)
    x += np.float32(1e4)  # which rounds x, before the reference reads it
    want = reference.layer_norm(x, norm.params["weight"], norm.params["bias"])
    # x - mean is exact to half an eps of itself, though the mean is 1e4 times as large.
    np.testing.assert_allclose(norm(x), want, rtol=0, atol=40 * np.finfo(np.float32).eps)


@in_each_dtype
def test_pytorch_agrees(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    norm, x, dy = norm_problem((6, 4), 33, dtype, eps=1e-3)
    theirs = torch.nn.LayerNorm(33, 1e-3, dtype=getattr(torch, np.dtype(dtype).name))
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in norm.params.items()})
    of_x = torch.from_numpy(x).requires_grad_()
    y = theirs(of_x)
    y.backward(torch.from_numpy(dy))
    want = (y.detach(), of_x.grad, theirs.weight.grad, theirs.bias.grad)
    # Both round, on values of unit variance; sums over 24 rows add up.
    for got, expected in zip(everything(norm, x, dy), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=24 * 20 * np.finfo(dtype).eps)
    other = rk.LayerNorm(33, dtype=dtype)
    other.load_state_dict(theirs.state_dict())
    assert other.params["weight"].tobytes() == norm.params["weight"].tobytes()


@in_each_dtype
@pytest.mark.parametrize("C", [1, 17, 256, 700])
def test_bits_on_threads_and_instruction_sets_and_of_a_row_alone(C, dtype):
    norm, x, dy = norm_problem((5 * 2**13 // C + 7,), C, dtype)
    mask = np.arange(len(x)) % 3 != 1
    for some in (None, mask):
        want = as_bytes(norm, x, dy, some)
        for isa in fused_sets():
            with rk.force_isa(isa):
                for threads in (1, 2, 3, 5):
                    assert on_threads(threads, as_bytes, norm, x, dy, some) == want
    y, dx, *_ = everything(norm, x, dy)
    for row in range(0, len(x), 41):
        alone = everything(norm, x[row], dy[row])
        assert alone[0].tobytes() == y[row].tobytes()
        assert alone[1].tobytes() == dx[row].tobytes()


@in_each_dtype
def test_gradients_of_parameters_are_chains_over_the_rows(dtype):
    norm, x, dy = norm_problem((50,), 21, dtype)
    bias = np.zeros(21, dtype)
    for row in dy:
        bias += row
    assert everything(norm, x, dy)[3].tobytes() == bias.tobytes()


@in_each_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_addresses_and_strides(layout, dtype):
    norm, x, dy = norm_problem((5, 3), 37, dtype)
    want = as_bytes(norm, x, dy)
    assert as_bytes(norm, layout(x), layout(dy)) == want
    norm.params = {name: layout(array) for name, array in norm.params.items()}
    assert as_bytes(norm, x, dy) == want


@in_each_dtype
def test_rows_that_do_not_count_are_not_read(dtype):
    norm, x, dy = norm_problem((6, 2), 20, dtype)
    for mask in (np.arange(12).reshape(6, 2) % 3 != 1, np.zeros((6, 2), bool)):
        x[~mask], dy[~mask] = np.nan, np.inf
        y, dx, *of_params = everything(norm, x, dy, mask)
        want, d_want, *of_rows = everything(norm, x[mask], dy[mask])
        assert y[mask].tobytes() == want.tobytes()
        assert dx[mask].tobytes() == d_want.tobytes()
        assert not y[~mask].any()
        assert not dx[~mask].any()
        assert [a.tobytes() for a in of_params] == [a.tobytes() for a in of_rows]
        assert norm(x, mask=mask).tobytes() == y.tobytes()


def test_no_rows_and_equal_values():
    norm, x, dy = norm_problem((0, 4), 3, np.float32)
    y, dx, w, b = everything(norm, x, dy)
    assert y.shape == dx.shape == (0, 4, 3)
    assert not w.any()
    assert not b.any()
    same = np.full((2, 3), 7.25, np.float32)
    assert norm(same).tolist() == [norm.params["bias"].tolist()] * 2


def test_out_and_tape():
    norm, x, dy = norm_problem((4,), 5, np.float32)
    out = np.empty_like(x)
    y, tape = norm.forward(x, out)
    assert y is out
    assert y.tobytes() == norm(x).tobytes()
    out[...] = 0.0  # backward does not read it
    norm.params["bias"] += 1.0  # nor this
    first = norm.backward(tape, dy)
    assert first.x.tobytes() == norm.backward(tape, dy).x.tobytes()
    norm.params["weight"] *= 2.0
    with pytest.raises(
        RuntimeError, match=r"^params\['weight'\]: expected the values that forward"
    ):
        norm.backward(tape, dy)
    norm.params["weight"] /= 2.0
    x += 1.0
    with pytest.raises(
        RuntimeError, match=r"^x: expected the values that forward read, got others"
    ):
        norm.backward(tape, dy)
    with pytest.raises(ValueError, match=r"one of another module$"):
        rk.LayerNorm(5).backward(tape, dy)


def test_settings_copies_and_pickles():
    norm = norm_problem((1,), 5, np.float64, eps=0.25)[0]
    assert repr(norm) == "LayerNorm(5, eps=0.25, dtype='float64')"
    for other in (norm.copy(), copy.copy(norm), pickle.loads(pickle.dumps(norm))):
        assert repr(other) == repr(norm)
        assert other.params["weight"].tobytes() == norm.params["weight"].tobytes()
    for name in ("features", "eps", "bias", "dtype"):
        with pytest.raises(AttributeError, match=name):
            setattr(norm, name, getattr(norm, name))
    fresh = rk.LayerNorm(3)
    assert [fresh.params[n].tolist() for n in ("weight", "bias")] == [[1.0] * 3, [0.0] * 3]
    assert list(rk.LayerNorm(3, bias=False).params) == ["weight"]
    given = rk.LayerNorm(3, params={"weight": np.full(3, 2, "f4"), "bias": np.ones(3, "f4")})
    assert given.params["weight"].tolist() == [2.0] * 3


def test_optimizers_take_the_gradients():
    norm, x, dy = norm_problem((4,), 5, np.float32)
    before = norm.params["weight"].copy()
    assert rk.Adam(norm, lr=0.1).step(norm.backward(norm.forward(x)[1], dy)).applied
    assert (norm.params["weight"] != before).all()


X = np.zeros((4, 3, 5), np.float32)
OWN = "a writable, C-contiguous array with memory of its own"


@pytest.mark.parametrize(
    ("message", "use"),
    [
        ("features: expected an integer of at least 1, got 0", lambda: rk.LayerNorm(0)),
        ("eps: expected a finite number > 0, got 0", lambda: rk.LayerNorm(5, 0)),
        ("bias: expected True or False, got int", lambda: rk.LayerNorm(5, bias=1)),
        ("dtype: expected float32 or float64, got int64", lambda: rk.LayerNorm(5, dtype=int)),
        ("x: expected shape (..., 6), got (4, 3, 5)", lambda: rk.LayerNorm(6)(X)),
        (
            "x: expected an array of dtype float32, got float64",
            lambda: rk.LayerNorm(5)(X.astype("f8")),
        ),
        (
            "out: expected shape (4, 3, 5), got (12, 5)",
            lambda: rk.LayerNorm(5)(X, X.reshape(12, 5)),
        ),
        (f"out: expected {OWN}, got another", lambda: rk.LayerNorm(5)(X, X)),
        (
            "mask: expected an array of booleans, got float64",
            lambda: rk.LayerNorm(5)(X, mask=np.ones((4, 3))),
        ),
        (
            "mask: expected shape (4, 3), got (4,)",
            lambda: rk.LayerNorm(5)(X, mask=np.ones(4, bool)),
        ),
        (
            "dy: expected shape (4, 3, 5), got (4, 3)",
            lambda: (norm := rk.LayerNorm(5)).backward(norm.forward(X)[1], X[..., 0]),
        ),
        (
            "tape: expected a tape of this module's forward, got NoneType",
            lambda: rk.LayerNorm(5).backward(None, X),
        ),
    ],
)
def test_errors(message, use):
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use()


def test_parameters_are_checked_in_each_call():
    norm = rk.LayerNorm(5)
    tape = norm.forward(X)[1]
    norm.params["weight"] = np.ones(4, np.float32)
    for use in (lambda: norm(X), lambda: norm.backward(tape, X)):
        with pytest.raises(ValueError, match=r"^params\['weight'\]: expected shape \(5,\), got"):
            use()
