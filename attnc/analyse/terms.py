"""A summand over the keys as ``sum of (row factor) * (pair term) * (value)``: what may leave the sum, and what not.

*Open* is what holds a reduction over the keys that is not known yet. A row factor that is open is what forces a sum
apart: ``(s - mean) * v`` becomes ``s * v`` and ``-mean * v``, while ``(s + bias) * v`` stays whole. A product of two
sums is never multiplied out, so that ``(s - mean) * (s - mean)`` keeps its accuracy, at the price of another pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from attnc.analyse.algebra import (
    MOST_ADDENDS,
    ONE,
    ZERO,
    Sign,
    Where,
    addends,
    cancel,
    has_statistic,
    is_reduction,
    is_row,
    is_zero,
    product,
    reductions,
    sign_of,
    signed_sum,
    times,
)
from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Kind, Literal, Node, Reduce
from attnc.ir.traverse import postorder


@dataclass(frozen=True, slots=True)
class Term:
    """``sign * above / below * pair * value``.

    ``above`` and ``below`` are the same for every key, ``pair`` is a scalar, and ``value`` a vector over the keys
    (``None`` in a sum of scalars).
    """

    sign: int = 1
    above: tuple[Node, ...] = ()
    below: tuple[Node, ...] = ()
    pair: Node = ONE
    value: Node | None = None

    @property
    def open(self) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The factors that hold an unknown statistic."""
        return tuple(filter(is_open, self.above)), tuple(filter(is_open, self.below))

    @property
    def key(self) -> tuple[frozenset[tuple[Node, int]], frozenset[tuple[Node, int]]]:
        """What two terms with the same open factors have in common, in whatever order those stand."""
        above, below = self.open
        return frozenset((x, above.count(x)) for x in above), frozenset((x, below.count(x)) for x in below)

    def closed(self) -> Term:
        """The term without its open factors."""
        return replace(
            self,
            above=tuple(x for x in self.above if not is_open(x)),
            below=tuple(x for x in self.below if not is_open(x)),
        )

    def without_common(self, known: dict[Node, Sign]) -> Term:
        """The term without the positive factors that stand above and below."""
        above, below = list(self.above), []
        for divisor in self.below:
            if divisor in above and sign_of(divisor, known) is Sign.POSITIVE:
                above.remove(divisor)
            else:
                below.append(divisor)
        return replace(self, above=tuple(above), below=tuple(below))

    def row(self, inner: Node = ONE) -> Node:
        """The factors applied to ``inner``, the sign left out."""
        result = times(product(self.above), inner)
        for divisor in self.below:
            result = apply("div", result, divisor)
        return result

    def scalar(self) -> tuple[int, Node]:
        """Sign, factors and pair term as one expression."""
        return self.sign, self.row(self.pair)


Terms: TypeAlias = tuple[Term, ...]


def is_open(node: Node) -> bool:
    """Whether ``node`` holds a reduction over the keys that is not known yet."""
    return bool(reductions(node))


def split(x: Node, known: dict[Node, Sign]) -> Terms:
    """The terms whose sum is ``x``; ``known`` holds the signs of states."""
    splitter = _Splitter(known)
    for node in postorder(x, stop=Where(lambda node: is_reduction(node) or node.kind is not Kind.REAL)):
        splitter.terms[node] = splitter.split(node)
    return splitter.terms[x]


@dataclass(slots=True)
class _Splitter:
    """Splits a node whose parts were split; ``terms`` holds what became of them."""

    known: dict[Node, Sign]
    terms: dict[Node, Terms]

    def __init__(self, known: dict[Node, Sign]) -> None:
        self.known = known
        self.terms = {}

    def split(self, node: Node) -> Terms:
        match node:
            case _ if node.kind is not Kind.REAL:
                return (Term(above=(node,)) if is_row(node) else _atom(node),)
            case Apply(op="neg", args=(a,)):
                return tuple(replace(term, sign=-term.sign) for term in self.terms[a])
            case Apply(op="mul", args=(a, b)) if len(self.terms[a]) == 1 or len(self.terms[b]) == 1:
                return self._multiply(node, self.terms[a], self.terms[b])
            case Apply(op="div", args=(a, b)) if len(self.terms[b]) == 1:
                return self._divide(node, self.terms[a], self.terms[b][0])
            case Apply(op="add" | "sub" as op, args=(a, b)) if not is_row(node) and _comes_apart(node):
                other = self.terms[b]
                if op == "sub":
                    other = tuple(replace(term, sign=-term.sign) for term in other)
                return self.terms[a] + other if len(self.terms[a] + other) <= MOST_ADDENDS else (_atom(node),)
            case _ if is_row(node):
                return (Term(above=() if node is ONE else (node,)),)
            case Apply(op="exp", args=(x,)) if not node.is_vector and has_statistic(x):
                return (self._exp(node, x),)
            case _ if not is_open(node) or node.is_vector:
                return (_atom(node),)
            case Apply(op="where", args=(condition, a, b)) if not is_open(condition) or is_row(condition):
                return self._where(condition, a, b) or (_atom(node),)
            case Apply(op="abs" | "max" | "min" as op, args=args):
                return self._scaled(op, args) or (_atom(node),)
            case Apply(op="pow", args=(a, Literal() as power)) if len(self.terms[a]) == 1:
                return self._power(self.terms[a][0], power) or (_atom(node),)
            case _:
                return (_atom(node),)

    def _multiply(self, node: Node, a: Terms, b: Terms) -> Terms:
        if any(x.value is not None and y.value is not None for x in a for y in b):
            return (_atom(node),)
        return tuple(
            Term(x.sign * y.sign, x.above + y.above, x.below + y.below, times(x.pair, y.pair), x.value or y.value)
            for x in a
            for y in b
        )

    def _divide(self, node: Node, a: Terms, b: Term) -> Terms:
        if b.value is not None:
            return (_atom(node),)

        def divided(term: Term) -> Term:
            pair = term.pair if b.pair is ONE else apply("div", term.pair, b.pair)
            return Term(term.sign * b.sign, term.above + b.below, term.below + b.above, pair, term.value)

        return tuple(map(divided, a))

    def _exp(self, node: Node, x: Node) -> Term:
        """``exp(s - (m + log(l)))`` is ``exp(s - m) / l``: with ``m`` the maximum of ``s`` neither can overflow."""
        parts = addends(x)
        kept = cancel(parts)
        over_keys = signed_sum(part for part in kept if not is_row(part[1]))
        bounded = any(
            sign < 0 and isinstance(part, Reduce) and part.op == "max" and part.x is over_keys for sign, part in kept
        )
        out = [
            (sign, part)
            for sign, part in kept
            if bounded and is_row(part) and any(found.op == "sum" for found in reductions(part))
        ]
        if not out:
            return _atom(node if len(kept) == len(parts) else apply("exp", signed_sum(kept)))
        term = _atom(apply("exp", signed_sum(part for part in kept if part not in out)))
        for sign, part in out:
            logarithm = isinstance(part, Apply) and part.op == "log"
            factor = part.args[0] if isinstance(part, Apply) and logarithm else apply("exp", part)
            term = replace(
                term,
                above=(*term.above, *((factor,) if sign > 0 else ())),
                below=(*term.below, *((factor,) if sign < 0 else ())),
            )
        return term

    def _where(self, condition: Node, a: Node, b: Node) -> Terms:
        """A choice of sums is a sum of choices, as long as no factor that is left out could spoil the sum."""
        first = () if is_zero(a) else self.terms[a]
        second = () if is_zero(b) else self.terms[b]
        if is_row(condition):
            chosen = [(term, apply("where", condition, term.row(), ZERO)) for term in first]
            chosen += [(term, apply("where", condition, ZERO, term.row())) for term in second]
            return tuple(Term(term.sign, (row,), (), term.pair, term.value) for term, row in chosen)
        if not all(map(self._is_finite, first + second)):
            return ()
        result = []
        for key in dict.fromkeys(term.key for term in first + second):
            here = [signed_sum(t.closed().scalar() for t in side if t.key == key) for side in (first, second)]
            above, below = next(term.open for term in first + second if term.key == key)
            result.append(Term(1, above, below, apply("where", condition, *here)))
        return tuple(result)

    def _is_finite(self, term: Term) -> bool:
        return all(sign_of(x, self.known) is Sign.POSITIVE for x in term.open[1])

    def _scaled(self, op: str, args: Sequence[Node]) -> Terms:
        """``max(r * x, r * y)`` is ``r * max(x, y)`` for a factor ``r`` that is not negative."""
        split = [self.terms[arg] for arg in args if not is_zero(arg)]
        if any(len(terms) != 1 for terms in split) or len({terms[0].key for terms in split}) != 1:
            return ()
        above, below = split[0][0].open
        if any(sign_of(x, self.known) is Sign.UNKNOWN for x in above) or not self._is_finite(split[0][0]):
            return ()
        inner = [ZERO if is_zero(arg) else signed_sum([self.terms[arg][0].closed().scalar()]) for arg in args]
        return (Term(1, above, below, apply(op, *inner)),) if above or below else ()

    def _power(self, term: Term, power: Literal) -> Terms:
        above, below = term.open
        integer = float(power.value).is_integer()
        if not (above or below) or not (integer or all(sign_of(x, self.known) for x in above + below)):
            return ()
        raised = tuple(apply("pow", x, power) for x in above), tuple(apply("pow", x, power) for x in below)
        return (Term(1, *raised, apply("pow", signed_sum([term.closed().scalar()]), power)),)


def _atom(node: Node) -> Term:
    return Term(value=node) if node.is_vector else Term(pair=node)


def _comes_apart(node: Node) -> bool:
    """Whether a sum is split: scalars and vectors with an open part, and vectors that depend on the pair."""
    return is_open(node) or (node.is_vector and {"i", "j"} <= node.axes)


def merge(terms: Iterable[Term], shift_of: Mapping[Node, object]) -> list[Term]:
    """Terms that can share one sum made one: same open factors, same value, same shift.

    A factor that is not open leaves the sum if it is alone, and goes into the pair term if it is not.
    """
    groups: dict[object, list[Term]] = {}
    for term in terms:
        groups.setdefault((term.key, term.value, shift_of[term.pair]), []).append(term)
    return [group[0] if len(group) == 1 else _join(group) for group in groups.values()]


def _join(group: Sequence[Term]) -> Term:
    above, below = group[0].open
    if all(term.pair is group[0].pair for term in group):
        factor = signed_sum((term.sign, term.closed().row()) for term in group)
        return Term(1, (*above, factor), below, group[0].pair, group[0].value)
    pair = signed_sum(term.closed().scalar() for term in group)
    return Term(1, above, below, pair, group[0].value)
