"""What a tape tells, and that backward refuses arrays that have changed since its forward."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import KINDS, in_each_dtype, make_layer, random_problem

import rnnkern as rk
from rnnkern.reference import CELLS

T, B, I, H = 30, 3, 5, 24  # W_ih and W_hh have more elements than are sampled

every_kind = pytest.mark.parametrize("kind", KINDS)


def refused(name):
    message = (
        f"{name}: expected the values that forward read, got others "
        "(change arrays after backward, or call forward again)"
    )
    return pytest.raises(RuntimeError, match=f"^{re.escape(message)}$")


def forward(kind="gru", **options):
    layer = make_layer(kind, I, H, **options)
    p = random_problem(layer, T, B)
    return layer, p, p.forward(layer)[2]


@in_each_dtype
@every_kind
def test_a_parameter_updated_before_backward_is_named(kind, dtype):
    layer, p, tape = forward(kind, num_layers=2, dtype=dtype)
    for name, array in layer.params.items():
        before = array.copy()
        array *= 0.9
        array += 0.1
        with refused(f"params['{name}']"):
            p.backward(layer, tape)
        array[...] = before
    p.backward(layer, tape)


@pytest.mark.parametrize("checkpoint", [None, 4])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"ensemble": 2}])
def test_an_optimizers_step_before_backward_is_refused(options, checkpoint):
    layer = make_layer("gru", I, H, **options)
    p = random_problem(layer, T, B)
    y, _, tape = layer.forward(p.x, checkpoint=checkpoint)
    grads = layer.backward(tape, np.ones_like(y))
    rk.SGD(layer.params, lr=0.1, ensemble=layer.ensemble).step(grads)
    with refused("params['weight_ih_l0']"):
        layer.backward(tape, np.ones_like(y))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[::2],
        lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1),
        np.asfortranarray,
    ],
    ids=["plain", "strided", "reversed", "swapped", "fortran"],
)
def test_a_refilled_x_is_refused(view):
    layer = make_layer("lstm", I, H)
    x = view(np.random.default_rng(0).normal(size=(T, T, I)).astype(np.float32))
    y, _, tape = layer.forward(x)
    layer.backward(tape, y)
    before = x.copy()
    x[...] = 1.0
    with refused("x"):
        layer.backward(tape, y)
    x[...] = before
    layer.backward(tape, y)


def test_a_member_compares_its_own_parameters():
    layer = make_layer("gru", I, H, ensemble=3)
    x = random_problem(layer, T, B).x
    layer.forward(x)
    one = layer.member(1)
    y, _, tape = one.forward(x)
    layer.params["weight_hh_l0"][0] += 1.0  # another member's
    one.backward(tape, y)
    layer.params["weight_hh_l0"][1] += 1.0
    with refused("params['weight_hh_l0']"):
        one.backward(tape, y)


def test_parameters_that_are_replaced():
    layer, p, tape = forward()
    want = p.backward(layer, tape)
    layer.params = {name: array.copy() for name, array in reversed(layer.params.items())}
    got = p.backward(layer, tape)  # of the same values, whatever the dict and its order
    for name, array in want.params.items():
        assert got.params[name].tobytes() == array.tobytes()
    layer.params["bias_hh_l0"] = layer.params["bias_hh_l0"] + 1.0
    with refused("params['bias_hh_l0']"):
        p.backward(layer, tape)
    biases = layer.params
    biases["bias_hh_l0"] -= 1.0
    biases["bias_hh_l0"], biases["bias_ih_l0"] = biases["bias_ih_l0"], biases["bias_hh_l0"]
    with refused("params['bias_ih_l0']"):
        p.backward(layer, tape)


def test_parameters_of_another_layout():
    layer, p, _ = forward()
    names = layer.params
    names["weight_hh_l0"] = np.asfortranarray(names["weight_hh_l0"])
    tape = p.forward(layer)[2]
    p.backward(layer, tape)
    names["weight_hh_l0"] = np.ascontiguousarray(names["weight_hh_l0"])
    p.backward(layer, tape)
    names["weight_hh_l0"] = np.asfortranarray(2 * names["weight_hh_l0"])
    with refused("params['weight_hh_l0']"):
        p.backward(layer, tape)


def test_nan_is_not_a_change():
    layer, p, _ = forward()
    layer.params["bias_hh_l0"][3] = np.nan
    p.x[4] = np.nan
    tape = p.forward(layer)[2]
    p.backward(layer, tape)


def test_headers_that_change_while_a_forward_reads_its_arguments():
    """What is compared is what was validated: x and the parameters as they were then."""
    layer = make_layer("gru", I, H)
    x = random_problem(layer, T, B).x
    want = layer.forward(x, lengths=np.full(B, T))[0]
    weight = layer.params["weight_hh_l0"]

    class Lengths:
        def __array__(self, dtype=None, copy=None):
            x.shape, weight.shape = (1,) * 20 + (T, B, I), (1,) * 20 + weight.shape
            return np.full(B, T)

    y, _, tape = layer.forward(x, lengths=Lengths())
    assert y.tobytes() == want.tobytes()
    x.shape, weight.shape = (T, B, I), (3 * H, H)
    layer.backward(tape, y)
    x[0, 0, 0] += 1.0
    with refused("x"):
        layer.backward(tape, y)


def test_samples_are_64_and_evenly_spaced():
    """What changes a whole row, column or block of a matrix is seen."""
    layer = make_layer("lstm", 64, 64)
    x = random_problem(layer, T, B).x
    y, _, tape = layer.forward(x)
    w = layer.params["weight_hh_l0"]
    for part in (np.s_[:, 0:8], np.s_[:, 20:28], np.s_[0:8], np.s_[200:208]):
        before = w.copy()
        w[part] += 1.0
        with refused("params['weight_hh_l0']"):
            layer.backward(tape, y)
        w[...] = before
    places = np.arange(w.size)[:: w.size // 64 | 1]
    assert 60 <= len(places) <= 64
    assert len(set(places % 64)) > 50
    w.reshape(-1)[1] += 1.0  # between two samples
    layer.backward(tape, y)


@pytest.mark.parametrize("which", ["x", "weight_ih_l0", "bias_hh_l0"])
def test_debug_compares_all_elements(which):
    layer = make_layer("gru", 100, 100)
    x = random_problem(layer, T, B).x
    array = x if which == "x" else layer.params[which]
    for place in (1, array.size // 2 + 1, array.size - 1):
        with rk.debug():
            y, _, tape = layer.forward(x)
            layer.backward(tape, y)
        array.reshape(-1)[place] += 1.0
        with refused("x" if which == "x" else f"params['{which}']"):
            layer.backward(tape, y)


def test_debug_restores_what_was():
    assert not rk.runtime.debugging
    with rk.debug():
        with pytest.raises(KeyError), rk.debug():
            raise KeyError
        assert rk.runtime.debugging
    assert not rk.runtime.debugging


def test_a_tape_says_what_it_is_and_stays_in_its_process():
    layer, p, tape = forward()
    assert repr(tape) == f"Tape(x: ({T}, {B}, {I}), {tape.nbytes} bytes)"
    assert isinstance(tape, rk.Tape)
    for use in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^tape: expected to stay in its process, got a copy"):
            use(tape)
    with pytest.raises(
        TypeError, match=r"^tape: expected a tape of this layer's forward, got Tape"
    ):
        layer.backward(rk.Tape.__new__(rk.Tape), p.dy)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"residual": True}])
@every_kind
def test_a_tape_says_how_much_it_keeps(kind, options):
    """All that can be read of it, the first state, and what layer norm and a clip of h add."""
    layer = make_layer(kind, I, 48, num_layers=2, **options)  # whole cache lines, of P = 32, too
    p = random_problem(layer, T, B)
    tape = p.forward(layer)[2]
    states = p.state if isinstance(p.state, tuple) else (p.state,)
    read = sum(a.nbytes for a in [*tape.gates, *tape.cells, *tape.hiddens, *states])
    if options.get("residual"):
        read += tape.hiddens[0].nbytes * (layer.num_layers - 2)  # what lies between the layers
    roles = {parameter.role for parameter in CELLS[kind].parameters}
    adds = "projection_matrix" in roles or "input_gain" in roles
    assert read < tape.nbytes < 1.5 * read if adds else tape.nbytes == read


def test_a_checkpoint_and_padding_keep_less():
    layer = make_layer("lstm", I, H)
    p = random_problem(layer, T, B)
    whole, segments = p.forward(layer)[2], p.forward(layer, checkpoint=10)[2]
    states = sum(part.nbytes for part in p.state)
    assert segments.nbytes == 3 * states
    assert whole.nbytes > 10 * segments.nbytes
    short = p.but(lengths=np.array([T, 2, 1]))
    assert short.forward(layer)[2].nbytes < 0.6 * whole.nbytes
