"""From a plan to machine code."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from attnc.analyse.gradient.backward import Backward, Scatter
from attnc.analyse.mask import analyse_mask
from attnc.analyse.visibility import Visibility
from attnc.backends.protocol import Config, Target, Workload
from attnc.backends.tvm.arguments import ENTRY, KEY_PARTS
from attnc.backends.tvm.kernel import CpuBackwardKernel, CpuKernel, Map
from attnc.backends.tvm.launch import Function, callback, load_function
from attnc.backends.tvm.link import LIBRARY, OBJECT, Code, Linked
from attnc.backends.tvm.machine import Machine
from attnc.backends.tvm.package import import_tvm
from attnc.ir.nodes import Literal, Node, Size
from attnc.plan import Plan


def compile_plan(
    plan: Plan,
    workload: Workload,
    target: Target,
    config: Config = MappingProxyType({}),
    visibility: Visibility | None = None,
) -> CpuKernel:
    """The kernel of a plan for the processor of ``target``."""
    import_tvm()
    from attnc.backends.tvm.lower import lower_plan_to_tir, map_dtype, state_width
    from attnc.backends.tvm.machine import machine_of

    machine = machine_of(target)
    function, layout = lower_plan_to_tir(plan, visibility or analyse_mask(plan.mask), workload, machine, config)
    maps = tuple(Map(tuple(extent_of(dim) for dim in m.result.dims), map_dtype(m, workload)) for m in plan.tokens)
    if width := state_width(plan):
        maps += (Map((KEY_PARTS, "B", "H", width), "f64" if workload.dtype == "f64" else "f32"),)
    return CpuKernel(_Built(function, machine), layout, maps, target.arch)


def compile_backward(
    backward: Backward, workload: Workload, target: Target, config: Config = MappingProxyType({})
) -> CpuBackwardKernel:
    """The kernel of a derived backward for the processor of ``target``."""
    import_tvm()
    from attnc.backends.tvm.backward import arrange, lower_backward_to_tir
    from attnc.backends.tvm.machine import machine_of

    machine = machine_of(target)
    arranged = arrange(backward, workload)
    function, layout = lower_backward_to_tir(arranged, workload, machine, config)
    maps = tuple(Map(tuple(extent_of(dim) for dim in source.dims), dtype) for source, dtype in arranged.own)
    targets = {step.result.name for step in backward.steps if isinstance(step, Scatter)}
    scattered = tuple(number for number, result in enumerate(backward.results) if result.name in targets)
    return CpuBackwardKernel(_Built(function, machine), layout, maps, target.arch, scattered)


def lower_tir_to_llvm(function: Any, options: dict[str, Any], *, packed: bool = False) -> Any:
    """TVM's module of LLVM code for a C function, or for one that TVM can call (``packed``).

    The kernels need few of TVM's passes: their buffers are flat, their vectors explicit, their divisions lowered.
    """
    import tvm
    from tvm import tirx

    llvm = tvm.target.Target(options)
    module = tvm.IRModule({ENTRY: function})
    steps = [tirx.transform.BindTarget(llvm.with_host(llvm)), tirx.transform.LowerTVMBuiltin()]
    if packed:
        steps[1:1] = [tirx.transform.AnnotateEntryFunc(), tirx.transform.MakePackedAPI()]
    for step in steps:
        module = step(module)
    return tvm.get_global_func("target.build.llvm")(module, llvm)


class _Built(Code):
    """Code that TVM holds in memory, for the processor of a target."""

    def __init__(self, function: Any, machine: Machine) -> None:
        self._function, self._machine = function, machine
        self._module = lower_tir_to_llvm(function, machine.options)
        self._linked: Linked | None = None

    def function(self) -> Function:
        """Linked and loaded where there is a linker, else compiled by LLVM in memory."""
        try:
            return load_function(self._library(), ENTRY)
        except OSError:
            call = lower_tir_to_llvm(self._function, self._machine.options, packed=True)[ENTRY]
            return callback(lambda words: call(ctypes.c_void_p(words)))

    def write(self, folder: Path) -> str:
        if self._machine.foreign:
            (folder / OBJECT).write_bytes(self._emit("o"))
            return OBJECT
        shutil.copyfile(self._library(), folder / LIBRARY)
        return LIBRARY

    def _library(self) -> Path:
        self._linked = self._linked or Linked(self._emit("o"))
        return self._linked.library

    def texts(self) -> dict[str, str]:
        return {"kernel.tir.py": self._function.script(), "kernel.s": self._emit("s").decode()}

    def _emit(self, form: str) -> bytes:
        """The code as LLVM writes it: to a file in memory if that can be, for LLVM ends the process at a full disk."""
        with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memory_file() as file:
            self._module.write_to_file(f"/dev/fd/{file.fileno()}", form)
            file.seek(0)
            return file.read()


def _memory_file() -> BinaryIO:
    return open(os.memfd_create("attnc"), "w+b")


def extent_of(node: Node) -> str | int:
    """A dimension of a token map: a size by name, or a number."""
    match node:
        case Literal(value=value):
            return int(value)
        case Size(name=name):
            return name
    raise AssertionError("a token map has dimensions that are sizes or numbers")
