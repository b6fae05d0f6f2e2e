"""The grids of the peer benchmark, and the ratios that each case is to reach.

Targets are for one thread: at least this many times as fast as the best peer, or as one of them
(``ratio``), or at least this share of the machine's multiply-add peak (``peak``), where the peak
bounds everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1}
LABELS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
GRIDS = ("step", "block", "inference", "training", "deepbench", "tails", "bf16")
SHARING, SHARING_FLOPS = "sharing", 1.5e9  # a grid of versions.py alone
FLOAT_BYTES, BF16_BYTES = 4, 2


@dataclass(frozen=True)
class Target:
    what: str  # "ratio" or "peak"
    at_least: float
    against: str = ""  # what the names of peers begin with that count


@dataclass(frozen=True)
class Case:
    grid: str
    kind: str
    B: int
    T: int
    H: int
    I: int
    training: bool = False
    target: Target | None = None
    # What rnnkern rounds to bf16: "weights", or "products", whose weights are packed in each call,
    # or "frozen": products of packed weights. "": nothing.
    bf16: str = ""
    targets: tuple[Target, ...] = ()  # of bf16

    @property
    def section(self) -> str:
        """The grid that it is reported in."""
        return "bf16" if self.bf16 else self.grid

    @property
    def name(self) -> str:
        words = ["bf16", self.grid, self.bf16] if self.bf16 else [self.grid]
        if self.grid in ("deepbench", "tails", SHARING):
            words.append("training" if self.training else "inference")
        size = f"{self.H}" if self.I == self.H else f"{self.I}>{self.H}"
        return " ".join([*words, LABELS[self.kind], f"{self.B},{self.T},{size}"])

    @property
    def streaming(self) -> bool:
        """Whether the state is carried from call to call."""
        return self.grid in ("step", "block")

    @property
    def flops(self) -> int:
        """Of the products: forward, and twice as much again backward."""
        forward = 2 * self.B * self.T * GATES[self.kind] * self.H * (self.I + self.H)
        return 3 * forward if self.training else forward

    @property
    def step_weight_bytes(self) -> int:
        """Weights that each step must read: W_hh; in the step grid, one step a call, W_ih too."""
        columns = self.H + self.I if self.grid == "step" else self.H
        size = BF16_BYTES if self.bf16 else FLOAT_BYTES
        return size * GATES[self.kind] * self.H * columns

    @property
    def weight_bytes(self) -> int:
        """All that must be read of weights: each step's, once forward and once backward."""
        return self.step_weight_bytes * self.T * (2 if self.training else 1)


def ratio(at_least: float) -> Target:
    return Target("ratio", at_least)


def to_rtneural(at_least: float) -> Target:
    return Target("ratio", at_least, "RTNeural")


def peak(at_least: float) -> Target:
    return Target("peak", at_least)


STEP = {16: 10.0, 64: 7.0, 128: 3.5, 256: 2.0, 512: 1.3, 1024: 1.5}  # H: ratio

BLOCK_STEPS = 64
BLOCK = {16: 1.0, 32: 2.0, 64: 1.4}  # H: ratio to RTNeural

# (B, T, H): target
INFERENCE = {
    (1, 100, 64): ratio(1.5),
    (1, 100, 256): ratio(1.4),
    (1, 100, 512): ratio(1.0),
    (1, 100, 1024): ratio(1.1),
    (16, 100, 256): ratio(1.1),
    (32, 100, 128): ratio(1.1),
    (32, 100, 512): peak(0.93),
    (64, 50, 1024): peak(0.93),
    (256, 50, 32): ratio(1.3),
}
TRAINING = {
    (1, 100, 64): ratio(1.5),
    (1, 100, 256): ratio(1.3),
    (16, 100, 256): ratio(1.1),
    (32, 100, 128): ratio(1.1),
    (32, 100, 512): peak(0.85),
    (64, 50, 1024): peak(0.85),
    (256, 50, 32): ratio(2.0),
    (8, 1000, 128): ratio(1.5),
}
# Over the training grid: no case below the first, geometric means of at least the others.
TRAINING_WORST, TRAINING_MEAN_BEST, TRAINING_MEAN_TORCH = 1.1, 2.0, 3.0

# Kind, training, (B, T, H): sizes of Baidu's DeepBench that a CPU is asked for.
DEEPBENCH = (
    ("lstm", True, (16, 25, 512)),
    ("lstm", True, (32, 25, 512)),
    ("lstm", True, (8, 50, 1536)),
    ("lstm", True, (16, 150, 256)),
    ("lstm", True, (32, 150, 256)),
    ("lstm", True, (64, 150, 256)),
    ("gru", True, (32, 25, 512)),
    ("gru", True, (32, 150, 1024)),
    ("rnn_tanh", True, (16, 50, 1760)),
    ("lstm", False, (1, 50, 1536)),
    ("gru", False, (1, 187, 2816)),
)

# (I, H) that fill no vector or tile, or differ.
TAILS = ((17, 17), (33, 33), (100, 100), (130, 130), (260, 260), (40, 200), (300, 96))
TAILS_BATCH, TAILS_STEPS = 16, 50


FLOAT32, TORCH_BF16, ONNX = "rnnkern float32", "PyTorch bf16", "ONNX Runtime"
# Grid, kind, what is rounded, (B, T, H): by how much faster than whom.
BF16 = (
    ("step", "gru", "weights", (1, 1, 256), {FLOAT32: 2.5}),
    ("step", "lstm", "weights", (1, 1, 256), {FLOAT32: 1.8}),
    ("step", "gru", "weights", (1, 1, 1024), {FLOAT32: 1.8, ONNX: 3.0}),
    ("step", "lstm", "weights", (1, 1, 1024), {FLOAT32: 1.8, ONNX: 3.3}),
    ("inference", "lstm", "products", (32, 100, 512), {FLOAT32: 1.7, TORCH_BF16: 0.95}),
    ("inference", "lstm", "frozen", (32, 100, 512), {FLOAT32: 1.7, TORCH_BF16: 1.0}),
    ("training", "lstm", "products", (32, 100, 512), {FLOAT32: 1.65, TORCH_BF16: 1.05}),
    ("training", "gru", "products", (32, 100, 512), {FLOAT32: 1.65, TORCH_BF16: 2.0}),
)


def bf16_case(
    grid: str, kind: str, rounded: str, sizes: tuple[int, int, int], least: dict[str, float]
) -> Case:
    B, T, H = sizes
    targets = tuple(Target("ratio", times, to) for to, times in least.items())
    return Case(grid, kind, B, T, H, H, grid == "training", None, rounded, targets)


def all_cases() -> list[Case]:
    cases = [
        Case("step", kind, 1, 1, H, H, target=ratio(least))
        for kind in GATES
        for H, least in STEP.items()
    ]
    cases += [
        Case("block", kind, 1, BLOCK_STEPS, H, H, target=to_rtneural(least))
        for kind in ("lstm", "gru")
        for H, least in BLOCK.items()
    ]
    for grid, sizes in (("inference", INFERENCE), ("training", TRAINING)):
        cases += [
            Case(grid, kind, B, T, H, H, grid == "training", target)
            for kind in GATES
            for (B, T, H), target in sizes.items()
        ]
    cases += [
        Case("deepbench", kind, B, T, H, H, training) for kind, training, (B, T, H) in DEEPBENCH
    ]
    cases += [
        Case("tails", kind, TAILS_BATCH, TAILS_STEPS, H, I, training)
        for training in (False, True)
        for kind in GATES
        for I, H in TAILS
    ]
    return cases + [bf16_case(*row) for row in BF16]


def sharing_cases() -> list[Case]:
    """How threads share rows and units: calls of about 10 ms, which no peer is compared with."""
    cases = []
    for kind in ("lstm", "gru"):
        for H in (128, 256, 512, 1024, 2048):
            for B in (1, 4, 8, 16, 64, 256):
                for training in (False, True):
                    one = Case(SHARING, kind, B, 1, H, H, training)
                    steps = max(2, round(SHARING_FLOPS / one.flops))
                    cases.append(replace(one, T=steps))
    return cases


def quick_cases() -> list[Case]:
    """One tiny case a grid: that everything runs, not how fast."""
    return [
        Case("step", "lstm", 1, 1, 16, 16, target=ratio(STEP[16])),
        Case("block", "gru", 1, BLOCK_STEPS, 16, 16, target=to_rtneural(BLOCK[16])),
        Case("inference", "gru", 1, 10, 32, 32, target=ratio(1.5)),
        Case("training", "lstm", 4, 10, 32, 32, True, ratio(1.1)),
        Case("deepbench", "rnn_tanh", 8, 10, 32, 32, True),
        Case("tails", "rnn_tanh", 4, 10, 33, 17),
        bf16_case("step", "gru", "weights", (1, 1, 16), {FLOAT32: 1.0, ONNX: 1.0}),
        bf16_case("inference", "lstm", "frozen", (4, 10, 32), {FLOAT32: 1.0, TORCH_BF16: 1.0}),
        bf16_case("training", "gru", "products", (4, 10, 32), {FLOAT32: 1.0, TORCH_BF16: 1.0}),
    ]


def selected(cases: list[Case], grids: list[str], only: list[str]) -> list[Case]:
    """Those of these grids whose names contain one of the texts; no grid or text: all."""
    return [
        case
        for case in cases
        if (not grids or case.section in grids)
        and (not only or any(text in case.name for text in only))
    ]
