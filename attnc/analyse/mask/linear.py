"""Integer expressions as sums ``c1*t1 + c2*t2 + ... + constant`` over terms that are not themselves sums."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from attnc.ir.build import apply, literal, size
from attnc.ir.nodes import Literal, Node

PAIR_AXES = frozenset("ij")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """``sum(coefficient * term) + constant``. Equality ignores the order of the terms, printing keeps it."""

    terms: tuple[tuple[Node, int], ...]
    constant: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Linear) and self.constant == other.constant and dict(self.terms) == dict(other.terms)

    def __hash__(self) -> int:
        return hash((frozenset(self.terms), self.constant))

    def __add__(self, other: Linear | int) -> Linear:
        if isinstance(other, int):
            return Linear(self.terms, self.constant + other)
        total = dict(self.terms)
        for term, coefficient in other.terms:
            total[term] = total.get(term, 0) + coefficient
        return Linear(tuple((t, c) for t, c in total.items() if c), self.constant + other.constant)

    def __neg__(self) -> Linear:
        return self.scaled(-1)

    def __sub__(self, other: Linear | int) -> Linear:
        return self + (-other)

    def scaled(self, factor: int) -> Linear:
        """``factor`` times this."""
        if factor == 0:
            return Linear((), 0)
        return Linear(tuple((t, factor * c) for t, c in self.terms), factor * self.constant)

    def varying(self, axes: frozenset[str] = PAIR_AXES) -> Linear:
        """The part whose terms vary over some of ``axes``, without the constant."""
        return Linear(tuple((t, c) for t, c in self.terms if t.axes & axes), 0)

    @property
    def axes(self) -> frozenset[str]:
        return frozenset().union(*(term.axes for term, _ in self.terms))

    @property
    def content(self) -> int:
        """The greatest common divisor of the coefficients; 0 without terms."""
        return gcd(*(c for _, c in self.terms))


def constant(value: int) -> Linear:
    return Linear((), value)


def atom(node: Node) -> Linear:
    """``node`` as a single term, or as a constant if it is a literal."""
    if isinstance(node, Literal):
        return constant(int(node.value))
    return Linear(((node, 1),), 0)


N, M = atom(size("N")), atom(size("M"))


def to_node(x: Linear) -> Node:
    """The sum as a node: what is added first, then what is subtracted."""
    added = [_times(t, c) for t, c in x.terms if c > 0]
    taken = [_times(t, -c) for t, c in x.terms if c < 0]
    if x.constant > 0 or not added:
        if x.constant or not taken:
            added.append(literal(x.constant))
        elif not added:
            return _sum([apply("neg", taken[0])], taken[1:])
    elif x.constant < 0:
        taken.append(literal(-x.constant))
    return _sum(added, taken)


def _times(term: Node, coefficient: int) -> Node:
    return term if coefficient == 1 else apply("mul", term, literal(coefficient))


def _sum(added: list[Node], taken: list[Node]) -> Node:
    total = added[0]
    for node in added[1:]:
        total = apply("add", total, node)
    for node in taken:
        total = apply("sub", total, node)
    return total
