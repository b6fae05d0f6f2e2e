"""bf16: the reference's bits, layers with ``compute="bf16"``, and frozen layers of bf16 weights.

The relu RNN has no transcendental function, so NumPy can state each of its roundings: forward and
backward are compared bit by bit, over all that must leave no trace. The other cells are compared
with themselves bit by bit, and with the float64 reference within a tolerance.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from helpers import (
    KINDS,
    LOOPS,
    QUIET,
    assert_close,
    config_of,
    fused_sets,
    in_each_set,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
    sets,
)
from plan import CPP
from test_bits import CASES, SHAPES, Case, bits, by_row, changed, differing, rows_of, shortest

import rnnkern as rk
from rnnkern import reference
from rnnkern.layers import LAYERS
from rnnkern.reference import bf16_bits, bf16_product, from_bf16_bits, to_bf16

every_kind = pytest.mark.parametrize("kind", KINDS)
ODD = (1, 7, 15, 17, 33)
TINY = 2.0**-126  # the smallest normal number of float32 and of bf16
LARGEST = float(from_bf16_bits(0x7F7F))
FORMATS = ("compute", "weights")  # rounded are both operands of products, or the weights alone


# ---- the reference: numbers --------------------------------------------------------------------


def floats(upper, lower):
    """Float32 numbers from both halves of their bits."""
    upper, lower = np.asarray(upper, np.uint32), np.asarray(lower, np.uint32)
    return (upper << np.uint32(16) | lower).view(np.float32)


def test_every_bf16_number_is_its_own_rounding():
    every = np.arange(2**16, dtype=np.uint16)
    numbers = from_bf16_bits(every)
    kept = bf16_bits(numbers)
    subnormal = (numbers != 0) & (np.abs(numbers) < TINY)
    assert subnormal.sum() == 2 * 127
    assert np.array_equal(kept[subnormal], every[subnormal] & 0x8000)
    nan = np.isnan(numbers)
    assert np.array_equal(kept[nan], every[nan] | 0x40)
    rest = ~(subnormal | nan)
    assert np.array_equal(kept[rest], every[rest])
    assert to_bf16(numbers[rest]).tobytes() == numbers[rest].tobytes()


@pytest.mark.parametrize("lower", [0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_rounds_to_the_nearest_and_ties_to_even(lower):
    """The two neighbours of each float32, in float64: what overflows is the next power of two."""
    upper = np.arange(0x0080, 0x7F80, dtype=np.uint16)  # all positive normal numbers
    for sign in (0, 0x8000):
        x = floats(upper | sign, lower).astype(np.float64)
        below = floats(upper | sign, 0).astype(np.float64)
        exponent = (upper >> 7).astype(np.int64) - 127
        above = below + np.copysign(np.exp2(exponent - 7.0), below)
        nearer = np.where(np.abs(x - below) < np.abs(above - x), below, above)
        even = np.where(upper % 2 == 0, below, above)
        want = np.where(np.abs(x - below) == np.abs(above - x), even, nearer)
        assert (want == even).all() == (lower == 0x8000)
        want = np.where(np.abs(want) > LARGEST, np.copysign(np.inf, want), want)
        assert np.array_equal(to_bf16(x).astype(np.float64), want)


def test_nan_infinities_and_zeros():
    quiet, signaling, negative = floats([0x7FC1, 0x7F80, 0xFFA5], [0x2345, 0x0001, 0xFFFF])
    assert bf16_bits([quiet, signaling, negative]).tolist() == [0x7FC1, 0x7FC0, 0xFFE5]
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40], np.float32)
    assert bf16_bits(special).tolist() == [0x7F80, 0xFF80, 0, 0x8000, 0, 0x8000]
    largest = np.finfo(np.float32).max
    assert to_bf16([largest, -largest]).tolist() == [np.inf, -np.inf]
    # Just below the smallest normal number, and so flushed, although it is nearer to that number.
    assert bf16_bits(floats([0x007F, 0x0080], [0xFFFF, 0x0000])).tolist() == [0, 0x0080]


def rounded(exact):
    """A Fraction as float32: to nearest, ties to even; flushed where that is subnormal."""
    if exact == 0:
        return np.float32(0)
    size = abs(exact)
    exponent = math.floor(math.log2(size.numerator) - math.log2(size.denominator))
    exponent += (size >= Fraction(2) ** (exponent + 1)) - (size < Fraction(2) ** exponent)
    unit = Fraction(2) ** (exponent - 23)
    whole = round(size / unit)  # of a Fraction: ties to even
    if whole * unit < Fraction(TINY):
        return np.float32(math.copysign(0.0, exact))
    if whole * unit >= Fraction(2) ** 128:
        return np.float32(math.copysign(math.inf, exact))
    return np.float32(math.copysign(float(whole * unit), exact))


def chain(start, a, b):
    """One element of `bf16_product` in exact arithmetic, rounded at each link."""
    c = start
    for one, other in zip(a, b, strict=True):
        c = rounded(Fraction(float(one)) * Fraction(float(other)) + Fraction(float(c)))
    return c


def numbers(rng, *shape, spread=0):
    """Normal numbers, times powers of two up to so many binades apart."""
    scale = np.exp2(rng.integers(-spread, spread + 1, shape))
    return (rng.normal(size=shape) * scale).astype(np.float32)


@pytest.mark.parametrize("spread", [0, 12, 40, 62])
@pytest.mark.parametrize("rounds_both", [True, False])
def test_a_product_is_a_chain_that_rounds_once_a_link(spread, rounds_both):
    rng = np.random.default_rng(spread)
    start, b = numbers(rng, 12, 15, spread=spread), to_bf16(numbers(rng, 15, 9, spread=spread))
    a = numbers(rng, 12, 9, spread=spread)
    a = to_bf16(a) if rounds_both else a
    got = bf16_product(start, a, b)
    for i, j in np.ndindex(start.shape):
        assert got[i, j].tobytes() == chain(start[i, j], a[i], b[j]).tobytes()


def test_a_link_rounds_once_where_a_float64_sum_rounds_twice():
    """1 + 2^-24 (1 + d) with a d that float64 drops, which leaves the middle of two numbers."""
    found = 0
    for fraction in range(1, 128):
        w = np.float32(1 + fraction / 128)
        x = np.float32(2 / w)
        d = Fraction(float(x)) * Fraction(float(w)) / 2 - 1
        if not 0 < abs(d) < Fraction(2) ** -29:
            continue
        start = np.float32(1 if d > 0 else 1 + 2.0**-23)  # the tie goes the other way
        x = x * np.float32(2.0**-25)
        want = chain(start, [x], [w])
        assert want != np.float32(np.float64(start) + np.float64(x) * np.float64(w))
        assert bf16_product([[start]], [[x]], [[w]]) == want
        assert bf16_product([[-start]], [[-x]], [[w]]) == -want
        found += 1
    assert found >= 2


def test_products_and_sums_are_flushed_after_rounding():
    below, least = np.float32(2.0**-63 * (1 - 2.0**-8)), np.float32(2.0**-63)
    assert bf16_product([[0.0]], [[below]], [[least]]) == 0
    assert bf16_product([[0.0]], [[least]], [[least]]) == TINY
    # The sum of two normal numbers is subnormal, and a subnormal start is none.
    assert bf16_product([[1.5 * TINY]], [[-TINY]], [[1.0]]) == 0
    assert bf16_product([[np.float32(1e-39)]], [[TINY]], [[1.0]]) == TINY
    # Subnormal operands are zeros, even of large factors.
    assert bf16_product([[0.0]], [[np.float32(1e-39)]], [[2.0**100]]) == 0
    # A product too small by itself counts until the sum is rounded.
    quarter = bf16_product([[TINY * (1 + 2.0**-22)]], [[-(2.0**-75)]], [[2.0**-74]])
    assert quarter == TINY * (1 + 2.0**-23)
    # Just below the smallest normal number, to which 24 bits round up, and a little less.
    x, w = np.float32(float.fromhex("0x1.000002p-63")), np.float32(float.fromhex("0x1.fffffcp-64"))
    assert bf16_product([[0.0]], [[x]], [[w]]) == TINY
    assert bf16_product([[0.0]], [[np.float32(2.0**-63)]], [[w]]) == 0
    assert bf16_product([[-0.0]], [[-np.float32(2.0**-63)]], [[w]]).tobytes() == b"\0\0\0\x80"


def test_products_of_infinities_and_nan():
    infinite = bf16_product([[0.0]], [[np.inf, 1.0]], [[1.0, 3.0], [-2.0, 1.0], [0.0, 1.0]])
    assert infinite[0, :2].tolist() == [np.inf, -np.inf]
    assert np.isnan(infinite[0, 2])
    assert np.isnan(bf16_product([[np.nan]], [[1.0]], [[1.0]])).all()
    assert bf16_product([[-np.inf]], [[1.0]], [[1.0]]) == -np.inf
    large = float(LARGEST)
    assert bf16_product([[0.0]], [[large]], [[2.0]]) == np.inf
    assert bf16_product([[0.0]], [[large, large]], [[1.0, -1.0]]) == 0
    assert bf16_product([[-0.0]], [[0.0]], [[-1.0]]).tobytes() == np.float32(-0.0).tobytes()


def test_no_terms_leave_the_start():
    start = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = bf16_product(start, np.empty((2, 0)), np.empty((3, 0)))
    assert got.tobytes() == start.tobytes()


# ---- the reference: cells ----------------------------------------------------------------------


def drawn(kind, H=6, T=4, B=3, **options):
    """A layer of the reference's: its Config, parameters, x, state and gradients."""
    layer = make_layer(kind, 5, H, **options)
    p = random_problem(layer, T, B)
    params = {name: values.astype(np.float64) for name, values in layer.params.items()}
    return config_of(layer), params, p


def is_matrix(name):
    cell_names = ("weight_ih", "weight_hh", "weight_hr")
    return name.startswith(cell_names)


def rounded_matrices(params):
    return {
        name: to_bf16(v).astype(np.float64) if v.ndim == 2 and is_matrix(name) else v
        for name, v in params.items()
    }


def outputs(config, params, p):
    """What the reference says of a problem: y, states, and the gradients by name."""
    y, state, tape = reference.forward(config, params, p.x, p.state)
    grads = reference.backward(config, params, tape, p.dy, p.dstate)
    found = {"y": y, "grads.x": grads.x, **grads.params}
    for name, one in (("state", state), ("grads.state", grads.state)):
        found.update({f"{name}[{i}]": part for i, part in enumerate(parts(one))})
    return found


@every_kind
def test_bf16_weights_of_the_reference_are_rounded_matrices(kind):
    config, params, p = drawn(kind, num_layers=2)
    got = outputs(replace(config, weights="bf16"), params, p)
    want = outputs(config, rounded_matrices(params), p)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert not np.array_equal(got["y"], outputs(config, params, p)["y"])


@every_kind
def test_bf16_products_of_the_reference_round_the_matrices(kind):
    config, params, p = drawn(kind, num_layers=2)
    computed = replace(config, compute="bf16")
    got, want = outputs(computed, params, p), outputs(computed, rounded_matrices(params), p)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    plain = outputs(config, rounded_matrices(params), p)
    # Activations are rounded in forward, and all that is multiplied in backward.
    unchanged = {name for name in got if np.array_equal(got[name], plain[name], equal_nan=True)}
    states = enumerate(reference.CELLS[kind].states)
    expected = {f"grads.state[{i}]" for i, state in states if not state.flows}
    if kind == "ind_rnn_relu":  # a sum of what comes from above where relu passes it
        expected.add("bias_ih_l1")
    assert unchanged <= expected


@every_kind
def test_bf16_products_of_the_reference_round_x(kind):
    config, params, p = drawn(kind)
    if reference.CELLS[kind].inputs_are_units:  # which reads x itself besides
        p = p.but(x=to_bf16(p.x))
    computed = replace(config, compute="bf16")
    got = outputs(computed, params, p)
    want = outputs(computed, params, p.but(x=to_bf16(p.x)))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_bf16_products_of_the_reference_by_hand():
    """Two steps of a tanh RNN, of one unit and one input, forward and backward."""
    w, u, b = 0.77, -1.23, 0.31
    x, dy = np.array([0.123, 1.7]), np.array([0.9, -0.4])

    def r(v):
        return float(to_bf16(v))

    params = {"weight_ih_l0": [[w]], "weight_hh_l0": [[u]], "bias_ih_l0": [b], "bias_hh_l0": [0]}
    config = reference.Config("rnn_tanh", 1, 1, compute="bf16")
    y, _, tape = reference.forward(config, params, x.reshape(2, 1, 1))
    h0 = np.tanh(r(w) * r(x[0]) + b)
    h1 = np.tanh(r(w) * r(x[1]) + r(u) * r(h0) + b)
    np.testing.assert_allclose(y.ravel(), [h0, h1], rtol=1e-14)
    grads = reference.backward(config, params, tape, dy.reshape(2, 1, 1))
    da1 = dy[1] * (1 - h1**2)
    da0 = (dy[0] + r(da1) * r(u)) * (1 - h0**2)
    np.testing.assert_allclose(grads.x.ravel(), [r(da0) * r(w), r(da1) * r(w)], rtol=1e-14)
    dw, du = r(da1) * r(x[1]) + r(da0) * r(x[0]), r(da1) * r(h0)
    got = [grads.params[name].item() for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")]
    np.testing.assert_allclose(got, [dw, du, da0 + da1], rtol=1e-14)


@pytest.mark.parametrize("name", FORMATS)
def test_the_reference_refuses_other_formats(name):
    with pytest.raises(ValueError, match=f"^{name}: expected None or 'bf16', got 'int8'"):
        reference.Config("lstm", 3, 4, **{name: "int8"})


# ---- a relu RNN in NumPy, bit by bit -----------------------------------------------------------


def added(a, b):
    """The float32 sum, flushed: a sum of two normal numbers that is subnormal is exact."""
    with np.errstate(all="ignore"):
        s = a + b
    return np.where(np.abs(s) < np.float32(TINY), np.copysign(np.float32(0), s), s)


def zeros(*shape):
    return np.zeros(shape, np.float32)


class ReluRNN:
    """The layers of an `RNN` with relu, each sum in the order in which the core promises it.

    `operand` rounds what is multiplied, `weight` the matrices.
    """

    def __init__(self, layer, operand, weight):
        self.layer, self.operand = layer, operand
        self.D = 1 + layer.bidirectional
        self.places = [(l, d) for l in range(layer.num_layers) for d in range(self.D)]
        self.weights = [self._weights(l, d, weight) for l, d in self.places]

    def _weights(self, l, d, weight):
        at = f"l{l}" + "_reverse" * d
        params, H = self.layer.params, self.layer.hidden_size
        matrices = [weight(params[f"{name}_{at}"]) for name in ("weight_ih", "weight_hh")]
        bias = zeros(H)
        if self.layer.bias:
            bias = added(params[f"bias_ih_{at}"], params[f"bias_hh_{at}"])
        return (*matrices, bias)

    def run(self, p):
        """Outputs, states and gradients by the names of `bits`."""
        T, B, _ = p.x.shape
        H, D, L = self.layer.hidden_size, self.D, self.layer.num_layers
        lengths = np.full(B, T) if p.lengths is None else np.asarray(p.lengths)
        alive = np.arange(T)[:, None] < lengths
        starts = np.zeros((T + 1, B), bool)
        if p.resets is not None:
            starts[:T] = p.resets & alive
        order = np.argsort(-lengths, kind="stable")  # the longest first: rows of sums
        states = zeros(L * D, B, H) if p.state is None else p.state.copy()

        xs, ys, before = [], [], []
        x = p.x
        for l in range(L):
            xs.append(x)
            y = zeros(T, B, D * H)
            for d in range(D):
                columns = slice(d * H, (d + 1) * H)
                k = l * D + d
                own = self._forward(self.weights[k], x, states[k], alive, starts, d == 1)
                y[:, :, columns], seen = own
                before.append(seen)
            ys.append(y)
            residual = self.layer.residual and l > 0
            x = np.where(alive[:, :, None], added(x, y), np.float32(0)) if residual else y
        found = {"y": x, "state[0]": states}

        dstates = zeros(L * D, B, H) if p.dstate is None else p.dstate.copy()
        dy = p.dy
        for l in reversed(range(L)):
            dx = zeros(T, B, xs[l].shape[2])
            for d in range(D):
                columns = slice(d * H, (d + 1) * H)
                k = l * D + d
                grads, own = self._backward(
                    *(self.weights[k][:2], xs[l], ys[l][:, :, columns], before[k]),
                    *(dy[:, :, columns], dstates[k], alive, starts, order, d == 1),
                )
                dx = added(dx, own) if D == 2 else own
                at = f"l{l}" + "_reverse" * d
                found.update({f"{name}_{at}": value for name, value in grads.items()})
            if self.layer.residual and l > 0:
                dx = np.where(alive[:, :, None], added(dx, dy), np.float32(0))
            dy = dx
        return found | {"grads.x": dy, "grads.state[0]": dstates}

    def _forward(self, weights, x, h, alive, starts, back):
        """y and the h before each step; h becomes the last one."""
        W_ih, W_hh, bias = weights
        T, B, _ = x.shape
        y, before = zeros(T, B, len(bias)), zeros(T, B, len(bias))
        for t in reversed(range(T)) if back else range(T):
            h[starts[t + 1] if back else starts[t]] = 0
            rows = alive[t]
            before[t, rows] = h[rows]
            a = np.broadcast_to(bias, h[rows].shape)
            a = bf16_product(a, self.operand(x[t, rows]), W_ih)
            a = bf16_product(a, self.operand(h[rows]), W_hh)
            h[rows] = y[t, rows] = np.where(a < 0, np.float32(0), a)
        return y, before

    def _backward(self, matrices, x, y, before, dy, dh, alive, starts, order, back):
        """Gradients of the parameters and of x; dh becomes that of the initial state."""
        W_ih, W_hh = matrices
        T, B, I = x.shape
        dx, das, seen_x, seen_h = zeros(T, B, I), [], [], []
        for t in range(T) if back else reversed(range(T)):
            rows = order[alive[t, order]]
            whole = added(dh[rows], dy[t, rows])
            with np.errstate(all="ignore"):
                da = whole * (y[t, rows] > 0).astype(np.float32)
            none = zeros(len(rows), len(W_hh))
            dh[rows] = bf16_product(none, self.operand(da), W_hh.T)
            dx[t, rows] = bf16_product(zeros(len(rows), I), self.operand(da), W_ih.T)
            dh[starts[t + 1] if back else starts[t]] = 0
            das.append(da), seen_x.append(x[t, rows]), seen_h.append(before[t, rows])
        da, *operands = (np.concatenate(rows) for rows in (das, seen_x, seen_h))
        grads = {}
        for name, seen in zip(("weight_ih", "weight_hh"), operands, strict=True):
            start = zeros(da.shape[1], seen.shape[1])
            grads[name] = bf16_product(start, self.operand(da).T, self.operand(seen).T)
        if self.layer.bias:
            db = zeros(da.shape[1])
            for row in da:
                db = added(db, row)
            grads.update(bias_ih=db, bias_hh=db)
        return grads, dx


def as_it_is(v):
    return v


def assert_same_bits(got, want):
    """Compare arrays by name, bit by bit; nan of any sign and payload is nan."""
    for name, expected in want.items():
        array = np.frombuffer(got[name], np.float32).reshape(expected.shape)
        nan = np.isnan(expected)
        assert np.array_equal(nan, np.isnan(array)), f"{name}: nan at other places"
        same = array[~nan].tobytes() == expected[~nan].astype(np.float32).tobytes()
        assert same, f"{name}: other bits"


def relu_problem(I, H, T, B, lengths=None, resets=None, **options):
    layer = make_layer("rnn_relu", I, H, **options)
    return layer, random_problem(layer, T, B, lengths=lengths, resets=resets)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_numpy_statement_has_the_bits_of_float32_layers(bidirectional):
    """Without rounding of operands it is what the core promises of float32."""
    for I, H, T, B, L in ((7, 15, 5, 4, 1), (33, 17, 4, 3, 3), (1, 1, 3, 1, 2)):
        options = {"num_layers": L, "bidirectional": bidirectional, "residual": L > 1}
        layer, p = relu_problem(I, H, T, B, "random", 0.2, **options)
        want = ReluRNN(layer, as_it_is, as_it_is).run(p)
        for isa in fused_sets():
            with rk.force_isa(isa):
                assert_same_bits(bits(layer, p), want)


@pytest.mark.parametrize("H", ODD)
@pytest.mark.parametrize("I", ODD)
def test_the_core_has_the_bits_of_the_numpy_statement(I, H):
    """All instruction sets that fuse, threads, numbers of rows, lengths, resets."""
    for T, B in ((1, 1), (4, 2), (5, 9)):
        for lengths, resets in ((None, None), ("random", 0.3)):
            layer, p = relu_problem(I, H, T, B, lengths, resets, compute="bf16")
            want = ReluRNN(layer, to_bf16, to_bf16).run(p)
            for isa, threads in itertools.product(fused_sets(), (1, 2)):
                with rk.force_isa(isa):
                    assert_same_bits(bits(layer, p, forward=threads), want)


STACKS = (
    {"num_layers": 2},
    {"num_layers": 3, "residual": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
)


@pytest.mark.parametrize("options", STACKS, ids=str)
def test_stacks_have_the_bits_of_the_numpy_statement(options):
    layer, p = relu_problem(7, 17, 6, 5, "random", 0.2, compute="bf16", **options)
    want = ReluRNN(layer, to_bf16, to_bf16).run(p)
    for isa in fused_sets():
        with rk.force_isa(isa):
            assert_same_bits(bits(layer, p), want)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(33, 40, 12, 24), (40, 96, 6, 2)], ids=["rows", "units"])
def test_threads_have_the_bits_of_the_numpy_statement(shape, threads):
    layer, p = relu_problem(*shape, "random", compute="bf16")
    want = ReluRNN(layer, to_bf16, to_bf16).run(p)
    assert_same_bits(bits(layer, p, forward=threads), want)


@pytest.mark.parametrize("T", [40, 41])
def test_odd_and_even_numbers_of_terms_and_many_chunks(T):
    """The gradients of W are chains over steps and rows, which chunks of steps interrupt."""
    for B in (1, 3, 9):
        layer, p = relu_problem(5, 9, T, B, "random", compute="bf16")
        assert_same_bits(bits(layer, p), ReluRNN(layer, to_bf16, to_bf16).run(p))


@pytest.mark.parametrize("segment", [1, 2, 3, 7, "sqrt"])
def test_checkpoints_leave_no_trace(segment):
    layer, p = relu_problem(7, 17, 11, 5, "random", 0.2, num_layers=2, compute="bf16")
    want = bits(layer, p)
    assert_same_bits(want, ReluRNN(layer, to_bf16, to_bf16).run(p))
    y, _, tape = p.forward(layer, checkpoint=segment)
    grads = p.backward(layer, tape)
    assert y.tobytes() == want["y"]
    assert grads.x.tobytes() == want["grads.x"]
    for name, values in grads.params.items():
        assert values.tobytes() == want[name]


# What a product meets of special numbers, in x, the state, dy and the weights.
SPECIAL = {
    "nan": [np.nan],
    "infinite": [np.inf, -np.inf],
    "overflow": [np.finfo(np.float32).max, -3.397e38],  # bf16 rounds both to infinity
    "largest": [LARGEST, -LARGEST],
    "subnormal": [1e-40, -1e-39, np.float32(TINY) * (1 - 2.0**-23)],
    "tiny": [TINY, -TINY, 2.0**-70, 3 * 2.0**-130 * 2**5],
    "zeros": [0.0, -0.0],
    "ties": [1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8) * 2.0**40],
}


def with_special(array, values, rng):
    """The array with some of its elements replaced."""
    array = array.copy()
    where = rng.random(array.shape) < 0.05
    array[where] = rng.choice(np.array(values, np.float32), where.sum())
    return array


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("place", ["sequences", "weights", "both"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_numbers_have_the_bits_of_the_numpy_statement(kind, place, form):
    rng, values = np.random.default_rng(len(kind)), SPECIAL[kind]
    option = {"compute": "bf16"} if form == "compute" else {}
    layer, p = relu_problem(9, 17, 5, 6, "random", 0.2, num_layers=2, **option)
    if place != "weights":
        p = changed(p, lambda a: with_special(a, values, rng))
    for name in layer.params if place != "sequences" else ():
        layer.params[name] = with_special(layer.params[name], values, rng)
    operand = to_bf16 if form == "compute" else as_it_is
    want = ReluRNN(layer, operand, to_bf16).run(p)
    for isa in fused_sets():
        with rk.force_isa(isa):
            if form == "compute":
                assert_same_bits(bits(layer, p), want)
            else:
                y, state = layer.freeze(weights="bf16")(p.x, p.state, p.lengths, resets=p.resets)
                got = {"y": y.tobytes(), "state[0]": state.tobytes()}
                assert_same_bits(got, {name: want[name] for name in got})


@pytest.mark.parametrize("H", ODD)
@pytest.mark.parametrize("I", ODD)
def test_bf16_weights_have_the_bits_of_the_numpy_statement(I, H):
    """Calls, streams step by step and in blocks, of all numbers of rows and on all sets."""
    for T, B in ((1, 1), (3, 2), (6, 9)):
        layer, p = relu_problem(I, H, T, B, num_layers=2)
        want = ReluRNN(layer, as_it_is, to_bf16).run(p)
        for isa, threads in itertools.product(fused_sets(), (1, 2)):
            with rk.force_isa(isa):
                frozen = layer.freeze(weights="bf16")
            y, state = on_threads(threads, frozen, p.x, p.state)
            got = {"y": y.tobytes(), "state[0]": state.tobytes()}
            assert_same_bits(got, {name: want[name] for name in got})
            stream = frozen.stream(B)
            stream.state = p.state
            steps = [on_threads(threads, stream.step, x) for x in p.x[: T // 2]]
            steps += [*on_threads(threads, stream.run, p.x[T // 2 :])]
            assert np.array(steps).tobytes() == want["y"].tobytes()
            assert stream.state.tobytes() == want["state[0]"].tobytes()


# ---- every cell, bit by bit --------------------------------------------------------------------

BF16 = {
    name: Case({**case.options, "compute": "bf16"}, case.lengths, case.clip)
    for name, case in CASES.items()
}
every_case = pytest.mark.parametrize("case", BF16.values(), ids=BF16)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)

needs_two_fused_sets = pytest.mark.skipif(
    len(fused_sets()) < 2, reason=f"one set with a fused multiply-add here: {fused_sets()}"
)


@needs_two_fused_sets
@every_shape
@every_case
@every_kind
def test_instruction_sets(kind, case, shape):
    layer, problem = case.make(kind, np.float32, *shape)
    found = []
    for isa in fused_sets():
        with rk.force_isa(isa):
            found.append(bits(layer, problem, case.clip, forward=2))
    for other in found[1:]:
        assert not differing(other, found[0])


@in_each_set
@every_case
@pytest.mark.parametrize("kind", LOOPS)
def test_threads(kind, case, isa):
    for I, H, T, B in SHAPES.values():
        T = shortest(make_layer(kind, I, H, **case.options), T, B, 8)
        layer, problem = case.make(kind, np.float32, I, H, T, B)
        with rk.force_isa(isa):
            want = bits(layer, problem, case.clip)
            for forward, backward in ((2, 3), (5, 1), (8, 7)):
                got = bits(layer, problem, case.clip, forward=forward, backward=backward)
                assert not differing(got, want), f"{forward} and {backward} threads"


@in_each_set
@every_case
@every_kind
def test_a_row_alone_and_in_a_batch(kind, case, isa):
    layer, problem = case.make(kind, np.float32, 7, 17, 9, 21)
    with rk.force_isa(isa):
        batch = by_row(layer, problem, case.clip)
        for count in (1, 2, 3, 8):
            few = by_row(layer, rows_of(problem, np.arange(count)), case.clip)
            for got, want in zip(few, batch, strict=True):
                assert got.tobytes() == want[:count].tobytes(), f"the first {count} rows"


@in_each_set
@every_kind
def test_pieces_and_streams(kind, isa):
    """A sequence in pieces; step by step and in blocks; frozen or not."""
    layer = make_layer(kind, 7, 17, num_layers=2, compute="bf16")
    T, B = 13, 3
    p = random_problem(layer, T, B)
    with rk.force_isa(isa):
        want, last = layer(p.x, p.state)
        frozen = [layer.freeze(), layer.freeze(weights="bf16")]
    for call in (layer, *frozen):
        state = p.state
        for start, end in itertools.pairwise([0, 1, 2, 2, 7, T]):
            with rk.force_isa(isa):
                y, state = call(p.x[start:end], state)
            assert y.tobytes() == want[start:end].tobytes()
        assert [a.tobytes() for a in parts(state)] == [a.tobytes() for a in parts(last)]
        with rk.force_isa(isa):
            stream = call.stream(B)
        stream.state = p.state
        assert np.array([stream.step(x) for x in p.x[:4]]).tobytes() == want[:4].tobytes()
        assert stream.run(p.x[4:]).tobytes() == want[4:].tobytes()
        assert [a.tobytes() for a in parts(stream.state)] == [a.tobytes() for a in parts(last)]


@pytest.mark.parametrize("segment", [2, 5])
@every_kind
def test_checkpoints_of_every_cell_leave_no_trace(kind, segment):
    layer = make_layer(kind, 7, 17, num_layers=2, compute="bf16")
    p = random_problem(layer, 9, 5, lengths="random")
    want = bits(layer, p)
    y, _, tape = p.forward(layer, checkpoint=segment)
    grads = p.backward(layer, tape)
    arrays = {"y": y, "grads.x": grads.x, **grads.params}
    arrays.update({f"grads.state[{i}]": part for i, part in enumerate(parts(grads.state))})
    assert {name: array.tobytes() for name, array in arrays.items()}.items() <= want.items()


@pytest.mark.parametrize("kind", QUIET)
def test_inference_and_training(kind):
    layer = make_layer(kind, 7, 17, num_layers=2, bidirectional=True, compute="bf16")
    p = random_problem(layer, 9, 5, lengths="random")
    y, state = layer(p.x, p.state, p.lengths)
    y_kept, state_kept, _ = p.forward(layer)
    assert y.tobytes() == y_kept.tobytes()
    assert [s.tobytes() for s in parts(state)] == [s.tobytes() for s in parts(state_kept)]


@every_kind
def test_members_of_an_ensemble(kind):
    layer = make_layer(kind, 5, 9, num_layers=2, ensemble=3, compute="bf16")
    x = np.random.default_rng(0).normal(size=(6, 3, 4, layer.input_size)).astype(np.float32)
    y, _ = layer(x)
    for e in range(3):
        one = layer.member(e)
        assert one.compute == "bf16"
        assert one(x[:, e])[0].tobytes() == y[:, e].tobytes()
    plain = make_layer(kind, 5, 9, num_layers=2, ensemble=3)
    y, _ = plain.freeze(weights="bf16")(x)
    for e in range(3):
        alone = plain.member(e).freeze(weights="bf16")
        assert alone(x[:, e])[0].tobytes() == y[:, e].tobytes()


# ---- every cell, frozen with bf16 weights ------------------------------------------------------


def stacked(kind, **options):
    """Options of a stack in both directions, where the kind has one."""
    return {"num_layers": 2, **options} if kind != "rg_lru" else {"num_layers": 2}


@in_each_set
@every_kind
def test_bf16_weights_are_rounded_parameters(kind, isa):
    """A frozen layer has the bits of a layer whose matrices are rounded."""
    for options in (stacked(kind, bidirectional=True), {"bias": False}):
        layer = make_layer(kind, 7, 17, **options)
        p = random_problem(layer, 6, 5, lengths="random")
        with rk.force_isa(isa):
            frozen = layer.freeze(weights="bf16")
            y, state = frozen(p.x, p.state, p.lengths)
            assert y.tobytes() != layer(p.x, p.state, p.lengths)[0].tobytes()
            for name, values in layer.params.items():
                if name.startswith(("weight_ih", "weight_hh", "weight_hr")) and values.ndim == 2:
                    values[...] = to_bf16(values)
            want, want_state = layer(p.x, p.state, p.lengths)
        assert y.tobytes() == want.tobytes()
        assert [s.tobytes() for s in parts(state)] == [s.tobytes() for s in parts(want_state)]


@every_kind
def test_bf16_weights_on_threads_in_batches_and_streams(kind):
    layer = make_layer(kind, 33, 64, num_layers=2)
    frozen = layer.freeze(weights="bf16")
    p = random_problem(layer, 12, 9)
    want, last = on_threads(1, frozen, p.x, p.state)
    for threads in (2, 3):
        y, state = on_threads(threads, frozen, p.x, p.state)
        assert y.tobytes() == want.tobytes()
        assert [s.tobytes() for s in parts(state)] == [s.tobytes() for s in parts(last)]
    for count in (1, 2, 8):
        few = rows_of(p, np.arange(count))
        assert frozen(few.x, few.state)[0].tobytes() == want[:, :count].tobytes()
    stream = frozen.stream(9)
    stream.state = p.state
    assert np.array([stream.step(x) for x in p.x]).tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", [k for k in KINDS if not reference.CELLS[k].inputs_are_units])
def test_bf16_weights_with_an_embedding(kind):
    words = rk.Embedding(30, 9, seed=2)
    ids = np.random.default_rng(0).integers(0, 30, (6, 4))
    for options, how in (({}, {"weights": "bf16"}), ({"compute": "bf16"}, {})):
        layer = make_layer(kind, 9, 17, num_layers=2, **options)
        want = layer.freeze(**how)(words(ids))[0]
        frozen = layer.freeze(embedding=words, **how)
        assert frozen(ids)[0].tobytes() == want.tobytes()
        stream = frozen.stream(4)
        assert np.array([stream.step(one) for one in ids]).tobytes() == want.tobytes()


@every_kind
def test_copies_and_pickles_of_bf16_weights(kind):
    layer = make_layer(kind, 5, 9, num_layers=2)
    frozen, p = layer.freeze(weights="bf16"), random_problem(layer, 4, 3)
    want = frozen(p.x, p.state)[0].tobytes()
    for other in (copy.copy(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert other(p.x, p.state)[0].tobytes() == want
    assert not frozen.is_stale()
    layer.params["weight_ih_l0"] *= 2
    assert frozen.is_stale()
    assert frozen(p.x, p.state)[0].tobytes() == want


# ---- every cell, against the float64 reference -------------------------------------------------

# By how much float32 results of one step are off the float64 reference's, at most, in units of the
# last place of an array's largest value: measured in float32 layers of these sizes are 4 and, with
# layer norm, 10.
STEP, NORM_STEP = 4 * 2.0**-23, 16 * 2.0**-23


def nudged(sign, size):
    """Round operands to bf16 after a step to one side, as float32's errors can be."""

    def operand(v):
        off = sign * size * np.abs(v).max(initial=0.0)
        return to_bf16(v + off).astype(np.float64)

    return operand


def references(layer, problem, monkeypatch, size, **options):
    """The reference's results with compute="bf16", and two with operands to both sides of it."""
    found = [run_reference(layer, problem, compute="bf16", **options)]
    for sign in (1, -1):
        with monkeypatch.context() as patch:
            patch.setattr(reference.layers, "_as_bf16", nudged(sign, size))
            found.append(run_reference(layer, problem, compute="bf16", **options))
    return found


def named(result):
    y, state, grads = result
    found = {"y": y, "grads.x": grads.x, **grads.params}
    for name, one in (("state", state), ("grads.state", grads.state)):
        found.update({f"{name}[{i}]": part for i, part in enumerate(parts(one))})
    return {name: np.asarray(array, np.float64) for name, array in found.items()}


def assert_near(got, wants, **bounds):
    """Compare (y, state, grads) with the reference's, as `assert_close`, but for flips.

    A float32 value differs from the reference's by some units in the last place. Where a tie of
    bf16 lies between the two, they are rounded to different sides, one unit of bf16 (2^-7) apart,
    and what depends on them differs by such a term. Which results can is known from the reference
    itself: it is run again with operands a little to each side. An array may be off by four times
    what it differs in these runs, since several terms can flip with different signs, and by what
    `assert_close` allows. Returned are the names of arrays of which no operand can flip.
    """
    got, (want, up, down) = named(got), [named((w.y, w.state, w.grads)) for w in wants]
    firm = set()
    for name, array in got.items():
        finite = np.isfinite(want[name])
        with np.errstate(invalid="ignore"):
            spread = np.max(np.abs(up[name] - down[name])[finite], initial=0.0)
        if spread <= 1e-6 * np.abs(want[name][finite]).max(initial=0.0):
            firm.add(name)
        near = np.array(want[name])  # the value nearest to the result that flips can explain
        low, high = near[finite] - 4 * spread, near[finite] + 4 * spread
        near[finite] = np.clip(array[finite], low, high) if spread else near[finite]
        assert_close(array, near, np.float32, name, **bounds)
    return firm


def size_of_terms(layer, want):
    """What `assert_close` is told of layers with layer norm."""
    of_params = [np.abs(g).max() for g in want.grads.params.values()]
    return max(of_params) if "gain_ih_l0" in layer.params else 0.0


@every_kind
def test_one_step_is_the_reference_s(kind, monkeypatch):
    """Outputs, states and all gradients, each to float32's precision in one problem at least."""
    firm, names, changed_most = set(), set(), 0.0
    for seed in range(64):
        layer = make_layer(kind, 3, 5, compute="bf16", seed=seed)
        p = random_problem(layer, 1, 2, seed=seed)
        size = NORM_STEP if "gain_ih_l0" in layer.params else STEP
        wants = references(layer, p, monkeypatch, size)
        for isa in sets():
            with rk.force_isa(isa):
                y, state, tape = p.forward(layer)
                grads = p.backward(layer, tape)
            # Chains of 5 and 8 terms, an activation and a few more operations: 40 units.
            firm |= assert_near((y, state, grads), wants, chain=100)
            names |= set(named((y, state, grads)))
        changed_most = max(changed_most, np.abs(run_reference(layer, p).y - wants[0].y).max())
    assert firm == names
    assert changed_most > 1e-4  # ten times the bound, or more


@pytest.mark.parametrize("case", ["plain", "lengths", "both-ways-full"])
@every_kind
def test_sequences_are_the_reference_s(kind, case, monkeypatch):
    """Errors grow along steps and layers, as the bound of `assert_close` does."""
    case = BF16[case]
    layer, p = case.make(kind, np.float32, 7, 17, 5, 4)
    wants = references(layer, p, monkeypatch, NORM_STEP, clip=case.clip)
    y, state, tape = p.forward(layer)
    grads = p.backward(layer, tape, case.clip)
    assert_near((y, state, grads), wants, terms=size_of_terms(layer, wants[0]))


@in_each_set
@every_kind
def test_bf16_weights_are_the_reference_s(kind, isa):
    """No operand is rounded that float32 has errors in: the tolerance is float32's."""
    layer = make_layer(kind, 7, 17, **stacked(kind, bidirectional=True))
    p = random_problem(layer, 5, 4, lengths="random")
    want_y, want_state = run_reference(layer, p, weights="bf16").inferred
    with rk.force_isa(isa):
        y, state = layer.freeze(weights="bf16")(p.x, p.state, p.lengths)
    terms = 1.0 if "gain_ih_l0" in layer.params else 0.0
    assert_close(y, want_y, np.float32, "y", terms=terms)
    for got, want in zip(parts(state), parts(want_state), strict=True):
        assert_close(got, want, np.float32, "state", terms=terms)


@pytest.mark.parametrize("kind", [k for k in KINDS if reference.CELLS[k].has_flow_penalty])
def test_flow_penalty_is_the_reference_s(kind, monkeypatch):
    layer = make_layer(kind, 5, 7, compute="bf16")
    p = random_problem(layer, 4, 3, lengths="random")
    wants = references(layer, p, monkeypatch, NORM_STEP, flow_penalty=0.3)
    y, state, tape = p.forward(layer)
    grads = p.backward(layer, tape, flow_penalty=0.3)
    assert_near((y, state, grads), wants, terms=size_of_terms(layer, wants[0]))


# ---- the option --------------------------------------------------------------------------------


@every_kind
def test_compute_changes_outputs_and_gradients_but_little(kind):
    plain, layer = (make_layer(kind, 7, 17, **option) for option in ({}, {"compute": "bf16"}))
    p = random_problem(layer, 5, 4)
    y, _, tape = p.forward(layer)
    y_plain, _, tape_plain = p.forward(plain)
    grads, grads_plain = p.backward(layer, tape), p.backward(plain, tape_plain)
    of_w, of_w_plain = (g.params["weight_ih_l0"] for g in (grads, grads_plain))
    # A rounding moves an operand by up to 2^-8 of itself. Sums of terms with random signs keep that
    # share, five steps let it grow. Where an activation has a kink or a clip begins, a gradient's
    # element comes or goes as a whole: of these few elements an eighth does.
    for got, want, bound in (
        (y, y_plain, 2.0**-6),
        (grads.x, grads_plain.x, 0.25),
        (of_w, of_w_plain, 0.25),
    ):
        assert got.dtype == np.float32
        assert 0 < np.linalg.norm(got - want) < bound * np.linalg.norm(want)


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
def test_compute_is_an_option_of_every_class(cls, tmp_path):
    sizes = (6, 6) if cls is rk.RGLRU else (3, 6)
    layer = cls(*sizes, compute="bf16", seed=0)
    assert layer.compute == "bf16"
    assert layer.dtype == np.float32
    assert "compute='bf16'" in repr(layer)
    assert cls(*sizes).compute is None
    assert "compute" not in repr(cls(*sizes))
    x = np.random.default_rng(0).normal(size=(4, 2, sizes[0])).astype(np.float32)
    want = layer(x)[0].tobytes()
    plain = cls(*sizes, params=layer.params)
    assert plain(x)[0].tobytes() != want
    layer.save(tmp_path / "layer.safetensors")
    loaded = rk.load(tmp_path / "layer.safetensors")
    others = (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded)
    for other in others:
        assert other.compute == "bf16"
        assert other(x)[0].tobytes() == want
    with pytest.raises(AttributeError):
        layer.compute = None


@every_kind
def test_frozen_layers_keep_computing_in_bf16(kind):
    layer = make_layer(kind, 5, 9, num_layers=2, compute="bf16")
    p = random_problem(layer, 4, 3)
    want = layer(p.x, p.state)[0].tobytes()
    for how in ({}, {"weights": "bf16"}, {"weights": None}):
        frozen = layer.freeze(**how)
        assert frozen(p.x, p.state)[0].tobytes() == want
        assert pickle.loads(pickle.dumps(frozen))(p.x, p.state)[0].tobytes() == want


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
def test_what_is_not_supported_is_refused_by_name(cls):
    sizes = (6, 6) if cls is rk.RGLRU else (3, 6)
    with pytest.raises(ValueError, match=r"^compute: .*float64"):
        cls(*sizes, dtype=np.float64, compute="bf16")
    with pytest.raises(ValueError, match=r"^compute: .*'int8'"):
        cls(*sizes, compute="int8")
    with pytest.raises(ValueError, match=r"^compute: .* got 16"):
        cls(*sizes, compute=16)
    with pytest.raises(ValueError, match=r"^weights: .*float64"):
        cls(*sizes, dtype=np.float64).freeze(weights="bf16")
    with pytest.raises(ValueError, match=r"^weights: .*'int8'"):
        cls(*sizes).freeze(weights="int8")
    with pytest.raises(ValueError, match=r"^weights: .* got 16"):
        cls(*sizes).freeze(weights=16)


@pytest.mark.parametrize("isa", sets())
def test_the_baseline_set_is_near_too(isa):
    """Without a fused multiply-add links round twice (decision 0002): not the same bits."""
    layer, p = relu_problem(7, 17, 1, 5, compute="bf16")
    want = ReluRNN(layer, to_bf16, to_bf16).run(p)
    with rk.force_isa(isa):
        got = bits(layer, p)
    array = np.frombuffer(got["y"], np.float32).reshape(want["y"].shape)
    assert_close(array, want["y"].astype(np.float64), np.float32, "y")


CXX = shutil.which("g++")


@pytest.mark.slow
@pytest.mark.skipif(not (CXX and "avx512" in sets()), reason="needs g++ and AVX-512")
def test_the_instruction_for_pairs_adds_two_links_of_the_chain(tmp_path):
    """Random operands of all binades, and the roundings of all 2^32 floats (decision 0020)."""
    flags = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wno-psabi", "-mavx2", "-mfma")
    flags += tuple(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))
    flags += ("-DRNNKERN_ISA=avx512", f"-I{CPP / 'core'}")
    source, program = CPP.parent / "tests/cpp/pairs.cpp", tmp_path / "pairs"
    subprocess.run([CXX, *flags, source, "-o", program], check=True, timeout=120)
    done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=300)
    if done.stdout == "none\n":
        pytest.skip("needs AVX-512 BF16")
    other, other_in_reverse, sums, other_rounded, roundings = map(int, done.stdout.split())
    assert (other, other_rounded) == (0, 0)
    assert (sums, roundings) == (4 * 2**24, 2**32)
    assert other_in_reverse > sums // 100  # the operands tell the two orders apart


@pytest.mark.parametrize("weights", [None, "bf16"])
def test_bits_of_the_users_own_are_no_weights(weights):
    layer = rk.GRU(3, 5, seed=0)
    layer.params["weight_hh_l0"] = bf16_bits(layer.params["weight_hh_l0"])
    with pytest.raises(TypeError, match=r"weight_hh_l0.*dtype float32, got uint16"):
        layer.freeze(weights=weights)
