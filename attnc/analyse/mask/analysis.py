"""The analysis of visible tiles as one function."""

from __future__ import annotations

from attnc.analyse.mask.bounds import Box
from attnc.analyse.mask.formula import Opaque, formula
from attnc.analyse.mask.linear import PAIR_AXES, atom
from attnc.analyse.mask.ranges import ranges_of
from attnc.analyse.mask.solve import KEYS, ROWS
from attnc.analyse.mask.truth import all_of, negation
from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO, Visibility
from attnc.ir.nodes import Apply, Index, Literal, Node, Param, Size
from attnc.ir.traverse import postorder

DEEPEST = 100
"""Nothing is said of a mask whose operations nest deeper."""


def analyse_mask(mask: Node) -> Visibility:
    """Bounds of ``mask``, a ``bool`` scalar over ``b h i j``.

    Sound for every size, parameter and input: no visible pair lies in an ``empty`` tile or outside the ranges, none
    that is masked in a ``full`` one.
    """
    normal = formula(mask) if depth(mask) <= DEEPEST else Opaque(mask)
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


def depth(node: Node) -> int:
    """How many operations nest in ``node``."""
    depths: dict[Node, int] = {}
    for part in postorder(node):
        depths[part] = 1 + max((depths[child] for child in part.children), default=0)
    return depths[node]


def _depends_on_data(node: Node) -> bool:
    """Whether something other than positions, sizes and parameters varies with ``i`` or ``j``."""
    return any(
        node.axes & PAIR_AXES and not isinstance(node, Apply | Index | Literal | Param | Size)
        for node in postorder(node)
    )
