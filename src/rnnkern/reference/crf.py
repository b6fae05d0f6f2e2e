"""The linear-chain conditional random field, of one sequence."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from .types import Array


def log_sum_exp(x: Array, axis: int) -> Array:
    """Return ln of the sum of e^x over an axis; -inf where all x are."""
    top = x.max(axis=axis, keepdims=True)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        found: Array = np.log(np.exp(x - shift).sum(axis=axis)) + shift.squeeze(axis)
    return found


def crf_paths(
    emissions: npt.ArrayLike,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    transitions: npt.ArrayLike,
) -> tuple[Array, Array]:
    """Return all paths and their scores: the definition, for few labels and steps.

    Lafferty, McCallum & Pereira 2001, Conditional random fields, section 3.

    Parameters
    ----------
    emissions : array, (T, L)
        The score of each label at each step; T at least 1.
    start, end : array, (L,)
        The scores of the first and of the last label.
    transitions : array, (L, L)
        The scores of a label (row) that is followed by another (column).

    Returns
    -------
    paths : array of integers, (L^T, T)
        The labels, in lexicographic order.
    scores : array, (L^T,)
        exp(score) / sum of exp(score) is a path's probability.

    Examples
    --------
    >>> paths, scores = crf_paths([[1.0, 2.0], [4.0, 0.0]], [0, 0], [0, 10], [[0, 0], [100, 0]])
    >>> paths.tolist(), scores.tolist()
    ([[0, 0], [0, 1], [1, 0], [1, 1]], [5.0, 11.0, 106.0, 12.0])
    """
    e, pairs = np.asarray(emissions, np.float64), np.asarray(transitions, np.float64)
    T, L = e.shape
    paths = np.array(list(itertools.product(range(L), repeat=T)))
    scores = np.asarray(start, np.float64)[paths[:, 0]] + e[0, paths[:, 0]]
    for t in range(1, T):
        scores = scores + pairs[paths[:, t - 1], paths[:, t]] + e[t, paths[:, t]]
    return paths, scores + np.asarray(end, np.float64)[paths[:, -1]]


def crf(
    emissions: npt.ArrayLike,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    transitions: npt.ArrayLike,
) -> tuple[float, Array, Array]:
    """Return the log partition, and the marginals of labels and of pairs, its gradients.

    The forward-backward recurrences in logarithms: Lafferty, McCallum & Pereira 2001, section 3.

    Parameters
    ----------
    emissions : array, (T, L)
        The score of each label at each step; T at least 1.
    start, end : array, (L,)
        The scores of the first and of the last label.
    transitions : array, (L, L)
        The scores of a label (row) that is followed by another (column).

    Returns
    -------
    log_partition : float
        ln of the sum of exp(score) over all paths.
    marginals : array, (T, L)
        The probability of each label at each step: its gradient with respect to the emissions.
    pairs : array, (L, L)
        The expected number of steps from one label to another: that with respect to the
        transitions.

    Examples
    --------
    >>> log_partition, marginals, pairs = crf([[0, 0], [0, 0]], [0, 0], [0, 0], [[0, 0], [0, 0]])
    >>> round(float(np.exp(log_partition)), 9), marginals.round(9).tolist(), pairs.round(9).tolist()
    (4.0, [[0.5, 0.5], [0.5, 0.5]], [[0.25, 0.25], [0.25, 0.25]])
    """
    e, step = np.asarray(emissions, np.float64), np.asarray(transitions, np.float64)
    T = len(e)
    alpha, beta = np.zeros_like(e), np.zeros_like(e)
    alpha[0], beta[-1] = np.asarray(start, np.float64) + e[0], np.asarray(end, np.float64)
    for t in range(1, T):
        alpha[t] = e[t] + log_sum_exp(alpha[t - 1][:, None] + step, 0)
    for t in range(T - 2, -1, -1):
        beta[t] = log_sum_exp(step + e[t + 1] + beta[t + 1], 1)
    log_partition = float(log_sum_exp(alpha[-1] + beta[-1], 0))
    pairs = np.zeros_like(step)
    for t in range(1, T):
        pairs += np.exp(alpha[t - 1][:, None] + step + e[t] + beta[t] - log_partition)
    return log_partition, np.exp(alpha + beta - log_partition), pairs
