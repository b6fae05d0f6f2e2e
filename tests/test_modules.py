"""Loss, output layer and embedding: against the reference, finite differences and PyTorch; bits."""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, make_layer, on_threads
from test_bits import LAYOUTS

import rnnkern as rk
from rnnkern import reference

# Below, at and behind the vectors and cache lines of all instruction sets.
SIZES = [1, 2, 7, 8, 9, 15, 16, 17, 33, 100, 4099]


def drawn(*shape, dtype=np.float64, seed=0, size=3.0):
    return (size * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def problem(rows, V, dtype=np.float32, seed=0):
    """Logits (rows, V), targets and weights, some of them zero."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 2, rows) * (rng.random(rows) < 0.7)
    return drawn(rows, V, dtype=dtype, seed=seed), rng.integers(0, V, rows), weights


def divided(losses, dlogits, total, reduction):
    """The reference's results under a reduction."""
    if reduction == "none":
        return losses, dlogits
    by = total if reduction == "mean" and total else 1.0
    return losses.sum() / by, dlogits / by


def assert_close(got, want, logits, largest=1.0):
    """Loss and gradient against float64's.

    z - max is rounded once, to half an eps of it, which e^(z - max) has as a relative error; e^x is
    good to 2 eps, and the quotient and its factor to one more each. A probability is off by that
    share of itself, and is at most 1; a loss, the logarithm of a sum of such, by as much as the sum
    and by half an eps of itself. `largest`: of the rows' weights.
    """
    eps, spread = np.finfo(logits.dtype).eps, np.ptp(logits[np.isfinite(logits)])
    for a, b in zip(got, want, strict=True):
        assert np.shape(a) == np.shape(b)
        bound = largest * eps * (spread / 2 + 4 + np.abs(b))
        np.testing.assert_array_less(np.abs(a - b), bound)


# ---- the loss against its definition -----------------------------------------------------------


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_the_references(reduction, V, dtype, isa):
    logits, targets, weights = problem(12, V, dtype)
    for mask in (None, weights, weights > 0, np.zeros(12, bool)):
        w = None if mask is None else mask.astype(np.float64)
        want = divided(*reference.cross_entropy(logits, targets, w), reduction)
        with rk.force_isa(isa):
            loss, dlogits = rk.cross_entropy(logits, targets, mask=mask, reduction=reduction)
        assert dlogits.dtype == dtype
        rows = 12 if reduction == "sum" else 2  # a sum over rows adds up their errors
        assert_close((loss, dlogits), want, logits, largest=rows)


def test_the_references_gradient_of_a_linear_is_that_of_its_products():
    x, w, b, dy = drawn(4, 3), drawn(5, 3, seed=1), drawn(5, seed=2), drawn(4, 5, seed=3)
    dx, dw, db = reference.linear_gradient(x, w, dy)
    step = 1e-3  # the map is linear in each argument, so only rounding limits the difference
    for array, gradient in ((x, dx), (w, dw), (b, db)):
        for place in np.ndindex(array.shape):
            kept, ends = array[place], []
            for sign in (1, -1):
                array[place] = kept + sign * step
                ends.append((reference.linear(x, w, b) * dy).sum())
            array[place] = kept
            # Sums of 20 products of up to 100 are off by 20 * 100 * 1.1e-16 at each end.
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 3e-10


def test_the_references_gradient_is_that_of_its_loss():
    logits, targets, weights = problem(5, 7)
    logits = logits.astype(np.float64)
    dlogits = reference.cross_entropy(logits, targets, weights)[1]
    step = 1e-5  # error: step^2 times a third derivative below 1, and 1e-16 * loss / step
    for place in np.ndindex(logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            ends.append(reference.cross_entropy(moved, targets, weights)[0].sum())
        assert abs((ends[0] - ends[1]) / (2 * step) - dlogits[place]) < 1e-9


def test_shapes():
    """Any axes in front, none at all, targets of any integers, no rows."""
    logits, targets, weights = problem(24, 10)
    want, d_want = rk.cross_entropy(logits, targets, mask=weights)
    shape = (2, 3, 4)
    for kind in (np.int8, np.int32, np.uint64):
        loss, dlogits = rk.cross_entropy(
            logits.reshape(*shape, 10),
            targets.astype(kind).reshape(shape),
            mask=weights.reshape(shape),
        )
        assert loss == want
        assert dlogits.tobytes() == d_want.tobytes()
        assert dlogits.shape == (*shape, 10)
    losses, _ = rk.cross_entropy(
        logits.reshape(*shape, 10), targets.reshape(shape), reduction="none"
    )
    assert losses.shape == shape
    loss, dlogits = rk.cross_entropy(logits[0], targets[0])
    assert isinstance(loss, float)
    assert dlogits.shape == (10,)
    loss, dlogits = rk.cross_entropy(logits[:0], targets[:0])
    assert loss == 0
    assert dlogits.shape == (0, 10)


@in_each_dtype
def test_ignored_targets_are_a_mask(dtype):
    logits, targets, _ = problem(30, 9, dtype)
    for index in (4, -100):
        targets[::3] = index
        got = rk.cross_entropy(logits, targets, ignore_index=index)
        want = rk.cross_entropy(logits, targets, mask=targets != index)
        assert got[0] == want[0]
        assert got[1].tobytes() == want[1].tobytes()
        assert not got[1][::3].any()


@in_each_dtype
@pytest.mark.parametrize("how", ["mask", "weights", "ignore_index"])
def test_rows_that_do_not_count_are_not_read(how, dtype):
    logits, targets, _ = problem(6, 20, dtype)
    want, d_want = rk.cross_entropy(logits[::2], targets[::2])
    logits[1::2], targets[1::2] = np.nan, -7
    mask = np.arange(6) % 2 == 0
    options = {
        "mask": {"mask": mask},
        "weights": {"mask": 1.0 * mask},
        "ignore_index": {"ignore_index": -7},
    }[how]
    loss, dlogits = rk.cross_entropy(logits, targets, **options)
    assert loss == want
    assert dlogits[::2].tobytes() == d_want.tobytes()
    assert dlogits[1::2].tobytes() == bytes(dlogits[1::2].nbytes)


def test_largest_weights_do_not_overflow():
    logits, targets, _ = problem(2, 5, np.float64)
    mask = np.full(2, np.finfo(np.float32).max, np.float64)
    loss, dlogits = rk.cross_entropy(logits, targets, mask=mask)
    want, d_want = rk.cross_entropy(logits, targets)
    # Weights that are not powers of two add three roundings.
    np.testing.assert_allclose(loss, want, rtol=3 * 2.0**-53)
    np.testing.assert_allclose(dlogits, d_want, rtol=3 * 2.0**-53)


def test_unsigned_targets_are_ignored_by_value():
    logits, targets, _ = problem(6, 9)
    targets[::2] = 200
    got = rk.cross_entropy(logits, targets.astype(np.uint8), ignore_index=200)
    want = rk.cross_entropy(logits, targets, ignore_index=200)
    assert got[0] == want[0]
    assert got[1].tobytes() == want[1].tobytes()


@in_each_set
@in_each_dtype
def test_extreme_logits(dtype, isa):
    big = np.finfo(dtype).max
    logits = np.array(
        [[1e4, 0, -1e4], [big / 4, -big / 4, 0], [0, -np.inf, 0], [-big / 2] * 3, [-np.inf, 5, 5]],
        dtype,
    )
    targets = np.array([0, 0, 2, 1, 0])
    with rk.force_isa(isa), np.errstate(all="raise"):
        losses, dlogits = rk.cross_entropy(logits, targets, reduction="none")
    ln2, ln3 = math.log(2), math.log(3)
    np.testing.assert_allclose(losses, [0, 0, ln2, ln3, np.inf], rtol=4e-16)
    third = 1 / 3
    want = [[0, 0, 0], [0, 0, 0], [0.5, 0, -0.5], [third, -2 * third, third], [-1, 0.5, 0.5]]
    np.testing.assert_allclose(dlogits, want, rtol=4 * np.finfo(dtype).eps)


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_goes_through_in_its_row(bad, dtype, isa):
    for place in (0, 17, 40):
        logits, targets, _ = problem(3, 41, dtype)
        want, d_want = rk.cross_entropy(logits[::2], targets[::2], reduction="none")
        logits[1, place] = bad
        with rk.force_isa(isa):
            losses, dlogits = rk.cross_entropy(logits, targets, reduction="none")
        assert np.isnan(losses[1])
        assert np.isnan(dlogits[1]).all()
        if isa in fused_sets() and rk.info()["isa"] in fused_sets():
            assert losses[::2].tobytes() == want.tobytes()
            assert dlogits[::2].tobytes() == d_want.tobytes()


@in_each_dtype
def test_a_confident_row_keeps_its_digits(dtype):
    """p - 1 where p is nearly 1, and the logarithm of a sum just above 1: the sum is float64's."""
    logits = np.array([[0.0, -12.0]], dtype)
    loss, dlogits = rk.cross_entropy(logits, [0])
    rest = math.exp(-12.0)
    bound = {"rtol": 4 * np.finfo(dtype).eps, "atol": 2.0**-52}
    np.testing.assert_allclose(loss, math.log1p(rest), **bound)
    np.testing.assert_allclose(dlogits[0, 0], -rest / (1 + rest), **bound)


# ---- in place, memory --------------------------------------------------------------------------


@in_each_dtype
@pytest.mark.parametrize("V", SIZES)
def test_in_place(V, dtype):
    logits, targets, weights = problem(9, V, dtype)
    want, d_want = rk.cross_entropy(logits, targets, mask=weights)
    own = np.full_like(logits, 7)
    for out in (own, logits.copy(), logits):
        given = logits if out is own else out
        loss, dlogits = rk.cross_entropy(given, targets, mask=weights, out=out)
        assert dlogits is out
        assert loss == want
        assert dlogits.tobytes() == d_want.tobytes()


def test_in_place_allocates_nothing_of_the_logits_size():
    logits, targets, _ = problem(100, 5000)
    rk.cross_entropy(logits, targets, out=logits)
    tracemalloc.start()
    try:
        rk.cross_entropy(logits, targets, out=logits)
        assert tracemalloc.get_traced_memory()[1] < logits.nbytes / 100
    finally:
        tracemalloc.stop()


def test_out_may_be_a_view_of_the_logits_but_not_lie_across_them():
    logits, targets, _ = problem(6, 8)
    want = rk.cross_entropy(logits, targets)[1].tobytes()
    memory = np.zeros((7, 8), np.float32)
    memory[:6] = logits
    assert rk.cross_entropy(memory[:6], targets, out=memory[:6])[1].tobytes() == want
    memory[:6] = logits
    with pytest.raises(ValueError, match=r"out: expected memory of its own, .* overlaps logits"):
        rk.cross_entropy(memory[:6], targets, out=memory[1:])
    assert memory[:6].tobytes() == logits.tobytes()
    ids = np.zeros(6, int)
    with pytest.raises(ValueError, match=r"out: expected memory of its own, .* overlaps targets"):
        rk.cross_entropy(np.zeros((6, 1)), ids, out=ids.view(np.float64)[:, None])


# ---- the same bits -----------------------------------------------------------------------------


def loss_bits(V, dtype, threads, rows=None):
    """Everything that a call returns, as bytes, for a problem that is worth five threads."""
    logits, targets, weights = problem(rows or 5 * 2**14 // V + 11, V, dtype)
    with rk.num_threads(threads):
        found = rk.cross_entropy(logits, targets, mask=weights)
        each = rk.cross_entropy(logits, targets, mask=weights, reduction="none")
    return [np.asarray(array).tobytes() for array in (*found, *each)]


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("V", [2, 33, 700, 2**14 + 5])
def test_threads(V, dtype, isa):
    with rk.force_isa(isa):
        want = loss_bits(V, dtype, 1)
        for threads in (2, 3, 5, 8):
            assert loss_bits(V, dtype, threads) == want, f"{threads} threads"


BACKWARD = "embed.backward(embed.forward(ids)[1], logits)"
OF_LINEAR = "linear.backward(linear.forward(logits)[1], logits)"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(
    "use", ["rk.cross_entropy(logits, ids)", BACKWARD, "linear(logits)", OF_LINEAR]
)
def test_threads_are_shared_out(use):
    """The problems above make the core start its threads: the tests of them aren't idle."""
    code = f"""if True:
        import os
        import numpy as np, rnnkern as rk
        logits, ids = np.zeros((128, 700), np.float32), np.zeros(128, int)
        embed, linear = rk.Embedding(3, 700), rk.Linear(700, 700)
        started = len(os.listdir("/proc/self/task"))
        for n in (1, 3, 5):  # only more: dismissed threads count until they end
            rk.set_num_threads(n)
            {use}
            print(n, len(os.listdir("/proc/self/task")) - started + 1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n3 3\n5 5\n", done.stderr


@pytest.mark.skipif(
    len(fused_sets()) < 2, reason=f"one set with a fused multiply-add here: {fused_sets()}"
)
@in_each_dtype
@pytest.mark.parametrize("V", SIZES)
def test_instruction_sets(V, dtype):
    found = []
    for isa in fused_sets():
        with rk.force_isa(isa):
            found.append(loss_bits(V, dtype, 2, rows=40))
    assert all(other == found[0] for other in found)


@in_each_set
@in_each_dtype
def test_a_row_alone_and_among_others(dtype, isa):
    logits, targets, _ = problem(21, 37, dtype)
    with rk.force_isa(isa):
        losses, dlogits = rk.cross_entropy(logits, targets, reduction="none")
        for row in range(21):
            loss, alone = rk.cross_entropy(logits[row], targets[row])
            assert np.float64(loss).tobytes() == losses[row].tobytes()
            assert alone.tobytes() == dlogits[row].tobytes()


@in_each_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_addresses_and_strides(layout, dtype):
    logits, targets, weights = problem(9, 37, dtype)
    want = rk.cross_entropy(logits, targets, mask=weights)
    got = rk.cross_entropy(layout(logits), layout(targets), mask=layout(weights))
    assert got[0] == want[0]
    assert got[1].tobytes() == want[1].tobytes()


# ---- the modules against their definitions -----------------------------------------------------


def backward(module, x, dy):
    """The gradients of a forward and a backward."""
    return module.backward(module.forward(x)[1], dy)


def chain(dtype, n):
    """Sums of n products of N(0, 1) are off by sqrt(n) roundings of values up to 4 sqrt(n)."""
    return {"rtol": 0, "atol": 4 * n * np.finfo(dtype).eps}


@in_each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_linear(shape, bias, dtype):
    linear = rk.Linear(11, 6, bias=bias, dtype=dtype, seed=3)
    x, dy = drawn(*shape, 11, dtype=dtype, size=1), drawn(*shape, 6, dtype=dtype, seed=1, size=1)
    w, b = linear.params["weight"], linear.params.get("bias")
    rows, d_rows = x.reshape(-1, 11), dy.reshape(-1, 6)
    grads = backward(linear, x, dy)
    dx, *of_params = reference.linear_gradient(rows, w, d_rows)
    want = dict(zip(("weight", "bias"), of_params, strict=True))
    out = np.empty((*shape, 6), dtype)
    assert linear(x, out=out) is out
    for y in (linear(x), linear.forward(x)[0], out):
        assert y.dtype == dtype
        np.testing.assert_allclose(
            y, reference.linear(rows, w, b).reshape(*shape, 6), **chain(dtype, 11)
        )
    assert list(grads.params) == list(linear.params)
    for name, array in grads.params.items():
        assert array.dtype == dtype
        np.testing.assert_allclose(array, want[name], **chain(dtype, max(1, len(rows))))
    assert grads.x.shape == x.shape
    np.testing.assert_allclose(grads.x, dx.reshape(x.shape), **chain(dtype, 6))
    norm = reference.joint_norm(grads.params.values())
    np.testing.assert_allclose(grads.norm, norm, rtol=1e-12)  # sums of squares in float64
    assert (grads.scale, grads.finite) == (1.0, True)


# rows, inputs, outputs: one of each; below, at and behind the vectors, cache lines and blocks of
# all instruction sets; rows shared by threads, and outputs.
LINEAR = [(1, 1, 1), (3, 17, 15), (7, 16, 33), (150, 40, 9), (9, 300, 700), (600, 300, 5)]
FMA = {np.float32: ("fmaf", ctypes.c_float), np.float64: ("fma", ctypes.c_double)}


def linear_problem(N, inputs, outputs, dtype, bias=True):
    linear = rk.Linear(inputs, outputs, bias=bias, dtype=dtype, seed=1)
    return (
        linear,
        drawn(N, inputs, dtype=dtype, size=1),
        drawn(N, outputs, dtype=dtype, seed=1, size=1),
    )


def linear_bits(linear, x, dy, mask=None):
    y, tape = linear.forward(x, mask=mask)
    grads = linear.backward(tape, dy)
    return [a.tobytes() for a in (y, grads.x, *grads.params.values())]


def chains(a, b, start):
    """Of each row of a and each row of b a chain of multiply-adds, rounded once each."""
    name, number = FMA[a.dtype.type]
    fma = getattr(ctypes.CDLL(None), name)
    fma.restype, fma.argtypes = number, [number] * 3
    out = np.empty((len(a), len(b)), a.dtype)
    for i, j in np.ndindex(out.shape):
        total = start[j]
        for k in range(a.shape[1]):
            total = fma(a[i, k], b[j, k], total)
        out[i, j] = total
    return out


@pytest.mark.parametrize("isa", fused_sets())
@in_each_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_a_linears_products_are_chains(bias, dtype, isa):
    """Of y from the bias over the inputs, of dx over the outputs, of dW over the rows."""
    linear, x, dy = linear_problem(13, 21, 18, dtype, bias)
    w, zero = linear.params["weight"], np.zeros(21, dtype)
    with rk.force_isa(isa):
        y, grads = linear(x), backward(linear, x, dy)
    assert y.tobytes() == chains(x, w, linear.params.get("bias", zero)).tobytes()
    assert grads.x.tobytes() == chains(dy, w.T, zero).tobytes()
    assert grads.params["weight"].tobytes() == chains(dy.T, x.T, zero).tobytes()
    if bias:
        sums = np.zeros(18, dtype)
        for row in dy:
            sums += row
        assert grads.params["bias"].tobytes() == sums.tobytes()


@in_each_dtype
@pytest.mark.parametrize("sizes", LINEAR)
def test_a_linears_bits_on_threads_and_instruction_sets(sizes, dtype):
    linear, x, dy = linear_problem(*sizes, dtype)
    mask = np.arange(len(x)) % 3 != 1
    for some in (None, mask):
        found = []
        for isa in fused_sets():
            with rk.force_isa(isa):
                found += [
                    on_threads(threads, linear_bits, linear, x, dy, some)
                    for threads in (1, 2, 3, 8)
                ]
        assert all(other == found[0] for other in found)


@in_each_dtype
def test_a_row_of_a_linear_alone_and_among_others(dtype):
    linear, x, dy = linear_problem(40, 33, 21, dtype)
    y, grads = linear(x), backward(linear, x, dy)
    for row in range(len(x)):
        alone = backward(linear, x[row], dy[row])
        assert linear(x[row]).tobytes() == y[row].tobytes()
        assert alone.x.tobytes() == grads.x[row].tobytes()


@in_each_dtype
@pytest.mark.parametrize("sizes", LINEAR)
def test_rows_of_a_linear_that_do_not_count_are_not_read(sizes, dtype):
    """Their outputs and dx are zeros, and the rest is as if they were not there."""
    linear, x, dy = linear_problem(*sizes, dtype)
    for mask in (np.arange(len(x)) % 3 != 1, np.zeros(len(x), bool), np.ones(len(x), bool)):
        x[~mask], dy[~mask] = np.nan, np.inf
        y, tape = linear.forward(x, mask=mask)
        grads = linear.backward(tape, dy)
        want, own = linear(x[mask]), backward(linear, x[mask], dy[mask])
        assert linear(x, mask=mask).tobytes() == y.tobytes()
        assert not y[~mask].any()
        assert not grads.x[~mask].any()
        assert y[mask].tobytes() == want.tobytes()
        assert grads.x[mask].tobytes() == own.x.tobytes()
        for name, array in own.params.items():
            assert grads.params[name].tobytes() == array.tobytes()
        x, dy = np.nan_to_num(x), np.nan_to_num(dy, posinf=0.0)


def test_a_tape_keeps_which_rows_count():
    linear, x, dy = linear_problem(6, 4, 3, np.float32)
    mask = np.arange(6) < 4
    tape = linear.forward(x.reshape(2, 3, 4), mask=mask.reshape(2, 3))[1]
    mask[...] = False
    grads = linear.backward(tape, dy.reshape(2, 3, 3))
    assert (
        grads.params["weight"].tobytes()
        == backward(linear, x[:4], dy[:4]).params["weight"].tobytes()
    )


@in_each_dtype
@pytest.mark.parametrize("sizes", [(5, 3, 4), (50, 64, 300), (2000, 130, 700)])
def test_embedding(sizes, dtype):
    n, width, rows = sizes
    embedding = rk.Embedding(n, width, dtype=dtype, seed=3)
    x = np.random.default_rng(0).integers(0, n, rows).reshape(2, -1)
    dy = drawn(*x.shape, width, dtype=dtype)
    y = embedding(x)
    assert y.tobytes() == embedding.params["weight"][x].tobytes()
    assert not np.shares_memory(y, embedding.params["weight"])
    want = np.zeros((n, width), dtype)  # in the order of the rows, to the bit
    for row, d in zip(x.ravel(), dy.reshape(-1, width), strict=True):
        want[row] += d
    for threads in (1, 2, 5):
        for kind in (np.int64, np.uint8 if n < 256 else np.int16):
            with rk.num_threads(threads):
                grads = backward(embedding, x.astype(kind), dy)
            assert grads.params["weight"].tobytes() == want.tobytes()
    assert grads.x is None
    np.testing.assert_allclose(grads.norm, reference.joint_norm([want]), rtol=1e-12)


def test_padding_idx():
    embedding = rk.Embedding(6, 4, padding_idx=2, seed=0)
    assert not embedding.params["weight"][2].any()
    assert embedding.params["weight"][[0, 1, 3, 4, 5]].all()
    x = np.array([2, 1, 2, 5])
    assert not embedding(x)[::2].any()
    grads = backward(embedding, x, np.ones((4, 4), np.float32))
    assert grads.params["weight"].sum(1).tolist() == [0, 4, 0, 0, 0, 4]
    assert grads.norm == math.sqrt(8)


def test_no_rows():
    assert rk.Linear(3, 2)(np.zeros((0, 3), np.float32)).shape == (0, 2)
    assert not backward(rk.Linear(3, 2), *(np.zeros((0, n), np.float32) for n in (3, 2))).norm
    assert rk.Embedding(3, 2)(np.zeros((0, 4), int)).shape == (0, 4, 2)
    empty = np.zeros((0, 4, 2), np.float32)
    assert not backward(rk.Embedding(3, 2), np.zeros((0, 4), int), empty).norm


@in_each_dtype
def test_initial_values(dtype):
    linear, table = rk.Linear(400, 300, dtype=dtype, seed=1), rk.Embedding(400, 300, dtype=dtype)
    for array in linear.params.values():
        assert array.dtype == dtype
        assert np.abs(array).max() <= 1 / 20
        # Of n uniform values the standard deviation is off by a share of 0.45 / sqrt(n); 5 of it.
        assert array.std() * 20 * math.sqrt(3) == pytest.approx(1, abs=2.3 / math.sqrt(array.size))
    weight = table.params["weight"]
    assert weight.dtype == dtype
    assert weight.std() == pytest.approx(1, abs=5 / math.sqrt(2 * weight.size))
    same = rk.Linear(400, 300, dtype=dtype, seed=1).params["weight"]
    assert same.tobytes() == linear.params["weight"].tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: rk.Linear(3, 4, **options),
        lambda **options: rk.Embedding(3, 4, **options),
        lambda **options: rk.CRF(3, **options),
        lambda **options: rk.Attention(3, kind="general", **options),
    ],
)
def test_a_seed_beside_parameters_is_refused(make):
    params = make(seed=1).params
    with pytest.raises(ValueError, match=r"^seed: expected None with params, got 2$"):
        make(params=params, seed=2)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (rk.Linear(3, 2), ["in_features", "out_features", "bias", "dtype"]),
        (rk.Embedding(3, 2), ["num_embeddings", "embedding_dim", "padding_idx", "dtype"]),
    ],
)
def test_settings_are_read_only(module, names):
    for name in names:
        with pytest.raises(AttributeError, match=name):
            setattr(module, name, getattr(module, name))


# ---- arguments that change during a call -------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        "rk.cross_entropy(values, ids)",
        "rk.cross_entropy(values, ids, ignore_index=-1)",
        "embedding.backward(embedding.forward(ids)[1], values)",
        "embedding(ids)",
    ],
)
def test_ids_that_another_thread_changes_are_not_used_unchecked(use):
    """Each call is refused by name or uses the ids that it checked; it does not crash."""
    code = f"""if True:
        import threading
        import numpy as np, rnnkern as rk
        values, ids = np.zeros((20_000, 40), np.float32), np.zeros(20_000, np.int64)
        embedding = rk.Embedding(40, 40)
        done = False
        def change():
            while not done:
                ids[...] = 2**44
                ids[...] = 0
        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        finished = 0
        while finished < 50:
            try:
                {use}
                finished += 1
            except ValueError as error:
                assert str(error).split("[")[0] in ("targets", "x"), error
        done = True
        thread.join()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@in_each_dtype
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (70, 33)])
def test_lookup_copies_rows_of_tables_of_any_layout(shape, dtype):
    embedding = rk.Embedding(9, 17, dtype=dtype, seed=0)
    table = embedding.params["weight"]
    ids = np.random.default_rng(0).integers(0, 9, shape)
    for given in (table, np.asfortranarray(table), table.repeat(2, axis=1)[:, ::2], table[::-1]):
        embedding.params["weight"] = given
        for threads in (1, 2, 3):
            with rk.num_threads(threads):
                y = embedding(ids)
            assert y.shape == (*shape, 17)
            assert y.tobytes() == given[ids].tobytes()
    assert 70 * 33 * 17 >= 2 * 2**14  # what two threads share
    ids[...] = 0
    assert not np.shares_memory(y, given)


def test_sizes_of_the_logits_are_read_once():
    class Shaping:
        """An array that gives the logits another shape when it is looked at."""

        def __init__(self, array, shape):
            self.array, self.shape = array, shape

        def __array__(self, *args, **kwargs):
            logits.shape = self.shape
            return self.array

    logits, targets, _ = problem(6, 3)
    want, d_want = rk.cross_entropy(logits, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about setting a shape
        got, d_got = rk.cross_entropy(
            logits, Shaping(targets, (2, 9)), mask=Shaping(np.ones(6), (6, 3))
        )
    assert got == want
    assert d_got.tobytes() == d_want.tobytes()


# ---- together ----------------------------------------------------------------------------------


def model(dtype):
    return (
        rk.Embedding(9, 5, padding_idx=0, dtype=dtype, seed=0),
        make_layer("gru", 5, 6, dtype=dtype),
        rk.Linear(6, 9, dtype=dtype, seed=2),
    )


def gradients(parts, ids, targets, mask):
    embedding, layer, linear = parts
    x, of_ids = embedding.forward(ids)
    y, _, tape = layer.forward(x)
    z, of_y = linear.forward(y)
    loss, dz = rk.cross_entropy(z, targets, mask=mask)
    of_linear = linear.backward(of_y, dz)
    of_layer = layer.backward(tape, of_linear.x)
    return loss, [embedding.backward(of_ids, of_layer.x), of_layer, of_linear]


def test_a_whole_models_gradient_is_that_of_its_loss():
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 9, (2, 7, 3))
    mask, parts = targets != 4, model(np.float64)
    _, grads = gradients(parts, ids, targets, mask)
    step = 1e-5  # error: step^2 times a third derivative of a few units, and 1e-16 * loss / step
    for part, grad in zip(parts, grads, strict=True):
        for name, array in part.params.items():
            for place in map(tuple, rng.integers(0, array.shape, (12, array.ndim))):
                if isinstance(part, rk.Embedding) and place[0] == 0:
                    continue  # the padding's row, whose gradient is zero by decree
                ends, kept = [], array[place]
                for sign in (1, -1):
                    array[place] = kept + sign * step
                    ends.append(gradients(parts, ids, targets, mask)[0])
                array[place] = kept
                want = (ends[0] - ends[1]) / (2 * step)
                assert abs(grad.params[name][place] - want) < 1e-8, name


def test_optimizers_take_the_gradients():
    ids = np.random.default_rng(0).integers(0, 9, (7, 3))
    parts, others = model(np.float32), model(np.float32)
    _, grads = gradients(parts, ids, ids, None)
    done = rk.Adam([part.params for part in parts]).step(grads, max_norm=0.01)
    same = rk.Adam([part.params for part in others]).step([g.params for g in grads], max_norm=0.01)
    assert done.applied
    # Both add up squares in float64, one array by array, one a layer at a time.
    assert done.norm == pytest.approx(same.norm, rel=1e-12)
    assert done.norm == pytest.approx(
        reference.joint_norm(a for g in grads for a in g.params.values()), rel=1e-12
    )
    bad = rk.Linear(6, 9, seed=2)
    with np.errstate(invalid="ignore"):
        grad = backward(bad, np.full((1, 6), np.inf, np.float32), np.ones((1, 9), np.float32))
    assert not grad.finite
    before = bad.params["weight"].copy()
    assert not rk.SGD(bad.params, lr=0.1).step(grad).applied
    assert bad.params["weight"].tobytes() == before.tobytes()


def test_pytorch_agrees():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 9, (2, 7, 3))
    targets[0] = 4
    embedding, _, linear = model(np.float64)
    x = torch.from_numpy(embedding.params["weight"]).requires_grad_()
    w, b = (
        torch.from_numpy(
            linear.params[n][:, :5].copy() if n == "weight" else linear.params[n]
        ).requires_grad_()
        for n in ("weight", "bias")
    )
    y = torch.nn.functional.embedding(torch.from_numpy(ids), x, padding_idx=0)
    logits = torch.nn.functional.linear(y, w, b)
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 9), torch.from_numpy(targets).reshape(-1), ignore_index=4
    )
    loss.backward()
    own = rk.Linear(5, 9, dtype=np.float64)
    head = torch.nn.Linear(5, 9, dtype=torch.float64)
    head.load_state_dict({"weight": w, "bias": b})
    own.load_state_dict(head.state_dict())
    rk.Adam(own, lr=0.0)  # which takes NumPy's arrays alone
    assert not any(
        np.shares_memory(own.params[name], p.detach().numpy())
        for name, p in head.named_parameters()
    )
    values = embedding(ids)
    got, dz = rk.cross_entropy(own(values), targets, ignore_index=4)
    grads = backward(own, values, dz)
    table = backward(embedding, ids, grads.x).params["weight"]
    # Float64 on both sides, chains of some 20 roundings of values below 4.
    assert got == pytest.approx(loss.item(), abs=2e-14)
    for found, want in ((grads.params["weight"], w), (grads.params["bias"], b), (table, x)):
        np.testing.assert_allclose(found, want.grad.numpy(), rtol=0, atol=2e-14)


# ---- tapes -------------------------------------------------------------------------------------


def modules_with_tapes():
    linear, embedding = rk.Linear(3, 2, seed=0), rk.Embedding(5, 2, seed=0)
    x, ids = np.ones((4, 3), np.float32), np.arange(4)
    return (linear, x, linear.forward(x)[1]), (embedding, ids, embedding.forward(ids)[1])


DY = np.ones((4, 2), np.float32)


def test_calls_return_what_forward_returns_before_its_tape():
    for module, x, tape in modules_with_tapes():
        y, again = module.forward(x)
        assert module(x).tobytes() == y.tobytes()
        assert repr(again) == repr(tape) == f"ModuleTape(x: {x.shape})"
        grads = [module.backward(t, DY).params["weight"].tobytes() for t in (tape, tape, again)]
        assert grads[0] == grads[1] == grads[2]
    linear, x, _ = modules_with_tapes()[0]
    out = np.empty((4, 2), np.float32)
    y, tape = linear.forward(x, out)
    assert y is out
    out[...] = 0.0  # backward does not read it
    linear.backward(tape, DY)


def test_a_linears_x_or_weight_that_has_changed_is_refused():
    said = "expected the values that forward read, got others (change arrays after backward"
    linear, x, tape = modules_with_tapes()[0]
    x += 1.0
    with pytest.raises(RuntimeError, match=f"^x: {re.escape(said)}"):
        linear.backward(tape, DY)
    x -= 1.0
    linear.params["bias"] += 1.0  # backward does not read it
    linear.backward(tape, DY)
    linear.params["weight"] *= 2.0
    with pytest.raises(RuntimeError, match=rf"^params\['weight'\]: {re.escape(said)}"):
        linear.backward(tape, DY)


def test_an_embeddings_tape_has_its_own_ids():
    embedding, ids, tape = modules_with_tapes()[1]
    want = embedding.backward(tape, DY).params["weight"].tobytes()
    ids[...] = 4
    embedding.params["weight"] += 1.0
    assert embedding.backward(tape, DY).params["weight"].tobytes() == want


def test_debug_compares_all_of_a_linears_arrays():
    linear, x = rk.Linear(100, 50, seed=0), np.ones((40, 100), np.float32)
    for array, name in ((x, "x"), (linear.params["weight"], "params['weight']")):
        with rk.debug():
            y, tape = linear.forward(x)
        array[17, 1] += 1.0
        with pytest.raises(RuntimeError, match=f"^{re.escape(name)}: expected the values"):
            linear.backward(tape, y)


def test_tapes_that_are_not_the_modules_own():
    (linear, x, _), (embedding, _, tape) = modules_with_tapes()
    said = "tape: expected a tape of this module's forward, got "
    for module in (linear, embedding):
        for wrong in (x, None, rk.ModuleTape.__new__(rk.ModuleTape)):
            with pytest.raises(TypeError, match=f"^{said}{type(wrong).__name__}$"):
                module.backward(wrong, DY)
    for module in (linear, rk.Embedding(5, 2, seed=0)):
        with pytest.raises(ValueError, match=f"^{said}one of another module$"):
            module.backward(tape, DY)
    for use in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^tape: expected to stay in its process, got a copy"):
            use(tape)


# ---- errors ------------------------------------------------------------------------------------

Z, IDS = np.zeros((4, 3, 9), np.float32), np.zeros((4, 3), int)


def but(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (
            TypeError,
            "logits: expected an array of dtype float32 or float64, got int64",
            {"logits": IDS},
        ),
        (
            TypeError,
            "logits: expected an array of dtype float32 or float64, got a scalar",
            {"logits": np.float32(1)},
        ),
        (
            TypeError,
            "logits: expected an array of dtype float32 or float64, got list",
            {"logits": [1.0]},
        ),
        (
            ValueError,
            "logits: expected shape (..., V) with V at least 1, got ()",
            {"logits": np.zeros((), np.float32)},
        ),
        (
            ValueError,
            "logits: expected shape (..., V) with V at least 1, got (4, 3, 0)",
            {"logits": Z[..., :0]},
        ),
        (TypeError, "targets: expected an array of integers, got float64", {"targets": 1.0 * IDS}),
        (TypeError, "targets: expected an array of integers, got bool", {"targets": IDS > 0}),
        (TypeError, "targets: expected an array of integers, got object", {"targets": [None]}),
        (ValueError, "targets: expected shape (4, 3), got (3, 4)", {"targets": IDS.T}),
        (
            ValueError,
            "targets: expected shape (4, 3), got (4, 3, 9)",
            {"targets": IDS[..., None].repeat(9, -1)},
        ),
        (
            ValueError,
            "targets[2, 1]: expected an integer from 0 to 8, got 9",
            {"targets": but(IDS, (2, 1), 9)},
        ),
        (
            ValueError,
            "targets[0, 2]: expected an integer from 0 to 8, got -1",
            {"targets": but(IDS, (0, 2), -1)},
        ),
        (
            ValueError,
            "targets[3, 2]: expected an integer from 0 to 8 or ignore_index -100, got -1",
            {"targets": but(IDS, (3, 2), -1), "ignore_index": -100},
        ),
        (
            ValueError,
            "targets[3, 2]: expected an integer from 0 to 8, got 18446744073709551615",
            {"targets": but(IDS.astype(np.uint64), (3, 2), 2**64 - 1)},
        ),
        (
            TypeError,
            "mask: expected an array of booleans or weights, got <U1",
            {"mask": np.full((4, 3), "a")},
        ),
        (ValueError, "mask: expected shape (4, 3), got (4,)", {"mask": np.ones(4)}),
        (
            ValueError,
            "mask[1, 0]: expected a weight from 0 to 3.4e38, got nan",
            {"mask": but(1.0 * IDS, (1, 0), np.nan)},
        ),
        (
            ValueError,
            "mask[1, 0]: expected a weight from 0 to 3.4e38, got inf",
            {"mask": but(1.0 * IDS, (1, 0), np.inf)},
        ),
        (
            ValueError,
            "mask[1, 0]: expected a weight from 0 to 3.4e38, got -2",
            {"mask": but(IDS, (1, 0), -2)},
        ),
        (
            ValueError,
            "mask[1, 0]: expected a weight from 0 to 3.4e38, got 1e+308",
            {"mask": but(1.0 * IDS, (1, 0), 1e308)},
        ),
        (
            ValueError,
            "targets[3, 2]: expected an integer from 0 to 8 or ignore_index -1, "
            "got 18446744073709551615",
            {"targets": but(IDS.astype(np.uint64), (3, 2), 2**64 - 1), "ignore_index": -1},
        ),
        (TypeError, "ignore_index: expected an integer, got float", {"ignore_index": 1.0}),
        (
            ValueError,
            "ignore_index: expected an integer of 64 bits, got 18446744073709551616",
            {"ignore_index": 2**64},
        ),
        (ValueError, "reduction: expected one of mean, sum, none, got 'max'", {"reduction": "max"}),
        (
            ValueError,
            "reduction: expected one of mean, sum, none, got array(['sum', 'max'], dtype='<U3')",
            {"reduction": np.array(["sum", "max"])},
        ),
        (
            TypeError,
            "out: expected an array of dtype float32, got float64",
            {"out": Z.astype(np.float64)},
        ),
        (
            ValueError,
            "out: expected shape (4, 3, 9), got (12, 9)",
            {"out": np.zeros((12, 9), np.float32)},
        ),
        (ValueError, "out: expected a writable array, got a read-only one", {"out": read_only(Z)}),
        (
            ValueError,
            "out: expected a C-contiguous, aligned array, got one of another layout",
            {"out": np.zeros((9, 3, 4), np.float32).T},
        ),
    ],
)
def test_errors_of_the_loss(error, message, change):
    arguments = {"logits": Z, "targets": IDS, **change}
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        rk.cross_entropy(arguments.pop("logits"), arguments.pop("targets"), **arguments)


X = np.zeros((4, 3, 5), np.float32)
ROW = np.zeros((1, 5), np.float32)


def having(module, **changes):
    """`module` with parameters changed; None takes one out."""
    module.params |= changes
    module.params = {name: array for name, array in module.params.items() if array is not None}
    return module


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            ValueError,
            "params['weight']: expected shape (3, 5), got (3,)",
            {"weight": np.zeros(3, np.float32)},
        ),
        (
            ValueError,
            "params['weight']: expected shape (3, 5), got (5, 3)",
            {"weight": np.zeros((5, 3), np.float32)},
        ),
        (
            TypeError,
            "params['weight']: expected an array of dtype float32, got float64",
            {"weight": np.zeros((3, 5))},
        ),
        (
            TypeError,
            "params['weight']: expected an array of dtype float32, got >f4",
            {"weight": np.zeros((3, 5), ">f4")},
        ),
        (
            TypeError,
            "params['weight']: expected an array of dtype float32, got datetime64[s]",
            {"weight": np.zeros((3, 5), "M8[s]")},
        ),
        (
            TypeError,
            "params['weight']: expected an array of dtype float32, got list",
            {"weight": [[0.0] * 5] * 3},
        ),
        (ValueError, "params: expected the names ['weight'], got []", {"weight": None}),
        (
            ValueError,
            "params: expected the names ['weight'], got ['weight', 'w']",
            {"w": np.zeros(3, np.float32)},
        ),
    ],
)
def test_parameters_are_checked_in_each_call(error, message, changes):
    linear = having(rk.Linear(5, 3, bias=False), **changes)
    table = having(rk.Embedding(3, 5), **changes)
    fit = rk.Linear(5, 3, bias=False), rk.Embedding(3, 5)
    tapes = fit[0].forward(ROW)[1], fit[1].forward(IDS[:1, 0])[1]
    fit[0].params, fit[1].params = linear.params, table.params
    for use in (
        lambda: linear(X),
        lambda: linear.forward(X),
        lambda: fit[0].backward(tapes[0], np.zeros((1, 3), np.float32)),
        lambda: table(IDS),
        lambda: table.forward(IDS),
        lambda: fit[1].backward(tapes[1], ROW),
    ):
        with pytest.raises(error, match=rf"^{re.escape(message)}( \(write .+\))?$"):
            use()


def test_a_bias_is_checked():
    linear = having(rk.Linear(5, 3), bias=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"^params\['bias'\]: expected shape \(3,\), got \(1,\)$"):
        linear(X)
    with pytest.raises(TypeError, match=r"^params: expected a dict of arrays, got list$"):
        linear.params = list(linear.params.values())


def test_linears_out_does_not_overlap_its_parameters():
    linear = rk.Linear(3, 3, seed=0)
    before = linear.params["weight"].copy()
    for out in (linear.params["weight"], linear.params["bias"][None]):
        with pytest.raises(ValueError, match=r"^out: expected .* memory of its own, got another$"):
            linear(np.ones((len(out), 3), np.float32), out=out)
    assert linear.params["weight"].tobytes() == before.tobytes()


OWN = "a writable, C-contiguous array with memory of its own"


@pytest.mark.parametrize(
    ("error", "message", "use"),
    [
        (
            ValueError,
            "in_features: expected an integer of at least 1, got 0",
            lambda: rk.Linear(0, 2),
        ),
        (TypeError, "out_features: expected an integer, got float", lambda: rk.Linear(3, 2.0)),
        (TypeError, "bias: expected True or False, got int", lambda: rk.Linear(3, 2, bias=1)),
        (
            TypeError,
            "dtype: expected float32 or float64, got float16",
            lambda: rk.Linear(3, 2, dtype="f2"),
        ),
        (
            ValueError,
            "seed: expected an integer from 0 to 2**64 - 1, got -1",
            lambda: rk.Embedding(3, 2, seed=-1),
        ),
        (
            ValueError,
            "num_embeddings: expected an integer of at least 1, got 0",
            lambda: rk.Embedding(0, 2),
        ),
        (
            ValueError,
            "padding_idx: expected an integer from 0 to 2, got 3",
            lambda: rk.Embedding(3, 2, padding_idx=3),
        ),
        (
            TypeError,
            "x: expected an array of dtype float32, got float64",
            lambda: rk.Linear(5, 2)(X.astype("f8")),
        ),
        (
            TypeError,
            "x: expected an array of dtype float32, got list",
            lambda: rk.Linear(5, 2)([1.0]),
        ),
        (ValueError, "x: expected shape (..., 6), got (4, 3, 5)", lambda: rk.Linear(6, 2)(X)),
        (
            ValueError,
            "out: expected shape (4, 3, 2), got (4, 3, 5)",
            lambda: rk.Linear(5, 2)(X, out=X),
        ),
        (ValueError, f"out: expected {OWN}, got another", lambda: rk.Linear(5, 5)(X, out=X)),
        (
            ValueError,
            "mask: expected shape (4, 3), got (3, 4)",
            lambda: rk.Linear(5, 2)(X, mask=np.ones((3, 4), bool)),
        ),
        (
            TypeError,
            "mask: expected an array of booleans, got float64",
            lambda: rk.Linear(5, 2).forward(X, mask=np.ones((4, 3))),
        ),
        (
            ValueError,
            "dy: expected shape (4, 3, 2), got (4, 3, 5)",
            lambda: backward(rk.Linear(5, 2), X, X),
        ),
        (
            ValueError,
            "dy: expected shape (5,), got (1, 5)",
            lambda: backward(rk.Linear(5, 5), X[0, 0], X[0, :1]),
        ),
        (TypeError, "x: expected an array of integers, got float32", lambda: rk.Embedding(3, 5)(X)),
        (
            ValueError,
            "x[1, 2]: expected an integer from 0 to 2, got 3",
            lambda: rk.Embedding(3, 5)(but(IDS, (1, 2), 3)),
        ),
        (
            ValueError,
            "x[1, 2]: expected an integer from 0 to 2, got -1",
            lambda: rk.Embedding(3, 5).forward(but(IDS, (1, 2), -1)),
        ),
        (ValueError, "x: expected an integer from 0 to 2, got 7", lambda: rk.Embedding(3, 5)(7)),
        (
            ValueError,
            "dy: expected shape (4, 3, 6), got (4, 3, 5)",
            lambda: backward(rk.Embedding(3, 6), IDS, X),
        ),
        (
            TypeError,
            "dy: expected an array of dtype float64, got float32",
            lambda: backward(rk.Embedding(3, 5, dtype="f8"), IDS, X),
        ),
    ],
)
def test_errors_of_the_modules(error, message, use):
    with pytest.raises(error, match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use()
