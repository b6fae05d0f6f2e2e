"""Parameters from elsewhere: state dicts in and out, and layers made from them."""

from __future__ import annotations

import numpy as np
import pytest
from attacks import Tensor
from helpers import KINDS, in_each, in_each_dtype, make_layer, random_problem

import rnnkern as rk
from rnnkern.layers import LAYERS

I, H = 3, 4
every_kind = pytest.mark.parametrize("kind", KINDS)


def same(one, other):
    assert list(one) == list(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def bfloat16(values):
    """Rounded to bfloat16 toward zero, in float32."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


# ---- state_dict and load_state_dict ------------------------------------------------------------


@every_kind
@in_each_dtype
@pytest.mark.parametrize("options", [{"num_layers": 2, "bidirectional": True}, {"ensemble": 2}])
def test_a_state_dict_is_all_that_another_layer_needs(kind, dtype, options):
    one, other = (make_layer(kind, I, H, dtype=dtype, seed=s, **options) for s in (1, 2))
    state = one.state_dict()
    assert same(state, one.params)
    assert not any(np.shares_memory(state[name], one.params[name]) for name in state)
    before = {name: id(values) for name, values in other.params.items()}
    assert other.load_state_dict(state) == ([], [])
    assert same(other.params, one.params)
    assert {name: id(values) for name, values in other.params.items()} == before  # in place


def test_a_prefix_is_one_module_s():
    enc, dec = rk.GRU(I, H, seed=1), rk.GRU(I, H, seed=2)
    model = enc.state_dict("enc.") | dec.state_dict(prefix="dec.") | {"w": np.zeros(3, int)}
    layer = rk.GRU(I, H, seed=3)
    assert layer.load_state_dict(model, "dec.") == ([], [])
    assert same(layer.params, dec.params)
    layer.load_state_dict(model, prefix="enc.")
    assert same(layer.params, enc.params)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_cell_s_names_have_no_layer(bidirectional):
    one = rk.LSTM(I, H, bidirectional=bidirectional, seed=1)
    cell = {name.replace("_l0", ""): values for name, values in one.params.items()}
    other = rk.LSTM(I, H, bidirectional=bidirectional, seed=2)
    other.load_state_dict(cell)
    assert same(other.params, one.params)
    deep = rk.LSTM(I, H, num_layers=2)
    with pytest.raises(ValueError, match=r"missing weight_ih_l0, .*; extra weight_ih, weight_hh"):
        deep.load_state_dict(cell)


def test_what_is_missing_extra_or_of_another_shape_is_listed():
    layer = rk.GRU(I, H, seed=0)
    before = layer.state_dict()
    state = layer.state_dict("rnn.")
    del state["rnn.bias_hh_l0"]
    state |= {"rnn.weight_ih_l0": np.ones((12, 1), np.float32), "rnn.more": np.ones(2)}
    said = (
        r"^mapping: expected the arrays of GRU\(3, 4, seed=0\), got missing rnn.bias_hh_l0; "
        r"extra rnn.more; other shapes rnn.weight_ih_l0 \(12, 1\) for \(12, 3\)$"
    )
    with pytest.raises(ValueError, match=said):
        layer.load_state_dict(state, "rnn.")
    with pytest.raises(ValueError, match=r"^mapping: .*, got other shapes rnn.weight_ih_l0"):
        layer.load_state_dict(state, "rnn.", strict=False)
    assert same(layer.params, before)
    many = {f"extra{i}": np.ones(1) for i in range(100)} | layer.state_dict()
    with pytest.raises(ValueError, match=r"extra0, .*extra7 and 92 more$"):
        layer.load_state_dict(many)


def test_without_strict_the_rest_stays():
    layer = rk.GRU(I, H, seed=0)
    before = layer.state_dict()
    given = {"bias_ih_l0": np.full(12, 7, np.float32), "head": np.zeros(2)}
    missing, extra = layer.load_state_dict(given, strict=False)
    assert missing == ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"]
    assert extra == ["head"]
    assert (layer.params["bias_ih_l0"] == 7).all()
    assert same(layer.params, before | {"bias_ih_l0": given["bias_ih_l0"]})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_are_cast_when_asked(dtype):
    layer = rk.GRU(I, H, seed=0)
    state = {name: values.astype(dtype) for name, values in layer.state_dict().items()}
    got = np.dtype(dtype)
    said = rf"^mapping\['weight_ih_l0'\]: expected an array of dtype float32, got {got} \(pass cast"
    with pytest.raises(TypeError, match=said):
        layer.load_state_dict(state)
    layer.load_state_dict(state, cast=True)
    assert all((layer.params[name] == v.astype(np.float32)).all() for name, v in state.items())
    state["bias_hh_l0"] = np.full(12, np.finfo(dtype).max)
    if dtype == np.float64:
        said = r"mapping\['bias_hh_l0'\]: expected values that float32 can hold, got larger ones"
        with pytest.raises(ValueError, match=said):
            layer.load_state_dict(state, cast=True)
    for wrong in (np.zeros(12, int), np.zeros(12, bool), np.zeros(12, complex), np.full(12, "a")):
        with pytest.raises(TypeError, match=r"mapping\['bias_hh_l0'\]: expected an array of dtype"):
            layer.load_state_dict(state | {"bias_hh_l0": wrong}, cast=True)


def test_tensors_are_read():
    layer, other = rk.GRU(I, H, seed=0), rk.GRU(I, H, seed=1)
    state = {n: Tensor(v, requires_grad=True) for n, v in layer.state_dict().items()}
    other.load_state_dict(state)
    assert same(other.params, layer.params)
    rounded = {n: Tensor(bfloat16(v), "torch.bfloat16") for n, v in layer.state_dict().items()}
    with pytest.raises(TypeError, match=r"weight_ih_l0'\]: expected .* float32, got bfloat16 \(pa"):
        other.load_state_dict(rounded)
    other.load_state_dict(rounded, cast=True)
    assert all((other.params[n] == bfloat16(v)).all() for n, v in layer.params.items())


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[:],
        memoryview,
        Tensor,
        lambda a: np.frombuffer(a, a.dtype).reshape(a.shape),
        lambda a: np.ctypeslib.as_array(np.ctypeslib.as_ctypes(a)),
    ],
    ids=["same", "view", "memoryview", "tensor", "frombuffer", "ctypes"],
)
def test_a_layer_s_own_arrays_may_be_exchanged(view):
    layer = rk.GRU(H, H, num_layers=2, seed=0)
    before = layer.state_dict()
    exchanged = {n: n.translate({ord("0"): "1", ord("1"): "0"}) for n in layer.params}
    layer.load_state_dict({n: view(layer.params[other]) for n, other in exchanged.items()})
    for name, values in layer.params.items():
        assert np.array_equal(values, before[name.translate({ord("0"): "1", ord("1"): "0"})])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mapping": [1]}, TypeError, "mapping: expected a mapping of names to arrays, got list"),
        ({"mapping": {1: 2}}, TypeError, "mapping: expected names of type str, got int"),
        ({"prefix": 1}, TypeError, "prefix: expected a str, got int"),
        ({"strict": 1}, TypeError, "strict: expected True or False, got int"),
        ({"cast": "yes"}, TypeError, "cast: expected True or False, got str"),
        (
            {"mapping": {"bias_hh_l0": np.ma.zeros(12, np.float32)}},
            TypeError,
            r"mapping\['bias_hh_l0'\]: expected an array without a mask, got MaskedArray",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, said):
    layer = rk.GRU(I, H, seed=0)
    before = layer.state_dict()
    with pytest.raises(error, match=f"^{said}"):
        layer.load_state_dict(**{"mapping": layer.params} | change)
    assert same(layer.params, before)


def test_a_parameter_that_cannot_be_written_is_named():
    layer = rk.GRU(I, H, seed=0)
    state = layer.state_dict()
    layer.params["bias_hh_l0"].flags.writeable = False
    before = layer.state_dict()
    said = r"params\['bias_hh_l0'\]: expected a writable array, got a read-only one"
    with pytest.raises(ValueError, match=said):
        layer.load_state_dict({name: values + 1 for name, values in state.items()})
    assert same(layer.params, before)
    with pytest.raises(TypeError, match="prefix: expected a str, got NoneType"):
        layer.state_dict(None)


# ---- modules -----------------------------------------------------------------------------------

MODULES = {
    "Linear": lambda **options: rk.Linear(I, H, **options),
    "Linear without a bias": lambda **options: rk.Linear(I, H, bias=False, **options),
    "Embedding": lambda **options: rk.Embedding(I, H, padding_idx=1, **options),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@every_module
@in_each_dtype
def test_a_module_s_state_dict_is_all_that_another_needs(make, dtype):
    one, other = make(dtype=dtype, seed=1), make(dtype=dtype, seed=2)
    state = one.state_dict("head.")
    assert same({name.removeprefix("head."): v for name, v in state.items()}, one.params)
    assert not any(np.shares_memory(state[f"head.{n}"], v) for n, v in one.params.items())
    before = {name: id(values) for name, values in other.params.items()}
    optimizer = rk.SGD(other, lr=1.0)
    given = state | rk.GRU(I, H).state_dict("rnn.")
    assert other.load_state_dict(given, prefix="head.") == ([], [])
    assert same(other.params, one.params)
    assert {name: id(values) for name, values in other.params.items()} == before  # in place
    optimizer.step({name: np.ones_like(values) for name, values in other.params.items()})
    loaded = {name: values - 1 for name, values in one.params.items()}
    assert same(other.params, loaded)  # the optimizer steps what was loaded
    assert same({n: state[f"head.{n}"] for n in one.params}, one.params)  # and no more
    assert one.num_parameters == sum(values.size for values in one.params.values())


def test_a_module_refuses_what_does_not_fit_and_stays_as_it_is():
    linear = rk.Linear(I, H, seed=0)
    before = linear.state_dict()
    state = {"w.bias": np.ones(3, np.float32), "w.more": np.ones(1)}
    said = (
        r"^mapping: expected the arrays of Linear\(3, 4, seed=0\), got missing "
        r"w.weight; extra w.more; other shapes w.bias \(3,\) for \(4,\)$"
    )
    with pytest.raises(ValueError, match=said):
        linear.load_state_dict(state, "w.")
    doubles = {name: values.astype(float) + 1 for name, values in before.items()}
    with pytest.raises(TypeError, match=r"^mapping\['weight'\]: .* float32, got float64 \(pass c"):
        linear.load_state_dict(doubles)
    assert same(linear.params, before)
    linear.load_state_dict(doubles, cast=True)
    assert all((linear.params[n] == v.astype(np.float32)).all() for n, v in doubles.items())
    given = {"bias": np.full(4, 7, np.float32), "more": np.zeros(2)}
    assert linear.load_state_dict(given, strict=False) == (["weight"], ["more"])
    assert (linear.params["bias"] == 7).all()
    linear.params["bias"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^params\['bias'\]: expected a writable array"):
        linear.load_state_dict(before)
    linear.params["bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"^params\['bias'\]: expected shape \(4,\), got \(3,\)"):
        linear.state_dict()


def test_a_module_s_own_memory_may_be_loaded():
    table = rk.Embedding(4, 4, seed=0)
    weight = table.params["weight"]
    before = weight.copy()
    table.load_state_dict({"weight": weight.T})
    assert np.array_equal(table.params["weight"], before.T)
    assert table.params["weight"] is weight


@every_module
def test_a_module_copies_the_parameters_that_it_is_made_of(make):
    given = make(seed=1).state_dict()
    tensors = {name: Tensor(values, requires_grad=True) for name, values in given.items()}
    for params in (given, tensors):
        made = make(params=params)
        assert same(made.params, given)
        for name, values in made.params.items():
            assert type(values) is np.ndarray
            assert values.flags.carray
            assert not np.shares_memory(values, given[name])
    kind = type(make()).__name__
    said = f"^params: expected the arrays of this {kind}, got missing weight; extra w$"
    with pytest.raises(ValueError, match=said):
        make(params={"w" if name == "weight" else name: v for name, v in given.items()})
    doubles = {name: values.astype(float) for name, values in given.items()}
    with pytest.raises(TypeError, match=r"^params\['weight'\]: .*, got float64 \(convert it"):
        make(params=doubles)
    with pytest.raises(TypeError, match=r"^params: expected a mapping of .*, got list$"):
        make(params=[1])


# ---- from_state_dict ---------------------------------------------------------------------------


def options_without_a_trace(layer):
    """What names and shapes do not say, and from_state_dict takes."""
    found = {}
    if isinstance(layer, (rk.RNN, rk.IndRNN)):
        found["nonlinearity"] = layer.nonlinearity
    if isinstance(layer, rk.GRU) and not layer.layer_norm:
        found["reset_after"] = layer.reset_after
    if isinstance(layer, (rk.MinGRU, rk.MinLSTM)):
        found["candidate"] = layer.candidate
    if isinstance(layer, rk.SLSTM):
        found |= {"cell": rk.SLSTM, "exp_forget": layer.exp_forget}
    if getattr(layer, "input_forget", False):
        found["cell"] = rk.LSTM
    if isinstance(layer, (rk.MinGRU, rk.MinLSTM)) and layer.num_layers == 1:
        found["cell"] = type(layer)
    return found


OPTIONS_ALONE = (
    "general",
    "clipped",
    "general_projected",
    "noisy",
)  # leave no trace in names and shapes
PLAIN = [k for k in KINDS if not k.endswith(OPTIONS_ALONE)]
OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True, "num_layers": 2},
    {"bias": False},
    {"bias": False, "bidirectional": True, "dtype": np.float64},
    {"ensemble": 2, "num_layers": 2},
    {"num_layers": 2, "residual": True},
    {"num_layers": 2, "reverse": True},
]


@pytest.mark.parametrize("kind", [*PLAIN, "cifg"])
@pytest.mark.parametrize("options", OPTIONS)
@in_each("size", [(3, 6), (6, 6), (1, 1), (12, 3)])
def test_a_layer_is_inferred(kind, options, size):
    if kind == "cifg":
        layer = rk.LSTM(*size, input_forget=True, peephole=True, seed=1, **options)
    else:
        clips = {"cell_clip": None, "proj_clip": None} if "lstm_p" in kind else {}
        layer = make_layer(kind, *size, **{**clips, **options})
    prefix = "model.rnn."
    state = layer.state_dict(prefix) | {"head.weight": np.zeros((7, 3)), "step": 1}
    given = options_without_a_trace(layer) | {
        name: getattr(layer, name) for name in ("residual", "reverse")
    }
    if isinstance(layer, rk.LSTM) and layer.layer_norm and not layer.bias:
        with pytest.raises(ValueError, match="expected the biases, which tell layer_norm='haste'"):
            rk.from_state_dict(state, prefix, **given)
        return
    made = rk.from_state_dict(state, prefix, **given)
    assert type(made) is type(layer)
    assert same(made.params, layer.params)
    assert not any(np.shares_memory(made.params[n], state[prefix + n]) for n in made.params)
    alone = layer.member(0) if layer.ensemble else layer
    x = random_problem(alone, 5, 2).x
    assert np.array_equal(made(x)[0], layer(x)[0])
    (only,) = rk.from_state_dict(state, **given).values()
    assert repr(only) == repr(made)


def test_all_layers_of_a_model_are_found():
    layers = {
        "encoder.": rk.LSTM(3, 8, 2, bidirectional=True, seed=0),
        "decoder.rnn.": rk.GRU(16, 8, seed=0),
        "": rk.RNN(8, 4, bias=False, seed=0),
        "many.": rk.IndRNN(3, 4, 2, ensemble=3, seed=0),
    }
    state = {"head.weight": np.zeros((5, 8)), "head.bias": np.zeros(5, int)}
    for prefix, layer in layers.items():
        state |= layer.state_dict(prefix)
    found = rk.from_state_dict(state)
    assert found.keys() == layers.keys()
    for prefix, layer in found.items():
        assert type(layer) is type(layers[prefix])
        assert same(layer.params, layers[prefix].params)
    assert repr(rk.from_state_dict(state, "")) == "RNN(8, 4, bias=False)"
    first = {k: v for k, v in state.items() if not k.startswith("many.")}
    first = rk.from_state_dict(first, batch_first=True, nonlinearity="relu", residual=True)
    assert repr(first["encoder."]).endswith("batch_first=True, bidirectional=True, residual=True)")
    assert first[""].nonlinearity == "relu"


def test_a_cell_of_pytorch_is_a_layer():
    layer = rk.GRU(I, H, seed=0)
    cell = {name.replace("_l0", ""): values for name, values in layer.params.items()}
    made = rk.from_state_dict(cell, "")
    assert repr(made) == "GRU(3, 4)"
    assert same(made.params, layer.params)


@in_each_dtype
def test_arrays_are_converted_to_the_dtype_that_was_asked_for(dtype):
    layer = rk.LSTM(I, H, seed=0)
    halves = {name: values.astype(np.float16) for name, values in layer.params.items()}
    tensors = {n: Tensor(bfloat16(v), "torch.bfloat16") for n, v in layer.params.items()}
    for state, want in ((halves, np.float16), (tensors, bfloat16)):
        made = rk.from_state_dict(state, "", dtype=dtype)
        assert made.dtype == dtype
        for name, values in layer.params.items():
            assert (made.params[name] == (want(values) if want is bfloat16 else halves[name])).all()
        with pytest.raises(TypeError, match=r": expected .*float32 or float64.*, got .*float16"):
            rk.from_state_dict(state, "")
    mixed = layer.params | {"bias_hh_l0": np.zeros(16)}
    said = "dtype: expected float32 or float64 to convert to, got None for '' of float32, float64"
    with pytest.raises(TypeError, match=f"^{said}$"):
        rk.from_state_dict(mixed, "")


def gru_state(**changes):
    return rk.GRU(I, H, seed=0).state_dict("rnn.") | {f"rnn.{k}": v for k, v in changes.items()}


ZEROS = np.zeros((12, 5), np.float32)


@pytest.mark.parametrize(
    ("state", "options", "error", "said"),
    [
        ([], {}, TypeError, "mapping: expected a mapping of names to arrays, got list"),
        (
            {"a": ZEROS},
            {},
            ValueError,
            "mapping: expected arrays of recurrent layers, got no",
        ),
        (gru_state(), {"prefix": "rn"}, ValueError, "prefix: expected one of 'rnn.', got 'rn'"),
        (gru_state(), {"prefix": 3}, TypeError, "prefix: expected a str or None, got int"),
        (gru_state(), {"cell": rk.RNN}, ValueError, "cell: expected GRU for the shapes of 'rnn.'"),
        (
            gru_state(),
            {"cell": "gru"},
            TypeError,
            "cell: expected one of the classes GRU, .*, got",
        ),
        (
            gru_state(),
            {"dtype": "f2"},
            TypeError,
            "dtype: expected float32 or float64, got float",
        ),
        (
            gru_state(),
            {"reset_after": 1},
            TypeError,
            "reset_after: expected True or False, got",
        ),
        (gru_state(), {"residual": 1}, TypeError, "residual: expected True or False, got int"),
        (gru_state(), {"reverse": 1}, TypeError, "reverse: expected True or False, got int"),
        (
            rk.GRU(3, 4, bidirectional=True).state_dict(),
            {"reverse": True},
            ValueError,
            "reverse: expected False where no layer takes it, got True for GRU",
        ),
        (
            gru_state(),
            {"batch_first": 1},
            TypeError,
            "batch_first: expected True or False, got",
        ),
        (
            gru_state(),
            {"nonlinearity": 1},
            TypeError,
            "nonlinearity: expected one of tanh, relu",
        ),
        (
            gru_state(),
            {"nonlinearity": "relu"},
            ValueError,
            "nonlinearity: expected None where no layer takes it, got 'relu' for GRU",
        ),
        (
            gru_state(),
            {"residual": True},
            ValueError,
            r"residual: expected False where no layer takes it, got True for GRU\(3, 4\)",
        ),
        (
            rk.RNN(I, H).state_dict(),
            {"reset_after": True},
            ValueError,
            "reset_after: expected None where no layer takes it, got True for RNN",
        ),
        (
            rk.GRU(I, H, ensemble=2).state_dict(),
            {"batch_first": True},
            ValueError,
            "batch_first: expected False where no layer takes it, got True for GRU",
        ),
        (
            rk.MinGRU(I, 6).state_dict(),
            {},
            ValueError,
            "cell: expected MinGRU or MinLSTM, as weight_ih_l0 has 12 rows, got None",
        ),
        (
            gru_state(weight_ih_l0=np.zeros((13, 5), np.float32)),
            {},
            ValueError,
            r"mapping: expected the shapes of a recurrent layer, got 'rnn.': weight_.* \(13, 5\)",
        ),
        (
            gru_state(weight_ih_l0=np.zeros(5, np.float32)),
            {},
            ValueError,
            r"mapping\['rnn.weight_ih_l0'\]: expected a matrix, got shape \(5,\)",
        ),
        (
            gru_state(bias_hh_l0=ZEROS),
            {},
            ValueError,
            r"mapping\['rnn.\*'\]: expected the arrays of this GRU, got other shapes bias_hh_l0 ",
        ),
        (
            gru_state(weight_ln=ZEROS),
            {},
            ValueError,
            r"mapping\['rnn.\*'\]: expected the arrays of this GRU, got extra weight_ln",
        ),
        (
            {k: v for k, v in gru_state().items() if "bias_hh" not in k},
            {},
            ValueError,
            r"mapping\['rnn.\*'\]: expected the arrays of this GRU, got missing bias_hh_l0",
        ),
        (
            gru_state(bias_hh_l0=np.zeros(12, int)),
            {"dtype": np.float32},
            TypeError,
            r"mapping\['rnn.bias_hh_l0'\]: expected an array of dtype float32, got int64",
        ),
    ],
)
def test_what_is_no_layer_is_said(state, options, error, said):
    with pytest.raises(error, match=f"^{said}"):
        rk.from_state_dict(state, **options)


@pytest.mark.parametrize(
    ("options", "name", "fits"),
    [
        ({}, "bias_hh", "SLSTM or LSTM"),
        ({"num_layers": 2, "bidirectional": True}, "bias_hh", "SLSTM or LSTM"),
        ({"bias": False}, "weight_hh", "MinGRU"),
        ({"bias": False, "proj_size": 2}, "weight_hr", "SLSTM or LSTM"),
    ],
)
def test_a_layer_without_an_array_is_not_made_another(options, name, fits):
    layer = rk.LSTM(I, H, **options)
    state = {key: values for key, values in layer.params.items() if not key.startswith(name)}
    with pytest.raises(ValueError, match=f"^cell: expected {fits}, as .*, got None$"):
        rk.from_state_dict(state)
    with pytest.raises(ValueError, match=f"expected the arrays of this LSTM, got missing {name}_l"):
        rk.from_state_dict(state, cell=rk.LSTM)


# ---- params, zeros, sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("ensemble", [None, 2])
def test_params_are_taken_without_drawing(cls, ensemble, monkeypatch):
    sizes = (H, H, 1) if cls is rk.RGLRU else (I, H, 2)
    one = cls(*sizes, bidirectional=True, ensemble=ensemble, seed=1)
    monkeypatch.setattr(rk.layers.base, "initial", None)
    made = cls(*sizes, bidirectional=True, ensemble=ensemble, params=one.params)
    assert same(made.params, one.params)
    assert not any(np.shares_memory(made.params[n], v) for n, v in one.params.items())


def test_params_leave_the_seed_to_dropout():
    options = {"num_layers": 2, "dropout": 0.5, "seed": 3}
    one = rk.GRU(I, H, **options)
    made = rk.GRU(I, H, **options, params=one.params)
    assert made.dropout_state == one.dropout_state
    assert repr(made) == repr(one)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"params": 3}, TypeError, "params: expected a mapping of names to arrays, got int"),
        (
            {"params": {}},
            ValueError,
            "params: expected the arrays of this LSTM, got missing ",
        ),
        ({"init": "zeros"}, ValueError, "init: expected 'uniform' with params, got 'zeros'"),
        ({"forget_bias": 1.0}, ValueError, "forget_bias: expected None with params, got a number"),
        (
            {"dtype": np.float64},
            TypeError,
            r"params\['weight_ih_l0'\]: expected an array of dtype float64, got float32 \(convert",
        ),
    ],
)
def test_wrong_params_are_named(options, error, said):
    params = rk.LSTM(I, H).params
    with pytest.raises(error, match=f"^{said}"):
        rk.LSTM(I, H, **{"params": params} | options)


@every_kind
@pytest.mark.parametrize("ensemble", [None, 3])
def test_zeros(kind, ensemble):
    layer = make_layer(kind, I, H, num_layers=2, ensemble=ensemble, init="zeros")
    assert all(not values.any() for values in layer.params.values())
    assert layer.num_parameters == sum(values.size for values in layer.params.values())
    assert "init='zeros'" in repr(layer)


def test_zeros_leave_the_forget_bias():
    layer = rk.LSTM(I, H, init="zeros", forget_bias=1.0)
    assert layer.params["bias_ih_l0"].sum() == H


# ---- dropout's state ---------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [None, 3])
def test_an_unseeded_run_is_resumed_with_its_masks(ensemble):
    layer = rk.GRU(I, H, 2, dropout=0.5, ensemble=ensemble)
    x = np.ones((5, 2, I), np.float32)
    for _ in range(3):
        layer.forward(x)
    state = layer.dropout_state
    assert len(state["seeds"]) == (ensemble or 1)
    assert state["step"] == layer.dropout_step == 3
    other = rk.GRU(I, H, 2, dropout=0.5, ensemble=ensemble, params=layer.state_dict())
    assert not np.array_equal(other.forward(x)[0], layer.copy().forward(x)[0])
    other.dropout_state = state
    for _ in range(2):
        assert np.array_equal(other.forward(x)[0], layer.forward(x)[0])
    assert "seeds" not in layer.state_dict()
    state["seeds"][0] = 5  # a copy
    assert layer.dropout_state["seeds"][0] != 5


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        (None, TypeError, "dropout_state: expected a dict of seeds and step, got NoneType"),
        ({"seeds": [1]}, ValueError, "dropout_state: expected the keys seeds and step, got "),
        (
            {"seeds": [1, 2], "step": 0},
            ValueError,
            r"dropout_state\['seeds'\]: expected a list of 1",
        ),
        (
            {"seeds": 1, "step": 0},
            ValueError,
            r"dropout_state\['seeds'\]: expected a list of 1, got",
        ),
        (
            {"seeds": [-1], "step": 0},
            ValueError,
            r"dropout_state\['seeds'\]: expected integers from",
        ),
        (
            {"seeds": ["1"], "step": 0},
            TypeError,
            r"dropout_state\['seeds'\]: expected an integer, g",
        ),
        (
            {"seeds": [1], "step": -1},
            ValueError,
            r"dropout_state\['step'\]: expected an integer fro",
        ),
    ],
)
def test_a_wrong_dropout_state_is_named(state, error, said):
    layer = rk.GRU(I, H, 2, dropout=0.5)
    before = layer.dropout_state
    with pytest.raises(error, match=f"^{said}"):
        layer.dropout_state = state
    assert layer.dropout_state == before
