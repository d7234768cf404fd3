"""Interval and congruence arithmetic: what an expression or a formula can be over a box of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, assert_never

from attnc.analyse.mask.arithmetic import (
    choose,
    greatest,
    least,
    linear,
    nonnegative,
    positive,
    product,
    quotient,
    remainder,
)
from attnc.analyse.mask.formula import (
    All,
    AtLeastZero,
    Formula,
    Opaque,
    Some,
    Zero,
    formula,
)
from attnc.analyse.mask.linear import PAIR_AXES, Linear, atom, constant, to_node
from attnc.analyse.mask.truth import FALSE, TRUE, all_of, any_of, at_least_zero, equals_zero, negation
from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Index, Node

Ends: TypeAlias = tuple[Linear | None, Linear | None]
"""Least and greatest value, inclusive; ``None`` where there is no bound."""

UNBOUNDED: Ends = (None, None)
Facts: TypeAlias = tuple[Linear, ...]
"""Expressions known to be at least 0 for the pairs in question."""


class Box:
    """Positions ``i`` and ``j`` between given ends.

    ``needed`` collects what the answers rest on: conditions that are the same for all pairs, such as a divisor read
    from data being positive. Where one fails nothing is known.
    """

    def __init__(self, ends: Mapping[str, Ends], needed: dict[Node, None]) -> None:
        self._positions = ends
        self._needed = needed
        self._known: dict[Node, Ends] = {}

    def ends(self, x: Linear) -> Ends:
        """Bounds of a sum; exact if its varying terms are independent and bounded exactly."""
        lo: Linear | None = constant(x.constant)
        hi: Linear | None = constant(x.constant)
        for term, c in x.terms:
            least_, greatest_ = self._ends_of(term)
            if c < 0:
                least_, greatest_ = greatest_, least_
            lo = None if lo is None or least_ is None else lo + least_.scaled(c)
            hi = None if hi is None or greatest_ is None else hi + greatest_.scaled(c)
        return lo, hi

    def _ends_of(self, node: Node) -> Ends:
        if node not in self._known:
            self._known[node] = self._find_ends(node)
        return self._known[node]

    def _find_ends(self, node: Node) -> Ends:
        if not node.axes & PAIR_AXES:
            return atom(node), atom(node)
        if isinstance(node, Index):
            return self._positions[node.name]
        if not isinstance(node, Apply):
            return UNBOUNDED
        if node.op == "where":
            return self._ends_of_choice(*node.args)
        if not all(arg.kind == "int" for arg in node.args):
            return UNBOUNDED
        ends = [self.ends(linear(arg)) for arg in node.args]
        match node.op:
            case "mul":
                return _ends_of_product(*ends)
            case "floordiv" | "mod":
                divisor = node.args[1]
                if divisor.axes & PAIR_AXES:
                    return UNBOUNDED
                by = self.positive_divisor(linear(divisor))
                return _ends_of_remainder(ends[0], by) if node.op == "mod" else _monotone(quotient, ends[0], by)
            case "min":
                return _of_both(least, ends[0][0], ends[1][0]), _of_any(least, ends[0][1], ends[1][1])
            case "max":
                return _of_any(greatest, ends[0][0], ends[1][0]), _of_both(greatest, ends[0][1], ends[1][1])
            case "abs":
                return _ends_of_abs(*ends[0])
            case "sign":
                return _monotone(lambda x: atom(apply("sign", to_node(x))), ends[0])
            case "bitand":
                tops = [hi for lo, hi in ends if lo is not None and nonnegative(lo)]
                return (constant(0), _of_any(least, tops[0], tops[-1])) if tops else UNBOUNDED
            case "bitor" | "bitxor":
                if all(lo is not None and nonnegative(lo) for lo, _ in ends):
                    return constant(0), _of_both(Linear.__add__, ends[0][1], ends[1][1])
        return UNBOUNDED

    def positive_divisor(self, divisor: Linear) -> Linear:
        """The divisor, made positive where it is not known to be, with a note that it must be."""
        if positive(divisor):
            return divisor
        self._needed[at_least_zero(divisor - 1)] = None
        return greatest(divisor, constant(1))

    def _ends_of_choice(self, condition: Node, yes: Node, no: Node) -> Ends:
        a, b = self.ends(linear(yes)), self.ends(linear(no))
        if not condition.axes & PAIR_AXES:
            return tuple(_of_both(lambda x, y: choose(condition, x, y), x, y) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]
        can, must = self.can_hold(formula(condition)), self.must_hold(formula(condition))

        def end(join: Callable[[Linear, Linear], Linear], x: Linear | None, y: Linear | None) -> Linear | None:
            if x is None or y is None:
                return None
            joined = join(x, y)
            if joined == x:
                return choose(can, x, y)
            return choose(must, x, y) if joined == y else choose(can, choose(must, x, joined), y)

        return end(least, a[0], b[0]), end(greatest, a[1], b[1])

    # --- formulas -------------------------------------------------------------------------------------------------

    def can_hold(self, f: Formula, facts: Facts = ()) -> Node:
        """A condition that is true if some pair of the box satisfies ``f`` (and ``facts``)."""
        match f:
            case AtLeastZero(x):
                hi = self.ends(x)[1]
                return TRUE if hi is None else at_least_zero(hi)
            case Zero(x, negated):
                return negation(self._must_be_zero(x, facts)) if negated else self._can_be_zero(x, facts)
            case Opaque(node):
                return TRUE if node.axes & PAIR_AXES else node
            case All(parts):
                known = tuple(part.x for part in parts if isinstance(part, AtLeastZero))
                narrow = self.narrowed(known)
                return all_of(
                    *((self if _is_about_one(part) else narrow).can_hold(part, facts + known) for part in parts)
                )
            case Some(parts):
                return any_of(*(self.can_hold(part, facts) for part in parts))
        assert_never(f)

    def must_hold(self, f: Formula) -> Node:
        """A condition that is false unless every pair of the box satisfies ``f``."""
        match f:
            case AtLeastZero(x):
                lo = self.ends(x)[0]
                return FALSE if lo is None else at_least_zero(lo)
            case Zero(x, negated):
                return negation(self._can_be_zero(x, ())) if negated else self._must_be_zero(x, ())
            case Opaque(node):
                return FALSE if node.axes & PAIR_AXES else node
            case All(parts):
                return all_of(*map(self.must_hold, parts))
            case Some(parts):
                narrow = self.narrowed(tuple(-part.x - 1 for part in parts if isinstance(part, AtLeastZero)))
                return any_of(*((self if _is_about_one(part) else narrow).must_hold(part) for part in parts))
        assert_never(f)

    def narrowed(self, facts: Facts) -> Box:
        """The part of the box where those facts hold that bound ``i`` or ``j`` alone; it may be nothing."""
        positions = dict(self._positions)
        for fact in facts:
            match fact.varying().terms:
                case ((Index(name=name), 1),):
                    lo, hi = positions[name]
                    positions[name] = _of_any(greatest, lo, fact.varying() - fact), hi
                case ((Index(name=name), -1),):
                    lo, hi = positions[name]
                    positions[name] = lo, _of_any(least, hi, fact - fact.varying())
        return Box(positions, self._needed) if positions != self._positions else self

    def _can_be_zero(self, x: Linear, facts: Facts) -> Node:
        if (found := _as_remainder(x)) is not None:
            dividend, divisor, rest = found
            by = self.positive_divisor(divisor)
            lo, hi = self._ends_given(dividend, facts)
            if lo is None or hi is None:
                return TRUE
            met = quotient(hi - rest, by) - quotient(lo - rest - 1, by) - 1
            return all_of(_in_remainders(rest, by), at_least_zero(met))
        if (word := _as_one_bit(x)) is not None:
            lo, hi = self._ends_given(word, facts)
            return TRUE if lo is None or hi is None else _has_power_of_two(lo, hi)
        lo, hi = self.ends(x)
        return all_of(TRUE if lo is None else at_least_zero(-lo), TRUE if hi is None else at_least_zero(hi))

    def _must_be_zero(self, x: Linear, facts: Facts) -> Node:
        """Whether ``x`` is 0 throughout."""
        if (found := _as_remainder(x)) is not None:
            dividend, divisor, rest = found
            by = self.positive_divisor(divisor)
            lo, hi = self._ends_given(dividend, facts)
            trivial = all_of(equals_zero(by - 1), equals_zero(rest))
            if lo is None or hi is None:
                return trivial
            single = all_of(at_least_zero(lo - hi), equals_zero(remainder(lo - rest, by)), _in_remainders(rest, by))
            return any_of(single, trivial)
        if (word := _as_one_bit(x)) is not None:
            lo, hi = self._ends_given(word, facts)
            if lo is None or hi is None:
                return FALSE
            bit = apply("bitand", to_node(lo), to_node(lo - 1))
            return all_of(at_least_zero(lo - hi), equals_zero(atom(bit)))
        lo, hi = self.ends(x)
        return FALSE if lo is None or hi is None else all_of(at_least_zero(lo), at_least_zero(-hi))

    def _ends_given(self, x: Linear, facts: Facts) -> Ends:
        """Bounds of ``x`` for the pairs that satisfy ``facts``, those about the same varying part being used."""
        lo, hi = self.ends(x)
        moving = x.varying()
        for fact in facts:
            if fact.varying() == moving:
                lo = _of_any(greatest, lo, x - fact)
            elif fact.varying() == -moving:
                hi = _of_any(least, hi, x + fact)
        return lo, hi


def _is_about_one(part: Formula) -> bool:
    """Whether it compares ``i`` or ``j`` alone, so that narrowing by it would be circular."""
    return isinstance(part, AtLeastZero) and len(part.x.varying().terms) == 1


def _of_both(join: Callable[[Linear, Linear], Linear], x: Linear | None, y: Linear | None) -> Linear | None:
    return None if x is None or y is None else join(x, y)


def _of_any(join: Callable[[Linear, Linear], Linear], x: Linear | None, y: Linear | None) -> Linear | None:
    return y if x is None else x if y is None else join(x, y)


def _monotone(f: Callable[..., Linear], ends: Ends, *args: Linear) -> Ends:
    lo, hi = ends
    return (None if lo is None else f(lo, *args)), (None if hi is None else f(hi, *args))


def _ends_of_product(x: Ends, y: Ends) -> Ends:
    for (lo, hi), (a, b) in ((x, y), (y, x)):
        if a is not None and a == b:
            if nonnegative(a):
                return _monotone(product, (lo, hi), a)
            if lo is None or hi is None:
                return UNBOUNDED
            return least(product(lo, a), product(hi, a)), greatest(product(lo, a), product(hi, a))
    if x[0] is None or y[0] is None or not nonnegative(x[0]) or not nonnegative(y[0]):
        return UNBOUNDED
    return product(x[0], y[0]), _of_both(product, x[1], y[1])


def _ends_of_remainder(x: Ends, by: Linear) -> Ends:
    """Exact where ``x`` takes every value between its ends: it wraps, and then meets 0 and ``by - 1``, or does not."""
    lo, hi = x
    if lo is None or hi is None:
        return constant(0), by - 1
    same = equals_zero(quotient(hi, by) - quotient(lo, by))
    return choose(same, remainder(lo, by), constant(0)), choose(same, remainder(hi, by), by - 1)


def _ends_of_abs(lo: Linear | None, hi: Linear | None) -> Ends:
    if lo is not None and nonnegative(lo):
        return lo, hi
    low = _of_any(greatest, lo, None if hi is None else -hi)
    return (constant(0) if low is None else greatest(low, constant(0))), _of_both(lambda a, b: greatest(-a, b), lo, hi)


def _as_remainder(x: Linear) -> tuple[Linear, Linear, Linear] | None:
    """``(a, c, r)`` if ``x == 0`` says ``a % c == r``, with ``c`` and ``r`` the same for all pairs."""
    moving = x.varying()
    match moving.terms:
        case ((Apply(op="mod", args=(a, c)), k),) if k in (1, -1) and not c.axes & PAIR_AXES:
            rest = x - moving
            return linear(a), linear(c), -rest if k == 1 else rest
    return None


def _in_remainders(rest: Linear, by: Linear) -> Node:
    return all_of(at_least_zero(rest), at_least_zero(by - rest - 1))


def _as_one_bit(x: Linear) -> Linear | None:
    """``w`` if ``x`` is ``w & (w - 1)``, which is 0 for 0 and for powers of two alone."""
    match x:
        case Linear(terms=((Apply(op="bitand", args=(a, b)), 1),), constant=0):
            a_, b_ = linear(a), linear(b)
            return a_ if a_ - b_ == constant(1) else b_ if b_ - a_ == constant(1) else None
    return None


def _has_power_of_two(lo: Linear, hi: Linear) -> Node:
    """Whether 0 or a power of two lies in ``[lo, hi]``.

    For ``0 <= a <= b``, ``b`` has more bits than ``a`` just if ``a ^ b > a``, and just then a power lies in ``(a, b]``.
    """
    a, b = greatest(lo - 1, constant(0)), greatest(hi, constant(0))
    crossed = apply("gt", apply("bitxor", to_node(a), to_node(b)), to_node(a))
    return any_of(all_of(at_least_zero(-lo), at_least_zero(hi)), crossed)
