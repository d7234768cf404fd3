"""Which keys the rows of a tile see: ranges of them in closed form, and what is known of a tile of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.walk import Sizes, TaskSlots

Bounds: TypeAlias = tuple[Value, Value, Value, Value]
"""A range of keys, and that within it which every row sees; ends are excluded."""


def bounds_of(task: TaskSlots, sizes: Sizes, i_lo: Value, i_hi: Value) -> list[Bounds]:
    """The ranges of keys that rows at positions ``i_lo`` to ``i_hi`` see, within those there are."""
    found = task.ranges(i_lo, i_hi)
    return [
        (maximum(lo, 0).keep(), minimum(hi, sizes.N).keep(), full_lo.keep(), full_hi.keep())
        for lo, hi, full_lo, full_hi in found
    ]


def hull_of(bounds: Sequence[Bounds], sizes: Sizes) -> tuple[Value, Value]:
    """From the first to the last key of all ranges; nothing if ``end <= start``."""
    if len(bounds) == 1:
        return bounds[0][:2]
    start, end = sizes.N, constant(0, "int32")
    for lo, hi, _, _ in bounds:
        start = select(lo < hi, minimum(start, lo), start).keep()
        end = select(lo < hi, maximum(end, hi), end).keep()
    return start, end


@dataclass(frozen=True, slots=True)
class Cuts:
    """A range of keys cut into ``count`` tiles.

    ``segments`` are ``(start, end, tiles before it, size of its tiles)``.
    """

    segments: tuple[tuple[Value, Value, Value, Value], ...]
    count: Value

    def tile(self, number: Value) -> tuple[Value, Value]:
        """The first key of a tile, and how many it has."""
        number = number.keep()
        lo, end, size = number, number, number
        for start, stop, before, each in self.segments:
            here = number >= before
            lo = select(here, start + (number - before) * each, lo)
            end, size = select(here, stop, end), select(here, each, size)
        lo = lo.keep()
        return lo, minimum(end - lo, size).keep()


def cuts_of(bounds: Sequence[Bounds], sizes: Sizes, keys: int, block: int) -> Cuts:
    """The keys that rows see in tiles of ``keys`` or somewhat less, whole blocks of them.

    What every row sees of a single range is cut apart from its ends, so that few tiles hold hidden pairs.
    """
    start, end = hull_of(bounds, sizes)
    ends = [start, maximum(start, end).keep()]
    if len(bounds) == 1:
        _, _, full_lo, full_hi = bounds[0]
        inner = minimum(maximum(full_lo, start), ends[1]).keep()
        outer = minimum(full_hi, ends[1]).keep()
        apart = (outer - inner >= keys // 2).keep()
        ends[1:1] = [select(apart, inner, start).keep(), select(apart, outer, start).keep()]
    segments, before = [], constant(0, "int32")
    for lo, hi in pairwise(ends):
        length = (hi - lo).keep()
        tiles = ((length + (keys - 1)) // keys).keep()
        blocks = (tiles * block).keep()
        even = minimum((length + (blocks - 1)) // maximum(blocks, 1) * block, keys).keep()
        segments.append((lo, hi, before, even))
        before = (before + tiles).keep()
    return Cuts(tuple(segments), before)


def known_of(
    task: TaskSlots, bounds: Sequence[Bounds], i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value
) -> tuple[Value | None, Value]:
    """Whether any pair of a tile may be visible (``None``: yes), and whether all are; ends are included."""
    wanted = None if len(bounds) == 1 else constant(False, "bool")
    full = constant(False, "bool")
    for lo, hi, full_lo, full_hi in bounds:
        if wanted is not None:
            wanted = wanted | ((j_lo < hi) & (j_hi >= lo))
        full = full | ((j_lo >= full_lo) & (j_hi < full_hi))
    if (known := task.full(i_lo, i_hi, j_lo, j_hi)) is not None:
        full = full | known
    if (known := task.empty(i_lo, i_hi, j_lo, j_hi)) is not None:
        wanted = ~known if wanted is None else wanted & ~known
    return wanted, full.keep()
