"""The peer benchmark's results as Markdown and two pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cases import (
    BLOCK_STEPS,
    GRIDS,
    TRAINING_MEAN_BEST,
    TRAINING_MEAN_TORCH,
    TRAINING_WORST,
)
from machine import LEVELS

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


COLORS = dict(zip(PICTURED, ("C0", "C9", "C2", "C3", "C4", "C5"), strict=True))


def ratio_picture(plt: Any, run: dict[str, Any], path: Path) -> None:
    cases = [case for case in run["cases"] if case["best"] and case["grid"] in PICTURED]
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.17 * len(cases)), layout="constrained")
    rows = range(len(cases))
    for grid in PICTURED:
        points = [(best_ratio(c), y) for y, c in zip(rows, cases, strict=True) if c["grid"] == grid]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o", color=COLORS[grid], markersize=5, label=grid)
    marks = [
        (case["target"]["at_least"], y)
        for y, case in zip(rows, cases, strict=True)
        if run["threads"] == 1 and case["target"] and case["target"]["what"] == "ratio"
    ]
    if marks:
        x, y = zip(*marks, strict=True)
        axes.plot(x, y, "|", color="black", markersize=9, label="target")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_yticks(rows, [case["name"] for case in cases], fontsize=7)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel(f"best peer's median / rnnkern's, {threads_of(run)}")
    figure.legend(loc="outside upper center", ncols=7, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def roofline_picture(plt: Any, run: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    rates = run["machine"]["best"]
    for grid in PICTURED:
        cases = [case for case in run["cases"] if case["grid"] == grid]
        if cases:
            x = [case["flops"] / case["weight_bytes"] for case in cases]
            y = [case["flops"] / case["times"]["rnnkern"]["median"] / 1e9 for case in cases]
            axes.plot(x, y, "o", color=COLORS[grid], markersize=5, alpha=0.8, label=grid)
    pictured = [case for case in run["cases"] if case["grid"] in PICTURED]
    intensities = [case["flops"] / case["weight_bytes"] for case in pictured]
    low, high = min([0.25, *intensities]) / 1.5, max([64.0, *intensities]) * 1.5
    for level in LEVELS:
        ridge = rates["flops"] / rates[level]
        axes.plot([low, ridge], [low * rates[level] / 1e9, rates["flops"] / 1e9], lw=1, c="gray")
        start = (low * 1.05, low * rates[level] / 1e9)
        axes.annotate(f"{level} {rates[level] / 1e9:.0f} GB/s", start, fontsize=8, va="bottom")
    axes.plot([low, high], [rates["flops"] / 1e9] * 2, lw=1, c="black")
    peak = f"multiply-adds {rates['flops'] / 1e9:.0f} GFLOP/s"
    axes.annotate(peak, (high / 1.1, rates["flops"] / 1e9), fontsize=8, va="bottom", ha="right")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("FLOPs a byte of recurrent weights read")
    axes.set_ylabel(f"GFLOP/s, {threads_of(run)}")
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_report(folder: Path, name: str, results: dict[str, Any], lines: list[str]) -> None:
    """Write results as JSON, and as a page whose path is printed."""
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = folder / f"{name.upper()}.md"
    page.write_text("\n".join(lines))
    print(page)


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write RESULTS.md and its pictures; return the report's path."""
    pictures = []
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is missing: no pictures")
    else:
        for run in results["runs"]:
            if not any(case["grid"] in PICTURED for case in run["cases"]):
                continue
            for name, draw in (("ratios", ratio_picture), ("roofline", roofline_picture)):
                path = folder / f"{name}-{run['threads']}.png"
                draw(plt, run, path)
                pictures.append(path.name)
    report = folder / "RESULTS.md"
    report.write_text(markdown(results, pictures))
    return report
