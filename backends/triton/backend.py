"""The backend for GPUs: plans to Triton kernels."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.backends.protocol import Kernel, Target, Unsupported, Workload
from attnc.plan import Plan

if TYPE_CHECKING:
    from attnc.backends.triton.compiling import Compiled
    from attnc.backends.triton.kernel import DeviceKernel


class TritonBackend:
    """See :class:`attnc.backends.protocol.Backend`. With ``TRITON_INTERPRET=1`` kernels run on CPU tensors."""

    name = "triton"

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.support import find_problems

        return tuple(find_problems(plan, workload, target))

    def build(self, plan: Plan, workload: Workload, target: Target) -> Kernel:
        from attnc.backends.triton.interpreter import is_interpreting

        return _interpreted(plan, workload) if is_interpreting() else _compiled(plan, workload, target)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> Kernel:
        from attnc.backends.triton.kernel import load_kernel

        return load_kernel(folder, manifest)

    def toolchain(self) -> str:
        return f"triton {importlib.metadata.version('triton')}"


def _interpreted(plan: Plan, workload: Workload) -> Kernel:
    from attnc.backends.triton.configs import INTERPRETER
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedKernel
    from attnc.backends.triton.lower import lower_plan_to_recipe
    from attnc.backends.triton.module import write_source

    lowered = lower_plan_to_recipe(plan, workload, INTERPRETER, "f32")
    name = plan.program.name
    texts = {"slots.py": write_source(name, lowered.functions)}
    return InterpretedKernel(lowered.recipe, texts, Interpreter(name, lowered))


def _compiled(plan: Plan, workload: Workload, target: Target) -> Kernel:
    from attnc.backends.triton.compiling import compile_plan

    return device_kernel(compile_plan(plan, workload, target), target)


def device_kernel(made: Compiled, target: Target) -> DeviceKernel:
    """What was compiled, ready to run."""
    from attnc.backends.triton.driver import Program
    from attnc.backends.triton.kernel import DeviceKernel, flattened

    launches = made.lowered.recipe.launches
    ending = "ptx" if target.kind == "cuda" else "amdgcn"
    texts = {"slots.py": made.source}
    texts |= {f"{one.name}.{ending}": binary.assembly for one, binary in zip(launches, made.binaries, strict=True)}
    programs = tuple(
        Program(binary.code, binary.function, binary.shared, binary.threads, flattened(one.arguments))
        for one, binary in zip(launches, made.binaries, strict=True)
    )
    reports = {one.name: binary.report for one, binary in zip(launches, made.binaries, strict=True)}
    return DeviceKernel(target, made.lowered.recipe, programs, texts, reports)
