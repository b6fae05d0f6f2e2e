"""The applications of examples/, trained by rnnkern and by PyTorch, whole loops.

Both start from the same parameters and train on the same batches with the same optimizer and clip.
The losses of the first steps must agree; then the libraries take turns::

    pip install '.[applications]'
    python benchmarks/applications.py --quick                  # checks that everything runs
    python benchmarks/applications.py --only sentiment music
    python benchmarks/applications.py --seeds 3 --only entities  # whole runs: the held-out figures

Data are fetched once, as the examples fetch them. Each thread count has a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import facts, in_processes, pin
from peers import positive, thread_counts
from report import duration, facts_lines, mean, table, times, write_report
from timing import PAUSE_SECONDS

import rnnkern as rk
from rnnkern import _core

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import entities
import forecasting
import music
import reinforcement
import sentiment
import translation
import twins
from run import Training, parser_of


@dataclass(frozen=True)
class Case:
    script: Any  # of examples/
    twin: type[twins.Twin]
    options: tuple[str, ...] = ()


CASES = {
    "sentiment": Case(sentiment, twins.Sentiment),
    "entities": Case(entities, twins.Entities),
    "music": Case(music, twins.MusicVoices),
    "music-roll": Case(music, twins.MusicRoll, ("--model", "roll")),
    "translation": Case(translation, twins.Translation),
    "translation-phonemes": Case(translation, twins.Translation, ("--task", "phonemes")),
    "forecasting": Case(forecasting, twins.Forecasting),
    "reinforcement": Case(reinforcement, twins.Reinforcement),
}
COMPARED_STEPS = 50
# Of losses, relative to the first. Both compute in float32 and add up in other orders, and Adam
# divides by the gradients' size, so that elements of tiny gradients move apart. The largest seen in
# 50 steps was 5e-5. In forecasting, a rate that is 2 % off makes 2e-2, a clip that is 5 % off 3e-3.
TOLERANCE = 1e-3
LEAST_STEPS = 8  # of a turn
SLOW = 1.25  # times as long as the fastest way of PyTorch
MEAN_RATIO, LEAST_RATIO = 2.0, 1.2  # of PyTorch's time to rnnkern's, wanted
FALLING = ("nats a frame", "CRPS", "MAE", "phoneme error rate", "word error rate")


# ---- both libraries ------------------------------------------------------------------------------


class Ours:
    name = "rnnkern"

    def __init__(self, training: Training) -> None:
        self.training = training
        self.next_batch = training.next_batch

    def step(self, batch: Any) -> float:
        training = self.training
        loss, grads = training.gradients(batch)
        training.optimizer.step(grads, max_norm=training.max_norm)
        return float(loss)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        parts = [(part, "p" if isinstance(part, rk.Dropout) else "dropout")
                 for part in self.training.model.values()]  # fmt: skip
        before = [(part, name, getattr(part, name, 0.0)) for part, name in parts]
        drops = [each for each in before if each[2] > 0]
        for part, name, _ in drops:
            setattr(part, name, 0.0)
        yield
        for part, name, p in drops:
            setattr(part, name, p)


class Theirs:
    def __init__(self, training: Training, twin: twins.Twin) -> None:
        self.name, self.twin = f"PyTorch, {twin.way}", twin
        self.next_batch = twin.next_batch or training.next_batch
        self.max_norm = training.max_norm
        made = torch.optim.AdamW if twin.weight_decay else torch.optim.Adam
        decay = {id(twin.places[place]): value for place, value in twin.weight_decay.items()}
        groups = [
            {"params": [tensor], "weight_decay": decay.get(id(tensor), 0.0)}
            for tensor in twin.parameters()
            if id(tensor) in decay
        ]
        groups.append({"params": [p for p in twin.parameters() if id(p) not in decay]})
        given = {"weight_decay": 0.0, "fused": True}
        self.optimizer = made(groups, **given)
        schedule, rate = training.optimizer.schedule, training.optimizer.lr
        self.rate = schedule or (lambda step: rate)
        self.count = 0

    def step(self, batch: Any) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.count)
        self.count += 1
        self.optimizer.zero_grad()
        loss = self.twin.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), self.max_norm)
        self.optimizer.step()
        return float(loss.item())

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        self.twin.eval()
        yield
        self.twin.train()


def prepared(
    case: Case, quick: bool, seed: int, *options: str
) -> tuple[Training, argparse.Namespace]:
    application = case.script.APPLICATION
    given = [*case.options, *options, "--seed", str(seed), *["--quick"] * quick]
    args = parser_of(application, predicts=False).parse_args(given)
    return application.prepare(args), args


def twin_of(case: Case, training: Training, args: argparse.Namespace, way: str) -> Theirs:
    more = ()
    if case.twin is twins.Reinforcement:
        more = training.about["length"], args.seed
    return Theirs(training, case.twin(training.model, way, *more))


# ---- the losses of the first steps ---------------------------------------------------------------


def compared(name: str, ours: Ours, others: list[Theirs]) -> dict[str, float]:
    """The largest difference of the first losses, of each way of PyTorch, without dropout."""
    apart = {theirs.twin.way: 0.0 for theirs in others}
    scale = 0.0
    with ExitStack() as stack:
        for contender in (ours, *others):
            stack.enter_context(contender.without_dropout())
        for number in range(COMPARED_STEPS):
            batch = ours.next_batch(number)
            loss = ours.step(batch)
            scale = scale or abs(loss)
            for theirs in others:
                difference = abs(theirs.step(batch) - loss) / scale
                apart[theirs.twin.way] = max(apart[theirs.twin.way], difference)
    for way, difference in apart.items():
        if not difference <= TOLERANCE:
            sys.exit(f"applications: {name}, {way}: losses differ by {difference:.1e}")
    return apart


# ---- time ----------------------------------------------------------------------------------------


def timed_steps(contender: Any, batches: Any, state: Any, steps: int) -> float:
    """Seconds of a step: the mean of so many from a state of the batches on, but for the first."""
    if batches is not None:
        batches.load_state_dict(state)
    gc.collect()
    gc.disable()
    try:
        contender.step(contender.next_batch(0))
        begin = time.perf_counter()
        for number in range(1, steps + 1):
            contender.step(contender.next_batch(number))
        seconds = time.perf_counter() - begin
    finally:
        gc.enable()
    time.sleep(PAUSE_SECONDS)
    return seconds / steps


def timed(ours: Ours, others: list[Theirs], settings: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a step of each contender; in a round all train on the same batches."""
    contenders = [ours, *others]
    batches = ours.training.state.get("batches")
    state = None if batches is None else batches.state_dict()
    epoch = None if batches is None else len(batches)
    steps = max(LEAST_STEPS, round(settings["turn"] / timed_steps(ours, batches, state, 4)))
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(settings["rounds"]):
        for contender in contenders:
            seconds[contender.name].append(timed_steps(contender, batches, state, steps))
        if batches is not None:
            state = batches.state_dict()  # the next round's are other ones
        # A way that is much slower than another is out.
        latest = {theirs: seconds[theirs.name][-1] for theirs in contenders[1:]}
        most = SLOW * min(latest.values())
        contenders = [ours, *(theirs for theirs, each in latest.items() if each <= most)]
    return {
        "steps": steps,
        "epoch": epoch,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "rounds": seconds,
        "parts": parts_of(ours, steps),
    }


RECURRENT = {_core.LayerStack: ("forward", "backward"), rk.Stream: ("step", "run")}


@contextmanager
def metered() -> Iterator[dict[str, float]]:
    """Seconds in the recurrent kernels and in each other function of the core, in the context."""
    seconds: dict[str, float] = {}

    def metered_one(name: str, function: Any) -> Any:
        seconds[name] = 0.0

        def call(*args: Any, **given: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **given)
            finally:
                seconds[name] += time.perf_counter() - begin

        return call

    others = [n for n, f in vars(_core).items() if callable(f) and not isinstance(f, type)]
    places = [(of, name) for of, names in {_core: others, **RECURRENT}.items() for name in names]
    before = [(of, name, getattr(of, name), name in vars(of)) for of, name in places]
    for of, name, function, _ in before:
        setattr(of, name, metered_one(name if of is _core else "recurrent", function))
    try:
        yield seconds
    finally:
        for of, name, function, own in before:
            if own:
                setattr(of, name, function)
            else:
                delattr(of, name)  # which hides what is inherited


def parts_of(ours: Ours, steps: int) -> dict[str, float]:
    """Shares of rnnkern's time: recurrent kernels, each other function of the core, the rest."""
    with metered() as seconds:
        begin = time.perf_counter()
        for number in range(steps):
            ours.step(ours.next_batch(number))
        whole = time.perf_counter() - begin
    shares = {name: used / whole for name, used in seconds.items() if used}
    return {**shares, "rest": 1 - sum(shares.values())}


# ---- whole runs ----------------------------------------------------------------------------------


def figures_of(case: Case, quick: bool, seed: int) -> dict[str, dict[str, float]]:
    """The held-out figures at the end of whole runs from the same parameters.

    Of each library, and of rnnkern with the recurrent layers' products in bf16.
    """
    application = case.script.APPLICATION
    steps = application.quick_steps if quick else application.steps
    found = {}
    for name, options in (
        ("rnnkern", ()),
        ("PyTorch", ()),
        ("rnnkern bf16", ("--compute", "bf16")),
    ):
        training, args = prepared(case, quick, seed, *options)
        torch.manual_seed(seed)  # of its dropout
        # Padded batches are PyTorch's fastest way of most applications.
        theirs = twin_of(case, training, args, "padded") if name == "PyTorch" else None
        contender = theirs or Ours(training)
        for number in range(steps):
            contender.step(contender.next_batch(number))
        if theirs:
            theirs.twin.write_to(training.model)
        found[name] = training.evaluate()
    return found


def whole_runs(case: Case, quick: bool, seeds: int) -> dict[str, dict[str, list[float]]]:
    """The figures of all seeds, by figure and library."""
    runs = [figures_of(case, quick, seed) for seed in range(seeds)]
    return {
        figure: {name: [run[name][figure] for run in runs] for name in runs[0]}
        for figure in runs[0]["rnnkern"]
    }


def is_not_worse(figure: str, found: list[float], than: list[float]) -> bool:
    """Whether one mean is not worse than another by more than the wider spread of both."""
    worse = statistics.mean(than) - statistics.mean(found)
    if figure in FALLING:
        worse = -worse
    return worse <= max(max(values) - min(values) for values in (found, than))


# ---- the report ----------------------------------------------------------------------------------


def measured(threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a process of so many threads finds, by application."""
    pin(threads)
    rk.set_num_threads(threads)
    torch.set_num_threads(threads)
    gc.freeze()  # what PyTorch keeps: it takes long to look through before each turn
    settings = {"rounds": options.rounds, "turn": options.turn}
    found: dict[str, Any] = {}
    for name in options.only:
        case, quick, begin = CASES[name], options.quick, time.perf_counter()
        if options.seeds:
            found[name] = whole_runs(case, quick, options.seeds)
        else:
            training, args = prepared(case, quick, 0)
            ours = Ours(training)
            others = [twin_of(case, training, args, way) for way in case.twin.ways]
            losses = None
            if threads == options.threads[0]:  # once
                losses = compared(name, ours, others)
            found[name] = {"losses": losses, **timed(ours, others, settings)}
        print(f"[{threads}t] {name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return found


def time_lines(found: dict[str, Any]) -> list[str]:
    rows, ratios = [], []
    for name, row in found.items():
        own, *others = row["seconds"].items()
        best, theirs = min(others, key=lambda other: other[1])
        ratios.append(theirs / own[1])
        epoch = ["-", "-"]
        if row["epoch"]:
            epoch = [duration(seconds * row["epoch"]) for seconds in (own[1], theirs)]
        way = best.removeprefix("PyTorch, ")
        met = "yes" if ratios[-1] >= LEAST_RATIO else "**no**"
        shown = [duration(own[1]), duration(theirs), way, times(ratios[-1])]
        rows.append([name, *shown, f">= {LEAST_RATIO:g} x", met, *epoch])
    head = ["application, a step", "rnnkern", "PyTorch", "way", "ratio", "target", "met"]
    lines = table([*head, "rnnkern, an epoch", "PyTorch, an epoch"], rows)
    return [*lines, f"Geometric mean: {mean(ratios):.2f} x. Target: {MEAN_RATIO:g} x.", ""]


def parts_lines(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in found.items():
        parts = dict(row["parts"])
        recurrent, rest = parts.pop("recurrent"), parts.pop("rest")
        most = sorted(parts.items(), key=lambda part: -part[1])[:3]
        shown = ", ".join(f"{part} {share:.0%}" for part, share in most)
        shares = [f"{share:.0%}" for share in (recurrent, sum(parts.values()), rest)]
        rows.append([name, *shares, shown])
    head = ["rnnkern's time", "recurrent kernels", "other kernels", "Python and NumPy"]
    return table([*head, "the largest of the other kernels"], rows)


def losses_lines(found: dict[str, Any]) -> list[str]:
    rows = [
        [name, ", ".join(f"{way} {apart:.0e}" for way, apart in row["losses"].items())]
        for name, row in found.items()
        if row["losses"]
    ]
    if not rows:
        return []
    head = [f"largest difference of the first {COMPARED_STEPS} losses, relative to the first"]
    return [*table(["application", *head], rows), f"Limit: {TOLERANCE:g}.", ""]


def figures_lines(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, figures in found.items():
        for figure, by_library in figures.items():
            shown = [
                f"{statistics.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"
                for values in by_library.values()
            ]
            float32, others, bf16 = by_library.values()
            pairs = ((float32, others), (bf16, float32))
            met = ["yes" if is_not_worse(figure, *pair) else "**no**" for pair in pairs]
            rows.append([f"{name}: {figure}", *shown, *met])
    head = ["held out, mean (range)", "rnnkern", "PyTorch", "rnnkern bf16"]
    return table([*head, "not worse than PyTorch", "bf16 not worse than float32"], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="the examples' quick sizes, two short rounds")
    add("--only", nargs="+", default=list(CASES), choices=CASES, help="these applications")
    add("--threads", type=thread_counts, help="by commas (1,2; with --seeds 2)")
    add("--rounds", type=positive(int), help="turns of each library (5)")
    add("--turn", type=positive(float), help="seconds of rnnkern's steps a turn (0.4)")
    add("--seeds", type=positive(int), help="in place of times: whole runs with so many seeds")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    add("--process", nargs=2, metavar=("N", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.turn = options.turn or (0.05 if options.quick else 0.4)
    options.threads = options.threads or ([2] if options.seeds else [1, 2])
    return options


def main() -> None:
    options = arguments()
    if options.process:
        threads, result = options.process
        Path(result).write_text(json.dumps(measured(int(threads), options)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    name = "applications-seeds" if options.seeds else "applications"
    settings = {each: getattr(options, each) for each in ("quick", "rounds", "turn", "seeds")}
    results = {**facts(), "versions": {"PyTorch": torch.__version__}, "missing": {}}
    results |= {"settings": settings, "runs": {}}
    lines = ["# The applications", "", *facts_lines(results)]
    sections = {"": figures_lines} if options.seeds else SECTIONS
    for threads, found in in_processes(__file__, options.threads):
        results["runs"][threads] = found
        for title, show in sections.items():
            if shown := show(found):
                lines += [f"## {title}{threads} thread{'s' * (threads > 1)}", "", *shown]
    write_report(options.out, name, results, lines)


SECTIONS = {
    "Whole training loops, ": time_lines,
    "Where rnnkern's time goes, ": parts_lines,
    "The first losses, ": losses_lines,
}

if __name__ == "__main__":
    main()
