"""Layer norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from ..checks import flag, float_dtype, number, size, unmasked
from ..parameters import Parametrized
from ..tape import ModuleTape
from .common import Array, ModuleGradients, measured, parameters_of, pinned

__all__ = ["LayerNorm"]


class LayerNorm(Parametrized):
    """Layer norm over the last axis: ``y = w (x - mean) / sqrt(variance + eps) + b`` [1]_.

    Parameters
    ----------
    features : int
        C, the size of the last axis, at least 1.
    eps : float
        Beside the variance, above 0.
    bias : bool
        Whether there is b.
    dtype : {float32, float64}
        Of parameters, inputs and outputs. Nothing is cast.
    params : mapping of str to ndarray or tensor, optional
        Parameters to copy: all of them, of this dtype and no others. If not given, w starts at 1
        and b at 0.

    Attributes
    ----------
    params : dict of str to ndarray
        ``weight`` (C,) and ``bias`` (C,). Writable; the next call uses the new values. Each call
        checks names, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Mean and variance are computed in float64; the variance is that of the C values, divided by C.
    The same bits on any number of threads and any instruction set, and of each row alone
    (docs/reproducibility.md).

    References
    ----------
    .. [1] J. Ba, J. Kiros, G. Hinton, "Layer normalization", 2016, arXiv:1607.06450, eqs. 3 and 4.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> norm = rk.LayerNorm(2, dtype=np.float64)
    >>> y, tape = norm.forward(np.array([[1.0, 3.0]]))
    >>> grads = norm.backward(tape, np.array([[1.0, 0.0]]))
    >>> y.round(3).tolist(), grads.params["bias"].tolist()
    ([[-1.0, 1.0]], [1.0, 0.0])
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._features = size("features", features)
        self._eps = number("eps", eps, "a finite number > 0", lambda x: x > 0)
        self._bias = flag("bias", bias)
        self._dtype = float_dtype(dtype)
        self._shapes: dict[str, tuple[int, ...]] = {"weight": (self.features,)}
        if self.bias:
            self._shapes["bias"] = (self.features,)
        if params is not None:
            self._params = self._copied(params)
            return
        self._params = {
            name: np.full(shape, float(name == "weight"), self.dtype)
            for name, shape in self._shapes.items()
        }

    @property
    def features(self) -> int:
        """Size of the last axis, C."""
        return self._features

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self._eps

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
        x : ndarray, shape (..., C)
            The input, of the module's dtype.
        out : ndarray, shape (..., C), optional
            Where to put the output: C-contiguous and writable, not overlapping `x` or a parameter.
        mask : ndarray of booleans, shape (...), optional
            Which rows count; all if not given. The others, padding for instance, are not read, and
            their outputs and gradients are zeros.

        Returns
        -------
        ndarray, shape (..., C)
            y, which is `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter has the wrong dtype or shape; the message
            names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.LayerNorm(5)(np.zeros((7, 2, 5), np.float32)).shape
        (7, 2, 5)
        """
        return self._run(x, out, mask)[0]

    def forward(
        self, x: Array, out: Array | None = None, *, mask: Array | None = None
    ) -> tuple[Array, ModuleTape]:
        """Compute the outputs, and keep what backward needs.

        Parameters
        ----------
        x : ndarray, shape (..., C)
            The input, of the module's dtype. It is not copied: leave it, and ``weight``, as they
            are until backward is done.
        out, mask
            As in calling the module. The tape keeps which rows count.

        Returns
        -------
        y : ndarray, shape (..., C)
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
        >>> y, tape = rk.LayerNorm(5).forward(np.zeros((7, 2, 5), np.float32))
        >>> y.shape, tape
        ((7, 2, 5), ModuleTape(x: (7, 2, 5)))
        """
        y, own, weight, rows, moments = self._run(x, out, mask)
        return y, ModuleTape(self, own, {"weight": weight}, rows, saved=moments)

    def _run(
        self, x: Array, out: Array | None, mask: Array | None
    ) -> tuple[Array, Array, Array, Array | None, Array]:
        """The outputs, views of x and of the weight, the rows that count, and their moments."""
        params = parameters_of(self._params, self._shapes, self._dtype)
        x = pinned("x", x, self._dtype, "...", self._features)
        y = None
        if out is not None:
            y = pinned("out", out, self._dtype, *x.shape)
            shared = any(np.may_share_memory(y, array) for array in (x, *params.values()))
            if not y.flags.carray or shared:
                expected = "a writable, C-contiguous array with memory of its own"
                raise ValueError(f"out: expected {expected}, got another")
            y = y.reshape(-1, self._features)
        rows = None if mask is None else _core.counted_rows(unmasked("mask", mask), x.shape[:-1])
        found, moments = _core.layer_norm(
            x.reshape(-1, self._features),
            params["weight"],
            params.get("bias"),
            self._eps,
            rows,
            y,
        )
        found = found.reshape(x.shape) if out is None else out
        return found, x, params["weight"], rows, moments

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients[Array]:
        """Backpropagate.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`. Its x and ``weight`` are read again: change them afterwards.
        dy : ndarray, shape (..., C)
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
        >>> norm = rk.LayerNorm(5)
        >>> y, tape = norm.forward(np.ones((7, 5), np.float32))
        >>> norm.backward(tape, np.ones_like(y)).params["bias"].tolist()
        [7.0, 7.0, 7.0, 7.0, 7.0]
        """
        x = ModuleTape._x_of(tape, self)
        own = parameters_of(self._params, self._shapes, self._dtype)
        tape._check(own)
        dy = pinned("dy", dy, self._dtype, *x.shape)
        weight, bias, dx = _core.layer_norm_gradient(
            x.reshape(-1, self._features),
            own["weight"],
            dy.reshape(-1, self._features),
            tape._saved,
            tape._rows,
            self._bias,
        )
        params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return measured(params, dx.reshape(x.shape), self._params)
