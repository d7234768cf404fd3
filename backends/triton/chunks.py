"""The tables of chunks that the walk over the keys is given: what is loaded, multiplied and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attnc.backends.triton.slots import StepResult
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
    """The tables of one pass; equal chunks are loaded once. ``wide`` says of each accumulator whether its weights

    could overflow float16.
    """

    def __init__(
        self, queries: Tensors, keys: Tensors, dots: Sequence[Dot], step: Pass, made: StepResult, wide: Sequence[bool]
    ) -> None:
        self._queries, self._keys = queries, keys
        self._query_list: list[Chunk] = []
        self._key_list: list[Chunk] = []
        table: list[tuple[int, int, bool, bool]] = []
        for dot in dots:
            a, b = (part_of(node) for node in (dot.a, dot.b))
            assert a is not None, "dots of other vectors were reported as unsupported"
            assert b is not None, "dots of other vectors were reported as unsupported"
            a, b = (a, b) if a.side == "query" else (b, a)
            pairs = list(zip(chunks_of(a), chunks_of(b), strict=True))
            for at, (left, right) in enumerate(pairs):
                queries.place(left, a.head)
                keys.place(right, b.head)
                table.append((_at(self._query_list, left), _at(self._key_list, right), at == 0, at == len(pairs) - 1))
        self.dots = tuple(table)
        self.values = len(self._key_list)
        sums: list[tuple[int, int, int, bool]] = []
        for one, weight, factor, is_wide in zip(step.accumulators, made.weights, made.factors, wide, strict=True):
            value = part_of(one.value)
            assert value is not None, "other values were reported as unsupported"
            for chunk in chunks_of(value):
                keys.place(chunk, value.head)
                sums.append((_at(self._key_list, chunk), weight, factor, is_wide))
        self.sums = tuple(sums)

    def query_chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple((self._queries.names.index(c.tensor), c.lo, c.valid, c.padded) for c in self._query_list)

    def key_chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple((self._keys.names.index(c.tensor), c.lo, c.valid, c.padded) for c in self._key_list)


def _at(chunks: list[Chunk], chunk: Chunk) -> int:
    if chunk not in chunks:
        chunks.append(chunk)
    return chunks.index(chunk)
