"""RNN, LSTM and GRU for CPUs: forward and BPTT with gradient clipping fused into the kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import runtime
from .clip import Clip
from .inference import Frozen
from .layers import (
    GRU,
    LSTM,
    RGLRU,
    RNN,
    SLSTM,
    EnsembleGradients,
    Gradients,
    IndRNN,
    MinGRU,
    MinLSTM,
    ParameterGradients,
    Trace,
)
from .rows import SparseRows
from .runtime import (
    debug,
    force_isa,
    get_num_threads,
    info,
    num_threads,
    release_memory,
    set_num_threads,
)
from .stream import Stream
from .tape import ModuleTape, Tape

runtime._from_environment()
__version__ = info()["version"]

__all__ = [
    "CRF",
    "GRU",
    "LSTM",
    "RGLRU",
    "RNN",
    "SGD",
    "SLSTM",
    "Adam",
    "AdamW",
    "Attention",
    "AttentionGradients",
    "AttentionMemory",
    "Batch",
    "Batches",
    "Clip",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "EnsembleGradients",
    "Frozen",
    "Gradients",
    "IndRNN",
    "LayerNorm",
    "Linear",
    "MinGRU",
    "MinLSTM",
    "ModuleGradients",
    "ModuleTape",
    "ParameterGradients",
    "Pooling",
    "RMSprop",
    "SparseRows",
    "Step",
    "Stream",
    "Tape",
    "Trace",
    "Window",
    "__version__",
    "binary_cross_entropy",
    "cross_entropy",
    "debug",
    "force_isa",
    "from_state_dict",
    "gaussian_nll",
    "get_num_threads",
    "huber",
    "info",
    "load",
    "mean_squared_error",
    "num_parameters",
    "num_threads",
    "quantile",
    "release_memory",
    "restore",
    "save",
    "set_num_threads",
    "truncated_bptt",
]

# What inference does without is imported when first asked for: a program that only infers starts
# sooner.
_LATER = {
    "batches": ("Batch", "Batches"),
    "diagnose": (),
    "distributed": (),
    "files": (),
    "model": ("num_parameters",),
    "modules": (
        "CRF",
        "Attention",
        "AttentionGradients",
        "AttentionMemory",
        "Dropout",
        "Embedding",
        "LayerNorm",
        "Linear",
        "ModuleGradients",
        "Pooling",
        "binary_cross_entropy",
        "cross_entropy",
        "gaussian_nll",
        "huber",
        "mean_squared_error",
        "quantile",
    ),
    "optim": ("SGD", "Adam", "AdamW", "RMSprop", "Step"),
    "reference": (),
    "saved": ("load", "restore", "save"),
    "schedules": (),
    "stopping": ("EarlyStopping",),
    "truncated": ("Window", "truncated_bptt"),
    "weights": ("from_state_dict",),
}
_BRIDGES = ("jax", "keras", "onnx", "sklearn", "torch")  # each to the framework of its name
if TYPE_CHECKING:
    from . import diagnose as diagnose
    from . import distributed as distributed
    from . import files as files
    from . import reference as reference
    from . import schedules as schedules
    from .batches import Batch, Batches
    from .model import num_parameters
    from .modules import (
        CRF,
        Attention,
        AttentionGradients,
        AttentionMemory,
        Dropout,
        Embedding,
        LayerNorm,
        Linear,
        ModuleGradients,
        Pooling,
        binary_cross_entropy,
        cross_entropy,
        gaussian_nll,
        huber,
        mean_squared_error,
        quantile,
    )
    from .optim import SGD, Adam, AdamW, RMSprop, Step
    from .saved import load, restore, save
    from .stopping import EarlyStopping
    from .truncated import Window, truncated_bptt
    from .weights import from_state_dict
else:

    def __getattr__(name: str) -> Any:
        for module, names in _LATER.items():
            if name == module or name in names:
                found = import_module(f".{module}", __name__)  # which sets the module's attribute
                globals().update({each: getattr(found, each) for each in names})
                return globals()[name]
        if name in _BRIDGES:
            return import_module(f".{name}", __name__)  # or the error that says what to install
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from importlib.util import find_spec  # here: it takes a while, and few programs ask

    # `help` and completion ask for each name in turn, so none of them may be an ImportError.
    bridges = (name for name in _BRIDGES if find_spec(name))
    return sorted({*globals(), *__all__, *_LATER, *bridges})
