"""Gradients of tables of which few rows were used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .checks import fixed, integer, number, unmasked, viewed
from .pickles import reduced

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SparseRows", "combined", "stored", "sums_of_squares"]

Array = NDArray[Any]


class SparseRows:
    """A table of which some rows are kept; all others are zero. Read-only.

    ``Embedding(..., sparse=True).backward`` returns one for its ``weight``. Optimizers take it in
    place of an array, and step its rows only.

    Parameters
    ----------
    ids : ndarray of integers, shape (n,)
        Which rows, in rising order, each once.
    values : ndarray, shape (n, E)
        The rows, float32 or float64.
    shape : tuple of int
        Of the table, (N, E). With more axes, (..., E), `ids` count the rows of
        ``table.reshape(-1, E)``.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
        Rising. Read-only.
    values : ndarray, shape (n, E)
        Read-only.
    shape, dtype, ndim, size
        Those of the table.
    norm : float
        The L2 norm.
    finite : bool
        Whether all values are finite (and, for float64, small enough for their squares to be
        finite).

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it. Arguments are copied.

    Notes
    -----
    A sum of two has the rows of both; ``+`` with an array gives an array. ``*`` and ``/`` take
    numbers. They copy and pickle.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rows = rk.SparseRows([1, 4], np.array([[3.0, 0.0], [0.0, 4.0]]), (6, 2))
    >>> rows
    SparseRows(2 of 6 rows of 2, float64, norm=5)
    >>> total = 2 * rows + rk.SparseRows([0, 1], np.ones((2, 2)), (6, 2))
    >>> total.ids.tolist(), total.values.tolist()
    ([0, 1, 4], [[1.0, 1.0], [7.0, 1.0], [0.0, 8.0]])
    >>> total.to_dense()[:3].tolist()
    [[1.0, 1.0], [7.0, 1.0], [0.0, 0.0]]
    """

    __slots__ = ("__weakref__", "_finite", "_ids", "_norm", "_shape", "_values")
    __array_ufunc__ = None  # arrays and NumPy's scalars on the left leave it to this class

    ids: Array = fixed("ids", "Which rows are kept, rising.")
    values: Array = fixed("values", "The rows that are kept.")
    shape: tuple[int, ...] = fixed("shape", "Shape of the table.")
    norm: float = fixed("norm", "The L2 norm.")
    finite: bool = fixed("finite", "Whether all values are finite.")

    def __init__(self, ids: Any, values: Any, shape: Sequence[int]) -> None:
        if not isinstance(shape, (tuple, list)) or len(shape) < 2:
            raise TypeError(f"shape: expected a tuple of at least two sizes, got {shape!r}")
        sizes = tuple(
            integer(f"shape[{axis}]", n, "an integer of at least 0", 0, 2**62)
            for axis, n in enumerate(shape)
        )
        found = viewed("values", values)
        if found is None or found.dtype not in (np.float32, np.float64):
            got = type(values).__name__ if found is None else str(found.dtype)
            raise TypeError(f"values: expected an array of dtype float32 or float64, got {got}")
        own_values = np.array(found, order="C", subok=False)
        own_ids = _checked_ids(ids, math.prod(sizes[:-1]))
        if own_values.shape != (expected := (len(own_ids), sizes[-1])):
            raise ValueError(f"values: expected shape {expected}, got {own_values.shape}")
        self._take(own_ids, own_values, sizes)

    def _take(self, ids: Array, values: Array, shape: tuple[int, ...]) -> Self:
        """Keep arrays that no one else has, and measure them."""
        self._ids, self._values, self._shape = ids, values, shape
        ids.flags.writeable = values.flags.writeable = False
        self._norm = math.sqrt(_core.sums_of_squares(values, 1)[0])
        self._finite = math.isfinite(self._norm)
        return self

    @classmethod
    def _made(cls, ids: Array, values: Array, shape: tuple[int, ...]) -> Self:
        """Rows of arrays that are right and that no one else has."""
        return object.__new__(cls)._take(ids, values, shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values."""
        return self._values.dtype

    @property
    def ndim(self) -> int:
        """Number of the table's axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of the table's elements."""
        return math.prod(self._shape)

    def to_dense(self) -> Array:
        """Return the table as an array.

        Returns
        -------
        ndarray
            New, of `shape` and `dtype`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.SparseRows([2], np.ones((1, 2)), (3, 2)).to_dense().tolist()
        [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
        """
        table = np.zeros(self._shape, self.dtype)
        table.reshape(-1, self._shape[-1])[self._ids] = self._values
        return table

    def _combined(self, operation: np.ufunc, operand: Any) -> Any:
        """Apply ``np.add`` with rows or an array, or another ufunc with a number."""
        with np.errstate(all="ignore"):  # the norm finds what is not finite
            if isinstance(operand, SparseRows):
                ids = np.union1d(self._ids, operand._ids)
                values = np.zeros((len(ids), self._shape[-1]), self.dtype)
                for one in (self, operand):
                    values[np.searchsorted(ids, one._ids)] += one._values
                return self._made(ids, values, self._shape)
            if isinstance(operand, np.ndarray):
                table = np.add(operand, 0.0, out=np.empty(operand.shape, operand.dtype))
                table.reshape(-1, self._shape[-1])[self._ids] += self._values
                return table
            values = operation(self._values, operand, out=np.empty_like(self._values))
            return self._made(self._ids.copy(), values, self._shape)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, (SparseRows, np.ndarray)):
            return NotImplemented
        if (other.shape, other.dtype) != (self.shape, self.dtype):
            expected = f"rows or an array of shape {self.shape} and dtype {self.dtype}"
            raise ValueError(f"rows: expected {expected}, got {other.shape} and {other.dtype}")
        return self._combined(np.add, other)

    def __radd__(self, other: Any) -> Any:
        return self if type(other) is int and other == 0 else self.__add__(other)  # of sum()

    def __mul__(self, factor: float) -> SparseRows:
        factor = number("factor", factor, "a finite number", lambda x: True)
        rows: SparseRows = self._combined(np.multiply, factor)
        return rows

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SparseRows:
        divisor = number("divisor", divisor, "a finite number other than 0", lambda x: x != 0)
        rows: SparseRows = self._combined(np.divide, divisor)
        return rows

    def __repr__(self) -> str:
        count, width = math.prod(self._shape[:-1]), self._shape[-1]
        what = f"{len(self._ids)} of {count} rows of {width}, {self.dtype}"
        return f"SparseRows({what}, norm={self._norm:.6g})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, {"ids": self._ids, "values": self._values, "shape": self._shape})

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]


def _checked_ids(ids: Any, count: int) -> Array:
    """A copy of ids of rows from 0 to below `count`, in rising order."""
    found = np.asarray(unmasked("ids", ids))
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"ids: expected an array of integers, got {found.dtype}")
    if found.ndim != 1:
        raise ValueError(f"ids: expected shape (n,), got {found.shape}")
    own = np.array(found, np.int64)
    outside = np.flatnonzero((own < 0) | (own >= count))
    if outside.size:
        place = outside[0]
        expected = f"an integer from 0 to {count - 1}"
        raise ValueError(f"ids[{place}]: expected {expected}, got {found[place]}")
    falls = np.flatnonzero(own[1:] <= own[:-1])
    if falls.size:
        place = falls[0] + 1
        expected = f"more than {own[place - 1]}, the one before"
        raise ValueError(f"ids[{place}]: expected {expected}, got {own[place]}")
    return own


def combined(operation: np.ufunc, one: Any, other: Any) -> Any:
    """A ufunc of an array or rows and a number, or the sum of two arrays or rows of one shape."""
    if isinstance(one, SparseRows):
        return one._combined(operation, other)
    if isinstance(other, SparseRows):
        return other._combined(operation, one)
    return operation(one, other, out=np.empty_like(one, subok=False))


def stored(array: Array | SparseRows) -> Array:
    """The elements that are kept of an array or of rows."""
    return array.values if isinstance(array, SparseRows) else array


def sums_of_squares(array: Array | SparseRows, members: int) -> list[float]:
    """Each member's sum of squares in an array (E, ...), or in the rows of one."""
    if members == 1 or not isinstance(array, SparseRows):
        return _core.sums_of_squares(stored(array), members)
    rows_of_member = math.prod(array.shape[:-1]) // members
    ends = np.searchsorted(array.ids, rows_of_member * np.arange(1, members + 1))
    parts = np.split(array.values, ends[:-1])
    return [_core.sums_of_squares(part, 1)[0] for part in parts]
