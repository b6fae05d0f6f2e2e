"""Losses besides plain cross-entropy: the reference, finite differences, PyTorch, masks, bits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, on_threads
from test_bits import LAYOUTS
from test_modules import SIZES, assert_close, divided, drawn, problem

import rnnkern as rk
from rnnkern import reference

every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

# ---- cross-entropy with targets that are spread over the classes -------------------------------

SPREAD = {
    "smoothed": (False, {"label_smoothing": 0.1}),
    "weighted": (False, {"class_weights": True}),
    "smoothed and weighted": (False, {"label_smoothing": 0.3, "class_weights": True}),
    "soft": (True, {}),
    "soft, smoothed": (True, {"label_smoothing": 0.2}),
    "soft, smoothed and weighted": (True, {"label_smoothing": 0.2, "class_weights": True}),
    "spread evenly": (False, {"label_smoothing": 1.0}),
}
every_spread = pytest.mark.parametrize(("soft", "options"), SPREAD.values(), ids=SPREAD)


def spread_problem(rows, V, dtype, soft, options, seed=0):
    """Logits, targets, rows' weights, and the options with weights of classes, one of them 0."""
    logits, targets, weights = problem(rows, V, dtype, seed)
    rng = np.random.default_rng(seed + 1)
    if soft:
        targets = rng.dirichlet(np.ones(V), rows).astype(dtype)
        targets[:, V // 2] = 0.0
    if "class_weights" in options:
        of_classes = rng.uniform(0.5, 2, V)
        of_classes[0] = 0.0 if V > 1 else 1.5
        options = {**options, "class_weights": of_classes}
    return logits, targets, weights, options


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("V", SIZES)
@every_spread
def test_spread_targets_are_the_references(soft, options, V, dtype, isa):
    logits, targets, weights, options = spread_problem(9, V, dtype, soft, options)
    for mask in (None, weights, weights > 0, np.zeros(9, bool)):
        w = None if mask is None else mask.astype(np.float64)
        found = reference.cross_entropy(logits, targets, w, **options)
        for reduction in ("mean", "sum", "none"):
            with rk.force_isa(isa):
                got = rk.cross_entropy(logits, targets, mask=mask, reduction=reduction, **options)
            # Weights of rows and of classes are up to 2 each; a sum adds up 9 rows' errors. The
            # targets' own shares are rounded, too: twice the bound of a plain loss.
            largest = 2 * (36 if reduction == "sum" else 4)
            assert_close(got, divided(*found, reduction), logits, largest=largest)


@every_spread
def test_the_references_gradient_of_spread_targets_is_that_of_its_loss(soft, options):
    logits, targets, weights, options = spread_problem(4, 6, np.float64, soft, options)
    dlogits = reference.cross_entropy(logits, targets, weights, **options)[1]
    step = 1e-5  # error: step^2 times a third derivative below 4, and 1e-16 * loss / step
    for place in np.ndindex(logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            ends.append(reference.cross_entropy(moved, targets, weights, **options)[0].sum())
        assert abs((ends[0] - ends[1]) / (2 * step) - dlogits[place]) < 2e-9


@in_each_dtype
def test_no_smoothing_and_weights_of_one_leave_the_bits(dtype):
    logits, targets, weights = problem(20, 37, dtype)
    want, d_want = rk.cross_entropy(logits, targets, mask=weights)
    for options in ({"label_smoothing": 0}, {"class_weights": np.ones(37)}):
        got, d_got = rk.cross_entropy(logits, targets, mask=weights, **options)
        assert got == want
        assert d_got.tobytes() == d_want.tobytes()


@in_each_dtype
def test_soft_targets_of_one_class_are_that_class(dtype):
    logits, targets, weights = problem(20, 37, dtype)
    want = rk.cross_entropy(logits, targets, mask=weights)
    got = rk.cross_entropy(logits, np.eye(37, dtype=dtype)[targets], mask=weights)
    assert_close(got, want, logits)
    sure = np.array([[0.0, -12.0]], dtype)  # p - 1 keeps its digits
    _, dlogits = rk.cross_entropy(sure, np.array([[1.0, 0.0]], dtype))
    rest = np.exp(-12.0)
    bound = {"rtol": 4 * np.finfo(dtype).eps, "atol": 2.0**-52}
    np.testing.assert_allclose(dlogits[0, 0], -rest / (1 + rest), **bound)


@in_each_dtype
@in_each_set
def test_classes_that_do_not_count_may_be_ruled_out(dtype, isa):
    logits = np.array([[0.0, -np.inf, 0.0]], dtype)
    with rk.force_isa(isa), np.errstate(all="raise"):
        loss, dlogits = rk.cross_entropy(logits, np.array([[1.0, 0.0, 0.0]], dtype))
        weighed = rk.cross_entropy(
            logits, [0], label_smoothing=0.5, class_weights=[1.0, 0.0, 1.0], reduction="sum"
        )
        ruled_out = rk.cross_entropy(logits, [0], label_smoothing=0.5)[0]
    assert loss == pytest.approx(np.log(2), rel=4e-16)
    np.testing.assert_allclose(dlogits, [[-0.5, 0, 0.5]], atol=np.finfo(dtype).eps)
    assert weighed[0] == pytest.approx(
        np.log(2) * (0.5 + 2 * 0.5 / 3), rel=float(np.finfo(dtype).eps)
    )
    assert ruled_out == np.inf


@in_each_dtype
@every_spread
def test_rows_that_do_not_count_are_not_read(soft, options, dtype):
    logits, targets, _, options = spread_problem(6, 20, dtype, soft, options)
    want, d_want = rk.cross_entropy(logits[::2], targets[::2], **options)
    logits[1::2] = np.nan
    targets[1::2] = np.nan if soft else -7
    mask = np.arange(6) % 2 == 0
    for given in (logits, logits.copy()):
        out = given if given is not logits else None
        loss, dlogits = rk.cross_entropy(given, targets, mask=mask, out=out, **options)
        assert loss == want
        assert dlogits[::2].tobytes() == d_want.tobytes()
        assert not dlogits[1::2].any()


@in_each_dtype
@every_spread
@pytest.mark.parametrize("V", [2, 33, 700])
def test_spread_targets_have_the_same_bits(V, soft, options, dtype):
    """On any threads and instruction sets, of each row alone, in any memory."""
    rows = 5 * 2**14 // V + 11
    logits, targets, weights, options = spread_problem(rows, V, dtype, soft, options)

    def bits(reduction="mean"):
        got = rk.cross_entropy(logits, targets, mask=weights, reduction=reduction, **options)
        return [np.asarray(a).tobytes() for a in got]

    want = bits()
    for isa in fused_sets():
        with rk.force_isa(isa):
            for threads in (1, 2, 5):
                assert on_threads(threads, bits) == want
    losses, dlogits = rk.cross_entropy(logits, targets, reduction="none", **options)
    for row in range(0, rows, 97):
        loss, alone = rk.cross_entropy(logits[row], targets[row], reduction="sum", **options)
        assert loss == losses[row]
        assert alone.tobytes() == dlogits[row].tobytes()
    for layout in LAYOUTS.values():
        got = rk.cross_entropy(layout(logits), layout(targets), mask=layout(weights), **options)
        assert [np.asarray(a).tobytes() for a in got] == want


@in_each_dtype
@every_spread
@every_reduction
def test_pytorch_agrees_on_spread_targets(reduction, soft, options, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    logits, targets, _, options = spread_problem(30, 17, dtype, soft, options)
    z = torch.from_numpy(logits).requires_grad_()
    theirs = dict(options)
    if "class_weights" in theirs:
        theirs["weight"] = torch.from_numpy(theirs.pop("class_weights").astype(dtype))
    loss = torch.nn.functional.cross_entropy(
        z, torch.from_numpy(targets), reduction=reduction, **theirs
    )
    loss.sum().backward()
    got = rk.cross_entropy(logits, targets, reduction=reduction, **options)
    # Both round; a sum adds up 30 rows of weights up to 2.
    rows = 120 if reduction == "sum" else 4
    assert_close(got, (loss.detach().numpy(), z.grad.numpy()), logits, largest=2 * rows)


# ---- losses of elements ------------------------------------------------------------------------


class Case:
    """A loss: its arguments for rows of K elements, and the reference's losses and gradient."""

    def __init__(self, name, make, of):
        self.name, self.make, self.of = name, make, of
        self.first = "logits" if name == "binary_cross_entropy" else "outputs"

    def __call__(self, arguments, **options):
        outputs, targets, *more = arguments[0]
        return getattr(rk, self.name)(outputs, targets, *more, **arguments[1], **options)

    def reference(self, arguments):
        outputs, targets, *more = arguments[0]
        return getattr(reference, self.name)(outputs, targets, *more, **arguments[1])


def _outputs(shape, K, dtype, seed):
    return drawn(*shape, K, dtype=dtype, seed=seed), drawn(*shape, K, dtype=dtype, seed=seed + 1)


def _labels(shape, K, dtype, seed):
    z, _ = _outputs(shape, K, dtype, seed)
    return z, np.random.default_rng(seed).random(z.shape).astype(dtype)


def _pinball(shape, K, dtype, seed):
    y, _ = _outputs(shape, K, dtype, seed)
    return (y, drawn(*shape, dtype=dtype, seed=seed + 1), np.linspace(0, 1, K + 2)[1:-1]), {}


def _normal(shape, K, dtype, seed):
    return (drawn(*shape, 2 * K, dtype=dtype, seed=seed, size=1.5), _outputs(shape, K, dtype, 5)[1])


CASES = {
    "binary": Case("binary_cross_entropy", lambda *a: (_labels(*a), {}), 1),
    "booleans": Case(
        "binary_cross_entropy", lambda *a: ((_labels(*a)[0], _labels(*a)[1] > 0.5), {}), 1
    ),
    "binary, weighted": Case(
        "binary_cross_entropy",
        lambda *a: (_labels(*a), {"pos_weight": np.linspace(0.0, 3.0, a[1])}),
        1,
    ),
    "squares": Case("mean_squared_error", lambda *a: (_outputs(*a), {}), 1),
    "huber": Case("huber", lambda *a: (_outputs(*a), {"delta": 1.25}), 1),
    "quantile": Case("quantile", _pinball, 1),
    "gaussian": Case("gaussian_nll", lambda *a: (_normal(*a), {}), 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Pieces of several rows, of one, and of a part of one.
WIDTHS = [1, 2, 7, 16, 33, 100, 512, 1100]


def assert_near(got, want, dtype, rows=1.0):
    """Losses and gradients are a few operations, 8 of them rounded at most, on values up to 4e4.

    The difference of output and target is rounded to half an eps of it, and the terms of a loss
    are no larger than the loss where they have one sign; a gaussian loss's are below 10 besides.
    """
    eps = np.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_array_less(np.abs(a - b), 8 * eps * rows * (10 + np.abs(b)))


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("K", WIDTHS)
@every_case
def test_losses_of_elements_are_the_references(case, K, dtype, isa):
    arguments = case.make((5, 3), K, dtype, 0)
    losses, gradient = case.reference(arguments)
    rng = np.random.default_rng(3)
    of_rows = rng.uniform(0, 2, (5, 3)) * (rng.random((5, 3)) < 0.7)
    of_elements = rng.uniform(0, 2, losses.shape) * (rng.random(losses.shape) < 0.7)
    for mask in (None, of_rows, of_rows > 0, of_elements, np.zeros((5, 3), bool)):
        w = np.ones((5, 3, 1)) if mask is None else 1.0 * mask
        w = w[..., None] if w.shape == (5, 3) else w
        w = np.broadcast_to(w, losses.shape)
        dw = np.concatenate([w] * case.of, axis=-1)
        total = w.sum() or 1.0
        for reduction, want in {
            "none": (w * losses, dw * gradient),
            "sum": ((w * losses).sum(), dw * gradient),
            "mean": ((w * losses).sum() / total, dw * gradient / total),
        }.items():
            with rk.force_isa(isa):
                got = case(arguments, mask=mask, reduction=reduction)
            assert got[1].dtype == dtype
            assert np.asarray(got[0]).dtype == np.float64
            assert_near(got, want, dtype, rows=2 * losses.size if reduction == "sum" else 2)


@every_case
def test_the_references_gradient_of_elements_is_that_of_its_loss(case):
    arguments = case.make((3,), 4, np.float64, 0)
    outputs, gradient = arguments[0][0], case.reference(arguments)[1]
    step = 1e-6  # error: step^2 times a third derivative below 1e3, and 1e-16 * loss / step
    for place in np.ndindex(outputs.shape):
        ends, kept = [], outputs[place]
        for sign in (1, -1):
            outputs[place] = kept + sign * step
            ends.append(case.reference(arguments)[0].sum())
        outputs[place] = kept
        assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 1e-7


@in_each_dtype
@every_case
def test_elements_that_do_not_count_are_not_read(case, dtype):
    (outputs, targets, *more), options = case.make((6, 2), 9, dtype, 0)
    mask = np.arange(12).reshape(6, 2) % 3 != 1
    want, d_want = case(((outputs[mask], targets[mask], *more), options))
    outputs[~mask] = np.nan
    if targets.dtype != bool:
        targets[~mask] = np.inf
    for out in (None, outputs):  # in place comes last
        loss, gradient = case(((outputs, targets, *more), options), mask=mask, out=out)
        # The same weights, and the same sums by row, then by rising row.
        assert loss == want
        assert gradient[mask].tobytes() == d_want.tobytes()
        assert not gradient[~mask].any()


@in_each_dtype
@pytest.mark.parametrize("K", [1, 33, 700])
@every_case
def test_losses_of_elements_have_the_same_bits(case, K, dtype):
    """On any threads and instruction sets, of each row alone, in any memory, in place."""
    rows = 5 * 2**13 // K + 11
    arguments = case.make((rows,), K, dtype, 0)
    weights = np.random.default_rng(0).uniform(0, 2, rows)

    def bits(**options):
        return [np.asarray(a).tobytes() for a in case(arguments, mask=weights, **options)]

    want = bits(), bits(reduction="none")
    for isa in fused_sets():
        with rk.force_isa(isa):
            for threads in (1, 2, 5):
                assert on_threads(threads, bits) == want[0]
                assert on_threads(threads, bits, reduction="none") == want[1]
    (outputs, targets, *more), options = arguments
    losses, gradient = case(arguments, reduction="none")
    for row in range(0, rows, max(1, rows // 40)):
        one = slice(row, row + 1)
        alone = case(((outputs[one], targets[one], *more), options), reduction="none")
        assert alone[0].tobytes() == losses[row].tobytes()
        assert alone[1].tobytes() == gradient[row].tobytes()
    for layout in LAYOUTS.values():
        other = ((layout(outputs), layout(targets), *more), options)
        got = case(other, mask=layout(weights))
        assert [np.asarray(a).tobytes() for a in got] == want[0]
    out = outputs.copy()
    got = case(((out, targets, *more), options), mask=weights, out=out)
    assert got[1] is out
    assert [np.asarray(a).tobytes() for a in got] == want[0]


@in_each_dtype
@every_case
def test_what_is_not_finite_goes_through_in_its_element(case, dtype):
    arguments = case.make((4,), 5, dtype, 0)
    want, d_want = case(arguments, reduction="none")
    arguments[0][0][1, 2] = np.nan
    losses, gradient = case(arguments, reduction="none")
    assert np.isnan(losses[1, 2])
    assert np.isnan(gradient[1, 2])
    others = np.ones((4, 5), bool)
    others[1, 2] = False
    assert losses[others].tobytes() == want[others].tobytes()
    assert gradient[:, :5][others].tobytes() == d_want[:, :5][others].tobytes()


@in_each_dtype
@every_case
def test_no_rows(case, dtype):
    for shape in ((0,), (0, 4), (4, 0)):
        loss, gradient = case(case.make(shape, 3, dtype, 0))
        assert loss == 0
        assert gradient.shape == (*shape, 3 * case.of)


@in_each_set
@in_each_dtype
def test_extreme_logits_of_labels(dtype, isa):
    big = np.finfo(dtype).max
    z = np.array([[big, -big, big / 2, np.inf, -np.inf, -30.0]], dtype)
    t = np.array([[1, 0, 0, 1, 0, 0]], dtype)
    with rk.force_isa(isa), np.errstate(all="raise"):
        losses, dlogits = rk.binary_cross_entropy(z, t, reduction="none")
    tiny = np.log1p(np.exp(-30.0))
    bound = {"rtol": 4 * np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(losses, [[0, 0, big / 2, 0, 0, tiny]], **bound)
    np.testing.assert_allclose(dlogits, [[0, 0, 1, 0, 0, -np.expm1(-tiny)]], **bound)


@in_each_set
@in_each_dtype
def test_extreme_variances_stay_finite(dtype, isa):
    """Logarithms of variances beyond what the exponential holds, of errors of 0 and 1."""
    end = {np.float32: 174, np.float64: 1416}[dtype]
    for s in (80.0, -80.0, end + 50.0, -end - 50.0):
        outputs = np.array([[1.0, 2.0, s, s]], dtype)
        with rk.force_isa(isa):
            losses, gradient = rk.gaussian_nll(outputs, np.ones((1, 2), dtype), reduction="none")
        np.testing.assert_allclose(losses[0, 0], (s + np.log(2 * np.pi)) / 2, rtol=1e-6)
        assert gradient[0, [0, 2]].tolist() == [0.0, 0.5]
        assert not np.isnan(gradient).any()
        assert (losses[0, 1] > 0) == (abs(s) <= end or s > 0 or np.isinf(losses[0, 1]))


def test_a_median_at_its_target_has_no_gradient():
    loss, gradient = rk.quantile(np.array([[2.0, 3.0]]), np.array([2.0]), [0.5, 0.5])
    assert gradient.tolist() == [[0.0, 0.25]]
    assert loss == 0.25


def test_one_positive_weight_is_that_of_all_labels():
    z, t = _labels((5,), 7, np.float64, 0)
    want = rk.binary_cross_entropy(z, t, pos_weight=np.full(7, 2.5))
    got = rk.binary_cross_entropy(z, t, pos_weight=2.5)
    assert got[0] == want[0]
    assert got[1].tobytes() == want[1].tobytes()


@in_each_dtype
@every_reduction
def test_pytorch_agrees_on_losses_of_elements(reduction, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functions = torch.nn.functional
    weights = np.linspace(0.5, 2.0, 6).astype(dtype)

    def gaussian(y, t, reduction):
        mean, variance = y[..., :6], y[..., 6:].exp()
        return functions.gaussian_nll_loss(mean, t, variance, full=True, reduction=reduction)

    of_torch = {
        "binary": functions.binary_cross_entropy_with_logits,
        "binary, weighted": lambda y, t, reduction: functions.binary_cross_entropy_with_logits(
            y, t, pos_weight=torch.from_numpy(weights), reduction=reduction
        ),
        "squares": functions.mse_loss,
        "huber": lambda y, t, reduction: functions.huber_loss(y, t, reduction, delta=1.25),
        "gaussian": gaussian,
    }
    for name, use in of_torch.items():
        arguments = CASES[name].make((5, 3), 6, dtype, 0)
        if "pos_weight" in arguments[1]:
            arguments[1]["pos_weight"] = weights
        y = torch.from_numpy(arguments[0][0]).requires_grad_()
        loss = use(y, torch.from_numpy(arguments[0][1]), reduction=reduction)
        loss.sum().backward()
        got = CASES[name](arguments, reduction=reduction)
        # Both round, and PyTorch adds up 90 elements in the outputs' own type.
        assert_near(got, (loss.detach().numpy(), y.grad.numpy()), dtype, rows=180)


# ---- errors ------------------------------------------------------------------------------------

Y, ROWS, Z = np.zeros((4, 3, 6), np.float32), np.zeros((4, 3)), np.zeros((4, 3), int)
BCE, MSE, HUBER, PIN, NLL = (
    *("binary_cross_entropy", "mean_squared_error", "huber", "quantile", "gaussian_nll"),
)


def but(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


def masked(a):
    return np.ma.masked_array(a)


@pytest.mark.parametrize(
    ("message", "name", "arguments", "options"),
    [
        ("logits: expected an array of dtype float32 or float64, got int64", BCE, (Z, Z), {}),
        ("outputs: expected an array of dtype float32 or float64, got list", MSE, ([1.0], Y), {}),
        (
            "logits: expected shape (..., K) with K at least 1, got ()",
            BCE,
            (Y[0, 0, 0:1].reshape(()), Y),
            {},
        ),
        (
            "outputs: expected shape (..., K) with K at least 1, got (4, 3, 0)",
            MSE,
            (Y[..., :0], Y[..., :0]),
            {},
        ),
        (
            "outputs: expected shape (..., 2 K) with K at least 1, got (4, 3, 5)",
            NLL,
            (Y[..., :5], Y),
            {},
        ),
        ("targets: expected shape (4, 3, 3), got (4, 3, 6)", NLL, (Y, Y), {}),
        ("targets: expected shape (4, 3, 6), got (4, 3, 5)", HUBER, (Y, Y[..., :5]), {}),
        ("targets: expected shape (4, 3), got (4, 3, 6)", PIN, (Y, Y, np.full(6, 0.5)), {}),
        ("targets: expected an array of dtype float32, got float64", MSE, (Y, Y.astype("f8")), {}),
        ("targets: expected an array of dtype float32, got bool", MSE, (Y, Y > 0), {}),
        ("targets: expected an array of dtype float32, got int64", BCE, (Y, Y.astype(int)), {}),
        ("targets: expected an array of dtype float32, got list", BCE, (Y, [1.0]), {}),
        ("targets: expected shape (4, 3, 6), got (4, 3)", BCE, (Y, Z > 0), {}),
        ("mask: expected shape (4, 3), got (4,)", MSE, (Y, Y), {"mask": np.ones(4)}),
        (
            "mask: expected shape (4, 3, 6), got (4, 3, 5)",
            MSE,
            (Y, Y),
            {"mask": np.ones((4, 3, 5))},
        ),
        (
            "mask[1, 0]: expected a weight from 0 to 3.4e38, got nan",
            MSE,
            (Y, Y),
            {"mask": but(ROWS, (1, 0), np.nan)},
        ),
        (
            "mask: expected an array of booleans or weights, got <U1",
            HUBER,
            (Y, Y),
            {"mask": np.full((4, 3), "a")},
        ),
        (
            "reduction: expected one of mean, sum, none, got 'max'",
            PIN,
            (Y, Y, [0.5]),
            {"reduction": "max"},
        ),
        ("out: expected shape (4, 3, 6), got (4, 3)", MSE, (Y, Y), {"out": ROWS.astype("f4")}),
        (
            "out: expected an array of dtype float32, got float64",
            MSE,
            (Y, Y),
            {"out": Y.astype("f8")},
        ),
        ("delta: expected a number above 0, at most 3.4e38, got 0", HUBER, (Y, Y), {"delta": 0}),
        ("delta: expected a number, got str", HUBER, (Y, Y), {"delta": "1"}),
        (
            "pos_weight: expected a number from 0 to 3.4e38, got -1.0",
            BCE,
            (Y, Y),
            {"pos_weight": -1.0},
        ),
        ("pos_weight: expected shape (6,), got (5,)", BCE, (Y, Y), {"pos_weight": np.ones(5)}),
        (
            "pos_weight[2]: expected a weight from 0 to 3.4e38, got -1.0",
            BCE,
            (Y, Y),
            {"pos_weight": but(np.ones(6), 2, -1)},
        ),
        ("quantiles: expected shape (6,), got (2,)", PIN, (Y, Y[..., 0], [0.1, 0.9]), {}),
        (
            "quantiles[1]: expected a number between 0 and 1, got 1.0",
            PIN,
            (Y, Y[..., 0], [0.1, 1.0]),
            {},
        ),
        (
            "quantiles: expected a sequence of numbers, got float64 of shape ()",
            PIN,
            (Y, Y[..., 0], 0.5),
            {},
        ),
        (
            "quantiles: expected a sequence of numbers, got <U1 of shape (1,)",
            PIN,
            (Y, Y[..., 0], ["a"]),
            {},
        ),
        (
            "label_smoothing: expected a number from 0 to 1, got 1.5",
            "cross_entropy",
            (Y, Z),
            {"label_smoothing": 1.5},
        ),
        (
            "label_smoothing: expected a number, got bool",
            "cross_entropy",
            (Y, Z),
            {"label_smoothing": True},
        ),
        (
            "class_weights: expected shape (6,), got (5,)",
            "cross_entropy",
            (Y, Z),
            {"class_weights": np.ones(5)},
        ),
        (
            "class_weights[3]: expected a weight from 0 to 3.4e38, got inf",
            "cross_entropy",
            (Y, Z),
            {"class_weights": but(np.ones(6), 3, np.inf)},
        ),
        (
            "class_weights: expected an array of weights, got bool",
            "cross_entropy",
            (Y, Z),
            {"class_weights": np.ones(6, bool)},
        ),
        (
            "targets: expected an array of dtype float32, got float64",
            "cross_entropy",
            (Y, Y.astype("f8")),
            {},
        ),
        ("targets: expected shape (4, 3, 6), got (4, 3, 5)", "cross_entropy", (Y, Y[..., :5]), {}),
        (
            "ignore_index: expected None with targets of floats, got 3",
            "cross_entropy",
            (Y, Y),
            {"ignore_index": 3},
        ),
        ("mask: expected shape (4, 3), got (4, 3, 6)", "cross_entropy", (Y, Y), {"mask": Y}),
    ],
)
def test_errors(message, name, arguments, options):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}( \\(write .+\\))?$"):
        getattr(rk, name)(*arguments, **options)


def test_errors_of_memory():
    memory = np.zeros((5, 6), np.float32)
    for name in (BCE, MSE):
        first = "logits" if name == BCE else "outputs"
        with pytest.raises(
            ValueError, match=f"^out: expected memory of its own, .* overlaps {first}"
        ):
            getattr(rk, name)(memory[:4], np.ones((4, 6), np.float32), out=memory[1:])
        with pytest.raises(
            ValueError, match=r"^out: expected memory of its own, .* overlaps targets"
        ):
            getattr(rk, name)(np.ones((4, 6), np.float32), memory[:4], out=memory[1:])
    assert not memory.any()


def test_masked_arrays_are_refused():
    for use in (
        lambda: rk.huber(masked(Y), Y),
        lambda: rk.huber(Y, masked(Y)),
        lambda: rk.huber(Y, Y, mask=masked(ROWS)),
        lambda: rk.quantile(Y, Y[..., 0], masked(np.full(6, 0.5))),
        lambda: rk.binary_cross_entropy(Y, Y, pos_weight=masked(np.ones(6))),
        lambda: rk.cross_entropy(Y, masked(Y)),
        lambda: rk.cross_entropy(Y, Z, class_weights=masked(np.ones(6))),
    ):
        with pytest.raises(TypeError, match=r"expected an array without a mask, got MaskedArray"):
            use()


class Lent:
    """What lends its memory by DLPack, as a tensor does."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_gradients_are_written_into_a_tensors_memory():
    z, t = np.array([[0.5, 2.0]], np.float32), np.zeros((1, 2), np.float32)
    for use in (
        lambda **o: rk.cross_entropy(z, np.array([1]), **o),
        lambda **o: rk.mean_squared_error(z, t, **o),
        lambda **o: rk.binary_cross_entropy(z, t, **o),
    ):
        out = np.full_like(z, np.nan)
        _, dz = use(out=Lent(out))
        assert np.shares_memory(dz, out)
        assert out.tobytes() == use()[1].tobytes()
