"""What a recurrent node of ONNX means: its attributes, weights and calls, in terms of layers.

Letters as everywhere: T time steps, B rows, I inputs, H hidden units, D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from ..inference import Inference
from ..layers import GRU, LSTM, RNN, _Layer
from ..reference import ACTIVATIONS

__all__ = ["KINDS", "SUFFIXES", "WEIGHTS", "Kind", "Recurrent", "kind_of", "weights_of"]

Array = NDArray[Any]

OLDEST_OPSET = 7  # before, the nodes had other attributes


class Kind(NamedTuple):
    """An operator of ONNX. Gates are letters, in ONNX's names."""

    layer: type[_Layer[Any]]
    gates: str  # in ONNX's order
    own: str  # in the layer's order
    activations: tuple[str, ...]  # of one direction
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h")
KINDS = {
    "RNN": Kind(RNN, "i", "i", ("Tanh",), _INPUTS, ("Y", "Y_h")),
    "GRU": Kind(GRU, "zrh", "rzh", ("Sigmoid", "Tanh"), _INPUTS, ("Y", "Y_h")),
    "LSTM": Kind(
        *(LSTM, "iofc", "ifco", ("Sigmoid", "Tanh", "Tanh")),
        *((*_INPUTS, "initial_c", "P"), ("Y", "Y_h", "Y_c")),
    ),
}
WEIGHTS = ("W", "R", "B", "P")
PEEPHOLES = "iof"  # the rows of P
MATRICES, BIASES = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")
SUFFIXES = ("_l0", "_l0_reverse")  # of a layer's parameters, by direction
ACTIVATION_NAMES = {name.casefold(): name for name in ACTIVATIONS}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def kind_of(node: onnx.NodeProto) -> Kind | None:
    """The operator of a recurrent node; None for all other nodes."""
    return KINDS.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def rows(values: Array, have: str, want: str) -> Array:
    """Blocks of rows in another order of gates; those that are not there are zero."""
    blocks = dict(zip(have, np.split(values, len(have)), strict=True))
    missing = np.zeros_like(blocks[have[0]])
    return np.concatenate([blocks.get(gate, missing) for gate in want])


def attributes_of(name: str, node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """The attributes of a recurrent node, of those that its operator has in that opset."""
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        expected = f"expected {OLDEST_OPSET} to {newest}, which this onnx {onnx.__version__} knows"
        raise ValueError(f"{name}: opset: {expected}, got {opset}")
    known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    found = {}
    for attribute in node.attribute:
        if attribute.name not in known:
            expected = f"expected an attribute of {node.op_type} in opset {opset}"
            raise ValueError(f"{name}: {expected}, got {attribute.name!r}")
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        found[attribute.name] = value
    return found


def activations_of(
    name: str, kind: Kind, attributes: Mapping[str, Any], directions: int
) -> list[tuple[Any, ...]]:
    """Those of each direction, as layers take them; constants go to those that have them."""
    count = len(kind.activations)
    names = [
        one.decode(errors="replace") if isinstance(one, bytes) else one
        for one in attributes.get("activations", kind.activations * directions)
    ]
    if len(names) != count * directions:
        expected = f"expected {count} for each of {directions} directions"
        raise ValueError(f"{name}: activations: {expected}, got {len(names)}")
    given = {
        constant: list(attributes.get(f"activation_{constant}", ()))
        for constant in ("alpha", "beta")
    }
    found = []
    for one in names:
        if one.casefold() not in ACTIVATION_NAMES:
            expected = f"expected one of {', '.join(ACTIVATIONS)}"
            raise ValueError(f"{name}: activations: {expected}, got {one!r}")
        function = ACTIVATION_NAMES[one.casefold()]
        constants = []
        for constant in fields(ACTIVATIONS[function]):
            left = given[constant.name]
            if not left and constant.default is MISSING:
                expected = f"expected a value for {function}"
                raise ValueError(f"{name}: activation_{constant.name}: {expected}, got none")
            constants.append(left.pop(0) if left else constant.default)
        found.append((function, *constants) if constants else function)
    for unused, left in given.items():
        if left:
            total = len(attributes[f"activation_{unused}"])
            expected = f"expected {total - len(left)} values, for the activations that have one"
            raise ValueError(f"{name}: activation_{unused}: {expected}, got {total}")
    return [tuple(found[d * count : (d + 1) * count]) for d in range(directions)]


def options_of(kind: Kind, attributes: Mapping[str, Any], activations: tuple[Any, ...]) -> Any:
    """The options of a layer's class, but for sizes and directions."""
    options: dict[str, Any] = {}
    if kind.layer is RNN and activations == ("Relu",):
        options["nonlinearity"] = "relu"
    elif activations != kind.activations:
        options["activations"] = activations
    if "clip" in attributes:
        options["forward_clip"] = attributes["clip"]
    if kind.layer is GRU:
        options["reset_after"] = bool(attributes.get("linear_before_reset", 0))
    if kind.layer is LSTM and attributes.get("input_forget", 0):
        options["input_forget"] = True
    return options


class Recurrent:
    """A recurrent node: its layers, and what calls them as ONNX calls the node.

    Parameters
    ----------
    name : str
        Of the node, for messages.
    node : NodeProto
    opset : int
        The version of ONNX's operators in the model.
    weights : mapping of str to ndarray
        W, R and, where the node has them, B and P.
    """

    def __init__(
        self, name: str, node: onnx.NodeProto, opset: int, weights: Mapping[str, Array]
    ) -> None:
        kind = kind_of(node)
        assert kind is not None
        self.name, self.kind = name, kind
        attributes = attributes_of(name, node, opset)
        direction = attributes.get("direction", "forward")
        if direction not in DIRECTIONS:
            expected = f"expected one of {', '.join(DIRECTIONS)}"
            raise ValueError(f"{name}: direction: {expected}, got {direction!r}")
        self.reverse = DIRECTIONS[direction]
        for flag in ("layout", "linear_before_reset", "input_forget"):
            if attributes.get(flag, 0) not in (0, 1):
                raise ValueError(f"{name}: {flag}: expected 0 or 1, got {attributes[flag]}")
        self.layout = int(attributes.get("layout", 0))
        self.dtype = weights["W"].dtype  # of the inputs and outputs
        #: What it reads when it runs, by ONNX's names of the inputs.
        self.reads = {
            name: value
            for name, value in zip(kind.inputs, node.input, strict=False)
            if value and name not in WEIGHTS
        }
        activations = activations_of(name, kind, attributes, len(self.reverse))
        self._check(weights, attributes)
        #: One layer for all directions, or one for each where their activations differ.
        self.parts = [(0, len(self.reverse))]
        if len(set(map(repr, activations))) > 1:
            self.parts = [(0, 1), (1, 2)]
        self.layers = [
            self._layer(weights, options_of(kind, attributes, activations[first]), first, last)
            for first, last in self.parts
        ]
        self.freeze()

    def freeze(self) -> None:
        """Pack the layers' parameters as they are now, for the calls to come."""
        self._calls: list[Inference[Any]] = [layer.freeze() for layer in self.layers]

    def thaw(self) -> None:
        """Let calls see what is written to the layers' parameters."""
        self._calls = list(self.layers)

    def _check(self, weights: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Refuse weights whose shapes and dtypes do not fit together."""
        D, G = len(self.reverse), len(self.kind.gates)
        W, R = weights["W"], weights["R"]
        H = attributes.get("hidden_size", R.shape[-1] if R.ndim == 3 else 0)
        inputs = W.shape[-1] if W.ndim == 3 else "I"
        shapes = {"W": (D, G * H, inputs), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
        for name, values in weights.items():
            if values.shape != shapes[name]:
                expected = f"expected shape {shapes[name]}"
                raise ValueError(f"{self.name}: {name}: {expected}, got {values.shape}")
            if values.dtype != self.dtype or not is_floating(values.dtype):
                floating = "float16, bfloat16, float32 or float64"
                expected = f"dtype {self.dtype} of W" if is_floating(self.dtype) else floating
                raise TypeError(f"{self.name}: {name}: expected {expected}, got {values.dtype}")

    def _layer(
        self, weights: Mapping[str, Array], options: dict[str, Any], first: int, last: int
    ) -> _Layer[Any]:
        kind = self.kind
        own, peepholes = orders(kind, options.get("input_forget", False))
        dtype = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)
        params = {}
        for d, suffix in zip(range(first, last), SUFFIXES, strict=False):
            one = {name: values[d].astype(dtype) for name, values in weights.items()}
            for name, values in zip(MATRICES, (one["W"], one["R"]), strict=True):
                params[name + suffix] = rows(values, kind.gates, own)
            if "B" in one:
                for name, values in zip(BIASES, np.split(one["B"], 2), strict=True):
                    params[name + suffix] = rows(values, kind.gates, own)
            if "P" in one:
                params["weight_ch" + suffix] = rows(one["P"], PEEPHOLES, peepholes)
        if "P" in weights:
            options = {**options, "peephole": True}
        try:
            layer: _Layer[Any] = kind.layer(
                *(weights["W"].shape[2], weights["R"].shape[2]),
                bias="B" in weights,
                batch_first=self.layout == 1,
                bidirectional=last - first == 2,
                reverse=self.reverse[first:last] == (True,),
                dtype=dtype,
                params=params,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from error
        return layer

    def weights(self) -> dict[str, Array]:
        """W, R, B and P of the layers' parameters as they are now."""
        found: dict[str, list[Array]] = {}
        for layer, (first, last) in zip(self.layers, self.parts, strict=True):
            for suffix in SUFFIXES[: last - first]:
                for name, values in weights_of(self.kind, layer, suffix).items():
                    found.setdefault(name, []).append(values)
        return {name: np.stack(each).astype(self.dtype) for name, each in found.items()}

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """The node's outputs, by ONNX's names.

        Parameters
        ----------
        given : mapping of str to ndarray
            X and, where the node has them, sequence_lens, initial_h and initial_c.
        """
        for name, values in given.items():
            wanted = np.dtype(np.int32) if name == "sequence_lens" else self.dtype
            if values.dtype != wanted:
                raise TypeError(f"{self.name}: {name}: expected {wanted}, got {values.dtype}")
        X, lengths = given["X"], given.get("sequence_lens")
        if X.ndim != 3:
            expected = "expected an array of three dimensions"
            raise ValueError(f"{self.name}: X: {expected}, got shape {X.shape}")
        batch = X.shape[1 - self.layout]
        if lengths is not None and lengths.shape != (batch,):
            expected = f"expected shape ({batch},)"
            raise ValueError(f"{self.name}: sequence_lens: {expected}, got {lengths.shape}")
        states = [
            self._initial(name, given.get(name), batch) for name in self.kind.inputs if "l_" in name
        ]
        results = []
        x = X.astype(self.layers[0].dtype, copy=False)
        for call, (first, last) in zip(self._calls, self.parts, strict=True):
            own = [np.ascontiguousarray(state[first:last]) for state in states]
            try:
                results.append(self._run(call, x, own, lengths))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.name}: {error}") from error
        found = results[0]
        if len(results) > 1:
            found = [np.concatenate(each, axis=0) for each in zip(*results, strict=True)]
        if self.layout == 0:
            found[0] = found[0].swapaxes(0, 1)  # (T, D, B, H) from (D, T, B, H)
        else:
            found = [found[0].transpose(1, 2, 0, 3), *(a.swapaxes(0, 1) for a in found[1:])]
        names = self.kind.outputs
        return {
            name: np.ascontiguousarray(values).astype(self.dtype, copy=False)
            for name, values in zip(names, found, strict=True)
        }

    def _initial(self, name: str, values: Array | None, batch: int) -> Array:
        """An initial state (D, B, H) in the layer's dtype."""
        layer = self.layers[0]
        shape = (len(self.reverse), batch, layer.hidden_size)
        if values is None:
            return np.zeros(shape, layer.dtype)
        wanted = shape if self.layout == 0 else (shape[1], shape[0], shape[2])
        if values.shape != wanted:
            raise ValueError(f"{self.name}: {name}: expected shape {wanted}, got {values.shape}")
        if self.layout == 1:
            values = values.swapaxes(0, 1)
        return values.astype(layer.dtype, copy=False)

    def _run(
        self, call: Inference[Any], x: Array, states: list[Array], lengths: Array | None
    ) -> list[Array]:
        """Y (D, T, B, H), or (D, B, T, H) in layout 1, and the final states (D, B, H)."""
        y, last = call(x, tuple(states) if len(states) == 2 else states[0], lengths)
        D, _, H = states[0].shape
        Y = y.reshape(*y.shape[:2], D, H).transpose(2, 0, 1, 3)
        return [Y, *(last if isinstance(last, tuple) else (last,))]


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of the floating-point types of ONNX's recurrent operators."""
    return dtype.name in ("float16", "bfloat16", "float32", "float64")


def orders(kind: Kind, input_forget: bool) -> tuple[str, str]:
    """The rows of a layer's matrices, and those of its peepholes."""
    return (kind.own.replace("f", ""), "io") if input_forget else (kind.own, "ifo")


def weights_of(kind: Kind, layer: _Layer[Any], suffix: str) -> dict[str, Array]:
    """W, R, B and P of one layer and direction; `suffix` ends its parameters' names."""
    own, peepholes = orders(kind, getattr(layer, "input_forget", False))
    params = dict(layer._checked_params())
    W, R = (rows(params[name + suffix], own, kind.gates) for name in MATRICES)
    found = {"W": W, "R": R}
    if layer.bias:
        each = [rows(params[name + suffix], own, kind.gates) for name in BIASES]
        found["B"] = np.concatenate(each)
    if getattr(layer, "peephole", False):
        found["P"] = rows(params["weight_ch" + suffix], peepholes, PEEPHOLES)
    return found
