"""Gradients in flat buffers, and their sum over all shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tree import Node, nodes_of, parents

__all__ = ["CHECK", "REPORTED", "STOPS", "Layout", "Sums"]

Array = NDArray[Any]

REPORTED = 8  # numbers that a shard can report
STOPS = 3  # reasons for a stop, each with a count of the ranks that ask for it
CHECK = slice(REPORTED + STOPS, REPORTED + STOPS + 2)  # of what ranks have in common; its square
HEADER = 16  # float64 numbers before the arrays; those behind the check are zero
SMALL = 1 << 16  # bytes of a buffer that is gathered whole, since latency outweighs them
DOUBLE = np.dtype(np.float64)
SINGLE = np.dtype(np.float32)


class Layout:
    """Where each array is in a flat buffer: the header, float64 arrays, float32 arrays.

    Parameters
    ----------
    specs : sequence of (shape, dtype)
        Of the arrays.
    """

    def __init__(self, specs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        self.specs = list(specs)
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape, _ in specs]
        self.doubles = HEADER  # numbers, from the start
        singles = 0
        self._slices = []
        for size, (_, dtype) in zip(sizes, specs, strict=True):
            begin = self.doubles if dtype == DOUBLE else singles
            self._slices.append(slice(begin, begin + size))
            if dtype == DOUBLE:
                self.doubles += size
            else:
                singles += size
        self.words = self.doubles + (singles + 1) // 2  # of 8 bytes

    def new(self, parts: int = 1) -> Array:
        """Return a buffer of zeros whose words can be divided into so many equal parts."""
        return np.zeros(-(-self.words // parts) * parts, DOUBLE)

    def arrays(self, buffer: Array) -> list[Array]:
        """Return views of the arrays in a buffer."""
        singles = buffer[self.doubles :].view(SINGLE)
        return [
            (buffer if dtype == DOUBLE else singles)[where].reshape(shape)
            for where, (shape, dtype) in zip(self._slices, self.specs, strict=True)
        ]

    def add(self, target: Array, other: Array, begin: int = 0) -> None:
        """Add another buffer to one, or of both the words from `begin` on, of each kind."""
        cut = min(max(self.doubles - begin, 0), len(target))
        with np.errstate(all="ignore"):  # the optimizer's step finds what is not finite
            target[:cut] += other[:cut]
            singles = target[cut:].view(SINGLE)
            singles += other[cut:].view(SINGLE)


class Sums:
    """The sum over all shards of a communicator.

    Parameters
    ----------
    comm : mpi4py communicator or None
        None: one rank.
    wait : function of requests
        Returns once they are complete.
    shards : int
        Of all ranks, a multiple of their number.
    exact : bool
        Whether to sum in the order of the tree, rather than in MPI's.
    """

    def __init__(self, comm: Any, wait: Callable[..., None], shards: int, exact: bool) -> None:
        self._comm, self._wait, self._exact = comm, wait, exact
        self.size: int = 1 if comm is None else comm.size
        self.rank: int = 0 if comm is None else comm.rank
        self._parents = parents(shards)
        self._nodes = [nodes_of(shards, self.size, rank) for rank in range(self.size)]
        self.first = self.rank * (shards // self.size)  # of this rank's shards
        self.count = shards // self.size
        self.gathers: bool | None = None  # whether to gather whole buffers; None: as is faster

    def push(self, layout: Layout, found: list[tuple[Node, Array]], buffer: Array) -> None:
        """Append the next shard of this rank, and add up what makes a whole node of the tree."""
        last = found[-1][0][1] if found else self.first
        found.append(((last, last + 1), buffer))
        self._merge(lambda target, other: layout.add(target, other), found)

    def _merge(self, add: Callable[[Array, Array], None], found: list[tuple[Node, Array]]) -> None:
        while len(found) > 1:
            (one, target), (other, buffer) = found[-2:]
            if self._exact and (one, other) not in self._parents:
                return
            add(target, buffer)
            found[-2:] = [((one[0], other[1]), target)]

    def _reduced(self, layout: Layout, buffers: list[Array], begin: int) -> Array:
        """The sum of the buffers of all nodes, or of their words from `begin` on."""
        found: list[tuple[Node, Array]] = []
        for node, buffer in zip((n for of in self._nodes for n in of), buffers, strict=True):
            found.append((node, buffer))
            self._merge(lambda target, other: layout.add(target, other, begin), found)
        ((_, total),) = found
        return total

    def total(self, layout: Layout, found: list[tuple[Node, Array]]) -> Array:
        """Return the sum of all ranks' shards, the same on each."""
        own = [buffer for _, buffer in found]
        if self._comm is None or self.size == 1:
            (total,) = own
            return total
        if not self._exact:
            return self._all_reduced(layout, own[0])
        gathers = self.gathers
        if gathers is None:
            gathers = self.size == 2 or 8 * layout.words <= SMALL
        return self._gathered(layout, own) if gathers else self._scattered(layout, own)

    def _all_reduced(self, layout: Layout, own: Array) -> Array:
        total = np.empty_like(own)
        cut = layout.doubles
        pairs = [(own[:cut], total[:cut]), (own[cut:].view(SINGLE), total[cut:].view(SINGLE))]
        self._wait(*[self._comm.Iallreduce(*pair) for pair in pairs])  # of sums
        return total

    def _gathered(self, layout: Layout, own: list[Array]) -> Array:
        """Each rank gets all nodes and adds them up."""
        words = len(own[0])
        send = own[0] if len(own) == 1 else np.concatenate(own)
        counts = [words * len(nodes) for nodes in self._nodes]
        received = np.empty((sum(map(len, self._nodes)), words), DOUBLE)
        self._wait(self._comm.Iallgatherv(send, [received, counts]))
        return self._reduced(layout, list(received), 0)

    def _scattered(self, layout: Layout, own: list[Array]) -> Array:
        """Each rank adds up its part of the words, which all then gather."""
        part = len(own[0]) // self.size
        send = own[0]
        if len(own) > 1:
            send = np.stack(own).reshape(len(own), self.size, part).swapaxes(0, 1).copy()
        sent, counts = len(own) * part, [len(nodes) * part for nodes in self._nodes]
        received = np.empty((sum(map(len, self._nodes)), part), DOUBLE)
        request = self._comm.Ialltoallv([send, [sent] * self.size], [received, counts])
        self._wait(request)
        mine = self._reduced(layout, list(received), self.rank * part)
        total = np.empty(part * self.size, DOUBLE)
        self._wait(self._comm.Iallgather(mine, total))
        return total
