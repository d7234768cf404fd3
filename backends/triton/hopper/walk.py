"""The launch of a walk over the keys by the kernel for Hopper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.backends.triton.assembly import Assembly, Outputs, size_value
from attnc.backends.triton.chunks import Chunks, Tensors
from attnc.backends.triton.hopper.configs import HopperConfig
from attnc.backends.triton.recipe import Arguments, Box, Buffer, Constant, Extent, Launch, Layout, Value
from attnc.backends.triton.slots import Functions
from attnc.ir.nodes import Literal


class Unfit(Exception):
    """What these kernels do not take."""


COUNTER = "counter"
"""The tensor from which resident programs take their next tile."""


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk whose slots are written: its tables, where its states start, and which of them are sums.

    ``clamped`` says that keys past the last one are repetitions of it, and told apart: where the mask does not hide
    them, or something is read by key.
    """

    functions: Functions
    table: Chunks
    starts: Sequence[float]
    sums: Sequence[bool]
    outputs: Outputs
    buffers: tuple[Buffer, ...]
    clamped: bool


def add_walk(assembly: Assembly, name: str, config: HopperConfig, walk: Walk) -> None:
    """Add the launch. Equal chunks of keys and values are copied twice: they are needed at different times.

    Raises:
        Unfit: the kernel cannot do this walk.
    """
    table, outputs = walk.table, walk.outputs
    _check(assembly, table)
    outer, inner = table.outer_chunks(), table.inner_chunks()
    used = sorted({at for at, *_ in table.sums})
    chunks = (*inner[: table.values], *(inner[at] for at in used))
    staged = is_staged(table, outputs)
    values = tuple((table.values + used.index(at), weight, factor) for at, weight, factor, _ in table.sums)
    arguments: dict[str, Arguments] = {
        "outers": boxes(assembly, table.outers, outer, config.block_m // config.warpgroups),
        "inners": boxes(assembly, table.inners, chunks, config.block_n),
        "outs": _outs(assembly, outputs, staged),
        "row_outs": tuple(Value("*fp32", "tensor", number, divisible=4) for number in outputs.numbers),
        "lists": assembly.list_arguments("keys"),
        "env": tuple(walk.functions.env.values),
        "counter": Value("*i32", "tensor", COUNTER, divisible=16),
        **{size: size_value(size) for size in ("B", "H", "M", "N")},
    }
    constants: dict[str, Constant] = {
        "INNER_BLOCK": config.block_n,
        "WARPGROUPS": config.warpgroups,
        "STAGES": config.stages,
        "QUERIES": config.queries,
        "REGISTERS": config.registers[:2],
        "MASKS": not isinstance(assembly.visibility.mask, Literal),
        "CLAMPED": walk.clamped,
        "LISTED": not assembly.visibility.by_ranges,
        "LISTS_PER_BATCH": assembly.lists_per()[0],
        "LISTS_PER_HEAD": assembly.lists_per()[1],
        "OUTER_HEADS": _heads(table.outers, outer),
        "INNER_HEADS": _heads(table.inners, chunks),
        "OUTER_WIDTHS": tuple(padded for *_, padded in outer),
        "WIDTHS": tuple(padded for *_, padded in chunks),
        "VALUES": table.values,
        "DOTS": table.dots,
        "SUMS": values,
        "STARTS": tuple(walk.starts),
        "SPREAD": tuple(walk.sums),
        "OUTPUTS": outputs.table,
        "STAGED": staged,
    }
    assembly.types[COUNTER] = "i32"
    assembly.add(
        Launch(
            name,
            "hopper",
            arguments,
            constants,
            walk.functions.names,
            (Extent("M", config.block_m), Extent("H"), Extent("B")),
            (*walk.buffers, Buffer(COUNTER, "i32", (Extent(1),), zeroed=True)),
            warps=4,
            registers=config.registers[2],
            resident=True,
        ),
        walk.functions,
    )


def _check(assembly: Assembly, table: Chunks) -> None:
    if not table.dots:
        raise Unfit("a pass without a dot product over the pairs")
    if not table.sums:
        raise Unfit("a pass that sums no vectors")
    if any(is_wide for *_, is_wide in table.sums):
        raise Unfit("weights that may be beyond float16")
    for tensors, chunks in ((table.outers, table.outer_chunks()), (table.inners, table.inner_chunks())):
        for at, lo, _, _ in chunks:
            name = tensors.names[at]
            if assembly.types[name] not in ("bf16", "fp16"):
                raise Unfit(f"elements of {assembly.types[name]} in `{name}`")
            if lo % 8 or assembly.widths[name] % 8:
                raise Unfit(f"lanes of `{name}` that do not begin at multiples of 16 bytes, as TMA wants")


def is_staged(table: Chunks, outputs: Outputs) -> bool:
    """Whether outputs can leave through the memory of the queries: one tensor, in chunks like theirs."""
    widths = [padded for *_, padded in table.outer_chunks()]
    name, width = outputs.vectors[0]
    fits = name == "out" and len(outputs.vectors) == 1 and width % 8 == 0
    return fits and [padded for _, _, padded, *_ in outputs.table] == widths


def boxes(
    assembly: Assembly, tensors: Tensors, chunks: Sequence[tuple[int, int, int, int]], tokens: int
) -> tuple[Box, ...]:
    """What is copied at once of each chunk: the lanes of so many tokens of one head."""
    found = []
    for name in tensors.names:
        assembly.layouts[name] = Layout(16, boxed=True)
    for at, lo, valid, padded in chunks:
        name = tensors.names[at]
        found.append(Box(assembly.types[name], name, lo, valid, (1, 1, tokens, padded)))
    return tuple(found)


def _outs(assembly: Assembly, outputs: Outputs, staged: bool) -> Arguments:
    if not staged:
        return tuple(assembly.tensor(*vector) for vector in outputs.vectors)
    name, _ = outputs.vectors[0]
    assembly.layouts[name] = Layout(16, boxed=True)
    return tuple(
        Box(assembly.types[name], name, lo, valid, (1, 1, 64, padded)) for lo, valid, padded, *_ in outputs.table
    )


def _heads(tensors: Tensors, chunks: Sequence[tuple[int, int, int, int]]) -> tuple[bool, ...]:
    return tuple(tensors.heads[tensors.names[at]] == "h" for at, *_ in chunks)
