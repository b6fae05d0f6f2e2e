"""Files of Keras, read without Keras: configurations and weights of the recurrent layers.

Three formats. Keras 2's ``.h5``: each layer a group, whose attributes name its weights; the model's
configuration is an attribute of the file, unless it has weights alone. ``.weights.h5``: groups by
the place of a layer in the model, no configuration. ``.keras``: a ZIP archive of such a file and
JSON files. https://keras.io/api/models/model_saving_apis
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .plans import RECURRENT

__all__ = ["Entry", "ModelFile", "entries_of", "major_of", "nodes_of"]

MODELS = ("Sequential", "Functional", "Model")  # Keras 2 also has Model for Functional
WEIGHT = re.compile(r"(?:.*/)?(kernel|recurrent_kernel|bias)(?:_\d+)?(?::0)?")
DENSEST = 1000  # compressed bytes hold at most so many bytes each; more is not a model's


class Entry(NamedTuple):
    """A recurrent layer in a model's configuration."""

    name: str  # with the models around it before it
    node: Any  # its class_name and config
    place: str  # in files that name layers by place
    top: str  # the layer of the outermost model that it is or is in


def major_of(place: str, version: Any) -> int:
    """Keras's major version, if it is one that is known here."""
    found = version.decode("ascii", "replace") if isinstance(version, bytes) else version
    major = re.match(r"[23](?=\.)", found) if isinstance(found, str) else None
    if major is None:
        raise ValueError(f"{place}: expected a version of Keras 2 or 3, got {found!r}")
    return int(major[0])


def nodes_of(config: Any) -> list[Any]:
    """The layers of a model's configuration: of a dict, of its list of layers or of JSON."""
    if isinstance(config, (str, bytes)):
        config = parsed("config", config)
    if isinstance(config, Mapping) and config.get("class_name") in RECURRENT:
        return [config]  # one layer's
    inner = config.get("config", config) if isinstance(config, Mapping) else config
    if isinstance(inner, Mapping):  # of to_json(), of get_config()
        inner = inner.get("layers")
    if not isinstance(inner, list):
        expected = "a model's configuration with a list of layers"
        got = type(inner).__name__
        if inner is None and isinstance(config, Mapping) and "class_name" in config:
            got = f"that of a class of its own, {config['class_name']}"  # not its layers'
        raise ValueError(f"config: expected {expected}, got {got}")
    return inner


def parsed(place: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: expected JSON, got {error}") from None


def entries_of(nodes: list[Any], outer: str = "", place: str = "", top: str = "") -> list[Entry]:
    """The recurrent layers of a model, and of the models in it."""
    found, used = [], Counter[str]()
    for i, node in enumerate(nodes):
        kind = node.get("class_name") if isinstance(node, Mapping) else None
        config = node.get("config") if isinstance(node, Mapping) else None
        if not isinstance(kind, str) or not isinstance(config, (Mapping, list)):
            got = type(node).__name__
            expected = "expected a dict of class_name and config"
            raise ValueError(f"config: layers[{i}]: {expected}, got {got}")
        name = config.get("name") if isinstance(config, Mapping) else None
        name = node.get("name", kind) if name is None else name
        snake = snake_case(kind)
        own = f"{place}layers/{snake}" + (f"_{used[snake]}" if used[snake] else "")
        used[snake] += 1
        if kind in MODELS:
            inner = nodes_of(node)
            found += entries_of(inner, f"{outer}{name}/", f"{own}/", top or str(name))
        elif kind in RECURRENT:
            found.append(Entry(f"{outer}{name}", node, own, top or str(name)))
    return found


def snake_case(kind: str) -> str:
    """A class's name as Keras writes it in the places of layers: SimpleRNN is simple_rnn."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()


class ModelFile:
    """An open file of Keras, which a ``with`` statement closes.

    Attributes
    ----------
    keras : int or None
        Keras's major version, if the file says it.
    entries : list of Entry
        The recurrent layers.
    """

    def __init__(self, path: str | os.PathLike[str], config: Any) -> None:
        try:
            import h5py
        except ImportError as error:
            wanted = "pip install 'rnnkern[keras]'"
            raise ImportError(f"files of Keras take h5py: {wanted} ({error})") from error
        self._h5py, self._path = h5py, os.fspath(path)
        self.keras: int | None = None
        with ExitStack() as stack:
            self._open(stack, path, config)
            self._stack = stack.pop_all()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack, path: Any, config: Any) -> None:
        own: Any = None
        if zipfile.is_zipfile(path):
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
            except zipfile.BadZipFile as error:
                raise ValueError(f"source: expected a sound archive, got {error}") from None
            metadata = parsed("metadata.json", self._member(archive, "metadata.json"))
            version = metadata.get("keras_version") if isinstance(metadata, dict) else None
            self.keras = major_of(f"{self._path}: keras_version", version)
            own = parsed("config.json", self._member(archive, "config.json"))
            path = io.BytesIO(self._member(archive, "model.weights.h5"))
        try:
            self._file = stack.enter_context(self._h5py.File(path, "r"))
        except FileNotFoundError:
            raise
        except OSError as error:
            expected = "expected a .keras, .h5 or .weights.h5 file"
            raise ValueError(f"source: {expected}, got {self._path!r} ({error})") from None
        self._root = self._file
        if "model_weights" in self._file:
            self._root = self._group("model_weights")
        self._by_name = names_of(self._root.attrs, "layer_names") is not None
        if self._by_name:
            version = self._root.attrs.get("keras_version", self._file.attrs.get("keras_version"))
            self.keras = major_of(f"{self._path}: keras_version", version)
            own = self._file.attrs.get("model_config")
        elif not {"layers", "_layer_checkpoint_dependencies"} & set(self._file):
            expected = "expected the weights of a model of Keras 2 or 3"
            raise ValueError(f"source: {expected}, got {self._path!r} with {list(self._file)}")
        if own is None and config is None:
            expected = "the model's configuration, such as model.to_json(), for a file of weights"
            raise ValueError(f"config: expected {expected}, got None")
        if own is not None and config is not None:
            raise ValueError("config: expected None for a file that has its own, got one")
        self.entries = entries_of(nodes_of(config if own is None else own))
        if not self.entries:
            expected = f"a layer of {', '.join(RECURRENT)} in the model or in models in it"
            raise ValueError(f"source: expected {expected}, got none")

    def _member(self, archive: zipfile.ZipFile, name: str) -> bytes:
        try:
            info = archive.getinfo(name)
        except KeyError:
            expected = f"expected a .keras file with {name}"
            raise ValueError(f"source: {expected}, got {archive.namelist()[:5]}") from None
        self._bounded(name, info.file_size, info.compress_size)
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"source: {name}: expected a sound archive, got {error}") from None

    def _bounded(self, place: str, size: int, stored: int) -> None:
        if size > DENSEST * stored + 2**20:
            expected = f"expected at most {DENSEST} bytes for each that is stored"
            raise ValueError(f"{self._path}: {place}: {expected}, got {size} for {stored}")

    def _group(self, path: str) -> Any:
        return self._at(path, self._file, self._h5py.Group)

    def _at(self, path: str, group: Any, kind: Any) -> Any:
        """What lies at a path, none of whose parts is a link to somewhere else."""
        place, found = f"{self._path}: {group.name.rstrip('/')}/{path}", group
        for part in path.split("/"):
            link = found.get(part, getlink=True) if isinstance(found, self._h5py.Group) else None
            if not isinstance(link, self._h5py.HardLink):
                got = "none" if link is None else f"a {type(link).__name__}"
                raise ValueError(f"{place}: expected a {kind.__name__.lower()}, got {got}")
            found = found[part]
        if not isinstance(found, kind):
            got = type(found).__name__.lower()
            raise ValueError(f"{place}: expected a {kind.__name__.lower()}, got a {got}")
        return found

    def _dataset(self, path: str, group: Any) -> Any:
        found = self._at(path, group, self._h5py.Dataset)
        if found.external or found.is_virtual:
            expected = "expected values in the file"
            raise ValueError(f"{self._path}: {found.name}: {expected}, got others' files")
        self._bounded(found.name, found.nbytes, found.id.get_storage_size())
        return found

    def weights(self, entry: Entry) -> list[dict[str, Any]]:
        """Keras's weights of each cell of a layer, as datasets: forward half first."""
        if self._by_name:
            return self._by_names(entry)
        return [self._numbered(path) for path in cell_places(entry.place, entry.node)]

    def _numbered(self, path: str) -> dict[str, Any]:
        """The weights of a cell, in the order in which it makes them."""
        if "layers" not in self._file:  # Keras 2.12 and 2.13
            path = path.replace("layers/", "_layer_checkpoint_dependencies/")
        group = self._group(f"{path}/vars")
        names = sorted(group)
        if names not in (["0", "1"], ["0", "1", "2"]):
            expected = "expected two weights or three"
            raise ValueError(f"{self._path}: {path}/vars: {expected}, got {names}")
        each = (self._dataset(name, group) for name in names)
        return dict(zip(("kernel", "recurrent_kernel", "bias"), each, strict=False))

    def _by_names(self, entry: Entry) -> list[dict[str, Any]]:
        """The weights of each cell, which attributes name, one cell after the other."""
        if (
            len(set(trainable_in(entry.node))) > 1
        ):  # the weights that are not come last, whatever cell they are of
            expected = "expected one value for all cells, on which the order of weights depends"
            raise ValueError(f"{entry.name}: trainable: {expected}, got both")
        if entry.top not in self._root:
            known = ", ".join(self._root)
            raise ValueError(f"{entry.name}: expected a group among {known}, got none")
        group = self._at(entry.top, self._root, self._h5py.Group)
        inside, _, own = entry.name.rpartition("/")
        names = names_of(group.attrs, "weight_names") or []
        if inside:  # others are weights of other layers in the same model
            names = [name for name in names if own in name.split("/")]
            # Keras 3 writes the model around a layer, too; then layers of others may have its name.
            around = (inside.rpartition("/")[2], own)
            closer = [name for name in names if around in pairwise(name.split("/"))]
            names = closer or names
        cells: list[dict[str, Any]] = []
        for name in names:
            match = WEIGHT.fullmatch(name)
            if match is None:
                continue  # a state
            if match[1] == "kernel":
                cells.append({})
            if not cells or match[1] in cells[-1]:
                expected = "expected kernel, recurrent_kernel and bias for each cell"
                raise ValueError(f"{entry.name}: {expected}, got {name}")
            cells[-1][match[1]] = self._dataset(name, group)
        return cells


def trainable_in(node: Any) -> Iterator[bool]:
    """What a layer, and the layers and cells of which it consists, have as ``trainable``."""
    config = node["config"]
    yield bool(config.get("trainable", True))
    if node["class_name"] in ("Bidirectional", "RNN", "StackedRNNCells"):
        inner = [config.get(key) for key in ("layer", "backward_layer", "cell")]
        for one in (*inner, *(config.get("cells") or ())):
            if one is not None:
                yield from trainable_in(one)


def cell_places(place: str, node: Any) -> list[str]:
    """Where the cells of a layer are, in files that name layers by place."""
    if node["class_name"] == "Bidirectional":
        inner = node["config"].get("layer")
        halves = {
            "forward_layer": inner,
            "backward_layer": node["config"].get("backward_layer") or inner,
        }
        return [p for name, one in halves.items() for p in cell_places(f"{place}/{name}", one)]
    cell = node["config"].get("cell")
    if not isinstance(cell, Mapping) or cell.get("class_name") != "StackedRNNCells":
        return [f"{place}/cell"]
    found, used = [], Counter[str]()
    for one in cell["config"]["cells"]:
        snake = snake_case(one["class_name"])
        found.append(f"{place}/cell/cells/{snake}" + (f"_{used[snake]}" if used[snake] else ""))
        used[snake] += 1
    return found


def names_of(attributes: Any, key: str) -> list[str] | None:
    """A list of names, which Keras writes in parts where it is long."""
    parts = [key] if key in attributes else []
    while f"{key}{len(parts)}" in attributes and key not in attributes:
        parts.append(f"{key}{len(parts)}")
    if not parts:
        return None
    names = [name for part in parts for name in np.ravel(attributes[part]).tolist()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
