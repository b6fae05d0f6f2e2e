"""Embeddings: gradients as rows, steps on rows, and layers frozen with an embedding.

What an embedding has in common with other modules, and its whole gradients, are in test_modules.py.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import weakref

import numpy as np
import pytest
from helpers import (
    KINDS,
    fused_sets,
    in_each_dtype,
    make_layer,
    on_threads,
    parts,
    random_problem,
)
from test_optim import DEFAULTS, MOMENTS, OPTIMIZERS, PENALTIES, REFERENCES, SETTINGS, TOLERANCE

import rnnkern as rk
from rnnkern import reference

every_kind = pytest.mark.parametrize("kind", KINDS)
every_rule = pytest.mark.parametrize("rule", OPTIMIZERS)
SIZES = [(5, 3, 4), (50, 64, 300), (2000, 130, 700)]


def drawn(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def backward(embedding, x, dy):
    return embedding.backward(embedding.forward(x)[1], dy)


def rows_of(ids, n, width, dtype=np.float64, seed=0):
    return rk.SparseRows(ids, drawn(len(ids), width, dtype=dtype, seed=seed), (n, width))


# ------------------------------------------------------------------------------------ as rows


@in_each_dtype
@pytest.mark.parametrize("padding_idx", [None, 0, 2])
@pytest.mark.parametrize("sizes", SIZES)
def test_rows_are_those_of_the_whole_gradient(sizes, padding_idx, dtype):
    n, width, count = sizes
    options = {"padding_idx": padding_idx, "dtype": dtype, "seed": 3}
    whole, embedding = (rk.Embedding(n, width, sparse=s, **options) for s in (False, True))
    x = np.random.default_rng(0).integers(0, n, count).reshape(2, -1)
    dy = drawn(*x.shape, width, dtype=dtype)
    want = backward(whole, x, dy).params["weight"]
    ids, values = reference.embedding_gradient(x, dy, padding_idx)
    for threads in (1, 2, 5):
        for kind in (np.int64, np.int16):
            grads = on_threads(threads, backward, embedding, x.astype(kind), dy)
            rows = grads.params["weight"]
            assert isinstance(rows, rk.SparseRows)
            assert rows.ids.tolist() == ids.tolist()
            assert rows.to_dense().tobytes() == want.tobytes()
    assert (rows.shape, rows.dtype, rows.ndim, rows.size) == ((n, width), dtype, 2, n * width)
    assert rows.ids.dtype == np.int64
    # A sum of k terms of size 4 at most is off by k^2/2 half-eps of that; k is below 100 here.
    np.testing.assert_allclose(rows.values, values, atol=2e4 * np.finfo(dtype).eps)
    assert grads.norm == rows.norm
    np.testing.assert_allclose(grads.norm, reference.joint_norm([want]), rtol=1e-12)
    assert grads.x is None
    assert reference.embedding(x, whole.params["weight"]).tobytes() == (
        whole(x).astype(np.float64).tobytes()
    )


def test_no_ids_have_no_rows():
    embedding = rk.Embedding(3, 2, padding_idx=1, sparse=True)
    for x in (np.zeros((0, 4), int), np.ones(3, int)):
        grads = backward(embedding, x, np.full((*x.shape, 2), np.nan, np.float32))
        rows = grads.params["weight"]
        assert (rows.ids.shape, rows.values.shape) == ((0,), (0, 2))
        assert (grads.norm, grads.finite) == (0.0, True)
        assert not rows.to_dense().any()


def test_the_default_is_a_whole_gradient():
    grads = backward(rk.Embedding(3, 2), np.array([1]), np.ones((1, 2), np.float32))
    assert type(grads.params["weight"]) is np.ndarray
    embedding = rk.Embedding(3, 2, sparse=True)
    assert embedding.sparse
    assert repr(embedding) == "Embedding(3, 2, sparse=True)"
    with pytest.raises(TypeError, match=r"^sparse: expected True or False, got int$"):
        rk.Embedding(3, 2, sparse=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5], 1), TypeError, "ids: expected an array of integers, got float64"),
        (([[0]], 1), ValueError, "ids: expected shape (n,), got (1, 1)"),
        (([0, 4], 2), ValueError, "ids[1]: expected an integer from 0 to 3, got 4"),
        (([-1, 2], 2), ValueError, "ids[0]: expected an integer from 0 to 3, got -1"),
        (([0, 2, 2], 3), ValueError, "ids[2]: expected more than 2, the one before, got 2"),
        (([2, 1], 2), ValueError, "ids[1]: expected more than 2, the one before, got 1"),
        (([1], 2), ValueError, "values: expected shape (1, 3), got (2, 3)"),
        ((np.ma.array([1]), 1), TypeError, "ids: expected an array without a mask"),
    ],
)
def test_rows_are_checked(arguments, error, message):
    ids, count = arguments
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        rk.SparseRows(ids, np.ones((count, 3)), (4, 3))


def test_values_and_shape_of_rows_are_checked():
    for values in (np.ones((1, 3), np.float16), [[1.0]]):
        with pytest.raises(TypeError, match=r"^values: expected an array of dtype float32"):
            rk.SparseRows([1], values, (4, 3))
    for shape in (4, (4,)):
        with pytest.raises(TypeError, match=r"^shape: expected a tuple of at least two sizes"):
            rk.SparseRows([1], np.ones((1, 3)), shape)
    with pytest.raises(
        ValueError, match=r"^shape\[0\]: expected an integer of at least 0, got -1$"
    ):
        rk.SparseRows([1], np.ones((1, 3)), (-1, 3))


def test_rows_are_copied_and_read_only():
    ids, values = np.array([1, 3]), np.ones((2, 2))
    rows = rk.SparseRows(ids, values, (4, 2))
    ids[...], values[...] = 0, 7.0
    assert rows.ids.tolist() == [1, 3]
    assert (rows.values == 1.0).all()
    assert (rows.norm, rows.finite) == (2.0, True)
    for array in (rows.ids, rows.values):
        assert not array.flags.writeable
    with pytest.raises(AttributeError):
        rows.values = values


def test_sums_and_multiples_of_rows_are_those_of_whole_tables():
    a, b = rows_of([0, 2, 5], 7, 3), rows_of([2, 3], 7, 3, seed=1)
    dense = drawn(7, 3, seed=2)
    for got, want in (
        (a + b, a.to_dense() + b.to_dense()),
        (sum([a, b]), a.to_dense() + b.to_dense()),
        (3 * a, 3 * a.to_dense()),
        (np.float64(3) * a, 3 * a.to_dense()),
        (a / 4, a.to_dense() / 4),
    ):
        assert isinstance(got, rk.SparseRows)
        assert got.to_dense().tobytes() == want.tobytes()
        assert got.norm == pytest.approx(np.linalg.norm(want), rel=1e-14)
        assert not got.values.flags.writeable
    assert (a + b).ids.tolist() == [0, 2, 3, 5]
    for got in (a + dense, dense + a):
        assert got.tobytes() == (dense + a.to_dense()).tobytes()
    assert not (1e308 * (1e308 * a)).finite
    for other in (rows_of([0], 6, 3), rows_of([0], 7, 3, dtype=np.float32), drawn(3)):
        with pytest.raises(ValueError, match=r"^rows: expected rows or an array of shape \(7, 3\)"):
            a + other
    with pytest.raises(TypeError):
        a + 1.0
    with pytest.raises(ValueError, match=r"^divisor: expected a finite number other than 0"):
        a / 0


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_rows_copy_and_pickle(twin):
    rows = rows_of([1, 4], 6, 3, np.float32)
    embedding = rk.Embedding(6, 3, sparse=True)
    grads = backward(embedding, np.array([1, 4]), np.ones((2, 3), np.float32))
    for one, other in ((rows, twin(rows)), (grads.params["weight"], twin(grads).params["weight"])):
        assert other.ids.tolist() == [1, 4]
        assert other.values.tobytes() == one.values.tobytes()
        assert (other.shape, other.norm, other.finite) == (one.shape, one.norm, one.finite)
        assert not other.values.flags.writeable
    assert twin(grads).norm == grads.norm


def test_gradients_of_modules_with_rows_add_up():
    embedding = rk.Embedding(6, 3, sparse=True)
    one, other = (
        backward(embedding, np.array(x), drawn(len(x), 3, dtype=np.float32, seed=len(x)))
        for x in ([1, 4], [0, 4, 4])
    )
    total = (one + other) / 2
    rows = total.params["weight"]
    assert rows.ids.tolist() == [0, 1, 4]
    want = (one.params["weight"].to_dense() + other.params["weight"].to_dense()) / 2
    assert rows.to_dense().tobytes() == want.tobytes()
    assert total.norm == rows.norm
    assert repr(one).startswith("ModuleGradients(1 arrays of 18 elements, norm=")
    assert rk.SGD(embedding, 0.1).step(total).norm == total.norm


# ------------------------------------------------------------------------------- steps on rows

# Rows of three steps; row 0 has no gradient, and row 3 one in the middle alone.
IDS = ([1, 2, 5], [2, 3, 5], [1, 2, 5])
N, E = 7, 19


def steps_of_rows(rule, dtype, penalties, max_norm=None, **options):
    params = {"w": drawn(N, E, dtype=dtype, seed=9)}
    opt = OPTIMIZERS[rule](params, **(DEFAULTS[rule] | options | penalties))
    for seed, ids in enumerate(IDS):
        assert opt.step({"w": rows_of(ids, N, E, dtype, seed)}, max_norm).applied
    return params["w"], opt


@in_each_dtype
@pytest.mark.parametrize("max_norm", [None, 2.0])
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize(("rule", "options"), SETTINGS, ids=str)
def test_a_step_on_rows_is_the_references(rule, options, penalties, max_norm, dtype):
    found, _ = steps_of_rows(rule, dtype, penalties, max_norm, **options)
    start = drawn(N, E, dtype=dtype, seed=9)
    p, moments = start.astype(np.float64), [np.zeros((N, E))] * MOMENTS[rule]
    for step, ids in enumerate(IDS, start=1):
        values = np.asarray(rows_of(ids, N, E, dtype, step - 1).values, np.float64)
        norm = reference.joint_norm([values])
        scale = 1.0 if max_norm is None else reference.clip_factor(norm, max_norm)
        values = reference.penalized(p[ids], values, scale=scale, **penalties)
        update = REFERENCES[rule]
        if rule.startswith("adam"):
            update = lambda p, g, m, v, step=step, **o: REFERENCES[rule](p, g, m, v, step, **o)  # noqa: E731
        p, *moments = reference.on_rows(
            update, np.array(ids), values, p, *moments, **(DEFAULTS[rule] | options)
        )
    np.testing.assert_allclose(found, p, **TOLERANCE[dtype])
    assert found[[0, 4, 6]].tobytes() == start[[0, 4, 6]].tobytes()


@every_rule
def test_rows_without_a_gradient_stay_with_their_moments(rule):
    params = {"w": drawn(N, E)}
    opt = OPTIMIZERS[rule](params, **DEFAULTS[rule], l1=0.1, l2=0.1)
    opt.step({"w": drawn(N, E, seed=1)})  # of a whole table
    before = {name: array.copy() for name, array in (opt.state_dict() | params).items()}
    assert opt.step({"w": rows_of([2, 5], N, E)}).applied
    others = [0, 1, 3, 4, 6]
    for name, array in (opt.state_dict() | params).items():
        if array.ndim:
            assert array[others].tobytes() == before[name][others].tobytes()
            assert (array[[2, 5]] != before[name][[2, 5]]).all()
    assert opt.state_dict()[f"{rule}.step"] == 2


@in_each_dtype
def test_descent_along_rows_has_the_bits_of_whole_tables(dtype):
    tables = [drawn(N, E, dtype=dtype) for _ in range(2)]
    rows = rows_of([1, 5], N, E, dtype)
    for table, gradient in zip(tables, (rows, rows.to_dense()), strict=True):
        assert rk.SGD({"w": table}, 0.1).step({"w": gradient}).applied
    assert tables[0].tobytes() == tables[1].tobytes()


@pytest.mark.parametrize("width", [1, 7, 16, 33])
@every_rule
def test_threads_and_sets_do_not_change_a_bit_of_rows(rule, width):
    n = 9000
    ids = np.flatnonzero(np.random.default_rng(0).random(n) < 0.5)
    assert len(ids) * width > 2 * 2**14 or width < 16  # enough for several threads
    found = []
    for isa, threads in itertools.product(fused_sets(), (1, 2, 5)):
        params = {"v": drawn(100, dtype=np.float32), "w": drawn(n, width, dtype=np.float32)}
        opt = OPTIMIZERS[rule](params, **DEFAULTS[rule])
        grads = {"v": drawn(100, dtype=np.float32), "w": rows_of(ids, n, width, np.float32)}
        with rk.force_isa(isa), rk.num_threads(threads):
            opt.step(grads)
            opt.step(grads)
        found.append(b"".join(a.tobytes() for a in (opt.state_dict() | params).values()))
    assert len(set(found)) == 1


def test_the_clip_and_the_norm_are_joint_with_rows():
    layers = {"emb": rk.Embedding(N, E, sparse=True), "out": rk.Linear(E, 2)}
    whole = {name: layer.copy() for name, layer in layers.items()}
    rows = rows_of([1, 5], N, E, np.float32)
    out = {"weight": drawn(2, E, dtype=np.float32), "bias": np.ones(2, np.float32)}
    steps = [
        rk.SGD(group, 0.5).step({"emb": {"weight": g}, "out": out}, max_norm=1.0)
        for group, g in ((layers, rows), (whole, rows.to_dense()))
    ]
    assert steps[0].norm == pytest.approx(steps[1].norm, rel=1e-15)
    assert steps[0].scale < 1
    for name, layer in layers.items():
        for p, q in zip(layer.params.values(), whole[name].params.values(), strict=True):
            # The norms differ in their last bit, and so may the factors.
            np.testing.assert_allclose(p, q, rtol=1e-6, atol=1e-6)


@every_rule
def test_a_row_that_is_not_finite_skips_the_whole_step(rule):
    params = {"w": drawn(N, E), "v": drawn(3)}
    opt = OPTIMIZERS[rule](params, **DEFAULTS[rule])
    before = pickle.dumps((params, opt.state_dict()["0.w.first"] if rule == "adam" else None))
    values = drawn(2, E)
    values[1, 3] = math.nan
    rows = rk.SparseRows([1, 5], values, (N, E))
    assert not rows.finite
    assert not opt.step({"w": rows, "v": np.ones(3)}).applied
    now = pickle.dumps((params, opt.state_dict()["0.w.first"] if rule == "adam" else None))
    assert now == before
    assert opt.skipped == 1


def test_a_step_on_rows_that_would_overflow_is_skipped():
    params = {"w": np.full((3, 2), -3e38, np.float32)}
    opt = rk.SGD(params, 3e38)
    rows = rk.SparseRows([1], np.ones((1, 2), np.float32), (3, 2))
    assert not opt.step({"w": rows}).applied
    assert (params["w"] == np.float32(-3e38)).all()


@pytest.mark.parametrize("rows_first", [True, False])
def test_a_tied_tables_gradient_is_the_whole_sum(rows_first):
    emb, out = rk.Embedding(N, E, sparse=True, seed=0), rk.Linear(E, N, bias=False)
    out.params["weight"] = emb.params["weight"]
    rows, dense = rows_of([1, 5], N, E, np.float32), drawn(N, E, dtype=np.float32, seed=4)
    groups, grads = {"emb": emb, "out": out}, {"emb": {"weight": rows}, "out": {"weight": dense}}
    if not rows_first:
        groups = dict(reversed(groups.items()))
    want = {"w": emb.params["weight"].copy()}
    rk.Adam(want).step({"w": rows.to_dense() + dense})
    assert rk.Adam(groups).step(grads).applied
    assert emb.params["weight"].tobytes() == want["w"].tobytes()


def test_a_table_that_two_embeddings_share_is_stepped_on_the_rows_of_both():
    one, other = (rk.Embedding(N, E, sparse=True, seed=0) for _ in range(2))
    other.params["weight"] = one.params["weight"]
    before = one.params["weight"].copy()
    a, b = rows_of([1, 5], N, E, np.float32), rows_of([2, 5], N, E, np.float32, seed=1)
    want = {"w": before.copy()}
    rk.Adam(want).step({"w": a + b})
    assert rk.Adam([one, other]).step([{"weight": a}, {"weight": b}]).applied
    assert one.params["weight"].tobytes() == want["w"].tobytes()
    assert (one.params["weight"][[0, 3, 4, 6]] == before[[0, 3, 4, 6]]).all()


@every_rule
def test_each_member_of_an_ensemble_steps_its_own_rows(rule):
    """Rows of a table of all members are numbered through; a member may have none."""
    members, width = 3, 5
    w, alone = drawn(members, N, width), [drawn(members, N, width)[e] for e in range(members)]
    opt = OPTIMIZERS[rule]({"w": w}, **DEFAULTS[rule], ensemble=members)
    opts = [OPTIMIZERS[rule]({"w": table}, **DEFAULTS[rule]) for table in alone]
    for step, of in enumerate((([1, 4], [], [0]), ([2], [3, 6], [5]), ([0], [1], [2]))):
        values = [drawn(len(ids), width, seed=10 * step + e) for e, ids in enumerate(of)]
        if step == 1:
            values[2][...] = math.inf
        ids = [e * N + i for e, own in enumerate(of) for i in own]
        rows = rk.SparseRows(ids, np.concatenate(values), w.shape)
        done = opt.step({"w": rows}, max_norm=0.7)
        for e, own in enumerate(of):
            want = opts[e].step({"w": rk.SparseRows(own, values[e], (N, width))}, max_norm=0.7)
            assert (done.norm[e], done.scale[e], done.applied[e]) == want[:3]
    assert w.tobytes() == np.array(alone).tobytes()
    assert opt.skipped.tolist() == [0, 0, 1]


def test_a_state_does_not_say_whether_gradients_were_rows():
    params = {"w": drawn(N, E)}
    opt, other = rk.Adam(params), rk.Adam({"w": drawn(N, E)})
    names = list(opt.state_dict())
    opt.step({"w": rows_of([1], N, E)})
    assert list(opt.state_dict()) == names
    other.load_state_dict(opt.state_dict())
    assert other.step({"w": drawn(N, E)}).applied


def test_rows_of_another_table_are_refused_before_anything_is_written():
    params = {"v": np.zeros(2), "w": np.zeros((N, E))}
    opt = rk.Adam(params)
    for rows, error, message in (
        (rows_of([1], N + 1, E), ValueError, "expected shape (7, 19), got (8, 19)"),
        (rows_of([1], N, E, np.float32), TypeError, "dtype float64, got rows of float32"),
    ):
        with pytest.raises(error, match=r"^grads\['w'\]: .*" + re.escape(message) + "$"):
            opt.step({"v": np.ones(2), "w": rows})
    with pytest.raises(TypeError, match=r"^params\['w'\]: expected an array of dtype float32 or"):
        rk.SGD({"w": rows_of([1], N, E)}, 0.1)
    assert not params["v"].any()


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [-1, 2], [1, 70]])
def test_ids_that_were_changed_by_force_write_nothing(ids):
    params = {"w": np.zeros((N, E))}
    opt, rows = rk.SGD(params, 0.1), rows_of([1, 5], N, E)
    rows.ids.flags.writeable = True
    rows.ids[...] = ids
    with pytest.raises(ValueError, match=r"^ids: expected rising ones from 0 to 6, got"):
        opt.step({"w": rows})
    assert not params["w"].any()


def test_values_that_were_changed_by_force_are_measured_again():
    embedding = rk.Embedding(N, 2, sparse=True)
    grads = backward(embedding, np.array([1]), np.ones((1, 2), np.float32))
    values = grads.params["weight"].values
    values.flags.writeable = True
    values[...] = 3.0
    assert rk.SGD(embedding, 0.1).step(grads).norm == pytest.approx(math.sqrt(18), rel=1e-15)


# ---------------------------------------------------------------------------- frozen with a layer

T, B, H, WORDS = 9, 4, 11, 30
FOLDED = [kind for kind in KINDS if kind != "rg_lru"]
OPTIONS = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "residual": {"num_layers": 3, "residual": True},
    "batch first, no bias": {"batch_first": True, "bias": False},
    "backward": {"reverse": True},
}


def folded(kind, **options):
    """A layer, an embedding of its inputs, and both frozen together."""
    layer = make_layer(kind, 6, H, **options)
    embedding = rk.Embedding(WORDS, layer.input_size, dtype=layer.dtype, seed=2)
    return layer, embedding, layer.freeze(embedding=embedding)


def bits(result):
    each = [tuple(value) if isinstance(value, list) else value for value in result]
    return [part.tobytes() for value in each for part in parts(value)]


def words(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, WORDS, shape)


@pytest.mark.parametrize("of", OPTIONS)
@in_each_dtype
@pytest.mark.parametrize("kind", FOLDED)
def test_a_call_on_integers_has_the_bits_of_a_call_on_vectors(kind, dtype, of):
    layer, embedding, frozen = folded(kind, dtype=dtype, **OPTIONS[of])
    p = random_problem(layer, T, B, lengths="random", resets=0.2, mask=0.7)
    x = words(*p.x.shape[:2])
    vectors = embedding(x)
    for rows in ({}, {"lengths": p.lengths}, {"mask": p.mask}, {"resets": p.resets}):
        want = layer(vectors, p.state, **rows)
        for threads in (1, 2):
            assert bits(on_threads(threads, frozen, x, p.state, **rows)) == bits(want)
    for kind_of_ids in (np.uint8, np.int32):
        assert bits(frozen(x.astype(kind_of_ids))) == bits(layer(vectors))
    for how in ({"outputs": "last"}, {"hiddens": True}):
        assert bits(frozen(x, lengths=p.lengths, **how)) == bits(
            layer(vectors, lengths=p.lengths, **how)
        )
    assert bits(frozen(x[0])) == bits(layer(vectors[0]))  # one row
    assert bits(frozen(x[::2, ::-1])) == bits(layer(vectors[::2, ::-1]))


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (1, 1), (1, 9)])
@pytest.mark.parametrize("kind", FOLDED)
def test_few_steps_and_rows_of_integers(kind, shape):
    layer, embedding, frozen = folded(kind, num_layers=2)
    x = words(*shape)
    assert bits(frozen(x)) == bits(layer(embedding(x)))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", FOLDED)
def test_a_stream_of_integers_has_the_bits_of_a_call(kind, batch_size):
    layer, embedding, frozen = folded(kind, num_layers=2)
    x = words(200, batch_size)  # more than a stream makes room for
    y, state = layer(embedding(x))
    stream = frozen.stream(batch_size)
    assert stream.run(x[:7].astype(np.int32)).tobytes() == y[:7].tobytes()
    for t in range(7, 20):
        assert stream.step(x[t]).tobytes() == y[t].tobytes()
    out = np.empty_like(y[20:])
    assert stream.run(x[20:], out=out) is out
    assert out.tobytes() == y[20:].tobytes()
    assert bits([stream.state]) == bits([state])
    mask = np.random.default_rng(1).random((9, batch_size)) < 0.5
    stream.reset()
    want = layer(embedding(x[:9]), mask=mask)
    assert stream.run(x[:9], mask=mask).tobytes() == want[0].tobytes()
    assert bits([stream.state]) == bits([want[1]])
    one = pickle.loads(pickle.dumps(stream))
    assert one.step(x[9]).tobytes() == stream.step(x[9]).tobytes()


@pytest.mark.parametrize("isa", fused_sets())
def test_each_set_folds_to_the_same_bits(isa):
    want = bits(folded("lstm")[2](words(T, B)))
    with rk.force_isa(isa):
        assert bits(folded("lstm")[2](words(T, B))) == want


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_tables_of_any_size_fold(rows):
    layer, embedding = rk.GRU(33, 20, seed=0), rk.Embedding(rows, 33, seed=1)
    x = np.arange(rows)[:, None]
    want = bits(layer(embedding(x)))
    for threads in (1, 2, 5):
        frozen = on_threads(threads, layer.freeze, embedding=embedding)
        assert bits(frozen(x)) == want


def test_members_share_an_embedding():
    grus, embedding = rk.GRU(6, H, 2, ensemble=3, seed=0), rk.Embedding(WORDS, 6, seed=1)
    frozen, x = grus.freeze(embedding=embedding), words(T, 3, B)
    assert bits(frozen(x)) == bits(grus(embedding(x)))
    assert bits(frozen(x[:, 0])) == bits(grus(embedding(x[:, 0])))


def test_it_is_a_snapshot_of_both():
    layer, embedding, frozen = folded("gru")
    x = words(T, B)
    want = bits(frozen(x))
    assert not frozen.is_stale()
    embedding.params["weight"][7] = np.nan
    assert frozen.is_stale()
    assert bits(frozen(x)) == want
    embedding.params["weight"][...] = 1.0
    layer.params["bias_hh_l0"] += 1.0
    assert bits(frozen(x)) == want
    for twin in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        assert bits(twin(frozen)(x)) == want
    with pytest.raises(RuntimeError, match=r"^is_stale: expected the layer that was frozen"):
        copy.deepcopy(frozen).is_stale()
    alive = weakref.ref(embedding)
    layer, other, frozen = folded("gru")
    del other, embedding
    assert alive() is None
    with pytest.raises(RuntimeError, match=r"^is_stale: expected the embedding that was frozen"):
        frozen.is_stale()
    assert f"embedding of {WORDS} rows" in repr(frozen)


@pytest.mark.parametrize(
    ("embedding", "error", "message"),
    [
        (rk.Linear(3, 6), TypeError, "embedding: expected an Embedding, got Linear"),
        (
            rk.Embedding(9, 6, dtype=np.float64),
            *(TypeError, "embedding: expected dtype float32, that of the layer, got float64"),
        ),
        (3, TypeError, "embedding: expected an Embedding, got int"),
        (
            rk.Embedding(9, 5),
            *(ValueError, "embedding: expected embedding_dim 6, the layer's input_size, got 5"),
        ),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused(embedding, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        rk.GRU(6, 4).freeze(embedding=embedding)


def test_an_embedding_whose_table_does_not_fit_is_refused():
    embedding = rk.Embedding(9, 6)
    embedding.params["weight"] = np.ones((9, 5), np.float32)
    message = r"^embedding.params\['weight'\]: expected shape \(9, 6\), got \(9, 5\)$"
    with pytest.raises(ValueError, match=message):
        rk.GRU(6, 4).freeze(embedding=embedding)
    message = "^embedding: expected a cell that does not read x itself, got rg_lru$"
    with pytest.raises(ValueError, match=message):
        rk.RGLRU(6, 6).freeze(embedding=rk.Embedding(9, 6))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((T, B, 6), np.float32), TypeError, "x: expected an array of integers, got flo"),
        (np.zeros((T, B)), TypeError, "x: expected an array of integers, got float64"),
        (np.full((T, B), WORDS), ValueError, f"x[0, 0]: expected an integer from 0 to {WORDS - 1}"),
        (np.full((T, B), -1), ValueError, f"x[0, 0]: expected an integer from 0 to {WORDS - 1}"),
        (np.zeros((T, B, 1), int), ValueError, "x: expected shape (T, "),
        (np.ma.zeros((T, B), int), TypeError, "x: expected an array without a mask"),
    ],
)
def test_integers_are_checked(x, error, message):
    frozen = folded("lstm")[2]
    stream = frozen.stream(B)
    stream.run(words(3, B))
    before = bits([stream.state])
    for use in (frozen, stream.run):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            use(x)
    assert bits([stream.state]) == before


def test_one_step_of_integers_is_checked():
    stream = folded("lstm")[2].stream(2)
    for x, error, message in (
        (np.array([1, WORDS]), ValueError, "x[1]: expected an integer from 0 to 29, got 30"),
        (np.array([1]), ValueError, "x: expected shape (2,), got (1,)"),
        (np.ones(2), TypeError, "x: expected an array of integers, got float64"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            stream.step(x)
