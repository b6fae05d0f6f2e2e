"""Early stopping: when it stops, which parameters it keeps, and how it goes on."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import rnnkern as rk


def model(seed=0):
    own = {"w": np.arange(3.0)}
    return {"gru": rk.GRU(3, 5, seed=seed), "head": rk.Linear(5, 2, seed=seed), "own": own}


def bits(parts):
    arrays = {n: p if isinstance(p, dict) else p.params for n, p in parts.items()}
    return {(n, k): a.tobytes() for n, own in arrays.items() for k, a in own.items()}


def updates(stopping, values):
    return [stopping.update(value, rk.Linear(1, 1)) for value in values]


def test_it_stops_after_as_many_updates_without_a_better_metric_as_its_patience():
    stopping = rk.EarlyStopping(patience=2)
    assert updates(stopping, [3, 2, 2, 1, 1, 1]) == [False] * 5 + [True]
    assert (stopping.best, stopping.waited, stopping.stop) == (1.0, 2, True)
    assert updates(stopping, [0.5]) == [False]  # goes on if it is asked to


def test_it_heeds_its_mode_and_its_threshold():
    stopping = rk.EarlyStopping(2, min_delta=0.5, mode="max")
    assert updates(stopping, [1, 1.5, 1.6, 2.1]) == [False, False, False, False]
    assert (stopping.best, stopping.waited) == (1.6, 1)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_never_better(mode):
    stopping = rk.EarlyStopping(9, mode=mode)
    updates(stopping, [math.nan, math.inf, -math.inf, math.nan])
    assert stopping.best == (-math.inf if mode == "min" else math.inf)
    assert stopping.waited == (1 if mode == "min" else 2)


def test_it_restores_the_best_parameters_in_place():
    parts = model()
    stopping, best = rk.EarlyStopping(5), bits(parts)
    arrays = list(parts["gru"].params.values())
    stopping.update(1.0, parts)
    for own in (*arrays, parts["own"]["w"]):
        own += 1
    stopping.update(1.0, parts)
    stopping.restore(parts)
    assert bits(parts) == best
    assert all(a is b for a, b in zip(arrays, parts["gru"].params.values(), strict=True))


@pytest.mark.parametrize("one", [rk.Linear(3, 2), {"w": np.arange(3.0)}])
def test_it_takes_what_optimizers_take(one):
    stopping, arrays = rk.EarlyStopping(5), getattr(one, "params", one)
    before = {name: array.copy() for name, array in arrays.items()}
    stopping.update(1.0, one)
    for array in arrays.values():
        array += 1
    stopping.restore(one)
    assert all(np.array_equal(array, before[name]) for name, array in arrays.items())


def test_a_model_with_other_arrays_is_refused_and_nothing_written():
    stopping = rk.EarlyStopping(5)
    with pytest.raises(ValueError, match=r"^restore: expected an update with a finite metric"):
        stopping.restore(model())
    stopping.update(1.0, model())
    read_only = model(1)
    read_only["own"]["w"].flags.writeable = False
    for wrong, message in [
        ({**model(1), "head": rk.Linear(5, 3)}, r"^model: 'head.weight': expected shape \(2, 5\)"),
        ({"gru": rk.GRU(3, 5)}, r"^model: expected the parameters \['gru.weight_ih_l0'"),
        ({**model(1), "own": {"w": np.zeros(3, "f4")}}, r"^model: 'own.w': expected an array of d"),
        (read_only, r"^model: 'own.w': expected a writable array, got a read-only one"),
    ]:
        before = bits(wrong)
        with pytest.raises((TypeError, ValueError), match=message):
            stopping.restore(wrong)
        assert bits(wrong) == before


@pytest.mark.parametrize("value", ["1", None, True, np.zeros(2), 1j])
def test_a_wrong_metric_is_refused_and_nothing_changed(value):
    stopping = rk.EarlyStopping(5)
    with pytest.raises(TypeError, match=r"^value: expected a number, got"):
        stopping.update(value, model())
    assert (stopping.waited, stopping.best) == (0, math.inf)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, r"^model: expected a layer, a module or a dict of arrays, got int"),
        ({"a.b": rk.Linear(1, 1)}, r"^model: expected names of groups without '.' and '/'"),
        ({"a": rk.Linear(1, 1), "b": 3}, r"^model\['b'\]: expected a layer, a module or a dict"),
        ({"a": {"w": [1.0]}}, r"^model\['a'\]\['w'\]: expected an array, got list"),
        ({"a": {"w": np.ma.zeros(3)}}, r"^model\['a'\]\['w'\]: expected an array without a mask"),
    ],
)
def test_a_wrong_model_is_refused(wrong, message):
    stopping = rk.EarlyStopping(5)
    for call in (lambda: stopping.update(1.0, wrong), lambda: rk.num_parameters(wrong)):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert stopping.best == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "patience: expected an integer of at least 1"),
        ((1, -0.5), "min_delta: expected a finite number >= 0"),
        ((1, 0.0, "mean"), "mode: expected one of min, max"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        rk.EarlyStopping(*arguments)


def test_a_state_goes_on():
    stopping, again, parts = rk.EarlyStopping(3), rk.EarlyStopping(3), model()
    again.load_state_dict(stopping.state_dict())  # of nothing yet
    best = bits(parts)
    stopping.update(1.0, parts)
    stopping.update(2.0, parts)
    again.load_state_dict(stopping.state_dict())
    assert (again.best, again.waited) == (1.0, 1)
    other = model(1)
    again.restore(other)
    assert bits(other) == best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": np.array(np.nan)}, r"^state\['best'\]: expected a metric, got nan"),
        ({"best": np.array(1)}, r"^state\['best'\]: expected an array of dtype float64"),
        ({"waited": np.array(-1)}, r"^state\['waited'\]: expected an integer of at least 0"),
        ({"waited": np.zeros(2, int)}, r"^state\['waited'\]: expected shape \(\)"),
        ({"more": np.array(1)}, "^state: expected best, waited and names that begin with 'params"),
        (
            {"params.w": np.arange(3)},
            r"^state\['params.w'\]: expected an array of dtype float32 or",
        ),
        ({"params.w": 1.0}, r"^state\['params.w'\]: expected an array of dtype float32 or"),
    ],
)
def test_a_wrong_state_is_refused_and_nothing_changed(change, message):
    stopping = rk.EarlyStopping(3)
    stopping.update(1.0, rk.Linear(3, 2))
    before = stopping.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        stopping.load_state_dict(before | change)
    assert {n: a.tobytes() for n, a in stopping.state_dict().items()} == {
        n: a.tobytes() for n, a in before.items()
    }


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_go_on_by_themselves(copied):
    stopping, parts = rk.EarlyStopping(3), model()
    stopping.update(1.0, parts)
    twin = copied(stopping)
    stopping.update(0.5, model(1))
    assert (twin.best, twin.waited) == (1.0, 0)
    other = model(1)
    twin.restore(other)
    assert bits(other) == bits(parts)


def test_parameters_are_counted_once_where_they_are_tied():
    emb, out = rk.Embedding(9, 5), rk.Linear(5, 9)
    parts = {"emb": emb, "gru": rk.GRU(5, 5), "out": out}
    count = emb.num_parameters + parts["gru"].num_parameters + out.num_parameters
    assert rk.num_parameters(parts) == count
    out.params["weight"] = emb.params["weight"]
    assert rk.num_parameters(parts) == count - 45
    assert rk.num_parameters(out) == out.num_parameters
    assert rk.num_parameters({"w": np.zeros((3, 4))}) == 12
    assert rk.num_parameters({"a": {"w": np.zeros(0)}, "b": {"w": np.zeros(2)}}) == 2
