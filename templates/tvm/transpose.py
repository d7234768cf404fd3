"""Matrices transposed in registers: a square of vectors at a time, by exchanging ever smaller blocks."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import exchange, lanes_of
from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.products import index, pieces
from attnc.templates.tvm.values import Value, constant


def transpose(out: Memory, source: Memory, height: int, width: int, lanes: int) -> None:
    """``out[c, r] = source[r, c]`` for a matrix of ``height`` rows and ``width`` columns, both without gaps."""

    def across(row: Value | int, rows: int) -> None:
        whole, rest = divmod(width, lanes)
        if whole:
            with T.serial(whole) as at:
                block(row, rows, index(at) * lanes, lanes)
        for start, columns in pieces(rest, lanes):
            block(row, rows, constant(whole * lanes + start, "int32"), columns)

    def block(row: Value | int, rows: int, column: Value, columns: int) -> None:
        side = max(rows, columns)
        zero = constant(0.0, source.type).spread(columns)
        vectors = [source.load((row + r) * width + column, columns) if r < rows else zero for r in range(side)]
        for c, vector in enumerate(transposed([_widened(x, side) for x in vectors])[:columns]):
            out.store((column + c) * height + row, lanes_of(vector, range(rows)))

    whole, rest = divmod(height, lanes)
    if whole:
        with T.serial(whole) as at:
            across((index(at) * lanes).keep(), lanes)
    for start, rows in pieces(rest, lanes):
        across(constant(whole * lanes + start, "int32"), rows)


def transposed(rows: Sequence[Value]) -> list[Value]:
    """The columns of a square matrix of as many vectors as each has lanes, a power of two (Eklundh, 1972)."""
    rows, half = list(rows), len(rows) // 2
    while half:
        for r in range(len(rows)):
            if not r & half:
                upper, lower = rows[r].keep(), rows[r + half].keep()
                rows[r], rows[r + half] = exchange(upper, lower, half)
        half //= 2
    return rows


def _widened(x: Value, lanes: int) -> Value:
    """``x`` repeated until it has ``lanes``."""
    at = [tirx.const(k, "int32") for k in range(lanes)]
    return x if x.lanes == lanes else Value(tirx.Shuffle([x.expr] * (lanes // x.lanes), at), x.type, lanes)
