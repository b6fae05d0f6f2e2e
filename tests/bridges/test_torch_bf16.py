"""rnnkern.torch in bfloat16: under autocast, with parameters of bfloat16, and in files."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_torch import CELL_KINDS, KINDS, B, H, I, T, each_kind, flat, twins
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import rnnkern as rk
import rnnkern.torch as rkt
from rnnkern import files

# PyTorch's own code calls what it has deprecated, and says so of its own projections.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

LOW = torch.bfloat16
each_cell = pytest.mark.parametrize("kind", CELL_KINDS)


def autocast(dtype=LOW):
    return torch.autocast("cpu", dtype=dtype)


def needs_pytorch_s_autocast(kind):
    """Skip where PyTorch cannot run its own LSTM under autocast: oneDNN asks for AVX-512."""
    if kind == "lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("PyTorch's LSTM under autocast needs oneDNN with bfloat16, and so AVX-512")


def states_of(module, dtype, *, batch=(B,)):
    """Random initial states, as a module or a cell takes them."""
    if isinstance(module, torch.nn.RNNBase):
        batch = (module.num_layers * (2 if module.bidirectional else 1), *batch)
    widths = [getattr(module, "proj_size", 0) or H, H]
    drawn = [torch.randn(*batch, width).to(dtype) for width in widths]
    return tuple(drawn) if "LSTM" in type(module).__name__ else drawn[0]


def layer_of(module):
    """The layer with compute="bf16" of copies of a module's parameters in float32."""
    copied = copy.deepcopy(module).float().as_layer()
    arguments = {name: value for name, value, _ in copied._arguments()}
    params = {name: values.copy() for name, values in copied.params.items()}
    return type(copied)(**{**arguments, "compute": "bf16", "params": params})


def core_of(module, x, hx, *, lengths=None):
    """Outputs and gradients of such a layer: those of x, of states and of parameters.

    Of a linear function of the outputs, with the random factors of `run`.
    """
    layer = layer_of(module)
    is_cell = not isinstance(module, torch.nn.RNNBase)
    given = [t.detach().float().numpy() for t in (x, *flat(hx))]
    if is_cell:
        given = [t[None] for t in given]
    x, *states = given
    state = tuple(states) if len(states) > 1 else states[0] if states else None
    y, last, tape = layer.forward(x, state, lengths)
    last = list(last) if isinstance(last, tuple) else [last]
    outputs = [s[0] for s in last] if is_cell else [y, *last]
    return layer, tape, state, outputs


def run(module, x, hx, **given):
    """Outputs, and the gradients of x, states and parameters of a random linear function."""
    x = x.detach().requires_grad_()
    hx = tuple(s.detach().requires_grad_() for s in flat(hx))
    leaves = [x, *hx, *module.parameters()]
    outputs = flat(module(x, (hx if len(hx) > 1 else hx[0]) if hx else None, **given))
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return outputs, factors, torch.autograd.grad(outputs, leaves, factors)


def assert_is_the_core_s(module, x, hx, found, *, lengths=None):
    """The bits of a layer with compute="bf16", rounded to the dtype that is returned."""
    outputs, factors, grads = found
    layer, tape, state, want = core_of(module, x, hx, lengths=lengths)
    for got, array in zip(outputs, want, strict=True):
        assert torch.equal(got, torch.from_numpy(array.copy()).to(got.dtype))
    of = [f.float().numpy() for f in factors]
    is_cell = not isinstance(module, torch.nn.RNNBase)
    dy, dstate = (None, [f[None] for f in of]) if is_cell else (of[0], of[1:])
    dstate = tuple(dstate) if len(dstate) > 1 else dstate[0]
    back = layer.backward(tape, dy, dstate)
    first = back.state if isinstance(back.state, tuple) else (back.state,)
    arrays = [back.x, *(first if state is not None else ()), *back.params.values()]
    for got, array in zip(grads, arrays, strict=True):
        # One rounding to the dtype of the tensor that the gradient is of.
        array = array.reshape(got.shape)
        assert torch.equal(got, torch.from_numpy(array.copy()).to(got.dtype))


# ---- autocast ----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("parameters", [torch.float32, LOW], ids=str)
def test_autocast_returns_the_dtypes_of_pytorch(kind, parameters):
    needs_pytorch_s_autocast(kind)
    name, options = KINDS[kind]
    for bidirectional, given in itertools.product((False, True), (None, torch.float32, LOW)):
        theirs, ours = twins(name, I, H, dtype=parameters, bidirectional=bidirectional, **options)
        hx = None if given is None else states_of(theirs, given)
        for dtype in (torch.float32, LOW):
            x = torch.randn(T, B, I).to(dtype)
            for grad in (True, False):
                with autocast(), torch.set_grad_enabled(grad):
                    got, want = flat(ours(x, hx)), flat(theirs(x, hx))
                assert [t.dtype for t in got] == [t.dtype for t in want]


@each_cell
@pytest.mark.parametrize("parameters", [torch.float32, LOW], ids=str)
def test_autocast_of_cells_returns_the_dtypes_of_pytorch(kind, parameters):
    name, options = CELL_KINDS[kind]
    theirs, ours = twins(name, I, H, dtype=parameters, **options)
    for dtype, given in itertools.product((torch.float32, LOW), (None, torch.float32, LOW)):
        x = torch.randn(B, I).to(dtype)
        hx = None if given is None else states_of(theirs, given)
        with autocast():
            got, want = flat(ours(x, hx)), flat(theirs(x, hx))
        assert [t.dtype for t in got] == [t.dtype for t in want]


@each_kind
def test_autocast_computes_products_in_bf16(kind):
    name, options = KINDS[kind]
    for dtype, given in itertools.product((torch.float32, LOW), (None, torch.float32, LOW)):
        _, ours = twins(name, I, H, 2, bidirectional=True, **options)
        x = torch.randn(T, B, I).to(dtype)
        hx = None if given is None else states_of(ours, given)
        with autocast():
            found = run(ours, x, hx)
        assert_is_the_core_s(ours, x, hx, found)
        assert found[2][0].dtype is dtype
        assert all(g.dtype is torch.float32 for g in found[2][1 + len(flat(hx)) :])
        hx = [s.float() for s in flat(hx)]
        plain = ours(x.float(), (tuple(hx) if len(hx) > 1 else hx[0]) if hx else None)
        assert not torch.equal(flat(plain)[0], found[0][0].float())


@each_cell
def test_autocast_of_cells_computes_products_in_bf16(kind):
    name, options = CELL_KINDS[kind]
    _, ours = twins(name, I, H, **options)
    for given in (None, torch.float32, LOW):
        x, hx = torch.randn(B, I), None if given is None else states_of(ours, given)
        with autocast():
            found = run(ours, x, hx)
        assert_is_the_core_s(ours, x, hx, found)


@each_kind
@pytest.mark.parametrize("parameters", [torch.float32, LOW], ids=str)
def test_outputs_and_gradients_are_near_pytorch_s(kind, parameters):
    """PyTorch rounds more than products: h at every step, and gates, sums or gradients.

    Each such rounding moves a number by up to 2^-8 of itself. Over T = 6 steps of a layer with
    slopes of at most one, random signs and sums of I + H terms, 8 of them bound the difference to
    the largest value.
    """
    if parameters is torch.float32:
        needs_pytorch_s_autocast(kind)
    name, options = KINDS[kind]
    theirs, ours = twins(name, I, H, dtype=parameters, **options)
    x, hx = torch.randn(T, B, I).to(parameters), states_of(theirs, parameters)
    with autocast():
        got, want = run(ours, x, hx), run(theirs, x, hx)
    for a, b in zip((*got[0], *got[2]), (*want[0], *want[2]), strict=True):
        assert a.dtype is b.dtype
        off = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert off < 8 * 2.0**-8


def test_autocast_of_any_layer_returns_the_parameters_dtype():
    """Its states go from call to call without a rounding."""
    for made in (rk.MinGRU, rk.SLSTM, rk.IndRNN):
        layer = made(I, H, compute="bf16", seed=0)
        plain = rkt.Recurrent(made(I, H, seed=0))
        x = torch.randn(T, B, I)
        want = [torch.from_numpy(np.array(a)) for a in flat_arrays(layer(x.numpy()))]
        with autocast():
            got = flat(plain(x))
        assert [t.dtype for t in got] == [torch.float32] * len(want)
        assert all(map(torch.equal, got, want))
        with autocast(torch.float16):
            assert not torch.equal(plain(x)[0], want[0])
        inside = rkt.Recurrent(layer)  # which needs no autocast
        assert all(map(torch.equal, flat(inside(x)), want))
        assert "compute='bf16'" in repr(inside)


def flat_arrays(found):
    y, state = found
    return [y, *(state if isinstance(state, tuple) else (state,))]


def test_packed_sequences_and_lengths():
    _, ours = twins("GRU", I, H, 2, bidirectional=True)
    x, lengths = torch.randn(T, B, I), torch.tensor([6, 2, 4, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    with autocast():
        y, h = ours(packed)
        ragged, h_ragged = ours(x, lengths=lengths)
    assert y.data.dtype is torch.float32
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert torch.equal(padded, ragged)
    assert torch.equal(h, h_ragged)
    low = copy.deepcopy(ours).bfloat16()
    y, h = low(pack_padded_sequence(x.to(LOW), lengths, enforce_sorted=False))
    assert (y.data.dtype, h.dtype) == (LOW, LOW)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert torch.equal(padded, low(x.to(LOW), lengths=lengths)[0])


# ---- parameters of bfloat16 --------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_modules_of_bfloat16(kind, bidirectional):
    name, options = KINDS[kind]
    for layers, given in itertools.product((1, 2), (False, True)):
        _, ours = twins(name, I, H, layers, dtype=LOW, bidirectional=bidirectional, **options)
        x = torch.randn(T, B, I).to(LOW)
        hx = states_of(ours, LOW) if given else None
        found = run(ours, x, hx)
        assert {t.dtype for part in found for t in part} == {LOW}
        assert_is_the_core_s(ours, x, hx, found)
        with torch.no_grad():
            again = flat(ours(x, hx))
        assert all(map(torch.equal, again, found[0]))


@each_cell
def test_cells_of_bfloat16(kind):
    name, options = CELL_KINDS[kind]
    _, ours = twins(name, I, H, dtype=LOW, **options)
    for given in (False, True):
        x, hx = torch.randn(B, I).to(LOW), states_of(ours, LOW) if given else None
        found = run(ours, x, hx)
        assert {t.dtype for part in found for t in part} == {LOW}
        assert_is_the_core_s(ours, x, hx, found)


def test_a_module_of_bfloat16_is_trained_copied_and_saved():
    _, ours = twins("LSTM", I, H, 2, dropout=0.5, dtype=LOW)
    x = torch.randn(T, B, I).to(LOW)
    optimizer = torch.optim.SGD(ours.parameters(), lr=10.0)
    before = [p.detach().clone() for p in ours.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        y, _ = ours(x)
        y.float().square().mean().backward()
        assert all(p.grad.dtype is LOW for p in ours.parameters())
        optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(ours.parameters(), before, strict=True))
    ours.eval()
    want = ours(x)[0]
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), saved):
        assert torch.equal(other(x)[0], want)
    wide = copy.deepcopy(ours).float()
    assert wide(x.float())[0].dtype is torch.float32
    assert torch.equal(wide.bfloat16()(x)[0], want)


def test_accelerate_takes_modules_of_bfloat16():
    theirs, ours = twins("GRU", I, H, dtype=LOW)
    x = torch.randn(T, B, I).to(LOW)
    want = theirs(x)[0]
    assert rkt.accelerate(theirs) == ([""], {})
    assert torch.equal(theirs(x)[0], ours(x)[0])
    assert rkt.restore(theirs) == [""]
    assert torch.equal(theirs(x)[0], want)


def test_recurrent_modules_of_bfloat16():
    for made in (rk.MinGRU, rk.SLSTM, rk.RNN):
        module = rkt.Recurrent(made(I, H, 2, seed=0)).bfloat16()
        x = torch.randn(T, B, I).to(LOW)
        y, state = module(x)
        assert {t.dtype for t in flat((y, state))} == {LOW}
        params = {name: p.detach().float().numpy() for name, p in module.named_parameters()}
        layer = made(I, H, 2, compute="bf16", params=params)
        assert torch.equal(y, torch.from_numpy(layer(x.float().numpy())[0]).to(LOW))
        y.float().sum().backward()
        assert all(p.grad.dtype is LOW for p in module.parameters())


def test_a_layer_of_float64_may_have_a_clip_that_float32_lacks():
    layer = rk.LSTM(I, H, cell_clip=1e300, dtype=np.float64, seed=0)
    x = torch.randn(T, B, I, dtype=torch.float64)
    module = rkt.Recurrent(layer)
    assert torch.equal(module(x)[0], torch.from_numpy(layer(x.numpy())[0]))
    module, x = module.bfloat16(), x.to(LOW)
    params = {name: p.detach().float().numpy() for name, p in module.named_parameters()}
    unclipped = rk.LSTM(I, H, compute="bf16", params=params)
    assert torch.equal(module(x)[0], torch.from_numpy(unclipped(x.float().numpy())[0]).to(LOW))


def test_clips_act_before_gradients_are_rounded():
    """A bound that bfloat16 does not hold: the clipped gradients are the bound's rounding."""
    _, ours = twins("GRU", I, H, dtype=LOW)
    ours.clip = rk.Clip(value=0.01)
    y, _ = ours(torch.randn(T, B, I).to(LOW))
    y.float().sum().backward()
    bound = torch.tensor(0.01).to(LOW)
    assert ours.weight_hh_l0.grad.abs().max() == bound


# ---- traced ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
def test_compiled(name):
    """Without graph breaks, the same bits: of bfloat16, and under autocast."""
    shape = (B, I) if name.endswith("Cell") else (T, B, I)
    for low in (True, False):
        _, ours = twins(name, I, H, dtype=LOW if low else torch.float32)
        x = torch.randn(shape).to(LOW if low else torch.float32)

        def call(x, ours=ours, low=low):
            with torch.autocast("cpu", dtype=LOW, enabled=not low):
                return flat(ours(x))

        torch._dynamo.reset()
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        for grad in (False, True):
            given = [x.clone().requires_grad_(grad) for _ in range(2)]
            with torch.set_grad_enabled(grad):
                got, want = compiled(given[0]), call(given[1])
            assert [t.dtype for t in got] == [t.dtype for t in want]
            assert all(map(torch.equal, got, want))
        for outputs in (got, want):
            sum(t.float().sum() for t in outputs).backward()
        assert torch.equal(given[0].grad, given[1].grad)


def test_exported_and_traced():
    _, ours = twins("GRU", I, H, 2, dtype=LOW)
    ours.eval()
    x = torch.randn(T, B, I).to(LOW)
    want = ours(x)[0]
    program = torch.export.export(ours, (x,)).module()
    assert torch.equal(program(x)[0], want)
    traced = torch.jit.trace(ours, (x,), check_trace=False)
    assert torch.equal(traced(x)[0], want)


def test_transforms_and_checkpoints():
    _, ours = twins("GRU", I, H, dtype=LOW)
    x = torch.randn(T, B, I).to(LOW)
    params = dict(ours.named_parameters())

    def loss(params):
        return torch.func.functional_call(ours, params, (x,))[0].float().square().sum()

    want = torch.autograd.grad(loss(params), list(params.values()))
    got = torch.func.grad(loss)({name: p.detach() for name, p in params.items()})
    assert all(map(torch.equal, got.values(), want))
    again = checkpoint(lambda x: ours(x)[0].float().square().sum(), x, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again, list(params.values())), want))


def test_meta_tensors():
    with torch.device("meta"):
        module = rkt.LSTM(I, H, dtype=LOW)
        y, (h, c) = module(torch.zeros(T, B, I, dtype=LOW))
    assert (y.shape, h.shape, c.shape) == ((T, B, H), (1, B, H), (1, B, H))
    assert {t.dtype for t in (y, h, c)} == {LOW}


# ---- errors ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    gru, cell = rkt.GRU(I, H, dtype=LOW), rkt.GRUCell(I, H, dtype=LOW)
    odd = rkt.Recurrent(rk.MinGRU(I, H, seed=0)).bfloat16()
    x, mixed = torch.randn(T, B, I), rkt.GRU(I, H, dtype=LOW)
    mixed.bias_hh_l0 = torch.nn.Parameter(mixed.bias_hh_l0.float())
    low = x.to(LOW)
    inside = rkt.Recurrent(rk.GRU(I, H, compute="bf16")).double()
    for error, message, call in (
        (ValueError, "RNN input dtype", lambda: gru(x)),
        (RuntimeError, r"hx\[0\]: expected torch.bfloat16", lambda: gru(low, torch.zeros(1, B, H))),
        (RuntimeError, r"input: expected torch.bfloat16", lambda: cell(x[0])),
        (RuntimeError, r"input: expected torch.bfloat16", lambda: odd(x)),
        (RuntimeError, r"bias_hh_l0: expected torch.bfloat16", lambda: mixed(low)),
        (RuntimeError, "expected hidden size|Expected hidden size",
         lambda: gru(low, torch.zeros(1, B, H + 1, dtype=LOW))),
        (RuntimeError, "lengths: expected values from 0 to T",
         lambda: gru(low, lengths=torch.full((B,), T + 1))),
        (RuntimeError, "float32 or torch.float64, got one of torch.bfloat16", gru.as_layer),
        (RuntimeError, "torch.float32 or torch.bfloat16, got one of torch.float64",
         lambda: inside(x.double())),
        (RuntimeError, "expected a tensor of torch.float32, got one of torch.float64",
         inside.as_layer),
        (RuntimeError, "torch.float64 or torch.bfloat16, got one of torch.float16",
         lambda: rkt.GRU(I, H).half()(x.half())),
        (TypeError, "input: expected a Tensor, got list", lambda: gru([1.0])),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    with autocast(), pytest.raises(TypeError, match="input: expected a Tensor, got list"):
        rkt.GRU(I, H)([1.0])


# ---- files -------------------------------------------------------------------------------------


def test_pytorch_reads_and_writes_files_of_bfloat16(tmp_path):
    path = tmp_path / "model.safetensors"
    gru = rk.GRU(I, H, 2, seed=0)
    files.save(path, {"gru": gru}, dtype="bfloat16")
    module = torch.nn.GRU(I, H, 2, dtype=LOW)
    tensors = load_file(path)
    module.load_state_dict({name.removeprefix("gru."): t for name, t in tensors.items()})
    for name, values in gru.params.items():
        assert torch.equal(getattr(module, name), torch.from_numpy(values).to(LOW))
    save_file(module.state_dict(), path)
    again = rk.from_state_dict(files.load(path), "")
    for name, values in again.params.items():
        assert np.array_equal(values, getattr(module, name).detach().float().numpy())
    bits = files.load(path, dtype="bfloat16")
    for name, values in bits.items():
        assert np.array_equal(values, getattr(module, name).detach().view(torch.uint16).numpy())
