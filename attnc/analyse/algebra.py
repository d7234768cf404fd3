"""What the streaming analysis knows of real arithmetic: products, sums and signs.

Everything here is conservative: what cannot be shown from the expression alone is taken not to hold.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from weakref import WeakKeyDictionary

from attnc.ir.build import apply, literal
from attnc.ir.nodes import Apply, Dot, Kind, Literal, Node, Reduce, Size, State
from attnc.ir.traverse import postorder

ONE = literal(1.0)
ZERO = literal(0.0)

MOST_ADDENDS = 200
"""A shared sum may be opened up exponentially often; beyond this it is not, and costs another pass instead."""


@dataclass(frozen=True, slots=True)
class Where:
    """The nodes for which ``test`` holds, as a container (for ``postorder(stop=...)``)."""

    test: Callable[[Node], bool]

    def __contains__(self, node: object) -> bool:
        return isinstance(node, Node) and self.test(node)


def is_row(node: Node) -> bool:
    """Whether ``node`` is the same for every key."""
    return "j" not in node.axes


def is_reduction(node: Node) -> bool:
    """Whether ``node`` is a reduction over the keys."""
    return isinstance(node, Reduce) and node.over == "j"


def is_zero(node: Node) -> bool:
    return isinstance(node, Literal) and node.kind is not Kind.BOOL and node.value == 0


# Never holds a statistic as a key, since a value that holds its own key would keep it alive.
_STATISTICS: WeakKeyDictionary[Node, tuple[Node, ...]] = WeakKeyDictionary()


def statistics(root: Node) -> tuple[Node, ...]:
    """The outermost reductions over the keys under ``root``, and states made of such, in order of appearance."""
    if (cached := _STATISTICS.get(root)) is not None:
        return cached
    for node in postorder(root, stop=Where(lambda node: node in _STATISTICS or _is_statistic(node))):
        if node not in _STATISTICS and not _is_statistic(node):
            found = ((child,) if _is_statistic(child) else _STATISTICS[child] for child in node.children)
            _STATISTICS[node] = tuple(dict.fromkeys(chain.from_iterable(found)))
    return (root,) if _is_statistic(root) else _STATISTICS[root]


def _is_statistic(node: Node) -> bool:
    return is_reduction(node) or isinstance(node, State)


def reductions(root: Node) -> tuple[Reduce, ...]:
    """The outermost reductions over the keys under ``root``, in order of appearance."""
    return tuple(node for node in statistics(root) if isinstance(node, Reduce))


def has_statistic(node: Node) -> bool:
    """Whether a reduction over the keys, or what a plan made of one, is part of ``node``."""
    return bool(statistics(node))


def times(a: Node, b: Node) -> Node:
    """``a * b``, a factor 1 left out."""
    return b if a is ONE else a if b is ONE else apply("mul", a, b)


def product(factors: Iterable[Node]) -> Node:
    """The product of some factors, numbers first and as one; 1 if there is none."""
    factors = list(factors)
    number = math.prod((float(factor.value) for factor in factors if isinstance(factor, Literal)), start=1.0)
    result: Node = literal(number) if math.isfinite(number) else ONE
    for factor in factors:
        if not (isinstance(factor, Literal) and math.isfinite(number)):
            result = times(result, factor)
    return result


def signed_sum(addends: Iterable[tuple[int, Node]]) -> Node:
    """The sum of ``sign * node``; positive ones first, so that no leading minus is needed where there is one."""
    result: Node | None = None
    for sign, node in sorted(addends, key=lambda addend: addend[0] < 0):
        if result is None:
            result = node if sign > 0 else apply("neg", node)
        else:
            result = apply("add" if sign > 0 else "sub", result, node)
    return ZERO if result is None else result


def addends(x: Node) -> list[tuple[int, Node]]:
    """``x`` as a list of ``(sign, node)``: sums, differences and negations opened up.

    A factor or divisor that is the same for every key is multiplied into a sum that holds a statistic. What has more
    than ``MOST_ADDENDS`` stays whole.
    """
    found: list[tuple[int, Node]] = []
    stack: list[tuple[int, Node]] = [(1, x)]
    while stack:
        sign, node = stack.pop()
        match node:
            case Apply(kind=Kind.REAL, op="add", args=(a, b)):
                stack += [(sign, b), (sign, a)]
            case Apply(kind=Kind.REAL, op="sub", args=(a, b)):
                stack += [(-sign, b), (sign, a)]
            case Apply(kind=Kind.REAL, op="neg", args=(a,)):
                stack.append((-sign, a))
            case Apply(kind=Kind.REAL, op="mul", args=(a, b)) if is_row(a) and _is_sum(b):
                stack += [(sign * s, apply("mul", a, part)) for s, part in reversed(_parts(b))]
            case Apply(kind=Kind.REAL, op="mul" | "div" as op, args=(a, b)) if is_row(b) and _is_sum(a):
                stack += [(sign * s, apply(op, part, b)) for s, part in reversed(_parts(a))]
            case _:
                found.append((sign, node))
        if len(found) + len(stack) > MOST_ADDENDS:
            return [(1, x)]
    return found


def _is_sum(x: Node) -> bool:
    return isinstance(x, Apply) and x.op in ("add", "sub", "neg") and has_statistic(x)


def _parts(x: Node) -> list[tuple[int, Node]]:
    match x:
        case Apply(op="add", args=(a, b)):
            return [(1, a), (1, b)]
        case Apply(op="sub", args=(a, b)):
            return [(1, a), (-1, b)]
        case Apply(op="neg", args=(a,)):
            return [(-1, a)]
        case _:
            return [(1, x)]


def cancel(parts: Iterable[tuple[int, Node]]) -> list[tuple[int, Node]]:
    """The addends without the pairs ``+x, -x``, in order."""
    parts = list(parts)
    left: Counter[tuple[int, Node]] = Counter(parts)
    for sign, node in list(left):
        common = min(left[(sign, node)], left[(-sign, node)])
        left[(sign, node)] -= common
        left[(-sign, node)] -= common
    kept = []
    for part in parts:
        if left[part] > 0:
            left[part] -= 1
            kept.append(part)
    return kept


class Sign(enum.IntEnum):
    """What is known of a number: nothing, that it is not negative, that it is positive."""

    UNKNOWN = 0
    NONNEGATIVE = 1
    POSITIVE = 2


def sign_of(x: Node, known: dict[Node, Sign]) -> Sign:
    """The sign of ``x`` in a row that sees a key. ``known`` holds that of states, and gathers what is found."""
    for node in postorder(x, stop=known):
        if node not in known:
            known[node] = _sign(node, known)
    return known[x]


def _sign(node: Node, signs: Mapping[Node, Sign]) -> Sign:
    unknown, nonnegative, positive = Sign.UNKNOWN, Sign.NONNEGATIVE, Sign.POSITIVE
    match node:
        case Literal(value=value):
            return positive if value > 0 else nonnegative if value == 0 else unknown
        case Size():
            return positive
        case Dot(a=a, b=b) if a is b:
            return nonnegative
        case Reduce(x=x):
            return signs[x]
        case Apply(op="exp" | "sigmoid"):
            return positive
        case Apply(op="rsqrt"):
            return positive
        case Apply(op="abs"):
            return nonnegative
        case Apply(op="real" | "detach", args=(a,)):
            return signs[a]
        case Apply(op="sqrt", args=(a,)):
            return max(nonnegative, signs[a])
        case Apply(op="mul", args=(a, b)):
            return nonnegative if a is b and signs[a] is unknown else min(signs[a], signs[b])
        case Apply(op="div", args=(a, b)):
            return min(signs[a], signs[b])
        case Apply(op="add", args=(a, b)):
            return max(signs[a], signs[b]) if min(signs[a], signs[b]) > unknown else unknown
        case Apply(op="max", args=(a, b)):
            return max(signs[a], signs[b])
        case Apply(op="min", args=(a, b)):
            return min(signs[a], signs[b])
        case Apply(op="where", args=(_, a, b)):
            return min(signs[a], signs[b])
        case Apply(op="pow", args=(a, Literal(value=power))) if power % 2 == 0:
            return max(nonnegative, signs[a])
        case Apply(op="pow", args=(a, _)):
            return positive if signs[a] is positive else unknown
        case _:
            return unknown
