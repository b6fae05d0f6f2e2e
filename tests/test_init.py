"""How parameters start."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from helpers import DTYPES, KINDS, MAKERS, has_recurrent_weights, in_each_dtype, make_layer

import rnnkern as rk
from rnnkern.reference import CELLS

I, H = 48, 96  # enough elements for their moments to be close

INITS = ("uniform", "xavier", "orthogonal", "identity")
NO_RECURRENT_WEIGHTS = tuple(kind for kind in KINDS if not has_recurrent_weights(kind))


def inits_of(kind):
    return [i for i in INITS if i != "orthogonal" or kind not in NO_RECURRENT_WEIGHTS]


each_kind = pytest.mark.parametrize("kind", KINDS)


def row_of(kind, name):
    """A parameter's row in the cell's table."""
    return next(p for p in CELLS[kind].parameters if name.startswith(p.name))


def gates_of(kind, name, array):
    """The gate blocks of a matrix, [G, H, columns]; a projection is one block, [1, P, H].

    With heads each gate has one block for each, [G * N, H/N, H/N].
    """
    blocks = CELLS[kind].gates if row_of(kind, name).shape[0] == "G*H" else 1
    if row_of(kind, name).role == "recurrent_blocks":
        blocks = len(array) // array.shape[1]
    return array.reshape(blocks, -1, array.shape[1]).astype(np.float64)


def maps_states(kind, name):
    of_states = ("recurrent_matrix", "recurrent_blocks", "projection_matrix")
    return row_of(kind, name).role in of_states


def assert_unit_vectors(kind, name, array, init):
    """Values for each unit: decays, recurrent weights, peepholes as biases are."""
    if name.startswith("lambda"):
        a = (1 + np.exp(array.astype(np.float64))) ** -8
        # Uniform over [0.9, 0.999), but for the rounding of lambda: 8 |lambda| eps of log a.
        assert_uniform((a - 0.9495) / 0.0495, 1 + 1e-5)
    elif name.startswith("weight_hh") and init in ("orthogonal", "identity"):
        assert (array == 1).all(), name
    elif name.startswith("weight_hh"):
        assert_uniform(2 * array.astype(np.float64) - 1, 1)
    elif init == "uniform":
        assert_uniform(array, H**-0.5)
    else:
        assert not array.any(), name


def is_layer_norm(kind, name, array):
    """Whether it starts as layer norm says whatever the initializer: gains of one, no bias."""
    if row_of(kind, name).role.endswith("_gain"):
        assert (array == 1).all(), name
        return True
    if any(p.role == "input_gain" for p in CELLS[kind].parameters) and name.startswith("bias"):
        assert not array.any(), name
        return True
    return False


def is_unit_vectors(kind, name):
    return row_of(kind, name).role == "unit_vectors"


def assert_uniform(array, bound):
    """Against U(-bound, bound): range, and the Kolmogorov-Smirnov distance.

    The distance of n draws stays below 1.95 / sqrt(n) with probability 0.999; seeds are fixed.
    """
    sorted_ = np.sort(array.ravel().astype(np.float64))
    n = sorted_.size
    assert np.abs(sorted_).max() <= bound
    expected = (sorted_ / bound + 1) / 2
    distance = np.abs(expected - (np.arange(n) + 0.5) / n).max() + 0.5 / n
    assert distance < 1.95 / np.sqrt(n)


@each_kind
@in_each_dtype
def test_uniform_is_pytorchs(kind, dtype):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=True, dtype=dtype, init="uniform")
    for name, array in layer.params.items():
        assert array.dtype == dtype, name
        if is_layer_norm(kind, name, array):
            continue
        if is_unit_vectors(kind, name):
            assert_unit_vectors(kind, name, array, "uniform")
        else:
            assert_uniform(array, H**-0.5)
    default = MAKERS[kind](I, H, num_layers=2, bidirectional=True, dtype=dtype, seed=1)
    assert all(np.array_equal(default.params[n], a) for n, a in layer.params.items())


@each_kind
@in_each_dtype
def test_xavier_takes_each_gate_as_a_matrix(kind, dtype):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=True, dtype=dtype, init="xavier")
    for name, array in layer.params.items():
        if is_layer_norm(kind, name, array):
            continue
        if name.startswith("bias"):
            assert not array.any(), name
            continue
        if is_unit_vectors(kind, name):
            assert_unit_vectors(kind, name, array, "xavier")
            continue
        for gate in gates_of(kind, name, array):
            assert_uniform(gate, np.sqrt(6 / sum(gate.shape)))
    inputs = {a.shape[1] for n, a in layer.params.items() if "ih" in n and a.ndim == 2}
    above = {2 * layer.output_size} if layer.num_layers > 1 else set()
    assert inputs == {layer.input_size, *above}


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in NO_RECURRENT_WEIGHTS])
@in_each_dtype
def test_orthogonal_makes_each_recurrent_gate_orthogonal(kind, dtype):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=True, dtype=dtype, init="orthogonal")
    xavier = make_layer(kind, I, H, dtype=dtype, init="xavier")
    for name, array in layer.params.items():
        if is_layer_norm(kind, name, array):
            continue
        if name.startswith("bias"):
            assert not array.any(), name
        elif is_unit_vectors(kind, name):
            assert_unit_vectors(kind, name, array, "orthogonal")
        elif maps_states(kind, name):
            for Q in gates_of(kind, name, array):
                products = Q.T @ Q if len(Q) >= Q.shape[1] else Q @ Q.T
                # A column's length is off by the roundings of H elements and of H reflections.
                bound = np.sqrt(H) * np.finfo(dtype).eps
                assert np.abs(products - np.eye(min(Q.shape))).max() < bound
        else:
            assert_uniform(array, np.sqrt(6 / (H + array.shape[1])))
    assert np.array_equal(layer.params["weight_ih_l0"], xavier.params["weight_ih_l0"])


def test_orthogonal_draws_from_all_rotations():
    # Over Haar's measure a diagonal element has mean 0; without the signs of R it is negative.
    diagonal = np.concatenate(
        [
            np.diagonal(rk.RNN(1, 4, seed=s, init="orthogonal").params["weight_hh_l0"])
            for s in range(300)
        ]
    )
    # Its variance is 1 / H = 1/4: the mean of 1200 has deviation 0.014.
    assert abs(diagonal.mean()) < 4 * 0.5 / np.sqrt(diagonal.size)
    assert diagonal.var() == pytest.approx(0.25, rel=0.1)


@each_kind
@in_each_dtype
def test_identity(kind, dtype):
    layer = make_layer(kind, I, H, num_layers=2, bidirectional=True, dtype=dtype, init="identity")
    for name, array in layer.params.items():
        if is_layer_norm(kind, name, array):
            continue
        if name.startswith("bias"):
            assert not array.any(), name
        elif is_unit_vectors(kind, name):
            assert_unit_vectors(kind, name, array, "identity")
        elif maps_states(kind, name):
            for gate in gates_of(kind, name, array):
                assert np.array_equal(gate, np.eye(*gate.shape))
        else:  # from N(0, 0.001): moments within 4 of their deviations
            n = array.size
            assert abs(array.mean()) < 4e-3 / np.sqrt(n)
            assert array.std() == pytest.approx(1e-3, rel=4 / np.sqrt(2 * n))
            assert np.abs(array).max() > 2.5e-3


@pytest.mark.parametrize("init", ["uniform", "xavier", "orthogonal", "identity"])
@pytest.mark.parametrize("forget_bias", [1.0, -0.5, 0.0])
@pytest.mark.parametrize("proj_size", [0, 3])
@in_each_dtype
def test_forget_bias_is_the_sum_of_both_and_nothing_else(init, forget_bias, proj_size, dtype):
    options = {"num_layers": 2, "bidirectional": True, "init": init, "dtype": dtype, "seed": 3}
    options["proj_size"] = proj_size
    layer, plain = rk.LSTM(5, 7, forget_bias=forget_bias, **options), rk.LSTM(5, 7, **options)
    forget = slice(7, 14)  # the second of i, f, g, o
    for name, array in layer.params.items():
        rest = np.delete(array, forget, axis=0) if name.startswith("bias") else array
        before = plain.params[name]
        before = np.delete(before, forget, axis=0) if name.startswith("bias") else before
        assert np.array_equal(rest, before), name
        if name.startswith("bias_ih"):
            total = array + layer.params[name.replace("_ih", "_hh")]
            assert (total[forget] == forget_bias).all()


@pytest.mark.parametrize(("kind", "init"), [(k, i) for k in KINDS for i in inits_of(k)])
def test_a_seed_gives_the_same_parameters_and_another_gives_others(kind, init):
    def layer(seed):
        return make_layer(kind, 5, 7, num_layers=2, dropout=0.5, seed=seed, init=init)

    one, same, other, free, freed = (layer(s) for s in (1, 1, 2, None, None))
    for name, array in one.params.items():
        assert np.array_equal(array, same.params[name]), name
    drawn = [
        name
        for name, array in one.params.items()
        if len(np.unique(array)) > 2  # neither zeros nor ones
    ]
    assert {"weight_ih_l0", "weight_ih_l1"} <= set(drawn)
    for name in drawn:
        assert not np.array_equal(one.params[name], other.params[name]), name
        assert not np.array_equal(free.params[name], freed.params[name]), name
    first, second = (one.params[f"weight_ih_l{l}"] for l in (0, 1))
    columns = min(first.shape[1], second.shape[1])
    assert not np.array_equal(first[:, :columns], second[:, :columns])


# SHA-256 over the layers of the test below. Another value changes what users' seeds stand for.
FIRST_VALUES = {
    "uniform": "2e10070e6fc18895",
    "xavier": "e6828b3e814ee690",
    "orthogonal": "68857d178c582e96",
    "identity": "c97b58a557a0b8ab",
}


@pytest.mark.parametrize("init", FIRST_VALUES)
def test_a_seed_gives_the_values_it_always_gave(init):
    found = hashlib.sha256()
    kinds = ("rnn_tanh", "lstm_projected", "gru", "min_gru")
    for kind in [kind for kind in kinds if init in inits_of(kind)]:
        options = {"num_layers": 2, "bidirectional": True, "dtype": np.float64, "seed": 3}
        for name, array in make_layer(kind, 5, 7, init=init, **options).params.items():
            # In steps of 2^-20, as another LAPACK or compiler may round the last bits otherwise.
            found.update(name.encode() + np.rint(array * 2**20).astype("<i4").tobytes())
    assert found.hexdigest()[:16] == FIRST_VALUES[init]


@pytest.mark.parametrize("kind", NO_RECURRENT_WEIGHTS)
def test_orthogonal_is_refused_where_it_would_be_xavier(kind):
    said = f"init: expected one of uniform, .* for {kind}, which has no recurrent weights, got 'ort"
    with pytest.raises(ValueError, match=said):
        make_layer(kind, I, H, init="orthogonal")
    roles = {p.role for p in CELLS[kind].parameters if p.name.startswith("weight")}
    assert roles == {"input_matrix"}


def test_a_seed_does_not_touch_numpys_own_generator():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    rk.LSTM(5, 7, seed=1)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_dtypes_share_their_draws():
    one, two = (rk.GRU(5, 7, seed=1, dtype=dtype) for dtype in DTYPES)
    for name, array in two.params.items():
        assert np.array_equal(array.astype(np.float32), one.params[name])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init": "he"}, ValueError, "init: expected one of uniform, xavier, orthogonal, identity"),
        ({"init": None}, TypeError, "init: expected one of .*, got NoneType"),
        ({"seed": -1}, ValueError, r"seed: expected an integer from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed: expected an integer from 0"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer or a SeedSequence, got float"),
        ({"seed": True}, TypeError, "seed: expected an integer or a SeedSequence, got bool"),
        ({"forget_bias": "1"}, TypeError, "forget_bias: expected a number, got str"),
        ({"forget_bias": True}, TypeError, "forget_bias: expected a number, got bool"),
        ({"forget_bias": np.inf}, ValueError, "forget_bias: expected a finite number, got inf"),
        ({"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias: expected None with bias"),
    ],
)
@pytest.mark.parametrize("cls", [rk.LSTM, rk.SLSTM])
def test_wrong_options(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(3, 4, **options)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int64(7), np.uint64(2**63)])
def test_any_integer_of_64_bits_is_a_seed(seed):
    layers = [rk.RNN(3, 4, seed=s) for s in (seed, int(seed))]
    assert np.array_equal(*(layer.params["weight_ih_l0"] for layer in layers))


@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
def test_forget_bias_of_an_slstm_is_its_bias_and_nothing_else(init):
    options = {"heads": 2, "num_layers": 2, "bidirectional": True, "init": init, "seed": 3}
    layer, plain = rk.SLSTM(5, 6, forget_bias=4.0, **options), rk.SLSTM(5, 6, **options)
    forget = slice(6, 12)  # the second of i, f, z, o
    for name, array in layer.params.items():
        expected = plain.params[name].copy()
        if name.startswith("bias"):
            expected[forget] = 4.0
        assert np.array_equal(array, expected), name


def test_a_seed_sequence_of_an_integer_is_that_seed():
    layers = [rk.RNN(3, 4, seed=s) for s in (7, np.random.SeedSequence(7))]
    assert np.array_equal(*(layer.params["weight_ih_l0"] for layer in layers))
    modules = [rk.Linear(3, 4, seed=s) for s in (7, np.random.SeedSequence(7))]
    assert np.array_equal(*(module.params["weight"] for module in modules))
    tables = [rk.Embedding(3, 4, seed=np.random.SeedSequence(7, spawn_key=(e,))) for e in (0, 1)]
    assert not np.array_equal(*(table.params["weight"] for table in tables))


def test_forget_bias_is_the_lstms_alone():
    with pytest.raises(TypeError, match="forget_bias"):
        rk.GRU(3, 4, forget_bias=1.0)
