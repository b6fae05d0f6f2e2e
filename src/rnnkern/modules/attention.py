"""Attention of queries to keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from ..checks import Seed, as_array, choice, float_dtype, size
from ..layers.results import norm_of
from ..parameters import Parametrized, as_call
from ..tape import ModuleTape
from .common import Array, ModuleGradients, parameters_of, pinned, real_steps

__all__ = ["Attention", "AttentionGradients", "AttentionMemory"]

KINDS = ("dot", "scaled_dot", "general", "additive")


class AttentionGradients(ModuleGradients[Array]):
    """What the backward of an `Attention` returns; see also `ModuleGradients`.

    Attributes
    ----------
    queries : ndarray
        dL/dqueries, shaped like the queries; also `x`, as of every module. A sum or a multiple has
        none of the three.
    keys : ndarray
        dL/dkeys, shaped like the keys; of keys and values together where the values were the keys.
    values : ndarray or None
        dL/dvalues; None where the values were the keys.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> attention = rk.Attention(4, kind="dot")
    >>> keys = np.ones((5, 2, 4), np.float32)
    >>> context, tape = attention.forward(keys, keys)
    >>> grads = attention.backward(tape, np.ones_like(context))
    >>> grads.queries.shape, grads.keys.shape, grads.values
    ((5, 2, 4), (5, 2, 4), None)
    """

    __slots__ = ("_keys", "_values")

    def __init__(
        self,
        params: dict[str, Array],
        queries: Array,
        keys: Array,
        values: Array | None,
        of: Mapping[str, Array],
    ) -> None:
        (norm,) = norm_of(params.values(), 1)
        super().__init__(params, queries, norm, math.isfinite(norm), of)
        self._keys, self._values = keys, values

    @property
    def queries(self) -> Array:
        """dL/dqueries."""
        return self._own("queries", "_x")  # type: ignore[no-any-return]

    @property
    def keys(self) -> Array:
        """dL/dkeys."""
        return self._own("keys", "_keys")  # type: ignore[no-any-return]

    @property
    def values(self) -> Array | None:
        """dL/dvalues, if the values were not the keys."""
        return self._own("values", "_values")  # type: ignore[no-any-return]


class AttentionMemory:
    """Keys and values of one `Attention`, with what it computes of the keys alone.

    A decoder makes one for all of its steps (`Attention.memory`). It belongs to its process: it
    can't be copied or pickled.

    Attributes
    ----------
    keys, values : ndarray
        As they were given; the same where the values are the keys.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> attention = rk.Attention(4, 6, kind="general", seed=0)
    >>> attention.memory(np.zeros((5, 2, 6), np.float32))
    AttentionMemory(keys: (5, 2, 6), values: (5, 2, 6))
    """

    __slots__ = ("_keys", "_projected", "_steps", "_tape", "_values")

    def __init__(
        self,
        module: Attention,
        keys: Array,
        values: Array | None,
        steps: Array | None,
        projected: Array,
        params: Mapping[str, Array],
    ) -> None:
        self._keys, self._values, self._steps = keys, values, steps
        self._projected = projected
        inputs = {"keys": keys} if values is None else {"keys": keys, "values": values}
        self._tape = ModuleTape(module, keys, params, inputs=inputs)

    @property
    def keys(self) -> Array:
        """The keys (Tk, B, K)."""
        return self._keys

    @property
    def values(self) -> Array:
        """The values (Tk, B, V)."""
        return self._keys if self._values is None else self._values

    def __repr__(self) -> str:
        return f"AttentionMemory(keys: {self.keys.shape}, values: {self.values.shape})"

    def __reduce__(self) -> NoReturn:
        expected = "memory: expected to stay in its process, got a copy or a pickle"
        raise TypeError(f"{expected} (make one there)")


class _Saved(NamedTuple):
    """What a tape keeps besides the queries."""

    memory: AttentionMemory
    steps: Array | None  # (Tq, B) of the queries
    projected: Array  # (Tq, B, ...) queries
    weights: Array  # (Tq, B, Tk)


class Attention(Parametrized):
    """Attention: for each query a mean of values, weighted by how well their keys match the query.

    For a query q and keys k_i, ``weights = softmax(scores)`` and ``context = sum_i weights_i
    values_i``, with the scores

    ============ ============================================ ==========================
    dot          ``q . k_i``                                  Luong et al. 2015 [1]_
    scaled_dot   ``q . k_i / sqrt(Q)``                        Vaswani et al. 2017 [2]_
    general      ``q . (W k_i)``                              Luong et al. 2015 [1]_
    additive     ``v . tanh(W_q q + W_k k_i)``                Bahdanau et al. 2015 [3]_
    ============ ============================================ ==========================

    Parameters
    ----------
    query_size : int
        Q, at least 1.
    key_size : int, optional
        K; Q if not given. A dot product needs K = Q.
    kind : {"scaled_dot", "dot", "general", "additive"}
        The scores.
    hidden_size : int, optional
        A, the size of what the additive attention's tanh acts on; K if not given. Other kinds have
        none.
    dtype : {float32, float64}
        Of parameters, inputs and outputs. Nothing is cast.
    seed : int or numpy.random.SeedSequence, optional
        Of the initial parameters, all from U(-1/sqrt(n), 1/sqrt(n)) with rows of n, as
        PyTorch's Linear does; from the system if not given.
    params : mapping of str to ndarray or tensor, optional
        Parameters to copy instead of drawing them, without `seed`: all of them, of this dtype and
        no others.

    Attributes
    ----------
    params : dict of str to ndarray
        general: ``weight`` (Q, K). additive: ``weight_q`` (A, Q), ``weight_k`` (A, K), ``v`` (A,).
        Writable; the next call uses the new values. Each call checks names, shapes and dtypes.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Keys of padding have weight 0 and are never read, nor are queries of padding, whose context is
    zero. A row without any key has contexts of zeros.

    The same bits on any number of threads and any instruction set, with any padding, and of each
    row and each query alone (docs/reproducibility.md). Threads share the rows of the batch.

    References
    ----------
    .. [1] M. Luong, H. Pham, C. Manning, "Effective approaches to attention-based neural machine
       translation", EMNLP 2015, eq. 8.
    .. [2] A. Vaswani et al., "Attention is all you need", NeurIPS 2017, eq. 1.
    .. [3] D. Bahdanau, K. Cho, Y. Bengio, "Neural machine translation by jointly learning to align
       and translate", ICLR 2015, appendix A.1.2.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> attention = rk.Attention(4, 6, kind="additive", hidden_size=8, seed=0)
    >>> queries, keys = np.ones((3, 2, 4), np.float32), np.ones((5, 2, 6), np.float32)
    >>> context, tape = attention.forward(queries, keys, lengths=[5, 4])
    >>> context.shape, attention.weights(tape)[0, 1].tolist()
    ((3, 2, 6), [0.25, 0.25, 0.25, 0.25, 0.0])
    >>> grads = attention.backward(tape, np.ones_like(context))
    >>> grads.queries.shape, grads.keys.shape, list(grads.params)
    ((3, 2, 4), (5, 2, 6), ['weight_q', 'weight_k', 'v'])

    A decoder's steps share a memory:

    >>> memory = attention.memory(keys, lengths=[5, 4])
    >>> attention(queries[0], memory).shape
    (2, 6)
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        *,
        kind: Literal["dot", "scaled_dot", "general", "additive"] = "scaled_dot",
        hidden_size: int | None = None,
        dtype: DTypeLike = np.float32,
        seed: Seed = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        Q = self._query_size = size("query_size", query_size)
        K = self._key_size = Q if key_size is None else size("key_size", key_size)
        self._kind = choice("kind", kind, KINDS)
        if self._kind in ("dot", "scaled_dot") and K != Q:
            raise ValueError(f"key_size: expected query_size = {Q} with kind={kind!r}, got {K}")
        if self._kind != "additive" and hidden_size is not None:
            expected = f"None with kind={self._kind!r}"
            raise ValueError(f"hidden_size: expected {expected}, got {hidden_size!r}")
        self._shapes = {}
        if self._kind == "general":
            self._shapes = {"weight": (Q, K)}
        self._hidden_size = None
        if self._kind == "additive":
            A = self._hidden_size = K if hidden_size is None else size("hidden_size", hidden_size)
            self._shapes = {"weight_q": (A, Q), "weight_k": (A, K), "v": (A,)}
        self._scale = 1 / math.sqrt(Q) if self._kind == "scaled_dot" else 1.0
        self._dtype = float_dtype(dtype)
        generator = np.random.default_rng(self._seeded(seed, params))
        if params is not None:
            self._params = self._copied(params)
            return
        self._params = {}
        for name, shape in self._shapes.items():
            bound = 1 / math.sqrt(shape[-1])
            self._params[name] = generator.uniform(-bound, bound, shape).astype(self._dtype)

    @property
    def query_size(self) -> int:
        """Size of a query, Q."""
        return self._query_size

    @property
    def key_size(self) -> int:
        """Size of a key, K."""
        return self._key_size

    @property
    def kind(self) -> str:
        """Which scores."""
        return self._kind

    @property
    def hidden_size(self) -> int | None:
        """Size of what the additive attention's tanh acts on, A; None of other kinds."""
        return self._hidden_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of parameters, inputs and outputs."""
        return self._dtype

    def __repr__(self) -> str:
        same = {"key_size": self._query_size, "hidden_size": self._key_size}  # as if not given
        arguments = (a for a in self._arguments() if a[:2] not in same.items())
        return as_call(type(self).__name__, arguments)

    def __call__(
        self,
        queries: Array,
        keys: Array | AttentionMemory,
        values: Array | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        query_lengths: Array | None = None,
        query_mask: Array | None = None,
    ) -> Array:
        """Compute the contexts; `forward` also returns what backward needs.

        Parameters
        ----------
        queries : ndarray, shape (Tq, B, Q), or (B, Q) for one step
            Of the module's dtype.
        keys : ndarray, shape (Tk, B, K), or AttentionMemory
            Of the module's dtype; or a memory of this module, which brings values and lengths.
        values : ndarray, shape (Tk, B, V), optional
            Any V; the keys if not given.
        lengths : ndarray of integers, shape (B,), optional
            How many keys each row has, 0 to Tk; all if not given.
        mask : ndarray of booleans, shape (Tk, B), optional
            Which keys there are, in place of `lengths`.
        query_lengths, query_mask : ndarray, optional
            The same of queries (Tq, B, Q).

        Returns
        -------
        ndarray, shape (Tq, B, V) or (B, V)
            The contexts.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is invalid; the message names it.
        RuntimeError
            If a memory's keys, values or the module's parameters have changed since it was made;
            the message names the array.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> keys = np.zeros((5, 2, 4), np.float32)
        >>> rk.Attention(4)(np.zeros((3, 2, 4), np.float32), keys).shape
        (3, 2, 4)
        """
        return self._run(queries, keys, values, lengths, mask, query_lengths, query_mask)[0]

    def forward(
        self,
        queries: Array,
        keys: Array | AttentionMemory,
        values: Array | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        query_lengths: Array | None = None,
        query_mask: Array | None = None,
    ) -> tuple[Array, ModuleTape]:
        """Compute the contexts, and keep what backward needs.

        Parameters
        ----------
        queries, keys, values
            As in calling the module. They are not copied: leave them, and the parameters, as they
            are until backward is done.
        lengths, mask, query_lengths, query_mask
            As in calling the module. The tape keeps which steps there are.

        Returns
        -------
        context : ndarray, shape (Tq, B, V) or (B, V)
            As in calling the module.
        tape : ModuleTape
            What `backward` and `weights` take.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As in calling the module.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> queries, keys = np.zeros((3, 2, 4), np.float32), np.zeros((5, 2, 4), np.float32)
        >>> context, tape = rk.Attention(4).forward(queries, keys, lengths=[5, 0])
        >>> context.shape, tape
        ((3, 2, 4), ModuleTape(x: (3, 2, 4)))
        """
        context, own, params, saved = self._run(
            queries, keys, values, lengths, mask, query_lengths, query_mask
        )
        return context, ModuleTape(self, own, params, inputs={"queries": own}, saved=saved)

    def memory(
        self,
        keys: Array,
        values: Array | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
    ) -> AttentionMemory:
        """Prepare keys and values for many calls, such as the steps of a decoder.

        What the scores take of the keys alone is computed here, once: ``W k`` or ``W_k k``.

        Parameters
        ----------
        keys, values, lengths, mask
            As in calling the module. Arrays are not copied: leave them, and the parameters, as
            they are while the memory is in use.

        Returns
        -------
        AttentionMemory
            In place of `keys`, `values`, `lengths` and `mask`.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is invalid; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> attention = rk.Attention(4, 6, kind="additive", seed=0)
        >>> memory = attention.memory(np.ones((5, 2, 6), np.float32))
        >>> attention(np.zeros((2, 4), np.float32), memory).shape
        (2, 6)
        """
        params = parameters_of(self._params, self._shapes, self._dtype)
        own = _three_axes("keys", keys, self._dtype, self._key_size)
        T, B = own.shape[:2]
        others = None
        if values is not None:
            others = _three_axes("values", values, self._dtype, None)
            if others.shape[:2] != (T, B):
                raise ValueError(f"values: expected shape ({T}, {B}, V), got {others.shape}")
        steps = real_steps(lengths, mask, T, B)
        projected = own
        if self._kind == "general":
            projected = _projected(own, params["weight"], steps)
        elif self._kind == "additive":
            projected = _projected(own, params["weight_k"], steps)
        return AttentionMemory(self, own, others, steps, projected, params)

    def _run(
        self,
        queries: Array,
        keys: Array | AttentionMemory,
        values: Array | None,
        lengths: Array | None,
        mask: Array | None,
        query_lengths: Array | None,
        query_mask: Array | None,
    ) -> tuple[Array, Array, dict[str, Array], _Saved]:
        """The contexts, a view of the queries, the parameters, and what a tape keeps."""
        params = parameters_of(self._params, self._shapes, self._dtype)
        if isinstance(keys, AttentionMemory):
            memory = self._own_memory(keys, params)
            given = {"values": values, "lengths": lengths, "mask": mask}
            for name, argument in given.items():
                if argument is not None:
                    raise ValueError(f"{name}: expected None with an AttentionMemory, got an array")
        else:
            memory = self.memory(keys, values, lengths=lengths, mask=mask)
        B = memory._keys.shape[1]
        view: Array = np.ndarray.view(as_array("queries", queries, self._dtype))
        if view.dtype != self._dtype:  # another thread has changed the caller's since
            raise TypeError(f"queries: expected dtype {self._dtype}, got {view.dtype}")
        if view.ndim not in (2, 3) or view.shape[-2:] != (B, self._query_size):
            sizes = f"{B}, {self._query_size}"
            raise ValueError(f"queries: expected shape (T, {sizes}) or ({sizes}), got {view.shape}")
        one_step = view.ndim == 2
        own = view[None] if one_step else view
        if one_step and not (query_lengths is None and query_mask is None):
            name = "query_mask" if query_lengths is None else "query_lengths"
            raise ValueError(f"{name}: expected None with queries of one step, got an array")
        steps = real_steps(query_lengths, query_mask, len(own), B, "query_")
        projected = own
        if self._kind == "additive":
            projected = _projected(own, params["weight_q"], steps)
        context, weights = _core.attention(
            projected, *self._operands(memory, steps, params), self._scale
        )
        saved = _Saved(memory, steps, projected, weights)
        return (context[0] if one_step else context), view, params, saved

    def _own_memory(self, memory: AttentionMemory, params: dict[str, Array]) -> AttentionMemory:
        if not hasattr(memory, "_tape") or memory._tape._module is not self:
            raise ValueError("keys: expected a memory of this module, got one of another")
        memory._tape._check(params)
        return memory

    def _operands(
        self, memory: AttentionMemory, steps: Array | None, params: dict[str, Array]
    ) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
        """What the core takes behind the queries."""
        return memory._projected, memory.values, steps, memory._steps, params.get("v")

    def weights(self, tape: ModuleTape) -> Array:
        """Return the weights of a forward, for a picture of what attends to what.

        Parameters
        ----------
        tape : ModuleTape
            Of this module's `forward`.

        Returns
        -------
        ndarray, shape (Tq, B, Tk), or (B, Tk) of one step
            Each query's weights, which sum to 1; zeros at padding. Read-only.

        Raises
        ------
        TypeError, ValueError
            If the tape is not one of this module's.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> attention, keys = rk.Attention(4), np.ones((5, 2, 4), np.float32)
        >>> tape = attention.forward(keys[0], keys, lengths=[2, 4])[1]
        >>> attention.weights(tape).tolist()
        [[0.5, 0.5, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25, 0.0]]
        """
        x = ModuleTape._x_of(tape, self)
        weights: Array = tape._saved.weights.view()
        weights.flags.writeable = False
        return weights[0] if x.ndim == 2 else weights

    def backward(
        self, tape: ModuleTape | Sequence[ModuleTape], dcontext: Array
    ) -> AttentionGradients:
        """Backpropagate.

        Parameters
        ----------
        tape : ModuleTape, or sequence of ModuleTape
            Of this module's `forward`; or the tapes of several calls over one memory, such as the
            steps of a decoder, in any order, whose gradients are summed in this one. The arrays
            that forward read are read again: change them afterwards.
        dcontext : ndarray, shaped like the contexts
            dL/dcontext; of several tapes (T, B, V), their steps one behind the other.

        Returns
        -------
        AttentionGradients
            dL/dp, dL/dqueries, dL/dkeys and dL/dvalues.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is invalid; the message names it.
        RuntimeError
            If an array that forward read has changed since; the message names it.

        Examples
        --------
        A decoder whose next query depends on the context goes back step by step, with the gradients
        of queries alone, and takes all other gradients at once in the end:

        >>> import numpy as np, rnnkern as rk
        >>> attention, keys = rk.Attention(4, kind="general"), np.ones((5, 2, 4), np.float32)
        >>> memory, query, tapes = attention.memory(keys), keys[0], []
        >>> for step in range(3):
        ...     context, tape = attention.forward(query, memory)
        ...     query = context + 1
        ...     tapes.append(tape)
        >>> slopes = [np.ones_like(context)]
        >>> for tape in reversed(tapes[1:]):
        ...     slopes.insert(0, attention.backward_queries(tape, slopes[0]))
        >>> attention.backward(tapes, np.stack(slopes)).keys.shape
        (5, 2, 4)
        """
        own, saved, dcontext = self._of_tapes(tape, dcontext)
        params, memory = parameters_of(self._params, self._shapes, self._dtype), saved.memory
        operands = self._operands(memory, saved.steps, params)
        dqueries, dkeys, dvalues, dv = _core.attention_gradient(
            saved.projected, *operands, self._scale, saved.weights, dcontext, False
        )
        assert dkeys is not None
        assert dvalues is not None
        found: dict[str, Array] = {}
        if self._kind == "general":
            found["weight"], dkeys = _unprojected(
                memory._keys, params["weight"], memory._steps, dkeys
            )
        elif self._kind == "additive":
            assert dv is not None
            queries = own.reshape(len(saved.weights), *own.shape[-2:])
            found["weight_q"], dqueries = _unprojected(
                queries, params["weight_q"], saved.steps, dqueries
            )
            found["weight_k"], dkeys = _unprojected(
                memory._keys, params["weight_k"], memory._steps, dkeys
            )
            found["v"] = dv
        if memory._values is None:
            with np.errstate(all="ignore"):
                dkeys, dvalues = np.add(dkeys, dvalues, out=dkeys), None
        dqueries = dqueries.reshape(own.shape)
        return AttentionGradients(found, dqueries, dkeys, dvalues, self._params)

    def backward_queries(self, tape: ModuleTape, dcontext: Array) -> Array:
        """Backpropagate to the queries alone: a step of a decoder whose queries depend on contexts.

        Parameters
        ----------
        tape : ModuleTape
            As in `backward`, which gives the other gradients of all steps at once.
        dcontext : ndarray, shaped like the contexts
            dL/dcontext.

        Returns
        -------
        ndarray, shaped like the queries
            dL/dqueries, with the bits that `backward` gives it.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As in `backward`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> attention, keys = rk.Attention(4), np.ones((5, 2, 4), np.float32)
        >>> context, tape = attention.forward(keys[0], keys)
        >>> attention.backward_queries(tape, context).shape
        (2, 4)
        """
        own, saved, dcontext = self._of_tapes(tape, dcontext)
        params = parameters_of(self._params, self._shapes, self._dtype)
        operands = self._operands(saved.memory, saved.steps, params)
        dqueries = _core.attention_gradient(
            saved.projected, *operands, self._scale, saved.weights, dcontext, True
        )[0]
        if self._kind == "additive":
            dqueries = _projected(dqueries, params["weight_q"].T, saved.steps)
        return dqueries.reshape(own.shape)

    def _of_tapes(
        self, given: ModuleTape | Sequence[ModuleTape], dcontext: Array
    ) -> tuple[Array, _Saved, Array]:
        """The queries, what the tapes keep, joined, and dcontext (Tq, B, V)."""
        several = isinstance(given, (list, tuple))
        tapes: Sequence[ModuleTape] = given if several else [given]  # type: ignore[assignment, list-item]
        if not tapes:
            raise ValueError("tape: expected at least one, got none")
        for tape in tapes:
            ModuleTape._x_of(tape, self)
        params = parameters_of(self._params, self._shapes, self._dtype)
        memory = tapes[0]._saved.memory
        for tape in tapes:
            if tape._saved.memory is not memory:
                raise ValueError("tape: expected tapes over one memory, got others")
            tape._check(params)
        memory._tape._check(params)
        B, V = memory.values.shape[1:]
        if not several:
            own, saved = tapes[0]._x, tapes[0]._saved
            dcontext = pinned("dcontext", dcontext, self._dtype, *own.shape[:-1], V)
            return own, saved, dcontext.reshape(len(saved.weights), B, V)
        all_saved = [tape._saved for tape in tapes]
        steps = None
        if any(saved.steps is not None for saved in all_saved):
            steps = np.concatenate(
                [
                    np.ones(saved.weights.shape[:2], bool) if saved.steps is None else saved.steps
                    for saved in all_saved
                ]
            )
        own = np.concatenate([x[None] if x.ndim == 2 else x for x in (tape._x for tape in tapes)])
        projected = own
        if self._kind == "additive":
            projected = np.concatenate([saved.projected for saved in all_saved])
        weights = np.concatenate([saved.weights for saved in all_saved])
        dcontext = pinned("dcontext", dcontext, self._dtype, len(own), B, V)
        return own, _Saved(memory, steps, projected, weights), dcontext


def _three_axes(name: str, array: Array, dtype: np.dtype[Any], width: int | None) -> Array:
    """A view of an array (T, B, width)."""
    own: Array = np.ndarray.view(as_array(name, array, dtype))
    if own.dtype != dtype:  # another thread has changed the caller's since
        raise TypeError(f"{name}: expected dtype {dtype}, got {own.dtype}")
    if own.ndim != 3 or own.shape[2] == 0 or (width is not None and own.shape[2] != width):
        last = "V with V at least 1" if width is None else width
        raise ValueError(f"{name}: expected shape (T, B, {last}), got {own.shape}")
    return own


def _rows(steps: Array | None) -> Array | None:
    return None if steps is None else _core.counted_rows(steps, steps.shape)


def _projected(x: Array, weight: Array, steps: Array | None) -> Array:
    """``x weight^T`` of the real steps (T, B, ...), zeros elsewhere."""
    y = _core.linear(x.reshape(-1, x.shape[2]), weight, None, _rows(steps), None)
    return y.reshape(*x.shape[:2], len(weight))


def _unprojected(x: Array, weight: Array, steps: Array | None, dy: Array) -> tuple[Array, Array]:
    """The gradients of `_projected`: dweight and dx."""
    rows = x.reshape(-1, x.shape[2]), weight, dy.reshape(-1, len(weight))
    dweight, _, dx = _core.linear_gradient(*rows, _rows(steps), False)
    return dweight, dx.reshape(x.shape)
