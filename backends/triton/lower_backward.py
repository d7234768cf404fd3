"""From a derived backward to a recipe: walks over keys and rows, maps of tokens, scatters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnc.analyse.gradient.backward import Backward, Contribution, Scatter, Sum, Walk, read_by
from attnc.analyse.gradient.derive import AT_ROW, ROW
from attnc.analyse.gradient.groups import is_grouped
from attnc.analyse.mask import analyse_mask
from attnc.analyse.mask.block_lists import BlockLists, block_lists_of
from attnc.backends.protocol import Workload
from attnc.backends.triton import slots
from attnc.backends.triton.adjoint import Prepared, prepare
from attnc.backends.triton.assembly import CACHE, TRITON_TYPES, Assembly, Lowered, Outputs, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import Config, GatherConfig, RegroupConfig
from attnc.backends.triton.gather import add_gather
from attnc.backends.triton.hopper.backward import WalkLowering
from attnc.backends.triton.hopper.backward_configs import WalkConfig
from attnc.backends.triton.hopper.backward_terms import cotangents
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import Arguments, Buffer, Extent, Launch, Recipe, Regroup, Value
from attnc.backends.triton.regroup import add_regrouped, add_regrouped_rows, add_sorting, bytes_of, regroup_of
from attnc.backends.triton.rewrites import dots_of, widths
from attnc.backends.triton.slots import SEEN, Finish, Functions, Over, StepResult
from attnc.backends.triton.split import Part, add_merge
from attnc.backends.triton.vectors import split
from attnc.ir import build
from attnc.ir.nodes import Apply, Dot, Input, Kind, Literal, Node, Read, Token
from attnc.ir.traverse import postorder, substitute
from attnc.plan import Accumulator, Pass, Statistic, TokenMap

LOWEST = -2.0e38
SETTLED = 1024
"""Places that are written at once."""


def lower_backward_to_recipe(
    backward: Backward, workload: Workload, configs: Mapping[str, Config], precision: str
) -> Lowered:
    """All kernels of a backward; ``configs`` are those of walks over ``keys`` and ``rows``, and of scatters."""
    program, element = backward.plan.program, TRITON_TYPES[workload.dtype]
    types = {"q": element, "k": element, "v": element}
    for declared, dtype in zip(program.inputs, workload.inputs, strict=True):
        types[declared.name] = TRITON_TYPES[dtype]
    for source in backward.reads:
        types[source.name] = element if source.name in ("out", "d_out") else "fp32"
    prepared = prepare(backward)
    listed = block_lists_of(prepared.mask) if isinstance(configs["keys"], RegroupConfig) else None
    mask = prepared.mask if listed is None else listed.rest
    assembly = Assembly(program, element, precision, analyse_mask(mask), types, lanes_of(backward))
    return _Lowering(backward, prepared, workload, configs, assembly, listed).lower()


def lanes_of(backward: Backward) -> dict[str, int]:
    """The widths of the vectors of tokens that a backward is given, by name."""
    D, E = widths(backward.plan.program)
    return {"q": D, "k": D, "v": E} | {
        source.name: static(source.dims[-1]) for source in backward.reads if len(source.dims) > 3
    }


@dataclass(slots=True)
class _Lowering:
    backward: Backward
    prepared: Prepared
    workload: Workload
    configs: Mapping[str, Config]
    assembly: Assembly
    lists: BlockLists | None = None
    listed: set[str] = field(default_factory=set)
    partial: int = 0
    """Bytes of the partial results of an entry."""
    seen_made: bool = False

    def lower(self) -> Lowered:
        program = self.backward.plan.program
        results = tuple((part.result.name, self.result_type(part)) for part in self.backward.contributions)
        self.assembly.types |= dict(results)
        for part in self.backward.contributions:
            if part.level != "pair" and _is_vector(part.result):
                self.assembly.widths[part.result.name] = static(part.result.dims[-1])
        if self.lists is not None:
            add_sorting(self.assembly, self.lists, self.configs["keys"].block_m)
        copies = self.copies()
        crossing = self.crossing()
        if crossing is not None:
            copies.pop(crossing.result.name, None)
        for step in self.prepared.steps:
            match step:
                case Walk(over="keys") if crossing is not None:
                    continue
                case TokenMap(expression=Read(input=source)) if source.name in copies:
                    continue
                case TokenMap():
                    self.token_map(step if crossing is None else self.scaled(step, crossing))
                case Walk(over=over):
                    self.walk(step, over, copies, crossing)
                case Scatter():
                    self.scatter(step)
        recipe = Recipe(
            tuple(self.assembly.launches),
            tuple(declared.name for declared in program.inputs),
            tuple(parameter.name for parameter in program.parameters),
            tuple(program.extents),
            self.assembly.layouts,
            (),
            tuple(source.name for source in self.backward.reads),
            results,
            regroup=self.regroup(),
            listed=program.listed.numbers.name if program.listed else "",
        )
        library = "hopper" if any(isinstance(config, WalkConfig) for config in self.configs.values()) else "triton"
        return Lowered(recipe, tuple(self.assembly.texts), library)

    def regroup(self) -> Regroup | None:
        if self.lists is None:
            return None
        return regroup_of(self.lists, self.configs["keys"].block_m, self.configs["rows"].block_n, self.partial)

    def crossing(self) -> Sum | None:
        """The sum over the keys that the walk over the rows adds up, if it does."""
        config = self.configs["rows"]
        if not (isinstance(config, WalkConfig) and config.fused):
            return None
        (walk,) = (step for step in self.prepared.steps if isinstance(step, Walk) and step.over == "keys")
        (one,) = walk.sums
        return one

    def scaled(self, step: TokenMap, crossing: Sum) -> TokenMap:
        """The map with the factor of a sum that was added up without it."""
        number = build.literal(self.prepared.numbers[crossing.result.name])
        reads = [x for x in postorder(step.expression) if isinstance(x, Read) and x.input == crossing.result]
        return replace(step, expression=substitute(step.expression, {x: build.apply("mul", x, number) for x in reads}))

    def result_type(self, part: Contribution) -> str:
        """The element type of q where the result can be the whole gradient of a token, else float32."""
        alone = sum(other.name == part.name for other in self.backward.contributions) == 1
        whole = alone and isinstance(part.at, Token) and _is_vector(part.result)
        return self.assembly.element if whole else "fp32"

    def copies(self) -> dict[str, str]:
        """Sums that are results as they are, and which: walks write those directly."""
        uses = Counter(name for step in self.prepared.steps for name in read_by(step))
        found = {}
        for step in self.prepared.steps:
            match step:
                case TokenMap(expression=Read(input=source), result=result) if (
                    uses[source.name] == 1 and len(source.dims) == len(result.dims) and self.is_sum(source)
                ):
                    found[source.name] = result.name
        return found

    def is_sum(self, source: Input) -> bool:
        listed = self.backward.plan.program.listed is not None  # sums over rows are added up in any order, in float32
        walks = (x for x in self.prepared.steps if isinstance(x, Walk) and not (listed and x.over == "rows"))
        return any(one.result == source for walk in walks for one in walk.sums)

    # Maps of tokens

    def token_map(self, step: TokenMap) -> None:
        """The kernel of a map: 0 in rows that see nothing, unless weights are set to 0 after all their factors met.

        Kernels for Hopper set early factors to 0, and multiply those by what a map may hold.
        """
        result, expression = step.result, step.expression
        buffers: tuple[Buffer, ...] = ()
        if result.name not in self.assembly.types:
            buffers = (self.assembly.buffer(result, self.assembly.element if _is_vector(result) else "fp32"),)
        name = f"map_{len(self.assembly.launches)}_{result.name}"
        masks_factors = any(isinstance(config, WalkConfig) for config in self.configs.values())
        selected = step.side == "key" or (bool(buffers) and not _is_vector(result) and not masks_factors)
        seen = None if selected else self.seen(expression)
        self.assembly.token_kernel(name, result.name, expression, step.side, step.per, seen, buffers)

    def seen(self, expression: Node) -> Node | None:
        """The condition that a row has seen a key; ``None`` where the value is 0 anyhow in those that have not."""
        given = {source.name for source in self.backward.reads}
        if isinstance(self.prepared.mask, Literal) and self.prepared.mask.value:
            return None
        if not any(isinstance(node, Read) and node.input.name in given for node in postorder(expression)):
            return None
        for step in self.backward.plan.passes:
            for one in step.statistics:
                if one.op == "sum" and f"saved_{one.name}" in given and _is_exponential(one.term):
                    saved = build.read(Input(f"saved_{one.name}", Kind.REAL, ROW), AT_ROW)
                    return build.apply("gt", saved, build.literal(0.0))
        source = Input("rows.seen", Kind.REAL, ROW)
        if not self.seen_made:
            self.seen_made = True
            self.mark_seen(source)
        return build.apply("gt", build.read(source, AT_ROW), build.literal(LOWEST))

    def mark_seen(self, source: Input) -> None:
        """A walk over the mask alone."""
        self.tiles("keys")
        functions, dots, reads = self.pair_slots("seen", "keys", ())
        made = slots.add_step(functions, Pass((), ()), True, dots, reads)
        finish = Finish((SEEN,), (), reads, None)
        config = self.configs["keys"]
        ending = self.assembly.functions("seen_merge") if isinstance(config, RegroupConfig) else functions
        slots.add_finish(ending, finish, None, 0)
        slots.add_finish_rows(ending, finish, (SEEN,), {}, None)
        buffer = self.assembly.buffer(source, "fp32")
        table = Chunks("keys", dots, Pass((), ()), made, ())
        outputs = Outputs((), (), (source.name,))
        if isinstance(config, RegroupConfig):
            self.regrouped("seen", config, Pass((), ()), (functions, ending), table, [LOWEST], outputs, (buffer,))
            return
        self.launch("seen", "keys", functions, table, [LOWEST], outputs, (buffer,))

    # Walks and scatters

    def tiles(self, over: Over, name: str = "") -> None:
        name = name or over
        if self.lists is None and name not in self.listed and not isinstance(self.configs[over], GatherConfig):
            self.listed.add(name)
            self.assembly.tile_lists(over, self.configs[name], name)

    def pair_slots(
        self, name: str, over: Over, terms: tuple[Node, ...]
    ) -> tuple[Functions, tuple[Dot, ...], tuple[Read, ...]]:
        """The slots of everything that visits pairs, and the dots and outer reads they share."""
        functions = self.assembly.functions(name)
        mask = self.assembly.visibility.mask
        dots = dots_of((*terms, mask))
        reads = slots.outer_reads(over, *terms, mask)
        slots.add_group(functions, self.backward.plan.program.group)
        if self.lists is None and not isinstance(self.configs[over], GatherConfig):
            self.assembly.add_ranges(functions, over)
        slots.add_rows(functions, reads)
        slots.add_visible(functions, mask, dots, reads)
        return functions, dots, reads

    def walk(self, step: Walk, over: Over, copies: dict[str, str], crossing: Sum | None) -> None:
        self.tiles(over)
        name, numbers = f"{over}_{len(self.assembly.launches)}", self.prepared.numbers
        config = self.configs[over]
        if isinstance(config, WalkConfig):
            late = cotangents(self.prepared.steps)
            lowering = WalkLowering(self.assembly, self.prepared.mask, numbers, late)
            lowering.lower(name, step, over, config, copies, crossing)
            return
        scalars = [one for one in step.sums if one.value is None]
        vectors = [one for one in step.sums if one.value is not None]
        sums = Pass(
            tuple(Statistic(one.result.name, "sum", one.term) for one in scalars),
            tuple(Accumulator(one.result.name, one.term, one.value) for one in vectors if one.value is not None),
        )
        functions, dots, reads = self.pair_slots(name, over, tuple(one.term for one in step.sums))
        made = slots.add_step(functions, sums, False, dots, reads)
        is_half = self.workload.dtype == "f16"
        wide = [is_half and one.name not in self.prepared.bounded for one in sums.accumulators]
        table = Chunks(over, dots, sums, made, wide)
        buffers = tuple(
            self.assembly.buffer(one.result, "fp32")
            for one in step.sums
            if one.result.name not in copies
        )  # fmt: skip
        rows: list[tuple[int, ...]] = []
        factors: list[float] = []
        outs: list[tuple[str, int]] = []
        for one, places in zip(vectors, table.places, strict=True):
            width = static(one.result.dims[-1])
            for chunk, place in zip(split(width), places, strict=True):
                rows.append((*chunk, place, 1, 1, len(outs), 1))
                factors.append(numbers[one.result.name])
            outs.append((copies.get(one.result.name, one.result.name), width))
        names = tuple(copies.get(one.result.name, one.result.name) for one in scalars)
        outputs = Outputs(tuple(outs), tuple(rows), names)
        starts = [0.0] * len(scalars)
        ending = functions
        if isinstance(config, RegroupConfig) and over == "keys":
            ending = self.assembly.functions(f"{name}_merge")
        slots.add_scaled_finish(ending, factors, [numbers[one.result.name] for one in scalars])
        if over == "rows" and isinstance(config, GatherConfig):
            buffers = tuple(replace(buffer, zeroed=True) for buffer in buffers)
        if not isinstance(config, RegroupConfig):
            self.launch(name, over, functions, table, starts, outputs, buffers, is_grouped(step))
        elif over == "keys":
            self.regrouped(name, config, sums, (functions, ending), table, starts, outputs, buffers)
        else:
            assert self.lists is not None, "only lists are regrouped"
            add_regrouped_rows(
                self.assembly, name, config, functions, table, starts, outputs, buffers, self.lists, is_grouped(step)
            )  # fmt: skip

    def launch(
        self,
        name: str,
        over: Over,
        functions: Functions,
        table: Chunks,
        starts: Sequence[float],
        outputs: Outputs,
        buffers: tuple[Buffer, ...],
        grouped: bool = False,
    ) -> None:
        """A walk whose slots are written."""
        config = self.configs[over]
        if isinstance(config, GatherConfig):
            add_gather(self.assembly, name, over, config, functions, table, starts, outputs, buffers)
        else:
            self.assembly.walk(name, over, config, functions, table, starts, outputs, buffers, grouped, CACHE)

    def regrouped(
        self,
        name: str,
        config: RegroupConfig,
        sums: Pass,
        functions: tuple[Functions, Functions],
        table: Chunks,
        starts: list[float],
        outputs: Outputs,
        buffers: tuple[Buffer, ...],
    ) -> None:
        """A walk over the keys in lists; the second ``functions`` finish, the first do the rest."""
        assert self.lists is not None, "only lists are regrouped"
        walk, ending = functions
        slots.add_group(ending, self.backward.plan.program.group)
        slots.add_rows(ending, ())
        shifted = add_merge(ending, sums, len(starts) > len(sums.statistics), ())
        lanes = [static(one.value.width) for one in sums.accumulators]
        part = Part(sums, walk, ending, table, starts, outputs, shifted, lanes, buffers)
        add_regrouped(self.assembly, name, config, part, self.lists)
        self.partial = max(self.partial, bytes_of(self.assembly, part))

    def scatter(self, step: Scatter) -> None:
        self.tiles("keys", "pairs")
        result, config = step.result, self.configs["pairs"]
        total, largest = f"{result.name}.total", f"{result.name}.largest"
        self.assembly.types |= {total: "i64", largest: "i32"}
        scale = self.prepared.numbers[result.name]
        term = step.term if scale == 1.0 else build.apply("mul", step.term, build.literal(scale))
        zeroed = (
            Buffer(largest, "i32", (Extent("B"), Extent("H")), zeroed=True),
            Buffer(total, "i64", (), like=result.name, zeroed=True),
        )
        head_size = Value("i64", "stride", result.name, 1)
        for measure in (True, False):
            name = f"{'measure' if measure else 'scatter'}_{result.name}"
            functions, dots, reads = self.pair_slots(name, "keys", (term, *step.indices))
            slots.add_term(functions, term, step.indices, result, dots, reads)
            table = Chunks("keys", dots, Pass((), ()), StepResult((), ()), ())
            arguments: dict[str, Arguments] = {
                **self.assembly.walk_arguments("pairs", table, functions),
                "total": Value("*i64", "tensor", total, divisible=16),
                "largest": Value("*i32", "tensor", largest, divisible=16),
                "head_size": head_size,
            }
            order = ("outers", "inners", "lists", "env", "total", "largest", "head_size", "H", "M", "N")
            self.assembly.add(
                Launch(
                    name,
                    "scatter",
                    {key: arguments[key] for key in order},
                    {**self.assembly.walk_constants("keys", table, config), "MEASURE": measure},
                    functions.names,
                    (Extent("M", config.block_m), Extent("H"), Extent("B")),
                    zeroed if measure else (),
                    warps=config.warps,
                    stages=config.stages,
                ),
                functions,
            )
        self.assembly.launches.append(
            Launch(
                f"settle_{result.name}",
                "settle",
                {
                    "out": Value("*fp32", "tensor", result.name, divisible=16),
                    "total": Value("*i64", "tensor", total, divisible=16),
                    "largest": Value("*i32", "tensor", largest, divisible=16),
                    "head_size": head_size,
                    "M": size_value("M"),
                    "N": size_value("N"),
                },
                {"BLOCK": SETTLED},
                {},
                (Extent("H"), Extent("B")),
            )
        )


def _is_vector(source: Input) -> bool:
    """Whether the result of a map or walk has lanes."""
    return len(source.dims) > 3


def _is_exponential(term: Node) -> bool:
    return isinstance(term, Apply) and term.op == "exp"
