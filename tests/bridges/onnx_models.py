"""ONNX models of one recurrent node with random weights, and what runs them."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
OUTPUTS = {"RNN": ["Y", "Y_h"], "GRU": ["Y", "Y_h"], "LSTM": ["Y", "Y_h", "Y_c"]}
INPUTS = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
INPUTS = {"RNN": INPUTS[:6], "GRU": INPUTS[:6], "LSTM": INPUTS}
T, B, I, H = 5, 4, 3, 6

# Of the largest value. The sums here have up to 20 terms, each step adds a rounding, and ONNX
# Runtime's sigmoid and tanh are off by up to 4 ULP; the worst measured was 1e-6.
TOLERANCE = 1e-5


def weights_of(op, directions=1, *, bias=True, peephole=False, dtype=np.float32, seed=0):
    """W, R and, where asked for, B and P."""
    rng, G = np.random.default_rng(seed), GATES[op]
    shapes = {"W": (directions, G * H, I), "R": (directions, G * H, H)}
    if bias:
        shapes["B"] = (directions, 2 * G * H)
    if peephole:
        shapes["P"] = (directions, 3 * H)
    return {n: rng.normal(scale=0.4, size=shape).astype(dtype) for n, shape in shapes.items()}


def feeds_of(op, directions=1, *, lengths=None, state=False, layout=0, dtype=np.float32, seed=1):
    """The inputs of a model of one node."""
    rng = np.random.default_rng(seed)
    feeds = {"X": rng.normal(size=(T, B, I))}
    for name in ("initial_h", "initial_c")[: len(OUTPUTS[op]) - 1] if state else ():
        feeds[name] = rng.normal(size=(directions, B, H))
    feeds = {n: (a.swapaxes(0, 1) if layout else a).astype(dtype) for n, a in feeds.items()}
    if lengths is not None:
        feeds["sequence_lens"] = np.array(lengths, np.int32)
    return feeds


def node_of(op, names, outputs=None, **attributes):
    """A recurrent node that reads those of its inputs that are in `names`."""
    inputs = [name if name in names else "" for name in INPUTS[op]]
    while not inputs[-1]:
        inputs.pop()
    return helper.make_node(op, inputs, outputs or OUTPUTS[op], **attributes)


def values_of(feeds):
    """Declarations of the inputs."""
    types = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in feeds.items()}
    return [helper.make_tensor_value_info(n, types[n], a.shape) for n, a in feeds.items()]


def model_of(nodes, feeds, outputs, constants, opset=14, functions=()):
    """A model whose outputs have the type of the first input."""
    inputs = values_of(feeds)
    kind = inputs[0].type.tensor_type.elem_type
    results = [helper.make_tensor_value_info(n, kind, None) for n in outputs if n]
    graph = helper.make_graph(
        *(nodes, "graph", inputs, results),
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(f.domain, 1) for f in functions]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def problem(
    op, *, opset=14, outputs=None, bias=True, peephole=False, lengths=None, state=False,
    dtype=np.float32, weight_dtype=None, **attributes,
):  # fmt: skip
    """A model of one node, and its inputs."""
    D = 2 if attributes.get("direction") == "bidirectional" else 1
    layout = attributes.get("layout", 0)
    weights = weights_of(op, D, bias=bias, peephole=peephole, dtype=weight_dtype or dtype)
    feeds = feeds_of(op, D, lengths=lengths, state=state, layout=layout, dtype=dtype)
    node = node_of(op, {*weights, *feeds}, outputs, hidden_size=H, **attributes)
    return model_of([node], feeds, node.output, weights, opset), feeds


def runtime(model, feeds):
    """The outputs by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def assert_close(got, want, tolerance=TOLERANCE):
    """Compare outputs by name: shapes, dtypes and values, to a part of the largest value."""
    assert list(got) == list(want)
    for name, values in want.items():
        assert got[name].shape == values.shape, name
        assert got[name].dtype == values.dtype, name
        size = max(np.abs(values).max(initial=0.0), 1.0)
        worst = np.abs(got[name] - values).max(initial=0.0)
        assert worst <= tolerance * size, f"{name}: off by {worst:.3g}, of {size:.3g}"
