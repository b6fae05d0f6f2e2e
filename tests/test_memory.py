"""Memory that waits for the next call: rk.release_memory and what stands behind it."""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from plan import constant

import rnnkern as rk

FEWEST = constant("core/threads/memory.h", "kFewestCachedBytes")  # of a block that waits
MOST = constant("core/threads/memory.h", "kMostCachedBytes")  # of all that wait; docs: 128 MiB


@pytest.fixture(autouse=True)
def nothing_waits():
    rk.release_memory()
    yield
    rk.release_memory()


def train(layer, x):
    y, _, tape = layer.forward(x)
    return y, layer.backward(tape, np.ones_like(y))


def values(y, grads):
    return [y, grads.x, *grads.params.values()]


def test_what_is_no_longer_used_waits_and_is_handed_back():
    layer, x = rk.LSTM(64, 64, seed=0), np.ones((50, 8, 64), np.float32)
    y, grads = train(layer, x)
    room = rk.release_memory()
    assert room > 0  # the tape and the calls' room
    assert rk.release_memory() == 0
    expected = y.copy()
    weight = grads.params["weight_hh_l0"]
    assert min(a.nbytes for a in (y, grads.x, weight)) >= FEWEST
    weight_before = weight.copy()
    del grads  # but not what is still in use
    assert rk.release_memory() > 0
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(weight, weight_before)


def test_results_alive_share_no_memory_and_keep_their_values():
    layer = rk.GRU(60, 60, seed=0)
    inputs = [np.full((60, 8, 60), v, np.float32) for v in (0.1, 0.2, 0.3)]
    alone = [[a.copy() for a in values(*train(layer, x))] for x in inputs]
    assert min(a.nbytes for a in alone[0] if a.ndim > 1) >= FEWEST
    alive = [values(*train(layer, x)) for x in inputs for _ in range(2)]
    for i, one in enumerate(alive):
        for j, other in enumerate(alive):
            assert i == j or not any(map(np.shares_memory, one, other))
        for got, want in zip(one, alone[i // 2], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(1, 1, 4), (0, 8, 128), (50, 0, 128), (50, 8, 128)])
def test_results_are_plain_arrays_to_the_caller(shape):
    layer = rk.RNN(shape[2], 128, seed=0)
    _, grads = train(layer, np.ones(shape, np.float32))
    assert {a.nbytes >= FEWEST for a in grads.params.values()} == {False, True}
    assert grads.x.shape == shape
    for a in (grads.x, *grads.params.values()):
        assert a.flags.c_contiguous
    assert not any(a.flags.writeable for a in grads.params.values())  # their norm is measured
    grads.x[...] += 1
    part = layer(np.ones(shape, np.float32))[0][..., :2]  # a view outlives the array it is of
    expected = part.copy()
    layer(np.zeros(shape, np.float32))
    np.testing.assert_array_equal(part, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's page faults")
def test_a_training_loop_takes_no_new_memory():
    layer, x = rk.LSTM(64, 64, seed=0), np.ones((100, 16, 64), np.float32)
    dy = np.ones((100, 16, 64), np.float32)

    def steps(n):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(n):
            _, _, tape = layer.forward(x)
            layer.backward(tape, dy)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    steps(3)
    pages = 100 * 16 * 64 * 4 // resource.getpagesize()  # of y alone
    assert steps(10) < pages


def test_no_more_waits_than_is_said():
    layer = rk.RNN(256, 256, seed=0)
    xs = [np.zeros((t, 64, 256), np.float32) for t in range(300, 308)]
    held = [layer(x)[0] for x in xs]
    largest = held[-1].nbytes
    assert sum(y.nbytes for y in held) > MOST + largest
    del held
    assert MOST - 2 * largest < rk.release_memory() <= MOST == 128 << 20


def test_threads_at_once():
    layer = rk.GRU(32, 48, seed=0)
    xs = [np.full((30 + i, 8, 32), 0.01 * i, np.float32) for i in range(6)]
    expected = [layer(x)[0].copy() for x in xs]

    def many(i):
        return all(np.array_equal(layer(xs[i])[0], expected[i]) for _ in range(60))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, range(6)))
