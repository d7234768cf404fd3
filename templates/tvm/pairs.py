"""Products and values that are another vector for each pair of query and key, one pair at a time.

Nothing of them can be shared between rows, so this is as fast as reading them; the rest of a spec is not slowed.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.products import Shape, index, pieces
from attnc.templates.tvm.values import Value


def pair_products(
    out: Memory,
    place: Callable[[Value, Value], Value],
    product: Callable[[Value, Value], Value],
    count: Value,
    rows: Value,
) -> None:
    """``out[place(n, r)] = product(n, r)``."""
    with T.serial(count.expr) as key, T.serial(rows.expr) as row:
        n, r = index(key), index(row)
        out.store(place(n, r), product(n, r))


def pair_accumulate(
    shape: Shape,
    out: Memory,
    element: tuple[int, int],
    weight: Callable[[Value, Value], Value],
    read: Callable[[Value, Value, int, int], Value],
    width: int,
    count: Value,
    rows: Value,
    scale: Memory | None,
) -> None:
    """``out[r, e] = out[r, e] * scale[r] + sum_n weight(n, r) * read(n, r, e, ...)``, where the weight is not 0.

    ``element`` says where a sum lies: of row ``r``, element ``e`` is at ``r * element[0] + e * element[1]``.
    """
    with T.serial(rows.expr) as row:
        r = index(row)
        if scale:
            factor = scale.load(r).keep()
            for start, lanes in pieces(width, shape.lanes):
                at = (r * element[0] + start * element[1]).keep()
                out.store(at, out.load(at, lanes, step=element[1]) * factor, step=element[1])
        with T.serial(count.expr) as key:
            n = index(key)
            factor = weight(n, r).keep()
            with T.If(factor.differs(0.0).expr), T.Then():
                for start, lanes in pieces(width, shape.lanes):
                    at = (r * element[0] + start * element[1]).keep()
                    old = out.load(at, lanes, step=element[1])
                    out.store(at, fma(read(n, r, start, lanes), factor, old), step=element[1])
