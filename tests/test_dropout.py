"""Dropout as a module: masks by seed and element, their rate, ragged rows, state, bits, errors."""

from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, in_each_dtype, on_threads, sets
from test_bits import LAYOUTS
from test_modules import drawn

import rnnkern as rk
from rnnkern import reference

either = pytest.mark.parametrize("variational", [False, True], ids=["plain", "variational"])


def drop(x, p=0.4, variational=False, seed=3, **steps):
    return rk.Dropout(p, variational=variational, seed=seed).forward(x, **steps)[0]


@in_each_dtype
@either
def test_elements_are_dropped_or_scaled(variational, dtype):
    x, dy = drawn(7, 5, 37, dtype=dtype), drawn(7, 5, 37, dtype=dtype, seed=1)
    dropout = rk.Dropout(0.4, variational=variational, seed=3)
    y, tape = dropout.forward(x)
    kept = y != 0
    scale = dtype(1 / 0.6)
    assert y.dtype == dtype
    assert y.tobytes() == np.where(kept, x * scale, dtype(0)).tobytes()
    dx = dropout.backward(tape, dy).x
    assert dx.tobytes() == np.where(kept, dy * scale, dtype(0)).tobytes()
    assert (kept == kept[0]).all() == variational
    assert dropout(x) is x


@either
@in_each_dtype
def test_masks_are_those_of_the_reference(variational, dtype):
    lengths, T, B, C = np.array([7, 0, 3, 5]), 7, 4, 37
    x = np.ones((T, B, C), dtype)
    dropout = rk.Dropout(0.4, variational=variational, seed=3)
    dropout.forward(x)  # the second forward draws other masks
    dropout.first_row = 2
    seed, step = dropout.dropout_state["seeds"][0], dropout.dropout_step
    real = np.where(np.arange(T)[:, None] < lengths, np.arange(T)[:, None], -1)
    want = reference.dropout_mask(
        (T, B, C), 0.4, seed, step, first_row=2, steps=real, variational=variational
    )
    y, _ = dropout.forward(x, lengths=lengths)
    assert y.tobytes() == want.astype(dtype).tobytes()


@either
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_the_rate_of_dropped_elements_is_p(p, variational):
    T, B, C = (1, 300, 1000) if variational else (30, 10, 1000)
    y = drop(np.ones((T, B, C), np.float32), p, variational)
    n = T * B * C
    # Five standard deviations of a share of n; the mean of what is kept is 1.
    assert abs((y == 0).mean() - p) <= 5 * np.sqrt(p * (1 - p) / n)
    if p == 0:
        assert (y == 1).all()


@either
def test_masks_of_rows_steps_seeds_and_forwards_differ(variational):
    x = np.ones((4, 6, 64), np.float32)
    dropout = rk.Dropout(0.5, variational=variational, seed=0)
    first, second = (dropout.forward(x)[0] for _ in range(2))
    other = drop(x, 0.5, variational, seed=1)
    for a, b in [(first, second), (first, other), (first[:, 0], first[:, 1])]:
        # Of independent masks half the elements agree; 64 by 4 of them are off by at most 5 std,
        # of one mask repeated 4 times by twice that.
        assert abs((a == b).mean() - 0.5) < 10 * np.sqrt(0.25 / (a.size if a is first else 64))
    if not variational:
        assert (first[0] != first[1]).any()


@in_each_dtype
@either
def test_a_mask_depends_on_its_element_only(variational, dtype):
    """Not on T, B, C, the dtype, what is padding, and which of a row's steps are masked."""
    x = np.ones((6, 5, 70), dtype)
    want = drop(x, variational=variational)
    for T, B, C in ((3, 5, 70), (6, 2, 70), (6, 5, 33)):
        part = drop(x[:T, :B, :C].copy(), variational=variational)
        assert part.tobytes() == want[:T, :B, :C].tobytes()
    other = drop(x.astype(DTYPES[dtype is np.float32]), variational=variational)
    assert ((other != 0) == (want != 0)).all()
    one = drop(x[0].copy(), variational=variational)
    assert one.tobytes() == want[0].tobytes()
    lengths = np.array([6, 0, 3, 1, 5])
    real = np.arange(6)[:, None] < lengths
    got = drop(x, variational=variational, lengths=lengths)
    assert got.tobytes() == np.where(real[..., None], want, 0).astype(dtype).tobytes()
    holes = np.random.default_rng(0).random((6, 5)) < 0.5
    got = drop(x, variational=variational, mask=holes)
    for b in range(5):
        steps = np.flatnonzero(holes[:, b])
        assert got[steps, b].tobytes() == want[: len(steps), b].tobytes()
        assert not got[~holes[:, b], b].any()


@in_each_dtype
@either
def test_padding_and_dropped_elements_are_not_read(variational, dtype):
    x, mask = np.full((6, 3, 20), np.nan, dtype), np.zeros((6, 3), bool)
    dropout = rk.Dropout(0.9, variational=variational, seed=0)
    y, tape = dropout.forward(x, mask=mask)
    assert not y.any()
    assert not dropout.backward(tape, x).x.any()
    y, tape = dropout.forward(x)
    assert (np.isnan(y) | (y == 0)).all()
    assert (y == 0).any()
    assert (np.isnan(dropout.backward(tape, x).x) == np.isnan(y)).all()


@in_each_dtype
@either
@pytest.mark.parametrize("C", [1, 3, 31, 32, 33, 64, 1024, 1030])
def test_bits(C, variational, dtype):
    """On any threads and instruction sets, in any memory."""
    x = drawn(8, 5 * 2**12 // (8 * C) + 6, C, dtype=dtype)
    want = drop(x, variational=variational).tobytes()
    for isa in sets():  # a product without a sum: with and without the fused multiply-add
        with rk.force_isa(isa):
            for threads in (1, 2, 3, 5):
                got = on_threads(threads, drop, x, variational=variational)
                assert got.tobytes() == want
    for layout in LAYOUTS.values():
        assert drop(layout(x), variational=variational).tobytes() == want


def test_masks_do_not_change_from_release_to_release():
    """A run that is resumed by another version draws the same ones."""
    dropout = rk.Dropout(0.5, seed=0)
    dropout.dropout_state = {"seeds": [12345], "step": 7}
    y = dropout.forward(np.ones((2, 1, 8), np.float32))[0]
    assert (y[:, 0] != 0).astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 1, 1],
        [0, 1, 1, 0, 1, 0, 1, 1],
    ]


@either
def test_a_run_resumes_with_its_masks(variational):
    x = np.ones((3, 2, 40), np.float32)
    dropout = rk.Dropout(0.5, variational=variational, seed=0)
    dropout.forward(x)
    state = json.loads(json.dumps(dropout.dropout_state))
    others = [rk.Dropout(0.5, variational=variational), copy.deepcopy(dropout), dropout.copy()]
    others.append(pickle.loads(pickle.dumps(dropout)))
    others[0].dropout_state = state
    want = dropout.forward(x)[0].tobytes()
    for other in others:
        assert other.forward(x)[0].tobytes() == want
        assert other.dropout_state == dropout.dropout_state
    dropout.dropout_step = 1
    assert dropout.forward(x)[0].tobytes() == want
    assert dropout.dropout_step == 2


@in_each_dtype
@either
def test_rows_in_parts_have_the_masks_of_the_whole_batch(variational, dtype):
    x, dropout = np.ones((6, 5, 70), dtype), rk.Dropout(0.4, variational=variational, seed=3)
    whole = drop(x, variational=variational)
    tapes = []
    for rows in (slice(0, 2), slice(2, 5), slice(5, 5)):
        dropout.first_row, dropout.dropout_step = rows.start, 0
        y, tape = dropout.forward(x[:, rows].copy())
        assert y.tobytes() == whole[:, rows].tobytes()
        tapes.append((rows, tape))
    for rows, tape in tapes:  # a tape keeps its rows
        assert dropout.backward(tape, x[:, rows].copy()).x.tobytes() == whole[:, rows].tobytes()


@pytest.mark.parametrize("row", [-1, 2**31 + 1, 1.5, "1"])
def test_a_first_row_that_no_batch_has_is_refused(row):
    dropout = rk.Dropout(0.5)
    with pytest.raises((TypeError, ValueError), match=r"^first_row: expected an integer"):
        dropout.first_row = row
    assert dropout.first_row == 0


def test_a_run_is_saved_and_restored_with_its_masks(tmp_path):
    x, path = np.ones((3, 2, 40), np.float32), tmp_path / "run.safetensors"
    run = {"norm": rk.LayerNorm(3, 0.5), "dropout": rk.Dropout(0.5)}
    run["dropout"].dropout_state = {"seeds": [2**64 - 1], "step": 5}
    rk.save(path, run)
    again = {"norm": rk.LayerNorm(3, 0.5), "dropout": rk.Dropout(0.5)}
    assert rk.restore(path, again) == {}
    assert again["dropout"].dropout_state == {"seeds": [2**64 - 1], "step": 5}
    want = run["dropout"].forward(x)[0].tobytes()
    assert again["dropout"].forward(x)[0].tobytes() == want
    assert repr(rk.load(path)["norm"]) == repr(run["norm"])


def test_a_failed_forward_draws_nothing():
    dropout = rk.Dropout(0.5)
    with pytest.raises(ValueError, match=r"^x: "):
        dropout.forward(np.ones(3, np.float32))
    assert dropout.dropout_step == 0


def test_a_tape_keeps_its_mask():
    dropout, x = rk.Dropout(0.5, seed=0), np.ones((3, 2, 40), np.float32)
    mask = np.array([[True, True], [True, False], [True, False]])
    y, tape = dropout.forward(x, mask=mask)
    mask[...] = True
    dropout.p = 0.0
    dropout.dropout_state = {"seeds": [5], "step": 9}
    ones = np.ones_like(x)
    x[...] = 3.0  # backward does not read it
    grads = dropout.backward(tape, ones)
    assert grads.x.tobytes() == y.tobytes()
    assert grads.params == {}
    assert (grads.norm, grads.finite) == (0.0, True)
    with pytest.raises(ValueError, match=r"one of another module$"):
        rk.Dropout(0.5).backward(tape, ones)
    assert repr(dropout) == "Dropout(p=0.0, seed=0)"
    with pytest.raises(AttributeError, match="variational"):
        dropout.variational = True


@either
def test_no_rows(variational):
    for shape in ((0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 4)):
        assert drop(np.zeros(shape, np.float32), variational=variational).shape == shape


X = np.zeros((4, 3, 5), np.float32)


@pytest.mark.parametrize(
    ("message", "use"),
    [
        ("p: expected a number from 0 to below 1, got 1.0", lambda: rk.Dropout(1.0)),
        ("p: expected a number, got str", lambda: rk.Dropout("0.5")),
        (
            "variational: expected True or False, got int",
            lambda: rk.Dropout(0.5, variational=1),
        ),
        (
            "seed: expected an integer from 0 to 2**64 - 1, got -1",
            lambda: rk.Dropout(0.5, seed=-1),
        ),
        ("x: expected shape (T, B, C) or (B, C), got (3,)", lambda: drop(X[0, :, 0])),
        (
            "x: expected an array of dtype float32 or float64, got int64",
            lambda: drop(X.astype(int)),
        ),
        (
            "x: expected an array of dtype float32 or float64, got list",
            lambda: rk.Dropout(0.5)([1.0]),
        ),
        (
            "lengths: expected None with x of shape (B, C), got an array",
            lambda: drop(X[0], lengths=np.ones(3, int)),
        ),
        (
            "mask: expected None with lengths, got an array",
            lambda: drop(X, lengths=np.ones(3, int), mask=np.ones((4, 3), bool)),
        ),
        ("mask: expected shape (4, 3), got (3,)", lambda: drop(X, mask=np.ones(3, bool))),
        (
            "dy: expected shape (4, 3, 5), got (3, 5)",
            lambda: (d := rk.Dropout(0.5)).backward(d.forward(X)[1], X[0]),
        ),
    ],
)
def test_errors(message, use):
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use()
