"""What the applications share: options, a training loop with a bar, saves, resuming, predicting.

An application describes itself by an `Application`; `main` does the rest:

    python examples/sentiment.py [--quick] [--out FOLDER] [--resume] [--seed N] [--steps N]
    python examples/sentiment.py predict [--out FOLDER] INPUT...

Training saves each time it evaluates, at the end, and on Ctrl-C or SIGTERM. A run that is resumed
ends with the same bits as one that was not interrupted. Under ``mpiexec -n N`` the processes train
one model together; see docs/several_machines.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
from data import InputError
from matplotlib.figure import Figure  # without pyplot: no display, nothing global
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import rnnkern as rk
from rnnkern.distributed import Communicator, Shard

matplotlib.style.use(Path(__file__).with_name("pictures.mplstyle"))
PRINT_EVERY = 5.0  # seconds, where there is no terminal for a bar


@dataclass
class Training:
    """A run: what it changes, and what it does."""

    model: dict[str, Any]  # layers and modules
    optimizer: Any
    max_norm: float  # of a step's gradients, jointly
    next_batch: Callable[[int], Any]  # of the step with this number
    gradients: Callable[[Any], tuple[float, dict[str, Any]]]  # of a batch: loss and gradients
    terms: Callable[[Any], float]  # of a batch: how many the loss is the mean of
    evaluate: Callable[[], dict[str, float]]  # on held-out data
    # Of batches that are no rk.Batch: how many rows one has, and some of its rows.
    rows: Callable[[Any], int] | None = None
    part: Callable[[Any, slice], Any] | None = None
    state: dict[str, Any] = field(default_factory=dict)  # what else determines the next batches
    about: dict[str, Any] = field(default_factory=dict)  # in JSON: what `predict` needs, too
    history: list[float] = field(default_factory=list)  # each step's loss
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def saved(self) -> dict[str, Any]:
        """What a file of the run holds."""
        return {**self.model, "optimizer": self.optimizer, **self.state}

    def step(self, comm: Communicator) -> float:
        """Train on the next batch; its loss."""
        batch = self.next_batch(len(self.history))
        terms = max(1.0, self.terms(batch))

        def gradients(shard: Shard) -> dict[str, Any]:
            part = self.part(batch, shard.rows) if self.part else shard.batch
            loss, grads = self.gradients(part)
            share = self.terms(part) / terms
            shard.report(loss * share)
            return grads if share == 1 else {name: own * share for name, own in grads.items()}

        shards = comm.shard(self.rows(batch) if self.rows else batch, self.model)
        self.optimizer.step(map(gradients, shards), max_norm=self.max_norm, comm=comm)
        self.history.append(comm.reported[0])
        return self.history[-1]


@dataclass
class Application:
    """What a script of this folder is made of.

    `prepare` gets the options and makes a `Training`, `finish` gets both at the end and returns
    the figures to keep and a picture, `predict` gets a saved model, `about` and the options.
    """

    name: str
    doc: str
    steps: int  # of a whole run, and of a quick one
    quick_steps: int
    evaluate_every: int
    prepare: Callable[[argparse.Namespace], Training]
    finish: Callable[[Training, argparse.Namespace], tuple[dict[str, Any], Figure]]
    predict: Callable[[dict[str, Any], dict[str, Any], argparse.Namespace], None]
    inputs: str  # what `predict` takes, for the help
    count: str | int = "+"  # of inputs, and how each is read: as argparse takes them
    read: Callable[[str], Any] = str
    draws: bool = False  # whether `predict` depends on a seed
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def main(application: Application, arguments: list[str] | None = None) -> int:
    comm = Communicator()  # of one rank, without a launcher
    with ExitStack() as held:
        if comm.rank > 0:
            held.enter_context(redirect_stdout(held.enter_context(Path(os.devnull).open("w"))))
        try:
            return _main(application, sys.argv[1:] if arguments is None else arguments, comm)
        except SystemExit as error:  # on all ranks alike; rank 0 says why
            raise SystemExit(1 if comm.rank > 0 and error.code else error.code) from None
        except (InputError, rk.files.FileError, OSError) as error:
            raise SystemExit(1 if comm.rank > 0 else str(error)) from error
        except KeyboardInterrupt:  # before training, or the second one in it
            if comm.size > 1:
                raise  # which ends all ranks
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def _main(application: Application, given: list[str], comm: Communicator) -> int:
    parser = parser_of(application, predicts=given[:1] == ["predict"])
    if comm.rank > 0:
        parser.error = lambda message: sys.exit(2)  # type: ignore[method-assign, assignment]
    args = parser.parse_intermixed_args(given)  # inputs may stand before and after options
    path = args.out / f"{application.name}.safetensors"
    about = comm.first(lambda: _metadata(path, application.name))
    if given[:1] == ["predict"]:
        if about is None:
            sys.exit(f"{path}: expected a trained model; train it with python {sys.argv[0]}")
        if comm.rank == 0:
            application.predict(rk.load(path), json.loads(about["about"]), args)
        return 0
    if about is None and args.resume:
        sys.exit(f"{path}: expected a run to resume, got none")
    if about is not None and not args.resume:
        sys.exit(f"{path} exists: --resume goes on with it, --out FOLDER leaves it alone")
    whole = application.quick_steps if args.quick else application.steps
    steps = whole if args.steps is None else args.steps
    if not 1 <= steps <= whole:  # schedules end with the whole run
        sys.exit(f"--steps: expected an integer from 1 to {whole}, the whole run, got {steps}")
    settings = {n: v for n, v in vars(args).items() if n not in ("out", "resume", "steps")}
    if about is None:
        settings["shards"] = args.shards or comm.size
    else:
        saved = json.loads(about["settings"])
        if args.shards is None:
            settings["shards"] = saved["shards"]
        for name, value in settings.items():
            if value != saved.get(name):
                sys.exit(f"--{name}: expected {saved.get(name)}, as in {path}, got {value}")
        if steps < (done := len(json.loads(about["history"]))):
            sys.exit(f"--steps: expected at least the {done} of {path}, got {steps}")
    try:
        comm = comm.divided(settings["shards"])
    except ValueError as error:
        sys.exit(f"--{error}")
    threads = rk.get_num_threads() // comm.ranks_per_core_set()
    with rk.num_threads(max(1, threads)):
        return _run(application, args, path, steps, settings, comm)


def _metadata(path: Path, name: str) -> dict[str, str] | None:
    """What a run keeps in its file, beside arrays; None without a file."""
    if not path.exists():
        return None
    with rk.files.Reader(path) as file:
        if (other := file.metadata.get("application")) != name:
            raise InputError(f"{path}: expected a run of {name}, got one of {other}")
        return file.metadata


def _run(
    application: Application,
    args: argparse.Namespace,
    path: Path,
    steps: int,
    settings: dict[str, Any],
    comm: Communicator,
) -> int:
    prepared: list[Training] = []

    def prepare() -> None:
        args.out.mkdir(parents=True, exist_ok=True)
        prepared.append(application.prepare(args))

    comm.first(prepare)  # which fetches the data
    training = prepared[0] if comm.rank == 0 else application.prepare(args)
    if args.resume:
        metadata = comm.restore(path, training.saved)
        training.history = json.loads(metadata["history"])
        training.held_out = [(n, figures) for n, figures in json.loads(metadata["held_out"])]
    comm.broadcast(training.saved)
    every = max(1, application.quick_steps // 4) if args.quick else application.evaluate_every
    kept = {"application": application.name, "settings": json.dumps(settings)}
    number = _train(training, steps, every, lambda: _save(path, training, kept, comm), comm)
    if number:
        print(f"interrupted at step {len(training.history)}; --resume goes on", flush=True)
        return 128 + number
    if comm.rank > 0:
        return 0
    figures, figure = application.finish(training, args)
    figure.savefig(args.out / f"{application.name}.png", dpi=110)
    kept = {**settings, "steps": steps, **figures, "held_out": training.held_out}
    (args.out / f"{application.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"wrote {path}, {application.name}.png and {application.name}.json")
    return 0


def parser_of(application: Application, predicts: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=application.doc,
        epilog=f"python {sys.argv[0]} predict {application.inputs}: use the trained model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(f"{application.name}-run"), help="folder (%(default)s)")
    if application.draws or not predicts:
        add("--seed", type=at_least(0), default=0, help="of parameters, order and noise (0)")
    if predicts:
        add("command", choices=["predict"])
        add("input", nargs=application.count, type=application.read, help=application.inputs)
        return parser
    add("--quick", action="store_true", help="under a minute: smaller sizes, fewer steps")
    add("--resume", action="store_true", help="go on with the run in the folder")
    add("--steps", type=int, help=f"stop at this step of {application.steps}")
    add("--compute", choices=["bf16"], help="products of the recurrent layers in bf16")
    add("--shards", type=at_least(1), help="parts of a batch, a multiple of the ranks")
    application.options(parser)
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """A type of options and inputs: integers from a least one on."""

    def integer(text: str) -> int:
        if not (text.isdecimal() and int(text) >= least):
            expected = f"expected an integer of at least {least}"
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
        return int(text)

    return integer


def _save(path: Path, training: Training, kept: dict[str, str], comm: Communicator) -> None:
    names = "about", "history", "held_out"
    of_run = {name: json.dumps(getattr(training, name)) for name in names}
    comm.save(path, training.saved, {**kept, **of_run})


def _train(
    training: Training, steps: int, every: int, save: Callable[[], None], comm: Communicator
) -> int:
    """Train up to a number of steps; the signal that came first, if one did, or 0."""
    shown = -PRINT_EVERY
    save()  # a run that cannot be saved does not start
    with comm.signals(), _bar(steps, comm.rank == 0) as show:
        while len(training.history) < steps and comm.stopped is None:
            loss = training.step(comm)
            done = len(training.history)
            if done % every == 0 or done == steps:
                training.held_out.append((done, comm.first(training.evaluate)))
                save()
            text = f"step {done}: loss {loss:.4f}"
            if training.held_out:
                figures = training.held_out[-1][1].items()
                text += "; held out: " + ", ".join(f"{name} {value:.4g}" for name, value in figures)
            now = time.perf_counter()
            if show(text, done, done == steps or now - shown >= PRINT_EVERY):
                shown = now
    save()
    return comm.stopped or 0


@contextmanager
def _bar(steps: int, shown: bool) -> Iterator[Callable[[str, int, bool], bool]]:
    """A function that shows how far training is: a bar in a terminal, else a line now and then."""
    terminal = shown and sys.stdout.isatty()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=16), TaskProgressColumn()
    with Progress(*columns, TimeRemainingColumn(), disable=not terminal) as bar:
        task = bar.add_task("", total=steps)

        def show(text: str, done: int, due: bool) -> bool:
            bar.update(task, completed=done, description=text.replace("; ", "\n"))
            if due and not terminal:
                print(text, flush=True)
            return due

        yield show


def endless(batches: Any) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from batches


def learning_curve(
    axes: Any, training: Training, unit: str, held_out: str | None = None, same_unit: bool = False
) -> None:
    """Draw each step's loss, its running mean, and a held-out figure, on an axis of its own."""
    losses = training.history
    width = max(5, len(losses) // 50)
    means = [sum(losses[max(0, i - width) : i]) / min(width, i) for i in range(1, len(losses) + 1)]
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="training, each step")
    axes.plot(steps, means, color="#0072b2", label=f"training, mean of {width} steps")
    axes.set(xlabel="step", ylabel=unit)
    axes.grid()
    if held_out is not None:
        points = [(step, figures[held_out]) for step, figures in training.held_out]
        other = axes if same_unit else axes.twinx()
        other.plot(*zip(*points, strict=True), "o-", color="#d55e00", label="held out")
        if not same_unit:
            other.set_ylabel(f"{held_out}, held out", color="#d55e00")
    axes.legend(loc="lower left" if held_out and not same_unit else "upper right")
