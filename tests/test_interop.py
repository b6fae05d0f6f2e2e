"""Other libraries with threads in the same process: PyTorch, scikit-learn, NumPy's OpenBLAS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import make_layer, parts, random_problem
from plan import plan_of
from test_hostile import STRICT
from test_runtime import in_child, needs_fork, python

import rnnkern as rk

threadpoolctl = pytest.importorskip("threadpoolctl", reason="sees and sets what others' threads do")

THREADS = 2


def child(use, *args, imports=()):
    """Call one of this module's functions in a fresh interpreter that has these imported."""
    first = "".join(f"import {name}; " for name in imports)
    code = f"{first}import test_interop; test_interop.{use.__name__}(*{args!r})"
    tests = str(Path(__file__).parent)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
    done = python(code, flags=STRICT, PYTHONPATH=tests, **threads)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ---- what each library does, as bytes ----------------------------------------------------------

# Large enough for each library to start its threads.


def use_rnnkern():
    layer = make_layer("lstm", 32, 64, num_layers=2)
    assert plan_of(layer, 40, 16, THREADS).threads == THREADS
    p = random_problem(layer, 40, 16, lengths="random")
    opt = rk.Adam(layer.params)
    y, state, tape = p.forward(layer)
    grads = p.backward(layer, tape)
    opt.step(grads)
    arrays = [y, *parts(state), grads.x, *grads.params.values(), *layer.params.values()]
    return b"".join(a.tobytes() for a in arrays)


def use_torch():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    lstm = torch.nn.LSTM(32, 64, 2)
    x = torch.linspace(-1, 1, 40 * 16 * 32).reshape(40, 16, 32).requires_grad_()
    y = lstm(x)[0]
    y.square().sum().backward()
    big = torch.linspace(-1, 1, 300 * 300).reshape(300, 300)
    return b"".join(t.detach().numpy().tobytes() for t in (y, x.grad, big @ big, big.exp()))


def use_sklearn():
    from sklearn.cluster import KMeans

    points = np.random.default_rng(0).normal(size=(5000, 8))
    found = KMeans(5, n_init=2, random_state=0, algorithm="lloyd").fit(points)
    return found.labels_.tobytes()  # its sums over points go by its threads' order


def use_numpy():
    a = np.random.default_rng(0).normal(size=(300, 300))
    return (a @ a).tobytes() + np.linalg.inv(a).tobytes()


LIBRARIES = {
    "rnnkern": use_rnnkern,
    "torch": use_torch,
    "sklearn": use_sklearn,
    "numpy": use_numpy,
}


def thread_counts():
    """What the libraries' own threads are set to, by file."""
    return {one["filepath"]: one["num_threads"] for one in threadpoolctl.threadpool_info()}


# ---- side by side ------------------------------------------------------------------------------


def alone(name):
    print(LIBRARIES[name]().hex())


def together(names):
    """All of them used in this order, backward and again, and in a forked child."""
    before = thread_counts()
    first = {name: LIBRARIES[name]() for name in names}
    with rk.num_threads(THREADS):
        assert {name: LIBRARIES[name]() for name in reversed(names)} == first
        assert {name: LIBRARIES[name]() for name in names} == first
        assert before.items() <= thread_counts().items(), "other thread counts"
        assert in_child(lambda: use_rnnkern() == first["rnnkern"]) == 0, "other bits in a child"
    assert {name: LIBRARIES[name]() for name in names} == first, "other bits after a fork"
    for name in names:
        print(name, first[name].hex())


ORDERS = [
    ("rnnkern", "torch"),
    ("torch", "rnnkern"),
    ("rnnkern", "sklearn"),
    ("sklearn", "rnnkern"),
    ("sklearn", "torch", "rnnkern"),
]


@needs_fork
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_side_by_side(order, result_alone):
    for name in order:
        pytest.importorskip(name, reason="another library with threads")
    names = (*order, "numpy")
    said = dict(line.split() for line in child(together, names, imports=order).splitlines())
    assert said.keys() == set(names)
    for name, found in said.items():
        assert found == result_alone(name), f"{name}: other bits than alone"


@pytest.fixture(scope="module")
def result_alone():
    """Each library's results in a process of its own."""
    found = {}

    def result(name):
        if name not in found:
            found[name] = child(alone, name).strip()
        return found[name]

    return result


# ---- threadpoolctl -----------------------------------------------------------------------------


def limit_threads():
    openmp = [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "openmp"]
    assert [one["num_threads"] for one in openmp] == [THREADS]
    assert rk.get_num_threads() == THREADS
    want = use_rnnkern()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert rk.get_num_threads() == 1
        assert use_rnnkern() == want
    assert rk.get_num_threads() == THREADS
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert rk.get_num_threads() == THREADS
    with rk.num_threads(3), threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert rk.get_num_threads() == 3  # what the program has set goes first
    print(openmp[0]["filepath"])


def test_threadpoolctl():
    """It sees the core's OpenMP, and its limits are OpenMP's, which are the default."""
    assert "omp" in child(limit_threads)
