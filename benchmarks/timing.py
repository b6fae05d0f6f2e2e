"""Turns of calls, A B C A B C, and what their times were."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from contenders import Call

# A batch of calls lasts at least as long, so that reading the clock (0.1 us) does not count.
BATCH_SECONDS = 100e-6
# Between two turns: longer than the threads of the libraries here spin after a call.
PAUSE_SECONDS = 0.01


def batch_seconds(run: Callable[[], Any], batch: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, batch):
        run()
    return time.perf_counter() - start


def batch_size(call: Call) -> int:
    batch = 1
    with call.scope():
        while batch_seconds(call.run, batch) < BATCH_SECONDS:
            batch *= 2
    return batch


def turn(call: Call, batch: int, seconds: float) -> list[float]:
    """One untimed call, then batches for so many seconds, at least one: seconds a call of each."""
    times: list[float] = []
    gc.collect()
    gc.disable()
    try:
        with call.scope():
            call.run()
            end = time.perf_counter() + seconds
            while not times or time.perf_counter() < end:
                times.append(batch_seconds(call.run, batch) / batch)
    finally:
        gc.enable()
    time.sleep(PAUSE_SECONDS)
    return times


def interleaved(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Median and minimum of each call's times, over all rounds."""
    batches = {name: batch_size(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] += turn(call, batches[name], seconds)
    return {
        name: {
            "median": statistics.median(found),
            "min": min(found),
            "samples": len(found),
            "batch": batches[name],
        }
        for name, found in times.items()
    }
