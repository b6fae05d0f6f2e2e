"""Attention: against the reference, finite differences and chains; padding; bits; steps; errors."""

from __future__ import annotations

import copy
import ctypes
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import fused_sets, in_each_dtype, in_each_set, on_threads

import rnnkern as rk
from rnnkern import reference

KINDS = ("dot", "scaled_dot", "general", "additive")
every_kind = pytest.mark.parametrize("kind", KINDS)
# Tq, Tk, B, Q, V: one of each; below, at and behind vectors and cache lines; several parts of
# queries (128) and of chains; one query, which takes no panels.
SIZES = [(1, 1, 1, 1, 1), (3, 7, 2, 8, 9), (17, 33, 3, 15, 70), (150, 20, 2, 7, 16)]
SIZES += [(5, 600, 2, 33, 17), (1, 70, 3, 40, 140)]


def drawn(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def made(kind, Q, dtype=np.float64, **options):
    """An attention whose keys are wider than its queries, if its kind allows that."""
    K = Q + 3 if kind in ("general", "additive") else Q
    hidden = {"hidden_size": Q + 1} if kind == "additive" else {}
    return rk.Attention(Q, K, kind=kind, dtype=dtype, **{"seed": 1, **hidden, **options})


def problem(kind, Tq, Tk, B, Q, V, dtype=np.float64):
    """An attention, queries, keys, values and dL/dcontext."""
    attention = made(kind, Q, dtype)
    return (
        attention,
        drawn(Tq, B, Q, dtype=dtype),
        drawn(Tk, B, attention.key_size, dtype=dtype, seed=1),
        drawn(Tk, B, V, dtype=dtype, seed=2),
        drawn(Tq, B, V, dtype=dtype, seed=3),
    )


def ragged(T, B):
    """A mask with gaps; the second of several rows has no step."""
    mask = np.random.default_rng(T).random((T, B)) < 0.7
    mask[:, 1:2] = False
    return mask


def results(attention, q, k, v, dc, **options):
    """Everything that a forward and its backward give, by name."""
    context, tape = attention.forward(q, k, v, **options)
    grads = attention.backward(tape, dc)
    found = {"context": context, "weights": attention.weights(tape), "queries": grads.queries}
    found |= {"keys": grads.keys, "values": grads.values, **grads.params}
    return {name: array for name, array in found.items() if array is not None}


def bits(*arguments, **options):
    return {name: array.tobytes() for name, array in results(*arguments, **options).items()}


# ---- against the definition --------------------------------------------------------------------


@in_each_set
@in_each_dtype
@every_kind
@pytest.mark.parametrize("sizes", SIZES)
def test_attention_is_the_references(sizes, kind, dtype, isa):
    attention, q, k, v, dc = problem(kind, *sizes, dtype)
    for mask in (None, ragged(*k.shape[:2])):
        with rk.force_isa(isa):
            got = results(attention, q, k, v, dc, mask=mask)
        context, weights = reference.attention(kind, q, k, v, attention.params, mask)
        found = reference.attention_gradient(kind, q, k, v, dc, attention.params, mask)
        want = {"context": context, "weights": weights, "queries": found[0], "keys": found[1]}
        want |= {"values": found[2], **found[3]}
        assert got.keys() == want.keys()
        for name, array in got.items():
            assert array.dtype == dtype
            assert array.shape == want[name].shape
            # Chains of up to 600 products of a few units, of scores whose error e^x multiplies.
            bound = 400 * np.finfo(dtype).eps * max(1.0, np.abs(want[name]).max())
            np.testing.assert_allclose(array, want[name], rtol=0, atol=bound, err_msg=name)


@every_kind
def test_the_references_gradient_is_that_of_its_contexts(kind):
    attention, q, k, v, dc = problem(kind, 3, 4, 2, 3, 5)
    real = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    *of_inputs, of_params = reference.attention_gradient(kind, q, k, v, dc, attention.params, real)
    names = list(attention.params)
    arrays = [q, k, v, *attention.params.values()]
    step = 1e-5  # error: step^2 times a third derivative of some tens, and 1e-15 / step
    for array, gradient in zip(arrays, [*of_inputs, *(of_params[n] for n in names)], strict=True):
        for place in np.ndindex(array.shape):
            kept, ends = array[place], []
            for sign in (1, -1):
                array[place] = kept + sign * step
                context, _ = reference.attention(kind, q, k, v, attention.params, real)
                ends.append((context * dc).sum())
            array[place] = kept
            assert abs((ends[0] - ends[1]) / (2 * step) - gradient[place]) < 2e-8


@every_kind
def test_values_default_to_the_keys(kind):
    attention, q, k, _, _ = problem(kind, 5, 6, 2, 4, 1)
    dc = drawn(5, 2, attention.key_size)
    context, tape = attention.forward(q, k, lengths=[6, 3])
    grads = attention.backward(tape, dc)
    want, of_want = attention.forward(q, k, k.copy(), lengths=[6, 3])
    apart = attention.backward(of_want, dc)
    assert context.tobytes() == want.tobytes() == attention(q, k, lengths=[6, 3]).tobytes()
    assert grads.values is None
    assert grads.keys.tobytes() == (apart.keys + apart.values).tobytes()
    assert grads.queries is grads.x


FMA = {np.float32: ("fmaf", ctypes.c_float), np.float64: ("fma", ctypes.c_double)}


def chain(a, b):
    name, number = FMA[a.dtype.type]
    fma = getattr(ctypes.CDLL(None), name)
    fma.restype, fma.argtypes = number, [number] * 3
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total = fma(x, y, total)
    return total


@pytest.mark.parametrize("isa", fused_sets())
@in_each_dtype
@pytest.mark.parametrize("Tq", [1, 5])
def test_contexts_are_chains_over_keys_and_dvalues_over_queries(Tq, dtype, isa):
    attention, q, k, v, dc = problem("dot", Tq, 9, 2, 4, 11, dtype)
    mask = ragged(9, 2)
    mask[:3, 1] = True
    with rk.force_isa(isa):
        got = results(attention, q, k, v, dc, mask=mask)
    weights = got["weights"]
    for b in range(2):
        real = mask[:, b]
        for t, j in np.ndindex(Tq, 11):
            assert got["context"][t, b, j] == chain(weights[t, b, real], v[real, b, j])
        for s, j in zip(*np.nonzero(np.repeat(real[:, None], 11, 1)), strict=True):
            assert got["values"][s, b, j] == chain(weights[:, b, s], dc[:, b, j])


def test_large_scores_do_not_overflow():
    attention = rk.Attention(1, kind="dot")
    q, k = np.full((1, 1, 1), 1e20, np.float32), np.array([1e18, -1e18], np.float32)[:, None, None]
    with np.errstate(all="raise"):
        context, tape = attention.forward(q, k, np.array([3, 7], np.float32)[:, None, None])
    assert attention.weights(tape).tolist() == [[[1.0, 0.0]]]
    assert context.tolist() == [[[3.0]]]


# ---- padding -----------------------------------------------------------------------------------


@in_each_dtype
@every_kind
@pytest.mark.parametrize("sizes", SIZES)
def test_padding_is_not_read_and_leaves_no_trace(sizes, kind, dtype):
    """Neither of keys nor of queries: the bits are those of the real steps alone."""
    attention, q, k, v, dc = problem(kind, *sizes, dtype)
    keys, queries = ragged(*k.shape[:2]), ragged(*q.shape[:2])[::-1]
    k[~keys] = v[~keys] = np.nan
    q[~queries] = dc[~queries] = np.nan
    got = results(attention, q, k, v, dc, mask=keys, query_mask=queries)
    assert all(np.isfinite(array).all() for array in got.values())
    for name, real in (("context", queries), ("queries", queries), ("keys", keys)):
        assert not got[name][~real].any()
    for b in range(q.shape[1]):
        of_q, of_k = queries[:, b], keys[:, b]
        row = [array[real][:, b : b + 1] for array, real in ((q, of_q), (k, of_k), (v, of_k))]
        alone = results(attention, *row, dc[of_q][:, b : b + 1])
        assert got["weights"][of_q, b][:, of_k].tobytes() == alone["weights"].tobytes()
        assert not got["weights"][:, b][:, ~of_k].any()
        for name, real in (("context", of_q), ("queries", of_q), ("keys", of_k), ("values", of_k)):
            assert got[name][real, b].tobytes() == alone[name].tobytes(), name


def test_lengths_are_a_mask():
    attention, *arrays = problem("general", 4, 6, 3, 5, 2)
    lengths, of_queries = np.array([6, 0, 3]), np.array([1, 4, 0], np.uint8)
    masks = {
        "mask": np.arange(6)[:, None] < lengths,
        "query_mask": np.arange(4)[:, None] < of_queries,
    }
    got = bits(attention, *arrays, lengths=lengths, query_lengths=of_queries)
    assert got == bits(attention, *arrays, **masks)


@every_kind
def test_no_keys_no_queries_no_rows(kind):
    for sizes in ((3, 0, 2), (0, 3, 2), (3, 4, 0)):
        attention, *arrays = problem(kind, *sizes, 4, 5)
        got = results(attention, *arrays)
        assert got["context"].shape == (sizes[0], sizes[2], 5)
        for array in got.values():
            assert not array.any()


# ---- the same bits -----------------------------------------------------------------------------


@in_each_dtype
@every_kind
@pytest.mark.parametrize("sizes", [*SIZES, (40, 40, 9, 64, 64)])
def test_bits_on_threads_and_instruction_sets(sizes, kind, dtype):
    attention, q, *arrays = problem(kind, *sizes, dtype)
    mask = ragged(*arrays[0].shape[:2])
    for some in (None, mask):
        found = []
        for isa in fused_sets():
            with rk.force_isa(isa):
                found += [
                    on_threads(threads, bits, attention, q, *arrays, mask=some)
                    for threads in (1, 2, 3, 8)
                ]
        assert all(other == found[0] for other in found)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_are_shared_out():
    """The largest problem above makes the core start its threads; other kinds have more work."""
    code = """if True:
        import os
        import numpy as np, rnnkern as rk
        attention = rk.Attention(64, kind="dot")
        x = np.ones((40, 9, 64), np.float32)
        started = len(os.listdir("/proc/self/task"))
        for n in (1, 3):
            rk.set_num_threads(n)
            attention(x, x)
            print(n, len(os.listdir("/proc/self/task")) - started + 1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n3 3\n", done.stderr


@in_each_dtype
@every_kind
def test_a_query_alone_and_among_others(kind, dtype):
    attention, q, k, v, dc = problem(kind, 7, 21, 3, 33, 19, dtype)
    got = results(attention, q, k, v, dc)
    memory = attention.memory(k, v)
    for t in range(len(q)):
        context, tape = attention.forward(q[t], memory)
        assert context.tobytes() == got["context"][t].tobytes()
        assert attention.weights(tape).tobytes() == got["weights"][t].tobytes()
        dq = attention.backward_queries(tape, dc[t])
        assert dq.shape == q[t].shape
        assert dq.tobytes() == got["queries"][t].tobytes()


@in_each_dtype
@every_kind
def test_strides_do_not_matter(kind, dtype):
    attention, *arrays = problem(kind, 5, 9, 3, 7, 4, dtype)
    want = bits(attention, *arrays)
    wide = [np.repeat(array, 2, axis=2)[:, :, ::2] for array in arrays]
    turned = [np.asfortranarray(array) for array in arrays]
    assert bits(attention, *wide) == want
    assert bits(attention, *turned) == want


# ---- steps of a decoder ------------------------------------------------------------------------


@in_each_dtype
@every_kind
def test_the_tapes_of_steps_give_the_gradients_of_the_sequence(kind, dtype):
    attention, q, k, v, dc = problem(kind, 6, 10, 3, 5, 4, dtype)
    lengths = [10, 0, 4]
    want = results(attention, q, k, v, dc, lengths=lengths)
    memory = attention.memory(k, v, lengths=lengths)
    tapes = [attention.forward(query, memory)[1] for query in q[:4]]
    tapes.append(attention.forward(q[4:], memory, query_lengths=[2, 2, 2])[1])
    grads = attention.backward(tapes, dc)
    assert grads.queries.tobytes() == want["queries"].tobytes()
    assert grads.keys.tobytes() == want["keys"].tobytes()
    assert grads.values.tobytes() == want["values"].tobytes()
    for name, array in grads.params.items():
        assert array.tobytes() == want[name].tobytes()
    with pytest.raises(ValueError, match=r"^tape: expected at least one, got none$"):
        attention.backward([], dc)
    other = attention.forward(q[0], attention.memory(k, v))[1]
    with pytest.raises(ValueError, match=r"^tape: expected tapes over one memory, got others$"):
        attention.backward([tapes[0], other], dc)


def test_a_memory_stays_with_its_module_and_its_process():
    attention, q, k, v, _ = problem("general", 2, 3, 2, 4, 5)
    memory = attention.memory(k, v)
    for other in (made("general", 4), attention.copy()):
        with pytest.raises(ValueError, match=r"^keys: expected a memory of this module, got one"):
            other(q, memory)
    with pytest.raises(ValueError, match=r"^keys: expected a memory of this module, got one"):
        attention(q, rk.AttentionMemory.__new__(rk.AttentionMemory))
    for use in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^memory: expected to stay in its process, got a co"):
            use(memory)
    for name, value in (("values", v), ("lengths", [3, 3]), ("mask", np.ones((3, 2), bool))):
        with pytest.raises(ValueError, match=f"^{name}: expected None with an AttentionMemory"):
            attention(q, memory, **{name: value})
    with pytest.raises(ValueError, match=r"^query_mask: expected None with queries of one step"):
        attention(q[0], memory, query_mask=np.ones((1, 2), bool))


# ---- tapes and gradients -----------------------------------------------------------------------


@every_kind
def test_arrays_that_have_changed_are_refused(kind):
    attention, q, k, v, dc = problem(kind, 3, 5, 2, 4, 6)
    arrays = {"queries": q, "keys": k, "values": v}
    arrays |= {f"params['{name}']": array for name, array in attention.params.items()}
    for name, array in arrays.items():
        memory = attention.memory(k, v)
        _, tape = attention.forward(q, k, v)
        _, of_memory = attention.forward(q, memory)
        array += 1.0
        said = f"^{re.escape(name)}: expected the values that forward read, got others"
        for each in (tape, of_memory):
            for use in (attention.backward, attention.backward_queries):
                with pytest.raises(RuntimeError, match=said):
                    use(each, dc)
        if name != "queries":
            with pytest.raises(RuntimeError, match=said):
                attention(q, memory)


def test_tapes_of_others_are_refused():
    attention, q, k, v, dc = problem("dot", 3, 5, 2, 4, 6)
    tape = made("dot", 4).forward(q, k, v)[1]
    for use in (lambda: attention.backward(tape, dc), lambda: attention.weights(tape)):
        with pytest.raises(ValueError, match=r"^tape: expected .*, got one of another module$"):
            use()
    with pytest.raises(TypeError, match=r"^tape: expected a tape of this module's .*, got str$"):
        attention.backward("tape", dc)


def test_gradients_add_up_copy_and_pickle():
    attention, q, k, v, dc = problem("additive", 3, 5, 2, 4, 6)
    grads = attention.backward(attention.forward(q, k, v)[1], dc)
    for same in (copy.copy(grads), copy.deepcopy(grads), pickle.loads(pickle.dumps(grads))):
        assert same.keys.tobytes() == grads.keys.tobytes()
        assert same.norm == grads.norm
    twice = grads + grads
    assert twice.params["v"].tobytes() == (2 * grads.params["v"]).tobytes()
    for name in ("queries", "keys", "values"):
        with pytest.raises(AttributeError, match=f"^{name}: expected the gradients of one back"):
            getattr(twice, name)
    none = made("dot", 6)
    of_none = none.backward(none.forward(k[:, :, :6], k[:, :, :6])[1], k[:, :, :6].copy())
    assert (len(of_none.params), of_none.norm, of_none.finite) == (0, 0.0, True)
    assert (of_none + of_none).norm == 0.0
    linear = rk.Linear(4, 3, seed=0)
    of_linear = linear.backward(linear.forward(q.astype("f4"))[1], np.ones((3, 2, 3), "f4"))
    optimizer = rk.Adam({"attention": none, "linear": linear})
    assert optimizer.step({"attention": of_none, "linear": of_linear}).applied


def test_the_weights_are_read_only():
    attention, q, k, v, _ = problem("dot", 3, 5, 2, 4, 6)
    weights = attention.weights(attention.forward(q, k, v)[1])
    with pytest.raises(ValueError, match="read-only"):
        weights[...] = 0


@every_kind
def test_copies_have_their_own_parameters(kind):
    attention, q, k, v, _ = problem(kind, 3, 5, 2, 4, 6)
    want = attention(q, k, v)
    for same in (attention.copy(), pickle.loads(pickle.dumps(attention))):
        assert repr(same) == repr(attention)
        for array in attention.params.values():
            array *= 2
        assert same(q, k, v).tobytes() == want.tobytes()
        for array in attention.params.values():
            array /= 2
    again = made(kind, 4, seed=None, params=attention.state_dict())
    assert again(q, k, v).tobytes() == want.tobytes()


@in_each_dtype
def test_initial_values(dtype):
    attention = rk.Attention(400, 100, kind="additive", hidden_size=300, dtype=dtype, seed=0)
    for name, fan_in in (("weight_q", 400), ("weight_k", 100), ("v", 300)):
        array = attention.params[name]
        assert array.dtype == dtype
        assert np.abs(array).max() <= fan_in**-0.5
        # Of n uniform values the standard deviation is off by a share of 0.45 / sqrt(n); 5 of it.
        bound = 2.3 / np.sqrt(array.size)
        assert array.std() * np.sqrt(3 * fan_in) == pytest.approx(1, abs=bound)
    assert rk.Attention(5, kind="additive").hidden_size == 5
    assert repr(rk.Attention(5)) == "Attention(5)"


# ---- errors ------------------------------------------------------------------------------------

Q4, K4 = np.zeros((3, 2, 4), np.float32), np.zeros((5, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "use"),
    [
        (
            ValueError,
            "query_size: expected an integer of at least 1, got 0",
            lambda a: rk.Attention(0),
        ),
        (TypeError, "key_size: expected an integer, got float", lambda a: rk.Attention(3, 2.0)),
        (
            ValueError,
            "key_size: expected query_size = 3 with kind='dot', got 2",
            lambda a: rk.Attention(3, 2, kind="dot"),
        ),
        (
            ValueError,
            "kind: expected one of dot, scaled_dot, general, additive, got 'cosine'",
            lambda a: rk.Attention(3, kind="cosine"),
        ),
        (
            ValueError,
            "hidden_size: expected None with kind='dot', got 3",
            lambda a: rk.Attention(3, kind="dot", hidden_size=3),
        ),
        (
            TypeError,
            "dtype: expected float32 or float64, got float16",
            lambda a: rk.Attention(3, dtype="f2"),
        ),
        (
            ValueError,
            "queries: expected shape (T, 2, 4) or (2, 4), got (3, 1, 4)",
            lambda a: a(Q4[:, :1], K4),
        ),
        (
            ValueError,
            "queries: expected shape (T, 2, 4) or (2, 4), got (4,)",
            lambda a: a(Q4[0, 0], K4),
        ),
        (
            TypeError,
            "queries: expected an array of dtype float32, got float64",
            lambda a: a(Q4.astype("f8"), K4),
        ),
        (ValueError, "keys: expected shape (T, B, 4), got (5, 2, 3)", lambda a: a(Q4, K4[..., :3])),
        (TypeError, "keys: expected an array of dtype float32, got list", lambda a: a(Q4, [1.0])),
        (
            ValueError,
            "values: expected shape (5, 2, V), got (4, 2, 4)",
            lambda a: a(Q4, K4, K4[:4]),
        ),
        (
            ValueError,
            "values: expected shape (T, B, V with V at least 1), got (5, 2, 0)",
            lambda a: a(Q4, K4, K4[..., :0]),
        ),
        (
            ValueError,
            "lengths[1]: expected a length from 0 to T = 5, got 6",
            lambda a: a(Q4, K4, lengths=[5, 6]),
        ),
        (
            ValueError,
            "lengths: expected shape (2,), got (3,)",
            lambda a: a(Q4, K4, lengths=[5] * 3),
        ),
        (
            TypeError,
            "lengths: expected an array of integers, got float64",
            lambda a: a(Q4, K4, lengths=[5.0, 5.0]),
        ),
        (
            ValueError,
            "query_lengths[0]: expected a length from 0 to T = 3, got -1",
            lambda a: a(Q4, K4, query_lengths=[-1, 3]),
        ),
        (
            ValueError,
            "mask: expected None with lengths, got an array",
            lambda a: a(Q4, K4, lengths=[5, 5], mask=np.ones((5, 2), bool)),
        ),
        (
            ValueError,
            "mask: expected shape (5, 2), got (2, 5)",
            lambda a: a(Q4, K4, mask=np.ones((2, 5), bool)),
        ),
        (
            TypeError,
            "query_mask: expected an array of booleans, got float64",
            lambda a: a(Q4, K4, query_mask=np.ones((3, 2))),
        ),
        (
            TypeError,
            "queries: expected an array without a mask, got MaskedArray",
            lambda a: a(np.ma.masked_array(Q4), K4),
        ),
        (
            ValueError,
            "dcontext: expected shape (3, 2, 4), got (5, 2, 4)",
            lambda a: a.backward(a.forward(Q4, K4)[1], K4),
        ),
        (
            TypeError,
            "dcontext: expected an array of dtype float32, got float64",
            lambda a: a.backward_queries(a.forward(Q4, K4)[1], Q4.astype("f8")),
        ),
    ],
)
def test_errors(error, message, use):
    with pytest.raises(error, match=rf"^{re.escape(message)}( \(write .+\))?$"):
        use(rk.Attention(4))


def test_parameters_are_checked_in_each_call():
    attention = rk.Attention(4, kind="general")
    tape = attention.forward(Q4, K4)[1]
    attention.params["weight"] = np.zeros((3, 4), np.float32)
    for use in (
        lambda: attention(Q4, K4),
        lambda: attention.memory(K4),
        lambda: attention.backward(tape, Q4),
        lambda: attention.backward_queries(tape, Q4),
    ):
        with pytest.raises(ValueError, match=r"^params\['weight'\]: expected shape \(4, 4\), got"):
            use()
