"""How the core divides a call: into chunks of steps, among threads.

A test that is written for one of these cases takes its sizes from here and asserts that it reaches
the case. The core itself says how it divides a call; the constants are read from the headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPP = Path(__file__).parents[1] / "cpp"


@cache
def constant(header, name):
    """The number that a header declares as `constexpr ... name = number`."""
    statements = re.findall(r"\bconstexpr [^;]*;", (CPP / header).read_text())
    found = [value for s in statements for value in re.findall(rf"\b{name} = ([^,;]+)", s)]
    assert len(found) == 1, f"{header}: expected one declaration of {name}, got {found}"
    return eval(re.sub(r"[\w:]+\{(\d+)\}", r"\1", found[0]), {})  # of Index{1} << 18, too


@dataclass(frozen=True)
class Kind:
    """A row of the core's table of kinds."""

    gates: int
    saved: int  # vectors that forward saves
    elementwise: bool  # no recurrent product
    projects: bool


@cache
def kinds():
    """The core's table of kinds by name."""
    text = (CPP / "core/cells/kinds.h").read_text()
    rows = re.findall(
        r"  ROW\((\w+), \w+, (\d), (\d), (true|false), \{[^}]*\},[\s\\]*\{([^}]*)\}[^)]*\)", text
    )
    return {
        name: Kind(int(gates), int(saved), elementwise == "true", "kWeightHr" in parameters)
        for name, gates, saved, elementwise, parameters in rows
    }


@dataclass(frozen=True)
class Plan:
    """How the core runs a call.

    `threads` are those of a forward; a backward's differ for a single step only. They share
    "directions", "rows", "units", rows and units in a "grid", "layers" or "members"; a single
    thread shares "nothing". Of members that run in turn, it is the plan of each one's call.
    """

    threads: int
    shared: str
    forward_chunk: int  # steps whose input products are computed at once
    backward_chunk: int  # steps whose parameter gradients are summed at once


def plan_of(layer, T, B, threads=1):
    """Return the plan of a call of a layer."""
    return Plan(*layer._stack.plan(T, B, threads))
