"""Sequences of different lengths in batches of similar lengths, padded and shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .checks import array as checked
from .checks import brief, flag, integer, received, seed_sequence, size, viewed

__all__ = ["Batch", "Batches"]

Array = NDArray[Any]
Column: TypeAlias = "Array | Sequence[Array]"
Columns: TypeAlias = "Column | Mapping[str, Column] | None"

MOST = 2**62
INT64 = np.dtype(np.int64)


class Batch(NamedTuple):
    """Some sequences, padded, of `Batches`.

    Attributes
    ----------
    x : ndarray, shape (T, B, ...)
        The sequences, time first; T is the length of the longest of them.
    y : ndarray, or dict of str to ndarray, or None
        The targets: (B, ...) where there is one for each sequence, or (T', B, ...) where they are
        sequences, padded to the longest of them.
    lengths : ndarray of int64, shape (B,)
        Of the sequences of x.
    y_lengths : ndarray of int64, shape (B,), or dict of str to such, or None
        Of the sequences of y; None where there is one target for each sequence.
    indices : ndarray of int64, shape (B,)
        The numbers of the sequences, as `Batches` was given them.
    mask : ndarray of bool, shape (T, B)
        Which steps of x are real.
    y_mask : ndarray of bool, shape (T', B), or dict of str to such, or None
        Which steps of y are real.
    """

    x: Array
    y: Any
    lengths: Array
    y_lengths: Any
    indices: Array

    def __repr__(self) -> str:
        """Shapes in place of arrays."""
        return brief(self)

    @property
    def mask(self) -> Array:
        """Which steps of x are real, (T, B)."""
        return _real(self.x, self.lengths)

    @property
    def y_mask(self) -> Any:
        """Which steps of y are real, (T', B); None where a target is no sequence."""
        if isinstance(self.y, dict):
            lengths = self.y_lengths
            return {
                name: None if lengths[name] is None else _real(values, lengths[name])
                for name, values in self.y.items()
            }
        return None if self.y_lengths is None else _real(self.y, self.y_lengths)


def _real(values: Array, lengths: Array) -> Array:
    found: Array = np.arange(len(values))[:, None] < lengths
    return found


class _Column:
    """What each sequence has: a row of an array, or a sequence of its own, which is padded."""

    def __init__(self, name: str, given: Any, pad_value: Any) -> None:
        self.lengths: Array | None = None
        if not isinstance(given, (list, tuple)):
            self.rows: Any = _own(name, given)
            if not self.rows.ndim:
                raise ValueError(f"{name}: expected an array of at least 1 dimension, got shape ()")
            self.count = len(self.rows)
            return
        self.rows = [_own(f"{name}[{i}]", item) for i, item in enumerate(given)]
        self.count = len(self.rows)
        if not self.rows:
            raise ValueError(f"{name}: expected at least one sequence, got none")
        first = self.rows[0]
        for i, row in enumerate(self.rows):
            if row.dtype != first.dtype:
                expected = f"dtype {first.dtype}, that of {name}[0]"
                raise TypeError(f"{name}[{i}]: expected {expected}, got {row.dtype}")
            if not row.ndim or row.shape[1:] != first.shape[1:]:
                shape = ", ".join(map(str, ("T", *first.shape[1:])))
                expected = f"shape ({shape}{',' * (first.ndim <= 1)}), as of {name}[0]"
                raise ValueError(f"{name}[{i}]: expected {expected}, got {row.shape}")
        self.lengths = np.array([len(row) for row in self.rows], INT64)
        self.fill = _fill(name, pad_value, first.dtype)

    def take(self, indices: Array) -> tuple[Array, Array | None]:
        """What some sequences have, (B, ...) or padded (T, B, ...), and the lengths."""
        if self.lengths is None:
            return self.rows[indices], None
        lengths, first = self.lengths[indices], self.rows[0]
        shape = (lengths.max(initial=0), len(indices), *first.shape[1:])
        padded = np.full(shape, self.fill, first.dtype)
        for column, index in enumerate(indices.tolist()):
            row = self.rows[index]
            padded[: len(row), column] = row
        return padded, lengths


def _own(name: str, value: Any) -> Array:
    """A view of an array of numbers, whose shape and dtype nobody else can change."""
    found = viewed(name, value)
    if found is None or found.dtype.kind not in "fiub":
        raise TypeError(
            f"{name}: expected an array of numbers, got {received(name, value, found, None)}"
        )
    return found.view(np.ndarray)


def _fill(name: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """The value of padding in a column's dtype, which must hold it as it is."""
    argument = "pad_value" if name == "x" else "y_pad_value"
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        with np.errstate(all="ignore"):
            own = np.array(value).astype(dtype)
        same = own.item() == value or np.isnan(own)
        if same or (dtype.kind == "f" and np.isfinite(own)):  # which is rounded
            return own
    raise ValueError(f"{argument}: expected a number that {dtype} of {name} holds, got {value!r}")


class Batches:
    """Batches of sequences of different lengths, in an order that a seed and the epoch determine.

    Each epoch shuffles the sequences, sorts each bucket of them by length, cuts the buckets into
    batches, and shuffles the batches: little padding, in a random order [1]_. Only the current
    batch is padded.

    Parameters
    ----------
    x : list of ndarray, each of shape (T_i, ...)
        The sequences, of one dtype; some may be empty. CPU tensors are not copied.
    y : ndarray, list of ndarray, or dict of str to these, optional
        The targets. An array (N, ...) has one for each sequence. A list has N arrays (S_i, ...),
        such as the tags of the steps, or a translation, which are padded like those of `x`.
    batch_size : int, optional
        The number of sequences of a batch; the last batch of an epoch may have fewer.
    tokens : int, optional
        Instead of `batch_size`: a batch has as many sequences as fit into this number of steps,
        including padding, ``T * B`` of x or of a padded y, whichever is longer. It must be at
        least the length of the longest sequence.
    seed : int or numpy.random.SeedSequence, optional
        The seed of all orders; by default from the operating system.
    shuffle : bool
        Whether to shuffle. If False, the order is the same in each epoch, and sequences are sorted
        only within a bucket.
    bucket : int
        The number of batches whose sequences are sorted together, at least 1. With 1, nothing is
        sorted; with more, there is less padding, and the order is less random.
    drop_last : bool
        Whether to leave out a batch of fewer than `batch_size` sequences; not with `tokens`.
    pad_value, y_pad_value : number
        The values after the ends of the sequences of x, and of those of y, if it has any.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    An iteration continues where the last one was left, and ends with the epoch. A state that is
    saved in the loop counts the current batch as done, so a resumed run continues with the next
    one. Orders are those of NumPy's generator, which may change between versions of NumPy.

    References
    ----------
    .. [1] P. Doetsch, P. Golik and H. Ney, "A comprehensive study of batch construction strategies
       for recurrent neural networks in MXNet", 2017, arXiv:1705.02414.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> x = [np.full((length, 2), length, np.float32) for length in (3, 1, 2, 3, 5)]
    >>> batches = rk.Batches(x, y=np.array([0, 1, 0, 1, 1]), batch_size=2, seed=0)
    >>> for batch in batches:
    ...     batch.x.shape, batch.lengths.tolist(), batch.y.tolist()
    ((5, 1, 2), [5], [1])
    ((3, 2, 2), [3, 3], [1, 0])
    ((2, 2, 2), [1, 2], [1, 0])
    >>> batches.epoch, len(batches)
    (1, 3)
    """

    def __init__(
        self,
        x: Sequence[Array],
        y: Columns = None,
        *,
        batch_size: int | None = None,
        tokens: int | None = None,
        seed: Any = None,
        shuffle: bool = True,
        bucket: int = 50,
        drop_last: bool = False,
        pad_value: float = 0,
        y_pad_value: float = 0,
    ) -> None:
        if not isinstance(x, (list, tuple)):
            raise TypeError(f"x: expected a list of arrays, got {type(x).__name__}")
        self._x = _Column("x", x, pad_value)
        self._names = list(y) if isinstance(y, Mapping) else None
        columns = dict(y) if isinstance(y, Mapping) else {} if y is None else {None: y}
        self._y = []
        for key, given in columns.items():
            name = "y" if key is None else f"y[{key!r}]"
            column = _Column(name, given, y_pad_value)
            if column.count != self._x.count:
                expected = f"{self._x.count}, as many as sequences of x"
                raise ValueError(f"{name}: expected {expected}, got {column.count}")
            self._y.append(column)
        ragged = [column.lengths for column in (self._x, *self._y)]
        is_given = not (np.isscalar(y_pad_value) and y_pad_value == 0)
        if is_given and all(lengths is None for lengths in ragged[1:]):
            expected = "0 where no y is a list of sequences"
            raise ValueError(f"y_pad_value: expected {expected}, got {y_pad_value!r}")
        self._longest = np.maximum.reduce([own for own in ragged if own is not None])
        if (batch_size is None) == (tokens is None):
            got = "none" if tokens is None else "both"
            raise ValueError(f"batch_size: expected it or tokens, got {got}")
        self._batch_size = 0 if batch_size is None else size("batch_size", batch_size)
        self._tokens = 0
        if tokens is not None:
            most = max(1, int(self._longest.max()))
            expected = f"an integer of at least {most}, the longest sequence"
            self._tokens = integer("tokens", tokens, expected, most, MOST)
        self._shuffle = flag("shuffle", shuffle)
        self._bucket = size("bucket", bucket)
        self._drop_last = flag("drop_last", drop_last)
        if self._drop_last and self._tokens:
            raise ValueError("drop_last: expected False with tokens, got True")
        generator = np.random.default_rng(seed_sequence("seed", seed))
        self._seed = int(generator.integers(2**63))
        self._epoch = self._done = 0
        self._orders: tuple[Any, list[Array]] = (None, [])  # of an epoch, its key first

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return self._epoch

    @property
    def done(self) -> int:
        """How many batches of this epoch have been handed out."""
        return self._done

    def __len__(self) -> int:
        """Count the batches of this epoch; with `tokens` it varies from epoch to epoch.

        Returns
        -------
        int
            The number.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> len(rk.Batches([np.zeros(3)] * 5, batch_size=2))
        3
        """
        return len(self._order())

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the rest of the epoch.

        Returns
        -------
        Iterator of Batch
            Each pads its sequences when it is asked for.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> batches = rk.Batches([np.zeros(3)] * 5, batch_size=2)
        >>> first = next(iter(batches))
        >>> len(list(batches)), batches.epoch
        (2, 1)
        """
        epoch = self._epoch
        while self._epoch == epoch:
            order = self._order()
            if self._done >= len(order):
                self._epoch, self._done = epoch + 1, 0
                return
            batch = self._padded(order[self._done])
            self._done += 1
            yield batch

    def _padded(self, indices: Array) -> Batch:
        x, lengths = self._x.take(indices)
        assert lengths is not None  # x is a list
        y: Any = [column.take(indices) for column in self._y]
        if self._names is not None:
            named = dict(zip(self._names, y, strict=True))
            y = {name: values for name, (values, _) in named.items()}
            return Batch(x, y, lengths, {name: own for name, (_, own) in named.items()}, indices)
        values, y_lengths = y[0] if y else (None, None)
        return Batch(x, values, lengths, y_lengths, indices)

    def _order(self) -> list[Array]:
        """The numbers of the sequences of each batch of this epoch."""
        key = self._seed, self._epoch if self._shuffle else 0
        if self._orders[0] != key:
            self._orders = key, self._made(*key)
        return self._orders[1]

    def _made(self, seed: int, epoch: int) -> list[Array]:
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
        count, lengths = self._x.count, self._longest
        order = generator.permutation(count) if self._shuffle else np.arange(count)
        own = self._batch_size or max(1, int(self._tokens / max(1.0, float(lengths.mean()))))
        if self._bucket > 1:
            sign = 1
            for start in range(0, count, own * self._bucket):
                part = order[start : start + own * self._bucket]
                part[...] = part[np.argsort(sign * lengths[part], kind="stable")]
                sign = -sign  # so that a batch that two buckets share has similar lengths
        batches = self._cut(order)
        if self._shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _cut(self, order: Array) -> list[Array]:
        if self._batch_size:
            cuts = range(0, len(order), self._batch_size)
            batches = [order[start : start + self._batch_size] for start in cuts]
            if self._drop_last and len(batches[-1]) < self._batch_size:
                batches.pop()
            return batches
        batches, start, longest = [], 0, 0
        for place, length in enumerate(self._longest[order].tolist()):
            longest = max(longest, length)
            if place > start and longest * (place + 1 - start) > self._tokens:
                batches.append(order[start:place])
                start, longest = place, length
        return [*batches, order[start:]]

    def _settings(self) -> Array:
        """What must be the same where a state is loaded."""
        flags = (self._shuffle, self._drop_last)
        sizes = (self._x.count, int(self._longest.sum()), self._batch_size, self._tokens)
        return np.array([*sizes, self._bucket, *flags], INT64)

    def state_dict(self) -> dict[str, Array]:
        """Return where the iteration is, and what determines the orders to come.

        Returns
        -------
        dict of str to ndarray of int64
            ``seed``, ``epoch`` and ``done`` of shape (), and ``settings``: the number of sequences
            and of their steps, and the arguments, which must be the same where it is loaded.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> list(rk.Batches([np.zeros(3)] * 5, batch_size=2).state_dict())
        ['seed', 'epoch', 'done', 'settings']
        """
        numbers = {"seed": self._seed, "epoch": self._epoch, "done": self._done}
        state = {name: np.array(value, INT64) for name, value in numbers.items()}
        return state | {"settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from a state, in the middle of an epoch too: the same batches follow.

        Parameters
        ----------
        state : dict of str to ndarray
            From `state_dict`, over as many sequences and steps, with the same arguments but for
            the seed, which is the state's from now on.

        Raises
        ------
        TypeError, ValueError
            If a name, a dtype, a shape or a value is none of such a state's; the message names it.
            Nothing has changed then.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> x = [np.zeros(length) for length in range(9)]
        >>> batches, again = (rk.Batches(x, batch_size=2) for _ in range(2))
        >>> first = next(iter(batches))
        >>> again.load_state_dict(batches.state_dict())
        >>> all((a.x == b.x).all() for a, b in zip(batches, again, strict=True))
        True
        """
        own = self.state_dict()
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict of arrays, got {type(state).__name__}")
        if state.keys() != own.keys():
            raise ValueError(f"state: expected the names {list(own)}, got {list(state)}")
        new = {}
        for name, kept in own.items():
            text = f"state[{name!r}]"
            new[name] = np.array(checked(text, state[name], INT64, kept.shape))
            if name != "settings":
                integer(text, int(new[name]), "an integer of at least 0", 0, 2**63)
        if not np.array_equal(new["settings"], own["settings"]):
            expected = f"{own['settings'].tolist()}, those of these batches"
            raise ValueError(
                f"state['settings']: expected {expected}, got {new['settings'].tolist()}"
            )
        seed, epoch, done = (int(new[name]) for name in ("seed", "epoch", "done"))
        batches = len(self._made(seed, epoch if self._shuffle else 0))
        integer("state['done']", done, f"an integer from 0 to {batches}", 0, batches)
        self._seed, self._epoch, self._done = seed, epoch, done

    def __repr__(self) -> str:
        by = f"tokens={self._tokens}" if self._tokens else f"batch_size={self._batch_size}"
        return f"Batches({self._x.count} sequences, {by})"
