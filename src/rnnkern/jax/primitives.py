"""How JAX evaluates, differentiates and maps a call.

Three primitives: the forward, the backward, and between them the forward's derivative, which is
there to be transposed into the backward and has no implementation. A mapped axis becomes rows of
one call, or members of an ensemble where parameters are mapped, before JAX differentiates: the
gradient of a mapped call is one backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.ffi
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, partial_eval

from .calls import BACKWARD, FORWARD, Operands, Setup, layer_of, text_of
from .mapping import mapped, operand_kinds

__all__ = ["forward_p"]

forward_p = Primitive(FORWARD)  # x, states, given, params -> y, last states, and with keep a tape
derivative_p = Primitive("rnnkern_derivative")  # these, the tape, tangents -> tangents
backward_p = Primitive(BACKWARD)  # these, the tape, gradients of the outputs -> gradients
for primitive in (forward_p, derivative_p, backward_p):
    primitive.multiple_results = True

TAPE = (2,), np.dtype(np.uint32)  # a number of 64 bits


class Wanted(NamedTuple):
    """Which operands have tangents, or gradients: some of them, then all of their kind."""

    x: bool
    states: bool
    params: bool

    def of(self, operands: Operands) -> list[Any]:
        """Those of the operands."""
        own = [operands.x] if self.x else []
        own += operands.states if self.states else []
        return own + (operands.params if self.params else [])


# ---- evaluation --------------------------------------------------------------------------------


def _outputs(setup: Setup, x: Any) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and dtypes of y and the last states."""
    layer = layer_of(setup.layer)
    steps = x.shape[:-1]
    rows: tuple[int, ...] = ()
    if layer.members:
        rows = (layer.members, x.shape[-2])
        steps = (x.shape[0], *rows)
    elif len(x.shape) == 3:
        rows = (x.shape[0 if setup.batch_first else 1],)
    shapes = [(*steps, layer.outputs), *((n, *rows, w) for n, w in layer.states.values())]
    return [(shape, layer.dtype) for shape in shapes]


@forward_p.def_abstract_eval
def _(*avals: Any, setup: Setup, keep: bool) -> list[ShapedArray]:
    found = _outputs(setup, avals[0])
    return [ShapedArray(*one) for one in ([*found, TAPE] if keep else found)]


@derivative_p.def_abstract_eval
def _(*avals: Any, setup: Setup, wanted: Wanted) -> list[ShapedArray]:
    return [ShapedArray(*one) for one in _outputs(setup, avals[0])]


@backward_p.def_abstract_eval
def _(*avals: Any, setup: Setup, gradients: tuple[bool, ...], wanted: Wanted) -> list[ShapedArray]:
    own = wanted.of(Operands.of(setup, avals[: len(avals) - sum(gradients) - 1]))
    return [ShapedArray(a.shape, a.dtype) for a in own]


def _compiled(primitive: Primitive) -> Callable[..., Any]:
    """An implementation that compiles a program of one call."""

    @cache
    def program(**params: Any) -> Any:
        return jax.jit(lambda *operands: primitive.bind(*operands, **params))

    def evaluate(*operands: Any, **params: Any) -> Any:
        if jax.config.jax_disable_jit:  # whose programs call this again
            with jax.disable_jit(False):
                return program(**params)(*operands)
        return program(**params)(*operands)

    return evaluate


forward_p.def_impl(_compiled(forward_p))
backward_p.def_impl(_compiled(backward_p))


def _lower_forward(ctx: Any, *operands: Any, setup: Setup, keep: bool) -> Any:
    return jax.ffi.ffi_lowering(FORWARD)(ctx, *operands, text=text_of(setup))


def _lower_backward(ctx: Any, *operands: Any, setup: Setup, **flags: Any) -> Any:
    text = text_of(setup, flags["gradients"], flags["wanted"])
    return jax.ffi.ffi_lowering(BACKWARD)(ctx, *operands, text=text)


def _refuse_device(ctx: Any, *operands: Any, **params: Any) -> Any:
    got = ", ".join(ctx.module_context.platforms)
    raise NotImplementedError(
        f"rnnkern.jax: expected arrays and programs on the CPU, got the platform {got} (move "
        f"arrays by jax.device_put(x, jax.devices('cpu')[0]))"
    )


for primitive, rule in ((forward_p, _lower_forward), (backward_p, _lower_backward)):
    mlir.register_lowering(primitive, _refuse_device)
    mlir.register_lowering(primitive, rule, platform="cpu")


# ---- derivatives -------------------------------------------------------------------------------


def _differentiate(
    primals: Sequence[Any], tangents: Sequence[Any], *, setup: Setup, keep: bool
) -> tuple[Any, Any]:
    if keep:
        _refuse_second()
    *outputs, tape = forward_p.bind(*primals, setup=setup, keep=True)
    given = Operands.of(setup, tangents)
    wanted = Wanted(*(any(type(t) is not ad.Zero for t in own) for own in given.groups()))
    own = [ad.instantiate_zeros(t) for t in wanted.of(given)]
    return outputs, derivative_p.bind(*primals, tape, *own, setup=setup, wanted=wanted)


def _transpose(
    cotangents: Sequence[Any], *operands: Any, setup: Setup, wanted: Wanted
) -> list[Any]:
    """Of the derivative: the backward."""
    first = len(operand_kinds(setup)) + 1  # of the tangents, behind the tape
    gradients = tuple(type(c) is not ad.Zero for c in cotangents)
    own = [c for c in cotangents if type(c) is not ad.Zero]
    found = backward_p.bind(
        *operands[:first], *own, setup=setup, gradients=gradients, wanted=wanted
    )
    # Zeros of other tangents of their kind are no variables.
    is_linear = map(ad.is_undefined_primal, operands[first:])
    return [
        *[None] * first,
        *(g if is_one else None for g, is_one in zip(found, is_linear, strict=True)),
    ]


def _refuse_second(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "rnnkern.jax: expected one differentiation, got a second one (derivatives of gradients "
        "are not supported)"
    )


def _refuse_forward(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "rnnkern.jax: expected reverse-mode differentiation (jax.grad, jax.vjp), got forward-mode "
        "(jax.jvp, jax.jacfwd, a call of what jax.linearize returns)"
    )


ad.primitive_jvps[forward_p] = _differentiate
ad.primitive_jvps[derivative_p] = _refuse_second
ad.primitive_jvps[backward_p] = _refuse_second
ad.primitive_transposes[derivative_p] = _transpose
derivative_p.def_impl(_refuse_forward)
mlir.register_lowering(derivative_p, _refuse_forward)
batching.primitive_batchers[derivative_p] = _refuse_forward


def _eliminate(used: list[bool], eqn: Any) -> tuple[list[bool], Any]:
    """A forward whose tape nobody reads, as jax.checkpoint makes them, keeps none."""
    if not any(used):
        return [False] * len(eqn.invars), None
    if eqn.params["keep"] and not used[-1]:
        eqn = eqn.replace(outvars=eqn.outvars[:-1], params={**eqn.params, "keep": False})
    return [True] * len(eqn.invars), eqn


partial_eval.dce_rules[forward_p] = _eliminate


# ---- vmap --------------------------------------------------------------------------------------


def _map_forward(
    operands: Sequence[Any], axes: Sequence[Any], *, setup: Setup, keep: bool
) -> tuple[Any, Any]:
    kinds = ["sequence", *["state"] * len(layer_of(setup.layer).states), *["tape"] * keep]
    return mapped(
        lambda setup: partial(forward_p.bind, setup=setup, keep=keep),
        setup,
        operands,
        axes,
        operand_kinds(setup),
        kinds,
    )


def _map_backward(
    operands: Sequence[Any],
    axes: Sequence[Any],
    *,
    setup: Setup,
    gradients: tuple[bool, ...],
    wanted: Wanted,
) -> tuple[Any, Any]:
    kinds = operand_kinds(setup)
    outputs = ["sequence", *["state"] * len(layer_of(setup.layer).states)]
    of_outputs = [kind for kind, is_given in zip(outputs, gradients, strict=True) if is_given]
    return mapped(
        lambda setup: partial(backward_p.bind, setup=setup, gradients=gradients, wanted=wanted),
        setup,
        operands,
        axes,
        [*kinds, "tape", *of_outputs],
        wanted.of(Operands.of(setup, kinds)),
    )


batching.primitive_batchers[forward_p] = _map_forward
batching.primitive_batchers[backward_p] = _map_backward
