"""From a plan to one TIR function: token maps first, then the passes over the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from attnc.analyse.visibility import Visibility
from attnc.backends.protocol import Config, Workload
from attnc.backends.tvm.arguments import ENTRY, PARTIAL, Layout
from attnc.backends.tvm.emit import Emitter, Tensor, width_of
from attnc.backends.tvm.machine import Machine
from attnc.backends.tvm.slots import PlanSlots
from attnc.backends.tvm.space import default_of
from attnc.backends.tvm.tokens import map_tokens
from attnc.ir.program import Program
from attnc.plan import Plan
from attnc.templates.tvm.head import FEW
from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.processor import features
from attnc.templates.tvm.products import Shape
from attnc.templates.tvm.stream import stream
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.values import Value
from attnc.templates.tvm.walk import Sizes


def layout_of(plan: Plan, workload: Workload) -> Layout:
    """The arguments of a plan's kernel."""
    program = plan.program
    inputs = [(f"input {source.name}", len(source.dims)) for source in program.inputs]
    maps = [(f"input {token.result.name}", len(token.result.dims)) for token in plan.tokens]
    lse = [("lse", 3)] if workload.lse else []
    sums = {accumulator.name for step in plan.passes for accumulator in step.accumulators}
    saved = [(f"saved {name}", 4 if name in sums else 3) for name in workload.saved]
    partial = [(PARTIAL, 4)] if state_width(plan) else []
    tensors = [("q", 4), ("k", 4), ("v", 4), ("out", 4), *lse, *saved, *inputs, *maps, *partial]
    return Layout(program.extents, len(program.parameters), tuple(tensors))


def dtypes_of(plan: Plan, workload: Workload) -> list[str]:
    """Element types of the tensors of :func:`layout_of`."""
    wide = "f64" if workload.dtype == "f64" else "f32"
    rows = [wide] * (workload.lse + len(workload.saved))
    maps = [map_dtype(token, workload) for token in plan.tokens]
    return [*[workload.dtype] * 4, *rows, *workload.inputs, *maps, *([wide] if state_width(plan) else [])]


def state_width(plan: Plan) -> int:
    """Numbers of the states of the few rows of a head, where keys may be dealt to several tasks; else 0."""
    if len(plan.passes) != 1:
        return 0
    (single,) = plan.passes
    return FEW * (len(single.statistics) + 1 + sum(width_of(one.value.width) for one in single.accumulators))


def map_dtype(token: Any, workload: Workload) -> str:
    """Element type of a token map's result: that of q, k and v for vectors, of the arithmetic for scalars."""
    if token.expression.is_vector:
        return workload.dtype
    return "f64" if workload.dtype == "f64" else "f32"


def shape_of(machine: Machine, real: str, config: Config) -> Shape:
    """How tiles are cut: as ``config`` says, or by default for a machine's registers."""
    lanes = machine.vector_bytes // (8 if real == "float64" else 4)
    settings = config or default_of(machine)
    return Shape(real, lanes, **{name: int(setting) for name, setting in settings.items()})


def lower_plan_to_tir(
    plan: Plan, visibility: Visibility, workload: Workload, machine: Machine, config: Config
) -> tuple[Any, Layout]:
    """The kernel as a ``PrimFunc`` of one pointer, and what it points to."""
    real = "float64" if workload.dtype == "f64" else "float32"
    shape = shape_of(machine, real, config)

    def body(emitter: Emitter, tasks: Tasks) -> None:
        slots = PlanSlots(plan, visibility, emitter, workload.dtype, workload.lse, workload.saved)
        for token in plan.tokens:
            map_tokens(token, plan.program, emitter, tasks)
        sizes = emitter.sizes

        def partial(*at: Value) -> tuple[Memory, Value]:
            states = emitter.tensors[PARTIAL]
            return states.memory, states.offset(*at)

        every = Sizes(sizes["B"], sizes["H"], sizes["M"], sizes["N"])
        stream(shape, slots, every, tasks, partial=partial if state_width(plan) else None)

    return write_function(layout_of(plan, workload), dtypes_of(plan, workload), plan.program, shape, machine, body)


def write_function(
    layout: Layout,
    dtypes: Sequence[str],
    program: Program,
    shape: Shape,
    machine: Machine,
    body: Callable[[Emitter, Tasks], None],
) -> tuple[Any, Layout]:
    """A ``PrimFunc`` of one pointer, and what it points to; ``body`` writes its parallel loops."""
    features.set(machine.features)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(ENTRY)
            integers = Memory(T.decl_buffer((1 << 62,), "int64", data=T.arg("call", T.handle())), "int64")
            names = [parameter.name for parameter in program.parameters]
            tensors = _tensors(layout, dtypes, integers)
            tasks = Tasks(integers)
            body(Emitter(layout, tensors, integers, names, shape.type, shape.lanes), tasks)
        function = builder.get().with_attr("global_symbol", ENTRY)
        return function, replace(layout, phases=tasks.phases, room=tasks.room)


def _tensors(layout: Layout, dtypes: Sequence[str], integers: Memory) -> dict[str, Tensor]:
    result = {}
    for (name, rank), dtype in zip(layout.tensors, dtypes, strict=True):
        result[name] = Tensor(name, dtype, rank, layout, integers)
    return result


__all__ = ["dtypes_of", "layout_of", "lower_plan_to_tir", "map_dtype", "shape_of", "write_function"]
