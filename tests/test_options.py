"""Every option changes the result, and the result is the reference's; dropout; PyTorch."""

from __future__ import annotations

import inspect
from itertools import pairwise

import numpy as np
import pytest
from helpers import (
    KINDS,
    assert_close,
    assert_same,
    both_ways,
    config_of,
    in_each_dtype,
    in_each_set,
    joined,
    make_layer,
    on_threads,
    parts,
    random_problem,
    run_reference,
    wide,
)
from plan import plan_of

import rnnkern as rk
from rnnkern import reference
from rnnkern.reference import CELLS, parameter_shapes

each_kind = pytest.mark.parametrize("kind", KINDS)


def run(layer, problem, clip=None):
    y, state, tape = problem.forward(layer)
    return y, state, problem.backward(layer, tape, clip)


def differ(a, b):
    return a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(a, b)


# --------------------------------------------------------------------------- constructor options

COMMON = {
    "num_layers": 2,
    "bias": False,
    "batch_first": True,
    "dropout": 0.5,
    "bidirectional": True,
    "residual": True,
    "reverse": True,
    "dtype": np.float64,
    "compute": "bf16",
    "seed": 2,
    "init": "xavier",
}
OF_LSTM = {"forget_bias": 3.0}
OWN = {
    "lstm": OF_LSTM,
    "lstm_clipped": {**OF_LSTM, "cell_clip": 0.2},
    "lstm_projected": {**OF_LSTM, "cell_clip": 0.2, "proj_clip": 0.05, "proj_size": 2},
    "lstm_peephole": {**OF_LSTM, "cell_clip": 0.2},
    "lstm_haste": OF_LSTM,
    "lstm_fastrnns": OF_LSTM,
    "lstm_haste_projected": {**OF_LSTM, "proj_size": 2},
    "lstm_fastrnns_projected": {**OF_LSTM, "proj_size": 2},
    "slstm": {**OF_LSTM, "heads": 5, "exp_forget": True},
    "rnn_tanh_noisy": {"zoneout": 0.6},
    "rnn_relu_noisy": {"zoneout": 0.6},
    "lstm_noisy": {**OF_LSTM, "zoneout": (0.3, 0.1), "recurrent_dropout": 0.5},
    "gru_noisy": {"zoneout": 0.6, "recurrent_dropout": 0.5},
    "gru_reset_before_noisy": {"zoneout": 0.6, "recurrent_dropout": 0.5},
}
BETWEEN_LAYERS = ("dropout", "residual")


def assert_shown(layer, option, value):
    """The layer tells what it was given; what is drawn or set once, its parameters tell."""
    if option == "seed":
        again = make_layer(layer._kind, 3, 5, seed=value)
        assert all(np.array_equal(again.params[n], a) for n, a in layer.params.items())
    elif option == "init":  # as xavier does
        assert not any(a.any() for n, a in layer.params.items() if n.startswith("bias"))
    elif option == "forget_bias":
        assert (layer.params["bias_ih_l0"][5:10] == value).all()  # the second of i, f, g, o
    else:
        assert getattr(layer, option) == value


# What each class is shown as; no option that has its default.
REPRS = [
    "RNN(3, 5)",
    "RNN(3, 5, num_layers=2, nonlinearity='relu', dropout=0.5, seed=1, init='identity')",
    "RNN(3, 5, activations=(('LeakyRelu', 0.25),), forward_clip=1.5, ensemble=7)",
    "LSTM(3, 5, num_layers=2, bias=False, residual=True, dtype='float64')",
    "LSTM(3, 5, forget_bias=1.0, proj_size=2, cell_clip=0.5, proj_clip=0.25)",
    "LSTM(3, 5, peephole=True, input_forget=True, batch_first=True, bidirectional=True)",
    "GRU(3, 5, reset_after=False, seed=np.random.SeedSequence(7, spawn_key=(2, 1)))",
    "GRU(3, 5, seed=np.random.SeedSequence([7, 8], pool_size=8))",
    "GRU(3, 5, layer_norm='haste')",
    "LSTM(3, 5, proj_size=2, layer_norm='fastrnns')",
    "MinGRU(3, 5, seed=0)",
    "MinGRU(3, 5, candidate='tanh')",
    "MinLSTM(3, 5)",
    "MinLSTM(3, 5, candidate='identity')",
    "RGLRU(5, 5, num_layers=2)",
    "SLSTM(3, 6, heads=3, exp_forget=True, forget_bias=2.0)",
    "IndRNN(3, 5, nonlinearity='tanh')",
    "Linear(3, 4)",
    "Linear(3, 4, bias=False, dtype='float64', seed=1)",
    "Linear(3, 4, seed=np.random.SeedSequence(7, spawn_key=(2,)))",
    "Embedding(9, 3, padding_idx=0, sparse=True)",
    "LayerNorm(5)",
    "LayerNorm(5, eps=0.25, bias=False, dtype='float64')",
    "Attention(5)",
    "Attention(5, key_size=4, kind='general', seed=1)",
    "Attention(5, key_size=4, kind='additive')",
    "Attention(5, kind='additive', hidden_size=7, dtype='float64')",
    "CRF(3)",
    "CRF(3, forbidden=((0, 2), (None, 2)), dtype='float64', seed=1)",
    "Dropout()",
    "Dropout(p=0.25, variational=True, seed=1)",
    "Pooling('mean')",
]


@pytest.mark.parametrize("code", REPRS)
def test_repr_is_a_constructor_call(code):
    names = {name: getattr(rk, name) for name in rk.__all__}
    assert repr(eval(code, names | {"np": np})) == code


def test_a_seeded_module_s_repr_makes_the_same_values():
    for one in (rk.Linear(3, 4, seed=1), rk.Embedding(3, 4, seed=1), rk.CRF(3, seed=1)):
        again = eval(f"rk.{one!r}")
        assert all(np.array_equal(again.params[n], array) for n, array in one.params.items())


@each_kind
@pytest.mark.parametrize(
    "options",
    [
        {},
        COMMON | {"reverse": False, "compute": None},  # which bidirectional and float64 refuse
        {"reverse": True},
        {"compute": "bf16"},
        {"ensemble": 3, "num_layers": 2, "dropout": 0.5},
    ],
)
def test_repr_gives_the_same_layer(kind, options):
    layer = make_layer(kind, 3, 5, **{"seed": 4, **options})
    if getattr(layer, "layer_norm", None):  # whose gains make_layer has moved off one
        layer = eval(repr(layer), vars(rk) | {"np": np})
    again = eval(repr(layer), vars(rk) | {"np": np})
    assert type(again) is type(layer)
    for attribute in [n for n in dir(layer) if n[0] != "_" and not callable(getattr(layer, n))]:
        if attribute != "params":
            assert getattr(again, attribute) == getattr(layer, attribute), attribute
    for name, values in layer.params.items():
        assert np.array_equal(again.params[name], values), name
    x = random_problem(layer.member(0) if layer.ensemble else layer, 4, 2).x
    assert np.array_equal(again.forward(x)[0], layer.forward(x)[0])  # dropout, too
    layer.dropout = 0.0
    assert " dropout" not in repr(layer)


def test_repr_of_a_member_is_that_member():
    layer = rk.LSTM(3, 5, forget_bias=1.0, ensemble=4, seed=6).member(2)
    again = eval(repr(layer), vars(rk) | {"np": np})
    assert all(np.array_equal(again.params[n], a) for n, a in layer.params.items())


def test_repr_of_a_subclass_has_its_name():
    class Mine(rk.GRU):
        def __init__(self, sizes, *, tag="a"):
            super().__init__(*sizes, reset_after=False)

    assert repr(Mine((3, 5))) == "Mine(3, 5, reset_after=False)"


@pytest.mark.parametrize("kind", KINDS)
def test_every_constructor_option_is_tested(kind):
    owner = type(make_layer(kind, 3, 5))
    owners = inspect.getmro(owner)[:2]
    named = [p for owner in owners for p in inspect.signature(owner).parameters.values()]
    options = {p.name for p in named if p.kind is p.KEYWORD_ONLY} | {"num_layers"}
    # Some options make kinds of their own, and test_ensemble.py is about another.
    others = {"nonlinearity", "reset_after", "peephole", "candidate", "ensemble"}
    others |= {"input_forget", "activations", "forward_clip", "layer_norm"}
    others |= {"params"}  # see test_weights.py
    kinds = [k for k in KINDS if type(make_layer(k, 3, 5)) is owner]
    assert options - others == {*COMMON}.union(*(OWN.get(k, {}) for k in kinds))


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, option) for kind in KINDS for option in [*COMMON, *OWN.get(kind, {})]],
)
def test_a_constructor_option_changes_the_result(kind, option):
    value = (COMMON | OWN.get(kind, {}))[option]
    base = {"num_layers": 2} if option in BETWEEN_LAYERS else {}
    plain, layer = make_layer(kind, 3, 5, **base), make_layer(kind, 3, 5, **base, **{option: value})
    problem = random_problem(plain, 3, 3, state=False)  # T = B: batch_first takes it, too
    x = problem.x.astype(layer.dtype)
    before, after = (m.forward(a)[0] for m, a in ((plain, problem.x), (layer, x)))
    assert differ(before, after)
    assert_shown(layer, option, value)
    if option == "compute":
        return  # test_bf16.py compares with the reference, where roundings can go two ways
    own = random_problem(layer, 4, 3, lengths="random")
    layer.dropout_step = own.step
    masks = None if option != "dropout" else masks_of(layer, 4, 3)
    assert_same(layer, run(layer, own), run_reference(layer, own, masks=masks))


def test_the_kinds_give_different_results():
    # So nonlinearity and reset_after are proven: each makes another kind.
    x = random_problem(make_layer("gru", 5, 5), 4, 3).x
    results = [make_layer(kind, 5, 5)(x)[0] for kind in KINDS]
    assert all(differ(a, b) for i, a in enumerate(results) for b in results[:i])


@each_kind
def test_the_sizes_change_the_result(kind):
    layer = make_layer(kind, 3, 5, num_layers=2, bidirectional=True)
    y, state = layer(random_problem(layer, 4, 6).x)
    I, L, widths = layer.input_size, layer.num_layers, {"P": layer.output_size, "H": 5}
    assert y.shape == (4, 6, 2 * widths["P"])
    shapes = [(2 * L, 6, widths[s.width]) for s in CELLS[kind].states]
    assert [s.shape for s in parts(state)] == shapes
    with pytest.raises(ValueError, match=rf"x: expected shape \(T, B, {I}\)"):
        layer(np.zeros((4, 6, I + 1), np.float32))


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_parameters_are_the_references_and_named_in_order(kind, bidirectional):
    options = {"num_layers": 3, "bidirectional": bidirectional}
    for bias in (True, False):
        layer = make_layer(kind, 3, 5, bias=bias, **options)
        shapes = parameter_shapes(config_of(layer))
        assert [(n, a.shape) for n, a in layer.params.items()] == list(shapes.items())


@each_kind
def test_each_parameter_is_used_and_read_at_each_call(kind):
    layer = make_layer(kind, 3, 5, num_layers=2, bidirectional=True)
    problem = random_problem(layer, 4, 3)
    before = layer(problem.x)[0]
    for name, array in layer.params.items():
        kept = array.copy()
        array[...] = np.float32(0.5) * array + np.float32(0.1)
        assert differ(layer(problem.x)[0], before), name
        assert_same(layer, run(layer, problem), run_reference(layer, problem))
        layer.params[name] = kept  # another array in its place is taken, too
    assert not differ(layer(problem.x)[0], before)


# ----------------------------------------------------------------- projection, clips of states


@in_each_set
@in_each_dtype
@pytest.mark.parametrize(("H", "P"), [(2, 1), (17, 16), (33, 7), (40, 8), (65, 33)])
@pytest.mark.parametrize(
    "clips", [{}, {"cell_clip": 0.3}, {"proj_clip": 0.1}, {"cell_clip": 0.3, "proj_clip": 0.1}]
)
def test_a_projection_of_any_width_with_and_without_clips(isa, dtype, H, P, clips):
    options = {"proj_size": P, "cell_clip": None, "proj_clip": None, "dtype": dtype, **clips}
    layer = make_layer("lstm_projected", 5, H, num_layers=2, bidirectional=True, **options)
    problem = random_problem(layer, 6, 5, lengths="random")
    clip = rk.Clip(step_value=0.1, step_norm=0.5, max_norm=2.0)
    with rk.force_isa(isa):
        result = run(layer, problem, clip)
    assert_same(layer, result, run_reference(layer, problem, clip))


@in_each_set
@in_each_dtype
@pytest.mark.parametrize(
    ("H", "heads"),
    # Heads of whole cache lines, of parts of one, and of neither; as many as units.
    [(32, 2), (64, 4), (24, 3), (48, 3), (33, 11), (40, 40), (130, 2), (130, 13)],
)
def test_heads_of_any_size(isa, dtype, H, heads):
    options = {"heads": heads, "num_layers": 2, "bidirectional": True, "dtype": dtype}
    layer = make_layer("slstm", 5, H, **options)
    clip = rk.Clip(step_value=0.1, step_norm=0.5, max_norm=2.0)
    for rows in (1, 7):
        problem = random_problem(layer, 4, rows, lengths="random", resets=0.2)
        with rk.force_isa(isa):
            result = run(layer, problem, clip)
            stream_of = make_layer("slstm", 5, H, **options | {"bidirectional": False})
            y, _ = stream_of(problem.x)
            assert stream_of.stream(rows).run(problem.x).tobytes() == y.tobytes()
        assert_same(layer, result, run_reference(layer, problem, clip))


@in_each_dtype
@pytest.mark.parametrize(("H", "heads"), [(64, 4), (30, 5)])
def test_a_head_sees_no_other_heads_h(dtype, H, heads):
    layer = make_layer("slstm", 3, H, heads=heads, dtype=dtype)
    problem = random_problem(layer, 5, 3)
    y, _ = layer(problem.x, problem.state)
    changed = [s.copy() for s in problem.state]
    own = slice(H // heads, 2 * H // heads)
    changed[0][..., own] += 1.0
    other, _ = layer(problem.x, tuple(changed))
    assert differ(other[..., own], y[..., own])
    assert not differ(np.delete(other, own, axis=-1), np.delete(y, own, axis=-1))
    if H // heads % 16 == 0:  # whole cache lines: not even where it is not finite
        changed[0][..., own] = np.nan
        other, _ = layer(problem.x, tuple(changed))
        assert np.isnan(other[..., own]).all()
        assert not differ(np.delete(other, own, axis=-1), np.delete(y, own, axis=-1))


@in_each_dtype
@pytest.mark.parametrize("exp_forget", [False, True])
def test_gates_of_an_slstm_neither_overflow_nor_vanish(dtype, exp_forget):
    # Arguments that are exact in both types, so that their differences are.
    size = {np.float32: 2.0**20, np.float64: 2.0**40}[dtype]
    layer = rk.SLSTM(1, 2, exp_forget=exp_forget, dtype=dtype, seed=0)
    for name, array in layer.params.items():
        array[...] = 1.0 if name == "weight_ih_l0" else 0.0
    x = size * np.array([1, -1, -1, 0, 1, -1, 0], dtype)[:, None, None]
    problem = random_problem(layer, len(x), 1, state=False).but(x=x)
    result = run(layer, problem)
    assert_same(layer, result, run_reference(layer, problem))
    assert result[2].finite
    assert np.abs(result[0]).max() > 0.4  # h is sigmoid(a_o) times a mean of tanh(a_z)


@pytest.mark.parametrize("kind", [k for k in KINDS if "cell_clip" in CELLS[k].options[:1]])
@in_each_dtype
def test_clips_of_states_bound_every_step(kind, dtype):
    layer = make_layer(kind, 3, 6, num_layers=2, dtype=dtype)
    beyond = dict.fromkeys(CELLS[kind].options, 1e6)
    free = make_layer(kind, 3, 6, num_layers=2, dtype=dtype, **beyond)
    problem = random_problem(layer, 9, 4, state=False)
    (_, (h, c), tape), (_, (free_h, free_c), free_tape) = map(problem.forward, (layer, free))
    for values, others, clip in (
        ((c, *tape.cells), (free_c, *free_tape.cells), "cell_clip"),
        ((h, *tape.hiddens), (free_h, *free_tape.hiddens), "proj_clip"),
    ):
        if clip in CELLS[kind].options:
            bound = dtype(getattr(layer, clip))
            assert all(np.abs(a).max() == bound for a in values), clip
            assert all(np.abs(a).max() > bound for a in others), clip
    # A bound that no value reaches changes nothing.
    same = {"proj_size": layer.proj_size, "peephole": layer.peephole}
    without = rk.LSTM(3, 6, 2, dtype=dtype, seed=1, **same)
    assert not differ(without(problem.x)[0], free(problem.x)[0])


@pytest.mark.parametrize("kind", [k for k in KINDS if "forward_clip" in CELLS[k].options])
@in_each_dtype
def test_a_forward_clip_bounds_the_arguments_of_the_gates(kind, dtype):
    layer, free, wide = (
        make_layer(kind, 3, 6, num_layers=2, dtype=dtype, forward_clip=bound)
        for bound in (0.05, None, 1e6)
    )
    problem = random_problem(layer, 9, 4)
    result = run(layer, problem)
    assert_same(layer, result, run_reference(layer, problem))
    assert differ(result[0], run(free, problem)[0])
    # A bound that no argument reaches changes nothing.
    if wide._kind == free._kind:
        assert not differ(run(wide, problem)[0], run(free, problem)[0])


def test_no_projection_has_three_spellings():
    layers = [rk.LSTM(3, 5, seed=0, **o) for o in ({}, {"proj_size": None}, {"proj_size": 0})]
    assert {(one._kind, one.proj_size, one.output_size) for one in layers} == {("lstm", 0, 5)}


# ---------------------------------------------------------------------------------- call options


CALL = ("state", "lengths", "resets", "dy", "dstate", "clip")


def test_every_call_option_is_tested():
    methods = [inspect.signature(m).parameters for m in (rk.GRU.forward, rk.GRU.backward)]
    options = {name for parameters in methods for name in parameters} - {"self", "x", "tape"}
    # A checkpoint changes no bit (test_long.py); what backward traces and adds: test_flow.py. Masks
    # exclude lengths (test_mask.py).
    assert options - {"checkpoint", "trace", "flow_penalty", "mask"} == {*CALL}
    inference = {*inspect.signature(rk.GRU.__call__).parameters} - {"mask"}
    assert inference - {"outputs", "hiddens"} < {"self", "x", *CALL}  # see test_outputs.py


@each_kind
@pytest.mark.parametrize("option", CALL)
def test_a_call_option_changes_the_result(kind, option):
    layer = make_layer(kind, 3, 5, num_layers=2, **both_ways(kind))
    resets = np.zeros((4, 3), bool)
    resets[1, 1] = True  # the gradient of the final state passes a step before it gets there
    full = random_problem(layer, 4, 3, lengths=np.array([2, 4, 0]), seed=1).but(resets=resets)
    clip = rk.Clip(step_value=0.01) if option == "clip" else None
    other = full if option == "clip" else full.but(**{option: None})
    with_, without = run(layer, full, clip), run(layer, other)
    assert_same(layer, with_, run_reference(layer, full, clip))
    assert_same(layer, without, run_reference(layer, other))
    if option in ("state", "lengths", "resets"):
        assert differ(with_[0], without[0])
        assert all(differ(*p) for p in zip(parts(with_[1]), parts(without[1]), strict=True))
    for name, g in with_[2].params.items():
        # What reaches the last layer's lambda does not come through a gate's argument.
        passes = name == "lambda_l1" and option == "clip"
        assert differ(g, without[2].params[name]) != passes, name


@pytest.mark.parametrize(
    ("kind", "array"), [(kind, i) for kind in KINDS for i in range(len(CELLS[kind].states))]
)
def test_each_array_of_a_state_counts_in_its_row(kind, array):
    layer = make_layer(kind, 3, 5)
    problem = random_problem(layer, 4, 3)
    before = run(layer, problem)
    for name in ("state", "dstate"):
        changed = [s.copy() for s in parts(getattr(problem, name))]
        changed[array][0, 1] += 1.0
        other = problem.but(**{name: joined(changed)})
        after = run(layer, other)
        assert_same(layer, after, run_reference(layer, other))
        a, b = (r[0] if name == "state" else r[2].x for r in (before, after))
        flows = name == "state" or CELLS[kind].states[array].flows
        assert differ(a[:, 1], b[:, 1]) == flows
        assert not differ(a[:, [0, 2]], b[:, [0, 2]])


@each_kind
def test_batch_first_is_a_transposition(kind):
    options = {"num_layers": 2, "bidirectional": True}
    layer, other = (make_layer(kind, 3, 5, batch_first=b, **options) for b in (False, True))
    problem = random_problem(layer, 4, 3, lengths="random")
    swapped = problem.but(x=problem.x.swapaxes(0, 1), dy=problem.dy.swapaxes(0, 1))
    (y, state, grads), (y_swapped, state_2, grads_2) = run(layer, problem), run(other, swapped)
    assert np.array_equal(y.swapaxes(0, 1), y_swapped)
    assert np.array_equal(grads.x.swapaxes(0, 1), grads_2.x)
    states, states_2 = parts(state) + parts(grads.state), parts(state_2) + parts(grads_2.state)
    assert all(np.array_equal(a, b) for a, b in zip(states, states_2, strict=True))


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(kind, batch_first):
    layer = make_layer(kind, 3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    problem = random_problem(layer, 4)
    assert problem.x.shape == (4, layer.input_size)
    axis = 0 if batch_first else 1

    def batch(state):
        return joined([s[:, None] for s in parts(state)])

    one = problem.but(
        x=np.expand_dims(problem.x, axis),
        dy=np.expand_dims(problem.dy, axis),
        state=batch(problem.state),
        dstate=batch(problem.dstate),
    )
    (y, state, grads), (y_one, state_one, grads_one) = run(layer, problem), run(layer, one)
    assert np.array_equal(np.expand_dims(y, axis), y_one)
    assert np.array_equal(np.expand_dims(grads.x, axis), grads_one.x)
    for a, b in zip(parts(state), parts(state_one), strict=True):
        assert np.array_equal(a[:, None], b)
    for a, b in zip(parts(grads.state), parts(grads_one.state), strict=True):
        assert np.array_equal(a[:, None], b)


# --------------------------------------------------------------------------------------- dropout


def masks_of(layer, T, B):
    """The dropout masks of a layer's next forward: L-1 arrays (T, B, D*P) of 0 and 1 / (1 - p)."""
    C, p = layer.output_size * (1 + layer.bidirectional), layer.dropout
    seed = layer.dropout_state["seeds"][0]
    return [
        reference.dropout_mask((T, B, C), p, seed, layer.dropout_step, layer=l)
        for l in range(1, layer.num_layers)
    ]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    # The known answers of Random123 1.14 (kat_vectors, "philox4x32 10").
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_references_generator(counter, key, expected):
    assert reference.philox([[word] for word in counter], key).ravel().tolist() == expected


def test_the_references_key():
    # The first outputs of SplitMix64 from seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [reference.splitmix(1234567, step) for step in range(3)] == expected


@in_each_set
@each_kind
@in_each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_is_the_references(isa, kind, dtype, bidirectional):
    options = {"num_layers": 3, "bidirectional": bidirectional, "dtype": dtype, "dropout": 0.3}
    layer = make_layer(kind, 5, 7, **options)
    problem = random_problem(layer, 6, 4, lengths="random")
    for step in range(2):  # two steps of training: two masks
        layer.dropout_step = step
        problem = problem.but(step=step)
        masks = masks_of(layer, 6, 4)
        with rk.force_isa(isa):
            result = run(layer, problem)
        assert_same(layer, result, run_reference(layer, problem, masks=masks))


@each_kind
@in_each_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_in_parts_have_the_masks_of_the_whole_batch(kind, dtype, bidirectional):
    """Dropout and noise, forward and backward, where `first_row` says where a part begins."""
    options = {"num_layers": 2, "bidirectional": bidirectional, "dtype": dtype, "dropout": 0.3}
    layer = make_layer(kind, 5, 7, **options)
    problem = random_problem(layer, 6, 5, state=False)
    y, _, grads = run(layer, problem)
    for rows in (slice(0, 2), slice(2, 5), slice(4, 4)):
        layer.first_row = rows.start
        part = problem.but(x=problem.x[:, rows], dy=problem.dy[:, rows])
        y_of_part, _, grads_of_part = run(layer, part)
        assert y_of_part.tobytes() == y[:, rows].tobytes()
        assert grads_of_part.x.tobytes() == grads.x[:, rows].tobytes()
    if layer.num_layers > 1:  # and other masks where it says nothing
        layer.first_row = 0
        assert run(layer, part.but(x=problem.x[:, 2:], dy=problem.dy[:, 2:]))[0].tobytes() != (
            y[:, 2:].tobytes()
        )


@in_each_dtype
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_acts_between_layers_at_its_rate(dtype, p):
    layer = copying_layer(p, dtype)
    x = np.random.default_rng(0).uniform(1, 2, (50, 9, 30)).astype(dtype)
    first, second, y = layer.forward(x)[2].hiddens, layer.forward(x)[2].hiddens, layer(x)[0]
    assert np.array_equal(first[0], x)  # the first layer's input is not touched
    assert np.array_equal(y, x)  # nor anything in inference
    for below, above in pairwise(first):
        dropped = above[below != 0] == 0
        # A binomial's mean of n draws, within 4 of its deviations.
        assert abs(dropped.mean() - p) < 4 * np.sqrt(p * (1 - p) / dropped.size)
        kept = below * dtype(1 / (1 - p))
        assert np.array_equal(above[above != 0], kept[above != 0])
    # A fresh mask for each layer and each forward.
    masks = [h[1] != 0 for h in (first, second)] + [first[2][first[1] != 0] != 0]
    assert differ(masks[0], masks[1])
    assert differ(masks[0][first[1] != 0], masks[2])


def copying_layer(p, dtype=np.float32, **options):
    """Three layers that hand on what they get, if it is positive."""
    layer = rk.RNN(30, 30, 3, nonlinearity="relu", bias=False, dropout=p, dtype=dtype, **options)
    for name, array in layer.params.items():
        array[:] = np.eye(30) if name.startswith("weight_ih") else 0.0
    return layer


def test_seed_and_step_give_the_mask():
    x = np.ones((5, 3, 30), np.float32)
    layers = [copying_layer(0.5, seed=s) for s in (1, 1, 2)]
    one, same, other = ([layer.forward(x)[0] for _ in range(3)] for layer in layers)
    for a, b, c in zip(one, same, other, strict=True):
        assert np.array_equal(a, b)
        assert differ(a, c)
    assert [layer.dropout_step for layer in layers] == [3, 3, 3]
    layers[0].dropout_step = 1
    assert np.array_equal(layers[0].forward(x)[0], one[1])
    layers[0](x)
    assert layers[0].dropout_step == 2  # inference does not count


def test_a_mask_is_kept_by_its_tape():
    layer = make_layer("gru", 5, 7, num_layers=2, dropout=0.5)
    problem = random_problem(layer, 4, 3)
    masks = masks_of(layer, 4, 3)
    y, state, tape = problem.forward(layer)
    problem.but(step=1).forward(layer)
    layer.dropout = 0.1
    grads = problem.backward(layer, tape)
    layer.dropout = 0.5
    assert_same(layer, (y, state, grads), run_reference(layer, problem, masks=masks))


@each_kind
def test_a_mask_does_not_depend_on_threads_batch_or_padding(kind):
    T, B, H = 16, 40, wide(kind, 40)
    layer = make_layer(kind, 20, H, num_layers=2, **both_ways(kind), dropout=0.4)
    x = random_problem(layer, T, B).x

    def outputs(x, lengths=None):
        layer.dropout_step = 0
        return layer.forward(x, lengths=lengths)[0]

    want = on_threads(1, outputs, x)
    for threads in range(2, 9):
        assert plan_of(layer, T, B, threads).threads == threads
        assert np.array_equal(on_threads(threads, outputs, x), want)
    assert np.array_equal(outputs(x[:, :5]), want[:, :5])
    padded = np.concatenate([x, np.ones_like(x[:3])])
    assert np.array_equal(outputs(padded, np.full(B, T))[:T], want)


@each_kind
def test_dropout_that_has_nothing_to_act_on(kind):
    layer = make_layer(kind, 5, 7, num_layers=2, dropout=0.0)
    problem = random_problem(layer, 4, 3)
    assert_same(layer, run(layer, problem), run_reference(layer, problem))
    with pytest.raises(ValueError, match=r"dropout: expected 0\.0 with num_layers=1"):
        make_layer(kind, 5, 7, num_layers=1, dropout=0.5)


def test_dropout_can_be_set():
    layer = copying_layer(0.0)
    x = np.ones((5, 3, 30), np.float32)
    assert (layer.forward(x)[0] == 1.0).all()
    layer.dropout = 0.75
    assert set(np.unique(layer.forward(x)[0])) == {0.0, 16.0}
    assert layer.dropout == 0.75


# --------------------------------------------------------------------------------------- PyTorch

PYTORCHS = {  # options of PyTorch's layers by kind; it lacks the other kinds
    "rnn_tanh": {},
    "rnn_relu": {"nonlinearity": "relu"},
    "lstm": {},
    "gru": {},
    "lstm_projected": {"proj_size": 3},
}


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # whose meetings take ten times as long as problems this small
    yield torch
    torch.set_num_threads(threads)


def twins(torch, kind, dtype, **options):
    """A layer and PyTorch's, with the same parameters."""
    own = PYTORCHS[kind]
    without_clips = dict.fromkeys(CELLS[kind].options)
    layer = make_layer(kind, 5, 7, dtype=dtype, **options, **own, **without_clips)
    module = getattr(torch.nn, type(layer).__name__)(
        5, 7, dtype=getattr(torch, np.dtype(dtype).name), **options, **own
    )
    state_dict = {n: torch.from_numpy(a.copy()) for n, a in layer.params.items()}
    module.load_state_dict(state_dict)
    return layer, module


# PyTorch says so once in a process; its own implementation computes the same.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("kind", PYTORCHS)
@in_each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layout", ["whole", "packed", "unbatched"])
def test_pytorch_gives_the_same(torch, kind, dtype, bias, bidirectional, batch_first, layout):
    options = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    layer, module = twins(torch, kind, dtype, num_layers=2, **options)
    lengths = np.array([4, 6, 1, 3]) if layout == "packed" else None
    B = None if layout == "unbatched" else 4
    problem = random_problem(layer, 6, B, lengths=lengths)
    y, state, grads = run(layer, problem)

    x = torch.from_numpy(problem.x.copy()).requires_grad_()
    first = [torch.from_numpy(s.copy()).requires_grad_() for s in parts(problem.state)]
    given = x
    if layout == "packed":
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=batch_first, enforce_sorted=False
        )
    y_torch, last = module(given, tuple(first) if len(first) == 2 else first[0])
    if layout == "packed":
        y_torch, _ = torch.nn.utils.rnn.pad_packed_sequence(y_torch, batch_first=batch_first)
    outputs, d_outputs = [y_torch, *parts(last)], [problem.dy, *parts(problem.dstate)]
    torch.autograd.backward(outputs, [torch.from_numpy(d.copy()) for d in d_outputs])

    pairs = [("y", y, y_torch), ("grads.x", grads.x, x.grad)]
    pairs += [("state", a, b) for a, b in zip(parts(state), outputs[1:], strict=True)]
    pairs += [("grads.state", a, b.grad) for a, b in zip(parts(grads.state), first, strict=True)]
    pairs += [(n, grads.params[n], p.grad) for n, p in module.named_parameters()]
    for name, got, want in pairs:
        assert_close(got, want.detach().numpy(), dtype, name)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    assert_close(grads.norm, norm.item(), dtype, "norm")
    clipped = run(layer, problem, rk.Clip(max_norm=0.5))[2]
    for name, p in module.named_parameters():
        assert_close(clipped.params[name], p.grad.numpy(), dtype, name)


@pytest.mark.parametrize("kind", PYTORCHS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_parameters_are_pytorchs(torch, kind, bias, bidirectional):
    options = {"num_layers": 3, "bias": bias, "bidirectional": bidirectional}
    layer, module = twins(torch, kind, np.float32, **options)
    theirs = [(name, tuple(p.shape)) for name, p in module.state_dict().items()]
    assert [(name, p.shape) for name, p in layer.params.items()] == theirs
