"""Zoneout and recurrent dropout: what is drawn, how often, and from what. The cells themselves are
in the tests of all kinds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers import (
    DTYPES,
    KINDS,
    QUIET,
    assert_same,
    in_each_dtype,
    in_each_set,
    make_layer,
    noise_of,
    on_threads,
    parts,
    random_problem,
    run_reference,
)
from plan import plan_of

import rnnkern as rk

each_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in QUIET])


def run(layer, problem, clip=None):
    y, state, tape = problem.forward(layer)
    return y, state, problem.backward(layer, tape, clip)


def assert_rate(hits, p):
    """A binomial's mean of n draws, within 4 of its deviations."""
    assert abs(hits.mean() - p) < 4 * np.sqrt(p * (1 - p) / hits.size)


# --------------------------------------------------------------------- which options, and kinds


def test_no_noise_has_several_spellings_and_is_the_plain_cell():
    for options in ({}, {"zoneout": 0}, {"zoneout": (0, 0.0)}, {"recurrent_dropout": 0.0}):
        assert rk.LSTM(3, 5, **options)._kind == "lstm"
    assert rk.GRU(3, 5, zoneout=0, recurrent_dropout=0)._kind == "gru"
    assert rk.RNN(3, 5, zoneout=0.0)._kind == "rnn_tanh"


def test_what_a_layer_says_of_its_noise():
    lstm = rk.LSTM(3, 5, zoneout=(0.25, 0), recurrent_dropout=0.5)
    assert (lstm.zoneout, lstm.recurrent_dropout) == ((0.25, 0.0), 0.5)
    assert "5, zoneout=(0.25, 0.0), recurrent_dropout=0.5)" in repr(lstm)
    assert "zoneout" not in repr(rk.GRU(3, 5))
    with pytest.raises(AttributeError):
        lstm.zoneout = 0.5


def test_one_number_is_that_of_both_states():
    one, pair = (rk.LSTM(3, 5, zoneout=z, seed=1) for z in (0.3, (0.3, 0.3)))
    problem = random_problem(one, 6, 4)
    grads, of_pair = (run(layer, problem)[2].params for layer in (one, pair))
    for name, values in grads.items():
        assert values.tobytes() == of_pair[name].tobytes()


@in_each_set
@in_each_dtype
@pytest.mark.parametrize(
    "noise",
    [
        {"zoneout": (0.4, 0.0)},
        {"zoneout": (0.0, 0.4)},
        {"recurrent_dropout": 0.4},
        {"zoneout": 0.4},
        {"zoneout": (0.0, 0.9), "recurrent_dropout": 0.999},
    ],
    ids=str,
)
def test_each_noise_of_an_lstm_alone(isa, dtype, noise):
    layer = rk.LSTM(5, 17, 2, bidirectional=True, dtype=dtype, seed=3, **noise)
    problem = random_problem(layer, 6, 5, lengths="random", resets=0.2)
    clip = rk.Clip(step_value=0.2, step_norm=0.8)
    with rk.force_isa(isa):
        assert_same(layer, run(layer, problem, clip), run_reference(layer, problem, clip))


@in_each_dtype
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("noise", [{"zoneout": 0.4}, {"recurrent_dropout": 0.4}], ids=str)
def test_each_noise_of_a_gru_alone(dtype, reset_after, noise):
    layer = rk.GRU(5, 17, 2, reset_after=reset_after, dtype=dtype, seed=3, **noise)
    problem = random_problem(layer, 6, 5, lengths="random")
    assert_same(layer, run(layer, problem), run_reference(layer, problem))


# ------------------------------------------------------------------------------ what is drawn


@each_kind
def test_seed_and_step_give_the_masks(kind):
    x = random_problem(make_layer(kind, 3, 30), 5, 3).x
    layers = [make_layer(kind, 3, 30, seed=s) for s in (1, 1, 2)]
    layers[2].params = layers[0].params
    one, same, other = ([layer.forward(x)[0] for _ in range(3)] for layer in layers)
    for a, b, c in zip(one, same, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    assert not np.array_equal(one[0], one[1])
    layers[0].dropout_step = 1
    assert np.array_equal(layers[0].forward(x)[0], one[1])
    layers[0](x)
    layers[0].stream(3).run(x)
    assert layers[0].dropout_step == 2  # inference draws nothing


@each_kind
def test_a_tape_keeps_its_masks(kind):
    layer = make_layer(kind, 5, 7, num_layers=2, bidirectional=True)
    problem = random_problem(layer, 4, 3).but(step=7)
    y, state, tape = problem.forward(layer)
    problem.but(step=8).forward(layer)
    grads = problem.backward(layer, tape)
    assert_same(layer, (y, state, grads), run_reference(layer, problem))


@each_kind
def test_both_types_draw_the_same(kind):
    layers = [make_layer(kind, 3, 37, dtype=dtype) for dtype in DTYPES]
    for name, values in layers[0].params.items():
        layers[1].params[name] = values.astype(np.float64)
    x = random_problem(layers[0], 9, 4).x
    y, y_double = (layer.forward(x.astype(layer.dtype))[0] for layer in layers)
    np.testing.assert_allclose(y, y_double, atol=1e-5)  # some units of float32, nine times


@each_kind
def test_masks_do_not_depend_on_threads_batch_padding_or_checkpoints(kind):
    T, B, H = 12, 40, 60
    layer = make_layer(kind, 20, H, num_layers=2)
    x = random_problem(layer, T, B).x

    def outputs(x, **options):
        layer.dropout_step = 3
        return layer.forward(x, **options)[0]

    want = on_threads(1, outputs, x)
    for threads in range(2, 6):
        assert plan_of(layer, T, B, threads).threads == threads
        assert np.array_equal(on_threads(threads, outputs, x), want)
    for rows in (1, 2, 5):
        assert np.array_equal(outputs(x[:, :rows]), want[:, :rows])
    padded = np.concatenate([x, np.ones_like(x[:3])])
    assert np.array_equal(outputs(padded, lengths=np.full(B, T))[:T], want)
    for checkpoint in (1, 5, 100):
        assert np.array_equal(outputs(x, checkpoint=checkpoint), want)


# ------------------------------------------------------------------------------- how often


@in_each_dtype
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_zoneout_keeps_units_at_its_rate(dtype, p):
    """Units that keep their state are those whose value is that of the step before."""
    T, B, H = 60, 9, 45
    rnn = rk.RNN(3, H, zoneout=p, bidirectional=True, dtype=dtype, seed=0)
    y = rnn.forward(random_problem(rnn, T, B).x)[0]
    assert_rate(y[1:, :, :H] == y[:-1, :, :H], p)
    assert_rate(y[:-1, :, H:] == y[1:, :, H:], p)

    lstm = rk.LSTM(3, H, zoneout=(p, 0.3), dtype=dtype, seed=0)
    tape = lstm.forward(random_problem(lstm, T, B).x)[2]
    (h,), (c,) = tape.hiddens, tape.cells
    h_kept, c_kept = (a[1:] == a[:-1] for a in (h, c))
    assert_rate(h_kept, p)
    assert_rate(c_kept, 0.3)
    assert_rate(h_kept & c_kept, 0.3 * p)  # each state has its own mask


@in_each_dtype
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_recurrent_dropout_drops_candidates_at_its_rate(dtype, p):
    """From a state of zeros, which resets make of every step's, the candidate is all there is."""
    T, B, H = 60, 9, 45
    resets = np.ones((T, B), bool)
    lstm = rk.LSTM(3, H, recurrent_dropout=p, dtype=dtype, seed=0)
    tape = lstm.forward(random_problem(lstm, T, B).x, resets=resets)[2]
    c, i, g = tape.cells[0], tape.gates[0][:, :, 0], tape.gates[0][:, :, 2]
    assert_rate(c == 0, p)
    np.testing.assert_allclose(c[c != 0], (i * g)[c != 0] / (1 - p), rtol=1e-6)
    for reset_after in (True, False):
        gru = rk.GRU(3, H, recurrent_dropout=p, reset_after=reset_after, dtype=dtype, seed=0)
        h, _, tape = gru.forward(random_problem(gru, T, B).x, resets=resets)
        z, n = tape.gates[0][:, :, 1], tape.gates[0][:, :, 2]
        assert_rate(h == 0, p)
        np.testing.assert_allclose(h[h != 0], ((1 - z) * n)[h != 0] / (1 - p), rtol=1e-6)


def test_masks_of_neighbours_are_unrelated():
    """Of steps, rows, units, layers, directions, noises and forwards."""
    p = 0.5
    layer = rk.LSTM(3, 45, 2, bidirectional=True, zoneout=p, recurrent_dropout=p, seed=5)
    first, second = (noise_of(layer, 40, 9, step) for step in (0, 1))
    masks = [values != 0 for drawn in (*first, *second) for values in drawn.values()]
    for a, b in product(masks, masks):
        if a is not b:
            assert_rate(a & b, p * p)
    for a in masks:
        assert_rate(a, p)
        for axis in range(3):
            assert_rate(np.take(a, range(1, a.shape[axis]), axis) & np.delete(a, -1, axis), p * p)


# ------------------------------------------------------------------------------- its mean


@each_kind
def test_a_call_takes_the_mean_of_the_masks(kind):
    """Over one step, which is linear in the masks of h but for recurrent dropout's of an LSTM."""
    layer = make_layer(kind, 3, 40, dtype=np.float64)
    if kind == "lstm_noisy":
        layer = rk.LSTM(3, 40, zoneout=(0.2, 0.4), dtype=np.float64, seed=1)
    problem = random_problem(layer, 1, 2)
    want = parts(layer(problem.x, problem.state)[1])
    count = 4000
    sums = [np.zeros_like(a) for a in want]
    for step in range(count):
        for total, a in zip(sums, parts(problem.but(step=step).forward(layer)[1]), strict=True):
            total += a
    for total, mean in zip(sums, want, strict=True):
        # A value deviates by less than 3, a mean of n by 3 / sqrt(n); 160 values, 4 deviations.
        bound = 4 * 3 / np.sqrt(count)
        np.testing.assert_allclose(total / count, mean, rtol=0, atol=bound)
        assert np.abs(mean).max() > 2 * bound
