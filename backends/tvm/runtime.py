"""TVM's runtime without its compiler: the thread pool, and loading of saved kernels.

``import tvm`` takes seconds and even its small package ``tvm_ffi`` a tenth of one; here only their two libraries are
loaded, and called through TVM's stable C interface (``tvm/ffi/c_api.h``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_INT, _POINTER = 1, 4  # kTVMFFIInt, kTVMFFIOpaquePtr
_HELPERS = ("TVMBackendParallelLaunch", "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace")
_threads: int | None = None


class _Any(ctypes.Structure):
    """``TVMFFIAny``: a tag and eight bytes."""

    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


class _Bytes(ctypes.Structure):
    """``TVMFFIByteArray``."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


@functools.cache
def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The libraries of tvm_ffi and of TVM's runtime.

    Raises:
        OSError: one is not where its package should have it.
    """
    # Workers bound to fixed cores would all meet on the same ones when several processes run side by side.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    return _library("tvm_ffi", "libtvm_ffi"), _library("tvm", "libtvm_runtime")


def _library(package: str, name: str) -> ctypes.CDLL:
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise OSError("the package apache-tvm, which runs CPU kernels, is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    for suffix in (".so", ".dylib"):
        if (path := folder / (name + suffix)).exists():
            return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    raise OSError(f"{name} is not in {folder}")


def set_threads(count: int) -> None:
    """Let kernels run on ``count`` threads from now on."""
    global _threads
    if count == _threads:
        return
    ffi, _ = libraries()
    name, function = b"runtime.config_threadpool", ctypes.c_void_p()
    array = _Bytes(name, len(name))
    if ffi.TVMFFIFunctionGetGlobal(ctypes.byref(array), ctypes.byref(function)) or not function:
        raise OSError("TVM's runtime has no thread pool to configure")
    arguments, result = (_Any * 2)(_Any(_INT, 0, 1), _Any(_INT, 0, count)), _Any()
    if ffi.TVMFFIFunctionCall(function, arguments, 2, ctypes.byref(result)):
        raise OSError(f"TVM's thread pool cannot have {count} threads")
    _threads = count


def load_function(path: Path, name: str) -> Callable[[Any, Any], Any]:
    """The function ``name`` of a kernel library, which takes two pointers.

    Raises:
        OSError: the library cannot be loaded, or has no such function.
    """
    _, runtime = libraries()
    try:
        library = ctypes.CDLL(str(path))
        function = library[f"__tvm_ffi_{name}"]
        for helper in _HELPERS:  # what a kernel calls back is filled in by whoever loads it
            _point(library, f"__{helper}", ctypes.cast(runtime[helper], ctypes.c_void_p))
    except (OSError, AttributeError) as error:
        raise OSError(f"{path} cannot be loaded: {error}") from error

    def call(first: ctypes.c_void_p, second: ctypes.c_void_p) -> None:
        arguments, result = (_Any * 2)(_Any(_POINTER, 0, first.value), _Any(_POINTER, 0, second.value)), _Any()
        if function(None, arguments, 2, ctypes.byref(result)):
            raise RuntimeError(f"{path} failed")

    return call


def _point(library: ctypes.CDLL, name: str, target: ctypes.c_void_p) -> None:
    """Set the pointer called ``name``, if the library has one."""
    try:
        ctypes.c_void_p.in_dll(library, name).value = target.value
    except ValueError:
        return
