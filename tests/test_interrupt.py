"""Signals during a call: Ctrl-C ends it soon, and everything is as it was before the call."""

from __future__ import annotations

import itertools
import math
import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import make_layer, random_problem
from plan import constant, plan_of

import rnnkern as rk

# The time from Ctrl-C to KeyboardInterrupt that docs/reliability.md promises. The calling thread
# asks for signals every 0.1 s; the rest is for its work between two looks at the clock, for the
# other threads to reach a barrier, and for memory to be released.
SECONDS = 0.2
# Core time of a complete call. Shared by 5 threads, the call still takes twice as long as SECONDS:
# a call that never asks for signals fails its test.
LONG = 2.0

# I, H, L, B of calls with many rows to share, few rows and many units, or layers side by side.
# Fewer units for calls in segments: each segment packs the weights again, and their memory has to
# be released, too.
SHAPES = {
    "rows": (256, 512, 1, 64),
    "units": (1024, 2048, 1, 2),
    "layers": (128, 128, 4, 1),
    "fewer-units": (512, 1024, 1, 2),
}
WHOLE, IN_SEGMENTS = ("rows", "units", "layers"), ("rows", "fewer-units", "layers")
every_shape = pytest.mark.parametrize("shape", WHOLE)
every_number_of_threads = pytest.mark.parametrize("threads", [1, 2, 5])


class Clock:
    """The time since its creation, without the delay that other processes and the system caused.

    Another process delays a call while it occupies a core that a thread of the call is ready to run
    on. Linux reports how long each thread was ready and did not run (the run delay in schedstat),
    but this includes waiting for threads of the same process. The delay is therefore taken as the
    smaller of two times: the longest run delay of a thread, and the core time that this process did
    not get. On an idle machine it is close to zero: either no thread waits for a core, or this
    process has all cores. On a busy machine the remaining time is at least the time that one thread
    ran or slept: a call that never asks for signals still exceeds the bound.

    Time in the system is subtracted, too: on a virtual machine, the first access to a page can take
    a hundred times as long as the next one. What is tested here takes at least SECONDS of its own.
    """

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now():
        waited = {}  # stays empty, and nothing is subtracted, where the kernel lacks schedstat
        for task in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
                waited[task] = int(task.read_text().split()[1]) * 1e-9
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime, waited

    def seconds(self):
        """Return the time without the delay, and the delay."""
        (wall, ran, system, before), (wall_now, ran_now, system_now, waited) = (
            self.start,
            self.now(),
        )
        passed = wall_now - wall
        longest = max((w - before.get(task, 0.0) for task, w in waited.items()), default=0.0)
        not_ours = len(os.sched_getaffinity(0)) * passed - (ran_now - ran)
        delay = max(0.0, min(longest, not_ours)) + system_now - system
        return passed - delay, delay

    def assert_in_time(self):
        own, delay = self.seconds()
        assert own <= SECONDS, f"{own:.3f} s, after {delay:.3f} s of delay by others"


def signalled(use, seconds=None, number=signal.SIGINT, sent=None, until=lambda: True):
    """Call use() and send this process a signal meanwhile; `sent` gets a clock that starts then.

    The signal is sent `seconds` after the start, once until() is true. Without `seconds`, it is
    sent as soon as use() has asked for signals for the first time, which the handler of another
    signal observes: the signal then has to wait for the next question.
    """
    over = threading.Event()

    def send():
        while not until() and not over.wait(0.1):
            pass
        if over.is_set():
            return  # too late: there is nothing to interrupt
        if sent is not None:
            sent.append(Clock())
        os.kill(os.getpid(), number)

    first = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    sender = threading.Timer(seconds or 0.01, send)
    timers = [first, sender] if seconds is None else [sender]
    with handling(signal.SIGUSR1, lambda number, frame: sender.start()):
        timers[0].start()
        try:
            return use()
        finally:
            over.set()
            for timer in timers:
                timer.cancel()
                if timer.ident is not None:
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


def size_of(seconds, use, given=lambda n: n):
    """Return the n for which use(given(n)) takes this much time of one core.

    The faster of two calls: the system takes much longer for memory that nothing has used yet.
    """
    n, took = 16, 0.0
    with rk.num_threads(1):
        while took < 0.02:
            n *= 2
            arguments = given(n)
            times = []
            for _ in range(2):
                begin = time.thread_time()
                use(arguments)
                times.append(time.thread_time() - begin)
            took = min(times)
    return math.ceil(n * seconds / took)


@cache
def long(shape):
    """A layer and a problem whose forward takes long."""
    I, H, L, B = SHAPES[shape]
    layer = make_layer("gru", I, H, num_layers=L)
    one = random_problem(layer, 1, B)

    def repeated(array, T):
        return np.broadcast_to(array, (T, B, array.shape[2]))

    T = size_of(LONG, lambda T: layer(repeated(one.x, T)))
    return layer, one.but(x=repeated(one.x, T), dy=repeated(one.dy, T))


@cache
def long_tape(shape, checkpoint=None):
    """A problem of half the steps, with a tape: backward takes twice as long as forward."""
    layer, p = long(shape)
    half = p.but(x=p.x[::2], dy=p.dy[::2])
    with rk.num_threads(2):
        return half, half.forward(layer, checkpoint=checkpoint)[2]


@cache
def small():
    """A small problem and its results: that nothing is broken."""
    layer = make_layer("lstm", 16, 24)
    x = random_problem(layer, 30, 9).x
    return layer, x, layer(x)[0].tobytes()


def assert_all_is_well():
    layer, x, want = small()
    assert layer(x)[0].tobytes() == want


def test_questions_are_close_enough_to_one_another():
    assert 2 * constant("core/threads/runtime.h", "kSecondsBetweenPolls") <= SECONDS


def assert_ctrl_c_ends(use, layer, stream=None):
    """In time, and with everything as before."""

    def state():
        arrays = [*layer.params.values(), *([] if stream is None else [stream.state])]
        return b"".join(a.tobytes() for a in arrays), layer.dropout_step

    layer.dropout_step = 0  # which a problem's forward starts from
    before, sent = state(), []
    with pytest.raises(KeyboardInterrupt):
        signalled(use, sent=sent)
    sent[0].assert_in_time()
    assert state() == before
    assert_all_is_well()


@every_number_of_threads
@every_shape
@pytest.mark.parametrize("name", ["call", "forward", "backward", "stream"])
def test_ctrl_c_ends_a_long_call(name, shape, threads):
    (layer, p), (half, tape) = long(shape), long_tape(shape)
    stream = layer.stream(p.x.shape[1])
    stream.step(p.x[0])
    use = {
        "call": lambda: layer(p.x, p.state),
        "forward": lambda: p.forward(layer),
        "backward": lambda: half.backward(layer, tape, rk.Clip(step_norm=1.0)),
        "stream": lambda: stream.run(p.x),
    }[name]
    with rk.num_threads(threads):
        assert_ctrl_c_ends(use, layer, stream)


@every_number_of_threads
@pytest.mark.parametrize("shape", IN_SEGMENTS)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_ctrl_c_ends_a_long_call_in_segments(name, shape, threads):
    (layer, p), (half, tape) = long(shape), long_tape(shape, checkpoint=2)
    use = {
        "forward": lambda: p.forward(layer, checkpoint=2),
        "backward": lambda: half.backward(layer, tape, rk.Clip(step_norm=1.0)),
    }[name]
    with rk.num_threads(threads):
        assert_ctrl_c_ends(use, layer)


def test_a_stream_goes_on_after_ctrl_c_with_the_same_bits():
    layer, p = long("rows")
    fresh, stream = layer.stream(p.x.shape[1]), layer.stream(p.x.shape[1])
    for one in (fresh, stream):
        one.run(p.x[:3])
    with pytest.raises(KeyboardInterrupt):
        signalled(lambda: stream.run(p.x))
    assert stream.run(p.x[3:9]).tobytes() == fresh.run(p.x[3:9]).tobytes()


@every_shape
@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_handler_raises_arrives(shape, threads):
    (layer, p), sent = long(shape), []

    def handler(number, frame):
        raise TimeoutError("too long")

    with (
        rk.num_threads(threads),
        handling(signal.SIGALRM, handler),
        pytest.raises(TimeoutError, match="too long"),
    ):
        signalled(lambda: layer(p.x), number=signal.SIGALRM, sent=sent)
    sent[0].assert_in_time()
    assert_all_is_well()


@every_shape
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_returns_changes_nothing(shape, threads):
    """It runs during the call, in the caller's floating-point environment, and may use a layer."""
    (layer, _), (p, tape) = long(shape), long_tape(shape)
    sent, served = [], []

    def handler(number, frame):
        sent[0].assert_in_time()
        assert_all_is_well()
        served.append(float(np.float32(2**-126) / np.float32(2)))

    with rk.num_threads(threads), handling(signal.SIGALRM, handler):
        grads = signalled(lambda: p.backward(layer, tape), number=signal.SIGALRM, sent=sent)
    assert served == [2**-127]
    assert grads.x.tobytes() == undisturbed(shape)


@cache
def undisturbed(shape):
    (layer, _), (p, tape) = long(shape), long_tape(shape)
    return p.backward(layer, tape).x.tobytes()


def test_other_threads_finish_their_calls():
    """Signals are the main thread's: a call of another thread goes on."""
    layer, p = long("rows")
    x = p.x[::2]
    want = layer(x)[0].tobytes()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: layer(x)[0].tobytes())
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: time.sleep(0.01)))
        assert not call.done()
        assert call.result() == want


def test_ctrl_c_ends_an_ensemble_after_the_calling_threads_share():
    """Of three members on two threads, the calling thread runs one and the other thread two."""
    layer = make_layer("gru", 16, 48, ensemble=3)  # larger ones run in turn on both threads

    def x(T):
        return np.broadcast_to(np.float32(1), (T, 3, 1, 16))

    T = size_of(LONG / 2, lambda T: layer.member(0)(x(T)[:, 0], outputs="last"))
    plan = plan_of(layer, T, 1, 2)
    assert (plan.shared, plan.threads) == ("members", 2)
    clock, sent = time.pthread_getcpuclockid(threading.get_ident()), []
    ran = [time.clock_gettime(clock)]

    def the_caller_waits():
        ran.append(time.clock_gettime(clock))
        return ran[-1] - ran[0] > LONG / 4 and ran[-1] - ran[-2] < 0.005  # in 0.1 s

    with rk.num_threads(2), pytest.raises(KeyboardInterrupt):
        signalled(lambda: layer(x(T), outputs="last"), 0.1, sent=sent, until=the_caller_waits)
    sent[0].assert_in_time()
    assert_all_is_well()


def test_ctrl_c_ends_an_ensemble_whose_members_run_in_turn():
    layer = make_layer("gru", 64, 256, ensemble=3)

    def x(T):
        return np.broadcast_to(np.float32(1), (T, 3, 16, 64))

    T = size_of(LONG / 2, lambda T: layer.member(0)(x(T)[:, 0], outputs="last"))
    assert plan_of(layer, T, 16, 2).shared == "rows"
    sent = []
    with rk.num_threads(2), pytest.raises(KeyboardInterrupt):
        signalled(lambda: layer(x(T), outputs="last"), LONG / 2, sent=sent)
    sent[0].assert_in_time()
    assert_all_is_well()


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_loss(threads):
    def arguments(n):
        return np.zeros((n, 3), np.float32), np.zeros(n, int)

    logits, targets = arguments(size_of(LONG / 2, lambda a: rk.cross_entropy(*a), arguments))
    out, sent = np.full_like(logits, np.nan), []
    with rk.num_threads(threads), pytest.raises(KeyboardInterrupt):
        signalled(lambda: rk.cross_entropy(logits, targets, out=out), sent=sent)
    sent[0].assert_in_time()
    assert np.isnan(out).any()  # not all was done
    assert_all_is_well()


def module_of(name):
    """A module's long call: its arguments as a function of n, and what takes them."""

    def numbers(*shape, scale=1.0):
        return (scale * np.random.default_rng(0).normal(size=shape)).astype(np.float32)

    linear, attention = rk.Linear(1024, 1024, seed=0), rk.Attention(64, 64, kind="dot")
    crf = rk.CRF(512, seed=0)

    def with_tape(module, *arguments):
        y, tape = module.forward(*arguments)
        return tape, np.ones_like(y)

    def pairs(n):
        return numbers(2048, n, 64), numbers(2048, n, 64)

    return {
        "linear": (lambda n: numbers(n, 1024), linear),
        "linear gradients": (
            lambda n: with_tape(linear, numbers(n, 1024)),
            lambda given: linear.backward(*given),
        ),
        "attention": (pairs, lambda given: attention(*given)),
        "attention gradients": (
            lambda n: with_tape(attention, *pairs(n)),
            lambda given: attention.backward(*given),
        ),
        "partition": (lambda n: numbers(n, 2, 512), crf.log_partition),
        # Terms so far apart that the sums over labels are computed anew.
        "exact partition": (lambda n: numbers(n, 2, 512, scale=1e4), crf.log_partition),
        "best path": (lambda n: numbers(n, 2, 512), crf.decode),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("linear", "linear gradients", "attention", "attention gradients"),
        *("partition", "exact partition", "best path"),
    ],
)
def test_ctrl_c_ends_a_modules_call(name):
    given, use = module_of(name)
    arguments, sent = given(size_of(LONG / 4, use, given)), []
    for threads in (1, 2):
        with rk.num_threads(threads), pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: use(arguments)), sent=sent)
        sent[-1].assert_in_time()
    assert_all_is_well()


def test_a_step_of_an_optimizer_is_whole():
    """Parameters and the count of steps rise together, whenever Ctrl-C comes."""
    params = {name: np.zeros(400_000, np.float32) for name in ("a", "b")}
    grads = {name: np.ones_like(array) for name, array in params.items()}
    opt = rk.SGD(params, lr=1.0)
    seen = set()
    for delay in np.random.default_rng(0).uniform(0, 0.01, 40):
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: opt.step(grads)), delay)
        steps = int(opt.state_dict()["sgd.step"])
        for array in params.values():
            assert array.min() == array.max() == -steps
        seen.add(steps)
    assert len(seen) > 20  # more often than not, Ctrl-C came after the first of some steps


def test_loading_an_optimizers_state_is_whole():
    params = {str(i): np.zeros(1000) for i in range(40)}
    opt = rk.SGD(params, lr=1.0, momentum=0.5)
    states = []
    for step in range(2):
        opt.step({name: np.full(1000, 1.0 + step) for name in params})
        states.append(opt.state_dict())
    turns, seen = itertools.cycle(states), set()
    for delay in np.random.default_rng(0).uniform(0, 0.004, 40):
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: opt.load_state_dict(next(turns))), delay)
        found = opt.state_dict()
        want = states[int(found["sgd.step"]) - 1]
        assert all(found[name].tobytes() == want[name].tobytes() for name in want)
        seen.add(int(found["sgd.step"]))
    assert seen == {1, 2}


# ---- work outside the kernels ------------------------------------------------------------------

HALF = 0.7  # core time of such work: without a poll, Ctrl-C would come 0.5 s late


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_the_packing_of_weights(monkeypatch, threads):
    monkeypatch.setattr(  # drawing them would take longer than all else
        "rnnkern.layers.base.initial",
        lambda init, kind, name, shape, *_: np.zeros(shape, np.float32),
    )
    H, few = 1024, 2
    layer = make_layer("gru", H, H, num_layers=few)
    with rk.num_threads(1):
        begin = time.thread_time()
        layer.stream()
        took = time.thread_time() - begin
    layer = make_layer("gru", H, H, num_layers=min(64, math.ceil(threads * HALF / took * few)))
    sent = []
    with rk.num_threads(threads), pytest.raises(KeyboardInterrupt):
        signalled(layer.stream, sent=sent)
    sent[0].assert_in_time()


def rows_of(what):
    """Work on n steps of all rows together, almost all of them padding, that is not the kernels'.

    Returns the arguments as a function of n, and what takes them. The arguments are made before:
    while NumPy makes an array, no signal is answered. The work on lengths goes by steps, which one
    row has the most of; all else goes by steps of rows, and many rows leave the kernels few steps.
    """
    layer = make_layer("rnn_tanh", 1, 1)
    B = 1 if what == "lengths" else 64
    lengths = np.array([1] + [0] * (B - 1))

    def x(n):
        return np.broadcast_to(np.float32(0), (n // B + 1, B, 1))

    def flags(n, last):
        values = np.zeros((n // B + 1, B), bool)
        values[-1, 0] = last
        return values

    return {
        "lengths": (x, lambda x: layer(x, lengths=lengths)),
        "resets": (
            lambda n: (x(n), flags(n, False)),
            lambda given: layer(given[0], lengths=lengths, resets=given[1]),
        ),
        "mask": (  # which moves the last step to the front
            lambda n: (x(n), flags(n, True), flags(n, False)),
            lambda given: layer(given[0], mask=given[1], resets=given[2]),
        ),
        "trace": (
            lambda n: layer.forward(x(n), lengths=lengths)[2],
            lambda tape: layer.backward(tape, trace=True),
        ),
    }[what]


@pytest.mark.parametrize("what", ["lengths", "resets", "mask", "trace"])
def test_ctrl_c_ends_the_preparation_of_rows(what):
    """Its parts follow one another: a signal late in one must not wait for two intervals.

    On a busy machine a call can end before the signal comes, hence the repetition.
    """
    given, use = rows_of(what)
    # Less of what takes much memory for its time (a trace 40 bytes for each step of a row): making
    # and releasing it is not what polls.
    seconds = HALF if what == "lengths" else HALF / 2
    arguments = given(size_of(seconds, use, given))
    for delay in (None, 0.02, 0.3 * seconds, 0.6 * seconds):
        sent = []
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: use(arguments)), delay, sent=sent)
        sent[0].assert_in_time()


def test_ctrl_c_ends_a_gradients_product(monkeypatch):
    """Two rows, and a matrix so large that its gradient alone takes longer than a call may."""
    monkeypatch.setattr(
        "rnnkern.layers.base.initial",
        lambda init, kind, name, shape, *_: np.zeros(shape, np.float32),
    )
    layer, sent = make_layer("min_gru", 8192, 8192), []
    x = np.ones((2, 1, 8192), np.float32)
    with rk.num_threads(1):
        y, _, tape = layer.forward(x)
        with pytest.raises(KeyboardInterrupt):
            signalled(lambda: forever(lambda: layer.backward(tape, y)), 0.4, sent=sent)
    sent[0].assert_in_time()


def test_ctrl_c_ends_the_reading_of_a_tape():
    layer, sent = make_layer("rnn_tanh", 1, 1), []

    def tape(n):
        return layer.forward(np.broadcast_to(np.float32(0), (n, 16, 1)))[2]

    few = 100_000
    kept = tape(few)
    begin = time.thread_time()
    assert kept.hiddens[0].shape == (few, 16, 1)
    kept = tape(math.ceil(HALF / (time.thread_time() - begin) * few))
    with pytest.raises(KeyboardInterrupt):
        signalled(lambda: kept.hiddens, sent=sent)
    sent[0].assert_in_time()
