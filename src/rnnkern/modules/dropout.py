"""Dropout on inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ..checks import Seed, flag, probability, received, viewed
from ..masks import DrawsMasks
from ..parameters import Parametrized
from ..tape import ModuleTape
from .common import Array, ModuleGradients, measured, pinned, real_steps

__all__ = ["Dropout"]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Dropout(DrawsMasks, Parametrized):
    """Dropout of a sequence's elements in training, such as a layer's inputs or outputs [1]_.

    Parameters
    ----------
    p : float
        Probability that an element is zeroed, from 0 to below 1. The others are divided by 1 - p.
    variational : bool
        Whether a sequence has the same mask at all of its steps [2]_.
    seed : int or numpy.random.SeedSequence, optional
        Of the masks; from the system if not given.

    Attributes
    ----------
    p : float
        As above; may be set.
    dropout_step : int
        How many forwards have been; with the seed, it determines the next mask. May be set.
    first_row : int
        The row of a larger batch that row 0 of the next forward is, 0 at first. May be set.
    params : dict
        Empty: an optimizer and a file take the module as any other.
    dropout_state : dict
        The seed and the step, of numbers that JSON takes, as a layer's: set it and the next masks
        are those of the module it came from.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    A mask's element is a function of seed, `dropout_step`, row, channel and, unless the mask is
    variational, the number of the row's real step. So it is the same on any number of threads, in
    float32 and float64, with more rows, steps or padding, and backward draws it again
    (docs/reproducibility.md).

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
       overfitting", 2014, JMLR 15.
    .. [2] Y. Gal, Z. Ghahramani, "A theoretically grounded application of dropout in recurrent
       neural networks", 2016, arXiv:1512.05287, section 4.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> dropout = rk.Dropout(0.5, variational=True, seed=0)
    >>> y, tape = dropout.forward(np.ones((3, 1, 4), np.float32))
    >>> y[:, 0].tolist()
    [[0.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    >>> dropout.backward(tape, np.ones_like(y)).x[0, 0].tolist()
    [0.0, 2.0, 0.0, 0.0]
    """

    def __init__(self, p: float = 0.5, *, variational: bool = False, seed: Seed = None) -> None:
        self._params, self._shapes, self._dtype = {}, {}, np.dtype(np.float32)
        self.p = p
        self._variational = flag("variational", variational)
        generator = np.random.default_rng(self._seeded(seed))
        self._dropout_seeds = [int(generator.integers(2**63))]
        self._dropout_step = self._first_row = 0

    @property
    def p(self) -> float:
        """Probability that an element is zeroed in a forward."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        self._p = probability("p", p)

    @property
    def variational(self) -> bool:
        """Whether a sequence has the same mask at all of its steps."""
        return self._variational

    def __call__(self, x: Array) -> Array:
        """Return x itself: dropout acts in training only, in `forward`.

        Parameters
        ----------
        x : ndarray
            Float32 or float64, of any shape.

        Returns
        -------
        ndarray
            x.

        Raises
        ------
        TypeError
            If x is no array of float32 or float64.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> x = np.ones((7, 2, 5), np.float32)
        >>> rk.Dropout(0.5)(x) is x
        True
        """
        floats("x", x)
        return x

    def forward(
        self, x: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, ModuleTape]:
        """Draw a new mask and apply it.

        Parameters
        ----------
        x : ndarray, shape (T, B, C) or (B, C)
            Sequences, or one step of them; float32 or float64. Neither it nor `y` is read by
            backward.
        lengths : ndarray of integers, shape (B,), optional
            Each row's real steps, 0 to T; all if not given. For (T, B, C) only.
        mask : ndarray of booleans, shape (T, B), optional
            Which steps are real, in place of `lengths`. Others are not read, and their outputs and
            gradients are zeros.

        Returns
        -------
        y : ndarray, shape of x
            New memory.
        tape : ModuleTape
            What `backward` takes: x, and what determines the mask.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, tape = rk.Dropout(0.1).forward(np.ones((7, 2, 5)), lengths=np.array([7, 0]))
        >>> y.shape, bool(y[:, 1].any())
        ((7, 2, 5), False)
        """
        own = np.ndarray.view(floats("x", x))
        if own.ndim not in (2, 3):
            raise ValueError(f"x: expected shape (T, B, C) or (B, C), got {own.shape}")
        for name, steps in (("lengths", lengths), ("mask", mask)):
            if steps is not None and own.ndim == 2:
                raise ValueError(f"{name}: expected None with x of shape (B, C), got an array")
        places = None
        if own.ndim == 3:
            real = real_steps(lengths, mask, *own.shape[:2])
            if real is not None:  # the number of each real step, -1 elsewhere
                places = np.where(real, real.cumsum(axis=0, dtype=np.int64) - 1, -1)
        drawn = (self._p, self._dropout_seeds[0], self._dropout_step, self._first_row, places)
        y = self._apply(own, drawn)
        tape = ModuleTape(self, own, {}, saved=drawn)
        self.dropout_step += 1  # when nothing can fail any more
        return y, tape

    def _apply(self, x: Array, drawn: tuple[float, int, int, int, Array | None]) -> Array:
        p, seed, step, first_row, places = drawn
        sequence = x if x.ndim == 3 else x[None]
        y = _core.dropout(sequence, places, p, seed, step, first_row, self._variational)
        return y.reshape(x.shape)

    def backward(self, tape: ModuleTape, dy: Array) -> ModuleGradients[Array]:
        """Backpropagate: apply the same mask to dy.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`.
        dy : ndarray, shape of x
            dL/dy.

        Returns
        -------
        ModuleGradients
            dL/dx; there are no parameters.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> dropout = rk.Dropout(0.5)
        >>> y, tape = dropout.forward(np.ones((7, 2, 5)))
        >>> bool((dropout.backward(tape, np.ones_like(y)).x == y).all())
        True
        """
        x = ModuleTape._x_of(tape, self)
        dy = pinned("dy", dy, x.dtype, *x.shape)
        return measured({}, self._apply(dy, tape._saved), {})


def floats(name: str, value: Any) -> Array:
    """`value`, or a view of a tensor or buffer, as an array of float32 or float64."""
    found = viewed(name, value)
    if found is None or found.dtype not in FLOATS:
        got = received(name, value, found, FLOATS[0])
        raise TypeError(f"{name}: expected an array of dtype float32 or float64, got {got}")
    return found
