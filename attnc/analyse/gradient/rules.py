"""The derivative of each operation of :data:`attnc.ir.ops.OPS`.

A rule takes the arguments ``x`` of an operation, its value ``y`` and the cotangent ``g`` of that value, and yields the
cotangent of each argument, ``None`` where mathematics says zero almost everywhere. At the kinks the choices are those
of torch's autograd: ``abs`` and ``relu``-like comparisons of equal numbers share the cotangent evenly, ``sqrt`` is
left infinite at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from attnc.ir.build import apply, literal
from attnc.ir.nodes import Literal, Node

Cotangents: TypeAlias = tuple[Node | None, ...]
Rule: TypeAlias = Callable[[tuple[Node, ...], Node, Node], Cotangents]

ZERO, HALF, ONE = literal(0.0), literal(0.5), literal(1.0)


def is_number(node: Node, value: float) -> bool:
    """Whether ``node`` is the literal ``value``."""
    return isinstance(node, Literal) and node.value == value


def plus(a: Node, b: Node) -> Node:
    """``a + b``, where adding zero is nothing."""
    return b if is_number(a, 0.0) else a if is_number(b, 0.0) else apply("add", a, b)


def times(a: Node, b: Node) -> Node:
    """``a * b``, where multiplying by one is nothing."""
    return b if is_number(a, 1.0) else a if is_number(b, 1.0) else apply("mul", a, b)


def neg(a: Node) -> Node:
    """``-a``, with two signs cancelled."""
    match a:
        case Literal(value=value):
            return literal(-float(value))
        case _ if getattr(a, "op", "") == "neg":
            return a.children[0]
    return apply("neg", a)


def over(a: Node, b: Node) -> Node:
    """``a / b``, where dividing by one is nothing."""
    return a if is_number(b, 1.0) else apply("div", a, b)


def where(condition: Node, yes: Node, no: Node) -> Node:
    return apply("where", condition, yes, no)


def _larger(x: Node, y: Node, g: Node) -> Node:
    """What of ``g`` belongs to ``x`` in ``max(x, y)``: all, half where they are equal, or nothing."""
    share = where(apply("eq", x, y), times(HALF, g), ZERO)
    return where(apply("gt", x, y), g, share)


def _pow(x: tuple[Node, ...], y: Node, g: Node) -> Cotangents:
    base, exponent = x
    if isinstance(exponent, Literal):
        n = float(exponent.value)
        if n == 0.0:
            return None, None
        lower = base if n == 2.0 else apply("pow", base, literal(n - 1.0))
        return times(g, times(literal(n), ONE if n == 1.0 else lower)), None
    zero = apply("eq", base, ZERO)
    lower = apply("pow", base, apply("sub", exponent, ONE))
    by_base = where(apply("eq", exponent, ZERO), ZERO, times(g, times(exponent, lower)))
    by_exponent = where(zero, ZERO, times(g, times(y, apply("log", where(zero, ONE, base)))))
    return by_base, by_exponent


def _mod(x: tuple[Node, ...], y: Node, g: Node) -> Cotangents:
    quotient = apply("real", apply("floor", apply("div", *x)))
    return g, neg(times(g, quotient))


def _none(x: tuple[Node, ...], y: Node, g: Node) -> Cotangents:
    return (None,) * len(x)


RULES: dict[str, Rule] = {
    "where": lambda x, y, g: (None, where(x[0], g, ZERO), where(x[0], ZERO, g)),
    "add": lambda x, y, g: (g, g),
    "sub": lambda x, y, g: (g, neg(g)),
    "mul": lambda x, y, g: (times(g, x[1]), times(g, x[0])),
    "div": lambda x, y, g: (over(g, x[1]), neg(times(g, over(y, x[1])))),
    "mod": _mod,
    "neg": lambda x, y, g: (neg(g),),
    "pow": _pow,
    "min": lambda x, y, g: (_larger(x[1], x[0], g), _larger(x[0], x[1], g)),
    "max": lambda x, y, g: (_larger(x[0], x[1], g), _larger(x[1], x[0], g)),
    "abs": lambda x, y, g: (times(g, apply("sign", x[0])),),
    "exp": lambda x, y, g: (times(g, y),),
    "log": lambda x, y, g: (over(g, x[0]),),
    "sqrt": lambda x, y, g: (over(times(HALF, g), y),),
    "rsqrt": lambda x, y, g: (times(literal(-0.5), times(g, over(y, x[0]))),),
    "tanh": lambda x, y, g: (times(g, apply("sub", ONE, times(y, y))),),
    "sigmoid": lambda x, y, g: (times(g, times(y, apply("sub", ONE, y))),),
    "erf": lambda x, y, g: (times(g, times(literal(2 / math.sqrt(math.pi)), apply("exp", neg(times(x[0], x[0]))))),),
    "sin": lambda x, y, g: (times(g, apply("cos", x[0])),),
    "cos": lambda x, y, g: (neg(times(g, apply("sin", x[0]))),),
    "sign": _none,
    "floor": _none,
    "real": _none,
    "detach": _none,
}
"""By operation. Those that yield ints or truth values take no part and are not listed."""
