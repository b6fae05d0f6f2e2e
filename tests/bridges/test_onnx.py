"""Recurrent nodes of ONNX: each attribute, input and output as the specification has them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as cases
from onnx.reference import ReferenceEvaluator
from onnx_models import (
    GATES,
    INPUTS,
    OUTPUTS,
    H,
    I,
    T,
    assert_close,
    feeds_of,
    model_of,
    node_of,
    problem,
    runtime,
    weights_of,
)

import rnnkern as rk
import rnnkern.onnx

each_op = pytest.mark.parametrize("op", GATES)
each_direction = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])

# ---- ONNX's own cases --------------------------------------------------------------------------

# Only these three modules of cases are imported, which takes a third of a second: to collect one
# operator's cases from all modules takes eight.
for operator in GATES:
    importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
CASES = {case.name: case for case in cases._NodeTestCases}
WEIGHTS = {"W", "R", "B", "P"}


def with_constants(model, feeds):
    """The model with its weights as initializers, and the inputs that are left."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    inputs = [one for one in model.graph.input if one.name not in WEIGHTS]
    found.graph.ClearField("input")
    found.graph.input.extend(inputs)
    weights = [numpy_helper.from_array(feeds[n], n) for n in feeds if n in WEIGHTS]
    found.graph.initializer.extend(weights)
    return found, {n: a for n, a in feeds.items() if n not in WEIGHTS}


def test_the_cases_are_found():
    ops = [case.model.graph.node[0].op_type for case in CASES.values()]
    assert {op: ops.count(op) for op in GATES} == {"RNN": 6, "GRU": 6, "LSTM": 6}


@pytest.mark.parametrize("name", CASES)
def test_node_case(name):
    case = CASES[name]
    ((inputs, outputs),) = case.data_sets
    given = dict(zip([one.name for one in case.model.graph.input], inputs, strict=True))
    model, feeds = with_constants(case.model, given)
    got = rk.onnx.load(model).run(feeds)
    names = [one.name for one in model.graph.output]
    # ONNX computes the cases in float32 with NumPy, whose sums and functions differ in roundings.
    assert_close(got, dict(zip(names, outputs, strict=True)), tolerance=2e-6)


@pytest.mark.slow
@each_op
def test_no_case_of_an_operator_is_left_out(op):
    """One process for each operator: ONNX collects once a process."""
    code = (
        "from onnx.backend.test.case.node import collect_testcases\n"
        f"print(*(case.name for case in collect_testcases({op!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {n for n, case in CASES.items() if case.model.graph.node[0].op_type == op}
    assert set(done.stdout.split()) == own


# ---- against ONNX Runtime ----------------------------------------------------------------------


def assert_as_runtime(model, feeds):
    pytest.importorskip("onnxruntime", reason="what is compared with")
    assert_close(rk.onnx.load(model).run(feeds), runtime(model, feeds))


@each_op
@each_direction
@pytest.mark.parametrize("lengths", [None, [5, 3, 1, 4]], ids=["whole", "ragged"])
@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("opset", [7, 14, 22])
def test_directions_lengths_and_states(op, direction, lengths, state, opset):
    model, feeds = problem(op, direction=direction, lengths=lengths, state=state, opset=opset)
    (layer,) = rk.onnx.load(model).values()
    assert (layer.reverse, layer.bidirectional) == (direction == "reverse", direction[0] == "b")
    assert_as_runtime(model, feeds)


@each_op
@each_direction
def test_rows_of_no_steps(op, direction):
    """Their outputs are zero. Their final state is the initial one; ONNX Runtime has zeros."""
    lengths = [5, 0, 1, 0]
    model, feeds = problem(op, direction=direction, lengths=lengths, state=True)
    got = rk.onnx.load(model).run(feeds)
    assert not got["Y"][:, :, [1, 3]].any()
    for name in OUTPUTS[op][1:]:
        initial = feeds[name.replace("Y_", "initial_")]
        assert np.array_equal(got[name][:, [1, 3]], initial[:, [1, 3]])
        got[name][:, [1, 3]] = 0
    pytest.importorskip("onnxruntime", reason="what is compared with")
    assert_close(got, runtime(model, feeds))


@each_op
@pytest.mark.parametrize("wanted", range(1, 8))
def test_outputs_are_optional(op, wanted):
    names = [n if wanted >> k & 1 else "" for k, n in enumerate(OUTPUTS[op])]
    if not any(names):
        return
    model, feeds = problem(op, outputs=names)
    got = rk.onnx.load(model).run(feeds)
    assert list(got) == [n for n in names if n]
    assert_as_runtime(model, feeds)


@each_op
@pytest.mark.parametrize("missing", ["initial_h", "initial_c"])
def test_one_state_without_the_other(op, missing):
    weights = weights_of(op)
    feeds = feeds_of(op, state=True)
    feeds.pop(missing, None)
    node = node_of(op, {*weights, *feeds}, hidden_size=H)
    assert_as_runtime(model_of([node], feeds, node.output, weights), feeds)


@each_op
@pytest.mark.parametrize("bias", [False, True])
def test_clip(op, bias):
    model, feeds = problem(op, clip=0.25, bias=bias, state=True)
    assert_as_runtime(model, feeds)
    without, _ = problem(op, bias=bias, state=True)
    off = rk.onnx.load(model).run(feeds)["Y"] - rk.onnx.load(without).run(feeds)["Y"]
    assert np.abs(off).max() > 0.01


@each_direction
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("clip", [{}, {"clip": 0.5}])
def test_coupled_gates_and_peepholes(direction, peephole, clip):
    options = {"direction": direction, "peephole": peephole, "state": True, **clip}
    outputs = []
    for coupled in (0, 1):
        model, feeds = problem("LSTM", input_forget=coupled, **options)
        assert_as_runtime(model, feeds)
        outputs.append(rk.onnx.load(model).run(feeds)["Y"])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


@each_direction
def test_linear_before_reset(direction):
    outputs = []
    for before in (0, 1):
        model, feeds = problem("GRU", direction=direction, linear_before_reset=before, state=True)
        assert_as_runtime(model, feeds)
        outputs.append(rk.onnx.load(model).run(feeds)["Y"])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.001


CONSTANTS = {
    **dict.fromkeys(["Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"], ({}, {})),
    "Affine": ({}, {"alpha": [0.3], "beta": [0.2]}),
    "LeakyRelu": ({}, {"alpha": [0.3]}),
    "ThresholdedRelu": ({}, {"alpha": [0.3]}),
    "ScaledTanh": ({"alpha": [0.6], "beta": [0.9]}, {"alpha": [0.3], "beta": [0.4]}),
    "HardSigmoid": ({}, {"alpha": [0.3], "beta": [0.4]}),
    "Elu": ({}, {"alpha": [0.3]}),
}
# The specification's defaults are those of the operators; for these two ONNX Runtime takes zeros.
OPERATORS = {"Affine": {"alpha": [1.0], "beta": [0.0]}, "ThresholdedRelu": {"alpha": [1.0]}}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
PLACES = [(op, k) for op, names in DEFAULTS.items() for k in range(len(names))]


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize(("op", "place"), PLACES)
@pytest.mark.parametrize("given", [0, 1], ids=["defaults", "constants"])
def test_activation(name, op, place, given):
    names = list(DEFAULTS[op])
    names[place] = name

    def made(constants):
        named = {f"activation_{n}": values for n, values in constants.items()}
        return problem(op, activations=names, state=True, **named)

    constants = CONSTANTS[name][given]
    model, feeds = made(constants)
    said, _ = made(constants or OPERATORS.get(name, {}))
    pytest.importorskip("onnxruntime", reason="what is compared with")
    assert_close(rk.onnx.load(model).run(feeds), runtime(said, feeds))


def test_constants_go_to_the_activations_that_have_them_in_order():
    model, feeds = problem(
        *("LSTM",),
        activations=["HardSigmoid", "Relu", "Elu"],
        activation_alpha=[0.3, 0.7],
        activation_beta=[0.4],
    )
    (layer,) = rk.onnx.load(model).values()
    got = [(name, *(round(c, 6) for c in rest)) for name, *rest in layer.activations[::2]]
    assert got == [("HardSigmoid", 0.3, 0.4), ("Elu", 0.7)]
    assert_as_runtime(model, feeds)


def test_names_of_activations_in_any_case():
    model, feeds = problem("GRU", activations=["sigmoid", "TANH"])
    assert rk.onnx.load(model)["Y"].activations is None
    assert_as_runtime(model, feeds)


def test_directions_with_activations_of_their_own():
    model, feeds = problem(
        *("LSTM",),
        direction="bidirectional",
        activations=["Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Relu", "Elu"],
        activation_alpha=[0.2, 0.7],
        activation_beta=[0.4],
        lengths=[5, 2, 1, 3],
        state=True,
        peephole=True,
    )
    loaded = rk.onnx.load(model)
    assert list(loaded) == ["Y.forward", "Y.reverse"]
    assert loaded["Y.forward"].activations is None
    assert loaded["Y.reverse"].activations[1] == "Relu"
    assert_as_runtime(model, feeds)


BOUNDED = ["Tanh", "Sigmoid", "ScaledTanh", "HardSigmoid", "Softsign"]


@pytest.mark.parametrize("seed", range(40))
def test_any_combination(seed, tmp_path):
    """Of attributes, inputs, outputs and sizes; and the same bits from the file of the model.

    A GRU's gates keep to bounded activations: with others the values grow without bound.
    """
    rng = np.random.default_rng(seed)

    def chance(p):
        return rng.random() < p

    op, D, rows = str(rng.choice([*GATES])), int(rng.integers(1, 3)), int(rng.integers(1, 7))
    steps, inputs, units = (int(rng.integers(1, most)) for most in (9, 20, 20))
    one_way = str(rng.choice(["forward", "reverse"]))
    attributes = {"hidden_size": units, "direction": "bidirectional" if D == 2 else one_way}
    if op == "GRU":
        attributes["linear_before_reset"] = int(chance(0.5))
    if op == "LSTM":
        attributes["input_forget"] = int(chance(0.3))
    if chance(0.4):
        attributes["clip"] = float(rng.uniform(0.1, 1.5))
    if chance(0.5):
        choices = BOUNDED if op == "GRU" else [*CONSTANTS]
        names = [str(n) for n in rng.choice(choices, D * len(DEFAULTS[op]))]
        attributes["activations"] = names
        for constant in ("alpha", "beta"):
            count = sum(constant in CONSTANTS[name][1] for name in names)
            if count:
                attributes[f"activation_{constant}"] = rng.uniform(0.1, 0.6, count).tolist()
    G = GATES[op]
    shapes = {"W": (D, G * units, inputs), "R": (D, G * units, units)}
    shapes |= {"B": (D, 2 * G * units)} if chance(0.7) else {}
    shapes |= {"P": (D, 3 * units)} if op == "LSTM" and chance(0.4) else {}
    weights = {n: rng.normal(scale=0.3, size=s).astype(np.float32) for n, s in shapes.items()}
    shapes = {"X": (steps, rows, inputs)}
    shapes |= {n: (D, rows, units) for n in INPUTS[op] if n.startswith("initial") and chance(0.5)}
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    if chance(0.5):
        feeds["sequence_lens"] = rng.integers(1, steps + 1, rows).astype(np.int32)
    names = [n if chance(0.7) else "" for n in OUTPUTS[op]]
    node = node_of(op, {*weights, *feeds}, names if any(names) else None, **attributes)
    opset = int(rng.choice([7, 14, 22]))
    model = model_of([node], feeds, node.output, weights, opset)
    assert_as_runtime(model, feeds)

    loaded = rk.onnx.load(model)
    loaded.save(tmp_path / "saved.onnx")
    again = rk.onnx.load(tmp_path / "saved.onnx").run(feeds)
    for name, values in loaded.run(feeds).items():
        assert np.array_equal(again[name], values)


# ---- what ONNX Runtime does not have -----------------------------------------------------------


@each_op
@each_direction
@pytest.mark.parametrize("lengths", [None, [5, 3, 0, 1]])
def test_layout(op, direction, lengths):
    options = {"direction": direction, "lengths": lengths, "state": True, "opset": 14}
    by_time, feeds = problem(op, **options)
    by_row, _ = problem(op, layout=1, **options)
    loaded = rk.onnx.load(by_row)
    assert all(layer.batch_first for layer in loaded.values())
    swapped = {n: a if n == "sequence_lens" else a.swapaxes(0, 1) for n, a in feeds.items()}
    got, want = loaded.run(swapped), rk.onnx.load(by_time).run(feeds)
    assert np.array_equal(got.pop("Y"), want.pop("Y").transpose(2, 0, 1, 3))
    for name, values in want.items():
        assert np.array_equal(got[name], values.swapaxes(0, 1))


@each_op
@each_direction
def test_double(op, direction):
    """Against ONNX's evaluator, which computes the defaults in the dtype of its inputs."""
    model, feeds = problem(op, direction=direction, dtype=np.float64, state=True)
    want = ReferenceEvaluator(model).run(None, feeds)
    got = rk.onnx.load(model).run(feeds)
    # A float64 chain of 20 terms over 5 steps; the worst measured was 1e-15.
    assert_close(got, dict(zip(OUTPUTS[op], want, strict=True)), tolerance=1e-13)


@each_op
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32_and_rounded(op, name):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, name.upper()))
    if dtype.name != name:
        pytest.skip("this onnx has no NumPy dtype for bfloat16")
    model, feeds = problem(op, dtype=dtype, state=True, lengths=[5, 3, 0, 1], opset=22)
    layer = next(iter(rk.onnx.load(model).values()))
    assert layer.dtype == np.float32
    wide = {n: a if a.dtype == np.int32 else a.astype(np.float32) for n, a in feeds.items()}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {n: a.astype(np.float32) for n, a in weights.items()}
    same = model_of([model.graph.node[0]], wide, OUTPUTS[op], weights, 22)
    got, want = rk.onnx.load(model).run(feeds), rk.onnx.load(same).run(wide)
    for output, values in want.items():
        assert got[output].dtype == dtype
        assert np.array_equal(got[output], values.astype(dtype))


@each_op
@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (0, 0)])
def test_no_steps_and_no_rows(op, sizes):
    weights = weights_of(op)
    feeds = {"X": np.zeros((*sizes, I), np.float32)}
    node = node_of(op, {*weights, *feeds})
    got = rk.onnx.load(model_of([node], feeds, node.output, weights)).run(feeds)
    assert got["Y"].shape == (sizes[0], 1, sizes[1], H)
    assert got["Y_h"].shape == (1, sizes[1], H)
    assert not got["Y_h"].any()


# ---- training ----------------------------------------------------------------------------------


def test_a_model_with_coupled_gates_peepholes_and_clip_learns(tmp_path):
    """It learns to give what another such model gives, and keeps what it learned in a file."""
    options = {"input_forget": 1, "peephole": True, "clip": 3.0, "outputs": ["Y", "", ""]}
    model, feeds = problem("LSTM", **options)
    weights = weights_of("LSTM", peephole=True, seed=7)
    target = model_of([model.graph.node[0]], feeds, ["Y"], weights)
    want = rk.onnx.load(target).run(feeds)["Y"][:, 0]

    student = rk.onnx.load(model)
    (lstm,) = student.values()
    opt, losses = rk.Adam(lstm, lr=0.02), []
    for _ in range(300):
        y, _, tape = lstm.forward(feeds["X"])
        losses.append(float(np.mean((y - want) ** 2)))
        grads = lstm.backward(tape, 2 * (y - want) / y.size, clip=rk.Clip(step_value=0.1))
        opt.step(grads, max_norm=1.0)
    assert losses[-1] < losses[0] / 100  # a five hundredth, measured

    got = student.run(feeds)
    assert np.array_equal(got["Y"][:, 0], lstm(feeds["X"])[0])
    student.save(tmp_path / "student.onnx")
    again = rk.onnx.load(tmp_path / "student.onnx")
    assert np.array_equal(again.run(feeds)["Y"], got["Y"])
    assert np.array_equal(again["Y"].params["weight_ch_l0"], lstm.params["weight_ch_l0"])
    assert_as_runtime(onnx.load(tmp_path / "student.onnx"), feeds)


def test_gradients_of_a_loaded_layer_are_the_formulas_gradients():
    """The reference's, in float64, of CIFG with peepholes and a forward clip that acts."""
    from helpers import assert_same, random_problem, run_reference

    model, _ = problem("LSTM", input_forget=1, peephole=True, clip=0.5, dtype=np.float64)
    (lstm,) = rk.onnx.load(model).values()
    p = random_problem(lstm, T, 3, lengths="random")
    y, state, tape = p.forward(lstm)
    assert_same(lstm, (y, state, p.backward(lstm, tape)), run_reference(lstm, p))
