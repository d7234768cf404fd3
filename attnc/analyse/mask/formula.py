"""Masks in negation normal form over integer atoms: what the analyses of tiles and ranges both start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from typing import TypeAlias, assert_never

from attnc.analyse.mask.arithmetic import linear, quotient, remainder
from attnc.analyse.mask.linear import PAIR_AXES, Linear, atom, constant
from attnc.analyse.mask.truth import all_of, any_of, at_least_zero, equals_zero, negation
from attnc.ir.build import apply, literal
from attnc.ir.nodes import Apply, Kind, Literal, Node

MOST_CASES = 32
"""How many cases ``abs min max`` and ``if`` may split one comparison into; beyond it they are bounded whole."""

MOST_ATOMS = 64
"""Nothing is said of a condition with more of them."""

FARTHEST = float(2**30)
"""Positions are smaller; a real bound beyond it is clamped before it becomes an int."""


@dataclass(frozen=True, slots=True)
class AtLeastZero:
    """``x >= 0``."""

    x: Linear


@dataclass(frozen=True, slots=True)
class Zero:
    """``x == 0``, or ``x != 0`` where ``negated``."""

    x: Linear
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Opaque:
    """A truth value nothing is known of, unless it is the same for all pairs of a tile."""

    node: Node


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Some part holds."""

    parts: tuple[Formula, ...]


Formula: TypeAlias = AtLeastZero | Zero | Opaque | All | Some

ALWAYS, NEVER = All(()), Some(())


def both(*parts: Formula) -> Formula:
    """The conjunction, flattened."""
    kept: dict[Formula, None] = {}
    for part in parts:
        if part == NEVER:
            return NEVER
        kept.update(dict.fromkeys(part.parts if isinstance(part, All) else (part,)))
    return next(iter(kept)) if len(kept) == 1 else All(tuple(kept))


def either(*parts: Formula) -> Formula:
    """The disjunction, flattened."""
    kept: dict[Formula, None] = {}
    for part in parts:
        if part == ALWAYS:
            return ALWAYS
        kept.update(dict.fromkeys(part.parts if isinstance(part, Some) else (part,)))
    return next(iter(kept)) if len(kept) == 1 else Some(tuple(kept))


@lru_cache(maxsize=4096)
def formula(mask: Node, holds: bool = True) -> Formula:
    """What ``mask`` (or its negation, where ``holds`` is false) says."""
    said = _formula(mask, holds)
    return said if _atoms(said) <= MOST_ATOMS else Opaque(mask if holds else negation(mask))


def _atoms(f: Formula) -> int:
    return sum(map(_atoms, f.parts)) if isinstance(f, All | Some) else 1


def _formula(mask: Node, holds: bool) -> Formula:
    match mask:
        case Literal():
            return ALWAYS if bool(mask.value) == holds else NEVER
        case Apply(op="not", args=(x,)):
            return formula(x, not holds)
        case Apply(op="and" | "or", args=(x, y)):
            join = both if (mask.op == "and") == holds else either
            return join(formula(x, holds), formula(y, holds))
        case Apply(op="where", args=(c, x, y)):
            return either(both(formula(c), formula(x, holds)), both(formula(c, False), formula(y, holds)))
        case Apply(op="eq" | "ne", args=(x, y)) if x.kind is Kind.BOOL:
            same = holds == (mask.op == "eq")
            return either(both(formula(x), formula(y, same)), both(formula(x, False), formula(y, not same)))
        case Apply(op="lt" | "le" | "gt" | "ge" | "eq" | "ne", args=(x, y)):
            return _comparison(mask, mask.op if holds else _NOT[mask.op], x, y, holds)
    return Opaque(mask if holds else negation(mask))


_NOT = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}
_SWAPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def _comparison(mask: Node, op: str, x: Node, y: Node, holds: bool) -> Formula:
    if x.kind is Kind.REAL:
        ints = _as_ints(op, x, y)
        if ints is None:
            return Opaque(mask if holds else negation(mask))
        op, left, right = ints
    else:
        left, right = linear(x), linear(y)
    match op:
        case "lt":
            return at_least_zero_cases(right - left - 1)
        case "le":
            return at_least_zero_cases(right - left)
        case "gt":
            return at_least_zero_cases(left - right - 1)
        case "ge":
            return at_least_zero_cases(left - right)
    return _zero(left - right, negated=op == "ne")


def _as_ints(op: str, x: Node, y: Node) -> tuple[str, Linear, Linear] | None:
    """A comparison of an ``int`` made real with a real that is the same for all pairs, as one of ints."""
    if op not in _SWAPPED:
        return None
    if not _is_int_made_real(x):
        x, y, op = y, x, _SWAPPED[op]
    if not _is_int_made_real(x):
        return None
    left = linear(x.args[0]) if isinstance(x, Apply) else constant(0)
    if _is_int_made_real(y) and isinstance(y, Apply):
        return op, left, linear(y.args[0])
    if y.axes & PAIR_AXES:
        return None
    up = op in ("ge", "lt")
    return op, left, -_rounded_down(y, -1) if up else _rounded_down(y, 1)


def _is_int_made_real(x: Node) -> bool:
    return isinstance(x, Apply) and x.op == "real" and x.args[0].kind is Kind.INT


def _rounded_down(y: Node, sign: int) -> Linear:
    """``floor(sign * y)``."""
    if isinstance(y, Literal):
        return constant(floor(sign * y.value) if sign > 0 else -ceil(y.value))
    clamped = apply("max", apply("min", y, literal(FARTHEST)), literal(-FARTHEST))
    return atom(apply("floor", clamped if sign > 0 else apply("neg", clamped)))


def at_least_zero_cases(x: Linear, splits: Callable[[Node], bool] | None = None, cases: int = MOST_CASES) -> Formula:
    """``x >= 0``, where terms that ``splits`` (by default: vary over both i and j) are taken apart case by case."""
    if not x.terms:
        return ALWAYS if x.constant >= 0 else NEVER
    if (g := x.content) > 1:
        x = Linear(tuple((t, c // g) for t, c in x.terms), x.constant // g)
    for term, c in x.terms if cases > 1 else ():
        if not isinstance(term, Apply) or not (splits(term) if splits else term.axes >= PAIR_AXES):
            continue
        rest = x - atom(term).scaled(c)

        def case(arg: Linear, rest: Linear = rest, c: int = c) -> Formula:
            return at_least_zero_cases(rest + arg.scaled(c), splits, cases // 2)

        match term:
            case Apply(op="min" | "max", args=(a, b)):
                join = both if (term.op == "min") == (c > 0) else either
                return join(case(linear(a)), case(linear(b)))
            case Apply(op="abs", args=(a,)):
                return (either if c > 0 else both)(case(linear(a)), case(-linear(a)))
            case Apply(op="where", args=(p, a, b)):
                return either(both(formula(p), case(linear(a))), both(formula(p, False), case(linear(b))))
            case Apply(op="floordiv", args=(a, Literal(value=by))) if by > 0 and not rest.axes & PAIR_AXES:
                bound = -quotient(rest, constant(c)) if c > 0 else quotient(rest, constant(-c))
                edge = linear(a) - bound.scaled(int(by))
                return at_least_zero_cases(edge if c > 0 else -edge + (int(by) - 1), splits, cases)
    return AtLeastZero(x)


def _zero(x: Linear, negated: bool) -> Formula:
    if not x.terms:
        return ALWAYS if (x.constant == 0) != negated else NEVER
    if x.constant % x.content:
        return ALWAYS if negated else NEVER
    divisor = x.content if x.terms[0][1] > 0 else -x.content
    x = Linear(tuple((t, c // divisor) for t, c in x.terms), x.constant // divisor)
    if (difference := _congruence(x)) is not None:
        return _zero(difference, negated) if difference != x else Zero(x, negated)
    if any(isinstance(t, Apply) and t.op in _PIECEWISE and t.axes >= PAIR_AXES for t, _ in x.terms):
        parts = at_least_zero_cases(x), at_least_zero_cases(-x)
        below, above = at_least_zero_cases(-x - 1), at_least_zero_cases(x - 1)
        return either(below, above) if negated else both(*parts)
    return Zero(x, negated)


_PIECEWISE = ("min", "max", "abs", "where")


def _congruence(x: Linear) -> Linear | None:
    """``a % c - b % c`` as ``(a - b) % c``, and ``abs(a) % c`` as ``a % c``: equal to 0 for the same pairs."""
    match x:
        case Linear(terms=((Apply(op="mod", args=(a, c)), k), (Apply(op="mod", args=(b, d)), n)), constant=0):
            if c is d and k == -n and not c.axes & PAIR_AXES:
                return remainder(linear(a) - linear(b), linear(c))
        case Linear(terms=((Apply(op="mod", args=(Apply(op="abs", args=(a,)), c)), _),), constant=0):
            return remainder(linear(a), linear(c))
        case Linear(terms=((Apply(op="mod"), _),)):
            return x
    return None


def formula_to_node(f: Formula) -> Node:
    """The formula as a truth value of one pair."""
    match f:
        case AtLeastZero(x):
            return at_least_zero(x)
        case Zero(x, negated):
            return negation(equals_zero(x)) if negated else equals_zero(x)
        case Opaque(node):
            return node
        case All(parts):
            return all_of(*map(formula_to_node, parts))
        case Some(parts):
            return any_of(*map(formula_to_node, parts))
    assert_never(f)
