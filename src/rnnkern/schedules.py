"""Learning rates as functions of the step, for the argument `lr` of every optimizer.

The step is the number of calls of the optimizer's `step` before this one, those that were skipped
included, as PyTorch's schedulers count them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .checks import choice, integer, number, private_base
from .docstrings import complete
from .pickles import reduced

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Constant", "Cosine", "Exponential", "OneCycle", "Plateau", "Steps"]

Array = NDArray[Any]

MOST_STEPS = 2**62
MODES = ("min", "max")


def _count(name: str, value: Any, low: int = 0) -> int:
    return integer(name, value, f"an integer of at least {low}", low, MOST_STEPS)


def _positive(name: str, value: Any) -> float:
    return number(name, value, "a finite number > 0", lambda x: x > 0)


def _at_least_zero(name: str, value: Any) -> float:
    return number(name, value, "a finite number >= 0", lambda x: x >= 0)


def _factor(value: Any) -> float:
    return number("factor", value, "a number above 0, at most 1", lambda x: 0 < x <= 1)


def _least(value: Any, lr: float) -> float:
    return number("least", value, f"a number from 0 to lr, {lr}", lambda x: 0 <= x <= lr)


def improves(value: float, best: float, min_delta: float, mode: str) -> bool:
    """Whether a metric is better than the best so far by more than `min_delta`; nan never is."""
    return value < best - min_delta if mode == "min" else value > best + min_delta


def metric(name: str, value: Any) -> float:
    """A metric as a float, which may be infinite or nan: a number, or an array of one."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        return float(value)
    return number(name, value, "a number that a float can hold", lambda x: True)


def worst(mode: str) -> float:
    """What every finite metric is better than."""
    return math.inf if mode == "min" else -math.inf


@private_base
class _Schedule:
    """What the schedules have in common: a linear warm-up, and what an optimizer saves of them."""

    lr: float
    warm_up: int

    def __call__(self, step: int) -> float:
        """Compute the learning rate of a step.

        Parameters
        ----------
        step : int
            How many calls of the optimizer's `step` have been before, from 0.

        Returns
        -------
        float
            The learning rate, at least 0.

        Raises
        ------
        TypeError, ValueError
            If `step` is no integer, or below 0.

        Examples
        --------
        >>> from rnnkern import schedules
        >>> schedule = schedules.Constant(1.0, warm_up=3)
        >>> [schedule(step) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
        """
        step = _count("step", step)
        if step < self.warm_up:
            return self.lr * ((step + 1) / (self.warm_up + 1))
        return self._after(step - self.warm_up)

    def _after(self, t: int) -> float:
        """The learning rate t steps after the warm-up."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, vars(self).copy())

    def _set(self, **checked: Any) -> None:
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _state(self) -> dict[str, Array]:
        """What an optimizer saves, by name: settings, which must be the same where it is loaded."""
        values: list[float] = []
        for each in fields(self):  # type: ignore[arg-type]
            if each.init:
                value = getattr(self, each.name)
                values += (len(value), *value) if isinstance(value, tuple) else (_code(value),)
        return {type(self).__name__.lower(): np.array(values, np.float64)}

    def _check(self, name: str, text: str, array: Array) -> None:
        """Raise ValueError unless an array of a state has these settings; `text` in messages."""
        own = self._state()[name]
        if not np.array_equal(array, own):
            expected = f"{own.tolist()}, the settings of {self!r}"
            raise ValueError(f"{text}: expected {expected}, got {array.tolist()}")

    def _resume(self, state: Mapping[str, Array]) -> None:
        """Take what a state, which has been checked, says beside the settings."""


def _code(value: float | str) -> float:
    return MODES.index(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Constant(_Schedule):
    """A learning rate that stays the same, after a warm-up.

    Parameters
    ----------
    lr : float
        The learning rate, above 0.
    warm_up : int
        Steps, W, during which the rate grows linearly [1]_: step t < W has ``lr (t+1) / (W+1)``,
        so step W is the first of the whole rate. PyTorch's
        ``LinearLR(start_factor=1 / (W + 1), total_iters=W)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017,
       arXiv:1706.02677, section 2.2.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> opt = rk.Adam({"w": np.zeros(3)}, lr=rk.schedules.Constant(1e-3, warm_up=9))
    >>> opt.lr
    0.0001
    """

    lr: float
    warm_up: int = 0

    def __post_init__(self) -> None:
        self._set(lr=_positive("lr", self.lr), warm_up=_count("warm_up", self.warm_up))

    def _after(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Cosine(_Schedule):
    """Half a cosine from `lr` to `least` [1]_: one cycle of SGDR, without restarts.

    ``least + (lr - least) (1 + cos(pi t / n)) / 2`` at step t of n after the warm-up. PyTorch's
    ``CosineAnnealingLR(T_max=n, eta_min=least)`` up to step n; later the rate stays `least`.

    Parameters
    ----------
    lr : float
        The learning rate after the warm-up, above 0.
    steps : int
        All steps, those of the warm-up included: ``n = steps - warm_up``, at least 1.
    warm_up : int
        As in `Constant`.
    least : float
        The last learning rate, from 0 to `lr`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts",
       ICLR 2017, arXiv:1608.03983, eq. 5.

    Examples
    --------
    >>> from rnnkern import schedules
    >>> cosine = schedules.Cosine(1.0, steps=5, warm_up=1)
    >>> [round(cosine(step), 6) for step in range(7)]
    [0.5, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]
    """

    lr: float
    steps: int
    warm_up: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        warm_up = _count("warm_up", self.warm_up)
        self._set(lr=_positive("lr", self.lr), warm_up=warm_up)
        self._set(steps=_count("steps", self.steps, warm_up + 1))
        self._set(least=_least(self.least, self.lr))

    def _after(self, t: int) -> float:
        n = self.steps - self.warm_up
        if t >= n:
            return self.least
        return self.least + (self.lr - self.least) * (1 + math.cos(math.pi * t / n)) / 2


@dataclass(frozen=True)
class Steps(_Schedule):
    """A rate that is multiplied by `factor` every so many steps, or at given steps.

    PyTorch's ``StepLR(step_size=at, gamma=factor)`` and ``MultiStepLR(milestones=at,
    gamma=factor)``.

    Parameters
    ----------
    lr : float
        The learning rate after the warm-up, above 0.
    at : int or tuple of int
        Every so many steps; or at which steps, ascending. Both count from the end of the warm-up.
    factor : float
        Above 0, at most 1.
    warm_up : int
        As in `Constant`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> from rnnkern import schedules
    >>> every, given = schedules.Steps(1.0, 2, 0.5), schedules.Steps(1.0, (1, 4), 0.5)
    >>> [every(step) for step in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    >>> [given(step) for step in range(6)]
    [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    """

    lr: float
    at: int | tuple[int, ...]
    factor: float = 0.1
    warm_up: int = 0

    def __post_init__(self) -> None:
        self._set(lr=_positive("lr", self.lr), warm_up=_count("warm_up", self.warm_up))
        self._set(factor=_factor(self.factor))
        if not isinstance(self.at, (tuple, list)):
            self._set(at=_count("at", self.at, 1))
            return
        at = tuple(_count(f"at[{i}]", step) for i, step in enumerate(self.at))
        if not at or any(a >= b for a, b in pairwise(at)):
            raise ValueError(f"at: expected ascending steps, at least one, got {self.at!r}")
        self._set(at=at)

    def _after(self, t: int) -> float:
        at = self.at
        passed = sum(step <= t for step in at) if isinstance(at, tuple) else t // at
        return self.lr * self.factor**passed


@dataclass(frozen=True)
class Exponential(_Schedule):
    """A rate that is multiplied by `factor` at each step: ``lr factor^t``, PyTorch's ExponentialLR.

    Parameters
    ----------
    lr : float
        The learning rate after the warm-up, above 0.
    factor : float
        Above 0, at most 1.
    warm_up : int
        As in `Constant`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> from rnnkern import schedules
    >>> exponential = schedules.Exponential(1.0, 0.5)
    >>> [exponential(step) for step in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """

    lr: float
    factor: float
    warm_up: int = 0

    def __post_init__(self) -> None:
        self._set(lr=_positive("lr", self.lr), warm_up=_count("warm_up", self.warm_up))
        self._set(factor=_factor(self.factor))

    def _after(self, t: int) -> float:
        return self.lr * self.factor**t


@dataclass(frozen=True)
class OneCycle(_Schedule):
    """One cycle [1]_: half a cosine up to `lr`, then half a cosine down to almost nothing.

    From ``lr / div_factor`` at step 0 to `lr` at step ``pct_start * steps - 1``, and down to
    ``lr / div_factor / final_div_factor`` at step ``steps - 1``, where it stays. PyTorch's
    ``OneCycleLR`` with its names and defaults, without its cycle of momentum.

    Parameters
    ----------
    lr : float
        The largest learning rate, PyTorch's ``max_lr``, above 0.
    steps : int
        All steps, PyTorch's ``total_steps``, at least 2.
    pct_start : float
        The share of the steps during which the rate grows: ``pct_start * steps`` lies above 1 and
        below `steps`.
    div_factor, final_div_factor : float
        Above 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] L. Smith and N. Topin, "Super-convergence: very fast training of neural networks using
       large learning rates", 2017, arXiv:1708.07120; L. Smith, "A disciplined approach to neural
       network hyper-parameters: part 1", 2018, arXiv:1803.09820.

    Examples
    --------
    >>> from rnnkern import schedules
    >>> cycle = schedules.OneCycle(1.0, steps=9, pct_start=1 / 3)
    >>> [round(cycle(step), 3) for step in (0, 1, 2, 5, 8)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """

    lr: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    warm_up: ClassVar[int] = 0  # type: ignore[misc]

    def __post_init__(self) -> None:
        steps = _count("steps", self.steps, 2)
        expected = f"a share of the steps, above 1/{steps} and below 1"
        pct = number("pct_start", self.pct_start, expected, lambda x: x * steps > 1 and x < 1)
        self._set(lr=_positive("lr", self.lr), steps=steps, pct_start=pct)
        for name in ("div_factor", "final_div_factor"):
            self._set(**{name: _positive(name, getattr(self, name))})

    def _after(self, t: int) -> float:
        first = self.lr / self.div_factor
        top, last = self.pct_start * self.steps - 1, self.steps - 1
        if t <= top:
            start, end, share = first, self.lr, t / top
        else:
            start, end = self.lr, first / self.final_div_factor
            share = (min(t, last) - top) / (last - top)
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Plateau(_Schedule):
    """A rate that is multiplied by `factor` when a reported metric no longer improves.

    PyTorch's ``ReduceLROnPlateau(factor=factor, patience=patience, threshold=min_delta,
    threshold_mode="abs", cooldown=cooldown, min_lr=least)``.

    Parameters
    ----------
    lr : float
        The learning rate before the first cut, above 0.
    factor : float
        Above 0, at most 1.
    patience : int
        How many reports in a row may bring no better metric; the next one cuts the rate.
    min_delta : float
        A metric is better if it improves the best one by more than this, at least 0.
    cooldown : int
        How many reports after a cut do not count.
    least : float
        The rate is not cut below it, from 0 to `lr`.
    mode : {"min", "max"}
        Whether smaller or larger metrics are better.
    warm_up : int
        As in `Constant`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    What has been reported is part of the schedule. An optimizer saves it in its `state_dict`, and
    restores it. Schedules are equal if settings and reports are. One schedule can serve several
    optimizers; a copy of an optimizer has its own, ``opt.schedule``.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> plateau = rk.schedules.Plateau(1.0, factor=0.5, patience=1)
    >>> opt = rk.SGD({"w": np.zeros(3)}, lr=plateau)
    >>> for loss in (3.0, 2.0, 2.0, 2.0):  # of each epoch
    ...     plateau.report(loss)
    >>> opt.lr
    0.5
    """

    lr: float
    factor: float = 0.1
    patience: int = 10
    min_delta: float = 0.0
    cooldown: int = 0
    least: float = 0.0
    mode: Literal["min", "max"] = "min"
    warm_up: int = 0
    # The best metric, reports since, reports that do not count yet, cuts.
    _seen: list[float] = field(init=False, repr=False, hash=False)

    def __post_init__(self) -> None:
        self._set(lr=_positive("lr", self.lr), factor=_factor(self.factor))
        self._set(patience=_count("patience", self.patience))
        self._set(min_delta=_at_least_zero("min_delta", self.min_delta))
        self._set(cooldown=_count("cooldown", self.cooldown))
        self._set(least=_least(self.least, self.lr), mode=choice("mode", self.mode, MODES))
        self._set(warm_up=_count("warm_up", self.warm_up))
        self._set(_seen=[worst(self.mode), 0, 0, 0])

    def report(self, value: float) -> None:
        """Report a metric, of an epoch for instance.

        Parameters
        ----------
        value : float
            A loss, or a score with ``mode="max"``. A nan counts as one that is not better.

        Raises
        ------
        TypeError
            If it is no number.

        Examples
        --------
        >>> from rnnkern import schedules
        >>> plateau = schedules.Plateau(1.0, patience=0)
        >>> plateau.report(3.0)
        >>> plateau.report(float("nan"))
        >>> plateau(0)
        0.1
        """
        value = metric("value", value)
        best, waited, resting, cuts = self._seen
        if improves(value, best, self.min_delta, self.mode):
            best, waited = value, 0
        else:
            waited += 1
        if resting:
            waited, resting = 0, resting - 1
        if waited > self.patience:
            waited, resting, cuts = 0, self.cooldown, cuts + 1
        self._seen[:] = best, waited, resting, cuts

    def _after(self, t: int) -> float:
        return max(self.lr * self.factor ** int(self._seen[3]), self.least)

    def __copy__(self) -> Self:
        """One with reports of its own."""
        return copy.deepcopy(self)

    def _state(self) -> dict[str, Array]:
        return super()._state() | {"plateau.reports": np.array(self._seen, np.float64)}

    def _check(self, name: str, text: str, array: Array) -> None:
        if name != "plateau.reports":
            super()._check(name, text, array)
            return
        counts = array[1:]
        whole = np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))
        if np.isnan(array[0]) or not whole.all():
            expected = "the best metric and three counters of at least 0"
            raise ValueError(f"{text}: expected {expected}, got {array.tolist()}")

    def _resume(self, state: Mapping[str, Array]) -> None:
        best, *counts = state["plateau.reports"].tolist()
        self._seen[:] = best, *map(int, counts)


complete(Constant, Cosine, Steps, Exponential, OneCycle, Plateau)
