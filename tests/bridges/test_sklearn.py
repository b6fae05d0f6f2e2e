"""Estimators: what they learn, whose bits they repeat, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rnnkern as rk
from rnnkern.layers import LAYERS
from rnnkern.sklearn import RNNClassifier, RNNForecaster, RNNRegressor, RNNTagger
from rnnkern.sklearn.network import Network, labels_loss, values_loss

ESTIMATORS = (RNNClassifier, RNNRegressor, RNNTagger, RNNForecaster)
each_estimator = pytest.mark.parametrize("cls", ESTIMATORS)
SMALL = {"hidden_size": 6, "max_epochs": 3, "batch_size": 8, "random_state": 0}

rng = np.random.default_rng(0)
LENGTHS = rng.integers(2, 9, 30)
ROWS = [rng.normal(size=(n, 3)) for n in LENGTHS]


def problem(cls, rows=ROWS):
    """Sequences and targets that fit a class of estimators."""
    if cls is RNNClassifier:
        return rows, np.array([["odd", "even"][len(row) % 2] for row in rows])
    if cls is RNNRegressor:
        return rows, np.array([[row.sum(), len(row)] for row in rows])
    if cls is RNNTagger:
        return rows, [np.cumsum(row[:, 0]) > 0 for row in rows]
    return rows, None


def outputs(model, X, **options):
    """All that a model says of sequences, in one array."""
    names = [n for n in ("predict", "predict_proba", "predict_log_proba") if hasattr(model, n)]
    found = [getattr(model, name)(X, **options) for name in names]
    flat = [np.concatenate(values) if isinstance(values, list) else values for values in found]
    return [values.astype(float) if values.dtype.kind == "b" else values for values in flat]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def array_of(rows, fill=np.nan):
    """Rows of steps in one array, padded behind."""
    T = max(map(len, rows)) + 2
    array = np.full((len(rows), T, *np.shape(rows[0])[1:]), fill, np.asarray(rows[0]).dtype)
    for row, of in zip(rows, array, strict=True):
        of[: len(row)] = row
    return array


# -------------------------------------------------------------------------------- what is learned


@pytest.fixture(scope="module")
def digits():
    """Images of 8 rows of 8 pixels, split."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X.reshape(-1, 8, 8), y, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def lines():
    """Lines of 1 to 5 digits, column by column, and the digit of each column; train and test."""
    images, labels = load_digits(return_X_y=True)
    columns, rng = images.reshape(-1, 8, 8).swapaxes(1, 2), np.random.default_rng(0)
    order, sets = rng.permutation(len(images)), []
    for which, n in ((order[:1300], 800), (order[1300:], 200)):
        picks = [rng.choice(which, rng.integers(1, 6)) for _ in range(n)]
        sets.append([columns[pick].reshape(-1, 8) for pick in picks])
        sets.append([np.repeat(labels[pick], 8) for pick in picks])
    return sets


def test_a_classifier_reads_digits_row_by_row(digits):
    train, test, y_train, y_test = digits
    model = RNNClassifier(bidirectional=True, hidden_size=32, max_epochs=10, random_state=0)
    score = model.fit(train, y_train).score(test, y_test)
    plain = LogisticRegression(max_iter=1000).fit(train.reshape(len(train), -1) / 16, y_train)
    # 0.984 here; logistic regression of all pixels has 0.969, and the largest class 0.10.
    assert score > 0.97
    assert score > plain.score(test.reshape(len(test), -1) / 16, y_test)


def test_a_tagger_says_which_digit_each_column_belongs_to(lines):
    X, y, X_test, y_test = lines
    model = RNNTagger(bidirectional=True, hidden_size=32, max_epochs=8, random_state=0)
    # 0.979 here; of single columns, logistic regression has 0.254.
    assert model.fit(X, y).score(X_test, y_test) > 0.95
    plain = LogisticRegression(max_iter=300).fit(np.concatenate(X) / 16, np.concatenate(y))
    assert plain.score(np.concatenate(X_test) / 16, np.concatenate(y_test)) < 0.4


def test_a_regressor_says_the_sum_of_a_line_of_digits(lines):
    X, tags, X_test, tags_test = lines
    y, y_test = ([row[::8].sum() for row in one] for one in (tags, tags_test))
    model = RNNRegressor(cell="lstm", max_epochs=20, random_state=0).fit(X, y)

    def sums(rows):
        return np.array([[len(row), *row.sum(0)] for row in rows])

    # 0.934 here; ridge regression of the number and the sum of the columns has 0.669.
    assert model.score(X_test, y_test) > 0.88
    assert Ridge().fit(sums(X), y).score(sums(X_test), y_test) < 0.75


def mackey_glass(n):
    """A chaotic series: dx/dt = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x (Mackey & Glass 1977)."""
    x = np.full(17 * 10 + 10 * n, 1.2)
    for i in range(170, len(x)):
        late = x[i - 170]
        x[i] = x[i - 1] + 0.1 * (0.2 * late / (1 + late**10) - 0.1 * x[i - 1])
    return x[170::10]


def windows(series, T, step):
    return np.stack([series[i : i + T] for i in range(0, len(series) - T + 1, step)])


def test_a_forecaster_says_twelve_steps_of_a_chaotic_series():
    series = mackey_glass(2000)[300:]
    X, rest = windows(series[:1200], 100, 10), windows(series[1200:], 112, 5)
    model = RNNForecaster(hidden_size=32, horizon=12, batch_size=8, max_epochs=20, random_state=0)
    said, true = model.fit(X).predict(rest[:, :100]), rest[:, 100:]
    lagged = windows(series[:1200], 32, 1)
    plain = LinearRegression().fit(lagged[:, :20], lagged[:, 20:])
    # 0.998 here; linear regression of the last 20 steps has 0.950, the last step itself 0.11.
    assert model.score(rest[:, :100], true) > 0.98
    assert model.score(rest[:, :100], true) > r2_score(true, plain.predict(rest[:, 80:100]))
    assert r2_score(true, np.repeat(rest[:, 99:100], 12, axis=1)) < 0.2
    assert r2_score(true[:, -1], said[:, -1]) > 0.95
    assert model.score(X) > 0.99  # of each next step


@pytest.mark.parametrize("cell", LAYERS)
def test_each_cell_learns(cell):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6, 2))
    y = X[:, :, 0].sum(1) > 0
    model = RNNClassifier(cell, hidden_size=16, random_state=0).fit(X[:200], y[:200])
    assert type(model.layer_) is LAYERS[cell]
    assert model.score(X[200:], y[200:]) > 0.85  # 0.90 or more here; the larger class has 0.52


# ------------------------------------------------------------------------------------ the gradients


@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("gru", {}),
        ("lstm", {"bidirectional": True, "num_layers": 2, "proj_size": 2}),
        ("gru", {"bidirectional": True, "num_layers": 2, "residual": True}),
        ("rnn", {"reverse": True}),
        ("rglru", {"bidirectional": True}),
        ("slstm", {"heads": 2}),
    ],
)
@pytest.mark.parametrize("labels", [False, True])
def test_gradients_are_the_slopes_of_the_loss(cell, options, each_step, labels):
    seed, dtype = np.random.SeedSequence(0), np.dtype(np.float64)
    network = Network(cell, 3, 4, {"hidden_size": 4} | options, dtype, seed)
    rng = np.random.default_rng(1)
    lengths, x = np.array([5, 2, 3]), rng.normal(size=(5, 3, 3))
    real = np.arange(5)[:, None] < lengths
    shape = (5, 3) if each_step else (3,)
    weights = rng.random(shape) * (real if each_step else 1.0)
    targets = rng.integers(0, 4, shape) if labels else rng.normal(size=(*shape, 4))

    def loss(z):
        return (labels_loss if labels else values_loss)(z, targets, weights, 1)

    value, grads = network.gradients(x, lengths, loss, each_step=each_step)
    if each_step:  # what predict sees is what was trained
        z = network.each(x, lengths, real)
        own = (labels_loss if labels else values_loss)(
            z, targets.swapaxes(0, 1)[real.T], weights.T[real.T], 1
        )
    else:
        own = loss(network.last(x, lengths)[0])
    assert np.isclose(value, own[0], rtol=1e-12)  # sums of 40 terms in another order
    for name, part in network.parts.items():
        for parameter, values in part.params.items():
            at = tuple(rng.integers(n) for n in values.shape)
            before, slopes = values[at], []
            for step in (1e-5, -1e-5):
                values[at] = before + step
                slopes.append(network.gradients(x, lengths, loss, each_step=each_step)[0])
            values[at] = before
            slope = (slopes[0] - slopes[1]) / 2e-5
            # Second differences: an error of 1e-10 times third derivatives, and rounding of 1e-11.
            assert np.isclose(grads[name].params[parameter][at], slope, rtol=1e-6, atol=1e-8)


@each_estimator
def test_the_loss_is_the_mean_over_sequences_or_real_steps(cls):
    """At a learning rate of next to nothing, that of the predictions."""
    X, y = problem(cls)
    model = cls(**SMALL | {"max_epochs": 1, "dtype": "float64"}, learning_rate=1e-30).fit(X, y)
    if hasattr(model, "classes_"):
        proba = model.predict_proba(X)
        proba, labels = (np.concatenate(v) if cls is RNNTagger else v for v in (proba, y))
        want = log_loss(labels, proba)
    else:
        true = y
        said = model.predict(X)
        if cls is RNNForecaster:
            true = np.concatenate([np.diff(row, axis=0) for row in X])
            said = np.concatenate(
                [[model.predict([row[: t + 1]])[0, 0] for t in range(len(row) - 1)] for row in X]
            ) - np.concatenate([row[:-1] for row in X])
        want = np.mean(((said - true) / true.std(0)) ** 2)
    assert np.isclose(model.loss_curve_[0], want, rtol=1e-12)  # sums of 150 terms in other orders


@pytest.mark.parametrize("cls", [RNNClassifier, RNNTagger])
def test_a_step_goes_along_the_gradient_of_the_weighted_mean(cls):
    """Of softmax, the gradient of a label's logit is its probability, less 1 if it is right."""
    X, y = problem(cls)
    weights = np.random.default_rng(0).random(len(X)) * 5
    options = SMALL | {"max_epochs": 1, "batch_size": len(X), "dtype": "float64"}
    options |= {"optimizer": "sgd", "max_norm": None}
    before, after = (
        cls(**options, learning_rate=rate).fit(X, y, sample_weight=weights) for rate in (1e-30, 0.5)
    )
    proba, labels, own = before.predict_proba(X), y, weights
    if cls is RNNTagger:
        proba, labels, own = np.concatenate(proba), np.concatenate(y), np.repeat(weights, LENGTHS)
    gradient = np.average(proba - (labels[:, None] == before.classes_), axis=0, weights=own)
    moved = before.head_.params["bias"] - after.head_.params["bias"]
    np.testing.assert_allclose(moved, 0.5 * gradient, rtol=1e-9)  # a difference of like numbers


# ------------------------------------------------------------------------------------------ bits


@each_estimator
@pytest.mark.parametrize("options", [{}, {"early_stopping": True, "dropout": 0.3, "num_layers": 2}])
def test_the_same_random_state_gives_the_same_bits(cls, options):
    X, y = problem(cls)
    if cls is not RNNForecaster:
        options = options | {"bidirectional": True}
    want = outputs(cls(**SMALL | options).fit(X, y), X)
    for threads in (1, 2):
        with rk.num_threads(threads):
            assert same(outputs(cls(**SMALL | options).fit(X, y), X), want)
    state = np.random.RandomState(0)
    drawn = cls(**SMALL | options | {"random_state": state}).fit(X, y)
    assert same(outputs(drawn, X), want)
    other = cls(**SMALL | options | {"random_state": 1}).fit(X, y)
    assert not same(outputs(other, X), want)


@each_estimator
def test_a_list_and_a_padded_array_give_the_same_bits(cls):
    X, y = problem(cls)
    model = cls(**SMALL).fit(X, y)
    padded = array_of(X)  # with nan, which is never read
    tags = array_of(y, True) if cls is RNNTagger else y
    again = cls(**SMALL).fit(padded, tags, lengths=LENGTHS)
    assert again.loss_curve_ == model.loss_curve_
    said, of_array = model.predict(X), again.predict(padded, lengths=LENGTHS)
    if cls is RNNTagger:
        assert of_array.shape == padded.shape[:2]
        assert not of_array[np.arange(padded.shape[1]) >= LENGTHS[:, None]].any()  # False is first
        of_array = [row[:n] for row, n in zip(of_array, LENGTHS, strict=True)]
        proba = again.predict_proba(padded, lengths=LENGTHS)
        assert proba.shape == (*padded.shape[:2], 2)
        assert same([p[:n] for p, n in zip(proba, LENGTHS, strict=True)], model.predict_proba(X))
        assert not proba[0, LENGTHS[0] :].any()
        assert again.score(padded, tags, lengths=LENGTHS) == model.score(X, y)
        assert same(again.fit(padded, y, lengths=LENGTHS).predict(X), said)  # tags may be a list
    assert same(of_array, said)
    if cls is not RNNTagger:
        assert again.score(padded, y, lengths=LENGTHS) == model.score(X, y)


@each_estimator
def test_one_feature_in_columns_or_in_steps_gives_the_same_bits(cls):
    X = np.random.default_rng(0).normal(size=(20, 6))
    _, y = problem(cls, list(X[:, :, None]))
    forms = [X, X[:, :, None], list(X), list(X[:, :, None]), np.array([*X, X[0, :3]], object)[:-1]]
    models = [cls(**SMALL).fit(form, y) for form in forms]
    assert [model.n_features_in_ for model in models] == [6, 1, 1, 1, 1]
    curves = [model.loss_curve_ for model in models]
    assert curves == curves[:1] * len(forms)
    for model in models:
        for form in forms[1:]:
            assert model.predict(form) is not None
    short = [row[:4] for row in X]
    for model in models:  # a list may have steps of any number; columns are as many as at first
        model.predict(short)
    with pytest.raises(ValueError, match=r"X has 4 features, but RNN.* is expecting 6 fea"):
        models[0].predict(X[:, :4])
    models[1].predict(X[:, :4])


@each_estimator
def test_training_goes_on_with_the_bits_of_one_fit(cls):
    X, y = problem(cls)
    once = cls(**SMALL | {"max_epochs": 4, "num_layers": 2, "dropout": 0.5}).fit(X, y)
    warm = clone(once).set_params(max_epochs=2, warm_start=True)
    assert same(outputs(warm.fit(X, y).fit(X, y), X), outputs(once, X))
    parts = clone(once)
    known = {"classes": np.unique(np.concatenate(y) if cls is RNNTagger else y)}
    for _ in range(4):
        parts.partial_fit(X, y, **known if hasattr(once, "classes_") else {})
    assert same(outputs(parts, X), outputs(once, X))
    assert parts.n_iter_ == warm.n_iter_ == once.n_iter_ == 4
    assert parts.loss_curve_ == warm.loss_curve_ == once.loss_curve_
    assert same(outputs(once.fit(X, y), X), outputs(parts, X))  # without warm_start, from scratch
    warm.fit(X, y)
    assert warm.n_iter_ == 6


@each_estimator
def test_copies_and_pickles_say_and_learn_the_same(cls):
    X, y = problem(cls)
    model = cls(**SMALL, warm_start=True).fit(X, y)
    for how in (lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy):
        other = how(model)
        assert same(outputs(other, X), outputs(model, X))
        model.fit(X, y)
        assert same(outputs(other.fit(X, y), X), outputs(model, X))


@each_estimator
def test_what_a_row_gets_does_not_depend_on_others(cls):
    X, y = problem(cls)
    model = cls(**SMALL).fit(X, y)
    alone = [model.predict([row])[0] for row in X]
    for got, want in zip(alone, model.predict(X), strict=True):
        if got.dtype.kind == "f":  # a float64 product of 6 terms and rows of any number
            np.testing.assert_allclose(got, want, rtol=1e-12)
        else:
            np.testing.assert_array_equal(got, want)


def test_many_steps_are_computed_in_parts(monkeypatch):
    X, y = problem(RNNTagger)
    model = RNNTagger(**SMALL).fit(X, y)
    want = outputs(model, X)
    monkeypatch.setattr("rnnkern.sklearn.training.STEPS_AT_A_TIME", 20)  # two rows or three
    assert same(outputs(model, X), want)


# ------------------------------------------------------------------------------------ the options


def test_options_reach_layer_and_optimizer():
    X, y = problem(RNNClassifier)
    model = RNNClassifier(
        "lstm",
        6,
        2,
        bidirectional=True,
        dropout=0.25,
        cell_options={"proj_size": 2, "init": "orthogonal"},
        optimizer="sgd",
        learning_rate=0.5,
        optimizer_options={"momentum": 0.5},
        max_epochs=1,
        dtype="float64",
        random_state=0,
    ).fit(X, y)
    layer = model.layer_
    assert (layer.hidden_size, layer.num_layers, layer.bidirectional, layer.dropout) == (
        *(6, 2, True),
        0.25,
    )
    assert (layer.proj_size, layer.dtype, layer.input_size) == (2, np.float64, 3)
    assert "init='orthogonal'" in repr(layer)
    assert model.head_.params["weight"].shape == (2, 4)
    assert "SGD" in repr(model._run.optimizer)
    assert "lr=0.5, momentum=0.5" in repr(model._run.optimizer)


def test_what_a_fit_reads_may_change_between_warm_starts():
    X, y = problem(RNNClassifier)
    model = RNNClassifier(**SMALL, num_layers=2, warm_start=True).fit(X, y)
    assert (model.layer_.dropout, model._run.optimizer.lr) == (0.0, 0.01)
    model.set_params(learning_rate=0.02, dropout=0.25, batch_size=3).fit(X, y)
    assert (model.layer_.dropout, model._run.optimizer.lr) == (0.25, 0.02)


@each_estimator
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"},
        {"hidden_size": 5},
        {"num_layers": 2},
        {"num_layers": 2, "dropout": 0.5},
        {"bidirectional": True},
        {"cell_options": {"init": "orthogonal"}},
        {"optimizer": "rmsprop"},
        {"optimizer": "adamw"},
        {"learning_rate": 0.02},
        {"optimizer_options": {"l2": 0.1}},
        {"max_norm": 0.01},
        {"max_norm": None},
        {"batch_size": 7},
        {"max_epochs": 2},
        {"early_stopping": True},
        {"early_stopping": True, "validation_fraction": 0.4},
        {"standardize": False},
        {"dtype": "float64"},
        {"random_state": 3},
    ],
    ids=str,
)
def test_every_option_has_an_effect(cls, options):
    if cls is RNNForecaster and "bidirectional" in options:
        pytest.skip("refused, which another test shows")
    X, y = problem(cls)
    plain = cls(**SMALL | {"max_norm": 0.1}).fit(X, y)
    model = cls(**SMALL | {"max_norm": 0.1} | options).fit(X, y)
    assert model.loss_curve_ != plain.loss_curve_


def test_early_stopping_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5, 2)), rng.normal(size=60)  # noise: it can only overfit
    options = {"hidden_size": 16, "early_stopping": True, "n_iter_no_change": 4, "random_state": 0}
    model = RNNRegressor(**options, max_epochs=100).fit(X, y)
    losses = model.validation_curve_
    assert len(losses) == len(model.loss_curve_) == model.n_iter_ < 100
    assert min(losses[-4:]) > min(losses) - 1e-4
    best = int(np.argmin(losses))
    until = RNNRegressor(**options, max_epochs=best + 1).fit(X, y)
    assert until.validation_curve_ == losses[: best + 1]
    assert np.array_equal(until.predict(X), model.predict(X))
    steep = RNNRegressor(**options | {"tol": 10.0}, max_epochs=100).fit(X, y)
    assert steep.n_iter_ == 5  # the first epoch counts as one that is better than none


def test_verbose_prints_a_line_after_each_epoch(capsys):
    X, y = problem(RNNClassifier)
    RNNClassifier(**SMALL).fit(X, y)
    assert capsys.readouterr().out == ""
    RNNClassifier(**SMALL, verbose=True, early_stopping=True).fit(X, y)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[1].startswith("[RNNClassifier] epoch 2/3: loss 0.")
    assert ", validation 0." in out[1]
    assert out[1].endswith(" s")


def test_progress_is_asked_for_the_epochs_of_fit():
    seen = []

    class Bar:  # reads its argument as tqdm does
        def __init__(self, iterable):
            self.iterable, self.total = iterable, len(iterable)

        def __iter__(self):
            for epoch in self.iterable:
                yield epoch
                seen.append((epoch, self.total))

    X, y = problem(RNNClassifier)
    plain = RNNClassifier(**SMALL).fit(X, y)
    model = RNNClassifier(**SMALL, progress=Bar).fit(X, y)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert model.loss_curve_ == plain.loss_curve_
    model.partial_fit(X, y)  # an epoch is not worth a bar
    assert len(seen) == 3
    assert clone(model).progress is Bar


def test_targets_and_features_of_any_size_are_learned():
    X, y = problem(RNNRegressor)
    plain = RNNRegressor(**SMALL, dtype="float64").fit(X, y)
    moved = RNNRegressor(**SMALL, dtype="float64").fit([1e6 + 1e3 * x for x in X], 1e9 + 1e5 * y)
    said = moved.predict([1e6 + 1e3 * x for x in X])
    # The inputs lose 1e-13 of their size in 1e6, the targets in 1e9.
    np.testing.assert_allclose((said - 1e9) / 1e5, plain.predict(X), rtol=1e-6, atol=1e-6)
    for scale in (1e-300, 1e-200, 1e200, 1e300):  # whose squares float64 can't hold
        scaled = [scale * x for x in X]
        said = RNNRegressor(**SMALL, dtype="float64").fit(scaled, scale * y).predict(scaled)
        np.testing.assert_allclose(said / scale, plain.predict(X), rtol=1e-6, atol=1e-6)
    constant = [np.column_stack([x, np.full(len(x), 0.1)]) for x in X]
    assert np.isfinite(RNNRegressor(**SMALL).fit(constant, y).predict(constant)).all()


@each_estimator
def test_a_weight_of_zero_leaves_a_sequence_out(cls):
    X, y = problem(cls)
    weights = np.arange(len(X)) % 3 / 2
    kept = np.flatnonzero(weights)
    model = cls(**SMALL).fit(X, y, sample_weight=weights)
    some = [X[i] for i in kept]
    own = [y[i] for i in kept] if cls is RNNTagger else None if y is None else y[kept]
    assert same(
        outputs(cls(**SMALL).fit(some, own, sample_weight=weights[kept]), X), outputs(model, X)
    )
    assert not same(outputs(cls(**SMALL).fit(some, own), X), outputs(model, X))
    # A score takes them, too.
    assert np.isclose(
        model.score(X, y, sample_weight=weights),
        model.score(some, own, sample_weight=weights[kept]),
        rtol=1e-12,
    )


@pytest.mark.parametrize("cls", [RNNClassifier, RNNTagger])
def test_class_weights_are_those_of_the_sequences_or_steps(cls):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4, 2))
    rare = X[:, 0, 0] > 1.2
    y = rare if cls is RNNClassifier else np.repeat(rare[:, None], 4, axis=1)
    options = SMALL | {"standardize": False}
    weighted = cls(**options, class_weight={True: 5.0}).fit(X, y)
    by_hand = cls(**options).fit(X, y, sample_weight=np.where(rare, 5.0, 1.0))
    assert same(outputs(weighted, X), outputs(by_hand, X))
    shares = {label: 60 / (2 * np.sum(rare == label)) for label in (True, False)}
    balanced = cls(**options, class_weight="balanced").fit(X, y)
    assert same(outputs(balanced, X), outputs(cls(**options, class_weight=shares).fit(X, y), X))
    plain = cls(**options).fit(X, y)
    assert np.mean(balanced.predict(X)) > np.mean(plain.predict(X))
    part = cls(**options, class_weight={True: 5.0, False: 2.0})
    part.partial_fit(X[~rare], y[~rare], classes=[False, True])  # one class alone in this part
    with pytest.raises(ValueError, match=r"^class_weight: expected None or a dict for partial_fit"):
        cls(**options, class_weight="balanced").partial_fit(X, y, classes=[False, True])


# ----------------------------------------------------------------------------------- the forecaster


def test_a_forecast_goes_on_with_what_it_said():
    X, _ = problem(RNNForecaster)
    model = RNNForecaster(**SMALL, horizon=3).fit(X)
    said = model.predict(X)
    assert said.shape == (30, 3, 3)
    one = model.set_params(horizon=1).predict(X)
    assert np.array_equal(one, said[:, :1])
    longer = [np.concatenate([row, ahead[:2]]) for row, ahead in zip(X, said, strict=True)]
    # What was said enters as it is; only the weights' product with several rows at once differs.
    np.testing.assert_allclose(model.predict(longer)[:, 0], said[:, 2], rtol=1e-12)
    assert model.score(X) == pytest.approx(
        r2_score(
            np.concatenate([row[1:] for row in X]),
            np.concatenate(
                [[model.predict([row[: t + 1]])[0, 0] for t in range(len(row) - 1)] for row in X]
            ),
        ),
        rel=1e-12,
    )


def test_a_forecast_of_numbers_has_no_axis_for_features():
    X = np.sin(np.arange(40) * 0.5 + np.arange(6)[:, None])
    model = RNNForecaster(**SMALL, horizon=4).fit(X[:, :36])
    assert model.predict(X[:, :36]).shape == (6, 4)
    assert model.predict(X[:, :36, None]).shape == (6, 4, 1)
    assert np.isfinite(model.score(X[:, :36], X[:, 36:]))
    assert model.score(X[:, :36], X[:, 36:]) == r2_score(
        X[:, 36:].ravel(), model.predict(X[:, :36]).ravel()
    )


# --------------------------------------------------------------------- scikit-learn's other tools


def test_pipelines_take_columns():
    X, y = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), RNNClassifier(hidden_size=16, max_epochs=3))
    model.fit(X[:300], y[:300])
    assert model.predict(X[300:400]).shape == (100,)
    padded, lengths = array_of([row[:, 0] for row in ROWS], 0.0), LENGTHS
    model = make_pipeline(StandardScaler(), RNNClassifier(**SMALL))
    _, y = problem(RNNClassifier)
    model.fit(padded, y, rnnclassifier__lengths=lengths)
    assert model.predict(padded, lengths=lengths).shape == (30,)


@each_estimator
def test_cross_validation_takes_lists(cls):
    X, y = problem(cls)
    scores = cross_val_score(cls(**SMALL), X, y, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


def test_cross_validation_predicts():
    X, y = problem(RNNClassifier)
    said = cross_val_predict(RNNClassifier(**SMALL), X, y, cv=3)
    proba = cross_val_predict(RNNClassifier(**SMALL), X, y, cv=3, method="predict_proba")
    assert np.array_equal(np.array(["even", "odd"])[proba.argmax(1)], said)


@each_estimator
def test_a_grid_search_runs_in_several_processes(cls):
    X, y = problem(cls)
    grid = {"cell": ["gru", "mingru"], "hidden_size": [3, 4], "max_epochs": [1]}
    searches = [GridSearchCV(cls(**SMALL), grid, cv=2, n_jobs=n).fit(X, y) for n in (1, 2)]
    one, two = (search.cv_results_["mean_test_score"] for search in searches)
    assert np.array_equal(one, two)
    assert searches[1].best_estimator_.score(X, y) == searches[0].best_estimator_.score(X, y)


def test_lengths_are_routed():
    X, y = problem(RNNClassifier)
    padded = array_of(X, 0.0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = RNNClassifier(**SMALL).set_fit_request(lengths=True).set_score_request(lengths=True)
        found = cross_validate(model, padded, y, cv=3, params={"lengths": LENGTHS})
    assert np.array_equal(found["test_score"], cross_val_score(RNNClassifier(**SMALL), X, y, cv=3))


@each_estimator
def test_the_layer_can_be_saved(cls, tmp_path):
    X, y = problem(cls)
    model = cls(**SMALL).fit(X, y)
    model.layer_.save(tmp_path / "layer")
    again = rk.load(tmp_path / "layer")
    x = np.ones((4, 2, 3), np.float32)
    assert np.array_equal(again(x)[0], model.layer_(x)[0])


# --------------------------------------------------------------------------------- what is refused

X3 = np.zeros((4, 5, 2))
Y4 = [0, 1, 0, 1]
REFUSED = {
    "cell": ({"cell": "transformer"}, {}, "cell: expected one of gru, indrnn, lstm"),
    "hidden_size": ({"hidden_size": 0}, {}, "hidden_size: expected an integer of at least 1, got"),
    "num_layers": ({"num_layers": 1.5}, {}, "num_layers: expected an integer, got float"),
    "bidirectional": ({"bidirectional": 1}, {}, "bidirectional: expected True or False, got int"),
    "dropout": ({"dropout": 1.0}, {}, "dropout: expected a number from 0 to below 1, got 1.0"),
    "dropout alone": ({"dropout": 0.5}, {}, r"dropout: expected 0.0 with num_layers=1 \(it acts b"),
    "cell_options": ({"cell_options": 3}, {}, "cell_options: expected a dict of options or None"),
    "its own": (
        {"cell_options": {"hidden_size": 3}},
        {},
        "cell_options: expected options of GRU: reset_after, .*, init; got 'hidden_size'",
    ),
    "another's": ({"cell_options": {"heads": 2}}, {}, "cell_options: expected options of GRU: res"),
    "an option": ({"cell_options": {"init": "no"}}, {}, "init: expected one of uniform, xavier"),
    "optimizer": (
        {"optimizer": "lion"},
        {},
        "optimizer: expected one of adam, adamw, rmsprop, sgd",
    ),
    "its lr": ({"optimizer_options": {"lr": 1.0}}, {}, "optimizer_options: expected options of Ad"),
    "learning_rate": ({"learning_rate": 0}, {}, "learning_rate: expected a number > 0, got 0"),
    "max_norm": ({"max_norm": -1.0}, {}, "max_norm: expected a number > 0, got -1.0"),
    "batch_size": ({"batch_size": "all"}, {}, "batch_size: expected an integer, got str"),
    "max_epochs": ({"max_epochs": 0}, {}, "max_epochs: expected an integer of at least 1, got 0"),
    "early_stopping": ({"early_stopping": 1}, {}, "early_stopping: expected True or False, got in"),
    "validation": (
        {"validation_fraction": 1},
        {},
        "validation_fraction: expected a number above 0",
    ),
    "n_iter_no_change": (
        {"n_iter_no_change": 0},
        {},
        "n_iter_no_change: expected an integer of at",
    ),
    "tol": ({"tol": -1}, {}, "tol: expected a number >= 0, got -1"),
    "standardize": ({"standardize": "yes"}, {}, "standardize: expected True or False, got str"),
    "warm_start": ({"warm_start": 1}, {}, "warm_start: expected True or False, got int"),
    "dtype": ({"dtype": "float16"}, {}, "dtype: expected float32 or float64, got float16"),
    "verbose": ({"verbose": -1}, {}, "verbose: expected an integer >= 0, got -1"),
    "progress": ({"progress": True}, {}, "progress: expected a callable, such as tqdm, or None"),
    "random_state": ({"random_state": "a"}, {}, "'a' cannot be used to seed"),
    "class_weight": ({"class_weight": {0: -1.0}}, {}, "class_weight: expected weights of at least"),
    "weight's name": ({"class_weight": "even"}, {}, "class_weight"),
    "nan": ({}, {"X": np.full((4, 5, 2), np.nan)}, "Input X contains NaN"),
    "nan in columns": ({}, {"X": np.full((4, 5), np.nan)}, "Input X contains NaN"),
    "nan in a list": ({}, {"X": [*X3[:3], np.full((2, 2), np.nan)]}, "Input X contains NaN"),
    "nan in a step": (
        {},
        {"X": np.where(np.arange(5)[:, None] == 2, np.nan, X3), "lengths": [2, 2, 3, 2]},
        "Input X contains NaN",
    ),
    "one dimension": ({}, {"X": np.zeros(4)}, "Expected 2D array, got 1D array"),
    "four dimensions": (
        {},
        {"X": np.zeros((4, 5, 2, 2))},
        r"X: expected shape \(n, T, I\) or \(n, T\), got \(4, 5, 2, 2\)",
    ),
    "a class of one": (
        {"early_stopping": True},
        {"y": [0, 0, 0, 1]},
        "early_stopping: expected sequences of which 0.1 can be held out, got 4 .*only 1 member",
    ),
    "one sequence": (
        {"early_stopping": True},
        {"X": X3[:1], "y": [0]},
        "early_stopping: expected sequences of which 0.1 can be held out, got 1",
    ),
    "labels of two kinds": (
        {},
        {"y": np.array(["a", 1, "a", 1], object)},
        "y: expected labels that can be sorted, got int, str",
    ),
    "large numbers": ({"standardize": False}, {"X": X3 + 1e39}, "X: expected values that float32"),
    "no rows": ({}, {"X": [], "y": []}, "X: expected at least 1 sequence, got an empty list"),
    "no steps": ({}, {"X": np.zeros((4, 0, 2))}, "X: expected at least 1 step of a feature, got"),
    "an empty row": (
        {},
        {"X": [*X3[:3], np.zeros((0, 2))]},
        r"X\[3\]: expected at least 1 step of a feature, got \(0, 2\)",
    ),
    "other features": (
        {},
        {"X": [*X3[:3], np.zeros((5, 3))]},
        r"X\[3\]: expected shape \(T, 2\), as of X\[0\], got \(5, 3\)",
    ),
    "numbers and vectors": (
        {},
        {"X": [np.zeros(3), *X3[:3]]},
        r"X\[1\]: expected shape \(T,\), as of X\[0\], got \(5, 2\)",
    ),
    "a row of matrices": ({}, {"X": [X3] * 4}, r"X\[0\]: expected shape \(T, I\) or \(T,\), got"),
    "strings": ({}, {"X": [["a", "b"]] * 4}, "could not convert string"),
    "a mask": ({}, {"X": np.ma.masked_less(X3, 1)}, "X: expected an array without a mask, got"),
    "a mask in a list": (
        {},
        {"X": [np.ma.masked_less(X3[0], 1)] * 4},
        r"X\[0\]: expected an array wi",
    ),
    "lengths of a list": (
        {},
        {"X": list(X3), "lengths": Y4},
        "lengths: expected None with a list of sequences, got an array",
    ),
    "few lengths": (
        {},
        {"lengths": [5, 5]},
        r"lengths: expected an array of 4 integers, one a row of X, got int64 \(2,\)",
    ),
    "lengths of floats": ({}, {"lengths": [5.0] * 4}, "lengths: expected an array of 4 integers"),
    "length 0": ({}, {"lengths": [5, 0, 5, 5]}, "lengths: expected integers from 1 to 5, the step"),
    "length 6": ({}, {"lengths": [5, 6, 5, 5]}, "lengths: .* 1 to 5, the steps, got 6"),
    "few weights": (
        {},
        {"sample_weight": [1.0]},
        r"sample_weight: expected shape \(4,\), got \(1,",
    ),
    "negative weight": (
        {},
        {"sample_weight": [1, 1, 1, -1]},
        "sample_weight: expected finite weights of at least 0",
    ),
    "zero weights": ({}, {"sample_weight": [0] * 4}, "sample_weight: expected a weight above 0"),
    "no y": ({}, {"y": None}, "RNNClassifier requires y to be passed, but the target y is None"),
    "few y": ({}, {"y": [0, 1]}, "inconsistent numbers of samples"),
    "y of values": ({}, {"y": [0.1, 0.2, 0.3, 0.4]}, "Unknown label type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_and_parameters_are_named(name):
    options, arguments, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"^.*{message}"):
        RNNClassifier(**options).fit(**{"X": X3, "y": Y4} | arguments)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_fit_leaves_the_model_as_it_was(name):
    """Also where it is refused after features and classes have been read."""
    options, arguments, message = REFUSED[name]
    labels = np.array(["odd", "even"] * 4)
    X = np.random.default_rng(1).normal(size=(8, 3, 7))  # of other features
    model = RNNClassifier(**SMALL).fit(X, labels)
    before, said = dict(vars(model)), model.predict(X)
    given = model.get_params()
    with pytest.raises((TypeError, ValueError), match=f"^.*{message}"):
        model.set_params(**options).fit(**{"X": X3, "y": Y4} | arguments)
    model.set_params(**given)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before.keys() - given.keys())
    assert same(model.predict(X), said)
    unfitted = RNNClassifier(**options)
    with pytest.raises((TypeError, ValueError)):
        unfitted.fit(**{"X": X3, "y": Y4} | arguments)
    with pytest.raises(NotFittedError):
        unfitted.predict(X3)


def test_an_interrupted_fit_keeps_what_it_has_trained(monkeypatch):
    model = RNNRegressor(**SMALL, verbose=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)  # after the first epoch
    with pytest.raises(KeyboardInterrupt):
        model.fit(*problem(RNNRegressor))
    assert model.n_iter_ == 1
    assert np.isfinite(model.predict(ROWS)).all()


@pytest.mark.parametrize(
    ("cls", "y", "message"),
    [
        (RNNRegressor, np.zeros((4, 2, 2)), r"y: expected shape \(n,\) or \(n, O\), got \(4, 2, 2"),
        (RNNRegressor, [0, np.inf, 0, 0], "Input y contains infinity"),
        (RNNTagger, Y4, r"y: expected shape \(4, 5\), a value for each step, got \(4,\)"),
        (RNNTagger, np.zeros((4, 6), int), r"y: expected shape \(4, 5\), a value for each step"),
        (RNNTagger, [[0] * 5] * 3 + [[0] * 4], r"y\[3\]: expected shape \(5,\), a value for each"),
        (RNNTagger, [np.zeros(5)] * 3, "y: expected 4 sequences, as many as in X, got 3"),
        (RNNTagger, np.full((4, 5), np.nan), "Input y contains NaN"),
        (RNNTagger, None, "RNNTagger requires y to be passed"),
    ],
)
def test_wrong_targets_are_named(cls, y, message):
    with pytest.raises(ValueError, match=f"^.*{message}"):
        cls().fit(X3, y)


def test_a_tagger_of_lists_takes_lists():
    with pytest.raises(ValueError, match=r"^y: expected a list, a value for each step, got \(3,\)"):
        RNNTagger().fit([np.zeros(2), np.zeros(3), np.zeros(4)], [0, 1, 0])
    RNNTagger(**SMALL).fit([[0.0, 1.0], [1.0, 0.0]], [["a", "b"], ["b", "a"]])


def test_a_forecaster_sees_no_later_step():
    for options in ({"bidirectional": True}, {"cell_options": {"reverse": True}}):
        with pytest.raises(ValueError, match="expected False, as a forecast sees no later step"):
            RNNForecaster(**options).fit(X3)
    with pytest.raises(ValueError, match="horizon: expected an integer of at least 1, got 0"):
        RNNForecaster(horizon=0).fit(X3)
    with pytest.raises(ValueError, match="X: expected series of at least 2 steps, got 1 of 1 step"):
        RNNForecaster().fit([np.zeros(1), np.zeros(3)])
    model = RNNForecaster(**SMALL).fit(np.random.default_rng(0).normal(size=(4, 5, 2)))
    with pytest.raises(ValueError, match=r"y: expected shape \(4, 1, 2\), got \(4, 1\)"):
        model.score(X3, np.zeros((4, 1)))


@each_estimator
def test_what_does_not_fit_the_first_sequences_is_refused(cls):
    X, y = problem(cls)
    model = cls(**SMALL)
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(NotFittedError):
        _ = model.layer_
    model.fit(X, y)
    said = f"X has 2 features, but {cls.__name__} is expecting 3 features as input, in each step"
    for call in (model.predict, lambda X: model.partial_fit(X, y)):
        with pytest.raises(ValueError, match=said):
            call([row[:, :2] for row in X])
    with pytest.raises(ValueError, match="X has 1 features, but"):
        model.predict(np.zeros((3, 3)))  # three steps of one feature
    model.set_params(warm_start=True, hidden_size=7)
    said = "hidden_size: expected 6, as at the first fit, to go on with its network, got 7"
    with pytest.raises(ValueError, match=said):
        model.fit(X, y)
    model.set_params(hidden_size=6, cell_options={"init": "xavier"})
    with pytest.raises(ValueError, match="cell_options: expected None, as at the first fit"):
        model.partial_fit(X, y)


@pytest.mark.parametrize("cls", [RNNClassifier, RNNTagger])
def test_classes_are_known_from_the_first_part_on(cls):
    X, y = problem(cls)
    labels = ["even", "odd"] if cls is RNNClassifier else [False, True]
    with pytest.raises(ValueError, match=r"^classes: expected all labels at the first partial_fit"):
        cls(**SMALL).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"^y: expected labels of \["):
        cls(**SMALL).partial_fit(X, y, classes=labels[:1])
    model = cls(**SMALL).partial_fit(X, y, classes=labels)
    with pytest.raises(ValueError, match=r"^classes: expected .*, as at first, got \["):
        model.partial_fit(X, y, classes=labels[:1])
    model.partial_fit(X[:1], y[:1])


def test_outputs_are_as_many_as_at_first():
    X, y = problem(RNNRegressor)
    model = RNNRegressor(**SMALL).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y: expected shape \(n, 2\), as at first, got \(30,\)"):
        model.partial_fit(X, y[:, 0])


def test_steps_that_are_not_finite_are_reported():
    X = np.random.default_rng(0).normal(size=(20, 5, 2))
    model = RNNRegressor(
        "rnn",
        cell_options={"nonlinearity": "relu"},
        learning_rate=1e38,
        max_norm=None,
        optimizer="sgd",
        max_epochs=2,
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match="steps were left out: their gradients or results"):
        model.fit(X, X[:, 0, 0])


def test_scikit_learn_is_needed_and_imported_late():
    def python(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    done = python("import sys, rnnkern; print('sklearn' in sys.modules)")
    assert done.stdout == "False\n"
    done = python("import sys; sys.modules['sklearn'] = None; import rnnkern.sklearn")
    assert (
        "ImportError: rnnkern.sklearn needs scikit-learn: pip install 'rnnkern[skle" in done.stderr
    )


def test_labels_may_be_of_any_kind():
    X, _ = problem(RNNClassifier)
    for labels in (["b", "a"], [3, -1], [True, False], [2.0, 1.0]):
        y = np.array(labels)[np.arange(len(X)) % 2]
        model = RNNClassifier(**SMALL).fit(X, y)
        assert model.classes_.tolist() == sorted(labels)
        assert set(model.predict(X)) <= set(labels)
        assert model.score(X, y) == accuracy_score(y, model.predict(X))
    assert RNNClassifier(**SMALL).fit(X, ["one"] * len(X)).predict(X).tolist() == ["one"] * len(X)
