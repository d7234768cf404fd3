"""The tables of chunks that a walk over the pairs is given: what is loaded, multiplied and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attnc.backends.triton.slots import Over, StepResult
from attnc.backends.triton.vectors import Chunk, Part, chunks_of, part_of
from attnc.ir.nodes import Dot
from attnc.plan import Pass


@dataclass(slots=True)
class Tensors:
    """The tensors of one side in order of first use, and whether each has query heads (``h``) or key heads."""

    names: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)

    def place(self, part: Part | Chunk, head: str) -> int:
        if part.tensor not in self.names:
            self.names.append(part.tensor)
            self.heads[part.tensor] = head
        return self.names.index(part.tensor)


class Chunks:
    """The tables of one walk; equal chunks are loaded once.

    ``wide`` says of each accumulator whether its weights could overflow float16. The inner axis is that of the keys,
    or of the rows.
    """

    def __init__(self, over: Over, dots: Sequence[Dot], step: Pass, made: StepResult, wide: Sequence[bool]) -> None:
        self.outers, self.inners = Tensors(), Tensors()
        outer_side = "query" if over == "keys" else "key"
        self._outer_list: list[Chunk] = []
        self._inner_list: list[Chunk] = []
        table: list[tuple[int, int, bool, bool]] = []
        for dot in dots:
            a, b = (part_of(node) for node in (dot.a, dot.b))
            assert a is not None, "dots of other vectors were reported as unsupported"
            assert b is not None, "dots of other vectors were reported as unsupported"
            a, b = (a, b) if a.side == outer_side else (b, a)
            pairs = list(zip(chunks_of(a), chunks_of(b), strict=True))
            for at, (left, right) in enumerate(pairs):
                self.outers.place(left, a.head)
                self.inners.place(right, b.head)
                table.append((_at(self._outer_list, left), _at(self._inner_list, right), at == 0, at == len(pairs) - 1))
        self.dots = tuple(table)
        self.values = len(self._inner_list)
        self.places: list[list[int]] = []
        """Of each accumulator, where its chunks are in ``sums``."""
        sums: list[tuple[int, int, int, bool]] = []
        for one, weight, factor, is_wide in zip(step.accumulators, made.weights, made.factors, wide, strict=True):
            value = part_of(one.value)
            assert value is not None, "other values were reported as unsupported"
            self.places.append([])
            for chunk in chunks_of(value):
                self.inners.place(chunk, value.head)
                self.places[-1].append(len(sums))
                sums.append((_at(self._inner_list, chunk), weight, factor, is_wide))
        self.sums = tuple(sums)

    def outer_chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple((self.outers.names.index(c.tensor), c.lo, c.valid, c.padded) for c in self._outer_list)

    def inner_chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple((self.inners.names.index(c.tensor), c.lo, c.valid, c.padded) for c in self._inner_list)


def _at(chunks: list[Chunk], chunk: Chunk) -> int:
    if chunk not in chunks:
        chunks.append(chunk)
    return chunks.index(chunk)
