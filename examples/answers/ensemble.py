"""An ensemble of 16 small layers trained in one call, against a loop over 16 layers.

A training step is a forward, a backward with a norm clip and a step of Adam. Both ways do the same
work, on the same data and from the same parameters, and end with the same bits: that is checked.
"""

import numpy as np
from figure import keep, medians, options
from matplotlib.figure import Figure

import rnnkern as rk

E, I, H = 16, 8, 32
CLIP = rk.Clip(max_norm=1.0)
SIZES = [(10, 1), (20, 1), (50, 1), (20, 8), (50, 16), (100, 32)]  # T, B


class AsOne:
    """The members side by side in each call."""

    def __init__(self, cell, x, dy):
        self.layer = cell(I, H, ensemble=E, seed=0)
        self.opt = rk.Adam(self.layer.params, ensemble=E)
        self.x, self.dy = x, dy

    def step(self):
        _, _, tape = self.layer.forward(self.x)
        self.opt.step(self.layer.backward(tape, self.dy, clip=CLIP))

    def params(self):
        return self.layer.params


class Loop:
    """A layer and an optimizer for each member, one after the other."""

    def __init__(self, cell, x, dy):
        seeds = (np.random.SeedSequence(0, spawn_key=(e,)) for e in range(E))
        self.layers = [cell(I, H, seed=seed) for seed in seeds]
        self.opts = [rk.Adam(layer.params) for layer in self.layers]
        # Each has arrays of its own: nothing is copied in a step.
        self.data = [(np.ascontiguousarray(x[:, e]), dy[:, e].copy()) for e in range(E)]

    def step(self):
        for layer, opt, (x, dy) in zip(self.layers, self.opts, self.data, strict=True):
            _, _, tape = layer.forward(x)
            opt.step(layer.backward(tape, dy, clip=CLIP))

    def params(self):
        return {name: np.stack([layer.params[name] for layer in self.layers])
                for name in self.layers[0].params}  # fmt: skip


def check(cell, x, dy):
    """Ten steps each way, on two threads and on one: the same bits."""
    ways = [AsOne(cell, x, dy), Loop(cell, x, dy)]
    for way in ways:
        for step in range(10):
            with rk.num_threads(1 + step % 2):
                way.step()
    one, loop = (way.params() for way in ways)
    for name, array in one.items():
        assert array.tobytes() == loop[name].tobytes(), name


def main():
    args = options(__doc__)
    sizes, seconds = (SIZES[:4:3], 0.2) if args.quick else (SIZES, 2.0)
    rng = np.random.default_rng(0)
    figures = {}
    print(f"{'':4} {'T':>3} {'B':>2} {'threads':>7} {'one call':>9} {'loop':>9}  ratio")
    for name, cell in (("GRU", rk.GRU), ("LSTM", rk.LSTM)):
        for T, B in sizes:
            x = rng.normal(size=(T, E, B, I)).astype(np.float32)
            dy = rng.normal(size=(T, E, B, H)).astype(np.float32)
            check(cell, x, dy)
            for threads in (1, 2):
                ways = {"one": AsOne(cell, x, dy).step, "loop": Loop(cell, x, dy).step}
                # Chosen anew for each turn: whether threads are worth it for the one way's calls is
                # learnt from these, and not from the other way's.
                took = medians(ways, seconds, lambda n=threads: rk.set_num_threads(n))
                ratio = took["loop"] / took["one"]
                figures[f"{name}, T = {T}, B = {B}, threads = {threads}"] = {
                    "one call, ms": took["one"] * 1e3,
                    "loop, ms": took["loop"] * 1e3,
                    "ratio": ratio,
                }
                print(f"{name:4} {T:3} {B:2} {threads:7} {took['one'] * 1e3:6.2f} ms "
                      f"{took['loop'] * 1e3:6.2f} ms  {ratio:.2f}", flush=True)  # fmt: skip

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("GRU", "LSTM"), strict=True):
        for threads in (1, 2):
            ratios = [figures[f"{name}, T = {T}, B = {B}, threads = {threads}"]["ratio"]
                      for T, B in sizes]  # fmt: skip
            at = np.arange(len(sizes)) + (threads - 1.5) * 0.4
            label = f"{threads} thread{'s' * (threads > 1)} each way"
            bars = axes.bar(at, ratios, 0.4, color=("0.7", "C0")[threads - 1], label=label)
            axes.bar_label(bars, fmt="%.1f", fontsize="small")
        axes.axhline(1, color="k", linewidth=0.8)
        axes.set_xticks(range(len(sizes)), [f"T = {T}\nB = {B}" for T, B in sizes])
        axes.set(title=f"{E} {name}s of {H} units, a training step")
        axes.margins(y=0.1)
    panels[0].set_ylabel("time of the loop / time of one call")
    panels[1].legend()
    keep(args.out, "ensemble", figure, figures)


if __name__ == "__main__":
    main()
