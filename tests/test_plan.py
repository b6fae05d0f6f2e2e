"""What plan.py says of a call is what the core does."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import DTYPES, KINDS, make_layer
from plan import CPP, constant, kinds, plan, threads_of_members

from rnnkern.reference import CELLS

CXX = shutil.which("g++")


def test_the_table_of_kinds_is_read_whole():
    assert tuple(kinds()) == KINDS
    assert [kind.gates for kind in kinds().values()] == [cell.gates for cell in CELLS.values()]
    assert [kind.saved for kind in kinds().values()] == [len(c.saved) for c in CELLS.values()]


def test_a_constant_that_a_header_lacks_is_named():
    with pytest.raises(
        AssertionError, match=r"core/stack/stack\.h: expected one declaration of gone"
    ):
        constant("core/stack/stack.h", "gone")


@pytest.mark.skipif(not CXX, reason="no g++ here")
def test_plans_are_the_cores(tmp_path):
    rng = np.random.default_rng(0)

    def size(most):
        return int(most ** rng.uniform())  # 1 to most, each magnitude as often

    def of_layer(kind):
        I, H = size(600), size(600)
        P = size(H) if kinds()[KINDS[kind]].projects else H
        heads = [n for n in range(1, H + 1) if H % n == 0]
        return kind, rng.integers(2), I, H, P, rng.choice(heads) if has_heads(kind) else 1

    def has_heads(kind):
        return any(p.role == "recurrent_blocks" for p in CELLS[KINDS[kind]].parameters)

    calls = [
        (
            *of_layer(rng.integers(len(KINDS))),
            *(rng.choice([0, 1, size(2000)]), rng.choice([0, 1, 2, 3, size(600)])),
            *(size(6), rng.integers(1, 3), size(9)),
        )
        for _ in range(5000)
    ]
    command = (CXX, "-std=c++17", "-O0", "-fopenmp", "-DRNNKERN_ISA=baseline", f"-I{CPP / 'core'}")
    sources = (CPP.parent / "tests/cpp/plan.cpp", CPP / "core/threads/runtime.cpp")
    subprocess.run([*command, *sources, "-o", tmp_path / "plan"], check=True, timeout=120)
    given = "".join(" ".join(map(str, call)) + "\n" for call in calls)
    done = subprocess.run([tmp_path / "plan"], input=given, capture_output=True, text=True)
    found = [line.split() for line in done.stdout.splitlines()]
    for call, (threads, shared, *chunks) in zip(calls, found, strict=True):
        kind, is_double, I, H, P, heads, T, B, L, D, most = map(int, call)
        own = plan(KINDS[kind], DTYPES[is_double], I, H, T, B, L, D == 2, most, P, heads)
        assert own.threads == int(threads), call
        assert own.shared == shared, call
        assert [own.forward_chunk, own.backward_chunk] == list(map(int, chunks)), call
    assert {shared for _, shared, *_ in found} == {
        *("nothing", "directions", "rows", "units", "layers"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_of_members_are_those_that_start():
    code = """if True:
        import os, sys
        import numpy as np, rnnkern as rk
        E, T, B, I, H, n = map(int, sys.argv[1:])
        layer = rk.GRU(I, H, ensemble=E)
        rk.set_num_threads(n)
        started = len(os.listdir("/proc/self/task"))
        layer(np.zeros((T, B, I), np.float32))
        print(len(os.listdir("/proc/self/task")) - started + 1)
    """
    for E, expected in ((5, 1), (6, 2), (12, 4)):  # sizes at which each count differs
        T, B, I, H, n = 70, 3, 4, 9, 4
        assert threads_of_members(make_layer("gru", I, H, ensemble=E), T, B, n) == expected
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, (E, T, B, I, H, n))],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == f"{expected}\n", done.stderr
