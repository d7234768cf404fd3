"""Solving a mask for one position in terms of the other: pieces with closed-form ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import product as pairs
from typing import assert_never

from attnc.analyse.mask.arithmetic import choose, greatest, least, linear, nonnegative, positive, product, quotient
from attnc.analyse.mask.bounds import Box
from attnc.analyse.mask.formula import (
    ALWAYS,
    MOST_CASES,
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
from attnc.analyse.mask.linear import PAIR_AXES, Linear, M, N, atom, constant
from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO
from attnc.ir.nodes import Apply, Index, Node

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


UNKNOWN = Piece(known=False, tight=False)


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


def solve(f: Formula, axis: Axis, needed: dict[Node, None], cases: int = MOST_CASES) -> list[Piece]:
    """The positions along ``axis`` that satisfy ``f``, as a union.

    ``needed`` collects conditions the answer rests on, as in :class:`~attnc.analyse.mask.bounds.Box`; ``cases`` is how
    many ``abs``, ``min``, ``max`` and ``if`` of the position may be split into.
    """
    match f:
        case All(parts):
            solved = [solve(part, axis, needed, cases) for part in parts]
            return reduce(lambda xs, ys: _merged([_meet(x, y) for x, y in pairs(xs, ys)], axis), solved, [Piece()])
        case Some(parts):
            return _merged([piece for part in parts for piece in solve(part, axis, needed, cases)], axis)
        case Opaque(node):
            return [Piece(guard=f)] if axis.v not in node.axes else [UNKNOWN]
        case AtLeastZero(x) | Zero(x) if axis.v not in x.axes:
            return [Piece(guard=f)]
        case AtLeastZero(x):
            return _solve_inequality(x, axis, needed, cases)
        case Zero(x, negated):
            if any(isinstance(t, Apply) and t.op in ("mod", "bitand") and axis.v in t.axes for t, _ in x.terms):
                return [Piece(known=False, tight=negated or _is_dense(x, axis.v))]
            sides = both(AtLeastZero(x), AtLeastZero(-x))
            return solve(either(AtLeastZero(x - 1), AtLeastZero(-x - 1)) if negated else sides, axis, needed, cases)
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
        return solve(parts, axis, needed, 1)
    if len(moving) > 1:
        return [UNKNOWN]
    term, c = moving[0]
    rest = x - atom(term).scaled(c)
    bound = -quotient(rest, constant(c)) if c > 0 else quotient(rest, constant(-c))
    match term:
        case Index():
            return [Piece(lower=(bound,)) if c > 0 else Piece(upper=(bound,))]
        case Apply(op="floordiv", args=(inner, by)) if not by.axes & PAIR_AXES:
            divisor = Box({}, needed).positive_divisor(linear(by))
            edge = product(bound, divisor) - linear(inner)
            return solve(AtLeastZero(-edge if c > 0 else edge + divisor - 1), axis, needed, cases // 4)
        case Apply(op="mul", args=(a, b)):
            inner, factor = (a, b) if axis.v in a.axes else (b, a)
            times = linear(factor)
            if not factor.axes & PAIR_AXES and positive(times):
                edge = linear(inner) + quotient(-bound, times) if c > 0 else quotient(bound, times) - linear(inner)
                return solve(AtLeastZero(edge), axis, needed, cases // 4)
    return [UNKNOWN]


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
    for whole in (Piece(), UNKNOWN):
        if whole in pieces:
            return [whole]
    open_ended = [p for p in pieces if p.known and p.tight and not (p.lower and p.upper)]
    others = [p for p in pieces if p not in open_ended]
    below, above = [p for p in open_ended if p.upper], [p for p in open_ended if p.lower]
    always = [p for p in open_ended if not p.upper and not p.lower]
    if below:
        pieces = [_below(below + always, axis), *others, *([_above(above, axis)] if above else [])]
    elif above:
        pieces = [*others, _above(above + always, axis)]
    elif always:
        pieces = [*others, Piece(guard=either(*(p.guard for p in always)))]
    return pieces if len(pieces) <= MOST_PIECES else [*pieces[: MOST_PIECES - 1], UNKNOWN]


def _below(pieces: list[Piece], axis: Axis) -> Piece:
    """The union of half-lines downwards, those without an end being everything where their guard holds."""
    if len(pieces) == 1:
        return pieces[0]
    ends = [choose(formula_to_node(p.guard), end_of(p.upper, least, axis.last), axis.first - 1) for p in pieces]
    return Piece(upper=(reduce(greatest, ends),))


def _above(pieces: list[Piece], axis: Axis) -> Piece:
    """The union of half-lines upwards."""
    if len(pieces) == 1:
        return pieces[0]
    ends = [choose(formula_to_node(p.guard), end_of(p.lower, greatest, axis.first), axis.last + 1) for p in pieces]
    return Piece(lower=(reduce(least, ends),))


def end_of(bounds: tuple[Linear, ...], join: Callable[[Linear, Linear], Linear], otherwise: Linear) -> Linear:
    """The bounds joined; ``otherwise`` where there is none."""
    return reduce(join, bounds) if bounds else otherwise
