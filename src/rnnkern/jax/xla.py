"""Functions of Python as XLA's foreign functions, by XLA's C API for those (xla/ffi/api/c_api.h).

The structures are those of major version 0 of the API. XLA's headers say that later minor versions
only append fields, and that a change of what is there increments the major version.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.ffi
import numpy as np
from numpy.typing import NDArray

__all__ = ["register"]

Array = NDArray[Any]
# What XLA calls: the text of the call, its operands, and its results, which are to be written.
Function = Callable[[bytes, list[Array], list[Array]], None]

MAJOR = 0
METADATA = 1  # an extension of a call frame by which XLA asks for the version
# Of the buffers that cross the border; XLA_FFI_DataType.
DTYPES = {
    1: np.dtype(np.bool_),
    4: np.dtype(np.int32),
    8: np.dtype(np.uint32),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
}
CODES = {TypeError: 3, ValueError: 3, MemoryError: 8, KeyboardInterrupt: 1}  # XLA_FFI_Error_Code
INTERNAL = 13

_Pointer, _Size = ctypes.c_void_p, ctypes.c_size_t


class _Version(ctypes.Structure):
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


class _Api(ctypes.Structure):  # its beginning
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("version", _Version),
        ("internal", _Pointer),
        ("create_error", ctypes.CFUNCTYPE(_Pointer, ctypes.POINTER(_ErrorArguments))),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("dtype", ctypes.c_int),
        ("data", _Pointer),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(ctypes.Structure):  # operands or results
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("size", ctypes.c_int64),
        ("types", _Pointer),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Text(ctypes.Structure):
    _fields_ = (("data", _Pointer), ("size", _Size))


class _Attributes(ctypes.Structure):  # of which all are texts
    _fields_ = (
        ("struct_size", _Size),
        ("extension", _Pointer),
        ("size", ctypes.c_int64),
        ("types", _Pointer),
        ("names", _Pointer),
        ("items", ctypes.POINTER(ctypes.POINTER(_Text))),
    )


class _Metadata(ctypes.Structure):  # its beginning
    _fields_ = (("struct_size", _Size), ("version", _Version))


class _Extension(ctypes.Structure):
    _fields_ = (
        ("struct_size", _Size),
        ("type", ctypes.c_int),
        ("next", _Pointer),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("struct_size", _Size),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", _Pointer),
        ("stage", ctypes.c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_Handler = ctypes.CFUNCTYPE(_Pointer, ctypes.POINTER(_Frame))
_handlers: list[Any] = []  # XLA calls them as long as the process runs


def _arrays(buffers: _Buffers) -> list[Array]:
    """The memory of XLA's buffers, which are dense and row-major, as arrays.

    They are valid during the call alone.
    """
    found = []
    for k in range(buffers.size):
        buffer = buffers.items[k].contents
        shape, dtype = tuple(buffer.dims[: buffer.rank]), DTYPES[buffer.dtype]
        size = dtype.itemsize
        for n in shape:
            size *= n
        if size:
            memory: Any = (ctypes.c_char * size).from_address(buffer.data)
            found.append(np.ndarray(shape, dtype, memory))
        else:
            found.append(np.empty(shape, dtype))
    return found


def _failure(api: _Api, code: int, message: str) -> Any:
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), code)
    return api.create_error(ctypes.byref(arguments))


def _answer_metadata(frame: _Frame) -> Any:
    """Say that a function is one of XLA's own version, if the structures here are those of it."""
    own = frame.api.contents.version
    if own.major != MAJOR:
        expected = f"expected major version {MAJOR} of XLA's foreign functions, got {own.major}"
        return _failure(frame.api.contents, INTERNAL, f"rnnkern.jax: {expected}")
    version = frame.extension.contents.metadata.contents.version
    version.major, version.minor = own.major, own.minor
    return None


def register(name: str, function: Function) -> None:
    """Let XLA's programs for the CPU call a function by a name.

    It is called in a thread of XLA's. What it raises becomes the error of the program.
    """

    def handle(pointer: Any) -> Any:
        frame = pointer.contents
        try:
            if frame.extension and frame.extension.contents.type == METADATA:
                return _answer_metadata(frame)
            text = frame.attributes.items[0].contents
            function(
                ctypes.string_at(text.data, text.size),
                _arrays(frame.operands),
                _arrays(frame.results),
            )
        except BaseException as error:  # no exception can leave a function that C calls
            code = next((c for kind, c in CODES.items() if isinstance(error, kind)), INTERNAL)
            return _failure(frame.api.contents, code, str(error) or type(error).__name__)
        return None

    if not _handlers:
        atexit.register(wait_for_programs)  # after JAX, so before what JAX does at exit
    handler = _Handler(handle)
    _handlers.append(handler)
    pointer = ctypes.cast(handler, _Pointer).value
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(pointer), platform="cpu")


# ---- the end of the process --------------------------------------------------------------------

QUIET = 5  # looks in a row at which no thread computes
INTERVAL = 0.002  # seconds between looks
LONGEST = 60.0  # seconds; threads of other libraries may never rest


def _computing() -> Iterator[str]:
    """The threads that run, but for those of Python's `threading`."""
    own = {str(thread.native_id) for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            if state in "RD" and task.name not in own:
                yield task.name


def wait_for_programs() -> None:
    """Wait until XLA's threads are at rest.

    JAX runs programs without waiting for them. At exit it holds the interpreter's lock while it
    waits for those that still run, and these wait for the lock in order to call a function here.
    Nothing says which programs run whose results a program has dropped, so look at the threads.
    """
    end, quiet = time.monotonic() + LONGEST, 0
    while quiet < QUIET and time.monotonic() < end:
        time.sleep(INTERVAL)  # without the lock
        quiet = 0 if any(_computing()) else quiet + 1
