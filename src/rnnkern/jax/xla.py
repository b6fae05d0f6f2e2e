"""Functions of Python as XLA's foreign functions, which `_core` calls for XLA."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.ffi
from numpy.typing import NDArray

from .. import _core

__all__ = ["register"]

Array = NDArray[Any]
# What XLA calls: the text of the call, its operands, and its results, which are to be written. The
# arrays are valid during the call alone.
Function = Callable[[bytes, list[Array], list[Array]], None]

INTERVAL = 0.001  # seconds between looks


def register(name: str, function: Function) -> None:
    """Let XLA's programs for the CPU call a function by a name.

    It is called in a thread of XLA's. What it raises becomes the error of the program.
    """
    handler: Any = _core.xla_handler(function)  # an address, which pycapsule takes, too
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def end_programs(process: int) -> None:
    """Refuse all further calls, and wait for those that have begun.

    JAX runs programs without waiting for them. At exit it holds the interpreter's lock while it
    waits for those that still run, and these would wait for the lock in order to call Python. So
    programs with effects end first, and all others, whose results nobody can read, fail.
    """
    if os.getpid() != process:  # a fork has none of its parent's threads
        return
    try:
        jax.effects_barrier()
    finally:
        while _core.refuse_xla_calls():
            time.sleep(INTERVAL)  # without the lock


atexit.register(end_programs, os.getpid())  # after JAX, so before what JAX does at exit
