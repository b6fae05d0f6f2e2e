"""The command ``rnnkern``: train and sample a character model, measure, show the build."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import rnnkern as rk
from rnnkern import files
from rnnkern.distributed import MOST_SHARDS
from rnnkern.distributed.launch import launched_rank
from rnnkern.layers import LAYERS

from . import bench, train
from .charlm import LARGEST, Settings
from .text import CharLMError


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
        in one line; 130 after Ctrl-C and 143 after SIGTERM (``train`` saves the run before); 141
        if standard output is a pipe that its reader has closed, as in ``rnnkern sample | head``.
        Errors in the arguments themselves raise ``SystemExit(2)``, as argparse does.

    Examples
    --------
    >>> from rnnkern.cli import main
    >>> status = main(["info"])  # doctest: +ELLIPSIS
    version...
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    parser = _parser()
    with _quiet() if launched_rank() else nullcontext():
        args = parser.parse_args(argv)
    try:
        try:
            with rk.num_threads(args.threads or rk.get_num_threads()):
                return int(args.run(args))
        finally:
            _flush()
    except BrokenPipeError:
        return train.exit_status(signal.SIGPIPE)
    except (CharLMError, files.FileError, MemoryError, OSError) as error:
        unnamed = isinstance(error, OSError) and error.filename is None  # files are named
        text = f"standard output: {error}" if unnamed else error
        print(f"rnnkern {args.command}: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rnnkern {args.command}: interrupted", file=sys.stderr)
        return train.exit_status(signal.SIGINT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave help and errors in arguments to rank 0 of mpiexec."""
    with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
        yield


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
    about = "Train a character-level model, write text with it, time the layers, show the build."
    parser = argparse.ArgumentParser(prog="rnnkern", description=about)
    parser.add_argument("--version", action="version", version=f"rnnkern {rk.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    count, positive = _number(int, 1, 2**20), _number(float, 0, above=True)
    seed = _number(int, 0, 2**32 - 1)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        threads = "largest number of threads (default: physical cores that the process may use)"
        sub.add_argument("--threads", type=_number(int, 1, 1024), metavar="N", help=threads)
        sub.set_defaults(run=run)
        return sub

    training = command(
        "train", train.train, "Train a character-level model, and write a sample with it."
    )
    training.add_argument(
        "files", nargs="*", type=_path, metavar="FILE", help="a UTF-8 text file, or a folder of"
        " text files (default: the source of Python's standard library). The last tenth of each"
        " file is held out for evaluation.",
    )  # fmt: skip
    defaults = Settings()

    def setting(name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
        value = getattr(defaults, name)
        text = f"{text} (default: {'off' if value is None else value})"
        option = "--" + name.replace("_", "-")
        if "choices" not in more:
            more.setdefault("metavar", "N" if isinstance(value, int) else "X")
        # Suppressed, so that what was given can be told from what was not: see --resume.
        training.add_argument(option, type=kind, default=argparse.SUPPRESS, help=text, **more)

    setting("cell", str, "kind of the recurrent layer", choices=list(LAYERS))
    setting("hidden", count, "number of hidden units")
    text = "size of a character's embedding; cells with as many inputs as units use --hidden"
    setting("embedding", count, text)
    setting("layers", _number(int, 1, 64), "number of layers")
    setting("dropout", _number(float, 0, 0.99), "probability of dropout between layers")
    setting("batch", count, "number of parts of the text that are read in parallel")
    setting("length", count, "characters over which gradients flow back in time")
    setting("lr", _number(float, 0, LARGEST, above=True), "learning rate of Adam")
    setting("max_norm", _limit, "limit of the joint L2 norm of all gradients, or off")
    text = "limit of each element of the parameters' gradients, or off"
    setting("clip_value", _limit, text, metavar="X")
    text = "limit of each element of the gates' gradients at each time step, or off"
    setting("clip_step_value", _limit, text, metavar="X")
    text = "limit of the L2 norm of the gradient that each time step passes back, or off"
    setting("clip_step_norm", _limit, text, metavar="X")
    setting("l2", _number(float, 0, LARGEST), "L2 penalty on the weights, but not on the biases")
    text = "round the operands of the recurrent layer's products to this format"
    setting("compute", str, text, choices=["bf16"])
    setting("seed", seed, "seed of the parameters, dropout, order and sample")
    text = "number of parts of a batch, which the processes of mpiexec share; under mpiexec the"
    text += " default is the number of processes"
    setting("shards", _number(int, 1, MOST_SHARDS), text)
    training.add_argument(
        "--steps",
        type=count,
        metavar="N",
        help=f"stop at step N (default: {train.STEPS}; with --seconds: no limit)",
    )
    text = "stop after X seconds (default: no limit)"
    training.add_argument("--seconds", type=positive, metavar="X", help=text)
    training.add_argument("--out", type=_path, default=Path("rnnkern-run"), metavar="FOLDER",
                       help="folder for the model and the picture; only one run at a time may"
                       " use it (default: %(default)s)")  # fmt: skip
    training.add_argument("--resume", action="store_true", help="continue the run in FOLDER")
    training.add_argument("--save-every", type=count, default=500, metavar="N",
                       help="save the run every N steps (default: %(default)s); a failed save is"
                       " reported, and tried again at the next save and at the end")  # fmt: skip
    training.set_defaults(error=training.error)

    sample = command("sample", train.sample, "Write text with a trained model.")
    text = "the model.safetensors that train wrote"
    sample.add_argument("model", type=_path, metavar="MODEL", help=text)
    text = "text to continue (default: 'def ')"
    sample.add_argument("--prompt", default="def ", metavar="TEXT", help=text)
    text = "number of characters (default: 500)"
    sample.add_argument("--length", type=count, default=500, metavar="N", help=text)
    sample.add_argument("--temperature", type=_number(float, 0, 100), default=0.8, metavar="X",
                        help="randomness of the text; 0 always writes the most probable character"
                        " (default: 0.8)")  # fmt: skip
    text = "seed of the random choices (default: 0)"
    sample.add_argument("--seed", type=seed, default=0, metavar="N", help=text)

    text = "Compare the speed with that of the NumPy reference and of plain Python."
    measure = command("bench", _bench, text)
    text = "use small sizes; takes less than 15 s"
    measure.add_argument("--quick", action="store_true", help=text)
    command("info", _info, "Show the version, instruction sets, number of threads and compiler.")
    return parser


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
