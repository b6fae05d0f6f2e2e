"""What layers and `Dropout` have in common: the state of their random masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import integer

__all__ = ["DrawsMasks"]


class DrawsMasks:
    """An object whose masks are a function of seeds and of how many have been drawn.

    The constructor of a subclass sets both attributes.
    """

    _dropout_seeds: list[int]  # one for each member of an ensemble
    _dropout_step: int
    _first_row: int

    @property
    def _draws(self) -> bool:
        """Whether any probability of the masks is above zero."""
        cell = getattr(self, "_cell", None)  # of a layer
        given = (
            getattr(self, "_p", 0.0),
            getattr(self, "_dropout", 0.0),
            *(cell.noise if cell else ()),
        )
        return any(p > 0 for p in given)

    @property
    def first_row(self) -> int:
        """The row of a larger batch that row 0 of the next forward is, 0 at first; may be set.

        It determines the masks, too. `dropout_state` and files do not hold it: after loading, set
        it again unless it is 0.

        The rows of a batch have the masks of the whole one if they are given in parts:

        >>> import numpy as np, rnnkern as rk
        >>> x, dropout = np.ones((7, 4, 5)), rk.Dropout(0.5, seed=0)
        >>> whole, _ = dropout.forward(x)
        >>> dropout.first_row, dropout.dropout_step = 2, 0
        >>> bool((dropout.forward(x[:, 2:])[0] == whole[:, 2:]).all())
        True
        """
        return self._first_row

    @first_row.setter
    def first_row(self, row: int) -> None:
        expected = "an integer from 0 to 2**31"
        self._first_row = integer("first_row", row, expected, 0, 2**31)

    @property
    def dropout_step(self) -> int:
        """How many forwards have been; with seed and `first_row`, it determines the next mask."""
        return self._dropout_step

    @dropout_step.setter
    def dropout_step(self, step: int) -> None:
        expected = "an integer from 0 to 2**64 - 1"
        self._dropout_step = integer("dropout_step", step, expected, 0, 2**64 - 1)

    @property
    def dropout_state(self) -> dict[str, Any]:
        """What determines the masks to come, of numbers that JSON takes; may be set.

        ``seeds`` has an integer for each member, one of a layer alone, and ``step`` is
        `dropout_step`. `files.save` puts that of a layer into the metadata:

        >>> import json, tempfile, rnnkern as rk
        >>> gru = rk.GRU(3, 5, 2, dropout=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rk.files.save(f"{folder}/gru.safetensors", gru)
        ...     with rk.files.Reader(f"{folder}/gru.safetensors") as file:
        ...         again = rk.GRU(3, 5, 2, dropout=0.5, params=file.read())
        ...         again.dropout_state = json.loads(file.metadata["dropout_state"])
        >>> again.dropout_state == gru.dropout_state
        True
        """
        return {"seeds": list(self._dropout_seeds), "step": self._dropout_step}

    @dropout_state.setter
    def dropout_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(
                f"dropout_state: expected a dict of seeds and step, got {type(state).__name__}"
            )
        if state.keys() != {"seeds", "step"}:
            raise ValueError(f"dropout_state: expected the keys seeds and step, got {list(state)}")
        seeds, count = state["seeds"], len(self._dropout_seeds)
        if not isinstance(seeds, (list, tuple)) or len(seeds) != count:
            got = f"{len(seeds)}" if isinstance(seeds, (list, tuple)) else type(seeds).__name__
            raise ValueError(f"dropout_state['seeds']: expected a list of {count}, got {got}")
        expected = "integers from 0 to 2**64 - 1"
        own = [integer("dropout_state['seeds']", s, expected, 0, 2**64 - 1) for s in seeds]
        expected = "an integer from 0 to 2**64 - 1"
        self._dropout_step = integer("dropout_state['step']", state["step"], expected, 0, 2**64 - 1)
        self._dropout_seeds = own
