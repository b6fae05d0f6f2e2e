"""PyTorch: its recurrent modules, run by rnnkern.

`RNN`, `LSTM`, `GRU` and their cells take the place of PyTorch's modules of these names;
`accelerate` exchanges those inside a model, and `restore` puts them back; `Recurrent` makes a
module of any layer of rnnkern. Needs ``pip install 'rnnkern[torch]'``.

>>> import torch
>>> import rnnkern as rk, rnnkern.torch
>>> model = torch.nn.LSTM(3, 5)
>>> rk.torch.accelerate(model).replaced
['']
>>> y, (h, c) = model(torch.ones(7, 2, 3))
>>> y.sum().backward()
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"rnnkern.torch needs PyTorch: pip install 'rnnkern[torch]' ({error})"
    ) from error

from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, Recurrent, RNNCell
from .swap import Accelerated, accelerate, restore

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Accelerated",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "accelerate",
    "restore",
]
