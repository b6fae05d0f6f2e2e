"""The eigenvalue statement, shown: back in time, gradients follow the largest eigenvalue's powers.

W_hh is scaled so that its largest eigenvalue modulus is below, at and above one; the loss touches
the last of 200 steps only, and the norm of dL/dh_t is read step by step (Pascanu et al. 2013).
"""

import numpy as np
from figure import keep, options
from matplotlib.figure import Figure

import rnnkern as rk

H = 64
RADII = (0.9, 1.0, 1.1)


def network(nonlinearity, radius):
    """A vanilla RNN whose recurrent matrix has this spectral radius."""
    rnn = rk.RNN(2, H, nonlinearity=nonlinearity, init="xavier", dtype=np.float64, seed=0)
    if nonlinearity == "relu":  # nothing negative anywhere: relu does nothing, and all is linear
        for weights in rnn.params.values():
            np.abs(weights, out=weights)
    rnn.params["weight_hh_l0"] *= radius / rk.diagnose.spectrum(rnn)[0].radius
    return rnn


def main():
    args = options(__doc__)
    T = 40 if args.quick else 200
    rng = np.random.default_rng(0)
    positive, normal = rng.random((T, 8, 2)), rng.normal(size=(T, 8, 2))
    cases = {
        "linear: relu, all above zero": ("relu", positive),
        "tanh, tiny inputs (deviation 0.001)": ("tanh", 1e-3 * normal),
        "tanh, inputs of deviation 1": ("tanh", normal),
    }
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    figures = {}
    back = np.arange(T)
    print("radius  per step  by Lyapunov  the report")
    for axes, (title, (nonlinearity, x)) in zip(panels, cases.items(), strict=False):
        print(title)
        for k, radius in enumerate(RADII):
            rnn = network(nonlinearity, radius)
            _, h, tape = rnn.forward(x)
            grads = rnn.backward(tape, dstate=np.random.default_rng(1).normal(size=h.shape),
                                 trace=True)  # fmt: skip
            norm = np.median(grads.trace.dh[0], axis=1)[::-1]
            report = rk.diagnose.report(rnn, tape, grads)
            exponent = np.mean(rk.diagnose.lyapunov(rnn, x, settle=T // 10))
            row = {"per step": report.flows[0].rate, "by Lyapunov": np.exp(exponent)}
            figures[f"{title}: radius {radius}"] = row
            print(f"{radius:6.1f} {row['per step']:9.4f} {row['by Lyapunov']:12.4f}  ", end="")
            print(str(report).splitlines()[0])
            axes.semilogy(back, norm, color=f"C{k}", label=f"measured, radius {radius}")
            powers = norm[0] * radius**back
            axes.semilogy(back, powers, ":", color=f"C{k}", linewidth=2.5, alpha=0.6)
        axes.plot([], [], ":", color="0.4", label="the radius to that power")
        axes.set(title=title, xlabel="steps back from the loss", ylabel="norm of dL/dh (L2)")
        axes.grid()
        axes.legend(fontsize="small")
    rk.diagnose.plot_spectrum(network("tanh", 1.0), panels[3])
    keep(args.out, "gradient_flow", figure, figures)


if __name__ == "__main__":
    main()
