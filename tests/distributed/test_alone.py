"""One process: the tree of sums against its definition, and what arguments are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from mpi4py import MPI

import rnnkern as rk
from rnnkern.distributed import Communicator
from rnnkern.distributed.sums import Layout, Sums
from rnnkern.distributed.tree import nodes_of

SPECS = [((3, 2), np.dtype(np.float32)), ((5,), np.dtype(np.float64)), ((), np.dtype(np.float32))]


def defined(shards):
    """The sum of a node: the left child has the largest power of two below its shards."""
    if len(shards) == 1:
        return shards[0]
    cut = max(2**i for i in range(20) if 2**i < len(shards))
    left, right = defined(shards[:cut]), defined(shards[cut:])
    return [a + b for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 24, 36])
def test_any_number_of_ranks_sums_along_the_tree(shards):
    rng = np.random.default_rng(shards)
    values = [[rng.normal(size=s).astype(d) for s, d in SPECS] for _ in range(shards)]
    want, layout = defined(values), Layout(SPECS)
    for ranks in (r for r in range(1, shards + 1) if shards % r == 0):
        sums = [Sums(None, None, shards, True) for _ in range(ranks)]
        gathered = []
        for rank, one in enumerate(sums):
            one._nodes = [nodes_of(shards, ranks, r) for r in range(ranks)]
            one.first, one.count, found = rank * shards // ranks, shards // ranks, []
            for number in range(one.first, one.first + one.count):
                buffer = layout.new(ranks)
                for target, array in zip(layout.arrays(buffer), values[number], strict=True):
                    target[...] = array
                one.push(layout, found, buffer)
                assert len(found) <= 2 * shards.bit_length()  # no more than the tree has levels
            assert [node for node, _ in found] == nodes_of(shards, ranks, rank)
            gathered += [buffer for _, buffer in found]
        # Each rank's part of the words, as `_scattered` adds them up, and all of them at once.
        part = len(gathered[0]) // ranks
        words = [
            one._reduced(layout, [b[r * part : (r + 1) * part].copy() for b in gathered], r * part)
            for r, one in enumerate(sums)
        ]
        whole = sums[0]._reduced(layout, [b.copy() for b in gathered], 0)
        for total in (np.concatenate(words), whole):
            for got, expected in zip(layout.arrays(total), want, strict=True):
                assert got.tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Communicator(3), "comm: expected a communicator of mpi4py or None, got int"),
        (lambda: Communicator(shards=0), "shards: expected an integer from 1 to 65536, got 0"),
        (lambda: Communicator(shards=1.5), "shards: expected an integer, got float"),
        (lambda: Communicator(exact=1), "exact: expected True or False, got int"),
        (lambda: Communicator(timeout=0), "timeout: expected a number of seconds above 0, got 0"),
        (lambda: Communicator().shard(-1), "batch: expected an integer of at least 0, got -1"),
        (
            lambda: Communicator().shard([1]),
            "batch: expected a number of rows or a Batch, got list",
        ),
        (lambda: Communicator().shard(1, 3), "model: expected a dict or a list of layers and mod"),
        (lambda: Communicator().share(-1), "count: expected an integer of at least 0, got -1"),
        (lambda: Communicator().rows(2.5), "batch_size: expected an integer, got float"),
        (
            lambda: rk.SGD({"w": np.zeros(1)}, lr=0.1).step([], comm=3),
            "comm: expected a Communicator of rnnkern.distributed or None, got int",
        ),
        (lambda: Communicator(MPI.COMM_NULL), "comm: expected a group of ranks, got a null comm"),
        (lambda: Communicator().stop(9), "number: expected one of 0, 2, 15, got 9"),
        (lambda: Communicator().broadcast(3), "model: expected a dict of layers"),
        (
            lambda: next(Communicator().shard(1)).report(*range(9)),
            "values: expected at most 8, got 9",
        ),
    ],
)
def test_an_argument_that_is_wrong_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        make()


def test_a_failed_step_writes_nothing():
    comm, layer = Communicator(shards=2), rk.GRU(3, 4, seed=0)
    opt, x = rk.Adam(layer), np.ones((5, 4, 3), np.float32)
    before = [p.tobytes() for p in layer.params.values()]

    def gradients(shard):
        y, _, tape = layer.forward(x[:, shard.rows])
        if shard.number == 1:
            raise KeyError("data")
        return layer.backward(tape, y)

    with pytest.raises(KeyError, match="data"):
        opt.step(map(gradients, comm.shard(4, layer)), comm=comm)
    assert [p.tobytes() for p in layer.params.values()] == before
    assert opt.state_dict()["adam.step"] == 0


@pytest.mark.parametrize(
    ("part", "draws"),
    [
        (rk.GRU(3, 4, 2, dropout=0.5, seed=0), True),
        (rk.LSTM(3, 4, zoneout=(0.0, 0.1), seed=0), True),
        (rk.GRU(3, 4, recurrent_dropout=0.1, seed=0), True),
        (rk.Dropout(0.5), True),
        (rk.LSTM(3, 4, zoneout=(0.0, 0.0), seed=0), False),
        (rk.Dropout(0.0), False),
    ],
)
def test_what_draws_masks_must_be_in_the_model_of_the_batch(part, draws):
    comm, weights = Communicator(shards=2), {"w": np.zeros(2)}
    opt = rk.SGD({"part": part, "weights": weights}, lr=0.1)
    zeros = {name: np.zeros_like(values) for name, values in part.params.items()}
    grads = {"part": zeros, "weights": {"w": np.ones(2)}}
    assert opt.step((grads for _ in comm.shard(4, {"part": part})), comm=comm).applied
    for model in (None, {"other": rk.Dropout(0.5)}):
        before = weights["w"].tolist()
        parts = (grads for _ in comm.shard(4, model))
        if draws:
            expected = r"model: expected params\['part'\] in comm.shard\(batch, model\), since it"
            with pytest.raises(ValueError, match=f"^{expected}"):
                opt.step(parts, comm=comm)
            assert weights["w"].tolist() == before
        else:
            assert opt.step(parts, comm=comm).applied


def test_layers_forget_the_first_row_after_a_batch():
    comm, layer = Communicator(shards=3), rk.GRU(3, 4, 2, dropout=0.5, seed=0)
    rows = []
    for shard in comm.shard(7, {"parts": [layer], "arrays": {"w": np.zeros(2)}}):
        rows.append((layer.first_row, shard.rows.start))
        layer.forward(np.zeros((2, 2, 3), np.float32))
    assert rows == [(0, 0), (2, 2), (4, 4)]
    assert (layer.first_row, layer.dropout_step) == (0, 1)


def test_without_mpi4py_the_extra_is_named(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnkern\[mpi\]'"):
        Communicator()


def test_a_launcher_of_another_mpi_is_noticed(monkeypatch):
    """Each of its processes would be a run of its own, and write the same files."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match="comm: expected the 4 processes of the launcher, got 1"):
        Communicator()
