"""Many short sequences of different lengths: padded, packed into rows, or one call each.

All ways give the same y, to the bit, and sums of the same gradients. The second picture is the
time of a batch whose rows end early, against the share of steps that are real.
"""

import numpy as np
from figure import keep, medians, options
from matplotlib.figure import Figure

import rnnkern as rk

I, H = 32, 64


def padded(layer, sequences, errors, known=True):
    """A row each, as long as the longest; `known`: the layer is told the lengths."""
    lengths = np.array([len(x) for x in sequences])
    x, dy = (np.zeros((lengths.max(), len(lengths), width), np.float32) for width in (I, H))
    for row, (one, error) in enumerate(zip(sequences, errors, strict=True)):
        x[: len(one), row], dy[: len(one), row] = one, error
    told = {"lengths": lengths} if known else {}

    def step():
        y, _, tape = layer.forward(x, **told)
        return y, layer.backward(tape, dy)

    at = [(slice(n), row) for row, n in enumerate(lengths)]
    return step, at, lengths.sum() if known else x.shape[0] * x.shape[1]


def packed(layer, sequences, errors, rows):
    """One behind the other in so many rows; `resets` where one begins."""
    ends = np.zeros(rows, int)
    at = [None] * len(sequences)
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        row = ends.argmin()  # the longest first, each into the emptiest row
        at[i] = (slice(ends[row], ends[row] + len(sequences[i])), row)
        ends[row] += len(sequences[i])
    x, dy = (np.zeros((ends.max(), rows, width), np.float32) for width in (I, H))
    resets = np.zeros(x.shape[:2], bool)
    for (steps, row), one, error in zip(at, sequences, errors, strict=True):
        x[steps, row], dy[steps, row] = one, error
        resets[steps.start, row] = True

    def step():
        y, _, tape = layer.forward(x, lengths=ends, resets=resets)
        return y, layer.backward(tape, dy)

    return step, at, ends.sum()


def one_by_one(layer, sequences, errors):
    """A call each, and the sum of their gradients."""

    def step():
        ys, total = [], None
        for x, dy in zip(sequences, errors, strict=True):
            y, _, tape = layer.forward(x)
            grads = layer.backward(tape, dy)
            ys.append(y)
            total = grads if total is None else total + grads
        return ys, total

    return step, range(len(sequences)), sum(map(len, sequences))


def check(ways):
    """The same y of every sequence, to the bit; the same gradients, but for roundings of sums."""
    wanted = None
    for step, at, _ in ways.values():
        y, grads = step()
        got = [y[i].tobytes() for i in at]
        if wanted is None:
            wanted, want_grads = got, grads.params
        assert got == wanted
        for name, array in grads.params.items():
            want = want_grads[name]
            assert np.abs(array - want).max() <= 1e-4 * np.abs(want).max(), name


def by_share(layer, shares, T, B, seconds):
    """Seconds of a training step whose rows have this share of T x B steps, by share."""
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((T, B, width), np.float32) for width in (I, H))

    def way(lengths):
        def step():
            _, _, tape = layer.forward(x, lengths=lengths)
            layer.backward(tape, dy)

        return step

    ways = {}
    for share in shares:
        least, most = max(0, 2 * share - 1), min(1, 2 * share)  # of T, evenly, in any order
        lengths = rng.permutation(np.rint(np.linspace(least * T, most * T, B)).astype(int))
        ways[lengths.sum() / (T * B)] = way(lengths)
    return medians(ways, seconds)


def main():
    args = options(__doc__)
    count, rows, seconds = (24, 4, 0.5) if args.quick else (256, 32, 15.0)
    rng = np.random.default_rng(0)
    # Most are short: 4 to 400 steps, evenly on a logarithmic scale.
    lengths = np.exp(rng.uniform(np.log(4), np.log(40 if args.quick else 400), count)).astype(int)
    sequences, errors = (
        [rng.standard_normal((n, width), np.float32) for n in lengths] for width in (I, H)
    )
    layer = rk.GRU(I, H, seed=0)
    ways = {
        "one call each": one_by_one(layer, sequences, errors),
        "padded": padded(layer, sequences, errors, known=False),
        "padded, lengths": padded(layer, sequences, errors),
        "packed, resets": packed(layer, sequences, errors, rows),
    }
    check(ways)
    took = medians({name: step for name, (step, _, _) in ways.items()}, seconds)
    real = int(lengths.sum())
    print(f"{count} sequences of {lengths.min()} to {lengths.max()} steps, {real} in all")
    print(f"{'':16} {'computed':>9} {'ms':>8} {'µs a real step':>15}")
    for name, (_, _, computed) in ways.items():
        print(f"{name:16} {computed:9} {took[name] * 1e3:8.2f} {took[name] / real * 1e6:15.3f}")

    shares = (0.1, 0.5, 1.0) if args.quick else np.arange(1, 11) / 10
    T, B = (40, 8) if args.quick else (200, 64)
    line = by_share(layer, shares, T, B, seconds)
    share, ms = np.array(list(line)), np.array(list(line.values())) * 1e3
    slope, start = np.polyfit(share, ms, 1)
    off = float(np.abs(start + slope * share - ms).max())
    print(
        "share of real steps, ms:",
        ", ".join(f"{s:.2f}: {t:.2f}" for s, t in zip(share, ms, strict=True)),
    )
    print(f"line: {start:.2f} ms + {slope:.2f} ms x share; at most {off:.2f} ms off")

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    names, values = list(ways), [took[name] * 1e3 for name in ways]
    bars = left.barh(names, values, color=["0.6", "0.6", "C0", "C1"])
    left.bar_label(bars, [f" {ms:.1f} ms, steps: {ways[name][2]:,}" for name, ms in zip(
        names, values, strict=True)])  # fmt: skip
    left.invert_yaxis()
    left.margins(x=0.6)
    left.set(title=f"{count} sequences of {lengths.min()} to {lengths.max()} steps: {real:,} real")
    left.set_xlabel("milliseconds of a training step (GRU, H = 64)")
    right.plot(100 * share, ms, "o", label="measured")
    ends = np.array([0, 1])
    right.plot(100 * ends, start + slope * ends, "C0", alpha=0.5, label="line of least squares")
    right.set(title=f"rows that end early: T = {T}, B = {B}", xlabel="real steps (%)")
    right.set(ylabel="milliseconds of a training step", ylim=(0, None))
    right.legend()
    right.grid()
    figures = {
        "sequences": count,
        "real steps": real,
        "ways": {
            name: {"steps computed": int(computed), "ms": took[name] * 1e3}
            for name, (_, _, computed) in ways.items()
        },
        "share of real steps": list(share),
        "ms by share": list(ms),
        "line": {"ms at 0": start, "ms from 0 to 1": slope, "largest distance, ms": off},
    }
    keep(args.out, "resets", figure, figures)


if __name__ == "__main__":
    main()
