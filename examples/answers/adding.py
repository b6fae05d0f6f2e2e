"""LSTM and GRU against the vanilla RNN on the adding problem, at 100, 200 and 400 steps.

Of T random numbers two are marked, one in each half; the answer, after the last step, is their sum
(Hochreiter and Schmidhuber 1997, experiment 4, in the form of Le, Jaitly and Hinton 2015).
Who always answers 1 has a squared error of 1/6.
"""

import time

import numpy as np
from figure import keep, options
from matplotlib.figure import Figure

import rnnkern as rk

H, B = 32, 32
TRIVIAL = 1 / 6


def lstm(T):
    """Gates that start out keeping what they hold for 1 to T steps (Tallec and Ollivier 2018)."""
    layer = rk.LSTM(2, H, init="orthogonal", forget_bias=0.0, seed=1)
    bias = np.log(np.random.default_rng(1).uniform(1, T - 1, H))
    layer.params["bias_ih_l0"][: 2 * H] = np.concatenate([-bias, bias])  # i, f
    return layer


CELLS = {  # the layer for T steps, and its learning rate
    "vanilla RNN": (lambda _: rk.RNN(2, H, init="orthogonal", seed=1), 1e-3),
    "LSTM": (lstm, 3e-2),
    "GRU": (lambda _: rk.GRU(2, H, init="orthogonal", seed=1), 3e-2),
}


def draw(rng, T, rows):
    """Numbers and marks (T, rows, 2), and the sums (rows,)."""
    x = np.zeros((T, rows, 2), np.float32)
    x[..., 0] = rng.random((T, rows))
    row = np.arange(rows)
    first, second = rng.integers(0, T // 2, rows), rng.integers(T // 2, T, rows)
    x[first, row, 1] = x[second, row, 1] = 1.0
    return x, x[first, row, 0] + x[second, row, 0]


def train(layer, T, steps, lr):
    """The squared error of each step's fresh batch, before it is learnt from."""
    rng = np.random.default_rng(0)
    out = {"w": np.zeros(H, np.float32), "b": np.ones(1, np.float32)}
    opt = rk.Adam([layer.params, out], lr=lr)
    errors = []
    for step in range(steps):
        opt.lr = lr * min(1.0, 4.0 * (1.0 - step / steps))  # down to zero in the last quarter
        x, target = draw(rng, T, B)
        _, state, tape = layer.forward(x)
        h = state[0][0] if isinstance(state, tuple) else state[0]
        error = h @ out["w"] + out["b"] - target
        errors.append(float(np.mean(error**2)))
        d = (2.0 / B) * error
        dh = (d[:, None] * out["w"])[None]
        dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
        grads = layer.backward(tape, dstate=dstate)
        opt.step([grads, {"w": d @ h, "b": d.sum(keepdims=True)}], max_norm=1.0)
    return errors


def main():
    args = options(__doc__)
    lengths, steps = ((20,), 60) if args.quick else ((100, 200, 400), 1000)
    figure = Figure(figsize=(4.2 * len(lengths), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(lengths), sharey=True))
    figures = {}
    window = steps // 20
    print(f"{'':12} {'T':>4} {'error':>9} {'seconds':>8}")
    for axes, T in zip(panels, lengths, strict=True):
        for name, (make, lr) in CELLS.items():
            start = time.perf_counter()
            errors = train(make(T), T, steps, lr)
            seconds = time.perf_counter() - start
            last = np.mean(errors[-window:])
            print(f"{name:12} {T:4} {last:9.5f} {seconds:8.1f}", flush=True)
            running = np.convolve(errors, np.ones(window) / window, "valid")
            axes.semilogy(np.arange(window, steps + 1), running, label=name)
            figures[f"{name}, T = {T}"] = {"squared error": last, "seconds": seconds}
        axes.axhline(TRIVIAL, color="0.5", linestyle=":", label="always 1: 0.167")
        axes.set(title=f"adding problem, T = {T}", xlabel=f"step (of {B} sequences)")
        axes.grid()
    panels[0].set_ylabel(f"squared error (mean of {window} steps)")
    panels[-1].legend(loc="lower left")
    keep(args.out, "adding", figure, figures)


if __name__ == "__main__":
    main()
