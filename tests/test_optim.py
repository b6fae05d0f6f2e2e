"""The optimizers: against the reference's formulas, against PyTorch, and bit against bit."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set
from hypothesis import given
from hypothesis import strategies as st

import rnnkern as rk
from rnnkern.reference import adam, adamw, clip_factor, joint_norm, penalized, rmsprop, sgd

# A step rounds some 15 times, each time a number of size at most 4 by at most half an eps; six
# steps may add up. Divisions by sqrt(v) are of the size of g, so they don't magnify more than 4x.
TOLERANCE = {
    np.float32: {"rtol": 0, "atol": 6 * 15 * 4 * 2.0**-24},
    np.float64: {"rtol": 0, "atol": 6 * 15 * 4 * 2.0**-53},
}
DTYPES = list(TOLERANCE)
SIZES = [0, 1, 7, 15, 17, 33, 1000]  # below, at and behind the vectors of all instruction sets
STEPS = 6
LARGE = 8 * 2**14 + 7  # elements: worth eight threads, with a tail


OPTIMIZERS = {"sgd": rk.SGD, "rmsprop": rk.RMSprop, "adam": rk.Adam, "adamw": rk.AdamW}
REFERENCES = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam, "adamw": adamw}
MOMENTS = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2}
DEFAULTS = {
    "sgd": {"lr": 0.1},
    "rmsprop": {"lr": 0.01},
    "adam": {"lr": 0.05},
    "adamw": {"lr": 0.05},
}
# Each setting that is not a default must change the result.
SETTINGS = [
    ("sgd", {}),
    ("sgd", {"lr": 0.2}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {}),
    ("rmsprop", {"lr": 0.02}),
    ("rmsprop", {"alpha": 0.9}),
    ("rmsprop", {"eps": 0.1}),
    ("rmsprop", {"momentum": 0.5}),
    ("adam", {}),
    ("adam", {"lr": 0.1}),
    ("adam", {"betas": (0.8, 0.999)}),
    ("adam", {"betas": (0.9, 0.9)}),
    ("adam", {"betas": (0.0, 0.0)}),
    ("adam", {"eps": 0.1}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.0}),
]
PENALTIES = [{}, {"l1": 0.05}, {"l2": 0.2}, {"l1": 0.05, "l2": 0.2}]

every_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS, ids=str)
every_kind = pytest.mark.parametrize("kind", OPTIMIZERS)


def drawn(*shape, dtype=np.float64, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def problem(n, dtype, steps=STEPS):
    """A parameter array with zeros of both signs in it, and gradients for some steps."""
    p = drawn(n, dtype=dtype)
    p[1::5] = 0.0
    p[2::5] = -0.0
    return p, [drawn(n, dtype=dtype, seed=1 + i) for i in range(steps)]


def run(kind, p, gradients, *, max_norm=None, **options):
    """A copy of p after steps with the package."""
    params = {"w": p.copy()}
    opt = OPTIMIZERS[kind](params, **(DEFAULTS[kind] | options))
    for g in gradients:
        assert opt.step({"w": g}, max_norm).applied
    return params["w"]


def run_reference(kind, p, gradients, *, max_norm=None, l1=0.0, l2=0.0, **options):
    p, moments = p.astype(np.float64), [np.zeros(p.shape)] * MOMENTS[kind]
    for step, g in enumerate(np.asarray(gradients, np.float64), start=1):
        scale = 1.0 if max_norm is None else clip_factor(joint_norm([g]), max_norm)
        g = penalized(p, g, scale=scale, l1=l1, l2=l2)
        count = [step] if kind.startswith("adam") else []
        p, *moments = REFERENCES[kind](p, g, *moments, *count, **(DEFAULTS[kind] | options))
    return p


def frozen(array):
    array.flags.writeable = False
    return array


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def steps_of(opt):
    return opt.state_dict()[f"{opt._kind}.step"]


def states(opt, *dicts):
    """All that a step may write."""
    kept = [opt.state_dict(), *dicts]
    return [{name: array.copy() for name, array in d.items()} for d in kept]


# ---------------------------------------------------------------------- against the reference


@every_setting
@in_each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_settings_are_the_references(kind, options, dtype, n):
    p, gradients = problem(n, dtype)
    expected = run_reference(kind, p, gradients, **options)
    np.testing.assert_allclose(run(kind, p, gradients, **options), expected, **TOLERANCE[dtype])


@every_kind
@in_each_dtype
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
@in_each_set
def test_penalties_and_clip_are_the_references(kind, dtype, penalties, max_norm, isa):
    p, gradients = problem(33, dtype)
    expected = run_reference(kind, p, gradients, max_norm=max_norm, **penalties)
    with rk.force_isa(isa):
        got = run(kind, p, gradients, max_norm=max_norm, **penalties)
    np.testing.assert_allclose(got, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize(("kind", "options"), [s for s in SETTINGS if s[1]], ids=str)
def test_each_option_changes_the_result(kind, options):
    p, gradients = problem(33, np.float64)
    without_one = [{k: v for k, v in options.items() if k != left_out} for left_out in options]
    without_one = [o for o in without_one if "momentum" in o or "nesterov" not in o]
    got = run(kind, p, gradients, **options)
    for fewer in without_one:
        assert np.abs(got - run(kind, p, gradients, **fewer)).max() > 1e-3


@every_kind
@pytest.mark.parametrize("option", [{"l1": 0.05}, {"l2": 0.2}, {"max_norm": 1.0}], ids=str)
def test_each_penalty_and_the_clip_change_the_result(kind, option):
    p, gradients = problem(33, np.float64)
    gradients = [g * (1 + i) for i, g in enumerate(gradients)]  # Adam ignores a constant scale
    got = run(kind, p, gradients, **option)
    assert np.abs(got - run(kind, p, gradients)).max() > 1e-3


def test_lr_may_be_set_between_steps():
    params = {"w": np.zeros(3)}
    opt = rk.SGD(params, lr=1.0)
    opt.step({"w": np.ones(3)})
    opt.lr = 0.25
    opt.step({"w": np.ones(3)})
    assert opt.lr == 0.25
    assert params["w"].tolist() == [-1.25] * 3
    with pytest.raises(ValueError, match=r"^lr: expected a finite number >= 0, got -1$"):
        opt.lr = -1
    assert opt.lr == 0.25


@every_kind
def test_each_parameter_has_the_lr_of_its_first_pattern(kind):
    names = ("weight_ih", "weight_hh", "bias")
    dicts = {
        group: {name: drawn(17, seed=i) for i, name in enumerate(names)} for group in ("enc", "dec")
    }
    grads = {
        group: {name: drawn(17, seed=9 + i) for i, name in enumerate(names)} for group in dicts
    }
    lrs = {"enc/bias": 0.5, "bias": 0.25, "enc/*": 0.125, "*": 0.0625}
    want = {}
    for lr in lrs.values():  # of a step with one rate for all
        params = {group: {n: a.copy() for n, a in d.items()} for group, d in dicts.items()}
        opt = OPTIMIZERS[kind](params, **(DEFAULTS[kind] | {"lr": lr}))
        opt.step(grads, max_norm=1.0)
        opt.step(grads, max_norm=1.0)
        want[lr] = params
    opt = OPTIMIZERS[kind](dicts, **(DEFAULTS[kind] | {"lr": lrs}))
    assert opt.lr == lrs
    opt.step(grads, max_norm=1.0)
    opt.step(grads, max_norm=1.0)
    for group, d in dicts.items():
        for name, array in d.items():
            lr = 0.25 if name == "bias" else 0.0625
            lr = {"enc": 0.5 if name == "bias" else 0.125, "dec": lr}[group]
            assert same_bits(array, want[lr][group][name])


def test_lr_by_name_may_be_set_between_steps():
    params = {"w": np.zeros(2), "b": np.zeros(2)}
    opt = rk.SGD(params, lr={"w": 1.0, "*": 0.5})
    ones = {"w": np.ones(2), "b": np.ones(2)}
    opt.step(ones)
    opt.lr["w"] = 9.0  # of a copy
    opt.lr = {name: lr / 2 for name, lr in opt.lr.items()}
    opt.step(ones)
    opt.lr = 0.125
    opt.step(ones)
    assert (params["w"].tolist(), params["b"].tolist()) == ([-1.625] * 2, [-0.875] * 2)
    assert opt.lr == 0.125
    for lr, message in (
        (
            {"w": 1.0},
            "lr: expected a pattern for each parameter ('*' at the end matches all others)",
        ),
        ({"w": 1.0, "*": -1}, "lr['*']: expected a finite number >= 0, got -1"),
        ({"w": 1.0, "v": 1.0, "*": 1.0}, "lr: expected patterns of the names ['w', 'b'], got 'v'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            opt.lr = lr
    assert opt.lr == 0.125
    assert rk.SGD(params, lr={"w": 1.0, "b": 0}).lr == {"w": 1.0, "b": 0}
    assert repr(rk.SGD(params, lr={"*": 1.0})).startswith("SGD(2 arrays, lr={'*': 1.0}, momentum")


def test_lr_by_name_may_be_functions_of_the_step():
    params = {"w": np.zeros(2), "b": np.zeros(2)}
    opt = rk.SGD(params, lr={"w": lambda step: 2.0**-step, "*": rk.schedules.Constant(0.5)})
    for step in range(3):
        assert opt.lr == {"w": 2.0**-step, "*": 0.5}
        opt.step({"w": np.ones(2), "b": np.ones(2)})
    assert (params["w"].tolist(), params["b"].tolist()) == ([-1.75] * 2, [-1.5] * 2)
    assert opt.schedule is None
    assert list(opt.state_dict()) == ["sgd.step", "sgd.skipped"]
    before = dict(opt.lr)
    for lr, error, message in (
        (rk.schedules.Plateau(0.5), ValueError, "function of the step alone, got a Plateau"),
        (lambda step: -1.0, ValueError, "a finite number >= 0, got -1.0"),
        ("1", TypeError, "a number or a function of the step, got str"),
    ):
        with pytest.raises(error, match=r"^lr\['w'\]: expected .*" + re.escape(message)):
            opt.lr = {"w": lr, "*": 1.0}
    assert opt.lr == before


def test_lr_of_a_tied_parameter_is_one():
    w = np.zeros(2)
    with pytest.raises(ValueError, match=r"^lr: expected one strength for the tied params\['a'\]"):
        rk.SGD({"a": {"w": w}, "b": {"w": w}}, lr={"a/*": 1.0, "*": 0.5})


def test_the_largest_lr_says_whether_a_step_is_tried():
    """A step of a rate so large may overflow, and writes nothing then."""
    params = {"w": np.full(2, -3e38, np.float32), "b": np.zeros(2, np.float32)}
    opt = rk.SGD(params, lr={"w": 3e38, "b": 0.1})
    ones = {name: np.ones(2, np.float32) for name in params}
    assert not opt.step(ones).applied
    assert not params["b"].any()


class Dropout:
    """A module without parameters."""

    def forward(self, x):
        return x, None

    def backward(self, tape, dy):
        return dy


def test_a_module_without_parameters_may_be_among_the_groups():
    groups = {"out": rk.Linear(3, 2, seed=0), "drop": Dropout(), "none": {}}
    opt = rk.Adam(groups)
    grads = {name: np.ones_like(array) for name, array in groups["out"].params.items()}
    for one in ({"out": grads}, {"drop": {}, "out": grads}):
        assert opt.step(one).applied
    assert list(opt.state_dict())[2:4] == ["out.weight.first", "out.weight.second"]
    assert opt.step({"out": grads, "drop": {}, "none": {}}).applied
    for wrong, message in (
        ({"drop": {}}, "grads: expected the groups ['out'], got ['drop']"),
        ({"out": grads, "other": {}}, "grads: expected the groups ['out'], got ['out', 'other']"),
        ({"out": grads, "drop": {"w": np.ones(1)}}, "grads['drop']: expected the names [], got"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            opt.step(wrong)
    assert rk.SGD([groups["out"], Dropout()], 0.1).step([grads, {}]).applied
    with pytest.raises(ValueError, match=r"^params: expected at least one array, got none$"):
        rk.SGD({"drop": Dropout()}, 0.1)


def test_momentum_and_second_moment_are_the_references():
    params = {"w": drawn(5)}
    opt = rk.RMSprop(params, momentum=0.5)
    g = drawn(5, seed=1)
    _, second, first = rmsprop(params["w"].copy(), g, np.zeros(5), np.zeros(5), lr=0, momentum=0.5)
    opt.step({"w": g})
    state = opt.state_dict()
    np.testing.assert_allclose(state["0.w.first"], first, rtol=1e-15)
    np.testing.assert_allclose(state["0.w.second"], second, rtol=1e-15)


# ----------------------------------------------------------------------------- against PyTorch


@in_each_dtype
@pytest.mark.parametrize(
    ("kind", "name", "options", "torch_options"),
    [
        ("sgd", "SGD", {}, {}),
        ("sgd", "SGD", {"momentum": 0.9, "l2": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}),
        ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", "RMSprop", {}, {}),
        (
            "rmsprop",
            "RMSprop",
            {"momentum": 0.5, "l2": 0.1},
            {"momentum": 0.5, "weight_decay": 0.1},
        ),
        ("rmsprop", "RMSprop", {"alpha": 0.9, "eps": 0.1}, {"alpha": 0.9, "eps": 0.1}),
        ("adam", "Adam", {"l2": 0.1}, {"weight_decay": 0.1}),
        ("adam", "Adam", {"betas": (0.8, 0.9), "eps": 0.1}, {"betas": (0.8, 0.9), "eps": 0.1}),
        ("adamw", "AdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ("adamw", "AdamW", {}, {}),
    ],
)
@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_steps_are_pytorchs(kind, name, options, torch_options, dtype, max_norm):
    torch = pytest.importorskip("torch")
    arrays = [drawn(17, 3, dtype=dtype), drawn(5, dtype=dtype, seed=1)]
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    theirs = getattr(torch.optim, name)(tensors, lr=DEFAULTS[kind]["lr"], **torch_options)
    params = {str(i): a.copy() for i, a in enumerate(arrays)}
    ours = OPTIMIZERS[kind](params, **DEFAULTS[kind], **options)
    for step in range(STEPS):
        grads = {k: drawn(*p.shape, dtype=dtype, seed=10 + step) for k, p in params.items()}
        for tensor, g in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(g)
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        theirs.step()
        done = ours.step(grads, max_norm)
        if max_norm is not None:
            assert done.norm == pytest.approx(norm.item(), rel=1e-6)  # a float32 sum over there
    for ours_now, tensor in zip(params.values(), tensors, strict=True):
        # Two evaluations, each of them as far from the exact one as TOLERANCE says.
        tolerance = {"rtol": 0, "atol": 2 * TOLERANCE[dtype]["atol"]}
        np.testing.assert_allclose(ours_now, tensor.detach().numpy(), **tolerance)


# ------------------------------------------------------------------------------ norm and clip


def lanes_summed(x):
    """The slow twin: squares by place modulo a cache line, line after line, in doubles."""
    lanes = np.zeros(64 // x.itemsize)
    for start in range(0, x.size, lanes.size):
        line = x[start : start + lanes.size].astype(np.float64)
        lanes[: line.size] += line * line
    total = 0.0
    for lane in lanes:
        total += lane
    return total


@in_each_dtype
@pytest.mark.parametrize("n", SIZES)
@in_each_set
def test_norm_is_summed_in_one_order_on_every_set(dtype, n, isa):
    g = drawn(n, dtype=dtype)
    with rk.force_isa(isa):
        done = rk.SGD({"w": np.zeros(n, dtype)}, lr=0.0).step({"w": g})
    assert done.norm == math.sqrt(lanes_summed(g))
    assert done.norm == pytest.approx(joint_norm([g]), rel=1e-14)


def test_norm_is_joint_and_scales_all_arrays():
    dicts = [{"w": np.zeros(2), "b": np.zeros((1, 1))}, {"w": np.zeros(3, np.float32)}]
    grads = [
        {"w": np.array([1.0, -2.0]), "b": np.array([[4.0]])},
        {"w": np.array([6.0, 8.0, 0.0], np.float32)},
    ]
    done = rk.SGD(dicts, lr=1.0).step(grads, max_norm=2.2)
    assert done.norm == 11.0
    assert done.scale == 2.2 / (11.0 + 1e-6)
    assert done.applied
    for params, of in zip(dicts, grads, strict=True):
        for name, p in params.items():
            # One rounding of the scale and one of the product.
            np.testing.assert_allclose(p, -done.scale * of[name], rtol=2 * np.finfo(p.dtype).eps)


def test_norm_below_the_bound_scales_nothing():
    params = {"w": np.zeros(2)}
    done = rk.SGD(params, lr=1.0).step({"w": np.array([3.0, 4.0])}, max_norm=5.1)
    assert done == rk.Step(5.0, 1.0, True)
    assert params["w"].tolist() == [-3.0, -4.0]


def test_penalties_are_not_scaled():
    params = {"w": np.ones(1)}
    done = rk.SGD(params, lr=1.0, l1=0.25, l2=0.5).step({"w": np.array([4.0])}, max_norm=1.0)
    assert params["w"][0] == pytest.approx(1.0 - 4.0 * done.scale - 0.25 - 0.5, rel=1e-15)


def layers_and_grads(clip=None):
    layers = [rk.LSTM(3, 5, seed=0), rk.GRU(5, 4, bidirectional=True, dtype=np.float64, seed=1)]
    grads = []
    for layer in layers:
        y, _, tape = layer.forward(drawn(7, 2, layer.input_size, dtype=layer.dtype, seed=2))
        grads.append(layer.backward(tape, drawn(*y.shape, dtype=y.dtype, seed=3), clip=clip))
    return layers, grads


def test_gradients_bring_their_norm():
    layers, grads = layers_and_grads()
    own = {"out": drawn(4, 2)}
    d_own = {"out": drawn(4, 2, seed=1)}
    params = [*(layer.params for layer in layers), own]
    before = [{name: p.copy() for name, p in d.items()} for d in params]
    done = rk.SGD(params, lr=0.5).step([*grads, d_own], max_norm=1.5)

    dicts = [*(g.params for g in grads), d_own]
    norm = joint_norm([array for d in dicts for array in d.values()])
    assert done.norm == pytest.approx(norm, rel=1e-14)
    assert done.scale == pytest.approx(clip_factor(norm, 1.5), rel=1e-14)
    assert done.scale < 1.0
    for old, new, d in zip(before, params, dicts, strict=True):
        for name, p in new.items():
            expected = old[name] - 0.5 * done.scale * d[name]
            np.testing.assert_allclose(p, expected, **TOLERANCE[p.dtype.type])


def test_norm_is_that_which_backwards_own_clip_left():
    layers, grads = layers_and_grads(rk.Clip(max_norm=0.5))
    assert all(g.scale < 1.0 for g in grads)
    done = rk.SGD([layer.params for layer in layers], lr=0.5).step(grads)
    assert done.norm == pytest.approx(math.hypot(0.5, 0.5), rel=1e-5)  # PyTorch's 1e-6 / norm
    assert done.scale == 1.0


def test_norm_of_gradients_is_not_measured_again():
    told = SimpleNamespace(params={"w": frozen(np.ones(2))}, norm=8.0, scale=0.5, finite=True)
    params = {"w": np.zeros(2)}
    done = rk.SGD(params, lr=1.0).step(told, max_norm=1.0)
    assert done == rk.Step(4.0, 1.0 / (4.0 + 1e-6), True)
    assert params["w"][0] == -done.scale


def test_norm_of_gradients_may_underflow_whatever_numpy_traps():
    norm, finite = np.array([1e-300, 1e300]), np.ones(2, bool)
    params, g = {"w": np.zeros((2, 3))}, {"w": frozen(np.zeros((2, 3)))}
    told = SimpleNamespace(params=g, norm=norm, scale=np.array([1e-300, 1e300]), finite=finite)
    with np.errstate(all="raise"):
        done = rk.SGD(params, lr=1.0, ensemble=2).step(told)
    assert done.norm.tolist() == [0.0, math.inf]
    assert done.applied.tolist() == [True, False]


# ---------------------------------------------------------------------------------- penalties


# Each of 2.0 loses its slope times the strength in a step of lr 1 along a gradient of zeros.
STRENGTHS = {"l1": (rk.SGD, 1.0), "l2": (rk.SGD, 2.0), "weight_decay": (rk.AdamW, 2.0)}


@pytest.mark.parametrize("penalty", STRENGTHS)
def test_first_pattern_that_matches_counts(penalty):
    dicts = [
        {"weight_ih": np.full(2, 2.0), "bias": np.full(2, 2.0)},
        {"weight_hh": np.full(2, 2.0)},
    ]
    patterns = {"weight_h?": 0.5, "weight_*": 0.25}
    zeros = [{name: np.zeros(2) for name in d} for d in dicts]
    make, slope = STRENGTHS[penalty]
    make(dicts, lr=1.0, **{penalty: patterns}).step(zeros)
    assert dicts[0]["weight_ih"].tolist() == [2.0 - 0.25 * slope] * 2
    assert dicts[0]["bias"].tolist() == [2.0] * 2
    assert dicts[1]["weight_hh"].tolist() == [2.0 - 0.5 * slope] * 2


# -------------------------------------------------------------------------------- skipped steps


@every_kind
@in_each_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 16, 36])  # in a whole line and behind it
def test_step_that_is_not_finite_touches_nothing(kind, dtype, bad, place):
    first, second = {"w": drawn(37, dtype=dtype)}, {"w": drawn(4, 3)}
    opt = OPTIMIZERS[kind]([first, second], **DEFAULTS[kind])
    good = [{"w": drawn(37, dtype=dtype, seed=1)}, {"w": drawn(4, 3, seed=2)}]
    opt.step(good)
    before = states(opt, first, second)
    broken = [{"w": good[0]["w"].copy()}, good[1]]
    broken[0]["w"][place] = bad
    done = opt.step(broken, max_norm=1.0)
    assert not done.applied
    assert not math.isfinite(done.norm)
    assert done.scale == 1.0
    assert opt.skipped == 1
    before[0][f"{opt._kind}.skipped"] += 1
    for was, now in zip(before, states(opt, first, second), strict=True):
        assert all(same_bits(was[name], now[name]) for name in was)
    assert opt.step(good).applied
    assert opt.skipped == 1
    assert steps_of(opt) == 2


def test_norm_too_large_for_a_double_is_skipped():
    params = {"w": np.zeros(2)}
    opt = rk.SGD(params, lr=1.0)
    assert opt.step({"w": np.full(2, 1e200)}, max_norm=1.0) == rk.Step(math.inf, 1.0, False)
    assert params["w"].tolist() == [0.0, 0.0]


def test_gradients_that_were_not_finite_are_skipped():
    layer = rk.RNN(2, 3, seed=0)
    x = np.ones((4, 1, 2), np.float32)
    x[2] = np.inf
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(y), clip=rk.Clip(value=1.0))
    assert not grads.finite
    opt = rk.Adam(layer.params)
    before = states(opt, layer.params)
    assert not opt.step(grads).applied
    assert opt.skipped == 1
    for name, p in layer.params.items():
        assert same_bits(p, before[1][name])


def test_ten_skipped_steps_in_a_row_are_told_of():
    bad, good = {"w": np.array([np.nan])}, {"w": np.ones(1)}
    opt = rk.SGD({"w": np.zeros(1)}, lr=1.0)
    for grads in [*[bad] * 9, good, *[bad] * 9]:  # any warning is an error here
        opt.step(grads)
    with pytest.warns(RuntimeWarning, match="10 steps in a row were skipped") as told:
        opt.step(bad)
    assert told[0].filename == __file__
    opt.step(bad)  # once
    assert opt.skipped == 20


def test_members_that_skip_ten_steps_in_a_row_are_told_of():
    opt = rk.SGD({"w": np.zeros((2, 1))}, lr=1.0, ensemble=2)
    bad = {"w": np.array([[np.nan], [1.0]])}
    for _ in range(9):
        opt.step(bad)
    with pytest.warns(RuntimeWarning, match="10 steps of members in a row were skipped"):
        assert opt.step(bad).applied.tolist() == [False, True]


def test_flag_of_gradients_alone_skips():
    told = SimpleNamespace(params={"w": frozen(np.ones(2))}, norm=2.0, scale=1.0, finite=False)
    opt = rk.SGD({"w": np.zeros(2)}, lr=1.0)
    assert opt.step(told) == rk.Step(2.0, 1.0, False)


def test_a_pattern_behind_wider_ones_is_refused():
    params = {"weight_ih": np.ones(2), "weight_hh": np.ones(2), "bias": np.ones(2)}
    message = "expected patterns that decide for a parameter, the first that fits, got 'weight_hh'"
    for name, make in (("l2", rk.SGD), ("l1", rk.Adam), ("weight_decay", rk.AdamW)):
        with pytest.raises(ValueError, match=f"^{name}: {re.escape(message)}"):
            make(params, lr=0.1, **{name: {"weight_*": 0.0, "weight_hh": 0.5}})
        make(params, lr=0.1, **{name: {"weight_hh": 0.5, "weight_*": 0.0}})


def test_the_number_of_members_is_that_of_the_layers():
    grus, gru = rk.GRU(2, 3, ensemble=4), rk.GRU(2, 3)
    rk.Adam(grus, ensemble=4)
    for params, ensemble, message in (
        (grus, None, "ensemble: expected 4, that of params, got None"),
        (grus, 3, "ensemble: expected 4, that of params, got 3"),
        ([gru, grus], None, "ensemble: expected 4, that of params[1], got None"),
        ({"a": gru}, 4, "ensemble: expected None, that of params['a'], got 4"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            rk.Adam(params, ensemble=ensemble)


# ------------------------------------------------------------------------------------- overflow

MAX = float(np.finfo(np.float32).max)
OVERFLOWS = {
    "second moment of Adam": (rk.Adam, {}, 1e21, 0.0),
    "second moment of AdamW": (rk.AdamW, {}, -1e21, 0.0),
    "second moment of RMSprop": (rk.RMSprop, {}, 1e21, 0.0),
    "second moment by a penalty": (lambda p: rk.Adam(p, l1=1e30), {}, 0.0, 1.0),
    "parameter of SGD": (lambda p: rk.SGD(p, 1e10), {}, 1e30, 0.0),
    "parameter by many steps": (lambda p: rk.SGD(p, 1.0), {}, -3e38, 3e38),
    "parameter of Adam": (lambda p: rk.Adam(p, 3e38), {}, -1.0, 3e38),
    "rate of Adam": (lambda p: rk.Adam(p, 3e38), {}, 1.0, 0.0),
    "decay of AdamW": (lambda p: rk.AdamW(p, 1e30, weight_decay=1e30), {}, 1.0, 1.0),
    "decay of SGD": (lambda p: rk.SGD(p, 1e3, l2=1e3), {}, 0.0, 1e34),
}


@pytest.mark.parametrize(("make", "options", "g", "p"), OVERFLOWS.values(), ids=OVERFLOWS)
@pytest.mark.parametrize("place", [0, 16, 36])  # in a whole line and behind it
@in_each_set
def test_step_that_would_overflow_is_skipped(make, options, g, p, place, isa):
    params = {"v": np.zeros(3, np.float32), "w": np.zeros(37, np.float32)}
    params["w"][place] = p
    opt = make(params, **options)
    grads = {"v": np.ones(3, np.float32), "w": np.zeros(37, np.float32)}
    grads["w"][place] = g
    before = states(opt, params)
    with rk.force_isa(isa):
        done = opt.step(grads)
    assert done == rk.Step(pytest.approx(math.hypot(math.sqrt(3), g), rel=1e-7), 1.0, False)
    assert opt.skipped == 1
    before[0][f"{opt._kind}.skipped"] += 1
    for was, now in zip(before, states(opt, params), strict=True):
        assert all(same_bits(was[name], now[name]) for name in was)


@every_kind
def test_training_goes_on_after_a_step_that_would_overflow(kind):
    params = {"w": np.zeros(3, np.float32)}
    opt = OPTIMIZERS[kind](params, **(DEFAULTS[kind] | {"lr": 0.1}))
    assert opt.step({"w": np.full(3, 1e21, np.float32)}).applied == (kind == "sgd")
    before = params["w"].copy()
    assert opt.step({"w": np.full(3, 1e21, np.float32)}, max_norm=1.0).applied  # of the clipped
    assert (params["w"] != before).all() or kind == "sgd"  # a step of 0.1 from 1e20
    assert opt.step({"w": np.ones(3, np.float32)}).finite


def test_largest_gradient_whose_moment_is_finite_is_applied():
    root = math.sqrt(MAX)
    for g, fits in ((root * (1 - 1e-6), True), (root * (1 + 1e-6), False)):
        params = {"w": np.zeros(1, np.float32)}
        opt = rk.Adam(params, lr=0.1)
        done = opt.step({"w": np.array([g], np.float32)})
        assert (done.applied, done.finite) == (fits, True)
        assert (params["w"][0] != 0) == fits
        assert np.isfinite(opt.state_dict()["0.w.second"]).all()


def test_quotient_by_a_tiny_eps_that_would_overflow_is_skipped():
    params = {"w": np.zeros(1, np.float32)}
    opt = rk.Adam(params, lr=0.1, betas=(0.9, 0.0), eps=1.2e-38)
    assert opt.step({"w": np.full(1, 1e3, np.float32)}).applied
    before = params["w"].copy()
    assert not opt.step({"w": np.zeros(1, np.float32)}).applied  # m / eps
    assert same_bits(params["w"], before)


@pytest.mark.filterwarnings("ignore:10 steps in a row:RuntimeWarning")
def test_decay_that_makes_a_parameter_grow_never_makes_it_infinite():
    for make in (
        lambda p: rk.SGD(p, 0.5, l2=10.0),
        lambda p: rk.AdamW(p, 0.5, weight_decay=10.0),
    ):
        params = {"w": np.ones(3, np.float32)}
        opt = make(params)
        done = [opt.step({"w": np.zeros(3, np.float32)}) for _ in range(200)]
        assert np.isfinite(params["w"]).all()
        assert all(one.finite for one in done)
        assert 0 < opt.skipped < 200


def test_doubles_overflow_at_their_own_limits():
    params = {"w": np.zeros(1)}
    assert rk.SGD(params, lr=1.0).step({"w": np.array([1e152])}).applied
    assert params["w"].tolist() == [-1e152]
    opt = rk.SGD(params, lr=1e200)
    assert opt.step({"w": np.array([1e120])}) == rk.Step(1e120, 1.0, False)
    assert params["w"].tolist() == [-1e152]


def test_members_that_would_overflow_are_skipped_alone():
    params = {"w": np.zeros((4, 2), np.float32)}
    opt = rk.Adam(params, lr=0.1, ensemble=4)
    grads = np.ones((4, 2), np.float32)
    grads[1, 0], grads[2, 1], grads[3, 0] = 1e21, math.nan, 1e16
    done = opt.step({"w": grads})
    assert done.applied.tolist() == [True, False, False, True]
    assert done.finite.tolist() == [True] * 4
    assert (params["w"] != 0).any(axis=1).tolist() == [True, False, False, True]
    assert opt.skipped.tolist() == [0, 1, 1, 0]
    assert steps_of(opt).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("threads", [1, 2, 5, 8])
@pytest.mark.parametrize("place", [0, LARGE // 2, LARGE - 1])
def test_overflow_in_any_threads_part_is_found(threads, place):
    params = {"w": np.zeros(LARGE, np.float32)}
    grads = {"w": np.zeros(LARGE, np.float32)}
    grads["w"][place] = 1e21
    with rk.num_threads(threads):
        assert not rk.Adam(params).step(grads).applied
    assert not params["w"].any()


@every_kind
@in_each_dtype
@pytest.mark.parametrize("place", [0, 16, 36])
@in_each_set
def test_step_that_writes_what_is_not_finite_says_so(kind, dtype, place, isa):
    """A parameter that was not finite before, or a penalty on one that is far too large."""
    for p, l2, gone in ((math.nan, 0.0, True), (-math.inf, 0.0, True), (1.0, 0.0, False)):
        params = {"v": np.ones(3, dtype), "w": np.zeros(37, dtype)}
        params["w"][place] = p
        opt = OPTIMIZERS[kind](params, **DEFAULTS[kind], l2=l2)
        with rk.force_isa(isa):
            done = opt.step({"v": np.ones(3, dtype), "w": np.zeros(37, dtype)})
        assert (done.applied, done.finite) == (True, not gone)
    params = {"w": np.full(1, np.finfo(dtype).max / 2, dtype)}
    opt = rk.RMSprop(params, lr=1e-9, l2=1.0)  # the square of l2 p
    assert opt.step({"w": np.zeros(1, dtype)})[2:] == (True, False)


def test_each_member_says_whether_it_is_finite():
    params = {"w": np.ones((3, 2)), "v": np.ones((3, 1), np.float32)}
    params["w"][1, 1] = math.nan
    params["v"][2] = math.inf
    grads = {name: np.ones_like(array) for name, array in params.items()}
    done = rk.SGD(params, lr=0.1, ensemble=3).step(grads)
    assert done.finite.tolist() == [True, False, False]
    assert done.applied.all()


# ---------------------------------------------------------------------------------- same bits


@every_setting
@in_each_dtype
def test_threads_do_not_change_a_bit(kind, options, dtype):
    p, gradients = problem(LARGE, dtype, steps=2)
    results = []
    for threads in range(1, 9):
        with rk.num_threads(threads):
            results.append(run(kind, p, gradients, max_norm=1.0, l1=0.05, l2=0.2, **options))
    assert all(same_bits(results[0], result) for result in results[1:])


@pytest.mark.skipif(
    len(fused_sets()) < 2, reason="this machine has one set with a fused multiply-add"
)
@every_setting
@in_each_dtype
def test_instruction_sets_do_not_change_a_bit(kind, options, dtype):
    p, gradients = problem(1000, dtype)
    results = []
    for isa in fused_sets():
        with rk.force_isa(isa):
            results.append(run(kind, p, gradients, max_norm=1.0, l1=0.05, l2=0.2, **options))
    assert all(same_bits(results[0], result) for result in results[1:])


@given(
    kind=st.sampled_from(list(OPTIMIZERS)),
    dtype=st.sampled_from(DTYPES),
    n=st.integers(0, 100),
    cut=st.integers(0, 100),
    offset=st.integers(0, 9),
)
def test_place_of_an_element_does_not_change_a_bit(kind, dtype, n, cut, offset):
    p, gradients = problem(n, dtype)
    whole = run(kind, p, gradients, l1=0.05, l2=0.2)
    room = np.empty(offset + n, dtype)
    room[offset:] = p
    params = {"a": room[offset:][:cut], "b": room[offset:][cut:]}
    opt = OPTIMIZERS[kind](params, **DEFAULTS[kind], l1=0.05, l2=0.2)
    for g in gradients:
        opt.step({"a": g[:cut], "b": g[cut:]})
    assert same_bits(room[offset:], whole)


@given(
    kind=st.sampled_from(list(OPTIMIZERS)),
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    layout=st.sampled_from(["transposed", "strided", "reversed", "misaligned"]),
)
def test_layout_of_a_gradient_does_not_change_a_bit(kind, dtype, shape, layout):
    p = drawn(*shape, dtype=dtype)
    g = drawn(*shape, dtype=dtype, seed=1)
    if layout == "transposed":
        same = np.asfortranarray(g)
    elif layout == "strided":
        same = np.repeat(g[..., None], 2, axis=-1)[..., 0]
    elif layout == "reversed":
        same = np.flip(np.flip(g).copy())
    else:
        same = np.frombuffer(b"-" + g.tobytes(), dtype, g.size, offset=1).reshape(shape)
        assert g.size == 0 or not same.flags.aligned
    assert same_bits(run(kind, p, [g]), run(kind, p, [same]))


@every_setting
def test_state_goes_on_with_the_same_bits(kind, options):
    p, gradients = problem(33, np.float32)
    make = OPTIMIZERS[kind]
    params = {"w": p.copy()}
    opt = make(params, **(DEFAULTS[kind] | options))
    for g in gradients[:3]:
        opt.step({"w": g})
    opt.step({"w": np.full(33, np.nan, np.float32)})
    copy, state = {"w": params["w"].copy()}, opt.state_dict()
    for g in gradients[3:]:
        opt.step({"w": g})
    assert not np.shares_memory(
        opt.state_dict().get("0.w.second", p), state.get("0.w.second", p[:0])
    )

    other = make(copy, **(DEFAULTS[kind] | options))
    other.load_state_dict(state)
    assert other.skipped == 1
    for g in gradients[3:]:
        other.step({"w": g})
    assert same_bits(copy["w"], params["w"])
    for name, array in opt.state_dict().items():
        assert same_bits(array, other.state_dict()[name])


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: rk.SGD(p, 0.1), []),
        (lambda p: rk.SGD(p, 0.1, momentum=0.9), ["0.w.first", "1.w.first"]),
        (lambda p: rk.RMSprop(p), ["0.w.second", "1.w.second"]),
        (rk.Adam, ["0.w.first", "0.w.second", "1.w.first", "1.w.second"]),
    ],
)
def test_state_has_stable_names(make, names):
    opt = make([{"w": np.zeros(2)}, {"w": np.zeros((3, 1), np.float32)}])
    state = opt.state_dict()
    assert list(state) == [f"{opt._kind}.step", f"{opt._kind}.skipped", *names]
    for name in names:
        expected = np.zeros(2) if name.startswith("0") else np.zeros((3, 1), np.float32)
        assert same_bits(state[name], expected)
    if names:
        state[names[0]][...] = 1.0
        assert opt.state_dict()[names[0]].sum() == 0.0  # a copy was handed out


# ------------------------------------------------------------------ tied and overlapping arrays


@every_kind
@in_each_dtype
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_tied_array_is_one_parameter_along_the_sum_of_its_gradients(kind, dtype, max_norm):
    shared, other = drawn(5, 3, dtype=dtype), drawn(4, dtype=dtype, seed=1)
    alone = {"w": shared.copy(), "b": other.copy()}
    penalties = {"l1": {"w": 0.05}, "l2": {"w": 0.2}}
    tied = [{"w": shared}, {"b": other, "w": shared[:]}, {"w": shared}]
    opt = OPTIMIZERS[kind](tied, **DEFAULTS[kind], **penalties)
    want = OPTIMIZERS[kind](alone, **DEFAULTS[kind], **penalties)
    for step in range(STEPS):
        a, b, c = (drawn(5, 3, dtype=dtype, seed=10 * step + i) for i in range(3))
        g = drawn(4, dtype=dtype, seed=10 * step + 3)
        done = opt.step([{"w": a}, {"b": g, "w": b}, {"w": c}], max_norm)
        assert done == want.step({"w": a + b + c, "b": g}, max_norm)
    assert same_bits(shared, alone["w"])
    assert same_bits(other, alone["b"])
    renamed = {name.replace("1.b", "0.b"): array for name, array in opt.state_dict().items()}
    assert renamed.keys() == want.state_dict().keys()
    for name, array in want.state_dict().items():
        assert same_bits(renamed[name], array)


def test_names_of_one_dict_may_be_tied():
    w = np.zeros(())
    done = rk.SGD({"a": w, "b": w}, lr=1.0).step({"a": np.array(1.0), "b": np.array(2.0)})
    assert done.norm == 3.0
    assert w == -3.0


def test_state_of_tied_arrays_goes_on_with_the_same_bits():
    w = drawn(7)
    opt = rk.Adam([{"w": w}, {"w": w}])
    opt.step([{"w": drawn(7, seed=1)}, {"w": drawn(7, seed=2)}])
    copy, state = w.copy(), opt.state_dict()
    assert list(state) == ["adam.step", "adam.skipped", "0.w.first", "0.w.second"]
    other = rk.Adam([{"w": copy}, {"w": copy}])
    other.load_state_dict(state)
    for one in (opt, other):
        one.step([{"w": drawn(7, seed=3)}, {"w": drawn(7, seed=4)}])
    assert same_bits(w, copy)


def test_gradients_of_tied_arrays_are_measured():
    """What gradients tell of their norm does not count there; whether they are finite does."""
    w, v = np.zeros(2), np.zeros(1)
    opt = rk.SGD([{"w": w}, {"w": w}, {"v": v}], lr=1.0)
    told = {"norm": 1e9, "scale": 2.0, "finite": True}
    grads = [
        SimpleNamespace(params={"w": np.array([1.0, 0.0])}, **told),
        {"w": np.array([2.0, 4.0])},
        SimpleNamespace(params={"v": np.array([12.0])}, norm=24.0, scale=0.5, finite=True),
    ]
    assert opt.step(grads) == rk.Step(13.0, 1.0, True)
    assert w.tolist() == [-3.0, -4.0]
    grads[0].finite = False
    assert not opt.step(grads).applied
    assert w.tolist() == [-3.0, -4.0]


def test_tied_gradients_whose_sum_overflows_are_skipped():
    w = np.zeros(2, np.float32)
    opt = rk.SGD([{"w": w}, {"w": w}], lr=1.0)
    big = np.full(2, 3e38, np.float32)
    assert opt.step([{"w": big}, {"w": big}]) == rk.Step(math.inf, 1.0, False)
    assert opt.step([{"w": big}, {"w": -big}]) == rk.Step(0.0, 1.0, True)
    assert not w.any()


def test_tied_arrays_of_ensembles():
    w, alone = np.zeros((3, 2)), [np.zeros(2) for _ in range(3)]
    opt = rk.Adam([{"w": w}, {"w": w}], ensemble=3)
    opts = [rk.Adam({"w": one}) for one in alone]
    for step in range(3):
        a, b = drawn(3, 2, seed=step), drawn(3, 2, seed=10 + step)
        if step == 1:
            b[1] = math.nan
        done = opt.step([{"w": a}, {"w": b}], max_norm=0.5)
        for e, one in enumerate(opts):
            want = one.step({"w": a[e] + b[e]}, max_norm=0.5)
            assert same_bits(done.norm[e], np.float64(want.norm))
            assert (done.scale[e], done.applied[e]) == (want.scale, want.applied)
    assert same_bits(w, np.array(alone))
    assert opt.skipped.tolist() == [0, 1, 0]


def test_tied_arrays_on_many_threads():
    found = []
    for threads in (1, 2, 5):
        w = drawn(LARGE, dtype=np.float32)
        opt = rk.Adam([{"w": w}, {"w": w}], lr=0.1)
        with rk.num_threads(threads):
            for step in range(3):
                opt.step([{"w": drawn(LARGE, dtype=np.float32, seed=s)} for s in (step, step + 9)])
        found.append(w)
    assert all(same_bits(found[0], w) for w in found[1:])


def test_tied_arrays_need_one_strength():
    w = np.zeros(3)
    dicts = [{"first": w}, {"last": w}]
    for name, (make, _) in STRENGTHS.items():
        message = (
            f"{name}: expected one strength for the tied params[0]['first'] and params[1]['last'], "
            "got 0.5 and 0.0"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make(dicts, 0.1, **{name: {"first": 0.5}})


def test_what_is_tied_stays_tied():
    def params_of(*arrays):
        return [{"w": array} for array in arrays]

    w, v, ones = np.zeros(3), np.zeros(3), np.ones(3)
    dicts = params_of(w, w, v)
    opt = rk.Adam(dicts)
    opt.step(params_of(ones, ones, ones))
    before = states(opt, *dicts)
    for changed, message in (
        (
            (w, w.copy(), v),
            "params[1]['w']: expected the same array as params[0]['w'], got another",
        ),
        (
            (w.copy(), w, v),
            "params[1]['w']: expected the same array as params[0]['w'], got another",
        ),
        (
            (w, w, w),
            "params[2]['w']: expected memory of its own, got an array that overlaps params[0]['w']",
        ),
    ):
        for of, array in zip(dicts, changed, strict=True):
            of["w"] = array
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            opt.step(params_of(ones, ones, ones))
        for of, array in zip(dicts, (w, w, v), strict=True):
            of["w"] = array
        for was, now in zip(before, states(opt, *dicts), strict=True):
            assert all(same_bits(was[name], now[name]) for name in was)
    dicts[0]["w"] = dicts[1]["w"] = new = np.zeros(3)
    assert opt.step(params_of(ones, ones, ones)).applied
    assert new.all()


SQUARE = np.arange(9.0).reshape(3, 3)
MEMORY = np.arange(12.0)
OVERLAPS = {
    "partial": (MEMORY[:6], MEMORY[5:11]),
    "contained": (MEMORY, MEMORY[3:4]),
    "another shape": (MEMORY, MEMORY.reshape(3, 4)),
    "another dtype": (MEMORY, MEMORY.view(np.float32)),
    "part of a float64": (MEMORY, MEMORY.view(np.float32)[3:4]),
}
OWN = "expected memory of its own, got an array that overlaps"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("arrays", OVERLAPS.values(), ids=OVERLAPS)
def test_parameters_that_overlap_are_refused(arrays, order):
    one, other = arrays[::order]
    message = f"params[1]['w']: {OWN} params[0]['v']"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rk.SGD([{"u": np.zeros(3), "v": one}, {"w": other}], lr=0.1)


@pytest.mark.parametrize(
    "gradient",
    [SQUARE, SQUARE.T, SQUARE[::-1], SQUARE[:, ::-1], np.broadcast_to(SQUARE[1:2, 1:2], (3, 3))],
    ids=["itself", "transposed", "reversed", "mirrored", "broadcast"],
)
def test_gradients_that_overlap_a_parameter_are_refused(gradient):
    params = {"v": np.zeros((3, 3)), "w": SQUARE.copy()}
    opt = rk.SGD(params, lr=0.1)
    params["w"] = SQUARE
    before = SQUARE.copy()
    for name, other in (("w", "v"), ("v", "w")):  # its own gradient, or another's
        message = f"grads['{name}']: {OWN} params['w']"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            opt.step({name: gradient, other: np.ones((3, 3))})
    assert same_bits(SQUARE, before)


def test_arrays_beside_each_other_are_no_overlap():
    memory = np.zeros((8, 3))
    params = {"a": memory[0], "b": memory[1], "none": memory[4:4], "more": memory[1:1]}
    opt = rk.SGD(params, lr=1.0)
    grads = {"a": memory[2], "b": memory[3], "none": memory[:0], "more": memory[1:1]}
    memory[2:4] = 1.0
    opt.step(grads)
    assert memory[:2].tolist() == [[-1.0] * 3] * 2
    # A strided gradient around a parameter, and one array as the gradient of two.
    square, around = np.zeros((2, 3)), np.ones((6, 3))
    around[2:4] = square
    opt = rk.SGD({"a": around[2:4], "b": square}, lr=1.0)
    opt.step({"a": around[1::3], "b": around[1::3]})
    assert around[2:4].tolist() == square.tolist() == [[-1.0] * 3] * 2


# --------------------------------------------------------------------------- arrays and errors


def test_array_may_be_replaced_between_steps():
    old = np.zeros(3)
    params = {"w": old}
    opt = rk.SGD(params, lr=1.0)
    params["w"] = np.ones(3)
    opt.step({"w": np.ones(3)})
    assert params["w"].tolist() == [0.0] * 3
    assert old.tolist() == [0.0] * 3
    params["w"] = np.zeros(3, np.float32)
    with pytest.raises(TypeError, match=r"params\['w'\]: expected .* float64, got float32"):
        opt.step({"w": np.ones(3)})


@every_kind
def test_members_of_one_number(kind):
    params = {"w": np.zeros(3), "none": np.zeros((3, 0))}
    opt = OPTIMIZERS[kind](params, **DEFAULTS[kind], ensemble=3)
    done = opt.step({"w": np.array([1.0, -2.0, math.inf]), "none": np.zeros((3, 0))}, max_norm=1.5)
    assert done.norm.tolist() == [1.0, 2.0, math.inf]
    assert done.applied.tolist() == [True, True, False]
    assert np.sign(params["w"]).tolist() == [-1.0, 1.0, 0.0]


@every_kind
def test_arrays_of_no_elements_and_of_no_axes(kind):
    params = {"none": np.zeros((0, 3)), "one": np.array(1.0)}
    opt = OPTIMIZERS[kind](params, **DEFAULTS[kind])
    assert opt.step({"none": np.zeros((0, 3)), "one": np.array(2.0)}).norm == 2.0
    assert params["one"] < 1.0


def test_ensemble_is_read_only():
    opt = rk.SGD({"w": np.zeros((2, 3))}, lr=1.0, ensemble=2)
    assert opt.ensemble == 2
    with pytest.raises(AttributeError, match="ensemble"):
        opt.ensemble = None


FLOAT32S = {"w": np.zeros(3), "v": np.zeros(3, np.float32)}
BEYOND_FLOAT32 = [
    ("lr", lambda p, x: rk.SGD(p, x)),
    ("l1", lambda p, x: rk.SGD(p, 0.1, l1=x)),
    ("l2['w']", lambda p, x: rk.Adam(p, l2={"w": x})),
    ("eps", lambda p, x: rk.RMSprop(p, eps=x)),
    ("weight_decay", lambda p, x: rk.AdamW(p, weight_decay=x)),
    ("weight_decay['w']", lambda p, x: rk.AdamW(p, weight_decay={"w": x})),
]


@pytest.mark.parametrize(("name", "make"), BEYOND_FLOAT32)
def test_strengths_beyond_the_parameters_dtype_are_refused(name, make):
    make({"w": np.zeros(3)}, 1e39)
    make(FLOAT32S, 3.4e38)
    message = f"{name}: expected a finite number >= 0 and <= 3.4e+38, got 1e+39"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(FLOAT32S, 1e39)


def test_lr_beyond_the_parameters_dtype_is_refused_between_steps():
    opt = rk.SGD({"w": np.zeros(3, np.float32)}, lr=1.0)
    with pytest.raises(ValueError, match=r"^lr: .* <= 3.4e\+38, got 1e\+39$"):
        opt.lr = 1e39
    assert opt.lr == 1.0


NAMED = "a dict of arrays, or gradients with the numbers norm, scale and finite"


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        ({"norm": None}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        ({"norm": [1.0]}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        ({"norm": 1j}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        ({"scale": "1", "norm": 1}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        ({"norm": 1.0, "finite": None}, TypeError, f"grads: expected {NAMED}, got SimpleNamespace"),
        (
            {"norm": np.ones(3)},
            ValueError,
            "grads: expected a norm, a scale and a finite of one or of 2 members, got 3 and 1",
        ),
        (
            {"norm": 1.0, "finite": np.ones(0, bool)},
            ValueError,
            "grads: expected a norm, a scale and a finite of one or of 2 members, got 1 and 0",
        ),
    ],
)
def test_what_gradients_tell_is_checked(told, error, message):
    params = {"w": np.zeros((2, 3))}
    opt = rk.SGD(params, lr=1.0, ensemble=2)
    defaults = {"scale": 1.0, "finite": True} if "norm" in told else {}
    grads = SimpleNamespace(params={"w": np.ones((2, 3))}, **(defaults | told))
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        opt.step(grads)
    assert not params["w"].any()


W = np.zeros(3)
CONSTRUCTION = [
    (lambda: rk.SGD({"w": W}, -0.1), ValueError, r"lr: expected a finite number >= 0, got -0.1"),
    (lambda: rk.Adam({"w": W}, math.nan), ValueError, "lr: .* got nan"),
    (lambda: rk.Adam({"w": W}, math.inf), ValueError, "lr: .* got inf"),
    (
        lambda: rk.Adam({"w": W}, "fast"),
        TypeError,
        "lr: expected a number or a function of the step, got str",
    ),
    (
        lambda: rk.Adam({"w": W}, True),
        TypeError,
        "lr: expected a number or a function of the step, got bool",
    ),
    (lambda: rk.SGD({"w": W}, 0.1, momentum=1.0), ValueError, "momentum: .* >= 0 and < 1, got 1.0"),
    (lambda: rk.SGD({"w": W}, 0.1, nesterov=True), ValueError, "nesterov: .* without momentum"),
    (lambda: rk.SGD({"w": W}, 0.1, nesterov=1), TypeError, "nesterov: expected True or False, got"),
    (lambda: rk.RMSprop({"w": W}, alpha=1.0), ValueError, "alpha: "),
    (lambda: rk.RMSprop({"w": W}, eps=0.0), ValueError, "eps: expected .* >= 1.18e-38, got 0.0"),
    (lambda: rk.RMSprop({"w": W}, momentum=-0.5), ValueError, "momentum: "),
    (lambda: rk.Adam({"w": W}, betas=(0.9, 1.0)), ValueError, r"betas\[1\]: .* got 1.0"),
    (lambda: rk.Adam({"w": W}, betas=(-0.1, 0.9)), ValueError, r"betas\[0\]: .* got -0.1"),
    (lambda: rk.Adam({"w": W}, betas=(math.nan, 0.9)), ValueError, r"betas\[0\]: .* got nan"),
    (lambda: rk.Adam({"w": W}, betas=0.9), TypeError, "betas: expected a pair of numbers, got 0.9"),
    (lambda: rk.Adam({"w": W}, eps=-1e-8), ValueError, "eps: "),
    (lambda: rk.AdamW({"w": W}, weight_decay=-1.0), ValueError, "weight_decay: "),
    (lambda: rk.AdamW({"w": W}, weight_decay={"w": -1}), ValueError, r"weight_decay\['w'\]: "),
    (lambda: rk.AdamW({"w": W}, weight_decay={"b": 1}), ValueError, r"weight_decay: .* got 'b'"),
    (lambda: rk.AdamW({"w": W}, weight_decay=[1]), TypeError, "weight_decay: .* got list"),
    (lambda: rk.Adam({"w": W}, l1=-1.0), ValueError, "l1: "),
    (lambda: rk.Adam({"w": W}, l2={"*": math.nan}), ValueError, r"l2\['\*'\]: .* got nan"),
    (lambda: rk.Adam({"w": W}, l2={"b*": 0.1}), ValueError, r"l2: .* \['w'\], got 'b\*'"),
    (lambda: rk.Adam({"w": W}, l1={3: 1}), TypeError, r"l1: expected patterns .* got 3"),
    (lambda: rk.Adam({"w": W}, l2={None: 1}), TypeError, r"l2: expected patterns .* got None"),
    (
        lambda: rk.Adam([]),
        ValueError,
        "params: expected at least one layer or dict of arrays, got none",
    ),
    (lambda: rk.Adam({}), ValueError, "^params: expected at least one array, got none"),
    (lambda: rk.Adam({"a": {}}), ValueError, "^params: expected at least one array, got none"),
    (lambda: rk.Adam([{}, {}]), ValueError, "^params: expected at least one array, got none"),
    (lambda: rk.Adam(W), TypeError, "params: expected a layer or a dict of arrays, got ndarray"),
    (
        lambda: rk.Adam([{"w": W}, 3]),
        TypeError,
        r"params\[1\]: expected a layer or a dict of arrays, got int",
    ),
    (lambda: rk.Adam({1: W}), TypeError, "params: expected names, got the key 1"),
    (lambda: rk.Adam({"w": [0.0]}), TypeError, r"params\['w'\]: expected an array .* got list"),
    (lambda: rk.Adam({"w": np.arange(3)}), TypeError, "float32 or float64, got int64"),
    (lambda: rk.Adam({"w": W.astype(">f8")}), TypeError, "float32 or float64, got >f8"),
    (lambda: rk.Adam({"w": np.zeros(6)[::2]}), ValueError, "C-contiguous, .* another layout"),
    (lambda: rk.Adam({"w": np.asfortranarray(np.zeros((2, 3)))}), ValueError, "another layout"),
    (
        lambda: rk.Adam([{"w": frozen(np.zeros(3))}]),
        ValueError,
        r"params\[0\]\['w'\]: .* read-only",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), CONSTRUCTION)
def test_construction_refuses(call, error, match):
    with pytest.raises(error, match=match):
        call()


def two():
    return [{"w": np.ones(3), "b": np.ones(2)}, {"w": np.ones((2, 2), np.float32)}]


def without(name):
    grads = two()
    del grads[0][name]
    return grads


def having(index, name, array):
    grads = two()
    grads[index][name] = array
    return grads


STEPPING = [
    (lambda: two()[0], {}, ValueError, "grads: expected 2, as many as groups of params, got 1"),
    (lambda: without("b"), {}, ValueError, r"grads\[0\]: expected the names \['w', 'b'\], got"),
    (lambda: having(1, "v", W), {}, ValueError, r"grads\[1\]: expected the names \['w'\], got"),
    (lambda: [two()[0], None], {}, TypeError, r"grads\[1\]: expected a dict of arrays, got None"),
    (lambda: having(0, "w", [1.0]), {}, TypeError, r"grads\[0\]\['w'\]: .* float64, got list"),
    (lambda: having(1, "w", np.ones((2, 2))), {}, TypeError, r"\[1\]\['w'\]: .* got float64"),
    (lambda: having(1, "w", np.ones(4, "f4")), {}, ValueError, r"shape \(2, 2\), got \(4,\)"),
    (two, {"max_norm": 0}, ValueError, "max_norm: expected a finite number > 0, got 0"),
    (two, {"max_norm": math.nan}, ValueError, "max_norm: .* got nan"),
    (two, {"max_norm": "1"}, TypeError, "max_norm: expected a number, got str"),
]


@pytest.mark.parametrize(("grads", "options", "error", "match"), STEPPING)
def test_step_refuses_before_it_writes(grads, options, error, match):
    params = two()
    opt = rk.Adam(params)
    opt.step(two())
    before = states(opt, *params)
    with pytest.raises(error, match=match):
        opt.step(grads(), **options)
    for was, now in zip(before, states(opt, *params), strict=True):
        assert all(same_bits(was[name], now[name]) for name in was)


def test_step_refuses_parameters_that_have_gone_bad():
    params = two()
    opt = rk.Adam(params)
    params[1]["w"] = frozen(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"params\[1\]\['w'\]: .* got a read-only one"):
        opt.step(two())
    params[1]["w"] = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"params\[1\]\['w'\]: expected shape \(2, 2\), got"):
        opt.step(two())
    del params[1]["w"]
    with pytest.raises(ValueError, match=r"params\[1\]: expected the names \['w'\], got \[\]"):
        opt.step(two())
    assert params[0]["w"].tolist() == [1.0] * 3


def test_load_uses_the_arrays_that_it_checked():
    class Changing(dict):
        """A dict whose arrays become invalid once they have been looked up."""

        def __getitem__(self, name):
            array = super().__getitem__(name)
            self[name] = np.full_like(array, -1)
            return array

    opt, other = rk.Adam({"w": np.zeros(3)}), rk.Adam({"w": np.zeros(3)})
    opt.step({"w": np.ones(3)})
    other.load_state_dict(Changing(opt.state_dict()))
    for name, array in opt.state_dict().items():
        assert same_bits(other.state_dict()[name], array)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"0.w.first": None}, ValueError, "state: expected the names"),
        ({"0.w.third": np.zeros(3)}, ValueError, "state: expected the names"),
        ({"1.w.second": np.zeros((2, 2))}, TypeError, r"state\['1.w.second'\]: .* got float64"),
        ({"0.b.first": np.zeros(3)}, ValueError, r"state\['0.b.first'\]: .* \(2,\), got \(3,\)"),
        ({"adam.step": 3}, TypeError, r"state\['adam.step'\]: .* int64, got int"),
        (
            {"adam.step": np.int64(3)},
            TypeError,
            r"state\['adam.step'\]: .* int64, got int64 \(a scalar\)",
        ),
        (
            {"adam.step": np.array(-1)},
            ValueError,
            r"state\['adam.step'\]: .* from 0 to 2\*\*62, got -1",
        ),
        (
            {"adam.step": np.array(2**62 + 1)},
            ValueError,
            r"state\['adam.step'\]: .* got 4611686018427387905",
        ),
        ({"adam.skipped": np.array(-1)}, ValueError, r"state\['adam.skipped'\]: .* got -1"),
        (
            {"adam.skipped": np.array(2**63 - 1)},
            ValueError,
            r"state\['adam.skipped'\]: .* got 9223372036",
        ),
        (
            {"0.w.first": np.array([1.0, math.nan, 0.0])},
            ValueError,
            r"state\['0.w.first'\]: expected finite numbers, got nan",
        ),
        (
            {"0.b.first": np.array([0.0, -math.inf])},
            ValueError,
            r"state\['0.b.first'\]: .* got -inf",
        ),
        (
            {"1.w.second": np.full((2, 2), math.inf, np.float32)},
            ValueError,
            r"state\['1.w.second'\]: expected finite numbers of at least 0, got inf",
        ),
        (
            {"0.b.second": np.array([math.nan, 1.0])},
            ValueError,
            r"state\['0.b.second'\]: .* got nan",
        ),
        (
            {"0.w.second": np.array([0.0, 1.0, -1e-9])},
            ValueError,
            r"\['0.w.second'\]: .* got -1e-09",
        ),
    ],
)
def test_load_refuses_before_it_writes(change, error, match):
    opt = rk.Adam(two())
    opt.step(two())
    before = opt.state_dict()
    state = {name: np.asarray(array + 1) for name, array in before.items()} | change
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(error, match=match), np.errstate(all="raise"):
        opt.load_state_dict(state)
    assert all(same_bits(before[name], array) for name, array in opt.state_dict().items())
