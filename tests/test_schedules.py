"""Learning rates as functions of the step: closed formulas, PyTorch, and what optimizers save."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import files, schedules

# A rate is a handful of operations in double precision, each off by half an eps at most; PyTorch
# multiplies step by step, so its error grows by half an eps a step, over at most 60.
RTOL = 60 * np.finfo(np.float64).eps
EACH = [
    schedules.Constant(0.5),
    schedules.Constant(0.5, warm_up=4),
    schedules.Cosine(0.5, steps=20),
    schedules.Cosine(0.5, steps=20, warm_up=5, least=0.125),
    schedules.Steps(0.5, 7),
    schedules.Steps(0.5, (3, 10), 0.5, warm_up=3),
    schedules.Exponential(0.5, 0.9, warm_up=2),
    schedules.OneCycle(0.5, steps=20),
    schedules.Plateau(0.5, warm_up=3),
    schedules.Plateau(0.5, 0.5, 2, 0.25, 3, 0.01, "max"),
]
each = pytest.mark.parametrize("schedule", EACH, ids=repr)


def params():
    return {"w": np.arange(1.0, 4.0)}


def grads(seed=0):
    return {"w": np.random.default_rng(seed).normal(size=3)}


def values(schedule, count=30):
    return [schedule(step) for step in range(count)]


# ------------------------------------------------------------------------------------- formulas


@each
def test_a_warm_up_is_a_line_that_ends_at_the_first_whole_step(schedule):
    W = schedule.warm_up
    want = [schedule.lr * (t + 1) / (W + 1) for t in range(W)]
    np.testing.assert_allclose(values(schedule)[:W], want, RTOL)
    if not isinstance(schedule, schedules.OneCycle):
        assert schedule(W) == schedule.lr


@each
def test_a_warm_up_delays_what_follows(schedule):
    if schedule.warm_up:
        fields = {n: getattr(schedule, n) for n in schedule.__dataclass_fields__ if n != "_seen"}
        steps = {"steps": fields["steps"] - schedule.warm_up} if "steps" in fields else {}
        later = type(schedule)(**{**fields, **steps, "warm_up": 0})
        assert values(schedule)[schedule.warm_up :] == values(later)[: -schedule.warm_up]


def test_cosine_is_its_formula_and_then_stays():
    got = values(schedules.Cosine(0.8, steps=25, warm_up=5, least=0.2), 40)[5:]
    want = [0.2 + 0.6 * (1 + math.cos(math.pi * min(t, 20) / 20)) / 2 for t in range(35)]
    np.testing.assert_allclose(got, want, RTOL)


def test_steps_are_counted_or_given():
    got = values(schedules.Steps(1.0, 7, 0.5))
    assert got == [0.5 ** (t // 7) for t in range(30)]
    got = values(schedules.Steps(1.0, (0, 7, 20), 0.5))
    assert got == [0.5 ** (1 + (t >= 7) + (t >= 20)) for t in range(30)]


def test_one_cycle_meets_its_three_rates():
    cycle = schedules.OneCycle(1.0, 101, pct_start=0.5, div_factor=10, final_div_factor=100)
    got = values(cycle, 200)
    np.testing.assert_allclose([got[0], got[100], got[199]], [0.1, 1e-3, 1e-3], RTOL)
    assert max(got) == max(got[49:51])  # about step 49.5
    # A quarter of a step of 49.5 from the top: 0.9 (1 - cos(pi / 99)) / 2 below it, at the most.
    assert 1.0 - max(got) <= 0.9 * (1 - math.cos(math.pi / 99)) / 2 + RTOL
    assert np.all(np.diff(got[:50]) > 0)
    assert np.all(np.diff(got[50:101]) < 0)


def reported(plateau, metrics):
    rates = []
    for metric in metrics:
        plateau.report(metric)
        rates.append(plateau(0))
    return rates


def test_plateau_cuts_after_more_reports_than_its_patience():
    got = reported(schedules.Plateau(1.0, 0.5, patience=2), [3, 2, 2, 2, 2, 2, 2, 2, 1, 1])
    assert got == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_plateau_rests_after_a_cut():
    got = reported(schedules.Plateau(1.0, 0.5, patience=0, cooldown=2), [1.0] * 8)
    assert got == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_plateau_heeds_its_mode_its_threshold_and_its_least_rate():
    options = {"patience": 0, "min_delta": 0.5, "mode": "max", "least": 0.3}
    plateau = schedules.Plateau(1.0, 0.5, **options)
    assert reported(plateau, [1, 2, 2.5, 2.6, 2.7]) == [1, 1, 0.5, 0.5, 0.3]
    assert reported(plateau, [math.nan, math.inf]) == [0.3, 0.3]
    plateau = schedules.Plateau(1.0, 0.5, patience=0)
    assert reported(plateau, [math.inf, np.float32(2), np.array(1.0)]) == [0.5, 0.5, 0.5]


# -------------------------------------------------------------------------------------- PyTorch


def of_torch(make, count=60):
    """The rates of PyTorch's scheduler for an optimizer of the rate 0.5."""
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, rates = make(torch.optim.lr_scheduler, opt), []
    for _ in range(count):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (schedules.Constant(0.5, 9), lambda s, o: s.LinearLR(o, 1 / 10, total_iters=9)),
        (schedules.Cosine(0.5, 60), lambda s, o: s.CosineAnnealingLR(o, 60)),
        (schedules.Cosine(0.5, 60, 0, 0.1), lambda s, o: s.CosineAnnealingLR(o, 60, 0.1)),
        (
            schedules.Cosine(0.5, 60, 20),
            lambda s, o: s.SequentialLR(
                o, [s.LinearLR(o, 1 / 21, total_iters=20), s.CosineAnnealingLR(o, 40)], [20]
            ),
        ),
        (schedules.Steps(0.5, 7, 0.3), lambda s, o: s.StepLR(o, 7, 0.3)),
        (schedules.Steps(0.5, (7, 40), 0.3), lambda s, o: s.MultiStepLR(o, (7, 40), 0.3)),
        (schedules.Exponential(0.5, 0.9), lambda s, o: s.ExponentialLR(o, 0.9)),
        (schedules.OneCycle(0.5, 61), lambda s, o: s.OneCycleLR(o, 0.5, 61)),
        (
            schedules.OneCycle(0.5, 61, 0.45, 7.0, 30.0),
            lambda s, o: s.OneCycleLR(o, 0.5, 61, None, None, 0.45, "cos", True, 0.85, 0.95, 7, 30),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, schedules._Schedule) else "pytorch",
)
def test_rates_are_pytorchs(schedule, make):
    # PyTorch computes a cosine from the rate before: near zero, errors of the size of 0.5 remain.
    np.testing.assert_allclose(values(schedule, 60), of_torch(make), RTOL, 0.5 * RTOL)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "cooldown", "least"), [(0, 0, 0.0), (2, 3, 0.01), (1, 1, 0)])
def test_plateau_is_pytorchs(mode, patience, cooldown, least):
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    options = {"patience": patience, "cooldown": cooldown, "factor": 0.5, "mode": mode}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        opt, threshold=0.1, threshold_mode="abs", min_lr=least, eps=0, **options
    )
    ours = schedules.Plateau(0.5, min_delta=0.1, least=least, **options)
    for metric in np.random.default_rng(0).normal(size=200).cumsum():
        theirs.step(metric)
        ours.report(metric)
        assert ours(0) == pytest.approx(opt.param_groups[0]["lr"], rel=RTOL)


# ------------------------------------------------------------------------------------- as values


@each
def test_a_schedule_is_a_value(schedule):
    one = eval(repr(schedule), vars(schedules))
    for twin in (one, copy.copy(schedule), copy.deepcopy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert values(twin) == values(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert [other for other in EACH if other == schedule] == [schedule]
    with pytest.raises(AttributeError):
        schedule.lr = 1.0


def test_a_copy_of_a_plateau_has_reports_of_its_own():
    plateau = schedules.Plateau(1.0, patience=0)
    twins = [copy.copy(plateau), copy.deepcopy(plateau), pickle.loads(pickle.dumps(plateau))]
    reported(plateau, [1.0, 1.0])
    assert plateau(0) == 0.1
    assert all(twin(0) == 1.0 and twin != plateau for twin in twins)
    assert reported(twins[0], [1.0, 1.0]) == [1.0, 0.1]
    assert twins[0] == plateau


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.Constant(0), ValueError, "lr: expected a finite number > 0, got 0"),
        (lambda: schedules.Constant("1"), TypeError, "lr: expected a number, got str"),
        (lambda: schedules.Constant(1, -1), ValueError, "warm_up: expected an integer of at least"),
        (lambda: schedules.Constant(1, 1.0), TypeError, "warm_up: expected an integer, got float"),
        (lambda: schedules.Cosine(1, 0), ValueError, "steps: expected an integer of at least 1"),
        (
            lambda: schedules.Cosine(1, 9, 9),
            ValueError,
            "steps: expected an integer of at least 10",
        ),
        (lambda: schedules.Cosine(1, 9, 0, 2), ValueError, "least: expected a number from 0 to lr"),
        (lambda: schedules.Steps(1, 0), ValueError, "at: expected an integer of at least 1"),
        (lambda: schedules.Steps(1, ()), ValueError, "at: expected ascending steps, at least one"),
        (lambda: schedules.Steps(1, (2, 2)), ValueError, "at: expected ascending steps"),
        (lambda: schedules.Steps(1, (2, 3.0)), TypeError, "at[1]: expected an integer"),
        (lambda: schedules.Steps(1, 2, 0), ValueError, "factor: expected a number above 0"),
        (lambda: schedules.Exponential(1, 1.1), ValueError, "factor: expected a number above 0"),
        (lambda: schedules.OneCycle(1, 1), ValueError, "steps: expected an integer of at least 2"),
        (lambda: schedules.OneCycle(1, 3), ValueError, "pct_start: expected a share of the steps"),
        (lambda: schedules.OneCycle(1, 9, 1), ValueError, "pct_start: expected a share"),
        (lambda: schedules.OneCycle(1, 9, 0.5, 0), ValueError, "div_factor: expected a finite"),
        (lambda: schedules.Plateau(1, patience=-1), ValueError, "patience: expected an integer of"),
        (lambda: schedules.Plateau(1, cooldown=-1), ValueError, "cooldown: expected an integer of"),
        (lambda: schedules.Plateau(1, min_delta=-1), ValueError, "min_delta: expected a finite"),
        (lambda: schedules.Plateau(1, mode="mean"), ValueError, "mode: expected one of min, max"),
        (lambda: schedules.Plateau(1).report("1"), TypeError, "value: expected a number, got str"),
        (lambda: schedules.Constant(1)(-1), ValueError, "step: expected an integer of at least 0"),
        (lambda: schedules.Constant(1)(1.0), TypeError, "step: expected an integer, got float"),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


# ----------------------------------------------------------------------------------- optimizers

RULES = [rk.SGD, rk.RMSprop, rk.Adam, rk.AdamW]


@pytest.mark.parametrize("rule", RULES)
@each
def test_an_optimizer_steps_at_the_schedules_rates(rule, schedule):
    one, other = params(), params()
    scheduled, plain = rule(one, lr=copy.copy(schedule)), rule(other, lr=1.0)
    for step in range(25):
        assert scheduled.lr == schedule(step)
        plain.lr = schedule(step)
        scheduled.step(grads(step))
        plain.step(grads(step))
        assert np.array_equal(one["w"], other["w"])


def test_skipped_steps_are_counted_as_pytorch_counts_them():
    opt = rk.SGD(params(), lr=lambda step: 1.0 / (step + 1))
    for gradient in (grads(), {"w": np.full(3, np.nan)}, grads()):
        opt.step(gradient)
    assert opt.skipped == 1
    assert opt.lr == 0.25


def test_a_member_has_the_rates_of_the_same_model_alone():
    rng = np.random.default_rng(0)
    start, schedule = rng.normal(size=(3, 4)), schedules.Cosine(0.5, steps=8, warm_up=2)
    together, alone = {"w": start.copy()}, [{"w": row.copy()} for row in start]
    opt = rk.Adam(together, lr=schedule, ensemble=3)
    opts = [rk.Adam(own, lr=schedule) for own in alone]
    for step in range(8):
        gradient = rng.normal(size=(3, 4))
        if step in (1, 4):
            gradient[step // 2] = np.nan  # skipped by members 0 and 2
        opt.step({"w": gradient})
        for one, own in zip(opts, gradient, strict=True):
            one.step({"w": own})
    assert opt.skipped.tolist() == [1, 0, 1]
    assert np.array_equal(together["w"], [own["w"] for own in alone])


def test_a_rate_can_be_set_to_a_number_or_a_schedule_between_steps():
    opt = rk.SGD(params(), lr=schedules.Exponential(1.0, 0.5))
    opt.step(grads())
    assert (opt.lr, opt.schedule) == (0.5, schedules.Exponential(1.0, 0.5))
    opt.lr = 0.125
    assert (opt.lr, opt.schedule) == (0.125, None)
    opt.lr = schedules.Exponential(2.0, 0.5)
    assert opt.lr == 1.0
    assert "lr=Exponential(lr=2.0, factor=0.5, warm_up=0)" in repr(opt)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, None, "0.1"])
def test_a_functions_wrong_rate_is_refused_before_anything_is_written(rate):
    own = params()
    opt = rk.Adam(own, lr=lambda step: rate if step else 0.5)
    opt.step(grads())
    state, before = opt.state_dict(), own["w"].copy()
    with pytest.raises((TypeError, ValueError), match=r"^lr: expected a"):
        opt.step(grads())
    assert np.array_equal(own["w"], before)
    assert all(np.array_equal(state[n], array) for n, array in opt.state_dict().items())
    with pytest.raises((TypeError, ValueError), match=r"^lr: expected a"):
        rk.Adam(params(), lr=lambda step: rate)


def test_a_class_is_no_schedule():
    with pytest.raises(
        TypeError, match="lr: expected a number or a function of the step, got type"
    ):
        rk.Adam(params(), lr=float)


@each
def test_a_state_goes_on_with_the_same_bits(tmp_path, schedule):
    one, own = params(), copy.copy(schedule)
    opt = rk.Adam(one, lr=own)
    for step in range(12):
        opt.step(grads(step))
        if isinstance(own, schedules.Plateau):
            own.report(1.0)
    files.save(tmp_path / "opt", opt)
    other = {"w": one["w"].copy()}
    again = rk.Adam(other, lr=copy.copy(schedule))
    again.load_state_dict(files.load(tmp_path / "opt"))
    assert again.schedule == own
    assert again.lr == opt.lr
    for each in (opt, again):
        for step in range(12):
            each.step(grads(step))
            if isinstance(own, schedules.Plateau):
                each.schedule.report(1.0)
    assert np.array_equal(one["w"], other["w"])


def test_the_state_of_another_schedule_is_refused_and_nothing_written():
    opt = rk.Adam(params(), lr=schedules.Cosine(0.5, steps=20))
    opt.step(grads())
    state = opt.state_dict()
    for lr, message in [
        (schedules.Cosine(0.5, steps=21), r"state\['adam.lr.cosine'\]: expected \[0.5, 21.0, 0.0"),
        (schedules.Steps(0.5, 20), "state: expected the names"),
        (0.5, "state: expected the names"),
        (lambda step: 0.5, "state: expected the names"),
    ]:
        other = rk.Adam(params(), lr=lr)
        with pytest.raises(ValueError, match=f"^{message}"):
            other.load_state_dict(state)
        assert int(other.state_dict()["adam.step"]) == 0


@pytest.mark.parametrize(
    "wrong", [[np.nan, 0, 0, 0], [1, -1, 0, 0], [1, 0, 0.5, 0], [1, 0, 0, np.inf]]
)
def test_wrong_reports_are_refused_and_nothing_written(wrong):
    plateau = schedules.Plateau(1.0, patience=0)
    opt = rk.SGD(params(), lr=plateau)
    reported(plateau, [1.0, 1.0])
    state = opt.state_dict() | {"sgd.lr.plateau.reports": np.array(wrong, np.float64)}
    with pytest.raises(ValueError, match=r"^state\['sgd.lr.plateau.reports'\]: expected the best"):
        opt.load_state_dict(state)
    assert opt.lr == 0.1


def test_a_copied_optimizer_has_a_schedule_of_its_own():
    opt = rk.SGD(params(), lr=schedules.Plateau(1.0, patience=0))
    for twin in (copy.copy(opt), copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        reported(twin.schedule, [1.0, 1.0])
        assert (twin.lr, opt.lr) == (0.1, 1.0)
