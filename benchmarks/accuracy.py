"""The command line's character model, trained in float32 and in bf16: losses on held-out text.

Each seed is trained both ways, with the same initial parameters and the same batches. bf16 is good
enough if its difference from float32 is within the spread of the seeds::

    python benchmarks/accuracy.py                       # small models, some minutes
    python benchmarks/accuracy.py --steps 2000 --seeds 5 --cells lstm
"""

from __future__ import annotations

import argparse
import statistics
import sys

from rnnkern.cli.charlm import Settings, Trainer, inputs_are_units
from rnnkern.cli.text import Corpus, stdlib_texts
from rnnkern.layers import LAYERS

COMPUTES = (None, "bf16")


def trained(corpus: Corpus, settings: Settings, steps: int) -> float:
    """Bits per character of the held-out text after so many steps."""
    trainer = Trainer(corpus, settings)
    for _ in range(steps):
        trainer.step()
    return trainer.evaluate()


def row(corpus: Corpus, cell: str, options: argparse.Namespace) -> str:
    """A cell's row of the table."""
    embedding = options.hidden if inputs_are_units(cell) else Settings.embedding
    bits: dict[str | None, list[float]] = {compute: [] for compute in COMPUTES}
    for seed in range(options.seeds):
        for compute in COMPUTES:
            settings = Settings(
                cell=cell, hidden=options.hidden, embedding=embedding, compute=compute, seed=seed
            )
            bits[compute].append(trained(corpus, settings, options.steps))
            print(f"{cell}, seed {seed}, {compute}: {bits[compute][-1]:.4f}", file=sys.stderr)
    plain, in_bf16 = (bits[compute] for compute in COMPUTES)
    spread = max(plain) - min(plain)
    off = [b - a for a, b in zip(plain, in_bf16, strict=True)]
    shown = (statistics.mean(plain), statistics.mean(in_bf16), statistics.mean(off), spread)
    within = "yes" if abs(statistics.mean(off)) <= spread else "**no**"
    first, *others = (f"{value:.4f}" for value in shown)
    return f"| {cell} | {first} | {' | '.join(others)} | {within} |"


def counted(text: str) -> int:
    if not int(text) > 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--cells", nargs="+", default=["gru", "lstm", "rnn"], choices=list(LAYERS), metavar="CELL")
    add("--seeds", type=counted, default=3)
    add("--steps", type=counted, default=400)
    add("--hidden", type=counted, default=128)
    options = parser.parse_args()
    corpus = Corpus.of(stdlib_texts())
    print(
        f"Bits per character of held-out text after {options.steps} steps, {options.hidden} units,"
        f" mean of {options.seeds} seeds; the spread is float32's largest less its smallest.\n"
    )
    print("| cell | float32 | bf16 | difference | spread of seeds | within |")
    print("|---|---:|---:|---:|---:|---|")
    for cell in options.cells:
        print(row(corpus, cell, options), flush=True)


if __name__ == "__main__":
    main()
