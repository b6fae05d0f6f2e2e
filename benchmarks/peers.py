"""rnnkern beside PyTorch, ONNX Runtime, OpenVINO and JAX, and beside the machine's limits.

``pip install '.[bench]'`` brings all but PyTorch, whose default wheel brings CUDA: install the one
you want (``pip install torch --index-url https://download.pytorch.org/whl/cpu``). What can't be
imported is left out, and named in the report. RTNeural is compiled from a checkout, with its
submodules, that the environment's RTNEURAL names. Then::

    python benchmarks/peers.py --quick                        # that all runs, in half a minute
    python benchmarks/peers.py --only "training LSTM 1,100,64"
    python benchmarks/peers.py                                # everything: an hour or so

Each thread count has a process of its own, pinned to as many cores. There, each case's results are
checked against rnnkern's in every library before it is timed, and the libraries take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cases import GRIDS, Case, all_cases, quick_cases, selected
from contenders import Arrays, Call, difference, importable, of_bf16, problem_of
from machine import facts, in_processes, limit, pin, probe
from report import write
from timing import interleaved

CARRIED_CALLS = 3  # of a streaming case are compared, so that a lost state is seen
PROBE_SECONDS = 0.2  # for each of the machine's limits


class Disagreement(Exception):
    """A contender's results are not rnnkern's."""


def first_results(case: Case, call: Call) -> Arrays:
    """Of a call as it comes from `prepare`; of several where the state is carried."""
    with call.scope():
        if not case.streaming:
            return call.read(call.run())
        each = [call.read(call.run())["y"] for _ in range(CARRIED_CALLS)]
    return {"y": np.concatenate(each)}


def checked_calls(case: Case, contenders: list[Any]) -> dict[str, Call]:
    """A call of each contender that can do the case, rnnkern first, all with the same results."""
    problem = problem_of(case)
    calls: dict[str, Call] = {}
    wanted: Arrays | None = None
    for contender in contenders:
        call = contender.prepare(problem)
        if call is None:
            continue
        found = first_results(case, call)
        if wanted is None:
            wanted = found
        elif wrong := difference(found, wanted, bf16=bool(case.bf16)):
            raise Disagreement(f"{case.name}: {contender.name}: {wrong}")
        calls[contender.name] = call
    return calls


def measured(
    case: Case, times: dict[str, dict[str, Any]], threads: int, rates: dict[str, float]
) -> dict[str, Any]:
    """A case's row: sizes, times, ratios to each peer, target, share of the machine's limit."""
    own = times["rnnkern"]["median"]
    ratios = {name: t["median"] / own for name, t in times.items() if name != "rnnkern"}
    best = min(ratios, key=ratios.__getitem__, default=None)
    bound = limit(case, threads, rates)
    shares = {"limit": bound["seconds"] / own, "peak": bound["of_peak"] / own}
    met = None
    if case.target is not None and threads == 1:
        if case.target.what == "peak":
            met = shares["peak"] >= case.target.at_least
        elif rivals := [r for name, r in ratios.items() if name.startswith(case.target.against)]:
            met = min(rivals) >= case.target.at_least
    targets = [
        {**vars(target), "ratio": ratios.get(target.against)}
        for target in (case.targets if threads == 1 else ())
    ]
    return {
        "name": case.name,
        "grid": case.section,
        "kind": case.kind,
        **{letter: getattr(case, letter) for letter in "BTIH"},
        "training": case.training,
        "flops": case.flops,
        "weight_bytes": case.weight_bytes,
        "times": times,
        "ratios": ratios,
        "best": best,
        "limit": bound,
        "shares": shares,
        "target": None if case.target is None else vars(case.target),
        "met": met,
        "targets": targets,
    }


def run_here(threads: int, cases: list[Case], rounds: int, seconds: float) -> dict[str, Any]:
    """All cases in this process, on so many threads."""
    pin(threads)
    contenders, missing = importable(threads)
    in_bf16 = of_bf16(contenders)
    start = probe(threads, PROBE_SECONDS)
    timed = []
    for number, case in enumerate(cases, 1):
        calls = checked_calls(case, in_bf16 if case.bf16 else contenders)
        times = interleaved(calls, rounds, seconds)
        timed.append((case, times))
        shown = ", ".join(f"{name} {t['median'] * 1e3:.4g}" for name, t in times.items())
        print(f"[{threads}t {number}/{len(cases)}] {case.name}: {shown} ms", file=sys.stderr)
    end = probe(threads, PROBE_SECONDS)
    # The machine's best is what limits, whenever it was seen.
    rates = {what: max(start[what], end[what]) for what in start}
    return {
        "threads": threads,
        "versions": {c.name: c.version for c in contenders},
        "missing": missing,
        "machine": {"start": start, "end": end, "best": rates},
        "cases": [measured(case, times, threads, rates) for case, times in timed],
    }


def run_in_processes(options: argparse.Namespace) -> dict[str, Any]:
    """This command again, once a thread count."""
    return {
        **facts(),
        "settings": {
            name: getattr(options, name) for name in ("rounds", "turn", "quick", "grid", "only")
        },
        "runs": [run for _, run in in_processes(__file__, options.threads)],
    }


def thread_counts(text: str) -> list[int]:
    cores = len(os.sched_getaffinity(0))
    counts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= n <= cores for n in counts):
        expected = f"numbers from 1 to {cores}, the cores that this process may use"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return counts


def positive(kind: Any) -> Any:
    def number(text: str) -> Any:
        if not kind(text) > 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
        return kind(text)

    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one tiny case a grid, two rounds")
    add("--grid", action="append", default=[], choices=GRIDS, help="only this one; repeatable")
    add(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help='only cases whose names contain one of these, such as "training LSTM 1,100,64"',
    )
    add("--threads", type=thread_counts, help="by commas; by default 1 and 2, as cores allow")
    add("--rounds", type=positive(int), help="turns of each library a case (5)")
    add("--turn", type=positive(float), default=0.03, help="seconds of calls a turn (0.03)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    add("--process", nargs=2, metavar=("N", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.threads = options.threads or [1, 2][: len(os.sched_getaffinity(0))]
    cases = quick_cases() if options.quick else all_cases()
    options.cases = selected(cases, options.grid, options.only)
    if not options.cases:
        parser.error("no case is left: names are such as " + repr(cases[0].name))
    return options


def main() -> None:
    options = arguments()
    if options.process:
        threads, result = options.process
        try:
            found = run_here(int(threads), options.cases, options.rounds, options.turn)
        except Disagreement as error:
            sys.exit(f"peers: {error}")
        Path(result).write_text(json.dumps(found))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results = run_in_processes(options)
    (options.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    print(write(results, options.out))


if __name__ == "__main__":
    main()
