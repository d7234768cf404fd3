"""Truth values of kernels' scalar code: comparisons and connectives, simplified as they are built."""

from __future__ import annotations

from functools import lru_cache

from attnc.analyse.mask.arithmetic import nonnegative
from attnc.analyse.mask.linear import Linear, to_node
from attnc.ir.build import apply, literal
from attnc.ir.nodes import Apply, Literal, Node

TRUE, FALSE = literal(True), literal(False)

_OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


def at_least_zero(x: Linear) -> Node:
    """``x >= 0``, written with what is subtracted on the right."""
    if nonnegative(x):
        return TRUE
    if nonnegative(-x - 1):
        return FALSE
    left = Linear(tuple((t, c) for t, c in x.terms if c > 0), 0)
    right = Linear(tuple((t, -c) for t, c in x.terms if c < 0), 0)
    if not left.terms:
        return apply("le", to_node(right), to_node(left + x.constant))
    if x.constant == -1:
        return apply("gt", to_node(left), to_node(right))
    if x.constant > 0 and right.terms:
        return apply("ge", to_node(left + x.constant), to_node(right))
    return apply("ge", to_node(left), to_node(right - x.constant))


def equals_zero(x: Linear) -> Node:
    """``x == 0``."""
    if not x.terms:
        return literal(x.constant == 0)
    left = Linear(tuple((t, c) for t, c in x.terms if c > 0), max(x.constant, 0))
    right = Linear(tuple((t, -c) for t, c in x.terms if c < 0), max(-x.constant, 0))
    return apply("eq", to_node(left), to_node(right))


def all_of(*nodes: Node) -> Node:
    """The conjunction; ``true`` of nothing."""
    return _joined("and", TRUE, FALSE, nodes)


def any_of(*nodes: Node) -> Node:
    """The disjunction; ``false`` of nothing."""
    return _joined("or", FALSE, TRUE, nodes)


def _joined(op: str, neutral: Literal, absorbing: Literal, nodes: tuple[Node, ...]) -> Node:
    kept: list[Node] = []
    for node in nodes:
        if node is absorbing:
            return absorbing
        if node is not neutral and node not in kept:
            kept.append(node)
    if any(negation(node) in kept for node in kept if not _is_connective(node)):
        return absorbing
    total: Node = kept[0] if kept else neutral
    for node in kept[1:]:
        total = apply(op, total, node)
    return total


def _is_connective(node: Node) -> bool:
    return isinstance(node, Apply) and node.op in ("and", "or")


@lru_cache(maxsize=4096)
def negation(node: Node) -> Node:
    """``not node``, the connectives and comparisons of ints turned round."""
    match node:
        case Literal():
            return literal(not node.value)
        case Apply(op="not", args=(x,)):
            return x
        case Apply() if node.op in _OPPOSITE and all(arg.kind == "int" for arg in node.args):
            return apply(_OPPOSITE[node.op], *node.args)
        case Apply(op="and" | "or", args=(x, y)):
            return (any_of if node.op == "and" else all_of)(negation(x), negation(y))
    return apply("not", node)
