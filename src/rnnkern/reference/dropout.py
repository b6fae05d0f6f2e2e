"""The masks of dropout, from a counter-based generator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .types import Array

Words = npt.NDArray[np.uint64]


def philox(counter: npt.ArrayLike, key: npt.ArrayLike) -> Words:
    """Return the words of Philox4x32-10: 32 bits each, four of a counter [1]_.

    Parameters
    ----------
    counter : array of integers, (4, n)
        Each below 2**32.
    key : array of integers, (2,)
        Each below 2**32.

    Returns
    -------
    array of uint64, (4, n)

    References
    ----------
    .. [1] Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 3.3.

    Examples
    --------
    >>> [hex(word) for word in philox([[0], [0], [0], [0]], [0, 0])[:2, 0].tolist()]
    ['0x6627e8d5', '0xe169c58d']
    """
    mask = np.uint64(0xFFFFFFFF)
    c = list(np.asarray(counter).astype(np.uint64))
    k = list(np.asarray(key).astype(np.uint64))
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high, low = [p >> np.uint64(32) for p in (a, b)], [p & mask for p in (a, b)]
        c = [high[1] ^ c[1] ^ k[0], low[1], high[0] ^ c[3] ^ k[1], low[0]]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.array(c)


def splitmix(seed: int, step: int) -> int:
    """Return output number `step` of SplitMix64 from a seed: the 64-bit key of a forward [1]_.

    Parameters
    ----------
    seed : int
        From 0 to 2**64 - 1.
    step : int
        From 0.

    Returns
    -------
    int
        From 0 to 2**64 - 1.

    References
    ----------
    .. [1] Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Examples
    --------
    >>> splitmix(0, 0) == 0xE220A8397B1DCDAF
    True
    """
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def dropout_mask(
    shape: tuple[int, int, int],
    p: float,
    seed: int,
    step: int = 0,
    *,
    layer: int = 0,
    first_row: int = 0,
    steps: npt.ArrayLike | None = None,
    variational: bool = False,
) -> Array:
    """Return the factors of a forward's elements: 0, or 1 / (1 - p).

    Channel c of row b at step t is dropped if word c mod 4 of the counter (c // 4, b, t, layer) is
    below p * 2**32. The key of a forward is `splitmix` of the seed and of the forward's number.

    Parameters
    ----------
    shape : tuple of int
        T, B, C.
    p : float
        Probability that an element is dropped, from 0 to below 1.
    seed : int
        From 0 to 2**64 - 1: that of a module or a layer is in its ``dropout_state["seeds"]``.
    step : int
        How many training forwards came before: ``dropout_step``.
    layer : int
        0 for a module; from 1 on the layer of a stack whose input is dropped.
    first_row : int
        The row of a larger batch that row 0 is.
    steps : array of integers, (T, B), optional
        The number of each row's real step; -1 at others, whose factors are 0. If not given, t.
    variational : bool
        Whether all steps of a row share one mask, that of step 0.

    Returns
    -------
    array of float64, (T, B, C)

    Examples
    --------
    >>> dropout_mask((1, 2, 3), 0.5, seed=7).tolist()
    [[[0.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]
    """
    T, B, C = shape
    key = splitmix(seed, step)
    t, b, c = np.indices((T, B, -(-C // 4))).reshape(3, -1)
    number = np.asarray(steps)[t, b] if steps is not None else t
    place = np.zeros_like(t) if variational else np.maximum(number, 0)
    counter = np.array([c, b + first_row, place, np.full_like(c, layer)])
    words = philox(counter, [key % 2**32, key >> 32]).T.reshape(T, B, -1)[:, :, :C]
    factors = (words >= int(p * 2**32)) / (1 - p)
    return factors if steps is None else np.where(np.asarray(steps)[..., None] < 0, 0.0, factors)
