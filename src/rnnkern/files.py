"""Arrays in safetensors files: what is read is checked first, what is saved is saved whole.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, the header
in JSON, the arrays' bytes.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import reprlib
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .bf16 import bf16_bits, from_bf16_bits
from .checks import cast_to, choice, flag, float_dtype, group_name, received, viewed

__all__ = ["FileError", "Reader", "Spec", "load", "lock", "save"]

Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]
PathLike: TypeAlias = "str | os.PathLike[str]"


def _bits(name: str, kind: str) -> DType:
    """The dtype of elements that NumPy has no type for."""
    return np.dtype([(name, kind)])


DTYPES = dict[str, DType](F32=np.dtype("<f4"), F64=np.dtype("<f8"), I64=np.dtype("<i8"))
BFLOAT16 = _bits("bfloat16", "<u2")
HALVES = dict[str, DType](F16=np.dtype("<f2"), BF16=BFLOAT16)  # read as another dtype
CODES = {dtype: code for code, dtype in DTYPES.items()}
WRITTEN = CODES | {BFLOAT16: "BF16"}
# What a file may hold beside them, but is not read.
OTHERS = {
    **{f"{kind.upper()}{8 * n}": np.dtype(f"<{kind}{n}") for kind in "iu" for n in (1, 2, 4)},
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
    "C64": np.dtype("<c8"),
    **{f"F8_{name}": _bits(f"float8_{name.lower()}", "u1") for name in ("E4M3", "E5M2", "E8M0")},
}
KNOWN = DTYPES | HALVES | OTHERS
METADATA = "__metadata__"

# What is beyond these is neither read nor written.
MAX_HEADER = 2**20  # bytes, names and metadata included
MAX_ARRAYS = 2**12
MAX_NAME = 256  # characters
MAX_DIMENSIONS = 8
MAX_BYTES = 2**36  # of all arrays
MAX_DIGITS = 19  # of a number in the header


class FileError(ValueError):
    """Raised when a file is invalid, or cannot be read or written; the message names its path."""


class Spec(NamedTuple):
    """What a header says of an array.

    Attributes
    ----------
    dtype : dtype
        float32, float64 or int64; also others, which `Reader.read` converts or leaves out. Of
        bfloat16, which NumPy does not have, a record of its bits.
    shape : tuple of int
    nbytes : int
        Of the array.
    """

    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize  # of Python's integers: no overflow


class Reader:
    """A file whose header has been checked, open in a ``with`` for `read`.

    For those who need the metadata to know what must be in the file; all others take `load`.

    Parameters
    ----------
    path : str or path
        A regular file.

    Attributes
    ----------
    metadata : dict of str to str
    specs : dict of str to Spec
        Of each array in the file.

    Raises
    ------
    FileError
        The file is not a safetensors file, is truncated or damaged, or is beyond the bounds: 1 MiB
        of header, 4096 arrays with at most 8 dimensions, names of at most 256 printable characters,
        64 GiB in all.
    OSError
        The operating system can't open or read it.
    TypeError, ValueError
        `path` is not a str or a path, or no file can have it.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from rnnkern import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.save(f"{folder}/a", {"w": np.zeros((2, 3))}, {"epoch": "7"})
    ...     with files.Reader(f"{folder}/a") as file:
    ...         file.metadata, file.specs["w"].shape
    ({'epoch': '7'}, (2, 3))
    """

    def __init__(self, path: PathLike) -> None:
        self._path = _checked_path(path)
        # One descriptor for check and reading, so that no other file takes the place of the one
        # checked; not blocking, so that a FIFO does not wait for a writer. The buffer is small on
        # every Python: that of Python 3.14 has 128 KiB by default.
        raw = io.FileIO(self._path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        self._file = io.BufferedReader(raw, 2**13)
        try:
            with naming(self._path):
                status = os.fstat(self._file.fileno())
                _check(stat.S_ISREG(status.st_mode), "a regular file", _kind(status))
                prefix = self._file.read(8)
                _check(len(prefix) == 8, "at least 8 bytes", len(prefix))
                length = int.from_bytes(prefix, "little")
                _check(length <= MAX_HEADER, f"a header of at most {MAX_HEADER} bytes", length)
                header = self._file.read(length)
                _check(len(header) == length, f"a header of {length} bytes", len(header))
                self._start = 8 + length
                self.metadata, self.specs, self._begins = _parse(
                    header, status.st_size - self._start
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(
        self,
        expected: Mapping[str, Array | Spec] | None = None,
        *,
        prefix: str = "",
        dtype: DTypeLike | None = None,
    ) -> dict[str, Array]:
        """Read the arrays; what is expected is compared with the header before any is allocated.

        Parameters
        ----------
        expected : dict of str to ndarray or Spec, optional
            An array, or its dtype and shape, for each name, without the prefix: as they are
            returned.
        prefix : str
            Only arrays whose names begin with it are read, and returned under the rest of the name.
            All others may be of any dtype.
        dtype : {float32, float64, "bfloat16"}, optional
            What arrays of float16, bfloat16, float32 and float64 are rounded to. Those of int64
            stay as they are. If not given, bfloat16 is read as float32, exactly, and float16 is
            refused. "bfloat16" gives the bits of such numbers, arrays of uint16.

        Returns
        -------
        dict of str to ndarray
            New arrays, of float32, float64 or int64; of uint16 where bits were asked for.

        Raises
        ------
        FileError
            A name, dtype or shape is not as expected, no name has the prefix, an array is of a
            dtype that is not read or has a value that `dtype` can't hold, or the file has become
            shorter.
        TypeError
            `expected` is not a dict of arrays or Specs, `prefix` no str or `dtype` neither of them.

        Examples
        --------
        >>> import tempfile, numpy as np
        >>> from rnnkern import files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files.save(f"{folder}/a", {"w": np.arange(3.0)})
        ...     with files.Reader(f"{folder}/a") as file:
        ...         file.read({"w": files.Spec(np.dtype(np.float64), (3,))})
        {'w': array([0., 1., 2.])}
        """
        _check_type("prefix", prefix, str, "a str")
        wanted = None if dtype is None else _float_or_bfloat16(dtype)
        arrays = {}
        with naming(self._path):
            specs = {n: spec for n, spec in self.specs.items() if n.startswith(prefix)}
            _check(bool(specs) or not prefix, f"names that begin with {prefix!r}", "none")
            read = {name: _converted(name, spec, wanted) for name, spec in specs.items()}
            if expected is not None:
                _compare({n.removeprefix(prefix): spec for n, spec in read.items()}, expected)
            for name, spec in specs.items():
                array = np.empty(spec.shape, spec.dtype)
                self._file.seek(self._start + self._begins[name])
                got = self._file.readinto(array.reshape(-1).view(np.uint8).data)
                _check(got == array.nbytes, f"{array.nbytes} bytes of {name!r}", got)
                arrays[name.removeprefix(prefix)] = _as_read(repr(name), array, read[name].dtype)
        return arrays


def _converted(name: str, spec: Spec, wanted: DType | None) -> Spec:
    """What an array is read as."""
    if wanted is None and spec.dtype == BFLOAT16:
        wanted = DTYPES["F32"]
    halves = spec.dtype in HALVES.values()
    fits = spec.dtype in CODES or (halves and wanted is not None)
    hint = (
        "dtype= of files.load converts it" if halves else "prefix= of files.load leaves others out"
    )
    got = f"{_shown(spec.dtype)} ({hint})"
    _check(fits, f"{name!r} as float32, float64 or int64", got)
    return spec if wanted is None or spec.dtype.kind == "i" else Spec(wanted, spec.shape)


def _float_or_bfloat16(dtype: Any) -> DType:
    """The dtype of what is read; the bits of bfloat16 are those of uint16."""
    is_bfloat16 = isinstance(dtype, str) and dtype == "bfloat16"
    return np.dtype(np.uint16) if is_bfloat16 else float_dtype(dtype)


def _as_read(name: str, array: Array, dtype: DType) -> Array:
    """An array of a file in the dtype that it is read as."""
    if array.dtype == BFLOAT16:
        array = array["bfloat16"].astype(np.uint16, copy=False)
        if dtype.kind == "f":
            array = from_bf16_bits(array)
    elif dtype.kind == "u":
        return _bfloat16_bits(name, array)
    return array if array.dtype == dtype else cast_to(name, array, dtype)


def _bfloat16_bits(name: str, array: Array) -> Array:
    """The bits of floats that are rounded to bfloat16: to nearest, ties to even.

    Subnormal numbers are kept. A float64 is rounded to float32 first, as in PyTorch.
    """
    values = cast_to(name, array, DTYPES["F32"])
    upper: Array = bf16_bits(values, flush=False)
    if np.any(np.isfinite(values) & (upper & np.uint16(0x7FFF) == np.uint16(0x7F80))):
        raise ValueError(
            f"{name}: expected values that bfloat16 can hold, got larger ones in {array.dtype}"
        )
    return upper


def _shown(dtype: DType) -> str:
    return dtype.names[0] if dtype.names else str(dtype)


def load(
    path: PathLike,
    expected: Mapping[str, Array | Spec] | None = None,
    *,
    prefix: str = "",
    dtype: DTypeLike | None = None,
) -> dict[str, Array]:
    """Read a file's arrays; all that its header claims is checked before any is allocated.

    Parameters
    ----------
    path : str or path
        A regular file.
    expected : dict of str to ndarray or Spec, optional
        What must be in it, no more and no less: an array, or its dtype and shape, for each name, as
        they are returned. Without it the arrays may have any names, and any sizes that the file
        itself has.
    prefix : str
        Only arrays whose names begin with it are read, and returned under the rest of the name. All
        others may be of any dtype.
    dtype : {float32, float64, "bfloat16"}, optional
        What arrays of float16, bfloat16, float32 and float64 are rounded to. Those of int64 stay
        as they are. If not given, bfloat16 is read as float32, exactly, and float16 is refused.
        "bfloat16" gives the bits of such numbers, arrays of uint16.

    Returns
    -------
    dict of str to ndarray
        New arrays.

    Raises
    ------
    FileError
        As in `Reader` and `Reader.read`.
    OSError
        The operating system can't open or read it.
    TypeError, ValueError
        An argument is of a wrong type, or no file can have the path; the message names it.

    Examples
    --------
    >>> import tempfile, rnnkern as rk
    >>> gru, other = rk.GRU(3, 4, seed=0), rk.GRU(3, 4, seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rk.files.save(f"{folder}/a.safetensors", gru.state_dict("encoder."))
    ...     arrays = rk.files.load(f"{folder}/a.safetensors", prefix="encoder.")
    >>> other.load_state_dict(arrays)
    ([], [])
    """
    with Reader(path) as file:
        return file.read(expected, prefix=prefix, dtype=dtype)


def save(
    path: PathLike,
    tensors: Any,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: str | None = None,
    dry_run: bool = False,
) -> None:
    """Write arrays to a file, all or nothing.

    They go into a new file in the same folder, which takes the old one's place once all of it is
    on the disk: through a crash, a kill or a full disk, `path` holds the old or the new, whole.
    Only a process that is killed on the way leaves its new file there, as ``.rnnkern-*.tmp``.
    `rnnkern.save` also writes what makes the layers again.

    Parameters
    ----------
    path : str or path
        A file that is there keeps its permissions. A symbolic link stays, and what it leads to is
        replaced; another hard link keeps the old contents.
    tensors : dict of str to ndarray, layer, module or optimizer; or one of the last three
        Arrays are float32, float64 or int64, of any layout, CPU tensors (DLPack) and buffers
        included; masked arrays are refused. What has a ``state_dict`` or ``params`` is saved as
        these arrays, each name behind the key and a dot. Such a key is a name without "." and "/".
    metadata : dict of str to str, optional
        Goes into the header. A layer's `dropout_state` is added, in JSON, under the key and
        ``.dropout_state``, which may not be one of the names here.
    dtype : {"bfloat16"}, optional
        Round arrays of float32 and float64 to bfloat16, to nearest, ties to even, half or a quarter
        of the bytes, which PyTorch reads as such. Arrays of uint16 are then taken for bits of
        bfloat16, as `load` gives them. Those of int64 stay as they are.
    dry_run : bool
        Whether to do everything but take the old file's place: whatever stops a save of arrays of
        these sizes, a full disk included, raises the same error. Where there is no old file, there
        must be room for two new ones, as for a save and the one after it.

    Raises
    ------
    FileError
        Names, arrays or metadata are not of these kinds or beyond the bounds that `Reader` names;
        or something else than a regular file is at `path`.
    OSError
        The operating system can't write it.
    TypeError, ValueError
        An argument is of a wrong type, or no file can have the path; the message names it.

    Examples
    --------
    See `load`. In half the bytes, and back:

    >>> import tempfile, rnnkern as rk
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rk.files.save(f"{folder}/a", rk.GRU(3, 4, seed=0), dtype="bfloat16")
    ...     values = rk.files.load(f"{folder}/a")  # float32
    ...     bits = rk.files.load(f"{folder}/a", dtype="bfloat16")
    >>> values["bias_ih_l0"].dtype, bits["bias_ih_l0"].dtype
    (dtype('float32'), dtype('uint16'))

    A layer, alone or beside others:

    >>> import json, tempfile, numpy as np, rnnkern as rk
    >>> from rnnkern import files
    >>> gru, head = rk.GRU(3, 5, 2, dropout=0.5), rk.Linear(5, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.save(f"{folder}/a", {"gru": gru, "head": head})
    ...     _ = gru.load_state_dict(files.load(f"{folder}/a", prefix="gru."))
    ...     with files.Reader(f"{folder}/a") as file:
    ...         gru.dropout_state = json.loads(file.metadata["gru.dropout_state"])

    >>> files.save("model.safetensors", {"w": np.zeros(2, bool)})
    Traceback (most recent call last):
    ...
    rnnkern.files.FileError: model.safetensors: expected 'w' as float32, float64 or int64, got bool
    """
    path = _checked_path(path)
    metadata = {} if metadata is None else metadata
    dry_run = flag("dry_run", dry_run)
    rounds = dtype is not None and bool(choice("dtype", dtype, ("bfloat16",)))
    _check_type("metadata", metadata, Mapping, "a dict of strings")
    for key, value in tensors.items() if isinstance(tensors, Mapping) else ():
        if _is_group(value):
            group_name("tensors", key)
    with naming(path):
        tensors, states = _flattened(tensors)
    for key in states:
        if key in metadata:
            expected = f"no {key!r}, which holds the state of a layer's dropout"
            raise ValueError(f"metadata: expected {expected}, got {metadata[key]!r}")
    arrays = {}
    for name, array in tensors.items():
        place = f"tensors[{name!r}]"
        found = array if isinstance(array, np.generic) else viewed(place, array)
        if found is None:
            raise TypeError(f"{place}: expected an array, got {received(place, array, None, None)}")
        # An array object of its own: the caller can give its own another shape at any time.
        arrays[name] = np.asarray(found, order="C").view()
        if rounds:
            with naming(path):
                arrays[name] = _as_bfloat16(f"{name!r}", arrays[name])
    target = Path(os.path.realpath(path))
    with naming(path):
        # Wide items first, so that each array is aligned.
        arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
        header = _header(arrays, states | dict(metadata))
        old = target.stat() if target.exists() else None
        if old is not None:
            _check(stat.S_ISREG(old.st_mode), "a regular file or none", _kind(old))
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        mode = None if old is None else stat.S_IMODE(old.st_mode)
        parts = [header, *(array.data for array in arrays.values())]
        try:
            with _new_file(folder, mode, parts) as name:
                if not dry_run:
                    os.replace(name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)  # so that the new name outlives a loss of power
                elif old is None:  # the save after the first one needs room for both files
                    with _new_file(folder, mode, parts):
                        pass
        finally:
            os.close(folder)


def _as_bfloat16(name: str, array: Array) -> Array:
    """What is written of an array where floats are rounded."""
    if array.dtype in (DTYPES["F32"], DTYPES["F64"]):
        array = _bfloat16_bits(name, array)
    return array.view(BFLOAT16) if array.dtype == np.dtype("<u2") else array


def _flattened(tensors: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays by name, and the states of dropout for the metadata."""
    arrays: dict[str, Any] = {}
    states = {}
    entries = tensors if isinstance(tensors, Mapping) else {None: tensors}
    for key, value in entries.items():
        prefix = "" if key is None else f"{key}."
        owned = (
            value.state_dict() if hasattr(value, "state_dict") else getattr(value, "params", None)
        )
        if not isinstance(owned, Mapping):
            _check_type("tensors", tensors, Mapping, "a dict of arrays, a layer or an optimizer")
            owned, prefix = {key: value}, ""
        for name, array in owned.items():
            whole = f"{prefix}{name}" if prefix else name
            _check(whole not in arrays, "each name once", f"{whole!r} again")
            arrays[whole] = array
        if hasattr(value, "dropout_state"):
            states[f"{prefix}dropout_state"] = json.dumps(value.dropout_state)
    return arrays, states


def _is_group(value: Any) -> bool:
    """Whether it is a layer, a module or an optimizer."""
    return hasattr(value, "state_dict") or isinstance(getattr(value, "params", None), Mapping)


@contextmanager
def _new_file(folder: int, mode: int | None, parts: Iterable[Any]) -> Iterator[str]:
    """Write a file to the disk, and remove it unless it is renamed; its name in the folder."""
    temporary = f".rnnkern-{secrets.token_hex(8)}.tmp"

    def new(name: str, flags: int) -> int:
        return os.open(name, flags, 0o666, dir_fd=folder)  # less what the umask takes

    try:
        with open(temporary, "xb", opener=new) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):  # it has been renamed, or was never made
            os.unlink(temporary, dir_fd=folder)


@contextmanager
def lock(path: PathLike) -> Iterator[None]:
    """Hold an exclusive lock on a folder; another process on this machine that locks it fails.

    The operating system releases the lock when the process ends, even by a crash or a kill. The
    lock is on the folder itself: nothing is written into it, and nothing is left behind.

    Parameters
    ----------
    path : str or path
        A folder.

    Raises
    ------
    FileError
        The folder is locked already.
    OSError
        It is not a folder, or the operating system can't open or lock it.
    TypeError, ValueError
        `path` is not a str or a path, or no folder can have it.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from rnnkern import files
    >>> with tempfile.TemporaryDirectory() as folder, files.lock(folder):
    ...     files.save(f"{folder}/a", {"w": np.zeros(2)})  # no other process is here
    """
    path = _checked_path(path)
    with naming(path):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wrong = "expected a folder that is not in use, got one that a process has locked"
                raise ValueError(wrong) from None
        yield
    finally:
        os.close(folder)


def _checked_path(path: PathLike) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    _check_type("path", text, str, "a str or a path")
    try:
        fits = text != "" and 0 not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise ValueError(f"path: expected the path of a file, got {text!r}")
    return text


def _check_type(name: str, value: object, kinds: Any, expected: str) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the path in every error, as the caller gave it."""
    try:
        yield
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno is not None:  # a write's has no path, others have one of save's own
            error.filename = path
            del error.filename2
        raise


def _check(fits: bool, expected: str, got: object) -> None:
    if not fits:
        text = got[:80] if isinstance(got, str) else reprlib.repr(got)
        text = "".join(c if c.isprintable() else "?" for c in text)  # it may be a hostile file's
        raise ValueError(f"expected {expected}, got {text}")


def _kind(status: os.stat_result) -> str:
    return "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """All that stands before the arrays' bytes, within what `_parse` takes."""
    for text in (*arrays, *metadata, *metadata.values()):
        _check(isinstance(text, str), "strings as names and metadata", repr(text))
    entries: dict[str, Any] = {METADATA: metadata} if metadata else {}
    end = 0
    for name, array in arrays.items():
        got = str(array.dtype)
        _check(array.dtype in WRITTEN, f"{name!r} as float32, float64 or int64", got)
        begin, end = end, end + array.nbytes
        code, shape = WRITTEN[array.dtype], array.shape
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    _check(len(header) <= MAX_HEADER, f"a header of at most {MAX_HEADER} bytes", len(header))
    _parse(header, end)
    return len(header).to_bytes(8, "little") + header


def _parse(header: bytes, size: int) -> tuple[dict[str, str], dict[str, Spec], dict[str, int]]:
    """Metadata, specs and first bytes of the arrays that `size` bytes hold."""
    _check(size <= MAX_BYTES, f"at most {MAX_BYTES} bytes of arrays", size)
    try:
        entries = json.loads(
            header.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_integer,
            parse_constant=_integer,
        )
    except (json.JSONDecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"expected a header in JSON, got {error}") from error
    _check(isinstance(entries, dict), "a JSON object as header", entries)
    metadata = entries.pop(METADATA, {})
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    _check(strings, f"{METADATA} of strings", metadata)
    "".join([*metadata, *metadata.values()]).encode()  # fails on half a surrogate pair
    _check(len(entries) <= MAX_ARRAYS, f"at most {MAX_ARRAYS} arrays", len(entries))
    specs, begins = {}, {}
    for name, entry in entries.items():
        fits = 0 < len(name) <= MAX_NAME and name.isprintable()
        _check(fits, f"a name of 1 to {MAX_NAME} printable characters", repr(name))
        specs[name], begins[name] = _entry(f"{name!r}", entry)
    end = 0
    for name in sorted(specs, key=lambda name: (begins[name], specs[name].nbytes)):
        _check(begins[name] == end, f"{name!r} to begin at byte {end}", begins[name])
        end += specs[name].nbytes
    _check(end == size, f"{end} bytes of arrays", size)
    return metadata, specs, begins


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        _check(name not in found, "each name once", f"{name!r} again")
        found[name] = value
    return found


def _integer(text: str) -> int:
    expected = f"integers of at most {MAX_DIGITS} digits in the header"
    _check(text.isdecimal() and len(text) <= MAX_DIGITS, expected, text)
    return int(text)


def _entry(name: str, entry: Any) -> tuple[Spec, int]:
    """Spec and first byte of an array."""
    fits = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    _check(fits, f"dtype, shape and data_offsets of {name}", entry)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _check(isinstance(code, str) and code in KNOWN, f"{name} as {', '.join(KNOWN)}", code)
    for numbers in (shape, offsets):
        # bool is a kind of int, and JSON has it
        fits = isinstance(numbers, list) and all(type(number) is int for number in numbers)
        _check(fits, f"lists of integers for {name}", numbers)
    # Zeros count as ones: beside one, other dimensions could be larger than NumPy can take.
    fits = len(shape) <= MAX_DIMENSIONS and math.prod(max(n, 1) for n in shape) <= MAX_BYTES
    _check(fits, f"at most {MAX_DIMENSIONS} dimensions, {MAX_BYTES} bytes for {name}", shape)
    spec = Spec(KNOWN[code], tuple(shape))
    fits = len(offsets) == 2 and offsets[1] - offsets[0] == spec.nbytes
    _check(fits, f"two offsets for {name}, {spec.nbytes} bytes apart", offsets)
    return spec, offsets[0]


def _compare(specs: Mapping[str, Spec], expected: Mapping[str, Array | Spec]) -> None:
    _check_type("expected", expected, Mapping, "a dict of arrays or Specs")
    for name, wanted in expected.items():
        _check_type(f"expected[{name!r}]", wanted, (np.ndarray, Spec), "an array or a Spec")
        got = specs.get(name)
        fits = got is not None and got == (wanted.dtype, wanted.shape)
        text = f"{_shown(got.dtype)} {got.shape}" if got else "none"
        _check(fits, f"{name!r} as {wanted.dtype} {wanted.shape}", text)
    more = sorted(specs.keys() - expected.keys())
    _check(not more, "no other names", more)
