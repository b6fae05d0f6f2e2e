"""What the machine is, what it can do at best, and the least time that a case takes on it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import FLOAT_BYTES, Case

import rnnkern as rk
from rnnkern import _core

ROOT = Path(__file__).resolve().parent.parent
# Bytes of L1, L2 (a core's own) and L3 (shared), where the system does not say.
FALLBACK = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
LEVELS = ("L1", "L2", "L3", "memory")


def cache_sizes() -> dict[str, int]:
    sizes = dict(FALLBACK)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((index / f).read_text().strip() for f in ("type", "level", "size"))
        except OSError:
            continue  # a system that tells only a part: what is missing stays at the fallback
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) << 10
    return sizes


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit(folder: Path = ROOT) -> str | None:
    """Of the checkout that a folder is in, with a + behind if files differ from it."""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True)
    except FileNotFoundError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "")


def facts() -> dict[str, Any]:
    """Where, when and with what a benchmark ran."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": cache_sizes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rnnkern": {**rk.info(), "commit": commit()},
    }


def pin(threads: int) -> None:
    """Keep this process, and all that it starts, on as many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def environment(threads: int) -> dict[str, str]:
    """This process's, with each library limited to so many threads."""
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    # XLA's pool is as large as the process has cores; this spares it where there is only one.
    xla = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    return {**os.environ, **limits, "XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"}


def in_processes(script: str, threads: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """The command at hand again with --process N FILE, once a thread count: what the file holds."""
    for count in threads:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / f"{count}.json"
            command = [sys.executable, script, *sys.argv[1:], "--process", str(count), str(result)]
            done = subprocess.run(command, env=environment(count))
            if done.returncode != 0:
                sys.exit(done.returncode)
            yield count, json.loads(result.read_text())


def aligned(n: int) -> Any:
    """n floats of one, from a cache line's start on."""
    block = np.ones(n + 16, np.float32)
    first = -block.ctypes.data % 64 // FLOAT_BYTES
    return block[first : first + n]


def best_rate(use: Any, seconds: float) -> float:
    """The highest work / time of calls that go on for so many seconds."""
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work, _ = use()
        best = max(best, work / (time.perf_counter() - start))
    return best


def probe(threads: int, seconds: float) -> dict[str, float]:
    """FLOP/s, and bytes/s from each level, on so many threads together."""
    sizes = cache_sizes()
    # A half leaves room for what else is there; L3 is shared; memory: several times all caches.
    buffers = {
        "L1": threads * sizes["L1"] // 2,
        "L2": threads * sizes["L2"] // 2,
        "L3": sizes["L3"] // 2,
        "memory": max(4 * sizes["L3"], 128 << 20),
    }
    found = {"flops": best_rate(lambda: _core.probe_fma(200_000, threads), seconds)}
    for level, size in buffers.items():
        values = aligned(size // FLOAT_BYTES)
        passes = max(1, (32 << 20) // size)
        read = partial(_core.probe_read, values, passes, threads)
        found[level] = best_rate(read, seconds)
    return found


def reading_seconds(case: Case, threads: int, rates: dict[str, float]) -> dict[str, float]:
    """How long each level takes to deliver its part of the weights, at least: each cache, from the
    fastest on, keeps as much of them as it has room for, the threads sharing them out."""
    sizes = cache_sizes()
    room = {"L1": threads * sizes["L1"], "L2": threads * sizes["L2"], "L3": sizes["L3"]}
    left, reads = case.step_weight_bytes, case.weight_bytes / case.step_weight_bytes
    seconds = {}
    for level in LEVELS:
        part = min(left, room.get(level, left))
        seconds[level] = reads * part / rates[level]
        left -= part
    return seconds


def limit(case: Case, threads: int, rates: dict[str, float]) -> dict[str, Any]:
    """The least seconds that the products take, and what bounds them."""
    arithmetic = case.flops / rates["flops"]
    reading = reading_seconds(case, threads, rates)
    total = sum(reading.values())
    slowest = max(LEVELS, key=reading.__getitem__)
    return {
        "seconds": max(arithmetic, total),
        "bound": "multiply-adds" if arithmetic >= total else f"{slowest} reads",
        "of_peak": arithmetic,
    }
