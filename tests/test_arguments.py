"""What a call takes in place of a plain array, and what it says of all else."""

from __future__ import annotations

import array as arrays
import ctypes
from functools import reduce
from operator import mul

import numpy as np
import pytest
from attacks import Tensor

import rnnkern as rk
from rnnkern import diagnose, files

I, H = 3, 4


# ---- what is no plain array --------------------------------------------------------------------


def x_of(shape=(5, 2, I)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def buffers(x):
    """The same numbers in other containers, all without a copy."""
    flat = arrays.array("f", x.ravel().tolist())
    return {
        "tensor": Tensor(x),
        "memoryview": memoryview(x),
        "array.array": memoryview(flat).cast("B").cast("f", x.shape),
        "ctypes": reduce(mul, x.shape[::-1], ctypes.c_float).from_buffer_copy(x),
        "subclass": x.view(np.memmap),
    }


@pytest.mark.parametrize("how", buffers(x_of()))
def test_tensors_and_buffers_are_taken_as_they_are(how):
    layer = rk.LSTM(I, H, seed=0)
    x, h = x_of(), x_of((1, 2, H))
    want, last = layer(x, (h, h))
    other = buffers(x)[how]
    state = tuple(buffers(h)[how] for _ in range(2))
    y, got = layer(other, state)
    assert np.array_equal(y, want)
    assert all(np.array_equal(a, b) for a, b in zip(got, last, strict=True))
    stream, by_step = layer.stream(2), layer.stream(2)
    stream.state = by_step.state = state
    assert np.array_equal(stream.run(other), want)
    for x_t, y_t in zip(x, want, strict=True):
        assert np.array_equal(by_step.step(buffers(x_t)[how]), y_t)
    y, _, tape = layer.forward(other, state)
    assert np.array_equal(y, want)
    dy = buffers(y)[how]
    grads, wanted = layer.backward(tape, dy), layer.backward(tape, y)
    assert all(np.array_equal(grads.params[n], g) for n, g in wanted.params.items())


@pytest.mark.parametrize("how", buffers(x_of()))
def test_diagnoses_optimizers_and_files_take_tensors_and_buffers(how, tmp_path):
    layer = rk.GRU(I, H, seed=0)
    x = x_of()
    other = buffers(x)[how]
    want = diagnose.lyapunov(layer, x)
    assert np.array_equal(diagnose.lyapunov(layer, other), want)
    params, others = {"w": x.copy()}, {"w": x.copy()}
    done = rk.Adam(params).step({"w": x})
    assert rk.Adam(others).step({"w": other}) == done
    assert np.array_equal(params["w"], others["w"])
    opt = rk.Adam(params)
    opt.load_state_dict(opt.state_dict() | {"0.w.first": other})
    assert np.array_equal(opt.state_dict()["0.w.first"], x)
    files.save(tmp_path / "a", {"w": other})
    assert np.array_equal(files.load(tmp_path / "a")["w"], x)


@pytest.mark.parametrize("how", [Tensor, memoryview])
def test_diagnoses_take_masks_and_lengths_as_tensors_and_buffers(how):
    layer = rk.GRU(I, H, seed=0)
    y, _, tape = layer.forward(x_of())
    grads = layer.backward(tape, y, trace=True)
    lengths = np.array([5, 3])
    mask = np.arange(5)[:, None] < lengths

    def drawn(**rows):
        return diagnose.plot_flow(layer, grads, **rows).axes[0].lines[0].get_ydata()

    want = drawn(lengths=lengths)
    for found in (drawn(lengths=how(lengths)), drawn(mask=how(mask))):
        np.testing.assert_array_equal(found, want)
    said = (
        r"^mask: expected an array of booleans, got .*int64 \(write np.asarray\(mask, np.bool\)\)"
    )
    with pytest.raises(TypeError, match=said):
        drawn(mask=how(mask.astype(int)))


@pytest.mark.parametrize("how", [Tensor, memoryview])
def test_an_optimizer_s_parameters_are_arrays_of_numpy(how):
    """What may be written through a tensor or a buffer depends on its type."""
    params = {"w": np.zeros(3)}
    opt = rk.SGD(params, 0.1)
    params["w"] = how(params["w"])
    write = r"\(write np.asarray\(params\['w'\], np.float64\)\)$"
    for use in (lambda: opt.step({"w": np.zeros(3)}), lambda: rk.SGD(params, 0.1)):
        with pytest.raises(TypeError, match=rf"^params\['w'\]: .*, got {how.__name__} .*{write}"):
            use()


def test_an_optimizer_asks_for_a_copy_of_what_is_read_only():
    """Such as an array of JAX, whose np.asarray it would refuse next."""
    params = {"w": np.zeros(3)}
    opt = rk.SGD(params, 0.1)
    params["w"] = memoryview(params["w"].tobytes()).cast("d")
    write = r"\(write np.array\(params\['w'\], np.float64\)\)$"
    for use in (lambda: opt.step({"w": np.zeros(3)}), lambda: rk.SGD(params, 0.1)):
        with pytest.raises(TypeError, match=write):
            use()


def test_tensors_of_pytorch_are_taken_or_say_what_to_write(tmp_path):
    torch = pytest.importorskip("torch", reason="its tensors")
    layer = rk.GRU(I, H, seed=0)
    x = x_of()
    own = torch.from_numpy(x)
    windows = [window.y for window in rk.truncated_bptt(layer, own, 2)]
    assert np.array_equal(np.concatenate(windows), layer(x)[0])
    params = rk.GRU(H, H, 2, seed=0).params
    files.save(tmp_path / "a", {n: torch.from_numpy(p) for n, p in params.items()})
    assert all(np.array_equal(p, params[n]) for n, p in files.load(tmp_path / "a").items())
    half = own.to(torch.bfloat16)
    for name, use in {
        "x": lambda: layer(half),
        "x ": lambda: rk.truncated_bptt(layer, half, 2),
        r"x\[0\]": lambda: rk.truncated_bptt(layer, [half], 2),
        r"grads\['w'\]": lambda: rk.SGD({"w": x}, 0.1).step({"w": half}),
        r"tensors\['w'\]": lambda: files.save(tmp_path / "b", {"w": half}),
    }.items():
        name = name.strip()
        said = rf"^{name}: expected .*, got Tensor of bfloat16 \(write {name}.float\(\)\)$"
        with pytest.raises(TypeError, match=said):
            use()
    assert np.array_equal(layer(half.float())[0], layer(half.float().numpy())[0])


def test_a_tensor_is_not_copied():
    layer = rk.GRU(I, H, seed=0)
    x = x_of()
    y, _, tape = layer.forward(Tensor(x))
    x[...] = 0.0  # which the tape reads
    with pytest.raises(RuntimeError, match="x: expected the values that forward read"):
        layer.backward(tape, y)


HINT = r"\(write np.asarray\(x, np.float32\)\)"


class Frame:
    """As a table of another library: NumPy can make an array of it."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("nothing is converted")


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (x_of().astype(np.float64), f"got float64 {HINT}"),
        (x_of().astype(np.float16), f"got float16 {HINT}"),
        (np.zeros((5, 2, I), int), f"got int64 {HINT}"),
        (x_of().tolist(), f"got list {HINT}"),
        (Frame(x_of()), f"got Frame {HINT}"),
        (Tensor(x_of().astype(np.float64)), f"got Tensor of float64 {HINT}"),
        (memoryview(b"abc"), f"got memoryview of uint8 {HINT}"),
        (Tensor(x_of(), requires_grad=True), r"got Tensor \(Can't export .*, use tensor.detach"),
        (np.zeros((5, 2, I), complex), "got complex128$"),
        (b"abc", "got bytes$"),
        ("abc", "got str$"),
        (None, "got NoneType$"),
        (np.float32(1), r"got float32 \(a scalar\)$"),
        (Tensor(x_of(), "torch.bfloat16"), r"got Tensor of bfloat16 \(write x.float\(\)\)$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_refused_says_what_to_write(x, said):
    layer = rk.GRU(I, H)
    stream = layer.stream(2)
    for call in (layer, layer.forward, stream.run, stream.step):
        with pytest.raises(TypeError, match=f"^x: expected an array .*, {said}"):
            call(x)
    linear = rk.Linear(I, H)
    with pytest.raises(TypeError, match=f"^x: expected an array .*, {said}"):
        linear(x)


def masked(a):
    return np.ma.array(a, mask=np.zeros(a.shape, bool))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            lambda a: a.astype(np.float64),
            r"got float64 \(write np.asarray\(params\['bias_hh_l0'\], n",
        ),
        (
            lambda a: a.tolist(),
            r"got list \(write np.asarray\(params\['bias_hh_l0'\], np.float32\)",
        ),
        (Tensor, r"got Tensor \(write np.asarray\(params\['bias_hh_l0'\]\)\)$"),
    ],
)
def test_what_a_parameter_must_be_is_said(values, said):
    layer = rk.GRU(I, H)
    x = x_of()
    *_, tape = layer.forward(x)
    layer.params["bias_hh_l0"] = values(layer.params["bias_hh_l0"])
    for use in (layer, layer.forward, lambda x: layer.backward(tape), lambda x: layer.stream()):
        with pytest.raises(
            TypeError, match=r"^params\['bias_hh_l0'\]: expected .* float32, " + said
        ):
            use(x)


def test_masked_parameters_are_refused_by_every_use():
    """They are put into the dict itself, past the setter."""
    layer = rk.GRU(I, H, seed=0)
    x = x_of()
    *_, tape = layer.forward(x)
    state = layer.state_dict()
    layer.params["bias_hh_l0"] = masked(layer.params["bias_hh_l0"])
    uses = [
        *(layer, layer.forward, lambda x: layer.backward(tape)),
        *(lambda x: layer.freeze(), lambda x: layer.stream(), lambda x: layer.state_dict()),
        lambda x: layer.load_state_dict(state),
        *(lambda x: rk.truncated_bptt(layer, x, 3), lambda x: rk.GRU(I, H, params=layer.params)),
        lambda x: diagnose.lyapunov(layer, x),
    ]
    for use in uses:
        with pytest.raises(
            TypeError, match=r"^params\['bias_hh_l0'\]: expected an array without a"
        ):
            use(x)


def test_masked_arrays_are_refused_everywhere(tmp_path):
    layer = rk.GRU(I, H, seed=0)
    x, h = x_of(), x_of((1, 2, H))
    y, _, tape = layer.forward(x)
    traced = layer.backward(tape, y, trace=True)
    lengths, resets = np.array([5, 3]), np.zeros((5, 2), bool)
    linear, table = rk.Linear(I, H), rk.Embedding(5, 3)
    stream = layer.stream(2)
    params = layer.params

    def with_masked_params():
        layer.params = params | {"bias_hh_l0": masked(params["bias_hh_l0"])}
        try:
            layer(x)
        finally:
            layer.params = params

    def set_state():
        stream.state = masked(h)

    weights = {"w": np.zeros(3)}

    def step_with_masked_params():
        own = dict(weights)
        opt = rk.SGD(own, 0.1)
        own["w"] = masked(own["w"])
        opt.step({"w": np.zeros(3)})

    uses = {
        "x": lambda: layer(masked(x)),
        "state": lambda: layer(x, masked(h)),
        "lengths": lambda: layer(x, None, masked(lengths)),
        "resets": lambda: layer.forward(x, resets=masked(resets)),
        "mask ": lambda: layer.forward(x, mask=masked(resets)),
        "dy": lambda: layer.backward(tape, masked(y)),
        "dstate": lambda: layer.backward(tape, None, masked(h)),
        r"params\['bias_hh_l0'\]": with_masked_params,
        "state ": set_state,
        "x   ": lambda: stream.step(masked(x[0])),
        "x    ": lambda: stream.run(masked(x)),
        "out": lambda: stream.step(x[0], masked(h[0])),
        "out ": lambda: stream.run(x, out=masked(np.empty((5, 2, H), np.float32))),
        "rows": lambda: stream.reset(masked(np.array([0]))),
        "mask  ": lambda: stream.step(x[0], mask=masked(np.ones(2, bool))),
        "rows ": lambda: stream.row_state(masked(np.array([0]))),
        "rows  ": lambda: stream.set_row_state(masked(np.array([0])), h[:, :1]),
        "x ": lambda: linear(masked(x)),
        "dy ": lambda: linear.backward(
            linear.forward(x)[1], masked(np.zeros((5, 2, H), np.float32))
        ),
        "x  ": lambda: table(masked(np.array([1, 2]))),
        "x      ": lambda: rk.truncated_bptt(layer, masked(x), 4),
        r"x\[0\]": lambda: rk.truncated_bptt(layer, [masked(x)], 4),
        "x       ": lambda: diagnose.lyapunov(layer, masked(x)),
        "lengths ": lambda: diagnose.plot_flow(layer, traced, lengths=masked(lengths)),
        "mask   ": lambda: diagnose.plot_flow(layer, traced, mask=masked(resets)),
        r"grads\['w'\]": lambda: rk.SGD(weights, 0.1).step({"w": masked(weights["w"])}),
        r"params\['w'\]": lambda: rk.SGD({"w": masked(weights["w"])}, 0.1),
        r"params\['w'\] ": step_with_masked_params,
        r"state\['sgd.step'\]": lambda: rk.SGD(weights, 0.1).load_state_dict(
            {"sgd.step": masked(np.array(1)), "sgd.skipped": np.array(0)}
        ),
        r"tensors\['w'\]": lambda: files.save(tmp_path / "a", {"w": masked(weights["w"])}),
        "logits": lambda: rk.cross_entropy(masked(x[0]), np.zeros(2, int)),
        "targets": lambda: rk.cross_entropy(x[0], masked(np.zeros(2, int))),
        "mask": lambda: rk.cross_entropy(x[0], np.zeros(2, int), mask=masked(np.ones(2, bool))),
    }
    for name, use in uses.items():
        said = f"^{name.strip()}: expected an array without a mask, got MaskedArray"
        with pytest.raises(TypeError, match=said):
            use()


# ---- names of parameters -----------------------------------------------------------------------


def test_extra_parameters_are_named():
    layer = rk.GRU(I, H)
    x = x_of()
    *_, tape = layer.forward(x)
    layer.params = layer.params | {"more": x, "another": x}
    said = r"^params: expected 4 arrays, got 6, of which more, another are no parameters of GRU\("
    for use in (layer, layer.forward, lambda x: layer.backward(tape), lambda x: layer.stream()):
        with pytest.raises(ValueError, match=said):
            use(x)
