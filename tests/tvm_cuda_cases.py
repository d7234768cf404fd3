"""Runs attentions as TVM's kernels for GPUs, emulated on this processor."""

from __future__ import annotations

from functools import cache

import pytest
import triton_cases
from cuda_emulator import emulate
from torch import Tensor
from triton_cases import Case, Data

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.backends.tvm import TvmBackend
from attnc.backends.tvm.cuda import compile as compiling
from attnc.backends.tvm.cuda.kernel import CudaKernel

SM_90 = Target("cuda", "sm_90")
CUTS = {"one": (4, 1, 64), "two": (2, 2, 32), "small": (2, 1, 16), "many": (8, 1, 128)}
"""Warps, groups of rows and keys of tiles."""


@cache
def emulated(
    spec: str, D: int, E: int, workload: Workload, cut: tuple[int, int, int] | None = None, backwards: bool = False
) -> Kernel:
    """The kernel of a spec; made once, without nvcc."""
    config = {} if cut is None else dict(zip(("warps", "groups", "keys"), cut, strict=True))
    plan = lower_program_to_plan(triton_cases.specialized(spec, D, E))
    backend = TvmBackend()
    assert not (problems := backend.problems(plan, workload, SM_90)), problems
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiling, "find_nvcc", lambda: None)
        made = backend.build(plan, workload, SM_90, config)
    assert isinstance(made, CudaKernel)
    return emulate(made, backwards=backwards)


class Emulated(Data):
    """The arguments of one call."""

    cut: tuple[int, int, int] | None = None
    backwards: bool = False

    def kernel(self, target: Target) -> Kernel:
        sizes = self.case.all_sizes
        return emulated(self.case.spec, sizes["D"], sizes["E"], self.workload(), self.cut, self.backwards)

    def check(self) -> None:
        self.compare(SM_90)

    def results(self, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.run(SM_90, out)


def make(
    case: Case, dtype: str, seed: int, cut: tuple[int, int, int] | None = None, *, backwards: bool = False
) -> Emulated:
    """Fresh random data for a case."""
    data = triton_cases.make(case, dtype, seed)
    made = Emulated(data.case, data.program, data.q, data.k, data.v, data.inputs)
    made.cut, made.backwards = cut, backwards
    return made


__all__ = ["CUTS", "SM_90", "Emulated", "emulated", "make"]
