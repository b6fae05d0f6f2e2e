"""The command ``rnnkern``: train and sample a character model, measure, show the build."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import bench, files
from rnnkern.charlm import (
    CELLS,
    LARGEST,
    CharLM,
    CharLMError,
    Corpus,
    Settings,
    Trainer,
    extra,
    load_model,
    read_texts,
    stdlib_texts,
)

STEPS = 800  # without --steps and --seconds
PRINT_EVERY = 3.0  # seconds, where there is no terminal for a progress bar
RUNNING = 50  # steps in running means
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; ``sys.argv[1:]`` if None.

    Returns
    -------
    int
        0; 1 after an error in the input, in a file, in standard output or of memory, reported
        in one line; 130 after Ctrl-C. Errors in the arguments themselves raise
        ``SystemExit(2)``, as argparse does.

    Examples
    --------
    >>> from rnnkern.cli import main
    >>> status = main(["info"])  # doctest: +ELLIPSIS
    version...
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        try:
            with rk.num_threads(args.threads or rk.get_num_threads()):
                return int(args.run(args))
        finally:
            _flush()
    except (CharLMError, files.FileError, MemoryError, OSError) as error:
        unnamed = isinstance(error, OSError) and error.filename is None  # files are named
        text = f"standard output: {error}" if unnamed else error
        print(f"rnnkern {args.command}: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rnnkern {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _flush() -> None:
    """Write out what was printed; what standard output can't take does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _number(
    kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """Make an argparse type: a finite number from `low` (or above it) to `high`."""
    range_ = f"{'above' if above else 'at least'} {low:g}"
    range_ += f" and at most {high:.12g}" if high < math.inf else ""

    def parse(text: str) -> Any:
        wanted = f"expected {'an integer' if kind is int else 'a number'} {range_}, got {text!r}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(wanted) from None
        if not low <= value <= high or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(wanted)
        return value

    return parse


def _path(text: str) -> Path:
    if not text:  # Path would take it as the working folder
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def _limit(text: str) -> float | None:
    """Parse a clip limit: a number above 0, or ``off``."""
    try:
        return None if text == "off" else float(_number(float, 0, LARGEST, above=True)(text))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error} (or 'off')") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rnnkern", description=__doc__)
    parser.add_argument("--version", action="version", version=f"rnnkern {rk.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    count, positive = _number(int, 1, 2**20), _number(float, 0, above=True)
    seed = _number(int, 0, 2**32 - 1)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--threads", type=_number(int, 1, 1024), help="of the kernels")
        sub.set_defaults(run=run)
        return sub

    train = command("train", _train, "Train a character-level model and draw a sample from it.")
    train.add_argument(
        "files", nargs="*", type=_path, metavar="FILE", help="UTF-8 text files, or folders of such;"
        " default: the source of Python's standard library. The last tenth of each is held out.",
    )  # fmt: skip
    defaults = Settings()

    def setting(name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
        value = getattr(defaults, name)
        text = f"{text} (default: {'off' if value is None else value})"
        option = "--" + name.replace("_", "-")
        # Suppressed, so that what was given can be told from what was not: see --resume.
        train.add_argument(option, type=kind, default=argparse.SUPPRESS, help=text, **more)

    setting("cell", str, "recurrent layer", choices=sorted(CELLS))
    setting("hidden", count, "hidden units")
    setting("embedding", count, "size of a character's embedding")
    setting("layers", _number(int, 1, 64), "stacked layers")
    setting("dropout", _number(float, 0, 0.99), "share of outputs dropped between layers")
    setting("batch", count, "lanes of text read side by side")
    setting("length", count, "steps of truncated BPTT")
    setting("lr", _number(float, 0, LARGEST, above=True), "learning rate of Adam")
    setting("clip_norm", _limit, "joint L2 norm of all gradients, or off")
    setting("clip_value", _limit, "each element of each parameter's gradient, or off")
    setting("clip_step_value", _limit, "each step's gate gradients, elementwise, or off")
    setting("clip_step_norm", _limit, "L2 norm of each row's gradient handed back a step, or off")
    setting("l2", _number(float, 0, LARGEST), "L2 penalty on the weights, not on the biases")
    setting("seed", seed, "of parameters, dropout, order and sample")
    train.add_argument(
        "--steps", type=count, help=f"stop at this step (default: {STEPS}, none with --seconds)"
    )
    train.add_argument("--seconds", type=positive, help="stop after this time (default: none)")
    train.add_argument("--out", type=_path, default=Path("rnnkern-run"), metavar="FOLDER",
                       help="for model and picture; two runs at once into one folder are refused"
                       " (default: %(default)s)")  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on with the run in FOLDER")
    train.add_argument("--save-every", type=count, default=500, metavar="STEPS",
                       help="save in between (default: %(default)s); a save that fails is"
                       " reported and tried again at the next and at the end")  # fmt: skip
    train.set_defaults(error=train.error)

    sample = command("sample", _sample, "Write text with a trained model, one step at a time.")
    sample.add_argument("model", type=_path, metavar="MODEL", help="a model.safetensors of train")
    sample.add_argument("--prompt", default="def ", help="text to go on from (default: 'def ')")
    sample.add_argument("--length", type=count, default=500, help="characters (default: 500)")
    sample.add_argument("--temperature", type=_number(float, 0, 100), default=0.8,
                        help="0: always the likeliest character (default: 0.8)")  # fmt: skip
    sample.add_argument("--seed", type=seed, default=0, help="of the draws (default: 0)")

    measure = command("bench", _bench, "Time forward and training against NumPy and Python.")
    measure.add_argument("--quick", action="store_true", help="small sizes, under 15 s")
    command("info", _info, "Show version, instruction sets, threads and build.")
    return parser


def _train(args: argparse.Namespace) -> int:
    with _own(args.out, make=not args.resume):
        try:
            return _run(args)
        except MemoryError as error:
            sizes = "FILE, --hidden, --embedding, --layers, --batch and --length"
            raise CharLMError(f"{sizes}: expected sizes that fit in memory: {error}") from error


@contextmanager
def _own(folder: Path, make: bool) -> Iterator[None]:
    """Hold the folder against other runs; remove what was made for it if it stays empty."""
    made = [path for path in (folder, *folder.parents) if make and not path.exists()]
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with files.lock(folder):
            yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _run(args: argparse.Namespace) -> int:
    """Train, save, draw and sample as the options say, in a folder that exists."""
    for name in ("rich.progress", "matplotlib", "threadpoolctl"):
        extra(name)  # ask now, not after the training
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    path = args.out / "model.safetensors"
    if path.exists() and not args.resume:
        raise CharLMError(f"{path} exists: --resume goes on with it, --out FOLDER leaves it alone")
    corpus = Corpus.of(read_texts(args.files) if args.files else stdlib_texts())
    if args.resume:
        trainer = Trainer.load(path, corpus)
        for name, value in given.items():
            if (saved := getattr(trainer.settings, name)) != value:
                option = "--" + name.replace("_", "-")
                args.error(f"argument {option}: the saved run has {saved}, got {value}")
    else:
        settings = Settings(**given)
        if settings.dropout and settings.layers == 1:
            args.error("argument --dropout: acts between layers only; expected --layers above 1")
        trainer = Trainer(corpus, settings)
    steps = args.steps or (None if args.seconds else STEPS)
    done = len(trainer.history)
    if steps is not None and done >= steps:
        args.error(f"argument --steps: expected more than the {done} steps done, got {steps}")
    # A run that can't be saved must not start. A resumed run replaces its own file by the same
    # bytes, since replacing another user's file, for example, can be forbidden.
    trainer.save(path, dry_run=not args.resume)
    print(
        f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out (the last"
        f" tenth of each file), {len(corpus.vocabulary)} in the vocabulary; {rk.get_num_threads()}"
        f" threads",
        flush=True,
    )
    # NumPy's products are small here, and its threads would spin where the kernels' want to run:
    # on two cores that halves the speed.
    with extra("threadpoolctl").threadpool_limits(1, user_api="blas"):
        try:
            interrupted = _loop(trainer, steps, args.seconds, args.save_every, path)
        except OSError:  # standard output is a closed pipe or on a full disk
            trainer.save(path)
            raise
    trainer.save(path)
    held_out = trainer.evaluate()
    picture = args.out / "training.png"
    _draw(trainer, held_out, picture)
    done, skipped = len(trainer.history), trainer.optimizer.skipped
    _write(
        f"step {done}: held-out {held_out:.3f} bits per character"
        + (f"; {skipped} steps skipped, not finite" if skipped else "")
        + f"; {path} and {picture} written"
    )
    if interrupted:
        print(f"interrupted at step {done}; --resume goes on", flush=True)
        return INTERRUPTED
    seed = trainer.settings.seed
    print("\nA sample:\n")
    _write_sample(trainer.model, path, "def ", 400, 0.8, seed)
    return 0


def _loop(
    trainer: Trainer, steps: int | None, seconds: float | None, save_every: int, path: Path
) -> bool:
    """Train until `steps` or `seconds` are up; True where Ctrl-C came first."""
    progress = extra("rich.progress")
    terminal = sys.stdout.isatty()
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C does not wait

    before = signal.signal(signal.SIGINT, stop)
    begin, first = time.perf_counter(), len(trainer.history)
    shown = begin
    try:
        with progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=12),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            disable=not terminal,
        ) as bar:
            task = bar.add_task("", total=1.0)
            while True:
                trainer.step()
                now, done = time.perf_counter(), len(trainer.history)
                share = max(
                    (done - first) / (steps - first) if steps else 0.0,
                    (now - begin) / seconds if seconds else 0.0,
                )
                if terminal or now - shown >= PRINT_EVERY or done == first + 1 or share >= 1:
                    lines = _status(trainer, (done - first) / (now - begin))
                    shown = now
                    bar.update(task, completed=min(share, 1.0), description="\n".join(lines))
                    if not terminal:
                        print("; ".join(lines), flush=True)
                if share >= 1 or interrupted:
                    return interrupted
                if done % save_every == 0:
                    try:
                        trainer.save(path)
                    except (files.FileError, OSError) as error:
                        text = f"rnnkern train: warning: step {done} not saved, going on: {error}"
                        print(text, file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGINT, before)


def _status(trainer: Trainer, steps_a_second: float) -> tuple[str, str]:
    """Say where the run is, in two lines that leave room for a bar in 80 columns."""
    bits, norm, scale, _ = np.array(trainer.history[-RUNNING:]).T
    held_out = f"{trainer.held_out[-1][1]:.2f}" if trainer.held_out else "-"
    speed = steps_a_second * trainer.settings.batch * trainer.settings.length
    loss = f"{bits[-1]:.2f} bits/char, mean {bits.mean():.2f}, held-out {held_out}"
    return (
        f"step {len(trainer.history)}: {loss}",
        f"{speed:,.0f} char/s; gradient {norm[-1]:.2f}, clip in {(scale < 1).mean():.0%} of steps",
    )


def _draw(trainer: Trainer, held_out: float, path: Path) -> None:
    """Draw loss and gradient norms over the steps."""
    figure = extra("matplotlib.figure").Figure(figsize=(9, 7), layout="constrained")
    loss, gradient = figure.subplots(2, 1, sharex=True)
    bits, norm, scale, applied = np.array(trainer.history).T
    steps = np.arange(1, len(bits) + 1)
    sums = np.concatenate(([0.0], np.cumsum(bits)))
    low = np.maximum(steps - RUNNING, 0)
    with np.errstate(invalid="ignore"):  # a loss can be infinite
        means = (sums[steps] - sums[low]) / (steps - low)
    loss.plot(steps, bits, color="0.75", linewidth=0.8, label="training, each step")
    loss.plot(steps, means, color="C0",
              label=f"training, mean of the last {RUNNING} steps")  # fmt: skip
    points = [p for p in trainer.held_out if p[0] < len(bits)] + [(float(len(bits)), held_out)]
    loss.plot(*zip(*points, strict=True), "o-", color="C1", markersize=3, label="held-out")
    loss.set(ylabel="loss (bits per character)")
    name = f"{trainer.settings.cell.upper()} with {trainer.settings.hidden} hidden units"
    loss.set_title(f"{name}: {held_out:.2f} bits per character held out")
    limit = trainer.settings.clip_norm
    acted = f", acted in {(scale < 1).mean():.0%} of the steps" if limit else ""
    norm = np.where(applied > 0, norm, np.nan)  # skipped steps have no finite norm
    gradient.plot(steps, norm, color="C3", linewidth=2, alpha=0.4, label="before the clip")
    gradient.plot(steps, norm * scale, color="C2", linewidth=0.8, label=f"after the clip{acted}")
    gradient.set(ylabel="gradient norm (L2; nats per character)")
    if (norm > 0).any():
        gradient.set(yscale="log")
    gradient.set_xlabel(f"step ({trainer.settings.batch * trainer.settings.length:,} characters)")
    for axes in (loss, gradient):
        axes.legend()
        axes.grid(alpha=0.3)
    with files.naming(str(path)):
        figure.savefig(path, dpi=120)


def _sample(args: argparse.Namespace) -> int:
    model = load_model(args.model)
    _write_sample(model, args.model, args.prompt, args.length, args.temperature, args.seed)
    return 0


def _write_sample(
    model: CharLM, path: Path, prompt: str, length: int, temperature: float, seed: int
) -> None:
    """Print the prompt and what the model of a file writes after it."""
    try:
        _write(prompt + model.sample(prompt, length, temperature, seed))
    except FloatingPointError as error:
        raise CharLMError(f"{path}: {error}") from error


def _write(text: str) -> None:
    """Print `text`, with what the terminal's encoding lacks as question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _bench(args: argparse.Namespace) -> int:
    print(f"{rk.get_num_threads()} threads, instruction set {rk.info()['isa']}; medians, float32")
    bench.show(bench.run(quick=args.quick))
    return 0


def _info(args: argparse.Namespace) -> int:
    items = rk.info()
    width = max(map(len, items))
    for name, value in items.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name:{width}}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
