"""bf16, the upper half of a float32: which layers can round to it, and the bits of it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Compute", "bf16_bits", "bf16_or_none", "from_bf16_bits"]

Compute: TypeAlias = Literal["bf16"] | None


def bf16_or_none(name: str, value: Any, dtype: np.dtype[Any]) -> Compute:
    """The argument of this name of a layer of this dtype."""
    if value is None:
        return None
    if not (isinstance(value, str) and value == "bf16"):
        raise ValueError(f"{name}: expected None or 'bf16', got {value!r}")
    if dtype != np.float32:
        raise ValueError(f"{name}: expected None in a layer of {dtype}, got 'bf16' (float32 only)")
    return "bf16"


def bf16_bits(values: NDArray[np.float32], *, flush: bool = True) -> NDArray[np.uint16]:
    """The bits of values rounded as the core rounds them, to nearest even.

    Subnormal numbers become zeros of their sign, unless `flush` is false. A nan keeps the upper
    half of its payload.
    """
    bits = np.array(values, np.float32, order="C").view(np.uint32)  # others may change `values`
    magnitude = bits & np.uint32(0x7FFFFFFF)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = np.where(magnitude > 0x7F800000, bits | np.uint32(0x400000), rounded)
    if flush:
        rounded = np.where(magnitude < 0x00800000, bits & np.uint32(0x80000000), rounded)
    upper: NDArray[np.uint16] = np.asarray(rounded >> np.uint32(16)).astype("<u2")
    return upper


def from_bf16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of such bits, which float32 holds exactly."""
    values: NDArray[np.float32] = np.asarray(bits.astype(np.uint32) << np.uint32(16)).view(
        np.float32
    )
    return values
