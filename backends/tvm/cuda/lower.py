"""From a plan to kernels for a GPU: one for each token map, then one for all passes over the keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attnc.analyse.bounded import is_bounded
from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import Workload
from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.cuda.device import Tasks, write_function
from attnc.backends.tvm.cuda.launches import Launch
from attnc.backends.tvm.cuda.slots import BlockSlots
from attnc.backends.tvm.emit import Emitter
from attnc.backends.tvm.lower import map_dtype
from attnc.backends.tvm.tokens import map_tokens
from attnc.ir import build
from attnc.ir.nodes import Node
from attnc.plan import Pass, Plan, TokenMap
from attnc.templates.tvm.cuda.block import Block
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.cuda.stream import stream
from attnc.templates.tvm.walk import Sizes

TOKEN_THREADS = 128


@dataclass(frozen=True, slots=True)
class Lowered:
    """Functions of TIR in the order they are started, how, and what they are called with."""

    functions: dict[str, Any]
    launches: tuple[Launch, ...]
    layout: Layout


def lower_plan_to_kernels(plan: Plan, workload: Workload, shape: Shape) -> Lowered:
    """All kernels of a plan."""
    plan = replace(plan, passes=plan.passes or (Pass((), ()),))
    program = plan.program
    layout, dtypes = layout_of(plan, workload), dtypes_of(plan, workload)
    names = [parameter.name for parameter in program.parameters]
    functions: dict[str, Any] = {}
    launches: list[Launch] = []
    for number, token in enumerate(plan.tokens):
        name = f"attnc_map_{number}"

        def body(emitter: Emitter, block: Block, token: TokenMap = token) -> None:
            map_tokens(token, program, emitter, Tasks(block))

        functions[name], _ = write_function(name, TOKEN_THREADS, layout, dtypes, names, body)
        tokens = "M" if token.side == "query" else "N"
        launches.append(Launch(name, TOKEN_THREADS, 0, ((("B", token.per, tokens), TOKEN_THREADS),)))

    def passes(emitter: Emitter, block: Block) -> None:
        slots = BlockSlots(plan, analyse_mask(plan.mask), emitter, workload.dtype, workload.lse)
        slots.wide = wide_sums(plan) if workload.dtype == "f16" else frozenset()
        sizes = emitter.sizes
        stream(shape, slots, Sizes(sizes["B"], sizes["H"], sizes["M"], sizes["N"]), block)

    name = "attnc_attention"
    functions[name], shared = write_function(name, shape.threads, layout, dtypes, names, passes)
    launches.append(Launch(name, shape.threads, shared, ((("B", "H"), 1), (("M",), shape.rows))))
    return Lowered(functions, tuple(launches), layout)


def layout_of(plan: Plan, workload: Workload) -> Layout:
    """The arguments of each kernel of a plan."""
    program = plan.program
    inputs = [(f"input {source.name}", len(source.dims)) for source in program.inputs]
    maps = [(f"input {token.result.name}", len(token.result.dims)) for token in plan.tokens]
    lse = [("lse", 3)] if workload.lse else []
    tensors = [("q", 4), ("k", 4), ("v", 4), ("out", 4), *lse, *inputs, *maps]
    return Layout(program.extents, len(program.parameters), tuple(tensors))


def dtypes_of(plan: Plan, workload: Workload) -> list[str]:
    """Element types of the tensors of :func:`layout_of`."""
    maps = [map_dtype(token, workload) for token in plan.tokens]
    return [*[workload.dtype] * 4, *["f32"] * workload.lse, *workload.inputs, *maps]


def wide_sums(plan: Plan) -> frozenset[str]:
    """Names of sums whose weights may be too large for float16."""
    maxima: dict[Node, Node] = {
        build.state(one.name): one.term for step in plan.passes for one in step.statistics if one.op == "max"
    }
    sums = [one for step in plan.passes for one in step.accumulators]
    return frozenset(one.name for one in sums if not is_bounded(one.term, maxima))
