"""The end of a tile: sums go through shared memory, so that neighbouring threads write neighbouring elements."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import Block, Shared, synchronise
from attnc.templates.tvm.cuda.rows import HeldRows
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.cuda.slots import BlockSlots, BlockTaskSlots, Elements
from attnc.templates.tvm.products import index
from attnc.templates.tvm.values import Value


def finish(
    shape: Shape, slots: BlockSlots, task: BlockTaskSlots, block: Block, rows: HeldRows, first: Value, count: Value
) -> None:
    """Write the results of ``count`` rows from ``first`` on."""
    widths = {total.name: total.width for walk in slots.walks for total in walk.sums}
    pitches = {name: width + 1 for name, width in widths.items()}
    sums = {name: block.take(shape.rows * pitches[name], "float32") for name in widths}
    for name, held in rows.sums.items():
        padded = shape.padded(widths[name])
        with T.unroll(padded // 8) as at:
            for u, c in rows.pairs:
                e = (index(at) * 8 + block.place * 2 + c).keep()
                with T.If((e < widths[name]).expr), T.Then():
                    sums[name].store(rows.own[u] * pitches[name] + e, held[shape.place(index(at), u, c, padded)])
    states, seen = rows.keep_states()
    synchronise()

    def reader(memory: Shared, pitch: int, r: Value) -> Elements:
        return lambda start, lanes: memory.load(r * pitch + start)

    def of_row(r: Value) -> tuple[dict[str, Value], dict[str, Elements]]:
        return {name: memory.load(r).keep() for name, memory in states.items()}, {
            name: reader(memory, pitches[name], r) for name, memory in sums.items()
        }

    if slots.by_element:
        with block.dealt(shape.rows * slots.output) as number:
            r, e = (number // slots.output).keep(), (number % slots.output).keep()
            with T.If((r < count).expr), T.Then():
                task.finish_element((first + r).keep(), e, seen.load(r).differs(0).keep(), *of_row(r))
    with T.If((block.thread < count).expr), T.Then():
        r = block.thread
        row = (first + r).keep()
        if slots.by_element:
            task.finish_numbers(row, seen.load(r).differs(0).keep(), of_row(r)[0])
            return
        with T.If(seen.load(r).differs(0).expr):
            with T.Then():
                task.finish(row, *of_row(r))
            with T.Else():
                task.nothing(row)
