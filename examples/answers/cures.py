"""What keeps gradients flowing in a vanilla RNN, beside an LSTM and a GRU.

On the adding problem: initialisation (orthogonal, identity), the flow penalty of Pascanu et al.
2013, L1 and L2 penalties on the recurrent weights only. How far gradients get is measured before
and after training, by a random gradient at the final state. Shares are medians over three seeds.
"""

import numpy as np
from adding import draw
from figure import keep, options
from matplotlib.figure import Figure

import rnnkern as rk

T, H, B, LR = 50, 32, 32, 1e-3


SEEDS = (1, 2, 3)
RECURRENT = "weight_hh*"


def vanilla(seed, init="xavier", nonlinearity="tanh"):
    return rk.RNN(2, H, init=init, nonlinearity=nonlinearity, seed=seed)


def orthogonal(seed):
    return vanilla(seed, "orthogonal")


def identity(seed):
    return vanilla(seed, "identity", "relu")


def lstm(seed):
    return rk.LSTM(2, H, init="orthogonal", forget_bias=1.0, seed=seed)


def gru(seed):
    return rk.GRU(2, H, init="orthogonal", seed=seed)


CASES = {  # name: the layer, the weight of the flow penalty, penalties of the optimizer
    "tanh": (vanilla, 0.0, {}),
    "tanh, L2": (vanilla, 0.0, {"l2": {RECURRENT: 1e-4}}),
    "tanh, L1": (vanilla, 0.0, {"l1": {RECURRENT: 1e-5}}),
    "tanh, flow penalty": (vanilla, 0.1, {}),
    "tanh, orthogonal": (orthogonal, 0.0, {}),
    "tanh, orthogonal, flow penalty": (orthogonal, 0.1, {}),
    "relu, identity": (identity, 0.0, {}),
    "LSTM, forget_bias=1": (lstm, 0.0, {}),
    "GRU": (gru, 0.0, {}),
}


def flow(layer):
    """How gradients get back through fresh sequences."""
    x, _ = draw(np.random.default_rng(7), T, B)
    _, _, tape = layer.forward(x)
    return rk.diagnose.report(layer, tape).flows[0]


def train(layer, steps, flow_penalty, penalties):
    """The squared error of each step's fresh batch."""
    rng = np.random.default_rng(0)
    out = {"w": np.zeros(H, np.float32), "b": np.ones(1, np.float32)}
    opt = rk.Adam([layer.params, out], lr=LR, **penalties)
    errors = []
    for step in range(steps):
        opt.lr = LR * min(1.0, 4.0 * (1.0 - step / steps))  # down to zero in the last quarter
        x, target = draw(rng, T, B)
        _, state, tape = layer.forward(x)
        h = state[0][0] if isinstance(state, tuple) else state[0]
        error = h @ out["w"] + out["b"] - target
        errors.append(float(np.mean(error**2)))
        d = (2.0 / B) * error
        dh = (d[:, None] * out["w"])[None]
        dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
        grads = layer.backward(tape, dstate=dstate, flow_penalty=flow_penalty)
        opt.step([grads, {"w": d @ h, "b": d.sum(keepdims=True)}], max_norm=1.0)
    return errors


def picture(figures):
    """A row for each case: how far gradients get before and after training, and what it learned."""
    figure = Figure(figsize=(11, 4.6))
    flows, errors = figure.subplots(1, 2, sharey=True)
    names = list(figures)
    rows = range(len(names))
    before, after = (
        [figures[name][f"reaches the first step {when}"] for name in names]
        for when in ("before", "after")
    )
    lowest = 1e-8  # at the left edge: that and less
    for row, *ends in zip(rows, before, after, strict=True):
        flows.plot(np.maximum(ends, lowest), (row, row), color="0.7", zorder=1)
    for shares, marker, label in ((before, "o", "before training"), (after, "D", "after")):
        shown = np.maximum(shares, lowest)
        flows.plot(shown, rows, marker, markersize=8, clip_on=False, label=label)
    for row, share in zip(rows, after, strict=True):
        if share < lowest:
            flows.annotate(f"after: {share:.0g}", (lowest, row), (8, 7), textcoords="offset points")
    flows.set(xscale="log", xlim=(lowest, 2), yticks=rows, yticklabels=names)
    flows.set(title="share of the gradient's norm\nthat reaches the first step")
    for row, name in zip(rows, names, strict=True):
        found = figures[name]["squared errors"]
        errors.plot(found, [row] * len(found), "o", color="C0", markersize=8, alpha=0.6)
    errors.axvline(1 / 6, color="0.3", linestyle=":")
    errors.annotate("always 1", (1 / 6, 0), (6, 0), textcoords="offset points", va="center")
    errors.set(xscale="log", xlim=(1e-4, 1), title="squared error after training\n(one dot a seed)")
    flows.invert_yaxis()
    for axes in (flows, errors):
        axes.grid()
    figure.legend(*flows.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main():
    args = options(__doc__)
    steps = 60 if args.quick else 5000
    window = steps // 20
    figures = {}
    print(f"{'':32} squared errors         reaches the first step: before, after   radius after")
    for name, (make, flow_penalty, penalties) in CASES.items():
        runs, flows = [], []
        for seed in SEEDS[: 1 if args.quick else None]:
            layer = make(seed)
            before = flow(layer)
            runs.append(train(layer, steps, flow_penalty, penalties))
            flows.append((before, flow(layer)))
        last = sorted(np.mean(run[-window:]) for run in runs)
        before, after = (
            np.median([f.curve[-1] for f in each]) for each in zip(*flows, strict=True)
        )
        radius = np.median([f.spectrum[0].radius for _, f in flows])
        figures[name] = {
            "squared errors": last,
            "reaches the first step before": before,
            "reaches the first step after": after,
            "radius after": radius,
        }
        errors = " ".join(f"{e:.4f}" for e in last)
        print(f"{name:32} {errors:22} {before:22.1e} {after:15.1e} {radius:14.2f}", flush=True)
    keep(args.out, "cures", picture(figures), figures)


if __name__ == "__main__":
    main()
