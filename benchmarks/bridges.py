"""The PyTorch bridge: what a call costs over the NumPy API, and whole models beside torch.nn.

Each thread count has a process of its own. Before a model is timed, its losses and gradients with
both are compared::

    python benchmarks/bridges.py --quick
    python benchmarks/bridges.py --threads 1 --rounds 9
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Call
from machine import facts, in_processes, pin
from peers import positive, thread_counts
from report import duration, facts_lines, table, times, write_report
from timing import interleaved
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkern as rk
import rnnkern.torch as rkt
from rnnkern.inference import TAPE
from rnnkern.torch import calls, operators

# What a call may cost over the NumPy API's, in seconds: forward, and forward and backward.
OVERHEAD = (15e-6, 35e-6)
CALLS = ((1, 1, 16), (1, 1, 128), (8, 20, 32), (32, 50, 128))  # B, T, H


def call(run: Callable[[], Any]) -> Call:
    return Call(run, lambda _: {})


# ---- one call ----------------------------------------------------------------------------------


def numpy_step(layer: Any, x: Any, dy: Any) -> Callable[[], Any]:
    def step() -> None:
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return step


def torch_step(
    call: Any, parameters: list[Any], x: Any, dy: Any, keep: bool = False
) -> Callable[[], Any]:
    def step() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(call(x)[0], dy, retain_graph=keep)

    return step


def without_gradients(module: Any, x: Any) -> Callable[[], Any]:
    def infer() -> None:
        with torch.no_grad():
            module(x)

    return infer


class Nothing(torch.autograd.Function):
    """What PyTorch itself takes for a function of so many tensors; its results are zeros."""

    @staticmethod
    def forward(ctx: Any, results: Any, *tensors: Any) -> Any:
        outputs, ctx.gradients = results
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(map(torch.from_numpy, outputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _ = ctx.saved_tensors
        return None, *map(torch.from_numpy, ctx.gradients)


def function_of(module: Any, x: Any) -> Callable[[Any], Any]:
    """`Nothing` as a module: of its tensors, and called as the bridge calls its function."""
    parameters = list(module.parameters())
    with torch.no_grad():
        y, (h, c) = module(x)
    results = [t.numpy() for t in (y, h, c)], [np.zeros_like(t.detach()) for t in (x, *parameters)]
    apply = super(torch.autograd.Function, Nothing).apply
    return lambda x: apply(results, x, *parameters)


def overhead(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """An LSTM's calls by the NumPy API, by the bridge, and PyTorch's own."""
    rows = []
    for B, T, H in CALLS[:1] if settings["quick"] else CALLS:
        module = rkt.LSTM(H, H)
        theirs = torch.nn.LSTM(H, H)
        theirs.load_state_dict(module.state_dict())
        layer, x = module.as_layer(), torch.randn(T, B, H)
        dy, parameters = torch.randn(T, B, H), list(module.parameters())
        function = function_of(module, x)
        found = interleaved(
            {
                "infer NumPy": call(partial(layer, x.numpy())),
                "infer bridge": call(without_gradients(module, x)),
                "infer PyTorch": call(without_gradients(theirs, x)),
                "forward NumPy": call(partial(layer.forward, x.numpy())),
                "forward bridge": call(partial(module, x)),
                "forward PyTorch": call(partial(theirs, x)),
                "forward function": call(partial(function, x)),
                "train NumPy": call(numpy_step(layer, x.numpy(), dy.numpy())),
                "train bridge": call(torch_step(module, parameters, x, dy)),
                "train PyTorch": call(torch_step(theirs, list(theirs.parameters()), x, dy)),
                "train function": call(torch_step(function, parameters, x, dy)),
            },
            settings["rounds"],
            settings["turn"],
        )
        rows.append({"case": f"LSTM {B},{T},{H}", "times": found})
    return rows


def parts(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The smallest call again, from the core outward: each level contains the one before."""
    B, T, H = CALLS[0]
    module, x = rkt.LSTM(H, H), torch.randn(T, B, H)
    layer, dy, parameters = module.as_layer(), torch.randn(T, B, H), tuple(module.parameters())
    setup = calls.Setup(module._descriptions[torch.float32])
    arrays, stack = calls.Arrays(), calls.layer_of(setup.layer).stack
    params = arrays.of(module._names, parameters)
    own = setup, calls.NO_INTEGERS, arrays, 0
    forward = partial(
        *(stack.forward, params, x.numpy(), None, None, None, None, False, TAPE, False, 0),
        (0.0, [0], 0, 0, False),
    )
    run = partial(calls.run_forward, setup, calls.NO_INTEGERS, params, x, (), True)
    (y, *_), tape = run()
    saved, dys = (tape, y, x, *parameters), (dy, None, None)
    core = forward()[2]
    back = partial(stack.backward, params, core, dy.numpy(), None, setup.clip, False, 0.0)
    kept = module(x)[0]
    levels = {
        "forward: NumPy API": partial(layer.forward, x.numpy()),
        "forward: the core": forward,
        "forward: tensors as arrays, results as tensors, the tape": run,
        "forward: addresses and layouts of the parameters": partial(
            operators.called_on, own, x, parameters
        ),
        "forward: autograd's function": partial(operators.apply, own, x, *parameters),
        "forward: checks of the call": partial(module.forward, x),
        "forward: the module": partial(module, x),
        "backward: NumPy API": partial(layer.backward, layer.forward(x.numpy())[2], dy.numpy()),
        "backward: the core": back,
        "backward: tensors as arrays, results as tensors": partial(
            *(calls.run_backward, setup, calls.NO_INTEGERS, params, x, (), tape, y, dys)
        ),
        "backward: addresses and layouts of the parameters": partial(
            operators.gradients_of, own, saved, dys
        ),
        "backward: autograd": torch_step(lambda _: [kept], list(parameters), x, dy, True),
    }
    found = interleaved(
        {name: call(level) for name, level in levels.items()}, settings["rounds"], settings["turn"]
    )
    return [{"case": name, "times": {"bridge": found[name]}} for name in levels]


# ---- whole models ------------------------------------------------------------------------------


class Tagger(torch.nn.Module):
    """A bidirectional LSTM of two layers, a tag for each token; rows of full length."""

    def __init__(self, H: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(500, H)
        self.rnn = torch.nn.LSTM(H, H, 2, bidirectional=True)
        self.head = torch.nn.Linear(2 * H, 12)

    def forward(self, tokens: Any, lengths: Any, targets: Any) -> Any:
        logits = self.head(self.rnn(self.embed(tokens))[0])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Classifier(torch.nn.Module):
    """A GRU whose last state says the class; ragged rows, packed as PyTorch has it."""

    def __init__(self, H: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(500, H)
        self.rnn = torch.nn.GRU(H, H)
        self.head = torch.nn.Linear(H, 12)

    def last(self, x: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, h = self.rnn(packed)
        return pad_packed_sequence(y)[0].mean(0) + h[0]

    def forward(self, tokens: Any, lengths: Any, targets: Any) -> Any:
        logits = self.head(self.last(self.embed(tokens), lengths))
        return torch.nn.functional.cross_entropy(logits, targets[0])


class WithLengths(Classifier):
    """The same, and the bridge gets lengths instead of a PackedSequence."""

    def last(self, x: Any, lengths: Any) -> Any:
        if isinstance(self.rnn, torch.nn.GRU):
            return super().last(x, lengths)
        y, h = self.rnn(x, lengths=lengths)
        return y[: int(lengths.max())].mean(0) + h[0]


MODELS = {"tagger": Tagger, "ragged, packed": Classifier, "ragged, lengths": WithLengths}
SIZES = ((32, 50, 64), (32, 50, 128))  # B, T, H


def training_step(model: Any, batch: Any) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> Any:
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        return loss

    return step


def gradients(model: Any, batch: Any) -> list[Any]:
    model.zero_grad()
    loss = model(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def models(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A training step, the optimizer's included, with torch.nn and accelerated."""
    rows = []
    for B, T, H in ((4, 10, 16),) if settings["quick"] else SIZES:
        for name, made in MODELS.items():
            torch.manual_seed(0)
            theirs = made(H)
            ours = copy.deepcopy(theirs)
            rkt.accelerate(ours)
            lengths = torch.randint(1, T + 1, (B,))
            lengths[0] = T
            batch = torch.randint(500, (T, B)), lengths, torch.randint(12, (T, B))
            pairs = zip(gradients(ours, batch), gradients(theirs, batch), strict=True)
            for a, b in pairs:
                # float32 sums in another order: the largest seen was 2e-6 of the largest value
                if (a - b).abs().max() > 1e-4 * b.abs().max():
                    sys.exit(f"bridges: {name}: other gradients than torch.nn's")
            found = interleaved(
                {
                    "bridge": call(training_step(ours, batch)),
                    "PyTorch": call(training_step(theirs, batch)),
                },
                settings["rounds"],
                settings["turn"],
            )
            rows.append({"case": f"{name} {B},{T},{H}", "times": found})
    return rows


# ---- beside PyTorch's threads ------------------------------------------------------------------


def spinning(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A call of the core alone, and right behind a product that uses PyTorch's threads."""
    big = torch.randn(256, 256)
    layer = rk.LSTM(128, 128, seed=0)
    x = np.random.default_rng(0).normal(size=(50, 32, 128)).astype(np.float32)
    one = rk.LSTM(256, 256, seed=0)
    row = np.random.default_rng(0).normal(size=(100, 1, 256)).astype(np.float32)
    rows = []
    for name, run in (
        ("LSTM 32,50,128", partial(layer, x)),
        ("LSTM 1,100,256", partial(one, row)),
    ):

        def both(run: Callable[[], Any] = run) -> None:
            torch.mm(big, big)
            run()

        found = interleaved(
            {"alone": call(run), "product": call(partial(torch.mm, big, big)), "both": call(both)},
            settings["rounds"],
            settings["turn"],
        )
        rows.append({"case": name, "times": found})
    return rows


SECTIONS = {"overhead": overhead, "parts": parts, "models": models, "spinning": spinning}


# ---- the report --------------------------------------------------------------------------------


def overhead_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        t = {name: found["median"] for name, found in row["times"].items()}
        goals = {"infer": None, "forward": OVERHEAD[0], "train": OVERHEAD[1]}
        for mode, most in goals.items():
            own, bridge, theirs = (t[f"{mode} {of}"] for of in ("NumPy", "bridge", "PyTorch"))
            goal = (
                ["-", "-"]
                if most is None
                else [
                    f"<= {duration(most)}",
                    "yes" if bridge - own <= most else "**no**",
                ]
            )
            shown = [duration(s) for s in (own, bridge, theirs)]
            over = f"{(bridge - own) * 1e6:+.1f} us"
            function = duration(t[f"{mode} function"]) if most else "-"
            shown += [over, function, *goal, times(theirs / bridge)]
            lines.append([f"{mode} {row['case']}", *shown])
    head = ["call", "NumPy API", "bridge", "PyTorch", "over NumPy", "an empty function"]
    return table([*head, "target", "met", "PyTorch / bridge"], lines)


def parts_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines, before = [], 0.0
    for row in rows:
        took = row["times"]["bridge"]["median"]
        begins = row["case"].endswith(("NumPy API", "the core"))
        added = "-" if begins else f"{(took - before) * 1e6:+.1f} us"
        lines.append([row["case"], duration(took), added])
        before = took
    return table(["up to this part", "time", "added"], lines)


def models_lines(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        own, theirs = (row["times"][name]["median"] for name in ("bridge", "PyTorch"))
        found.append([row["case"], duration(own), duration(theirs), times(theirs / own)])
    return table(["training step of a model", "bridge", "torch.nn", "torch.nn / bridge"], found)


def spinning_lines(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        alone, product, both = (row["times"][n]["median"] for n in ("alone", "product", "both"))
        behind = both - product
        shown = [duration(s) for s in (alone, behind)]
        found.append([row["case"], *shown, f"{behind / alone:.2f}"])
    return table(["inference", "alone", "behind a product of PyTorch's", "ratio"], found)


LINES = {
    "overhead": overhead_lines,
    "parts": parts_lines,
    "models": models_lines,
    "spinning": spinning_lines,
}
TITLES = {
    "overhead": "One call of an LSTM",
    "parts": "The smallest call, from the core outward",
    "models": "Training steps of whole models, Adam included",
    "spinning": "The NumPy API behind PyTorch's threads, which spin",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, two rounds")
    add("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="these sections")
    add("--threads", type=thread_counts, default=[1, 2], help="by commas (1,2)")
    add("--rounds", type=positive(int), help="turns of each contender (5)")
    add("--turn", type=positive(float), default=0.03, help="seconds of calls a turn (0.03)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    add("--process", nargs=2, metavar=("N", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


def main() -> None:
    options = arguments()
    settings = {name: getattr(options, name) for name in ("rounds", "turn", "quick", "only")}
    if options.process:
        threads, result = int(options.process[0]), Path(options.process[1])
        pin(threads)
        torch.set_num_threads(threads)
        found = {name: SECTIONS[name](settings) for name in options.only}
        result.write_text(json.dumps(found))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results = {**facts(), "versions": {"PyTorch": torch.__version__}, "missing": {}, "runs": {}}
    results["settings"] = settings
    lines = ["# The PyTorch bridge", "", *facts_lines(results)]
    for threads, found in in_processes(__file__, options.threads):
        results["runs"][threads] = found
        for name, rows in found.items():
            lines += [f"## {TITLES[name]}, {threads} thread{'s' * (threads > 1)}", ""]
            lines += LINES[name](rows)
    write_report(options.out, "bridges", results, lines)


if __name__ == "__main__":
    main()
