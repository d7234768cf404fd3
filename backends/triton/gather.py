"""The launches of walks over keys that are given by number."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.backends.triton.assembly import Assembly, Outputs, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import GatherConfig
from attnc.backends.triton.recipe import Arguments, Buffer, Constant, Extent, Launch, Value
from attnc.backends.triton.slots import Functions, Over
from attnc.ir.program import DEFAULT_GROUP, LISTED

GROUP, LONGEST = "group", "L"
"""Sizes of a call: query heads of a key head, and the longest list there could be."""

LIST_HEADS = {"": 0, "G": 1, "H": 2}


def add_gather(
    assembly: Assembly,
    name: str,
    over: Over,
    config: GatherConfig,
    functions: Functions,
    table: Chunks,
    starts: Sequence[float],
    outputs: Outputs,
    buffers: tuple[Buffer, ...],
) -> None:
    """The launch of a walk whose slots are written: ``gather`` over the keys, ``spread`` over the rows."""
    program = assembly.program
    assert program.listed is not None
    keys = table.inners if over == "keys" else table.outers
    packed = program.group is DEFAULT_GROUP and program.listed.heads != "H" and "h" not in keys.heads.values()
    numbers, counts = program.listed.numbers.name, program.listed.counts.name
    lists: list[Arguments] = []
    for tensor in (numbers, counts):
        lists.append(Value(f"*{assembly.types[tensor]}", "tensor", tensor))
        lists += [Value("i64", "stride", tensor, dim) for dim in range(3)]
    arguments: dict[str, Arguments] = {
        "outers": assembly.vectors(table.outers),
        "inners": assembly.vectors(table.inners),
        "outs": tuple(assembly.tensor(*vector) for vector in outputs.vectors),
        "row_outs": tuple(Value("*fp32", "tensor", number, divisible=4) for number in outputs.numbers),
        "lists": (*lists, size_value(LONGEST)),
        "env": tuple(functions.env.values),
        **{size: size_value(size) for size in "HGMN"},
    }
    heads, places = (config.block_m, config.block_n)
    constants: dict[str, Constant] = {
        **assembly.walk_constants(over, table, config),
        "BLOCK": heads if over == "keys" else places,
        "INNER_BLOCK": places if over == "keys" else heads,
        "PACKED": packed,
        "LIST_HEADS": LIST_HEADS[program.listed.heads],
        "FULL_TILES": assembly.visibility.mask is LISTED,
        "VALUES": table.values,
        "SUMS": table.sums,
        "STARTS": tuple(starts),
        "OUTPUTS": outputs.table,
    }
    for unused in ("OVER_ROWS", "LISTED", "LISTS_PER_BATCH", "LISTS_PER_HEAD"):
        del constants[unused]
    tiles = Extent(LONGEST, places)
    if over == "keys":
        tiles = Extent(GROUP, heads) if packed else Extent(1)
    grid = (tiles, Extent("M"), Extent("G" if packed else "H"), Extent("B"))
    family = "gather" if over == "keys" else "spread"
    assembly.add(
        Launch(name, family, arguments, constants, functions.names, grid, buffers,
               warps=config.warps, stages=config.stages),
        functions,
    )  # fmt: skip
