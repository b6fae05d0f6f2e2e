"""Functions of Python as XLA's foreign functions, which `_core` calls for XLA."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.ffi
import jax.numpy as jnp
from numpy.typing import NDArray

from .. import _core

__all__ = ["register"]

Array = NDArray[Any]
# What XLA calls: the text of the call, its operands, and its results, which are to be written. The
# arrays are valid during the call alone.
Function = Callable[[bytes, list[Array], list[Array]], None]


def register(name: str, function: Function) -> None:
    """Let XLA's programs for the CPU call a function by a name.

    It is called in a thread of XLA's. What it raises becomes the error of the program.
    """
    handler: Any = _core.xla_handler(function)  # an address, which pycapsule takes, too
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def finish_programs(process: int) -> None:
    """Wait for programs that must not fail: those with effects, and those on several devices.

    Where a call fails on one device, the others would wait for it in their next exchange of values.
    """
    from .calls import layer_of  # which imports this module

    if os.getpid() != process or not layer_of.cache_info().currsize:
        return  # a fork has none of its parent's threads; without a call JAX may not have begun
    jax.effects_barrier()
    devices = jax.local_devices(backend="cpu")
    if len(devices) > 1:  # XLA runs one program on several devices after the other
        mesh = jax.sharding.Mesh(devices, ("devices",))
        each = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        last = jax.jit(lambda: jnp.zeros(len(devices)), out_shardings=each)
        jax.block_until_ready(last())


# At exit Python calls the last one first, and after both of them what JAX has registered.
atexit.register(_core.refuse_xla_calls)
atexit.register(finish_programs, os.getpid())
