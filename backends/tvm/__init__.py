"""Kernels for CPUs: TIR built from the templates in ``templates/tvm``, compiled by LLVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attnc.backends.protocol import BackwardKernel, Config, Kernel, Space, Target, Unsupported, Workload
from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.kernel import CpuBackwardKernel, CpuKernel, Map
from attnc.backends.tvm.link import Saved
from attnc.backends.tvm.machine import describe, flags

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward
    from attnc.plan import Plan

__all__ = ["TvmBackend"]


class TvmBackend:
    """The backend of the target ``cpu`` (:class:`attnc.backends.protocol.Backend`)."""

    name = "tvm"
    codegen = 1
    spaces = 2

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """What in ``plan`` cannot run on a CPU yet."""
        from attnc.backends.tvm.problems import problems_of

        return problems_of(plan)

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = MappingProxyType({})) -> CpuKernel:
        """Compile ``plan``; with the host's processor unless ``target.arch`` names one."""
        from attnc.backends.tvm.compile import compile_plan

        return compile_plan(plan, workload, target, config)

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        """How tiles can be cut."""
        from attnc.backends.tvm.package import import_tvm

        import_tvm()
        from attnc.backends.tvm.space import space_of

        return space_of(workload, target)

    def rejection(self, kernel: Kernel | BackwardKernel, target: Target) -> str | None:
        """LLVM reports nothing that would tell."""
        return None

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> CpuKernel:
        """A saved kernel, without importing ``tvm``.

        Raises:
            OSError: the kernel was made for another processor, or its library cannot be loaded.
        """
        return CpuKernel(*_loaded(folder, manifest))

    def backward_problems(self, backward: Backward, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """What in ``backward`` cannot run on a CPU yet."""
        from attnc.backends.tvm.problems import backward_problems_of

        return backward_problems_of(backward)

    def build_backward(
        self, backward: Backward, workload: Workload, target: Target, config: Config = MappingProxyType({})
    ) -> CpuBackwardKernel:
        """Compile a backward, as :meth:`build` does."""
        from attnc.backends.tvm.compile import compile_backward

        return compile_backward(backward, workload, target, config)

    def load_backward(self, folder: Path, manifest: Mapping[str, Any]) -> CpuBackwardKernel:
        """A saved backward, as :meth:`load`."""
        return CpuBackwardKernel(*_loaded(folder, manifest), tuple(manifest["scattered"]))

    def toolchain(self) -> str:
        """Versions of TVM and its FFI, and the processor."""
        return f"apache-tvm {version('apache-tvm')}, tvm-ffi {version('apache-tvm-ffi')}, {describe()}"


def _loaded(folder: Path, manifest: Mapping[str, Any]) -> tuple[Saved, Layout, tuple[Map, ...], str]:
    """Code, layout, own tensors and processor of a saved kernel."""
    if not manifest["arch"] and (missing := sorted(set(manifest["flags"]) - set(flags()))):
        raise OSError(f"the kernel was made for a processor with {', '.join(missing)}; compile it again here")
    layout = manifest["layout"]
    tensors = tuple((name, rank) for name, rank in layout["tensors"])
    return (
        Saved(folder, manifest["code"], []),
        Layout(tuple(layout["extents"]), layout["parameters"], tensors, layout["phases"], layout["room"]),
        tuple(Map(tuple(m["dims"]), m["dtype"]) for m in manifest["maps"]),
        manifest["arch"],
    )
