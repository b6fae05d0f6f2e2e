"""What threads find on the machine: physical cores, affinity, a container's quota, caches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from os.path import join

__all__ = ["caches", "physical_cores", "quota", "usable_cores"]

# Not pathlib's: importing it takes longer than all that this module does at import.
# ruff: noqa: PTH118, PTH123, PTH208
AnyPath = str | os.PathLike[str]


def usable_cores(root: AnyPath = "/") -> int | None:
    """Return how many threads can compute at the same time at full speed.

    The physical cores that the process may use, or fewer where a control group limits its time. Two
    threads of one core share its arithmetic units, which one thread of the kernels keeps busy.

    Parameters
    ----------
    root : str or os.PathLike
        The folder that has ``proc`` and ``sys``.

    Returns
    -------
    int or None
        At least 1; None where the system does not say.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except (AttributeError, OSError):  # not on this system
        return None
    cores = physical_cores(allowed, root)
    most = quota(root)
    # Rounded down: threads that meet at barriers all wait for one whose time is used up.
    return cores if most is None else max(1, min(cores, int(most)))


def physical_cores(allowed: set[int], root: AnyPath = "/") -> int:
    """Count the physical cores that these logical CPUs belong to.

    A CPU whose siblings the system does not name counts as a core of its own.
    """
    cores = set()
    for cpu in allowed:
        folder = join(root, f"sys/devices/system/cpu/cpu{cpu}/topology")
        siblings = _read(folder, "core_cpus_list") or _read(folder, "thread_siblings_list")
        cores.add(siblings or str(cpu))
    return max(1, len(cores))


def quota(root: AnyPath = "/") -> float | None:
    """Return how many CPUs' time the process's control groups grant it; None for no limit.

    Each group and all those above it limit the process, so the smallest limit counts. A limit of
    zero, and one that cannot be read, counts as none.
    """
    limits = [limit for text in _limits(root) if (limit := _ratio(*text)) is not None]
    return min(limits, default=None)


def caches(root: AnyPath = "/") -> tuple[int, int, int]:
    """Return the sizes of the caches of the first CPU that the process may use.

    Parameters
    ----------
    root : str or os.PathLike
        The folder that has ``sys``.

    Returns
    -------
    tuple of int
        The bytes of the L2 cache for each core, the bytes of the L3 cache, and how many physical
        cores that the process may use share the L3 cache; 0 for what the system does not say.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except (AttributeError, OSError):  # not on this system
        return 0, 0, 0
    found = {}
    folder = join(root, f"sys/devices/system/cpu/cpu{min(allowed)}/cache")
    for cache in _listed(folder):
        if cache.startswith("index"):
            cpus = allowed & set(_cpus(_read(folder, cache, "shared_cpu_list") or "", max(allowed)))
            found[_read(folder, cache, "level")] = _bytes(_read(folder, cache, "size") or ""), cpus
    l2, l2_cpus = found.get("2", (0, set()))
    l3, l3_cpus = found.get("3", (0, set()))
    return l2 // physical_cores(l2_cpus, root), l3, physical_cores(l3_cpus, root) if l3_cpus else 0


def _limits(root: AnyPath) -> Iterator[tuple[str, str]]:
    """The texts of quota and period of all groups of this process, cgroup v2 and v1."""
    for line in (_read(root, "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            for folder in _upward(join(root, "sys/fs/cgroup"), group):
                limit, _, period = (_read(folder, "cpu.max") or "").partition(" ")
                yield limit, period
        elif "cpu" in controllers.split(","):
            # One of the two names is a link to the other, or is there alone.
            for name in dict.fromkeys((controllers, "cpu")):
                for folder in _upward(join(root, "sys/fs/cgroup", name), group):
                    limit = _read(folder, "cpu.cfs_quota_us") or ""
                    yield limit, _read(folder, "cpu.cfs_period_us") or ""


def _upward(mount: str, group: str) -> Iterator[str]:
    """The folder of a group and those above it, up to the mount, which a container sees alone."""
    parts = [part for part in group.split("/") if part not in ("", ".", "..")]
    for count in range(len(parts), -1, -1):
        yield join(mount, *parts[:count])


def _ratio(limit: str, period: str) -> float | None:
    try:
        ratio = int(limit) / int(period)
    except (ValueError, ZeroDivisionError, OverflowError):  # "max", or nothing
        return None
    return ratio if ratio > 0 else None


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(folder: AnyPath, *names: str) -> str | None:
    try:
        with open(join(folder, *names)) as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


def _cpus(text: str, last: int) -> Iterator[int]:
    """The CPUs up to `last` of a list such as ``0-7,64-71``."""
    for part in re.findall(r"(\d+)(?:-(\d+))?", text):
        first, end = int(part[0]), int(part[1] or part[0])
        yield from range(first, min(end, last) + 1)


def _bytes(text: str) -> int:
    """The bytes of a size such as ``1024K``; 0 of anything else."""
    size = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]] if size else 0
