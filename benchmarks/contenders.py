"""One adapter a library: the same layer, with rnnkern's parameters, ready to be called.

An adapter's constructor imports its library and limits it to so many threads; ``prepare`` makes a
`Call` of a case, or None if the library can't do it. Weights are initial values of rnnkern's.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from cases import GATES, Case
from numpy.typing import NDArray

import rnnkern as rk

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Problem:
    case: Case
    layer: Any
    x: Array
    dy: Array

    @property
    def params(self) -> Arrays:
        """By PyTorch's names without the layer's number."""
        return {name.removesuffix("_l0"): value for name, value in self.layer.params.items()}


def problem_of(case: Case) -> Problem:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.T, case.B, case.I)).astype(np.float32)
    dy = rng.normal(size=(case.T, case.B, case.H)).astype(np.float32)
    cell = {"lstm": rk.LSTM, "gru": rk.GRU, "rnn_tanh": rk.RNN}[case.kind]
    return Problem(case, cell(case.I, case.H, seed=0), x, dy)


@dataclass(frozen=True)
class Call:
    run: Callable[[], Any]  # what is timed
    read: Callable[[Any], Arrays]  # what it gave, as copies in NumPy
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext  # around a series of runs


class Rnnkern:
    name = "rnnkern"
    version = rk.__version__

    def __init__(self, threads: int) -> None:
        rk.set_num_threads(threads)

    def prepare(self, problem: Problem) -> Call:
        case, layer, x = problem.case, problem.layer, problem.x
        if case.streaming:
            stream, out = layer.stream(), np.empty((case.T, 1, case.H), np.float32)
            if case.grid == "step":
                step, x0, out0 = stream.step, x[0], out[0]
                return Call(lambda: step(x0, out0), lambda y: {"y": y[None].copy()})
            return Call(lambda: stream.run(x, out), lambda y: {"y": y.copy()})
        if case.training:
            return self.prepare_training(problem)
        # Weights packed once: ONNX Runtime, OpenVINO and JAX have theirs as constants, too.
        stream, out = layer.stream(case.B), np.empty((case.T, case.B, case.H), np.float32)

        def infer() -> Any:
            stream.reset()
            return stream.run(x, out)

        return Call(infer, lambda y: {"y": y.copy()})

    def prepare_training(self, problem: Problem, lengths: Array | None = None) -> Call:
        layer, x, dy = problem.layer, problem.x, problem.dy

        def train() -> Any:
            y, _, tape = layer.forward(x, lengths=lengths)
            return y, layer.backward(tape, dy)

        def read(found: Any) -> Arrays:
            y, grads = found
            named = {name.removesuffix("_l0"): value for name, value in grads.params.items()}
            return {"y": y, "dx": grads.x, **named}

        return Call(train, read)


class Bf16:
    """rnnkern in bf16 as a case says; in float32 in the same way, if it does not round."""

    name, rounds = "rnnkern", True

    def __init__(self, own: Rnnkern) -> None:
        self.own, self.version = own, own.version

    def prepare(self, problem: Problem) -> Call:
        case, layer, x = problem.case, problem.layer, problem.x
        if self.rounds and case.bf16 != "weights":
            layer = type(layer)(case.I, case.H, compute="bf16", params=layer.params)
        if case.training:
            return self.own.prepare_training(replace(problem, layer=layer))
        frozen = layer.freeze(weights="bf16" if self.rounds and case.bf16 == "weights" else None)
        if case.grid == "step":
            step, x0, out = frozen.stream().step, x[0], np.empty((1, case.H), np.float32)
            return Call(lambda: step(x0, out), lambda y: {"y": y[None].copy()})
        model = layer if case.bf16 == "products" else frozen
        return Call(lambda: model(x)[0], lambda y: {"y": y.copy()})


class Float32(Bf16):
    name, rounds = "rnnkern float32", False


class Torch:
    name, dtype = "PyTorch", "float32"

    def __init__(self, threads: int) -> None:
        import torch

        self.torch, self.version = torch, torch.__version__
        torch.set_num_threads(threads)

    def prepare(self, problem: Problem) -> Call:
        torch, case = self.torch, problem.case
        dtype = getattr(torch, self.dtype)
        layer = self._layer(problem).to(dtype)
        x, dy = (torch.from_numpy(array).to(dtype) for array in (problem.x, problem.dy))
        if case.training:
            params = dict(layer.named_parameters())
            return self._training(layer, params, x.clone().requires_grad_(), dy)
        state = None

        def run() -> Any:
            return layer(x)[0]

        def carry() -> Any:
            nonlocal state
            y, state = layer(x, state)
            return y

        return Call(
            carry if case.streaming else run,
            lambda y: {"y": y.float().numpy().copy()},
            torch.inference_mode,
        )

    def prepare_packed(self, problem: Problem, lengths: Array) -> Call:
        """A training step over the real steps only, as `pack_padded_sequence` offers it."""
        rnn = self.torch.nn.utils.rnn
        layer, real = self._layer(problem), self.torch.from_numpy(lengths)
        x, dy = self.torch.from_numpy(problem.x).requires_grad_(), self.torch.from_numpy(problem.dy)

        def packed(x: Any) -> Any:
            sequence = rnn.pack_padded_sequence(x, real, enforce_sorted=False)
            found, state = layer(sequence)
            return rnn.pad_packed_sequence(found, total_length=problem.case.T)[0], state

        return self._training(packed, dict(layer.named_parameters()), x, dy)

    def _layer(self, problem: Problem) -> Any:
        case, nn = problem.case, self.torch.nn
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}[case.kind]
        layer = cell(case.I, case.H)
        with self.torch.no_grad():
            for name, value in problem.params.items():
                getattr(layer, f"{name}_l0").copy_(self.torch.from_numpy(value))
        return layer

    @staticmethod
    def _training(layer: Any, params: dict[str, Any], x: Any, dy: Any) -> Call:
        leaves = {"dx": x, **{name.removesuffix("_l0"): p for name, p in params.items()}}

        def train() -> Any:
            for leaf in leaves.values():
                leaf.grad = None
            y, _ = layer(x)
            y.backward(dy)
            return y

        def read(y: Any) -> Arrays:
            grads = {name: leaf.grad.float().numpy().copy() for name, leaf in leaves.items()}
            return {"y": y.detach().float().numpy().copy(), **grads}

        return Call(train, read)


class TorchBf16(Torch):
    """Modules of bfloat16, with inputs and gradients of it; an LSTM's kernels are oneDNN's."""

    name, dtype = "PyTorch bf16", "bfloat16"


def onnx_model(problem: Problem) -> bytes:
    """x, and when streaming the state, to y and the state; a step's y is its state h."""
    from onnx import TensorProto, helper, numpy_helper

    case, p = problem.case, problem.params
    op, order = {
        "lstm": ("LSTM", (0, 3, 1, 2)),  # i, f, g, o here; i, o, f, c there
        "gru": ("GRU", (1, 0, 2)),  # r, z, n here; z, r, h there
        "rnn_tanh": ("RNN", (0,)),
    }[case.kind]

    def gates(name: str) -> Array:
        blocks = np.split(p[name], GATES[case.kind])
        return np.concatenate([blocks[g] for g in order])

    weights = {
        "W": gates("weight_ih")[None],
        "R": gates("weight_hh")[None],
        "b": np.concatenate([gates("bias_ih"), gates("bias_hh")])[None],
    }

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    states = ["h", "c"] if case.kind == "lstm" else ["h"]
    inputs, outputs = [value("x", case.T, case.B, case.I)], []
    names_in, names_out = ["x", "W", "R", "b"], ["" if case.grid == "step" else "y"]
    if case.grid != "step":
        outputs.append(value("y", case.T, 1, case.B, case.H))
    if case.streaming:
        names_in += ["", *states]  # "": no lengths
        names_out += [f"{s}_out" for s in states]
        inputs += [value(s, 1, case.B, case.H) for s in states]
        outputs += [value(f"{s}_out", 1, case.B, case.H) for s in states]
    attributes: dict[str, Any] = {"hidden_size": case.H}
    if case.kind == "gru":
        attributes["linear_before_reset"] = 1
    graph = helper.make_graph(
        [helper.make_node(op, names_in, names_out, **attributes)],
        "layer",
        inputs,
        outputs,
        [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items()],
    )
    # Versions that runtimes of the last years read.
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


class OnnxRuntime:
    name = "ONNX Runtime"

    def __init__(self, threads: int) -> None:
        import onnx  # noqa: F401  (without it there is no model)
        import onnxruntime

        self.ort, self.version = onnxruntime, onnxruntime.__version__
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1

    def prepare(self, problem: Problem) -> Call | None:
        case = problem.case
        if case.training:
            return None
        session = self.ort.InferenceSession(
            onnx_model(problem), self.options, providers=["CPUExecutionProvider"]
        )
        states = [i.name for i in session.get_inputs() if i.name != "x"]
        # Two bindings by turns when streaming: each reads the state where the other has left it.
        # Bound once, a step costs less than half of what `session.run` takes.
        outs = [{o.name: self._zeros(o.shape) for o in session.get_outputs()} for _ in range(2)]
        bindings = [session.io_binding() for _ in outs]
        for binding, own, other in zip(bindings, outs, outs[::-1], strict=True):
            binding.bind_ortvalue_input("x", self.ort.OrtValue.ortvalue_from_numpy(problem.x))
            for s in states:
                binding.bind_ortvalue_input(s, other[f"{s}_out"])
            for name, value in own.items():
                binding.bind_ortvalue_output(name, value)
        y = [own["h_out" if case.grid == "step" else "y"] for own in outs]
        turn = 0

        def run() -> Any:
            session.run_with_iobinding(bindings[0])
            return y[0]

        def carry() -> Any:
            nonlocal turn
            turn = 1 - turn
            session.run_with_iobinding(bindings[turn])
            return y[turn]

        return Call(
            carry if case.streaming else run,
            lambda y: {"y": y.numpy().reshape(case.T, case.B, case.H).copy()},
        )

    def _zeros(self, shape: list[int]) -> Any:
        return self.ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))


class OpenVino:
    name = "OpenVINO"

    def __init__(self, threads: int) -> None:
        import onnx  # noqa: F401  (without it there is no model)
        import openvino

        self.ov, self.version = openvino, openvino.__version__
        self.core = openvino.Core()
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process is pinned
        }

    def prepare(self, problem: Problem) -> Call | None:
        case = problem.case
        if case.training:
            return None
        model = self.core.read_model(onnx_model(problem))
        compiled = self.core.compile_model(model, "CPU", self.settings)
        # Two requests by turns when streaming: each reads the state where the other has left it.
        requests = [compiled.create_infer_request() for _ in range(2)]
        states = [i.get_any_name() for i in compiled.inputs if i.get_any_name() != "x"]
        for request, other in (requests, requests[::-1]):
            request.set_tensor("x", self.ov.Tensor(problem.x, shared_memory=True))
            for s in states:
                other.get_tensor(f"{s}_out").data[...] = 0
                request.set_tensor(s, other.get_tensor(f"{s}_out"))
        y = "h_out" if case.grid == "step" else "y"
        outs = [r.get_tensor(y).data for r in requests]
        turn = 0

        def run() -> Any:
            requests[0].infer()
            return outs[0]

        def carry() -> Any:
            nonlocal turn
            turn = 1 - turn
            requests[turn].infer()
            return outs[turn]

        return Call(
            carry if case.streaming else run,
            lambda y: {"y": y.reshape(case.T, case.B, case.H).copy()},
        )


class Jax:
    name = "JAX"

    def __init__(self, threads: int) -> None:
        import jax

        self.jax, self.version = jax, jax.__version__
        # Calls run where they are made: no hand-over to a thread, which on one core costs most.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if jax.default_backend() != "cpu":
            raise RuntimeError(f"JAX: expected the cpu backend, got {jax.default_backend()}")

    def prepare(self, problem: Problem) -> Call:
        jax, case = self.jax, problem.case
        forward = _jax_forward(jax, case.kind)
        params, x = jax.device_put(problem.params), jax.device_put(problem.x)
        zeros = jax.numpy.zeros((case.B, case.H), np.float32)
        state = (zeros, zeros) if case.kind == "lstm" else zeros
        if case.training:

            @jax.jit
            def train(params: Any, x: Any, dy: Any) -> Any:
                y, back = jax.vjp(lambda p, x: forward(p, x, state)[0], params, x)
                return y, *back(dy)

            dy = jax.device_put(problem.dy)

            def read(found: Any) -> Arrays:
                y, dparams, dx = found
                return {k: np.asarray(v) for k, v in {"y": y, "dx": dx, **dparams}.items()}

            return Call(lambda: jax.block_until_ready(train(params, x, dy)), read)
        # Constant weights XLA lays out as it likes: up to 4 x as fast as when they are arguments.
        compiled = jax.jit(lambda x, state: forward(params, x, state))

        def run() -> Any:
            return compiled(x, state)[0].block_until_ready()

        def carry() -> Any:
            nonlocal state
            y, state = compiled(x, state)
            return y.block_until_ready()

        return Call(carry if case.streaming else run, lambda y: {"y": np.asarray(y)})


def _jax_forward(jax: Any, kind: str) -> Any:
    """forward(params, x, state) -> y, state: one product for all inputs, then a scan."""
    split, sigmoid, tanh = jax.numpy.split, jax.nn.sigmoid, jax.numpy.tanh

    def lstm(p: Any, a: Any, state: Any) -> Any:
        h, c = state
        i, f, g, o = split(a + h @ p["weight_hh"].T + p["bias_hh"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    def gru(p: Any, a: Any, h: Any) -> Any:
        r, z, n = split(a, 3, axis=-1)
        r_h, z_h, n_h = split(h @ p["weight_hh"].T + p["bias_hh"], 3, axis=-1)
        z = sigmoid(z + z_h)
        h = (1 - z) * tanh(n + sigmoid(r + r_h) * n_h) + z * h
        return h, h

    def rnn(p: Any, a: Any, h: Any) -> Any:
        h = tanh(a + h @ p["weight_hh"].T + p["bias_hh"])
        return h, h

    cell = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn}[kind]

    def forward(p: Any, x: Any, state: Any) -> Any:
        a = x @ p["weight_ih"].T + p["bias_ih"]
        state, y = jax.lax.scan(lambda s, a_t: cell(p, a_t, s), state, a)
        return y, state

    return forward


class RtNeural:
    """RTNeural's layers, their sizes fixed at compile time, called through ctypes.

    The environment's RTNEURAL names a checkout with its submodules, which is compiled here with all
    that GCC can do for this machine, approximate maths included.
    """

    backend: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, threads: int) -> None:
        if not (folder := os.environ.get("RTNEURAL")):
            raise ImportError("RTNEURAL names no checkout")
        root = Path(folder)
        self.version = output_of("git", "-C", folder, "describe", "--always").strip()
        with tempfile.TemporaryDirectory() as out:  # what is loaded stays, even without its file
            built = f"{out}/rtneural.so"
            command = ["g++", "-std=c++17", "-O3", "-march=native", "-ffast-math"]
            command += ["-fPIC", "-shared", "-o", built]
            command += [str(Path(__file__).with_name("rtneural.cpp"))]
            command += [f"-DRTNEURAL_USE_{self.backend}=1", "-DRTNEURAL_DEFAULT_ALIGNMENT=32"]
            command += ["-DEIGEN_STACK_ALLOCATION_LIMIT=0"]
            for part in ("", "modules/Eigen", "modules/xsimd/include"):
                command.append(f"-I{root / part}")
            output_of(*command)
            self.library = ctypes.CDLL(built)
        self.library.rtneural_new.restype = ctypes.c_void_p
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.library.rtneural_new.argtypes = [number, number, *[pointer] * 4]
        self.library.rtneural_run.argtypes = [pointer, pointer, pointer, number]

    def prepare(self, problem: Problem) -> Call | None:
        case, x = problem.case, problem.x
        if case.grid != "block":
            return None
        order = (0, 1, 2, 3) if case.kind == "lstm" else (1, 0, 2)  # r, z, n here; z, r, n there
        weights = [
            np.concatenate([np.split(problem.params[name], len(order))[g] for g in order])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        rows = len(order) * case.H
        network = self.library.rtneural_new(case.H, rows, *(w.ctypes.data for w in weights))
        if network is None:
            return None
        y = np.empty((case.T, 1, case.H), np.float32)
        at_x, at_y = (a.ctypes.data_as(ctypes.c_void_p) for a in (x, y))  # which keep their arrays
        run, steps = self.library.rtneural_run, case.T
        return Call(lambda: run(network, at_x, at_y, steps), lambda _: {"y": y.copy()})


class RtNeuralEigen(RtNeural):
    backend, name = "EIGEN", "RTNeural (Eigen)"


class RtNeuralXsimd(RtNeural):
    backend, name = "XSIMD", "RTNeural (xsimd)"


def output_of(*command: str) -> str:
    """What a command prints; its errors are shown, and one that fails ends the run."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


PEERS = (Torch, OnnxRuntime, OpenVino, Jax, RtNeuralEigen, RtNeuralXsimd)


def importable(threads: int) -> tuple[list[Any], dict[str, str]]:
    """rnnkern and the peers that can be imported; the others, with why."""
    contenders: list[Any] = [Rnnkern(threads)]
    missing: dict[str, str] = {}
    for peer in PEERS:
        try:
            contenders.append(peer(threads))
        except ImportError as error:
            missing[peer.name] = str(error)
    return contenders, missing


def of_bf16(contenders: list[Any]) -> list[Any]:
    """Who takes part in cases of bf16, from those that can be imported."""
    found: list[Any] = []
    for one in contenders:
        if isinstance(one, Rnnkern):
            found += [Bf16(one), Float32(one)]
        elif isinstance(one, Torch):
            found.append(TorchBf16(one.torch.get_num_threads()))
        elif isinstance(one, OnnxRuntime):
            found.append(one)
    return found


# Outputs are at most 1 and come of contracting float32 steps: libraries that sum and round in
# another order, with other approximations of tanh, differ by 1e-6 or so. Gradients are sums over
# T * B such terms of either sign and are held against the array's largest. A wrong gate order, a
# missing bias or a lost state is off by more than 1e-2.
OUTPUT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# A rounding to bf16 moves a number by up to 2^-8 of itself. PyTorch's modules also round h and, of
# a GRU, gates at every step: over 100 steps outputs are off by 0.014, gradients by 0.024 of the
# largest. A wrong gate order is off by more.
BF16_OUTPUT_TOLERANCE = 5e-2
BF16_GRADIENT_TOLERANCE = 1e-1


def difference(found: Arrays, wanted: Arrays, bf16: bool = False) -> str | None:
    """What of a contender's results is not rnnkern's; None if all is."""
    of_outputs = BF16_OUTPUT_TOLERANCE if bf16 else OUTPUT_TOLERANCE
    of_gradients = BF16_GRADIENT_TOLERANCE if bf16 else GRADIENT_TOLERANCE
    if found.keys() != wanted.keys():
        return f"expected {sorted(wanted)}, got {sorted(found)}"
    for name, want in wanted.items():
        got = found[name]
        if got.shape != want.shape:
            return f"{name}: expected shape {want.shape}, got {got.shape}"
        bound = of_outputs if name == "y" else of_gradients * np.abs(want).max()
        error = np.abs(got - want).max()
        if not error <= bound:  # nan too
            return f"{name}: off by {error:.2e}, more than {bound:.2e}"
    return None
