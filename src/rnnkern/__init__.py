"""RNN, LSTM and GRU for CPUs: forward and BPTT with gradient clipping fused into the kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import runtime
from .clip import Clip
from .layers import GRU, LSTM, RNN, Gradients, Trace
from .runtime import force_isa, get_num_threads, info, num_threads, set_num_threads
from .stream import Stream

runtime._from_environment()
__version__ = info()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Clip",
    "Gradients",
    "RMSprop",
    "Step",
    "Stream",
    "Trace",
    "__version__",
    "force_isa",
    "get_num_threads",
    "info",
    "num_threads",
    "set_num_threads",
]

# Whoever only infers doesn't wait for the optimizers: they are imported when first asked for.
if TYPE_CHECKING:
    from .optim import SGD, Adam, AdamW, RMSprop, Step
else:
    _OF_OPTIM = {"SGD", "Adam", "AdamW", "RMSprop", "Step"}

    def __getattr__(name: str) -> Any:
        if name != "optim" and name not in _OF_OPTIM:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        optim = import_module(".optim", __name__)  # which sets the attribute optim
        globals().update({each: getattr(optim, each) for each in _OF_OPTIM})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "optim"})
