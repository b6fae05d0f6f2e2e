"""What keeps gradients flowing in a vanilla RNN, beside an LSTM and a GRU.

On the adding problem: initialisation (orthogonal, identity), the flow penalty of Pascanu et al.
2013, L1 and L2 penalties on the recurrent weights only. How far gradients get is measured before
and after training, by a random gradient at the final state. Curves are medians over three seeds.
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


def main():
    args = options(__doc__)
    steps = 60 if args.quick else 5000
    window = steps // 20
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    first, then, curves = figure.subplots(1, 3)
    figures = {}
    print(f"{'':32} squared errors         reaches the first step: before, after   radius after")
    for k, (name, (make, flow_penalty, penalties)) in enumerate(CASES.items()):
        style = {"color": f"C{k}", "linestyle": "--" if k < 7 else "-", "label": name}
        runs, flows = [], []
        for seed in SEEDS[: 1 if args.quick else None]:
            layer = make(seed)
            before = flow(layer)
            runs.append(train(layer, steps, flow_penalty, penalties))
            flows.append((before, flow(layer)))
        last = sorted(np.mean(run[-window:]) for run in runs)
        before, after = (
            np.median([f.curve for f in each], axis=0) for each in zip(*flows, strict=True)
        )
        radius = np.median([f.spectrum[0].radius for _, f in flows])
        figures[name] = {
            "squared errors": last,
            "reaches the first step before": before[-1],
            "reaches the first step after": after[-1],
            "radius after": radius,
        }
        errors = " ".join(f"{e:.4f}" for e in last)
        print(f"{name:32} {errors:22} {before[-1]:22.1e} {after[-1]:15.1e} {radius:14.2f}",
              flush=True)  # fmt: skip
        first.semilogy(before, **style)
        then.semilogy(after, **style)
        running = np.convolve(np.median(runs, axis=0), np.ones(window) / window, "valid")
        curves.semilogy(np.arange(window, steps + 1), running, **style)
    curves.axhline(1 / 6, color="0.5", linestyle=":")
    for axes, title in ((first, "at the start"), (then, "after training")):
        axes.set(title=f"how far gradients get, {title}", xlabel="steps back")
        axes.set(ylabel="norm relative to the last step's", ylim=(1e-9, 1e1))
        axes.grid(alpha=0.3)
    curves.set(title=f"adding problem, T = {T}", xlabel=f"training step (of {B} sequences)")
    curves.set_ylabel(f"squared error (mean of {window} steps; dotted: always 1)")
    curves.grid(alpha=0.3)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    keep(args.out, "cures", figure, figures)


if __name__ == "__main__":
    main()
