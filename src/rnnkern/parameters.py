"""What layers and modules have in common: named parameters, which load, copy and pickle."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import Seed, array, private_base, seed_sequence, unmasked_all
from .pickles import reduced

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Parametrized", "as_call"]

Array = NDArray[Any]


@private_base
class Parametrized:
    """An object with parameters by name, or with none.

    The constructor of a subclass sets the three attributes.
    """

    _params: dict[str, Array]
    _shapes: dict[str, tuple[int, ...]]  # of the parameters, by name
    _dtype: np.dtype[Any]
    _seed: Any  # of a class that takes one

    def _seeded(self, seed: Seed, params: Any = None) -> np.random.SeedSequence:
        """The seed that draws, which `params` replace."""
        if seed is not None and params is not None:
            raise ValueError(f"seed: expected None with params, got {seed!r}")
        own = seed_sequence("seed", seed)
        self._seed = own  # as given: None, an integer or a SeedSequence of our own
        if not isinstance(seed, np.random.SeedSequence):
            self._seed = None if seed is None else own.entropy
        return own

    def _arguments(self) -> Iterator[tuple[str, Any, bool]]:
        """Name and value of each argument that is needed or that is not its default's.

        The last item says whether it is needed. With `params` they make the same object.
        """
        owner = next(cls for cls in type(self).__mro__ if cls.__module__.startswith("rnnkern."))
        for name, parameter in _parameters_of(owner).items():
            if name != "params":
                value = getattr(self, f"_{name}")
                needed = parameter.default is parameter.empty
                if needed or value != parameter.default:
                    yield name, value, needed

    def __repr__(self) -> str:
        """A constructor call that makes the same; where it was seeded, with its first values."""
        return as_call(type(self).__name__, self._arguments())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, vars(self).copy())

    def _matched(self, argument: str, mapping: Any) -> dict[str, Array]:
        """The arrays of a mapping that has this object's parameters, and no others."""
        from .weights import matched  # here: it imports the layers, and few programs need it

        hint = f"convert it to np.{self._dtype}"
        owner = f"this {type(self).__name__}"
        return matched(argument, mapping, self._shapes, self._dtype, owner, hint=hint)[0]

    def _copied(self, mapping: Any) -> dict[str, Array]:
        """The constructor's argument `params` as arrays of this object's own."""
        found = self._matched("params", mapping)
        return {name: np.array(values, self._dtype, order="C") for name, values in found.items()}

    def _explain(self, error: Exception) -> None:
        """Raise an error that says more of parameters that were refused, where there is more."""

    def _checked_params(self) -> list[tuple[str, Array]]:
        """The parameters, checked as the core checks them in each call."""
        params = dict(self._params)
        missing = [name for name in self._shapes if name not in params]
        wrong = [f"params[{name!r}]: expected an array, got nothing" for name in missing]
        if not wrong and len(params) != len(self._shapes):
            wrong = [f"params: expected {len(self._shapes)} arrays, got {len(params)}"]
        if wrong:
            error = ValueError(wrong[0])
            self._explain(error)
            raise error
        return [
            (name, array(f"params[{name!r}]", params[name], self._dtype, shape))
            for name, shape in self._shapes.items()
        ]

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name; may be set to another dict, which each call checks."""
        return self._params

    @params.setter
    def params(self, params: dict[str, Array]) -> None:
        if not isinstance(params, dict):
            raise TypeError(f"params: expected a dict of arrays, got {type(params).__name__}")
        unmasked_all("params", params)
        self._params = params

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters together; of all members of an ensemble.

        >>> import rnnkern as rk
        >>> rk.GRU(3, 5).num_parameters == 3 * 5 * (3 + 5 + 2)
        True
        >>> rk.Linear(5, 2).num_parameters
        12
        """
        return sum(math.prod(shape) for shape in self._shapes.values())

    def state_dict(self, prefix: str = "") -> dict[str, Array]:
        """Copies of the parameters, as `load_state_dict` takes them, without a dropout's state.

        Parameters
        ----------
        prefix : str
            Precedes each name, such as ``"encoder."``.

        Returns
        -------
        dict of str to ndarray
            New arrays.

        Raises
        ------
        TypeError, ValueError
            If a parameter is invalid, or the prefix is no str.

        Examples
        --------
        >>> import rnnkern as rk
        >>> list(rk.MinGRU(3, 5).state_dict(prefix="encoder."))
        ['encoder.weight_ih_l0', 'encoder.bias_ih_l0']
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected a str, got {type(prefix).__name__}")
        return {prefix + name: values.copy() for name, values in self._checked_params()}

    def load_state_dict(
        self,
        mapping: Mapping[str, Any],
        prefix: str = "",
        strict: bool = True,
        *,
        cast: bool = False,
    ) -> tuple[list[str], list[str]]:
        """Copy parameters in: this package's, or those of a model of PyTorch.

        Parameters
        ----------
        mapping : mapping of str to ndarray or tensor
            Such as ``model.state_dict()`` of PyTorch. Names are those of `params`; the ``_l0`` of a
            single recurrent layer may be left out, as in PyTorch's cells. Values
            are copied into the arrays of `params`; the mapping's own memory is not kept.
        prefix : str
            Only names that begin with it count, and the rest of each is the parameter's name.
        strict : bool
            Whether all parameters must be there, and no others. If not, those that are missing stay
            as they are.
        cast : bool
            Whether to round arrays of another floating-point type, such as float16, bfloat16 and
            float64, to this object's dtype. They are refused otherwise.

        Returns
        -------
        missing, extra : list of str
            Names that were not there, and those that are no parameter; without the prefix.

        Raises
        ------
        TypeError, ValueError
            If an array has another dtype or shape, or names are missing or extra: the message lists
            them. Nothing has been written then.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk
        >>> model = {"rnn.weight_ih_l0": np.ones((12, 3)), "rnn.weight_hh_l0": np.ones((12, 4)),
        ...          "rnn.bias_ih_l0": np.ones(12), "rnn.bias_hh_l0": np.ones(12)}
        >>> gru = rk.GRU(3, 4)
        >>> gru.load_state_dict(model, prefix="rnn.", cast=True)
        ([], [])
        >>> del model["rnn.bias_hh_l0"]
        >>> gru.load_state_dict(model, prefix="rnn.", cast=True)
        Traceback (most recent call last):
        ...
        ValueError: mapping: expected the arrays of GRU(3, 4), got missing rnn.bias_hh_l0
        """
        from .weights import matched  # here: it imports the layers, and few programs need it

        own = dict(self._checked_params())
        for name, values in own.items():
            if not values.flags.writeable:
                raise ValueError(
                    f"params[{name!r}]: expected a writable array, got a read-only one"
                )
        found, missing, extra = matched(
            *("mapping", mapping, self._shapes, self._dtype, repr(self)),
            prefix=prefix,
            strict=strict,
            cast=cast,
            hint="pass cast=True to convert it",
        )
        for name, values in found.items():  # a parameter's own memory may come under another name
            if any(np.may_share_memory(values, target) for target in own.values()):
                found[name] = values.copy()
        for name, values in found.items():
            own[name][...] = values
        return missing, extra

    def copy(self) -> Self:
        """Return an independent copy: the same parameters and options, a layer's dropout state too.

        Returns
        -------
        recurrent layer or module
            Of the same class. It shares no memory with this one, and takes its own tapes only.

        Examples
        --------
        >>> import rnnkern as rk
        >>> gru = rk.GRU(3, 5, seed=0)
        >>> best = gru.copy()
        >>> gru.params["bias_hh_l0"][...] = 7.0
        >>> bool((best.params["bias_hh_l0"] == 7.0).any())
        False
        """
        return copy.deepcopy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer or module to a safetensors file, all or nothing, for `rnnkern.load`.

        The arrays have the names of `params`, so PyTorch loads those of an RNN, LSTM or GRU by
        `load_state_dict`. The metadata holds the class, the sizes, the options and `dropout_state`.
        `rnnkern.save` makes a file for several layers, modules and optimizers.

        Parameters
        ----------
        path : str or path
            As in `files.save`.

        Raises
        ------
        FileError
            As in `files.save`.
        OSError
            The operating system can't write it.
        TypeError, ValueError
            If a parameter or the path is invalid.

        Examples
        --------
        >>> import tempfile, rnnkern as rk
        >>> gru = rk.GRU(3, 5, 2, dropout=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gru.save(f"{folder}/gru.safetensors")
        ...     again = rk.load(f"{folder}/gru.safetensors")
        >>> again
        GRU(3, 5, num_layers=2, dropout=0.5)
        >>> bool((again.params["weight_hh_l1"] == gru.params["weight_hh_l1"]).all())
        True
        """
        from . import files, saved  # here: most programs do without

        files.save(path, self, {saved.KEY: saved.configuration(self)})


@functools.cache
def _parameters_of(owner: type) -> Mapping[str, inspect.Parameter]:
    """The arguments of a class; reading a signature takes longer than a frozen layer."""
    return inspect.signature(owner).parameters


def as_call(name: str, arguments: Iterable[tuple[str, Any, bool]]) -> str:
    """A constructor call with what `Parametrized._arguments` yields."""
    shown = [
        repr(value) if needed else f"{key}={_as_code(value)}" for key, value, needed in arguments
    ]
    return f"{name}({', '.join(shown)})"


def _as_code(value: Any) -> str:
    """An option's value in Python, where NumPy is imported as np."""
    if isinstance(value, np.dtype):
        return repr(value.name)
    if isinstance(value, np.random.SeedSequence):
        size = f", pool_size={value.pool_size}" * (value.pool_size != 4)
        key = f", spawn_key={value.spawn_key}" * bool(value.spawn_key)
        return f"np.random.SeedSequence({value.entropy}{key}{size})"
    return repr(value)
