from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray

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
def set_usable_cores(n: int) -> None: ...
def set_num_threads(n: int) -> None: ...
def caches() -> tuple[float, float, int]: ...
def set_caches(l2_bytes: float, l3_bytes: float, l3_cores: int) -> None: ...
def alone_for() -> float: ...
def last_sharing() -> tuple[str, int, int] | None: ...
def force_grid(threads: int, row_groups: int) -> None: ...
def release_memory() -> int: ...
def activation(name: str, x: Array) -> Array: ...
def probe_fma(rounds: int, threads: int) -> tuple[float, float]: ...
def probe_read(values: Array, passes: int, threads: int) -> tuple[float, float]: ...

class Tape:
    @property
    def nbytes(self) -> int: ...
    @property
    def gates(self) -> list[Array]: ...
    @property
    def cells(self) -> list[Array]: ...
    @property
    def hiddens(self) -> list[Array]: ...
    @property
    def real_steps(self) -> Array: ...

class Packed: ...

class LayerStack:
    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        outputs: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        reverse: bool,
        residual: bool,
        is_double: bool,
        members: int,
        peephole: bool,
        cell_clip: float,
        projection_clip: float,
        forward_clip: float,
        activations: list[tuple[str, float, float]],
        noise: tuple[float, float, float],
        heads: int,
        exp_forget: bool,
        precision: str,
    ) -> None: ...
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def state_names(self) -> tuple[str, ...]: ...
    def plan(self, steps: int, rows: int, threads: int) -> tuple[int, str, int, int]: ...
    def pack(self, params: dict[str, Array], table: Array | None = None) -> Packed: ...
    def forward(
        self,
        weights: dict[str, Array] | Packed,
        x: Array,
        state: tuple[Array | None, ...] | None,
        lengths: Array | None,
        mask: Array | None,
        resets: Array | None,
        batch_first: bool,
        wanted: int,
        samples_all: bool,
        segment: int,
        dropout: tuple[float, list[int], int, int, bool],
    ) -> tuple[Array, tuple[Array, ...], Any]: ...
    def backward(
        self,
        params: dict[str, Array],
        tape: Tape,
        dy: Array | None,
        dstate: tuple[Array | None, ...] | None,
        clip: tuple[float, float, float, float],
        trace: bool,
        flow_penalty: float,
    ) -> tuple[
        dict[str, Array],
        Array,
        tuple[Array, ...],
        Any,
        Any,
        Any,
        tuple[Array, Array, Array | None, Array, Array] | None,
    ]: ...

class Stream:
    def __init__(self, weights: Packed, batch_size: int) -> None: ...
    def step(
        self, x: Array, out: Array | None = None, *, mask: ArrayLike | None = None
    ) -> Array: ...
    def run(
        self, x: Array, out: Array | None = None, *, mask: ArrayLike | None = None
    ) -> Array: ...

def stream_state(stream: Stream) -> tuple[Array, ...]: ...
def set_stream_state(stream: Stream, state: tuple[Array, ...]) -> None: ...
def stream_row_state(stream: Stream, rows: Any) -> tuple[Array, ...]: ...
def set_stream_row_state(stream: Stream, rows: Any, state: tuple[Array, ...]) -> None: ...
def reset_stream(stream: Stream, rows: Any | None) -> None: ...
def make_read_only(arrays: dict[str, Array]) -> None: ...
def sums_of_squares(values: Array, parts: int) -> list[float]: ...
def optimizer_step(
    kind: str,
    arrays: list[
        tuple[Array, Array, Array | None, Array | None, Array | None, float, float, float, float]
    ],
    steps: Array,
    members: list[tuple[int, float, float, float]],
    dry: bool,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    beta1: float = 0.0,
    beta2: float = 0.0,
    eps: float = 0.0,
) -> list[bool]: ...
def overlap(
    parameters: list[Array], firsts: list[int], gradients: list[Array]
) -> tuple[int, int] | None: ...
def real_steps(
    lengths: Array | None, mask: Array | None, T: int, B: int, of: str = ""
) -> Array: ...
def attention(
    queries: Array,
    keys: Array,
    values: Array,
    query_mask: Array | None,
    mask: Array | None,
    v: Array | None,
    scale: float,
) -> tuple[Array, Array]: ...
def attention_gradient(
    queries: Array,
    keys: Array,
    values: Array,
    query_mask: Array | None,
    mask: Array | None,
    v: Array | None,
    scale: float,
    weights: Array,
    dcontext: Array,
    only_queries: bool,
) -> tuple[Array, Array | None, Array | None, Array | None]: ...
def crf_marginals(
    emissions: Array,
    mask: Array | None,
    start: Array,
    end: Array,
    transitions: Array,
    wanted: bool,
) -> tuple[Array, Array | None]: ...
def crf_loss(
    emissions: Array,
    labels: Array,
    mask: Array | None,
    start: Array,
    end: Array,
    transitions: Array,
    reduction: str,
) -> tuple[float, Array, Array, Array, Array, Array]: ...
def crf_decode(
    emissions: Array, mask: Array | None, start: Array, end: Array, transitions: Array
) -> tuple[Array, Array]: ...
def counted_rows(mask: Array, shape: Sequence[int]) -> Array: ...
def linear(
    x: Array, weight: Array, bias: Array | None, rows: Array | None, out: Array | None
) -> Array: ...
def linear_gradient(
    x: Array, weight: Array, dy: Array, rows: Array | None, bias: bool
) -> tuple[Array, Array | None, Array]: ...
def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None,
    ignore_index: int | None,
    label_smoothing: float,
    class_weights: Array | None,
    mean: bool,
    out: Array | None,
) -> tuple[float, Array, Array]: ...
def look_up(x: Array, table: Array) -> tuple[Array, Array]: ...
def sum_rows(x: Array, dy: Array, n: int, columns: int) -> Array: ...
def xla_handler(function: Callable[[bytes, list[Array], list[Array]], None]) -> int: ...
def refuse_xla_calls() -> None: ...
def dropout(
    x: Array,
    places: Array | None,
    p: float,
    seed: int,
    step: int,
    first_row: int,
    variational: bool,
) -> Array: ...
def layer_norm(
    x: Array,
    weight: Array,
    bias: Array | None,
    epsilon: float,
    rows: Array | None,
    out: Array | None,
) -> tuple[Array, Array]: ...
def layer_norm_gradient(
    x: Array, weight: Array, dy: Array, moments: Array, rows: Array | None, bias: bool
) -> tuple[Array, Array | None, Array]: ...
def pointwise_loss(
    kind: str,
    outputs: Array,
    targets: Array,
    parameters: Array | None,
    mask: Array | None,
    mean: bool,
    each: bool,
    out: Array | None,
) -> tuple[float, Array | None, Array]: ...
def pool(x: Array, real: Array | None, largest: bool) -> tuple[Array, Array | None]: ...
def pool_gradient(dy: Array, steps: int, real: Array | None, places: Array | None) -> Array: ...
