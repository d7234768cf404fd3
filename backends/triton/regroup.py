"""The launches for masks that are lists: entries sorted by block, walks over them, parts merged."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.analyse.gradient.backward import Backward, Scatter
from attnc.analyse.mask.block_lists import BlockLists, block_lists_of
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import SIZES, Assembly, Outputs, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import RegroupConfig
from attnc.backends.triton.recipe import Arguments, Buffer, Constant, Extent, Launch, Regroup, Value
from attnc.backends.triton.rewrites import writes_output
from attnc.backends.triton.slots import Functions
from attnc.backends.triton.split import COMBINED, Part
from attnc.backends.triton.vectors import split
from attnc.ir.nodes import Read
from attnc.ir.traverse import postorder
from attnc.plan import Plan

CHUNK = 512
"""Rows whose entries are counted and placed by one program."""
ENTRIES = 128
"""Entries that are placed at once."""
SPAN = 8
"""Tiles of entries to a task."""
MOST = 128
"""Places of the longest lists."""
COUNTED = 1024
"""Pairs of places that are compared at once where lists are read."""
BLOCKS, CHUNKS, TASKS, LINES, FIRST = (f"regroup.{x}" for x in ("blocks", "chunks", "tasks", "lines", "first"))
KEY_TILES, ENTRY = "regroup.key_tiles", "regroup.entries"


SMALLEST = 16
"""Keys of a block that make a tile of a product."""


def regroupable(subject: Plan | Backward) -> BlockLists | None:
    """The lists that queries can be sorted by; ``None`` where there are none, or partial results cannot be merged."""
    plan = subject.plan if isinstance(subject, Backward) else subject
    listed = block_lists_of(plan.mask)
    if listed is None or listed.block < SMALLEST or listed.most > MOST:
        return None
    if isinstance(subject, Backward):
        return None if any(isinstance(step, Scatter) for step in subject.steps) else listed
    one_pass = len(plan.passes) == 1 and writes_output(plan.output, plan.passes[0])
    return listed if one_pass else None


def scatters(plan: Plan) -> bool:
    """Whether the backward of a plan adds to places that depend on the pair, which is not done by lists."""
    terms = [one.term for step in plan.passes for one in step.parts]
    return any(isinstance(node, Read) and {"i", "j"} <= node.axes for node in postorder(*terms))


def _int(name: str) -> Value:
    return Value("*i32", "tensor", name, divisible=16)


def add_sorting(assembly: Assembly, listed: BlockLists, tile: int) -> None:
    """Launches that sort the entries of lists by block, in tasks of tiles of ``tile`` entries."""
    tile *= SPAN
    most = listed.most
    padded = max(2, 1 << (most - 1).bit_length())
    clean, counts, before, totals, starts, tiles, order, tasks = (
        f"regroup.{x}" for x in ("clean", "counts", "before", "totals", "starts", "tiles", "order", "tasks")
    )
    assembly.types |= dict.fromkeys((clean, counts, before, totals, starts, tiles, order, tasks), "i32")
    line = (Extent("B"), Extent("H"))
    grid = (Extent(CHUNKS), *line)
    source = listed.source.name
    wide = min(1024, max(16, 1 << 10))
    several = {"H": size_value("H"), "M": size_value("M"), "BLOCKS": size_value(BLOCKS), "CHUNKS": size_value(CHUNKS)}
    strides = tuple(Value("i64", "stride", source, dim) for dim in range(3))
    numbers = (Value(f"*{assembly.types[source]}", "tensor", source), *strides)

    def launch(
        name: str,
        arguments: dict[str, Arguments],
        constants: dict[str, Constant],
        grid: tuple[Extent, ...],
        *buffers: Buffer,
        warps: int = 4,
    ) -> None:
        assembly.launches.append(Launch(f"sort_{name}", name, arguments, constants, {}, grid, buffers, warps=warps))

    launch(
        "count",
        {"numbers": numbers, "clean": _int(clean), "counts": _int(counts), **several},
        {"MOST": most, "PADDED": padded, "ROWS": max(1, COUNTED // padded**2), "CHUNK": CHUNK},
        grid,
        Buffer(clean, "i32", (*line, Extent("M"), Extent(most))),
        Buffer(counts, "i32", (*line, Extent(CHUNKS), Extent(BLOCKS)), zeroed=True),
    )
    launch(
        "add_chunks",
        {
            "counts": _int(counts),
            "before": _int(before),
            "totals": _int(totals),
            "BLOCKS": size_value(BLOCKS),
            "CHUNKS": size_value(CHUNKS),
        },
        {"WIDTH": 64, "DEPTH": 32},
        (Extent(BLOCKS, 64), *line),
        Buffer(before, "i32", (*line, Extent(CHUNKS), Extent(BLOCKS))),
        Buffer(totals, "i32", (*line, Extent(BLOCKS))),
    )
    launch(
        "add_blocks",
        {"totals": _int(totals), "starts": _int(starts), "tiles": _int(tiles), "BLOCKS": size_value(BLOCKS)},
        {"TILE": tile, "WIDTH": wide},
        line,
        Buffer(starts, "i32", (*line, Extent("regroup.ends"))),
        Buffer(tiles, "i32", (*line, Extent("regroup.ends"))),
    )
    launch(
        "place",
        {
            **{name: _int(f"regroup.{name}") for name in ("clean", "before", "starts", "tiles", "order", "tasks")},
            "M": size_value("M"),
            "BLOCKS": size_value(BLOCKS),
            "CHUNKS": size_value(CHUNKS),
            "TASKS": size_value(TASKS),
        },
        {"MOST": most, "ENTRIES": ENTRIES, "CHUNK": CHUNK, "TILE": tile},
        grid,
        Buffer(order, "i32", (*line, Extent(ENTRY))),
        Buffer(tasks, "i32", (*line, Extent(TASKS), Extent(3)), zeroed=True),
        warps=8,
    )


def regroup_of(listed: BlockLists, tile: int, keys: int, width: int) -> Regroup:
    """How large things are: ``keys`` are those of a tile of walks over the rows, ``width`` the bytes of an entry."""
    return Regroup(listed.block, listed.most, tile * SPAN, keys, CHUNK, width)


def bytes_of(assembly: Assembly, part: Part) -> int:
    """What the partial result of an entry takes."""
    kind = part_type(assembly)
    return sum(lanes * SIZES[kind] for lanes in part.widths) + 4 * len(part.starts)


def part_type(assembly: Assembly) -> str:
    """The element type of partial sums. Those that are not divided yet could overflow float16."""
    return "bf16" if assembly.element == "bf16" else "fp32"


def add_regrouped(assembly: Assembly, name: str, config: RegroupConfig, part: Part, listed: BlockLists) -> None:
    """A walk over the keys of the blocks in lists, and the merge of what each entry found."""
    table, kind = part.table, part_type(assembly)
    states = tuple(f"{name}.part{at}" for at in range(len(part.starts)))
    vectors = tuple(f"{name}.{one.name}" for one in part.step.accumulators)
    dims = (Extent(LINES), Extent(ENTRY))
    buffers = [Buffer(state, "fp32", dims) for state in states]
    buffers += [Buffer(x, kind, (*dims, Extent(width))) for x, width in zip(vectors, part.widths, strict=True)]
    assembly.types |= dict.fromkeys(states, "fp32") | dict.fromkeys(vectors, kind)
    part_states = tuple(Value("*fp32", "tensor", state, divisible=16) for state in states)
    part_outs = tuple(
        (Value(f"*{kind}", "tensor", x, divisible=16), Value("i32", "extent", x, 2, width & -width))
        for x, width in zip(vectors, part.widths, strict=True)
    )
    parts = tuple(
        (at, *chunk, factor)
        for at, (width, factor) in enumerate(zip(part.widths, part.shifted, strict=True))
        for chunk in split(width)
    )
    slots.add_tile_test(part.walk, "FULL", assembly.visibility.full, "Every pair of the tile is visible.")
    assembly.add(
        Launch(
            name,
            "regrouped",
            {
                "outers": assembly.vectors(table.outers),
                "inners": assembly.vectors(table.inners),
                "part_outs": part_outs,
                "part_states": part_states,
                "order": _int("regroup.order"),
                "tasks": _int("regroup.tasks"),
                "env": tuple(part.walk.env.values),
                "FIRST": size_value(FIRST),
                **{size: size_value(size) for size in ("H", "M", "N")},
                "TASKS": size_value(TASKS),
            },
            {
                **_walked(assembly, "keys", table, config, listed),
                "SPAN": SPAN,
                "STARTS": tuple(part.starts),
                "PARTS": parts,
            },
            part.walk.names,
            (Extent(TASKS), Extent(LINES)),
            tuple(buffers),
            warps=config.warps,
            stages=config.stages,
            turned=True,
        ),
        part.walk,
    )
    rows = 1 << max(1, min(16, COMBINED // max(1, sum(chunk[3] for chunk in parts)))).bit_length() - 1
    assembly.add(
        Launch(
            f"{name}_merge",
            "merge",
            {
                "part_outs": part_outs,
                "part_states": part_states,
                "clean": _int("regroup.clean"),
                "outs": tuple(assembly.tensor(*vector) for vector in part.outputs.vectors),
                "row_outs": tuple(Value("*fp32", "tensor", one, divisible=4) for one in part.outputs.numbers),
                "env": tuple(part.finish.env.values),
                "FIRST": size_value(FIRST),
                "LINES": size_value(LINES),
                **{size: size_value(size) for size in ("H", "M", "N")},
            },
            {
                "MOST": listed.most,
                "BLOCK": rows,
                "STAGES": 3,
                "STARTS": tuple(part.starts),
                "PARTS": parts,
                "OUTPUTS": part.outputs.table,
            },
            part.finish.names,
            (Extent("regroup.rows", rows),),
            part.buffers,
            turned=True,
        ),
        part.finish,
    )


def add_regrouped_rows(
    assembly: Assembly,
    name: str,
    config: RegroupConfig,
    functions: Functions,
    table: Chunks,
    starts: Sequence[float],
    outputs: Outputs,
    buffers: tuple[Buffer, ...],
    listed: BlockLists,
    grouped: bool,
) -> None:
    """A walk over the rows that have a block in their lists, for the keys of each; ``grouped`` as in ``walk``.

    Query heads are summed afterwards: their lists differ, and a loop over them takes registers that products need.
    """
    written = (*(name for name, _ in outputs.vectors), *outputs.numbers)
    slots.add_tile_test(functions, "FULL", assembly.visibility.full, "Every pair of the tile is visible.")
    looked = 1 << (listed.block // config.block_m + 1).bit_length()
    assembly.add(
        Launch(
            name,
            "regrouped_rows",
            {
                "outers": assembly.vectors(table.outers),
                "inners": assembly.vectors(table.inners),
                "outs": tuple(assembly.tensor(*vector) for vector in outputs.vectors),
                "row_outs": tuple(Value("*fp32", "tensor", number, divisible=4) for number in outputs.numbers),
                "order": _int("regroup.order"),
                "starts": _int("regroup.starts"),
                "env": tuple(functions.env.values),
                **{size: size_value(size) for size in ("H", "M", "N")},
                "BLOCKS": size_value(BLOCKS),
            },
            {
                **_walked(assembly, "rows", table, config, listed),
                "LOOKED": looked,
                "STARTS": tuple(starts),
                "OUTPUTS": outputs.table,
            },
            functions.names,
            (Extent(KEY_TILES), Extent("H"), Extent("B")),
            buffers,
            warps=config.warps,
            stages=config.stages,
            grouped=written if grouped else (),
            apart=True,
        ),
        functions,
    )


def _walked(
    assembly: Assembly, over: slots.Over, table: Chunks, config: RegroupConfig, listed: BlockLists
) -> dict[str, Constant]:
    constants = assembly.walk_constants(over, table, config)
    for unused in ("LISTED", "LISTS_PER_BATCH", "LISTS_PER_HEAD"):
        del constants[unused]
    return {**constants, "VALUES": table.values, "SUMS": table.sums, "KEYS": listed.block, "MOST": listed.most}
