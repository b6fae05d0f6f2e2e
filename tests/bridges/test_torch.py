"""rnnkern.torch beside torch.nn: outputs, gradients, and what else a module must do."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import subprocess
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from helpers import MAKERS, assert_close, make_layer
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import rnnkern as rk
import rnnkern.torch as rkt
from rnnkern import _core
from rnnkern.reference import CELLS
from rnnkern.torch import calls

# PyTorch's own module says so, once, of its projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B, I, H = 6, 4, 3, 5
KINDS = {
    "rnn": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
}
CELL_KINDS = {
    "rnn": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def twins(name, *sizes, dtype=torch.float32, **options):
    """PyTorch's module and ours of the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*sizes, dtype=dtype, **options)
    ours = getattr(rkt, name)(*sizes, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states_of(module, rows, dtype=torch.float32):
    """Random initial states that require gradients, as the module takes them."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size, module.hidden_size]
    drawn = [torch.randn(layers, *rows, w, dtype=dtype, requires_grad=True) for w in widths]
    return tuple(drawn) if module.mode == "LSTM" else drawn[0]


def flat(found):
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, torch.nn.utils.rnn.PackedSequence):
        return [found.data]
    return [] if found is None else [t for part in found for t in flat(part)]


def run(module, x, hx, **given):
    """Outputs, and the gradients of x, states and parameters of a random linear function."""
    leaves = [*flat(hx), *module.parameters()]
    x = x.detach().requires_grad_()
    wanted = x
    if "pack" in given:
        wanted, x = x, given.pop("pack")(x)
    outputs = flat(module(x, hx, **given))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [wanted, *leaves], weights)]


def compare(got, want):
    """Of one call each; `assert_close` says why its bound is what it is."""
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a.detach().numpy(), b.detach().numpy(), DTYPES[b.dtype], str(k))


# ---- results -----------------------------------------------------------------------------------


@each_kind
@each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_results(kind, dtype, bidirectional):
    """Layers, biases, layouts and initial states."""
    name, options = KINDS[kind]
    for layers, bias, batch_first, given in itertools.product((1, 2), *((False, True),) * 3):
        theirs, ours = twins(
            *(name, I, H, layers),
            dtype=dtype,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            **options,
        )
        x = torch.randn(T, B, I, dtype=dtype)
        x = x.transpose(0, 1) if batch_first else x  # and strided at that
        hx = states_of(theirs, (B,), dtype) if given else None
        compare(run(ours, x, hx), run(theirs, x, hx))


@each_kind
def test_unbatched(kind):
    name, options = KINDS[kind]
    theirs, ours = twins(name, I, H, 2, bidirectional=True, **options)
    x = torch.randn(T, I)
    hx = states_of(theirs, ())
    compare(run(ours, x, hx), run(theirs, x, hx))


@each_kind
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed(kind, enforce_sorted, batch_first):
    name, options = KINDS[kind]
    for lengths, given in ([6, 4, 4, 1], True), ([6, 6, 6, 6], True), ([5, 3, 2, 2], False):
        if not enforce_sorted:
            lengths = [lengths[2], lengths[0], lengths[3], lengths[1]]
        theirs, ours = twins(name, I, H, 2, bidirectional=True, batch_first=batch_first, **options)
        x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
        hx = states_of(theirs, (B,)) if given else None

        def pack(x, lengths=lengths):
            return pack_padded_sequence(
                x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=enforce_sorted
            )

        compare(run(ours, x, hx, pack=pack), run(theirs, x, hx, pack=pack))
        packed = pack(x)
        got, want = ours(packed)[0], theirs(packed)[0]
        for own, other in zip(got[1:], want[1:], strict=True):
            assert other is None or torch.equal(own, other)


def test_packed_from_sequences():
    theirs, ours = twins("GRU", I, H)
    packed = pack_sequence([torch.randn(n, I) for n in (2, 5, 1)], enforce_sorted=False)
    compare(flat(ours(packed)), flat(theirs(packed)))


@each_kind
def test_lengths(kind):
    """They give what packing gives, to the bit, and take rows of no step."""
    name, options = KINDS[kind]
    _, ours = twins(name, I, H, 2, bidirectional=True, **options)
    x, lengths = torch.randn(T, B, I), torch.tensor([4, 6, 1, 3])
    hx = states_of(ours, (B,))

    def pack(x):
        return pack_padded_sequence(x, lengths, enforce_sorted=False)

    y, *others = run(ours, x, hx, pack=pack)
    packed = ours(pack(x))[0]
    whole, *again = run(ours, x, hx, lengths=lengths)
    mine = pack_padded_sequence(whole, lengths, enforce_sorted=False).data
    assert packed.data.shape == mine.shape
    assert torch.equal(y, mine)
    states = len(flat(hx))
    for a, b in zip(others[:states], again[:states], strict=True):
        assert torch.equal(a, b)
    none = ours(x, hx, lengths=torch.zeros(B, dtype=torch.int64))
    for a, b in zip(flat(none[1]), flat(hx), strict=True):
        assert torch.equal(a, b)
    assert not none[0].any()


def test_resets():
    _, ours = twins("LSTM", I, H)
    x, resets = torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    y, state = ours(x, resets=resets)
    first, second = ours(x[:3]), ours(x[3:])
    assert torch.equal(y, torch.cat([first[0], second[0]]))
    assert torch.equal(state[1], second[1][1])


@pytest.mark.parametrize("kind", CELL_KINDS)
@each_dtype
def test_cells(kind, dtype):
    name, options = CELL_KINDS[kind]
    for rows, bias, given in itertools.product(((), (B,)), (False, True), (False, True)):
        theirs, ours = twins(name, I, H, dtype=dtype, bias=bias, **options)
        x = torch.randn(*rows, I, dtype=dtype)
        drawn = [torch.randn(*rows, H, dtype=dtype, requires_grad=True) for _ in range(2)]
        hx = None if not given else tuple(drawn) if kind == "lstm" else drawn[0]
        compare(run(ours, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize("kind", MAKERS)
def test_any_layer(kind):
    """A Recurrent gives the layer's own results, to the bit."""
    layer = make_layer(kind, I, H, num_layers=2, dtype=np.float64)
    module = rkt.Recurrent(layer)
    x = torch.randn(T, B, layer.input_size, dtype=torch.float64)
    lengths = torch.tensor([6, 2, 0, 5])
    y, state = layer(x.numpy(), lengths=lengths.numpy())
    with torch.no_grad():
        got = module.eval()(x, lengths=lengths)
    for a, b in zip(flat(got), [y, *(state if isinstance(state, tuple) else [state])], strict=True):
        assert np.array_equal(a, b)
    module.train()
    torch.manual_seed(5)
    y, _ = module(x.requires_grad_(), lengths=lengths)
    y.square().sum().backward()
    torch.manual_seed(5)
    if CELLS[kind].noise:
        layer.dropout_state = {"seeds": [int(torch.randint(2**63 - 1, ()))], "step": 0}
    y, _, tape = layer.forward(x.detach().numpy(), lengths=lengths.numpy())
    grads = layer.backward(tape, 2 * y)
    assert np.array_equal(x.grad, grads.x)
    for name, parameter in module.named_parameters():
        assert np.array_equal(parameter.grad, grads.params[name]), name


def test_ensemble():
    layer = rk.GRU(I, H, ensemble=3, seed=0)
    module = rkt.Recurrent(layer)
    for x in torch.randn(T, 3, B, I), torch.randn(T, B, I):
        y, h = module(x)
        assert y.shape == (T, 3, B, H)
        assert np.array_equal(h.detach(), layer(x.numpy())[1])
        y.sum().backward()
    assert module.weight_hh_l0.grad.shape == (3, 3 * H, H)


# ---- parameters --------------------------------------------------------------------------------


@each_kind
def test_constructor_and_state_dict(kind):
    """The same values under a seed, the same names, the same repr; and both ways of loading."""
    name, options = KINDS[kind]
    made = []
    for where in (torch.nn, rkt):
        torch.manual_seed(3)
        made.append(getattr(where, name)(I, H, 2, bidirectional=True, dropout=0.1, **options))
    theirs, ours = made
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
    assert repr(theirs) == repr(ours)
    theirs.load_state_dict(ours.state_dict())
    ours.flatten_parameters()
    assert [len(of) for of in ours.all_weights] == [len(of) for of in theirs.all_weights]


def test_positions_of_arguments():
    """Those of PyTorch's constructors, whose RNN alone has the nonlinearity in fourth place."""
    for name, args in (
        ("RNN", (3, 5, 2, "relu", False, True, 0.1, True)),
        ("LSTM", (3, 5, 2, False, True, 0.1, True, 2)),
        ("GRU", (3, 5, 2, False, True, 0.1, True)),
        ("RNNCell", (3, 5, False, "relu")),
        ("LSTMCell", (3, 5, False)),
        ("GRUCell", (3, 5, False)),
    ):
        assert repr(getattr(rkt, name)(*args)) == repr(getattr(torch.nn, name)(*args))


def test_parameters_are_read_in_place():
    """Views of one buffer, written through it, and parameters of another layout."""
    _, ours = twins("GRU", I, H)
    buffer = torch.cat([p.detach().reshape(-1) for p in ours.parameters()])
    offset = 0
    for p in ours.parameters():
        p.data = buffer[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    x = torch.randn(T, B, I)
    before = ours(x)[0]
    buffer.mul_(2)
    theirs = torch.nn.GRU(I, H)
    theirs.load_state_dict(ours.state_dict())
    compare([ours(x)[0]], [theirs(x)[0]])
    assert not torch.allclose(ours(x)[0], before)
    ours.weight_ih_l0.data = ours.weight_ih_l0.detach().t().contiguous().t()
    compare([ours(x)[0]], [theirs(x)[0]])
    _, square = twins("RNN", H, H)  # of the same address and shape, in another order
    y = square(torch.ones(T, B, H))[0]
    square.weight_hh_l0.data = square.weight_hh_l0.data.t()
    want = torch.nn.RNN(H, H)
    want.load_state_dict(square.state_dict())
    compare([square(torch.ones(T, B, H))[0]], [want(torch.ones(T, B, H))[0]])
    assert not torch.equal(y, want(torch.ones(T, B, H))[0])


def test_no_copies():
    layer = rk.LSTM(I, H, seed=0)
    module = rkt.Recurrent(layer)
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == layer.params[name].ctypes.data
    for values in layer.params.values():
        values *= 0.5
    x = torch.randn(T, B, I)
    assert np.array_equal(module(x)[0].detach(), layer(x.numpy())[0])
    for ours in (rkt.LSTM(I, H, 2, proj_size=2), rkt.GRUCell(I, H), module):
        other = ours.as_layer()
        with torch.no_grad():
            ours.weight_hh.fill_(0.5) if hasattr(ours, "weight_hh") else ours.weight_hh_l0.fill_(
                0.5
            )
        assert (other.params["weight_hh_l0"] == 0.5).all()
    assert np.array_equal(module(x)[0].detach(), module.as_layer()(x.numpy())[0])
    assert module.double().as_layer().dtype == np.float64
    seen = []
    hooks = [p.register_hook(lambda g: seen.append(g.data_ptr())) for p in module.parameters()]
    module(x.double())[0].sum().backward()
    assert sorted(seen) == sorted(p.grad.data_ptr() for p in module.parameters())
    assert len(hooks) == 4
    big = np.zeros((100, 100, 100), np.float32)
    big.flags.writeable = False
    assert calls.as_tensor(big).data_ptr() == big.ctypes.data


def test_memory_of_arguments_can_be_resized():
    """After a call, inputs and parameters can grow, and lose their memory and get other."""
    for keep in (False, True):
        _, ours = twins("GRU", I, H)
        ours.requires_grad_(keep)
        x = torch.randn(T, B, I)
        want = ours(x)[0]
        half, later = x[:2].clone(), x.clone()
        ours(half)
        half.resize_(x.shape).copy_(x)
        assert torch.equal(ours(half)[0], want)
        storage, values = ours.weight_hh_l0.untyped_storage(), ours.weight_hh_l0.detach().clone()
        size = storage.nbytes()
        storage.resize_(0)
        with pytest.raises(RuntimeError, match="weight_hh_l0: expected a tensor with memory"):
            ours(x)
        storage.resize_(size)
        with torch.no_grad():
            ours.weight_hh_l0.copy_(values)
        assert torch.equal(ours(x)[0], want)
        ours(later)
        later.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="input: expected a tensor with memory"):
            ours(later)


def test_moved_parameters_free_their_memory():
    module = torch.nn.Sequential(rkt.LSTM(I, H))
    module[0](torch.randn(T, B, I))
    parameters = {name: p.detach().clone() for name, p in module[0].named_parameters()}
    freed = []
    for name, values in parameters.items():
        memory = values.numpy()
        weakref.finalize(memory, freed.append, name)
        getattr(module[0], name).data = torch.from_numpy(memory)
    del memory, values, parameters
    module[0](torch.randn(T, B, I))
    module.to("meta")
    gc.collect()
    assert sorted(freed) == sorted(name for name, _ in module[0].named_parameters())


def test_frozen_parameters():
    theirs, ours = twins("LSTM", I, H)
    x = torch.randn(T, B, I)
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module(x)[0].square().sum().backward()
        assert module.weight_hh_l0.grad is None
    compare([ours.weight_ih_l0.grad], [theirs.weight_ih_l0.grad])
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(x)[0].requires_grad
    y = ours(x.requires_grad_())[0]
    y.sum().backward()
    assert x.grad is not None


def test_tied_weights():
    pairs = twins("GRU", H, H, 2)
    x = torch.randn(T, B, H)
    for module in pairs:
        module.weight_hh_l1 = module.weight_hh_l0
        module(x)[0].square().sum().backward()
    theirs, ours = pairs
    assert len(list(ours.parameters())) == 7
    compare([ours.weight_hh_l0.grad], [theirs.weight_hh_l0.grad])


def test_replaced_parameters():
    """By assignment, by functional_call, by weight_norm's attributes and by parametrizations."""
    theirs, ours = twins("GRU", I, H)
    x = torch.randn(T, B, I)
    doubled = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    got = torch.func.functional_call(ours, doubled, (x,))
    theirs.load_state_dict(doubled)
    compare(flat(got), flat(theirs(x)))
    ours.weight_hh_l0 = torch.nn.Parameter(doubled["weight_hh_l0"])
    theirs.load_state_dict(ours.state_dict())
    compare(flat(ours(x)), flat(theirs(x)))

    class Halved(torch.nn.Module):
        def forward(self, values):
            return values / 2

    parametrize.register_parametrization(ours, "weight_hh_l0", Halved())
    theirs.weight_hh_l0.data /= 2
    y = ours(x)[0]
    compare([y], [theirs(x)[0]])
    y.sum().backward()
    assert ours.parametrizations.weight_hh_l0.original.grad is not None


def test_dtype_of_a_module_can_change():
    theirs, ours = twins("LSTM", I, H, proj_size=2)
    x = torch.randn(T, B, I)
    compare(run(ours.double(), x.double(), None), run(theirs.double(), x.double(), None))
    compare(run(ours.float(), x, None), run(theirs.float(), x, None))


# ---- autograd ----------------------------------------------------------------------------------


def test_modes():
    theirs, ours = twins("LSTM", I, H)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        y, (h, c) = ours(x)
        assert not any(t.requires_grad for t in (y, h, c))
        compare([y], [theirs(x)[0]])
    with torch.inference_mode():
        compare(flat(ours(x)), flat(theirs(x)))
        compare(flat(ours.double()(x.double())), flat(theirs.double()(x.double())))


@pytest.mark.parametrize(
    ("parameters", "low"),
    [(torch.float64, torch.bfloat16), (torch.float32, torch.float16)],
    ids=str,
)
def test_other_autocasts_compute_in_the_dtype_of_the_parameters(parameters, low):
    """Those of float32 to bfloat16 are in test_torch_bf16.py."""
    _, ours = twins("GRU", I, H, dtype=parameters)
    x = torch.randn(T, B, I, requires_grad=True)
    h = torch.randn(1, B, H)
    want = ours(x.to(low).to(parameters), h.to(low).to(parameters))[0]
    with torch.autocast("cpu", dtype=low):
        y, _ = ours(x.to(low), h.to(low))
        assert y.dtype is parameters
        assert torch.equal(y, want)
    y.sum().backward()
    assert x.grad.dtype is torch.float32


def test_unused_outputs_and_kept_graphs():
    theirs, ours = twins("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    for k in range(3):  # y, h or c alone
        grads = [torch.autograd.grad(flat(m(x))[k].sum(), x)[0] for m in (ours, theirs)]
        compare(grads[:1], grads[1:])
    y = ours(x)[0].sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x)[0], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("changed", ["x", "y", "parameter", "state"])
def test_changes_before_backward(changed):
    """What backward reads again must not change: PyTorch's own error."""
    _, ours = twins("GRU", I, H)
    x, h = torch.randn(T, B, I), torch.randn(1, B, H)
    y, _ = ours(x, h)
    with torch.no_grad():
        {"x": x, "y": y, "parameter": ours.weight_hh_l0, "state": h}[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_packed_outputs_can_change():
    """They are copies of what the tape reads."""
    _, ours = twins("GRU", I, H)
    packed = pack_sequence([torch.randn(5, I), torch.randn(2, I)])
    ours(packed)[0].data.relu_().sum().backward()


def test_second_differentiation_is_refused():
    _, ours = twins("GRU", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    (g,) = torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)
    compare([g], list(torch.autograd.grad(ours(x)[0].square().sum(), x)))
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        g.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    _, ours = twins("LSTM", I, H, 2, dropout=0.4)
    x = torch.randn(T, B, I, requires_grad=True)
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        if checkpointed:
            y, _ = torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=reentrant)
        else:
            y, _ = ours(x)
        grads.append(
            torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])
            if not reentrant
            else backward_of(y, [x, *ours.parameters()])
        )
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def backward_of(y, leaves):
    y.square().sum().backward()
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def test_saved_tensors_elsewhere():
    """Backward of tensors that were saved as copies runs the forward again: the same bits."""
    _, ours = twins("LSTM", I, H, 2, dropout=0.4)
    x = torch.randn(T, B, I, requires_grad=True)
    hx = states_of(ours, (B,))

    def grads(hooks):
        torch.manual_seed(1)
        with hooks:
            y, _ = ours(x, hx, lengths=torch.tensor([6, 3, 1, 5]))
        return torch.autograd.grad(y.square().sum(), [x, *hx, *ours.parameters()])

    hooks = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)
    plain = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    for a, b in zip(grads(plain), grads(hooks), strict=True):
        assert torch.equal(a, b)


def test_tapes_are_freed():
    _, ours = twins("LSTM", I, H)
    gc.collect()
    before = len(calls._tapes)
    y, _ = ours(torch.randn(T, B, I))
    assert len(calls._tapes) == before + 1
    y.sum().backward()  # frees what the graph has saved, although y is still there
    assert len(calls._tapes) == before
    kept = ours(torch.randn(T, B, I))
    del kept
    assert len(calls._tapes) == before
    with torch.no_grad():
        kept = ours(torch.randn(T, B, I))
        assert len(calls._tapes) == before
    del kept


def test_hooks():
    _, ours = twins("GRU", I, H)
    seen = []
    ours.register_forward_pre_hook(lambda m, args: seen.append("before"))
    ours.register_forward_hook(lambda m, args, out: seen.append("after"))
    ours.register_full_backward_hook(lambda m, gx, gy: seen.append("backward"))
    ours.weight_hh_l0.register_hook(lambda g: seen.append("gradient") or 2 * g)
    x = torch.randn(T, B, I, requires_grad=True)
    y, _ = ours(x)
    y.sum().backward()
    assert sorted(seen) == ["after", "backward", "before", "gradient"]
    doubled = ours.weight_hh_l0.grad
    ours.zero_grad()
    plain = rkt.GRU(I, H)
    plain.load_state_dict(ours.state_dict())
    plain(x)[0].sum().backward()
    assert torch.equal(doubled, 2 * plain.weight_hh_l0.grad)


@pytest.mark.parametrize("name", ["step_value", "step_norm", "value", "max_norm"])
def test_clips(name):
    """Those of the NumPy API, to the bit; and each has an effect."""
    clip = rk.Clip(**{name: 1e-2})
    for module in (rkt.LSTM(I, H, clip=clip), rkt.Recurrent(rk.MinGRU(I, H, seed=0), clip=clip)):
        x = torch.randn(T, B, I)
        module(x)[0].square().sum().backward()
        layer = module.as_layer()
        y, _, tape = layer.forward(x.numpy())
        grads, free = layer.backward(tape, 2 * y, clip=clip), layer.backward(tape, 2 * y)
        for p, parameter in module.named_parameters():
            assert np.array_equal(parameter.grad, grads.params[p])
        if name != "step_norm" or isinstance(module, rkt.LSTM):
            assert any(not np.array_equal(g, free.params[p]) for p, g in grads.params.items())
    cell = rkt.GRUCell(I, H, clip=rk.Clip(value=1e-4))
    cell(torch.randn(B, I)).sum().backward()
    assert cell.weight_ih.grad.abs().max() == np.float32(1e-4)


# ---- dropout and noise -------------------------------------------------------------------------


def test_dropout():
    _, ours = twins("GRU", I, 64, 2, dropout=0.5)
    x = torch.randn(T, 32, I)

    def drawn(seed, module=ours):
        torch.manual_seed(seed)
        return module(x)[0]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    torch.manual_seed(0)
    assert not torch.equal(ours(x)[0], ours(x)[0])  # each call draws anew
    with torch.no_grad():
        assert torch.equal(drawn(0), drawn(0))  # as PyTorch's, in training whatever the mode
    plain = rkt.GRU(I, 64, 2)
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(x)[0], plain(x)[0])
    # The share of zeros, by an upper layer that hands on what it gets: relu of identity weights.
    relu = rkt.RNN(I, 64, 2, nonlinearity="relu", dropout=0.25)
    with torch.no_grad():
        for name, p in relu.named_parameters():
            p.zero_()
            if name == "weight_ih_l1":
                p.copy_(torch.eye(64))
            elif name == "bias_ih_l0":
                p.fill_(1.0)
    y = relu(torch.zeros(50, 40, I))[0]
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.25, abs=6 * (0.25 * 0.75 / y.numel()) ** 0.5)  # six sigma


def test_noise_of_cells_follows_the_generator():
    module = rkt.Recurrent(rk.LSTM(I, H, zoneout=0.5, recurrent_dropout=0.3, seed=0))
    x = torch.randn(T, B, I)
    torch.manual_seed(0)
    first = module(x)[0]
    assert not torch.equal(module(x)[0], first)
    torch.manual_seed(0)
    assert torch.equal(module(x)[0], first)
    assert torch.equal(module.eval()(x)[0], module(x)[0])


# ---- modules as objects ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: rkt.LSTM(I, H, 2, bidirectional=True, clip=rk.Clip(step_value=0.1)),
        lambda: rkt.GRUCell(I, H),
        lambda: rkt.Recurrent(rk.SLSTM(I, 4, heads=2, seed=0)),
    ],
)
def test_copies(make):
    module = make()
    x = torch.randn(B, I) if isinstance(module, rkt.GRUCell) else torch.randn(T, B, I)
    want = flat(module(x))
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        assert copied.clip == module.clip
        for a, b in zip(flat(copied(x)), want, strict=True):
            assert torch.equal(a, b)
        with torch.no_grad():
            next(copied.parameters()).add_(1.0)
        assert not torch.equal(flat(copied(x))[0], want[0])
        assert torch.equal(flat(module(x))[0], want[0])
        copied(x)
        sum(t.sum() for t in flat(copied(x))).backward()
        assert next(module.parameters()).grad is None
    shallow = copy.copy(module)
    assert next(shallow.parameters()) is next(module.parameters())


def test_threads_of_python():
    """Calls of one module on several threads."""
    _, ours = twins("LSTM", I, H, 2)
    x = [torch.randn(T, B, I) for _ in range(4)]
    want = [ours(each)[0].detach() for each in x]
    found = [None] * 4

    def work(k):
        for _ in range(50):
            y = ours(x[k])[0]
            torch.autograd.grad(y.sum(), ours.weight_hh_l0)
            found[k] = y.detach()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b)


# ---- accelerate and restore --------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, I)
        self.rnns = torch.nn.ModuleList([torch.nn.LSTM(I, H, batch_first=True), torch.nn.GRU(H, H)])
        self.shared = self.rnns[1]
        self.cell = torch.nn.GRUCell(H, H)
        self.head = torch.nn.Linear(H, 1)
        self.hidden = [self.rnns[0]]  # a reference that named_modules does not know

    def forward(self, tokens):
        y, _ = self.hidden[0](self.embed(tokens))
        y, _ = self.shared(y.transpose(0, 1))
        return self.head(self.cell(y[-1])).sum()


def test_accelerate_and_restore():
    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(11, (B, T))
    other = copy.deepcopy(model)
    calls_seen = []
    model.rnns[0].register_forward_hook(lambda m, args, out: calls_seen.append(type(m)))
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, other)]
    before = dict(model.named_parameters())
    done = rkt.accelerate(model)
    assert done == rkt.Accelerated(["rnns.0", "rnns.1", "cell"], {})
    assert [type(m) for m in model.rnns] == [rkt.LSTM, rkt.GRU]
    assert rkt.accelerate(model) == rkt.Accelerated([], {})
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    for _ in range(3):
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            each(tokens).backward()
            optimizer.step()
    # Three steps of Adam at 1e-2: a gradient's error of 1e-4 of its size moves a weight by 1e-6.
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert calls_seen == [rkt.LSTM] * 3
    with torch.no_grad():
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            b.copy_(a)
    assert rkt.restore(model) == ["rnns.0", "rnns.1", "cell"]
    assert rkt.restore(model) == []
    assert type(model.rnns[0]) is torch.nn.LSTM
    assert vars(model.rnns[0]).keys() == vars(other.rnns[0]).keys()
    assert torch.equal(model(tokens), other(tokens))


def test_accelerate_a_module_itself():
    theirs, _ = twins("LSTM", I, H, proj_size=2)
    x = torch.randn(T, B, I)
    want = run(theirs, x, None)
    assert rkt.accelerate(theirs, clip=rk.Clip(step_value=1e3)).replaced == [""]
    compare(run(theirs, x, None), want)
    assert theirs.clip == rk.Clip(step_value=1e3)
    copied = pickle.loads(pickle.dumps(theirs))
    compare(run(copied, x, None), want)
    rkt.restore(theirs)
    assert type(theirs) is torch.nn.LSTM
    assert not hasattr(theirs, "clip")


def test_restore_of_modules_parametrized_since():
    theirs, _ = twins("LSTM", I, H)
    model, x = torch.nn.Sequential(copy.deepcopy(theirs)), torch.randn(T, B, I)
    rkt.accelerate(model)
    for module in (theirs, model[0]):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    copied = copy.deepcopy(model)
    compare(run(model[0], x, None), run(theirs, x, None))
    assert rkt.accelerate(model) == rkt.Accelerated([], {})
    assert rkt.restore(model) == ["0"]
    assert not isinstance(model[0], rkt.LSTM)
    assert isinstance(model[0], torch.nn.LSTM)
    for got, want in zip(run(model[0], x, None), run(theirs, x, None), strict=True):
        assert torch.equal(got, want)
    assert isinstance(copied[0], rkt.LSTM)  # though it shared the class
    compare(run(copied[0], x, None), run(theirs, x, None))
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is torch.nn.LSTM


def test_accelerate_again_with_a_clip():
    model, clip = torch.nn.Sequential(torch.nn.GRU(I, H), rkt.GRUCell(I, H)), rk.Clip(value=1e-3)
    rkt.accelerate(model, clip=rk.Clip(value=1.0))
    assert rkt.accelerate(model, clip=clip) == rkt.Accelerated([], {})
    assert [module.clip for module in model] == [clip, clip]
    rkt.accelerate(model)
    assert model[0].clip == clip
    model[0](torch.ones(T, B, I))[0].sum().backward()
    assert model[0].weight_hh_l0.grad.abs().max() <= 1e-3


def test_accelerate_names_what_it_leaves():
    class Own(torch.nn.GRU):
        def forward(self, x):
            return super().forward(2 * x)

    class Base(torch.nn.RNNBase):
        pass

    class Same(torch.nn.Module):
        pass

    model = torch.nn.ModuleDict({"own": Own(I, H), "ours": torch.nn.LSTM(I, H), "none": Same()})
    model["base"] = Base("GRU", I, H)
    model["low"] = torch.nn.LSTM(I, H, dtype=torch.bfloat16)
    model["fp16"] = torch.nn.LSTM(I, H, dtype=torch.float16)
    model["meta"] = torch.nn.RNN(I, H, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one layer
        model["all"] = torch.nn.GRU(I, H, dropout=1.0)
        model["script"] = torch.jit.script(torch.nn.LSTM(I, H))
        dynamic = torch.ao.nn.quantized.dynamic.GRU(I, H)
    model["quantized"] = dynamic
    bound = torch.nn.GRU(I, H)
    parametrize.register_parametrization(bound, "weight_hh_l0", torch.nn.Identity())
    model["bound"] = bound
    done = rkt.accelerate(model)
    assert done.replaced == ["ours", "low"]
    reasons = {
        "own": "Own, which is not exactly one of torch.nn's classes",
        "base": "Base, which is not exactly one of torch.nn's classes",
        "fp16": "weight_ih_l0 is of torch.float16",
        "meta": "weight_ih_l0 is on meta",
        "all": "dropout is 1.0",
        "script": "RecursiveScriptModule, which is not exactly one of torch.nn's classes",
        "quantized": "torch.ao.nn.quantized.dynamic.modules.rnn.GRU",
        "bound": "ParametrizedGRU, which has parametrizations",
    }
    assert done.left.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in done.left[name]


# ---- errors ------------------------------------------------------------------------------------


def test_errors_name_the_argument():
    gru, lstm, x = rkt.GRU(I, H), rkt.LSTM(I, H), torch.randn(T, B, I)
    odd = rkt.Recurrent(rk.SLSTM(I, H, seed=0))
    for error, message, call in (
        (RuntimeError, "weight_ih_l0: expected a tensor of torch.float32", lambda: gru.half()(x)),
        (ValueError, "RNN input dtype", lambda: gru.bfloat16()(x)),
        (ValueError, "RNN input dtype", lambda: gru.float()(x.half())),
        (
            RuntimeError,
            r"hx\[0\]: expected torch.float32",
            lambda: gru(x, torch.zeros(1, B, H).double()),
        ),
        (RuntimeError, "input: expected .* on cpu.* got .* on meta", lambda: gru(x.to("meta"))),
        (RuntimeError, "input: expected a dense tensor", lambda: gru(x.to_sparse())),
        (RuntimeError, "hx: expected a pair of tensors", lambda: lstm(x, (torch.zeros(1, B, H),))),
        (RuntimeError, "hx: expected 4 tensors, got 2", lambda: odd(x, [torch.zeros(1, B, H)] * 2)),
        (RuntimeError, r"input: expected shape \(T, B, 3\)", lambda: odd(torch.zeros(T, B, 4))),
        (
            RuntimeError,
            r"hx\[2\]: expected shape",
            lambda: odd(x, [torch.zeros(1, B, H)] * 2 + [torch.zeros(2)] * 2),
        ),
        (RuntimeError, "lengths: expected shape", lambda: gru(x, lengths=torch.tensor([1]))),
        (
            RuntimeError,
            "lengths: expected values from 0 to T",
            lambda: gru(x, lengths=torch.full((B,), T + 1)),
        ),
        (
            RuntimeError,
            "resets: expected an array of booleans",
            lambda: gru(x, resets=torch.zeros(T, B)),
        ),
        (RuntimeError, "Expected hidden size", lambda: gru(x, torch.zeros(1, B, H + 1))),
        (TypeError, "clip: expected a rnnkern.Clip", lambda: rkt.GRU(I, H, clip=1.0)),
        (TypeError, "clip: expected a rnnkern.Clip", lambda: rkt.LSTMCell(I, H, clip=1.0)),
        (TypeError, "clip: expected a rnnkern.Clip", lambda: rkt.accelerate(gru, clip=1.0)),
        (TypeError, "layer: expected a recurrent layer", lambda: rkt.Recurrent(torch.nn.GRU(I, H))),
        (TypeError, "module: expected a torch.nn.Module", lambda: rkt.accelerate(rk.GRU(I, H))),
        (TypeError, "module: expected a torch.nn.Module", lambda: rkt.restore(None)),
        (ValueError, "nonlinearity", lambda: rkt.RNN(I, H, nonlinearity="sigmoid")),
        (ValueError, "nonlinearity", lambda: rkt.RNNCell(I, H, nonlinearity="sigmoid")),
        (ValueError, "dropout: expected", lambda: rkt.GRU(I, H, 2, dropout=1.0)(x)),
        (RuntimeError, "weight_ih_l0", lambda: rkt.GRU(I, H).half().as_layer()),
    ):
        with pytest.raises(error, match=message):
            call()
    packed = pack_sequence([torch.randn(5, I), torch.randn(2, I)])
    with pytest.raises(RuntimeError, match="lengths: expected None with a PackedSequence"):
        gru(packed, lengths=torch.tensor([1, 2]))
    frozen = rk.GRU(I, H)
    frozen.params["weight_ih_l0"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        rkt.Recurrent(frozen)


def test_arguments_of_another_type_are_named():
    lstm, gru, cell, x = rkt.LSTM(I, H), rkt.GRU(I, H), rkt.LSTMCell(I, H), torch.zeros(T, B, I)
    h = torch.zeros(1, B, H)
    for argument, got, call in (
        ("lengths", "list", lambda: gru(x, lengths=[4, 2])),
        ("resets", "list", lambda: gru(x, resets=[[False]])),
        ("input", "list", lambda: gru([1.0])),
        ("input", "ndarray", lambda: cell(x[0].numpy())),
        ("hx", "tuple", lambda: gru(x, (h, h))),
        (r"hx\[1\]", "NoneType", lambda: lstm(x, (h, None))),
    ):
        with pytest.raises(TypeError, match=f"^{argument}: expected a Tensor, got {got}$"):
            call()
    for call in (lambda: lstm(x, (h,) * 3), lambda: cell(x[0], (h[0],) * 3)):
        with pytest.raises(RuntimeError, match=r"hx: expected a pair of tensors .*, got 3"):
            call()
    for module, name in ((lstm, "bias_ih_l0"), (cell, "bias_hh")):
        setattr(module, name, None)
        with pytest.raises(TypeError, match=f"^{name}: expected a Tensor, got NoneType$"):
            module(x if module is lstm else x[0])


def test_batched_gradients_and_nested_tensors_are_named():
    gru, x = rkt.GRU(I, H), torch.randn(T, B, I, requires_grad=True)
    y = gru(x)[0]
    with pytest.raises(RuntimeError, match="is_grads_batched and vectorize=True are not supported"):
        torch.autograd.grad(y, x, torch.ones(2, *y.shape), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="got a batched one"):
        torch.autograd.functional.jacobian(lambda x: gru(x)[0], x, vectorize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.zeros(2, I), torch.zeros(3, I)])
    with pytest.raises(RuntimeError, match=r"input: .*got a nested tensor"):
        gru(nested)


def test_nonlinearity_of_a_cell_can_change():
    theirs, ours = twins("RNNCell", I, H)
    x = torch.randn(B, I)
    for nonlinearity in ("relu", "tanh"):
        theirs.nonlinearity = ours.nonlinearity = nonlinearity
        compare([ours(x)], [theirs(x)])
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu', got 'elu'"):
        ours.nonlinearity = "elu"
    assert ours.nonlinearity == "tanh"


def test_changed_lengths_are_seen_in_backward():
    gru, x = rkt.GRU(I, H), torch.randn(T, B, I, requires_grad=True)
    lengths = torch.tensor([6, 2, 0, 4])
    (want,) = torch.autograd.grad(gru(x, lengths=lengths.clone())[0].sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        y = gru(x, lengths=lengths)[0]
    kept = gru(x, lengths=lengths)[0]
    lengths.zero_()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], want)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_gpu_parameters_are_refused():
    """A device that is not there: a module says so before it reads memory."""
    with pytest.raises(RuntimeError, match="weight_ih_l0: expected a tensor on the CPU"):
        rkt.GRU(I, H)._refuse_others(torch.zeros(1), (), [FakeDevice()])


class FakeDevice:
    device = torch.device("cuda:0")
    dtype = torch.float32


# ---- threads and imports -----------------------------------------------------------------------


def test_threads_follow_pytorch():
    _, ours = twins("GRU", I, H)
    before, x = torch.get_num_threads(), torch.randn(T, B, I)
    assert _core.chosen_num_threads() == 0
    try:
        for n in (1, 3, before):
            torch.set_num_threads(n)
            ours(x)[0].sum().backward()
            assert rk.get_num_threads() == n
        with rk.num_threads(2):
            torch.set_num_threads(1)
            ours(x)
            assert rk.get_num_threads() == 2
        ours(x)
        assert rk.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("order", ["torch, rnnkern", "rnnkern, torch"])
def test_one_openmp(order):
    """One pool of threads for both: none of PyTorch's spins beside the core's."""
    done = python(
        f"import {order}\n"
        "torch.mm(torch.ones(300, 300), torch.ones(300, 300))\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "print(len({line.split()[-1] for line in lines if 'libgomp' in line}))"
    )
    assert done.stdout.strip() == "1", done.stderr


def test_imports():
    done = python("import sys, rnnkern; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
    done = python("import sys; sys.modules['torch'] = None; import rnnkern.torch")
    assert "rnnkern[torch]" in done.stderr
