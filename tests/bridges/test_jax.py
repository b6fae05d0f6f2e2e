"""rnnkern.jax: outputs and gradients beside plain JAX and the NumPy API, under JAX's transforms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MAKERS, assert_close, make_layer, parts, random_problem

import rnnkern as rk
import rnnkern.jax as rkj
from rnnkern.jax import calls
from rnnkern.reference import CELLS

# Of LLVM, which take longer than the programs of these sizes run.
jax.config.update("jax_disable_most_optimizations", True)

T, B, I, H = 6, 4, 3, 5
FUNCTIONS = {"rnn": rkj.rnn, "lstm": rkj.lstm, "gru": rkj.gru, "min_gru": rkj.min_gru}
each_cell = pytest.mark.parametrize("cell", FUNCTIONS)
LENGTHS = np.array([6, 2, 0, 5])
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _no_tape_is_left():
    """Each test begins without tapes, and ends without one unless it says so."""
    calls.tapes.limit(0)
    calls.tapes.limit(2**30)
    yield
    assert not calls.tapes._tapes


@pytest.fixture
def count(monkeypatch):
    """How often the core ran, forward and backward."""
    counted = {"forward": 0, "backward": 0}
    for name in counted:
        method = getattr(calls.LayerStack, name)

        def counting(self, *args, name=name, method=method):
            counted[name] += 1
            return method(self, *args)

        monkeypatch.setattr(calls.LayerStack, name, counting)
    return counted


def normal(*shape, dtype=np.float32, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def drawn(cell, layers=1, *, dtype=np.float32, seed=0, **options):
    return rkj.init(jax.random.key(seed), cell, I, H, layers, dtype=dtype, **options)


def equal(got, want):
    """All leaves, to the bit."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), k


def close(got, want, dtype=np.float32):
    """All leaves, within what `assert_close` allows."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a, b, dtype, str(k))


def scalar(f):
    """A function of the same arguments whose gradient depends on all outputs, and differently."""

    def loss(*args, **options):
        leaves = jax.tree.leaves(f(*args, **options))
        return sum((jnp.sin(a + k) * (k + 1)).sum() for k, a in enumerate(leaves))

    return loss


# ---- beside plain JAX --------------------------------------------------------------------------


def plain_step(cell, w, x, state):
    """One step of a cell by the formulas of PyTorch's documentation, and the minGRU's paper."""
    h = state[0]
    a = x @ w["weight_ih"].T + w.get("bias_ih", 0)
    if cell == "min_gru":
        z, v = jnp.split(a, 2, -1)
        z = jax.nn.sigmoid(z)
        return ((1 - z) * h + z * jnp.where(v >= 0, v + 0.5, jax.nn.sigmoid(v)),)
    b = h @ w["weight_hh"].T + w.get("bias_hh", 0)
    if cell == "rnn":
        return (jnp.tanh(a + b),)
    if cell == "gru":
        (r, z, n), (hr, hz, hn) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        return ((1 - z) * jnp.tanh(n + r * hn) + z * h,)
    i, f, g, o = jnp.split(a + b, 4, -1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h @ w["weight_hr"].T if "weight_hr" in w else h), c


def plain(cell, params, x, state, real):
    """A call as scans over steps; `real` (T, B) says which of them count."""
    layers = 1 + max(int(name.split("_l")[1][0]) for name in params)
    ways = ("", "_reverse") if any(n.endswith("_reverse") for n in params) else ("",)
    last = []
    for layer in range(layers):
        sides = []
        for way in ways:
            end = f"_l{layer}{way}"
            w = {n.removesuffix(end): a for n, a in params.items() if n.endswith(end)}

            def step(own, at, w=w):
                x, is_real = at
                new = plain_step(cell, w, x, own)
                own = tuple(jnp.where(is_real, a, b) for a, b in zip(new, own, strict=True))
                return own, jnp.where(is_real, new[0], 0)

            first = tuple(s[len(last)] for s in state)
            own, y = jax.lax.scan(step, first, (x, real[..., None]), reverse=bool(way))
            sides.append(y)
            last.append(own)
        x = jnp.concatenate(sides, -1)
    return x, tuple(jnp.stack(s) for s in zip(*last, strict=True))


@pytest.mark.parametrize(
    ("cell", "dtype", "layers", "bias", "bidirectional"),
    [
        *((cell, np.float64, 2, True, True) for cell in (*FUNCTIONS, "projected")),
        *((cell, np.float32, 1, False, False) for cell in FUNCTIONS),
    ],
)
def test_results_are_those_of_plain_jax(cell, dtype, layers, bias, bidirectional):
    """Outputs and gradients of parameters, input and state, with lengths, a mask and neither."""
    options = {"proj_size": 2} if cell == "projected" else {}
    cell = "lstm" if cell == "projected" else cell
    options |= {"bias": bias, "bidirectional": bidirectional, "dtype": dtype}
    with jax.enable_x64(dtype is np.float64):
        params, x = drawn(cell, layers, **options), normal(T, B, I, dtype=dtype)
        first = layers * (2 if bidirectional else 1)
        widths = [options.get("proj_size", H), H][: 2 if cell == "lstm" else 1]
        state = tuple(normal(first, B, w, dtype=dtype, seed=k) for k, w in enumerate(widths))
        mask = np.random.default_rng(1).random((T, B)) < 0.6
        of_lengths = np.arange(T)[:, None] < LENGTHS

        def ours(params, x, state, **given):
            y, last = FUNCTIONS[cell](params, x, state if len(state) > 1 else state[0], **given)
            return y, last if len(state) > 1 else (last,)

        @jax.jit
        def theirs(params, x, state, real):
            def f(*args):
                return plain(cell, *args, real)

            return f(params, x, state), jax.grad(scalar(f), (0, 1, 2))(params, x, state)

        for given, real in (
            ({}, np.ones((T, B), bool)),
            ({"lengths": LENGTHS}, of_lengths),
            ({"mask": mask}, mask),
        ):
            want = theirs(params, x, state, real)
            close(ours(params, x, state, **given), want[0], dtype)
            gradient = jax.grad(scalar(ours), (0, 1, 2))
            close(gradient(params, x, state, **given), want[1], dtype)


@each_cell
def test_a_call_without_a_state_starts_at_zeros(cell):
    params, x, zeros = drawn(cell), normal(T, B, I), jnp.zeros((1, B, H))
    equal(
        FUNCTIONS[cell](params, x),
        FUNCTIONS[cell](params, x, (zeros, zeros) if cell == "lstm" else zeros),
    )


# ---- beside the NumPy API ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_any_layer(kind):
    """Outputs and gradients are the layer's own, to the bit."""
    rows = ("lengths", "mask", "resets")[list(MAKERS).index(kind) % 3]
    layer = make_layer(kind, I, H, num_layers=2, batch_first=rows == "mask")
    problem = random_problem(layer, T, B, **{rows: LENGTHS if rows == "lengths" else 0.6})
    given = {rows: getattr(problem, rows)}
    params = rkj.from_layer(layer)
    with_noise = bool(CELLS[kind].noise)
    key = KEY if with_noise else None

    def call(params, x, state):
        return rkj.recurrent(layer, params, x, state, **given, key=key)

    @jax.jit
    def run(params, x, state, dy, dstate):
        outputs, back = jax.vjp(call, params, x, state)
        return outputs, back((dy, dstate))

    if with_noise:
        low, high = (int(n) for n in jax.random.bits(KEY, (2,), np.uint32))
        layer.dropout_state = {"seeds": [low | high << 32], "step": 0}
    y, state, tape = layer.forward(problem.x, problem.state, **given)
    want = layer.backward(tape, problem.dy, problem.dstate)
    got = run(params, problem.x, problem.state, problem.dy, problem.dstate)
    equal(got[0], (y, state))
    equal(got[1], (dict(want.params), want.x, want.state))
    want = layer(problem.x, problem.state, **given)
    equal(rkj.recurrent(layer, params, problem.x, problem.state, **given), want)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("rnn", {"nonlinearity": "relu"}),
        ("rnn", {"reverse": True}),
        ("lstm", {"residual": True}),
        ("lstm", {"batch_first": True}),
        ("gru", {"reset_after": False}),
        ("min_gru", {"candidate": "tanh"}),
    ],
)
def test_options(cell, options):
    """Each changes the result, which is that of a layer with the same option."""
    params, x = drawn(cell, 2, seed=3), normal(T, T, I)
    if "residual" in options:
        params = rkj.init(KEY, cell, H, H, 2)
        x = normal(T, T, H)
    layer = rkj.to_layer(cell, params, **options)
    got = FUNCTIONS[cell](params, x, **options)
    equal(got, layer(np.asarray(x)))
    assert not np.array_equal(got[0], FUNCTIONS[cell](params, x)[0])


def test_peepholes_and_projections_are_read_from_the_names():
    for options in ({"peephole": True}, {"proj_size": 2}, {"peephole": True, "proj_size": 2}):
        layer = rk.LSTM(I, H, 2, bidirectional=True, seed=0, **options)
        x = normal(T, B, I)
        equal(rkj.lstm(layer.params, x), layer(np.asarray(x)))


def test_dropout_is_that_of_a_layer_with_the_keys_seed():
    params, x = drawn("gru", 2), normal(T, B, I)
    layer = rkj.to_layer("gru", params, dropout=0.5)
    low, high = (int(n) for n in jax.random.bits(KEY, (2,), np.uint32))
    layer.dropout_state = {"seeds": [low | high << 32], "step": 0}
    call = jax.jit(lambda key: rkj.gru(params, x, dropout=0.5, key=key))
    equal(call(KEY), layer.forward(np.asarray(x))[:2])
    assert not np.array_equal(call(KEY)[0], call(jax.random.key(1))[0])
    equal(rkj.recurrent(layer, params, x, key=KEY), call(KEY))
    equal(rkj.recurrent(layer, params, x), rkj.gru(params, x))


@pytest.mark.parametrize("clip", [rk.Clip(step_value=1e-3), rk.Clip(value=1e-2, max_norm=0.1)])
def test_clips(clip):
    params, x = drawn("lstm"), normal(T, B, I)
    layer = rkj.to_layer("lstm", params)
    got = jax.jit(jax.grad(lambda p: rkj.lstm(p, x, clip=clip)[0].sum()))(params)
    y, _, tape = layer.forward(np.asarray(x))
    equal(got, dict(layer.backward(tape, np.ones_like(y), clip=clip).params))
    whole = jax.grad(lambda p: rkj.lstm(p, x)[0].sum())(params)
    assert not np.array_equal(got["weight_hh_l0"], whole["weight_hh_l0"])


def test_ensembles():
    """Of parameters with an axis in front: inputs of their own, or one for all."""
    layer = rk.GRU(I, H, ensemble=3, seed=0)
    for x in normal(T, 3, B, I), normal(T, B, I):
        equal(rkj.gru(layer.params, x), layer(np.asarray(x)))
        got = jax.grad(scalar(rkj.gru), (0, 1))(rkj.from_layer(layer), x)
        for e in range(3):
            member = rkj.from_layer(layer.member(e))
            own = x if x.ndim == 3 else x[:, e]
            want = jax.grad(scalar(rkj.gru), (0, 1))(member, own)
            close({name: g[e] for name, g in got[0].items()}, want[0])
        assert got[1].shape == x.shape


def test_float64_needs_x64():
    with pytest.raises(ValueError, match=r"^dtype: expected float32 without jax_enable_x64, got"):
        drawn("gru", dtype=np.float64)
    with pytest.raises(ValueError, match=r"^layer: expected float32 without jax_enable_x64, got"):
        rkj.from_layer(rk.GRU(I, H, dtype=np.float64))


def test_sequences_of_no_step_and_no_row():
    params = drawn("lstm")
    for shape in ((0, B, I), (T, 0, I), (0, I)):
        x, state = normal(*shape), (normal(1, *shape[1:-1], H), normal(1, *shape[1:-1], H))
        (y, last), back = jax.vjp(rkj.lstm, params, x, state)
        assert y.shape == (*shape[:-1], H)
        gradients, dx, first = back((y, last))
        assert dx.shape == shape
        assert not any(g.any() for g in gradients.values())
        if shape[0] == 0:
            equal((last, first), (state, state))


# ---- transforms --------------------------------------------------------------------------------


@each_cell
def test_compiled_and_eager_calls_give_the_same_bits(cell):
    params, x = drawn(cell, 2), normal(T, B, I)
    f = FUNCTIONS[cell]
    equal(jax.jit(f)(params, x), f(params, x))
    gradient = jax.value_and_grad(scalar(f), (0, 1))
    close(jax.jit(gradient)(params, x), gradient(params, x))  # the loss is compiled, too
    outputs, back = jax.vjp(f, params, x)
    jitted, again = jax.jit(lambda *a: jax.vjp(f, *a))(params, x)
    equal(jax.jit(again)(jitted), back(outputs))


def test_gradients_of_some_arguments():
    params, x = drawn("lstm"), normal(T, B, I)
    state = normal(1, B, H), normal(1, B, H, seed=1)
    every = jax.grad(scalar(rkj.lstm), (0, 1, 2))(params, x, state)
    for k in range(3):
        equal(jax.grad(scalar(rkj.lstm), k)(params, x, state), every[k])
    one = jax.grad(lambda w: scalar(rkj.lstm)({**params, "weight_hh_l0": w}, x, state))
    equal(one(params["weight_hh_l0"]), every[0]["weight_hh_l0"])
    of_c = jax.grad(lambda c: scalar(rkj.lstm)(params, x, (state[0], c)))(state[1])
    equal(of_c, every[2][1])


def test_backward_has_the_forwards_tape(count):
    params, x = drawn("gru"), normal(T, B, I)
    for transform in (lambda f: f, jax.jit):
        count.update(forward=0, backward=0)
        jax.block_until_ready(transform(jax.grad(scalar(rkj.gru)))(params, x))
        assert count == {"forward": 1, "backward": 1}


def test_a_second_backward_runs_the_forward_again(count):
    params, x = drawn("gru"), normal(T, B, I)
    y, back = jax.vjp(rkj.gru, params, x)
    first = jax.block_until_ready(back(y))
    assert count == {"forward": 1, "backward": 1}
    equal(back(y), first)
    assert count == {"forward": 2, "backward": 2}


def test_without_memory_for_tapes_backward_runs_the_forward_again(count):
    params, x = drawn("gru"), normal(T, B, I)
    want = jax.block_until_ready(jax.grad(scalar(rkj.gru))(params, x))
    rkj.set_tape_memory(0)
    equal(jax.grad(scalar(rkj.gru))(params, x), want)
    assert count == {"forward": 3, "backward": 2}
    with pytest.raises(ValueError, match=r"^nbytes: expected .* of at least 0, got -1"):
        rkj.set_tape_memory(-1)


def test_tapes_without_a_backward_take_bounded_memory():
    params, x = drawn("gru"), normal(T, B, I)
    jax.block_until_ready(jax.vjp(rkj.gru, params, x)[0])
    (one,) = calls.tapes._tapes.values()
    rkj.set_tape_memory(3 * one.nbytes)
    for _ in range(5):
        outputs, back = jax.vjp(rkj.gru, params, x)
        jax.block_until_ready(outputs)
    assert len(calls.tapes._tapes) == 3
    assert calls.tapes._bytes == 3 * one.nbytes
    jax.block_until_ready(back(outputs))  # the newest is there
    assert len(calls.tapes._tapes) == 2
    rkj.set_tape_memory(0)
    assert calls.tapes._bytes == 0


def test_a_tape_of_other_parameters_is_not_used():
    """As where a program computes parameters again, and rounds them otherwise."""
    params, x = drawn("gru"), normal(T, B, I)
    other = {name: p * 2 for name, p in params.items()}
    layer = rkj.to_layer("gru", other)
    setup = calls.Setup(json.dumps(layer._stack._arguments, sort_keys=True))
    arrays = [np.asarray(x), *map(np.asarray, params.values())]
    outputs = [np.empty((T, B, H), np.float32), np.empty((1, B, H), np.float32)]
    number = np.empty(2, np.uint32)
    calls.forward(calls.text_of(setup).encode(), arrays, [*outputs, number])
    assert len(calls.tapes._tapes) == 1
    found = [np.empty_like(p) for p in params.values()]
    text = calls.text_of(setup, (True, False), (False, False, True)).encode()
    dy = np.ones((T, B, H), np.float32)
    calls.backward(text, [arrays[0], *map(np.asarray, other.values()), number, dy], found)
    _, _, tape = layer.forward(np.asarray(x))
    equal(found, list(layer.backward(tape, dy).params.values()))


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.everything_saveable])
def test_checkpoint(policy, count):
    """Where nothing is saved the first forward keeps no tape; the autouse fixture looks."""
    params, x = drawn("lstm", 2), normal(T, B, I)
    want = jax.block_until_ready(jax.jit(jax.grad(scalar(rkj.lstm), (0, 1)))(params, x))
    f = jax.checkpoint(rkj.lstm, policy=policy)
    count.update(forward=0, backward=0)
    equal(jax.jit(jax.grad(scalar(f), (0, 1)))(params, x), want)
    assert count["backward"] == 1
    assert count["forward"] == (1 if policy else 2)


def test_scan(count):
    """Chunks of a sequence, each call with a tape of its own."""
    params, x = drawn("lstm"), normal(5, T, B, I)
    state = normal(1, B, H), normal(1, B, H, seed=1)

    def scanned(params, x, state):
        def step(state, chunk):
            y, state = rkj.lstm(params, chunk, state)
            return state, y

        state, y = jax.lax.scan(step, state, x)
        return y.reshape(-1, B, H), state

    whole = x.reshape(-1, B, I)
    close(jax.jit(scanned)(params, x, state), rkj.lstm(params, whole, state))
    want = jax.block_until_ready(jax.grad(scalar(rkj.lstm), (0, 1, 2))(params, whole, state))
    for transform in (lambda f: f, jax.checkpoint):
        count.update(forward=0, backward=0)
        gradient = jax.jit(jax.grad(scalar(transform(scanned)), (0, 1, 2)))
        got = gradient(params, x, state)
        close((got[0], got[1].reshape(-1, B, I), got[2]), want)
        assert count == {"forward": 5 if transform is not jax.checkpoint else 10, "backward": 5}


def test_conditions_and_loops():
    params, x = drawn("gru"), normal(T, B, I)
    f = jax.jit(
        lambda p, flag: jax.lax.cond(
            flag, lambda: rkj.gru(p, x)[0], lambda: x[..., :1] * jnp.ones(H)
        )
    )
    equal(f(params, True), rkj.gru(params, x)[0])
    h = jax.lax.fori_loop(0, 3, lambda _, h: rkj.gru(params, x, h)[1], jnp.zeros((1, B, H)))
    want = jnp.zeros((1, B, H))
    for _ in range(3):
        want = rkj.gru(params, x, want)[1]
    equal(h, want)


def test_training_with_donated_parameters():
    """XLA gives the memory of parameters to the new ones."""
    x = normal(T, B, I)

    def step(params):
        gradients = jax.grad(scalar(rkj.gru))(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    kept, donated = drawn("gru"), drawn("gru")
    donate = jax.jit(step, donate_argnums=0)
    for _ in range(5):
        kept, donated = jax.jit(step)(kept), donate(donated)
    equal(donated, kept)


def test_jacobian(count):
    params, x = drawn("rnn"), normal(T, I)
    got = jax.block_until_ready(jax.jacrev(lambda x: rkj.rnn(params, x)[1])(x))
    assert count == {"forward": 2, "backward": 1}  # all rows of the Jacobian in one call
    real, zeros = jnp.ones((T, 1), bool), jnp.zeros((1, 1, H))
    want = jax.jacfwd(lambda x: plain("rnn", params, x[:, None], (zeros,), real)[1][0][:, 0])(x)
    close(got, want)


# ---- vmap --------------------------------------------------------------------------------------

N = 3


def looped(f, axes, args):
    """What vmap stands for, example by example."""
    each = []
    for n in range(N):
        own = [
            a if axis is None else jax.tree.map(partial(jnp.take, indices=n, axis=axis), a)
            for a, axis in zip(args, axes, strict=True)
        ]
        each.append(f(*own))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def of(cell, **fixed):
    """A function of positional arrays: parameters, x, h, lengths, mask and resets."""

    def call(params, x, h=None, lengths=None, mask=None, resets=None):
        return FUNCTIONS[cell](params, x, h, lengths, mask=mask, resets=resets, **fixed)

    return call


def some(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).random(shape) < 0.6)


MAPPED = {  # axes, and arguments behind the parameters
    "rows": ((None, 1), lambda: [normal(T, N, I)]),
    "batches": ((None, 0), lambda: [normal(N, T, B, I)]),
    "last axis": ((None, 3), lambda: [normal(T, B, I, N)]),
    "states": ((None, None, 0), lambda: [normal(T, B, I), normal(N, 2, B, H)]),
    "states of rows": ((None, 1, 1), lambda: [normal(T, N, I), normal(2, N, H)]),
    "lengths": (
        (None, 2, None, 0),
        lambda: [normal(T, B, N, I), None, jnp.asarray(np.arange(N * B).reshape(N, B) % (T + 1))],
    ),
    "lengths of all": (
        (None, 0, None, None),
        lambda: [normal(N, T, B, I), None, jnp.asarray(LENGTHS)],
    ),
    "mask of rows": ((None, 0, None, None, 0), lambda: [normal(N, T, I), None, None, some(N, T)]),
    "flags": (
        (None, 0, None, None, 0, None),
        lambda: [normal(N, T, B, I), None, None, some(N, T, B), some(T, B, seed=1)],
    ),
    "parameters": ((0, None), lambda: [normal(T, B, I)]),
    "parameters of a row": ((0, None), lambda: [normal(T, I)]),
    "both": ((0, 0, 2), lambda: [normal(N, T, B, I), normal(2, B, N, H)]),
    "both, a row": ((0, 0, 1), lambda: [normal(N, T, I), normal(2, N, H)]),
    "parameters, lengths of all": (
        (0, 0, None, None),
        lambda: [normal(N, T, B, I), None, jnp.asarray(LENGTHS)],
    ),
    "parameters and lengths": (
        (0, None, None, 0),
        lambda: [normal(T, B, I), None, jnp.asarray(np.arange(N * B).reshape(N, B) % (T + 1))],
    ),
}
ONE_BY_ONE = ("parameters and lengths",)


@pytest.mark.parametrize(
    ("case", "batch_first"),
    [
        *((case, False) for case in MAPPED),
        *((case, True) for case in ("batches", "flags", "both", "parameters, lengths of all")),
    ],
)
def test_vmap(case, batch_first, count):
    """Results, the gradient of a mapped call, and mapped gradients."""
    axes, arguments = MAPPED[case]
    args = [drawn("gru", 2), *arguments()]
    if axes[0] is not None:
        args[0] = jax.vmap(lambda k: rkj.init(k, "gru", I, H, 2))(jax.random.split(KEY, N))
    f = of("gru")
    if batch_first:

        def f(params, x, h=None, lengths=None, mask=None, resets=None):
            x, mask, resets = (None if a is None else a.swapaxes(0, 1) for a in (x, mask, resets))
            y, h = of("gru", batch_first=True)(params, x, h, lengths, mask, resets)
            return y.swapaxes(0, 1), h

    axes = tuple(axis if a is not None else None for axis, a in zip(axes, args, strict=True))
    calls_each = N if case in ONE_BY_ONE else 1

    close(jax.jit(jax.vmap(f, axes))(*args), looped(f, axes, args))
    count.update(forward=0, backward=0)
    jax.block_until_ready(jax.vmap(f, axes)(*args))
    assert count["forward"] == calls_each

    with_gradients = [k for k, a in enumerate(args) if a is not None and k < 3]

    def whole(mapped):
        return lambda *args: scalar(lambda *a: mapped(f, axes, a))(*args)

    want = jax.grad(whole(looped), with_gradients)(*args)
    jax.block_until_ready(want)
    count.update(forward=0, backward=0)
    got = jax.grad(whole(lambda f, axes, a: jax.vmap(f, axes)(*a)), with_gradients)(*args)
    close(got, want)
    assert count == {"forward": calls_each, "backward": calls_each}

    for k in {0, with_gradients[-1]}:  # of parameters, one gradient for each example
        each = jax.grad(scalar(f), k)
        close(jax.jit(jax.vmap(each, axes))(*args), looped(each, axes, args))


def test_mapped_gradients_of_shared_parameters_are_one_call(count):
    """As of per-example gradients: the examples become members of an ensemble."""
    params, x = drawn("lstm"), normal(N, T, B, I)
    each = jax.vmap(jax.grad(scalar(rkj.lstm)), (None, 0))
    got = jax.block_until_ready(each(params, x))
    assert count["backward"] == 1
    close(got, looped(jax.grad(scalar(rkj.lstm)), (None, 0), (params, x)))
    jax.tree.map(lambda g, p: assert_shape(g, (N, *p.shape)), got, params)
    rkj.set_tape_memory(0)  # the tape of the forward in rows is of no use, and waits


def assert_shape(a, shape):
    assert a.shape == shape


def test_nested_maps(count):
    params, x = drawn("lstm"), normal(2, N, T, I)
    f = jax.vmap(jax.vmap(rkj.lstm, (None, 0)), (None, 0))
    y, (h, c) = jax.block_until_ready(f(params, x))
    assert count["forward"] == 1
    want = rkj.lstm(params, x.reshape(2 * N, T, I), batch_first=True)
    equal(y, want[0].reshape(2, N, T, H))
    equal((h, c), tuple(s.swapaxes(0, 1).reshape(2, N, 1, H) for s in want[1]))
    count.update(forward=0, backward=0)
    jax.block_until_ready(jax.grad(scalar(f))(params, x))
    assert count == {"forward": 1, "backward": 1}
    pairs = jax.vmap(lambda k: rkj.init(k, "lstm", I, H))(jax.random.split(KEY, 2))
    both = jax.vmap(jax.vmap(rkj.lstm, (None, 0)), (0, None))(pairs, x[0])
    close(both, jax.vmap(jax.vmap(rkj.lstm, (0, None)), (None, 0), 1)(pairs, x[0]))


def test_maps_of_an_ensemble(count):
    layer = rk.GRU(I, H, ensemble=2, seed=0)
    params, x = rkj.from_layer(layer), normal(N, T, B, I)
    got = jax.block_until_ready(jax.vmap(rkj.gru, (None, 0))(params, x))
    assert count["forward"] == 1
    close(got, looped(rkj.gru, (None, 0), (params, x)))
    own = normal(N, T, 2, B, I)
    close(jax.vmap(rkj.gru, (None, 0))(params, own), looped(rkj.gru, (None, 0), (params, own)))
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), params)
    close(jax.vmap(rkj.gru, (0, None))(many, x[0]), looped(rkj.gru, (0, None), (many, x[0])))


def test_maps_of_dropout():
    """Each example has its key's masks; with one key for all, all have the same."""
    params, x, keys = drawn("gru", 2), normal(N, T, B, I), jax.random.split(KEY, N)

    def f(x, key):
        return rkj.gru(params, x, dropout=0.5, key=key)

    close(jax.vmap(f)(x, keys), looped(f, (0, 0), (x, keys)))
    close(jax.vmap(f, (0, None))(x, KEY), looped(f, (0, None), (x, KEY)))
    each = jax.grad(scalar(f))
    close(jax.vmap(each)(x, keys), looped(each, (0, 0), (x, keys)))


def test_mapped_cotangents(count):
    """Of a call that is not mapped: the gradients are one call of more rows."""
    params, x = drawn("gru"), normal(T, B, I)
    (y, h), back = jax.vjp(lambda x: rkj.gru(params, x), x)
    many = normal(N, *y.shape), normal(N, *h.shape)
    count.update(forward=0, backward=0)
    (got,) = jax.block_until_ready(jax.vmap(back)(many))
    assert count["backward"] == 1
    close(got, jnp.stack([back((many[0][n], many[1][n]))[0] for n in range(N)]))


# ---- what is refused ---------------------------------------------------------------------------


def test_other_derivatives_are_refused():
    params, x = drawn("gru"), normal(T, B, I)
    f = scalar(rkj.gru)
    forward = r"^rnnkern.jax: expected reverse-mode differentiation .*, got forward-mode"
    for run in (
        lambda: jax.jvp(lambda x: f(params, x), (x,), (x,)),
        lambda: jax.jit(lambda x: jax.jvp(lambda x: f(params, x), (x,), (x,)))(x),
        lambda: jax.jacfwd(lambda x: f(params, x))(x),
        lambda: jax.linearize(lambda x: f(params, x), x)[1](x),
    ):
        with pytest.raises(NotImplementedError, match=forward):
            run()
    second = r"^rnnkern.jax: expected one differentiation, got a second one"
    for run in (
        lambda: jax.grad(lambda x: jax.grad(f, 1)(params, x).sum())(x),
        lambda: jax.jit(jax.grad(lambda x: jax.grad(f, 1)(params, x).sum()))(x),
        lambda: jax.hessian(lambda x: f(params, x))(x),
    ):
        with pytest.raises(NotImplementedError, match=second):
            run()
    rkj.set_tape_memory(0)


def test_other_platforms_are_refused():
    said = r"^rnnkern.jax: expected arrays and programs on the CPU, got the platform cuda"
    params, x = drawn("gru"), normal(T, B, I)
    for f in (rkj.gru, jax.grad(scalar(rkj.gru))):
        with pytest.raises(NotImplementedError, match=said):
            jax.export.export(jax.jit(f), platforms=["cuda"])(params, x)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"params": 1}, TypeError, "params: expected a mapping of names to arrays, got int"),
        ({"params": {}}, ValueError, "params: expected weight_ih_l0, got none"),
        ({"without": "weight_hh_l0"}, ValueError, "params: expected weight_hh_l0, got weight_ih"),
        (
            {"without": "bias_hh_l0"},
            ValueError,
            r"params: expected the arrays of LSTM\(3, 5\), got missing bias_hh_l0$",
        ),
        ({"and": ("more", (3,))}, ValueError, r".*LSTM\(3, 5\), got extra more$"),
        (
            {"and": ("bias_hh_l0", (3,))},
            ValueError,
            r".*got other shapes bias_hh_l0 \(3,\) for \(20,\)$",
        ),
        (
            {"and": ("weight_ih_l0", (7, 3))},
            ValueError,
            r"params\['weight_ih_l0'\]: expected shape \(4 \* H, I\) of lstm, got \(7, 3\)",
        ),
        (
            {"dtype": np.float16},
            TypeError,
            r"params\['weight_ih_l0'\]: expected an array of float32 or float64, got .* float16",
        ),
        (
            {"x": np.ones((T, B, I), np.float16)},
            TypeError,
            "x: expected an array of float32, as the parameters, got one of float16",
        ),
        ({"x": np.ones((T, B, I), int)}, TypeError, "x: expected an array of float32, .* int32"),
        ({"x": np.ones((T, B, 4), np.float32)}, ValueError, r"x: .* with I = 3, got \(6, 4, 4\)"),
        ({"x": np.ones(I, np.float32)}, ValueError, r"x: expected shape .*, got \(3,\)"),
        ({"state": np.ones((1, B, H))}, TypeError, r"state: expected a tuple of 2 arrays \(h, c\)"),
        ({"state": (np.ones((1, B, H)),)}, TypeError, "state: expected a tuple of 2 .*, got 1"),
        (
            {"state": (np.ones((1, B, H)), np.ones((1, B, 4)))},
            ValueError,
            r"state\[1\]: expected shape \(1, 4, 5\), got \(1, 4, 4\)",
        ),
        ({"lengths": np.ones(B)}, TypeError, "lengths: expected an array of integers, got one of"),
        ({"lengths": np.ones(3, int)}, ValueError, r"lengths: expected shape \(4,\), got \(3,\)"),
        (
            {"x": np.ones((T, I), np.float32), "lengths": 3},
            ValueError,
            "lengths: expected None with unbatched x, got an array",
        ),
        ({"lengths": [1.0] * B}, TypeError, "lengths: expected an array of integers, got one of f"),
        ({"lengths": [2**70] * B}, TypeError, "lengths: expected an array of integers, got one of"),
        ({"lengths": [1] * (B + 1)}, ValueError, r"lengths: expected shape \(4,\), got \(5,\)"),
        (
            {"params": {"weight_ih_l0": "many"}},
            TypeError,
            r"params\['weight_ih_l0'\]: expected an array of float32 or float64, got str",
        ),
        (
            {"params": {"weight_ih_l0": None}},
            TypeError,
            r"params\['weight_ih_l0'\]: expected an array of float32 or float64, got NoneType",
        ),
        ({"mask": np.ones((T, B))}, TypeError, "mask: expected an array of booleans, got one of"),
        (
            {"mask": np.ones((B, T), bool)},
            ValueError,
            r"mask: expected shape \(6, 4\), got \(4, 6\)",
        ),
        (
            {"mask": np.ones((T, B), bool), "lengths": LENGTHS},
            ValueError,
            "mask: expected None with lengths, got an array",
        ),
        ({"resets": np.ones(T, bool)}, ValueError, r"resets: expected shape \(6, 4\), got \(6,\)"),
        ({"dropout": 0.5}, ValueError, "dropout: expected 0.0 with one layer .*, got 0.5"),
        ({"dropout": 2.0}, ValueError, "dropout: expected"),
        (
            {"key": KEY},
            ValueError,
            r"key: expected None for LSTM\(3, 5\) without dropout, got a key",
        ),
        ({"clip": 1.0}, TypeError, "clip: expected a rnnkern.Clip or None, got float"),
        ({"reverse": 1}, TypeError, "reverse: expected"),
        ({"batch_first": "yes"}, TypeError, "batch_first: expected"),
        ({"residual": True}, ValueError, "residual: expected False with num_layers=1"),
    ],
)
def test_errors_name_the_argument(change, kind, said):
    """They are raised where JAX traces the call."""
    change = dict(change)
    own = drawn("lstm")
    own.pop(change.pop("without", ""), None)
    if "and" in change:
        name, shape = change.pop("and")
        own[name] = normal(*shape)
    dtype = change.pop("dtype", np.float32)
    params = change.pop("params", {name: p.astype(dtype) for name, p in own.items()})
    x = change.pop("x", normal(T, B, I))
    with pytest.raises(kind, match="^" + said):
        rkj.lstm(params, x, **change)


def test_errors_of_ensembles_and_keys():
    params = rkj.from_layer(rk.GRU(I, H, ensemble=2, seed=0))
    with pytest.raises(ValueError, match=r"^x: expected shape .* with E = 2, got \(6, 3, 4, 3\)"):
        rkj.gru(params, normal(T, 3, B, I))
    with pytest.raises(ValueError, match=r"^batch_first: expected False with an ensemble, got"):
        rkj.gru(params, normal(T, 2, B, I), batch_first=True)
    with pytest.raises(ValueError, match=r"^key: expected a key of jax.random with dropout=0.5"):
        rkj.gru(drawn("gru", 2), normal(T, B, I), dropout=0.5)
    with pytest.raises(TypeError, match=r"^layer: expected a recurrent layer, got int"):
        rkj.recurrent(1, params, normal(T, B, I))
    with pytest.raises(ValueError, match=r"^cell: expected .*, got 'grue'"):
        rkj.init(KEY, "grue", I, H)
    with pytest.raises(ValueError, match=r"^proj_size: expected 0 for gru, got 2"):
        rkj.init(KEY, "gru", I, H, proj_size=2)


def test_values_that_a_program_meets_are_its_error():
    """Of lengths, which are known when the program runs."""
    params, x = drawn("gru"), normal(T, B, I)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match="lengths: expected values from 0 to T = 6, got 9"
    ):
        jax.block_until_ready(jax.jit(rkj.gru)(params, x, lengths=jnp.array([9, 1, 2, 3])))
    equal(jax.jit(rkj.gru)(params, x), rkj.gru(params, x))  # and the next call is none the worse


@pytest.mark.parametrize("kind", ["list", "int64", "uint64", "array"])
@pytest.mark.parametrize("beyond", [2**31, 2**32 + 3, 2**63 - 1])
def test_lengths_beyond_32_bits_are_not_others(kind, beyond):
    lengths = [beyond, 1, 2, 3]
    with jax.enable_x64(kind == "array"):
        if kind == "array":
            lengths = jnp.array(lengths)
        elif kind != "list":
            lengths = np.array(lengths, kind)
        # The call itself runs this program or another thread does: JAX has an error for each.
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="from 0 to T = 6, got"):
            jax.block_until_ready(rkj.gru(drawn("gru"), normal(T, B, I), lengths=lengths))


def test_calls_run_without_jit():
    """Under `jax.disable_jit`, which helps to find errors."""
    params, x = drawn("gru"), normal(T, B, I)
    loss = scalar(rkj.gru)
    each = jax.vmap(jax.grad(loss), (0, None))  # an ensemble, whose lengths are its rows' own
    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    want = rkj.gru(params, x), jax.grad(loss)(params, x), each(several, x)
    with jax.disable_jit():
        equal((rkj.gru(params, x), jax.grad(loss)(params, x), each(several, x)), want)


def test_axes_of_no_elements_are_mapped():
    params = jax.tree.map(lambda p: jnp.zeros((0, *p.shape)), drawn("gru"))
    x = jnp.zeros((0, T, B, I))
    for own in ((params, 0, normal(T, B, I), None), (drawn("gru"), None, x, 0), (params, 0, x, 0)):
        p, axis, x, other = own
        y, h = jax.vmap(rkj.gru, (axis, other))(p, x)
        assert (y.shape, h.shape) == ((0, T, B, H), (0, 1, B, H))
        each = jax.vmap(jax.grad(scalar(rkj.gru), (0, 1)), (axis, other))(p, x)
        assert all(g.shape[0] == 0 for g in jax.tree.leaves(each))


# ---- parameters --------------------------------------------------------------------------------


@each_cell
def test_init_is_uniform_and_goes_into_layers(cell):
    params = rkj.init(KEY, cell, 20, 100, bidirectional=True)
    layer = rkj.to_layer(cell, params)
    assert {name: p.shape for name, p in params.items()} == {
        name: p.shape for name, p in layer.params.items()
    }
    equal(rkj.from_layer(layer), params)
    for name, p in params.items():
        assert float(jnp.abs(p).max()) <= 0.1
        if p.size > 1000:  # the largest of n uniform values is below 0.09 once in 0.9^-n
            assert float(jnp.abs(p).max()) > 0.09
            # The mean of n values has the standard deviation 0.1 / sqrt(3 n); five of them.
            assert abs(float(p.mean())) < 5 * 0.1 / (3 * p.size) ** 0.5, name
    assert not np.array_equal(params["weight_ih_l0"], params["weight_ih_l0_reverse"])


def test_numpy_arrays_are_parameters():
    layer = rk.GRU(I, H, seed=0)
    x = np.asarray(normal(T, B, I))
    equal(rkj.gru(layer.params, x), layer(x))
    equal(rkj.gru(dict(reversed(layer.params.items())), x), layer(x))  # the names count


# ---- the process -------------------------------------------------------------------------------


def test_many_threads():
    params, x = drawn("lstm", 2), normal(20, B, I)
    gradient = jax.jit(jax.grad(scalar(rkj.lstm), (0, 1)))
    want = gradient(params, x)
    errors = []

    def run():
        try:
            for _ in range(20):
                equal(gradient(params, x), want)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_programs_in_flight():
    """Many at once, which JAX dispatches without waiting."""
    params, x = drawn("gru"), normal(20, B, I)
    step = jax.jit(lambda h: rkj.gru(params, x, h)[1])
    h = want = jnp.zeros((1, B, H))
    for _ in range(200):
        h = step(h)
    for _ in range(200):
        want = jax.block_until_ready(step(want))
    equal(h, want)


def test_exported_programs_run():
    params, x = drawn("gru"), normal(T, B, I)
    names = (calls.FORWARD, calls.BACKWARD)
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    gradient = jax.jit(jax.grad(scalar(rkj.gru)))
    program = jax.export.export(gradient, disabled_checks=checks)(params, x).serialize()
    equal(jax.export.deserialize(program).call(params, x), gradient(params, x))


def test_rows_over_devices():
    """Of two devices of the CPU: each runs the kernel on its rows."""
    code = """
import jax, jax.numpy as jnp, numpy as np, rnnkern.jax as rkj
from jax.sharding import PartitionSpec as P
mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
params = rkj.init(jax.random.key(0), "gru", 3, 5)
x = jax.random.normal(jax.random.key(1), (6, 4, 3))
loss = lambda p, x: (rkj.gru(p, x)[0] ** 2).sum()
want = jax.grad(loss)(params, x)
def over(p, x):
    return jax.tree.map(lambda g: jax.lax.psum(g, "rows"), jax.grad(loss)(p, x))
got = jax.jit(jax.shard_map(over, mesh=mesh, in_specs=(P(), P(None, "rows")), out_specs=P(),
                            check_vma=False))(params, x)
for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def ended(code, **options):
    """What a process printed that runs this code and ends."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


MANY = """
import jax, jax.numpy as jnp, rnnkern.jax as rkj
params, x = rkj.init(jax.random.key(0), "lstm", 64, 128, 2), jnp.ones((100, 32, 64))
f = jax.jit(jax.grad(lambda p, x: rkj.lstm(p, x)[0].sum()))
jax.block_until_ready(f(params, x))
"""


def test_a_process_ends_while_programs_run():
    """Nobody waits for their results. JAX then holds the lock that a call of Python needs."""
    code = MANY + "for _ in range(3): f(params, x * 2)\nprint('at the end')"
    assert ended(code) == "at the end\n"


def test_a_process_ends_while_threads_call():
    """Threads that go on to call, and meet the refusal."""
    code = (
        MANY
        + """
import threading, time
def calls():
    while True:
        try:
            jax.block_until_ready(f(params, x))
        except Exception as error:
            assert "rnnkern.jax: calls are refused: Python ends" in str(error)
            return
for _ in range(2):
    threading.Thread(target=calls, daemon=True).start()
time.sleep(0.2)
print("at the end", flush=True)
"""
    )
    assert ended(code) == "at the end\n"


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_process_ends_while_a_long_call_runs(interrupted):
    """The call, of minutes, is given up. Ctrl-C at that time does not end the wait for it."""
    code = """
import atexit, signal, time, jax, jax.numpy as jnp, rnnkern.jax as rkj
params, x = rkj.init(jax.random.key(0), "rnn", 1, 4096), jnp.ones((20000, 1, 1))
@jax.jit
def f(params, x):  # XLA runs programs without a loop at once
    call = lambda _, total: rkj.rnn(params, x + total)[0].mean()
    return jax.lax.fori_loop(0, 2, call, 0.0)
f.lower(params, x).compile()
f(params, x)
time.sleep(0.5)
signal.signal(signal.SIGALRM, signal.default_int_handler)
"""
    if interrupted:
        code += "atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.02)\n"
    assert ended(code + "print('at the end')") == "at the end\n"


def test_programs_on_several_devices_end_before_the_process():
    """Where a call fails on one device, the others would wait for its part of a sum."""
    code = """
import jax, jax.numpy as jnp, rnnkern.jax as rkj
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("rows",))
params, x = rkj.init(jax.random.key(0), "gru", 8, 16), jnp.ones((10, 4, 8))
x = jax.device_put(x, NamedSharding(mesh, P(None, "rows")))
def over(p, x):
    def call(total):
        return rkj.gru(p, x + total)[0].mean()
    def step(_, total):
        one = jax.lax.cond(jax.lax.axis_index("rows") == 0, lambda x: x, call, total)
        return jax.lax.psum(one, "rows") / 2
    return jax.lax.fori_loop(0, 2000, step, 0.0)
specs = P(), P(None, "rows")
f = jax.jit(jax.shard_map(over, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))
f.lower(params, x).compile()
f(params, x)
print("at the end")
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert ended(code, env={**os.environ, **env}) == "at the end\n"


def test_programs_with_effects_end_before_the_process():
    code = (
        MANY
        + """
from jax.experimental import io_callback
@jax.jit
def g(params, x):
    y, _ = rkj.lstm(params, x)
    y, _ = rkj.lstm(params, x + y.mean())
    io_callback(lambda y: print("written", y.shape, flush=True), None, y)
g(params, x)
"""
    )
    assert ended(code) == "written (100, 32, 128)\n"


def test_calls_at_the_end_of_the_process_are_refused():
    code = """
import atexit, jax, jax.numpy as jnp
def late():
    try:
        jax.block_until_ready(rkj.gru(params, jnp.ones((7, 2, 3))))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        print(error)
atexit.register(late)  # before the package registers, so it runs later
import rnnkern.jax as rkj
params = rkj.init(jax.random.key(0), "gru", 3, 5)
"""
    assert ended(code) == "CANCELLED: rnnkern.jax: calls are refused: Python ends\n"


def test_without_jax_the_error_names_the_extra():
    code = "import sys; sys.modules['jax'] = None\nimport rnnkern.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: rnnkern.jax needs JAX: pip install 'rnnkern[jax]'" in done.stderr


def test_states_are_those_of_the_layer():
    for kind in ("lstm", "gru", "slstm"):
        layer = make_layer(kind, I, H)
        _, state = rkj.recurrent(layer, layer.params, normal(T, B, I))
        assert len(parts(state)) == len(CELLS[kind].states)
