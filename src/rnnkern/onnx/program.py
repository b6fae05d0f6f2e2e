"""A graph as a list of steps: recurrent nodes, bodies that hold some, and parts without any."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from .engines import Runner, value_info
from .graph import Region, dtype_of, part_of, values_of
from .nodes import Recurrent

__all__ = ["Program", "Recurrents", "live", "reads"]

Values = ChainMap[str, Any]  # by name; those of a body stand before those of the graphs around it
Recurrents = Mapping[tuple[Region, int], Recurrent]  # by where the node stands
Engine = Callable[[onnx.ModelProto], Runner]

WITH_BODIES = ("If", "Loop")


def reads(region: Region, i: int, recurrents: Recurrents) -> set[str]:
    """The values that a node reads when it runs: no weights of recurrent nodes, also in bodies."""
    recurrent = recurrents.get((region, i))
    if recurrent is not None:
        return set(recurrent.reads.values())
    found = {name for name in region.nodes[i].input if name}
    for body in region.bodies.get(i, {}).values():
        read = set(body.outputs).union(
            *(reads(body, k, recurrents) for k in live(body, recurrents))
        )
        found |= read - body.producers.keys() - body.initializers.keys() - set(body.inputs)
    return found


def live(region: Region, recurrents: Recurrents) -> list[int]:
    """The nodes on which the outputs depend, in order."""
    needed, found = set(region.outputs), []
    for i in reversed(range(len(region.nodes))):
        if needed.intersection(region.nodes[i].output):
            needed |= reads(region, i, recurrents)
            found.append(i)
    return found[::-1]


class Program:
    """What runs a region.

    Nodes without recurrent nodes in their bodies are gathered into as few parts as the order
    allows: a part has all nodes that depend on equally many recurrent nodes in a row.

    Parameters
    ----------
    region : Region
    recurrents : mapping of (Region, int) to Recurrent
        The recurrent nodes of the whole model.
    model : ModelProto
        Whose opsets hold.
    engine : callable
        What makes a runner of a part.
    """

    def __init__(
        self, region: Region, recurrents: Recurrents, model: onnx.ModelProto, engine: Engine
    ) -> None:
        self.region, self._context = region, (recurrents, model, engine)
        inside = {of for of, _ in recurrents}
        levels: dict[str, int] = {}
        plan: dict[int, tuple[list[int], list[int]]] = {}  # by level: of parts, and other nodes
        kept = live(region, recurrents)
        for i in kept:
            bodies = region.bodies.get(i, {}).values()
            alone = (region, i) in recurrents or any(inside & {*b.regions()} for b in bodies)
            level = max((levels.get(n, 0) for n in reads(region, i, recurrents)), default=0)
            plan.setdefault(level, ([], []))[alone].append(i)
            levels |= dict.fromkeys(region.nodes[i].output, level + alone)
        read = {i: reads(region, i, recurrents) for i in kept}
        self.steps: list[Callable[[Values], None]] = []
        visible: set[str] = set(region.outputs)  # to others than the parts
        for _, (part, others) in sorted(plan.items()):
            if part:
                outside = set(region.outputs).union(*(read[i] for i in kept if i not in part))
                made = [o for i in part for o in region.nodes[i].output if o in outside]
                self.steps.append(_Part(region, part, made, model, engine))
            self.steps += [self._step(i) for i in others]
            visible.update(*(read[i] for i in others))
        owners = {name: region.owner(name) for name in visible}
        self.constants = {
            name: values_of(owner.initializers[name])
            for name, owner in owners.items()
            if owner is not None and name in owner.initializers
        }

    def run(self, around: Values, inputs: Mapping[str, Any]) -> list[Any]:
        """The region's outputs."""
        values = around.new_child({**self.constants, **inputs})
        for step in self.steps:
            step(values)
        return [values[name] for name in self.region.outputs]

    def _step(self, i: int) -> Callable[[Values], None]:
        node, recurrent = self.region.nodes[i], self._context[0].get((self.region, i))
        if recurrent is not None:
            return _Call(recurrent, node)
        if node.op_type not in WITH_BODIES or node.domain not in ("", "ai.onnx"):
            name = f"{self.region.path}{self.region.name(i)}"
            expected = f"expected recurrent nodes in bodies of {' and '.join(WITH_BODIES)} alone"
            raise ValueError(f"{name}: {expected}, got one in a body of {node.op_type}")
        bodies = {n: Program(body, *self._context) for n, body in self.region.bodies[i].items()}
        return _If(node, bodies) if node.op_type == "If" else _Loop(node, bodies["body"])


class _Call:
    """A recurrent node."""

    def __init__(self, recurrent: Recurrent, node: onnx.NodeProto) -> None:
        self.recurrent, self.outputs = recurrent, list(node.output)

    def __call__(self, values: Values) -> None:
        given = {name: values[value] for name, value in self.recurrent.reads.items()}
        for name, found in zip(self.outputs, self.recurrent(given).values(), strict=False):
            if name:
                values[name] = found


class _Part:
    """Some of a region's nodes, run by an engine; made at the first run, which tells the types."""

    def __init__(
        self,
        region: Region,
        places: list[int],
        outputs: list[str],
        model: onnx.ModelProto,
        engine: Engine,
    ) -> None:
        self.nodes = [region.nodes[i] for i in places]
        made = {name for node in self.nodes for name in node.output}
        self.inputs, self.initializers = [], []
        for name in sorted(set().union(*(region.reads(i) for i in places)) - made):
            owner = region.owner(name)
            if owner is not None and name in owner.initializers:
                self.initializers.append(owner.initializers[name])
            else:
                self.inputs.append(name)
        self.outputs, self.model, self.engine = outputs, model, engine
        self.runner: Runner | None = None

    def __call__(self, values: Values) -> None:
        feeds = {name: values[name] for name in self.inputs}
        if self.runner is None:
            inputs = [value_info(name, value) for name, value in feeds.items()]
            part = part_of(self.model, self.nodes, inputs, self.outputs, self.initializers)
            self.runner = self.engine(part)
        for name, found in zip(self.outputs, self.runner(feeds), strict=True):
            values[name] = found if isinstance(found, list) else np.asarray(found)


class _If:
    """An If with recurrent nodes in a branch."""

    def __init__(self, node: onnx.NodeProto, branches: Mapping[str, Program]) -> None:
        self.condition, self.outputs = node.input[0], list(node.output)
        self.branches = branches

    def __call__(self, values: Values) -> None:
        name = "then_branch" if np.asarray(values[self.condition]).item() else "else_branch"
        found = self.branches[name].run(values, {})
        values.update({o: v for o, v in zip(self.outputs, found, strict=True) if o})


class _Loop:
    """A Loop with recurrent nodes in its body."""

    def __init__(self, node: onnx.NodeProto, body: Program) -> None:
        self.inputs, self.outputs, self.body = list(node.input), list(node.output), body
        self.parameters = [i.name for i in body.region.graph.input]
        self.carried = len(self.inputs) - 2

    def __call__(self, values: Values) -> None:
        limit, condition, *initial = self.inputs
        most = int(np.asarray(values[limit]).item()) if limit else None
        going = bool(np.asarray(values[condition]).item()) if condition else True
        state = [values[name] for name in initial]
        scans: list[list[Any]] = [[] for _ in self.outputs[self.carried :]]
        i = 0
        while going and (most is None or i < most):
            given = [np.array(i, np.int64), np.array(going), *state]
            found = self.body.run(values, dict(zip(self.parameters, given, strict=True)))
            going = bool(np.asarray(found[0]).item())
            state = found[1 : 1 + self.carried]
            for scan, value in zip(scans, found[1 + self.carried :], strict=True):
                scan.append(value)
            i += 1
        found = [*state, *(self._stacked(k, scan) for k, scan in enumerate(scans))]
        values.update({o: v for o, v in zip(self.outputs, found, strict=True) if o})

    def _stacked(self, k: int, scan: list[Any]) -> Any:
        """A scan output; of no steps, it has the dimensions that the body declares."""
        if scan:
            return np.stack(scan)
        output = self.body.region.graph.output[1 + self.carried + k]
        declared = output.type.tensor_type
        dtype = dtype_of(f"{self.body.region.path}{output.name}", declared)
        return np.empty((0, *(dim.dim_value for dim in declared.shape.dim)), dtype)
