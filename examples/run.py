"""What the applications share: options, a training loop with a bar, saves, resuming, predicting.

An application describes itself by an `Application`; `main` does the rest:

    python examples/sentiment.py [--quick] [--out FOLDER] [--resume] [--seed N] [--steps N]
    python examples/sentiment.py predict [--out FOLDER] INPUT...

Training saves each time it evaluates, at the end, and on Ctrl-C or SIGTERM. A run that is resumed
ends with the same bits as one that was not interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # without pyplot: no display, nothing global
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import rnnkern as rk

PRINT_EVERY = 5.0  # seconds, where there is no terminal for a bar
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Training:
    """A run: what it changes, and what it does."""

    model: dict[str, Any]  # layers and modules
    optimizer: Any
    max_norm: float  # of a step's gradients, jointly
    next_batch: Callable[[int], Any]  # of the step with this number
    gradients: Callable[[Any], tuple[float, dict[str, Any]]]  # of a batch: loss and gradients
    evaluate: Callable[[], dict[str, float]]  # on held-out data
    state: dict[str, Any] = field(default_factory=dict)  # what else determines the next batches
    about: dict[str, Any] = field(default_factory=dict)  # in JSON: what `predict` needs, too
    history: list[float] = field(default_factory=list)  # each step's loss
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def saved(self) -> dict[str, Any]:
        """What a file of the run holds."""
        return {**self.model, "optimizer": self.optimizer, **self.state}

    def step(self) -> float:
        """Train on the next batch; its loss."""
        loss, grads = self.gradients(self.next_batch(len(self.history)))
        self.optimizer.step(grads, max_norm=self.max_norm)
        self.history.append(float(loss))
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
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def main(application: Application, arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    # Intermixed: inputs may stand before and after options.
    args = parser_of(application, predicts=given[:1] == ["predict"]).parse_intermixed_args(given)
    path = args.out / f"{application.name}.safetensors"
    if given[:1] == ["predict"]:
        if not path.exists():
            sys.exit(f"{path}: expected a trained model; train it with python {sys.argv[0]}")
        with rk.files.Reader(path) as file:
            about = json.loads(file.metadata["about"])
        application.predict(rk.load(path), about, args)
        return 0
    if path.exists() and not args.resume:
        sys.exit(f"{path} exists: --resume goes on with it, --out FOLDER leaves it alone")
    whole = application.quick_steps if args.quick else application.steps
    steps = whole if args.steps is None else args.steps
    if not 1 <= steps <= whole:  # schedules end with the whole run
        sys.exit(f"--steps: expected an integer from 1 to {whole}, the whole run, got {steps}")
    args.out.mkdir(parents=True, exist_ok=True)
    training = application.prepare(args)
    settings = {"quick": args.quick, "seed": args.seed, "compute": args.compute}
    if args.resume:
        _resume(path, training, settings)
    every = max(1, steps // 4) if args.quick else application.evaluate_every
    number = _train(training, steps, every, lambda: _save(path, training, settings))
    if number:
        print(f"interrupted at step {len(training.history)}; --resume goes on", flush=True)
        return 128 + number
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
    add("--seed", type=int, default=0, help="of parameters, order and noise (0)")
    if predicts:
        add("command", choices=["predict"])
        add("input", nargs="*", help=application.inputs)
    else:
        add("--quick", action="store_true", help="under a minute: smaller sizes, fewer steps")
        add("--resume", action="store_true", help="go on with the run in the folder")
        add("--steps", type=int, help=f"stop at this step of {application.steps}")
        add("--compute", choices=["bf16"], help="products of the recurrent layers in bf16")
    application.options(parser)
    return parser


def _save(path: Path, training: Training, settings: dict[str, Any]) -> None:
    kept = {"about": training.about, "settings": settings}
    kept |= {"history": training.history, "held_out": training.held_out}
    metadata = {name: json.dumps(value) for name, value in kept.items()}
    rk.save(path, training.saved, metadata)


def _resume(path: Path, training: Training, settings: dict[str, Any]) -> None:
    metadata = rk.restore(path, training.saved)
    saved = json.loads(metadata["settings"])
    if saved != settings:
        sys.exit(f"{path}: expected a run with {settings}, got one with {saved}")
    training.history = json.loads(metadata["history"])
    training.held_out = [(step, figures) for step, figures in json.loads(metadata["held_out"])]


def _train(training: Training, steps: int, every: int, save: Callable[[], None]) -> int:
    """Train up to a number of steps; the signal that came first, if one did, or 0."""
    shown = -PRINT_EVERY
    save()  # a run that cannot be saved does not start
    with _signals() as came, _bar(steps) as show:
        while len(training.history) < steps and not came:
            loss = training.step()
            done = len(training.history)
            if done % every == 0 or done == steps:
                training.held_out.append((done, training.evaluate()))
                save()
            text = f"step {done}: loss {loss:.4f}"
            if training.held_out:
                figures = training.held_out[-1][1].items()
                text += "; held out: " + ", ".join(f"{name} {value:.4g}" for name, value in figures)
            now = time.perf_counter()
            if show(text, done, done == steps or now - shown >= PRINT_EVERY):
                shown = now
    save()
    return int(came[0]) if came else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM; a second one is not waited for."""
    came: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        restore()

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield came
    finally:
        restore()


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[str, int, bool], bool]]:
    """A function that shows how far training is: a bar in a terminal, else a line now and then."""
    terminal = sys.stdout.isatty()
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
    axes.grid(alpha=0.3)
    if held_out is not None:
        points = [(step, figures[held_out]) for step, figures in training.held_out]
        other = axes if same_unit else axes.twinx()
        other.plot(*zip(*points, strict=True), "o-", color="#d55e00", label="held out")
        if not same_unit:
            other.set_ylabel(f"{held_out}, held out", color="#d55e00")
    axes.legend(loc="lower left" if held_out and not same_unit else "upper right")
