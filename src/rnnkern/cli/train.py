"""The commands ``train`` and ``sample``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import files
from rnnkern.distributed import Communicator

from .charlm import CharLM, Settings, Trainer, inputs_are_units, load_model
from .text import CharLMError, Corpus, read_texts, stdlib_texts

STEPS = 800  # without --steps and --seconds
PRINT_EVERY = 3.0  # seconds, where there is no terminal for a progress bar
RUNNING = 50  # steps in running means
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that end a run, which is saved first
NARROW = 80  # columns; a terminal with fewer gets two short lines without a bar


def train(args: argparse.Namespace) -> int:
    comm = Communicator()  # of one rank, without a launcher
    if comm.rank > 0:
        args.error = lambda message: sys.exit(2)  # rank 0 says it
    threads = rk.get_num_threads()
    if not args.threads:
        threads = max(1, threads // comm.ranks_per_core_set())
    try:
        with rk.num_threads(threads), ExitStack() as held:
            comm.first(lambda: held.enter_context(_own(args.out, make=not args.resume)))
            return _run(args, comm)
    except MemoryError as error:
        sizes = "FILE, --hidden, --embedding, --layers, --batch and --length"
        text = f"{sizes}: expected sizes that fit in memory: {error}"
        if comm.rank:
            print(f"rnnkern train: error: rank {comm.rank}: {text}", file=sys.stderr)
            return 1
        raise CharLMError(text) from error
    except (CharLMError, files.FileError, OSError):
        if comm.rank == 0:
            raise
        return 1  # rank 0 says why


def sample(args: argparse.Namespace) -> int:
    model = load_model(args.model)
    _write_sample(model, args.model, args.prompt, args.length, args.temperature, args.seed)
    return 0


def _extra(name: str) -> Any:
    """Import a module of the ``cli`` extra, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CharLMError(f"{name} is missing ({error}): pip install 'rnnkern[cli]'") from error


@contextmanager
def _own(folder: Path, make: bool) -> Iterator[None]:
    """Hold the folder against other runs; remove what was made for it if it stays empty."""
    made = [path for path in (folder, *folder.parents) if make and not path.exists()]
    try:
        for path in reversed(made):  # mkdir(parents=True) recurses: a long path would be too deep
            path.mkdir(exist_ok=True)
        with files.lock(folder):
            yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _run(args: argparse.Namespace, comm: Communicator) -> int:
    """Train, save, draw and sample as the options say, in a folder that exists.

    Only rank 0 of several reads, prints and writes.
    """
    path = args.out / "model.safetensors"
    corpus, saved = comm.first(lambda: _opened(args, path, comm))
    trainer = _trainer(args, path, corpus, saved, comm)
    comm = trainer.comm
    steps = args.steps or (None if args.seconds else STEPS)
    done = len(trainer.history)
    if steps is not None and done >= steps:
        args.error(f"argument --steps: expected more than the {done} steps done, got {steps}")
    # A run that can't be saved must not start. A resumed run replaces its own file by the same
    # bytes, since replacing another user's file, for example, can be forbidden.
    comm.first(lambda: trainer.save(path, dry_run=not args.resume))
    about = (
        f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out (the last"
        f" tenth of each file), {len(corpus.vocabulary)} in the vocabulary; {rk.get_num_threads()}"
        f" threads"
    )
    if comm.size > 1:
        about += f" on each of {comm.size} ranks, {comm.shards} shards"
    comm.first(lambda: print(about, flush=True))
    failed: list[OSError] = []
    try:
        ended_by = _loop(trainer, steps, args.seconds, args.save_every, path, failed)
    except OSError as error:  # of the progress bar's last lines
        ended_by, failed = 0, [error]
    trainer.gather()
    if comm.rank:
        return exit_status(ended_by) if ended_by else 0
    trainer.save(path)
    if failed:  # standard output is a closed pipe or on a full disk
        raise failed[0]
    held_out = trainer.evaluate()
    picture = args.out / "training.png"
    _draw(trainer, held_out, picture)
    done, skipped = len(trainer.history), trainer.optimizer.skipped
    _write(
        f"step {done}: held-out {held_out:.3f} bits per character"
        + (f"; {skipped} steps skipped, not finite" if skipped else "")
        + f"; {path} and {picture} written"
    )
    if ended_by:
        print(f"interrupted at step {done}; --resume goes on", flush=True)
        return exit_status(ended_by)
    seed = trainer.settings.seed
    print("\nA sample:\n")
    _write_sample(trainer.model, path, "def ", 400, 0.8, seed)
    return 0


def _opened(
    args: argparse.Namespace, path: Path, comm: Communicator
) -> tuple[Corpus, bytes | None]:
    """The text, and for other ranks the file of a run that goes on."""
    for name in ("rich.progress", "matplotlib"):
        _extra(name)  # ask now, not after the training
    if path.exists() and not args.resume:
        raise CharLMError(f"{path} exists: --resume goes on with it, --out FOLDER leaves it alone")
    corpus = Corpus.of(read_texts(args.files) if args.files else stdlib_texts())
    return corpus, path.read_bytes() if args.resume and comm.size > 1 else None


def _trainer(
    args: argparse.Namespace, path: Path, corpus: Corpus, saved: bytes | None, comm: Communicator
) -> Trainer:
    """The run as the options say, from its start or from its file."""
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    if args.resume:
        if comm.rank == 0:
            trainer = Trainer.load(path, corpus, comm)
        else:
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
                copy.write(saved or b"")
                copy.flush()
                trainer = Trainer.load(Path(copy.name), corpus, comm)
        for name, value in given.items():
            if (kept := getattr(trainer.settings, name)) != value:
                option = "--" + name.replace("_", "-")
                args.error(f"argument {option}: the saved run has {kept}, got {value}")
        return trainer
    cell, hidden = given.get("cell", Settings.cell), given.get("hidden", Settings.hidden)
    if inputs_are_units(cell) and given.setdefault("embedding", hidden) != hidden:
        expected = f"expected --hidden, which is {hidden}, with --cell {cell}"
        args.error(f"argument --embedding: {expected}; got {given['embedding']}")
    shards: int = given.setdefault("shards", comm.size)
    if shards % comm.size:
        args.error(f"argument --shards: expected a multiple of the {comm.size} ranks; got {shards}")
    if shards > 1 and given.get("clip_value") is not None:
        expected = "expected off with more than one shard (--max-norm acts on the joint gradient)"
        args.error(f"argument --clip-value: {expected}; got {given['clip_value']}")
    settings = Settings(**given)
    if settings.dropout and settings.layers == 1:
        args.error("argument --dropout: acts between layers only; expected --layers above 1")
    return Trainer(corpus, settings, comm)


def _loop(
    trainer: Trainer,
    steps: int | None,
    seconds: float | None,
    save_every: int,
    path: Path,
    failed: list[OSError],
) -> int:
    """Train until `steps` or `seconds` are up; the signal that came first, if one did, or 0.

    An error of standard output ends the run, too: it is appended to `failed`.
    """
    comm = trainer.comm
    progress = _extra("rich.progress")
    terminal = sys.stdout.isatty() and comm.rank == 0
    narrow = terminal and _extra("rich.console").Console().width < NARROW
    ended_by = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = number
        comm.stop(number)
        restore()  # a second signal does not wait

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    begin, first = time.perf_counter(), len(trainer.history)
    shown = begin
    try:
        with progress.Progress(
            progress.TextColumn("{task.description}"),
            *(() if narrow else (progress.BarColumn(bar_width=12),)),
            progress.TaskProgressColumn(),
            *(() if narrow else (progress.TimeRemainingColumn(),)),
            disable=not terminal,
        ) as bar:
            task = bar.add_task("", total=1.0)
            while True:
                trainer.step()
                now, done = time.perf_counter(), len(trainer.history)
                of_steps = (done - first) / (steps - first) if steps else 0.0
                of_time = (now - begin) / seconds if seconds else 0.0
                share = max(of_steps, of_time)
                due = terminal or now - shown >= PRINT_EVERY or done == first + 1 or share >= 1
                if comm.rank == 0 and due:
                    lines = _status(trainer, (done - first) / (now - begin), narrow)
                    shown = now
                    try:
                        bar.update(task, completed=min(share, 1.0), description="\n".join(lines))
                        if not terminal:
                            print("; ".join(lines), flush=True)
                    except OSError as error:
                        failed.append(error)
                if comm.size == 1:
                    ends = share >= 1 or bool(ended_by or failed)
                else:  # all ranks after the same step: one more where it is rank 0 that knows
                    if comm.rank == 0 and (of_time >= 1 or failed):
                        comm.stop()
                    ends = of_steps >= 1 or comm.stopped is not None
                    ended_by = comm.stopped or 0
                if ends:
                    return ended_by
                if done % save_every == 0:
                    trainer.gather()
                    if comm.rank:
                        continue
                    try:
                        trainer.save(path)
                    except (files.FileError, OSError) as error:
                        text = f"rnnkern train: warning: step {done} not saved, going on: {error}"
                        with suppress(OSError):  # standard error may be on the same full disk
                            print(text, file=sys.stderr, flush=True)
    finally:
        restore()


def exit_status(number: int) -> int:
    """What shells report of a process that this signal ended."""
    return 128 + number


def _status(trainer: Trainer, steps_a_second: float, narrow: bool) -> tuple[str, str]:
    """Say where the run is, in two lines that leave room for a bar in 80 columns.

    In 40 columns (`narrow`) they leave room for a percentage.
    """
    bits, norm, scale, _ = np.array(trainer.history[-RUNNING:]).T
    held_out = f"{trainer.held_out[-1][1]:.2f}" if trainer.held_out else "-"
    speed = steps_a_second * trainer.settings.batch * trainer.settings.length
    if narrow:
        return (
            f"step {len(trainer.history)}: {bits.mean():.2f} bits/char",
            f"held-out {held_out}; {speed:,.0f} char/s",
        )
    loss = f"{bits[-1]:.2f} bits/char, mean {bits.mean():.2f}, held-out {held_out}"
    return (
        f"step {len(trainer.history)}: {loss}",
        f"{speed:,.0f} char/s; gradient {norm[-1]:.2f}, clip in {(scale < 1).mean():.0%} of steps",
    )


def _draw(trainer: Trainer, held_out: float, path: Path) -> None:
    """Draw loss and gradient norms over the steps."""
    figure = _extra("matplotlib.figure").Figure(figsize=(9, 7), layout="constrained")
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
    name = f"{type(trainer.model.layer).__name__} with {trainer.settings.hidden} hidden units"
    loss.set_title(f"{name}: {held_out:.2f} bits per character held out")
    limit = trainer.settings.max_norm
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
