"""Threads, instruction sets and what was built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from . import _core
from .checks import integer
from .machine import caches, usable_cores

__all__ = [
    "Info",
    "debug",
    "force_isa",
    "get_num_threads",
    "info",
    "num_threads",
    "release_memory",
    "set_num_threads",
]


debugging = False  # see `debug`


class LastCall(TypedDict):
    """How the threads of a call shared its work."""

    shared: str
    planned: int
    threads: int


class Info(TypedDict):
    """What `info` returns."""

    version: str
    isa: str
    available: list[str]
    threads: int
    caches: dict[str, int]
    last_call: LastCall | None
    single_thread_for: float
    compiler: str
    flags: str


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use; small calls use fewer.

    Results do not depend on it, to the bit.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1 or more than 1024.
    RuntimeError
        If `n` is above 1 in a child of a fork: the threads of GNU OpenMP do not survive a fork, so
        the child computes on one thread.

    Examples
    --------
    >>> import rnnkern as rk
    >>> rk.set_num_threads(2)
    >>> rk.get_num_threads()
    2
    """
    n = integer("n", n, "a number of threads from 1 to 1024", 1, 1024)
    if n > 1 and _core.is_forked_child():
        raise RuntimeError(
            f"n: expected 1 in a child of a fork, where OpenMP can't start threads, got {n}"
        )
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads a call may use: what was set, else what the machine has room for.

    Without `set_num_threads` this is OpenMP's number if ``OMP_NUM_THREADS``, the program or
    threadpoolctl has set it. Otherwise it is the number of physical cores in the affinity mask of
    the process, or less if the container's CPU quota (cgroup v1 or v2) grants less time.

    Returns
    -------
    int

    Examples
    --------
    >>> import rnnkern as rk
    >>> rk.get_num_threads() >= 1
    True
    """
    return _core.num_threads()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block, for the whole process, and restore after it.

    Parameters
    ----------
    n : int
        At least 1.

    Examples
    --------
    >>> import rnnkern as rk
    >>> with rk.num_threads(1):
    ...     rk.get_num_threads()
    1
    """
    before = _core.chosen_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        _core.set_num_threads(before)


def release_memory() -> int:
    """Hand back to the system the memory that waits for the next call.

    Tapes, results and the room that a call needs are taken again and again in the same sizes, and
    new memory costs a page fault a page. So what is no longer used waits, 128 MiB in all at most,
    until a call wants a block of the same size. Nothing that is still in use is touched.

    Returns
    -------
    int
        How many bytes waited.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(64, 64, seed=0)
    >>> y, state = lstm(np.zeros((100, 8, 64), np.float32))
    >>> del y, state
    >>> rk.release_memory() > 100 * 8 * 64 * 4, rk.release_memory()
    (True, 0)
    """
    return _core.release_memory()


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Use one instruction set inside a ``with`` block, for the whole process, and restore after it.

    Parameters
    ----------
    name : str
        One of ``info()["available"]``.

    Raises
    ------
    ValueError
        If this machine or this build does not have it; the message lists those there are.

    Examples
    --------
    >>> import rnnkern as rk
    >>> with rk.force_isa(rk.info()["available"][0]):
    ...     rk.info()["isa"] == rk.info()["available"][0]
    True
    """
    before = _core.instruction_set()
    _use(name)
    try:
        yield
    finally:
        _core.use_instruction_set(before)


@contextmanager
def debug() -> Iterator[None]:
    """Compare whole arrays inside a ``with`` block, for the whole process, and restore after it.

    A backward raises a `RuntimeError` if a parameter or the input has changed since its forward. It
    compares 64 evenly spaced elements of each array; of a forward inside the block it compares all
    elements, which costs a pass over the arrays in the forward and one in the backward.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru, x = rk.GRU(3, 5, seed=0), np.ones((90, 2, 3), np.float32)
    >>> with rk.debug():
    ...     y, state, tape = gru.forward(x)
    >>> x[40, 1, 2] = 0.0
    >>> gru.backward(tape, np.ones_like(y))
    Traceback (most recent call last):
    ...
    RuntimeError: x: expected the values that forward read, got others \
(change arrays after backward, or call forward again)
    """
    global debugging
    before, debugging = debugging, True
    try:
        yield
    finally:
        debugging = before


def info() -> Info:
    """Return what was built, what was found on the machine, and how the last call used it.

    Returns
    -------
    dict
        Keys ``version``, ``isa``, ``available``, ``threads``, ``caches``, ``last_call``,
        ``single_thread_for``, ``compiler``, ``flags``.

        ``caches`` has the bytes of each core's L2 cache and of an L3 cache, and how many cores
        share the latter. By these, a call chooses how its threads share rows and units.

        ``last_call`` says how the last call of a layer in the calling thread was shared; None
        before the first. Its threads shared ``"nothing"``, ``"directions"``, ``"rows"``,
        ``"units"``, rows and units in a ``"grid"``, ``"layers"``, or ``"members"`` of an ensemble.
        ``planned`` threads is what the call could use well, ``threads`` what it used: fewer where
        parallel calls were slower lately, or where threads can't be started.

        ``single_thread_for`` is 0.0, or, if parallel calls of the calling thread were slower
        lately, the seconds until it tries several threads again, at the latest.

    Examples
    --------
    >>> import rnnkern as rk
    >>> rk.info()["isa"] in rk.info()["available"]
    True
    """
    l2, l3, l3_cores = _core.caches()
    return {
        "version": _core.__version__,
        "isa": _core.instruction_set(),
        "available": _core.available_instruction_sets(),
        "threads": _core.num_threads(),
        "caches": {"l2": int(l2), "l3": int(l3), "l3_cores": l3_cores},
        "last_call": _last_call(),
        "single_thread_for": _core.alone_for(),
        "compiler": _core.compiler,
        "flags": _core.flags,
    }


def _last_call() -> LastCall | None:
    last = _core.last_sharing()
    return last and {"shared": last[0], "planned": last[1], "threads": last[2]}


def _use(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    available = _core.available_instruction_sets()
    if name not in available:
        one_of = ", ".join(available)
        raise ValueError(f"instruction set: expected one of {one_of}, got {name!r}")
    _core.use_instruction_set(name)


def _from_environment() -> None:
    """Apply RNNKERN_ISA, and find caches and the number of threads; called once, on import."""
    _core.set_caches(*caches())
    if "OMP_NUM_THREADS" not in os.environ:
        _core.set_usable_cores(usable_cores() or 0)
    name = os.environ.get("RNNKERN_ISA")
    if name:
        try:
            _use(name)
        except ValueError as error:
            raise ImportError(f"RNNKERN_ISA: {error}") from None
