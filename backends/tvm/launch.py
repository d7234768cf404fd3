"""Runs compiled code on torch's own threads: OpenMP's, so that kernels and torch's operators share one pool.

Where torch has no OpenMP, on threads of a pool of this module.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.templates.tvm.head import HEAD, NEXT_TASK, NEXT_THREAD, PHASE, ROOM, SCRATCH

if TYPE_CHECKING:
    from torch import Tensor

Function = Callable[[int], None]
"""Compiled code: a C function, called with the address of the words of a call."""

callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""Makes a C function of one that is not."""


def load_function(path: Path, name: str) -> Function:
    """The function ``name`` of a kernel library.

    Raises:
        OSError: the library cannot be loaded, or has no such function.
    """
    try:
        function = ctypes.CDLL(str(path))[name]
    except (OSError, AttributeError) as error:
        raise OSError(f"{path} cannot be loaded: {error}") from error
    function.argtypes, function.restype = (ctypes.c_void_p,), None
    return function


def launch(function: Function, words: list[int], phases: int, room: int) -> None:
    """Call ``function`` on the words of a call, once a phase, on as many threads as torch uses.

    ``room`` is how many bytes of scratch memory each thread needs.
    """
    import torch

    threads = torch.get_num_threads()
    call = (ctypes.c_int64 * len(words))(*words)
    assert len(call) >= HEAD
    call[SCRATCH], call[ROOM] = _scratch.address(threads * room), room
    for phase in range(phases):
        call[NEXT_TASK], call[NEXT_THREAD], call[PHASE] = 0, 0, phase
        _run(function, ctypes.addressof(call), threads)


def _run(function: Function, call: int, threads: int) -> None:
    if threads == 1:
        function(call)
    elif (parallel := _openmp()) is not None:
        parallel(function, call, threads, 0)
    else:
        others = [_pool(threads - 1).submit(function, call) for _ in range(threads - 1)]
        function(call)
        for other in others:
            other.result()


@functools.cache
def _openmp() -> Callable[[Any, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch loaded (LLVM's and Intel's have it too)."""
    try:
        found = ctypes.CDLL(None)["GOMP_parallel"]
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "attnc")


class _Scratch(threading.local):
    """Scratch memory of the calls from one thread, kept for the next call."""

    memory: Tensor | None = None

    def address(self, size: int) -> int:
        """Of at least ``size`` bytes, at a multiple of 64."""
        import torch

        if self.memory is None or self.memory.numel() < size:
            self.memory = torch.empty(size, dtype=torch.uint8)
        return self.memory.data_ptr()


_scratch = _Scratch()
