"""From a plan to a recipe: which kernels run, what is in their slots, and what they are called with."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.analyse.mask import analyse_mask
from attnc.analyse.visibility import Visibility
from attnc.backends.protocol import Workload
from attnc.backends.triton import slots
from attnc.backends.triton.chunks import Chunks, Tensors
from attnc.backends.triton.configs import Config
from attnc.backends.triton.environment import Environment
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import Arguments, Buffer, Extent, Launch, Layout, Recipe, Value
from attnc.backends.triton.rewrites import dots_of, is_bounded, is_lanewise, rewritten, token_read, vanishes, widths
from attnc.backends.triton.slots import SEEN, Finish, Functions
from attnc.backends.triton.vectors import split
from attnc.ir import build
from attnc.ir.nodes import Input, Kind, Literal, Node, Size, State
from attnc.ir.traverse import postorder, rewrite
from attnc.plan import Pass, Plan, TokenMap

SIZES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "f16": 2, "bf16": 2, "bool": 1}
TRITON_TYPES = {"i32": "i32", "i64": "i64", "f32": "fp32", "f64": "fp64", "f16": "fp16", "bf16": "bf16", "bool": "i1"}
LOWEST = -2.0e38
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Lowered:
    """A recipe, and the text of the slot functions its kernels are made with."""

    recipe: Recipe
    functions: tuple[str, ...]


def lower_plan_to_recipe(plan: Plan, workload: Workload, config: Config, precision: str) -> Lowered:
    """All kernels of a plan. ``precision`` is how products of float32 are taken."""
    return _Lowering(plan, workload, config, precision, analyse_mask(plan.mask)).lower()


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
    precision: str
    visibility: Visibility
    types: dict[str, str] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    finals: dict[Node, Node] = field(default_factory=dict)
    maxima: dict[Node, Node] = field(default_factory=dict)

    def lower(self) -> Lowered:
        program, element = self.plan.program, TRITON_TYPES[self.workload.dtype]
        self.types = {"q": element, "k": element, "v": element, "out": element, "lse": "fp32"}
        for declared, dtype in zip(program.inputs, self.workload.inputs, strict=True):
            self.types[declared.name] = TRITON_TYPES[dtype]
        for one in self.plan.tokens:
            self.token_map(one)
        if not self.visibility.by_ranges:
            self.tile_lists()
        passes = self.passes()
        for at, step in enumerate(passes):
            self.walk(at, step, passes)
        if not self.lanewise:
            self.output_kernel()
        recipe = Recipe(
            tuple(self.launches),
            tuple(declared.name for declared in program.inputs),
            tuple(parameter.name for parameter in program.parameters),
            tuple(program.extents),
            self.layouts,
        )
        return Lowered(recipe, tuple(self.texts))

    @property
    def lanewise(self) -> bool:
        """Whether the last pass can write the output: its accumulators have the lanes the output has."""
        widths = {static(one.value.width) for one in self.passes()[-1].accumulators}
        return widths == {static(self.plan.output.width)} and is_lanewise(self.plan.output)

    def passes(self) -> tuple[Pass, ...]:
        """The passes of the plan; at least one, so that rows without a visible key are told apart."""
        return self.plan.passes or (Pass((), ()),)

    def functions(self, prefix: str) -> Functions:
        return Functions(prefix, Environment(self.types), self.plan.program.spans)

    def spread_shape(self, source: Input) -> tuple[Extent, ...]:
        return tuple(Extent(int(d.value) if isinstance(d, Literal) else _name(d)) for d in source.dims)

    # Vectors that lie in tensors

    def tensor(self, name: str, width: int | None = None) -> tuple[Value, ...]:
        """Address, and strides of batch row, head and token; what the kernels take for granted of them."""
        size = SIZES[self.workload.dtype] if self.types[name] != "fp32" else 4
        layout = self.layouts.get(name)
        if layout is None:
            align = _power_of_two(width * size, 16) if width else 16
            layout = self.layouts[name] = Layout(align)
        step = max(1, layout.align // size)
        kind = f"*{self.types[name]}"
        return (
            Value(kind, "tensor", name, divisible=layout.align),
            Value("i64", "stride", name, 0, step),
            Value("i64", "stride", name, 1, step),
            Value("i32", "stride", name, 2, step),
        )

    def width_of(self, name: str) -> int:
        assert self.plan.program.widths is not None
        D, E = widths(self.plan.program)
        return {"q": D, "k": D, "v": E, "out": static(self.plan.output.width)}.get(name) or next(
            static(one.result.dims[-1]) for one in self.plan.tokens if one.result.name == name
        )

    # Token maps and outputs that mix lanes

    def token_map(self, one: TokenMap) -> None:
        is_vector = one.expression.is_vector
        kind = TRITON_TYPES[self.workload.dtype] if is_vector else "fp32"
        name = one.result.name
        self.types[name] = kind
        width = static(one.expression.width) if is_vector else 0
        extents = self.spread_shape(one.result)
        shape = extents if is_vector else (*extents, Extent(1))
        self.layouts[name] = Layout(_power_of_two(width * SIZES[self.workload.dtype], 16) if is_vector else 4)
        buffer = Buffer(name, kind, shape)
        self.token_kernel(f"map_{len(self.launches)}", name, one.expression, one.side, one.per, None, (buffer,))

    def final(self, node: Node) -> Node:
        """``node`` with the states of earlier passes as reads of what they left."""
        return rewrite(node, lambda inner: self.finals.get(inner, inner))

    def output_kernel(self) -> None:
        seen = self.seen()
        self.tensor("out", self.width_of("out"))
        self.token_kernel("output", "out", self.final(self.plan.output), "query", "H", seen and self.final(seen), ())

    def token_kernel(
        self, name: str, out: str, expression: Node, side: str, per: str, seen: Node | None, buffers: tuple[Buffer, ...]
    ) -> None:
        functions = self.functions(name)
        width = static(expression.width) if expression.is_vector else 0
        padded = 1 << (width - 1).bit_length() if width else 1
        slots.add_group(functions, self.plan.program.group)
        lanes = slots.add_value(functions, token_read(expression), seen, padded)
        tokens, heads = ("M" if side == "query" else "N"), per
        block = max(1, min(BLOCK_TOKENS, 8192 // max(padded, *lanes, 1)))
        self.add(
            Launch(
                name,
                "token",
                {
                    "out": self.tensor(out, width),
                    "env": tuple(functions.env.values),
                    "HEADS": _size(heads),
                    "TOKENS": _size(tokens),
                    "M": _size("M"),
                    "N": _size("N"),
                },
                {
                    "BLOCK_T": block,
                    "WIDTH": width,
                    "PADDED": padded,
                    "LANES": lanes,
                    "QUERY": side == "query",
                    "PER_QUERY_HEAD": per == "H",
                },
                functions.names,
                (Extent(tokens, block), Extent(heads), Extent("B")),
                buffers,
                warps=4,
            ),
            functions,
        )

    def add(self, launch: Launch, functions: Functions) -> None:
        self.launches.append(launch)
        self.texts.extend(functions.texts)

    # Which tiles are visited

    def tile_lists(self) -> None:
        functions, seen = self.functions("tiles"), self.visibility
        dots = dots_of((seen.mask,))
        reads = slots.row_reads(seen.mask)
        slots.add_group(functions, self.plan.program.group)
        slots.add_ranges(functions, seen.key_ranges)
        slots.add_tile_test(functions, "EMPTY", seen.empty, "No pair of the tile is visible.")
        slots.add_tile_test(functions, "FULL", seen.full, "Every pair of the tile is visible.")
        slots.add_rows(functions, reads)
        slots.add_visible(functions, seen.mask, dots, reads)
        per_batch, per_head = self.lists_per()
        tiles, keys = Extent("M", self.config.block_m), Extent("N", self.config.block_n)
        grid = (tiles, *((Extent("H"),) if per_head else ()), *((Extent("B"),) if per_batch else ()))
        used = {value.name for value in functions.env.values if value.kind in ("tensor", "extent", "stride")}
        cached = used <= {declared.name for declared in self.plan.program.inputs}
        for name in ("lists.full", "lists.masked", "lists.counts"):
            self.types[name] = "i32"
        self.add(
            Launch(
                "tiles",
                "tiles",
                {
                    "full_list": Value("*i32", "tensor", "lists.full", divisible=16),
                    "masked_list": Value("*i32", "tensor", "lists.masked", divisible=16),
                    "counts": Value("*i32", "tensor", "lists.counts", divisible=16),
                    "env": tuple(functions.env.values),
                    "H": _size("H"),
                    "M": _size("M"),
                    "N": _size("N"),
                },
                {
                    "BLOCK_M": self.config.block_m,
                    "BLOCK_N": self.config.block_n,
                    "HEADS": per_head,
                    "LOOK": seen.by_data and not dots,
                },
                functions.names,
                grid,
                (
                    Buffer("lists.full", "i32", (*grid, keys)),
                    Buffer("lists.masked", "i32", (*grid, keys)),
                    Buffer("lists.counts", "i32", (*grid, Extent(2))),
                ),
                tuple(sorted(used)) if cached else None,
                warps=4,
            ),
            functions,
        )

    def lists_per(self) -> tuple[bool, bool]:
        """Whether the lists differ by batch row, and by head."""
        axes = self.visibility.mask.axes
        return "b" in axes, "h" in axes

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
                    return build.apply("gt", build.state(one.name), build.literal(LOWEST))
                if isinstance(one.term, Literal) and one.term.value > 0 and one.shift is None:
                    return build.apply("gt", build.state(one.name), build.literal(0.0))
        return build.apply("gt", build.state(SEEN), build.literal(LOWEST))

    def walk(self, at: int, step: Pass, passes: tuple[Pass, ...]) -> None:
        last = at == len(passes) - 1
        step = rewritten(step, self.finals)
        functions = self.functions(f"pass{at}")
        mask = self.plan.mask
        terms = [one.term for one in step.parts]
        shifts = [one.shift for one in step.parts if one.shift is not None]
        dots = dots_of((*terms, mask))
        reads = slots.row_reads(*terms, *shifts, mask)
        seen = self.seen() if last else None
        marks = seen is not None and build.state(SEEN) in seen.children
        slots.add_group(functions, self.plan.program.group)
        slots.add_ranges(functions, self.visibility.key_ranges)
        slots.add_rows(functions, reads)
        slots.add_visible(functions, mask, dots, reads)
        result = slots.add_step(functions, step, marks, dots, reads)

        names = (*(one.name for one in step.statistics), *((SEEN,) if marks else ()))
        sums = tuple(one.name for one in step.accumulators)
        final = last and self.lanewise
        output = self.final(self.plan.output) if final else None
        lse = None
        if last and self.workload.lse:
            assert self.plan.lse is not None, "the log-sum-exp was asked for, but the weight has none"
            lse = self.final(self.plan.lse)
        kept = () if final else names
        finish = Finish(names, sums, reads, seen and self.final(seen))
        out_width = static(self.plan.output.width) if final else _width(step)
        out_split = split(out_width) if out_width else []
        slots.add_finish(functions, finish, output, sum(padded for _, _, padded in out_split))
        slots.add_finish_rows(functions, finish, kept, lse)

        keep = [_row_numbers(name) for name in kept]
        vectors = [] if final else [_row_vectors(one.name, _literal_width(one.value)) for one in step.accumulators]
        for source in (*keep, *vectors):
            self.types[source.name] = "fp32"
        outs = ("out",) if final else tuple(source.name for source in vectors)
        row_outs = (*(source.name for source in keep), *(("lse",) if lse is not None else ()))
        queries, keys = Tensors(), Tensors()
        self.maxima |= {build.state(one.name): one.term for one in step.statistics if one.op == "max"}
        wide = [self.workload.dtype == "f16" and not is_bounded(one.term, self.maxima) for one in step.accumulators]
        table = Chunks(queries, keys, dots, step, result, wide)
        self.add(
            Launch(
                f"pass{at}",
                "stream",
                {
                    "queries": tuple(self.tensor(name, self.width_of(name)) for name in queries.names),
                    "keys": tuple(self.tensor(name, self.width_of(name)) for name in keys.names),
                    "outs": tuple(self.tensor(name, out_width) for name in outs),
                    "row_outs": tuple(Value("*fp32", "tensor", name, divisible=4) for name in row_outs),
                    "lists": self.list_arguments(),
                    "env": tuple(functions.env.values),
                    "H": _size("H"),
                    "M": _size("M"),
                    "N": _size("N"),
                },
                {
                    "BLOCK_M": self.config.block_m,
                    "BLOCK_N": self.config.block_n,
                    "STAGES": self.config.stages,
                    "LISTED": not self.visibility.by_ranges,
                    "LISTS_PER_BATCH": self.lists_per()[0],
                    "LISTS_PER_HEAD": self.lists_per()[1],
                    "PER_QUERY_HEAD": tuple(keys.heads[name] == "h" for name in keys.names),
                    "QUERY_CHUNKS": table.query_chunks(),
                    "KEY_CHUNKS": table.key_chunks(),
                    "VALUES": table.values,
                    "DOTS": table.dots,
                    "SUMS": table.sums,
                    "STARTS": tuple(
                        LOWEST if name == SEEN or step.statistics[at].op == "max" else 0.0
                        for at, name in enumerate(names)
                    ),
                    "OUT_CHUNKS": tuple(out_split),
                    "PRECISION": self.precision,
                },
                functions.names,
                (Extent("M", self.config.block_m), Extent("H"), Extent("B")),
                tuple(Buffer(source.name, "fp32", self.spread_shape(source)) for source in (*keep, *vectors)),
                warps=self.config.warps,
                stages=self.config.stages,
            ),
            functions,
        )
        row = (build.index("b"), build.index("h"), build.index("row"))
        for source, name in zip(keep, kept, strict=True):
            self.finals[build.state(name)] = kept_number = build.read(source, row)
            if build.state(name) in self.maxima:
                self.maxima[kept_number] = self.maxima[build.state(name)]
        for source, one in zip(vectors, step.accumulators, strict=not final):
            for node in postorder(self.plan.output):
                if isinstance(node, State) and node.name == one.name:
                    self.finals[node] = build.read(source, (*row, None))

    def list_arguments(self) -> Arguments:
        if self.visibility.by_ranges:
            return ()
        return tuple(
            Value("*i32", "tensor", name, divisible=16) for name in ("lists.full", "lists.masked", "lists.counts")
        )


def _literal_width(value: Node) -> Node:
    assert value.width is not None
    return value.width


def _width(step: Pass) -> int:
    return static(step.accumulators[0].value.width) if step.accumulators else 0


def _size(name: str) -> Value:
    return Value("i32", "size", name)


def _name(dim: Node) -> str:
    assert isinstance(dim, Size), "buffers have dims that are sizes or numbers"
    return dim.name


def _power_of_two(number: int, most: int) -> int:
    """The largest power of two that divides ``number``, up to ``most``."""
    return min(number & -number, most) if number else most
