"""Grids: how the threads of each direction share rows and units.

Every grid gives the same bits. The model that chooses one is tested as a function.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import KINDS, forced_grid, in_each, make_layer, on_threads, random_problem
from plan import CPP, plan_of
from test_bits import CLIP, bits, differing

import rnnkern as rk
from rnnkern import _core

every_kind = pytest.mark.parametrize("kind", KINDS)


GRIDS = [(threads, teams) for threads in range(2, 17) for teams in range(1, threads + 1)]


def check_grids(grids, layer, problem):
    want = bits(layer, problem, CLIP)
    for threads, teams in grids:
        with forced_grid(threads, teams):
            got = bits(layer, problem, CLIP, forward=threads)
            assert rk.info()["last_call"]["threads"] == threads
        assert not differing(got, want), f"{threads} threads, {teams} teams"


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
def test_grids_give_the_same_bits(kind, bidirectional):
    """Units, rows and both; and the kinds together take every grid of up to 16 threads."""
    dtype = np.float64 if bidirectional else np.float32
    own = GRIDS[KINDS.index(kind) :: len(KINDS)]
    check_grids([(3, 1), (3, 3), (4, 2), *own], *random_case(kind, bidirectional, dtype=dtype))


@pytest.mark.slow
@in_each("bidirectional", [False, True])
@every_kind
def test_every_grid_of_16_threads(kind, bidirectional):
    dtype = np.float32 if bidirectional else np.float64
    check_grids(GRIDS, *random_case(kind, bidirectional, dtype=dtype))


def test_teams_that_meet_in_groups():
    """More than eight members of a team, of two teams at a time, too."""
    layer = make_layer("gru_reset_before", 5, 330)
    check_grids([(9, 1), (18, 2), (20, 2)], layer, random_problem(layer, 3, 9))


@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before", "lstm_projected"])
def test_grids_of_products_in_bf16(kind):
    grids = [grid for grid in GRIDS if grid[0] <= 5]
    check_grids(grids, *random_case(kind, bidirectional=True, compute="bf16"))


@pytest.mark.parametrize(
    ("grid", "shared"),
    [((4, 1), "units"), ((4, 4), "rows"), ((4, 2), "grid"), ((1, 1), "nothing"), ((3, 9), "rows")],
)
def test_a_forced_grid_is_the_plan(grid, shared):
    layer = make_layer("lstm", 5, 40)
    with forced_grid(*grid):
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
            with forced_grid(threads, row_groups), rk.num_threads(threads):
                stream = layer.stream(5)
                got = np.stack([stream.step(x_t) for x_t in x])
            assert got.tobytes() == want.tobytes(), (threads, row_groups)


@pytest.mark.parametrize(
    ("grid", "bidirectional", "shared"),
    [
        ((1, 1), False, "nothing"),
        ((2, 1), True, "directions"),
        ((3, 3), False, "rows"),
        ((3, 1), True, "units"),
        ((4, 2), False, "grid"),
    ],
)
def test_info_says_how_the_last_call_was_shared(grid, bidirectional, shared):
    layer = make_layer("lstm", 5, 70, bidirectional=bidirectional)
    problem = random_problem(layer, 3, 8)
    _, _, tape = problem.forward(layer)
    for call in (lambda: layer(problem.x), lambda: problem.backward(layer, tape)):
        on_threads(1, call)
        assert rk.info()["last_call"] == {"shared": "nothing", "planned": 1, "threads": 1}
        with forced_grid(*grid):
            on_threads(5, call)
        assert rk.info()["last_call"] == {"shared": shared, "planned": grid[0], "threads": grid[0]}


def test_info_says_that_members_or_layers_were_shared_and_nothing_before_the_first_call():
    def shared():
        assert rk.info()["last_call"] is None
        make_layer("gru", 9, 64, ensemble=8)(np.zeros((50, 3, 9), np.float32))
        members = rk.info()["last_call"]["shared"]
        make_layer("lstm", 64, 64, num_layers=4)(np.zeros((400, 1, 64), np.float32))
        return members, rk.info()["last_call"]["shared"]

    with rk.num_threads(2), ThreadPoolExecutor(1) as pool:
        assert pool.submit(shared).result() == ("members", "layers")


@pytest.mark.parametrize("row_groups", [0, -1, 1025])
def test_a_grid_without_teams_is_refused(row_groups):
    with pytest.raises(ValueError, match=rf"row_groups: expected from 1 to 1024, got {row_groups}"):
        _core.force_grid(2, row_groups)


# ---- the model ---------------------------------------------------------------------------------

MIB = 1 << 20
CXX = shutil.which("g++")


@dataclass(frozen=True)
class Found:
    """What the core says of a step: the grid, times in nanoseconds, bytes from L3 and memory."""

    threads: int
    teams: int
    time: float
    time_alone: float
    from_l3: float
    from_memory: float
    shares: list[tuple[int, range, range]]  # of each thread: direction, rows, blocks of units


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What the core says of each of some lines."""
    if not CXX:
        pytest.skip("no g++ here")
    program = tmp_path_factory.mktemp("grid") / "grid"
    sources = (CPP.parent / "tests/cpp/grid.cpp", *(CPP / "core/threads").glob("*.cpp"))
    flags = ("-std=c++17", "-fopenmp", "-DRNNKERN_ISA=baseline", f"-I{CPP / 'core'}")
    subprocess.run((CXX, *flags, *sources, "-o", program), check=True, timeout=120)

    def run(lines):
        given = "".join(" ".join(map(str, line)) + "\n" for line in lines)
        done = subprocess.run([program], input=given, capture_output=True, text=True, timeout=60)
        found = []
        for text in done.stdout.splitlines():
            threads, teams, *numbers = text.split()
            shares = [
                (direction, range(*rows), range(*blocks))
                for direction, *bounds in batched(map(int, numbers[4:]), 5)
                for rows, blocks in [(bounds[:2], bounds[2:])]
            ]
            found.append(Found(int(threads), int(teams), *map(float, numbers[:4]), shares))
        assert len(found) == len(lines)
        return found

    return run


def batched(values, n):
    return zip(*[iter(values)] * n, strict=True)


def line(
    H, B, threads, teams=0, *, I=None, D=1, G=4, size=4, lanes=16, l2=MIB, l3=32 * MIB, l3_cores=8
):
    """A layer of G gates on a machine of Zen 5; `size` is that of a weight in bytes.

    With 0 teams the model chooses the grid.
    """
    weights = G * H * H
    flops = 2 * B * (weights + G * H * (H if I is None else I))
    step = (D, B, -(-H // lanes), flops, 15 * lanes, weights * size, H * 4)
    return (l2, l3, l3_cores, *step, threads, teams)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # One thread, and two: rows where each has four, else units, if a step is long enough.
        (line(1024, 64, 1), (1, 1)),
        (line(1024, 64, 2), (2, 2)),
        (line(64, 256, 2), (2, 2)),
        (line(256, 8, 2), (2, 2)),
        (line(512, 7, 2), (2, 1)),
        (line(256, 1, 2), (2, 1)),
        (line(64, 1, 2, I=1), (1, 1)),
        # Two directions: one thread each, however short a step is.
        (line(16, 1, 2, D=2), (2, 1)),
        (line(512, 64, 8, D=2), (8, 4)),
        # Small weights stay in the L2 caches: threads share rows.
        (line(128, 64, 16), (16, 16)),
        (line(256, 64, 16), (16, 16)),
        # Not enough rows for all threads: teams of two.
        (line(128, 32, 16), (16, 8)),
        # Large weights: teams read less of them.
        (line(1024, 64, 8), (8, 1)),
        (line(1024, 64, 16), (16, 2)),
        (line(512, 32, 16), (16, 4)),
        (line(2048, 64, 16), (16, 1)),
        (line(2048, 64, 64), (64, 2)),
        # The same weights in bf16 take half the space.
        (line(512, 32, 16, size=2), (16, 8)),
        # A larger L2 cache holds them.
        (line(1024, 64, 16, l2=32 * MIB), (16, 16)),
        # One row: as many threads as their meeting is worth.
        (line(256, 1, 64), (4, 1)),
        (line(320, 1, 64), (5, 1)),
        # More than eight meet in groups, so that many are worth it for large weights.
        (line(512, 1, 64), (32, 1)),
        (line(1024, 1, 64), (64, 1)),
    ],
)
def test_choices(model, case, expected):
    [found] = model([case])
    assert (found.threads, found.teams) == expected
    assert found.time <= found.time_alone


def random_lines(count, **fixed):
    rng = np.random.default_rng(0)

    def size(most):
        return int(most ** rng.uniform())  # 1 to most, each magnitude as often

    for _ in range(count):
        sizes = {"H": size(3000), "B": size(600), "threads": size(64), "D": int(rng.integers(1, 3))}
        yield {**sizes, "I": size(3000), "G": int(rng.integers(1, 5)), **fixed}


def test_a_choice_uses_no_more_threads_than_it_may_and_gains_by_them(model):
    cases = list(random_lines(5000))
    for case, found in zip(cases, model([line(**case) for case in cases]), strict=True):
        assert 1 <= found.threads <= case["threads"], case
        assert 1 <= found.teams <= -(-found.threads // case["D"]), case
        assert found.teams == 1 or case["B"] >= 4 * found.teams, case
        assert found.time <= found.time_alone, case


def test_a_grid_gains_no_more_than_its_threads(model):
    """Where weights stay in the L2 cache; teams of one direction may differ in size."""
    sizes = itertools.product((16, 64, 128), (1, 8, 40), (1, 2))
    grids = [(n, teams) for n in range(1, 17) for teams in range(1, n + 1)]
    cases = [(H, B, *grid, D) for (H, B, D), grid in itertools.product(sizes, grids)]
    lines = [line(H, B, n, teams, D=D) for H, B, n, teams, D in cases]
    for case, n, found in zip(cases, (case[2] for case in cases), model(lines), strict=True):
        assert found.time * n >= found.time_alone * (1 - 1e-5), case  # six digits are printed


def test_more_threads_and_larger_caches_are_never_slower(model):
    cases = list(random_lines(1000))
    few = model([line(**case) for case in cases])
    for more in (
        model([line(**{**case, "threads": 2 * case["threads"]}, l3_cores=128) for case in cases]),
        model([line(**case, l2=2 * MIB, l3=64 * MIB) for case in cases]),
    ):
        # Idle caches of cores that share none: compared where the L3 cache is not in question.
        for case, before, after in zip(cases, few, more, strict=True):
            if case["G"] * case["H"] ** 2 * 4 * case["D"] < 32 * MIB:
                assert after.time <= before.time * (1 + 1e-9), case


def test_two_threads_choose_what_was_faster_where_weights_stay_in_cache(model):
    """Rows from eight on; below, units from about 2e5 flops of a step on (docs/performance.md)."""
    cases = list(random_lines(3000, threads=2, D=1, G=4))
    cases = [case for case in cases if 16 * case["H"] ** 2 < MIB and case["H"] > 16]
    for case, found in zip(cases, model([line(**case) for case in cases]), strict=True):
        grid = found.threads, found.teams
        flops = 2 * case["B"] * 4 * case["H"] * (case["H"] + case["I"])
        if case["B"] >= 8:
            assert grid == (2, 2), case
        elif flops > 3.3e5:  # more than 2e5: vectors of units may not divide by two
            assert grid == (2, 1), case
        elif flops < 1.9e5:
            assert grid == (1, 1), case


def test_every_grid_shares_out_all_rows_and_units_once(model):
    sizes = [(B, H, D) for B in (0, 1, 2, 7, 40) for H in (1, 17, 200) for D in (1, 2)]
    grids = [(n, teams) for n in (1, 2, 3, 5, 8, 16) for teams in range(1, n + 1)]
    cases = [(*size, *grid) for size in sizes for grid in grids]
    lines = [line(H, B, n, teams, D=D, lanes=4) for B, H, D, n, teams in cases]
    for (B, H, D, n, teams), found in zip(cases, model(lines), strict=True):
        assert (found.threads, found.teams) == (n, teams)
        times = Counter(
            (direction, r, b)
            for direction, rows, blocks in found.shares
            for r in rows
            for b in blocks
        )
        directions = range(D if n > 1 else 1)  # one thread runs one after the other
        want = itertools.product(directions, range(B), range(-(-H // 4)))
        assert times == Counter(want), (B, H, D, n, teams)


class Cache:
    """A cache that drops what was not read for the longest time."""

    def __init__(self, size):
        self.size, self.blocks = size, OrderedDict()

    def misses(self, block):
        hit = block in self.blocks
        self.blocks[block] = True
        self.blocks.move_to_end(block)
        if len(self.blocks) > self.size:
            self.blocks.popitem(last=False)
        return not hit


def simulated_traffic(shares, of_l2, of_l3, l3_cores):
    """Blocks of weights that a step brings to a core and to an L3 cache, at most.

    The threads read their blocks side by side, each step in the order opposite to the last one's.
    """
    l2 = [Cache(of_l2) for _ in shares]
    l3 = [Cache(of_l3) for _ in shares[::l3_cores]]
    for step in range(8):
        from_l3, from_memory = Counter(), Counter()
        orders = [blocks[:: -1 if step % 2 else 1] for _, _, blocks in shares]
        for now in itertools.zip_longest(*orders):
            for thread, block in enumerate(now):
                panel = shares[thread][0], block
                if block is not None and l2[thread].misses(panel):
                    from_l3[thread] += 1
                    from_memory[thread // l3_cores] += l3[thread // l3_cores].misses(panel)
    return max(from_l3.values(), default=0), max(from_memory.values(), default=0)


def test_the_models_traffic_is_that_of_the_loops(model):
    """Caches of least recently used blocks, read as the grid shares the units out."""
    H, lanes, D = 2048, 4, 2  # 512 blocks of 128 KiB: 8 stay in an L2 cache, 256 in an L3 cache
    block = 4 * lanes * H * 4
    for directions, l3_cores in itertools.product((1, D), (4, 8)):
        grids = [(n, teams) for n in (1, 2, 4, 8, 16) for teams in (1, 2, 4, 16) if teams <= n]
        cases = [line(H, 64, *grid, D=directions, lanes=lanes, l3_cores=l3_cores) for grid in grids]
        for grid, found in zip(grids, model(cases), strict=True):
            of_l3, of_memory = simulated_traffic(found.shares, 8, 256, l3_cores)
            assert found.from_l3 == pytest.approx(of_l3 * block, abs=block), grid
            # What a core finds in its L2 cache, it does not ask of the L3 cache, which drops it.
            kept_in_l2 = 8 * min(len(found.shares), l3_cores) * block
            assert found.from_memory == pytest.approx(of_memory * block, abs=kept_in_l2), grid


@pytest.mark.parametrize(
    ("kind", "H", "T", "B", "layers", "shared"),
    [
        ("lstm", 64, 400, 1, 4, "layers"),
        ("gru", 32, 2000, 1, 8, "layers"),
        ("lstm", 256, 100, 1, 2, "units"),
        ("gru", 512, 100, 1, 2, "units"),
        ("lstm", 64, 400, 8, 4, "rows"),
        ("lstm", 64, 70, 1, 3, "nothing"),  # two layers, and almost half of the steps wait
    ],
)
def test_two_threads_run_layers_where_that_was_faster(kind, H, T, B, layers, shared):
    assert plan_of(make_layer(kind, H, H, num_layers=layers), T, B, 2).shared == shared


def test_a_call_chooses_by_the_caches_that_were_found():
    layer = make_layer("lstm", 64, 1024)
    before = _core.caches()
    try:
        _core.set_caches(64 * MIB, 64 * MIB, 16)
        assert plan_of(layer, 50, 64, 16).shared == "rows"
        _core.set_caches(MIB, 32 * MIB, 8)
        assert plan_of(layer, 50, 64, 16).shared in ("grid", "units")
    finally:
        _core.set_caches(*before)
