"""The graphs of an ONNX model: the main one and the bodies of nodes, and constants in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

__all__ = ["Region", "constants_as_initializers", "dtype_of", "part_of", "values_of"]

Array = NDArray[Any]

# Operators whose results differ from call to call.
RANDOM = {"Bernoulli", "Dropout", "Multinomial"} | {
    f"Random{name}{like}" for name in ("Normal", "Uniform") for like in ("", "Like")
}
# The attributes of Constant that hold its value, but for strings and sparse tensors.
DTYPES: dict[str, Any] = {
    "value": None,
    **dict.fromkeys(("value_float", "value_floats"), np.float32),
    **dict.fromkeys(("value_int", "value_ints"), np.int64),
}


class Region:
    """A graph, and the graph around it, whose values it sees.

    Parameters
    ----------
    graph : GraphProto
    around : Region, optional
        None for the model's main graph.
    path : str
        How messages name it: the nodes and attributes that lead to it.
    """

    def __init__(
        self, graph: onnx.GraphProto, around: Region | None = None, path: str = ""
    ) -> None:
        self.graph, self.around, self.path = graph, around, path
        self.depth: int = 0 if around is None else around.depth + 1
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.initializers]
        self.outputs = [o.name for o in graph.output]
        #: The node that computes a value, by its place.
        self.producers = {o: i for i, node in enumerate(self.nodes) for o in node.output if o}
        #: The bodies of each node that has some, by the node's place and the attribute.
        self.bodies: dict[int, dict[str, Region]] = {}
        for i, node in enumerate(self.nodes):
            bodies = {
                attribute.name: Region(attribute.g, self, f"{path}{self.name(i)}.{attribute.name}/")
                for attribute in node.attribute
                if attribute.type == onnx.AttributeProto.GRAPH
            }
            if bodies:
                self.bodies[i] = bodies

    def name(self, i: int) -> str:
        """The name of a node; without one, that of its first output."""
        return str(self.nodes[i].name) or self.output(i)

    def output(self, i: int) -> str:
        """The name of a node's first output; without one, that of its operator."""
        node = self.nodes[i]
        return str(next((o for o in node.output if o), node.op_type))

    def names(self) -> set[str]:
        """The names of all values of this region and of those inside it, and those they read."""
        found: set[str] = set()
        for region in self.regions():
            found |= {one.name for one in region.graph.input} | set(region.outputs)
            found |= region.initializers.keys()
            found.update(*(node.input for node in region.nodes))
            found.update(*(node.output for node in region.nodes))
        return found

    def regions(self) -> Iterator[Region]:
        """This region and those inside it."""
        yield self
        for bodies in self.bodies.values():
            for body in bodies.values():
                yield from body.regions()

    def reads(self, i: int) -> set[str]:
        """The values that a node reads, itself and in its bodies."""
        found = {name for name in self.nodes[i].input if name}
        for body in self.bodies.get(i, {}).values():
            found |= body.captured()
        return found

    def captured(self) -> set[str]:
        """The values that this region reads of those around it."""
        found = set(self.outputs).union(*(self.reads(i) for i in range(len(self.nodes))))
        return found - self.producers.keys() - self.initializers.keys() - set(self.inputs)

    def owner(self, name: str) -> Region | None:
        """The innermost region that has a value of this name, from this one outward."""
        region: Region | None = self
        while region is not None:
            if name in region.initializers or name in region.producers or name in region.inputs:
                return region
            region = region.around
        return None

    def constant(self, name: str, model: onnx.ModelProto) -> Array:
        """The value of a name that depends on no input.

        Parameters
        ----------
        name : str
        model : ModelProto
            Whose opsets hold.

        Raises
        ------
        ValueError
            If it depends on an input or on chance, is not there, or is computed by an operator
            that the onnx package does not evaluate.
        """
        found: dict[tuple[int, int], onnx.NodeProto] = {}  # by the region's depth, and the place
        initializers: dict[str, onnx.TensorProto] = {}
        left = [(self, name)]
        while left:
            region, needed = left.pop()
            owner = region.owner(needed)
            if owner is None:
                raise ValueError(f"expected a constant, got {needed!r}, which nothing computes")
            if needed in owner.initializers:
                initializers[needed] = owner.initializers[needed]
                continue
            if needed in owner.inputs:
                got = f"got one that depends on the input {needed!r}"
                raise ValueError(f"expected a constant, {got}")
            i = owner.producers[needed]
            if (owner.depth, i) in found:
                continue
            if owner.nodes[i].op_type in RANDOM:
                got = f"got one that depends on {owner.nodes[i].op_type}"
                raise ValueError(f"expected a constant, {got}")
            found[owner.depth, i] = owner.nodes[i]
            left += [(owner, read) for read in sorted(owner.reads(i))]

        if not found:
            return values_of(initializers[name])
        # All regions are around this one: what an outer one computes, it computes before the inner.
        nodes = [found[place] for place in sorted(found)]
        part = part_of(model, nodes, [], [name], list(initializers.values()))
        try:
            (value,) = ReferenceEvaluator(part).run(None, {})
        except Exception as error:  # whatever an operator's own code raises
            operators = ", ".join(sorted({node.op_type for node in nodes}))
            raise ValueError(
                f"expected a constant that the onnx package can compute, got {name!r} of "
                f"{operators} ({type(error).__name__}: {error})"
            ) from error
        return np.asarray(value)


def dtype_of(name: str, kind: Any) -> np.dtype[Any]:
    """The dtype of a declared tensor."""
    if kind.elem_type not in onnx.helper.get_all_tensor_dtypes():
        expected = "expected one of ONNX's types of elements"
        raise ValueError(f"{name}: {expected}, got {kind.elem_type or 'none'}")
    found: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return found


def values_of(tensor: onnx.TensorProto) -> Array:
    """The values of an initializer."""
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # of a wrong type or size, or in a file that was not read
        kind = type(error).__name__
        raise ValueError(
            f"expected values that the onnx package can read, got {tensor.name!r} ({kind}: {error})"
        ) from error


def constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Replace the Constant nodes of a graph and of the bodies in it.

    What reads an initializer can have a copy; what reads a node's output depends on the node.
    """
    kept = onnx.GraphProto()
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                constants_as_initializers(attribute.g)
        constant = node.op_type == "Constant" and not node.domain and node.attribute
        kind = node.attribute[0].name if constant else ""
        if kind in DTYPES:
            value = onnx.helper.get_attribute_value(node.attribute[0])
            tensor = graph.initializer.add()
            if kind == "value":
                tensor.CopyFrom(value)
            else:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(value, DTYPES[kind])))
            tensor.name = node.output[0]
        else:
            kept.node.append(node)
    graph.ClearField("node")
    graph.node.extend(kept.node)


def part_of(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[str],
    initializers: list[onnx.TensorProto],
) -> onnx.ModelProto:
    """A model of some nodes of another, whose opsets it has."""
    graph = onnx.helper.make_graph(
        nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], initializers
    )
    return onnx.helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
