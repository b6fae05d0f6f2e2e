"""Early stopping: the best parameters so far, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .checks import array as checked
from .checks import choice, integer, number, size, viewed
from .model import parameters_by_name
from .schedules import MODES, improves, metric, worst

__all__ = ["EarlyStopping"]

Array = NDArray[Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
OF_PARAMS = "params."  # before the names of arrays in a state
MOST = 2**62


class EarlyStopping:
    """Stop when a metric no longer improves, and restore the best parameters [1]_.

    Parameters
    ----------
    patience : int
        The number of successive updates without a better metric after which to stop, at least 1.
    min_delta : float
        A metric is better if it improves the best one by more than this, at least 0.
    mode : {"min", "max"}
        Whether smaller metrics, such as losses, or larger ones are better.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] L. Prechelt, "Early stopping - but when?", Neural Networks: Tricks of the Trade, LNCS
       1524, 1998.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> model = {"head": rk.Linear(3, 2)}
    >>> stopping = rk.EarlyStopping(patience=2)
    >>> for epoch, loss in enumerate([3.0, 1.0, 1.5, 1.2, 0.5]):
    ...     model["head"].params["bias"][...] = epoch  # what training changes
    ...     if stopping.update(loss, model):
    ...         break
    >>> epoch, stopping.best, stopping.waited
    (3, 1.0, 2)
    >>> stopping.restore(model)
    >>> model["head"].params["bias"]
    array([1., 1.], dtype=float32)
    """

    def __init__(
        self, patience: int, min_delta: float = 0.0, mode: Literal["min", "max"] = "min"
    ) -> None:
        self._patience = size("patience", patience)
        expected = "a finite number >= 0"
        self._min_delta = number("min_delta", min_delta, expected, lambda x: x >= 0)
        self._mode = choice("mode", mode, MODES)
        self._best, self._waited = worst(self._mode), 0
        self._params: dict[str, Array] = {}

    @property
    def best(self) -> float:
        """The best metric so far; infinity before the first one (``mode="max"``: -infinity)."""
        return self._best

    @property
    def waited(self) -> int:
        """How many updates have been since the best one."""
        return self._waited

    @property
    def stop(self) -> bool:
        """Whether to stop: whether `waited` has reached the patience."""
        return self._waited >= self._patience

    def update(self, value: float, model: Any) -> bool:
        """Take a metric, and copy the parameters if it is the best so far.

        Parameters
        ----------
        value : float
            The metric. A nan is never better.
        model : dict of str to layer, module or dict of arrays; or one of these
            Whose parameters to copy.

        Returns
        -------
        bool
            Whether to stop, as the attribute `stop` says.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid; the message names it. Nothing has changed then.

        Examples
        --------
        >>> import rnnkern as rk
        >>> stopping = rk.EarlyStopping(1)
        >>> [stopping.update(score, rk.Linear(3, 2)) for score in (2.0, 1.0, 1.0)]
        [False, False, True]
        """
        value, params = metric("value", value), parameters_by_name("model", model)
        if improves(value, self._best, self._min_delta, self._mode):
            copies = {name: np.array(array, order="C") for name, array in params.items()}
            self._best, self._waited, self._params = value, 0, copies
        else:
            self._waited += 1
        return self.stop

    def restore(self, model: Any) -> None:
        """Write the best parameters into a model's arrays.

        Parameters
        ----------
        model : dict of str to layer, module or dict of arrays; or one of these
            As `update` had it: of the same names, shapes and dtypes.

        Raises
        ------
        TypeError, ValueError
            If the model has other arrays, or no metric has been better than none; the message says
            which. Nothing has been written then.

        Examples
        --------
        >>> import rnnkern as rk
        >>> stopping, linear = rk.EarlyStopping(1), rk.Linear(3, 2)
        >>> stopping.update(2.0, linear)
        False
        >>> linear.params["bias"][...] = 7.0
        >>> stopping.restore(linear)
        >>> bool((linear.params["bias"] == 7.0).any())
        False
        """
        if not self._params:
            raise ValueError("restore: expected an update with a finite metric before, got none")
        own, best = parameters_by_name("model", model), self._params
        if own.keys() != best.keys():
            raise ValueError(f"model: expected the parameters {list(best)}, got {list(own)}")
        for name, array in own.items():
            place = f"model: {name!r}"
            checked(place, array, best[name].dtype, best[name].shape)
            if not array.flags.writeable:
                raise ValueError(f"{place}: expected a writable array, got a read-only one")
        for name, array in own.items():
            array[...] = best[name]

    def state_dict(self) -> dict[str, Array]:
        """Return copies of what updates have changed.

        Returns
        -------
        dict of str to ndarray
            ``best`` (float64) and ``waited`` (int64), of shape (), and the best parameters, under
            names such as ``params.gru.weight_ih_l0``.

        Examples
        --------
        >>> import rnnkern as rk
        >>> stopping = rk.EarlyStopping(1)
        >>> _ = stopping.update(2.0, {"head": rk.Linear(3, 2)})
        >>> list(stopping.state_dict())
        ['best', 'waited', 'params.head.weight', 'params.head.bias']
        """
        params = {OF_PARAMS + name: array.copy() for name, array in self._params.items()}
        return {"best": np.array(self._best), "waited": np.array(self._waited, np.int64)} | params

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from a state.

        Parameters
        ----------
        state : dict of str to ndarray
            From `state_dict`.

        Raises
        ------
        TypeError, ValueError
            If a name, a dtype or a value is none of a state's; the message names it. Nothing has
            changed then.

        Examples
        --------
        >>> import rnnkern as rk
        >>> stopping, other = rk.EarlyStopping(3), rk.EarlyStopping(3)
        >>> _ = stopping.update(2.0, rk.Linear(3, 2))
        >>> other.load_state_dict(stopping.state_dict())
        >>> other.best
        2.0
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict of arrays, got {type(state).__name__}")
        state = dict(state)
        names = {name for name in state if not str(name).startswith(OF_PARAMS)}
        if names != {"best", "waited"}:
            expected = f"best, waited and names that begin with {OF_PARAMS!r}"
            raise ValueError(f"state: expected {expected}, got {list(state)}")
        best = float(checked("state['best']", state.pop("best"), DTYPES[1], ()))
        if np.isnan(best):
            raise ValueError("state['best']: expected a metric, got nan")
        kept = int(checked("state['waited']", state.pop("waited"), np.dtype(np.int64), ()))
        waited = integer("state['waited']", kept, "an integer of at least 0", 0, MOST)
        params = {}
        for name, given in state.items():
            found = viewed(f"state[{name!r}]", given)
            if found is None or found.dtype not in DTYPES:
                got = type(given).__name__ if found is None else found.dtype
                expected = "an array of dtype float32 or float64"
                raise TypeError(f"state[{name!r}]: expected {expected}, got {got}")
            params[name.removeprefix(OF_PARAMS)] = np.array(found, order="C")
        self._best, self._waited, self._params = best, waited, params

    def __repr__(self) -> str:
        options = f"patience={self._patience}, min_delta={self._min_delta}, mode={self._mode!r}"
        return f"EarlyStopping({options})"
