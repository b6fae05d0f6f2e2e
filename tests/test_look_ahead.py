"""The recipe of docs/look_ahead.md: bidirectional layers over chunks with right context."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import QUIET, make_layer, random_problem

from rnnkern.reference import CELLS

TEXT = (Path(__file__).parents[1] / "docs" / "look_ahead.md").read_text()
NAMES: dict = {}
exec(re.findall(r"^```python\n(.*?)^layer = ", TEXT, re.DOTALL | re.MULTILINE)[0], NAMES)
look_ahead = NAMES["look_ahead"]

I, H, B = 5, 8, 2
KINDS = [kind for kind in QUIET if len(CELLS[kind].states) <= 2]  # h, or h and c


def make(kind, T, num_layers=2):
    layer = make_layer(kind, I, H, num_layers=num_layers, bidirectional=True)
    return layer, random_problem(layer, T, B).x


def outputs(layer, chunks, right):
    return np.concatenate([y.copy() for y in look_ahead(layer, chunks, right)])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_that_follows_the_bits_are_those_of_one_call(kind, num_layers):
    layer, x = make(kind, 12, num_layers)
    for cut in (1, 7, 11):
        assert outputs(layer, [x[:cut], x[cut:]], 12).tobytes() == layer(x)[0].tobytes()
        empty = outputs(layer, [x[:0], x[:cut], x[cut:cut], x[cut:], x[:0]], 12)
        assert empty.tobytes() == layer(x)[0].tobytes()
    assert outputs(layer, [x], 3).tobytes() == layer(x)[0].tobytes()


@pytest.mark.parametrize("right", [0, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_direction_goes_on(kind, right):
    """Of one layer it sees nothing of what follows, so it is exact with any right context."""
    layer, x = make(kind, 20, num_layers=1)
    P = layer.output_size
    got = outputs(layer, np.split(x, 5), right)
    want = layer(x)[0]
    assert got[..., :P].tobytes() == want[..., :P].tobytes()
    assert got[..., P:].tobytes() != want[..., P:].tobytes()


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn_tanh"])
def test_more_context_is_nearer(kind):
    layer, x = make(kind, 120)
    want = layer(x)[0]
    errors = [np.abs(outputs(layer, np.split(x, 6), r) - want).max() for r in (0, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50  # the random layers forget within some 10 steps
