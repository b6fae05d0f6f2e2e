"""SGD, RMSprop, Adam and AdamW over dicts of arrays. The fused update is in the core."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from operator import add, mul
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .checks import array as checked
from .checks import group_name, integer, number, private_base, received, viewed
from .docstrings import complete
from .layers import ParameterGradients
from .pickles import reduced
from .rows import SparseRows, combined, stored, sums_of_squares
from .schedules import Plateau, _Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

    from .distributed import Communicator

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "Step"]

Array = NDArray[Any]
Params: TypeAlias = Mapping[str, Array]
Penalty: TypeAlias = float | Mapping[str, float]  # of all parameters, or by glob pattern
OneRate: TypeAlias = float | Callable[[int], float]
Rate: TypeAlias = OneRate | Mapping[str, OneRate]  # likewise


class HasParams(Protocol):
    """A layer or a module."""

    @property
    def params(self) -> Params:
        """Its parameters by name."""


Group: TypeAlias = Params | HasParams
# Any: a type checker can't infer a dict of layers of several classes from a union of mappings.
Groups: TypeAlias = HasParams | Sequence[Group] | Mapping[str, Any]

MAPPINGS = (dict, Mapping)  # isinstance recognizes a dict faster than a Mapping
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
LARGEST = float(np.finfo(np.float32).max)
SMALLEST_EPS = float(np.finfo(np.float32).tiny)  # smaller is zero in float32, and 0 / 0 near
SKIPPED_IN_A_ROW = 10  # that a warning is given after
MOST_STEPS = 2**62  # in a state; far enough from the largest int64
# Beyond these limits a step is tried before it is made, because it may overflow. Within them it can
# overflow only if a parameter or a moment is far beyond them already.
LARGE_NORM = 1e15  # of the clipped gradient; float32 holds the square, 1e8 times over
LARGE_NORM_OF_DOUBLES = 1e150  # if there are no float32 parameters
LARGE = 1e3  # of a learning rate or a penalty; none that trains is as large
SMALL_EPS = 1e-20  # float32 holds LARGE_NORM / SMALL_EPS, 1e3 times over


class Measured(Protocol):
    """Gradients that know their norm, as a layer's backward returns them (`Gradients`)."""

    @property
    def params(self) -> Params:
        """dL/dp by name."""

    @property
    def norm(self) -> Any:
        """Their joint L2 norm before `scale`."""

    @property
    def scale(self) -> Any:
        """The factor that they have been scaled by."""

    @property
    def finite(self) -> Any:
        """Whether they were all finite."""


Grads: TypeAlias = Measured | Params
GradsOfGroups: TypeAlias = Measured | Sequence[Grads] | Mapping[str, Any]


class Step(NamedTuple):
    """What a step of an optimizer returns; of an ensemble arrays (E,), one element a member.

    Attributes
    ----------
    norm : float
        The joint L2 norm of all gradients before the clip.
    scale : float
        The factor that the clip applied; 1.0 if none, or if the step was skipped.
    applied : bool
        False if the step was skipped, because a gradient, the norm, or a parameter or moment that
        the step would have written was not finite.
    finite : bool
        False if the step wrote a parameter or a moment that is not finite, because a parameter was
        not finite before, or so large that a penalty on it overflowed.
    """

    norm: Any
    scale: Any
    applied: Any
    finite: Any = True

    def __repr__(self) -> str:
        """All of one step; of an ensemble what the gradients of one show."""
        if not isinstance(self.norm, np.ndarray):
            fields = (f"{name}={value!r}" for name, value in self._asdict().items())
            return f"Step({', '.join(fields)})"
        norms = f"norms {self.norm.min():.6g} to {self.norm.max():.6g}"
        counts = f"{np.count_nonzero(self.applied)} of {self.norm.size} members applied"
        return f"Step({norms}, {counts}, {np.count_nonzero(self.finite)} finite)"


@dataclass
class _Place:
    """Where a parameter is found, and what is expected there."""

    number: int  # among all places
    index: int  # of its group
    key: str  # group and name, as in a state
    names: tuple[str, ...]  # that patterns are compared with
    text: str  # in messages, after "params" or "grads"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass
class _Slot:
    """What is kept for a parameter. A tied one is found at several places."""

    places: list[_Place]
    first: Array | None  # the moments, of its shape and dtype; None: not kept
    second: Array | None
    l1: float
    l2: float
    weight_decay: float

    def key(self, moment: str) -> str:
        """Name of a moment, "first" or "second", in a state."""
        return f"{self.places[0].key}.{moment}"


@private_base
class _Optimizer:
    """What the optimizers have in common: all but the rule."""

    _kind: ClassVar[str]
    _eps = 1.0
    _weight_decay: Penalty = 0.0

    def __init__(
        self,
        params: Groups,
        lr: Rate,
        l1: Penalty,
        l2: Penalty,
        ensemble: int | None,
        first: bool,
        second: bool,
    ) -> None:
        if ensemble is not None:
            ensemble = integer("ensemble", ensemble, "an integer of at least 1", 1, 2**31)
        self._ensemble = ensemble
        counters = () if ensemble is None else (ensemble,)
        self._step = np.zeros(counters, np.int64)  # the core counts, in the call that updates
        self._skipped = np.zeros(counters, np.int64)
        self._skipped_in_a_row = 0
        self._groups, self._dicts = _groups_of(params)
        for group, text in zip(self._groups.values(), self._dicts, strict=True):
            members = getattr(group, "ensemble", ensemble)
            if members != ensemble:
                expected = f"{members}, that of params{text}"
                raise ValueError(f"ensemble: expected {expected}, got {ensemble}")
        dicts = self._params()
        self._places: list[_Place] = []
        for index, (group, text) in enumerate(zip(self._groups, self._dicts, strict=True)):
            _check_dict("params" + text, dicts[index])
            for name, array in dicts[index].items():
                own, shape, number = f"{text}[{name!r}]", array.shape, len(self._places)
                if ensemble is not None and shape[:1] != (ensemble,):
                    expected = f"shape ({ensemble}, ...)"
                    raise ValueError(f"params{own}: expected {expected}, got {shape}")
                names = (f"{group}/{name}", name) if text else (name,)
                key = f"{group}.{name}"
                self._places.append(_Place(number, index, key, names, own, shape, array.dtype))
        if not self._places:
            raise ValueError("params: expected at least one array, got none")
        self._names = [dict.fromkeys(arrays) for arrays in dicts]
        parameters = self._arrays("params", dicts)

        narrow = any(place.dtype == np.float32 for place in self._places)
        most = LARGEST if narrow else math.inf
        self._most = most  # that the parameters' dtypes hold
        _number("eps", self._eps, most=most)
        self._penalties = {
            name: dict(given) if isinstance(given, Mapping) else given
            for name, given in (("l1", l1), ("l2", l2))
        }
        l1_of = _strengths("l1", l1, self._places, most)
        l2_of = _strengths("l2", l2, self._places, most)
        decay_of = _strengths("weight_decay", self._weight_decay, self._places, most)
        self._large_norm = LARGE_NORM if narrow else LARGE_NORM_OF_DOUBLES
        decay = max(map(add, l2_of, decay_of))
        # A decay by more than the parameter itself makes it grow in each step.
        self._large_lr = min(LARGE, 1.0 / decay) if decay else LARGE
        if max([decay, *l1_of]) > LARGE or self._eps < SMALL_EPS:
            self._large_lr = -1.0  # every step is tried

        groups: dict[Any, list[_Place]] = {}
        for place, array in zip(self._places, parameters, strict=True):
            memory = _memory(array) if array.size else place.number  # no memory is never shared
            groups.setdefault(memory, []).append(place)
        self._slots = [
            _Slot(
                places,
                np.zeros(places[0].shape, places[0].dtype) if first else None,
                np.zeros(places[0].shape, places[0].dtype) if second else None,
                _strength_of("l1", l1_of, places),
                _strength_of("l2", l2_of, places),
                _strength_of("weight_decay", decay_of, places),
            )
            for places in groups.values()
        ]
        self.lr = lr
        tied = [places for places in groups.values() if len(places) > 1]
        self._tied_groups = {place.index for places in tied for place in places}
        first_of = {place.number: places[0].number for places in tied for place in places}
        self._firsts = [first_of.get(n, n) for n in range(len(self._places))]
        self._check_memory(parameters, [])

    @property
    def ensemble(self) -> int | None:
        """The number of members, E, if the arrays are those of an ensemble."""
        return self._ensemble

    @property
    def lr(self) -> Any:
        """The learning rate of the next step, at least 0; a dict of numbers if it goes by name.

        May be set between steps, to a number, a schedule, or a dict of these.
        """
        if isinstance(self._lr, dict):
            return {pattern: self._rate(_of("lr", pattern), lr) for pattern, lr in self._lr.items()}
        return self._rate("lr", self._lr)

    @lr.setter
    def lr(self, lr: Rate) -> None:
        if not isinstance(lr, Mapping):
            self._rate("lr", lr)
            self._lr: Any = lr if callable(lr) else float(lr)
            return
        lr = dict(lr)
        for pattern, one in lr.items():
            self._rate(_of("lr", pattern), one)
            if isinstance(one, Plateau):  # its reports are in a state under one name
                expected = "a number or a function of the step alone"
                raise ValueError(f"{_of('lr', pattern)}: expected {expected}, got a Plateau")
        patterns = _patterns("lr", lr, self._places)
        for place, found in zip(self._places, patterns, strict=True):
            if found is None:
                expected = "a pattern for each parameter ('*' at the end matches all others)"
                raise ValueError(f"lr: expected {expected}, got none for {place.names[0]!r}")
        of_places = [lr[pattern or ""] for pattern in patterns]
        for slot in self._slots:
            _strength_of("lr", of_places, slot.places)
        first = [patterns[slot.places[0].number] for slot in self._slots]
        self._lr, self._patterns = lr, first

    def _rate(self, name: str, lr: Any) -> float:
        """A learning rate, a number or a function of the step, as it is at the next step."""
        if callable(lr) and not isinstance(lr, type):
            return _number(name, lr(self._calls()), most=self._most)
        return _number(name, lr, most=self._most, kind="a number or a function of the step")

    @property
    def schedule(self) -> Any:
        """The schedule that the learning rate of all parameters comes from, if any."""
        return self._lr if callable(self._lr) else None

    @property
    def skipped(self) -> Any:
        """How many steps were skipped, for the reasons that `Step.applied` lists."""
        return int(self._skipped) if self.ensemble is None else self._skipped.copy()

    def _calls(self) -> int:
        """How many steps have been, applied or skipped: as many for each member."""
        counters = (self._step, self._skipped)
        steps, skipped = (counter.reshape(-1).tolist() for counter in counters)
        return int(max(map(add, steps, skipped)))

    def _params(self) -> list[Params]:
        """The groups' dicts as they are now."""
        return list(map(_params_of, self._groups.values()))

    def step(
        self,
        grads: GradsOfGroups | Iterable[GradsOfGroups],
        max_norm: float | None = None,
        *,
        comm: Communicator | None = None,
    ) -> Step:
        """Clip by the joint norm, add the penalties and update the parameters, in one pass.

        Parameters
        ----------
        grads : Gradients or dict of str to ndarray; a list, or a dict by group, of these
            dL/dp for each parameter, under its name, of its shape and dtype, CPU tensors (DLPack),
            buffers and `SparseRows` included: a list in the order of the list of parameters, a dict
            with the names of the groups, of which those without parameters may be left out. Masked
            arrays are refused. `Gradients` bring their norm along, as their own clip left it, and
            must come from a backward with the group's own parameters. The arrays of a dict are
            measured in a pass of their own, and so are those of `Gradients` that have a writable or
            a tied parameter's array among them.
        max_norm : float, optional
            All gradients are scaled by ``min(1, max_norm / (norm + 1e-6))``, where norm is the L2
            norm of all of them together [1]_. The penalties are not scaled.
        comm : distributed.Communicator, optional
            Whose ranks step together. `grads` are then several: of each of this rank's shards, in
            order, what `grads` are without; an iterator does, which computes them one by one. The
            step takes the sum over the shards of all ranks, and does the same on each rank.
            Gradients of a backward with ``Clip(value=, max_norm=)`` are refused. `SparseRows` have
            the rows of all shards. At the first step the ranks compare their parameters and
            moments, at each step the batch, `lr` and `max_norm`; all raise ValueError if one
            differs.

        Returns
        -------
        Step
            ``(norm, scale, applied, finite)``. If a gradient, the norm, or a parameter or moment
            after the step is not finite, the step is skipped and counted in `skipped`; parameters
            and moments stay as they are. In an ensemble all of this is each member's own.

        Warns
        -----
        RuntimeWarning
            At the tenth step in a row that is skipped (of an ensemble, whose members skip any).

        Raises
        ------
        TypeError, ValueError
            If a gradient, a parameter (each is looked up anew) or `max_norm` is not what it must
            be, if `Gradients` are those of other parameters, or if a gradient or another parameter
            overlaps a parameter; the message names it. Nothing has been written then.

        Notes
        -----
        Ctrl-C does not cut a step in two: it takes effect before or after the update.

        References
        ----------
        .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent
           neural networks", 2013, arXiv:1211.5063, algorithm 1; 1e-6 is PyTorch's.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> params = {"w": np.zeros(2)}
        >>> done = rk.SGD(params, lr=1.0).step({"w": np.array([3.0, 4.0])}, max_norm=2.5)
        >>> done.norm, round(done.scale, 6), done.applied
        (5.0, 0.5, True)
        >>> params["w"].round(3)
        array([-1.5, -2. ])

        Of a large table, the rows that were used:

        >>> layers = {"emb": rk.Embedding(200_000, 8, sparse=True), "out": rk.Linear(8, 2)}
        >>> opt = rk.Adam(layers, lr={"emb/*": 1e-2, "*": 1e-3})
        >>> e, emb_tape = layers["emb"].forward(np.array([[3, 7, 3]]))
        >>> y, out_tape = layers["out"].forward(e)
        >>> out = layers["out"].backward(out_tape, np.ones_like(y))
        >>> emb = layers["emb"].backward(emb_tape, out.x)
        >>> emb.params["weight"].ids.tolist(), opt.step({"emb": emb, "out": out}).applied
        ([3, 7], True)
        """
        if max_norm is not None:
            max_norm = _number("max_norm", max_norm, above=True)
        if comm is not None and not hasattr(comm, "_joint"):
            expected = "a Communicator of rnnkern.distributed or None"
            raise TypeError(f"comm: expected {expected}, got {type(comm).__name__}")
        lr = self.lr
        rates = [lr[pattern] for pattern in self._patterns] if isinstance(lr, dict) else []
        rates = rates or [lr] * len(self._slots)
        if comm is not None:
            grads = comm._joint(self, grads, {"lr": lr, "max_norm": max_norm})
        given = self._of_groups(grads)
        measured = [isinstance(g, MAPPINGS) for g in given]  # anew
        dicts = self._params()
        gradients = self._gradients(given, dicts)
        told = [index for index, g in enumerate(given) if not measured[index]]
        for place, gradient in zip(self._places, gradients, strict=True):
            if stored(gradient).flags.writeable or place.index in self._tied_groups:
                measured[place.index] = True
        parameters = self._arrays("params", dicts)
        self._check_memory(parameters, list(map(stored, gradients)))
        if self._tied_groups:
            parameters = [parameters[slot.places[0].number] for slot in self._slots]
            gradients = [_sum([gradients[p.number] for p in slot.places]) for slot in self._slots]

        # Each source of a norm, the gradients' own or an array measured, has one part a member.
        parts: list[list[float]] = []
        finite: list[list[float]] = []
        count = self._ensemble or 1
        for index in told:
            norm, fine = self._told(f"grads{self._dicts[index]}", given[index])
            finite += fine
            if not measured[index]:
                parts += norm
        for slot, gradient in zip(self._slots, gradients, strict=True):
            if measured[slot.places[0].index]:
                parts.append(list(map(math.sqrt, sums_of_squares(gradient, count))))
        norms = list(map(math.hypot, *parts))
        finite.append([math.isfinite(norm) for norm in norms])
        applied = [all(own) for own in zip(*finite, strict=True)]
        scales = [1.0] * len(norms)
        if max_norm is not None:
            scales = [
                min(1.0, max_norm / (norm + 1e-6)) if ok else 1.0
                for ok, norm in zip(applied, norms, strict=True)
            ]

        steps = self._step.reshape(-1).tolist()
        corrections = {step: self._corrections(step + 1) for step in set(steps)}
        members = [
            (member, scales[member], *corrections[step])
            for member, step in enumerate(steps)
            if applied[member]
        ]
        arrays = [
            (
                *(parameter, stored(g), g.ids if isinstance(g, SparseRows) else None),
                *(slot.first, slot.second, rate, slot.l1, slot.l2, slot.weight_decay),
            )
            for slot, rate, parameter, g in zip(
                self._slots, rates, parameters, gradients, strict=True
            )
        ]
        update: Callable[..., list[bool]] = partial(
            _core.optimizer_step, self._kind, arrays, self._step, **self._rule()
        )
        large = self._large_norm if max(rates) <= self._large_lr else -1.0
        if not max(map(mul, norms, scales)) <= large:  # there may be a nan
            doubtful = [member for member in members if norms[member[0]] * member[1] > large]
            fits = update(doubtful, dry=True)
            applied = [a and b for a, b in zip(applied, fits, strict=True)]
            scales = [scale if ok else 1.0 for ok, scale in zip(applied, scales, strict=True)]
            members = [member for member in members if applied[member[0]]]
        wrote = update(members, dry=False)
        self._count_skipped(applied)
        if self._ensemble is None:
            return Step(norms[0], scales[0], applied[0], wrote[0])
        return Step(np.array(norms), np.array(scales), np.array(applied), np.array(wrote))

    def _gradients(self, given: Sequence[Any], dicts: Sequence[Params]) -> list[Any]:
        """The gradients at each place, checked."""
        is_dict = [isinstance(g, MAPPINGS) for g in given]
        arrays = [
            g if own else getattr(g, "params", g) for own, g in zip(is_dict, given, strict=True)
        ]
        gradients = self._arrays("grads", arrays)
        for index, own in enumerate(is_dict):
            if not own:
                self._check_source(index, given[index], dicts)
        return gradients

    def _count_skipped(self, applied: list[bool]) -> None:
        if all(applied):
            self._skipped_in_a_row = 0
            return
        self._skipped += 1 if self._ensemble is None else ~np.array(applied)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == SKIPPED_IN_A_ROW:
            of = "" if self._ensemble is None else " of members"
            warnings.warn(
                f"{SKIPPED_IN_A_ROW} steps{of} in a row were skipped because a gradient, a "
                "parameter or a moment was not finite; the parameters stay as they are",
                RuntimeWarning,
                stacklevel=3,  # the call of step
            )

    def _of_groups(self, grads: Any) -> list[Any]:
        """What is given for each group, in the groups' order."""
        if self._is_named:
            if not isinstance(grads, MAPPINGS):
                expected = f"a dict with the groups {list(self._groups)}"
                raise TypeError(f"grads: expected {expected}, got {type(grads).__name__}")
            wanted = [g for g, names in zip(self._groups, self._names, strict=True) if names]
            if not set(wanted) <= grads.keys() <= self._groups.keys():
                raise ValueError(f"grads: expected the groups {wanted}, got {list(grads)}")
            return [grads.get(group, {}) for group in self._groups]
        given = list(grads) if isinstance(grads, (list, tuple)) else [grads]
        if len(given) != len(self._groups):
            expected = f"{len(self._groups)}, as many as groups of params"
            raise ValueError(f"grads: expected {expected}, got {len(given)}")
        return given

    @property
    def _is_named(self) -> bool:
        return self._dicts[0].startswith("['")

    def _check_source(self, index: int, g: Any, dicts: Sequence[Params]) -> None:
        """Raise ValueError if gradients come from a backward with another group's parameters."""
        if not isinstance(g, ParameterGradients) or g._is_of(dicts[index]):
            return
        texts = zip(self._dicts, dicts, strict=True)
        found = [f"params{text}" for text, arrays in texts if g._is_of(arrays)]
        other = found[0] if found else "other parameters (hand over their .params if they fit)"
        own = self._dicts[index]
        raise ValueError(f"grads{own}: expected gradients of params{own}, got those of {other}")

    def _check_memory(self, parameters: list[Array], gradients: list[Array]) -> None:
        """Raise ValueError unless tied parameters are one array and nothing else overlaps one."""
        pair = _core.overlap(parameters, self._firsts, gradients)
        if pair is None:
            return
        one, other = pair
        count = len(parameters)
        name = f"{'params' if other < count else 'grads'}{self._places[other % count].text}"
        first = f"params{self._places[one].text}"
        if other < count and self._firsts[one] == self._firsts[other]:
            raise ValueError(f"{name}: expected the same array as {first}, got another")
        raise ValueError(f"{name}: expected memory of its own, got an array that overlaps {first}")

    def _told(self, name: str, g: Any) -> tuple[list[list[float]], list[list[float]]]:
        """The norm that gradients bring, and whether they are finite, as lists over members."""
        try:
            with np.errstate(all="ignore"):  # the product may underflow, and the host trap on it
                norm, finite = _floats(g.norm * g.scale), _floats(g.finite)
        except (AttributeError, TypeError, ValueError) as error:
            expected = "a dict of arrays, or gradients with the numbers norm, scale and finite"
            raise TypeError(f"{name}: expected {expected}, got {type(g).__name__}") from error
        count = self._ensemble
        if count is None:
            return [[own] for own in norm], [[own] for own in finite]
        if not {len(norm), len(finite)} <= {1, count}:
            expected = f"a norm, a scale and a finite of one or of {count} members"
            raise ValueError(f"{name}: expected {expected}, got {len(norm)} and {len(finite)}")
        # One may stand for all members.
        return [norm * (count // len(norm))], [finite * (count // len(finite))]

    def state_dict(self) -> dict[str, Array]:
        """Return copies of what steps have changed, besides the parameters.

        Returns
        -------
        dict of str to ndarray
            The counters ``adam.step`` and ``adam.skipped``, which name the rule (int64, shape (),
            of an ensemble (E,)), and the moments, under names such as ``enc.weight_ih_l0.first``:
            the group's name, the parameter's, and ``first`` (velocity or first moment) or
            ``second`` (second moment). The groups of a list are ``0``, ``1`` and so on, a single
            one is ``0``. A tied parameter's moments are under its first name. The settings of a
            schedule are under its name, such as ``adam.lr.cosine``, and what a `Plateau` has been
            told under ``adam.lr.plateau.reports``; a plain function and a dict of rates have
            nothing here, and there are no other hyper-parameters.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> list(rk.Adam({"w": np.zeros(2)}).state_dict())
        ['adam.step', 'adam.skipped', '0.w.first', '0.w.second']

        A file holds all that a run needs to go on:

        >>> import tempfile
        >>> from rnnkern import files
        >>> layers = {"enc": rk.GRU(3, 5, seed=0), "out": rk.Linear(5, 2, seed=1)}
        >>> opt = rk.Adam(layers)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files.save(f"{folder}/opt.safetensors", opt)
        ...     rk.Adam(layers).load_state_dict(files.load(f"{folder}/opt.safetensors"))
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from a state: the same steps then give the same bits.

        Parameters
        ----------
        state : dict of str to ndarray
            From `state_dict`, of an optimizer of the same rule over groups and parameters of the
            same names, shapes and dtypes, with the same schedule if any. To go on with another
            schedule, set `lr` afterwards.

        Raises
        ------
        TypeError, ValueError
            If the rule, a schedule's setting, a name, a dtype or a shape is not this optimizer's, a
            moment is not finite, or a second moment or a counter is negative; the message names it.
            Nothing has been written then.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> params = {"w": np.zeros(2)}
        >>> opt, other = rk.Adam(params), rk.Adam(params)
        >>> _ = opt.step({"w": np.ones(2)})
        >>> other.load_state_dict(opt.state_dict())
        >>> other.state_dict()["adam.step"]
        array(1)
        """
        own = self._state()
        if isinstance(state, MAPPINGS):
            rules = [cls.__name__ for cls in RULES if f"{cls._kind}.step" in state]
            if rules and rules != [type(self).__name__]:
                raise ValueError(
                    f"state: expected one of {type(self).__name__}, got one of {rules[0]}"
                )
        _check_names("state", state, own)
        new, schedule = {}, self._lr if isinstance(self._lr, _Schedule) else None
        for name, kept in own.items():
            text, given = f"state[{name!r}]", state[name]
            if (found := viewed(text, given)) is not None:
                given = found.view(np.ndarray)  # whose shape and dtype no one else can change
            new[name] = array = np.array(checked(text, given, kept.dtype, kept.shape), order="C")
            if schedule is not None and name.startswith(self._of_schedule):
                schedule._check(name.removeprefix(self._of_schedule), text, array)
                continue
            if name in self._counters:
                expected, fits = "counters from 0 to 2**62", (array >= 0) & (array <= MOST_STEPS)
            elif name.endswith(".second"):
                expected, fits = "finite numbers of at least 0", np.isfinite(array) & (array >= 0)
            else:
                expected, fits = "finite numbers", np.isfinite(array)
            if np.count_nonzero(fits) < fits.size:  # all() is a SystemError without memory
                raise ValueError(f"{text}: expected {expected}, got {array[~fits][0]}")
        slots = [
            replace(slot, first=new.get(slot.key("first")), second=new.get(slot.key("second")))
            for slot in self._slots
        ]
        # Signals are not served between plain assignments: all of it changes, or nothing.
        step, skipped = self._counters
        self._slots, self._step, self._skipped = slots, new[step], new[skipped]
        if schedule is not None:
            schedule._resume({n.removeprefix(self._of_schedule): a for n, a in new.items()})

    def __repr__(self) -> str:
        counts = [f"{len(names)} arrays" for names in self._names]
        params = counts[0]
        if self._is_named:
            of = zip(self._groups, counts, strict=True)
            params = "{" + ", ".join(f"{group!r}: {count}" for group, count in of) + "}"
        elif self._dicts[0]:
            params = f"[{', '.join(counts)}]"
        options: dict[str, Any] = {"lr": self._lr} | self._options()
        options |= {name: given for name, given in self._penalties.items() if given}
        options |= {"ensemble": self._ensemble} if self._ensemble else {}
        shown = "".join(f", {name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({params}{shown})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, vars(self).copy())

    def __copy__(self) -> Self:
        """An optimizer of the same parameters with moments, counters and schedule of its own."""
        one = object.__new__(type(self))
        vars(one).update(vars(self))
        one._step, one._skipped = self._step.copy(), self._skipped.copy()
        one._lr = copy.copy(self._lr)  # it may count
        one._slots = [
            replace(
                slot,
                first=None if slot.first is None else slot.first.copy(),
                second=None if slot.second is None else slot.second.copy(),
            )
            for slot in self._slots
        ]
        return one

    def _options(self) -> dict[str, Any]:
        """What `repr` shows besides the learning rate and the penalties."""
        raise NotImplementedError

    def _rule(self) -> dict[str, Any]:
        """What the core wants to know of all steps, besides the learning rate."""
        raise NotImplementedError

    def _corrections(self, step: int) -> tuple[float, float]:
        """What the moments are divided by at a step, counted from 1."""
        return 1.0, 1.0

    def _state(self) -> dict[str, Array]:
        """The counters, and the moments themselves."""
        state = dict(zip(self._counters, (self._step, self._skipped), strict=True))
        state |= self._schedule_state()
        for slot in self._slots:
            for moment, array in (("first", slot.first), ("second", slot.second)):
                if array is not None:
                    state[slot.key(moment)] = array
        return state

    def _schedule_state(self) -> dict[str, Array]:
        own = self._lr._state() if isinstance(self._lr, _Schedule) else {}
        return {self._of_schedule + name: array for name, array in own.items()}

    @property
    def _of_schedule(self) -> str:
        return f"{self._kind}.lr."

    @property
    def _counters(self) -> tuple[str, str]:
        return f"{self._kind}.step", f"{self._kind}.skipped"

    def _arrays(self, what: str, dicts: Sequence[Params]) -> list[Any]:
        """The arrays of `dicts`, which are "params" or "grads": checked, place by place.

        Of gradients also `SparseRows`.
        """
        for text, arrays, names in zip(self._dicts, dicts, self._names, strict=True):
            if not (isinstance(arrays, MAPPINGS) and arrays.keys() == names.keys()):
                _check_names(what + text, arrays, names)  # raises
        found = [dicts[index][name] for index, names in enumerate(self._names) for name in names]
        for place, array in zip(self._places, found, strict=True):
            plain = type(array) is np.ndarray
            if not (plain and array.dtype == place.dtype and array.shape == place.shape):
                check = _checked_rows if isinstance(array, SparseRows) else checked
                found[place.number] = check(what + place.text, array, place.dtype, place.shape)
            if what == "grads":
                continue
            if not isinstance(array, np.ndarray):  # a view of a tensor may be read-only
                name = f"params{place.text}"
                got = received(name, array, found[place.number], place.dtype, writable=True)
                raise TypeError(f"{name}: expected a NumPy array, got {got}")
            if not array.flags.carray:
                got = "one of another layout" if array.flags.writeable else "a read-only one"
                expected = "a writable, C-contiguous, aligned array"
                raise ValueError(f"params{place.text}: expected {expected}, got {got}")
        return found


class SGD(_Optimizer):
    """Stochastic gradient descent, with momentum [1]_ or Nesterov's [2]_, in PyTorch's form.

    ``v = momentum v + g; p = p - lr v``; with `nesterov` ``p = p - lr (g + momentum v)``.
    The gradient g is the clipped one, ``+ l1 sign(p) + l2 p``.

    Parameters
    ----------
    params : layer or dict of str to ndarray; a dict by group, or a list, of these
        The arrays to update in place: a layer's ``params``, or writable C-contiguous arrays, each
        float32 or float64. Each step looks them up by name, so an array may be replaced by another
        one with the same shape and dtype. For several layers, ``{"enc": enc, "dec": dec}`` creates
        named groups, and `step` takes a dict with the same names; a list creates the groups "0",
        "1" and so on. Modules without parameters are allowed. The same array may occur several
        times (see Notes); arrays that overlap in any other way are refused.
    lr : float, callable, or dict of str to these
        The learning rate, at least 0; see also the attribute. Or a schedule, such as
        ``rk.schedules.Cosine(1e-3, steps=1000)``, or any function of the step: the number of
        previous calls of `step`, including skipped ones (in an ensemble, the same for each
        member). For all parameters, or by name like `l1` and `l2`, where a pattern must match each
        parameter: ``{"emb/*": 1e-2, "*": 1e-3}``. A dict must not contain a `Plateau`.
    momentum : float
        The momentum, from 0 to below 1.
    nesterov : bool
        Whether to use Nesterov's momentum; needs a `momentum` above 0.
    l1, l2 : float or dict of str to float
        Strengths, at least 0, of the penalties ``l1 sum |p|`` and ``l2/2 sum p^2`` on the loss;
        for all parameters, or by name: ``{"weight_*": 1e-4}``, or ``{"enc/weight_*": 1e-4}`` in one
        group. Keys are patterns of `fnmatch` for the name, or for group and name. The first pattern
        that matches is used; parameters that match no pattern have no penalty.
    ensemble : int, optional
        E: each array holds the parameters of E members, (E, ...). Each member is updated
        separately, with its own joint norm, clip, skipped steps and count of steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or a pattern matches no name; the message says which.

    Notes
    -----
    An array that occurs several times when the optimizer is made is a tied parameter. Each step
    adds up its gradients, in order, before it computes the norm, and updates the array once. It
    must remain one array, and needs the same `lr`, `l1` and `l2` (and `AdamW.weight_decay`) at each
    place. It has one set of moments.

    If a gradient is `SparseRows`, as from ``Embedding(..., sparse=True)``, a step updates only
    these rows. All other rows of the parameter and of its moments do not change: they are not
    decayed or penalized, and velocities do not move them. So a row is penalized as often as it is
    used. Adam divides by ``1 - beta^t`` with the t of all steps. Norm, clip and skipped steps are
    as with zeros at all other rows. PyTorch's SparseAdam does the same; its
    other optimizers refuse such gradients, or decay the moments of all rows.

    An optimizer copies and pickles. ``copy.copy`` shares the parameters and has its own moments;
    ``copy.deepcopy((layer, optimizer))`` copies both and keeps them together.

    References
    ----------
    .. [1] B. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR
       Computational Mathematics and Mathematical Physics 4(5), 1964.
    .. [2] I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
       momentum in deep learning", ICML 2013.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> params = {"w": np.ones(3), "b": np.zeros(1)}
    >>> opt = rk.SGD(params, lr=0.5, l2={"w": 0.1})
    >>> opt.step({"w": np.ones(3), "b": np.ones(1)}).applied
    True
    >>> params["w"], params["b"]
    (array([0.45, 0.45, 0.45]), array([-0.5]))

    A table that is both the first and the last layer of a model:

    >>> emb, out = rk.Embedding(9, 5, seed=0), rk.Linear(5, 9, bias=False)
    >>> out.params["weight"] = emb.params["weight"]
    >>> opt = rk.SGD({"emb": emb, "out": out}, lr=0.5, momentum=0.9)
    >>> before, ones = emb.params["weight"].copy(), {"weight": np.ones((9, 5), np.float32)}
    >>> round(opt.step({"emb": ones, "out": ones}).norm, 6)  # of 45 twos
    13.416408
    >>> np.allclose(out.params["weight"], before - 0.5 * 2)
    True
    >>> list(opt.state_dict())
    ['sgd.step', 'sgd.skipped', 'emb.weight.first']
    """

    _kind = "sgd"

    def __init__(
        self,
        params: Groups,
        lr: Rate,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        l1: Penalty = 0.0,
        l2: Penalty = 0.0,
        ensemble: int | None = None,
    ) -> None:
        self._momentum = _number("momentum", momentum, below=1.0)
        if not isinstance(nesterov, (bool, np.bool_)):
            raise TypeError(f"nesterov: expected True or False, got {type(nesterov).__name__}")
        if nesterov and not self._momentum:
            raise ValueError("nesterov: expected False without momentum, got True")
        self._nesterov = bool(nesterov)
        super().__init__(params, lr, l1, l2, ensemble, bool(self._momentum), False)

    def _options(self) -> dict[str, Any]:
        return {"momentum": self._momentum, "nesterov": self._nesterov}

    def _rule(self) -> dict[str, Any]:
        return self._options()


class RMSprop(_Optimizer):
    """RMSprop [1]_, in PyTorch's form: eps is outside the root.

    ``s = alpha s + (1 - alpha) g^2; v = momentum v + g / (sqrt(s) + eps); p = p - lr v``.

    Parameters
    ----------
    params, lr, momentum, l1, l2, ensemble
        As in `SGD`.
    alpha : float
        Decay of the mean of squares, from 0 to below 1.
    eps : float
        What keeps the divisor from zero, at least 1.2e-38.

    Raises
    ------
    TypeError, ValueError
        As in `SGD`.

    References
    ----------
    .. [1] T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera, Neural Networks for Machine
       Learning, 2012.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> params = {"w": np.ones(2)}
    >>> rk.RMSprop(params, lr=0.1, alpha=0.75).step({"w": np.array([5.0, -5.0])}).applied
    True
    >>> params["w"].round(6)
    array([0.8, 1.2])
    """

    _kind = "rmsprop"

    def __init__(
        self,
        params: Groups,
        lr: Rate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        *,
        l1: Penalty = 0.0,
        l2: Penalty = 0.0,
        ensemble: int | None = None,
    ) -> None:
        self._alpha = _number("alpha", alpha, below=1.0)
        self._eps = _number("eps", eps, least=SMALLEST_EPS)
        self._momentum = _number("momentum", momentum, below=1.0)
        super().__init__(params, lr, l1, l2, ensemble, bool(self._momentum), True)

    def _options(self) -> dict[str, Any]:
        return {"alpha": self._alpha, "eps": self._eps, "momentum": self._momentum}

    def _rule(self) -> dict[str, Any]:
        return {"momentum": self._momentum, "beta2": self._alpha, "eps": self._eps}


class Adam(_Optimizer):
    """Adam [1]_.

    ``m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;``
    ``p = p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)`` at step t, from 1.

    Parameters
    ----------
    params, lr, ensemble
        As in `SGD`.
    l1, l2
        As in `SGD`. `l2` is part of the gradient, as PyTorch's ``weight_decay`` is in its Adam;
        see `AdamW` for the other kind.
    betas : tuple of float
        Decays of the two moments, each from 0 to below 1.
    eps : float
        What keeps the divisor from zero, at least 1.2e-38.

    Raises
    ------
    TypeError, ValueError
        As in `SGD`.

    References
    ----------
    .. [1] D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2014,
       arXiv:1412.6980, algorithm 1.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> params = {"w": np.ones(2)}
    >>> opt = rk.Adam(params, lr=0.1)
    >>> opt.step({"w": np.array([5.0, -0.5])}).applied
    True
    >>> params["w"].round(6)
    array([0.9, 1.1])
    """

    _kind = "adam"

    def __init__(
        self,
        params: Groups,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        l1: Penalty = 0.0,
        l2: Penalty = 0.0,
        ensemble: int | None = None,
    ) -> None:
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
            raise TypeError(f"betas: expected a pair of numbers, got {betas!r}")
        self._betas = tuple(_number(f"betas[{i}]", b, below=1.0) for i, b in enumerate(betas))
        self._eps = _number("eps", eps, least=SMALLEST_EPS)
        super().__init__(params, lr, l1, l2, ensemble, True, True)

    def _options(self) -> dict[str, Any]:
        return {"betas": self._betas, "eps": self._eps}

    def _rule(self) -> dict[str, Any]:
        beta1, beta2 = self._betas
        return {"beta1": beta1, "beta2": beta2, "eps": self._eps}

    def _corrections(self, step: int) -> tuple[float, float]:
        beta1, beta2 = self._betas
        return 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_, in PyTorch's form.

    Each parameter also loses ``lr * weight_decay`` of itself, past the moments.

    Parameters
    ----------
    params, lr, betas, eps, l1, l2, ensemble
        As in `Adam`.
    weight_decay : float or dict of str to float
        At least 0; for all parameters, or by name, as `l1` and `l2` of `SGD`.

    Raises
    ------
    TypeError, ValueError
        As in `SGD`.

    References
    ----------
    .. [1] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019,
       arXiv:1711.05101, algorithm 2.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> params = {"w": np.ones(2)}
    >>> rk.AdamW(params, lr=0.5, weight_decay=0.5).step({"w": np.zeros(2)}).applied
    True
    >>> params["w"]
    array([0.75, 0.75])

    Of the weights alone:

    >>> gru = rk.GRU(3, 5)
    >>> opt = rk.AdamW(gru, weight_decay={"weight_*": 0.01})
    """

    _kind = "adamw"

    def __init__(
        self,
        params: Groups,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Penalty = 1e-2,
        *,
        l1: Penalty = 0.0,
        l2: Penalty = 0.0,
        ensemble: int | None = None,
    ) -> None:
        given = weight_decay
        self._weight_decay = dict(given) if isinstance(given, Mapping) else given
        super().__init__(params, lr, betas, eps, l1=l1, l2=l2, ensemble=ensemble)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"weight_decay": self._weight_decay}


def _memory(array: Array) -> tuple[Any, ...]:
    """What C-contiguous arrays share if they are the same array."""
    return array.__array_interface__["data"][0], array.shape, array.dtype


def _sum(gradients: list[Any]) -> Any:
    """The gradient of a parameter from those of its places, one after the other."""
    total, *others = gradients
    for gradient in others:
        with np.errstate(over="ignore", invalid="ignore"):  # the step finds what is not finite
            total = combined(np.add, total, gradient)
    return total


def _floats(value: Any) -> list[float]:
    if isinstance(value, np.ndarray) and value.dtype.kind in "bf":
        values: list[float] = value.reshape(-1).tolist()
        return values
    return [math.hypot(value)]  # a norm or a flag; unlike float(), not of a str


def _groups_of(params: Any) -> tuple[dict[str, Any], list[str]]:
    """The groups by name, and each one's place in messages: "" of one alone."""
    if isinstance(params, (list, tuple)):
        if not params:
            raise ValueError("params: expected at least one layer or dict of arrays, got none")
        return {str(index): group for index, group in enumerate(params)}, [
            f"[{index}]" for index in range(len(params))
        ]
    if not isinstance(params, MAPPINGS):
        return {"0": params}, [""]
    nested = {key: _is_group(value) for key, value in params.items()}
    if not any(nested.values()):
        return {"0": params}, [""]
    if not all(nested.values()):
        array = next(key for key, is_group in nested.items() if not is_group)
        group = next(key for key, is_group in nested.items() if is_group)
        got = f"{_kind_of(params[array])} beside params[{group!r}], {_kind_of(params[group])}"
        raise TypeError(f"params[{array!r}]: expected a layer or a dict of arrays, got {got}")
    for name in params:
        group_name("params", name)
    return dict(params), [f"[{name!r}]" for name in params]


def _is_group(value: Any) -> bool:
    return isinstance(value, MAPPINGS) or hasattr(value, "params") or _is_module(value)


def _is_module(value: Any) -> bool:
    return hasattr(value, "forward") and hasattr(value, "backward")


def _params_of(group: Any) -> Any:
    """Parameters by name; of a module without any, such as dropout, an empty dict."""
    if isinstance(group, MAPPINGS):
        return group
    return getattr(group, "params", {} if _is_module(group) else group)


def _checked_rows(
    name: str, rows: SparseRows, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> SparseRows:
    """`rows`, if they are of a table of this dtype and shape."""
    if rows.dtype != dtype:
        raise TypeError(f"{name}: expected an array of dtype {dtype}, got rows of {rows.dtype}")
    if rows.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {rows.shape}")
    return rows


def _number(
    name: str,
    value: Any,
    *,
    least: float = 0.0,
    above: bool = False,
    below: float = math.inf,
    most: float = math.inf,
    kind: str = "a number",
) -> float:
    """A finite number of at least `least`, or `above` it, below `below` and of at most `most`."""

    def fits(x: float) -> bool:
        return (least < x if above else least <= x) and x < below and x <= most

    if type(value) is float and fits(value):
        return value  # without the words for an error
    bounds = f"a finite number {'>' if above else '>='} {least:.3g}"
    bounds += f" and < {below:.3g}" if below < math.inf else ""
    bounds += f" and <= {most:.3g}" if most < math.inf else ""
    return number(name, value, bounds, fits, kind)


def _strengths(name: str, penalty: Penalty, places: list[_Place], most: float) -> list[float]:
    """The strength of a penalty at each place."""
    if not isinstance(penalty, Mapping):
        return [_number(name, penalty, most=most)] * len(places)
    by_pattern = {
        pattern: _number(_of(name, pattern), strength, most=most)
        for pattern, strength in penalty.items()
    }
    patterns = _patterns(name, by_pattern, places)
    return [0.0 if pattern is None else by_pattern[pattern] for pattern in patterns]


def _of(name: str, pattern: Any) -> str:
    """What messages call the value of a pattern."""
    return f"{name}[{pattern!r}]"


def _patterns(name: str, by_pattern: Mapping[str, Any], places: list[_Place]) -> list[str | None]:
    """The pattern that decides at each place, the first that matches; None: there is none."""
    for pattern in by_pattern:
        expected = f"patterns of the names {[place.names[0] for place in places]}"
        if not isinstance(pattern, str):
            raise TypeError(f"{name}: expected {expected}, got {pattern!r}")
        if not any(fnmatchcase(n, pattern) for place in places for n in place.names):
            raise ValueError(f"{name}: expected {expected}, got {pattern!r}")

    found, unused = [], dict.fromkeys(by_pattern)
    for place in places:
        first = next((p for p in by_pattern if any(fnmatchcase(n, p) for n in place.names)), None)
        if first is not None:
            unused.pop(first, None)
        found.append(first)
    for pattern in unused:
        expected = "patterns that decide for a parameter, the first that fits"
        raise ValueError(f"{name}: expected {expected}, got {pattern!r} behind wider ones")
    return found


def _strength_of(name: str, strengths: list[Any], places: list[_Place]) -> Any:
    """The strength of a penalty for a parameter, which is the same at all of its places."""
    first, *others = places
    for place in others:
        if (a := strengths[first.number]) != (b := strengths[place.number]):
            tied = f"the tied params{first.text} and params{place.text}"
            raise ValueError(f"{name}: expected one strength for {tied}, got {a} and {b}")
    return strengths[first.number]


def _check_dict(name: str, arrays: Any) -> None:
    if not isinstance(arrays, Mapping):
        expected = "a layer or a dict of arrays"
        raise TypeError(f"{name}: expected {expected}, got {type(arrays).__name__}")
    for key, array in arrays.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected names, got the key {key!r}")
        place = f"{name}[{key!r}]"
        found = viewed(place, array)
        if not isinstance(array, np.ndarray) or array.dtype not in DTYPES:
            own = DTYPES[0] if found is None else found.dtype.newbyteorder("=")
            wanted = own if own in DTYPES else DTYPES[0]
            got = received(place, array, found, wanted, writable=True)
            raise TypeError(f"{place}: expected an array of dtype float32 or float64, got {got}")


def _check_names(name: str, arrays: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(arrays, MAPPINGS):
        raise TypeError(f"{name}: expected a dict of arrays, got {type(arrays).__name__}")
    if arrays.keys() != expected.keys():
        raise ValueError(f"{name}: expected the names {list(expected)}, got {list(arrays)}")


def _kind_of(value: Any) -> str:
    if isinstance(value, np.generic):
        return "a scalar"
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


complete(SGD, RMSprop, Adam, AdamW)

RULES: tuple[type[_Optimizer], ...] = (SGD, RMSprop, Adam, AdamW)
