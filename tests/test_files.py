"""Files: nothing is believed unchecked, nothing is saved by halves, others read them too."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors

import rnnkern as rk
from rnnkern import files, reference

NUMPY_LOADS = {f"{module}.load" for module in ("np", "numpy", "np.lib.format", "np.lib.npyio")}
FORBIDDEN = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "allow_pickle"}
FORBIDDEN |= {"eval", "exec", "compile", *NUMPY_LOADS}
ARRAYS = {
    "b": np.arange(3, dtype=np.float32),
    "a": np.arange(6.0).reshape(2, 3),
    "n": np.array(7),
    "none": np.zeros((0, 5), np.float32),
}
ABOUT = {"format": "np", "é": "∀ \n\0"}


def same(got, want):
    """Whether two dicts hold the same names, dtypes, shapes and bytes."""
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in got.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in want.items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.safetensors"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def outcome(path, expected=None):
    """What is in a file, or the message that refuses it; any other error is the test's."""
    try:
        return files.load(path, expected)
    except files.FileError as error:
        return str(error)


def write(path, header, data=b""):
    """A file of a header, in JSON or already bytes, and data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


# ---- both ways -------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(path):
    files.save(path, ARRAYS, ABOUT)
    assert same(files.load(path), ARRAYS)
    assert same(files.load(str(path), expected=ARRAYS), ARRAYS)
    with files.Reader(path) as file:
        assert file.metadata == ABOUT
        assert file.specs == {k: (v.dtype, v.shape) for k, v in ARRAYS.items()}
        assert same(file.read(file.specs), ARRAYS)
    assert all(a.flags.writeable and a.flags.owndata for a in files.load(path).values())


def test_the_safetensors_package_reads_ours(path):
    files.save(path, ARRAYS, ABOUT)
    assert same(safetensors.load_file(path), ARRAYS)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == ABOUT


@pytest.mark.parametrize("about", [None, ABOUT])
def test_we_read_the_safetensors_packages(path, about):
    safetensors.save_file(ARRAYS, path, about)
    assert same(files.load(path, ARRAYS), ARRAYS)
    with files.Reader(path) as file:
        assert file.metadata == (about or {})


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
        st.tuples(st.sampled_from(["f4", "f8", "i8"]), st.lists(st.integers(0, 3), max_size=4)),
        max_size=5,
    )
)
def test_any_arrays_go_both_ways(tmp_path_factory, specs):
    path = tmp_path_factory.getbasetemp() / "any"
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 99, shape).astype(d) for name, (d, shape) in specs.items()}
    files.save(path, arrays)
    assert same(files.load(path, arrays), arrays)
    assert same(safetensors.load_file(path), arrays)
    safetensors.save_file(arrays, path)
    assert same(files.load(path), arrays)


def test_arrays_are_aligned_and_bytes_do_not_vary(path):
    files.save(path, ARRAYS)
    first = path.read_bytes()
    start = 8 + int.from_bytes(first[:8], "little")
    for entry in json.loads(first[8:start]).values():
        place = start + entry["data_offsets"][0]
        assert place % {"F32": 4, "F64": 8, "I64": 8}[entry["dtype"]] == 0
    files.save(path, ARRAYS)
    assert path.read_bytes() == first


def test_any_layout_is_saved_as_it_looks(path):
    base = np.arange(24.0).reshape(4, 6)
    arrays = {"t": base.T, "strided": base[::2, ::-3], "scalar": base[1, 1], "fixed": base.copy()}
    arrays["fixed"].flags.writeable = False
    files.save(path, arrays)
    loaded = files.load(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_layers_parameters_come_back(path):
    layer, other = (rk.LSTM(3, 5, num_layers=2, seed=seed) for seed in (0, 1))
    files.save(path, layer.params)
    loaded = files.load(path, other.params)
    for name, array in other.params.items():
        array[...] = loaded[name]
    x = np.ones((4, 2, 3), np.float32)
    assert (layer(x)[0] == other(x)[0]).all()


# ---- what is expected ------------------------------------------------------------------------

W = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "expected no other names, got ['w']"),
        ({"w": W, "v": W}, "expected 'v' as float32 (2, 3), got none"),
        ({"w": W.astype(float)}, "expected 'w' as float64 (2, 3), got float32 (2, 3)"),
        ({"w": W.T}, "expected 'w' as float32 (3, 2), got float32 (2, 3)"),
        ({"w": files.Spec(np.dtype("f4"), (6,))}, "expected 'w' as float32 (6,), got float32"),
        ({"w": files.Spec(np.dtype(">f4"), (2, 3))}, "expected 'w' as >f4 (2, 3), got float32"),
    ],
)
def test_what_is_not_expected_is_named(path, expected, message):
    files.save(path, {"w": W})
    with pytest.raises(files.FileError) as caught:
        files.load(path, expected)
    assert str(caught.value).startswith(f"{path}: {message}")


def peak(load, *arguments):
    """Bytes allocated at most while it fails."""
    tracemalloc.start()
    try:
        with pytest.raises(files.FileError):
            load(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_not_expected_is_not_allocated(path):
    files.save(path, {"w": np.zeros(2**22)})
    assert peak(files.load, path, {"w": np.zeros(2**22, np.float32)}) < 2**20


# ---- hostile files ---------------------------------------------------------------------------


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def raw(text):
    """A header of one entry with `text` as its shape."""
    return b'{"w":{"dtype":"F32","shape":%b,"data_offsets":[0,8]}}' % text


EIGHT = bytes(8)
HUGE = 2**60
DEEP = "got maximum recursion" if sys.version_info < (3, 14) else "got Stack overflow"
# What is wrong, header, data, and the message.
HOSTILE = {
    "no JSON": (b"not JSON", EIGHT, "expected a header in JSON, got Expecting value"),
    "empty header": (b"", b"", "expected a header in JSON"),
    "not UTF-8": (b'{"\xff":1}', EIGHT, "expected a header in JSON, got 'utf-8' codec"),
    "UTF-16": ('{"w":1}'.encode("utf-16"), EIGHT, "expected a header in JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", b"", "expected a header in JSON"),
    "trailing bytes": (b"{}\0\0", b"", "expected a header in JSON, got Extra data"),
    "a list": ([], b"", "expected a JSON object as header, got []"),
    "a number": (b"1", b"", "expected a JSON object as header, got 1"),
    "deep lists": (b"[" * 2**19, b"", f"expected a header in JSON, {DEEP}"),
    "deep objects": (b'{"a":' * 2**17, b"", f"expected a header in JSON, {DEEP}"),
    "deep shape": (raw(b"[" * 2**17 + b"]" * 2**17), EIGHT, DEEP),
    "number as key": (b"{1:2}", b"", "expected a header in JSON"),
    "name twice": (
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
        "expected each name once, got 'w' again",
    ),
    "name twice, escaped": (b'{"w":1,"\\u0077":2}', EIGHT, "each name once, got 'w' again"),
    "key twice": (
        b'{"w":{"dtype":"F32","dtype":"F64","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
        "expected each name once, got 'dtype' again",
    ),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b"", "each name once"),
    "metadata null": ({"__metadata__": None}, b"", "expected __metadata__ of strings, got None"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "expected __metadata__ of strings"),
    "metadata list": ({"__metadata__": {"a": ["b"]}}, b"", "expected __metadata__ of strings"),
    "metadata half a pair": ({"__metadata__": {"a": "\ud800"}}, b"", "surrogates not allowed"),
    "empty name": ({"": entry()}, EIGHT, "name of 1 to 256 printable characters, got ''"),
    "long name": ({"n" * 257: entry()}, EIGHT, "a name of 1 to 256 printable characters"),
    "nul in name": ({"a\0": entry()}, EIGHT, r"printable characters, got 'a\x00'"),
    "newline in name": ({"a\n": entry()}, EIGHT, "printable characters"),
    "escape in name": ({"\x1b[2J": entry()}, EIGHT, r"got '\x1b[2J'"),
    "right to left in name": ({"a\u202eb": entry()}, EIGHT, r"got 'a\u202eb'"),
    "half a pair in name": ({"\udc00": entry()}, EIGHT, r"got '\udc00'"),
    "many arrays": (
        {f"{i}": entry(shape=[0], offsets=[0, 0]) for i in range(4097)},
        b"",
        "expected at most 4096 arrays, got 4097",
    ),
    "entry null": ({"w": None}, EIGHT, "dtype, shape and data_offsets of 'w', got None"),
    "entry list": ({"w": [1]}, EIGHT, "dtype, shape and data_offsets of 'w', got [1]"),
    "key missing": ({"w": {"dtype": "F32"}}, EIGHT, "dtype, shape and data_offsets of 'w'"),
    "key more": ({"w": entry(strides=[1])}, EIGHT, "dtype, shape and data_offsets of 'w'"),
    "dtype F16": (
        {"w": entry("F16", (4,))},
        EIGHT,
        "'w' as float32, float64 or int64, got float16 (dt",
    ),
    "dtype object": ({"w": entry("O", (1,))}, EIGHT, "F8_E5M2, F8_E8M0, got O"),
    "dtype list": ({"w": entry(["F32"])}, EIGHT, "F8_E5M2, F8_E8M0, got ['F32']"),
    "dtype null": ({"w": entry(None)}, EIGHT, "F8_E5M2, F8_E8M0, got None"),
    "dtype escape": ({"w": entry("\x1b[2J\ud800")}, EIGHT, "F8_E5M2, F8_E8M0, got ?[2J?"),
    "wrong dtype": ({"w": entry("F64")}, EIGHT, "two offsets for 'w', 16 bytes apart, got [0, 8]"),
    "shape number": ({"w": entry(shape=2)}, EIGHT, "lists of integers for 'w', got 2"),
    "shape true": ({"w": entry(shape=[True, 2])}, EIGHT, "lists of integers for 'w', got [True"),
    "shape string": ({"w": entry(shape=["2"])}, EIGHT, "lists of integers for 'w', got ['2']"),
    "shape null": ({"w": entry(shape=[None])}, EIGHT, "lists of integers for 'w', got [None]"),
    "shape object": ({"w": entry(shape={"2": 2})}, EIGHT, "lists of integers for 'w'"),
    "shape 2.0": (raw(b"[2.0]"), EIGHT, "integers of at most 19 digits in the header, got 2.0"),
    "shape 2e0": (raw(b"[2e0]"), EIGHT, "integers of at most 19 digits in the header, got 2e0"),
    "shape 1e999": (raw(b"[1e999]"), EIGHT, "integers of at most 19 digits in the header"),
    "shape nan": (raw(b"[NaN]"), EIGHT, "integers of at most 19 digits in the header, got NaN"),
    "shape inf": (raw(b"[-Infinity]"), EIGHT, "integers of at most 19 digits in the header"),
    "shape negative": (raw(b"[-2]"), EIGHT, "integers of at most 19 digits in the header, got -2"),
    "two negative": (raw(b"[-2,-1]"), EIGHT, "integers of at most 19 digits in the header"),
    "shape of 1000 digits": (raw(b"[" + b"9" * 1000 + b"]"), EIGHT, "at most 19 digits"),
    "shape of a million digits": (raw(b"[" + b"9" * 10**6 + b"]"), EIGHT, "at most 19 digits"),
    "9 dimensions": ({"w": entry(shape=[2] + [1] * 8)}, EIGHT, "at most 8 dimensions"),
    "product wraps to 8 bytes": (
        {"w": entry(shape=[2**62 + 1, 2])},
        EIGHT,
        "at most 8 dimensions, 68719476736 bytes for 'w'",
    ),
    "product wraps to 0": ({"w": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b"", "at most 8"),
    "zero beside giants": (
        {"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])},
        b"",
        "at most 8 dimensions, 68719476736 bytes for 'w'",
    ),
    "shape too small": ({"w": entry(shape=[1])}, EIGHT, "two offsets for 'w', 4 bytes apart"),
    "shape too large": ({"w": entry(shape=[3])}, EIGHT, "two offsets for 'w', 12 bytes apart"),
    "one offset": ({"w": entry(offsets=[8])}, EIGHT, "two offsets for 'w'"),
    "three offsets": ({"w": entry(offsets=[0, 8, 8])}, EIGHT, "two offsets for 'w'"),
    "no offsets": ({"w": entry(offsets=[])}, EIGHT, "two offsets for 'w'"),
    "offsets turned": ({"w": entry(offsets=[8, 0])}, EIGHT, "two offsets for 'w'"),
    "offsets strings": ({"w": entry(offsets=["0", "8"])}, EIGHT, "lists of integers for 'w'"),
    "offsets false": ({"w": entry(offsets=[False, 8])}, EIGHT, "lists of integers for 'w'"),
    "offset beyond": ({"w": entry(offsets=[8, 16])}, EIGHT, "'w' to begin at byte 0, got 8"),
    "offset far beyond": (
        {"w": entry(offsets=[2**63 - 8, 2**63])},
        EIGHT,
        "'w' to begin at byte 0, got 9223372036854775800",
    ),
    "hole before": ({"w": entry(offsets=[4, 12])}, bytes(12), "'w' to begin at byte 0, got 4"),
    "hole between": (
        {"v": entry(), "w": entry(offsets=[12, 20])},
        bytes(20),
        "expected 'w' to begin at byte 8, got 12",
    ),
    "overlap": (
        {"v": entry(), "w": entry(offsets=[4, 12])},
        bytes(12),
        "expected 'w' to begin at byte 8, got 4",
    ),
    "same bytes twice": ({"v": entry(), "w": entry()}, EIGHT, "to begin at byte 8, got 0"),
    "bytes behind": ({"w": entry()}, bytes(9), "expected 8 bytes of arrays, got 9"),
    "bytes without arrays": ({}, b"\0", "expected 0 bytes of arrays, got 1"),
    "bytes missing": ({"w": entry()}, bytes(7), "expected 8 bytes of arrays, got 7"),
    "claims 2**60 bytes": (
        {"w": entry(shape=[HUGE // 4], offsets=[0, HUGE])},
        EIGHT,
        "at most 8 dimensions, 68719476736 bytes for 'w'",
    ),
    "claims 2**35 bytes": (
        {"w": entry(shape=[2**33], offsets=[0, 2**35])},
        EIGHT,
        "expected 34359738368 bytes of arrays, got 8",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(path, name):
    header, data, message = HOSTILE[name]
    write(path, header, data)
    with pytest.raises(files.FileError) as caught:
        files.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.isprintable()
    assert len(text) < len(str(path)) + 500


def test_any_depth_is_refused(path):
    """What is just not too deep to be read may be too deep to be shown."""
    for depth in range(1, 1100, 7):
        write(path, b"[" * depth + b"]" * depth)
        assert str(outcome(path)).startswith(f"{path}: expected a")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_allocates_little(path, name):
    """Python's objects take some 25 times the JSON that they are read from; data adds nothing."""
    header, data, _ = HOSTILE[name]
    write(path, header, data)
    assert peak(files.load, path) < 2**17 + 30 * path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected at least 8 bytes, got 0"),
        (b"\2\0\0", "expected at least 8 bytes, got 3"),
        (b"not a model at all", "expected a header of at most 1048576 bytes, got 8"),
        (b"\xff" * 8, "expected a header of at most 1048576 bytes, got 18446744073709551615"),
        ((2**20 + 1).to_bytes(8, "little"), "expected a header of at most 1048576 bytes, got"),
        ((2**20).to_bytes(8, "little") + b"{}", "expected a header of 1048576 bytes, got 2"),
    ],
)
def test_length_of_the_header_is_checked(path, content, message):
    path.write_bytes(content)
    with pytest.raises(files.FileError) as caught:
        files.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_all_bounds_can_be_reached(path):
    files.save(path, {"é" * 256: np.zeros((1,) * 8)})
    assert len(files.load(path)) == 1
    many = {f"{i:04}": np.zeros(0) for i in range(4096)}
    files.save(path, many)
    assert same(files.load(path, many), many)
    for size in (2**20 - 100, 2**20):
        about = {"a": "x" * (size - len('{"__metadata__":{"a":""}}'))}
        files.save(path, {}, about)
        with files.Reader(path) as file:
            assert file.metadata == about


def test_sparse_giant_is_refused_for_its_size(path):
    write(path, {"w": entry("F64", [2**34], [0, 2**37])})
    os.truncate(path, path.stat().st_size + 2**37)  # takes no room on the disk
    assert peak(files.load, path) < 2**17
    with pytest.raises(files.FileError, match="at most 68719476736 bytes of arrays, got 137438953"):
        files.load(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small file's path and bytes."""
    path = tmp_path_factory.mktemp("small") / "small"
    files.save(path, ARRAYS, ABOUT)
    return path, path.read_bytes()


def test_truncated_anywhere_is_refused(small):
    path, whole = small
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        assert str(outcome(path)).startswith(f"{path}: expected ")
    path.write_bytes(whole + b"\0")
    assert str(outcome(path)).startswith(f"{path}: expected ")
    path.write_bytes(whole)
    assert same(files.load(path), ARRAYS)


def test_flipped_bytes_are_refused_or_are_other_values(small):
    path, whole = small
    path.write_bytes(whole)
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    refused = loaded = 0
    with path.open("r+b", buffering=0) as file:
        for _ in range(2000):
            at = int(rng.integers(len(whole)))
            os.pwrite(file.fileno(), bytes([whole[at] ^ int(rng.integers(1, 256))]), at)
            outcome(path)  # loads, or is a FileError
            got = outcome(path, ARRAYS)
            if isinstance(got, str):
                assert got.startswith(f"{path}: ")
                assert at < start
                refused += 1
            else:  # a header that is hit may have other metadata, but the same arrays
                assert same(got, ARRAYS) == (at < start)
                loaded += 1
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert refused > 500
    assert loaded > 300


@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_random_bytes_behind_a_valid_beginning(small, noise, kept, fits):
    path, whole = small
    content = bytearray(whole[:kept] + noise)
    if fits and len(content) > 8:  # let the length of the header be one that the file has
        content[:8] = (len(content) - 8).to_bytes(8, "little")
    path.write_bytes(content)
    got = outcome(path, ARRAYS)
    if isinstance(got, str):
        assert got.startswith(f"{path}: ")
    else:
        assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in ARRAYS.items()}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        ["F32", "F64", "I64", "F16", "BF16", "BOOL", "F8_E4M3", "dtype", "shape", "\ud800", ""]
    ),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__metadata__", "w", "dtype", "shape", "data_offsets", "\0"]), part
        )
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@given(st.dictionaries(st.sampled_from(["v", "w", "__metadata__"]), ENTRY | JSON) | JSON)
def test_random_json_is_refused_or_read(small, header):
    path, _ = small
    write(path, header)
    got = outcome(path)
    if isinstance(got, str):
        assert got.startswith(f"{path}: ")
    else:
        assert all(array.size == 0 for array in got.values())


# ---- layers, modules and optimizers --------------------------------------------------------------


def test_a_layer_is_saved_with_its_dropout(path):
    layer = rk.GRU(3, 4, 2, dropout=0.5)
    layer.forward(np.ones((5, 2, 3), np.float32))
    files.save(path, layer)
    with files.Reader(path) as file:
        assert json.loads(file.metadata["dropout_state"]) == layer.dropout_state
        assert same(file.read(), layer.params)
    before = path.read_bytes()
    for tensors, key in ((layer, "dropout_state"), ({"g": layer}, "g.dropout_state")):
        said = f"^metadata: expected no '{key}', which holds the state of .*, got 'mine'$"
        with pytest.raises(ValueError, match=said):
            files.save(path, tensors, {key: "mine"})
        assert path.read_bytes() == before
    files.save(path, {"g": layer}, {"dropout_state": "mine"})
    with files.Reader(path) as file:
        assert file.metadata.keys() == {"g.dropout_state", "dropout_state"}


def test_a_model_is_saved_under_its_names(path):
    enc, head = rk.LSTM(3, 4, ensemble=2), rk.Linear(4, 2)
    opt = rk.Adam(enc.params, ensemble=2)
    files.save(path, {"enc": enc, "head": head, "opt": opt, "w": np.zeros(3)}, {"epoch": "7"})
    with files.Reader(path) as file:
        states = json.loads(file.metadata["enc.dropout_state"])
        assert file.metadata.keys() == {"epoch", "enc.dropout_state"}
    assert states == enc.dropout_state
    assert same(files.load(path, prefix="enc."), enc.params)
    assert same(files.load(path, prefix="head."), head.params)
    opt.load_state_dict(files.load(path, prefix="opt."))
    assert files.load(path)["w"].shape == (3,)


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        (3, TypeError, "tensors: expected a dict of arrays, a layer or an optimizer, got int"),
        (
            np.zeros(3),
            TypeError,
            "tensors: expected a dict of arrays, a layer or an optimizer, got",
        ),
        ({"a": 3}, TypeError, r"tensors\['a'\]: expected an array, got int"),
        (
            {"a": rk.MinGRU(3, 4), "a.bias_ih_l0": np.zeros(3)},
            ValueError,
            "expected each name once, got 'a.bias_ih_l0' again",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(path, tensors, error, said):
    with pytest.raises(error, match=said):
        files.save(path, tensors)
    assert not path.exists()


# ---- other dtypes, and a part of a file ---------------------------------------------------------

MIXED = {
    "a.f16": ("F16", np.array([0.5, -2.0, 65504.0], "<f2")),
    "a.bf16": ("BF16", np.array([[1.0, -3.5], [2.0**127, np.inf]], "<f4").view("<u2")[:, 1::2]),
    "a.f32": ("F32", np.array(1.5, "<f4")),
    "a.f64": ("F64", np.array([0.1, 2.0])),
    "a.i64": ("I64", np.array([[2**60 + 1]])),
    "b.bool": ("BOOL", np.array([True, False, True])),
    "b.u8": ("U8", np.arange(5, dtype="u1")),
    "b.f8": ("F8_E4M3", np.arange(2, dtype="u1")),
    "c.empty": ("BF16", np.zeros((0, 3), "<u2")),
}


@pytest.fixture
def mixed(path):
    header, content = {}, b""
    for name, (code, values) in MIXED.items():
        offsets = [len(content), len(content) + values.nbytes]
        header[name] = {"dtype": code, "shape": values.shape, "data_offsets": offsets}
        content += values.tobytes()
    write(path, header, content)
    return path


def test_a_prefix_leaves_other_dtypes_out(mixed):
    with pytest.raises(files.FileError, match=r"'a.f16' as float32, .*, got float16 \(dtype= of"):
        files.load(mixed)
    assert files.load(mixed, prefix="a.b")["f16"].dtype == np.float32
    said = r"'b.bool' as float32, .* or int64, got bool \(prefix= of files.load leaves others out\)"
    with pytest.raises(files.FileError, match=said):
        files.load(mixed, prefix="b.", dtype=np.float32)
    with pytest.raises(
        files.FileError, match=r"'b.f8' as float32, .*, got float8_e4m3 \(prefix= o"
    ):
        files.load(mixed, prefix="b.f")
    assert list(files.load(mixed, prefix="a.f3")) == ["2"]
    assert files.load(mixed, prefix="a.i")["64"] == 2**60 + 1
    with files.Reader(mixed) as file:
        assert file.specs.keys() == MIXED.keys()
        assert all(file.specs[name].shape == v.shape for name, (_, v) in MIXED.items())
        assert all(file.specs[name].nbytes == v.nbytes for name, (_, v) in MIXED.items())


@pytest.mark.parametrize("dtype", ["float32", np.float64])
def test_halves_are_read_as_the_dtype_that_was_asked_for(mixed, dtype):
    got = files.load(mixed, prefix="a.", dtype=dtype)
    want = {
        "f16": [0.5, -2.0, 65504.0],
        "bf16": [[1.0, -3.5], [2.0**127, np.inf]],
        "f32": 1.5,
        "f64": np.array([0.1, 2.0]).astype(dtype),
    }
    for name, values in want.items():
        assert got[name].dtype == dtype
        assert np.array_equal(got[name], values), name
    assert got["i64"].dtype == np.int64
    assert got["i64"] == 2**60 + 1
    assert files.load(mixed, prefix="c.", dtype=dtype)["empty"].shape == (0, 3)
    expected = {name: files.Spec(array.dtype, array.shape) for name, array in got.items()}
    assert same(files.load(mixed, expected, prefix="a.", dtype=dtype), got)
    with pytest.raises(files.FileError, match=rf"'' as float32 \(2,\), got {np.dtype(dtype)}"):
        files.load(mixed, {"": np.zeros(2, np.float32)}, prefix="a.f16", dtype=dtype)


def test_all_bfloat16_are_exact(path):
    bits = np.arange(2**16, dtype="<u2")
    header = {"w": {"dtype": "BF16", "shape": [2**16], "data_offsets": [0, 2**17]}}
    write(path, header, bits.tobytes())
    for options in ({}, {"dtype": np.float32}):
        got = files.load(path, **options)["w"].view(np.uint32)
        assert np.array_equal(got, bits.astype(np.uint32) << 16)
    got = files.load(path, dtype="bfloat16")["w"]
    assert got.dtype == np.uint16
    assert np.array_equal(got, bits)
    copy = path.with_name("copy")
    files.save(copy, {"w": got}, dtype="bfloat16")
    assert copy.read_bytes()[-(2**17) :] == path.read_bytes()[-(2**17) :]


def test_bfloat16_is_rounded_to_nearest_and_ties_to_even(path):
    """As the reference does it, but for subnormal numbers, which a file keeps."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    for lower in (0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        values = values[np.isfinite(reference.to_bf16(values))]  # what overflows is refused
        files.save(path, {"w": values}, dtype="bfloat16")
        got, bits = files.load(path)["w"], files.load(path, dtype="bfloat16")["w"]
        subnormal = np.abs(values) < np.finfo(np.float32).tiny
        wide = values.astype(np.float64)
        whole = np.rint(wide * 2.0**133) * 2.0**-133
        want = np.where(subnormal, np.copysign(whole, wide), reference.to_bf16(values))
        assert got.tobytes() == want.astype(np.float32).tobytes()
        assert bits.tobytes() == (got.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    arrays = {"w": special, "alone": np.float32(1.00390625), "n": np.arange(3)}
    files.save(path, arrays, dtype="bfloat16")
    got = files.load(path)
    assert np.array_equal(got["w"], special, equal_nan=True)
    assert np.array_equal(np.signbit(got["w"]), np.signbit(special))
    assert (got["alone"].shape, got["alone"].dtype, float(got["alone"])) == ((), np.float32, 1.0)
    assert got["n"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bfloat16_file_is_read_as_each_dtype(path, dtype):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    files.save(path, {"w": values}, {"epoch": "7"}, dtype="bfloat16")
    with files.Reader(path) as file:
        assert file.metadata == {"epoch": "7"}
        assert file.specs["w"].nbytes == 24
    want = reference.to_bf16(values)
    for asked, found in ((None, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        got = files.load(path, {"w": files.Spec(np.dtype(found), (3, 4))}, dtype=asked)["w"]
        assert got.dtype == found
        assert np.array_equal(got, want)
    files.save(path, {"w": values})
    bits = files.load(path, {"w": files.Spec(np.dtype(np.uint16), (3, 4))}, dtype="bfloat16")["w"]
    assert np.array_equal(bits, reference.bf16_bits(values))


def test_layers_go_through_bfloat16_files(path):
    gru, head = rk.GRU(3, 5, 2, dropout=0.5, seed=0), rk.Linear(5, 2, seed=0)
    files.save(path, {"gru": gru, "head": head}, dtype="bfloat16")
    again = rk.GRU(3, 5, 2, seed=1)
    again.load_state_dict(files.load(path, prefix="gru."))
    for name, values in gru.params.items():
        assert np.array_equal(again.params[name], reference.to_bf16(values))
    made = rk.from_state_dict(files.load(path))["gru."]
    assert all(np.array_equal(made.params[name], v) for name, v in again.params.items())


BF16 = {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("array", "options", "error", "said"),
    [
        (np.array([3.4e38], "f4"), BF16, files.FileError, "'w': .* bfloat16 can hold, got larger"),
        (np.array([1e39]), BF16, files.FileError, "'w': .* float32 can hold, got larger"),
        (np.zeros(2, np.uint16), {}, files.FileError, "'w' as .* int64, got uint16"),
        (np.zeros(2, np.float16), BF16, files.FileError, "'w' as .* int64, got float16"),
        (np.zeros(2), {"dtype": "float16"}, ValueError, "^dtype: expected one of bfloat16"),
        (np.zeros(2), {"dtype": np.float32}, TypeError, "^dtype: expected one of bfloat16"),
    ],
)
def test_what_is_no_bfloat16_is_not_saved(path, array, options, error, said):
    with pytest.raises(error, match=said):
        files.save(path, {"w": array}, **options)
    assert not path.exists()


def test_what_the_dtype_cannot_hold_is_refused(path):
    files.save(path, {"w": np.array([1e300])})
    with pytest.raises(files.FileError, match="'w': expected values that float32 can hold, got la"):
        files.load(path, dtype=np.float32)
    files.save(path, {"w": np.array([np.inf, np.nan])})  # these it can
    assert np.array_equal(files.load(path, dtype="f4")["w"], [np.inf, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"prefix": None}, TypeError, "prefix: expected a str, got NoneType"),
        ({"prefix": "x."}, files.FileError, ".*: expected names that begin with 'x.', got none"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64, got float16"),
        ({"dtype": "int"}, TypeError, "dtype: expected float32 or float64, got int64"),
        ({"dtype": np.uint16}, TypeError, "dtype: expected float32 or float64, got uint16"),
    ],
)
def test_wrong_parts_are_named(mixed, options, error, said):
    with pytest.raises(error, match=f"^{said}"):
        files.load(mixed, **options)
    with files.Reader(mixed) as file, pytest.raises(error, match=f"^{said}"):
        file.read(**options)


# ---- what is no regular file, what changes meanwhile -------------------------------------------


def test_fifo_does_not_wait(path):
    def late(number, frame):
        raise TimeoutError("waits for a writer")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    os.mkfifo(path)
    try:
        for call in (files.load, lambda p: files.save(p, ARRAYS)):
            with pytest.raises(
                files.FileError, match=r"expected a regular file.*, got a device, p"
            ):
                call(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_device_is_neither_read_nor_replaced():
    for device in ("/dev/zero", "/dev/null"):
        for call in (files.load, lambda p: files.save(p, ARRAYS)):
            with pytest.raises(files.FileError, match=r"expected a regular file.*, got a device"):
                call(device)
        assert stat.S_ISCHR(Path(device).stat().st_mode)


def test_folder_is_neither_read_nor_replaced(tmp_path):
    with pytest.raises(IsADirectoryError):
        files.load(tmp_path)
    with pytest.raises(files.FileError, match="expected a regular file or none, got a folder"):
        files.save(tmp_path, ARRAYS)
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        files.save(tmp_path / "missing" / "file", ARRAYS)


def test_file_that_becomes_shorter_is_refused(path):
    files.save(path, {"w": np.zeros(2**18)})
    with files.Reader(path) as file:
        os.truncate(path, 2**18)
        with pytest.raises(files.FileError, match="expected 2097152 bytes of 'w', got 26"):
            file.read()


def test_file_that_is_replaced_is_read_as_it_was_checked(path):
    files.save(path, {"w": np.zeros(2**18)})
    with files.Reader(path) as file:
        files.save(path, {"w": np.ones(2**18), "v": np.ones(1)})
        assert same(file.read(), {"w": np.zeros(2**18)})


def test_nothing_stays_open(path):
    files.save(path, ARRAYS)
    bad = path.with_name("bad")
    bad.write_bytes(b"bad")
    before = names(Path("/proc/self/fd"))
    for _ in range(3):
        files.load(path)
        files.save(path, ARRAYS)
        with pytest.raises(files.FileError):
            files.load(bad)
        with pytest.raises(files.FileError):
            files.save(path, {"w": np.zeros(1, bool)})
    assert names(Path("/proc/self/fd")) == before


# ---- arguments of a wrong type or value --------------------------------------------------------

READERS = {
    "load": files.load,
    "Reader": files.Reader,
    "save": lambda path: files.save(path, ARRAYS),
}


class BytesPath:
    def __fspath__(self):
        return b"arrays.safetensors"


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("path", "got"),
    [
        (None, "NoneType"),
        (3, "int"),  # open would take it as a descriptor
        (True, "bool"),
        (b"arrays.safetensors", "bytes"),
        (BytesPath(), "bytes"),
        (["arrays.safetensors"], "list"),
        (np.array("arrays.safetensors"), "ndarray"),
    ],
)
def test_path_of_a_wrong_type_is_named(call, path, got):
    with pytest.raises(TypeError, match=rf"^path: expected a str or a path, got {got}$"):
        call(path)


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_path_that_no_file_can_have_is_named(call, path):
    with pytest.raises(ValueError, match=r"^path: expected the path of a file, got '") as caught:
        call(path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("tensors", [None, 5, "w", [np.zeros(1)], np.zeros(1), {1.0}])
def test_save_refuses_tensors_that_are_no_dict(path, tensors):
    path.write_bytes(b"old")
    got = type(tensors).__name__
    with pytest.raises(
        TypeError,
        match=rf"^tensors: expected a dict of arrays, a layer or an optimizer, got {got}$",
    ):
        files.save(path, tensors)
    assert path.read_bytes() == b"old"
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("value", [None, 1.0, "text", [1.0], [[1.0], [1.0, 2.0]], b"a"])
def test_save_refuses_values_that_are_no_arrays(path, value):
    hint = r" \(write np.asarray\(tensors\['w'\]\)\)" if isinstance(value, list) else ""
    got = type(value).__name__ + hint
    with pytest.raises(TypeError, match=rf"^tensors\['w'\]: expected an array, got {got}$"):
        files.save(path, {"v": np.zeros(1), "w": value})
    assert names(path.parent) == []


@pytest.mark.parametrize("name", ["", 3, None, "a.b", "a/b"])
@pytest.mark.parametrize(
    "group", [rk.MinGRU(3, 4), rk.Linear(3, 4), rk.SGD({"w": np.zeros(1)}, 0.1)], ids=repr
)
def test_save_refuses_the_names_of_groups_that_optimizers_refuse(path, name, group):
    said = rf"^tensors: expected names of groups without '\.' and '/', got {name!r}$"
    with pytest.raises(ValueError, match=said):
        files.save(path, {name: group})
    assert names(path.parent) == []


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # of NumPy 2.5
def test_save_writes_the_shapes_and_dtypes_that_it_checked(path):
    """The caller's array objects can change at any time, here while the metadata is read."""
    w = np.arange(6.0)
    kept = w.copy()

    class Late(UserDict):
        def keys(self):
            w.dtype, w.shape = np.int16, (4, 6)
            return super().keys()

    files.save(path, {"w": w}, Late(a="b"))
    assert w.shape == (4, 6)
    assert same(files.load(path), {"w": kept})


@pytest.mark.parametrize("about", [5, 0, "", "text", [], [("a", "b")], False])
def test_save_refuses_metadata_that_is_no_dict(path, about):
    got = type(about).__name__
    with pytest.raises(TypeError, match=rf"^metadata: expected a dict of strings, got {got}$"):
        files.save(path, ARRAYS, about)
    assert names(path.parent) == []


@pytest.mark.parametrize("expected", [[], [W], (), 5, "w", W, {"w"}])
def test_load_refuses_expected_that_is_no_dict(path, expected):
    files.save(path, {"w": W})
    message = f"^expected: expected a dict of arrays or Specs, got {type(expected).__name__}$"
    with pytest.raises(TypeError, match=message):
        files.load(path, expected)
    with files.Reader(path) as file, pytest.raises(TypeError, match=message):
        file.read(expected)


@pytest.mark.parametrize("value", [None, 5, "F32", np.float32, (np.dtype("f4"), (2, 3)), [1.0]])
def test_load_refuses_expected_values_of_a_wrong_type(path, value):
    files.save(path, {"w": W})
    message = rf"^expected\['w'\]: expected an array or a Spec, got {type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        files.load(path, {"w": value})


# ---- saving ------------------------------------------------------------------------------------

OTHER = {"w": np.full(20_000, 7.0)}


@pytest.mark.parametrize(
    ("arrays", "about", "message"),
    [
        ({"w": np.zeros(1, np.float16)}, {}, "'w' as float32, float64 or int64, got float16"),
        ({"w": np.zeros(1, ">f4")}, {}, "'w' as float32, float64 or int64, got >f4"),
        ({"w": np.zeros(1, np.uint64)}, {}, "'w' as float32, float64 or int64, got uint64"),
        ({"w": np.array([None])}, {}, "'w' as float32, float64 or int64, got object"),
        ({"w": np.array("text")}, {}, "'w' as float32, float64 or int64, got <U4"),
        ({1: np.zeros(1)}, {}, "expected strings as names and metadata, got 1"),
        ({"": np.zeros(1)}, {}, "expected a name of 1 to 256 printable characters, got ''"),
        ({"\n": np.zeros(1)}, {}, "expected a name of 1 to 256 printable characters, got '\\n'"),
        ({"n" * 257: np.zeros(1)}, {}, "expected a name of 1 to 256 printable characters"),
        ({"\ud800": np.zeros(1)}, {}, "surrogates not allowed"),
        ({"__metadata__": np.zeros(1)}, {}, "expected __metadata__ of strings, got"),
        ({"w": np.zeros((1,) * 9)}, {}, "expected at most 8 dimensions"),
        ({f"{i}": np.zeros(0) for i in range(4097)}, {}, "expected at most 4096 arrays, got 4097"),
        ({}, {"a": 5}, "expected strings as names and metadata, got 5"),
        ({}, {None: "a"}, "expected strings as names and metadata, got None"),
        ({}, {"a": "\udc00"}, "surrogates not allowed"),
        ({}, {"a": "x" * 2**20}, "expected a header of at most 1048576 bytes, got 10486"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(path, arrays, about, message):
    path.write_bytes(b"old")
    with pytest.raises(files.FileError) as caught:
        files.save(path, arrays, about)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(path.parent) == [path.name]


class Crash(BaseException):
    """Neither an error nor an interrupt: nothing may depend on which exception it is."""


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, Crash])
@pytest.mark.parametrize(
    ("there", "name", "call"),
    [(True, "fchmod", 1)]  # a new file keeps the mode that it was made with
    + [
        (there, *step)
        for there in (True, False)
        for step in (("open", 1), ("open", 2), ("fsync", 1), ("replace", 1), ("fsync", 2))
    ],
)
def test_crash_at_any_step_leaves_old_or_new(path, monkeypatch, there, name, call, failure):
    if there:
        files.save(path, ARRAYS)
    real, calls = getattr(os, name), []

    def crash(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise failure("crash")
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, crash)
        with pytest.raises(failure, match="crash"):
            files.save(path, OTHER)
    assert len(calls) == call
    replaced = (name, call) == ("fsync", 2)
    assert names(path.parent) == ([path.name] if there or replaced else [])
    if there or replaced:
        assert same(files.load(path), OTHER if replaced else ARRAYS)


def test_file_is_on_the_disk_before_it_takes_the_name(path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args, name=name, real=real, **options):
            size = os.fstat(args[0]).st_size if name == "fsync" else None
            kind = stat.S_IFMT(os.fstat(args[0]).st_mode) if name == "fsync" else None
            done.append((name, kind, size if kind == stat.S_IFREG else None))
            return real(*args, **options)

        monkeypatch.setattr(os, name, spy)
    files.save(path, OTHER)
    size = path.stat().st_size
    assert done == [
        ("fsync", stat.S_IFREG, size),
        ("replace", None, None),
        ("fsync", stat.S_IFDIR, None),
    ]


def test_dry_run_writes_all_of_it_and_leaves_everything(path, monkeypatch):
    """Two whole files where there is none yet: a second save needs room for the old and the new."""
    sizes, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), real(fd)))
    files.save(path, OTHER, dry_run=True)
    assert names(path.parent) == []
    files.save(path, OTHER)
    size = path.stat().st_size
    assert sizes[:3] == [size] * 3
    before, sizes[:] = path.stat(), []
    files.save(path, OTHER, dry_run=True)
    assert sizes == [size]
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert names(path.parent) == [path.name]


def test_dry_run_refuses_what_a_save_refuses(path):
    with pytest.raises(files.FileError, match="a header of at most"):
        files.save(path, {}, {"a": "x" * 2**20}, dry_run=True)
    with pytest.raises(FileNotFoundError):
        files.save(path / "a", ARRAYS, dry_run=True)
    with pytest.raises(TypeError, match="dry_run: expected True or False, got str"):
        files.save(path, ARRAYS, dry_run="no")
    assert names(path.parent) == []


FULL = """if True:
    import os, sys
    import numpy as np
    from rnnkern import files
    path = sys.argv[1]
    files.save(path, {"w": np.zeros(100)})
    {limit}
    for size in (20_000, 100_000):  # with the header just over the limit, and far over it
        try:
            files.save(path, {"w": np.zeros(size)})
        except OSError as error:
            assert error.filename == path, error
            print(error.errno, os.listdir(os.path.dirname(path)), files.load(path)["w"].shape)
"""


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "call", "there"),
    [
        ("open", 1, False),  # of the folder
        ("open", 2, False),  # of the new file
        ("fchmod", 1, True),
        ("fsync", 1, False),
        ("replace", 1, False),
        ("fsync", 2, False),
    ],
)
def test_error_of_the_system_names_the_given_path(tmp_path, monkeypatch, name, call, there):
    """Not the temporary file, not the resolved path, and never no path."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    path = "folder/../folder/file"
    if there:
        files.save(path, ARRAYS)
    real, calls = getattr(os, name), []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == call:
            text = os.strerror(errno.ENOSPC)
            # As os.replace raises it, with two names, or as a write does, with none.
            names = ("from", None, "to") if name == "replace" else ()
            raise OSError(errno.ENOSPC, text, *names)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="No space left") as caught:
            files.save(path, OTHER)
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: '{path}'"


def test_missing_folder_is_reported_by_the_given_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (files.load, lambda path: files.save(path, ARRAYS)):
        with pytest.raises(FileNotFoundError) as caught:
            call("missing/../file/a")
        assert str(caught.value).endswith(": 'missing/../file/a'")


def test_limit_of_file_size_leaves_the_old_file(path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, 160_000))"
    code, out, err = run(sys.executable, "-c", FULL.replace("{limit}", limit), str(path))
    assert (code, err) == (0, "")
    assert out == f"{errno.EFBIG} ['{path.name}'] (100,)\n" * 2


def mounted(folder, options, *command):
    """Run the command with a file system of its own at `folder`."""
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
    script = 'mount -t tmpfs -o "$1" tmpfs "$2"; shift 2; exec "$@"'
    code, _, err = run(*mount, script, "sh", options, str(folder), "true")
    if code:
        pytest.skip(f"no file system can be mounted here: {err.strip()}")
    return run(*mount, script, "sh", options, str(folder), *command)


def test_full_disk_leaves_the_old_file(tmp_path):
    code = FULL.replace("{limit}", "")
    done = mounted(tmp_path, "size=64k", sys.executable, "-c", code, str(tmp_path / "a"))
    assert done == (0, f"{errno.ENOSPC} ['a'] (100,)\n" * 2, "")


DRY = """if True:
    import os, sys
    import numpy as np
    from rnnkern import files
    path = sys.argv[1]
    for size in (3_000, 5_000, 10_000):  # two files fit, one does, none does
        try:
            files.save(path, {"w": np.zeros(size)}, dry_run=True)
            print("fits", os.listdir(os.path.dirname(path)))
        except OSError as error:
            print(error.errno, os.listdir(os.path.dirname(path)))
    files.save(path, {"w": np.zeros(3_000)})
    files.save(path, {"w": np.zeros(3_000)}, dry_run=True)  # there is one already
"""


def test_dry_run_needs_room_for_the_old_file_and_the_new(tmp_path):
    done = mounted(tmp_path, "size=64k", sys.executable, "-c", DRY, str(tmp_path / "a"))
    assert done == (0, f"fits []\n{errno.ENOSPC} []\n{errno.ENOSPC} []\n", "")


def test_mode_is_the_umasks_or_the_old_files(path):
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            path.unlink(missing_ok=True)
            files.save(path, ARRAYS)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    for mode in (0o600, 0o644, 0o666, 0o444):
        path.chmod(mode)
        files.save(path, OTHER)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_symbolic_link_stays_and_its_target_is_replaced(path):
    folder = path.parent / "folder"
    folder.mkdir()
    link, target = path, folder / "target"
    link.symlink_to("folder/target")
    for arrays in (ARRAYS, OTHER):  # the first makes the target
        files.save(link, arrays)
        assert link.is_symlink()
        assert same(files.load(target), arrays)
        assert same(files.load(link), arrays)
    assert names(folder) == ["target"]
    assert names(path.parent) == sorted(["folder", link.name])


def test_path_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.save("a", ARRAYS)
    assert same(files.load("a"), ARRAYS)
    long = "n" * 255  # the longest name that a file can have
    files.save(long, ARRAYS)
    assert names(tmp_path) == ["a", long]


def test_concurrent_savers_and_readers_never_mix(path):
    files.save(path, {"w": np.zeros(30_000)})
    stop, seen, deadline = threading.Event(), set(), time.monotonic() + 30

    def save(value):
        while not stop.is_set():
            files.save(path, {"w": np.full(30_000 + value, float(value))}, {"value": str(value)})

    threads = [threading.Thread(target=save, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    try:
        while not seen >= {1, 2, 3, 4} and time.monotonic() < deadline:
            with files.Reader(path) as file:
                value = int(file.metadata.get("value", 0))
                (w,) = file.read().values()
            assert len(w) == 30_000 + value
            assert (w == value).all()
            seen.add(value)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen >= {1, 2, 3, 4}
    assert names(path.parent) == [path.name]


# ---- locks -------------------------------------------------------------------------------------

LOCKED = """if True:
    import sys, time
    from rnnkern import files
    with files.lock(sys.argv[1]):
        print("locked", flush=True)
        sys.stdin.read()
"""


def test_locked_folder_is_refused_until_the_holder_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    for kill in (False, True):
        with subprocess.Popen([sys.executable, "-c", LOCKED, tmp_path], **pipe) as holder:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(files.FileError) as caught, files.lock(tmp_path.name):
                pass
            message = "expected a folder that is not in use, got one that a process has locked"
            assert str(caught.value) == f"{tmp_path.name}: {message}"
            if kill:
                holder.kill()
        with files.lock(tmp_path.name):  # a kill releases it, too
            pass
    assert names(tmp_path) == []


def test_folder_is_locked_once_within_a_process(tmp_path):
    with files.lock(tmp_path):
        with pytest.raises(files.FileError, match="in use"), files.lock(tmp_path):
            pass
        with pytest.raises(files.FileError, match="in use"), files.lock(f"{tmp_path}/."):
            pass
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
        1 / 0  # noqa: B018
    with files.lock(tmp_path):
        files.save(tmp_path / "a", ARRAYS)


def test_lock_refuses_what_is_no_folder(path):
    path.write_bytes(b"")
    for bad, error in ((path, NotADirectoryError), (path.parent / "missing", FileNotFoundError)):
        with pytest.raises(error) as caught, files.lock(bad):
            pass
        assert str(bad) in str(caught.value)
    with pytest.raises(TypeError, match=r"^path: expected a str or a path, got int$"):
        files.lock(3).__enter__()


def test_child_process_does_not_keep_the_lock(tmp_path):
    with files.lock(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with files.lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


# ---- what the package does not do --------------------------------------------------------------


# The ranks of one program, which MPI starts, send each other pickles.
PACKAGE = Path(rk.__file__).parent
SOURCES = {*PACKAGE.rglob("*.py")} - {PACKAGE / "distributed" / "communicator.py"}


@pytest.mark.parametrize("source", sorted(SOURCES), ids=lambda p: p.stem)
def test_nothing_is_unpickled_or_evaluated(source):
    tree = ast.parse(source.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in NUMPY_LOADS:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
    assert not found & FORBIDDEN
