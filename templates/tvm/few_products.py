"""The two matrix products of attention where a tile has few rows, as in decoding: elements of vectors along the lanes.

With rows along the lanes (:mod:`attnc.templates.tvm.products`) one row would leave all lanes but one idle.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import sums_of_lanes
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.products import Shape, Source, index, pieces
from attnc.templates.tvm.values import Value, constant, minimum

KEYS = 4
"""Keys whose products are formed side by side."""
AHEAD = 32
"""Keys between the one at work and the one whose memory is asked for: a processor by itself looks ahead but a page."""
VECTORS = 8
"""Vectors of a sum held in registers at once."""


def few_products(
    shape: Shape, out: Memory, queries: Memory, source: Source, width: int, count: Value, rows: Value, pitch: int
) -> None:
    """``out[r, n] = sum_d source(n)[d] * queries[r, d]`` for ``n < count``; rows past ``count`` repeat the last."""
    with T.serial(((count + (KEYS - 1)) // KEYS).expr) as block, T.serial(rows.expr) as number:
        first, row = (index(block) * KEYS).keep(), index(number)
        found = [source(minimum(first + k, count - 1)) for k in range(KEYS)]
        found = [(memory, offset.keep()) for memory, offset in found]
        for k in range(KEYS):
            memory, offset = source(first + k + AHEAD)
            memory.prefetch(offset, width)
        totals: list[dict[int, Value]] = [{} for _ in found]
        for start, lanes in pieces(width, shape.lanes):
            query = queries.load(row * width + start, lanes).keep()
            for total, (memory, offset) in zip(totals, found, strict=True):
                x = memory.load(offset + start, lanes)
                total[lanes] = (fma(x, query, total[lanes]) if lanes in total else x * query).keep()
        result = constant(0.0, shape.type).spread(KEYS)
        for lanes in totals[0]:
            result = result + sums_of_lanes([total[lanes] for total in totals])
        out.store(row * pitch + first, result)


def few_accumulate(
    shape: Shape,
    out: Memory,
    weights: Memory,
    source: Source,
    width: int,
    count: Value,
    rows: Value,
    scale: Memory | None,
    pitch: int,
) -> None:
    """``out[r, e] = out[r, e] * scale[r] + sum_{n < count} source(n)[e] * weights[r, n]``."""
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
                ahead, far = source(n + AHEAD)
                ahead.prefetch(far, width)
                weight = weights.load(row * pitch + n).keep()
                for total, (start, lanes) in zip(sums, part, strict=True):
                    total[0] = fma(memory.load(offset + start, lanes), weight, total[0])
            for total, (start, _) in zip(sums, part, strict=True):
                out.store(row * width + start, total[0])
