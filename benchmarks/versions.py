"""Two versions of rnnkern on the grids of `peers.py`: what a change costs or gains, and its bits.

A version is a commit, which is built and installed in a virtual environment of its own, or an
interpreter where it is installed. Each version runs in a process of its own; the processes take
turns, so that both see the machine at the same speed. The report also says in which cases the
results of the two differ by a bit::

    python benchmarks/versions.py --old main --new HEAD
    python benchmarks/versions.py --old old/venv/bin/python --grid step --rounds 20
    python benchmarks/versions.py --old main --grid sharing --threads 2 --turn 0.1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from cases import GRIDS, SHARING, Case, all_cases, quick_cases, selected, sharing_cases
from contenders import Arrays, Call, Rnnkern, problem_of
from machine import ROOT, commit, environment, facts, pin
from report import duration, facts_lines, table
from timing import batch_size, turn

import rnnkern as rk

FLOOR = 0.97  # of the old speed: a case below is measured again, in more rounds
REPEATS = 20


def serve(threads: int) -> None:
    """Answer requests, a line of JSON each: prepare a case, or take a turn of its calls."""
    pin(threads)
    contender = Rnnkern(threads)
    cases = {case.name: case for case in [*all_cases(), *sharing_cases(), *quick_cases()]}
    call: Call | None = None
    batch = 0
    folder = Path(rk.__file__).parent
    source = None if "site-packages" in folder.parts else commit(folder)
    print(json.dumps(f"{rk.__version__}" + (f" ({source})" if source else "")), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if name := request.get("case"):
            call = contender.prepare(problem_of(cases[name]))
            found = call.read(call.run())
            batch = batch_size(call)
            print(json.dumps(digest(found)), flush=True)
        elif call:
            print(json.dumps(turn(call, batch, request["seconds"])), flush=True)


def digest(arrays: Arrays) -> str:
    """What two versions are compared by: a hash of the results of a case."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()


def interpreter_of(version: str, builds: Path) -> str:
    """The interpreter that has a version: `version` itself, or the one made for a commit."""
    if found := shutil.which(version):
        return found
    git = ["git", "-C", str(ROOT)]
    command = [*git, "rev-parse", "--verify", "--quiet", version + "^{commit}"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"versions: expected an interpreter or a commit, got {version!r}")
    name = asked.stdout.strip()[:12]
    home = builds / name
    python = home / "bin" / "python"
    if not (home / "built").exists():
        print(f"building {name} in {home}: some minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        with tempfile.TemporaryDirectory() as source:
            archive = Path(source) / "source.tar"
            subprocess.run([*git, "archive", "--output", archive, name], check=True)
            with tarfile.open(archive) as packed:
                packed.extractall(source)
            archive.unlink()
            subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
        (home / "built").touch()  # last: a build that was interrupted is made anew
    return str(python)


class Version:
    """A process that times one version."""

    def __init__(self, python: str, threads: int) -> None:
        command = [python, __file__, "--serve", str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment(threads)},
        )
        self.name = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("versions: expected an answer of each version's process, got none")
        return json.loads(line)

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def medians(
    case: Case, versions: list[Version], rounds: int, seconds: float
) -> tuple[list[float], bool]:
    """Each version's median seconds, and whether both have the same bits."""
    digests = {version.ask(case=case.name) for version in versions}
    times: list[list[float]] = [[] for _ in versions]
    for _ in range(rounds):
        for own, version in zip(times, versions, strict=True):
            own += version.ask(seconds=seconds)
    return [statistics.median(own) for own in times], len(digests) == 1


def measure(case: Case, versions: list[Version], options: argparse.Namespace) -> dict[str, Any]:
    """Old and new seconds; measured again where the new version seems slower."""
    rounds = options.rounds
    (old, new), same = medians(case, versions, rounds, options.turn)
    if old / new < FLOOR and rounds < REPEATS:
        rounds = REPEATS
        (old, new), same = medians(case, versions, rounds, options.turn)
    print(f"{case.name}: {old / new:.3f}" + ("" if same else ", other bits"), file=sys.stderr)
    return {"case": case, "old": old, "new": new, "rounds": rounds, "same": same}


def lines_of(found: list[dict[str, Any]], threads: int) -> list[str]:
    rows = []
    for row in found:
        ratio = f"{row['old'] / row['new']:.3f}"
        times = [duration(row["old"]), duration(row["new"])]
        bits = "the same" if row["same"] else "others"
        rows.append([row["case"].name, *times, ratio, str(row["rounds"]), bits])
    logs: dict[str, list[float]] = {}
    for row in found:
        logs.setdefault(row["case"].grid, []).append(math.log(row["old"] / row["new"]))
    everything = [log for each in logs.values() for log in each]
    means = [
        [grid, str(len(each)), f"{math.exp(statistics.fmean(each)):.3f}"]
        for grid, each in [*logs.items(), ("all", everything)]
    ]
    return [
        f"## {threads} thread{'s' * (threads > 1)}",
        "",
        *table(["grid", "cases", "geometric mean of old / new"], means),
        "",
        f"The same bits in {sum(row['same'] for row in found)} of {len(found)} cases.",
        "",
        *table(["case", "old", "new", "old / new", "rounds", "bits"], rows),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--old", help="a commit, or the interpreter where the old version is installed")
    add("--new", default=sys.executable, help="the same of the new one (this interpreter)")
    add("--builds", type=Path, help="folder for commits' environments (builds in that of --out)")
    add("--quick", action="store_true", help="one tiny case a grid, two rounds")
    grids = (*GRIDS, SHARING)
    add("--grid", action="append", choices=grids, help=f"repeatable; by default all but {SHARING}")
    add("--only", nargs="+", default=[], metavar="TEXT", help="only cases of such names")
    add("--threads", type=int, action="append", help="repeatable; by default 1")
    add("--rounds", type=int, help="turns of each version a case (5)")
    add("--turn", type=float, default=0.03, help="seconds of calls a turn (0.03)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    add("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if not options.old:
        parser.error("--old: expected a commit or an interpreter, got none")
    builds = (options.builds or options.out / "builds").absolute()
    interpreters = [interpreter_of(version, builds) for version in (options.old, options.new)]
    options.rounds = options.rounds or (2 if options.quick else 5)
    cases = quick_cases() if options.quick else [*all_cases(), *sharing_cases()]
    chosen = selected(cases, options.grid or list(GRIDS), options.only)
    if not chosen:
        parser.error(f"--only: expected a part of a case's name, got {options.only}")
    lines: list[str] = []
    names: dict[str, str] = {}
    for threads in options.threads or [1]:
        versions = [Version(python, threads) for python in interpreters]
        given = zip(("old", "new"), (options.old, options.new), versions, strict=True)
        names = {what: f"{version}: {process.name}" for what, version, process in given}
        found = [measure(case, versions, options) for case in chosen]
        for version in versions:
            version.close()
        lines += lines_of(found, threads)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"rounds": options.rounds, "turn": options.turn}
    where = {**facts(), "versions": names, "missing": {}, "settings": settings}
    report = options.out / "VERSIONS.md"
    report.write_text("\n".join(["# Two versions of rnnkern", "", *facts_lines(where), *lines]))
    print(report)


if __name__ == "__main__":
    main()
