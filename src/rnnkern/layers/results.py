"""What backward returns, and what the types of a layer's arrays are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checks import brief, fixed, number
from ..pickles import reduced
from ..rows import combined, stored, sums_of_squares

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Array",
    "EnsembleGradients",
    "Gradients",
    "ParameterGradients",
    "State",
    "Trace",
    "norm_of",
    "omega",
]

Array = NDArray[Any]
State = Array | tuple[Array, ...]
if TYPE_CHECKING:  # the default is newer than Python 3.10
    from typing_extensions import TypeVar

    S = TypeVar("S", default=State, covariant=True)  # a layer's state
else:
    from typing import TypeVar

    S = TypeVar("S")


class Trace(NamedTuple):
    """Observations of a backward pass: float64 arrays (L*D, T, B), layer-major, then direction.

    For an ensemble, they are (L*D, T, E, B). After a row's end and at masked steps, norms and
    shares are 0, and `scale` is 1.

    Attributes
    ----------
    dh : ndarray
        L2 norm of the complete dL/dh_t: the gradient from later steps plus dL/dy_t.
    dh_before : ndarray
        L2 norm of the gradient that step t passes to the previous state, before `Clip.step_norm`.
        The quotient ``dh_before / dh`` is the growth of one step.
    dc_before : ndarray or None
        The same for c of an LSTM or sLSTM.
    scale : ndarray
        The factor by which `Clip.step_norm` scaled this gradient; 1.0 if it did not.
    clipped : ndarray
        The share of the elements of dL/da_t that `Clip.step_value` limited, 0 to 1.
    """

    dh: Array
    dh_before: Array
    dc_before: Array | None
    scale: Array
    clipped: Array

    def __repr__(self) -> str:
        """Shapes in place of arrays."""
        return brief(self)


class ParameterGradients:
    """dL/dp of one layer's parameters: what `Gradients` and `ModuleGradients` have in common.

    They are read-only, so that `norm` stays valid. ``2 * g``, ``g / 4``, ``g + h`` and
    ``sum([g, h])`` return new gradients with a new norm. To step along the mean gradient of several
    batches, add their gradients and divide by their number. For other changes, copy ``params`` into
    a dict; optimizers also take dicts, and compute their norm. Gradients can be copied and pickled.

    Attributes
    ----------
    params : mapping of str to ndarray
        dL/dp by name, read-only.
    norm, scale, finite : float, float and bool, or ndarray (E,) for an ensemble
        The joint L2 norm of `params` before they were scaled, the scale, and whether all were
        finite.

    Examples
    --------
    A step along the mean gradient of four batches, which need not fit into memory together:

    >>> import numpy as np, rnnkern as rk
    >>> layers = {"rnn": rk.GRU(3, 5, seed=0), "out": rk.Linear(5, 2, seed=1)}
    >>> opt = rk.Adam(layers)
    >>> total = {name: 0 for name in layers}
    >>> for x in np.random.default_rng(0).normal(size=(4, 7, 2, 3)).astype(np.float32):
    ...     h, _, rnn_tape = layers["rnn"].forward(x)
    ...     y, out_tape = layers["out"].forward(h)
    ...     out = layers["out"].backward(out_tape, 2 * y)  # of the loss sum(y**2)
    ...     total["out"] += out
    ...     total["rnn"] += layers["rnn"].backward(rnn_tape, out.x)
    >>> opt.step({name: grads / 4 for name, grads in total.items()}, max_norm=1.0).applied
    True
    """

    __slots__ = ("__weakref__", "_clip", "_finite", "_norm", "_of", "_params", "_scale")
    __array_ufunc__ = None  # a NumPy scalar on the left leaves the product to __rmul__

    if TYPE_CHECKING:  # read-only, of a module's gradients other values, too

        @property
        def params(self) -> Mapping[str, Array]: ...

    else:
        params = fixed("params", "dL/dp by name, read-only.")
    norm: Any = fixed("norm", "The joint L2 norm before `scale`.")
    scale: Any = fixed("scale", "The factor of the clip.")
    finite: Any = fixed("finite", "Whether all were finite before the clips.")

    def __init__(
        self, params: dict[str, Array], norm: Any, scale: Any, finite: Any, of: Any = None
    ) -> None:
        _core.make_read_only(params)
        self._params = MappingProxyType(params)
        self._norm, self._scale, self._finite = norm, scale, finite
        self._of: Mapping[str, Array] | None = of  # the parameters, as far as known
        self._clip: Any = None  # of parameter gradients, if there was one in the backward

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, ParameterGradients):
            return NotImplemented
        headers = [
            {name: (array.shape, array.dtype) for name, array in one.params.items()}
            for one in (self, other)
        ]
        strange = self._of is not None and other._of is not None and not self._is_of(other._of)
        if headers[0] != headers[1] or strange:
            raise ValueError("grads: expected a sum over the same parameters, got others'")
        one = self._derived(np.add, lambda name: other.params[name])
        one._finite = one._finite & other._finite
        one._of = other._of if self._of is None else self._of
        one._clip = self._clip or other._clip
        return one

    def __radd__(self, other: Any) -> Self:
        return self if type(other) is int and other == 0 else NotImplemented  # where sum() begins

    def __mul__(self, factor: float) -> Self:
        factor = number("factor", factor, "a finite number", lambda x: True)
        return self._derived(np.multiply, lambda name: factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        divisor = number("divisor", divisor, "a finite number other than 0", lambda x: x != 0)
        return self._derived(np.divide, lambda name: divisor)

    def _derived(self, operation: np.ufunc, operand: Callable[[str], Any]) -> Self:
        """New gradients, of `params` alone, with their own norm."""
        with np.errstate(all="ignore"):  # what is not finite is found by the norm
            params = {
                name: combined(operation, array, operand(name))
                for name, array in self._params.items()
            }
        one = object.__new__(type(self))
        ParameterGradients.__init__(one, params, self._norm, 1.0, self._finite, self._of)
        one._clip = self._clip
        one._measure()
        return one

    def _measure(self) -> None:
        norms = norm_of(self._params.values(), np.size(self._norm))
        if isinstance(self._norm, np.ndarray):
            self._norm, self._scale = np.array(norms), np.ones(len(norms))
            self._finite = self._finite & np.isfinite(self._norm)
        else:
            self._norm, self._scale = norms[0], 1.0
            self._finite = self._finite and math.isfinite(norms[0])

    def _is_of(self, params: Mapping[str, Array]) -> bool:
        """Whether these are the parameters of the backward, as far as that is known."""
        own = self._of
        if own is None or own is params:
            return True
        return own.keys() == params.keys() and all(
            isinstance(a, np.ndarray)
            and isinstance(b := params[name], np.ndarray)
            and (a.ctypes.data, a.shape, a.dtype) == (b.ctypes.data, b.shape, b.dtype)
            for name, a in own.items()
        )

    def _is_measured(self) -> bool:
        """Whether no array is writable; another one may have changed after it was measured."""
        return not any(stored(array).flags.writeable for array in self._params.values())

    def _own(self, name: str, attribute: str) -> Any:
        try:
            return getattr(self, attribute)
        except AttributeError:
            expected = "the gradients of one backward, got a sum or a multiple of such"
            raise AttributeError(f"{name}: expected {expected}, which has params alone") from None

    def __repr__(self) -> str:
        count, size = len(self._params), sum(array.size for array in self._params.values())
        text = f"{type(self).__name__}({count} arrays of {size} elements"
        if isinstance(self._norm, np.ndarray):
            fine, all_of = np.count_nonzero(self._finite), self._norm.size
            low, high = self._norm.min(), self._norm.max()
            return f"{text}, norms {low:.6g} to {high:.6g}, {fine} of {all_of} members finite)"
        return f"{text}, norm={self._norm:.6g}, scale={self._scale:.6g}, finite={self._finite})"

    def _contents(self) -> dict[str, Any]:
        """All attributes by name, without the parameters themselves."""
        names = [name for cls in type(self).__mro__ for name in getattr(cls, "__slots__", ())]
        skipped = {"__weakref__", "_of", "_params"}
        fields = {n: getattr(self, n) for n in names if n not in skipped and hasattr(self, n)}
        return fields | {"_params": dict(self._params), "measured": self._is_measured()}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, self._contents())

    def __setstate__(self, fields: dict[str, Any]) -> None:
        of = getattr(self, "_of", None)
        for name, value in fields.items():
            if name != "measured":
                setattr(self, name, value)
        clip = fields.get("_clip")
        ParameterGradients.__init__(
            self, fields["_params"], self._norm, self._scale, self._finite, of
        )
        self._clip = clip
        if not fields["measured"]:
            self._measure()

    def __copy__(self) -> Self:
        return self._rebuilt(self._contents(), self._of)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        of = memo.get(id(self._of))  # a copy of the parameters, if they have been copied along
        return self._rebuilt(copy.deepcopy(self._contents(), memo), of)

    def _rebuilt(self, fields: dict[str, Any], of: Any) -> Self:
        one = object.__new__(type(self))
        one._of = of
        one.__setstate__(fields)
        return one


class Gradients(ParameterGradients, Generic[S]):
    """What a backward pass returns; see also `ParameterGradients` for sums and multiples.

    Attributes
    ----------
    params : mapping of str to ndarray
        dL/dp for each of the layer's parameters, under its name, clipped as asked for. Read-only.
    x : ndarray
        dL/dx, shaped like the forward's x, but member by member, (T, E, B, I), for any ensemble;
        zero at padding and at masked steps. A sum or a multiple has none: each backward has its own
        x.
    state : ndarray or tuple of ndarray
        dL/d(initial state), shaped like a state. A sum or a multiple has none.
    norm : float
        The joint L2 norm of `params` after `Clip.value` and before `Clip.max_norm`. Optimizers use
        it instead of measuring again.
    scale : float
        The factor that `Clip.max_norm` applied; 1.0 if none.
    finite : bool
        Whether every element of `params` was finite before `Clip.value` (and, for float64, small
        enough for its square to be finite).
    trace : Trace or None
        What the pass saw on its way, if it was asked for.
    flow_penalty : float
        The value of Omega, if it was asked for, without its weight; 0.0 otherwise.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> grads = gru.backward(tape, np.ones_like(y), trace=True)
    >>> grads.x.shape, grads.trace.dh.shape
    ((7, 2, 3), (1, 7, 2))

    Two micro-batches make one step:

    >>> parts = np.random.default_rng(0).normal(size=(2, 7, 4, 3)).astype(np.float32)
    >>> total = 0
    >>> for x in parts:
    ...     y, state, tape = gru.forward(x)
    ...     total += gru.backward(tape, y / len(parts))
    >>> rk.SGD(gru, lr=0.1).step(total, max_norm=1.0).applied
    True
    """

    __slots__ = ("_flow_penalty", "_state_gradient", "_trace", "_x")

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
        x: Array,
        state: S,
        norm: Any,
        scale: Any,
        finite: Any,
        trace: Trace | None = None,
        flow_penalty: Any = 0.0,
        of: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(params, norm, scale, finite, of)
        self._x, self._state_gradient = x, state
        self._trace, self._flow_penalty = trace, flow_penalty

    @property
    def x(self) -> Array:
        """dL/dx."""
        return self._own("x", "_x")  # type: ignore[no-any-return]

    @property
    def state(self) -> S:
        """dL/d(initial state)."""
        return self._own("state", "_state_gradient")  # type: ignore[no-any-return]

    @property
    def trace(self) -> Trace | None:
        """What the pass saw on its way, if it was asked for."""
        return self._trace

    @property
    def flow_penalty(self) -> float:
        """The value of Omega."""
        return self._flow_penalty  # type: ignore[no-any-return]

    def _derived(self, operation: np.ufunc, operand: Callable[[str], Any]) -> Self:
        one = super()._derived(operation, operand)
        one._trace, one._flow_penalty = None, 0.0
        return one


class EnsembleGradients(Gradients[S]):
    """What an ensemble's backward pass returns: `Gradients` whose numbers are arrays (E,).

    A layer has the same class with and without `ensemble`, so type checkers see `Gradients`;
    ``assert isinstance(grads, rk.EnsembleGradients)`` tells them.

    Attributes
    ----------
    norm, scale : ndarray of float64, shape (E,)
    finite : ndarray of bool, shape (E,)
    flow_penalty : ndarray of float64, shape (E,), or 0.0 if it was not asked for

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> grus = rk.GRU(3, 5, ensemble=4, seed=0)
    >>> y, state, tape = grus.forward(np.ones((7, 2, 3), np.float32))
    >>> grads = grus.backward(tape, np.ones_like(y))
    >>> isinstance(grads, rk.EnsembleGradients), grads.norm.shape, grads.finite.tolist()
    (True, (4,), [True, True, True, True])
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def norm(self) -> Array: ...  # type: ignore[override]

        @property
        def scale(self) -> Array: ...  # type: ignore[override]

        @property
        def finite(self) -> Array: ...  # type: ignore[override]

        @property
        def flow_penalty(self) -> Any: ...


def norm_of(arrays: Iterable[Array], members: int) -> list[float]:
    """Each member's joint L2 norm of arrays (E, ...); of arrays of any shape for one member."""
    parts = [sums_of_squares(array, members) for array in arrays]
    return [math.sqrt(sum(own)) for own in zip([0.0] * members, *parts, strict=True)]


def omega(trace: Trace) -> Any:
    """Omega of Pascanu et al. 2013, eq. 9, from the norms of a trace; (E,) for an ensemble."""
    v, u = trace.dh, trace.dh_before
    with np.errstate(all="ignore"):  # infinity and nan are results, whatever the caller traps
        growth = np.divide(u, v, out=np.ones_like(u), where=(v != 0) & (u != 0))
        omega = np.sum((growth - 1.0) ** 2, axis=(0, 1, -1)) / max(1, v.shape[-1])
    return omega if v.ndim == 4 else float(omega)
