"""How a process of MPI starts and ends: launchers, errors, and ranks that leave."""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
import time
import traceback
from types import TracebackType
from typing import Any

__all__ = ["Ends", "end_all_on_error", "launched_rank", "launched_size", "mpi"]

# What the launchers tell their processes: those of MPICH and Slurm (PMI), Open MPI.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
LEFT = 1  # tag of the message of a rank that ends
# Seconds in which a waiting rank only yields its core, and then those that it sleeps between two
# looks. MPI moves a part of a large message at each look, so that sleeping slows these down; but
# where others keep the cores busy, a rank that sleeps is served sooner than one that yields.
SPIN = 0.02
PAUSE = 1e-4
GRACE = 3.0  # seconds in which what a rank sent before it left must arrive


def launched_size() -> int:
    """How many processes the launcher has started, 1 without one."""
    return _told(SIZES, 1)


def launched_rank() -> int:
    """Which of them this is, before MPI has started."""
    return _told(RANKS, 0)


def _told(names: tuple[str, ...], otherwise: int) -> int:
    for name in names:
        if (text := os.environ.get(name, "")).isdigit():
            return int(text)
    return otherwise


def mpi() -> Any:
    """Import MPI of mpi4py, or say how to install it."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: without the library of MPI
        raise ImportError(
            f"rnnkern.distributed needs mpi4py and MPI: pip install 'rnnkern[mpi]' ({error})"
        ) from error
    return MPI


def end_all_on_error() -> None:
    """Have an exception that no one catches end all processes of the launcher, from now on."""
    sys.excepthook = _abort


def _abort(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print the traceback, and end all ranks, also where MPI has not started yet."""
    rank, size = launched_rank(), launched_size()
    if (started := sys.modules.get("mpi4py.MPI")) is not None:
        if started.Is_finalized():
            return sys.__excepthook__(kind, error, where)
        if started.Is_initialized():
            rank, size = started.COMM_WORLD.rank, started.COMM_WORLD.size
    lines = traceback.format_exception(kind, error, where)
    sys.stdout.flush()
    print(f"rank {rank} of {size}:\n{''.join(lines)}", file=sys.stderr)
    sys.stderr.flush()
    time.sleep(0.2)  # for the launcher to read it: it ends this process at once
    try:
        mpi().COMM_WORLD.Abort(130 if issubclass(kind, KeyboardInterrupt) else 1)
    except Exception:  # MPI is missing or does not start; launchers end all where a signal ends one
        os.kill(os.getpid(), signal.SIGKILL)


class Ends:
    """The end of a rank, by an error or not, of which those that wait for it learn.

    Parameters
    ----------
    comm : mpi4py communicator
        Of more than one rank, for these messages alone.
    timeout : float or None
        Seconds to wait for an exchange.
    """

    def __init__(self, comm: Any, timeout: float | None) -> None:
        self._comm, self._timeout = comm, timeout
        end_all_on_error()
        atexit.register(self._leave)

    def _leave(self) -> None:
        """Tell the other ranks, at exit, and wait for the same of them, as MPI's end would."""
        if mpi().Is_finalized():
            return
        others = [rank for rank in range(self._comm.size) if rank != self._comm.rank]
        nothing = bytearray()
        for rank in others:
            self._comm.Isend(nothing, rank, LEFT).Free()
        for rank in others:
            request = self._comm.Irecv(nothing, rank, LEFT)
            while not request.Test():
                time.sleep(10 * PAUSE)

    def wait(self, *requests: Any) -> None:
        """Return once requests are complete; signal handlers run meanwhile.

        Raises
        ------
        RuntimeError
            If a rank has left, or the time is up.
        """
        begin, found = time.perf_counter(), None
        limit = math.inf if self._timeout is None else self._timeout
        Request = mpi().Request
        while not Request.Testall(list(requests)):
            waited = time.perf_counter() - begin
            if waited <= SPIN:
                os.sched_yield()
                continue
            time.sleep(PAUSE)
            if found is None:
                status = mpi().Status()
                if self._comm.Iprobe(mpi().ANY_SOURCE, LEFT, status):
                    found, begin = status.Get_source(), time.perf_counter()
            elif waited > GRACE:
                raise RuntimeError(f"rank {found}: expected an exchange with it, got its exit")
            if waited > limit:
                raise RuntimeError(
                    f"rank {self._comm.rank}: expected an exchange with all ranks within "
                    f"{limit:g} s, the timeout, got none (ranks without this error did not come)"
                )
