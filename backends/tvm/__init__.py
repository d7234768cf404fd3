"""TIR built from the templates in ``templates/tvm``: for CPUs by LLVM, and for NVIDIA GPUs as CUDA source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attnc.backends.protocol import BackwardKernel, Config, Kernel, Router, Space, Target, Unsupported, Workload
from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.kernel import CpuBackwardKernel, CpuKernel, Map
from attnc.backends.tvm.link import Saved
from attnc.backends.tvm.machine import describe, flags

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward
    from attnc.analyse.ranking import Ranking
    from attnc.ir.nodes import Node
    from attnc.plan import Plan

__all__ = ["TvmBackend"]


class TvmBackend:
    """The backend of the target ``cpu``, and another one of ``cuda`` (:class:`attnc.backends.protocol.Backend`)."""

    name = "tvm"
    codegen = 1
    spaces = 2
    families: tuple[str, ...] = ("tvm",)

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """What in ``plan`` cannot run yet."""
        match target.kind:
            case "cpu":
                from attnc.backends.tvm.problems import problems_of

                return problems_of(plan)
            case "cuda":
                from attnc.backends.tvm.cuda.problems import problems_of as cuda_problems_of

                return cuda_problems_of(plan, workload, target)
            case _:
                return [_no_kernels(target, plan.output)]

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = MappingProxyType({})) -> Kernel:
        """Compile ``plan``; for the host's processor unless ``target.arch`` names one."""
        if target.kind == "cuda":
            from attnc.backends.tvm.cuda.compile import compile_plan as compile_for_gpu

            return compile_for_gpu(plan, workload, target, config)
        from attnc.backends.tvm.compile import compile_plan

        return compile_plan(plan, workload, target, config)

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        """How tiles can be cut."""
        from attnc.backends.tvm.package import import_tvm

        import_tvm()
        if target.kind == "cuda":
            from attnc.backends.tvm.cuda.space import space_of as space_on_gpu
            from attnc.plan import Plan

            return space_on_gpu(subject, workload, target) if isinstance(subject, Plan) else Space()
        from attnc.backends.tvm.space import space_of

        return space_of(workload, target)

    def rejection(self, kernel: Kernel | BackwardKernel, target: Target) -> str | None:
        """Kernels for GPUs may spill; LLVM reports nothing that would tell."""
        from attnc.backends.tvm.cuda.kernel import CudaKernel

        spilled = [report.spilled for report in kernel.parts.reports.values()] if isinstance(kernel, CudaKernel) else []
        return f"spills {max(spilled)} bytes of registers" if any(spilled) else None

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> Kernel:
        """A saved kernel, without importing ``tvm``.

        Raises:
            OSError: the kernel was made for another processor, or its library cannot be loaded.
        """
        if "cuda" in manifest:
            from attnc.backends.tvm.cuda.kernel import load_kernel

            return load_kernel(folder, manifest)
        return CpuKernel(*_loaded(folder, manifest))

    def backward_problems(self, backward: Backward, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """What in ``backward`` cannot run yet."""
        match target.kind:
            case "cpu":
                from attnc.backends.tvm.problems import backward_problems_of

                return backward_problems_of(backward)
            case "cuda":
                from attnc.backends.tvm.cuda.problems import backward_problems_of as no_backward

                return no_backward(backward)
            case _:
                return [_no_kernels(target, backward.plan.output)]

    def sums_groups(self, workload: Workload, target: Target) -> bool:
        return False

    def build_backward(
        self, backward: Backward, workload: Workload, target: Target, config: Config = MappingProxyType({})
    ) -> CpuBackwardKernel:
        """Compile a backward, as :meth:`build` does."""
        from attnc.backends.tvm.compile import compile_backward

        return compile_backward(backward, workload, target, config)

    def load_backward(self, folder: Path, manifest: Mapping[str, Any]) -> CpuBackwardKernel:
        """A saved backward, as :meth:`load`."""
        return CpuBackwardKernel(*_loaded(folder, manifest), tuple(manifest["scattered"]))

    def router_problems(self, ranking: Ranking, workload: Workload, target: Target) -> Sequence[str]:
        return ("kernels choose on GPUs alone",)

    def build_router(self, ranking: Ranking, workload: Workload, target: Target) -> Router:
        raise NotImplementedError("what has problems is not built")

    def load_router(self, folder: Path, manifest: Mapping[str, Any]) -> Router:
        raise NotImplementedError("what is not built is not loaded")

    def regroups(self, plan: Plan) -> bool:
        return False

    def toolchain(self, target: Target) -> str:
        """Versions of TVM and its FFI; the processor that code is for by default, or which nvcc makes it."""
        if target.kind == "cuda":
            from attnc.backends.tvm.cuda import nvcc

            maker = nvcc.describe()
        else:
            maker = describe()
        return f"apache-tvm {version('apache-tvm')}, tvm-ffi {version('apache-tvm-ffi')}, {maker}"


def _no_kernels(target: Target, node: Node) -> Unsupported:
    return Unsupported(f"TVM's kernels are for CPUs and NVIDIA GPUs, not for `{target}`", node)


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
