"""Models whose recurrent nodes run here, and the other nodes elsewhere."""

from __future__ import annotations

import os
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ..checks import as_array
from ..layers import _Layer
from .check import check
from .engines import Engine, engine_of
from .graph import Region, constants_as_initializers, dtype_of
from .nodes import KINDS, WEIGHTS, Recurrent, kind_of
from .program import Program, live

__all__ = ["Model", "load"]

Array = NDArray[Any]


def load(model: str | os.PathLike[str] | onnx.ModelProto, *, engine: Engine | None = None) -> Model:
    """Make layers of the RNN, LSTM and GRU nodes of an ONNX model.

    Parameters
    ----------
    model : path or onnx.ModelProto
        Of opset 7 or newer. It is copied. Nodes are found in the main graph, in functions and in
        bodies, such as those of If and Loop. Their weights may be initializers or whatever is
        computed of constants. Nodes on which no output depends are left out.
    engine : {"onnxruntime", "reference"}, optional
        What runs the other nodes: ONNX Runtime, or the evaluator of the onnx package. If not given,
        ONNX Runtime where it is installed.

    Returns
    -------
    Model

    Raises
    ------
    TypeError, ValueError
        If the model has no recurrent node, or a node or graph is not what ONNX says of it: the
        message names the node, the input or attribute, what was expected and what it is. If the
        file is none of ONNX's.
    ImportError
        If the engine is not installed.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk, rnnkern.onnx
    >>> proto = rk.onnx.export(rk.GRU(3, 5, seed=0))
    >>> model = rk.onnx.load(proto, engine="reference")
    >>> model
    Model(inputs=['x'], outputs=['y', 'h'], layers={'layer_0': GRU(3, 5)})
    >>> model.run({"x": np.ones((7, 2, 3), np.float32)})["y"].shape
    (7, 2, 5)
    """
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    elif isinstance(model, (str, os.PathLike)):
        try:
            proto = onnx.load(model)
        except (DecodeError, onnx.checker.ValidationError) as error:
            path = os.fspath(model)
            raise ValueError(f"model: expected an ONNX file, got {path!r} ({error})") from error
    else:
        got = type(model).__name__
        raise TypeError(f"model: expected a path or an onnx.ModelProto, got {got}")
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    check(Region(proto.graph), opsets_of(proto))
    constants_as_initializers(proto.graph)
    prune(proto.graph)
    proto.ir_version = max(proto.ir_version, 4)  # from which initializers need not be inputs
    return Model(proto, engine)


class Model(Mapping[str, _Layer[Any]]):
    """An ONNX model, as a mapping of its recurrent nodes' names to layers; `load` makes it.

    A layer belongs to the model: what is written to its parameters, by an optimizer for example,
    holds for the next `run`, and for `save`. Until a layer is taken from the mapping, and again
    after `freeze`, its weights are packed once for all runs.

    A node whose directions have different activations has two layers, whose names end in
    ``.forward`` and ``.reverse``. A node without a name has that of its first output; where several
    have the same, the nodes and bodies around it stand before it, as in
    ``If_7.then_branch/LSTM_3``. Nodes of one graph that have the same name have those of their
    first outputs.

    Parameters
    ----------
    proto : onnx.ModelProto
        Without functions, Constant nodes and nodes on which no output depends. The caller leaves it
        as it is.
    engine : str, optional
        As in `load`.

    Attributes
    ----------
    inputs, outputs : list of str
        The names of what `run` takes and returns.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk, rnnkern.onnx
    >>> model = rk.onnx.load(rk.onnx.export(rk.GRU(3, 5, 2, seed=0)))
    >>> list(model)
    ['layer_0', 'layer_1']
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> y, h, tape = model["layer_0"].forward(x)
    >>> grads = model["layer_0"].backward(tape, y)
    >>> rk.SGD(model["layer_0"], lr=0.1).step(grads).applied
    True
    >>> model.run({"x": x})["h"].shape
    (2, 2, 5)
    """

    def __init__(self, proto: onnx.ModelProto, engine: Engine | None = None) -> None:
        self._proto, self._region = proto, Region(proto.graph)
        opsets = opsets_of(proto)
        self._recurrents = {
            (region, i): self._recurrent(region, i, name, opsets.get("ai.onnx", 0))
            for region, i, name in named(self._region)
        }
        if not self._recurrents:
            operators = ", ".join(KINDS)
            expected = f"expected outputs that depend on a node of {operators}"
            raise ValueError(f"model: {expected}, got none")
        self._layers = {
            recurrent.name + suffix: (layer, recurrent)
            for recurrent in self._recurrents.values()
            for suffix, layer in zip(
                ("",) if len(recurrent.layers) == 1 else (".forward", ".reverse"),
                recurrent.layers,
                strict=True,
            )
        }
        self._program = Program(self._region, self._recurrents, proto, engine_of(engine))
        self.inputs, self.outputs = self._region.inputs, self._region.outputs
        declared = {one.name: one for one in proto.graph.input}
        self._declared = {name: Declared(declared[name]) for name in self.inputs}

    def _recurrent(self, region: Region, i: int, name: str, opset: int) -> Recurrent:
        """The layers of a node, whose weights are constants."""
        node, kind = region.nodes[i], kind_of(region.nodes[i])
        assert kind is not None
        given = {k: value for k, value in zip(kind.inputs, node.input, strict=False) if value}
        weights = {}
        for weight in WEIGHTS:
            if weight in given:
                try:
                    weights[weight] = region.constant(given[weight], self._proto)
                except ValueError as error:
                    raise ValueError(f"{name}: {weight}: {error}") from error
        return Recurrent(name, node, opset, weights)

    def __getitem__(self, name: str) -> _Layer[Any]:
        layer, recurrent = self._layers[name]
        recurrent.thaw()
        return layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        layers = {name: layer for name, (layer, _) in self._layers.items()}
        return f"Model(inputs={self.inputs}, outputs={self.outputs}, layers={layers})"

    def freeze(self) -> None:
        """Pack the layers' parameters as they are now, once, for the runs to come.

        A model is frozen when it is loaded. A layer that is taken from it is not any more: its
        parameters may change between runs, and each run packs them. What is written to a layer
        that was taken before is not seen by a frozen model.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk, rnnkern.onnx
        >>> model = rk.onnx.load(rk.onnx.export(rk.GRU(3, 5)))
        >>> model["layer_0"].params["bias_hh_l0"] += 0.5
        >>> model.freeze()
        """
        for recurrent in self._recurrents.values():
            recurrent.freeze()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model: recurrent nodes by their layers, the others by the engine.

        Initial states and ``sequence_lens`` may depend on the inputs. Nodes in float16 or bfloat16
        are computed in float32, and their outputs rounded.

        Parameters
        ----------
        inputs : mapping of str to ndarray
            An array for each of `inputs`. What has an initializer is a constant.

        Returns
        -------
        dict of str to ndarray
            By the names of `outputs`.

        Raises
        ------
        TypeError, ValueError
            If names, dtypes or shapes are not the model's; the message names the input, or the node
            whose input it is.

        Examples
        --------
        >>> import numpy as np, rnnkern as rk, rnnkern.onnx
        >>> model = rk.onnx.load(rk.onnx.export(rk.LSTM(3, 5)), engine="reference")
        >>> sorted(model.run({"x": np.ones((7, 2, 3), np.float32)}))
        ['c', 'h', 'y']
        """
        if not isinstance(inputs, Mapping):
            got = type(inputs).__name__
            raise TypeError(f"inputs: expected a mapping of names to arrays, got {got}")
        if inputs.keys() != self._declared.keys():
            raise ValueError(f"inputs: expected {sorted(self._declared)}, got {sorted(inputs)}")
        given = {name: one.checked(inputs[name]) for name, one in self._declared.items()}
        found = self._program.run(ChainMap(), given)
        return dict(zip(self.outputs, found, strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its layers' parameters as they are now.

        Parameters
        ----------
        path : path
            Weights become initializers beside their nodes, named as in ``layer_0.W``, with a number
            behind where another value has that name. What computed them is left out.

        Examples
        --------
        >>> import tempfile, numpy as np, rnnkern as rk, rnnkern.onnx
        >>> model = rk.onnx.load(rk.onnx.export(rk.LSTM(3, 5, seed=0)))
        >>> model["layer_0"].params["bias_ih_l0"][...] = 0.5
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/trained.onnx")
        ...     again = rk.onnx.load(f"{folder}/trained.onnx")
        >>> float(again["layer_0"].params["bias_ih_l0"].min())
        0.5
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        root = Region(proto.graph)
        # The nodes read new names first, so that `prune` leaves out their old weights: these may
        # have the names that the new weights get.
        taken, weights = root.names(), {}
        for (region, i, name), recurrent in zip(
            named(root), self._recurrents.values(), strict=True
        ):
            for weight, values in recurrent.weights().items():
                place = unused("weights", taken)
                region.nodes[i].input[recurrent.kind.inputs.index(weight)] = place
                weights[place] = f"{name}.{weight}", values
        prune(proto.graph)
        root = Region(proto.graph)
        taken = root.names()
        for region in root.regions():
            for node in region.nodes:
                for k, place in enumerate(node.input):
                    if place in weights:
                        own, values = weights[place]
                        node.input[k] = unused(own, taken)
                        tensor = onnx.numpy_helper.from_array(values, node.input[k])
                        region.graph.initializer.append(tensor)
        onnx.save(proto, path)


def opsets_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The version of each domain's operators; that of ONNX itself is "ai.onnx"."""
    return {one.domain or "ai.onnx": one.version for one in proto.opset_import}


def unused(name: str, taken: set[str]) -> str:
    """The name, or one made of it by a number, that is not taken; it is then."""
    found = next(n for n in chain([name], (f"{name}_{k}" for k in count(1))) if n not in taken)
    taken.add(found)
    return found


def named(region: Region) -> list[tuple[Region, int, str]]:
    """The recurrent nodes of a region and of those inside it, with a name each."""
    found = [
        (of, i)
        for of in region.regions()
        for i, node in enumerate(of.nodes)
        if kind_of(node) is not None
    ]
    names = [of.name(i) for of, i in found]
    counts = Counter(names)
    names = [of.path * (counts[n] > 1) + n for (of, _), n in zip(found, names, strict=True)]
    counts = Counter(names)  # nodes of one graph may have the same name; their outputs do not
    return [
        (of, i, of.path + of.output(i) if counts[n] > 1 else n)
        for (of, i), n in zip(found, names, strict=True)
    ]


class Declared:
    """What a model declares of an input."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.place = f"inputs[{value.name!r}]"
        #: None of what is no tensor.
        self.dtype = dtype_of(self.place, kind) if value.type.HasField("tensor_type") else None
        #: Numbers, and names of what is left open; None if nothing is said.
        self.dims: list[int | str] | None = None
        if kind.HasField("shape"):
            self.dims = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]

    def checked(self, value: Any) -> Any:
        """The value, if it is as declared."""
        if self.dtype is None:
            return value
        found = as_array(self.place, value, self.dtype)
        if self.dims is None:
            return found
        fits = len(self.dims) == found.ndim and all(
            size == dim or isinstance(dim, str)
            for dim, size in zip(self.dims, found.shape, strict=True)
        )
        if not fits:
            expected = f"expected shape ({', '.join(map(str, self.dims))})"
            raise ValueError(f"{self.place}: {expected}, got {found.shape}")
        return found


def prune(graph: onnx.GraphProto) -> None:
    """Leave out the nodes and initializers on which no output depends, in bodies, too."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                prune(attribute.g)
    kept = onnx.GraphProto()
    region = Region(graph)
    kept.node.extend(region.nodes[i] for i in live(region, {}))
    graph.ClearField("node")
    graph.node.extend(kept.node)
    region = Region(graph)
    read = set(region.outputs).union(*(region.reads(i) for i in range(len(region.nodes))))
    kept.initializer.extend(one for one in graph.initializer if one.name in read)
    gone = region.initializers.keys() - read
    kept.input.extend(one for one in graph.input if one.name not in gone)
    kept.value_info.extend(one for one in graph.value_info if one.name in region.producers)
    for field in ("initializer", "input", "value_info"):
        graph.ClearField(field)
        getattr(graph, field).extend(getattr(kept, field))
