"""What the scripts of this folder share: options, timing, and how pictures and figures are kept."""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure  # without pyplot: no display, nothing global
from PIL import Image  # which matplotlib brings along

matplotlib.style.use(Path(__file__).parents[1] / "pictures.mplstyle")


def parser(doc: str) -> argparse.ArgumentParser:
    """`quick`: a few seconds, to see that it runs; `out`: the folder for what is written."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes: smaller sizes")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (here)")
    return parser


def options(doc: str) -> argparse.Namespace:
    """What a script without further options was given."""
    return parser(doc).parse_args()


def medians(
    ways: dict[str, Callable[[], object]],
    seconds: float,
    before_turn: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of a call of each, in turns, until `seconds` are over: at least 3 rounds.

    A turn is up to 100 calls in 50 ms, since training calls the same again and again too.
    """
    for call in ways.values():
        call()  # what is made and learnt once
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in ways.items():
            before_turn()
            turn: list[float] = []
            while len(turn) < 100 and sum(turn) < 0.05:
                begin = time.perf_counter()
                call()
                turn.append(time.perf_counter() - begin)
            taken[name] += turn
        rounds += 1
    return {name: median(values) for name, values in taken.items()}


def draw_into(out: Path, name: str, figure: Figure) -> None:
    """Write `name`.png."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, bbox_inches="tight")
    # A palette of 256 colours, taken by octree, makes the file a third of the size.
    few = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    few.save(out / f"{name}.png", optimize=True)


def keep(out: Path, name: str, figure: Figure, figures: dict[str, Any]) -> None:
    """Write `name`.png and, beside it, the figures that the picture shows as `name`.json."""
    draw_into(out, name, figure)
    text = json.dumps(figures, indent=1, default=float)
    (out / f"{name}.json").write_text(text + "\n")
    print(f"wrote {out / name}.png and .json")
