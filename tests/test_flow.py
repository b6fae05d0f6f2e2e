"""What backward sees on its way, and the penalty on gradient flow, against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    KINDS,
    assert_close,
    assert_same,
    in_each_dtype,
    make_layer,
    random_problem,
)
from helpers import run_reference as reference_of

import rnnkern as rk
from rnnkern.diagnose.common import cell_of
from rnnkern.reference import CELLS

T, B, I, H = 7, 5, 3, 9
PENALIZED = [kind for kind in KINDS if CELLS[kind].has_flow_penalty]

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@in_each_dtype
@pytest.mark.parametrize("clip", [None, rk.Clip(step_value=0.2, step_norm=0.2, value=2.0)])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True}]
)
def test_trace_is_the_reference_s(kind, dtype, clip, options):
    layer = make_layer(kind, I, H, dtype=dtype, **options)
    problem = random_problem(layer, T, B, lengths="random")
    want = reference_of(layer, problem, clip)
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, clip, trace=True)
    assert_same(layer, (y, state, grads), want)
    for name, got in grads.trace._asdict().items():
        if name == "dc_before" and len(CELLS[kind].states) == 1:
            assert got is None
            continue
        assert got.dtype == np.float64
        assert_close(got, getattr(want.grads.trace, name), dtype, name)
    if clip:
        assert grads.trace.clipped.max() > 0
        assert grads.trace.scale.min() < 1


@every_kind
def test_trace_changes_no_bit(kind):
    layer = make_layer(kind, I, H)
    problem = random_problem(layer, T, B, lengths="random")
    *_, tape = problem.forward(layer)
    plain = problem.backward(layer, tape, rk.Clip(step_norm=0.5))
    traced = problem.backward(layer, tape, rk.Clip(step_norm=0.5), trace=True)
    assert plain.trace is None
    for name, array in plain.params.items():
        np.testing.assert_array_equal(traced.params[name], array)
    np.testing.assert_array_equal(traced.x, plain.x)


def test_steps_that_hand_nothing_back_count_nothing_in_the_penalty():
    """Units that are off hand back 0, whatever gradient comes in."""
    layer = make_layer("rnn_relu", I, H)
    problem = random_problem(layer, T, B, state=False)
    layer.params["bias_ih_l0"][:] = -100
    y, _, tape = problem.forward(layer)
    assert not y.any()
    grads = problem.backward(layer, tape, flow_penalty=0.5)
    want = reference_of(layer, problem, flow_penalty=0.5).grads
    for result in (grads, want):
        assert result.flow_penalty == 0.0
        assert not result.params["weight_hh_l0"].any()


def test_trace_of_no_steps_and_no_rows():
    layer = make_layer("lstm", I, H)
    for steps, rows in ((0, 3), (4, 0), (0, 0)):
        problem = random_problem(layer, steps, rows)
        *_, tape = problem.forward(layer)
        grads = problem.backward(layer, tape, trace=True)
        assert all(a.shape == (1, steps, rows) for a in grads.trace)


def test_trace_of_one_unbatched_row_has_a_row_axis():
    layer = make_layer("gru", I, H)
    problem = random_problem(layer, T)
    *_, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, trace=True)
    assert grads.trace.dh.shape == (1, T, 1)


@pytest.mark.parametrize("kind", PENALIZED)
@in_each_dtype
@pytest.mark.parametrize("clip", [None, rk.Clip(step_value=0.4, step_norm=0.7)])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_flow_penalty_is_the_reference_s(kind, dtype, clip, options):
    layer = make_layer(kind, I, H, dtype=dtype, **options)
    problem = random_problem(layer, T, B, lengths="random")
    want = reference_of(layer, problem, clip, flow_penalty=0.3)
    y, state, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, clip, flow_penalty=0.3)
    assert_same(layer, (y, state, grads), want)
    assert grads.trace is None
    assert_close(grads.flow_penalty, want.grads.flow_penalty, dtype, "flow_penalty")
    assert grads.flow_penalty > 0
    without = problem.backward(layer, tape, clip)
    assert without.flow_penalty == 0
    for name, array in without.params.items():
        same = np.array_equal(array, grads.params[name])
        assert same != name.startswith("weight_hh"), name


def omega(W, terms, B):
    """Omega by its definition, of W_hh alone: terms are v = dL/dh, da and what takes no product."""
    total = 0.0
    for v, da, direct in terms:
        u = direct + da @ W
        total += np.sum((np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1) - 1.0) ** 2) / B
    return total


@pytest.mark.parametrize("kind", PENALIZED)
def test_flow_penalty_s_gradient_is_its_definition_s(kind):
    """Central differences of Omega over each element of W_hh, dL/dh and dL/da held fixed."""
    layer = make_layer(kind, I, H, dtype=np.float64)
    problem = random_problem(layer, T, B)
    cell = cell_of(layer)
    reference = reference_of(layer, problem)
    terms, (dh,) = [], (np.array(problem.dstate[0]),)
    weights = {p.name: layer.params[f"{p.name}_l0"] for p in cell.parameters}
    W_hh = weights["weight_hh"]
    for step in reversed(reference.tape.steps[0]):
        v = dh + problem.dy[step.t]
        now = cell
        if cell.noise:
            drawn = {name: values[step.t] for name, values in reference.tape.noise[0].items()}
            now = replace(cell, drawn=drawn)
        back = now.backward_step((v,), step, weights, None)
        (dh,) = back.prev
        terms.append((v, back.da_h, dh - back.da_h @ W_hh))

    *_, tape = problem.forward(layer)
    with_it = problem.backward(layer, tape, flow_penalty=1.0)
    assert with_it.flow_penalty == pytest.approx(omega(W_hh, terms, B), rel=1e-10)
    got = with_it.params["weight_hh_l0"] - problem.backward(layer, tape).params["weight_hh_l0"]
    # 2^-17 balances truncation, about 1e-11 of the third derivative, against rounding, about
    # 1e-11 of Omega, here some 10; a term's third derivative is of the size of 1 / |u|^2.
    eps = 2.0**-17
    for index in np.ndindex(got.shape):
        W = W_hh.copy()
        W[index] += eps
        above = omega(W, terms, B)
        W[index] -= 2 * eps
        quotient = (above - omega(W, terms, B)) / (2 * eps)
        assert got[index] == pytest.approx(quotient, rel=1e-6, abs=1e-7), index


def test_flow_penalty_is_deaf_to_the_loss_s_scale():
    layer = make_layer("rnn_tanh", I, H, dtype=np.float64)
    problem = random_problem(layer, T, B)
    *_, tape = problem.forward(layer)
    one = problem.backward(layer, tape, flow_penalty=1.0)
    small = problem.but(dy=problem.dy * 1e-30, dstate=problem.dstate * 1e-30)
    tiny = small.backward(layer, tape, flow_penalty=1.0)
    # Scaling by no power of two rounds anew: a few units of the last place.
    assert tiny.flow_penalty == pytest.approx(one.flow_penalty, rel=1e-12)


def test_flow_penalty_where_nothing_flows_is_zero():
    layer = make_layer("rnn_tanh", I, H)
    problem = random_problem(layer, T, B)
    *_, tape = problem.forward(layer)
    grads = layer.backward(tape, None, None, flow_penalty=1.0)
    assert grads.flow_penalty == 0
    assert not grads.params["weight_hh_l0"].any()


@pytest.mark.parametrize(
    ("weight", "dy", "want"),
    [
        (1e200, 1e-100, np.inf),  # the growth is finite, its square overflows
        (1e200, 1.0, np.inf),  # the norm overflows
        (1e-300, 1e300, 1.0),
        (1.0, np.inf, np.nan),  # inf / inf
        (1.0, np.nan, np.nan),
        (np.nan, 1.0, np.nan),
    ],
)
@pytest.mark.parametrize("ensemble", [None, 2])
def test_flow_penalty_of_extreme_norms_whatever_numpy_traps(weight, dy, want, ensemble):
    layer = make_layer("rnn_relu", 1, 1, dtype=np.float64, ensemble=ensemble)
    for name, array in layer.params.items():
        array[...] = weight if name == "weight_hh_l0" else 1.0
    y, _, tape = layer.forward(np.zeros((1, 1, 1)), np.zeros_like(layer(np.zeros((1, 1, 1)))[1]))
    with np.errstate(all="raise"):
        grads = layer.backward(tape, np.full_like(y, dy), flow_penalty=1.0)
    np.testing.assert_array_equal(grads.flow_penalty, want if ensemble is None else [want] * 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PENALIZED])
def test_flow_penalty_is_refused_where_it_is_not_defined(kind):
    layer = make_layer(kind, I, H)
    *_, tape = random_problem(layer, T, B).forward(layer)
    with pytest.raises(ValueError, match=rf"flow_penalty: expected 0 for {kind} \(.*\), got 0.5"):
        layer.backward(tape, flow_penalty=0.5)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"trace": 1}, TypeError, "trace: expected True or False, got int"),
        ({"flow_penalty": -1.0}, ValueError, "flow_penalty: expected a finite number >= 0, got -1"),
        ({"flow_penalty": np.nan}, ValueError, "flow_penalty: expected a finite number >= 0"),
        ({"flow_penalty": "1"}, TypeError, "flow_penalty: expected a number, got str"),
    ],
)
def test_bad_arguments_are_named(options, error, said):
    layer = make_layer("gru", I, H)
    *_, tape = random_problem(layer, T, B).forward(layer)
    with pytest.raises(error, match=said):
        layer.backward(tape, **options)
