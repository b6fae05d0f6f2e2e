"""What can be clipped in a backward pass, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from .checks import number
from .pickles import reduced

__all__ = ["Clip"]


@dataclass(frozen=True)
class Clip:
    """Gradient clips, all optional, fused into the backward kernels; they act in this order.

    Parameters
    ----------
    step_value : float, optional
        At every time step, limits each element of dL/da (a: the arguments of the gates' sigmoid,
        tanh or relu) to ``[-step_value, step_value]``, before it is used further [1]_.
    step_norm : float, optional
        At every time step, scales each row of the gradient that the step passes to the previous
        hidden state to at most this L2 norm, per layer and direction (the per-step form of [2]_).
    value : float, optional
        Limits each element of every parameter gradient to ``[-value, value]`` [3]_.
    max_norm : float, optional
        Scales all parameter gradients by ``min(1, max_norm / (norm + 1e-6))``, where norm is
        their joint L2 norm [2]_. The `max_norm` of an optimizer's `step` does the same for the
        gradients of several layers together.

    Raises
    ------
    TypeError
        If a clip is not a real number.
    ValueError
        If a clip is zero, negative, infinite or nan.

    References
    ----------
    .. [1] A. Graves, "Generating sequences with recurrent neural networks", 2013,
       arXiv:1308.0850, section 2.1.
    .. [2] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
       networks", 2013, arXiv:1211.5063, algorithm 1.
    .. [3] T. Mikolov, "Statistical language models based on neural networks", PhD thesis, Brno
       University of Technology, 2012.

    Examples
    --------
    >>> import rnnkern as rk
    >>> rk.Clip(step_value=1.0, max_norm=5.0)
    Clip(step_value=1.0, step_norm=None, value=None, max_norm=5.0)
    """

    step_value: float | None = None
    step_norm: float | None = None
    value: float | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            bound = getattr(self, field.name)
            if bound is None:
                continue
            name, kind = f"clip.{field.name}", "a number or None"
            checked = number(name, bound, "a finite number > 0", lambda x: x > 0, kind)
            object.__setattr__(self, field.name, checked)
        each = (self.step_value, self.step_norm, self.value, self.max_norm)
        bounds = tuple(math.inf if bound is None else bound for bound in each)
        object.__setattr__(self, "_bounds", bounds)  # here: each backward reads them

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, vars(self).copy())

    @property
    def limits_parameters(self) -> bool:
        """Whether the gradients of parameters are clipped, rather than those of steps alone."""
        return self.value is not None or self.max_norm is not None

    def bounds(self) -> tuple[float, float, float, float]:
        """The four bounds in order, infinity standing for none.

        Returns
        -------
        tuple of float
            ``(step_value, step_norm, value, max_norm)``.

        Examples
        --------
        >>> import rnnkern as rk
        >>> rk.Clip(value=2).bounds()
        (inf, inf, 2.0, inf)
        """
        bounds: tuple[float, float, float, float] = vars(self)["_bounds"]
        return bounds
