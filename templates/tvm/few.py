"""The two matrix products of attention where a tile has few rows, as in decoding: elements of vectors along the lanes.

With rows along the lanes (:mod:`attnc.templates.tvm.products`) one row would leave all lanes but one idle.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import sum_of_lanes
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.products import Shape, Source, index, pieces
from attnc.templates.tvm.values import Value, constant, minimum

ROWS = 8
"""The most rows that count as few: beyond, full tiles are cheaper even where half of their rows are missing."""
KEYS = 4
"""Keys whose products are formed side by side."""
VECTORS = 8
"""Vectors of a sum held in registers at once."""


def gather_rows(shape: Shape, out: Memory, read: Callable[[Value, int, int], Value], width: int, rows: Value) -> None:
    """``out[r, d] = read(r, d, ...)``."""
    with T.serial(rows.expr) as number:
        row = index(number)
        for start, lanes in pieces(width, shape.lanes):
            out.store(row * width + start, read(row, start, lanes))


def few_products(
    shape: Shape, out: Memory, queries: Memory, source: Source, width: int, count: Value, rows: Value
) -> None:
    """``out[n, r] = sum_d source(n)[d] * queries[r, d]`` for ``n < count``; rows past ``count`` repeat the last."""
    with T.serial(((count + (KEYS - 1)) // KEYS).expr) as block, T.serial(rows.expr) as number:
        first, row = (index(block) * KEYS).keep(), index(number)
        found = [source(minimum(first + k, count - 1)) for k in range(KEYS)]
        found = [(memory, offset.keep()) for memory, offset in found]
        totals: list[dict[int, Value]] = [{} for _ in found]
        for start, lanes in pieces(width, shape.lanes):
            query = queries.load(row * width + start, lanes).keep()
            for total, (memory, offset) in zip(totals, found, strict=True):
                x = memory.load(offset + start, lanes)
                total[lanes] = (fma(x, query, total[lanes]) if lanes in total else x * query).keep()
        for k, total in enumerate(totals):
            parts = [sum_of_lanes(x) for x in total.values()]
            result = parts[0]
            for part in parts[1:]:
                result = result + part
            out.store((first + k) * shape.rows + row, result)


def few_accumulate(
    shape: Shape,
    out: Memory,
    weights: Memory,
    source: Source,
    width: int,
    count: Value,
    rows: Value,
    scale: Memory | None,
) -> None:
    """``out[r, e] = out[r, e] * scale[r] + sum_{n < count} source(n)[e] * weights[n, r]``."""
    every = pieces(width, shape.lanes)
    with T.serial(rows.expr) as number:
        row = index(number)
        factor = scale.load(row).keep() if scale else constant(1.0, shape.type)
        for at in range(0, len(every), VECTORS):
            part = every[at : at + VECTORS]
            sums = [Registers(1, shape.type, lanes) for _, lanes in part]
            for total, (start, lanes) in zip(sums, part, strict=True):
                total[0] = out.load(row * width + start, lanes) * factor
            with T.serial(count.expr) as key:
                n = index(key)
                memory, offset = source(n)
                offset = offset.keep()
                weight = weights.load(n * shape.rows + row).keep()
                for total, (start, lanes) in zip(sums, part, strict=True):
                    total[0] = fma(memory.load(offset + start, lanes), weight, total[0])
            for total, (start, _) in zip(sums, part, strict=True):
                out.store(row * width + start, total[0])
