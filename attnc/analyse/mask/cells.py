"""Masks whose data varies along the keys in steps: what was chosen of a block is the same for all its keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnc.ir.build import apply, index, literal
from attnc.ir.nodes import Apply, Index, Literal, Node, Param, Size
from attnc.ir.traverse import postorder


@dataclass(frozen=True, slots=True)
class Cells:
    """A mask as ``rest and data``: ``rest`` is about positions alone, ``data`` the same for ``step`` keys at a time.

    It is the same for ``rows`` query positions at a time too, from a multiple on: 0 for all of them, 1 for none.
    """

    rest: Node
    data: Node
    step: int
    rows: int


def cells_of(mask: Node) -> Cells | None:
    """How data in ``mask`` varies along the keys; ``None`` if it does so key by key, or there is none."""
    parts = conjuncts(mask)
    data = [part for part in parts if any(not _is_position(node) for node in postorder(part))]
    step = 0
    for part in data:
        found = _step(part, index("j"))
        if found is None:
            return None
        step = math.gcd(step, found)
    if step < 2:
        return None
    rest = [part for part in parts if part not in data]
    along = [_step(part, index("i")) for part in data]
    rows = math.gcd(*(1 if found is None else found for found in along))
    return Cells(_all(rest), _all(data), step, rows)


def conjuncts(mask: Node) -> list[Node]:
    """The conditions that a mask is made of, all of which must hold."""
    match mask:
        case Apply(op="and", args=(a, b)):
            return [*conjuncts(a), *conjuncts(b)]
        case _:
            return [mask]


def _all(parts: list[Node]) -> Node:
    found: Node = literal(True)
    for at, part in enumerate(parts):
        found = apply("and", found, part) if at else part
    return found


def _is_position(node: Node) -> bool:
    return isinstance(node, Apply | Index | Literal | Param | Size)


def _step(node: Node, axis: Node) -> int | None:
    """The greatest number of positions, from a multiple of it on, over which ``node`` is constant; 0 if over all."""
    steps = {
        part: int(part.args[1].value)
        for part in postorder(node)
        if isinstance(part, Apply) and part.op == "floordiv" and part.args[0] is axis
        if isinstance(part.args[1], Literal) and part.args[1].value > 0
    }
    first = apply("sub", index("i"), index("row"))  # of the query rows: the same for all
    leaves = (part for part in postorder(node, stop={*steps, first}) if not part.children)
    if any(axis.axes <= part.axes for part in leaves):
        return None
    return math.gcd(*steps.values())
