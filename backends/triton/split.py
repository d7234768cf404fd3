"""The launches of the family ``split``: few rows, many keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.analyse.visibility import Range, Visibility
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import Assembly, Outputs, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import SplitConfig
from attnc.backends.triton.printer import Text
from attnc.backends.triton.recipe import Arguments, Buffer, Constant, Extent, Launch, Split, Value
from attnc.backends.triton.slots import Functions
from attnc.ir.nodes import Node, Read
from attnc.ir.program import DEFAULT_GROUP, Program
from attnc.plan import Pass

COMBINED = 2048
"""Numbers that a program of ``combine`` holds at most."""


@dataclass(frozen=True, slots=True)
class Part:
    """A pass that one walk of parts and their combination do, in slots that are written.

    ``starts`` are the statistics before any key; ``outputs`` are written by the combination; ``shifted`` says of each
    accumulator which factor of ``MERGE`` it takes, or -1. ``widths`` are those of the accumulators, ``buffers`` what
    the combination writes besides tensors of the call.
    """

    step: Pass
    walk: Functions
    finish: Functions
    table: Chunks
    starts: Sequence[float]
    outputs: Outputs
    shifted: Sequence[int]
    widths: Sequence[int] = ()
    buffers: tuple[Buffer, ...] = ()


def is_packed(program: Program, visibility: Visibility, table: Chunks) -> bool:
    """Whether all heads of a group can be rows of one tile: they share keys, values, and the tiles that are visited."""
    ends = [node for one in visibility.key_ranges for node in _ends(one)]
    per_head = any(head == "h" for head in table.inners.heads.values())
    return program.group is DEFAULT_GROUP and not per_head and not any("h" in node.axes for node in ends)


def add_merge(functions: Functions, step: Pass, seen: bool, reads: Sequence[Read]) -> tuple[int, ...]:
    """Write ``MERGE``; returns the place among the factors of each accumulator, or -1."""
    printer = functions.printer(taken=[one.name for one in step.statistics])
    slots.know_rows(printer, reads)
    names = [one.name for one in step.statistics]
    own = {name: printer.given(f"{name}_own", f"state[{at}]") for at, name in enumerate(names)}
    other = {name: printer.given(f"{name}_other", f"other[{at}]") for at, name in enumerate(names)}
    merged: dict[str, str] = {}
    factors: dict[Node, tuple[str, str]] = {}

    def factor(shift: Node) -> tuple[str, str]:
        if shift not in factors:
            texts = [slots.rescaling(printer, shift, side, merged) for side in (own, other)]
            mine, theirs = (
                printer.variable(name, text).text for name, text in zip(("own", "others"), texts, strict=True)
            )
            factors[shift] = mine, theirs
        return factors[shift]

    for one in step.statistics:
        mine, theirs = own[one.name], other[one.name]
        if one.op == "max":
            text = f"tl.maximum({mine}, {theirs})"
        elif one.shift is None:
            text = f"{mine} + {theirs}"
        else:
            a, b = factor(one.shift)
            text = f"{mine} * {a} + {theirs} * {b}"
        merged[one.name] = printer.variable(one.name, Text(text)).text
    result = list(merged.values())
    if seen:
        result.append(f"tl.maximum(state[{len(names)}], other[{len(names)}])")
    shifted = [None if one.shift is None else factor(one.shift) for one in step.accumulators]
    distinct = list(dict.fromkeys(pair for pair in shifted if pair is not None))
    parts = (result, [a for a, _ in distinct], [b for _, b in distinct])
    functions.add(
        "MERGE", "state, other, rows, b, h, g, row, i, env", printer, ", ".join(map(slots.tuple_of, parts)),
        "The state of two parts together, and what to multiply the sums of each by.",
    )  # fmt: skip
    return tuple(-1 if pair is None else distinct.index(pair) for pair in shifted)


def add_split(assembly: Assembly, name: str, config: SplitConfig, part: Part) -> Split:
    """Add the launches; returns when they are better than one walk over all keys."""
    block = config.block_m
    visibility, table = assembly.visibility, part.table
    packed = is_packed(assembly.program, visibility, table)
    rule = Split(block, config.block_n, packed)
    states = tuple(f"{name}.part{at}" for at in range(len(part.starts)))
    dims = (Extent("split.parts"), Extent("B"), Extent("H"), Extent("M"))
    width = max((lo + valid for lo, valid, *_ in part.outputs.table), default=0)
    vectors = tuple(f"{name}.{one.name}" for one in part.step.accumulators)
    buffers = [Buffer(state, "fp32", dims) for state in states]
    buffers += [Buffer(vector, "fp32", (*dims, Extent(width))) for vector in vectors]
    assembly.types |= dict.fromkeys((*states, *vectors), "fp32")
    part_states = tuple(Value("*fp32", "tensor", state, divisible=16) for state in states)
    part_outs = tuple(
        (Value("*fp32", "tensor", vector, divisible=16), Value("i32", "extent", vector, 4)) for vector in vectors
    )
    chunks = tuple(row[:6] for row in part.outputs.table)
    constants: dict[str, Constant] = {
        **assembly.walk_constants("keys", table, config),
        "BLOCK": block,
        "PACKED": packed,
        "FULL_TILES": visibility.by_ranges,
        "VALUES": table.values,
        "SUMS": table.sums,
        "STARTS": tuple(part.starts),
        "OUTPUTS": chunks,
    }
    for unused in ("OVER_ROWS", "LISTED", "LISTS_PER_BATCH", "LISTS_PER_HEAD"):
        del constants[unused]
    arguments: dict[str, Arguments] = {
        "outers": assembly.vectors(table.outers),
        "inners": assembly.vectors(table.inners),
        "part_outs": part_outs,
        "part_states": part_states,
        "env": tuple(part.walk.env.values),
        **{size: size_value(size) for size in ("B", "H", "G", "M", "N")},
        "PARTS": size_value("split.parts"),
    }
    grid = (Extent("split.tiles"), Extent("split.parts"), Extent("G" if packed else "H"), Extent("B"))
    assembly.add(
        Launch(f"{name}_split", "split", arguments, constants, part.walk.names, grid, tuple(buffers),
               warps=config.warps, stages=config.stages),
        part.walk,
    )  # fmt: skip
    held = sum(row[2] * row[5] for row in part.outputs.table)
    rows = max(1, COMBINED // max(held, 1) // 4 * 4) if held < COMBINED else 1
    assembly.add(
        Launch(
            f"{name}_combine",
            "combine",
            {
                "part_outs": part_outs,
                "part_states": part_states,
                "outs": tuple(assembly.tensor(*vector) for vector in part.outputs.vectors),
                "row_outs": tuple(Value("*fp32", "tensor", one, divisible=4) for one in part.outputs.numbers),
                "env": tuple(part.finish.env.values),
                **{size: size_value(size) for size in ("B", "H", "M", "N")},
                "PARTS": size_value("split.parts"),
            },
            {
                "BLOCK": 1 << (min(rows, 16).bit_length() - 1),
                "STATES": len(states),
                "SHIFTED": tuple(part.shifted),
                "OUTPUTS": part.outputs.table,
            },
            part.finish.names,
            (Extent("split.rows", 1 << (min(rows, 16).bit_length() - 1)),),
            warps=4,
        ),
        part.finish,
    )
    return rule


def _ends(one: Range) -> tuple[Node, ...]:
    return one.lo, one.hi, one.full_lo, one.full_hi
