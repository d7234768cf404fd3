"""The two matrix products of attention on one tile, with rows along the lanes.

Scores are kept transposed, ``[key, row]``: one vector holds 16 query rows (on AVX-512) for one key. So keys and
values are read in place, an element at a time, repeated over the lanes by the multiply-add itself; nothing of them
is packed or transposed, and the reductions over the keys run down the registers, never across lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.values import Value, constant, minimum


class Readable(Protocol):
    """Elements behind a place: :class:`attnc.templates.tvm.memory.Memory`, or what converts as it reads."""

    def load(self, at: Value, lanes: int = 1) -> Value: ...

    def prefetch(self, at: Value, width: int) -> None: ...


Source: TypeAlias = Callable[[Value], tuple[Readable, Value]]
"""From the number of a key within its tile to the memory and offset of its vector's first element."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tile is cut.

    Attributes:
        type: element type of all arithmetic.
        lanes: elements of a machine vector.
        vectors: row vectors held at once in registers.
        block: keys, or elements of a value, held at once: ``vectors * block`` accumulators must fit.
        groups: groups of ``vectors`` that make the rows of a tile.
        keys: keys of a tile.
    """

    type: str
    lanes: int
    vectors: int
    block: int
    groups: int
    keys: int

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.groups * self.vectors * self.lanes

    def at(self, group: Value) -> Rows:
        """The rows of a group."""
        return Rows((group * (self.vectors * self.lanes)).keep(), self.vectors, self.lanes)

    @property
    def narrow(self) -> Shape:
        """The same tile cut into groups of two vectors; a single one would need a load for each multiply-add."""
        vectors = 2 if self.vectors % 2 == 0 else self.vectors
        return replace(self, vectors=vectors, groups=self.groups * self.vectors // vectors)


def index(loop_variable: object) -> Value:
    """The variable of a loop as a value."""
    return Value(loop_variable, "int32")


def products(shape: Shape, out: Memory, queries: Memory, source: Source, width: int, keys: Keys, at: Rows) -> None:
    """``out[n, r] = sum_d source(n)[d] * queries[d, r]`` for the ``keys``; rows past them repeat the last."""
    with T.serial(((keys.count + (shape.block - 1)) // shape.block).expr) as block:
        first = (keys.first + index(block) * shape.block).keep()
        found = [source(minimum(first + k, keys.first + keys.count - 1)) for k in range(shape.block)]
        found = [(memory, offset.keep()) for memory, offset in found]
        sums = Registers(shape.block * at.vectors, shape.type, shape.lanes, constant(0.0, shape.type))

        def step(d: Value) -> None:
            rows = [queries.load(d * shape.rows + at.first + v * shape.lanes, shape.lanes).keep() for v in at.all]
            for k, (memory, offset) in enumerate(found):
                x = memory.load(offset + d.to("int64")).spread(shape.lanes).keep()
                for v in at.all:
                    sums[k * at.vectors + v] = fma(x, rows[v], sums[k * at.vectors + v])

        unrolled(width, step)
        for k in range(shape.block):
            for v in at.all:
                out.store((first + k) * shape.rows + at.first + v * shape.lanes, sums[k * at.vectors + v])


def accumulate(
    shape: Shape, out: Memory, weights: Memory, source: Source, width: int, keys: Keys, at: Rows, scale: Memory | None
) -> None:
    """``out[e, r] = out[e, r] * scale[r] + sum_n source(n)[e] * weights[n, r]`` over the ``keys`` ``n``."""

    def part(first: Value, block: int) -> None:
        sums = Registers(block * at.vectors, shape.type, shape.lanes)
        for v in at.all:
            factor = scale.load(at.first + v * shape.lanes, shape.lanes).keep() if scale else None
            for e in range(block):
                old = out.load((first + e) * shape.rows + at.first + v * shape.lanes, shape.lanes)
                sums[e * at.vectors + v] = old * factor if factor else old
        with keys.each() as n:
            memory, offset = source(n)
            offset = (offset + first.to("int64")).keep()
            rows = [weights.load(n * shape.rows + at.first + v * shape.lanes, shape.lanes).keep() for v in at.all]
            for e in range(block):
                x = memory.load(offset + e).spread(shape.lanes).keep()
                for v in at.all:
                    sums[e * at.vectors + v] = fma(x, rows[v], sums[e * at.vectors + v])
        for e in range(block):
            for v in at.all:
                out.store((first + e) * shape.rows + at.first + v * shape.lanes, sums[e * at.vectors + v])

    whole, rest = divmod(width, shape.block)
    if whole:
        with T.serial(whole) as number:
            part((index(number) * shape.block).keep(), shape.block)
    if rest:
        part(constant(whole * shape.block, "int32"), rest)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows at work: ``vectors`` times ``lanes`` of them from row ``first`` of the tile on."""

    first: Value
    vectors: int
    lanes: int

    @property
    def all(self) -> range:
        return range(self.vectors)

    def place(self, vector: int) -> Value:
        """The first row of a vector."""
        return self.first + vector * self.lanes

    def joined(self, count: int) -> Rows:
        """The same rows as vectors of up to ``count`` times the lanes."""
        while self.vectors % count:
            count -= 1
        return Rows(self.first, self.vectors // count, self.lanes * count)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys at work: ``count`` of them from key ``first`` of the tile on."""

    first: Value
    count: Value

    @contextmanager
    def each(self) -> Iterator[Value]:
        """A loop over their numbers in the tile."""
        with T.serial(self.count.expr) as number:
            yield (self.first + index(number)).keep()


def unrolled(count: int, step: Callable[[Value], None], by: int = 4) -> None:
    """``step(0) ... step(count - 1)``, ``by`` of them a turn of the loop."""
    whole, rest = divmod(count, by)
    if whole:
        with T.serial(whole) as turn:
            for k in range(by):
                step((index(turn) * by + k).keep())
    for k in range(rest):
        step(constant(whole * by + k, "int32"))


def widen(shape: Shape, out: Memory, read: Callable[[Value, int, int], Value], width: int, count: Value) -> None:
    """``out[n, e .. e + lanes] = read(n, e, lanes)``: a tile of keys or values in the type of the arithmetic."""
    with T.serial(count.expr) as key:
        n = index(key)
        for start, lanes in pieces(width, shape.lanes):
            out.store(n * width + start, read(n, start, lanes))


def gather_rows(shape: Shape, out: Memory, read: Callable[[Value, int, int], Value], width: int, rows: Value) -> None:
    """``out[r, d] = read(r, d, ...)``."""
    with T.serial(rows.expr) as number:
        row = index(number)
        for start, lanes in pieces(width, shape.lanes):
            out.store(row * width + start, read(row, start, lanes))


def pieces(width: int, lanes: int) -> list[tuple[int, int]]:
    """``width`` cut into vectors of ``lanes`` and, at the end, of smaller powers of two: ``(start, lanes)``."""
    result, start = [], 0
    while start < width:
        while lanes > width - start:
            lanes //= 2
        result.append((start, lanes))
        start += lanes
    return result
