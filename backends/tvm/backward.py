"""From a derived backward to one TIR function: token maps, walks and scatters, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any
from typing import Literal as OneOf

from attnc.analyse.gradient.backward import Backward, Scatter, Step, Sum, Walk, read_by, results_of
from attnc.analyse.gradient.hoist import hoist_backward
from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import Config, Workload
from attnc.backends.tvm.arguments import PARTS, Layout
from attnc.backends.tvm.emit import Emitter, width_of
from attnc.backends.tvm.lower import shape_of, write_function
from attnc.backends.tvm.machine import Machine
from attnc.backends.tvm.tokens import map_tokens
from attnc.backends.tvm.walks import Over, WalkSlots, WalkTask
from attnc.ir import build
from attnc.ir.nodes import Apply, Input, Kind, Literal, Node, Read
from attnc.ir.traverse import contains
from attnc.plan import TokenMap
from attnc.templates.tvm.crossed import Cross, stream_crossed
from attnc.templates.tvm.scatter import scatter
from attnc.templates.tvm.stream import stream
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.walk import Sizes

Side = OneOf["query", "key"]
OVER: dict[Side, Over] = {"query": "keys", "key": "rows"}
SIDE: dict[Over, Side] = {over: side for side, over in OVER.items()}
TOKENS = {"query": "M", "key": "N"}


@dataclass(frozen=True, slots=True)
class Arranged:
    """A backward as it is compiled.

    Attributes:
        backward: with token maps, and steps in order.
        own: what is neither handed in nor a result, with its element type.
        seen: the sides whose first walk writes a flag for each token: whether it is in a visible pair.
        guarded: names of token maps that are 0 where it is in none.
        crossed: names of sums over the keys that the walk over the rows after them adds up.
    """

    backward: Backward
    own: tuple[tuple[Input, str], ...]
    seen: frozenset[Side]
    guarded: frozenset[str]
    crossed: frozenset[str]

    def layout(self) -> Layout:
        """The arguments of the function."""
        backward = self.backward
        program = backward.plan.program
        inputs = (*program.inputs, *backward.reads, *backward.results, *(source for source, _ in self.own))
        tensors = (("q", 4), ("k", 4), ("v", 4), *((f"input {x.name}", len(x.dims)) for x in inputs))
        return Layout(program.extents, len(program.parameters), tensors)

    def dtypes(self, workload: Workload) -> list[str]:
        """Element types of the tensors of the layout."""
        wide = _wide(workload)
        reads = [workload.dtype if source.name in ("out", "d_out") else wide for source in self.backward.reads]
        results = [wide] * len(self.backward.results)
        return [*[workload.dtype] * 3, *workload.inputs, *reads, *results, *(dtype for _, dtype in self.own)]


def arrange(backward: Backward, workload: Workload) -> Arranged:
    """Hoist, and tell tokens in no visible pair from others where their gradient is more than a sum over pairs."""
    backward = hoist_backward(backward)
    results = {result.name for result in backward.results}
    mask = backward.plan.mask
    everything = isinstance(mask, Literal) and mask.value is True
    guarded = frozenset[str]() if everything else frozenset(results | _risky(backward))
    steps: list[Step] = []
    seen = set[Side]()
    for step in backward.steps:
        if isinstance(step, TokenMap) and step.result.name in guarded and step.side not in seen:
            seen.add(step.side)
            if not any(isinstance(other, Walk) and other.over == OVER[step.side] for other in steps):
                steps.append(Walk(OVER[step.side], ()))
        steps.append(step)
    computed = _computed(backward)
    own = [
        (result, _dtype_of(step, computed, workload))
        for step in steps
        for result in results_of(step)
        if result.name not in results
    ]
    own += [(flag_of(side), "bool") for side in sorted(seen)]
    crossed = [one for first, second in pairwise(steps) for one in _crossed(first, second, seen)]
    own += [(parts_of_sum(one), _wide(workload)) for one in crossed]
    names = frozenset(one.result.name for one in crossed)
    return Arranged(replace(backward, steps=tuple(steps)), tuple(own), frozenset(seen), guarded, names)


def _crossed(first: Step, second: Step, seen: set[Side]) -> tuple[Sum, ...]:
    """The sums of a walk over the keys, if each is of terms that the walk over the rows after it sums too.

    They are not where rows must be told from others that see nothing: only a walk of theirs does.
    """
    if not (isinstance(first, Walk) and isinstance(second, Walk) and (first.over, second.over) == ("keys", "rows")):
        return ()
    shared = {one.term for one in second.sums if one.value is not None}
    free = read_by(second).isdisjoint(one.result.name for one in first.sums)
    fits = all(one.value is not None and one.term in shared and "i" not in one.value.axes for one in first.sums)
    return first.sums if free and fits and "query" not in seen else ()


def _computed(backward: Backward) -> set[str]:
    """Names of what the forward and the walks of the backward compute."""
    names = {source.name for source in backward.reads}
    return names | {x.name for step in backward.steps if not isinstance(step, TokenMap) for x in results_of(step)}


def _risky(backward: Backward) -> set[str]:
    """Vectors that are summed over the rows and may be infinite in rows that see nothing, where the states are 0.

    A weight of 0 would not hide them.
    """
    values = {one.value for step in backward.steps if isinstance(step, Walk) for one in step.sums}
    summed = {value.input.name for value in values if isinstance(value, Read)}
    computed = _computed(backward)
    return {
        step.result.name
        for step in backward.steps
        if isinstance(step, TokenMap)
        and step.result.name in summed
        and contains(step.expression, lambda node: isinstance(node, Read) and node.input.name in computed)
        and contains(step.expression, _may_overflow)
    }


def _may_overflow(node: Node) -> bool:
    match node:
        case Apply(op="div", args=(_, divisor)):
            return not isinstance(divisor, Literal)
        case Apply(op=op):
            return op in ("exp", "log", "mod", "pow", "rsqrt", "sqrt")
    return False


def _dtype_of(step: Step, computed: set[str], workload: Workload) -> str:
    """Element type of what a step writes: as in the forward, or wide if it depends on anything computed."""
    if not isinstance(step, TokenMap) or not step.expression.is_vector:
        return _wide(workload)
    late = contains(step.expression, lambda node: isinstance(node, Read) and node.input.name in computed)
    return _wide(workload) if late else workload.dtype


def _wide(workload: Workload) -> str:
    return "f64" if workload.dtype == "f64" else "f32"


def flag_of(side: Side) -> Input:
    """Of each token of ``side``: whether it is in a visible pair."""
    dims = tuple(build.size(name) for name in ("B", "H", TOKENS[side]))
    return Input(f"seen {side}", Kind.BOOL, dims)


def parts_of_sum(one: Sum) -> Input:
    """The parts of a sum over the keys."""
    return Input(f"parts {one.result.name}", Kind.REAL, (build.size(PARTS), *one.result.dims))


def lower_backward_to_tir(
    arranged: Arranged, workload: Workload, machine: Machine, config: Config
) -> tuple[Any, Layout]:
    """The function as a ``PrimFunc`` of one pointer, and what it points to."""
    backward = arranged.backward
    plan = backward.plan
    visibility = analyse_mask(plan.mask)
    shape = shape_of(machine, "float64" if workload.dtype == "f64" else "float32", config)

    def body(emitter: Emitter, tasks: Tasks) -> None:
        sizes = emitter.sizes
        over_keys = Sizes(sizes["B"], sizes["H"], sizes["M"], sizes["N"])
        over_rows = Sizes(sizes["B"], sizes["H"], sizes["N"], sizes["M"])
        unseen = set(arranged.seen)
        crossed: list[Sum] = []
        for step in backward.steps:
            if isinstance(step, TokenMap):
                flags = emitter.input(flag_of(step.side)) if step.result.name in arranged.guarded else None
                map_tokens(step, plan.program, emitter, tasks, flags)
                continue
            if isinstance(step, Walk) and step.sums and step.sums[0].result.name in arranged.crossed:
                crossed = list(step.sums)
                continue
            side = SIDE[step.over] if isinstance(step, Walk) else None
            flags = emitter.input(flag_of(side)) if side in unseen else None
            unseen.discard(side)
            slots = WalkSlots(plan, step, visibility, emitter, workload.dtype, flags)
            if isinstance(step, Scatter):
                apart = any(at in (build.index("row"), build.index("i")) for at in step.indices)
                target = emitter.input(step.result).memory
                scatter(shape, slots, over_keys, target, tasks, apart=apart)
            elif crossed:
                stream_crossed(shape, slots, over_rows, tasks, [_cross(one, step, emitter) for one in crossed])
                crossed = []
            else:
                stream(shape, slots, over_keys if side == "query" else over_rows, tasks, few=False)

    return write_function(arranged.layout(), arranged.dtypes(workload), plan.program, shape, machine, body)


def _cross(one: Sum, walk: Walk, emitter: Emitter) -> Cross:
    """A sum over the keys as the template has it, beside those of a walk over the rows."""
    assert one.value is not None
    parts, whole = emitter.input(parts_of_sum(one)), emitter.input(one.result)
    terms = [other.term for other in walk.sums if other.value is not None]
    return Cross(
        plane=terms.index(one.term),
        width=width_of(one.value.width),
        read=partial(WalkTask.outer_elements, vector=one.value),
        part=lambda *at: (parts.memory, parts.offset(*at)),
        whole=lambda *at: (whole.memory, whole.offset(*at)),
    )
