"""An ensemble is its members, each a layer alone, to the bit."""

import pickle
import re

import numpy as np
import pytest
from helpers import (
    KINDS,
    both_ways,
    forced_grid,
    fused_sets,
    in_each_dtype,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    wide,
)
from plan import plan_of

import rnnkern as rk

E, T, B, I, H = 5, 7, 3, 4, 9

every_kind = pytest.mark.parametrize("kind", KINDS)


def ensemble_of(kind, **options):
    return make_layer(kind, I, H, ensemble=E, **{"seed": 11, **options})


def alone(kind, member, **options):
    return make_layer(
        kind, I, H, **{"seed": np.random.SeedSequence(11, spawn_key=(member,)), **options}
    )


def problem_of(layer, T=T, B=B):
    """A problem of E * B rows, as one of the ensemble."""
    E = layer.ensemble
    flat = random_problem(layer.member(0), T, E * B)

    def split(a):
        return a.reshape(*a.shape[:1], E, B, a.shape[-1])

    def state(s):
        return joined([split(a) for a in parts(s)])

    return flat.but(
        x=split(flat.x), dy=split(flat.dy), state=state(flat.state), dstate=state(flat.dstate)
    )


def of_member(problem, e, shared=False):
    def state(s):
        return joined([np.ascontiguousarray(a[:, e]) for a in parts(s)])

    x = problem.x if shared else problem.x[:, e]
    return problem.but(
        x=x, dy=problem.dy[:, e], state=state(problem.state), dstate=state(problem.dstate)
    )


def same(got, want, what=""):
    np.testing.assert_array_equal(got, want, err_msg=what)


def assert_members_are_layers(kind, shared=False, checkpoint=None, **options):
    layer = ensemble_of(kind, **options)
    problem = problem_of(layer)
    if shared:
        problem = problem.but(x=np.ascontiguousarray(problem.x[:, 0]))
    rng = np.random.default_rng(2)
    problem = problem.but(lengths=np.array([T, 2, 5]), resets=rng.random((T, B)) < 0.2)
    clip = rk.Clip(step_value=0.4, step_norm=0.7, value=1.0, max_norm=1.5)
    y, state, tape = problem.forward(layer, checkpoint=checkpoint)
    grads = problem.backward(layer, tape, clip, trace=True)
    inferred, _ = layer(problem.x, problem.state, problem.lengths, resets=problem.resets)
    scales = []
    for e in range(E):
        one, own = alone(kind, e, **options), of_member(problem, e, shared)
        own_y, own_state, own_tape = own.forward(one, checkpoint=checkpoint)
        own_grads = own.backward(one, own_tape, clip, trace=True)
        same(y[:, e], own_y, "y")
        for got, want in zip(parts(state), parts(own_state), strict=True):
            same(got[:, e], want, "state")
        for name, want in own_grads.params.items():
            same(layer.params[name][e], one.params[name], name)
            same(grads.params[name][e], want, name)
        same(grads.x[:, e], own_grads.x, "x")
        for got, want in zip(parts(grads.state), parts(own_grads.state), strict=True):
            same(got[:, e], want, "grads.state")
        assert grads.norm[e] == own_grads.norm
        assert grads.scale[e] == own_grads.scale
        assert grads.finite[e] == own_grads.finite
        for got, want in zip(grads.trace, own_grads.trace, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                same(got[:, :, e], want, "trace")
        scales.append(own_grads.scale)
        own_inferred, _ = one(own.x, own.state, own.lengths, resets=own.resets)
        same(inferred[:, e], own_inferred, "call")
    assert len(set(scales)) == E  # each by its own norm


@every_kind
@in_each_dtype
@pytest.mark.parametrize("shared", [False, True])
def test_members_are_layers_of_their_own(kind, dtype, shared):
    assert_members_are_layers(kind, shared, dtype=dtype)


@every_kind
def test_members_with_everything_else(kind):
    options = {"num_layers": 3, "dropout": 0.3, "residual": True, "bias": False}
    assert_members_are_layers(kind, **options, **both_ways(kind))


@every_kind
@pytest.mark.parametrize("shared", [False, True])
def test_members_with_checkpoints(kind, shared):
    assert_members_are_layers(kind, shared, checkpoint=3, num_layers=2, dropout=0.3)


@every_kind
@pytest.mark.parametrize("shared", [False, True])
def test_same_bits_for_any_threads_and_set(kind, shared):
    T, B = 60, 5
    layer = make_layer(kind, 16, wide(kind, 40), ensemble=9)
    problem = problem_of(layer, T, B)
    if shared:
        problem = problem.but(x=np.ascontiguousarray(problem.x[:, 0]))

    def results(threads):
        y, state, tape = on_threads(threads, problem.forward, layer)
        grads = on_threads(threads, problem.backward, layer, tape)
        return [y, *parts(state), grads.x, *parts(grads.state), *grads.params.values(), grads.norm]

    want = results(1)
    for threads in (2, 3, 8):
        plan = plan_of(layer, T, B, threads)
        assert (plan.shared, plan.threads) == ("members", threads)
        for name in fused_sets():
            with rk.force_isa(name):
                for got, expected in zip(results(threads), want, strict=True):
                    same(got, expected)


@pytest.mark.parametrize(
    ("checkpoint", "options"), [(None, {}), (4, {"num_layers": 2, "dropout": 0.3})]
)
def test_few_large_members_run_in_turn_on_all_threads(checkpoint, options):
    T, B, E = 9, 16, 3
    layer = make_layer("lstm", 64, 256, ensemble=E, **options)
    problem = problem_of(layer, T, B)

    def results(threads):
        y, state, tape = on_threads(threads, problem.forward, layer, checkpoint=checkpoint)
        forward = rk.info()["last_call"]
        grads = on_threads(threads, problem.backward, layer, tape)
        values = [y, *parts(state), grads.x, *parts(grads.state), *grads.params.values()]
        return [*values, grads.norm], forward

    want, _ = results(1)
    # Side by side, two of the three would be one thread's, or each would have one of the four.
    for threads in (2, 4):
        assert plan_of(layer, T, B, threads).shared == "rows"
        got, forward = results(threads)
        assert (forward["shared"], forward["planned"]) == ("rows", threads)
        for one, expected in zip(got, want, strict=True):
            same(one, expected)
    assert plan_of(layer, T, B, 3).shared == "members"


def test_members_take_a_forced_grid():
    layer = make_layer("gru", 9, 33, num_layers=2, ensemble=2)
    problem = problem_of(layer, 4, 6)

    def results():
        y, _, tape = problem.forward(layer)
        return [y, *problem.backward(layer, tape).params.values()]

    want = on_threads(1, results)
    for threads, teams in ((2, 1), (3, 3), (4, 2), (16, 4)):
        with forced_grid(threads, teams):
            got = on_threads(threads, results)
            assert rk.info()["last_call"]["threads"] == threads
        for one, expected in zip(got, want, strict=True):
            same(one, expected)


def test_many_members_on_many_threads_are_layers_alone():
    layer = make_layer("lstm", 16, 32, ensemble=7)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 7, 4, 16)).astype(np.float32)
    plan = plan_of(layer, 60, 4, 4)
    assert (plan.shared, plan.threads) == ("members", 4)
    y, _, tape = on_threads(4, layer.forward, x)
    grads = on_threads(4, layer.backward, tape, np.ones_like(y))
    for e in range(7):
        one = layer.member(e)
        own_y, _, own_tape = one.forward(x[:, e])
        same(own_y, y[:, e])
        own = one.backward(own_tape, np.ones_like(own_y))
        for name, want in own.params.items():
            same(grads.params[name][e], want, name)


def test_flow_penalty_is_each_member_s():
    layer = ensemble_of("gru")
    problem = problem_of(layer)
    *_, tape = problem.forward(layer)
    grads = problem.backward(layer, tape, flow_penalty=0.4)
    for e in range(E):
        one, own = alone("gru", e), of_member(problem, e)
        *_, own_tape = own.forward(one)
        want = own.backward(one, own_tape, flow_penalty=0.4)
        assert grads.flow_penalty[e] == want.flow_penalty
        same(grads.params["weight_hh_l0"][e], want.params["weight_hh_l0"])


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_a_tape_can_be_read_member_by_member(checkpoint):
    layer = ensemble_of("lstm", num_layers=2)
    problem = problem_of(layer).but(lengths=np.array([2, T, 4]))
    *_, tape = problem.forward(layer, checkpoint=checkpoint)
    if checkpoint:
        with pytest.raises(ValueError, match=r"tape.gates: expected a tape without checkpoint"):
            _ = tape.gates
        return
    assert tape.gates[0].shape == (T, E, B, 4, H)
    for e in range(E):
        one, own = alone("lstm", e, num_layers=2), of_member(problem, e)
        *_, own_tape = own.forward(one)
        for name in ("gates", "cells", "hiddens"):
            for got, want in zip(getattr(tape, name), getattr(own_tape, name), strict=True):
                same(got[:, e], want, name)


def test_members_are_views():
    layer = ensemble_of("gru")
    one = layer.member(3)
    one.params["bias_hh_l0"][...] = 7
    assert (layer.params["bias_hh_l0"][3] == 7).all()
    assert not (layer.params["bias_hh_l0"][2] == 7).any()
    assert one.ensemble is None
    x = np.ones((T, B, I), np.float32)
    same(one.stream(B).run(x), layer(x)[0][:, 3])


def test_a_member_drops_out_what_it_does_in_the_ensemble():
    layer = ensemble_of("gru", num_layers=2, dropout=0.5)
    members = [layer.member(e) for e in range(E)]
    x = problem_of(layer).x
    y = layer.forward(x)[0]
    for e, member in enumerate(members):
        same(member.forward(x[:, e])[0], y[:, e])


def test_some_members_are_an_ensemble_of_views_with_their_masks():
    layer = ensemble_of("gru", num_layers=2, dropout=0.5)
    some = layer.member(slice(1, 4))
    assert (some.ensemble, some.dropout_state["seeds"]) == (3, layer.dropout_state["seeds"][1:4])
    x = problem_of(layer).x
    y = layer.forward(x)[0]
    same(some.forward(x[:, 1:4])[0], y[:, 1:4])
    same(some.member(2)(x[:, 3])[0], layer.member(3)(x[:, 3])[0])
    copied = pickle.loads(pickle.dumps(some))
    copied.dropout_step = 0
    same(copied.forward(x[:, 1:4])[0], y[:, 1:4])
    some.params["bias_hh_l0"][...] = 7
    assert (layer.params["bias_hh_l0"] == 7).all(axis=1).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_forget_bias_is_every_member_s():
    layer = rk.LSTM(I, H, ensemble=2, forget_bias=3.0, seed=0)
    assert (layer.params["bias_ih_l0"][:, H : 2 * H] == 3).all()
    assert not (layer.params["bias_ih_l0"][:, :H] == 3).any()


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.random.SeedSequence(3, spawn_key=(1, 2))])
def test_a_member_can_be_made_alone(seed):
    own = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    layer = rk.GRU(I, H, num_layers=2, dropout=0.5, ensemble=E, seed=seed)
    x = problem_of(layer).x
    y = layer.forward(x)[0]
    for e in range(E):
        key = (*own.spawn_key, e)
        alone = np.random.SeedSequence(own.entropy, spawn_key=key)
        one = rk.GRU(I, H, num_layers=2, dropout=0.5, seed=alone)
        for name, values in one.params.items():
            same(values, layer.params[name][e], name)
        same(one.forward(x[:, e])[0], y[:, e])
    assert own.n_children_spawned == 0  # the caller's is as it was


def test_ensembles_of_neighbouring_seeds_share_nothing():
    """With a seed of seed + e, those of seeds 0 and 1 shared all members but one."""
    layers = [rk.GRU(I, H, num_layers=2, dropout=0.5, ensemble=16, seed=s) for s in range(4)]
    weights = [w.tobytes() for layer in layers for w in layer.params["weight_hh_l0"]]
    assert len(set(weights)) == len(weights)
    x = np.ones((T, 1, I), np.float32)
    for layer in layers:  # the same weights everywhere: only the masks differ
        layer.params = {n: np.broadcast_to(a[:1], a.shape) for n, a in layers[0].params.items()}
    rows = [y.tobytes() for layer in layers for y in layer.forward(x)[0].swapaxes(0, 1)]
    assert len(set(rows)) == len(rows)


def test_a_seed_s_layer_is_no_member():
    layer, alone = rk.GRU(I, H, ensemble=2, seed=5), rk.GRU(I, H, seed=5)
    assert not (layer.params["weight_hh_l0"] == alone.params["weight_hh_l0"]).all(axis=(1, 2)).any()


def test_no_seed_gives_members_of_their_own():
    layer = rk.GRU(I, H, ensemble=2)
    a, b = layer.params["weight_hh_l0"]
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("size", [(0, B), (T, 0), (0, 0)])
def test_no_steps_and_no_rows(size):
    steps, rows = size
    layer = ensemble_of("lstm")
    y, _, tape = layer.forward(np.zeros((steps, E, rows, I), np.float32))
    grads = layer.backward(tape)
    assert y.shape == (steps, E, rows, H)
    assert not any(g.any() for g in grads.params.values())
    assert grads.norm.shape == (E,)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((T, E + 1, B, I), f"(T, {E}, B, {I})"),
        ((T, E, B, I + 1), f"(T, {E}, B, {I})"),
        ((T, B, I + 1), f"(T, B, {I})"),
        ((T, I), f"(T, {E}, B, {I})"),
    ],
)
def test_bad_inputs_are_named(shape, expected):
    said = re.escape(f"x: expected shape {expected}, got {shape}")
    with pytest.raises(ValueError, match=f"^{said}$"):
        ensemble_of("gru")(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"ensemble": 0}, ValueError, "ensemble: expected an integer of at least 1, got 0"),
        ({"ensemble": 2.0}, TypeError, "ensemble: expected an integer, got float"),
        (
            {"ensemble": 2, "batch_first": True},
            ValueError,
            "batch_first: expected False with an ensemble, got True",
        ),
    ],
)
def test_bad_options_are_named(options, error, said):
    with pytest.raises(error, match=said):
        rk.GRU(I, H, **options)


def test_what_an_ensemble_has_not_is_said():
    layer = ensemble_of("gru")
    with pytest.raises(ValueError, match=r"stream: expected a layer alone, got an ensemble"):
        layer.stream()
    with pytest.raises(ValueError, match="index: expected an integer from 0 to 4, got 5"):
        layer.member(E)
    for index in (slice(2, 2), slice(0, 4, 2)):
        with pytest.raises(ValueError, match="index: expected successive members, at least one"):
            layer.member(index)
    with pytest.raises(ValueError, match="member: expected an ensemble, got a layer alone"):
        alone("gru", 0).member(0)
    state = np.zeros((1, B, H), np.float32)
    with pytest.raises(ValueError, match=r"state: expected shape \(1, 5, 3, 9\), got \(1, 3, 9\)"):
        layer(np.zeros((T, B, I), np.float32), state)


# ---------------------------------------------------------------------------- optimizers

OPTIMIZERS = {
    "sgd": lambda params, **o: rk.SGD(params, 0.1, 0.9, True, **o),
    "rmsprop": lambda params, **o: rk.RMSprop(params, 0.01, momentum=0.5, **o),
    "adam": lambda params, **o: rk.Adam(params, 0.01, **o),
    "adamw": lambda params, **o: rk.AdamW(params, 0.01, weight_decay=0.1, **o),
}


def dicts(layer, out):
    return [layer.params, {"out": out}]


@pytest.mark.parametrize("name", OPTIMIZERS)
@in_each_dtype
def test_members_are_stepped_as_layers_alone(name, dtype):
    """Own norm, own clip, own skip, own count: with one member that blows up now and then."""
    make, penalties = OPTIMIZERS[name], {"l1": {"weight_hh*": 1e-3}, "l2": 1e-2}
    layer = ensemble_of("gru", dtype=dtype)
    out = np.random.default_rng(0).normal(size=(E, H)).astype(dtype)
    singles = [alone("gru", e, dtype=dtype) for e in range(E)]
    outs = [out[e].copy() for e in range(E)]
    opt = make(dicts(layer, out), ensemble=E, **penalties)
    opts = [make(dicts(one, o), **penalties) for one, o in zip(singles, outs, strict=True)]
    rng = np.random.default_rng(1)
    scales = set()
    for step in range(6):
        x = rng.normal(size=(T, E, B, I)).astype(dtype)
        dy = rng.normal(size=(T, E, B, H)).astype(dtype)
        d_out = rng.normal(size=(E, H)).astype(dtype)
        if step in (1, 3):
            dy[:, 2] = np.inf
        if step == 4:
            d_out[4, 0] = np.nan
        *_, tape = layer.forward(x)
        done = opt.step([layer.backward(tape, dy), {"out": d_out}], max_norm=2.0)
        for e, (one, own) in enumerate(zip(singles, opts, strict=True)):
            *_, tape = one.forward(x[:, e])
            want = own.step([one.backward(tape, dy[:, e]), {"out": d_out[e]}], max_norm=2.0)
            same(done.norm[e], want.norm)
            assert (done.scale[e], done.applied[e]) == (want.scale, want.applied)
            scales.add(want.scale)
    assert len(scales) > E
    same(opt.skipped, [0, 0, 2, 0, 1])
    for e in range(E):
        same(out[e], outs[e])
        assert opts[e].skipped == opt.skipped[e]
        for key, p in layer.params.items():
            same(p[e], singles[e].params[key], key)
        for key, array in opts[e].state_dict().items():
            same(opt.state_dict()[key][e], array, key)


def test_an_ensemble_s_optimizer_goes_on_from_its_state():
    layer = ensemble_of("lstm")
    opt, other = (rk.Adam(layer.params, ensemble=E) for _ in range(2))
    rng = np.random.default_rng(0)
    *_, tape = layer.forward(rng.normal(size=(T, B, I)).astype(np.float32))
    grads = layer.backward(tape, np.ones((T, E, B, H), np.float32))
    grads.finite[1] = False
    opt.step(grads)
    other.load_state_dict(opt.state_dict())
    same(other.skipped, [0, 1, 0, 0, 0])
    for key, array in opt.state_dict().items():
        same(other.state_dict()[key], array)
    with pytest.raises(ValueError, match=r"state\['adam.step'\]: expected shape \(5,\), got \(\)"):
        opt.load_state_dict(rk.Adam(layer.params).state_dict())


def test_bad_ensembles_of_optimizers_are_named():
    with pytest.raises(ValueError, match=r"params\['w'\]: expected shape \(3, ...\), got \(2, 3\)"):
        rk.Adam({"w": np.zeros((2, 3))}, ensemble=3)
    with pytest.raises(ValueError, match="ensemble: expected an integer of at least 1, got 0"):
        rk.SGD({"w": np.zeros((2, 3))}, lr=1.0, ensemble=0)
