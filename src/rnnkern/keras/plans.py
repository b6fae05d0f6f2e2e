"""What the configuration of a Keras layer means, in terms of this package's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..checks import flag, number, size
from ..layers.activations import Chosen, chosen

__all__ = ["MERGE_MODES", "OWN_OBJECT", "RECURRENT", "Calls", "Cell", "Plan", "plan_of"]

CELLS = ("SimpleRNN", "LSTM", "GRU")
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}  # Keras 2's; they have no activations to choose
RECURRENT = (*CELLS, *CUDNN, "RNN", "Bidirectional")
MERGE_MODES = ("concat", "sum", "mul", "ave", None)

# Keras's names: an activation of ours and its constants. hard_sigmoid depends on the version.
ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "tanh": ("Tanh",),
    "sigmoid": ("Sigmoid",),
    "relu": ("Relu",),
    "linear": ("Affine",),
    "elu": ("Elu",),
    "leaky_relu": ("LeakyRelu", 0.2),
    "softsign": ("Softsign",),
    "softplus": ("Softplus",),
}
HARD_SIGMOID = {2: ("HardSigmoid", 0.2, 0.5), 3: ("HardSigmoid", 1 / 6, 0.5)}
OBJECTS = ("ELU", "LeakyReLU", "ReLU")  # layers that are activations
OWN_OBJECT = "rnnkern>HardSigmoid"  # as Keras registers it

REQUIRED: Any = object()


class Cell(NamedTuple):
    """A cell of Keras: what each step computes."""

    kind: str  # one of CELLS
    units: int
    activations: tuple[Chosen, ...]  # in the order of our class
    bias: bool | None = None  # None where only the weights say
    reset_after: bool | None = None  # of a GRU; None where only the weights say


class Calls(NamedTuple):
    """What a call of a Keras layer takes and returns."""

    return_sequences: bool = False
    return_state: bool = False
    stateful: bool = False
    zero_output_for_mask: bool = False
    merge_mode: str | None = "concat"


class Plan(NamedTuple):
    """A recurrent layer of Keras."""

    name: str
    forward: tuple[Cell, ...]  # one after the other
    backward: tuple[Cell, ...]  # of a Bidirectional
    go_backwards: bool
    calls: Calls


class Config:
    """The configuration of a Keras object, which errors name."""

    def __init__(self, place: str, node: Any, keras: int | None) -> None:
        self.place, self.keras = place, keras
        values = node.get("config") if isinstance(node, Mapping) else None
        kind = node.get("class_name") if isinstance(node, Mapping) else None
        if not isinstance(kind, str) or not isinstance(values, Mapping):
            got = type(node).__name__
            raise ValueError(f"{place}: expected a dict of class_name and config, got {got}")
        self.kind, self.values = kind, values
        if is_foreign(node):
            raise ValueError(f"{place}: expected a class of Keras, got {node['module']}.{kind}")

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.values.get(key, default)
        if value is REQUIRED:
            raise ValueError(f"{self.place}: expected {key!r} in the configuration, got none")
        return value

    def flag(self, key: str, default: Any = False) -> bool:
        return flag(f"{self.place}: {key}", self.get(key, default))

    def inner(self, key: str, of: Any = None) -> Config:
        node = self.get(key) if of is None else of
        return Config(f"{self.place}: {key}", node, self.keras)

    def refuse(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self.place}: {key}: expected {expected}, got {self.values.get(key)!r}")

    def activation(self, key: str) -> Chosen:
        place = f"{self.place}: {key}"
        found = activation_of(place, self.get(key), self.keras)
        return chosen((found,), ("Tanh",), place)[0]


def is_foreign(node: Mapping[str, Any]) -> bool:
    """Whether a class is not one of Keras's, so that its name says nothing."""
    module = node.get("module")
    root = str(module).partition(".")[0]
    return bool(module) and root not in ("keras", "tf_keras", "rnnkern", "builtins")


def activation_of(place: str, given: Any, keras: int | None) -> tuple[Any, ...]:
    """One of our activations, of what Keras writes for one of its own."""
    if given is None:
        return ACTIVATIONS["linear"]
    if isinstance(given, Mapping):
        is_own = OWN_OBJECT in (given.get("class_name"), given.get("registered_name"))
        if is_own or (given.get("class_name") in OBJECTS and not is_foreign(given)):
            return object_of(place, Config(place, given, keras))
        inner = given.get("config")  # a function of a user's, or one of a class
        given = inner if isinstance(inner, str) else given.get("class_name")
        given = f"{given}, a function or class of its own"
    elif given == "hard_sigmoid":
        if keras not in HARD_SIGMOID:
            versions = "2 (clip(0.2 x + 0.5)) or 3 (clip(x / 6 + 0.5))"
            expected = f"keras_version {versions} for hard_sigmoid"
            raise ValueError(f"{place}: expected {expected}, as the source says none, got {keras}")
        return HARD_SIGMOID[keras]
    elif isinstance(given, str) and given in ACTIVATIONS:
        return ACTIVATIONS[given]
    known = ", ".join((*ACTIVATIONS, "hard_sigmoid"))
    objects = ", ".join(OBJECTS)
    raise ValueError(f"{place}: expected one of {known}, or of {objects} (objects), got {given}")


def object_of(place: str, config: Config) -> tuple[Any, ...]:
    """One of our activations, of a layer of Keras that computes one."""

    def constant(key: str) -> float:
        return number(f"{place}: {key}", config.get(key), "a finite number", lambda x: True)

    if config.kind == "ELU":
        return ("Elu", constant("alpha"))
    if config.kind in ("HardSigmoid", OWN_OBJECT):
        return ("HardSigmoid", constant("alpha"), constant("beta"))
    slope = "negative_slope" if "negative_slope" in config.values else "alpha"  # Keras 3 and 2
    if config.kind == "LeakyReLU":
        return ("LeakyRelu", constant(slope))
    if config.get("max_value") is not None:
        raise config.refuse("max_value", "None")
    below, threshold = constant("negative_slope"), constant("threshold")
    if below and threshold:
        raise config.refuse("threshold", "0 with a negative_slope")
    if below:
        return ("LeakyRelu", below)
    return ("ThresholdedRelu", threshold) if threshold else ("Relu",)


def cell_of(config: Config) -> Cell:
    """The cell of a layer such as LSTM, or of a class such as LSTMCell."""
    kind = config.kind.removesuffix("Cell")
    units = size(f"{config.place}: units", config.get("units"))
    bias: bool | None = None
    reset_after: bool | None = None
    if kind in CUDNN:
        kind = CUDNN[kind]
        gates, values = Chosen("Sigmoid"), Chosen("Tanh")
        bias, reset_after = True, True
    elif kind in CELLS:
        values = config.activation("activation")
        gates = config.activation("recurrent_activation") if kind != "SimpleRNN" else values
        if "use_bias" in config.values:
            bias = config.flag("use_bias")
        if "reset_after" in config.values:
            reset_after = config.flag("reset_after")
    else:
        names = ", ".join(f"{one}Cell" for one in CELLS)
        raise ValueError(f"{config.place}: expected a cell of {names}, got {config.kind}")
    activations = {"SimpleRNN": (values,), "GRU": (gates, values), "LSTM": (gates, values, values)}
    return Cell(kind, units, activations[kind], bias, reset_after if kind == "GRU" else None)


def cells_of(config: Config) -> tuple[Cell, ...]:
    """The cells of one direction."""
    if config.kind != "RNN":
        return (cell_of(config),)
    inner = config.inner("cell")
    if inner.kind != "StackedRNNCells":
        return (cell_of(inner),)
    nodes = inner.get("cells")
    if not isinstance(nodes, list) or not nodes:
        raise inner.refuse("cells", "a list of cells")
    if inner.values.get("reverse_state_order"):  # Keras 2's; the order of states in a call
        raise inner.refuse("reverse_state_order", "False")
    return tuple(cell_of(inner.inner(f"cells[{i}]", node)) for i, node in enumerate(nodes))


def calls_of(config: Config) -> Calls:
    """What a call of one direction returns."""
    if config.values.get("time_major"):
        raise config.refuse("time_major", "False (x of shape (B, T, I))")
    if config.values.get("num_constants"):
        raise config.refuse("num_constants", "None")
    names = ("return_sequences", "return_state", "stateful", "zero_output_for_mask")
    return Calls(**{name: config.flag(name) for name in names})  # type: ignore[arg-type]


def plan_of(name: str, node: Any, keras: int | None) -> Plan:
    """What a layer of Keras is.

    Parameters
    ----------
    name : str
        Of the layer, for messages.
    node : mapping
        Its ``class_name`` and ``config``, as Keras serializes it.
    keras : int, optional
        Keras's major version, on which the meaning of hard_sigmoid depends.
    """
    config = Config(name, node, keras)
    if config.kind not in RECURRENT:
        expected = f"expected a layer of {', '.join(RECURRENT)}"
        raise ValueError(f"{name}: {expected}, got {config.kind}")
    if config.kind != "Bidirectional":
        backward = config.flag("go_backwards")
        return Plan(name, cells_of(config), (), backward, calls_of(config))
    merge_mode = config.get("merge_mode")
    if merge_mode not in MERGE_MODES:
        raise config.refuse("merge_mode", f"one of {', '.join(map(str, MERGE_MODES))}")
    first = config.inner("layer")
    second = config.inner("backward_layer") if config.values.get("backward_layer") else None
    for half in filter(None, (first, second)):
        if half.kind not in RECURRENT[:-1]:
            expected = f"expected a layer of {', '.join(RECURRENT[:-1])}"
            raise ValueError(f"{half.place}: {expected}, got {half.kind}")
        if half.flag("go_backwards") != (half is second):
            raise half.refuse("go_backwards", str(half is second))
    cells, calls = cells_of(first), calls_of(first)
    # Keras sets zero_output_for_mask when it makes a Bidirectional, whatever the layer had.
    calls = calls._replace(zero_output_for_mask=calls.return_sequences, merge_mode=merge_mode)
    return Plan(name, cells, cells if second is None else cells_of(second), False, calls)
