"""Layers that go backward in time only: the reverse half of a bidirectional layer, by itself."""

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import (
    KINDS,
    assert_same,
    in_each_dtype,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
)
from plan import plan_of
from test_mask import assert_same_bits, run

import rnnkern as rk

T, B, I, H = 9, 5, 3, 10
CLIP = rk.Clip(step_value=0.5, step_norm=0.8)
ROWS = {
    "whole": {},
    "lengths": {"lengths": "random", "resets": 0.3},
    "mask": {"mask": 0.6, "resets": 0.3},
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_rows = pytest.mark.parametrize("rows", ROWS)


def reverse_layer(kind, **options):
    return make_layer(kind, I, H, reverse=True, **options)


@every_kind
@in_each_dtype
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3, "residual": True}, {"num_layers": 2, "batch_first": True}]
)
@every_rows
def test_results_are_the_reference_s(kind, dtype, options, rows):
    layer = reverse_layer(kind, dtype=dtype, **options)
    problem = random_problem(layer, T, B, **ROWS[rows])
    got = run(layer, problem)
    assert_same(layer, got, run_reference(layer, problem, CLIP))
    forward = make_layer(kind, I, H, dtype=dtype, **options)
    assert not np.array_equal(problem.forward(forward)[0], got[0])


@every_kind
@every_rows
def test_the_bits_are_those_of_the_reverse_half(kind, rows):
    """Each row from its own last step, with its noise; gradients, too."""
    both = make_layer(kind, I, H, bidirectional=True)
    alone = reverse_layer(kind)
    for name in alone.params:
        alone.params[name][...] = both.params[name + "_reverse"]
    problem = random_problem(both, T, B, **ROWS[rows])
    P = alone.output_size
    problem.dy[..., :P] = 0  # so that nothing comes back from the other half
    for d in parts(problem.dstate):
        d[0] = 0
    y, state, grads = run(both, problem)
    own = problem.but(
        dy=problem.dy[..., P:],
        state=joined([s[1:] for s in parts(problem.state)]),
        dstate=joined([d[1:] for d in parts(problem.dstate)]),
    )
    y_own, state_own, grads_own = run(alone, own)
    np.testing.assert_array_equal(y_own, y[..., P:])
    np.testing.assert_array_equal(grads_own.x, grads.x)
    for one, other in (
        *zip(parts(state_own), parts(state), strict=True),
        *zip(parts(grads_own.state), parts(grads.state), strict=True),
        *((a, b) for a, b in zip(grads_own.trace, grads.trace, strict=True) if a is not None),
    ):
        np.testing.assert_array_equal(one, other[1:])
    for name, gradient in grads_own.params.items():
        np.testing.assert_array_equal(gradient, grads.params[name + "_reverse"], err_msg=name)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu", "slstm", "min_gru"])
def test_the_bits_are_those_of_a_layer_on_time_turned_round(kind):
    """Keras's go_backwards leaves the outputs so."""
    backward, forward = (make_layer(kind, I, H, num_layers=2, reverse=r) for r in (True, False))
    problem = random_problem(backward, T, B)
    turned = problem.but(x=problem.x[::-1], dy=problem.dy[::-1])
    y, state, grads = run(backward, problem)
    y_turned, state_turned, grads_turned = run(forward, turned)
    np.testing.assert_array_equal(y[::-1], y_turned)
    np.testing.assert_array_equal(grads.x[::-1], grads_turned.x)
    for one, other in zip(parts(state), parts(state_turned), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, gradient in grads.params.items():
        np.testing.assert_array_equal(gradient, grads_turned.params[name], err_msg=name)


@pytest.mark.parametrize("kind", ["lstm_noisy", "gru", "rg_lru", "lstm_projected"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "residual": True, "dropout": 0.3}])
@pytest.mark.parametrize("checkpoint", [1, 2, 4, "sqrt", 100])
@every_rows
def test_checkpoints_keep_the_bits(kind, options, checkpoint, rows):
    layer = reverse_layer(kind, **options)
    problem = random_problem(layer, T, B, **ROWS[rows])
    assert_same_bits(run(layer, problem, checkpoint=checkpoint), run(layer, problem))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(150, 2, 4), (40, 64, 2), (100, 1, 2)])
def test_threads_keep_the_bits(threads, shape):
    steps, rows, layers = shape
    gru = rk.GRU(24, 40, layers, reverse=True, residual=True, dropout=0.2, seed=0)
    if shape == (150, 2, 4):
        assert plan_of(gru, steps, rows, threads).shared == "layers"
    problem = random_problem(gru, steps, rows, resets=0.1)
    one, many = (on_threads(n, run, gru, problem) for n in (1, threads))
    assert_same_bits(many, one)


@every_rows
def test_an_ensemble_s_members_are_layers_alone(rows):
    grus = make_layer("gru", I, H, ensemble=3, reverse=True)
    problem = random_problem(grus.member(0), T, B, **ROWS[rows])
    given = {"lengths": problem.lengths, "mask": problem.mask, "resets": problem.resets}
    y, h, tape = grus.forward(problem.x, **given)
    grads = grus.backward(tape, y)
    for e in range(3):
        gru = grus.member(e)
        assert gru.reverse
        y_own, h_own, tape_own = gru.forward(problem.x, **given)
        np.testing.assert_array_equal(y[:, e], y_own)
        np.testing.assert_array_equal(h[:, e], h_own)
        np.testing.assert_array_equal(grads.x[:, e], gru.backward(tape_own, y_own).x)


def test_the_option_is_read_only_and_copied():
    gru = reverse_layer("gru", num_layers=2)
    assert gru.reverse is True
    assert make_layer("gru", I, H).reverse is False
    assert repr(gru) == f"GRU({I}, {H}, num_layers=2, reverse=True, seed=1)"
    with pytest.raises(AttributeError):
        gru.reverse = False
    assert not any("_reverse" in name for name in gru.params)
    x = random_problem(gru, T, B).x
    again = rk.from_state_dict(gru.state_dict(), "", reverse=True)
    for other in (gru.copy(), copy.copy(gru), pickle.loads(pickle.dumps(gru)), again):
        assert other.reverse
        np.testing.assert_array_equal(other(x)[0], gru(x)[0])


def test_what_needs_time_forward_is_refused():
    gru = reverse_layer("gru")
    x = random_problem(gru, T, B).x
    for use, message in (
        (
            gru.stream,
            "stream: expected a layer that goes forward in time, got one with reverse=True",
        ),
        (
            lambda: rk.truncated_bptt(gru, x, 3),
            "layer: expected one that goes forward in time, got one with reverse=True",
        ),
        (
            lambda: rk.diagnose.lyapunov(gru, x),
            "layer: expected one that goes forward in time, got one with reverse=True",
        ),
        (
            lambda: rk.GRU(I, H, bidirectional=True, reverse=True),
            "reverse: expected False with bidirectional, got True",
        ),
        (
            lambda: rk.reference.Config("gru", I, H, bidirectional=True, reverse=True),
            "reverse: expected False with bidirectional, got True",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            use()
    with pytest.raises(TypeError, match=r"^reverse: expected True or False, got int$"):
        rk.GRU(I, H, reverse=1)


def test_reports_follow_the_gradient_back_through_time():
    """Those of a layer forward in time, on the same steps turned round."""
    flows = []
    for reverse in (False, True):
        rnn = rk.RNN(I, H, reverse=reverse, seed=0)
        x = np.random.default_rng(0).normal(size=(30, 4, I)).astype(np.float32)
        x = x[::-1] if reverse else x
        _, _, tape = rnn.forward(x)
        flows.append(rk.diagnose.report(rnn, tape).flows[0])
    assert flows[0].verdict == flows[1].verdict
    np.testing.assert_array_equal(flows[0].curve, flows[1].curve)
