"""Recurrent layers: their parameters, checks, defaults and docstrings. The maths is in the core."""

from collections.abc import Callable
from typing import Any

from ..docstrings import complete
from .base import _Layer
from .gru import GRU
from .ind_rnn import IndRNN
from .lstm import LSTM
from .min_gru import MinGRU
from .min_lstm import MinLSTM
from .results import Array, EnsembleGradients, Gradients, ParameterGradients, State, Trace
from .rg_lru import RGLRU
from .rnn import RNN
from .slstm import SLSTM

__all__ = [
    "GRU",
    "LAYERS",
    "LSTM",
    "RGLRU",
    "RNN",
    "SLSTM",
    "Array",
    "EnsembleGradients",
    "Gradients",
    "IndRNN",
    "MinGRU",
    "MinLSTM",
    "ParameterGradients",
    "State",
    "Trace",
    "_Layer",
]

# Every class of layers by the name that the command line gives it, such as "lstm".
LAYERS: dict[str, Callable[..., _Layer[Any]]] = {
    cls.__name__.lower(): cls for cls in sorted(_Layer.__subclasses__(), key=lambda c: c.__name__)
}

# Those that the others' docstrings refer to come first.
complete(*dict.fromkeys((RNN, LSTM, GRU, *LAYERS.values())))
