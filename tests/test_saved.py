"""A layer in a file: what comes back, who else reads it, and what is refused."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
import pytest
from helpers import KINDS, MAKERS, in_each_dtype, make_layer, random_problem
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors
from safetensors import safe_open

import rnnkern as rk
from rnnkern import files


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


def attributes(layer):
    """All that a layer tells, but for its arrays."""
    names = [n for n in dir(layer) if n[0] != "_" and not callable(getattr(layer, n))]
    return {n: getattr(layer, n) for n in names if n != "params"}


# ------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": np.float64},
        {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "residual": True},
        {"bidirectional": True},
        {"reverse": True},
        {"ensemble": 3, "num_layers": 2, "dropout": 0.25},
    ],
)
def test_a_layer_comes_back(path, kind, options):
    if kind == "rg_lru":  # which has two layers or directions only where they fit
        options = {n: v for n, v in options.items() if n != "bidirectional"}
    layer = make_layer(kind, 5, 5, **options)
    x = random_problem(layer.member(0) if layer.ensemble else layer, 4, 2).x
    layer.forward(x)  # so that the next masks are not the first
    layer.save(path)
    again = rk.load(path)
    assert type(again) is type(layer)
    assert attributes(again) == attributes(layer)
    assert list(again.params) == list(layer.params)
    assert all(np.array_equal(again.params[n], a) for n, a in layer.params.items())
    assert np.array_equal(again(x)[0], layer(x)[0])
    assert np.array_equal(again.forward(x)[0], layer.forward(x)[0])  # with the same masks


def test_every_maker_has_an_option_or_a_class_of_its_own(path):
    """So the test above would fail if an option were not saved."""
    saved = set()
    for kind in MAKERS:
        make_layer(kind, 5, 5, seed=None).save(path)
        with files.Reader(path) as file:
            saved.add(file.metadata["rnnkern"])
    assert len(saved) == len(MAKERS)


def test_options_of_first_values_alone_are_not_saved(path):
    rk.LSTM(3, 5, forget_bias=2.0, seed=3, init="orthogonal").save(path)
    assert repr(rk.load(path)) == "LSTM(3, 5)"
    with files.Reader(path) as file:
        assert json.loads(file.metadata["rnnkern"]) == {
            "version": 1,
            "class": "LSTM",
            "arguments": {"input_size": 3, "hidden_size": 5},
        }


def test_constants_of_activations_are_any_numbers(path):
    for alpha in (np.float32(0.25), Fraction(1, 4), 0.25, np.int64(2)):
        layer = rk.RNN(3, 5, activations=(("LeakyRelu", alpha),))
        layer.save(path)
        assert rk.load(path).activations == layer.activations


def test_a_subclass_comes_back_as_the_class(path):
    class Mine(rk.GRU):
        pass

    Mine(3, 5, reset_after=False).save(path)
    again = rk.load(path)
    assert type(again) is rk.GRU
    assert not again.reset_after


def test_a_member_is_saved_alone(path):
    layer = rk.GRU(3, 5, ensemble=4).member(2)
    layer.save(path)
    assert rk.load(path).ensemble is None
    assert np.array_equal(rk.load(path).params["weight_hh_l0"], layer.params["weight_hh_l0"])


def test_a_save_replaces_all_or_nothing(path):
    rk.GRU(3, 5).save(path)
    layer = rk.LSTM(3, 5)
    layer.params["weight_ih_l0"] = np.zeros(3)
    with pytest.raises(TypeError, match=r"params\['weight_ih_l0'\]: expected"):
        layer.save(path)
    assert repr(rk.load(path)) == "GRU(3, 5)"


# ------------------------------------------------------------------------------- who else reads it


def test_the_safetensors_package_reads_names_and_configuration(path):
    layer = rk.LSTM(3, 5, num_layers=2, bidirectional=True)
    layer.save(path)
    arrays = safetensors.load_file(path)
    assert arrays.keys() == layer.state_dict().keys()
    assert all(np.array_equal(arrays[n], a) for n, a in layer.params.items())
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["rnnkern"])
    assert about["arguments"] == {
        "input_size": 3,
        "hidden_size": 5,
        "num_layers": 2,
        "bidirectional": True,
    }


# PyTorch says so once in a process; its own implementation computes the same.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 3}),
        ("GRU", {"bidirectional": True}),
    ],
)
@in_each_dtype
def test_pytorch_loads_the_file(path, name, own, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    load_file = pytest.importorskip("safetensors.torch").load_file
    layer = getattr(rk, name)(5, 7, num_layers=2, dtype=dtype, **own)
    layer.save(path)
    with safe_open(path, "numpy") as file:
        arguments = json.loads(file.metadata()["rnnkern"])["arguments"]
    arguments["dtype"] = getattr(torch, np.dtype(dtype).name)
    module = getattr(torch.nn, name)(**arguments)  # whose arguments have the same names
    module.load_state_dict(load_file(path))
    x = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(dtype)
    with torch.no_grad():
        want = module(torch.from_numpy(x))[0].numpy()
    # Sums of 12 terms over 12 steps and layers, with outputs below 1 but for the relu's: the error
    # measured is below 4 units of the dtype; 100 allow for another order of sums.
    np.testing.assert_allclose(layer(x)[0], want, rtol=0, atol=100 * np.finfo(dtype).eps)


# --------------------------------------------------------------------------------- what is refused

GOOD = {"version": 1, "class": "GRU", "arguments": {"input_size": 3, "hidden_size": 5}}


def but(**changes):
    return json.dumps(GOOD | changes)


def given_arguments(cls="GRU", **arguments):
    return but(**{"class": cls, "arguments": GOOD["arguments"] | arguments})


DEEP = "got maximum recursion" if sys.version_info < (3, 14) else "got Stack overflow"
REFUSED = {
    "no JSON": ("{", "expected 'rnnkern' in JSON, got Expecting"),
    "deep": ("[" * 10**5, f"expected 'rnnkern' in JSON, {DEEP}"),
    "name twice": ('{"version":1,"version":2}', "each name once, got 'version' again"),
    "long integer": ('{"version":' + "1" * 5000 + "}", "expected 'rnnkern' in JSON, got Exceeds"),
    "a list": ("[]", "expected version, class and arguments, or parts, as 'rnnkern' in the"),
    "a key missing": ('{"version":1,"class":"GRU"}', "expected version, class and arguments"),
    "a key more": (but(more=1), "expected version, class and arguments"),
    "version 2": (but(version=2), "expected version 1 of 'rnnkern', got 2"),
    "version true": (but(version=True), "expected version, class and arguments"),
    "version text": (but(version="1"), "expected version, class and arguments"),
    "unknown class": (
        but(**{"class": "QRNN"}),
        "expected one of the classes GRU, IndRNN, LSTM, MinGRU, MinLSTM, RGLRU, RNN, SLSTM, ",
    ),
    "a class that is no layer": (but(**{"class": "Adam"}), ", got Adam"),
    "a class with escapes": (but(**{"class": "\x1b[2J"}), ", got ?[2J"),
    "class null": (but(**{"class": None}), ", got None"),
    "class list": (but(**{"class": ["GRU"]}), ", got ['GRU']"),
    "arguments list": (but(arguments=[3, 5]), "expected arguments of GRU by name, got [3, 5]"),
    "no input_size": (
        but(arguments={"hidden_size": 5}),
        "expected input_size among the arguments of GRU, got ['hidden_size']",
    ),
    "unknown option": (given_arguments(dropuot=0.1), "expected options of GRU, got dropuot"),
    "another class's option": (given_arguments(heads=2), "expected options of GRU, got heads"),
    "self": (given_arguments(self=1), "expected options of GRU, got self"),
    "params": (given_arguments(params={}), "expected options of GRU, got params"),
    "seed": (given_arguments(seed=1), "expected options of GRU, got seed"),
    "init": (given_arguments(init="zeros"), "expected options of GRU, got init"),
    "many layers": (
        given_arguments(num_layers=5),
        "expected num_layers of at most 4, the number of arrays, got 5",
    ),
    "layers without end": (given_arguments(num_layers=2**61), "expected num_layers of at most 4"),
    "layers 1.0": (given_arguments(num_layers=1.0), "expected num_layers of at most 4"),
    "no layer": (given_arguments(num_layers=0), "num_layers: expected an integer of at least 1"),
    "size text": (given_arguments(hidden_size="5"), "hidden_size: expected an integer, got str"),
    "size true": (given_arguments(hidden_size=True), "hidden_size: expected an integer, got bool"),
    "size list": (given_arguments(hidden_size=[5]), "hidden_size: expected an integer, got tuple"),
    "size negative": (given_arguments(input_size=-3), "input_size: expected an integer of at"),
    "another size": (given_arguments(input_size=4), "other shapes weight_ih_l0 (15, 3) for (15, 4"),
    "size 2**60": (given_arguments(hidden_size=2**60), "sizes: expected a product that memory"),
    "more layers": (given_arguments(num_layers=2), "params: expected the arrays of this GRU"),
    "another dtype": (given_arguments(dtype="float64"), "expected an array of dtype float64"),
    "dtype text": (given_arguments(dtype="O"), "dtype: expected float32 or float64, got object"),
    "dtype null": (given_arguments(dtype=None), "dtype: expected float32 or float64, got None"),
    "dropout nan": (given_arguments(dropout=float("nan")), "dropout: expected a number from 0"),
    "flag 1": (given_arguments(reset_after=1), "reset_after: expected True or False, got int"),
    "unknown activation": (
        given_arguments(activations=["Sigmoid", "Magic"]),
        "activations[1]: expected one of",
    ),
    "activation deep": (
        given_arguments(activations=["Sigmoid", [["Tanh"]]]),
        "activations[1]: expected a name, or a tuple of a name and constants, got tuple",
    ),
    "ensemble without end": (given_arguments(ensemble=2**61), "sizes: expected a product that"),
    "the arrays of another": (given_arguments("LSTM"), "params: expected the arrays of this LSTM"),
}


def write(path, about, dropout='{"seeds": [1], "step": 0}'):
    files.save(path, rk.GRU(3, 5).params, {"rnnkern": about, "dropout_state": dropout})


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_is_not_as_saved_is_refused(path, name):
    about, message = REFUSED[name]
    write(path, about)
    with pytest.raises(files.FileError) as caught:
        rk.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.isprintable()
    assert len(text) < len(str(path)) + 500


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ("", "expected 'dropout_state' in JSON"),
        ("[]", "dropout_state: expected a dict of seeds and step, got list"),
        ('{"seeds": [1]}', "dropout_state: expected the keys seeds and step"),
        ('{"seeds": [1, 2], "step": 0}', "dropout_state['seeds']: expected a list of 1, got 2"),
        ('{"seeds": [1], "step": -1}', "dropout_state['step']: expected an integer from 0"),
    ],
)
def test_a_state_of_dropout_that_is_not_as_saved_is_refused(path, dropout, message):
    write(path, json.dumps(GOOD), dropout)
    with pytest.raises(files.FileError) as caught:
        rk.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_without_configuration_is_refused(path):
    files.save(path, rk.GRU(3, 5))
    said = r"expected 'rnnkern' in the metadata, as layer.save writes it \(rnnkern.from_state_dict"
    with pytest.raises(files.FileError, match=said):
        rk.load(path)
    files.save(path, rk.GRU(3, 5).state_dict(), {"rnnkern": json.dumps(GOOD)})
    with pytest.raises(files.FileError, match="expected 'dropout_state' in the metadata"):
        rk.load(path)


def test_what_is_no_file_of_arrays_is_refused_as_by_files_load(path):
    path.write_bytes(b"not a model at all")
    with pytest.raises(files.FileError, match="expected a header of at most 1048576 bytes"):
        rk.load(path)
    with pytest.raises(FileNotFoundError):
        rk.load(path.with_name("missing"))
    for call in (rk.load, rk.GRU(3, 5).save):
        with pytest.raises(TypeError, match=r"^path: expected a str or a path, got int$"):
            call(3)


NUMBERS = (0, 1, 2, 3, 5, -1, 0.5, 1.0, -0.0, 1e308, float("inf"), float("nan"))
NUMBERS += (2**31, 2**32 + 1, 2**61, 2**62, 2**63, 2**64 - 1, 2**64, 10**400)
JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.text(max_size=4),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part),
    max_leaves=5,
)
NAMES = ("input_size", "hidden_size", "num_layers", "bias", "dropout", "dtype", "ensemble")
NAMES += ("heads", "proj_size", "activations", "zoneout", "candidate", "layer_norm")


@given(
    st.sampled_from(["GRU", "LSTM", "RNN", "SLSTM", "RGLRU", "MinGRU"]),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
)
def test_random_arguments_are_refused_or_give_the_layer(tmp_path_factory, cls, arguments):
    path = tmp_path_factory.getbasetemp() / "random"
    write(path, given_arguments(cls, **arguments))
    try:
        layer = rk.load(path)
    except files.FileError as error:
        layer, said = None, str(error)
    if layer is None:
        assert said.startswith(f"{path}: ")
    else:
        with files.Reader(path) as file:
            assert file.specs == {n: (a.dtype, a.shape) for n, a in layer.params.items()}
