"""Conditional random field: against all paths, the reference and differences; padding; bits."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, on_threads

import rnnkern as rk
from rnnkern import reference

# T, B, L: one of each; below, at and behind vectors and cache lines; more rows than a thread takes
# at a time.
SIZES = [(1, 1, 1), (2, 3, 2), (9, 5, 7), (20, 13, 8), (6, 2, 17), (30, 7, 33)]
NAMES = ("start_transitions", "end_transitions", "transitions")


def problem(T, B, L, dtype=np.float64, size=2.0, seed=0):
    """A field with parameters of some units, emissions and labels."""
    rng = np.random.default_rng(seed)
    crf = rk.CRF(L, dtype=dtype, seed=0)
    for array in crf.params.values():
        array[...] = size * rng.normal(size=array.shape)
    return crf, (size * rng.normal(size=(T, B, L))).astype(dtype), rng.integers(0, L, (T, B))


def params_of(crf):
    return [crf.params[name] for name in NAMES]


def ragged(T, B):
    """A mask with gaps; the second of several rows has no step."""
    mask = np.random.default_rng(T).random((T, B)) < 0.7
    mask[:, 1:2] = False
    return mask


def found(crf, e, labels, **options):
    """Everything that a field says of a batch, as bytes."""
    losses, grads = crf.loss(e, labels, reduction="none", **options)
    arrays = [losses, grads.x, *grads.params.values(), crf.log_partition(e, **options)]
    arrays += [crf.marginals(e, **options), *crf.decode(e, **options)]
    return [array.tobytes() for array in arrays]


# ---- against the definition --------------------------------------------------------------------


@pytest.mark.parametrize(("T", "L"), [(1, 1), (1, 4), (4, 2), (5, 3), (3, 6)])
def test_the_references_recurrences_are_sums_over_all_paths(T, L):
    crf, e, _ = problem(T, 1, L)
    crf.params["transitions"][0, -1] = -np.inf if L > 1 else 1.0
    paths, scores = reference.crf_paths(e[:, 0], *params_of(crf))
    p = np.exp(scores - scores.max())
    log_partition, marginals, pairs = reference.crf(e[:, 0], *params_of(crf))
    # Sums of up to 250 positive terms, and logarithms of some tens.
    assert abs(log_partition - scores.max() - np.log(p.sum())) < 1e-12
    p /= p.sum()
    for t, j in np.ndindex(T, L):
        assert abs(p[paths[:, t] == j].sum() - marginals[t, j]) < 1e-12
    for i, j in np.ndindex(L, L):
        times = ((paths[:, :-1] == i) & (paths[:, 1:] == j)).sum(axis=1)
        assert abs((p * times).sum() - pairs[i, j]) < 1e-12


@in_each_set
@in_each_dtype
@pytest.mark.parametrize("size", [0.0, 2.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
def test_losses_and_gradients_are_the_references(sizes, size, dtype, isa):
    crf, e, labels = problem(*sizes, dtype, size)
    T, B, L = sizes
    for mask in (None, ragged(T, B)):
        with rk.force_isa(isa):
            losses, grads = crf.loss(e, labels, mask=mask, reduction="none")
            log_partitions, marginals = crf.log_partition(e, mask=mask), crf.marginals(e, mask=mask)
        assert grads.x.dtype == marginals.dtype == grads.params["transitions"].dtype == dtype
        start, end, pairs = np.zeros(L), np.zeros(L), np.zeros((L, L))
        # Sums in float64 of T steps of up to 100 units; a result is rounded to the dtype.
        exact = 1e-14 * (1 + T) * (1 + 10 * size)
        bound = {"rtol": np.finfo(dtype).eps, "atol": exact}
        for b in range(B):
            real = np.ones(T, bool) if mask is None else mask[:, b]
            assert not marginals[~real, b].any()
            assert not grads.x[~real, b].any()
            if not real.any():
                assert losses[b] == log_partitions[b] == 0
                continue
            log_partition, p, of_pairs = reference.crf(e[real, b], *params_of(crf))
            right, own = labels[real, b], e[real, b].astype(np.float64)
            wide = [array.astype(np.float64) for array in params_of(crf)]
            score = wide[0][right[0]] + own[np.arange(len(right)), right].sum()
            score += wide[1][right[-1]] + wide[2][right[:-1], right[1:]].sum()
            assert abs(log_partitions[b] - log_partition) < exact * (1 + size)
            assert abs(losses[b] - (log_partition - score)) < exact * (1 + size)
            np.testing.assert_allclose(marginals[real, b], p, **bound)
            slopes = p - np.eye(L)[right]
            np.testing.assert_allclose(grads.x[real, b], slopes, **bound)
            start += slopes[0]
            end += slopes[-1]
            pairs += of_pairs
            np.subtract.at(pairs, (right[:-1], right[1:]), 1)
        bound["atol"] *= B * T
        for name, want in zip(NAMES, (start, end, pairs), strict=True):
            np.testing.assert_allclose(grads.params[name], want, **bound, err_msg=name)


@pytest.mark.parametrize("reduction", ["mean", "token_mean", "sum", "none"])
def test_gradients_are_those_of_the_reduced_loss(reduction):
    crf, e, labels = problem(4, 4, 3)
    lengths = [4, 0, 2, 3]
    losses, of_sum = crf.loss(e, labels, lengths=lengths, reduction="none")
    loss, grads = crf.loss(e, labels, lengths=lengths, reduction=reduction)
    divisor = {"mean": 3, "token_mean": 9}.get(reduction, 1)
    # A division and a product by the reciprocal differ by two roundings.
    np.testing.assert_allclose(np.sum(loss), losses.sum() / divisor, rtol=1e-15)
    np.testing.assert_allclose(grads.x, of_sum.x / divisor, rtol=1e-15)
    step = 1e-5  # error: step^2 times a third derivative below 10, and 1e-15 * loss / step
    arrays = [e, *params_of(crf)]
    for array, gradient in zip(arrays, [grads.x, *(grads.params[n] for n in NAMES)], strict=True):
        for place in np.ndindex(array.shape):
            kept, ends = array[place], []
            for sign in (1, -1):
                array[place] = kept + sign * step
                ends.append(np.sum(crf.loss(e, labels, lengths=lengths, reduction=reduction)[0]))
            array[place] = kept
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 2e-8


@in_each_set
@in_each_dtype
@pytest.mark.parametrize(("T", "L"), [(1, 1), (1, 5), (4, 2), (5, 4), (3, 9)])
def test_decoded_paths_are_the_best_of_all(T, L, dtype, isa):
    """Scores of few integers have many ties: the lowest last label wins, then the one before it."""
    rng = np.random.default_rng(T * L)
    crf = rk.CRF(L, dtype=dtype)
    for high in (1, 2, 3):
        for array in crf.params.values():
            array[...] = rng.integers(0, high, array.shape)
        e = rng.integers(0, high, (T, 6, L)).astype(dtype)
        with rk.force_isa(isa):
            paths, scores = crf.decode(e)
        for b in range(6):
            every, of_each = reference.crf_paths(e[:, b], *params_of(crf))
            best = every[of_each == of_each.max()]
            assert paths[:, b].tolist() == min(best.tolist(), key=lambda path: path[::-1])
            assert scores[b] == of_each.max()


# ---- forbidden and extreme scores --------------------------------------------------------------


@in_each_set
@in_each_dtype
def test_forbidden_transitions(dtype, isa):
    """BIO: I (2) follows B (1) or I only, and begins nothing; B does not end."""
    forbidden = [(0, 2), (None, 2), (1, None)]
    free, e, labels = problem(9, 4, 3, dtype)
    crf = rk.CRF(3, forbidden=forbidden, dtype=dtype, params=free.params)
    assert crf.forbidden == tuple(forbidden)
    labels[...] = [[0], [1], [2], [2], [0], [0], [1], [1], [2]]
    with rk.force_isa(isa), np.errstate(all="raise"):
        losses, grads = crf.loss(e, labels, reduction="none")
        paths, _ = crf.decode(e)
        p = crf.marginals(e)
    free.params["transitions"][0, 2] = free.params["start_transitions"][2] = -np.inf
    free.params["end_transitions"][1] = -np.inf
    for b in range(4):
        _, want, _ = reference.crf(e[:, b], *params_of(free))
        np.testing.assert_allclose(p[:, b], want, rtol=np.finfo(dtype).eps, atol=1e-13)
    assert free.log_partition(e).tobytes() == crf.log_partition(e).tobytes()
    assert np.isfinite(losses).all()
    assert not p[0, :, 2].any()
    assert not p[-1, :, 1].any()
    assert not ((paths[:-1] == 0) & (paths[1:] == 2)).any()
    assert not (paths[0] == 2).any()
    assert not (paths[-1] == 1).any()
    before = crf.state_dict()
    rk.Adam(crf).step(grads)
    for own, old in zip(params_of(crf), before.values(), strict=True):
        assert (own != old).any()
    labels[3], labels[4], labels[-1] = 0, 2, 1
    losses, grads = crf.loss(e, labels, reduction="none")
    assert np.isposinf(losses).all()
    assert grads.params["transitions"][0, 2] == 0
    assert grads.params["start_transitions"][2] == grads.params["end_transitions"][1] == 0
    assert found(pickle.loads(pickle.dumps(crf)), e, labels) == found(crf, e, labels)
    assert repr(crf).startswith("CRF(3, forbidden=((0, 2), (None, 2), (1, None))")


def test_a_row_whose_paths_are_all_forbidden():
    crf, e, labels = problem(5, 3, 4)
    want = found(crf, e[:, ::2], labels[:, ::2])[0]
    e[2, 1] = -np.inf
    log_partitions = crf.log_partition(e)
    assert np.isneginf(log_partitions).tolist() == [False, True, False]
    assert crf.loss(e, labels, reduction="none")[0][::2].tobytes() == want
    paths, scores = crf.decode(e)
    assert np.isneginf(scores[1])
    assert ((paths >= 0) & (paths < 4)).all()


@in_each_set
def test_scores_that_no_power_of_e_can_hold(isa):
    """Steps after which only paths are left whose share was far below the smallest number."""
    L, T = 5, 12
    for seed in range(6):
        crf, e, labels = problem(T, 2, L, size=900.0, seed=seed)
        crf.params["transitions"][np.random.default_rng(seed).random((L, L)) < 0.4] = -1e4
        with rk.force_isa(isa):
            _, grads = crf.loss(e, labels, reduction="none")
            log_partitions = crf.log_partition(e)
        pairs = np.zeros((L, L))
        for b in range(2):
            log_partition, p, of_pairs = reference.crf(e[:, b], *params_of(crf))
            # Scores of up to 1e5 are off by some 1e-11, and so are powers of e, relatively.
            assert abs(log_partitions[b] - log_partition) < 1e-9
            slopes = p - np.eye(L)[labels[:, b]]
            np.testing.assert_allclose(grads.x[:, b], slopes, rtol=0, atol=1e-9)
            pairs += of_pairs
            np.subtract.at(pairs, (labels[:-1, b], labels[1:, b]), 1)
        np.testing.assert_allclose(grads.params["transitions"], pairs, rtol=0, atol=1e-8)


def test_the_smallest_shares_are_summed_exactly():
    """Label 0 is 2000 below label 1, whose way on costs 5000: the sum of e^x would be zero."""
    crf = rk.CRF(
        2,
        dtype="f8",
        params={
            "start_transitions": np.array([0.0, 2000.0]),
            "end_transitions": np.zeros(2),
            "transitions": np.array([[0.0, -1.0], [-5000.0, -6000.0]]),
        },
    )
    e = np.zeros((2, 1, 2))
    want, p, pairs = reference.crf(e[:, 0], *params_of(crf))
    # A start of 2000 and transitions of at most -1: sums of e^(x - top) are of e^-2000 alone.
    assert crf.log_partition(e)[0] == pytest.approx(want, abs=1e-12)
    np.testing.assert_allclose(crf.marginals(e)[:, 0], p, atol=1e-12)
    grads = crf.loss(e, np.zeros((2, 1), int))[1]
    np.testing.assert_allclose(grads.params["transitions"], pairs - [[1, 0], [0, 0]], atol=1e-12)


@in_each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(bad, dtype):
    crf, e, labels = problem(6, 8, 5, dtype)
    losses, grads = crf.loss(e, labels, reduction="none")
    e[3, 2, 1] = bad
    got, of_bad = crf.loss(e, labels, reduction="none")
    others = np.arange(8) != 2
    assert np.isnan(got[2])
    assert not of_bad.finite
    assert got[others].tobytes() == losses[others].tobytes()
    assert of_bad.x[:, others].tobytes() == grads.x[:, others].tobytes()
    paths, _ = crf.decode(e)
    assert ((paths >= 0) & (paths < 5)).all()


# ---- padding -----------------------------------------------------------------------------------


@in_each_dtype
@pytest.mark.parametrize("sizes", SIZES)
def test_padding_is_not_read_and_leaves_no_trace(sizes, dtype):
    crf, e, labels = problem(*sizes, dtype)
    mask = ragged(*sizes[:2])
    e[~mask], labels[~mask] = np.nan, -7
    losses, grads = crf.loss(e, labels, mask=mask, reduction="none")
    paths, scores = crf.decode(e, mask=mask)
    p = crf.marginals(e, mask=mask)
    assert grads.finite
    assert (paths[~mask] == -1).all()
    assert not grads.x[~mask].any()
    for b in range(sizes[1]):
        real = mask[:, b]
        row, right = e[real][:, b : b + 1], labels[real][:, b : b + 1]
        loss, alone = crf.loss(row, right, reduction="none")
        path, score = crf.decode(row)
        assert losses[b] == loss[0]
        assert scores[b] == score[0]
        assert grads.x[real, b].tobytes() == alone.x.tobytes()
        assert p[real, b].tobytes() == crf.marginals(row).tobytes()
        assert paths[real, b].tolist() == path[:, 0].tolist()


def test_lengths_are_a_mask():
    crf, e, labels = problem(6, 3, 4)
    lengths = np.array([6, 0, 3], np.uint8)
    mask = np.arange(6)[:, None] < lengths
    assert found(crf, e, labels, lengths=lengths) == found(crf, e, labels, mask=mask)


@pytest.mark.parametrize("reduction", ["mean", "token_mean", "sum"])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_no_rows(T, B, reduction):
    crf = rk.CRF(3)
    e = np.zeros((T, B, 3), np.float32)
    loss, grads = crf.loss(e, np.zeros((T, B), int), reduction=reduction)
    assert loss == 0
    assert grads.x.shape == e.shape
    assert grads.norm == 0
    assert crf.log_partition(e).tolist() == [0.0] * B
    paths, scores = crf.decode(e)
    assert paths.shape == (T, B)
    assert scores.tolist() == [0.0] * B
    assert crf.marginals(e).shape == e.shape


# ---- the same bits -----------------------------------------------------------------------------

LARGE = (30, 40, 33)  # worth three threads


@in_each_dtype
@pytest.mark.parametrize("sizes", [*SIZES, LARGE])
def test_bits_on_threads_and_instruction_sets(sizes, dtype):
    crf, *arrays = problem(*sizes, dtype)
    for mask in (None, ragged(*sizes[:2])):
        results = []
        for isa in fused_sets():
            with rk.force_isa(isa):
                results += [
                    on_threads(threads, found, crf, *arrays, mask=mask) for threads in (1, 2, 3, 8)
                ]
        assert all(other == results[0] for other in results)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("use", ["loss(e, np.zeros((T, B), int))", "decode(e)"])
def test_threads_are_shared_out(use):
    """The largest problem above makes the core start its threads."""
    code = f"""if True:
        import os
        import numpy as np, rnnkern as rk
        T, B, L = {LARGE}
        crf, e = rk.CRF(L), np.zeros((T, B, L), np.float32)
        started = len(os.listdir("/proc/self/task"))
        for n in (1, 3):
            rk.set_num_threads(n)
            crf.{use}
            print(n, len(os.listdir("/proc/self/task")) - started + 1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n3 3\n", done.stderr


@pytest.mark.parametrize("sizes", [(5, 9, 6), (2, 700, 33)])
def test_gradients_of_parameters_are_added_up_by_rising_row(sizes):
    """700 rows of 33 labels are more than are kept between two sums: 4 MiB."""
    assert 700 * 35 * 40 * 8 > 4 << 20
    crf, e, labels = problem(*sizes)
    grads = crf.loss(e, labels, reduction="sum")[1]
    total = {name: np.zeros_like(array) for name, array in crf.params.items()}
    for b in range(sizes[1]):
        row = crf.loss(e[:, b : b + 1], labels[:, b : b + 1], reduction="sum")[1]
        for name in NAMES:
            total[name] += row.params[name]
    for name in NAMES:
        assert grads.params[name].tobytes() == total[name].tobytes()


@in_each_dtype
def test_strides_do_not_matter(dtype):
    crf, e, labels = problem(9, 4, 7, dtype)
    want = found(crf, e, labels)
    assert found(crf, np.asfortranarray(e), np.asfortranarray(labels)) == want
    assert found(crf, np.repeat(e, 2, axis=2)[:, :, ::2], labels.astype(np.uint8)) == want


# ---- parameters --------------------------------------------------------------------------------


@in_each_dtype
def test_initial_values_copies_and_state_dicts(dtype):
    crf = rk.CRF(50, dtype=dtype, seed=1)
    for array in crf.params.values():
        assert array.dtype == dtype
        assert np.abs(array).max() <= 0.1
    assert crf.params["transitions"].std() == pytest.approx(0.1 / 3**0.5, rel=2.3 / 50)
    assert crf.num_parameters == 50 * 52
    e, labels = np.zeros((4, 2, 50), dtype), np.zeros((4, 2), int)
    want = found(crf, e, labels)
    for same in (crf.copy(), copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        assert repr(same) == repr(crf)
        assert found(same, e, labels) == want
    model = {f"crf.{name}": array for name, array in crf.params.items()}  # as pytorch-crf's names
    other = rk.CRF(50, dtype=dtype)
    assert other.load_state_dict(model, "crf.") == ([], [])
    assert found(other, e, labels) == want
    assert found(rk.CRF(50, dtype=dtype, params=crf.params), e, labels) == want


def test_pytorch_crf_agrees():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torchcrf = pytest.importorskip("torchcrf", reason="pytorch-crf is not installed")
    crf, e, labels = problem(7, 3, 5)
    mask = np.arange(7)[:, None] < [7, 2, 4]
    theirs = torchcrf.CRF(5).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in crf.params.items()})
    x = torch.from_numpy(e).requires_grad_()
    loss = -theirs(x, torch.from_numpy(labels), mask=torch.from_numpy(mask), reduction="mean")
    loss.backward()
    got, grads = crf.loss(e, labels, mask=mask)
    assert got == pytest.approx(loss.item(), abs=1e-12)  # sums of some tens of units in float64
    np.testing.assert_allclose(grads.x, x.grad.numpy(), atol=1e-12)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads.params[name], parameter.grad.numpy(), atol=1e-12)
    paths, _ = crf.decode(e, mask=mask)
    want = theirs.decode(x, torch.from_numpy(mask))
    assert [paths[: len(path), b].tolist() for b, path in enumerate(want)] == want


# ---- errors ------------------------------------------------------------------------------------

E, LABELS = np.zeros((4, 3, 5), np.float32), np.zeros((4, 3), int)


def but(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("error", "message", "use"),
    [
        (ValueError, "num_labels: expected an integer of at least 1, got 0", lambda c: rk.CRF(0)),
        (TypeError, "num_labels: expected an integer, got float", lambda c: rk.CRF(2.0)),
        (
            TypeError,
            "dtype: expected float32 or float64, got int64",
            lambda c: rk.CRF(2, dtype="i8"),
        ),
        (
            ValueError,
            "forbidden[1]: expected labels from 0 to 1, got 2",
            lambda c: rk.CRF(2, forbidden=[(0, 1), (2, None)]),
        ),
        (
            ValueError,
            "forbidden[0]: expected a pair with at least one label, got (None, None)",
            lambda c: rk.CRF(2, forbidden=[(None, None)]),
        ),
        (
            ValueError,
            "forbidden[0]: expected a pair with at least one label, got 3",
            lambda c: rk.CRF(2, forbidden=[3]),
        ),
        (
            TypeError,
            "forbidden: expected pairs of labels, got int",
            lambda c: rk.CRF(2, forbidden=3),
        ),
        (
            TypeError,
            "forbidden[0]: expected integers or None, got float",
            lambda c: rk.CRF(2, forbidden=[(0, 1.0)]),
        ),
        (
            ValueError,
            "emissions: expected shape (T, B, 5), got (4, 3)",
            lambda c: c.decode(E[..., 0]),
        ),
        (
            ValueError,
            "emissions: expected shape (T, B, 5), got (4, 3, 4)",
            lambda c: c.loss(E[..., 1:], LABELS),
        ),
        (
            TypeError,
            "emissions: expected an array of dtype float32, got float64",
            lambda c: c.marginals(E.astype("f8")),
        ),
        (
            TypeError,
            "emissions: expected an array without a mask, got MaskedArray",
            lambda c: c.log_partition(np.ma.masked_array(E)),
        ),
        (ValueError, "labels: expected shape (4, 3), got (3, 4)", lambda c: c.loss(E, LABELS.T)),
        (
            TypeError,
            "labels: expected an array of integers, got float64",
            lambda c: c.loss(E, 1.0 * LABELS),
        ),
        (
            ValueError,
            "labels[2, 1]: expected an integer from 0 to 4, got 5",
            lambda c: c.loss(E, but(LABELS, (2, 1), 5)),
        ),
        (
            ValueError,
            "labels[0, 2]: expected an integer from 0 to 4, got -1",
            lambda c: c.loss(E, but(LABELS, (0, 2), -1), lengths=[0, 0, 1]),
        ),
        (
            ValueError,
            "lengths[2]: expected a length from 0 to T = 4, got 5",
            lambda c: c.decode(E, lengths=[0, 4, 5]),
        ),
        (
            ValueError,
            "mask: expected None with lengths, got an array",
            lambda c: c.marginals(E, lengths=[4, 4, 4], mask=LABELS == 0),
        ),
        (
            ValueError,
            "mask: expected shape (4, 3), got (3, 4)",
            lambda c: c.decode(E, mask=LABELS.T > 0),
        ),
        (
            TypeError,
            "mask: expected an array of booleans, got int64",
            lambda c: c.log_partition(E, mask=LABELS),
        ),
        (
            ValueError,
            "reduction: expected one of mean, token_mean, sum, none, got 'max'",
            lambda c: c.loss(E, LABELS, reduction="max"),
        ),
    ],
)
def test_errors(error, message, use):
    with pytest.raises(error, match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use(rk.CRF(5))


def test_parameters_are_checked_in_each_call():
    crf = rk.CRF(5)
    crf.params["end_transitions"] = np.zeros(4, np.float32)
    for use in (
        lambda: crf.loss(E, LABELS),
        lambda: crf.log_partition(E),
        lambda: crf.marginals(E),
        lambda: crf.decode(E),
    ):
        with pytest.raises(
            ValueError, match=r"^params\['end_transitions'\]: expected shape \(5,\)"
        ):
            use()
