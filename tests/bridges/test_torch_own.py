"""PyTorch's own cases of its recurrent modules, from its wheel, run by the drop-ins."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("expecttest", reason="which PyTorch's tests import")

import torch
from torch.testing._internal import common_modules as own

import rnnkern.torch

# PyTorch's own module says so, once, of its projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
DTYPES = (torch.float32, torch.float64)
CASES = [(name, dtype) for name in NAMES for dtype in DTYPES]


def inputs_of(name, dtype):
    info = next(i for i in own.module_db if i.module_cls is getattr(torch.nn, name))
    torch.manual_seed(0)
    packed = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=True, **packed
    )
    assert inputs
    return inputs


def tensors_of(found):
    """All tensors of a result."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, torch.nn.utils.rnn.PackedSequence):
        return [found.data]
    return [t for part in found for t in tensors_of(part)]


def test_all_modules_have_cases():
    assert {i.module_cls.__name__ for i in own.module_db} >= set(NAMES)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_inputs(name, dtype):
    """Outputs, and gradients of parameters and inputs, are those of PyTorch's module."""
    for case in inputs_of(name, dtype):
        made = case.constructor_input
        theirs = getattr(torch.nn, name)(*made.args, **made.kwargs).to(dtype)
        ours = getattr(rnnkern.torch, name)(*made.args, **made.kwargs).to(dtype)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (theirs, ours):
            given = copy.deepcopy(case.forward_input)
            outputs = tensors_of(module(*given.args, **given.kwargs))
            torch.manual_seed(0)
            torch.autograd.backward(outputs, [torch.randn_like(o) for o in outputs])
            leaves = tensors_of((*given.args, *given.kwargs.values()))
            results.append([*outputs, *(t.grad for t in (*leaves, *module.parameters()))])
        assert len(results[0]) == len(results[1])
        for k, (want, got) in enumerate(zip(*results, strict=True)):
            # Within what PyTorch's tests of these cases allow: 1.3e-6 of the value and 1e-5 more in
            # float32, 1e-7 and 1e-7 in float64.
            torch.testing.assert_close(got, want, msg=f"{made.kwargs}: result {k}")


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_unbatched_reference(name, dtype):
    """PyTorch's reference for calls without an axis of rows."""
    checked = 0
    for case in inputs_of(name, dtype):
        given, made = case.forward_input, case.constructor_input
        if case.reference_fn is None or isinstance(given.args[0], tuple):
            continue
        module = getattr(rnnkern.torch, name)(*made.args, **made.kwargs).to(dtype)
        got = module(*given.args, **given.kwargs)
        want = case.reference_fn(module, *given.args, **given.kwargs)
        torch.testing.assert_close(got, want)
        checked += 1
    assert checked


@pytest.mark.parametrize("name", NAMES)
def test_errors(name):
    """The errors of PyTorch's modules, word by word."""
    info = next(i for i in own.module_db if i.module_cls is getattr(torch.nn, name))
    for case in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        made, given = (
            case.module_error_input.constructor_input,
            case.module_error_input.forward_input,
        )
        cls = getattr(rnnkern.torch, name)
        if case.error_on == own.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                cls(*made.args, **made.kwargs)
            continue
        module = cls(*made.args, **made.kwargs)
        with pytest.raises(case.error_type, match=case.error_regex):
            module(*given.args, **given.kwargs)
