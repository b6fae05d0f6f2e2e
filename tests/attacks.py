"""What the tests of hostile callers share: changes of arrays, copies, and errors that name."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np

# An error names the argument, what was expected and what came.
NAMED = re.compile(
    r"instruction set: |[a-z_0-9]+(\.[a-z_]+)?(\[[^]]+\])*: expected .+, got ", re.DOTALL
)

# What may be set in an array's header, and to what. The numbers stay where they are.
HEADER = {
    "shape": lambda a: (1,) * max(1, a.ndim - 1) + (a.size,),
    "dtype": lambda a: f"{'f' if a.dtype.kind in 'iu' else 'i'}{a.itemsize}",
    "strides": lambda a: (0,) * a.ndim,
}
# NumPy warns where it means to forbid this one day.
IGNORE_WARNING = "ignore:Setting the:DeprecationWarning"


def set_header(a, name):
    """Set an array's shape, dtype or strides; the old value in a tuple, None if NumPy refuses."""
    before = getattr(a, name)
    try:
        setattr(a, name, HEADER[name](a))
    except (AttributeError, TypeError, ValueError):  # all three are NumPy's
        return None
    return (before,)


class Changing:
    """Integers that change something else while a call converts them to an array."""

    def __init__(self, values, change):
        self.values, self.change = values, change

    def __array__(self, dtype=None, copy=None):
        self.change()
        return np.array(self.values, dtype)


def through_pickle(protocol):
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


class Tensor:
    """As a tensor of PyTorch, which is not needed here: what is used of one, and no more."""

    def __init__(self, values, dtype=None, requires_grad=False):
        self.values, self.requires_grad = values, requires_grad
        self.dtype = dtype or f"torch.{values.dtype}"

    @property
    def shape(self):
        return self.values.shape

    def detach(self):
        return Tensor(self.values, self.dtype)

    def float(self):
        return Tensor(self.values.astype(np.float32))

    def __dlpack__(self, **options):
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if self.dtype == "torch.bfloat16":
            raise BufferError("bfloat16 is no dtype of NumPy")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": through_pickle(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}

SETTABLE = {"dropout", "dropout_state", "dropout_step", "first_row", "lr", "params", "state"}


def read_only_attributes(value):
    """The names of all public attributes that are not documented as settable."""
    public = (name for name in dir(value) if not name.startswith("_") and name not in SETTABLE)
    return [name for name in public if not callable(getattr(value, name))]
