"""What happens across the lanes of a vector: reductions, and lanes put elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.processor import intrinsic
from attnc.templates.tvm.values import Value, constant, maximum, minimum


def join(parts: Sequence[Value]) -> Value:
    """A vector of scalars."""
    if len(parts) == 1:
        return parts[0]
    at = [tirx.const(k, "int32") for k in range(len(parts))]
    return Value(tirx.Shuffle([part.expr for part in parts], at), parts[0].type, len(parts))


def library(name: str, x: Value) -> Value:
    """The C library's function ``name``, lane by lane."""
    x = x.keep()
    parts = [lanes_of(x, [k]) if x.lanes > 1 else x for k in range(x.lanes)]
    return join([Value(T.call_pure_extern(x.type, name, part.expr), x.type) for part in parts])


def any_lane(condition: Value) -> Value:
    """Whether any lane is true, as a scalar."""
    return _reduce_lanes("llvm.vector.reduce.or", condition)


def every_lane(condition: Value) -> Value:
    """Whether all lanes are true, as a scalar."""
    return _reduce_lanes("llvm.vector.reduce.and", condition)


def _reduce_lanes(name: str, condition: Value) -> Value:
    if condition.lanes == 1:
        return condition
    return intrinsic(name, condition.to("int32"), lanes=1).differs(0)


def sum_of_lanes(x: Value) -> Value:
    """The sum of the lanes, halves first."""
    return _fold_lanes(x, lambda a, b: a + b)


def max_of_lanes(x: Value) -> Value:
    """The largest lane."""
    return _fold_lanes(x, maximum)


def min_of_lanes(x: Value) -> Value:
    """The smallest lane."""
    return _fold_lanes(x, minimum)


def _fold_lanes(x: Value, combine: Any) -> Value:
    while x.lanes > 1:
        x, half = x.keep(), x.lanes // 2
        x = combine(lanes_of(x, range(half)), lanes_of(x, range(half, 2 * half)))
    return x


def lanes_of(x: Value, which: Sequence[int]) -> Value:
    """The lanes ``which`` of ``x``, in that order."""
    at = [tirx.const(k, "int32") for k in which]
    return Value(tirx.Shuffle([x.expr], at), x.type, len(at))


def exchange(a: Value, b: Value, half: int) -> tuple[Value, Value]:
    """The second of every two blocks of ``half`` lanes of ``a`` exchanged with the first of ``b``."""
    every = range(a.lanes)
    upper = [c - half + a.lanes if c & half else c for c in every]
    lower = [c + a.lanes if c & half else c + half for c in every]
    return _mix(a, b, upper), _mix(a, b, lower)


def _mix(a: Value, b: Value, which: Sequence[int]) -> Value:
    """Lanes ``which`` of ``a`` followed by ``b``."""
    at = [tirx.const(k, "int32") for k in which]
    return Value(tirx.Shuffle([a.expr, b.expr], at), a.type, len(at))


def sums_of_lanes(vectors: Sequence[Value]) -> Value:
    """The sum of the lanes of each of some vectors, a power of two of them, as a vector: folded side by side."""
    rows, lanes = list(vectors), vectors[0].lanes
    if lanes < len(rows):
        return join([sum_of_lanes(x) for x in rows])
    block = lanes
    while len(rows) > 1:
        block, pairs = block // 2, len(rows) // 2
        folded = [exchange(a.keep(), b.keep(), block) for a, b in zip(rows[:pairs], rows[pairs:], strict=True)]
        rows = [a + b for a, b in folded]
    total = rows[0].keep()
    half = block // 2
    while half:
        total = (total + lanes_of(total, [c ^ half for c in range(lanes)])).keep()
        half //= 2
    return lanes_of(total, [k * block for k in range(len(vectors))])


def vector_of(numbers: Sequence[int | float], type: str) -> Value:
    """A constant vector."""
    return join([constant(number, type) for number in numbers])
