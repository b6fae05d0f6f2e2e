"""Models and runs in one file: what comes back, what goes on, and what is refused."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pytest
from safetensors import numpy as safetensors
from test_files import write

import rnnkern as rk
from rnnkern import files, saved

MODULES = {  # one of each class, with options that are no defaults
    "Attention": lambda **more: rk.Attention(
        5, 7, kind="additive", hidden_size=3, dtype=np.float64, **more
    ),
    "CRF": lambda **more: rk.CRF(3, forbidden=[(0, 2), (None, 2)], dtype=np.float64, **more),
    "Dropout": lambda **more: rk.Dropout(0.25, variational=True, **more),
    "Embedding": lambda **more: rk.Embedding(
        7, 3, padding_idx=0, sparse=True, dtype=np.float64, **more
    ),
    "LayerNorm": lambda **more: rk.LayerNorm(5, 0.5, bias=False, dtype=np.float64),
    "Linear": lambda **more: rk.Linear(5, 7, bias=False, dtype=np.float64, **more),
    "Pooling": lambda **more: rk.Pooling("ends"),
}
X = [np.random.default_rng(i).integers(0, 7, 3 + i % 5) for i in range(20)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def make(seed=None, lr=None):
    """A whole run."""
    model = {
        "emb": rk.Embedding(7, 3, seed=seed),
        "gru": rk.GRU(3, 5, 2, dropout=0.5, seed=seed),
        "head": rk.Linear(5, 7, seed=seed),
        "own": {"scale": np.ones(7, np.float32)},
    }
    rest = {
        "opt": rk.Adam(model, lr=lr or rk.schedules.Plateau(0.1, patience=0)),
        "batches": rk.Batches(X, batch_size=4, seed=seed),
        "stopping": rk.EarlyStopping(3),
    }
    return {**model, **rest}


def train(run, steps):
    """As many steps; the loss is one of nothing but arithmetic."""
    while steps:
        for batch in run["batches"]:
            ids, lengths = batch.x, batch.lengths
            x, emb_tape = run["emb"].forward(ids)
            y, _, gru_tape = run["gru"].forward(x, lengths=lengths)
            logits, head_tape = run["head"].forward(y)
            loss, dlogits = rk.cross_entropy(logits * run["own"]["scale"], ids, mask=batch.mask)
            of_head = run["head"].backward(head_tape, dlogits * run["own"]["scale"])
            of_gru = run["gru"].backward(gru_tape, of_head.x)
            of_own = {"scale": (dlogits * logits).sum((0, 1))}
            of_emb = run["emb"].backward(emb_tape, of_gru.x)
            run["opt"].step({"emb": of_emb, "gru": of_gru, "head": of_head, "own": of_own})
            run["opt"].schedule.report(loss)
            run["stopping"].update(loss, {n: run[n] for n in ("emb", "gru", "head")})
            steps -= 1
            if not steps:
                return


def contents(run):
    """All that a run holds, to the bit."""
    found = {}
    for name, part in run.items():
        state = part if isinstance(part, dict) else part.state_dict()
        found |= {f"{name}.{key}": (a.dtype, a.shape, a.tobytes()) for key, a in state.items()}
    return found | {"dropout": run["gru"].dropout_state}


def test_a_run_goes_on_with_the_same_bits_from_the_middle_of_an_epoch(path):
    run, again = make(seed=1), make(seed=2)
    train(run, 7)
    rk.save(path, run, {"epoch": "1"})
    assert rk.restore(path, again) == {"epoch": "1"}
    assert contents(again) == contents(run)
    train(run, 9)
    train(again, 9)
    assert contents(again) == contents(run)


def test_load_makes_the_layers_and_modules_alone(path):
    run = make(seed=1)
    run["gru"].dropout_step = 4
    rk.save(path, run)
    again = rk.load(path)
    assert list(again) == ["emb", "gru", "head"]
    assert {n: repr(p) for n, p in again.items()} == {
        n: repr(run[n]).replace(", seed=1", "") for n in again
    }
    assert again["gru"].dropout_state == run["gru"].dropout_state
    for name, part in again.items():
        assert all(np.array_equal(a, run[name].params[key]) for key, a in part.params.items())


def test_a_tied_array_takes_one_value(path):
    def parts(tied):
        model = {"a": rk.Linear(3, 3), "b": rk.Linear(3, 3), "own": {"w": np.full(0, 1.0)}}
        if tied:
            model["b"].params["weight"] = model["a"].params["weight"]
        return model

    run, loose = parts(tied=True), parts(tied=False)
    before = run["a"].state_dict() | run["b"].state_dict("b.")
    rk.save(path, loose)
    said = r": expected one value for a.weight and b.weight, the same array in the run, got two$"
    with pytest.raises(rk.files.FileError, match=said):
        rk.restore(path, run)
    for key, array in (run["a"].state_dict() | run["b"].state_dict("b.")).items():
        assert np.array_equal(array, before[key])
    rk.save(path, run)
    run["a"].params["weight"] += 1
    assert rk.restore(path, run) == {}
    assert np.array_equal(run["b"].params["weight"], before["weight"])


def test_names_in_the_file_are_pytorchs(path):
    rk.save(path, {"rnn": rk.GRU(3, 5, seed=0), "fc": rk.Linear(5, 2)})
    names = ["fc.bias", "fc.weight", "rnn.bias_hh_l0", "rnn.bias_ih_l0"]
    assert sorted(safetensors.load_file(path)) == [*names, "rnn.weight_hh_l0", "rnn.weight_ih_l0"]
    assert isinstance(rk.from_state_dict(files.load(path), "rnn."), rk.GRU)
    with files.Reader(path) as file:
        about = json.loads(file.metadata["rnnkern"])
    assert about == {
        "version": 1,
        "parts": {
            "rnn": {"class": "GRU", "arguments": {"input_size": 3, "hidden_size": 5}},
            "fc": {"class": "Linear", "arguments": {"in_features": 5, "out_features": 2}},
        },
    }


def test_each_class_of_a_module_is_tested_here():
    assert list(MODULES) == sorted(saved.MODULE_CLASSES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_comes_back_with_its_options(path, name):
    module = MODULES[name](seed=1)
    arguments = set(inspect.signature(type(module)).parameters) - {"seed", "params"}
    module.save(path)
    with files.Reader(path) as file:
        assert set(json.loads(file.metadata["rnnkern"])["arguments"]) == arguments
    rk.save(path.with_name("two"), {"a": module, "b": rk.Linear(1, 1)})
    for again in (rk.load(path), rk.load(path.with_name("two"))["a"]):
        assert type(again) is type(module)
        assert all(getattr(again, n) == getattr(module, n) for n in arguments)
        assert all(np.array_equal(a, module.params[n]) for n, a in again.params.items())
        assert getattr(again, "dropout_state", 0) == getattr(module, "dropout_state", 0)


def test_parts_without_parameters_are_saved_and_stepped(path):
    model = {"rnn": rk.GRU(3, 4), "drop": rk.Dropout(0.5, seed=1), "pool": rk.Pooling("max")}
    opt = rk.Adam(model)
    model["drop"].forward(np.ones((2, 1, 3), np.float32))
    y, _, tape = model["rnn"].forward(np.ones((2, 1, 3), np.float32))
    assert opt.step({"rnn": model["rnn"].backward(tape, y)}).applied
    rk.save(path, {**model, "opt": opt})
    again = rk.load(path)
    assert repr(again) == repr(model).replace("seed=1", "")
    assert again["drop"].dropout_state == model["drop"].dropout_state
    assert rk.num_parameters(model) == model["rnn"].num_parameters


def test_parts_of_a_file_can_be_restored(path):
    run, again = make(seed=1), make(seed=2)
    rk.save(path, run)
    before = contents(again)
    rk.restore(path, {"head": again["head"], "own": again["own"]})
    after, want = contents(again), contents(run)
    for name in before:
        fresh = name.startswith(("head.", "own."))
        assert after[name] == (want if fresh else before)[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": rk.Linear(5, 7, bias=False)}, "head: expected {'class': 'Linear', 'arguments'"),
        ({"head": rk.GRU(5, 7)}, "head: expected {'class': 'GRU', 'arguments'"),
        ({"gru": rk.GRU(3, 5, 2, dropout=0.5, reset_after=False)}, "gru: expected {'class': 'GRU'"),
        ({"own": {"scale": np.ones(7)}}, "own: expected 'scale' as float64 (7,), got float32 (7,)"),
        ({"own": {"shift": np.ones(7, "f4")}}, "own: expected the arrays ['shift'], got ['scale']"),
        (
            {"opt": rk.SGD({"w": np.ones(3)}, 0.1)},
            "opt: state: expected one of SGD, got one of Adam",
        ),
        ({"batches": rk.Batches(X, batch_size=5)}, "batches: state['settings']: expected [20, "),
        ({"stopping": rk.Batches(X, batch_size=5)}, "stopping: state: expected the names ['seed'"),
        ({"more": rk.Linear(1, 1)}, "expected names that begin with 'more.', got none"),
        ({"opt2": rk.Linear(1, 1)}, "expected names that begin with 'opt2.', got none"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_and_nothing_written(path, change, message):
    rk.save(path, make(seed=1))
    again = make(seed=2)
    before = contents(again)
    with pytest.raises(files.FileError, match="^" + re.escape(f"{path}: {message}")):
        rk.restore(path, {**again, **change})
    assert contents(again) == before


def test_a_read_only_array_is_refused_and_nothing_written(path):
    rk.save(path, make(seed=1))
    again = make(seed=2)
    before = contents(again)
    for array in (again["own"]["scale"], again["head"].params["bias"]):
        array.flags.writeable = False
        with pytest.raises(files.FileError, match="to be writable in the run, got a read-only arr"):
            rk.restore(path, again)
        array.flags.writeable = True
    assert contents(again) == before


def test_a_file_without_classes_or_of_one_layer_is_refused(path):
    files.save(path, {"head": rk.Linear(5, 2)})
    with pytest.raises(files.FileError, match="expected 'rnnkern' in the metadata"):
        rk.restore(path, {"head": rk.Linear(5, 2)})
    rk.Linear(5, 2).save(path)
    with pytest.raises(files.FileError, match="expected a file of several parts, as"):
        rk.restore(path, {"head": rk.Linear(5, 2)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            rk.Linear(1, 1),
            "model: expected a dict of layers, modules, optimizers and others with a",
        ),
        ({}, "model: expected a dict of layers, modules, optimizers and others with a"),
        ({"a.b": rk.Linear(1, 1)}, "model: expected names of groups without '.' and '/'"),
        (
            {"a": 3},
            "model['a']: expected a layer, a module, a dict of arrays or an object with a s",
        ),
        (
            {"a": np.ones(3)},
            "model['a']: expected a layer, a module, a dict of arrays or an object",
        ),
        ({"a": {"w": [1.0]}}, "model['a']['w']: expected an array, got list"),
    ],
)
def test_what_is_no_model_is_refused_and_nothing_written(path, model, message):
    for call in (rk.save, rk.restore):
        with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
            call(path, model)
        assert not path.exists()
        if "'w'" in message:
            break  # restore looks into the file first


def test_metadata_has_no_name_of_the_files_own(path):
    for metadata, error in (({"rnnkern": ""}, ValueError), ([], TypeError)):
        with pytest.raises(error, match=r"^metadata: expected"):
            rk.save(path, {"a": rk.Linear(1, 1)}, metadata)
    gru = rk.GRU(1, 1, 2)
    with pytest.raises(ValueError, match=r"^metadata: expected no 'a.dropout_state'"):
        rk.save(path, {"a": gru}, {"a.dropout_state": ""})
    assert not path.exists()


PART = {"class": "Linear", "arguments": {"in_features": 5, "out_features": 2}}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "expected parts by name, got []"),
        ({"a": []}, "expected class and arguments of 'a', got []"),
        ({"a": {**PART, "more": 1}}, "expected class and arguments of 'a', got {"),
        ({"a": {**PART, "class": "Adam"}}, "expected one of the classes GRU, "),
        ({"a": {**PART, "arguments": {}}}, "expected in_features among the arguments of Linear"),
        ({"a": {**PART, "arguments": {**PART["arguments"], "seed": 1}}}, "expected options of Lin"),
        (
            {"a": {**PART, "arguments": {"in_features": 10**12, "out_features": 10**12}}},
            "a: params",
        ),
        ({"a": PART, "b": PART}, "expected names that begin with 'b.', got none"),
    ],
)
def test_parts_that_are_not_as_saved_are_refused(path, parts, message):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    about = {"__metadata__": {"rnnkern": json.dumps({"version": 1, "parts": parts})}}
    write(path, {**about, "a.weight": entry}, bytes(4))
    with pytest.raises(files.FileError, match="^" + re.escape(f"{path}: {message}")):
        rk.load(path)
