"""From a plan to a recipe: which kernels run, what is in their slots, and what they are called with."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.analyse.bounded import is_bounded
from attnc.analyse.invariance import free_maxima
from attnc.analyse.mask import analyse_mask
from attnc.analyse.mask.beyond import hides_beyond
from attnc.analyse.mask.block_lists import BlockLists, block_lists_of
from attnc.backends.protocol import Workload
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import TRITON_TYPES, Assembly, Lowered, Outputs
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import Config, GatherConfig, RegroupConfig, SplitConfig
from attnc.backends.triton.gather import add_gather
from attnc.backends.triton.hopper.configs import HopperConfig
from attnc.backends.triton.hopper.walk import Walk, add_walk
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import Recipe, Regroup, Split
from attnc.backends.triton.regroup import add_regrouped, add_sorting, bytes_of, regroup_of
from attnc.backends.triton.rewrites import (
    dots_of,
    rewritten,
    vanishes,
    widths,
    with_outer_factors,
    writes_output,
)
from attnc.backends.triton.slots import SEEN, Finish
from attnc.backends.triton.split import Part, add_merge, add_split
from attnc.backends.triton.vectors import split
from attnc.ir import build
from attnc.ir.nodes import Input, Kind, Literal, Node, Read, State
from attnc.ir.traverse import postorder, rewrite
from attnc.plan import Accumulator, Pass, Plan, TokenMap

LOWEST = -2.0e38


def lower_plan_to_recipe(plan: Plan, workload: Workload, config: Config, precision: str) -> Lowered:
    """All kernels of a plan. ``precision`` is how products of float32 are taken."""
    program, element = plan.program, TRITON_TYPES[workload.dtype]
    types = {"q": element, "k": element, "v": element, "out": element, "lse": "fp32"}
    for declared, dtype in zip(program.inputs, workload.inputs, strict=True):
        types[declared.name] = TRITON_TYPES[dtype]
    D, E = widths(program)
    lanes = {"q": D, "k": D, "v": E, "out": static(plan.output.width)}
    listed = block_lists_of(plan.mask) if isinstance(config, RegroupConfig) else None
    mask = plan.mask if listed is None else listed.rest
    assembly = Assembly(program, element, precision, analyse_mask(mask), types, lanes)
    return _Lowering(plan, workload, config, assembly, listed).lower()


def _row_numbers(name: str) -> Input:
    """The buffer that a statistic is kept in between passes."""
    return Input(f"state.{name}", Kind.REAL, (build.size("B"), build.size("H"), build.size("M")))


def _row_vectors(name: str, width: Node) -> Input:
    return Input(f"state.{name}", Kind.REAL, (build.size("B"), build.size("H"), build.size("M"), width))


@dataclass(slots=True)
class _Lowering:
    plan: Plan
    workload: Workload
    config: Config
    assembly: Assembly
    listed: BlockLists | None = None
    finals: dict[Node, Node] = field(default_factory=dict)
    maxima: dict[Node, Node] = field(default_factory=dict)
    split: Split | None = None
    regroup: Regroup | None = None

    def lower(self) -> Lowered:
        program = self.plan.program
        for one in self.plan.tokens:
            self.token_map(one)
        if self.listed is not None:
            add_sorting(self.assembly, self.listed, self.config.block_m)
        elif not isinstance(self.config, SplitConfig | GatherConfig):
            self.assembly.tile_lists("keys", self.config)
        passes = self.passes()
        for at, step in enumerate(passes):
            self.walk(at, step, passes)
        if not self.lanewise:
            self.output_kernel()
        recipe = Recipe(
            tuple(self.assembly.launches),
            tuple(declared.name for declared in program.inputs),
            tuple(parameter.name for parameter in program.parameters),
            tuple(program.extents),
            self.assembly.layouts,
            tuple(f"saved.{name}" for name in self.workload.saved),
            split=self.split,
            regroup=self.regroup,
            listed=program.listed.numbers.name if program.listed else "",
        )
        library = "hopper" if isinstance(self.config, HopperConfig) else "triton"
        return Lowered(recipe, tuple(self.assembly.texts), library, library)

    @property
    def lanewise(self) -> bool:
        """Whether the last pass can write the output."""
        return writes_output(self.plan.output, self.passes()[-1])

    def passes(self) -> tuple[Pass, ...]:
        """The passes of the plan; at least one, so that rows without a visible key are told apart."""
        return self.plan.passes or (Pass((), ()),)

    # Token maps and outputs that mix lanes

    def token_map(self, one: TokenMap) -> None:
        buffer = self.assembly.buffer(one.result, self.assembly.element if one.expression.is_vector else "fp32")
        name = f"map_{len(self.assembly.launches)}"
        self.assembly.token_kernel(name, one.result.name, one.expression, one.side, one.per, None, (buffer,))

    def final(self, node: Node) -> Node:
        """``node`` with the states of earlier passes as reads of what they left."""
        return rewrite(node, lambda inner: self.finals.get(inner, inner))

    def output_kernel(self) -> None:
        seen, output = self.seen(), self.final(self.plan.output)
        self.assembly.token_kernel("output", "out", output, "query", "H", seen and self.final(seen))

    # Walks over the keys

    def seen(self) -> Node | None:
        """The condition that a row has seen a key; ``None`` where all have, or the output is 0 where none is."""
        mask = self.plan.mask
        if isinstance(mask, Literal) and mask.value:
            return None
        if self.plan.lse is None and self.lanewise and vanishes(self.plan.output):
            return None
        for step in self.passes():
            for one in step.statistics:
                if one.op == "max":
                    return _or_nan(build.apply("gt", build.state(one.name), build.literal(LOWEST)), step)
                if isinstance(one.term, Literal) and one.term.value > 0 and one.shift is None:
                    return build.apply("gt", build.state(one.name), build.literal(0.0))
        return build.apply("gt", build.state(SEEN), build.literal(LOWEST))

    def walk(self, at: int, step: Pass, passes: tuple[Pass, ...]) -> None:
        last = at == len(passes) - 1
        step = with_outer_factors(rewritten(step, self.finals))
        functions = self.assembly.functions(f"pass{at}")
        mask = self.assembly.visibility.mask
        terms = [one.term for one in step.parts]
        shifts = [one.shift for one in step.parts if one.shift is not None]
        dots = dots_of((*terms, mask))
        reads = slots.outer_reads("keys", *terms, *shifts, mask)
        seen = self.seen() if last else None
        marks = seen is not None and build.state(SEEN) in seen.children
        slots.add_group(functions, self.plan.program.group)
        if self.listed is None and not isinstance(self.config, GatherConfig):
            self.assembly.add_ranges(functions, "keys")
        slots.add_rows(functions, reads)
        slots.add_visible(functions, mask, dots, reads)
        result = slots.add_step(functions, step, marks, dots, reads, free_maxima(self.plan))

        names = (*(one.name for one in step.statistics), *((SEEN,) if marks else ()))
        sums = tuple(one.name for one in step.accumulators)
        final = last and self.lanewise
        output = self.final(self.plan.output) if final else None
        lse = None
        if last and self.workload.lse:
            assert self.plan.lse is not None, "the log-sum-exp was asked for, but the weight has none"
            lse = self.final(self.plan.lse)
        kept = () if final else names
        saved = {one.name: one.op == "max" for one in step.statistics if one.name in self.workload.saved}
        saved_sums = [name for name in sums if name in self.workload.saved]
        finish = Finish(names, sums, reads, seen and self.final(seen))
        out_width = static(self.plan.output.width) if final else _width(step)
        out_split = split(out_width) if out_width else []
        ending = functions
        if isinstance(self.config, SplitConfig | RegroupConfig):
            ending = self.assembly.functions("combine")
            slots.add_group(ending, self.plan.program.group)
            slots.add_rows(ending, reads)
        slots.add_finish(ending, finish, output, sum(padded for _, _, padded in out_split), saved_sums)
        slots.add_finish_rows(ending, finish, kept, saved, lse)

        keep = [_row_numbers(name) for name in kept]
        vectors = [] if final else [_row_vectors(one.name, _literal_width(one)) for one in step.accumulators]
        buffers = tuple(self.assembly.buffer(source, "fp32") for source in (*keep, *vectors))
        for name in (*saved, *saved_sums):
            self.assembly.types[f"saved.{name}"] = "fp32"
        outs = (*(("out",) if final else (source.name for source in vectors)), *(f"saved.{x}" for x in saved_sums))
        numbers = (*(x.name for x in keep), *(f"saved.{x}" for x in saved), *(("lse",) if lse is not None else ()))
        self.maxima |= {build.state(one.name): one.term for one in step.statistics if one.op == "max"}
        is_half = self.workload.dtype == "f16"
        wide = [is_half and not is_bounded(one.term, self.maxima) for one in step.accumulators]
        table = Chunks("keys", dots, step, result, wide)
        outputs = Outputs(
            tuple((name, out_width) for name in outs),
            tuple(
                (*chunk, c, len(out_split), len(step.accumulators), 0, len(outs)) for c, chunk in enumerate(out_split)
            ),
            numbers,
        )
        starts = [LOWEST if x == SEEN or step.statistics[n].op == "max" else 0.0 for n, x in enumerate(names)]
        if isinstance(self.config, HopperConfig):
            added = [one.op == "sum" for one in step.statistics] + [False] * marks
            by_key = any(isinstance(x, Read) and "j" in x.axes for x in postorder(*terms, mask))
            walk = Walk(functions, table, starts, added, outputs, buffers, by_key or not hides_beyond(mask))
            add_walk(self.assembly, f"pass{at}", self.config, walk)
        elif isinstance(self.config, SplitConfig):
            shifted = add_merge(ending, step, marks, reads)
            part = Part(step, functions, ending, table, starts, outputs, shifted)
            self.split = add_split(self.assembly, f"pass{at}", self.config, part)
        elif isinstance(self.config, GatherConfig):
            add_gather(self.assembly, f"pass{at}", "keys", self.config, functions, table, starts, outputs, buffers)
        elif isinstance(self.config, RegroupConfig):
            assert self.listed is not None, "only lists are regrouped"
            lanes = [static(one.value.width) for one in step.accumulators]
            shifted = add_merge(ending, step, marks, reads)
            part = Part(step, functions, ending, table, starts, outputs, shifted, lanes, buffers)
            add_regrouped(self.assembly, f"pass{at}", self.config, part, self.listed)
            self.regroup = regroup_of(self.listed, self.config.block_m, 0, bytes_of(self.assembly, part))
        else:
            self.assembly.walk(f"pass{at}", "keys", self.config, functions, table, starts, outputs, buffers)
        self.leave(step, kept, keep, vectors)

    def leave(self, step: Pass, kept: tuple[str, ...], keep: list[Input], vectors: list[Input]) -> None:
        """Let later kernels read the states of a pass where it left them."""
        row = (build.index("b"), build.index("h"), build.index("row"))
        for source, name in zip(keep, kept, strict=True):
            self.finals[build.state(name)] = kept_number = build.read(source, row)
            if build.state(name) in self.maxima:
                self.maxima[kept_number] = self.maxima[build.state(name)]
        for source, one in zip(vectors, step.accumulators, strict=False):
            for node in postorder(self.plan.output):
                if isinstance(node, State) and node.name == one.name:
                    self.finals[node] = build.read(source, (*row, None))


def _or_nan(seen: Node, step: Pass) -> Node:
    """``seen``, or a sum of the pass is not a number: a maximum passes over keys whose score is none."""
    sums = [build.state(one.name) for one in step.statistics if one.op == "sum"]
    return build.apply("or", seen, build.apply("ne", sums[0], sums[0])) if sums else seen


def _literal_width(one: Accumulator) -> Node:
    assert one.value.width is not None
    return one.value.width


def _width(step: Pass) -> int:
    return static(step.accumulators[0].value.width) if step.accumulators else 0
