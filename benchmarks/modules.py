"""The modules around a layer and the optimizers, rnnkern's and PyTorch's on the same arrays.

Before a case is timed, the results of both are compared, gradients included. Each thread count has
a process of its own::

    python benchmarks/modules.py --quick
    python benchmarks/modules.py --only losses attention --threads 1
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Arrays, Call, difference
from machine import facts, in_processes, pin
from peers import positive, thread_counts
from report import duration, facts_lines, mean, table, times, write_report
from timing import interleaved
from torch.nn import functional as F
from torch_parts import CRF

import rnnkern as rk

Cases = Iterator[tuple[str, dict[str, Call]]]

RANDOM = np.random.default_rng(0)
NOISE = 0.03  # equal work on both sides has been seen to differ by as much


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def call(run: Callable[[], Any]) -> Call:
    """A call whose results, a tuple, are compared."""
    return Call(run, read)


def inference(run: Callable[[], Any]) -> Call:
    return Call(run, read, torch.inference_mode)


def read(found: Any) -> Arrays:
    values = [v.detach().numpy() if isinstance(v, torch.Tensor) else v for v in found or ()]
    return {str(i): np.array(value) for i, value in enumerate(values)}


def leaf(array: Any) -> torch.Tensor:
    return torch.tensor(array, requires_grad=True)


def gradients(y: Any, leaves: Any, dy: Any = None) -> tuple[Any, ...]:
    """A result and its gradients."""
    return y, *torch.autograd.grad(y, leaves, dy)


def linear(quick: bool) -> Cases:
    for rows, I, O in ((8, 5, 7),) if quick else ((1600, 256, 256), (1600, 64, 64), (32, 256, 256)):
        ours = rk.Linear(I, O, seed=0)
        x, dy = normal(rows, I), normal(rows, O)
        tx, tdy = leaf(x), torch.tensor(dy)
        params = [leaf(array) for array in ours.params.values()]

        def both(ours: Any = ours, x: Any = x, dy: Any = dy) -> Any:
            y, tape = ours.forward(x)
            grads = ours.backward(tape, dy)
            return y, grads.x, *grads.params.values()

        def theirs(tx: Any = tx, tdy: Any = tdy, params: Any = params) -> Any:
            return gradients(F.linear(tx, *params), [tx, *params], tdy)

        sizes = f"Linear {rows}, {I} > {O}"
        yield (
            f"{sizes}: forward",
            {
                "rnnkern": call(lambda ours=ours, x=x: (ours(x),)),
                "PyTorch": inference(lambda tx=tx, params=params: (F.linear(tx, *params),)),
            },
        )
        yield f"{sizes}: both", {"rnnkern": call(both), "PyTorch": call(theirs)}

    for rows, I, V in ((8, 5, 7),) if quick else ((1600, 256, 6000), (1600, 256, 50)):
        ours = rk.Linear(I, V, seed=0)
        x, targets = normal(rows, I), RANDOM.integers(0, V, rows)
        tx, t_targets = leaf(x), torch.tensor(targets)
        params = [leaf(array) for array in ours.params.values()]

        def ours_to_loss(ours: Any = ours, x: Any = x, targets: Any = targets) -> Any:
            z, tape = ours.forward(x)
            loss, dz = rk.cross_entropy(z, targets, out=z)
            grads = ours.backward(tape, dz)
            return loss, grads.x, *grads.params.values()

        def theirs_to_loss(tx: Any = tx, targets: Any = t_targets, params: Any = params) -> Any:
            return gradients(F.cross_entropy(F.linear(tx, *params), targets), [tx, *params])

        yield (
            f"Linear and cross-entropy {rows}, {I} > {V}: both",
            {"rnnkern": call(ours_to_loss), "PyTorch": call(theirs_to_loss)},
        )


def loss(name: str, ours: Any, theirs: Any, outputs: Any, *arrays: Any) -> Any:
    """A case: the loss of outputs and its gradient, which ours gives in one call."""
    z, others = leaf(outputs), [torch.tensor(array) for array in arrays]
    return (
        name,
        {
            "rnnkern": call(lambda: ours(outputs, *arrays)),
            "PyTorch": call(lambda: gradients(theirs(z, *others), [z])),
        },
    )


def losses(quick: bool) -> Cases:
    for N, V in ((8, 7),) if quick else ((1600, 6000), (1600, 50)):
        z, t = normal(N, V), RANDOM.integers(0, V, N)
        w = RANDOM.uniform(0.5, 2, V).astype(np.float32)
        q = RANDOM.dirichlet(np.full(V, 0.1), N).astype(np.float32)
        sizes = f"{N}, {V}"
        for about, more in {"": {}, ", smoothing": {"label_smoothing": 0.1}}.items():
            yield loss(
                f"cross-entropy {sizes}{about}",
                lambda z, t, more=more: rk.cross_entropy(z, t, **more),
                lambda z, t, more=more: F.cross_entropy(z, t, **more),
                *(z, t),
            )
            yield loss(
                f"cross-entropy {sizes}{about}, class weights",
                lambda z, t, w, more=more: rk.cross_entropy(z, t, class_weights=w, **more),
                lambda z, t, w, more=more: F.cross_entropy(z, t, w, **more),
                *(z, t, w),
            )
            yield loss(
                f"cross-entropy {sizes}{about}, soft targets",
                lambda z, q, more=more: rk.cross_entropy(z, q, **more),
                lambda z, q, more=more: F.cross_entropy(z, q, **more),
                *(z, q),
            )
        counts = RANDOM.random(N) < 0.5
        yield loss(
            f"cross-entropy {sizes}, half of the rows",
            lambda z, t, counts: rk.cross_entropy(z, t, mask=counts),
            lambda z, t, _: F.cross_entropy(z, t, ignore_index=-1),
            *(z, np.where(counts, t, -1), counts),
        )
    N = 8 if quick else 1600
    z, t = normal(N, 88), RANDOM.integers(0, 2, (N, 88)).astype(np.float32)
    yield loss(
        f"binary cross-entropy {N}, 88",
        rk.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        *(z, t),
    )
    y, t = normal(N, 256), normal(N, 256)
    yield loss(f"mean squared error {N}, 256", rk.mean_squared_error, F.mse_loss, y, t)
    yield loss(f"Huber {N}, 256", rk.huber, F.huber_loss, y, t)
    levels = np.arange(1, 10, dtype=np.float32) / 10
    t_levels = torch.tensor(levels)

    def pinball(y: Any, t: Any) -> Any:
        e = t[:, None] - y
        return torch.maximum(t_levels * e, (t_levels - 1) * e).mean()

    y, t = normal(N, 9), normal(N)
    yield loss(f"quantiles {N}, 9", lambda y, t: rk.quantile(y, t, levels), pinball, y, t)

    def nll(y: Any, t: Any) -> Any:
        m, s = y.chunk(2, -1)
        squares = (t - m).square() * torch.exp(-s)
        return (s + squares).mean() / 2 + math.log(2 * math.pi) / 2

    yield loss(f"Gaussian nll {N}, 2 x 16", rk.gaussian_nll, nll, normal(N, 32), normal(N, 16))


def embedding(quick: bool) -> Cases:
    N, E, T, B = (20, 5, 4, 3) if quick else (6000, 256, 50, 32)
    ours, x, dy = rk.Embedding(N, E, seed=0), RANDOM.integers(0, N, (T, B)), normal(T, B, E)
    weight = leaf(ours.params["weight"])
    tx, tdy = torch.tensor(x), torch.tensor(dy)
    yield (
        f"Embedding {N} x {E}, {T} x {B}: forward",
        {
            "rnnkern": call(lambda: (ours(x),)),
            "PyTorch": inference(lambda: (F.embedding(tx, weight),)),
        },
    )

    def dense() -> Any:
        y, tape = ours.forward(x)
        return y, ours.backward(tape, dy).params["weight"]

    yield (
        f"Embedding {N} x {E}, {T} x {B}: both",
        {
            "rnnkern": call(dense),
            "PyTorch": call(lambda: gradients(F.embedding(tx, weight), [weight], tdy)),
        },
    )

    N, E, count = (50, 5, 12) if quick else (200_000, 128, 320)
    for name, table_of, ids in (
        ("dense", ours, x),
        ("sparse", rk.Embedding(N, E, sparse=True, seed=0), RANDOM.integers(0, N, count)),
    ):
        yield f"Embedding, {name}, with Adam: a step", stepped_embedding(table_of, ids)


def stepped_embedding(given: rk.Embedding, x: Any) -> dict[str, Call]:
    ours = rk.Embedding(
        given.num_embeddings, given.embedding_dim, sparse=given.sparse, params=given.params
    )
    theirs = torch.nn.Embedding(given.num_embeddings, given.embedding_dim, sparse=given.sparse)
    theirs.load_state_dict({"weight": torch.tensor(ours.params["weight"])})
    dy, tx = normal(*x.shape, given.embedding_dim), torch.tensor(x)
    tdy = torch.tensor(dy)
    own = rk.Adam(ours, lr=1e-3)
    their = (
        torch.optim.SparseAdam(theirs.parameters(), lr=1e-3)
        if given.sparse
        else torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True)
    )

    def step() -> Any:
        _, tape = ours.forward(x)
        own.step(ours.backward(tape, dy))

    def their_step() -> Any:
        their.zero_grad()
        theirs(tx).backward(tdy)
        their.step()

    return {
        "rnnkern": Call(step, lambda _: {"rows": ours.params["weight"][x.ravel()]}),
        "PyTorch": Call(
            their_step, lambda _: {"rows": theirs.weight.detach()[tx.ravel()].numpy().copy()}
        ),
    }


def dropout(quick: bool) -> Cases:
    T, B, C = (4, 3, 5) if quick else (50, 32, 256)
    x, dy = normal(T, B, C), normal(T, B, C)
    tx, tdy = leaf(x), torch.tensor(dy)
    for variational in (False, True):
        ours = rk.Dropout(0.3, variational=variational, seed=0)

        def both(ours: Any = ours) -> None:
            _, tape = ours.forward(x)
            ours.backward(tape, dy)

        def theirs(variational: bool = variational) -> None:
            y = tx * F.dropout(tx.new_ones(B, C), 0.3) if variational else F.dropout(tx, 0.3)
            torch.autograd.grad(y, tx, tdy)

        name = f"Dropout{', variational' * variational} {T}, {B}, {C}: both"
        yield name, {"rnnkern": call(both), "PyTorch": call(theirs)}  # masks differ: not compared


def pooling(quick: bool) -> Cases:
    T, B, C = (4, 3, 6) if quick else (50, 32, 512)
    x, dy, lengths = normal(T, B, C), normal(B, C), RANDOM.integers(1, T + 1, B)
    tx, tdy, t_lengths = leaf(x), torch.tensor(dy), torch.tensor(lengths)
    rows, real = torch.arange(B), torch.arange(T)[:, None, None] < t_lengths[:, None]

    def last() -> Any:
        return tx[t_lengths - 1, rows]

    ways = {
        "mean": lambda: (tx * real).sum(0) / t_lengths[:, None],
        "max": lambda: tx.masked_fill(~real, -math.inf).max(0).values,
        "last": last,
        "ends": lambda: torch.cat([last()[:, : C // 2], tx[0, :, C // 2 :]], -1),
    }
    for kind, way in ways.items():
        ours = rk.Pooling(kind)

        def both(ours: Any = ours) -> Any:
            y, tape = ours.forward(x, lengths=lengths)
            return y, ours.backward(tape, dy).x

        def theirs(way: Any = way) -> Any:
            return gradients(way(), [tx], tdy)

        yield (
            f"Pooling, {kind} {T}, {B}, {C}: both",
            {"rnnkern": call(both), "PyTorch": call(theirs)},
        )


def layer_norm(quick: bool) -> Cases:
    N, C = (8, 5) if quick else (1600, 256)
    ours, x, dy = rk.LayerNorm(C), normal(N, C), normal(N, C)
    tx, tdy = leaf(x), torch.tensor(dy)
    params = [leaf(array) for array in ours.params.values()]
    yield (
        f"LayerNorm {N}, {C}: forward",
        {
            "rnnkern": call(lambda: (ours(x),)),
            "PyTorch": inference(lambda: (F.layer_norm(tx, (C,), *params),)),
        },
    )

    def both() -> Any:
        y, tape = ours.forward(x)
        grads = ours.backward(tape, dy)
        return y, grads.x, *grads.params.values()

    def theirs() -> Any:
        return gradients(F.layer_norm(tx, (C,), *params), [tx, *params], tdy)

    yield f"LayerNorm {N}, {C}: both", {"rnnkern": call(both), "PyTorch": call(theirs)}


def attention(quick: bool) -> Cases:
    Tq, Tk, B, Q, A = (3, 5, 2, 4, 6) if quick else (50, 50, 32, 256, 128)
    q, k = normal(Tq, B, Q) / 4, normal(Tk, B, Q) / 4
    dy, lengths = normal(Tq, B, Q), RANDOM.integers(max(1, Tk // 2), Tk + 1, B)
    tq, tk, tdy = leaf(q), leaf(k), torch.tensor(dy)
    real = (torch.arange(Tk) < torch.tensor(lengths)[:, None])[:, None]  # (B, 1, Tk)
    for kind in ("dot", "scaled_dot", "general", "additive"):
        sizes = {"hidden_size": A} if kind == "additive" else {}
        ours = rk.Attention(Q, kind=kind, seed=0, **sizes)
        params = {name: leaf(array) for name, array in ours.params.items()}
        leaves = [tq, tk, *params.values()]

        def both(ours: Any = ours) -> Any:
            y, tape = ours.forward(q, k, lengths=lengths)
            grads = ours.backward(tape, dy)
            return y, grads.queries, grads.keys, *grads.params.values()

        ways = torch_attention(kind, params, real)
        name = f"Attention, {kind} {Tq} x {Tk}, {B}, {Q}"
        yield (
            f"{name}: forward",
            {
                "rnnkern": call(lambda ours=ours: (ours(q, k, lengths=lengths),)),
                **{n: inference(lambda f=f: (f(tq, tk),)) for n, f in ways.items()},
            },
        )
        yield (
            f"{name}: both",
            {
                "rnnkern": call(both),
                **{
                    n: call(lambda f=f, of=leaves: gradients(f(tq, tk), of, tdy))
                    for n, f in ways.items()
                },
            },
        )
        for rows in (B, 1):
            yield decoder_step(ours, params, q[0, :rows], k[:, :rows].copy(), lengths[:rows])


def torch_attention(kind: str, params: Any, real: Any) -> dict[str, Any]:
    """Attention (Tq, B, Q), (Tk, B, Q) -> (Tq, B, Q) in PyTorch, each way that it has."""
    scale = None if kind == "scaled_dot" else 1.0

    def projected(k: Any) -> Any:
        return F.linear(k, params["weight"]) if kind == "general" else k

    def fused(q: Any, k: Any) -> Any:
        parts = (x.transpose(0, 1)[:, None] for x in (q, projected(k), k))
        y = F.scaled_dot_product_attention(*parts, real[:, None], scale=scale)
        return y[:, 0].transpose(0, 1)

    def products(q: Any, k: Any) -> Any:
        scores = torch.bmm(q.transpose(0, 1), projected(k).permute(1, 2, 0))
        if kind == "scaled_dot":
            scores = scores / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~real, -math.inf).softmax(-1)
        return torch.bmm(weights, k.transpose(0, 1)).transpose(0, 1)

    def additive(q: Any, k: Any) -> Any:
        of_q = F.linear(q.transpose(0, 1), params["weight_q"])
        of_k = F.linear(k.transpose(0, 1), params["weight_k"])
        scores = torch.tanh(of_q[:, :, None] + of_k[:, None]) @ params["v"]
        weights = scores.masked_fill(~real, -math.inf).softmax(-1)
        return torch.bmm(weights, k.transpose(0, 1)).transpose(0, 1)

    if kind == "additive":
        return {"PyTorch": additive}
    return {"PyTorch, fused": fused, "PyTorch, products": products}


def decoder_step(ours: Any, params: Any, q: Any, k: Any, lengths: Any) -> Any:
    """A step of inference over a memory; what is computed of the keys alone is there."""
    memory = ours.memory(k, lengths=lengths)
    tq, values = torch.tensor(q), torch.tensor(k).transpose(0, 1).contiguous()
    with torch.no_grad():
        name = {"general": "weight", "additive": "weight_k"}.get(ours.kind)
        keys = values if name is None else F.linear(values, params[name])
        hidden = ~(torch.arange(len(k)) < torch.tensor(lengths)[:, None])[:, None]
        bias = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
    scale = ours.query_size**-0.5 if ours.kind == "scaled_dot" else 1.0
    turned = keys.transpose(1, 2).contiguous()

    def products() -> Any:
        if ours.kind == "additive":
            of_q = F.linear(tq, params["weight_q"])[:, None]
            scores = (torch.tanh(of_q + keys) @ params["v"])[:, None] + bias
        else:
            scores = torch.baddbmm(bias, tq[:, None], turned, alpha=scale)
        return (torch.bmm(scores.softmax(-1), values)[:, 0],)

    def fused() -> Any:
        parts = tq[:, None, None], keys[:, None], values[:, None]
        return (F.scaled_dot_product_attention(*parts, bias[:, None], scale=scale)[:, 0, 0],)

    ways = {"PyTorch, products": products}
    if ours.kind != "additive":
        ways["PyTorch, fused"] = fused
    return (
        f"Attention, {ours.kind} 1 x {len(k)}, {len(q)}, {q.shape[1]}: a decoder's step",
        {
            "rnnkern": call(lambda: (ours(q, memory),)),
            **{name: inference(way) for name, way in ways.items()},
        },
    )


def crf(quick: bool) -> Cases:
    T, B = (4, 3) if quick else (50, 32)
    for L in (3,) if quick else (9, 40):
        ours = rk.CRF(L, seed=0)
        theirs = CRF()
        for name, array in ours.params.items():
            theirs.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))
        e, labels, lengths = normal(T, B, L), RANDOM.integers(0, L, (T, B)), np.full(B, T)
        lengths[:] = RANDOM.integers(1, T + 1, B)
        te, t_labels, t_lengths = leaf(e), torch.tensor(labels), torch.tensor(lengths)
        params = list(theirs.parameters())

        def both(ours: Any = ours, e: Any = e, labels: Any = labels, lengths: Any = lengths) -> Any:
            loss, grads = ours.loss(e, labels, lengths=lengths)
            return loss, grads.x, *grads.params.values()

        def their(
            theirs: Any = theirs,
            te: Any = te,
            labels: Any = t_labels,
            lengths: Any = t_lengths,
            params: Any = params,
        ) -> Any:
            return gradients(theirs(te, labels, lengths), [te, *params])

        yield f"CRF {T}, {B}, {L} labels: both", {"rnnkern": call(both), "PyTorch": call(their)}


def optimizers(quick: bool) -> Cases:
    rules: dict[str, tuple[Any, Any]] = {
        "SGD, momentum": (
            lambda p: rk.SGD(p, lr=1e-3, momentum=0.9),
            lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True),
        ),
        "RMSprop": (
            lambda p: rk.RMSprop(p, lr=1e-3),
            lambda p: torch.optim.RMSprop(p, lr=1e-3),
        ),
        "Adam": (
            lambda p: rk.Adam(p, lr=1e-3),
            lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        ),
        "AdamW": (
            lambda p: rk.AdamW(p, lr=1e-3),
            lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        ),
    }
    for size in (8,) if quick else (32, 320):
        for name, (ours, theirs) in rules.items():
            params = {str(i): normal(size, size) for i in range(10)}
            grads = {n: normal(size, size) for n in params}
            tensors = [torch.nn.Parameter(torch.tensor(array)) for array in params.values()]
            for tensor, grad in zip(tensors, grads.values(), strict=True):
                tensor.grad = torch.tensor(grad)
            own, their = ours(params), theirs(tensors)

            def step(own: Any = own, grads: Any = grads) -> Any:
                own.step(grads, max_norm=1.0)

            def their_step(their: Any = their, tensors: Any = tensors) -> Any:
                torch.nn.utils.clip_grad_norm_(tensors, 1.0)
                their.step()

            def found(_: Any, params: Any = params) -> Any:
                return {name: array.copy() for name, array in params.items()}

            def theirs_found(_: Any, tensors: Any = tensors) -> Any:
                return {str(i): t.detach().numpy().copy() for i, t in enumerate(tensors)}

            yield (
                f"{name}, 10 x {size} x {size}, with a norm's clip",
                {"rnnkern": Call(step, found), "PyTorch": Call(their_step, theirs_found)},
            )


GROUPS = {
    "linear": linear,
    "losses": losses,
    "embedding": embedding,
    "dropout": dropout,
    "pooling": pooling,
    "layer_norm": layer_norm,
    "attention": attention,
    "crf": crf,
    "optimizers": optimizers,
}


def first(each: Call) -> Arrays:
    with each.scope():
        return each.read(each.run())


def measured(threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    pin(threads)
    rk.set_num_threads(threads)
    torch.set_num_threads(threads)
    gc.freeze()  # what PyTorch keeps; a collection before each turn would take longer than the turn
    rows = []
    for group in options.only:
        for name, calls in GROUPS[group](options.quick):
            found = {who: first(each) for who, each in calls.items()}
            wanted = found.pop("rnnkern")
            for who, arrays in found.items():
                if wrong := difference(arrays, wanted):
                    sys.exit(f"modules: {name}: {who}: {wrong}")
            rows.append({"case": name, "times": interleaved(calls, options.rounds, options.turn)})
    return rows


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    shown, ratios = [], []
    for row in rows:
        found = dict(row["times"])
        own = found.pop("rnnkern")
        best = min(found, key=lambda name: found[name]["median"])
        least = min(each["min"] for each in found.values()) / own["min"]
        ratios.append(found[best]["median"] / own["median"])
        both = [duration(each["median"]) for each in (own, found[best])]
        way = best.removeprefix("PyTorch").removeprefix(", ") or "-"
        met = "yes" if ratios[-1] >= 1 - NOISE else "**no**"
        shown.append([row["case"], *both, way, times(ratios[-1]), times(least), met])
    head = ["case", "rnnkern", "PyTorch", "way", "ratio", "of minima", "at least as fast"]
    lines = table(head, shown)
    return [*lines, f"Geometric mean: {mean(ratios):.2f} x.", ""]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, two rounds")
    add("--only", nargs="+", default=list(GROUPS), choices=GROUPS, help="these modules")
    add("--threads", type=thread_counts, default=[1, 2], help="by commas (1,2)")
    add("--rounds", type=positive(int), help="turns of each contender (5)")
    add("--turn", type=positive(float), help="seconds of calls a turn (0.05)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    add("--process", nargs=2, metavar=("N", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.turn = options.turn or (0.002 if options.quick else 0.05)
    return options


def main() -> None:
    options = arguments()
    if options.process:
        threads, result = options.process
        Path(result).write_text(json.dumps(measured(int(threads), options)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("quick", "rounds", "turn")}
    results = {**facts(), "versions": {"PyTorch": torch.__version__}, "missing": {}}
    results |= {"settings": settings, "runs": {}}
    lines = ["# The modules around a layer", "", *facts_lines(results)]
    for threads, rows in in_processes(__file__, options.threads):
        results["runs"][threads] = rows
        lines += [f"## {threads} thread{'s' * (threads > 1)}", "", *lines_of(rows)]
    write_report(options.out, "modules", results, lines)


if __name__ == "__main__":
    main()
