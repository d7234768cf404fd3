"""From a plan to kernels for a GPU: TIR, CUDA source by TVM, machine code by nvcc."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

from attnc.backends.protocol import Config, Target, Workload
from attnc.backends.tvm.compile import extent_of
from attnc.backends.tvm.cuda.kernel import CODE, SOURCE, CudaKernel, Parts
from attnc.backends.tvm.cuda.nvcc import MISSING, compile_source, find_nvcc, options_of
from attnc.backends.tvm.kernel import Map
from attnc.backends.tvm.package import import_tvm
from attnc.plan import Plan


def compile_plan(plan: Plan, workload: Workload, target: Target, config: Config) -> CudaKernel:
    """The kernels of a plan; without nvcc, their source alone.

    Without a config, the first of the defaults of which no register spills, or else the last.

    Raises:
        OSError: nvcc refuses the source.
    """
    import_tvm()
    from attnc.backends.tvm.cuda.space import defaults_of

    configs = [config] if config else defaults_of(plan, workload, target)
    for tried in configs:
        made = _compile(plan, workload, target, tried)
        if not any(report.spilled for report in made.parts.reports.values()):
            break
    return made


def _compile(plan: Plan, workload: Workload, target: Target, config: Config) -> CudaKernel:
    from attnc.backends.tvm.cuda.lower import lower_plan_to_kernels
    from attnc.backends.tvm.cuda.space import shape_of
    from attnc.backends.tvm.lower import map_dtype

    lowered = lower_plan_to_kernels(plan, workload, shape_of(workload, config))
    fast = workload.dtype != "f32"
    source = source_of(lowered.functions, target, fast=fast)
    maps = tuple(Map(tuple(extent_of(x) for x in one.result.dims), map_dtype(one, workload)) for one in plan.tokens)
    parts = Parts(target, lowered.layout, maps, lowered.launches)
    if find_nvcc() is None:
        command = " ".join(("nvcc", *options_of(target.arch, fast=fast), "-o", CODE, SOURCE))
        why = f"{MISSING}; elsewhere, `{command}` makes machine code of it"
        return CudaKernel(replace(parts, missing=why), b"", source)
    code, reports = compile_source(source, target.arch, fast=fast)
    return CudaKernel(replace(parts, reports=reports), code, source)


def source_of(functions: dict[str, Any], target: Target, *, fast: bool) -> str:
    """CUDA C++ of TIR functions, after the library that they call.

    TVM's passes for devices are not needed: threads and memory are explicit in these functions.
    """
    import tvm
    import tvm.backend.cuda.codegen  # registers what its code generator asks for

    cuda = tvm.target.Target({"kind": "cuda", "arch": target.arch})
    module = tvm.IRModule({name: function.with_attr("target", cuda) for name, function in functions.items()})
    made = tvm.get_global_func("target.build.cuda")(module, cuda)
    library = files("attnc.templates.tvm.cuda").joinpath("library.cuh").read_text(encoding="utf-8")
    return "\n".join((*(["#define ATTNC_FAST"] if fast else []), library, made.inspect_source()))
