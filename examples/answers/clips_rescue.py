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


def main():
    args = options(__doc__)
    steps = 40 if args.quick else 2000
    window = steps // 20
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    losses, figures = panels[0], {}
    print(f"{'':16} {'last loss':>10} {'largest norm':>13} {'clipped to':>11} {'not finite':>11}")
    for k, ((name, clip), axes) in enumerate(zip(CLIPS.items(), panels[1:], strict=True)):
        (loss, before, after), broken = train(clip, steps)
        finite = np.isfinite(loss) & np.isfinite(before)
        last = "not finite" if broken else loss[-window:].mean()
        worst, clipped = before[finite].max(), after[finite].max()
        figures[name] = {"last loss": last, "largest norm": worst, "clipped to": clipped,
                         "steps not finite": broken}  # fmt: skip
        said = last if broken else f"{last:.3g}"
        print(f"{name:16} {said:>10} {worst:13.3g} {clipped:11.3g} {broken:11}", flush=True)
        mark = "x" if broken else None
        running = loss if broken else np.convolve(loss, np.ones(window) / window, "valid")
        label = f"{name}: not finite from step {finite.argmin() + 1}" if broken else name
        losses.semilogy(np.where(np.isfinite(running), running, np.nan), color=f"C{k}", label=label,
                        marker=mark)  # fmt: skip
        axes.semilogy(before, color="C3", linewidth=1, marker=mark, label="without the clip")
        axes.semilogy(after, color="C2", linewidth=1, marker=mark, label="with it")
        axes.set(title=name, xlabel="training step", ylabel="gradient norm (L2)")
        axes.set(xlim=(-0.05 * steps, 1.05 * steps))
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    losses.axhline(0.5, color="0.5", linestyle=":", label="always 0: 0.5")
    losses.set(title=f"loss (mean of {window} steps)", xlabel="training step")
    losses.set_ylabel("squared error")
    losses.legend(fontsize="small")
    losses.grid(alpha=0.3)
    keep(args.out, "clips_rescue", figure, figures)


if __name__ == "__main__":
    main()
