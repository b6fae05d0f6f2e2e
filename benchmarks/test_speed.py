"""Forward, training and single steps of each cell, with the Python reference beside them.

Run by ``pytest benchmarks``; groups put what compares side by side. No test fails on a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import reference

KINDS = tuple(reference.CELLS)
SIZES = [(1, 100, 64), (32, 50, 128), (16, 50, 256)]  # B, T, H = I


def options_of(kind: str, size: int) -> dict[str, Any]:
    """The cell's options: clips at 3, as ELMo's, a projection to half as many outputs, noise."""
    cell = reference.CELLS[kind]
    projection = {"proj_size": size // 2} if cell.projects else {}
    noise = {name: 0.1 for name in ("zoneout", "recurrent_dropout") if name in cell.options}
    clips = {name: 3.0 for name in cell.options if name.endswith("clip")}
    heads = {"heads": 4} if "heads" in cell.options else {}
    return {**clips, **projection, **noise, **heads}


def layer_of(kind: str, size: int, dtype: Any = np.float32) -> Any:
    """A layer of this kind, its class and options found from the parts of its name."""
    layer = _layer_of(kind, size, dtype)
    if layer._kind != kind:
        raise ValueError(f"kind: expected one that layer_of can make, got {kind}")
    return layer


def _layer_of(kind: str, size: int, dtype: Any) -> Any:
    options = {"dtype": dtype, "seed": 0, **options_of(kind, size)}
    for name in ("haste", "fastrnns"):
        if name in kind:
            options["layer_norm"] = name
    if kind.startswith(("lstm", "cifg")):
        own = {"peephole": kind == "lstm_peephole", "input_forget": kind.startswith("cifg")}
        return rk.LSTM(size, size, **own, **options)
    if kind.startswith("gru"):
        return rk.GRU(size, size, reset_after="before" not in kind, **options)
    if kind.startswith("min"):
        candidate = kind.split("_")[2] if kind.count("_") == 2 else "positive"
        cls = rk.MinGRU if kind.startswith("min_gru") else rk.MinLSTM
        return cls(size, size, candidate=candidate, **options)
    if kind == "rg_lru":
        return rk.RGLRU(size, size, **options)
    if kind == "slstm":
        return rk.SLSTM(size, size, **options)
    if kind.startswith("ind_rnn"):
        return rk.IndRNN(size, size, nonlinearity=kind.removeprefix("ind_rnn_"), **options)
    nonlinearity = "relu" if "relu" in kind else "tanh"
    return rk.RNN(size, size, nonlinearity=nonlinearity, **options)


def sequence(T: int, B: int, size: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).normal(size=(T, B, size)).astype(dtype)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Any:
    with rk.num_threads(request.param):
        yield request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "T", "H"), SIZES)
def test_forward(benchmark: Any, threads: int, kind: str, B: int, T: int, H: int) -> None:
    layer, x = layer_of(kind, H), sequence(T, B, H)
    benchmark.group = f"forward {kind} B={B} T={T} H={H}"
    y, _ = benchmark(layer, x)
    assert y.shape == (T, B, layer.output_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "T", "H"), SIZES)
def test_training(benchmark: Any, threads: int, kind: str, B: int, T: int, H: int) -> None:
    layer, x = layer_of(kind, H), sequence(T, B, H)

    def step() -> Any:
        y, _, tape = layer.forward(x)
        return layer.backward(tape, y)

    benchmark.group = f"training {kind} B={B} T={T} H={H}"
    assert benchmark(step).finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("H", [16, 64, 256])
def test_step(benchmark: Any, kind: str, H: int) -> None:
    layer = layer_of(kind, H)
    x, out = sequence(1, 1, H)[0], np.empty((1, layer.output_size), np.float32)
    stream = layer.stream()
    benchmark.group = f"step {kind} H={H}"
    assert benchmark(stream.step, x, out) is out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", ["normal", "subnormal"])
def test_subnormal_inputs(benchmark: Any, inputs: str, kind: str) -> None:
    """Numbers below 1.2e-38 are slow in most arithmetic; the kernels take them as zeros."""
    B, T, H = 16, 50, 128
    scale = np.float32({"normal": 1.0, "subnormal": 1e-40}[inputs])
    layer, x = layer_of(kind, H), sequence(T, B, H) * scale
    P = layer.output_size
    dy, h, c = sequence(T, B, P) * scale, sequence(1, B, P) * scale, sequence(1, B, H) * scale
    states = {"h": h, "c": c, "n": np.abs(c), "m": c}
    names = [state.name for state in reference.CELLS[kind].states]
    start = tuple(states[name] for name in names) if len(names) > 1 else h

    def step() -> Any:
        _, _, tape = layer.forward(x, start)
        return layer.backward(tape, dy)

    benchmark.group = f"inputs, training {kind} B={B} T={T} H={H}"
    assert benchmark(step).finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["forward", "training"])
@pytest.mark.parametrize("who", ["kernels", "reference"])
def test_against_reference(benchmark: Any, who: str, what: str, kind: str) -> None:
    B, T, H = 16, 50, 64
    layer, x = layer_of(kind, H, np.float64), sequence(T, B, H, np.float64)
    config = reference.Config(kind, H, H, **options_of(kind, H))

    def kernels() -> Any:
        y, _, tape = layer.forward(x)
        return layer.backward(tape, y) if what == "training" else y

    def formulas() -> Any:
        y, _, tape = reference.forward(config, layer.params, x)
        return reference.backward(config, layer.params, tape, y) if what == "training" else y

    benchmark.group = f"{what} {kind} float64 B={B} T={T} H={H}"
    benchmark(kernels if who == "kernels" else formulas)


@pytest.mark.parametrize(
    "clip",
    [
        None,
        rk.Clip(step_value=1.0),
        rk.Clip(step_norm=1.0),
        rk.Clip(value=1.0),
        rk.Clip(max_norm=1e9),
    ],
    ids=["none", "step_value", "step_norm", "value", "max_norm"],
)
def test_clips(benchmark: Any, clip: rk.Clip | None) -> None:
    layer, x = layer_of("lstm", 128), sequence(50, 32, 128)
    y, _, tape = layer.forward(x)
    benchmark.group = "clips, backward lstm B=32 T=50 H=128"
    assert benchmark(layer.backward, tape, y, clip=clip).finite


@pytest.mark.parametrize("optimizer", [rk.SGD, rk.RMSprop, rk.Adam, rk.AdamW])
def test_optimizers(benchmark: Any, optimizer: Any) -> None:
    params = {"w": np.zeros((1024, 1024), np.float32)}
    grads = {"w": np.ones((1024, 1024), np.float32)}
    opt = optimizer(params, lr=1e-3)
    benchmark.group = "optimizers, 1M parameters"
    assert benchmark(opt.step, grads, max_norm=1.0).applied
