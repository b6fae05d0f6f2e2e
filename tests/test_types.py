"""What type checkers see of the public names."""

from __future__ import annotations

import re
import sys

import pytest
from test_build import PACKAGE
from test_docs import ROOT, SNIPPET

GOOD = """
import numpy as np
import numpy.typing as npt
from typing import Any
import rnnkern as rk

Array = npt.NDArray[Any]
x = np.zeros((5, 2, 3), np.float32)

y, h = rk.GRU(3, 4)(x)
shape: tuple[int, ...] = h.shape
gru, ensemble = rk.GRU(3, 4), rk.GRU(3, 4, ensemble=2)
y, (h, c) = rk.LSTM(3, 4, init="orthogonal")(x, (h, h))
shape = c.shape
y, h, tape = rk.RNN(3, 4, nonlinearity="relu").forward(x, checkpoint="sqrt")
shape = h.shape
y, h, hiddens = rk.GRU(3, 4)(x, hiddens=True)
shape = hiddens[0].shape
y, h = rk.GRU(3, 4)(x, outputs="last")
frozen: rk.Frozen[Array] = rk.GRU(3, 4).freeze()
y, h = frozen(x, h, outputs="last")
y, h, hiddens = frozen(x, hiddens=True)
shape = frozen.stream().state.shape
stale: bool = frozen.is_stale()
stale = rk.GRU(3, 4).freeze(embedding=rk.Embedding(9, 3)).is_stale()
rows: rk.SparseRows = 2.0 * rk.SparseRows([1], x[0, :1], (9, 3))
rk.Adam({"emb": rk.Embedding(9, 3, sparse=True)}, lr={"emb/*": 1e-2, "*": lambda step: 1e-3})
stream = rk.LSTM(3, 4).freeze().stream()
h, c = stream.state
stream.state = h, c
member: rk.GRU = rk.GRU(3, 4, ensemble=2, seed=np.random.SeedSequence(1)).member(0).copy()
shape = rk.GRU(3, 4).stream().state.shape
layer = rk.from_state_dict(rk.GRU(3, 4).state_dict(), "")
count: int = layer.num_parameters
layers = rk.from_state_dict({"weight_ih_l0": x}, nonlinearity="tanh")
count = layers[""].num_parameters
rk.files.save("a", rk.GRU(3, 4).state_dict())
grads = gru.backward(gru.forward(x)[2], y)
norm: float = (grads + 0.5 * grads).norm
several = ensemble.backward(ensemble.forward(x)[2], y)
assert isinstance(several, rk.EnsembleGradients)
norms: Array = (several + several / 2).norm
rk.SGD([gru, ensemble], lr=0.1).step([grads + grads, several])
shape = grads.state.shape
anything: rk.Gradients = rk.LSTM(3, 4).backward(rk.LSTM(3, 4).forward(x)[2], None, (h, c))
dh, dc = rk.LSTM(3, 4).backward(rk.LSTM(3, 4).forward(x)[2], y).state
shape = dc.shape
gru.backward(gru.forward(x)[2], None, grads.state)
head, y, tape_of_head = rk.Linear(4, 2), *rk.Linear(4, 2).forward(y)
of_head = head.backward(tape_of_head, y)
either: rk.ModuleGradients = of_head
gru.backward(gru.forward(x)[2], of_head.x * (of_head.x > 0))
shape = rk.CRF(2).loss(y, np.zeros((5, 2), int))[1].x.shape
shape = rk.LayerNorm(2).backward(rk.LayerNorm(2).forward(y)[1], y).x.shape
shape = rk.Dropout(0.5).backward(rk.Dropout(0.5).forward(y)[1], y).x.shape
shape = rk.Pooling("max").backward(rk.Pooling("max").forward(y)[1], y[0]).x.shape
nothing: None = rk.Embedding(9, 3).backward(rk.Embedding(9, 3).forward(x)[1], y).x
for window in rk.truncated_bptt(gru, x, 2):
    shape = window.state.shape
    shape = window.backward(window.y, window.state, trace=True).state.shape
h, c = next(rk.truncated_bptt(rk.LSTM(3, 4), x, 2)).state
"""
BAD = {
    'rk.GRU(3, 4, init="unifrom")': "init",
    'rk.LSTM(3, 4, layer_norm="fast")': "layer_norm",
    'rk.GRU(3, 4, layer_norm="fastrnns")': "layer_norm",
    'rk.MinLSTM(3, 4, candidate="sigmoid")': "candidate",
    'rk.cross_entropy(np.zeros((1, 2)), np.zeros(1, int), reduction="avg")': "reduction",
    'rk.RNN(3, 4, nonlinearity="sin")': "nonlinearity",
    "rk.LSTM(3, 4, dropuot=0.1)": "dropuot",
    "rk.GRU(3, 4)(x, (x, x))": "__call__",
    "rk.LSTM(3, 4)(x, x)": "__call__",
    "rk.LSTM(3, 4)(x)[1].shape": "shape",
    "rk.LSTM(3, 4).stream().state = x": "assignment",
    'rk.GRU(3, 4).forward(x, checkpoint="log")': "forward",
    'rk.GRU(3, 4)(x, outputs="first")': "__call__",
    'rk.GRU(3, 4)(x, outputs="last", hiddens=True)': "__call__",
    "rk.LSTM(3, 4).freeze()(x, x)": "__call__",
    "rk.LSTM(3, 4).freeze()(x)[1].shape": "shape",
    "rk.Frozen(rk.Linear(3, 4))": "Frozen",
    "rk.GRU(3, 4, seed=1.5)": "seed",
    "rk.GRU(3, 4).hidden_size = 5": "hidden_size",
    "rk.LSTM(3, 4).backward(rk.LSTM(3, 4).forward(x)[2], y).state.shape": "shape",
    "rk.Embedding(9, 3).backward(rk.Embedding(9, 3).forward(x)[1], y).x.shape": "shape",
    "next(rk.truncated_bptt(gru, x, 2)).backward(y, tracee=True)": "tracee",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Mypy's messages by line, of the good code and then a line each of bad code."""
    api = pytest.importorskip("mypy.api", reason="checks the types")
    path = tmp_path_factory.mktemp("types") / "use.py"
    path.write_text(GOOD + "\n".join(BAD) + "\n")
    options = ["--strict", "--no-incremental", "--python-executable", sys.executable]
    out, error, _ = api.run([*options, "--config-file", "", str(path)])
    assert not error
    lines = {}
    for line, message in re.findall(r"^\S+use\.py:(\d+): error: (.*)$", out, re.MULTILINE):
        lines.setdefault(int(line), []).append(message)
    assert PACKAGE.exists()
    assert "Cannot find implementation" not in out
    return lines


def test_right_code_has_no_errors(found):
    count = GOOD.count("\n")
    assert not {line: said for line, said in found.items() if line <= count}


@pytest.mark.parametrize("code", BAD)
def test_wrong_code_is_found(found, code):
    messages = found.get(GOOD.count("\n") + 1 + list(BAD).index(code), [])
    assert any(BAD[code] in message for message in messages), messages


def test_snippets_of_models_have_no_errors(tmp_path):
    api = pytest.importorskip("mypy.api", reason="checks the types")
    for page in ("from_pytorch", "modules"):
        for i, code in enumerate(SNIPPET.findall((ROOT / f"docs/{page}.md").read_text())):
            if "import torch" not in code:  # whose types take long to read
                (tmp_path / f"{page}_{i}.py").write_text(code)
    options = ["--check-untyped-defs", "--ignore-missing-imports", "--no-incremental"]
    options += ["--config-file", "", "--python-executable", sys.executable]
    out, error, _ = api.run([*options, *map(str, sorted(tmp_path.iterdir()))])
    assert not error
    assert out.startswith("Success")
