"""Batches of sequences: every one once, padded behind its end, in an order that a seed gives."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnkern as rk

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(0, 30, 203)
X = [RNG.normal(size=(length, 2)).astype(np.float32) for length in LENGTHS]
TAGS = [RNG.integers(0, 9, length) for length in LENGTHS]
SOURCES = [RNG.integers(0, 9, length) for length in RNG.integers(1, 60, 203)]
LABELS = RNG.integers(0, 5, 203)
Y = {"tags": TAGS, "to": SOURCES, "label": LABELS}


def equal(a, b):
    return all(
        np.array_equal(one, other)
        for one, other in zip((a.x, a.lengths, a.indices), (b.x, b.lengths, b.indices), strict=True)
    )


def orders(batches):
    return [batch.indices.tolist() for batch in batches]


@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
)
def test_each_sequence_comes_once_an_epoch(count, bucket, shuffle, by_tokens, lengths):
    x = [np.full(length, i) for i, length in enumerate(lengths)]
    limit = max(count, *lengths)
    kind = {"tokens": limit} if by_tokens else {"batch_size": count}
    batches = rk.Batches(x, bucket=bucket, shuffle=shuffle, seed=1, pad_value=-1, **kind)
    for epoch in range(2):
        assert batches.epoch == epoch
        expected, seen = len(batches), []
        for number, batch in enumerate(batches):
            assert batches.done == number + 1
            seen += batch.indices.tolist()
            steps, rows = batch.x.shape
            assert steps == batch.lengths.max()
            assert steps * rows <= limit if by_tokens else rows <= count
            for column, (index, length) in enumerate(
                zip(batch.indices, batch.lengths, strict=True)
            ):
                assert np.array_equal(batch.x[:length, column], x[index])
                assert (batch.x[length:, column] == -1).all()
            assert np.array_equal(batch.mask, batch.x >= 0)
        assert number + 1 == expected
        assert sorted(seen) == list(range(len(x)))


def test_targets_come_with_their_sequences():
    for batch in rk.Batches(X, Y, batch_size=8, seed=0, y_pad_value=-1):
        assert batch.x.shape[2:] == (2,)
        assert np.array_equal(batch.y["label"], LABELS[batch.indices])
        assert batch.y_lengths["label"] is batch.y_mask["label"] is None
        assert np.array_equal(batch.y_lengths["tags"], batch.lengths)
        assert np.array_equal(batch.y_mask["to"], batch.y["to"] >= 0)
        for column, index in enumerate(batch.indices):
            length = batch.y_lengths["to"][column]
            assert np.array_equal(batch.y["to"][:length, column], SOURCES[index])
    (batch,) = rk.Batches(X, LABELS, batch_size=999, seed=0)
    assert np.array_equal(batch.y, LABELS[batch.indices])
    assert batch.y_lengths is batch.y_mask is None
    (batch,) = rk.Batches(X, TAGS, batch_size=999, seed=0)
    assert np.array_equal(batch.y_mask, batch.mask)
    (batch,) = rk.Batches(X, batch_size=999, seed=0)
    assert batch.y is batch.y_lengths is batch.y_mask is None


def test_targets_of_different_lengths_count_as_tokens():
    for batch in rk.Batches(X, SOURCES, tokens=240, seed=0):
        assert max(len(batch.x), len(batch.y)) * len(batch.indices) <= 240


def test_sorting_in_buckets_saves_padding_and_leaves_the_order_random():
    def padding(**options):
        steps = [b.x.shape[0] * b.x.shape[1] for b in rk.Batches(X, seed=0, **options)]
        return sum(steps) / LENGTHS.sum() - 1

    assert padding(batch_size=8, bucket=25) < 0.1 < padding(batch_size=8, bucket=1)
    assert padding(tokens=240) < 0.1 < padding(tokens=240, bucket=1)
    longest = [int(b.lengths.max()) for b in rk.Batches(X, batch_size=8, seed=0)]
    assert longest not in (sorted(longest), sorted(longest)[::-1])


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    batches, again = (rk.Batches(X, batch_size=8, seed=5) for _ in range(2))
    first, second = orders(batches), orders(batches)
    assert first != second
    for _ in range(3):
        next(iter(again))  # in between, and then the rest
    assert orders(again) == first[3:]
    assert orders(again) == second
    assert orders(rk.Batches(X, batch_size=8, seed=6)) != first
    assert orders(rk.Batches(X, batch_size=8)) != orders(rk.Batches(X, batch_size=8))


def test_without_shuffling_each_epoch_has_the_same_order():
    batches = rk.Batches(X, batch_size=8, shuffle=False, bucket=1)
    assert [i for order in orders(batches) for i in order] == list(range(len(X)))
    batches = rk.Batches(X, batch_size=8, shuffle=False)
    assert orders(batches) == orders(batches)


def test_drop_last_leaves_out_the_incomplete_batch_alone():
    batches = rk.Batches(X, batch_size=8, drop_last=True, seed=0)
    assert len(batches) == len(X) // 8
    assert {len(batch.indices) for batch in batches} == {8}
    assert len(rk.Batches(X[:3], batch_size=8, drop_last=True)) == 0


@pytest.mark.parametrize("kind", [{"batch_size": 8}, {"tokens": 100}])
@pytest.mark.parametrize("done", [0, 3, "all", "over"])
def test_a_state_goes_on_with_the_same_batches(kind, done):
    batches, again = (rk.Batches(X, seed=seed, **kind) for seed in (1, 2))
    for number, _ in enumerate(batches):
        if number + 1 == done or (done == "all" and number + 1 == len(batches)):
            break
    if done == 0:
        batches = rk.Batches(X, seed=1, **kind)
    again.load_state_dict(batches.state_dict())
    assert (again.epoch, again.done) == (batches.epoch, batches.done)
    for _ in range(2):
        assert all(equal(a, b) for a, b in zip(batches, again, strict=True))


def test_a_loop_ends_when_a_state_of_another_epoch_is_loaded():
    batches = rk.Batches(X, batch_size=8, seed=0)
    other = rk.Batches(X, batch_size=8, seed=0)
    orders(other)
    for _ in batches:
        batches.load_state_dict(other.state_dict())
    assert (batches.epoch, batches.done) == (1, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": None}, TypeError, "state['seed']: expected an array of dtype int64"),
        ({"seed": np.array(-1)}, ValueError, "state['seed']: expected an integer of at least 0"),
        ({"done": np.array(27)}, ValueError, "state['done']: expected an integer from 0 to 26"),
        ({"epoch": np.array(0.0)}, TypeError, "state['epoch']: expected an array of dtype int64"),
        ({"epoch": np.zeros(2, int)}, ValueError, "state['epoch']: expected shape ()"),
        ({"more": np.array(0)}, ValueError, "state: expected the names ['seed'"),
        ({"settings": np.zeros(7, int)}, ValueError, "state['settings']: expected [203, "),
    ],
)
def test_a_wrong_state_is_refused_and_nothing_changed(change, error, message):
    batches = rk.Batches(X, batch_size=8, seed=0)
    next(iter(batches))
    before = batches.state_dict()
    with pytest.raises(error, match="^" + re.escape(message)):
        batches.load_state_dict(before | change)
    assert all(np.array_equal(a, before[n]) for n, a in batches.state_dict().items())
    with pytest.raises(TypeError, match=r"^state: expected a dict of arrays, got list"):
        batches.load_state_dict([])


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
)
def test_copies_go_on_by_themselves(copied):
    batches = rk.Batches(X, LABELS, batch_size=8, seed=0)
    next(iter(batches))
    twin = copied(batches)
    rest = orders(batches)
    assert (twin.epoch, twin.done) == (0, 1)
    assert orders(twin) == rest


def test_only_the_batch_at_hand_is_copied_and_views_are_kept():
    x = [np.zeros((5, 2)), np.ones((3, 2))]
    batches = rk.Batches(x, batch_size=2, seed=0)
    x[0].shape = (10,)  # of the caller's array alone
    x[1][...] = 7.0
    (batch,) = batches
    assert batch.x.shape == (5, 2, 2)
    assert (batch.x[:3, batch.indices.tolist().index(1)] == 7.0).all()
    assert batch.x.flags.owndata


W = [np.zeros((3, 2), np.float32)] * 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rk.Batches(np.zeros((2, 3)), batch_size=1), TypeError, "x: expected a list of"),
        (lambda: rk.Batches([], batch_size=1), ValueError, "x: expected at least one sequence"),
        (lambda: rk.Batches([[1, 2]], batch_size=1), TypeError, "x[0]: expected an array of numb"),
        (lambda: rk.Batches([np.array(1)], batch_size=1), ValueError, "x[0]: expected shape (T,)"),
        (
            lambda: rk.Batches([W[0], np.zeros((3, 3), np.float32)], batch_size=1),
            ValueError,
            "x[1]: expected shape (T, 2), as of x[0], got (3, 3)",
        ),
        (
            lambda: rk.Batches([W[0], np.zeros((3, 2))], batch_size=1),
            TypeError,
            "x[1]: expected dtype float32, that of x[0], got float64",
        ),
        (
            lambda: rk.Batches([np.ma.masked_array(W[0])], batch_size=1),
            TypeError,
            "x[0]: expected an array without a mask",
        ),
        (lambda: rk.Batches(W, W[:1], batch_size=1), ValueError, "y: expected 2, as many as sequ"),
        (lambda: rk.Batches(W, {"a": W[0]}, batch_size=1), ValueError, "y['a']: expected 2, as"),
        (
            lambda: rk.Batches(W, np.array(1), batch_size=1),
            ValueError,
            "y: expected an array of at",
        ),
        (lambda: rk.Batches(W, "ab", batch_size=1), TypeError, "y: expected an array of numbers"),
        (lambda: rk.Batches(W), ValueError, "batch_size: expected it or tokens, got none"),
        (lambda: rk.Batches(W, batch_size=1, tokens=9), ValueError, "batch_size: expected it or"),
        (lambda: rk.Batches(W, batch_size=0), ValueError, "batch_size: expected an integer of at"),
        (lambda: rk.Batches(W, tokens=2), ValueError, "tokens: expected an integer of at least 3"),
        (lambda: rk.Batches(W, batch_size=1, bucket=0), ValueError, "bucket: expected an integer"),
        (lambda: rk.Batches(W, batch_size=1, shuffle=1), TypeError, "shuffle: expected True or"),
        (lambda: rk.Batches(W, tokens=9, drop_last=True), ValueError, "drop_last: expected False"),
        (lambda: rk.Batches(W, batch_size=1, seed=-1), ValueError, "seed: expected an integer"),
        (lambda: rk.Batches(W, batch_size=1, pad_value="0"), ValueError, "pad_value: expected a"),
        (lambda: rk.Batches(W, batch_size=1, pad_value=1e39), ValueError, "pad_value: expected a"),
        (
            lambda: rk.Batches(W, [np.zeros(3, np.uint8)] * 2, batch_size=1, y_pad_value=-1),
            ValueError,
            "y_pad_value: expected a number that uint8 of y holds, got -1",
        ),
        *(
            (
                lambda y=y: rk.Batches(W, y, batch_size=1, y_pad_value=7),
                ValueError,
                "y_pad_value: expected 0 where no y is a list of sequences, got 7",
            )
            for y in (None, np.zeros(2), {"a": np.zeros(2)})
        ),
        (
            lambda: rk.Batches([np.zeros(3, int)], batch_size=1, pad_value=0.5),
            ValueError,
            "pad_value: expected a number that int64 of x holds, got 0.5",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.1])
def test_padding_takes_any_float(value):
    (batch,) = rk.Batches(
        [np.zeros(3, np.float32), np.zeros(1, np.float32)], batch_size=2, pad_value=value
    )
    padding = batch.x[~batch.mask]
    assert np.array_equal(padding, np.full(2, value, np.float32), equal_nan=True)
