"""Products and values that are another vector for each pair, one pair at a time."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import Local, Shared, synchronise
from attnc.templates.tvm.cuda.rows import HeldRows
from attnc.templates.tvm.products import index
from attnc.templates.tvm.values import Value, minimum


def pair_products(rows: HeldRows, pairs: Shared, number: int, product: int, j_lo: Value) -> None:
    """A plane of products; each thread leaves its own in shared memory, in a loop, and takes them from there."""
    keys, place = rows.shape.keys, rows.block.place
    with T.serial(keys // 8) as at:
        for u, c in rows.pairs:
            n = (index(at) * 8 + place * 2 + c).keep()
            j = minimum(j_lo + n, rows.sizes.N - 1).keep()
            pairs.store(rows.own[u] * keys + n, rows.task.pair_product(number, product, rows.rows[u], j))
    with T.unroll(keys // 8) as at:
        for u, c in rows.pairs:
            n = index(at) * 8 + place * 2 + c
            rows.planes[product][rows.shape.place(index(at), u, c, keys)] = pairs.load(rows.own[u] * keys + n)


def pair_accumulate(
    rows: HeldRows, pairs: Shared, walk: int, number: int, sums: Local, weights: Local, j_lo: Value, count: Value
) -> None:
    """``sums[r, e] += sum_n weights[n, r] * value(n, r)[e]``, where the weight is not 0."""
    keys, place = rows.shape.keys, rows.block.place
    width = rows.slots.walks[walk].sums[number].width
    padded = rows.shape.padded(width)
    with T.unroll(keys // 8) as at:
        for u, c in rows.pairs:
            n = index(at) * 8 + place * 2 + c
            pairs.store(rows.own[u] * keys + n, weights[rows.shape.place(index(at), u, c, keys)])
    synchronise()
    with T.serial(count.expr) as key:
        n = index(key)
        for u in rows.shape.held:
            weight = pairs.load(rows.own[u] * keys + n).keep()
            with T.If(weight.differs(0.0).expr), T.Then(), T.unroll(padded // 8) as at:
                for c in (0, 1):
                    e = minimum(index(at) * 8 + place * 2 + c, width - 1).keep()
                    x = rows.task.pair_value(walk, number, rows.rows[u], (j_lo + n).keep(), e, 1)  # type: ignore[arg-type]
                    at_sum = rows.shape.place(index(at), u, c, padded)
                    sums[at_sum] = sums[at_sum] + x * weight
    synchronise()
