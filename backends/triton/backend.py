"""The backend for GPUs: plans to Triton kernels."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnc.backends.protocol import Kernel, Target, Unsupported, Workload
from attnc.plan import Plan


class TritonBackend:
    """See :class:`attnc.backends.protocol.Backend`. With ``TRITON_INTERPRET=1`` kernels run on CPU tensors."""

    name = "triton"

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.support import find_problems

        return tuple(find_problems(plan, workload, target))

    def build(self, plan: Plan, workload: Workload, target: Target) -> Kernel:
        from attnc.backends.triton.interpreter import is_interpreting

        if is_interpreting():
            return self._interpreted(plan, workload)
        raise NotImplementedError

    def _interpreted(self, plan: Plan, workload: Workload) -> Kernel:
        from attnc.backends.triton.configs import INTERPRETER
        from attnc.backends.triton.interpreter import Interpreter
        from attnc.backends.triton.kernel import InterpretedKernel
        from attnc.backends.triton.lower import lower_plan_to_recipe
        from attnc.backends.triton.module import write_source

        lowered = lower_plan_to_recipe(plan, workload, INTERPRETER, "ieee")
        name = plan.program.name
        texts = {f"{name}.py": write_source(name, lowered.functions)}
        return InterpretedKernel(lowered.recipe, texts, Interpreter(name, lowered))

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> Kernel:
        raise NotImplementedError

    def toolchain(self) -> str:
        return f"triton {importlib.metadata.version('triton')}"
