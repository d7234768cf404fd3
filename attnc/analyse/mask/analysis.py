"""The analysis of visible tiles as one function."""

from __future__ import annotations

from attnc.analyse.mask.bounds import Box
from attnc.analyse.mask.formula import formula
from attnc.analyse.mask.linear import PAIR_AXES, atom
from attnc.analyse.mask.ranges import KEYS, ROWS, ranges_of
from attnc.analyse.mask.truth import all_of, negation
from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO, Visibility
from attnc.ir.nodes import Apply, Index, Literal, Node, Param, Size


def analyse_mask(mask: Node) -> Visibility:
    """Bounds of ``mask``, a ``bool`` scalar over ``b h i j``.

    Sound for every size, parameter and input: no visible pair lies in an ``empty`` tile or outside the ranges, none
    that is masked in a ``full`` one.
    """
    normal = formula(mask)
    needed: dict[Node, None] = {}
    tile = Box({"i": (atom(I_LO), atom(I_HI)), "j": (atom(J_LO), atom(J_HI))}, needed)
    empty, full = negation(tile.can_hold(normal)), tile.must_hold(normal)
    key_ranges, keys_tight = ranges_of(normal, KEYS)
    row_ranges, rows_tight = ranges_of(normal, ROWS)
    by_data = _depends_on_data(mask)
    return Visibility(
        mask=mask,
        key_ranges=key_ranges,
        row_ranges=row_ranges,
        empty=all_of(*needed, empty),
        full=all_of(*needed, full),
        by_ranges=keys_tight and rows_tight and not by_data,
        by_data=by_data,
    )


def _depends_on_data(node: Node) -> bool:
    """Whether something other than positions, sizes and parameters varies with ``i`` or ``j``."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in seen or not node.axes & PAIR_AXES:
            continue
        seen.add(node)
        if not isinstance(node, Apply | Index | Literal | Param | Size):
            return True
        stack.extend(node.children)
    return False
