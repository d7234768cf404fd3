"""Which terms of a sum are small whatever the data, so that 16 bits hold them."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.ir.nodes import Apply, Literal, Node

_BOUNDED = frozenset({"sigmoid", "tanh", "erf", "sin", "cos", "sign"})


def is_bounded(term: Node, maxima: Mapping[Node, Node]) -> bool:
    """Whether a term is provably within [-1, 1].

    ``maxima`` maps what stands for the maximum of a row (a state, or a read of one) to what it is the maximum of.
    """

    def at_least(row: Node, x: Node) -> bool:
        match row:
            case Apply(op="max", args=args):
                return any(at_least(arg, x) for arg in args)
            case _:
                return maxima.get(row) is x

    match term:
        case Literal(value=value):
            return abs(value) <= 1
        case Apply(op="exp", args=(Apply(op="sub", args=(x, row)),)):
            return at_least(row, x)
        case Apply(op=op) if op in _BOUNDED:
            return True
        case Apply(op="mul" | "min" | "max" | "neg" | "abs", args=args):
            return all(is_bounded(arg, maxima) for arg in args)
        case Apply(op="where", args=(_, *args)):
            return all(is_bounded(arg, maxima) for arg in args)
    return False
