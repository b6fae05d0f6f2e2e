"""Truncated BPTT on one long sequence: what it learns, and what it costs, by how far back it goes.

A GRU is shown a sign now and then, and asked for it 20 steps later. The sequence has 30,000 steps
(of 32 rows); errors go back k2 steps, every k1 = 5 steps. Where k2 is at most 20, no gradient ever
sees the sign and the question together; from k2 = 25 on, every one does.
"""

import time

import numpy as np
from figure import Figure, keep, options

import rnnkern as rk

T, B, H, K1, LAG, PERIOD = 30_000, 32, 32, 5, 20, 30
REACHES = (5, 20, 22, 25, 40, 80)

args = options(__doc__)
if args.quick:
    T, REACHES = 3_000, (5, 40)
rng = np.random.default_rng(0)
x = np.zeros((T, B, 2), np.float32)  # signs, and whether one is asked for
target = np.zeros((T, B), np.float32)  # 0 where nothing is asked
rows = np.arange(B)
for begin in range(0, T - PERIOD, PERIOD):
    shown = begin + rng.integers(PERIOD - LAG, size=B)
    sign = rng.choice([-1.0, 1.0], B)
    x[shown, rows, 0] = sign
    x[shown + LAG, rows, 1] = 1.0
    target[shown + LAG, rows] = sign


def learn(k2: int) -> tuple[list[float], float, float]:
    """Share of right answers every 200 windows, microseconds a step, megabytes kept."""
    gru = rk.GRU(2, H, seed=0)
    out = {"w": np.zeros(H, np.float32)}
    opt = rk.Adam([gru.params, out], lr=1e-2)
    right, asked, shares = 0, 0, []
    for i, window in enumerate(rk.truncated_bptt(gru, x, K1, k2)):
        wanted = target[window.steps]
        at = wanted != 0
        answer = window.y @ out["w"]
        d_answer = np.where(at, -wanted / (1 + np.exp(wanted * answer)), 0) / max(1, at.sum())
        d_answer = d_answer.astype(np.float32)  # of the mean of log(1 + exp(-wanted * answer))
        grads = window.backward(d_answer[..., None] * out["w"])
        opt.step([grads, {"w": np.einsum("tb,tbh->h", d_answer, window.y)}], max_norm=1.0)
        right, asked = right + np.sum((wanted * answer)[at] > 0), asked + at.sum()
        if i % 200 == 199:
            shares.append(float(right / asked))
            right = asked = 0
    rounds = []
    for _ in range(7):
        begin = time.perf_counter()
        for window in rk.truncated_bptt(gru, x[: 50 * K1], K1, k2):
            window.backward(window.y)
        rounds.append(time.perf_counter() - begin)
    us = 1e6 * float(np.median(rounds)) / (50 * K1)
    tape = gru.forward(x[:k2])[2]
    kept = sum(a.nbytes for a in (*tape.gates, *tape.hiddens)) / 1e6
    return shares, us, kept


figure = Figure(figsize=(9.5, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
figures = {"lag": LAG, "k1": K1, "T": T, "cases": []}
print("  k2  right at the end   us a step   MB kept")
for i, k2 in enumerate(REACHES):
    shares, us, kept = learn(k2)
    end = float(np.mean(shares[-3:]))
    print(f"{k2:4d}{end:18.3f}{us:12.1f}{kept:10.2f}", flush=True)
    figures["cases"].append({"k2": k2, "right": end, "us_a_step": us, "mb": kept, "curve": shares})
    style = "--" if k2 <= LAG else "-"
    steps = 200 * K1 * np.arange(1, len(shares) + 1)
    left.plot(steps, shares, style, color=f"C{i}", label=f"k2 = {k2}")
left.set(title=f"A sign, asked for {LAG} steps later", ylim=(0.4, 1.02))
left.set(xlabel="steps of the sequence that have gone by", ylabel="share of right answers")
left.legend()
left.grid()
cases = figures["cases"]
right.plot([c["k2"] for c in cases], [c["us_a_step"] for c in cases], "o-", label="time")
right.set(title=f"What it costs (k1 = {K1})", xlabel="k2 (steps)", ylim=(0, None))
right.set_ylabel("time of a step of the sequence (µs)")
memory = right.twinx()
memory.plot([c["k2"] for c in cases], [c["mb"] for c in cases], "s--", color="C1", label="memory")
memory.set_ylabel("kept for backward (MB)")
memory.set_ylim(0, None)
right.legend(handles=[*right.lines, *memory.lines])
right.grid()
keep(args.out, "truncated", figure, figures)
