"""What must hold of a graph before it is split: names, order, arguments, attributes and bodies.

These are the rules of ONNX on which the code that splits and runs a graph depends. What they leave
open, such as types and shapes, is checked by what runs the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import onnx

from .graph import Region

__all__ = ["check"]

MANY = 2**31 - 1  # what a schema has as the most arguments where their number is open


def check(region: Region, opsets: Mapping[str, int], visible: Set[str] = frozenset[str]()) -> None:
    """Refuse a graph that is not ONNX's.

    Parameters
    ----------
    region : Region
        The bodies in it are checked, too.
    opsets : mapping of str to int
        The version of each domain; that of ONNX itself is "ai.onnx".
    visible : set of str
        The values of the graphs around it that are computed before it.

    Raises
    ------
    TypeError, ValueError
        If a name is missing or not unique, a node is used before it is computed, or a node's
        arguments, attributes or bodies are not those of its operator. The message names the node,
        the argument or attribute, what was expected and what it is.
    """
    where = region.path.removesuffix("/") or "model"
    for sparse in region.graph.sparse_initializer:
        got = f"got the sparse {sparse.values.name!r}"
        raise ValueError(f"{where}: initializers: expected dense ones, {got}")
    made: set[str] = set()  # here
    for name in [*region.inputs, *(tensor.name for tensor in region.graph.initializer)]:
        once(where, name, made)
    seen = {*visible, *made}
    for i, node in enumerate(region.nodes):
        place = f"{region.path}{region.name(i)}"
        schema = schema_of(node, opsets)
        if schema is not None:
            check_arguments(place, node, schema)
            check_attributes(place, node, schema)
        for k, name in enumerate(node.input):
            if name and name not in seen:
                expected = "expected a value computed before the node"
                got = f"got {name!r}, which {why_not(region, name)}"
                raise ValueError(f"{place}: {argument(schema, k)}: {expected}, {got}")
        bodies = region.bodies.get(i, {})
        check_bodies(place, node, bodies)
        for body in bodies.values():
            check(body, opsets, seen)
        for name in filter(None, node.output):
            once(place, name, made)
            seen.add(name)
    for name in region.outputs:
        if name not in seen:
            got = f"got {name!r}, which {why_not(region, name)}"
            raise ValueError(f"{where}: outputs: expected values of the graph, {got}")


def once(place: str, name: str, made: set[str]) -> None:
    """Note a name; refuse one that the graph has already."""
    if name in made:
        raise ValueError(f"{place}: expected a unique name for each value, got {name!r} twice")
    made.add(name)


def why_not(region: Region, name: str) -> str:
    """Why a value is not there."""
    return "nothing computes" if region.owner(name) is None else "is computed later"


def schema_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """ONNX's definition of a node's operator; None for operators of others."""
    domain = node.domain or "ai.onnx"
    try:
        return onnx.defs.get_schema(
            node.op_type, opsets.get(domain, 0), "" if domain == "ai.onnx" else domain
        )
    except onnx.defs.SchemaError:
        return None


def argument(schema: onnx.defs.OpSchema | None, k: int) -> str:
    """The name of a node's input, as its operator has it."""
    if schema is None:
        return f"input {k}"
    return str(schema.inputs[min(k, len(schema.inputs) - 1)].name)


def check_arguments(place: str, node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Refuse a wrong number of inputs or outputs, and inputs left out that must be there."""
    option = onnx.defs.OpSchema.FormalParameterOption
    for k, formal in enumerate(schema.inputs):
        given = list(node.input[k:])  # from there on
        one = formal.option == option.Single and not (given and given[0])
        if one or (formal.option == option.Variadic and "" in given):
            raise ValueError(f"{place}: {formal.name}: expected a value, got none")
    for what, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            expected = f"{least} to {most}" if least < most else f"{most}"
            expected = f"{least} or more" if most >= MANY else expected
            raise ValueError(f"{place}: {what}: expected {expected}, got {count}")


def check_attributes(place: str, node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Refuse attributes of wrong types, given twice, or left out that must be there."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.name in names:
            raise ValueError(f"{place}: {attribute.name}: expected one attribute, got two")
        names.add(attribute.name)
        formal = schema.attributes.get(attribute.name)
        if formal is not None and attribute.type != type_of(formal):
            got = onnx.AttributeProto.AttributeType.Name(attribute.type)
            raise TypeError(f"{place}: {attribute.name}: expected {formal.type.name}, got {got}")
    for name, formal in schema.attributes.items():
        if formal.required and name not in names:
            raise ValueError(f"{place}: {name}: expected {formal.type.name}, got none")


def type_of(formal: Any) -> int:
    """An attribute's type by its definition, as attributes say it."""
    return int(formal.type.value)


def check_bodies(place: str, node: onnx.NodeProto, bodies: Mapping[str, Region]) -> None:
    """Refuse bodies of If and Loop whose values are not as many as the node's."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("If", "Loop"):
        return
    inputs, outputs = 0, len(node.output)
    if node.op_type == "Loop":
        carried = len(node.input) - 2  # but for the limit and the condition
        if outputs < carried:
            or_more = f"expected {carried} or more, as many as are carried"
            raise ValueError(f"{place}: outputs: {or_more}, got {outputs}")
        inputs, outputs = len(node.input), 1 + outputs
    for name, body in bodies.items():
        for what, expected, count in (
            ("inputs", inputs, len(body.graph.input)),
            ("outputs", outputs, len(body.outputs)),
        ):
            if count != expected:
                raise ValueError(f"{place}: {name}: expected {expected} {what}, got {count}")
