"""Around the kernels: memory, import, build, threads, neighbours, clips, growth, lengths, cells.

Needs what `peers.py` needs; a library that can't be imported is left out. One against two threads
is read from that benchmark's results. The build takes minutes, and is measured only by name::

    python benchmarks/around.py --quick
    python benchmarks/around.py --wheel dist/rnnkern-*.whl --peers benchmarks/results/peers.json
    python benchmarks/around.py --only import build wheel --wheel dist/rnnkern-*.whl
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import GATES, Case
from contenders import Call, Problem, Rnnkern, Torch, difference, importable, problem_of
from machine import ROOT, environment, facts, pin
from report import duration, facts_lines, table, times, write_report
from timing import interleaved

import rnnkern as rk
from rnnkern import reference
from rnnkern.layers import LAYERS

Settings = dict[str, Any]  # rounds, turn, quick


def training(kind: str, B: int, T: int, H: int) -> Case:
    return Case("training", kind, B, T, H, H, True)


def call_of(contender: Any, case: Case) -> Call:
    call: Call | None = contender.prepare(problem_of(case))
    assert call is not None, f"{contender.name} has no {case.name}"
    return call


def medians(calls: dict[str, Call], settings: Settings) -> dict[str, float]:
    found = interleaved(calls, settings["rounds"], settings["turn"])
    return {name: t["median"] for name, t in found.items()}


def call(run: Callable[[], Any]) -> Call:
    return Call(run, lambda _: {})


# ---- measured in a process of its own, on so many threads --------------------------------------


def status_bytes(key: str) -> int:
    """A line of /proc/self/status, such as VmHWM, the most that was resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status: expected a line {key}")


def step_memory(which: type, case: Case) -> int:
    """What one training step adds to the resident memory at its peak."""
    contender = which(1)
    # The library's own set-up, which a step of the same width brings, is not the step's.
    warm = call_of(contender, training(case.kind, 1, 2, case.H))
    warm.run()
    step = call_of(contender, case)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = status_bytes("VmRSS")
    kept = step.run()
    peak = status_bytes("VmHWM")
    del kept
    return peak - before


MEMORY_SIZES = ((16, 100, 256), (32, 100, 512))  # B, T, H


def memory(which: type, size: tuple[int, int, int]) -> Callable[[Settings], int]:
    return lambda _: step_memory(which, training("lstm", *size))


def neighbour(settings: Settings) -> list[dict[str, Any]]:
    """Two threads on two cores, alone and with a process that keeps the second core busy."""
    cases = [training("lstm", 32, 100, 512), Case("inference", "lstm", 1, 100, 512, 512)]
    if settings["quick"]:
        cases = [training("lstm", 8, 20, 64), Case("inference", "lstm", 1, 20, 64, 64)]
    contenders = [c for c in importable(2)[0] if c.name in ("rnnkern", "PyTorch", "ONNX Runtime")]
    rows = []
    # It ends with this process, however that ends.
    spin = f"""if True:
        import os
        os.sched_setaffinity(0, [{max(os.sched_getaffinity(0))}])
        while os.getppid() == {os.getpid()}:
            for _ in range(1_000_000):
                pass
    """
    busy = subprocess.Popen([sys.executable, "-c", spin])
    try:
        busy.send_signal(signal.SIGSTOP)
        for case in cases:
            problem = problem_of(case)
            calls = {c.name: found for c in contenders if (found := c.prepare(problem))}
            quiet: dict[str, list[float]] = {name: [] for name in calls}
            loud: dict[str, list[float]] = {name: [] for name in calls}
            once = {**settings, "rounds": 1}
            for _ in range(settings["rounds"]):
                for into, wanted in ((quiet, signal.SIGSTOP), (loud, signal.SIGCONT)):
                    busy.send_signal(wanted)
                    if into is quiet:
                        time.sleep(1)  # rnnkern works alone for half a second after a neighbour
                    for name, median in medians(calls, once).items():
                        into[name].append(median)
            rows += [
                {
                    "case": case.name,
                    "name": name,
                    "quiet": statistics.median(quiet[name]),
                    "busy": statistics.median(loud[name]),
                }
                for name in calls
            ]
    finally:
        busy.kill()
        busy.wait()
    return rows


CLIPS = {
    "none": None,
    "step_value": rk.Clip(step_value=1.0),
    "step_norm": rk.Clip(step_norm=1.0),
    "value": rk.Clip(value=1.0),
    "max_norm": rk.Clip(max_norm=1.0),
    "all four": rk.Clip(1.0, 1.0, 1.0, 1.0),
}


def clips(settings: Settings) -> list[dict[str, Any]]:
    rk.set_num_threads(1)
    rows = []
    for B, T, H in ((32, 50, 128), (16, 50, 256)):
        case = training("lstm", B, T, H)
        problem = problem_of(case)
        steps = {name: call(clipped_step(problem, clip)) for name, clip in CLIPS.items()}
        rows.append({"case": case.name, "times": medians(steps, settings)})
    return rows


def clipped_step(problem: Problem, clip: rk.Clip | None) -> Callable[[], Any]:
    def step() -> Any:
        _, _, tape = problem.layer.forward(problem.x)
        return problem.layer.backward(tape, problem.dy, clip=clip)

    return step


def growth(settings: Settings) -> list[dict[str, Any]]:
    """Times of an LSTM's training step (H = 64) over T, B and L, and their exponents."""
    rk.set_num_threads(1)
    axes = {
        "T": ([100, 300, 1000, 3000, 10_000], lambda n: (n, 8, 1)),
        "B": ([1, 4, 16, 64, 256, 1024], lambda n: (20, n, 1)),
        "L": ([1, 2, 4, 8], lambda n: (50, 8, n)),
    }
    rng = np.random.default_rng(0)
    rows = []
    for letter, (sizes, at) in axes.items():
        if settings["quick"]:
            sizes = sizes[:3]
        steps = {}
        for n in sizes:
            T, B, L = at(n)
            x, dy = rng.normal(size=(2, T, B, 64)).astype(np.float32)
            steps[str(n)] = call(plain_step(rk.LSTM(64, 64, L, seed=0), x, dy))
        found = medians(steps, settings)
        seconds = [found[str(n)] for n in sizes]
        exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        last = math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])
        rows.append(
            {"axis": letter, "sizes": sizes, "seconds": seconds, "exponent": exponent, "last": last}
        )
    return rows


def plain_step(layer: Any, x: Any, dy: Any) -> Callable[[], Any]:
    def step() -> Any:
        _, _, tape = layer.forward(x)
        return layer.backward(tape, dy)

    return step


def lengths(settings: Settings) -> list[dict[str, Any]]:
    """A batch with lengths from 1 to T against the same one at full length; PyTorch packs."""
    contenders = {c.name: c for c in importable(1)[0]}
    rows = []
    sizes = ((8, 20, 64),) if settings["quick"] else ((32, 100, 128), (32, 100, 512))
    for kind in ("lstm", "gru"):
        for B, T, H in sizes:
            case = training(kind, B, T, H)
            problem = problem_of(case)
            real = np.random.default_rng(0).integers(1, T + 1, B)
            own = contenders["rnnkern"].prepare_training(problem, real)
            steps = {"rnnkern full": contenders["rnnkern"].prepare(problem), "rnnkern": own}
            if "PyTorch" in contenders:
                torch = contenders["PyTorch"]
                steps["PyTorch padded"] = torch.prepare(problem)
                packed = torch.prepare_packed(problem, real)
                if wrong := difference(packed.read(packed.run()), own.read(own.run())):
                    sys.exit(f"around: lengths, {case.name}: PyTorch packed: {wrong}")
                steps["PyTorch packed"] = packed
            share = float(real.sum()) / (B * T)
            rows.append({"case": case.name, "real": share, "times": medians(steps, settings)})
    return rows


# A cell's name, how a layer of it is made, the one that it is measured against, and at which B of
# B x T x H its time is to be at most so many times that one's: inference, training.
Row = tuple[str, Callable[[int], Any], str, dict[int, tuple[float, float]]]
NORMED, NOISY = {32: (1.25, 1.25)}, {32: (1.05, 1.05)}
SOFT = ("HardSigmoid", "Softsign", "Softsign")
VARIANTS: tuple[Row, ...] = (
    ("LSTM, peephole", lambda H: rk.LSTM(H, H, peephole=True, seed=0), "LSTM", {32: (1.05, 1.05)}),
    ("LSTM, activations", lambda H: rk.LSTM(H, H, activations=SOFT, seed=0), "LSTM", {}),
    ("LSTM, coupled gates", lambda H: rk.LSTM(H, H, input_forget=True, seed=0), "LSTM", {}),
    ("LSTM, cell clip", lambda H: rk.LSTM(H, H, cell_clip=3.0, seed=0), "LSTM", {}),
    ("LSTM, projection", lambda H: rk.LSTM(H, H, proj_size=H // 2, seed=0), "LSTM", {}),
    ("sLSTM, 1 head", lambda H: rk.SLSTM(H, H, seed=0), "LSTM", {32: (1.3, 1.3)}),
    ("sLSTM, 4 heads", lambda H: rk.SLSTM(H, H, heads=4, seed=0), "LSTM", {32: (1.3, 1.3)}),
    ("LSTM, layer norm haste", lambda H: rk.LSTM(H, H, layer_norm="haste", seed=0), "LSTM", NORMED),
    (
        *("LSTM, layer norm fastrnns", lambda H: rk.LSTM(H, H, layer_norm="fastrnns", seed=0)),
        *("LSTM", NORMED),
    ),
    (
        *("LSTM, noise", lambda H: rk.LSTM(H, H, zoneout=0.1, recurrent_dropout=0.1, seed=0)),
        *("LSTM", NOISY),
    ),
    ("GRU, layer norm", lambda H: rk.GRU(H, H, layer_norm="haste", seed=0), "GRU", NORMED),
    (
        *("GRU, noise", lambda H: rk.GRU(H, H, zoneout=0.1, recurrent_dropout=0.1, seed=0)),
        *("GRU", NOISY),
    ),
    ("GRU, activations", lambda H: rk.GRU(H, H, activations=SOFT[:2], seed=0), "GRU", {}),
    ("minGRU", lambda H: rk.MinGRU(H, H, seed=0), "GRU", {1: (1 / 4, 1 / 3.5), 16: (0.4, 0.4)}),
    ("minLSTM", lambda H: rk.MinLSTM(H, H, seed=0), "GRU", {1: (1 / 4, 1 / 3.5), 16: (0.4, 0.4)}),
    ("IndRNN", lambda H: rk.IndRNN(H, H, seed=0), "GRU", {1: (0.4, 0.4), 16: (0.4, 0.4)}),
    ("RG-LRU", lambda H: rk.RGLRU(H, H, seed=0), "GRU", {1: (0.4, 0.4), 16: (0.4, 0.4)}),
)


def further_cells() -> list[Row]:
    """`VARIANTS`, and without a target each class of layers that neither it nor peers.py has."""
    known = {type(make(4)) for _, make, _, _ in VARIANTS}
    rows = list(VARIANTS)
    for cls in LAYERS.values():
        layer = cls(4, 4, seed=0)
        if cls not in known and layer._kind not in GATES:
            base = "LSTM" if len(reference.CELLS[layer._kind].states) > 1 else "GRU"
            rows.append((type(layer).__name__, lambda H, cls=cls: cls(H, H, seed=0), base, {}))
    return rows


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Each further cell beside the LSTM or the GRU of its size."""
    bases: dict[str, Callable[[int], Any]] = {
        "LSTM": lambda H: rk.LSTM(H, H, seed=0),
        "GRU": lambda H: rk.GRU(H, H, seed=0),
    }
    sizes = [(4, 20, 64)] if settings["quick"] else [(1, 100, 256), (16, 100, 256), (32, 100, 256)]
    further = further_cells()
    rng = np.random.default_rng(0)
    rows = []
    for B, T, H in sizes:
        x, dy = rng.normal(size=(2, T, B, H)).astype(np.float32)
        layers = {name: make(H) for name, make in bases.items()}
        layers |= {name: make(H) for name, make, _, _ in further}
        calls = {}
        for name, layer in layers.items():
            width = layer(x)[0].shape[-1]
            calls[f"{name}: inference"] = call(lambda layer=layer, x=x: layer(x))
            calls[f"{name}: training"] = call(plain_step(layer, x, dy[..., :width].copy()))
        found = medians(calls, settings)
        for name, _, base, goals in further:
            goal = goals.get(B, (None, None))
            for mode, most in zip(("inference", "training"), goal, strict=True):
                own, its = found[f"{name}: {mode}"], found[f"{base}: {mode}"]
                rows.append(
                    {"case": f"{mode} {B},{T},{H}", "name": name, "base": base, "most": most}
                    | {"seconds": own, "base_seconds": its}
                )
    return rows


# TiRex-2's sLSTM (B, T, H, heads), by github.com/NX-AI/tirex-2 (conftest.py): 74 patches of 32
# steps are its whole window, 2048 steps and 320 to come. On a CPU it runs the PyTorch backend of
# FlashRNN (model/component/flashrnn_slstm.py): at most half of its time is wanted.
TIREX_SIZES = ((1, 74, 512, 4), (64, 74, 512, 4))
TIREX_RATIO = 0.5


def slstm(settings: Settings) -> list[dict[str, Any]]:
    """An sLSTM of TiRex-2's sizes beside FlashRNN's, inference."""
    rk.set_num_threads(1)
    rows = []
    for B, T, H, heads in ((2, 10, 64, 4),) if settings["quick"] else TIREX_SIZES:
        x = np.random.default_rng(0).normal(size=(T, B, H)).astype(np.float32)
        layer = rk.SLSTM(H, H, heads=heads, seed=0)
        calls = {"rnnkern": streamed(layer, x)}
        try:
            calls["FlashRNN"], version = flash_rnn(layer, x)
        except ImportError:
            version = None
        else:
            found = {name: one.read(one.run()) for name, one in calls.items()}
            if wrong := difference(found["FlashRNN"], found["rnnkern"]):
                sys.exit(f"around: slstm: FlashRNN: {wrong}")
        case = f"inference {B},{T},{H}, heads: {heads}"
        rows.append({"case": case, "version": version, "times": medians(calls, settings)})
    return rows


def streamed(layer: Any, x: Any) -> Call:
    """Inference with weights packed once."""
    stream, out = layer.stream(x.shape[1]), np.empty((*x.shape[:2], layer.hidden_size), x.dtype)

    def run() -> Any:
        stream.reset()
        return stream.run(x, out)

    return Call(run, lambda y: {"y": y.copy()})


def flash_rnn(layer: Any, x: Any) -> tuple[Call, str]:
    """The same layer in FlashRNN, as TiRex-2 uses it on a CPU, and the version."""
    import flashrnn
    import torch

    torch.set_num_threads(1)
    T, B, _ = x.shape
    heads, width = layer.heads, layer.hidden_size // layer.heads
    w_ih, r, b = (
        torch.from_numpy(layer.params[name])
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    )
    r, b = r.view(4, heads, width, width), b.view(4, heads, width)
    inputs = torch.from_numpy(x.swapaxes(0, 1).copy())
    config = flashrnn.FlashRNNConfig(
        function="slstm", backend="vanilla", dtype="float32", num_heads=heads, head_dim=width
    )

    def run() -> Any:
        products = torch.nn.functional.linear(inputs, w_ih).view(B, T, 4, heads, width)
        return flashrnn.flashrnn(products, r, b, config=config)[0][0]

    def read(y: Any) -> dict[str, Any]:
        return {"y": y.reshape(B, T, -1).transpose(0, 1).numpy().copy()}

    return Call(run, read, torch.inference_mode), importlib.metadata.version("flashrnn")


# Name: threads, and what measures.
MEASURED: dict[str, tuple[int, Callable[[Settings], Any]]] = {
    **{
        f"memory {which.name} {size}": (1, memory(which, size))
        for which in (Rnnkern, Torch)
        for size in MEMORY_SIZES
    },
    "neighbour": (2, neighbour),
    "clips": (1, clips),
    "growth": (1, growth),
    "lengths": (1, lengths),
    "cells": (1, cells),
    "slstm": (1, slstm),
}
SECTIONS = (
    *("memory", "import", "wheel", "build", "threads", "neighbour", "clips", "growth", "lengths"),
    *("cells", "slstm"),
)
# What the package promises to those who install it.
MOST_IMPORT = 0.015  # seconds beyond NumPy
MOST_WHEEL = 4 << 20  # bytes, with libgomp
MOST_BUILD = 300.0  # seconds of `pip install .`, on two cores
BUILD_CORES = 2


def in_process(name: str, settings: Settings) -> Any:
    """One of those in a fresh process."""
    threads, _ = MEASURED[name]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--process", name, json.dumps(settings), str(result)]
        done = subprocess.run(command, env=environment(threads))
        if done.returncode != 0:
            sys.exit(done.returncode)
        return json.loads(result.read_text())


def import_times(settings: Settings) -> dict[str, Any]:
    """Seconds that importing rnnkern takes where NumPy is there already."""
    code = "import time, numpy; t = time.perf_counter(); import rnnkern; "
    code += "print(time.perf_counter() - t)"
    # As pip leaves the package: with its bytecode, which the first process writes.
    env = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = []
    for _ in range(4 if settings["quick"] else 16):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env=env
        )
        found.append(float(done.stdout))
    found = found[1:]
    return {"median": statistics.median(found), "min": min(found), "processes": len(found)}


def build_time(_: Settings) -> dict[str, Any]:
    """Seconds of `pip install .` into a new folder, on two cores, without a compiler cache."""
    cores = sorted(os.sched_getaffinity(0))[:BUILD_CORES]
    left_out = ("CMAKE_BUILD_PARALLEL_LEVEL", "CMAKE_CXX_COMPILER_LAUNCHER", "CMAKE_ARGS")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", str(ROOT)]
        command += ["--target", f"{folder}/package", "-C", f"build-dir={folder}/build"]
        start = time.perf_counter()
        subprocess.run(
            command, check=True, env=env, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor": processor, "cores": len(cores)}


NOISE = 0.03  # equal work on both sides has been seen to differ by as much


def wanted_speedup(case: dict[str, Any]) -> float:
    if case["B"] == 1:
        return 1.5 if case["H"] >= 256 else 1.0
    return 1.85


def thread_rows(path: Path) -> list[dict[str, Any]] | None:
    """One against two threads, of the peer benchmark's training and inference grids; None if it
    did not run on both."""
    runs = {run["threads"]: run for run in json.loads(path.read_text())["runs"]}
    if not {1, 2} <= runs.keys():
        return None
    two = {case["name"]: case["times"] for case in runs[2]["cases"]}
    return [
        {
            "case": case["name"],
            "seconds": [t["rnnkern"]["median"] for t in (case["times"], two[case["name"]])],
            "wanted": wanted_speedup(case),
            "speedups": {
                name: found["median"] / two[case["name"]][name]["median"]
                for name, found in case["times"].items()
            },
        }
        for case in runs[1]["cases"]
        if case["grid"] in ("training", "inference")
    ]


# ---- the report --------------------------------------------------------------------------------


def mebibytes(n: float) -> str:
    return f"{n / 2**20:.1f} MiB"


def memory_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in found:
        own, torch = row["rnnkern"], row.get("PyTorch")
        theirs = [mebibytes(torch), f"{own / torch:.2f}"] if torch else ["-", "-"]
        rows.append([row["case"], mebibytes(own), *theirs])
    return table(["one step's peak memory", "rnnkern", "PyTorch", "rnnkern / PyTorch"], rows)


def import_lines(found: dict[str, Any]) -> list[str]:
    line = f"Beyond NumPy: {duration(found['median'])} (minimum {duration(found['min'])};"
    line += f" {found['processes']} fresh processes)."
    return [f"{line} {limit(found['median'], MOST_IMPORT, duration(MOST_IMPORT))}", ""]


def wheel_lines(found: dict[str, Any]) -> list[str]:
    line = f"{found['name']}: {found['bytes'] / 2**20:.2f} MiB."
    return [f"{line} {limit(found['bytes'], MOST_WHEEL, '4 MiB with libgomp')}", ""]


def build_lines(found: dict[str, Any]) -> list[str]:
    line = f"`pip install .` on {found['cores']} cores: {found['seconds']:.0f} s"
    line += f" ({found['processor']:.0f} s of processor time)."
    return [f"{line} {limit(found['seconds'], MOST_BUILD, '5 minutes on two cores')}", ""]


def limit(value: float, most: float, text: str) -> str:
    return f"Limit: {text}; {'met' if value <= most else '**exceeded**'}."


def threads_lines(found: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in found for name in row["speedups"]))
    rows = [
        [row["case"], *map(duration, row["seconds"])]
        + [times(row["speedups"].get(name)) for name in names]
        + [f">= {row['wanted']:g} x"]
        + ["yes" if row["speedups"]["rnnkern"] >= row["wanted"] - NOISE else "**no**"]
        for row in found
    ]
    return table(["case", "1 thread", "2 threads", *names, "target", "met"], rows)


def neighbour_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        [f"{row['case']}: {row['name']}", duration(quiet), duration(busy), times(busy / quiet)]
        for row in found
        for quiet, busy in [(row["quiet"], row["busy"])]
    ]
    head = ["two threads, two cores", "idle machine", "one core busy", "ratio"]
    return [*table(head, rows), "Target: at most 1.8 x.", ""]


def clips_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        [row["case"], duration(row["times"]["none"])]
        + [f"{t / row['times']['none'] - 1:+.1%}" for n, t in row["times"].items() if n != "none"]
        for row in found
    ]
    return table(["forward and backward", *CLIPS], rows)


def growth_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in found:
        per_unit = [[str(n), duration(s), duration(s / n)] for n, s in _pairs(row)]
        lines += table([row["axis"], "time", f"per unit of {row['axis']}"], per_unit)
        last = f"over the last two sizes: {row['last']:.3f}"
        lines += [f"Exponent: {row['exponent']:.3f}; {last}.", ""]
    return lines


def _pairs(row: dict[str, Any]) -> list[tuple[int, float]]:
    return list(zip(row["sizes"], row["seconds"], strict=True))


def lengths_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in found:
        t, cells = row["times"], [row["case"], f"{row['real']:.2f}"]
        ratio = t["rnnkern"] / t["rnnkern full"]
        cells += [duration(t["rnnkern full"]), duration(t["rnnkern"])]
        cells += [f"{ratio:.2f}", f"{ratio / row['real']:.2f}"]
        if "PyTorch packed" in t:
            packed = t["PyTorch packed"]
            cells += [duration(t["PyTorch padded"]), duration(packed)]
            cells += [times(packed / t["rnnkern"])]
        else:
            cells += ["-"] * 3
        rows.append(cells)
    head = ["case", "real steps", "full", "by lengths", "ratio", "ratio / real", "PyTorch padded"]
    return table([*head, "PyTorch packed", "packed / rnnkern"], rows)


def cells_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in sorted(found, key=lambda row: row["name"]):
        ratio, most = row["seconds"] / row["base_seconds"], row["most"]
        goal = ["-", "-"]
        if most:
            goal = [f"<= {most:.2f}", "yes" if ratio <= most * (1 + NOISE) else "**no**"]
        names = [f"{row['name']}, {row['case']}", row["base"]]
        both = [duration(row["seconds"]), duration(row["base_seconds"])]
        rows.append([*names, *both, f"{ratio:.2f}", *goal])
    return table(["cell", "relative to", "time", "its time", "ratio", "target", "met"], rows)


def slstm_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in found:
        own, theirs = row["times"]["rnnkern"], row["times"].get("FlashRNN")
        others = ["-"] * 4
        if theirs:
            met = "yes" if own / theirs <= TIREX_RATIO * (1 + NOISE) else "**no**"
            others = [duration(theirs), f"{own / theirs:.2f}", f"<= {TIREX_RATIO:g}", met]
        rows.append([row["case"], duration(own), *others])
    version = found[0]["version"] or "not installed"
    return table(["case", "rnnkern", f"FlashRNN ({version})", "ratio", "target", "met"], rows)


LINES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "memory": ("Memory of one training step", memory_lines),
    "import": ("Import", import_lines),
    "wheel": ("The wheel", wheel_lines),
    "build": ("The build", build_lines),
    "threads": ("Speedup of two threads over one", threads_lines),
    "neighbour": ("With another process on one core", neighbour_lines),
    "clips": ("Clips: time of a training step relative to no clip", clips_lines),
    "growth": ("Growth of a training step, LSTM, H = 64", growth_lines),
    "lengths": ("Variable lengths, uniform from 1 to T, training", lengths_lines),
    "cells": ("Further cells relative to an LSTM or GRU of their size, one thread", cells_lines),
    "slstm": ("The sLSTM at TiRex-2's sizes, one thread", slstm_lines),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, two rounds")
    default = [name for name in SECTIONS if name != "build"]
    help_only = "these sections (all but build)"
    add("--only", nargs="+", default=default, choices=SECTIONS, help=help_only)
    add("--wheel", type=Path, help="a wheel, whose size is compared with the limit")
    add("--peers", type=Path, help="results of peers.py (peers.json in the folder for results)")
    add("--rounds", type=int, help="turns of each contender (5)")
    add("--turn", type=float, default=0.03, help="seconds of calls a turn (0.03)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    options = parser.parse_args()
    for name in ("wheel", "peers"):
        path = getattr(options, name)
        if path and not path.is_file():
            parser.error(f"--{name}: expected a file, got {path}")
    options.peers = options.peers or options.out / "peers.json"
    return options


def measure(section: str, options: argparse.Namespace, settings: Settings) -> Any:
    """A section's results; None if what it needs was not given."""
    if section == "memory":
        libraries = [name for name in ("rnnkern", "PyTorch") if name in options.libraries]
        return [
            {
                "case": training("lstm", *size).name,
                **{name: in_process(f"memory {name} {size}", settings) for name in libraries},
            }
            for size in MEMORY_SIZES
        ]
    if section == "import":
        return import_times(settings)
    if section == "build":
        return build_time(settings)
    if section == "wheel":
        wheel = options.wheel
        return wheel and {"name": wheel.name, "bytes": wheel.stat().st_size}
    if section == "threads":
        return thread_rows(options.peers) if options.peers.is_file() else None
    return in_process(section, settings)


def main() -> None:
    if sys.argv[1:2] == ["--process"]:
        name, given, result = sys.argv[2:]
        threads, use = MEASURED[name]
        pin(threads)
        Path(result).write_text(json.dumps(use(json.loads(given))))
        return
    options = arguments()
    settings = {
        "rounds": options.rounds or (2 if options.quick else 5),
        "turn": options.turn,
        "quick": options.quick,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    contenders, missing = importable(1)
    options.libraries = {c.name: c.version for c in contenders}
    results = {**facts(), "versions": options.libraries, "missing": missing, "settings": settings}
    lines = ["# Around the kernels", "", *facts_lines(results)]
    for section in options.only:
        print(section, file=sys.stderr)
        found = measure(section, options, settings)
        results[section] = found
        title, show = LINES[section]
        lines += [f"## {title}", "", *(["Not measured.", ""] if found is None else show(found))]
    write_report(options.out, "around", results, lines)


if __name__ == "__main__":
    main()
