"""Kernels for CPUs: TIR built from the templates in ``templates/tvm``, compiled by LLVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnc.backends.protocol import Target, Unsupported, Workload
from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.kernel import CpuKernel, Map
from attnc.backends.tvm.link import Saved
from attnc.backends.tvm.machine import describe, flags
from attnc.backends.tvm.problems import problems_of
from attnc.plan import Plan

__all__ = ["TvmBackend"]


class TvmBackend:
    """The backend of the target ``cpu`` (:class:`attnc.backends.protocol.Backend`)."""

    name = "tvm"

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """What in ``plan`` cannot run on a CPU yet."""
        found = problems_of(plan)
        if workload.saved:
            found.append(Unsupported("CPU kernels do not write what a backward needs yet", plan.output))
        return found

    def build(self, plan: Plan, workload: Workload, target: Target) -> CpuKernel:
        """Compile ``plan``; with the host's processor unless ``target.arch`` names one."""
        from attnc.backends.tvm.compile import compile_plan

        return compile_plan(plan, workload, target)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> CpuKernel:
        """A saved kernel, without importing ``tvm``.

        Raises:
            OSError: the kernel was made for another processor, or its library cannot be loaded.
        """
        if not manifest["arch"] and (missing := sorted(set(manifest["flags"]) - set(flags()))):
            raise OSError(f"the kernel was made for a processor with {', '.join(missing)}; compile it again here")
        layout = manifest["layout"]
        tensors = tuple((name, rank) for name, rank in layout["tensors"])
        return CpuKernel(
            Saved(folder, manifest["library"], []),
            Layout(tuple(layout["extents"]), tensors, layout["parameters"], layout["scratch"]),
            tuple(Map(tuple(m["dims"]), m["dtype"]) for m in manifest["maps"]),
            manifest["arch"],
        )

    def toolchain(self) -> str:
        """Versions of TVM and its FFI, and the processor."""
        return f"apache-tvm {version('apache-tvm')}, tvm-ffi {version('apache-tvm-ffi')}, {describe()}"
