"""The table of ``rnnkern bench``: the kernels against the float64 reference and plain Python."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add, mul
from statistics import median
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import reference
from rnnkern.layers import LAYERS

Vector = list[float]
Matrix = list[Vector]

QUICK = [(32, 1, 32, 64), (64, 8, 32, 64)]  # (T, B, I, H)
FULL = [(100, 1, 64, 128), (64, 32, 128, 256), (64, 32, 256, 512)]
PLAIN = (20, 1, 16, 32)
ROUNDS = 3  # at least


@dataclass(frozen=True)
class Row:
    """One line of the table: medians in milliseconds, ours in float32."""

    cell: str
    work: str  # "forward" or "training", which is forward and backward
    sizes: tuple[int, int, int, int]  # (T, B, I, H)
    against: str
    ours: float
    theirs: float


class PlainLSTM:
    """An LSTM layer in lists and floats, one sequence at a time, as a first program has it.

    Parameters
    ----------
    params : dict of str to lists
        ``weight_ih_l0`` (4H, I), ``weight_hh_l0`` (4H, H), ``bias_ih_l0`` and ``bias_hh_l0``
        (4H,), gates in the order i, f, g, o.

    Examples
    --------
    >>> from rnnkern.cli.bench import PlainLSTM
    >>> zeros = {"weight_ih_l0": [[0.0]] * 4, "weight_hh_l0": [[0.0]] * 4}
    >>> plain = PlainLSTM(zeros | {"bias_ih_l0": [0.0] * 4, "bias_hh_l0": [9.0] * 4})
    >>> [round(h, 3) for (h,) in plain.forward([[1.0], [1.0]])]
    [0.761, 0.964]
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self.W: Matrix = params["weight_ih_l0"]
        self.U: Matrix = params["weight_hh_l0"]
        self.b: Vector = list(map(add, params["bias_ih_l0"], params["bias_hh_l0"]))
        self.H = len(self.b) // 4

    def forward(self, x: Matrix) -> Matrix:
        """Return h (T, H) of x (T, I), from a state of zeros."""
        H = self.H
        h, c = [0.0] * H, [0.0] * H
        self.h, self.c, self.gates = [h], [c], []
        for x_t in x:
            a = [
                bias + sum(map(mul, w, x_t)) + sum(map(mul, u, h))
                for bias, w, u in zip(self.b, self.W, self.U, strict=True)
            ]
            i, f, o = ([1 / (1 + math.exp(-v)) for v in a[k * H : k * H + H]] for k in (0, 1, 3))
            g = [math.tanh(v) for v in a[2 * H : 3 * H]]
            c = [f[j] * c[j] + i[j] * g[j] for j in range(H)]
            h = [o[j] * math.tanh(c[j]) for j in range(H)]
            self.h.append(h)
            self.c.append(c)
            self.gates.append((i, f, g, o))
        return self.h[1:]

    def backward(self, x: Matrix, dy: Matrix) -> tuple[Matrix, Matrix, Vector]:
        """Return dW (4H, I), dU (4H, H) and db (4H,) of the last `forward`, for dy (T, H)."""
        H = self.H
        dW = [[0.0] * len(x[0]) for _ in self.W]
        dU = [[0.0] * H for _ in self.U]
        db = [0.0] * (4 * H)
        dh, dc = [0.0] * H, [0.0] * H
        for t in reversed(range(len(x))):
            i, f, g, o = self.gates[t]
            h, c = self.h[t], self.c[t]  # the state before step t
            tanh_c = [math.tanh(v) for v in self.c[t + 1]]
            dh = [dh[j] + dy[t][j] for j in range(H)]
            dc = [dc[j] + dh[j] * o[j] * (1 - tanh_c[j] ** 2) for j in range(H)]
            da = (
                [dc[j] * g[j] * i[j] * (1 - i[j]) for j in range(H)]
                + [dc[j] * c[j] * f[j] * (1 - f[j]) for j in range(H)]
                + [dc[j] * i[j] * (1 - g[j] ** 2) for j in range(H)]
                + [dh[j] * tanh_c[j] * o[j] * (1 - o[j]) for j in range(H)]
            )
            for k, d in enumerate(da):
                dW[k] = [v + d * p for v, p in zip(dW[k], x[t], strict=True)]
                dU[k] = [v + d * p for v, p in zip(dU[k], h, strict=True)]
                db[k] += d
            dh = [sum(map(mul, da, column)) for column in zip(*self.U, strict=True)]
            dc = [dc[j] * f[j] for j in range(H)]
        return dW, dU, db


def run(quick: bool = False) -> list[Row]:
    """Measure all rows of the table.

    Parameters
    ----------
    quick : bool
        Small sizes and few rounds, under 15 s.

    Returns
    -------
    list of Row
    """
    seconds = 0.2 if quick else 2.0
    rows: list[Row] = []
    for name in LAYERS:
        for sizes in QUICK if quick else FULL:
            rows += _against_numpy(name, sizes, seconds)
    return rows + _against_python(PLAIN, seconds)


def show(rows: Sequence[Row]) -> None:
    """Print `rows` as a table; with lines around it where rich is installed."""
    head = ["cell", "work", "T x B x I x H", "rnnkern ms", "against", "ms", "ratio"]
    body = []
    for r in rows:
        sizes, ratio = " x ".join(map(str, r.sizes)), f"{r.theirs / r.ours:.1f}"
        body.append([r.cell, r.work, sizes, f"{r.ours:.3f}", r.against, f"{r.theirs:.3f}", ratio])
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        for line in (head, *body):
            print("  ".join(f"{text:{w}}" for text, w in zip(line, widths, strict=True)).rstrip())
        return
    table = Table()
    for name in head:
        table.add_column(name, justify="right" if name in head[3::2] + head[6:] else "left")
    for line in body:
        table.add_row(*line)
    Console(width=100).print(table)


def _against_numpy(name: str, sizes: tuple[int, int, int, int], seconds: float) -> list[Row]:
    steps, batch, inputs, hidden = sizes
    kind = LAYERS[name](1, 1, seed=0)._kind
    if reference.CELLS[kind].inputs_are_units:
        inputs = hidden
    sizes = (steps, batch, inputs, hidden)
    layer = LAYERS[name](inputs, hidden, seed=0)
    config = reference.Config(kind, inputs, hidden)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((steps, batch, inputs), np.float32)
    dy = generator.standard_normal((steps, batch, hidden), np.float32)
    params = {name: p.astype(np.float64) for name, p in layer.params.items()}
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)

    def ours() -> None:
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    def theirs() -> None:
        _, _, tape = reference.forward(config, params, x64)
        reference.backward(config, params, tape, dy64)

    forward = _medians(lambda: layer(x), lambda: reference.forward(config, params, x64), seconds)
    training = _medians(ours, theirs, seconds)
    return [
        Row(kind, "forward", sizes, "NumPy float64", *forward),
        Row(kind, "training", sizes, "NumPy float64", *training),
    ]


def _against_python(sizes: tuple[int, int, int, int], seconds: float) -> list[Row]:
    steps, batch, inputs, hidden = sizes
    layer = rk.LSTM(inputs, hidden, seed=0)
    plain = PlainLSTM({name: p.tolist() for name, p in layer.params.items()})
    generator = np.random.default_rng(0)
    x = generator.standard_normal((steps, batch, inputs), np.float32)
    dy = generator.standard_normal((steps, batch, hidden), np.float32)
    x_list, dy_list = x[:, 0].tolist(), dy[:, 0].tolist()

    def ours() -> None:
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    def theirs() -> None:
        plain.forward(x_list)
        plain.backward(x_list, dy_list)

    forward = _medians(lambda: layer(x), lambda: plain.forward(x_list), seconds)
    training = _medians(ours, theirs, seconds)
    return [
        Row("lstm", "forward", sizes, "Python lists", *forward),
        Row("lstm", "training", sizes, "Python lists", *training),
    ]


def _medians(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """Median milliseconds of both, run in turn so that the machine's moods hit both alike."""
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + seconds
    while len(times[0]) < ROUNDS or time.perf_counter() < stop:
        for call, spent in zip((ours, theirs), times, strict=True):
            begin = time.perf_counter()
            call()
            spent.append(1e3 * (time.perf_counter() - begin))
    return median(times[0]), median(times[1])
