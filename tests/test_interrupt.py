"""Signals during a call: Ctrl-C ends it soon, and everything is as it was before the call."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
from helpers import make_layer, random_problem

import rnnkern as rk

SECONDS = 0.2  # from Ctrl-C to KeyboardInterrupt, as docs/reliability.md promises
ATTEMPTS = 4  # of which one must keep to it: the machine's other work is not ours

# I, H, L, T, B of calls that take a second or so: many rows to share, few rows and many units, or
# layers side by side.
SHAPES = {
    "rows": (256, 512, 1, 900, 64),
    "units": (1024, 2048, 1, 400, 2),
    "layers": (128, 128, 4, 60000, 1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_number_of_threads = pytest.mark.parametrize("threads", [1, 2, 5])


def signalled(use, seconds=0.05, number=signal.SIGINT, sent=None):
    """Call use(), with a signal to this process meanwhile; `sent` gets the time of it."""

    def send():
        if sent is not None:
            sent.append(time.perf_counter())
        os.kill(os.getpid(), number)

    timer = threading.Timer(seconds, send)
    timer.start()
    try:
        return use()
    finally:
        timer.cancel()
        timer.join()


def forever(use):
    end = time.monotonic() + 60  # far more than any signal here takes
    while time.monotonic() < end:
        use()


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's own handler: a process started in the background has none, and ignores Ctrl-C."""
    with handling(signal.SIGINT, signal.default_int_handler):
        yield


@contextmanager
def handling(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@cache
def long(shape):
    """A layer, a problem and a tape whose backward takes long."""
    I, H, L, T, B = SHAPES[shape]
    layer = make_layer("gru", I, H, num_layers=L)
    problem = random_problem(layer, T, B)
    with rk.num_threads(2):
        tape = problem.forward(layer)[2]
    return layer, problem, tape


@cache
def small():
    """A small problem and its results: that nothing is broken."""
    layer = make_layer("lstm", 16, 24)
    x = random_problem(layer, 30, 9).x
    return layer, x, layer(x)[0].tobytes()


def assert_all_is_well():
    layer, x, want = small()
    assert layer(x)[0].tobytes() == want


@every_number_of_threads
@every_shape
@pytest.mark.parametrize("name", ["call", "forward", "backward", "segments", "stream"])
def test_ctrl_c_ends_a_long_call(name, shape, threads):
    layer, p, tape = long(shape)
    stream = layer.stream(p.x.shape[1])
    stream.step(p.x[0])
    use = {
        "call": lambda: layer(p.x, p.state),
        "forward": lambda: p.forward(layer),
        "backward": lambda: p.backward(layer, tape, rk.Clip(step_norm=1.0)),
        "segments": lambda: p.backward(layer, p.forward(layer, checkpoint=2)[2]),
        "stream": lambda: stream.run(p.x),
    }[name]

    def state():
        arrays = [*layer.params.values(), stream.state]
        return b"".join(a.tobytes() for a in arrays), layer.dropout_step

    assert_all_is_well()
    before, waited = state(), []
    with rk.num_threads(threads):
        for _ in range(ATTEMPTS):
            sent = []
            with pytest.raises(KeyboardInterrupt):
                signalled(use, sent=sent)
            waited.append(time.perf_counter() - sent[0])
            assert state() == before
            assert_all_is_well()
            if waited[-1] <= SECONDS:
                break
    assert min(waited) <= SECONDS, f"{waited} s"


def test_a_stream_goes_on_after_ctrl_c_with_the_same_bits():
    layer, p, _ = long("rows")
    fresh, stream = layer.stream(p.x.shape[1]), layer.stream(p.x.shape[1])
    for one in (fresh, stream):
        one.run(p.x[:3])
    with pytest.raises(KeyboardInterrupt):
        signalled(lambda: stream.run(p.x))
    assert stream.run(p.x[3:9]).tobytes() == fresh.run(p.x[3:9]).tobytes()


@every_shape
@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_handler_raises_arrives(shape, threads):
    layer, p, _ = long(shape)

    def handler(number, frame):
        raise TimeoutError("too long")

    with (
        rk.num_threads(threads),
        handling(signal.SIGALRM, handler),
        pytest.raises(TimeoutError, match="too long"),
    ):
        signalled(lambda: layer(p.x), number=signal.SIGALRM)
    assert_all_is_well()


@every_shape
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_returns_changes_nothing(shape, threads):
    """It runs during the call, in the caller's floating-point environment, and may use a layer."""
    layer, p, tape = long(shape)
    with rk.num_threads(threads):
        want = p.backward(layer, tape).x.tobytes()
        served = []

        def handler(number, frame):
            assert_all_is_well()
            subnormal = np.float32(2**-126) / np.float32(2)
            served.append((time.perf_counter(), float(subnormal)))

        with handling(signal.SIGALRM, handler):
            begin = time.perf_counter()
            found = signalled(lambda: p.backward(layer, tape), number=signal.SIGALRM).x.tobytes()
            end = time.perf_counter()
    assert found == want
    [(when, subnormal)] = served
    assert begin + 0.05 < when < end
    assert subnormal == 2**-127


def test_other_threads_finish_their_calls():
    """Signals are the main thread's: a call of another thread goes on."""
    layer, p, _ = long("rows")
    want = layer(p.x)[0].tobytes()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: layer(p.x)[0].tobytes())
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: time.sleep(0.01)))
        assert not call.done()
        assert call.result() == want


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_loss(threads):
    logits, targets = np.zeros((6_000_000, 3), np.float32), np.zeros(6_000_000, int)
    out, waited = np.empty_like(logits), []
    with rk.num_threads(threads):
        for _ in range(ATTEMPTS):
            out[:], sent = np.nan, []
            with pytest.raises(KeyboardInterrupt):
                signalled(lambda: rk.cross_entropy(logits, targets, out=out), 0.02, sent=sent)
            waited.append(time.perf_counter() - sent[0])
            if waited[-1] <= SECONDS and np.isnan(out).any():
                break
        else:
            raise AssertionError(f"took {waited} s, or was done before")
    assert_all_is_well()


def test_a_step_of_an_optimizer_is_whole():
    """Parameters and the count of steps rise together, whenever Ctrl-C comes."""
    params = {name: np.zeros(400_000, np.float32) for name in ("a", "b")}
    grads = {name: np.ones_like(array) for name, array in params.items()}
    opt = rk.SGD(params, lr=1.0)
    delays = np.random.default_rng(0).uniform(0, 0.01, 40)
    for delay in delays:
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: opt.step(grads)), delay)
        steps = int(opt.state_dict()["step"])
        for array in params.values():
            assert array.min() == array.max() == -steps
    assert steps > 0


def test_loading_an_optimizers_state_is_whole():
    params = {str(i): np.zeros(1000) for i in range(40)}
    opt = rk.SGD(params, lr=1.0, momentum=0.5)
    states = []
    for step in range(2):
        opt.step({name: np.full(1000, 1.0 + step) for name in params})
        states.append(opt.state_dict())
    turns = itertools.cycle(states)
    for delay in np.random.default_rng(0).uniform(0, 0.004, 40):
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: opt.load_state_dict(next(turns))), delay)
        found = opt.state_dict()
        want = states[int(found["step"]) - 1]
        assert all(found[name].tobytes() == want[name].tobytes() for name in want)
