"""Short runs on the ranks of a launcher: rank 0 writes what all of them found, as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.distributed import Communicator

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def digest(*parts):
    """Of the bits of parameters and of states of optimizers."""
    found = hashlib.sha256()
    for part in parts:
        arrays = part.params if hasattr(part, "params") else part
        for values in (arrays if isinstance(arrays, dict) else part.state_dict()).values():
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def draw(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class Regression:
    """A recurrent layer, dropout and an output layer, whose loss is a mean over all rows."""

    def __init__(self, layer, *, seed=0, dropout=None, optimizer=rk.Adam, **options):
        width = layer.output_size * (1 + layer.bidirectional)
        self.model = {"layer": layer, "head": rk.Linear(width, 2, seed=seed, dtype=layer.dtype)}
        if dropout is not None:
            self.model["dropout"] = dropout
        self.opt = optimizer(self.model, **{"lr": 1e-2, **options})

    def gradients(self, x, y, shard, lengths=None):
        layer, head = self.model["layer"], self.model["head"]
        x, y, tape = x[:, shard.rows], y[:, shard.rows], None
        lengths = None if lengths is None else lengths[shard.rows]
        if "dropout" in self.model:
            x, tape = self.model["dropout"].forward(x, lengths=lengths)
        h, _, of_layer = layer.forward(x, lengths=lengths)
        out, of_head = head.forward(h)
        loss, dout = rk.mean_squared_error(out, y)
        shard.report(shard.share * loss)
        grads = head.backward(of_head, dout.dtype.type(shard.share) * dout)
        found = {"layer": layer.backward(of_layer, grads.x), "head": grads}
        if tape is not None:
            self.model["dropout"].backward(tape, found["layer"].x)
        return found

    def train(self, comm, steps, rows, *, max_norm=0.5, lengths=False):
        """Train on batches of so many rows; what was reported, norms, and the bits in the end."""
        layer, seen = self.model["layer"], []
        for step in range(steps):
            size = rows[step % len(rows)] if isinstance(rows, list) else rows
            x = draw([step, 0], 5, size, layer.input_size, dtype=layer.dtype)
            y = draw([step, 1], 5, size, 2, dtype=layer.dtype)
            of_rows = np.random.default_rng(step).integers(0, 6, size) if lengths else None
            parts = (self.gradients(x, y, shard, of_rows) for shard in comm.shard(size, self.model))
            done = self.opt.step(parts, max_norm=max_norm, comm=comm)
            seen.append([*comm.reported, done.norm, done.scale, done.applied])
        drawn = [part.dropout_step for part in self.model.values() if hasattr(part, "dropout_step")]
        return [digest(*self.model.values(), self.opt), repr(seen), drawn]


@case
def gru(comm):
    return Regression(rk.GRU(3, 6, 2, seed=1)).train(comm.divided(4), 5, 9)


@case
def lstm_with_dropout_and_noise(comm):
    layer = rk.LSTM(
        3, 5, 2, bidirectional=True, dropout=0.3, zoneout=(0.2, 0.1), recurrent_dropout=0.2, seed=1
    )
    dropout = rk.Dropout(0.2, variational=True, seed=2)
    return Regression(layer, dropout=dropout).train(comm.divided(4), 4, 9, lengths=True)


@case
def float64_with_momentum(comm):
    run = Regression(
        rk.RNN(3, 5, dtype=np.float64, seed=1), optimizer=rk.SGD, momentum=0.9, l1=1e-4
    )
    return run.train(comm.divided(8), 4, 17, max_norm=None)


@case
def shards_that_ranks_do_not_divide_into_powers_of_two(comm):
    return Regression(rk.GRU(3, 6, seed=1)).train(comm.divided(12), 3, 29)


@case
def fewer_rows_than_shards(comm):
    run = Regression(rk.GRU(3, 6, 2, dropout=0.5, seed=1))
    return run.train(comm.divided(4), 8, [3, 1, 0, 7])


@case
def a_gradient_that_is_not_finite_on_one_rank(comm):
    comm, run = comm.divided(4), Regression(rk.GRU(3, 6, seed=1))
    x, y = draw(0, 5, 8, 3), draw(1, 5, 8, 2)
    found = []
    for step in range(3):
        bad = x.copy()
        bad[2, 7] = np.nan if step == 1 else 0.0  # a row of the last shard
        parts = (run.gradients(bad, y, shard) for shard in comm.shard(8, run.model))
        found.append(run.opt.step(parts, max_norm=1.0, comm=comm).applied)
    assert found == [True, False, True]
    assert run.opt.skipped == 1
    return [digest(*run.model.values(), run.opt)]


@case
def ragged_batches(comm):
    """Sequences of different lengths: an embedding, the last outputs, a loss of labels."""
    comm, rng = comm.divided(4), np.random.default_rng(0)
    x = [rng.integers(1, 20, n) for n in rng.integers(1, 12, 23)]
    y = rng.integers(0, 3, 23)
    model = {"emb": rk.Embedding(20, 4, seed=0), "gru": rk.GRU(4, 6, seed=1)}
    model["head"] = rk.Linear(6, 3, seed=2)
    opt, batches = rk.Adam(model, lr=1e-2), rk.Batches(x, y, batch_size=5, seed=3)

    def gradients(shard):
        batch = shard.batch
        e, of_emb = model["emb"].forward(batch.x)
        _, h, of_gru = model["gru"].forward(e, lengths=batch.lengths)
        logits, of_head = model["head"].forward(h[-1])
        loss, dlogits = rk.cross_entropy(logits, batch.y, reduction="sum")
        shard.report(loss, len(batch.indices))
        head = model["head"].backward(of_head, dlogits / np.float32(shard.batch_size))
        gru = model["gru"].backward(of_gru, None, dstate=head.x[None])
        return {"emb": model["emb"].backward(of_emb, gru.x), "gru": gru, "head": head}

    seen = []
    for _ in range(2):
        for batch in batches:
            opt.step(map(gradients, comm.shard(batch, model)), max_norm=1.0, comm=comm)
            seen.append(comm.reported[:2])
            assert comm.reported[1] == len(batch.indices)
    return [digest(*model.values(), opt), repr(seen)]


@case
def rows_of_tables(comm):
    """The bits of a table with all its rows; few of them are sent."""
    found, ids = [], np.random.default_rng(0).integers(0, 40, (3, 4, 7))
    for sparse in (True, False):
        one = comm.divided(4)
        model = {
            "wide": rk.Embedding(40, 4, sparse=sparse, seed=0),
            "small": rk.Embedding(40, 2, padding_idx=3, sparse=sparse, dtype=np.float64, seed=1),
            "gru": rk.GRU(4, 5, seed=2),
        }
        opt = rk.SGD(model, lr=0.1)

        def gradients(shard, batch, model=model):
            names, tokens = ("wide", "small"), batch[:, shard.rows]
            (x, of_wide), (z, of_small) = (model[name].forward(tokens) for name in names)
            y, _, of_gru = model["gru"].forward(x)
            grads = {"gru": model["gru"].backward(of_gru, y / np.float32(shard.batch_size))}
            grads["wide"] = model["wide"].backward(of_wide, grads["gru"].x)
            grads["small"] = model["small"].backward(of_small, z)
            return grads

        seen = []
        for step in range(4):
            batch = ids[step % 3, :, : [7, 2, 0, 5][step]]  # shards without rows, too
            shards = one.shard(batch.shape[1], model)
            parts = (gradients(shard, batch) for shard in shards)
            done = opt.step(parts, comm=one)  # norms are sums in another order
            seen.append((done.norm, done.applied, *one.reported))
        found.append([digest(*model.values()), repr(seen)])
    assert found[0][0] == found[1][0]
    lazy, one = rk.Embedding(40, 4, sparse=True, seed=0), comm.divided(8)
    opt = rk.Adam(lazy, lr=0.1)
    for _ in range(3):
        parts = []
        for shard in one.shard(7):
            x, tape = lazy.forward(ids[0][:, shard.rows])
            parts.append(lazy.backward(tape, x))
        opt.step(parts, max_norm=0.5, comm=one)
    return [*found, digest(lazy, opt)]


@case
def an_ensemble(comm):
    comm, layer = comm.divided(4), rk.GRU(3, 4, ensemble=3, seed=0)
    opt = rk.Adam(layer, lr=1e-2, ensemble=3)
    x = draw(0, 5, 7, 3)

    def gradients(shard):
        y, _, tape = layer.forward(x[:, shard.rows])
        return layer.backward(tape, y / np.float32(shard.batch_size))

    for _ in range(3):
        opt.step(map(gradients, comm.shard(7, layer)), max_norm=1.0, comm=comm)
    return [digest(layer, opt)]


@case
def tied_parameters(comm):
    comm = comm.divided(4)
    emb, out = rk.Embedding(9, 5, seed=0), rk.Linear(5, 9, bias=False)
    out.params["weight"] = emb.params["weight"]
    opt = rk.SGD({"emb": emb, "out": out}, lr=0.1, momentum=0.5)
    ids = np.random.default_rng(0).integers(0, 9, (4, 6))

    def gradients(shard):
        x, of_emb = emb.forward(ids[:, shard.rows])
        y, of_out = out.forward(x)
        grads = out.backward(of_out, y / np.float32(24))
        return {"emb": emb.backward(of_emb, grads.x), "out": grads}

    for _ in range(3):
        opt.step(map(gradients, comm.shard(6)), comm=comm)
    return [digest(emb, opt)]


@case
def both_ways_to_exchange(comm):
    found = []
    for gathers in (True, False):
        one, run = comm.divided(12), Regression(rk.GRU(3, 6, seed=1), optimizer=rk.RMSprop)
        one._sums.gathers = gathers
        found.append(run.train(one, 3, 11))
    assert found[0] == found[1]
    return found[0]


def near(one, other, tolerance):
    return all(
        np.allclose(values, other.model[name].params[key], rtol=0, atol=tolerance)
        for name, part in one.model.items()
        for key, values in part.params.items()
    )


@case
def an_order_of_its_own(comm):
    """The faster mode: ranks have the same bits, and those of the exact mode but for rounding."""
    inexact = Communicator(exact=False).divided(12)
    runs = [Regression(rk.GRU(3, 6, seed=1), optimizer=rk.SGD) for _ in range(2)]
    for run, one in zip(runs, (inexact, comm.divided(12)), strict=True):
        run.train(one, 3, 13)
    # Steps of 0.01 times gradients of norm below 0.5: rounding of sums of 12 terms moves these by
    # 12 * 6e-8 of their size, 4e-9 in each of three steps; rounding parameters below 1 adds 6e-8.
    assert near(*runs, 3e-7)
    assert len(set(comm.gather(digest(*runs[0].model.values())))) == 1
    return []


@case
def masks_of_the_whole_batch(comm):
    """Any number of shards trains as one shard does, but for rounding."""
    runs = []
    for shards in (4, 8):
        layer = rk.LSTM(3, 5, 2, dropout=0.5, zoneout=0.3, recurrent_dropout=0.3, seed=1)
        run = Regression(layer, dropout=rk.Dropout(0.4, seed=2), optimizer=rk.SGD)
        run.train(comm.divided(shards), 3, 10)
        runs.append(run)
    assert near(*runs, 3e-7)  # as above
    if comm.size == 1:
        layer = rk.LSTM(3, 5, 2, dropout=0.5, zoneout=0.3, recurrent_dropout=0.3, seed=1)
        run = Regression(layer, dropout=rk.Dropout(0.4, seed=2), optimizer=rk.SGD)
        run.train(comm.divided(1), 3, 10)
        assert near(runs[0], run, 3e-7)
    return []


@case
def broadcast(comm):
    """Rank 0's parameters, moments, masks and place in the epoch."""
    layer = rk.GRU(3, 4, 2, dropout=0.5, seed=comm.rank)
    opt = rk.Adam(layer, lr=rk.schedules.Cosine(0.1, steps=9))
    batches = rk.Batches([np.zeros(3)] * 7, batch_size=2, seed=comm.rank)
    values = {"w": draw(comm.rank, 4, dtype=np.float64)}
    for _ in range(1 + comm.rank):
        opt.step({name: np.ones_like(p) for name, p in layer.params.items()})
        layer.forward(np.zeros((2, 2, 3), np.float32))
        next(iter(batches))
    run = {"layer": layer, "opt": opt, "batches": batches, "values": values}
    comm.broadcast(run)
    state = [digest(layer, opt, values), layer.dropout_state, batches.done, batches._seed]
    assert comm.gather(state) == [state] * comm.size
    assert batches.done == 1
    return state


@case
def a_stop_is_for_all_ranks_at_once(comm):
    run, steps = Regression(rk.GRU(3, 4, seed=0)), 0
    comm = comm.divided(4)
    while comm.stopped is None:
        if steps == 3 and comm.rank == comm.size - 1:
            comm.stop(15)
        run.train(comm, 1, 5)
        steps += 1
    assert comm.gather((steps, comm.stopped)) == [(4, 15)] * comm.size
    return []


def message(comm, function):
    """What a call raises, the same on all ranks."""
    try:
        function()
    except (TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    assert comm.gather(found) == [found] * comm.size
    return found


@case
def a_communicator_that_is_given(comm):
    """Two halves of the ranks train the same model, each for itself."""
    half = comm
    if comm.size > 1:
        from mpi4py import MPI

        half = Communicator(MPI.COMM_WORLD.Split(comm.rank % 2))
        assert half.size == comm.size // 2
    return Regression(rk.GRU(3, 6, seed=1)).train(half.divided(4), 2, 9)


@case
def refusals_by_all_ranks(comm):
    two, gru = comm.divided(4), rk.GRU(3, 4, seed=0)
    opt = rk.SGD({"gru": gru}, lr=0.1)
    emb = rk.Embedding(5, 3, sparse=True, seed=0)
    of_emb = rk.SGD(emb, lr=0.1)

    def step(clip=None, shards=None):
        parts = []
        for shard in two.shard(8, gru):
            y, _, tape = gru.forward(draw(0, 5, 8, 3)[:, shard.rows])
            parts.append({"gru": gru.backward(tape, y, clip=clip)})
        opt.step(parts[:shards], comm=two)

    def mixed():
        parts = []
        for _ in two.divided(2 * comm.size).shard(8):
            x, tape = emb.forward(np.array([[1, 2]]))
            grads = emb.backward(tape, x).params
            if len(parts) == 1:
                grads = {"weight": grads["weight"].to_dense()}
            parts.append(grads)
        of_emb.step(parts, comm=two.divided(2 * comm.size))

    step(clip=rk.Clip(step_value=1.0, step_norm=1.0))  # these are of one step and row
    return [
        message(comm, lambda: step(rk.Clip(value=1.0))),
        message(comm, lambda: step(rk.Clip(max_norm=2.0))),
        message(comm, lambda: step(shards=0)).replace(f"{4 // comm.size} shards", "N shards"),
        message(comm, mixed),
        message(comm, lambda: opt.step({"gru": {}}, comm=two)).replace(
            f"{4 // comm.size} shards", "N shards"
        ),
        message(comm, lambda: comm.divided(4 * comm.size + 1 if comm.size > 1 else 0)).split()[0],
    ]


@case
def ranks_that_differ(comm):
    """Refused at the start, by name, on all ranks."""
    if comm.size == 1:
        return []
    last = comm.rank == comm.size - 1
    sizes = {"gru": rk.GRU(3, 5 if last else 4, seed=0)}
    options = {"gru": rk.GRU(3, 4, 2, dropout=0.1 if last else 0.2, seed=0)}
    arrays = {"values": {"w": np.zeros(3, np.float32 if last else np.float64)}}
    rates = {"opt": rk.Adam({"w": np.zeros(3)}, lr=0.1 if last else 0.2)}
    for run, name in (
        (sizes, "run: expected gru {"),
        (options, "run: expected gru {"),
        (arrays, "run: expected values.w ((3,), 'float64'), as on rank 0, got ((3,), 'float32')"),
        (rates, "run: expected opt 'Adam(1 arrays, lr=0.2"),
    ):
        text = message(comm, lambda run=run: comm.broadcast(run))
        assert text.startswith(f"ValueError: {name}"), text
        assert text.endswith(f"on rank {comm.size - 1}"), text
    text = message(comm, lambda: comm.divided((8 if last else 4) * comm.size))
    assert "ranks: expected shards" in text
    info = rk.runtime.info
    try:
        if last:
            rk.runtime.info = lambda: {**info(), "version": "9.9"}
        text = message(comm, lambda: Communicator())
    finally:
        rk.runtime.info = info
    version = rk.__version__
    assert f"ranks: expected rnnkern '{version}', as on rank 0, got '9.9' on rank" in text
    return []


@case
def ranks_that_differ_in_a_step(comm):
    """Refused by all ranks in the first step that they take together; nothing is written."""
    if comm.size == 1:
        return []
    last, head = comm.rank == comm.size - 1, f"on rank {comm.size - 1}"
    comm, x = comm.divided(4), draw(0, 8, 3)

    def step(one, outputs=2, rows=8, seed=0, fails=False, batches=None, lr=0.1):
        head = rk.Linear(3, outputs, seed=seed)
        opt, before = rk.SGD(head, lr=lambda step: lr, momentum=0.5), digest(head)

        def gradients(shard):
            nonlocal fails
            if fails:
                fails = False
                raise KeyError("caught by the program")
            y, tape = head.forward(x[shard.rows])
            return head.backward(tape, y)

        for _ in range(2):
            batch = rows if batches is None else next(iter(batches))
            try:
                opt.step(map(gradients, one.shard(batch, head)), comm=one)
            except KeyError:
                continue
            except ValueError:
                assert digest(head) == before
                raise
            before = digest(head)

    def refused(**options):
        one = comm.divided(4)
        text = message(comm, lambda: step(one, **options))
        assert text.removesuffix(" (comm.broadcast sends that of rank 0)").endswith(head), text
        return text

    assert "opt: expected params['weight'] ((2, 3), 'float32'), as" in refused(
        outputs=3 if last else 2
    )
    assert "opt: expected params['weight'] with the checksum " in refused(seed=int(last))
    assert "step: expected rows 8, as on rank 0, got 7 on" in refused(rows=7 if last else 8)
    assert "step: expected number 1, as on rank 0, got 2 on" in refused(fails=last)
    assert "step: expected lr 0.1, as on rank 0, got 0.2 on" in refused(lr=0.2 if last else 0.1)
    batches = rk.Batches([np.zeros((1, 3))] * 50, batch_size=8, seed=int(last))
    assert "step: expected indices with the checksum " in refused(batches=batches)
    return []


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@case
def an_error_of_rank_0_is_every_ranks(comm):
    def fails():
        raise ValueError("seven")

    def fails_with_what_pickle_cannot_make_again():
        raise Unsendable(7, 8)

    kind, text = (
        (Unsendable, "7 and 8") if comm.rank == 0 else (RuntimeError, "rank 0: Unsendable: 7 and 8")
    )
    with pytest.raises(kind, match=f"^{text}$"):
        comm.first(fails_with_what_pickle_cannot_make_again)
    assert message(comm, lambda: comm.first(fails)) == "ValueError: seven"
    assert comm.first(lambda: [comm.rank]) == [0]
    missing = message(comm, lambda: comm.restore(__file__, {"w": {"w": np.zeros(3)}}))
    assert missing.startswith("FileError: ")
    return []


@case
def shares(comm):
    parts = comm.gather(comm.share(10))
    assert [i for part in parts for i in range(10)[part]] == list(range(10))
    rows = comm.gather(comm.divided(8).rows(13))
    assert [i for part in rows for i in range(13)[part]] == list(range(13))
    assert comm.sum(comm.rank) == sum(range(comm.size))
    own = comm.share(6)
    layer = rk.GRU(3, 4, 2, dropout=0.3, ensemble=6, seed=0).member(own)
    opt, x = rk.Adam(layer, lr=1e-2, ensemble=layer.ensemble), draw(0, 5, 6, 2, 3)[:, own]
    for _ in range(3):
        y, _, tape = layer.forward(x)
        opt.step(layer.backward(tape, y, clip=rk.Clip(max_norm=0.1)))
    members = [digest(layer.member(e)) for e in range(layer.ensemble)]
    return [member for part in comm.gather(members) for member in part]


def main():
    comm = Communicator()
    found = {}
    for name, function in CASES.items():
        found[name] = function(comm)
        everywhere = comm.gather(found[name])
        assert everywhere == [found[name]] * comm.size, f"{name}: ranks differ: {everywhere}"
    if comm.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
