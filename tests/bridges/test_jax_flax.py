"""rnnkern.jax.nnx beside flax.nnx: outputs, carries, gradients and state."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

pytest.importorskip("flax", reason="the framework of these modules")

from flax import nnx

import rnnkern as rk
import rnnkern.jax as rkj
import rnnkern.jax.nnx as rkx

# Of LLVM, which take longer than the programs of these sizes run.
jax.config.update("jax_disable_most_optimizations", True)

T, B, I, H = 7, 4, 3, 5
CELLS = (nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell)
each_cell = pytest.mark.parametrize("cls", CELLS, ids=lambda cls: cls.__name__)
LENGTHS = jnp.array([7, 1, 3, 5])  # flax takes the last step's carry of a row of length 0


def made(cls, seed=0, **options):
    """A cell whose biases are not zero."""
    return cls(I, H, bias_init=nnx.initializers.normal(0.3), rngs=nnx.Rngs(seed), **options)


def normal(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def close(got, want, dtype=np.float32):
    """All leaves, within what `assert_close` allows."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, a in jax.tree.leaves_with_path(want):
        b = dict(jax.tree.leaves_with_path(got))[path]
        assert a.dtype == b.dtype
        assert_close(b, a, dtype, jax.tree_util.keystr(path))


def loss(module, x, **given):
    """A function of all outputs that count."""
    carry, y = module(x, return_carry=True, **given)
    if "seq_lengths" in given:
        real = jnp.arange(T) < given["seq_lengths"][:, None]
        y = jnp.where(real[..., None], y, 0)
    return sum(jnp.sin(a).sum() for a in jax.tree.leaves((carry, y)))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, {"reverse": True}) for cls in CELLS),
        (nnx.LSTMCell, {"reverse": True, "keep_order": True}),
        (nnx.GRUCell, {"time_major": True}),
    ],
)
def test_results(cls, options):
    """Outputs and carries, and gradients of parameters and inputs; with lengths and without."""
    theirs, ours = nnx.RNN(made(cls), **options), rkx.RNN(made(cls), **options)
    x = normal(T, B, I) if "time_major" in options else normal(B, T, I)
    cases = [{}, {"seq_lengths": LENGTHS}]
    for given in cases[: 1 if "time_major" in options else 2]:  # flax's padding is of (B, T) then
        want, got = (m(x, return_carry=True, **given) for m in (theirs, ours))
        if given:
            real = (jnp.arange(T) < LENGTHS[:, None])[..., None]
            assert not np.where(real, 0, got[1]).any()
            want = want[0], jnp.where(real, want[1], 0)
        close(got, want)
        gradient = nnx.grad(partial(loss, **given), argnums=(0, 1))
        close(gradient(ours, x), gradient(theirs, x))


@each_cell
def test_state_is_flaxs(cls):
    """The same paths, shapes and values: a checkpoint of one is one of the other."""
    theirs, ours = nnx.RNN(made(cls)), rkx.RNN(made(cls, seed=1))
    assert jax.tree.structure(nnx.state(theirs)) == jax.tree.structure(nnx.state(ours))
    nnx.update(ours, nnx.state(theirs))
    x = normal(B, T, I)
    close(ours(x), theirs(x))
    merged = nnx.merge(*nnx.split(ours))
    assert isinstance(merged, rkx.RNN)
    close(nnx.jit(lambda m, x: m(x))(merged, x), theirs(x))


@each_cell
def test_initial_carries_and_axes_of_rows(cls):
    theirs, ours = nnx.RNN(made(cls), return_carry=True), rkx.RNN(made(cls), return_carry=True)
    for rows in ((), (B,), (2, 3)):
        carry = normal(*rows, H)
        carry = (carry, carry + 1) if "LSTM" in cls.__name__ else carry
        x = normal(*rows, T, I)
        close(ours(x, initial_carry=carry), theirs(x, initial_carry=carry))
        close(ours(x), theirs(x))
    many = jax.vmap(lambda x: ours(x, return_carry=False))(normal(2, B, T, I))
    close(many, ours(normal(2, B, T, I), return_carry=False))


@each_cell
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_of_several_axes_of_rows(cls, reverse):
    """Those of one axis of as many rows; flax's own carry mixes the rows here."""
    ours = rkx.RNN(made(cls), return_carry=True, reverse=reverse)
    x, lengths = normal(2, 3, T, I), jnp.arange(6).reshape(2, 3) % (T + 1)
    carry, y = ours(x.reshape(6, T, I), seq_lengths=lengths.reshape(6))
    carries, many = ours(x, seq_lengths=lengths)
    np.testing.assert_array_equal(many, y.reshape(2, 3, T, H))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.reshape(2, 3, H)), carries, carry)


def test_a_cells_own_initial_carry():
    with pytest.warns(UserWarning, match="carry_init is provided"):
        cells = [made(nnx.GRUCell, carry_init=nnx.initializers.ones) for _ in range(2)]
    x = normal(B, T, I)
    close(rkx.RNN(cells[0])(x), nnx.RNN(cells[1])(x))
    close(rkx.RNN(cells[0])(x, rngs=nnx.Rngs(0)), nnx.RNN(cells[1])(x, rngs=nnx.Rngs(0)))


@each_cell
def test_bidirectional(cls):
    """flax's own module, of two of ours."""
    x = normal(B, T, I)
    found = []
    for rnn in (nnx.RNN, rkx.RNN):
        both = nnx.Bidirectional(rnn(made(cls)), rnn(made(cls, seed=1)))
        carries, y = both(x, seq_lengths=LENGTHS, return_carry=True)
        found.append((carries, jnp.where((jnp.arange(T) < LENGTHS[:, None])[..., None], y, 0)))
    close(found[1], found[0])


FUNCTIONS = ("relu", "hard_sigmoid", "elu", "leaky_relu", "soft_sign", "softplus")


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        *((nnx.SimpleCell, (name,)) for name in FUNCTIONS),
        (nnx.GRUCell, ("hard_sigmoid", "elu")),
        (nnx.LSTMCell, ("hard_sigmoid", "soft_sign")),
    ],
)
def test_activations(cls, names):
    functions = [getattr(nnx, name) for name in names]
    options = dict(zip(("activation_fn", "gate_fn"), reversed(functions), strict=False))
    x, theirs, ours = normal(B, T, I), nnx.RNN(made(cls, **options)), rkx.RNN(made(cls, **options))
    close(ours(x), theirs(x))
    close(nnx.grad(loss)(ours, x), nnx.grad(loss)(theirs, x))
    assert not np.array_equal(ours(x), rkx.RNN(made(cls))(x))


def test_all_activations_are_tested():
    known = {functions[0].__name__ for functions, _ in rkx.ACTIVATIONS.values()}
    assert known == {*FUNCTIONS, "sigmoid", "tanh"}
    jaxs = made(nnx.LSTMCell, gate_fn=jax.nn.sigmoid, activation_fn=jnp.tanh)
    x = normal(B, T, I)
    close(rkx.RNN(jaxs)(x), rkx.RNN(made(nnx.LSTMCell))(x))


def test_residual_simple_cells():
    theirs = nnx.RNN(made(nnx.SimpleCell, residual=True))
    ours = rkx.RNN(made(nnx.SimpleCell, residual=True))
    x = normal(B, T, I)
    close(ours(x), theirs(x))
    close(nnx.grad(loss)(ours, x), nnx.grad(loss)(theirs, x))
    params = rkx.from_flax(ours.cell)
    rkx.to_flax(params, theirs.cell)
    close(rkx.from_flax(theirs.cell), params)


def test_dtypes():
    """As flax: of the cell's dtype, or of what inputs and parameters promote to."""
    x = normal(B, T, I)
    half = rkx.RNN(made(nnx.LSTMCell, param_dtype=jnp.float16))
    params = {name: p.astype(np.float32) for name, p in rkx.from_flax(half.cell).items()}
    assert np.array_equal(half(x), rkj.lstm(params, x, batch_first=True)[0])
    with pytest.raises(TypeError, match=r"^cell: expected to compute in float32 or float64, got"):
        half(x.astype(jnp.float16))
    with jax.enable_x64(True):
        x = normal(B, T, I, dtype=np.float64)
        for cls in (nnx.SimpleCell, nnx.LSTMCell):
            options = {"param_dtype": jnp.float64, "dtype": jnp.float64}
            theirs, ours = nnx.RNN(made(cls, **options)), rkx.RNN(made(cls, **options))
            close(ours(x), theirs(x), np.float64)
            close(nnx.grad(loss)(ours, x), nnx.grad(loss)(theirs, x), np.float64)


def test_clip_is_that_of_the_functions():
    cell, x, clip = made(nnx.LSTMCell), normal(B, T, I), rk.Clip(step_value=1e-3)
    got = nnx.jit(nnx.grad(lambda m: m(x).sum()))(rkx.RNN(cell, clip=clip))

    def by_hand(cell):
        return rkj.lstm(rkx.from_flax(cell), x, batch_first=True, clip=clip)[0].sum()

    close(got["cell"], nnx.grad(by_hand)(cell))
    whole = nnx.grad(lambda m: m(x).sum())(rkx.RNN(cell))
    assert not np.array_equal(got["cell"]["hi"]["kernel"][...], whole["cell"]["hi"]["kernel"][...])


# ---- conversion --------------------------------------------------------------------------------


@each_cell
def test_parameters_go_both_ways(cls):
    cell, other = made(cls), made(cls, seed=1)
    params = rkx.from_flax(cell)
    rkx.to_flax(params, other)
    close(nnx.state(other, nnx.Param), nnx.state(cell, nnx.Param))
    name = {"SimpleCell": "rnn", "GRUCell": "gru"}.get(cls.__name__, "lstm")
    layer = rkj.to_layer(name, params, batch_first=True)
    x = normal(B, T, I)
    close(layer(np.asarray(x))[0], nnx.RNN(cell)(x))
    bare = {n: p for n, p in params.items() if "weight" in n}
    rkx.to_flax(bare, other)
    close(rkx.from_flax(other), {n: p * ("weight" in n) for n, p in params.items()})


def test_a_gru_with_a_bias_that_flax_lacks_is_refused():
    gru, cell = rk.GRU(I, H, seed=0), made(nnx.GRUCell)
    before = nnx.state(cell, nnx.Param)
    with pytest.raises(ValueError, match=r"^params\['bias_hh_l0'\]: expected zeros in its last H"):
        rkx.to_flax(gru.params, cell)
    close(nnx.state(cell, nnx.Param), before)
    gru.params["bias_hh_l0"][2 * H :] = 0
    rkx.to_flax(gru.params, cell)
    x = normal(B, T, I)
    close(nnx.RNN(cell, time_major=True)(x), gru(np.asarray(x))[0])


def test_what_is_refused():
    with pytest.raises(
        TypeError, match=r"^cell: expected one of flax.nnx's SimpleCell, .*, got int"
    ):
        rkx.RNN(1)

    class Own(nnx.GRUCell):
        pass

    with pytest.raises(TypeError, match=r"^cell: expected one of flax.nnx's .*, got Own"):
        rkx.RNN(made(Own))
    with pytest.raises(ValueError, match=r"^cell: expected activations of Sigmoid, .*, got gelu"):
        rkx.RNN(made(nnx.LSTMCell, activation_fn=nnx.gelu))
    with pytest.raises(ValueError, match=r"^cell: expected flax's own promote_dtype, got another"):
        rkx.RNN(made(nnx.LSTMCell, promote_dtype=lambda args, dtype, **_: args))
    adapted = made(nnx.GRUCell)
    adapted.dense_i = nnx.LoRALinear(I, 3 * H, lora_rank=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"^cell.dense_i: expected flax.nnx's Linear, got LoRA"):
        rkx.RNN(adapted)
    with pytest.raises(TypeError, match=r"^clip: expected a rnnkern.Clip or None, got float"):
        rkx.RNN(made(nnx.GRUCell), clip=1.0)
    with pytest.raises(TypeError, match=r"^reverse: expected"):
        rkx.RNN(made(nnx.GRUCell), reverse=1)
    rnn = rkx.RNN(made(nnx.GRUCell))
    with pytest.raises(ValueError, match=r"^inputs: .* with I = 3, got \(4, 7, 2\)"):
        rnn(normal(B, T, 2))
    x, lstm = normal(2, 3, T, I), rkx.RNN(made(nnx.LSTMCell))
    for own, carry, said in (  # of as many values as the right ones, in another order
        (rnn, normal(3, 2, H), r"expected shape \(2, 3, 5\), got \(3, 2, 5\)"),
        (lstm, (normal(2, 3, H), normal(3, 2, H)), r"expected shape \(2, 3, 5\), got \(3, 2, 5\)"),
        (lstm, normal(2, 3, H), r"expected a pair \(c, h\) of arrays, got ArrayImpl"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^initial_carry: {said}"):
            own(x, initial_carry=carry)
    for lengths in (jnp.ones((3, 2), int), np.ones((3, 2), int), np.ones(6, int)):
        with pytest.raises(ValueError, match=r"^seq_lengths: expected shape \(2, 3\), got \("):
            rnn(x, seq_lengths=lengths)
    for name in ("time_major", "reverse", "keep_order", "return_carry"):
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got str"):
            rnn(x, **{name: "no"})
    with pytest.raises(TypeError, match=r"^params: expected a mapping of names to arrays, got int"):
        rkx.to_flax(1, rnn.cell)
    with pytest.raises(ValueError, match=r"^params: expected arrays of shapes .*, got {'weight_ih"):
        rkx.to_flax(rk.GRU(I, H, 2).params, rnn.cell)


def test_without_flax_the_error_names_the_extra():
    code = "import sys; sys.modules['flax'] = None\nimport rnnkern.jax, rnnkern.jax.nnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: rnnkern.jax.nnx needs flax: pip install 'rnnkern[flax]'" in done.stderr
