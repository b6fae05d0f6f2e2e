"""Copies and pickles of objects that hold memory of the core: they are made anew."""

from __future__ import annotations

from typing import Any

from . import _core

__all__ = ["LayerStack", "reduced"]


def reduced(one: Any, state: dict[str, Any]) -> tuple[Any, ...]:
    """What ``__reduce_ex__`` returns: the version first, so that it is checked before all else."""
    return _new, (_core.__version__, type(one)), state


def _new(version: str, cls: Any) -> Any:
    if version != _core.__version__:
        raise ValueError(
            f"pickle: expected one of rnnkern {_core.__version__}, got one of rnnkern {version} "
            f"(to keep models, save them by rnnkern.files)"
        )
    return cls.__new__(cls)


class LayerStack(_core.LayerStack):
    """The core's record of a layer, which remembers the arguments that it was made from."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._arguments = arguments

    @property
    def input_size(self) -> int:
        """I, of the first layer."""
        size: int = self._arguments["input_size"]
        return size

    def __repr__(self) -> str:
        """Kind and sizes."""
        names = ("input_size", "hidden_size", "num_layers")
        sizes = ", ".join(f"{name}={self._arguments[name]}" for name in names)
        dtype = "float64" if self._arguments["is_double"] else "float32"
        return f"LayerStack(kind={self._arguments['kind']!r}, {sizes}, dtype={dtype!r})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, self._arguments)

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        LayerStack.__init__(self, **arguments)
