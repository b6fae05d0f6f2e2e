"""Embedding: a table of vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from ..checks import Seed, as_array, flag, float_dtype, integer, size, unmasked
from ..parameters import Parametrized
from ..rows import SparseRows
from ..tape import ModuleTape
from .common import Array, ModuleGradients, measured, parameters_of

__all__ = ["Embedding"]


class Embedding(Parametrized):
    """A table of vectors, looked up by integers: ``y = W[x]``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        N and E, at least 1.
    padding_idx : int, optional
        A row that starts at zero and has no gradient.
    sparse : bool
        Whether `backward` returns `SparseRows`, the gradients of the rows that x named, in place of
        a whole table, most of it zeros; see Notes.
    dtype : {float32, float64}
        Of the table.
    seed : int or numpy.random.SeedSequence, optional
        Of the initial table, from N(0, 1) as PyTorch does; from the system if not given.
    params : mapping of str to ndarray or tensor, optional
        A table ``weight`` of this dtype to copy instead of drawing it, without `seed`. Its row
        `padding_idx` is copied, too, whatever it holds.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight`` (N, E). Writable; the next call uses the new values. Each call checks name,
        shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    With ``sparse=True``, optimizers step the rows that have a gradient, and leave all others and
    their moments as they are ("lazy" moments, as PyTorch's SparseAdam has them; see `SGD`). With
    large tables this takes a small part of the time. Results differ from those of whole tables,
    but for `SGD` without momentum and penalties: there, a row also moves, and its moments also
    decay, in steps in which it has no gradient.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> embedding = rk.Embedding(10, 4, padding_idx=0, seed=0)
    >>> x = np.array([[3, 0], [3, 1]])
    >>> y, tape = embedding.forward(x)
    >>> grads = embedding.backward(tape, np.ones_like(y))
    >>> y.shape, grads.params["weight"][:4, 0].tolist()
    ((2, 2, 4), [0.0, 1.0, 0.0, 2.0])

    >>> embedding = rk.Embedding(200_000, 4, padding_idx=0, sparse=True, seed=0)
    >>> y, tape = embedding.forward(x)
    >>> rows = embedding.backward(tape, np.ones_like(y)).params["weight"]
    >>> rows
    SparseRows(2 of 200000 rows of 4, float32, norm=4.47214)
    >>> rows.ids.tolist(), rows.values[:, 0].tolist()
    ([1, 3], [1.0, 2.0])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        sparse: bool = False,
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        n = self._num_embeddings = size("num_embeddings", num_embeddings)
        self._embedding_dim = size("embedding_dim", embedding_dim)
        if padding_idx is not None:
            expected = f"an integer from 0 to {n - 1}"
            padding_idx = integer("padding_idx", padding_idx, expected, 0, n - 1)
        self._padding_idx = padding_idx
        self._sparse = flag("sparse", sparse)
        self._dtype = float_dtype(dtype)
        self._shapes = {"weight": (n, self.embedding_dim)}
        generator = np.random.default_rng(self._seeded(seed, params))
        if params is not None:
            self._params = self._copied(params)
            return
        weight = generator.standard_normal((n, self.embedding_dim)).astype(self.dtype)
        if padding_idx is not None:
            weight[padding_idx] = 0
        self._params = {"weight": weight}

    @property
    def num_embeddings(self) -> int:
        """Number of rows of the table, N."""
        return self._num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Size of a row of the table, E."""
        return self._embedding_dim

    @property
    def padding_idx(self) -> int | None:
        """The row that starts at zero and has no gradient, if any."""
        return self._padding_idx

    @property
    def sparse(self) -> bool:
        """Whether gradients are `SparseRows`."""
        return self._sparse

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the table."""
        return self._dtype

    def __call__(self, x: Array) -> Array:
        """Look up; `forward` also returns what backward needs.

        Parameters
        ----------
        x : ndarray of integers, shape (...)
            From 0 to N - 1.

        Returns
        -------
        ndarray, shape (..., E)
            Copies of the rows.

        Raises
        ------
        TypeError, ValueError
            If x or a parameter is invalid; the message names it, and the place of a
            bad x.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.Embedding(10, 4)(np.array([[3, 0, 3]])).shape
        (1, 3, 4)
        """
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, ModuleTape]:
        """Look up, and keep what backward needs: a copy of x.

        Parameters
        ----------
        x : ndarray of integers, shape (...)
            From 0 to N - 1.

        Returns
        -------
        y : ndarray, shape (..., E)
            Copies of the rows.
        tape : ModuleTape
            What `backward` takes.

        Raises
        ------
        TypeError, ValueError
            As in calling the module.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, tape = rk.Embedding(10, 4).forward(np.array([[3, 0, 3]]))
        >>> y.shape, tape
        ((1, 3, 4), ModuleTape(x: (1, 3)))
        """
        params = parameters_of(self._params, self._shapes, self._dtype)
        own, y = _core.look_up(unmasked("x", x), params["weight"])
        return y, ModuleTape(self, own, {})

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients[None]:
        """Sum up the gradients of each row, in the order in which they stand in `dy`.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`.
        dy : ndarray, shape (..., E)
            dL/dy.

        Returns
        -------
        ModuleGradients
            dL/dp, zero for rows that x did not name, or `SparseRows` of those that it did; no
            dL/dx.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> embedding = rk.Embedding(10, 4)
        >>> y, tape = embedding.forward(np.array([3, 3]))
        >>> embedding.backward(tape, np.ones_like(y)).params["weight"][3].tolist()
        [2.0, 2.0, 2.0, 2.0]
        """
        x = ModuleTape._x_of(tape, self)
        parameters_of(self._params, self._shapes, self._dtype)
        dy, padding = as_array("dy", dy, self._dtype), self._padding_idx
        x, shape = unmasked("x", x), self._shapes["weight"]
        if not self._sparse:
            table = _core.sum_rows(x, dy, *shape)
            if padding is not None:
                table[padding] = 0
            return measured({"weight": table}, None, self._params)
        ids, places = np.unique(x, return_inverse=True)
        values = _core.sum_rows(places.reshape(x.shape), dy, len(ids), shape[1])
        if padding is not None and padding in ids:
            real = ids != padding
            ids, values = ids[real], values[real]
        return measured({"weight": SparseRows._made(ids, values, shape)}, None, self._params)
