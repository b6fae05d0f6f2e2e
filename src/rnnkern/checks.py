"""Checks of single arguments. The core's bindings check the arrays that they take."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Seed",
    "alone",
    "array",
    "as_array",
    "bound",
    "brief",
    "cast_to",
    "choice",
    "fixed",
    "flag",
    "float_dtype",
    "group_name",
    "integer",
    "number",
    "private_base",
    "probability",
    "received",
    "seed_sequence",
    "size",
    "spawned",
    "unmasked",
    "unmasked_all",
    "viewed",
]

T = TypeVar("T", bound=str)
C = TypeVar("C", bound=type)
Seed: TypeAlias = "int | np.random.SeedSequence | None"  # NumPy imports its random when asked for

# Types that are no real numbers, although some of their values convert to float.
NO_NUMBERS = (
    bool,
    np.bool_,
    np.complexfloating,
    np.flexible,  # strings and records
    np.datetime64,
    np.timedelta64,
    np.ndarray,
)


def array(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`value`, an array of this dtype and shape, or a view of what holds one."""
    found: NDArray[Any] = as_array(name, value, dtype)
    if found.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {found.shape}")
    return found


def as_array(name: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """`value`, an array of this dtype, or a view of a tensor or buffer that holds one.

    The core checks shapes, and dtypes once more.
    """
    if type(value) is np.ndarray and value.dtype is dtype:
        return value
    found = viewed(name, value)
    if found is not None and found.dtype == dtype:
        return found
    got = received(name, value, found, dtype)
    raise TypeError(f"{name}: expected an array of dtype {dtype}, got {got}")


def received(
    name: str,
    value: Any,
    found: NDArray[Any] | None,
    dtype: np.dtype[Any] | None,
    *,
    writable: bool = False,
) -> str:
    """What a message says of `value`, and what to write where NumPy can convert it.

    `found` is its view, if there is one, and `dtype` what to convert to; None: its own. `writable`:
    the array that this makes must be.
    """
    kind = type(value).__name__
    if isinstance(value, np.generic):
        return f"{kind} (a scalar)"
    if found is None:
        castable, got = isinstance(value, (list, tuple)) or hasattr(value, "__array__"), kind
    else:
        castable = found.dtype.kind in "fiub"
        got = f"{found.dtype}" if isinstance(value, np.ndarray) else f"{kind} of {found.dtype}"
    if not castable:
        return got
    is_read_only = found is None or not found.flags.writeable
    convert = "np.array" if writable and is_read_only else "np.asarray"
    return f"{got} (write {convert}({name}{'' if dtype is None else f', np.{dtype}'}))"


def viewed(name: str, value: Any) -> NDArray[Any] | None:
    """An array that shares the memory of `value`, of any dtype; None where there is no such array.

    Those are arrays, tensors of the CPU (DLPack) and objects with the buffer protocol. A mask would
    be lost, so a masked array is refused.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask, got MaskedArray (write {name}.filled(0) or "
            f"np.asarray({name}))"
        )
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (np.generic, str, bytes, type)):
        return None
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            got = f"got {type(value).__name__}{_of_small_dtype(name, value) or f' ({error})'}"
            raise TypeError(f"{name}: expected an array or a tensor of the CPU, {got}") from error
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError):  # no buffer, or of items that NumPy does not know
        return None


def _of_small_dtype(name: str, value: Any) -> str:
    """What to write for a tensor of one of the small types that NumPy does not have; else ""."""
    dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]
    if not dtype.startswith(("bfloat", "float8", "float4")):
        return ""
    write = f"{name}.float()" if hasattr(value, "float") else f"np.asarray({name}, np.float32)"
    return f" of {dtype} (write {write})"


def unmasked(name: str, value: Any) -> Any:
    """`value`, if it is no masked array: its mask would be ignored."""
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        viewed(name, value)  # raises
    return value


def unmasked_all(name: str, arrays: Mapping[str, Any]) -> None:
    """Refuse a dict of arrays with a masked one among them. Each call of a layer asks this."""
    for value in list(arrays.values()):  # a copy: another thread may change the dict
        if type(value) is not np.ndarray:
            break
    else:
        return
    for key, value in list(arrays.items()):
        unmasked(f"{name}[{key!r}]", value)


def cast_to(name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`values` rounded to another dtype of floating point, none of them to infinity."""
    try:
        with np.errstate(over="raise"):
            return values.astype(dtype)
    except FloatingPointError:
        raise ValueError(
            f"{name}: expected values that {dtype} can hold, got larger ones in {values.dtype}"
        ) from None


def bound(name: str, value: Any) -> float | None:
    """`value`, the bound of a clip of a cell: None or a finite number above 0."""
    if value is None:
        return None
    return number(name, value, "a finite number > 0", lambda x: x > 0, "a number or None")


def probability(name: str, value: Any, kind: str = "a number") -> float:
    """`value`, the probability of an event that is not certain; `kind` as of `number`."""
    return number(name, value, "a number from 0 to below 1", lambda x: 0.0 <= x < 1.0, kind)


def alone(given: Mapping[str, Any], off: str, others: Mapping[str, Any]) -> None:
    """Refuse options that are given beside others that are set; `off` is what to give instead."""
    for name, value in given.items():
        for other, set_to in others.items():
            if set_to not in (None, False, 0):
                raise ValueError(f"{name}: expected {off} with {other}={set_to!r}, got {value!r}")


def private_base(cls: C) -> C:
    """Let Python's messages about arguments name the methods of `cls` alone, not the class."""
    for name, method in vars(cls).items():
        if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_")):
            method.__qualname__ = name
    return cls


def brief(record: Any) -> str:
    """The `repr` of a named tuple, with the shapes of arrays in place of their elements."""

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {shown(one)}" for key, one in value.items()) + "}"
        return str(value.shape) if isinstance(value, np.ndarray) else repr(value)

    fields = (
        f"{name}{': ' if isinstance(value, np.ndarray) else '='}{shown(value)}"
        for name, value in record._asdict().items()
    )
    return f"{type(record).__name__}({', '.join(fields)})"


def fixed(name: str, doc: str) -> Any:
    """A read-only attribute `name`, for a class that checks it once and keeps it as ``_name``."""
    return property(operator.attrgetter("_" + name), doc=doc)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; TypeError if it is anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def choice(name: str, value: Any, options: tuple[T, ...]) -> T:
    """`value` as the one of `options` that it equals."""
    expected = f"one of {', '.join(options)}"
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value not in options:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return options[options.index(value)]


def group_name(argument: str, name: Any) -> None:
    """Check the name of a group of arrays, which is joined to theirs with "." or "/"."""
    if not isinstance(name, str) or not name or {".", "/"} & set(name):
        raise ValueError(f"{argument}: expected names of groups without '.' and '/', got {name!r}")


def integer(
    name: str, value: Any, expected: str, low: int, high: int, kind: str = "an integer"
) -> int:
    """`value` as an int from `low` to `high`, which `expected` says in words.

    `kind` names the type, where more than integers are allowed.
    """
    whole: int = _converted(name, value, kind, "__index__", operator.index)
    if not low <= whole <= high:
        raise ValueError(f"{name}: expected {expected}, got {_shown(whole)}")
    return whole


def number(
    name: str,
    value: Any,
    expected: str,
    fits: Callable[[float], bool],
    kind: str = "a number",
) -> float:
    """`value` as a finite float that fits, which `expected` says in words.

    `kind` names the type, where more than numbers are allowed.
    """
    try:
        real: float = _converted(name, value, kind, "__float__", float)
    except OverflowError:  # an integer that no float can hold
        real = math.inf
    if not (math.isfinite(real) and fits(real)):
        raise ValueError(f"{name}: expected {expected}, got {_shown(value)}")
    return real


def _converted(name: str, value: Any, kind: str, method: str, convert: Callable[[Any], Any]) -> Any:
    """`value` as `convert`, which calls its `method`, returns it; TypeError if it is no number."""
    cause = None
    if hasattr(value, method) and not isinstance(value, NO_NUMBERS):
        try:
            return convert(value)
        except OverflowError:
            raise
        except Exception as error:  # whatever the type's own method raises
            cause = error
    kind_of_value = type(value).__name__.rstrip("_")
    raise TypeError(f"{name}: expected {kind}, got {kind_of_value}") from cause


def _shown(value: Any) -> str:
    """`repr`, which Python refuses for integers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return f"{type(value).__name__} of too many digits to show"


def seed_sequence(name: str, value: Any) -> np.random.SeedSequence:
    """`value` as a SeedSequence; from the system's entropy if it is None."""
    if value is None:
        return np.random.SeedSequence()
    if isinstance(value, np.random.SeedSequence):
        return spawned(value)
    expected, kind = "an integer from 0 to 2**64 - 1", "an integer or a SeedSequence"
    return np.random.SeedSequence(integer(name, value, expected, 0, 2**64 - 1, kind))


def spawned(seed: np.random.SeedSequence, *key: int) -> np.random.SeedSequence:
    """Return a SeedSequence with `key` behind the spawn key of `seed`, which stays as it is."""
    return np.random.SeedSequence(
        seed.entropy, spawn_key=(*seed.spawn_key, *key), pool_size=seed.pool_size
    )


def size(name: str, value: Any) -> int:
    """`value` as an int of at least 1: a size of an array."""
    return integer(name, value, "an integer of at least 1", 1, 2**62)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype` as one of the two that the core computes in."""
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # the last for text such as "(2,"
        wanted = None
    got = repr(dtype) if wanted is None else str(wanted)
    if wanted is None or wanted not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected float32 or float64, got {got}")
    return wanted
