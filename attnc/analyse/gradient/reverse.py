"""Reverse mode through an expression graph: each node once, in reverse topological order, shared ones summed first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attnc.analyse.gradient.rules import ONE, RULES, ZERO, neg, over, plus, times, where
from attnc.analyse.hoist import pull_scalars
from attnc.ir.build import IllTyped, apply, dot, reduce_width, rope
from attnc.ir.nodes import Apply, Dot, Kind, Node, Reduce, Rope
from attnc.ir.traverse import postorder


class NotDifferentiable(IllTyped):
    """A derivative was asked for through something that has none in the language. ``node`` is that something."""

    def __init__(self, message: str, node: Node) -> None:
        super().__init__(message)
        self.node = node


def reverse(seeds: Mapping[Node, Node], is_leaf: Callable[[Node], bool]) -> dict[Node, Node]:
    """Cotangents of the leaves, given those of some nodes above them.

    Args:
        seeds: the cotangent of each root.
        is_leaf: where to stop. The cotangent of a leaf is returned; what is below it is not looked at.

    Returns:
        For every real leaf that a root depends on, the sum of what reaches it: a scalar for a scalar; for a vector a
        vector, or a scalar where all its elements are equal. Leaves with a zero derivative almost everywhere are
        absent. In an order that depends on the expressions alone.

    Raises:
        NotDifferentiable: a reduction over the keys, or something else without a rule, stands between.
    """
    found = [node for node in postorder(*seeds) if is_leaf(node)]
    leaves = set(found)
    order = list(postorder(*seeds, stop=leaves))
    reaches = _reaches(order, leaves)
    cotangents: dict[Node, Node] = {}

    def add(node: Node, cotangent: Node | None) -> None:
        if cotangent is not None and node in reaches:
            summed = _fit(cotangent, node)
            cotangents[node] = plus(cotangents[node], summed) if node in cotangents else summed

    for root, seed in seeds.items():
        add(root, seed)
    for node in reversed(order):
        if node in cotangents and node not in leaves:
            for child, cotangent in _pull(node, cotangents[node]):
                add(child, cotangent)
    return {leaf: cotangents[leaf] for leaf in found if leaf in cotangents}


def _reaches(order: list[Node], leaves: set[Node]) -> set[Node]:
    """The real nodes from which a real leaf can be reached."""
    reaches: set[Node] = set()
    for node in order:
        if node.kind is Kind.REAL and (node in leaves or any(child in reaches for child in node.children)):
            reaches.add(node)
    return reaches


def _fit(cotangent: Node, node: Node) -> Node:
    """A scalar that was repeated over the width of a vector gathers the sum over it."""
    return _total(cotangent) if node.width is None and cotangent.is_vector else cotangent


def _total(x: Node) -> Node:
    """``sum_d(x)``, with scalar factors and signs outside and products of vectors as dot products."""
    match x:
        case Apply(op="neg", args=(a,)):
            return neg(_total(a))
        case Apply(op="mul", args=(a, b)) if a.is_vector and b.is_vector:
            return pull_scalars(dot(a, b))
        case Apply(op="mul", args=(a, b)):
            return times(_total(a), b) if a.is_vector else times(a, _total(b))
        case Apply(op="div", args=(a, b)) if not b.is_vector:
            return over(_total(a), b)
    return reduce_width("sum", x)


def _pull(node: Node, g: Node) -> list[tuple[Node, Node | None]]:
    """What ``g``, the cotangent of ``node``, gives to each child."""
    match node:
        case Apply(op=op, args=args):
            return list(zip(args, RULES[op](args, node, g), strict=True))
        case Dot(a=a, b=b):
            return [(a, times(g, b)), (b, times(g, a))]
        case Reduce(op="sum", over="d", x=x):
            return [(x, g)]
        case Reduce(op="max", over="d", x=x):
            hit = apply("eq", x, node)
            ties = reduce_width("sum", where(hit, ONE, ZERO))
            return [(x, where(hit, over(g, ties), ZERO))]
        case Rope(x=x, position=position, base=base, rotated=rotated) if g.is_vector:
            return [(x, rope(g, neg(position), base, rotated))]
    raise NotDifferentiable(f"no gradient is derived through `{type(node).__name__.lower()}`", node)
