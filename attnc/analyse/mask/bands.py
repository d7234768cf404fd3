"""Pairs of conditions of a mask that bound one expression from both sides."""

from __future__ import annotations

from attnc.analyse.mask.cells import conjuncts
from attnc.analyse.mask.formula import AtLeastZero, formula
from attnc.analyse.mask.linear import to_node
from attnc.ir.nodes import Node


def split_bands(mask: Node) -> tuple[list[tuple[Node, int]], list[Node]]:
    """A mask as the conjunction of ``0 <= x <= c``, for each ``(x, c)``, and of the other conditions."""
    rest = conjuncts(mask)
    bands: list[tuple[Node, int]] = []
    for first in list(rest):
        for second in list(rest):
            a, b = formula(first), formula(second)
            if first not in rest or second not in rest or first is second:
                continue
            if not (isinstance(a, AtLeastZero) and isinstance(b, AtLeastZero)) or a.x.axes != {"i", "j"}:
                continue
            width = a.x + b.x
            if not width.terms and width.constant >= 0:
                bands.append((to_node(a.x), width.constant))
                rest = [node for node in rest if node not in (first, second)]
    return bands, rest
