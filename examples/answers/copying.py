"""LSTM and GRU against the vanilla RNN on the copy problem, at 100, 200 and 400 steps.

Ten symbols of eight come first, then T - 1 blanks, then a sign to write the ten down (Hochreiter
and Schmidhuber 1997; in the form of Arjovsky, Shah and Bengio 2016, section 5.1). Who remembers
nothing writes blanks and then guesses: a cross-entropy of 10 log 8 / (T + 20).
"""

import time

import numpy as np
from figure import keep, options
from matplotlib.figure import Figure

import rnnkern as rk

H, B = 64, 16
SYMBOLS, KEPT = 8, 10
BLANK, SIGN = SYMBOLS, SYMBOLS + 1
I = SYMBOLS + 2


def spread(T):
    """Biases that keep a state for 1 to T steps (Tallec and Ollivier 2018, arXiv:1804.11188)."""
    return np.log(np.random.default_rng(1).uniform(1, T - 1, H))


def lstm(T):
    layer = rk.LSTM(I, H, init="orthogonal", forget_bias=0.0, seed=1)
    layer.params["bias_ih_l0"][: 2 * H] = np.concatenate([-spread(T), spread(T)])  # i, f
    return layer


def gru(T):
    layer = rk.GRU(I, H, init="orthogonal", seed=1)
    layer.params["bias_ih_l0"][H : 2 * H] = spread(T)  # z
    return layer


CELLS = {
    "vanilla RNN": (lambda _: rk.RNN(I, H, init="orthogonal", seed=1), 1e-3),
    "LSTM": (lstm, 3e-2),
    "GRU": (gru, 3e-2),
}


def draw(rng, T, rows):
    """Inputs as one-hot vectors (T + 20, rows, I), and the classes to say (T + 20, rows)."""
    symbols = rng.integers(0, SYMBOLS, (KEPT, rows))
    given = np.full((T + 2 * KEPT, rows), BLANK)
    given[:KEPT], given[T + KEPT - 1] = symbols, SIGN
    target = np.full((T + 2 * KEPT, rows), BLANK)
    target[-KEPT:] = symbols
    return np.eye(I, dtype=np.float32)[given], target


def train(layer, T, steps, lr):
    """Cross-entropy of each step's fresh batch, and the share of the kept symbols said right."""
    rng = np.random.default_rng(0)
    out = rk.Linear(H, I - 1, seed=1)
    opt = rk.Adam([layer.params, out.params], lr=lr)
    losses, right = [], []
    for step in range(steps):
        opt.lr = lr * min(1.0, 4.0 * (1.0 - step / steps))  # down to zero in the last quarter
        x, target = draw(rng, T, B)
        y, _, tape = layer.forward(x)
        scores, out_tape = out.forward(y)
        right.append(float((scores.argmax(axis=-1) == target)[-KEPT:].mean()))
        loss, d_scores = rk.cross_entropy(scores, target)
        losses.append(loss)
        of_out = out.backward(out_tape, d_scores)
        opt.step([layer.backward(tape, of_out.x), of_out], max_norm=1.0)
    return losses, right


def main():
    args = options(__doc__)
    lengths, steps = ((20,), 40) if args.quick else ((100, 200, 400), 1500)
    figure = Figure(figsize=(4.2 * len(lengths), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(lengths)))
    figures = {}
    window = steps // 20
    print(f"{'':12} {'T':>4} {'loss':>8} {'of trivial':>10} {'right':>6} {'seconds':>8}")
    for axes, T in zip(panels, lengths, strict=True):
        trivial = KEPT * np.log(SYMBOLS) / (T + 2 * KEPT)
        for name, (make, lr) in CELLS.items():
            start = time.perf_counter()
            losses, right = train(make(T), T, steps, lr)
            seconds = time.perf_counter() - start
            last, said = np.mean(losses[-window:]), np.mean(right[-window:])
            print(f"{name:12} {T:4} {last:8.4f} {last / trivial:10.2f} {said:6.1%} {seconds:8.1f}",
                  flush=True)  # fmt: skip
            running = np.convolve(losses, np.ones(window) / window, "valid")
            axes.semilogy(np.arange(window, steps + 1), running, label=f"{name}: {said:.0%} right")
            figures[f"{name}, T = {T}"] = {"loss": last, "right": said, "seconds": seconds}
        axes.axhline(trivial, color="0.5", linestyle=":", label=f"memoryless: {trivial:.3f}")
        axes.set(title=f"copy problem, T = {T}", xlabel=f"step (of {B} sequences)")
        axes.grid()
        axes.legend(fontsize="small")
    panels[0].set_ylabel(f"cross-entropy (nats a step, mean of {window})")
    keep(args.out, "copying", figure, figures)


if __name__ == "__main__":
    main()
