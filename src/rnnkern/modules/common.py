"""What the modules with parameters have in common: checks and gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checks import as_array, unmasked
from ..layers import ParameterGradients
from ..layers.results import norm_of

__all__ = ["Array", "ModuleGradients", "measured", "parameters_of", "pinned", "real_steps"]

Array = NDArray[Any]
if TYPE_CHECKING:  # the default is newer than Python 3.10
    from typing_extensions import TypeVar

    X = TypeVar("X", default=Array | None, covariant=True)  # dL/dx of a module
    Y = TypeVar("Y")
else:
    from typing import TypeVar

    X = Y = TypeVar("X")


class ModuleGradients(ParameterGradients, Generic[X]):
    """What the backward of an `Embedding` or a `Linear` returns; see also `ParameterGradients`.

    Attributes
    ----------
    params : mapping of str to ndarray
        dL/dp for each of the module's parameters, under its name. Read-only. Of an `Embedding`
        with ``sparse=True`` its ``weight`` is `SparseRows`.
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
        def params(self) -> Mapping[str, Any]: ...

        @property
        def norm(self) -> float: ...

        @property
        def scale(self) -> float: ...

        @property
        def finite(self) -> bool: ...

    def __init__(
        self,
        params: dict[str, Array],
        x: X,
        norm: float,
        finite: bool,
        of: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(params, norm, 1.0, finite, of)
        self._x = x

    @property
    def x(self) -> X:
        """dL/dx."""
        return self._own("x", "_x")  # type: ignore[no-any-return]


def measured(params: dict[str, Any], x: Y, of: dict[str, Array]) -> ModuleGradients[Y]:
    norm = norm_of(params.values(), 1)[0] if params else 0.0
    return ModuleGradients(params, x, norm, math.isfinite(norm), of)


def parameters_of(
    params: dict[str, Array], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]
) -> dict[str, Array]:
    """A module's `params`, checked: views, whose headers nobody else can change."""
    if params.keys() != shapes.keys():
        raise ValueError(f"params: expected the names {list(shapes)}, got {list(params)}")
    own = {}
    for name, shape in shapes.items():
        own[name] = pinned(name, params[name], dtype, *shape, place="params[{!r}]")
    return own


def pinned(
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


def real_steps(lengths: Any, mask: Any, T: int, B: int, of: str = "") -> Array | None:
    """Which of (T, B) steps are real, as an array of this package's own; None: all are.

    `of` precedes both names in messages.
    """
    if lengths is None and mask is None:
        return None
    lengths, mask = unmasked(f"{of}lengths", lengths), unmasked(f"{of}mask", mask)
    return _core.real_steps(lengths, mask, T, B, of)
