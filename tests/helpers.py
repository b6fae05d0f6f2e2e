"""What the tests of the compiled core share: layers by kind, random problems, the reference."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core, reference
from rnnkern.diagnose.common import cell_of
from rnnkern.reference import CELLS, philox, splitmix

# What needs another framework. Its tests are in tests/bridges.
BRIDGES = ("rnnkern.jax", "rnnkern.keras", "rnnkern.onnx", "rnnkern.sklearn", "rnnkern.torch")

# The reference's table: a cell that is added there is tested, or fails for want of a maker here.
KINDS = tuple(CELLS)


def _projected(I, H, *sizes, **options):
    """An LSTM whose projection is narrower than H by a third; of one unit, without projection."""
    projection = {"proj_size": 2 * H // 3, **CLIPS} if H > 1 else {"cell_clip": CLIPS["cell_clip"]}
    return rk.LSTM(I, H, *sizes, **{**projection, **options})


def _general(*sizes, **options):
    """An LSTM with what ONNX lets a model choose; of one unit, without projection."""
    I, H, *more = sizes
    size = {"proj_size": 2 * H // 3, "proj_clip": CLIPS["proj_clip"]} if H > 1 else {}
    return rk.LSTM(I, H, *more, **{**GENERAL, **size, **options})


def _rg_lru(I, H, *sizes, **options):
    """An RG-LRU of H inputs, not I; of one layer where there are two directions."""
    if options.get("bidirectional"):
        sizes, options = (), {**options, "num_layers": 1, "residual": False, "dropout": 0.0}
    return rk.RGLRU(H, H, *sizes, **options)


def _normalized(I, H, *sizes, **options):
    """An LSTM with layer norm, projected as `_projected`."""
    size = {"proj_size": 2 * H // 3} if H > 1 else {}
    return rk.LSTM(I, H, *sizes, **{**size, **options})


def _slstm(I, H, *sizes, **options):
    """An sLSTM of two heads or more; of one, where the number of units is prime."""
    heads = next((n for n in range(2, H) if H % n == 0), 1)
    return rk.SLSTM(I, H, *sizes, **{"heads": heads, **options})


CLIPS = {"cell_clip": 0.4, "proj_clip": 0.1}  # within the range of the tests' values
GENERAL = {
    "activations": ("Sigmoid", ("ScaledTanh", 1.7, 0.9), ("Affine", 1.2)),
    "forward_clip": 4.0,
    "cell_clip": 0.4,
    "peephole": True,
}
MAKERS = {
    "rnn_tanh": rk.RNN,
    "rnn_relu": partial(rk.RNN, nonlinearity="relu"),
    "lstm": rk.LSTM,
    "gru": rk.GRU,
    "gru_reset_before": partial(rk.GRU, reset_after=False),
    "lstm_clipped": partial(rk.LSTM, cell_clip=CLIPS["cell_clip"]),
    "lstm_projected": _projected,
    "min_gru": rk.MinGRU,
    "min_lstm": rk.MinLSTM,
    "ind_rnn_tanh": partial(rk.IndRNN, nonlinearity="tanh"),
    "ind_rnn_relu": rk.IndRNN,
    "lstm_peephole": partial(rk.LSTM, peephole=True, cell_clip=CLIPS["cell_clip"]),
    "rnn_general": partial(rk.RNN, activations=(("LeakyRelu", 0.25),), forward_clip=1.5),
    "lstm_general": partial(rk.LSTM, **GENERAL),
    "lstm_general_projected": _general,
    "cifg_general": partial(rk.LSTM, input_forget=True, cell_clip=CLIPS["cell_clip"]),
    "cifg_general_projected": partial(_general, input_forget=True),
    "gru_general": partial(rk.GRU, activations=("Sigmoid", ("Elu", 0.7)), forward_clip=0.9),
    "gru_reset_before_general": partial(
        rk.GRU,
        reset_after=False,
        activations=(("HardSigmoid", 0.45, 0.5), "Softplus"),
        forward_clip=0.9,
    ),
    "rg_lru": _rg_lru,
    "min_gru_identity": partial(rk.MinGRU, candidate="identity"),
    "min_gru_tanh": partial(rk.MinGRU, candidate="tanh"),
    "min_lstm_identity": partial(rk.MinLSTM, candidate="identity"),
    "min_lstm_tanh": partial(rk.MinLSTM, candidate="tanh"),
    "lstm_haste": partial(rk.LSTM, layer_norm="haste"),
    "lstm_haste_projected": partial(_normalized, layer_norm="haste"),
    "lstm_fastrnns": partial(rk.LSTM, layer_norm="fastrnns"),
    "lstm_fastrnns_projected": partial(_normalized, layer_norm="fastrnns"),
    "gru_haste": partial(rk.GRU, layer_norm="haste"),
    "slstm": _slstm,
    "rnn_tanh_noisy": partial(rk.RNN, zoneout=0.3),
    "rnn_relu_noisy": partial(rk.RNN, nonlinearity="relu", zoneout=0.15),
    "lstm_noisy": partial(rk.LSTM, zoneout=(0.1, 0.3), recurrent_dropout=0.25),
    "gru_noisy": partial(rk.GRU, zoneout=0.2, recurrent_dropout=0.3),
    "gru_reset_before_noisy": partial(
        rk.GRU, reset_after=False, zoneout=0.3, recurrent_dropout=0.2
    ),
}
# Whose training forward gives what a call gives.
QUIET = tuple(kind for kind in KINDS if not CELLS[kind].noise)
DTYPES = (np.float32, np.float64)


def _loops_of(kind):
    """What the time loops, which are compiled once for all cells, find different in a cell."""
    cell = CELLS[kind]
    roles = frozenset(parameter.role for parameter in cell.parameters)
    states = tuple((state.name, state.width) for state in cell.states)
    sums = "reset_before" in kind, cell.also_saved  # two phases; recurrent sums that stand alone
    return roles, states, sums, cell.projects, bool(cell.noise), cell.inputs_are_units


# One kind for each way through the time loops: for tests of threads, chunks, layers and directions
# that a cell's maths has no part in. The driver `fuzz` draws all of these for all kinds.
LOOPS = tuple(
    kind for i, kind in enumerate(KINDS) if _loops_of(kind) not in map(_loops_of, KINDS[:i])
)


def is_elementwise(kind):
    """Whether no product acts on h. Threads then share units of few rows without barriers."""
    products = ("recurrent_matrix", "recurrent_blocks")
    return all(p.role not in products for p in CELLS[kind].parameters)


def has_recurrent_weights(kind):
    """Whether a parameter weights h: as a matrix, as blocks, or unit by unit."""
    return any(p.name == "weight_hh" for p in CELLS[kind].parameters)


def both_ways(kind):
    """Whether several layers of a kind can have two directions: as options of a stack."""
    return {"bidirectional": not CELLS[kind].inputs_are_units}


def wide(kind, H):
    """H units, or more of a cell with so little work that fewer threads would share it."""
    return 3 * H if is_elementwise(kind) and CELLS[kind].gates == 1 else H


def sets():
    """The instruction sets that this build has and this machine runs."""
    return rk.info()["available"]


def in_each(name, values):
    """Run a test with each of these values as its argument; what it prints names the last one.

    As tests of their own, thousands of them would take less time than pytest spends on them.
    """

    def decorated(test):
        @wraps(test)
        def run(**arguments):
            for value in values() if callable(values) else values:
                print(f"{name}: {getattr(value, '__name__', value)}")
                test(**arguments, **{name: value})

        of = inspect.signature(test)
        others = [parameter for parameter in of.parameters.values() if parameter.name != name]
        run.__signature__ = of.replace(parameters=others)
        return run

    return decorated


# A test of a full product of options takes `half` and leaves out each case of which `in_half` is
# false. One half runs by default, and the other with `pytest -m slow`.
each_half = pytest.mark.parametrize(
    "half", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["first", "second"]
)


def in_half(half, *places):
    """Whether a case belongs to this half. `places` are those of its values among their options.

    Each half has every combination of all options but one, whichever that is.
    """
    return sum(map(int, places)) % 2 == half


in_each_set = in_each("isa", sets)
in_each_dtype = in_each("dtype", DTYPES)


def fused_sets():
    """Those of them with a fused multiply-add, which share their bits."""
    return [name for name in sets() if name != "baseline"]


def make_layer(kind, I, H, **options):
    layer = MAKERS[kind](I, H, **{"seed": 1, **options})
    assert layer._kind == kind or (H == 1 and CELLS[kind].projects)  # see _projected
    if not {"init", "forget_bias"} & set(options):
        _move_gains(layer)
    return layer


def _move_gains(layer):
    """Move the parameters that layer norm starts at one or zero, where no test could tell them."""
    params = layer.params
    for name in params if "gain_ih_l0" in params else ():
        if name.startswith(("gain", "bias")):
            draw = np.random.default_rng(len(name)).normal(0, 0.3, params[name].shape[-1])
            params[name] += draw.astype(layer.dtype)


def on_threads(n, use, *args, **options):
    """Call use(...) on n threads.

    Each call of a test has its own: only the first one after a number is set is certain to use it.
    Where other processes keep the cores busy, those after it may run on one thread
    (docs/decisions/0006-waiting.md).
    """
    with rk.num_threads(n):
        return use(*args, **options)


@contextmanager
def forced_grid(threads, row_groups):
    """Calls that may use so many threads use them all, in so many teams for each direction."""
    _core.force_grid(threads, row_groups)
    try:
        yield
    finally:
        _core.force_grid(0, 1)


def parts(state):
    """The arrays of a state, in the order of the cell's table; none of None."""
    if state is None:
        return []
    return list(state) if isinstance(state, tuple) else [state]


def joined(arrays):
    """A state from its arrays: the one, or a tuple of several; None from none."""
    return tuple(arrays) if len(arrays) > 1 else next(iter(arrays), None)


def fresh_like(layer, state):
    """A fresh state of the layer, of the shapes of this one."""
    table = CELLS[layer._kind].states
    return joined([np.full_like(s, of.fresh) for s, of in zip(parts(state), table, strict=True)])


def is_fresh(layer, state):
    table = CELLS[layer._kind].states
    return all((part == of.fresh).all() for part, of in zip(parts(state), table, strict=True))


def handed_through(layer, dstate):
    """What rows without a step get: the gradient given, but zeros for a state that none flows."""
    table = CELLS[layer._kind].states
    return [d if of.flows else np.zeros_like(d) for d, of in zip(parts(dstate), table, strict=True)]


def at_held_m(state, m):
    """The state (h, c, n, m) of an sLSTM with c and n relative to another m, and others as is.

    No gradient flows through m: derivatives of states are those of c and n relative to a given m.
    """
    if len(parts(state)) != 4:
        return state
    h, c, n, own = state
    return h, c * np.exp(own - m), n * np.exp(own - m), m


@dataclass(frozen=True)
class Problem:
    """The arguments of a forward and a backward, in the layer's layout."""

    x: Any
    state: Any
    lengths: Any
    dy: Any
    dstate: Any
    resets: Any = None
    mask: Any = None
    step: int = 0  # of training, from which forward draws its masks

    def but(self, **changes):
        return replace(self, **changes)

    def forward(self, layer, **options):
        layer.dropout_step = self.step
        rows = {"lengths": self.lengths, "mask": self.mask, "resets": self.resets}
        return layer.forward(self.x, self.state, **rows, **options)

    def backward(self, layer, tape, clip=None, **options):
        return layer.backward(tape, self.dy, self.dstate, clip, **options)


def random_problem(layer, T, B=None, *, state=True, lengths=None, resets=None, mask=None, seed=0):
    """Draw a problem; B None is one unbatched row, lengths "random" draws from 0 to T.

    `resets` and `mask` are the shares of steps that are True in them.
    """
    rng = np.random.default_rng(seed)
    H, P, D = layer.hidden_size, layer.output_size, 1 + layer.bidirectional

    def draw(*shape):
        return rng.normal(size=shape).astype(layer.dtype)

    def sequence(C):
        if B is None:
            return draw(T, C)
        return draw(B, T, C) if layer.batch_first else draw(T, B, C)

    def states(*, given=False):
        rows, widths = () if B is None else (B,), {"P": P, "H": H}
        table = CELLS[layer._kind].states
        drawn = [draw(layer.num_layers * D, *rows, widths[s.width]) for s in table]
        if given and layer._kind == "slstm":
            drawn[2] = 1 + np.abs(drawn[2])  # n is at least 1: see the cell
        return joined(drawn)

    shape = (T,) if B is None else (B, T) if layer.batch_first else (T, B)
    if isinstance(lengths, str):
        lengths = rng.integers(0, T + 1, B)
    return Problem(
        x=sequence(layer.input_size),
        state=states(given=True) if state else None,
        lengths=lengths,
        dy=sequence(D * P),
        dstate=states() if state else None,
        resets=None if resets is None else rng.random(shape) < resets,
        mask=None if mask is None else rng.random(shape) < mask,
    )


@dataclass(frozen=True)
class Reference:
    """What the reference says of a problem, in float64 and the layer's layout."""

    y: Any
    state: Any
    tape: Any
    grads: Any
    inferred: Any  # y and state of a call


def options_of(layer):
    """What the reference calls the options of a layer's cell."""
    cell = CELLS[layer._kind]
    size = ("proj_size",) if cell.projects else ()
    peephole = ("peephole",) if any(p.needs == "peephole" for p in cell.parameters) else ()
    options = {name: getattr(layer, name) for name in (*cell.options, *size, *peephole)}
    if "activations" in options:
        options["activations"] = cell_of(layer).activations
    return options


def config_of(layer):
    """What the reference calls the sizes and options of a layer."""
    return reference.Config(
        layer._kind,
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        layer.bidirectional,
        layer.bias,
        layer.residual,
        **options_of(layer),
        reverse=layer.reverse,
    )


NOISE = ("zoneout_h", "zoneout_c", "recurrent_dropout")  # as the core numbers them


def noise_of(layer, T, B, step=0):
    """What a training forward draws in each layer and direction, as the reference takes it."""
    names, H, D = CELLS[layer._kind].noise, layer.hidden_size, 1 + layer.bidirectional
    if not names:
        return None
    key = splitmix(layer._dropout_seeds[0], step)
    t, b, j = np.indices((T, B, -(-H // 4))).reshape(3, -1)

    def values(l, d, name):
        p, place = (
            layer._cell.noise[NOISE.index(name)],
            (1 + 2 * NOISE.index(name) + (d or layer.reverse)) * 2**16 + l,
        )
        words = philox([j, b, t, np.full_like(j, place)], [key % 2**32, key >> 32])
        kept = words.T.reshape(T, B, -(-H // 4) * 4)[:, :, :H] >= int(p * 2**32)
        return kept / (1 - p) if name == "recurrent_dropout" else kept.astype(np.float64)

    places = [(l, d) for l in range(layer.num_layers) for d in range(D)]
    return [{name: values(l, d, name) for name in names} for l, d in places]


def run_reference(layer, problem, clip=None, masks=None, flow_penalty=0.0, **formats):
    """Run the reference on a layer's parameters; `formats` are `weights` and `compute`."""
    unbatched = problem.x.ndim == 2
    config = replace(config_of(layer), **formats)
    params = {name: p.astype(np.float64) for name, p in layer.params.items()}

    def sequence(a):  # to (T, B, C); its own inverse but for the unbatched row
        if unbatched:
            return a[:, None]
        return a.swapaxes(0, 1) if layer.batch_first else a

    def state_in(state):
        return joined([a[:, None] if unbatched else a for a in parts(state)])

    def state_out(state):
        return joined([a[:, 0] if unbatched else a for a in parts(state)])

    def sequence_out(a):
        return a[:, 0] if unbatched else sequence(a)

    resets = None if problem.resets is None else sequence(problem.resets)
    mask = None if problem.mask is None else sequence(problem.mask)
    x, first = sequence(problem.x), state_in(problem.state)

    def forward(masks=None, noise=None):
        rows = problem.lengths, masks, resets, noise, mask
        return reference.forward(config, params, x, first, *rows)

    noise = noise_of(layer, *x.shape[:2], problem.step)
    if noise and mask is not None:  # which goes by a row's real steps
        place = np.cumsum(mask, axis=0)[:, :, None] - 1
        noise = [{n: np.take_along_axis(v, place, 0) for n, v in of.items()} for of in noise]
    y, state, tape = forward(masks, noise)
    drawn = masks is not None or noise is not None
    inferred_y, inferred_state, _ = forward() if drawn else (y, state, tape)
    dy = None if problem.dy is None else sequence(problem.dy)
    grads = reference.backward(
        config, params, tape, dy, state_in(problem.dstate), clip, flow_penalty
    )
    grads = replace(grads, x=sequence_out(grads.x), state=state_out(grads.state))
    inferred = (sequence_out(inferred_y), state_out(inferred_state))
    return Reference(sequence_out(y), state_out(state), tape, grads, inferred)


def assert_close(got, want, dtype, what="", chain=10_000, terms=0.0):
    """Compare a result in `dtype` with the reference's float64.

    A value is the end of chains of n roundings: over the T steps of L layers a product of I + H
    terms each, in a parameter's gradient a sum over T * B more. The error grows as sqrt(n) units
    of the largest terms that entered (Higham & Mary 2019), which we take to be the size of the
    array's largest value; the factor 4 covers sums that cancel and slopes 1 - h**2 near 0.
    `chain` is n; 10,000 bounds all but the longest sums here. The bound is then 5e-5 (float32) or
    9e-14 (float64) of the largest value; the worst measured was two fifths of it. Values below
    the smallest normal number are flushed to zero, wherever in a chain they arise. Infinite are the
    same values, such as those of a fresh state.

    With layer norm, differences of a row's values are divided by their standard deviation, which
    can be as small as the root of 1e-5, and a gradient is what is left of one when its means are
    taken away: of few units next to nothing. `terms`, if not 0, is the size of what is subtracted,
    and the bound is 100 times as large; the worst measured was a third of it, of two units.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    infinite = np.isinf(want)
    assert np.array_equal(got[infinite], want[infinite]), f"{what}: infinite are other values"
    got, want = got[~infinite], want[~infinite]
    if not want.size:
        return
    limits = np.finfo(dtype)
    size = max(np.abs(want).max(), terms) * (100.0 if terms else 1.0)
    bound = 4.0 * chain**0.5 * limits.eps * size + chain * limits.tiny
    worst = np.abs(got - want).max()
    assert worst <= bound, f"{what}: off by {worst:.3g}, more than {bound:.3g}"


def assert_same(layer, result, want, chain=10_000):
    """Compare (y, state, grads) with a `Reference`'s; `chain`: of the parameters' gradients."""
    y, state, grads = result
    assert list(grads.params) == list(want.grads.params)
    normalizes = "gain_ih_l0" in want.grads.params
    terms = max((np.abs(g).max() for g in want.grads.params.values() if normalizes), default=0.0)
    for name, got, expected in (
        ("y", y, want.y),
        ("state", state, want.state),
        ("grads.x", grads.x, want.grads.x),
        ("grads.state", grads.state, want.grads.state),
    ):
        assert isinstance(got, tuple) == isinstance(expected, tuple)
        for part, part_expected in zip(parts(got), parts(expected), strict=True):
            assert part.dtype == layer.dtype, f"{name}: dtype {part.dtype}"
            assert_close(part, part_expected, layer.dtype, name, terms=terms)
    for name, got in grads.params.items():
        assert got.dtype == layer.dtype, f"{name}: dtype {got.dtype}"
        assert_close(got, want.grads.params[name], layer.dtype, name, chain, terms)
    assert_close(grads.norm, want.grads.norm, layer.dtype, "grads.norm", chain, terms)
    assert_close(grads.scale, want.grads.scale, layer.dtype, "grads.scale", chain, terms)
    assert grads.finite == want.grads.finite
