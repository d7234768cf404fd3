"""From a mask to ranges along one axis: the formula is solved for one position in terms of the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import product as pairs
from typing import assert_never

from attnc.analyse.mask.bounds import UNBOUNDED, Box
from attnc.analyse.mask.contiguity import leaves_gaps
from attnc.analyse.mask.formula import (
    ALWAYS,
    NEVER,
    All,
    AtLeastZero,
    Formula,
    Opaque,
    Some,
    Zero,
    at_least_zero_cases,
    both,
    either,
    formula_to_node,
)
from attnc.analyse.mask.linear import (
    PAIR_AXES,
    Linear,
    M,
    N,
    atom,
    choose,
    constant,
    greatest,
    least,
    linear,
    nonnegative,
    positive,
    product,
    quotient,
    to_node,
)
from attnc.analyse.mask.truth import FALSE, all_of
from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO, Range
from attnc.ir.nodes import Apply, Index, Node

MOST_RANGES = 4
MOST_PIECES = 8
"""Pieces kept while solving; a mask of more is bounded by the hull of the last."""

SMALLEST_TILE = 16
"""A pattern that leaves no gap of this size is worth no test of each tile."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The positions ``v`` with ``lower <= v <= upper`` where ``guard`` holds.

    All three are in terms of the other position. ``known`` is false where some condition on ``v`` was left out, so
    that no ``v`` is sure to be visible. ``tight`` is false where tiles within may turn out empty.
    """

    lower: tuple[Linear, ...] = ()
    upper: tuple[Linear, ...] = ()
    guard: Formula = ALWAYS
    known: bool = True
    tight: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """What is solved for: position ``v`` in ``[first, last]``, the other position ``w`` in a tile."""

    v: str
    first: Linear
    last: Linear
    tile: tuple[Linear, Linear]

    @property
    def w(self) -> str:
        return "j" if self.v == "i" else "i"


KEYS = Axis("j", constant(0), N - 1, (atom(I_LO), atom(I_HI)))
ROWS = Axis("i", N - M, N - 1, (atom(J_LO), atom(J_HI)))


def ranges_of(mask: Formula, axis: Axis) -> tuple[tuple[Range, ...], bool]:
    """The ranges along ``axis``, and whether they alone are tight."""
    needed: dict[Node, None] = {}
    box = Box({axis.w: axis.tile, axis.v: UNBOUNDED}, needed)
    pieces = _solve(mask, axis, needed)
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


def _solve(f: Formula, axis: Axis, needed: dict[Node, None], cases: int = 32) -> list[Piece]:
    match f:
        case All(parts):
            solved = [_solve(part, axis, needed, cases) for part in parts]
            return reduce(lambda xs, ys: _merged([_meet(x, y) for x, y in pairs(xs, ys)], axis), solved, [Piece()])
        case Some(parts):
            return _merged([piece for part in parts for piece in _solve(part, axis, needed, cases)], axis)
        case Opaque(node):
            return [Piece(guard=f)] if axis.v not in node.axes else [Piece(known=False, tight=False)]
        case AtLeastZero(x) | Zero(x) if axis.v not in x.axes:
            return [Piece(guard=f)]
        case AtLeastZero(x):
            return _solve_inequality(x, axis, needed, cases)
        case Zero(x, negated):
            if any(isinstance(t, Apply) and t.op in ("mod", "bitand") and axis.v in t.axes for t, _ in x.terms):
                return [Piece(known=False, tight=negated or _is_dense(x, axis.v))]
            sides = both(AtLeastZero(x), AtLeastZero(-x))
            return _solve(either(AtLeastZero(x - 1), AtLeastZero(-x - 1)) if negated else sides, axis, needed, cases)
    assert_never(f)


def _is_dense(x: Linear, v: str) -> bool:
    """Whether ``x == 0`` is a congruence that every tile of ordinary size meets."""
    match x.varying().terms:
        case ((Apply(op="mod", args=(a, c)), 1 | -1),):
            period = linear(c)
            unit_steps = all(isinstance(t, Index) and abs(k) == 1 for t, k in linear(a).varying().terms)
            return unit_steps and not period.terms and 0 < period.constant <= SMALLEST_TILE
    return False


def _solve_inequality(x: Linear, axis: Axis, needed: dict[Node, None], cases: int) -> list[Piece]:
    moving = [(t, c) for t, c in x.terms if axis.v in t.axes]
    if any(isinstance(t, Apply) and t.op in ("min", "max", "abs", "where") for t, _ in moving) and cases > 1:
        parts = at_least_zero_cases(x, lambda t: axis.v in t.axes, cases)
        return _solve(parts, axis, needed, 1)
    if len(moving) > 1:
        return [Piece(known=False, tight=False)]
    term, c = moving[0]
    rest = x - atom(term).scaled(c)
    bound = -quotient(rest, constant(c)) if c > 0 else quotient(rest, constant(-c))
    match term:
        case Index():
            return [Piece(lower=(bound,)) if c > 0 else Piece(upper=(bound,))]
        case Apply(op="floordiv", args=(inner, by)) if not by.axes & PAIR_AXES:
            divisor = Box({}, needed).positive_divisor(linear(by))
            edge = product(bound, divisor) - linear(inner)
            return _solve(AtLeastZero(-edge if c > 0 else edge + divisor - 1), axis, needed, cases // 4)
        case Apply(op="mul", args=(a, b)):
            inner, factor = (a, b) if axis.v in a.axes else (b, a)
            times = linear(factor)
            if not factor.axes & PAIR_AXES and positive(times):
                edge = linear(inner) + quotient(-bound, times) if c > 0 else quotient(bound, times) - linear(inner)
                return _solve(AtLeastZero(edge), axis, needed, cases // 4)
    return [Piece(known=False, tight=False)]


def _meet(x: Piece, y: Piece) -> Piece:
    return Piece(
        _extremes(x.lower + y.lower, greatest),
        _extremes(x.upper + y.upper, least),
        both(x.guard, y.guard),
        x.known and y.known,
        x.tight and y.tight,
    )


def _extremes(bounds: tuple[Linear, ...], join: Callable[[Linear, Linear], Linear]) -> tuple[Linear, ...]:
    """The bounds without those that others make redundant."""
    kept: list[Linear] = []
    for bound in bounds:
        if not any(join(bound, other) == other for other in kept):
            kept = [other for other in kept if join(bound, other) != bound] + [bound]
    return tuple(kept)


def _is_void(piece: Piece) -> bool:
    crossed = any(nonnegative(f - g - 1) for f in piece.lower for g in piece.upper)
    return piece.guard == NEVER or crossed


def _merged(pieces: list[Piece], axis: Axis) -> list[Piece]:
    """The same union in fewer pieces: half-lines in one direction are one half-line."""
    pieces = list(dict.fromkeys(piece for piece in pieces if not _is_void(piece)))
    for whole in (Piece(), Piece(known=False, tight=False)):
        if whole in pieces:
            return [whole]
    open_ = [p for p in pieces if p.known and p.tight and not (p.lower and p.upper)]
    if len(open_) > 1:
        pieces = [p for p in pieces if p not in open_]
        always = [p for p in open_ if not p.lower and not p.upper]
        below = [p for p in open_ if p.upper]
        above = [p for p in open_ if p.lower]
        if always and not below and not above:
            pieces.append(Piece(guard=either(*(p.guard for p in always))))
        elif below:
            below += always
        else:
            above += always
        if below:
            ends = [choose(formula_to_node(p.guard), _end(p.upper, least, axis.last), axis.first - 1) for p in below]
            pieces.insert(0, Piece(upper=(reduce(greatest, ends),)) if len(below) > 1 else below[0])
        if above:
            ends = [choose(formula_to_node(p.guard), _end(p.lower, greatest, axis.first), axis.last + 1) for p in above]
            pieces.append(Piece(lower=(reduce(least, ends),)) if len(above) > 1 else above[0])
    if len(pieces) > MOST_PIECES:
        pieces = [*pieces[: MOST_PIECES - 1], Piece(known=False, tight=False)]
    return pieces


def _end(bounds: tuple[Linear, ...], join: Callable[[Linear, Linear], Linear], otherwise: Linear) -> Linear:
    return reduce(join, bounds) if bounds else otherwise


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
    lower, upper = [box.ends(f) for f in piece.lower], [box.ends(g) for g in piece.upper]
    lo = _end(tuple(f for f, _ in lower if f is not None), greatest, axis.first)
    hi = _end(tuple(g for _, g in upper if g is not None), least, axis.last) + 1
    full_lo, full_hi = _NOTHING
    lows, highs = [f for _, f in lower], [g for g, _ in upper]
    if piece.known and must is not FALSE and None not in lows and None not in highs:
        full_lo = _end(tuple(f for f in lows if f is not None), greatest, axis.first)
        full_hi = choose(must, _end(tuple(g for g in highs if g is not None), least, axis.last) + 1, full_lo)
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
