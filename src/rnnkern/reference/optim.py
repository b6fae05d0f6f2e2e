"""The optimizers: one update of one parameter."""

from __future__ import annotations

import numpy as np

from .types import Array


def penalized(p: Array, g: Array, *, scale: float = 1.0, l1: float = 0.0, l2: float = 0.0) -> Array:
    """Return the gradient that an optimizer works on: clipped, then with the penalties' own.

    The penalties are l1 * sum(abs(p)) and l2 / 2 * sum(p**2); the subgradient at 0 is 0.

    Parameters
    ----------
    p, g : array, of one shape
        The parameter and its gradient.
    scale : float
        The factor of the joint norm clip, see `clip_factor`; it leaves the penalties alone.
    l1, l2 : float
        The penalties' strengths.

    Returns
    -------
    array
        scale * g + l1 * sign(p) + l2 * p.

    Examples
    --------
    >>> penalized(np.array([-2.0]), np.array([4.0]), scale=0.5, l1=0.25, l2=0.125)
    array([1.5])
    """
    return scale * g + l1 * np.sign(p) + l2 * p


def sgd(
    p: Array,
    g: Array,
    v: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> tuple[Array, Array]:
    """Return the parameter and its velocity after a step of gradient descent.

    Polyak 1964; `nesterov` as in Sutskever et al. 2013; in PyTorch's form, with dampening 0.

    Parameters
    ----------
    p, g, v : array, of one shape
        The parameter, its gradient (see `penalized`), and its velocity (zeros before the first
        step).
    lr, momentum, nesterov
        As in ``torch.optim.SGD``.

    Returns
    -------
    p, v : array
        The new ones.

    Examples
    --------
    >>> sgd(np.array([1.0]), np.array([0.5]), np.zeros(1), lr=0.5)
    (array([0.75]), array([0.5]))
    """
    v = momentum * v + g
    return p - lr * (g + momentum * v if nesterov else v), v


def rmsprop(
    p: Array,
    g: Array,
    s: Array,
    v: Array,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Return the parameter and its moments after a step of RMSprop.

    Tieleman & Hinton 2012, Coursera lecture 6.5; in PyTorch's form (eps outside the root).

    Parameters
    ----------
    p, g, s, v : array, of one shape
        The parameter, its gradient (see `penalized`), the mean of its squares, and its velocity
        (both zeros before the first step).
    lr, alpha, eps, momentum : float
        As in ``torch.optim.RMSprop``.

    Returns
    -------
    p, s, v : array
        The new ones.

    Examples
    --------
    >>> p, s, v = rmsprop(np.ones(1), np.ones(1), np.zeros(1), np.zeros(1), lr=0.1, alpha=0.75)
    >>> p.round(6), s
    (array([0.8]), array([0.25]))
    """
    s = alpha * s + (1 - alpha) * g**2
    v = momentum * v + g / (np.sqrt(s) + eps)
    return p - lr * v, s, v


def adam(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Array, Array, Array]:
    """Return the parameter and its moments after a step of Adam.

    Kingma & Ba 2015, arXiv 1412.6980 algorithm 1.

    Parameters
    ----------
    p, g, m, v : array, of one shape
        The parameter, its gradient (see `penalized`), and the means of the gradient and of its
        squares (both zeros before the first step).
    t : int
        The number of this step, from 1.
    lr, betas, eps
        As in ``torch.optim.Adam``.

    Returns
    -------
    p, m, v : array
        The new ones.

    Examples
    --------
    >>> p, m, v = adam(np.ones(1), np.full(1, 0.5), np.zeros(1), np.zeros(1), 1, lr=0.1)
    >>> p.round(6)
    array([0.9])
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Array, Array, Array]:
    """Return the parameter and its moments after a step of AdamW.

    Loshchilov & Hutter 2019, arXiv 1711.05101 algorithm 2, in PyTorch's form: the decay is
    lr * weight_decay, and bypasses the moments.

    Parameters
    ----------
    p, g, m, v : array, of one shape
        The parameter, its gradient (see `penalized`), and the means of the gradient and of its
        squares (both zeros before the first step).
    t : int
        The number of this step, from 1.
    lr, betas, eps
        As in ``torch.optim.AdamW``.
    weight_decay : float
        As in ``torch.optim.AdamW``.

    Returns
    -------
    p, m, v : array
        The new ones.

    Examples
    --------
    >>> p, m, v = adamw(
    ...     np.ones(1), np.zeros(1), np.zeros(1), np.zeros(1), 1, lr=0.5, weight_decay=0.5
    ... )
    >>> p
    array([0.75])
    """
    p_adam, m, v = adam(p, g, m, v, t, lr=lr, betas=betas, eps=eps)
    return p_adam - lr * weight_decay * p, m, v
