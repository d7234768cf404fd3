"""From a plan to one TIR function: token maps first, then the passes over the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from attnc.analyse.visibility import Visibility
from attnc.backends.protocol import Workload
from attnc.backends.tvm.arguments import ENTRY, Layout
from attnc.backends.tvm.emit import Emitter, Tensor
from attnc.backends.tvm.machine import Machine
from attnc.backends.tvm.slots import PlanSlots
from attnc.backends.tvm.tokens import map_tokens
from attnc.plan import Plan
from attnc.templates.tvm.lanes import Memory, features
from attnc.templates.tvm.products import Shape
from attnc.templates.tvm.stream import Sizes, stream


def layout_of(plan: Plan, workload: Workload) -> Layout:
    """The arguments of a plan's kernel."""
    program = plan.program
    inputs = [(f"input {source.name}", len(source.dims)) for source in program.inputs]
    maps = [(f"input {token.result.name}", len(token.result.dims)) for token in plan.tokens]
    lse = [("lse", 3)] if workload.lse else []
    tensors = [("q", 4), ("k", 4), ("v", 4), ("out", 4), *lse, *inputs, *maps]
    return Layout(program.extents, tuple(tensors), len(program.parameters))


def dtypes_of(plan: Plan, workload: Workload) -> list[str]:
    """Element types of the tensors of :func:`layout_of`."""
    lse = ["f64" if workload.dtype == "f64" else "f32"] if workload.lse else []
    return [*[workload.dtype] * 4, *lse, *workload.inputs, *(map_dtype(token, workload) for token in plan.tokens)]


def map_dtype(token: Any, workload: Workload) -> str:
    """Element type of a token map's result: that of q, k and v for vectors, of the arithmetic for scalars."""
    if token.expression.is_vector:
        return workload.dtype
    return "f64" if workload.dtype == "f64" else "f32"


def shape_of(machine: Machine, real: str) -> Shape:
    """How tiles are cut for a machine's registers."""
    lanes = machine.vector_bytes // (8 if real == "float64" else 4)
    if machine.registers >= 32:
        return Shape(real, lanes, vectors=2, block=8, groups=2, keys=64)
    return Shape(real, lanes, vectors=2, block=6, groups=4, keys=60)


def lower_plan_to_tir(plan: Plan, visibility: Visibility, workload: Workload, machine: Machine) -> tuple[Any, Layout]:
    """The kernel as a ``PrimFunc`` of two handles, and what they point to."""
    real = "float64" if workload.dtype == "f64" else "float32"
    shape = shape_of(machine, real)
    layout = layout_of(plan, workload)
    features.set(machine.features)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(ENTRY)
            integers = T.arg("integers", T.handle())
            reals = T.arg("reals", T.handle())
            with T.attr("default", "device_id", 0), T.attr("default", "device_type", 1):
                numbers = Memory(T.decl_buffer((1 << 62,), "int64", data=integers), "int64")
                parameters = Memory(T.decl_buffer((1 << 62,), "float64", data=reals), "float64")
                emitter = Emitter(
                    layout,
                    _tensors(layout, dtypes_of(plan, workload), numbers),
                    numbers,
                    parameters,
                    [parameter.name for parameter in plan.program.parameters],
                    real,
                    shape.lanes,
                )
                slots = PlanSlots(plan, visibility, emitter, workload.dtype, workload.lse)
                room = numbers.load(0).keep()
                most = [map_tokens(token, plan, slots, emitter, room) for token in plan.tokens]
                sizes = emitter.sizes
                most.append(stream(shape, slots, Sizes(sizes["B"], sizes["H"], sizes["M"], sizes["N"]), room))
        return builder.get().with_attr("global_symbol", ENTRY), replace(layout, scratch=max(64, *most))


def _tensors(layout: Layout, dtypes: Sequence[str], integers: Memory) -> dict[str, Tensor]:
    result = {}
    for (name, rank), dtype in zip(layout.tensors, dtypes, strict=True):
        result[name] = Tensor(name, dtype, rank, layout, integers)
    return result


__all__ = ["dtypes_of", "layout_of", "lower_plan_to_tir", "map_dtype", "shape_of"]
