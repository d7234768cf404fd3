"""What recipes of forwards and of backwards are assembled from: launches of the families, and their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attnc.analyse.mask import analyse_mask
from attnc.analyse.mask.cells import cells_of
from attnc.analyse.visibility import Visibility
from attnc.backends.triton import slots
from attnc.backends.triton.chunks import Chunks, Tensors
from attnc.backends.triton.configs import Config
from attnc.backends.triton.environment import Environment
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import HEADS, Arguments, Buffer, Constant, Extent, Launch, Layout, Recipe, Value
from attnc.backends.triton.rewrites import dots_of, token_read
from attnc.backends.triton.slots import Functions, Over
from attnc.ir.nodes import Input, Literal, Node, Size
from attnc.ir.program import Program

SIZES = {"i32": 4, "i64": 8, "fp32": 4, "fp64": 8, "fp16": 2, "bf16": 2, "i1": 1}
TRITON_TYPES = {"i32": "i32", "i64": "i64", "f32": "fp32", "f64": "fp64", "f16": "fp16", "bf16": "bf16", "bool": "i1"}
CACHE = 32 * 2**20
"""Bytes of the second-level cache, of 40 MiB and more, for what programs that run together read and add to."""
BLOCK_TOKENS = 32
BLOCK_NUMBERS = 256
"""Tokens of a program that computes one number a token without looking at vectors."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A recipe, the slot functions its kernels are made with, and whose ``lib`` and ``over_keys`` these call.

    Elementwise functions of one family serve another; what is summed over the keys has its layout.
    """

    recipe: Recipe
    functions: tuple[str, ...]
    library: str = "triton"
    walked: str = "triton"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a walk writes: vectors to tensors (name and width), by chunks, and numbers a token."""

    vectors: tuple[tuple[str, int], ...]
    table: tuple[tuple[int, ...], ...]
    numbers: tuple[str, ...]


@dataclass(slots=True)
class Assembly:
    """Launches in the making. ``types`` gives the element type of every tensor, ``widths`` the lanes of vectors."""

    program: Program
    element: str
    precision: str
    visibility: Visibility
    types: dict[str, str] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)

    def functions(self, prefix: str) -> Functions:
        return Functions(prefix, Environment(self.types), self.program.spans)

    def add(self, launch: Launch, functions: Functions) -> None:
        self.launches.append(launch)
        self.texts.extend(functions.texts)

    def tensor(self, name: str, width: int | None = None) -> tuple[Value, ...]:
        """Address, and strides of batch row, head and token; what the kernels take for granted of them."""
        size = SIZES[self.types[name]]
        layout = self.layouts.get(name)
        if layout is None:
            layout = self.layouts[name] = Layout(power_of_two(width * size, 16) if width else 16)
        step = max(1, layout.align // size)
        return (
            Value(f"*{self.types[name]}", "tensor", name, divisible=layout.align),
            Value("i64", "stride", name, 0, step),
            Value("i64", "stride", name, 1, step),
            Value("i32", "stride", name, 2, step),
        )

    def buffer(self, source: Input, kind: str) -> Buffer:
        """A tensor between kernels with the dims of ``source``; scalars a token are laid out as rows of one lane."""
        self.types[source.name] = kind
        if len(source.dims) > 3:
            self.widths[source.name] = static(source.dims[-1])
        return Buffer(source.name, kind, tuple(_extent(dim) for dim in source.dims))

    # Functions of one token

    def token_kernel(
        self,
        name: str,
        out: str,
        expression: Node,
        side: str,
        per: str,
        seen: Node | None,
        buffers: tuple[Buffer, ...] = (),
        tokens: str = "",
    ) -> None:
        """``out`` at every token of a side; 0 where ``seen`` is given and false. ``tokens`` counts them if not M, N."""
        functions = self.functions(name)
        width = self.widths.get(out, 0)
        padded = 1 << (width - 1).bit_length() if width else 1
        slots.add_group(functions, self.program.group)
        lanes = slots.add_value(functions, token_read(expression), seen, padded)
        tokens = tokens or ("M" if side == "query" else "N")
        block = max(1, min(BLOCK_TOKENS if width or lanes else BLOCK_NUMBERS, 8192 // max(padded, *lanes, 1)))
        if not width:
            self.layouts.setdefault(out, Layout(4))
        self.add(
            Launch(
                name,
                "token",
                {
                    "out": self.tensor(out, width),
                    "env": tuple(functions.env.values),
                    "HEADS": size_value(per),
                    "TOKENS": size_value(tokens),
                    "M": size_value("M"),
                    "N": size_value("N"),
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
                (Extent(tokens, block), Extent(per), Extent("B")),
                buffers,
                warps=4,
            ),
            functions,
        )

    # Which tiles are visited

    def tile_lists(self, over: Over, config: Config, lists: str = "") -> None:
        """The lists of a traversal, where ranges do not say which tiles are visited; ``lists`` names them."""
        if self.visibility.by_ranges:
            return
        functions, seen = self.functions(f"tiles_{lists or over}"), self.visibility
        dots = dots_of((seen.mask,))
        looked, full_test, cell, uniform = _looked(seen, config)
        reads = slots.outer_reads(over, looked)
        slots.add_group(functions, self.program.group)
        self.add_ranges(functions, over)
        slots.add_tile_test(functions, "EMPTY", seen.empty, "No pair of the tile is visible.")
        slots.add_tile_test(functions, "FULL", full_test, "Every pair of the tile is visible.")
        slots.add_rows(functions, reads)
        slots.add_visible(functions, looked, dots, reads)
        per_batch, per_head = self.lists_per()
        block, inner = blocks(over, config)
        tiles, keys = Extent(_OUTER[over], block), Extent(_INNER[over], inner)
        grid = (tiles, *((Extent("H"),) if per_head else ()), *((Extent("B"),) if per_batch else ()))
        used = {value.name for value in functions.env.values if value.kind in ("tensor", "extent", "stride")}
        cached = used <= {declared.name for declared in self.program.inputs}
        full, masked, counts = names = list_names(lists or over)
        for name in names:
            self.types[name] = "i32"
        self.add(
            Launch(
                f"tiles_{lists or over}",
                "tiles",
                {
                    "full_list": Value("*i32", "tensor", full, divisible=16),
                    "masked_list": Value("*i32", "tensor", masked, divisible=16),
                    "counts": Value("*i32", "tensor", counts, divisible=16),
                    "env": tuple(functions.env.values),
                    "H": size_value("H"),
                    "M": size_value("M"),
                    "N": size_value("N"),
                },
                {
                    "OVER_ROWS": over == "rows",
                    "BLOCK": block,
                    "INNER_BLOCK": inner,
                    "HEADS": per_head,
                    "LOOK": seen.by_data and not dots,
                    "CELL": cell,
                    "UNIFORM": uniform,
                },
                functions.names,
                grid,
                (
                    Buffer(full, "i32", (*grid, keys)),
                    Buffer(masked, "i32", (*grid, keys)),
                    Buffer(counts, "i32", (*grid, Extent(2))),
                ),
                tuple(sorted(used)) if cached else None,
                warps=min(16, max(4, block * inner // 1024)),
            ),
            functions,
        )

    def add_ranges(self, functions: Functions, over: Over) -> None:
        ranges = self.visibility.key_ranges if over == "keys" else self.visibility.row_ranges
        slots.add_ranges(functions, ranges, over)

    def lists_per(self) -> tuple[bool, bool]:
        """Whether the lists differ by batch row, and by head."""
        axes = self.visibility.mask.axes
        return "b" in axes, "h" in axes

    def list_arguments(self, lists: str) -> Arguments:
        if self.visibility.by_ranges:
            return ()
        return tuple(Value("*i32", "tensor", name, divisible=16) for name in list_names(lists))

    # Walks over the pairs

    def walk(
        self,
        name: str,
        over: Over,
        config: Config,
        functions: Functions,
        table: Chunks,
        starts: Sequence[float],
        outputs: Outputs,
        buffers: tuple[Buffer, ...],
        grouped: bool = False,
        cache: int = 0,
    ) -> None:
        """The launch of a walk whose slots are written; ``grouped`` if it sums over the query heads of a group.

        Tiles are taken from the longest on, of as many heads at a time as ``cache`` bytes hold the inner vectors of.
        """
        block, _ = blocks(over, config)
        heads = HEADS if grouped else "H"
        arguments: dict[str, Arguments] = {
            **self.walk_arguments(over, table, functions),
            "outs": tuple(self.tensor(*vector) for vector in outputs.vectors),
            "row_outs": tuple(Value("*fp32", "tensor", number, divisible=4) for number in outputs.numbers),
            "HEADS": size_value(heads),
        }
        constants: dict[str, Constant] = {
            **self.walk_constants(over, table, config),
            "GROUPED": grouped,
            "OUTER_PER_MEMBER": grouped and "h" in table.outers.heads.values(),
            "CACHED": cache // max(1, self.bytes_of_token(table)),
            "VALUES": table.values,
            "SUMS": table.sums,
            "STARTS": tuple(starts),
            "OUTPUTS": outputs.table,
        }
        order = ("outers", "inners", "outs", "row_outs", "lists", "env", "HEADS", "H", "M", "N")
        written = (*(name for name, _ in outputs.vectors), *outputs.numbers)
        self.add(
            Launch(
                name,
                "stream",
                {key: arguments[key] for key in order},
                constants,
                functions.names,
                (Extent(_OUTER[over], block), Extent(heads), Extent("B")),
                buffers,
                warps=config.warps,
                stages=config.stages,
                grouped=written if grouped else (),
            ),
            functions,
        )

    def bytes_of_token(self, table: Chunks) -> int:
        """What is read of the vectors of an inner token."""
        chunks = [(table.inners.names[tensor], padded) for tensor, _, _, padded in table.inner_chunks()]
        return sum(SIZES[self.types[name]] * padded for name, padded in chunks)

    def walk_arguments(self, lists: str, table: Chunks, functions: Functions) -> dict[str, Arguments]:
        """What every kernel that visits pairs is called with."""
        return {
            "outers": self.vectors(table.outers),
            "inners": self.vectors(table.inners),
            "lists": self.list_arguments(lists),
            "env": tuple(functions.env.values),
            "H": size_value("H"),
            "M": size_value("M"),
            "N": size_value("N"),
        }

    def vectors(self, tensors: Tensors) -> Arguments:
        return tuple(self.tensor(name, self.widths[name]) for name in tensors.names)

    def walk_constants(self, over: Over, table: Chunks, config: Config) -> dict[str, Constant]:
        """What every kernel that visits pairs is compiled for."""
        block, inner = blocks(over, config)
        return {
            "OVER_ROWS": over == "rows",
            "BLOCK": block,
            "INNER_BLOCK": inner,
            "STAGES": config.stages,
            "LISTED": not self.visibility.by_ranges,
            "LISTS_PER_BATCH": self.lists_per()[0],
            "LISTS_PER_HEAD": self.lists_per()[1],
            "OUTER_HEADS": tuple(table.outers.heads[name] == "h" for name in table.outers.names),
            "INNER_HEADS": tuple(table.inners.heads[name] == "h" for name in table.inners.names),
            "OUTER_CHUNKS": table.outer_chunks(),
            "INNER_CHUNKS": table.inner_chunks(),
            "DOTS": table.dots,
            "PRECISION": self.precision,
        }


_OUTER = {"keys": "M", "rows": "N"}
_INNER = {"keys": "N", "rows": "M"}


def _looked(seen: Visibility, config: Config) -> tuple[Node, Node, int, bool]:
    """What tiles are classified by: a mask to look at, a test of full tiles, keys looked at in one.

    And whether the mask to look at is the same for all pairs of a tile whose rows begin at a multiple of their number.
    """
    keys = config.block_n
    cells = cells_of(seen.mask) if seen.by_data else None
    if cells is None or (keys % cells.step and cells.step % keys):
        return seen.mask, seen.full, 1, False
    uniform = cells.step % keys == 0 and cells.rows % config.block_m == 0
    return cells.data, analyse_mask(cells.rest).full, min(cells.step, keys), uniform


def blocks(over: Over, config: Config) -> tuple[int, int]:
    """Tokens of an outer and of an inner tile."""
    return (config.block_m, config.block_n) if over == "keys" else (config.block_n, config.block_m)


def list_names(lists: str) -> tuple[str, str, str]:
    return f"{lists}.full", f"{lists}.masked", f"{lists}.counts"


def size_value(name: str) -> Value:
    return Value("i32", "size", name)


def power_of_two(number: int, most: int) -> int:
    """The largest power of two that divides ``number``, up to ``most``."""
    return min(number & -number, most) if number else most


def _extent(dim: Node) -> Extent:
    if isinstance(dim, Literal):
        return Extent(int(dim.value))
    assert isinstance(dim, Size), "buffers have dims that are sizes or numbers"
    return Extent(dim.name)
