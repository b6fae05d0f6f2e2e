"""Output layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from ..checks import Seed, flag, float_dtype, size, unmasked
from ..parameters import Parametrized
from ..tape import ModuleTape
from .common import Array, ModuleGradients, measured, parameters_of, pinned

__all__ = ["Linear"]


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
        Parameters to copy instead of drawing them, without `seed`: all of them, of this dtype and
        no others.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight`` (O, I) and ``bias`` (O,). Writable; the next call uses the new values. Each call
        checks names, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

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
        generator = np.random.default_rng(self._seeded(seed, params))
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
            If an argument or a parameter has the wrong dtype or shape; the message
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
        params = parameters_of(self._params, self._shapes, self._dtype)
        x = pinned("x", x, self._dtype, "...", self._in_features)
        shape = (*x.shape[:-1], self._out_features)
        y = None
        if out is not None:
            y = pinned("out", out, self._dtype, *shape)
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

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients[Array]:
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
            If an argument or a parameter has the wrong dtype or shape; the message
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
        own = parameters_of(self._params, self._shapes, self._dtype)
        tape._check(own)
        dy = pinned("dy", dy, self._dtype, *x.shape[:-1], self._out_features)
        weight, bias, dx = _core.linear_gradient(
            x.reshape(-1, self._in_features),
            own["weight"],
            dy.reshape(-1, self._out_features),
            tape._rows,
            self._bias,
        )
        params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        dx = dx.reshape(x.shape)
        return measured(params, dx, self._params)
