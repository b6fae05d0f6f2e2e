"""How PyTorch differentiates, traces and compiles a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .calls import NO_INTEGERS, Arrays, Integers, Setup, layer_of, run_backward, run_forward

__all__ = ["Call", "TransformedRecurrence", "apply", "forward", "infer", "refuse_tangents"]


# ---- eager -------------------------------------------------------------------------------------


Call = tuple[Setup, Integers, Arrays, int]
"""What a function gets besides tensors; the number says how many of those behind x are states."""


class TransformedRecurrence(torch.autograd.Function):
    """A call under the transforms of torch.func, which need a function in two parts."""

    @staticmethod
    def forward(call: Call, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, tape = called_on(call, x, tensors)
        return (*outputs, tape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        *outputs, tape = output
        ctx.mark_non_differentiable(tape)
        save(ctx, call, tensors, outputs, tape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, gradients[:-1])


class Recurrence(torch.autograd.Function):
    """A call in eager mode: in one part, as PyTorch takes much longer over two.

    The tape is saved without being an output.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, tape = called_on(call, tensors[0], tensors[1:])
        save(ctx, call, tensors, outputs, tape)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, gradients)


# Without the part of `apply` that is about transforms, which takes as long as the rest of it.
apply = super(torch.autograd.Function, Recurrence).apply


def called_on(call: Call, x: Tensor, tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
    """The outputs and the tape."""
    setup, integers, arrays, states = call
    params = arrays.of(layer_of(setup.layer).names, tensors[states:])
    return run_forward(setup, integers, params, x, tensors[:states], True)


def save(ctx: Any, call: Call, tensors: Any, outputs: Any, tape: Any) -> None:
    """Keep what backward reads."""
    ctx.call = call
    ctx.set_materialize_grads(False)
    y = read_again(call[0], call[1], outputs)
    if call[1] is NO_INTEGERS:
        ctx.save_for_backward(tape, y, *tensors)
    else:  # saved, too, so that autograd sees if they change
        ctx.save_for_backward(tape, y, *tensors, *call[1])


def differentiated(ctx: Any, gradients: Any) -> tuple[Tensor | None, ...]:
    """The gradients of a function's arguments."""
    call, saved = ctx.call, ctx.saved_tensors
    if call[1] is not NO_INTEGERS:
        count = len(Integers._fields)
        call = call[0], Integers(*saved[-count:]), *call[2:]
        saved = saved[:-count]
    if torch.is_grad_enabled():  # create_graph=True, as in each transform
        return None, *Gradient.apply(call, *saved, *gradients)
    return None, *gradients_of(call, saved, gradients)


def gradients_of(call: Call, saved: tuple[Any, ...], gradients: Any) -> list[Tensor]:
    """The gradients of x, of the states that were given, and of the parameters."""
    setup, integers, arrays, states = call
    tape, y, x = saved[:3]
    params = arrays.of(layer_of(setup.layer).names, saved[3 + states :])
    return run_backward(setup, integers, params, x, saved[3 : 3 + states], tape, y, gradients)


def read_again(setup: Setup, integers: Integers, output: Any) -> Any:
    """The y that the tape reads in backward; it is saved, so that autograd sees if it changes."""
    if setup.is_step or integers.batch_sizes is not None or layer_of(setup.layer).residual:
        return None
    return output[0]


class Gradient(torch.autograd.Function):
    """Backward, which can't be differentiated."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> tuple[Tensor, ...]:
        last = 3 + call[3] + len(layer_of(call[0].layer).names)
        return tuple(gradients_of(call, tensors[:last], tensors[last:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise no_second()


def no_second() -> RuntimeError:
    return RuntimeError(
        "rnnkern.torch: expected one differentiation, got a second one (double backward is not "
        "supported; rnnkern.torch.restore puts PyTorch's own modules back)"
    )


def refuse_tangents(tensors: Any) -> None:
    """Raise if a tensor carries a forward-mode tangent, which the core would drop."""
    # torch.compile hides tangents. Without fullgraph=True it runs a call that raises in eager mode.
    if torch.compiler.is_compiling() or any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(
            "rnnkern.torch: expected tensors without tangents, got one with a tangent "
            "(forward-mode differentiation is not supported; rnnkern.torch.restore puts PyTorch's "
            "own modules back)"
        )


# ---- traced: operators -------------------------------------------------------------------------

# The fields of Setup and of Integers, and the tensors that are differentiated.
ARGUMENTS = (
    "str layer, bool batch_first, bool is_step, float dropout, bool draws, float[] clip, "
    "Tensor? lengths, Tensor? resets, Tensor? batch_sizes, Tensor? order, Tensor? seed, "
    "Tensor x, Tensor[] states, Tensor[] weights"
)
FIRST, LAST = len(Setup._fields), len(Setup._fields) + len(Integers._fields)


def split(arguments: tuple[Any, ...]) -> tuple[Setup, Integers, Tensor, Any, list[Tensor]]:
    setup, integers = Setup(*arguments[:FIRST]), Integers(*arguments[FIRST:LAST])
    x, states, weights = arguments[LAST:]
    return setup, integers, x, tuple(states), weights


def called(arguments: tuple[Any, ...], keep: bool) -> list[Tensor]:
    setup, integers, x, states, weights = split(arguments)
    layer = layer_of(setup.layer)
    layer.check(weights)
    # Below this key, as in a compiled graph, tensors have no tangents, and asking for them fails.
    if forward_ad._current_level >= 0 and not torch._C._dispatch_tls_is_dispatch_key_excluded(
        torch._C.DispatchKey.ADInplaceOrView
    ):
        refuse_tangents((x, *states, *weights))
    params = Arrays().of(layer.names, weights)
    outputs, tape = run_forward(setup, integers, params, x, states, keep)
    return outputs if tape is None else [*outputs, tape]


def outputs_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Tensors of the right shapes."""
    setup, integers, x, states, _ = split(arguments)
    layer = layer_of(setup.layer)
    rows: tuple[Any, ...] = ()
    if setup.is_step:
        return [x.new_empty((*x.shape[:-1], width)) for _, width in layer.states]
    y = (*x.shape[:-1], layer.outputs)
    if integers.order is not None:
        rows = (integers.order.shape[0],)
    elif integers.batch_sizes is not None:
        known = states[0].shape[1] if states else None
        rows = (torch.library.get_ctx().new_dynamic_size() if known is None else known,)
    elif layer.members:
        rows = (layer.members, x.shape[-2])
        y = (x.shape[0], *rows, layer.outputs)
    elif x.dim() == 3:
        rows = (x.shape[0 if setup.batch_first else 1],)
    return [x.new_empty(y), *(x.new_empty((n, *rows, width)) for n, width in layer.states)]


@torch.library.custom_op(
    "rnnkern::infer", mutates_args=(), device_types="cpu", schema=f"({ARGUMENTS}) -> Tensor[]"
)
def infer(*arguments: Any) -> list[Tensor]:
    return called(arguments, False)


@infer.register_fake
def _(*arguments: Any) -> list[Tensor]:
    return outputs_of(arguments)


@torch.library.custom_op(
    "rnnkern::forward", mutates_args=(), device_types="cpu", schema=f"({ARGUMENTS}) -> Tensor[]"
)
def forward(*arguments: Any) -> list[Tensor]:
    return called(arguments, True)


@forward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    outputs = outputs_of(arguments)
    return [*outputs, outputs[0].new_empty(1, dtype=torch.uint8)]


@torch.library.custom_op(
    "rnnkern::backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({ARGUMENTS}, Tensor tape, Tensor? y, Tensor?[] gradients) -> Tensor[]",
)
def backward(*arguments: Any) -> list[Tensor]:
    *first, tape, y, gradients = arguments
    setup, integers, x, states, weights = split(tuple(first))
    params = Arrays().of(layer_of(setup.layer).names, weights)
    return run_backward(setup, integers, params, x, states, tape, y, list(gradients))


@backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    _, _, x, states, weights = split(arguments[:-3])
    return [t.new_empty(t.shape) for t in (x, *states, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    setup, integers, x, states, weights = split(inputs)
    ctx.setup, ctx.states, ctx.given = setup, len(states), [t is not None for t in integers]
    ctx.set_materialize_grads(False)
    y = read_again(setup, integers, output)
    ctx.save_for_backward(output[-1], y, *integers, x, *states, *weights)


def _differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    tape, y, *saved = ctx.saved_tensors
    integers, (x, *tensors) = saved[: LAST - FIRST], saved[LAST - FIRST :]
    states, weights = tensors[: ctx.states], tensors[ctx.states :]
    found = backward(*ctx.setup, *integers, x, states, weights, tape, y, gradients[:-1])
    of_x, *rest = found
    return *(None,) * LAST, of_x, rest[: ctx.states], rest[ctx.states :]


def _refuse_second(ctx: Any, gradients: list[Tensor | None]) -> Any:
    raise no_second()


forward.register_autograd(_differentiate, setup_context=_save)
backward.register_autograd(_refuse_second)
