"""Conditional random field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from ..checks import Seed, as_array, choice, float_dtype, integer, size, unmasked
from ..parameters import Parametrized
from .common import Array, ModuleGradients, measured, parameters_of, real_steps

__all__ = ["CRF"]

REDUCTIONS = ("mean", "token_mean", "sum", "none")


class CRF(Parametrized):
    """Linear-chain conditional random field [1]_: labels of a sequence, whose neighbours matter.

    A path of labels l_0 .. l_{n-1} of a row of n steps has the score ::

        start[l_0] + sum_t emissions[t, l_t] + sum_t transitions[l_{t-1}, l_t] + end[l_{n-1}]

    and the probability ``exp(score - log partition)``, where the log partition is the logarithm of
    the sum of exp(score) over all paths.

    Parameters
    ----------
    num_labels : int
        L, at least 1.
    forbidden : iterable of pairs of int or None, optional
        What no path does: ``(i, j)``, label j follows label i; ``(None, j)``, j is the first;
        ``(i, None)``, i is the last. The score is -inf there, whatever the parameter; the
        parameter's gradient is 0.
    dtype : {float32, float64}
        Of parameters and emissions. Nothing is cast. All sums are in float64.
    seed : int or numpy.random.SeedSequence, optional
        Of the initial parameters, all from U(-0.1, 0.1) as pytorch-crf does; from the system if not
        given.
    params : mapping of str to ndarray or tensor, optional
        Parameters to copy instead of drawing them, without `seed`: all of them, of this dtype and
        no others.

    Attributes
    ----------
    params : dict of str to ndarray
        ``start_transitions`` (L,), ``end_transitions`` (L,) and ``transitions`` (L, L) from the
        label of a row to the label of a column: names and layout of pytorch-crf and AllenNLP.
        Writable; the next call uses the new values. Each call checks names, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    What is forbidden has the probability 0, and no decoded path takes it where another path is
    possible; labels that take it have the loss inf. An emission of -inf forbids a label at a step.

    Padding, by `lengths` or `mask`, is never read. Steps that `mask` leaves out within a row are
    skipped, as a layer's are: the steps around them are neighbours.

    The same bits on any number of threads and any instruction set, with any padding, and of each
    row alone (docs/reproducibility.md). Threads share the rows of the batch.

    References
    ----------
    .. [1] J. Lafferty, A. McCallum, F. Pereira, "Conditional random fields: probabilistic models
       for segmenting and labeling sequence data", ICML 2001.

    Examples
    --------
    A tagger's loss, with its gradients:

    >>> import numpy as np, rnnkern as rk
    >>> rnn, linear = rk.GRU(5, 8, bidirectional=True, seed=0), rk.Linear(16, 3, seed=1)
    >>> crf = rk.CRF(3, seed=2)
    >>> x, labels, lengths = np.ones((7, 2, 5), np.float32), np.zeros((7, 2), int), [7, 4]
    >>> y, _, tape = rnn.forward(x, lengths=lengths)
    >>> e, of_linear = linear.forward(y)
    >>> loss, grads = crf.loss(e, labels, lengths=lengths)
    >>> linear_grads = linear.backward(of_linear, grads.x)
    >>> rnn_grads = rnn.backward(tape, linear_grads.x)
    >>> paths, scores = crf.decode(e, lengths=lengths)
    >>> paths.shape, scores.shape
    ((7, 2), (2,))

    BIO tags O, B and I: I follows B or I, and begins no sequence.

    >>> crf = rk.CRF(3, forbidden=[(0, 2), (None, 2)], seed=2)
    >>> e[..., 2] += 9
    >>> crf.decode(e)[0][:, 0].tolist()
    [1, 2, 2, 2, 2, 2, 2]
    """

    def __init__(
        self,
        num_labels: int,
        *,
        forbidden: Iterable[tuple[int | None, int | None]] = (),
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        L = self._num_labels = size("num_labels", num_labels)
        if not isinstance(forbidden, Iterable):
            got = type(forbidden).__name__
            raise TypeError(f"forbidden: expected pairs of labels, got {got}")
        self._forbidden = tuple(_pair(i, pair, L) for i, pair in enumerate(forbidden))
        self._dtype = float_dtype(dtype)
        generator = np.random.default_rng(self._seeded(seed, params))
        self._shapes = {
            "start_transitions": (L,),
            "end_transitions": (L,),
            "transitions": (L, L),
        }
        if params is not None:
            self._params = self._copied(params)
            return
        self._params = {
            name: generator.uniform(-0.1, 0.1, shape).astype(self._dtype)
            for name, shape in self._shapes.items()
        }

    @property
    def num_labels(self) -> int:
        """Number of labels, L."""
        return self._num_labels

    @property
    def forbidden(self) -> tuple[tuple[int | None, int | None], ...]:
        """The pairs of labels that no path takes."""
        return self._forbidden

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of parameters and emissions."""
        return self._dtype

    def _with_forbidden(self, arrays: dict[str, Array], value: float) -> None:
        """Write `value` where a score is forbidden."""
        for one, other in self._forbidden:
            if one is None:
                arrays["start_transitions"][other] = value
            elif other is None:
                arrays["end_transitions"][one] = value
            else:
                arrays["transitions"][one, other] = value

    def _operands(
        self, emissions: Array, lengths: Array | None, mask: Array | None
    ) -> tuple[Array, Array | None, tuple[Array, Array, Array]]:
        """The emissions, which steps are real, and the scores of the parameters, checked."""
        params = parameters_of(self._params, self._shapes, self._dtype)
        own: Array = np.ndarray.view(as_array("emissions", emissions, self._dtype))
        if own.ndim != 3 or own.shape[2] != self._num_labels:
            expected = f"(T, B, {self._num_labels})"
            raise ValueError(f"emissions: expected shape {expected}, got {own.shape}")
        steps = real_steps(lengths, mask, *own.shape[:2])
        if self._forbidden:
            params = {name: array.copy() for name, array in params.items()}
            self._with_forbidden(params, -np.inf)
        start, end, transitions = params.values()
        return own, steps, (start, end, transitions)

    def loss(
        self,
        emissions: Array,
        labels: Array,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        reduction: Literal["mean", "token_mean", "sum", "none"] = "mean",
    ) -> tuple[Any, ModuleGradients[Array]]:
        """Negative log likelihood of labels, and all of its gradients, in one go.

        Parameters
        ----------
        emissions : ndarray, shape (T, B, L)
            The score of each label at each step, of the module's dtype.
        labels : ndarray of integers, shape (T, B)
            The right labels, from 0 to L - 1; anything at padding.
        lengths : ndarray of integers, shape (B,), optional
            How many steps each row has, 0 to T; all if not given.
        mask : ndarray of booleans, shape (T, B), optional
            Which steps there are, in place of `lengths`.
        reduction : {"mean", "token_mean", "sum", "none"}
            Of the rows' losses ``log partition - score``: the mean over the rows that have a step,
            the sum over the number of steps, the sum, or one loss a row. A row without steps has
            the loss 0; without any step the means are 0.

        Returns
        -------
        loss : float, or ndarray of float64, shape (B,), for ``reduction="none"``
            The loss, in nats.
        grads : ModuleGradients
            `x` is dL/demissions, zero at padding; `params` are those of the parameters. For
            ``reduction="none"`` they are the sum's.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is invalid; the message names it, and a
            label's place.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> crf = rk.CRF(2, dtype="f8")
        >>> for array in crf.params.values():
        ...     array[...] = 0
        >>> loss, grads = crf.loss(np.zeros((3, 1, 2)), np.array([[0], [1], [1]]))
        >>> round(loss / float(np.log(2)), 12), grads.x[:, 0].tolist()
        (3.0, [[-0.5, 0.5], [0.5, -0.5], [0.5, -0.5]])
        """
        reduced = choice("reduction", reduction, REDUCTIONS)
        own, steps, (start, end, transitions) = self._operands(emissions, lengths, mask)
        loss, losses, demissions, dstart, dend, dtransitions = _core.crf_loss(
            own, unmasked("labels", labels), steps, start, end, transitions, reduced
        )
        params = {
            "start_transitions": dstart,
            "end_transitions": dend,
            "transitions": dtransitions,
        }
        self._with_forbidden(params, 0.0)
        grads = measured(params, demissions, self._params)
        return (losses if reduced == "none" else loss), grads

    def log_partition(
        self, emissions: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Logarithm of the sum of exp(score) over all paths.

        Parameters
        ----------
        emissions, lengths, mask
            As in `loss`.

        Returns
        -------
        ndarray of float64, shape (B,)
            Of each row; 0 without steps, -inf where all paths are forbidden.

        Raises
        ------
        TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> rk.CRF(3).log_partition(np.zeros((7, 2, 3), np.float32)).shape
        (2,)
        """
        own, steps, params = self._operands(emissions, lengths, mask)
        return _core.crf_marginals(own, steps, *params, False)[0]

    def marginals(
        self, emissions: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Probability of each label at each step.

        Parameters
        ----------
        emissions, lengths, mask
            As in `loss`.

        Returns
        -------
        ndarray, shape (T, B, L)
            Probabilities, which sum to 1 over the labels; zeros at padding.

        Raises
        ------
        TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> p = rk.CRF(3).marginals(np.zeros((7, 2, 3), np.float32))
        >>> bool(np.allclose(p.sum(axis=2), 1))
        True
        """
        own, steps, params = self._operands(emissions, lengths, mask)
        found = _core.crf_marginals(own, steps, *params, True)[1]
        assert found is not None
        return found

    def decode(
        self, emissions: Array, *, lengths: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """The best path of each row (Viterbi).

        Of several paths with the same score, summed in float64 from the first step on, the one with
        the lowest last label is taken, of these the one with the lowest label before it, and so on.

        Parameters
        ----------
        emissions, lengths, mask
            As in `loss`.

        Returns
        -------
        paths : ndarray of int64, shape (T, B)
            The labels; -1 at padding.
        scores : ndarray of float64, shape (B,)
            The paths' scores; 0 without steps.

        Raises
        ------
        TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> e = np.zeros((3, 2, 4), np.float32)
        >>> e[:, :, 1] = 9
        >>> rk.CRF(4).decode(e, lengths=[3, 2])[0].T.tolist()
        [[1, 1, 1], [1, 1, -1]]
        """
        own, steps, params = self._operands(emissions, lengths, mask)
        return _core.crf_decode(own, steps, *params)


def _pair(place: int, pair: Any, L: int) -> tuple[int | None, int | None]:
    """`pair`, one of the forbidden."""
    name = f"forbidden[{place}]"
    if not isinstance(pair, tuple) or len(pair) != 2 or pair == (None, None):
        raise ValueError(f"{name}: expected a pair with at least one label, got {pair!r}")
    expected = f"labels from 0 to {L - 1}"
    one, other = (
        None if label is None else integer(name, label, expected, 0, L - 1, "integers or None")
        for label in pair
    )
    return one, other
