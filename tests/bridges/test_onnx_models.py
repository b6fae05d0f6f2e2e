"""Whole ONNX models: where weights come from, bodies of nodes, engines, files and errors."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import (
    GATES,
    B,
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
each_engine = pytest.mark.parametrize("engine", ["onnxruntime", "reference"])


def assert_as_runtime(model, feeds, engine="reference"):
    pytest.importorskip("onnxruntime", reason="what is compared with")
    loaded = rk.onnx.load(model, engine=engine)
    want = runtime(model, feeds)
    assert_close(loaded.run(feeds), want)
    assert_close(loaded.run(feeds), want)  # with the parts that the first run has made
    return loaded


# ---- weights -----------------------------------------------------------------------------------


def sources(op):
    """Nodes that compute W, R and B in ways that exporters do, and the constants they start from.

    PyTorch's exporter reorders gates by Slice and Concat and adds the axis of directions by
    Unsqueeze; others have a kernel (I, G*H) that is transposed, quantized weights, or weights of
    another type.
    """
    weights, G = weights_of(op), GATES[op]
    axis = {"axis": np.array([0])}

    def sliced():
        constants, nodes = {"by_gate": weights["W"][0], "zero": axis["axis"]}, []
        for gate in range(G):
            ends = [f"start_{gate}", f"end_{gate}"]
            constants |= {ends[0]: np.array([gate * H]), ends[1]: np.array([(gate + 1) * H])}
            nodes.append(helper.make_node("Slice", ["by_gate", *ends, "zero"], [f"gate_{gate}"]))
        gates = [f"gate_{gate}" for gate in range(G)]
        nodes.append(helper.make_node("Concat", gates, ["gates"], axis=0))
        nodes.append(helper.make_node("Unsqueeze", ["gates", "zero"], ["W"]))
        return constants, nodes

    def transposed():
        constants = {"kernel": weights["W"][0].T.copy(), "shape": np.array([1, G * H, I])}
        transpose = helper.make_node("Transpose", ["kernel"], ["rows"], perm=[1, 0])
        return constants, [transpose, helper.make_node("Reshape", ["rows", "shape"], ["W"])]

    def constant_nodes():
        value = numpy_helper.from_array(weights["W"])
        return {}, [
            helper.make_node("Constant", [], ["value"], value=value),
            helper.make_node("Identity", ["value"], ["W"]),
        ]

    def quantized():
        scale = np.float32(0.02)
        codes = np.round(weights["W"] / scale).astype(np.int8)
        constants = {"codes": codes, "scale": np.array(scale), "point": np.array(0, np.int8)}
        return constants, [helper.make_node("DequantizeLinear", [*constants], ["W"])]

    def cast():
        constants = {"half": weights["W"].astype(np.float16)}
        return constants, [helper.make_node("Cast", ["half"], ["W"], to=TensorProto.FLOAT)]

    return sliced, transposed, constant_nodes, quantized, cast


@each_op
@pytest.mark.parametrize("way", range(5))
def test_weights_that_are_computed_of_constants(op, way):
    constants, nodes = sources(op)[way]()
    weights, feeds = weights_of(op), feeds_of(op)
    node = node_of(op, {*weights, *feeds}, hidden_size=H)
    rest = {n: a for n, a in weights.items() if n != "W"}
    # The evaluator has DequantizeLinear from opset 19 on.
    model = model_of([*nodes, node], feeds, node.output, {**constants, **rest}, opset=21)
    loaded = assert_as_runtime(model, feeds)
    assert len(loaded._program.steps) == 1  # what computes weights is not run


def test_a_weight_that_an_if_of_constants_chooses():
    def branch(name, value):
        constant = helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(value.astype(np.float32))
        )
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        return helper.make_graph([constant], name, [], [output])

    weights, feeds = weights_of("RNN"), feeds_of("RNN")
    branches = {
        "then_branch": branch("one", weights["W"]),
        "else_branch": branch("other", weights["W"] + 1),
    }
    nodes = [helper.make_node("If", ["yes"], ["W"], **branches)]
    nodes.append(node_of("RNN", {*weights, *feeds}, hidden_size=H))
    constants = {n: a for n, a in weights.items() if n != "W"} | {"yes": np.array(True)}
    assert_as_runtime(model_of(nodes, feeds, ["Y", "Y_h"], constants), feeds)


# ---- bodies ------------------------------------------------------------------------------------


def graph_of(nodes, name, inputs, outputs, constants=None):
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    return helper.make_graph(nodes, name, inputs, outputs, tensors)


def body_of(nodes, carried, scans=None):
    """The body of a Loop: carried values' shapes by names in and out, and scans' shapes."""
    ints, bools = ("i", TensorProto.INT64, []), ("going", TensorProto.BOOL, [])
    inputs = [value(*ints), value(*bools), *(one for one, _ in carried)]
    outputs = [value("go_on", TensorProto.BOOL, []), *(one for _, one in carried), *(scans or [])]
    return graph_of(nodes, "body", inputs, outputs)


def value(name, kind=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def branching(op):
    """A model whose If has a node of this operator in each branch, both of the same name.

    The weights of one branch are outside, those of the other inside. Other nodes stand before, in
    and after the branches.
    """
    outer, inner, feeds = weights_of(op), weights_of(op, seed=5), feeds_of(op)
    names = dict(zip(inner, [f"{n}_inner" for n in inner], strict=True))

    def body(name, weights, constants):
        inputs = ["twice", *weights]
        node = helper.make_node(op, inputs, [f"{name}_Y"], "cell", hidden_size=H)
        add = helper.make_node("Add", [f"{name}_Y", "shift"], [name])
        return graph_of([node, add], name, [], [value(name)], constants)

    branches = {
        "then_branch": body("one", outer, {}),
        "else_branch": body("other", names.values(), {names[n]: a for n, a in inner.items()}),
    }
    nodes = [
        helper.make_node("Add", ["X", "X"], ["twice"]),
        helper.make_node("If", ["flag"], ["chosen"], "choice", **branches),
        helper.make_node("Relu", ["chosen"], ["Y"]),
    ]
    constants = {**outer, "shift": np.array(0.25, np.float32)}
    model = model_of(nodes, {**feeds, "flag": np.array(True)}, ["Y"], constants)
    return model, feeds


@each_op
@each_engine
def test_branches(op, engine):
    model, feeds = branching(op)
    assert list(rk.onnx.load(model, engine=engine)) == [
        "choice.else_branch/cell",
        "choice.then_branch/cell",
    ]
    for flag in (True, False):
        assert_as_runtime(model, {**feeds, "flag": np.array(flag)}, engine)


def test_weights_of_a_branch_are_not_computed_in_each_run():
    """Those that are computed outside of constants, and a Constant node that parts share."""
    model, feeds = branching("GRU")
    graph = model.graph
    (w,) = (t for t in graph.initializer if t.name == "W")
    graph.initializer.remove(w)
    w.name = "kernel"
    nodes = [
        helper.make_node("Constant", [], ["kernel"], value=w),
        helper.make_node("Neg", ["kernel"], ["negative"]),
        helper.make_node("Neg", ["negative"], ["W"]),
        helper.make_node("Constant", [], ["three"], value_float=3.0),
        helper.make_node("Mul", ["X", "three"], ["X_scaled"]),
    ]
    graph.node[0].input[0] = "X_scaled"
    graph.node[-1].op_type = "Mul"
    graph.node[-1].input.append("three")
    rest = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *rest])
    for flag in (True, False):
        loaded = assert_as_runtime(model, {**feeds, "flag": np.array(flag)})
    before, _, after = loaded._program.steps
    assert [node.op_type for node in before.nodes] == ["Mul", "Add"]
    assert (before.outputs, after.inputs) == (["twice"], ["chosen"])


def with_dead_nodes(recurrent):
    """A model whose If has nodes on which no output depends, and the inputs.

    They are the only ones that read the value "extra". With `recurrent`, there is a GRU in each
    branch; otherwise the GRU is outside, and the If has no recurrent nodes.
    """
    weights, feeds = weights_of("GRU"), feeds_of("GRU")

    def branch(name):
        dead = [
            helper.make_node("Neg", ["extra"], [f"{name}_unused"]),
            helper.make_node("Not", ["flag"], [f"{name}_inner_flag"]),
            helper.make_node(
                "If", [f"{name}_inner_flag"], [f"{name}_also_unused"],
                **{
                    f"{inner}_branch": graph_of(
                        [helper.make_node("Exp", ["extra"], [f"{name}_{inner}"])],
                        *(inner, [], [value(f"{name}_{inner}")]),
                    )
                    for inner in ("then", "else")
                },
            ),
        ]  # fmt: skip
        if recurrent:
            live = helper.make_node("GRU", ["X", *weights], [name], hidden_size=H)
        else:
            live = helper.make_node("Identity", ["Y"], [name])
        return graph_of([*dead, live], name, [], [value(name)])

    nodes = [
        helper.make_node("GRU", ["X", *weights], ["Y"], hidden_size=H),
        helper.make_node("Relu", ["X"], ["extra"]),
        helper.make_node(
            *("If", ["flag"], ["chosen"]), then_branch=branch("one"), else_branch=branch("other")
        ),
        helper.make_node("Add", ["chosen", "Y"], ["sum"]),
    ]
    model = model_of(nodes, {**feeds, "flag": np.array(True)}, ["sum"], weights)
    return model, feeds


@each_engine
@pytest.mark.parametrize("recurrent", [False, True])
def test_dead_nodes_of_a_branch_that_alone_read_a_value(recurrent, engine):
    model, feeds = with_dead_nodes(recurrent)
    for flag in (True, False):
        assert_as_runtime(model, {**feeds, "flag": np.array(flag)}, engine)


def test_a_weight_of_a_branch_whose_dead_nodes_read_an_input():
    weights, feeds = weights_of("RNN"), feeds_of("RNN")
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Identity")):
        nodes = [helper.make_node("Exp", ["X"], [f"{name}_unused"])]
        nodes.append(helper.make_node(op, ["kernel"], [name]))
        branches[name] = graph_of(nodes, name, [], [value(name)])
    nodes = [helper.make_node("If", ["yes"], ["W"], **branches)]
    nodes.append(node_of("RNN", {*weights, *feeds}, hidden_size=H))
    constants = {"yes": np.array(True), "kernel": weights.pop("W"), **weights}
    assert_as_runtime(model_of(nodes, feeds, ["Y"], constants), feeds)


def test_recurrent_nodes_on_which_no_output_depends_are_left_out():
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    nodes = [
        helper.make_node("GRU", ["X", *weights], [name], hidden_size=H) for name in ("Y", "unused")
    ]
    assert list(assert_as_runtime(model_of(nodes, feeds, ["Y"], weights), feeds)) == ["Y"]


def looping(op):
    """A Loop that carries a state through a node of this operator and stacks its outputs."""
    weights = weights_of(op)
    states = [n for n in ("initial_h", "initial_c") if n in feeds_of(op, state=True)]
    node = node_of(op, {*weights, "X", *states}, hidden_size=H)
    nodes = [
        node,
        helper.make_node("Identity", ["going"], ["go_on"]),
        helper.make_node("Mul", ["Y", "half"], ["scan"]),
    ]
    shape = [1, B, H]
    carried = [(value(n, shape=shape), value(f"Y_{n[-1]}", shape=shape)) for n in states]
    body = body_of(nodes, carried, [value("scan", shape=[T, 1, B, H])])
    outputs = [f"last_{n}" for n in states] + ["scans"]
    loop = helper.make_node("Loop", ["count", "", *states], outputs, "loop", body=body)
    feeds = feeds_of(op, state=True)
    constants = {**weights, "half": np.array(0.5, np.float32)}
    return model_of([loop], {**feeds, "count": np.array(3)}, outputs, constants), feeds


@each_op
@each_engine
@pytest.mark.parametrize("count", [3, 1, 0])
def test_loops(op, engine, count):
    model, feeds = looping(op)
    loaded = assert_as_runtime(model, {**feeds, "count": np.array(count)}, engine)
    assert len(loaded) == 1


def test_a_loop_of_no_steps_whose_body_declares_less():
    """Open dimensions are 0; without a shape, there is the dimension of steps alone."""
    model, feeds = looping("GRU")
    declared = model.graph.node[0].attribute[0].g.output[-1]
    for shape, want in ((["T", 1, None, H], (0, 0, 1, 0, H)), (None, (0,))):
        declared.CopyFrom(value("scan", shape=shape))
        found = rk.onnx.load(model).run({**feeds, "count": np.array(0)})
        assert found["scans"].shape == want
    declared.ClearField("type")
    with pytest.raises(
        ValueError, match="scan: expected one of ONNX's types of elements, got none"
    ):
        rk.onnx.load(model).run({**feeds, "count": np.array(0)})


@each_engine
def test_sequences_between_parts_are_refused(engine):
    weights, feeds = weights_of("GRU"), feeds_of("GRU", state=True)
    nodes = [
        helper.make_node("SequenceConstruct", ["X", "X"], ["pair"]),
        helper.make_node("GRU", ["X", *weights, "", "initial_h"], ["Y"], hidden_size=H),
        helper.make_node("ReduceMax", ["Y"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["place"], to=TensorProto.INT64),
        helper.make_node("SequenceAt", ["pair", "place"], ["one"]),
    ]
    loaded = rk.onnx.load(model_of(nodes, feeds, ["one"], weights), engine=engine)
    with pytest.raises(TypeError) as caught:
        loaded.run(feeds)
    assert str(caught.value) == "pair: expected a tensor between parts of the model, got list"


def test_a_loop_that_ends_itself():
    """By its condition, which the node's output decides."""
    weights, feeds = weights_of("RNN"), feeds_of("RNN", state=True)
    nodes = [
        node_of("RNN", {*weights, "X", "initial_h"}, ["", "Y_h"], hidden_size=H),
        helper.make_node("ReduceMax", ["Y_h"], ["most"], keepdims=0),
        helper.make_node("Add", ["sum", "most"], ["sum_out"]),
        helper.make_node("Less", ["sum_out", "limit"], ["go_on"]),
    ]
    carried = [(value("initial_h", shape=[1, B, H]), value("Y_h", shape=[1, B, H]))]
    carried.append((value("sum", shape=[]), value("sum_out", shape=[])))
    body = body_of(nodes, carried)
    state = feeds.pop("initial_h")
    loop = helper.make_node("Loop", ["", "yes", "state", "none"], ["h", "total"], body=body)
    constants = {**weights, "none": np.array(0, np.float32), "limit": np.array(2.5, np.float32)}
    constants |= {"yes": np.array(True), "state": state}
    loaded = assert_as_runtime(model_of([loop], feeds, ["h", "total"], constants), feeds)
    assert loaded.run(feeds)["total"] >= 2.5


def test_a_branch_in_a_loop():
    model, feeds = branching("GRU")
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    constants = {t.name: numpy_helper.to_array(t) for t in inner.initializer}
    nodes = [
        *inner.node,
        helper.make_node("Identity", ["going"], ["go_on"]),
        helper.make_node("Not", ["flag"], ["other_flag"]),
    ]
    flags = value("flag", TensorProto.BOOL, []), value("other_flag", TensorProto.BOOL, [])
    body = body_of(nodes, [flags], [value("Y", shape=[T, 1, B, H])])
    loop = helper.make_node("Loop", ["count", "", "first"], ["last", "all"], "loop", body=body)
    given = {**feeds, "count": np.array(4), "first": np.array(True)}
    loaded = assert_as_runtime(model_of([loop], given, ["all"], constants), given)
    assert next(iter(loaded)) == "loop.body/choice.else_branch/cell"


@each_engine
def test_functions(engine):
    weights = weights_of("LSTM")
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], "cell", hidden_size=H)
    function = helper.make_function(
        *("own", "Cell", ["x", "w", "r", "b"], ["y"], [node], [helper.make_opsetid("", 14)])
    )
    feeds = feeds_of("LSTM")
    call = helper.make_node("Cell", ["X", *weights], ["Y"], domain="own")
    model = model_of([call], feeds, ["Y"], weights, functions=[function])
    assert len(assert_as_runtime(model, feeds, engine)) == 1


def test_a_stack_with_other_nodes_between():
    """Parts are as few as the order allows, and what a node reads twice is computed once."""
    first, second = weights_of("LSTM", 2), weights_of("GRU", seed=3)
    second["W"] = np.random.default_rng(4).normal(size=(1, 3 * H, 2 * H)).astype(np.float32) / 4
    names = {n: f"{n}_second" for n in second}
    feeds = feeds_of("LSTM", lengths=[5, 2, 4, 1])
    gru = ["x", *names.values(), "sequence_lens"]
    nodes = [
        helper.make_node("Tanh", ["X"], ["bent"]),
        helper.make_node(
            "LSTM", ["bent", *first, "sequence_lens"], ["Y1"], "below",
            hidden_size=H, direction="bidirectional",
        ),
        helper.make_node("Transpose", ["Y1"], ["Y1_by_row"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Y1_by_row", "shape"], ["x"]),
        helper.make_node("GRU", gru, ["Y2", "last"], "above", hidden_size=H),
        helper.make_node("Exp", ["bent"], ["side"]),
        helper.make_node("Neg", ["Y2"], ["Y"]),
    ]  # fmt: skip
    constants = {**first, **{names[n]: a for n, a in second.items()}}
    constants["shape"] = np.array([0, 0, 2 * H])
    model = model_of(nodes, feeds, ["Y", "side", "last"], constants)
    loaded = assert_as_runtime(model, feeds)
    assert len(loaded._program.steps) == 5
    assert list(loaded) == ["below", "above"]


# ---- engines, inputs and files -----------------------------------------------------------------


def test_without_onnx_runtime_the_evaluator_runs_the_rest(monkeypatch):
    model, feeds = branching("RNN")
    want = rk.onnx.load(model, engine="reference").run({**feeds, "flag": np.array(True)})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    loaded = rk.onnx.load(model)
    assert np.array_equal(loaded.run({**feeds, "flag": np.array(True)})["Y"], want["Y"])
    with pytest.raises(ImportError, match=r"^onnxruntime is missing .*engine='reference'$"):
        rk.onnx.load(model, engine="onnxruntime")
    with pytest.raises(ValueError, match=r"^engine: expected one of onnxruntime, reference, got"):
        rk.onnx.load(model, engine="tensorrt")


def test_a_missing_onnx_names_the_extra():
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import rnnkern\n"
        "try: import rnnkern.onnx\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnx is missing (")
    assert done.stdout.endswith("): pip install 'rnnkern[onnx]'\n")


def test_rnnkern_does_not_import_onnx():
    code = "import sys, rnnkern, rnnkern.layers.lstm; print('onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_of_a_file_and_the_models_own_copy(tmp_path):
    model, feeds = problem("GRU")
    onnx.save(model, tmp_path / "gru.onnx")
    want = rk.onnx.load(model).run(feeds)
    for path in (tmp_path / "gru.onnx", str(tmp_path / "gru.onnx")):
        assert np.array_equal(rk.onnx.load(path).run(feeds)["Y"], want["Y"])
    constant = helper.make_node("Constant", [], ["one"], value_float=1.0)
    model.graph.node.insert(0, constant)
    before = model.SerializeToString()
    loaded = rk.onnx.load(model)
    assert model.SerializeToString() == before
    model.graph.ClearField("node")
    assert np.array_equal(loaded.run(feeds)["Y"], want["Y"])


def test_what_is_written_to_a_layer_holds_for_the_next_run():
    model, feeds = problem("GRU", linear_before_reset=1)
    loaded = rk.onnx.load(model)
    before = loaded.run(feeds)["Y"]
    for values in loaded["Y"].params.values():
        values[...] = 0
    after = loaded.run(feeds)["Y"]
    assert before.any()
    assert not after.any()


@each_op
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_frozen_until_a_layer_is_taken(op, direction):
    """The same bits; then what is written holds at once, until the model is frozen again."""
    model, feeds = problem(op, direction=direction, lengths=[5, 3, 0, 1], state=True)
    loaded = rk.onnx.load(model)
    (recurrent,) = loaded._recurrents.values()
    frozen = loaded.run(feeds)
    assert [type(call).__name__ for call in recurrent._calls] == ["Frozen"]
    (layer,) = loaded.values()
    assert recurrent._calls == [layer]
    for name, values in loaded.run(feeds).items():
        assert np.array_equal(values, frozen[name])

    layer.params["weight_hh_l0"] *= 0.5
    changed = loaded.run(feeds)
    assert not np.array_equal(changed["Y"], frozen["Y"])
    loaded.freeze()
    layer.params["weight_hh_l0"] *= 0.5
    assert np.array_equal(loaded.run(feeds)["Y"], changed["Y"])


def test_repr():
    model, _ = problem("GRU", linear_before_reset=1)
    assert repr(rk.onnx.load(model)) == (
        "Model(inputs=['X'], outputs=['Y', 'Y_h'], layers={'Y': GRU(3, 6)})"
    )


@each_op
def test_save_keeps_what_other_nodes_need(op, tmp_path):
    """Weights of both branches are replaced; initializers that nothing reads any more are gone."""
    model, feeds = branching(op)
    model.graph.output[0].CopyFrom(value("Y", shape=[T, 1, B, H]))
    loaded = rk.onnx.load(model)
    for layer in loaded.values():
        for values in layer.params.values():
            values *= 0.5
    loaded.freeze()  # which changes nothing of what is saved
    path = tmp_path / "saved.onnx"
    loaded.save(path)
    saved = onnx.load(path)
    onnx.checker.check_model(saved)
    assert [t.name for t in saved.graph.initializer] == ["shift"]
    for attribute in saved.graph.node[1].attribute:
        names = {t.name for t in attribute.g.initializer}
        assert names == {f"choice.{attribute.name}/cell.{weight}" for weight in "WRB"}
    for flag in (True, False):
        given = {**feeds, "flag": np.array(flag)}
        want = loaded.run(given)
        assert_close(runtime(saved, given), want)
        assert np.array_equal(rk.onnx.load(path).run(given)["Y"], want["Y"])


def test_save_of_computed_weights_leaves_out_what_computed_them(tmp_path):
    constants, nodes = sources("GRU")[0]()
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    node = node_of("GRU", {*weights, *feeds}, hidden_size=H)
    rest = {n: a for n, a in weights.items() if n != "W"}
    model = model_of([*nodes, node], feeds, ["Y"], {**rest, **constants})
    # As models were before initializers could do without being inputs.
    model.ir_version = 3
    model.graph.input.extend(value(n, shape=a.shape) for n, a in rest.items())
    loaded = rk.onnx.load(model)
    loaded.save(tmp_path / "saved.onnx")
    saved = onnx.load(tmp_path / "saved.onnx")
    assert [node.op_type for node in saved.graph.node] == ["GRU"]
    assert [one.name for one in saved.graph.input] == ["X"]
    assert saved.ir_version >= 4  # below, initializers must be inputs
    assert np.array_equal(rk.onnx.load(saved).run(feeds)["Y"], loaded.run(feeds)["Y"])


def train(loaded):
    """Change all parameters, each in its own way."""
    rng = np.random.default_rng(7)
    for layer in loaded.values():
        for values in layer.params.values():
            values += rng.normal(scale=0.3, size=values.shape).astype(values.dtype)


def assert_saves(loaded, feeds, path):
    """Save, and load and save once more: ONNX Runtime and the checker agree with `run`.

    The checker wants shapes of all outputs, which `infer_shapes` adds to the tests' models.
    """
    want = loaded.run(feeds)
    names = []
    for again in (loaded, None):
        (again or rk.onnx.load(path)).save(path)
        saved = onnx.load(path)
        onnx.checker.check_model(saved, full_check=True)
        assert_close(runtime(saved, feeds), want)
        assert_close(rk.onnx.load(path).run(feeds), want, tolerance=0)
        names.append([t.name for t in saved.graph.initializer])
    assert names[0] == names[1]
    return saved


@each_op
def test_save_replaces_weights_of_the_names_that_export_gives(op, tmp_path):
    pytest.importorskip("onnxruntime", reason="what is compared with")
    layer = getattr(rk, op)(I, H, 2, seed=0)
    loaded = rk.onnx.load(rk.onnx.export(layer))
    feeds = {"x": feeds_of(op)["X"]}
    before = loaded.run(feeds)["y"]
    train(loaded)
    assert np.abs(loaded.run(feeds)["y"] - before).max() > 0.1
    loaded.save(tmp_path / "saved.onnx")
    saved = assert_saves(loaded, feeds, tmp_path / "saved.onnx")
    own = {f"layer_{k}.{weight}" for k in range(2) for weight in "WRB"}
    assert {t.name for t in saved.graph.initializer} == own | {"width"}
    train(loaded)
    assert_saves(loaded, feeds, tmp_path / "saved.onnx")


def test_save_of_weights_that_nodes_share(tmp_path):
    """Two nodes read the same weights; each has its own afterwards."""
    pytest.importorskip("onnxruntime", reason="what is compared with")
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    nodes = [
        helper.make_node("GRU", ["X", *weights], [name], name, hidden_size=H)
        for name in ("one", "other")
    ]
    model = model_of(nodes, feeds, ["one", "other"], weights)
    loaded = rk.onnx.load(onnx.shape_inference.infer_shapes(model))
    train(loaded)
    assert np.abs(np.subtract(*loaded.run(feeds).values())).max() > 0.1
    saved = assert_saves(loaded, feeds, tmp_path / "saved.onnx")
    own = {f"{node}.{weight}" for node in ("one", "other") for weight in "WRB"}
    assert {t.name for t in saved.graph.initializer} == own


def test_save_keeps_weights_that_are_used_elsewhere(tmp_path):
    """As an output and by another node, under the names that the new weights would have."""
    pytest.importorskip("onnxruntime", reason="what is compared with")
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    names = {n: f"cell.{n}" for n in weights}
    nodes = [
        helper.make_node("GRU", ["X", *names.values()], ["Y"], "cell", hidden_size=H),
        helper.make_node("Neg", ["cell.R"], ["negative"]),
        helper.make_node("Relu", ["Y"], ["cell.W_1"]),
    ]
    constants = {names[n]: a for n, a in weights.items()}
    model = model_of(nodes, feeds, ["Y", "negative", "cell.W", "cell.W_1"], constants)
    model.graph.output[2].CopyFrom(value("cell.W", shape=weights["W"].shape))
    loaded = rk.onnx.load(onnx.shape_inference.infer_shapes(model))
    train(loaded)
    saved = assert_saves(loaded, feeds, tmp_path / "saved.onnx")
    found = runtime(saved, feeds)
    assert np.array_equal(found["negative"], -weights["R"])
    assert np.array_equal(found["cell.W"], weights["W"])
    assert list(saved.graph.node[0].input) == ["X", "cell.W_2", "cell.R_1", "cell.B"]


def test_nodes_of_one_name_in_one_graph(tmp_path):
    """The checker accepts them, ONNX Runtime does not. Layers have the names of the outputs."""
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    other = {f"{n}_other": a for n, a in weights_of("GRU", seed=3).items()}
    nodes = [
        helper.make_node("GRU", ["X", *weights], ["one"], "cell", hidden_size=H),
        helper.make_node("GRU", ["X", *other], ["two"], "cell", hidden_size=H),
    ]
    loaded = rk.onnx.load(model_of(nodes, feeds, ["one", "two"], {**weights, **other}))
    assert list(loaded) == ["one", "two"]
    train(loaded)
    loaded.save(tmp_path / "saved.onnx")
    again, want = rk.onnx.load(tmp_path / "saved.onnx").run(feeds), loaded.run(feeds)
    assert_close(again, want, tolerance=0)
    assert np.abs(want["one"] - want["two"]).max() > 0.1


# ---- errors ------------------------------------------------------------------------------------


def message_of(error, model, **options):
    with pytest.raises(error) as caught:
        rk.onnx.load(model, **options)
    return str(caught.value)


@each_op
@pytest.mark.parametrize("opset", [1, 6, 999])
def test_wrong_opset(op, opset):
    model, _ = problem(op, opset=opset)
    newest = onnx.defs.onnx_opset_version()
    assert message_of(ValueError, model) == (
        f"Y: opset: expected 7 to {newest}, which this onnx {onnx.__version__} knows, got {opset}"
    )


@each_op
@pytest.mark.parametrize("weight", ["W", "R"])
def test_missing_weight(op, weight):
    model, _ = problem(op)
    place = list(model.graph.node[0].input).index(weight)
    model.graph.node[0].input[place] = ""
    assert message_of(ValueError, model) == f"Y: {weight}: expected a value, got none"
    model.graph.node[0].input[place] = "nowhere"
    assert message_of(ValueError, model) == (
        f"Y: {weight}: expected a value computed before the node, "
        "got 'nowhere', which nothing computes"
    )


@each_op
def test_dynamic_weight(op):
    model, _ = problem(op)
    model.graph.node[0].input[1] = "given"
    model.graph.input.append(value("given", shape=[1, GATES[op] * H, I]))
    expected = "Y: W: expected a constant, got one that depends on the input 'given'"
    assert message_of(ValueError, model) == expected
    model.graph.node[0].input[1] = "computed"
    model.graph.node.insert(0, helper.make_node("Neg", ["given"], ["computed"]))
    assert message_of(ValueError, model) == expected


def test_a_weight_that_a_loop_changes():
    model, _ = looping("RNN")
    body = model.graph.node[0].attribute[0].g
    body.node[0].input[1] = "initial_h"
    assert message_of(ValueError, model) == (
        "Y: W: expected a constant, got one that depends on the input 'initial_h'"
    )


@pytest.mark.parametrize("name", ["RandomNormal", "RandomUniformLike", "Bernoulli"])
def test_a_weight_of_chance(name):
    model, _ = problem("RNN", opset=15)
    model.graph.node[0].input[1] = "drawn"
    given = ([], {"shape": [1, H, I]}) if name == "RandomNormal" else (["W"], {})
    model.graph.node.insert(0, helper.make_node(name, given[0], ["drawn"], **given[1]))
    assert message_of(ValueError, model) == (
        f"Y: W: expected a constant, got one that depends on {name}"
    )


def test_a_weight_of_an_unknown_operator():
    model, _ = problem("RNN")
    model.graph.node[0].input[1] = "made"
    model.graph.node.insert(0, helper.make_node("Dream", ["W"], ["made"], domain="elsewhere"))
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    found = message_of(ValueError, model)
    expected = "Y: W: expected a constant that the onnx package can compute, got 'made' of Dream ("
    assert found.startswith(expected)


SHAPES = {
    "W": [(1, 4 * H), (2, 4 * H, I), (1, 4 * H + 1, I), (1, 3 * H, I)],
    "R": [(4 * H, H), (2, 4 * H, H), (1, 4 * H, H + 1), (1, 4 * H + 4, H)],
    "B": [(8 * H,), (1, 4 * H), (2, 8 * H)],
    "P": [(3 * H,), (1, 4 * H), (2, 3 * H)],
}


@pytest.mark.parametrize(("weight", "shape"), [(n, s) for n, each in SHAPES.items() for s in each])
@pytest.mark.parametrize("sized", [False, True])
def test_wrong_shape(weight, shape, sized):
    weights, feeds = weights_of("LSTM", peephole=True), feeds_of("LSTM")
    weights[weight] = np.zeros(shape, np.float32)
    options = {"hidden_size": H} if sized else {}
    node = node_of("LSTM", {*weights, *feeds}, **options)
    found = message_of(ValueError, model_of([node], feeds, ["Y"], weights))
    assert ": expected shape (1, " in found
    assert found.endswith(f", got {shape}") or not sized
    if sized:
        assert found.startswith(f"Y: {weight}: ")


def test_wrong_types_of_weights():
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    node = node_of("GRU", {*weights, *feeds})

    def found(changed):
        return message_of(TypeError, model_of([node], feeds, ["Y"], {**weights, **changed}))

    assert found({"R": weights["R"].astype(np.float64)}) == (
        "Y: R: expected dtype float32 of W, got float64"
    )
    assert found({"W": weights["W"].astype(np.int64)}) == (
        "Y: W: expected float16, bfloat16, float32 or float64, got int64"
    )


WRONG = [
    ("LSTM", "direction", "sideways",
     "expected one of forward, reverse, bidirectional, got 'sideways'"),
    ("LSTM", "layout", 2, "expected 0 or 1, got 2"),
    ("LSTM", "activations", ["Tanh"], "expected 3 for each of 1 directions, got 1"),
    ("GRU", "activations", ["Sine", "Tanh"],
     "expected one of Relu, Tanh, Sigmoid, Affine, LeakyRelu, "
     "ThresholdedRelu, ScaledTanh, HardSigmoid, Elu, Softsign, Softplus, got 'Sine'"),
    ("RNN", "activation_alpha", [0.5],
     "expected 0 values, for the activations that have one, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "name", "given", "said"), WRONG)
def test_wrong_attribute(op, name, given, said):
    model, _ = problem(op)
    model.graph.node[0].attribute.append(helper.make_attribute(name, given))
    assert message_of(ValueError, model) == f"Y: {name}: {said}"


def test_wrong_clip():
    model, _ = problem("LSTM", clip=-1.0)
    expected = "Y: forward_clip: expected a finite number > 0, got -1.0"
    assert message_of(ValueError, model) == expected


def test_a_constant_without_default():
    model, _ = problem("RNN", activations=["ScaledTanh"], activation_beta=[0.5])
    expected = "Y: activation_alpha: expected a value for ScaledTanh, got none"
    assert message_of(ValueError, model) == expected


@pytest.mark.parametrize("name", ["linear_before_reset", "output_sequence"])
def test_an_attribute_of_another_operator_or_opset(name):
    model, _ = problem("RNN", **{name: 1})
    assert message_of(ValueError, model) == (
        f"Y: expected an attribute of RNN in opset 14, got {name!r}"
    )


def test_layout_came_with_opset_14():
    model, _ = problem("GRU", layout=1, opset=13)
    assert message_of(ValueError, model) == (
        "Y: expected an attribute of GRU in opset 13, got 'layout'"
    )


def test_a_model_without_recurrent_nodes():
    feeds = feeds_of("RNN")
    model = model_of([helper.make_node("Relu", ["X"], ["Y"])], feeds, ["Y"], {})
    expected = "model: expected outputs that depend on a node of RNN, GRU, LSTM, got none"
    assert message_of(ValueError, model) == expected
    # Another domain's operator of the same name is none of ONNX's.
    other = helper.make_node("LSTM", ["X"], ["Y"], domain="com.example")
    assert message_of(ValueError, model_of([other], feeds, ["Y"], {})) == expected


def test_a_recurrent_node_in_a_body_of_scan():
    weights = weights_of("RNN")
    node = helper.make_node("RNN", ["x", *weights], ["", "h"], hidden_size=H)
    squeezed = helper.make_node("Identity", ["h"], ["out"])
    body = graph_of([node, squeezed], "body", [value("x", shape=[T, B, I])],
                    [value("out", shape=[1, B, H])])  # fmt: skip
    scan = helper.make_node("Scan", ["xs"], ["Y"], "scan", body=body, num_scan_inputs=1)
    feeds = {"xs": np.zeros((2, T, B, I), np.float32)}
    assert message_of(ValueError, model_of([scan], feeds, ["Y"], weights)) == (
        "scan: expected recurrent nodes in bodies of If and Loop alone, got one in a body of Scan"
    )


def test_a_long_chain_that_computes_a_weight():
    """Longer than Python's limit of recursion."""
    weights, feeds = weights_of("RNN"), feeds_of("RNN")
    names = ["W", *(f"step_{k}" for k in range(3000))]
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)]
    node = helper.make_node("RNN", ["X", names[-1], "R", "B"], ["Y"], hidden_size=H)
    got = rk.onnx.load(model_of([*nodes, node], feeds, ["Y"], weights)).run(feeds)
    want = rk.onnx.load(problem("RNN", outputs=["Y"])[0]).run(feeds)
    assert np.array_equal(got["Y"], want["Y"])


def changed(change, op="GRU", **options):
    """A model in whose graph something is changed."""
    model, _ = problem(op, **options)
    change(model.graph)
    return model


def add(*given, first=False, **attributes):
    """The change that adds a node."""
    node = helper.make_node(*given, **attributes)
    return lambda graph: graph.node.insert(0 if first else len(graph.node), node)


def reading(k, name):
    return lambda graph: graph.node[0].input.__setitem__(k, name)


def cyclic(graph):
    add("Neg", ["one"], ["other"], first=True)(graph)
    add("Neg", ["other"], ["one"], first=True)(graph)
    graph.node[2].input[1] = "one"


def sparse(graph):
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.array([2]))
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    add("Neg", ["thin"], ["out"])(graph)


def twice(graph):
    graph.initializer.add().CopyFrom(graph.initializer[0])


early = "expected a value computed before the node, got"
GRAPHS = {
    "undefined input": (
        add("Neg", ["nowhere"], ["out"]), f"out: X: {early} 'nowhere', which nothing computes"
    ),
    "undefined X": (reading(0, "nowhere"), f"Y: X: {early} 'nowhere', which nothing computes"),
    "undefined state": (
        lambda graph: graph.node[0].input.extend(["", "nowhere"]),
        f"Y: initial_h: {early} 'nowhere', which nothing computes",
    ),
    "no X": (reading(0, ""), "Y: X: expected a value, got none"),
    "no input": (add("Add", ["X", ""], ["out"]), "out: B: expected a value, got none"),
    "no value in a list": (
        add("Concat", ["X", ""], ["out"], axis=0), "out: inputs: expected a value, got none"
    ),
    "missing output": (
        lambda graph: graph.output.append(value("out")),
        "model: outputs: expected values of the graph, got 'out', which nothing computes",
    ),
    "unsorted": (
        add("Neg", ["Y"], ["out"], first=True), f"out: X: {early} 'Y', which is computed later"
    ),
    "cyclic weight": (cyclic, f"one: X: {early} 'other', which is computed later"),
    "reads itself": (
        add("Add", ["X", "out"], ["out"]), f"out: B: {early} 'out', which is computed later"
    ),
    "sparse initializer": (
        sparse, "model: initializers: expected dense ones, got the sparse 'thin'"
    ),
    "two initializers": (twice, "model: expected a unique name for each value, got 'W' twice"),
    "two outputs": (
        add("Neg", ["X"], ["Y"]), "Y: expected a unique name for each value, got 'Y' twice"
    ),
    "surplus inputs": (
        lambda graph: graph.node[0].input.extend(["", "", "X", "X"]),
        "Y: inputs: expected 3 to 6, got 8",
    ),
    "surplus outputs": (
        lambda graph: graph.node[0].output.append("Y_c"), "Y: outputs: expected 0 to 2, got 3"
    ),
    "too many inputs of another node": (
        add("Neg", ["X", "X"], ["out"]), "out: inputs: expected 1, got 2"
    ),
    "no attribute": (add("Concat", ["X"], ["out"]), "out: axis: expected INT, got none"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_wrong_graph(case):
    change, said = GRAPHS[case]
    assert message_of(ValueError, changed(change)) == said


def test_a_constant_without_a_value():
    model = changed(add("Constant", [], ["out"], first=True))
    model.graph.node[1].input[1] = "out"
    assert message_of(ValueError, model).startswith(
        "Y: W: expected a constant that the onnx package can compute, got 'out' of Constant ("
    )


TYPES = [
    ("activations", [1, 2], "expected STRINGS, got INTS"),
    ("activation_alpha", 0.5, "expected FLOATS, got FLOAT"),
    ("layout", 0.5, "expected INT, got FLOAT"),
    ("clip", "one", "expected FLOAT, got STRING"),
    ("direction", 1, "expected STRING, got INT"),
]


@pytest.mark.parametrize(("name", "given", "said"), TYPES)
def test_wrong_type_of_an_attribute(name, given, said):
    model, _ = problem("GRU", **{name: given})
    assert message_of(TypeError, model) == f"Y: {name}: {said}"


@pytest.mark.parametrize(
    ("op", "name"), [("GRU", "linear_before_reset"), ("LSTM", "input_forget"), ("RNN", "layout")]
)
def test_flags_are_0_or_1(op, name):
    model, _ = problem(op, **{name: 7})
    assert message_of(ValueError, model) == f"Y: {name}: expected 0 or 1, got 7"


def test_an_attribute_given_twice():
    model, _ = problem("GRU", clip=1.0)
    model.graph.node[0].attribute.append(helper.make_attribute("clip", 2.0))
    assert message_of(ValueError, model) == "Y: clip: expected one attribute, got two"


def test_wrong_bodies_of_an_if():
    def found(change):
        model, _ = branching("GRU")
        change(model.graph.node[1])
        return message_of(ValueError, model)

    assert found(lambda node: node.attribute.pop(0)) == (
        "choice: else_branch: expected GRAPH, got none"
    )
    assert found(lambda node: node.output.append("more")) == (
        "choice: else_branch: expected 2 outputs, got 1"
    )
    assert found(lambda node: node.attribute[1].g.input.append(value("more"))) == (
        "choice: then_branch: expected 0 inputs, got 1"
    )
    assert found(lambda node: node.attribute[1].g.node[0].input.__setitem__(0, "nowhere")) == (
        f"choice.then_branch/cell: X: {early} 'nowhere', which nothing computes"
    )
    assert found(lambda node: node.input.__setitem__(0, "")) == (
        "choice: cond: expected a value, got none"
    )


def test_wrong_bodies_of_a_loop():
    def found(change):
        model, _ = looping("GRU")
        change(model.graph.node[0])
        return message_of(ValueError, model)

    assert found(lambda node: node.attribute.pop()) == "loop: body: expected GRAPH, got none"
    assert found(lambda node: node.input.pop()) == "loop: body: expected 2 inputs, got 3"
    assert found(lambda node: node.input.__setitem__(2, "")) == (
        "loop: v_initial: expected a value, got none"
    )
    assert found(lambda node: node.output.pop()) == "loop: body: expected 2 outputs, got 3"
    assert found(lambda node: node.input.extend(["X", "X"])) == (
        "loop: outputs: expected 3 or more, as many as are carried, got 2"
    )


def test_what_is_no_file_of_onnx(tmp_path):
    (tmp_path / "notes.onnx").write_text("no model at all")
    found = message_of(ValueError, tmp_path / "notes.onnx")
    assert found.startswith(f"model: expected an ONNX file, got '{tmp_path / 'notes.onnx'}' (")
    with pytest.raises(FileNotFoundError):
        rk.onnx.load(tmp_path / "nothing.onnx")


def test_values_in_another_file(tmp_path):
    """`load` reads them with the model's file; a ModelProto must have them."""
    model, feeds = problem("GRU")
    want = rk.onnx.load(model).run(feeds)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="values")
    assert np.array_equal(rk.onnx.load(path).run(feeds)["Y"], want["Y"])
    found = message_of(ValueError, onnx.load(path, load_external_data=False))
    expected = "Y: W: expected values that the onnx package can read, got 'W' ("
    assert found.startswith(expected)
    (tmp_path / "values").unlink()
    assert message_of(ValueError, path).startswith(f"model: expected an ONNX file, got '{path}' (")


def test_unknown_types_of_elements():
    model, _ = problem("GRU")
    model.graph.initializer[0].data_type = 99
    expected = "Y: W: expected values that the onnx package can read, got 'W' ("
    assert message_of(ValueError, model).startswith(expected)
    model, _ = problem("GRU")
    for number, got in ((0, "none"), (99, "99")):
        model.graph.input[0].type.tensor_type.elem_type = number
        expected = f"inputs['X']: expected one of ONNX's types of elements, got {got}"
        assert message_of(ValueError, model) == expected


def test_a_value_of_another_node_that_cannot_be_read():
    model, _ = problem("GRU", outputs=["", "Y_h"])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(H, np.float32), "more"))
    model.graph.initializer[-1].raw_data = b"1"
    model.graph.output[0].name = "more"
    model.graph.output.append(value("Y_h"))
    expected = "expected values that the onnx package can read, got 'more' ("
    assert message_of(ValueError, model).startswith(expected)


def test_an_input_that_is_a_sequence():
    """It has no dtype to be checked, and is refused where a part would take it."""
    weights, feeds = weights_of("GRU"), feeds_of("GRU")
    nodes = [
        helper.make_node("SequenceAt", ["rows", "place"], ["X"]),
        node_of("GRU", {*weights, *feeds}, ["Y"], hidden_size=H),
    ]
    model = model_of(nodes, feeds, ["Y"], {**weights, "place": np.array(0)})
    model.graph.input[0].CopyFrom(
        helper.make_tensor_sequence_value_info("rows", TensorProto.FLOAT, None)
    )
    loaded = rk.onnx.load(model)
    with pytest.raises(TypeError, match=r"^rows: expected a tensor between parts of the model"):
        loaded.run({"rows": [feeds["X"]]})


def test_onnxs_domain_may_be_spelled_out():
    model, feeds = problem("LSTM")
    want = rk.onnx.load(model).run(feeds)
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    assert np.array_equal(rk.onnx.load(model).run(feeds)["Y"], want["Y"])


@pytest.mark.parametrize("model", [None, 7, b"", np.zeros(3)])
def test_what_is_no_model(model):
    kind = type(model).__name__
    assert message_of(TypeError, model) == (
        f"model: expected a path or an onnx.ModelProto, got {kind}"
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [[6, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1]])
def test_wrong_lengths(direction, lengths):
    model, feeds = problem("GRU", direction=direction, lengths=[5, 4, 3, 2])
    model.graph.input[1].CopyFrom(value("sequence_lens", TensorProto.INT32, ["rows"]))
    feeds["sequence_lens"] = np.array(lengths, np.int32)
    with pytest.raises(ValueError, match=r"^Y: (lengths|sequence_lens): expected "):
        rk.onnx.load(model).run(feeds)


def test_wrong_inputs():
    model, feeds = problem("LSTM", state=True, lengths=[5, 4, 3, 2])
    loaded = rk.onnx.load(model)

    def found(error, **changed):
        with pytest.raises(error) as caught:
            loaded.run({n: a for n, a in {**feeds, **changed}.items() if a is not None})
        return str(caught.value)

    names = "['X', 'initial_c', 'initial_h', 'sequence_lens']"
    fewer = names.replace("'X', ", "")
    assert found(ValueError, X=None) == f"inputs: expected {names}, got {fewer}"
    assert found(ValueError, W=feeds["X"]).startswith(f"inputs: expected {names}, got ['W', ")
    assert found(TypeError, X=feeds["X"].astype(np.float64)).startswith(
        "inputs['X']: expected an array of dtype float32, got float64"
    )
    assert found(ValueError, X=feeds["X"][:, :, :2]) == (
        f"inputs['X']: expected shape ({T}, {B}, {I}), got ({T}, {B}, 2)"
    )
    assert found(ValueError, X=feeds["X"][0]) == (
        f"inputs['X']: expected shape ({T}, {B}, {I}), got ({B}, {I})"
    )
    with pytest.raises(
        TypeError, match=r"^inputs: expected a mapping of names to arrays, got list"
    ):
        loaded.run([feeds["X"]])


INSIDE = [
    ("initial_h", ("Transpose", {"perm": [1, 0, 2]}), ValueError,
     f"Y: initial_h: expected shape (1, {B}, {H}), got ({B}, 1, {H})"),
    ("X", ("Flatten", {"axis": 1}), ValueError,
     f"Y: X: expected an array of three dimensions, got shape ({T}, {B * I})"),
    ("X", ("Transpose", {"perm": [0, 2, 1]}), ValueError, "Y: sequence_lens: expected shape"),
    ("X", ("Cast", {"to": TensorProto.DOUBLE}), TypeError, "Y: X: expected float32, got float64"),
    ("sequence_lens", ("Cast", {"to": TensorProto.INT64}), TypeError,
     "Y: sequence_lens: expected int32, got int64"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "said"), INSIDE)
def test_wrong_values_inside(name, change, error, said):
    """Of a node's inputs that other nodes compute: the message names the node."""
    weights, feeds = weights_of("GRU"), feeds_of("GRU", state=True, lengths=[5, 4, 3, 2])
    inputs = ["X", *weights, "sequence_lens", "initial_h"]
    nodes = [
        helper.make_node(change[0], [name], ["changed"], **change[1]),
        helper.make_node(
            "GRU", ["changed" if n == name else n for n in inputs], ["Y"], hidden_size=H
        ),
    ]
    loaded = rk.onnx.load(model_of(nodes, feeds, ["Y"], weights), engine="reference")
    with pytest.raises(error) as caught:
        loaded.run(feeds)
    assert str(caught.value).startswith(said)
