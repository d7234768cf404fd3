"""Products of 16-bit numbers two at a time: AVX-512 multiplies pairs of bfloat16 and adds both to a ``float32``.

Where vectors lie in memory as bfloat16, their elements are pairs already. Along the keys, weights are rounded to
bfloat16, as GPUs do, and paired with those of the next key, like values; each pair is an ``int32``, its first number in
the lower half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.processor import features, multiply_pairs, round_to_pairs
from attnc.templates.tvm.products import Keys, Rows, Shape, index, pieces
from attnc.templates.tvm.values import Value, constant, minimum, select


def has_twos(shape: Shape) -> bool:
    """Whether the processor can."""
    return "avx512bf16" in features.get() and shape.lanes == 16


@dataclass(frozen=True, slots=True)
class Paired:
    """A vector in memory from ``start`` on, its elements numbered two at a time."""

    tensor: Any
    start: Value

    def load(self, at: Value, lanes: int = 1) -> Value:
        """The pair ``at``."""
        return self.tensor.pair(self.start + at * 2)

    def prefetch(self, at: Value, width: int) -> None:
        self.tensor.prefetch(self.start + at * 2, 2 * width)


def add_products(x: Value, rows: Value, total: Value) -> Value:
    """``total`` and both products of a pair with those of some rows."""
    return multiply_pairs(total, x.spread(rows.lanes), rows if rows.type == "int32" else rows.bits("int32"))


def pair(lower: Value, upper: Value) -> Value:
    """Two numbers of 16 bits that are held as ``float32``."""
    return ((lower.bits("int32") >> 16) & 0xFFFF) | (upper.bits("int32") & -0x10000)


def pair_elements(shape: Shape, out: Memory, elements: Memory, width: int) -> None:
    """``out[d, r]`` of ``elements[2 d, r]`` and the next."""
    with T.serial(width // 2 * (shape.rows // shape.lanes)) as number:
        at = index(number)
        d, r = at // (shape.rows // shape.lanes), (at % (shape.rows // shape.lanes)) * shape.lanes
        place = (d * (2 * shape.rows) + r).keep()
        lower, upper = (elements.load(place + k * shape.rows, shape.lanes).keep() for k in range(2))
        out.store(d * shape.rows + r, pair(lower, upper))


def pair_keys(shape: Shape, out: Memory, read: Callable[[Value, int, int], Value], width: int, count: Value) -> None:
    """``out[n, e]`` of the elements ``e`` of the keys ``2 n`` and the next, which is 0 if it is none of ``count``."""
    with T.serial(((count + 1) // 2).expr) as number:
        first = (index(number) * 2).keep()
        second = minimum(first + 1, count - 1).keep()
        for start, lanes in pieces(width, shape.lanes):
            lower, upper = read(first, start, lanes).keep(), read(second, start, lanes)
            upper = select((second > first).spread(lanes), upper, constant(0.0, upper.type)).keep()
            out.store(index(number) * width + start, pair(lower, upper))


def pair_weights(shape: Shape, plane: Memory, keys: Keys, at: Rows) -> Keys:
    """Put the weights of ``keys``, from an even one on, together as pairs of keys; the numbers of the pairs."""
    half = Keys((keys.first >> 1).keep(), ((keys.count + 1) >> 1).keep())
    end = (keys.first + keys.count).keep()
    with half.each() as number:
        first = (number * 2).keep()
        alone = (first + 1 >= end).keep()
        for v in at.all:
            place = (first * shape.rows + at.place(v)).keep()
            lower, upper = plane.load(place, at.lanes).keep(), plane.load(place + shape.rows, at.lanes)
            upper = select(alone.spread(at.lanes), constant(0.0, upper.type), upper).keep()
            plane.store(number * shape.rows + at.place(v), round_to_pairs(lower, upper).bits("float32"))
    return half
