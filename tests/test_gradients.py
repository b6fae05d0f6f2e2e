"""Gradients and groups of optimizers: sums, swaps, patterns, states, copies, files."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_optim import DEFAULTS, OPTIMIZERS, drawn, every_setting, same_bits, states

import rnnkern as rk
from rnnkern import files
from rnnkern.reference import joint_norm

W = np.zeros(3)


def gradients_of(layer, seed=0, **options):
    y, _, tape = layer.forward(drawn(7, 2, 3, dtype=layer.dtype, seed=seed))
    return layer.backward(tape, drawn(*y.shape, dtype=y.dtype, seed=seed + 1), **options)


def two_layers():
    """Of one shape, so that no shape tells a swap, and their gradients."""
    layers = {"enc": rk.GRU(3, 4, seed=0), "dec": rk.GRU(3, 4, seed=1)}
    return layers, {name: gradients_of(layer) for name, layer in layers.items()}


def copied(params):
    return {name: array.copy() for name, array in params.items()}


def exactly(message):
    return f"^{re.escape(message)}$"


# ---- groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["layers", "named", "other order"])
def test_layers_and_named_groups_make_the_steps_of_a_list_of_dicts(form):
    found = []
    for one in ("dicts", form):
        layers, grads = two_layers()
        groups, given = {
            "dicts": ([layer.params for layer in layers.values()], list(grads.values())),
            "layers": (list(layers.values()), tuple(grads.values())),
            "named": (layers, dict(reversed(grads.items()))),
            "other order": (dict(reversed(layers.items())), grads),
        }[one]
        opt = rk.Adam(groups, lr=0.1)
        for _ in range(2):
            done = opt.step(given, max_norm=0.5)
        assert done.norm == pytest.approx(math.hypot(*(g.norm for g in grads.values())), rel=1e-14)
        assert done.applied
        found.append([a.tobytes() for layer in layers.values() for a in layer.params.values()])
    assert found[0] == found[1]


def test_one_layer_is_its_params():
    one, other = rk.GRU(3, 4, seed=0), rk.GRU(3, 4, seed=0)
    rk.SGD(one, lr=0.1).step(gradients_of(one))
    rk.SGD(other.params, lr=0.1).step(gradients_of(other))
    for name, array in one.params.items():
        assert same_bits(array, other.params[name])


def test_a_layers_new_dict_is_what_a_step_updates():
    layer = rk.GRU(3, 4, seed=0)
    opt = rk.SGD({"gru": layer}, lr=0.1)
    layer.params = copied(layer.params)
    before = copied(layer.params)
    opt.step({"gru": gradients_of(layer)})
    assert not same_bits(layer.params["weight_hh_l0"], before["weight_hh_l0"])


NAMES = "params: expected names of groups without '.' and '/', got "


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"enc": {"w": W}, "b": W},
            TypeError,
            "params['b']: expected a layer or a dict of arrays, got float64 beside params['enc'], "
            "dict",
        ),
        ({"a.b": {"w": W}}, ValueError, NAMES + "'a.b'"),
        ({"a/b": {"w": W}}, ValueError, NAMES + "'a/b'"),
        ({"": {"w": W}}, ValueError, NAMES + "''"),
        ({3: {"w": W}}, ValueError, NAMES + "3"),
        (
            {"a": {"b": {"w": W}}},
            TypeError,
            "params['a']['b']: expected an array of dtype float32 or float64, got dict",
        ),
        (
            {"a": {"w": W}, "b": {"w": np.arange(3)}},
            TypeError,
            "params['b']['w']: expected an array of dtype float32 or float64, got int64 "
            "(write np.asarray(params['b']['w'], np.float32))",
        ),
        ([W], TypeError, "params[0]: expected a layer or a dict of arrays, got ndarray"),
    ],
)
def test_groups_that_are_refused(params, error, message):
    with pytest.raises(error, match=exactly(message)):
        rk.Adam(params)


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([{"w": W}, {"w": W}], TypeError, "a dict with the groups ['a', 'b'], got list"),
        ({"a": {"w": W}}, ValueError, "the groups ['a', 'b'], got ['a']"),
        ({"w": W}, ValueError, "the groups ['a', 'b'], got ['w']"),
    ],
)
def test_gradients_of_named_groups_that_are_refused(grads, error, message):
    opt = rk.SGD({"a": {"w": np.zeros(3)}, "b": {"w": np.zeros(3)}}, lr=0.1)
    with pytest.raises(error, match=exactly("grads: expected " + message)):
        opt.step(grads)


# ---- swaps -------------------------------------------------------------------------------------


def test_swapped_gradients_are_refused():
    layers, grads = two_layers()
    enc, dec = layers.values()
    before = [copied(layer.params) for layer in layers.values()]
    message = "grads[0]: expected gradients of params[0], got those of params[1]"
    with pytest.raises(ValueError, match=exactly(message)):
        rk.SGD([enc.params, dec.params], lr=0.1).step([grads["dec"], grads["enc"]])
    message = "grads['enc']: expected gradients of params['enc'], got those of params['dec']"
    with pytest.raises(ValueError, match=exactly(message)):
        rk.SGD(layers, lr=0.1).step({"enc": grads["dec"], "dec": grads["enc"]})
    message = (
        "grads: expected gradients of params, got those of other parameters "
        "(hand over their .params if they fit)"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        rk.SGD(enc, lr=0.1).step(2 * grads["dec"])
    for layer, was in zip(layers.values(), before, strict=True):
        assert all(same_bits(layer.params[name], array) for name, array in was.items())
    assert rk.SGD(enc, lr=0.1).step(grads["dec"].params).applied  # as it is meant


def test_swapped_gradients_of_modules_are_refused():
    x = np.ones((2, 3), np.float32)
    linears = [rk.Linear(3, 3, seed=seed) for seed in (0, 1)]
    grads = [module.backward(module.forward(x)[1], x) for module in linears]
    with pytest.raises(ValueError, match=r"^grads\['a'\]: .* got those of params\['b'\]$"):
        rk.SGD(dict(zip("ab", linears, strict=True)), 0.1).step(dict(zip("ba", grads, strict=True)))
    tables = [rk.Embedding(3, 3, seed=seed) for seed in (0, 1)]
    grads = [table.backward(table.forward(np.arange(2))[1], x) for table in tables]
    with pytest.raises(ValueError, match=r"^grads\[0\]: .* got those of params\[1\]$"):
        rk.SGD(tables, lr=0.1).step(grads[::-1])


def test_gradients_of_the_same_memory_are_taken():
    """A member has a new dict each time that it is asked for, and a dict may be copied."""
    grus = rk.GRU(3, 4, ensemble=2, seed=0)
    opt = rk.SGD(grus.member(1).params, lr=0.1)
    assert opt.step(gradients_of(grus.member(1))).applied
    with pytest.raises(ValueError, match=r"^grads: expected gradients of params, got those of"):
        opt.step(gradients_of(grus.member(0)))
    layer = rk.GRU(3, 4, seed=0)
    assert rk.SGD(dict(layer.params), lr=0.1).step(gradients_of(layer)).applied


# ---- patterns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["l1", "l2", "weight_decay"])
def test_patterns_reach_one_group(penalty):
    slope = 1.0 if penalty == "l1" else 2.0
    make = rk.AdamW if penalty == "weight_decay" else rk.SGD

    def dicts():
        return [{"w": np.full(2, 2.0), "b": np.full(2, 2.0)} for _ in range(2)]

    def strengths(groups, patterns):
        zeros = {"w": np.zeros(2), "b": np.zeros(2)}
        grads = dict.fromkeys(groups, zeros) if isinstance(groups, dict) else [zeros] * 2
        make(groups, lr=1.0, **{penalty: patterns}).step(grads)
        each = groups.values() if isinstance(groups, dict) else groups
        return [(2.0 - float(array[0])) / slope for of in each for array in of.values()]

    named = dict(zip(("enc", "dec"), dicts(), strict=True))
    patterns = {"enc/w": 0.25, "dec/*": 0.5, "b": 0.125}  # the first that matches
    assert strengths(named, patterns) == [0.25, 0.125, 0.5, 0.5]
    assert strengths(dicts(), {"1/w": 0.25, "w": 0.5}) == [0.5, 0.0, 0.25, 0.0]
    message = f"{penalty}: expected patterns of the names ['0/w', '0/b', '1/w', '1/b'], got '2/w'"
    with pytest.raises(ValueError, match=exactly(message)):
        make(dicts(), 1.0, **{penalty: {"2/w": 0.1}})


def test_weights_of_an_embedding_and_a_linear_have_their_own_penalties():
    modules = {"emb": rk.Embedding(5, 3, seed=0), "out": rk.Linear(3, 5, bias=False, seed=1)}
    before = {name: module.params["weight"].copy() for name, module in modules.items()}
    zeros = {name: {"weight": np.zeros_like(array)} for name, array in before.items()}
    rk.SGD(modules, lr=1.0, l2={"out/weight": 0.5}).step(zeros)
    assert same_bits(modules["emb"].params["weight"], before["emb"])
    np.testing.assert_array_equal(modules["out"].params["weight"], before["out"] / 2)


# ---- changes in place --------------------------------------------------------------------------


def test_gradients_that_are_changed_in_place_are_measured_anew():
    layer = rk.GRU(3, 4, seed=0)
    grads = gradients_of(layer)
    with pytest.raises(ValueError, match="read-only"):
        grads.params["weight_hh_l0"] *= 100
    with pytest.raises(TypeError, match="does not support item assignment"):
        grads.params["weight_hh_l0"] = np.zeros((12, 4), np.float32)
    own = {name: 100 * array for name, array in grads.params.items()}
    before = copied(layer.params)
    done = rk.SGD(layer, lr=1.0).step(own, max_norm=1.0)
    assert done.norm == pytest.approx(100 * grads.norm, rel=1e-6)  # each product is rounded
    length = joint_norm([before[name] - array for name, array in layer.params.items()])
    assert length == pytest.approx(1.0, rel=1e-5)  # the clip's 1e-6, and roundings of parameters

    told = SimpleNamespace(params=own, norm=grads.norm, scale=1.0, finite=True)
    assert rk.SGD(layer, lr=0.0).step(told).norm == done.norm
    own["bias_hh_l0"][3] = np.nan
    assert not rk.SGD(layer, lr=0.1).step(told).applied


def test_module_gradients_are_read_only():
    linear = rk.Linear(3, 2, seed=0)
    y, tape = linear.forward(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        linear.backward(tape, y).params["weight"] += 1.0


# ---- sums and multiples ------------------------------------------------------------------------


def three(ensemble):
    layer = rk.LSTM(3, 4, seed=0, ensemble=ensemble)
    return layer, [gradients_of(layer, seed=seed) for seed in (0, 1, 2)]


@pytest.mark.parametrize("ensemble", [None, 3])
def test_sums_and_multiples(ensemble):
    layer, (a, b, c) = three(ensemble)
    tenth = np.float32(0.1)
    for got, of in (
        (a + b, lambda a, b, c: a + b),
        (sum([a, b, c]), lambda a, b, c: a + b + c),
        (2 * a, lambda a, b, c: 2 * a),
        (a * 0.1, lambda a, b, c: a * tenth),
        (np.float64(0.1) * a, lambda a, b, c: a * tenth),
        (a / 3, lambda a, b, c: a / np.float32(3)),
        ((a + b + c) / 3, lambda a, b, c: (a + b + c) / np.float32(3)),
    ):
        want = {name: of(*(g.params[name] for g in (a, b, c))) for name in a.params}
        assert type(got) is type(a)
        for name, array in want.items():
            assert same_bits(got.params[name], array)
            assert not got.params[name].flags.writeable
        norms = [joint_norm([v[i] if ensemble else v for v in want.values()])
                 for i in range(ensemble or 1)]  # fmt: skip
        np.testing.assert_allclose(np.ravel(got.norm), norms, rtol=1e-14)
        assert np.all(got.finite)
        assert np.all(np.equal(got.scale, 1.0))
        for name in ("x", "state"):
            message = f"{name}: expected the gradients of one backward, got a sum or a multiple"
            with pytest.raises(AttributeError, match=f"^{message}"):
                getattr(got, name)
        assert (got.trace, got.flow_penalty) == (None, 0.0)
    opt = rk.SGD(layer, lr=0.1, ensemble=ensemble)
    assert np.all(opt.step(a + b, max_norm=1.0).applied)


def test_micro_batches_add_up_to_the_batch():
    layer = rk.GRU(3, 4, dtype=np.float64, seed=0)
    x, dy = drawn(7, 6, 3), drawn(7, 6, 4, seed=1)
    whole = layer.backward(layer.forward(x)[2], dy)
    total = sum(
        layer.backward(layer.forward(x[:, rows])[2], dy[:, rows])
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    )
    for name, array in whole.params.items():  # sums of 42 products of size 4, in another order
        np.testing.assert_allclose(total.params[name], array, rtol=0, atol=42 * 4 * 2.0**-53)


def test_sums_of_what_is_clipped_and_of_what_is_not_finite():
    layer = rk.GRU(3, 4, seed=0)
    a, b = gradients_of(layer, clip=rk.Clip(max_norm=0.25)), gradients_of(layer)
    assert (1 * a).norm == pytest.approx(0.25, rel=1e-5)  # of the arrays as they are
    big = 1e38 * b
    assert not (1e3 * big).finite
    x = np.full((4, 1, 3), np.inf, np.float32)
    y, _, tape = layer.forward(x)
    bad = layer.backward(tape, np.ones_like(y), clip=rk.Clip(value=1.0))
    assert not bad.finite
    assert not (b + bad).finite
    assert not (bad * 0.5).finite


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda a, b: a + b, ValueError, "grads: expected a sum over the same parameters, got"),
        (lambda a, b: a * np.nan, ValueError, "factor: expected a finite number, got nan"),
        (lambda a, b: a * [1], TypeError, "factor: expected a number, got list"),
        (lambda a, b: a / 0, ValueError, "divisor: expected a finite number other than 0, got 0"),
        (lambda a, b: a + 1, TypeError, "unsupported operand"),
        (lambda a, b: a * b, TypeError, "factor: expected a number, got Gradients"),
    ],
)
def test_sums_and_multiples_that_are_refused(use, error, message):
    with pytest.raises(error, match=re.escape(message)):
        use(*two_layers()[1].values())


def test_gradients_of_other_shapes_do_not_add_up():
    a, b = gradients_of(rk.GRU(3, 4, seed=0)), gradients_of(rk.GRU(3, 5, seed=0))
    unknown = pickle.loads(pickle.dumps(a))  # does not know whose gradients they are
    with pytest.raises(ValueError, match=r"^grads: expected a sum over the same parameters"):
        unknown + b


# ---- states ------------------------------------------------------------------------------------


def test_state_goes_by_the_names_of_groups():
    layers, grads = two_layers()
    opt = rk.Adam(layers)
    opt.step(grads)
    other = rk.Adam(dict(reversed(layers.items())))
    other.load_state_dict(opt.state_dict())
    for name, array in opt.state_dict().items():
        assert same_bits(other.state_dict()[name], array)
    assert "dec.weight_hh_l0.second" in opt.state_dict()
    renamed = rk.Adam({"encoder": layers["enc"], "dec": layers["dec"]})
    with pytest.raises(ValueError, match=r"^state: expected the names \['adam.step'"):
        renamed.load_state_dict(opt.state_dict())


@pytest.mark.parametrize(("own", "others"), list(itertools.permutations(OPTIMIZERS, 2)))
def test_the_state_of_another_rule_is_refused(own, others):
    one, other = (
        OPTIMIZERS[kind]({"w": np.zeros(2)}, **DEFAULTS[kind], **more)
        for kind in (own, others)
        for more in ({"momentum": 0.5} if kind == "sgd" else {},)
    )
    other.step({"w": np.ones(2)})
    names = OPTIMIZERS[own].__name__, OPTIMIZERS[others].__name__
    message = f"state: expected one of {names[0]}, got one of {names[1]}"
    with pytest.raises(ValueError, match=exactly(message)):
        one.load_state_dict(other.state_dict())


def test_tied_weights_in_a_saved_state(tmp_path):
    """Both names of the array are in a file; its moments are there once, and go on."""

    def model():
        emb, out = rk.Embedding(9, 5, seed=0), rk.Linear(5, 9, seed=1)
        out.params["weight"] = emb.params["weight"]
        parts = {"emb": emb, "out": out}
        return parts, rk.Adam(parts, lr=0.1)

    def train(parts, opt, steps):
        emb, out = parts.values()
        for _ in range(steps):
            y, of_emb = emb.forward(np.arange(6))
            logits, of_out = out.forward(y)
            grads = out.backward(of_out, rk.cross_entropy(logits, np.arange(6))[1])
            opt.step({"emb": emb.backward(of_emb, grads.x), "out": grads}, max_norm=0.5)

    parts, opt = model()
    train(parts, opt, 3)
    files.save(tmp_path / "run", {**parts, "opt": opt})
    train(parts, opt, 3)

    again, other = model()
    arrays = files.load(tmp_path / "run")
    moments = sorted(name for name in arrays if name.endswith("first"))
    assert moments == ["opt.emb.weight.first", "opt.out.bias.first"]
    assert same_bits(arrays["emb.weight"], arrays["out.weight"])
    for name, module in again.items():
        for key, array in module.params.items():
            array[...] = arrays[f"{name}.{key}"]
    state = {n.removeprefix("opt."): a for n, a in arrays.items() if n.startswith("opt.")}
    other.load_state_dict(state)
    train(again, other, 3)
    assert again["emb"].params["weight"] is again["out"].params["weight"]
    for name, module in parts.items():
        for key, array in module.params.items():
            assert same_bits(again[name].params[key], array)


# ---- repr, copy, pickle ------------------------------------------------------------------------


def test_repr_of_optimizers():
    w = {"w": np.zeros(2)}
    assert repr(rk.SGD(w, 0.1)) == "SGD(1 arrays, lr=0.1, momentum=0.0, nesterov=False)"
    opt = rk.RMSprop([w, {"v": np.zeros(3)}], alpha=0.5, l1={"w": 0.1}, l2=0.5)
    text = "RMSprop([1 arrays, 1 arrays], lr=0.01, alpha=0.5, eps=1e-08, momentum=0.0, "
    assert repr(opt) == text + "l1={'w': 0.1}, l2=0.5)"
    opt = rk.AdamW({"a": {"w": np.zeros((2, 3))}}, ensemble=2)
    text = "AdamW({'a': 1 arrays}, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, "
    assert repr(opt) == text + "ensemble=2)"
    assert "weight_decay={'w': 0.1})" in repr(rk.AdamW(w, weight_decay={"w": 0.1}))


def test_repr_of_gradients_is_short():
    layer = rk.GRU(3, 40, 4, seed=0)
    said = r"Gradients\(16 arrays of \d+ elements, norm=\S+, scale=1, finite=True\)"
    assert re.fullmatch(said, repr(gradients_of(layer, trace=True)))
    said = r"EnsembleGradients\(4 arrays of 432 elements, norms \S+ to \S+, 3 of 3 members finite\)"
    assert re.fullmatch(said, repr(three(3)[1][0]))


def test_reprs_of_records_are_short():
    layer = rk.LSTM(3, 4, seed=0)
    *_, tape = layer.forward(np.ones((7, 2, 3), np.float32))
    norms = ", ".join(f"{name}: (1, 7, 2)" for name in ("dh", "dh_before", "dc_before", "scale"))
    trace = layer.backward(tape, trace=True).trace
    assert repr(trace) == f"Trace({norms}, clipped: (1, 7, 2))"
    x = [np.zeros((2, 3))] * 2
    (batch,) = rk.Batches(x, {"a": np.zeros(2), "b": x}, batch_size=2)
    assert repr(batch) == (
        "Batch(x: (2, 2, 3), y={'a': (2,), 'b': (2, 2, 3)}, lengths: (2,), "
        "y_lengths={'a': None, 'b': (2,)}, indices: (2,))"
    )
    layer, gradients = three(3)
    said = r"Step\(norms \S+ to \S+, 3 of 3 members applied, 3 finite\)"
    assert re.fullmatch(said, repr(rk.SGD(layer, 0.1, ensemble=3).step(gradients[0])))


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda a, p=p: pickle.loads(pickle.dumps(a, p)) for p in range(6)},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every_way
def test_clips_copy(way):
    clip = rk.Clip(step_value=0.5, max_norm=2.0)
    assert way(clip) == clip


@every_way
@pytest.mark.parametrize("ensemble", [None, 3])
def test_gradients_copy(way, ensemble):
    layer, (grads, *_) = three(ensemble)
    for one in (grads, 2 * grads):
        got = way(one)
        assert type(got) is type(one)
        for name, array in one.params.items():
            assert same_bits(got.params[name], array)
            assert not got.params[name].flags.writeable
        for name in ("norm", "scale", "finite"):
            np.testing.assert_array_equal(getattr(got, name), getattr(one, name))
        done = rk.SGD(layer, lr=0.0, ensemble=ensemble).step(got)
        np.testing.assert_array_equal(done.norm, one.norm)
    assert same_bits(way(grads).x, grads.x)
    assert all(map(same_bits, way(grads).state, grads.state))
    with pytest.raises(AttributeError, match=r"^x: expected"):
        _ = way(2 * grads).x


@every_way
def test_module_gradients_copy(way):
    linear = rk.Linear(3, 2, seed=0)
    y, tape = linear.forward(np.ones((4, 3), np.float32))
    grads = linear.backward(tape, y)
    got = way(grads)
    assert (got.norm, got.scale, got.finite) == (grads.norm, 1.0, True)
    assert same_bits(got.x, grads.x)


@every_way
def test_gradients_that_were_made_writable_are_measured(way):
    layer = rk.GRU(3, 4, dtype=np.float64, seed=0)
    grads = 1.0 * gradients_of(layer)
    for array in grads.params.values():
        array.flags.writeable = True
        array *= 2
    norm = pytest.approx(joint_norm(grads.params.values()), rel=1e-14)
    assert rk.SGD(layer, lr=0.0).step(grads).norm == norm
    assert way(grads).norm == norm


@every_way
@every_setting
def test_optimizers_copy(kind, options, way):
    params = {"a": {"w": drawn(33)}, "b": {"w": drawn(2, 3, seed=1)}}
    params["b"]["tied"] = params["a"]["w"]
    opt = OPTIMIZERS[kind](params, **(DEFAULTS[kind] | options))

    def step(opt, seed):
        grads = {"a": {"w": drawn(33, seed=seed)}, "b": {"w": drawn(2, 3, seed=seed)}}
        grads["b"]["tied"] = drawn(33, seed=seed + 1)
        return opt.step(grads, max_norm=1.0)

    step(opt, 2)
    got = way(opt)
    assert repr(got) == repr(opt)
    before = states(opt, *params.values())
    done = step(got, 3)
    (after,) = states(got)
    for name, array in before[0].items():
        assert same_bits(opt.state_dict()[name], array), "the original's state has changed"
    shares = way is copy.copy  # the parameters
    assert same_bits(params["a"]["w"], before[1]["w"]) == (not shares)
    for group, was in zip(params.values(), before[1:], strict=True):
        for name, array in was.items():
            group[name][...] = array
    assert step(opt, 3) == done
    for name, array in after.items():
        assert same_bits(opt.state_dict()[name], array)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_model_and_its_optimizer_are_copied_together(way):
    linear = rk.Linear(3, 2, seed=0)
    opt = rk.Adam({"out": linear}, lr=0.1)

    def train(linear, opt):
        y, tape = linear.forward(np.ones((4, 3), np.float32))
        opt.step({"out": linear.backward(tape, y)})
        return linear.params["weight"].tobytes()

    before = train(linear, opt)
    one, other = way((linear, opt))
    after = train(one, other)
    assert linear.params["weight"].tobytes() == before
    assert train(linear, opt) == after != before


def test_a_pickle_of_another_version_says_so(monkeypatch):
    things = [rk.Adam({"w": np.zeros(3)}), gradients_of(rk.GRU(3, 4, seed=0))]
    monkeypatch.setattr("rnnkern._core.__version__", "0.0.1")
    pickles = [pickle.dumps(thing) for thing in things]
    monkeypatch.undo()
    for data in pickles:
        with pytest.raises(ValueError, match=r"^pickle: expected one of rnnkern .* 0\.0\.1 "):
            pickle.loads(data)


# ---- files -------------------------------------------------------------------------------------


def test_files_take_layers_and_optimizers(tmp_path):
    layers, grads = two_layers()
    opt = rk.Adam(layers)
    opt.step(grads)
    path = tmp_path / "file"
    for thing, want in (
        (opt, opt.state_dict()),
        (layers["enc"], layers["enc"].params),
        (rk.Linear(3, 2, seed=0), rk.Linear(3, 2, seed=0).params),
        (layers, {f"{n}.{k}": a for n, layer in layers.items() for k, a in layer.params.items()}),
        ({"opt": opt, "w": W}, {"w": W} | {f"opt.{k}": a for k, a in opt.state_dict().items()}),
        ({}, {}),
    ):
        files.save(path, thing)
        got = files.load(path)
        assert got.keys() == want.keys()
        assert all(same_bits(got[name], array) for name, array in want.items())
    files.save(path, opt)
    rk.Adam(layers).load_state_dict(files.load(path))


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (3, TypeError, "tensors: expected a dict of arrays, a layer or an optimizer, got int"),
        ([W], TypeError, "tensors: expected a dict of arrays, a layer or an optimizer, got list"),
        (
            {"a": [1.0]},
            TypeError,
            "tensors['a']: expected an array, got list (write np.asarray(tensors['a']))",
        ),
    ],
)
def test_files_refuse(tmp_path, tensors, error, message):
    with pytest.raises(error, match=exactly(message)):
        files.save(tmp_path / "file", tensors)
