"""The options of zoneout and recurrent dropout."""

from __future__ import annotations

from typing import Any

from ..checks import probability

__all__ = ["Zoneout", "zoneouts"]

Zoneout = float | tuple[float, float]  # of h and c alike, or of each


def zoneouts(given: Any) -> Zoneout:
    """Check the zoneout of a cell with the states h and c."""
    if not isinstance(given, tuple):
        return probability("zoneout", given, "a number or a pair (h, c)")
    if len(given) != 2:
        raise ValueError(
            f"zoneout: expected a number or a pair (h, c), got a tuple of {len(given)}"
        )
    of_h, of_c = (probability(f"zoneout[{i}]", p) for i, p in enumerate(given))
    return of_h, of_c
