"""What is known of a mask over a tile of rows and keys: the interface between the mask analysis and the kernels.

All nodes here are ``int`` or ``bool`` scalars without ``i`` and ``j``; they may use sizes, parameters, ``b h g``,
reads that vary over ``b h`` only, and the ends of the tile: the ``Size`` nodes ``i_lo i_hi j_lo j_hi`` (inclusive
positions, ``i`` on the key axis; ``row = i - N + M``). The tile is taken to hold a pair, so ``i_lo <= i_hi`` and
``j_lo < N``; ``i_hi`` and ``j_hi`` may run past the last position, at some cost in tightness. Divisors among the
nodes are positive wherever the extents of the space are.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.build import size
from attnc.ir.nodes import Node
from attnc.ir.printer import expression

I_LO, I_HI, J_LO, J_HI = (size(name) for name in ("i_lo", "i_hi", "j_lo", "j_hi"))


@dataclass(frozen=True, slots=True)
class Range:
    """Half-open ranges of positions along the other axis.

    Some pair may be visible within ``[lo, hi)``, every pair is within ``[full_lo, full_hi)``; either is empty where its
    end is not beyond its start. Not clipped to the positions there are, ``[0, N)`` for keys, ``[N - M, N)`` for rows.
    """

    lo: Node
    hi: Node
    full_lo: Node
    full_hi: Node


@dataclass(frozen=True, slots=True)
class Visibility:
    """How a mask bounds tiles.

    Attributes:
        mask: the pair predicate itself.
        key_ranges: which keys the rows ``i_lo..i_hi`` can see. The union bounds them. Members may overlap and come in
            any order, so a tile that lies in several is to be visited once.
        row_ranges: which row positions ``i`` can see the keys ``j_lo..j_hi``, likewise.
        empty: provably no pair of the tile is visible.
        full: provably every pair of the tile is visible.
        by_ranges: the ranges say it all: no tile of ordinary size within them is empty, and their full parts are the
            full tiles but for a few. Else ``empty`` and ``full`` are to be asked about each tile within the ranges.
        by_data: the mask depends on data that varies with ``i`` or ``j``, so tiles that ``empty`` and ``full`` leave
            open are to be classified on the device, by evaluating the mask.
    """

    mask: Node
    key_ranges: tuple[Range, ...]
    row_ranges: tuple[Range, ...]
    empty: Node
    full: Node
    by_ranges: bool
    by_data: bool


def print_visibility(v: Visibility) -> str:
    """The bounds in the notation of the language, one a line; for ``explain`` and tests."""
    known = [name for name, holds in (("by ranges", v.by_ranges), ("by data", v.by_data)) if holds]
    lines = [f"empty {_text(v.empty)}", f"full  {_text(v.full)}"]
    for axis, ranges in (("keys", v.key_ranges), ("rows", v.row_ranges)):
        for r in ranges:
            full = f"  full [{_text(r.full_lo)}, {_text(r.full_hi)})" if r.full_lo is not r.full_hi else ""
            lines.append(f"{axis}  [{_text(r.lo)}, {_text(r.hi)}){full}")
    return "\n".join([*lines, f"tiles {', '.join(known) or 'one by one'}"])


def _text(node: Node) -> str:
    return expression(node, depth=1_000)
