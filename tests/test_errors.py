"""Wrong input is refused with a message that names it, and nothing is written."""

from __future__ import annotations

import re
from collections import OrderedDict, UserDict
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from helpers import (
    KINDS,
    MAKERS,
    handed_through,
    in_each,
    in_each_dtype,
    make_layer,
    parts,
    random_problem,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnkern as rk
from rnnkern.reference import CELLS

T, B, I, H, L = 5, 2, 3, 4, 2
TOO_BIG = 10**400  # an integer that no float can hold


def frozen(thing):
    """What a layer, a stream or an array holds."""
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, rk.Stream):
        return [part.tobytes() for part in parts(thing.state)]
    return thing.dropout_step, [(name, p.tobytes()) for name, p in thing.params.items()]


@contextmanager
def refused(error, message, *watched):
    """Expect an error with this text in its message, and all that is watched left as it was."""
    before = [frozen(thing) for thing in watched]
    with pytest.raises(error, match=re.escape(message)):
        yield
    assert [frozen(thing) for thing in watched] == before


# ---- constructors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "batch_size"])
@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0, ValueError, "an integer of at least 1, got 0"),
        (-3, ValueError, "an integer of at least 1, got -3"),
        (2**70, ValueError, ""),
        (True, TypeError, "an integer, got bool"),
        (np.True_, TypeError, "an integer, got bool"),
        (2.0, TypeError, "an integer, got float"),
        ("2", TypeError, "an integer, got str"),
        (None, TypeError, "an integer, got NoneType"),
        (np.array([1, 2]), TypeError, "an integer, got"),
    ],
)
def test_sizes(name, value, error, expected):
    sizes = {"input_size": I, "hidden_size": H, "num_layers": L, "batch_size": B, name: value}
    with refused(error, f"{name}: expected {expected}"):
        rk.GRU(*list(sizes.values())[:3]).stream(sizes["batch_size"])


@pytest.mark.parametrize(
    "sizes", [(2**61, H), (I, 2**61), (I, H, 2**61), (2**50, 1), (I, 2**28), (2**31, 2**31)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_beyond_memory(kind, sizes):
    if CELLS[kind].inputs_are_units:
        sizes = (max(sizes[:2]), max(sizes[:2]), *sizes[2:])
    with pytest.raises((MemoryError, ValueError)):
        MAKERS[kind](*sizes)


@pytest.mark.parametrize("members", [2**40, 2**61])
@pytest.mark.parametrize("kind", KINDS)
def test_ensembles_beyond_memory_are_refused_before_a_member_is_drawn(kind, members):
    with pytest.raises((MemoryError, ValueError)):
        make_layer(kind, I, H, ensemble=members)


@pytest.mark.parametrize("batch_size", [2**46, 2**57, 2**61])
def test_stream_beyond_memory(batch_size):
    with pytest.raises(MemoryError):
        make_layer("lstm", I, H).stream(batch_size)


FLAG = "expected True or False, got"
PROBABILITY = "dropout: expected a number from 0 to below 1, got"
BETWEEN = "dropout: expected 0.0 with num_layers=1 (it acts between layers)"
SEED = "seed: expected an integer"
DTYPE = "dtype: expected float32 or float64, got"
BOUND = "expected a finite number > 0, got"
PROJECTION = f"an integer from 0 to {H - 1}, below hidden_size"
PROJECTED = {"proj_size": 2}
ALONE = "expected None without proj_size"
OF_LSTMS = {"proj_size": 2, "cell_clip": 1.0, "proj_clip": 1.0}
NO_STRINGS = (None, 3, b"tanh", ["tanh"], np.array("tanh"), np.array(["tanh", "tanh"]))
NO_DTYPES = (None, 3, "nonsense", "(2,", ",", [1], np.ones(3), ("f4", -1), {"names": ["a"]})


@pytest.mark.parametrize(
    ("make", "option", "error", "message"),
    [
        *(
            (rk.GRU, {name: 1}, TypeError, f"{name}: {FLAG} int")
            for name in ("bias", "batch_first")
        ),
        (rk.GRU, {"bidirectional": "no"}, TypeError, f"bidirectional: {FLAG} str"),
        *(
            (
                make,
                {"reverse": True, "bidirectional": True},
                ValueError,
                "reverse: expected False with bidirectional, got True",
            )
            for make in (rk.RNN, rk.LSTM, rk.GRU, rk.MinGRU, rk.MinLSTM, rk.IndRNN)
        ),
        (rk.GRU, {"reverse": None}, TypeError, f"reverse: {FLAG} NoneType"),
        (rk.GRU, {"reset_after": None}, TypeError, f"reset_after: {FLAG} NoneType"),
        *((rk.RNN, {"dropout": p}, ValueError, f"{PROBABILITY} {p}") for p in (1.0, -0.1, np.nan)),
        *(
            (make, {"dropout": 0.5, **layers}, ValueError, f"{BETWEEN}, got 0.5")
            for make in (rk.RNN, rk.LSTM, rk.GRU, rk.MinGRU, rk.MinLSTM, rk.IndRNN)
            for layers in ({}, {"num_layers": 1}, {"bidirectional": True})
        ),
        (rk.RNN, {"dropout": TOO_BIG}, ValueError, PROBABILITY),
        *(
            (make, {name: p}, ValueError, f"{name}: expected a number from 0 to below 1, got {p!r}")
            for make in (rk.RNN, rk.LSTM, rk.GRU)
            for name in ("zoneout", "recurrent_dropout")
            for p in (1, 1.0, -0.1, float("nan"), np.inf)
            if (make, name) != (rk.RNN, "recurrent_dropout")
        ),
        *(
            (rk.LSTM, {"zoneout": pair}, error, message)
            for pair, error, message in (
                ((0.1, 1.0), ValueError, "zoneout[1]: expected a number from 0 to below 1, got 1."),
                ((0.1,), ValueError, "zoneout: expected a number or a pair (h, c), got a tuple of"),
                ((0.1,) * 3, ValueError, "zoneout: expected a number or a pair (h, c), got a tup"),
                (("x", 0.1), TypeError, "zoneout[0]: expected a number, got str"),
                ([0.1, 0.1], TypeError, "zoneout: expected a number or a pair (h, c), got list"),
                (None, TypeError, "zoneout: expected a number or a pair (h, c), got NoneType"),
                (True, TypeError, "zoneout: expected a number or a pair (h, c), got bool"),
            )
        ),
        *(
            (make, {"zoneout": (0.1, 0.1)}, TypeError, "zoneout: expected a number, got tuple")
            for make in (rk.RNN, rk.GRU)
        ),
        (rk.RNN, {"recurrent_dropout": 0.1}, TypeError, "recurrent_dropout"),
        *(
            (
                make,
                {"forward_clip": 1.0, name: 0.5},
                ValueError,
                f"{name}: expected 0 with forward_clip=1.0, got 0.5",
            )
            for make in (rk.RNN, rk.LSTM, rk.GRU)
            for name in ("zoneout", "recurrent_dropout")
            if (make, name) != (rk.RNN, "recurrent_dropout")
        ),
        *(
            (
                rk.LSTM,
                {"recurrent_dropout": 0.5, **other},
                ValueError,
                f"recurrent_dropout: expected 0 with {name}=",
            )
            for name, other in (
                ("proj_size", {"proj_size": 2}),
                ("cell_clip", {"cell_clip": 1.0}),
                ("peephole", {"peephole": True}),
                ("input_forget", {"input_forget": True}),
                ("activations", {"activations": ("Sigmoid", "Tanh", "Tanh")}),
            )
        ),
        *(
            (
                make,
                {"layer_norm": norm, name: p},
                ValueError,
                f"{name}: expected 0 with layer_norm={norm!r}, got {p!r}",
            )
            for make, norm in ((rk.LSTM, "haste"), (rk.LSTM, "fastrnns"), (rk.GRU, "haste"))
            for name, p in (("zoneout", 0.5), ("zoneout", (0.0, 0.5)), ("recurrent_dropout", 0.5))
            if make is rk.LSTM or not isinstance(p, tuple)
        ),
        (rk.RNN, {"dropout": True}, TypeError, "dropout: expected a number, got bool"),
        (rk.RNN, {"dropout": "half"}, TypeError, "dropout: expected a number, got str"),
        (rk.RNN, {"dropout": np.array([0.1, 0.2])}, TypeError, "dropout: expected a number, got"),
        (rk.RNN, {"nonlinearity": "sin"}, ValueError, "nonlinearity: expected one of tanh, relu"),
        (rk.GRU, {"init": "he"}, ValueError, "init: expected one of uniform, xavier, "),
        *((rk.GRU, {"seed": s}, ValueError, f"{SEED} from 0 to 2**64 - 1") for s in (-1, 2**64)),
        *((rk.GRU, {"seed": s}, TypeError, SEED) for s in ("x", 1.5, True, np.array([1, 2]))),
        *((rk.GRU, {"dtype": d}, TypeError, f"{DTYPE} {np.dtype(d)}") for d in ("f2", "i8", ">f4")),
        *((rk.GRU, {"dtype": d}, TypeError, DTYPE) for d in NO_DTYPES),
        *(
            (make, {name: value}, TypeError, f"{name}: expected one of ")
            for make, name in ((rk.RNN, "nonlinearity"), (rk.GRU, "init"))
            for value in NO_STRINGS
        ),
        (rk.LSTM, {"forget_bias": "1"}, TypeError, "forget_bias: expected a number, got str"),
        (rk.LSTM, {"forget_bias": True}, TypeError, "forget_bias: expected a number, got bool"),
        (rk.LSTM, {"forget_bias": np.ones(2)}, TypeError, "forget_bias: expected a number, got"),
        *(
            (rk.LSTM, {"forget_bias": b}, ValueError, "forget_bias: expected a finite number, got")
            for b in (np.nan, np.inf, TOO_BIG, 1e300)  # 1e300 is infinite in float32
        ),
        (rk.LSTM, {"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias: expected None"),
        *(
            (rk.SLSTM, {"heads": n}, ValueError, f"heads: expected a divisor of hidden_size = {H}")
            for n in (-1, 0, H - 1, H + 1, 2**70)
        ),
        *(
            (rk.SLSTM, {"heads": n}, TypeError, f"heads: expected an integer, got {got}")
            for n, got in ((True, "bool"), (2.0, "float"), ("2", "str"), (None, "NoneType"))
        ),
        (rk.SLSTM, {"exp_forget": 1}, TypeError, f"exp_forget: {FLAG} int"),
        (rk.GRU, {"heads": 2}, TypeError, "unexpected keyword argument 'heads'"),
        *(
            (rk.LSTM, {"proj_size": p}, ValueError, f"proj_size: expected {PROJECTION}, got {p}")
            for p in (-1, H, H + 1, 2**70)
        ),
        *(
            (rk.LSTM, {"proj_size": p}, TypeError, f"proj_size: expected an integer, got {got}")
            for p, got in ((True, "bool"), (False, "bool"), (2.0, "float"), ("2", "str"))
        ),
        *(
            (rk.LSTM, {**PROJECTED, name: b}, ValueError, f"{name}: {BOUND} {b!r}")
            for name in ("cell_clip", "proj_clip")
            for b in (0, 0.0, -1.0, np.inf, -np.inf, float("nan"), TOO_BIG)
        ),
        *(
            (rk.LSTM, {**PROJECTED, name: b}, ValueError, f"{name}: expected a normal number of ")
            for name in ("cell_clip", "proj_clip")
            for b in (1e-39, 1e39)  # of no use in float32
        ),
        *(
            (rk.LSTM, {**PROJECTED, name: b}, TypeError, f"{name}: expected a number or None, got")
            for name in ("cell_clip", "proj_clip")
            for b in (True, "1", [1.0], 1j, np.ones(2))
        ),
        *(
            (rk.LSTM, {"peephole": value}, TypeError, "peephole: expected True or False, got")
            for value in (1, "yes", None, np.ones(2))
        ),
        *(
            (
                rk.LSTM,
                {"input_forget": value},
                TypeError,
                "input_forget: expected True or False, got",
            )
            for value in (1, "yes", None)
        ),
        *(
            (make, {"forward_clip": b}, ValueError, f"forward_clip: {BOUND} {b!r}")
            for make in (rk.LSTM, rk.GRU, rk.RNN)
            for b in (0, -1.0, float("nan"), np.inf)
        ),
        (rk.GRU, {"forward_clip": "1"}, TypeError, "forward_clip: expected a number or None, got"),
        *(
            (make, {"activations": acts}, error, message)
            for make, acts, error, message in (
                (rk.LSTM, ("Tanh",) * 2, ValueError, "activations: expected a tuple of 3, of the"),
                (rk.GRU, ["Sigmoid", "Tanh"], TypeError, "activations: expected None or a tuple"),
                (rk.GRU, ("Sigmoid", 1), TypeError, "activations[1]: expected a name, or a tupl"),
                (rk.GRU, ("Sigmoid", "tanh"), ValueError, "activations[1]: expected one of Relu"),
                (rk.RNN, (("Tanh", 1.0),), ValueError, "activations[0]: expected 0 constants of"),
                (rk.RNN, ("ScaledTanh",), ValueError, "activations[0]: expected 2 constants of"),
                (rk.RNN, (("Elu", 1, 2),), ValueError, "activations[0]: expected 0 to 1 constan"),
                (rk.RNN, (("Elu", "1"),), TypeError, "activations[0]'s alpha: expected a number"),
                (rk.RNN, (("Elu", np.nan),), ValueError, "activations[0]'s alpha: expected a fi"),
            )
        ),
        (
            rk.RNN,
            {"activations": ("Tanh",), "nonlinearity": "relu"},
            ValueError,
            "activations: expected None with nonlinearity='relu', got",
        ),
        (
            rk.LSTM,
            {"input_forget": True, "forget_bias": 1.0},
            ValueError,
            "forget_bias: expected None with input_forget=True",
        ),
        *(
            (make, {"layer_norm": value}, error, f"layer_norm: expected one of haste{more}, got ")
            for make, more in ((rk.LSTM, ", fastrnns"), (rk.GRU, ""))
            for value, error in (("Haste", ValueError), (True, TypeError), (1e-5, TypeError))
        ),
        *(
            (
                make,
                {"layer_norm": "haste", **more, **option},
                ValueError,
                f"layer_norm: expected None with {name}={value!r}, got 'haste'",
            )
            for make, more, option in (
                (rk.LSTM, {}, {"cell_clip": 0.5}),
                (rk.LSTM, {"proj_size": 2}, {"proj_clip": 0.5}),
                (rk.LSTM, {}, {"peephole": True}),
                (rk.LSTM, {}, {"input_forget": True}),
                (rk.LSTM, {}, {"activations": ("Sigmoid", "Tanh", "Tanh")}),
                (rk.LSTM, {}, {"forward_clip": 2.0}),
                (rk.GRU, {}, {"reset_after": False}),
                (rk.GRU, {}, {"activations": ("Sigmoid", "Tanh")}),
                (rk.GRU, {}, {"forward_clip": 2.0}),
            )
            for name, value in option.items()
        ),
        (rk.RNN, {"layer_norm": "haste"}, TypeError, "unexpected keyword argument 'layer_norm'"),
        *(
            (rk.LSTM, {**none, "proj_clip": 0.5}, ValueError, f"proj_clip: {ALONE}, got 0.5")
            for none in ({}, {"proj_size": None}, {"proj_size": 0})
        ),
        *(
            (make, {name: value}, TypeError, f"unexpected keyword argument '{name}'")
            for make in (rk.RNN, rk.GRU, rk.MinGRU)
            for name, value in OF_LSTMS.items()
        ),
        *(
            (make, {"output_size": 2}, TypeError, "unexpected keyword argument 'output_size'")
            for make in (rk.RNN, rk.LSTM, rk.GRU, rk.MinGRU)
        ),
        *(
            (make, {"candidate": value}, error, "candidate: expected one of positive, identity, t")
            for make in (rk.MinGRU, rk.MinLSTM)
            for value, error in (("relu", ValueError), ("Tanh", ValueError), (None, TypeError))
        ),
        (rk.GRU, {"candidate": "tanh"}, TypeError, "unexpected keyword argument 'candidate'"),
        (rk.RGLRU, {}, ValueError, f"input_size: expected hidden_size = {H} (x acts unit by unit)"),
        (
            lambda I, H, **options: rk.RGLRU(H, H, 2, **options),
            {"bidirectional": True},
            ValueError,
            "bidirectional: expected False with num_layers=2 (the layers above the first would",
        ),
        (rk.LSTM, {"projection": 2}, TypeError, "unexpected keyword argument 'projection'"),
        (rk.GRU, {"nonlinearity": "relu"}, TypeError, "argument 'nonlinearity'"),
    ],
)
def test_options(make, option, error, message):
    with refused(error, message):
        make(I, H, **option)


def test_options_take_any_kind_of_string():
    rnn = rk.RNN(I, H, nonlinearity=np.str_("relu"), init=np.str_("identity"), seed=0)
    assert type(rnn.nonlinearity) is str
    assert (rnn.params["weight_hh_l0"] == np.eye(H)).all()


@pytest.mark.parametrize("x", [[[1], [2, 3]], [[[1.0]]], None, 5, "x", np.float32(1), np.ones(3)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_checkpoint_of_what_is_no_sequence(x, batch_first):
    layer = make_layer("gru", I, H, batch_first=batch_first)
    with refused(TypeError, "x: expected an array of dtype float32, got ", layer):
        layer.forward(x, checkpoint="sqrt")


def test_dropout_setter():
    layer = make_layer("gru", I, H, num_layers=2, dropout=0.25)
    with refused(ValueError, f"{PROBABILITY} 2"):
        layer.dropout = 2
    assert layer.dropout == 0.25
    alone = make_layer("gru", I, H)
    with refused(ValueError, f"{BETWEEN}, got 0.25"):
        alone.dropout = 0.25
    alone.dropout = 0
    assert alone.dropout == 0.0


@pytest.mark.parametrize("step", [-1, 2**64, 1.5, "x", None])
def test_dropout_step(step):
    layer = make_layer("gru", I, H, num_layers=2, dropout=0.5)
    with refused((TypeError, ValueError), "dropout_step"):
        layer.dropout_step = step
        layer.forward(np.zeros((T, B, I), np.float32))


@pytest.mark.parametrize("name", ["step_value", "step_norm", "value", "max_norm"])
@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        *((b, ValueError, f"a finite number > 0, got {b!r}") for b in (0, -1.0, np.inf, -np.inf)),
        (float("nan"), ValueError, "a finite number > 0, got nan"),
        pytest.param(TOO_BIG, ValueError, "a finite number > 0, got", id="10**400"),
        (True, TypeError, "a number or None, got bool"),
        (np.True_, TypeError, "a number or None, got bool"),
        ("1", TypeError, "a number or None, got str"),
        ([1.0], TypeError, "a number or None, got list"),
        (1j, TypeError, "a number or None, got complex"),
        (np.ones(2), TypeError, "a number or None, got"),
    ],
)
def test_clips(name, bound, error, message):
    with refused(error, f"clip.{name}: expected {message}"):
        rk.Clip(**{name: bound})


class Unwilling:
    """Claims to be a number, but converts to none."""

    def __float__(self):
        raise RuntimeError("no float")

    __index__ = __float__


NO_NUMBERS = [
    np.str_("1"),
    np.bytes_(b"1"),
    np.void(b"1"),
    np.complex64(1),
    np.clongdouble(1),
    np.timedelta64(1),
    np.datetime64("2020"),
    np.bool_(True),
    np.array(1.0),
    np.ma.masked,
    "1",
    b"1",
    1j,
    Decimal("sNaN"),
    Unwilling(),
    (1.0,),
]
by_type = pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)


@by_type
def test_numbers_are_real_scalars(value):
    got = f"got {type(value).__name__.rstrip('_')}"
    layer = make_layer("gru", I, H)
    tape = layer.forward(np.zeros((T, B, I), np.float32))[2]
    with refused(TypeError, f"dropout: expected a number, {got}", layer):
        layer.dropout = value
    with refused(TypeError, f"flow_penalty: expected a number, {got}", layer):
        layer.backward(tape, flow_penalty=value)
    with refused(TypeError, f"clip.max_norm: expected a number or None, {got}"):
        rk.Clip(max_norm=value)
    with refused(TypeError, f"lr: expected a number or a function of the step, {got}"):
        rk.Adam(layer.params, lr=value)
    with refused(TypeError, f"eps: expected a number, {got}"):
        rk.Adam(layer.params, eps=value)


@by_type
def test_integers_are_integral_scalars(value):
    got = f"got {type(value).__name__.rstrip('_')}"
    layer = make_layer("gru", I, H)
    with refused(TypeError, f"dropout_step: expected an integer, {got}", layer):
        layer.dropout_step = value
    with refused(TypeError, f"batch_size: expected an integer, {got}", layer):
        layer.stream(value)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float16(0.5), np.float64(0.5), np.longdouble(0.5), Decimal("0.5"), Fraction(1, 2)],
    ids=lambda value: type(value).__name__,
)
def test_real_scalars_of_any_type_are_numbers(value):
    assert rk.Clip(max_norm=value).max_norm == 0.5
    assert type(rk.Clip(max_norm=value).max_norm) is float


def test_integers_of_too_many_digits_to_show():
    huge = 10**5000  # Python refuses to print it
    with refused(ValueError, "hidden_size: expected an integer of at least 1, got int of too many"):
        rk.GRU(I, huge)
    layer = make_layer("gru", I, H, bidirectional=True)
    with refused(
        ValueError, "checkpoint: expected an integer of at least 1, got int of too", layer
    ):
        layer.forward(np.zeros((T, B, I), np.float32), checkpoint=huge)
    for value in (huge, Fraction(huge)):
        said = f"norm: expected a finite number > 0, got {type(value).__name__} of too many digits"
        with refused(ValueError, said):
            rk.Clip(max_norm=value)


# ---- attributes ---------------------------------------------------------------------------------


def public_attributes(thing):
    return [
        name
        for name in dir(thing)
        if not name.startswith("_") and not callable(getattr(thing, name))
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in KINDS),
        ("gru", {"ensemble": 2, "num_layers": 2}),
        ("gru", {"bidirectional": True, "batch_first": True}),
    ],
)
def test_what_the_constructor_checks_is_read_only(kind, options):
    layer = make_layer(kind, I, H, **options)
    p = random_problem(layer, T, B)
    want = layer(p.x)[0].tobytes()
    names = public_attributes(layer)
    assert {"input_size", "ensemble", "batch_first", "residual", "dtype"} < set(names)
    settable = {"params", "dropout", "dropout_step", "dropout_state", "first_row"}
    for name in set(names) - settable:
        value = getattr(layer, name)
        for other in (True, False, 2, None, value):
            with pytest.raises(AttributeError, match=name):
                setattr(layer, name, other)
        with pytest.raises(AttributeError, match=name):
            delattr(layer, name)
        assert getattr(layer, name) is value or name == "num_parameters"
    assert layer(p.x)[0].tobytes() == want
    assert not [name for name in vars(layer) if not name.startswith("_")]


def test_results_are_read_only():
    layer = make_layer("lstm", I, H)
    p = random_problem(layer, T, B)
    tape = p.forward(layer)[2]
    grads = p.backward(layer, tape, trace=True)
    report = rk.diagnose.report(layer, tape, grads)
    (flow,) = report.flows
    (window,) = rk.truncated_bptt(layer, p.x, T)
    for thing in (
        rk.Clip(max_norm=1.0),
        grads,
        grads.trace,
        report,
        flow,
        flow.spectrum[0],
        flow.saturation[0],
        window,
        tape,
    ):
        names = public_attributes(thing)
        assert names
        for name in names:
            with pytest.raises(AttributeError):
                setattr(thing, name, None)
    assert public_attributes(layer.stream()) == ["state"]


def test_members_are_layers_alone():
    layer = make_layer("gru", I, H, ensemble=2)
    assert layer.member(1).ensemble is None
    assert layer.ensemble == 2


@pytest.mark.parametrize(
    "params", [None, 5, [], (), "params", UserDict(), MappingProxyType({}), np.zeros(3), dict]
)
def test_params_that_are_no_dict(params):
    layer = make_layer("gru", I, H)
    before = layer.params
    said = f"params: expected a dict of arrays, got {type(params).__name__}"
    with refused(TypeError, said, layer):
        layer.params = params
    assert layer.params is before


def test_params_may_be_any_dict():
    layer = make_layer("gru", I, H)
    p = random_problem(layer, T, B)
    want = layer(p.x)[0].tobytes()
    for kind in (dict, OrderedDict):
        layer.params = kind(layer.params)
        assert type(layer.params) is kind
        assert layer(p.x)[0].tobytes() == want


# ---- arrays: every place where a call takes one ------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One array argument of one call: its name in messages, a good value, the shape asked for."""

    name: str
    good: Any
    axes: tuple[Any, ...]  # sizes; a letter stands for any
    call: Any

    @property
    def expected(self):
        axes = ", ".join(map(str, self.axes))
        return f"({axes},)" if len(self.axes) == 1 else f"({axes})"


class Calls:
    """A layer, its tape and its stream, and every place where they take an array."""

    def __init__(self, kind, dtype):
        self.layer = layer = make_layer(kind, I, H, num_layers=L, dtype=dtype)
        self.stream = stream = layer.stream(B)
        self.watched = layer, stream
        p = random_problem(layer, T, B)
        tape = p.forward(layer)[2]
        P = layer.output_size
        x, y = p.x, np.empty((T, B, P), dtype)
        self.places = {
            "call x": Place("x", x, ("T", "B", I), layer),
            "forward x": Place("x", x, ("T", "B", I), layer.forward),
            "backward dy": Place("dy", p.dy, (T, B, P), lambda v: layer.backward(tape, v)),
            "step x": Place("x", x[0], (B, I), stream.step),
            "run x": Place("x", x, ("T", B, I), stream.run),
            "step out": Place("out", y[0], (B, P), lambda v: stream.step(x[0], v)),
            "run out": Place("out", y, (T, B, P), lambda v: stream.run(x, v)),
        }

        def set_state(v):
            stream.state = v

        self.add_states("call", "state", p.state, lambda v: layer(x, v))
        self.add_states("forward", "state", p.state, lambda v: layer.forward(x, v))
        self.add_states("backward", "dstate", p.dstate, lambda v: layer.backward(tape, None, v))
        self.add_states("setter", "state", p.state, set_state)
        self.add_parameters("call", lambda: layer(x))
        self.add_parameters("forward", lambda: layer.forward(x))
        self.add_parameters("backward", lambda: layer.backward(tape, p.dy))
        self.add_parameters("stream", lambda: layer.stream(B))
        self.add_parameters("freeze", layer.freeze)
        frozen = layer.freeze()
        self.places["frozen x"] = Place("x", x, ("T", "B", I), frozen)
        self.add_states("frozen", "state", p.state, lambda v: frozen(x, v))

    def add_states(self, call, name, state, use):
        each = parts(state)
        for i, good in enumerate(each):
            part = f"{name}[{i}]" if len(each) > 1 else name

            def use_part(value, i=i):
                changed = [value if j == i else other for j, other in enumerate(each)]
                return use(tuple(changed) if len(each) > 1 else value)

            self.places[f"{call} {part}"] = Place(part, good, good.shape, use_part)

    def add_parameters(self, call, use):
        layer = self.layer
        for name in ("weight_ih_l0", *(f"{p.name}_l1" for p in CELLS[layer._kind].parameters)):

            def use_with(value, name=name):
                before = layer.params
                layer.params = {**before, name: value}
                try:
                    return use()
                finally:
                    layer.params = before

            good = layer.params[name]
            place = Place(f"params['{name}']", good, good.shape, use_with)
            self.places[f"{call} {name}"] = place


PLACES = [
    pytest.param(kind, dtype, where, id=f"{kind}-{where}".replace(" ", "-"))
    for kind, dtype in (
        ("gru", np.float32),
        ("lstm", np.float64),
        ("lstm_projected", np.float32),
        ("min_gru", np.float64),
    )
    for where in Calls(kind, dtype).places
]
every_place = pytest.mark.parametrize(("kind", "dtype", "where"), PLACES)


@every_place
def test_good_arrays_are_accepted(kind, dtype, where):
    place = Calls(kind, dtype).places[where]
    place.call(place.good)


@every_place
def test_dtypes(kind, dtype, where):
    calls = Calls(kind, dtype)
    place = calls.places[where]
    own = np.dtype(dtype)
    other = "f8" if own == np.float32 else "f4"
    for wrong in ("f2", other, "g", "i4", "i8", "?", "O", "c8", own.newbyteorder(">")):
        value = np.ones(place.good.shape, wrong)
        message = f"{place.name}: expected an array of dtype {own}, got {value.dtype}"
        with refused(TypeError, message, *calls.watched, value):
            place.call(value)


@every_place
def test_what_is_no_array(kind, dtype, where):
    calls = Calls(kind, dtype)
    place = calls.places[where]
    for value in (place.good.tolist(), 1.5, "text", dtype(1)):
        message = f"{place.name}: expected an array of dtype {np.dtype(dtype)}, got "
        with refused(TypeError, message + type(value).__name__, *calls.watched):
            place.call(value)


@every_place
def test_shapes(kind, dtype, where):
    calls = Calls(kind, dtype)
    place = calls.places[where]
    shape = place.good.shape
    wrong = [(), (1, *shape), (*shape, 1), (1, 1, *shape)]
    if len(place.axes) < 3 or where.split()[1] != "x":  # (T, I) is a sequence of one row
        wrong += [shape[1:], shape[:-1]]
    for axis, size in enumerate(place.axes):
        if not isinstance(size, str):
            wrong += [(*shape[:axis], n, *shape[axis + 1 :]) for n in (0, size - 1, size + 1)]
    if len(set(shape)) > 1 and "T" not in place.axes:
        wrong.append(shape[::-1])
    for one in wrong:
        message = f"{place.name}: expected shape {place.expected}, got {one}"
        with refused(ValueError, message, *calls.watched):
            place.call(np.ones(one, dtype))


@pytest.mark.parametrize(
    ("batch_first", "shape", "expected"),
    [
        (False, (T, I + 1), "(T, 3)"),
        (True, (T, I + 1), "(T, 3)"),
        (True, (B, T, I + 1), "(B, T, 3)"),
        (False, (T, B, I + 1), "(T, B, 3)"),
    ],
)
def test_layouts_of_x(batch_first, shape, expected):
    layer = make_layer("gru", I, H, batch_first=batch_first)
    with refused(ValueError, f"x: expected shape {expected}, got {shape}", layer):
        layer(np.zeros(shape, np.float32))


def test_a_state_of_a_batch_for_one_row():
    layer = make_layer("gru", I, H)
    with refused(ValueError, "state: expected shape (1, 4), got (1, 1, 4)", layer):
        layer(np.zeros((T, I), np.float32), np.zeros((1, 1, H), np.float32))


def test_number_of_states():
    h = np.zeros((1, B, H), np.float32)
    x = np.zeros((T, B, I), np.float32)
    gru, lstm = make_layer("gru", I, H), make_layer("lstm", I, H)
    for layer, wrong, message in [
        (gru, (h,), "expected one array (h), got a tuple of 1"),
        (gru, (h, h), "expected one array (h), got a tuple of 2"),
        (lstm, h, "expected a pair (h, c), got ndarray"),
        (lstm, (h,), "expected a pair (h, c), got 1 arrays"),
        (lstm, (h, h, h), "expected a pair (h, c), got 3 arrays"),
        (lstm, "hc", "expected a pair (h, c), got str"),
        (lstm, np.stack([h, h]), "expected a pair (h, c), got ndarray"),
    ]:
        tape, stream = layer.forward(x)[2], layer.stream(B)
        for call in (layer, layer.forward):
            with refused(TypeError, f"state: {message}", layer):
                call(x, wrong)
        with refused(TypeError, f"dstate: {message}", layer):
            layer.backward(tape, None, wrong)
        with refused(TypeError, f"state: {message}", stream):
            stream.state = wrong
    for layer, wrong in [(gru, None), (lstm, None), (lstm, (h, None)), (lstm, (None, h))]:
        stream = layer.stream(B)
        with refused(TypeError, "state", stream):
            stream.state = wrong


RANGE = "expected values from 0 to T = 5, got"
INTEGERS = "expected an array of integers, got"


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (np.array([5, 6]), ValueError, f"{RANGE} 6"),
        (np.array([-1, 5]), ValueError, f"{RANGE} -1"),
        (np.array([2**63, 5], np.uint64), ValueError, RANGE),
        (np.array([2**64 - 1, 5], np.uint64), ValueError, RANGE),
        (np.array([-(2**63), 5]), ValueError, f"{RANGE} -9223372036854775808"),
        (np.array([5]), ValueError, "expected shape (2,), got (1,)"),
        (np.array([5, 5, 5]), ValueError, "expected shape (2,), got (3,)"),
        (np.array([[5, 5]]), ValueError, "expected shape (2,), got (1, 2)"),
        (np.array(5), ValueError, "expected shape (2,), got ()"),
        (np.array([5.0, 2.0]), TypeError, f"{INTEGERS} float64"),
        (np.array([True, False]), TypeError, f"{INTEGERS} bool"),
        (np.array([5, 2], object), TypeError, f"{INTEGERS} object"),
        (np.array([5, 2], "m8[s]"), TypeError, f"{INTEGERS} timedelta64[s]"),
        (np.array(["5", "2"]), TypeError, f"{INTEGERS} <U1"),
        ([10**30, 2], TypeError, f"{INTEGERS} object"),
        ([[1], [2, 3]], TypeError, INTEGERS),
    ],
)
@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_lengths(call, lengths, error, message):
    layer = make_layer("gru", I, H)
    with refused(error, f"lengths: {message}", layer):
        getattr(layer, call)(np.zeros((T, B, I), np.float32), None, lengths)


def test_lengths_of_one_row():
    layer = make_layer("gru", I, H)
    with refused(ValueError, "lengths: expected None with unbatched x", layer):
        layer(np.zeros((T, I), np.float32), None, np.array([T]))


@pytest.mark.parametrize("integer", ["i1", "u1", ">i2", "u8", list, tuple])
def test_lengths_of_any_integers(integer):
    layer = make_layer("gru", I, H)
    x = random_problem(layer, T, B).x
    lengths = integer([2, 5]) if callable(integer) else np.array([2, 5], integer)
    assert layer(x, None, lengths)[0].tobytes() == layer(x, None, np.array([2, 5]))[0].tobytes()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.array([0, B]), ValueError, "values from 0 to 1, got 2"),
        (np.array([0, -1]), ValueError, "values from 0 to 1, got -1"),
        (np.array([2**64 - 1], np.uint64), ValueError, "values from 0 to 1, got 18446744073709551"),
        ([0, B], ValueError, "values from 0 to 1, got 2"),
        (np.ones(B - 1, bool), ValueError, "shape (2,), got (1,)"),
        (np.ones(B + 1, bool), ValueError, "shape (2,), got (3,)"),
        (np.ones(0, bool), ValueError, "shape (2,), got (0,)"),
        (np.ones((1, B), bool), ValueError, "shape (2,), got (1, 2)"),
        (True, ValueError, "shape (2,), got ()"),
        (0, ValueError, "shape (n,), got ()"),
        (np.zeros((B, 1), int), ValueError, "shape (n,), got (2, 1)"),
        ([[]], ValueError, "shape (n,), got (1, 0)"),
        (np.zeros(0), TypeError, "an array of booleans or integers, got float64"),
        (np.array([0.0]), TypeError, "an array of booleans or integers, got float64"),
        (0.0, TypeError, "an array of booleans or integers, got float64"),
        (np.array([True], object), TypeError, "an array of booleans or integers, got object"),
        (np.array([1], "m8[s]"), TypeError, "an array of booleans or integers, got timedelta64[s]"),
        ("0", TypeError, "an array of booleans or integers, got <U1"),
        ([10**30], TypeError, "an array of booleans or integers, got object"),
        ([[1], [2, 3]], TypeError, "an array of booleans or integers, got list"),
    ],
)
def test_rows_to_reset(rows, error, message):
    layer = make_layer("lstm", I, H)
    stream = layer.stream(B)
    stream.state = random_problem(layer, T, B).state
    with refused(error, f"rows: expected {message}", stream):
        stream.reset(rows)


# ---- parameters and tapes ----------------------------------------------------------------------


def test_parameter_names():
    layer = make_layer("gru", I, H)
    x = np.zeros((T, B, I), np.float32)
    tape = layer.forward(x)[2]
    good = layer.params
    missing = {name: p for name, p in good.items() if name != "weight_hh_l0"}
    renamed = {**missing, "weight_hh": good["weight_hh_l0"]}
    for wrong, error, message in [
        (missing, ValueError, "params['weight_hh_l0']: expected an array, got nothing"),
        (renamed, ValueError, "params['weight_hh_l0']: expected an array, got nothing"),
        (
            {**good, "more": x},
            ValueError,
            "params: expected 4 arrays, got 5, of which more are no parameters of GRU(",
        ),
        ({}, ValueError, "params['weight_ih_l0']: expected an array, got nothing"),
    ]:
        layer.params = wrong
        for call in (
            lambda: layer(x),
            lambda: layer.forward(x),
            lambda: layer.backward(tape),
            lambda: layer.stream(B),
        ):
            with refused(error, message, x):
                call()
        assert layer.params is wrong
        assert layer.dropout_step == 1


@pytest.mark.parametrize("ensemble", [None, 2])
def test_parameters_that_python_reads(ensemble):
    layer = make_layer("gru", I, H, ensemble=ensemble)
    use = (lambda: rk.diagnose.spectrum(layer)) if ensemble is None else (lambda: layer.member(1))
    good = layer.params
    name = "weight_hh_l0"
    shape = good[name].shape
    for wrong, error, message in [
        (None, TypeError, "expected an array of dtype float32, got NoneType"),
        (good[name].tolist(), TypeError, "expected an array of dtype float32, got list"),
        (good[name].astype("f8"), TypeError, "expected an array of dtype float32, got float64"),
        (good[name][..., :1], ValueError, f"expected shape {shape}, got {(*shape[:-1], 1)}"),
    ]:
        layer.params = {**good, name: wrong}
        with refused(error, f"params['{name}']: {message}"):
            use()
    layer.params = {}
    with refused(ValueError, "params['weight_ih_l0']: expected an array, got nothing"):
        use()


@pytest.mark.parametrize(
    "stranger",
    [
        lambda layer: make_layer("gru", I, H),
        lambda layer: make_layer("gru", I, H, dtype=np.float64),
        lambda layer: make_layer("lstm", I, H),
        lambda layer: make_layer("gru", I, H + 1),
    ],
    ids=["equal", "dtype", "kind", "size"],
)
def test_tape_of_another_layer(stranger):
    layer = make_layer("gru", I, H)
    other = stranger(layer)
    tape = other.forward(np.zeros((T, B, I), other.dtype))[2]
    dy = np.zeros((T, B, H), np.float32)
    message = "tape: expected a tape of this layer's forward, got one of another layer"
    with refused(ValueError, message, layer, other):
        layer.backward(tape, dy)


@pytest.mark.parametrize("tape", [None, 5, "tape", np.zeros(3), ()])
def test_what_is_no_tape(tape):
    layer = make_layer("gru", I, H)
    message = f"tape: expected a tape of this layer's forward, got {type(tape).__name__}"
    with refused(TypeError, message, layer):
        layer.backward(tape, None)


@pytest.mark.parametrize("clip", [1.0, {"max_norm": 1.0}, (1.0, None, None, None), rk.Clip])
def test_what_is_no_clip(clip):
    layer = make_layer("gru", I, H)
    tape = layer.forward(np.zeros((T, B, I), np.float32))[2]
    with refused(TypeError, f"clip: expected a Clip or None, got {type(clip).__name__}", layer):
        layer.backward(tape, clip=clip)


def test_edited_parameters_are_seen():
    layer = make_layer("lstm", I, H)
    p = random_problem(layer, T, B)
    before = layer(p.x)[0]
    dx = p.backward(layer, p.forward(layer)[2]).x
    layer.params["weight_ih_l0"] *= 2
    halved = p.but(x=p.x / 2)  # exact: powers of two
    assert layer(p.x)[0].tobytes() != before.tobytes()
    assert layer(halved.x)[0].tobytes() == before.tobytes()
    np.testing.assert_array_equal(p.backward(layer, halved.forward(layer)[2]).x, 2 * dx)


def test_y_of_forward_is_read_only():
    layer = make_layer("gru", I, H)
    x = np.zeros((T, B, I), np.float32)
    y, state, _ = layer.forward(x)
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0
    state[...] = 0
    layer(x)[0][...] = 0


# ---- where a stream writes ---------------------------------------------------------------------


def misaligned(shape, dtype):
    return np.zeros(np.prod(shape) * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((H, B), np.float32).T,
        np.zeros((B, 2 * H), np.float32)[:, ::2],
        np.zeros((B, H), np.float32)[::-1],
        np.broadcast_to(np.zeros(H, np.float32), (B, H)),
        misaligned((B, H), np.float32).reshape(B, H),
        np.frombuffer(bytes(4 * B * H), np.float32).reshape(B, H),
    ],
    ids=["fortran", "strided", "reversed", "broadcast", "misaligned", "read-only"],
)
def test_layouts_of_out(out):
    stream = make_layer("gru", I, H).stream(B)
    with refused(ValueError, "out: expected a ", stream, out):
        stream.step(np.ones((B, I), np.float32), out)
    with refused(ValueError, "out: expected a ", stream, out):
        stream.run(np.ones((1, B, I), np.float32), out[None])


@pytest.mark.parametrize("shift", [0, 1, B * H - 1, -1, -(B * H - 1)])
def test_out_over_x(shift):
    n = B * H
    memory = np.random.default_rng(0).normal(size=3 * n).astype(np.float32)
    x, out = (memory[n + s :][:n].reshape(B, H) for s in (0, shift))
    stream = make_layer("gru", H, H).stream(B)
    message = "out: expected memory of its own, got an array that overlaps x"
    with refused(ValueError, message, stream, memory):
        stream.step(x, out)
    with refused(ValueError, message, stream, memory):
        stream.run(x[None], out[None])


def test_out_beside_x():
    layer = make_layer("gru", H, H)
    memory = np.ones((2 * B, H), np.float32)
    want = layer.stream(B).step(memory[:B].copy())
    assert layer.stream(B).step(memory[:B], memory[B:]).tobytes() == want.tobytes()


def test_out_over_a_part_of_x_that_is_not_contiguous():
    layer = make_layer("gru", H, H)
    memory = np.random.default_rng(0).normal(size=(B, 2 * H)).astype(np.float32)
    x = memory[:, ::2]
    out = memory.ravel()[: B * H].reshape(B, H)
    want = layer.stream(B).step(x.copy())
    stream = layer.stream(B)
    got = attempt(lambda: stream.step(x, out), "out", stream)
    assert got is None or got.tobytes() == want.tobytes()


# ---- sizes of nothing, and sizes beyond memory -------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@in_each("bidirectional", [False, True])
@in_each_dtype
@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0), (0, None)])
def test_nothing(kind, bidirectional, dtype, steps, rows):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=bidirectional, dtype=dtype)
    p = random_problem(layer, steps, rows)
    y, state = layer(p.x, p.state)
    assert y.shape == p.dy.shape
    y, state, tape = p.forward(layer)
    for got, want in zip(parts(state), parts(p.state), strict=True):
        assert got.tobytes() == want.tobytes()
    grads = p.backward(layer, tape, rk.Clip(1.0, 1.0, 1.0, 1.0))
    assert grads.x.shape == p.x.shape
    assert not any(g.any() for g in grads.params.values())
    assert (grads.norm, grads.scale, grads.finite) == (0.0, 1.0, True)
    if not bidirectional and rows == B:
        stream = layer.stream(rows)
        stream.state = p.state
        assert stream.run(p.x).shape == y.shape
        assert frozen(stream) == [part.tobytes() for part in parts(p.state)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_no_length(kind):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=True)
    p = random_problem(layer, T, B, lengths=np.zeros(B, int))
    y, state, tape = p.forward(layer)
    grads = p.backward(layer, tape)
    assert not y.any()
    assert not grads.x.any()
    assert not any(g.any() for g in grads.params.values())
    found = parts(state) + parts(grads.state)
    for got, want in zip(found, parts(p.state) + handed_through(layer, p.dstate), strict=True):
        assert got.tobytes() == want.tobytes()


def test_an_empty_batch_of_any_length_takes_no_time():
    layer = make_layer("lstm", I, H, num_layers=3, dropout=0.5, bidirectional=True)
    x = np.empty((10**12, 0, I), np.float32)
    assert layer(x)[0].shape == (10**12, 0, 2 * H)
    y, _, tape = layer.forward(x, None, np.zeros(0, int))
    assert layer.backward(tape, y).x.shape == x.shape


@pytest.mark.parametrize("size", [2**46, 2**50, 2**57, 2**60])
def test_sequences_beyond_memory(size):
    layer = make_layer("lstm", 1, H, num_layers=2)
    one = np.zeros((1, 1, 1), np.float32)
    long, wide = np.broadcast_to(one, (size, 1, 1)), np.broadcast_to(one, (1, size, 1))
    for call, x in [
        (layer, long),
        (layer, wide),
        (layer, wide[:0]),
        (layer, long[:, 0]),
        (layer.forward, long),
        (layer.forward, wide),
        (layer.stream().run, long),
    ]:
        with pytest.raises((MemoryError, ValueError)):
            call(x)


# ---- runtime -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "error"),
    [
        *((n, ValueError) for n in (0, -1, 1025, 2**70)),
        *((n, TypeError) for n in (True, 1.0, "1", None, np.True_, np.array([1, 2]))),
    ],
)
@pytest.mark.parametrize("use", [rk.set_num_threads, rk.num_threads])
def test_threads(use, n, error):
    before = rk.get_num_threads()
    with refused(error, "n: expected "), use(n):
        pass
    assert rk.get_num_threads() == before


@pytest.mark.parametrize("name", ["mmx", "", "AVX2", *(s + "\0x" for s in rk.info()["available"])])
def test_unknown_instruction_sets(name):
    before = rk.info()["isa"]
    all_names = ", ".join(rk.info()["available"])
    with refused(ValueError, f"expected one of {all_names}, got {name!r}"), rk.force_isa(name):
        pass
    assert rk.info()["isa"] == before


@pytest.mark.parametrize("name", [None, 5])
def test_instruction_sets_that_are_no_names(name):
    with refused(TypeError, "name: "), rk.force_isa(name):
        pass


# ---- anything at all ---------------------------------------------------------------------------

ROWS_I, ROWS_H = np.ones((B, I), np.float32), np.ones((B, H), np.float32)
SEQUENCE_I, SEQUENCE_H = np.ones((T, B, I), np.float32), np.ones((T, B, H), np.float32)
STATE = np.ones((1, B, H), np.float32)
SIZES = st.sampled_from([0, 1, 2, I, H])
DTYPES = st.sampled_from(["f4", "f8", "f2", ">f4", "i8", "u8", "?", "O", "c8", "M8[s]", "S1"])
SHAPES = st.one_of(
    st.lists(SIZES, max_size=5),
    st.tuples(SIZES, SIZES, st.just(I)),
    st.tuples(SIZES, SIZES, st.just(H)),
)
FLOATS = st.builds(np.ones, SHAPES, st.just(np.float32))
NO_FLOATS = st.builds(np.ones, SHAPES, DTYPES)
ANYTHING = st.one_of(
    st.none(), FLOATS, NO_FLOATS, st.integers(), st.text(max_size=3), st.lists(st.floats())
)
STATES = st.one_of(ANYTHING, st.tuples(FLOATS, FLOATS), st.lists(ANYTHING).map(tuple))
LENGTHS = st.one_of(ANYTHING, st.lists(st.integers(-1, 6)), st.lists(st.integers()).map(np.array))


def often(*usual, otherwise=ANYTHING):
    """Mostly what fits, so that calls get as far as the next argument, and often to the end."""
    return st.integers(0, 3).flatmap(lambda i: st.sampled_from(usual) if i else otherwise)


def attempt(use, names, watched):
    """The result; None where wrong input was refused by name and nothing was written."""
    before = frozen(watched)
    try:
        return use()
    except (TypeError, ValueError) as error:
        message = str(error)
    assert re.match(rf"({names})(\[[01]\])?: expected .+, got ", message)
    assert frozen(watched) == before
    return None


@pytest.mark.parametrize("kind", ["gru", "lstm", "min_gru"])
@settings(max_examples=300)
@given(
    x=often(SEQUENCE_I),
    state=often(None, STATE, (STATE, STATE), otherwise=STATES),
    lengths=often(None, np.array([T, 0]), otherwise=LENGTHS),
    dy=often(None, SEQUENCE_H),
    dstate=often(None, STATE, (STATE, STATE), otherwise=STATES),
)
def test_any_arguments(kind, x, state, lengths, dy, dstate):
    layer = make_layer(kind, I, H)
    done = attempt(lambda: layer.forward(x, state, lengths), "x|state|lengths", layer)
    if done is None:
        return
    y, _, tape = done
    assert y.shape == (*x.shape[:-1], H)
    grads = attempt(lambda: layer.backward(tape, dy, dstate), "dy|dstate", layer)
    assert grads is None or grads.x.shape == x.shape


@settings(max_examples=300)
@given(
    x=often(ROWS_I, SEQUENCE_I),
    out=often(None, ROWS_H, SEQUENCE_H),
    state=often((STATE, STATE), otherwise=STATES),
)
def test_any_arguments_of_a_stream(x, out, state):
    stream = make_layer("lstm", I, H).stream(B)
    attempt(lambda: setattr(stream, "state", state), "state", stream)
    for use in (stream.step, stream.run):
        y = attempt(lambda use=use: use(x, out), "x|out", stream)
        assert y is None or y.shape == (*x.shape[:-1], H)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_construction_is_refused_and_changes_nothing(kind):
    layer = make_layer(kind, 3, 4)

    def seen():
        names = set(public_attributes(layer)) - {"params"}
        return {name: getattr(layer, name) for name in names}, frozen(layer)

    before = seen()
    with pytest.raises(TypeError, match="expected a new object, got one that is constructed"):
        layer.__init__(5, 6, 2)
    assert seen() == before
