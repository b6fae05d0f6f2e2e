"""The same bits for every grid: rows, units or both shared by the threads of each direction."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from helpers import KINDS, in_each, make_layer, random_problem
from plan import plan_of
from test_bits import CLIP, bits, differing

import rnnkern as rk
from rnnkern import _core

every_kind = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def forced(threads, row_groups):
    """Calls that may use so many threads take this grid."""
    _core.force_grid(threads, row_groups)
    try:
        yield
    finally:
        _core.force_grid(0, 1)


def check_all_grids(most, first, *layer_and_problem):
    layer, problem = layer_and_problem
    want = bits(layer, problem, CLIP)
    for threads in range(first, most + 1):
        for row_groups in range(1, threads + 1):
            with forced(threads, row_groups):
                got = bits(layer, problem, CLIP, forward=threads)
            assert not differing(got, want), f"{threads} threads, {row_groups} teams"


def random_case(kind, bidirectional, **options):
    """A small random layer and problem: some grids have more teams than rows."""
    rng = np.random.default_rng([KINDS.index(kind), bidirectional])
    H, T, B = (int(rng.integers(*bounds)) for bounds in ((20, 70), (3, 8), (1, 12)))
    both_ways = {"bidirectional": True} if bidirectional else {}
    options = {"num_layers": 2, "dropout": 0.3, **both_ways, **options}
    layer = make_layer(kind, int(rng.integers(1, 20)), H, **options)
    return layer, random_problem(layer, T, B, lengths="random", resets=0.2)


@in_each("bidirectional", [False, True])
@every_kind
def test_every_grid_of_8_threads(kind, bidirectional):
    dtype = np.float64 if bidirectional else np.float32
    check_all_grids(8, 2, *random_case(kind, bidirectional, dtype=dtype))


@pytest.mark.slow
@in_each("bidirectional", [False, True])
@every_kind
def test_every_grid_of_16_threads(kind, bidirectional):
    dtype = np.float32 if bidirectional else np.float64
    check_all_grids(16, 9, *random_case(kind, bidirectional, dtype=dtype))


@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before", "lstm_projected"])
def test_every_grid_of_products_in_bf16(kind):
    check_all_grids(6, 2, *random_case(kind, bidirectional=True, compute="bf16"))


@pytest.mark.parametrize(
    ("grid", "shared"),
    [((4, 1), "units"), ((4, 4), "rows"), ((4, 2), "grid"), ((1, 1), "nothing"), ((3, 9), "rows")],
)
def test_a_forced_grid_is_the_plan(grid, shared):
    layer = make_layer("lstm", 5, 40)
    with forced(*grid):
        plan = plan_of(layer, 3, 8, 8)
        assert (plan.threads, plan.shared) == (grid[0], shared)
        assert plan_of(layer, 3, 8, 2).threads == min(2, grid[0])
    assert plan_of(layer, 3, 8, 8).threads == 1  # so little work


def test_streams_take_a_forced_grid():
    layer = make_layer("gru", 9, 33, num_layers=2)
    x = random_problem(layer, 6, 5).x
    want = layer.stream(5).run(x)
    for threads in range(2, 7):
        for row_groups in range(1, threads + 1):
            with forced(threads, row_groups), rk.num_threads(threads):
                stream = layer.stream(5)
                got = np.stack([stream.step(x_t) for x_t in x])
            assert got.tobytes() == want.tobytes(), (threads, row_groups)


@pytest.mark.parametrize("row_groups", [0, -1, 1025])
def test_a_grid_without_teams_is_refused(row_groups):
    with pytest.raises(ValueError, match=rf"row_groups: expected from 1 to 1024, got {row_groups}"):
        _core.force_grid(2, row_groups)
