"""Attention and its gradients.

Letters, besides the package's: q a query's step, k a key's, V the width of values, A of the
additive attention's hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .types import Array


def _arrays(params: Mapping[str, npt.ArrayLike] | None) -> dict[str, Array]:
    return {name: np.asarray(array, np.float64) for name, array in (params or {}).items()}


def _scores(
    kind: str, queries: Array, keys: Array, params: dict[str, Array]
) -> tuple[Array, Array | None]:
    """Scores (q, B, k), and what the additive attention's tanh gives (q, B, k, A)."""
    if kind == "additive":
        of_queries, of_keys = queries @ params["weight_q"].T, keys @ params["weight_k"].T
        u = np.tanh(of_queries[:, :, None] + of_keys.transpose(1, 0, 2))
        return u @ params["v"], u
    if kind == "general":
        keys = keys @ params["weight"].T
    scores = np.einsum("qbi,kbi->qbk", queries, keys)
    return (scores / np.sqrt(queries.shape[2]) if kind == "scaled_dot" else scores), None


def attention(
    kind: str,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    params: Mapping[str, npt.ArrayLike] | None = None,
    real: npt.ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Return the contexts and the weights.

    Luong et al. 2015, eq. 8 (dot, general); Vaswani et al. 2017, eq. 1 (scaled_dot); Bahdanau et
    al. 2015, appendix A.1.2 (additive).

    Parameters
    ----------
    kind : str
        "dot", "scaled_dot", "general" or "additive".
    queries : array, (Tq, B, Q)
        What asks.
    keys : array, (Tk, B, K)
        What is asked.
    values : array, (Tk, B, V)
        What a context is a mean of.
    params : mapping of str to array, optional
        ``weight`` (Q, K); or ``weight_q`` (A, Q), ``weight_k`` (A, K) and ``v`` (A,).
    real : booleans, (Tk, B), optional
        Which keys there are; all if not given.

    Returns
    -------
    context : array, (Tq, B, V)
        The weighted sums of the values; zeros in a row without keys.
    weights : array, (Tq, B, Tk)
        The softmax of the scores over the keys there are.

    Examples
    --------
    >>> context, weights = attention("dot", [[[0.0]]], [[[1.0]], [[2.0]]], [[[4.0]], [[6.0]]])
    >>> context.tolist(), weights.tolist()
    ([[[5.0]]], [[[0.5, 0.5]]])
    """
    q, k, v = (np.asarray(array, np.float64) for array in (queries, keys, values))
    there = np.ones(k.shape[:2], bool) if real is None else np.asarray(real)
    k, v = (np.where(there[..., None], array, 0.0) for array in (k, v))
    scores, _ = _scores(kind, q, k, _arrays(params))
    powers = np.where(there.T, np.exp(scores - scores.max(axis=2, initial=-1e300)[..., None]), 0.0)
    total = powers.sum(axis=2, keepdims=True)
    weights = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    return np.einsum("qbk,kbv->qbv", weights, v), weights


def attention_gradient(
    kind: str,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    dcontext: npt.ArrayLike,
    params: Mapping[str, npt.ArrayLike] | None = None,
    real: npt.ArrayLike | None = None,
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Return the gradients of `attention`.

    Parameters
    ----------
    kind, queries, keys, values, params, real
        As there.
    dcontext : array, (Tq, B, V)
        dL/dcontext.

    Returns
    -------
    dqueries, dkeys, dvalues : array
        Shaped like these.
    dparams : dict of str to array
        Under the parameters' names.

    Examples
    --------
    >>> found = attention_gradient("dot", [[[0.0]]], [[[1.0]], [[2.0]]], [[[4.0]], [[6.0]]],
    ...                            [[[1.0]]])
    >>> [array.ravel().tolist() for array in found[:3]]
    [[0.5], [0.0, 0.0], [0.5, 0.5]]
    """
    q, k, v, dc = (np.asarray(array, np.float64) for array in (queries, keys, values, dcontext))
    there = np.ones(k.shape[:2], bool) if real is None else np.asarray(real)
    k, v = (np.where(there[..., None], array, 0.0) for array in (k, v))
    own = _arrays(params)
    _, weights = attention(kind, q, k, v, own, there)
    dvalues = np.einsum("qbk,qbv->kbv", weights, dc)
    dweights = np.einsum("qbv,kbv->qbk", dc, v)
    ds = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
    if kind == "additive":
        u = _scores(kind, q, k, own)[1]
        assert u is not None
        da = ds[..., None] * (1 - u * u) * own["v"]  # of the tanh's argument
        of_queries, of_keys = da.sum(axis=2), da.sum(axis=0).transpose(1, 0, 2)
        dparams = {
            "weight_q": np.einsum("qba,qbi->ai", of_queries, q),
            "weight_k": np.einsum("kba,kbi->ai", of_keys, k),
            "v": np.einsum("qbk,qbka->a", ds, u),
        }
        return of_queries @ own["weight_q"], of_keys @ own["weight_k"], dvalues, dparams
    if kind == "scaled_dot":
        ds = ds / np.sqrt(q.shape[2])
    of_keys = np.einsum("qbk,qbi->kbi", ds, q)
    if kind == "general":
        weight = own["weight"]
        dqueries = np.einsum("qbk,kbi->qbi", ds, k @ weight.T)
        dparams = {"weight": np.einsum("kbq,kbi->qi", of_keys, k)}
        return dqueries, of_keys @ weight, dvalues, dparams
    return np.einsum("qbk,kbi->qbi", ds, k), of_keys, dvalues, {}
