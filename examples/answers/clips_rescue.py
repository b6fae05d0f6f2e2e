"""Each of the four clips rescues a training run that explodes without it.

A relu RNN, whose recurrent matrix starts as the identity, learns to say the sum of all inputs so
far. One large step, and its largest eigenvalue is above one: over 100 steps that is an explosion.
"""

import numpy as np
from figure import keep, options
from matplotlib.figure import Figure

import rnnkern as rk

T, B, H = 100, 16, 32
CLIPS = {
    "no clip": None,
    "step_value 1e-4": rk.Clip(step_value=1e-4),
    "step_norm 1e-4": rk.Clip(step_norm=1e-4),
    "value 0.1": rk.Clip(value=0.1),
    "max_norm 1": rk.Clip(max_norm=1.0),
}


def train(clip, steps):
    """Of each step the squared error, and the gradient's norm without and with the clip."""
    rng = np.random.default_rng(0)
    rnn = rk.RNN(1, H, nonlinearity="relu", init="identity", seed=1)
    out = {"w": rng.normal(0, H**-0.5, H).astype(np.float32)}
    opt = rk.SGD([rnn.params, out], lr=0.01)
    seen = []
    for _ in range(steps):
        x = rng.choice([-1.0, 1.0], (T, B, 1)).astype(np.float32)
        target = np.cumsum(x[..., 0], axis=0) / np.float32(T**0.5)
        y, _, tape = rnn.forward(x)
        with np.errstate(over="ignore", invalid="ignore"):  # that is what is shown
            error = y @ out["w"] - target
            d = (2 / error.size) * error
            free = rnn.backward(tape, d[..., None] * out["w"])
            grads = rnn.backward(tape, d[..., None] * out["w"], clip=clip)
            seen.append((np.mean(error**2), free.norm, grads.norm * grads.scale))
            d_w = np.tensordot(d, y, ([0, 1], [0, 1]))
        opt.step([grads, {"w": d_w}])  # skipped where a gradient is not finite
    return np.array(seen, np.float64).T, opt.skipped


def picture(runs, window):
    """The loss of each run, and the gradient norm of each clip's without and with the clip."""
    figure = Figure(figsize=(12, 5.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    losses = left.subplots()
    panels = iter(right.subplots(2, 2, sharex=True, sharey=True).ravel())
    for k, (name, (seen, broken)) in enumerate(runs.items()):
        loss, before, after = seen
        if broken:
            at = np.isfinite(loss) & np.isfinite(before)
            label = f"{name}: not finite from step {at.argmin() + 1}"
            losses.semilogy(np.flatnonzero(at) + 1, loss[at], "x", color="black", label=label)
            continue
        running = np.convolve(loss, np.ones(window) / window, "valid")
        color, style = f"C{k - 1}", ("-", "--", "-.", ":")[k - 1]
        at = np.arange(window, len(loss) + 1)
        losses.semilogy(at, running, style, color=color, label=name)
        axes = next(panels)
        axes.semilogy(before, color="0.75", linewidth=0.8)
        axes.semilogy(after, color=color, linewidth=1.2)
        axes.set_title(name)
        axes.grid()
    losses.axhline(0.5, color="0.5", linewidth=1)
    losses.annotate("always 0", (1, 0.5), (0, 3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right")  # fmt: skip
    losses.set(title=f"squared error (mean of {window} steps)", xlabel="training step")
    losses.legend(loc="upper right")
    losses.grid()
    right.suptitle("gradient norm (grey: without the clip)")
    right.supxlabel("training step", fontsize="medium")
    return figure


def main():
    args = options(__doc__)
    steps = 40 if args.quick else 2000
    window = steps // 20
    runs, figures = {}, {}
    print(f"{'':16} {'last loss':>10} {'largest norm':>13} {'clipped to':>11} {'not finite':>11}")
    for name, clip in CLIPS.items():
        (loss, before, after), broken = runs[name] = train(clip, steps)
        finite = np.isfinite(loss) & np.isfinite(before)
        last = "not finite" if broken else loss[-window:].mean()
        worst, clipped = before[finite].max(), after[finite].max()
        figures[name] = {"last loss": last, "largest norm": worst, "clipped to": clipped,
                         "steps not finite": broken}  # fmt: skip
        said = last if broken else f"{last:.3g}"
        print(f"{name:16} {said:>10} {worst:13.3g} {clipped:11.3g} {broken:11}", flush=True)
    keep(args.out, "clips_rescue", picture(runs, window), figures)


if __name__ == "__main__":
    main()
