"""Runs kernels for a GPU on this processor: their CUDA source, compiled as C++ with what a GPU does emulated.

Of the library in ``templates/tvm/cuda/library.cuh`` the functions made of PTX are replaced; others stay.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from attnc.backends.tvm.cuda.kernel import CudaKernel

HEADER = Path(__file__).with_suffix(".h")
REPLACED = ("copy", "commit", "wait", "wait_all", "load", "load_transposed", "tf32", "pack_bf16", "pack_f16",
            "from_f16", "exp", "tanh", "shared")  # fmt: skip


def is_possible() -> bool:
    return platform.machine() == "x86_64" and shutil.which("g++") is not None


def emulate(kernel: CudaKernel, *, backwards: bool = False) -> CudaKernel:
    """The kernel, which now runs here on tensors of the CPU; with its threads in the other order if ``backwards``."""
    functions = tuple(launch.function for launch in kernel.parts.launches)
    library = _compiled(kernel.texts["kernels.cu"], functions)

    def start(number: int, blocks: int, places: Sequence[int], device: torch.device) -> None:
        launch = kernel.parts.launches[number]
        pointers = (ctypes.c_void_p * len(places))(*places)
        library[f"run_{launch.function}"](blocks, launch.threads, pointers, backwards)

    kernel.start = start
    return kernel


@cache
def _compiled(source: str, functions: tuple[str, ...]) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="attnc-emulated-"))
    for header in ("cuda.h", "math_constants.h"):
        (folder / header).touch()
    (folder / "kernel.cpp").write_text(adapted(source, functions))
    library = folder / "kernel.so"
    options = ["-O1", "-std=c++17", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off"]
    command = ["g++", *options, f"-I{folder}", f"-include{HEADER}", "-o", str(library), str(folder / "kernel.cpp")]
    subprocess.run(command, check=True)
    made = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    return made


def adapted(source: str, functions: tuple[str, ...]) -> str:
    """The source without PTX and shared memory, and with entries that C can call."""
    source = re.sub(r"#define ATTNC_MMA\((?:.*\\\n)+.*\n", "", source)
    source = re.sub(r"ATTNC_MMA\(.*\)\n", "", source)
    source = re.sub(r"#ifdef ATTNC_FAST.*?#endif\n", "", source, flags=re.DOTALL)
    for name in REPLACED:
        pattern = rf"ATTNC [\w ]+ attnc_{name}\([^)]*\) {{(?:[^\n]*}}\n|.*?\n}}\n)"
        source, count = re.subn(pattern, "", source, count=1, flags=re.DOTALL)
        assert count or name in ("exp", "tanh"), f"attnc_{name} is not in the library"
    assert "asm" not in source.partition("#include")[0], "PTX is left in the library"
    source = re.sub(r"extern __shared__ [^;]*?(\w+)\[\];", r"int* \1 = emulated::shared;", source)
    for name in functions:
        count = source.partition(f" {name}(")[2].partition(")")[0].count("int64_t")
        words = ", ".join(f"*w[{n}]" for n in range(count))
        source += f"""
static void body_{name}(const long long* const* w) {{ {name}({words}); }}
extern "C" void run_{name}(int blocks, int threads, const long long* const* w, bool backwards) {{
  emulated::launch(body_{name}, blocks, threads, w, backwards);
}}
"""
    return source
