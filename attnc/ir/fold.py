"""Constant folding: operations on literals, done when the spec is compiled."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from attnc.ir.build import literal
from attnc.ir.nodes import Apply, Kind, Literal, Node

_LARGEST_INT = 2**63 - 1

VALUE: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "where": lambda condition, then, otherwise: then if condition else otherwise,
        "or": lambda a, b: a or b,
        "and": lambda a, b: a and b,
        "not": operator.not_,
        "lt": operator.lt,
        "le": operator.le,
        "gt": operator.gt,
        "ge": operator.ge,
        "eq": operator.eq,
        "ne": operator.ne,
        "bitor": operator.or_,
        "bitxor": operator.xor,
        "bitand": operator.and_,
        "shl": lambda a, b: a << b if 0 <= b < 64 else _unknown(),
        "shr": lambda a, b: a >> b if 0 <= b < 64 else _unknown(),
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "div": operator.truediv,
        "floordiv": operator.floordiv,
        "mod": operator.mod,
        "neg": operator.neg,
        "pow": math.pow,
        "min": min,
        "max": max,
        "abs": abs,
        "sign": lambda a: type(a)((a > 0) - (a < 0)),
        "floor": math.floor,
        "exp": math.exp,
        "log": math.log,
        "sqrt": math.sqrt,
        "rsqrt": lambda a: 1.0 / math.sqrt(a),
        "tanh": math.tanh,
        "sigmoid": lambda a: 0.5 * (1.0 + math.tanh(0.5 * a)),
        "erf": math.erf,
        "sin": math.sin,
        "cos": math.cos,
        "detach": lambda a: a,
    }
)
"""What each operation gives on Python's numbers. ``real`` of a literal is made by the builders."""


def _unknown() -> int:
    raise ArithmeticError


def fold(node: Node) -> Node:
    """The literal that an operation on literals gives, else ``node``.

    Real operations are evaluated in double precision. What has no finite value (``1 / 0``), does not fit 64 bits or
    would lose the sign of a zero is left as it is.
    """
    if not isinstance(node, Apply) or node.op not in VALUE:
        return node
    values = [arg.value for arg in node.args if isinstance(arg, Literal)]
    if len(values) < len(node.args):
        return node
    try:
        value = VALUE[node.op](*values)
    except (ArithmeticError, ValueError):
        return node
    match node.kind:
        case Kind.BOOL:
            return literal(bool(value))
        case Kind.INT:
            return literal(int(value)) if abs(value) <= _LARGEST_INT else node
        case Kind.REAL:
            is_negative_zero = value == 0 and math.copysign(1.0, value) < 0
            return node if is_negative_zero or not math.isfinite(value) else literal(float(value))
