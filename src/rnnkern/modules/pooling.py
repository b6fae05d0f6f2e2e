"""One vector for each sequence."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .. import _core
from ..checks import choice
from ..parameters import Parametrized
from ..tape import ModuleTape
from .common import Array, ModuleGradients, measured, pinned, real_steps
from .dropout import floats

__all__ = ["Pooling"]

KINDS = ("mean", "max", "last", "ends")


class Pooling(Parametrized):
    """Pooling over the real steps of sequences: (T, B, C) becomes (B, C).

    Parameters
    ----------
    kind : {"mean", "max", "last", "ends"}
        The mean of a row's real steps; the largest value of each channel; the last real step; or,
        of a bidirectional layer's outputs, both directions' last: the first half of the channels at
        the last real step, the other half at the first.

    Attributes
    ----------
    params : dict
        Empty: an optimizer and a file take the module as any other.

    Raises
    ------
    TypeError, ValueError
        If the kind is none of these.

    Notes
    -----
    A row without real steps gives zeros. Of equal largest values, the first step's has the
    gradient; a nan is the largest, as in NumPy and PyTorch. Means are summed up in float64, by
    rising step. The same bits on any number of threads and any instruction set, and of each row
    alone, wherever its padding is (docs/reproducibility.md).

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> pooling = rk.Pooling("mean")
    >>> x = np.array([[[1.0]], [[3.0]], [[7.0]]])
    >>> y, tape = pooling.forward(x, lengths=np.array([2]))
    >>> y.tolist(), pooling.backward(tape, np.ones_like(y)).x.ravel().tolist()
    ([[2.0]], [0.5, 0.5, 0.0])
    """

    def __init__(self, kind: Literal["mean", "max", "last", "ends"]) -> None:
        self._params, self._shapes, self._dtype = {}, {}, np.dtype(np.float32)
        self._kind: str = choice("kind", kind, KINDS)

    @property
    def kind(self) -> str:
        """What is taken of the steps."""
        return self._kind

    def __call__(
        self, x: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Pool; `forward` also returns what backward needs.

        Parameters
        ----------
        x : ndarray, shape (T, B, C)
            Sequences, float32 or float64; of "ends" C is even.
        lengths : ndarray of integers, shape (B,), optional
            Each row's real steps, 0 to T; all if not given.
        mask : ndarray of booleans, shape (T, B), optional
            Which steps are real, in place of `lengths`. Others are not read.

        Returns
        -------
        ndarray, shape (B, C)
            One vector for each row.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.Pooling("last")(np.ones((7, 2, 5))).shape
        (2, 5)
        """
        return self.forward(x, lengths=lengths, mask=mask)[0]

    def forward(
        self, x: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, ModuleTape]:
        """Pool, and keep what backward needs.

        Parameters
        ----------
        x, lengths, mask
            As in calling the module. Backward does not read them.

        Returns
        -------
        y : ndarray, shape (B, C)
            One vector for each row.
        tape : ModuleTape
            What `backward` takes.

        Raises
        ------
        TypeError, ValueError
            As in calling the module.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, tape = rk.Pooling("ends").forward(np.ones((7, 2, 6)))
        >>> y.shape, tape
        ((2, 6), ModuleTape(x: (7, 2, 6)))
        """
        own = np.ndarray.view(floats("x", x))
        if own.ndim != 3 or (self._kind == "ends" and own.shape[2] % 2):
            expected = "(T, B, C) with C even" if self._kind == "ends" else "(T, B, C)"
            raise ValueError(f"x: expected shape {expected}, got {own.shape}")
        real = real_steps(lengths, mask, *own.shape[:2])
        if self._kind in ("mean", "max"):
            y, places = _core.pool(own, real, self._kind == "max")
        else:
            y, places = self._picked(own, real)
        return y, ModuleTape(self, own, {}, saved=(real, places))

    def _picked(self, x: Array, real: Array | None) -> tuple[Array, Array]:
        """The last step's values, or both ends', and which steps these are."""
        T, B, C = x.shape
        places = np.zeros((B, C), np.uint32 if x.dtype == np.float32 else np.uint64)
        if T == 0:
            return np.zeros((B, C), x.dtype), places
        if real is None:
            real = np.ones((T, B), np.bool_)
        last, first = T - 1 - real[::-1].argmax(axis=0), real.argmax(axis=0)
        half = C // 2 if self._kind == "ends" else C
        places[:, :half], places[:, half:] = last[:, None], first[:, None]
        y, rows = np.empty((B, C), x.dtype), np.arange(B)
        y[:, :half], y[:, half:] = x[last, rows, :half], x[first, rows, half:]
        y[~real.any(axis=0)] = 0
        return y, places

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients[Array]:
        """Backpropagate.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`.
        dy : ndarray, shape (B, C)
            dL/dy.

        Returns
        -------
        ModuleGradients
            dL/dx, zeros at steps that are not real; there are no parameters.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> pooling = rk.Pooling("max")
        >>> y, tape = pooling.forward(np.array([[[5.0, 1.0]], [[2.0, 1.0]]]))
        >>> pooling.backward(tape, np.ones_like(y)).x.tolist()
        [[[1.0, 1.0]], [[0.0, 0.0]]]
        """
        x = ModuleTape._x_of(tape, self)
        dy = pinned("dy", dy, x.dtype, *x.shape[1:])
        real, places = tape._saved
        dx: Any = _core.pool_gradient(dy, len(x), real, places)
        return measured({}, dx, {})
