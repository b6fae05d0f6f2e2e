"""Threads, instruction sets, forks and what a call leaves behind in the process."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import KINDS, make_layer, parts, random_problem, sets
from plan import plan_of

import rnnkern as rk
from rnnkern import _core

SECONDS = 60  # until something that takes far less is taken for hung


def python(code, *args, flags=(), **environment):
    """Run code in a fresh interpreter; RNNKERN_ISA is what is given here, PYTHONPATH adds to it."""
    inherited = {k: v for k, v in os.environ.items() if k != "RNNKERN_ISA"}
    if {"PYTHONPATH"} <= environment.keys() & inherited.keys():
        environment["PYTHONPATH"] += os.pathsep + inherited["PYTHONPATH"]
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *args],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def problem(kind="lstm", **options):
    """A layer and a problem large enough for its work to be shared by two threads."""
    layer = make_layer(kind, 32, 64, **options)
    assert plan_of(layer, 40, 16, 2).threads == 2
    return layer, random_problem(layer, 40, 16)


def results(layer, p, clip=None):
    y, state, tape = p.forward(layer)
    grads = p.backward(layer, tape, clip)
    arrays = [y, *parts(state), grads.x, *parts(grads.state), *grads.params.values()]
    return b"".join(a.tobytes() for a in arrays)


# ---- threads and instruction sets --------------------------------------------------------------


def test_num_threads():
    before = rk.get_num_threads()
    with rk.num_threads(3):
        assert rk.get_num_threads() == rk.info()["threads"] == 3
        with rk.num_threads(1):
            assert rk.get_num_threads() == 1
        assert rk.get_num_threads() == 3
        rk.set_num_threads(np.int64(5))
        assert rk.get_num_threads() == 5
    assert rk.get_num_threads() == before


def test_num_threads_after_an_exception():
    before = rk.get_num_threads()
    with pytest.raises(KeyError), rk.num_threads(before + 1):
        raise KeyError
    assert rk.get_num_threads() == before


@pytest.mark.parametrize("n", [1, 3])
def test_threads_are_openmps_until_set(n):
    code = """if True:
        import rnnkern as rk
        print(rk.get_num_threads())
        with rk.num_threads(7):
            pass
        print(rk.get_num_threads())
        rk.set_num_threads(2)
        print(rk.get_num_threads())
    """
    assert python(code, OMP_NUM_THREADS=str(n)).stdout.split() == [str(n), str(n), "2"]


def test_the_programs_own_openmp_is_left_alone():
    """OpenMP's own number of threads, which other libraries of the process share, stays."""
    code = r"""if True:
        import ctypes, re
        import numpy as np, rnnkern as rk
        with open("/proc/self/maps") as maps:
            openmp = ctypes.CDLL(re.search(r"/\S*lib[gi]?omp\S*", maps.read())[0])
        rk.set_num_threads(2)
        rk.LSTM(64, 64)(np.zeros((50, 16, 64), np.float32))
        print(openmp.omp_get_max_threads())
    """
    done = python(code, OMP_NUM_THREADS="3")
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize("name", sets())
def test_force_isa(name):
    before = rk.info()["isa"]
    with rk.force_isa(name):
        assert rk.info()["isa"] == name
        with rk.force_isa(sets()[0]):
            assert rk.info()["isa"] == sets()[0]
        assert rk.info()["isa"] == name
    assert rk.info()["isa"] == before
    with pytest.raises(KeyError), rk.force_isa(name):
        raise KeyError
    assert rk.info()["isa"] == before


def test_the_best_set_is_the_default():
    assert python("import rnnkern; print(rnnkern.info()['isa'])").stdout.strip() == sets()[-1]


@pytest.mark.parametrize("name", ["", *sets()])
def test_set_by_environment(name):
    done = python("import rnnkern; print(rnnkern.info()['isa'])", RNNKERN_ISA=name)
    assert done.stdout.strip() == (name or sets()[-1]), done.stderr


@pytest.mark.parametrize("name", ["mmx", "AVX2", " "])
def test_unknown_set_by_environment(name):
    done = python("import rnnkern", RNNKERN_ISA=name)
    expected = f"ImportError: RNNKERN_ISA: instruction set: expected one of {', '.join(sets())}"
    assert done.returncode == 1
    assert f"{expected}, got '{name}'" in done.stderr.splitlines()[-1]


def test_info():
    info = rk.info()
    assert set(info) == {
        *("version", "isa", "available", "threads", "caches", "last_call", "single_thread_for"),
        *("compiler", "flags"),
    }
    assert info["version"] == rk.__version__
    assert info["isa"] in info["available"] == sets()
    assert info["threads"] == rk.get_num_threads() >= 1
    assert min(info["caches"].values()) >= 1
    assert 0 <= info["single_thread_for"] <= 0.5
    assert info["compiler"].split()[0] in ("GNU", "Clang")
    assert "-ffp-contract=off" in info["flags"]
    assert "fast-math" not in info["flags"]
    assert json.loads(json.dumps(info)) == info


# ---- probes of the machine ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("rounds", [1, 2, 20])
def test_probe_fma(isa, rounds, threads):
    with rk.force_isa(isa):
        operations, total = _core.probe_fma(rounds, threads)
    elements = operations / (2 * rounds)
    assert elements > 0
    # Each goes from x to x / 2 + 1, from 0 on: 2 - 2 / 2^rounds, exact in float up to 24 rounds.
    assert total == elements * (2 - 2 / 2**rounds)


def test_probe_fma_in_parts():
    """Many rounds are done in parts, between which Ctrl-C is looked for: none is left out."""
    one, _ = _core.probe_fma(1, 1)
    assert _core.probe_fma(10_001, 1) == (10_001 * one, one)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("n", [0, 1, 63, 1000, 4099])
def test_probe_read(isa, n, threads):
    values = (np.arange(n) % 7 - 2).astype(np.float32)  # sums that are exact in float
    with rk.force_isa(isa):
        read, total = _core.probe_read(values, 3, threads)
    assert (read, total) == (3 * values.nbytes, 3 * values.sum())


@pytest.mark.parametrize("count", [-1, 0, 2**41])
def test_probe_counts(count):
    values = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match=rf"^rounds: expected from 1 to .*, got {count}$"):
        _core.probe_fma(count, 1)
    with pytest.raises(ValueError, match=rf"^passes: expected from 1 to .*, got {count}$"):
        _core.probe_read(values, count, 1)
    for probe in (lambda: _core.probe_fma(1, count), lambda: _core.probe_read(values, 1, count)):
        with pytest.raises(ValueError, match=rf"^threads: expected from 1 to 1024, got {count}$"):
            probe()


def test_probe_values():
    with pytest.raises(TypeError, match=r"^values: .* of dtype float32, got float64"):
        _core.probe_read(np.zeros(8), 1, 1)
    with pytest.raises(ValueError, match=r"^values: expected shape"):
        _core.probe_read(np.zeros((2, 4), np.float32), 1, 1)


# ---- Python's threads --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_in_many_threads(kind):
    layer, p = problem(kind)
    want = layer(p.x, p.state)[0].tobytes()
    with rk.num_threads(2), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: layer(p.x, p.state)[0].tobytes(), range(32)))
    assert set(found) == {want}


def test_layers_trained_in_threads():
    def train(kind):
        layer, p = problem(kind, num_layers=2)
        for _ in range(5):
            _, _, tape = p.forward(layer)
            grads = p.backward(layer, tape, rk.Clip(max_norm=1.0))
            for name, array in layer.params.items():
                array -= np.float32(0.1) * grads.params[name]
        return b"".join(array.tobytes() for array in layer.params.values())

    want = [train(kind) for kind in KINDS]
    with rk.num_threads(2), ThreadPoolExecutor(len(KINDS)) as pool:
        assert list(pool.map(train, KINDS)) == want


def test_backward_in_another_thread():
    layer, p = problem()
    _, _, tape = p.forward(layer)
    want = p.backward(layer, tape).x.tobytes()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: p.backward(layer, tape).x.tobytes(), range(4))
    assert set(found) == {want}


@pytest.mark.parametrize("call", ["call", "forward", "backward", "stream"])
def test_python_runs_during_a_long_call(call):
    layer = make_layer("lstm", 256, 256)
    x = np.zeros((400, 16, 256), np.float32)
    y, _, tape = layer.forward(x)
    use = {
        "call": lambda: layer(x),
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape, y),
        "stream": lambda: layer.stream(16).run(x),
    }[call]
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    with rk.num_threads(1):
        start = time.perf_counter()
        use()
        end = time.perf_counter()
    done.set()
    ticker.join()
    # The middle half: neither the checks before nor the making of results after.
    quarter = (end - start) / 4
    assert any(start + quarter < t < end - quarter for t in ticks), f"{end - start:.3f} s"


# ---- forks -------------------------------------------------------------------------------------

# From Python 3.12 on, a fork warns where there are threads, as OpenMP's are here.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(use):
    """Fork; the child's exit code: 0 if use() is true there, -SIGKILL if it hung."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if use() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 10
    ended, status = 0, 0
    while not ended:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)


@contextmanager
def used_threads():
    """A problem whose results two threads have computed, so that OpenMP's pool is there."""
    layer, p = problem()
    with rk.num_threads(2):
        yield layer, p, results(layer, p)


@needs_fork
@forks
def test_fork():
    with used_threads() as (layer, p, want):
        assert in_child(lambda: rk.get_num_threads() == 1 and results(layer, p) == want) == 0
        assert rk.get_num_threads() == 2
        assert results(layer, p) == want


@needs_fork
@forks
def test_fork_of_a_fork():
    with used_threads() as (layer, p, want):
        assert in_child(lambda: in_child(lambda: results(layer, p) == want) == 0) == 0


@needs_fork
@forks
def test_fork_inside_num_threads():
    """The child leaves the context too; the parent's number must not come back to it there."""
    with used_threads() as (layer, p, want):
        context = rk.num_threads(2)
        context.__enter__()

        def leave_and_use():
            context.__exit__(None, None, None)
            return results(layer, p) == want

        code = in_child(leave_and_use)
        context.__exit__(None, None, None)
        assert code == 0


@needs_fork
@forks
def test_a_forked_child_refuses_more_than_one_thread():
    with used_threads() as (layer, p, want):

        def ask_and_use():
            with pytest.raises(RuntimeError, match="n: expected 1 in a child of a fork"):
                rk.set_num_threads(2)
            with pytest.raises(RuntimeError, match="n: expected 1"), rk.num_threads(2):
                pass
            with rk.num_threads(1):
                return results(layer, p) == want

        assert in_child(ask_and_use) == 0


def compute(connection, layer_state, p):
    """In a child process: the results of a layer with these parameters."""
    layer = problem()[0]
    layer.params = layer_state
    connection.send_bytes(results(layer, p))


@forks
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method):
    context = multiprocessing.get_context(method)
    with used_threads() as (layer, p, want):
        here, there = context.Pipe()
        child = context.Process(target=compute, args=(there, layer.params, p), daemon=True)
        child.start()
        try:
            assert here.poll(SECONDS), "hung"
            assert here.recv_bytes() == want
        finally:
            child.kill()
            child.join()


# ---- what a call leaves behind -----------------------------------------------------------------


def float_environment():
    """The control bits of the floating-point environment."""
    memory = (ctypes.c_uint32 * 64)()
    assert ctypes.CDLL(None).fegetenv(memory) == 0
    if platform.machine() == "aarch64":
        return memory[0]  # FPCR
    return memory[0] & 0xFFFF, memory[7] & 0xFFC0  # x87 control, MXCSR without its flags


MACHINE = platform.machine()
# The rounding modes of fenv.h besides the usual one, to nearest: downward, upward, to zero.
ROUNDINGS = {
    "x86_64": (0x400, 0x800, 0xC00),
    "aarch64": (0x800000, 0x400000, 0xC00000),
}.get(MACHINE, ())
# Where fenv_t holds what is done with subnormals, as 32-bit words, and the bits that flush them:
# results and operands in MXCSR, both in FPCR.
FLUSHING = {"x86_64": (7, 0x8040), "aarch64": (0, 0x1000000)}.get(MACHINE)


@contextmanager
def rounding(mode):
    libm = ctypes.CDLL(None)
    before = libm.fegetround()
    assert libm.fesetround(mode) == 0
    try:
        yield
    finally:
        assert libm.fesetround(before) == 0


@contextmanager
def flushing():
    """The caller's own choice to flush subnormals, results and operands."""
    libm = ctypes.CDLL(None)
    before, changed = (ctypes.c_uint32 * 64)(), (ctypes.c_uint32 * 64)()
    assert libm.fegetenv(before) == libm.fegetenv(changed) == 0
    word, bits = FLUSHING
    changed[word] |= bits
    assert libm.fesetenv(changed) == 0
    try:
        yield
    finally:
        assert libm.fesetenv(before) == 0


def use_everything(layer, p):
    found = [results(layer, p, rk.Clip(1.0, 1.0, 1.0, 1.0)), layer(p.x)[0].tobytes()]
    stream = layer.stream(16)
    found += [stream.run(p.x).tobytes(), stream.step(p.x[0]).tobytes()]
    ids = np.zeros(p.x.shape[:2], int)
    loss, dx = rk.cross_entropy(p.x, ids)
    embedding = rk.Embedding(1, p.x.shape[2])
    sums = embedding.backward(embedding.forward(ids)[1], p.x).params["weight"]
    found += [loss, dx.tobytes(), sums.tobytes()]
    with pytest.raises(ValueError, match="x: expected shape"):
        layer(p.x[..., 1:])
    with pytest.raises(TypeError, match="dtype float32"):
        stream.step(p.x[0].astype(np.float64))
    return found


needs_fenv = pytest.mark.skipif(
    not ROUNDINGS or not hasattr(ctypes.CDLL(None), "fegetenv"),
    reason=f"floating-point environment of {MACHINE} is not known here",
)


@needs_fenv
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", sets())
def test_float_environment(isa, threads):
    before = float_environment()
    with rk.force_isa(isa), rk.num_threads(threads):
        use_everything(*problem())
    assert float_environment() == before
    smallest = np.full(9, np.finfo(np.float32).smallest_normal)
    assert (smallest / np.float32(2) != 0).all()  # subnormals are there again


@needs_fenv
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "environment",
    [*(lambda mode=mode: rounding(mode) for mode in ROUNDINGS), flushing],
    ids=[*map(hex, ROUNDINGS), "flushing"],
)
def test_the_callers_environment(environment, threads):
    """It changes no bit, and the caller gets it back."""
    usual = float_environment()
    layer, p = problem(num_layers=2)
    p = p.but(x=p.x * np.float32(1e-37))  # so that there are subnormals to flush
    with rk.num_threads(threads):
        want = use_everything(layer, p)
        with environment():
            own = float_environment()
            found = use_everything(layer, p)
            assert float_environment() == own != usual
    assert float_environment() == usual
    assert found == want


def test_no_floating_point_errors_reach_numpy():
    layer, p = problem("rnn_relu")  # which nothing bounds
    wild = p.but(x=p.x * np.float32(1e37), dy=p.dy * np.float32(1e37))
    with np.errstate(all="raise"):
        _, _, tape = wild.forward(layer)
        assert not wild.backward(layer, tape).finite
        assert np.float32(1) + np.float32(1) == 2


def test_memory_comes_back():
    """Forwards, backwards, streams and refused calls, whose memory would soon be seen to stay."""
    layer = make_layer("lstm", 64, 64)
    p = random_problem(layer, 100, 16)

    def resident():
        with open("/proc/self/statm") as statm:  # noqa: PTH123
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def use():
        _, _, tape = p.forward(layer)
        p.backward(layer, tape)
        stream = layer.stream(16)
        stream.run(p.x)
        for wrong in (p.x[..., 1:], p.x.astype(np.float64)):
            with pytest.raises((TypeError, ValueError)):
                layer.forward(wrong, p.state)
            with pytest.raises((TypeError, ValueError)):
                layer.backward(tape, wrong)

    for _ in range(5):
        use()
    before = resident()
    for _ in range(50):
        use()
    # The smallest arrays of a call are states (1, 16, 64): not one a round may stay.
    assert resident() - before < 50 * (16 * 64 * 4)


# ---- import ------------------------------------------------------------------------------------


def test_import_changes_nothing():
    code = """if True:
        import ctypes, os, sys, warnings
        import numpy as np
        libm = ctypes.CDLL(None)
        def state():
            # Modes and masks, not the flags that any arithmetic raises.
            modes = [libm.fegetround(), getattr(libm, "fegetexcept", int)()]
            threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
            generator = np.random.get_state()[1].tobytes()
            return list(warnings.filters), dict(os.environ), np.geterr(), generator, threads, modes
        before = state()
        import rnnkern
        assert state() == before
    """
    done = python(code, flags=["-W", "error"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_is_quick():
    """A bound on blunders, not a benchmark: time on a core, without NumPy's own import."""
    code = """if True:
        import time, numpy
        start = time.process_time()
        import rnnkern
        print(time.process_time() - start)
    """
    assert float(python(code).stdout) < 0.2
