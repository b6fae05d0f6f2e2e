"""Each tool of diagnose against its definition."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from helpers import (
    DTYPES,
    KINDS,
    LOOPS,
    QUIET,
    at_held_m,
    both_ways,
    each_half,
    in_half,
    joined,
    make_layer,
    parts,
    random_problem,
    run_reference,
)

import rnnkern as rk
from rnnkern import diagnose, reference
from rnnkern.diagnose.common import cell_of, vectors_of

each_kind = pytest.mark.parametrize("kind", KINDS)
GATES = {kind: "".join(gate.name for gate in reference.CELLS[kind].gate_table) for kind in KINDS}


def table_of(layer):
    return reference.CELLS[layer._kind].states


def has_c(kind):
    return any(state.name == "c" for state in reference.CELLS[kind].states)


LENGTHS = np.array([7, 0, 4])
BOTH = {"num_layers": 2, "bidirectional": True}


def linear(factor, *, I=1, H=4, dtype=np.float64):
    """A relu RNN that is linear as all its units are above zero; its W_hh is factor times 1."""
    rnn = rk.RNN(I, H, nonlinearity="relu", init="identity", dtype=dtype, seed=0)
    rnn.params["weight_hh_l0"] *= dtype(factor)
    rnn.params["bias_ih_l0"] += dtype(1.0)
    return rnn


def rotation(factor, **options):
    """A tanh RNN with factor times an orthogonal W_hh; linear as long as its state is zero."""
    rnn = rk.RNN(1, 8, init="orthogonal", dtype=np.float64, seed=0, **options)
    for name, array in rnn.params.items():
        array *= factor if name.startswith("weight_hh") else 1.0
    return rnn


def traced(layer, T, dy=None, clip=None, rows=2, lengths=None):
    """A forward of zeros, and the gradients of dy, or of ones at the final h, with their trace."""
    _, state, tape = layer.forward(np.zeros((T, rows, 1)), lengths=lengths)
    final = None if dy is not None else np.ones_like(parts(state)[0])
    if final is not None and len(parts(state)) == 2:
        final = (final, np.zeros_like(final))
    return tape, layer.backward(tape, dy, final, clip, trace=True)


# ---- spectrum ----------------------------------------------------------------------------------


@each_kind
def test_spectrum_is_that_of_each_block(kind):
    layer = make_layer(kind, 3, 5, **BOTH)
    blocks = diagnose.spectrum(layer)
    params = {name: array.astype(np.float64) for name, array in layer.params.items()}
    names = [name for name in params if name.startswith("weight_hh")]
    matrices = []
    for name in names:
        project = params.get(name.replace("weight_hh", "weight_hr"), np.eye(5))
        weights = np.diag(params[name]) if params[name].ndim == 1 else params[name]
        matrices += [project @ m for m in weights.reshape(-1, 5, layer.output_size)]
    assert [(b.layer, b.direction, b.gate) for b in blocks] == [
        (l, d, gate) for l in (0, 1) for d in (0, 1) for gate in GATES[kind] if names
    ]
    for block, matrix in zip(blocks, matrices, strict=True):
        assert block.eigenvalues.shape == (layer.output_size,)
        # The characteristic polynomial is zero at each eigenvalue, up to rounding in 5x5.
        for value in block.eigenvalues:
            assert abs(np.linalg.det(matrix - value * np.eye(len(matrix)))) < 1e-12
        assert np.isclose(block.eigenvalues.sum(), np.trace(matrix))
        assert (np.diff(np.abs(block.eigenvalues)) <= 1e-12).all()
        assert block.radius == abs(block.eigenvalues[0])
        assert np.isclose(block.singular**2, np.linalg.eigvalsh(matrix.T @ matrix)[-1])


def test_spectrum_of_a_projection_is_that_of_the_wide_matrix_but_for_zeros():
    layer = rk.LSTM(3, 7, proj_size=4, dtype=np.float64, seed=0)
    wide = layer.params["weight_hh_l0"].reshape(4, 7, 4) @ layer.params["weight_hr_l0"]
    for block, matrix in zip(diagnose.spectrum(layer), wide, strict=True):
        values = np.linalg.eigvals(matrix)
        values = values[np.argsort(-abs(values))]
        # The three that only the wide matrix has are 0 of multiplicity 3, found up to eps^(1/3).
        assert np.allclose(abs(values[4:]), 0.0, atol=1e-5)
        assert np.allclose(np.poly(block.eigenvalues), np.poly(values[:4]), atol=1e-4)


def test_spectrum_of_heads_is_that_of_the_matrix_with_them_on_its_diagonal():
    layer = rk.SLSTM(3, 6, heads=3, dtype=np.float64, seed=0)
    blocks = layer.params["weight_hh_l0"].reshape(4, 3, 2, 2)
    found = diagnose.spectrum(layer)
    assert [block.gate for block in found] == ["i", "f", "z", "o"]
    for block, heads in zip(found, blocks, strict=True):
        values = np.linalg.eigvals(heads).ravel()
        assert np.allclose(np.sort_complex(block.eigenvalues), np.sort_complex(values))
        assert np.isclose(block.singular, np.linalg.norm(heads, 2, axis=(1, 2)).max())


def test_spectrum_of_a_projection_that_is_not_finite():
    layer = rk.LSTM(3, 7, proj_size=4, seed=0)
    layer.params["weight_hr_l0"][0, 0] = np.nan
    assert np.isnan([block.radius for block in diagnose.spectrum(layer)]).all()


def test_spectrum_without_recurrent_matrices_is_empty():
    layer = rk.MinGRU(3, 5, seed=0, **BOTH)
    assert diagnose.spectrum(layer) == []
    diagnose.plot_spectrum(layer).draw_without_rendering()


def test_spectrum_of_a_matrix_that_is_not_finite():
    gru = rk.GRU(2, 3, seed=0)
    gru.params["weight_hh_l0"][4, 0] = np.inf  # of z
    r, z, n = diagnose.spectrum(gru)
    assert np.isnan([z.radius, z.singular]).all()
    assert np.isnan(z.eigenvalues).all()
    assert np.isfinite([r.radius, n.radius]).all()


# ---- lyapunov ----------------------------------------------------------------------------------


def jacobians(layer, x, state):
    """d state_t / d state_{t-1} of one row, all layers and parts flat, by central differences.

    Zero for m of an sLSTM, which is held.
    """
    flows = [
        np.full(part.shape, of.flows)
        for part, of in zip(parts(state), table_of(layer), strict=True)
    ]
    shapes = [part.shape for part in parts(state)]
    sizes = np.cumsum([part.size for part in parts(state)])[:-1]

    def flat(state):
        return np.concatenate([part.ravel() for part in parts(state)])

    def step(x_t, values):
        pieces = [v.reshape(s) for v, s in zip(np.split(values, sizes), shapes, strict=True)]
        return layer(x_t[None], joined(pieces))[1]

    values, flows, e = flat(state), flat(joined(flows)), 1e-6
    for x_t in x:
        new = step(x_t, values)
        basis = e * np.eye(len(values))[flows]
        J = np.zeros((len(values), len(values)))
        for column, b in zip(np.flatnonzero(flows), basis, strict=True):
            ends = (flat(at_held_m(step(x_t, values + d), parts(new)[-1])) for d in (b, -b))
            J[:, column] = (next(ends) - next(ends)) / (2 * e)
        yield J
        values = flat(new)


@each_kind
@pytest.mark.parametrize("settle", [0, 5])
def test_lyapunov_is_the_growth_of_a_product_of_jacobians(kind, settle):
    T = 25
    layer = make_layer(kind, 2, 3, num_layers=2, dtype=np.float64)
    problem = random_problem(layer, T)
    got = diagnose.lyapunov(layer, problem.x, problem.state, block=4, settle=settle, seed=3)
    draws = np.random.default_rng(3)
    table = reference.CELLS[kind].states
    v = np.concatenate(
        [
            draws.normal(size=p.shape).ravel() * of.flows
            for p, of in zip(parts(problem.state), table, strict=True)
        ]
    )
    each = list(jacobians(layer, problem.x, problem.state))
    for J in each[T - settle :][::-1]:
        v = v @ J
    product = v
    for J in each[: T - settle][::-1]:
        product = product @ J
    want = np.log(np.linalg.norm(product) / np.linalg.norm(v)) / (T - settle)
    assert abs(got - want) < 1e-7  # central differences: e^2 and rounding over e, 1e-10 a step


FREE = {"forward_clip": None, "cell_clip": 4.0}  # of the general cells: no step stops all


@each_kind
def test_lyapunov_tends_to_the_largest_singular_value_of_the_product(kind):
    own = reference.CELLS[kind].options
    free = {name: clip for name, clip in FREE.items() if name in own and "forward_clip" in own}
    layer = make_layer(kind, 2, 3, dtype=np.float64, **free)
    if kind.endswith("rnn_relu"):
        layer.params["bias_ih_l0"] += 1.0  # so that at each step some unit is alive
    # Twice the steps where v lies farther from the direction that grows most.
    T = 600 if kind in ("lstm_peephole", "gru_reset_before_general") else 300
    x = 0.5 * np.random.default_rng(0).normal(
        size=(T, layer.input_size)
    )  # no step at which clips stop all
    zeros = layer(x[:0])[1]
    product, logs = np.eye(sum(part.size for part in parts(zeros))), 0.0
    for J in jacobians(layer, x, zeros):
        product = J @ product
        size = np.linalg.norm(product, 2)
        product, logs = product / size, logs + np.log(size)
    # v is at least some hundredth along the direction that grows most: log(100) / 300.
    assert abs(diagnose.lyapunov(layer, x) - logs / T) < 0.016


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.01])
@pytest.mark.parametrize("block", [1, 10, 1000])
def test_lyapunov_of_a_linear_rnn_is_the_log_of_its_radius(dtype, factor, block):
    # Over 1000 steps 0.5 is below what float32 holds, so the longest block must be split.
    rnn = linear(factor, dtype=dtype)
    got = diagnose.lyapunov(rnn, np.ones((1000, 3, 1), dtype), block=block)
    assert got.shape == (3,)
    # Each step rounds the vector and the factor itself; the sum of up to 1000 logs, 693 in size,
    # is rounded as often, which is 350 float64 eps a step at worst.
    bound = 2 * np.finfo(dtype).eps + 350 * np.finfo(np.float64).eps
    assert np.abs(got - np.log(factor)).max() < bound


@pytest.mark.parametrize("factor", [1e-20, 3e8])
def test_lyapunov_beyond_the_range_of_a_block(factor):
    rnn = rk.RNN(1, 4, nonlinearity="relu", init="identity", seed=0)
    rnn.params["weight_hh_l0"] *= np.float32(factor)
    state = np.full((1, 1, 4), 1.0, np.float32)
    if factor > 1:
        state *= np.float32(1e-36)  # so that the state stays finite over these steps
    got = diagnose.lyapunov(rnn, np.zeros((6, 1, 1), np.float32), state, block=6)
    alive = factor > 1  # the other's state falls to zero after a step, and relu passes nothing
    assert got[0] == -np.inf if not alive else abs(got[0] - np.log(factor)) < 1e-6


def test_lyapunov_where_nothing_or_no_number_comes_through():
    rnn = linear(0.5)
    rnn.params["bias_ih_l0"][:] = -1.0
    x = np.zeros((20, 2, 1))
    assert (diagnose.lyapunov(rnn, x) == -np.inf).all()
    rnn.params["weight_hh_l0"][0, 0] = np.nan
    assert np.isnan(diagnose.lyapunov(rnn, x)).all()


def test_lyapunov_leaves_the_layer_alone_and_is_the_same_each_time():
    gru = rk.GRU(2, 8, num_layers=2, dropout=0.5, seed=0, dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(40, 3, 2))
    first = diagnose.lyapunov(gru, x)
    assert (gru.dropout, gru.dropout_step) == (0.5, 0)
    assert (diagnose.lyapunov(gru, x) == first).all()
    gru.dropout = 0.0
    assert (diagnose.lyapunov(gru, x) == first).all()
    assert (diagnose.lyapunov(gru, x, seed=1) != first).all()


def test_lyapunov_in_other_layouts():
    x = np.random.default_rng(0).normal(size=(30, 3, 2))
    want = diagnose.lyapunov(make_layer("lstm", 2, 4, dtype=np.float64), x)
    layer = make_layer("lstm", 2, 4, dtype=np.float64, batch_first=True)
    assert (diagnose.lyapunov(layer, x.swapaxes(0, 1)) == want).all()
    one = diagnose.lyapunov(layer, x[:, 0])
    assert isinstance(one, float)
    assert one == diagnose.lyapunov(layer, x[None, :, 0])[0]


# ---- saturation --------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_saturation_is_a_count_of_the_references_gates(kind, lengths):
    layer = make_layer(kind, 2, 5, dtype=np.float64, **BOTH)
    for array in layer.params.values():
        array *= 4.0  # so that some gates are near their ends
    T = 7
    problem = random_problem(layer, T, 3, lengths=lengths)
    _, _, tape = problem.forward(layer)
    found = diagnose.saturation(layer, tape, low=0.2, high=0.7, tanh=0.6)
    steps = run_reference(layer, problem).tape.steps
    gates = GATES[kind] + "".join(s.name for s in reference.CELLS[kind].states if s.activation)
    assert len(found) == 2 * layer.num_layers * len(gates)
    cell = cell_of(layer)
    acts = {gate.name: gate.activation for gate in cell.gate_table}
    acts |= {state.name: state.activation for state in cell.states if state.activation}
    some = 0.0
    for index, one in enumerate(found):
        place, k = divmod(index, len(gates))
        assert (one.layer, one.direction, one.gate) == (*divmod(place, 2), gates[k])
        all_values = []
        for step in sorted(steps[place], key=lambda step: step.t):
            t = step.t
            is_c = one.gate == "c"
            values = step.gates[:, 5 * k : 5 * k + 5]
            if is_c:
                values = cell.output_value(step.new[-1], vectors_of(layer, *divmod(place, 2)))
            all_values.append(values.ravel())
            if not values.size:
                assert np.isnan([one.low[t], one.high[t]]).all()
                continue
            activation = acts[one.gate]
            if activation == "relu":
                below, above = values == 0, values < 0
            elif activation == "sigmoid or linear":  # linear above 1/2
                below, above = values < 0.2, values < 0
            elif activation in ("sigmoid", "hardsigmoid"):
                below, above = values < 0.2, values > 0.7
            elif activation in ("tanh", "softsign"):
                below, above = values < -0.6, values > 0.6
            else:  # which has no ends
                below = above = np.zeros(values.shape, bool)
            assert (one.low[t], one.high[t]) == (below.mean(), above.mean())
            some += below.mean() + above.mean()
        values = np.concatenate(all_values)
        counts = ~np.isnan(one.low) * np.array([v.size for v in all_values])
        share = np.nansum((one.low + one.high) * counts) / counts.sum()
        assert np.isclose(one.share, share)
        assert np.isclose(one.mean, values.mean())
    assert (some > 1.0) == (kind != "rnn_general")  # a leaky ReLU has no ends


# ---- report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "verdict", "steps"),
    # 0.5^7 is the first power of it below 0.01; 1.5^12 the first above 100.
    [(0.5, "vanishes", 7), (1.5, "explodes", 12), (1.0, "flows", 40), (0.95, "flows", 40)],
)
@pytest.mark.parametrize("with_grads", [False, True])
def test_report_of_known_powers(factor, verdict, steps, with_grads):
    rnn = rotation(factor)
    tape, grads = traced(rnn, 40)
    (flow,) = diagnose.report(rnn, tape, grads if with_grads else None).flows
    assert (flow.verdict, flow.steps) == (verdict, steps)
    # An orthogonal W_hh keeps norms, up to rounding.
    assert np.allclose(flow.curve, factor ** np.arange(41.0), rtol=1e-12)
    assert np.isclose(flow.rate, factor, rtol=1e-12)
    assert np.isclose(flow.spectrum[0].radius, factor)
    assert (flow.clipped, flow.scaled) == (0.0, 0.0)


def test_report_with_a_loss_at_each_step():
    rnn = rotation(1.0)
    tape, grads = traced(rnn, 30, np.random.default_rng(0).normal(size=(30, 2, 8)))
    (flow,) = diagnose.report(rnn, tape, grads).flows
    assert grads.trace.dh[0, 0, 0] > 3 * grads.trace.dh[0, -1, 0]  # what is added grows
    assert np.allclose(flow.curve, 1.0)  # but each step hands back what it got


@each_kind
def test_report_without_grads_is_the_norm_of_a_pulse(kind):
    layer = make_layer(kind, 2, 6, num_layers=2, dtype=np.float64)
    problem = random_problem(layer, 20, 3)
    _, _, tape = problem.forward(layer)
    v = np.zeros((2, 3, layer.output_size))
    v[1] = np.random.default_rng(5).normal(size=v[1].shape)
    v[1] /= np.linalg.norm(v[1], axis=-1, keepdims=True)
    carried = len(reference.CELLS[kind].states) - 1
    dstate = joined([v, *(np.zeros((2, 3, 6)) for _ in range(carried))])
    report = diagnose.report(layer, tape, seed=5)
    assert [f.layer for f in report.flows] == [0, 1]
    flow = report.flows[1]
    trace = layer.backward(tape, dstate=dstate, trace=True).trace
    norms = trace.dh_before[1][::-1]
    if has_c(kind):  # h and c together, from the second step on
        norms = np.hypot(norms, trace.dc_before[1][::-1])
        want = np.median(norms / norms[0], axis=1)
    else:
        want = np.concatenate([[1.0], np.median(norms, axis=1)])
    assert np.allclose(flow.curve, want)


def test_report_sees_past_the_step_norm():
    rnn = rotation(1.5)
    tape, grads = traced(rnn, 40, clip=rk.Clip(step_norm=1.0))
    report = diagnose.report(rnn, tape, grads)
    (flow,) = report.flows
    assert (flow.verdict, flow.steps) == ("explodes", 12)
    assert flow.scaled == 1.0
    assert "step_norm scaled 100% of the steps" in str(report)


def test_report_says_what_the_step_value_limited():
    rnn = rotation(1.5)
    dy = np.zeros((40, 2, 8))
    dy[20] = 1.0  # later steps have no gradient, and don't count
    tape, grads = traced(rnn, 40, dy, clip=rk.Clip(step_value=1e-3))
    report = diagnose.report(rnn, tape, grads)
    clipped = grads.trace.clipped[0, :21].mean()
    assert clipped > 0.3
    assert np.isclose(report.flows[0].clipped, clipped)
    assert f"step_value limited {clipped:.0%} of dL/da" in str(report)


@pytest.mark.parametrize("direction", [0, 1])
def test_report_of_padded_rows(direction):
    rnn = rotation(0.5, bidirectional=True)
    lengths = np.array([20, 6, 0])
    tape, grads = traced(rnn, 20, rows=3, lengths=lengths)
    flow = diagnose.report(rnn, tape, grads).flows[direction]
    assert (flow.verdict, flow.steps) == ("vanishes", 7)
    assert np.allclose(flow.curve, 0.5 ** np.arange(21.0), rtol=1e-12)


def test_report_of_a_loss_in_the_middle():
    rnn = rotation(0.5)
    dy = np.zeros((20, 2, 8))
    dy[12] = 1.0
    tape, grads = traced(rnn, 20, dy)
    (flow,) = diagnose.report(rnn, tape, grads).flows
    assert np.allclose(flow.curve, 0.5 ** np.arange(14.0))  # steps 12 to 0


def test_report_of_no_gradient():
    rnn = rotation(1.0)
    tape, grads = traced(rnn, 10, np.zeros((10, 2, 8)))
    report = diagnose.report(rnn, tape, grads)
    assert report.flows[0].verdict == "zero"
    assert np.isnan(report.flows[0].rate)
    assert str(report).startswith("Gradients are zero: none arrived\n")


def test_report_of_one_step():
    rnn = rotation(0.5)
    tape, grads = traced(rnn, 1)
    report = diagnose.report(rnn, tape, grads)
    assert str(report).startswith("Gradients flow: x 0.5 over 1 step back (x 0.5 a step)\n")
    lstm = rk.LSTM(1, 4, dtype=np.float64, seed=0)
    tape, grads = traced(lstm, 1)
    report = diagnose.report(lstm, tape, grads)
    assert report.flows[0].verdict == "unknown"
    assert "can't be judged" in str(report)


def test_report_of_no_step_at_all():
    rnn = rotation(0.5)
    tape, grads = traced(rnn, 0)
    assert diagnose.report(rnn, tape, grads).flows[0].verdict == "zero"


def test_report_of_what_is_not_finite():
    rnn = rotation(1.0)
    dy = np.zeros((20, 2, 8))
    dy[15], dy[10, 0, 0] = 1.0, np.nan
    tape, grads = traced(rnn, 20, dy)
    report = diagnose.report(rnn, tape, grads)
    assert (report.flows[0].verdict, report.flows[0].steps) == ("not finite", 6)
    assert not report.finite
    assert "not all of them are finite" in str(report)


def test_report_of_a_gradient_that_explodes_beyond_its_dtype():
    rnn = linear(10.0, dtype=np.float32)
    y, _, tape = rnn.forward(np.zeros((30, 1, 1), np.float32))
    dy = np.zeros_like(y)
    dy[-1] = 1e30
    grads = rnn.backward(tape, dy, trace=True)
    assert not np.isfinite(grads.trace.dh).all()
    (flow,) = diagnose.report(rnn, tape, grads).flows
    assert (flow.verdict, flow.steps) == ("explodes", 2)


def test_report_of_a_gradient_that_dies():
    rnn = linear(0.5)
    rnn.params["bias_ih_l0"][:] = -1.0
    tape, grads = traced(rnn, 10)
    (flow,) = diagnose.report(rnn, tape, grads).flows
    assert (flow.verdict, flow.steps) == ("vanishes", 1)
    assert flow.saturation[0].share == 1.0


def test_report_of_one_row_without_its_axis():
    rnn = rotation(0.5)
    _, _, tape = rnn.forward(np.zeros((30, 1)))
    assert diagnose.report(rnn, tape).flows[0].steps == 7


def test_report_thresholds_and_evidence():
    gru = rk.GRU(1, 8, num_layers=2, bidirectional=True, dtype=np.float64, seed=0)
    x = np.random.default_rng(0).normal(size=(30, 2, 1))
    y, _, tape = gru.forward(x)
    grads = gru.backward(tape, np.ones_like(y), clip=rk.Clip(max_norm=1e-3), trace=True)
    report = diagnose.report(gru, tape, grads, vanished=0.5, low=0.45, high=0.55)
    text = str(report)
    for flow in report.flows:
        first = np.flatnonzero(flow.curve <= 0.5)[0]
        assert (flow.verdict, flow.steps) == ("vanishes", first)
        assert {b.gate for b in flow.spectrum} == {s.gate for s in flow.saturation} == set("rzn")
        assert {b.layer for b in flow.spectrum} == {flow.layer}
        assert {s.direction for s in flow.saturation} == {flow.direction}
        update = next(s for s in flow.saturation if s.gate == "z")
        assert flow.kept == update.mean
        assert f"a step keeps {update.mean:.3g} of its state" in text
        assert f"z {update.share:.0%}" in text
    assert "layer 1, reverse: gradients vanish: below 0.5 of the norm after" in text
    assert f"norm {grads.norm:.3g}, scaled by {grads.scale:.3g}" in text


@each_kind
def test_report_says_what_a_step_keeps(kind):
    layer = make_layer(kind, 2, 6, dtype=np.float64)
    tape = random_problem(layer, 12, 3).forward(layer)[2]
    (flow,) = (report := diagnose.report(layer, tape)).flows
    mean = {one.gate: one.mean for one in flow.saturation}
    table = reference.CELLS[kind].gate_table
    shares = {"keep": lambda m: m, "update": lambda m: 1.0 - m}
    (want,) = [shares[g.role](mean[g.name]) for g in table if g.role] or [None]
    assert flow.kept == want
    assert ("of its state on average" in str(report)) == (want is not None)


def test_report_of_no_recurrent_matrix():
    layer = rk.MinGRU(2, 6, seed=0)
    report = diagnose.report(layer, layer.forward(np.zeros((12, 3, 2), np.float32))[2])
    assert report.flows[0].spectrum == []
    assert "largest singular value: no matrix\n" in str(report)


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (rk.MinGRU(2, 4), rk.GRU(2, 4)),
        (rk.GRU(2, 4), rk.MinGRU(2, 4)),
        (rk.GRU(2, 4), rk.GRU(2, 4, reset_after=False)),
        (rk.LSTM(2, 4), rk.LSTM(2, 6, proj_size=4)),
        (rk.LSTM(2, 6, proj_size=4), rk.LSTM(2, 4)),
        (rk.LSTM(2, 6, proj_size=4), rk.LSTM(2, 6)),
    ],
)
def test_a_tape_of_another_cell_is_refused(own, other):
    tape = other.forward(np.zeros((5, 2, 2), np.float32))[2]
    for use in (diagnose.saturation, diagnose.report):
        with pytest.raises(ValueError, match=r"^tape: expected one of this layer's forward, got"):
            use(own, tape)


# ---- values that are nan -----------------------------------------------------------------------


def problem_with_nan(kind, where, rows=3, **options):
    """A layer and a sequence of 12 steps; row 1 is nan from step 5 on, or all rows are."""
    layer = make_layer(kind, 2, 6, dtype=np.float64, **options)
    p = random_problem(layer, 12, rows)
    if where == "x":
        p.x[5, 1, 0] = np.nan
    elif where == "state":
        for part in parts(p.state):
            part[:, 1, 0] = np.nan
    else:
        layer.params[where][0] = np.nan
    return layer, p


OF_ROW_1 = ("x", "state")
OF_ALL = ("weight_ih", "weight_hh", "bias_ih", "weight_hr")
each_kind_and_nan = pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, where) for kind in KINDS for where in OF_ROW_1]
    + [
        (kind, f"{parameter.name}_l0")
        for kind in KINDS
        for parameter in reference.CELLS[kind].parameters
        if parameter.name in OF_ALL
    ],
)
each_nan_of_row_1 = pytest.mark.parametrize("where", OF_ROW_1)


@each_kind_and_nan
@pytest.mark.parametrize("layers", [1, 2])
def test_lyapunov_is_nan_where_the_values_are(kind, where, layers):
    layer, p = problem_with_nan(kind, where, num_layers=layers)
    h = parts(layer(p.x, p.state)[1])[0]
    want = np.isnan(h).any(axis=(0, -1))
    assert want[1]
    got = diagnose.lyapunov(layer, p.x, p.state, block=4)
    np.testing.assert_array_equal(np.isnan(got), want)


@each_kind
@each_nan_of_row_1
def test_lyapunov_of_other_rows_is_untouched_by_nan(kind, where):
    layer, p = problem_with_nan(kind, where)
    _, clean = problem_with_nan(kind, where)
    clean.x[5, 1, 0] = 0.0
    for part in parts(clean.state):
        part[:, 1, 0] = 0.0
    want = diagnose.lyapunov(layer, clean.x, clean.state, block=4)
    got = diagnose.lyapunov(layer, p.x, p.state, block=4)
    assert np.isfinite(want).all()
    assert got[[0, 2]].tobytes() == want[[0, 2]].tobytes()


@each_kind
@pytest.mark.parametrize("where", ["x", "weight_ih_l0"])
def test_lyapunov_of_one_row_of_nan(kind, where):
    layer = make_layer(kind, 2, 6)
    x = random_problem(layer, 12).x
    if where == "x":
        x[5] = np.nan
    else:
        layer.params[where][...] = np.nan
    got = diagnose.lyapunov(layer, x)
    assert isinstance(got, float)
    assert np.isnan(got)


@each_kind_and_nan
@pytest.mark.parametrize("options", [{}, BOTH, {"num_layers": 3, "residual": True}])
def test_report_of_nan_is_not_finite(kind, where, options):
    # In two directions of one layer nan stays in its own.
    options = {**options, **both_ways(kind)} if options is BOTH else options
    layer, p = problem_with_nan(kind, where, **options)
    tape = p.forward(layer)[2]
    dy = np.ones_like(p.dy)
    of_first_step = np.zeros_like(p.dy)
    of_first_step[0] = 1.0
    for given in (None, dy, of_first_step):
        grads = None if given is None else layer.backward(tape, given, trace=True)
        report = diagnose.report(layer, tape, grads, vanished=1e-300, exploded=1e300)
        assert {flow.verdict for flow in report.flows} == {"not finite"}
        assert "not finite" in str(report)


@each_kind
def test_report_of_nan_is_of_the_step_where_it_is(kind):
    """Steps 0 to 3 are nan, and a reset keeps them from the rest."""
    layer = make_layer(kind, 2, 6, dtype=np.float64)
    p = random_problem(layer, 12, 3)
    p.x[2, 1] = np.nan
    resets = np.zeros((12, 3), bool)
    resets[4] = True
    tape = p.but(resets=resets).forward(layer)[2]
    (flow,) = diagnose.report(layer, tape, vanished=1e-300).flows
    # Nothing passes the reset, the 8th step back (a gradient of c begins a step later).
    assert (flow.verdict, flow.steps) == ("vanishes", 8 - has_c(kind))


@pytest.mark.parametrize("kind", QUIET)  # rows change their places
@each_nan_of_row_1
def test_saturation_leaves_out_rows_of_nan(kind, where):
    layer, p = problem_with_nan(kind, where, **BOTH)
    hiddens = np.stack(p.forward(layer)[2].hiddens)
    lost = np.isnan(hiddens).reshape(layer.num_layers, 12, 3, 2, -1).any(-1)
    assert lost[:, :, 1].any(axis=1).all()
    assert not lost[:, :, ::2].any()
    found = diagnose.saturation(layer, p.forward(layer)[2], low=0.45, high=0.5, tanh=0.3)
    keep = [0, 2]
    others = p.but(x=p.x[:, keep], state=tuple(s[:, keep] for s in parts(p.state)))
    if not has_c(kind):
        others = others.but(state=others.state[0])
    want = diagnose.saturation(layer, others.forward(layer)[2], low=0.45, high=0.5, tanh=0.3)
    for one, other in zip(found, want, strict=True):
        nan_steps = lost[one.layer, :, 1, one.direction]
        np.testing.assert_array_equal(one.low[nan_steps], other.low[nan_steps])
        np.testing.assert_array_equal(one.high[nan_steps], other.high[nan_steps])
        assert np.isfinite([one.share, one.mean]).all()


@each_kind
def test_saturation_of_nothing_but_nan_is_nan(kind):
    layer = make_layer(kind, 2, 6)
    tape = layer.forward(np.full((12, 3, layer.input_size), np.nan, np.float32))[2]
    for one in diagnose.saturation(layer, tape):
        assert np.isnan([*one.low, *one.high, one.share, one.mean]).all()
    assert "nan%" in str(diagnose.report(layer, tape))


@pytest.mark.parametrize("kind", LOOPS)
@each_half
def test_pictures_of_nan(kind, half):
    all_rows = in_half(half, LOOPS.index(kind))
    layer = make_layer(kind, 2, 6, dtype=np.float64)
    p = random_problem(layer, 12, 3)
    p.x[5, slice(None) if all_rows else 1] = np.nan
    tape = p.forward(layer)[2]
    grads = p.backward(layer, tape, trace=True)
    clean = np.ones(12, bool)
    clean[5:] = not all_rows
    (axes,) = diagnose.plot_saturation(layer, tape).axes
    for line in axes.lines:
        assert (np.isfinite(line.get_ydata()) == clean).all()
    diagnose.plot_flow(layer, grads).draw_without_rendering()
    diagnose.plot_clips(layer, grads).draw_without_rendering()
    for array in layer.params.values():
        array[...] = np.nan
    diagnose.plot_spectrum(layer).draw_without_rendering()


# ---- NumPy's traps -----------------------------------------------------------------------------


FACTORS = [0.0, 1e-30, 1e-3, 1.0, 30.0, 1e30, np.nan]


def extreme(kind, dtype, factor):
    """A problem whose gradients vanish, explode or are nan, as `factor` of the parameters says."""
    layer = make_layer(kind, 2, 5, num_layers=2, dtype=dtype)
    for array in layer.params.values():
        array *= dtype(factor)
    p = random_problem(layer, 40, 3)
    p = p.but(dy=p.dy * np.finfo(dtype).tiny)
    tape = p.forward(layer)[2]
    return layer, p, tape, p.backward(layer, tape, rk.Clip(step_norm=1e-3), trace=True)


@pytest.mark.parametrize("kind", LOOPS)
@each_half
@pytest.mark.parametrize("factor", FACTORS)
def test_traps_of_numpy_change_nothing(kind, half, factor):
    dtype = DTYPES[in_half(half, LOOPS.index(kind), FACTORS.index(factor))]
    layer, p, tape, grads = extreme(kind, dtype, factor)
    for call in (
        lambda: diagnose.lyapunov(layer, p.x, p.state, settle=3),
        lambda: diagnose.saturation(layer, tape),
        lambda: diagnose.report(layer, tape),
        lambda: diagnose.report(layer, tape, grads),
        lambda: diagnose.spectrum(layer),
    ):
        with np.errstate(all="ignore"):
            want = repr(call())
        with np.errstate(all="raise"):
            assert repr(call()) == want


@pytest.mark.parametrize("factor", [0.0, 1e30, np.nan])
def test_pictures_of_nothing_and_of_extremes_warn_of_nothing(factor):
    layer, _, tape, grads = extreme("rnn_relu", np.float64, factor)
    with np.errstate(all="raise"):
        figures = [
            diagnose.plot_flow(layer, grads),
            diagnose.plot_clips(layer, grads),
            diagnose.plot_saturation(layer, tape),
            diagnose.plot_spectrum(layer),
        ]
    for figure in figures:
        figure.draw_without_rendering()


def test_traps_of_numpy_stay_as_they_were():
    with np.errstate(all="raise", under="warn"):
        before = np.geterr()
        diagnose.spectrum(make_layer("gru", 2, 5))
        with pytest.raises(TypeError, match="layer"):
            diagnose.spectrum(None)
        assert np.geterr() == before


# ---- pictures ----------------------------------------------------------------------------------


def test_plot_flow_draws_the_norms():
    gru = rk.GRU(1, 4, dtype=np.float64, seed=0, **BOTH)
    _, grads = traced(gru, 7, rows=3, lengths=LENGTHS)
    figure = diagnose.plot_flow(gru, grads, lengths=LENGTHS)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.lines][:2] == ["layer 0", "layer 0, reverse"]
    for line, dh in zip(axes.lines, grads.trace.dh, strict=True):
        want = [np.median(dh[t, t < LENGTHS]) for t in range(7)]
        assert np.allclose(line.get_ydata(), want)


def test_plot_spectrum_draws_the_eigenvalues():
    lstm = rk.LSTM(1, 4, seed=0)
    (axes,) = diagnose.plot_spectrum(lstm).axes
    for dots, block in zip(axes.collections, diagnose.spectrum(lstm), strict=True):
        assert np.allclose(dots.get_offsets() @ [1, 1j], block.eigenvalues)
    assert np.allclose(np.hypot(*axes.lines[0].get_data()), 1.0)


def test_plot_saturation_draws_the_shares():
    lstm = rk.LSTM(1, 4, dtype=np.float64, seed=0, **BOTH)
    _, _, tape = lstm.forward(np.random.default_rng(0).normal(size=(7, 3, 1)))
    (axes,) = diagnose.plot_saturation(lstm, tape, index=3, low=0.45, high=0.5).axes
    found = diagnose.saturation(lstm, tape, low=0.45, high=0.5)[-5:]
    assert len(axes.lines) == 10
    for one, upper, lower in zip(found, axes.lines[::2], axes.lines[1::2], strict=True):
        assert (upper.get_ydata() == one.high).all()
        assert (lower.get_ydata() == one.low).all()


def test_plot_clips_draws_norms_and_shares():
    rnn = rotation(1.5)
    _, grads = traced(rnn, 20, clip=rk.Clip(step_value=0.5, step_norm=1.3))
    axes, shares = diagnose.plot_clips(rnn, grads).axes
    before, after = (line.get_ydata() for line in axes.lines)
    trace = grads.trace
    assert np.allclose(before, np.median(trace.dh_before[0], axis=1))
    assert np.allclose(after, np.median(trace.dh_before[0] * trace.scale[0], axis=1))
    assert after.max() <= 1.3 * (1 + 1e-12) < before.max()
    scaled, clipped = (line.get_ydata() for line in shares.lines)
    assert np.allclose(scaled, (trace.scale[0] < 1).mean(axis=1))
    assert np.allclose(clipped, trace.clipped[0].mean(axis=1))
    assert scaled.any()
    assert clipped.any()


def plots():
    """Each picture's call, with the axes it is given."""
    rnn = rotation(0.5)
    tape, grads = traced(rnn, 5)
    return {
        "flow": lambda axes: diagnose.plot_flow(rnn, grads, axes),
        "clips": lambda axes: diagnose.plot_clips(rnn, grads, axes),
        "spectrum": lambda axes: diagnose.plot_spectrum(rnn, axes),
        "saturation": lambda axes: diagnose.plot_saturation(rnn, tape, axes),
    }


@pytest.mark.parametrize("name", ["flow", "clips", "spectrum", "saturation"])
def test_plots_draw_where_they_are_told(name, monkeypatch):
    from matplotlib.figure import Figure

    draw = plots()[name]
    figure = Figure()
    _, axes = figure.subplots(1, 2)
    assert draw(axes) is figure
    assert axes.lines
    assert axes.get_title()
    assert not figure.axes[0].lines
    with pytest.raises(TypeError, match="axes: expected matplotlib Axes or None, got int"):
        draw(3)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'rnnkern[cli]'")):
        draw(None)


# ---- nothing -----------------------------------------------------------------------------------

LONG = 2**34  # steps that an empty batch claims, of which no memory holds a number each


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("steps", [5, LONG])
def test_lyapunov_of_no_rows(steps, batch_first):
    lstm = rk.LSTM(2, 4, batch_first=batch_first, dtype=np.float64, seed=0)
    shape = (0, steps, 2) if batch_first else (steps, 0, 2)
    for x in (np.zeros(shape), np.broadcast_to(np.zeros(2), shape)):
        exponents = diagnose.lyapunov(lstm, x, settle=steps - 1)
        assert exponents.shape == (0,)
        assert exponents.dtype == np.float64
        with pytest.raises(ValueError, match=re.escape("state[0]: expected shape (1, 0, 4), got")):
            diagnose.lyapunov(lstm, x, (np.zeros((1, 1, 4)), np.zeros((1, 0, 4))))


@pytest.mark.parametrize("settle", [0, 2**27])
def test_lyapunov_of_more_states_than_memory_holds_is_refused_before_a_step(settle):
    gru = rk.GRU(2, 64, seed=0)
    x = np.broadcast_to(np.ones(2, np.float32), (2**28, 1024, 2))  # 7 TB of states
    with pytest.raises(MemoryError):
        diagnose.lyapunov(gru, x, settle=settle)


@pytest.mark.parametrize("settle", [0, 1, 7, 10, 24])
@pytest.mark.parametrize("block", [1, 5, 24, 25, 2**62])
def test_lyapunov_does_not_depend_on_where_blocks_end(settle, block):
    layer = make_layer("lstm", 2, 3, dtype=np.float64)
    p = random_problem(layer, 25, 2)
    got = diagnose.lyapunov(layer, p.x, p.state, block=block, settle=settle)
    want = diagnose.lyapunov(layer, p.x, p.state, block=2, settle=settle)
    assert np.allclose(got, want, rtol=1e-12)  # a normalisation rounds


def without_rows(layer, steps):
    y, _, tape = layer.forward(np.zeros((steps, 0, layer.input_size), np.float32))
    return tape, layer.backward(tape, y, trace=True)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu", "slstm"])
@pytest.mark.parametrize("options", [BOTH, {"batch_first": True}, {"reverse": True}])
def test_masked_steps_are_left_out(kind, options):
    """Padding in front counts as little as padding behind."""
    layer = make_layer(kind, 3, 8, **options)
    layout = (lambda a: np.swapaxes(a, 0, 1)) if layer.batch_first else (lambda a: a)
    lengths, x = np.array([7, 0, 4]), np.random.default_rng(0).normal(size=(9, 3, 3))
    x = x.astype(np.float32)
    mask = np.zeros((9, 3), bool)
    moved = np.full_like(x, np.nan)
    for b, n in enumerate(lengths):
        mask[9 - n :, b] = True
        moved[9 - n :, b] = x[:n, b]
    found = []
    for sequence, rows in ((x, {"lengths": lengths}), (moved, {"mask": layout(mask)})):
        y, _, tape = layer.forward(layout(sequence), **rows)
        grads = layer.backward(tape, y, trace=True)
        plots = [diagnose.plot_flow(layer, grads, **rows).axes[0].lines[0].get_ydata()]
        diagnose.plot_clips(layer, grads, **rows)
        diagnose.plot_saturation(layer, tape)
        report = diagnose.report(layer, tape)
        found.append((diagnose.saturation(layer, tape), report, plots, grads))
    (one, report, plots, grads), (other, report_masked, plots_masked, *_) = found
    for a, b in zip(one, other, strict=True):
        assert (a.gate, a.share) == (b.gate, b.share)
        assert a.mean == pytest.approx(b.mean, rel=1e-12)  # sums of another order
    for a, b in zip(report.flows, report_masked.flows, strict=True):
        assert (a.verdict, a.steps) == (b.verdict, b.steps)
        np.testing.assert_array_equal(a.curve, b.curve)
    assert np.isnan(plots_masked[0][:2]).all()
    assert not np.isnan(plots_masked[0][-4:]).any()
    assert not np.isnan(plots[0][:4]).any()
    for rows, error, message in (
        ({"mask": layout(mask), "lengths": lengths}, ValueError, "expected None with lengths"),
        ({"mask": mask[:2]}, ValueError, "expected shape"),
        ({"mask": layout(mask) * 1.0}, TypeError, "expected an array of booleans, got float64"),
        ({"mask": mask.tolist()}, TypeError, "expected an array of booleans, got list"),
    ):
        with pytest.raises(error, match=f"^mask: {message}"):
            diagnose.plot_flow(layer, grads, **rows)


@each_kind
def test_reports_of_no_rows(kind):
    layer = make_layer(kind, 2, 6, **BOTH)
    tape, grads = without_rows(layer, 5)
    for one in diagnose.saturation(layer, tape):
        assert one.low.shape == one.high.shape == (0,)
        assert np.isnan([one.share, one.mean]).all()
    for given in (None, grads):
        report = diagnose.report(layer, tape, given)
        assert {flow.verdict for flow in report.flows} == {"zero"}
        assert "none arrived" in str(report)


def test_a_report_of_no_rows_and_any_number_of_steps():
    layer = make_layer("gru", 2, 6)
    tape, _ = without_rows(layer, LONG)
    (flow,) = diagnose.report(layer, tape).flows
    assert flow.verdict == "zero"
    assert flow.saturation[0].low.shape == (0,)


@pytest.mark.parametrize("steps", [5, LONG])
def test_pictures_of_no_rows(steps):
    layer = make_layer("rnn_relu", 2, 6)
    _, grads = without_rows(layer, steps)
    for figure in (diagnose.plot_flow(layer, grads), diagnose.plot_clips(layer, grads)):
        assert all(not line.get_ydata().size for axes in figure.axes for line in axes.lines)
        figure.draw_without_rendering()


# ---- errors ------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    rnn, gru = rotation(0.5), rk.GRU(1, 8, seed=0)
    tape, grads = traced(rnn, 5)
    _, _, other = gru.forward(np.zeros((5, 2, 1), np.float32))
    x = np.zeros((5, 2, 1))
    plain = rnn.backward(tape)
    many = rk.RNN(1, 8, ensemble=3, dtype=np.float64, seed=0)
    _, _, tape_of_many = many.forward(x)
    of_many = many.backward(tape_of_many, trace=True)
    cases = [
        (lambda: diagnose.spectrum(3), TypeError, "layer: expected a recurrent layer, got int"),
        (
            lambda: diagnose.spectrum(rk.GRU(1, 2, ensemble=3)),
            ValueError,
            "layer: expected a layer alone, got an ensemble (use its member(e))",
        ),
        (
            lambda: diagnose.lyapunov(rk.GRU(1, 2, bidirectional=True), x),
            ValueError,
            "layer: expected one direction, got a bidirectional layer",
        ),
        (lambda: diagnose.lyapunov(rnn, [1]), TypeError, "x: expected an array of dtype float64"),
        (
            lambda: diagnose.lyapunov(rnn, x.astype(np.float32)),
            TypeError,
            "x: expected an array of dtype float64, got float32",
        ),
        (
            lambda: diagnose.lyapunov(rnn, x[:0]),
            ValueError,
            "x: expected shape (T, B, 1) or (T, 1) with T at least 1, got (0, 2, 1)",
        ),
        (lambda: diagnose.lyapunov(rnn, x, x), ValueError, "state: expected shape (1, 2, 8), got"),
        (
            lambda: diagnose.lyapunov(rnn, x, block=0),
            ValueError,
            "block: expected an integer of at least 1, got 0",
        ),
        (
            lambda: diagnose.lyapunov(rnn, x, settle=5),
            ValueError,
            "settle: expected an integer from 0 to 4, below T, got 5",
        ),
        (lambda: diagnose.lyapunov(rnn, x, seed=-1), ValueError, "seed: expected an integer from"),
        (lambda: diagnose.saturation(rnn, 3), TypeError, "tape: expected a Tape, got int"),
        (lambda: diagnose.saturation(rnn, other), ValueError, "tape: expected one of this layer's"),
        (
            lambda: diagnose.saturation(rnn, tape, low=1.0),
            ValueError,
            "low: expected a number above 0 and below 1, got 1.0",
        ),
        (
            lambda: diagnose.saturation(rnn, tape, low=0.5, high=0.4),
            ValueError,
            "low: expected at most high, which is 0.4, got 0.5",
        ),
        (
            lambda: diagnose.saturation(rnn, tape, tanh="a"),
            TypeError,
            "tanh: expected a number, got str",
        ),
        (
            lambda: diagnose.plot_flow(rnn, grads, lengths=[5, 5]),
            TypeError,
            "lengths: expected an array of integers, got list",
        ),
        (
            lambda: diagnose.plot_flow(rnn, grads, lengths=np.array([5])),
            ValueError,
            "lengths: expected shape (2,), got (1,)",
        ),
        (
            lambda: diagnose.plot_flow(rnn, grads, lengths=np.array([5, 6])),
            ValueError,
            "lengths: expected values from 0 to 5, got [5, 6]",
        ),
        (
            lambda: diagnose.report(rnn, tape, 3),
            TypeError,
            "grads: expected Gradients, got int",
        ),
        (
            lambda: diagnose.report(rnn, tape, plain),
            ValueError,
            "grads: expected a trace (backward with trace=True), got none",
        ),
        (
            lambda: diagnose.report(rnn, tape, traced(rnn, 6)[1]),
            ValueError,
            "grads: expected a trace of shape (1, 5, 2), got (1, 6, 2)",
        ),
        (
            lambda: diagnose.report(rnn, tape, vanished=1.0),
            ValueError,
            "vanished: expected a number above 0 and below 1, got 1.0",
        ),
        (
            lambda: diagnose.report(rnn, tape, exploded=1.0),
            ValueError,
            "exploded: expected a finite number above 1, got 1.0",
        ),
        (
            lambda: diagnose.plot_flow(rotation(0.5, num_layers=2), grads),
            ValueError,
            "grads: expected a trace of shape (2, T, B), got (1, 5, 2)",
        ),
        (
            lambda: diagnose.plot_flow(rnn, of_many),
            ValueError,
            "grads: expected a trace of shape (1, T, B), got (1, 5, 3, 2)",
        ),
        (
            lambda: diagnose.report(rnn, tape, of_many),
            ValueError,
            "grads: expected a trace of shape (1, 5, 2), got (1, 5, 3, 2)",
        ),
        (
            lambda: diagnose.saturation(rnn, tape_of_many),
            ValueError,
            "tape: expected one of this layer's forward, got another's",
        ),
        (
            lambda: diagnose.plot_clips(rnn, grads, index=1),
            ValueError,
            "index: expected an integer from 0 to 0, got 1",
        ),
        (
            lambda: diagnose.plot_saturation(rnn, tape, index=-1),
            ValueError,
            "index: expected an integer from 0 to 0, got -1",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            call()
