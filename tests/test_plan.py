"""What plan.py reads of the core, and what it says of ensembles."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import KINDS, make_layer
from plan import constant, kinds, plan_of

from rnnkern.reference import CELLS


def test_the_table_of_kinds_is_read_whole():
    assert tuple(kinds()) == KINDS
    assert [kind.gates for kind in kinds().values()] == [cell.gates for cell in CELLS.values()]
    assert [kind.saved for kind in kinds().values()] == [len(c.saved) for c in CELLS.values()]


def test_a_constant_that_a_header_lacks_is_named():
    with pytest.raises(
        AssertionError, match=r"core/stack/stack\.h: expected one declaration of gone"
    ):
        constant("core/stack/stack.h", "gone")


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
        assert plan_of(make_layer("gru", I, H, ensemble=E), T, B, n).threads == expected
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, (E, T, B, I, H, n))],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == f"{expected}\n", done.stderr
