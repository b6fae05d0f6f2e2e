"""Train and infer for a long time: the bits stay the same, and so does the memory.

    python tests/soak.py --minutes 60

A script, not a test that pytest collects. It exits with 1 if a result changed, if a wrong call was
not refused as it must be, or if the resident memory grew by more than 1 MiB after the warm-up.

How memory is measured. Resident memory wanders without any leak: glibc keeps what was freed, and
problems of random sizes leave it cut up in another way each time. So a sample is taken where
nothing but a fixed set of layers is alive: between two pieces of work, after a garbage collection
and malloc_trim(0), which gives all whole free pages back. (All threads share one arena: the tops of
the others would stay.) Of what is resident then, the anonymous pages count, which are this
process's own: pages of libraries come and go as the system likes. What is left to wander are pages
that are free in part, so the least of a window is compared with the least of another: a leak lifts
every sample. glibc's own sum of what is in use tells a leak from that to the byte.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import itertools
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from attacks import COPIES, HEADER, set_header
from helpers import DTYPES, KINDS, fused_sets, make_layer, parts, random_problem

import rnnkern as rk

ALLOWED_GROWTH = 1024  # KiB
OPTIMIZERS = (
    lambda params: rk.SGD(params, 0.01),
    lambda params: rk.SGD(params, 0.01, 0.9, nesterov=True, l1=1e-4),
    lambda params: rk.RMSprop(params, momentum=0.5),
    lambda params: rk.Adam(params, l2={"weight_*": 1e-4}),
    lambda params: rk.AdamW(params),
)
CLIPS = (
    None,
    rk.Clip(max_norm=1.0),
    rk.Clip(step_value=0.5, step_norm=1.0, value=0.1, max_norm=0.1),
)


# ---- memory ------------------------------------------------------------------------------------


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h, whose ten sizes stand in a row."""

    _fields_ = (("sizes", ctypes.c_size_t * 10),)

    @property
    def in_use(self):
        return self.sizes[4] + self.sizes[7]  # hblkhd, in maps of their own, and uordblks


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo
M_ARENA_MAX = -8  # of malloc.h


def memory():
    """VmRSS, own anonymous pages, and bytes in use of malloc, in KiB, at a quiet point."""
    gc.collect()
    LIBC.malloc_trim(0)
    rollup = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    )
    resident, anonymous = (int(rollup[name].split()[0]) for name in ("Rss", "Anonymous"))
    return resident, anonymous, LIBC.mallinfo2().in_use / 1024


class Samples:
    """What was measured; its room is taken at the start, so that it does not grow itself."""

    def __init__(self, most):
        self.values = np.zeros((most, 4))
        self.count = 0

    def take(self, minute):
        if self.count < len(self.values):
            self.values[self.count] = minute, *memory()
            self.count += 1
        return self.values[self.count - 1]

    def after(self, minute):
        taken = self.values[: self.count]
        return taken[taken[:, 0] >= minute]


# ---- work --------------------------------------------------------------------------------------


def digest(arrays):
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()


def fixed(kind, dtype):
    """A problem that never changes, through everything there is: its digest."""
    layer = make_layer(kind, 7, 20, num_layers=2, bidirectional=True, dropout=0.3, dtype=dtype)
    p = random_problem(layer, 12, 9, lengths="random")
    arrays = []
    for make in OPTIMIZERS:
        opt = make(layer.params)
        for clip in CLIPS:
            y, state, tape = p.forward(layer)
            grads = p.backward(layer, tape, clip)
            opt.step(grads, max_norm=0.5)
            arrays += [y, *parts(state), grads.x, *parts(grads.state), *grads.params.values()]
        arrays += opt.state_dict().values()
    one_way = make_layer(kind, 33, 40, num_layers=3, dtype=dtype)  # two threads share its work
    stream = one_way.stream(24)
    arrays.append(stream.run(random_problem(one_way, 20, 24).x))
    return digest([*arrays, *parts(stream.state), *layer.params.values()])


class Soak:
    """The work, what it has counted, and the layers that stay alive."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.calls = self.checks = 0
        self.wants = {}
        with rk.num_threads(1):
            for kind, dtype in itertools.product(KINDS, DTYPES):
                self.wants[kind, dtype] = fixed(kind, dtype)
        self.old = [self.trainer(i) for i in range(len(self.wants))]

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def size(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def check(self, good, what):
        if not good:
            raise AssertionError(what)
        self.checks += 1

    def trainer(self, i):
        """The i-th layer, its optimizer and its problem: what is alive stays of one size."""
        kind, dtype = list(self.wants)[i]
        layer = make_layer(kind, 16, 32, num_layers=2, dropout=0.2, dtype=dtype)
        opt = OPTIMIZERS[i % len(OPTIMIZERS)](layer.params)
        return layer, opt, random_problem(layer, 20, 8)

    def layer(self, **options):
        options = {
            "num_layers": self.size(1, 4),
            "bidirectional": self.rng.random() < 0.5,
            "bias": self.rng.random() < 0.8,
            "batch_first": self.rng.random() < 0.5,
            "dropout": self.pick([0.0, 0.3]),
            "dtype": self.pick(DTYPES),
            "init": self.pick(["uniform", "xavier", "orthogonal"]),
            **options,
        }
        self.calls += 1
        kind = self.pick(KINDS)
        if options["num_layers"] == 1:
            options["dropout"] = 0.0
        if kind in ("min_gru", "min_lstm") and options["init"] == "orthogonal":
            options["init"] = "xavier"
        return make_layer(kind, self.size(1, 48), self.size(1, 96), **options)

    def problem(self, layer):
        B = self.pick([None, 1, 2, 5, 16, self.size(0, 32)])
        ragged = B is not None and self.rng.random() < 0.5
        return random_problem(
            layer,
            self.size(0, 60),
            B,
            state=self.rng.random() < 0.7,
            lengths="random" if ragged else None,
            seed=self.size(0, 2**31),
        )

    def train(self, layer, opt, p, steps):
        for _ in range(steps):
            y, _, tape = p.forward(layer)
            grads = layer.backward(tape, y, p.dstate, self.pick(CLIPS))
            opt.step(grads, self.pick([None, 1.0]))
        self.calls += 3 * steps
        finite = all(np.isfinite(array).all() for array in layer.params.values())
        self.check(finite, f"{layer}: parameters that are not finite")

    # Pieces of work: each leaves nothing alive but `old`.

    def train_new(self):
        layer = self.layer()
        self.train(layer, self.pick(OPTIMIZERS)(layer.params), self.problem(layer), 3)
        self.calls += 1

    def train_old(self):
        layer, opt, p = self.old[self.size(0, len(self.old) - 1)]
        self.train(layer, opt, p, 5)

    def replace_old(self):
        """Another layer in an old one's place, whose optimizer goes on from the old one's state."""
        i = self.size(0, len(self.old) - 1)
        state = self.old[i][1].state_dict()
        self.old[i] = layer, opt, _ = self.trainer(i)
        opt.load_state_dict(state)
        self.calls += 5
        same = digest(opt.state_dict().values()) == digest(state.values())
        self.check(same, f"{layer}: an optimizer of another state")

    def infer(self):
        layer = self.layer()
        p = self.problem(layer)
        with rk.num_threads(1):
            y, state = layer(p.x, p.state, p.lengths)
        with rk.num_threads(self.size(2, 3)), rk.force_isa(self.pick(fused_sets())):
            found = layer(p.x, p.state, p.lengths)
        self.calls += 2
        want = digest([y, *parts(state)])
        self.check(digest([found[0], *parts(found[1])]) == want, f"{layer}: other bits")

    def read_tape(self):
        layer = self.layer()
        p = self.problem(layer)
        _, _, tape = p.forward(layer)
        for _ in range(2):
            p.backward(layer, tape, self.pick(CLIPS))
        read = [*tape.gates, *tape.cells, *tape.hiddens]
        self.calls += 6
        self.check(all(np.isfinite(a).all() for a in read), f"{layer}: a tape that is not finite")

    def stream(self):
        layer = self.layer(bidirectional=False, batch_first=False)
        T, B = self.size(1, 40), self.size(1, 24)
        x = random_problem(layer, T, B, seed=self.size(0, 2**31)).x
        want, last = layer(x)
        stream = layer.stream(B)
        out, at = np.empty_like(want), 0
        while at < T:
            n = min(self.size(1, 8), T - at)
            if n == 1:
                stream.step(x[at], out[at])
            else:
                stream.run(x[at : at + n], out[at : at + n])
            stream.state = stream.state
            at += n
            self.calls += 3
        found = digest([out, *parts(stream.state)])
        self.check(found == digest([want, *parts(last)]), f"{layer}: a stream of other bits")
        stream.reset()
        self.calls += 3

    def errors(self):
        layer, opt, p = self.pick(self.old)
        _, _, tape = p.forward(layer)
        stream = layer.stream(8)
        long = np.broadcast_to(p.x[:1, :1], (2**50, 1, 16))
        before = digest([*layer.params.values(), *opt.state_dict().values()])
        for wrong, expected in (
            (lambda: layer(p.x[..., 1:]), ValueError),
            (lambda: layer.forward(p.x.tolist()), TypeError),
            (lambda: layer.forward(p.x, p.state, np.full(8, 99)), ValueError),
            (lambda: layer.backward(tape, p.dy[1:]), ValueError),
            (lambda: layer.backward(None), TypeError),
            (lambda: layer(long), MemoryError),
            (lambda: layer.forward(long), MemoryError),
            (lambda: stream.step(p.x), ValueError),
            (lambda: stream.run(p.x, p.x), ValueError),
            (lambda: layer.stream(2**46), MemoryError),
            (lambda: rk.GRU(2**40, 2**40), MemoryError),
            (lambda: rk.LSTM(3, 5, dropout=2), ValueError),
            (lambda: opt.step({}), ValueError),
            (lambda: opt.load_state_dict({}), ValueError),
        ):
            try:
                wrong()
            except expected:
                continue
            raise AssertionError(f"{layer}: a call that was to raise {expected.__name__} did not")
        self.calls += 16
        after = digest([*layer.params.values(), *opt.state_dict().values()])
        self.check(before == after, f"{layer}: a refused call has written")

    def hostile(self):
        """Arrays that change their header, copies, and objects that no constructor made."""
        layer, opt, p = self.pick(self.old)
        x = p.x.copy()
        tape = layer.forward(x)[2]
        want = digest([p.backward(layer, tape).x])
        for name in HEADER:
            set_header(x, name)
            same = digest([p.backward(layer, tape).x]) == want
            self.check(same, f"{layer}: another gradient after a change of x's {name}")
        objects = layer, layer.stream(8), tape, opt, p.backward(layer, tape)
        uses = (*COPIES.values(), lambda one: type(one).__new__(type(one)).backward(tape))
        for one, use in itertools.product(objects, uses):
            try:
                use(one)
            except (TypeError, AttributeError, pickle.PicklingError):
                continue
        self.calls += 6 + len(objects) * len(uses)

    def in_threads(self):
        """Layers of one and of several threads at once, in threads that end then."""
        layer, _, p = self.pick(self.old)
        pairs = [self.pick(list(self.wants)) for _ in range(2)]
        want = digest([layer(p.x)[0]])
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(fixed, *pair) for pair in pairs]
            same = [pool.submit(lambda: digest([layer(p.x)[0]])) for _ in range(2)]
            for pair, one in zip(pairs, found, strict=True):
                self.check(one.result() == self.wants[pair], f"{pair}: other bits in a thread")
            self.check({one.result() for one in same} == {want}, "one layer, other bits")
        self.calls += 2 * CALLS_OF_FIXED + 3

    def same_bits(self):
        pair = self.pick(list(self.wants))
        with rk.num_threads(self.size(1, 3)), rk.force_isa(self.pick(fused_sets())):
            self.check(fixed(*pair) == self.wants[pair], f"{pair}: other bits than at the start")
        self.calls += CALLS_OF_FIXED


CALLS_OF_FIXED = 2 + len(OPTIMIZERS) * (2 + 3 * len(CLIPS)) + 3
WORK = (  # how often, of a hundred
    (Soak.train_new, 25),
    (Soak.train_old, 22),
    (Soak.infer, 15),
    (Soak.stream, 15),
    (Soak.read_tape, 5),
    (Soak.errors, 5),
    (Soak.hostile, 3),
    (Soak.replace_old, 4),
    (Soak.same_bits, 4),
    (Soak.in_threads, 2),
)


# ---- the run -----------------------------------------------------------------------------------


def report(samples, warm_up):
    """Print what memory did after the warm-up; how much it grew, in KiB."""
    taken = samples.after(warm_up)
    tenth = max(1, len(taken) // 10)
    first, last = taken[:tenth], taken[-tenth:]
    minutes = taken[:, 0]
    print(f"{len(taken)} samples after {warm_up:.1f} minutes of warm-up, in KiB:")
    for column, name in enumerate(("VmRSS", "anonymous", "malloc"), 1):
        kib = taken[:, column]
        drift = np.polyfit(minutes - minutes[0], kib, 1)[0] if len(taken) > 1 else 0.0
        print(
            f"  {name:9} after warm-up {first[:, column].min():9.0f}  maximum {kib.max():9.0f}  "
            f"at end {last[:, column].min():9.0f}  drift {drift:+8.3f} a minute"
        )
    return last[:, 2].min() - first[:, 2].min()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, help="minutes; a fifth, at most 5, if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up = min(options.minutes / 5, 5.0) if options.warm_up is None else options.warm_up

    LIBC.mallopt(M_ARENA_MAX, 1)
    soak = Soak(options.seed)
    kinds_of_work = [work for work, share in WORK for _ in range(share)]
    samples = Samples(int(options.minutes * 60) + 60)
    start = time.monotonic()
    next_sample = next_line = 0.0
    minute = 0.0
    while minute < options.minutes:
        with rk.num_threads(soak.size(1, 2)):
            soak.pick(kinds_of_work)(soak)
        minute = (time.monotonic() - start) / 60
        if minute >= next_sample:
            _, rss, anonymous, in_use = samples.take(minute)
            next_sample = minute + 1 / 60
        if minute >= next_line:
            print(
                f"{minute:6.1f} min  {soak.calls:9d} calls  {soak.checks:7d} checks  "
                f"VmRSS {rss:.0f}  anonymous {anonymous:.0f}  malloc {in_use:.0f} KiB",
                flush=True,
            )
            next_line = minute + 0.5
    for pair, want in soak.wants.items():
        soak.check(fixed(*pair) == want, f"{pair}: other bits than at the start")

    print(f"{soak.calls} calls, {soak.checks} checks passed, {minute:.1f} minutes")
    growth = report(samples, warm_up)
    print(f"anonymous memory grew by {growth:.0f} KiB; allowed are {ALLOWED_GROWTH}")
    return int(growth > ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
