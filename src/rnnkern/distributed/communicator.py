"""Ranks that train one model: shards of a batch, joint gradients, the same start, one file."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import re
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from functools import reduce
from types import FrameType, NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import runtime
from ..batches import Batch
from ..checks import flag, integer, number
from ..masks import DrawsMasks
from ..model import parameters_by_name
from ..parameters import Parametrized
from ..rows import SparseRows
from .launch import Ends, launched_size, mpi
from .sums import CHECK, REPORTED, STOPS, Layout, Sums
from .tree import Node

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Communicator", "Shard"]

Array = NDArray[Any]
T = TypeVar("T")

KEY = "rnnkern.distributed"  # of the number of shards, in a file's metadata
MOST_SHARDS = 2**16
SIGNALS = (signal.SIGINT, signal.SIGTERM)
REASONS = (0, *map(int, SIGNALS))  # for a stop; 0: the program's own
CHECKS = 2**18  # values of a check, of which float64 holds the sum of squares over all shards


class Shard:
    """Some rows of a batch, whose gradient is computed alone.

    Attributes
    ----------
    number : int
        Among all shards, from 0.
    rows : slice
        Of the batch; may be empty.
    batch_size : int
        Rows of the whole batch.
    share : float
        Of its rows among those of the batch: times this, a mean over its rows is its part in the
        mean over the batch.
    batch : Batch or None
        The shard's rows of the `Batch` that was given, views of the whole one's arrays.
    """

    def __init__(
        self,
        number: int,
        rows: slice,
        batch_size: int,
        batch: Batch | None,
        reports: dict[int, Any],
    ) -> None:
        self.number, self.rows, self.batch_size = number, rows, batch_size
        self.share = (rows.stop - rows.start) / max(batch_size, 1)
        self.batch, self._reports = batch, reports

    def report(self, *values: float) -> None:
        """Have numbers added up over all shards, such as the loss, along with the gradients.

        Parameters
        ----------
        *values : float
            At most 8. After the optimizer's step, `Communicator.reported` has their sums.

        Raises
        ------
        ValueError
            If there are more.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> for shard in Communicator().shard(5):
        ...     shard.report(0.25, shard.rows.stop - shard.rows.start)
        """
        if len(values) > REPORTED:
            raise ValueError(f"values: expected at most {REPORTED}, got {len(values)}")
        self._reports[self.number] = [float(value) for value in values]

    def __repr__(self) -> str:
        rows = f"{self.rows.start}:{self.rows.stop}"
        return f"Shard({self.number}, rows {rows} of {self.batch_size})"


class Communicator:
    """The ranks that train a model together.

    Parameters
    ----------
    comm : mpi4py communicator, optional
        Whose ranks take part. If not given, all processes of the launcher (``mpiexec``), or this
        process alone if there is none; mpi4py is imported only where there are several.
    shards : int, optional
        How many parts a batch is cut into: a multiple of the number of ranks, which is the default.
        It determines the bits of a run; the number of ranks does not. Each shard is a call of its
        own, so many small ones cost time.
    exact : bool
        Whether shards are summed in a fixed order. If not, MPI's reduction sums in an order of its
        own, which can be faster; the bits then depend on the number of ranks, and may vary from run
        to run.
    timeout : float, optional
        Seconds that a rank waits for the others in an exchange before it raises RuntimeError, which
        ends all ranks if no one catches it: longer than anything that one rank does alone, such as
        an evaluation within `first`. If not given, a rank that hangs makes the others wait forever.

    Attributes
    ----------
    rank, size : int
        Number of this rank, from 0, and of all.
    shards : int
        As above.
    reported : tuple of float
        The sums of what the shards of the last step reported.
    stopped : int or None
        None until a rank calls `stop`; from the next step on, on all ranks alike, the signal that
        was given there, or 0.

    Raises
    ------
    ImportError, RuntimeError
        If there are several processes, and mpi4py or MPI is missing, or belongs to another
        launcher.
    TypeError, ValueError
        If an argument is invalid, or differs between ranks, or the ranks have different
        versions of rnnkern or, some of them, the baseline instruction set; all ranks raise it.

    Notes
    -----
    With more than one rank, an exception that no one catches ends all ranks: ``sys.excepthook``,
    from the import of this package on, prints the traceback with the rank, and aborts. A rank that
    waits for one that has left raises RuntimeError after a few seconds.

    Examples
    --------
    >>> from rnnkern.distributed import Communicator
    >>> comm = Communicator(shards=4)
    >>> comm.rank, comm.size, [shard.rows.stop for shard in comm.shard(10)]
    (0, 1, [2, 5, 7, 10])
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        shards: int | None = None,
        exact: bool = True,
        timeout: float | None = None,
    ) -> None:
        comm = _ranks(comm)
        self._comm = None if comm is None or comm.size == 1 else comm.Dup()
        self.rank: int = 0 if self._comm is None else comm.rank
        self.size: int = 1 if self._comm is None else comm.size
        if timeout is not None:
            timeout = number("timeout", timeout, "a number of seconds above 0", lambda x: x > 0)
        self._ends = None if self._comm is None else Ends(comm.Dup(), timeout)
        self._exact = flag("exact", exact)
        self._reports: dict[int, list[float]] = {}
        self._asked = [0.0] * STOPS
        self.reported: tuple[float, ...] = ()
        self.stopped: int | None = None
        self._layouts: dict[Any, Layout] = {}
        self._batch: dict[str, Any] = {}  # what ranks must have in common at a step
        self._drawing: list[Any] = []  # of the batch's model
        self._steps = 0
        self._divide(self.size if shards is None else shards)

    def _divide(self, shards: int) -> None:
        expected = f"an integer from 1 to {MOST_SHARDS}"
        shards = integer("shards", shards, expected, 1, MOST_SHARDS)
        if shards % self.size:
            raise ValueError(f"shards: expected a multiple of the {self.size} ranks, got {shards}")
        self.shards = shards
        fused = runtime.info()["isa"] != "baseline"
        self._agree(
            "ranks",
            {
                "rnnkern": runtime.info()["version"],
                "instruction set": "one with a fused multiply-add" if fused else "baseline",
                "shards": shards,
                "exact": self._exact,
            },
        )
        self._sums = Sums(self._comm, self._wait, shards, self._exact)

    def divided(self, shards: int) -> Self:
        """The same ranks with another number of shards.

        Parameters
        ----------
        shards : int
            As of the constructor.

        Returns
        -------
        Communicator
            Stops are asked for and reported by each alone.

        Raises
        ------
        TypeError, ValueError
            As of the constructor.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().divided(8).shards
        8
        """
        one = copy.copy(self)
        one._reports, one._asked, one._layouts = {}, [0.0] * STOPS, {}
        one.reported, one.stopped, one._batch, one._steps = (), None, {}, 0
        one._divide(shards)
        return one

    def ranks_per_core_set(self) -> int:
        """How many ranks share this process's cores: those of the host, unless it is bound to some.

        Returns
        -------
        int
            What to divide the number of threads by.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().ranks_per_core_set()
        1
        """
        if self._comm is None:
            return 1
        cores = sorted(os.sched_getaffinity(0))
        return self.gather((platform.node(), cores)).count((platform.node(), cores))

    def __repr__(self) -> str:
        exact = "" if self._exact else ", exact=False"
        return f"Communicator(rank {self.rank} of {self.size}, shards={self.shards}{exact})"

    # ------------------------------------------------------------------------------ small messages

    def _wait(self, *requests: Any) -> None:
        assert self._ends is not None
        self._ends.wait(*requests)

    def gather(self, value: T) -> list[T]:
        """What each rank gives, on all ranks.

        Parameters
        ----------
        value : object
            Is pickled.

        Returns
        -------
        list
            By rank.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().gather("a")
        ['a']
        """
        if self._comm is None:
            return [value]
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self._wait(self._comm.Iallgather(np.array([own.size]), sizes))
        found = np.empty(int(sizes.sum()), np.uint8)
        self._wait(self._comm.Iallgatherv(own, [found, sizes.tolist()]))
        parts = np.split(found, np.cumsum(sizes)[:-1])
        return [pickle.loads(part.data) for part in parts]

    def _agree(self, name: str, values: Mapping[str, Any], hint: str = "") -> None:
        """Raise ValueError, on all ranks, unless all have the values of rank 0."""
        first, *others = self.gather(dict(values))
        for rank, own in enumerate(others, 1):
            if own.keys() != first.keys():
                raise ValueError(
                    f"{name}: expected {list(first)}, as on rank 0, got {list(own)} on rank {rank}"
                    f"{hint}"
                )
            for key, value in own.items():
                if value != first[key]:
                    raise ValueError(
                        f"{name}: expected {key} {first[key]!r}, as on rank 0, got {value!r} on "
                        f"rank {rank}{hint}"
                    )

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone, and return its result on all ranks.

        Parameters
        ----------
        function : callable without arguments
            Its result is pickled.

        Returns
        -------
        object
            On rank 0 the result itself, on others a copy.

        Raises
        ------
        Exception
            What the function raised, on all ranks; on others than rank 0 a RuntimeError with its
            text, if it cannot be pickled.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().first(lambda: 7)
        7
        """
        result, error = None, None
        if self.rank == 0:
            try:
                result = function()
            except Exception as caught:
                error = caught
        others = self.gather((result, None if error is None else _sendable(error)))[0]
        if self.rank > 0:
            result, error = others
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def sum(self, value: float) -> float:
        """Add up a number over all ranks, in their order: the same bits for integers.

        Parameters
        ----------
        value : float or int
            Such as a count of steps.

        Returns
        -------
        float or int
            On all ranks.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().sum(3)
        3
        """
        return sum(self.gather(value))

    # ---------------------------------------------------------------------------------- the shards

    def share(self, count: int) -> slice:
        """This rank's share of so many independent things, such as members of an ensemble.

        Parameters
        ----------
        count : int
            At least 0.

        Returns
        -------
        slice
            The shares of all ranks differ by at most one.

        Examples
        --------
        One line spreads a search over the ranks, as an ensemble on each; the members are the same
        for any number of ranks:

        >>> import rnnkern as rk
        >>> from rnnkern.distributed import Communicator
        >>> comm = Communicator()
        >>> layers = rk.GRU(3, 5, ensemble=12, seed=0).member(comm.share(12))
        """
        count = integer("count", count, "an integer of at least 0", 0, 2**62)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are in this rank's shards.

        Parameters
        ----------
        batch_size : int
            Rows of the whole batch.

        Returns
        -------
        slice
            From the first row of the first shard to the last row of the last one.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().rows(10)
        slice(0, 10, None)
        """
        batch_size = integer("batch_size", batch_size, "an integer of at least 0", 0, 2**31)
        first, last = self._sums.first, self._sums.first + self._sums.count
        return slice(first * batch_size // self.shards, last * batch_size // self.shards)

    def shard(self, batch: int | Batch, model: Any = None) -> Iterator[Shard]:
        """Iterate over this rank's shards of a batch.

        Parameters
        ----------
        batch : int or Batch
            The rows of the whole batch, the same on all ranks, or a `Batch` of `Batches`.
        model : dict or list of parts, or a layer or module, optional
            Whose dropout and noise draw the masks of the whole batch's rows: before each shard its
            layers and modules are told the first row (``first_row``) and the step
            (``dropout_step``). Needed where anything is drawn, since the masks would depend on the
            number of ranks otherwise: an optimizer's step refuses layers and modules that draw
            and are not among these.

        Returns
        -------
        Iterator of Shard
            As many as the rank has, also where there are fewer rows: a shard of no rows has a
            gradient of zeros, and layers, modules and losses take it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> from rnnkern.distributed import Communicator
        >>> batches = rk.Batches([np.ones((n, 2)) for n in (3, 5, 4)], np.arange(3), batch_size=3,
        ...                      seed=0)
        >>> for batch in batches:
        ...     for shard in Communicator(shards=2).shard(batch):
        ...         shard.batch.x.shape, shard.batch.lengths.tolist()
        ((5, 1, 2), [3])
        ((5, 2, 2), [4, 5])
        """
        if isinstance(batch, Batch):
            rows = len(batch.indices)
        else:
            kind = "a number of rows or a Batch"
            rows = integer("batch", batch, "an integer of at least 0", 0, 2**31, kind)
        self._batch = {"rows": rows}
        if isinstance(batch, Batch) and self._comm is not None:
            for name in ("indices", "lengths"):
                values = np.ascontiguousarray(getattr(batch, name))
                self._batch[f"{name} with the checksum"] = zlib.crc32(values.data)
        if not isinstance(model, (Mapping, list, tuple, Parametrized, NoneType)):
            expected = "a dict or a list of layers and modules, or one of these"
            raise TypeError(f"model: expected {expected}, got {type(model).__name__}")
        self._drawing = drawing = _drawing(model)
        steps = [part.dropout_step for part in drawing]
        self._reports.clear()
        return self._shards(batch if isinstance(batch, Batch) else None, rows, drawing, steps)

    def _shards(
        self, batch: Batch | None, rows: int, drawing: list[Any], steps: list[int]
    ) -> Iterator[Shard]:
        try:
            for number in range(self._sums.first, self._sums.first + self._sums.count):
                own = slice(number * rows // self.shards, (number + 1) * rows // self.shards)
                for part, step in zip(drawing, steps, strict=True):
                    part.first_row, part.dropout_step = own.start, step
                part_of = None if batch is None else _cut(batch, own)
                yield Shard(number, own, rows, part_of, self._reports)
        finally:
            for part in drawing:
                part.first_row = 0

    # ------------------------------------------------------------------------------- the gradients

    def _joint(self, opt: Any, parts: Any, options: Mapping[str, Any]) -> Any:
        """The sum of the gradients of all shards, in the form that the optimizer's step takes."""
        if isinstance(parts, (Mapping, str)) or not isinstance(parts, Iterable):
            expected = f"the gradients of {self._sums.count} shards, in order"
            raise TypeError(f"grads: expected {expected}, with comm, got {type(parts).__name__}")
        self._steps += 1
        found: list[tuple[Node, Array]] = []
        rows: list[list[SparseRows]] = []
        count = 0
        for part in parts:
            count += 1
            if count > self._sums.count:
                continue
            gradients = self._gradients(opt, part)
            own = [isinstance(gradient, SparseRows) for gradient in gradients]
            if count == 1:
                sparse, layout = own, self._layout(opt, own)
            for place, kind, first in zip(opt._places, own, sparse, strict=True):
                if kind != first:
                    names = ("SparseRows", "an array")
                    expected, got = names if first else names[::-1]
                    raise TypeError(
                        f"grads{place.text}: expected {expected}, as in the first shard, got {got}"
                    )
            dense = [g for g in gradients if not isinstance(g, SparseRows)]
            rows.append([g for g in gradients if isinstance(g, SparseRows)])
            common = {"number": self._steps, **self._batch, **options}
            self._sums.push(layout, found, self._packed(layout, count - 1, dense, common))
        if count != self._sums.count:
            raise ValueError(f"grads: expected those of {self._sums.count} shards, got {count}")
        for text, group in zip(opt._dicts, opt._groups.values(), strict=True):
            if getattr(group, "_draws", False) and not any(group is d for d in self._drawing):
                expected = f"params{text} in comm.shard(batch, model), since it draws masks"
                raise ValueError(f"model: expected {expected}, got a model without it")
        total = self._sums.total(layout, found)
        checks, squares = map(int, total[CHECK])
        if checks**2 != self.shards * squares:  # there are several values, as all ranks see
            self._agree("step", common)
        self._reports.clear()
        self.reported = tuple(total[:REPORTED].tolist())
        counts = total[REPORTED : REPORTED + STOPS].tolist()
        if self.stopped is None:
            asked = [reason for reason, n in zip(REASONS, counts, strict=True) if n > 0]
            self.stopped = asked[-1] if asked else None
        arrays, tables = iter(layout.arrays(total)), iter(self._joint_rows(rows))
        groups: list[dict[str, Any]] = [{} for _ in opt._groups]
        for place, kind in zip(opt._places, sparse, strict=True):
            name = list(opt._names[place.index])[len(groups[place.index])]
            groups[place.index][name] = next(tables if kind else arrays)
        return dict(zip(opt._groups, groups, strict=True)) if opt._is_named else groups

    def _joint_rows(self, shards: list[list[SparseRows]]) -> list[SparseRows]:
        """The sums of rows of tables over all shards: of the rows that any of them has."""
        tables = list(zip(*shards, strict=True))
        if not tables:
            return []
        own = [reduce(np.union1d, (rows.ids for rows in table)) for table in tables]
        ids = [reduce(np.union1d, of) for of in zip(*self.gather(own), strict=True)]
        layout = Layout(
            [((len(n), t[0].shape[-1]), t[0].dtype) for n, t in zip(ids, tables, strict=True)]
        )
        found: list[tuple[Node, Array]] = []
        for shard in shards:
            buffer = layout.new(self.size)
            for target, n, rows in zip(layout.arrays(buffer), ids, shard, strict=True):
                target[np.searchsorted(n, rows.ids)] = rows.values
            self._sums.push(layout, found, buffer)
        sums = layout.arrays(self._sums.total(layout, found))
        return [
            SparseRows._made(n, values, table[0].shape)
            for n, values, table in zip(ids, sums, tables, strict=True)
        ]

    def _layout(self, opt: Any, sparse: list[bool]) -> Layout:
        """The layout of the gradients that are arrays; at first all ranks compare what they have.

        Raises
        ------
        ValueError
            On all ranks, unless all optimize the same parameters, from the same values.
        """
        specs = tuple((place.shape, place.dtype) for place in opt._places)
        key = specs, tuple(sparse)
        if (known := self._layouts.get(key)) is not None:
            return known
        if self._comm is not None:
            values: dict[str, Any] = {}
            parameters = opt._arrays("params", opt._params())
            for place, array, rows in zip(opt._places, parameters, sparse, strict=True):
                values[f"params{place.text}"] = array.shape, str(array.dtype)
                values[f"params{place.text} with the checksum"] = zlib.crc32(array.data)
                values[f"grads{place.text}"] = "SparseRows" if rows else "an array"
            for name, array in opt._state().items():
                values[f"{name!r} with the checksum"] = zlib.crc32(array.data)
            self._agree("opt", values, " (comm.broadcast sends that of rank 0)")
        dense = [spec for spec, rows in zip(specs, sparse, strict=True) if not rows]
        layout = self._layouts[key] = Layout(dense)
        return layout

    def _gradients(self, opt: Any, part: Any) -> list[Any]:
        """A shard's gradients at the optimizer's places, checked."""
        given = opt._of_groups(part)
        for text, group in zip(opt._dicts, given, strict=True):
            if (clip := getattr(group, "_clip", None)) is not None:
                raise ValueError(
                    f"clip: expected no value and no max_norm in the backward of grads{text} with "
                    f"comm, got {clip} (the joint norm is for the max_norm of the optimizer's step)"
                )
        found: list[Any] = opt._gradients(given, opt._params())
        return found

    def _packed(
        self, layout: Layout, index: int, gradients: list[Array], common: Mapping[str, Any]
    ) -> Array:
        """A shard's gradients in a buffer, with what it reports and what ranks have in common."""
        buffer = layout.new(self.size)
        for target, gradient in zip(layout.arrays(buffer), gradients, strict=True):
            target[...] = gradient
        values = self._reports.get(self._sums.first + index, [])
        buffer[: len(values)] = values
        if index == 0:
            buffer[REPORTED : REPORTED + STOPS] = self._asked
        if self._comm is not None:
            check = zlib.crc32(repr(common).encode()) % CHECKS
            buffer[CHECK] = check, check**2
        return buffer

    # ---------------------------------------------------------------------------- start, stop, save

    def broadcast(self, run: Any) -> None:
        """Give all ranks what rank 0 has: parameters, states of optimizers, dropout and others.

        Parameters
        ----------
        run : dict of str to parts
            As `rnnkern.save` takes it: layers, modules, dicts of arrays, and what has a
            ``state_dict`` and a ``load_state_dict``; or one layer or module.

        Raises
        ------
        TypeError, ValueError
            If a part's class, options or arrays differ between ranks, or `run` is not what it must
            be; on all ranks, with the name of the part and the rank. Nothing has been written then.

        Examples
        --------
        >>> import rnnkern as rk
        >>> from rnnkern.distributed import Communicator
        >>> gru = rk.GRU(3, 5)
        >>> Communicator().broadcast({"gru": gru, "opt": rk.Adam(gru)})
        """
        from ..saved import _about, _parts

        parts = _parts({"model": run} if isinstance(run, Parametrized) else run)
        arrays: dict[str, Array] = {}
        about: dict[str, Any] = {"parts": list(parts)}
        for name, part in parts.items():
            about[name] = type(part).__name__
            if isinstance(part, (Parametrized, Mapping)):
                arrays |= parameters_by_name("run", {name: part})
                if isinstance(part, Parametrized):
                    about[name] = _about(part)
            else:
                about[name] = re.sub(r" at 0x\w+", "", repr(part))
        about |= {name: (a.shape, str(a.dtype)) for name, a in arrays.items()}
        self._agree("run", about)
        state = self.first(
            lambda: {
                name: (
                    part.dropout_state if isinstance(part, DrawsMasks) else None,
                    None if isinstance(part, (Parametrized, Mapping)) else part.state_dict(),
                )
                for name, part in parts.items()
            }
        )
        if self._comm is None:
            return
        layout = Layout([(a.shape, a.dtype) for a in arrays.values()])
        buffer = layout.new()
        views = layout.arrays(buffer)
        for view, array in zip(views, arrays.values(), strict=True):
            view[...] = array
        self._wait(self._comm.Ibcast(buffer, 0))
        for view, array in zip(views, arrays.values(), strict=True):
            array[...] = view
        for name, part in parts.items():
            dropout, loaded = state[name]
            if dropout is not None:
                part.dropout_state = dropout
            if loaded is not None:
                part.load_state_dict(loaded)

    def save(
        self,
        path: str | os.PathLike[str],
        run: Any,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a run to a file, from rank 0 alone; all ranks wait until it is whole.

        Parameters
        ----------
        path, run, metadata
            As `rnnkern.save` takes them. The number of shards is kept, too.

        Raises
        ------
        FileError, OSError, TypeError, ValueError
            As `rnnkern.save` does, on all ranks.

        Examples
        --------
        >>> import tempfile, rnnkern as rk
        >>> from rnnkern.distributed import Communicator
        >>> comm, gru = Communicator(), rk.GRU(3, 5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comm.save(f"{folder}/run.safetensors", {"gru": gru})
        ...     comm.restore(f"{folder}/run.safetensors", {"gru": gru})
        {}
        """
        from ..saved import save

        self.first(lambda: save(path, run, {**(metadata or {}), KEY: str(self.shards)}))

    def restore(self, path: str | os.PathLike[str], run: Any) -> dict[str, str]:
        """Go on from a file that `save` wrote, with any number of ranks; rank 0 alone reads it.

        Parameters
        ----------
        path, run
            As `rnnkern.restore` takes them.

        Returns
        -------
        dict of str to str
            The metadata that `save` was given.

        Raises
        ------
        FileError, OSError, TypeError, ValueError
            As `rnnkern.restore` does, and if the file's run has another number of shards; on all
            ranks.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> Communicator().restore("none.safetensors", {"w": {}})
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'none.safetensors'
        """
        from ..files import FileError, Reader
        from ..saved import restore

        def read() -> dict[str, str]:
            with Reader(path) as file:
                shards = file.metadata.get(KEY, str(self.shards))
            if shards != str(self.shards):
                expected = f"{self.shards} shards, as this communicator has"
                raise FileError(f"{os.fspath(path)}: expected {expected}, got {shards}")
            return restore(path, run)

        metadata = self.first(read)
        self.broadcast(run)
        metadata.pop(KEY, None)
        return metadata

    def stop(self, number: int = 0) -> None:
        """Ask all ranks to stop after the next step of an optimizer: it sets `stopped` on all.

        Parameters
        ----------
        number : int
            0, ``signal.SIGINT`` or ``signal.SIGTERM``.

        Raises
        ------
        ValueError
            If it is another number.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> comm = Communicator()
        >>> comm.stop()
        >>> comm.stopped is None  # until the next step
        True
        """
        if number not in REASONS:
            raise ValueError(
                f"number: expected one of {', '.join(map(str, REASONS))}, got {number}"
            )
        self._asked[REASONS.index(number)] = 1.0

    @contextmanager
    def signals(self) -> Iterator[Self]:
        """Take Ctrl-C and SIGTERM as calls of `stop`, in a ``with``; a second one acts as before.

        Returns
        -------
        context manager
            Whose ``as`` is this communicator.

        Examples
        --------
        >>> from rnnkern.distributed import Communicator
        >>> with Communicator().signals() as comm:
        ...     if comm.stopped is not None:  # after each step
        ...         raise SystemExit(128 + comm.stopped)  # once the run is saved
        """

        def handle(number: int, frame: FrameType | None) -> None:
            restore()
            self.stop(number)

        def restore() -> None:
            for signum, handler in before.items():
                signal.signal(signum, handler)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield self
        finally:
            restore()


def _ranks(comm: Any) -> Any:
    """The communicator of mpi4py that is given, or that of the launcher's processes, or None."""
    if comm is None:
        if (launched := launched_size()) == 1:
            return None
        comm = mpi().COMM_WORLD
        if comm.size == 1:
            raise RuntimeError(
                f"comm: expected the {launched} processes of the launcher, got 1 (mpiexec and "
                "mpi4py's library are of different MPIs)"
            )
    if not (hasattr(comm, "Iallgatherv") and hasattr(comm, "Dup")):
        raise TypeError(
            f"comm: expected a communicator of mpi4py or None, got {type(comm).__name__}"
        )
    if not comm or comm.is_inter:
        kind = "an intercommunicator" if comm else "a null communicator"
        raise ValueError(f"comm: expected a group of ranks, got {kind}")
    return comm


def _sendable(error: Exception) -> Exception:
    """An error as it is, or where it does not survive pickling, its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    return error


def _drawing(model: Any) -> list[Any]:
    """The layers and modules of a model that draw masks, also within dicts and lists of it."""
    if isinstance(model, DrawsMasks):
        return [model]
    parts = model.values() if isinstance(model, Mapping) else model
    within = parts if isinstance(parts, (list, tuple, ValuesView)) else ()
    return [drawing for part in within for drawing in _drawing(part)]


def _cut(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""

    def cut(values: Any, lengths: Any) -> Any:
        if isinstance(values, dict):
            return {n: cut(v, None if lengths is None else lengths[n]) for n, v in values.items()}
        if values is None:
            return None
        return values[rows] if lengths is None else values[:, rows]

    lengths = batch.y_lengths
    if isinstance(lengths, dict):
        lengths = {name: None if own is None else own[rows] for name, own in lengths.items()}
    elif lengths is not None:
        lengths = lengths[rows]
    y = cut(batch.y, batch.y_lengths)
    return Batch(batch.x[:, rows], y, batch.lengths[rows], lengths, batch.indices[rows])
