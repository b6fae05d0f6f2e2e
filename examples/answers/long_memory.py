"""Checkpoints in time: a sequence of 100,000 steps in a fiftieth of the tape's memory.

Each measurement is a process of its own. Memory is what its resident set has grown by at its peak,
since all was imported and a tiny layer had run, less the bytes of x, y, dy, dx, the parameters and
their gradients, by their shapes.
"""

import json
import subprocess
import sys
from statistics import mean

from figure import keep, options
from matplotlib.figure import Figure

B, H = 4, 256
CHECKPOINTS = (None, 100, "sqrt", 1000)

MEASURE = """
import hashlib, json, re, sys, time
import numpy as np, rnnkern as rk

def peak():  # bytes; getrusage's would begin at the size of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

T, B, H, checkpoint = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
tiny = rk.LSTM(8, 8, seed=0)
tiny.backward(tiny.forward(np.ones((4, 1, 8), np.float32))[2])
before = peak()
lstm = rk.LSTM(H, H, seed=0)
x, dy = (rng.standard_normal((T, B, H), np.float32) for _ in range(2))
begin = time.perf_counter()
y, _, tape = lstm.forward(x, checkpoint=checkpoint)
grads = lstm.backward(tape, dy)
seconds = time.perf_counter() - begin
results = [y, grads.x, *grads.params.values()]
arrays = [x, dy, *lstm.params.values(), *results]
extra = peak() - before - sum(array.nbytes for array in arrays)
bits = hashlib.sha256()
for array in results:
    bits.update(array)
print(json.dumps({"bytes": extra, "seconds": seconds, "bits": bits.hexdigest()}))
"""


def measure(T, checkpoint):
    argument = json.dumps([T, B, H, checkpoint])
    command = [sys.executable, "-c", MEASURE, argument]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main():
    args = options(__doc__)
    T, rounds = (2_000, 2) if args.quick else (100_000, 2)
    names = ["none" if c is None else str(c) for c in CHECKPOINTS]
    runs = {name: [] for name in names}
    for _ in range(rounds):  # in turns
        for name, checkpoint in zip(names, CHECKPOINTS, strict=True):
            runs[name].append(measure(T, checkpoint))
            print(f"checkpoint {name:5} {runs[name][-1]['bytes'] / 2**20:8.1f} MiB "
                  f"{runs[name][-1]['seconds']:7.2f} s", flush=True)  # fmt: skip
    assert len({run["bits"] for some in runs.values() for run in some}) == 1, "the bits differ"

    memory = {name: max(run["bytes"] for run in some) / 2**20 for name, some in runs.items()}
    seconds = {name: mean(run["seconds"] for run in some) for name, some in runs.items()}
    print(f"{'checkpoint':>10} {'MiB':>8} {'1 /':>6} {'s':>7} {'times':>6}")
    for name in names:
        print(f"{name:>10} {memory[name]:8.1f} {memory['none'] / memory[name]:6.1f} "
              f"{seconds[name]:7.2f} {seconds[name] / seconds['none']:6.2f}")  # fmt: skip

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = ["0.6", "C0", "C1", "C2"]
    bars = left.bar(names, list(memory.values()), color=colors)
    left.bar_label(bars, [f"{m:,.0f} MiB\n1 / {memory['none'] / m:.0f}" for m in memory.values()])
    left.set_yscale("log")
    left.set(title="peak memory beyond x, y, dy, dx and parameters", ylabel="MiB")
    left.margins(y=0.25)
    bars = right.bar(names, list(seconds.values()), color=colors)
    right.bar_label(bars, [f"{s:.1f} s\n{s / seconds['none']:.2f} x" for s in seconds.values()])
    right.set(title=f"time of forward and backward (mean of {rounds})", ylabel="seconds")
    right.margins(y=0.2)
    for axes in (left, right):
        axes.set_xlabel(f"checkpoint   (LSTM, T = {T:,}, B = {B}, H = {H})")
    figures = {
        "T": T,
        "tape by its shapes, MiB": 5 * T * B * H * 4 / 2**20,  # i, f, g, o and c
        "runs": {
            name: [{k: run[k] for k in ("bytes", "seconds")} for run in some]
            for name, some in runs.items()
        },
        "memory, MiB": memory,
        "share of the full memory": {name: m / memory["none"] for name, m in memory.items()},
        "seconds": seconds,
        "times the full tape's": {name: s / seconds["none"] for name, s in seconds.items()},
        "the same bits": True,
    }
    keep(args.out, "long_memory", figure, figures)


if __name__ == "__main__":
    main()
