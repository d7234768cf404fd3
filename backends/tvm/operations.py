"""The operations of :data:`attnc.ir.ops.OPS` on TIR values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attnc.ir.nodes import Literal, Node
from attnc.templates.tvm import functions
from attnc.templates.tvm.processor import intrinsic
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select


def operation(op: str, nodes: Sequence[Node], args: Sequence[Value], real: str) -> Value:
    """One operation of :data:`attnc.ir.ops.OPS` on values; ``real`` is the type of the arithmetic."""
    if op in functions.UNARY:
        return functions.UNARY[op](args[0])
    match op, args:
        case "where", (condition, yes, no):
            return select(condition, yes, no)
        case "or" | "bitor", (a, b):
            return a | b
        case "and" | "bitand", (a, b):
            return a & b
        case "bitxor", (a, b):
            return a ^ b
        case "not", (a,):
            return ~a
        case "lt", (a, b):
            return a < b
        case "le", (a, b):
            return a <= b
        case "gt", (a, b):
            return a > b
        case "ge", (a, b):
            return a >= b
        case "eq", (a, b):
            return (a.equals(b)) if a.type != "bool" else ~(a.to("int32") ^ b.to("int32")).differs(0)
        case "ne", (a, b):
            return a.differs(b) if a.type != "bool" else (a.to("int32") ^ b.to("int32")).differs(0)
        case "shl", (a, b):
            outside = (b < 0) | (b > 31)
            return select(outside, constant(0, "int32"), a << (b & 31))
        case "shr", (a, b):
            return a >> minimum(maximum(b, 0), 31)
        case "add", (a, b):
            return a + b
        case "sub", (a, b):
            return a - b
        case "mul", (a, b):
            return a * b
        case "div", (a, b):
            divisor_of = nodes[1]
            if isinstance(divisor_of, Literal) and divisor_of.value and math.isfinite(1.0 / divisor_of.value):
                return a * (1.0 / divisor_of.value)
            return a / b
        case "floordiv", (a, b):
            return a // divisor(nodes[1], b)
        case "mod", (a, b) if a.type == "int32":
            return a % divisor(nodes[1], b)
        case "mod", (a, b):
            return a - intrinsic("llvm.floor", a / b) * b
        case "neg", (a,):
            return -a
        case "pow", (a, b):
            return raised(nodes[1], a, b)
        case "min", (a, b):
            return minimum(b, a) if isinstance(nodes[0], Literal) else minimum(a, b)
        case "max", (a, b):
            return maximum(b, a) if isinstance(nodes[0], Literal) else maximum(a, b)
        case "abs", (a,):
            return intrinsic("llvm.fabs", a) if a.type == real else select(a < 0, -a, a)
        case "sign", (a,):
            return (a > 0).to(a.type) - (a < 0).to(a.type)
        case "floor", (a,):
            return intrinsic("llvm.floor", a).to("int32")
        case "real", (a,):
            return a.to(real)
        case "detach", (a,):
            return a
    raise AssertionError(f"operation {op} is unknown")


def divisor(node: Node, value: Value) -> Value:
    """An integer divisor that does not trap: 0 becomes 1."""
    if isinstance(node, Literal) and node.value != 0:
        return value
    return select(value.equals(0), constant(1, "int32"), value).keep()


def raised(node: Node, x: Value, y: Value) -> Value:
    """``x ** y``; small whole exponents by multiplication."""
    exponent = node.value if isinstance(node, Literal) else math.nan
    if exponent in (0.5, -0.5):
        return functions.sqrt(x) if exponent > 0 else functions.rsqrt(x)
    if exponent != exponent or exponent != int(exponent) or not 0 < abs(exponent) <= 16:
        return functions.power(x, y)
    result, square, rest = None, x, int(abs(exponent))
    while rest:
        if rest & 1:
            result = square if result is None else (result * square).keep()
        rest >>= 1
        if rest:
            square = (square * square).keep()
    assert result is not None
    return result if exponent > 0 else 1.0 / result
