"""Hosts that lack memory, trap floating-point errors, run many threads, fork or end midway.

And callers that change arrays during a call, use objects that no constructor made, or copy objects.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attacks import COPIES, HEADER, IGNORE_WARNING, NAMED, read_only_attributes, set_header
from helpers import (
    DTYPES,
    KINDS,
    both_ways,
    fused_sets,
    joined,
    make_layer,
    parts,
    random_problem,
    sets,
)
from numpy.lib.stride_tricks import as_strided
from test_runtime import in_child, needs_fork, problem, python, results

import rnnkern as rk
from rnnkern import _core
from rnnkern.layers import LAYERS

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="limits and traps are set as on Linux with glibc"
)
OPTIMIZERS = {
    "sgd": lambda params: rk.SGD(params, 0.01, 0.9),
    "rmsprop": lambda params: rk.RMSprop(params, momentum=0.5),
    "adam": rk.Adam,
    "adamw": rk.AdamW,
}
# Kinds whose calls take memory of all shapes: of c, of gates alone, of a projection, of no product.
OF_EACH_SHAPE = ("lstm", "gru", "gru_reset_before", "lstm_projected", "min_gru", "lstm_peephole")
CLIPS = rk.Clip(step_value=0.5, step_norm=1.0, value=0.1, max_norm=0.1)


# Warnings are errors, but that of fork, which Python gives from 3.12 on where there are threads.
STRICT = ("-W", "error", "-W", "ignore:This process:DeprecationWarning", "-W", IGNORE_WARNING)


def child(use, *args, **environment):
    """Call one of this module's functions in a fresh interpreter, which must end well."""
    code = f"import test_hostile; test_hostile.{use.__name__}(*{args!r})"
    flags = (*STRICT, "-X", "faulthandler")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = python(code, flags=flags, PYTHONPATH=path, **environment)
    assert done.returncode == 0, f"{done.returncode}, {done.stdout[-200:]}: {done.stderr[-2000:]}"
    assert done.stderr == ""
    return done.stdout


def frozen(value):
    """All that a result or a state holds, as bytes and numbers."""
    if isinstance(value, np.ndarray):
        return [value.shape, value.tobytes()]
    if isinstance(value, dict):
        return [list(value), *map(frozen, value.values())]
    if isinstance(value, (tuple, list)):
        return [frozen(one) for one in value]
    if isinstance(value, (rk.Gradients, rk.ModuleGradients)):
        parts = dict(value.params), value.x, getattr(value, "state", None)
        return frozen([*parts, value.norm, value.scale, value.finite])
    return repr(value)  # of a number; nan is nan


# ---- no memory: every allocation in turn -------------------------------------------------------

# Fails the n-th allocation of at least so many bytes after fail_allocation(n, bytes), whoever asks:
# the core, NumPy or Python. The result: how many were left to go before.
FAILING_MALLOC = r"""
#include <errno.h>
#include <stddef.h>
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
static _Atomic long left;
static size_t least;
long fail_allocation(long n, size_t bytes) {
  const long before = left;
  least = bytes, left = n;
  return before;
}
static int fails(size_t n) {
  if (left <= 0 || n < least || --left != 0) return 0;
  errno = ENOMEM;
  return 1;
}
void *malloc(size_t n) { return fails(n) ? 0 : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return fails(n * m) ? 0 : __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return fails(n) ? 0 : __libc_realloc(p, n); }
void *memalign(size_t to, size_t n) { return fails(n) ? 0 : __libc_memalign(to, n); }
void *aligned_alloc(size_t to, size_t n) { return fails(n) ? 0 : __libc_memalign(to, n); }
int posix_memalign(void **p, size_t to, size_t n) {
  if (fails(n)) return ENOMEM;
  *p = __libc_memalign(to, n);
  return *p ? 0 : ENOMEM;
}
"""


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a malloc that fails")
    folder = tmp_path_factory.mktemp("malloc")
    source, library = folder / "malloc.c", folder / "malloc.so"
    source.write_text(FAILING_MALLOC)
    command = [compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return str(library)


# Each makes a call to try and says what it may change, if it is done, and must not, if it is not.


def small(kind, **options):
    """A layer of all options, and a problem whose work two threads share."""
    layer = make_layer(kind, 32, 64, num_layers=3, bidirectional=True, dropout=0.3, **options)
    return layer, random_problem(layer, 20, 16, lengths="random")


def one_way(kind):
    layer = make_layer(kind, 32, 64, num_layers=3)
    return layer, random_problem(layer, 20, 16)


def held(layer):
    return layer.params, layer.dropout_step


def upside_down(state):
    """The same numbers, laid out so that a call must copy them."""
    return joined([part[..., ::-1].copy()[..., ::-1] for part in parts(state)])


def try_call(kind):
    layer, p = small(kind)
    x = p.x[..., ::-1]
    return lambda: layer(x, upside_down(p.state), p.lengths), lambda: held(layer)


def try_forward(kind):
    layer, p = small(kind)
    return lambda: p.forward(layer)[:2], lambda: held(layer)


def try_backward(kind):
    layer, p = small(kind)
    _, _, tape = p.forward(layer)
    strided = p.but(dy=p.dy[..., ::-1])
    return lambda: strided.backward(layer, tape, CLIPS), lambda: held(layer)


def try_stream(kind):
    layer, _ = one_way(kind)
    return lambda: layer.stream(16).state, lambda: held(layer)


def try_freeze(kind):
    layer, p = small(kind)
    frozen = layer.freeze()
    return (
        lambda: [layer.freeze().is_stale(), frozen(p.x, p.state, p.lengths, outputs="last")],
        lambda: [held(layer), frozen(p.x, p.state, p.lengths, hiddens=True)],
    )


def try_run(kind):
    """After a step, so that its room is there and must grow; and a step is still one afterwards."""
    layer, p = one_way(kind)
    stream = layer.stream(16)
    stream.state = p.state

    def changed():
        state = stream.state
        y = stream.step(p.x[0])
        stream.state = state
        return state, y

    changed()
    return lambda: stream.run(p.x), changed


def try_step(kind):
    layer, p = one_way(kind)
    stream = layer.stream(16)
    stream.state = p.state
    return lambda: stream.step(p.x[0]), lambda: stream.state


def try_state(kind):
    layer, p = one_way(kind)
    stream = layer.stream(16)
    state = upside_down(p.state)
    return lambda: setattr(stream, "state", state), lambda: stream.state


def try_layer(kind):
    return lambda: small(kind)[0].params, lambda: None


def gradients():
    layer, p = small("gru")
    _, _, tape = p.forward(layer)
    return layer.params, p.backward(layer, tape)


def try_optimizer(kind):
    params, _ = gradients()
    more = {"w": np.ones(1000)}
    return lambda: OPTIMIZERS[kind]([params, more]).state_dict(), lambda: params


def try_optimizer_step(kind):
    params, grads = gradients()
    opt = OPTIMIZERS[kind](params)
    return lambda: opt.step(grads, max_norm=1.0), lambda: (params, opt.state_dict())


def try_optimizer_step_of_arrays(kind):
    params, grads = gradients()
    opt = OPTIMIZERS[kind](params)
    strided = {name: np.repeat(g, 2, axis=-1)[..., ::2] for name, g in grads.params.items()}
    return lambda: opt.step(strided, max_norm=1.0), lambda: (params, opt.state_dict())


def try_optimizer_state(kind):
    params, grads = gradients()
    opt, other = OPTIMIZERS[kind](params), OPTIMIZERS[kind](params)
    other.step(grads)
    state = {name: upside_down(a) if a.ndim else a for name, a in other.state_dict().items()}
    return lambda: opt.load_state_dict(state), lambda: opt.state_dict()


def try_loss(dtype):
    logits, targets = np.ones((40, 50), dtype)[:, ::-1], np.arange(40)[::-1]
    mask = np.arange(40) % 3 > 0
    return lambda: rk.cross_entropy(logits, targets, mask=mask, ignore_index=5), lambda: logits


def try_embedding(dtype):
    embedding = rk.Embedding(50, 30, dtype=dtype, seed=0)
    ids, dy = np.arange(40)[::-1], np.ones((40, 30), dtype)[:, ::-1]
    use = lambda: embedding.backward(embedding.forward(ids)[1], dy)  # noqa: E731
    return lambda: dict(use().params), lambda: embedding.params


OF_LAYERS = (
    try_call,
    try_forward,
    try_backward,
    try_stream,
    try_freeze,
    try_run,
    try_step,
    try_state,
    try_layer,
)
OF_OPTIMIZERS = (
    try_optimizer,
    try_optimizer_step,
    try_optimizer_step_of_arrays,
    try_optimizer_state,
)
OF_MODULES = (try_loss, try_embedding)
# The least size that fails, where smaller ones are others' trouble: pybind11 ends the process if it
# has no memory for its few bytes about a new object, NumPy's random numbers raise SystemError.
LEAST = {try_forward: 32, try_stream: 32, try_freeze: 32, try_layer: 4096}


def fail_each_allocation(name, kinds, least):
    fail_allocation = ctypes.CDLL(None).fail_allocation
    fail_allocation.argtypes = ctypes.c_long, ctypes.c_size_t
    fail_allocation.restype = ctypes.c_long
    for kind, threads in itertools.product(kinds, (1, 2)):
        with rk.num_threads(threads):
            print(fail_each(globals()[name], kind, fail_allocation, least))


def fail_each(scenario, kind, fail_allocation, least):
    """How many allocations a call has made, each of which has failed once."""
    use, changed = scenario(kind)
    want, after = frozen(use()), frozen(changed())  # OpenMP's threads start here
    use, changed = scenario(kind)
    before = frozen(changed())
    for n in itertools.count(1):
        fail_allocation(n, least)
        try:
            got = use()
        except MemoryError:
            fail_allocation(0, 0)
            assert frozen(changed()) == before, f"{kind}: {n} failed, and something has changed"
            continue
        left = fail_allocation(0, 0)
        assert frozen(got) == want, f"{kind}: other bits, {n}"
        assert frozen(changed()) == after, f"{kind}: another state, {n}"
        if left:  # it was through before its n-th allocation
            return n - 1
        use, changed = scenario(kind)  # it did without what it had asked for


@needs_glibc
@pytest.mark.parametrize(
    "scenario", OF_LAYERS + OF_OPTIMIZERS + OF_MODULES, ids=lambda scenario: scenario.__name__[4:]
)
def test_every_allocation_may_fail(failing_malloc, scenario):
    kinds = OF_EACH_SHAPE if scenario in OF_LAYERS else tuple(OPTIMIZERS)
    if scenario in OF_MODULES:
        kinds = ("float32", "float64")
    args = (scenario.__name__, kinds, LEAST.get(scenario, 0))
    counts = child(fail_each_allocation, *args, LD_PRELOAD=failing_malloc).split()
    assert all(int(count) > 0 for count in counts), f"nothing has failed: {counts}"


# ---- no allocation: a stream in use ------------------------------------------------------------


def count_allocations_of_streams():
    """How many callbacks of 64 samples make, Python's own objects among them; the first one, too.

    The host makes all that it can beforehand, as an audio callback would: arrays, views, iterators.
    """
    counter = ctypes.CDLL(None).fail_allocation
    counter.argtypes = ctypes.c_long, ctypes.c_size_t
    counter.restype = ctypes.c_long
    many = 10**9

    def count(use):
        counter(many, 0)
        use()
        return many - counter(0, 0)

    def callbacks(layer):
        x = np.ones((64, 1, layer.input_size), layer.dtype)
        y = np.empty((64, 1, layer.output_size), layer.dtype)
        stream, stepped = layer.stream(), layer.stream()
        views = iter(3 * list(zip(x, y, strict=True)))

        def run():
            stream.run(x, out=y)

        def step():
            for x_t, y_t in views:
                stepped.step(x_t, out=y_t)

        counts = [*(count(run) for _ in range(3)), count(step)]
        assert parts(stream.state)[0].tobytes() == parts(stepped.state)[0].tobytes()
        return counts

    rk.set_num_threads(1)
    callbacks(make_layer("gru", 1, 16))  # what is made once in a process is not a stream's
    counts = [count(lambda: None) for _ in range(3)]  # of the counting itself
    for kind, dtype in itertools.product(KINDS, DTYPES):
        for H, L in ((16, 1), (64, 1), (64, 3), (256, 2)):
            counts += callbacks(make_layer(kind, 1, H, num_layers=L, dtype=dtype))
    print(*counts)


@needs_glibc
def test_a_stream_in_use_allocates_nothing(failing_malloc):
    where = {"LD_PRELOAD": failing_malloc, "PYTHONMALLOC": "malloc"}
    base, *counts = set(child(count_allocations_of_streams, **where).split())
    assert counts == [], "a callback has allocated"
    assert 0 < int(base) < 10  # what counts has seen its own numbers


# ---- no memory: a limit on the address space ---------------------------------------------------


def address_space():
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


class Limit:
    """At most so many bytes more than the process has now, inside a ``with`` block."""

    def __init__(self, more):
        self.more = more

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + self.more, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self.before)


def large(what, kind):
    """A call whose arrays are megabytes, each of which malloc maps by itself."""
    layer = make_layer(kind, 128, 128, num_layers=2)
    p = random_problem(layer, 100, 40)
    if what == "call":
        return lambda: layer(p.x, p.state), lambda: held(layer)
    if what == "forward":
        return lambda: p.forward(layer)[:2], lambda: held(layer)
    if what == "backward":
        _, _, tape = p.forward(layer)
        return lambda: p.backward(layer, tape, CLIPS), lambda: held(layer)
    if what == "stream":
        return lambda: layer.stream(4000).state, lambda: held(layer)
    stream = layer.stream(40)
    stream.state = p.state
    return lambda: stream.run(p.x), lambda: stream.state


def large_optimizer(what, kind):
    rng = np.random.default_rng(0)
    params, strided = ({"w": rng.normal(size=(2**18, n))} for n in (1, 2))
    grads = {"w": strided["w"][:, :1]}
    if what == "optimizer":
        return lambda: OPTIMIZERS[kind](params).state_dict(), lambda: params
    opt = OPTIMIZERS[kind](params)
    return lambda: opt.step(grads, max_norm=1.0), lambda: (params, opt.state_dict())


def use_under_limits(what, kinds):
    m_mmap_threshold = -3  # of malloc.h: larger blocks than this are mapped, now and always
    assert ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)
    make = large_optimizer if what.startswith("optimizer") else large
    for kind in kinds:
        with rk.num_threads(2):
            use, changed = make(what, kind)
            want, after = frozen(use()), frozen(changed())
            use, changed = make(what, kind)
            before, refused = frozen(changed()), 0
            for more in itertools.count(0, 2**18):
                rk.release_memory()  # what waits from the call before would do
                try:
                    with Limit(more):
                        got = use()
                    break
                except MemoryError:
                    refused += 1
                    assert frozen(changed()) == before, f"{kind}, {more}: something has changed"
            assert frozen(got) == want, f"{kind}: other bits"
            assert frozen(changed()) == after, f"{kind}: another state"
            assert refused > 0, f"{kind}: there was memory enough"


@needs_glibc
@pytest.mark.parametrize(
    "what", ["call", "forward", "backward", "stream", "run", "optimizer", "optimizer step"]
)
def test_limits_of_memory(what):
    kinds = tuple(OPTIMIZERS) if what.startswith("optimizer") else OF_EACH_SHAPE
    child(use_under_limits, what, kinds)


def use_without_threads():
    """GNU's OpenMP ends the process where it can't start a thread; a stack takes 8 MiB."""
    layer, p = problem()
    with rk.num_threads(1):
        want = results(layer, p)
    layer.dropout_step = 0
    with rk.num_threads(4), Limit(2**22):
        got = results(layer, p)
    assert got == want
    assert results(layer, p) == want


@needs_glibc
def test_no_memory_for_threads():
    child(use_without_threads, OMP_NUM_THREADS="4", OPENBLAS_NUM_THREADS="1")


# ---- no memory: sizes whose product none can hold ----------------------------------------------

TARGETS = [2**31, 2**32, 2**46, 2**62]
LETTERS = "TBIHL"


def claim(shape, dtype=np.float32, value=0):
    """An array that says it has this shape; what it stands on is one element."""
    return as_strided(np.full(1, value, dtype), shape, (0,) * len(shape))


def impossible_sizes():
    """Each letter alone and in pairs, the others 1 or 0."""
    for target, other in itertools.product(TARGETS, (1, 0)):
        rest = dict.fromkeys(LETTERS, other)
        for letter, more in itertools.product(LETTERS, (-1, 0, 1)):
            yield {**rest, letter: target + more}
        for a, b in itertools.permutations(LETTERS, 2):
            yield {**rest, a: target // 3, b: 3}
            if "L" not in (a, b):  # so many layers would take their time
                yield {**rest, a: round(target**0.5), b: round(target**0.5)}


def calls_of(kind, T, B, I, H, L):
    """Every call of these sizes that there is memory to prepare."""
    layer = make_layer(kind, I or 1, H or 1, num_layers=L or 1)
    I, H, L = layer.input_size, layer.hidden_size, layer.num_layers
    P = layer.output_size
    x, dy, state = claim((T, B, I)), claim((T, B, P)), claim((L, B, P))
    state = (state, claim((L, B, H))) if isinstance(layer, rk.LSTM) else state
    lengths = claim((B,), np.int64, T // 2)
    tape = layer.forward(claim((2, 2, I)))[2]
    yield lambda: layer.forward(x)
    yield lambda: layer.forward(x, state, lengths)
    if T * B > 2**27:  # what has room for less would be done one day
        yield lambda: layer(x)
        yield lambda: layer(x, state, lengths)
    if B and T > 2**27:
        yield lambda: layer(x[:, 0])
    yield lambda: layer.backward(tape, dy, state)
    yield lambda: layer.stream(B)
    yield lambda: layer.stream(2).run(x, dy)
    yield lambda: layer.stream(max(T, 1)).step(x[:, 0] if B else x, dy)
    yield lambda: setattr(layer.stream(), "state", state)


def use_impossible_sizes(kind):
    refused = 0
    with Limit(2**28), rk.num_threads(2):
        for sizes in impossible_sizes():
            try:
                calls = list(calls_of(kind, **sizes))
            except (MemoryError, ValueError):
                refused += 1
                continue
            for use in calls:
                try:
                    use()
                except (MemoryError, ValueError):
                    refused += 1
    print(refused)


@needs_glibc
@pytest.mark.parametrize("kind", OF_EACH_SHAPE)
def test_impossible_sizes(kind):
    assert int(child(use_impossible_sizes, kind)) > 500


# ---- floating-point traps ----------------------------------------------------------------------

# FE_INVALID, FE_DIVBYZERO, FE_OVERFLOW and FE_UNDERFLOW of x86-64's fenv.h. FE_INEXACT is for
# layers and streams alone: the optimizers do a sum or two in Python, where it would trap.
TRAPS = 0x01 | 0x04 | 0x08 | 0x10
INEXACT = 0x20


def wild(p, factor):
    factor = p.x.dtype.type(factor)
    return p.but(x=p.x * factor, dy=p.dy * factor)


def use_everything(kind, dtype, traps):
    """All calls, on numbers at both ends of the range, too; NumPy is not asked to compute."""
    layer = make_layer(kind, 32, 64, num_layers=2, dropout=0.3, dtype=dtype, **both_ways(kind))
    p = random_problem(layer, 10, 16, lengths="random")
    limits = np.finfo(dtype)
    problems = [p, wild(p, limits.max / 100), wild(p, limits.tiny), wild(p, 0)]
    one_way = make_layer(kind, 32, 64, dtype=dtype)
    x = random_problem(one_way, 20, 16).x
    optimizers = [make(layer.params) for make in OPTIMIZERS.values()]
    targets = np.zeros(p.x.shape[:2], int)

    def use():
        found = []
        for one in problems:
            y, state, tape = one.forward(layer)
            grads = [one.backward(layer, tape, clip) for clip in (None, CLIPS)]
            found += [y, state, *grads, layer(one.x, one.state, one.lengths)]
            found += rk.cross_entropy(one.x, targets)
            if grads[0].finite and not traps & INEXACT:  # CPython's hypot traps on nan
                found += [opt.step(grads[0], max_norm=1.0) for opt in optimizers]
        stream = one_way.stream(16)
        found += [stream.run(x), stream.step(x[0]), stream.state]
        return found + [layer.params] + [opt.state_dict() for opt in optimizers]

    return use


def use_with_traps(isa):
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()

    def control():
        assert libm.fegetenv(environment) == 0
        return environment[0] & 0xFFFF, environment[7] & 0xFFC0  # x87's, SSE's without its flags

    cases = [(kind, dtype, TRAPS | INEXACT) for kind in KINDS for dtype in DTYPES]
    # The optimizers know parameters alone: those of two kinds, of few and of many, serve them.
    cases += [(kind, dtype, TRAPS) for kind in ("min_gru", "lstm_haste") for dtype in DTYPES]
    for i, (kind, dtype, traps) in enumerate(cases):
        with rk.force_isa(isa), rk.num_threads(1 + (i // len(DTYPES) + i) % 2):
            want = frozen(use_everything(kind, dtype, traps)())
            use = use_everything(kind, dtype, traps)
            libm.feclearexcept(traps)
            libm.feenableexcept(traps)
            before = control()
            got = use()
            after, raised = control(), libm.fetestexcept(traps)
            libm.fedisableexcept(traps)
        assert after == before, f"{kind}: other masks"
        assert raised == 0, f"{kind}: flags {raised:#x}"
        assert frozen(got) == want, f"{kind}: other bits"


@needs_glibc
@pytest.mark.skipif(platform.machine() != "x86_64", reason="traps as x86-64 has them")
@pytest.mark.parametrize("isa", sets())
def test_traps_of_the_host(isa):
    child(use_with_traps, isa)


@pytest.mark.parametrize(("dtype", "value"), [("f4", 1e-45), ("f4", 1e39), ("f8", 5e-324)])
@pytest.mark.parametrize("name", ["cell_clip", "proj_clip"])
def test_a_clip_of_states_that_is_no_normal_number_of_the_dtype_is_refused(name, dtype, value):
    """The kernels would flush it to zero, or take it for none."""
    options = {"proj_size": 2, name: value, "dtype": dtype}
    with pytest.raises(ValueError, match=f"^{name}: expected a normal number of float.*, got "):
        rk.LSTM(3, 4, **options)


# ---- many threads ------------------------------------------------------------------------------


def in_many_threads(uses, isas):
    """Call each use() in a thread of its own, while one more changes the settings all the time."""
    done = threading.Event()
    changes = 0

    def change_settings():
        nonlocal changes
        rng = np.random.default_rng(0)
        while not done.is_set():
            with rk.force_isa(rng.choice(isas).item()), rk.num_threads(int(rng.integers(1, 9))):
                time.sleep(1e-4)
            changes += 1

    with rk.num_threads(2), ThreadPoolExecutor(len(uses) + 1) as pool:
        changing = pool.submit(change_settings)
        try:
            found = [pool.submit(use) for use in uses]
            found = [one.result() for one in found]
        finally:
            done.set()
        changing.result()
    assert changes > 10
    return found


def train(kind, dtype, optimizer):
    layer = make_layer(kind, 32, 64, num_layers=2, dropout=0.3, dtype=dtype)
    p = random_problem(layer, 20, 16, lengths="random")
    opt = OPTIMIZERS[optimizer](layer.params)
    for _ in range(10):
        _, _, tape = p.forward(layer)
        opt.step(p.backward(layer, tape, CLIPS))
    return frozen([layer.params, opt.state_dict()])


def train_in_many_threads():
    kinds = zip(itertools.cycle(KINDS), itertools.cycle(DTYPES), list(OPTIMIZERS) * 2, strict=False)
    uses = [lambda of=of: train(*of) for of in kinds]
    with rk.num_threads(1):
        want = [use() for use in uses]
    assert in_many_threads(uses, fused_sets()) == want


def infer_in_many_threads():
    layer = make_layer("lstm", 32, 64, num_layers=2)
    p = random_problem(layer, 20, 16)

    def infer():
        return {layer(p.x)[0].tobytes() for _ in range(30)}

    def stream():
        found = set()
        for _ in range(10):
            stream = layer.stream(16)
            found.add(b"".join(stream.run(p.x[t : t + 5]).tobytes() for t in range(0, 20, 5)))
        return found

    def freeze():
        return {frozen(p.x)[0].tobytes() for frozen in [layer.freeze()] for _ in range(30)}

    shared = layer.freeze()

    def use_shared():
        return {shared(p.x)[0].tobytes() for _ in range(30)}

    want = set()
    for isa in sets():
        with rk.force_isa(isa):
            want.add(layer(p.x)[0].tobytes())
    uses = [infer, infer, infer, stream, stream, freeze, freeze, use_shared, use_shared]
    for found in in_many_threads(uses, sets()):
        assert found <= want


@pytest.mark.parametrize("use", [train_in_many_threads, infer_in_many_threads])
def test_many_threads_while_settings_change(use):
    child(use)


def one_stream_in_many_threads():
    """One goes on with it, the others are told so; no step is lost or done twice."""
    layer = make_layer("lstm", 64, 128)
    x = random_problem(layer, 40, 16).x
    alone, shared = layer.stream(16), layer.stream(16)
    refused = []

    def run(_):
        while True:
            try:
                return shared.run(x).tobytes()
            except RuntimeError as error:
                refused.append(str(error))

    with rk.num_threads(2), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(20)))
    assert sorted(found) == sorted(alone.run(x).tobytes() for _ in range(20))
    assert set(refused) == {"stream: in use by another thread"}


def test_one_stream_in_many_threads():
    child(one_stream_in_many_threads)


def start_many_threads():
    layer, p = problem()
    want, count = layer(p.x)[0].tobytes(), []

    def threads_now():
        return len(list(Path("/proc/self/task").iterdir()))

    def use():
        assert layer(p.x)[0].tobytes() == want
        count.append(threads_now())

    with rk.num_threads(3):
        for _ in range(200):
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            # A busy machine leaves the helpers of a thread that has ended time to end, too.
            deadline = time.monotonic() + 20
            while threads_now() >= count[0] + 5 and time.monotonic() < deadline:
                time.sleep(0.01)
    # The main thread, OpenBLAS's, one thread and its two helpers, and some that are about to end.
    assert len(count) == 200
    assert max(count) < count[0] + 8, max(count)


@needs_glibc
def test_threads_of_threads_that_ended():
    """A thread's OpenMP threads end with it."""
    child(start_many_threads)


# ---- the interpreter's end ---------------------------------------------------------------------


def use_at_exit(threads):
    import atexit

    rk.set_num_threads(threads)
    layer, p = problem()
    want = results(layer, p)

    def use():
        layer.dropout_step = 0
        print(results(layer, p) == want)

    atexit.register(use)


@pytest.mark.parametrize("threads", [1, 2])
def test_use_at_exit(threads):
    assert child(use_at_exit, threads) == "True\n"


def end_during_calls(threads):
    """Threads that nobody waits for, each in a call all the time."""
    rk.set_num_threads(threads)
    layer = make_layer("lstm", 64, 128)
    p = random_problem(layer, 200, 16)
    stream, opt = layer.stream(16), rk.Adam({"w": np.ones(10**6)})
    _, _, tape = p.forward(layer)
    grads = {"w": np.ones(10**6)}
    uses = (
        lambda: layer(p.x),
        lambda: p.backward(layer, tape),
        lambda: stream.run(p.x),
        lambda: opt.step(grads),
    )
    started = threading.Barrier(len(uses) + 1)

    def use_for_ever(use):
        started.wait()
        while True:
            use()

    for use in uses:
        threading.Thread(target=use_for_ever, args=(use,), daemon=True).start()
    started.wait()
    time.sleep(0.1)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_end_during_calls(threads):
    child(end_during_calls, threads)


# ---- forks in the middle -----------------------------------------------------------------------


def fork_during_calls():
    layer, p = problem()
    with rk.num_threads(2):
        want = results(layer, p)
        done = threading.Event()

        def use_until_done():
            while not done.is_set():
                results(layer, p)

        thread = threading.Thread(target=use_until_done)
        thread.start()
        codes = [in_child(lambda: results(layer, p) == want) for _ in range(20)]
        done.set()
        thread.join()
        assert codes == [0] * 20
        assert results(layer, p) == want


def fork_during_a_stream():
    """The child finds the stream as another thread's that does not exist there, or free."""
    layer = make_layer("lstm", 64, 128)
    x = random_problem(layer, 400, 16).x
    stream = layer.stream(16)
    done = threading.Event()

    def run_until_done():
        while not done.is_set():
            stream.run(x)

    def look():
        said = "stream: in use by another thread"
        try:
            stream.step(x[0])
        except RuntimeError as error:
            said = str(error)
        want = layer(x[:1])[0][0].tobytes()
        works = layer.stream(16).step(x[0]).tobytes() == want  # a new one
        return works and said == "stream: in use by another thread"

    thread = threading.Thread(target=run_until_done)
    thread.start()
    codes = [in_child(look) for _ in range(10)]
    done.set()
    thread.join()
    assert codes == [0] * 10


@needs_fork
@pytest.mark.parametrize("use", [fork_during_calls, fork_during_a_stream])
def test_forks_during_calls(use):
    child(use)


# ---- arrays that change during a call ----------------------------------------------------------

FAR = 2**44  # elements before an array, where no memory is
FILL = {"f": np.nan, "i": -FAR, "b": True}
EDGE = 64  # elements on each side of an array that a call writes


def framed(shape, dtype):
    """Memory of sevens, and an array inside it, whose edges no call may write."""
    memory = np.full(2 * EDGE + np.prod(shape), 7, dtype)
    return memory, memory[EDGE:-EDGE].reshape(shape)


def in_views(arrays):
    """Views of arrays by name: NumPy lets a view's strides change, and change back."""
    return {name: a[...] for name, a in arrays.items() if isinstance(a, np.ndarray)}


def gru_in_views():
    layer = make_layer("gru", 16, 32, num_layers=2)
    p = random_problem(layer, 40, 8, lengths="random", resets=0.1)
    layer.params = in_views(layer.params)
    return layer, p.but(**in_views(vars(p)))


# Each makes arrays to change, and a call that validates each of them once and returns a frozen
# result.


def change_in_a_call():
    layer, p = gru_in_views()
    arrays = {"x": p.x, "state": p.state, "lengths": p.lengths, "resets": p.resets}
    arrays["weight"] = layer.params["weight_hh_l0"]
    return arrays, lambda: frozen(layer(p.x, p.state, p.lengths, resets=p.resets))


def change_masks_in_a_call():
    layer, p = gru_in_views()
    p = p.but(mask=(~p.resets)[...], lengths=None)
    arrays = {"x": p.x, "mask": p.mask, "resets": p.resets}
    return arrays, lambda: frozen(layer(p.x, mask=p.mask, resets=p.resets))


def change_in_training():
    """In segments, which take steps of x and of dy one after another."""
    layer, p = gru_in_views()

    def use():
        y, state, tape = p.forward(layer, checkpoint=3)
        return frozen([y, state, p.backward(layer, tape)])

    return {name: value for name, value in vars(p).items() if isinstance(value, np.ndarray)}, use


def change_in_a_stream():
    layer, p = gru_in_views()
    stream = layer.stream(8)
    memory, out = framed((40, 8, 32), np.float32)

    def use():
        stream.state = p.state
        stream.run(p.x, out)
        return frozen([memory, stream.state])

    return {"x": p.x, "state": p.state, "out": out}, use


def change_in_a_loss():
    rng = np.random.default_rng(0)
    memory, out = framed((400, 300), np.float64)
    logits, targets = rng.normal(size=(400, 300)), rng.integers(0, 300, 400)
    arrays = in_views({"logits": logits, "targets": targets, "mask": targets > 99})

    def use():
        loss, _ = rk.cross_entropy(**arrays, out=out)
        return frozen([loss, memory])

    return arrays | {"out": out}, use


def change_in_a_lookup():
    embedding, ids = rk.Embedding(50, 64, seed=0), np.arange(400)[...] % 50
    arrays = in_views({"ids": ids, **embedding.params})
    embedding.params = {"weight": arrays["weight"]}
    return arrays, lambda: frozen(embedding(arrays["ids"]))


def change_in_an_embedding():
    embedding = rk.Embedding(50, 64, seed=0)
    arrays = in_views({"x": np.arange(400) % 50, "dy": np.ones((400, 64), np.float32)})

    def use():
        tape = embedding.forward(arrays["x"])[1]
        return frozen(embedding.backward(tape, arrays["dy"]))

    return arrays, use


def change_in_a_linear():
    linear, x = rk.Linear(64, 50, seed=0), np.ones((40, 10, 64), np.float32)
    memory, out = framed((40, 10, 50), np.float32)
    linear.params = in_views(linear.params)
    arrays = in_views({"x": x, "out": out})

    def use():
        linear(**arrays)
        return frozen(memory)

    return arrays | linear.params, use


def change_in_a_linears_backward():
    linear = rk.Linear(64, 50, seed=0)
    arrays = in_views({"x": np.ones((400, 64), np.float32), "dy": np.ones((400, 50), np.float32)})
    return arrays, lambda: frozen(linear.backward(linear.forward(arrays["x"])[1], arrays["dy"]))


def change_in_a_step():
    warnings.filterwarnings("ignore", "10 steps in a row", RuntimeWarning)
    memory, parameter = framed((100, 40), np.float32)
    start, gradient = memory.copy(), np.full((100, 40), 0.5, np.float32)[...]
    opt = rk.SGD({"w": parameter}, lr=1.0)

    def use():
        memory[:] = start
        opt.step({"w": gradient}, max_norm=1.0)
        return frozen(memory)

    return {"parameter": parameter, "gradient": gradient}, use


def change_in_a_state():
    params = {"w": np.ones((100, 40))}
    opt, other = rk.Adam(params), rk.Adam(params)
    other.step({"w": np.full((100, 40), 0.5)})
    state = in_views(other.state_dict())

    def use():
        opt.load_state_dict(state)
        return frozen(opt.state_dict())

    return state, use


def changes_of(array, how):
    """Change an array's header, or all of its values; and change it back."""
    if how == "values":
        values = array.copy()
        return lambda: array.fill(FILL[array.dtype.kind]), lambda: np.copyto(array, values)
    before, after = getattr(array, how), HEADER[how](array)
    return lambda: setattr(array, how, after), lambda: setattr(array, how, before)


def tried(use, *refusals):
    """What a call gives, in a tuple, and no message; or None, and the message of its refusal."""
    try:
        return (use(),), ""
    except refusals as error:
        return None, f"{error}" or "none"


def result_of(use, what):
    """What a call gives, in a tuple; None where it is refused."""
    done, message = tried(use, TypeError, ValueError, RuntimeError)  # the last: other values
    assert done or NAMED.match(message), f"{what}: no argument is named: {message}"
    return done


def change_arrays_in_another_thread(make, seconds=0.02):
    """Each result is that of the array as it was, or as it was changed, or the call is refused.

    Floating-point numbers that change may give any numbers, but in a state, which is validated.
    """
    sys.setswitchinterval(1e-5)
    arrays, use = globals()[make]()
    done = threading.Event()

    def go_on_changing(change, change_back):
        count = 0
        while not done.is_set():
            change()
            time.sleep(1e-5)
            change_back()
            time.sleep(1e-5)
            count += 1
        return count

    for (name, array), how in itertools.product(arrays.items(), [*HEADER, "values"]):
        what = f"{name}, {how}"
        change, change_back = changes_of(array, how)
        wants = [result_of(use, what)]
        change()
        wants.append(result_of(use, what))
        change_back()
        any_numbers = how == "values" and array.dtype.kind == "f" and make != "change_in_a_state"
        assert any_numbers or wants[0], f"{what}: refused"
        done.clear()
        with rk.num_threads(2), ThreadPoolExecutor(1) as pool:
            changing = pool.submit(go_on_changing, change, change_back)
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    got = result_of(use, what)
                    assert any_numbers or got is None or got in wants, f"{what}: another result"
            finally:
                done.set()
        assert changing.result() > 0


CHANGES = (
    change_in_a_call,
    change_masks_in_a_call,
    change_in_training,
    change_in_a_stream,
    change_in_a_loss,
    change_in_a_lookup,
    change_in_an_embedding,
    change_in_a_linear,
    change_in_a_linears_backward,
    change_in_a_step,
    change_in_a_state,
)


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without the interpreter's lock, NumPy itself reads headers while they change",
)
@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_arrays_that_another_thread_changes(make):
    child(change_arrays_in_another_thread, make.__name__)


# Each makes arrays to change, and a call of so many steps that Python's signal handlers run in it.


def long_problem(steps):
    layer = make_layer("lstm", 64, 128)
    return layer, random_problem(layer, steps, 16, lengths=np.full(16, steps), resets=0.1)


def long_forward(steps):
    layer, p = long_problem(steps)
    arrays = [p.x, *p.state, p.lengths, p.resets]
    return arrays, lambda: frozen(p.forward(layer, checkpoint=50)[:2])


def long_backward(steps):
    layer, p = long_problem(steps)
    _, _, tape = p.forward(layer, checkpoint=50)
    return [p.x, p.dy, *p.dstate], lambda: frozen(p.backward(layer, tape))


def long_run(steps):
    layer, p = long_problem(steps)
    memory, out = framed((steps, 16, 128), np.float32)
    stream = layer.stream(16)

    def use():
        stream.reset()
        stream.run(p.x, out)
        return frozen([memory, stream.state])

    return [p.x, out], use


def long_loss(steps):
    rows = 1000 * steps
    logits, targets = np.ones((rows, 3), np.float32), np.arange(rows) % 3
    memory, out = framed((rows, 3), np.float32)

    def use():
        loss, _ = rk.cross_entropy(logits, targets, out=out)
        return frozen([loss, memory])

    return [logits, targets, out], use


def change_arrays_in_a_handler(make):
    """The handler of a signal changes headers, and what could be an index, in the middle."""
    rk.set_num_threads(1)
    steps, seconds = 5000, 0.0
    while seconds < 0.4:  # handlers run every 0.1 s, and where a part of a call begins
        arrays, use = globals()[make](steps)
        begin = time.perf_counter()
        want = use()
        seconds = time.perf_counter() - begin
        steps *= 2
    handled = []

    def change(*_):
        for array in arrays:
            if array.dtype.kind != "f":
                array.fill(FILL[array.dtype.kind])
            for name in HEADER:
                set_header(array, name)
        handled.append(time.perf_counter())

    signal.signal(signal.SIGALRM, change)
    begin = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    got = use()
    end = time.perf_counter()
    assert begin + 0.15 < handled[0] < end - 0.01, "the handler did not run in the middle"
    assert got == want


LONG_CALLS = (long_forward, long_backward, long_run, long_loss)


@pytest.mark.parametrize("make", LONG_CALLS, ids=lambda make: make.__name__)
def test_arrays_that_a_signal_handler_changes(make):
    child(change_arrays_in_a_handler, make.__name__)


def test_a_tape_keeps_the_memory_of_x():
    layer = make_layer("gru", 3, 4)
    x = np.ones((5, 2, 3), np.float32)
    y, _, tape = layer.forward(x)
    want = layer.backward(tape, y).x.tobytes()
    with pytest.raises(ValueError, match="cannot resize"):
        x.resize((500, 2, 3))
    assert layer.backward(tape, y).x.tobytes() == want
    del tape
    x.resize((500, 2, 3))  # nothing else refers to it


class Fickle(dict):
    """Gives another value for one of its names after so many times."""

    def change(self, name, times, value):
        self.name, self.times, self.value = name, times, value
        return self

    def __getitem__(self, name):
        self.times -= name == self.name
        return self.value if name == self.name and self.times < 0 else super().__getitem__(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", np.array(-1)),
        ("skipped", np.array(-1)),
        ("0.w.first", np.full(3, np.nan)),
        ("0.w.second", np.full(3, -1.0)),
        ("0.w.second", np.ones(2)),
        ("0.w.second", np.ones(3, np.float32)),
    ],
)
def test_a_state_is_loaded_as_it_was_validated(name, value):
    opt = rk.Adam({"w": np.ones(3)})
    want = frozen(opt.state_dict())
    for times in range(5):
        state = Fickle(opt.state_dict()).change(name, times, value)
        result_of(lambda: opt.load_state_dict(state), name)  # noqa: B023
        assert frozen(opt.state_dict()) == want, times


# ---- objects that no constructor made ----------------------------------------------------------

CLASSES = {
    "Tape": rk.Tape,
    "core Tape": _core.Tape,
    "ModuleTape": rk.ModuleTape,
    "Gradients": rk.Gradients,
    "ModuleGradients": rk.ModuleGradients,
    "SparseRows": rk.SparseRows,
    "LayerStack": _core.LayerStack,
    "core Stream": _core.Stream,
    "Packed": _core.Packed,
    "Frozen": rk.Frozen,
    **{cls.__name__: cls for cls in LAYERS.values()},
    "Stream": rk.Stream,
    "Linear": rk.Linear,
    "Embedding": rk.Embedding,
    "SGD": rk.SGD,
    "RMSprop": rk.RMSprop,
    "Adam": rk.Adam,
    "AdamW": rk.AdamW,
    "Window": rk.Window,
}


def use_what_was_not_made(name):
    """All that is public, called with arguments that would be right, is refused."""
    cls = CLASSES[name]
    layer = make_layer("gru", 3, 4)
    x = np.ones((5, 2, 3), np.float32)
    y, _, tape = layer.forward(x)
    params = layer.params
    arguments = {
        "backward": (tape, y) if issubclass(cls, rk.layers._Layer) else (x, y),
        "load_state_dict": ({},),
        "member": (0,),
        "reset": (),
        "parameter_shapes": (),
        "state_names": (),
        "state_dict": (),
        "step": ({},) if issubclass(cls, rk.optim._Optimizer) else (x[0],),
        "stream": (),
        "freeze": (),
        "is_stale": (),
        "pack": (params,),
    }
    if cls is _core.LayerStack:
        arguments["forward"] = params, x, None, None, None, False, 3, 0, (0.0, [1], 0, True)
        arguments["backward"] = params, tape._core, y, None, (np.inf,) * 4, False, 0.0
    if cls is rk.Window:
        arguments["backward"] = (y,)

    def use_attribute(attribute):
        found = getattr(cls.__new__(cls), attribute)
        return found(*arguments.get(attribute, (x,))) if callable(found) else found

    for attribute in [one for one in dir(cls) if not one.startswith("_")]:
        print(attribute, flush=True)
        done, _ = tried(lambda: use_attribute(attribute), TypeError, AttributeError)  # noqa: B023
        assert not done, f"{attribute}: worked"
    others = {
        "call": lambda one: one(x),
        "backward of it": lambda one: layer.backward(one, y),
        "state of it": lambda one: _core.stream_state(one),
        "reset of it": lambda one: _core.reset_stream(one, None),
        "set state of it": lambda one: _core.set_stream_state(one, (x[:1],)),
        "core stream of it": lambda one: _core.Stream(one, 1),
        "stream of it": lambda one: rk.Stream(one),
        "frozen of it": lambda one: rk.Frozen(one),
        "windows of it": lambda one: list(rk.truncated_bptt(one, x, 2)),
        "step of it": lambda one: rk.SGD(params, 1.0).step(one),
    }
    for what, use in others.items():
        print(what, flush=True)
        done, _ = tried(lambda: use(cls.__new__(cls)), TypeError, AttributeError)  # noqa: B023
        assert not done, f"{what}: worked"
    for what, how in COPIES.items():
        print(what, flush=True)
        tried(lambda: how(cls.__new__(cls)), TypeError, AttributeError, pickle.PicklingError)  # noqa: B023


def use_all_that_was_not_made():
    for name in CLASSES:
        print(name, flush=True)
        use_what_was_not_made(name)


def test_objects_that_no_constructor_made():
    child(use_all_that_was_not_made)


# ---- attributes and copies ---------------------------------------------------------------------


def objects():
    """By name: what makes an object, and what shows all of it. Each object is shown once."""
    x = np.ones((5, 2, 3), np.float32)

    def layer():
        return rk.LSTM(3, 4, 2, dropout=0.5, seed=0)

    def tape():
        return layer().forward(x)[2]

    def gradients():
        one = layer()
        y, _, tape = one.forward(x)
        return one.backward(tape, y, clip=rk.Clip(max_norm=0.1), trace=True)

    def stream():
        one = rk.GRU(3, 4, 2, seed=0).stream(2)
        one.run(x)
        return one

    def optimizer(make):
        params = {"w": np.ones(3), "b": np.ones(2)}
        opt = make(params)
        opt.step({"w": np.ones(3), "b": np.ones(2)})
        return opt, params

    def step(value):
        opt, params = value
        done = opt.step({"w": np.full(3, 2.0), "b": np.ones(2)}, max_norm=1.0)
        return [done, params, opt.state_dict(), opt.lr]

    def use(one):
        return [one(x), one.forward(x)[:2], one.dropout_step, one.params, repr(one)]

    modules = rk.Linear(3, 2, seed=0), rk.Embedding(5, 3, padding_idx=1, seed=0)
    return {
        "layer": (layer, use),
        "ensemble": (lambda: rk.GRU(3, 4, ensemble=2, seed=0), lambda one: use(one)),
        "member": (lambda: rk.GRU(3, 4, ensemble=2, seed=0).member(1), use),
        "rnn": (lambda: rk.RNN(3, 4, nonlinearity="relu", seed=0), use),
        "tape": (tape, lambda one: [one.gates, one.cells, one.hiddens]),
        "stream": (stream, lambda one: [one.state, one.run(x), one.step(x[0]), one.state]),
        "frozen": (
            lambda: layer().freeze(),
            lambda one: [one(x), one(x, outputs="last"), one.stream(2).run(x), repr(one)],
        ),
        "bound method": (lambda: stream().run, lambda run: [run.__self__.reset(), run(x)]),
        "linear": (lambda: modules[0], lambda one: [one(x), one.params, repr(one)]),
        "embedding": (lambda: modules[1], lambda one: [one.params, repr(one)]),
        "clip": (lambda: rk.Clip(max_norm=0.1), repr),
        "gradients": (gradients, lambda one: one),
        "rows": (
            lambda: rk.SparseRows([1], np.ones((1, 2), np.float32), (3, 2)),
            lambda one: [one.ids, one.values, one.to_dense(), repr(one)],
        ),
        **{name: (lambda make=make: optimizer(make), step) for name, make in OPTIMIZERS.items()},
    }


def copy_objects(name):
    make, show = objects()[name]
    want = frozen(show(make()))
    reductions = {f"reduce {n}": lambda one, n=n: one.__reduce_ex__(n) for n in range(6)}
    for what, how in (COPIES | reductions | {"reduce": lambda one: one.__reduce__()}).items():
        print(what, flush=True)
        one = make()
        done, _ = tried(lambda: how(one), TypeError, pickle.PicklingError)  # noqa: B023
        if done and what in COPIES:
            assert frozen(show(done[0])) == want, f"{what}: another copy"
        if not done or what != "copy":  # which shares what the original holds
            assert frozen(show(one)) == want, f"{what}: the original has changed"


def copy_all():
    for name in objects():
        print(name, flush=True)
        copy_objects(name)


def test_copies_are_the_same_or_refused():
    child(copy_all)


@pytest.mark.parametrize(
    "name", sorted(set(objects()) - {"tape", "bound method", "stream", "frozen"})
)
def test_attributes_that_were_validated_cannot_be_set(name):
    value = objects()[name][0]()
    one = value[0] if isinstance(value, tuple) else value
    names = read_only_attributes(one)
    assert len(names) > 0
    before = {name: getattr(one, name) for name in names}
    for name, current in before.items():
        for other in (current, True, 2, None):
            with pytest.raises(AttributeError, match=name):
                setattr(one, name, other)
        with pytest.raises(AttributeError, match=name):
            delattr(one, name)
        assert getattr(one, name) is current or getattr(one, name) == current


# ---- no rows -----------------------------------------------------------------------------------


def timed(what, use, *args, **options):
    begin = time.perf_counter()
    found = use(*args, **options)
    seconds = time.perf_counter() - begin
    assert seconds < 0.2, f"{what}: {seconds:.1f} s"
    return found


def train_on_no_rows(layer, T, **given):
    what, D = f"{layer}, {list(given)}", 1 + layer.bidirectional
    shape = (0, T) if layer.batch_first else (T, 2, 0) if layer.ensemble else (T, 0)
    x = np.empty((*shape, layer.input_size), layer.dtype)
    dy = np.empty((*shape, D * layer.output_size), layer.dtype)
    assert timed(what, layer, x, **given)[0].shape == dy.shape
    for checkpoint in (None,) if D == 2 else (None, 1, "sqrt"):
        y, _, tape = timed(what, layer.forward, x, **given, checkpoint=checkpoint)
        assert y.shape == dy.shape
        grads = timed(what, layer.backward, tape, dy, trace=True)
        assert grads.x.shape == x.shape
        assert not any(array.any() for array in grads.params.values())
        for name in ("gates", "cells", "hiddens") if checkpoint is None else ():
            timed(f"{what}: {name}", getattr, tape, name)


def use_no_rows(kind):
    signal.alarm(10)  # which ends the process
    T = 2**34
    for options in ({}, {"batch_first": True}, {"ensemble": 2}, {"bidirectional": True}):
        layer = make_layer(kind, 3, 4, num_layers=2, **options)
        train_on_no_rows(layer, T)
        train_on_no_rows(layer, T, lengths=np.empty(0, int))
        resets = np.empty((0, T) if layer.batch_first else (T, 0), bool)
        train_on_no_rows(layer, T, resets=resets)
        train_on_no_rows(layer, T, resets=resets, mask=resets)


def use_no_ids():
    T = 2**34
    ids, x = np.empty((T, 0), int), np.empty((T, 0, 3), np.float32)
    embedding, linear = rk.Embedding(5, 3), rk.Linear(3, 2)
    timed("embedding", embedding, ids)
    timed("embedding", embedding.backward, timed("embedding", embedding.forward, ids)[1], x)
    y, tape = timed("linear", linear.forward, x)
    timed("linear", linear.backward, tape, y)
    timed("loss", rk.cross_entropy, x, ids, mask=np.empty((T, 0), bool), ignore_index=1)


@pytest.mark.parametrize("kind", OF_EACH_SHAPE)
def test_no_rows_of_many_steps_take_no_time(kind):
    child(use_no_rows, kind)


def test_no_ids_of_many_steps_take_no_time():
    child(use_no_ids)


# ---- subinterpreters ---------------------------------------------------------------------------


def import_in_a_subinterpreter():
    try:
        import _interpreters as interpreters
    except ImportError:  # its name until 3.12
        import _xxsubinterpreters as interpreters

    one = interpreters.create()
    code = """if True:
        try:
            import rnnkern
            print("works", flush=True)
        except ImportError:
            print("ImportError", flush=True)
    """
    interpreters.run_string(one, code)
    interpreters.destroy(one)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no isolated subinterpreters before 3.12")
def test_import_in_a_subinterpreter():
    """It works or says that it does not, as NumPy's does in 2026."""
    assert child(import_in_a_subinterpreter) in ("works\n", "ImportError\n")
