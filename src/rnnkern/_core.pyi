from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

__version__: str
compiler: str
flags: str

def instruction_set() -> str: ...
def available_instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def num_threads() -> int: ...
def chosen_num_threads() -> int: ...
def is_forked_child() -> bool: ...
def set_num_threads(n: int) -> None: ...
def release_memory() -> int: ...
def activation(name: str, x: Array) -> Array: ...
def probe_fma(rounds: int, threads: int) -> tuple[float, float]: ...
def probe_read(values: Array, passes: int, threads: int) -> tuple[float, float]: ...

class Tape:
    @property
    def gates(self) -> list[Array]: ...
    @property
    def cells(self) -> list[Array]: ...
    @property
    def hiddens(self) -> list[Array]: ...

class Net:
    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        residual: bool,
        is_double: bool,
        members: int,
    ) -> None: ...
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def forward(
        self,
        params: dict[str, Array],
        x: Array,
        h0: Array | None,
        c0: Array | None,
        lengths: Array | None,
        resets: Array | None,
        batch_first: bool,
        keep: bool,
        segment: int,
        dropout: float,
        seeds: list[int],
        step: int,
    ) -> tuple[Array, Array, Array | None, Tape]: ...
    def backward(
        self,
        params: dict[str, Array],
        tape: Tape,
        dy: Array | None,
        dh: Array | None,
        dc: Array | None,
        step_value: float,
        step_norm: float,
        value: float,
        norm: float,
        trace: bool,
        flow_penalty: float,
    ) -> tuple[
        dict[str, Array],
        Array,
        Array,
        Array | None,
        Any,
        Any,
        Any,
        tuple[Array, Array, Array | None, Array, Array] | None,
    ]: ...

class Stream:
    def __init__(self, net: Net, params: dict[str, Array], batch_size: int) -> None: ...
    def step(self, x: Array, out: Array | None = None) -> Array: ...
    def run(self, x: Array, out: Array | None = None) -> Array: ...

def stream_state(stream: Stream) -> tuple[Array, Array | None]: ...
def set_stream_state(stream: Stream, h: Array, c: Array | None) -> None: ...
def reset_stream(stream: Stream, rows: Any | None) -> None: ...
def sums_of_squares(values: Array, parts: int) -> list[float]: ...
def optimizer_step(
    kind: str,
    arrays: list[tuple[Array, Array, Array | None, Array | None, float, float]],
    steps: Array,
    members: list[tuple[int, float, float, float]],
    dry: bool,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    beta1: float = 0.0,
    beta2: float = 0.0,
    eps: float = 0.0,
    weight_decay: float = 0.0,
) -> list[bool]: ...
def overlap(
    parameters: list[Array], firsts: list[int], gradients: list[Array]
) -> tuple[int, int] | None: ...
def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None,
    ignore_index: int | None,
    mean: bool,
    out: Array | None,
) -> tuple[float, Array, Array]: ...
def checked_input(x: Array, n: int) -> Array: ...
def add_rows(x: Array, dy: Array, table: Array) -> None: ...
