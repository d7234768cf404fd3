"""A walk over the rows that also adds up, for each row, what it has in common with a sum of each key.

The gradients of queries and of keys sum the same terms, one over the keys and one over the rows. A tile of terms that
lies in cache serves both: two products of five are saved over walking twice. Sums of rows grow from tile to tile of
keys; for several threads to share a head, its tiles of keys are dealt to parts with sums of their own, which are added
up afterwards. How many parts there are depends on sizes alone, so that results have the same bits on any number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.head import TASKS
from attnc.templates.tvm.many import ManyRows
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.products import Shape, Source, gather_rows, index, pieces
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.values import Value, constant, maximum, minimum
from attnc.templates.tvm.walk import Sizes, Slots, TaskSlots, Walk


@dataclass(frozen=True, slots=True)
class Cross:
    """A sum of each row: of the weights in a plane times a vector of the key.

    Attributes:
        plane: where the weights are.
        width: of the vector.
        read: ``(task, key, start, lanes)`` to its elements.
        part: ``(part, b, h, row)`` to memory and place of a part of the sum.
        whole: ``(b, h, row)`` to those of the sum.
    """

    plane: int
    width: int
    read: Callable[[TaskSlots, Value, int, int], Value]
    part: Callable[[Value, Value, Value, Value], tuple[Memory, Value]]
    whole: Callable[[Value, Value, Value], tuple[Memory, Value]]


def stream_crossed(shape: Shape, slots: Slots, sizes: Sizes, tasks: Tasks, crosses: Sequence[Cross]) -> None:
    """The whole kernel: as :func:`attnc.templates.tvm.stream.stream`, where ``sizes.N`` counts the rows."""
    heads = (sizes.B * sizes.H).keep()
    parts = maximum(constant(TASKS, "int32") // heads, 1).keep()
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    with tasks.dealt(heads * parts) as (task, scratch):
        part, head = (task % parts).keep(), (task // parts).keep()
        b, h = (head // sizes.H).keep(), (head % sizes.H).keep()
        for cross in crosses:
            with T.serial(sizes.N.expr) as row:
                memory, place = cross.part(part, b, h, index(row))
                place = place.keep()
                for start, lanes in pieces(cross.width, shape.lanes):
                    memory.store(place + start, constant(0.0, shape.type).spread(lanes))
        with T.serial(((tiles - part + (parts - 1)) // parts).expr) as turn, scratch.shared():
            row = ((part + index(turn) * parts) * shape.rows).keep()
            count = minimum(sizes.M - row, shape.rows).keep()
            _Crossing(
                shape, slots, slots.task(b, h, scratch), sizes, scratch, row, count, shape.vectors, shape.rows
            ).run_with([(cross, lambda n, cross=cross: cross.part(part, b, h, n)) for cross in crosses])
    for cross in crosses:
        _add_parts(shape, sizes, tasks, cross, parts)


class _Crossing(ManyRows):
    """The code for one tile of keys."""

    reads_every_pair = True

    def run_with(self, crosses: Sequence[tuple[Cross, Source]]) -> None:
        self.crosses = crosses
        self.run()

    def _start(self) -> None:
        super()._start()
        self.vectors_of = []
        for cross, _ in self.crosses:
            memory = self.take(cross.width * self.shape.rows, self.shape.type, "crossed")

            def read(r: Value, start: int, lanes: int, cross: Cross = cross) -> Value:
                return cross.read(self.task, (self.row + r).keep(), start, lanes)

            gather_rows(self.shape, memory, read, cross.width, self.count)
            self.vectors_of.append(memory)

    def _compute(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        super()._compute(number, walk, j_lo, count, full)
        for (cross, out), vectors in zip(self.crosses, self.vectors_of, strict=True):

            def place(n: Value, out: Source = out) -> tuple[Memory, Value]:
                return out((j_lo + n).keep())

            cross_accumulate(self.shape, place, self.planes[cross.plane], vectors, cross.width, count, self.count)


def cross_accumulate(
    shape: Shape, out: Source, weights: Memory, values: Memory, width: int, count: Value, rows: Value
) -> None:
    """``out(n)[e] += sum_{r < rows} weights[n, r] * values[r, e]`` for ``n < count``; a row may be written twice."""
    every = pieces(width, shape.lanes)
    with T.serial(((count + (shape.block - 1)) // shape.block).expr) as number:
        first = (index(number) * shape.block).keep()
        keys = [minimum(first + k, count - 1).keep() for k in range(shape.block)]
        found = [(memory, offset.keep()) for memory, offset in map(out, keys)]
        for at in range(0, len(every), shape.vectors):
            part = every[at : at + shape.vectors]
            sums = [[Registers(1, shape.type, lanes) for _, lanes in part] for _ in keys]
            for (memory, offset), totals in zip(found, sums, strict=True):
                for total, (start, lanes) in zip(totals, part, strict=True):
                    total[0] = memory.load(offset + start, lanes)
            with T.serial(rows.expr) as row:
                r = index(row)
                vectors = [values.load(r * width + start, lanes).keep() for start, lanes in part]
                for key, totals in zip(keys, sums, strict=True):
                    weight = weights.load(key * shape.rows + r).keep()
                    for total, vector in zip(totals, vectors, strict=True):
                        total[0] = fma(vector, weight, total[0])
            for (memory, offset), totals in zip(found, sums, strict=True):
                for total, (start, _) in zip(totals, part, strict=True):
                    memory.store(offset + start, total[0])


def _add_parts(shape: Shape, sizes: Sizes, tasks: Tasks, cross: Cross, parts: Value) -> None:
    """Parts to sums, some rows of a head a task."""
    blocks = ((sizes.N + (shape.rows - 1)) // shape.rows).keep()
    with tasks.dealt(sizes.B * sizes.H * blocks) as (task, _):
        head, first = (task // blocks).keep(), ((task % blocks) * shape.rows).keep()
        b, h = (head // sizes.H).keep(), (head % sizes.H).keep()
        with T.serial(minimum(sizes.N - first, shape.rows).expr) as number:
            row = (first + index(number)).keep()
            memory, place = cross.whole(b, h, row)
            place = place.keep()
            for start, lanes in pieces(cross.width, shape.lanes):
                total = Registers(1, shape.type, lanes, constant(0.0, shape.type))
                with T.serial(parts.expr) as part:
                    source, offset = cross.part(index(part), b, h, row)
                    total[0] = total[0] + source.load(offset + start, lanes)
                memory.store(place + start, total[0])
