"""A training loop in NumPy, next to the same in the Python reference and in PyTorch.

A GRU learns the characters of Python's own source. All three start from the same parameters and
read the same text, on one thread each; they take epochs in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from figure import keep, options
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import rnnkern as rk
from rnnkern import reference
from rnnkern.cli.text import stdlib_texts

try:
    import torch
except ImportError:
    torch = None


# The loop, as docs/answers.md shows it.
def train(text, T=64, B=32, E=32, H=128, lr=4e-3):
    characters, ids = np.unique(list(text), return_inverse=True)
    lanes = ids[: len(ids) // B * B].reshape(B, -1).T  # B parts of the text, side by side
    embedding = rk.Embedding(len(characters), E, seed=0)
    gru = rk.GRU(E, H, seed=1)
    output = rk.Linear(H, len(characters), seed=2)
    opt = rk.Adam([embedding, gru, output], lr)
    while True:
        state = None
        for start in range(0, len(lanes) - T, T):
            x, target = lanes[start : start + T], lanes[start + 1 : start + T + 1]
            vectors, embedding_tape = embedding.forward(x)
            y, state, gru_tape = gru.forward(vectors, state)
            logits, output_tape = output.forward(y)
            loss, d_logits = rk.cross_entropy(logits, target)
            of_output = output.backward(output_tape, d_logits)
            of_gru = gru.backward(gru_tape, of_output.x)
            of_embedding = embedding.backward(embedding_tape, of_gru.x)
            opt.step([of_embedding, of_gru, of_output], max_norm=1.0)
            yield loss  # in nats


# The end of the loop.
def windows(text: str, T: int = 64, B: int = 32) -> list[tuple[np.ndarray, np.ndarray]]:
    """The inputs and targets that `train` goes through in an epoch."""
    ids = np.unique(list(text), return_inverse=True)[1]
    lanes = ids[: len(ids) // B * B].reshape(B, -1).T
    starts = range(0, len(lanes) - T, T)
    return [(lanes[s : s + T], lanes[s + 1 : s + T + 1]) for s in starts]


def first_parameters(V: int, E: int = 32, H: int = 128) -> list[dict[str, np.ndarray]]:
    """What `train` starts from."""
    modules = rk.Embedding(V, E, seed=0), rk.GRU(E, H, seed=1), rk.Linear(H, V, seed=2)
    return [module.params for module in modules]


def train_in_reference(text: str, lr: float = 4e-3) -> Iterator[float]:
    """The same in src/rnnkern/reference: float64 NumPy, one step of time after the other."""
    table, gru, output = (
        {name: array.astype(np.float64) for name, array in params.items()}
        for params in first_parameters(len(set(text)))
    )
    everything = (table, gru, output)
    moments = [{n: (np.zeros(a.shape),) * 2 for n, a in params.items()} for params in everything]
    config = reference.Config("gru", 32, 128)
    step = 0
    while True:
        state = None
        for x, target in windows(text):
            y, state, tape = reference.forward(config, gru, table["weight"][x], state)
            logits = y @ output["weight"].T + output["bias"]
            losses, dz, total = reference.cross_entropy(logits, target)
            dz = (dz / total).reshape(-1, logits.shape[-1])
            of_output = {"weight": dz.T @ y.reshape(len(dz), -1), "bias": dz.sum(0)}
            of_gru = reference.backward(config, gru, tape, (dz @ output["weight"]).reshape(y.shape))
            of_table = {"weight": np.zeros(table["weight"].shape)}
            np.add.at(of_table["weight"], x, of_gru.x)
            grads = (of_table, of_gru.params, of_output)
            norm = reference.joint_norm(g for some in grads for g in some.values())
            step += 1
            for params, grad, kept in zip(everything, grads, moments, strict=True):
                for name, g in grad.items():
                    g = g * reference.clip_factor(norm, 1.0)
                    params[name], *kept[name] = reference.adam(
                        params[name], g, *kept[name], step, lr=lr
                    )
            yield losses.sum() / total


def train_in_pytorch(text: str, lr: float = 4e-3) -> Iterator[float]:
    """The same in PyTorch."""
    V = len(set(text))
    modules = torch.nn.Embedding(V, 32), torch.nn.GRU(32, 128), torch.nn.Linear(128, V)
    embedding, gru, output = modules
    with torch.no_grad():
        for module, params in zip(modules, first_parameters(V), strict=True):
            for name, array in params.items():
                getattr(module, name).copy_(torch.from_numpy(array))
    parameters = [p for module in modules for p in module.parameters()]
    opt = torch.optim.Adam(parameters, lr)
    data = [(torch.from_numpy(x), torch.from_numpy(target)) for x, target in windows(text)]
    while True:
        state = None
        for x, target in data:
            y, state = gru(embedding(x), state)
            state = state.detach()
            loss = torch.nn.functional.cross_entropy(output(y).flatten(0, 1), target.flatten())
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            opt.step()
            yield loss.item()


def picture(bits: dict[str, np.ndarray], best: dict[str, float], epochs: int) -> Figure:
    """The time of an epoch; rnnkern's loss, and how far the others' are from it."""
    colors = {"rnnkern": "C0", "PyTorch": "C1", "Python reference": "0.4"}
    figure = Figure(figsize=(10, 4.4))
    times, curves = figure.subfigures(1, 2, width_ratios=(1, 1.3))
    left = times.subplots()
    bars = left.barh(list(best), list(best.values()), color=[colors[name] for name in best])
    left.bar_label(bars, [f" {s:.2f} s" for s in best.values()])
    left.set(title=f"Time of an epoch (best of {epochs})", xlabel="seconds")
    left.margins(x=0.25)
    left.grid(axis="x")
    left.invert_yaxis()
    loss, distance = curves.subplots(2, 1, sharex=True, height_ratios=(1.3, 1))
    own = bits["rnnkern"]
    steps = len(own) // epochs
    width = max(1, steps // 8)  # of the running mean
    mean = np.convolve(own, np.full(width, 1 / width), "valid")
    loss.plot((np.arange(len(mean)) + width) / steps, mean, label="rnnkern")
    loss.set(title=f"Training loss (mean of {width} steps)", ylabel="bits per character")
    loss.legend()
    for name, values in bits.items():
        if name != "rnnkern":
            at = np.arange(1, len(own) + 1) / steps
            distance.semilogy(
                at, np.abs(values - own), ".", markersize=4, color=colors[name], label=name
            )
    distance.set(title="Distance of each step's loss from rnnkern's", xlabel="epochs")
    distance.set_ylabel("bits")
    distance.legend(loc="upper left", markerscale=2, ncols=2)
    for axes in (loss, distance):
        axes.grid()
    return figure


def main() -> None:
    given = options(__doc__)
    epochs, characters = (2, 30_000) if given.quick else (5, 250_000)
    text = "".join(stdlib_texts(characters))[:characters]
    steps = len(windows(text))
    ways: dict[str, Callable[[str], Iterator[float]]] = {"rnnkern": train}
    if torch is None:
        print("PyTorch is not installed: without it in the table and the picture")
    else:
        torch.set_num_threads(1)
        ways["PyTorch"] = train_in_pytorch
    ways["Python reference"] = train_in_reference
    rk.set_num_threads(1)
    losses: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    print(f"{characters} characters, {len(set(text))} different, {steps} steps an epoch")
    print(f"{'epoch':>5}  {'':16}  {'s':>6}  bits per character")
    with threadpool_limits(1, user_api="blas"):
        running = {name: train_by(text) for name, train_by in ways.items()}
        for loops in running.values():
            next(loops)  # what is made and learned once
        running = {name: train_by(text) for name, train_by in ways.items()}
        for epoch in range(1, epochs + 1):
            for name, loop in running.items():
                begin = time.perf_counter()
                losses[name] += islice(loop, steps)
                seconds[name].append(time.perf_counter() - begin)
                bits = np.mean(losses[name][-steps:]) / np.log(2)
                print(f"{epoch:5}  {name:16}  {seconds[name][-1]:6.2f}  {bits:.4f}", flush=True)

    bits = {name: np.array(values) / np.log(2) for name, values in losses.items()}
    best = {name: min(values) for name, values in seconds.items()}
    apart = {
        name: float(np.abs(values - bits["rnnkern"]).max())
        for name, values in bits.items()
        if name != "rnnkern"
    }
    print(f"largest distance of a step's loss from rnnkern's, in bits: {apart}")
    figures = {
        "characters": characters,
        "different_characters": len(set(text)),
        "steps_an_epoch": steps,
        "seconds_of_each_epoch": seconds,
        "best_seconds": best,
        "characters_a_second": {name: steps * 64 * 32 / s for name, s in best.items()},
        "bits_of_the_last_epoch": {name: values[-steps:].mean() for name, values in bits.items()},
        "largest_distance_of_a_steps_bits": apart,
        "instruction_set": rk.info()["isa"],
        "torch": None if torch is None else torch.__version__,
    }
    keep(given.out, "training_loop", picture(bits, best, epochs), figures)


if __name__ == "__main__":
    main()
