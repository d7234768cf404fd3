"""TVM's runtime without its compiler: the thread pool, and loading of saved kernels.

``import tvm`` takes seconds; here only ``libtvm_runtime`` is loaded, through the small package ``tvm_ffi``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_threads: int | None = None


@functools.cache
def runtime() -> Any:
    """The module ``tvm_ffi``, with TVM's runtime library loaded.

    Raises:
        OSError: the library is not where the package should have it.
    """
    # Workers bound to fixed cores would all meet on the same ones when several processes run side by side.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm_ffi

    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is None:
        spec = PathFinder.find_spec("tvm")
        if spec is None or not spec.submodule_search_locations:
            raise OSError("the package apache-tvm, which runs CPU kernels, is not installed")
        for name in ("libtvm_runtime.so", "libtvm_runtime.dylib"):
            path = Path(next(iter(spec.submodule_search_locations))) / "lib" / name
            if path.exists():
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
                break
        else:
            raise OSError(f"libtvm_runtime is not in {path.parent}")
    return tvm_ffi


def set_threads(count: int) -> None:
    """Let kernels run on ``count`` threads from now on."""
    global _threads
    if count != _threads:
        runtime().get_global_func("runtime.config_threadpool")(1, count)
        _threads = count


def load_function(path: Path, name: str) -> Callable[[Any, Any], Any]:
    """The function ``name`` of a kernel library.

    Raises:
        OSError: the library cannot be loaded, or has no such function.
    """
    try:
        function: Callable[[Any, Any], Any] = runtime().load_module(str(path))[name]
    except (RuntimeError, AttributeError) as error:
        raise OSError(f"{path} cannot be loaded: {error}") from error
    return function
