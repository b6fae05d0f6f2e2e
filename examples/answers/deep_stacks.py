"""Stacks of up to 16 layers: what a layer costs, and that eight of them learn.

Time first: a training step (forward and backward) of a GRU by its number of layers. Then learning:
characters of Python's own source, with one layer, with eight, and with eight and `residual=True`.
"""

import time

import numpy as np
from figure import keep, medians, options
from matplotlib.figure import Figure

import rnnkern as rk
from rnnkern.cli.text import stdlib_texts

H = 128
WIDTH = 64  # of the layers that learn
STACKS = {
    "1 layer": {"num_layers": 1},
    "8 layers": {"num_layers": 8},
    "8 layers, residual": {"num_layers": 8, "residual": True},
}


def times(depths, T, seconds):
    """Seconds of a training step, by threads and rows: an array over depths."""
    found = {}
    for threads in (1, 2):
        for B in (1, 32):
            ways = {}
            for depth in depths:
                layer = rk.GRU(H, H, depth, seed=0)
                x = np.random.default_rng(0).standard_normal((T, B, H), np.float32)

                def step(layer=layer, x=x):
                    y, _, tape = layer.forward(x)
                    layer.backward(tape, y)

                ways[depth] = step
            with rk.num_threads(threads):
                found[threads, B] = np.array(list(medians(ways, seconds).values()))
    return found


def train(ids, count, steps, seed, T=48, B=32, lr=4e-3, **stack):
    """The loss of each step, in bits per character, over windows drawn at random."""
    rng = np.random.default_rng(seed)
    embedding = rk.Embedding(count, WIDTH, seed=seed)
    gru = rk.GRU(WIDTH, WIDTH, seed=seed + 1, **stack)
    output = rk.Linear(WIDTH, count, seed=seed + 2)
    opt = rk.Adam([embedding, gru, output], lr)
    losses = []
    for step in range(steps):
        opt.lr = lr * min(1.0, 2.0 * (1.0 - step / steps))  # down to zero in the last half
        window = ids[rng.integers(0, len(ids) - T, B) + np.arange(T + 1)[:, None]]
        x, target = window[:-1], window[1:]
        vectors, embedding_tape = embedding.forward(x)
        y, _, gru_tape = gru.forward(vectors)
        logits, output_tape = output.forward(y)
        loss, d_logits = rk.cross_entropy(logits, target)
        of_output = output.backward(output_tape, d_logits)
        of_gru = gru.backward(gru_tape, of_output.x)
        of_embedding = embedding.backward(embedding_tape, of_gru.x)
        opt.step([of_embedding, of_gru, of_output], max_norm=1.0)
        losses.append(loss / np.log(2))
    return losses


def main():
    args = options(__doc__)
    depths, T, seconds = ((1, 2, 4), 20, 0.3) if args.quick else ((1, 2, 4, 8, 16), 100, 6.0)
    steps, seeds = (20, 1) if args.quick else (600, 2)
    took = times(depths, T, seconds)
    print(f"GRU, H = {H}, T = {T}: ms of a training step (per layer)")
    print(f"{'layers':>14}", *(f"{depth:>13}" for depth in depths))
    for (threads, B), values in took.items():
        cells = (f"{1e3 * s:6.2f} ({1e3 * s / n:.2f})" for s, n in zip(values, depths, strict=True))
        print(f"B = {B:2}, {threads} thr.", *(f"{cell:>13}" for cell in cells))

    characters = 40_000 if args.quick else 400_000
    text = "".join(stdlib_texts(characters))[:characters]
    known, ids = np.unique(list(text), return_inverse=True)
    window = steps // 20
    learnt = {}
    print(f"{'':20} seed  bits per character    s")
    for name, stack in STACKS.items():
        for seed in range(seeds):
            begin = time.perf_counter()
            losses = np.array(train(ids, len(known), steps, 10 * seed, **stack))
            learnt.setdefault(name, []).append(losses)
            print(f"{name:20} {seed:4}  {losses[-window:].mean():18.3f} "
                  f"{time.perf_counter() - begin:6.1f}", flush=True)  # fmt: skip

    figure = Figure(figsize=(13, 3.9), layout="constrained")
    whole, per_layer, curves = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for (threads, B), values in took.items():
        style = {"color": f"C{B > 1:d}", "marker": "o", "linestyle": ":-"[threads - 1]}
        label = f"B = {B}, {threads} thread{'s' * (threads > 1)}"
        whole.loglog(depths, 1e3 * values, label=label, **style)
        per_layer.loglog(depths, 1e3 * values / depths, label=label, **style)
    for axes, title in ((whole, "a training step"), (per_layer, "the same, per layer")):
        axes.set_xticks(depths, depths)
        axes.set_xticks([], minor=True)
        axes.set(title=title, xlabel=f"layers (GRU, H = {H}, T = {T})", ylabel="milliseconds")
        axes.grid(which="both")
    per_layer.set_ylim(per_layer.get_ylim()[0] / 2, per_layer.get_ylim()[1] * 2)
    whole.legend(fontsize="small")
    for color, (name, runs) in zip(("0.5", "C3", "C2"), learnt.items(), strict=True):
        for seed, losses in enumerate(runs):
            mean = np.convolve(losses, np.full(window, 1 / window), "valid")
            label = name if seed == 0 else None
            curves.plot(np.arange(window, steps + 1), mean, color=color, label=label)
    curves.set(title=f"learning Python's source (GRU, H = {WIDTH}; seeds: {seeds})")
    curves.set(xlabel="step (of 32 x 48 characters)")
    curves.set_ylabel(f"bits per character (mean of {window} steps)")
    curves.legend()
    curves.grid()
    figures = {
        "layers": list(depths),
        "ms": {
            f"B = {B}, threads = {threads}": list(1e3 * values)
            for (threads, B), values in took.items()
        },
        "bits per character": {
            name: [losses[-window:].mean() for losses in runs] for name, runs in learnt.items()
        },
    }
    keep(args.out, "deep_stacks", figure, figures)


if __name__ == "__main__":
    main()
