"""What all layers have in common: checks, defaults and calls. The maths is in the core."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from .. import runtime
from ..bf16 import Compute, bf16_or_none
from ..checks import (
    Seed,
    as_array,
    fixed,
    flag,
    float_dtype,
    integer,
    number,
    private_base,
    probability,
    seed_sequence,
    size,
    spawned,
    unmasked,
    unmasked_all,
)
from ..clip import Clip
from ..inference import TAPE, Frozen, Inference, check_streamable
from ..masks import DrawsMasks
from ..parameters import Parametrized
from ..pickles import LayerStack
from ..stream import Stream, join_state, split_state
from ..tape import Tape
from .activations import Chosen
from .initialize import Init, initial, initializer
from .results import Array, EnsembleGradients, Gradients, Trace, omega

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..modules import Embedding

S = TypeVar("S")
NO_CLIP = Clip()


class Cell(NamedTuple):
    """A layer's cell and its options, which the layer's class has checked."""

    kind: str
    proj_size: int = 0
    cell_clip: float | None = None
    proj_clip: float | None = None
    peephole: bool = False
    forward_clip: float | None = None
    activations: tuple[Chosen, ...] = ()  # of the kinds whose name ends in general
    # Of the kinds whose name ends in noisy: zoneout of h and of c, recurrent dropout.
    noise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    heads: int = 1
    exp_forget: bool = False


@private_base
class _Layer(DrawsMasks, Parametrized, Inference[S]):
    """What all layers have in common; S is the type of a state.

    Each class spells out its whole signature, for `help`, completion and type checkers, and hands
    on what all layers take by `shared`.
    """

    _draws_noise = True  # in `forward`

    # The constructor checks these together and passes them to the core, so they are read-only.
    input_size: Final[int] = fixed("input_size", "I, elements of a step's input.")
    hidden_size: Final[int] = fixed("hidden_size", "H, units of each layer.")
    output_size: Final[int] = fixed("output_size", "P, channels of h: H without a projection.")
    num_layers: Final[int] = fixed("num_layers", "L.")
    bias: Final[bool] = fixed("bias", "Whether there are biases.")
    batch_first: Final[bool] = fixed("batch_first", "Whether sequences are (B, T, C).")
    bidirectional: Final[bool] = fixed("bidirectional", "Whether D is 2.")
    reverse: Final[bool] = fixed("reverse", "Whether time goes backward.")
    residual: Final[bool] = fixed("residual", "Whether layers add their input to h.")
    ensemble: Final[int | None] = fixed("ensemble", "E, or None.")
    dtype: Final[np.dtype[Any]] = fixed("dtype", "Of parameters, inputs and outputs.")
    compute: Final[Compute] = fixed("compute", "What operands of products are rounded to.")

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        residual: bool = False,
        ensemble: int | None = None,
        dtype: DTypeLike = np.float32,
        compute: Compute = None,
        seed: Seed = None,
        init: Init = "uniform",
        params: Mapping[str, Any] | None = None,
    ) -> None:
        if "_stack" in vars(self):  # a second call would change what the core relies on
            name = type(self).__name__
            raise TypeError(f"{name}: expected a new object, got one that is constructed already")
        self._cell = cell
        self._kind, self._proj_size = cell.kind, cell.proj_size
        self._cell_clip, self._proj_clip = cell.cell_clip, cell.proj_clip
        self._peephole, self._forward_clip = cell.peephole, cell.forward_clip
        self._input_size = size("input_size", input_size)
        self._hidden_size = size("hidden_size", hidden_size)
        self._output_size = self._proj_size or self._hidden_size
        self._num_layers = size("num_layers", num_layers)
        self._bias = flag("bias", bias)
        self._batch_first = flag("batch_first", batch_first)
        self._bidirectional = flag("bidirectional", bidirectional)
        self._reverse = flag("reverse", reverse)
        if self._reverse and self._bidirectional:
            raise ValueError("reverse: expected False with bidirectional, got True")
        self._residual = flag("residual", residual)
        if self._residual and self._num_layers == 1:
            raise ValueError(
                "residual: expected False with num_layers=1 (it joins layers), got True"
            )
        self._ensemble = None if ensemble is None else size("ensemble", ensemble)
        if self._ensemble and self._batch_first:
            raise ValueError("batch_first: expected False with an ensemble, got True")
        self.dropout = dropout
        self._dtype = float_dtype(dtype)
        self._compute = bf16_or_none("compute", compute, self._dtype)
        self._init = initializer(init, cell.kind)
        own_seed = self._seeded(seed)
        if params is not None and init != "uniform":
            raise ValueError(f"init: expected 'uniform' with params, got {init!r}")
        stack = self._new_stack(self._ensemble or 0)
        self._state_names = stack.state_names()
        members = () if self._ensemble is None else (self._ensemble,)
        self._shapes = {name: (*members, *shape) for name, shape in stack.parameter_shapes()}
        self.dropout_step = self._first_row = 0
        found = None if params is None else self._matched("params", params)
        self._params = {  # all memory first: what is too large fails before anything is drawn
            name: np.empty(shape, self._dtype) for name, shape in self._shapes.items()
        }
        self._dropout_seeds = []
        normalizes = any(name.startswith("gain") for name in self._params)
        for member in range(self._ensemble or 1):
            key = () if self._ensemble is None else (member,)
            generator = np.random.default_rng(spawned(own_seed, *key))
            self._dropout_seeds.append(int(generator.integers(2**63)))
            for name, values in self._params.items() if found is None else ():
                part = values[key]
                part[...] = initial(
                    init, self._kind, name, part.shape, self._hidden_size, generator, normalizes
                )
        for name, values in (found or {}).items():
            self._params[name][...] = values
        self._stack = stack

    def _new_stack(self, members: int, weights: Compute = None) -> LayerStack:
        """The layer's stack in the core, with weights as they are, or rounded."""
        rounded = "bf16_weights" if weights else "full"
        return LayerStack(
            kind=self._kind,
            input_size=self._input_size,
            hidden_size=self._hidden_size,
            outputs=self._output_size,
            num_layers=self._num_layers,
            bias=self._bias,
            bidirectional=self._bidirectional,
            reverse=self._reverse,
            residual=self._residual,
            is_double=self._dtype == np.dtype(np.float64),
            members=members,
            peephole=self._peephole,
            cell_clip=self._bound("cell_clip", self._cell_clip),
            projection_clip=self._bound("proj_clip", self._proj_clip),
            forward_clip=self._bound("forward_clip", self._forward_clip),
            activations=[chosen.constants(self._dtype) for chosen in self._cell.activations],
            noise=self._cell.noise,
            heads=self._cell.heads,
            exp_forget=self._cell.exp_forget,
            precision="bf16_products" if self._compute else rounded,
        )

    def _bound(self, name: str, clip: float | None) -> float:
        """A clip of states as the core takes it: of the layer's dtype, infinity for none."""
        if clip is None:
            return math.inf
        smallest, largest = float(np.finfo(self._dtype).tiny), float(np.finfo(self._dtype).max)
        if not smallest <= clip <= largest:
            normal = f"a normal number of {self._dtype}, {smallest:.3g} to {largest:.3g}"
            raise ValueError(f"{name}: expected {normal}, got {clip!r}")
        return float(self._dtype.type(clip))  # rounded here: the host may trap on that in a call

    def _start_forget_bias(self, value: float | None, params: Any) -> None:
        """Of a cell whose second gate forgets: the sum of its biases, if it is given."""
        self._forget_bias = value
        if value is None:
            return
        largest = float(np.finfo(self._dtype).max)
        self._forget_bias = number(
            "forget_bias", value, "a finite number", lambda x: abs(x) <= largest
        )
        if params is not None:
            raise ValueError("forget_bias: expected None with params, got a number")
        if not self._bias:
            raise ValueError("forget_bias: expected None with bias=False, got a number")
        forget = slice(self._hidden_size, 2 * self._hidden_size)
        for name, values in self._params.items():
            if name.startswith(("bias_ih", "bias_hh")):
                values[..., forget] = self._forget_bias if name.startswith("bias_ih") else 0.0

    def _explain(self, error: Exception) -> None:
        """Say more of parameters that the core has refused: extra names, and what to write."""
        if not str(error).startswith("params"):
            return
        if extra := [str(name) for name in self._params if name not in self._shapes]:
            named = f"of which {', '.join(extra)} are no parameters of {self!r}"
            raise ValueError(f"{error}, {named}") from None
        for name, values in self._params.items():
            if type(values) is not np.ndarray or values.dtype != self._dtype:
                place = f"params[{name!r}]"
                as_array(place, values, self._dtype)
                raise TypeError(f"{error} (write np.asarray({place}))") from None

    @property
    def dropout(self) -> float:
        """Probability that an element between two layers is zeroed in a training forward."""
        return self._dropout

    @dropout.setter
    def dropout(self, p: float) -> None:
        p = probability("dropout", p)
        if p and self._num_layers == 1:
            raise ValueError(
                f"dropout: expected 0.0 with num_layers=1 (it acts between layers), got {p}"
            )
        self._dropout = p

    def forward(
        self,
        x: Array,
        state: S | None = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
        resets: Array | None = None,
        checkpoint: int | Literal["sqrt"] | None = None,
    ) -> tuple[Array, S, Tape]:
        """Run over a sequence for training, with a tape for backward, dropout and noise.

        Parameters
        ----------
        x, state, lengths, mask, resets
            As in calling the layer. `x` is not copied: do not change it or the parameters until
            backward has returned.
        checkpoint : int or "sqrt", optional
            Keep only the state of every n-th step (with "sqrt", of every sqrt(T)-th step), and let
            backward run each segment between them forward again [1]_. The bits are the same. It
            needs the memory of these states and of one segment, and up to a third more time. Not
            with ``bidirectional``, whose directions need each other's complete outputs.

        Returns
        -------
        y : ndarray
            As in calling the layer, but read-only if the tape refers to it.
        state : ndarray or tuple of ndarray
            As in calling the layer.
        tape : Tape
            The argument of `backward`. Several tapes can exist at the same time, and each can be
            used more than once. ``tape.gates``, ``tape.cells`` and ``tape.hiddens`` (h of every
            layer) give its contents, except what a checkpoint leaves out.

        Raises
        ------
        TypeError, ValueError
            As in calling the layer.

        Notes
        -----
        With dropout, zoneout or recurrent dropout, each call draws fresh masks, a function of the
        layer's seed and of ``dropout_step``, which counts these calls and can be set. Masked steps
        are not counted: the n-th real step of a row has the dropout masks of step n. Rows are
        counted from ``first_row``.

        References
        ----------
        .. [1] T. Chen, B. Xu, C. Zhang and C. Guestrin, "Training deep nets with sublinear memory
           cost", 2016, arXiv:1604.06174.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> lstm = rk.LSTM(3, 5, seed=0)
        >>> y, (h, c), tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
        >>> tape.gates[0].shape  # steps, rows, (i, f, g, o), units
        (7, 2, 4, 5)
        """
        x = as_array("x", x, self._dtype)
        unmasked_all("params", self._params)
        try:
            y, last, tape = self._stack.forward(
                self._params,
                x,
                split_state("state", state, self._state_names, self._dtype),
                lengths if lengths is None else unmasked("lengths", lengths),
                mask if mask is None else unmasked("mask", mask),
                resets if resets is None else unmasked("resets", resets),
                self._batch_first,
                TAPE,
                runtime.debugging,
                self._segment(checkpoint, x),
                (
                    *(self._dropout, self._dropout_seeds, self._dropout_step, self._first_row),
                    self._draws_noise,
                ),
            )
        except (TypeError, ValueError) as error:
            self._explain(error)
            raise
        assert tape is not None
        self.dropout_step += 1  # when nothing can fail any more
        return y, join_state(last), Tape(tape, x)

    def _segment(self, checkpoint: int | str | None, x: Array) -> int:
        """Steps between kept states; 0: everything is kept."""
        if checkpoint is None:
            return 0
        if isinstance(checkpoint, str):
            if checkpoint != "sqrt":
                raise ValueError(f"checkpoint: expected an integer or 'sqrt', got {checkpoint!r}")
            sizes = x.shape
            steps = sizes[self._batch_first and len(sizes) == 3] if len(sizes) > 1 else 1
            segment = max(1, math.isqrt(steps))
        else:
            segment = integer("checkpoint", checkpoint, "an integer of at least 1", 1, 2**62)
        if self._bidirectional:
            raise ValueError(f"checkpoint: expected None with bidirectional, got {checkpoint!r}")
        return segment

    def backward(
        self,
        tape: Tape,
        dy: Array | None = None,
        dstate: S | None = None,
        clip: Clip | None = None,
        *,
        trace: bool = False,
        flow_penalty: float = 0.0,
    ) -> Gradients[S]:
        """Backpropagate through time.

        Parameters
        ----------
        tape : Tape
            Of this layer's `forward`. Its x and the parameters are read again: change them
            afterwards.
        dy : ndarray, shaped like y, optional
            dL/dy; zeros if not given. Not read at padding and at masked steps.
        dstate : ndarray or tuple of ndarray, optional
            dL/d(final state), shaped like a state; zeros if not given.
        clip : Clip, optional
            Gradient clips, fused into the kernels.
        trace : bool
            Whether to record the norms that `Trace` describes, inside the kernels.
        flow_penalty : float
            The weight, at least 0, of a penalty on gradients that vanish or explode as they flow
            back in time: Omega = mean over rows, sum over steps, layers and directions of
            ``(|u_t| / |v_t| - 1)^2`` [1]_, eq. 9, with v_t = dL/dh_t and u_t the gradient that
            step t passes to h_{t-1}, before `Clip.step_norm`. The gradient of W_hh gets the weight
            times Omega's immediate derivative, with v_t and dL/da_t held fixed (eq. 10). Steps
            where v_t or u_t is zero do not count. For `RNN` and the reset-after `GRU` only, whose
            only state is h and whose recurrent products all act on it.

        Returns
        -------
        Gradients
            `EnsembleGradients` if the layer is an ensemble.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong type, dtype or shape, or the tape is that of another layer;
            the message names it.
        RuntimeError
            If a parameter or x has changed since the tape's forward; the message names it. 64
            evenly spaced elements of each array are compared, or all of them (see `rnnkern.debug`).

        References
        ----------
        .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent
           neural networks", 2013, arXiv:1211.5063.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> gru = rk.GRU(3, 5, seed=0)
        >>> y, state, tape = gru.forward(np.ones((7, 2, 3), np.float32))
        >>> grads = gru.backward(tape, np.ones_like(y), clip=rk.Clip(max_norm=1.0))
        >>> sorted(grads.params) == sorted(gru.params), grads.x.shape, grads.finite
        (True, (7, 2, 3), True)
        """
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: expected a Clip or None, got {type(clip).__name__}")
        if not (isinstance(tape, Tape) and tape._is_made):
            expected = "a tape of this layer's forward"
            raise TypeError(f"tape: expected {expected}, got {type(tape).__name__}")
        trace = flag("trace", trace)
        weight = 0.0
        if type(flow_penalty) is not float or flow_penalty != 0.0:
            weight = number("flow_penalty", flow_penalty, "a finite number >= 0", lambda x: x >= 0)
        if weight > 0:
            self._check_flow_penalty(weight)
        unmasked_all("params", self._params)
        try:
            params, dx, first, norm, scale, finite, traced = self._stack.backward(
                self._params,
                tape._core,
                None if dy is None else as_array("dy", dy, self._dtype),
                split_state("dstate", dstate, self._state_names, self._dtype),
                (clip or NO_CLIP).bounds(),
                trace or weight > 0,
                weight,
            )
        except (TypeError, ValueError) as error:
            self._explain(error)
            raise
        seen = Trace(*traced) if traced else None
        if seen and self._ensemble:  # the core has members first
            seen = Trace._make(None if a is None else np.moveaxis(a, 0, 2) for a in seen)
        kind = EnsembleGradients if self._ensemble else Gradients
        grads = kind(
            params,
            dx,
            join_state(first),
            norm,
            scale,
            finite,
            seen if trace else None,
            omega(seen) if seen and weight > 0 else 0.0,
            self._params,
        )
        if clip is not None and clip.limits_parameters:
            grads._clip = clip
        return grads

    def _check_flow_penalty(self, weight: float) -> None:
        from ..reference import CELLS  # here: most programs do without the reference

        kinds = [kind for kind, cell in CELLS.items() if cell.has_flow_penalty]
        if self._kind not in kinds:
            defined = f"defined for {', '.join(kinds)}"
            raise ValueError(f"flow_penalty: expected 0 for {self._kind} ({defined}), got {weight}")

    def freeze(self, *, embedding: Embedding | None = None, weights: Compute = None) -> Frozen[S]:
        """Pack the weights once, for many calls.

        Parameters
        ----------
        weights : {None, "bf16"}
            What the matrices are rounded to and stored in. With "bf16" they take half the memory;
            all else stays float32, as do the sums. A step of few rows, which mostly waits for the
            weights, is faster. float32 layers only.
        embedding : Embedding, optional
            Whose outputs are the layer's inputs. The frozen layer and its streams then take
            integers, and look up what the input matrices make of the embedding's rows; see `Frozen`
            for what this needs and costs.

        Returns
        -------
        Frozen
            With this layer's parameters as they are now. It is called like the layer, gives the
            same bits (those of a layer of rounded matrices with ``weights="bf16"``), and makes
            streams that share its weights.

        Raises
        ------
        TypeError, ValueError
            If a parameter, the embedding or `weights` is invalid.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> lstm = rk.LSTM(3, 5, seed=0)
        >>> frozen = lstm.freeze()
        >>> x = np.ones((1, 1, 3), np.float32)  # a word at a time: packing would cost the most
        >>> bool((frozen(x)[0] == lstm(x)[0]).all())
        True
        """
        try:
            return Frozen(self, embedding, weights)
        except (TypeError, ValueError) as error:
            self._explain(error)
            raise

    def stream(self, batch_size: int = 1) -> Stream[S]:
        """Make a stream: one step (`Stream.step`), or a block of steps (`Stream.run`), at a time.

        Parameters
        ----------
        batch_size : int
            B, at least 1.

        Returns
        -------
        Stream
            With this layer's parameters as they are now, and a fresh state. Several streams share
            the packed weights if they are made by one `freeze`. `Stream.run` takes (T, B, I), also
            from a layer with ``batch_first``.

        Raises
        ------
        ValueError
            If the layer is bidirectional, or goes backward in time: its outputs need the whole
            sequence; docs/look_ahead.md shows how to take chunks with some steps of what follows.
            If it is an ensemble: ask a `member`.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> stream = rk.LSTM(3, 5, seed=0).stream()
        >>> stream.step(np.zeros((1, 3), np.float32)).shape  # one step of B rows
        (1, 5)
        >>> stream.run(np.zeros((10, 1, 3), np.float32)).shape  # 10 more, in one call
        (10, 1, 5)
        """
        check_streamable(self)
        batch_size = size("batch_size", batch_size)
        return self.freeze().stream(batch_size)

    def member(self, index: int | slice) -> Self:
        """One member of an ensemble, as a layer alone, or some of them, as a smaller ensemble.

        Parameters
        ----------
        index : int or slice
            From 0 to E - 1; or successive members, at least one.

        Returns
        -------
        recurrent layer
            Of the ensemble's class. Its ``params`` are views: what is written to them is the
            ensemble's, and the other way round.

        Raises
        ------
        ValueError
            If the layer is no ensemble, or has no such members.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> grus = rk.GRU(3, 5, ensemble=4, seed=0)
        >>> x = np.ones((7, 2, 3), np.float32)
        >>> bool((grus.member(2)(x)[0] == grus(x)[0][:, 2]).all())
        True
        """
        if not self._ensemble:
            raise ValueError("member: expected an ensemble, got a layer alone")
        one = copy.copy(self)
        if isinstance(index, slice):
            members = range(self._ensemble)[index]
            if not members or members.step != 1:
                raise ValueError(f"index: expected successive members, at least one, got {index}")
            one._ensemble, one._seed = len(members), None  # no seed draws these alone
        else:
            expected = f"an integer from 0 to {self._ensemble - 1}"
            index = integer("index", index, expected, 0, self._ensemble - 1)
            one._ensemble, members = None, range(index, index + 1)
            if self._seed is not None:
                one._seed = spawned(seed_sequence("seed", self._seed), index)
        one._stack = self._new_stack(one._ensemble or 0)
        one._params = {name: values[index] for name, values in self._checked_params()}
        one._shapes = {name: values.shape for name, values in one._params.items()}
        one._dropout_seeds = [self._dropout_seeds[member] for member in members]
        return one


SHARED = tuple(inspect.signature(_Layer.__init__).parameters)[2:]  # without self and cell


def shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of a class's constructor, those that all layers take, for `_Layer`'s."""
    return {name: given[name] for name in SHARED}
