"""From the walks of a derived backward to launches of the Hopper family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.analyse.gradient.backward import Sum, Walk
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import Assembly, blocks, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.hopper import backward_slots
from attnc.backends.triton.hopper.backward_configs import FAMILY, WalkConfig
from attnc.backends.triton.hopper.backward_terms import Split, find_shared, line_reads, split_walk
from attnc.backends.triton.hopper.hiding import hidden_dot
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import Arguments, Box, Buffer, Constant, Extent, Launch, Value
from attnc.backends.triton.slots import Over, StepResult
from attnc.backends.triton.vectors import Part, part_of, split
from attnc.ir.nodes import Node
from attnc.plan import Accumulator, Pass

GROUP_ROWS = 64
REGISTERS = 168
"""Of a thread when a program starts: 504 for one of each of three warpgroups, which then move them."""


@dataclass(slots=True)
class WalkLowering:
    """One walk in the making."""

    assembly: Assembly
    mask: Node
    numbers: dict[str, float]
    late_vectors: frozenset[str]

    def lower(
        self,
        name: str,
        walk: Walk,
        over: Over,
        config: WalkConfig,
        results: dict[str, str],
        crossing: Sum | None = None,
    ) -> None:
        """Add the launches of a walk.

        ``results`` are the tensors that sums are written to directly, by what is summed; ``crossing`` is a sum over
        the keys that a walk over the rows adds up besides.
        """
        if not config.apart:
            self.add(name, walk, over, config, results, crossing)
            return
        numbers = tuple(one for one in walk.sums if one.value is None)
        vectors = [one for one in walk.sums if one.value is not None]
        for at, one in enumerate(vectors):
            sums = (one, *numbers) if at == 0 else (one,)
            self.add(f"{name}_{at}", replace(walk, sums=sums), over, config, results, None)

    def add(
        self, name: str, walk: Walk, over: Over, config: WalkConfig, results: dict[str, str], crossing: Sum | None
    ) -> None:
        parts = split_walk(walk, self.mask, self.late_vectors)
        terms = (*parts.tiles, *parts.late, self.mask)
        rows, lines = slots.outer_reads(over, *terms), line_reads(over, *terms)
        functions = self.assembly.functions(name)
        slots.add_group(functions, self.assembly.program.group)
        self.assembly.add_ranges(functions, over)
        slots.add_rows(functions, rows)
        backward_slots.add_lines(functions, lines)
        backward_slots.add_visible(functions, self.mask, parts.early_dots, rows, lines)
        backward_slots.add_early(functions, parts, rows, lines)
        backward_slots.add_late(functions, parts, rows, lines)
        table = _table(over, parts)
        outer, inner = blocks(over, config)
        buffers = tuple(
            self.assembly.buffer(one.result, "fp32") for one in walk.sums if one.result.name not in results
        )  # fmt: skip
        outs, outputs = self.outputs(parts, results)
        given = {declared.name for declared in self.assembly.program.inputs}
        arguments: dict[str, Arguments] = {
            "outers": self.descriptors(table.outers.names, table.outer_chunks(), GROUP_ROWS),
            "inners": self.descriptors(table.inners.names, table.inner_chunks(), inner),
            "outs": tuple(self.assembly.tensor(*out) for out in outs),
            "row_outs": tuple(
                Value("*fp32", "tensor", results.get(one.result.name, one.result.name), divisible=4)
                for one, _ in parts.numbers
            ),
            "added": self.added(crossing, inner),
            "lists": self.assembly.list_arguments(over),
            "env": tuple(functions.env.values),
            "H": size_value("H"),
            "M": size_value("M"),
            "N": size_value("N"),
        }
        constants: dict[str, Constant] = {
            "OVER_ROWS": over == "rows",
            "INNER_BLOCK": inner,
            "STAGES": config.stages,
            "EAGER": config.eager,
            "LISTED": not self.assembly.visibility.by_ranges,
            "LISTS_PER_BATCH": self.assembly.lists_per()[0],
            "LISTS_PER_HEAD": self.assembly.lists_per()[1],
            "OUTER_HEADS": tuple(table.outers.heads[name] == "h" for name in table.outers.names),
            "INNER_HEADS": tuple(table.inners.heads[name] == "h" for name in table.inners.names),
            **_constants(table, parts, len(lines)),
            "HIDE": (config.hide and hidden_dot(parts.early_dots, parts.tiles, given)) or 0.0,
            "OUTPUTS": (outputs, tuple(self.numbers[one.result.name] for one, _ in parts.numbers)),
            "CROSS": self.cross(crossing, parts, table, inner),
            "CONSUMER_REGISTERS": config.consumer_registers,
            "PRODUCER_REGISTERS": config.producer_registers,
        }
        self.assembly.add(
            Launch(
                name,
                FAMILY,
                arguments,
                constants,
                functions.names,
                (Extent("N" if over == "rows" else "M", outer), Extent("H"), Extent("B")),
                (*buffers, *self.cleared(crossing)),
                warps=config.warps,
                registers=REGISTERS,
            ),
            functions,
        )

    # A sum over the keys in a walk over the rows

    def cleared(self, crossing: Sum | None) -> tuple[Buffer, ...]:
        if crossing is None:
            return ()
        return (replace(self.assembly.buffer(crossing.result, "fp32"), zeroed=True),)

    def added(self, crossing: Sum | None, inner: int) -> Arguments:
        """Where each warpgroup adds its part of a tile: half of the lanes, or half of the rows."""
        if crossing is None:
            return ()
        width = static(crossing.result.dims[-1])
        return Box("fp32", crossing.result.name, 0, width, (1, 1, GROUP_ROWS, part_lanes(width, inner)))

    def cross(self, crossing: Sum | None, parts: Split, table: Chunks, inner: int) -> Constant:
        """Its weight, the chunk that it is multiplied by, and the lanes of a part."""
        if crossing is None:
            return ()
        assert crossing.value is not None
        weight = find_shared(crossing, parts, self.late_vectors)
        part = part_of(crossing.value)
        assert weight is not None, "walks that share no term are not fused"
        assert part is not None
        chunk = (table.outers.names.index(part.tensor), *chunk_of(part))
        return (weight, table.outer_chunks().index(chunk), part_lanes(part.width, inner))

    def outputs(
        self, parts: Split, results: dict[str, str]
    ) -> tuple[list[tuple[str, int]], tuple[tuple[int, int, int, float], ...]]:
        """The tensors that are written, and of each sum: which of them, from which lane, how many, the factor."""
        outs: list[tuple[str, int]] = []
        table = []
        for one, _ in parts.sums:
            width = static(one.result.dims[-1])
            for lo, valid, _ in split(width):
                table.append((len(outs), lo, valid, self.numbers[one.result.name]))
            outs.append((results.get(one.result.name, one.result.name), width))
        return outs, tuple(table)

    def descriptors(
        self, names: Sequence[str], chunks: Sequence[tuple[int, int, int, int]], tokens: int
    ) -> tuple[Box, ...]:
        found = []
        for tensor, lo, valid, padded in chunks:
            name = names[tensor]
            self.assembly.tensor(name, self.assembly.widths[name])
            found.append(Box(self.assembly.types[name], name, lo, valid, (1, 1, tokens, padded)))
        return tuple(found)


def part_lanes(width: int, inner: int) -> int:
    """The lanes that one of two warpgroups adds up: all of 64 rows, or half of those of all rows."""
    ((_, _, padded),) = split(width)
    return padded if inner > GROUP_ROWS else padded // 2


def chunk_of(part: Part) -> tuple[int, int, int]:
    ((lo, valid, padded),) = split(part.width)
    return part.lo + lo, valid, padded


def _table(over: Over, parts: Split) -> Chunks:
    sums = tuple(Accumulator(one.result.name, one.term, one.value) for one, _ in parts.sums if one.value is not None)
    made = StepResult(tuple(weight for _, weight in parts.sums), (-1,) * len(sums))
    return Chunks(over, (*parts.early_dots, *parts.late_dots), Pass((), sums), made, (False,) * len(sums))


def _constants(table: Chunks, parts: Split, lines: int) -> dict[str, Constant]:
    """The tables of products and sums."""
    chunks = table.inner_chunks()
    ends = [at + 1 for at, (_, _, _, is_last) in enumerate(table.dots) if is_last]
    early_dots = ends[len(parts.early_dots) - 1] if parts.early_dots else 0
    sums = tuple((chunk, weight, chunks[chunk][3]) for chunk, weight, _, _ in table.sums)
    held = {chunk for chunk, weight, _ in sums if weight >= parts.early} | ({0} if lines else set())
    return {
        "OUTER_CHUNKS": table.outer_chunks(),
        "INNER_CHUNKS": chunks,
        "HELD": tuple(not parts.late or chunk in held for chunk in range(len(chunks))),
        "DOTS": table.dots,
        "EARLY_DOTS": early_dots,
        # the number of the tile comes with the first chunk, so that one is waited for in any case
        "EARLY_CHUNKS": max((inner + 1 for _, inner, _, _ in table.dots[:early_dots]), default=1),
        "LINE_COUNT": lines,
        "WEIGHTS": (parts.early, parts.early + len(parts.late)),
        "VANISHES": parts.vanishes,
        "SUMS": sums,
        "EARLY_SUMS": sum(weight < parts.early for _, weight, _ in sums),
        "NUMBERS": tuple(weight for _, weight in parts.numbers),
    }
