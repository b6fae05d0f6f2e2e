"""How the core divides a call: into chunks of steps, among threads.

A test that is written for one of these cases takes its sizes from here and asserts that it reaches
the case. The constants are read from the headers; test_plan.py compares the formulas with the core.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

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


def threshold(name):
    return constant("core/stack/stack.h", name)


def flops_of_a_thread():
    return constant("core/threads/team.h", "kFlopsOfAThread")


def capped(threads, most):
    return max(1, math.floor(most)) if most < threads else threads


def recurrent_flops_of_step(kind, H, P, B, D, heads=1):
    """Of the products of a step that need the step before."""
    of = kinds()[kind]
    recurrent = 0 if of.elementwise else of.gates * H * (P // heads)
    return 2 * (recurrent + of.projects * P * H) * B * D


def flops(kind, I, H, P, T, B, L, D, heads=1):
    """Of the products of a forward."""
    inputs = 2 * kinds()[kind].gates * H * B * D * (I + (L - 1) * D * P)
    return T * (inputs + L * recurrent_flops_of_step(kind, H, P, B, D, heads))


@dataclass(frozen=True)
class Plan:
    """How the core runs a call.

    `threads` are those of a forward; a backward's differ for a single step only. They share
    "directions", "rows", "units" or "layers"; a single thread shares "nothing".
    """

    threads: int
    shared: str
    forward_chunk: int  # steps whose input products are computed at once
    backward_chunk: int  # steps whose parameter gradients are summed at once


def plan(kind, dtype, I, H, T, B, num_layers=1, bidirectional=False, threads=1, P=None, heads=1):
    """Return the plan of a call that may use so many threads; P is H if not given."""
    L, D, P = num_layers, 1 + bidirectional, P or H
    work = flops(kind, I, H, P, T, B, L, D, heads)
    few, fewest = threshold("rows_of_a_step"), threshold("kFewestRows")
    to_share = work * few / B if T == 1 and 0 < B < few else work
    n = capped(threads, to_share / flops_of_a_thread())
    if 4 * n > B * D and not kinds()[kind].elementwise:
        of_step = recurrent_flops_of_step(kind, H, P, B, D, heads)
        n = capped(n, of_step / threshold("flops_of_a_thread_and_step"))
    team = n - n // 2 if D == 2 and n > 1 else n  # of one direction
    shared = "rows" if fewest * team <= B else "units"
    team = team if shared == "rows" else min(team, H)  # a thread has a unit at least
    if team == 1:
        shared = "directions" if n > 1 else "nothing"

    most_steps, side_by_side = T, min(threads, L)
    if n == D == 1 and fewest * side_by_side > B and 2 * threshold("fewest_steps") <= T:
        side_by_side = capped(side_by_side, work / flops_of_a_thread())
        if side_by_side > 1:
            n, shared = side_by_side, "layers"
            most_steps = max(threshold("fewest_steps"), math.ceil(T / threshold("chunks")))

    itemsize = np.dtype(dtype).itemsize
    line = constant("core/problem.h", "kLineBytes") // itemsize
    values = max(kinds()[kind].gates, kinds()[kind].saved)
    row_bytes = math.ceil(H / line) * line * itemsize * values
    z_rows, z_bytes = (
        constant("core/recurrence/forward.h", name) for name in ("z_rows", "z_bytes")
    )
    forward, backward = (
        max(1, min(most_steps, rows // max(1, B)))
        for rows in (
            max(z_rows, z_bytes // row_bytes),
            constant("core/recurrence/backward.h", "rows_at_once"),
        )
    )
    return Plan(n, shared, forward, backward)


def plan_of(layer, T, B, threads=1):
    """Return the plan of a call of a layer that is no ensemble."""
    return plan(
        layer._kind,
        layer.dtype,
        layer.input_size,
        layer.hidden_size,
        T,
        B,
        layer.num_layers,
        layer.bidirectional,
        threads,
        layer.output_size,
        layer._cell.heads,
    )


def threads_of_members(layer, T, B, threads):
    """Return how many threads share the members of an ensemble."""
    I, H, P, E = layer.input_size, layer.hidden_size, layer.output_size, layer.ensemble
    L, D = layer.num_layers, 1 + layer.bidirectional
    work = flops(layer._kind, I, H, P, T, B, L, D, layer._cell.heads)
    of_all = E * (work + threshold("flops_of_a_call"))
    return capped(min(threads, E), of_all / flops_of_a_thread())
