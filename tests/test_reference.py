"""The float64 reference: against differences, against itself row by row, and against PyTorch."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers import in_each

from rnnkern import reference
from rnnkern.reference import (
    ACTIVATIONS,
    CELLS,
    Config,
    backward,
    forward,
    parameter_shapes,
)
from rnnkern.reference.activations import (
    Affine,
    Elu,
    HardSigmoid,
    LeakyRelu,
    Relu,
    ScaledTanh,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
    ThresholdedRelu,
)

# Two float64 evaluations of one formula, in another order of summation: sums of at most a few
# hundred terms of size 1, each rounded to 2^-53, stay well below 1e-12.
SAME_FORMULA = {"rtol": 1e-10, "atol": 1e-12}

LENGTHS = [3, 0, 2]  # unsorted, with a full row, an empty row and a padded one
T, B, I, P = 3, 3, 3, 2

# Every cell without options, and with all that it has: each clip finite, and activations that tell
# from their value what their argument was, so that `Problem.limited` sees the forward clip.
CASES = {
    **{cell: {"cell": cell} for cell in CELLS},
    "lstm_clipped finite": {"cell": "lstm_clipped", "cell_clip": 0.6},
    "lstm_peephole finite": {"cell": "lstm_peephole", "cell_clip": 0.5},
    "lstm_projected finite": {"cell": "lstm_projected", "cell_clip": 0.6, "proj_clip": 0.2},
    "rnn_general finite": {
        "cell": "rnn_general",
        "activations": (Softsign(),),
        "forward_clip": 1.5,
    },
    "lstm_general finite": {
        "cell": "lstm_general",
        "peephole": True,
        "activations": (Softplus(), Elu(0.7), Softsign()),
        "forward_clip": 1.5,
        "cell_clip": 0.7,
    },
    "lstm_general_projected finite": {
        "cell": "lstm_general_projected",
        "peephole": True,
        "activations": (Sigmoid(), ScaledTanh(1.2, 0.8), LeakyRelu(0.3)),
        "forward_clip": 1.5,
        "cell_clip": 0.7,
        "proj_clip": 0.2,
    },
    "cifg_general finite": {
        "cell": "cifg_general",
        "peephole": True,
        "activations": (Sigmoid(), Softsign(), Affine(0.8, 0.1)),
        "forward_clip": 1.5,
        "cell_clip": 0.4,
    },
    "cifg_general_projected finite": {
        "cell": "cifg_general_projected",
        "peephole": True,
        "activations": (Softsign(), Tanh(), ScaledTanh(0.9, 1.1)),
        "forward_clip": 1.5,
        "cell_clip": 0.7,
        "proj_clip": 0.1,
    },
    "gru_general finite": {
        "cell": "gru_general",
        "activations": (Softsign(), LeakyRelu(0.4)),
        "forward_clip": 1.5,
    },
    "gru_reset_before_general finite": {
        "cell": "gru_reset_before_general",
        "activations": (Sigmoid(), Elu()),
        "forward_clip": 1.5,
    },
    "rnn_tanh_noisy finite": {"cell": "rnn_tanh_noisy", "zoneout": 0.3},
    "rnn_relu_noisy finite": {"cell": "rnn_relu_noisy", "zoneout": 0.3},
    "lstm_noisy finite": {"cell": "lstm_noisy", "zoneout": (0.4, 0.3), "recurrent_dropout": 0.4},
    "gru_noisy finite": {"cell": "gru_noisy", "zoneout": 0.3, "recurrent_dropout": 0.4},
    "gru_reset_before_noisy finite": {
        "cell": "gru_reset_before_noisy",
        "zoneout": 0.3,
        "recurrent_dropout": 0.4,
    },
    "slstm heads": {"cell": "slstm", "heads": 2},
    "slstm exp": {"cell": "slstm", "exp_forget": True},
}


def config_of(
    case, inputs=I, outputs=P, num_layers=1, bidirectional=False, bias=True, residual=False
):
    """Configure a case so that h is `outputs` wide: H is outputs, one more with a projection.

    RG-LRU gets as many inputs, and one layer where it is bidirectional.
    """
    options = {**CASES[case]}
    cell = CELLS[options["cell"]]
    projects = cell.projects
    if cell.inputs_are_units:  # I is H in each layer, and D*H above the first one
        inputs, num_layers = outputs, 1 if bidirectional else num_layers
    if outputs == 1:
        options.pop("heads", None)
    return Config(
        input_size=inputs,
        hidden_size=outputs + projects,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        residual=residual,
        proj_size=outputs * projects,
        **options,
    )


def width_of(case):
    """P, or more where the layer norm of a state of two units would be close to a step."""
    return 5 if any(p.role == "state_gain" for p in CELLS[CASES[case]["cell"]].parameters) else P


def seed_of(case):
    """A seed with which no row to be normalized has values so close to one another."""
    return 3 if any(p.role == "input_gain" for p in CELLS[CASES[case]["cell"]].parameters) else 0


def clips_of(case):
    return [option for option in CASES[case] if option.endswith("_clip")]


# Each activation once more, of NumPy's or PyTorch's functions m.
FORMULAS = {
    "Relu": lambda m, a: m.where(a > 0, a, 0.0 * a),
    "Tanh": lambda m, a: m.tanh(a),
    "Sigmoid": lambda m, a: 1 / (1 + m.exp(-a)),
    "Affine": lambda m, a, alpha, beta: alpha * a + beta,
    "LeakyRelu": lambda m, a, alpha: m.where(a > 0, a, alpha * a),
    "ThresholdedRelu": lambda m, a, alpha: m.where(a > alpha, a, 0.0 * a),
    "ScaledTanh": lambda m, a, alpha, beta: alpha * m.tanh(beta * a),
    "HardSigmoid": lambda m, a, alpha, beta: m.clip(alpha * a + beta, 0.0, 1.0),
    "Elu": lambda m, a, alpha: m.where(a > 0, a, alpha * (m.exp(a) - 1)),
    "Softsign": lambda m, a: a / (1 + m.abs(a)),
    "Softplus": lambda m, a: m.log(1 + m.exp(a)),
}


def activated(m, config, of, a):
    """The activation of a gate's argument, or of the LSTM's c, by the functions of m."""
    if config.activations is not None:
        act = config.activations[{"g": 1, "n": 1, "c": 2}.get(of, 0)]
    else:
        act = Relu() if "relu" in config.cell else Tanh() if of in "hgnc" else Sigmoid()
    if config.forward_clip is not None and of != "c":
        a = m.clip(a, -config.forward_clip, config.forward_clip)
    return FORMULAS[type(act).__name__](m, a, *vars(act).values())


def candidate(m, cell, a):
    """The candidate of minGRU and minLSTM, by the functions of m."""
    if cell.endswith("identity"):
        return a
    if cell.endswith("tanh"):
        return m.tanh(a)
    return m.where(a >= 0, a + 0.5, 1 / (1 + m.exp(-a)))


@dataclass(frozen=True)
class Clip:
    step_value: float | None = None
    step_norm: float | None = None
    value: float | None = None
    max_norm: float | None = None


class Problem:
    """Random arguments for one configuration."""

    def __init__(
        self,
        config,
        *,
        steps=T,
        rows=B,
        lengths=None,
        dropout=False,
        resets=None,
        mask=None,
        seed=0,
    ):
        draw = np.random.default_rng(seed).normal
        width = config.directions * config.output_size
        table = CELLS[config.cell].states
        self.names = [state.name for state in table]
        widths = {"P": config.output_size, "H": config.hidden_size}
        shapes = [
            (config.num_layers * config.directions, rows, widths[state.width]) for state in table
        ]
        self.config = config
        self.lengths = None if lengths is None else np.array(lengths)
        self.resets, self.mask = resets, mask
        self.params = {k: draw(size=s) for k, s in parameter_shapes(config).items()}
        self.x = draw(size=(steps, rows, config.input_size))
        self.dy = draw(size=(steps, rows, width))
        self.states = [draw(size=shape) for shape in shapes]
        self.fresh = [
            np.full(s.shape, info.fresh) for s, info in zip(self.states, table, strict=True)
        ]
        if "m" in self.names:
            self.states[2] = 1 + np.abs(self.states[2])  # n is at least 1: see the cell
        self.dstates = [draw(size=shape) for shape in shapes]
        self.masks = None
        if dropout:
            masks = draw(size=(config.num_layers - 1, steps, rows, width)) > 0
            # No row without inputs: around zero layer norm is too steep for differences.
            masks[..., 0] |= "gain_ih_l0" in self.params
            self.masks = list(2.0 * masks)
        self.noise = None
        if dropout:
            like = (steps, rows, config.hidden_size)
            self.noise = [drawn_noise(config, like, draw) for _ in self.states[0]]

    def forward(self):
        state = joined(self.states)
        options = (self.lengths, self.masks, self.resets, self.noise, self.mask)
        return forward(self.config, self.params, self.x, state, *options)

    def backward(self, clip=None):
        *_, tape = self.forward()
        return backward(self.config, self.params, tape, self.dy, joined(self.dstates), clip)

    def handed_through(self):
        """The gradients of the states without a step: those given, but zeros where none flows."""
        table = CELLS[self.config.cell].states
        return [d * info.flows for d, info in zip(self.dstates, table, strict=True)]

    def loss(self, m_held=None):
        """The loss; that of sLSTM's c and n is of their values relative to a given m."""
        y, state, _ = self.forward()
        state = split(state)
        if m_held is not None:
            h, c, n, m = state
            state = [h, c * np.exp(m - m_held), n * np.exp(m - m_held), m_held]
        pairs = zip([y, *state], [self.dy, *self.dstates], strict=True)
        return sum(np.sum(a * da) for a, da in pairs)

    def limited(self, option):
        """Which elements a forward clip limits, over layers, directions and steps."""
        *_, tape = self.forward()
        if option == "forward_clip":
            bounds = self.config.forward_clip * np.array([[-1.0], [1.0]])
            table = CELLS[self.config.cell].gate_table
            ends = np.hstack([activated(np, self.config, gate.name, bounds) for gate in table])
            ends = np.repeat(ends, self.config.hidden_size, axis=1)
            gates = np.vstack([step.gates for steps in tape.steps for step in steps])
            return np.any(np.isclose(gates, ends[:, None], rtol=1e-12), axis=0)
        state = {"cell_clip": 1, "proj_clip": 0}[option]
        values = [step.new[state].ravel() for steps in tape.steps for step in steps]
        return np.abs(np.concatenate(values)) == getattr(self.config, option)

    def taking(self, other):
        """The same parameters, with the arguments of another problem."""
        self.x, self.dy = other.x, other.dy
        self.states, self.dstates = other.states, other.dstates
        return self

    def row(self, b):
        """The same problem, with this row alone and its padding cut off."""
        one = Problem(self.config)
        end = len(self.x) if self.lengths is None else self.lengths[b]
        one.params, one.lengths = self.params, None
        one.x, one.dy = self.x[:end, b : b + 1], self.dy[:end, b : b + 1]
        one.states = [s[:, b : b + 1] for s in self.states]
        one.dstates = [s[:, b : b + 1] for s in self.dstates]
        one.masks = None if self.masks is None else [m[:end, b : b + 1] for m in self.masks]
        if self.noise is not None:
            one.noise = [
                {name: values[:end, b : b + 1] for name, values in drawn.items()}
                for drawn in self.noise
            ]
        return one


def drawn_noise(config, shape, draw):
    """What training draws in a layer and direction, of a shape, from normal numbers."""
    return {
        name: (draw(size=shape) > 0) / (0.5 if name == "recurrent_dropout" else 1.0)
        for name in CELLS[config.cell].noise
    }


def split(state):
    return list(state) if isinstance(state, tuple) else [state]


def joined(states):
    return tuple(states) if len(states) > 1 else states[0]


def assert_same(actual, expected, name):
    np.testing.assert_allclose(actual, expected, **SAME_FORMULA, err_msg=name)


def assert_same_gradients(grads, params, x, states):
    """Compare gradients; `states` None leaves those of the state out."""
    assert list(grads.params) == list(params)
    for name, expected in params.items():
        assert_same(grads.params[name], expected, name)
    assert_same(grads.x, x, "x")
    if states is not None:
        for actual, expected in zip(split(grads.state), states, strict=True):
            assert_same(actual, expected, "state")


def assert_equal(actual, expected):
    """Compare two states, bit by bit."""
    for one, other in zip(split(actual), split(expected), strict=True):
        np.testing.assert_array_equal(one, other)


every_case = pytest.mark.parametrize("case", CASES)
# Other tests compare general and noisy cells without options with the usual cells, and CIFG with
# the LSTM.
OF_OPTIONS = ("_general", "_general_projected", "_noisy")
every_formula = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.endswith(OF_OPTIONS)]
)
every_shape = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (1, True), (2, False), (2, True)]
)


# ------------------------------------------------------------------------- forward, backward


DIRECTIONS = 4


def directions_in(array):
    """Directions of length 1 in the space of an array: its axes, or as many as random ones.

    A gradient with an error has another component along each random direction: that the error is
    at right angles to one, to within the tolerances, has a probability below 1e-3.
    """
    if array.size <= DIRECTIONS:
        return np.eye(array.size).reshape(array.size, *array.shape)
    drawn = np.random.default_rng(array.size).normal(size=(DIRECTIONS, *array.shape))
    return np.array([one / np.linalg.norm(one) for one in drawn])


def difference_quotients(loss, array, directions):
    """Central differences of loss along directions from an array."""
    # 2^-17 balances the truncation error, eps^2 f''' / 6, about 1e-11 f''', against the
    # rounding error, 2^-53 |loss| / eps, about 1e-11 |loss|.
    eps = 2.0**-17
    middle, quotients = array.copy(), []
    for direction in directions:
        array[:] = middle + eps * direction
        above = loss()
        array[:] = middle - eps * direction
        below = loss()
        quotients.append((above - below) / (2 * eps))
    array[:] = middle
    return quotients


def assert_gradients_are_differences(problem):
    grads = problem.backward()
    named = {**problem.params, "x": problem.x, **dict(zip("hcn", problem.states, strict=False))}
    analytic = {**grads.params, "x": grads.x, **dict(zip("hcn", split(grads.state), strict=False))}
    assert list(named) == list(analytic)
    m_held = problem.forward()[1][3] if "m" in problem.names else None
    normalizes = "gain_ih_l0" in problem.params
    for name, array in named.items():
        # The error bound of difference_quotients, with |loss| about 10 and f''' up to some
        # hundreds, is 1e-8; a wrong term is of the size of the gradients, 0.01 to 10. Layer norm
        # divides by standard deviations that can be well below 1: f''' has their third power.
        directions = directions_in(array)
        np.testing.assert_allclose(
            [np.vdot(direction, analytic[name]) for direction in directions],
            difference_quotients(lambda: problem.loss(m_held), array, directions),
            rtol=1e-6 if normalizes else 1e-7,
            atol=1e-7 if normalizes else 1e-8,
            err_msg=f"gradient of {name} along {len(directions)} directions",
        )


@every_formula
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias", "lengths"),
    [  # all pairs of values of any two options; no code joins three
        (2, True, True, LENGTHS),
        (2, False, False, None),
        (1, True, False, None),
        (1, False, True, None),
        (1, False, False, LENGTHS),
    ],
)
def test_gradients_are_the_central_differences(case, layers, bidirectional, bias, lengths):
    config = config_of(case, I, width_of(case), layers, bidirectional, bias)
    problem = Problem(config, lengths=lengths, dropout=layers > 1, seed=seed_of(case))
    for option in clips_of(case):
        limited = problem.limited(option)
        assert np.any(limited), f"{option} limits no element"
        assert not np.all(limited), f"{option} limits every element"
    assert_gradients_are_differences(problem)


@every_formula
def test_gradients_with_resets_and_residual_layers_are_the_central_differences(case):
    resets = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])  # one in padding, one at the first step
    config = config_of(case, I, width_of(case), 2, bidirectional=True, residual=True)
    problem = Problem(config, lengths=LENGTHS, resets=resets, seed=seed_of(case))
    assert_gradients_are_differences(problem)


@every_formula
def test_gradients_with_masked_steps_are_the_central_differences(case):
    mask = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0]])  # in front and behind, between, everywhere
    behind = not case.startswith("slstm")  # whose fresh m, the last state then, is infinite
    resets = np.array([[0, 0, 0], [0, 1, 0], [behind, 0, 0]])
    config = config_of(case, I, width_of(case), 2, bidirectional=True, residual=True)
    problem = Problem(config, mask=mask, resets=resets, dropout=True, seed=seed_of(case))
    assert_gradients_are_differences(problem)


@every_case
def test_masked_steps_are_skipped(case):
    """Rows are those of calls on their real steps, whatever stands at the others."""
    problem = Problem(config_of(case, I, P, 2, bidirectional=True), steps=6, seed=1)
    problem.mask = np.random.default_rng(0).random((6, B)) < 0.5
    problem.x[~problem.mask] = np.nan
    problem.dy[~problem.mask] = np.nan
    y, final, _ = problem.forward()
    grads = problem.backward()
    for b in range(B):
        real, row = problem.mask[:, b], slice(b, b + 1)
        own = Problem(problem.config)
        own.params, own.x, own.dy = problem.params, problem.x[real, row], problem.dy[real, row]
        own.states = [s[:, row] for s in problem.states]
        own.dstates = [d[:, row] for d in problem.dstates]
        y_own, final_own, _ = own.forward()
        assert_same(y[real, row], y_own, "y")
        assert_same(grads.x[real, row], own.backward().x, "dx")
        for s, s_own in zip(split(final), split(final_own), strict=True):
            assert_same(s[:, row], s_own, "final state")
        for d, d_own in zip(split(grads.state), split(own.backward().state), strict=True):
            assert_same(d[:, row], d_own, "gradient of the initial state")
        assert not y[~real, b].any()
        assert not grads.x[~real, b].any()


# RG-LRU tells a reset from a sequence that begins without one: its own test is the next one.
@pytest.mark.parametrize("case", [case for case in CASES if case != "rg_lru"])
def test_reset_separates_the_steps_before_it_from_the_steps_after_it(case):
    whole, cut = Problem(config_of(case, I, P, 2, bidirectional=True)), 2
    whole.resets = np.zeros((T, B), dtype=bool)
    whole.resets[cut] = True
    y, final, _ = whole.forward()
    grads = whole.backward()
    sums = {name: np.zeros_like(p) for name, p in whole.params.items()}
    # Direction `first` has its initial state in the part, direction `last` its final state.
    for part, first, last in ((slice(cut), 0, 1), (slice(cut, T), 1, 0)):
        half = Problem(whole.config)
        half.params, half.x, half.dy = whole.params, whole.x[part], whole.dy[part]
        for s, s_fresh, ds in zip(half.states, half.fresh, half.dstates, strict=True):
            s[last::2], ds[first::2] = s_fresh[last::2], 0.0
        y_half, final_half, _ = half.forward()
        grads_half = half.backward()
        assert_same(y[part], y_half, "y")
        assert_same(grads.x[part], grads_half.x, "dx")
        for s, s_half in zip(split(final), split(final_half), strict=True):
            assert_same(s[last::2], s_half[last::2], "final state")
        for d, d_half in zip(split(grads.state), split(grads_half.state), strict=True):
            assert_same(d[first::2], d_half[first::2], "gradient of the initial state")
        for name in sums:
            sums[name] += grads_half.params[name]
    for name, total in sums.items():
        assert_same(grads.params[name], total, name)


def test_reset_of_rg_lru_lets_the_input_in_whole_and_the_state_before_not_at_all():
    config = Config("rg_lru", P, P, bidirectional=True)
    p = Problem(config)
    p.resets = np.zeros((T, B), dtype=bool)
    p.resets[1] = True
    y, _, _ = p.forward()
    gates = {}
    for d, suffix in enumerate(["_l0", "_l0_reverse"]):
        a = p.x @ p.params["weight_ih" + suffix].T + p.params["bias_ih" + suffix]
        gates[d] = np.split(sigmoid(a), 2, axis=-1)
    # Step 1 is the first of its sequence forward, step 0 in reverse: the reset lies between them.
    assert_same(y[1, :, :P], gates[0][1][1] * p.x[1], "forward")
    assert_same(y[0, :, P:], gates[1][1][0] * p.x[0], "reverse")
    # A sequence that begins without a reset has the factor sqrt(1 - a^2) at its first step, too.
    from_zeros, _, _ = forward(config, p.params, p.x)
    r, i = (gate[0] for gate in gates[0])
    a = np.exp(-8 * np.log1p(np.exp(p.params["lambda_l0"])) * r)
    assert_same(from_zeros[0, :, :P], np.sqrt(1 - a**2) * i * p.x[0], "from zeros")


def test_slope_of_the_root_of_rg_lru_is_limited_where_nothing_decays():
    # softplus(-40) = exp(-40): a is 1 to 1e-17, and s is 6e-9, so that 1 / (2 s) is 9e7.
    params = {"weight_ih_l0": np.zeros((2, 1)), "bias_ih_l0": np.zeros(2), "lambda_l0": [-40.0]}
    config, h, x = Config("rg_lru", 1, 1), 0.9, 0.6
    _, _, tape = forward(config, params, [[[x]]], [[[h]]])
    grads = backward(config, params, tape, [[[1.0]]])
    d_log_a = h - 2 * 1000 * 0.5 * x  # both gates are 1/2; d(1 - a^2) / d(log a) = -2
    expected = d_log_a * -8 * 0.5 * np.exp(-40)
    got = [grads.params["lambda_l0"].item(), grads.params["bias_ih_l0"][0]]
    # SAME_FORMULA without its absolute tolerance, as these are of the size of 1e-15.
    np.testing.assert_allclose(got, [expected, expected / 2], rtol=1e-10)


@every_case
def test_residual_layer_adds_its_input_before_dropout_to_its_output(case):
    both = Problem(config_of(case, I, P, 2, residual=True), lengths=LENGTHS, dropout=True)
    y, *_ = both.forward()

    def layer(k, inputs):
        params = {n[:-1] + "0": p for n, p in both.params.items() if n.endswith(f"_l{k}")}
        state = joined([s[k : k + 1] for s in both.states])
        config, noise = config_of(case, inputs.shape[-1], P), both.noise[k : k + 1]
        return forward(config, params, inputs, state, both.lengths, noise=noise)[0]

    below = layer(0, both.x)
    assert_same(y, layer(1, below * both.masks[0]) + below, "y")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def normalized(v, gain, bias):
    """Layer norm, with NumPy's variance: of all of v's elements."""
    return (v - np.mean(v)) / np.sqrt(np.var(v) + 1e-5) * gain + bias


def layer_norm_step(config, products, gains, biases, state, of_c, W_hr):
    """One step with layer norm, from both products (G, H)."""
    of_x, of_h = (normalized(*given) for given in zip(products, gains, biases, strict=True))
    if config.cell == "gru_haste":
        (x_r, x_z, x_n), (h_r, h_z, h_n), h = of_x, of_h, state[0]
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        return [(1 - z) * np.tanh(x_n + r * h_n) + z * h]
    assert config.cell.startswith("lstm"), f"{config.cell}: expected a step here"
    i, f, g, o = of_x + of_h
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    seen = normalized(c, *of_c)
    h = sigmoid(o) * np.tanh(seen)
    if W_hr is not None:
        h = np.array([W_hr[0] * h[0] + W_hr[1] * h[1]])
    return [h, seen if "fastrnns" in config.cell else c]


def lstm_step(config, a, c, p, W_hr):
    """One step of each LSTM, from the gates' arguments without the peepholes' part."""

    def act(of, argument):
        return activated(np, config, of, argument)

    if config.cell.startswith("cifg"):
        (a_i, a_g, a_o), (p_i, p_o) = a, p
        i = act("i", a_i + p_i * c)
        f = 1 - i
    else:
        (a_i, a_f, a_g, a_o), (p_i, p_f, p_o) = a, p
        i, f = act("i", a_i + p_i * c), act("f", a_f + p_f * c)
    if config.forward_clip is not None:
        assert np.any(np.abs(a_i + p_i * c) > config.forward_clip)
        assert np.any(np.abs(a_g) > config.forward_clip)
    c_new = f * c + i * act("g", a_g)
    if config.cell_clip is not None:
        assert np.any(np.abs(c_new) > config.cell_clip)
        c_new = np.minimum(np.maximum(c_new, -config.cell_clip), config.cell_clip)
    h_new = act("o", a_o + p_o * c_new) * act("c", c_new)
    if W_hr is not None:
        h_new = np.array([W_hr[0] * h_new[0] + W_hr[1] * h_new[1]])
    if config.proj_clip is not None:
        assert np.any(np.abs(h_new) > config.proj_clip)
        h_new = np.minimum(np.maximum(h_new, -config.proj_clip), config.proj_clip)
    return [h_new, c_new]


@every_case
def test_one_step_of_one_output_is_the_equation(case):
    config = config_of(case, 1, 1)
    # Within the range of these values; c goes beyond the forward clip, which is not for it.
    within = {"forward_clip": 0.38, "cell_clip": 0.4, "proj_clip": 0.05}
    clips = {name: bound for name, bound in within.items() if name in clips_of(case)}
    config = replace(config, **clips)
    cell, gates, units = config.cell, CELLS[config.cell].gates, config.hidden_size
    w, u, b, d = np.linspace(-1.0, 1.3, 4 * gates * units).reshape(4, gates, units)
    x, h, c = 0.7, -0.4, np.array([0.9, -0.5])[:units]
    W_hr = np.array([1.1, 0.8]) if CELLS[cell].projects else None
    p = np.outer([0.5, -1.2, 0.7], [1.0, -0.4])[: CELLS[cell].vectors or 3, :units]
    p = p * (cell == "lstm_peephole" or config.peephole)
    if "relu" in cell:
        b = b + 1  # on the side where relu passes something
    if cell.startswith("min_gru"):
        z, v = (w[k] * x + b[k] for k in (0, 1))
        g = candidate(np, cell, v)
        expected = [(1 - sigmoid(z)) * h + sigmoid(z) * g]
    elif cell.startswith("min_lstm"):
        f, i, v = (w[k] * x + b[k] for k in (0, 1, 2))
        g = candidate(np, cell, v)
        expected = [(sigmoid(f) * h + sigmoid(i) * g) / (sigmoid(f) + sigmoid(i))]
    elif "haste" in cell or "fastrnns" in cell:
        if "lstm_haste" in cell:
            d = 0 * d
        products, gains, of_c = (w * x, u * h), (b + 1.5, d - 0.7), ([1.3, -0.6], [0.2, 0.1])
        of_c = [np.array(v)[:units] for v in of_c]
        state = [h, c]
        expected = layer_norm_step(config, products, gains, (b, d), state, of_c, W_hr)
    elif cell == "rg_lru":
        r, i = (sigmoid(w[k] * x + b[k]) for k in (0, 1))
        a = (1 + np.exp(0.3)) ** (-8 * r)
        expected = [a * h + np.sqrt(1 - a**2) * (i * x)]
    elif cell == "slstm":
        i, f, z, o = w * x + b + u * h
        n, m = 1.4, -0.3
        f = f if config.exp_forget else np.log(sigmoid(f))
        m_new = max(i, f + m)  # c exp(m) and n exp(m) follow the equations of the gates exp(i), f
        c_new = (np.exp(f + m) * c + np.exp(i) * np.tanh(z)) / np.exp(m_new)
        n_new = (np.exp(f + m) * n + np.exp(i)) / np.exp(m_new)
        expected = [sigmoid(o) * c_new / n_new, c_new, n_new, m_new]
    elif cell.startswith("gru"):
        r, z = (activated(np, config, "r", w[k] * x + b[k] + u[k] * h + d[k]) for k in (0, 1))
        if "before" in cell:
            a_n = w[2] * x + b[2] + u[2] * (r * h) + d[2]
        else:
            a_n = w[2] * x + b[2] + r * (u[2] * h + d[2])
        n = activated(np, config, "n", a_n)
        expected = [(1 - z) * n + z * h]
    elif cell.startswith(("rnn", "ind_rnn")):
        a = w * x + b + u * h + (0 if cell.startswith("ind") else d)
        expected = [activated(np, config, "h", a[0])]
        assert "relu" not in cell or np.all(a > 0)
    else:
        assert cell.startswith(("lstm", "cifg")), f"{cell}: expected a cell with an equation here"
        expected = lstm_step(config, w * x + b + u * h + d, c, p, W_hr)
    if cell.endswith("noisy"):  # the mean of zoneout; that of recurrent dropout is a factor of 1
        zoneout = config.zoneout if isinstance(config.zoneout, tuple) else (config.zoneout,) * 2
        blends = zip(zoneout, (h, c), expected, strict=False)
        expected = [p * before + (1 - p) * new for p, before, new in blends]
    given = {"weight_ih": w, "weight_hh": u, "bias_ih": b, "bias_hh": d}
    given |= {"weight_ch": p, "weight_hr": W_hr, "lambda": np.array(0.3)}
    if "gain_ih_l0" in parameter_shapes(config):
        given |= {"gain_ih": gains[0], "gain_hh": gains[1], "gain_c": of_c[0], "bias_c": of_c[1]}
    shapes = parameter_shapes(config)
    params = {name: given[name.removesuffix("_l0")].reshape(s) for name, s in shapes.items()}
    given = (h, c, 1.4, -0.3)[: len(expected)]
    state = joined([np.reshape(s, (1, 1, -1)) for s in given])
    y, final, _ = forward(config, params, np.full((1, 1, 1), x), state)
    assert_same(y.ravel(), expected[0], "y")
    for s, s_expected in zip(split(final), expected, strict=True):
        assert_same(s.ravel(), s_expected, "final state")


@pytest.mark.parametrize(("w_v", "g"), [(-2.0, sigmoid(-2.0)), (0.0, 0.5), (2.0, 2.5)])
def test_min_gru_candidate_on_each_side_of_zero(w_v, g):
    params = {"weight_ih_l0": [[0.3], [w_v]]}
    y, _, _ = forward(Config("min_gru", 1, 1, bias=False), params, [[[1.0]]], [[[0.2]]])
    assert_same(y.item(), (1 - sigmoid(0.3)) * 0.2 + sigmoid(0.3) * g, "h")


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_ind_rnn_is_the_rnn_of_a_diagonal_recurrent_matrix(act):
    ind = Problem(Config(f"ind_rnn_{act}", I, P, 2, bidirectional=True), lengths=LENGTHS)
    rnn = Problem(Config(f"rnn_{act}", I, P, 2, bidirectional=True), lengths=LENGTHS)
    for name, p in rnn.params.items():
        given = ind.params.get(name, 0.0)  # IndRNN has no bias_hh
        p[...] = np.diag(given) if "weight_hh" in name else given
    rnn.taking(ind)
    assert_same(ind.forward()[0], rnn.forward()[0], "y")
    # The clips of the step act on the same da and on the same rows.
    for clip in (None, Clip(step_value=0.05, step_norm=0.3)):
        grads, of_rnn = ind.backward(clip), rnn.backward(clip)
        expected = {
            name: np.diag(of_rnn.params[name]) if "weight_hh" in name else of_rnn.params[name]
            for name in ind.params
        }
        assert_same_gradients(grads, expected, of_rnn.x, split(of_rnn.state))


@pytest.mark.parametrize("far", [-40.0, -700.0, -1e5])
def test_min_lstm_divides_the_gates_where_both_are_closed(far):
    # Where both arguments are very negative, sigmoid(a) = exp(a) to 1e-17, and f / (f + i) depends
    # on their difference alone; from -746 on, both gates are zero in float64.
    params = {"weight_ih_l0": [[far], [far - 1.0], [2.0]]}
    config = Config("min_lstm", 1, 1, bias=False)
    y, _, tape = forward(config, params, [[[1.0]]], [[[0.2]]])
    f = sigmoid(1.0)
    assert_same(y.item(), f * 0.2 + (1 - f) * 2.5, "h")
    grads = backward(config, params, tape, [[[1.0]]])
    ds = (0.2 - 2.5) * f * (1 - f)
    assert_same(grads.params["weight_ih_l0"].ravel(), [ds, -ds, 1 - f], "da")


@pytest.mark.parametrize("bound", [None, np.inf])
def test_lstm_clipped_without_a_bound_is_the_lstm(bound):
    one = Problem(Config("lstm", I, P, 2, bidirectional=True), lengths=LENGTHS)
    other = Problem(
        Config("lstm_clipped", I, P, 2, bidirectional=True, cell_clip=bound), lengths=LENGTHS
    )
    np.testing.assert_array_equal(one.forward()[0], other.forward()[0])
    np.testing.assert_array_equal(flat(one.backward()), flat(other.backward()))


@pytest.mark.parametrize("bound", [None, 0.6])
def test_peephole_lstm_of_zero_vectors_is_the_lstm(bound):
    options = {"num_layers": 2, "bidirectional": True, "cell_clip": bound}
    one = Problem(Config("lstm_clipped", I, P, **options), lengths=LENGTHS)
    other = Problem(Config("lstm_peephole", I, P, **options), lengths=LENGTHS)
    other.params = {
        name: one.params.get(name, np.zeros_like(p)) for name, p in other.params.items()
    }
    other.taking(one)
    assert_same(one.forward()[0], other.forward()[0], "y")
    for clip in (None, Clip(step_value=0.05, step_norm=0.3)):
        expected, grads = one.backward(clip), other.backward(clip)
        for name, g in expected.params.items():
            assert_same(grads.params[name], g, name)
        assert_same(grads.x, expected.x, "x")
        for d, d_expected in zip(grads.state, expected.state, strict=True):
            assert_same(d, d_expected, "state")
        assert all(np.any(g) for name, g in grads.params.items() if "weight_ch" in name)


def test_peephole_lstm_gives_the_values_that_onnx_publishes():
    # The node test test_lstm_with_peepholes of ONNX 1.23: one step from zero states, all weights
    # and peepholes 0.1. Its expected values are those of float32 NumPy in ONNX's own test helper,
    # printed to 7 digits. The gates' order does not show, as all rows are alike; i and f do not
    # see c_prev = 0, o sees c.
    x = np.arange(1.0, 9.0).reshape(1, 2, 4)
    config = Config("lstm_peephole", 4, 3)
    params = {
        name: np.full(shape, 0.0 if "bias" in name else 0.1)
        for name, shape in parameter_shapes(config).items()
    }
    y, (h, _), _ = forward(config, params, x)
    expected = np.repeat([[0.3750691], [0.6801309]], 3, axis=1)
    # Half a unit of the seventh digit, and a few roundings of float32 in each of a few operations.
    np.testing.assert_allclose(h[0], expected, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(y[0], h[0])


GENERAL = {
    "rnn_tanh": "rnn_general",
    "lstm": "lstm_general",
    "lstm_projected": "lstm_general_projected",
    "lstm_peephole": "lstm_general",
    "gru": "gru_general",
    "gru_reset_before": "gru_reset_before_general",
}


@pytest.mark.parametrize(("cell", "kind"), GENERAL.items())
def test_general_cell_of_the_usual_activations_is_the_cell(cell, kind):
    clips = dict.fromkeys(CELLS[cell].options, 0.6)
    one = Problem(config_of(cell, I, P, 2, bidirectional=True), lengths=LENGTHS)
    one.config = replace(one.config, **clips)
    other = Problem(config_of(kind, I, P, 2, bidirectional=True), lengths=LENGTHS).taking(one)
    other.config = replace(other.config, peephole=cell == "lstm_peephole", **clips)
    other.params = one.params
    assert parameter_shapes(other.config) == parameter_shapes(one.config)
    assert_same(other.forward()[0], one.forward()[0], "y")
    for clip in (None, Clip(step_value=0.05, step_norm=0.3)):
        grads, expected = other.backward(clip), one.backward(clip)
        assert_same_gradients(grads, expected.params, expected.x, split(expected.state))


NOISY = [cell for cell in CELLS if CELLS[cell].noise]


@pytest.mark.parametrize("kind", NOISY)
def test_noisy_cell_without_noise_is_the_cell(kind):
    one = Problem(config_of(kind.removesuffix("_noisy"), I, P, 2, bidirectional=True))
    other = Problem(config_of(kind, I, P, 2, bidirectional=True)).taking(one)
    other.params = one.params
    whole = [{name: np.ones((T, B, P)) for name in CELLS[kind].noise} for _ in range(4)]
    for noise in (None, whole):
        other.noise = noise
        assert_same(other.forward()[0], one.forward()[0], "y")
        for clip in (None, Clip(step_value=0.05, step_norm=0.3)):
            grads, expected = other.backward(clip), one.backward(clip)
            assert_same_gradients(grads, expected.params, expected.x, split(expected.state))


@pytest.mark.parametrize("kind", NOISY)
def test_zoneout_keeps_a_unit_and_passes_its_gradient_by(kind):
    problem = Problem(config_of(kind), steps=1)
    problem.noise = [{name: np.zeros((1, B, P)) for name in CELLS[kind].noise}]
    _, state, _ = problem.forward()
    grads = problem.backward()
    total = [problem.dstates[0] + problem.dy, *problem.dstates[1:]]
    for before, after, d, d_before in zip(
        problem.states, split(state), total, split(grads.state), strict=True
    ):
        np.testing.assert_array_equal(after, before)
        assert_same(d_before, d, "gradient of the state")
    assert not any(g.any() for g in grads.params.values())


def test_zoneout_of_c_leaves_h_the_new_c():
    problem = Problem(config_of("lstm_noisy"), steps=1)
    ones, zeros = np.ones((1, B, P)), np.zeros((1, B, P))
    whole = {"zoneout_h": ones, "zoneout_c": ones, "recurrent_dropout": ones}
    problem.noise = [whole]
    _, (h, _), _ = problem.forward()
    problem.noise = [whole | {"zoneout_c": zeros}]
    _, (h_kept, c_kept), _ = problem.forward()
    np.testing.assert_array_equal(h_kept, h)
    np.testing.assert_array_equal(c_kept, problem.states[1])


@pytest.mark.parametrize("kind", ["lstm_noisy", "gru_noisy", "gru_reset_before_noisy"])
def test_recurrent_dropout_multiplies_the_candidate(kind):
    problem = Problem(config_of(kind), steps=1)
    ones = {name: np.ones((1, B, P)) for name in CELLS[kind].noise}
    states = []
    for factor in (0.0, 1.0, 2.5):
        problem.noise = [ones | {"recurrent_dropout": np.full((1, B, P), factor)}]
        *_, tape = problem.forward()
        states.append(tape.steps[0][0].new[-1])  # c, or h of a GRU
    gates = gates_by_name(problem)
    i, candidate = (gates["i"], gates["g"]) if kind[0] == "l" else (1 - gates["z"], gates["n"])
    assert_same(states[1] - states[0], i * candidate, "the candidate's part")
    assert_same(states[2] - states[0], 2.5 * i * candidate, "the part of a larger factor")
    kept = {"keep": gates["f" if kind[0] == "l" else "z"]}["keep"]
    assert_same(states[0], kept * problem.states[-1][0], "what is left without it")


@pytest.mark.parametrize("projected", ["", "_projected"])
@pytest.mark.parametrize("peephole", [False, True])
def test_cifg_is_the_lstm_whose_forget_gate_is_the_negated_input_gate(projected, peephole):
    clips = {"forward_clip": 1.5, "cell_clip": 0.5}

    def problem(kind):
        made = Problem(config_of(kind + projected, I, P, 2, bidirectional=True), lengths=LENGTHS)
        made.config = replace(made.config, peephole=peephole, **clips)
        made.params = Problem(made.config).params
        return made

    cifg = problem("cifg_general")
    lstm = problem("lstm_general").taking(cifg)
    H = cifg.config.hidden_size

    def shared(name):
        return "weight_hr" in name

    for name, given in cifg.params.items():
        i, rest = np.split(given, [H])  # sigmoid(-a) = 1 - sigmoid(a): rows i, -i, and the rest
        lstm.params[name] = given if shared(name) else np.concatenate([i, -i, rest])
    assert_same(lstm.forward()[0], cifg.forward()[0], "y")
    grads, of_lstm = cifg.backward(), lstm.backward()
    expected = {}
    for name, g in of_lstm.params.items():
        i, f, rest = np.split(g, [H, 2 * H])  # both gates' gradients meet in the rows of i
        expected[name] = g if shared(name) else np.concatenate([i - f, rest])
    assert_same_gradients(grads, expected, of_lstm.x, split(of_lstm.state))


def slstm(**options):
    return Problem(Config("slstm", I, 4, 2, bidirectional=True, **options), lengths=LENGTHS)


def test_slstm_of_heads_is_the_one_whose_recurrent_matrices_are_of_blocks():
    heads, dense = slstm(heads=2), slstm()
    dense.taking(heads)
    on_the_diagonal = np.kron(np.eye(2), np.ones((2, 2))) > 0
    expected = {}
    for name, given in heads.params.items():
        dense.params[name] = given
        if "weight_hh" in name:  # (4 gates x 2 heads x 2 units, 2): into the blocks of (4 x 4, 4)
            dense.params[name] = np.zeros((16, 4))
            for gate in range(4):
                for head in range(2):
                    rows = slice(4 * gate + 2 * head, 4 * gate + 2 * head + 2)
                    dense.params[name][rows, 2 * head : 2 * head + 2] = given[rows]
    assert_same(heads.forward()[0], dense.forward()[0], "y")
    grads, of_dense = heads.backward(), dense.backward()
    for name, g in of_dense.params.items():
        of_blocks = g.reshape(4, 4, 4)[:, on_the_diagonal] if "weight_hh" in name else g
        expected[name] = of_blocks.reshape(heads.params[name].shape)
    assert_same_gradients(grads, expected, of_dense.x, split(of_dense.state))


@pytest.mark.parametrize("exp_forget", [False, True])
def test_slstm_state_is_c_and_n_relative_to_m(exp_forget):
    one, other = (slstm(exp_forget=exp_forget) for _ in range(2))
    shift = 0.7
    h, c, n, m = other.states
    other.states = [h, c * np.exp(shift), n * np.exp(shift), m - shift]
    y, final, _ = one.forward()
    y_other, final_other, _ = other.forward()
    assert_same(y, y_other, "y")
    live = [0, 2]  # not the empty row, whose states are handed through
    for k in (1, 2):
        values = [s[k] * np.exp(s[3]) for s in (final, final_other)]
        assert_same(values[0][:, live], values[1][:, live], "c exp(m) and n exp(m)")


@pytest.mark.parametrize("exp_forget", [False, True])
def test_slstm_from_a_fresh_state_is_the_sum_that_its_gates_weigh(exp_forget):
    T, H = 6, 2
    config = Config("slstm", I, H, exp_forget=exp_forget)
    p = Problem(config, steps=T, rows=1)
    for name in p.params:
        if "weight_hh" in name:
            p.params[name][:] = 0.0  # so that the gates are known ahead
    y, _, _ = forward(config, p.params, p.x)
    a = p.x[:, 0] @ p.params["weight_ih_l0"].T + p.params["bias_ih_l0"]
    i, f, z, o = np.split(a, 4, axis=1)
    i, f = np.exp(i), np.exp(f) if exp_forget else sigmoid(f)
    for t in range(T):
        decay = np.array([np.prod(f[s + 1 : t + 1], axis=0) for s in range(t + 1)])
        weight = decay * i[: t + 1]
        mean = np.sum(weight * np.tanh(z[: t + 1]), axis=0) / np.sum(weight, axis=0)
        assert_same(y[t, 0], sigmoid(o[t]) * mean, "h")


def test_slstm_gates_of_any_size_neither_overflow_nor_vanish():
    far = np.array([1e4, -1e4, 1e4])  # the arguments of i over three steps
    params = {"weight_ih_l0": np.array([[1.0], [0.0], [0.0], [0.0]])}
    params |= {"weight_hh_l0": np.zeros((4, 1)), "bias_ih_l0": np.array([0.0, 3.0, 0.8, 0.4])}
    y, (_, _, n, _), tape = forward(Config("slstm", 1, 1), params, far.reshape(3, 1, 1))
    assert_same(y.ravel(), np.full(3, sigmoid(0.4) * np.tanh(0.8)), "h")
    # The third i and the first are alike, but the first has been through f twice.
    assert_same(n.item(), 1 + sigmoid(3.0) ** 2, "n")
    assert backward(Config("slstm", 1, 1), params, tape, np.ones((3, 1, 1))).finite


SOME = {
    **{one: ACTIVATIONS[one]() for one in ACTIVATIONS if one != "ScaledTanh"},
    "ScaledTanh": ScaledTanh(1.7, 0.6),
    **{"Affine other": Affine(-0.4, 0.3), "LeakyRelu other": LeakyRelu(-0.5)},
    **{"ThresholdedRelu other": ThresholdedRelu(-0.75), "Elu other": Elu(2.5)},
    **{"HardSigmoid other": HardSigmoid(-0.5, 0.1)},
}


@pytest.mark.parametrize("name", SOME)
def test_activation_is_its_formula_and_its_slope_the_difference_quotient(name):
    act, a = SOME[name], np.linspace(-4.03, 4.0, 97)  # no kink within eps
    formula = FORMULAS[type(act).__name__]
    assert_same(act.value(a), formula(np, a, *vars(act).values()), "value")
    # The errors of a central difference: eps^2 / 6 times the third derivative, below 1 here, and
    # 2^-53 / eps times the value.
    eps = 2.0**-17
    quotient = (act.value(a + eps) - act.value(a - eps)) / (2 * eps)
    np.testing.assert_allclose(act.slope(a), quotient, rtol=0, atol=3e-10)
    limited = act.limited(1.25)
    np.testing.assert_array_equal(limited.value(a), act.value(np.clip(a, -1.25, 1.25)))
    within = np.abs(a) <= 1.25
    np.testing.assert_array_equal(limited.slope(a), np.where(within, act.slope(a), 0.0))
    at_the_bound = np.array([-1.25, 1.25])
    np.testing.assert_array_equal(limited.slope(at_the_bound), act.slope(at_the_bound))


@pytest.mark.parametrize(
    ("act", "kink", "slope"),
    [
        (Relu(), 0.0, 0.0),
        (LeakyRelu(0.25), 0.0, 0.25),
        (ThresholdedRelu(2.0), 2.0, 0.0),
        (Elu(0.5), 0.0, 0.5),
        (HardSigmoid(0.25, 0.5), -2.0, 0.0),
        (HardSigmoid(0.25, 0.5), 2.0, 0.0),
    ],
)
def test_slope_at_a_kink(act, kink, slope):
    assert act.slope(np.array([kink])).item() == slope


@pytest.mark.parametrize("name", SOME)
def test_activation_far_from_zero_is_finite_without_a_warning(name):
    far = np.array([-1e300, -1e5, -800.0, 800.0, 1e5, 1e300])
    assert np.isfinite(SOME[name].value(far)).all()
    assert np.isfinite(SOME[name].slope(far)).all()


@every_case
def test_saturated_gates_stay_finite_without_a_warning(case):
    problem = Problem(config_of(case))
    problem.x *= 1e4
    grads = problem.backward()
    assert grads.finite
    assert np.isfinite(grads.x).all()


@pytest.mark.parametrize(
    "cell", ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before", "lstm_clipped"]
)
def test_parameter_shapes(cell):
    G = CELLS[cell].gates
    assert list(parameter_shapes(Config(cell, 5, 3, 2, bidirectional=True)).items()) == [
        ("weight_ih_l0", (3 * G, 5)),
        ("weight_hh_l0", (3 * G, 3)),
        ("bias_ih_l0", (3 * G,)),
        ("bias_hh_l0", (3 * G,)),
        ("weight_ih_l0_reverse", (3 * G, 5)),
        ("weight_hh_l0_reverse", (3 * G, 3)),
        ("bias_ih_l0_reverse", (3 * G,)),
        ("bias_hh_l0_reverse", (3 * G,)),
        ("weight_ih_l1", (3 * G, 6)),
        ("weight_hh_l1", (3 * G, 3)),
        ("bias_ih_l1", (3 * G,)),
        ("bias_hh_l1", (3 * G,)),
        ("weight_ih_l1_reverse", (3 * G, 6)),
        ("weight_hh_l1_reverse", (3 * G, 3)),
        ("bias_ih_l1_reverse", (3 * G,)),
        ("bias_hh_l1_reverse", (3 * G,)),
    ]


def test_parameter_shapes_with_a_projection():
    config = Config("lstm_projected", 5, 3, 2, bidirectional=True, bias=False, proj_size=2)
    assert list(parameter_shapes(config).items()) == [
        ("weight_ih_l0", (12, 5)),
        ("weight_hh_l0", (12, 2)),
        ("weight_hr_l0", (2, 3)),
        ("weight_ih_l0_reverse", (12, 5)),
        ("weight_hh_l0_reverse", (12, 2)),
        ("weight_hr_l0_reverse", (2, 3)),
        ("weight_ih_l1", (12, 4)),
        ("weight_hh_l1", (12, 2)),
        ("weight_hr_l1", (2, 3)),
        ("weight_ih_l1_reverse", (12, 4)),
        ("weight_hh_l1_reverse", (12, 2)),
        ("weight_hr_l1_reverse", (2, 3)),
    ]
    with_bias = parameter_shapes(Config("lstm_projected", 5, 3, proj_size=2))
    assert list(with_bias.items()) == [
        ("weight_ih_l0", (12, 5)),
        ("weight_hh_l0", (12, 2)),
        ("bias_ih_l0", (12,)),
        ("bias_hh_l0", (12,)),
        ("weight_hr_l0", (2, 3)),
    ]


def test_parameter_shapes_without_a_recurrent_product():
    assert list(parameter_shapes(Config("min_gru", 5, 3, 2)).items()) == [
        ("weight_ih_l0", (6, 5)),
        ("bias_ih_l0", (6,)),
        ("weight_ih_l1", (6, 3)),
        ("bias_ih_l1", (6,)),
    ]


def test_parameter_shapes_with_peepholes():
    assert list(parameter_shapes(Config("lstm_peephole", 5, 3, 2, bias=False)).items()) == [
        ("weight_ih_l0", (12, 5)),
        ("weight_hh_l0", (12, 3)),
        ("weight_ch_l0", (9,)),
        ("weight_ih_l1", (12, 3)),
        ("weight_hh_l1", (12, 3)),
        ("weight_ch_l1", (9,)),
    ]
    with_bias = parameter_shapes(Config("lstm_peephole", 5, 3))
    assert list(with_bias)[2:] == ["bias_ih_l0", "bias_hh_l0", "weight_ch_l0"]


def test_parameter_shapes_of_coupled_gates():
    config = Config("cifg_general_projected", 5, 3, proj_size=2, peephole=True)
    assert list(parameter_shapes(config).items()) == [
        ("weight_ih_l0", (9, 5)),
        ("weight_hh_l0", (9, 2)),
        ("bias_ih_l0", (9,)),
        ("bias_hh_l0", (9,)),
        ("weight_ch_l0", (6,)),
        ("weight_hr_l0", (2, 3)),
    ]
    without = list(parameter_shapes(replace(config, bias=False, peephole=False)))
    assert without == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]


def test_parameter_shapes_with_heads():
    config = Config("slstm", 5, 6, 2, heads=3)
    assert list(parameter_shapes(config).items()) == [
        ("weight_ih_l0", (24, 5)),
        ("weight_hh_l0", (24, 2)),
        ("bias_ih_l0", (24,)),
        ("weight_ih_l1", (24, 6)),
        ("weight_hh_l1", (24, 2)),
        ("bias_ih_l1", (24,)),
    ]


def test_parameter_shapes_of_rg_lru():
    assert list(parameter_shapes(Config("rg_lru", 3, 3)).items()) == [
        ("weight_ih_l0", (6, 3)),
        ("bias_ih_l0", (6,)),
        ("lambda_l0", (3,)),
    ]


def test_parameter_shapes_with_vectors():
    config = Config("ind_rnn_tanh", 5, 3, bidirectional=True)
    assert list(parameter_shapes(config).items()) == [
        ("weight_ih_l0", (3, 5)),
        ("weight_hh_l0", (3,)),
        ("bias_ih_l0", (3,)),
        ("weight_ih_l0_reverse", (3, 5)),
        ("weight_hh_l0_reverse", (3,)),
        ("bias_ih_l0_reverse", (3,)),
    ]
    without_bias = parameter_shapes(Config("ind_rnn_tanh", 5, 3, bias=False))
    assert without_bias == {"weight_ih_l0": (3, 5), "weight_hh_l0": (3,)}


@every_case
def test_none_stands_for_a_fresh_state_and_for_zero_gradients(case):
    config = config_of(case, I, P, 2, bidirectional=True)
    given = Problem(config)
    zero_state = joined([np.zeros_like(s) for s in given.states])
    fresh_state = joined(given.fresh)
    y, final, tape = forward(config, given.params, given.x)
    y_zero, final_zero, _ = forward(config, given.params, given.x, fresh_state, [T] * B)
    np.testing.assert_array_equal(y, y_zero)
    assert_equal(final, final_zero)
    grads = backward(config, given.params, tape, given.dy)
    with_zeros = backward(config, given.params, tape, given.dy, zero_state, Clip())
    np.testing.assert_array_equal(grads.x, with_zeros.x)
    grads = backward(config, given.params, tape, None, joined(given.dstates))
    with_zeros = backward(config, given.params, tape, 0 * given.dy, joined(given.dstates))
    np.testing.assert_array_equal(grads.x, with_zeros.x)


@every_case
@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (3, 0), (0, 0)])
def test_empty_problems(case, steps, rows):
    problem = Problem(config_of(case, I, P, 2, bidirectional=True), steps=steps, rows=rows)
    y, final, _ = problem.forward()
    grads = problem.backward()
    assert y.shape == (steps, rows, 2 * P)
    assert grads.x.shape == (steps, rows, problem.config.input_size)
    assert_equal(final, joined(problem.states))
    for d, expected in zip(split(grads.state), problem.handed_through(), strict=True):
        np.testing.assert_array_equal(d, expected)
    assert (grads.norm, grads.finite, grads.scale) == (0.0, True, 1.0)


def test_the_tape_is_a_value():
    problem = Problem(Config("lstm", I, P, 2), dropout=True)
    before = problem.backward()
    *_, tape = problem.forward()
    for array in (problem.x, *problem.states, *problem.masks):
        array[...] = np.nan
    problem.noise.clear()
    after = backward(problem.config, problem.params, tape, problem.dy, joined(problem.dstates))
    np.testing.assert_array_equal(before.x, after.x)


# ----------------------------------------------------------------------------------- lengths


@every_case
@every_shape
@in_each("clip", [None, Clip(step_value=0.05), Clip(step_norm=0.2)])
def test_each_row_is_as_if_alone(case, layers, bidirectional, clip):
    config = config_of(case, I, P, layers, bidirectional)
    problem = Problem(config, lengths=LENGTHS, dropout=layers > 1)
    y, final, _ = problem.forward()
    grads = problem.backward(clip)
    sums = {name: np.zeros_like(p) for name, p in problem.params.items()}
    for b, end in enumerate(LENGTHS):
        alone = problem.row(b)
        y_alone, final_alone, _ = alone.forward()
        grads_alone = alone.backward(clip)
        assert_same(y[:end, b : b + 1], y_alone, f"y of row {b}")
        assert_same(grads.x[:end, b : b + 1], grads_alone.x, f"dx of row {b}")
        np.testing.assert_array_equal(y[end:, b], 0.0)
        np.testing.assert_array_equal(grads.x[end:, b], 0.0)
        for whole, part in [(final, final_alone), (grads.state, grads_alone.state)]:
            for s, s_alone in zip(split(whole), split(part), strict=True):
                assert_same(s[:, b : b + 1], s_alone, f"state of row {b}")
        for name in sums:
            sums[name] += grads_alone.params[name]
    for name, total in sums.items():
        assert_same(grads.params[name], total, name)


@every_case
def test_a_row_of_length_0_hands_its_state_and_its_gradient_through(case):
    problem = Problem(config_of(case, I, P, 2, bidirectional=True), lengths=LENGTHS)
    _, final, _ = problem.forward()
    grads = problem.backward(Clip(step_value=1e-3, step_norm=1e-3))
    for s, initial in zip(split(final), problem.states, strict=True):
        np.testing.assert_array_equal(s[:, 1], initial[:, 1])
    for d, given in zip(split(grads.state), problem.handed_through(), strict=True):
        np.testing.assert_array_equal(d[:, 1], given[:, 1])


@every_case
def test_nan_in_padding_changes_nothing(case):
    config = config_of(case, I, P, 2, bidirectional=True)
    clean, dirty = (Problem(config, lengths=LENGTHS, dropout=True) for _ in range(2))
    for b, end in enumerate(LENGTHS):
        for array in (dirty.x, dirty.dy, *dirty.masks):
            array[end:, b] = np.nan
    for s in dirty.states:
        s[:, 1] = np.nan  # the empty row's: it goes through, and nowhere else
    live = [b for b, end in enumerate(LENGTHS) if end > 0]
    (y, final, _), (y_clean, final_clean, _) = dirty.forward(), clean.forward()
    grads, grads_clean = dirty.backward(), clean.backward()
    np.testing.assert_array_equal(y, y_clean)
    np.testing.assert_array_equal(grads.x, grads_clean.x)
    for s, s_clean in zip(split(final), split(final_clean), strict=True):
        np.testing.assert_array_equal(s[:, live], s_clean[:, live])
    assert_equal(grads.state, grads_clean.state)
    for name, g in grads_clean.params.items():
        np.testing.assert_array_equal(grads.params[name], g, err_msg=name)


# ------------------------------------------------------------------------------------- clips

CLIPS = ["step_value", "step_norm", "value", "max_norm"]


def flat(grads):
    arrays = [*grads.params.values(), grads.x, *split(grads.state)]
    return np.concatenate([a.ravel() for a in arrays])


@every_case
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_acts_when_its_bound_is_small_and_only_then(case, name):
    problem = Problem(config_of(case, I, P, 2, bidirectional=True), lengths=LENGTHS)
    free = flat(problem.backward())
    np.testing.assert_array_equal(flat(problem.backward(Clip(**{name: 1e6}))), free)
    change = np.max(np.abs(flat(problem.backward(Clip(**{name: 0.01}))) - free))
    assert change > 0.01, f"{name} is accepted and not applied"


@every_case
def test_value_and_norm_are_applied_to_the_finished_parameter_gradients(case):
    problem = Problem(config_of(case, I, P, 2, bidirectional=True))
    free = problem.backward()
    c = 0.3
    clipped = {k: np.minimum(np.maximum(g, -c), c) for k, g in free.params.items()}

    for clip, expected in [(Clip(), free.params), (Clip(value=c), clipped)]:
        norm = np.linalg.norm(np.concatenate([g.ravel() for g in expected.values()]))
        grads = problem.backward(clip)
        assert_same_gradients(grads, expected, free.x, split(free.state))
        assert grads.norm == pytest.approx(norm, rel=1e-12)  # sums of squares: see SAME_FORMULA
        assert grads.scale == 1.0

        grads = problem.backward(Clip(value=clip.value, max_norm=1.0))
        scale = 1.0 / (norm + 1e-6)
        scaled = {k: g * scale for k, g in expected.items()}
        assert scale < 1
        assert_same_gradients(grads, scaled, free.x, split(free.state))
        assert grads.norm == pytest.approx(norm, rel=1e-12)
        assert grads.scale == pytest.approx(scale, rel=1e-12)


def test_step_clips_in_a_scalar_rnn_written_out():
    # h1 = relu(w x1 + u h0), h2 = relu(w x2 + u h1), all positive, so that relu' = 1
    w, u, x1, x2, h0 = 0.5, 2.0, 1.0, 3.0, 4.0
    h1 = w * x1 + u * h0
    dy1, dy2 = 0.7, 5.0
    config = Config("rnn_relu", 1, 1, bias=False)
    params = {"weight_ih_l0": [[w]], "weight_hh_l0": [[u]]}
    x, dy = np.reshape([x1, x2], (2, 1, 1)), np.reshape([dy1, dy2], (2, 1, 1))
    *_, tape = forward(config, params, x, [[[h0]]])

    def run(**bounds):
        grads = backward(config, params, tape, dy, clip=Clip(**bounds))
        assert_same(grads.params["weight_ih_l0"].item(), grads.x.ravel() @ x.ravel() / w, "dW_ih")
        return grads.x.ravel() / w, grads.params["weight_hh_l0"].item(), grads.state.item()

    # unclipped: da2 = 5, da1 = 0.7 + 2 * 5
    da, du, dh0 = run()
    assert_same([*da, du, dh0], [10.7, 5.0, 5.0 * h1 + 10.7 * h0, 2 * 10.7], "free")
    # to [-1.5, 1.5]: da2 = 1.5, da1 = 0.7 + 2 * 1.5 = 3.7, clipped to 1.5
    da, du, dh0 = run(step_value=1.5)
    assert_same([*da, du, dh0], [1.5, 1.5, 1.5 * h1 + 1.5 * h0, 2 * 1.5], "step_value")
    # step 2 hands back 2 * 5, clipped to 3, then 0.7 is added; step 1 hands 2 * 3.7, clipped to 3
    da, du, dh0 = run(step_norm=3.0)
    assert_same([*da, du, dh0], [3.7, 5.0, 5.0 * h1 + 3.7 * h0, 3.0], "step_norm")
    # both: da2 = 1.5, hands back 3, clipped to 2; da1 = 2.7, clipped to 1.5, hands back 3
    da, du, dh0 = run(step_value=1.5, step_norm=2.0)
    assert_same([*da, du, dh0], [1.5, 1.5, 1.5 * h1 + 1.5 * h0, 2.0], "both")


def cell_gradient(problem):
    """The gradient of c (H,) before its clip, in a problem of one step and row, without clips."""
    *_, tape = problem.forward()
    (step,) = tape.steps[0]
    c, H = step.new[1][0], problem.config.hidden_size

    def out(c):
        return activated(np, problem.config, "c", c)

    out_slope = (out(c + 1e-6) - out(c - 1e-6)) / 2e-6
    o, p_o = step.gates[0, -H:], problem.params["weight_ch_l0"][-H:]
    dm = problem.dy[0, 0] + problem.dstates[0][0, 0]
    if problem.config.proj_size:
        if problem.config.proj_clip is not None:
            dm = np.where(np.abs(step.new[0][0]) < problem.config.proj_clip, dm, 0.0)
        dm = dm @ problem.params["weight_hr_l0"]
    da_o = problem.backward().params["bias_ih_l0"][-H:]
    return problem.dstates[1][0, 0] + dm * o * out_slope + p_o * da_o


def normalized_backward(d, v):
    """The gradient of v, from that of v normalized: with the Jacobian written out."""
    n, std = len(v), np.sqrt(np.var(v) + 1e-5)
    centered = v - np.mean(v)
    jacobian = (np.eye(n) - 1 / n) / std - np.outer(centered, centered) / (n * std**3)
    return d @ jacobian


@every_case
def test_step_value_bounds_each_argument_of_a_single_step(case):
    # With one step and one row, the gradient of bias_ih is da itself. Most da are reached from the
    # states' gradients alone, and clip by themselves. But r of the GRUs is reached through n, so it
    # starts from the clipped da_n, and with peepholes i, f and g are reached through o, so they
    # start from the clipped da_o.
    config = config_of(case, I, 20)  # enough to exceed the bound in every gate, and some not
    cell, n_units = config.cell, config.hidden_size
    problem = Problem(config, steps=1, rows=1)
    large = cell.endswith("identity") or "gain_ih_l0" in problem.params
    free, c = problem.backward(), 0.1 if large else 0.02
    grads = problem.backward(Clip(step_value=c))
    da_free, da = (g.params["bias_ih_l0"].reshape(-1, n_units) for g in (free, grads))
    expected = np.clip(da_free, -c, c)
    if cell in ("gru", "gru_general", "gru_haste", "gru_noisy"):
        passed = da_free[2] != 0  # not where the forward clip limits a_n
        ratio = np.divide(da[2], da_free[2], out=np.zeros(n_units), where=passed)
        expected[0] = np.clip(da_free[0] * ratio, -c, c)
    elif cell.startswith("gru_reset_before"):
        W_hn = problem.params["weight_hh_l0"][2 * n_units :]
        ratio = (da[2] @ W_hn) / (da_free[2] @ W_hn)  # the rest of da_r does not depend on da_n
        expected[0] = np.clip(da_free[0] * ratio, -c, c)
    elif "weight_ch_l0" in problem.params:
        # c's gradient is the one in which da_o is not clipped, plus p_o times the clip's change.
        da_o = problem.params["weight_ch_l0"][-n_units:] * (da[-1] - da_free[-1])
        dc = cell_gradient(problem)
        expected[:-1] = np.clip(da_free[:-1] * ((dc + da_o) / dc), -c, c)
    over = np.abs(da_free) > c
    assert np.all(np.any(over, axis=1) & ~np.all(over, axis=1)), "each gate on both sides"
    assert_same(da, expected, "da")
    if "gain_ih_l0" in problem.params:
        # The clip comes before layer norm: its backward is linear in da.
        product = problem.params["weight_ih_l0"] @ problem.x[0, 0]
        da = normalized_backward(da.ravel() * problem.params["gain_ih_l0"], product)
    assert_same(grads.params["weight_ih_l0"], np.outer(da, problem.x), "dW_ih")
    direct = 0.0
    if CELLS[cell].inputs_are_units:  # x also acts without an argument between it and h
        direct = free.x[0, 0] - da_free.ravel() @ problem.params["weight_ih_l0"]
    assert_same(grads.x[0, 0], da.ravel() @ problem.params["weight_ih_l0"] + direct, "dx")
    if cell == "gru":
        r = sigmoid(
            problem.params["weight_ih_l0"][:n_units] @ problem.x[0, 0]
            + problem.params["bias_ih_l0"][:n_units]
            + problem.params["weight_hh_l0"][:n_units] @ problem.states[0][0, 0]
            + problem.params["bias_hh_l0"][:n_units]
        )
        dq = grads.params["bias_hh_l0"][2 * n_units :]
        assert_same(dq, da[2] * r, "the factor r comes after the clip")


@every_case
def test_step_norm_bounds_what_a_single_step_hands_to_the_initial_h(case):
    problem = Problem(config_of(case, I, P, bidirectional=True), steps=1)
    free = problem.backward()
    dh_free, *dc_free = split(free.state)
    expected = dh_free.copy()
    norms = [np.hypot(*row) for row in expected.reshape(-1, P)]
    c = np.median(norms)
    grads = problem.backward(Clip(step_norm=c))
    dh, *dc = split(grads.state)
    assert min(norms) < c < max(norms), "a row on either side of the bound"
    for row, norm in zip(expected.reshape(-1, P), norms, strict=True):
        if norm > c:
            row *= c / norm
    assert_same(dh, expected, "dh")
    assert_same(dc, dc_free, "dc")
    assert_same_gradients(grads, free.params, free.x, states=None)


def test_step_norm_leaves_a_zero_gradient_alone():
    problem = Problem(Config("gru", I, P))
    problem.dy[:] = 0.0
    problem.dstates[0][:] = 0.0
    assert not np.any(flat(problem.backward(Clip(step_norm=1.0))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_finite_is_about_the_gradients_before_the_value_clip(bad):
    problem = Problem(Config("rnn_relu", 1, 1), steps=1, rows=1)
    problem.params = {name: np.ones_like(p) for name, p in problem.params.items()}
    problem.x[:], problem.states[0][:] = 1.0, 1.0
    problem.dy[:], problem.dstates[0][:] = bad, 0.0
    assert not problem.backward().finite
    assert not np.isfinite(problem.backward().norm)
    clipped = problem.backward(Clip(value=1.0))
    assert not clipped.finite
    assert np.isfinite(clipped.norm) == (bad == np.inf), "inf is clipped to the bound, nan is not"


def test_joint_norm_and_clip_factor():
    assert reference.joint_norm([]) == 0.0
    assert reference.joint_norm([np.array([3.0]), np.array([[4.0, 12.0]])]) == 13.0
    assert reference.clip_factor(13.0, 6.5) == 6.5 / 13.000001
    assert reference.clip_factor(6.0, 6.5) == 1.0
    assert reference.clip_factor(np.inf, 1.0) == 1.0
    assert reference.clip_factor(np.nan, 1.0) == 1.0


# --------------------------------------------------------------------------------- optimizers


def test_optimizers_by_hand():
    one, zero = np.ones(1), np.zeros(1)

    def check(actual, expected):
        assert_same(np.ravel(actual), expected, "p and its moments")

    p, v = reference.sgd(one, 0.5 * one, zero, lr=0.1, momentum=0.9)
    check([p, v], [1 - 0.1 * 0.5, 0.5])
    p, v = reference.sgd(p, 0.5 * one, v, lr=0.1, momentum=0.9)
    check([p, v], [0.95 - 0.1 * 0.95, 0.95])
    p, v = reference.sgd(one, 0.5 * one, one, lr=0.1, momentum=0.9, nesterov=True)
    check([p, v], [1 - 0.1 * (0.5 + 0.9 * 1.4), 1.4])

    p, s, v = reference.rmsprop(one, 3 * one, 16 * one, 2 * one, lr=0.1, alpha=1 / 8, eps=0.5)
    s_new = 16 / 8 + 9 * 7 / 8
    check([p, s, v], [1 - 0.1 * 3 / (s_new**0.5 + 0.5), s_new, 3 / (s_new**0.5 + 0.5)])
    p, s, v = reference.rmsprop(one, zero, 4 * one, 2 * one, lr=0.1, momentum=0.5)
    check([p, s, v], [1 - 0.1 * 1.0, 3.96, 1.0])

    p, m, v = reference.adam(one, -2 * one, zero, zero, 1, lr=0.1, eps=1.0)
    check([p, m, v], [1 + 0.1 * 2 / (2 + 1), -0.2, 0.004])
    p, m, v = reference.adam(one, 2 * one, 0.1 * one, 0.01 * one, 2, lr=0.1, betas=(0.9, 0.99))
    # m = 0.09 + 0.2, v = 0.0099 + 0.04; corrections 1 - 0.81 and 1 - 0.9801
    check([p, m, v], [1 - 0.1 * (0.29 / 0.19) / ((0.0499 / 0.0199) ** 0.5 + 1e-8), 0.29, 0.0499])

    decayed = reference.adamw(one, -2 * one, zero, zero, 1, lr=0.1, eps=1.0, weight_decay=0.5)
    check(decayed, [1 - 0.1 * 0.5 + 0.1 * 2 / (2 + 1), -0.2, 0.004])


def test_penalties_are_added_after_the_scale():
    p, g = np.array([-2.0, 0.0, 3.0]), np.array([1.0, 1.0, 1.0])
    expected = [0.5 - 0.25 - 0.25, 0.5, 0.5 + 0.25 + 0.375]
    np.testing.assert_array_equal(reference.penalized(p, g, scale=0.5, l1=0.25, l2=0.125), expected)
    np.testing.assert_array_equal(reference.penalized(p, g), g)


OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}, {}, {}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, {}, {}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {}, {}),
    "sgd l2": ("SGD", {"lr": 0.1, "momentum": 0.9}, {"weight_decay": 0.2}, {"l2": 0.2}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9}, {}, {}),
    "rmsprop momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.8, "eps": 1e-3}, {}, {}),
    "rmsprop l2": ("RMSprop", {"lr": 0.01}, {"weight_decay": 0.2}, {"l2": 0.2}),
    "adam": ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}, {}, {}),
    "adam l2": ("Adam", {"lr": 0.1}, {"weight_decay": 0.2}, {"l2": 0.2}),
    "adamw": ("AdamW", {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.3}, {}, {}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_against_torch(kind):
    torch = pytest.importorskip("torch")
    torch_name, options, torch_only, penalties = OPTIMIZERS[kind]
    rng = np.random.default_rng(0)
    p = rng.normal(size=(4, 3))
    theirs = torch.nn.Parameter(torch.tensor(p))
    optimizer = getattr(torch.optim, torch_name)([theirs], **options, **torch_only)
    ours = getattr(reference, torch_name.lower())
    moments = [np.zeros_like(p)] * (1 if torch_name == "SGD" else 2)
    for t in range(1, 6):
        g = rng.normal(size=p.shape)
        count = [t] if torch_name.startswith("Adam") else []
        penalized = reference.penalized(p, g, **penalties)
        p, *moments = ours(p, penalized, *moments, *count, **options)
        theirs.grad = torch.tensor(g)
        optimizer.step()
        assert_same(p, theirs.detach().numpy(), f"p after step {t}")


# ------------------------------------------------------------------------------ against torch

TORCH_CELLS = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "lstm_projected": ("LSTM", {"proj_size": 6}),
}


@pytest.mark.parametrize("cell", TORCH_CELLS)
@every_shape
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 1, 3, 7]])
def test_forward_and_backward_against_torch(cell, layers, bidirectional, bias, lengths):
    torch = pytest.importorskip("torch")
    config = config_of(cell, 5, 6, layers, bidirectional, bias)
    problem = Problem(config, steps=7, rows=4, lengths=lengths)

    class_name, options = TORCH_CELLS[cell]
    module = getattr(torch.nn, class_name)(
        config.input_size,
        config.hidden_size,
        layers,
        bias=bias,
        bidirectional=bidirectional,
        dtype=torch.float64,
        **options,
    )
    assert parameter_shapes(config) == {k: tuple(p.shape) for k, p in module.named_parameters()}
    module.load_state_dict({k: torch.tensor(p) for k, p in problem.params.items()})
    x = torch.tensor(problem.x, requires_grad=True)
    states = [torch.tensor(s, requires_grad=True) for s in problem.states]
    if lengths is None:
        y, final = module(x, joined(states))
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, final = module(packed, joined(states))
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=7)
    torch.autograd.backward(
        [y, *split(final)], [torch.tensor(d) for d in (problem.dy, *problem.dstates)]
    )

    y_ours, final_ours, _ = problem.forward()
    assert_same(y_ours, y.detach().numpy(), "y")
    for s_ours, s in zip(split(final_ours), split(final), strict=True):
        assert_same(s_ours, s.detach().numpy(), "final state")
    assert_same_gradients(
        problem.backward(),
        {k: p.grad.numpy() for k, p in module.named_parameters()},
        x.grad.numpy(),
        [s.grad.numpy() for s in states],
    )


def hooked_step(torch, config, x, state, w, clip):
    """One row's step in torch, with the step clips as hooks where the definition has them."""
    cell, gates = config.cell, CELLS[config.cell].gates

    def clipped(a):  # the identity; on the way back, each element of da to [-c, c]
        a.register_hook(lambda d: d.clamp(-clip.step_value, clip.step_value))
        return a

    def handed_back(h):  # the identity; on the way back, the row to at most norm c
        h = h.clone()
        h.register_hook(lambda d: d * (clip.step_norm / max(clip.step_norm, float(d.norm()))))
        return h

    def limited(v, bound):
        return v if bound is None else v.clamp(-bound, bound)

    def act(of, argument):
        return activated(torch, config, of, argument)

    h_prev = handed_back(state[0])
    from_x = (w["weight_ih"] @ x + w["bias_ih"]).reshape(gates, -1)
    if cell.startswith("min_gru"):
        z, v = torch.sigmoid(clipped(from_x[0])), clipped(from_x[1])
        return [(1 - z) * h_prev + z * candidate(torch, cell, v)]
    if cell.startswith("min_lstm"):
        f, i = (torch.nn.functional.logsigmoid(clipped(from_x[k])) for k in (0, 1))
        f, v = torch.sigmoid(f - i), clipped(from_x[2])
        return [f * h_prev + (1 - f) * candidate(torch, cell, v)]
    if cell.startswith("ind_rnn"):
        return [act("h", clipped(from_x[0] + w["weight_hh"] * h_prev))]
    if cell == "rg_lru":
        r, i = torch.sigmoid(clipped(from_x[0])), torch.sigmoid(clipped(from_x[1]))
        log_a = -8 * torch.nn.functional.softplus(w["lambda"]) * r
        return [torch.exp(log_a) * h_prev + torch.sqrt(1 - torch.exp(2 * log_a)) * i * x]
    if cell == "slstm":
        _, c, n, m_prev = state
        blocks = w["weight_hh"].reshape(gates, config.heads, -1, len(h_prev) // config.heads)
        from_h = [torch.block_diag(*of_heads) @ h_prev for of_heads in blocks]
        a_i, a_f, a_z, a_o = (clipped(from_x[k] + from_h[k]) for k in range(4))
        log_f = a_f if config.exp_forget else torch.nn.functional.logsigmoid(a_f)
        m = torch.maximum(a_i, log_f + m_prev).detach()
        i, f = torch.exp(a_i - m), torch.exp(log_f + m_prev.detach() - m)
        c, n = f * c + i * torch.tanh(a_z), f * n + i
        return [torch.sigmoid(a_o) * c / n, c, n, m]
    if "gain_ih" in w:
        layer_norm = torch.nn.functional.layer_norm

        def of(name, seen):
            gain = w["gain_" + name]
            return layer_norm(seen, gain.shape, gain, w.get("bias_" + name)).reshape(gates, -1)

        of_x, of_h = of("ih", w["weight_ih"] @ x), of("hh", w["weight_hh"] @ h_prev)
        if cell == "gru_haste":
            r, z = (torch.sigmoid(clipped(of_x[k] + of_h[k])) for k in (0, 1))
            return [(1 - z) * torch.tanh(clipped(of_x[2] + r * of_h[2])) + z * h_prev]
        assert cell.startswith(("lstm_haste", "lstm_fastrnns")), f"{cell}: expected a step here"
        i, f, g, o = (clipped(of_x[k] + of_h[k]) for k in range(4))
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        seen = layer_norm(c, c.shape, w["gain_c"], w["bias_c"])
        h = torch.sigmoid(o) * torch.tanh(seen)
        h = w["weight_hr"] @ h if "weight_hr" in w else h
        return [h, seen if "fastrnns" in cell else c]
    W_h = w["weight_hh"].reshape(gates, -1, len(h_prev))
    b_h = w["bias_hh"].reshape(gates, -1)

    def a(k, seen=0.0):
        return clipped(from_x[k] + W_h[k] @ h_prev + b_h[k] + seen)

    def zoned_out(*new):  # the mean of the noise
        if not cell.endswith("noisy"):
            return list(new)
        zoneout = config.zoneout if isinstance(config.zoneout, tuple) else (config.zoneout,)
        before = (h_prev, *state[1:])
        pairs = zip(zoneout * len(new), new, before, strict=False)
        return [(1 - p) * one + p * other for p, one, other in pairs]

    if cell.startswith("rnn"):
        return zoned_out(act("h", a(0)))
    if cell.startswith(("lstm", "cifg")):
        c = state[1]
        p = w["weight_ch"].reshape(gates - 1, -1) if "weight_ch" in w else torch.zeros(3, 1)
        i, g = act("i", a(0, p[0] * c)), act("g", a(gates - 2))
        f = act("f", a(1, p[1] * c)) if gates == 4 else 1 - i
        c = limited(f * c + i * g, config.cell_clip)
        h = act("o", a(gates - 1, p[gates - 2] * c)) * act("c", c)
        if "weight_hr" in w:
            h = limited(w["weight_hr"] @ h, config.proj_clip)
        return zoned_out(h, c)
    assert cell.startswith("gru"), f"{cell}: expected a step here"
    r, z = act("r", a(0)), act("z", a(1))
    if "before" in cell:
        n = act("n", clipped(from_x[2] + W_h[2] @ (r * h_prev) + b_h[2]))
    else:
        n = act("n", clipped(from_x[2] + r * (W_h[2] @ h_prev + b_h[2])))
    return zoned_out((1 - z) * n + z * h_prev)


@every_case
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "clip", [Clip(0.05, 1e6), Clip(1e6, 0.3), Clip(0.05, 0.1)], ids=["value", "norm", "both"]
)
def test_step_clips_against_torch_hooks(case, reverse, clip):
    torch = pytest.importorskip("torch")
    config = config_of(case, 5, 6, bidirectional=reverse)
    problem = Problem(config, steps=7, rows=2, lengths=[7, 3])
    for option in clips_of(case):
        assert 0 < problem.limited(option).mean() < 1
    params = {k: torch.tensor(p, requires_grad=True) for k, p in problem.params.items()}
    x = torch.tensor(problem.x, requires_grad=True)
    states = [torch.tensor(s, requires_grad=True) for s in problem.states]
    loss = torch.zeros((), dtype=torch.float64)
    for d, suffix in enumerate(("_l0", "_l0_reverse")[: config.directions]):
        table = CELLS[config.cell].parameters
        w = {p.name: params[p.name + suffix] for p in table if p.name + suffix in params}
        for b, end in enumerate(problem.lengths):
            state = [s[d, b] for s in states]
            for t in reversed(range(end)) if d == 1 else range(end):
                state = hooked_step(torch, config, x[t, b], state, w, clip)
                loss = loss + state[0] @ torch.tensor(problem.dy[t, b, d * 6 : (d + 1) * 6])
            for s, ds in zip(state, problem.dstates, strict=True):
                loss = loss + s @ torch.tensor(ds[d, b])
    loss.backward()
    free, grads = problem.backward(), problem.backward(clip)
    assert np.max(np.abs(flat(grads) - flat(free))) > 0.1, "the bound is too large to matter"
    assert_same_gradients(
        grads,
        {k: p.grad.numpy() for k, p in params.items()},
        x.grad.numpy(),
        [np.zeros_like(s.detach()) if s.grad is None else s.grad.numpy() for s in states],
    )


# ----------------------------------------------------------------------- against ONNX Runtime

ONNX = {  # the operator, the order of its rows, the order of ours, and what selects the kind
    "rnn_general": ("RNN", "h", "h", {}),
    "lstm_general": ("LSTM", "iofg", "ifgo", {}),
    "cifg_general": ("LSTM", "iofg", "igo", {"input_forget": 1}),
    "gru_general": ("GRU", "zrn", "rzn", {"linear_before_reset": 1}),
    "gru_reset_before_general": ("GRU", "zrn", "rzn", {}),
}
ONNX_ACTIVATIONS = [
    None,
    (HardSigmoid(0.3, 0.4), ScaledTanh(1.2, 0.7), Elu(0.8)),
    (Softsign(), Softplus(), LeakyRelu(0.3)),
    (Affine(0.3, 0.2), Relu(), ThresholdedRelu(0.2)),
]


def onnx_outputs(operator, given, **attributes):
    """Y and the final states of an operator of ONNX Runtime, in float32."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    values = {name: np.asarray(value, np.float32) for name, value in given.items()}
    inputs = ["X", "W", "R", "B", "", "initial_h", "initial_c", "P"]
    inputs = [name if name in values else "" for name in inputs[: 8 if operator == "LSTM" else 6]]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node(operator, inputs, outputs, **attributes)],
        operator,
        [make.make_tensor_value_info(name, kind, v.shape) for name, v in values.items()],
        [make.make_tensor_value_info(name, kind, None) for name in outputs],
    )
    opset = [make.make_opsetid("", 14)]
    model = make.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return runtime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, values)


@pytest.mark.parametrize(
    ("kind", "peephole"),
    [*((kind, False) for kind in ONNX), ("lstm_general", True), ("cifg_general", True)],
)
@pytest.mark.parametrize("forward_clip", [None, 0.7])
@pytest.mark.parametrize("acts", ONNX_ACTIVATIONS)
def test_general_cells_against_onnx_runtime(kind, peephole, forward_clip, acts):
    operator, theirs, ours, selects = ONNX[kind]
    I, H, draw = 4, 6, np.random.default_rng(1).normal
    attributes = {"hidden_size": H, **selects}
    options = {"peephole": peephole, "forward_clip": forward_clip}
    if forward_clip is not None:
        attributes["clip"] = forward_clip
    if acts is not None:
        acts = options["activations"] = acts[: len(CELLS[kind].activated)]
        attributes["activations"] = [type(act).__name__ for act in acts]
        for name in ("alpha", "beta"):
            values = [vars(act)[name] for act in acts if name in vars(act)]
            attributes |= {f"activation_{name}": values} if values else {}
    p = Problem(Config(kind, I, H, bias=False, **options), steps=5)
    shapes = [(H * len(theirs), I), (H * len(theirs), H), (3 * H,)]
    W, R, P = (draw(0, 0.6, shape).astype(np.float32) for shape in shapes)

    def ordered(a, order, wanted):
        blocks = dict(zip(order, np.split(a, len(order)), strict=True))
        return np.concatenate([blocks[letter] for letter in wanted])

    p.params["weight_ih_l0"] = ordered(W, theirs, ours)
    p.params["weight_hh_l0"] = ordered(R, theirs, ours)
    given = {"X": p.x, "W": W[None], "R": R[None]}
    given |= dict(zip(("initial_h", "initial_c"), p.states, strict=False))
    if peephole:
        p.params["weight_ch_l0"] = ordered(P, "iof", ours.replace("g", ""))
        given["P"] = P[None]
    y_theirs, *final_theirs = onnx_outputs(operator, given, **attributes)
    y, final, _ = p.forward()
    # Chains of 10 products and a few more operations a step over 5 steps, in float32: some 50
    # roundings of 6e-8 of values up to 10.
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(y, y_theirs[:, 0], **tolerance)
    for s, s_theirs in zip(split(final), final_theirs, strict=True):
        np.testing.assert_allclose(s, s_theirs, **tolerance)


# ---------------------------------------------------------------------------- the table of gates

RANGES = {
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "relu": (0, np.inf),
    "sigmoid or linear": (0, np.inf),
    "exp": (0, 1),  # relative to the largest one so far
    "linear": (-np.inf, np.inf),
}


def gates_by_name(problem):
    """Each gate's values [B, H] in the first step."""
    step = problem.forward()[2].steps[0][0]
    table = CELLS[problem.config.cell].gate_table
    return dict(zip([g.name for g in table], np.split(step.gates, len(table), axis=1), strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_gates_have_the_range_of_their_activations(cell):
    problem = Problem(config_of(cell), steps=1, rows=200)
    problem.x *= 3.0  # so that some gates are near their ends
    for name, p in problem.params.items():
        p *= 3.0 if name.startswith("gain") else 1.0  # what layer norm leaves of the factor
    values = gates_by_name(problem)
    for gate in CELLS[cell].gate_table:
        low, high = RANGES[gate.activation]
        assert low <= values[gate.name].min() < max(low, -2.0) + 0.1, gate
        assert min(high, 2.0) - 0.1 < values[gate.name].max() <= high, gate
        assert (values[gate.name] == 0.0).any() == (gate.activation == "relu"), gate


@pytest.mark.parametrize("case", [case for case in CASES if "activations" in CASES[case]])
def test_tables_of_a_general_cell_name_its_activations(case):
    cell = replace(CELLS[CASES[case]["cell"]], activations=CASES[case]["activations"])
    rows = [*cell.gate_table, *(state for state in cell.states if state.activation)]
    expected = {
        letter: type(act).__name__.lower()
        for values, act in zip(cell.activated, cell.activations, strict=True)
        for letter in re.findall(r"\b\w\b", values)  # of "i, f and o"
    }
    assert {row.name: row.activation for row in rows} == expected


# What RG-LRU keeps is a function of its gate r, and no gate itself; what the fastrnns LSTM keeps is
# normalized.
@pytest.mark.parametrize("cell", [c for c in CELLS if c != "rg_lru" and "fastrnns" not in c])
def test_a_gate_with_a_role_is_the_share_of_the_state_that_a_step_keeps(cell):
    """Where gates see x alone, c, or else h, adds to its successor by this share alone."""
    problem = Problem(config_of(cell), steps=1)
    for p in CELLS[cell].parameters:
        if not p.role.startswith(("input", "projection")) and p.needs != "peephole":
            problem.params[p.name + "_l0"][...] = 0.0
    carried = min(1, len(problem.states) - 1)
    before = split(problem.forward()[1])[carried]
    values = gates_by_name(problem)
    shares = {"keep": lambda gate: gate, "update": lambda gate: 1 - gate}
    gates = [gate for gate in CELLS[cell].gate_table if gate.role]
    problem.states[carried] += 1.0
    kept = split(problem.forward()[1])[carried] - before
    assert len(gates) == (np.abs(kept) > 0).any()
    for gate in gates:
        assert_same(kept[0], shares[gate.role](values[gate.name]), gate)


# -------------------------------------------------------------------------------- the package


MODULES = {
    name: importlib.import_module(f"rnnkern.reference.{name}")
    for _, name, _ in pkgutil.iter_modules(reference.__path__)
}


def test_the_package_imports_only_its_own_modules_of_rnnkern():
    for name, module in {"__init__": reference, **MODULES}.items():
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                assert (node.level, node.module in MODULES) == (1, True), name
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] != "rnnkern", name
            elif isinstance(node, ast.Import):
                assert "rnnkern" not in [alias.name.split(".")[0] for alias in node.names], name


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    results = doctest.testmod(MODULES[name])
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 3, 2))}, r"x: expected shape \(3, 3, 3\), got \(3, 3, 2\)"),
        ({"x": np.zeros((3, 3))}, r"x: expected shape \(T, B, 3\), got \(3, 3\)"),
        ({"states": [np.zeros((2, 3, 2))]}, r"state: expected a tuple \(h, c\), got ndarray"),
        ({"states": [np.zeros((1, 3, 2))] * 2}, r"state h: expected shape \(2, 3, 2\), got"),
        ({"mask": np.ones((2, 3))}, r"mask: expected shape \(3, 3\), got \(2, 3\)"),
        ({"lengths": [1, 2]}, r"lengths: expected 3 integers from 0 to 3, got \[1 2\]"),
        ({"lengths": [1, 5, 2]}, r"lengths: expected 3 integers from 0 to 3, got \[1 5 2\]"),
        ({"lengths": [1, 0.5, 2]}, r"lengths: expected 3 integers from 0 to 3, got \[1"),
        ({"masks": []}, "masks: expected 1 arrays, got 0"),
        ({"noise": [{}]}, "noise: expected 2 mappings, got 1"),
        ({"noise": [{"a": 1}, {}]}, r"noise\[0\]: expected the names \[\], got \['a'\]"),
        ({"masks": [np.ones((3, 3, 1))]}, r"masks\[0\]: expected shape \(3, 3, 2\), got"),
        ({"params": {}}, r"params: expected the names \['weight_ih_l0', .*\], got \[\]"),
        ({"dy": np.zeros((3, 3, 1))}, r"dy: expected shape \(3, 3, 2\), got \(3, 3, 1\)"),
        ({"dstates": [np.zeros((2, 3, 1))] * 2}, r"dstate h: expected shape \(2, 3, 2\), got"),
    ],
)
def test_errors_name_the_argument(change, message):
    problem = Problem(Config("lstm", I, P, 2))
    for name, value in change.items():
        setattr(problem, name, value)
    with pytest.raises(ValueError, match=message):
        problem.backward()


def test_an_unknown_cell_is_named():
    with pytest.raises(ValueError, match=r"cell: expected one of .*'gru'.*, got 'sru'"):
        Config("sru", 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstm", "proj_size": 1}, "proj_size: expected 0 for lstm, got 1"),
        (
            {"proj_size": 0},
            "proj_size: expected an integer >= 1 and < hidden_size = 4 for .*, got 0",
        ),
        ({"proj_size": 4}, "proj_size: expected .* < hidden_size = 4 for lstm_projected, got 4"),
        ({"proj_size": -1}, "proj_size: expected an integer >= 1 .*, got -1"),
        ({"cell": "lstm", "cell_clip": 3.0}, "cell_clip: expected None for lstm, got 3.0"),
        ({"cell": "min_gru", "proj_clip": 3.0}, "proj_clip: expected None for min_gru, got 3.0"),
        (
            {"cell": "lstm_clipped", "proj_clip": 3.0},
            "proj_clip: expected None for lstm_clipped, got 3.0",
        ),
        ({"cell": "lstm", "forward_clip": 3.0}, "forward_clip: expected None for lstm, got 3.0"),
        (
            {"cell": "gru_general", "forward_clip": 0.0},
            "forward_clip: expected None or a number > 0 for gru_general, got 0.0",
        ),
        ({"cell": "rg_lru"}, "input_size: expected hidden_size = 4 for rg_lru, got 3"),
        (
            {"cell": "rg_lru", "input_size": 4, "bidirectional": True, "num_layers": 2},
            "bidirectional: expected False for rg_lru of 2 layers, got True",
        ),
        ({"cell": "lstm", "heads": 2}, "heads: expected 1 for lstm, got 2"),
        *(
            (
                {"cell": "slstm", "heads": bad},
                f"heads: expected a divisor of hidden_size = 4 for slstm, got {bad}",
            )
            for bad in (0, 3, -2, 8)
        ),
        ({"cell": "lstm", "exp_forget": True}, "exp_forget: expected False for lstm, got True"),
        ({"cell": "lstm", "peephole": True}, "peephole: expected False for lstm, got True"),
        (
            {"cell": "lstm_peephole", "peephole": True},
            "peephole: expected False for lstm_peephole, got True",
        ),
        (
            {"cell": "gru", "activations": (Sigmoid(), Tanh())},
            r"activations: expected None for gru, got \(Sigmoid\(\), Tanh\(\)\)",
        ),
        (
            {"cell": "gru_general", "activations": (Tanh(),)},
            r"activations: expected None or a tuple of 2, of r and z; n, for gru_general, got \(",
        ),
        ({"cell": "gru", "activations": ()}, r"activations: expected None for gru, got \(\)"),
        ({"cell": "gru", "zoneout": 0.5}, "zoneout: expected 0 for gru, got 0.5"),
        (
            {"cell": "gru_noisy", "zoneout": (0.5, 0.5)},
            r"zoneout: expected a number from 0 to below 1 for gru_noisy, got \(0.5, 0.5\)",
        ),
        (
            {"cell": "lstm_noisy", "zoneout": (0.5, 0.5, 0.5)},
            "zoneout: expected a number from 0 to below 1, or 2 of them, for lstm_noisy, got ",
        ),
        *(
            (
                {"cell": "lstm_noisy", name: bad},
                f"{name}: expected a number from 0 to below 1.* for lstm_noisy, got {bad}",
            )
            for name in ("zoneout", "recurrent_dropout")
            for bad in (1.0, -0.1, np.nan)
        ),
        (
            {"cell": "rnn_tanh_noisy", "recurrent_dropout": 0.5},
            "recurrent_dropout: expected 0 for rnn_tanh_noisy, got 0.5",
        ),
        *(
            ({name: bad}, f"{name}: expected None or a number > 0 for lstm_projected, got {bad}")
            for name in ("cell_clip", "proj_clip")
            for bad in (0.0, -1.0, np.nan)
        ),
    ],
)
def test_options_out_of_range_are_named(options, message):
    given = {"cell": "lstm_projected", "input_size": 3, **options}
    if given["cell"] == "lstm_projected":
        given = {"proj_size": 2, **given}
    with pytest.raises(ValueError, match=message):
        Config(hidden_size=4, **given)


@every_case
def test_flow_penalty_is_refused_where_it_is_not_defined(case):
    problem = Problem(config_of(case), steps=0)
    *_, tape = problem.forward()
    defined = ("rnn_tanh", "rnn_relu", "gru", "rnn_general", "gru_general", "gru_haste")
    if CASES[case]["cell"] in (*defined, "rnn_tanh_noisy", "rnn_relu_noisy", "gru_noisy"):
        backward(problem.config, problem.params, tape, flow_penalty=0.5)
        return
    backward(problem.config, problem.params, tape, flow_penalty=0.0)
    with pytest.raises(
        ValueError, match=rf"flow_penalty: expected 0 for {CASES[case]['cell']}, got 0.5"
    ):
        backward(problem.config, problem.params, tape, flow_penalty=0.5)
