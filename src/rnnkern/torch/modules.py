"""Modules of PyTorch whose calls the core runs: drop-ins for PyTorch's own, and any layer."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from .. import layers
from ..clip import Clip
from ..docstrings import complete
from ..layers.base import NO_CLIP, _Layer
from .calls import (
    DTYPES,
    NO_INTEGERS,
    Arrays,
    Integers,
    Setup,
    described,
    layer_of,
    run_forward,
    view,
)
from .operators import TransformedRecurrence, apply, forward, infer, refuse_tangents

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Recurrent"]

PLAIN = frozenset((Tensor, torch.nn.Parameter))
NO_BOUNDS = NO_CLIP.bounds()


class _Calls(torch.nn.Module):
    """What all modules here share: how a call goes to the core.

    `_prepare` sets what a call needs besides PyTorch's attributes. Copies, pickles and `accelerate`
    call it, too.
    """

    clip: Clip | None = None  # of a module that `accelerate` has changed
    _names: tuple[str, ...]  # of the parameters, in the core's order
    _descriptions: dict[torch.dtype, str]
    _arrays: Arrays
    batch_first: bool  # of those that take sequences

    def _prepare(self) -> None:
        raise NotImplementedError

    def _describe(
        self, arguments: dict[str, Any], in_bf16: dict[str, Any], names: tuple[str, ...]
    ) -> None:
        """Keep what the core is told of the layer, by the dtype of its products."""
        self._descriptions = {dtype: described(arguments, dtype) for dtype in DTYPES}
        self._descriptions[torch.bfloat16] = described(in_bf16, torch.float32)
        self._names, self._arrays = names, Arrays()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._arrays.forget()  # they would keep the memory that the parameters leave
        return super()._apply(fn, recurse)

    def _refuse(self, input: Tensor, states: tuple[Tensor, ...], integers: Integers) -> None:
        """Raise what PyTorch's own module raises for these arguments, if it does."""

    def _autocast_to(
        self, input: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[torch.dtype, ...] | None:
        """The outputs' dtypes under autocast to bfloat16, PyTorch's; None: the parameters'."""
        return None

    def _made(self, dtype: np.dtype[Any], params: dict[str, Any]) -> Any:
        """A layer of rnnkern with these parameters, or with others."""
        raise NotImplementedError

    def as_layer(self) -> Any:
        """The rnnkern layer of this module's memory: for streams, diagnoses and NumPy.

        Returns
        -------
        recurrent layer
            Of `rnnkern`. What is written to its ``params`` is the module's, and the other way
            round, until the module gets other memory (``double()``).

        Raises
        ------
        RuntimeError
            If the parameters are not dense ones on the CPU, of float32 or float64.

        Examples
        --------
        >>> import torch
        >>> import rnnkern as rk, rnnkern.torch
        >>> gru = rk.torch.GRU(3, 5)
        >>> stream = gru.as_layer().stream()
        >>> stream.step(torch.zeros(1, 3).numpy()).shape
        (1, 5)
        """
        weights = self._weights()
        self._refuse_dtype(weights[0], [dtype for dtype in self._descriptions if dtype in DTYPES])
        names = layer_of(self._descriptions[weights[0].dtype]).names
        params = {name: view(name, w, True) for name, w in zip(names, weights, strict=True)}
        layer = self._made(DTYPES[weights[0].dtype], params)
        layer.params = params
        return layer

    def _refuse_dtype(self, weight: Tensor, taken: Collection[torch.dtype]) -> None:
        if weight.dtype not in taken:
            *others, last = map(str, taken)
            expected = f"expected a tensor of {', '.join(others) + ' or ' if others else ''}{last}"
            raise RuntimeError(f"{self._names[0]}: {expected}, got one of {weight.dtype}")

    def _weights(self) -> list[Tensor]:
        own = self._parameters  # functional_call changes it, parametrizations leave it
        return [own[name] if name in own else getattr(self, name) for name in self._names]

    def _run(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        integers: Integers = NO_INTEGERS,
        batch_first: bool = False,
        is_step: bool = False,
        dropout: float = 0.0,
        draws: bool = False,
    ) -> Any:
        """Call the core; the outputs as a sequence of tensors."""
        weights = self._weights()
        dtype = weights[0].dtype
        call = integers, batch_first, is_step, dropout, draws
        if dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu"):
            return self._run_cast(input, states, weights, call)
        if dtype not in self._descriptions:
            self._refuse_dtype(weights[0], self._descriptions)
        return self._call(dtype, input, states, weights, *call)

    def _run_cast(
        self,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
        call: tuple[Integers, bool, bool, float, bool],
    ) -> Any:
        """Call the core under autocast, or with parameters of bfloat16."""
        self._refuse_kinds(input, states, weights)
        dtype = weights[0].dtype
        self._refuse_dtype(weights[0], self._descriptions)
        precision, results = dtype, None
        if torch.is_autocast_enabled("cpu"):
            if dtype is not torch.float64 and torch.get_autocast_dtype("cpu") is torch.bfloat16:
                precision, results = torch.bfloat16, self._autocast_to(input, states)
            input, states = input.to(dtype), tuple(state.to(dtype) for state in states)
        is_copy = dtype is torch.bfloat16
        if is_copy:
            if torch._C._get_tracing_state() is None:  # else sizes are tensors
                self._refuse(input, states, call[0])
                self._refuse_others(input, states, weights)
            input, states = input.float(), tuple(state.float() for state in states)
            weights = [weight.float() for weight in weights]
        outputs = self._call(precision, input, states, weights, *call, is_copy)
        if results is None:
            return [o.to(dtype) for o in outputs] if is_copy else outputs
        return [o.to(kind) for o, kind in zip(outputs, results, strict=True)]

    def _call(
        self,
        precision: torch.dtype,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
        integers: Integers,
        batch_first: bool,
        is_step: bool,
        dropout: float,
        draws: bool,
        is_copy: bool = False,
    ) -> Any:
        """Call the core on tensors of its dtypes; of copies, all has been checked."""
        arrays = Arrays() if is_copy else self._arrays
        weight = weights[0]
        is_traced = _is_traced()
        tensors = (input, *states, *weights)
        is_plain = is_traced or PLAIN.issuperset(map(type, tensors))
        if not is_plain:
            self._refuse_kinds(input, states, weights)
        if dropout or draws:
            if not 0 <= dropout < 1:
                raise ValueError(f"dropout: expected a number from 0 to below 1, got {dropout}")
            integers = integers._replace(seed=torch.randint(2**63 - 1, (), device="cpu"))
        clip = NO_BOUNDS if self.clip is None else self.clip.bounds()
        setup = Setup(self._descriptions[precision], batch_first, is_step, dropout, draws, clip)
        # torch.jit.trace records with gradients, and checks without that the graph is the same.
        differentiates = torch.is_grad_enabled() or torch._C._get_tracing_state() is not None
        keep = differentiates and (weight.requires_grad or any(t.requires_grad for t in tensors))
        if forward_ad._current_level >= 0:
            refuse_tangents(tensors)
        if is_traced or not is_plain:
            return self._trace(setup, integers, input, states, weights, keep, is_copy)
        try:
            if not keep:
                params = arrays.of(layer_of(setup.layer).names, weights)
                return run_forward(setup, integers, params, input, states, False)[0]
            return apply((setup, integers, arrays, len(states)), *tensors)
        except RuntimeError:
            if any(t.is_meta for t in tensors):
                return self._trace(setup, integers, input, states, weights, keep, is_copy)
            if not is_copy:
                self._refuse(input, states, integers)
                self._refuse_others(input, states, weights)
            raise

    def _run_sequence(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...],
        lengths: Tensor | None,
        resets: Tensor | None,
        dropout: float,
        draws: bool = False,
    ) -> tuple[Any, Any]:
        """Call the core on sequences: the outputs, packed as the input is, and the last states."""
        if not isinstance(input, PackedSequence):
            integers = NO_INTEGERS
            if lengths is not None or resets is not None:
                integers = Integers(lengths, resets)
            y, *last = self._run(
                input, states, integers, self.batch_first, dropout=dropout, draws=draws
            )
            return y, last
        data, batch_sizes, order, restore = input
        integers = Integers(lengths, resets, batch_sizes, order)
        y, *last = self._run(data, states, integers, dropout=dropout, draws=draws)
        return PackedSequence(y, batch_sizes, order, restore), last

    def _trace(
        self,
        setup: Setup,
        integers: Integers,
        input: Tensor,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
        keep: bool,
        is_copy: bool,
    ) -> Any:
        """Call an operator, or a function that transforms can take apart."""
        self._refuse_kinds(input, states, weights)
        if not is_copy and torch._C._get_tracing_state() is None:  # else sizes are tensors
            self._refuse(input, states, integers)
            self._refuse_others(input, states, weights)
        if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
            call = setup, integers, self._arrays, len(states)
            return TransformedRecurrence.apply(call, input, *states, *weights)[:-1]
        operator = forward if keep else infer
        outputs = operator(*setup, *integers, input, list(states), weights)
        return outputs[:-1] if keep else outputs

    def _refuse_kinds(
        self, input: Any, states: tuple[Any, ...], weights: list[Any] | tuple[Any, ...]
    ) -> None:
        """Raise if something is no tensor."""
        named = [("input", input), *zip(self._names, weights, strict=True)]
        named += [("hx" if len(states) == 1 else f"hx[{k}]", s) for k, s in enumerate(states)]
        for name, given in named:
            if not isinstance(given, Tensor):
                raise TypeError(f"{name}: expected a Tensor, got {type(given).__name__}")

    def _refuse_others(
        self, input: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
    ) -> None:
        """Raise if tensors are of another dtype than the first parameter, or on another device."""
        weight = weights[0]
        if weight.device.type not in ("cpu", "meta"):
            got = f"got one on {weight.device}"
            raise RuntimeError(f"{self._names[0]}: expected a tensor on the CPU, {got}")
        others = zip(self._names, weights, strict=True)
        given = ("input", input), *((f"hx[{k}]", s) for k, s in enumerate(states)), *others
        for name, t in given:
            if t.dtype != weight.dtype or t.device != weight.device:
                expected = f"expected {weight.dtype} on {weight.device} as the parameters"
                raise RuntimeError(f"{name}: {expected}, got {t.dtype} on {t.device}")


def _is_traced() -> bool:
    """Whether PyTorch records or transforms the call."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def _no_pair(states: tuple[Any, ...]) -> RuntimeError:
    return RuntimeError(f"hx: expected a pair of tensors (h, c), got {len(states)}")


def _of_state(input: Tensor, states: tuple[Tensor, ...]) -> torch.dtype:
    """The dtype of the last state, or of zeros like the input, to which autocast adds."""
    given = states[-1] if states else input
    return torch.bfloat16 if given.dtype is torch.bfloat16 else torch.float32


def _checked(clip: Any) -> Clip | None:
    if clip is not None and not isinstance(clip, Clip):
        raise TypeError(f"clip: expected a rnnkern.Clip or None, got {type(clip).__name__}")
    return clip


def _layer_class(mode: str) -> tuple[Any, dict[str, Any]]:
    """The layer of one of PyTorch's modes, and its option."""
    if mode.startswith("RNN"):
        return layers.RNN, {"nonlinearity": mode.removeprefix("RNN_").lower()}
    return {"LSTM": layers.LSTM, "GRU": layers.GRU}[mode], {}


def _arguments(
    mode: str, sizes: dict[str, Any], proj_size: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the core is told of PyTorch's cells, with products in the parameters' dtype and in bf16.

    All but the sizes are those of a small layer.
    """
    made, options = _layer_class(mode)
    if proj_size:
        options["proj_size"] = 1
    plain, in_bf16 = (made(1, 2, compute=c, **options)._stack._arguments for c in (None, "bf16"))
    return plain | sizes, in_bf16 | sizes


class _DropIn(_Calls, torch.nn.RNNBase):
    """What RNN, LSTM and GRU share. The constructor and the parameters are PyTorch's."""

    def __init__(self, mode: str, *args: Any, clip: Clip | None, **kwargs: Any) -> None:
        super().__init__(mode, *args, **kwargs)
        self.clip = _checked(clip)
        self._prepare()

    def _prepare(self) -> None:
        sizes = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "outputs": self.proj_size or self.hidden_size,
            "num_layers": self.num_layers,
            "bias": bool(self.bias),
            "bidirectional": bool(self.bidirectional),
        }
        arguments = _arguments(self.mode, sizes, self.proj_size)
        self._describe(*arguments, tuple(self._flat_weights_names))

    def _autocast_to(
        self, input: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[torch.dtype, ...] | None:
        of_state = _of_state(input, states)
        if self.mode == "GRU":
            return of_state, of_state
        h = torch.bfloat16
        if self.mode == "LSTM":
            return h, h, of_state if self.proj_size else h
        return h, h

    def _made(self, dtype: np.dtype[Any], params: dict[str, Any]) -> Any:
        made, options = _layer_class(self.mode)
        if self.proj_size:
            options["proj_size"] = self.proj_size
        for name in ("bias", "batch_first", "bidirectional"):
            options[name] = bool(getattr(self, name))
        options["dropout"] = self.dropout if self.num_layers > 1 else 0.0
        sizes = self.input_size, self.hidden_size, self.num_layers
        return made(*sizes, dtype=dtype, params=params, **options)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run over a sequence, as PyTorch's module does.

        Parameters
        ----------
        input : Tensor or PackedSequence
            As PyTorch's module takes it: (T, B, I), (B, T, I) with ``batch_first``, or (T, I).
        hx : Tensor or tuple of Tensor, optional
            The initial h (L*D, B, P), of an LSTM the pair (h, c) with c (L*D, B, H).
        lengths : Tensor of integers, shape (B,), optional
            Each row's number of steps, 0 to T, in any order: what a PackedSequence says, without
            packing. Outputs behind a row's end are zero.
        resets : Tensor of bool, shape (T, B), optional
            (B, T) with ``batch_first``, (T,) for one row. Where another sequence begins in a row;
            see `rnnkern.GRU`.

        Returns
        -------
        output : Tensor or PackedSequence
        hx : Tensor or tuple of Tensor
            The last states, shaped like the initial ones.

        Raises
        ------
        RuntimeError, ValueError
            If an argument has the wrong shape, dtype or device; the message names it.
        """
        carries = self.mode == "LSTM"
        states = () if hx is None else tuple(hx) if carries else (hx,)
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        y, last = self._run_sequence(input, states, lengths, resets, dropout)
        return y, tuple(last) if carries else last[0]

    def _refuse(self, input: Tensor, states: tuple[Tensor, ...], integers: Integers) -> None:
        batch_sizes, name = integers.batch_sizes, self.mode.split("_")[0]
        if self.mode == "LSTM" and len(states) not in (0, 2):
            raise _no_pair(states)
        if batch_sizes is None and input.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        rank = 2 if batch_sizes is None and input.dim() == 2 else 3
        if states and any(state.dim() != rank for state in states):
            kind = "batched 3-D" if rank == 3 else "unbatched 2-D"
            dims = " and ".join(f"{state.dim()}-D" for state in states)
            raise RuntimeError(
                f"For {kind} input, hx should also be {rank}-D but got {dims} tensor"
            )
        if rank == 2:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = tuple(state.unsqueeze(1) for state in states)
        self.check_input(input, batch_sizes)
        if not states:
            return
        if batch_sizes is not None and torch.compiler.is_compiling():
            # Reading a number out of batch_sizes would end the graph; the operator checks it.
            rows, width = states[0].shape[1], self.proj_size or self.hidden_size
            layers = self.num_layers * (2 if self.bidirectional else 1)
        else:
            layers, rows, width = self.get_expected_hidden_size(input, batch_sizes)
        if self.mode != "LSTM":
            self.check_hidden_size(states[0], (layers, rows, width))
            return
        for k, (state, size) in enumerate(zip(states, (width, self.hidden_size), strict=True)):
            message = f"Expected hidden[{k}] size {{}}, got {{}}"
            self.check_hidden_size(state, (layers, rows, size), message)


class RNN(_DropIn):
    """`torch.nn.RNN` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
    device, dtype
        As of `torch.nn.RNN`. The parameters start with the same values under the same
        `torch.manual_seed`. Calls need them on the CPU, in float32, float64 or bfloat16.
    clip : rnnkern.Clip, optional
        Gradient clips, fused into backward. The bounds of the parameters' gradients are those of
        one backward of this module.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> rnn = rk.torch.RNN(3, 5, nonlinearity="relu", clip=rk.Clip(step_value=1.0))
    >>> y, h = rnn(torch.ones(7, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(mode, *sizes, device=device, dtype=dtype, clip=clip)
        self.nonlinearity = nonlinearity


class LSTM(_DropIn):
    """`torch.nn.LSTM` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
    device, dtype
        As of `torch.nn.LSTM`; see `RNN`, too.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> lstm = rk.torch.LSTM(3, 5, batch_first=True)
    >>> y, (h, c) = lstm(torch.ones(2, 7, 3), lengths=torch.tensor([7, 4]))
    >>> y.shape, c.shape
    (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("LSTM", *sizes, proj_size, device=device, dtype=dtype, clip=clip)


class GRU(_DropIn):
    """`torch.nn.GRU` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As of `torch.nn.GRU`; see `RNN`, too.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> y, h = rk.torch.GRU(3, 5, num_layers=2)(torch.ones(7, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 2, 5]), torch.Size([2, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("GRU", *sizes, device=device, dtype=dtype, clip=clip)


class _DropInCell(_Calls, torch.nn.modules.rnn.RNNCellBase):
    """What RNNCell, LSTMCell and GRUCell share. The parameters are PyTorch's."""

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: Any,
        dtype: torch.dtype | None,
        clip: Clip | None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, self._gates, device, dtype)
        self.clip = _checked(clip)

    def _mode(self) -> str:
        raise NotImplementedError

    def _prepare(self) -> None:
        sizes = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "outputs": self.hidden_size,
            "bias": bool(self.bias),
        }
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        arguments = _arguments(self._mode(), sizes)
        self._describe(*arguments, names if self.bias else names[:2])

    def _autocast_to(
        self, input: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[torch.dtype, ...] | None:
        of_state = _of_state(input, states)
        mode = self._mode()
        if mode == "LSTM":
            return of_state, of_state
        return (of_state if mode == "GRU" else torch.bfloat16,)

    def _made(self, dtype: np.dtype[Any], params: dict[str, Any]) -> Any:
        made, options = _layer_class(self._mode())
        options["bias"] = bool(self.bias)
        return made(self.input_size, self.hidden_size, dtype=dtype, params=params, **options)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one time step, as PyTorch's module does.

        Parameters
        ----------
        input : Tensor, shape (B, I) or (I,)
        hx : Tensor or tuple of Tensor, shape (B, H) or (H,), optional
            The state before: h, of an LSTM the pair (h, c).

        Returns
        -------
        Tensor or tuple of Tensor
            The state after.

        Raises
        ------
        RuntimeError, ValueError
            If an argument has the wrong shape, dtype or device; the message names it.
        """
        carries = self._mode() == "LSTM"
        states = () if hx is None else tuple(hx) if carries else (hx,)
        found = self._run(input, states, is_step=True)
        return tuple(found) if carries else found[0]

    def _refuse(self, input: Tensor, states: tuple[Tensor, ...], integers: Integers) -> None:
        carries = self._mode() == "LSTM"
        if carries and len(states) not in (0, 2):
            raise _no_pair(states)
        named = [(f"hx[{k}]" if carries else "hidden", state) for k, state in enumerate(states)]
        for what, tensor in (("input", input), *named):
            if tensor.dim() not in (1, 2):
                expected = f"Expected {what} to be 1D or 2D"
                raise ValueError(f"{type(self).__name__}: {expected}, got {tensor.dim()}D instead")
        if input.shape[-1] != self.input_size:
            got = f"got {input.shape[-1]} expected {self.input_size}"
            raise RuntimeError(f"input has inconsistent input_size: {got}")
        for k, state in enumerate(states):
            if state.shape[-1] != self.hidden_size:
                got = f"got {state.shape[-1]}, expected {self.hidden_size}"
                raise RuntimeError(f"hidden{k} has inconsistent hidden_size: {got}")
            if state.shape[:-1] != input.shape[:-1]:
                rows, own = (t.shape[0] if t.dim() == 2 else None for t in (input, state))
                raise RuntimeError(
                    f"Input batch size {rows} doesn't match hidden{k} batch size {own}"
                )


class RNNCell(_DropInCell):
    """`torch.nn.RNNCell` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, device, dtype
        As of `torch.nn.RNNCell`.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> rk.torch.RNNCell(3, 5)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, clip)
        self.nonlinearity = nonlinearity
        self._prepare()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nonlinearity" and value not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {value!r}")
        super().__setattr__(name, value)
        if name == "nonlinearity" and "_descriptions" in self.__dict__:
            self._prepare()  # PyTorch's module, too, obeys a change

    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


class LSTMCell(_DropInCell):
    """`torch.nn.LSTMCell` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As of `torch.nn.LSTMCell`.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> h, c = rk.torch.LSTMCell(3, 5)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    _gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, clip)
        self._prepare()

    def _mode(self) -> str:
        return "LSTM"


class GRUCell(_DropInCell):
    """`torch.nn.GRUCell` on the core: the same arguments, parameters, call and results.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As of `torch.nn.GRUCell`.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> rk.torch.GRUCell(3, 5)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, clip)
        self._prepare()

    def _mode(self) -> str:
        return "GRU"


class Recurrent(_Calls):
    """Any recurrent layer of rnnkern as a module: minGRU, RG-LRU, layer norm, peepholes, ensembles.

    Parameters
    ----------
    layer : recurrent layer
        Its parameters become the module's, under their names: the same memory, so that what an
        optimizer of either side writes, both see. Moving the module (``double()``) ends this.
    clip : rnnkern.Clip, optional
        As of `RNN`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch
    >>> import rnnkern as rk, rnnkern.torch
    >>> gru = rk.torch.Recurrent(rk.MinGRU(3, 5, num_layers=2, seed=0))
    >>> y, h = gru(torch.ones(7, 2, 3))
    >>> y.sum().backward()
    >>> y.shape, gru.weight_ih_l0.grad.shape
    (torch.Size([7, 2, 5]), torch.Size([10, 3]))
    """

    def __init__(self, layer: Any, *, clip: Clip | None = None) -> None:
        super().__init__()
        if not isinstance(layer, _Layer):
            raise TypeError(
                f"layer: expected a recurrent layer of rnnkern, got {type(layer).__name__}"
            )
        for name, values in layer._checked_params():
            if not values.flags.writeable:
                expected = "expected a writable array, got a read-only one"
                raise ValueError(f"layer: params[{name!r}]: {expected}")
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(values)))
        self.clip = _checked(clip)
        self.batch_first, self.dropout = layer.batch_first, layer.dropout
        self._layer = copy.copy(layer)
        self._layer._params = {}  # they are the module's now
        self._prepare()

    def _prepare(self) -> None:
        self._has_one_state = len(self._layer._state_names) == 1
        self._is_noisy = any(self._layer._cell.noise)
        arguments = self._layer._stack._arguments
        in_bf16 = arguments | {"precision": "bf16_products"}
        self._describe(arguments, in_bf16, tuple(self._layer._shapes))
        if self._layer.compute:
            del self._descriptions[torch.float64]

    def _made(self, dtype: np.dtype[Any], params: dict[str, Any]) -> Any:
        layer = copy.deepcopy(self._layer)
        layer.dropout = self.dropout
        if layer._dtype != dtype:
            layer._dtype = dtype
            layer._stack = layer._new_stack(layer._ensemble or 0)
        return layer

    def extra_repr(self) -> str:
        """The layer."""
        return repr(self._layer)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run over a sequence; in training, dropout and noise act.

        Parameters
        ----------
        input, hx, lengths, resets
            As x, state, lengths and resets of calling the layer, as tensors. `input` may be a
            PackedSequence.

        Returns
        -------
        output : Tensor or PackedSequence
        hx : Tensor or tuple of Tensor
            The last states, shaped like the initial ones.

        Raises
        ------
        RuntimeError, ValueError
            If an argument has the wrong shape, dtype or device; the message names it.
        """
        one = self._has_one_state
        states = () if hx is None else (hx,) if one else tuple(hx)
        dropout = self.dropout if self.training else 0.0
        draws = self.training and self._is_noisy
        y, last = self._run_sequence(input, states, lengths, resets, dropout, draws)
        return y, last[0] if one else tuple(last)


complete(RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell, Recurrent)
