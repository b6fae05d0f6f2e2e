"""The operators of rnnkern.torch: gradients, torch.compile, torch.export, transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from helpers import make_layer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkern as rk
import rnnkern.torch as rkt
from rnnkern.torch import calls, operators
from rnnkern.torch.calls import Integers, Setup

# PyTorch's own code calls what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

T, B, I, H = 4, 3, 2, 3


def arguments(module, x, states=(), integers=None, grad=True, **setup):
    """Of an operator."""
    weights = [w.detach().requires_grad_(grad) for w in module._weights()]
    tensors = [t.detach().requires_grad_(grad) for t in (x, *states)]
    described = Setup(module._descriptions[x.dtype], **setup)
    return *described, *(integers or Integers()), tensors[0], tensors[1:], weights


def drawn(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def packed_case():
    x, h = drawn((B, T, I), (2, B, H))
    given = pack_padded_sequence(x, torch.tensor([2, 4, 1]), batch_first=True, enforce_sorted=False)
    integers = Integers(batch_sizes=given.batch_sizes, order=given.sorted_indices)
    return arguments(rkt.GRU(I, H, bidirectional=True).double(), given.data, [h], integers)


def cases():
    f64 = {"dtype": torch.float64}
    x, h, c = drawn((T, B, I), (4, B, 2), (4, B, H))
    lstm = rkt.LSTM(I, H, 2, proj_size=2, bidirectional=True, **f64)
    yield "lstm", lambda: arguments(lstm, x, [h, c])
    first, row = drawn((B, T, I), (T, I))
    yield "batch first", lambda: arguments(rkt.RNN(I, H, **f64), first, batch_first=True)
    yield "unbatched", lambda: arguments(rkt.GRU(I, H, **f64), row)
    step, h1, c1 = drawn((B, I), (B, H), (B, H))
    yield "step", lambda: arguments(rkt.LSTMCell(I, H, **f64), step, [h1, c1], is_step=True)
    yield "packed", packed_case
    integers = Integers(
        lengths=torch.tensor([4, 0, 2]),
        resets=torch.zeros(T, B, dtype=torch.bool).index_fill_(0, torch.tensor([2]), True),
    )
    yield "lengths, resets", lambda: arguments(rkt.GRU(I, H, **f64), x, (), integers)
    seed = Integers(seed=torch.tensor(7))
    yield "dropout", lambda: arguments(rkt.GRU(I, H, 2, **f64), x, (), seed, dropout=0.5)
    noisy = rkt.Recurrent(rk.LSTM(I, H, zoneout=0.5, dtype=np.float64, seed=0))
    yield "noise", lambda: arguments(noisy, x, (), seed, draws=True)
    many = rkt.Recurrent(rk.GRU(I, H, ensemble=2, dtype=np.float64, seed=0))
    yield "ensemble", lambda: arguments(many, x)
    normal = rkt.Recurrent(
        rk.LSTM(I, H, 2, residual=True, layer_norm="haste", dtype=np.float64, seed=0)
    )
    yield "residual", lambda: arguments(normal, x)


CASES = dict(cases())
each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_operators(case):
    """Schemas, shapes of fake tensors, registrations, and traces with static and dynamic shapes."""
    given = CASES[case]()
    torch.library.opcheck(operators.forward, given)
    plain = tuple(
        [t.detach() for t in a] if isinstance(a, list) else a.detach() if torch.is_tensor(a) else a
        for a in given
    )
    torch.library.opcheck(operators.infer, plain)
    *outputs, tape = operators.forward(*plain)
    for a, b in zip(outputs, operators.infer(*plain), strict=True):
        assert torch.equal(a, b)
    setup, integers, *_ = operators.split(plain)
    y = operators.read_again(setup, integers, outputs)
    checks = ("test_schema", "test_faketensor")
    operands = (*plain, tape, y, [torch.ones_like(o) for o in outputs])
    torch.library.opcheck(operators.backward, operands, test_utils=checks)


@each_case
def test_gradients(case):
    """Against finite differences, of the operator and of the eager function."""
    setup, integers, x, states, weights = operators.split(CASES[case]())
    tensors = (x, *states, *weights)

    def operator(x, *rest):
        n = len(states)
        outputs = operators.forward(*setup, *integers, x, list(rest[:n]), list(rest[n:]))
        return tuple(outputs[:-1])

    def eager(*tensors):
        call = setup, integers, calls.Arrays(), len(states)
        return operators.apply(call, *tensors)

    assert gradcheck(eager, tensors)
    assert gradcheck(operator, tensors, fast_mode=True)
    weight = [torch.randn_like(o) for o in eager(*tensors)]
    mine = torch.autograd.grad(eager(*tensors), tensors, weight)
    for a, b in zip(torch.autograd.grad(operator(*tensors), tensors, weight), mine, strict=True):
        assert torch.equal(a, b)


class Model(torch.nn.Module):
    def __init__(self, rnn, width):
        super().__init__()
        self.rnn, self.head = rnn, torch.nn.Linear(width, 1)

    def forward(self, x, *given):
        y, state = self.rnn(x, *given)
        return self.head(torch.relu(y)).sum(), state


def model_of(seed=0, **options):
    torch.manual_seed(seed)
    return Model(rkt.LSTM(I, H, 2, bidirectional=True, **options), 2 * H)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.fixture
def counted(monkeypatch):
    """How often the core ran forward."""
    ran = []
    forward = calls.run_forward

    def counting(*args):
        ran.append(args[-1])
        return forward(*args)

    monkeypatch.setattr(calls, "run_forward", counting)
    monkeypatch.setattr(operators, "run_forward", counting)
    return ran


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend, counted):
    """One graph, the same values, and tapes that reach backward; sizes may change."""
    torch._dynamo.reset()
    model = model_of()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for steps in (T, T + 1, T + 2):
        x = torch.randn(steps, B, I)
        want = gradients(model, model(x)[0])
        counted.clear()
        got = gradients(model, compiled(x)[0])
        assert counted == [True]
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)  # the head may be compiled to other sums
    with torch.no_grad():
        counted.clear()
        assert torch.equal(compiled(x)[1][0], model(x)[1][0])
        assert counted[0] is False


@pytest.mark.parametrize("changed", ["input", "output"])
def test_compiled_graphs_that_change_what_backward_reads(changed):
    torch._dynamo.reset()

    def loss(x):
        y, _ = rnn(x)
        total = y.sum()
        (x if changed == "input" else y).mul_(0.0)
        return total

    rnn = rkt.GRU(I, H)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="modified by an inplace operation"):
        compiled(torch.randn(T, B, I)).backward()
    with torch.no_grad():
        x = torch.randn(T, B, I)
        want = loss(x.clone())
        assert torch.equal(compiled(x), want)


def test_compiled_dropout_draws_from_the_generator():
    torch._dynamo.reset()
    model = model_of(dropout=0.5)
    compiled, x = torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(T, B, I)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(gradients(model, compiled(x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_compiled_packed_sequences():
    torch._dynamo.reset()
    rnn = rkt.GRU(I, H)
    x = torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 1]), enforce_sorted=False)
    compiled = torch.compile(lambda p: rnn(p), backend="aot_eager")
    (y, h), (want, last) = compiled(packed), rnn(packed)
    assert torch.equal(y.data, want.data)
    assert torch.equal(h, last)


def test_compiled_packed_sequences_with_states():
    torch._dynamo.reset()
    lstm, x = rkt.LSTM(I, H), torch.randn(T, B, I)
    compiled = torch.compile(lstm, backend="aot_eager", fullgraph=True)
    hx = torch.randn(1, B, H), torch.randn(1, B, H)
    for lengths in ([4, 2, 1], [3, 3, 2]):
        given = pack_padded_sequence(x, torch.tensor(lengths))
        (got, state), (want, last) = compiled(given, hx), lstm(given, hx)
        assert torch.equal(got.data, want.data)
        assert all(map(torch.equal, state, last))
    with pytest.raises(RuntimeError, match="hx"):
        compiled(given, (hx[0].repeat(1, 2, 1), hx[1].repeat(1, 2, 1)))
    with pytest.raises(Exception, match=r"Expected hidden\[1\] size"):
        compiled(given, (hx[0], hx[1][:, :2]))


def test_compiled_cells_and_layers():
    torch._dynamo.reset()
    cell, layer = rkt.LSTMCell(I, H), rkt.Recurrent(rk.MinGRU(H, H, seed=0))

    def loop(x):
        state, steps = None, []
        for x_t in x:
            state = cell(x_t, state)
            steps.append(state[0])
        return layer(torch.stack(steps))[0]

    x = torch.randn(T, B, I)
    compiled = torch.compile(loop, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), loop(x))


def test_second_differentiation_is_refused_by_operators():
    given = CASES["unbatched"]()
    y, *_ = operators.forward(*given)
    x = given[-3]
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        g.sum().backward()


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model, x = model_of().eval(), torch.randn(T, B, I)
    steps = torch.export.Dim("steps", min=2, max=50)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: steps}}, strict=strict)
    assert "rnnkern.infer" in str(program.graph)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for n in (T, 2 * T):
        x = torch.randn(n, B, I)
        want, state = model(x)
        got, last = loaded(x)
        torch.testing.assert_close(got, want)
        assert torch.equal(last[0], state[0])


def test_exported_programs_train():
    model, x = model_of(), torch.randn(T, B, I)
    program = torch.export.export(model, (x,))
    trained = program.module()
    want = gradients(model, model(x)[0])
    for a, b in zip(gradients(trained, trained(x)[0]), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace(grad):
    """The trace has the operator, not this call's values; PyTorch checks it without gradients."""
    model = model_of().eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model.rnn, torch.randn(T, B, I))
        x = torch.randn(T, B, I)
        y = traced(x)[0]
        assert torch.equal(y, model.rnn(x)[0])
    if grad:
        want = torch.autograd.grad(model.rnn(x)[0].sum(), list(model.rnn.parameters()))
        got = torch.autograd.grad(y.sum(), list(model.rnn.parameters()))
        assert all(map(torch.equal, got, want))


def test_functional_transforms():
    rnn, x = rkt.GRU(I, H), torch.randn(T, B, I)
    params = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(params, x):
        return torch.func.functional_call(rnn, params, (x,))[0].square().sum()

    rnn(x)[0].square().sum().backward()
    for name, g in torch.func.grad(loss)(params, x).items():
        assert torch.equal(g, rnn.get_parameter(name).grad)
    lengths = torch.tensor([4, 0, 2])
    ragged = x.clone().requires_grad_()
    rnn(ragged, lengths=lengths)[0].sum().backward()
    found = torch.func.grad(lambda x: rnn(x, lengths=lengths)[0].sum())(x)
    assert torch.equal(found, ragged.grad)
    value, pull = torch.func.vjp(lambda x: loss(params, x), x)
    assert torch.equal(value, loss(params, x))
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(rnn(leaf)[0].square().sum(), leaf)
    assert torch.equal(pull(torch.ones(()))[0], want)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.func.grad(lambda x: torch.func.grad(lambda x: loss(params, x))(x).sum())(x)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: rnn(x)[0])(torch.randn(2, T, B, I))


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_is_refused(frozen):
    """Whether or not something requires a gradient, of inputs, states and parameters."""
    rnn, x, h = rkt.GRU(I, H).requires_grad_(not frozen), torch.randn(T, B, I), torch.zeros(1, B, H)
    parameters = dict(rnn.named_parameters())
    refused = pytest.raises(NotImplementedError, match="forward-mode differentiation is not")

    def of_parameter(p):
        return torch.func.functional_call(rnn, parameters | {"bias_hh_l0": p}, (x,))[0]

    functions = (
        (lambda x: rnn(x)[0], x),
        (lambda h: rnn(x, h)[0], h),
        (of_parameter, h[0, 0].repeat(3)),
    )
    for function, at in functions:
        for context in (torch.enable_grad, torch.no_grad):
            with context(), forward_ad.dual_level(), refused:
                function(forward_ad.make_dual(at, torch.ones_like(at)))
            with context(), refused:
                torch.func.jvp(function, (at,), (at,))
        with refused:
            torch.func.jacfwd(function)(at)
    with refused:
        torch.func.linearize(functions[0][0], x)
    with forward_ad.dual_level():
        assert torch.equal(rnn(x)[0], rnn(x)[0])  # no tangent: no error


def test_forward_mode_is_refused_by_operators():
    rnn, x = rkt.GRU(I, H), torch.randn(T, B, I)
    refused = pytest.raises(NotImplementedError, match="forward-mode differentiation is not")
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(rnn, backend=backend)
        compiled(x)
        with forward_ad.dual_level():
            assert torch.equal(compiled(x)[0], rnn(x)[0])
            with refused:
                compiled(forward_ad.make_dual(x, x))
        with refused:
            torch.compile(
                lambda x: torch.func.jvp(lambda x: rnn(x)[0], (x,), (x,)), backend=backend
            )(x)
    rnn.requires_grad_(False)
    exported = torch.export.export(rnn, (x,)).module()
    with forward_ad.dual_level(), refused:
        exported(forward_ad.make_dual(x, x))


def test_tensors_without_memory():
    for module in (rkt.LSTM(I, H, batch_first=True), rkt.GRU(I, H, 2, bidirectional=True)):
        x = torch.randn(T, B, I)
        want = module(x)
        for where in ("meta", "fake"):
            if where == "meta":
                got = module.to("meta")(x.to("meta"))
            else:
                with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                    got = module(mode.from_tensor(x))
            flat = [got[0], *(got[1] if isinstance(got[1], tuple) else [got[1]])]
            wanted = [want[0], *(want[1] if isinstance(want[1], tuple) else [want[1]])]
            assert [t.shape for t in flat] == [t.shape for t in wanted]
            module = type(module)(I, H) if where == "meta" else module
            want = module(x)


def test_wrong_arguments_while_tracing():
    torch._dynamo.reset()
    rnn = rkt.GRU(I, H)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"input.size\(-1\) must be equal to input_size"):
        compiled(torch.zeros(T, B, I + 1))
    given = arguments(rnn.double(), *drawn((T, B, I)), drawn((1, B, H), (1, B, H)))
    with pytest.raises(RuntimeError, match="hx: expected 1 tensors, got 2"):
        operators.infer(*given)
    with pytest.raises(ValueError, match="weights: expected 4 tensors"):
        operators.infer(*given[:-1], given[-1][:2])


def test_layers_of_a_description_are_one():
    a, b = rkt.GRU(I, H), rkt.GRU(I, H)
    assert a._descriptions == b._descriptions
    layer = calls.layer_of(a._descriptions[torch.float32])
    assert calls.layer_of(b._descriptions[torch.float32]) is layer
    other = rkt.Recurrent(make_layer("gru_reset_before", I, H))
    assert calls.layer_of(other._descriptions[torch.float32]) is not layer
