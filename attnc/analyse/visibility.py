"""What is known of a mask over a tile of rows and keys: the interface between the mask analysis and the kernels.

All nodes here are ``int`` or ``bool`` scalars without ``i`` and ``j``; they may use sizes, parameters, ``b h g``,
reads that vary over ``b h`` only, and the bounds of the tile: the ``Size`` nodes ``i_lo i_hi j_lo j_hi`` (inclusive
positions, ``i`` on the key axis; ``row = i - N + M``).
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.build import size
from attnc.ir.nodes import Node

I_LO, I_HI, J_LO, J_HI = (size(name) for name in ("i_lo", "i_hi", "j_lo", "j_hi"))


@dataclass(frozen=True, slots=True)
class Range:
    """Half-open ranges of positions along the other axis: some pair may be visible within ``[lo, hi)``, every
    pair is within ``[full_lo, full_hi)`` (empty where ``full_hi <= full_lo``). Not clipped to ``[0, N)``."""

    lo: Node
    hi: Node
    full_lo: Node
    full_hi: Node


@dataclass(frozen=True, slots=True)
class Visibility:
    """How a mask bounds tiles.

    Attributes:
        mask: the pair predicate itself.
        key_ranges: which keys the rows ``i_lo..i_hi`` can see; the union bounds them, members may overlap.
        row_ranges: which row positions ``i`` can see the keys ``j_lo..j_hi``.
        empty: provably no pair of the tile is visible.
        full: provably every pair of the tile is visible.
        by_ranges: ``key_ranges`` and ``row_ranges`` say it all: a tile within them is worth visiting.
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
