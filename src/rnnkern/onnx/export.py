"""Layers as ONNX models."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..checks import flag
from ..layers import GRU, LSTM, RNN, _Layer
from .nodes import KINDS, SUFFIXES, Kind, weights_of

__all__ = ["export"]

Array = NDArray[Any]

OPSET, IR_VERSION = 14, 8  # which runtimes of the last years read


def export(
    layer: _Layer[Any],
    path: str | os.PathLike[str] | None = None,
    *,
    state: bool = False,
    lengths: bool = False,
) -> onnx.ModelProto:
    """Write a layer as an ONNX model that gives what calling the layer gives.

    Each layer of a stack is one node. The model has opset 14 and these values, in the layer's dtype
    and laid out as the layer has them (``batch_first``): the inputs ``x`` and, where asked for,
    ``lengths`` (B,), int32, and the initial state ``initial_h``, of an LSTM ``initial_c``, too; the
    outputs ``y``, ``h`` and, of an LSTM, ``c``. T and B are left open.

    ONNX Runtime's values differ from this package's by its approximations of sigmoid and tanh, and
    by the order of its sums: for float32 by less than 1e-5 of the largest value over a hundred
    steps, in all of our tests. It has no LSTM, GRU or RNN in float64; `load` and the evaluator of
    the onnx package have.

    ONNX stores attributes in float32. So `forward_clip` and the constants of activations are
    rounded to float32, and a float64 layer's values differ from its model's by the effect of that
    rounding.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Dropout and `recurrent_dropout` act in training alone, so they are not written.
    path : path, optional
        The file to write. If not given, nothing is written.
    state : bool
        Whether the model takes an initial state. If not, it is zero.
    lengths : bool
        Whether the model takes lengths. ONNX Runtime returns zeros as the final state of a row of
        length 0; the layer returns the initial state.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    TypeError, ValueError
        If ONNX has no such layer. Those are all but `RNN`, `LSTM` and `GRU`, ensembles, and layers
        with ``proj_size``, ``cell_clip``, ``layer_norm``, ``zoneout`` or ``compute``. Nothing is
        written then.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk, rnnkern.onnx
    >>> lstm = rk.LSTM(3, 5, num_layers=2, bidirectional=True, seed=0)
    >>> proto = rk.onnx.export(lstm, state=True)
    >>> [node.op_type for node in proto.graph.node if node.op_type == "LSTM"]
    ['LSTM', 'LSTM']
    >>> [value.name for value in proto.graph.input]
    ['x', 'initial_h', 'initial_c']
    """
    proto = _Graph(layer, operator_of(layer)).model(flag("state", state), flag("lengths", lengths))
    if path is not None:
        onnx.save(proto, path)
    return proto


def operator_of(layer: Any) -> str:
    """ONNX's operator that does all that a layer does."""
    operators = {kind.layer: name for name, kind in KINDS.items()}
    found = next((name for cls, name in operators.items() if isinstance(layer, cls)), None)
    if found is None:
        names = ", ".join(cls.__name__ for cls in operators)
        hint = " (its as_layer() gives one)" if hasattr(layer, "as_layer") else ""
        got = f"{type(layer).__name__}{hint}"
        raise TypeError(f"layer: expected one of rnnkern's {names}, got {got}")
    for option in ("ensemble", "proj_size", "cell_clip", "layer_norm", "zoneout", "compute"):
        value = getattr(layer, option, None)
        if value not in (None, 0, (0, 0)):
            expected = f"expected one without {option}, which ONNX's operators do not have"
            raise ValueError(f"layer: {expected}, got {option}={value!r}")
    return found


def attributes_of(layer: Any, kind: Kind, directions: int) -> dict[str, Any]:
    """The attributes of a layer's nodes."""
    found: dict[str, Any] = {"hidden_size": layer.hidden_size}
    one_way = "reverse" if layer.reverse else "forward"
    found["direction"] = "bidirectional" if directions == 2 else one_way
    used = [(name,) for name in kind.activations]
    if layer.activations is not None:
        used = [(one.name, *one.of) for one in layer._cell.activations]
    elif isinstance(layer, RNN):
        used = [(layer.nonlinearity.capitalize(),)]
    if [name for name, *_ in used] != list(kind.activations):
        found["activations"] = [name for name, *_ in used] * directions
        for place, constant in ((1, "alpha"), (2, "beta")):
            values = [one[place] for one in used if len(one) > place] * directions
            if values:
                found[f"activation_{constant}"] = values
    if layer.forward_clip is not None:
        found["clip"] = float(layer.forward_clip)
    if isinstance(layer, GRU):
        found["linear_before_reset"] = int(layer.reset_after)
    if isinstance(layer, LSTM):
        found["input_forget"] = int(layer.input_forget)
    return found


class _Graph:
    """The nodes and constants of a model that is being written."""

    def __init__(self, layer: Any, operator: str) -> None:
        self.layer, self.operator, self.kind = layer, operator, KINDS[operator]
        self.directions = 1 + layer.bidirectional
        self.attributes = attributes_of(layer, self.kind, self.directions)
        self.type = helper.np_dtype_to_tensor_dtype(layer.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def constant(self, name: str, values: Any) -> str:
        self.constants[name] = np.asarray(values)
        return name

    def model(self, state: bool, lengths: bool) -> onnx.ModelProto:
        """The whole model."""
        layer, D, H = self.layer, self.directions, self.layer.hidden_size
        names = ["h", "c"] if isinstance(layer, LSTM) else ["h"]
        L, sequence = layer.num_layers, ["B", "T"] if layer.batch_first else ["T", "B"]
        inputs = [self.value("x", [*sequence, layer.input_size])]
        if lengths:
            inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
        initial = []
        for name in names if state else ():
            inputs.append(self.value(f"initial_{name}", [L * D, "B", H]))
            parts = [f"initial_{name}"]
            if L > 1:
                parts = [f"initial_{name}_{k}" for k in range(L)]
                sizes = self.constant("directions", np.full(L, D))
                self.add("Split", [f"initial_{name}", sizes], parts, axis=0)
            initial.append(parts)
        last = self.stack(names, initial, "lengths" if lengths else "")
        outputs = [self.value("y", [*sequence, D * H])]
        outputs += [self.value(name, [L * D, "B", H]) for name in names]
        if layer.batch_first:
            self.add("Transpose", [last], ["y"], perm=[1, 0, 2])
        else:
            self.add("Identity", [last], ["y"])
        graph = helper.make_graph(
            *(self.nodes, type(layer).__name__, inputs, outputs),
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="rnnkern",
        )

    def value(self, name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.type, shape)

    def stack(self, names: list[str], initial: list[list[str]], lengths: str) -> str:
        """All layers; returns the last one's output, (T, B, D*H)."""
        layer, x = self.layer, "x"
        if layer.batch_first:
            self.add("Transpose", ["x"], ["x_by_time"], perm=[1, 0, 2])
            x = "x_by_time"
        finals: list[list[str]] = [[] for _ in names]
        width = self.constant("width", np.array([0, 0, self.directions * layer.hidden_size]))
        for k in range(layer.num_layers):
            last = [f"{name}_{k}" if layer.num_layers > 1 else name for name in names]
            given = {"X": x, "sequence_lens": lengths, **self.weights(k)}
            given |= {f"initial_{n}": parts[k] for n, parts in zip(names, initial, strict=False)}
            inputs = [given.get(name, "") for name in self.kind.inputs]
            self.add(
                *(self.operator, inputs, [f"Y_{k}", *last]),
                name=f"layer_{k}",
                **self.attributes,
            )
            self.add("Transpose", [f"Y_{k}"], [f"Y_{k}_by_row"], perm=[0, 2, 1, 3])
            self.add("Reshape", [f"Y_{k}_by_row", width], [f"y_{k}"])
            y = f"y_{k}"
            if layer.residual and k:
                y = f"y_{k}_with_input"
                self.add("Add", [f"y_{k}", x], [y])
            x = y
            for found, one in zip(finals, last, strict=True):
                found.append(one)
        for name, found in zip(names, finals, strict=True):
            if layer.num_layers > 1:
                self.add("Concat", found, [name], axis=0)
        return x

    def weights(self, k: int) -> dict[str, str]:
        """The names of the weights of one layer, which become constants."""
        suffixes = [suffix.replace("_l0", f"_l{k}") for suffix in SUFFIXES[: self.directions]]
        each = [weights_of(self.kind, self.layer, suffix) for suffix in suffixes]
        return {
            name: self.constant(f"layer_{k}.{name}", np.stack([one[name] for one in each]))
            for name in each[0]
        }
