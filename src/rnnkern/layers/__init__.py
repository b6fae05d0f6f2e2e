"""Recurrent layers: their parameters, checks, defaults and docstrings. The maths is in the core."""

from .base import _Layer
from .gru import GRU
from .lstm import LSTM
from .min_gru import MinGRU
from .results import Array, Gradients, State, Trace
from .rnn import RNN

__all__ = ["GRU", "LSTM", "RNN", "Array", "Gradients", "MinGRU", "State", "Trace", "_Layer"]
