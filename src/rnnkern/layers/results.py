"""What backward returns, and what the types of a layer's arrays are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Gradients", "State", "Trace", "omega"]

Array = NDArray[Any]
State = Array | tuple[Array, ...]


class Trace(NamedTuple):
    """What a backward pass saw on its way: float64 arrays (L*D, T, B), layer-major, then direction.

    An ensemble's are (L*D, T, E, B). Behind a row's end norms and shares are 0, and `scale` is 1.

    Attributes
    ----------
    dh : ndarray
        L2 norm of dL/dh_t, complete: what came back through time plus dL/dy_t.
    dh_before : ndarray
        L2 norm of what step t hands back to the state before it, before `Clip.step_norm`. The
        quotient ``dh_before / dh`` is the growth of one step.
    dc_before : ndarray or None
        The same for c of an LSTM or sLSTM.
    scale : ndarray
        The factor that `Clip.step_norm` applied to what step t hands back; 1.0 if none.
    clipped : ndarray
        The share of the elements of dL/da_t that `Clip.step_value` limited, 0 to 1.
    """

    dh: Array
    dh_before: Array
    dc_before: Array | None
    scale: Array
    clipped: Array


@dataclass(frozen=True)
class Gradients:
    """What a backward pass returns.

    Attributes
    ----------
    params : dict of str to ndarray
        dL/dp for each of the layer's parameters, under its name, clipped as asked for.
    x : ndarray
        dL/dx, shaped like the forward's x, but member by member, (T, E, B, I), for any ensemble;
        zero at padding.
    state : ndarray or tuple of ndarray
        dL/d(initial state), shaped like a state.
    norm : float, or ndarray (E,) for an ensemble
        The joint L2 norm of `params` after `Clip.value` and before `Clip.max_norm`. Optimizers use
        it instead of measuring again, so hand them the dict ``params`` if you change its arrays.
    scale : float, or ndarray (E,)
        The factor that `Clip.max_norm` applied; 1.0 if none.
    finite : bool, or ndarray (E,)
        Whether every element of `params` was finite before `Clip.value` (and, for float64, small
        enough for its square to be finite).
    trace : Trace or None
        What the pass saw on its way, if it was asked for.
    flow_penalty : float, or ndarray (E,)
        The value of Omega, if it was asked for, without its weight; 0.0 otherwise.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, seed=0)
    >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> grads = gru.backward(tape, np.ones_like(y), trace=True)
    >>> grads.x.shape, grads.trace.dh.shape
    ((7, 2, 3), (1, 7, 2))
    """

    params: dict[str, Array]
    x: Array
    state: State
    norm: Any
    scale: Any
    finite: Any
    trace: Trace | None = None
    flow_penalty: Any = 0.0


def omega(trace: Trace) -> Any:
    """Omega of Pascanu et al. 2013, eq. 9, from the norms of a trace; (E,) for an ensemble."""
    v, u = trace.dh, trace.dh_before
    with np.errstate(all="ignore"):  # infinity and nan are results, whatever the caller traps
        growth = np.divide(u, v, out=np.ones_like(u), where=(v != 0) & (u != 0))
        omega = np.sum((growth - 1.0) ** 2, axis=(0, 1, -1)) / max(1, v.shape[-1])
    return omega if v.ndim == 4 else float(omega)
