"""The peer benchmark's results as Markdown and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cases import (
    BLOCK_STEPS,
    GRIDS,
    LABELS,
    TRAINING_MEAN_BEST,
    TRAINING_MEAN_TORCH,
    TRAINING_WORST,
)
from machine import LEVELS

try:
    import matplotlib.style
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global
except ImportError:
    Figure = None  # type: ignore[assignment,misc]

TITLES = {
    "step": "One step: B = 1, T = 1",
    "block": f"A block of {BLOCK_STEPS} steps, B = 1: time per step",
    "inference": "Inference over a sequence",
    "training": "Training: forward and full BPTT, dx and all parameter gradients",
    "deepbench": "DeepBench's sizes",
    "tails": "Sizes that are not a multiple of a vector, and I other than H",
    "bf16": "bf16, compared with float32 and with the peers",
}
PICTURED = [grid for grid in GRIDS if grid != "bf16"]  # whose limits are those of float32
STYLE = Path(__file__).parents[1] / "examples" / "pictures.mplstyle"
MODEL = """\
A ratio is a peer's median divided by rnnkern's: above 1, rnnkern is faster. Times are medians over
all timed calls of all rounds, with the minimum in parentheses. Calls of less than 0.1 ms are timed
in batches. Sizes are B,T,H, with I = H, or B,T,I>H.

**Limit.** The limit of a case is the longer of two times:

- FLOPs / peak. FLOPs are 2 * B * T * G * H * (I + H) forward, and three times that for training.
  They count products only: activations and the cells' own maths are not included.
- The time to read the weights that the steps need. As many weights as fit come from the cores' L1,
  then from L2, then from L3, and the rest from memory, each at the measured bandwidth. A step reads
  W_hh once forward and once backward. In the step grid, where a call is one step, it reads W_ih,
  too.

The share of the limit is the limit divided by rnnkern's median.

Targets apply to one thread: a ratio to the best peer, or a share of the multiply-add peak."""


def mean(values: Iterable[float]) -> float:
    """The geometric one."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def threads_of(run: dict[str, Any]) -> str:
    return f"{run['threads']} thread{'' if run['threads'] == 1 else 's'}"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    ruler = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows), ""]


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def times_of(case: dict[str, Any], name: str, *, least: bool = False) -> str:
    found = case["times"].get(name)
    if found is None:
        return "-"
    calls = case["T"] if case["grid"] == "block" else 1
    shown = duration(found["median"] / calls)
    return f"{shown} ({duration(found['min'] / calls)})" if least else shown


def times(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f} x" if x < 10 else f"{x:.0f} x"


def best_ratio(case: dict[str, Any]) -> float | None:
    return case["ratios"][case["best"]] if case["best"] else None


def target_of(case: dict[str, Any]) -> str:
    target = case["target"]
    if target is None:
        return "-"
    unit = "x" if target["what"] == "ratio" else "of peak"
    return " ".join([f">= {target['at_least']:g} {unit}", *target["against"].split()])


def grid_section(grid: str, cases: list[dict[str, Any]], names: list[str]) -> list[str]:
    peers = [n for n in names if n != "rnnkern" and any(n in c["times"] for c in cases)]
    head = ["case", "rnnkern", *peers, "to best", "to PyTorch", "target", "met", "of limit"]
    head += ["of peak", "bound"]
    rows = [
        [
            case["name"].removeprefix(f"{grid} "),
            times_of(case, "rnnkern", least=True),
            *(times_of(case, peer) for peer in peers),
            times(best_ratio(case)),
            times(case["ratios"].get("PyTorch")),
            target_of(case),
            {True: "yes", False: "**no**", None: "-"}[case["met"]],
            f"{case['shares']['limit']:.0%}",
            f"{case['shares']['peak']:.0%}",
            case["limit"]["bound"],
        ]
        for case in cases
    ]
    lines = [f"### {TITLES[grid]}", "", *table(head, rows)]
    best = [r for case in cases if (r := best_ratio(case)) is not None]
    torch = [r for case in cases if (r := case["ratios"].get("PyTorch")) is not None]
    if best:
        lines.append(f"Geometric mean: {mean(best):.2f} x the best peer")
        lines[-1] += f", {mean(torch):.2f} x PyTorch." if torch else "."
        lines[-1] += f" Worst case: {min(best):.2f} x the best peer."
        if grid == "training":
            lines[-1] += (
                f" Target: {TRAINING_MEAN_BEST:g} x, {TRAINING_MEAN_TORCH:g} x PyTorch, no case"
                f" below {TRAINING_WORST:g} x."
            )
        lines.append("")
    return lines


def bf16_section(cases: list[dict[str, Any]]) -> list[str]:
    """Times and ratios; targets are for one thread."""
    names = ["rnnkern", *dict.fromkeys(n for c in cases for n in c["times"] if n != "rnnkern")]
    rows = []
    for case in cases:
        targets = [t for t in case["targets"] if t["ratio"] is not None]
        missed = [t["against"] for t in targets if t["ratio"] < t["at_least"]]
        met = f"**not** to {', '.join(missed)}" if missed else "yes" if targets else "-"
        rows.append(
            [
                case["name"].removeprefix("bf16 "),
                *(times_of(case, name, least=name == "rnnkern") for name in names),
                *(times(case["ratios"].get(name)) for name in names[1:]),
                ", ".join(f">= {t['at_least']:g} x {t['against']}" for t in case["targets"]) or "-",
                met,
            ]
        )
    head = ["case", "rnnkern bf16", *names[1:], *(f"to {name}" for name in names[1:])]
    text = (
        "`weights`: frozen weights of bf16, float32 activations. `products`: both operands rounded,"
        " weights packed in each call. `frozen`: the same with weights packed once. PyTorch bf16 is"
        " a module of bfloat16 with inputs of bfloat16; ONNX Runtime computes in float32."
    )
    return [f"### {TITLES['bf16']}", "", text, "", *table([*head, "target", "met"], rows)]


def machine_section(run: dict[str, Any]) -> list[str]:
    machine = run["machine"]
    rows = [
        [when, f"{machine[when]['flops'] / 1e9:.1f} GFLOP/s"]
        + [f"{machine[when][level] / 1e9:.1f} GB/s" for level in LEVELS]
        for when in ("start", "end")
    ]
    return table(["machine", "multiply-adds", *LEVELS], rows)


def facts_lines(results: dict[str, Any]) -> list[str]:
    """Machine, build, libraries and settings, a paragraph."""
    info, settings = results["rnnkern"], results["settings"]
    caches = ", ".join(
        f"{name} {size >> 10} KiB" for name, size in sorted(results["caches"].items())
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    missing = ", ".join(sorted(results["missing"]))
    return [
        f"{results['date']}, {results['cpu']}, {results['cores']} cores, caches {caches};"
        f" instruction set {info['isa']}, {info['compiler']}, commit {info['commit']};"
        f" Python {results['python']}, NumPy {results['numpy']}.",
        f"{versions}." + (f" Not available, so not compared: {missing}." if missing else ""),
        f"{settings['rounds']} rounds of {settings['turn']:g} s a turn; the contenders take turns.",
        "",
    ]


def markdown(results: dict[str, Any], pictures: list[str]) -> str:
    first = {key: results["runs"][0][key] for key in ("versions", "missing")}
    lines = ["# rnnkern and its peers", "", *facts_lines({**results, **first}), MODEL, ""]
    for run in results["runs"]:
        lines += [f"## {threads_of(run)}", "", *machine_section(run)]
        for grid in GRIDS:
            cases = [case for case in run["cases"] if case["grid"] == grid]
            if cases and grid == "bf16":
                lines += bf16_section(cases)
            elif cases:
                lines += grid_section(grid, cases, list(run["versions"]))
    lines += [line for name in pictures for line in (f"![{name}]({name})", "")]
    return "\n".join(lines)


def kind_of(case: dict[str, Any]) -> str:
    """The kind of cases that share a picture."""
    if case["grid"] == "tails":
        return "tails-training" if case["training"] else "tails-inference"
    return str(case["grid"])


def size_words(case: dict[str, Any]) -> dict[str, str]:
    """A case's sizes in words."""
    of = {"B": "row", "T": "step", "H": "unit", "I": "input"}
    words = {letter: f"{case[letter]} {word}s" for letter, word in of.items()}
    words |= {letter: words[letter][:-1] for letter in of if case[letter] == 1}
    if case["I"] == case["H"]:
        words["I"] = ""
    return words


def ratio_picture(runs: list[dict[str, Any]], kind: str) -> Any:
    """Bars from 1 to each ratio to the best peer: a panel a cell, a colour a thread count."""
    runs = [
        {**run, "cases": [c for c in run["cases"] if c["best"] and kind_of(c) == kind]}
        for run in runs
    ]
    every = [case for run in runs for case in run["cases"]]
    sizes = [size_words(case) for case in every]
    varying = [letter for letter in "BTIH" if len({words[letter] for words in sizes}) > 1]

    def label(case: dict[str, Any], panels: bool) -> str:
        cell = [] if panels else [LABELS[case["kind"]]]
        both = ["training" if case["training"] else "inference"] if kind == "deepbench" else []
        words = size_words(case)
        return ", ".join([*cell, *both, *(words[letter] for letter in varying if words[letter])])

    cells = list(dict.fromkeys(case["kind"] for case in every))
    of_cell = [{label(case, True) for case in every if case["kind"] == cell} for cell in cells]
    panels = all(labels == of_cell[0] for labels in of_cell)
    groups = cells if panels else [None]
    rows = list(dict.fromkeys(label(case, panels) for case in every))
    high = 0.8 / len(runs)  # of a bar, where a row is 1
    inches = 0.21 * len(rows) * (len(runs) + 0.6) + 1.6
    figure = Figure(figsize=(10, inches))
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for panel, cell in zip(axes, groups, strict=True):
        for k, run in enumerate(runs):
            cases = [case for case in run["cases"] if cell in (None, case["kind"])]
            y = [rows.index(label(c, panels)) + (k + 0.5) * high - 0.4 for c in cases]
            ratios = [best_ratio(case) or 1.0 for case in cases]
            panel.barh(y, [r - 1 for r in ratios], high, left=1, label=threads_of(run))
            targets = {
                at: case["target"]["at_least"]
                for case, at in zip(cases, y, strict=True)
                if run["threads"] == 1 and case["target"] and case["target"]["what"] == "ratio"
            }
            for ratio, at in zip(ratios, y, strict=True):
                text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
                target = targets.get(at, 1.0)
                right = max(1.0, ratio, target if target < 1.4 * ratio else 1.0)
                panel.annotate(text, (right, at), (4, 0), textcoords="offset points", va="center",
                               fontsize=10)  # fmt: skip
            if targets:
                panel.plot(list(targets.values()), list(targets), "|", color="black", markersize=9,
                           markeredgewidth=2, label="target")  # fmt: skip
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
        panel.tick_params(which="minor", labelsize=10)
        panel.grid(axis="x")
        panel.margins(x=0.2)
        if cell:
            panel.set_title(LABELS[cell])
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    streaming = kind in ("step", "block")  # whose titles say how many steps
    letters = [letter for letter in ("B" if streaming else "BTIH") if letter not in varying]
    fixed = ", ".join(filter(None, (sizes[0][letter] for letter in letters)))
    title = TITLES[every[0]["grid"]].partition(":")[0].partition(",")[0]
    if kind.startswith("tails"):
        title = f"{kind.removeprefix('tails-').capitalize()}, sizes that fill no vector"
    figure.suptitle(f"{title} ({fixed})" if fixed else title)
    axes[len(axes) // 2].set_xlabel("best peer's median time / rnnkern's")
    known = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known, loc="outside lower center", ncols=len(known))
    return figure


def roofline_picture(run: dict[str, Any]) -> Any:
    figure = Figure(figsize=(9, 5.5))
    axes = figure.subplots()
    rates = run["machine"]["best"]
    markers = dict(zip(PICTURED, "osD^vP", strict=True))
    for k, (grid, marker) in enumerate(markers.items()):
        cases = [case for case in run["cases"] if case["grid"] == grid]
        if cases:
            x = [case["flops"] / case["weight_bytes"] for case in cases]
            y = [case["flops"] / case["times"]["rnnkern"]["median"] / 1e9 for case in cases]
            axes.plot(x, y, marker, color=f"C{k}", markersize=6, alpha=0.8, label=grid)
    pictured = [case for case in run["cases"] if case["grid"] in PICTURED]
    intensities = [case["flops"] / case["weight_bytes"] for case in pictured]
    low, high = min([0.25, *intensities]) / 3, max([64.0, *intensities]) * 1.5
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    peak = rates["flops"] / 1e9
    for level in LEVELS:
        rate = rates[level] / 1e9
        axes.plot([low, peak / rate], [low * rate, peak], lw=1, c="gray")
        # Along the line, above its beginning; the angle is that in units of the axes.
        x, y = 1.1 * low, 1.3 * low * rate
        axes.text(x, y, f"{level}, {rate:.0f} GB/s", fontsize=10, rotation_mode="anchor",
                  rotation=math.degrees(math.atan2(y, x)), transform_rotates_text=True)  # fmt: skip
    axes.plot([low, high], [peak] * 2, lw=1, c="black")
    axes.annotate(f"multiply-adds, {peak:.0f} GFLOP/s", (high, peak), (0, 4),
                  textcoords="offset points", fontsize=10, va="bottom", ha="right")  # fmt: skip
    axes.set_xlabel("FLOPs a byte of recurrent weights read")
    axes.set_ylabel(f"GFLOP/s, {threads_of(run)}")
    axes.grid()
    axes.legend(loc="lower right")
    return figure


def write_report(folder: Path, name: str, results: dict[str, Any], lines: list[str]) -> None:
    """Write results as JSON, and as a page whose path is printed."""
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = folder / f"{name.upper()}.md"
    page.write_text("\n".join(lines))
    print(page)


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write RESULTS.md and its pictures; return the report's path."""
    pictures = {}
    if Figure is None:
        print("matplotlib is missing: no pictures")
    else:
        matplotlib.style.use(STYLE)
        cases = [c for run in results["runs"] for c in run["cases"] if c["grid"] in PICTURED]
        for kind in dict.fromkeys(kind_of(case) for case in cases if case["best"]):
            pictures[f"ratios-{kind}.png"] = ratio_picture(results["runs"], kind)
        for run in results["runs"] if cases else ():
            pictures[f"roofline-{run['threads']}.png"] = roofline_picture(run)
        for name, figure in pictures.items():
            figure.savefig(folder / name, dpi=100)
    report = folder / "RESULTS.md"
    report.write_text(markdown(results, list(pictures)))
    return report
