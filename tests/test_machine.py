"""How many threads a call uses if nothing says so: cores, affinity, quota, of fake machines."""

import os
import subprocess
import sys

import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.machine import caches, physical_cores, quota, usable_cores


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def siblings(pairs, name="core_cpus_list"):
    """The files of CPUs that share cores."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": ",".join(map(str, cpus)) + "\n"
        for cpus in pairs
        for cpu in cpus
    }


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_two_cpus_of_a_core_count_once(tmp_path, name):
    write(tmp_path, siblings([(0, 4), (1, 5), (2, 6), (3, 7)], name))
    assert physical_cores(set(range(8)), tmp_path) == 4
    assert physical_cores({0, 4, 1}, tmp_path) == 2
    assert physical_cores({6}, tmp_path) == 1


def test_cpus_of_unknown_siblings_count_as_cores(tmp_path):
    assert physical_cores({0, 1, 2}, tmp_path) == 3
    write(tmp_path, siblings([(0, 1)]))
    assert physical_cores({0, 1, 2}, tmp_path) == 2


V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/a/b\n0::/a/b\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (V2, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            V2 | {"sys/fs/cgroup/a/cpu.max": "100000 50000", "sys/fs/cgroup/a/b/cpu.max": "9 1"},
            2.0,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/../c\n", "sys/fs/cgroup/c/cpu.max": "5 1"}, 5.0),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "0 100000"}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "100000 0"}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "many 1"}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": ""}, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "-1 100000"}, None),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n\n7:\n"}, None),
    ],
)
def test_a_quota_is_the_smallest_of_all_groups(tmp_path, files, expected):
    write(tmp_path, files)
    assert quota(tmp_path) == expected


def test_a_file_that_cannot_be_read_limits_nothing(tmp_path):
    write(tmp_path, V2 | {"sys/fs/cgroup/a/cpu.max": "200000 100000"})
    (tmp_path / "sys/fs/cgroup/a/b/cpu.max").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_bytes(b"\xff\xfe")
    assert quota(tmp_path) == 2.0


@pytest.mark.parametrize(("limit", "expected"), [(250000, 2), (100000, 1), (10000, 1), (900000, 4)])
def test_the_quota_is_rounded_down_to_whole_cores(tmp_path, monkeypatch, limit, expected):
    write(tmp_path, siblings([(0, 4), (1, 5), (2, 6), (3, 7)]))
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{limit} 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(tmp_path) == expected


def test_a_system_without_affinity_says_nothing(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() is None


def cache_files(cpu, *given):
    """The files of a CPU's caches: level, size and the CPUs that share it."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/cache/index{i}/{name}": f"{text}\n"
        for i, texts in enumerate(given)
        for name, text in zip(("level", "size", "shared_cpu_list"), texts, strict=True)
        if text is not None
    }


L1 = (1, "32K", "0,4")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), (0, 0, 0)),
        ((L1, L1, (2, "1024K", "0,4"), (3, "32768K", "0-7")), (1 << 20, 32 << 20, 4)),
        ((L1, (2, "1M", "0,4"), (3, "96M", "0-1,4-5,128-300")), (1 << 20, 96 << 20, 2)),
        ((L1, (2, "4M", "0-7")), (1 << 20, 0, 0)),
        (((2, "2G", "0"), (3, "5", "0")), (2 << 30, 5, 1)),
        (((2, "1024K", None), (3, "32M", None)), (1 << 20, 32 << 20, 0)),
        (((2, "many", "0"), (3, "-3K", "x")), (0, 0, 0)),
        (((2, "", "0-"), (3, None, "0-99999999999")), (0, 0, 4)),
        (((None, "1024K", "0"), ("x", "1024K", "0")), (0, 0, 0)),
    ],
)
def test_caches_are_those_of_the_first_cpu(tmp_path, monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    write(tmp_path, siblings([(0, 4), (1, 5), (2, 6), (3, 7)]))
    write(tmp_path, cache_files(0, *given))
    write(tmp_path, cache_files(1, L1, (2, "9M", "1"), (3, "9M", "1")))
    assert caches(tmp_path) == expected


def test_caches_count_the_cores_of_the_affinity_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 6}, raising=False)
    write(tmp_path, siblings([(0, 4), (1, 5), (2, 6), (3, 7)]))
    write(tmp_path, cache_files(1, (2, "1M", "1,5"), (3, "16M", "0-7")))
    assert caches(tmp_path) == (1 << 20, 16 << 20, 2)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert caches(tmp_path) == (0, 0, 0)


def test_unknown_caches_leave_what_was_assumed():
    before = _core.caches()
    try:
        _core.set_caches(1e6, 2e7, 5)
        _core.set_caches(0, 0, 0)
        assert _core.caches() == (1e6, 2e7, 5)
    finally:
        _core.set_caches(*before)


def threads_of(code, **variables):
    env = {n: v for n, v in os.environ.items() if n != "OMP_NUM_THREADS"} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


SHOW = "import rnnkern as rk; print(rk.get_num_threads(), rk.info()['threads'])"


def test_a_call_uses_the_cores_unless_told_otherwise():
    cores = min(usable_cores() or 1, 1024)
    assert threads_of(SHOW) == f"{cores} {cores}\n"
    assert threads_of(SHOW, OMP_NUM_THREADS="7") == "7 7\n"
    assert threads_of(f"import rnnkern as rk; rk.set_num_threads(9); {SHOW}") == "9 9\n"


def test_one_cpu_of_the_affinity_mask_means_one_thread():
    pin = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert threads_of(pin + SHOW) == "1 1\n"


def test_what_openmp_is_told_later_wins():
    pytest.importorskip("threadpoolctl", reason="tells OpenMP how many threads to use")
    code = (
        "import rnnkern as rk, threadpoolctl\n"
        "before = rk.get_num_threads()\n"
        "with threadpoolctl.threadpool_limits(5): print(rk.get_num_threads())\n"
        "print(rk.get_num_threads() == before)"
    )
    assert threads_of(code) == "5\nTrue\n"


def test_fewer_cores_than_logical_cpus_are_the_default():
    logical = len(os.sched_getaffinity(0))
    if "OMP_NUM_THREADS" in os.environ or logical < 2 or rk.get_num_threads() < 2:
        pytest.skip("OpenMP has been told, or has one CPU")
    before = _core.chosen_num_threads()
    _core.set_num_threads(0)
    try:
        _core.set_usable_cores(1)
        assert rk.get_num_threads() == 1
        _core.set_usable_cores(0)
        assert rk.get_num_threads() == logical
    finally:
        _core.set_usable_cores(usable_cores() or 0)
        _core.set_num_threads(before)
