"""A call with a mapped axis, as another call without one: what `jax.vmap` makes of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .calls import Setup, described, layer_of

__all__ = ["mapped", "operand_kinds"]

# What an axis of rows means in an operand: x, y or their gradients; a state; lengths; mask or
# resets; and in others nothing.
OF_GIVEN = {"lengths": "lengths", "mask": "flags", "resets": "flags", "seed": "seed"}
WITH_ROWS = ("sequence", "state", "lengths", "flags")


def operand_kinds(setup: Setup) -> list[str]:
    """Of a forward."""
    layer = layer_of(setup.layer)
    states = ["state"] * len(layer.states) if setup.states else []
    given = [OF_GIVEN[name] for name in setup.given]
    return ["sequence", *states, *given, *["parameter"] * len(layer.shapes)]


def mapped(
    bound: Callable[[Setup], Callable[..., Sequence[Any]]],
    setup: Setup,
    operands: Sequence[Any],
    axes: Sequence[int | None],
    kinds: Sequence[str],
    out_kinds: Sequence[str],
) -> tuple[Sequence[Any], Sequence[int | None]]:
    """Results of a call with operands of a mapped axis each, and their mapped axes.

    `bound` is the call of a setup.
    """
    each = list(zip(kinds, operands, axes, strict=True))
    size = next(a.shape[axis] for _, a, axis in each if axis is not None)
    front = [
        (kind, jnp.moveaxis(a, axis, 0) if axis else a, axis is not None) for kind, a, axis in each
    ]
    unbatched = operands[0].ndim - (axes[0] is not None) == 2
    kinds_mapped = {kind for kind, _, is_mapped in front if is_mapped}
    as_members = "parameter" in kinds_mapped or "parameter" in out_kinds
    form: Rows | Members
    if "seed" in kinds or not size:  # the mask of a row depends on its place
        return _one_by_one(bound(setup), front, out_kinds)
    if not as_members:
        form = Rows(setup, unbatched, size)
    elif layer_of(setup.layer).members or kinds_mapped & {"lengths", "flags"}:
        return _one_by_one(bound(setup), front, out_kinds)
    else:
        form = Members(setup, unbatched, size, shares_x="sequence" not in out_kinds)
    own = [form.into(k, kind, a, is_mapped) for k, (kind, a, is_mapped) in enumerate(front)]
    results = bound(form.setup)(*own)
    back = [form.back(kind, a) for kind, a in zip(out_kinds, results, strict=True)]
    return [a for a, _ in back], [axis for _, axis in back]


def _one_by_one(
    call: Callable[..., Sequence[Any]],
    front: Sequence[tuple[str, Any, bool]],
    out_kinds: Sequence[str],
) -> tuple[Sequence[Any], Sequence[int]]:
    def one(own: Any) -> Any:
        rest = iter(own)
        return call(*(next(rest) if is_mapped else a for _, a, is_mapped in front))

    return jax.lax.map(one, [a for _, a, is_mapped in front if is_mapped]), [0] * len(out_kinds)


class Rows:
    """The mapped axis becomes rows."""

    def __init__(self, setup: Setup, unbatched: bool, size: int) -> None:
        self.setup = setup._replace(batch_first=unbatched or setup.batch_first)
        self.unbatched, self.size = unbatched, size

    def axis(self, kind: str, rank: int) -> int:
        """Where rows are in an operand; of a single row, where they come."""
        if kind == "state":  # (L*D, W), (L*D, B, W) or (L*D, E, B, W)
            return rank - 1 if self.unbatched else rank - 2
        if kind == "lengths" or self.setup.batch_first:
            return 0
        return 2 if rank == 4 else 1  # (T, E, B, C)

    def into(self, place: int, kind: str, a: Any, is_mapped: bool) -> Any:
        if kind not in WITH_ROWS:
            return a[0] if is_mapped else a  # the tape of other calls: backward finds none
        if not is_mapped:
            a = jnp.broadcast_to(a, (self.size, *a.shape))
        axis = self.axis(kind, a.ndim - 1)
        a = jnp.moveaxis(a, 0, axis)
        if self.unbatched:
            return a
        return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])

    def back(self, kind: str, a: Any) -> tuple[Any, int | None]:
        if kind not in WITH_ROWS:
            return a, None
        axis = self.axis(kind, a.ndim - self.unbatched)
        if self.unbatched:
            return a, axis
        rows = a.shape[axis] // self.size
        return a.reshape(*a.shape[:axis], self.size, rows, *a.shape[axis + 1 :]), axis


class Members:
    """The mapped axis becomes the members of an ensemble, which have parameters of their own."""

    def __init__(self, setup: Setup, unbatched: bool, size: int, shares_x: bool) -> None:
        layer = described(setup.layer, members=size)
        self.setup = setup._replace(layer=layer, batch_first=False)
        self.batch_first = setup.batch_first and not unbatched
        self.unbatched, self.size, self.shares_x = unbatched, size, shares_x

    def into(self, place: int, kind: str, a: Any, is_mapped: bool) -> Any:
        if kind == "tape":
            return a[0] if is_mapped else a
        if kind in ("lengths", "flags") or (place == 0 and self.shares_x and not is_mapped):
            return self._shared(kind, a)
        if not is_mapped:
            a = jnp.broadcast_to(a, (self.size, *a.shape))
        if kind == "parameter":
            return a
        a = jnp.moveaxis(a, 0, 1)  # (L*D, E, B, W); (T, E, B, C) or (B, E, T, C)
        if self.unbatched:
            return a[:, :, None]
        return a.swapaxes(0, 2) if kind == "sequence" and self.batch_first else a

    def _shared(self, kind: str, a: Any) -> Any:
        """What all members read."""
        if self.unbatched:
            return a[:, None]
        return a.swapaxes(0, 1) if kind != "lengths" and self.batch_first else a

    def back(self, kind: str, a: Any) -> tuple[Any, int | None]:
        if kind == "tape":
            return a, None
        if kind == "parameter":
            return a, 0
        if self.unbatched:
            return a[:, :, 0], 1
        return (a.swapaxes(0, 2) if kind == "sequence" and self.batch_first else a), 1
