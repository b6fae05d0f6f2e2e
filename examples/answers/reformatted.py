"""Eight cells with the same time to learn: adding and copying over 400 steps, digits over 640.

"What if the core structure could be reformatted?" Each cell gets the same seconds of one core on
each problem, with three seeds. The problems are those of adding.py, copying.py and digits.py, the
last with each of the 64 pixels held for ten steps. What is shown is how well a net does then on
sequences that it has not seen, what a training step takes, and how far gradients reach.

- All cells have the same number of units. Cells whose units see each other's states have one
  layer. A layer of minGRU, minLSTM, RG-LRU or IndRNN does not let them, so these have two, and the
  second adds its input to its output.
- All units start out remembering for 1 to T steps, drawn evenly, by the parameter that decides it.
  The layer-norm LSTM also starts with candidates that are not zero.
- The learning rate is the best of three, for each cell and problem: trials of a fifth of the time
  with a seed of their own decide, by the training loss in the last sixth of theirs.

Two cores are used, each for runs of its own; it takes 20 minutes. Results are kept run by run in
reformatted.json: Ctrl-C loses only what runs, the same command goes on, and when all runs are there
it just draws.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import adding
import copying
import digits
import numpy as np
from figure import draw_into, parser
from matplotlib.figure import Figure

import rnnkern as rk

SECONDS = 25.0  # of a run
RATES = (0.003, 0.01, 0.03)
TRIAL, SHARE = 0, 1 / 5  # the trials' seed, and their share of a run's time
SEEDS, UNSEEN = (1, 2, 3), 7
BINS = 24  # of a learning curve, each of the same time
POINTS = 41  # of a gradient's way back
GONE = 0.01  # of its norm: a gradient counts as lost
FILLED = ("<!-- reformatted.py fills this in -->\n", "<!-- down to here -->\n")
Array = np.ndarray


# ---- the cells -----------------------------------------------------------------------------------


def by_bias(*signs: int) -> Callable[[dict[str, Array], int, Array], None]:
    """Gates that open or close by how long the unit remembers (Tallec and Ollivier 2018)."""

    def start(params: dict[str, Array], l: int, steps: Array) -> None:
        params[f"bias_ih_l{l}"] += np.outer(signs, np.log(steps)).ravel()

    return start


def by_bias_off_zero(params: dict[str, Array], l: int, steps: Array) -> None:
    """Layer-norm LSTM: as the LSTM, but its state does not stay zero while its inputs are zero.

    Of a zero vector, layer norm's derivative is 1 / sqrt(1e-5). Gradients overflow over some steps
    of them, and none of the optimizer's steps is made.
    """
    by_bias(-1, 1, 0, 0)(params, l, steps)
    params[f"bias_ih_l{l}"].reshape(4, -1)[2] += np.linspace(-1, 1, len(steps))  # of candidates


def by_decay(params: dict[str, Array], l: int, steps: Array) -> None:
    """RG-LRU: its gate starts at 1/2, which makes a step's factor exp(-4 softplus(lambda))."""
    params[f"lambda_l{l}"][:] = np.log(np.expm1(1 / (4 * steps)))


def by_weight(params: dict[str, Array], l: int, steps: Array) -> None:
    """IndRNN: u, and inputs that keep the variance of h, as those of an RG-LRU do."""
    u = steps / (1 + steps)
    params[f"weight_hh_l{l}"][:] = u
    params[f"weight_ih_l{l}"] *= np.sqrt(1 - u**2)[:, None]


def limit_weight(params: dict[str, Array], T: int) -> None:
    """IndRNN's authors (Li et al. 2018, section 3) let a state double over a sequence, at most."""
    for name, u in params.items():
        if name.startswith("weight_hh"):
            np.clip(u, -(2 ** (1 / T)), 2 ** (1 / T), out=u)


class Cell(NamedTuple):
    """How a layer is made, how its memories start, and what holds after each step."""

    make: Callable[..., Any]
    start: Callable[[dict[str, Array], int, Array], None]
    options: dict[str, Any]
    limit: Callable[[dict[str, Array], int], None] = lambda params, T: None


ONE = {"init": "orthogonal"}
NORMED = ONE | {"layer_norm": "haste"}
HEADS = ONE | {"heads": 4}
TWO = {"init": "xavier", "num_layers": 2, "residual": True}
CELLS = {
    "LSTM": Cell(rk.LSTM, by_bias(-1, 1, 0, 0), ONE),
    "GRU": Cell(rk.GRU, by_bias(0, 1, 0), ONE),
    "layer-norm LSTM": Cell(rk.LSTM, by_bias_off_zero, NORMED),
    "minGRU": Cell(rk.MinGRU, by_bias(-1, 0), TWO),
    "minLSTM": Cell(rk.MinLSTM, by_bias(1, -1, 0), TWO),
    "sLSTM": Cell(rk.SLSTM, by_bias(0, 1, 0, 0), HEADS),
    "RG-LRU": Cell(rk.RGLRU, by_decay, TWO),
    "IndRNN": Cell(rk.IndRNN, by_weight, TWO, limit_weight),
}


# ---- the problems --------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Batches, and what a net's answers to them are worth."""

    T: int
    inputs: int
    units: int
    outputs: int
    answered: slice  # the steps whose outputs are answers
    draw: Callable[[np.random.Generator], tuple[Array, Array]]
    unseen: tuple[Array, Array]
    loss: Callable[[Array, Array], tuple[float, Array]]
    outcome: Callable[[Array, Array], float]  # what is shown
    title: str
    unit: str
    nothing: str  # who knows nothing, and what it gets
    knows_nothing: float


def squared_error(answers: Array, target: Array) -> tuple[float, Array]:
    """Of (1, B, 1), and its gradient."""
    error = answers - target[None, :, None].astype(np.float32)
    return float(np.mean(error**2)), 2 / error.size * error


def share_right(answers: Array, target: Array) -> float:
    """Of the last ten steps, or of the only one."""
    return float((answers.argmax(axis=-1) == target)[-copying.KEPT :].mean())


LAST, ALL = slice(-1, None), slice(None)


@cache
def adding_problem(quick: bool) -> Problem:
    T = 20 if quick else 400
    return Problem(
        *(T, 2, adding.H, 1, LAST),
        draw=lambda rng: adding.draw(rng, T, adding.B),
        unseen=adding.draw(np.random.default_rng(UNSEEN), T, 500),
        loss=squared_error,
        outcome=lambda answers, target: squared_error(answers, target)[0],
        title=f"adding, T = {T}",
        unit="squared error",
        nothing="always 1",
        knows_nothing=adding.TRIVIAL,
    )


@cache
def copy_problem(quick: bool) -> Problem:
    T = 20 if quick else 400
    return Problem(
        *(T + 2 * copying.KEPT, copying.I, copying.H, copying.I - 1, ALL),
        draw=lambda rng: copying.draw(rng, T, copying.B),
        unseen=copying.draw(np.random.default_rng(UNSEEN), T, 100),
        loss=rk.cross_entropy,
        outcome=share_right,
        title=f"copy, T = {T}",
        unit="symbols right",
        nothing="a guess",
        knows_nothing=1 / copying.SYMBOLS,
    )


@cache
def digits_problem(quick: bool) -> Problem:
    hold = 1 if quick else 10
    given, held = digits.learnt_and_held(quick)

    def read(images: Array, classes: Array) -> tuple[Array, Array]:
        # One input says as much as several would: digits.py has W_ih three times as large for it.
        return 3 * digits.sequence(images, hold), classes[None]

    def draw(rng: np.random.Generator) -> tuple[Array, Array]:
        rows = rng.integers(len(given.images), size=digits.B)
        return read(digits.moved(given.images[rows], rng), given.classes[rows])

    return Problem(
        *(64 * hold, 1, digits.H // 2, 10, LAST),
        draw=draw,
        unseen=read(held.images, held.classes),
        loss=rk.cross_entropy,
        outcome=share_right,
        title=f"digits, T = {64 * hold}",
        unit="right",
        nothing="a guess",
        knows_nothing=1 / 10,
    )


PROBLEMS = {"adding": adding_problem, "copy": copy_problem, "digits": digits_problem}


# ---- one run -------------------------------------------------------------------------------------


class Net:
    """A cell's layers between the inputs and the answers."""

    def __init__(self, cell: Cell, problem: Problem, seed: int) -> None:
        H = problem.units
        self.problem = problem
        # An RG-LRU has as many inputs as units.
        self.into = rk.Linear(problem.inputs, H, seed=seed) if cell.make is rk.RGLRU else None
        inputs = H if self.into else problem.inputs
        self.layer = cell.make(inputs, H, seed=seed, **cell.options)
        memories = np.random.default_rng(seed)
        for l in range(self.layer.num_layers):
            cell.start(self.layer.params, l, memories.uniform(1, problem.T - 1, H))
        self.out = rk.Linear(H, problem.outputs, seed=seed)
        self.modules = [module for module in (self.into, self.layer, self.out) if module]

    def read(self, x: Array) -> Array:
        """What the layer gets."""
        return self.into(x) if self.into else x

    def outcome(self, x: Array, target: Array) -> float:
        answers = self.out(self.layer(self.read(x))[0][self.problem.answered])
        return self.problem.outcome(answers, target)

    def gradients(self, x: Array, target: Array) -> tuple[float, float, list[Any]]:
        """The loss, the outcome, and the gradients of the modules."""
        into_tape = None
        if self.into:
            x, into_tape = self.into.forward(x)
        y, _, tape = self.layer.forward(x)
        answers, out_tape = self.out.forward(y[self.problem.answered])
        loss, d_answers = self.problem.loss(answers, target)
        of_out = self.out.backward(out_tape, d_answers)
        dy = np.zeros_like(y)
        dy[self.problem.answered] = of_out.x
        of_layer = self.layer.backward(tape, dy)
        of_into = [self.into.backward(into_tape, of_layer.x)] if self.into else []
        return loss, self.problem.outcome(answers, target), [*of_into, of_layer, of_out]

    def way_back(self, x: Array) -> Array:
        """The norm of a random gradient at the last step, step by step back, relative to there.

        In the layer through which it gets farthest.
        """
        _, _, tape = self.layer.forward(self.read(x))
        return max((flow.curve for flow in rk.diagnose.report(self.layer, tape).flows), key=reach)


def reach(curve: Array) -> int:
    """Steps back until a gradient is lost, or all that there are."""
    lost = np.flatnonzero(curve <= GONE)
    return int(lost[0]) if lost.size else len(curve) - 1


class Job(NamedTuple):
    problem: str
    cell: str
    seed: int
    rate: float
    seconds: float
    quick: bool


def run(job: Job) -> dict[str, Any]:
    """Train for so many seconds of processor time, and look at what came of it."""
    problem, cell = PROBLEMS[job.problem](job.quick), CELLS[job.cell]
    net, rng = Net(cell, problem, job.seed), np.random.default_rng(job.seed)
    x, target = problem.unseen
    some = np.ascontiguousarray(x[:, :16])
    opt = rk.Adam(net.modules, lr=job.rate)
    begin = time.process_time()
    ends, losses, outcomes = [0.0], [], []
    while ends[-1] < job.seconds:
        left = 1 - ends[-1] / job.seconds
        opt.lr = job.rate * min(1.0, 4 * left)  # down to zero in the last quarter
        loss, outcome, grads = net.gradients(*problem.draw(rng))
        opt.step(grads, max_norm=1.0)
        cell.limit(net.layer.params, problem.T)
        ends.append(time.process_time() - begin)
        losses.append(loss)
        outcomes.append(outcome)
    in_bin = np.minimum(BINS * np.array(ends[1:]) / job.seconds, BINS - 1).astype(int)
    curve = net.way_back(some)
    at = np.linspace(0, len(curve) - 1, POINTS).astype(int)
    return {
        **{key: getattr(job, key) for key in ("problem", "cell", "seed", "rate")},
        "parameters": sum(a.size for module in net.modules for a in module.params.values()),
        "steps": len(outcomes) - opt.skipped,
        "ms": rounded(1e3 * np.median(np.diff(ends))),
        "outcome": rounded(net.outcome(x, target)),
        "loss": rounded(np.mean(losses[-len(losses) // 6 :])),  # where the rate has come down
        "learning": [  # the training batches, bin by bin; null for a bin in which no step ended
            rounded(np.mean(np.array(outcomes)[in_bin == b])) if np.any(in_bin == b) else None
            for b in range(BINS)
        ],
        "reach": reach(curve),
        "back": at.tolist(),
        "left": [rounded(value) for value in curve[at]],
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


# ---- all of them ---------------------------------------------------------------------------------


def start_worker(cores: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    os.sched_setaffinity(0, {cores.get()})
    rk.set_num_threads(1)


def key_of(entry: Any) -> tuple[Any, ...]:
    get = entry.get if isinstance(entry, dict) else lambda name: getattr(entry, name)
    return tuple(get(name) for name in ("problem", "cell", "seed", "rate"))


def kept(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that are there already, if any."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        sys.exit(f"{path}: expected runs with {settings}, got {found['settings']}: name another "
                 "--out, or remove the file")  # fmt: skip
    return found["runs"]


def write(path: Path, settings: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run) for run in runs)
    part = path.with_suffix(".part")
    part.write_text(f'{{"settings": {json.dumps(settings)}, "runs": [\n{lines}\n]}}\n')
    part.replace(path)


def measure(jobs: Iterable[Job], path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of all jobs; what is not kept yet is run, on at most two cores."""
    runs, wanted = kept(path, settings), {key_of(job): job for job in jobs}
    done = {key_of(run) for run in runs}
    todo = [job for key, job in wanted.items() if key not in done]
    if todo:
        context = multiprocessing.get_context("spawn")
        cores = sorted(os.sched_getaffinity(0))[:2]
        queue = context.Queue()
        for core in cores:
            queue.put(core)
        minutes = sum(job.seconds for job in todo) / len(cores) / 60
        print(f"{len(todo)} runs on {len(cores)} cores: {minutes:.1f} minutes if they are free")
        try:
            with context.Pool(len(cores), start_worker, (queue,)) as pool:
                for count, result in enumerate(pool.imap_unordered(run, todo), 1):
                    runs.append(result)
                    write(path, settings, runs)
                    print(f"{count:3}/{len(todo)} {line_of(result)}", flush=True)
        except KeyboardInterrupt:
            print(f"{len(runs)} runs are kept in {path}; the same command goes on")
            sys.exit(130)
    return [run for run in runs if key_of(run) in wanted]


def line_of(run: dict[str, Any]) -> str:
    return (
        f"{run['problem']:7} {run['cell']:16} seed {run['seed']}, rate {run['rate']:<6g}"
        f"{run['steps']:6} steps of {run['ms']:7.2f} ms, outcome {run['outcome']:<9.4g}"
        f"reach {run['reach']}"
    )


def of(runs: list[dict[str, Any]], problem: str, cell: str) -> list[dict[str, Any]]:
    return [run for run in runs if (run["problem"], run["cell"]) == (problem, cell)]


def best_rates(trials: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By the training loss at the end; nan is worst."""
    best = {}
    for problem in PROBLEMS:
        for cell in CELLS:
            ends = {trial["rate"]: trial["loss"] for trial in of(trials, problem, cell)}
            best[problem, cell] = min(ends, key=lambda rate: np.nan_to_num(ends[rate], nan=np.inf))
    return best


def tables(runs: list[dict[str, Any]], problems: dict[str, Problem], seconds: float) -> str:
    """Markdown: medians over the seeds, and of the outcome the range."""
    lines = []
    for name, problem in problems.items():

        def shown(value: float, exact: bool = name == "adding") -> str:
            return f"{value:.2g}" if exact else f"{100 * value:.1f}%"

        head = (
            *(problem.title, f"{problem.unit} (from, to)", "ms a step", f"steps in {seconds:g} s"),
            *("reach (steps)", "left at the first step", "parameters", "rate"),
        )
        lines += [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
        for cell in CELLS:
            of_cell = of(runs, name, cell)
            values = sorted(run["outcome"] for run in of_cell)
            ms, steps, way, left = np.median(
                [(run["ms"], run["steps"], run["reach"], run["left"][-1]) for run in of_cell],
                axis=0,
            )
            row = (
                *(cell, f"{shown(np.median(values))} ({shown(values[0])}, {shown(values[-1])})"),
                *(f"{ms:.3g}", f"{steps:,.0f}", f"{way:.0f}", f"{left:.2g}"),
                *(f"{of_cell[0]['parameters']:,}", f"{of_cell[0]['rate']:g}"),
            )
            lines.append(f"| {' | '.join(row)} |")
        lines += [f"| {problem.nothing} | {shown(problem.knows_nothing)} |" + " |" * 6, ""]
    return "\n".join(lines)


def picture(runs: list[dict[str, Any]], problems: dict[str, Problem], seconds: float) -> Figure:
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, len(problems), squeeze=False)
    at = seconds * (np.arange(BINS) + 0.5) / BINS
    for (learning, back), (name, problem) in zip(panels.T, problems.items(), strict=True):
        for k, cell in enumerate(CELLS):
            of_cell = of(runs, name, cell)
            style = {"color": f"C{k}", "linestyle": "-" if k < 3 else "--", "label": cell}
            curves = np.array([run["learning"] for run in of_cell], float)  # null: nan
            median = np.median(curves, axis=0)
            there = np.isfinite(median)
            learning.plot(at[there], median[there], **style)
            left = np.median([run["left"] for run in of_cell], axis=0)
            back.plot(of_cell[0]["back"], np.maximum(left, 1e-9), **style)
        learning.axhline(problem.knows_nothing, color="0.5", linestyle=":")
        learning.set(title=problem.title, xlabel="seconds of one core")
        learning.set_ylabel(f"training batches: {problem.unit}")
        back.axhline(GONE, color="0.5", linestyle=":")
        back.set(xlabel="steps back, after training", ylim=(1e-6, 1e3), yscale="log")
        if name == "adding":
            learning.set_yscale("log")
        for panel in (learning, back):
            panel.grid()
    panels[1, 0].set_ylabel("gradient's norm, relative to the last step's")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(CELLS))
    return figure


def parts_of(page: Path) -> tuple[str, str] | None:
    """What stands before and after the tables, with their marks."""
    text = page.read_text() if page.is_file() else ""
    before, begin, rest = text.partition(FILLED[0])
    _, end, after = rest.partition(FILLED[1])
    return (before + begin, end + after) if begin and end else None


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--seconds", type=float, help=f"of one core for each run ({SECONDS:g})")
    parse.add_argument("--fill", type=Path, help="the page whose tables are to be replaced")
    args = parse.parse_args()
    seconds = (0.1 if args.quick else SECONDS) if args.seconds is None else args.seconds
    if not 0 < seconds < np.inf:
        parse.error(f"--seconds: expected a finite number above 0, got {seconds}")
    if args.fill and not parts_of(args.fill):
        marks = " and ".join(mark.strip() for mark in FILLED)
        parse.error(f"--fill: expected a page with {marks}, got {args.fill}")
    path, settings = args.out / "reformatted.json", {"seconds": seconds, "quick": args.quick}
    pairs = [(problem, cell) for problem in PROBLEMS for cell in CELLS]
    trials = [
        Job(*pair, TRIAL, rate, SHARE * seconds, args.quick)
        for pair in pairs
        for rate in RATES[: 2 if args.quick else None]
    ]
    best = best_rates(measure(trials, path, settings))
    jobs = [
        Job(*pair, seed, best[pair], seconds, args.quick)
        for seed in SEEDS[: 1 if args.quick else None]
        for pair in pairs
    ]
    runs = measure(jobs, path, settings)
    problems = {name: make(args.quick) for name, make in PROBLEMS.items()}
    text = tables(runs, problems, seconds)
    print(text)
    draw_into(args.out, "reformatted", picture(runs, problems, seconds))
    if args.fill and (around := parts_of(args.fill)):  # as it is now
        args.fill.write_text(f"{around[0]}\n{text}\n{around[1]}")


if __name__ == "__main__":
    main()
