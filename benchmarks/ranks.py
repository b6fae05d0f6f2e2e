"""Time of a training step on the ranks of mpiexec, and of its exchange.

    mpiexec -n 2 python benchmarks/ranks.py [--threads 1] [--shards 8] [--quick]
    python benchmarks/ranks.py --predict [--latency US] [--parameters N] [--compute MS]

Rank 0 prints: a step of a GRU of 256 units on the same batch whatever the number of ranks (strong),
and on a batch for each rank (weak); exchanges of several sizes, both ways. Times are medians of
rounds, of the slowest rank. With --predict: what the model of docs/several_machines.md says.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import rnnkern as rk
from rnnkern.distributed import Communicator
from rnnkern.distributed.sums import Layout


def slowest(comm, times):
    """The median over rounds of the time of the slowest rank, in ms."""
    return 1e3 * float(np.median(np.max(comm.gather(times), axis=0)))


def step_times(comm, rows, rounds, shards):
    """Times of a step and of its exchange."""
    model = {"gru": rk.GRU(64, 256, seed=0), "head": rk.Linear(256, 64, seed=0)}
    opt, comm = rk.Adam(model), comm.divided(shards)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, rows, 64)).astype(np.float32)
    total, exchanges = comm._sums.total, []

    def timed(*arguments):
        begin = time.perf_counter()
        found = total(*arguments)
        exchanges.append(time.perf_counter() - begin)
        return found

    comm._sums.total = timed

    def gradients(shard):
        h, _, of_gru = model["gru"].forward(x[:, shard.rows])
        y, of_head = model["head"].forward(h)
        _, dy = rk.mean_squared_error(y, np.ascontiguousarray(x[:, shard.rows]))
        head = model["head"].backward(of_head, dy * np.float32(shard.share))
        return {"gru": model["gru"].backward(of_gru, head.x), "head": head}

    times = []
    for _ in range(rounds + 2):
        comm.gather(0)  # all begin together
        begin = time.perf_counter()
        opt.step(map(gradients, comm.shard(rows, model)), max_norm=1.0, comm=comm)
        times.append(time.perf_counter() - begin)
    return slowest(comm, times[2:]), slowest(comm, exchanges[2:]), rk.num_parameters(model)


def exchange_time(comm, count, gathers, rounds):
    layout = Layout([((count,), np.dtype(np.float32))])
    sums = comm.divided(comm.size)._sums
    sums.gathers, times = gathers, []
    for _ in range(rounds + 2):
        found = []
        sums.push(layout, found, layout.new(comm.size))
        comm.gather(0)
        begin = time.perf_counter()
        sums.total(layout, found)
        times.append(time.perf_counter() - begin)
    return slowest(comm, times[2:])


def predicted(ranks, n, latency, bandwidth, adds):
    """Seconds of an exchange of n bytes, gathered and reduced.

    A message costs its latency, in s, and its bytes by the bandwidth, in bytes/s; `adds` are bytes
    added up in a second. A rank receives `ranks - 1` messages in a collective.
    """
    others = ranks - 1
    gather = others * (latency + n / bandwidth + n / adds)
    reduce = others * (2 * (latency + n / ranks / bandwidth) + n / ranks / adds)
    return gather, reduce


def predict(args):
    n, latency, compute = 4 * args.parameters, 1e-6 * args.latency, 1e-3 * args.compute
    print("| machines | Gbit/s | gather ms | reduce ms | efficiency |\n|---:|---:|---:|---:|---:|")
    for ranks in args.machines:
        for gbit in args.gbit:
            times = predicted(ranks, n, latency, gbit * 1e9 / 8, 1e9 * args.adds)
            best = times[0] if ranks == 2 else times[1]
            share = compute / (compute + best)
            row = (ranks, f"{gbit:g}", *(f"{1e3 * t:,.0f}" for t in times), f"{share:.0%}")
            print(f"| {' | '.join(map(str, row))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of each rank (default: 1)")
    parser.add_argument("--shards", type=int, default=8, help="of a batch (default: 8)")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--predict", action="store_true", help="print the model's times alone")
    parser.add_argument("--latency", type=float, default=50, help="us of a message (default: 50)")
    parser.add_argument("--parameters", type=int, default=10**7, help="default: 10 million")
    parser.add_argument("--compute", type=float, default=1000, help="ms a step (default: 1000)")
    parser.add_argument("--machines", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--gbit", type=float, nargs="+", default=[10, 100], help="Gbit/s")
    parser.add_argument("--adds", type=float, default=2, help="GB/s that are added (default: 2)")
    args = parser.parse_args()
    if args.predict:
        return predict(args)
    comm, rounds = Communicator(), 3 if args.quick else 30
    lines = []
    with rk.num_threads(args.threads):
        for kind, rows in (("strong", 64), ("weak", 64 * comm.size)):
            step, exchange, count = step_times(comm, rows, rounds, args.shards)
            lines.append(
                f"{kind}: {comm.size} ranks, {args.shards} shards, {rows} rows, {count} parameters:"
                f" step {step:.1f} ms, of which exchange {exchange:.2f} ms"
            )
        for count in (1000, 100_000, 1_000_000) if comm.size > 1 else ():
            times = [exchange_time(comm, count, gathers, rounds) for gathers in (True, False)]
            lines.append(
                f"exchange of {4 * count / 1e6:g} MB: gather {times[0]:.3f} ms, "
                f"reduce {times[1]:.3f} ms"
            )
    if comm.rank == 0:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
