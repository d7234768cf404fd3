"""From a mask to ranges along one axis: the ends of its pieces bounded over a tile of the other."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.analyse.mask.arithmetic import choose, greatest, least, nonnegative
from attnc.analyse.mask.bounds import UNBOUNDED, Box
from attnc.analyse.mask.contiguity import leaves_gaps
from attnc.analyse.mask.formula import (
    All,
    AtLeastZero,
    Formula,
)
from attnc.analyse.mask.linear import Linear, constant, to_node
from attnc.analyse.mask.solve import SMALLEST_TILE, Axis, Piece, end_of, solve
from attnc.analyse.mask.truth import FALSE, all_of
from attnc.analyse.visibility import Range
from attnc.ir.nodes import Node

MOST_RANGES = 4


def ranges_of(mask: Formula, axis: Axis) -> tuple[tuple[Range, ...], bool]:
    """The ranges along ``axis``, and whether they alone are tight."""
    needed: dict[Node, None] = {}
    box = Box({axis.w: axis.tile, axis.v: UNBOUNDED}, needed)
    pieces = solve(mask, axis, needed)
    tight = all(piece.tight and not leaves_gaps(piece.lower, piece.upper, axis.w, SMALLEST_TILE) for piece in pieces)
    spans = [span for piece in pieces if (span := _span(piece, axis, box)) is not None]
    tight = tight and len(spans) <= MOST_RANGES and not needed
    spans = _few(_without_covered(spans, keep_full=tight))
    if needed:
        spans = _unless(all_of(*needed), spans, axis)
    return tuple(map(_as_range, spans)), tight


def _unless(sound: Node, spans: list[_Span], axis: Axis) -> list[_Span]:
    """The spans where they can be relied on, and else everything as the first of them."""
    everything = [_Span(axis.first, axis.last + 1, *_NOTHING)]
    return [
        _Span(
            choose(sound, span.lo, axis.first),
            choose(sound, span.hi, axis.last + 1),
            span.full_lo,
            choose(sound, span.full_hi, span.full_lo),
        )
        for span in spans or everything
    ]


@dataclass(frozen=True, slots=True)
class _Span:
    lo: Linear
    hi: Linear
    full_lo: Linear
    full_hi: Linear

    def covers(self, other: _Span) -> bool:
        return nonnegative(other.lo - self.lo) and nonnegative(self.hi - other.hi)

    def covers_fully(self, other: _Span) -> bool:
        if nonnegative(other.full_lo - other.full_hi):
            return True
        return nonnegative(other.full_lo - self.full_lo) and nonnegative(self.full_hi - other.full_hi)


_NOTHING = constant(0), constant(0)


def _span(piece: Piece, axis: Axis, box: Box) -> _Span | None:
    """The positions that some row (or key) of the tile has in ``piece``, and those that every one has."""
    can, must = box.can_hold(piece.guard), box.must_hold(piece.guard)
    if can is FALSE:
        return None
    parts = piece.guard.parts if isinstance(piece.guard, All) else (piece.guard,)
    guarded = box.narrowed(tuple(part.x for part in parts if isinstance(part, AtLeastZero)))
    lowest, highest = [guarded.ends(f)[0] for f in piece.lower], [guarded.ends(g)[1] for g in piece.upper]
    lo = end_of(tuple(f for f in lowest if f is not None), greatest, axis.first)
    hi = end_of(tuple(g for g in highest if g is not None), least, axis.last) + 1
    full_lo, full_hi = _NOTHING
    lows, highs = [box.ends(f)[1] for f in piece.lower], [box.ends(g)[0] for g in piece.upper]
    if piece.known and must is not FALSE and None not in lows and None not in highs:
        full_lo = end_of(tuple(f for f in lows if f is not None), greatest, axis.first)
        full_hi = choose(must, end_of(tuple(g for g in highs if g is not None), least, axis.last) + 1, full_lo)
    return _Span(lo, choose(can, hi, lo), full_lo, full_hi)


def _without_covered(spans: list[_Span], keep_full: bool) -> list[_Span]:
    kept: list[_Span] = []
    for span in spans:
        if not any(k.covers(span) and (not keep_full or k.covers_fully(span)) for k in kept):
            kept = [k for k in kept if not (span.covers(k) and (not keep_full or span.covers_fully(k)))] + [span]
    return kept


def _few(spans: list[_Span]) -> list[_Span]:
    """At most :data:`MOST_RANGES`, the last ones replaced by their hull."""
    while len(spans) > MOST_RANGES:
        *spans, x, y = spans
        spans.append(_Span(least(x.lo, y.lo), greatest(x.hi, y.hi), x.full_lo, x.full_hi))
    return spans


def _as_range(span: _Span) -> Range:
    return Range(*map(to_node, (span.lo, span.hi, span.full_lo, span.full_hi)))
