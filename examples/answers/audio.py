"""A callback of 64 samples at 48 kHz: is a recurrent net done in time, each time?

An audio driver asks for 64 samples every 1.33 ms, and who is late is heard. A GRU and an LSTM of
16, 32 and 64 units turn each sample into another, a million of them: with one `run` of 64 steps a
callback, and with 64 calls of `step`. The nets allocate nothing in a callback. Beside the latency
stands the most processor time that a callback took: what is more, the system gave to others.
"""

import gc
import time

import numpy as np
from figure import Figure, keep, options

import rnnkern as rk

BLOCK, RATE = 64, 48_000
DEADLINE = 1e6 * BLOCK / RATE  # microseconds
PERCENTILES, NAMES = (50, 99, 99.9, 100), ("p50", "p99", "p99.9", "max")

args = options(__doc__)
callbacks = (20_000 if args.quick else 1_000_000) // BLOCK
rk.set_num_threads(1)  # no thread to wait for
gc.disable()  # nor Python's collector


def latencies(layer: rk.GRU | rk.LSTM, by_step: bool) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of each callback, on the wall's clock and on the thread's."""
    stream = layer.stream()
    w = np.full(layer.hidden_size, 0.1, np.float32)
    wave = np.sin(0.06 * np.arange(callbacks * BLOCK)).astype(np.float32).reshape(callbacks, BLOCK)
    block = np.zeros((BLOCK, 1, 1), np.float32)  # what came from the driver
    y = np.zeros((BLOCK, 1, layer.hidden_size), np.float32)
    sound = np.zeros(BLOCK, np.float32)  # what goes back
    steps = list(zip(block, y, strict=True))  # views: made once
    wall, thread = np.zeros(callbacks), np.zeros(callbacks)
    clock, thread_clock = time.perf_counter_ns, time.thread_time_ns
    for i in range(callbacks):
        begin, thread_begin = clock(), thread_clock()
        block[:, 0, 0] = wave[i]
        if by_step:
            for x_t, y_t in steps:
                stream.step(x_t, y_t)
        else:
            stream.run(block, y)
        np.dot(y[:, 0], w, out=sound)
        thread[i] = thread_clock() - thread_begin
        wall[i] = clock() - begin
    return wall / 1000, thread / 1000


figure = Figure(figsize=(10, 4.2), layout="constrained")
panels = figure.subplots(1, 2, sharey=True)
figures = {"deadline_us": DEADLINE, "callbacks": callbacks, "cases": []}
print(f"{callbacks} callbacks of {BLOCK} samples, deadline {DEADLINE:.0f} us")
print(" " * 26 + "".join(f"{name:>9}" for name in NAMES) + "  late   max of its own (us)")
for panel, by_step in zip(panels, (False, True), strict=True):
    name = "64 calls of step" if by_step else "one run of 64"
    for kind, style in ((rk.GRU, "-"), (rk.LSTM, "--")):
        for H, color in ((16, "C0"), (32, "C1"), (64, "C3")):
            us, own = latencies(kind(1, H, seed=0), by_step)
            late = int(np.sum(us > DEADLINE))
            each = np.percentile(us, PERCENTILES)
            net = f"{kind.__name__} {H}"
            print(
                f"{name:18}{net:8}"
                + "".join(f"{v:9.1f}" for v in each)
                + f"{late:6d}{own.max():10.1f}"
            )
            case = {
                "how": name,
                "net": net,
                "late": late,
                "max_own_us": own.max(),
                "us": dict(zip(NAMES, each, strict=True)),
            }
            figures["cases"].append(case)
            above = 1 - np.arange(callbacks) / callbacks
            panel.step(np.sort(us), above, style, where="post", color=color, label=net)
    panel.axvline(DEADLINE, color="black", lw=1)
    panel.text(DEADLINE * 0.9, 0.5, "deadline", rotation=90, ha="right", va="center")
    panel.set(xscale="log", yscale="log", title=f"{name} a callback")
    panel.set(xlabel="latency of a callback (µs)", xlim=(5, 3000))
    panel.grid()
panels[0].set_ylabel("share of callbacks that take longer")
panels[0].legend()
figure.suptitle(
    f"{BLOCK} samples at {RATE // 1000} kHz, on one thread, {callbacks:,} callbacks each"
)
keep(args.out, "audio", figure, figures)
