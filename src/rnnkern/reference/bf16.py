"""The type bf16, the upper half of a float32, and the products of it, bit by bit.

Unlike the other formulas, these are not in float64: they state each rounding. x86 rounds as they do
(Intel 64 and IA-32 Architectures Software Developer's Manual, VCVTNEPS2BF16 and VDPBF16PS).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]

_SIGN = np.uint32(0x8000_0000)
_INFINITY = np.uint32(0x7F80_0000)
_SMALLEST = 2.0**-126  # normal number of float32, and of bf16
# A result of magnitude below this is below `_SMALLEST` when rounded to 24 bits: half a unit of the
# numbers below `_SMALLEST`, whose unit is 2^-150.
_FLUSHED = _SMALLEST - 2.0**-151


def bf16_bits(x: npt.ArrayLike) -> Bits:
    """Return the bits of bf16 numbers: x rounded to nearest, ties to even.

    Parameters
    ----------
    x : array
        Taken as float32. Subnormal numbers become zeros of their sign, numbers too large for bf16
        infinities; nan stays nan, quiet, with the upper bits of its payload.

    Returns
    -------
    array of uint16
        Of the same shape: sign, 8 bits of the exponent, 7 of the fraction.

    Examples
    --------
    >>> [hex(b) for b in bf16_bits([1.0, -2.0, np.inf, 1e-40])]
    ['0x3f80', '0xc000', '0x7f80', '0x0']
    """
    with np.errstate(over="ignore"):  # of float64 numbers
        u = np.asarray(x, np.float32).view(np.uint32)
    magnitude = u & ~_SIGN
    to_even = np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))
    # Of a magnitude up to infinity's, so that the sum cannot reach the sign.
    rounded = np.minimum(magnitude, _INFINITY) + to_even
    rounded = np.where(magnitude > _INFINITY, u | np.uint32(0x40_0000), rounded | (u & _SIGN))
    rounded = np.where(magnitude < np.uint32(0x80_0000), u & _SIGN, rounded)
    upper: Bits = (rounded >> np.uint32(16)).astype(np.uint16)
    return upper


def from_bf16_bits(b: npt.ArrayLike) -> Float32:
    """Return the numbers of bf16 bits.

    Parameters
    ----------
    b : array of uint16
        As `bf16_bits` returns them.

    Returns
    -------
    array of float32
        Of the same shape; exact.

    Examples
    --------
    >>> from_bf16_bits(np.array([0x3F80, 0xC000], np.uint16)).tolist()
    [1.0, -2.0]
    """
    upper = np.asarray(b, np.uint16).astype(np.uint32) << np.uint32(16)
    x: Float32 = upper.view(np.float32)
    return x


def to_bf16(x: npt.ArrayLike) -> Float32:
    """Return x rounded to bf16, as float32 numbers.

    Parameters
    ----------
    x : array
        As `bf16_bits` takes it.

    Returns
    -------
    array of float32
        Of the same shape. An element changes by at most 2^-8 of itself, unless it is flushed or
        overflows.

    Examples
    --------
    >>> to_bf16([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8]).tolist()
    [1.0, 1.0, 1.015625]
    """
    return from_bf16_bits(bf16_bits(x))


def bf16_product(start: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> Float32:
    """Return start + a b^T as the core sums it up: each element one chain over rising k.

    A link of a chain is one fused multiply-add of float32: exact up to one rounding, to nearest,
    ties to even. Subnormal operands count as zeros of their sign, and so do results that are
    subnormal after rounding.

    Parameters
    ----------
    start : array (..., M, N)
        Taken as float32. Where the chains begin.
    a : array (..., M, K)
        Taken as float32; with ``compute="bf16"`` bf16 numbers, see `to_bf16`.
    b : array (..., N, K)
        Taken as float32; bf16 numbers.

    Returns
    -------
    array of float32 (..., M, N)

    Examples
    --------
    >>> bf16_product([[0.5]], [[1.0, 2.0]], [[3.0, 4.0]]).tolist()
    [[11.5]]
    """
    sums = np.asarray(start, np.float32)
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    for k in range(a.shape[-1]):
        sums = _multiply_add(a[..., :, None, k], b[..., None, :, k], sums)
    return sums


def _multiply_add(a: Float32, b: Float32, c: Float32) -> Float32:
    """Return a b + c, rounded once.

    A float64 has 53 bits. The product is exact there: two bf16 have 16 bits together, a float32 and
    a bf16 have 32, two float32 have 48, and no exponent is below 2 * -126. The sum is not, so it
    could round twice, where the first rounding leaves the middle between two float32 numbers.
    (numpy.longdouble could, too, and is float64 on some machines.) Therefore a sum that is not
    exact is rounded to odd: its last bit is made one, in the direction of the error. Such a number,
    of 24 + 2 bits or more, rounds to 24 bits as the exact sum does: Boldo and Melquiond 2008,
    "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    with np.errstate(all="ignore"):  # of infinities and nan
        a64, b64, c64 = (_flushed(v).astype(np.float64) for v in (a, b, c))
        p = a64 * b64
        s = p + c64
        to_p = s - c64  # Knuth's TwoSum: the error of s is exact
        error = (p - to_p) + (c64 - (s - to_p))
        inexact = np.isfinite(s) & (error != 0)
        is_even = (s.view(np.uint64) & np.uint64(1)) == 0
        toward = np.nextafter(s, np.copysign(np.inf, error))
        s = np.where(inexact & is_even, toward, s)
        return np.where(np.abs(s) < _FLUSHED, np.copysign(0.0, s), s).astype(np.float32)


def _flushed(x: Float32) -> Float32:
    """Return x with zeros for subnormal numbers."""
    return np.where(np.abs(x) < _SMALLEST, np.copysign(np.float32(0), x), x)
