"""The core uses what was validated, whatever the caller does to objects and arrays meanwhile."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import KINDS, in_each_dtype, make_layer, parts, random_problem

import rnnkern as rk
from rnnkern import _core

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
BOUND_TYPES = (_core.Tape, _core.LayerStack, _core.Stream, rk.Stream)


def bits(*arrays):
    return [np.asarray(a).tobytes() for a in arrays]


def bits_of(grads):
    return bits(*grads.params.values(), grads.x, *parts(grads.state), grads.norm)


# ---- arrays whose header changes ---------------------------------------------------------------


def change_shape(a):
    a.shape = (1, a.size // a.shape[-1], a.shape[-1])


def change_dtype(a):
    a.dtype = np.int32 if a.itemsize == 4 else np.int64


def change_strides(a):
    a.strides = (0,) * a.ndim


CHANGES = (change_shape, change_dtype, change_strides)


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_uses_x_and_y_as_forward_validated_them(kind, checkpoint, change):
    layer = make_layer(kind, 3, 4, num_layers=2)
    p = random_problem(layer, 40, 2)
    want = bits_of(p.backward(layer, p.forward(layer)[2]))
    y, _, tape = p.forward(layer, checkpoint=checkpoint)
    change(p.x)
    change(y)
    assert bits_of(p.backward(layer, tape)) == want


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("given", ["x", "dy", "h"])
def test_a_call_uses_arrays_as_it_validated_them(given, change):
    """Another thread changes the headers while the core runs without the interpreter's lock."""
    layer = make_layer("gru", 32, 32)
    p = random_problem(layer, 4000, 16)
    want = bits_of(p.backward(layer, p.forward(layer, checkpoint=10)[2]))

    _, _, tape = p.forward(layer, checkpoint=10)
    array = {"x": p.x, "dy": p.dy, "h": p.dstate}[given]
    begins, changed = threading.Event(), threading.Event()

    def change_it():
        begins.wait()
        change(array)
        changed.set()

    other = threading.Thread(target=change_it)
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # the other thread gets the lock where the call releases it
    begins.set()
    got = p.backward(layer, tape)
    changed_during_the_call = changed.is_set()
    sys.setswitchinterval(interval)
    other.join()
    assert changed_during_the_call
    assert bits_of(got) == want


@pytest.mark.parametrize("given", ["lengths", "resets"])
def test_backward_uses_lengths_and_resets_as_forward_validated_them(given):
    layer = make_layer("lstm", 3, 4)
    p = random_problem(layer, 12, 5, lengths="random", resets=0.2)
    _, _, tape = p.forward(layer)
    want = bits_of(p.backward(layer, tape))
    if given == "lengths":
        p.lengths[...] = 2**40
    else:
        p.resets[...] = ~p.resets
    assert bits_of(p.backward(layer, tape)) == want


def test_lengths_error_shows_an_unsigned_value_as_given():
    layer = make_layer("gru", 3, 4)
    x = np.zeros((5, 1, 3), np.float32)
    with pytest.raises(ValueError, match=f"lengths: expected values from 0 to T = 5, got {2**63}"):
        layer(x, lengths=np.array([2**63], np.uint64))


class ChangesX:
    """Array-like lengths whose conversion changes the x that the same call has validated."""

    def __init__(self, x, lengths):
        self.x, self.lengths = x, lengths

    def __array__(self, dtype=None, copy=None):
        change_shape(self.x)
        return self.lengths


@pytest.mark.filterwarnings("ignore:Setting the (strides|shape|dtype):DeprecationWarning")
def test_a_conversion_that_changes_another_argument_has_no_effect_on_it():
    layer = make_layer("gru", 3, 4)
    p = random_problem(layer, 40, 2, lengths="random")
    want = bits(layer(p.x, p.state, p.lengths)[0])
    assert bits(layer(p.x, p.state, ChangesX(p.x, p.lengths))[0]) == want


# ---- objects without a constructor, pickling, garbage --------------------------------------------


@pytest.mark.parametrize("bound", BOUND_TYPES, ids=lambda t: f"{t.__module__}.{t.__name__}")
def test_an_object_without_constructor_raises(bound):
    layer = make_layer("gru", 3, 4)
    blank = bound.__new__(bound)
    names = [name for name in dir(blank) if not name.startswith("_")]
    assert names
    for name in names:
        with pytest.raises(TypeError, match="constructor has not run"):
            use(blank, name)
    with pytest.raises(TypeError, match="tape: expected a tape of this layer's forward, got"):
        layer.backward(blank)
    with pytest.raises(TypeError, match="weights: expected a Packed, got"):
        _core.Stream(blank, 1)
    gc.collect()  # the collector visits it


def use(blank, name):
    """Read a property, or call a method with arguments of the right number and types."""
    found = getattr(blank, name)
    arguments = {
        "plan": (1, 1, 1),
        "forward": ({}, *5 * (None,), False, 0, False, 0, (0.0, [0], 0, 0, False)),
        "pack": ({},),
        "backward": ({}, None, None, None, (1.0, 1.0, 1.0, 1.0), False, 0.0),
        "step": (np.zeros((1, 3), np.float32),),
        "run": (np.zeros((1, 1, 3), np.float32),),
        "row_state": ([0],),
        "set_row_state": ([0], np.zeros((1, 1, 4), np.float32)),
    }
    found(*arguments.get(name, ()))


def core_stack(layer):
    return _core.LayerStack(**layer._stack._arguments)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("what", ["stack", "tape", "packed", "stream"])
def test_bound_types_refuse_to_be_pickled_by_name(what, protocol):
    layer = make_layer("gru", 3, 4)
    _, _, tape = layer.forward(np.zeros((5, 2, 3), np.float32))
    packed = layer._stack.pack(layer.params)
    thing = {"stack": core_stack(layer), "tape": tape._core, "packed": packed}.get(
        what, _core.Stream(packed, 1)
    )
    with pytest.raises(TypeError, match=r"cannot pickle '\w+' object"):
        pickle.dumps(thing, protocol)
    with pytest.raises(TypeError, match=r"cannot pickle '\w+' object"):
        copy.deepcopy(thing)
    with pytest.raises(TypeError, match=r"cannot pickle '\w+' object"):
        thing.__reduce__()


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_an_input_that_refers_to_its_tape_is_collected(checkpoint):
    class Input(np.ndarray):
        pass

    layer = make_layer("gru", 3, 4)
    x = np.zeros((5, 2, 3), np.float32).view(Input)
    _, _, x.tape = layer.forward(x, checkpoint=checkpoint)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


@in_each_dtype
def test_a_layer_stack_refuses_batch_first_with_an_ensemble(dtype):
    layer = rk.GRU(3, 4, ensemble=2, dtype=dtype)
    x = np.zeros((5, 2, 6, 3), dtype).transpose(2, 1, 0, 3)
    with pytest.raises(ValueError, match="batch_first: expected False with an ensemble, got True"):
        layer._stack.forward(
            layer.params,
            *(x, None, None, None, None, True, 0, False, 0),
            (0.0, layer._dropout_seeds, 0, 0, False),
        )


def test_a_layer_stack_takes_its_own_weights_alone():
    layer, other = make_layer("gru", 3, 4), make_layer("gru", 3, 4)
    blank = _core.Packed.__new__(_core.Packed)
    x = np.zeros((5, 2, 3), np.float32)

    def call(weights, wanted=0):
        return layer._stack.forward(
            weights, *(x, None, None, None, None, False, wanted, False, 0), (0.0, [0], 0, 0, False)
        )

    assert bits(call(layer._stack.pack(layer.params))[0]) == bits(layer(x)[0])
    with pytest.raises(ValueError, match="weights: expected this layer's, got those of another"):
        call(other._stack.pack(other.params))
    expected = "weights: expected a dict of arrays or packed weights, got"
    with pytest.raises(TypeError, match=f"{expected} one whose constructor has not run"):
        call(blank)
    for wrong in (None, [], layer._stack):
        with pytest.raises(TypeError, match=f"{expected} {type(wrong).__name__}"):
            call(wrong)
    for wrong in (-1, 4, 2**31 - 1):
        with pytest.raises(ValueError, match=f"wanted: expected from 0 to 3, got {wrong}"):
            call(layer.params, wrong)
    with pytest.raises(ValueError, match="weights: expected a dict of parameters for a tape, got"):
        call(layer._stack.pack(layer.params), 3)
    with pytest.raises(TypeError, match="No constructor defined"):
        _core.Packed()


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"ensemble": 2}])
def test_a_stream_refuses_what_it_cannot_step_through(options):
    layer = rk.GRU(3, 4, **options)
    with pytest.raises(ValueError, match=r"stream: expected a layer (of one direction|alone), got"):
        _core.Stream(layer._stack.pack(layer.params), 1)


# ---- empty batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_of_any_length_returns_at_once(kind, batch_first):
    """2**34 steps of no rows: one nanosecond a step would be 17 seconds."""
    T = 2**34
    layer = make_layer(kind, 3, 4, num_layers=2, batch_first=batch_first)
    shape = (0, T) if batch_first else (T, 0)
    begin = time.perf_counter()
    for options in ({}, {"checkpoint": 1000}, {"mask": np.empty(shape, bool)}):
        rows = {} if "mask" in options else {"lengths": np.empty(0, np.int64)}
        y, _, tape = layer.forward(
            np.empty((*shape, layer.input_size), np.float32),
            **rows,
            resets=np.empty(shape, bool),
            **options,
        )
        P = layer.output_size
        assert y.shape == (*shape, P)
        grads = layer.backward(tape, np.empty((*shape, P), np.float32), trace=True)
        assert grads.trace.dh.shape == (2, T, 0)
        assert not any(p.any() for p in grads.params.values())
        if not options:
            assert tape.hiddens[0].shape == (T, 0, P)
            assert all(a.shape[:2] == (T, 0) for a in (*tape.gates, *tape.cells))
    assert time.perf_counter() - begin < 2  # what remains is Python's own work


def test_lengths_in_any_order_are_sorted_stably():
    """The order of rows of one length is the order of sums in dW: the caller's."""
    layer = make_layer("gru", 3, 4)
    p = random_problem(layer, 6, 40, lengths="random")
    assert len(set(p.lengths.tolist())) < 40
    order = np.argsort(-p.lengths, kind="stable")
    grads = p.backward(layer, p.forward(layer)[2])
    q = p.but(
        x=p.x[:, order],
        state=p.state[:, order],
        lengths=p.lengths[order],
        dy=p.dy[:, order],
        dstate=p.dstate[:, order],
    )
    assert bits(*q.backward(layer, q.forward(layer)[2]).params.values()) == bits(
        *grads.params.values()
    )


# ---- forks by signal handlers --------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@contextmanager
def handling(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def end_of(pid, seconds=10):
    """A child's exit code; -SIGKILL if it has not ended by then."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("threads", "then"), [(1, "returns"), (2, "returns"), (2, "raises"), (5, "returns")]
)
def test_a_handler_that_forks_ends_the_call_in_the_child_alone(threads, then):
    layer = make_layer("gru", 128, 128)
    p = random_problem(layer, 40, 32, state=False)
    small = bits(layer(p.x)[0])
    x = np.concatenate([p.x] * 80)
    with rk.num_threads(threads):
        want = bits(layer(x)[0])
        children = []

        def fork(number, frame):
            children.append(os.fork())
            if children[-1] == 0 and then == "raises":
                raise KeyError("in the child")

        for _ in range(20):  # until the signal has come during a call and not after one
            children.clear()
            with handling(signal.SIGALRM, fork):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.02)
                    while not children:
                        got = bits(layer(x)[0])
                except BaseException as error:
                    if not children or children[0] != 0:
                        raise
                    # In the child: the call is over, the package works on one thread.
                    right = RuntimeError if then == "returns" else KeyError
                    fits = isinstance(error, right) and rk.get_num_threads() == 1
                    os._exit(10 if fits and bits(layer(p.x)[0]) == small else 11)
                if children[0] == 0:
                    os._exit(12)  # after a call
            assert got == want
            code = end_of(children[0])
            if code != 12:
                break
    assert code == 10
