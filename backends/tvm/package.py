"""Importing TVM in a third of the time that it takes by itself.

While it is imported, TVM looks for types that belong to backends for other machines and to a library that it loads
last; each that is missing costs a search through the symbols of its compiler.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

LIBRARIES = (("tvm_ffi", "libtvm_ffi"), ("tvm", "libtvm_runtime"), ("tvm", "libtvm_runtime_extra"))
AUTOLOAD = "TVM_DEVICE_BACKEND_AUTOLOAD"


def import_tvm() -> None:
    """Import ``tvm``, its libraries first and, unless the environment says otherwise, without backends for GPUs."""
    if "tvm" in sys.modules:
        return
    for package, name in LIBRARIES:
        _load(package, name)
    given = os.environ.get(AUTOLOAD)
    os.environ[AUTOLOAD] = given or "0"
    try:
        import tvm  # noqa: F401
    finally:
        if given is None:
            del os.environ[AUTOLOAD]


def _load(package: str, name: str) -> None:
    """Load a library of a package, if it is where it is expected; else TVM will say what it misses."""
    spec = PathFinder.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in (".so", ".dylib"):
            if (path := Path(folder) / "lib" / (name + suffix)).exists():
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
