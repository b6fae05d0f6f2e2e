"""RNN, LSTM and GRU for CPUs: forward and BPTT with gradient clipping fused into the kernels."""

from . import runtime
from .clip import Clip
from .layers import GRU, LSTM, RNN, Gradients
from .optim import SGD, Adam, AdamW, RMSprop, Step
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
    "__version__",
    "force_isa",
    "get_num_threads",
    "info",
    "num_threads",
    "set_num_threads",
]
