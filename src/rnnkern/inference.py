"""Calls for inference: of layers, and of layers whose weights were packed once."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .bf16 import Compute, bf16_bits, bf16_or_none, from_bf16_bits
from .checks import as_array, choice, flag, private_base, size, unmasked, unmasked_all
from .pickles import LayerStack, reduced
from .stream import Stream, join_state, split_state

if TYPE_CHECKING:
    from .layers.base import _Layer
    from .modules import Embedding

__all__ = ["Frozen", "Inference", "check_streamable"]

Array = NDArray[Any]
S = TypeVar("S")  # a state: an array, or a tuple of arrays

# What the core hands out besides the last states, as it numbers this.
OUTPUTS, LAST_OUTPUTS, HIDDENS, TAPE = range(4)
ALL: Literal["all"] = "all"


@private_base
class Inference(Generic[S]):
    """What is called on whole sequences; S is the type of a state."""

    _stack: LayerStack
    _params: Any  # as the core takes them: a dict of arrays, or packed ones
    _dtype: np.dtype[Any]
    _batch_first: bool
    _state_names: tuple[str, ...]
    _dropout_seeds: list[int]  # one for each member of an ensemble

    def _input(self, x: Any) -> Any:
        """x of a call, as the core takes it."""
        return as_array("x", x, self._dtype)

    def _explain(self, error: Exception) -> None:
        """Say more of an error of the core's."""

    @overload
    def __call__(
        self,
        x: Array,
        state: S | None = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        outputs: Literal["all", "last"] = "all",
        hiddens: Literal[False] = False,
    ) -> tuple[Array, S]: ...
    @overload
    def __call__(
        self,
        x: Array,
        state: S | None = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        outputs: Literal["all"] = "all",
        hiddens: Literal[True],
    ) -> tuple[Array, S, list[Array]]: ...
    def __call__(
        self,
        x: Array,
        state: S | None = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        outputs: Literal["all", "last"] = ALL,
        hiddens: bool = False,
    ) -> tuple[Array, S] | tuple[Array, S, list[Array]]:
        """Run over a sequence for inference: no tape, dropout or noise.

        Parameters
        ----------
        x : ndarray, shape (T, B, I), (B, T, I) with ``batch_first``, or (T, I) for one row
            The input, of the layer's dtype. T and B may be 0. An ensemble takes (T, E, B, I), or
            (T, B, I) for all of its members. CPU tensors (DLPack) and buffers of that dtype are
            read without a copy, here and for all other arrays. Masked arrays are refused.
        state : ndarray or tuple of ndarray, optional
            The initial h (L*D, B, P), for an LSTM the pair (h, c) with c (L*D, B, H), for an sLSTM
            the tuple (h, c, n, m); without the B for one row, (L*D, E, B, ...) for an ensemble. P
            is `output_size`, which is H unless an LSTM has a projection. The default is a fresh
            state: zeros, and -inf for m of an sLSTM.
        lengths : ndarray of integers, shape (B,), optional
            Each row's number of steps, 0 to T, in any order. Later steps are never read. All
            members of an ensemble share `lengths`, `mask` and `resets`, which have no axis E.
        mask : ndarray of bool, shape (T, B), optional
            (B, T) with ``batch_first``, (T,) for one row. True at real steps; not with `lengths`.
            Masked steps may be anywhere in a row. There, the state does not change, x is not read,
            and y and all gradients are zero. The results of a row have the same bits as if it
            consisted of its real steps only.
        resets : ndarray of bool, shaped like `mask`, optional
            True where another sequence begins in a row. A fresh state starts there, in both
            directions, so the sequences of a row do not affect each other. Several short sequences
            can share a row, and episodes need no loop. Resets at masked steps take effect, resets
            after the end of a row do not.
        outputs : {"all", "last"}
            Which outputs to return: those of all steps, or only each row's last one, as for a
            classifier of whole sequences. No memory is allocated for the others.
        hiddens : bool
            Whether to also return h of every layer. Not with ``outputs="last"``.

        Returns
        -------
        y : ndarray, shape (T, B, D*P)
            (B, T, D*P) with ``batch_first``, (T, D*P) for one row, (T, E, B, D*P) for an ensemble.
            The outputs of the last layer: h of both directions, concatenated; with ``residual``,
            plus the layer's input. They are zero after a row's end and at masked steps. With
            ``outputs="last"``: (B, D*P), at each row's own last real step; of the reverse
            direction at the first step, which it reads last; zero for a row without steps;
            (E, B, D*P) for an ensemble, (D*P,) for one row.
        state : ndarray or tuple of ndarray
            The state at each row's own last real step (the reverse direction's: at its first),
            shaped like the initial state.
        hiddens : list of ndarray, shaped like y
            With ``hiddens=True``: h of each layer. The last one is y itself, unless ``residual``.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype, rank or size; the message names it.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> y, state = rk.GRU(3, 5, seed=0)(np.zeros((7, 2, 3), np.float32))
        >>> y.shape, state.shape
        ((7, 2, 5), (1, 2, 5))

        Padding at the start, as by Keras's ``pad_sequences``, gives the same as padding at the end:

        >>> gru, x = rk.GRU(3, 5, seed=0), np.ones((7, 1, 3), np.float32)
        >>> at_start, at_end = np.arange(7)[:, None] >= 3, np.arange(7)[:, None] < 4
        >>> bool((gru(x, mask=at_start)[0][3:] == gru(x, mask=at_end)[0][:4]).all())
        True

        The last outputs, as for a classifier, and the outputs of each layer:

        >>> lstm = rk.LSTM(3, 5, 2, bidirectional=True, seed=0)
        >>> x, lengths = np.ones((7, 2, 3), np.float32), np.array([7, 4])
        >>> last, _ = lstm(x, lengths=lengths, outputs="last")
        >>> y, _, hiddens = lstm(x, lengths=lengths, hiddens=True)
        >>> want = np.concatenate([y[lengths - 1, [0, 1], :5], y[0, :, 5:]], axis=1)
        >>> last.shape, bool((last == want).all()), [h.shape for h in hiddens]
        ((2, 10), True, [(7, 2, 10), (7, 2, 10)])
        """
        wanted = OUTPUTS
        if outputs is not ALL or hiddens is not False:
            wanted = _wanted(outputs, hiddens)
        if type(x) is not np.ndarray or x.dtype is not self._dtype:  # here: a call costs more
            x = self._input(x)
        params = self._params
        if isinstance(params, dict):
            unmasked_all("params", params)
        try:
            y, last, more = self._stack.forward(
                params,
                x,
                split_state("state", state, self._state_names, self._dtype),
                lengths if lengths is None else unmasked("lengths", lengths),
                mask if mask is None else unmasked("mask", mask),
                resets if resets is None else unmasked("resets", resets),
                self._batch_first,
                wanted,
                False,
                0,
                (0.0, self._dropout_seeds, 0, 0, False),
            )
        except (TypeError, ValueError) as error:
            self._explain(error)
            raise
        return (y, join_state(last)) if more is None else (y, join_state(last), more)


def _wanted(outputs: Any, hiddens: Any) -> int:
    last = choice("outputs", outputs, ("all", "last")) == "last"
    if not flag("hiddens", hiddens):
        return LAST_OUTPUTS if last else OUTPUTS
    if last:
        raise ValueError("outputs: expected 'all' with hiddens=True, got 'last'")
    return HIDDENS


class Frozen(Inference[S]):
    """A snapshot of a recurrent layer for inference, whose weights are packed once.

    Made by ``layer.freeze()``. It is called like the layer and gives the same bits, but its calls
    do not pack the weights, which takes most of the time of a single step with few rows. Several
    threads can call it at the same time. It keeps the instruction set that was in use when it was
    made. Later changes of the layer have no effect; `is_stale` detects them.

    It holds the packed weights and one copy of the parameters, which pickles contain; all of its
    streams share both.

    With an `embedding`, calls and streams take integers instead of vectors: ``frozen(ids)`` has the
    same bits as ``layer(embedding(ids))``, where ids are shaped like x without its last axis. The
    products of the embedding's rows with the first layer's input matrices are computed once, here,
    in the same order as in a call. Calls read them instead of computing them. All ids are checked,
    including those of padding. The products take ``N * D * G * H`` elements, in an ensemble for
    each member (H rounded up to whole cache lines), in addition to a copy of the table.

    Parameters
    ----------
    layer : recurrent layer
        An ensemble, too.
    weights : {None, "bf16"}
        With "bf16", the matrices are rounded to bf16 (to nearest even, subnormal numbers to zero)
        and stored in bf16, also in pickles; see ``docs/bf16.md``. For float32 layers only.
        `is_stale` then compares rounded matrices.
    embedding : Embedding, optional
        Of the layer's dtype, with ``embedding_dim`` equal to its ``input_size``, and for float32 at
        most 2**24 rows. An ensemble's members share it. Not for an `RGLRU`, which reads x itself.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, 2, bidirectional=True, seed=0)
    >>> frozen = gru.freeze()
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> bool((frozen(x, lengths=np.array([7, 4]))[0] == gru(x, lengths=np.array([7, 4]))[0]).all())
    True
    >>> gru.params["bias_hh_l0"] += 0.1
    >>> frozen.is_stale()
    True
    >>> frozen = gru.freeze()

    A decoder step by step, from words:

    >>> lstm, words = rk.LSTM(3, 5, seed=0), rk.Embedding(100, 3, seed=1)
    >>> frozen, ids = lstm.freeze(embedding=words), np.array([[4], [71], [4]])
    >>> stream = frozen.stream()
    >>> steps = np.stack([stream.step(id) for id in ids])
    >>> bool((steps == lstm(words(ids))[0]).all()), bool((frozen(ids)[0] == steps).all())
    (True, True)
    """

    def __init__(
        self,
        layer: _Layer[S],
        embedding: Embedding | None = None,
        weights: Compute = None,
    ) -> None:
        if "_params" in vars(self):
            name = type(self).__name__
            raise TypeError(f"{name}: expected a new object, got one that is constructed already")
        from .layers.base import _Layer  # here: it imports this module

        if not isinstance(layer, _Layer):
            raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
        params = dict(layer.params)
        unmasked_all("params", params)
        self._dtype, self._weights = layer._dtype, bf16_or_none("weights", weights, layer._dtype)
        self._copies = {n: p.copy() if isinstance(p, np.ndarray) else p for n, p in params.items()}
        # Of these names, the copies are bits of bf16. The core refuses what is not float32.
        self._rounded = [
            n
            for n in (_matrices(layer) if self._weights else ())
            if getattr(self._copies.get(n), "dtype", None) == np.float32
        ]
        self._copies |= {n: bf16_bits(self._copies[n]) for n in self._rounded}
        self._stack = layer._stack
        if self._weights and not layer._compute:
            self._stack = layer._new_stack(layer._ensemble or 0, self._weights)
        self._batch_first, self._state_names = layer._batch_first, layer._state_names
        self._bidirectional, self._ensemble = layer._bidirectional, layer._ensemble
        self._dropout_seeds = [0] * (layer._ensemble or 1)
        self._layer: Any = weakref.ref(layer)
        # Not yet as text: the host may trap on what floats take for that.
        self._made_of = type(layer).__name__, list(layer._arguments())
        self._table = None if embedding is None else _table_of(embedding, layer).copy()
        self._embedding: Any = None if embedding is None else weakref.ref(embedding)
        self._params = self._pack()

    def _pack(self) -> Any:
        values = {n: from_bf16_bits(self._copies[n]) for n in self._rounded}
        return self._stack.pack(self._copies | values, self._table)

    def __repr__(self) -> str:
        """What it was made from; parameters are not shown."""
        if "_params" not in vars(self):  # its constructor has not run
            return super().__repr__()
        of = "" if self._table is None else f" and an embedding of {len(self._table)} rows"
        stored = " in bf16" if self._weights else ""
        return f"<Frozen of {self._text()}{stored}{of}>"

    def _input(self, x: Any) -> Any:
        return super()._input(x) if self._table is None else unmasked("x", x)

    def _text(self) -> str:
        from .parameters import as_call

        return as_call(*self._made_of)

    def __copy__(self) -> Frozen[S]:
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        skipped = {"_params", "_layer", "_embedding"}
        return reduced(self, {n: v for n, v in vars(self).copy().items() if n not in skipped})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _layer=lambda: None, _embedding=lambda: None)
        self._params = self._pack()

    def is_stale(self) -> bool:
        """Whether the layer's parameters, or the embedding's, have changed since.

        All of their elements are compared.

        Returns
        -------
        bool

        Raises
        ------
        RuntimeError
            If the layer or the embedding is gone: a frozen layer does not keep them alive. If this
            is a deep copy or from a pickle, which belong to no layer.
        TypeError, ValueError
            If a parameter is invalid.

        Examples
        --------
        >>> import rnnkern as rk
        >>> lstm = rk.LSTM(3, 5)
        >>> frozen = lstm.freeze()
        >>> frozen.is_stale()
        False
        """
        own = self._copies
        layer = _alive("layer", self._layer)
        for name, p in layer._checked_params():
            kept = bf16_bits(p) if name in self._rounded else p
            if kept.tobytes() != own[name].tobytes():
                return True
        if self._table is None:
            return False
        table = _table_of(_alive("embedding", self._embedding), self)
        return bool(table.tobytes() != self._table.tobytes())

    def stream(self, batch_size: int = 1) -> Stream[S]:
        """Make a stream, which shares the packed weights.

        Parameters
        ----------
        batch_size : int
            B, at least 1.

        Returns
        -------
        Stream
            With a fresh state.

        Raises
        ------
        ValueError
            As ``layer.stream``.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> frozen = rk.GRU(3, 5, seed=0).freeze()
        >>> streams = [frozen.stream() for client in range(100)]
        >>> streams[7].step(np.zeros((1, 3), np.float32)).shape
        (1, 5)
        """
        check_streamable(self)
        return Stream(self, size("batch_size", batch_size))


def _matrices(layer: Any) -> list[str]:
    """The names of its parameters that the core multiplies vectors by."""
    axes = 3 if layer._ensemble else 2
    return [name for name, shape in layer._shapes.items() if len(shape) == axes]


def _alive(what: str, reference: Any) -> Any:
    found = reference()
    if found is None:
        raise RuntimeError(
            f"is_stale: expected the {what} that was frozen, got none (it is gone, or this is a "
            f"copy of another frozen layer)"
        )
    return found


def _table_of(embedding: Any, layer: Any) -> Array:
    """The rows of an embedding whose outputs a layer takes."""
    from .modules import Embedding  # here: most programs do without it

    if not isinstance(embedding, Embedding):
        raise TypeError(f"embedding: expected an Embedding, got {type(embedding).__name__}")
    if embedding.dtype != layer._dtype:
        expected = f"dtype {layer._dtype}, that of the layer"
        raise TypeError(f"embedding: expected {expected}, got {embedding.dtype}")
    if embedding.embedding_dim != (size := layer._stack.input_size):
        expected = f"embedding_dim {size}, the layer's input_size"
        raise ValueError(f"embedding: expected {expected}, got {embedding.embedding_dim}")
    try:
        table: Array = dict(embedding._checked_params())["weight"]
    except (TypeError, ValueError) as error:
        raise type(error)(f"embedding.{error}") from None
    return table


def check_streamable(layer: Any) -> None:
    """Refuse streams of an ensemble and of two directions."""
    if layer._ensemble:
        raise ValueError("stream: expected a layer alone, got an ensemble (use member(e).stream())")
    if layer._bidirectional:
        raise ValueError(
            "stream: expected a layer of one direction, got a bidirectional one (its outputs need "
            "the whole sequence; docs/look_ahead.md takes chunks with some steps of what follows)"
        )
