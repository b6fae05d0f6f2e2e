"""What stands around a layer in training: embedding, output layer and loss, with gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from .checks import (
    Seed,
    as_array,
    flag,
    float_dtype,
    integer,
    seed_sequence,
    size,
    unmasked,
    viewed,
)
from .layers import ParameterGradients
from .layers.results import norm_of
from .parameters import Parametrized
from .tape import ModuleTape

__all__ = ["Embedding", "Linear", "ModuleGradients", "cross_entropy"]

Array = NDArray[Any]

REDUCTIONS = ("mean", "sum", "none")
INT64 = np.iinfo(np.int64)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[Any, Array]:
    """Softmax cross-entropy and its gradient, in one go [1]_.

    A row's loss is ``ln sum_j exp(z_j) - z_target``, in nats; its gradient ``softmax(z)``, less 1
    at the target.

    Parameters
    ----------
    logits : ndarray, shape (..., V)
        z, float32 or float64, of any size: nothing overflows. A logit of -inf is a class that is
        ruled out. A nan makes its row's loss and gradient nan.
    targets : ndarray of integers, shape (...)
        The right classes, from 0 to V - 1.
    mask : ndarray of booleans or of weights, shape (...), optional
        What each row counts, from 0 to 3.4e38 (float32's largest number, so that sums of weights
        stay finite); 1 if not given. Where it is 0 or False, neither logits nor target are read,
        and the gradient is zero.
    ignore_index : int, optional
        A target that says that the row does not count, as if masked.
    reduction : {"mean", "sum", "none"}
        Of the rows' losses times their weights: the sum over the sum of the weights, the sum, or
        one loss a row. If no row counts, the mean is 0.
    out : ndarray, shape (..., V), optional
        Where to put the gradient: C-contiguous and writable; `logits` itself, or memory of its own.
        With it, nothing of the size of the logits is allocated.

    Returns
    -------
    loss : float, or ndarray of float64, shape (...), for ``reduction="none"``
        The loss.
    dlogits : ndarray, shape (..., V)
        Its gradient, that of the sum for ``reduction="none"``; `out`, if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it, and a target's place.

    Notes
    -----
    The same bits on any number of threads and any instruction set (docs/reproducibility.md). A
    call that Ctrl-C ends leaves `out` half written.

    References
    ----------
    .. [1] C. Bishop, "Pattern recognition and machine learning", 2006, eqs. 4.108 and 4.109.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> loss, dlogits = rk.cross_entropy(np.array([[0.0, 0.0], [0.0, 40.0]]), np.array([0, 1]))
    >>> round(loss, 4), dlogits.round(4)
    (0.3466, array([[-0.25,  0.25],
           [ 0.  ,  0.  ]]))
    """
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if ignore_index is not None:
        expected = "an integer of 64 bits"
        ignore_index = integer("ignore_index", ignore_index, expected, INT64.min, INT64.max)
    found = viewed("logits", logits)
    loss, losses, dlogits = _core.cross_entropy(
        logits if found is None else found,  # which is refused
        unmasked("targets", targets),
        unmasked("mask", mask),
        ignore_index,
        reduction == "mean",
        unmasked("out", out),
    )
    return losses if reduction == "none" else loss, dlogits


class ModuleGradients(ParameterGradients):
    """What the backward of an `Embedding` or a `Linear` returns; see also `ParameterGradients`.

    Attributes
    ----------
    params : mapping of str to ndarray
        dL/dp for each of the module's parameters, under its name. Read-only.
    x : ndarray or None
        dL/dx, shaped like x; None of an `Embedding`, whose x are integers. A sum or a multiple has
        none.
    norm : float
        The joint L2 norm of `params`. Optimizers use it instead of measuring again.
    finite : bool
        Whether every element of `params` was finite (and, for float64, small enough for its square
        to be finite).
    scale : float
        1.0: nothing has been clipped.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> linear = rk.Linear(5, 3, seed=0)
    >>> y, tape = linear.forward(np.ones((7, 5), np.float32))
    >>> grads = linear.backward(tape, np.ones_like(y))
    >>> grads
    ModuleGradients(2 arrays of 18 elements, norm=29.6985, scale=1, finite=True)
    >>> (grads + 0.5 * grads).params["bias"].tolist()
    [10.5, 10.5, 10.5]
    """

    __slots__ = ("_x",)

    if TYPE_CHECKING:  # read-only, as in the base class

        @property
        def norm(self) -> float: ...

        @property
        def scale(self) -> float: ...

        @property
        def finite(self) -> bool: ...

    def __init__(
        self,
        params: dict[str, Array],
        x: Array | None,
        norm: float,
        finite: bool,
        of: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(params, norm, 1.0, finite, of)
        self._x = x

    @property
    def x(self) -> Array | None:
        """dL/dx."""
        return self._own("x", "_x")  # type: ignore[no-any-return]


class Linear(Parametrized):
    """Output layer: ``y = x W^T + b``.

    Parameters
    ----------
    in_features, out_features : int
        I and O, at least 1.
    bias : bool
        Whether there is b.
    dtype : {float32, float64}
        Of parameters, inputs and outputs. Nothing is cast.
    seed : int or numpy.random.SeedSequence, optional
        Of the initial parameters, all from U(-1/sqrt(I), 1/sqrt(I)) as PyTorch does; from the
        system if not given.
    params : mapping of str to ndarray or tensor, optional
        Parameters to copy instead of drawing them: all of them, of this dtype and no others.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight`` (O, I) and ``bias`` (O,). Writable; the next call sees what is written. Each call
        checks names, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    Notes
    -----
    The same bits on any number of threads and any instruction set, and of each row alone
    (docs/reproducibility.md).

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> linear = rk.Linear(5, 3, seed=0)
    >>> x = np.ones((7, 2, 5), np.float32)
    >>> y, tape = linear.forward(x)
    >>> grads = linear.backward(tape, np.ones_like(y))
    >>> y.shape, grads.x.shape, grads.params["bias"].tolist()
    ((7, 2, 3), (7, 2, 5), [14.0, 14.0, 14.0])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._in_features = size("in_features", in_features)
        self._out_features = size("out_features", out_features)
        self._bias = flag("bias", bias)
        self._dtype = float_dtype(dtype)
        generator = np.random.default_rng(seed_sequence("seed", seed))
        bound = 1.0 / math.sqrt(self.in_features)
        self._shapes = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            self._shapes["bias"] = (self.out_features,)
        if params is not None:
            self._params = self._copied(params)
            return
        self._params = {
            name: generator.uniform(-bound, bound, shape).astype(self.dtype)
            for name, shape in self._shapes.items()
        }

    @property
    def in_features(self) -> int:
        """Size of an input row, I."""
        return self._in_features

    @property
    def out_features(self) -> int:
        """Size of an output row, O."""
        return self._out_features

    @property
    def bias(self) -> bool:
        """Whether there is a bias b."""
        return self._bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of parameters, inputs and outputs."""
        return self._dtype

    def __repr__(self) -> str:
        return (
            f"Linear({self.in_features}, {self.out_features}, bias={self.bias}, dtype={self.dtype})"
        )

    def __call__(self, x: Array, out: Array | None = None, *, mask: Array | None = None) -> Array:
        """Compute the outputs; `forward` also returns what backward needs.

        Parameters
        ----------
        x : ndarray, shape (..., I)
            The input, of the module's dtype.
        out : ndarray, shape (..., O), optional
            Where to put the output: C-contiguous and writable, not overlapping `x` or a parameter.
        mask : ndarray of booleans, shape (...), optional
            Which rows count; all if not given. The others, padding for instance, are not read, and
            their outputs and gradients are zeros.

        Returns
        -------
        ndarray, shape (..., O)
            y, which is `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter has another dtype or shape than it must; the message
            names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.Linear(5, 3)(np.zeros((7, 2, 5), np.float32)).shape
        (7, 2, 3)
        """
        return self._run(x, out, mask)[0]

    def forward(
        self, x: Array, out: Array | None = None, *, mask: Array | None = None
    ) -> tuple[Array, ModuleTape]:
        """Compute the outputs, and keep what backward needs.

        Parameters
        ----------
        x : ndarray, shape (..., I)
            The input, of the module's dtype. It is not copied: leave it, and ``weight``, as they
            are until backward is done.
        out, mask
            As in calling the module. The tape keeps which rows count.

        Returns
        -------
        y : ndarray, shape (..., O)
            As in calling the module.
        tape : ModuleTape
            What `backward` takes.

        Raises
        ------
        TypeError, ValueError
            As in calling the module.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, tape = rk.Linear(5, 3).forward(np.zeros((7, 2, 5), np.float32))
        >>> y.shape, tape
        ((7, 2, 3), ModuleTape(x: (7, 2, 5)))
        """
        y, own, weight, rows = self._run(x, out, mask)
        return y, ModuleTape(self, own, {"weight": weight}, rows)

    def _run(
        self, x: Array, out: Array | None, mask: Array | None
    ) -> tuple[Array, Array, Array, Array | None]:
        """The outputs, views of x and of the weight, and the rows that count."""
        params = _parameters(self._params, self._shapes, self._dtype)
        x = _pinned("x", x, self._dtype, "...", self._in_features)
        shape = (*x.shape[:-1], self._out_features)
        y = None
        if out is not None:
            y = _pinned("out", out, self._dtype, *shape)
            shared = any(np.may_share_memory(y, array) for array in (x, *params.values()))
            if not y.flags.carray or shared:
                expected = "a writable, C-contiguous array with memory of its own"
                raise ValueError(f"out: expected {expected}, got another")
            y = y.reshape(-1, self._out_features)
        rows = None if mask is None else _core.counted_rows(unmasked("mask", mask), shape[:-1])
        found = _core.linear(
            x.reshape(-1, self._in_features), params["weight"], params.get("bias"), rows, y
        )
        return found.reshape(shape) if out is None else out, x, params["weight"], rows

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients:
        """Backpropagate.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`. Its x and ``weight`` are read again: change them afterwards.
        dy : ndarray, shape (..., O)
            dL/dy.

        Returns
        -------
        ModuleGradients
            dL/dp and dL/dx.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter has another dtype or shape than it must; the message
            names it.
        RuntimeError
            If x or ``weight`` has changed since the tape's forward; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> linear = rk.Linear(5, 3)
        >>> y, tape = linear.forward(np.ones((7, 5), np.float32))
        >>> linear.backward(tape, np.ones_like(y)).params["weight"].shape
        (3, 5)
        """
        x = ModuleTape._x_of(tape, self)
        own = _parameters(self._params, self._shapes, self._dtype)
        tape._check(own)
        dy = _pinned("dy", dy, self._dtype, *x.shape[:-1], self._out_features)
        weight, bias, dx = _core.linear_gradient(
            x.reshape(-1, self._in_features),
            own["weight"],
            dy.reshape(-1, self._out_features),
            tape._rows,
            self._bias,
        )
        params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        dx = dx.reshape(x.shape)
        return _measured(params, dx, self._params)


class Embedding(Parametrized):
    """A table of vectors, looked up by integers: ``y = W[x]``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        N and E, at least 1.
    padding_idx : int, optional
        A row that starts at zero and has no gradient.
    dtype : {float32, float64}
        Of the table.
    seed : int or numpy.random.SeedSequence, optional
        Of the initial table, from N(0, 1) as PyTorch does; from the system if not given.
    params : mapping of str to ndarray or tensor, optional
        A table ``weight`` of this dtype to copy instead of drawing it. Its row `padding_idx` is
        copied, too, whatever it holds.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight`` (N, E). Writable; the next call sees what is written. Each call checks name,
        shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> embedding = rk.Embedding(10, 4, padding_idx=0, seed=0)
    >>> x = np.array([[3, 0], [3, 1]])
    >>> y, tape = embedding.forward(x)
    >>> grads = embedding.backward(tape, np.ones_like(y))
    >>> y.shape, grads.params["weight"][:4, 0].tolist()
    ((2, 2, 4), [0.0, 1.0, 0.0, 2.0])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
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
        self._dtype = float_dtype(dtype)
        self._shapes = {"weight": (n, self.embedding_dim)}
        generator = np.random.default_rng(seed_sequence("seed", seed))
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
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the table."""
        return self._dtype

    def __repr__(self) -> str:
        return (
            f"Embedding({self.num_embeddings}, {self.embedding_dim}, "
            f"padding_idx={self.padding_idx}, dtype={self.dtype})"
        )

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
            If x or a parameter is not what it must be; the message names it, and the place of a
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
        params = _parameters(self._params, self._shapes, self._dtype)
        own = _core.checked_input(unmasked("x", x), self._num_embeddings)
        return params["weight"].take(own, axis=0), ModuleTape(self, own, {})

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients:
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
            dL/dp, zero for rows that x did not name; no dL/dx.

        Raises
        ------
        TypeError, ValueError
            If an argument is not what it must be; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> embedding = rk.Embedding(10, 4)
        >>> y, tape = embedding.forward(np.array([3, 3]))
        >>> embedding.backward(tape, np.ones_like(y)).params["weight"][3].tolist()
        [2.0, 2.0, 2.0, 2.0]
        """
        x = ModuleTape._x_of(tape, self)
        _parameters(self._params, self._shapes, self._dtype)
        table = np.zeros(self._shapes["weight"], self._dtype)
        _core.add_rows(unmasked("x", x), as_array("dy", dy, self._dtype), table)
        if self._padding_idx is not None:
            table[self._padding_idx] = 0
        return _measured({"weight": table}, None, self._params)


def _measured(params: dict[str, Array], x: Array | None, of: dict[str, Array]) -> ModuleGradients:
    (norm,) = norm_of(params.values(), 1)
    return ModuleGradients(params, x, norm, math.isfinite(norm), of)


def _parameters(
    params: dict[str, Array], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]
) -> dict[str, Array]:
    """A module's `params`, checked: views, whose headers nobody else can change."""
    if params.keys() != shapes.keys():
        raise ValueError(f"params: expected the names {list(shapes)}, got {list(params)}")
    own = {}
    for name, shape in shapes.items():
        own[name] = _pinned(name, params[name], dtype, *shape, place="params[{!r}]")
    return own


def _pinned(
    name: str, array: Any, dtype: np.dtype[Any], *shape: int | str, place: str = "{}"
) -> Array:
    """A view of an array of this dtype and shape, where "..." in front is any axes.

    The caller may give the array another shape or dtype at any time; the view keeps what was
    checked. `place` says in messages where the name stands.
    """
    own: Array = np.ndarray.view(as_array(place.format(name), array, dtype))
    if own.dtype != dtype:  # another thread has changed the caller's since
        raise TypeError(f"{place.format(name)}: expected dtype {dtype}, got {own.dtype}")
    fits = own.shape[-1:] == shape[1:] if shape[:1] == ("...",) else own.shape == shape
    if not fits:
        expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        name = place.format(name)
        raise ValueError(f"{name}: expected shape {expected}, got {own.shape}")
    return own
